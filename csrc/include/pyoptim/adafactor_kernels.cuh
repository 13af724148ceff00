// Adafactor: second moments of a stack of matrices (batch, rows, cols) as rows and columns, those of a vector
// whole. What the CPU has in NumPy's arithmetic (pyoptim/tensor_optimizers.py); sums are in double.
#pragma once

#include "pyoptim/cuda.cuh"

namespace pyoptim::cuda {

// An array of n elements with its gradient. The gradient's scale is multiplied by *factor unless that is
// null.
template <class T>
struct Descent {
    const T* grad;
    T scale;
    __device__ Descent(const T* grad_, double scale_, const double* factor)
        : grad(grad_), scale(T(factor != nullptr ? scale_ * *factor : scale_)) {}
    __device__ T at(Index i) const { return T(0) - scale * grad[i]; }
    __device__ double square(Index i) const { return double(at(i)) * double(at(i)); }
};

template <class T>
__device__ inline void move_towards(T& old, double fresh, double now) {
    old = T(double(old) + fresh * (now - double(old)));
}

// row_var (batch rows) moves towards the mean of each row's squares. A warp per row.
template <class T>
PYOPTIM_KERNEL adafactor_rows(Index rows, Index cols, const T* grad, double scale, const double* factor,
                              double fresh, T* row_var) {
    const Index r = warp_row();
    if (r >= rows) return;
    const Descent<T> d(grad, scale, factor);
    double sum = 0;
    for (Index j = lane(); j < cols; j += kWarp) sum += d.square(r * cols + j);
    sum = warp_sum(sum);
    if (lane() == 0) move_towards(row_var[r], fresh, sum / double(cols));
}

// Sums of squares of the columns of each part of kPartRows rows: partial (parts, batch, cols). A thread each.
template <class T>
PYOPTIM_KERNEL adafactor_columns(Index batch, Index rows, Index cols, const T* grad, double scale,
                                 const double* factor, double* partial) {
    const Index parts = (rows + kPartRows - 1) / kPartRows, i = block() * kThreads + thread();
    if (i >= parts * batch * cols) return;
    const Descent<T> d(grad, scale, factor);
    const Index j = i % cols, matrix = i / cols % batch, part = i / cols / batch;
    const Index end = smaller(rows, (part + 1) * kPartRows);
    double sum = 0;
    for (Index r = part * kPartRows; r < end; ++r) sum += d.square((matrix * rows + r) * cols + j);
    partial[i] = sum;
}

// col_var (count = batch cols) moves towards the means of the columns. A thread each.
template <class T>
PYOPTIM_KERNEL adafactor_col_var(Index count, Index rows, const double* partial, double fresh, T* col_var) {
    const Index i = block() * kThreads + thread(), parts = (rows + kPartRows - 1) / kPartRows;
    if (i >= count) return;
    double sum = 0;
    for (Index part = 0; part < parts; ++part) sum += partial[part * count + i];
    move_towards(col_var[i], fresh, sum / double(rows));
}

// means (batch) = the mean of each matrix's row_var, at least eps. A warp per matrix.
template <class T>
PYOPTIM_KERNEL adafactor_means(Index batch, Index rows, const T* row_var, double eps, double* means) {
    const Index b = warp_row();
    if (b >= batch) return;
    double sum = 0;
    for (Index r = lane(); r < rows; r += kWarp) sum += double(row_var[b * rows + r]);
    sum = warp_sum(sum);
    if (lane() == 0) means[b] = maximum(sum / double(rows), eps);
}

// The variance of a vector, in T. A thread per element.
template <class T>
PYOPTIM_KERNEL adafactor_variance(Index n, const T* grad, double scale, const double* factor, double fresh,
                                  T* variance) {
    const Index i = block() * kThreads + thread();
    if (i >= n) return;
    const T d = Descent<T>(grad, scale, factor).at(i);
    variance[i] = variance[i] + T(fresh) * (d * d - variance[i]);
}

// Directions: -g/sqrt(V). Where row_var is null, col_var is the variance of each element.
template <class T>
struct Factored {
    Index rows, cols;
    const T *row_var, *col_var;
    const double* means;
    double least;  // of the variance
    __device__ T direction(const Descent<T>& d, Index i) const {
        double variance = 0;
        if (row_var == nullptr) {
            variance = double(col_var[i]);
        } else {
            const Index r = i / cols, b = r / rows;
            variance = double(row_var[r]) * double(col_var[b * cols + i % cols]) / means[b];
        }
        return T(double(d.at(i)) / square_root(maximum(variance, least)));
    }
};

// partial (2, blocks): sums of the squares of the parameters and of the directions. A block per kChunk
// elements.
template <class T>
PYOPTIM_KERNEL adafactor_squares(Index n, Index rows, Index cols, const T* row_var, const T* col_var,
                                 const double* means, double least, const T* param, const T* grad,
                                 double scale, const double* factor, double* partial) {
    const Factored<T> factored = {rows, cols, row_var, col_var, means, least};
    const Descent<T> d(grad, scale, factor);
    const Index begin = block() * kChunk, end = smaller(n, begin + kChunk);
    double p = 0, u = 0;
    for (Index i = begin + thread(); i < end; i += kThreads) {
        const double direction = double(factored.direction(d, i));
        p += double(param[i]) * double(param[i]);
        u += direction * direction;
    }
    p = block_sum(p);
    u = block_sum(u);
    if (thread() > 0) return;
    partial[block()] = p;
    partial[(n + kChunk - 1) / kChunk + block()] = u;
}

// param = param_scale param + rate u, with the rate of u's and the parameter's norms: squares[0] is the sum
// of squares of the parameter, squares[1] of u. A block per kChunk elements.
template <class T>
PYOPTIM_KERNEL adafactor_step(Index n, Index rows, Index cols, const T* row_var, const T* col_var,
                              const double* means, double least, T* param, const T* grad, double scale,
                              const double* factor, const double* squares, double rate, double eps,
                              double threshold, double param_scale) {
    const Factored<T> factored = {rows, cols, row_var, col_var, means, least};
    const Descent<T> d(grad, scale, factor);
    const double root = square_root(double(n));
    const double size = square_root(squares[0]) / root, length = square_root(squares[1]) / (root * threshold);
    const T by = T(rate * (size > eps ? size : eps) / (length > 1 ? length : 1)), keep = T(param_scale);
    const Index begin = block() * kChunk, end = smaller(n, begin + kChunk);
    for (Index i = begin + thread(); i < end; i += kThreads) {
        param[i] = keep * param[i] + by * factored.direction(d, i);
    }
}

}  // namespace pyoptim::cuda
