"""Checks of arrays that users pass: every message names the argument, what came and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy import ndarray

from ..runtime import dispatch
from ..runtime.dtypes import FLOATS, Array, is_parameter_dtype
from .frames import is_frame, numbers
from .gpu import DeviceArray
from .gpu_views import is_on_gpu
from .memory import OverlapFinder, Seen, is_fast, refuse_masked
from .operand import Operand
from .tensors import in_place

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_FLOAT32, _FLOAT64 = FLOATS
_INT64 = np.dtype(np.int64)
_FLOAT32_MAX, _FLOAT64_MAX = (float(np.finfo(dtype).max) for dtype in FLOATS)


def check_operand(name: str, value: Any) -> None:
    """Raise TypeError unless the value is a NumPy array or an `Operand` in a GPU's memory."""
    if not isinstance(value, Operand):
        where = " in a GPU's memory" if is_on_gpu(value) else ""
        raise TypeError(f"{name} is a {type(value).__name__}{where}, expected a NumPy array")


def as_numpy(name: str, value: Any) -> Array:
    """Convert a value to a NumPy array; our own GPU arrays are downloaded, others' are a TypeError.

    So are masked arrays, also in a list, and what NumPy makes no array of. Frames and Series of pandas and
    polars have to hold numbers.
    """
    refuse_masked(name, value)
    if isinstance(value, ndarray):
        return np.asarray(value)
    if is_frame(value):
        return numbers(name, value)
    if not isinstance(value, DeviceArray) and is_on_gpu(value):
        check_operand(name, value)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is a {type(value).__name__}, expected an array: {error}") from error


def check_float_array(name: str, value: Any, ndim: int | tuple[int, ...] | None = None) -> Array:
    """Return a float32 or float64 array of the wanted number of dimensions, made contiguous."""
    if type(value) is ndarray and (ndim is None or value.ndim == ndim):  # the usual case at little cost
        dtype = value.dtype
        if (dtype is _FLOAT32 or dtype is _FLOAT64) and value.flags.carray:
            return value
    here = isinstance(value, ndarray)
    if not here:
        check_operand(name, value)
    refuse_masked(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {value.dtype}, expected float32 or float64")
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if wanted is not None and value.ndim not in wanted:
        names = " or ".join(str(n) for n in wanted)
        raise ValueError(f"{name} has {value.ndim} dimensions {value.shape}, expected {names}")
    return value if not here or is_fast(value) else np.array(value, dtype=value.dtype.type, order="C")


def check_like(name: str, value: Any, shape: tuple[int, ...], dtype: DTypeLike, why: str = "") -> Array:
    """Return the value as a contiguous array, which must have exactly this shape and dtype."""
    if type(value) is ndarray and value.dtype is dtype and value.shape == shape and value.flags.carray:
        return value  # the usual case at little cost
    here = isinstance(value, ndarray)
    if not here:
        check_operand(name, value)
    refuse_masked(name, value)
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


def check_parameters(names: Sequence[str], params: Sequence[Any]) -> None:
    """Check that parameters are writeable float arrays that share no memory.

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


def check_gradients(
    names: Sequence[str], grads: Sequence[Any], params: Sequence[Array], written: OverlapFinder
) -> list[Array]:
    """Return contiguous gradients of their parameters' shapes and dtypes; contiguous ones are not copied.

    ``written`` is all memory that the step writes; a gradient must not share any of it.

    Raises
    ------
    TypeError, ValueError
        The wrong type, dtype or shape; overlapping memory.
    """
    if written.passed.are(grads) and all(map(_is_like, grads, params)):
        return list(grads)
    checked = []
    for name, g, p in zip(names, grads, params, strict=True):
        g = in_place(name, g)
        contiguous = check_like(name, g, p.shape, p.dtype, " as its parameter")
        if g.size and written.overlaps(g):
            raise ValueError(f"{name} overlaps a parameter or an optimizer state")
        checked.append(contiguous)
    if all(map(operator.is_, checked, grads)):
        written.passed = Seen(checked)
    return checked


def is_within(array: Array, low: float, high: float = inf) -> bool:
    """Whether a contiguous array's elements are all finite and from low to high; False also if unknown."""
    dtype = array.dtype
    if dtype is _FLOAT32:
        most = _FLOAT32_MAX
    elif dtype is _FLOAT64:
        most = _FLOAT64_MAX
    elif dtype is _INT64:
        most = 2.0**62
    else:
        return False
    backend = dispatch.current()
    try:
        any_outside = backend.any_outside
    except dispatch.BackendError:  # it is one for GPUs
        return False
    return not any_outside(array, low if low > -most else -most, high if high < most else most)


def _is_like(array: Array, other: Array) -> bool:
    """Whether an array that passed the checks before still has the layout and the type of another."""
    return array.shape == other.shape and array.dtype == other.dtype and array.flags.c_contiguous


def check_finite(name: str, value: Array) -> None:
    """Refuse NaN and infinity, naming the first."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        refuse_where(~np.isfinite(value), name, value, "finite values")


def refuse_where(wrong: Array, name: str, value: Array, expected: str) -> None:
    """Raise ValueError, naming the first, if any element is wrong."""
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}{list(index)} is {value[index]}, expected {expected}")
