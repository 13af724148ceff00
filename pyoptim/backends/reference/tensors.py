"""The NumPy backend's steps that look at whole tensors: Adafactor and Muon."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...formulas.rules import Common, common, split_coefficients
from ...runtime.dtypes import Array
from .. import StepGroup
from .steps import norm

Row = tuple[float, ...]
_OWN = len(Common._fields)  # the index in a row of the first coefficient after Common's


class AdafactorStepper:
    """Adafactor: a stack of matrices has the states ``row_var`` and ``col_var``, a vector ``variance``.

    ``checks`` and what ``step`` returns are as in `pyoptim.backends.Stepper`.
    """

    checks = False

    def __init__(self, groups: Sequence[StepGroup]) -> None:
        self._groups = groups

    def step(self, grads: list[Array], coefficients: list[Row]) -> bool:
        """Make a step. After Common's coefficients a row has the largest relative step, the share of the new
        moments, eps[0] (or -1 for the dtype's own), eps[1] and the threshold of clipping."""
        remaining = iter(grads)
        with np.errstate(all="ignore"):  # NaN and infinity propagate silently, as in the kernels
            for (_, params, states), row in zip(self._groups, coefficients, strict=True):
                for p, state in zip(params, states, strict=True):
                    g = next(remaining)
                    if p.size:
                        kind = p.dtype.type
                        d = np.asarray(kind(0) - kind(row[0]) * g)
                        rate = _factored(p, state, d, *row[_OWN:])
                        p *= kind(row[2])
                        p += kind(rate) * d
        return True


def _factored(p: Array, state: Sequence[Array], d: Array, largest: float, fresh: float, eps: float,
              smallest: float, threshold: float) -> float:  # fmt: skip
    """Divide d by the root of the factored variance, and return the rate."""
    least = float(np.finfo(p.dtype).eps) if eps < 0 else eps
    if len(state) == 1:
        variance = _blend(state[0], np.square(d), fresh)
    else:
        square = np.square(d, dtype=np.float64)
        rows = _blend(state[0], square.mean(axis=-1, keepdims=True), fresh)
        cols = _blend(state[1], square.mean(axis=-2, keepdims=True), fresh)
        variance = rows / np.maximum(rows.mean(axis=-2, keepdims=True), least) * cols
    d /= np.sqrt(np.maximum(variance, least * least))
    root = math.sqrt(p.size)
    relative, clip = max(smallest, norm([p]) / root), max(1.0, norm([d]) / (root * threshold))
    return largest * relative / clip


def _blend(old: Array, new: Array, fresh: float) -> Array:
    """Move ``old`` towards ``new`` in place by the share ``fresh``, and return it in double."""
    old += fresh * (new - old)
    return old.astype(np.float64)


class MuonStepper:
    """Muon: momentum is made orthogonal by Newton-Schulz iterations, and parameters descend along it.

    ``checks`` and what ``step`` returns are as in `pyoptim.backends.Stepper`.
    """

    checks = False

    def __init__(self, groups: Sequence[StepGroup]) -> None:
        self._groups = groups

    def step(self, grads: list[Array], coefficients: list[Row]) -> bool:
        """Make a step. After the rule's coefficients, padded with a 0 to four, a row has lr, 1 if it is
        scaled as AdamW's, the number of iterations, eps and the polynomial's three coefficients."""
        remaining = iter(grads)
        with np.errstate(all="ignore"):
            for (rule, params, states), row in zip(self._groups, coefficients, strict=True):
                end = _OWN + len(rule.coefficients._fields)
                lr, like_adamw, steps, eps, *polynomial = row[_OWN + 4 :]
                for p, (momentum,) in zip(params, states, strict=True):
                    shared, own = split_coefficients(rule, row[:end], p.dtype.type)
                    zero, g = common(shared, np.zeros_like(p), next(remaining))
                    d, momentum[...] = rule.function(own, zero, g, momentum)
                    if p.size:
                        d = _orthogonal(d, polynomial, int(steps), eps)
                    rows, columns = p.shape
                    scale = max(1.0, rows / max(1, columns))
                    rate = lr * (0.2 * math.sqrt(max(rows, columns)) if like_adamw else math.sqrt(scale))
                    p *= shared.param_scale
                    p += p.dtype.type(rate) * d
        return True


def _orthogonal(matrix: Array, polynomial: Sequence[float], steps: int, eps: float) -> Array:
    """Approximate U V^T of the singular value decomposition by X = aX + bSX + cSSX, with S = X X^T."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.dtype.type(max(norm([x]), eps))
    a, b, c = map(x.dtype.type, polynomial)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return np.asarray(x if wide else x.T)
