#include <string>

#include "engine/layer.hpp"
#include "layers/activation_names.hpp"
#include "layers/activations.hpp"

namespace pyoptim::core {

namespace {

// A kind of layer that applies a formula to each element. Its options that are numbers are the parameters a
// and b of the formula.
struct Elementwise {
    std::string type;
    Activation formula;
    std::vector<Option<Layer>> options = {};
};

// Capitalizes a name: "hardsigmoid" becomes "Hardsigmoid".
std::string capitalized(std::string name) {
    if (name[0] >= 'a' && name[0] <= 'z') name[0] = static_cast<char>(name[0] - 'a' + 'A');
    return name;
}

// Formulas without options, whose layer is named after them with a capital letter, need no line here.
std::vector<Elementwise> all_elementwise() {
    std::vector<Elementwise> all = {
        {"ReLU", Activation::relu},
        {"LeakyReLU", Activation::leaky_relu, {{"slope", &Layer::slope, kNotNegative}}},
        {"ELU", Activation::elu, {{"alpha", &Layer::alpha, kNotNegative}}},
        {"SELU", Activation::selu},
        {"SiLU", Activation::silu},
        {"Softplus", Activation::softplus, {{"beta", &Layer::beta, kPositive}}},
        {"Hardtanh", Activation::hardtanh, {{"low", &Layer::low}, {"high", &Layer::high}}},
        {"GELU", Activation::gelu, {{"approximate", &Layer::approximate, kFinite, false, "tanh", "none"}}},
    };
    const std::size_t listed = all.size();
    for (int i = 0; i < static_cast<int>(Activation::count); ++i) {
        bool known = static_cast<Activation>(i) == Activation::gelu_tanh;  // which GELU has as an option
        for (std::size_t k = 0; k < listed; ++k) known = known || static_cast<int>(all[k].formula) == i;
        if (!known) all.push_back({capitalized(kActivationNames[i]), static_cast<Activation>(i)});
    }
    return all;
}

const std::vector<Elementwise>& elementwise() {
    static const std::vector<Elementwise> all = all_elementwise();
    return all;
}

ActivationSpec formula_of(const Layer& layer) {
    for (const Elementwise& kind : elementwise()) {
        if (layer.type != kind.type) continue;
        double numbers[2] = {0, 0};
        std::size_t n = 0;
        for (const Option<Layer>& option : kind.options) {
            if (const auto* number = std::get_if<double Layer::*>(&option.member)) {
                numbers[n++] = layer.*(*number);
            }
        }
        const bool by_tanh = kind.formula == Activation::gelu && layer.approximate;
        return {by_tanh ? Activation::gelu_tanh : kind.formula, numbers[0], numbers[1]};
    }
    throw std::logic_error("no elementwise activation");
}

template <class T, bool trains>
class ElementwiseLayer final : public CompiledLayer<T> {
  public:
    ElementwiseLayer(const LayerView<T>& of, std::size_t)
        : formula_(formula_of(*of.layer)), width_(static_cast<std::size_t>(of.in.size)) {}

    void forward(const Forward<T>& to) override { activation_forward(formula_, to.n * width_, to.x, to.y); }

    void backward([[maybe_unused]] const Backward<T>& of) override {
        if constexpr (trains) {
            const T* const kept = keeps_input(formula_.kind) ? of.x : of.y;
            activation_backward(formula_, of.n * width_, of.dy, kept, of.dy);
        }
    }

    bool works_in_place() const override { return true; }

    bool takes_pieces() const override { return true; }

  private:
    ActivationSpec formula_;
    std::size_t width_;
};

// Softmax over the last dimension of the input, or its logarithm.
template <class T, bool trains>
class SoftmaxLayer final : public CompiledLayer<T> {
  public:
    SoftmaxLayer(const LayerView<T>& of, std::size_t)
        : log_(of.layer->type == std::string("LogSoftmax")),
          classes_(of.in.last),
          rows_(of.in.size / of.in.last) {}

    void forward(const Forward<T>& to) override {
        softmax_forward<T>(log_, static_cast<std::ptrdiff_t>(to.n) * rows_, classes_, to.x, to.y);
    }

    void backward([[maybe_unused]] const Backward<T>& of) override {
        if constexpr (trains) {
            if (of.dx == nullptr) return;
            softmax_backward<T>(log_, static_cast<std::ptrdiff_t>(of.n) * rows_, classes_, of.dy, of.y,
                                of.dx);
        }
    }

  private:
    bool log_;
    std::ptrdiff_t classes_, rows_;
};

}  // namespace

std::vector<LayerEntry> activation_entries() {
    std::vector<LayerEntry> all;
    for (const Elementwise& kind : elementwise()) {
        all.push_back({kind.type.c_str(), kind.options});
        if (kind.formula != Activation::hardtanh) continue;
        all.back().output = [](Layer& layer, const Width& in) {
            if (!(layer.low < layer.high))
                throw std::invalid_argument("has a low that is not below its high");
            return in;
        };
    }
    for (const char* type : {"Softmax", "LogSoftmax"}) {
        all.push_back({type, {}});
        all.back().output = [](Layer&, const Width& in) {
            if (in.last > 0) return in;
            throw std::invalid_argument(
                "is over the last dimension of inputs that are flattened later, whose shape is not known");
        };
    }
    return all;
}

void resolve_activation(Layer& layer) {
    if (layer.activation.empty()) throw std::invalid_argument("is an activation without a name");
    const Activation wanted = any_activation_named(layer.activation);
    layer.approximate = wanted == Activation::gelu_tanh;
    for (const Elementwise& kind : elementwise()) {
        if (kind.formula == (layer.approximate ? Activation::gelu : wanted)) layer.type = kind.type;
    }
}

template <class T, bool trains>
LayerMakers<T> activation_makers() {
    LayerMakers<T> all = {{"Softmax", make_object<SoftmaxLayer<T, trains>, T>},
                          {"LogSoftmax", make_object<SoftmaxLayer<T, trains>, T>}};
    for (const Elementwise& kind : elementwise()) {
        all.emplace_back(kind.type, make_object<ElementwiseLayer<T, trains>, T>);
    }
    return all;
}

#define X(T)                                              \
    template LayerMakers<T> activation_makers<T, true>(); \
    template LayerMakers<T> activation_makers<T, false>();
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
