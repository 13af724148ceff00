// The table of contents of pyoptim.runtime._native, the compiled part.
#include "python/arrays.hpp"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Compiled kernels of pyoptim. Private: pyoptim.backends.native is the door.";
    pyoptim::python::bind_runtime(m);
    pyoptim::python::bind_optimizers(m);
    pyoptim::python::bind_packed(m);
    pyoptim::python::bind_trust(m);
    pyoptim::python::bind_tensors(m);
    pyoptim::python::bind_dense(m);
    pyoptim::python::bind_losses(m);
    pyoptim::python::bind_norm(m);
    pyoptim::python::bind_engine(m);
    pyoptim::python::bind_activations(m);
    pyoptim::python::bind_dropout(m);
    pyoptim::python::bind_dlpack(m);
}
