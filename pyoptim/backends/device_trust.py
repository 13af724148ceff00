"""LARS and LAMB on arrays in a GPU's memory: norms and rates stay there, and the host does not wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _arrays
from ..rules import Rule
from . import StepGroup
from .device import (
    ROW_LENGTH,
    SUM_BLOCK,
    Launch,
    Queue,
    Stepper,
    Table,
    chunks_of,
    coefficient_rows,
    tables,
    uploaded,
)

Row = tuple[float, ...]


class _TrustLaunch(Launch):
    """All arrays of one dtype. Their norms give each coefficients of its own, with which it then steps."""

    def __init__(
        self, directed: bool, queue: Queue, rule: Rule, dtype: np.dtype[Any], members: Sequence[Any]
    ) -> None:
        super().__init__(queue, rule, dtype, members)
        self._directed = directed
        params, states = [param for _, _, param, _ in members], [own for _, _, _, own in members]
        blocks = chunks_of(np.array([param.size for param in params], np.int64), SUM_BLOCK)
        firsts = np.searchsorted(blocks["array"], np.arange(len(params) + 1)).astype(np.int64)
        arrays, _ = tables(params, states, range(len(params)))
        self._arrays, self._blocks, self._begins = (uploaded(queue, t) for t in (arrays, blocks, firsts))
        self._count, self._sums = len(params), len(blocks)
        self._squares = queue.allocate(16 * len(blocks))
        self._trusts = Table(queue)
        self._own = queue.allocate(len(params) * ROW_LENGTH * dtype.itemsize)
        self._last = f"step<rule_named::{'sgd' if directed else rule.name}, {self._type}>"
        if directed:
            at = [param.address for param in params], [param.shape for param in params]
            begins, end = _arrays.places_beside(*at, dtype.itemsize)
            self._memory = queue.allocate(end * dtype.itemsize)
            addresses = [self._memory.address + begin * dtype.itemsize for begin in begins]
            self._directions = uploaded(queue, np.array(addresses, np.uint64))

    def step_by_norms(
        self, coefficients: Sequence[Row], trusts: Sequence[Row], factor: int | None, stream: int
    ) -> None:
        """``factor``: as `Launch.step`'s."""

        def launch(kernel: str, blocks: int, *arguments: Any) -> None:
            self._launcher.launch(f"{kernel}<{self._type}>", blocks, arguments, stream)

        groups = self._rows_of(coefficients)
        rows = self._rows.put(coefficient_rows(groups, np.float64), stream)
        trust = self._trusts.put(np.array([trusts[group] for group in self._groups], np.float64), stream)
        arrays, chunks, grads = self._at
        along, squares, own = grads, self._squares.address, self._own.address
        if self._directed:
            along, scaled = self._directions.address, self._scaled.address
            launch("scale_rows", 1, len(groups), rows, None, factor, scaled)
            launch("lamb_direction", self._sums, arrays, self._blocks.address, grads, scaled, trust, along,
                   squares)  # fmt: skip
        else:
            launch("lars_squares", self._sums, arrays, self._blocks.address, grads, squares)
        launch("trust_rows", self._count, self._directed, arrays, self._begins.address, squares, rows, trust,
               factor, own)  # fmt: skip
        arguments = (self._arrays.address, chunks, along, own, self._no_rows)
        self._launcher.launch(self._last, self.blocks, arguments, stream)


class TrustStepper(Stepper):
    """See `pyoptim.backends.reference.TrustStepper`; arrays are `pyoptim._device.DeviceArray`."""

    def __init__(self, groups: Sequence[StepGroup], directed: bool, queue: Queue | None = None) -> None:
        self._directed = directed
        super().__init__(groups, queue)

    def _launch(self, *of: Any) -> _TrustLaunch:
        return _TrustLaunch(self._directed, *of)

    def step(  # type: ignore[override]
        self,
        grads: Sequence[Any],
        coefficients: Sequence[Row],
        trusts: Sequence[Row],
        max_norm: float | None = None,
    ) -> bool:
        """``max_norm``: as `Stepper.step`'s."""
        with self._ordered(grads) as stream:
            factor = self._clip(coefficients, max_norm, stream)
            for launch in self._launches:
                launch.step_by_norms(coefficients, trusts, factor, stream)
        return True
