"""Initial values of weights of shape (out, in)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._arrays import Array

Initializer = Callable[[np.random.Generator, tuple[int, ...]], Array]


@dataclass(frozen=True)
class Constant:
    """Every element is ``value``."""

    value: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Zeros(Constant):
    """Every element is 0."""

    value: float = 0.0


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0 and standard deviation ``std``."""

    std: float = 0.01

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.normal(0.0, self.std, shape)


@dataclass(frozen=True)
class Uniform:
    """Uniform in ``[-limit, limit)``."""

    limit: float = 0.05

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.uniform(-self.limit, self.limit, shape)


@dataclass(frozen=True)
class Glorot:
    """Glorot & Bengio 2010, normalised: ``U(±sqrt(6/(in + out)))``. Suits sigmoid and tanh."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return Uniform((6 / max(1, sum(shape))) ** 0.5)(rng, shape)


@dataclass(frozen=True)
class He:
    """He et al. 2015: normal with variance ``2/in``. Suits ReLU."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return Normal((2 / max(1, shape[-1])) ** 0.5)(rng, shape)


_BY_NAME: dict[str, Initializer] = {
    "glorot": Glorot(),
    "he": He(),
    "normal": Normal(),
    "uniform": Uniform(),
    "zeros": Zeros(),
}


def get(name: str, value: str | Initializer) -> Initializer:
    """An initialiser from its name, or itself; ``name`` is the argument's, for the message."""
    if callable(value):
        return value
    if value not in _BY_NAME:
        raise ValueError(f"{name} is {value!r}, expected a callable or one of {', '.join(_BY_NAME)}")
    return _BY_NAME[value]
