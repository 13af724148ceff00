// The hyperparameters of a parameter group, read from Python's dictionary once and again where they change,
// so that a step of a few thousand elements need not read them all.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "pyoptim/optimizer.hpp"
#include "python/turns.hpp"

namespace pyoptim::python {

namespace py = pybind11;

// One group of an optimizer that has the same class in C++. It keeps no reference to the dictionary nor to a
// learning rate, which may lead back to the optimizer: the garbage collector does not look in here.
class HeldGroup {
  public:
    // name: that of the class in lower case; group: the dictionary, for the names in it.
    HeldGroup(const std::string& name, const py::dict& group) : optimizer_(make_optimizer<double>(name, 0)) {
        const std::vector<Option> options = optimizer_->options();
        for (const auto& [key, value] : group) {
            const auto own = key.cast<std::string>();
            if (own == "lr") lr_ = entries_.size();
            Entry entry{py::reinterpret_borrow<py::object>(key), py::object(), std::nullopt};
            if (own == "params") entry.value = py::reinterpret_borrow<py::object>(value);
            for (const Option& option : options) {
                if (option.name == own) entry.option = option;
            }
            entries_.push_back(std::move(entry));
        }
    }

    const Row& row() const { return row_; }  // of the step whose coefficients `next` has found

    // How a step asks Python for a learning rate that is not a float.
    struct Rates {
        py::object at;                    // function of (lr, step, epoch)
        const py::object& epoch;          // epochs done
        std::function<bool()> may_begin;  // whether the step will be made unless the rate stops it
    };

    // Whether the group's hyperparameters, but for the learning rate, can be held and choose this rule.
    bool is_ready(PyObject* group, const char* rule) {
        const py::scoped_critical_section unchanged(group);  // while this reads it
        return PyDict_Check(group) && (is_current(group) || read(group, rule));
    }

    // Finds the coefficients of the step after that of these scalars; group and scalars are dictionaries.
    // Returns false where only Python knows them, or the reason why there are none.
    bool next(PyObject* group, PyObject* scalars, const char* rule, const Rates& rates) {
        if (!PyDict_Check(group) || !PyDict_Check(scalars)) return false;
        const py::scoped_critical_section unchanged(group, scalars);  // while this reads them
        PyObject* const step = PyDict_GetItemWithError(scalars, names().step.ptr());
        PyObject* const product = PyDict_GetItemWithError(scalars, names().mu_product.ptr());
        // A reference of its own, since Python may run before it is called.
        const auto lr = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(group, names().lr.ptr()));
        if (step == nullptr || !lr || !PyLong_CheckExact(step)) return false;
        Progress last;
        last.step = PyLong_AsLongLong(step);
        if (product != nullptr) last.mu_product = PyFloat_AsDouble(product);
        if (PyErr_Occurred()) throw py::error_already_set();
        double rate = 0;
        if (PyFloat_CheckExact(lr.ptr())) {
            rate = PyFloat_AS_DOUBLE(lr.ptr());
        } else {
            // A function is asked once a step, so only when nothing else stands against this one.
            if (!rates.may_begin() || !is_ready(group, rule)) return false;
            rate = rates.at(lr, last.step + 1, rates.epoch).cast<double>();
        }
        if (!is_ready(group, rule)) return false;  // the function may have changed other hyperparameters
        optimizer_->lr = rate;
        try {
            row_ = optimizer_->next(last, progress_);
        } catch (const std::invalid_argument&) {
            return false;  // Python says it in its own words
        }
        return true;
    }

    // Writes the scalars after the step whose coefficients `next` has found.
    void advance(PyObject* scalars) const {
        const auto set = [&](const py::str& name, const py::object& value) {
            if (PyDict_SetItem(scalars, name.ptr(), value.ptr()) != 0) throw py::error_already_set();
        };
        set(names().step, py::int_(progress_.step));
        if (PyDict_GetItemWithError(scalars, names().mu_product.ptr()) != nullptr) {
            set(names().mu_product, py::float_(progress_.mu_product));
        }
    }

  private:
    struct Names {
        py::str step = intern("step"), mu_product = intern("mu_product"), lr = intern("lr");
        static py::str intern(const char* name) {
            return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name));
        }
    };
    static const Names& names() {
        static const Names& all = *new Names;  // never destroyed: Python may be gone by then
        return all;
    }

    // Whether the dictionary has the keys and the values that are held, in the same order. The learning rate
    // may be any.
    bool is_current(PyObject* group) const {
        Py_ssize_t at = 0;
        PyObject *key = nullptr, *value = nullptr;
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (!PyDict_Next(group, &at, &key, &value) || key != entries_[i].key.ptr()) return false;
            if (value != entries_[i].value.ptr() && i != lr_) return false;
        }
        return !PyDict_Next(group, &at, &key, &value);
    }

    // Reads the values that have changed. Returns false, so that the next step reads them again, if one
    // cannot be held, or if they no longer choose this rule.
    bool read(PyObject* group, const char* rule) {
        std::vector<py::object> values;
        const auto given = py::reinterpret_borrow<py::dict>(group);
        for (const auto& [key, value] : given) {
            const std::size_t i = values.size();
            if (i == entries_.size() || !entries_[i].key.is(key)) return false;
            values.push_back(i == lr_ ? py::object() : py::reinterpret_borrow<py::object>(value));
            Entry& entry = entries_[i];
            if (i == lr_ || entry.value.is(value)) continue;
            entry.value = py::object();
            if (!entry.option || !take(*entry.option, value.ptr())) return false;
        }
        if (values.size() != entries_.size()) return false;
        try {
            // Python's twin knows which options do not go together.
            const py::object chosen = given.attr("_rule")(given);
            if (chosen.cast<std::string>() != rule || std::strcmp(optimizer_->rule(), rule) != 0)
                return false;
        } catch (const py::error_already_set& error) {
            if (!error.matches(PyExc_Exception)) throw;  // the user's Ctrl-C
            return false;
        }
        for (std::size_t k = 0; k < values.size(); ++k) entries_[k].value = std::move(values[k]);
        return true;
    }

    // Whether this is a number that C++ computes with as Python does, whose integers have no limit.
    static bool number(PyObject* value, double& out) {
        constexpr double kLargest = 1 << 30;
        if (PyFloat_CheckExact(value)) {
            out = PyFloat_AS_DOUBLE(value);
            return true;
        }
        if (!PyLong_CheckExact(value)) return false;
        out = PyLong_AsDouble(value);
        if (PyErr_Occurred()) {  // an integer beyond all doubles
            PyErr_Clear();
            return false;
        }
        return out > -kLargest && out < kLargest;
    }

    static bool within(const Range& range, double value) { return value >= range.low && value <= range.high; }

    static bool take_pair(PyObject* value, const PairRange& range, Pair& pair) {
        return PyTuple_CheckExact(value) && PyTuple_GET_SIZE(value) == 2 &&
               number(PyTuple_GET_ITEM(value, 0), pair[0]) && number(PyTuple_GET_ITEM(value, 1), pair[1]) &&
               within(range.first, pair[0]) && within(range.second, pair[1]);
    }

    static bool take(Option& option, PyObject* value) {
        if (auto* const at = std::get_if<double*>(&option.value)) {
            if (value == Py_None && option.name == "momentum_decay") {
                **at = -1;
                return true;
            }
            return number(value, **at) && within(option.range, **at);
        }
        if (auto* const at = std::get_if<bool*>(&option.value)) {
            **at = value == Py_True;
            return PyBool_Check(value);
        }
        if (auto* const at = std::get_if<Pair*>(&option.value)) {
            return take_pair(value, option.pair_range, **at);
        }
        Choice& choice = **std::get_if<Choice*>(&option.value);
        if (!PyUnicode_CheckExact(value)) return false;
        choice.second = PyUnicode_CompareWithASCIIString(value, choice.words[1]) == 0;
        return choice.second || PyUnicode_CompareWithASCIIString(value, choice.words[0]) == 0;
    }

    // What the dictionary has, in its order. Values are held once they have been read, as objects that never
    // change, so that it is enough to compare their addresses.
    struct Entry {
        py::object key, value;
        std::optional<Option> option;  // none for "params"
    };
    std::unique_ptr<Optimizer<double>> optimizer_;
    std::vector<Entry> entries_;
    std::size_t lr_ = 0;  // the index of the learning rate, which is read at every step
    Row row_ = {};
    Progress progress_;
};

}  // namespace pyoptim::python
