"""Every loss of one prediction and its target, once: the Python twin of ``csrc/formulas/losses.hpp``.

NumPy calls these functions with whole arrays, Numba with scalars, all of float64. A value and a slope (the
derivative with respect to the prediction) are functions of (prediction x, target t, parameter a).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .elementwise import sign, where


class Pointwise(NamedTuple):
    """A loss of one prediction and its target."""

    value: Callable[[Any, Any, Any], Any]
    slope: Callable[[Any, Any, Any], Any]
    parameter: str | None = None  # the option of `ops.pointwise_loss` that is a, if the functions read it
    targets: str | None = None  # what targets must be, in words; None: any numbers will do
    # A function of targets, whose values must be from low to high; None: any targets will do.
    bounded: Callable[[Any], Any] | None = None
    low: float = 0.0
    high: float = 1.0

    def allows(self, targets: Any) -> Any:
        """Which targets of an array are what they must be."""
        if self.bounded is None:
            return np.ones(np.shape(targets), bool)
        values = self.bounded(targets)
        return (values >= self.low) & (values <= self.high)


def _huber(x: Any, t: Any, a: Any) -> Any:
    d = np.abs(x - t)
    near = np.minimum(d, a)
    return near * (d - near / 2.0)


def _binary(x: Any, t: Any, a: Any) -> Any:
    both = 1.0 + (a - 1.0) * t
    return (1.0 - t) * x + both * (np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0.0))


def _binary_slope(x: Any, t: Any, a: Any) -> Any:
    e = np.exp(-np.abs(x))
    return where(x < 0.0, e, 1.0) / (1.0 + e) * (1.0 + (a - 1.0) * t) - a * t


def _hinge_slope(x: Any, t: Any, a: Any) -> Any:
    margin = 1.0 - t * x
    return where(margin <= 0.0, 0.0, -t + 0.0 * margin)  # NaN stays NaN


def _poisson(x: Any, t: Any, a: Any) -> Any:
    own = where(t > 0.0, t * (np.log(where(t > 0.0, t, 1.0)) - 1.0), 0.0)  # 0 log(0) = 0
    return np.exp(x) - t * x + own


POINTWISE = {  # in the order of the C++ list: kernels know a loss by its place
    "squared": Pointwise(lambda x, t, a: (x - t) * (x - t), lambda x, t, a: 2.0 * (x - t)),
    "absolute": Pointwise(lambda x, t, a: np.abs(x - t), lambda x, t, a: sign(x - t)),
    "huber": Pointwise(_huber, lambda x, t, a: np.maximum(np.minimum(x - t, a), -a), "delta"),
    "binary": Pointwise(_binary, _binary_slope, "pos_weight", "numbers in [0, 1]", lambda t: t),
    "hinge": Pointwise(
        lambda x, t, a: np.maximum(1.0 - t * x, 0.0), _hinge_slope, None, "-1 or 1", np.abs, 1.0
    ),
    "poisson": Pointwise(
        _poisson, lambda x, t, a: np.exp(x) - t, None, "numbers >= 0", lambda t: t, 0.0, np.inf
    ),
}


def cross_entropy_of_row(total: Any, linear: Any, exponentials: Any, temperature: Any) -> Any:
    """``T sum_j q_j (T log(exponentials) - z_j)``, the loss of one row of logits.

    z are the logits less their maximum, q the weights of the classes, ``total`` their sum, ``linear`` the
    sum of q z and ``exponentials`` that of exp(z/T).
    """
    return temperature * (temperature * total * np.log(exponentials) - linear)
