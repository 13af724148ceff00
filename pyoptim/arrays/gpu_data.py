"""Users' data in a GPU's memory, which are used without a copy and then released."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .gpu import DeviceArray
from .gpu_views import BYTES, NUMBERS, is_on_gpu, made_contiguous, view
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
    """Return a user's array as one of ours, without a copy; our queue waits for the owner's work on it.

    `release` makes the owner's later work wait for ours. ``or_bytes`` allows uint8 as well.

    Raises
    ------
    TypeError, ValueError
        The array is on another GPU, or has another dtype or shape.
    """
    array = view(name, value, also=BYTES if or_bytes else ())
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
            pass  # the queue now waits for all work on that memory, on whatever stream
    return DeviceArray(array.address, array.shape, array.dtype, array.device, array, queue=queue)


def _check_device(name: str, array: DeviceArray, queue: Queue) -> None:
    if array.device != queue.device:
        raise ValueError(f"{name} is on GPU {array.device}, expected {queue.device} as the model")


def renewed(array: DeviceArray, streams: dict[int, int] | None = None) -> DeviceArray:
    """Return the same array with the stream on which its owner queues work now."""
    if array.queue is not None or isinstance(array.owner, tuple):
        return array
    return view("", array.owner, streams, (array.dtype.name,))


def release(array: DeviceArray) -> None:
    """Make the work that an adopted array's owner queues from here on wait for ours."""
    if isinstance(array.owner, DeviceArray):  # converted bytes have none, and were released earlier
        assert array.queue is not None
        owner = renewed(array.owner)
        array.queue.chain(array.queue.stream, owner.works_on)
        if owner.queue not in (None, array.queue):
            with owner.queue.on(array.queue.stream):
                pass  # afterwards its memory may be used again on any stream


def downloaded(name: str, value: Any, queue: Queue | None) -> Any:
    """Copy data from the queue's GPU to a NumPy array, after their owner's work; return other data unchanged.

    The copy is checked like any other data. It costs little for data of one number per example.

    Raises
    ------
    TypeError, ValueError
        A user's GPU array without a queue or on another GPU, or an array that does not hold numbers.
    """
    if not is_on_gpu(value):
        return value
    if isinstance(value, DeviceArray) and value.queue is not None:
        return value.numpy()
    if queue is None:
        return checks.as_numpy(name, value)  # `as_numpy` refuses it
    array = view(name, made_contiguous(value), also=NUMBERS)
    _check_device(name, array, queue)
    return array.download(queue)
