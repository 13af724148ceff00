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

template <ptrdiff_t count, bool all>
struct Width {
    static constexpr ptrdiff_t vectors = count;
    static constexpr bool whole = all;
};

// Calls body(Width) for the vectors that a panel of so many live outputs needs.
template <class T, class Body>
void with_width(ptrdiff_t live, Body body) {
    constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T);
    if (live == 2 * lanes) {
        body(Width<2, true>());
    } else if (live > lanes) {
        body(Width<2, false>());
    } else {
        body(Width<1, false>());
    }
}

template <class T>
void sparse_product(const SparseRows<T>& x, const SparsePanel<T>& it, T* y) {
    with_width<T>(it.live, [&](auto width) {
        sparse_product_of<decltype(width)::vectors, decltype(width)::whole>(x, it, y);
    });
}

template <class T>
void sparse_gradient(const SparseRows<T>& x, const SparsePanel<T>& it, const T* dz) {
    with_width<T>(it.live, [&](auto width) {
        sparse_gradient_of<decltype(width)::vectors, decltype(width)::whole>(x, it, dz);
    });
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
