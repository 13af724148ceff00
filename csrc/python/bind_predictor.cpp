// Predictions by a model whose arrays Python owns.
#include <pybind11/stl.h>

#include <algorithm>

#include "engine/predictor.hpp"
#include "python/bound_chain.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim::python {

namespace {

constexpr std::size_t kWork = std::size_t{1} << 31;  // multiply-adds between two looks for signals

template <class T>
class Predictor {
  public:
    explicit Predictor(const Model<T>& model) : chain_(model), predictor_(chain_.views()) {}

    // Returns whether all of x is finite; if not, y is unspecified. Signals are served
    // between pieces of about 20 ms.
    bool predict(const py::array& x, Array<T> y) {
        const auto examples = static_cast<std::size_t>(x.ndim() > 0 ? x.shape(0) : 0);
        require(
            static_cast<std::size_t>(x.size()) == core::checked_product("x", examples, predictor_.inputs()) &&
                static_cast<std::size_t>(y.size()) ==
                    core::checked_product("y", examples, predictor_.outputs()),
            "x and the inputs, y and the outputs");
        const bool is_bytes = py::isinstance<Array<std::uint8_t>>(x);
        require(is_bytes || py::isinstance<Array<T>>(x), "x is of another type");
        const T* const values = is_bytes ? nullptr : static_cast<const T*>(x.data());
        const auto* const bytes = is_bytes ? static_cast<const std::uint8_t*>(x.data()) : nullptr;
        T* const out = y.mutable_data();
        const std::size_t most = predictor_.needs_whole() ? examples : kWork / predictor_.work() + 128;
        for (std::size_t begin = 0; begin < examples; begin += most) {
            const std::size_t n = std::min(most, examples - begin), at = begin * predictor_.inputs();
            {
                Unlocked release;
                if (!predictor_.predict({n, is_bytes ? nullptr : values + at, is_bytes ? bytes + at : nullptr,
                                         out + begin * predictor_.outputs()},
                                        examples, true)) {
                    return false;
                }
            }
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        }
        return true;
    }

  private:
    BoundChain<T> chain_;
    core::Predictor<T> predictor_;
};

template <class T>
void bind_for(py::module_& m, const char* name) {
    py::class_<Predictor<T>>(m, name)
        .def(py::init<const Model<T>&>(), py::arg("model"))
        .def("predict", &Predictor<T>::predict, py::arg("x"), exact("y"));
}

}  // namespace

void bind_predictor(py::module_& m) {
    bind_for<float>(m, "Predictor32");
    bind_for<double>(m, "Predictor64");
}

}  // namespace pyoptim::python
