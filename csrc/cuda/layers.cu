// All kernels except the optimizer steps.
#include "cuda/kernel_table.hpp"
#include "cuda/kernels/kernels.cuh"

namespace pyoptim::cuda {

KernelList layer_kernels() {
    static const KernelEntry kernels[] = {
#define X(name) PYOPTIM_ENTRY(name<float>) PYOPTIM_ENTRY(name<double>)
        PYOPTIM_FOR_EACH_KERNEL(X)
#undef X
#define X(name) PYOPTIM_ENTRY(name<double>)
            PYOPTIM_FOR_EACH_DOUBLE_KERNEL(X)
#undef X
#define X(name) PYOPTIM_ENTRY(name<long long>)
                PYOPTIM_FOR_EACH_LABEL_KERNEL(X)
#undef X
    };
    return {kernels, kernels + sizeof kernels / sizeof *kernels};
}

}  // namespace pyoptim::cuda
