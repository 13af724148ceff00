"""Losses as the textbook has them: float64, one example and class at a time."""

import math

import numpy as np


def cross_entropy(logits, target, class_weight=None, smoothing=0.0, sample_weight=None):
    n, classes = logits.shape
    w = [1.0] * classes if class_weight is None else np.asarray(class_weight, np.float64)
    s = [1.0] * n if sample_weight is None else np.asarray(sample_weight, np.float64)
    total, divisor = 0.0, 0.0
    for i in range(n):
        m = max(logits[i])
        log_sum = m + math.log(sum(math.exp(v - m) for v in logits[i]))
        for c in range(classes):
            t = float(target[i] == c) if np.ndim(target) == 1 else target[i][c]
            t = (1 - smoothing) * t + smoothing / classes
            total += s[i] * w[c] * t * (log_sum - logits[i][c])
        divisor += w[target[i]] if np.ndim(target) == 1 else 1.0
    return total / divisor


def kl_divergence(logits, target, temperature, sample_weight=None):
    s = np.ones(len(logits)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    total = 0.0
    for row, t, weight in zip(logits / temperature, target, s, strict=True):
        log_sum = row.max() + math.log(np.exp(row - row.max()).sum())
        total += weight * sum(p * (math.log(p) - (z - log_sum)) for p, z in zip(t, row, strict=True) if p > 0)
    return temperature**2 * total / len(logits)


def softplus(z):
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


POINTWISE = {
    "squared": lambda x, t, a: (x - t) ** 2,
    "absolute": lambda x, t, a: abs(x - t),
    "huber": lambda x, t, a: (x - t) ** 2 / 2 if abs(x - t) <= a else a * (abs(x - t) - a / 2),
    "binary": lambda x, t, a: a * t * softplus(-x) + (1 - t) * softplus(x),
    "hinge": lambda x, t, a: max(0.0, 1 - t * x),
    "poisson": lambda x, t, a: math.exp(x) - t * x + (t * math.log(t) if t > 0 else 0.0) - t,
}


def pointwise(kind, x, t, a=1.0, sample_weight=None):
    a = np.broadcast_to(a, x.shape[1:])
    s = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    return (
        sum(s[i[0]] * POINTWISE[kind](float(x[i]), float(t[i]), float(a[i[1:]])) for i in np.ndindex(x.shape))
        / x.size
    )
