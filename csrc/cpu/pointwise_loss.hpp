// Losses of one output and its target, with their derivatives.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/softmax.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

// Functions of (output x, target t, parameter a). NaN stays NaN.
#define PYOPTIM_LOSS(name, value_, slope_)                  \
    struct name##_loss {                                    \
        template <class T>                                  \
        static PYOPTIM_INLINE double value(T x, T t, T a) { \
            static_cast<void>(a);                           \
            value_;                                         \
        }                                                   \
        template <class T>                                  \
        static PYOPTIM_INLINE T slope(T x, T t, T a) {      \
            static_cast<void>(a);                           \
            slope_;                                         \
        }                                                   \
    };

template <class T>
PYOPTIM_INLINE T size_of(T x) {
    return x < T(0) ? -x : x;
}
// x between -limit and limit
template <class T>
PYOPTIM_INLINE T within(T x, T limit) {
    const T above = x < -limit ? -limit : x;
    return above > limit ? limit : above;
}

PYOPTIM_LOSS(squared, const double d = double(x) - double(t); return d * d, return T(2) * (x - t))
PYOPTIM_LOSS(absolute, return size_of(double(x) - double(t)), const T d = x - t;
             const T side = d > T(0) ? T(1) : T(-1); return d == T(0) || d != d ? d : side)
PYOPTIM_LOSS(huber, const double d = size_of(double(x) - double(t)); const double delta = double(a);
             const double near = d <= delta ? d : delta;
             return near * (d - 0.5 * near) + (d - d), return within(x - t, a))
// With the positive examples' weight a: (1 - t) x + (1 + (a - 1) t) log(1 + exp(-x)).
PYOPTIM_LOSS(binary, const T below = x < T(0) ? -x : T(0); const T both = T(1) + (a - T(1)) * t;
             const T soft = logarithm_1_plus(exponential(-size_of(x)));
             return double((T(1) - t) * x) + double(both) * (double(soft) + double(below)),
                    const T e = exponential(-size_of(x));
             const T p = (x < T(0) ? e : T(1)) / (T(1) + e); return p * (T(1) + (a - T(1)) * t) - a * t)
PYOPTIM_LOSS(hinge, const double m = 1 - double(t) * double(x);
             return m <= 0 ? 0 : m, const T m = T(1) - t * x; const T inside = m != m ? m : -t;
             return m <= T(0) ? T(0) : inside)

#undef PYOPTIM_LOSS

template <class L, class T>
double pointwise_with(const Pointwise<T>& it, ptrdiff_t n, T scale, const T* x, const T* target, T* dx) {
    constexpr ptrdiff_t kChunk = 256;
    double values[kChunk], total = 0;
    for (ptrdiff_t begin = 0; begin < n; begin += kChunk) {
        const ptrdiff_t m = n - begin < kChunk ? n - begin : kChunk;
        T a[kChunk];
        for (ptrdiff_t i = 0; i < m; ++i) a[i] = it.columns == nullptr ? it.a : it.columns[begin + i];
        if (dx == nullptr) {
            for (ptrdiff_t i = 0; i < m; ++i) values[i] = L::value(x[begin + i], target[begin + i], a[i]);
        } else {
            for (ptrdiff_t i = 0; i < m; ++i) {
                const T at = x[begin + i], t = target[begin + i];
                values[i] = L::value(at, t, a[i]);
                dx[begin + i] = scale * L::slope(at, t, a[i]);
            }
        }
        total += sum_of(m, [&](ptrdiff_t i) { return values[i]; });
    }
    return total;
}

template <class T>
double pointwise_loss(const Pointwise<T>& it, ptrdiff_t n, T scale, const T* x, const T* target, T* dx) {
    switch (it.kind) {
#define X(name)               \
    case PointwiseKind::name: \
        return pointwise_with<name##_loss>(it, n, scale, x, target, dx);
        PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
        case PointwiseKind::count:
            break;
    }
    return 0;
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
