// The matrix product of dense layers: operands are packed into panels as the micro-kernel reads them, so
// one kernel serves every transposition. Each element of y is summed over k in the same order however
// rows and columns are split, so the result does not depend on the number of threads. This file alone is
// compiled with contraction: the micro-kernel is made of multiply-adds.
#include "cpu/product.hpp"

#include "cpu/activation.hpp"

#if defined(__clang__)
#define PYOPTIM_UNROLL _Pragma("unroll")
#else
#define PYOPTIM_UNROLL _Pragma("GCC unroll 32")
#endif

namespace pyoptim::cpu::PYOPTIM_ISA {

namespace {

inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

// Panels of `width` columns of `m` seen as (depth, count): out[panel][p][j], padded with zeros.
template <ptrdiff_t width, class T>
void pack(const T* m, ptrdiff_t depth_stride, ptrdiff_t stride, ptrdiff_t depth, ptrdiff_t count, T* out) {
    for (ptrdiff_t j0 = 0; j0 < count; j0 += width, out += width * depth) {
        const ptrdiff_t live = smaller(width, count - j0);
        const T* from = m + j0 * stride;
        if (stride == 1) {
            for (ptrdiff_t p = 0; p < depth; ++p) {
                for (ptrdiff_t j = 0; j < live; ++j) out[p * width + j] = from[p * depth_stride + j];
            }
        } else {
            for (ptrdiff_t j = 0; j < live; ++j) {
                for (ptrdiff_t p = 0; p < depth; ++p) {
                    out[p * width + j] = from[j * stride + p * depth_stride];
                }
            }
        }
        for (ptrdiff_t p = 0; p < depth; ++p) {
            for (ptrdiff_t j = live; j < width; ++j) out[p * width + j] = 0;
        }
    }
}

template <class T>
void micro_kernel(ptrdiff_t depth, const T* a, const T* b, T* tile) {
    using Tl = Tile<T>;
    using Vector = typename Tl::Vector;
    Vector sum[Tl::rows][Tl::vectors] = {};
    for (ptrdiff_t p = 0; p < depth; ++p, a += Tl::rows, b += Tl::cols) {
        Vector row[Tl::vectors];
        __builtin_memcpy(row, b, sizeof(row));
        PYOPTIM_UNROLL
        for (ptrdiff_t i = 0; i < Tl::rows; ++i) {
            PYOPTIM_UNROLL
            for (ptrdiff_t v = 0; v < Tl::vectors; ++v) sum[i][v] += a[i] * row[v];
        }
    }
    __builtin_memcpy(tile, sum, sizeof(sum));
}

}  // namespace

template <class T>
void product(const Product<T>& it, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
             ptrdiff_t col_end, T* scratch) {
    using Tl = Tile<T>;
    T* const packed_a = scratch;
    T* const packed_b = packed_a + Tl::block_rows * Tl::depth;
    T* const tile = packed_b + Tl::block_cols * Tl::depth;
    const ptrdiff_t blocks = it.k > 0 ? (it.k + Tl::depth - 1) / Tl::depth : 1;  // k = 0: bias alone

    for (ptrdiff_t j0 = col_begin; j0 < col_end; j0 += Tl::block_cols) {
        const ptrdiff_t nj = smaller(Tl::block_cols, col_end - j0);
        for (ptrdiff_t block = 0; block < blocks; ++block) {
            const ptrdiff_t p0 = block * Tl::depth;
            const ptrdiff_t np = smaller(Tl::depth, it.k - p0);
            const bool first = block == 0, last = block + 1 == blocks;
            pack<Tl::cols>(it.b.data + p0 * it.b.row_stride + j0 * it.b.col_stride, it.b.row_stride,
                           it.b.col_stride, np, nj, packed_b);
            for (ptrdiff_t i0 = row_begin; i0 < row_end; i0 += Tl::block_rows) {
                const ptrdiff_t ni = smaller(Tl::block_rows, row_end - i0);
                pack<Tl::rows>(it.a.data + i0 * it.a.row_stride + p0 * it.a.col_stride, it.a.col_stride,
                               it.a.row_stride, np, ni, packed_a);
                for (ptrdiff_t j = 0; j < nj; j += Tl::cols) {
                    for (ptrdiff_t i = 0; i < ni; i += Tl::rows) {
                        micro_kernel(np, packed_a + i * np, packed_b + j * np, tile);
                        const ptrdiff_t rows = smaller(Tl::rows, ni - i);
                        const ptrdiff_t cols = smaller(Tl::cols, nj - j);
                        for (ptrdiff_t r = 0; r < rows; ++r) {
                            T* y = it.y + (i0 + i + r) * it.n + j0 + j;
                            const T* sum = tile + r * Tl::cols;
                            for (ptrdiff_t c = 0; c < cols; ++c) y[c] = first ? sum[c] : y[c] + sum[c];
                            if (!last) continue;
                            if (it.bias != nullptr) {
                                for (ptrdiff_t c = 0; c < cols; ++c) y[c] += it.bias[j0 + j + c];
                            }
                            activate(it.activation, size_t(cols), y, y);
                        }
                    }
                }
            }
        }
    }
}

// Columns in blocks that a few registers hold; rows in order. Summed in double.
template <class T>
void column_sum(const T* x, ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t begin, ptrdiff_t end, T* out) {
    constexpr ptrdiff_t kBlock = 64;
    for (ptrdiff_t j0 = begin; j0 < end; j0 += kBlock) {
        const ptrdiff_t n = smaller(kBlock, end - j0);
        double sum[kBlock] = {};
        for (ptrdiff_t i = 0; i < rows; ++i) {
            for (ptrdiff_t j = 0; j < n; ++j) sum[j] += x[i * cols + j0 + j];
        }
        for (ptrdiff_t j = 0; j < n; ++j) out[j0 + j] = T(sum[j]);
    }
}

#define X(T)                                                                                     \
    template void product<T>(const Product<T>&, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, T*); \
    template void column_sum<T>(const T*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::cpu::PYOPTIM_ISA
