"""What is copied or pickled together goes on sharing memory.

NumPy copies and pickles every array by itself, so views of one memory come back apart: a model's parameters
on one side, an optimizer's on the other. Whoever holds arrays of somebody else's therefore gives `closed` of
them to be copied or pickled, and makes arrays of that with `opened`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..runtime.dtypes import Array
from .memory import address, aligned_zeros
from .tensors import in_place, is_tensor


class Buffer:
    """The memory of a model's parameters.

    Attributes
    ----------
    memory : array
        One vector.
    has_model : bool
        Whether there was ever a model in this memory. There is none in that of a copy to which no model came
        along.
    """

    def __init__(self, memory: Array) -> None:
        self.memory, self.has_model = memory, False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.memory.__array_interface__

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (self.memory,)  # not as a bare array: joblib writes such an array once for each holder


def _copy(memory: Array) -> Buffer:
    made = aligned_zeros(memory.size, memory.dtype)
    made[...] = memory
    return Buffer(made)


class View(NamedTuple):
    """A view of a model's memory."""

    buffer: Buffer
    offset: int  # in bytes
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


def of_model(vector: Array) -> Array:
    """Return the memory of a vector as a model's: views of it stay with the model when both are copied."""
    buffer = buffer_of(vector)
    if buffer is None:
        buffer = Buffer(vector)
        vector = np.asarray(buffer)
    buffer.has_model = True
    return vector


def buffer_of(array: Any) -> Buffer | None:
    """Return the memory of a model in which an array is, or None."""
    owner = getattr(array, "base", None)  # views of views have the first array as their base
    owner = owner.base if type(owner) is np.ndarray else owner
    return owner if isinstance(owner, Buffer) else None


def closed(arrays: Sequence[Any], tensors: Sequence[Any] = ()) -> list[Any]:
    """Return for each array what is to be copied or pickled in its place.

    That is the `View` of a model's parameter, the tensor of which an array is a view, if it is among
    ``tensors``, and else the array itself, or the object that it was made of.
    """
    by_address = {tensor.data_ptr(): tensor for tensor in tensors}
    return [_closed(array, by_address) for array in arrays]


def _closed(array: Any, tensors: dict[int, Any]) -> Any:
    if not isinstance(array, np.ndarray):
        return array
    buffer, begin = buffer_of(array), address(array)
    if buffer is not None:
        return View(buffer, begin - address(buffer.memory), array.shape, array.strides, array.dtype)
    tensor, given = tensors.get(begin), array.base
    if tensor is not None and tuple(tensor.shape) == array.shape:
        return tensor
    of_subclass = isinstance(given, np.ndarray) and type(given) is not np.ndarray
    return given if of_subclass and _is_same(given, array) else array


def _is_same(a: Any, b: Any) -> bool:
    return bool((a.shape, a.strides, a.dtype, address(a)) == (b.shape, b.strides, b.dtype, address(b)))


def opened(values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the arrays that copies of what `closed` returned stand for, and the tensors among these."""
    wholes: dict[int, Array] = {}  # one for each memory, so that views of it are recognised as neighbours
    arrays = []
    for value in values:
        if isinstance(value, View):
            buffer, offset, shape, strides, dtype = value
            whole = wholes.setdefault(id(buffer), np.asarray(buffer))
            arrays.append(np.ndarray(shape, dtype, whole, offset, strides))
        else:
            arrays.append(in_place("params", value))
    return arrays, [value for value in values if is_tensor(value)]


def check_model(names: Sequence[str], arrays: Sequence[Any]) -> None:
    """Raise ValueError where an array was copied from a model's, but not together with the model."""
    for name, array in zip(names, arrays, strict=True):
        buffer = buffer_of(array)
        if buffer is not None and not buffer.has_model:
            raise ValueError(
                f"{name} is a copy of a model's parameter that no model has: copy or pickle the model "
                "together with what updates or averages it, as copy.deepcopy((model, optimizer)), or make "
                "that anew and give it the state_dict() of this one"
            )
