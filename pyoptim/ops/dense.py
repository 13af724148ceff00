"""Dense layers on arrays."""

from __future__ import annotations

from typing import Any, cast

from ..arrays.checks import check_float_array, check_like
from ..arrays.fitting import fitting
from ..arrays.memory import empty, empty_like
from ..formulas import activations
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import check_name
from .either_memory import for_either_memory

# The activations that a dense layer can apply in the same pass: a public name.
ACTIVATIONS = tuple(name for name, kind in activations.ACTIVATIONS.items() if kind.fused)

_FORWARD, _BACKWARD = fitting("bi, oi, o? -> bo"), fitting("bo, bi, oi, bo? -> bi, oi, o")


def check_activation(activation: str | None) -> None:
    if activation is not None and (type(activation) is not str or activation not in ACTIVATIONS):
        if isinstance(activation, str) and activation in activations.ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}, expected None or one of {', '.join(ACTIVATIONS)}; others are "
                "layers of their own"
            )
        check_name("activation", activation, ACTIVATIONS, "None or ")


@for_either_memory
def dense_forward(x: Array, weight: Array, bias: Array | None = None, activation: str | None = None) -> Array:
    """``activation(x @ weight.T + bias)``.

    Parameters
    ----------
    x : array (batch, in)
    weight : array (out, in)
    bias : array (out,), optional
    activation : {None, "relu", "sigmoid", "tanh"}

    Returns
    -------
    array (batch, out)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, or the activation is unknown.
    """
    y = _FORWARD(x, weight, bias)
    if y is None:
        x, weight = _check_dense(x, weight)
        if bias is not None:
            bias = check_like("bias", bias, weight.shape[:1], x.dtype, " as weight's rows")
        y = empty((x.shape[0], weight.shape[0]), x)
    check_activation(activation)
    dispatch.of(x).dense_forward(x, weight, bias, activation, y)
    return cast(Array, y)


@for_either_memory
def dense_backward(
    dy: Array, x: Array, weight: Array, y: Array | None = None, activation: str | None = None
) -> tuple[Array, Array, Array]:
    """The gradients of `dense_forward`.

    Parameters
    ----------
    dy : array (batch, out)
        Gradient with respect to the output.
    x, weight
        As in the forward pass.
    y : array (batch, out)
        The forward pass's output; needed where there is an activation.
    activation : {None, "relu", "sigmoid", "tanh"}

    Returns
    -------
    dx (batch, in), dweight (out, in), dbias (out,)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, y is missing, or the activation is unknown.
    """
    check_activation(activation)
    if activation is None:
        y = None
    elif y is None:
        raise ValueError(f"y is None, expected the forward pass's output for {activation}")
    made = _BACKWARD(dy, x, weight, y)
    if made is None:
        x, weight = _check_dense(x, weight)
        dy = check_like("dy", dy, (x.shape[0], weight.shape[0]), x.dtype, " as the output")
        if y is not None:
            y = check_like("y", y, dy.shape, x.dtype, " as the output")
        made = empty_like(x), empty_like(weight), empty(weight.shape[:1], x)
    dispatch.of(x).dense_backward(dy, x, weight, y, activation, *made)
    return cast(tuple[Array, Array, Array], made)


def _check_dense(x: Any, weight: Any) -> tuple[Array, Array]:
    x = check_float_array("x", x, ndim=2)
    weight = check_float_array("weight", weight, ndim=2)
    if weight.dtype is x.dtype and weight.shape[1] == x.shape[1]:
        return x, weight
    return x, check_like("weight", weight, (weight.shape[0], x.shape[1]), x.dtype, " for x")
