"""Values moved between arrays in a GPU's memory, ours and others', in the order of their streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _device
from ._device import DeviceArray
from .backends.device import Queue


def renewed(arrays: Sequence[DeviceArray]) -> list[DeviceArray]:
    """The same arrays, with what their owners now queue their work on."""
    streams: dict[int, int] = {}
    return [
        a if a.queue is not None or isinstance(a.owner, tuple) else _device.view("", a.owner, streams)
        for a in arrays
    ]


def on_streams_of(arrays: Sequence[DeviceArray], others: Sequence[DeviceArray]) -> list[DeviceArray]:
    """Our own arrays as if they were on the streams of others."""
    return [
        DeviceArray(a.address, a.shape, a.dtype, a.device, a.owner, stream=other.stream, queue=a.queue)
        for a, other in zip(arrays, renewed(others), strict=True)
    ]


def assign(queue: Queue, to: Sequence[DeviceArray], source: Sequence[DeviceArray]) -> None:
    """Copy the values of arrays of the same shapes and dtypes; one of each pair is our own."""
    for a, b in zip(renewed(to), renewed(source), strict=True):
        stream = next((x.stream for x in (a, b) if x.stream is not None), queue.stream)
        with queue.on(stream):
            queue.launcher.copy(a.address, b.address, b.nbytes, stream)


def copies(queue: Queue, arrays: Sequence[DeviceArray]) -> list[DeviceArray]:
    """Arrays of our own with the same values, each as far into a cache line."""
    made: list[Any] = [None] * len(arrays)
    for dtype in dict.fromkeys(a.dtype for a in arrays):
        members = [i for i, a in enumerate(arrays) if a.dtype == dtype]
        beside = [arrays[i] for i in members]
        pieces = _device.zeros_beside(queue, beside, [a.shape for a in beside], np.dtype(dtype))
        for i, piece in zip(members, pieces, strict=True):
            made[i] = piece
    assign(queue, made, arrays)
    return made
