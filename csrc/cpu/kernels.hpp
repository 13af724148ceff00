// The interface of csrc/cpu: serial kernels over raw pointers, compiled once per instruction set, in one
// table per element type. runtime/ chooses a table and splits the work over threads.
//
// Nothing in csrc/cpu may emit an inline function with external linkage (std:: templates included): the
// linker keeps one copy for all instruction sets, and that copy could be the AVX-512 one.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "formulas/activations.hpp"
#include "formulas/adafactor.hpp"
#include "formulas/losses.hpp"
#include "formulas/penalty.hpp"
#include "formulas/random.hpp"
#include "formulas/rules.hpp"
#include "formulas/storage.hpp"

// PYOPTIM_NO_OVERLAP before a loop tells the vectoriser that its arrays do not overlap, as callers have
// checked.
#if defined(__clang__)
#define PYOPTIM_NO_OVERLAP _Pragma("clang loop vectorize(assume_safety)")
#else
#define PYOPTIM_NO_OVERLAP _Pragma("GCC ivdep")
#endif

namespace pyoptim::cpu {

enum class RuleId : int {
#define X(name, Struct) name,
    PYOPTIM_FOR_EACH_RULE(X)
#undef X
        count
};
inline constexpr int kRuleCount = static_cast<int>(RuleId::count);
inline constexpr int kMaxStates = 4;

using pyoptim::Activation;
using pyoptim::PointwiseKind;

// y (m, n) = x (m, k) * w (n, k)^T + bias (n), all row-major
template <class T>
struct Dots {
    ptrdiff_t n, k;
    const T *x, *w, *bias;  // bias may be null
    T* y;
    bool relu;  // whether y is the ReLU of that sum
};

// y (m, n) = a (m, k) * b (k, n), y row-major; a may have any strides, b any distance between its rows.
template <class T>
struct Product {
    ptrdiff_t n, k;
    const T* a;
    ptrdiff_t a_row, a_col;
    const T* b;
    ptrdiff_t b_row;
    T* y;
};

// The rows of a sparse matrix (CSR): row i has values[k] in column columns[k] for k in [begins[i],
// begins[i + 1]), and zeros elsewhere. Values in the same column are added.
template <class T>
struct SparseRows {
    const T* values = nullptr;
    const int32_t* columns = nullptr;
    const int64_t* begins = nullptr;
    int64_t count = 0;  // of values
};

// One panel of a weight as pack_weight lays it out, of which the first `live` columns are outputs, and the
// matrix (rows, out) whose columns belong to them.
template <class T>
struct SparsePanel {
    T* panel;
    ptrdiff_t live, rows, out;
};

// A row-major matrix to normalise. If `channels` is 0, each column is a channel. Else row r belongs to
// channel r % channels.
struct NormMatrix {
    ptrdiff_t rows, cols, channels;
};

// Batch normalisation per channel: y = (x - mean) scale + shift, and backward dx = scale dy - ((x - mean)
// slope + offset).
template <class T>
struct NormCoefficients {
    const T *mean, *scale, *shift, *slope, *offset;
};

// Layer normalisation over rows of `cols` elements; gamma and beta have `cols` elements too.
template <class T>
struct LayerNorm {
    ptrdiff_t cols;
    const T *gamma, *beta;
};

// The inputs of the backward pass of layer normalisation: the gradient dy of the result, the input x, and the
// statistics of each row that the forward pass kept.
template <class T>
struct LayerNormRows {
    const T *dy, *x, *mean, *inv_std;
};

// Softmax cross-entropy of rows of logits. A row's target is a label, or a share of each class. Smoothing
// takes (1 - smoothing) of the target and smoothing/classes of every class; weights of classes and rows
// multiply the result. A temperature divides the logits, and its square multiplies the loss.
template <class T>
struct CrossEntropy {
    ptrdiff_t classes;
    const T* logits;
    const int64_t* labels;   // (rows), or null if the targets are shares
    const T* targets;        // the shares (rows, classes), or null if there are labels
    const T* sample_weight;  // (rows), or null
    const T* class_weight;   // (classes), or null
    double smoothing;
    T* dlogits;  // null if no gradient is wanted
    double temperature = 1;
    bool divergence = false;  // whether the entropy of the (unsmoothed) shares is subtracted
    double scale = 1;         // multiplies the gradient
};

// Rows of a matrix whose second moments Adafactor keeps as rows and columns. `mean` is the mean of row_var
// over all rows; `least` is a floor for the square root of a variance.
template <class T>
struct FactoredRows {
    ptrdiff_t rows, cols;
    const T *row_var, *col_var;
    double mean, least;
};

// A loss of single outputs and its parameter: delta for huber, the weight of positive examples for binary.
template <class T>
struct Pointwise {
    PointwiseKind kind;
    T a;
    const T* columns;  // the parameter of each column, or null if it is a for all of them
};

// The multiple of inputs to which rows of 8-bit numbers are padded.
inline constexpr ptrdiff_t kQuantizedBlock = 64;

// y (rows, n) = (x (rows, k) * w (n, k)^T - offset (n)) * scale (n) + bias (n). The products are summed in
// int32, so k is at most 2^31/(255 * 128).
struct QuantizedDense {
    ptrdiff_t n, k;  // k is a multiple of kQuantizedBlock
    const uint8_t* x;
    const int8_t* w;
    const int32_t* offset;
    const float *scale, *bias;
    float* y;
    bool relu;  // whether y is the ReLU of that
    bool vnni;  // whether the processor has AVX-512 VNNI
};

// What predictions need. It has a table of its own, so that a program which only predicts links no more.
template <class T>
struct ForwardKernels {
    // Computes the rows [row_begin, row_end) and columns [col_begin, col_end) of y.
    void (*dots)(const Dots<T>&, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
                 ptrdiff_t col_end);
    size_t product_scratch;  // elements of scratch that product and packed_product need, per thread
    ptrdiff_t dot_cols, tile_rows, tile_cols;  // results are best split at multiples of these

    // What dots computes, by outer products, which need a transposed copy of the rows of w: pack_weight
    // writes the terms [begin, begin + depth) of the columns [col_begin, col_end) of w (n, k)^T in panels of
    // tile_cols columns. packed_product takes them, for the same columns and terms, and adds them to the bias
    // if begin is 0, else to y. Splits of columns fall on multiples of tile_cols. Without scratch, rows of x
    // are never copied, however they lie.
    void (*pack_weight)(const T* w, ptrdiff_t n, ptrdiff_t k, ptrdiff_t begin, ptrdiff_t depth,
                        ptrdiff_t col_begin, ptrdiff_t col_end, T* packed);
    void (*packed_product)(const Dots<T>&, const T* packed, ptrdiff_t begin, ptrdiff_t depth,
                           ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin, ptrdiff_t col_end,
                           T* scratch);
    ptrdiff_t lanes;  // elements of a vector
    // Copies a panel of k terms to the first `live` rows of w (n, k); the reverse of pack_weight.
    void (*unpack_weight)(const T* packed, ptrdiff_t k, ptrdiff_t live, T* w);

    // Both take one panel: y += x * panel, and panel += x^T * dz.
    void (*sparse_product)(const SparseRows<T>& x, const SparsePanel<T>&, T* y);
    void (*sparse_gradient)(const SparseRows<T>& x, const SparsePanel<T>&, const T* dz);

    void (*activation_forward)(const ActivationSpec&, size_t n, const T* x, T* y);
    void (*softmax_forward)(bool log, ptrdiff_t rows, ptrdiff_t classes, const T* x, T* y);

    // Computes the mean and the sum of squares about it (m2) over the rows [begin, end), for each column or
    // for each row.
    void (*norm_moments)(const NormMatrix&, const T* x, ptrdiff_t begin, ptrdiff_t end, double* mean,
                         double* m2);
    // Merges n pairs of moments: mean and m2 of `seen` values absorb those of `more` values.
    void (*norm_merge)(ptrdiff_t n, double seen, double* mean, double* m2, double more,
                       const double* other_mean, const double* other_m2);
    void (*norm_apply)(const NormMatrix&, const T* x, ptrdiff_t begin, ptrdiff_t end,
                       const NormCoefficients<T>&, bool relu, T* y);

    // Works on the rows [begin, end) of y, mean and inv_std.
    void (*layer_norm)(const LayerNorm<T>&, const T* x, ptrdiff_t begin, ptrdiff_t end, double eps, T* y,
                       T* mean, T* inv_std);
};

template <class T>
struct Kernels : ForwardKernels<T> {
    // One optimizer step. `state` has one pointer per state of the rule, `coefficients` the numbers of
    // Common, then those of the rule.
    void (*step[kRuleCount])(size_t n, T* param, const T* grad, T* const* state, const T* coefficients);

    // As dots.
    void (*product)(const Product<T>&, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
                    ptrdiff_t col_end, T* scratch);
    // out[j] = sum over rows of x[row, j], for j in [begin, end)
    void (*column_sum)(const T* x, ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t begin, ptrdiff_t end, T* out);

    double (*sum_of_squares)(size_t n, const T* x);
    // Returns the penalty of n weights, and adds its gradient to `gradient`.
    double (*penalty)(const Penalty&, size_t n, const T* w, T* gradient);

    void (*activation_backward)(const ActivationSpec&, size_t n, const T* dy, const T* kept, T* dx);
    void (*softmax_backward)(bool log, ptrdiff_t rows, ptrdiff_t classes, const T* dy, const T* y, T* dx);

    // x[0] has position `first` in the stream, a multiple of kStreamBlock. Elements whose random word is
    // below the threshold become 0, the others are scaled.
    void (*dropout)(const RandomStream&, uint64_t first, size_t n, uint32_t threshold, T scale, const T* x,
                    T* y);
    void (*gaussian_noise)(const RandomStream&, uint64_t first, size_t n, T deviation, const T* x, T* y);

    // Computes the sums of dz, the gradient before the ReLU, and of dz (x - mean), for each column or for
    // each row.
    void (*norm_products)(const NormMatrix&, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                          const NormCoefficients<T>&, bool relu, double* sum, double* product);
    void (*norm_gradient)(const NormMatrix&, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                          const NormCoefficients<T>&, bool relu, bool statistics, T* dx);

    // Works on the rows [begin, end). dx may be null. dgamma and dbeta are sums over these rows; `waiting` is
    // scratch memory of two rows. A row in any of them has room for a multiple of 16 elements.
    void (*layer_norm_backward)(const LayerNorm<T>&, const LayerNormRows<T>&, ptrdiff_t begin, ptrdiff_t end,
                                T* dx, T* waiting, double* dgamma, double* dbeta);

    // Returns the sum of the losses of the rows [begin, end).
    double (*cross_entropy)(const CrossEntropy<T>&, ptrdiff_t begin, ptrdiff_t end);
    // Returns the sum of the losses of n elements. Writes their gradient, times `scale`, into dx unless dx is
    // null.
    double (*pointwise_loss)(const Pointwise<T>&, ptrdiff_t n, T scale, const T* x, const T* target, T* dx);

    void (*adafactor_moments)(ptrdiff_t rows, ptrdiff_t cols, const T* grad, T scale, double fresh,
                              T* row_var, double* columns);
    void (*adafactor_directions)(const FactoredRows<T>&, const T* grad, T scale, T* out);
    void (*adafactor_vector)(size_t n, const T* grad, T scale, T fresh, double least, T* variance, T* out);

    void (*exponential)(size_t n, const T* x, T* y);

    // Runs n rounds of multiply-adds in registers and returns the number of operations.
    double (*multiply_add)(size_t n, T x);
};

// The formats in which values that are computed in float can be stored.
using pyoptim::Storage;
inline constexpr size_t kScaleBlock = pyoptim::kScaleBlock;

struct StorageKernels {
    void (*decode)(size_t n, const void* data, const float* scale, float* out);
    // `first` is the index of x[0], `key` names the stream of random numbers.
    void (*nearest)(size_t n, const float* x, uint32_t first, uint32_t key, void* data, float* scale);
    void (*stochastic)(size_t n, const float* x, uint32_t first, uint32_t key, void* data, float* scale);
    // Whether 16-bit data are x rounded to nearest; it may be false though they are, at ties and for NaN.
    bool (*is_rounded)(size_t n, const float* x, const void* data);
};

struct InstructionSet {
    const char* name;
    bool (*supported)();  // whether this processor and operating system have it
};

// Kernels of 8-bit models.
struct QuantizedKernels {
    // Writes x * inverse + zero, rounded and limited to a byte.
    void (*quantize)(ptrdiff_t n, const float* x, float inverse, float zero, uint8_t* q);
    void (*dense)(const QuantizedDense&, ptrdiff_t row_begin, ptrdiff_t row_end, ptrdiff_t col_begin,
                  ptrdiff_t col_end);
};

// The tables of each instruction set. CMakeLists.txt says which of them are compiled.
#define X(isa)                                       \
    namespace isa {                                  \
    extern const ForwardKernels<float> forward_f32;  \
    extern const ForwardKernels<double> forward_f64; \
    extern const Kernels<float> kernels_f32;         \
    extern const Kernels<double> kernels_f64;        \
    extern const StorageKernels storage[];           \
    extern const QuantizedKernels quantized;         \
    }
X(avx512) X(avx2) X(baseline)
#undef X

}  // namespace pyoptim::cpu
