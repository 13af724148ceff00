// Muon: matrices of any number made orthogonal together. x becomes a x + (b S + c S S) x, S the smaller of
// x x^T and x^T x, again and again: three launches of muon_product each time, whatever the number.
#pragma once

#include "cuda/kernels/matrix_kernels.cuh"
#include "cuda/kernels/step_kernel.cuh"
#include "formulas/muon.hpp"

namespace pyoptim::cuda {

// The numbers of one array: `common` and `rate` for the final step, a descent along x; the rest for the
// iteration.
template <class T>
struct MuonRow {
    T common[Common::coefficient_count], rate;
    T a, b, c, divisor, steps;
};
template <class T>
__device__ inline const MuonRow<T>& muon_row(const T* own, Index array) {
    return reinterpret_cast<const MuonRow<T>&>(own[array * kRowLength]);
}

// Writes the MuonRow of each array from the sums of squares of its chunks. begins holds the first sum of each
// array and, last, the end of all. rows has a row per group; if `at` is not null, it holds the rows of many
// steps. A block per array.
template <class T>
PYOPTIM_KERNEL muon_rows(Index groups, const StepArray* arrays, const MuonMatrix* matrices,
                         const Index* begins, const double* squares, const double* rows, const Position* at,
                         T* own) {
    const Index begin = begins[block()], end = begins[block() + 1];
    double sum = 0;
    for (Index i = begin + thread(); i < end; i += kThreads) sum += squares_of(squares[i]);
    sum =
        kept_block_sum<T>(block_sum(sum), end - begin, [&](Index i) { return root_of(squares[begin + i]); });
    if (thread() > 0) return;
    if (at != nullptr) rows += at->row * groups * kRowLength;
    const MuonCoefficients& c =
        reinterpret_cast<const MuonCoefficients&>(rows[arrays[block()].row * kRowLength]);
    const MuonMatrix& matrix = matrices[block()];
    reinterpret_cast<MuonRow<T>&>(own[block() * kRowLength]) = {
        {-1, 0, T(c.param_scale)},
        T(muon_rate(c, double(matrix.rows), double(matrix.cols))),
        T(c.a),
        T(c.b),
        T(c.c),
        T(muon_divisor(c, sum)),
        T(c.steps)};
}

// A block per chunk.
template <class T>
PYOPTIM_KERNEL muon_normalize(const StepArray* arrays, const StepChunk* chunks, const T* own) {
    const StepChunk at = chunks[block()];
    T* const x = reinterpret_cast<T*>(arrays[at.array].param);
    const T by = muon_row(own, at.array).divisor;
    const Index begin = at.chunk * kChunk, end = smaller(arrays[at.array].size, begin + kChunk);
    for (Index i = begin + thread(); i < end; i += kThreads) x[i] = x[i] / by;
}

// Computes product number `part` of iteration `turn`: 0: gram = S; 1: update = b S + c S S; 2: next = a x +
// update x. A block per tile of the result; a chunk of the table is a tile.
template <class T>
PYOPTIM_KERNEL muon_product(int part, int turn, const MuonMatrix* matrices, const StepChunk* chunks,
                            const T* own) {
    const StepChunk at = chunks[block()];
    const MuonMatrix& it = matrices[at.array];
    const MuonRow<T>& row = muon_row(own, at.array);
    if (T(turn) >= row.steps) return;
    T* const x = reinterpret_cast<T*>(turn % 2 == 0 ? it.x : it.next);
    T* const next = reinterpret_cast<T*>(turn % 2 == 0 ? it.next : it.x);
    T *const gram = reinterpret_cast<T*>(it.gram), *const update = reinterpret_cast<T*>(it.update);
    const bool wide = it.rows <= it.cols;
    const Index n = wide ? it.rows : it.cols;  // the smaller side
    const Matrix<T> of_x = {x, it.cols, 1}, transposed = {x, 1, it.cols}, square = {gram, n, 1};
    const Matrix<T> moving = {update, n, 1};
    Matrix<T> a = square, b = square;
    Index width = n, k = n;
    T by = row.c, by_old = row.b;
    const T* old = gram;
    T* y = update;
    if (part == 0) {
        a = wide ? of_x : transposed;
        b = wide ? transposed : of_x;
        k = wide ? it.cols : it.rows;
        y = gram;
    } else if (part == 2) {
        a = wide ? moving : of_x;
        b = wide ? of_x : moving;
        width = it.cols;
        by = 1;
        by_old = row.a;
        old = x;
        y = next;
    }
    const Index height = part == 2 ? it.rows : n, tiles = (width + kTile - 1) / kTile;
    const auto store = [&](Index i, Index j, T sum) {
        y[i * width + j] = part == 0 ? sum : by_old * old[i * width + j] + by * sum;
    };
    product_tile(height, width, k, a, b, at.chunk / tiles * kTile, at.chunk % tiles * kTile, store);
}

// x = a x + b y, for one array; b may be null, which means 1. A block per kChunk elements.
template <class T>
PYOPTIM_KERNEL muon_blend(Index n, const T* a, T* x, const T* b, const T* y) {
    const T by_x = *a, by_y = b != nullptr ? *b : T(1);
    const Index begin = block() * kChunk, end = smaller(n, begin + kChunk);
    for (Index i = begin + thread(); i < end; i += kThreads) x[i] = by_x * x[i] + by_y * y[i];
}

}  // namespace pyoptim::cuda
