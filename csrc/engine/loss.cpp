#include "engine/loss.hpp"

#include <string>
#include <variant>

namespace pyoptim::core {

namespace {

void check_weights(const char* name, const std::vector<double>& weights) {
    for (const double weight : weights) {
        if (kNotNegative.contains(weight)) continue;
        throw std::invalid_argument(std::string(name) + " holds " + std::to_string(weight) +
                                    ", expected finite numbers >= 0");
    }
}

// The losses of logits: cross-entropy and divergence.
template <class T>
class LogitsLoss final : public CompiledLoss<T> {
  public:
    explicit LogitsLoss(const Loss& of) : divergence_(of.type == "KLDiv") {
        if (divergence_) {
            temperature_ = of.temperature;
        } else {
            class_weight_.assign(of.class_weight.begin(), of.class_weight.end());
            smoothing_ = of.label_smoothing;
        }
    }

    double compute(const LossBatch<T>& of) const override {
        return cross_entropy(logits(of), static_cast<std::ptrdiff_t>(of.rows));
    }
    double sum(const LossBatch<T>& of) const override {
        return cross_entropy_of_some(logits(of), static_cast<std::ptrdiff_t>(of.rows), of.divisor);
    }
    double divisor(const LossBatch<T>& of) const override {
        if (of.labels == nullptr || class_weight_.empty()) return static_cast<double>(of.rows);
        return label_weights(of.rows, of.labels, class_weight_.data());
    }

  private:
    cpu::CrossEntropy<T> logits(const LossBatch<T>& of) const {
        return {static_cast<std::ptrdiff_t>(of.columns),
                of.output,
                of.labels,
                of.targets,
                of.weight,
                class_weight_.empty() ? nullptr : class_weight_.data(),
                smoothing_,
                of.gradient,
                temperature_,
                divergence_};
    }

    bool divergence_;
    std::vector<T> class_weight_;
    double smoothing_ = 0, temperature_ = 1;
};

// The mean of the formula that the entry of the loss names, over each output and its target.
template <class T>
class PointwiseLoss final : public CompiledLoss<T> {
  public:
    PointwiseLoss(const Loss& of, std::size_t outputs) : formula_(loss_entry(of.type).formula) {
        for (const Option<Loss>& option : loss_entry(of.type).options) {
            if (const auto* const number = std::get_if<double Loss::*>(&option.member)) {
                parameter_ = static_cast<T>(of.*(*number));
            } else if (const auto* const list = std::get_if<std::vector<double> Loss::*>(&option.member)) {
                const std::vector<double>& numbers = of.*(*list);
                for (std::size_t i = 0; i < outputs && !numbers.empty(); ++i) {
                    columns_.push_back(static_cast<T>(numbers[i % numbers.size()]));
                }
            }
        }
    }

    double compute(const LossBatch<T>& of) const override {
        return pointwise_loss(formula(), predictions(of));
    }
    double sum(const LossBatch<T>& of) const override {
        return pointwise_loss_of_some(formula(), predictions(of), of.divisor);
    }
    double mean(const LossBatch<T>& of, double sum) const override {
        return 1.0 / static_cast<double>(of.rows * of.columns) * sum;
    }

  private:
    cpu::Pointwise<T> formula() const {
        return {formula_, parameter_, columns_.empty() ? nullptr : columns_.data()};
    }
    static Predictions<T> predictions(const LossBatch<T>& of) {
        return {of.rows, of.columns, of.output, of.targets, of.weight, of.gradient};
    }

    PointwiseKind formula_;
    T parameter_ = 1;
    std::vector<T> columns_;  // the parameter of each column, or empty if it is the same for all
};

std::vector<LossEntry> all_entries() {
    using Formula = PointwiseKind;
    LossEntry cross_entropy{
        "CrossEntropy",
        {{"class_weight", &Loss::class_weight}, {"label_smoothing", &Loss::label_smoothing, kShare}}};
    cross_entropy.classification = true;
    cross_entropy.targets = kNotNegative;
    cross_entropy.check = [](const Loss& loss, std::size_t outputs) {
        check_weights("class_weight", loss.class_weight);
        if (loss.class_weight.empty() || loss.class_weight.size() == outputs) return;
        throw std::invalid_argument("class_weight has " + std::to_string(loss.class_weight.size()) +
                                    " elements, expected " + std::to_string(outputs));
    };
    LossEntry binary{"BinaryCrossEntropy",
                     {{"pos_weight", &Loss::pos_weight, kNotNegative}, {"pos_weight", &Loss::pos_weights}},
                     Formula::binary};
    binary.targets = kShare;
    binary.check = [](const Loss& loss, std::size_t outputs) {
        check_weights("pos_weights", loss.pos_weights);
        if (loss.pos_weights.empty() || outputs % loss.pos_weights.size() == 0) return;
        throw std::invalid_argument("pos_weights has " + std::to_string(loss.pos_weights.size()) +
                                    " elements, expected one for each of " + std::to_string(outputs) +
                                    " outputs");
    };
    LossEntry kl_div{"KLDiv", {{"temperature", &Loss::temperature, kPositive}}};
    kl_div.targets = kNotNegative;
    LossEntry hinge{"Hinge", {}, Formula::hinge};
    hinge.targets = {-1, 1, "-1 or 1"};
    hinge.only_ends = true;
    LossEntry poisson{"Poisson", {}, Formula::poisson};
    poisson.targets = kNotNegative;
    return {cross_entropy,
            kl_div,
            {"MSE", {}, Formula::squared},
            {"L1", {}, Formula::absolute},
            {"Huber", {{"delta", &Loss::delta, kPositive}}, Formula::huber},
            binary,
            hinge,
            poisson};
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
    std::string names;
    for (const LossEntry& entry : loss_entries())
        names += (names.empty() ? "" : ", ") + std::string(entry.type);
    throw std::invalid_argument("there is no loss named '" + type + "', expected one of " + names);
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
    using Made = std::unique_ptr<CompiledLoss<T>>;
    if (entry.formula != PointwiseKind::count) return Made(new PointwiseLoss<T>(loss, outputs));
    return Made(new LogitsLoss<T>(loss));
}

template std::unique_ptr<CompiledLoss<float>> make_loss(const Loss&, std::size_t);
template std::unique_ptr<CompiledLoss<double>> make_loss(const Loss&, std::size_t);

}  // namespace pyoptim::core
