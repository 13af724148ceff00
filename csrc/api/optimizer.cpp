#include "pyoptim/optimizer.hpp"

#include <cctype>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "api/json.hpp"
#include "api/optimizer_impl.hpp"
#include "api/schedule_json.hpp"
#include "optim/rule_info.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim {

namespace core {

std::string lower(std::string name) {
    for (char& letter : name) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    return name;
}

double scheduled_rate(const std::function<double(std::int64_t)>& schedule, std::int64_t step,
                      std::int64_t epoch) {
    const auto* const known = schedule.target<Schedule>();
    return known == nullptr ? schedule(step) : rate_at(*known, known->by_epoch ? epoch : step);
}

}  // namespace core

namespace {

bool holds(const Range& range, double value) { return value >= range.low && value <= range.high; }

bool holds(const PairRange& range, const Pair& pair) {
    return holds(range.first, pair[0]) && holds(range.second, pair[1]) &&
           !(range.ascending && pair[0] > pair[1]);
}

template <class Value>
[[noreturn]] void refuse(const std::string& name, const Value& value, const std::string& expected) {
    std::ostringstream message;
    message << name << " is " << value << ", expected " << expected;
    throw std::invalid_argument(message.str());
}

void check_number(const std::string& name, double value, const Range& range) {
    if (!holds(range, value)) refuse(name, value, range.expected);
}

void check_pair(const std::string& name, const Pair& pair, const PairRange& range) {
    if (holds(range, pair)) return;
    std::ostringstream both;
    both << "(" << pair[0] << ", " << pair[1] << ")";
    refuse(name, both.str(), range.expected);
}

// Refuses a value of another kind than the hyperparameter of this name takes, or a name that none has.
[[noreturn]] void refuse_value(const std::vector<Option>& options, const std::string& name,
                               const std::string& came) {
    constexpr const char* kKinds[] = {"a number", "true or false", "two numbers", "three numbers", "a word"};
    std::string names;
    for (const Option& option : options) {
        if (option.name == name) refuse(name, came, kKinds[option.value.index()]);
        if (std::holds_alternative<Pair*>(option.value)) {
            for (const char* const one : option.pair_range.names) {
                if (name == one) refuse(name, came, "a number");
            }
        }
        names += (names.empty() ? "" : ", ") + option.name;
    }
    throw std::invalid_argument("there is no hyperparameter named '" + name + "', expected one of " + names);
}

bool flag_of(const std::string& name, double value) {
    if (value != 0 && value != 1) refuse(name, value, "true or false, 1 or 0");
    return value == 1;
}

}  // namespace

template <class T>
Optimizer<T>::Optimizer(std::size_t size, double initial_lr)
    : lr(initial_lr), impl_(std::make_unique<Impl>()) {
    impl_->size = core::checked_product("size", size);
    impl_->arrays = {{"", {static_cast<std::ptrdiff_t>(size)}, 0}};
    impl_->whole = {{0, size}};
    impl_->all = {this};
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
    for (auto* const state : impl_->states) all.push_back(state->data());
    return all;
}

template <class T>
double Optimizer<T>::initial(int) const {
    return 0;
}

template <class T>
std::vector<Option> Optimizer<T>::options() {
    constexpr Range norm = {0, std::numeric_limits<double>::infinity(), "a number >= 0"};
    return {{"lr", &lr},
            {"weight_decay", &weight_decay},
            {"decoupled_weight_decay", &decoupled_weight_decay},
            {"maximize", &maximize},
            {"max_grad_norm", &max_grad_norm, norm}};
}

template <class T>
void Optimizer<T>::set(const std::string& name, double value) {
    for (Option& option : options()) {
        if (auto* const number = std::get_if<double*>(&option.value); number && option.name == name) {
            check_number(name, value, option.range);
            **number = value;
            return;
        }
        if (auto* const flag = std::get_if<bool*>(&option.value); flag && option.name == name) {
            **flag = flag_of(name, value);
            return;
        }
        if (auto* const choice = std::get_if<Choice*>(&option.value); choice && option.flag == name) {
            (**choice).second = flag_of(name, value);
            return;
        }
        if (auto* const pair = std::get_if<Pair*>(&option.value)) {
            const PairRange& range = option.pair_range;
            for (const int i : {0, 1}) {
                if (name != range.names[i]) continue;
                check_number(name, value, i == 0 ? range.first : range.second);
                (**pair)[i] = value;
                return;
            }
        }
    }
    refuse_value(options(), name, core::shortest(value));
}

template <class T>
void Optimizer<T>::set(const std::string& name, double first, double second) {
    for (Option& option : options()) {
        auto* const pair = std::get_if<Pair*>(&option.value);
        if (!pair || option.name != name) continue;
        check_pair(name, {first, second}, option.pair_range);
        **pair = {first, second};
        return;
    }
    refuse_value(options(), name, "a list of two numbers");
}

template <class T>
void Optimizer<T>::set(const std::string& name, double first, double second, double third) {
    for (Option& option : options()) {
        auto* const triple = std::get_if<Triple*>(&option.value);
        if (!triple || option.name != name) continue;
        for (const double value : {first, second, third}) check_number(name, value, option.range);
        **triple = {first, second, third};
        return;
    }
    refuse_value(options(), name, "a list of three numbers");
}

template <class T>
void Optimizer<T>::set(const std::string& name, const std::string& word) {
    for (Option& option : options()) {
        auto* const choice = std::get_if<Choice*>(&option.value);
        if (!choice || option.name != name) continue;
        const char* const* const words = (**choice).words;
        if (word != words[0] && word != words[1]) {
            refuse(name, "'" + word + "'", "'" + std::string(words[0]) + "' or '" + words[1] + "'");
        }
        **choice = word;
        return;
    }
    refuse_value(options(), name, "'" + word + "'");
}

template <class T>
void Optimizer<T>::check() {
    for (const Option& option : options()) {
        if (auto* const number = std::get_if<double*>(&option.value)) {
            check_number(option.name, **number, option.range);
        } else if (auto* const pair = std::get_if<Pair*>(&option.value)) {
            check_pair(option.name, **pair, option.pair_range);
        } else if (auto* const triple = std::get_if<Triple*>(&option.value)) {
            for (const double value : **triple) check_number(option.name, value, option.range);
        }
    }
    const auto* const known = schedule ? schedule.target<Schedule>() : nullptr;
    if (known != nullptr) known->check();
    const bool packs = state_dtype == "bfloat16" || state_dtype == "int8";
    if (!state_dtype.empty() && (!packs || sizeof(T) != 4 || kind() != StepKind::elementwise)) {
        refuse("state_dtype", "'" + state_dtype + "'",
               "'bfloat16' or 'int8' for an elementwise optimizer of floats, or ''");
    }
    if (accumulate < 1) refuse("accumulate", accumulate, "at least 1");
    const bool decouples = kind() == StepKind::adafactor || kind() == StepKind::muon;
    if ((decouples || kind() == StepKind::scaled_direction) && decoupled_weight_decay != decouples) {
        refuse("decoupled_weight_decay", decoupled_weight_decay,
               std::string(decouples ? "true" : "false") + ", which the decay of " + type() + " is");
    }
    for (const auto& group : impl_->groups) group->check();
}

template <class T>
Row Optimizer<T>::next(Progress last, Progress& now) const {
    now = last;
    advance(now);
    const int own_rule = schedule ? core::rule_index(rule()) : -1;
    const double rate = schedule ? core::scheduled_rate(schedule, last.step, epoch) : lr;
    if (schedule && core::rule_index(rule()) != own_rule) {
        throw std::logic_error("the schedule has changed an option that needs another rule, such as " +
                               std::string(rule()) + ": change such options between steps");
    }
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
std::unique_ptr<Optimizer<T>> make_optimizer(const std::string& name, std::size_t size) {
    std::string names;
#define X(Class)                                                              \
    if (name == core::lower(#Class)) return std::make_unique<Class<T>>(size); \
    names += (names.empty() ? "" : ", ") + core::lower(#Class);
    PYOPTIM_FOR_EACH_OPTIMIZER(X)
    PYOPTIM_FOR_EACH_TENSOR_OPTIMIZER(X)
#undef X
    throw std::invalid_argument("there is no optimizer named '" + name + "', expected one of " + names);
}

// optimizer_step.cpp has the steps, optimizer_state.cpp what is saved and copied
#define X(T)                     \
    template class Optimizer<T>; \
    template PYOPTIM_API std::unique_ptr<Optimizer<T>> make_optimizer<T>(const std::string&, std::size_t);
X(float)
X(double)
#undef X

}  // namespace pyoptim
