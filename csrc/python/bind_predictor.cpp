// Predictions by a model whose arrays Python owns.
#include <pybind11/stl.h>

#include "engine/predictor.hpp"
#include "python/bound_chain.hpp"

namespace pyoptim::python {

namespace {

template <class T>
class Predictor {
  public:
    explicit Predictor(const Model<T>& model) : chain_(model), predictor_(chain_.views()) {}

    // Returns whether all of x is finite; if not, y is unspecified.
    bool predict(const py::array& x, Array<T> y) {
        const auto examples = static_cast<std::size_t>(x.ndim() > 0 ? x.shape(0) : 0);
        require(static_cast<std::size_t>(x.size()) == examples * predictor_.inputs() &&
                    static_cast<std::size_t>(y.size()) == examples * predictor_.outputs(),
                "x and the inputs, y and the outputs");
        typename core::Predictor<T>::Batch batch{examples, nullptr, nullptr, y.mutable_data()};
        if (py::isinstance<Array<std::uint8_t>>(x)) {
            batch.bytes = static_cast<const std::uint8_t*>(x.data());
        } else {
            require(py::isinstance<Array<T>>(x), "x is of another type");
            batch.x = static_cast<const T*>(x.data());
        }
        py::gil_scoped_release release;
        return predictor_.predict(batch, true);
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
