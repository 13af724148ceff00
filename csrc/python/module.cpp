// The table of contents of pyoptim.runtime._native, the compiled part.
#include "python/arrays.hpp"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Compiled kernels of pyoptim. Private: pyoptim.backends.native is the door.";
    using namespace pyoptim::python;
    for (Binding* const bind : {bind_runtime, bind_optimizers, bind_packed, bind_trust, bind_tensors,
                                bind_dense, bind_losses, bind_norm, bind_engine, bind_predictor,
                                bind_activations, bind_dropout, bind_dlpack, bind_quantized}) {
        bind(m);
    }
}
