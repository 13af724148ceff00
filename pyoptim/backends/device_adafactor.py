"""Adafactor on arrays in a GPU's memory; the host queues and does not wait.

Sums are in double, in another order than the processor's: results are the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import StepGroup
from .device import CHUNK, PART_ROWS, THREADS, TYPES, WARPS, Queue, Stepper, blocks_of

if TYPE_CHECKING:
    from .._device import DeviceArray

Row = tuple[float, ...]


class Options(NamedTuple):
    """Of an array, at a step."""

    rate: float  # the largest relative step
    fresh: float  # the share of the new moments
    eps: tuple[float, float]
    threshold: float
    param_scale: float


class AdafactorStepper(Stepper):
    """Groups have no states; ``states`` are each parameter's, as `tensor_optimizers.Adafactor` has them."""

    def __init__(
        self, groups: Sequence[StepGroup], queue: Queue, states: Sequence[dict[str, DeviceArray]]
    ) -> None:
        super().__init__(groups, queue)
        self._group_of = [j for j, group in enumerate(groups) for _ in group.params]
        self._params, self._states = [p for group in groups for p in group.params], states
        matrices = [_matrices(p) for p in self._params]
        columns = [b * c * blocks_of(r, PART_ROWS) for b, r, c in matrices]
        # Arrays follow each other in order, and share these.
        self._columns = queue.allocate(8 * max(columns, default=0))
        self._means = queue.allocate(8 * max((b for b, _, _ in matrices), default=0))
        self._sums = queue.allocate(16 * max((blocks_of(p.size, CHUNK) for p in self._params), default=0))

    def step(  # type: ignore[override]
        self,
        grads: Sequence[DeviceArray],
        coefficients: Sequence[Row],
        options: Sequence[Options],
        max_norm: float | None = None,
    ) -> bool:
        """``options`` of each array; ``max_norm``: as `Stepper.step`'s."""
        with self._ordered(grads) as stream:
            factor = self._clip(coefficients, max_norm, stream)
            for i, grad in enumerate(grads):
                if grad.size:
                    scale = coefficients[self._group_of[i]][0]
                    self._step_one(i, (grad.address, scale, factor), options[i], stream)
        return True

    def _step_one(self, i: int, grad: tuple[Any, ...], given: Options, stream: int) -> None:
        p, state, launcher = self._params[i], self._states[i], self._queue.launcher
        kind = TYPES[p.dtype]
        batch, rows, cols = _matrices(p)
        blocks, squares = blocks_of(p.size, CHUNK), self._scalars.address
        columns, means, sums = self._columns.address, self._means.address, self._sums.address

        def launch(kernel: str, blocks: int, *arguments: Any) -> None:
            launcher.launch(f"{kernel}<{kind}>", blocks, arguments, stream)

        if "variance" in state:
            row_var, col_var = None, state["variance"].address
            variance = p.size, *grad, given.fresh, col_var
            launch("adafactor_variance", blocks_of(p.size, THREADS), *variance)
        else:
            row_var, col_var = state["row_var"].address, state["col_var"].address
            launch("adafactor_rows", blocks_of(batch * rows, WARPS), batch * rows, cols, *grad, given.fresh,
                   row_var)  # fmt: skip
            threads = batch * cols * blocks_of(rows, PART_ROWS)
            launch("adafactor_columns", blocks_of(threads, THREADS), batch, rows, cols, *grad, columns)
            launch("adafactor_col_var", blocks_of(batch * cols, THREADS), batch * cols, rows, columns,
                   given.fresh, col_var)  # fmt: skip
            launch("adafactor_means", blocks_of(batch, WARPS), batch, rows, row_var, given.eps[0], means)
        factored = p.size, rows, cols, row_var, col_var, means, given.eps[0] ** 2, p.address, *grad
        launch("adafactor_squares", blocks, *factored, sums)
        for k in range(2):
            arguments = (blocks, sums + 8 * blocks * k, 1.0, None, squares + 16 + 8 * k)
            launcher.launch("total<double>", 1, arguments, stream)
        launch("adafactor_step", blocks, *factored, squares + 16, given.rate, given.eps[1], given.threshold,
               given.param_scale)  # fmt: skip


def _matrices(p: DeviceArray) -> tuple[int, int, int]:
    """How many, their rows, their columns; of a vector, nothing is factored."""
    if len(p.shape) < 2:
        return 0, 0, 0
    return math.prod(p.shape[:-2]), p.shape[-2], p.shape[-1]
