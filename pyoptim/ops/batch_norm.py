"""Batch normalisation on arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np

from ..arrays.checks import check_float_array, check_like
from ..arrays.fitting import fitting
from ..arrays.gpu import DeviceArray
from ..arrays.gpu_checks import check_updated
from ..arrays.memory import as_channels, empty, empty_like, is_fast
from ..formulas.norms import NormOptions
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, SHARE, check_flag, one_of
from .either_memory import for_either_memory
from .layer_norm import check_affine

_FORWARD = fitting("ncS, c?, c?, c!?, c!? -> ncS, c, c")
_BACKWARD = fitting("ncS, ncS, c?, c?, c, c -> ncS, c, c")


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
    if activation is not None:
        check_norm_activation(activation)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var: expected both or neither")
    if type(momentum) is not float or not 0 <= momentum <= 1:
        momentum = SHARE.number("momentum", momentum)
    if type(eps) is not float or not 0 <= eps < math.inf:
        eps = AT_LEAST_ZERO.number("eps", eps)
    if training is not True and training is not False:
        training = check_flag("training", training)
    if unbiased is not True and unbiased is not False:
        unbiased = check_flag("unbiased", unbiased)
    options = NormOptions(momentum, eps, training, unbiased, activation is not None)
    running = running_mean, running_var
    made = _FORWARD(x, gamma, beta, *running)
    if made is None:
        return _unusual_forward(x, (gamma, beta), running, options)
    if (training or running_mean is None) and len(x) == 1:
        check_values_per_channel(x)
    y, mean, inv_std = made
    dispatch.of(x).norm_forward(x, (gamma, beta), running, options, y, (mean, inv_std))
    return y, SavedNorm(mean, inv_std, training or running_mean is None)


def _unusual_forward(x: Any, affine: Any, running: Any, options: NormOptions) -> tuple[Array, SavedNorm]:
    """`batch_norm_forward` of arrays that are checked one by one and copied where not contiguous."""
    x3, last = _check_norm("x", x)
    channels, why = x3.shape[1:2], " as x's channels"
    gamma, beta = check_affine(affine[0], affine[1], channels, x3, why)
    used = running
    if running[0] is not None:
        named = dict(zip(("running_mean", "running_var"), running, strict=True))
        used = tuple(check_like(name, array, channels, x3.dtype, why) for name, array in named.items())
        if options.training:
            others = {"x": x, "gamma": affine[0], "beta": affine[1]}
            for name, array in named.items():
                _check_updated(name, array, others)
                others[name] = array
    if options.training or running[0] is None:
        check_values_per_channel(x3)
    y = empty_like(x3)
    saved = norm_forward(x3, (gamma, beta), used, options, y)
    if options.training:
        for array, copy in zip(running, used, strict=True):
            if copy is not array:
                array[...] = copy  # the kernel updated a contiguous copy
    return _as_given(y, x.shape, last), saved


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
    check_norm_activation(activation)
    given, last, made = x, False, None
    if isinstance(saved, SavedNorm) and type(saved.of_this_batch) is bool:
        made = _BACKWARD(dy, x, gamma, beta, saved.mean, saved.inv_std)
    if made is None:
        x, last = _check_norm("x", given)
        channels, why = x.shape[1:2], " as x's channels"
        gamma, beta = check_affine(gamma, beta, channels, x, why)
        if isinstance(dy, np.ndarray) and dy.shape == given.shape and last:
            dy, shape = np.moveaxis(dy, 1, -1), np.moveaxis(given, 1, -1).shape
        else:
            shape = given.shape
        dy = check_like("dy", dy, shape, x.dtype, " as x").reshape(x.shape)
        if not isinstance(saved, SavedNorm):
            raise TypeError(f"saved is a {type(saved).__name__}, expected what batch_norm_forward returned")
        mean = check_like("saved.mean", saved.mean, channels, x.dtype, why)
        inv_std = check_like("saved.inv_std", saved.inv_std, channels, x.dtype, why)
        saved = SavedNorm(mean, inv_std, bool(saved.of_this_batch))
        made = empty_like(x), empty(channels, x), empty(channels, x)
    dispatch.of(x).norm_backward(dy, x, (gamma, beta), saved, activation is not None, made)
    if x is given:
        return cast(tuple[Array, Array, Array], made)
    return _as_given(made[0], given.shape, last), made[1], made[2]


def check_norm_activation(activation: str | None) -> None:
    if activation is not None and (type(activation) is not str or activation != "relu"):
        one_of(None, "relu").check("activation", activation)


def check_values_per_channel(x: Array) -> None:
    """Check that x (N, C, *spatial) has more than one value per channel."""
    count = x.shape[0] * math.prod(x.shape[2:])
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
