// The arrays that a stepper has prepared, and the gradients of a step: their addresses, read in one pass.
#pragma once

#include <pybind11/typing.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "python/arrays.hpp"
#include "python/dlpack.hpp"
#include "python/intervals.hpp"
#include "python/turns.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::python {

class Gradients {
  public:
    using List = py::typing::List<py::object>;
    struct Slot {
        py::array param;
        const void* data;  // its address when it was prepared
        py::ssize_t size;
        bool is_double;
        std::uint8_t kind;  // the type code of DLPack
    };

    // The next gradient in the list will be that of this parameter.
    void expect(const py::array& param) {
        const std::uint8_t kind = param.dtype().kind() == 'f' ? dlpack::kFloat : dlpack::kBfloat;
        slots_.push_back({param, param.data(), param.size(), param.itemsize() == sizeof(double), kind});
        large_ = large_ || param.size() > 16384;
    }
    // Registers an array that every step writes and returns its address; throws if it is read-only. No two
    // may overlap.
    void* claim(py::array array) {
        void* const data = array.mutable_data();
        written_.add(reinterpret_cast<std::uintptr_t>(data), static_cast<std::size_t>(array.nbytes()));
        claimed_.push_back(array);
        return data;
    }
    // To be called when all arrays have been claimed.
    void ready() { written_.sort(); }

    std::size_t size() const { return slots_.size(); }
    bool large() const { return large_; }  // whether a step takes long enough to let other Python threads run

    // Calls found(slot, address) for each gradient. Returns false at the first one that is not a contiguous
    // array, or tensor in the processor's memory, of its parameter's shape and type, that overlaps what is
    // written, or whose parameter has become read-only or has been resized.
    template <class Found>
    bool each(const List& grads, Found found) const {
        const py::scoped_critical_section unchanged(grads);
        if (grads.size() != slots_.size()) return false;
        for (std::size_t i = 0; i < slots_.size(); ++i) {
            PyObject* const grad = PyList_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i));
            const void* const data = usable(grad, slots_[i]);
            if (data == nullptr) return false;
            found(slots_[i], data);
        }
        return true;
    }

    // The addresses of the float32 gradients and of the float64 gradients, each in order.
    struct ByType {
        std::vector<const float*> f32;
        std::vector<const double*> f64;
    };
    // Null if each() is false. They stay until this thread's next call: a step of a few thousand elements
    // would notice what new memory costs.
    const ByType* by_type(const List& grads) const {
        thread_local ByType found;
        found.f32.clear();
        found.f64.clear();
        const bool all = each(grads, [&](const Slot& slot, const void* data) {
            if (slot.is_double) {
                found.f64.push_back(static_cast<const double*>(data));
            } else {
                found.f32.push_back(static_cast<const float*>(data));
            }
        });
        return all ? &found : nullptr;
    }

    // For gradients of float32 and float64; nothing if each() is false.
    std::optional<double> norm(const List& grads) const {
        std::vector<std::pair<const Slot*, const void*>> found;
        found.reserve(slots_.size());
        const auto keep = [&](const Slot& slot, const void* data) { found.emplace_back(&slot, data); };
        if (!each(grads, keep)) return std::nullopt;
        const std::size_t count = found.size();
        std::optional<Unlocked> release;
        if (large_) release.emplace();
        return root_of(core::total_of_squares(count, [&](std::size_t i) {
            const auto& [slot, data] = found[i];
            const auto n = static_cast<std::size_t>(slot->size);
            return slot->is_double ? core::sum_of_squares(n, static_cast<const double*>(data))
                                   : core::sum_of_squares(n, static_cast<const float*>(data));
        }));
    }

  private:
    const void* usable(PyObject* grad, const Slot& slot) const {
        const auto* p = py::detail::array_proxy(slot.param.ptr());
        if (p->data != slot.data || slot.param.size() != slot.size) return nullptr;  // resized
        if (!(p->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) return nullptr;
        const void* const data =
            py::detail::npy_api::get().PyArray_Check_(grad) ? of_array(grad, slot) : of_tensor(grad, slot);
        const auto bytes = static_cast<std::size_t>(slot.param.nbytes());
        return written_.meet(reinterpret_cast<std::uintptr_t>(data), bytes) ? nullptr : data;
    }
    static const void* of_array(PyObject* grad, const Slot& slot) {
        const auto* g = py::detail::array_proxy(grad);
        const auto* p = py::detail::array_proxy(slot.param.ptr());
        constexpr int kWanted =
            py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        // An unpickled array, or one with metadata, has a descriptor of its own.
        // Python refuses a masked array by its name.
        const bool has_no_mask = Py_TYPE(grad) == py::detail::npy_api::get().PyArray_Type_ ||
                                 PyObject_HasAttrString(grad, "mask") == 0;
        const bool same_type =
            g->descr == p->descr || py::detail::npy_api::get().PyArray_EquivTypes_(g->descr, p->descr);
        const bool fits = has_no_mask && same_type && g->nd == p->nd && (g->flags & kWanted) == kWanted &&
                          std::equal(g->dimensions, g->dimensions + g->nd, p->dimensions);
        return fits ? g->data : nullptr;
    }
    static const void* of_tensor(PyObject* grad, const Slot& slot) {
        const auto* p = py::detail::array_proxy(slot.param.ptr());
        dlpack::Tensor g;
        const bool fits = dlpack::view(grad, g) && g.device_type == dlpack::kCpu && g.code == slot.kind &&
                          g.bits == 8 * slot.param.itemsize() && g.ndim == p->nd &&
                          std::equal(g.shape, g.shape + g.ndim, p->dimensions);
        return fits ? g.contiguous() : nullptr;
    }

    std::vector<Slot> slots_;
    std::vector<py::array> claimed_;  // references that keep the arrays alive
    Intervals written_;
    bool large_ = false;
};

}  // namespace pyoptim::python
