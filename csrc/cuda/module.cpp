// pyoptim._cuda: the table of contents. It imports without a GPU or driver, and says so when called.
#include "cuda/runtime.hpp"

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of pyoptim. Private: pyoptim.backends is the door. Addresses are ints.";
    pyoptim::cuda::bind_device(m);
    pyoptim::cuda::bind_launch(m);
    pyoptim::cuda::bind_graph(m);
}
