#include "pyoptim/optimizer.hpp"

#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "api/optimizer_impl.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim {

namespace {

struct RuleEntry {
    const char* name;
    int states;
};
const RuleEntry kRules[] = {
#define X(name, Struct) {#name, rules::Struct::state_count},
    PYOPTIM_FOR_EACH_RULE(X)
#undef X
};

int rule_named(const std::string& name) {
    for (int i = 0; i < cpu::kRuleCount; ++i) {
        if (name == kRules[i].name) return i;
    }
    throw std::logic_error("there is no rule named '" + name + "'");
}

// What each hyperparameter may be: low <= value <= high.
struct Range {
    const char* name;
    double low, high;
    const char* expected;
};
constexpr double kLargest = std::numeric_limits<double>::max();
constexpr double kSmallest = std::numeric_limits<double>::denorm_min();
constexpr double kBelowOne = 1 - std::numeric_limits<double>::epsilon() / 2;
constexpr double kAboveOne = 1 + std::numeric_limits<double>::epsilon();
const Range kRanges[] = {
    {"beta1", 0, kBelowOne, "a number in [0, 1)"},
    {"beta2", 0, kBelowOne, "a number in [0, 1)"},
    {"rho", 0, 1, "a number in [0, 1]"},
    {"eta_minus", kSmallest, kBelowOne, "a number in (0, 1)"},
    {"eta_plus", kAboveOne, kLargest, "a finite number > 1"},
    {"dampening", -kLargest, kLargest, "a finite number"},
    {"momentum_decay", -kLargest, kLargest, "a finite number"},
    {"alpha", -kLargest, kLargest, "a finite number"},
    {"lambd", -kLargest, kLargest, "a finite number"},
    {"max_grad_norm", 0, std::numeric_limits<double>::infinity(), "a number >= 0"},
};

void check_range(const std::string& name, double value) {
    Range range = {nullptr, 0, kLargest, "a finite number >= 0"};
    for (const Range& own : kRanges) {
        if (name == own.name) range = own;
    }
    if (value >= range.low && value <= range.high) return;
    std::ostringstream message;
    message << name << " is " << value << ", expected " << range.expected;
    throw std::invalid_argument(message.str());
}

}  // namespace

template <class T>
Optimizer<T>::Optimizer(std::size_t size, double initial_lr)
    : lr(initial_lr), impl_(std::make_unique<Impl>()) {
    impl_->size = size;
}

template <class T>
Optimizer<T>::~Optimizer() = default;

template <class T>
std::size_t Optimizer<T>::size() const {
    return impl_->size;
}

template <class T>
const Progress& Optimizer<T>::progress() const {
    return impl_->progress;
}

template <class T>
std::vector<T*> Optimizer<T>::states() {
    std::vector<T*> all;
    for (auto& state : impl_->states) all.push_back(state.data());
    return all;
}

template <class T>
double Optimizer<T>::initial(int) const {
    return 0;
}

template <class T>
std::vector<std::pair<std::string, typename Optimizer<T>::Option>> Optimizer<T>::options() {
    return {{"lr", &lr},
            {"weight_decay", &weight_decay},
            {"decoupled_weight_decay", &decoupled_weight_decay},
            {"maximize", &maximize},
            {"max_grad_norm", &max_grad_norm}};
}

template <class T>
void Optimizer<T>::set(const std::string& name, double value) {
    for (auto& [own, option] : options()) {
        if (own != name) continue;
        if (double** number = std::get_if<double*>(&option)) {
            check_range(name, value);
            **number = value;
        } else {
            **std::get_if<bool*>(&option) = value != 0;
        }
        return;
    }
    throw std::invalid_argument("there is no hyperparameter named '" + name + "'");
}

template <class T>
void Optimizer<T>::check() {
    for (const auto& [name, option] : options()) {
        if (double* const* number = std::get_if<double*>(&option)) check_range(name, **number);
    }
}

template <class T>
Row Optimizer<T>::next(Progress last, Progress& now) const {
    now = last;
    advance(now);
    const double rate = schedule ? schedule(last.step) : lr;
    if (!(rate >= 0) || !std::isfinite(rate)) {
        throw std::invalid_argument("lr is " + std::to_string(rate) + ", expected a finite number >= 0");
    }
    const double sign = maximize ? -1 : 1;
    Row row = {sign, weight_decay, 1};
    if (decoupled_weight_decay) row = {sign, 0, 1 - rate * weight_decay};
    const Row own = coefficients(now, rate);
    for (int i = 0; i < own.count; ++i) row.values[row.count++] = own.values[i];
    return row;
}

template <class T>
void Optimizer<T>::prepare() {
    const int rule = rule_named(this->rule());
    if (impl_->rule == rule) return;
    if (impl_->rule >= 0) throw std::logic_error("hyperparameters now choose another rule, with other state");
    check();
    std::vector<std::vector<T>> states;
    for (int k = 0; k < kRules[rule].states; ++k)
        states.emplace_back(impl_->size, static_cast<T>(initial(k)));
    impl_->states = std::move(states);
    impl_->rule = rule;
}

template <class T>
void Optimizer<T>::step(T* param, const T* grad) {
    prepare();
    Progress now;
    const Row row = next(impl_->progress, now);
    T cast[16];
    for (int i = 0; i < 16; ++i) cast[i] = static_cast<T>(row.values[i]);
    const bool careful = nonfinite != NonFinite::ignore;
    const double norm = careful || max_grad_norm > 0 ? std::sqrt(core::sum_of_squares(impl_->size, grad)) : 0;
    // The squares may overflow where the elements do not: those are looked at then.
    if (careful && !std::isfinite(norm) && !core::all_finite(impl_->size, grad)) {
        if (nonfinite == NonFinite::raise) throw std::domain_error("grad has elements that are not finite");
        ++skipped;
        return;
    }
    if (max_grad_norm > 0) {
        cast[0] = static_cast<T>(row.values[0] * core::clip_factor(norm, max_grad_norm));
    }
    if (impl_->stepped != param) {
        impl_->stepper = {};
        impl_->stepper.add(impl_->array(param));
        impl_->stepped = param;
    }
    impl_->stepper.step(&grad, cast);
    impl_->progress = now;
}

template <class T>
std::unique_ptr<Optimizer<T>> make_optimizer(const std::string& name, std::size_t size) {
    if (name == "sgd") return std::make_unique<SGD<T>>(size);
    if (name == "adagrad") return std::make_unique<Adagrad<T>>(size);
    if (name == "rmsprop") return std::make_unique<RMSprop<T>>(size);
    if (name == "adadelta") return std::make_unique<Adadelta<T>>(size);
    if (name == "adam") return std::make_unique<Adam<T>>(size);
    if (name == "adamw") return std::make_unique<AdamW<T>>(size);
    if (name == "amsgrad") return std::make_unique<AMSGrad<T>>(size);
    if (name == "adamax") return std::make_unique<Adamax<T>>(size);
    if (name == "nadam") return std::make_unique<NAdam<T>>(size);
    if (name == "radam") return std::make_unique<RAdam<T>>(size);
    if (name == "lion") return std::make_unique<Lion<T>>(size);
    if (name == "rprop") return std::make_unique<Rprop<T>>(size);
    if (name == "asgd") return std::make_unique<ASGD<T>>(size);
    throw std::invalid_argument("there is no optimizer named '" + name + "'");
}

#define X(T)                     \
    template class Optimizer<T>; \
    template PYOPTIM_API std::unique_ptr<Optimizer<T>> make_optimizer<T>(const std::string&, std::size_t);
X(float)
X(double)
#undef X

}  // namespace pyoptim
