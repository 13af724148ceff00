// Passes through a network for losses that the library does not know, and steps by their gradients.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "api/inputs.hpp"
#include "api/network_impl.hpp"
#include "api/optimizer_impl.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim {

// Sets running statistics and counters back at its end, unless the step of update() was taken.
template <class T>
struct Network<T>::Impl::Undo {
    explicit Undo(Impl& of) : impl(of) {}
    ~Undo() {
        if (impl.can_undo) impl.passes->undo_pass();
        impl.can_undo = false;
    }
    Undo(const Undo&) = delete;
    Undo& operator=(const Undo&) = delete;
    Impl& impl;
};

template <class T>
core::Engine<T>& Network<T>::Impl::engine_for_passes(std::size_t n) {
    if (passes == nullptr || passes->capacity() < n) {
        passed = 0;
        auto larger = std::make_unique<core::Engine<T>>(chain.views(), std::nullopt, n, true);
        if (passes != nullptr) larger->take_undo(*passes);
        passes = std::move(larger);
    }
    return *passes;
}

template <class T>
const T* Network<T>::forward(const T* x, std::size_t n, bool training) {
    if (x == nullptr) throw std::invalid_argument("x is null, expected n examples");
    if (n == 0) throw std::invalid_argument("n is 0, expected at least one example");
    core::check_inputs(x, n, inputs());
    if (training) impl_->check_batch(n);
    const typename Impl::Busy busy(*impl_);
    const core::ThreadLimit limit(impl_->thread_limit);
    core::Engine<T>& engine = impl_->engine_for_passes(n);
    impl_->passed = 0;  // if a layer throws
    impl_->can_undo = impl_->can_undo && !training;
    const T* const y = engine.pass_forward(x, n, training);
    impl_->passed = n;
    impl_->can_undo = impl_->can_undo || training;
    // Copies live as the header says, whatever becomes of the engine; x may be the last one.
    impl_->outputs.assign(y, y + n * outputs());
    return impl_->outputs.data();
}

template <class T>
const T* Network<T>::backward(const T* dy) {
    if (dy == nullptr) throw std::invalid_argument("dy is null");
    const typename Impl::Busy busy(*impl_);
    const core::ThreadLimit limit(impl_->thread_limit);
    if (impl_->passes == nullptr || impl_->passed == 0) {
        throw std::invalid_argument("there is no forward() that this backward() could belong to");
    }
    const T* const dx = impl_->passes->pass_backward(dy, impl_->passed);
    impl_->slope.assign(dx, dx + impl_->passed * inputs());
    return impl_->slope.data();
}

template <class T>
void Network<T>::update(Optimizer<T>& optimizer) {
    impl_->check_size(optimizer);
    const typename Impl::Busy busy(*impl_);
    const core::ThreadLimit limit(impl_->thread_limit);
    impl_->find_parts(optimizer);
    const typename Impl::Undo undo(*impl_);
    using Taken = typename Optimizer<T>::Impl::Taken;
    const Taken taken = optimizer.impl_->take(optimizer, parameters(), gradients(), impl_->learning);
    if (taken == Taken::yes) impl_->can_undo = false;
    if (taken == Taken::refused) throw std::domain_error("a gradient holds NaN or infinity");
}

namespace {

// Whether running statistics are made of what passes through a layer in training.
bool keeps_statistics(const Layer& layer) {
    return layer.type == "BatchNorm" && layer.trainable && layer.track_running_stats;
}

// The addresses of the momenta of such layers, with what they are.
void find_momenta(std::vector<Layer>& layers, std::vector<std::pair<double*, double>>& found) {
    for (Layer& layer : layers) {
        if (keeps_statistics(layer)) found.emplace_back(&layer.momentum, layer.momentum);
        find_momenta(layer.block, found);
    }
}

// The largest size of batches, at most this one, of which no batch of so many examples holds one.
std::size_t fitting_size(std::size_t size, std::size_t examples) {
    for (; size > 1; --size) {
        if (examples % size != 1) return size;
    }
    return examples;
}

}  // namespace

template <class T>
void Network<T>::update_bn(const Dataset<T>& data, std::size_t batch_size) {
    if ((data.x == nullptr) == (data.bytes == nullptr)) {
        throw std::invalid_argument("data: expected either x or bytes");
    }
    if (data.examples == 0 || batch_size == 0) {
        throw std::invalid_argument("data has no examples or batch_size is 0, expected at least 1");
    }
    if (data.x != nullptr) core::check_inputs(data.x, data.examples, inputs());
    const std::size_t size = fitting_size(std::min(batch_size, data.examples), data.examples), in = inputs();
    impl_->check_batch(data.examples % size == 0 ? size : data.examples % size);
    std::vector<std::pair<double*, double>> momenta;
    find_momenta(impl_->chain.layers(), momenta);
    if (momenta.empty()) return;
    const typename Impl::Busy busy(*impl_);
    const core::ThreadLimit limit(impl_->thread_limit);
    impl_->can_undo = false;
    std::vector<T> batch(data.bytes != nullptr ? size * in : 0);
    const auto set_back = [&] {
        for (const auto& [at, value] : momenta) *at = value;
    };
    for (const auto& [at, value] : momenta) *at = -1;  // the cumulative mean, which begins with a count of 0
    std::unique_ptr<core::Engine<T>> engine;           // reads the momenta when it is made
    try {
        engine = std::make_unique<core::Engine<T>>(impl_->chain.views(), std::nullopt, size, true);
    } catch (...) {
        set_back();
        throw;
    }
    set_back();
    const Snapshot<T> before = snapshot();
    for (const core::LayerView<T>& view : impl_->chain.views()) {
        for (const core::LayerArray<T>& array : view.arrays) {
            if (array.role == core::Role::counter && keeps_statistics(*view.layer)) *array.count = 0;
        }
    }
    try {
        for (std::size_t begin = 0; begin < data.examples; begin += size) {
            const std::size_t n = std::min(size, data.examples - begin);
            if (data.bytes != nullptr) std::copy_n(data.bytes + begin * in, n * in, batch.begin());
            engine->pass_forward(data.x != nullptr ? data.x + begin * in : batch.data(), n, true);
        }
    } catch (...) {  // of a custom layer
        restore(before);
        throw;
    }
}

#define X(T)                                                             \
    template const T* Network<T>::forward(const T*, std::size_t, bool);  \
    template const T* Network<T>::backward(const T*);                    \
    template void Network<T>::update_bn(const Dataset<T>&, std::size_t); \
    template void Network<T>::update(Optimizer<T>&);
X(float)
X(double)
#undef X

}  // namespace pyoptim
