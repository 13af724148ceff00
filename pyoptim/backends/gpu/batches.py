"""Batches of data in a GPU's memory, and sums over them that stay on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...arrays import gpu
from ...arrays.gpu import DeviceArray
from ...arrays.queue import Queue
from ...runtime.dtypes import Array
from .. import spans
from . import copies
from .constants import POSITION, TYPES, WARPS, blocks_of


def batches(
    arrays: tuple[Any, ...], size: Any, dtype: np.dtype[Any], order: Array | None = None, first: int = 0
) -> Iterator[Any]:
    """Batches of data in a GPU's memory, from example ``first`` on, as `spans`; bytes become ``dtype``."""
    queue, examples = arrays[0].queue, len(arrays[0] if order is None else order)
    on_gpu = None if order is None else gpu.uploaded(queue, order)
    for begin, end in spans(size, first, examples):
        yield tuple(None if a is None else _batch(a, end - begin, begin, on_gpu, dtype) for a in arrays)


def _batch(array: DeviceArray, rows: int, begin: int, order: DeviceArray | None, dtype: Any) -> DeviceArray:
    """Rows of an array from ``begin`` on, without a copy where none is needed."""
    if order is not None:
        return copies.rows_of(array, rows, dtype, order[begin:])
    part = array[begin : begin + rows]
    return part if array.dtype != np.uint8 else copies.rows_of(part, rows, dtype)


class Sums:
    """The loss of some batches, and how many examples were classified right, added up on the GPU."""

    def __init__(self, queue: Queue, classification: bool) -> None:
        self._queue, self._classification = queue, classification
        self._held = gpu.empty(queue, (1,), POSITION)
        self.address = self._held.address
        self.begin()

    def begin(
        self, steps: int = 0, example: int = 0, sums: tuple[float, float] = (0.0, 0.0), right: int = 0
    ) -> None:
        """Start from these counts, and sums of losses and of their divisors."""
        self._queue.put(self.address, np.array([(steps, example, 0, *sums, right)], POSITION))

    def add(self, output: Any, target: Any, loss: Any, divisor: Any) -> None:
        """Add a batch; the host does not wait."""
        self.count(output, target)
        self.finish(len(output), loss, divisor)

    def count(self, output: Any, target: Any) -> None:
        """Count the examples of a batch that were classified right."""
        if self._classification:
            labels, shares = (target.address, None) if target.ndim == 1 else (None, target.address)
            kernel, blocks = f"count_right<{TYPES[output.dtype]}>", blocks_of(len(output), WARPS)
            with self._queue.aside():
                self._queue.launch(
                    kernel, blocks, *output.shape, output.address, labels, shares, self.address
                )

    def finish(self, examples: int, loss: Any, divisor: Any) -> None:
        """Add the loss of a batch that has been counted, and advance to the next.

        ``divisor`` is what `nn.Loss.divisor` returns: ``examples``, or a number in the GPU's memory.
        """
        by = divisor.address if isinstance(divisor, DeviceArray) else None
        self._queue.launch("finish_step<double>", 1, examples, by, loss.address, self.address)

    def read(self) -> Any:
        """Return the sums and counts as a `POSITION`; the host waits for them."""
        return self._held.numpy()[0]
