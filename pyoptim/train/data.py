"""Examples with their targets: checked once for a training, and cut into batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..arrays.frames import plain
from ..backends.places import HOST, Place, place_with
from ..runtime.dtypes import Array

_BLOCK = 1 << 22  # elements of sparse rows that are made dense at once


class SparseRows:
    """Examples of which most numbers are 0: the rows of a matrix of SciPy's, in CSR form.

    The compiled engine multiplies their elements alone where the first layer is `Dense` and at most one in 6
    is not 0. Else each mini-batch is made dense.
    """

    def __init__(self, matrix: Any, dtype: np.dtype[Any]) -> None:
        self._matrix = matrix.tocsr().astype(dtype, copy=False)
        self.shape = self._matrix.shape
        self._parts: tuple[Array, tuple[Array, Array]] | None = None

    def __len__(self) -> int:
        return int(self.shape[0])

    def take(self, rows: Array) -> SparseRows:
        """Some of the rows, as they are."""
        return SparseRows(self._matrix[rows], self._matrix.dtype)

    def __getitem__(self, rows: Any) -> Array:
        """Some of the rows, dense."""
        dense: Array = self._matrix[rows].toarray(order="C")
        return dense

    @property
    def is_sparse(self) -> bool:
        """Whether so few elements are not 0 that it is quicker to multiply these alone."""
        return bool(self._matrix.nnz * 24 <= len(self) * self.shape[1])

    def times(self, rows: slice, weight: Array) -> Array:
        """The products of some rows with a matrix of the same dtype."""
        return np.asarray(self._matrix[rows] @ weight)

    def blocks(self) -> Iterator[slice]:
        """Ranges of rows, one after the other, that may be made dense at once."""
        size = max(1, _BLOCK // max(1, self.shape[1]))
        for begin in range(0, len(self), size):
            yield slice(begin, min(begin + size, len(self)))

    def parts(self) -> tuple[Array, tuple[Array, Array]]:
        """The values, their columns, and where each row begins, as the compiled engine takes them."""
        if self._parts is None:
            matrix = self._matrix
            columns = np.ascontiguousarray(matrix.indices, np.int32)
            begins = np.ascontiguousarray(matrix.indptr, np.int64)
            self._parts = np.ascontiguousarray(matrix.data), (columns, begins)
        return self._parts


class Data(NamedTuple):
    """Examples, their targets, and the weights of their losses."""

    x: Any
    y: Any
    weight: Any = None

    def cut(self, count: int) -> tuple[Data, Data]:
        """Split the data into the first ``count`` examples and the others."""
        rest = None if self.weight is None else self.weight[count:]
        first = None if self.weight is None else self.weight[:count]
        return Data(self.x[:count], self.y[:count], first), Data(self.x[count:], self.y[count:], rest)

    def part(self, begin: int, end: int) -> Data:
        """Return the examples [begin, end)."""
        return Data(*(None if array is None else array[begin:end] for array in self))

    def at(self, place: Place) -> Data:
        """Return the same data in another memory."""
        return self if place is HOST else Data(*map(place.upload, self))

    def batches(
        self, size: int | Array, dtype: np.dtype[Any], order: Array | None = None, first: int = 0
    ) -> Iterator[Data]:
        """Yield batches of ``size`` examples, or that end so, from example ``first`` on; x in ``dtype``."""
        return (Data(*batch) for batch in place_with(self.x).batches(self, size, dtype, order, first))


def checked(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    weight: Any = None,
    names: tuple[str, ...] = ("x", "y"),
    may_be_empty: bool = False,
) -> Data:
    """Return checked examples, targets and weights, converted to what a training step takes.

    ``names`` are what messages call them; that of the weights may be left out. ``may_be_empty``: whether
    there may be none, since other ranks have some.
    """
    x_name, y_name, weight_name = *names, *("sample_weight",)[len(names) - 2 :]
    x = model.check_input(x_name, x, keep_bytes=True)
    y, weight = plain(y_name, y), plain(weight_name, weight)
    if len(x) == 0 and not may_be_empty:
        raise ValueError(f"{x_name} is empty, expected at least one example")
    y = model._place.download(y_name, y)
    scalar = as_numpy(y_name, y).ndim == 0
    if scalar or len(y) != len(x):
        size = "a scalar" if scalar else f"{len(y)} targets"
        raise ValueError(f"{y_name} has {size}, expected {len(x)}: one per example of {x_name}")
    shape = model.output_shape(x.shape[1:])
    if len(x):
        y = loss.check_target(y_name, y, len(x), shape, model.dtype)
    else:
        labels = loss.classification and np.ndim(y) == 1
        y = np.zeros(0, np.int64) if labels else np.zeros((0, *shape), model.dtype)
    weight = model._place.download(weight_name, weight)
    return Data(x, y, loss.check_sample_weight(weight_name, weight, len(x), model.dtype))


def mean_loss(total: float, divisor: float) -> float:
    """Return the mean of losses: the sum of each times its divisor, divided by the sum of the divisors.

    The divisors are `nn.Loss.divisor`'s; where all are 0, no example has any weight, and the sum is 0 or NaN.
    """
    return total / divisor if divisor else total


def check_batches(
    model: nn.Sequential,
    x: Array,
    size: int,
    drop_last: bool = False,
    count: int | None = None,
    smallest: int | None = None,
) -> None:
    """Raise ValueError if a batch has too few examples for a layer that takes statistics of it.

    ``count``: how many of the examples are trained on; None for all. ``smallest``: how many the smallest
    batch has, if that does not follow.
    """
    count = len(x) if count is None else count
    if smallest is None:
        smallest = size if drop_last else count % size or size
    cure = ", or drop_last=True, which leaves that batch out" if size > 1 else ""
    for layer, shape in reached(model.layers, x.shape[1:]):
        if layer.takes_statistics(True) and smallest * math.prod(shape[1:]) < 2:
            raise ValueError(
                f"batch_size {size} makes a batch of 1 of {count} examples, which {layer!r} cannot take "
                f"statistics of: expected another batch_size{cure}"
            )


def reached(layers: Iterable[nn.Layer], shape: tuple[int, ...]) -> Iterator[tuple[nn.Layer, tuple[int, ...]]]:
    """Yield each layer that holds arrays, and the shape of an example that reaches it."""
    for layer in layers:
        for chain in layer.chains:
            yield from reached(chain, shape)
        if not layer.chains:
            yield layer, shape
        shape = layer.output_shape(shape)
