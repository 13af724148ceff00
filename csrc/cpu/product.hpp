// The kernels of dense layers, implemented in product.cpp, which is compiled with contraction.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/vector.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {

// How many elements of a result a micro-kernel keeps in registers: 32 of them with AVX-512, else 16.
template <class T>
struct Tile {
    static constexpr bool many = PYOPTIM_VECTOR_BYTES == 64;
    static constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T);
    // The tile of scalar products: (rows of x) x (rows of w), with a vector of partial sums for each.
    static constexpr ptrdiff_t dot_rows = 3, dot_cols = many ? 8 : 4;
    // The tile of outer products: rows x vectors.
    static constexpr ptrdiff_t rows = many ? 12 : 6, vectors = 2, cols = vectors * lanes;
    // The same number of sums for few rows: long pieces of each.
    static constexpr ptrdiff_t wide = many ? 8 : 4, wide_rows = rows * vectors / wide;
    // Terms of the sums that one pass adds: a panel of b, depth x cols, stays in L2. Few rows use it up
    // faster.
    static constexpr ptrdiff_t depth = 512, few_depth = 16;
    static constexpr ptrdiff_t block = 512;  // rows of a that one pass takes
};

// A panel of b, and a block of a with the vector that may follow it.
template <class T>
constexpr size_t kProductScratch = size_t(Tile<T>::depth * (Tile<T>::cols + Tile<T>::block) + Tile<T>::lanes);

template <class T>
void dots(const Dots<T>&, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin, ptrdiff_t col_end);

template <class T>
void pack_weight(const T* w, ptrdiff_t n, ptrdiff_t k, ptrdiff_t begin, ptrdiff_t depth, ptrdiff_t col_begin,
                 ptrdiff_t col_end, T* packed);

template <class T>
void unpack_weight(const T* packed, ptrdiff_t k, ptrdiff_t live, T* w);

template <class T>
void packed_product(const Dots<T>&, const T* packed, ptrdiff_t begin, ptrdiff_t depth, ptrdiff_t row_begin,
                    ptrdiff_t row_end, ptrdiff_t col_begin, ptrdiff_t col_end, T* scratch);

template <class T>
void product(const Product<T>&, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
             ptrdiff_t col_end, T* scratch);

template <class T>
void column_sum(const T* x, ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t begin, ptrdiff_t end, T* out);

template <class T>
double multiply_add(size_t n, T x);

}  // namespace pyoptim::cpu::PYOPTIM_ISA
