"""Epochs over the examples of an estimator: compiled, or step by step where a part is not compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..callbacks import Callback
from ..optim.stepping import change_rules
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..train import engine as compiled
from ..train.data import Data
from ..train.resume import Epoch
from ..train.trainer import Trainer
from ._losses import Objective, WeightPenalty, scaled


class Sums(NamedTuple):
    """Sums over the examples of an epoch: of their losses, as the parameters moved, and of the penalty."""

    loss: float
    penalty: float


class Epochs:
    """Runs epochs of a trainer's model, loss and optimizer.

    Parameters
    ----------
    trainer : Trainer
    objective : Objective
    alpha : float
        The penalty is ``alpha/2 * ||W||^2`` divided by the weight of the batch.
    batch_size : int
    inputs : int
    callbacks : sequence of Callback
    """

    def __init__(
        self,
        trainer: Trainer,
        objective: Objective,
        alpha: float,
        batch_size: int,
        inputs: int,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.trainer, self.objective, self._alpha = trainer, objective, alpha
        self._batch_size, self._callbacks = batch_size, callbacks
        self._backend = dispatch.current().name
        self._made_of = trainer.optimizer, repr(objective.loss), alpha, batch_size, inputs
        self._inputs = inputs
        self._choose()

    def _choose(self) -> None:
        """Choose what runs the epochs of the parts as they are now."""
        model, loss, optimizer = self.trainer.model, self.trainer.loss, self.trainer.optimizer
        change_rules(optimizer)
        self.reason = compiled.why_not(model, loss, optimizer)
        if any(callback.acts_on_batches for callback in self._callbacks):
            self.reason = "a callback acts on every batch"
        self._engine = None
        if self.reason is None:
            penalty = WeightPenalty(l2=self._alpha) if self._alpha else None
            self._engine = compiled.Engine(
                model, loss, optimizer, (self._inputs,), self._batch_size,
                penalty=penalty, mean_factor=self.objective.factor,
            )  # fmt: skip

    def serves(self, optimizer: Any, objective: Objective, *parts: float) -> bool:
        """Whether this was made of the same parts, for no callbacks, so that it runs the next epochs too."""
        same = self._made_of == (optimizer, repr(objective.loss), *parts)
        return same and self._backend == dispatch.current().name and not self._callbacks

    def run(self, data: Data, order: Array | None) -> Sums:
        """Train on every example once, in this order."""
        if self._callbacks:  # which may have changed the parts
            self._choose()
        self.trainer.model.train()
        try:
            if self._engine is None:
                sums = self._run_in_python(data, order)
            else:
                epoch = Epoch(0, {})
                self._engine.run_epoch(data, order, None, epoch, _nothing)
                sums = Sums(epoch.loss, self._engine.penalty)
        finally:
            self.trainer.model.eval()
        self.trainer.optimizer.epoch += 1
        return sums

    def batches(self, data: Data) -> Iterator[Array]:
        """The examples, batch by batch, in their order."""
        return (data.x[begin : begin + self._batch_size] for begin in range(0, len(data.x), self._batch_size))

    def _run_in_python(self, data: Data, order: Array | None) -> Sums:
        loss, penalty, count = 0.0, 0.0, len(data.x)
        for i, begin in enumerate(range(0, count, self._batch_size)):
            end = min(begin + self._batch_size, count)
            rows = slice(begin, end) if order is None else order[begin:end]
            for callback in self._callbacks:
                callback.on_batch_begin(i)
            weight = None if data.weight is None else data.weight[rows]
            value, added, taken = self._step(data.x[rows], data.y[rows], weight)
            if taken:
                loss, penalty = loss + value * (end - begin), penalty + added * (end - begin)
            for callback in self._callbacks:
                callback.on_batch_end(i, {"loss": value})
        return Sums(loss, penalty)

    def _step(self, x: Array, y: Array, weight: Array | None) -> tuple[float, float, bool]:
        """Take a step of the trainer's; returns loss, the penalty in it, and whether the step was taken."""
        total = float(len(x)) if weight is None else float(weight.sum(dtype=np.float64))
        penalty = WeightPenalty.of_mean(self._alpha, total)
        scale = self.objective.factor * len(x) / total if total else 0.0
        self.trainer.penalty = penalty
        step = self.trainer._step(Data(x, y, scaled(weight, scale, x)))
        return step.loss, 0.0 if penalty is None else penalty.last, step.taken


def _nothing(done: int) -> None:
    """What the engine tells about its progress is not wanted."""
