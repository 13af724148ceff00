"""Initial values of weights of shape (out, in)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, NUMBER, POSITIVE, check_callable, check_name

__all__ = [
    "Constant", "Glorot", "He", "Initializer", "LeCun", "Normal", "Orthogonal", "TruncatedNormal", "Uniform",
    "Zeros",
]  # fmt: skip

Initializer = Callable[[np.random.Generator, tuple[int, ...]], Array]


@dataclass(frozen=True)
class Constant:
    """Every element is ``value``."""

    value: float

    def __post_init__(self) -> None:
        NUMBER.check("value", self.value)

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

    def __post_init__(self) -> None:
        AT_LEAST_ZERO.check("std", self.std)

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.normal(0.0, self.std, shape)


@dataclass(frozen=True)
class Uniform:
    """Uniform in ``[-limit, limit)``."""

    limit: float = 0.05

    def __post_init__(self) -> None:
        AT_LEAST_ZERO.check("limit", self.limit)

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.uniform(-self.limit, self.limit, shape)


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal with standard deviation ``std`` before values beyond ``bound`` of it are drawn again."""

    std: float = 0.02
    bound: float = 2.0

    def __post_init__(self) -> None:
        AT_LEAST_ZERO.check("std", self.std)
        POSITIVE.check("bound", self.bound)

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        values = rng.normal(size=shape)
        while (far := np.abs(values) > self.bound).any():
            values[far] = rng.normal(size=np.count_nonzero(far))
        return values * self.std


@dataclass(frozen=True)
class Orthogonal:
    """``gain`` times a random matrix with orthonormal rows, or columns where those are fewer.

    Uniformly distributed (Saxe et al. 2014; the signs as Mezzadri 2007).
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        NUMBER.check("gain", self.gain)

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        rows, columns = shape
        q, r = np.linalg.qr(rng.normal(size=(max(shape), min(shape))))
        q *= np.where(np.diag(r) < 0, -1.0, 1.0)
        values: Array = self.gain * (q.T if rows < columns else q)
        return values


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


@dataclass(frozen=True)
class LeCun:
    """LeCun et al. 1998: normal with variance ``1/in``. Suits SELU."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return Normal((1 / max(1, shape[-1])) ** 0.5)(rng, shape)


_BY_NAME: dict[str, Initializer] = {
    "glorot": Glorot(),
    "he": He(),
    "lecun": LeCun(),
    "normal": Normal(),
    "orthogonal": Orthogonal(),
    "truncated_normal": TruncatedNormal(),
    "uniform": Uniform(),
    "zeros": Zeros(),
}


def get(name: str, value: str | Initializer) -> Initializer:
    """An initialiser from its name, or itself; ``name`` is the argument's, for the message."""
    if callable(value):
        checked: Initializer = check_callable(name, value, "an instance, such as He()")
        return checked
    return _BY_NAME[check_name(name, value, _BY_NAME, "a callable or ")]
