"""Values moved between arrays in a GPU's memory, ours and others', in the order of their streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...arrays import gpu, gpu_data
from ...arrays.gpu import DeviceArray, empty
from ...arrays.queue import Queue
from ...formulas.rules import RULES
from ...formulas.storage import Packed, PackedArray
from .. import StepGroup
from .constants import TYPES
from .packed import PackedStepper, convert
from .steps import Stepper


def renewed(arrays: Sequence[DeviceArray]) -> list[DeviceArray]:
    """Return the same arrays with the streams on which their owners queue work now."""
    streams: dict[int, int] = {}
    return [gpu_data.renewed(a, streams) for a in arrays]


def on_streams_of(arrays: Sequence[Any], others: Sequence[DeviceArray]) -> list[DeviceArray]:
    """Return our own arrays as if work on them were queued on the streams of others."""
    return [
        DeviceArray(a.address, a.shape, a.dtype, a.device, a.owner, stream=other.stream, queue=a.queue)
        for a, other in zip(arrays, others, strict=True)
    ]


def assign(
    queue: Queue, to: Sequence[DeviceArray], source: Sequence[DeviceArray], scale: float = 1.0
) -> None:
    """Copy values between arrays of the same shapes; one array of each pair is our own.

    Arrays may have 16-bit floats, which are rounded to nearest; only then ``scale`` multiplies the values.
    """
    for a, b in zip(renewed(to), renewed(source), strict=True):
        stream = next((x.stream for x in (a, b) if x.stream is not None), queue.stream)
        if a.dtype != b.dtype or scale != 1:
            convert(queue, a, b, stream, scale)
            continue
        with queue.on(stream):
            queue.launcher.copy(a.address, b.address, b.nbytes, stream)


def widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return float32 for a dtype of 16-bit floats, and any other dtype as it is."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def copies(queue: Queue, arrays: Sequence[DeviceArray]) -> list[DeviceArray]:
    """Return short-lived copies of arrays, in memory of the queue's pool."""
    made = [gpu.empty(queue, a.shape, a.dtype) for a in arrays]
    assign(queue, made, arrays)
    return made


def zeros(queue: Queue, arrays: Sequence[DeviceArray], dtypes: Sequence[np.dtype[Any]]) -> list[DeviceArray]:
    """Return zeroed arrays of our own, of the shapes of others."""
    made: list[Any] = [None] * len(arrays)
    for dtype in dict.fromkeys(dtypes):
        members = [i for i, own in enumerate(dtypes) if own == dtype]
        beside = [arrays[i] for i in members]
        pieces = gpu.zeros_beside(queue, beside, [a.shape for a in beside], dtype)
        for i, piece in zip(members, pieces, strict=True):
            made[i] = piece
    return made


class Descent:
    """Steps of plain gradient descent, prepared once; gradients may be stored in another type than arrays.

    Parameters
    ----------
    grads : sequence of DeviceArray or Packed
        Examples of the gradients' storage; `step` gets arrays of the same kinds.
    rows : sequence of int, optional
        Index of each array's row of coefficients; by default all take the first row.
    """

    def __init__(
        self,
        queue: Queue,
        arrays: Sequence[DeviceArray],
        grads: Sequence[DeviceArray | Packed],
        rows: Sequence[int] | None = None,
    ) -> None:
        self._rows = [0] * len(arrays) if rows is None else list(rows)
        kept: list[Any] = [g if isinstance(g, Packed) else Packed(g.dtype.name, g) for g in grads]  # type: ignore[arg-type]
        alike = [a.dtype.name == g.kind and a.dtype.itemsize > 2 for a, g in zip(arrays, kept, strict=True)]
        self._plain = [i for i, same in enumerate(alike) if same]
        self._packed = [i for i, same in enumerate(alike) if not same]
        count, sgd = max(self._rows, default=-1) + 1, RULES["sgd"]
        groups = [[i for i in self._plain if self._rows[i] == row] for row in range(count)]
        self._plain = [i for group in groups for i in group]
        self._stepper = Stepper(
            [StepGroup(sgd, [arrays[i] for i in group], [()] * len(group)) for group in groups], queue
        )
        packed: list[Any] = [
            PackedArray(self._rows[i], Packed(arrays[i].dtype.name, arrays[i]), None, [])  # type: ignore[arg-type]
            for i in self._packed
        ]
        self._packed_stepper = PackedStepper([sgd] * count, packed, queue, [kept[i] for i in self._packed])

    def step(self, grads: Sequence[DeviceArray], rows: Sequence[tuple[float, ...]]) -> None:
        """Make a step, with a row of coefficients for each index in ``rows``; 16 bits round to nearest."""
        if self._plain:
            self._stepper.step([grads[i] for i in self._plain], rows)
        if self._packed:
            self._packed_stepper.step([grads[i] for i in self._packed], rows, None, 0, False)


def rows_of(
    array: DeviceArray,
    rows: int,
    dtype: Any,
    order: DeviceArray | None = None,
    where: tuple[Any, Any] | None = None,
) -> DeviceArray:
    """Return a copy of an array's rows, in the given order; bytes are converted to ``dtype``.

    In a step to be captured, ``where`` has the addresses of the pointers to the array and to the order, and
    the rows begin at the queue's position.
    """
    queue, is_bytes = array.queue, array.dtype == np.uint8
    assert queue is not None
    out = empty(queue, (rows, *array.shape[1:]), dtype if is_bytes else array.dtype)
    kind = "long long" if out.dtype == np.int64 else TYPES[out.dtype]
    position = None if where is None else queue.position
    at, by = where or (array.address, None if order is None else order.address)
    of_numbers, of_bytes = (None, at) if is_bytes else (at, None)
    cols = math.prod(array.shape[1:])
    queue.launch(f"gather_rows<{kind}>", rows, position, by, cols, of_numbers, of_bytes, out.address)
    return out
