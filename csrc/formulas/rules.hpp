// Every optimizer update, once. A rule is a pure function of one element: the CPU loops, the CUDA
// kernels and NVRTC compile these same lines, so this header includes nothing.
//
// Rules use only + - * / sqrt abs max and comparisons, and are compiled without contraction, so every
// instruction set, thread count and backend gives the same bits. pyoptim/formulas/rules.py is the same list
// in Python, with the same names and the same order of operations; a test holds the two together.
//
// To add a rule: a struct here, a line in PYOPTIM_FOR_EACH_RULE, and its twin in pyoptim/formulas/rules.py.
#pragma once

// PYOPTIM_FN begins every function of these headers, and PYOPTIM_C calls a function of C's mathematics.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define PYOPTIM_FN __host__ __device__ __forceinline__
#define PYOPTIM_C(function) function
#else
// Always inlined: an out-of-line copy made for AVX-512 could be the one the linker keeps for all.
#define PYOPTIM_FN inline __attribute__((always_inline))
#define PYOPTIM_C(function) __builtin_##function
#endif

// One list declares the fields and gives their names to the binding, so the two cannot drift.
#define PYOPTIM_COEFFICIENTS(...)                                             \
    template <class T>                                                        \
    struct Coefficients {                                                     \
        T __VA_ARGS__;                                                        \
    };                                                                        \
    static constexpr int coefficient_count = int(sizeof(Coefficients<char>)); \
    static constexpr const char* coefficient_names = #__VA_ARGS__;
#define PYOPTIM_STATE(...)                                       \
    template <class T>                                           \
    struct State {                                               \
        T __VA_ARGS__;                                           \
    };                                                           \
    static constexpr int state_count = int(sizeof(State<char>)); \
    static constexpr const char* state_names = #__VA_ARGS__;
#define PYOPTIM_STATELESS                 \
    template <class T>                    \
    struct State {};                      \
    static constexpr int state_count = 0; \
    static constexpr const char* state_names = "";
// Begins the function that updates a parameter p by its gradient g, with coefficients c and states s.
#define PYOPTIM_UPDATE(c, p, g, s) \
    template <class T>             \
    static PYOPTIM_FN void apply(const Coefficients<T>& c, T& p, T g, State<T>& s)

namespace pyoptim {

PYOPTIM_FN float square_root(float x) { return PYOPTIM_C(sqrtf)(x); }
PYOPTIM_FN double square_root(double x) { return PYOPTIM_C(sqrt)(x); }
PYOPTIM_FN float absolute(float x) { return PYOPTIM_C(fabsf)(x); }
PYOPTIM_FN double absolute(double x) { return PYOPTIM_C(fabs)(x); }
// NaN in either argument gives NaN, as numpy.maximum.
template <class T>
PYOPTIM_FN T maximum(T a, T b) {
    return ((a > b) | (a != a)) ? a : b;
}

// NaN stays NaN.
template <class T>
PYOPTIM_FN T clamp(T x, T low, T high) {
    const T raised = x < low ? low : x;
    return raised > high ? high : raised;
}
// -1, +0 or 1; NaN stays NaN.
template <class T>
PYOPTIM_FN T sign(T x) {
    return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x + T(0));
}

// What every update shares, before its rule sees the gradient. An option that is off is a factor of 1
// or 0. grad_scale carries `maximize` (-1) and any factor on the gradient, weight_decay is the coupled
// decay, param_scale = 1 - lr * weight_decay the decoupled one.
struct Common {
    PYOPTIM_COEFFICIENTS(grad_scale, weight_decay, param_scale)

    template <class T>
    static PYOPTIM_FN void apply(const Coefficients<T>& c, T& p, T& g) {
        g = c.grad_scale * g + c.weight_decay * p;
        p = c.param_scale * p;
    }
};

namespace rules {

struct SGD {
    PYOPTIM_COEFFICIENTS(lr)
    PYOPTIM_STATELESS

    PYOPTIM_UPDATE(c, p, g, ) { p = p - c.lr * g; }
};

// The heavy ball; lr is in grad_in or in step_buffer.
struct Momentum {
    PYOPTIM_COEFFICIENTS(momentum, grad_in, step_buffer)
    PYOPTIM_STATE(momentum_buffer)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.momentum_buffer = c.momentum * s.momentum_buffer + c.grad_in * g;
        p = p - c.step_buffer * s.momentum_buffer;
    }
};

struct Nesterov {
    PYOPTIM_COEFFICIENTS(momentum, grad_in, step_grad, step_buffer)
    PYOPTIM_STATE(momentum_buffer)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.momentum_buffer = c.momentum * s.momentum_buffer + c.grad_in * g;
        p = p - (c.step_grad * g + c.step_buffer * s.momentum_buffer);
    }
};

struct Adagrad {
    PYOPTIM_COEFFICIENTS(lr, eps_root, eps)
    PYOPTIM_STATE(sum)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.sum = s.sum + g * g;
        p = p - c.lr * g / (square_root(s.sum + c.eps_root) + c.eps);
    }
};

struct RMSprop {
    PYOPTIM_COEFFICIENTS(lr, alpha, one_minus_alpha, eps_root, eps)
    PYOPTIM_STATE(square_avg)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.square_avg = c.alpha * s.square_avg + c.one_minus_alpha * g * g;
        p = p - c.lr * g / (square_root(s.square_avg + c.eps_root) + c.eps);
    }
};

struct RMSpropMomentum {
    PYOPTIM_COEFFICIENTS(lr, alpha, one_minus_alpha, eps_root, eps, momentum)
    PYOPTIM_STATE(square_avg, momentum_buffer)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.square_avg = c.alpha * s.square_avg + c.one_minus_alpha * g * g;
        s.momentum_buffer =
            c.momentum * s.momentum_buffer + g / (square_root(s.square_avg + c.eps_root) + c.eps);
        p = p - c.lr * s.momentum_buffer;
    }
};

// Centered: the variance is taken as |E[g^2] - E[g]^2|, since rounding can make the difference
// negative where the gradient hardly changes, and its root NaN.
struct RMSpropCentered {
    PYOPTIM_COEFFICIENTS(lr, alpha, one_minus_alpha, eps_root, eps)
    PYOPTIM_STATE(square_avg, grad_avg)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.square_avg = c.alpha * s.square_avg + c.one_minus_alpha * g * g;
        s.grad_avg = c.alpha * s.grad_avg + c.one_minus_alpha * g;
        const T variance = absolute(s.square_avg - s.grad_avg * s.grad_avg);
        p = p - c.lr * g / (square_root(variance + c.eps_root) + c.eps);
    }
};

struct RMSpropCenteredMomentum {
    PYOPTIM_COEFFICIENTS(lr, alpha, one_minus_alpha, eps_root, eps, momentum)
    PYOPTIM_STATE(square_avg, grad_avg, momentum_buffer)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.square_avg = c.alpha * s.square_avg + c.one_minus_alpha * g * g;
        s.grad_avg = c.alpha * s.grad_avg + c.one_minus_alpha * g;
        const T variance = absolute(s.square_avg - s.grad_avg * s.grad_avg);
        s.momentum_buffer = c.momentum * s.momentum_buffer + g / (square_root(variance + c.eps_root) + c.eps);
        p = p - c.lr * s.momentum_buffer;
    }
};

struct Adadelta {
    PYOPTIM_COEFFICIENTS(lr, rho, one_minus_rho, eps)
    PYOPTIM_STATE(square_avg, acc_delta)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.square_avg = c.rho * s.square_avg + c.one_minus_rho * g * g;
        const T delta = square_root(s.acc_delta + c.eps) / square_root(s.square_avg + c.eps) * g;
        s.acc_delta = c.rho * s.acc_delta + c.one_minus_rho * delta * delta;
        p = p - c.lr * delta;
    }
};

// step_size = s lr / (1 - beta1^t) and inverse_c2 = s^2 / (1 - beta2^t), and eps_root and eps come multiplied
// by s^2 and s. The power of two s keeps inverse_c2 at 1 at most, since exp_avg_sq / (1 - beta2^t) may
// overflow; s cancels without rounding.
struct Adam {
    PYOPTIM_COEFFICIENTS(beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_c2, eps_root, eps)
    PYOPTIM_STATE(exp_avg, exp_avg_sq)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.exp_avg = c.beta1 * s.exp_avg + c.one_minus_beta1 * g;
        s.exp_avg_sq = c.beta2 * s.exp_avg_sq + c.one_minus_beta2 * g * g;
        p = p - c.step_size * s.exp_avg / (square_root(s.exp_avg_sq * c.inverse_c2 + c.eps_root) + c.eps);
    }
};

// The maximum is kept over v (before_max = 1) or over v / c2 (after_max = 1). The power of two of Adam is in
// step_size, after_max, eps_root and eps.
struct AMSGrad {
    PYOPTIM_COEFFICIENTS(beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, before_max, after_max,
                         eps_root, eps)
    PYOPTIM_STATE(exp_avg, exp_avg_sq, max_exp_avg_sq)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.exp_avg = c.beta1 * s.exp_avg + c.one_minus_beta1 * g;
        s.exp_avg_sq = c.beta2 * s.exp_avg_sq + c.one_minus_beta2 * g * g;
        s.max_exp_avg_sq = maximum(s.max_exp_avg_sq, s.exp_avg_sq * c.before_max);
        p = p - c.step_size * s.exp_avg / (square_root(s.max_exp_avg_sq * c.after_max + c.eps_root) + c.eps);
    }
};

struct Adamax {
    PYOPTIM_COEFFICIENTS(beta1, one_minus_beta1, beta2, step_size, eps)
    PYOPTIM_STATE(exp_avg, exp_inf)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.exp_avg = c.beta1 * s.exp_avg + c.one_minus_beta1 * g;
        s.exp_inf = maximum(c.beta2 * s.exp_inf, absolute(g) + c.eps);
        p = p - c.step_size * s.exp_avg / s.exp_inf;
    }
};

// The power of two of Adam is in step_momentum, step_grad, inverse_c2, eps_root and eps.
struct NAdam {
    PYOPTIM_COEFFICIENTS(beta1, one_minus_beta1, beta2, one_minus_beta2, step_momentum, step_grad, inverse_c2,
                         eps_root, eps)
    PYOPTIM_STATE(exp_avg, exp_avg_sq)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.exp_avg = c.beta1 * s.exp_avg + c.one_minus_beta1 * g;
        s.exp_avg_sq = c.beta2 * s.exp_avg_sq + c.one_minus_beta2 * g * g;
        p = p - (c.step_momentum * s.exp_avg + c.step_grad * g) /
                    (square_root(s.exp_avg_sq * c.inverse_c2 + c.eps_root) + c.eps);
    }
};

// While the variance is not tractable, smallest and largest hold the divisor at 1; else they have no effect.
struct RAdam {
    PYOPTIM_COEFFICIENTS(beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps_root, eps, smallest,
                         largest)
    PYOPTIM_STATE(exp_avg, exp_avg_sq)

    PYOPTIM_UPDATE(c, p, g, s) {
        s.exp_avg = c.beta1 * s.exp_avg + c.one_minus_beta1 * g;
        s.exp_avg_sq = c.beta2 * s.exp_avg_sq + c.one_minus_beta2 * g * g;
        const T divisor = square_root(s.exp_avg_sq + c.eps_root) + c.eps;
        p = p - c.step_size * s.exp_avg / clamp(divisor, c.smallest, c.largest);
    }
};

struct Lion {
    PYOPTIM_COEFFICIENTS(beta1, one_minus_beta1, beta2, one_minus_beta2, lr)
    PYOPTIM_STATE(exp_avg)

    PYOPTIM_UPDATE(c, p, g, s) {
        p = p - c.lr * sign(c.beta1 * s.exp_avg + c.one_minus_beta1 * g);
        s.exp_avg = c.beta2 * s.exp_avg + c.one_minus_beta2 * g;
    }
};

// Rprop without backtracking of the parameter (iRprop-; PyTorch's): where the gradient turned, the step
// shrinks and this gradient counts as 0. Its sign alone is multiplied by the last one, since a product of two
// small gradients would be 0. rest is 0 where the gradient turned, else 1.
struct Rprop {
    PYOPTIM_COEFFICIENTS(one, eta_minus, eta_plus, smallest, largest)
    PYOPTIM_STATE(prev, step_size)

    PYOPTIM_UPDATE(c, p, g, s) {
        const T way = sign(g), along = way * s.prev;
        const T same = along > T(0) ? c.one : c.one + along;  // NaN stays NaN
        const T rest = along < T(0) ? T(0) : same;
        const T factor = along > T(0) ? c.eta_plus : (along < T(0) ? c.eta_minus : same);
        s.step_size = clamp(s.step_size * factor, c.smallest, c.largest);
        s.prev = g * rest;
        p = p - way * rest * s.step_size;
    }
};

// Averaged SGD (Polyak & Juditsky 1992): ax is the average, of which `fresh` is the newest point's weight.
struct ASGD {
    PYOPTIM_COEFFICIENTS(shrink, eta, stale, fresh)
    PYOPTIM_STATE(ax)

    PYOPTIM_UPDATE(c, p, g, s) {
        p = c.shrink * p - c.eta * g;
        s.ax = c.stale * s.ax + c.fresh * p;
    }
};

}  // namespace rules
}  // namespace pyoptim

// The list of all rules: X(name, struct in pyoptim::rules).
#define PYOPTIM_FOR_EACH_RULE(X)                          \
    X(sgd, SGD)                                           \
    X(momentum, Momentum)                                 \
    X(nesterov, Nesterov)                                 \
    X(adagrad, Adagrad)                                   \
    X(rmsprop, RMSprop)                                   \
    X(rmsprop_momentum, RMSpropMomentum)                  \
    X(rmsprop_centered, RMSpropCentered)                  \
    X(rmsprop_centered_momentum, RMSpropCenteredMomentum) \
    X(adadelta, Adadelta)                                 \
    X(adam, Adam)                                         \
    X(amsgrad, AMSGrad)                                   \
    X(adamax, Adamax)                                     \
    X(nadam, NAdam)                                       \
    X(radam, RAdam)                                       \
    X(lion, Lion)                                         \
    X(rprop, Rprop)                                       \
    X(asgd, ASGD)
