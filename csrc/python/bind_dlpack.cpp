// What tells whether tensors are still what they were.
#include "python/arrays.hpp"
#include "python/dlpack.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

namespace pyoptim::python {

namespace {

// Memory, type, shape and strides of each, one after the other.
std::optional<py::bytes> tensor_layouts(const py::typing::List<py::object>& tensors) {
    std::string all;
    for (const py::handle tensor : tensors) {
        dlpack::Tensor t;
        if (!dlpack::view(tensor.ptr(), t) || (t.ndim > 0 && t.strides == nullptr)) return std::nullopt;
        const auto add = [&](const auto* values, int count) {
            all.append(reinterpret_cast<const char*>(values),
                       sizeof(*values) * static_cast<std::size_t>(count));
        };
        add(&t.data, 1);
        add(&t.byte_offset, 1);
        add(&t.ndim, 1);
        add(&t.code, 1);
        add(&t.bits, 1);
        add(t.shape, t.ndim);
        add(t.strides, t.ndim);
    }
    return py::bytes(all);
}

}  // namespace

void bind_dlpack(py::module_& m) {
    m.def("tensor_layouts", &tensor_layouts, py::arg("tensors"),
          "What differs where one has got other memory or another form; None where one does not say.");
}

}  // namespace pyoptim::python
