"""Layers and losses as functions on arrays: checked, then run by the backend in force.

Arrays are NumPy float32 or float64, all of one dtype; what is not contiguous is copied. Layouts and
definitions are PyTorch's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import backends
from ._arrays import Array, check_float_array, check_like

ACTIVATIONS = ("relu", "sigmoid", "tanh")


def check_activation(activation: str | None) -> None:
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected None or one of {', '.join(ACTIVATIONS)}")


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
    x, weight = _check_dense(x, weight)
    check_activation(activation)
    if bias is not None:
        bias = check_like("bias", bias, weight.shape[:1], x.dtype, " as weight's rows")
    y = np.empty((x.shape[0], weight.shape[0]), x.dtype)
    backends.current().dense_forward(x, weight, bias, activation, y)
    return y


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
    x, weight = _check_dense(x, weight)
    check_activation(activation)
    dz = check_like("dy", dy, (x.shape[0], weight.shape[0]), x.dtype, " as the output")
    backend = backends.current()
    if activation is not None:
        if y is None:
            raise ValueError(f"y is None, expected the forward pass's output for {activation}")
        y = check_like("y", y, dz.shape, x.dtype, " as the output")
        gradient, dz = dz, np.empty_like(y)
        backend.activation_backward(activation, gradient, y, dz)
    dx, dweight = np.empty_like(x), np.empty_like(weight)
    dbias = np.empty(weight.shape[0], x.dtype)
    backend.dense_backward(dz, x, weight, dx, dweight, dbias)
    return dx, dweight, dbias


def _check_dense(x: Any, weight: Any) -> tuple[Array, Array]:
    x = check_float_array("x", x, ndim=2)
    weight = check_float_array("weight", weight, ndim=2)
    return x, check_like("weight", weight, (weight.shape[0], x.shape[1]), x.dtype, " for x")


def _check_named(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")


def activation_forward(x: Array, activation: str) -> Array:
    """``relu(x)``, ``sigmoid(x)`` or ``tanh(x)``, for x of any shape."""
    _check_named(activation)
    x = check_float_array("x", x)
    y = np.empty_like(x)
    backends.current().activation_forward(activation, x, y)
    return y


def activation_backward(dy: Array, y: Array, activation: str) -> Array:
    """dx from the gradient dy and the output y of `activation_forward`."""
    _check_named(activation)
    y = check_float_array("y", y)
    dy = check_like("dy", dy, y.shape, y.dtype, " as y")
    dx = np.empty_like(y)
    backends.current().activation_backward(activation, dy, y, dx)
    return dx


class SavedNorm(NamedTuple):
    """What `batch_norm_forward` keeps for `batch_norm_backward`: per channel, shape (C,)."""

    mean: Array
    inv_std: Array
    of_this_batch: bool  # False: running statistics, constants for the gradient


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
) -> tuple[Array, SavedNorm]:
    """Batch normalisation (Ioffe & Szegedy 2015), as PyTorch defines it.

    ``y = gamma * (x - mean)/sqrt(var + eps) + beta`` with the biased variance of the batch. Running
    statistics become ``(1 - momentum)*old + momentum*new``: momentum weighs the NEW value (Keras's and
    TensorFlow's weighs the old one).

    Parameters
    ----------
    x : array (N, C) or (N, C, *spatial)
    gamma, beta : array (C,) or None
        None takes 1 and 0.
    running_mean, running_var : array (C,) or None
        Updated in place when training; used instead of the batch's when not. Both or neither.
    training : bool, default True
    momentum : float in [0, 1], default 0.1
    eps : float, default 1e-5
    unbiased : bool, default True
        Whether running_var takes the unbiased variance (PyTorch) or the biased one (Keras, TensorFlow).

    Returns
    -------
    y : array like x
    saved : SavedNorm

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, an array to be updated is read-only, or training has a single
        value per channel. Nothing is changed.
    """
    x3, shape = _check_norm("x", x)
    channels = x3.shape[1:2]
    gamma, beta = _check_affine(gamma, beta, x3)
    running = (running_mean, running_var)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var: expected both or neither")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is {momentum!r}, expected a number in [0, 1]")
    if not eps >= 0:
        raise ValueError(f"eps is {eps!r}, expected a number >= 0")
    for name, array in zip(("running_mean", "running_var"), running, strict=True):
        if array is not None:
            check_like(name, array, channels, x3.dtype, " as x's channels")
            if training and not array.flags.writeable:
                raise ValueError(f"{name} is read-only, expected a writeable array")
            if training and np.may_share_memory(array, x):
                raise ValueError(f"{name} overlaps x, expected separate memory")
    y = np.empty_like(x3)
    saved = norm_forward(x3, gamma, beta, running, training, momentum, eps, unbiased, y)
    return y.reshape(shape), saved


def norm_forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running: tuple[Array | None, Array | None],
    training: bool,
    momentum: float,
    eps: float,
    unbiased: bool,
    y: Array,
) -> SavedNorm:
    """`batch_norm_forward` on checked arrays; x and y are (N, C, space)."""
    backend = backends.current()
    running_mean, running_var = running
    if training or running_mean is None or running_var is None:
        count = x.shape[0] * x.shape[2]
        if count < 2:
            raise ValueError(f"x has {count} values per channel, expected more than 1 to take statistics of")
        mean, var = np.empty(x.shape[1]), np.empty(x.shape[1])
        backend.norm_statistics(x, mean, var)
        if training and running_mean is not None and running_var is not None:
            seen = var * (count / (count - 1)) if unbiased else var
            running_mean[...] = (1 - momentum) * running_mean + momentum * mean
            running_var[...] = (1 - momentum) * running_var + momentum * seen
        of_this_batch = True
    else:
        mean, var = running_mean.astype(np.float64), running_var.astype(np.float64)
        of_this_batch = False
    saved = SavedNorm(mean.astype(x.dtype), (1 / np.sqrt(var + eps)).astype(x.dtype), of_this_batch)
    backend.norm_apply(x, saved.mean, saved.inv_std, gamma, beta, y)
    return saved


def batch_norm_backward(
    dy: Array, x: Array, gamma: Array | None, saved: SavedNorm
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

    Returns
    -------
    dx : array like x
    dgamma, dbeta : array (C,)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match.
    """
    x3, shape = _check_norm("x", x)
    dy3 = check_like("dy", dy, x.shape, x3.dtype, " as x").reshape(x3.shape)
    gamma, _ = _check_affine(gamma, None, x3)
    if not isinstance(saved, SavedNorm):
        raise TypeError(f"saved is a {type(saved).__name__}, expected what batch_norm_forward returned")
    for name, array in (("saved.mean", saved.mean), ("saved.inv_std", saved.inv_std)):
        check_like(name, array, x3.shape[1:2], x3.dtype, " as x's channels")
    dx = np.empty_like(x3)
    dgamma, dbeta = np.empty(x3.shape[1], x3.dtype), np.empty(x3.shape[1], x3.dtype)
    backends.current().norm_backward(dy3, x3, *saved, gamma, dx, dgamma, dbeta)
    return dx.reshape(shape), dgamma, dbeta


def _check_norm(name: str, x: Any) -> tuple[Array, tuple[int, ...]]:
    """x as (N, C, space), and its own shape."""
    x = check_float_array(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {x.shape}, expected (N, C) or (N, C, *spatial)")
    return as_channels(x), x.shape


def as_channels(x: Array) -> Array:
    """(N, C, *spatial) as (N, C, space), without a copy."""
    return x.reshape(x.shape[0], x.shape[1], int(np.prod(x.shape[2:], dtype=np.int64)))


def _check_affine(gamma: Any, beta: Any, x: Array) -> tuple[Array | None, Array | None]:
    checked = [
        None if value is None else check_like(name, value, x.shape[1:2], x.dtype, " as x's channels")
        for name, value in (("gamma", gamma), ("beta", beta))
    ]
    return checked[0], checked[1]


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean over the batch of ``-log softmax(logits)[label]``, and its gradient.

    Parameters
    ----------
    logits : array (batch, classes)
    labels : integer array (batch,), each in [0, classes)

    Returns
    -------
    loss : float
    dlogits : array (batch, classes)

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, an empty batch, or a label out of range.
    """
    logits = check_float_array("logits", logits, ndim=2)
    labels = check_labels("labels", labels, logits.shape[0], logits.shape[1])
    dlogits = np.empty_like(logits)
    return backends.current().softmax_cross_entropy(logits, labels, dlogits), dlogits


def check_labels(name: str, labels: Any, batch: int, classes: int) -> Array:
    """Class indices as contiguous int64."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {labels.dtype}, expected integers")
    if labels.shape != (batch,):
        raise ValueError(f"{name} has shape {labels.shape}, expected ({batch},): one per example")
    if batch == 0:
        raise ValueError(f"{name} is empty, expected at least one example")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"{name}[{i}] is {labels[i]}, expected a class in [0, {classes})")
    return np.ascontiguousarray(labels, dtype=np.int64)


def squared_error(prediction: Array, target: Array) -> tuple[float, Array]:
    """The mean over all elements of ``(prediction - target)**2`` (`torch.nn.MSELoss`), and its gradient.

    Parameters
    ----------
    prediction, target : arrays of one shape and dtype

    Returns
    -------
    loss : float
    dprediction : array like prediction

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not match, or there are no elements.
    """
    prediction = check_float_array("prediction", prediction)
    target = check_like("target", target, prediction.shape, prediction.dtype, " as prediction")
    if prediction.size == 0:
        raise ValueError("prediction is empty, expected at least one element")
    dprediction = np.empty_like(prediction)
    return backends.current().squared_error(prediction, target, dprediction), dprediction
