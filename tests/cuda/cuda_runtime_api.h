// The part of the CUDA runtime that csrc/cuda uses, on the host: "device memory" is memory, streams run at
// once. PYOPTIM_EMULATED_DEVICES is the number of devices (default 1).
#pragma once

#include <cstdlib>
#include <cstring>
#include <utility>

#include "emulator.hpp"

enum cudaError_t {
    cudaSuccess,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNoDevice = 100,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801
};
using cudaStream_t = struct Stream_*;
using cudaEvent_t = struct Event_*;
using cudaGraph_t = struct Graph_*;
using cudaGraphExec_t = struct GraphExec_*;
enum { cudaMemcpyDefault, cudaStreamNonBlocking, cudaStreamCaptureModeThreadLocal };
struct dim3 {
    unsigned x;
    explicit dim3(unsigned x_) : x(x_) {}
};
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorLaunchFailure:
            return "threads of a block or warp went different ways";
        case cudaErrorNotSupported:
            return "not emulated";
        default:
            return "no error";
    }
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    const char* const set = std::getenv("PYOPTIM_EMULATED_DEVICES");
    *count = set == nullptr ? 1 : std::atoi(set);
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* all, int) {
    *all = {"emulated", 0, 0, 1, 0};
    return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 1, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }
inline cudaError_t cudaMalloc(void** data, size_t bytes) {
    *data = std::malloc(bytes);
    return *data != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
    return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
    return std::memset(to, byte, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, int) {
    return *stream = nullptr, cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, int) { return cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* time, cudaEvent_t, cudaEvent_t) {
    return *time = 0, cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, int) { return cudaErrorNotSupported; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, int) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaLaunchKernel(const void* kernel, dim3 blocks, dim3, void** arguments, size_t,
                                    cudaStream_t) {
    const bool fine = reinterpret_cast<emulator::Entry>(kernel)(blocks.x, arguments);
    return fine ? cudaSuccess : cudaErrorLaunchFailure;
}
