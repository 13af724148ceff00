// Tensors that other libraries lend through DLPack's table of C functions, as PyTorch does from 2.10 on. To
// ask for a few hundred tensors from Python would cost more than a step. The declarations are those of
// dlpack.h 1.3 (https://github.com/dmlc/dlpack).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <mutex>
#include <utility>

namespace pyoptim::python::dlpack {

namespace py = pybind11;

enum : std::int32_t { kCpu = 1 };
enum : std::uint8_t { kFloat = 2, kBfloat = 4 };

struct Tensor {
    void* data;
    std::int32_t device_type, device;
    std::int32_t ndim;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    const std::int64_t *shape, *strides;
    std::uint64_t byte_offset;

    // The address of its elements, or null if they are not aligned and one after the other. The strides of
    // dimensions of length 1 must fit too: they give away PyTorch's imaginary part of a conjugate, whose
    // values are to be negated, which DLPack does not tell.
    const char* contiguous() const {
        std::int64_t step = 1;
        for (int i = ndim; strides != nullptr && i-- > 0;) {
            if (strides[i] != step) return nullptr;
            step *= shape[i];
        }
        const char* const begin = static_cast<const char*>(data) + byte_offset;
        return lanes == 1 && reinterpret_cast<std::uintptr_t>(begin) % (bits / 8u) == 0 ? begin : nullptr;
    }
};

struct Exchange {
    std::uint32_t major, minor;
    const void *previous, *allocate, *from_object, *to_object;
    int (*view)(void* object, Tensor* out);
    int (*current_stream)(std::int32_t device_type, std::int32_t device, void** stream);
};

// The table of functions of a type, or null if it has none. The answers for the last two types are
// remembered, as a step asks for parameters and for gradients, which PyTorch gives two types.
inline const Exchange* exchange_of(PyTypeObject* type) {
    struct Known {
        py::object type;  // a reference, so that no other type gets the same address
        const Exchange* exchange = nullptr;
    };
    static Known* const known = new Known[2];  // never destroyed: Python may be gone by then
#ifdef Py_GIL_DISABLED
    static std::mutex guard;  // of `known`; no Python runs under it
    std::unique_lock<std::mutex> lock(guard);
#endif
    for (int i = 0; i < 2; ++i) {
        if (known[i].type.ptr() == reinterpret_cast<PyObject*>(type)) return known[i].exchange;
    }
#ifdef Py_GIL_DISABLED
    lock.unlock();
#endif
    const auto object = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type));
    const py::object capsule = py::getattr(object, "__dlpack_c_exchange_api__", py::none());
    const Exchange* found = nullptr;
    if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        found = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (found->major != 1 || found->view == nullptr) found = nullptr;
    }
#ifdef Py_GIL_DISABLED
    lock.lock();
#endif
    // The type that is forgotten goes at the end, after the lock.
    const Known last = std::exchange(known[1], std::exchange(known[0], {object, found}));
#ifdef Py_GIL_DISABLED
    lock.unlock();
#endif
    return found;
}

// Describes the object in `out`; false if it is no such tensor or has no memory to lend. Whether its values
// are to be negated is not asked.
inline bool describe(PyObject* object, Tensor& out) {
    const Exchange* const exchange = exchange_of(Py_TYPE(object));
    if (exchange == nullptr) return false;
    if (exchange->view(object, &out) == 0) return true;
    PyErr_Clear();
    return false;
}

// Describes the object in `out`; false if it is no such tensor or has no memory to lend as it is.
inline bool view(PyObject* object, Tensor& out) {
    if (!describe(object, out)) return false;
    const py::handle tensor = object;
    return out.ndim > 0 || !py::hasattr(tensor, "is_neg") || !tensor.attr("is_neg")().cast<bool>();
}

}  // namespace pyoptim::python::dlpack
