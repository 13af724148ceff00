#include "engine/predictor.hpp"

#include <algorithm>
#include <atomic>
#include <utility>

#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim::core {

namespace {

// Places that are not in the predictor's memory, and none at all.
constexpr int kInput = -1, kOutput = -2, kNone = -3;
// Batches of fewer examples pass through one layer after the other, if threads share its outputs: then none
// of them reads all weights.
constexpr std::size_t kWhole = 96;
// A block has so many bytes in the input and the output of its widest layer, and at least and at most so many
// examples.
constexpr std::size_t kBlockBytes = 512 << 10;
constexpr std::size_t kFewest = 32, kMost = 256;

// The number of the first place that layer i can write to: neither its input, nor that of a block that has
// not ended.
template <class T>
std::size_t free_place(const std::vector<LayerView<T>>& layers, const std::vector<int>& inputs,
                       std::size_t i) {
    int place = 0;
    const auto is_read = [&] {
        bool read = inputs[i] == place;
        for (std::size_t j = i; j < layers.size(); ++j) {
            const bool in_block = layers[j].entry->has_block && layers[j].begin <= i;
            read = read || (in_block && inputs[layers[j].begin] == place);
        }
        return read;
    };
    while (is_read()) ++place;
    return static_cast<std::size_t>(place);
}

}  // namespace

template <class T>
Predictor<T>::Predictor(std::vector<LayerView<T>> layers) : layers_(std::move(layers)) {
    make_layers(kWhole);
    std::size_t count = layers_.size();
    while (count > 0 && layers_[count - 1].entry->only_in_training) --count;
    std::vector<int> inputs;  // the place of each layer's input
    std::vector<std::size_t> widths;
    int x = kInput;
    for (std::size_t i = 0; i < count; ++i) {
        const LayerView<T>& layer = layers_[i];
        inputs.push_back(x);
        if (layer.entry->only_in_training) continue;
        const auto width = static_cast<std::size_t>(layer.out.size);
        int y = kOutput;
        if (i + 1 < count) {
            const std::size_t place = free_place(layers_, inputs, i);
            if (place == widths.size()) widths.push_back(0);
            widths[place] = std::max(widths[place], width);
            y = static_cast<int>(place);
        }
        steps_.push_back({i, x, layer.entry->has_block ? inputs[layer.begin] : kNone, y, width});
        x = y;
        needs_whole_ = needs_whole_ || layer.entry->takes_whole_batches ||
                       layer.entry->statistics(*layer.layer, layer.in.size, false) > 0;
        widest_ = std::max(widest_, width + static_cast<std::size_t>(layer.in.size));
        for (const ArrayInfo& array : layer.arrays) {
            if (array.role == Role::parameter) weights_ += static_cast<std::size_t>(array.size());
        }
    }
    total_ = this->inputs();
    for (const std::size_t width : widths) {
        starts_.push_back(std::exchange(total_, checked_sum("an example", total_, width)));
    }
}

template <class T>
void Predictor<T>::make_layers(std::size_t capacity) {
    compiled_.clear();
    for (const LayerView<T>& layer : layers_) {
        const bool computes = !layer.entry->has_block && !layer.entry->only_in_training;
        compiled_.push_back(computes ? make_layer<T, false>(layer, capacity) : nullptr);
    }
    capacity_ = capacity;
}

template <class T>
bool Predictor<T>::predict(const Batch& of, std::size_t whole, bool looks) {
    if (of.n == 0) return true;
    checked_product("examples", of.n, total_);
    checked_product("examples", of.n, outputs());
    const int most = threads_for(of.n * work() / std::min(of.n, std::size_t{kDenseReuse}), kDenseGrain);
    if (needs_whole_ || (whole < kWhole && most > 1)) {
        if (of.n > capacity_) make_layers(of.n);
        return run(of, {memory_.reserve(total_ * of.n), of.n}, 0, looks);
    }
    for (const auto& layer : compiled_) {
        if (layer != nullptr) layer->prepare(whole);
    }
    parallel(weights_ <= std::size_t{kPackedAlone} ? 1 : most, [&](int part, int parts) {
        for (const auto& layer : compiled_) {
            if (layer != nullptr) layer->copy(part, parts);
        }
    });
    return run_blocks(of, whole, most, looks);
}

// Cuts the batch into blocks, a multiple of the number of threads, which take one after the other.
template <class T>
bool Predictor<T>::run_blocks(const Batch& of, std::size_t whole, int most, bool looks) {
    const auto parts = static_cast<std::size_t>(most);
    const std::size_t fit = block();
    const std::size_t blocks = (of.n + fit * parts - 1) / (fit * parts) * parts;
    const std::size_t rows = (of.n / blocks + 16) / 16 * 16;  // keeps places on cache lines
    T* const memory = memory_.reserve(parts * total_ * rows);
    std::atomic<std::size_t> next{0};
    std::atomic<bool> finite{true};
    parallel(most, [&](int part, int) {
        const Room own = {memory + static_cast<std::size_t>(part) * total_ * rows, rows};
        for (std::size_t block; (block = next++) < blocks;) {
            const std::size_t begin = of.n * block / blocks, end = of.n * (block + 1) / blocks;
            const Batch mine = {end - begin, of.x == nullptr ? nullptr : of.x + begin * inputs(),
                                of.bytes == nullptr ? nullptr : of.bytes + begin * inputs(),
                                of.y + begin * outputs()};
            if (!run(mine, own, whole, looks)) finite = false;
        }
    });
    return finite;
}

template <class T>
std::size_t Predictor<T>::block() const {
    return std::clamp(kBlockBytes / (widest_ * sizeof(T)), kFewest, kMost);
}

template <class T>
void Predictor<T>::freeze(std::size_t most) {
    for (const auto& layer : compiled_) {
        if (layer == nullptr) continue;
        layer->prepare(most);
        layer->copy(0, 1);
    }
}

template <class T>
void Predictor<T>::predict_frozen(const Batch& of, T* memory, std::size_t rows) const {
    const Alone alone;
    for (std::size_t begin = 0; begin < of.n; begin += rows) {
        const Batch part = {std::min(rows, of.n - begin), of.x == nullptr ? nullptr : of.x + begin * inputs(),
                            of.bytes == nullptr ? nullptr : of.bytes + begin * inputs(),
                            of.y + begin * outputs()};
        run(part, {memory, rows}, of.n, false);
    }
}

// Passes examples through all layers: through one after the other with all threads, for a whole batch, if
// `whole` is 0, or else on this thread alone.
template <class T>
bool Predictor<T>::run(const Batch& of, const Room& room, std::size_t whole, bool looks) const {
    const T* input = of.x;
    if (input == nullptr) {
        for (std::size_t i = 0; i < of.n * inputs(); ++i) room.memory[i] = static_cast<T>(of.bytes[i]);
        input = room.memory;
    } else if (looks && !all_finite(of.n * inputs(), input)) {
        return false;
    }
    const auto at = [&](int place) {
        return place == kOutput ? of.y : room.memory + starts_[static_cast<std::size_t>(place)] * room.rows;
    };
    const auto read = [&](int place) { return place == kInput ? input : at(place); };
    for (const Step& step : steps_) {
        const T* const x = read(step.x);
        T* const y = at(step.y);
        CompiledLayer<T>* const layer = compiled_[step.layer].get();
        if (layer == nullptr) {
            const T* const shortcut = read(step.shortcut);
            for (std::size_t i = 0; i < of.n * step.width; ++i) y[i] = shortcut[i] + x[i];
        } else if (whole == 0) {
            layer->forward({of.n, x, y, false});
        } else {
            layer->evaluate(whole, of.n, x, y);
        }
    }
    if (steps_.empty()) std::copy(input, input + of.n * inputs(), of.y);
    return true;
}

template class Predictor<float>;
template class Predictor<double>;

}  // namespace pyoptim::core
