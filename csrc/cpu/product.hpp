// The kernels of dense layers; product.cpp has them, compiled with contraction.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {

template <class T>
struct Tile {
    static constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T);
    typedef T Vector __attribute__((vector_size(PYOPTIM_VECTOR_BYTES)));
    // The accumulators and one row of b fill the registers: 32 with AVX-512, else 16.
    static constexpr ptrdiff_t rows = PYOPTIM_VECTOR_BYTES == 64 ? 12 : 6;
    static constexpr ptrdiff_t vectors = 2;
    static constexpr ptrdiff_t cols = vectors * lanes;
    // Blocks that stay in the caches: a panel of b (depth x cols) in L1, a block of a in L2.
    static constexpr ptrdiff_t depth = 256;
    static constexpr ptrdiff_t block_rows = 8 * rows, block_cols = 8 * cols;
};

// A packed block of a, one of b, and a tile of results.
template <class T>
constexpr size_t kProductScratch =
    size_t((Tile<T>::block_rows + Tile<T>::block_cols) * Tile<T>::depth + Tile<T>::rows * Tile<T>::cols);

template <class T>
void product(const Product<T>&, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
             ptrdiff_t col_end, T* scratch);

template <class T>
void column_sum(const T* x, ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t begin, ptrdiff_t end, T* out);

}  // namespace pyoptim::cpu::PYOPTIM_ISA
