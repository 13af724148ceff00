// The part of the CUDA runtime that csrc/cuda uses, on the host: "device memory" is memory, and work runs at
// once, but for what is captured, which runs when its graph is launched: then in any order that its streams
// and events allow, another one each time. What a GPU's runtime refuses is refused, as far as a mistake here
// can come to it; memory is on 256 bytes, and holds NaN at first and after its end.
// PYOPTIM_EMULATED_DEVICES is the number of devices (default 1). With PYOPTIM_EMULATED_CAPTURE captures are
// somebody's, of the mode that PyTorch has by default.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "emulator.hpp"

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorIllegalState = 401,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureMerge = 902,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureIsolation = 905,
    cudaErrorCapturedEvent = 907
};
enum { cudaMemcpyDefault, cudaStreamNonBlocking, cudaEventDisableTiming };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
using Places = std::set<std::size_t>;
// Work, and the places of what comes before it.
struct Node {
    std::function<cudaError_t()> run;
    Places after;
};
struct Capture {
    std::vector<Node> nodes;
    cudaError_t broken = cudaSuccess;  // what has made it useless
    bool ended = false;
    bool global = false;  // it ends where any thread does what is unsafe meanwhile
};
struct Stream_ {
    int device;
    std::shared_ptr<Capture> capture = {};  // that it takes part in
    bool began = false;                     // it did
    Places last = {};                       // what the next work comes after
};
struct Event_ {
    int device;
    bool recorded = false;
    std::shared_ptr<Capture> capture = {};
    Places last = {};
};
using cudaStream_t = Stream_*;
using cudaEvent_t = Event_*;
using cudaGraph_t = std::vector<Node>*;
using cudaGraphExec_t = std::vector<Node>*;
struct dim3 {
    unsigned x;
    explicit dim3(unsigned x_) : x(x_) {}
};
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem;
};

namespace emulator {
inline int& current_device() {
    static thread_local int index = 0;
    return index;
}
// Device memory: where it begins, and how long it is.
inline std::map<std::uintptr_t, size_t>& memory() {
    static std::map<std::uintptr_t, size_t> all;
    return all;
}
inline bool is_device_memory(const void* p) {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    const auto next = memory().upper_bound(at);
    if (next == memory().begin()) return false;
    const auto& [begin, size] = *std::prev(next);
    return at < begin + size;
}
// Other addresses, those of the default streams among them, are streams that nothing is known of.
inline std::set<Stream_*>& streams() {
    static std::set<Stream_*> all;
    return all;
}
inline bool is_capturing(Stream_* stream) {
    return streams().count(stream) > 0 && stream->capture != nullptr;
}
// The default streams are each device's.
inline int device_of(Stream_* stream) {
    return streams().count(stream) > 0 ? stream->device : current_device();
}
inline cudaError_t spoil(Stream_* stream, cudaError_t error) { return stream->capture->broken = error; }
// Runs it, or keeps it for the graph.
inline cudaError_t put(Stream_* stream, std::function<cudaError_t()> work) {
    if (!is_capturing(stream)) return work();
    if (stream->capture->broken != cudaSuccess) return cudaErrorStreamCaptureInvalidated;
    auto& nodes = stream->capture->nodes;
    nodes.push_back({std::move(work), std::exchange(stream->last, {nodes.size()})});
    return cudaSuccess;
}
// What a capture does not allow.
inline cudaError_t refuse_in_capture(Stream_* stream) {
    return is_capturing(stream) ? spoil(stream, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
inline cudaStreamCaptureMode& mode() {
    static thread_local cudaStreamCaptureMode of_thread = cudaStreamCaptureModeGlobal;
    return of_thread;
}
// Taking and giving back memory.
inline cudaError_t be_unsafe() {
    if (mode() == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    for (Stream_* const stream : streams()) {
        if (is_capturing(stream) && stream->capture->global) return refuse_in_capture(stream);
    }
    return cudaSuccess;
}
// Whether all of a capture comes before what a stream does next.
inline bool is_joined(const Capture& capture, Places seen) {
    for (std::size_t i = capture.nodes.size(); i-- > 0;) {
        if (seen.count(i) == 0) return false;
        seen.insert(capture.nodes[i].after.begin(), capture.nodes[i].after.end());
    }
    return true;
}
inline cudaError_t run(const std::vector<Node>& nodes) {
    static std::mt19937 random;
    std::vector<std::size_t> left(nodes.size());
    for (std::size_t i = 0; i < left.size(); ++i) left[i] = i;
    while (!left.empty()) {
        std::vector<std::size_t> ready;
        for (std::size_t i = 0; i < left.size(); ++i) {
            const Places& after = nodes[left[i]].after;
            const auto waits_for = [&](std::size_t other) { return after.count(other) > 0; };
            if (std::none_of(left.begin(), left.end(), waits_for)) ready.push_back(i);
        }
        const std::size_t chosen = ready[random() % ready.size()];
        if (const cudaError_t error = nodes[left[chosen]].run()) return error;
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(chosen));
    }
    return cudaSuccess;
}
}  // namespace emulator

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle:
            return "invalid resource handle";
        case cudaErrorIllegalState:
            return "the operation cannot be performed in the present state";
        case cudaErrorLaunchFailure:
            return "threads of a block or warp went different ways";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureMerge:
            return "operation would cause a merge of separate capture sequences";
        case cudaErrorStreamCaptureUnmatched:
            return "capture was not ended in the same stream as it began";
        case cudaErrorStreamCaptureUnjoined:
            return "capturing stream has unjoined work";
        case cudaErrorStreamCaptureIsolation:
            return "dependency created on uncaptured work in another stream";
        case cudaErrorCapturedEvent:
            return "operation not permitted on an event last recorded in a capturing stream";
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
inline cudaError_t cudaSetDevice(int index) {
    int count = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&count)) return error;
    if (index < 0 || index >= count) return cudaErrorInvalidDevice;
    return emulator::current_device() = index, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* index) { return *index = emulator::current_device(), cudaSuccess; }
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    return std::swap(*mode, emulator::mode()), cudaSuccess;
}
inline cudaError_t cudaMalloc(void** data, size_t bytes) {
    if (const cudaError_t error = emulator::be_unsafe()) return error;
    *data = bytes > size_t(1) << 48 ? nullptr : std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (*data == nullptr) return cudaErrorMemoryAllocation;
    std::memset(*data, 0xFF, bytes);  // what is read before it is written is NaN
    emulator::memory()[reinterpret_cast<std::uintptr_t>(*data)] = bytes;
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* data) {
    if (data == nullptr) return cudaSuccess;
    if (const cudaError_t error = emulator::be_unsafe()) return error;
    const auto found = emulator::memory().find(reinterpret_cast<std::uintptr_t>(data));
    if (found == emulator::memory().end()) return cudaErrorInvalidValue;
    std::memset(data, 0xFF, found->second);  // so is what is read too late
    emulator::memory().erase(found);
    return std::free(data), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t stream) {
    // The host's memory would be read, or written, at every launch.
    if (!emulator::is_device_memory(to) || !emulator::is_device_memory(from)) {
        if (const cudaError_t error = emulator::refuse_in_capture(stream)) return error;
    }
    return emulator::put(stream, [=] { return std::memcpy(to, from, bytes), cudaSuccess; });
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
    return emulator::put(stream, [=] { return std::memset(to, byte, bytes), cudaSuccess; });
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, int) {
    *stream = new Stream_{emulator::current_device()};
    emulator::streams().insert(*stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    emulator::streams().erase(stream);
    return delete stream, cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return emulator::refuse_in_capture(stream); }
// A stream that waits for one that captures takes part. A capture must not wait for what is outside of it,
// nor anything outside for what it will do.
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, int) {
    const bool capturing = emulator::is_capturing(stream);
    if (!event->recorded) return cudaSuccess;
    if (event->capture == nullptr) {
        return capturing ? emulator::spoil(stream, cudaErrorStreamCaptureIsolation) : cudaSuccess;
    }
    if (event->capture->ended) return cudaErrorCapturedEvent;
    if (emulator::streams().count(stream) == 0) return cudaErrorStreamCaptureIsolation;  // the default one
    if (capturing && stream->capture != event->capture)
        return emulator::spoil(stream, cudaErrorStreamCaptureMerge);
    stream->capture = event->capture;
    stream->last.insert(event->last.begin(), event->last.end());
    return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = new Event_{emulator::current_device()}, cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (emulator::device_of(stream) != event->device) return cudaErrorInvalidResourceHandle;
    *event = {event->device, true, nullptr, {}};
    if (emulator::is_capturing(stream)) *event = {event->device, true, stream->capture, stream->last};
    return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = emulator::is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int) {
    if (emulator::streams().count(stream) == 0 || stream->capture != nullptr) {
        return cudaErrorStreamCaptureUnsupported;
    }
    *stream = {stream->device, std::make_shared<Capture>(), true, {}};
    stream->capture->global = std::getenv("PYOPTIM_EMULATED_CAPTURE") != nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    if (!emulator::is_capturing(stream)) return cudaErrorIllegalState;
    if (!stream->began) return cudaErrorStreamCaptureUnmatched;
    const Stream_ done = *stream;
    for (Stream_* const other : emulator::streams()) {
        if (other->capture == done.capture) *other = {other->device};
    }
    done.capture->ended = true;
    if (done.capture->broken != cudaSuccess) return cudaErrorStreamCaptureInvalidated;
    if (!emulator::is_joined(*done.capture, done.last)) return cudaErrorStreamCaptureUnjoined;
    return *graph = new std::vector<Node>(done.capture->nodes), cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, int) {
    return *made = new std::vector<Node>(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    return emulator::put(stream, [graph] { return emulator::run(*graph); });
}
inline cudaError_t cudaLaunchKernel(const void* address, dim3 blocks, dim3, void** arguments, size_t,
                                    cudaStream_t stream) {
    if (blocks.x == 0 || blocks.x > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
    if (emulator::device_of(stream) != emulator::current_device()) return cudaErrorInvalidResourceHandle;
    const auto* const kernel = static_cast<const emulator::Kernel*>(address);
    std::vector<std::vector<char>> copies;
    for (int i = 0; i < kernel->count; ++i) {
        const char* const from = static_cast<const char*>(arguments[i]);
        copies.emplace_back(from, from + kernel->sizes[i]);
    }
    return emulator::put(stream, [=]() mutable {
        std::vector<void*> addresses;
        for (auto& copy : copies) addresses.push_back(copy.data());
        return kernel->run(blocks.x, addresses.data()) ? cudaSuccess : cudaErrorLaunchFailure;
    });
}
