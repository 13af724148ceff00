"""Every loss of one prediction and its target, once: the Python twin of ``csrc/formulas/losses.hpp``.

NumPy calls these functions with whole arrays, Numba with scalars, all of float64. A value and a slope (the
derivative with respect to the prediction) are functions of (prediction x, target t, parameter a).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Pointwise(NamedTuple):
    """A loss of one prediction and its target."""

    value: Callable[[Any, Any, Any], Any]
    slope: Callable[[Any, Any, Any], Any]
    parameter: str | None  # the option of `ops.pointwise_loss` that is a; None: the functions do not read a
    targets: str | None  # what targets must be, in words; None: any numbers will do
    allows: Callable[[Any], Any] | None  # which targets of an array are that


POINTWISE: dict[str, Pointwise] = {}  # in the order of the C++ list: kernels know a loss by its place


def _register(
    value: Any,
    slope: Any,
    parameter: str | None = None,
    targets: str | None = None,
    allows: Callable[[Any], Any] | None = None,
) -> None:
    POINTWISE[value.__name__.lstrip("_")] = Pointwise(value, slope, parameter, targets, allows)


def _squared(x, t, a):  # type: ignore[no-untyped-def]
    d = x - t
    return d * d


def _squared_slope(x, t, a):  # type: ignore[no-untyped-def]
    return 2.0 * (x - t)


def _absolute(x, t, a):  # type: ignore[no-untyped-def]
    return np.abs(x - t)


def _absolute_slope(x, t, a):  # type: ignore[no-untyped-def]
    return np.sign(x - t)


def _huber(x, t, a):  # type: ignore[no-untyped-def]
    d = np.abs(x - t)
    near = np.minimum(d, a)
    return near * (d - near / 2.0)


def _huber_slope(x, t, a):  # type: ignore[no-untyped-def]
    return np.maximum(np.minimum(x - t, a), -a)


def _binary(x, t, a):  # type: ignore[no-untyped-def]
    both = 1.0 + (a - 1.0) * t
    return (1.0 - t) * x + both * (np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0.0))


def _binary_slope(x, t, a):  # type: ignore[no-untyped-def]
    e = np.exp(-np.abs(x))
    return np.where(x < 0.0, e, 1.0) / (1.0 + e) * (1.0 + (a - 1.0) * t) - a * t


def _hinge(x, t, a):  # type: ignore[no-untyped-def]
    return np.maximum(1.0 - t * x, 0.0)


def _hinge_slope(x, t, a):  # type: ignore[no-untyped-def]
    margin = 1.0 - t * x
    return np.where(margin <= 0.0, 0.0, -t + 0.0 * margin)  # NaN stays NaN


_register(_squared, _squared_slope)
_register(_absolute, _absolute_slope)
_register(_huber, _huber_slope, "delta")
_register(_binary, _binary_slope, "pos_weight", "numbers in [0, 1]", lambda t: (t >= 0) & (t <= 1))
_register(_hinge, _hinge_slope, None, "-1 or 1", lambda t: np.abs(t) == 1)


def cross_entropy_of_row(total: Any, linear: Any, exponentials: Any, temperature: Any) -> Any:
    """``T sum_j q_j (T log(exponentials) - z_j)``, the loss of one row of logits.

    z are the logits less their maximum, q the weights of the classes, ``total`` their sum, ``linear`` the
    sum of q z and ``exponentials`` that of exp(z/T).
    """
    return temperature * (temperature * total * np.log(exponentials) - linear)
