// The algebra of batch and layer normalisation, once: the CPU's kernels, CUDA's and NVRTC's compile these
// lines. What concerns one element also takes a vector of neighbours as V; C is V, or one number for all of
// them.
#pragma once

#include "formulas/activations.hpp"

namespace pyoptim::math {

// ---- moments: a mean, and m2, the sum of squares about it ------------------------------------------

// The weights with which the moments of `n` more values join those of `seen` values (Chan, Golub & LeVeque
// 1979).
struct MergeWeights {
    double mean, square;
    PYOPTIM_FN MergeWeights(double seen, double n) : mean(n / (seen + n)), square(seen * mean) {}
};

// Merges the moments of more values into `mean` and `m2`. D is double, or a vector of doubles.
template <class D>
PYOPTIM_FN void merge_moments(D& mean, D& m2, const MergeWeights& by, const D& other_mean,
                              const D& other_m2) {
    const D delta = other_mean - mean;
    mean += delta * by.mean;
    m2 += other_m2 + delta * delta * by.square;
}

// The sum of n values less a fixed number, and the sum of the squares of these differences.
struct ShiftedSums {
    double n, sum, squares;
    // Replaces the sums by those about another number, which is `apart` below the first.
    PYOPTIM_FN void move(double apart) {
        squares += apart * (2 * sum + n * apart);
        sum += n * apart;
    }
};

// The moments of n values in two passes in double, used where sums in T overflowed or met infinity.
// sum_of(term) returns the sum of term(x) over the values x.
template <class SumOf>
PYOPTIM_FN void careful_moments(double n, double& mean, double& m2, SumOf sum_of) {
    mean = sum_of([](double x) { return x; }) / n;
    const double exact = mean;
    m2 = sum_of([exact](double x) { return (x - exact) * (x - exact); });
}

// ---- of a channel, or of a row ---------------------------------------------------------------------

template <class T>
PYOPTIM_FN T inverse_deviation(double variance, double eps) {
    return T(1 / square_root(variance + eps));
}

// The running statistic after it has seen that of a batch. Momentum weighs the new value.
template <class T>
PYOPTIM_FN T running_statistic(T old, double fresh, double momentum) {
    return T((1 - momentum) * double(old) + momentum * fresh);
}

// The factor that multiplies channel c; gamma may be null, which means 1.
template <class T, class Index>
PYOPTIM_FN T norm_scale(const T* gamma, const T* inv_std, Index c) {
    return gamma != nullptr ? gamma[c] * inv_std[c] : inv_std[c];
}

// The gradient through a channel's statistics is x_centred slope + offset. `product` is dgamma, `sum` dbeta,
// `share` the channel's scale over the number of its values.
template <class T>
PYOPTIM_FN T norm_slope(double product, T inv_std, double share) {
    return T(product * double(inv_std) * share);
}
template <class T>
PYOPTIM_FN T norm_offset(double sum, double share) {
    return T(sum * share);
}

// ---- of an element ---------------------------------------------------------------------------------

// y of batch normalisation, with a fused ReLU if wanted.
template <class V, class C>
PYOPTIM_FN V norm_value(bool relu, V x, C mean, C scale, C shift) {
    return relu_if(relu, (x - mean) * scale + shift);
}

// The gradient before the fused ReLU, if any: dy where the input of the ReLU was positive, and 0 elsewhere,
// also for NaN.
template <class V, class C>
PYOPTIM_FN V norm_before_relu(bool relu, V dy, V centred, C scale, C shift) {
    return relu ? (centred * scale + shift > V{} ? dy : V{}) : dy;
}

// dx of batch normalisation from dz, the gradient before the ReLU. The second term is 0 for constant
// statistics.
template <class V, class C>
PYOPTIM_FN V norm_gradient(bool statistics, V dz, V centred, C scale, C slope, C offset) {
    return statistics ? scale * dz - (centred * slope + offset) : scale * dz;
}

// y of layer normalisation.
template <class T>
PYOPTIM_FN T layer_norm_value(T x, T mean, T inv_std, T gamma, T beta) {
    return (x - mean) * inv_std * gamma + beta;
}

// dx of layer normalisation. `scaled` is dy gamma, `slope` the mean over the row of it times the normalised
// x, `offset` its mean.
template <class T>
PYOPTIM_FN T layer_norm_gradient(T scaled, T x, T mean, T inv_std, T slope, T offset) {
    return inv_std * (scaled - ((x - mean) * inv_std * slope + offset));
}

}  // namespace pyoptim::math
