"""Sizes and layouts that the kernels are compiled with: the twins of csrc/cuda/kernels/launch.hpp."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from ...runtime.dtypes import Array

# These equal the constants of launch.hpp and cuda.cuh: tests/test_contract.py compares them.
THREADS, ELEMENTS, CHUNK, SUM_BLOCK, PART_ROWS, STEP_ROWS, ROW_LENGTH = 256, 1024, 4096, 16384, 128, 8, 16


WARP, WARPS = 32, THREADS // 32  # threads in a warp, and warps in a block
ARRAYS = np.dtype([("param", "u8"), ("state", "u8", (4,)), ("size", "i8"), ("row", "i8")])
CHUNKS = np.dtype([("array", "i4"), ("chunk", "i4")])
POSITION = np.dtype(
    [("steps", "i8"), ("example", "i8"), ("row", "i8"), ("loss", "f8"), ("divisor", "f8"), ("right", "u8")]
)
PLAN = 1024  # steps whose coefficients fit into a plan
TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


_Count = TypeVar("_Count", int, Array)


def blocks_of(n: _Count, of: int) -> _Count:
    """Return how many blocks work on n things, ``of`` things each; n may be an array of counts."""
    return -(-n // of)
