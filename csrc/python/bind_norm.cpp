// Normalisation. Every function takes its outputs as arguments; None skips one that is optional.
#include <pybind11/stl.h>

#include "layers/layer_norm.hpp"
#include "layers/norm.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

namespace {

template <class T>
core::NormShape norm_shape(const Array<T>& x) {
    require(x.ndim() == 3, "x (batch, channels, space)");
    return {x.shape(0), x.shape(1), x.shape(2)};
}

template <class T>
void norm_forward(const Array<T>& x, const MaybeArray<T>& gamma, const MaybeArray<T>& beta,
                  MaybeArray<T> running_mean, MaybeArray<T> running_var, bool training, double momentum,
                  double eps, bool unbiased, bool relu, Array<T> y, Array<T> mean, Array<T> inv_std) {
    const auto shape = norm_shape(x);
    require(has_size(gamma, shape.channels) && has_size(beta, shape.channels) &&
                has_size(running_mean, shape.channels) && has_size(running_var, shape.channels) &&
                running_mean.has_value() == running_var.has_value() && y.size() == x.size() &&
                mean.size() == shape.channels && inv_std.size() == shape.channels,
            "gamma, beta, running_mean, running_var, mean, inv_std (channels), y as x");
    // In evaluation the running statistics may be read-only.
    const auto writeable = [training](MaybeArray<T>& array) {
        return training ? mutable_data_or_null(array) : const_cast<T*>(data_or_null(array));
    };
    const core::NormRunning<T> running{writeable(running_mean), writeable(running_var)};
    T* out[] = {y.mutable_data(), mean.mutable_data(), inv_std.mutable_data()};
    py::gil_scoped_release release;
    core::norm_forward<T>(shape, x.data(), {data_or_null(gamma), data_or_null(beta)}, running,
                          {momentum, eps, training, unbiased, relu}, out[0], out[1], out[2]);
}

template <class T>
void norm_backward(const Array<T>& dy, const Array<T>& x, const MaybeArray<T>& gamma,
                   const MaybeArray<T>& beta, const Array<T>& mean, const Array<T>& inv_std,
                   bool of_this_batch, bool relu, MaybeArray<T> dx, Array<T> dgamma, Array<T> dbeta) {
    const auto shape = norm_shape(x);
    require(dy.size() == x.size() && mean.size() == shape.channels && inv_std.size() == shape.channels &&
                has_size(gamma, shape.channels) && has_size(beta, shape.channels) && has_size(dx, x.size()) &&
                dgamma.size() == shape.channels && dbeta.size() == shape.channels,
            "dy and dx as x; gamma, beta, mean, inv_std, dgamma, dbeta (channels)");
    T* out[] = {mutable_data_or_null(dx), dgamma.mutable_data(), dbeta.mutable_data()};
    py::gil_scoped_release release;
    core::norm_backward<T>(shape, dy.data(), x.data(), {data_or_null(gamma), data_or_null(beta)},
                           {mean.data(), inv_std.data(), of_this_batch, relu}, out[0], out[1], out[2]);
}

template <class T>
core::LayerNormShape layer_shape(const Array<T>& x) {
    require(x.ndim() == 2 && x.shape(1) > 0, "x (rows, features)");
    return {x.shape(0), x.shape(1)};
}

template <class T>
void layer_norm_forward(const Array<T>& x, const MaybeArray<T>& gamma, const MaybeArray<T>& beta, double eps,
                        Array<T> y, Array<T> mean, Array<T> inv_std) {
    const auto shape = layer_shape(x);
    require(has_size(gamma, shape.features) && has_size(beta, shape.features) && y.size() == x.size() &&
                mean.size() == shape.rows && inv_std.size() == shape.rows,
            "gamma, beta (features), mean, inv_std (rows), y as x");
    T* out[] = {y.mutable_data(), mean.mutable_data(), inv_std.mutable_data()};
    py::gil_scoped_release release;
    core::layer_norm_forward<T>(shape, x.data(), data_or_null(gamma), data_or_null(beta), eps, out[0], out[1],
                                out[2]);
}

template <class T>
void layer_norm_backward(const Array<T>& dy, const Array<T>& x, const MaybeArray<T>& gamma,
                         const Array<T>& mean, const Array<T>& inv_std, MaybeArray<T> dx, Array<T> dgamma,
                         Array<T> dbeta) {
    const auto shape = layer_shape(x);
    require(dy.size() == x.size() && mean.size() == shape.rows && inv_std.size() == shape.rows &&
                has_size(gamma, shape.features) && has_size(dx, x.size()) &&
                dgamma.size() == shape.features && dbeta.size() == shape.features,
            "dy and dx as x; gamma, dgamma, dbeta (features); mean, inv_std (rows)");
    T* out[] = {mutable_data_or_null(dx), dgamma.mutable_data(), dbeta.mutable_data()};
    py::gil_scoped_release release;
    core::layer_norm_backward<T>(shape, {dy.data(), x.data(), mean.data(), inv_std.data()},
                                 data_or_null(gamma), out[0], out[1], out[2]);
}

// Arguments are never converted: a copy would swallow the output.
template <class T>
void bind_for(py::module_& m) {
    const auto a = [](const char* name) { return py::arg(name).noconvert(); };
    m.def("norm_forward", &norm_forward<T>, a("x"), a("gamma").none(true), a("beta").none(true),
          a("running_mean").none(true), a("running_var").none(true), py::arg("training"), py::arg("momentum"),
          py::arg("eps"), py::arg("unbiased"), py::arg("relu"), a("y"), a("mean"), a("inv_std"));
    m.def("norm_backward", &norm_backward<T>, a("dy"), a("x"), a("gamma").none(true), a("beta").none(true),
          a("mean"), a("inv_std"), py::arg("of_this_batch"), py::arg("relu"), a("dx").none(true), a("dgamma"),
          a("dbeta"));
    m.def("layer_norm_forward", &layer_norm_forward<T>, a("x"), a("gamma").none(true), a("beta").none(true),
          py::arg("eps"), a("y"), a("mean"), a("inv_std"));
    m.def("layer_norm_backward", &layer_norm_backward<T>, a("dy"), a("x"), a("gamma").none(true), a("mean"),
          a("inv_std"), a("dx").none(true), a("dgamma"), a("dbeta"));
}

}  // namespace

void bind_norm(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
}

}  // namespace pyoptim::python
