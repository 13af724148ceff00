"""Batch normalisation on arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from ..arrays.checks import check_float_array, check_like
from ..arrays.gpu import DeviceArray
from ..arrays.gpu_checks import check_updated
from ..arrays.memory import empty, empty_like, is_fast
from ..formulas.norms import NormOptions
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, SHARE, check_flag, one_of
from .either_memory import for_either_memory
from .layer_norm import check_affine


class SavedNorm(NamedTuple):
    """Statistics that `batch_norm_forward` keeps for `batch_norm_backward`, one per channel: shape (C,)."""

    mean: Array
    inv_std: Array
    of_this_batch: bool  # False: running statistics, constants for the gradient


@for_either_memory
def batch_norm_forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased: bool = True,
    activation: str | None = None,
) -> tuple[Array, SavedNorm]:
    """Batch normalisation (Ioffe & Szegedy 2015), as PyTorch defines it.

    ``y = gamma * (x - mean)/sqrt(var + eps) + beta`` with the biased variance of the batch. Running
    statistics become ``(1 - momentum)*old + momentum*new``: momentum weighs the NEW value (Keras's and
    TensorFlow's weighs the old one).

    Parameters
    ----------
    x : array (N, C) or (N, C, *spatial)
        A view of channels-last memory is read as it lies.
    gamma, beta : array (C,) or None
        None takes 1 and 0.
    running_mean, running_var : array (C,) or None
        Updated in place when training; used instead of the batch's when not. Both or neither.
    training : bool, default True
    momentum : float in [0, 1], default 0.1
    eps : float, default 1e-5
    unbiased : bool, default True
        Whether running_var takes the unbiased variance (PyTorch) or the biased one (Keras, TensorFlow).
    activation : {None, "relu"}
        Applied in the same pass.

    Returns
    -------
    y : array like x
        Channels-last in memory where x is.
    saved : SavedNorm

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, an array to be updated is read-only or overlaps another, or
        training has a single value per channel. Nothing is changed.
    """
    x3, last = _check_norm("x", x)
    channels = x3.shape[1:2]
    gamma, beta = check_affine(gamma, beta, channels, x3, " as x's channels")
    check_norm_activation(activation)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var: expected both or neither")
    if type(momentum) is not float or not 0 <= momentum <= 1:
        momentum = SHARE.number("momentum", momentum)
    if type(eps) is not float or not eps >= 0:
        eps = AT_LEAST_ZERO.number("eps", eps)
    if training is not True and training is not False:
        training = check_flag("training", training)
    if unbiased is not True and unbiased is not False:
        unbiased = check_flag("unbiased", unbiased)
    used_mean, used_var = running_mean, running_var
    if running_mean is not None and running_var is not None:
        why = " as x's channels"
        used_mean = check_like("running_mean", running_mean, channels, x3.dtype, why)
        used_var = check_like("running_var", running_var, channels, x3.dtype, why)
        if training and not _own_memory(x, gamma, beta, running_mean, running_var):
            others = {"x": x, "gamma": gamma, "beta": beta}
            _check_updated("running_mean", running_mean, others)
            _check_updated("running_var", running_var, {**others, "running_mean": running_mean})
    if training or running_mean is None:
        check_values_per_channel(x3)
    y = empty_like(x3)
    options = NormOptions(momentum, eps, training, unbiased, activation is not None)
    saved = norm_forward(x3, (gamma, beta), (used_mean, used_var), options, y)
    if training and running_mean is not None and running_var is not None:
        if used_mean is not running_mean:
            running_mean[...] = used_mean  # the kernel updated a contiguous copy
        if used_var is not running_var:
            running_var[...] = used_var
    return _as_given(y, x.shape, last), saved


def _own_memory(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> bool:
    """Whether the arrays are NumPy's, the last two can be written, and each has memory of its own."""
    return (
        type(x) is ndarray
        and x.flags.owndata
        and mean.flags.owndata
        and mean.flags.writeable
        and var.flags.owndata
        and var.flags.writeable
        and mean is not var
        and (gamma is None or (gamma.flags.owndata and gamma is not mean and gamma is not var))
        and (beta is None or (beta.flags.owndata and beta is not mean and beta is not var))
    )


def _check_updated(name: str, array: Any, others: dict[str, Any]) -> None:
    if isinstance(array, DeviceArray):
        check_updated(name, array, others)
        return
    flags = array.flags
    if not flags.writeable:
        raise ValueError(f"{name} is read-only, expected a writeable array")
    for other, memory in others.items():
        # Two arrays that own their memory share none. This common case needs no search.
        if memory is None or (flags.owndata and memory is not array and memory.flags.owndata):
            continue
        if np.shares_memory(array, memory):
            raise ValueError(f"{name} overlaps {other}, expected separate memory")


def norm_forward(
    x: Array,
    affine: tuple[Array | None, Array | None],
    running: tuple[Array | None, Array | None],
    options: NormOptions,
    y: Array,
) -> SavedNorm:
    """`batch_norm_forward` on checked, contiguous arrays.

    x and y are (N, C, space), ``affine`` is (gamma, beta), ``running`` (running_mean, running_var).
    """
    mean, inv_std = empty(x.shape[1:2], x), empty(x.shape[1:2], x)
    dispatch.of(x).norm_forward(x, affine, running, options, y, (mean, inv_std))
    return SavedNorm(mean, inv_std, options.training or running[0] is None)


@for_either_memory
def batch_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    saved: SavedNorm,
    beta: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """The gradients of `batch_norm_forward`, through the batch's statistics.

    Parameters
    ----------
    dy : array like x
        Gradient with respect to the output.
    x, gamma
        As in the forward pass.
    saved : SavedNorm
        What the forward pass returned.
    beta, activation
        As in the forward pass; beta matters where there is an activation.

    Returns
    -------
    dx : array like x
        Channels-last in memory where x is.
    dgamma, dbeta : array (C,)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match.
    """
    x3, last = _check_norm("x", x)
    gamma, beta = check_affine(gamma, beta, x3.shape[1:2], x3, " as x's channels")
    check_norm_activation(activation)
    if isinstance(dy, np.ndarray) and dy.shape == x.shape and last:
        dy3 = check_like("dy", np.moveaxis(dy, 1, -1), np.moveaxis(x, 1, -1).shape, x3.dtype, " as x")
        dy3 = dy3.reshape(x3.shape)
    else:
        dy3 = check_like("dy", dy, x.shape, x3.dtype, " as x").reshape(x3.shape)
    if not isinstance(saved, SavedNorm):
        raise TypeError(f"saved is a {type(saved).__name__}, expected what batch_norm_forward returned")
    mean = check_like("saved.mean", saved.mean, x3.shape[1:2], x3.dtype, " as x's channels")
    inv_std = check_like("saved.inv_std", saved.inv_std, x3.shape[1:2], x3.dtype, " as x's channels")
    dx, dgamma, dbeta = empty_like(x3), empty(x3.shape[1:2], x3), empty(x3.shape[1:2], x3)
    used = SavedNorm(mean, inv_std, bool(saved.of_this_batch))
    relu = activation is not None
    dispatch.of(x3).norm_backward(dy3, x3, (gamma, beta), used, relu, (dx, dgamma, dbeta))
    return _as_given(dx, x.shape, last), dgamma, dbeta


def check_norm_activation(activation: str | None) -> None:
    if activation is not None and (type(activation) is not str or activation != "relu"):
        one_of(None, "relu").check("activation", activation)


def check_values_per_channel(x: Array) -> None:
    """Check that x (N, C, space) has more than one value per channel."""
    count = x.shape[0] * x.shape[2]
    if count < 2:
        raise ValueError(f"x has {count} values per channel, expected more than 1 to take statistics of")


def _check_norm(name: str, x: Any) -> tuple[Array, bool]:
    """Return x as (N, C, space), or as (N*space, C, 1) and True if its memory is channels-last."""
    if isinstance(x, np.ndarray) and x.ndim > 2 and not x.flags.c_contiguous:
        moved = np.moveaxis(x, 1, -1)
        if is_fast(moved):
            moved = check_float_array(name, moved)
            return moved.reshape(moved.size // x.shape[1] if x.size else 0, x.shape[1], 1), True
    x = check_float_array(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {x.shape}, expected (N, C) or (N, C, *spatial)")
    return as_channels(x), False


def _as_given(y: Array, shape: tuple[int, ...], channels_last: bool) -> Array:
    if not channels_last:
        return y.reshape(shape)
    return np.moveaxis(y.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def as_channels(x: Array) -> Array:
    """(N, C, *spatial) as (N, C, space), without a copy."""
    shape = x.shape
    return x.reshape(shape[0], shape[1], 1 if len(shape) == 2 else math.prod(shape[2:]))
