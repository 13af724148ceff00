// The table of contents of pyoptim.runtime._native, the compiled part.
#include "python/arrays.hpp"

namespace py = pybind11;

// Free-threaded Python needs no GIL for it: what its functions share is guarded where it is
// (python/turns.hpp).
PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
    m.doc() = "Compiled kernels of pyoptim. Private: pyoptim.backends.native is the door.";
    using namespace pyoptim::python;
    for (Binding* const bind : {bind_runtime, bind_optimizers, bind_packed, bind_trust, bind_tensors,
                                bind_dense, bind_losses, bind_norm, bind_engine, bind_predictor,
                                bind_activations, bind_dropout, bind_dlpack, bind_quantized, bind_fitting}) {
        bind(m);
    }
}
