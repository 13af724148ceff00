// Models in the format of pyoptim/nn/checkpoint.py: a safetensors file whose description lists the layers.
#include <map>
#include <stdexcept>
#include <utility>

#include "api/layer_json.hpp"
#include "api/model_file.hpp"
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

// What a file of a network has.
template <class T>
struct Content {
    explicit Content(const core::Chain<T>& chain)
        : description(std::string(R"({"format": ")") + kFormat + R"(", "layers": )" +
                      core::described(chain.layers()) + R"(, "dtype": ")" + kDtypeName<T> + "\"}") {
        for (auto& [tensor, memory] : stored(chain)) {
            tensors.push_back(tensor);
            data.push_back(memory);
        }
    }
    std::string description;
    std::vector<core::Tensor> tensors;
    std::vector<const void*> data;
};

// Returns the layers that a file describes, if they are of this element type.
template <class T>
std::vector<Layer> layers_in(const core::TensorFile& file) {
    const core::Json& description = file.description();
    if (description.at("format", Kind::text).text != kFormat) {
        throw std::runtime_error("its format is another");
    }
    if (description.at("dtype", Kind::text).text != kDtypeName<T>) {
        throw std::runtime_error("it is of " + description.at("dtype", Kind::text).text);
    }
    std::vector<Layer> layers = core::layers_from(description.at("layers", Kind::list));
    check_layers<T>(layers, file);
    return layers;
}

template <class T>
void read_into(const core::Chain<T>& chain, core::TensorFile& file) {
    std::map<std::string, void*> memory;
    for (const auto& [tensor, at] : stored(chain)) memory[tensor.name] = at;
    std::vector<void*> to;
    for (const core::Tensor& tensor : file.tensors()) to.push_back(memory.at(tensor.name));
    file.read(to);
}

}  // namespace

template <class T>
void Network<T>::save(const std::string& path) const {
    const Content<T> content(impl_->chain);
    core::write_tensors(path, content.description, content.tensors, content.data);
}

template <class T>
std::vector<std::uint8_t> Network<T>::save() const {
    const Content<T> content(impl_->chain);
    return core::tensors_in_memory(content.description, content.tensors, content.data);
}

template <class T>
void core::read_model(const std::string& path, const MakeModel<T>& make) {
    try {
        core::TensorFile file(path);
        read_into(make(layers_in<T>(file)), file);
    } catch (const std::exception& error) {
        throw std::runtime_error(path + " cannot be loaded: " + error.what());
    }
}

template <class T>
void core::read_model(const void* bytes, std::size_t size, const MakeModel<T>& make) {
    try {
        core::TensorFile file(bytes, size);
        read_into(make(layers_in<T>(file)), file);
    } catch (const std::exception& error) {
        throw std::runtime_error(std::string("the network in memory cannot be loaded: ") + error.what());
    }
}

namespace {

template <class... Source>
bool says_float64(const Source&... of) {
    try {
        return core::TensorFile(of...).description().at("dtype", Kind::text).text == kDtypeName<double>;
    } catch (const std::exception&) {
        return false;
    }
}

}  // namespace

bool core::is_of_float64(const std::string& path) { return says_float64(path); }
bool core::is_of_float64(const void* bytes, std::size_t size) { return says_float64(bytes, size); }

namespace {

// The network of a model's file, or of its bytes.
template <class T, class Impl, class... File>
std::unique_ptr<Impl> loaded(const File&... file) {
    std::unique_ptr<Impl> impl;
    core::read_model<T>(file..., [&](const std::vector<Layer>& layers) -> core::Chain<T>& {
        impl = std::make_unique<Impl>(layers);
        return impl->chain;
    });
    return impl;
}

}  // namespace

template <class T>
Network<T> Network<T>::load(const std::string& path) {
    return Network(loaded<T, Impl>(path));
}
template <class T>
Network<T> Network<T>::load(const void* bytes, std::size_t size) {
    return Network(loaded<T, Impl>(bytes, size));
}

#define X(T)                                                                          \
    template void core::read_model<T>(const std::string&, const MakeModel<T>&);       \
    template void core::read_model<T>(const void*, std::size_t, const MakeModel<T>&); \
    template void Network<T>::save(const std::string&) const;                         \
    template std::vector<std::uint8_t> Network<T>::save() const;                      \
    template Network<T> Network<T>::load(const std::string&);                         \
    template Network<T> Network<T>::load(const void*, std::size_t);
X(float)
X(double)
#undef X

}  // namespace pyoptim
