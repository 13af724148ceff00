"""The compiled training engine: whole epochs in C++, where every part is compiled.

The engine is handed the coefficients of the steps to come, in chunks of about 20 ms of work: so schedules may
be any function of the step, and Ctrl-C and the progress bar are served between chunks. The bits are those of
`Trainer`'s own loop.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import nn
from ..arrays.memory import is_fast
from ..nn.layers import walk
from ..nn.prediction import described
from ..optim import stepping
from ..optim.optimizer import Optimizer
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import is_number
from ..schedules import Schedule
from .data import Data, SparseRows
from .resume import Epoch
from .weight_noise import WeightNoise

_CHUNK = 0.02  # seconds of work between two calls of ``advance``, when Ctrl-C is served too
Advance = Callable[[int], None]  # is told how many examples more have been trained on
_AHEAD = 64  # steps that are planned at once for short epochs
_MOST_BATCHES = 1 << 20  # between two calls of ``advance``
_HOGWILD_BATCH = 16  # larger batches train faster when threads share one


def gradients_of(model: nn.Sequential, optimizer: Optimizer) -> list[Array]:
    """Return for each parameter of the optimizer the view of the model's gradients that belongs to it.

    Raises
    ------
    ValueError
        The parameters are not the memory of the model's layers that are not frozen, each element exactly
        once.
    """
    flat, pieces = model.flat_parameters, []
    covered, start = np.zeros(flat.size, np.bool_), _address(flat)
    for name, p in optimizer.named_parameters().items():
        offset = _address(p) - start
        begin = offset // flat.dtype.itemsize
        if type(p) is not type(flat):
            raise ValueError(
                f"optimizer updates other arrays: {name} is not where the model is, on {model.device!r}, "
                "expected it to be made on model.parameters() after model.to()"
            )
        if p.size == 0:
            begin = 0
        elif p.dtype != flat.dtype or not _is_whole(p) or not 0 <= offset <= flat.nbytes - p.nbytes:
            raise ValueError(
                f"optimizer updates other arrays: {name} is not the model's, expected it to be made on "
                "model.parameters() or model.flat_parameters, after model.to()"
            )
        pieces.append(model.flat_gradients[begin : begin + p.size].reshape(p.shape))
        covered[begin : begin + p.size] = True
    begin = 0
    for prefix, layer in model.leaves().items():
        for name, p in layer.parameters.items():
            updated = covered[begin : begin + p.size]
            begin += p.size
            if layer.trainable and not updated.all():
                raise ValueError(
                    f"optimizer does not update {prefix + name!r}: expected it to be made on all of "
                    "model.parameters(), and after layers were thawed"
                )
            if not layer.trainable and updated.any():
                raise ValueError(
                    f"optimizer updates {prefix + name!r}, which is frozen: expected it to be made on "
                    "model.parameters(), and after layers were frozen"
                )
    return pieces


def _address(array: Any) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.address)


def _is_whole(array: Any) -> bool:
    return not isinstance(array, np.ndarray) or is_fast(array)


def why_not(model: nn.Sequential, loss: nn.Loss, optimizer: Optimizer, trust_lr: bool = False) -> str | None:
    """Return why the engine cannot train this, naming the part, or None if it can.

    ``trust_lr``: whether a learning rate that is none of `schedules` may be called before its steps.
    """
    reason = why_no_kernels(model, loss)
    if reason is not None:
        return reason
    if not any(p.size for p in model.parameters().values()):
        return "the model has no parameters, or all are frozen"
    if optimizer._kind != "Stepper":
        return f"{type(optimizer).__name__} is no elementwise optimizer"
    return why_no_plan(optimizer, trust_lr)


def why_no_kernels(model: nn.Sequential, loss: nn.Loss) -> str | None:
    """Return why compiled code cannot run the model and the loss, naming the part, or None if it can."""
    backend = dispatch.current().name
    if backend != "native":
        return f"the {backend} backend is in force"
    from ..runtime import _native

    layers, losses = _native.compiled_kinds()
    parts = [*walk("layers", model.layers), ("the loss", loss)]
    for label, part in parts:
        name = type(part).__name__
        known = losses if part is loss else layers
        if name not in known or getattr(nn, name, None) is not type(part):
            return f"{label} is a {name}, which has no compiled form"
    return None


def why_no_plan(optimizer: Optimizer, trust_lr: bool) -> str | None:
    """Return why the coefficients of later steps cannot be computed ahead, or None if they can."""
    kind = type(optimizer)
    if any(getattr(kind, name) is not getattr(Optimizer, name) for name in ("step", "_apply", "_row")):
        return f"the steps of {kind.__name__} are more than rows of coefficients"
    for group in optimizer.param_groups:
        if callable(group["lr"]) and not isinstance(group["lr"], Schedule) and not trust_lr:
            return "lr is a function of your own, which may look at more than the step"
    if optimizer._is_packed:
        return "the optimizer keeps parameters or states in fewer bits"
    if optimizer.accumulate > 1:
        return "the optimizer accumulates gradients"
    if optimizer.average is not None:
        return "the optimizer carries an average"
    return None


def why_no_hogwild(model: nn.Sequential, optimizer: Optimizer, batch_size: int) -> str | None:
    """Return why threads cannot train without locks what `why_not` returns None for, or None if they can."""
    if batch_size > _HOGWILD_BATCH:
        return f"batch_size is {batch_size}, expected at most {_HOGWILD_BATCH}"
    if optimizer.max_grad_norm is not None:
        return f"max_grad_norm is {optimizer.max_grad_norm!r}, expected None"
    if optimizer.nonfinite != "ignore":
        return f"nonfinite is {optimizer.nonfinite!r}, expected 'ignore'"
    for rule in optimizer._rules:
        if len(rule.states) > 1:
            # Adam's m of one thread beside the v = 0 of another divides by eps: training does not recover.
            return (
                f"{type(optimizer).__name__} keeps {len(rule.states)} states a parameter, of which threads "
                "may leave a mixture; expected at most one, as in SGD, Adagrad, RMSprop and Lion"
            )
    if model._kept is not None:
        return "the model was pruned, and what was has to be set to 0 after each step"
    for label, layer in walk("layers", model.layers):
        if layer.buffers:  # threads would mix their updates of the buffers
            kept = ", ".join(layer.buffers)
            return f"{label} is a {type(layer).__name__}, which keeps {kept}; expected parameters alone"
    return None


class Engine:
    """Runs epochs of a model, its loss and its optimizer, where `why_not` returns None.

    With ``hogwild`` threads do not wait for each other, which needs `why_no_hogwild` to return None too.
    With ``mean_factor`` a batch's loss is not the loss's own mean, but the sum of factor * weight * loss,
    plus the penalty, both divided by the sum of the weights. ``sharpness_aware`` is `Trainer`'s, ``exchange``
    a `ranks.Exchange`.
    """

    def __init__(
        self,
        model: nn.Sequential,
        loss: nn.Loss,
        optimizer: Optimizer,
        shape: tuple[int, ...],
        batch_size: int,
        hogwild: bool = False,
        penalty: nn.Penalty | None = None,
        mean_factor: float | None = None,
        sharpness_aware: float = 0.0,
        exchange: Callable[[float, float], float] | None = None,
    ) -> None:
        from ..runtime import _native

        gradients = iter(gradients_of(model, optimizer))
        groups = [
            (rule.name, [(p, next(gradients), list(own)) for p, own in zip(params, states, strict=True)])
            for rule, params, states in optimizer._step_groups()
        ]
        self._flat, added = model.flat_parameters, None
        if penalty is not None:
            added = (self._flat, model.flat_gradients, penalty._runs(model), penalty.l2, penalty.l1)
        kind = _native.Engine32 if model.dtype == np.float32 else _native.Engine64
        self._engine = kind(
            described(model, shape), json.dumps(loss.describe()), batch_size, groups, hogwild, added,
            mean_factor, sharpness_aware,
        )  # fmt: skip
        if exchange is not None:
            self._engine.set_exchange(exchange)
        self._optimizer, self._batch_size = optimizer, batch_size
        self._pruned = model if model._kept is not None else None
        self._chunk = 1  # batches
        self._ahead: _Ahead | None = None

    @property
    def penalty(self) -> float:
        """The penalty's part of the sum of the losses of the last epoch's examples."""
        return float(self._engine.penalty)

    def run_epoch(
        self,
        data: Data,
        order: Array | None,
        noise: WeightNoise | None,
        epoch: Epoch,
        advance: Advance,
        ends: Array | None = None,
        pace: Callable[[], int] = lambda: _MOST_BATCHES,
    ) -> None:
        """Train on each example of the order once, or on those that ``epoch`` has left.

        Parameters
        ----------
        data : Data
            Checked; x may be of uint8, or `SparseRows`.
        order : int64 array or None
            The examples to train on, in this order; None: all as they come.
        noise : WeightNoise or None
            The noise of the first batch.
        epoch : Epoch
            The position, updated before each call of advance.
        advance : callable
            Called with the number of examples done.
        ends : int64 array, optional
            With an exchange: where the batch of each step ends, of which some may be empty.
        pace : callable
            Returns how many batches may be trained on until advance is to be called.
        """
        engine, size = self._engine, self._batch_size
        examples = len(data.x if order is None else order)
        sums = (epoch.loss, epoch.divisor, epoch.correct, epoch.counted)
        engine.begin_epoch(sums, None if noise is None else (self._flat, *noise))
        step, steps = epoch.done // size, -(-examples // size) if ends is None else len(ends)
        while step < steps:
            begin, most = epoch.done, min(self._chunk, pace()) if self._pruned is None else 1
            last = min(steps, step + most)
            some = None if ends is None else ends[step:last]
            end = min(examples, last * size) if some is None else int(some[-1])
            started = time.perf_counter()
            self._train(data, order, (begin, end), last - step, some)
            seconds = max(time.perf_counter() - started, 1e-6)
            chunk = min(int((last - step) * _CHUNK / seconds), 4 * self._chunk, _MOST_BATCHES)
            self._chunk, step = max(1, chunk), last
            epoch.done = end
            epoch.loss, epoch.divisor, epoch.correct, epoch.counted = engine.sums
            advance(end - begin)

    def _train(
        self, data: Data, order: Array | None, which: tuple[int, int], count: int, ends: Array | None
    ) -> None:
        """Take so many steps, on the examples [begin, end) of the order."""
        engine, optimizer = self._engine, self._optimizer
        rows, scalars_after = self._planned(count)
        arguments = (self._batch_size, rows, optimizer.max_grad_norm or 0.0, optimizer.nonfinite)
        steps, skipped = engine.steps, engine.skipped
        try:
            x, sparse = data.x.parts() if isinstance(data.x, SparseRows) else (data.x, None)
            engine.train(x, data.y, order, data.weight, which, *arguments, sparse, ends)
        finally:  # Ctrl-C is raised as soon as the engine returns
            optimizer._scalars = scalars_after(engine.steps - steps)
            optimizer.skipped += engine.skipped - skipped
            if self._pruned is not None:
                self._pruned._hold()
        if engine.wrong >= 0:
            raise ValueError(
                f"{optimizer._gradient_names()[engine.wrong]} holds NaN or infinity, expected finite values"
            )

    def _planned(self, steps: int) -> tuple[Array, Callable[[int], _Scalars]]:
        """Return what `_plan` returns, of the steps that were planned ahead if nothing has changed since."""
        optimizer, ahead = self._optimizer, self._ahead
        if getattr(optimizer, "_looking_ahead", False):
            return _plan(optimizer, steps)
        options = [{**group, "params": None} for group in optimizer.param_groups]
        if ahead is not None and ahead.holds(optimizer._scalars, options, steps):
            return ahead.take(steps)
        numbers = all(is_number(group["lr"]) for group in options)
        if steps > _AHEAD // 4 or not numbers or not stepping.is_compiled(optimizer):
            return _plan(optimizer, steps)
        # More each time: most trainings are either long or short, and the first plan may be the last.
        more = steps if ahead is None else max(steps, min(_AHEAD, 4 * len(ahead.rows)))
        self._ahead = _Ahead(*_plan(optimizer, more), options)
        return self._ahead.take(steps)


_Scalars = list[dict[str, float]]  # of each parameter group


class _Ahead:
    """A plan of more steps than a short epoch takes, since a plan takes longer than such an epoch."""

    def __init__(self, rows: Array, after: Callable[[int], _Scalars], options: list[dict[str, Any]]) -> None:
        self.rows, self._after, self._options = rows, after, options
        self._done, self._scalars = 0, after(0)

    def holds(self, scalars: _Scalars, options: list[dict[str, Any]], steps: int) -> bool:
        """Whether this is the plan of the steps after these scalars, with these options."""
        left = len(self.rows) - self._done
        return steps <= left and scalars == self._scalars and options == self._options

    def take(self, steps: int) -> tuple[Array, Callable[[int], _Scalars]]:
        """Return the plan of the next steps."""
        begin = self._done

        def scalars_after(done: int) -> _Scalars:
            self._done, self._scalars = begin + done, self._after(begin + done)
            return [dict(scalars) for scalars in self._scalars]

        return self.rows[begin : begin + steps], scalars_after


def _plan(optimizer: Optimizer, steps: int) -> tuple[Array, Callable[[int], _Scalars]]:
    """Return the coefficients of the steps to come, one row each, and a function: scalars after some of them.

    For the package's own optimizers C++ computes them. They have Python's bits, and Python takes 3 us a step.
    """
    if not stepping.is_compiled(optimizer) or getattr(optimizer, "_looking_ahead", False):
        return _plan_in_python(optimizer, steps)
    from ..runtime import _native

    rows, last, products = [], optimizer._scalars, []
    for rule, group, scalars in zip(optimizer._rules, optimizer.param_groups, last, strict=True):
        stepping.check_rule(optimizer, group, rule)
        first = int(scalars["step"])
        lr = _rates(group["lr"], first, steps, optimizer.epoch)
        options = {name: _plain(value) for name, value in group.items() if name not in ("params", "lr")}
        _, of_group, product = _native.next_coefficients(
            type(optimizer).__name__.lower(),
            options,
            first,
            scalars.get("mu_product", 1.0),
            lr,
            int(scalars.get("begun", 1)),
        )
        rows.append(of_group)
        products.append(product)

    def scalars_after(done: int) -> _Scalars:
        return [
            scalars
            | {"step": scalars["step"] + done}
            | ({"mu_product": product[done]} if "mu_product" in scalars else {})
            for scalars, product in zip(last, products, strict=True)
        ]

    return np.concatenate(rows, axis=1), scalars_after


def is_of_user(lr: Any) -> bool:
    """Whether a learning rate is a function of the user's own, which may count its calls or do more."""
    return callable(lr) and type(lr).__module__ != Schedule.__module__


def _rates(lr: Any, first: int, steps: int, epoch: int) -> list[float]:
    """Return the learning rates of the steps after the first ones, as `stepping.learning_rate` does."""
    rate = stepping.learning_rate
    if not callable(lr) or (not is_of_user(lr) and lr.unit == "epoch"):
        return [rate(lr, first + 1, epoch)] * steps
    if not is_of_user(lr):
        rates = [lr(k) for k in range(first, first + steps)]
        if set(map(type, rates)) == {float} and min(rates) >= 0 and math.isfinite(sum(rates)):
            return rates
    return [rate(lr, t, epoch) for t in range(first + 1, first + 1 + steps)]


def _plan_in_python(optimizer: Optimizer, steps: int) -> tuple[Array, Callable[[int], _Scalars]]:
    scalars, rows = [optimizer._scalars], []
    for _ in range(steps):
        new, of_groups = optimizer._next_rows(scalars[-1])
        scalars.append(new)
        rows.append([number for row in of_groups for number in row])
    return np.array(rows), scalars.__getitem__


def _plain(value: Any) -> Any:
    """A hyperparameter as C++ takes it: numbers are doubles."""
    if isinstance(value, tuple | list):
        return tuple(float(number) for number in value)
    return float(value) if is_number(value) else value
