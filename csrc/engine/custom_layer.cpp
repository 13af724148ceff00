// Layers that the C++ API's users write.
#include <algorithm>

#include "engine/layer.hpp"

namespace pyoptim::core {

namespace {

template <class T>
class CustomLayerRunner final : public CompiledLayer<T> {
  public:
    CustomLayerRunner(const LayerView<T>& of, std::size_t)
        : layer_(custom_layer<T>(*of.layer)),
          width_(static_cast<std::size_t>(of.in.size)),
          parameters_(of.array("parameters")),
          trainable_(of.layer->trainable) {}

    void forward(const Forward<T>& to) override {
        layer_.forward({to.n, width_, to.x, to.y, parameters_.value, to.training});
    }

    void backward(const Backward<T>& of) override {
        layer_.backward({of.n, width_, of.x, of.y, of.dy, of.dx, parameters_.value,
                         trainable_ ? parameters_.gradient : nullptr});
    }

  private:
    CustomLayer<T>& layer_;
    std::size_t width_;
    LayerArray<T> parameters_;
    bool trainable_;
};

LayerEntry make_entry() {
    LayerEntry entry{"Custom", {}};
    entry.output = [](Layer& layer, const Width& in) {
        const auto given = static_cast<std::size_t>(in.size);
        const std::size_t wanted = layer.custom->inputs(), out = layer.custom->outputs(given);
        if (wanted != 0 && wanted != given) {
            throw std::invalid_argument("takes " + std::to_string(wanted) + " inputs, not " +
                                        std::to_string(given));
        }
        if (out == 0 || out > kMostElements) {
            throw std::invalid_argument("has " + std::to_string(out) + " outputs, expected from 1 to " +
                                        std::to_string(kMostElements));
        }
        return Width{static_cast<std::ptrdiff_t>(out), static_cast<std::ptrdiff_t>(out)};
    };
    entry.arrays = [](const Layer& layer) -> std::vector<ArrayInfo> {
        const std::size_t count = layer.custom->parameter_count();
        if (count > kMostElements) throw std::invalid_argument("has more parameters than memory can hold");
        if (count == 0) return {};
        return {{"parameters", {static_cast<std::ptrdiff_t>(count)}, Role::parameter, Initial::custom}};
    };
    entry.inputs = [](const Layer& layer) {
        return static_cast<std::ptrdiff_t>(std::min(layer.custom->inputs(), kMostElements));
    };
    entry.states_whole_input = true;
    entry.takes_whole_batches = true;
    return entry;
}

}  // namespace

const LayerEntry& custom_entry() {
    static const LayerEntry entry = make_entry();
    return entry;
}

template <class T, bool trains>
LayerMakers<T> custom_makers() {
    return {{"Custom", make_object<CustomLayerRunner<T>, T>}};
}

#define X(T)                                          \
    template LayerMakers<T> custom_makers<T, true>(); \
    template LayerMakers<T> custom_makers<T, false>();
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
