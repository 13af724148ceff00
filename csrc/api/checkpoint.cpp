// Models as pyoptim/checkpoint.py writes them: a safetensors file (8 bytes of length, a JSON header, the
// data) with the layers in its metadata.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "api/json.hpp"
#include "api/layer_json.hpp"
#include "api/network_impl.hpp"
#include "layers/activation_names.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace pyoptim {

namespace {

using core::FusedActivation;
using core::Json;
using core::quoted;
using Kind = Json::Kind;

constexpr const char* kFormat = "pyoptim-model-1";

const char* flag(bool value) { return value ? "true" : "false"; }

std::string describe_all(const std::vector<Layer>& layers);

std::string describe(const Layer& layer) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    if (layer.type == "Dense") {
        out << R"({"type": "Dense", "in_features": )" << layer.in << R"(, "out_features": )" << layer.out
            << R"(, "bias": )" << flag(layer.bias) << R"(, "activation": )"
            << (layer.activation.empty() ? "null" : quoted(layer.activation)) << "}";
    } else if (layer.type == "BatchNorm") {
        out << R"({"type": "BatchNorm", "features": )" << layer.in << R"(, "eps": )"
            << core::shortest(layer.eps) << R"(, "momentum": )"
            << (layer.momentum < 0 ? "null" : core::shortest(layer.momentum)) << R"(, "affine": )"
            << flag(layer.affine) << R"(, "track_running_stats": )" << flag(layer.track_running_stats)
            << R"(, "running_var": )" << (layer.unbiased ? R"("unbiased")" : R"("biased")")
            << R"(, "activation": )" << (layer.activation.empty() ? "null" : quoted(layer.activation)) << "}";
    } else if (layer.type == "Rescale") {
        out << R"({"type": "Rescale", "scale": )" << core::shortest(layer.scale) << R"(, "shift": )"
            << core::shortest(layer.shift) << "}";
    } else if (layer.type == "Activation") {
        for (const FusedActivation& fused : core::kFusedActivations) {
            if (layer.activation == fused.name()) out << R"({"type": ")" << fused.layer << R"("})";
        }
    } else if (layer.type == "Residual") {
        out << R"({"type": "Residual", "block": )" << describe_all(layer.block) << "}";
    } else {
        out << R"({"type": )" << quoted(layer.type) << "}";
    }
    std::string text = out.str();
    if (!layer.trainable && layer.type != "Residual") text.insert(text.size() - 1, R"(, "trainable": false)");
    return text;
}

std::string describe_all(const std::vector<Layer>& layers) {
    std::string text;
    for (const Layer& layer : layers) text += (text.empty() ? "[" : ", ") + describe(layer);
    return text + "]";
}

std::vector<Layer> layers_of(const Json& list);

Layer known_layer_from(const Json& given) {
    Layer layer;
    layer.type = given.at("type", Kind::text).text;
    const Json* const trainable = given.find("trainable");
    if (trainable != nullptr) layer.trainable = given.at("trainable", Kind::boolean).boolean;
    for (const FusedActivation& fused : core::kFusedActivations) {
        if (layer.type != fused.layer) continue;
        layer.type = "Activation";
        layer.activation = fused.name();
        return layer;
    }
    const auto count = [&](const char* name) {
        const double value = given.at(name, Kind::number).number;
        if (!(value >= 1 && value <= 0x1p28))
            throw std::runtime_error(std::string("it has no valid ") + name);
        return static_cast<std::ptrdiff_t>(value);
    };
    // What may be null, or missing in older files; nothing else may stand in for it.
    const auto optional = [&](const char* name, Kind kind) -> const Json* {
        const Json* const found = given.find(name);
        return found == nullptr || found->kind == Kind::null ? nullptr : &given.at(name, kind);
    };
    const auto read_activation = [&] {
        const Json* const name = optional("activation", Kind::text);
        if (name == nullptr) return;
        if (name->text.empty()) throw std::runtime_error("it has no valid activation");
        layer.activation = name->text;
    };
    if (layer.type == "Dense") {
        layer.in = count("in_features");
        layer.out = count("out_features");
        layer.bias = given.at("bias", Kind::boolean).boolean;
        read_activation();
    } else if (layer.type == "BatchNorm") {
        layer.in = layer.out = count("features");
        layer.eps = given.at("eps", Kind::number).number;
        if (const Json* const momentum = optional("momentum", Kind::number)) {
            layer.momentum = momentum->number;
            if (!(layer.momentum >= 0)) throw std::runtime_error("it has no valid momentum");
        } else if (given.find("momentum") != nullptr) {
            layer.momentum = -1;
        }
        layer.affine = given.at("affine", Kind::boolean).boolean;
        layer.track_running_stats = given.at("track_running_stats", Kind::boolean).boolean;
        const std::string& variance = given.at("running_var", Kind::text).text;
        layer.unbiased = variance == "unbiased";
        if (!layer.unbiased && variance != "biased") throw std::runtime_error("it has no valid running_var");
        read_activation();
    } else if (layer.type == "Rescale") {
        layer.scale = given.at("scale", Kind::number).number;
        layer.shift = given.at("shift", Kind::number).number;
    } else if (layer.type == "Residual") {
        layer.block = layers_of(given.at("block", Kind::list));
    } else if (layer.type != "Flatten") {
        throw std::runtime_error("its layer " + layer.type + " is none of the C++ API's");
    }
    return layer;
}

// An argument that is not one of ours would change what the layer computes.
Layer layer_from(const Json& given) {
    Layer layer = known_layer_from(given);
    const Json ours = core::parse_json(describe(layer));
    for (const auto& [name, value] : given.entries) {
        if (name != "trainable" && ours.find(name) == nullptr) {
            throw std::runtime_error("its layer " + ours.at("type", Kind::text).text +
                                     " has no argument named " + name);
        }
    }
    return layer;
}

struct Tensor {
    std::string name, dtype, shape;
    void* data;
    std::size_t bytes;
};

template <class T>
constexpr const char* kDtype = sizeof(T) == 4 ? "F32" : "F64";
template <class T>
constexpr const char* kDtypeName = sizeof(T) == 4 ? "float32" : "float64";

// Every array of a network, those of 8 bytes first, so that all lie as their type wants.
template <class T, class Impl>
std::vector<Tensor> tensors(Impl& impl) {
    std::vector<Tensor> counts, all;
    for (std::size_t k = 0; k < impl.views.size(); ++k) {
        const auto& view = impl.views[k];
        const bool dense = view.kind == core::LayerKind::dense;
        const std::string& prefix = impl.names[k];
        const auto add = [&](const char* name, T* data, std::ptrdiff_t rows, std::ptrdiff_t cols) {
            if (data == nullptr) return;
            std::string shape = "[" + std::to_string(rows);
            if (cols > 0) shape += "," + std::to_string(cols);
            const auto n = static_cast<std::size_t>(rows * (cols > 0 ? cols : 1));
            all.push_back({prefix + name, kDtype<T>, shape + "]", data, n * sizeof(T)});
        };
        const std::ptrdiff_t own = dense ? view.out : view.channels;
        add("weight", view.weight, own, dense ? view.in : 0);
        add("bias", view.bias, own, 0);
        add("running_mean", view.running_mean, own, 0);
        add("running_var", view.running_var, own, 0);
        if (view.tracked != nullptr) {
            counts.push_back({prefix + "num_batches_tracked", "I64", "[]", view.tracked, 8});
        }
    }
    counts.insert(counts.end(), all.begin(), all.end());
    return counts;
}

std::string no_spaces(const Json& shape) {
    std::string out = "[";
    for (const Json& item : shape.items) {
        out += (out.size() > 1 ? "," : "") + std::to_string(static_cast<long long>(item.number));
    }
    return out + "]";
}

std::vector<Layer> layers_of(const Json& list) {
    std::vector<Layer> layers;
    for (const Json& layer : list.items) layers.push_back(layer_from(layer));
    return layers;
}

// Whether no layer has more than `most` elements: asked before memory is taken for them.
bool hold(const std::vector<Layer>& layers, std::ptrdiff_t most) {
    for (const Layer& layer : layers) {
        if (layer.in > most || !hold(layer.block, most)) return false;
        if (layer.type == "Dense" && layer.in > 0 && layer.out > most / layer.in) return false;
    }
    return true;
}

}  // namespace

std::vector<Layer> core::layers_from(const std::string& json) { return layers_of(parse_json(json)); }

template <class T>
void Network<T>::save(const std::string& path) const {
    std::ostringstream header;
    header.imbue(std::locale::classic());
    const std::string description = std::string(R"({"format": ")") + kFormat + R"(", "layers": )" +
                                    describe_all(impl_->layers) + R"(, "dtype": ")" + kDtypeName<T> + "\"}";
    header << R"({"__metadata__":{"pyoptim":)" << quoted(description) << "}";
    const std::vector<Tensor> all = tensors<T>(*impl_);
    std::size_t offset = 0;
    for (const Tensor& tensor : all) {
        header << "," << quoted(tensor.name) << R"(:{"dtype":")" << tensor.dtype << R"(","shape":)"
               << tensor.shape << R"(,"data_offsets":[)" << offset << "," << offset + tensor.bytes << "]}";
        offset += tensor.bytes;
    }
    std::string text = header.str() + "}";
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::string temporary = path + ".tmp" + std::to_string(reinterpret_cast<std::uintptr_t>(this));
    std::FILE* const file = std::fopen(temporary.c_str(), "wb");
    if (file == nullptr) throw std::runtime_error(path + " cannot be written");
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(text.size() >> (8 * i));
    bool good = std::fwrite(length, 1, 8, file) == 8;
    good = good && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    for (const Tensor& tensor : all) {
        good = good && std::fwrite(tensor.data, 1, tensor.bytes, file) == tensor.bytes;
    }
    good = std::fflush(file) == 0 && good;
#if defined(__unix__) || defined(__APPLE__)
    good = good && fsync(fileno(file)) == 0;
#endif
    good = std::fclose(file) == 0 && good;
    if (!good || std::rename(temporary.c_str(), path.c_str()) != 0) {
        std::remove(temporary.c_str());
        throw std::runtime_error(path + " cannot be written");
    }
}

template <class T>
Network<T> Network<T>::load(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read");
    std::ostringstream whole;
    whole << file.rdbuf();
    const std::string content = whole.str();
    try {
        if (content.size() < 8) throw std::runtime_error("it is too short");
        std::uint64_t length = 0;
        for (int i = 7; i >= 0; --i) {
            length = length << 8 | static_cast<unsigned char>(content[static_cast<std::size_t>(i)]);
        }
        if (length > content.size() - 8) throw std::runtime_error("it is too short");
        const Json header = core::parse_json(content.substr(8, static_cast<std::size_t>(length)));
        const Json description =
            core::parse_json(header.at("__metadata__", Kind::object).at("pyoptim", Kind::text).text);
        if (description.at("format", Kind::text).text != kFormat) {
            throw std::runtime_error("its format is another");
        }
        if (description.at("dtype", Kind::text).text != kDtypeName<T>) {
            throw std::runtime_error("it is of " + description.at("dtype", Kind::text).text);
        }
        const std::string data = content.substr(8 + static_cast<std::size_t>(length));
        const std::vector<Layer> layers = layers_of(description.at("layers", Kind::list));
        if (!hold(layers, static_cast<std::ptrdiff_t>(data.size() / sizeof(T)))) {
            throw std::runtime_error("it is too short for its layers");
        }
        auto impl = std::make_unique<Impl>(layers);
        const std::vector<Tensor> all = tensors<T>(*impl);
        if (header.entries.size() != all.size() + 1)
            throw std::runtime_error("it has arrays of other layers");
        for (const Tensor& tensor : all) {
            const Json& entry = header.at(tensor.name, Kind::object);
            const Json& offsets = entry.at("data_offsets", Kind::list);
            if (entry.at("dtype", Kind::text).text != tensor.dtype ||
                no_spaces(entry.at("shape", Kind::list)) != tensor.shape || offsets.items.size() != 2) {
                throw std::runtime_error("its " + tensor.name + " has another shape or dtype");
            }
            const double begin = offsets.items[0].number, end = offsets.items[1].number;
            if (!(begin >= 0) || end - begin != static_cast<double>(tensor.bytes) ||
                end > static_cast<double>(data.size())) {
                throw std::runtime_error("its " + tensor.name + " is not whole");
            }
            std::memcpy(tensor.data, data.data() + static_cast<std::size_t>(begin), tensor.bytes);
        }
        return Network(std::move(impl));
    } catch (const std::exception& error) {
        throw std::runtime_error(path + " is no model of ours: " + error.what());
    }
}

template void Network<float>::save(const std::string&) const;
template void Network<double>::save(const std::string&) const;
template Network<float> Network<float>::load(const std::string&);
template Network<double> Network<double>::load(const std::string&);

}  // namespace pyoptim
