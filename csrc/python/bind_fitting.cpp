// Checks all arrays of a call and makes its results, in one native call: see fitting in
// pyoptim/arrays/fitting.py.
#include <pybind11/typing.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "python/plain.hpp"

namespace pyoptim::python {

namespace {

using Length = Py_intptr_t;

// The lengths that a letter stands for.
struct Lengths {
    static constexpr int kMost = 8;  // dimensions of an array; one with more takes the longer way
    int count = -1;                  // unknown yet
    Length each[kMost];

    bool are(const Length* of, int n) const { return n == count && std::equal(of, of + n, each); }
    void become(const Length* of, int n) {
        count = n;
        std::copy(of, of + n, each);
    }
    Length product() const {
        Length all = 1;
        for (int i = 0; i < count; ++i) {  // NumPy refuses the most that there is, as what comes beyond it
            if (__builtin_mul_overflow(all, each[i], &all)) return std::numeric_limits<Length>::max();
        }
        return all;
    }
};

// A letter of a pattern.
struct Letter {
    std::size_t index;  // among the letters of the pattern
    bool is_group;      // of any number of dimensions, else of one
    bool joined;        // the dimensions become one
};

// What an argument must be, or a result becomes.
struct Item {
    std::vector<Letter> letters;
    bool is_shape = false, may_be_none = false, written = false, at_least_zero = false;
    std::optional<std::size_t> classes;  // the letter of their number, if the array holds labels
};

class Fitting {
  public:
    explicit Fitting(const std::string& pattern) {
        const std::size_t arrow = pattern.find("->");
        check(arrow != std::string::npos, "it has no arrow");
        std::string letters;
        items_ = items_of(pattern.substr(0, arrow), letters);
        results_ = items_of(pattern.substr(arrow + 2), letters);
        check_items();
    }

    // A new reference to the results: an array, or a tuple of several. None where an argument does not fit.
    // Null, with an error set, if there is no memory.
    PyObject* operator()(PyObject* const* args, Py_ssize_t count) const {
        Lengths lengths[kMostLetters];
        PyObject* type = nullptr;  // the float type of all arrays
        require(count == static_cast<Py_ssize_t>(items_.size()), "arguments and their pattern");
        for (Py_ssize_t i = 0; i < count; ++i) {
            if (!fits(items_[static_cast<std::size_t>(i)], args[i], lengths, type)) Py_RETURN_NONE;
        }
        for (Py_ssize_t i = 0; i < count; ++i) {
            if (items_[static_cast<std::size_t>(i)].written && !is_apart(i, args, count)) Py_RETURN_NONE;
        }
        if (results_.size() == 1) return made(results_[0], lengths, type);
        const auto all =
            py::reinterpret_steal<py::object>(PyTuple_New(static_cast<Py_ssize_t>(results_.size())));
        if (!all) return nullptr;
        for (std::size_t i = 0; i < results_.size(); ++i) {
            PyObject* const array = made(results_[i], lengths, type);
            if (array == nullptr) return nullptr;
            PyTuple_SET_ITEM(all.ptr(), static_cast<Py_ssize_t>(i), array);
        }
        return all.inc_ref().ptr();
    }

  private:
    static constexpr std::size_t kMostLetters = 4;

    static void check(bool is_sound, const char* what) {
        if (!is_sound) throw py::value_error(std::string("the pattern is wrong: ") + what);
    }

    // Calls rely on what this checks.
    void check_items() const {
        bool known[kMostLetters] = {}, has_type = false;
        for (const Item& item : items_) {
            check(!item.letters.empty(), "an argument has no letters");
            const bool is_plain_array = !item.written && !item.at_least_zero;
            check(!item.is_shape || (item.letters.size() == 1 && !item.letters[0].joined && is_plain_array),
                  "a shape is more than = and a letter");
            check(!item.classes || (!item.is_shape && known[*item.classes]),
                  "labels come before the number of their classes");
            if (item.may_be_none) continue;
            for (const Letter& letter : item.letters) {
                known[letter.index] = known[letter.index] || !letter.joined;
            }
            has_type = has_type || (!item.is_shape && !item.classes);
        }
        check(has_type, "no array has the type of the results");
        for (const Item& item : results_) {
            check(
                !item.is_shape && !item.may_be_none && !item.written && !item.at_least_zero && !item.classes,
                "a result has a mark");
            for (const Letter& letter : item.letters) {
                check(known[letter.index], "a result has a letter that no argument must have");
            }
        }
    }

    // The items of one side of a pattern, and the letters that it has beside those found before.
    static std::vector<Item> items_of(const std::string& text, std::string& letters) {
        std::vector<Item> items(1);
        bool joined = false, names_classes = false;
        for (const char c : text) {
            Item& item = items.back();
            switch (c) {
                case ' ':
                    break;
                case ',':
                    check(!joined && !names_classes, "an item ends too early");
                    items.emplace_back();
                    break;
                case '=':
                    item.is_shape = true;
                    break;
                case '?':
                    item.may_be_none = true;
                    break;
                case '!':
                    item.written = true;
                    break;
                case '+':
                    item.at_least_zero = true;
                    break;
                case '(':
                case ')':
                    check(joined == (c == ')'), "a parenthesis has no other");
                    joined = !joined;
                    break;
                case '<':
                    names_classes = true;
                    break;
                default:
                    const bool is_group = c >= 'A' && c <= 'Z';
                    check(is_group || (c >= 'a' && c <= 'z'), "a character has no meaning");
                    if (letters.find(c) == std::string::npos) letters += c;
                    check(letters.size() <= kMostLetters, "it has more than four letters");
                    if (std::exchange(names_classes, false)) {
                        check(!is_group, "classes have more than one dimension");
                        item.classes = letters.find(c);
                    } else {
                        item.letters.push_back({letters.find(c), is_group, joined});
                    }
            }
        }
        check(!joined && !names_classes, "an item ends too early");
        return items;
    }

    static bool fits(const Item& item, PyObject* arg, Lengths* lengths, PyObject*& type) {
        if (item.may_be_none && arg == Py_None) return true;
        if (item.is_shape) return is_shape(arg, lengths[item.letters[0].index]);
        if (Py_TYPE(arg) != py::detail::npy_api::get().PyArray_Type_) return false;  // it may have a mask
        const auto* const array = py::detail::array_proxy(arg);
        constexpr int kWanted =
            py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        if ((array->flags & kWanted) != kWanted) return false;
        if (item.written && !(array->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) return false;
        if (!has_shape(item, array->dimensions, array->nd, lengths)) return false;
        if (item.classes) {
            const auto last = static_cast<double>(lengths[*item.classes].each[0] - 1);
            return array->descr == descriptor<std::int64_t>() && !has_outside<std::int64_t>(arg, last);
        }
        const bool is_float = array->descr == descriptor<float>();
        if (type == nullptr && (is_float || array->descr == descriptor<double>())) type = array->descr;
        if (array->descr != type) return false;
        if (!item.at_least_zero) return true;
        return is_float ? !has_outside<float>(arg, std::numeric_limits<float>::max())
                        : !has_outside<double>(arg, std::numeric_limits<double>::max());
    }

    // Whether an element is not from 0 to `most`.
    template <class T>
    static bool has_outside(PyObject* array, double most) {
        return any_outside_of<T>(py::reinterpret_borrow<py::array>(array), 0, most);
    }

    // Whether this is a positive integer, or a tuple of them, which `shape` becomes.
    static bool is_shape(PyObject* arg, Lengths& shape) {
        const bool is_tuple = PyTuple_CheckExact(arg);
        const Py_ssize_t count = is_tuple ? PyTuple_GET_SIZE(arg) : 1;
        if (count < 1 || count > Lengths::kMost) return false;
        Length found[Lengths::kMost];
        for (Py_ssize_t i = 0; i < count; ++i) {
            PyObject* const number = is_tuple ? PyTuple_GET_ITEM(arg, i) : arg;
            if (!PyLong_CheckExact(number)) return false;
            found[i] = PyLong_AsSsize_t(number);
            if (found[i] == -1 && PyErr_Occurred()) PyErr_Clear();  // one beyond all lengths
            if (found[i] < 1) return false;
        }
        shape.become(found, static_cast<int>(count));
        return true;
    }

    // Whether the array has the lengths of the letters, of which those that are not known become known.
    static bool has_shape(const Item& item, const Length* shape, int count, Lengths* lengths) {
        int left = count;  // for a group that is not known yet
        for (const Letter& letter : item.letters) {
            left -= letter.is_group && !letter.joined ? std::max(lengths[letter.index].count, 0) : 1;
        }
        if (left < 0) return false;
        for (int i = 0; i < count; ++i) {
            if (shape[i] == 0) return false;  // each function says what it makes of no elements
        }
        const Length* const end = shape + count;
        for (const Letter& letter : item.letters) {
            Lengths& known = lengths[letter.index];
            if (letter.joined) {
                if (shape == end || known.count < 0 || *shape++ != known.product()) return false;
                continue;
            }
            int own = letter.is_group ? known.count : 1;
            if (own < 0) own = std::exchange(left, 0);
            if (end - shape < own || own > Lengths::kMost) return false;
            if (known.count < 0) {
                known.become(shape, own);
            } else if (!known.are(shape, own)) {
                return false;
            }
            shape += own;
        }
        return shape == end;
    }

    // Whether the array's memory overlaps that of no other; all are contiguous.
    bool is_apart(Py_ssize_t which, PyObject* const* args, Py_ssize_t count) const {
        if (args[which] == Py_None) return true;
        const auto own = py::reinterpret_borrow<py::array>(args[which]);
        const auto* const begin = static_cast<const char*>(own.data());
        for (Py_ssize_t i = 0; i < count; ++i) {
            if (i == which || args[i] == Py_None || items_[static_cast<std::size_t>(i)].is_shape) continue;
            const auto other = py::reinterpret_borrow<py::array>(args[i]);
            const auto* const data = static_cast<const char*>(other.data());
            if (data < begin + own.nbytes() && begin < data + other.nbytes()) return false;
        }
        return true;
    }

    // A new array without values.
    static PyObject* made(const Item& item, Lengths* lengths, PyObject* type) {
        Length shape[32];
        int count = 0;
        for (const Letter& letter : item.letters) {
            const Lengths& known = lengths[letter.index];
            require(count + (letter.joined ? 1 : known.count) <= 32, "a result and the most dimensions");
            if (letter.joined) {
                shape[count++] = known.product();
            } else {
                std::copy(known.each, known.each + known.count, shape + count);
                count += known.count;
            }
        }
        const auto& numpy = py::detail::npy_api::get();
        Py_INCREF(type);  // NumPy takes a reference
        return numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, type, count, shape, nullptr, nullptr, 0,
                                           nullptr);
    }

    std::vector<Item> items_, results_;
};

PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    try {
        return (*static_cast<const Fitting*>(PyCapsule_GetPointer(self, nullptr)))(args, count);
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
        return nullptr;
    }
}

// A function of CPython's own kind: pybind11's take as long to find their arguments as this takes to check
// them.
py::typing::Callable<py::object(py::ellipsis)> fitting(const std::string& pattern) {
    static PyMethodDef method = {"fitting", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
                                 METH_FASTCALL, nullptr};
    auto made = std::make_unique<Fitting>(pattern);
    const py::capsule owner(made.get(), [](void* it) { delete static_cast<Fitting*>(it); });
    made.release();
    return py::reinterpret_steal<py::object>(PyCFunction_New(&method, owner.ptr()));
}

}  // namespace

void bind_fitting(py::module_& m) { m.def("fitting", &fitting, py::arg("pattern")); }

}  // namespace pyoptim::python
