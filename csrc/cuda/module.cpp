// The table of contents of _cuda. The module imports without a GPU or driver; its functions then say what
// is missing.
#include "cuda/runtime.hpp"

PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
    m.doc() = "CUDA kernels of pyoptim. Private: pyoptim.backends is the door. Addresses are ints.";
    pyoptim::cuda::bind_device(m);
    pyoptim::cuda::bind_launch(m);
    pyoptim::cuda::bind_graph(m);
}
