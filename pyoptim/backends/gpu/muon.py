"""Muon on matrices in a GPU's memory: momentum, made orthogonal by matrix products, and a descent along it.

The host queues work and does not wait. Matrix products sum in another order than the processor's, so results
agree with the processor's up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...arrays.queue import Queue
from ...formulas.rules import Rule
from .constants import CHUNK, ROW_LENGTH, blocks_of
from .products import TILE, library_of, product
from .steps import Launch, Stepper, Table, chunks_of, copied_to_gpu, tables

Row = tuple[float, ...]
_MATRICES = np.dtype([(n, "u8") for n in ("x", "next", "gram", "update")] + [("rows", "i8"), ("cols", "i8")])
_LENGTH, _STEPS = 14, 9  # coefficients in a row, and the index of the number of iterations: see muon.hpp
_FACTORS = 4  # index of the coefficients a, b and c in an array's own row: see muon_kernels.cuh
# The multiply-adds of a product up to which matrices go together through our own kernel, and beyond which
# each goes through cuBLASLt: for so many our kernel needs, at an assumed 5 TFLOP/s in float32, about the 3 us
# that a launch costs by itself. A square matrix of 203 rows has as many.
_TOGETHER = 1 << 23


class _MuonLaunch(Launch):
    """All matrices of one dtype: their momentum is made orthogonal, then they descend along it."""

    def __init__(self, queue: Queue, rule: Rule, dtype: np.dtype[Any], members: Sequence[Any]) -> None:
        from ...arrays.gpu import zeros_beside

        params = [param for _, _, param, _ in members]
        shapes = [param.shape for param in params]
        directions = self._directions = zeros_beside(queue, params, shapes, dtype)
        beside = [(i, j, d, own) for (i, j, _, own), d in zip(members, directions, strict=True)]
        super().__init__(queue, rule, dtype, beside)
        self._length = _LENGTH
        self._members = [self._groups.index(group) for _, group, _, _ in members]
        arrays, chunks = tables(params, [()] * len(params), range(len(params)))
        begins = np.searchsorted(chunks["array"], np.arange(len(params) + 1)).astype(np.int64)
        self._params, self._begins = copied_to_gpu(queue, arrays), copied_to_gpu(queue, begins)
        self._partial = queue.allocate(8 * len(chunks))
        self._rows_of_arrays = queue.allocate(len(params) * ROW_LENGTH * dtype.itemsize)
        self._along = Table(queue)
        self._prepare_products(shapes)

    def _prepare_products(self, shapes: Sequence[tuple[int, int]]) -> None:
        library, queue = library_of(self._queue), self._queue
        rows, cols = np.array(shapes, np.int64).T
        small = np.minimum(rows, cols)
        together = np.full(len(shapes), True) if library is None else small * rows * cols <= _TOGETHER
        self._together, self._alone = together, np.flatnonzero(~together).tolist()
        # A matrix of our own kernel has four buffers in a row: x, the next x, the Gram matrix and the update.
        sizes = np.where(together, rows * cols + 2 * small * small, 0) * self._dtype.itemsize
        sizes += -sizes % 16
        self._memory = queue.allocate(int(sizes.sum()))
        matrices = np.zeros(len(shapes), _MATRICES)
        matrices["x"] = [d.address for d in self._directions]
        matrices["next"] = self._memory.address + sizes.cumsum() - sizes
        matrices["gram"] = matrices["next"] + rows * cols * self._dtype.itemsize
        matrices["update"] = matrices["gram"] + small * small * self._dtype.itemsize
        matrices["rows"], matrices["cols"] = rows, cols
        # The addresses of x after an even and after an odd number of iterations.
        self._ends = np.array([matrices["x"], np.where(together, matrices["next"], matrices["x"])])
        self._begin = copied_to_gpu(queue, self._ends[0])
        squares = together * blocks_of(small, TILE) ** 2
        results = together * blocks_of(rows, TILE) * blocks_of(cols, TILE)
        self._matrices = copied_to_gpu(queue, matrices)
        self._tiles = [
            (len(t), copied_to_gpu(queue, t)) for t in (chunks_of(squares, 1), chunks_of(results, 1))
        ]

    def plan(self, steps: Sequence[Sequence[Row]]) -> None:
        super().plan(steps)
        self._iterate(steps[0], self._queue.stream)

    def _iterate(self, coefficients: Sequence[Row], stream: int) -> None:
        """Store how many iterations each matrix takes, and the address of x after them."""
        turns = [int(row[_STEPS]) for row in self._rows_of(coefficients)]
        self._turns = np.array([turns[group] for group in self._members])
        self._at_end = self._along.put(self._ends[self._turns % 2, np.arange(len(self._turns))], stream)

    def step(self, coefficients: Sequence[Row] | None, factor: int | None, stream: int, *more: Any) -> None:
        """Make a step; the arguments are those of `Launch.step`."""
        if coefficients is not None:
            self._iterate(coefficients, stream)

        def launch(kernel: str, blocks: int, *arguments: Any) -> None:
            self._launcher.launch(f"{kernel}<{self._type}>", blocks, arguments, stream)

        first, last = self._directions[0], self._directions[-1]
        self._launcher.fill(first.address, 0, last.address + last.nbytes - first.address, stream)
        exact = self._exact_rows(coefficients, stream)
        scaled = self._scale(exact, factor, stream)
        (arrays, chunks, _), own = self._at, self._rows_of_arrays.address
        self._run_step(self._kernel, (*self._at, scaled, self._no_rows), stream)
        matrices, squares = self._matrices.address, self._partial.address
        launch("sum_of_squares", self.blocks, arrays, chunks, self._begin.address, squares)
        of_groups = (self._begins.address, squares, *exact)
        launch("muon_rows", len(self._turns), len(self._groups), arrays, matrices, *of_groups, own)
        launch("muon_normalize", self.blocks, arrays, chunks, own)
        for turn in range(self._turns[self._together].max(initial=0)):
            for part in range(3):
                blocks, tiles = self._tiles[part // 2]
                launch("muon_product", blocks, part, turn, matrices, tiles.address, own)
        with _all_on(self._queue, stream):
            for i in self._alone:
                self._iterate_alone(i, own + (i * ROW_LENGTH + _FACTORS) * self._dtype.itemsize)
        descent = (self._params.address, chunks, self._at_end, own, self._no_rows)
        self._run_step(f"step<rule_named::sgd, {self._type}>", descent, stream)

    def _iterate_alone(self, i: int, factors: int) -> None:
        """Make matrix i orthogonal by cuBLASLt; ``factors`` is the address of the coefficients a, b and c."""
        d, queue = self._directions[i], self._queue
        rows, columns = d.shape
        wide, n = rows <= columns, min(rows, columns)
        gram, square, moved = d.empty((n, n)), d.empty((n, n)), d.empty(d.shape)
        a, b, c = (factors + k * self._dtype.itemsize for k in range(3))

        def blend(x: Any, by: int, y: Any, of_y: int | None) -> None:
            arguments = (x.size, by, x.address, of_y, y.address)
            queue.launch(f"muon_blend<{self._type}>", blocks_of(x.size, CHUNK), *arguments)

        for _ in range(self._turns[i]):
            product(queue, (d, not wide), (d, wide), gram)
            product(queue, (gram, False), (gram, True), square)
            blend(gram, b, square, c)
            if wide:
                product(queue, (gram, False), (d, False), moved)
            else:
                product(queue, (d, False), (gram, True), moved)
            blend(d, a, moved, None)


@contextmanager
def _all_on(queue: Queue, stream: int) -> Iterator[None]:
    """Make the queue launch kernels on this stream inside the ``with`` block."""
    before, queue.stream = queue.stream, stream
    try:
        yield
    finally:
        queue.stream = before


class MuonStepper(Stepper):
    """See `pyoptim.backends.reference.MuonStepper`; arrays are `pyoptim.arrays.gpu.DeviceArray`."""

    _launch = _MuonLaunch
