// How NumPy arrays reach the kernels. The Python side validates what users pass and names the argument in its
// message. The checks here keep a mistake in pyoptim itself from reading or writing outside the arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <optional>
#include <string>

namespace pyoptim::python {

namespace py = pybind11;

// An argument that must be a contiguous array of exactly this element type.
template <class T>
struct Array : py::array_t<T, py::array::c_style> {
    using Base = py::array_t<T, py::array::c_style>;
    using Base::Base;
    Array()
        : Base(py::handle(), typename Base::borrowed_t{}) {
    }  // null; the default of Base would make an empty array
};
template <class T>
using MaybeArray = std::optional<Array<T>>;

// An argument that is never converted: a copy would swallow an output.
inline py::arg exact(const char* name) { return py::arg(name).noconvert(); }
// One that may also be None.
inline py::arg exact_or_none(const char* name) { return py::arg(name).noconvert().none(true); }

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

// Lets other Python threads run while one lives. What it does then has been read from arrays before, as these
// threads may reshape them, and none can change the instruction set. With a GIL, all work of the kernels that
// another thread can come between is done under one of these.
class Unlocked {
  public:
    static bool any() { return Counted::all != 0; }

  private:
    struct Counted {
        Counted() { ++all; }
        ~Counted() { --all; }
        static inline std::atomic<int> all{0};
    };
    Counted counted_;  // begins before the GIL is released, and ends after it is taken again
    py::gil_scoped_release release_;
};

// Binds a part of the compiled module; module.cpp calls each of these functions.
using Binding = void(py::module_&);
Binding bind_runtime, bind_optimizers, bind_packed, bind_trust, bind_tensors, bind_dense, bind_losses,
    bind_norm, bind_engine, bind_predictor, bind_activations, bind_dropout, bind_dlpack, bind_quantized,
    bind_fitting;

}  // namespace pyoptim::python

namespace pybind11::detail {

template <class T>
struct handle_type_name<pyoptim::python::Array<T>> : handle_type_name<array_t<T, array::c_style>> {};

// This replaces pybind11's own caster, which has NumPy make an empty array first and then convert the
// argument even if it fits already: a dozen arguments would cost more than a microsecond.
template <class T>
struct pyobject_caster<pyoptim::python::Array<T>> {
    using Base = typename pyoptim::python::Array<T>::Base;

    bool load(handle from, bool convert) {
        static const PyObject* const builtin = dtype::of<T>().release().ptr();
        if (isinstance<array>(from) && array_proxy(from.ptr())->descr == builtin &&
            check_flags(from.ptr(), array::c_style)) {
            value = reinterpret_borrow<pyoptim::python::Array<T>>(from);
        } else if (convert || Base::check_(from)) {
            value = reinterpret_steal<pyoptim::python::Array<T>>(Base::ensure(from).release());
        } else {
            return false;
        }
        return static_cast<bool>(value);
    }
    static handle cast(const handle& from, return_value_policy, handle) { return from.inc_ref(); }
    PYBIND11_TYPE_CASTER(pyoptim::python::Array<T>, handle_type_name<pyoptim::python::Array<T>>::name);
};

}  // namespace pybind11::detail
