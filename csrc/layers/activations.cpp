#include "layers/activations.hpp"

#include "formulas/activations.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

bool keeps_input(Activation kind) {
    constexpr bool of_each[] = {
#define X(name) math::name##_activation::keeps_input,
        PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
    };
    return of_each[static_cast<int>(kind)];
}

template <class T>
void activation_forward(const ActivationSpec& it, std::size_t n, const T* x, T* y) {
    split(n, n, kExpGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        forward_kernels<T>().activation_forward(it, static_cast<std::size_t>(end - begin), x + begin,
                                                y + begin);
    });
}

template <class T>
void activation_backward(const ActivationSpec& it, std::size_t n, const T* dy, const T* kept, T* dx) {
    split(n, n, kExpGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().activation_backward(it, static_cast<std::size_t>(end - begin), dy + begin, kept + begin,
                                         dx + begin);
    });
}

template <class T>
void softmax_forward(bool log, std::ptrdiff_t rows, std::ptrdiff_t classes, const T* x, T* y) {
    const auto n = static_cast<std::size_t>(rows);
    split(n, n * static_cast<std::size_t>(classes), kExpGrain, 16,
          [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
              forward_kernels<T>().softmax_forward(log, end - begin, classes, x + begin * classes,
                                                   y + begin * classes);
          });
}

template <class T>
void softmax_backward(bool log, std::ptrdiff_t rows, std::ptrdiff_t classes, const T* dy, const T* y, T* dx) {
    const auto n = static_cast<std::size_t>(rows);
    split(n, n * static_cast<std::size_t>(classes), kExpGrain, 16,
          [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
              const std::ptrdiff_t at = begin * classes;
              kernels<T>().softmax_backward(log, end - begin, classes, dy + at, y + at, dx + at);
          });
}

#define X(T)                                                                                          \
    template void activation_forward<T>(const ActivationSpec&, std::size_t, const T*, T*);            \
    template void activation_backward<T>(const ActivationSpec&, std::size_t, const T*, const T*, T*); \
    template void softmax_forward<T>(bool, std::ptrdiff_t, std::ptrdiff_t, const T*, T*);             \
    template void softmax_backward<T>(bool, std::ptrdiff_t, std::ptrdiff_t, const T*, const T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
