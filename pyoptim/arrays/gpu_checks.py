"""Checks of arrays in a GPU's memory; `checks` has those of NumPy arrays."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..runtime.dtypes import Array
from .gpu import DeviceArray, works_of
from .gpu_views import DLPACK_GPU, HALF, is_on_gpu, made_contiguous, view
from .queue import LEGACY_STREAM, Queue
from .tensors import is_tensor


def check_together(names: Sequence[str], params: Sequence[Any], written: bool = False) -> None:
    """Check that all arrays are on one GPU, and are writeable if they will be ``written``.

    Raises
    ------
    TypeError
        Some array is in the processor's memory.
    ValueError
        An array is read-only, or they are on different GPUs.
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
    """Check that arrays are writeable, on one GPU, and do not overlap."""
    check_together(names, params, True)
    order = sorted((i for i, p in enumerate(params) if p.size), key=lambda i: params[i].address)
    for i, j in pairwise(order):
        if params[i].address + params[i].nbytes > params[j].address:
            raise ValueError(f"{names[max(i, j)]} overlaps {names[min(i, j)]}, expected separate memory")


def check_updated(name: str, array: DeviceArray, others: Mapping[str, DeviceArray | None]) -> None:
    """Raise ValueError if an array cannot be written, or shares memory with another."""
    if array.readonly:
        raise ValueError(f"{name} is read-only, expected a writeable array")
    for other, memory in others.items():
        if memory is not None and array.size and DeviceRanges([memory]).overlaps(array):
            raise ValueError(f"{name} overlaps {other}, expected separate memory")


class DeviceRanges:
    """The sorted address ranges of arrays on a GPU, which do not overlap each other."""

    def __init__(self, arrays: Sequence[DeviceArray]) -> None:
        bounds = sorted((a.address, a.address + a.nbytes) for a in arrays if a.size)
        self._begins, self._ends = [b for b, _ in bounds], [e for _, e in bounds]

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Return each array's address and its size in bytes."""
        return [(begin, end - begin) for begin, end in zip(self._begins, self._ends, strict=True)]

    def overlaps(self, array: DeviceArray) -> bool:
        i = bisect_left(self._begins, array.address + array.nbytes)
        return i > 0 and self._ends[i - 1] > array.address


class Gradients(NamedTuple):
    """Checked gradients in the form that steppers take."""

    addresses: Array
    streams: Sequence[int]  # as `works_of` returns them
    queues: Sequence[Queue] = ()

    @classmethod
    def of(cls, arrays: Sequence[DeviceArray] | Gradients) -> Gradients:
        if isinstance(arrays, Gradients):
            return arrays
        return cls(np.array([array.address for array in arrays], np.uint64), *works_of(arrays))


class TensorFinder:
    """Finds PyTorch's gradients of parameters, which all are tensors, hundreds of them at little cost."""

    def __init__(self, params: Sequence[DeviceArray], written: DeviceRanges) -> None:
        self._found: Any = None
        try:
            from ..runtime import _native
        except ImportError:
            return
        described = [
            (
                p.owner if is_tensor(p.owner) else None, p.address, p.shape,
                4 if p.dtype.name == "bfloat16" else 2, 8 * p.dtype.itemsize,
            )
            for p in params
        ]  # fmt: skip
        if params:
            device = DLPACK_GPU[0], params[0].device
            self._found = _native.TensorGradients(described, written.pieces, device)

    def find(self, grads: Sequence[Any]) -> Gradients | None:
        """Return the gradients, or None if `check_gradients` has to look at them."""
        found = None if self._found is None or not is_tensor(grads[0]) else self._found.find(list(grads))
        if found is None:
            return None
        addresses, stream = found
        return Gradients(addresses, [stream or LEGACY_STREAM])


def check_gradients(
    names: Sequence[str], grads: Sequence[Any], params: Sequence[DeviceArray], written: DeviceRanges
) -> list[DeviceArray]:
    """Return gradients of their parameters' shapes, dtypes and GPU.

    Raises
    ------
    TypeError, ValueError
        The wrong memory, dtype, shape or GPU; overlapping what a step writes; not contiguous and neither
        PyTorch's nor CuPy's, which are copied.
    """
    checked = []
    streams: dict[int, int] = {}
    for name, g, p in zip(names, grads, params, strict=True):
        if not is_on_gpu(g):
            raise TypeError(
                f"{name} is a {type(g).__name__} in the processor's memory, expected an array in a GPU's as "
                "its parameter"
            )
        g = view(name, made_contiguous(g), streams, HALF)
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


def check_memory(names: Sequence[str], params: Sequence[DeviceArray]) -> None:
    """Raise ValueError if a parameter has moved to other memory, as a PyTorch tensor may."""
    for name, p in zip(names, params, strict=True):
        if is_tensor(p.owner) and (p.owner.data_ptr() != p.address or p.owner.shape != p.shape):
            raise ValueError(f"{name} has been resized or reshaped: make a new optimizer for it")
