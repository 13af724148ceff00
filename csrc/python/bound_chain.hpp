// A chain of layers over arrays that Python owns.
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "api/layer_json.hpp"
#include "engine/chain.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

// The layers as a model's file describes them, the elements of an example and the length of its last
// dimension, all parameters, all gradients, and the buffers by their names in files.
template <class T>
using Model = std::tuple<std::string, std::pair<std::ptrdiff_t, std::ptrdiff_t>, Array<T>, Array<T>,
                         std::map<std::string, py::array>>;

// Keeps the arrays alive.
template <class T>
class BoundChain {
  public:
    explicit BoundChain(const Model<T>& model)
        : chain_(core::layers_from(std::get<0>(model)), checked(std::get<1>(model))) {
        const auto& [layers, input, parameters, gradients, buffers] = model;
        const auto size = static_cast<py::ssize_t>(chain_.parameter_count());
        require(parameters.size() == size && gradients.size() == size, "layers and parameters");
        chain_.bind(claim(parameters), claim(gradients));
        for (core::LayerView<T>& view : chain_.views()) {
            for (core::LayerArray<T>& array : view.arrays) {
                if (array.role == core::Role::parameter) continue;
                const auto found = buffers.find(view.name + array.name);
                require(found != buffers.end() && found->second.size() == array.size(), "buffers of a layer");
                if (array.role == core::Role::buffer) {
                    require(py::isinstance<Array<T>>(found->second), "a buffer is of another type");
                    array.value = claim(found->second.template cast<Array<T>>());
                } else {
                    using Counter = Array<std::int64_t>;
                    require(py::isinstance<Counter>(found->second), "a counter is of another type");
                    kept_.push_back(found->second);
                    array.count = found->second.template cast<Counter>().mutable_data();
                }
            }
        }
    }

    const std::vector<core::LayerView<T>>& views() const { return chain_.views(); }

    // Keeps an array alive and returns its memory.
    T* claim(Array<T> array) {
        kept_.push_back(array);
        return array.mutable_data();  // throws if read-only
    }

  private:
    static core::Width checked(const std::pair<std::ptrdiff_t, std::ptrdiff_t>& input) {
        const auto [size, last] = input;
        require(size >= 0 && last >= 0 && (last == 0 || size % last == 0), "the elements of an example");
        return {size, last};
    }

    std::vector<py::array> kept_;
    core::Chain<T> chain_;
};

}  // namespace pyoptim::python
