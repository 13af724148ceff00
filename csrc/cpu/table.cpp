// The kernel table of one instruction set: PYOPTIM_ISA is its name, PYOPTIM_VECTOR_BYTES the width of its
// vectors.
#include "cpu/activation.hpp"
#include "cpu/adafactor.hpp"
#include "cpu/cross_entropy.hpp"
#include "cpu/dropout.hpp"
#include "cpu/kernels.hpp"
#include "cpu/layer_norm.hpp"
#include "cpu/norm.hpp"
#include "cpu/penalty.hpp"
#include "cpu/pointwise_loss.hpp"
#include "cpu/product.hpp"
#include "cpu/reduce.hpp"
#include "cpu/softmax.hpp"
#include "cpu/sparse.hpp"
#include "cpu/step.hpp"
#include "cpu/storage.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {

namespace {
template <class T>
constexpr ForwardKernels<T> kForward = {
    dots<T>,
    kProductScratch<T>,
    Tile<T>::dot_cols,
    Tile<T>::rows,
    Tile<T>::cols,
    pack_weight<T>,
    packed_product<T>,
    Tile<T>::lanes,
    unpack_weight<T>,
    sparse_product<T>,
    sparse_gradient<T>,
    activate<T>,
    softmax_forward<T>,
    norm_moments<T>,
    norm_merge,
    norm_apply<T>,
    layer_norm<T>,
};

template <class T>
constexpr Kernels<T> kTable = {
    kForward<T>,
    {
#define X(name, Struct) step<rules::Struct, T>,
        PYOPTIM_FOR_EACH_RULE(X)
#undef X
    },
    product<T>,
    column_sum<T>,
    sum_of_squares<T>,
    penalty<T>,
    activation_backward<T>,
    softmax_backward<T>,
    dropout<T>,
    gaussian_noise<T>,
    norm_products<T>,
    norm_gradient<T>,
    layer_norm_backward<T>,
    cross_entropy<T>,
    pointwise_loss<T>,
    adafactor_moments<T>,
    adafactor_directions<T>,
    adafactor_vector<T>,
    exponential<T>,
    multiply_add<T>,
};
}  // namespace

const ForwardKernels<float> forward_f32 = kForward<float>;
const ForwardKernels<double> forward_f64 = kForward<double>;
const Kernels<float> kernels_f32 = kTable<float>;
const Kernels<double> kernels_f64 = kTable<double>;
namespace {
using namespace pyoptim::storage;
using Signed8 = Block8<true>;
using Unsigned8 = Block8<false>;
}  // namespace
const StorageKernels storage[] = {
    {nullptr, nullptr, nullptr, nullptr},
    {decode_float16, nearest_float16, encode16<Float16, Stochastic>, is_rounded_float16},
    {decode16<BFloat16>, nearest_bfloat16, encode16<BFloat16, Stochastic>, is_rounded_bfloat16},
    {decode8<Signed8>, encode8<Signed8>, encode8<Signed8>, nullptr},
    {decode8<Unsigned8>, encode8<Unsigned8>, encode8<Unsigned8>, nullptr},
};

}  // namespace pyoptim::cpu::PYOPTIM_ISA
