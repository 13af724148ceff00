"""Arrays in a GPU's memory: seen without a copy, checked as `_arrays` checks NumPy's, and allocated."""

from __future__ import annotations

import ctypes
import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np

from . import _arrays, backends, storage
from ._arrays import Array
from .backends.device import LEGACY_STREAM, TYPES, Queue

_CUDA = (2, 13)  # DLPack's numbers for memory of a GPU, and for memory shared with it

# What some arrays may have beside float32 and float64.
HALF = ("float16", "bfloat16")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_BYTES = ("uint8",)
_NUMBERS = ("float16", "bool", *INTEGERS)  # all that NumPy's targets may have
_TYPESTRS = {np.dtype(name).str: name for name in ("float32", "float64", *_NUMBERS)}


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


def is_there(value: Any) -> bool:
    """Whether this is an array in a GPU's memory."""
    if isinstance(value, np.ndarray):
        return False
    if isinstance(value, DeviceArray):
        return True
    if _is_tensor(value):
        return bool(value.is_cuda)
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) in _CUDA
    return hasattr(value, "__cuda_array_interface__")


def _is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def view(
    name: str,
    value: Any,
    streams: dict[int, int] | None = None,
    also: tuple[str, ...] = (),
) -> DeviceArray:
    """The memory of an array for which `is_there`; ``streams``: PyTorch's current ones, as far as known.

    ``also``: the dtypes that it may have beside float32 and float64.

    Raises
    ------
    TypeError
        A dtype, layout or protocol that the kernels do not know.
    """
    if isinstance(value, DeviceArray):
        return value
    if _is_tensor(value):
        return _of_tensor(name, value, {} if streams is None else streams, also)
    if hasattr(value, "__cuda_array_interface__"):
        return _of_interface(name, value, also)
    return _of_dlpack(name, value, also)


_tensor_dtypes: dict[Any, np.dtype[Any]] = {}


def _of_tensor(name: str, tensor: Any, streams: dict[int, int], also: tuple[str, ...]) -> DeviceArray:
    # Of hundreds of gradients a step, so written for speed.
    torch: Any = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_neg():
        raise TypeError(f"{name} is a tensor that is not dense in memory ({tensor.layout}), expected one")
    dtype = _tensor_dtypes.get((tensor.dtype, also))
    if dtype is None:
        told = str(tensor.dtype).removeprefix("torch.")
        dtype = _tensor_dtypes[tensor.dtype, also] = _dtype(name, told, also)
    if not tensor.is_contiguous():
        _require_contiguous(name, False, tensor.stride())
    device = tensor.get_device()
    if device not in streams:  # PyTorch's 0 is the default one
        streams[device] = torch.cuda.current_stream(device).cuda_stream or LEGACY_STREAM
    shape = tuple(tensor.shape)
    return DeviceArray(tensor.data_ptr(), shape, dtype, device, tensor, stream=streams[device])


def _of_interface(name: str, value: Any, also: tuple[str, ...]) -> DeviceArray:
    """https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, versions 2 and 3."""
    told = value.__cuda_array_interface__
    if told.get("mask") is not None:
        raise TypeError(f"{name} is masked, expected an array without a mask")
    dtype, shape = _dtype(name, told["typestr"], also), tuple(map(int, told["shape"]))
    strides = told.get("strides")
    _require_contiguous(name, _is_contiguous(shape, strides, dtype.itemsize), strides)
    address, readonly = told["data"]
    _require_aligned(name, address, dtype)
    if hasattr(value, "__dlpack_device__"):
        device = int(value.__dlpack_device__()[1])
    else:
        device = backends.for_device().launcher.get_device()
    stream = told.get("stream")
    if stream is not None:
        stream = int(stream) or LEGACY_STREAM
    return DeviceArray(int(address), shape, dtype, device, value, stream=stream, readonly=bool(readonly))


class _Tensor(ctypes.Structure):
    """DLTensor of https://github.com/dmlc/dlpack, with which a DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype = ctypes.c_void_p
_pointer_in.argtypes = (ctypes.py_object, ctypes.c_char_p)


def _of_dlpack(name: str, value: Any, also: tuple[str, ...]) -> DeviceArray:
    # The producer makes its work come before what is queued on this stream.
    capsule = value.__dlpack__(stream=LEGACY_STREAM)
    tensor = _Tensor.from_address(_pointer_in(capsule, b"dltensor"))
    kind = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}.get(tensor.code, f"DLPack's {tensor.code}, ")
    told = "bool" if (tensor.code, tensor.bits) == (6, 8) else f"{kind}{tensor.bits}"
    dtype = _dtype(name, told, also)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    _require_contiguous(name, tensor.lanes == 1 and _is_contiguous(shape, strides, 1), strides)
    # The capsule, unless somebody takes it over, gives the memory back when it goes.
    address = (tensor.data or 0) + tensor.byte_offset
    _require_aligned(name, address, dtype)
    return DeviceArray(address, shape, dtype, tensor.device, (capsule, value), stream=LEGACY_STREAM)


def _dtype(name: str, told: str, also: tuple[str, ...]) -> np.dtype[Any]:
    kind = _TYPESTRS.get(told, told)
    allowed = ("float32", "float64", *also)
    if kind in allowed:
        return storage.bfloat16() if kind == "bfloat16" else np.dtype(kind)
    expected = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
    raise TypeError(f"{name} has dtype {told}, expected {expected} in a GPU's memory")


def _is_contiguous(shape: tuple[int, ...], strides: Sequence[int] | None, unit: int) -> bool:
    if strides is None or 0 in shape:
        return True
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != unit:
            return False
        unit *= n
    return True


def _require_contiguous(name: str, contiguous: bool, strides: Any) -> None:
    if not contiguous:
        raise ValueError(
            f"{name} has the strides {tuple(strides)}, expected a C-contiguous array in a GPU's memory"
        )


def _require_aligned(name: str, address: int, dtype: np.dtype[Any]) -> None:
    # A GPU that reads across stops, and nothing of the process can use it any more.
    if address % dtype.itemsize:
        raise ValueError(f"{name} is at the address {address:#x}, expected a multiple of {dtype.itemsize}")


def check_together(names: Sequence[str], params: Sequence[Any], written: bool = False) -> None:
    """All of one GPU, and writeable where that is asked for.

    Raises
    ------
    TypeError
        Arrays of the processor among them.
    ValueError
        Read-only, or on different GPUs.
    """
    first = next(i for i, p in enumerate(params) if isinstance(p, DeviceArray))
    for name, p in zip(names, params, strict=True):
        if not isinstance(p, DeviceArray):
            raise TypeError(
                f"{name} is a {type(p).__name__} in the processor's memory, but {names[first]} is in a "
                "GPU's: expected all in one"
            )
        if p.device != params[first].device:
            raise ValueError(
                f"{name} is on GPU {p.device}, but {names[first]} on {params[first].device}: expected all on "
                "one"
            )
        if written and p.readonly:
            raise ValueError(f"{name} is read-only, expected a writeable array")


def check_parameters(names: Sequence[str], params: Sequence[Any]) -> None:
    """As `check_together`, writeable, and ValueError where they overlap."""
    check_together(names, params, True)
    order = sorted((i for i, p in enumerate(params) if p.size), key=lambda i: params[i].address)
    for i, j in pairwise(order):
        if params[i].address + params[i].nbytes > params[j].address:
            raise ValueError(f"{names[max(i, j)]} overlaps {names[min(i, j)]}, expected separate memory")


def check_updated(name: str, array: DeviceArray, others: Mapping[str, DeviceArray | None]) -> None:
    """ValueError where an array cannot be written, or shares memory with another."""
    if array.readonly:
        raise ValueError(f"{name} is read-only, expected a writeable array")
    for other, memory in others.items():
        if memory is not None and array.size and Memory([memory]).overlaps(array):
            raise ValueError(f"{name} overlaps {other}, expected separate memory")


class Memory:
    """As `_arrays.Memory`, of a GPU: arrays that do not overlap."""

    def __init__(self, arrays: Sequence[DeviceArray]) -> None:
        bounds = sorted((a.address, a.address + a.nbytes) for a in arrays if a.size)
        self._begins, self._ends = [b for b, _ in bounds], [e for _, e in bounds]

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Where each begins, and how many bytes it has."""
        return [(begin, end - begin) for begin, end in zip(self._begins, self._ends, strict=True)]

    def overlaps(self, array: DeviceArray) -> bool:
        i = bisect_left(self._begins, array.address + array.nbytes)
        return i > 0 and self._ends[i - 1] > array.address


class Gradients(NamedTuple):
    """Gradients that have been checked, as steppers take them."""

    addresses: Array
    streams: Sequence[int]  # as `works_of` has them
    queues: Sequence[Queue] = ()

    @classmethod
    def of(cls, arrays: Sequence[DeviceArray]) -> Gradients:
        return cls(np.array([array.address for array in arrays], np.uint64), *works_of(arrays))


def works_of(arrays: Sequence[DeviceArray]) -> tuple[list[int], list[Queue]]:
    """The streams that work on these is queued on, and the queues of those that are our own."""
    streams = dict.fromkeys(array.works_on for array in arrays)
    queues = {id(array.queue): array.queue for array in arrays if array.queue is not None}
    return [stream for stream in streams if stream is not None], list(queues.values())


class TensorFinder:
    """Finds PyTorch's gradients of parameters, which all are tensors, hundreds of them at little cost."""

    def __init__(self, params: Sequence[DeviceArray], written: Memory) -> None:
        self._found: Any = None
        try:
            from . import _native
        except ImportError:
            return
        described = [
            (
                p.owner if _is_tensor(p.owner) else None, p.address, p.shape,
                4 if p.dtype.name == "bfloat16" else 2, 8 * p.dtype.itemsize,
            )
            for p in params
        ]  # fmt: skip
        if params:
            device = _CUDA[0], params[0].device
            self._found = _native.TensorGradients(described, written.pieces, device)

    def find(self, grads: Sequence[Any]) -> Gradients | None:
        """None where `check_gradients` is to look at them."""
        found = None if self._found is None or not _is_tensor(grads[0]) else self._found.find(list(grads))
        if found is None:
            return None
        addresses, stream = found
        return Gradients(addresses, [stream or LEGACY_STREAM])


def check_gradients(
    names: Sequence[str], grads: Sequence[Any], params: Sequence[DeviceArray], written: Memory
) -> list[DeviceArray]:
    """Gradients as their parameters.

    Raises
    ------
    TypeError, ValueError
        The wrong memory, dtype, shape or GPU; overlapping what a step writes; not contiguous and neither
        PyTorch's nor CuPy's, which are copied.
    """
    checked = []
    streams: dict[int, int] = {}
    for name, g, p in zip(names, grads, params, strict=True):
        if not is_there(g):
            raise TypeError(
                f"{name} is a {type(g).__name__} in the processor's memory, expected an array in a GPU's as "
                "its parameter"
            )
        g = view(name, _made_contiguous(g), streams, HALF)
        if g.dtype != p.dtype:
            raise TypeError(f"{name} has dtype {g.dtype}, expected {p.dtype} as its parameter")
        if g.shape != p.shape:
            raise ValueError(f"{name} has shape {g.shape}, expected {p.shape} as its parameter")
        if g.device != p.device:
            raise ValueError(f"{name} is on GPU {g.device}, expected {p.device} as its parameter")
        if g.size and written.overlaps(g):
            raise ValueError(f"{name} overlaps a parameter or an optimizer state")
        checked.append(g)
    return checked


def _made_contiguous(value: Any) -> Any:
    """PyTorch's and CuPy's arrays, copied where they must be; others as they are."""
    if _is_tensor(value):
        dense = value.layout is sys.modules["torch"].strided
        if not dense or (value.is_contiguous() and not value.is_neg()):
            return value
        return value.detach().resolve_neg().contiguous()
    cupy: Any = sys.modules.get("cupy")
    return cupy.ascontiguousarray(value) if cupy is not None and isinstance(value, cupy.ndarray) else value


def check_memory(names: Sequence[str], params: Sequence[DeviceArray]) -> None:
    """ValueError where a parameter's owner has got other memory, as PyTorch's tensors may."""
    for name, p in zip(names, params, strict=True):
        if _is_tensor(p.owner) and (p.owner.data_ptr() != p.address or p.owner.shape != p.shape):
            raise ValueError(f"{name} has been resized or reshaped: make a new optimizer for it")


def zeros_beside(
    queue: Queue, arrays: Sequence[DeviceArray], shapes: Sequence[tuple[int, ...]], dtype: Any
) -> list[DeviceArray]:
    """As `_arrays.zeros_beside`, in a GPU's memory."""
    dtype = np.dtype(dtype)
    begins, end = _arrays.places_beside([a.address for a in arrays], shapes, dtype.itemsize)
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


def placed(queue: Queue | None, array: Any) -> Any:
    """Data of the processor in the memory of a queue's GPU; without a queue, and other data, as they are."""
    return array if queue is None or not isinstance(array, np.ndarray) else uploaded(queue, array)


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
    launcher = backends.for_device().launcher
    number, count = int(index or 0), launcher.device_count()
    if number >= count:
        there = "there is 1 GPU" if count == 1 else f"there are {count} GPUs"
        raise ValueError(f"device is {device!r}, expected at most 'cuda:{count - 1}': {there}")
    return Queue(launcher, number)


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
        return _arrays.as_numpy(name, value)  # which refuses it
    array = view(name, _made_contiguous(value), also=_NUMBERS)
    _check_device(name, array, queue)
    return array.download(queue)


def rows_of(
    array: DeviceArray,
    rows: int,
    dtype: Any,
    order: DeviceArray | None = None,
    where: tuple[Any, Any] | None = None,
) -> DeviceArray:
    """A copy of the first rows, in this order; bytes become ``dtype``.

    ``where``: in a step to be captured, the addresses of what holds the array's address and the order's; the
    rows are those from the queue's position on.
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


def queue_of(params: Sequence[DeviceArray]) -> Queue:
    """A queue for the GPU that these are on: that of our own arrays where all have one."""
    queues = {id(p.queue): p.queue for p in params}
    if len(queues) == 1 and params[0].queue is not None:
        return params[0].queue
    return Queue(backends.for_device().launcher, params[0].device)
