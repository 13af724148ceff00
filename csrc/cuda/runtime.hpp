// Helpers of the bindings: errors of the CUDA runtime become exceptions, and Python's integers addresses.
#pragma once

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyoptim::cuda {

namespace py = pybind11;

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // clears the error, so that the next call does not report it again
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

// The reason why no GPU can be used on this machine, or null if one can.
inline const char* why_not() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        cudaGetLastError();
        int driver = 0;
        if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "there is no NVIDIA driver";
        return cudaGetErrorString(error);
    }
    return count > 0 ? nullptr : "there is no CUDA device";
}

inline void require_device() {
    static std::atomic<bool> found{false};
    if (found) return;
    if (const char* const reason = why_not()) {
        throw std::runtime_error(std::string("no CUDA device can be used: ") + reason);
    }
    found = true;
}

inline cudaStream_t stream_at(std::uintptr_t address) { return reinterpret_cast<cudaStream_t>(address); }
inline void* pointer_at(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

void bind_device(py::module_& m);
void bind_launch(py::module_& m);
void bind_graph(py::module_& m);

}  // namespace pyoptim::cuda
