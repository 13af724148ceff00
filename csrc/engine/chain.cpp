#include "engine/chain.hpp"

#include <stdexcept>
#include <utility>

#include "runtime/sizes.hpp"

namespace pyoptim::core {

namespace {

std::vector<LayerEntry> all_entries() {
    std::vector<LayerEntry> all;
    for (const auto& some : {dense_entries(), norm_entries(), activation_entries(), other_entries()}) {
        all.insert(all.end(), some.begin(), some.end());
    }
    return all;
}

// What the layers of a network state about its input.
struct Known {
    std::ptrdiff_t whole = 0;  // elements of an example, by the first layer that states them all
    std::ptrdiff_t part = 0;   // elements that the first other layer names, some or all of an example's
    bool flattened = false;    // whether examples are flattened before the layer that states them all
};

void look(const std::vector<Layer>& layers, Known& known) {
    for (const Layer& layer : layers) {
        if (known.whole > 0) return;
        const LayerEntry* const entry = entry_of(layer);
        if (entry == nullptr) continue;  // Chain finds out what it is, or refuses it
        std::ptrdiff_t& inputs = entry->states_whole_input ? known.whole : known.part;
        if (inputs <= 0) inputs = entry->inputs(layer);
        known.flattened = known.flattened || entry->flattens;
        if (entry->has_block) look(layer.block, known);
    }
}

}  // namespace

const std::vector<LayerEntry>& layer_entries() {
    static const std::vector<LayerEntry> all = all_entries();
    return all;
}

template <class T, bool trains>
std::unique_ptr<CompiledLayer<T>> make_layer(const LayerView<T>& view, std::size_t capacity) {
    static const LayerMakers<T> all = [] {
        LayerMakers<T> joined;
        for (const auto& some :
             {dense_makers<T, trains>(), norm_makers<T, trains>(), other_makers<T, trains>(),
              activation_makers<T, trains>(), custom_makers<T, trains>()}) {
            joined.insert(joined.end(), some.begin(), some.end());
        }
        return joined;
    }();
    for (const auto& [type, make] : all) {
        if (type == view.entry->type) return make(view, capacity);
    }
    throw std::logic_error(std::string("no object computes the layer ") + view.entry->type);
}

const LayerEntry* find_entry(const std::string& type) {
    for (const LayerEntry& entry : layer_entries()) {
        if (type == entry.type) return &entry;
    }
    return nullptr;
}

Width inputs_of(const std::vector<Layer>& layers) {
    Known known;
    look(layers, known);
    const std::ptrdiff_t size = known.whole > 0 ? known.whole : known.part;
    if (size <= 0) throw std::invalid_argument("layers: none of them says how many inputs it has");
    return {size, known.flattened ? 0 : size};
}

void set_trainable(Layer& layer, bool trainable) {
    layer.trainable = trainable;
    for (Layer& inner : layer.block) set_trainable(inner, trainable);
}

template <class T>
Chain<T>::Chain(std::vector<Layer> layers, const Width& input) : layers_(std::move(layers)) {
    Width width = input;
    for (std::size_t i = 0; i < layers_.size(); ++i) add(layers_[i], std::to_string(i), width);
    std::size_t all = 0;  // elements, buffers' too
    for (const LayerView<T>& view : views_) {
        for (const ArrayInfo& array : view.arrays) {
            std::size_t size = 1;
            for (const std::ptrdiff_t n : array.shape) size = checked_product("layers: a layer", size, n);
            all = checked_sum("layers: a network", all, size);
            if (array.role == Role::parameter) parameters_ += size;
        }
    }
    if (parameters_ == 0) throw std::invalid_argument("layers: there are no parameters to train");
}

// Checks a layer and adds its view. `name` is for example "3" or "3.block.0"; `width` is the shape of the
// layer's input, and is replaced by that of its output.
template <class T>
void Chain<T>::add(Layer& layer, const std::string& name, Width& width) {
    const auto refuse = [&](const std::string& what) {
        throw std::invalid_argument("layers[" + name + "] (" + layer.type + ") " + what);
    };
    LayerView<T> view{};
    view.in = width;
    view.begin = views_.size();
    view.name = name + ".";
    try {
        if (layer.type == "Activation") resolve_activation(layer);
        view.entry = entry_of(layer);
        if (view.entry == nullptr) throw std::invalid_argument("is no layer of the C++ API");
        for (const LayerView<T>& other : views_) {
            if (layer.custom == nullptr || other.layer->custom != layer.custom) continue;
            throw std::invalid_argument("is the same object as layers[" +
                                        other.name.substr(0, other.name.size() - 1) +
                                        "], expected one of its own");
        }
        if (layer.custom != nullptr && dynamic_cast<CustomLayer<T>*>(layer.custom.get()) == nullptr) {
            throw std::invalid_argument("is of another element type than the network");
        }
        check_numbers(layer, view.entry->options);
        width = view.out = view.entry->output(layer, width);
    } catch (const std::invalid_argument& error) {
        refuse(error.what());
    }
    if (view.entry->has_block) {
        if (layer.block.empty()) refuse("has an empty block");
        if (!layer.trainable) set_trainable(layer, false);
        for (std::size_t i = 0; i < layer.block.size(); ++i) {
            add(layer.block[i], name + ".block." + std::to_string(i), width);
        }
        if (width.size != view.out.size) {
            refuse("has a block that makes " + std::to_string(width.size) + " values of " +
                   std::to_string(view.in.size) + ", expected as many");
        }
    } else if (view.entry->changes_nothing) {
        return;
    }
    view.layer = &layer;
    for (ArrayInfo& info : view.entry->arrays(layer)) {
        view.arrays.push_back({std::move(info), nullptr, nullptr, nullptr});
    }
    views_.push_back(std::move(view));
}

template <class T>
void Chain<T>::bind(T* parameters, T* gradients) {
    for (LayerView<T>& view : views_) {
        for (LayerArray<T>& array : view.arrays) {
            if (array.role != Role::parameter) continue;
            array.value = std::exchange(parameters, parameters + array.size());
            if (gradients != nullptr) array.gradient = std::exchange(gradients, gradients + array.size());
        }
    }
}

#define X(T)                                                                                          \
    template class Chain<T>;                                                                          \
    template std::unique_ptr<CompiledLayer<T>> make_layer<T, true>(const LayerView<T>&, std::size_t); \
    template std::unique_ptr<CompiledLayer<T>> make_layer<T, false>(const LayerView<T>&, std::size_t);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
