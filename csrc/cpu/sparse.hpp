// The products of a dense layer with sparse rows. Lanes are outputs: of the weight these functions take a
// panel, a transposed copy of a few of its rows, which pack_weight makes. An element's sum is over the values
// of a row, or over the rows, one after the other, so it is the same on every instruction set.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/vector.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

// Calls body(place in the panel, value) for each value of a row.
template <class T, class Body>
void for_values(const SparseRows<T>& x, ptrdiff_t row, ptrdiff_t cols, Body body) {
    for (int64_t k = x.begins[row]; k < x.begins[row + 1]; ++k) {
        body(x.columns[k] * cols, x.values[k]);
    }
}

// As Kernels::sparse_product. All of the outputs that `vectors` have are live if `whole`.
template <ptrdiff_t vectors, bool whole, class T>
void sparse_product_of(const SparseRows<T>& x, const SparsePanel<T>& it, T* y) {
    constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T), cols = 2 * lanes;
    const size_t bytes = size_t(whole ? vectors * lanes : it.live) * sizeof(T);
    for (ptrdiff_t row = 0; row < it.rows; ++row, y += it.out) {
        Vector<T> sum[vectors] = {};
        __builtin_memcpy(sum, y, bytes);
        for_values(x, row, cols, [&](ptrdiff_t at, T value) {
            for (ptrdiff_t v = 0; v < vectors; ++v) {
                Vector<T> weight;
                __builtin_memcpy(&weight, it.panel + at + v * lanes, sizeof(weight));
                sum[v] += value * weight;
            }
        });
        __builtin_memcpy(y, sum, bytes);
    }
}

template <ptrdiff_t vectors, bool whole, class T>
void sparse_gradient_of(const SparseRows<T>& x, const SparsePanel<T>& it, const T* dz) {
    constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T), cols = 2 * lanes;
    const size_t bytes = size_t(whole ? vectors * lanes : it.live) * sizeof(T);
    for (ptrdiff_t row = 0; row < it.rows; ++row, dz += it.out) {
        Vector<T> factor[vectors] = {};
        __builtin_memcpy(factor, dz, bytes);
        for_values(x, row, cols, [&](ptrdiff_t at, T value) {
            for (ptrdiff_t v = 0; v < vectors; ++v) {
                T* const to = it.panel + at + v * lanes;
                Vector<T> sum;
                __builtin_memcpy(&sum, to, sizeof(sum));
                sum += factor[v] * value;
                __builtin_memcpy(to, &sum, sizeof(sum));
            }
        });
    }
}

template <class T>
void sparse_product(const SparseRows<T>& x, const SparsePanel<T>& it, T* y) {
    constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T);
    if (it.live == 2 * lanes) {
        sparse_product_of<2, true>(x, it, y);
    } else if (it.live > lanes) {
        sparse_product_of<2, false>(x, it, y);
    } else {
        sparse_product_of<1, false>(x, it, y);
    }
}

template <class T>
void sparse_gradient(const SparseRows<T>& x, const SparsePanel<T>& it, const T* dz) {
    constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T);
    if (it.live == 2 * lanes) {
        sparse_gradient_of<2, true>(x, it, dz);
    } else if (it.live > lanes) {
        sparse_gradient_of<2, false>(x, it, dz);
    } else {
        sparse_gradient_of<1, false>(x, it, dz);
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
