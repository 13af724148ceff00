// Models in the format of pyoptim/nn/checkpoint.py: a safetensors file (8 bytes of length, a JSON header, the
// data) whose metadata describes the layers.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "api/json.hpp"
#include "api/layer_json.hpp"
#include "api/network_impl.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace pyoptim {

namespace {

using core::Json;
using core::quoted;
using Kind = Json::Kind;

constexpr const char* kFormat = "pyoptim-model-1";

// An array of a network as a file has it; the network owns the memory.
struct Tensor {
    std::string name, dtype;
    std::vector<std::ptrdiff_t> shape;
    void* data;
    std::size_t bytes;
};

template <class T>
constexpr const char* kDtype = sizeof(T) == 4 ? "F32" : "F64";
template <class T>
constexpr const char* kDtypeName = sizeof(T) == 4 ? "float32" : "float64";

// Every array of a network, those with 8-byte elements first, so that every array is aligned in the file.
template <class T, class Impl>
std::vector<Tensor> tensors(Impl& impl) {
    std::vector<Tensor> counts, all;
    for (const core::LayerView<T>& view : impl.chain.views()) {
        for (const core::LayerArray<T>& array : view.arrays) {
            const std::string name = view.name + array.name;
            if (array.role == core::Role::counter) {
                counts.push_back({name, "I64", array.shape, array.count, sizeof(std::int64_t)});
            } else {
                const auto bytes = static_cast<std::size_t>(array.size()) * sizeof(T);
                all.push_back({name, kDtype<T>, array.shape, array.value, bytes});
            }
        }
    }
    counts.insert(counts.end(), all.begin(), all.end());
    return counts;
}

bool is_shape(const Json& given, const std::vector<std::ptrdiff_t>& shape) {
    return std::equal(given.items.begin(), given.items.end(), shape.begin(), shape.end(),
                      [](const Json& n, std::ptrdiff_t m) { return n.number == static_cast<double>(m); });
}

// Whether no array of a layer has more than `most` elements, which is asked before memory is allocated.
bool hold(const std::vector<Layer>& layers, std::ptrdiff_t most) {
    for (const Layer& layer : layers) {
        for (const core::ArrayInfo& array : core::find_entry(layer.type)->arrays(layer)) {
            std::ptrdiff_t left = most;
            for (const std::ptrdiff_t n : array.shape) left = n > 0 ? left / n : left;
            if (left < 1) return false;
        }
        if (!hold(layer.block, most)) return false;
    }
    return true;
}

}  // namespace

template <class T>
void Network<T>::save(const std::string& path) const {
    std::ostringstream header;
    header.imbue(std::locale::classic());
    const std::string description = std::string(R"({"format": ")") + kFormat + R"(", "layers": )" +
                                    core::described(impl_->chain.layers()) + R"(, "dtype": ")" +
                                    kDtypeName<T> + "\"}";
    header << R"({"__metadata__":{"pyoptim":)" << quoted(description) << "}";
    const std::vector<Tensor> all = tensors<T>(*impl_);
    std::size_t offset = 0;
    for (const Tensor& tensor : all) {
        header << "," << quoted(tensor.name) << R"(:{"dtype":")" << tensor.dtype << R"(","shape":[)";
        for (std::size_t i = 0; i < tensor.shape.size(); ++i) header << (i > 0 ? "," : "") << tensor.shape[i];
        header << R"(],"data_offsets":[)" << offset << "," << offset + tensor.bytes << "]}";
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
        const std::vector<Layer> layers = core::layers_from(description.at("layers", Kind::list));
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
                !is_shape(entry.at("shape", Kind::list), tensor.shape) || offsets.items.size() != 2) {
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
