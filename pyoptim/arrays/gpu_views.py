"""Views of users' arrays in a GPU's memory, without a copy."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runtime import dispatch, dtypes
from .gpu import DeviceArray
from .queue import LEGACY_STREAM
from .tensors import is_tensor

DLPACK_GPU = (2, 13)  # DLPack's numbers for a GPU's memory, and for memory shared with a GPU

# Dtypes that some arrays may have beside float32 and float64.
HALF = ("float16", "bfloat16")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
BYTES = ("uint8",)
LABELS = ("bool", *INTEGERS)
NUMBERS = ("float16", *LABELS)  # the dtypes that targets in NumPy arrays may have
_TYPESTRS = {np.dtype(name).str: name for name in ("float32", "float64", *NUMBERS)}


def is_on_gpu(value: Any) -> bool:
    """Return whether this is an array in a GPU's memory."""
    if isinstance(value, np.ndarray):
        return False
    if isinstance(value, DeviceArray):
        return True
    if is_tensor(value):
        return bool(value.is_cuda)
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) in DLPACK_GPU
    return hasattr(value, "__cuda_array_interface__")


def view(
    name: str,
    value: Any,
    streams: dict[int, int] | None = None,
    also: tuple[str, ...] = (),
) -> DeviceArray:
    """Return a view of an array for which `is_on_gpu` is true.

    ``streams`` caches PyTorch's current stream of each GPU. ``also`` names the dtypes that the array may have
    beside float32 and float64.

    Raises
    ------
    TypeError
        The kernels do not know the array's dtype, layout or protocol.
    """
    if isinstance(value, DeviceArray):
        return value
    if is_tensor(value):
        return _of_tensor(name, value, {} if streams is None else streams, also)
    if hasattr(value, "__cuda_array_interface__"):
        return _of_interface(name, value, also)
    return _of_dlpack(name, value, also)


def view_of_parameter(name: str, value: Any) -> DeviceArray:
    """Return a view of an array to update or average; it may require a gradient or have 16-bit floats."""
    return view(name, value.detach() if hasattr(value, "detach") else value, also=HALF)


_tensor_dtypes: dict[Any, np.dtype[Any]] = {}


def _of_tensor(name: str, tensor: Any, streams: dict[int, int], also: tuple[str, ...]) -> DeviceArray:
    # This runs for each of hundreds of gradients in a step, so it is written for speed.
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
    """Read versions 2 and 3 of https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""
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
        device = dispatch.for_device().launcher.get_device()
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
        return dtypes.bfloat16() if kind == "bfloat16" else np.dtype(kind)
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
    # A GPU faults on a misaligned read, and the process cannot use it any more.
    if address % dtype.itemsize:
        raise ValueError(f"{name} is at the address {address:#x}, expected a multiple of {dtype.itemsize}")


def made_contiguous(value: Any) -> Any:
    """Return PyTorch's and CuPy's arrays contiguous, copied if need be; return others as they are."""
    if is_tensor(value):
        dense = value.layout is sys.modules["torch"].strided
        if not dense or (value.is_contiguous() and not value.is_neg()):
            return value
        return value.detach().resolve_neg().contiguous()
    cupy: Any = sys.modules.get("cupy")
    if cupy is None or not isinstance(value, cupy.ndarray) or value.flags.c_contiguous:
        return value
    return cupy.ascontiguousarray(value)  # it would give an array without dimensions one
