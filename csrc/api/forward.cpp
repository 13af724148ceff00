// Passes through a network for losses that the library does not know, and steps by their gradients.
#include <stdexcept>
#include <string>

#include "api/network_impl.hpp"
#include "api/optimizer_impl.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim {

template <class T>
core::Engine<T>& Network<T>::Impl::engine_for_passes(std::size_t n) {
    if (passes == nullptr || passes->capacity() < n) {
        passed = 0;
        passes = std::make_unique<core::Engine<T>>(chain.views(), Loss{"MSE"}, n, true);
    }
    return *passes;
}

template <class T>
const T* Network<T>::forward(const T* x, std::size_t n, bool training) {
    if (x == nullptr || n == 0) {
        throw std::invalid_argument("x is null or n is 0, expected at least one example");
    }
    core::checked_product("n", n, inputs());
    if (training) impl_->check_batch(n);
    const typename Impl::Busy busy(*impl_);
    core::Engine<T>& engine = impl_->engine_for_passes(n);
    impl_->passed = 0;  // if a layer throws
    const T* const y = engine.pass_forward(x, n, training);
    impl_->passed = n;
    return y;
}

template <class T>
const T* Network<T>::backward(const T* dy) {
    if (dy == nullptr) throw std::invalid_argument("dy is null");
    const typename Impl::Busy busy(*impl_);
    if (impl_->passes == nullptr || impl_->passed == 0) {
        throw std::invalid_argument("there is no forward() that this backward() could belong to");
    }
    return impl_->passes->pass_backward(dy, impl_->passed);
}

template <class T>
void Network<T>::update(Optimizer<T>& optimizer) {
    impl_->check_size(optimizer);
    const typename Impl::Busy busy(*impl_);
    T* const param = parameters();
    if (optimizer.impl_->take(optimizer, param, gradients(), impl_->trained()) ==
        Optimizer<T>::Impl::Taken::refused) {
        throw std::domain_error("a gradient holds NaN or infinity");
    }
}

#define X(T)                                                            \
    template const T* Network<T>::forward(const T*, std::size_t, bool); \
    template const T* Network<T>::backward(const T*);                   \
    template void Network<T>::update(Optimizer<T>&);
X(float)
X(double)
#undef X

}  // namespace pyoptim
