#include "pyoptim/predictor.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "api/inputs.hpp"
#include "api/model_file.hpp"
#include "api/network_impl.hpp"
#include "engine/predictor.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim {

namespace {

// Working memory for one thread at a time.
template <class T>
struct alignas(64) Desk {
    std::atomic<bool> taken{false};
    core::Memory<T> memory;
    bool take() { return !taken.load() && !taken.exchange(true); }
};

// The desks of a predictor. Threads that find none free sleep until one is.
template <class T>
class Desks {
  public:
    Desks(int count, std::size_t room)
        : count_(count), all_(std::make_unique<Desk<T>[]>(static_cast<std::size_t>(count))) {
        for (int i = 0; i < count_; ++i) all_[static_cast<std::size_t>(i)].memory.reserve(room);
    }

    // Holds a desk while it lives.
    struct Taken {
        explicit Taken(Desks& from) : desks(from), desk(from.take()) {}
        ~Taken() { desks.give_back(desk); }
        Taken(const Taken&) = delete;
        Taken& operator=(const Taken&) = delete;
        Desks& desks;
        Desk<T>& desk;
    };

  private:
    Desk<T>* free_desk() {
        for (int i = 0; i < count_; ++i) {
            Desk<T>& desk = all_[static_cast<std::size_t>(i)];
            if (desk.take()) return &desk;
        }
        return nullptr;
    }
    Desk<T>& take() {
        if (Desk<T>* const found = free_desk()) return *found;
        // A thread counts itself before it looks again, and give_back() frees a desk before it looks at the
        // count: one of the two sees the other.
        std::unique_lock<std::mutex> lock(mutex_);
        ++waiting_;
        Desk<T>* found = nullptr;
        freed_.wait(lock, [&] { return (found = free_desk()) != nullptr; });
        --waiting_;
        return *found;
    }
    void give_back(Desk<T>& desk) {
        desk.taken.store(false);
        if (waiting_.load() == 0) return;
        const std::lock_guard<std::mutex> lock(mutex_);  // or a thread about to sleep would miss the call
        freed_.notify_one();
    }

    int count_;
    std::unique_ptr<Desk<T>[]> all_;
    std::atomic<int> waiting_{0};
    std::mutex mutex_;
    std::condition_variable freed_;
};

// Refuses layers that a thread cannot compute on its own for a part of a batch.
template <class T>
void check_layers(const core::Chain<T>& chain) {
    for (const core::LayerView<T>& view : chain.views()) {
        const char* what = nullptr;
        if (view.layer->custom != nullptr) what = "a custom layer";
        if (view.entry->statistics(*view.layer, view.in.size, false) > 0) {
            what = "a BatchNorm without running statistics";
        }
        if (what == nullptr) continue;
        throw std::invalid_argument("layers[" + view.name.substr(0, view.name.size() - 1) + "] is " + what +
                                    ", expected layers that take each example alone: Network::predict "
                                    "computes this one");
    }
}

}  // namespace

template <class T>
struct [[gnu::visibility("hidden")]] Predictor<T>::Impl {
    explicit Impl(const std::vector<Layer>& layers) : chain(layers, core::inputs_of(layers)) {}

    // Memory of our own for all arrays.
    void own_arrays() {
        parameters.resize(chain.parameter_count());
        chain.bind(parameters.data(), nullptr);
        for (core::LayerView<T>& view : chain.views()) {
            for (core::LayerArray<T>& array : view.arrays) {
                if (array.role == core::Role::counter) array.count = &counters.emplace_back(0);
                if (array.role != core::Role::buffer) continue;
                array.value = buffers.emplace_back(static_cast<std::size_t>(array.size())).data();
            }
        }
    }

    // Takes the arrays where the caller has them. Predictions do not change them.
    void borrow(const ModelArrays<T>& from) {
        std::size_t buffer_count = 0;
        T* buffer = const_cast<T*>(from.buffers);
        for (core::LayerView<T>& view : chain.views()) {
            for (core::LayerArray<T>& array : view.arrays) {
                if (array.role == core::Role::counter) array.count = &counters.emplace_back(0);
                if (array.role != core::Role::buffer) continue;
                buffer_count += static_cast<std::size_t>(array.size());
                if (buffer_count <= from.buffer_count)
                    array.value = std::exchange(buffer, buffer + array.size());
            }
        }
        check("parameters", from.parameters, from.parameter_count, chain.parameter_count());
        check("buffers", from.buffers, from.buffer_count, buffer_count);
        chain.bind(const_cast<T*>(from.parameters), nullptr);
    }
    static void check(const char* name, const T* array, std::size_t given, std::size_t wanted) {
        if (given == wanted && (array != nullptr || wanted == 0)) return;
        throw std::invalid_argument(std::string("arrays: ") + (array == nullptr ? "null for " : "") +
                                    std::to_string(given) + " " + name + ", expected " +
                                    std::to_string(wanted));
    }

    // A model of its own memory, which read(make) fills, ready for predictions.
    template <class Read>
    static std::unique_ptr<Impl> read(const Read& read, const PredictorOptions& options) {
        std::unique_ptr<Impl> impl;
        read([&](const std::vector<Layer>& layers) -> core::Chain<T>& {
            impl = std::make_unique<Impl>(layers);
            impl->own_arrays();
            return impl->chain;
        });
        impl->finish(options);
        return impl;
    }

    // Prepares for predictions once all arrays have their values.
    void finish(const PredictorOptions& options) {
        check_layers(chain);
        if (options.callers < 0 || options.callers > core::most_threads()) {
            throw std::invalid_argument("callers is " + std::to_string(options.callers) +
                                        ", expected between 0 and " + std::to_string(core::most_threads()));
        }
        predictor = std::make_unique<core::Predictor<T>>(chain.views());
        most = options.most_examples == 0 ? std::numeric_limits<std::uint32_t>::max() : options.most_examples;
        predictor->freeze(most);
        rows = std::min(most, predictor->block());
        desks = std::make_unique<Desks<T>>(options.callers == 0 ? core::get_num_threads() : options.callers,
                                           predictor->room(rows));
    }

    void predict(const typename core::Predictor<T>::Batch& of) const {
        if (of.n == 0) return;
        if ((of.x == nullptr && of.bytes == nullptr) || of.y == nullptr) {
            throw std::invalid_argument("x or y is null");
        }
        if (of.n > most) {
            throw std::invalid_argument("examples is " + std::to_string(of.n) + ", expected at most " +
                                        std::to_string(most));
        }
        core::checked_product("examples", of.n, std::max(predictor->inputs(), predictor->outputs()));
        if (of.x != nullptr) core::check_inputs(of.x, of.n, predictor->inputs());
        const typename Desks<T>::Taken taken(*desks);
        predictor->predict_frozen(of, taken.desk.memory.data(), rows);
    }

    core::Chain<T> chain;
    std::vector<T> parameters;           // empty if the caller has them
    std::deque<std::vector<T>> buffers;  // likewise
    std::deque<std::int64_t> counters;
    std::unique_ptr<core::Predictor<T>> predictor;
    std::size_t most = 0, rows = 0;  // examples of a call, and of a block of it
    std::unique_ptr<Desks<T>> desks;
};

template <class T>
Predictor<T>::Predictor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
template <class T>
Predictor<T>::~Predictor() = default;
template <class T>
Predictor<T>::Predictor(Predictor&&) noexcept = default;
template <class T>
Predictor<T>& Predictor<T>::operator=(Predictor&&) noexcept = default;

template <class T>
Predictor<T>::Predictor(const Network<T>& network, const PredictorOptions& options)
    : impl_(std::make_unique<Impl>(network.layers())) {
    impl_->own_arrays();
    auto to = impl_->chain.views().begin();
    for (const core::LayerView<T>& from : network.impl_->chain.views()) {
        for (std::size_t i = 0; i < from.arrays.size(); ++i) {
            if (from.arrays[i].value == nullptr) continue;
            std::copy_n(from.arrays[i].value, from.arrays[i].size(), to->arrays[i].value);
        }
        ++to;
    }
    impl_->finish(options);
}

template <class T>
Predictor<T>::Predictor(const std::vector<Layer>& layers, const ModelArrays<T>& arrays,
                        const PredictorOptions& options)
    : impl_(std::make_unique<Impl>(layers)) {
    impl_->borrow(arrays);
    impl_->finish(options);
}

template <class T>
Predictor<T> Predictor<T>::load(const std::string& path, const PredictorOptions& options) {
    return Predictor(Impl::read([&](const auto& make) { core::read_model<T>(path, make); }, options));
}

template <class T>
Predictor<T> Predictor<T>::load(const void* bytes, std::size_t size, const PredictorOptions& options) {
    return Predictor(Impl::read([&](const auto& make) { core::read_model<T>(bytes, size, make); }, options));
}

template <class T>
std::size_t Predictor<T>::inputs() const {
    return impl_->predictor->inputs();
}
template <class T>
std::size_t Predictor<T>::outputs() const {
    return impl_->predictor->outputs();
}

template <class T>
void Predictor<T>::predict(const T* x, std::size_t examples, T* y) const {
    impl_->predict({examples, x, nullptr, y});
}
template <class T>
void Predictor<T>::predict(const std::uint8_t* x, std::size_t examples, T* y) const {
    impl_->predict({examples, nullptr, x, y});
}

template class Predictor<float>;
template class Predictor<double>;

}  // namespace pyoptim
