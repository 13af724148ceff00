// The optimizer steps: a kernel per rule and type.
#include "cuda/kernel_table.hpp"
#include "cuda/kernels/kernels.cuh"

namespace pyoptim::cuda {

KernelList step_kernels() {
    static const KernelEntry kernels[] = {
#define X(name, Struct) \
    PYOPTIM_ENTRY(step<rule_named::name, float>) PYOPTIM_ENTRY(step<rule_named::name, double>)
        PYOPTIM_FOR_EACH_RULE(X)
#undef X
    };
    return {kernels, kernels + sizeof kernels / sizeof *kernels};
}

}  // namespace pyoptim::cuda
