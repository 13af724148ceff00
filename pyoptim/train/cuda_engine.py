"""Training on a GPU: a step is run once, captured once, and from then on launched, for each size of batch.

What differs between steps lies in the GPU's memory, and the step itself moves it on: see `Position` in
``csrc/cuda/kernels/launch.hpp``. So a step costs the host one launch, and it waits once per chunk of about
20 ms. The bits are those of `Trainer`'s own loop on the same GPU.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .. import nn
from ..arrays import gpu, memory
from ..arrays.gpu import DeviceArray
from ..arrays.queue import Pool, Queue
from ..backends.gpu import copies as gpu_copies
from ..backends.gpu.batches import Sums
from ..backends.gpu.constants import PLAN, blocks_of
from ..optim.optimizer import Optimizer
from ..runtime.dtypes import Array
from . import engine as compiled
from .data import Data
from .engine import Advance
from .resume import Epoch
from .weight_noise import WeightNoise, noisy

_CHUNK = 0.02  # seconds of work between two calls of ``advance``, when Ctrl-C is served too
_GRAPHS = 16  # graphs that are kept, one for each size of batch
_COUNTERS = ("step", "num_batches_tracked")  # buffers that every training pass increments


def why_not(model: nn.Sequential, optimizer: Optimizer, trust_lr: bool = False) -> str | None:
    """Return why steps cannot be captured as CUDA graphs, naming the part, or None if they can.

    ``trust_lr``: whether a learning rate that is none of `schedules` may be called before its steps.
    """
    if not any(p.size for p in model.parameters().values()):
        return "the model has no parameters, or all are frozen"
    reason = compiled.why_no_plan(optimizer, trust_lr)
    if reason is None and optimizer.nonfinite != "ignore":
        return f"nonfinite is {optimizer.nonfinite!r}, for which every step waits"
    return reason


class _Graph:
    """A captured step, with the values of the model's counters at the capture."""

    def __init__(self, graph: Any, counters: list[Array]) -> None:
        self.launch, self.counters = graph.launch, counters
        self._at = [int(counter) for counter in counters]

    def steps(self) -> int | None:
        """Return how many steps all counters have advanced since the capture; None if they differ."""
        ahead = {int(counter) - at for counter, at in zip(self.counters, self._at, strict=True)}
        return None if len(ahead) > 1 else ahead.pop() if ahead else 0


class Engine:
    """Trains a model on a GPU by CUDA graphs, where `why_not` returns None.

    Graphs hold no addresses of data. They serve all data of the same dtypes and shapes of an example.

    Attributes
    ----------
    penalty : nn.Penalty or None
    sharpness_aware : float
        As `Trainer`'s.
    """

    def __init__(self, model: nn.Sequential, loss: nn.Loss, optimizer: Optimizer, batch_size: int) -> None:
        assert model._place.queue is not None
        self._queue: Queue = model._place.queue
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._batch_size, self._chunk = batch_size, 1
        self.penalty: nn.Penalty | None = None
        self.sharpness_aware = 0.0
        self._ascent: Any = None
        self._noise: WeightNoise | None = None  # the noise of the next step
        self._noise_step = np.zeros((), np.int64)
        self._sums = Sums(self._queue, loss.classification)
        # This pool serves the steps alone, since memory that a graph writes must have no other user.
        self._pool = Pool(self._queue.allocate)
        self._arrays: tuple[DeviceArray | None, ...] = ()
        self._order: DeviceArray | None = None
        self._where = gpu.empty(self._queue, (4,), np.uint64)  # the addresses of x, y, weight and order
        self._recipe: Any = None

    def is_of(self, model: nn.Sequential, loss: nn.Loss, optimizer: Optimizer, batch_size: int) -> bool:
        """Return whether this was made of these parts, with the model in its present memory."""
        own = (self._model, self._queue, self._loss, self._optimizer)
        given = (model, model._place.queue, loss, optimizer)
        same = all(a is b for a, b in zip(own, given, strict=True))
        return same and batch_size == self._batch_size

    def forget_data(self) -> None:
        """Drop the references to the data, so that their memory can be freed."""
        self._arrays, self._order = (), None

    def run_epoch(
        self, data: Data, order: Array | None, noise: WeightNoise | None, epoch: Epoch, advance: Advance
    ) -> None:
        """Do what the compiled engine's method does; data are in the GPU's memory."""
        self._begin(data, order, noise)
        examples = len(data.x if order is None else order)
        while epoch.done < examples:
            left = examples - epoch.done
            size = min(self._batch_size, left)
            steps = self._run(size, min(self._chunk, left // size), blocks_of(left, size), epoch)
            epoch.done += steps * size
            epoch.counted += steps * size
            advance(steps * size)

    def _begin(self, arrays: Data, order: Array | None, noise: WeightNoise | None) -> None:
        """Take the epoch's data, and drop graphs that no longer suit the model, the optimizer or the data."""
        if order is None:
            self._order = None
        elif self._order is None:
            self._order = gpu.uploaded(self._queue, order)
        else:
            self._order[...] = order
        self._arrays = arrays
        data = (*arrays, self._order)
        addresses = [0 if array is None else array.address for array in data]
        self._queue.put(self._where.address, np.array(addresses, np.uint64))
        kinds = [None if array is None else (array.dtype, array.shape[1:]) for array in data]
        optimizer, model = self._optimizer, self._model
        self._gradients = compiled.gradients_of(model, optimizer)
        self._stepper = optimizer._stepper()
        rules = [rule.name for rule in optimizer._rules]
        # Each of Muon's iterations is some launches, so their number is part of what a graph depends on.
        turns = [group.get("ns_steps") for group in optimizer.param_groups]
        of_optimizer = (self._stepper, *rules, *turns, optimizer.max_grad_norm)
        self._noise = noise
        if noise is not None:
            self._noise_step[...] = noise.step
        added = (noise and noise[:2], self.penalty and (vars(self.penalty).copy(), self.penalty._runs(model)))
        layers = [*map(_recipe_of, model.leaves().values())]
        recipe = (
            kinds,
            _recipe_of(self._loss),
            layers,
            of_optimizer,
            added,
            self.sharpness_aware,
            model._kept is None,
        )
        if recipe != self._recipe:
            self._recipe, self._chunk = recipe, 1
            self._ascent = optimizer._place.ascent(optimizer._params) if self.sharpness_aware else None
            self._graphs: dict[int, _Graph] = {}  # by size of batch
            self._seen: set[int] = set()
        # The optimizer's scalars before and after each step to come, and the coefficients of each.
        self._scalars = [optimizer._scalars]
        self._rows: list[list[tuple[float, ...]]] = []

    def _plan(self, steps: int) -> None:
        """Compute the coefficients of the next steps, as far as they are not known yet."""
        while len(self._rows) < steps:
            scalars, rows = self._optimizer._next_rows(self._scalars[-1])
            self._scalars.append(scalars)
            self._rows.append(rows)

    def _run(self, size: int, steps: int, left: int, epoch: Epoch) -> int:
        """Run at most ``steps`` steps on batches of ``size`` examples, and return how many.

        The first step on batches of a new size is run alone, and captured the next time. ``left`` is the
        number of steps that the epoch has left.
        """
        started = time.perf_counter()
        graph = self._graphs.get(size)
        ahead = None if graph is None else graph.steps()
        if size in self._seen and ahead is None:
            graph, ahead = self._captured(size), 0
        if graph is None:
            steps = 1
        queue = self._queue
        self._plan(steps)
        self._stepper.plan(self._gradients, self._rows[:steps])
        self._sums.begin(ahead or 0, epoch.done, (epoch.loss, epoch.divisor), epoch.correct)
        try:
            if graph is None:  # this step also makes everything that is made at its first use
                self._step(size)
                self._seen.add(size)
            else:
                with queue.on(queue.stream):
                    for _ in range(steps):
                        graph.launch(queue.stream)
                self._plan(min(2 * steps, left))  # while the GPU works
        finally:  # Ctrl-C comes between two launches: what has been launched is counted
            now = self._sums.read()
            done = int(now["row"])
            self._optimizer._scalars = self._scalars[done]
            del self._scalars[:done], self._rows[:done]
            for counter in () if graph is None else graph.counters:
                counter += done
        epoch.loss, epoch.divisor = float(now["loss"]), float(now["divisor"])
        epoch.correct = int(now["right"])
        if graph is not None and size == self._batch_size:
            seconds = max(time.perf_counter() - started, 1e-6)
            self._chunk = max(1, min(int(steps * _CHUNK / seconds), 4 * self._chunk, PLAN))
        return steps

    def _captured(self, size: int) -> _Graph:
        buffers = self._model._named("buffers").items()
        counters = [value for name, value in buffers if name.rpartition(".")[2] in _COUNTERS]
        counters.append(self._noise_step)
        before = [int(counter) for counter in counters]
        try:
            if len(self._graphs) == _GRAPHS:  # each length of data has a last batch of another size
                del self._graphs[next(n for n in self._graphs if n != self._batch_size)]
            graph = self._queue.capture(lambda: self._step(size))
            moved = [c for c, was in zip(counters, before, strict=True) if int(c) != was]
        finally:  # a capture runs nothing, so nothing may be counted
            for counter, was in zip(counters, before, strict=True):
                counter[...] = was
        self._graphs[size] = _Graph(graph, moved)
        return self._graphs[size]

    def _step(self, size: int) -> None:
        """Queue the kernels of a step like `Trainer._step` on the batch at the current position."""
        queue, model = self._queue, self._model
        queue.position, pool = self._sums.address, queue.pool
        queue.pool = self._pool
        try:
            noise = self._noise and self._noise._replace(step=int(self._noise_step))
            self._noise_step += noise is not None
            with queue.aside():
                y, weight = self._batch(1, size), self._batch(2, size)
                if self._optimizer.max_grad_norm is None:
                    self._stepper.ready()
            before = model._copied_buffers() if self._ascent else {}
            with noisy(model, noise):
                x = self._batch(0, size)
                output, loss = self._backpropagated(x, y, weight)
                divisor = self._loss.divisor(output, y)
                self._sums.count(output, y)
                if self._ascent:
                    self._backpropagate_ascended(before, x, y, weight)
            self._stepper.step(self._gradients, None, self._optimizer.max_grad_norm)
            if model._kept is not None:
                model._hold()
            self._sums.finish(size, loss, divisor)
        finally:
            queue.position, queue.pool = None, pool

    def _backpropagated(self, x: Any, y: Any, weight: Any) -> tuple[Any, Any]:
        """Queue what `Trainer._backpropagated` does."""
        queue, model = self._queue, self._model
        output = model._forward(x)
        gradient = memory.empty_like(output)
        queue.join()
        loss: Any = self._loss.evaluate(output, y, gradient, weight)
        model._backward(gradient)
        queue.join()
        if self.penalty is not None:
            loss = self.penalty._added(model, loss)
        return output, loss

    def _backpropagate_ascended(self, before: dict[str, Any], x: Any, y: Any, weight: Any) -> None:
        """Replace the gradients by those uphill; ``before`` has the buffers as they were before a step."""
        model = self._model
        after, kept = model._copied_buffers(), model.flat_parameters.copy()
        model._restore_buffers(before)
        self._ascent.move(self._gradients, self.sharpness_aware, False)
        self._backpropagated(x, y, weight)
        model.flat_parameters[...] = kept
        model._restore_buffers(after)

    def _batch(self, which: int, size: int) -> Any:
        """Return a batch of x, y or weight, whose address is read from `_where` when the step runs."""
        array, first = self._arrays[which], self._where.address
        if array is None:
            return None
        where = (first + 8 * which, None if self._order is None else first + 8 * len(self._arrays))
        return gpu_copies.rows_of(array, size, self._model.dtype, where=where)


def _recipe_of(part: Any) -> tuple[Any, ...]:
    """Return the options and arrays of a layer or a loss that a graph depends on."""
    values = [getattr(part, name) for name in part.arguments]
    values = [(v.tobytes(), v.dtype.str) if isinstance(v, np.ndarray) else v for v in values]
    seed = getattr(part, "buffers", {}).get("seed")
    return (type(part), getattr(part, "trainable", None), *values, None if seed is None else int(seed))
