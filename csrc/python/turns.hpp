// What the GIL guards, on a Python without one. In other builds all of this is empty.
#pragma once

#include <pybind11/critical_section.h>
#include <pybind11/pybind11.h>

namespace pyoptim::python {

namespace py = pybind11;

// An object's turns: between threads that call its methods, one is in at a time. As with the GIL, a thread
// that waits or computes without Python lets others in. Use: `const py::scoped_critical_section
// turn(turns.key());`
class Turns {
  public:
#ifdef Py_GIL_DISABLED
    py::handle key() const { return key_; }

  private:
    py::list key_;  // never filled: Python locks objects, and this is one that nobody else has
#else
    py::handle key() const { return {}; }
#endif
};

// A reference to an item of a list that another thread may change; null if the list has become shorter.
inline py::object item(PyObject* list, Py_ssize_t i) {
#ifdef Py_GIL_DISABLED
    PyObject* const found = PyList_GetItemRef(list, i);
    if (found == nullptr) PyErr_Clear();
    return py::reinterpret_steal<py::object>(found);
#else
    return i < PyList_GET_SIZE(list) ? py::reinterpret_borrow<py::object>(PyList_GET_ITEM(list, i))
                                     : py::object();
#endif
}

}  // namespace pyoptim::python
