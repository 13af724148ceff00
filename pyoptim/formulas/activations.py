"""Every activation, once: the Python twin of ``csrc/formulas/activations.hpp``.

NumPy calls these functions with whole arrays, Numba with scalars. A value is a function of (x, a, b). A
slope, by which the gradient is multiplied, is a function of (x or y, a, b), whichever the forward pass keeps;
it may be a truth value, which stands for 1 or 0.
Definitions are PyTorch's, derivatives at kinks included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .elementwise import where

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848, 1.0507009873554804934


class Kind(NamedTuple):
    """An activation: ``keeps_input`` says what ``slope`` takes, the forward's input or its output."""

    value: Callable[[Any, Any, Any], Any]
    slope: Callable[[Any, Any, Any], Any]
    keeps_input: bool = False
    defaults: Mapping[str, float] = {}  # name -> value of its parameters, at most two
    fused: bool = False  # whether dense layers can apply it in the same pass


# Coefficients of exp(z^2/2) P(Z > z) (z + 5)/5 as a polynomial in (z - 5)/(z + 5): see math.hpp.
_TAIL = (
    -4.7869080574614953e-12,
    -8.6952964681643348e-11,
    -2.202221946864766e-10,
    4.8359535537027142e-10,
    2.1517342593411508e-9,
    -1.7751993622466543e-9,
    -1.4034773557000858e-8,
    8.0954894653639646e-9,
    8.7272266072913995e-8,
    -6.6950355195607557e-8,
    -5.5415435614788295e-7,
    7.9597496501703109e-7,
    3.3363321988773473e-6,
    -9.9524948993533377e-6,
    -1.1875162550738235e-5,
    0.00010897979918109831,
    -0.00015957387769499342,
    -0.00059867535244124172,
    0.0041590133598378089,
    -0.013823727741371513,
    0.033004073234082053,
    -0.062706631334257608,
    0.099061123193995204,
    -0.13307650057801137,
    0.15383860995001259,
)


def upper_tail(x):  # type: ignore[no-untyped-def]
    """P(Z > abs(x)) for a standard normal Z."""
    z = np.minimum(np.abs(x), 39.0)
    t = 1 / (z + 5)
    u = (z - 5) * t
    total = _TAIL[0] + 0 * u
    for c in _TAIL[1:]:
        total = total * u + c
    return np.exp(-0.5 * (z * z)) * total * (5 * t)


def _gelu(x, a, b):  # type: ignore[no-untyped-def]
    tail = upper_tail(x)  # type: ignore[no-untyped-call]
    return x * where(x < 0, tail, 1 - tail)


def _gelu_slope(x, a, b):  # type: ignore[no-untyped-def]
    tail = upper_tail(x)  # type: ignore[no-untyped-call]
    return where(x < 0, tail, 1 - tail) + x * (0.3989422804014327 * np.exp(-0.5 * (x * x)))


def _gelu_tanh(x, a, b):  # type: ignore[no-untyped-def]
    return x / (1 + np.exp(-1.5957691216057308 * (x + 0.044715 * (x * x * x))))


def _gelu_tanh_slope(x, a, b):  # type: ignore[no-untyped-def]
    half = 1 / (1 + np.exp(-1.5957691216057308 * (x + 0.044715 * (x * x * x))))
    return half + half * (1 - half) * (x * (1.5957691216057308 * (1 + 0.134145 * (x * x))))


def _silu_slope(x, a, b):  # type: ignore[no-untyped-def]
    s = 1 / (1 + np.exp(-x))
    return s * (1 + x * (1 - s))


def _softplus(x, a, b):  # type: ignore[no-untyped-def]
    z = a * x
    return (np.maximum(z, 0 * a) + np.log1p(np.exp(-np.abs(z)))) / a


ACTIVATIONS = {  # in the order of the C++ list: kernels on GPUs know an activation by its place
    "identity": Kind(lambda x, a, b: x, lambda y, a, b: 1 + 0 * a),
    "relu": Kind(
        lambda x, a, b: np.maximum(x, 0 * a) + 0 * a,  # makes +0 of -0; NaN stays NaN
        lambda y, a, b: np.logical_not(y <= 0),
        fused=True,
    ),
    "sigmoid": Kind(lambda x, a, b: 1 / (1 + np.exp(-x)), lambda y, a, b: y * (1 - y), fused=True),
    "tanh": Kind(lambda x, a, b: np.tanh(x), lambda y, a, b: 1 - y * y, fused=True),
    "leaky_relu": Kind(
        lambda x, a, b: where(x > 0, x, x * a),
        lambda y, a, b: where(y > 0, 1 + 0 * a, a),
        defaults={"slope": 0.01},
    ),
    "elu": Kind(
        lambda x, a, b: where(x > 0, x, a * np.expm1(np.minimum(x, 0 * a))),
        lambda y, a, b: where(y > 0, 1 + 0 * a, y + a),
        defaults={"alpha": 1.0},
    ),
    "selu": Kind(
        lambda x, a, b: where(
            x > 0, _SELU_SCALE * x, (_SELU_SCALE * _SELU_ALPHA) * np.expm1(np.minimum(x, 0 * a))
        ),
        lambda y, a, b: where(y > 0, _SELU_SCALE + 0 * a, y + _SELU_SCALE * _SELU_ALPHA),
    ),
    "gelu": Kind(_gelu, _gelu_slope, True),
    "gelu_tanh": Kind(_gelu_tanh, _gelu_tanh_slope, True),
    "silu": Kind(lambda x, a, b: x / (1 + np.exp(-x)), _silu_slope, True),
    "softplus": Kind(_softplus, lambda x, a, b: 1 / (1 + np.exp(-(a * x))), True, {"beta": 1.0}),
    "hardtanh": Kind(
        lambda x, a, b: np.minimum(np.maximum(x, a), b),
        lambda x, a, b: np.logical_not((x <= a) | (x >= b)),
        True,
        {"low": -1.0, "high": 1.0},
    ),
    "hardsigmoid": Kind(
        lambda x, a, b: np.minimum(np.maximum(x + 3, 0 * a), 6 + 0 * a) / 6,
        lambda x, a, b: where((x > -3) & (x < 3), 1 / (6 + 0 * a), 0 * a),
        True,
    ),
    "hardswish": Kind(
        lambda x, a, b: x * np.minimum(np.maximum(x + 3, 0 * a), 6 + 0 * a) / 6,
        lambda x, a, b: where(x <= -3, 0 * a, where(x >= 3, 1 + 0 * a, x / 3 + 0.5)),
        True,
    ),
}
