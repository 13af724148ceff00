#include <algorithm>

#include "engine/layer.hpp"
#include "layers/activation_names.hpp"

namespace pyoptim::core {

namespace {

constexpr std::ptrdiff_t kMost = 1 << 30;  // the most inputs or outputs of a layer

template <class T, bool trains>
class DenseLayer final : public CompiledLayer<T> {
  public:
    DenseLayer(const LayerView<T>& of, std::size_t capacity)
        : in_(of.in.size),
          out_(of.out.size),
          activation_(activation_named(of.layer->activation)),
          trainable_(of.layer->trainable),
          weight_(of.array("weight")),
          bias_(of.array("bias")),
          dz_(trains ? std::min(capacity, kFused) * static_cast<std::size_t>(out_) : 0) {}

    bool takes_sparse() const override { return true; }

    void forward(const Forward<T>& to) override {
        if (to.sparse != nullptr) {
            sparse_forward<T>(shape(to.n), *to.sparse, weight_.value, bias_.value, activation_, to.y);
            return;
        }
        dense_forward<T>(shape(to.n), to.x, weight_.value, bias_.value, activation_, to.y);
    }

    void prepare(std::size_t n) override {
        copies_ = copy_.pays(shape(n));
        if (copies_) copy_.prepare(shape(n));
    }
    void copy(int part, int parts) override {
        if (copies_) copy_.update(shape(0), weight_.value, part, parts);
    }
    void evaluate(std::size_t whole, std::size_t n, const T* x, T* y) override {
        if (copies_ && copy_.pays(shape(whole))) {
            copy_.forward(shape(n), x, bias_.value, activation_, y);
        } else {
            dense_alone<T>(shape(n), x, weight_.value, bias_.value, activation_, y);
        }
    }

    void backward([[maybe_unused]] const Backward<T>& of) override {
        if constexpr (trains) {
            if (of.sparse != nullptr) {
                sparse_backward<T>(shape(of.n), *of.sparse, of.dy, of.y, activation_, weight_.gradient,
                                   bias_.gradient);
                return;
            }
            const bool fused = of.fused_weight != nullptr;
            T* const dz = fused ? dz_.data() : nullptr;
            dense_backward<T>(shape(of.n), {of.dy, of.x, weight_.value, of.y, activation_},
                              {of.dx, fused || !trainable_ ? nullptr : weight_.gradient,
                               trainable_ ? bias_.gradient : nullptr, dz});
            if (fused) of.updates->push_back({shape(of.n), dz, of.x, *of.fused_weight});
        }
    }

    bool takes_pieces() const override { return trains && DenseRows<T>::suits(shape(0)); }
    std::size_t piece_memory(std::size_t n, std::size_t rows) const override {
        return of(n).memory() + rows * static_cast<std::size_t>(out_);
    }
    void begin_pieces(std::size_t n, T* memory) const override { of(n).copy(memory); }
    void forward_piece(std::size_t n, const Forward<T>& to, T* memory) override {
        of(n).forward(static_cast<std::ptrdiff_t>(to.n), to.x, to.y, memory);
    }
    void backward_piece([[maybe_unused]] std::size_t n, [[maybe_unused]] const Backward<T>& piece,
                        [[maybe_unused]] T* const* gradients, [[maybe_unused]] T* memory) override {
        if constexpr (trains) {
            const DenseRows<T> rows = of(n);
            rows.backward(
                static_cast<std::ptrdiff_t>(piece.n),
                {piece.dy, piece.x, weight_.value, piece.y, activation_},
                {piece.dx, trainable_ ? gradients[0] : nullptr,
                 trainable_ && bias_.value != nullptr ? gradients[1] : nullptr, memory + rows.memory()},
                memory);
        }
    }

    std::pair<T*, std::size_t> fusible_gradient() const override {
        return {weight_.gradient, static_cast<std::size_t>(in_ * out_)};
    }

  private:
    DenseShape shape(std::size_t n) const { return {static_cast<std::ptrdiff_t>(n), in_, out_}; }
    DenseRows<T> of(std::size_t n) const { return {shape(n), weight_.value, bias_.value, activation_}; }

    std::ptrdiff_t in_, out_;
    Activation activation_;
    bool trainable_;
    LayerArray<T> weight_, bias_;
    std::vector<T> dz_;    // the gradient before the activation, which a fused update needs
    bool copies_ = false;  // whether a prediction multiplies by a copy of the weight
    DenseCopy<T> copy_;
};

Width output(Layer& layer, const Width& in) {
    if (layer.in != in.size || layer.out <= 0 || layer.in > kMost || layer.out > kMost) {
        throw std::invalid_argument("has " + std::to_string(layer.in) + " inputs and " +
                                    std::to_string(layer.out) + " outputs, expected " +
                                    std::to_string(in.size) +
                                    " inputs and at least one output, of each at most 2^30");
    }
    activation_named(layer.activation);
    return {layer.out, layer.out};
}

std::vector<ArrayInfo> arrays(const Layer& layer) {
    std::vector<ArrayInfo> all = {{"weight", {layer.out, layer.in}, Role::parameter, Initial::weight}};
    if (layer.bias) all.push_back({"bias", {layer.out}});
    return all;
}

}  // namespace

std::vector<LayerEntry> dense_entries() {
    LayerEntry dense{"Dense",
                     {{"in_features", &Layer::in},
                      {"out_features", &Layer::out},
                      {"bias", &Layer::bias},
                      {"activation", &Layer::activation}}};
    dense.output = output;
    dense.arrays = arrays;
    dense.inputs = [](const Layer& layer) { return layer.in; };
    dense.states_whole_input = true;
    return {dense};
}

template <class T, bool trains>
LayerMakers<T> dense_makers() {
    return {{"Dense", make_object<DenseLayer<T, trains>, T>}};
}

#define X(T)                                         \
    template LayerMakers<T> dense_makers<T, true>(); \
    template LayerMakers<T> dense_makers<T, false>();
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
