"""Losses of the NumPy backend. Sums and their terms are float64."""

from __future__ import annotations

import math

import numpy as np

from ...formulas.losses import POINTWISE, cross_entropy_of_row
from ...runtime.dtypes import Array

__all__ = ["kl_divergence", "label_weights", "pointwise_loss", "softmax_cross_entropy"]


def any_outside(x: Array, low: float, high: float) -> bool:
    """Whether an element of x, of float32, float64 or int64, is below low, above high or NaN."""
    return bool(x.size) and not (low <= x.min() and x.max() <= high)


def softmax_cross_entropy(
    logits: Array,
    target: Array,
    dlogits: Array | None,
    sample_weight: Array | None,
    class_weight: Array | None,
    smoothing: float,
) -> float:
    """The mean over the batch of ``-sum(q * log softmax(logits))``, and its gradient.

    The target is labels (batch,) or shares (batch, classes). q is (1 - smoothing) of it plus
    smoothing/classes, times the weights of classes and examples. With labels and class weights the
    divisor is the sum of the labels' weights; where that is 0, so are the loss and its gradient.
    """
    batch, classes = logits.shape
    if target.ndim == 1:
        check_labels(target, classes)
    divisor = float(batch)
    if target.ndim == 1 and class_weight is None and sample_weight is None and not smoothing:
        return _of_labels(logits, target, dlogits)
    if target.ndim == 1:
        q = np.zeros(logits.shape)
        q[np.arange(batch), target] = 1
        if class_weight is not None:
            divisor = float(class_weight[target].sum(dtype=np.float64)) or math.inf
    else:
        q = target.astype(np.float64)
    if smoothing:
        q = (1 - smoothing) * q + smoothing / classes
    if class_weight is not None:
        q *= class_weight
    if sample_weight is not None:
        q *= sample_weight[:, None]
    with np.errstate(all="ignore"):
        return float(_of_rows(logits, q, dlogits, divisor, 1.0).sum() / divisor)


def check_labels(labels: Array, classes: int) -> None:
    """Raise ValueError unless each is a class: the array is a user's, who may change it at any time."""
    if any_outside(labels, 0, classes - 1):
        raise ValueError(f"labels hold {labels.min()} to {labels.max()}, expected classes in [0, {classes})")


def label_weights(labels: Array, class_weight: Array) -> float:
    """The sum of the weights of all labels."""
    check_labels(labels, len(class_weight))
    return float(class_weight[labels].cumsum(dtype=np.float64)[-1])  # in order, as the compiled one


def _of_labels(logits: Array, labels: Array, dlogits: Array | None) -> float:
    """`softmax_cross_entropy` of labels without weights, with the bits of `_of_rows`."""
    rows = np.arange(len(logits))
    with np.errstate(all="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
        e = np.exp(shifted)
        sums = e.sum(axis=1)
        if dlogits is not None:
            share = e * (1 / sums)[:, None]
            share[rows, labels] -= 1
            np.divide(share, len(logits), out=dlogits, casting="same_kind")
        return float(cross_entropy_of_row(1.0, shifted[rows, labels], sums, 1.0).sum() / len(logits))


def kl_divergence(
    logits: Array, target: Array, dlogits: Array | None, sample_weight: Array | None, temperature: float
) -> float:
    """The mean over the batch of ``T^2 sum(target * log(target / softmax(logits/T)))``, and its gradient."""
    t = target.astype(np.float64)
    q = t if sample_weight is None else t * sample_weight[:, None]
    with np.errstate(all="ignore"):
        crossed = _of_rows(logits, q, dlogits, float(len(logits)), temperature)
        negentropy = np.where(t == 0, 0, q * np.log(t)).sum(axis=1)
        return float((crossed + temperature * temperature * negentropy).sum() / len(logits))


def _of_rows(logits: Array, q: Array, dlogits: Array | None, divisor: float, temperature: float) -> Array:
    """``-T^2 sum(q * log softmax(logits/T))`` of each row, and the gradient of their sum / divisor."""
    shifted = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    e = np.exp(shifted / temperature)
    sums = e.sum(axis=1)
    total = q.sum(axis=1)
    if dlogits is not None:
        dlogits[...] = (e * (total / sums)[:, None] - q) * temperature / divisor
    # A logit of -infinity whose class has no share costs nothing, where 0 * infinity would be NaN.
    linear = np.where(q == 0, 0, q * shifted).sum(axis=1)
    losses: Array = cross_entropy_of_row(total, linear, sums, temperature)
    return losses


def pointwise_loss(
    kind: str,
    prediction: Array,
    target: Array,
    dprediction: Array | None,
    sample_weight: Array | None,
    parameter: float | Array,
) -> float:
    """The mean of a pointwise loss over the elements (batch, columns), and its gradient.

    ``parameter`` is a of `pyoptim.formulas.losses`: a number, or one for each column.
    """
    loss = POINTWISE[kind]
    with np.errstate(all="ignore"):
        x, t, a = (np.asarray(value, np.float64) for value in (prediction, target, parameter))
        weight = 1.0 if sample_weight is None else sample_weight[:, None].astype(np.float64)
        if dprediction is not None:
            dprediction[...] = loss.slope(x, t, a) * (weight / x.size)
        return float((loss.value(x, t, a) * weight).sum() / x.size)
