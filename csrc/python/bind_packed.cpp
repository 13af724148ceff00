// Optimizer steps over arrays kept in 16 or 8 bits.
#include <pybind11/stl.h>

#include <iterator>
#include <tuple>
#include <vector>

#include "optim/packed_stepper.hpp"
#include "python/prepared.hpp"

namespace pyoptim::python {

namespace {

using cpu::Storage;

constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "signed8", "unsigned8"};
static_assert(std::size(kNames) == static_cast<int>(Storage::count), "a name per storage");

Storage storage_from(const std::string& name) {
    for (int i = 0; i < static_cast<int>(Storage::count); ++i) {
        if (kNames[i] == name) return static_cast<Storage>(i);
    }
    throw py::value_error("there is no storage named '" + name + "'");
}

// Is made once for a set of arrays, which the caller has checked; a step checks only its gradients.
class PackedStepper : public Prepared {
  public:
    using Stored = std::tuple<std::string, py::array, MaybeArray<float>>;  // kind, data, scale
    // Of each parameter: its group, the parameter, its master copy, its states.
    using Entry = std::tuple<std::size_t, Stored, MaybeArray<float>, std::vector<Stored>>;

    // rules: the name of each group's rule, in the order of the rows of coefficients.
    PackedStepper(const std::vector<std::string>& rules, const std::vector<Entry>& entries) {
        std::vector<std::size_t> begins;
        for (const auto& name : rules) {
            begins.push_back(coefficients_);
            add_group(rule_index(name));
        }
        for (const auto& [group, param, master, states] : entries) {
            require(group < rules_.size(), "group");
            const int rule = rules_[group];
            const py::array& data = std::get<1>(param);
            core::PackedStepper::Array array{};
            array.rule = rule;
            array.coefficients = begins[group];
            array.size = static_cast<std::size_t>(data.size());
            array.param = claim(param, data.size());
            array.grad = array.param.storage;
            require(static_cast<int>(states.size()) == kRules[rule].states, "states and the rule's names");
            array.states = kRules[rule].states;
            for (std::size_t k = 0; k < states.size(); ++k) array.state[k] = claim(states[k], data.size());
            if (master) {
                require(master->size() == data.size(), "master as its parameter");
                array.master = static_cast<float*>(gradients_.claim(*master));
            }
            stepper_.add(array);
            gradients_.expect(data);
        }
        gradients_.ready();
    }

    // Returns false, with nothing done, if Gradients::each does; the caller then finds out why.
    bool step(const Gradients::List& grads, const Rows& coefficients, std::uint32_t key,
              bool stochastic) const {
        const py::scoped_critical_section turn(turns_.key());
        std::vector<const void*> data;
        if (!addresses(grads, data)) return false;
        const std::vector<float>& rows = flatten<float>(coefficients, rules_);
        unlocked([&] { stepper_.step(data.data(), rows.data(), key, stochastic); });
        return true;
    }

    // The same as that of Prepared, for gradients in fewer bits.
    std::optional<double> norm(const Gradients::List& grads) const {
        std::vector<const void*> data;
        if (!addresses(grads, data)) return std::nullopt;
        return unlocked([&] { return std::sqrt(stepper_.sum_of_squares(data.data())); });
    }

  private:
    bool addresses(const Gradients::List& grads, std::vector<const void*>& data) const {
        data.reserve(gradients_.size());
        return gradients_.each(grads, [&](const Gradients::Slot&, const void* at) { data.push_back(at); });
    }

    core::Packed claim(const Stored& stored, py::ssize_t size) {
        const auto& [kind, data, scale] = stored;
        const Storage storage = storage_from(kind);
        const bool scaled = storage == Storage::signed8 || storage == Storage::unsigned8;
        const auto block = static_cast<py::ssize_t>(cpu::kScaleBlock);
        require(data.size() == size && static_cast<std::size_t>(data.itemsize()) == core::width_of(storage) &&
                    (data.flags() & py::array::c_style) == py::array::c_style,
                "stored values");
        require(scaled == scale.has_value() && (!scaled || scale->size() == (size + block - 1) / block),
                "a scale per block, in 8 bits");
        core::Packed packed{storage, gradients_.claim(data), nullptr};
        if (scaled) packed.scale = static_cast<float*>(gradients_.claim(*scale));
        return packed;
    }

    core::PackedStepper stepper_;
};

}  // namespace

void bind_packed(py::module_& m) {
    py::class_<PackedStepper>(m, "PackedStepper")
        .def(py::init<const std::vector<std::string>&, const std::vector<PackedStepper::Entry>&>(),
             py::arg("rules"), py::arg("entries"))
        .def("step", &PackedStepper::step, py::arg("grads"), py::arg("coefficients"), py::arg("key"),
             py::arg("stochastic"))
        .def("norm", &PackedStepper::norm, py::arg("grads"));
}

}  // namespace pyoptim::python
