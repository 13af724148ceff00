#include "engine/loss.hpp"

#include <string>
#include <type_traits>
#include <utility>

#include "layers/losses.hpp"

namespace pyoptim::core {

namespace {

void check_weights(const char* name, const std::vector<double>& weights) {
    for (const double weight : weights) {
        if (kNotNegative.contains(weight)) continue;
        throw std::invalid_argument(std::string(name) + " holds " + std::to_string(weight) +
                                    ", expected finite numbers >= 0");
    }
}

template <class T>
class CrossEntropyLoss final : public CompiledLoss<T> {
  public:
    CrossEntropyLoss(const Loss& of, std::size_t)
        : class_weight_(of.class_weight.begin(), of.class_weight.end()), smoothing_(of.label_smoothing) {}

    double compute(const LossBatch<T>& of) const override {
        return cross_entropy<T>(
            {static_cast<std::ptrdiff_t>(of.columns), of.output, of.labels, of.targets, of.weight,
             class_weight_.empty() ? nullptr : class_weight_.data(), smoothing_, of.gradient},
            static_cast<std::ptrdiff_t>(of.rows));
    }

  private:
    std::vector<T> class_weight_;
    double smoothing_;
};

template <class T>
class KLDivLoss final : public CompiledLoss<T> {
  public:
    KLDivLoss(const Loss& of, std::size_t) : temperature_(of.temperature) {}

    double compute(const LossBatch<T>& of) const override {
        return cross_entropy<T>({static_cast<std::ptrdiff_t>(of.columns), of.output, nullptr, of.targets,
                                 of.weight, nullptr, 0, of.gradient, temperature_, true},
                                static_cast<std::ptrdiff_t>(of.rows));
    }

  private:
    double temperature_;
};

// The mean of a function of each output and its target.
template <class T, cpu::PointwiseKind kind>
class PointwiseLoss final : public CompiledLoss<T> {
  public:
    PointwiseLoss(const Loss& of, std::size_t outputs) {
        if (kind == cpu::PointwiseKind::huber) parameter_ = static_cast<T>(of.delta);
        if (kind != cpu::PointwiseKind::binary) return;
        parameter_ = static_cast<T>(of.pos_weight);
        for (std::size_t i = 0; i < outputs && !of.pos_weights.empty(); ++i) {
            columns_.push_back(static_cast<T>(of.pos_weights[i % of.pos_weights.size()]));
        }
    }

    double compute(const LossBatch<T>& of) const override {
        return pointwise_loss<T>({kind, parameter_, columns_.empty() ? nullptr : columns_.data()},
                                 {of.rows, of.columns, of.output, of.targets, of.weight, of.gradient});
    }

  private:
    T parameter_ = 1;
    std::vector<T> columns_;  // the parameter of each column, where they differ
};

// An entry whose loss a class template computes: Compiled<T>(loss, outputs).
template <template <class> class Compiled>
LossEntry entry_of(const char* type, std::vector<Option<Loss>> options = {}) {
    LossEntry entry{type, std::move(options)};
    entry.make_float = [](const Loss& loss, std::size_t outputs) {
        return std::unique_ptr<CompiledLoss<float>>(new Compiled<float>(loss, outputs));
    };
    entry.make_double = [](const Loss& loss, std::size_t outputs) {
        return std::unique_ptr<CompiledLoss<double>>(new Compiled<double>(loss, outputs));
    };
    return entry;
}

template <cpu::PointwiseKind kind>
struct Pointwise {
    template <class T>
    using Of = PointwiseLoss<T, kind>;
};

std::vector<LossEntry> all_entries() {
    using Kind = cpu::PointwiseKind;
    LossEntry cross_entropy = entry_of<CrossEntropyLoss>(
        "CrossEntropy",
        {{"class_weight", &Loss::class_weight}, {"label_smoothing", &Loss::label_smoothing, kShare}});
    cross_entropy.classification = true;
    cross_entropy.targets = kNotNegative;
    cross_entropy.check = [](const Loss& loss, std::size_t outputs) {
        check_weights("class_weight", loss.class_weight);
        if (loss.class_weight.empty() || loss.class_weight.size() == outputs) return;
        throw std::invalid_argument("class_weight has " + std::to_string(loss.class_weight.size()) +
                                    " elements, expected " + std::to_string(outputs));
    };
    LossEntry binary = entry_of<Pointwise<Kind::binary>::Of>(
        "BinaryCrossEntropy",
        {{"pos_weight", &Loss::pos_weight, kNotNegative}, {"pos_weight", &Loss::pos_weights}});
    binary.targets = kShare;
    binary.check = [](const Loss& loss, std::size_t outputs) {
        check_weights("pos_weights", loss.pos_weights);
        if (loss.pos_weights.empty() || outputs % loss.pos_weights.size() == 0) return;
        throw std::invalid_argument("pos_weights has " + std::to_string(loss.pos_weights.size()) +
                                    " elements, expected one for each of " + std::to_string(outputs) +
                                    " outputs");
    };
    LossEntry kl_div = entry_of<KLDivLoss>("KLDiv", {{"temperature", &Loss::temperature, kPositive}});
    kl_div.targets = kNotNegative;
    LossEntry hinge = entry_of<Pointwise<Kind::hinge>::Of>("Hinge");
    hinge.targets = {-1, 1, "-1 or 1"};
    hinge.only_ends = true;
    return {cross_entropy,
            kl_div,
            entry_of<Pointwise<Kind::squared>::Of>("MSE"),
            entry_of<Pointwise<Kind::absolute>::Of>("L1"),
            entry_of<Pointwise<Kind::huber>::Of>("Huber", {{"delta", &Loss::delta, kPositive}}),
            binary,
            hinge};
}

}  // namespace

const std::vector<LossEntry>& loss_entries() {
    static const std::vector<LossEntry> all = all_entries();
    return all;
}

const LossEntry& loss_entry(const std::string& type) {
    for (const LossEntry& entry : loss_entries()) {
        if (type == entry.type) return entry;
    }
    throw std::invalid_argument("there is no loss named '" + type + "'");
}

template <class T>
std::unique_ptr<CompiledLoss<T>> make_loss(const Loss& loss, std::size_t outputs) {
    const LossEntry& entry = loss_entry(loss.type);
    try {
        check_numbers(loss, entry.options);
        entry.check(loss, outputs);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument("loss (" + loss.type + ") " + error.what());
    }
    if constexpr (std::is_same_v<T, float>) {
        return entry.make_float(loss, outputs);
    } else {
        return entry.make_double(loss, outputs);
    }
}

template std::unique_ptr<CompiledLoss<float>> make_loss(const Loss&, std::size_t);
template std::unique_ptr<CompiledLoss<double>> make_loss(const Loss&, std::size_t);

}  // namespace pyoptim::core
