"""Checks all arrays of a call at once, and makes its results, where nothing about them is unusual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime import threads


def fitting(pattern: str) -> Callable[..., Any]:
    """Return a function of a call's arrays that makes its results, or returns None where one does not fit.

    The caller then checks each array by itself, converts what can be converted and tells what is wrong: a
    check in Python costs as much as a small kernel, so that only unusual calls should pay for several.

    Fitting arrays are NumPy's own, contiguous, not empty, and all float32 or all float64. Results are new
    arrays of that type without values: one array, or a tuple of several.

    Parameters
    ----------
    pattern : str
        The shapes of the arguments and, after an arrow, of the results, such as "bi, oi, o? -> bo". A small
        letter is the length of one dimension, a capital stands for any number of dimensions, each everywhere
        the same; those in parentheses become one. ``?`` marks what may be None, ``!`` an array that the call
        writes, which must be writeable and overlap no other, and ``+`` one of finite numbers >= 0. ``n<c``
        are n labels of type int64, each at least 0 and below c. ``=F`` is no array but the dimensions F, an
        integer or a tuple of them, as in "=F, NF, F? -> NF, (N)".
    """
    return _unfit if threads._native is None else threads._native.fitting(pattern)


def _unfit(*_: Any) -> None:
    """Return None, as for arrays that do not fit: without compiled kernels each array is checked."""
