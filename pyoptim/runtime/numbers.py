"""Checks of the numbers that users pass."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def is_integer(value: Any) -> bool:
    return is_number(value) and isinstance(value, Integral)


def is_count(value: Any) -> bool:
    return is_integer(value) and value >= 1


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
