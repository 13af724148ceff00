"""Layers and losses of the Numba backend: `reference` says what each computes.

Scalars and sums are float64, results are rounded once when stored.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from .._arrays import Array
from ..activations import KINDS, upper_tail
from . import reference
from .reference import dense_backward, softmax_backward, softmax_forward

__all__ = [
    "activation_backward",
    "activation_forward",
    "dense_backward",
    "dense_forward",
    "norm_apply",
    "norm_backward",
    "norm_statistics",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_forward",
    "squared_error",
]

_jit = numba.njit(nogil=True, error_model="numpy")


overload(upper_tail)(lambda x: upper_tail)  # so that compiled code may call it


@cache
def _loops(kind: str) -> tuple[Any, Any]:
    value, slope = _jit(KINDS[kind].value), _jit(KINDS[kind].slope)

    @_jit
    def forward(x, y, a, b):  # type: ignore[no-untyped-def]
        for i in range(x.size):
            y[i] = value(x[i], a, b)

    @_jit
    def backward(dy, kept, dx, a, b):  # type: ignore[no-untyped-def]
        for i in range(kept.size):
            s = slope(kept[i], a, b)
            dx[i] = 0.0 if s == 0.0 else dy[i] * s

    return forward, backward


def activation_forward(kind: str, x: Array, y: Array, a: float = 0.0, b: float = 0.0) -> None:
    _loops(kind)[0](x.ravel(), y.reshape(-1), a, b)


def activation_backward(kind: str, dy: Array, kept: Array, dx: Array, a: float = 0.0, b: float = 0.0) -> None:
    _loops(kind)[1](dy.ravel(), kept.ravel(), dx.reshape(-1), a, b)


def dense_forward(x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array) -> None:
    reference.dense_forward(x, weight, bias, None, y)
    if activation is not None:
        activation_forward(activation, y, y)


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
        largest = np.float64(logits[i, 0])
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
