// The optimizer steps over arrays kept in fewer bits: a kernel per rule.
#include "cuda/kernel_table.hpp"
#include "cuda/kernels/kernels.cuh"

namespace pyoptim::cuda {

KernelList packed_kernels() {
    static const KernelEntry kernels[] = {
#define X(name, Struct) PYOPTIM_ENTRY(packed_step<rule_named::name, float>)
        PYOPTIM_FOR_EACH_RULE(X)
#undef X
#define X(name) PYOPTIM_ENTRY(name<float>)
            PYOPTIM_FOR_EACH_FLOAT_KERNEL(X)
#undef X
    };
    return {kernels, kernels + sizeof kernels / sizeof *kernels};
}

}  // namespace pyoptim::cuda
