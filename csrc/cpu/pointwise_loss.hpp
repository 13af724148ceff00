// Losses of one output and its target over arrays: formulas/losses.hpp says what each computes.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/softmax.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

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
        return pointwise_with<math::name##_loss>(it, n, scale, x, target, dx);
        PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
        case PointwiseKind::count:
            break;
    }
    return 0;
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
