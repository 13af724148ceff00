// Adafactor on the tables of step_kernel.cuh. The second moments of stacks of matrices (batch, rows, cols)
// are kept as rows and columns, those of a vector for each element. One launch of each kernel serves all
// arrays; csrc/optim has the same for processors. Sums are in double, in an order that depends only on the
// shape of the array.
#pragma once

#include "cuda/kernels/step_kernel.cuh"
#include "formulas/adafactor.hpp"

namespace pyoptim::cuda {

// The view that a block has of one array. The states of a matrix are row_var (batch rows) and col_var (batch
// cols); a vector has the variance of each element in row_var.
template <class T>
struct FactoredArray {
    const Factored& shape;
    const AdafactorCoefficients& c;
    Index size;
    T *param, *row_var, *col_var;
    const T* grad;
    T scale;

    __device__ FactoredArray(const FactoredTables& tables, Index i)
        : shape(tables.shapes[i]),
          c(reinterpret_cast<const AdafactorCoefficients&>(tables.rows[tables.arrays[i].row * kRowLength])),
          size(tables.arrays[i].size),
          param(reinterpret_cast<T*>(tables.arrays[i].param)),
          row_var(reinterpret_cast<T*>(tables.arrays[i].state[0])),
          col_var(reinterpret_cast<T*>(tables.arrays[i].state[1])),
          grad(reinterpret_cast<const T*>(tables.grads[i])),
          scale(T(c.scale)) {}

    __device__ T at(Index i) const { return T(0) - scale * grad[i]; }  // downhill
    __device__ double square(Index i) const { return double(at(i)) * double(at(i)); }
    // Returns at(i) divided by the root of its variance.
    __device__ T direction(Index i, const double* means) const {
        const double least = least_root<T>(c);
        double variance = 0;
        if (shape.batch == 0) {
            variance = double(row_var[i]);
        } else {
            const Index r = i / shape.cols, b = r / shape.rows;
            variance = double(row_var[r]) / means[b] * double(col_var[b * shape.cols + i % shape.cols]);
        }
        return T(double(at(i)) / square_root(maximum(variance, least * least)));
    }
};

// row_var moves towards the mean square of each row. A warp per row, a chunk per kWarps rows.
template <class T>
PYOPTIM_KERNEL adafactor_rows(const FactoredTables tables, const StepChunk* chunks) {
    const FactoredArray<T> d(tables, chunks[block()].array);
    const Index r = chunks[block()].chunk * kWarps + thread() / kWarp, cols = d.shape.cols;
    if (r >= d.shape.batch * d.shape.rows) return;
    double sum = 0;
    for (Index j = lane(); j < cols; j += kWarp) sum += d.square(r * cols + j);
    sum = warp_sum(sum);
    if (lane() == 0) d.row_var[r] = moved_towards(d.row_var[r], d.c.fresh, sum / double(cols));
}

// Writes the sums of squares of the columns of each part of kPartRows rows: (parts, batch, cols). A thread
// per column and part, a chunk per kThreads of them.
template <class T>
PYOPTIM_KERNEL adafactor_columns(const FactoredTables tables, const StepChunk* chunks) {
    const FactoredArray<T> d(tables, chunks[block()].array);
    const auto [batch, rows, cols, columns, means, sums] = d.shape;
    const Index i = chunks[block()].chunk * kThreads + thread(), parts = (rows + kPartRows - 1) / kPartRows;
    if (i >= parts * batch * cols) return;
    const Index j = i % cols, matrix = i / cols % batch, part = i / cols / batch;
    const Index end = smaller(rows, (part + 1) * kPartRows);
    double sum = 0;
    for (Index r = part * kPartRows; r < end; ++r) sum += d.square((matrix * rows + r) * cols + j);
    tables.shared[columns + i] = sum;
}

// col_var moves towards the mean square of each column. A thread per column, a chunk per kThreads columns.
template <class T>
PYOPTIM_KERNEL adafactor_col_var(const FactoredTables tables, const StepChunk* chunks) {
    const FactoredArray<T> d(tables, chunks[block()].array);
    const Index i = chunks[block()].chunk * kThreads + thread(), count = d.shape.batch * d.shape.cols;
    if (i >= count) return;
    const Index parts = (d.shape.rows + kPartRows - 1) / kPartRows;
    double sum = 0;
    for (Index part = 0; part < parts; ++part) sum += tables.shared[d.shape.columns + part * count + i];
    d.col_var[i] = moved_towards(d.col_var[i], d.c.fresh, sum / double(d.shape.rows));
}

// The mean of each matrix's row_var, at least eps. A warp per matrix, a chunk per kWarps of them.
template <class T>
PYOPTIM_KERNEL adafactor_means(const FactoredTables tables, const StepChunk* chunks) {
    const FactoredArray<T> d(tables, chunks[block()].array);
    const Index b = chunks[block()].chunk * kWarps + thread() / kWarp, rows = d.shape.rows;
    if (b >= d.shape.batch) return;
    double sum = 0;
    for (Index r = lane(); r < rows; r += kWarp) sum += double(d.row_var[b * rows + r]);
    sum = warp_sum(sum);
    if (lane() == 0) tables.shared[d.shape.means + b] = maximum(sum / double(rows), least_root<T>(d.c));
}

// Updates the variance of vectors, in T, and writes the sums of squares of the parameters and of the
// directions of each chunk of kChunk elements.
template <class T>
PYOPTIM_KERNEL adafactor_squares(const FactoredTables tables, const StepChunk* chunks) {
    const FactoredArray<T> d(tables, chunks[block()].array);
    const Index begin = chunks[block()].chunk * kChunk, end = smaller(d.size, begin + kChunk);
    double p = 0, u = 0;
    for (Index i = begin + thread(); i < end; i += kThreads) {
        if (d.shape.batch == 0) {
            const T g = d.at(i), old = d.row_var[i];
            d.row_var[i] = old + T(d.c.fresh) * (g * g - old);
        }
        const double direction = double(d.direction(i, tables.shared + d.shape.means));
        p += double(d.param[i]) * double(d.param[i]);
        u += direction * direction;
    }
    const auto param = [&](Index i) { return double(d.param[begin + i]); };
    const auto direction = [&](Index i) {
        return double(d.direction(begin + i, tables.shared + d.shape.means));
    };
    p = kept_block_sum<T>(block_sum(p), end - begin, param);
    u = kept_block_sum<T>(block_sum(u), end - begin, direction);
    if (thread() > 0) return;
    double* const out = tables.shared + d.shape.sums + 2 * chunks[block()].chunk;
    out[0] = p;
    out[1] = u;
}

// Writes the rate of each array in place of its first sum. A block per array.
template <class T>
PYOPTIM_KERNEL adafactor_rates(const FactoredTables tables) {
    const FactoredArray<T> d(tables, block());
    double* const sums = tables.shared + d.shape.sums;
    double p = 0, u = 0;
    const Index chunks = (d.size + kChunk - 1) / kChunk;
    for (Index i = thread(); i < chunks; i += kThreads) {
        p += squares_of(sums[2 * i]);
        u += squares_of(sums[2 * i + 1]);
    }
    p = kept_block_sum<T>(block_sum(p), chunks, [&](Index i) { return root_of(sums[2 * i]); });
    u = kept_block_sum<T>(block_sum(u), chunks, [&](Index i) { return root_of(sums[2 * i + 1]); });
    if (thread() == 0 && d.size > 0) *sums = adafactor_rate(d.c, double(d.size), p, u);
}

// Moves the parameters along the directions. A block per chunk, as in adafactor_squares.
template <class T>
PYOPTIM_KERNEL adafactor_step(const FactoredTables tables, const StepChunk* chunks) {
    const FactoredArray<T> d(tables, chunks[block()].array);
    const Index begin = chunks[block()].chunk * kChunk, end = smaller(d.size, begin + kChunk);
    const T by = T(tables.shared[d.shape.sums]), keep = T(d.c.param_scale);
    for (Index i = begin + thread(); i < end; i += kThreads) {
        d.param[i] = keep * d.param[i] + by * d.direction(i, tables.shared + d.shape.means);
    }
}

}  // namespace pyoptim::cuda
