"""LARS and LAMB on arrays in a GPU's memory: norms and rates stay on the GPU; the host does not wait."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...arrays.queue import Queue
from ...formulas.rules import Rule
from .. import StepGroup
from .constants import ROW_LENGTH, SUM_BLOCK
from .steps import Launch, Stepper, Table, chunks_of, copied_to_gpu, tables

Row = tuple[float, ...]


class _TrustLaunch(Launch):
    """All arrays of one dtype; each is updated with coefficients that its own norms determine."""

    def __init__(
        self, directed: bool, queue: Queue, rule: Rule, dtype: np.dtype[Any], members: Sequence[Any]
    ) -> None:
        from ...arrays.gpu import zeros_beside

        super().__init__(queue, rule, dtype, members)
        self._directed = directed
        params, states = [param for _, _, param, _ in members], [own for _, _, _, own in members]
        blocks = chunks_of(np.array([param.size for param in params], np.int64), SUM_BLOCK)
        firsts = np.searchsorted(blocks["array"], np.arange(len(params) + 1)).astype(np.int64)
        arrays, _ = tables(params, states, range(len(params)))
        self._arrays, self._blocks, self._begins = (copied_to_gpu(queue, t) for t in (arrays, blocks, firsts))
        self._count, self._sums = len(params), len(blocks)
        self._squares = queue.allocate(16 * len(blocks))
        self._trusts = Table(queue)
        self._own = queue.allocate(len(params) * ROW_LENGTH * dtype.itemsize)
        self._last = f"step<rule_named::{'sgd' if directed else rule.name}, {self._type}>"
        if directed:
            self._beside = zeros_beside(queue, params, [param.shape for param in params], dtype)
            self._directions = copied_to_gpu(queue, np.array([d.address for d in self._beside], np.uint64))

    def step(  # type: ignore[override]
        self, coefficients: Sequence[Row], factor: int | None, stream: int, trusts: Sequence[Row]
    ) -> None:
        """Make a step; ``factor`` is as in `Launch.step`."""

        def launch(kernel: str, blocks: int, *arguments: Any) -> None:
            self._launcher.launch(f"{kernel}<{self._type}>", blocks, arguments, stream)

        exact = self._exact_rows(coefficients, stream)
        trust = self._trusts.put(np.array([trusts[group] for group in self._groups], np.float64), stream)
        arrays, chunks, grads = self._at
        along, squares, own = grads, self._squares.address, self._own.address
        if self._directed:
            along, scaled = self._directions.address, self._scale(exact, factor, stream)
            launch("lamb_direction", self._sums, arrays, self._blocks.address, grads, scaled, trust, along,
                   squares)  # fmt: skip
        else:
            launch("lars_squares", self._sums, arrays, self._blocks.address, grads, squares)
        launch("trust_rows", self._count, self._directed, arrays, self._begins.address, squares, exact[0],
               trust, factor, own)  # fmt: skip
        arguments = (self._arrays.address, chunks, along, own, self._no_rows)
        self._run_step(self._last, arguments, stream)


class TrustStepper(Stepper):
    """See `pyoptim.backends.reference.TrustStepper`; arrays are `pyoptim.arrays.gpu.DeviceArray`."""

    def __init__(self, groups: Sequence[StepGroup], directed: bool, queue: Queue | None = None) -> None:
        self._launch = partial(_TrustLaunch, directed)
        super().__init__(groups, queue)
