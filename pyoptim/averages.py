"""Averages of weights along the way: exponential (EMA) and equal (SWA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import backends
from .arrays import checks, gpu, gpu_checks, gpu_views, memory
from .arrays.queue import Queue
from .arrays.tensors import tell_autograd, tensors_among
from .backends.gpu import copies as gpu_copies
from .formulas import storage
from .formulas.rules import RULES
from .optim.optimizer import Optimizer
from .runtime import dispatch
from .runtime.numbers import check_count, is_number

__all__ = ["EMA", "SWA", "WeightAverage"]


def __dir__() -> list[str]:
    return __all__


class WeightAverage:
    """What both averages share: one fused pass per update.

    Parameters
    ----------
    params : array, sequence, or mapping of arrays; or Optimizer
        What is averaged; read here, and written only by `applied`. 16-bit ones are averaged in float32.
        Given an optimizer, the average
        follows its parameters: each of its steps updates the average too, by the compiled kernels in the
        same pass over memory. Arrays in a GPU's memory, as an `Optimizer` takes them, are averaged there,
        by one more launch after the step.

    Attributes
    ----------
    averages : list of array
        In the order of the parameters; copies of the parameters at first.
    count : int
        Updates so far.
    """

    def __init__(self, params: Any) -> None:
        self._queue: Queue | None = None  # of arrays in a GPU's memory: the order of the work on them
        if isinstance(params, Optimizer):
            named = list(params.named_parameters().items())
            self._queue = params._queue
        elif isinstance(params, Mapping):
            named = [(f"params[{key!r}]", p) for key, p in params.items()]
        elif isinstance(params, list | tuple):
            named = [(f"params[{i}]", p) for i, p in enumerate(params)]
        else:
            named = [("params", params)]
        self._names = [name for name, _ in named]
        self._params: list[Any] = [p for _, p in named]
        tensors: list[Any] = []
        if any(gpu_views.is_there(p) for p in self._params):
            self._params = [_viewed(name, p) for name, p in named]
            gpu_checks.check_parameters(self._names, self._params)
            if self._queue is None:
                self._queue = gpu.queue_of(self._params)
            dtypes = [gpu_copies.widened(p.dtype) for p in self._params]
            self.averages: list[Any] = gpu_copies.zeros(self._queue, self._params, dtypes)
            gpu_copies.assign(self._queue, self.averages, self._params)
            tensors = tensors_among(params)
        else:
            checks.check_parameters(self._names, self._params)
            self.averages = [np.array(storage.widened(p), order="C") for p in self._params]
        self.count = 0
        self._steppers: dict[str, Any] = {}
        self._tensors = tensors  # PyTorch's, of which the parameters are views
        if isinstance(params, Optimizer):
            self._tensors = params._tensors
            params.follow(self)

    def _weight(self) -> float:
        """The weight of the newest point, at the update that ``count`` is about to count."""
        raise NotImplementedError

    def weight_in_step(self) -> float:
        """`_weight`, or 0 where this update is not one that an optimizer's step can take along."""
        return self._weight()

    def update(self) -> None:
        """Take the parameters as they are now into the averages."""
        backend = dispatch.current() if self._queue is None else dispatch.for_device()
        stepper: Any = self._steppers.get(backend.name)
        if stepper is None:
            if self._queue is not None:
                stepper = gpu_copies.Descent(self._queue, self.averages, self._params)
            else:
                group = backends.StepGroup(RULES["sgd"], self.averages, [()] * len(self.averages))
                stepper = backend.Stepper([group])
            self._steppers[backend.name] = stepper
        # average -= weight * (average - param) is a step of gradient descent, with decay 1 and sign -1.
        rows: list[tuple[float, ...]] = [(-1.0, 1.0, 1.0, self._weight())]
        if self._queue is not None:
            gpu_checks.check_memory(self._names, self._params)
            stepper.step(gpu_copies.renewed(self._params), rows)
            self.count += 1
            return
        points = [storage.widened(p) for p in self._params]
        if not (stepper.checks and stepper.step(points, rows)):
            written = memory.Memory(self.averages)
            stepper.step(checks.check_gradients(self._names, points, self.averages, written), rows)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """The count, and copies of the averages."""
        return {"count": self.count, "averages": [np.array(average) for average in self.averages]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an average of the same shapes returned.

        Raises
        ------
        TypeError, ValueError
            It does not fit. Nothing is changed.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != {"count", "averages"}:
            raise ValueError(f"state_dict is {state_dict!r:.80}, expected a mapping with count and averages")
        count, given = check_count("state_dict['count']", state_dict["count"], 0), state_dict["averages"]
        if not isinstance(given, list | tuple):
            raise ValueError(f"state_dict['averages'] is a {type(given).__name__}, expected a list of arrays")
        if len(given) != len(self.averages):
            raise ValueError(f"state_dict['averages'] has {len(given)} arrays, expected {len(self.averages)}")
        checked = [
            checks.check_like(f"state_dict['averages'][{i}]", value, average.shape, average.dtype)
            for i, (value, average) in enumerate(zip(given, self.averages, strict=True))
        ]
        for average, value in zip(self.averages, checked, strict=True):
            average[...] = value
        self.count = count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steppers": {}, "_tensors": []}  # of other memory than the copy's

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the ``with`` block the parameters hold the averages; afterwards their own values again."""
        if self._queue is not None:
            gpu_checks.check_memory(self._names, self._params)
            kept: list[Any] = gpu_copies.copies(self._queue, self._params)
        else:
            for name, p in zip(self._names, self._params, strict=True):
                if not p.flags.writeable:
                    raise ValueError(f"{name} is read-only, expected a writeable array")
            kept = [p.copy() for p in self._params]
        try:
            self._write(self._params, self.averages)
            yield
        finally:
            self._write(self._params, kept)

    def _write(self, to: list[Any], values: list[Any]) -> None:
        if self._queue is not None:
            gpu_copies.assign(self._queue, to, values)
        else:
            for array, value in zip(to, values, strict=True):
                array[...] = value
        if to is self._params:
            tell_autograd(self._tensors)


def _viewed(name: str, param: Any) -> Any:
    if isinstance(param, gpu.DeviceArray) or not gpu_views.is_there(param):
        return param
    return gpu_views.view(name, param.detach() if hasattr(param, "detach") else param, also=gpu_views.HALF)


class EMA(WeightAverage):
    """Exponential moving average: ``a = decay*a + (1-decay)*p``, computed as ``a - (1-decay)*(a - p)``.

    Parameters
    ----------
    params
        See `WeightAverage`.
    decay : float in [0, 1), default 0.999
    warm_up : bool, default False
        Use ``min(decay, (1 + count)/(10 + count))``, so that the first points are soon forgotten
        (TensorFlow's ``num_updates``).
    """

    def __init__(self, params: Any, decay: float = 0.999, warm_up: bool = False) -> None:
        if not is_number(decay) or not 0 <= decay < 1:
            raise ValueError(f"decay is {decay!r}, expected a number in [0, 1)")
        self.decay, self.warm_up = float(decay), bool(warm_up)
        super().__init__(params)

    def _weight(self) -> float:
        early = (1 + self.count) / (10 + self.count)
        return 1 - (min(self.decay, early) if self.warm_up else self.decay)


class SWA(WeightAverage):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the points at every `update`.

    The first values of the parameters do not count. Of an optimizer, it is the mean of all its steps
    (Polyak & Juditsky 1992).
    """

    def weight_in_step(self) -> float:
        return self._weight() if self.count else 0.0  # the first is a copy

    def update(self) -> None:
        if self.count == 0:
            self._write(self.averages, self._params)
            self.count = 1
        else:
            super().update()

    def _weight(self) -> float:
        return 1 / (self.count + 1)
