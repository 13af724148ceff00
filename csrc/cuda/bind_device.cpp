// Devices, memory and streams.
#include "cuda/runtime.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <optional>
#include <utility>

namespace pyoptim::cuda {

namespace {

int device_count() {
    int count = 0;
    if (why_not() == nullptr) check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    return count;
}

std::optional<std::string> reason() {
    const char* const text = why_not();
    return text == nullptr ? std::nullopt : std::optional<std::string>(text);
}

py::typing::Dict<py::str, py::object> device(int index) {
    require_device();
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    py::typing::Dict<py::str, py::object> all;
    all["name"] = properties.name;
    all["compute_capability"] = py::make_tuple(properties.major, properties.minor);
    all["memory"] = properties.totalGlobalMem;
    all["multiprocessors"] = properties.multiProcessorCount;
    return all;
}

std::pair<int, int> versions() {
    int driver = 0;
    cudaDriverGetVersion(&driver);  // the version stays 0 without a driver
    int runtime = 0;
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    return {runtime, driver};
}

void set_device(int index) {
    require_device();
    check(cudaSetDevice(index), "cudaSetDevice");
}

int get_device() {
    require_device();
    int index = 0;
    check(cudaGetDevice(&index), "cudaGetDevice");
    return index;
}

// While an object of this class lives, its thread may allocate and free memory although another thread
// captures a graph. PyTorch by default captures in a mode in which an allocation by any thread ends the
// capture.
class WhoeverCaptures {
  public:
    WhoeverCaptures() { cudaThreadExchangeStreamCaptureMode(&other_); }
    ~WhoeverCaptures() { cudaThreadExchangeStreamCaptureMode(&other_); }
    WhoeverCaptures(const WhoeverCaptures&) = delete;
    WhoeverCaptures& operator=(const WhoeverCaptures&) = delete;

  private:
    cudaStreamCaptureMode other_ = cudaStreamCaptureModeRelaxed;
};

// Device memory, freed with the object.
class Memory {
  public:
    explicit Memory(std::size_t bytes) : bytes_(bytes) {
        require_device();
        const WhoeverCaptures may;
        if (bytes > 0) check(cudaMalloc(&data_, bytes), "cudaMalloc");
    }
    ~Memory() {
        const WhoeverCaptures may;
        cudaFree(data_);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(data_); }
    std::size_t bytes() const { return bytes_; }

  private:
    void* data_ = nullptr;
    std::size_t bytes_;
};

class Stream {
  public:
    Stream() {
        require_device();
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(stream_); }

  private:
    cudaStream_t stream_ = nullptr;
};

// A point in time of a stream.
class Event {
  public:
    Event() {
        require_device();
        // Recording is cheaper without timing, and waiting may be.
        check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
    }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record(std::uintptr_t stream) {
        check(cudaEventRecord(event_, stream_at(stream)), "cudaEventRecord");
    }
    // Work that is queued on the stream later waits for this event.
    void hold(std::uintptr_t stream) const {
        check(cudaStreamWaitEvent(stream_at(stream), event_, 0), "cudaStreamWaitEvent");
    }

  private:
    cudaEvent_t event_ = nullptr;
};

void copy(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, std::uintptr_t stream) {
    require_device();
    if (bytes == 0) return;
    py::gil_scoped_release release;
    check(cudaMemcpyAsync(pointer_at(to), pointer_at(from), bytes, cudaMemcpyDefault, stream_at(stream)),
          "cudaMemcpyAsync");
}

void fill(std::uintptr_t to, int byte, std::size_t bytes, std::uintptr_t stream) {
    require_device();
    if (bytes == 0) return;
    check(cudaMemsetAsync(pointer_at(to), byte, bytes, stream_at(stream)), "cudaMemsetAsync");
}

void synchronize(std::uintptr_t stream) {
    require_device();
    py::gil_scoped_release release;
    check(cudaStreamSynchronize(stream_at(stream)), "cudaStreamSynchronize");
}

}  // namespace

void bind_device(py::module_& m) {
    m.def("device_count", &device_count, "0 where there is no device or driver: why_not() has the reason.");
    m.def("why_not", &reason, "Why no device can be used, or None.");
    m.def("device", &device, py::arg("index"), "Name, compute capability, memory in bytes, multiprocessors.");
    m.def("versions", &versions,
          "Of the CUDA runtime inside and of the driver (0: none), as 1000 major + 10 minor.");
    m.def("set_device", &set_device, py::arg("index"));
    m.def("get_device", &get_device);
    m.def("copy", &copy, py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("stream"),
          "Between any two of host and device, in the stream's order.");
    m.def("fill", &fill, py::arg("to"), py::arg("byte"), py::arg("bytes"), py::arg("stream"));
    m.def("synchronize", &synchronize, py::arg("stream"));
    py::class_<Memory>(m, "Memory", py::module_local(), "Device memory, freed with the object.")
        .def(py::init<std::size_t>(), py::arg("bytes"))
        .def_property_readonly("address", &Memory::address)
        .def_property_readonly("bytes", &Memory::bytes);
    py::class_<Stream>(m, "Stream", py::module_local())
        .def(py::init<>())
        .def_property_readonly("address", &Stream::address);
    py::class_<Event>(m, "Event", py::module_local())
        .def(py::init<>())
        .def("record", &Event::record, py::arg("stream"))
        .def("hold", &Event::hold, py::arg("stream"), "Later work on the stream waits for this event.");
}

}  // namespace pyoptim::cuda
