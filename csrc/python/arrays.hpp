// How NumPy arrays reach the kernels. The Python side validates what users pass and names the argument;
// what is checked here keeps a mistake of our own from touching memory that is not there.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <stdexcept>
#include <string>

namespace pyoptim::python {

namespace py = pybind11;

// Contiguous, of exactly this element type.
template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using MaybeArray = std::optional<Array<T>>;

inline void require(bool condition, const char* what) {
    if (!condition) throw py::value_error(std::string("shapes do not match: ") + what);
}

template <class T>
const T* data_or_null(const MaybeArray<T>& array) {
    return array ? array->data() : nullptr;
}
template <class T>
T* mutable_data_or_null(MaybeArray<T>& array) {
    return array ? array->mutable_data() : nullptr;
}
template <class T>
bool has_size(const MaybeArray<T>& array, py::ssize_t size) {
    return !array || array->size() == size;
}

void bind_runtime(py::module_& m);
void bind_optimizers(py::module_& m);
void bind_packed(py::module_& m);
void bind_trust(py::module_& m);
void bind_dense(py::module_& m);
void bind_losses(py::module_& m);
void bind_norm(py::module_& m);
void bind_engine(py::module_& m);
void bind_activations(py::module_& m);
void bind_dropout(py::module_& m);

}  // namespace pyoptim::python
