// Questions about many tensors at a time: whether they have changed, and where their memory is.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstring>
#include <tuple>

#include "python/arrays.hpp"
#include "python/dlpack.hpp"
#include "python/intervals.hpp"
#include "python/turns.hpp"

namespace pyoptim::python {

namespace {

using Lists = py::typing::List<py::typing::List<py::object>>;
using States = py::typing::Dict<py::object, py::object>;

// Calls visit(address, bytes) for all that tells which tensor this is, which t describes, where its memory
// is, and its form: type, shape and strides.
template <class Visit>
void visit_layout(PyObject* tensor, const dlpack::Tensor& t, Visit visit) {
    const struct {
        const void *object, *data;
        std::uint64_t byte_offset;
        std::int32_t ndim;
        std::uint8_t code, bits, unused[2];
    } head = {tensor, t.data, t.byte_offset, t.ndim, t.code, t.bits, {}};
    const auto bytes = sizeof(std::int64_t) * static_cast<std::size_t>(t.ndim);
    visit(&head, sizeof head);
    if (t.ndim == 0) return;
    visit(t.shape, bytes);
    if (t.strides != nullptr) visit(t.strides, bytes);
}

// The same of a tensor whose elements can be read; returns false of any other object.
template <class Visit>
bool visit_readable(PyObject* tensor, Visit visit) {
    dlpack::Tensor t;
    if (!dlpack::view(tensor, t) || (t.ndim > 0 && t.strides == nullptr)) return false;
    visit_layout(tensor, t, visit);
    return true;
}

// The same of all tensors in the dictionaries that a dictionary holds, and which keys and values all these
// have.
template <class Visit>
void visit_states(PyObject* states, Visit visit) {
    const auto each = [&](PyObject* dict, auto next) {
        const py::scoped_critical_section unchanged(dict);
        const Py_ssize_t count = PyDict_Size(dict);
        visit(&count, sizeof count);
        Py_ssize_t at = 0;
        PyObject *key = nullptr, *value = nullptr;
        while (PyDict_Next(dict, &at, &key, &value)) {
            const auto held = py::reinterpret_borrow<py::object>(value);
            const void* const both[] = {key, value};
            visit(both, sizeof both);
            next(value);
        }
    };
    each(states, [&](PyObject* entry) {
        if (!PyDict_Check(entry)) return;
        each(entry, [&](PyObject* value) {
            dlpack::Tensor t;
            if (dlpack::describe(value, t)) visit_layout(value, t, visit);
        });
    });
}

// Compares what is visited with what was written by an earlier visit.
class Comparison {
  public:
    explicit Comparison(const py::bytes& written)
        : at_(PyBytes_AS_STRING(written.ptr())), end_(at_ + PyBytes_GET_SIZE(written.ptr())) {}

    void operator()(const void* begin, std::size_t bytes) {
        same_ = same_ && bytes <= static_cast<std::size_t>(end_ - at_) && std::memcmp(at_, begin, bytes) == 0;
        if (same_) at_ += bytes;
    }

    bool is_same() const { return same_; }                  // so far
    bool is_whole() const { return same_ && at_ == end_; }  // nor was there more

  private:
    const char *at_, *end_;
    bool same_ = true;
};

// Calls begin(count) for each list, and each(tensor) for what is in it, as long as they return true. Returns
// whether all did.
template <class Begin, class Each>
bool all_of(const Lists& lists, Begin begin, Each each) {
    for (const py::handle list : lists) {
        if (!PyList_Check(list.ptr()) || !begin(PyList_GET_SIZE(list.ptr()))) return false;
        for (py::ssize_t i = 0; i < PyList_GET_SIZE(list.ptr()); ++i) {
            // A reference of its own, since a gradient may be a property that changes the list.
            const py::object tensor = item(list.ptr(), i);
            if (!tensor || !each(tensor.ptr())) return false;
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
    if (!all_of(lists, begin, [&](PyObject* tensor) { return visit_readable(tensor, add); }))
        return std::nullopt;
    return py::bytes(all);
}

// A dictionary of dictionaries and the layouts of the tensors in these as bytes, to be compared with those of
// another time.
py::bytes state_layouts(const States& states) {
    std::string all;
    visit_states(states.ptr(), [&](const void* begin, std::size_t bytes) {
        all.append(static_cast<const char*>(begin), bytes);
    });
    return py::bytes(all);
}

bool has_state_layouts(const States& states, const py::bytes& layouts) {
    Comparison compare(layouts);
    visit_states(states.ptr(), [&](const void* begin, std::size_t bytes) { compare(begin, bytes); });
    return compare.is_whole();
}

// The gradients of the tensors; an empty list if none has one. Nothing if some have one and others not, or if
// the lists hold other tensors or a layout is another than in `layouts`.
std::optional<py::typing::List<py::object>> tensor_gradients(const Lists& lists, const py::bytes& layouts) {
    static const PyObject* const name = PyUnicode_InternFromString("grad");
    Comparison compare(layouts);
    const auto visit = [&](const void* begin, std::size_t bytes) { compare(begin, bytes); };
    const auto begin = [&](py::ssize_t count) {
        compare(&count, sizeof count);
        return compare.is_same();
    };
    py::list all;
    std::size_t count = 0;
    const auto each = [&](PyObject* tensor) {
        ++count;
        if (!visit_readable(tensor, visit) || !compare.is_same()) return false;
        auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, const_cast<PyObject*>(name)));
        if (!grad) throw py::error_already_set();
        if (!grad.is_none()) all.append(std::move(grad));
        return true;
    };
    if (!all_of(lists, begin, each) || !compare.is_whole()) return std::nullopt;
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
          "where one does not say.");
    m.def(
        "state_layouts", &state_layouts, py::arg("states"),
        "What differs where a dict of dicts or one of these holds other objects, or a tensor in one of them "
        "has got other memory or another form. The objects must be kept: their addresses tell them apart.");
    m.def("has_state_layouts", &has_state_layouts, py::arg("states"), py::arg("layouts"),
          "Whether state_layouts would return the same.");
    m.def("tensor_gradients", &tensor_gradients, py::arg("lists"), py::arg("layouts"),
          "The gradients of tensors that are as they were for tensor_layouts; none, or one for each.");
    py::class_<TensorGradients>(m, "TensorGradients")
        .def(py::init<std::vector<TensorGradients::Param>, const std::vector<TensorGradients::Bytes>&,
                      std::pair<std::int32_t, std::int32_t>>(),
             py::arg("params"), py::arg("written"), py::arg("device"))
        .def("find", &TensorGradients::find, py::arg("grads"));
}

}  // namespace pyoptim::python
