"""Arrays in a GPU's memory, and their allocation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ..runtime import dispatch
from ..runtime.dtypes import Array
from .memory import places_beside
from .queue import Queue


class DeviceArray:
    """A contiguous array in a GPU's memory, which either a user's array or this object owns.

    Attributes
    ----------
    address, shape, dtype, size, nbytes : as those of a NumPy array
    device : int
        Index of the GPU.
    stream : int or None
        The CUDA stream on which the array's owner queues its work; None where that does not matter.
    readonly : bool
    owner : object
        The object that keeps the memory alive.
    queue : Queue or None
        The queue that orders the work on memory of our own; None for a user's.
    """

    __slots__ = (
        "address",
        "device",
        "dtype",
        "nbytes",
        "owner",
        "queue",
        "readonly",
        "shape",
        "size",
        "stream",
    )

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        device: int,
        owner: Any,
        *,
        stream: int | None = None,
        readonly: bool = False,
        queue: Queue | None = None,
    ) -> None:
        self.address, self.shape, self.dtype, self.device, self.owner = address, shape, dtype, device, owner
        self.stream, self.readonly, self.queue = stream, readonly, queue
        self.size = math.prod(shape)
        self.nbytes = self.size * dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def _part(self, begin: int, shape: tuple[int, ...]) -> DeviceArray:
        address = self.address + begin * self.dtype.itemsize
        return DeviceArray(
            address, shape, self.dtype, self.device, self.owner,
            stream=self.stream, readonly=self.readonly, queue=self.queue,
        )  # fmt: skip

    def reshape(self, *shape: Any) -> DeviceArray:
        """Return the same memory in another shape, in which one dimension may be -1, as in NumPy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        known = math.prod(n for n in wanted if n != -1)
        wanted = tuple(self.size // max(known, 1) if n == -1 else int(n) for n in wanted)
        if math.prod(wanted) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into {wanted}")
        return self._part(0, wanted)

    def __getitem__(self, where: slice) -> DeviceArray:
        """Return consecutive rows as a view of the same memory."""
        if not isinstance(where, slice):
            raise TypeError(f"index is {where!r}, expected a slice along the first dimension")
        begin, end, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"slice has step {step}, expected 1")
        rows = max(end - begin, 0)
        return self._part(begin * math.prod(self.shape[1:]), (rows, *self.shape[1:]))

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """Return an uninitialised array of the same dtype on the same queue; for arrays of our own."""
        assert self.queue is not None
        return empty(self.queue, shape, self.dtype)

    def constant(self, array: Array) -> DeviceArray:
        """Return the GPU's copy of a small array that never changes: see `constant` of this module."""
        assert self.queue is not None
        return constant(self.queue, array)

    def copy(self) -> DeviceArray:
        """Return a copy in new memory; for arrays of our own."""
        assert self.queue is not None
        made = empty(self.queue, self.shape, self.dtype)
        self.queue.copy(made.address, self.address, self.nbytes)
        return made

    def numpy(self) -> Array:
        """Return a copy as a NumPy array, for which the host waits; for arrays of our own."""
        assert self.queue is not None
        return self.download(self.queue)

    def __float__(self) -> float:
        """Return the value of an array without dimensions, such as a loss; the host waits for it."""
        if self.ndim:
            raise TypeError(f"an array of shape {self.shape} is no number")
        return float(self.numpy())

    @property
    def works_on(self) -> int | None:
        """The stream on which work on this array is queued; None where that does not matter."""
        return self.stream if self.stream is not None or self.queue is None else self.queue.stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, self.readonly),
            "version": 3,
            "strides": None,
            "stream": self.works_on,
        }

    def download(self, queue: Queue) -> Array:
        """Return a copy as a NumPy array, for which the host waits."""
        return queue.download(self.address, np.empty(self.shape, self.dtype), self.works_on)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.queue is None or copy is False:
            raise TypeError("an array in a GPU's memory is no NumPy array: copy it to the processor first")
        return self.download(self.queue).astype(dtype or self.dtype, copy=False)

    def __setitem__(self, where: Any, value: Any) -> None:
        """Assign to the whole array or to consecutive rows; for memory of our own."""
        assert self.queue is not None
        if where is not Ellipsis:
            self[where][...] = value
            return
        if isinstance(value, DeviceArray):
            if (value.shape, value.dtype, value.device) != (self.shape, self.dtype, self.device):
                expected = f"shape {self.shape}, dtype {self.dtype} and device {self.device}"
                raise ValueError(f"value is {value!r}, expected {expected}")
            with self.queue.among(*works_of([value]), self.queue.stream):
                self.queue.copy(self.address, value.address, self.nbytes)
            return
        values = np.ascontiguousarray(np.broadcast_to(np.asarray(value, self.dtype), self.shape))
        self.queue.upload(self.address, values)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "arrays in a GPU's memory cannot be copied or pickled: save its state_dict(), or move the model "
            "to 'cpu' before"
        )

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"


def works_of(arrays: Sequence[DeviceArray]) -> tuple[list[int], list[Queue]]:
    """Return the streams on which work on these arrays is queued, and the queues of our own ones."""
    streams = dict.fromkeys(array.works_on for array in arrays)
    queues = {id(array.queue): array.queue for array in arrays if array.queue is not None}
    return [stream for stream in streams if stream is not None], list(queues.values())


def zeros_beside(
    queue: Queue, arrays: Sequence[DeviceArray], shapes: Sequence[tuple[int, ...]], dtype: Any
) -> list[DeviceArray]:
    """Do in a GPU's memory what `memory.zeros_beside` does in the processor's."""
    dtype = np.dtype(dtype)
    begins, end = places_beside([a.address for a in arrays], shapes, dtype.itemsize)
    memory = queue.allocate(end * dtype.itemsize)
    queue.clear(memory.address, end * dtype.itemsize)
    return [
        DeviceArray(memory.address + begin * dtype.itemsize, shape, dtype, queue.device, memory, queue=queue)
        for begin, shape in zip(begins, shapes, strict=True)
    ]


def empty(queue: Queue, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """Return an uninitialised array of our own."""
    dtype = np.dtype(dtype)
    memory = queue.pool.take(math.prod(shape) * dtype.itemsize)
    return DeviceArray(memory.address, shape, dtype, queue.device, memory, queue=queue)


def uploaded(queue: Queue, array: Array) -> DeviceArray:
    """Copy a NumPy array to a GPU's memory and wait until that is done."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    made = empty(queue, array.shape, array.dtype)
    queue.upload(made.address, array)
    return made


def constant(queue: Queue, array: Array) -> DeviceArray:
    """Return the GPU's copy of a small array that never changes; each queue makes it once."""
    key = (array.dtype.str, array.shape, array.tobytes())
    if key not in queue.constants:
        queue.constants[key] = uploaded(queue, array)
    return queue.constants[key]  # type: ignore[no-any-return]


def queue_on(device: str) -> Queue | None:
    """Return a queue on the device of this name, or None for "cpu".

    Raises
    ------
    ValueError
        The string is not the name of a device, or this machine has no such GPU.
    BackendError
        No backend for GPUs runs here.
    """
    kind, colon, index = device.partition(":") if isinstance(device, str) else (None, "", "")
    if device != "cpu" and (kind != "cuda" or (colon and not index.isdecimal())):
        raise ValueError(f"device is {device!r}, expected 'cpu', 'cuda' or a GPU's number as in 'cuda:1'")
    if device == "cpu":
        return None
    launcher = dispatch.for_device().launcher
    number, count = int(index or 0), launcher.device_count()
    if number >= count:
        how_many = "there is 1 GPU" if count == 1 else f"there are {count} GPUs"
        raise ValueError(f"device is {device!r}, expected at most 'cuda:{count - 1}': {how_many}")
    return Queue(launcher, number)


def queue_of(params: Sequence[DeviceArray]) -> Queue:
    """Return a queue on the GPU of these arrays: their own where all of them share one."""
    queues = {id(p.queue): p.queue for p in params}
    if len(queues) == 1 and params[0].queue is not None:
        return params[0].queue
    return Queue(dispatch.for_device().launcher, params[0].device)
