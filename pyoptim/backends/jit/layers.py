"""Layers of the Numba backend: `reference` says what each computes.

Scalars and sums are float64, results are rounded once when stored.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from ...formulas import norms
from ...formulas.activations import ACTIVATIONS, upper_tail
from ...formulas.norms import NormOptions
from ...runtime.dtypes import Array
from ..reference.layers import Gradients, Pair, dense_functions

# fastmath stays off, so nothing is contracted or reassociated, and bits are those of the other backends.
compiled = numba.njit(nogil=True, error_model="numpy")
_running_statistic, _inverse_deviation = compiled(norms.running_statistic), compiled(norms.inverse_deviation)
_norm_value, _norm_gradient = compiled(norms.value), compiled(norms.gradient)


overload(upper_tail)(lambda x: upper_tail)  # compiled code may call it now


@cache
def _loops(kind: str) -> tuple[Any, Any]:
    value, slope = compiled(ACTIVATIONS[kind].value), compiled(ACTIVATIONS[kind].slope)

    @compiled
    def forward(x, y, a, b):  # type: ignore[no-untyped-def]
        for i in range(x.size):
            y[i] = value(x[i], a, b)

    @compiled
    def backward(dy, kept, dx, a, b):  # type: ignore[no-untyped-def]
        for i in range(kept.size):
            s = slope(kept[i], a, b)
            dx[i] = 0.0 if s == 0.0 else dy[i] * s

    return forward, backward


def activation_forward(kind: str, x: Array, y: Array, a: float = 0.0, b: float = 0.0) -> None:
    _loops(kind)[0](x.ravel(), y.reshape(-1), a, b)


def activation_backward(kind: str, dy: Array, kept: Array, dx: Array, a: float = 0.0, b: float = 0.0) -> None:
    _loops(kind)[1](dy.ravel(), kept.ravel(), dx.reshape(-1), a, b)


dense_forward, dense_backward = dense_functions(activation_forward, activation_backward)


def norm_forward(
    x: Array, affine: Pair, running: Pair, options: NormOptions, y: Array, saved: tuple[Array, Array]
) -> None:
    _norm_forward(x, *affine, *running, options, y, *saved)


# Arrays that may be None are arguments of their own: Numba compiles what depends on them only if they are
# arrays, which it does not see in a tuple.
@compiled
def _norm_forward(  # type: ignore[no-untyped-def]
    x, gamma, beta, running_mean, running_var, options, y, mean, inv_std
):
    momentum, eps, training, unbiased, relu = options
    batch, channels, space = x.shape
    count = batch * space
    for c in range(channels):
        if training or running_mean is None or running_var is None:
            m = 0.0
            for n in range(batch):
                for s in range(space):
                    m += x[n, c, s]
            m /= count
            squares = 0.0
            for n in range(batch):
                for s in range(space):
                    squares += (x[n, c, s] - m) ** 2
            var = squares / count
            if training and running_mean is not None and running_var is not None:
                seen = squares / (count - 1) if unbiased else var
                running_mean[c] = _running_statistic(np.float64(running_mean[c]), m, momentum)
                running_var[c] = _running_statistic(np.float64(running_var[c]), seen, momentum)
        else:
            m = np.float64(running_mean[c])
            var = np.float64(running_var[c])
        mean[c] = m
        inv_std[c] = _inverse_deviation(var, eps)
        scale = inv_std[c] if gamma is None else gamma[c] * inv_std[c]
        shift = x.dtype.type(0) if beta is None else beta[c]
        for n in range(batch):
            for s in range(space):
                y[n, c, s] = _norm_value(relu, x[n, c, s], mean[c], scale, shift)


def norm_backward(
    dy: Array, x: Array, affine: Pair, saved: tuple[Array, Array, bool], relu: bool, gradients: Gradients
) -> None:
    _norm_backward(dy, x, *affine, *saved, relu, *gradients)


@compiled
def _norm_backward(  # type: ignore[no-untyped-def]
    dy, x, gamma, beta, mean, inv_std, of_this_batch, relu, dx, dgamma, dbeta
):
    batch, channels, space = x.shape
    for c in range(channels):
        scale = inv_std[c] if gamma is None else gamma[c] * inv_std[c]
        shift = x.dtype.type(0) if beta is None else beta[c]
        total, product = 0.0, 0.0
        for n in range(batch):
            for s in range(space):
                d = x[n, c, s] - mean[c]
                if not relu or d * scale + shift > 0:
                    total += dy[n, c, s]
                    product += np.float64(dy[n, c, s]) * np.float64(d)
        dbeta[c] = total
        dgamma[c] = product * inv_std[c]
        if dx is not None:
            share = scale / (batch * space)
            slope = product * inv_std[c] * inv_std[c] * share
            offset = total * share
            for n in range(batch):
                for s in range(space):
                    d = x[n, c, s] - mean[c]
                    dz = dy[n, c, s] if not relu or d * scale + shift > 0 else 0.0
                    dx[n, c, s] = _norm_gradient(dz, d, scale, slope, offset) if of_this_batch else scale * dz


def layer_norm_forward(x: Array, affine: Pair, eps: float, y: Array, saved: tuple[Array, Array]) -> None:
    _layer_norm_forward(x, *affine, eps, y, *saved)


@compiled
def _layer_norm_forward(x, gamma, beta, eps, y, mean, inv_std):  # type: ignore[no-untyped-def]
    rows, features = x.shape
    for r in range(rows):
        m = 0.0
        for j in range(features):
            m += x[r, j]
        m /= features
        squares = 0.0
        for j in range(features):
            squares += (x[r, j] - m) ** 2
        mean[r] = m
        inv_std[r] = _inverse_deviation(squares / features, eps)
        for j in range(features):
            z = (x[r, j] - mean[r]) * inv_std[r]
            if gamma is not None:
                z *= gamma[j]
            if beta is not None:
                z += beta[j]
            y[r, j] = z


def layer_norm_backward(
    dy: Array, x: Array, gamma: Array | None, saved: tuple[Array, Array], gradients: Gradients
) -> None:
    _layer_norm_backward(dy, x, gamma, *saved, *gradients)


@compiled
def _layer_norm_backward(  # type: ignore[no-untyped-def]
    dy, x, gamma, mean, inv_std, dx, dgamma, dbeta
):
    rows, features = x.shape
    gammas, betas = np.zeros(features), np.zeros(features)
    for r in range(rows):
        total, product = 0.0, 0.0
        for j in range(features):
            g, z = np.float64(dy[r, j]), (x[r, j] - mean[r]) * inv_std[r]
            gammas[j] += g * z
            betas[j] += g
            if gamma is not None:
                g *= gamma[j]
            total += g
            product += g * z
        if dx is not None:
            for j in range(features):
                g, z = np.float64(dy[r, j]), (x[r, j] - mean[r]) * inv_std[r]
                if gamma is not None:
                    g *= gamma[j]
                dx[r, j] = inv_std[r] * (g - (z * product + total) / features)
    dgamma[:] = gammas
    dbeta[:] = betas
