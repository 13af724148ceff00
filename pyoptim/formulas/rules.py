"""Every optimizer update, once: the Python twin of ``csrc/formulas/rules.hpp``.

A rule is a pure function of one element, ``(c, p, g, *states) -> (p, *states)``. NumPy calls it with
whole arrays, Numba with scalars. It uses only ``+ - * /``, ``np.sqrt``, ``abs``, ``np.maximum``,
``np.minimum`` and `sign`, and no literals (which would be float64), in the same order of operations
as the C++, so every backend gives the same bits. ``c`` is a named tuple of the rule's coefficients,
computed on the host in double and cast once.

A step in NumPy repeats the operations that `pyoptim.backends.reference.traced` noted when it called the rule
with stand-ins for arrays.
"""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import frexp
from typing import Any

import numpy as np

from .elementwise import sign


@dataclass(frozen=True)
class Rule:
    """A rule with the names of what it takes.

    Attributes
    ----------
    name : str
        The name of the rule in both languages.
    function : callable
        ``(c, p, g, *states) -> (p, *states)``.
    states : tuple of str
        State arrays, each of the parameter's shape, with PyTorch's names.
    fields : str
        Names of the per-step scalars, separated by spaces.
    """

    name: str
    function: Callable[..., Any]
    states: tuple[str, ...]
    fields: str

    @cached_property
    def coefficients(self) -> Any:
        """Named tuple of the per-step scalars. Making one takes 0.2 ms, so each waits for its first use."""
        return namedtuple(f"{self.name}_coefficients", self.fields)

    def __reduce__(self) -> Any:
        return _named, (self.name,)


RULES: dict[str, Rule] = {}


def _named(name: str) -> Rule:
    return RULES[name]


# Coefficients that every update shares: see Common in rules.hpp.
Common = namedtuple("Common", "grad_scale weight_decay param_scale")


def common(c: Any, p: Any, g: Any) -> Any:
    """Scale and decay, before the rule sees the gradient; return ``(p, g)``."""
    g = c.grad_scale * g + c.weight_decay * p
    return c.param_scale * p, g


def split_coefficients(rule: Rule, row: tuple[float, ...], dtype: Callable[[float], Any]) -> Any:
    """A row of doubles as the two named tuples that a rule takes, cast once."""
    with np.errstate(over="ignore"):  # beyond float32 is infinity, as in C++
        values = [dtype(value) for value in row]
    shared = len(Common._fields)
    return Common(*values[:shared]), rule.coefficients(*values[shared:])


def root_scale(c2: float) -> float:
    """Return the power of two s with ``s*s/c2`` in (1/4, 1], for c2 in (0, 1].

    The root of ``v/c2`` is computed times s, as is what is added to it and what it divides: the same bits,
    but ``v/c2`` cannot overflow. Its twin is in ``csrc/include/pyoptim/optimizer.hpp``.
    """
    return _POWERS[(2 - frexp(c2)[1]) >> 1]


_POWERS = tuple(0.5**k for k in range(28))  # c2 is 1 less a double below 1, so 2**-53 at least


def _rule(coefficients: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        states = tuple(inspect.signature(function).parameters)[3:]
        RULES[name] = Rule(name, function, states, coefficients)
        return function

    return register


@_rule("lr")
def sgd(c, p, g):  # type: ignore[no-untyped-def]
    return (p - c.lr * g,)


@_rule("momentum grad_in step_buffer")
def momentum(c, p, g, momentum_buffer):  # type: ignore[no-untyped-def]
    momentum_buffer = c.momentum * momentum_buffer + c.grad_in * g
    return p - c.step_buffer * momentum_buffer, momentum_buffer


@_rule("momentum grad_in step_grad step_buffer")
def nesterov(c, p, g, momentum_buffer):  # type: ignore[no-untyped-def]
    momentum_buffer = c.momentum * momentum_buffer + c.grad_in * g
    return p - (c.step_grad * g + c.step_buffer * momentum_buffer), momentum_buffer


@_rule("lr eps_root eps")
def adagrad(c, p, g, sum):  # type: ignore[no-untyped-def]
    sum = sum + g * g
    return p - c.lr * g / (np.sqrt(sum + c.eps_root) + c.eps), sum


@_rule("lr alpha one_minus_alpha eps_root eps")
def rmsprop(c, p, g, square_avg):  # type: ignore[no-untyped-def]
    square_avg = c.alpha * square_avg + c.one_minus_alpha * g * g
    return p - c.lr * g / (np.sqrt(square_avg + c.eps_root) + c.eps), square_avg


@_rule("lr alpha one_minus_alpha eps_root eps momentum")
def rmsprop_momentum(c, p, g, square_avg, momentum_buffer):  # type: ignore[no-untyped-def]
    square_avg = c.alpha * square_avg + c.one_minus_alpha * g * g
    momentum_buffer = c.momentum * momentum_buffer + g / (np.sqrt(square_avg + c.eps_root) + c.eps)
    return p - c.lr * momentum_buffer, square_avg, momentum_buffer


@_rule("lr alpha one_minus_alpha eps_root eps")
def rmsprop_centered(c, p, g, square_avg, grad_avg):  # type: ignore[no-untyped-def]
    square_avg = c.alpha * square_avg + c.one_minus_alpha * g * g
    grad_avg = c.alpha * grad_avg + c.one_minus_alpha * g
    variance = abs(square_avg - grad_avg * grad_avg)
    return p - c.lr * g / (np.sqrt(variance + c.eps_root) + c.eps), square_avg, grad_avg


@_rule("lr alpha one_minus_alpha eps_root eps momentum")
def rmsprop_centered_momentum(c, p, g, square_avg, grad_avg, momentum_buffer):  # type: ignore[no-untyped-def]
    square_avg = c.alpha * square_avg + c.one_minus_alpha * g * g
    grad_avg = c.alpha * grad_avg + c.one_minus_alpha * g
    variance = abs(square_avg - grad_avg * grad_avg)
    momentum_buffer = c.momentum * momentum_buffer + g / (np.sqrt(variance + c.eps_root) + c.eps)
    return p - c.lr * momentum_buffer, square_avg, grad_avg, momentum_buffer


@_rule("lr rho one_minus_rho eps")
def adadelta(c, p, g, square_avg, acc_delta):  # type: ignore[no-untyped-def]
    square_avg = c.rho * square_avg + c.one_minus_rho * g * g
    delta = np.sqrt(acc_delta + c.eps) / np.sqrt(square_avg + c.eps) * g
    acc_delta = c.rho * acc_delta + c.one_minus_rho * delta * delta
    return p - c.lr * delta, square_avg, acc_delta


@_rule("beta1 one_minus_beta1 beta2 one_minus_beta2 step_size inverse_c2 eps_root eps")
def adam(c, p, g, exp_avg, exp_avg_sq):  # type: ignore[no-untyped-def]
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * g * g
    p = p - c.step_size * exp_avg / (np.sqrt(exp_avg_sq * c.inverse_c2 + c.eps_root) + c.eps)
    return p, exp_avg, exp_avg_sq


@_rule("beta1 one_minus_beta1 beta2 one_minus_beta2 step_size before_max after_max eps_root eps")
def amsgrad(c, p, g, exp_avg, exp_avg_sq, max_exp_avg_sq):  # type: ignore[no-untyped-def]
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * g * g
    max_exp_avg_sq = np.maximum(max_exp_avg_sq, exp_avg_sq * c.before_max)
    p = p - c.step_size * exp_avg / (np.sqrt(max_exp_avg_sq * c.after_max + c.eps_root) + c.eps)
    return p, exp_avg, exp_avg_sq, max_exp_avg_sq


@_rule("beta1 one_minus_beta1 beta2 step_size eps")
def adamax(c, p, g, exp_avg, exp_inf):  # type: ignore[no-untyped-def]
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_inf = np.maximum(c.beta2 * exp_inf, abs(g) + c.eps)
    return p - c.step_size * exp_avg / exp_inf, exp_avg, exp_inf


@_rule("beta1 one_minus_beta1 beta2 one_minus_beta2 step_momentum step_grad inverse_c2 eps_root eps")
def nadam(c, p, g, exp_avg, exp_avg_sq):  # type: ignore[no-untyped-def]
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * g * g
    p = p - (c.step_momentum * exp_avg + c.step_grad * g) / (
        np.sqrt(exp_avg_sq * c.inverse_c2 + c.eps_root) + c.eps
    )
    return p, exp_avg, exp_avg_sq


@_rule("beta1 one_minus_beta1 beta2 one_minus_beta2 step_size eps_root eps smallest largest")
def radam(c, p, g, exp_avg, exp_avg_sq):  # type: ignore[no-untyped-def]
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * g
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * g * g
    divisor = np.sqrt(exp_avg_sq + c.eps_root) + c.eps
    p = p - c.step_size * exp_avg / np.maximum(np.minimum(divisor, c.largest), c.smallest)
    return p, exp_avg, exp_avg_sq


@_rule("beta1 one_minus_beta1 beta2 one_minus_beta2 lr")
def lion(c, p, g, exp_avg):  # type: ignore[no-untyped-def]
    p = p - c.lr * sign(c.beta1 * exp_avg + c.one_minus_beta1 * g)
    return p, c.beta2 * exp_avg + c.one_minus_beta2 * g


@_rule("one eta_minus eta_plus smallest largest")
def rprop(c, p, g, prev, step_size):  # type: ignore[no-untyped-def]
    way = sign(g)
    agreement = sign(way * prev)
    kept = np.maximum(agreement, agreement - agreement)
    turned = kept - agreement
    rest = c.one - turned
    prev, way = g * rest, way * rest
    factor = kept * c.eta_plus + (turned * c.eta_minus + (rest - kept))
    step_size = np.minimum(np.maximum(step_size * factor, c.smallest), c.largest)
    return p - way * step_size, prev, step_size


@_rule("shrink eta stale fresh")
def asgd(c, p, g, ax):  # type: ignore[no-untyped-def]
    p = c.shrink * p - c.eta * g
    return p, c.stale * ax + c.fresh * p
