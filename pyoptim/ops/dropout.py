"""Dropout and noise on arrays: arguments are checked here, then the backend in force computes them."""

from __future__ import annotations

from typing import Any, cast

from ..arrays.checks import check_float_array
from ..arrays.fitting import fitting
from ..arrays.memory import empty_like
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, FRACTION, Range, is_integer
from .either_memory import for_either_memory

DROP_PROBABILITY = Range(FRACTION.allowed, "a drop probability in [0, 1)")
_LIKE = fitting("S -> S")
_STREAM = Range(lambda v: is_integer(v) and 0 <= v < 2**64, "an integer in [0, 2**64)")


def _check_stream(seed: Any, step: Any) -> tuple[int, int]:
    if type(seed) is int and type(step) is int and 0 <= seed < 2**64 and 0 <= step < 2**64:
        return seed, step  # the usual case at little cost
    return int(_STREAM.check("seed", seed)), int(_STREAM.check("step", step))


@for_either_memory
def dropout_forward(x: Array, p: float, seed: int, step: int) -> Array:
    """x with elements dropped at random, the others divided by 1 - p (Srivastava et al. 2014, inverted).

    Parameters
    ----------
    x : array
        Of any shape.
    p : float in [0, 1)
        The probability of each element to become 0.
    seed, step : int in [0, 2**64)
        With an element's position they decide whether it is dropped (Philox4x32-10), the same on every
        backend and for every number of threads.

    Raises
    ------
    TypeError, ValueError
        A dtype or value that cannot be.
    """
    return _dropped("x", x, p, seed, step)


@for_either_memory
def dropout_backward(dy: Array, p: float, seed: int, step: int) -> Array:
    """dx from the gradient dy of the output of `dropout_forward`, of the same p, seed and step."""
    return _dropped("dy", dy, p, seed, step)


def _dropped(name: str, x: Array, p: float, seed: int, step: int) -> Array:
    p = DROP_PROBABILITY.number("p", p)
    seed, step = _check_stream(seed, step)
    y = _LIKE(x)
    if y is None:
        x = check_float_array(name, x)
        y = empty_like(x)
    dispatch.of(x).dropout(x, p, seed, step, y)
    return cast(Array, y)


@for_either_memory
def gaussian_noise(x: Array, std: float, seed: int, step: int) -> Array:
    """x plus normal noise of standard deviation ``std``, from seed, step and position.

    Backends agree to a rounding or two of the noise, instruction sets and threads in every bit. The
    gradient passes unchanged.

    Raises
    ------
    TypeError, ValueError
        A dtype or value that cannot be.
    """
    std = AT_LEAST_ZERO.number("std", std)
    seed, step = _check_stream(seed, step)
    y = _LIKE(x)
    if y is None:
        x = check_float_array("x", x)
        y = empty_like(x)
    dispatch.of(x).gaussian_noise(x, std, seed, step, y)
    return cast(Array, y)
