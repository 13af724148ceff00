// Questions about many tensors at a time: whether they have changed, and where their memory is.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstring>
#include <tuple>

#include "python/arrays.hpp"
#include "python/dlpack.hpp"
#include "python/intervals.hpp"

namespace pyoptim::python {

namespace {

using Lists = py::typing::List<py::typing::List<py::object>>;

// Calls visit(address, bytes) for all that tells which tensor this is, where its memory is, and its form:
// type, shape and strides. Returns false if it does not say.
template <class Visit>
bool visit_layout(PyObject* tensor, Visit visit) {
    dlpack::Tensor t;
    if (!dlpack::view(tensor, t) || (t.ndim > 0 && t.strides == nullptr)) return false;
    const struct {
        const void *object, *data;
        std::uint64_t byte_offset;
        std::int32_t ndim;
        std::uint8_t code, bits, unused[2];
    } head = {tensor, t.data, t.byte_offset, t.ndim, t.code, t.bits, {}};
    const auto bytes = sizeof(std::int64_t) * static_cast<std::size_t>(t.ndim);
    visit(&head, sizeof head);
    visit(t.shape, bytes);
    visit(t.strides, bytes);
    return true;
}

// Calls begin(count) for each list, and each(tensor) for what is in it, as long as they return true. Returns
// whether all did.
template <class Begin, class Each>
bool all_of(const Lists& lists, Begin begin, Each each) {
    for (const py::handle list : lists) {
        if (!PyList_Check(list.ptr()) || !begin(PyList_GET_SIZE(list.ptr()))) return false;
        for (py::ssize_t i = 0; i < PyList_GET_SIZE(list.ptr()); ++i) {
            // A reference of its own, since a gradient may be a property that changes the list.
            const auto tensor = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(list.ptr(), i));
            if (!each(tensor.ptr())) return false;
        }
    }
    return true;
}

// The lists and their tensors' layouts as bytes, to be compared with those of another time.
std::optional<py::bytes> tensor_layouts(const Lists& lists) {
    std::string all;
    const auto add = [&](const void* begin, std::size_t bytes) {
        all.append(static_cast<const char*>(begin), bytes);
    };
    const auto begin = [&](py::ssize_t count) {
        add(&count, sizeof count);
        return true;
    };
    if (!all_of(lists, begin, [&](PyObject* tensor) { return visit_layout(tensor, add); }))
        return std::nullopt;
    return py::bytes(all);
}

// The gradients of the tensors; an empty list if none has one. Nothing if some have one and others not, or if
// the lists hold other tensors or a layout is another than in `layouts`.
std::optional<py::typing::List<py::object>> tensor_gradients(const Lists& lists, const py::bytes& layouts) {
    static const PyObject* const name = PyUnicode_InternFromString("grad");
    const char* at = PyBytes_AS_STRING(layouts.ptr());
    const char* const end = at + PyBytes_GET_SIZE(layouts.ptr());
    bool same = true;
    const auto compare = [&](const void* begin, std::size_t bytes) {
        same = same && bytes <= static_cast<std::size_t>(end - at) && std::memcmp(at, begin, bytes) == 0;
        if (same) at += bytes;
    };
    const auto begin = [&](py::ssize_t count) {
        compare(&count, sizeof count);
        return same;
    };
    py::list all;
    std::size_t count = 0;
    const auto each = [&](PyObject* tensor) {
        ++count;
        if (!visit_layout(tensor, compare) || !same) return false;
        auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, const_cast<PyObject*>(name)));
        if (!grad) throw py::error_already_set();
        if (!grad.is_none()) all.append(std::move(grad));
        return true;
    };
    if (!all_of(lists, begin, each) || at != end) return std::nullopt;
    if (!all.empty() && all.size() != count) return std::nullopt;
    return all;
}

// Finds the gradients of parameters on a GPU, if they are tensors of the same kind as their parameters.
class TensorGradients {
  public:
    // The tensor (None if it is none), address, shape, and DLPack's type code and bits of a parameter.
    using Param = std::tuple<py::object, std::uintptr_t, std::vector<std::int64_t>, int, int>;
    using Bytes = std::pair<std::uintptr_t, std::size_t>;
    using Found = std::pair<py::array_t<std::uint64_t>, std::uintptr_t>;

    // written: the memory that a step writes; no gradient may overlap it.
    TensorGradients(std::vector<Param> params, const std::vector<Bytes>& written,
                    std::pair<std::int32_t, std::int32_t> device)
        : params_(std::move(params)), device_(device) {
        for (const auto& [begin, bytes] : written) written_.add(begin, bytes);
        written_.sort();
    }

    // The addresses of the gradients, and the stream that PyTorch works on. Nothing if a gradient is
    // something else, or if the tensor of a parameter has got other memory since.
    std::optional<Found> find(const py::typing::List<py::object>& grads) const {
        if (grads.empty() || grads.size() != params_.size()) return std::nullopt;
        for (const Param& param : params_) {
            const auto& [tensor, address, shape, code, bits] = param;
            if (!tensor.is_none() && address_of(tensor.ptr(), param) != address) return std::nullopt;
        }
        const dlpack::Exchange* const owner = dlpack::exchange_of(Py_TYPE(PyList_GET_ITEM(grads.ptr(), 0)));
        if (owner == nullptr || owner->current_stream == nullptr) return std::nullopt;
        py::array_t<std::uint64_t> addresses(static_cast<py::ssize_t>(params_.size()));
        std::uint64_t* to = addresses.mutable_data();
        for (std::size_t i = 0; i < params_.size(); ++i) {
            PyObject* const grad = PyList_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i));
            if (dlpack::exchange_of(Py_TYPE(grad)) != owner) return std::nullopt;
            const std::uintptr_t address = address_of(grad, params_[i]);
            std::size_t bytes = static_cast<std::size_t>(std::get<4>(params_[i])) / 8;
            for (const std::int64_t n : std::get<2>(params_[i])) bytes *= static_cast<std::size_t>(n);
            if (address == 0 || written_.meet(address, bytes)) return std::nullopt;
            *to++ = address;
        }
        void* stream = nullptr;
        if (owner->current_stream(device_.first, device_.second, &stream) != 0) throw py::error_already_set();
        return Found{std::move(addresses), reinterpret_cast<std::uintptr_t>(stream)};
    }

  private:
    // The address of a gradient, or 0 if its device, type or shape differs from the parameter's.
    std::uintptr_t address_of(PyObject* object, const Param& param) const {
        const auto& [tensor, at, shape, code, bits] = param;
        dlpack::Tensor t;
        const bool fits = dlpack::view(object, t) && t.device_type == device_.first &&
                          t.device == device_.second && t.code == code && t.bits == bits &&
                          std::size_t(t.ndim) == shape.size() &&
                          std::equal(shape.begin(), shape.end(), t.shape);
        return fits ? reinterpret_cast<std::uintptr_t>(t.contiguous()) : 0;
    }

    std::vector<Param> params_;
    std::pair<std::int32_t, std::int32_t> device_;  // DLPack's device type and index
    Intervals written_;
};

}  // namespace

void bind_dlpack(py::module_& m) {
    m.def("tensor_layouts", &tensor_layouts, py::arg("lists"),
          "What differs where lists hold other tensors, or one has got other memory or another form; None "
          "where "
          "one does not say.");
    m.def("tensor_gradients", &tensor_gradients, py::arg("lists"), py::arg("layouts"),
          "The gradients of tensors that are as they were for tensor_layouts; none, or one for each.");
    py::class_<TensorGradients>(m, "TensorGradients")
        .def(py::init<std::vector<TensorGradients::Param>, const std::vector<TensorGradients::Bytes>&,
                      std::pair<std::int32_t, std::int32_t>>(),
             py::arg("params"), py::arg("written"), py::arg("device"))
        .def("find", &TensorGradients::find, py::arg("grads"));
}

}  // namespace pyoptim::python
