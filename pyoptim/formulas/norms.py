"""The algebra of batch normalisation: the Python twin of ``csrc/formulas/norms.hpp``.

NumPy calls these functions with whole arrays, Numba with scalars. How sums are taken is each backend's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class NormOptions(NamedTuple):
    """The options of batch normalisation that all backends take: the twin of `NormOptions` of csrc/layers."""

    momentum: float = 0.1  # of running statistics; weighs the new value
    eps: float = 1e-5
    training: bool = True  # whether to use the batch's statistics and update the running ones
    unbiased: bool = True  # whether the running variance averages the unbiased one
    relu: bool = False  # whether a ReLU follows in the same pass


def running_statistic(old: Any, fresh: Any, momentum: Any) -> Any:
    """Return a running statistic, in float64, updated with that of a batch."""
    return (1 - momentum) * old + momentum * fresh


def inverse_deviation(variance: Any, eps: Any) -> Any:
    return 1.0 / np.sqrt(variance + eps)


def value(relu: bool, x: Any, mean: Any, scale: Any, shift: Any) -> Any:
    """Return the output y, after a ReLU if ``relu``."""
    y = (x - mean) * scale + shift
    return np.maximum(y, 0) if relu else y  # NaN stays NaN


def gradient(dz: Any, centred: Any, scale: Any, slope: Any, offset: Any) -> Any:
    """Return dx through the statistics, from the gradient dz before the ReLU and x less its mean."""
    return scale * dz - (centred * slope + offset)
