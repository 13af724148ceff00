"""Layers, activations, noise and penalties in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...arrays.memory import as_channels
from ...formulas import norms, random
from ...formulas.activations import ACTIVATIONS
from ...formulas.norms import NormOptions
from ...runtime.dtypes import Array
from .steps import sum_of_squares

__all__ = [
    "activation_backward",
    "activation_forward",
    "dense_backward",
    "dense_forward",
    "dropout",
    "gaussian_noise",
    "layer_norm_backward",
    "layer_norm_forward",
    "norm_backward",
    "norm_forward",
    "penalty",
    "softmax_backward",
    "softmax_forward",
]

Pair = tuple[Array | None, Array | None]
Gradients = tuple[Array | None, Array, Array]
Function = Callable[..., None]


def activation_forward(kind: str, x: Array, y: Array, a: float = 0.0, b: float = 0.0) -> None:
    """``y = kind(x)`` with the parameters a and b; y may be x."""
    number = x.dtype.type
    with np.errstate(all="ignore"):
        y[...] = ACTIVATIONS[kind].value(x, number(a), number(b))


def activation_backward(kind: str, dy: Array, kept: Array, dx: Array, a: float = 0.0, b: float = 0.0) -> None:
    """``dx = dy * kind'(x)``; dx may be dy. ``kept`` is x or y, as the entry in `ACTIVATIONS` says."""
    number = kept.dtype.type
    with np.errstate(all="ignore"):
        slope = ACTIVATIONS[kind].slope(kept, number(a), number(b))
        if slope.dtype == np.bool_:
            _keep_where(slope, dy, dx)
        else:
            _keep_where(slope != 0, dy * slope, dx)


def _keep_where(condition: Array, x: Array, y: Array) -> None:
    """Write x to y where the condition is true, and 0 elsewhere, without a branch for each element."""
    bits = np.dtype(f"i{x.itemsize}")
    mask = np.negative(condition.view(np.int8))  # -1, which has all bits set, or 0
    np.bitwise_and(x.view(bits), mask, out=y.view(bits))


def _sums(rows: Array, sums: Array) -> None:
    sums[...] = rows.sum(axis=0, dtype=np.float64)


def dense_functions(
    forward: Function, backward: Function, sum_rows: Function = _sums
) -> tuple[Function, Function]:
    """Return the `dense_forward` and `dense_backward` of a backend.

    They call its functions of activations, and ``sum_rows(rows, sums)``, which adds up rows in double.
    """

    def dense_forward(x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array) -> None:
        """``y = activation(x weight^T + bias)``; x (batch, in), weight (out, in), y (batch, out)."""
        np.matmul(x, weight.T, out=y)
        if bias is not None:
            y += bias
        if activation is not None:
            forward(activation, y, y)

    def dense_backward(
        dy: Array,
        x: Array,
        weight: Array,
        y: Array | None,
        activation: str | None,
        dx: Array | None,
        dweight: Array | None,
        dbias: Array | None,
    ) -> None:
        """The gradients of `dense_forward` from dy (batch, out) and, if there is an activation, its output y.

        None in place of dx, dweight or dbias skips that one.
        """
        dz = dy
        if activation is not None and y is not None:
            dz = np.empty_like(dy)
            backward(activation, dy, y, dz)
        if dweight is not None:
            np.matmul(dz.T, x, out=dweight)
        if dx is not None:
            np.matmul(dz, weight, out=dx)
        if dbias is not None:
            sum_rows(dz, dbias)

    return dense_forward, dense_backward


dense_forward, dense_backward = dense_functions(activation_forward, activation_backward)


def softmax_forward(log: bool, x: Array, y: Array) -> None:
    """Softmax over the rows of x (rows, classes), or its logarithm where ``log``."""
    if x.size == 0:
        return
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=1, keepdims=True).astype(np.float64)
        total = np.exp(shifted).sum(axis=1, keepdims=True)
        y[...] = shifted - np.log(total) if log else np.exp(shifted) / total


def softmax_backward(log: bool, dy: Array, y: Array, dx: Array) -> None:
    """dx from the gradient dy and the output y of `softmax_forward`."""
    with np.errstate(all="ignore"):
        if log:
            dx[...] = dy - np.exp(y) * dy.sum(axis=1, keepdims=True, dtype=np.float64)
        else:
            dx[...] = y * (dy - (dy * y).sum(axis=1, keepdims=True, dtype=np.float64))


def dropout(x: Array, p: float, seed: int, step: int, y: Array) -> None:
    """Drop elements with probability p, in [0, 1), and divide the others by 1 - p; y may be x.

    Seed, step and position decide which are dropped, so the backward pass is the same call on the gradient.
    """
    number = x.dtype.type
    kept = x * number(1 / (1 - p))
    y[...] = np.where(random.dropped(seed, step, p, x.size).reshape(x.shape), number(0), kept)


def gaussian_noise(x: Array, std: float, seed: int, step: int, y: Array) -> None:
    """Add normal noise of standard deviation ``std``; y may be x."""
    noise = random.normal(seed, step, x.size).astype(x.dtype).reshape(x.shape)
    np.add(x, x.dtype.type(std) * noise, out=y)


def penalty(
    parameters: Array, gradients: Array, runs: Sequence[tuple[int, int]], l2: float, l1: float
) -> float:
    """``l2/2 sum(w^2) + l1 sum(|w|)`` over the runs [begin, end) of ``parameters``.

    The penalty's gradient is added to ``gradients``.
    """
    number, total = parameters.dtype.type, 0.0
    with np.errstate(all="ignore"):
        for begin, end in runs:
            w, gradient = parameters[begin:end], gradients[begin:end]
            if l2:
                total += l2 / 2 * sum_of_squares(w)
                gradient += number(l2) * w
            if l1:
                total += l1 * float(np.abs(w).sum(dtype=np.float64))
                gradient += number(l1) * np.sign(w)
    return total


def norm_forward(
    x: Array,
    affine: Pair,
    running: Pair,
    options: NormOptions,
    y: Array,
    saved: tuple[Array, Array],
) -> None:
    """Batch normalisation of x (batch, channels, *space), followed by a ReLU if asked for.

    ``affine`` is (gamma, beta), ``running`` (running mean, running variance). Statistics are the batch's in
    training, or where there are no running ones; training updates the latter. ``saved`` (mean, inverse
    standard deviation) is an output: the statistics that were used. All of these have shape (channels,).
    """
    (gamma, beta), (running_mean, running_var), (mean, inv_std) = affine, running, saved
    momentum, eps, training, unbiased, relu = options
    x, y = as_channels(x), as_channels(y)
    with np.errstate(all="ignore"):
        if training or running_mean is None or running_var is None:
            count = x.shape[0] * x.shape[2]
            wide = x.astype(np.float64)
            exact = np.add.reduce(wide, (0, 2)) / count  # numpy.mean takes twice the time
            wide -= exact[:, None]
            wide *= wide
            var = np.add.reduce(wide, (0, 2)) / count
            if training and running_mean is not None and running_var is not None:
                seen = var * (count / (count - 1)) if unbiased else var
                for old, fresh in ((running_mean, exact), (running_var, seen)):
                    old[...] = norms.running_statistic(old.astype(np.float64), fresh, momentum)
        else:
            exact, var = running_mean, running_var.astype(np.float64)
        mean[...] = exact
        inv_std[...] = norms.inverse_deviation(var, eps)
        scale = inv_std if gamma is None else gamma * inv_std
        y[...] = norms.value(relu, x, mean[:, None], scale[:, None], 0 if beta is None else beta[:, None])


def norm_backward(
    dy: Array,
    x: Array,
    affine: Pair,
    saved: tuple[Array, Array, bool],
    relu: bool,
    gradients: Gradients,
) -> None:
    """The gradients (dx or None, dgamma, dbeta) of `norm_forward`.

    ``saved`` is (mean, inverse standard deviation, whether they are of this batch): if not they are
    constants, through which no gradient flows.
    """
    (gamma, beta), (mean, inv_std, of_this_batch), (dx, dgamma, dbeta) = affine, saved, gradients
    x, dy, dx = as_channels(x), as_channels(dy), None if dx is None else as_channels(dx)
    with np.errstate(all="ignore"):
        scale = inv_std if gamma is None else gamma * inv_std
        centred = x - mean[:, None]
        if relu:
            shift = 0 if beta is None else beta[:, None]
            dz = np.empty_like(dy)
            _keep_where(centred * scale[:, None] + shift > 0, dy, dz)
            dy = dz
        total = dy.sum(axis=(0, 2), dtype=np.float64)
        product = (dy * centred).sum(axis=(0, 2), dtype=np.float64)
        dbeta[...] = total
        dgamma[...] = product * inv_std
        if dx is None:
            return
        if not of_this_batch:
            np.multiply(scale[:, None], dy, out=dx)
            return
        share = scale.astype(np.float64) / (x.shape[0] * x.shape[2])
        slope = (product * inv_std.astype(np.float64) ** 2 * share).astype(x.dtype)
        offset = (total * share).astype(x.dtype)
        dx[...] = norms.gradient(dy, centred, scale[:, None], slope[:, None], offset[:, None])


def layer_norm_forward(x: Array, affine: Pair, eps: float, y: Array, saved: tuple[Array, Array]) -> None:
    """Normalise each row of x (rows, features) by its own statistics.

    ``affine`` is (gamma, beta), of shape (features,); ``saved`` (mean, inverse standard deviation), of shape
    (rows,), is an output.
    """
    (gamma, beta), (mean, inv_std) = affine, saved
    with np.errstate(all="ignore"):
        exact = np.asarray(np.mean(x, axis=1, dtype=np.float64))
        var = np.mean((x - exact[:, None]) ** 2, axis=1, dtype=np.float64)
        mean[...] = exact
        inv_std[...] = norms.inverse_deviation(var, eps)
        np.subtract(x, mean[:, None], out=y)
        y *= inv_std[:, None]
        if gamma is not None:
            y *= gamma
        if beta is not None:
            y += beta


def layer_norm_backward(
    dy: Array, x: Array, gamma: Array | None, saved: tuple[Array, Array], gradients: Gradients
) -> None:
    """The gradients (dx or None, dgamma, dbeta) of `layer_norm_forward`; the last two without a gamma too."""
    (mean, inv_std), (dx, dgamma, dbeta) = saved, gradients
    with np.errstate(all="ignore"):
        normalised = (x - mean[:, None]) * inv_std[:, None]
        dgamma[...] = (dy * normalised).sum(axis=0, dtype=np.float64)
        dbeta[...] = dy.sum(axis=0, dtype=np.float64)
        if dx is None:
            return
        scaled = dy if gamma is None else dy * gamma
        slope = (scaled * normalised).mean(axis=1, dtype=np.float64).astype(x.dtype)
        offset = scaled.mean(axis=1, dtype=np.float64).astype(x.dtype)
        np.subtract(scaled, normalised * slope[:, None] + offset[:, None], out=dx)
        dx *= inv_std[:, None]


def quantized_dense(
    x: Array, inverse: float, zero: int, weight: Array, offset: Array, scale: Array, bias: Array, relu: bool,
    y: Array,
) -> None:  # fmt: skip
    """``y = (q(x) W^T - offset) * scale + bias``, of float32, in bytes ``q(x) = round(x * inverse) + zero``.

    W (out, in) is of int8; its rows may be padded with zeros. The sums are integers, which are exact in a
    product of float64.
    """
    low, high = np.float32(-zero), np.float32(255 - zero)
    with np.errstate(all="ignore"):
        scaled = x * np.float32(inverse)
        limited = np.where(scaled > low, scaled, low)  # also where it is NaN
        limited = np.where(limited < high, limited, high)
        sums = (np.rint(limited) + zero).astype(np.float64) @ weight[:, : x.shape[1]].T.astype(np.float64)
        y[...] = (sums - offset).astype(np.float32) * scale + bias
    if relu:
        y[...] = np.where(y > 0, y, np.float32(0))
