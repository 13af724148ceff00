"""Losses and penalties of the Numba backend: `reference` says what each computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ...formulas.elementwise import sign
from ...formulas.losses import POINTWISE, cross_entropy_of_row
from ...runtime.dtypes import Array
from ..reference.losses import check_labels
from .layers import compiled

_of_row = compiled(cross_entropy_of_row)


def softmax_cross_entropy(
    logits: Array,
    target: Array,
    dlogits: Array | None,
    sample_weight: Array | None,
    class_weight: Array | None,
    smoothing: float,
) -> float:
    labels, shares = (target, None) if target.ndim == 1 else (None, target)
    divisor = float(len(logits))
    if labels is not None:
        check_labels(labels, logits.shape[1])
    if labels is not None and class_weight is not None:
        divisor = float(class_weight[labels].sum(dtype=np.float64)) or math.inf
    weights = sample_weight, class_weight
    return float(_cross_entropy(logits, labels, shares, dlogits, *weights, smoothing, divisor, 1.0, False))


def kl_divergence(
    logits: Array, target: Array, dlogits: Array | None, sample_weight: Array | None, temperature: float
) -> float:
    weights, batch = (sample_weight, None), float(len(logits))
    return float(_cross_entropy(logits, None, target, dlogits, *weights, 0.0, batch, temperature, True))


@compiled
def _cross_entropy(  # type: ignore[no-untyped-def]
    logits, labels, shares, dlogits, sample_weight, class_weight, smoothing, divisor, temperature, divergence
):
    batch, classes = logits.shape
    q, e = np.empty(classes), np.empty(classes)
    loss = 0.0
    for i in range(batch):
        largest = np.float64(logits[i, 0])
        for j in range(1, classes):
            largest = np.maximum(largest, np.float64(logits[i, j]))
        total, linear, exponentials = 0.0, 0.0, 0.0
        for j in range(classes):
            share = smoothing / classes
            if labels is not None:  # noqa: SIM102 - likewise
                if labels[i] == j:
                    share += 1.0 - smoothing
            if shares is not None:  # an else would have Numba compile it for None too
                share += (1.0 - smoothing) * shares[i, j]
            if class_weight is not None:
                share *= class_weight[j]
            if sample_weight is not None:
                share *= sample_weight[i]
            shifted = np.float64(logits[i, j]) - largest
            e[j] = np.exp(shifted / temperature)
            exponentials += e[j]
            total += share
            if share != 0.0:
                linear += share * shifted
            if shares is not None:  # noqa: SIM102 - likewise
                if divergence and shares[i, j] != 0.0:
                    linear -= temperature * share * np.log(np.float64(shares[i, j]))
            q[j] = share
        loss += _of_row(total, linear, exponentials, temperature)
        if dlogits is not None:
            for j in range(classes):
                dlogits[i, j] = (e[j] / exponentials * total - q[j]) * temperature / divisor
    return loss / divisor


def pointwise_loss(
    kind: str,
    prediction: Array,
    target: Array,
    dprediction: Array | None,
    sample_weight: Array | None,
    parameter: float | Array,
) -> float:
    columns = np.broadcast_to(np.asarray(parameter, np.float64), prediction.shape[1:]).copy()
    return float(_loop(kind)(prediction, target, dprediction, sample_weight, columns))


@cache
def _loop(kind: str) -> Any:
    value, slope = compiled(POINTWISE[kind].value), compiled(POINTWISE[kind].slope)

    @compiled
    def loop(prediction, target, dprediction, sample_weight, columns):  # type: ignore[no-untyped-def]
        total = 0.0
        for i in range(prediction.shape[0]):
            weight = 1.0 if sample_weight is None else np.float64(sample_weight[i])
            for j in range(prediction.shape[1]):
                x, t, a = np.float64(prediction[i, j]), np.float64(target[i, j]), columns[j]
                total += value(x, t, a) * weight
                if dprediction is not None:
                    dprediction[i, j] = slope(x, t, a) * (weight / prediction.size)
        return total / prediction.size

    return loop


def penalty(
    parameters: Array, gradients: Array, runs: Sequence[tuple[int, int]], l2: float, l1: float
) -> float:
    with np.errstate(over="ignore"):
        by = parameters.dtype.type(l2), parameters.dtype.type(l1)
    of_runs = [_penalty(parameters[begin:end], gradients[begin:end], l2, l1, *by) for begin, end in runs]
    return float(sum(of_runs))


@compiled
def _penalty(w, gradient, l2, l1, by_l2, by_l1):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(w.size):
        value = np.float64(w[i])
        if l2 != 0.0:
            gradient[i] += by_l2 * w[i]
            total += l2 / 2.0 * value * value
        if l1 != 0.0:
            gradient[i] += by_l1 * sign(w[i])
            total += l1 * np.abs(value)
    return total
