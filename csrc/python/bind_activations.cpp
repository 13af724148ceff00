// Activations: outputs are arguments.
#include <pybind11/typing.h>

#include "layers/activation_names.hpp"
#include "layers/activations.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

namespace {

template <class T>
void activation_forward(const std::string& kind, const Array<T>& x, Array<T> y, double a, double b) {
    require(x.size() == y.size(), "y as x");
    const ActivationSpec it{core::any_activation_named(kind), a, b};
    const auto n = static_cast<std::size_t>(x.size());
    const T* const in = x.data();
    T* out = y.mutable_data();
    Unlocked release;
    core::activation_forward(it, n, in, out);
}

template <class T>
void activation_backward(const std::string& kind, const Array<T>& dy, const Array<T>& kept, Array<T> dx,
                         double a, double b) {
    require(dy.size() == kept.size() && dx.size() == kept.size(), "dy and dx as what was kept");
    const ActivationSpec it{core::any_activation_named(kind), a, b};
    const auto n = static_cast<std::size_t>(kept.size());
    const T* in[] = {dy.data(), kept.data()};
    T* out = dx.mutable_data();
    Unlocked release;
    core::activation_backward(it, n, in[0], in[1], out);
}

template <class T>
void softmax_forward(bool log, const Array<T>& x, Array<T> y) {
    require(x.ndim() == 2 && x.size() == y.size(), "x (rows, classes), y as x");
    const py::ssize_t rows = x.shape(0), classes = x.shape(1);
    const T* const in = x.data();
    T* out = y.mutable_data();
    Unlocked release;
    core::softmax_forward(log, rows, classes, in, out);
}

template <class T>
void softmax_backward(bool log, const Array<T>& dy, const Array<T>& y, Array<T> dx) {
    require(y.ndim() == 2 && dy.size() == y.size() && dx.size() == y.size(),
            "y (rows, classes), others as y");
    const py::ssize_t rows = y.shape(0), classes = y.shape(1);
    const T* in[] = {dy.data(), y.data()};
    T* out = dx.mutable_data();
    Unlocked release;
    core::softmax_backward(log, rows, classes, in[0], in[1], out);
}

template <class T>
void bind_for(py::module_& m) {
    m.def("activation_forward", &activation_forward<T>, py::arg("kind"), exact("x"), exact("y"),
          py::arg("a") = 0.0, py::arg("b") = 0.0);
    m.def("activation_backward", &activation_backward<T>, py::arg("kind"), exact("dy"), exact("kept"),
          exact("dx"), py::arg("a") = 0.0, py::arg("b") = 0.0);
    m.def("softmax_forward", &softmax_forward<T>, py::arg("log"), exact("x"), exact("y"));
    m.def("softmax_backward", &softmax_backward<T>, py::arg("log"), exact("dy"), exact("y"), exact("dx"));
}

}  // namespace

void bind_activations(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
    m.def(
        "activation_kinds",
        [] {
            py::typing::Dict<py::str, py::bool_> kinds;
            for (int i = 0; i < static_cast<int>(Activation::count); ++i) {
                kinds[core::kActivationNames[i]] = core::keeps_input(static_cast<Activation>(i));
            }
            return kinds;
        },
        "The name of each activation, and whether it keeps its input (else its output) for the backward "
        "pass.");
}

}  // namespace pyoptim::python
