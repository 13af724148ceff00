"""Textbook formulas of every optimizer and option, in float64; nothing here comes from the package.

An oracle takes one step: t counts from 1, p is the parameter, g the gradient (turned and decayed
already), s a dict of the state. It returns the new p. `oracle` lists the options it is tested with.
"""

import inspect
import math
from functools import partial
from typing import NamedTuple

import numpy as np


class Oracle(NamedTuple):
    function: object
    decay: dict  # the class's own defaults of weight decay
    cases: list  # keyword arguments
    amplification: float  # of rounding errors, by a step


ORACLES = {}


def schedule(k):  # k steps have been taken
    return 4 / (40 + k)


def oracle(name, *cases, decoupled=(False, True), amplification=1, **decay):
    """Register; `decoupled` says which kinds of weight decay there are."""
    shared = (
        {},
        {"lr": 0.05},
        {"lr": schedule},
        {"maximize": True},
        *({"weight_decay": 0.1, "decoupled_weight_decay": kind} for kind in decoupled),
        {"weight_decay": 0.1, "maximize": True, "lr": schedule},
    )

    def register(function):
        ORACLES[name] = Oracle(function, decay, [*shared, *cases], amplification)
        return function

    return register


def trajectory(name, options, p, grads):
    """Parameters after every step, and the last state."""
    function, decay, *_ = ORACLES[name]
    known = inspect.signature(function).parameters
    options = {
        "lr": known["lr"].default,
        "weight_decay": 0,
        "decoupled_weight_decay": False,
        "maximize": False,
        **decay,
        **options,
    }
    lr, decoupled = options.pop("lr"), options.pop("decoupled_weight_decay")
    weight_decay = 0 if "weight_decay" in known else options.pop("weight_decay")  # or the function's affair
    sign = -1 if options.pop("maximize") else 1
    p, s, points = np.array(p, np.float64), {}, []
    for t, g in enumerate(grads, 1):
        lr_t = lr(t - 1) if callable(lr) else lr
        g = sign * np.asarray(g, np.float64)
        if decoupled:
            p = p * (1 - lr_t * weight_decay)
        else:
            g = g + weight_decay * p
        p = function(t, p, g, s, lr=lr_t, **options)
        points.append(p)
    return points, s


@oracle(
    "SGD",
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "lr": schedule, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9, "velocity": "classical", "lr": schedule},
    {"momentum": 0.9, "velocity": "classical", "lr": schedule, "nesterov": True},
)
def sgd(t, p, g, s, lr=1e-3, momentum=0.0, dampening=0.0, nesterov=False, velocity="torch"):
    if momentum == 0:
        return p - lr * g
    if velocity == "classical":  # Goodfellow et al. 2016, algorithm 8.2
        v = s["momentum_buffer"] = momentum * s.get("momentum_buffer", 0) + lr * g
        return p - (momentum * v + lr * g if nesterov else v)
    b = s["momentum_buffer"] = g if t == 1 else momentum * s["momentum_buffer"] + (1 - dampening) * g
    return p - lr * (g + momentum * b if nesterov else b)


@oracle(
    "Adagrad",
    {"lr_decay": 0.1},
    {"initial_accumulator_value": 0.1},
    {"eps": 0.0, "eps_root": 1e-3},
)
def adagrad(t, p, g, s, lr=1e-2, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, eps_root=0.0):
    s["sum"] = s.get("sum", initial_accumulator_value) + g**2
    return p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s["sum"] + eps_root) + eps)


@oracle(
    "RMSprop",
    {"alpha": 0.9, "eps": 0.1},
    {"eps": 0.0, "eps_root": 1e-3},
    {"momentum": 0.9, "eps_root": 1e-3},
    {"centered": True, "eps_root": 1e-3},
    {"centered": True, "momentum": 0.9, "eps_root": 1e-3},
)
def rmsprop(t, p, g, s, lr=1e-2, alpha=0.99, eps=1e-8, eps_root=0.0, momentum=0.0, centered=False):
    v = s["square_avg"] = alpha * s.get("square_avg", 0) + (1 - alpha) * g**2
    if centered:
        mean = s["grad_avg"] = alpha * s.get("grad_avg", 0) + (1 - alpha) * g
        v = v - mean**2
    d = np.sqrt(v + eps_root) + eps
    if momentum == 0:
        return p - lr * g / d
    s["momentum_buffer"] = momentum * s.get("momentum_buffer", 0) + g / d
    return p - lr * s["momentum_buffer"]


@oracle("Adadelta", {"rho": 0.95, "eps": 1e-3})
def adadelta(t, p, g, s, lr=1.0, rho=0.9, eps=1e-6):
    s["square_avg"] = rho * s.get("square_avg", 0) + (1 - rho) * g**2
    u = s.get("acc_delta", 0)
    delta = np.sqrt(u + eps) / np.sqrt(s["square_avg"] + eps) * g
    s["acc_delta"] = rho * u + (1 - rho) * delta**2
    return p - lr * delta


def moments(s, g, b1, b2):
    s["exp_avg"] = b1 * s.get("exp_avg", 0) + (1 - b1) * g
    s["exp_avg_sq"] = b2 * s.get("exp_avg_sq", 0) + (1 - b2) * g**2
    return s["exp_avg"], s["exp_avg_sq"]


@oracle(
    "Adam",
    {"betas": (0.8, 0.9), "eps": 0.1},
    {"betas": (0.0, 0.0)},
    {"eps": 0.0, "eps_root": 1e-3},
    {"eps_hat": True, "eps": 0.1},
    {"eps_hat": True, "eps": 0.0, "eps_root": 1e-3},
    {"bias_correction": False},
    {"amsgrad": True, "betas": (0.9, 0.9)},
    {"amsgrad": True, "amsgrad_max": "corrected", "betas": (0.9, 0.9)},
    {"amsgrad": True, "eps_hat": True, "eps": 0.1, "eps_root": 1e-3},
)
def adam(
    t,
    p,
    g,
    s,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    eps_root=0.0,
    eps_hat=False,
    amsgrad=False,
    amsgrad_max="raw",
    bias_correction=True,
):
    m, v = moments(s, g, *betas)
    c1, c2 = (1 - betas[0] ** t, 1 - betas[1] ** t) if bias_correction else (1, 1)
    v_hat = v / c2
    if amsgrad:
        s["max_exp_avg_sq"] = np.maximum(
            s.get("max_exp_avg_sq", 0), v_hat if amsgrad_max == "corrected" else v
        )
        v_hat = s["max_exp_avg_sq"] / (c2 if amsgrad_max == "raw" else 1)
    if eps_hat:  # Kingma & Ba 2015, the end of section 2: neither constant is corrected
        return p - lr * math.sqrt(c2) / c1 * m / (np.sqrt(c2 * v_hat + eps_root) + eps)
    return p - lr * (m / c1) / (np.sqrt(v_hat + eps_root) + eps)


oracle("AdamW", {"amsgrad": True}, weight_decay=1e-2, decoupled_weight_decay=True)(adam)
oracle("AMSGrad", {"amsgrad_max": "corrected"})(partial(adam, amsgrad=True))


@oracle("Adamax", {"betas": (0.8, 0.9), "eps": 0.1})
def adamax(t, p, g, s, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
    s["exp_avg"] = betas[0] * s.get("exp_avg", 0) + (1 - betas[0]) * g
    s["exp_inf"] = np.maximum(betas[1] * s.get("exp_inf", 0), np.abs(g) + eps)
    return p - lr / (1 - betas[0] ** t) * s["exp_avg"] / s["exp_inf"]


@oracle(
    "NAdam",
    {"momentum_decay": 0.1, "betas": (0.8, 0.9)},
    {"momentum_decay": None},
    {"momentum_decay": None, "eps": 0.0, "eps_root": 1e-3},
)
def nadam(t, p, g, s, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, eps_root=0.0, momentum_decay=4e-3):
    m, v = moments(s, g, *betas)
    d = np.sqrt(v / (1 - betas[1] ** t) + eps_root) + eps
    if momentum_decay is None:  # optax's
        b1 = betas[0]
        return p - lr * (b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)) / d
    mu = [betas[0] * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in range(1, t + 2)]
    s["mu_product"] = math.prod(mu[:-1])
    return p - lr * (mu[-1] * m / (1 - math.prod(mu)) + (1 - mu[-2]) * g / (1 - s["mu_product"])) / d


@oracle("RAdam", {"betas": (0.8, 0.9), "eps": 0.1}, {"eps": 0.0, "eps_root": 1e-3})
def radam(t, p, g, s, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, eps_root=0.0):
    b1, b2 = betas
    m, v = moments(s, g, b1, b2)
    m_hat = m / (1 - b1**t)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    if rho <= 5:
        return p - lr * m_hat
    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return p - lr * m_hat * r * math.sqrt(1 - b2**t) / (np.sqrt(v + eps_root) + eps)


@oracle("Lion", {"betas": (0.8, 0.9)}, decoupled_weight_decay=True)
def lion(t, p, g, s, lr=1e-4, betas=(0.9, 0.99)):
    m = s.get("exp_avg", 0)
    s["exp_avg"] = betas[1] * m + (1 - betas[1]) * g
    return p - lr * np.sign(betas[0] * m + (1 - betas[0]) * g)


@oracle("Rprop", {"etas": (0.3, 1.5), "step_sizes": (8e-3, 0.02)})
def rprop(t, p, g, s, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0)):
    prev, size = s.get("prev", np.zeros_like(g)), s.get("step_size", np.full_like(g, lr))
    g = g.copy()
    for i in np.ndindex(g.shape):
        if g[i] * prev[i] > 0:
            size[i] = min(size[i] * etas[1], step_sizes[1])
        elif g[i] * prev[i] < 0:
            size[i] = max(size[i] * etas[0], step_sizes[0])
            g[i] = 0
    s["prev"], s["step_size"] = g, size
    return p - np.sign(g) * size


@oracle("ASGD", {"lambd": 0.1, "alpha": 0.5}, {"t0": 5.0})
def asgd(t, p, g, s, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6):
    eta = lr / (1 + lambd * lr * (t - 1)) ** alpha
    p = (1 - lambd * eta) * p - eta * g
    # PyTorch averages from step t0 + 2 on: the weight it computes at the end of a step serves the next.
    if t <= t0 + 2:
        s["ax"], s["points"] = p, 1
    else:
        s["points"] += 1
        s["ax"] = s["ax"] + (p - s["ax"]) / s["points"]
    return p


# ---- of whole tensors ------------------------------------------------------------------------------


@oracle("LARS", {"momentum": 0.0, "trust": 0.1, "eps": 0.1, "weight_decay": 0.1}, decoupled=(False,))
def lars(t, p, g, s, lr=0.1, momentum=0.9, trust=1e-3, eps=1e-8, weight_decay=0.0):
    norm = np.linalg.norm
    rate = lr * trust * norm(p) / (norm(g) + weight_decay * norm(p) + eps)
    v = s["momentum_buffer"] = momentum * s.get("momentum_buffer", 0) + rate * (g + weight_decay * p)
    return p - v


@oracle("LAMB", {"betas": (0.8, 0.9), "eps": 0.1}, {"bias_correction": False}, decoupled=(False,))
def lamb(t, p, g, s, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, bias_correction=True, weight_decay=0.0):
    m, v = moments(s, g, *betas)
    if bias_correction:
        m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    u = m / (np.sqrt(v) + eps) + weight_decay * p
    return p - lr * np.linalg.norm(p) / np.linalg.norm(u) * u


@oracle(
    "Adafactor",
    {"beta2_decay": -0.5, "d": 2.0, "eps": (1e-30, 0.1)},
    decoupled=(True,),
    decoupled_weight_decay=True,
)
def adafactor(t, p, g, s, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0):
    """Of a matrix, none of whose gradients are near eps[0]. As in PyTorch p is measured, then decayed."""

    def rms(x):
        return np.sqrt(np.mean(x**2))

    beta = 1 - t**beta2_decay
    rows = s["row_var"] = beta * s.get("row_var", 0) + (1 - beta) * (g**2).mean(axis=1, keepdims=True)
    cols = s["col_var"] = beta * s.get("col_var", 0) + (1 - beta) * (g**2).mean(axis=0, keepdims=True)
    u = g / np.sqrt(rows * cols / rows.mean())
    u = u / max(1, rms(u) / d)
    return p * (1 - lr * weight_decay) - min(lr, 1 / math.sqrt(t)) * max(eps[1], rms(p)) * u


@oracle(
    "Muon",
    {"momentum": 0.8, "nesterov": False},
    {"ns_steps": 2, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 1.0},
    {"adjust_lr_fn": "match_rms_adamw"},
    decoupled=(True,),
    weight_decay=0.1,
    decoupled_weight_decay=True,
    amplification=30,  # the slope of the polynomial, below 3.5 and mostly below 2, to the fifth
)
def muon(
    t,
    p,
    g,
    s,
    lr=1e-3,
    momentum=0.95,
    nesterov=True,
    ns_coefficients=(3.4445, -4.775, 2.0315),
    ns_steps=5,
    eps=1e-7,
    adjust_lr_fn="original",
):
    b = s["momentum_buffer"] = momentum * s.get("momentum_buffer", 0) + (1 - momentum) * g
    x = (1 - momentum) * g + momentum * b if nesterov else b
    x = x / max(np.linalg.norm(x), eps)
    one, three, five = ns_coefficients
    for _ in range(ns_steps):
        x = one * x + three * x @ x.T @ x + five * x @ x.T @ x @ x.T @ x
    rows, columns = p.shape
    original = adjust_lr_fn == "original"
    return p - lr * (math.sqrt(max(1, rows / columns)) if original else 0.2 * math.sqrt(max(p.shape))) * x


CASES = [(name, options) for name, known in ORACLES.items() for options in known.cases]


def case_id(case):
    name, options = case
    shown = (f"{k}={getattr(v, '__name__', v)}" for k, v in options.items())
    return f"{name}({','.join(shown)})".replace(" ", "")
