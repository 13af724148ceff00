"""Checks of what users pass: every message names the argument, what came and what was expected."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np

# Used for every array: layers of few elements would see the look-up in the module.
from numpy import empty as new
from numpy import ndarray
from numpy.typing import DTypeLike, NDArray

from . import backends

Array = NDArray[Any]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def aligned_zeros(size: int, dtype: DTypeLike) -> Array:
    """A zeroed vector that begins on a cache line, so that vector loads never cross one."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dtype.itemsize].view(dtype)


def empty(shape: tuple[int, ...], like: Any) -> Array:
    """An array with any values, of the dtype and in the memory (the processor's or a GPU's) of another."""
    if isinstance(like, ndarray):
        return new(shape, like.dtype)
    return cast(Array, like.empty(shape))


def empty_like(array: Any) -> Array:
    """As `empty`, of the same shape; contiguous."""
    if isinstance(array, ndarray):
        return new(array.shape, array.dtype)
    return cast(Array, array.empty(array.shape))


def constant(array: Any, like: Any) -> Any:
    """A small array that never changes, in the memory of another."""
    here = isinstance(like, ndarray) or not isinstance(array, ndarray)
    return array if here else like.queue.constant(array)


def add(a: Any, b: Any) -> Any:
    """``a + b``, in either memory."""
    if isinstance(a, ndarray):
        return a + b
    y = a.empty(a.shape)
    backends.of(a).add(a, b, y)
    return y


def affine(x: Any, scale: float, shift: float | None = None) -> Any:
    """``scale * x + shift``, in either memory."""
    if isinstance(x, ndarray):
        y = x * x.dtype.type(scale)
        return y if shift is None else y + x.dtype.type(shift)
    y = x.empty(x.shape)
    backends.of(x).affine(x, scale, -0.0 if shift is None else shift, y)  # -0: what changes no bit
    return y


def zeros_beside(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]], dtype: DTypeLike) -> list[Array]:
    """Zeroed arrays of these shapes, in one buffer, each as far into a cache line as the array beside it.

    So vector stores to both can avoid crossing lines. Arrays that are consecutive in memory get
    consecutive ones.
    """
    dtype = np.dtype(dtype)
    begins, end = places_beside([array.ctypes.data for array in arrays], shapes, dtype.itemsize)
    buffer = aligned_zeros(end, dtype)
    return [
        buffer[begin : begin + math.prod(shape)].reshape(shape)
        for begin, shape in zip(begins, shapes, strict=True)
    ]


def places_beside(
    addresses: Sequence[int], shapes: Sequence[tuple[int, ...]], itemsize: int
) -> tuple[list[int], int]:
    """Where `zeros_beside` puts each array in its buffer, and how long that is; in elements."""
    begins, end = [], 0
    for address, shape in zip(addresses, shapes, strict=True):
        end += (address // itemsize - end) % (64 // itemsize)
        begins.append(end)
        end += math.prod(shape)
    return begins, end


def views(buffer: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Consecutive pieces of a vector, in the given shapes."""
    pieces, begin = [], 0
    for shape in shapes:
        size = int(np.prod(shape, dtype=np.int64))
        pieces.append(buffer[begin : begin + size].reshape(shape))
        begin += size
    return pieces


def is_fast(array: Array) -> bool:
    """Whether the kernels can read this memory as it is."""
    return bool(array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative)


def check_operand(name: str, value: Any) -> None:
    """TypeError unless what is no NumPy array is one in a GPU's memory that a function of `ops` works on."""
    from . import _device, _device_ops  # which import this

    if not isinstance(value, _device_ops.Operand):
        where = " in a GPU's memory" if _device.is_there(value) else ""
        raise TypeError(f"{name} is a {type(value).__name__}{where}, expected a NumPy array")


def as_numpy(name: str, value: Any) -> Array:
    """What NumPy makes an array of; our own of a GPU's memory are copied, TypeError for others there."""
    if isinstance(value, ndarray):
        return np.asarray(value)
    from . import _device  # which imports this

    if not isinstance(value, _device.DeviceArray) and _device.is_there(value):
        check_operand(name, value)
    return np.asarray(value)


def check_float_array(name: str, value: Any, ndim: int | tuple[int, ...] | None = None) -> Array:
    """A float32 or float64 array of the wanted number of dimensions, made contiguous."""
    here = isinstance(value, ndarray)
    if not here:
        check_operand(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {value.dtype}, expected float32 or float64")
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if wanted is not None and value.ndim not in wanted:
        names = " or ".join(str(n) for n in wanted)
        raise ValueError(f"{name} has {value.ndim} dimensions {value.shape}, expected {names}")
    return value if not here or is_fast(value) else np.array(value, dtype=value.dtype.type, order="C")


def in_place(name: str, value: Any) -> Any:
    """The memory of a tensor that speaks DLPack, as a NumPy array; all else as it is.

    Raises
    ------
    TypeError
        A tensor that is not in the processor's memory, or not dense.
    """
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        return value
    if getattr(value, "requires_grad", False):
        value = value.detach()
    try:
        device, _ = value.__dlpack_device__()
        if device != 1:  # kDLCPU
            raise BufferError(f"it is on DLPack's device {int(device)}")
        torch: Any = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor):
            return np.from_dlpack(value)
        # numpy() and no capsule: PyTorch then refuses to resize the memory under us, and lazy signs too.
        if value.dtype != torch.bfloat16:
            return value.numpy()
        # NumPy has no bfloat16 of its own: its bits travel as integers.
        from .storage import bfloat16

        return value.view(torch.int16).numpy().view(bfloat16())
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = type(value).__name__
        raise TypeError(
            f"{name} is a {kind} that NumPy cannot share: {error}; expected a dense CPU tensor"
        ) from error


def tensors_among(params: Any) -> list[Any]:
    """PyTorch's tensors among an array, or a sequence or mapping of arrays."""
    torch: Any = sys.modules.get("torch")
    if torch is None or isinstance(params, np.ndarray):
        return []
    values = params.values() if isinstance(params, Mapping) else params
    values = values if isinstance(params, Mapping | list | tuple) else [values]
    return [value for value in values if isinstance(value, torch.Tensor)]


def tell_autograd(tensors: list[Any]) -> None:
    """Let PyTorch notice that the memory of tensors was written: what it saved of them is out of date."""
    if tensors:
        sys.modules["torch"].autograd.graph.increment_version(tensors)


def check_like(name: str, value: Any, shape: tuple[int, ...], dtype: DTypeLike, why: str = "") -> Array:
    """A contiguous array of exactly this shape and dtype."""
    here = isinstance(value, ndarray)
    if not here:
        check_operand(name, value)
    if value.dtype != dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, expected {np.dtype(dtype)}{why}")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}, expected {shape}{why}")
    if not here:
        return cast(Array, value)
    return np.asarray(value) if is_fast(value) else np.array(value, dtype=np.dtype(dtype), order="C")


def _overlaps_itself(array: Array) -> bool:
    """Whether two indices may share an address: exact for every array made by slicing."""
    extent = 0
    steps = sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1)
    for stride, n in steps:
        if stride < extent + array.itemsize:
            return True
        extent += stride * (n - 1)
    return False


def is_parameter_dtype(dtype: np.dtype[Any]) -> bool:
    """float32, float64, float16, or the bfloat16 that ml_dtypes adds to NumPy."""
    return dtype in FLOATS or dtype == np.float16 or dtype.name == "bfloat16"


def check_parameters(names: Sequence[str], params: Sequence[Any]) -> None:
    """Parameters: writeable float arrays that share no memory.

    Raises
    ------
    TypeError
        Not a NumPy array, or neither float32 nor float64 in native byte order.
    ValueError
        Read-only, or overlapping itself or another parameter.
    """
    for name, p in zip(names, params, strict=True):
        if not isinstance(p, np.ndarray):
            raise TypeError(f"{name} is a {type(p).__name__}, expected a NumPy array")
        if not is_parameter_dtype(p.dtype):
            raise TypeError(f"{name} has dtype {p.dtype}, expected float32, float64, float16 or bfloat16")
        if not p.flags.writeable:
            raise ValueError(f"{name} is read-only, expected a writeable array")
        if p.size and _overlaps_itself(p):
            raise ValueError(f"{name} overlaps itself (strides {p.strides}), expected distinct elements")
    bounds = [np.lib.array_utils.byte_bounds(p) for p in params]
    live = sorted((i for i, p in enumerate(params) if p.size), key=lambda i: bounds[i])
    reach: list[int] = []  # earlier arrays that end beyond where this one begins
    for i in live:
        reach = [j for j in reach if bounds[j][1] > bounds[i][0]]
        for j in reach:
            if np.shares_memory(params[i], params[j]):
                raise ValueError(f"{names[i]} overlaps {names[j]}, expected separate memory")
        reach.append(i)


class Memory:
    """Where some arrays lie: finds those that another overlaps without asking each."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = sorted((a for a in arrays if a.size), key=np.lib.array_utils.byte_bounds)
        bounds = [np.lib.array_utils.byte_bounds(a) for a in self._arrays]
        self._begins = [begin for begin, _ in bounds]
        self._reach = list(accumulate((end for _, end in bounds), max))  # of all up to here

    def overlaps(self, array: Array) -> bool:
        begin, end = np.lib.array_utils.byte_bounds(array)
        i = bisect_left(self._begins, end)
        while i > 0 and self._reach[i - 1] > begin:
            i -= 1
            if np.shares_memory(array, self._arrays[i]):
                return True
        return False


def check_gradients(
    names: Sequence[str], grads: Sequence[Any], params: Sequence[Array], written: Memory
) -> list[Array]:
    """Gradients as their parameters, contiguous: what already is is passed through.

    ``written`` is all memory that the step writes; a gradient must not share any of it.

    Raises
    ------
    TypeError, ValueError
        The wrong type, dtype or shape; overlapping memory.
    """
    checked = []
    for name, g, p in zip(names, grads, params, strict=True):
        g = in_place(name, g)
        contiguous = check_like(name, g, p.shape, p.dtype, " as its parameter")
        if g.size and written.overlaps(g):
            raise ValueError(f"{name} overlaps a parameter or an optimizer state")
        checked.append(contiguous)
    return checked


def check_finite(name: str, value: Array) -> None:
    """Refuse NaN and infinity, naming the first."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ValueError(f"{name}{list(index)} is {value[index]}, expected finite values")
