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
    """Contiguous memory of a GPU, that of somebody's array or our own.

    Attributes
    ----------
    address, shape, dtype, size, nbytes : as NumPy's
    device : int
        Index of the GPU.
    stream : int or None
        What the array's owner has queued its work on; None where that does not matter.
    readonly : bool
    owner : object
        What keeps the memory.
    queue : Queue or None
        Of our own memory: the order of the work on it.
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
        """The same memory in another shape; -1 once, as NumPy's."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        known = math.prod(n for n in wanted if n != -1)
        wanted = tuple(self.size // max(known, 1) if n == -1 else int(n) for n in wanted)
        if math.prod(wanted) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into {wanted}")
        return self._part(0, wanted)

    def __getitem__(self, where: slice) -> DeviceArray:
        """A run of rows, the same memory."""
        if not isinstance(where, slice):
            raise TypeError(f"index is {where!r}, expected a slice along the first dimension")
        begin, end, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"slice has step {step}, expected 1")
        rows = max(end - begin, 0)
        return self._part(begin * math.prod(self.shape[1:]), (rows, *self.shape[1:]))

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """An array beside one of our own, of its dtype, with any values."""
        assert self.queue is not None
        return empty(self.queue, shape, self.dtype)

    def constant(self, array: Array) -> DeviceArray:
        """See the function of that name."""
        assert self.queue is not None
        return constant(self.queue, array)

    def copy(self) -> DeviceArray:
        """Other memory with the same values; of our own arrays."""
        assert self.queue is not None
        made = empty(self.queue, self.shape, self.dtype)
        self.queue.copy(made.address, self.address, self.nbytes)
        return made

    def numpy(self) -> Array:
        """A copy as a NumPy array; waits for it. Of our own arrays."""
        assert self.queue is not None
        return self.download(self.queue)

    def __float__(self) -> float:
        """Of no dimension, as a loss; waits for it."""
        if self.ndim:
            raise TypeError(f"an array of shape {self.shape} is no number")
        return float(self.numpy())

    @property
    def works_on(self) -> int | None:
        """The stream that work on it is queued on; None where that does not matter."""
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
        """A copy as a NumPy array."""
        return queue.download(self.address, np.empty(self.shape, self.dtype), self.works_on)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.queue is None or copy is False:
            raise TypeError("an array in a GPU's memory is no NumPy array: copy it to the processor first")
        return self.download(self.queue).astype(dtype or self.dtype, copy=False)

    def __setitem__(self, where: Any, value: Any) -> None:
        """``array[...] = value``, or of a run of rows; of our own memory."""
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
    """The streams that work on these is queued on, and the queues of those that are our own."""
    streams = dict.fromkeys(array.works_on for array in arrays)
    queues = {id(array.queue): array.queue for array in arrays if array.queue is not None}
    return [stream for stream in streams if stream is not None], list(queues.values())


def zeros_beside(
    queue: Queue, arrays: Sequence[DeviceArray], shapes: Sequence[tuple[int, ...]], dtype: Any
) -> list[DeviceArray]:
    """As `memory.zeros_beside`, in a GPU's memory."""
    dtype = np.dtype(dtype)
    begins, end = places_beside([a.address for a in arrays], shapes, dtype.itemsize)
    memory = queue.allocate(end * dtype.itemsize)
    queue.clear(memory.address, end * dtype.itemsize)
    return [
        DeviceArray(memory.address + begin * dtype.itemsize, shape, dtype, queue.device, memory, queue=queue)
        for begin, shape in zip(begins, shapes, strict=True)
    ]


def empty(queue: Queue, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """An array of our own with any values."""
    dtype = np.dtype(dtype)
    memory = queue.pool.take(math.prod(shape) * dtype.itemsize)
    return DeviceArray(memory.address, shape, dtype, queue.device, memory, queue=queue)


def uploaded(queue: Queue, array: Array) -> DeviceArray:
    """A NumPy array's copy in a GPU's memory; waits for it."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    made = empty(queue, array.shape, array.dtype)
    queue.upload(made.address, array)
    return made


def constant(queue: Queue, array: Array) -> DeviceArray:
    """The copy of a small array that never changes, made once for each queue."""
    key = (array.dtype.str, array.shape, array.tobytes())
    if key not in queue.constants:
        queue.constants[key] = uploaded(queue, array)
    return queue.constants[key]  # type: ignore[no-any-return]


def queue_on(device: str) -> Queue | None:
    """A queue for what a device's name says, None for "cpu".

    Raises
    ------
    ValueError
        It is no device's name, or there is no such GPU.
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
        there = "there is 1 GPU" if count == 1 else f"there are {count} GPUs"
        raise ValueError(f"device is {device!r}, expected at most 'cuda:{count - 1}': {there}")
    return Queue(launcher, number)


def queue_of(params: Sequence[DeviceArray]) -> Queue:
    """A queue for the GPU that these are on: that of our own arrays where all have one."""
    queues = {id(p.queue): p.queue for p in params}
    if len(queues) == 1 and params[0].queue is not None:
        return params[0].queue
    return Queue(dispatch.for_device().launcher, params[0].device)
