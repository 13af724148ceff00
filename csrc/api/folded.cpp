// Batch normalisation as part of the dense layer before it.
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "api/network_impl.hpp"

namespace pyoptim {

namespace {

// Whether a layer normalises by constants what a dense layer before it multiplies.
bool folds(const Layer& before, const Layer& layer) {
    return before.type == "Dense" && before.activation.empty() && layer.type == "BatchNorm" &&
           layer.track_running_stats && layer.in == before.out;
}

// Returns the layers without those that fold into the one before, which it adds to `folded`.
std::vector<Layer> left(const std::vector<Layer>& layers, std::set<const Layer*>& folded) {
    std::vector<Layer> kept;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        if (i > 0 && folds(layers[i - 1], layers[i])) {
            folded.insert(&layers[i]);
            kept.back().bias = true;
            kept.back().activation = layers[i].activation;
            continue;
        }
        kept.push_back(layers[i]);
        kept.back().block = left(layers[i].block, folded);
    }
    return kept;
}

// Normalises the outputs of a dense layer by its weight and its bias, computed in double and rounded once.
template <class T>
void fold(const core::LayerView<T>& norm, const core::LayerView<T>& dense) {
    const T *const gamma = norm.array("weight").value, *const beta = norm.array("bias").value;
    const T *const mean = norm.array("running_mean").value, *const var = norm.array("running_var").value;
    T *const weight = dense.array("weight").value, *const bias = dense.array("bias").value;
    const auto wide = [](T value) { return static_cast<double>(value); };
    for (std::ptrdiff_t c = 0; c < dense.out.size; ++c) {
        const double scale =
            (gamma == nullptr ? 1 : wide(gamma[c])) / std::sqrt(wide(var[c]) + norm.layer->eps);
        for (std::ptrdiff_t j = c * dense.in.size; j < (c + 1) * dense.in.size; ++j) {
            weight[j] = static_cast<T>(wide(weight[j]) * scale);
        }
        const double shifted = (wide(bias[c]) - wide(mean[c])) * scale;
        bias[c] = static_cast<T>(shifted + (beta == nullptr ? 0 : wide(beta[c])));
    }
}

}  // namespace

template <class T>
Network<T> Network<T>::folded() const {
    std::set<const Layer*> folded;
    auto impl = std::make_unique<Impl>(left(impl_->chain.layers(), folded));
    auto next = impl->chain.views().begin();
    for (const core::LayerView<T>& view : impl_->chain.views()) {
        if (folded.count(view.layer) > 0) {
            fold(view, *(next - 1));
            continue;
        }
        for (core::LayerArray<T>& array : next->arrays) {
            const core::LayerArray<T> own = view.array(array.name);
            if (own.count != nullptr) *array.count = *own.count;
            if (own.value != nullptr) std::copy_n(own.value, own.size(), array.value);  // no bias: stays 0
        }
        ++next;
    }
    return Network(std::move(impl));
}

template Network<float> Network<float>::folded() const;
template Network<double> Network<double>::folded() const;

}  // namespace pyoptim
