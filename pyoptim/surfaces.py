"""Functions of two variables on which optimizers are watched: values and gradients in float64.

Every function takes an array ``p`` of shape ``(2, ...)``, the coordinates x and y of one point or of a
whole grid, and returns its values, of shape ``(...)``, or its gradient, of p's shape.

>>> p = np.array(surfaces.SURFACES["beale"].start)
>>> optimizer = po.Adam(p, lr=0.1)
>>> for _ in range(500):
...     optimizer.step(surfaces.beale_gradient(p))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from .arrays.checks import as_numpy
from .runtime.dtypes import Array

__all__ = [
    "SURFACES",
    "Surface",
    "beale",
    "beale_gradient",
    "rosenbrock",
    "rosenbrock_gradient",
    "saddle",
    "saddle_gradient",
    "valley",
    "valley_gradient",
]


def __dir__() -> list[str]:
    return __all__


def _coordinates(p: Any) -> tuple[Array, Array]:
    p = as_numpy("p", p)
    if p.dtype.kind not in "fiub":
        raise TypeError(f"p has dtype {p.dtype}, expected numbers")
    p = p.astype(np.float64, copy=False)
    if p.ndim == 0 or len(p) != 2:
        raise ValueError(f"p has shape {p.shape}, expected (2, ...): coordinates x and y")
    return p[0], p[1]


def beale(p: Any) -> Array:
    """``(1.5 - x + x*y)**2 + (2.25 - x + x*y**2)**2 + (2.625 - x + x*y**3)**2``.

    On ``[-4.5, 4.5]**2`` the minimum is 0 at (3, 0.5). Flat around it, steep in the corners. Beale 1958,
    "On an iterative method for finding a local minimum of a function of more than one variable".
    """
    x, y = _coordinates(p)
    terms = [(c - x + x * y**k) ** 2 for k, c in _BEALE]
    return np.asarray(sum(terms))


def beale_gradient(p: Any) -> Array:
    """The gradient of `beale`."""
    x, y = _coordinates(p)
    terms = [(c - x + x * y**k, y**k - 1, k * x * y ** (k - 1)) for k, c in _BEALE]
    return np.stack([sum(2 * t * dx for t, dx, _ in terms), sum(2 * t * dy for t, _, dy in terms)])


_BEALE = ((1, 1.5), (2, 2.25), (3, 2.625))


def rosenbrock(p: Any) -> Array:
    """``(1 - x)**2 + 100*(y - x**2)**2``.

    On the whole plane the minimum is 0 at (1, 1), at the flat bottom of a curved valley. Rosenbrock 1960,
    "An automatic method for finding the greatest or least value of a function", with its start (-1.2, 1).
    """
    x, y = _coordinates(p)
    return np.asarray((1 - x) ** 2 + 100 * (y - x * x) ** 2)


def rosenbrock_gradient(p: Any) -> Array:
    """The gradient of `rosenbrock`."""
    x, y = _coordinates(p)
    off = y - x * x
    return np.stack([-2 * (1 - x) - 400 * x * off, 200 * off])


def saddle(p: Any) -> Array:
    """``x**2 - y**2 + y**4/2``.

    The saddle ``x**2 - y**2`` with quartic walls, so that there is a minimum: -0.5 at (0, 1) and (0, -1)
    on the whole plane. At the saddle point (0, 0) the gradient is 0 and the curvatures are 2 and -2.
    """
    x, y = _coordinates(p)
    return np.asarray(x * x - y * y + y**4 / 2)


def saddle_gradient(p: Any) -> Array:
    """The gradient of `saddle`."""
    x, y = _coordinates(p)
    return np.stack([2 * x, -2 * y + 2 * y**3])


def valley(p: Any) -> Array:
    """``(u**2 + 100*v**2)/2`` with ``u = (sqrt(3)*x + y)/2`` and ``v = (sqrt(3)*y - x)/2``.

    A quadratic of condition number 100 whose axes are turned by 30 degrees, so that a step size for each
    coordinate alone does not undo it. On the whole plane the minimum is 0 at (0, 0).
    """
    x, y = _coordinates(p)
    u, v = (sqrt(3) * x + y) / 2, (sqrt(3) * y - x) / 2
    return np.asarray((u * u + 100 * v * v) / 2)


def valley_gradient(p: Any) -> Array:
    """The gradient of `valley`."""
    x, y = _coordinates(p)
    u, v = (sqrt(3) * x + y) / 2, (sqrt(3) * y - x) / 2
    return np.stack([(sqrt(3) * u - 100 * v) / 2, (u + 100 * sqrt(3) * v) / 2])


@dataclass(frozen=True)
class Surface:
    """A function, where to start on it, and what to look at.

    Attributes
    ----------
    value, gradient : callable
        As in this module.
    start : (x, y)
        A usual first point, or a telling one.
    minima : sequence of (x, y)
        All global minima; ``least`` is the value at them.
    window : ((x, x), (y, y))
        The part of the plane that a plot shows.
    """

    value: Callable[[Any], Array]
    gradient: Callable[[Any], Array]
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]
    window: tuple[tuple[float, float], tuple[float, float]]

    @property
    def least(self) -> float:
        """The value at the minima."""
        return float(self.value(self.minima[0]))


SURFACES = {
    "beale": Surface(beale, beale_gradient, (1.0, 1.5), ((3.0, 0.5),), ((-0.5, 4.5), (-1.5, 2.0))),
    "rosenbrock": Surface(
        rosenbrock, rosenbrock_gradient, (-1.2, 1.0), ((1.0, 1.0),), ((-1.8, 1.8), (-0.6, 2.2))
    ),
    "saddle": Surface(
        saddle, saddle_gradient, (-1.5, 0.01), ((0.0, 1.0), (0.0, -1.0)), ((-1.8, 1.8), (-1.6, 1.6))
    ),
    "valley": Surface(valley, valley_gradient, (-3.5, -0.5), ((0.0, 0.0),), ((-4.0, 2.0), (-3.0, 1.3))),
}
"""The surfaces by name, as ``pyoptim compare`` takes them."""
