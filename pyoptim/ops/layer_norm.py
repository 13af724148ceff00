"""Layer normalisation on arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..arrays.checks import check_float_array, check_like
from ..arrays.memory import empty, empty_like
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, is_count, shown
from .either_memory import for_either_memory


class SavedLayerNorm(NamedTuple):
    """Statistics that `layer_norm_forward` keeps for `layer_norm_backward`, one per normalised piece."""

    mean: Array
    inv_std: Array


@for_either_memory
def layer_norm_forward(
    x: Array,
    features: int | tuple[int, ...],
    gamma: Array | None = None,
    beta: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, SavedLayerNorm]:
    """Layer normalisation (Ba, Kiros & Hinton 2016), as PyTorch defines it.

    ``y = gamma * (x - mean)/sqrt(var + eps) + beta`` with the mean and the biased variance of each
    piece of shape ``features``.

    Parameters
    ----------
    x : array (..., *features)
    features : int or tuple of int
        The last dimensions of x, which are normalised together.
    gamma, beta : array (*features) or None
        None takes 1 and 0.
    eps : float, default 1e-5

    Returns
    -------
    y : array like x
    saved : SavedLayerNorm

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match.
    """
    x, shape, x2 = _check_rows(x, features)
    if type(eps) is not float or not eps >= 0:
        eps = AT_LEAST_ZERO.number("eps", eps)
    gamma, beta = check_affine(gamma, beta, shape, x, " as features")
    y = empty_like(x)
    saved = SavedLayerNorm(empty(x2.shape[:1], x), empty(x2.shape[:1], x))
    rows = y if x2 is x else y.reshape(x2.shape)
    dispatch.of(x).layer_norm_forward(x2, (gamma, beta), eps, rows, saved)
    return y, saved


@for_either_memory
def layer_norm_backward(
    dy: Array,
    x: Array,
    features: int | tuple[int, ...],
    gamma: Array | None,
    saved: SavedLayerNorm,
) -> tuple[Array, Array, Array]:
    """The gradients of `layer_norm_forward`.

    Parameters
    ----------
    dy : array like x
        Gradient with respect to the output.
    x, features, gamma
        As in the forward pass.
    saved : SavedLayerNorm
        What the forward pass returned.

    Returns
    -------
    dx : array like x
    dgamma, dbeta : array (*features)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match.
    """
    x, shape, x2 = _check_rows(x, features)
    dy = check_like("dy", dy, x.shape, x.dtype, " as x")
    gamma, _ = check_affine(gamma, None, shape, x, " as features")
    if not isinstance(saved, SavedLayerNorm):
        raise TypeError(f"saved is a {type(saved).__name__}, expected what layer_norm_forward returned")
    mean = check_like("saved.mean", saved.mean, x2.shape[:1], x.dtype, " for x")
    inv_std = check_like("saved.inv_std", saved.inv_std, x2.shape[:1], x.dtype, " for x")
    dx, dgamma, dbeta = empty_like(x), empty(shape, x), empty(shape, x)
    if x2 is x:
        gradients = dx, dgamma, dbeta
    else:
        gradients, dy = (dx.reshape(x2.shape), dgamma.reshape(-1), dbeta.reshape(-1)), dy.reshape(x2.shape)
    dispatch.of(x).layer_norm_backward(dy, x2, gamma, (mean, inv_std), gradients)
    return dx, dgamma, dbeta


def check_affine(
    gamma: Any, beta: Any, shape: tuple[int, ...], x: Array, why: str
) -> tuple[Array | None, Array | None]:
    """gamma and beta as vectors, or None; ``why`` is added to messages about their shape."""
    if gamma is not None:
        gamma = _vector(check_like("gamma", gamma, shape, x.dtype, why))
    if beta is not None:
        beta = _vector(check_like("beta", beta, shape, x.dtype, why))
    return gamma, beta


def _vector(array: Array) -> Array:
    return array if array.ndim == 1 else array.reshape(-1)


def check_features(features: Any) -> tuple[int, ...]:
    """Dimensions to normalise, each a positive integer."""
    if type(features) is int and features >= 1:  # the usual case at little cost
        return (features,)
    shape = features if isinstance(features, tuple | list) else (features,)
    for n in shape:
        if not is_count(n):
            raise ValueError(f"features is {shown(features)}, expected a positive integer or a tuple of them")
    if not shape:
        raise ValueError(f"features is {features!r}, expected at least one dimension")
    return tuple(int(n) for n in shape)


def _check_rows(x: Any, features: Any) -> tuple[Array, tuple[int, ...], Array]:
    """x contiguous, the shape of what is normalised, and x as (pieces, elements of one)."""
    x, shape = check_float_array("x", x), check_features(features)
    if x.shape[-len(shape) :] != shape:
        raise ValueError(f"x has shape {x.shape}, expected (..., {', '.join(map(str, shape))}) by features")
    if x.ndim == 2 and len(shape) == 1:
        return x, shape, x
    size = math.prod(shape)
    return x, shape, x.reshape(x.size // size, size)
