// Normalisation. Every function takes its outputs as arguments; None in place of an array skips it.
#include <pybind11/stl.h>

#include <functional>
#include <numeric>
#include <tuple>
#include <utility>

#include "layers/layer_norm.hpp"
#include "layers/norm.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

namespace {

template <class T>
core::NormShape norm_shape(const Array<T>& x) {
    require(x.ndim() >= 2, "x (batch, channels, *space)");
    const auto* const shape = x.shape();
    return {shape[0], shape[1],
            std::accumulate(shape + 2, shape + x.ndim(), py::ssize_t{1}, std::multiplies<>())};
}

// gamma and beta, or running statistics.
template <class T>
using Pair = std::pair<MaybeArray<T>, MaybeArray<T>>;
// The mean and the inverse standard deviation.
template <class T>
using Saved = std::pair<Array<T>, Array<T>>;
// dx, dgamma, dbeta.
template <class T>
using Gradients = std::tuple<MaybeArray<T>, Array<T>, Array<T>>;
// pyoptim.formulas.norms.NormOptions: the fields of core::NormOptions, in its order.
using Options = std::tuple<double, double, bool, bool, bool>;

template <class T>
bool have_size(const Pair<T>& pair, py::ssize_t size) {
    return has_size(pair.first, size) && has_size(pair.second, size);
}
template <class T>
bool have_size(const Saved<T>& pair, py::ssize_t size) {
    return pair.first.size() == size && pair.second.size() == size;
}
template <class T>
bool have_size(const Gradients<T>& all, py::ssize_t size, py::ssize_t parameters) {
    const auto& [dx, dgamma, dbeta] = all;
    return has_size(dx, size) && dgamma.size() == parameters && dbeta.size() == parameters;
}

template <class T>
void norm_forward(const Array<T>& x, const Pair<T>& affine, Pair<T> running, const Options& options,
                  Array<T> y, Saved<T> saved) {
    const auto shape = norm_shape(x);
    require(have_size(affine, shape.channels) && have_size(running, shape.channels) &&
                running.first.has_value() == running.second.has_value() && y.size() == x.size() &&
                have_size(saved, shape.channels),
            "affine, running, saved (channels), y as x");
    const auto it = std::apply([](auto... values) { return core::NormOptions{values...}; }, options);
    // In evaluation the running statistics may be read-only.
    const auto writeable = [&](MaybeArray<T>& array) {
        return it.training ? mutable_data_or_null(array) : const_cast<T*>(data_or_null(array));
    };
    const core::NormAffine<T> of{data_or_null(affine.first), data_or_null(affine.second)};
    const core::NormRunning<T> to{writeable(running.first), writeable(running.second)};
    const T* const in = x.data();
    T* out[] = {y.mutable_data(), saved.first.mutable_data(), saved.second.mutable_data()};
    Unlocked release;
    core::norm_forward<T>(shape, in, of, to, it, out[0], out[1], out[2]);
}

template <class T>
void norm_backward(const Array<T>& dy, const Array<T>& x, const Pair<T>& affine,
                   const std::tuple<Array<T>, Array<T>, bool>& saved, bool relu, Gradients<T> gradients) {
    const auto shape = norm_shape(x);
    const auto& [mean, inv_std, of_this_batch] = saved;
    require(dy.size() == x.size() && have_size(affine, shape.channels) && mean.size() == shape.channels &&
                inv_std.size() == shape.channels && have_size(gradients, x.size(), shape.channels),
            "dy and dx as x; affine, saved, dgamma, dbeta (channels)");
    const core::NormAffine<T> of{data_or_null(affine.first), data_or_null(affine.second)};
    const core::NormSaved<T> from{mean.data(), inv_std.data(), of_this_batch, relu};
    auto& [dx, dgamma, dbeta] = gradients;
    const T* in[] = {dy.data(), x.data()};
    T* out[] = {mutable_data_or_null(dx), dgamma.mutable_data(), dbeta.mutable_data()};
    Unlocked release;
    core::norm_backward<T>(shape, in[0], in[1], of, from, out[0], out[1], out[2]);
}

template <class T>
core::LayerNormShape layer_shape(const Array<T>& x) {
    require(x.ndim() == 2 && x.shape(1) > 0, "x (rows, features)");
    return {x.shape(0), x.shape(1)};
}

template <class T>
void layer_norm_forward(const Array<T>& x, const Pair<T>& affine, double eps, Array<T> y, Saved<T> saved) {
    const auto shape = layer_shape(x);
    require(have_size(affine, shape.features) && y.size() == x.size() && have_size(saved, shape.rows),
            "affine (features), saved (rows), y as x");
    const T* in[] = {x.data(), data_or_null(affine.first), data_or_null(affine.second)};
    T* out[] = {y.mutable_data(), saved.first.mutable_data(), saved.second.mutable_data()};
    Unlocked release;
    core::layer_norm_forward<T>(shape, in[0], in[1], in[2], eps, out[0], out[1], out[2]);
}

template <class T>
void layer_norm_backward(const Array<T>& dy, const Array<T>& x, const MaybeArray<T>& gamma,
                         const Saved<T>& saved, Gradients<T> gradients) {
    const auto shape = layer_shape(x);
    require(dy.size() == x.size() && have_size(saved, shape.rows) && has_size(gamma, shape.features) &&
                have_size(gradients, x.size(), shape.features),
            "dy and dx as x; gamma, dgamma, dbeta (features); saved (rows)");
    const cpu::LayerNormRows<T> rows{dy.data(), x.data(), saved.first.data(), saved.second.data()};
    const T* const scale = data_or_null(gamma);
    auto& [dx, dgamma, dbeta] = gradients;
    T* out[] = {mutable_data_or_null(dx), dgamma.mutable_data(), dbeta.mutable_data()};
    Unlocked release;
    core::layer_norm_backward<T>(shape, rows, scale, out[0], out[1], out[2]);
}

template <class T>
void bind_for(py::module_& m) {
    m.def("norm_forward", &norm_forward<T>, exact("x"), exact("affine"), exact("running"), py::arg("options"),
          exact("y"), exact("saved"));
    m.def("norm_backward", &norm_backward<T>, exact("dy"), exact("x"), exact("affine"), exact("saved"),
          py::arg("relu"), exact("gradients"));
    m.def("layer_norm_forward", &layer_norm_forward<T>, exact("x"), exact("affine"), py::arg("eps"),
          exact("y"), exact("saved"));
    m.def("layer_norm_backward", &layer_norm_backward<T>, exact("dy"), exact("x"), exact_or_none("gamma"),
          exact("saved"), exact("gradients"));
}

}  // namespace

void bind_norm(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
}

}  // namespace pyoptim::python
