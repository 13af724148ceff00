// The description of a kind of layer: one LayerEntry, and one class that computes it. The engine, the C++
// API, the files and the Python binding know layers by their entries alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/options.hpp"
#include "layers/dense.hpp"
#include "layers/sparse.hpp"
#include "optim/stepper.hpp"
#include "pyoptim/network.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim::core {

// What an array of a layer is for: a parameter learns, a buffer keeps statistics, and a counter is one int64.
// Parameters and buffers have the element type of the network.
enum class Role { parameter, buffer, counter };
// What an array begins as: `weight` is drawn as Layer::init says, `seed` is a random number of 63 bits,
// `custom` what a layer of the user's says.
enum class Initial { zeros, ones, weight, seed, custom };

// A parameter, buffer or counter of a layer, with its name in files.
struct ArrayInfo {
    const char* name;
    std::vector<std::ptrdiff_t> shape;
    Role role = Role::parameter;
    Initial initial = Initial::zeros;

    // The chain that has the layer has checked that this does not overflow.
    std::ptrdiff_t size() const {
        std::ptrdiff_t product = 1;
        for (const std::ptrdiff_t n : shape) product *= n;
        return product;
    }
};

// An array with its memory, which the owner of the network provides before an engine is made and keeps for as
// long as the engine lives.
template <class T>
struct LayerArray : ArrayInfo {
    T* value = nullptr;             // the elements of a parameter or of a buffer
    T* gradient = nullptr;          // the gradient of a parameter
    std::int64_t* count = nullptr;  // the number of a counter
};

// The shape of an example between two layers, as far as layers need it.
struct Width {
    std::ptrdiff_t size;  // the number of elements
    std::ptrdiff_t last;  // the length of the last dimension, or 0 if it is not known
};

struct LayerEntry;

// A layer in its place in a network. The view owns neither the entry nor the layer, which live longer.
template <class T>
struct LayerView {
    const LayerEntry* entry;
    const Layer* layer;
    std::string name;  // the prefix of the names of its arrays in files, e.g. "3.block.0."
    Width in, out;
    std::size_t begin = 0;  // the index of the first view of its block, if the layer has a block
    std::vector<LayerArray<T>> arrays;

    // Returns the array of this name, or an array without memory if the layer has none of that name.
    LayerArray<T> array(const char* wanted) const {
        for (const LayerArray<T>& one : arrays) {
            if (std::strcmp(one.name, wanted) == 0) return one;
        }
        return {};
    }
    // Whether training changes a parameter of the layer: it has one and is not frozen.
    bool learns() const {
        bool any = false;
        for (const ArrayInfo& one : arrays) any = any || one.role == Role::parameter;
        return any && layer->trainable;
    }
};

// The largest batch for which dense_update computes the gradient of a dense weight in pieces, updates the
// weight by each piece at once, and writes no gradient to memory. A gradient computed whole takes less time,
// and from ten examples on this costs dense_update as much as it saves.
constexpr std::size_t kFused = 4;

// The arguments of a forward pass over n examples.
template <class T>
struct Forward {
    std::size_t n;
    const T* x;     // the input, which stays as it is until the backward pass is done
    T* y;           // the output, which the layer writes
    bool training;  // false: evaluation
    // The input instead of x, for a layer that takes sparse rows; else null.
    const SparseRows<T>* sparse = nullptr;
};

// The arguments of the backward pass that belongs to the last forward pass in training mode.
template <class T>
struct Backward {
    std::size_t n;
    const T *x, *y;  // the input and the output of that forward pass
    T* dy;           // the gradient of y, which the layer may overwrite
    T* dx;           // receives the gradient of x; null if nobody reads it
    // The weight whose gradient the layer does not write: it adds to `updates` what dense_update needs to
    // compute that gradient and to update the weight at once. Null if the layer writes all gradients.
    const typename Stepper<T>::Array* fused_weight;
    std::vector<DenseUpdate<T>>* updates;
    // The input of that forward pass instead of x, or null. The gradient of such an input is not computed.
    const SparseRows<T>* sparse = nullptr;
};

// Computes one layer of a network. An object keeps whatever its backward pass needs besides x and y.
template <class T>
class CompiledLayer {
  public:
    virtual ~CompiledLayer() = default;
    virtual void forward(const Forward<T>&) = 0;
    // Writes the gradients of the parameters, unless the layer is frozen, and that of x.
    virtual void backward(const Backward<T>&) = 0;
    // A prediction passes blocks of a batch through all layers, each while it is in the caches. prepare()
    // reads the parameters for batches of up to n examples. Then threads share the work of copy(), whose
    // parts may run at once, and after that evaluate(), which computes what forward() does in evaluation for
    // n examples of a batch of `whole`. It may be called by several threads at once, must not throw, and
    // changes nothing that they share. These are for layers that take no statistics of the batch.
    virtual void prepare(std::size_t) {}
    virtual void copy(int /*part*/, int /*parts*/) {}
    virtual void evaluate(std::size_t /*whole*/, std::size_t n, const T* x, T* y) {
        forward({n, x, y, false});
    }
    // Where no example depends on another, threads share a step by pieces of the batch: each passes pieces of
    // its own forward through all layers, and back. Says whether the layer takes that, with the bits of
    // forward() and backward() for the whole batch of n examples.
    virtual bool takes_pieces() const { return false; }
    // Returns how many elements of memory a thread needs for pieces of up to so many rows. It has them to
    // itself until the batch is done, and calls begin_pieces() first.
    virtual std::size_t piece_memory(std::size_t /*n*/, std::size_t /*rows*/) const { return 0; }
    virtual void begin_pieces(std::size_t /*n*/, T* /*memory*/) const {}
    // Computes a piece, of which the arguments tell as of a batch. Several threads may call them at once, and
    // they must not throw. A layer with parameters writes the gradients of the piece to `gradients`, in the
    // order of its arrays.
    virtual void forward_piece(std::size_t /*n*/, const Forward<T>& of, T* /*memory*/) { forward(of); }
    virtual void backward_piece(std::size_t /*n*/, const Backward<T>& of, T* const* /*gradients*/,
                                T* /*memory*/) {
        backward(of);
    }
    // Whether forward() and backward() take sparse rows.
    virtual bool takes_sparse() const { return false; }
    // Whether backward() writes the gradient of x over dy, and not to dx.
    virtual bool works_in_place() const { return false; }
    // Returns the gradient that the layer leaves out if it is given a `fused_weight`, and its number of
    // elements. The address is null if the layer has no such weight.
    virtual std::pair<T*, std::size_t> fusible_gradient() const { return {nullptr, 0}; }
};

// A function that makes the object which computes a layer, from its view and the most examples of a batch.
template <class T>
using LayerMaker = std::unique_ptr<CompiledLayer<T>> (*)(const LayerView<T>&, std::size_t);
template <class Object, class T>
std::unique_ptr<CompiledLayer<T>> make_object(const LayerView<T>& view, std::size_t capacity) {
    return std::make_unique<Object>(view, capacity);
}

// The makers of the objects of some kinds of layers, by the kind's name. Without `trains`, the objects have
// no backward pass, so that a program which only predicts does not link it.
template <class T>
using LayerMakers = std::vector<std::pair<std::string, LayerMaker<T>>>;

struct LayerEntry {
    const char* type;  // the name of the Python class
    std::vector<Option<Layer>> options;
    // Returns the shape of the output for an input. Throws std::invalid_argument if the layer cannot take the
    // input, with a message that continues after the layer's name. Fills in the fields that follow from the
    // options.
    Width (*output)(Layer&, const Width& in) = [](Layer&, const Width& in) { return in; };
    // Returns the arrays of a layer, and reads nothing but the layer's options.
    std::vector<ArrayInfo> (*arrays)(const Layer&) = [](const Layer&) { return std::vector<ArrayInfo>(); };
    // Returns the number of inputs that the layer's options state, or 0 if the layer takes any number.
    std::ptrdiff_t (*inputs)(const Layer&) = [](const Layer&) { return std::ptrdiff_t{0}; };
    // Whether that number counts all elements of an example, not just its channels or its last dimensions.
    bool states_whole_input = false;
    // Whether the layer makes a vector of an example of several dimensions.
    bool flattens = false;
    // Whether the layer changes no value, so that the engine leaves it out.
    bool changes_nothing = false;
    // Whether the layer hands its input on in evaluation.
    bool only_in_training = false;
    // Whether a prediction passes whole batches through the layer, on one thread.
    bool takes_whole_batches = false;
    // Whether the layer has a block of layers; the engine adds the input of the block to its output.
    bool has_block = false;
    // Returns the number of values that an example of `in` elements adds to each statistic over the batch, or
    // 0 if the layer takes no such statistic.
    std::ptrdiff_t (*statistics)(const Layer&, std::ptrdiff_t in, bool training) =
        [](const Layer&, std::ptrdiff_t, bool) { return std::ptrdiff_t{0}; };
};

std::vector<LayerEntry> dense_entries();
std::vector<LayerEntry> norm_entries();
std::vector<LayerEntry> activation_entries();
std::vector<LayerEntry> other_entries();
template <class T, bool trains>
LayerMakers<T> dense_makers();
template <class T, bool trains>
LayerMakers<T> norm_makers();
template <class T, bool trains>
LayerMakers<T> activation_makers();
template <class T, bool trains>
LayerMakers<T> other_makers();
template <class T, bool trains>
LayerMakers<T> custom_makers();

// Makes the object that computes a layer which has no block, for batches of up to `capacity` examples.
template <class T, bool trains>
std::unique_ptr<CompiledLayer<T>> make_layer(const LayerView<T>&, std::size_t capacity);

// The table of all kinds of layers.
const std::vector<LayerEntry>& layer_entries();
// Returns the entry of a kind, or null if there is none of this name.
const LayerEntry* find_entry(const std::string& type);
// The entry of layers that the user writes, which is not in the table: files do not know them.
const LayerEntry& custom_entry();
// Returns the user's object of such a layer, whose element type the chain has checked.
template <class T>
CustomLayer<T>& custom_layer(const Layer& layer) {
    return dynamic_cast<CustomLayer<T>&>(*layer.custom);
}
// Returns the entry of a layer, or null if there is none of its type.
inline const LayerEntry* entry_of(const Layer& layer) {
    return layer.custom != nullptr ? &custom_entry() : find_entry(layer.type);
}
// Gives a layer of the type "Activation" the type of the activation that it names. Throws
// std::invalid_argument for an unknown name.
void resolve_activation(Layer&);

}  // namespace pyoptim::core
