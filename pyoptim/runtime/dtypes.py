"""The dtypes that the package computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .extras import needed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = np.ndarray  # numpy.typing would take 3 ms to import

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def is_parameter_dtype(dtype: np.dtype[Any]) -> bool:
    """float32, float64, float16, or the bfloat16 that ml_dtypes adds to NumPy."""
    return dtype in FLOATS or dtype == np.float16 or dtype.name == "bfloat16"


def bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16, which the package ml_dtypes adds."""
    ml_dtypes = needed("ml_dtypes", "bfloat16 needs ml_dtypes", "pyoptim[bfloat16]")
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
