"""What each hyperparameter may be, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _at_least_zero(value: Any) -> bool:
    return is_number(value) and value >= 0


def _fraction(value: Any) -> bool:  # a decay rate
    return is_number(value) and 0 <= value < 1


def _flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))


def _eps_pair(value: Any) -> bool:  # Adafactor's
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and (value[0] is None or _at_least_zero(value[0]))
        and _at_least_zero(value[1])
    )


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_ZERO_UP = (_at_least_zero, "a finite number >= 0")
_FRACTION = (_fraction, "a number in [0, 1)")
_FLAG = (_flag, "True or False")


def _choice(*names: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in names), " or ".join(map(repr, names))


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda v: callable(v) or _at_least_zero(v), "a finite number >= 0 or a schedule"),
    "momentum": _ZERO_UP,
    "dampening": (is_number, "a finite number"),
    "nesterov": _FLAG,
    "velocity": _choice("torch", "classical"),
    "weight_decay": _ZERO_UP,
    "decoupled_weight_decay": _FLAG,
    "maximize": _FLAG,
    "lr_decay": _ZERO_UP,
    "initial_accumulator_value": _ZERO_UP,
    "eps": _ZERO_UP,
    "eps_pair": (_eps_pair, "a pair of finite numbers >= 0, of which the first may be None"),
    "eps_root": _ZERO_UP,
    "eps_hat": _FLAG,
    "alpha": _FRACTION,
    "rho": _FRACTION,
    "centered": _FLAG,
    "betas": (
        lambda v: _pair(v) and all(map(_fraction, v)),
        "two numbers in [0, 1)",
    ),
    "etas": (
        lambda v: _pair(v) and 0 < v[0] < 1 < v[1],
        "two numbers, in (0, 1) and above 1",
    ),
    "step_sizes": (lambda v: _pair(v) and 0 < v[0] <= v[1], "two numbers > 0, the smaller first"),
    "lambd": _ZERO_UP,
    "t0": _ZERO_UP,
    "trust": _ZERO_UP,
    "beta2_decay": (lambda v: is_number(v) and v <= 0, "a finite number <= 0"),
    "d": (lambda v: is_number(v) and v >= 1, "a finite number >= 1"),
    "ns_coefficients": (
        lambda v: isinstance(v, tuple | list) and len(v) == 3 and all(map(is_number, v)),
        "three finite numbers",
    ),
    "ns_steps": (_count, "a positive integer"),
    "adjust_lr_fn": _choice("original", "match_rms_adamw"),
    "amsgrad": _FLAG,
    "amsgrad_max": _choice("raw", "corrected"),
    "bias_correction": _FLAG,
    "momentum_decay": (lambda v: v is None or _at_least_zero(v), "None or a finite number >= 0"),
}


def checked(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with NumPy's scalars as Python's (float32 ones would do arithmetic in float32).

    Raises
    ------
    TypeError
        A name that is not among the ``known`` ones.
    ValueError
        A value that cannot be.
    """
    for name, value in values.items():
        if name not in known:
            raise TypeError(f"{name!r} is no hyperparameter, expected one of {', '.join(known)}")
        pair = name == "eps" and isinstance(known[name], tuple)
        allowed, expected = _EXPECTED["eps_pair" if pair else name]
        if not allowed(value):
            raise ValueError(f"{name} is {value!r}, expected {expected}")
    return {name: plain(value) for name, value in values.items()}


class ParameterGroup(dict[str, Any]):
    """Hyperparameters and ``"params"`` of a group of parameters, checked whenever they are changed."""

    def __init__(self, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._known = known

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            raise ValueError("params of a group are fixed: make a new optimizer")
        super().__setitem__(name, checked({name: value}, self._known)[name])

    def update(self, *values: Any, **more: Any) -> None:
        new = dict(*values, **more)
        if "params" in new:
            raise ValueError("params of a group are fixed: make a new optimizer")
        super().update(checked(new, self._known))

    def __reduce__(self) -> tuple[Any, ...]:
        return ParameterGroup, (dict(self), self._known)


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's; lists and arrays as tuples."""
    if isinstance(value, np.ndarray) and value.ndim:
        value = list(value)
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if isinstance(value, np.floating):  # the item of a long double is one
        return float(value)
    return value.item() if isinstance(value, np.generic) else value
