"""Layers and losses of the Numba backend: `reference` says what each computes.

Scalars and sums are float64, results are rounded once when stored.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .._arrays import Array
from . import reference

__all__ = [
    "activation_backward",
    "activation_forward",
    "dense_backward",
    "dense_forward",
    "norm_apply",
    "norm_backward",
    "norm_statistics",
    "softmax_cross_entropy",
    "squared_error",
]

_jit = numba.njit(nogil=True, error_model="numpy")


@_jit
def _relu(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        y[i] = 0.0 if x[i] <= 0.0 else x[i]  # NaN stays NaN


@_jit
def _sigmoid(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        y[i] = 1.0 / (1.0 + np.exp(-x[i]))


@_jit
def _tanh(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        y[i] = np.tanh(x[i])


@_jit
def _relu_backward(dy, y, dx):  # type: ignore[no-untyped-def]
    for i in range(y.size):
        dx[i] = dy[i] if y[i] > 0.0 else 0.0


@_jit
def _sigmoid_backward(dy, y, dx):  # type: ignore[no-untyped-def]
    for i in range(y.size):
        dx[i] = dy[i] * (y[i] * (1.0 - y[i]))


@_jit
def _tanh_backward(dy, y, dx):  # type: ignore[no-untyped-def]
    for i in range(y.size):
        dx[i] = dy[i] * (1.0 - y[i] * y[i])


_ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "relu": (_relu, _relu_backward),
    "sigmoid": (_sigmoid, _sigmoid_backward),
    "tanh": (_tanh, _tanh_backward),
}


def activation_forward(kind: str, x: Array, y: Array) -> None:
    _ACTIVATIONS[kind][0](x.ravel(), y.reshape(-1))


def activation_backward(kind: str, dy: Array, y: Array, dx: Array) -> None:
    _ACTIVATIONS[kind][1](dy.ravel(), y.ravel(), dx.reshape(-1))


def dense_forward(x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array) -> None:
    reference.dense_forward(x, weight, bias, None, y)
    if activation is not None:
        activation_forward(activation, y, y)


def dense_backward(
    dy: Array,
    x: Array,
    weight: Array,
    y: Array | None,
    activation: str | None,
    dx: Array | None,
    dweight: Array,
    dbias: Array | None,
) -> None:
    dz = dy
    if activation is not None and y is not None:
        dz = np.empty_like(dy)
        activation_backward(activation, dy, y, dz)
    reference.dense_backward(dz, x, weight, None, None, dx, dweight, dbias)


@_jit
def norm_statistics(x, mean, var):  # type: ignore[no-untyped-def]
    batch, channels, space = x.shape
    mean[:] = 0.0
    var[:] = 0.0
    for n in range(batch):
        for c in range(channels):
            for s in range(space):
                mean[c] += x[n, c, s]
    mean /= batch * space
    for n in range(batch):
        for c in range(channels):
            for s in range(space):
                var[c] += (x[n, c, s] - mean[c]) ** 2
    var /= batch * space


@_jit
def norm_apply(x, mean, inv_std, gamma, beta, y):  # type: ignore[no-untyped-def]
    batch, channels, space = x.shape
    for n in range(batch):
        for c in range(channels):
            scale = inv_std[c] if gamma is None else gamma[c] * inv_std[c]
            shift = 0.0 if beta is None else beta[c]
            for s in range(space):
                y[n, c, s] = (x[n, c, s] - mean[c]) * scale + shift


@_jit
def norm_backward(dy, x, mean, inv_std, of_this_batch, gamma, dx, dgamma, dbeta):  # type: ignore[no-untyped-def]
    batch, channels, space = x.shape
    sum_dy, sum_dy_xhat = np.zeros(channels), np.zeros(channels)
    for n in range(batch):
        for c in range(channels):
            for s in range(space):
                sum_dy[c] += dy[n, c, s]
                sum_dy_xhat[c] += dy[n, c, s] * ((x[n, c, s] - mean[c]) * inv_std[c])
    dbeta[:] = sum_dy
    dgamma[:] = sum_dy_xhat
    if dx is not None:
        share = 1.0 / (batch * space) if of_this_batch else 0.0
        for n in range(batch):
            for c in range(channels):
                scale = inv_std[c] if gamma is None else gamma[c] * inv_std[c]
                for s in range(space):
                    xhat = (x[n, c, s] - mean[c]) * inv_std[c]
                    dx[n, c, s] = scale * (dy[n, c, s] - share * sum_dy[c] - xhat * (share * sum_dy_xhat[c]))


@_jit
def softmax_cross_entropy(logits, labels, dlogits):  # type: ignore[no-untyped-def]
    batch, classes = logits.shape
    total = 0.0
    for i in range(batch):
        largest = logits[i, 0]
        for j in range(1, classes):
            largest = np.maximum(largest, logits[i, j])
        denominator = 0.0
        for j in range(classes):
            denominator += np.exp(logits[i, j] - largest)
        total += np.log(denominator) + (largest - logits[i, labels[i]])
        if dlogits is not None:
            for j in range(classes):
                dlogits[i, j] = np.exp(logits[i, j] - largest) / denominator / batch
            dlogits[i, labels[i]] -= 1.0 / batch
    return total / batch


@_jit
def _squared_error(prediction, target, dprediction):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(prediction.size):
        difference = np.float64(prediction[i]) - np.float64(target[i])
        total += difference * difference
        if dprediction is not None:
            dprediction[i] = 2.0 * difference / prediction.size
    return total / prediction.size


def squared_error(prediction: Array, target: Array, dprediction: Array | None) -> float:
    gradient = None if dprediction is None else dprediction.reshape(-1)
    return float(_squared_error(prediction.ravel(), target.ravel(), gradient))
