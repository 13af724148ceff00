"""Layer normalisation on arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..arrays.checks import check_float_array, check_like
from ..arrays.fitting import fitting
from ..arrays.memory import empty, empty_like
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, is_count, shown
from .either_memory import for_either_memory

_FORWARD = fitting("=F, NF, F?, F? -> NF, (N), (N)")
_BACKWARD = fitting("=F, NF, NF, F?, (N), (N) -> NF, F, F")


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
    made = _FORWARD(features, x, gamma, beta)
    if made is None:
        x, features, rows = _check_rows(x, features)
        gamma, beta = check_affine(gamma, beta, features, x, " as features")
        made = empty_like(x), empty(rows, x), empty(rows, x)
    if type(eps) is not float or not 0 <= eps < math.inf:
        eps = AT_LEAST_ZERO.number("eps", eps)
    y, saved = made[0], SavedLayerNorm(made[1], made[2])
    y2 = y
    if x.ndim != 2 or _are_many(features):
        shape = _pieces(x, features)
        x, y2, gamma, beta = x.reshape(shape), y.reshape(shape), _vector(gamma), _vector(beta)
    dispatch.of(x).layer_norm_forward(x, (gamma, beta), eps, y2, saved)
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
    made = _BACKWARD(features, dy, x, gamma, *saved) if isinstance(saved, SavedLayerNorm) else None
    if made is None:
        x, features, rows = _check_rows(x, features)
        dy = check_like("dy", dy, x.shape, x.dtype, " as x")
        gamma, _ = check_affine(gamma, None, features, x, " as features")
        if not isinstance(saved, SavedLayerNorm):
            raise TypeError(f"saved is a {type(saved).__name__}, expected what layer_norm_forward returned")
        mean = check_like("saved.mean", saved.mean, rows, x.dtype, " for x")
        inv_std = check_like("saved.inv_std", saved.inv_std, rows, x.dtype, " for x")
        saved = SavedLayerNorm(mean, inv_std)
        made = empty_like(x), empty(features, x), empty(features, x)
    dx, dgamma, dbeta = made
    gradients = made
    if x.ndim != 2 or _are_many(features):
        shape = _pieces(x, features)
        dy, x, gamma = dy.reshape(shape), x.reshape(shape), _vector(gamma)
        gradients = dx.reshape(shape), _vector(dgamma), _vector(dbeta)
    dispatch.of(x).layer_norm_backward(dy, x, gamma, saved, gradients)
    return dx, dgamma, dbeta


def check_affine(
    gamma: Any, beta: Any, shape: tuple[int, ...], x: Array, why: str
) -> tuple[Array | None, Array | None]:
    """gamma and beta, contiguous, or None; ``why`` is added to messages about their shape."""
    if gamma is not None:
        gamma = check_like("gamma", gamma, shape, x.dtype, why)
    if beta is not None:
        beta = check_like("beta", beta, shape, x.dtype, why)
    return gamma, beta


def _vector(array: Any) -> Any:
    return array if array is None or array.ndim == 1 else array.reshape(-1)


def _are_many(features: int | tuple[int, ...]) -> bool:
    return not isinstance(features, int) and len(features) > 1


def _pieces(x: Array, features: int | tuple[int, ...]) -> tuple[int, int]:
    """The shape (pieces, elements of one) in which kernels take x."""
    size = features if isinstance(features, int) else math.prod(features)
    return x.size // size, size


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


def _check_rows(x: Any, features: Any) -> tuple[Array, tuple[int, ...], tuple[int]]:
    """x contiguous, the shape of what is normalised, and that of one number for each piece."""
    x, shape = check_float_array("x", x), check_features(features)
    if x.shape[-len(shape) :] != shape:
        raise ValueError(f"x has shape {x.shape}, expected (..., {', '.join(map(str, shape))}) by features")
    return x, shape, (x.size // math.prod(shape),)
