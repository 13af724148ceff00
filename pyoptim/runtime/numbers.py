"""Checks of the numbers and the choices that users pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np


def is_number(value: Any) -> bool:
    if type(value) is float:  # the usual case at little cost
        return math.isfinite(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def is_integer(value: Any) -> bool:
    return is_number(value) and isinstance(value, Integral)


def is_count(value: Any) -> bool:
    return (type(value) is int or is_integer(value)) and value >= 1


class Range(NamedTuple):
    """Which values are allowed, and the same in words."""

    allowed: Callable[[Any], bool]
    expected: str

    def check(self, name: str, value: Any) -> Any:
        """Return the value if it is allowed; else raise ValueError."""
        if not self.allowed(value):
            raise ValueError(f"{name} is {value!r}, expected {self.expected}")
        return value

    def number(self, name: str, value: Any) -> float:
        """Return the value as a float if it is allowed; else raise ValueError."""
        return float(self.check(name, value))


NUMBER = Range(is_number, "a finite number")
AT_LEAST_ZERO = Range(lambda v: is_number(v) and v >= 0, "a finite number >= 0")
POSITIVE = Range(lambda v: is_number(v) and v > 0, "a finite number > 0")
FRACTION = Range(lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)")
SHARE = Range(lambda v: is_number(v) and 0 <= v <= 1, "a number in [0, 1]")
COUNT = Range(is_count, "a positive integer")
FLAG = Range(lambda v: isinstance(v, bool | np.bool_), "True or False")


def one_of(*names: str | None) -> Range:
    """The range of values that are one of these names."""
    return Range(lambda v: (v is None or isinstance(v, str)) and v in names, " or ".join(map(repr, names)))


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int if it is an integer >= ``least``, which is 0 or 1; else a ValueError."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        expected = "a positive integer" if least else "an integer >= 0"
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    return int(value)


def plain(value: Any) -> Any:
    """The value with NumPy's numbers as Python's, and lists and arrays as tuples."""
    if isinstance(value, np.ndarray) and value.ndim:
        value = list(value)
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if isinstance(value, np.floating):  # the item of a long double would be one again
        return float(value)
    return value.item() if isinstance(value, np.generic) else value
