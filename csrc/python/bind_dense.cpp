// Dense layers. Every function takes its outputs as arguments; None skips one that is optional.
#include <pybind11/stl.h>

#include "layers/activation_names.hpp"
#include "layers/dense.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

namespace {

using cpu::Activation;

template <class T>
core::DenseShape dense_shape(const Array<T>& x, const Array<T>& weight, const Array<T>& y) {
    require(x.ndim() == 2 && weight.ndim() == 2 && y.ndim() == 2 && x.shape(1) == weight.shape(1) &&
                y.shape(0) == x.shape(0) && y.shape(1) == weight.shape(0),
            "x (batch, in), weight (out, in), y (batch, out)");
    return {x.shape(0), x.shape(1), weight.shape(0)};
}

template <class T>
void dense_forward(const Array<T>& x, const Array<T>& weight, const MaybeArray<T>& bias,
                   const std::optional<std::string>& activation, Array<T> y) {
    const auto shape = dense_shape(x, weight, y);
    require(has_size(bias, shape.out), "bias (out)");
    const Activation kind = core::activation_named(activation.value_or(""));
    const T* in[] = {x.data(), weight.data(), data_or_null(bias)};
    T* out = y.mutable_data();
    Unlocked release;
    core::dense_forward(shape, in[0], in[1], in[2], kind, out);
}

template <class T>
void dense_backward(const Array<T>& dy, const Array<T>& x, const Array<T>& weight, const MaybeArray<T>& y,
                    const std::optional<std::string>& activation, MaybeArray<T> dx, MaybeArray<T> dweight,
                    MaybeArray<T> dbias) {
    const auto shape = dense_shape(x, weight, dy);
    require(has_size(dx, x.size()) && has_size(dweight, weight.size()) && has_size(dbias, shape.out) &&
                has_size(y, dy.size()),
            "dx as x, dweight as weight, dbias (out), y as dy");
    const Activation kind = core::activation_named(activation.value_or(""));
    require(y || kind == Activation::identity, "an activation and its output y");
    const core::DenseInputs<T> of = {dy.data(), x.data(), weight.data(), data_or_null(y), kind};
    const core::DenseGradients<T> to = {mutable_data_or_null(dx), mutable_data_or_null(dweight),
                                        mutable_data_or_null(dbias)};
    Unlocked release;
    core::dense_backward(shape, of, to);
}

template <class T>
void bind_for(py::module_& m) {
    m.def("dense_forward", &dense_forward<T>, exact("x"), exact("weight"), exact_or_none("bias"),
          py::arg("activation").none(true), exact("y"));
    m.def("dense_backward", &dense_backward<T>, exact("dy"), exact("x"), exact("weight"), exact_or_none("y"),
          py::arg("activation").none(true), exact_or_none("dx"), exact_or_none("dweight"),
          exact_or_none("dbias"));
}

}  // namespace

void bind_dense(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
}

}  // namespace pyoptim::python
