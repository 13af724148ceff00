"""The algebra of batch normalisation, once: the Python twin of ``csrc/formulas/norms.hpp``.

NumPy calls these functions with whole arrays, Numba with scalars. How sums are taken is each backend's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class NormOptions(NamedTuple):
    """What batch normalisation is asked to do, as all backends take it: `NormOptions` of csrc/layers."""

    momentum: float = 0.1  # of running statistics; weighs the new value
    eps: float = 1e-5
    training: bool = True  # whether running statistics are updated, and those of the batch used
    unbiased: bool = True  # whether the running variance is
    relu: bool = False  # whether a ReLU follows in the same pass


def running_statistic(old: Any, fresh: Any, momentum: Any) -> Any:
    """A running statistic, in float64, once it has seen that of a batch."""
    return (1 - momentum) * old + momentum * fresh


def inverse_deviation(variance: Any, eps: Any) -> Any:
    return 1.0 / np.sqrt(variance + eps)


def value(x: Any, mean: Any, scale: Any, shift: Any) -> Any:
    """y, before the ReLU if there is one."""
    return (x - mean) * scale + shift


def gradient(dz: Any, centred: Any, scale: Any, slope: Any, offset: Any) -> Any:
    """dx through the statistics, from the gradient dz before the ReLU and x less its mean."""
    return scale * dz - (centred * slope + offset)
