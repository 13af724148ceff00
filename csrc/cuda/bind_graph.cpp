// Work captured once and launched many times.
#include "cuda/runtime.hpp"

namespace pyoptim::cuda {

namespace {

class Graph {
  public:
    // Ends the capture that begin_capture began on this stream.
    explicit Graph(std::uintptr_t stream) {
        require_device();
        cudaGraph_t graph = nullptr;
        check(cudaStreamEndCapture(stream_at(stream), &graph), "cudaStreamEndCapture");
        const cudaError_t error = cudaGraphInstantiate(&graph_, graph, 0);
        cudaGraphDestroy(graph);
        check(error, "cudaGraphInstantiate");
    }
    ~Graph() { cudaGraphExecDestroy(graph_); }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    void launch(std::uintptr_t stream) const {
        check(cudaGraphLaunch(graph_, stream_at(stream)), "cudaGraphLaunch");
    }

  private:
    cudaGraphExec_t graph_ = nullptr;
};

void begin_capture(std::uintptr_t stream) {
    require_device();
    // In the relaxed mode memory may be taken and given back during the capture.
    check(cudaStreamBeginCapture(stream_at(stream), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
}

bool is_capturing(std::uintptr_t stream) {
    require_device();
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream_at(stream), &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
}

}  // namespace

void bind_graph(py::module_& m) {
    m.def("begin_capture", &begin_capture, py::arg("stream"),
          "What is launched on the stream from here on is recorded, not run; not the default stream.");
    m.def("is_capturing", &is_capturing, py::arg("stream"),
          "Whether somebody captures what is queued there.");
    py::class_<Graph>(m, "Graph", py::module_local(), "What was launched on the stream since begin_capture.")
        .def(py::init<std::uintptr_t>(), py::arg("stream"))
        .def("launch", &Graph::launch, py::arg("stream"));
}

}  // namespace pyoptim::cuda
