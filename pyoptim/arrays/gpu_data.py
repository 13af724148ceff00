"""Data that users keep in a GPU's memory: taken over without a copy, and given back."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .gpu import DeviceArray
from .gpu_views import _BYTES, _NUMBERS, _made_contiguous, is_there, view
from .queue import Queue


def adopted(
    name: str,
    value: Any,
    queue: Queue,
    dtype: np.dtype[Any],
    shape: tuple[int, ...] | None = None,
    *,
    or_bytes: bool = False,
) -> DeviceArray:
    """Somebody's array as one of ours, without a copy: work on the queue comes after its owner's.

    `release` makes the owner's come after ours. ``or_bytes``: whether it may be of uint8 instead.

    Raises
    ------
    TypeError, ValueError
        Another GPU, dtype or shape.
    """
    array = view(name, value, also=_BYTES if or_bytes else ())
    _check_device(name, array, queue)
    if array.dtype != dtype and not (or_bytes and array.dtype == np.uint8):
        expected = f"{dtype} or uint8" if or_bytes else dtype
        raise TypeError(f"{name} has dtype {array.dtype}, expected {expected} in a GPU's memory")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if array.queue in (None, queue):
        queue.chain(array.works_on, queue.stream)
    else:
        with array.queue.on(queue.stream):
            pass  # after all work on its memory, on whatever stream
    return DeviceArray(array.address, array.shape, array.dtype, array.device, array, queue=queue)


def _check_device(name: str, array: DeviceArray, queue: Queue) -> None:
    if array.device != queue.device:
        raise ValueError(f"{name} is on GPU {array.device}, expected {queue.device} as the model")


def renewed(array: DeviceArray, streams: dict[int, int] | None = None) -> DeviceArray:
    """The same array, with what its owner now queues its work on."""
    if array.queue is not None or isinstance(array.owner, tuple):
        return array
    return view("", array.owner, streams, (array.dtype.name,))


def release(array: DeviceArray) -> None:
    """Let what the owner of an adopted array queues from here on come after our work."""
    if isinstance(array.owner, DeviceArray):  # not where bytes have been converted: they were released then
        assert array.queue is not None
        owner = renewed(array.owner)
        array.queue.chain(array.queue.stream, owner.works_on)
        if owner.queue not in (None, array.queue):
            with owner.queue.on(array.queue.stream):
                pass  # its memory may be used again on any stream after that


def downloaded(name: str, value: Any, queue: Queue | None) -> Any:
    """Data in the memory of a queue's GPU as a NumPy array, when their owner's work is done; others as is.

    So they are checked as all data are; that costs little where they are one number per example.

    Raises
    ------
    TypeError, ValueError
        Somebody's array without a queue, or on another GPU; one of no numbers.
    """
    if not is_there(value):
        return value
    if isinstance(value, DeviceArray) and value.queue is not None:
        return value.numpy()
    if queue is None:
        return checks.as_numpy(name, value)  # which refuses it
    array = view(name, _made_contiguous(value), also=_NUMBERS)
    _check_device(name, array, queue)
    return array.download(queue)
