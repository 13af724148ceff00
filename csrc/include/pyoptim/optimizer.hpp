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
using Triple = std::array<double, 3>;

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
constexpr PairRange factored_eps = {number,
                                    at_least_zero,
                                    false,
                                    "two finite numbers, the second >= 0",
                                    {"smallest_square", "smallest_size"}};
constexpr Range not_positive = {-kLargest, 0, "a finite number <= 0"};
constexpr Range one_or_more = {1, kLargest, "a finite number >= 1"};
}  // namespace allowed

/// A hyperparameter of one optimizer: its name, where its value is, and what it may be.
struct Option {
    std::string name;
    std::variant<double*, bool*, Pair*, Triple*, Choice*> value;
    Range range = allowed::at_least_zero;  ///< of a number
    bool nullable = false;  ///< whether a negative number, the first of a pair, is Python's None
    PairRange pair_range = allowed::betas;  ///< of a pair
    std::string flag;                       ///< an older name of a choice: nonzero chooses the second word

    Option(const char* own, double* at, Range may = allowed::at_least_zero, bool none = false)
        : name(own), value(at), range(may), nullable(none) {}
    Option(const char* own, bool* at) : name(own), value(at) {}
    Option(const char* own, Pair* at, PairRange may, bool none = false)
        : name(own), value(at), nullable(none), pair_range(may) {}
    Option(const char* own, Triple* at) : name(own), value(at), range(allowed::number) {}
    Option(const char* own, Choice* at, const char* older) : name(own), value(at), flag(older) {}
};

/// One of the arrays that lie in the elements of an optimizer.
struct ParameterArray {
    std::string name;  ///< as in the state_dict of a Python model, such as "0.weight"
    std::vector<std::ptrdiff_t> shape;
    std::size_t begin = 0;  ///< where its elements begin among all
};

/// An average of the parameters along the steps: the class of pyoptim.averages and its arguments.
struct Average {
    std::string type = "EMA";  ///< or "SWA"
    double decay = 0.999;      ///< EMA
    bool warm_up = false;      ///< EMA
};

/// What makes the steps of an optimizer: the rule for each element, or something that looks at whole arrays.
enum class StepKind { elementwise, scaled_gradient, scaled_direction, adafactor, muon };

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
    int accumulate = 1;       ///< gather the gradients of so many calls of step(), and update by their mean
    /// How the states of floats are kept, as in Python: "" as floats, "bfloat16", or "int8" (8 bits with a
    /// scale for every 256 elements). Of elementwise optimizers, and before the first step.
    std::string state_dtype;
    std::uint32_t seed = 0;  ///< of the random rounding of such states
    std::int64_t epoch = 0;  ///< epochs done, for schedules that count them; Network::fit counts it up

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
    /// Goes on as if that many steps were taken, as after a training by something else. States stay.
    void set_progress(const Progress&);
    /// The state arrays of the rule of the last step, `size()` elements each, in the order of rules.hpp;
    /// empty before the first step. With groups: those of the arrays of no group, end to end.
    std::vector<T*> states();

    /// Says which arrays the elements are, such as network.parameter_arrays(): optimizers that look at whole
    /// tensors need them, as do groups, and the files of Python's optimizers of several arrays. They lie in
    /// [0, size()) and do not overlap; elements of none are left alone. Before the first step.
    void set_arrays(const std::vector<ParameterArray>& arrays);
    const std::vector<ParameterArray>& arrays() const;  ///< those of no group; one without a name at first
    /// Gives the arrays of these names hyperparameters of their own: those of the result, which begin as
    /// this optimizer's are now. It is stepped by this one, which owns it, and whose max_grad_norm,
    /// nonfinite, accumulate and epoch hold for all groups. Before the first step, after set_arrays().
    Optimizer& add_group(const std::vector<std::string>& names);

    /// Lets each step from now on update an average of the parameters, which begins as a copy of them.
    void follow(const Average& average, const T* param);
    const T* average() const;       ///< `size()` elements, or null
    std::int64_t averaged() const;  ///< updates of the average so far

    /// A copy with hyperparameters, schedule, groups, states, average and progress.
    std::unique_ptr<Optimizer> clone() const;
    /// Writes hyperparameters, schedule, states and progress, and the average, to a file that the `load` of
    /// Python's optimizer of the same class and arrays reads. Of functions, only Schedules can be saved.
    /// max_grad_norm, nonfinite and accumulate are not in it, in either language.
    void save(const std::string& path) const;
    std::vector<std::uint8_t> save() const;  ///< the bytes of that file
    /// Takes over what save(), in either language, wrote of an optimizer of the same class, arrays and dtype;
    /// std::runtime_error for anything else, and nothing is changed. Groups and arrays are found by their
    /// names where both sides have names, else by their places.
    void load(const std::string& path);
    void load(const void* bytes, std::size_t size);

    /// The row of coefficients of the step after `last`: the shared three, then the rule's. Throws
    /// std::logic_error if the schedule changes an option so that another rule is needed.
    Row next(Progress last, Progress& now) const;

    virtual const char* type() const { return ""; }  ///< the Python class
    virtual const char* rule() const = 0;            ///< the name of a rule in the list of rules.hpp
    virtual StepKind kind() const { return StepKind::elementwise; }
    /// Every hyperparameter, by its name in Python.
    virtual std::vector<Option> options();
    /// Sets a hyperparameter by its name: a number or a flag (0 or 1), a pair, a choice. A value out of its
    /// range or an unknown name is a std::invalid_argument, which changes nothing. The numbers of a pair
    /// have names of their own ("beta1", "eta_plus", "smallest"), and choices the names that they had as
    /// flags ("classical", "amsgrad_corrected").
    void set(const std::string& name, double value);
    void set(const std::string& name, double first, double second);
    void set(const std::string& name, double first, double second, double third);
    void set(const std::string& name, const std::string& word);

  protected:
    Optimizer(std::size_t size, double lr);
    virtual void advance(Progress& progress) const { ++progress.step; }
    virtual Row coefficients(const Progress&, double rate) const = 0;
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

// The learning rate of a step hides the member on purpose, so that no formula takes lr where a schedule
// holds.
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#endif

/// An optimizer's class, its rule, which is an expression of its members, and its own hyperparameters.
#define PYOPTIM_OPTIMIZER(Class, rule_name, ...)            \
  public:                                                   \
    const char* type() const override { return #Class; }    \
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
    PYOPTIM_OPTIMIZER(SGD, momentum == 0 ? "sgd" : (nesterov ? "nesterov" : "momentum"),
                      {{"momentum", &momentum},
                       {"dampening", &dampening, allowed::number},
                       {"nesterov", &nesterov},
                       {"velocity", &velocity, "classical"}})
    Row coefficients(const Progress& at, double rate) const override {
        if (momentum == 0) return {rate};
        const double unit = classical ? 1.0 : rate;
        const double grad_in =
            classical ? rate * (1 - dampening) : (at.step == at.begun ? 1.0 : 1 - dampening);
        if (nesterov) return {momentum, grad_in, rate, unit * momentum};
        return {momentum, grad_in, unit};
    }
};

template <class T>
class Adagrad final : public Optimizer<T> {
  public:
    double lr_decay = 0, initial_accumulator_value = 0, eps = 1e-10, eps_root = 0;
    explicit Adagrad(std::size_t size) : Optimizer<T>(size, 1e-2) {}
    PYOPTIM_OPTIMIZER(Adagrad, "adagrad",
                      {{"lr_decay", &lr_decay},
                       {"initial_accumulator_value", &initial_accumulator_value},
                       {"eps", &eps},
                       {"eps_root", &eps_root}})
    double initial(int) const override { return initial_accumulator_value; }
    Row coefficients(const Progress& at, double rate) const override {
        return {rate / (1 + static_cast<double>(at.step - 1) * lr_decay), eps_root, eps};
    }
};

template <class T>
class RMSprop final : public Optimizer<T> {
  public:
    double alpha = 0.99, eps = 1e-8, eps_root = 0, momentum = 0;
    bool centered = false;
    explicit RMSprop(std::size_t size) : Optimizer<T>(size, 1e-2) {}
    PYOPTIM_OPTIMIZER(RMSprop,
                      centered ? (momentum == 0 ? "rmsprop_centered" : "rmsprop_centered_momentum")
                               : (momentum == 0 ? "rmsprop" : "rmsprop_momentum"),
                      {{"alpha", &alpha, allowed::share},
                       {"eps", &eps},
                       {"eps_root", &eps_root},
                       {"momentum", &momentum},
                       {"centered", &centered}})
    Row coefficients(const Progress&, double rate) const override {
        if (momentum == 0) return {rate, alpha, 1 - alpha, eps_root, eps};
        return {rate, alpha, 1 - alpha, eps_root, eps, momentum};
    }
};

template <class T>
class Adadelta final : public Optimizer<T> {
  public:
    double rho = 0.9, eps = 1e-6;
    explicit Adadelta(std::size_t size) : Optimizer<T>(size, 1.0) {}
    PYOPTIM_OPTIMIZER(Adadelta, "adadelta", {{"rho", &rho, allowed::share}, {"eps", &eps}})
    Row coefficients(const Progress&, double rate) const override { return {rate, rho, 1 - rho, eps}; }
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
    PYOPTIM_OPTIMIZER(Adam, amsgrad ? "amsgrad" : "adam",
                      {{"betas", &betas, allowed::betas},
                       {"eps", &eps},
                       {"eps_root", &eps_root},
                       {"eps_hat", &eps_hat},
                       {"amsgrad", &amsgrad},
                       {"amsgrad_max", &amsgrad_max, "amsgrad_corrected"},
                       {"bias_correction", &bias_correction}})
    Row coefficients(const Progress& at, double rate) const override {
        const auto t = static_cast<double>(at.step);
        const double c1 = bias_correction ? 1 - std::pow(beta1, t) : 1;
        const double c2 = bias_correction ? 1 - std::pow(beta2, t) : 1;
        const double s = amsgrad && amsgrad_corrected ? 1 : root_scale(c2);
        const double outside = s * (eps_hat ? eps / std::pow(c2, 0.5) : eps);
        const double inside = s * s * (eps_hat ? eps_root / c2 : eps_root);
        const double step_size = s * rate / c1, inverse_c2 = s * s / c2;
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
    const char* type() const override { return "AdamW"; }
    explicit AdamW(std::size_t size) : Adam<T>(size) {
        this->weight_decay = 1e-2;
        this->decoupled_weight_decay = true;
    }
};

template <class T>
class AMSGrad final : public Adam<T> {
  public:
    const char* type() const override { return "AMSGrad"; }
    explicit AMSGrad(std::size_t size) : Adam<T>(size) { this->amsgrad = true; }
};

template <class T>
class Adamax final : public Optimizer<T> {
  public:
    Pair betas = {0.9, 0.999};
    double &beta1 = betas[0], &beta2 = betas[1];
    double eps = 1e-8;
    explicit Adamax(std::size_t size) : Optimizer<T>(size, 2e-3) {}
    PYOPTIM_OPTIMIZER(Adamax, "adamax", {{"betas", &betas, allowed::betas}, {"eps", &eps}})
    Row coefficients(const Progress& at, double rate) const override {
        return {beta1, 1 - beta1, beta2, rate / (1 - std::pow(beta1, static_cast<double>(at.step))), eps};
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
    PYOPTIM_OPTIMIZER(NAdam, "nadam",
                      {{"betas", &betas, allowed::betas},
                       {"eps", &eps},
                       {"eps_root", &eps_root},
                       {"momentum_decay", &momentum_decay, allowed::number, true}})
    double mu(std::int64_t t) const {
        const double ramp =
            momentum_decay < 0 ? 1 : 1 - 0.5 * std::pow(0.96, static_cast<double>(t) * momentum_decay);
        return beta1 * ramp;
    }
    void advance(Progress& progress) const override {
        ++progress.step;
        progress.mu_product *= mu(progress.step);
    }
    Row coefficients(const Progress& at, double rate) const override {
        const double product = at.mu_product, now = mu(at.step), after = mu(at.step + 1);
        const double c2 = 1 - std::pow(beta2, static_cast<double>(at.step)), s = root_scale(c2);
        return {beta1,
                1 - beta1,
                beta2,
                1 - beta2,
                s * (rate * after / (1 - product * after)),
                s * (rate * (1 - now) / (1 - product)),
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
    PYOPTIM_OPTIMIZER(RAdam, "radam",
                      {{"betas", &betas, allowed::betas}, {"eps", &eps}, {"eps_root", &eps_root}})
    Row coefficients(const Progress& at, double rate) const override {
        const auto t = static_cast<double>(at.step);
        const double power = std::pow(beta2, t);
        const double c1 = 1 - std::pow(beta1, t), c2 = 1 - power;
        const double longest = 2 / (1 - beta2) - 1;
        const double length = longest - 2 * t * power / c2;
        if (length <= 5) return {beta1, 1 - beta1, beta2, 1 - beta2, rate / c1, 0, 0, 1, 1};
        const double r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
        return {beta1,
                1 - beta1,
                beta2,
                1 - beta2,
                rate / c1 * std::pow(r * c2, 0.5),
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
    PYOPTIM_OPTIMIZER(Lion, "lion", {{"betas", &betas, allowed::betas}})
    Row coefficients(const Progress&, double rate) const override {
        return {beta1, 1 - beta1, beta2, 1 - beta2, rate};
    }
};

template <class T>
class Rprop final : public Optimizer<T> {
  public:
    Pair etas = {0.5, 1.2};        ///< by which a step size shrinks, and grows
    Pair step_sizes = {1e-6, 50};  ///< the smallest and the largest
    double &eta_minus = etas[0], &eta_plus = etas[1], &smallest = step_sizes[0], &largest = step_sizes[1];
    explicit Rprop(std::size_t size) : Optimizer<T>(size, 1e-2) {}
    PYOPTIM_OPTIMIZER(Rprop, "rprop",
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
    PYOPTIM_OPTIMIZER(ASGD, "asgd",
                      {{"lambd", &lambd, allowed::number}, {"alpha", &alpha, allowed::number}, {"t0", &t0}})
    Row coefficients(const Progress& at, double rate) const override {
        const auto before = static_cast<double>(at.step - 1);
        const double base = 1 + lambd * rate * before, power = std::pow(base, alpha);
        if (!(base > 0) || !(power > 0) || !std::isfinite(power)) {
            throw std::invalid_argument("(1 + lambd*lr*(t-1))^alpha is no finite number > 0 at step " +
                                        std::to_string(at.step) + ": lambd is " + std::to_string(lambd));
        }
        const double eta = rate / power;
        const double share = before - t0;
        const double mu = 1 / (share > 1 ? share : 1);
        return {1 - lambd * eta, eta, 1 - mu, mu};
    }
};

/// Layer-wise adaptive rates: SGD with a rate for each array.
template <class T>
class LARS final : public Optimizer<T> {
  public:
    double momentum = 0.9, trust = 1e-3, eps = 1e-8;
    explicit LARS(std::size_t size) : Optimizer<T>(size, 1e-1) {}
    PYOPTIM_OPTIMIZER(LARS, "momentum", {{"momentum", &momentum}, {"trust", &trust}, {"eps", &eps}})
    Row coefficients(const Progress&, double rate) const override {
        return {momentum, rate, 1.0, trust, eps};
    }

  public:
    StepKind kind() const override { return StepKind::scaled_gradient; }
};

/// Layer-wise adaptive Adam.
template <class T>
class LAMB final : public Optimizer<T> {
  public:
    Pair betas = {0.9, 0.999};
    double eps = 1e-6;
    bool bias_correction = true;
    explicit LAMB(std::size_t size) : Optimizer<T>(size, 1e-3) {}
    PYOPTIM_OPTIMIZER(LAMB, "adam",
                      {{"betas", &betas, allowed::betas},
                       {"eps", &eps},
                       {"bias_correction", &bias_correction}})
    Row coefficients(const Progress& at, double rate) const override {
        const auto t = static_cast<double>(at.step);
        const double c1 = bias_correction ? 1 - std::pow(betas[0], t) : 1;
        const double c2 = bias_correction ? 1 - std::pow(betas[1], t) : 1;
        const double s = root_scale(c2);  // rate, then the row of the rule
        return {rate, betas[0], 1 - betas[0], betas[1], 1 - betas[1], s / c1, s * s / c2, 0.0, s * eps};
    }

  public:
    StepKind kind() const override { return StepKind::scaled_direction; }
};

/// Adafactor: second moments of a matrix kept as rows and columns.
template <class T>
class Adafactor final : public Optimizer<T> {
  public:
    double beta2_decay = -0.8;
    Pair eps = {-1, 1e-3};  ///< a negative first one, None in Python, is the machine epsilon of T
    double d = 1;
    explicit Adafactor(std::size_t size) : Optimizer<T>(size, 1e-2) { this->decoupled_weight_decay = true; }
    PYOPTIM_OPTIMIZER(Adafactor, "sgd",
                      {{"beta2_decay", &beta2_decay, allowed::not_positive},
                       {"eps", &eps, allowed::factored_eps, true},
                       {"d", &d, allowed::one_or_more}})
    Row coefficients(const Progress& at, double rate) const override {
        const auto t = static_cast<double>(at.step);
        const double most = 1 / std::sqrt(t);
        return {rate < most ? rate : most, std::pow(t, beta2_decay), eps[0] < 0 ? -1 : eps[0], eps[1], d};
    }

  public:
    StepKind kind() const override { return StepKind::adafactor; }
};

/// Muon: momentum made orthogonal; for arrays that are matrices only.
template <class T>
class Muon final : public Optimizer<T> {
  public:
    double momentum = 0.95;
    bool nesterov = true;
    Triple ns_coefficients = {3.4445, -4.775, 2.0315};
    double ns_steps = 5;  ///< an integer
    double eps = 1e-7;
    Choice adjust_lr_fn = {"original", "match_rms_adamw"};
    explicit Muon(std::size_t size) : Optimizer<T>(size, 1e-3) {
        this->weight_decay = 0.1;
        this->decoupled_weight_decay = true;
    }
    PYOPTIM_OPTIMIZER(Muon, nesterov ? "nesterov" : "momentum",
                      {{"momentum", &momentum},
                       {"nesterov", &nesterov},
                       {"ns_coefficients", &ns_coefficients},
                       {"ns_steps", &ns_steps, allowed::one_or_more},
                       {"eps", &eps},
                       {"adjust_lr_fn", &adjust_lr_fn, "like_adamw"}})
    Row coefficients(const Progress&, double rate) const override {
        const double fresh = 1 - momentum;
        const auto& [a, b, c] = ns_coefficients;
        return {momentum,
                fresh,
                nesterov ? fresh : 1,
                nesterov ? momentum : 0,
                rate,
                adjust_lr_fn.second ? 1.0 : 0.0,
                std::floor(ns_steps),
                eps,
                a,
                b,
                c};
    }

  public:
    StepKind kind() const override { return StepKind::muon; }
};

#undef PYOPTIM_OPTIMIZER
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

/// Every elementwise optimizer: `make_optimizer` knows it by its name in lower case.
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

/// Every optimizer that looks at whole arrays; make_optimizer knows these too.
#define PYOPTIM_FOR_EACH_TENSOR_OPTIMIZER(X) \
    X(LARS) \
    X(LAMB) \
    X(Adafactor) \
    X(Muon)
// clang-format on

}  // namespace pyoptim
