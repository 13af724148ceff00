"""Adafactor on arrays in a GPU's memory: a launch serves all arrays of a dtype, and the host does not wait.

Sums are taken in double, in another order than on the processor, so results agree up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays.queue import Queue
from ...formulas.rules import Rule
from .constants import CHUNK, PART_ROWS, THREADS, WARPS, blocks_of
from .steps import Launch, Stepper, chunks_of, copied_to_gpu

if TYPE_CHECKING:
    from ...arrays.gpu import DeviceArray


Row = tuple[float, ...]
# This is the layout of the struct in launch.hpp.
_SHAPES = np.dtype([(name, "i8") for name in ("batch", "rows", "cols", "columns", "means", "sums")])
_LENGTH = 8  # coefficients in a row: see adafactor.hpp


class _AdafactorLaunch(Launch):
    """All arrays of one dtype; the rule's name is not used."""

    def __init__(self, queue: Queue, rule: Rule, dtype: np.dtype[Any], members: Sequence[Any]) -> None:
        super().__init__(queue, rule, dtype, members)
        self._kernel, self._length, self._count = "adafactor_step", _LENGTH, len(members)
        self._rows_type = "double"
        entries, end = [], 0
        for _, _, param, _ in members:
            batch, rows, cols = _matrices(param)
            columns = end + 2 * blocks_of(param.size, CHUNK)
            means = columns + batch * cols * blocks_of(rows, PART_ROWS)
            entries.append((batch, rows, cols, columns, means, end))
            end = means + batch
        shapes = np.array(entries, _SHAPES)
        self._shapes, self._shared = copied_to_gpu(queue, shapes), queue.allocate(8 * end)
        of_rows, of_cols = shapes["batch"] * shapes["rows"], shapes["batch"] * shapes["cols"]
        work = {
            "adafactor_rows": (of_rows, WARPS),
            "adafactor_columns": (of_cols * blocks_of(shapes["rows"], PART_ROWS), THREADS),
            "adafactor_col_var": (of_cols, THREADS),
            "adafactor_means": (shapes["batch"], WARPS),
        }
        some = np.array([param.size > 0 for _, _, param, _ in members], np.int64)
        chunks = {kernel: chunks_of(some * count, length) for kernel, (count, length) in work.items()}
        self._moments = [
            (f"{kernel}<{self._type}>", len(table), copied_to_gpu(queue, table))
            for kernel, table in chunks.items()
            if len(table)
        ]

    def step(self, coefficients: Sequence[Row] | None, factor: int | None, stream: int, *more: Any) -> None:
        """Make a step; the arguments are those of `Launch.step`."""
        rows = self._scale(self._exact_rows(coefficients, stream), factor, stream)
        arrays, chunks, grads = self._at
        addresses = (arrays, self._shapes.address, grads, rows, self._shared.address)
        tables = np.array(addresses, np.uint64).tobytes()
        for kernel, blocks, own in self._moments:
            self._launcher.launch(kernel, blocks, (tables, own.address), stream)
        of_all = (tables, chunks)
        self._launcher.launch(f"adafactor_squares<{self._type}>", self.blocks, of_all, stream)
        self._launcher.launch(f"adafactor_rates<{self._type}>", self._count, (tables,), stream)
        self._launcher.launch(f"adafactor_step<{self._type}>", self.blocks, of_all, stream)


class AdafactorStepper(Stepper):
    """See `pyoptim.backends.reference.AdafactorStepper`; arrays are `pyoptim.arrays.gpu.DeviceArray`."""

    _launch = _AdafactorLaunch


def _matrices(p: DeviceArray) -> tuple[int, int, int]:
    """Return how many matrices an array holds, their rows and their columns; a vector is not factored."""
    if len(p.shape) < 2:
        return 0, 0, 0
    return math.prod(p.shape[:-2]), p.shape[-2], p.shape[-1]
