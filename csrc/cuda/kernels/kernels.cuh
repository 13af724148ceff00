// All CUDA kernels and lists of them. NVRTC has them by the names that _cuda.kernels() gives, after
// `using namespace pyoptim::cuda;`: "dropout<float>", "total<double>", "step<rule_named::adam, float>",
// "packed_step<rule_named::adam, float>".
#pragma once

#include "cuda/kernels/adafactor_kernels.cuh"
#include "cuda/kernels/elementwise_kernels.cuh"
#include "cuda/kernels/gradient_kernels.cuh"
#include "cuda/kernels/loss_kernels.cuh"
#include "cuda/kernels/matrix_kernels.cuh"
#include "cuda/kernels/muon_kernels.cuh"
#include "cuda/kernels/norm_kernels.cuh"
#include "cuda/kernels/packed_kernels.cuh"
#include "cuda/kernels/step_kernel.cuh"
#include "cuda/kernels/training_kernels.cuh"
#include "cuda/kernels/trust_kernels.cuh"

namespace pyoptim::cuda::rule_named {
#define X(name, Struct) using name = rules::Struct;
PYOPTIM_FOR_EACH_RULE(X)
#undef X
}  // namespace pyoptim::cuda::rule_named

// Kernels that exist for float and for double.
#define PYOPTIM_FOR_EACH_KERNEL(X) \
    X(scale_rows)                  \
    X(sum_of_squares)              \
    X(chunk_squares)               \
    X(scale)                       \
    X(add)                         \
    X(affine)                      \
    X(lars_squares)                \
    X(lamb_direction)              \
    X(trust_rows)                  \
    X(adafactor_rows)              \
    X(adafactor_columns)           \
    X(adafactor_col_var)           \
    X(adafactor_means)             \
    X(adafactor_squares)           \
    X(adafactor_rates)             \
    X(adafactor_step)              \
    X(muon_rows)                   \
    X(muon_normalize)              \
    X(muon_product)                \
    X(muon_blend)                  \
    X(activation_forward)          \
    X(activation_backward)         \
    X(bias_activation)             \
    X(dropout)                     \
    X(gaussian_noise)              \
    X(norm_moments)                \
    X(norm_statistics)             \
    X(norm_apply)                  \
    X(norm_products)               \
    X(norm_slopes)                 \
    X(norm_gradient)               \
    X(layer_norm)                  \
    X(layer_norm_gradient)         \
    X(layer_norm_products)         \
    X(column_sum)                  \
    X(sum_parts)                   \
    X(product)                     \
    X(softmax_forward)             \
    X(softmax_backward)            \
    X(label_weights)               \
    X(cross_entropy)               \
    X(pointwise_loss)              \
    X(gather_rows)                 \
    X(penalty)                     \
    X(count_right)
// Kernels that exist for double alone.
#define PYOPTIM_FOR_EACH_DOUBLE_KERNEL(X) \
    X(total)                              \
    X(total_squares)                      \
    X(clip_factor)                        \
    X(ascent_factor)                      \
    X(finish_step)
// Kernels that exist for float alone.
#define PYOPTIM_FOR_EACH_FLOAT_KERNEL(X) \
    X(packed_sum_of_squares)             \
    X(convert)
// Kernels that also exist for the type of labels.
#define PYOPTIM_FOR_EACH_LABEL_KERNEL(X) X(gather_rows)
