/// Optimizers of one array of parameters: hyperparameters, their coefficients at each step, and the step.
///
///     pyoptim::Adam<float> adam(n);
///     adam.lr = 1e-2;
///     adam.betas = {0.9, 0.99};
///     adam.step(parameters, gradients);  // n elements each; parameters are updated in place
///
/// Names, defaults, ranges and formulas are those of the Python classes, as are the bits: tests compare them.
/// Hyperparameters may be changed between steps. A state that they come to need begins as in a new optimizer;
/// one that they need no more stays as it is.
///
/// To add an optimizer: a class here, and a line in PYOPTIM_FOR_EACH_OPTIMIZER at the end.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "pyoptim/export.hpp"

namespace pyoptim {

/// How far an optimizer has come.
struct Progress {
    std::int64_t step = 0;   ///< steps taken, or the one being taken: the first is 1
    double mu_product = 1;   ///< the product of NAdam's momenta of all steps so far
    std::int64_t begun = 1;  ///< the step in which the rule began that keeps a momentum
};

/// The coefficients of one step.
struct Row {
    double values[16] = {};
    int count = 0;

    Row(std::initializer_list<double> given) {
        for (const double value : given) values[count++] = value;
    }
};

/// What a step does about gradients that are NaN or infinite: nothing; throw std::domain_error before
/// anything is changed; leave the step out.
enum class NonFinite { ignore, raise, skip };

/// The power of two s with s^2 / c2 in (1/4, 1], for c2 in (0, 1]. The root of v / c2 is computed times s, as
/// is what is added to it and what it divides: the same bits, but v / c2 cannot overflow.
inline double root_scale(double c2) {
    int exponent = 0;
    std::frexp(c2, &exponent);
    return std::ldexp(1.0, -((2 - exponent) / 2));
}

using Pair = std::array<double, 2>;

/// One of two words, as in Python: `sgd.velocity = "classical"`. Any other word is a std::invalid_argument.
struct Choice {
    const char* words[2];
    bool second = false;  ///< whether the second word is chosen

    Choice(const char* usual, const char* other) : words{usual, other} {}
    Choice& operator=(const std::string& word) {
        if (word != words[0] && word != words[1]) {
            throw std::invalid_argument("'" + word + "' is neither '" + words[0] + "' nor '" + words[1] +
                                        "'");
        }
        second = word == words[1];
        return *this;
    }
    operator std::string() const { return words[second]; }
};

/// What a number may be, low <= value <= high, and the same in words.
struct Range {
    double low, high;
    const char* expected;
};

/// What each number of a pair may be, and its name alone, by which `set` knows it too.
struct PairRange {
    Range first, second;
    bool ascending;  ///< the first number is at most the second
    const char* expected;
    const char* names[2];
};

namespace allowed {
constexpr double kLargest = std::numeric_limits<double>::max();
constexpr double kSmallest = std::numeric_limits<double>::denorm_min();
constexpr double kBelowOne = 1 - std::numeric_limits<double>::epsilon() / 2;
constexpr double kAboveOne = 1 + std::numeric_limits<double>::epsilon();
constexpr Range at_least_zero = {0, kLargest, "a finite number >= 0"};
constexpr Range number = {-kLargest, kLargest, "a finite number"};
constexpr Range fraction = {0, kBelowOne, "a number in [0, 1)"};
constexpr Range share = {0, 1, "a number in [0, 1]"};
constexpr PairRange betas = {fraction, fraction, false, "two numbers in [0, 1)", {"beta1", "beta2"}};
constexpr PairRange etas = {{kSmallest, kBelowOne, "a number in (0, 1)"},
                            {kAboveOne, kLargest, "a finite number > 1"},
                            false,
                            "two numbers, in (0, 1) and above 1",
                            {"eta_minus", "eta_plus"}};
constexpr PairRange step_sizes = {
    at_least_zero, at_least_zero, true, "two numbers >= 0, the smaller first", {"smallest", "largest"}};
}  // namespace allowed

/// A hyperparameter of one optimizer: its name, where its value is, and what it may be.
struct Option {
    std::string name;
    std::variant<double*, bool*, Pair*, Choice*> value;
    Range range = allowed::at_least_zero;   ///< of a number
    PairRange pair_range = allowed::betas;  ///< of a pair
    std::string flag;                       ///< an older name of a choice: nonzero chooses the second word

    Option(const char* own, double* at, Range may = allowed::at_least_zero)
        : name(own), value(at), range(may) {}
    Option(const char* own, bool* at) : name(own), value(at) {}
    Option(const char* own, Pair* at, PairRange may) : name(own), value(at), pair_range(may) {}
    Option(const char* own, Choice* at, const char* older) : name(own), value(at), flag(older) {}
};

/// What all optimizers share. T is float or double.
template <class T>
class PYOPTIM_API Optimizer {
  public:
    double lr;                                     ///< learning rate
    std::function<double(std::int64_t)> schedule;  ///< of the number of steps taken; lr holds if it is empty
    double weight_decay = 0;                       ///< added to the gradient as weight_decay * p
    bool decoupled_weight_decay = false;           ///< multiply p by 1 - lr * weight_decay instead
    bool maximize = false;
    double max_grad_norm = 0;  ///< scale the gradient to this norm at most; 0 leaves it as it is
    NonFinite nonfinite = NonFinite::ignore;
    std::size_t skipped = 0;  ///< steps that NonFinite::skip left out

    virtual ~Optimizer();
    Optimizer(const Optimizer&) = delete;
    Optimizer& operator=(const Optimizer&) = delete;

    /// Updates `size()` elements of `param` by `grad`; they must not overlap.
    /// Throws std::invalid_argument for a learning rate that is negative or not finite, and in the first step
    /// whatever check() throws.
    void step(T* param, const T* grad);
    /// Throws std::invalid_argument for a hyperparameter out of its range, naming it. Called by the first
    /// step, by set(), and by a network before it trains; call it after changing fields in between.
    void check();

    std::size_t size() const;
    const Progress& progress() const;
    /// The state arrays of the rule of the last step, `size()` elements each, in the order of rules.hpp;
    /// empty before the first step.
    std::vector<T*> states();

    /// The row of coefficients of the step after `last`: the shared three, then the rule's. Throws
    /// std::logic_error if the schedule changes an option so that another rule is needed.
    Row next(Progress last, Progress& now) const;

    virtual const char* rule() const = 0;  ///< the name of a rule in the list of rules.hpp
    /// Every hyperparameter, by its name in Python.
    virtual std::vector<Option> options();
    /// Sets a hyperparameter by its name: a number or a flag (0 or 1), a pair, a choice. A value out of its
    /// range or an unknown name is a std::invalid_argument, which changes nothing. The numbers of a pair
    /// have names of their own ("beta1", "eta_plus", "smallest"), and choices the names that they had as
    /// flags ("classical", "amsgrad_corrected").
    void set(const std::string& name, double value);
    void set(const std::string& name, double first, double second);
    void set(const std::string& name, const std::string& word);

  protected:
    Optimizer(std::size_t size, double lr);
    virtual void advance(Progress& progress) const { ++progress.step; }
    virtual Row coefficients(const Progress&, double lr) const = 0;
    virtual double initial(int state) const;  ///< the value that all elements of a state begin with

  private:
    template <class>
    friend class Network;
    struct Impl;
    void prepare();
    std::unique_ptr<Impl> impl_;
};

/// An optimizer by the name of its class in lower case, e.g. "adam"; std::invalid_argument for others.
template <class T>
PYOPTIM_API std::unique_ptr<Optimizer<T>> make_optimizer(const std::string& name, std::size_t size);

/// The rule of an optimizer, an expression of its members, and its own hyperparameters.
#define PYOPTIM_OPTIMIZER(rule_name, ...)                   \
  public:                                                   \
    const char* rule() const override { return rule_name; } \
    std::vector<Option> options() override {                \
        auto all = Optimizer<T>::options();                 \
        const std::vector<Option> own = __VA_ARGS__;        \
        all.insert(all.end(), own.begin(), own.end());      \
        return all;                                         \
    }                                                       \
                                                            \
  protected:

template <class T>
class SGD final : public Optimizer<T> {
  public:
    double momentum = 0, dampening = 0;
    bool nesterov = false;
    Choice velocity = {"torch", "classical"};  ///< "classical" keeps lr inside the velocity
    bool& classical = velocity.second;
    explicit SGD(std::size_t size) : Optimizer<T>(size, 1e-3) {}
    PYOPTIM_OPTIMIZER(momentum == 0 ? "sgd" : (nesterov ? "nesterov" : "momentum"),
                      {{"momentum", &momentum},
                       {"dampening", &dampening, allowed::number},
                       {"nesterov", &nesterov},
                       {"velocity", &velocity, "classical"}})
    Row coefficients(const Progress& at, double lr) const override {
        if (momentum == 0) return {lr};
        const double unit = classical ? 1.0 : lr;
        const double grad_in = classical ? lr * (1 - dampening) : (at.step == at.begun ? 1.0 : 1 - dampening);
        if (nesterov) return {momentum, grad_in, lr, unit * momentum};
        return {momentum, grad_in, unit};
    }
};

template <class T>
class Adagrad final : public Optimizer<T> {
  public:
    double lr_decay = 0, initial_accumulator_value = 0, eps = 1e-10, eps_root = 0;
    explicit Adagrad(std::size_t size) : Optimizer<T>(size, 1e-2) {}
    PYOPTIM_OPTIMIZER("adagrad", {{"lr_decay", &lr_decay},
                                  {"initial_accumulator_value", &initial_accumulator_value},
                                  {"eps", &eps},
                                  {"eps_root", &eps_root}})
    double initial(int) const override { return initial_accumulator_value; }
    Row coefficients(const Progress& at, double lr) const override {
        return {lr / (1 + static_cast<double>(at.step - 1) * lr_decay), eps_root, eps};
    }
};

template <class T>
class RMSprop final : public Optimizer<T> {
  public:
    double alpha = 0.99, eps = 1e-8, eps_root = 0, momentum = 0;
    bool centered = false;
    explicit RMSprop(std::size_t size) : Optimizer<T>(size, 1e-2) {}
    PYOPTIM_OPTIMIZER(centered ? (momentum == 0 ? "rmsprop_centered" : "rmsprop_centered_momentum")
                               : (momentum == 0 ? "rmsprop" : "rmsprop_momentum"),
                      {{"alpha", &alpha, allowed::share},
                       {"eps", &eps},
                       {"eps_root", &eps_root},
                       {"momentum", &momentum},
                       {"centered", &centered}})
    Row coefficients(const Progress&, double lr) const override {
        if (momentum == 0) return {lr, alpha, 1 - alpha, eps_root, eps};
        return {lr, alpha, 1 - alpha, eps_root, eps, momentum};
    }
};

template <class T>
class Adadelta final : public Optimizer<T> {
  public:
    double rho = 0.9, eps = 1e-6;
    explicit Adadelta(std::size_t size) : Optimizer<T>(size, 1.0) {}
    PYOPTIM_OPTIMIZER("adadelta", {{"rho", &rho, allowed::share}, {"eps", &eps}})
    Row coefficients(const Progress&, double lr) const override { return {lr, rho, 1 - rho, eps}; }
};

template <class T>
class Adam : public Optimizer<T> {
  public:
    Pair betas = {0.9, 0.999};
    double &beta1 = betas[0], &beta2 = betas[1];
    double eps = 1e-8, eps_root = 0;
    bool eps_hat = false;  ///< scale eps by 1/sqrt(1 - beta2^t) and eps_root by 1/(1 - beta2^t)
    bool amsgrad = false;
    Choice amsgrad_max = {"raw", "corrected"};  ///< "corrected" is the maximum over v / (1 - beta2^t)
    bool& amsgrad_corrected = amsgrad_max.second;
    bool bias_correction = true;
    explicit Adam(std::size_t size) : Optimizer<T>(size, 1e-3) {}
    PYOPTIM_OPTIMIZER(amsgrad ? "amsgrad" : "adam", {{"betas", &betas, allowed::betas},
                                                     {"eps", &eps},
                                                     {"eps_root", &eps_root},
                                                     {"eps_hat", &eps_hat},
                                                     {"amsgrad", &amsgrad},
                                                     {"amsgrad_max", &amsgrad_max, "amsgrad_corrected"},
                                                     {"bias_correction", &bias_correction}})
    Row coefficients(const Progress& at, double lr) const override {
        const auto t = static_cast<double>(at.step);
        const double c1 = bias_correction ? 1 - std::pow(beta1, t) : 1;
        const double c2 = bias_correction ? 1 - std::pow(beta2, t) : 1;
        const double s = amsgrad && amsgrad_corrected ? 1 : root_scale(c2);
        const double outside = s * (eps_hat ? eps / std::pow(c2, 0.5) : eps);
        const double inside = s * s * (eps_hat ? eps_root / c2 : eps_root);
        const double step_size = s * lr / c1, inverse_c2 = s * s / c2;
        if (!amsgrad) {
            return {beta1, 1 - beta1, beta2, 1 - beta2, step_size, inverse_c2, inside, outside};
        }
        const double before = amsgrad_corrected ? inverse_c2 : 1, after = amsgrad_corrected ? 1 : inverse_c2;
        return {beta1, 1 - beta1, beta2, 1 - beta2, step_size, before, after, inside, outside};
    }
};

/// Adam with decoupled weight decay 1e-2.
template <class T>
class AdamW final : public Adam<T> {
  public:
    explicit AdamW(std::size_t size) : Adam<T>(size) {
        this->weight_decay = 1e-2;
        this->decoupled_weight_decay = true;
    }
};

template <class T>
class AMSGrad final : public Adam<T> {
  public:
    explicit AMSGrad(std::size_t size) : Adam<T>(size) { this->amsgrad = true; }
};

template <class T>
class Adamax final : public Optimizer<T> {
  public:
    Pair betas = {0.9, 0.999};
    double &beta1 = betas[0], &beta2 = betas[1];
    double eps = 1e-8;
    explicit Adamax(std::size_t size) : Optimizer<T>(size, 2e-3) {}
    PYOPTIM_OPTIMIZER("adamax", {{"betas", &betas, allowed::betas}, {"eps", &eps}})
    Row coefficients(const Progress& at, double lr) const override {
        return {beta1, 1 - beta1, beta2, lr / (1 - std::pow(beta1, static_cast<double>(at.step))), eps};
    }
};

template <class T>
class NAdam final : public Optimizer<T> {
  public:
    Pair betas = {0.9, 0.999};
    double &beta1 = betas[0], &beta2 = betas[1];
    double eps = 1e-8, eps_root = 0;
    double momentum_decay = 4e-3;  ///< a negative one, None in Python, is Dozat without the ramp
    explicit NAdam(std::size_t size) : Optimizer<T>(size, 2e-3) {}
    PYOPTIM_OPTIMIZER("nadam", {{"betas", &betas, allowed::betas},
                                {"eps", &eps},
                                {"eps_root", &eps_root},
                                {"momentum_decay", &momentum_decay, allowed::number}})
    double mu(std::int64_t t) const {
        const double ramp =
            momentum_decay < 0 ? 1 : 1 - 0.5 * std::pow(0.96, static_cast<double>(t) * momentum_decay);
        return beta1 * ramp;
    }
    void advance(Progress& progress) const override {
        ++progress.step;
        progress.mu_product *= mu(progress.step);
    }
    Row coefficients(const Progress& at, double lr) const override {
        const double product = at.mu_product, now = mu(at.step), after = mu(at.step + 1);
        const double c2 = 1 - std::pow(beta2, static_cast<double>(at.step)), s = root_scale(c2);
        return {beta1,
                1 - beta1,
                beta2,
                1 - beta2,
                s * (lr * after / (1 - product * after)),
                s * (lr * (1 - now) / (1 - product)),
                s * s / c2,
                s * s * eps_root,
                s * eps};
    }
};

template <class T>
class RAdam final : public Optimizer<T> {
  public:
    Pair betas = {0.9, 0.999};
    double &beta1 = betas[0], &beta2 = betas[1];
    double eps = 1e-8, eps_root = 0;
    explicit RAdam(std::size_t size) : Optimizer<T>(size, 1e-3) {}
    PYOPTIM_OPTIMIZER("radam", {{"betas", &betas, allowed::betas}, {"eps", &eps}, {"eps_root", &eps_root}})
    Row coefficients(const Progress& at, double lr) const override {
        const auto t = static_cast<double>(at.step);
        const double power = std::pow(beta2, t);
        const double c1 = 1 - std::pow(beta1, t), c2 = 1 - power;
        const double longest = 2 / (1 - beta2) - 1;
        const double length = longest - 2 * t * power / c2;
        if (length <= 5) return {beta1, 1 - beta1, beta2, 1 - beta2, lr / c1, 0, 0, 1, 1};
        const double r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
        return {beta1,
                1 - beta1,
                beta2,
                1 - beta2,
                lr / c1 * std::pow(r * c2, 0.5),
                eps_root,
                eps,
                0,
                std::numeric_limits<double>::infinity()};
    }
};

template <class T>
class Lion final : public Optimizer<T> {
  public:
    Pair betas = {0.9, 0.99};
    double &beta1 = betas[0], &beta2 = betas[1];
    explicit Lion(std::size_t size) : Optimizer<T>(size, 1e-4) { this->decoupled_weight_decay = true; }
    PYOPTIM_OPTIMIZER("lion", {{"betas", &betas, allowed::betas}})
    Row coefficients(const Progress&, double lr) const override {
        return {beta1, 1 - beta1, beta2, 1 - beta2, lr};
    }
};

template <class T>
class Rprop final : public Optimizer<T> {
  public:
    Pair etas = {0.5, 1.2};        ///< by which a step size shrinks, and grows
    Pair step_sizes = {1e-6, 50};  ///< the smallest and the largest
    double &eta_minus = etas[0], &eta_plus = etas[1], &smallest = step_sizes[0], &largest = step_sizes[1];
    explicit Rprop(std::size_t size) : Optimizer<T>(size, 1e-2) {}
    PYOPTIM_OPTIMIZER("rprop",
                      {{"etas", &etas, allowed::etas}, {"step_sizes", &step_sizes, allowed::step_sizes}})
    double initial(int state) const override {
        return state == 0 ? 0 : (this->schedule ? this->schedule(0) : this->lr);
    }
    Row coefficients(const Progress&, double) const override {
        return {1, eta_minus, eta_plus, smallest, largest};
    }
};

template <class T>
class ASGD final : public Optimizer<T> {
  public:
    double lambd = 1e-4, alpha = 0.75, t0 = 1e6;
    explicit ASGD(std::size_t size) : Optimizer<T>(size, 1e-2) {}
    PYOPTIM_OPTIMIZER("asgd",
                      {{"lambd", &lambd, allowed::number}, {"alpha", &alpha, allowed::number}, {"t0", &t0}})
    Row coefficients(const Progress& at, double lr) const override {
        const auto before = static_cast<double>(at.step - 1);
        const double base = 1 + lambd * lr * before, power = std::pow(base, alpha);
        if (!(base > 0) || !(power > 0) || !std::isfinite(power)) {
            throw std::invalid_argument("(1 + lambd*lr*(t-1))^alpha is no finite number > 0 at step " +
                                        std::to_string(at.step) + ": lambd is " + std::to_string(lambd));
        }
        const double eta = lr / power;
        const double share = before - t0;
        const double mu = 1 / (share > 1 ? share : 1);
        return {1 - lambd * eta, eta, 1 - mu, mu};
    }
};

#undef PYOPTIM_OPTIMIZER

/// Every optimizer: `make_optimizer` knows it by its name in lower case.
// clang-format off
#define PYOPTIM_FOR_EACH_OPTIMIZER(X) \
    X(SGD) \
    X(Adagrad) \
    X(RMSprop) \
    X(Adadelta) \
    X(Adam) \
    X(AdamW) \
    X(AMSGrad) \
    X(Adamax) \
    X(NAdam) \
    X(RAdam) \
    X(Lion) \
    X(Rprop) \
    X(ASGD)
// clang-format on

}  // namespace pyoptim
