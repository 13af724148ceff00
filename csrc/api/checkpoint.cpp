// Models in the format of pyoptim/nn/checkpoint.py: a safetensors file whose description lists the layers.
#include <map>
#include <stdexcept>
#include <utility>

#include "api/layer_json.hpp"
#include "api/network_impl.hpp"
#include "api/safetensors.hpp"

namespace pyoptim {

namespace {

using Kind = core::Json::Kind;

constexpr const char* kFormat = "pyoptim-model-1";

template <class T>
constexpr const char* kDtype = sizeof(T) == 4 ? "F32" : "F64";
template <class T>
constexpr const char* kDtypeName = sizeof(T) == 4 ? "float32" : "float64";

// An array of a network as a file has it, and its memory, which the network owns; null if it has none yet.
using Stored = std::pair<core::Tensor, void*>;

// Every array of a network, those with 8-byte elements first, so that every array is aligned in the file.
template <class T>
std::vector<Stored> stored(const core::Chain<T>& chain) {
    std::vector<Stored> counts, all;
    for (const core::LayerView<T>& view : chain.views()) {
        for (const core::LayerArray<T>& array : view.arrays) {
            const std::string name = view.name + array.name;
            if (array.role == core::Role::counter) {
                counts.push_back({{name, "I64", array.shape, sizeof(std::int64_t)}, array.count});
            } else {
                const auto bytes = static_cast<std::size_t>(array.size()) * sizeof(T);
                all.push_back({{name, kDtype<T>, array.shape, bytes}, array.value});
            }
        }
    }
    counts.insert(counts.end(), all.begin(), all.end());
    return counts;
}

// Refuses layers whose arrays are not those of the file, before any memory is taken for them.
template <class T>
void check_layers(const std::vector<Layer>& layers, const core::TensorFile& file) {
    std::map<std::string, const core::Tensor*> held;
    for (const core::Tensor& tensor : file.tensors()) held[tensor.name] = &tensor;
    const auto wanted = stored(core::Chain<T>(layers, core::inputs_of(layers)));
    for (const auto& [tensor, memory] : wanted) {
        const auto found = held.find(tensor.name);
        if (found == held.end()) throw std::runtime_error("it has no " + tensor.name);
        if (!(*found->second == tensor)) {
            throw std::runtime_error("its " + tensor.name + " has another shape or dtype");
        }
    }
    if (held.size() != wanted.size()) throw std::runtime_error("it has arrays of other layers");
}

}  // namespace

template <class T>
void Network<T>::save(const std::string& path) const {
    const std::string description = std::string(R"({"format": ")") + kFormat + R"(", "layers": )" +
                                    core::described(impl_->chain.layers()) + R"(, "dtype": ")" +
                                    kDtypeName<T> + "\"}";
    std::vector<core::Tensor> tensors;
    std::vector<const void*> data;
    for (auto& [tensor, memory] : stored(impl_->chain)) {
        tensors.push_back(tensor);
        data.push_back(memory);
    }
    core::write_tensors(path, description, tensors, data);
}

template <class T>
Network<T> Network<T>::load(const std::string& path) {
    try {
        core::TensorFile file(path);
        const core::Json& description = file.description();
        if (description.at("format", Kind::text).text != kFormat) {
            throw std::runtime_error("its format is another");
        }
        if (description.at("dtype", Kind::text).text != kDtypeName<T>) {
            throw std::runtime_error("it is of " + description.at("dtype", Kind::text).text);
        }
        const std::vector<Layer> layers = core::layers_from(description.at("layers", Kind::list));
        check_layers<T>(layers, file);
        auto impl = std::make_unique<Impl>(layers);
        std::map<std::string, void*> memory;
        for (const auto& [tensor, at] : stored(impl->chain)) memory[tensor.name] = at;
        std::vector<void*> to;
        for (const core::Tensor& tensor : file.tensors()) to.push_back(memory.at(tensor.name));
        file.read(to);
        return Network(std::move(impl));
    } catch (const std::exception& error) {
        throw std::runtime_error(path + " cannot be loaded: " + error.what());
    }
}

template void Network<float>::save(const std::string&) const;
template void Network<double>::save(const std::string&) const;
template Network<float> Network<float>::load(const std::string&);
template Network<double> Network<double>::load(const std::string&);

}  // namespace pyoptim
