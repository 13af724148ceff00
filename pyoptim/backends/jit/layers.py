"""Layers of the Numba backend: `reference` says what each computes.

Scalars and sums are float64, results are rounded once when stored.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from ...arrays.memory import as_channels
from ...formulas import elementwise, norms
from ...formulas.activations import ACTIVATIONS, upper_tail
from ...formulas.norms import NormOptions
from ...runtime.dtypes import Array
from ..reference import layers as reference
from ..reference.layers import Gradients, Pair, dense_functions

# fastmath stays off, so nothing is contracted or reassociated, and bits are those of the other backends.
compiled = numba.njit(nogil=True, error_model="numpy")
_running_statistic, _inverse_deviation = compiled(norms.running_statistic), compiled(norms.inverse_deviation)
_norm_value, _norm_gradient = compiled(norms.value), compiled(norms.gradient)


# What compiled code makes of the functions that formulas call.
overload(upper_tail)(lambda x: upper_tail)
overload(elementwise.where)(lambda condition, chosen, other: _where)
overload(elementwise.sign)(lambda x: lambda x: np.sign(x) + (np.sign(x) - np.sign(x)))  # makes +0 of -0


def _where(condition, chosen, other):  # type: ignore[no-untyped-def]
    return chosen if condition else other


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


# NumPy has vector code of these, which loops of calls of the C library's are not.
_IN_NUMPY = {"exp", "expm1", "log1p", "tanh", "upper_tail"}


def activation_forward(kind: str, x: Array, y: Array, a: float = 0.0, b: float = 0.0) -> None:
    if _IN_NUMPY.isdisjoint(ACTIVATIONS[kind].value.__code__.co_names):
        _loops(kind)[0](x.ravel(), y.reshape(-1), a, b)
    else:
        reference.activation_forward(kind, x, y, a, b)


def activation_backward(kind: str, dy: Array, kept: Array, dx: Array, a: float = 0.0, b: float = 0.0) -> None:
    if _IN_NUMPY.isdisjoint(ACTIVATIONS[kind].slope.__code__.co_names):
        _loops(kind)[1](dy.ravel(), kept.ravel(), dx.reshape(-1), a, b)
    else:
        reference.activation_backward(kind, dy, kept, dx, a, b)


@compiled
def _sums(rows):  # type: ignore[no-untyped-def]
    """Return the sum of the rows, in double."""
    sums = np.zeros(rows.shape[1])
    for n in range(rows.shape[0]):
        row = rows[n]
        for j in range(row.size):
            sums[j] += row[j]
    return sums


def _sum_rows(rows: Array, sums: Array) -> None:
    sums[...] = _sums(rows)


dense_forward, dense_backward = dense_functions(activation_forward, activation_backward, _sum_rows)


def norm_forward(
    x: Array, affine: Pair, running: Pair, options: NormOptions, y: Array, saved: tuple[Array, Array]
) -> None:
    _norm_forward(as_channels(x), *affine, *running, options, as_channels(y), *saved)


# Arrays that may be None are arguments of their own: Numba compiles what depends on them only if they are
# arrays, which it does not see in a tuple. Loops run along rows of columns = channels * space elements, which
# are vector code: sums are those of each column, then those of a channel's columns.
@compiled
def _norm_forward(  # type: ignore[no-untyped-def]
    x, gamma, beta, running_mean, running_var, options, y, mean, inv_std
):
    momentum, eps, training, unbiased, relu = options
    batch, channels, space = x.shape
    rows, results = x.reshape(batch, channels * space), y.reshape(batch, channels * space)
    count = batch * space
    if training or running_mean is None or running_var is None:
        exact, var = _moments(rows, channels)
        if training and running_mean is not None and running_var is not None:
            for c in range(channels):
                seen = var[c] * (count / (count - 1)) if unbiased else var[c]
                running_mean[c] = _running_statistic(np.float64(running_mean[c]), exact[c], momentum)
                running_var[c] = _running_statistic(np.float64(running_var[c]), seen, momentum)
    else:
        exact, var = np.empty(channels), np.empty(channels)
        for c in range(channels):
            exact[c], var[c] = running_mean[c], running_var[c]
    scale, shift = np.empty_like(mean), np.zeros_like(mean)
    for c in range(channels):
        mean[c] = exact[c]
        inv_std[c] = _inverse_deviation(var[c], eps)
        scale[c] = inv_std[c] if gamma is None else gamma[c] * inv_std[c]
        if beta is not None:
            shift[c] = beta[c]
    centre, scale, shift = _spread(mean, space), _spread(scale, space), _spread(shift, space)
    for n in range(batch):
        row, result = rows[n], results[n]
        for j in range(row.size):
            result[j] = _norm_value(relu, row[j], centre[j], scale[j], shift[j])


@compiled
def _moments(rows, channels):  # type: ignore[no-untyped-def]
    """Return mean and variance of each channel."""
    mean = _by_channel(_sums(rows), channels) / (rows.size // channels)
    centre = _spread(mean, rows.shape[1] // channels)
    squares = np.zeros(rows.shape[1])
    for n in range(rows.shape[0]):
        row = rows[n]
        for j in range(row.size):
            d = row[j] - centre[j]
            squares[j] += d * d
    return mean, _by_channel(squares, channels) / (rows.size // channels)


@compiled
def _by_channel(sums, channels):  # type: ignore[no-untyped-def]
    """Add up the sums of the columns of each channel."""
    result = np.zeros(channels)
    space = sums.size // channels
    for j in range(sums.size):
        result[j // space] += sums[j]
    return result


@compiled
def _spread(values, space):  # type: ignore[no-untyped-def]
    """Return for each column the value of its channel; numpy.repeat takes a third of a second to compile."""
    spread = np.empty(values.size * space, values.dtype)
    for j in range(spread.size):
        spread[j] = values[j // space]
    return spread


def norm_backward(
    dy: Array, x: Array, affine: Pair, saved: tuple[Array, Array, bool], relu: bool, gradients: Gradients
) -> None:
    dx, *sums = gradients
    dx = None if dx is None else as_channels(dx)
    _norm_backward(as_channels(dy), as_channels(x), *affine, *saved, relu, dx, *sums)


@compiled
def _norm_backward(  # type: ignore[no-untyped-def]
    dy, x, gamma, beta, mean, inv_std, of_this_batch, relu, dx, dgamma, dbeta
):
    batch, channels, space = x.shape
    columns, zero = channels * space, x.dtype.type(0)
    rows, slopes = x.reshape(batch, columns), dy.reshape(batch, columns)
    scale, shift = np.empty_like(inv_std), np.zeros_like(inv_std)
    for c in range(channels):
        scale[c] = inv_std[c] if gamma is None else gamma[c] * inv_std[c]
        if beta is not None:
            shift[c] = beta[c]
    centre, factor, shift = _spread(mean, space), _spread(scale, space), _spread(shift, space)
    totals, products = np.zeros(columns), np.zeros(columns)
    for n in range(batch):
        row, slope = rows[n], slopes[n]
        for j in range(columns):
            d = row[j] - centre[j]
            dz = slope[j] if not relu or d * factor[j] + shift[j] > 0 else zero
            totals[j] += dz
            products[j] += np.float64(dz) * np.float64(d)
    total, product = _by_channel(totals, channels), _by_channel(products, channels)
    slopes_of, offsets = np.empty_like(inv_std), np.empty_like(inv_std)
    for c in range(channels):
        dbeta[c] = total[c]
        dgamma[c] = product[c] * inv_std[c]
        share = np.float64(scale[c]) / (batch * space)
        slopes_of[c] = product[c] * (np.float64(inv_std[c]) ** 2 * share)
        offsets[c] = total[c] * share
    if dx is not None:
        a, b = _spread(slopes_of, space), _spread(offsets, space)
        results = dx.reshape(batch, columns)
        for n in range(batch):
            row, slope, result = rows[n], slopes[n], results[n]
            for j in range(columns):
                d = row[j] - centre[j]
                dz = slope[j] if not relu or d * factor[j] + shift[j] > 0 else zero
                result[j] = _norm_gradient(dz, d, factor[j], a[j], b[j]) if of_this_batch else factor[j] * dz


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
