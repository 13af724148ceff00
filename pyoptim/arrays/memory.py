"""Allocation and views of arrays, in the processor's memory or beside one in a GPU's."""

from __future__ import annotations

import math
import operator
import sys
import weakref
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy import empty as new
from numpy import ndarray

from ..runtime import dispatch
from ..runtime.dtypes import Array

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


def refuse_masked(name: str, value: Any) -> None:
    """Raise TypeError if an array, or one in a list, is masked: kernels would read what the mask hides."""
    ma: Any = sys.modules.get("numpy.ma")
    if ma is None:
        return
    kinds = set(map(type, value)) if isinstance(value, list | tuple) else {type(value)}
    if any(issubclass(kind, ma.MaskedArray) for kind in kinds):
        which = "has" if isinstance(value, list | tuple) else "is"
        raise TypeError(f"{name} {which} a masked array, expected one without a mask, such as its filled(0)")


def aligned_zeros(size: int, dtype: DTypeLike) -> Array:
    """A zeroed vector that begins on a cache line, so that vector loads never cross one."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dtype.itemsize].view(dtype)


def empty(shape: tuple[int, ...], like: Any) -> Array:
    """Return an uninitialised array in the memory (processor or GPU) and of the dtype of ``like``."""
    if isinstance(like, ndarray):
        return new(shape, like.dtype)
    return cast(Array, like.empty(shape))


def empty_like(array: Any) -> Array:
    """Return an uninitialised contiguous array of another's shape and dtype, in the same memory."""
    if isinstance(array, ndarray):
        return new(array.shape, array.dtype)
    return cast(Array, array.empty(array.shape))


def as_rows(array: Array) -> Array:
    """Return a contiguous array with elements as a matrix of the same last dimension."""
    return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])


def as_channels(x: Any) -> Any:
    """Return a contiguous array (N, C, *spatial) as (N, C, space)."""
    shape = x.shape
    return x.reshape(shape[0], shape[1], 1 if len(shape) == 2 else math.prod(shape[2:]))


def constant(array: Any, like: Any) -> Any:
    """Return a small array that never changes, in the memory of another."""
    here = isinstance(like, ndarray) or not isinstance(array, ndarray)
    return array if here else like.constant(array)


def add(a: Any, b: Any) -> Array:
    """Return ``a + b`` of arrays in the processor's or in a GPU's memory."""
    if isinstance(a, ndarray):
        return cast(Array, a + b)
    y = empty_like(a)
    dispatch.of(a).add(a, b, y)
    return y


def affine(x: Any, scale: float, shift: float | None = None) -> Array:
    """Return ``scale * x + shift`` of an array in the processor's or in a GPU's memory."""
    if isinstance(x, ndarray):
        y: Array = x * x.dtype.type(scale)
        return y if shift is None else y + x.dtype.type(shift)
    y = empty_like(x)
    dispatch.of(x).affine(x, scale, -0.0 if shift is None else shift, y)  # adding -0 changes no bit
    return y


def zeros_beside(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]], dtype: DTypeLike) -> list[Array]:
    """Return zeroed arrays in one buffer, each at the same offset into a cache line as its counterpart.

    Vector stores to both arrays can then avoid crossing cache lines. Arrays that are consecutive in memory
    get consecutive counterparts.
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
    """Return where `zeros_beside` puts each array in its buffer, and the buffer's length, in elements."""
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
        size = math.prod(shape)
        pieces.append(buffer[begin : begin + size].reshape(shape))
        begin += size
    return pieces


def follows(first: Array, second: Array) -> bool:
    """Return whether the second array begins where the first ends, in the memory of one owner."""
    return joined([first, second]) is not None


def joined(arrays: Sequence[Array]) -> Array | None:
    """Return contiguous arrays that follow each other in the memory of one owner as one vector, else None."""
    first = arrays[0]
    if len(arrays) == 1:
        return first.reshape(-1)
    owner = first.base
    if type(owner) is not ndarray or not owner.flags.c_contiguous:
        return None
    if first.flags.writeable and not owner.flags.writeable:  # made so after the arrays were
        return None
    begin = end = address(first)
    for array in arrays:
        if array.base is not owner or array.dtype != first.dtype or address(array) != end:
            return None
        end += array.nbytes
    return ndarray(((end - begin) // first.itemsize,), first.dtype, owner, begin - address(owner))


def address(array: Array) -> int:
    """Return where an array's memory begins, in as short a time as NumPy allows."""
    return int(array.__array_interface__["data"][0])


class Seen:
    """Recognises arrays that it was made of, without keeping them."""

    def __init__(self, arrays: Sequence[Array] = ()) -> None:
        self._references = [weakref.ref(array) for array in arrays]

    def are(self, arrays: Sequence[Any]) -> bool:
        """Return whether these are the same objects."""
        seen = [reference() for reference in self._references]
        return len(seen) == len(arrays) and all(map(operator.is_, arrays, seen))


def is_fast(array: Array) -> bool:
    """Return whether the kernels can read this memory as it is."""
    return bool(array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative)


class OverlapFinder:
    """The address ranges of some arrays, sorted, so that overlaps are found without comparing each.

    Attributes
    ----------
    passed : Seen
        Arrays that were last found to be contiguous and to overlap none of them.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = sorted((a for a in arrays if a.size), key=np.lib.array_utils.byte_bounds)
        bounds = [np.lib.array_utils.byte_bounds(a) for a in self._arrays]
        self._begins = [begin for begin, _ in bounds]
        self._reach = list(accumulate((end for _, end in bounds), max))  # running maxima
        self.passed = Seen()

    def overlaps(self, array: Array) -> bool:
        begin, end = np.lib.array_utils.byte_bounds(array)
        i = bisect_left(self._begins, end)
        while i > 0 and self._reach[i - 1] > begin:
            i -= 1
            if np.shares_memory(array, self._arrays[i]):
                return True
        return False
