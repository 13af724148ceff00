// Batch normalisation on raw pointers, contiguous. Nothing overlaps, except that running statistics are
// updated in place. Results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <vector>

namespace pyoptim::core {

// The shape of a normalisation in memory: (batch, channels, space), row-major. Statistics are over `batch`
// and `space`.
struct NormShape {
    std::ptrdiff_t batch, channels, space;
};

// gamma and beta (channels) may be null, for 1 and 0.
template <class T>
struct NormAffine {
    const T *gamma, *beta;
};

// Running statistics (channels). If both are null, evaluation uses the batch's own too.
template <class T>
struct NormRunning {
    T *mean, *var;
};

// The options of batch normalisation; pyoptim/formulas/norms.py has the same fields in the same order.
struct NormOptions {
    double momentum, eps;
    bool training, unbiased, relu;
};

// y = gamma (x - mean)/sqrt(var + eps) + beta, then ReLU if wanted; mean and inv_std (channels) are kept for
// the backward pass.
template <class T>
void norm_forward(const NormShape&, const T* x, const NormAffine<T>&, const NormRunning<T>&,
                  const NormOptions&, T* y, T* mean, T* inv_std);

// What norm_forward computes in evaluation by running statistics, on parts of a batch that threads compute on
// their own. prepare() reads the statistics, apply() what it made of them.
template <class T>
class RunningNorm {
  public:
    RunningNorm(std::ptrdiff_t channels, std::ptrdiff_t space);
    void prepare(const NormAffine<T>&, const NormRunning<T>&, double eps);
    // Computes y of n examples x on this thread alone.
    void apply(std::ptrdiff_t n, bool relu, const T* x, T* y);

  private:
    NormShape shape_;             // that of a batch for which the coefficients are laid out
    std::vector<double> memory_;  // of the coefficients
};

// The statistics that the forward pass kept. If they are not those of the batch, they are running statistics:
// constants through which no gradient flows.
template <class T>
struct NormSaved {
    const T *mean, *inv_std;
    bool of_this_batch, relu;
};

// dx may be null.
template <class T>
void norm_backward(const NormShape&, const T* dy, const T* x, const NormAffine<T>&, const NormSaved<T>&,
                   T* dx, T* dgamma, T* dbeta);

}  // namespace pyoptim::core
