// Arrays of NumPy's own types: recognised and searched in less time than pybind11 takes to ask NumPy.
#pragma once

#include <cstdint>

#include "python/arrays.hpp"

namespace pyoptim::python {

// NumPy's own type object for T.
template <class T>
const PyObject* descriptor() {
    static const PyObject* const builtin = py::dtype::of<T>().release().ptr();
    return builtin;
}

// Whether this is a contiguous array of NumPy's own type object for T.
template <class T>
bool is_plain(const py::array& x) {
    return py::detail::array_proxy(x.ptr())->descr == descriptor<T>() &&
           py::detail::check_flags(x.ptr(), py::array::c_style);
}

// Whether an element of a contiguous array of T is below `low`, above `high` or NaN.
template <class T>
bool any_outside_of(const py::array& x, double low, double high) {
    const T least = static_cast<T>(low), most = static_cast<T>(high);
    const T* const values = static_cast<const T*>(x.data());
    const py::ssize_t n = x.size();
    std::optional<Unlocked> release;
    if (n > 16384) release.emplace();
    int wrong = 0;
    for (py::ssize_t i = 0; i < n; ++i) wrong |= !(values[i] >= least) | !(values[i] <= most);
    return wrong != 0;
}

}  // namespace pyoptim::python
