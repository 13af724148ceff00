/// Optimizers of one array of parameters: hyperparameters, their coefficients at each step, and the step.
///
///     pyoptim::Adam<float> adam(n);
///     adam.lr = 1e-2;
///     adam.step(parameters, gradients);  // n elements each; parameters are updated in place
///
/// Names, defaults and formulas are those of the Python classes, as are the bits: a test compares them.
/// Hyperparameters may be changed between steps, but for those that choose the rule.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "pyoptim/export.hpp"

namespace pyoptim {

/// How far an optimizer has come.
struct Progress {
    std::int64_t step = 0;  ///< steps taken, or the one being taken: the first is 1
    double mu_product = 1;  ///< NAdam's
};

/// Coefficients of a step.
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

/// What all optimizers share. T is float or double.
template <class T>
class PYOPTIM_API Optimizer {
  public:
    double lr;                                     ///< learning rate
    std::function<double(std::int64_t)> schedule;  ///< steps already taken -> learning rate; empty: lr
    double weight_decay = 0;                       ///< coupled, unless decoupled_weight_decay
    bool decoupled_weight_decay = false;           ///< multiply p by 1 - lr * weight_decay instead
    bool maximize = false;
    double max_grad_norm = 0;  ///< scale the gradient to this norm at most; 0: leave it
    NonFinite nonfinite = NonFinite::ignore;
    std::size_t skipped = 0;  ///< steps that NonFinite::skip left out

    virtual ~Optimizer();
    Optimizer(const Optimizer&) = delete;
    Optimizer& operator=(const Optimizer&) = delete;

    /// Updates `size()` elements of `param` by `grad`; they must not overlap.
    /// Throws std::logic_error where hyperparameters now choose another rule than in the first step, and
    /// std::invalid_argument for a learning rate that is negative or not finite, and in the first step
    /// for what check() finds.
    void step(T* param, const T* grad);
    /// Throws std::invalid_argument for a hyperparameter out of its range, naming it. Called by the first
    /// step, by set(), and by a network before it trains; call it after changing fields in between.
    void check();

    std::size_t size() const;
    const Progress& progress() const;
    /// The state arrays, `size()` elements each, in the order of rules.hpp; empty before the first step.
    std::vector<T*> states();

    /// The row of coefficients of the step after `last`: the shared three, then the rule's.
    Row next(Progress last, Progress& now) const;

    virtual const char* rule() const = 0;  ///< of rules.hpp's list
    using Option = std::variant<double*, bool*>;
    /// Every hyperparameter by its name.
    virtual std::vector<std::pair<std::string, Option>> options();
    /// Sets one of them; std::invalid_argument for a name that is none or a value out of range, which
    /// changes nothing.
    void set(const std::string& name, double value);

  protected:
    Optimizer(std::size_t size, double lr);
    virtual void advance(Progress& progress) const { ++progress.step; }
    virtual Row coefficients(const Progress&, double lr) const = 0;
    virtual double initial(int state) const;  ///< what a state begins with

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

#define PYOPTIM_OPTIMIZER(Class, default_lr, rule_name, ...)                                        \
  public:                                                                                           \
    explicit Class(std::size_t size) : Optimizer<T>(size, default_lr) {}                            \
    const char* rule() const override { return rule_name; }                                         \
    std::vector<std::pair<std::string, typename Optimizer<T>::Option>> options() override {         \
        auto all = Optimizer<T>::options();                                                         \
        const std::vector<std::pair<std::string, typename Optimizer<T>::Option>> own = __VA_ARGS__; \
        all.insert(all.end(), own.begin(), own.end());                                              \
        return all;                                                                                 \
    }                                                                                               \
                                                                                                    \
  protected:

template <class T>
class SGD final : public Optimizer<T> {
  public:
    double momentum = 0, dampening = 0;
    bool nesterov = false;
    bool classical = false;  ///< lr inside the velocity
    PYOPTIM_OPTIMIZER(SGD, 1e-3, momentum == 0 ? "sgd" : (nesterov ? "nesterov" : "momentum"),
                      {{"momentum", &momentum},
                       {"dampening", &dampening},
                       {"nesterov", &nesterov},
                       {"classical", &classical}})
    Row coefficients(const Progress& at, double lr) const override {
        if (momentum == 0) return {lr};
        const double unit = classical ? 1.0 : lr;
        const double grad_in = classical ? lr * (1 - dampening) : (at.step == 1 ? 1.0 : 1 - dampening);
        if (nesterov) return {momentum, grad_in, lr, unit * momentum};
        return {momentum, grad_in, unit};
    }
};

template <class T>
class Adagrad final : public Optimizer<T> {
  public:
    double lr_decay = 0, initial_accumulator_value = 0, eps = 1e-10, eps_root = 0;
    PYOPTIM_OPTIMIZER(Adagrad, 1e-2, "adagrad",
                      {{"lr_decay", &lr_decay},
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
    PYOPTIM_OPTIMIZER(RMSprop, 1e-2,
                      centered ? (momentum == 0 ? "rmsprop_centered" : "rmsprop_centered_momentum")
                               : (momentum == 0 ? "rmsprop" : "rmsprop_momentum"),
                      {{"alpha", &alpha},
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
    PYOPTIM_OPTIMIZER(Adadelta, 1.0, "adadelta", {{"rho", &rho}, {"eps", &eps}})
    Row coefficients(const Progress&, double lr) const override { return {lr, rho, 1 - rho, eps}; }
};

template <class T>
class Adam : public Optimizer<T> {
  public:
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, eps_root = 0;
    bool eps_hat = false;  ///< scale eps by 1/sqrt(1 - beta2^t)
    bool amsgrad = false;
    bool amsgrad_corrected = false;  ///< the maximum over v / (1 - beta2^t)
    bool bias_correction = true;
    PYOPTIM_OPTIMIZER(Adam, 1e-3, amsgrad ? "amsgrad" : "adam",
                      {{"beta1", &beta1},
                       {"beta2", &beta2},
                       {"eps", &eps},
                       {"eps_root", &eps_root},
                       {"eps_hat", &eps_hat},
                       {"amsgrad", &amsgrad},
                       {"amsgrad_corrected", &amsgrad_corrected},
                       {"bias_correction", &bias_correction}})
    Row coefficients(const Progress& at, double lr) const override {
        const auto t = static_cast<double>(at.step);
        const double c1 = bias_correction ? 1 - std::pow(beta1, t) : 1;
        const double c2 = bias_correction ? 1 - std::pow(beta2, t) : 1;
        const double outside = eps_hat ? eps / std::pow(c2, 0.5) : eps;
        if (!amsgrad) {
            return {beta1, 1 - beta1, beta2, 1 - beta2, lr / c1, 1 / c2, eps_root, outside};
        }
        const double before = amsgrad_corrected ? 1 / c2 : 1, after = amsgrad_corrected ? 1 : 1 / c2;
        return {beta1, 1 - beta1, beta2, 1 - beta2, lr / c1, before, after, eps_root, outside};
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
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
    PYOPTIM_OPTIMIZER(Adamax, 2e-3, "adamax", {{"beta1", &beta1}, {"beta2", &beta2}, {"eps", &eps}})
    Row coefficients(const Progress& at, double lr) const override {
        return {beta1, 1 - beta1, beta2, lr / (1 - std::pow(beta1, static_cast<double>(at.step))), eps};
    }
};

template <class T>
class NAdam final : public Optimizer<T> {
  public:
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, eps_root = 0;
    double momentum_decay = 4e-3;  ///< negative: Dozat without the ramp
    PYOPTIM_OPTIMIZER(NAdam, 2e-3, "nadam",
                      {{"beta1", &beta1},
                       {"beta2", &beta2},
                       {"eps", &eps},
                       {"eps_root", &eps_root},
                       {"momentum_decay", &momentum_decay}})
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
        return {beta1,
                1 - beta1,
                beta2,
                1 - beta2,
                lr * after / (1 - product * after),
                lr * (1 - now) / (1 - product),
                1 / (1 - std::pow(beta2, static_cast<double>(at.step))),
                eps_root,
                eps};
    }
};

template <class T>
class RAdam final : public Optimizer<T> {
  public:
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, eps_root = 0;
    PYOPTIM_OPTIMIZER(RAdam, 1e-3, "radam",
                      {{"beta1", &beta1}, {"beta2", &beta2}, {"eps", &eps}, {"eps_root", &eps_root}})
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
    double beta1 = 0.9, beta2 = 0.99;
    PYOPTIM_OPTIMIZER(Lion, 1e-4, "lion", {{"beta1", &beta1}, {"beta2", &beta2}})
    Row coefficients(const Progress&, double lr) const override {
        return {beta1, 1 - beta1, beta2, 1 - beta2, lr};
    }
};

template <class T>
class Rprop final : public Optimizer<T> {
  public:
    double eta_minus = 0.5, eta_plus = 1.2, smallest = 1e-6, largest = 50;
    PYOPTIM_OPTIMIZER(
        Rprop, 1e-2, "rprop",
        {{"eta_minus", &eta_minus}, {"eta_plus", &eta_plus}, {"smallest", &smallest}, {"largest", &largest}})
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
    PYOPTIM_OPTIMIZER(ASGD, 1e-2, "asgd", {{"lambd", &lambd}, {"alpha", &alpha}, {"t0", &t0}})
    Row coefficients(const Progress& at, double lr) const override {
        const auto before = static_cast<double>(at.step - 1);
        const double eta = at.step > 1 ? lr / std::pow(1 + lambd * lr * before, alpha) : lr;
        const double share = before - t0;
        const double mu = 1 / (share > 1 ? share : 1);
        return {1 - lambd * eta, eta, 1 - mu, mu};
    }
};

#undef PYOPTIM_OPTIMIZER

}  // namespace pyoptim
