"""Activations on arrays: arguments are checked here, then the backend in force computes them."""

from __future__ import annotations

from typing import cast

from ..arrays.checks import check_float_array, check_like
from ..arrays.fitting import fitting
from ..arrays.memory import as_rows, empty_like
from ..formulas.activations import ACTIVATIONS
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, NUMBER, POSITIVE, check_flag, check_name, is_number, nearest
from .either_memory import for_either_memory

_FORWARD, _BACKWARD = fitting("S -> S"), fitting("S, S -> S")
_ROWS, _ROWS_BACKWARD = fitting("Sc -> Sc"), fitting("Sc, Sc -> Sc")


def check_parameters(activation: str, parameters: dict[str, float]) -> tuple[float, float]:
    """Return the two numbers that kernels take for an activation's parameters."""
    try:
        usual = None if parameters else _usual.get(activation)
    except TypeError:  # it cannot be a key
        usual = None
    if usual is not None:
        return usual
    if type(activation) is not str or activation not in ACTIVATIONS:
        check_name("activation", activation, ACTIVATIONS)
    known = ACTIVATIONS[activation].defaults
    for name, value in parameters.items():
        if name not in known:
            raise TypeError(
                f"{name!r} is no parameter of {activation}, expected {', '.join(known) or 'none'}"
                f"{nearest(name, known)}"
            )
        if not is_number(value):
            NUMBER.check(name, value)
    values = {**known, **parameters}
    for name in ("slope", "alpha"):  # the sign of the output must tell that of the input
        if name in values and not values[name] >= 0:
            AT_LEAST_ZERO.check(name, values[name])
    if "beta" in values and not values["beta"] > 0:
        POSITIVE.check("beta", values["beta"])
    if "low" in values and not values["low"] < values["high"]:
        raise ValueError(f"low is {values['low']!r}, expected a number below high, {values['high']!r}")
    a, b = (*map(float, values.values()), 0.0, 0.0)[:2]
    if not parameters:
        _usual[activation] = (a, b)
    return a, b


_usual: dict[str, tuple[float, float]] = {}  # what an activation without parameters was last time


@for_either_memory
def activation_forward(x: Array, activation: str, **parameters: float) -> Array:
    """An activation of x, of any shape.

    Parameters
    ----------
    x : array
    activation : str
        The name of a layer of `pyoptim.nn` in small letters, such as "relu", "leaky_relu" or "hardswish";
        "gelu" is exact, "gelu_tanh" its approximation. An unknown name is answered by a list of all.
    **parameters : float
        The layer's parameters, with its defaults.

    Raises
    ------
    TypeError, ValueError
        A dtype, name or value that cannot be.
    """
    a, b = check_parameters(activation, parameters)
    y = _FORWARD(x)
    if y is None:
        x = check_float_array("x", x)
        y = empty_like(x)
    dispatch.of(x).activation_forward(activation, x, y, a, b)
    return cast(Array, y)


@for_either_memory
def activation_backward(dy: Array, kept: Array, activation: str, **parameters: float) -> Array:
    """dx from the gradient dy of the output of `activation_forward`.

    Parameters
    ----------
    dy : array
    kept : array like dy
        The forward pass's input where `formulas.activations.ACTIVATIONS[activation].keeps_input`, else its
        output.
    activation, **parameters
        As in the forward pass.

    Raises
    ------
    TypeError, ValueError
        A dtype, shape, name or value that cannot be.
    """
    a, b = check_parameters(activation, parameters)
    dx = _BACKWARD(dy, kept)
    if dx is None:
        kept = check_float_array("kept", kept)
        dy = check_like("dy", dy, kept.shape, kept.dtype, " as kept")
        dx = empty_like(kept)
    dispatch.of(dy).activation_backward(activation, dy, kept, dx, a, b)
    return cast(Array, dx)


@for_either_memory
def softmax_forward(x: Array, log: bool = False) -> Array:
    """Softmax over the last axis, or its logarithm."""
    if log is not True and log is not False:
        log = check_flag("log", log)
    y = _ROWS(x)
    if y is None:
        x = check_float_array("x", x)
        if x.ndim == 0:
            raise ValueError("x is a scalar, expected at least one dimension")
    return softmax(x, log, y)


def softmax(x: Array, log: bool, y: Array | None = None) -> Array:
    """`softmax_forward` of a checked array; y is a new one for the result."""
    if y is None:
        y = empty_like(x)
    if x.size:
        dispatch.of(x).softmax_forward(log, as_rows(x), as_rows(y))
    return y


@for_either_memory
def softmax_backward(dy: Array, y: Array, log: bool = False) -> Array:
    """dx from the gradient dy and the output y of `softmax_forward`."""
    if log is not True and log is not False:
        log = check_flag("log", log)
    dx = _ROWS_BACKWARD(dy, y)
    if dx is None:
        y = check_float_array("y", y)
        if y.ndim == 0:
            raise ValueError("y is a scalar, expected at least one dimension")
        dy = check_like("dy", dy, y.shape, y.dtype, " as y")
    return softmax_gradient(dy, y, log, dx)


def softmax_gradient(dy: Array, y: Array, log: bool, dx: Array | None = None) -> Array:
    """`softmax_backward` of checked arrays; dx is a new one for the result."""
    if dx is None:
        dx = empty_like(y)
    if y.size:
        dispatch.of(y).softmax_backward(log, as_rows(dy), as_rows(y), as_rows(dx))
    return dx
