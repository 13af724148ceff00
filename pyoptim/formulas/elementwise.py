"""Functions that formulas call in place of NumPy's where Numba's of a single number is slow, or is another.

The Numba backend has versions of its own for its compiled code, in `pyoptim.backends.jit.layers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def where(condition: Any, chosen: Any, other: Any) -> Any:
    """`numpy.where`, of which Numba would make an array even of numbers."""
    return np.where(condition, chosen, other)


def sign(x: Any) -> Any:
    """Return -1, +0 or 1, where Numba's `numpy.sign` of -0 is -0; NaN stays NaN."""
    return np.sign(x)
