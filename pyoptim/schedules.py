"""Learning-rate schedules: callables ``k -> lr``, passed to an optimizer as ``lr=``.

``k`` is the number of steps already taken or, with ``unit="epoch"``, of epochs already done, and begins at 0.
Schedules are plain data: they compare, print, pickle, and are saved with an optimizer's state. Sequences
and arrays in them become tuples, and NumPy's numbers become Python's, as do arrays without dimensions. A rate
that grows beyond all floats is a ValueError when it is asked for.

>>> optimizer = po.Adam(params, lr=WarmUp(Cosine(1e-3, steps=10_000), steps=500))
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

from .runtime.numbers import (
    AT_LEAST_ZERO,
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    POSITIVE,
    SHARE,
    Range,
    is_integer,
    one_of,
    plain,
)

__all__ = [
    "Chained",
    "Constant",
    "Cosine",
    "Cyclic",
    "Exponential",
    "InverseSqrt",
    "InverseTime",
    "Joined",
    "Linear",
    "OneCycle",
    "Piecewise",
    "Polynomial",
    "RangeTest",
    "Schedule",
    "Step",
    "WarmUp",
]


def __dir__() -> list[str]:
    return __all__


def _is_schedule(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _is_rising(value: Any) -> bool:
    if not isinstance(value, tuple) or not all(map(is_integer, value)):
        return False
    return value == tuple(sorted(set(value))) and (not value or value[0] >= 0)


Count = Annotated[int, COUNT]
CountOrZero = Annotated[int, COUNT_OR_ZERO]
Rate = Annotated[float, AT_LEAST_ZERO]
Positive = Annotated[float, POSITIVE]
Fraction = Annotated[float, SHARE]
Flag = Annotated[bool, FLAG]
Boundaries = Annotated[Sequence[int], Range(_is_rising, "rising integers >= 0")]
Rates = Annotated[
    Sequence[float],
    Range(lambda v: isinstance(v, tuple) and all(map(AT_LEAST_ZERO.allowed, v)), "finite numbers >= 0"),
]
Part = Annotated[Callable[[int], float], Range(_is_schedule, "a schedule or another function of k")]
Parts = Annotated[
    Sequence[Callable[[int], float]],
    Range(
        lambda v: isinstance(v, tuple) and len(v) > 0 and all(map(_is_schedule, v)),
        "one or more schedules or other functions of k",
    ),
]


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a function of k.

    Parameters
    ----------
    unit : {"step", "epoch"}, default "step"
        What k counts. A `Trainer` tells the optimizer which epoch it is; in a loop of your own, set
        ``optimizer.epoch``. Of a schedule made of others the whole's counts, for its parts too.

    Raises
    ------
    ValueError
        An argument that cannot be.
    """

    unit: Annotated[str, one_of("step", "epoch")] = field(default="step", kw_only=True)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = plain(getattr(self, name))
            label = f"{name} of {type(self).__name__}"
            for range_ in getattr(hint, "__metadata__", ()):
                range_.check(label, value)
            object.__setattr__(self, name, value)
            for part in value if isinstance(value, tuple) else (value,):
                if getattr(part, "unit", self.unit) == "epoch" != self.unit:
                    raise ValueError(
                        f"{label} is {value!r}, which counts epochs: give unit='epoch' to the whole"
                    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._quickly = cls._at if cls.__call__ is Schedule.__call__ else cls.__call__

    def __call__(self, k: int) -> float:
        """The learning rate at k >= 0."""
        if type(k) is not int or k < 0:
            AT_LEAST_ZERO.check("k", k)
        return self._at(k)

    def _at(self, k: int) -> float:
        """What `__call__` returns for a k that is known to be right."""
        raise NotImplementedError

    # What optimizers call, who know that k is right. It is `__call__` where a user has derived one.
    _quickly = _at


@dataclass(frozen=True)
class Constant(Schedule):
    """``lr``."""

    lr: Rate

    def _at(self, k: int) -> float:
        return self.lr


@dataclass(frozen=True)
class InverseTime(Schedule):
    """``lr / (1 + decay*k)``."""

    lr: Rate
    decay: Rate

    def _at(self, k: int) -> float:
        return self.lr / (1 + self.decay * k)


@dataclass(frozen=True)
class Exponential(Schedule):
    """``lr * rate**(k/steps)``: with ``steps=1``, PyTorch's ``lr * gamma**k``."""

    lr: Rate
    rate: Positive
    steps: Count = 1

    def _at(self, k: int) -> float:
        return _scaled(self.lr, self.rate, k / self.steps)


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """``lr * scale / sqrt(max(k, 1))``."""

    lr: Rate
    scale: Rate = 1.0

    def _at(self, k: int) -> float:
        return self.lr * self.scale / math.sqrt(max(k, 1))


@dataclass(frozen=True)
class Linear(Schedule):
    """``(1-a)*lr + a*final`` with ``a = min(k/steps, 1)`` (Goodfellow et al. 2016, eq. 8.14)."""

    lr: Rate
    final: Rate
    steps: Count

    def _at(self, k: int) -> float:
        a = min(k / self.steps, 1.0)
        return (1 - a) * self.lr + a * self.final


@dataclass(frozen=True)
class Step(Schedule):
    """``lr * gamma**(k // every)``."""

    lr: Rate
    every: Count
    gamma: Rate = 0.1

    def _at(self, k: int) -> float:
        return _scaled(self.lr, self.gamma, k // self.every)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """A staircase: ``rates[i]`` from ``boundaries[i-1]`` on; there is one more rate than boundaries.

    PyTorch's MultiStepLR of factor gamma is ``Piecewise(milestones, [lr, lr*gamma, lr*gamma**2, ...])``, and
    optax's piecewise_constant_schedule has the same boundaries. Keras's PiecewiseConstantDecay keeps the old
    rate at the boundary itself: it is ``Piecewise([b + 1 for b in boundaries], values)``. With a boundary 0
    the first rate is never used.
    """

    boundaries: Boundaries
    rates: Rates

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = len(self.boundaries) + 1
        if len(self.rates) != wanted:
            raise ValueError(
                f"rates of Piecewise is {self.rates!r}, expected {wanted} numbers: one more than boundaries"
            )

    def _at(self, k: int) -> float:
        return self.rates[bisect_right(self.boundaries, k)]


@dataclass(frozen=True)
class Polynomial(Schedule):
    """``(lr - final) * (1 - min(k/steps, 1))**power + final``."""

    lr: Rate
    steps: Count
    power: Rate = 1.0
    final: Rate = 0.0

    def _at(self, k: int) -> float:
        return float((self.lr - self.final) * (1 - min(k / self.steps, 1.0)) ** self.power + self.final)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from lr to ``final`` over ``steps`` (Loshchilov & Hutter 2017).

    With ``restarts`` it begins again at lr, each cycle ``growth`` times as long as the last; without, it
    stays at ``final``.
    """

    lr: Rate
    steps: Count
    final: Rate = 0.0
    restarts: Flag = False
    growth: Count = 1

    def _at(self, k: int) -> float:
        length = self.steps
        if self.restarts:
            if self.growth == 1:
                k %= length
            while k >= length:
                k, length = k - length, length * self.growth
        return _cosine(self.lr, self.final, min(k / length, 1.0))


@dataclass(frozen=True)
class Cyclic(Schedule):
    """A triangle wave between ``lowest`` and ``highest`` (Smith 2017), up over ``half_cycle`` and down again.

    ``mode="triangular2"`` halves the height each cycle; ``"exp_range"`` multiplies it by ``gamma**k``.
    """

    lowest: Rate
    highest: Rate
    half_cycle: Count
    mode: Annotated[str, one_of("triangular", "triangular2", "exp_range")] = "triangular"
    gamma: Rate = 1.0

    def _at(self, k: int) -> float:
        cycle = k // (2 * self.half_cycle)
        height = 1 - abs(k / self.half_cycle - 2 * cycle - 1)
        if self.mode == "triangular2":
            height = math.ldexp(height, -int(cycle))  # 2**cycle may be larger than any float
        elif self.mode == "exp_range":
            height = _scaled(height, self.gamma, k)
        return self.lowest + (self.highest - self.lowest) * height


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from ``peak/start_factor`` to ``peak``, then down to nearly nothing (Smith & Topin 2018).

    Cosine halves over ``steps``: the rise takes the fraction ``rise``, the end is at
    ``peak / (start_factor*end_factor)``, as PyTorch's OneCycleLR.
    """

    peak: Rate
    steps: Count
    rise: Fraction = 0.3
    start_factor: Positive = 25.0
    end_factor: Positive = 1e4

    def _at(self, k: int) -> float:
        first = self.peak / self.start_factor
        top = self.rise * self.steps - 1
        if k <= top:
            return _cosine(first, self.peak, k / top) if top > 0 else self.peak
        last = max(self.steps - 1 - top, 1e-9)
        return _cosine(self.peak, first / self.end_factor, min((k - top) / last, 1.0))


@dataclass(frozen=True)
class RangeTest(Schedule):
    """From ``lowest`` to ``highest`` in equal factors over ``steps``: the learning-rate range test.

    Train so for an epoch and look where the loss falls fastest (Smith 2017, section 3.3).
    """

    lowest: Positive
    highest: Positive
    steps: Count

    def _at(self, k: int) -> float:
        a = min(k / self.steps, 1.0)
        return float(self.lowest ** (1 - a) * self.highest**a)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Linearly from ``first`` to the first rate of ``then``, over ``steps``; then ``then`` from its k = 0.

    With ``steps=0`` it is ``then``.
    """

    then: Part
    steps: CountOrZero
    first: Rate = 0.0

    def _at(self, k: int) -> float:
        then = getattr(self.then, "_quickly", self.then)
        if k >= self.steps:
            return then(k - self.steps)
        a = k / self.steps
        return (1 - a) * self.first + a * then(0)


@dataclass(frozen=True)
class Joined(Schedule):
    """One schedule after another: ``parts[i]`` runs from ``boundaries[i-1]`` on, with its own k from 0.

    With a boundary 0 the first part is left out.
    """

    parts: Parts
    boundaries: Boundaries

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts) != len(self.boundaries) + 1:
            raise ValueError(
                f"parts of Joined has {len(self.parts)} schedules, expected {len(self.boundaries) + 1}: "
                "one more than boundaries"
            )

    def _at(self, k: int) -> float:
        i = bisect_right(self.boundaries, k)
        part = self.parts[i]
        return getattr(part, "_quickly", part)(k - (self.boundaries[i - 1] if i else 0))


@dataclass(frozen=True)
class Chained(Schedule):
    """The product of ``parts``: give the rate to one and factors to the others (``Exponential(1, 0.9)``)."""

    parts: Parts

    def _at(self, k: int) -> float:
        return math.prod(getattr(part, "_quickly", part)(k) for part in self.parts)


def _cosine(begin: float, end: float, a: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * a)) / 2


def _scaled(rate: float, base: float, exponent: float) -> float:
    """``rate * base**exponent``."""
    try:
        value = float(rate * float(base) ** exponent)
    except OverflowError:
        value = math.inf if rate else 0.0
    if value == math.inf:
        raise ValueError(f"the learning rate {rate!r} * {base!r}**{exponent!r} is beyond all floats")
    return value
