"""Muon on matrices in a GPU's memory: momentum, made orthogonal by matrix products, and a descent along it.

The host queues and does not wait. Products are sums, whose order is not the processor's, so results are the
processor's up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..rules import RULES
from . import StepGroup, one_each
from .device import CHUNK, TYPES, Queue, Stepper, blocks_of
from .device_products import product

if TYPE_CHECKING:
    from .._device import DeviceArray

Row = tuple[float, ...]
Iteration = tuple[tuple[float, float, float], int, float]  # coefficients, steps, eps of a group


class MuonStepper(Stepper):
    """Momentum into ``directions``, which are made orthogonal; then ``p = decay * p - rate * direction``.

    As the steps of `pyoptim.tensor_optimizers.Muon` on the processor.
    """

    def __init__(self, groups: Sequence[StepGroup], queue: Queue, directions: Sequence[DeviceArray]) -> None:
        given = iter(directions)
        own = [group._replace(params=[next(given) for _ in group.params]) for group in groups]
        super().__init__(own, queue)
        self._directions = directions
        self._group_of = [j for j, group in enumerate(groups) for _ in group.params]
        params = [p for group in groups for p in group.params]
        descent = StepGroup(RULES["sgd"], params, [()] * len(params))
        self._descent = Stepper(one_each([descent]), queue)

    def step(  # type: ignore[override]
        self,
        grads: Sequence[DeviceArray],
        coefficients: Sequence[Row],
        iterations: Sequence[Iteration],
        descents: Sequence[Row],
        max_norm: float | None = None,
    ) -> bool:
        """``iterations`` are the groups', ``descents`` each array's row; ``max_norm`` as `Stepper.step`'s."""
        for d in self._directions:
            self._queue.clear(d.address, d.nbytes)
        super().step(grads, coefficients, max_norm)
        for d, j in zip(self._directions, self._group_of, strict=True):
            if d.size:
                _make_orthogonal(self._queue, d, *iterations[j])
        from .._device_copies import on_streams_of

        self._descent.step(on_streams_of(self._directions, grads), descents)
        return True


def _make_orthogonal(
    queue: Queue, d: DeviceArray, coefficients: tuple[float, float, float], steps: int, eps: float
) -> None:
    """d becomes ``a d + (b S + c S S) d``, S the smaller of ``d d^T`` and ``d^T d``, again and again."""
    rows, columns = d.shape
    wide, n = rows <= columns, min(rows, columns)
    a, b, c = map(float, coefficients)
    name = TYPES[d.dtype]
    blocks = blocks_of(d.size, CHUNK)
    gram, square = (d.empty((n, n)) for _ in range(2))
    moved = d.empty(d.shape)
    sums = queue.pool.take(8 * (blocks + 1))  # of each chunk; of all
    partial, total = sums.address, sums.address + 8 * blocks

    def blend(x: DeviceArray, by: float, y: DeviceArray, of_y: float) -> None:
        arguments = (x.size, by, x.address, of_y, y.address, x.address)
        queue.launch(f"blend<{name}>", blocks_of(x.size, CHUNK), *arguments)

    queue.launch(f"chunk_squares<{name}>", blocks, d.size, d.address, partial)
    queue.launch("total<double>", 1, blocks, partial, 1.0, None, total)
    queue.launch(f"normalize<{name}>", blocks, d.size, total, float(eps), d.address)
    for _ in range(steps):
        product(queue, (d, not wide), (d, wide), gram)
        product(queue, (gram, False), (gram, True), square)
        blend(gram, b, square, c)
        if wide:
            product(queue, (gram, False), (d, False), moved)
        else:
            product(queue, (d, False), (gram, True), moved)
        blend(d, a, moved, 1.0)
