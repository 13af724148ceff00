#include "engine/engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "layers/activations.hpp"
#include "layers/dense.hpp"
#include "layers/dropout.hpp"
#include "layers/layer_norm.hpp"
#include "layers/losses.hpp"
#include "layers/norm.hpp"
#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::core {

namespace {

// Copies or converts that pay for waking a thread, in elements.
constexpr std::size_t kGatherGrain = 65536;
// Batches up to this have gradient and step of dense weights at once: from ten examples on, the products
// are faster as a whole by as much as that saves.
constexpr std::size_t kFused = 4;

// out = a + b, where out may be either.
template <class T>
void add_arrays(std::size_t n, const T* a, const T* b, T* out) {
    parallel(threads_for(n, kGatherGrain), [&](int thread, int threads) {
        const Range mine = share(n, 1, thread, threads);
        for (std::size_t i = mine.begin; i < mine.end; ++i) out[i] = a[i] + b[i];
    });
}

// The first of the largest, where NaN is larger than all: numpy.argmax.
template <class T>
std::ptrdiff_t argmax(const T* x, std::ptrdiff_t n) {
    std::ptrdiff_t best = 0;
    for (std::ptrdiff_t j = 1; j < n && x[best] == x[best]; ++j) {
        if (x[j] > x[best] || x[j] != x[j]) best = j;
    }
    return best;
}

template <class T>
LayerNormShape layer_norm_shape(const LayerView<T>& layer, std::size_t n) {
    return {static_cast<std::ptrdiff_t>(n) * layer.in / layer.channels, layer.channels};
}

template <class T>
NormShape norm_shape(const LayerView<T>& layer, std::size_t n) {
    return {static_cast<std::ptrdiff_t>(n), layer.channels, layer.in / layer.channels};
}

// Of the training pass that came `before` the next one.
template <class T>
RandomStream stream(const LayerView<T>& layer, std::int64_t before) {
    return {static_cast<std::uint64_t>(*layer.seed), static_cast<std::uint64_t>(*layer.step - before)};
}

}  // namespace

template <class T>
Engine<T>::Engine(std::vector<LayerView<T>> layers, const LossView<T>& loss, std::size_t capacity)
    : layers_(std::move(layers)), loss_(loss), capacity_(capacity), first_trainable_(layers_.size()) {
    const std::size_t count = layers_.size();
    outputs_.resize(count);
    mean_.resize(count);
    inv_std_.resize(count);
    unused_.resize(count);
    weights_.resize(count);
    dz_.resize(count);
    updates_.reserve(count);
    of_this_batch_.resize(count);
    shortcut_.resize(count);
    rejoined_.resize(count);
    std::size_t widest = outputs();
    for (std::size_t i = count; i-- > 0;) {
        const LayerView<T>& layer = layers_[i];
        outputs_[i].resize(capacity * static_cast<std::size_t>(layer.out));
        if (layer.weight != nullptr && layer.trainable) first_trainable_ = i;
        if (layer.kind == LayerKind::dense) {
            dz_[i].resize(std::min(capacity, kFused) * static_cast<std::size_t>(layer.out));
        }
        const bool by_example = layer.kind == LayerKind::layer_norm;
        if (layer.kind == LayerKind::batch_norm || by_example) {
            const auto c = static_cast<std::size_t>(layer.channels);
            const std::size_t kept = by_example ? outputs_[i].size() / c : c;
            mean_[i].resize(kept);
            inv_std_[i].resize(kept);
            if (layer.weight == nullptr || !layer.trainable) unused_[i].resize(2 * c);
        }
    }
    for (std::size_t i = 0; i < count; ++i) {  // inner residuals before the outer ones
        if (layers_[i].kind != LayerKind::residual || layers_[i].begin <= first_trainable_) continue;
        shortcut_[i].resize(outputs_[i].size());
        rejoined_[layers_[i].begin].push_back(i);
    }
    for (std::size_t i = first_trainable_; i < count; ++i) {
        widest = std::max(widest, static_cast<std::size_t>(layers_[i].out));
    }
    gradient_.resize(capacity * widest);
    other_gradient_.resize(capacity * widest);
    input_.resize(capacity * inputs());
}

template <class T>
void Engine<T>::clear() {
    stepper_ = rest_ = {};
    gradients_.clear();
    rest_gradients_.clear();
    weights_.assign(layers_.size(), {});
    zeroed_ = false;
}

template <class T>
void Engine<T>::add(const typename Stepper<T>::Array& array, const T* gradient) {
    stepper_.add(array);
    gradients_.push_back(gradient);
    const auto add_rest = [&](std::size_t begin, std::size_t end) {
        if (begin == end) return;
        rest_.add(part_of<T>(array, begin, end));
        rest_gradients_.push_back(gradient + begin);
    };
    // The weights that lie in the array as a whole, in the order of their gradients.
    const auto address = [](const T* p) { return reinterpret_cast<std::uintptr_t>(p); };
    std::size_t done = 0;
    while (done < array.size) {
        std::size_t begin = array.size, size = 0, found = 0;
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            const LayerView<T>& layer = layers_[i];
            const auto of_layer = static_cast<std::size_t>(layer.in * layer.out);
            if (layer.kind != LayerKind::dense || address(layer.dweight) < address(gradient + done) ||
                address(layer.dweight + of_layer) > address(gradient + array.size)) {
                continue;
            }
            const auto at = static_cast<std::size_t>(layer.dweight - gradient);
            if (at >= begin) continue;
            begin = at;
            size = of_layer;
            found = i;
        }
        add_rest(done, begin);
        if (size > 0) weights_[found] = part_of<T>(array, begin, begin + size);
        done = begin + size;
    }
}

template <class T>
void Engine<T>::set_noise(const WeightNoise<T>& noise) {
    noise_ = noise;
    kept_.resize(noise.size);
}

template <class T>
const T* Engine<T>::gather(const Examples<T>& of, std::size_t begin, std::size_t n) {
    const std::size_t width = inputs();
    if (of.x != nullptr && (of.order == nullptr || n == 1)) {  // as it lies
        const std::size_t first = of.order == nullptr ? begin : static_cast<std::size_t>(of.order[begin]);
        return of.x + first * width;
    }
    parallel(threads_for(n * width, kGatherGrain), [&](int thread, int threads) {
        const Range mine = share(n, 1, thread, threads);
        for (std::size_t i = mine.begin; i < mine.end; ++i) {
            const std::size_t from =
                of.order == nullptr ? begin + i : static_cast<std::size_t>(of.order[begin + i]);
            T* const to = input_.data() + i * width;
            if (of.x != nullptr) {
                std::memcpy(to, of.x + from * width, width * sizeof(T));
            } else {
                const std::uint8_t* const bytes = of.bytes + from * width;
                for (std::size_t j = 0; j < width; ++j) to[j] = static_cast<T>(bytes[j]);
            }
        }
    });
    return input_.data();
}

template <class T>
void Engine<T>::norm_forward(std::size_t i, const T* x, std::size_t n, bool training) {
    const LayerView<T>& layer = layers_[i];
    const bool tracks = layer.running_mean != nullptr;
    double momentum = layer.momentum;
    training = training && layer.trainable;
    if (training && tracks) {
        if (momentum < 0) momentum = 1.0 / static_cast<double>(*layer.tracked + 1);
        ++*layer.tracked;
    }
    of_this_batch_[i] = training || !tracks;
    const NormOptions options{momentum, layer.eps, training, layer.unbiased,
                              layer.activation == Activation::relu};
    core::norm_forward<T>(norm_shape(layer, n), x, {layer.weight, layer.bias},
                          {layer.running_mean, layer.running_var}, options, outputs_[i].data(),
                          mean_[i].data(), inv_std_[i].data());
}

template <class T>
void Engine<T>::forward(const T* x, std::size_t n, bool training) {
    const auto batch = static_cast<std::ptrdiff_t>(n);
    training_ = training;
    const T* const input = x;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const LayerView<T>& layer = layers_[i];
        const std::size_t size = n * static_cast<std::size_t>(layer.out);
        T* const y = outputs_[i].data();
        switch (layer.kind) {
            case LayerKind::dense:
                dense_forward<T>({batch, layer.in, layer.out}, x, layer.weight, layer.bias, layer.activation,
                                 y);
                break;
            case LayerKind::activation:
                activation_forward({layer.activation, layer.a, layer.b}, size, x, y);
                break;
            case LayerKind::batch_norm:
                norm_forward(i, x, n, training);
                break;
            case LayerKind::layer_norm:
                layer_norm_forward<T>(layer_norm_shape(layer, n), x, layer.weight, layer.bias, layer.eps, y,
                                      mean_[i].data(), inv_std_[i].data());
                break;
            case LayerKind::rescale:
                for (std::size_t j = 0; j < size; ++j) y[j] = x[j] * layer.scale + layer.shift;
                break;
            case LayerKind::dropout:
            case LayerKind::gaussian_noise:
                if (!training) {
                    std::memcpy(y, x, size * sizeof(T));
                } else if (layer.kind == LayerKind::dropout) {
                    dropout(stream(layer, 0), layer.amount, size, x, y);
                } else {
                    gaussian_noise(stream(layer, 0), layer.amount, size, x, y);
                }
                *layer.step += training;
                break;
            case LayerKind::residual:
                add_arrays(size, layer.begin == 0 ? input : outputs_[layer.begin - 1].data(), x, y);
                break;
        }
        x = y;
    }
}

// From the gradient of the output in gradient_, which is overwritten. Fused: without those of the weights
// that are updated by themselves; what they take is left in updates_.
template <class T>
void Engine<T>::backward(const T* input, std::size_t n, bool fused) {
    updates_.clear();
    const auto batch = static_cast<std::ptrdiff_t>(n);
    T* dy = gradient_.data();
    T* other = other_gradient_.data();
    for (std::size_t i = layers_.size(); i-- > first_trainable_;) {
        const LayerView<T>& layer = layers_[i];
        const std::size_t size = n * static_cast<std::size_t>(layer.out);
        const T* const x = i == 0 ? input : outputs_[i - 1].data();
        const T* const y = outputs_[i].data();
        T* const dx = i > first_trainable_ ? other : nullptr;
        switch (layer.kind) {
            case LayerKind::dense: {
                const DenseShape shape = {batch, layer.in, layer.out};
                const bool later = fused && weights_[i].size > 0;
                dense_backward<T>(shape, {dy, x, layer.weight, y, layer.activation},
                                  {dx, later || !layer.trainable ? nullptr : layer.dweight,
                                   layer.trainable ? layer.dbias : nullptr, later ? dz_[i].data() : nullptr});
                if (later) updates_.push_back({shape, dz_[i].data(), x, weights_[i]});
                std::swap(dy, other);
                break;
            }
            case LayerKind::activation:
                activation_backward({layer.activation, layer.a, layer.b}, size, dy,
                                    keeps_input(layer.activation) ? x : y, dy);
                break;
            case LayerKind::batch_norm: {
                const bool learns = unused_[i].empty();
                T* const unused = unused_[i].data();
                norm_backward<T>(norm_shape(layer, n), dy, x, {layer.weight, layer.bias},
                                 {mean_[i].data(), inv_std_[i].data(), of_this_batch_[i],
                                  layer.activation == Activation::relu},
                                 dx, learns ? layer.dweight : unused,
                                 learns ? layer.dbias : unused + layer.channels);
                std::swap(dy, other);
                break;
            }
            case LayerKind::layer_norm: {
                const bool learns = unused_[i].empty();
                T* const unused = unused_[i].data();
                layer_norm_backward<T>(
                    layer_norm_shape(layer, n), {dy, x, mean_[i].data(), inv_std_[i].data()}, layer.weight,
                    dx, learns ? layer.dweight : unused, learns ? layer.dbias : unused + layer.channels);
                std::swap(dy, other);
                break;
            }
            case LayerKind::rescale:
                for (std::size_t j = 0; j < size; ++j) dy[j] *= layer.scale;
                break;
            case LayerKind::dropout:
                if (training_) dropout(stream(layer, 1), layer.amount, size, dy, dy);
                break;
            case LayerKind::gaussian_noise:
                break;
            case LayerKind::residual:  // dy goes through the block, and past it
                if (!shortcut_[i].empty()) std::copy(dy, dy + size, shortcut_[i].begin());
                break;
        }
        for (const std::size_t end : rejoined_[i]) {
            const std::size_t inputs = n * static_cast<std::size_t>(layer.in);
            add_arrays(inputs, dy, shortcut_[end].data(), dy);
        }
    }
}

template <class T>
double Engine<T>::loss(const Examples<T>& of, std::size_t begin, std::size_t n, Outcome& outcome) {
    const std::size_t width = outputs();
    const T* const output = outputs_.back().data();
    const auto example = [&](std::size_t i) {
        return of.order == nullptr ? begin + i : static_cast<std::size_t>(of.order[begin + i]);
    };
    const T* const weight = of.weight == nullptr ? nullptr : weight_.data();
    for (std::size_t i = 0; i < n && weight != nullptr; ++i) weight_[i] = of.weight[example(i)];
    for (std::size_t i = 0; i < n && of.targets != nullptr; ++i) {
        std::memcpy(targets_.data() + i * width, of.targets + example(i) * width, width * sizeof(T));
    }
    if (loss_.kind == LossKind::pointwise) {
        return pointwise_loss<T>(loss_.pointwise,
                                 {n, width, output, targets_.data(), weight, gradient_.data()});
    }
    const auto classes = static_cast<std::ptrdiff_t>(width);
    const bool divergence = loss_.kind == LossKind::kl_divergence;
    for (std::size_t i = 0; i < n && !divergence; ++i) {
        if (of.labels != nullptr) labels_[i] = of.labels[example(i)];
        const std::ptrdiff_t label =
            of.labels != nullptr ? labels_[i] : argmax(targets_.data() + i * width, classes);
        outcome.correct += argmax(output + i * width, classes) == label;
    }
    return cross_entropy<T>(
        {classes, output, of.labels == nullptr ? nullptr : labels_.data(), targets_.data(), weight,
         loss_.class_weight, loss_.smoothing, gradient_.data(), loss_.temperature, divergence},
        static_cast<std::ptrdiff_t>(n));
}

// False where the gradients are not finite and that ends the run.
template <class T>
bool Engine<T>::update(const T* row, std::size_t length, const StepOptions& options, Outcome& outcome) {
    if (options.max_grad_norm > 0 || options.nonfinite != NonFinite::ignore) {
        double squares = 0;
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            squares += sum_of_squares(stepper_.arrays()[i].size, gradients_[i]);
        }
        const double norm = std::sqrt(squares);
        if (options.nonfinite != NonFinite::ignore && !std::isfinite(norm)) {
            for (std::size_t i = 0; i < gradients_.size(); ++i) {
                if (all_finite(stepper_.arrays()[i].size, gradients_[i])) continue;
                if (options.nonfinite == NonFinite::skip) {
                    ++outcome.skipped;
                    return true;
                }
                outcome.wrong = static_cast<std::ptrdiff_t>(i);
                return false;
            }
        }
        if (options.max_grad_norm > 0) {
            const double factor = clip_factor(norm, options.max_grad_norm);
            std::copy(row, row + length, clipped_.begin());
            for (const auto& array : stepper_.arrays()) {  // the first of a row scales the gradient
                clipped_[array.coefficients] =
                    static_cast<T>(static_cast<double>(row[array.coefficients]) * factor);
            }
            row = clipped_.data();
        }
    }
    if (updates_.empty()) {
        stepper_.step(gradients_.data(), row);
    } else {
        rest_.step(rest_gradients_.data(), row);
        dense_update(updates_, row);
    }
    ++outcome.steps;
    return true;
}

template <class T>
void Engine<T>::train(const Examples<T>& of, std::size_t begin, std::size_t end, std::size_t batch,
                      const T* rows, std::size_t row, const StepOptions& options, Outcome& outcome) {
    const std::size_t before = outcome.steps;
    outcome.wrong = -1;
    if (clipped_.size() < row) clipped_.resize(row);
    if (of.labels != nullptr) labels_.resize(capacity_);
    if (of.targets != nullptr) targets_.resize(capacity_ * outputs());
    if (of.weight != nullptr) weight_.resize(capacity_);
    // Clipping and finding what is not finite look at all gradients before the first update; a penalty adds
    // to them.
    const bool fused = batch <= kFused && !options.keep_gradients && options.max_grad_norm <= 0 &&
                       options.nonfinite == NonFinite::ignore && penalty_.runs.empty();
    for (std::size_t i = 0; i < layers_.size() && fused && !zeroed_; ++i) {  // nothing stale remains
        std::fill(layers_[i].dweight, layers_[i].dweight + weights_[i].size, T(0));
    }
    zeroed_ = fused;
    for (; begin < end; begin += batch) {
        const std::size_t n = std::min(batch, end - begin);
        const T* const x = gather(of, begin, n);
        T* const noisy = noise_.parameters;
        if (noise_.size > 0) {
            std::copy(noisy, noisy + noise_.size, kept_.begin());
            gaussian_noise(noise_.stream, noise_.deviation, noise_.size, kept_.data(), noisy);
            ++noise_.stream.step;
        }
        forward(x, n, true);
        double value = loss(of, begin, n, outcome);
        backward(x, n, fused);
        if (!penalty_.runs.empty()) value += add_penalty(penalty_);
        outcome.loss += value * static_cast<double>(n);
        std::copy(kept_.begin(), kept_.end(), noisy);
        if (!update(rows + (outcome.steps - before) * row, row, options, outcome)) return;
    }
}

template <class T>
const T* Engine<T>::predict(const T* x, std::size_t n) {
    forward(x, n, false);
    return outputs_.back().data();
}

template class Engine<float>;
template class Engine<double>;

}  // namespace pyoptim::core
