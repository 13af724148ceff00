"""Checks of the numbers and the choices that users pass."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np


def is_number(value: Any) -> bool:
    """Whether this is a finite number, or an array of one without dimensions: `plain` gives it."""
    if type(value) is float:  # the usual case at little cost
        return math.isfinite(value)
    value = unboxed(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def is_integer(value: Any) -> bool:
    return is_number(value) and isinstance(unboxed(value), Integral)


def is_count(value: Any) -> bool:
    return (type(value) is int or is_integer(value)) and value >= 1


class Range(NamedTuple):
    """Which values are allowed, and the same in words."""

    allowed: Callable[[Any], bool]
    expected: str
    names: tuple[str | None, ...] = ()  # the values that are allowed, where these are names

    def check(self, name: str, value: Any) -> Any:
        """Return the value if it is allowed, an array without dimensions as a number; else a ValueError."""
        number = unboxed(value)
        if not self.allowed(number):
            near = nearest(value, self.names)
            raise ValueError(f"{name} is {shown(value)}, expected {self.expected}{near}")
        return number

    def number(self, name: str, value: Any) -> float:
        """Return the value as a float if it is allowed; else raise ValueError."""
        if type(value) is float and self.allowed(value):  # the usual case at little cost
            return value
        return float(self.check(name, value))


NUMBER = Range(is_number, "a finite number")
AT_LEAST_ZERO = Range(lambda v: is_number(v) and v >= 0, "a finite number >= 0")
POSITIVE = Range(lambda v: is_number(v) and v > 0, "a finite number > 0")
FRACTION = Range(lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)")
SHARE = Range(lambda v: is_number(v) and 0 <= v <= 1, "a number in [0, 1]")
COUNT = Range(is_count, "a positive integer")
COUNT_OR_ZERO = Range(lambda v: is_integer(v) and v >= 0, "an integer >= 0")
FLAG = Range(lambda v: isinstance(v, bool | np.bool_), "True or False")


def one_of(*names: str | None) -> Range:
    """The range of values that are one of these names."""
    allowed = " or ".join(map(repr, names))
    return Range(lambda v: (v is None or isinstance(v, str)) and v in names, allowed, names)


def shown(value: Any) -> str:
    """The value as messages show it: on one line, and the begin of it where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


# What other libraries call what has another name here.
_ELSEWHERE = {
    "learning_rate": "lr", "beta_1": "betas", "beta_2": "betas", "beta1": "betas", "beta2": "betas",
    "epsilon": "eps", "wd": "weight_decay", "l2_reg": "weight_decay", "clipnorm": "max_grad_norm",
    "global_clipnorm": "max_grad_norm", "gradient_accumulation_steps": "accumulate", "swish": "silu",
    "linear": "identity", "negative_slope": "slope", "xavier": "glorot", "kaiming": "he", "mse": "squared",
    "mae": "absolute", "l1": "absolute", "gpu": "cuda", "acc": "accuracy",
}  # fmt: skip


def nearest(value: Any, known: Iterable[str | None]) -> str:
    """What a message about an unknown name ends with: the known name that was likely meant, or nothing."""
    names = {name.lower(): name for name in known if name is not None}
    if not isinstance(value, str) or not names:
        return ""
    from difflib import get_close_matches  # costs what `import pyoptim` need not

    lower = value.lower()
    near = [_ELSEWHERE[lower]] if _ELSEWHERE.get(lower) in names else get_close_matches(lower, names, 1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def check_name(name: str, value: Any, known: Iterable[str], what: str = "") -> str:
    """The value if it is one of the ``known`` names; else a ValueError. ``what`` is allowed beside them."""
    if not isinstance(value, str) or value not in known:
        names = ", ".join(known)
        raise ValueError(f"{name} is {shown(value)}, expected {what}one of {names}{nearest(value, known)}")
    return value


def check_type(name: str, value: Any, kind: Any, expected: str) -> Any:
    """The value if it is an instance of ``kind``; else a TypeError that says what was ``expected``."""
    if not isinstance(value, kind):
        came = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise TypeError(f"{name} is {came}, expected {expected}")
    return value


def check_text(name: str, value: Any, expected: str = "a string") -> str:
    """The value if it is a string; else a TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}, expected {expected}")
    return value


def check_callable(name: str, value: Any, expected: str) -> Any:
    """The value if it can be called and is no class; else a TypeError that says what was ``expected``."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} is {shown(value)}, expected {expected}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """The value as a bool if it is True, False, 1 or 0; else a TypeError."""
    flag = unboxed(value)
    if not isinstance(flag, bool | np.bool_ | Integral) or flag not in (0, 1):
        raise TypeError(f"{name} is {shown(value)}, expected True or False")
    return bool(flag)


def check_path(name: str, value: Any) -> str:
    """The value as a string if it can name a file; else a TypeError or a ValueError."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} is {shown(value)}, expected a string or a Path")
    path = os.fspath(value)
    if not path or "\0" in path:
        raise ValueError(f"{name} is {path!r}, expected the name of a file")
    return path


def check_seed(name: str, value: Any) -> np.random.Generator:
    """The random numbers of a seed: None, an integer >= 0, or what else NumPy takes for one."""
    try:
        return np.random.default_rng(unboxed(value))
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        kind = ValueError if isinstance(value, Integral) else TypeError
        raise kind(f"{name} is {shown(value)}, expected None or an integer >= 0") from error


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int if it is an integer >= ``least``, which is 0 or 1; else a ValueError."""
    return int((COUNT if least else COUNT_OR_ZERO).check(name, value))


def plain(value: Any) -> Any:
    """The value with NumPy's numbers as Python's, and lists and arrays as tuples.

    An array without dimensions, also one of another package, becomes a number.
    """
    value = unboxed(value)
    if isinstance(value, np.ndarray):
        value = list(value)
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if isinstance(value, np.floating):  # the item of a long double would be one again
        return float(value)
    return value.item() if isinstance(value, np.generic) else value


def unboxed(value: Any) -> Any:
    """The only element of an array without dimensions, unless it is masked; any other value as it is."""
    if (
        getattr(value, "shape", None) == ()
        and not isinstance(value, np.generic)
        and not hasattr(value, "mask")
    ):
        return value.item()
    return value
