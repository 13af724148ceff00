"""Averages of weights along the way: exponential (EMA) and equal (SWA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import nn
from .arrays import checks, sharing
from .arrays.tensors import tell_autograd, tensors_among
from .backends.places import HOST, place_of, place_with
from .optim import structure
from .optim.optimizer import Optimizer
from .runtime.numbers import FRACTION, check_count, check_flag, check_type

__all__ = ["EMA", "SWA", "WeightAverage", "update_bn"]


def __dir__() -> list[str]:
    return __all__


class WeightAverage:
    """What both averages share: one fused pass per update.

    Parameters
    ----------
    params : array, sequence, or mapping of arrays; or Optimizer
        What is averaged; read here, and written only by `applied`. 16-bit ones are averaged in float32.
        Given an optimizer, the average follows its parameters: each of its steps updates the average too, by
        the compiled kernels in the same pass over memory. Arrays in a GPU's memory, as an `Optimizer` takes
        them, are averaged on the GPU, by one more launch after the step.

    Attributes
    ----------
    averages : list of array
        In the order of the parameters; copies of the parameters at first.
    count : int
        Updates so far.
    """

    def __init__(self, params: Any) -> None:
        if isinstance(params, Optimizer):
            self._names, self._params, self._keys = params._names, params._params, params._keys
            self._place, self._tensors = params._place, params._tensors
        else:
            keys, self._params = structure.flatten("params", params)
            self._names, self._keys = structure.names_of("params", keys), [keys]
            self._place = place_of(self._names, self._params)
            self._tensors = tensors_among(params)  # PyTorch's, of which the parameters are views
        sharing.check_model(self._names, self._params)
        self.averages: list[Any] = self._place.wide_copies(self._params)
        self._follower: Any = None
        self.count = 0
        if isinstance(params, Optimizer):
            params.follow(self)

    def _weight(self) -> float:
        """The weight of the newest point, at the update that ``count`` is about to count."""
        raise NotImplementedError

    def weight_in_step(self) -> float:
        """`_weight`, or 0 where this update is not one that an optimizer's step can take along."""
        return self._weight()

    def update(self) -> None:
        """Take the parameters as they are now into the averages."""
        if self._follower is None:
            sharing.check_model(self._names, self._params)
            self._follower = self._place.follower(self._names, self.averages, self._params)
        self._follower.follow(self._weight())
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """The count, copies of the averages, and the names of the parameters, if they have any."""
        averages, names = [np.array(average) for average in self.averages], self._own_names()
        named = {"names": names} if structure.are_names(names) else {}
        return {"count": self.count, "averages": averages, **named}

    def _own_names(self) -> list[str]:
        return [name for keys in self._keys for name in structure.own_names(keys)]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an average of the same shapes returned.

        Averages are found by the names of the parameters, where both have names, else by their places.

        Raises
        ------
        TypeError, ValueError
            It does not fit. Nothing is changed.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) - {"names"} != {"count", "averages"}:
            raise ValueError(f"state_dict is {state_dict!r:.80}, expected a mapping with count and averages")
        count, given = check_count("state_dict['count']", state_dict["count"], 0), state_dict["averages"]
        if not isinstance(given, list | tuple):
            raise ValueError(f"state_dict['averages'] is a {type(given).__name__}, expected a list of arrays")
        if len(given) != len(self.averages):
            raise ValueError(f"state_dict['averages'] has {len(given)} arrays, expected {len(self.averages)}")
        names = state_dict.get("names", list(range(len(given))))
        if not isinstance(names, list | tuple) or len(names) != len(given):
            raise ValueError(f"state_dict['names'] is {names!r:.80}, expected {len(given)} names")
        order = structure.places("state_dict", self._own_names(), list(map(str, names)))
        given = [given[i] for i in order]
        checked = [
            checks.check_like(f"state_dict['averages'][{i}]", value, average.shape, average.dtype)
            for i, (value, average) in enumerate(zip(given, self.averages, strict=True))
        ]
        for average, value in zip(self.averages, checked, strict=True):
            average[...] = value
        self.count = count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_follower": None, "_params": sharing.closed(self._params, self._tensors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_place": HOST, "_follower": None, **state})  # version 0.1 had neither
        self.__dict__.setdefault("_keys", [list(range(len(self.averages)))])
        self._params, self._tensors = sharing.opened(self._params)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the ``with`` block the parameters hold the averages; afterwards their own values again.

        What is written into them inside the block is therefore lost.
        """
        self._place.check_writeable(self._names, self._params)
        sharing.check_model(self._names, self._params)
        kept = self._place.copies(self._params)
        try:
            self._write(self._params, self.averages)
            yield
        finally:
            self._write(self._params, kept)

    def _write(self, to: list[Any], values: list[Any]) -> None:
        self._place.assign(to, values)
        if to is self._params:
            tell_autograd(self._tensors)


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
        self.decay, self.warm_up = FRACTION.number("decay", decay), check_flag("warm_up", warm_up)
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
            sharing.check_model(self._names, self._params)
            self._write(self.averages, self._params)
            self.count = 1
        else:
            super().update()

    def _weight(self) -> float:
        return 1 / (self.count + 1)


def update_bn(model: nn.Sequential, x: Any, batch_size: int = 1024) -> None:
    """Make the running statistics of `nn.BatchNorm` anew: the mean of those of each batch of x.

    Averaged weights need statistics of their own, which training has not seen. As PyTorch's
    ``swa_utils.update_bn``: the batches pass through the model as in training, Dropout included. Layers that
    are frozen, or keep no statistics, are left as they are.

    Parameters
    ----------
    model : nn.Sequential
        It is in evaluation mode afterwards.
    x : array (examples, ...)
        As for `Trainer.fit`.
    batch_size : int, default 1024
        The last batch may be smaller. Where it would be one example, which has no variance, all batches are.

    Raises
    ------
    TypeError, ValueError
        x does not suit the model, or has fewer than two values to take statistics of.

    Examples
    --------
    >>> with swa.applied():
    ...     po.averages.update_bn(model, x)
    ...     model.save("averaged.safetensors")
    """
    check_type("model", model, nn.Sequential, "a Sequential")
    size = check_count("batch_size", batch_size)
    x = model.check_input("x", x, keep_bytes=True)
    count = len(x)
    if count == 0:
        raise ValueError("x is empty, expected at least one example")
    size = fitting_size(size, count)
    batches = place_with(x).batches((x,), size, model.dtype)
    take_statistics(model, (model._place.upload(batch) for (batch,) in batches))


def fitting_size(size: int, count: int) -> int:
    """The largest size of batches, at most this one, of which no batch of ``count`` examples holds one."""
    return next((fitting for fitting in range(size, 1, -1) if count % fitting != 1), count)


def take_statistics(model: nn.Sequential, batches: Iterable[Any]) -> None:
    """Do what `update_bn` does, for batches that are where the model is."""
    kept = [
        (layer, layer.momentum)
        for layer in model.leaves().values()
        if isinstance(layer, nn.BatchNorm) and layer.trainable and layer.track_running_stats
    ]
    if not kept:
        return
    for layer, _ in kept:
        layer.momentum = None  # the cumulative mean, which begins with a count of 0
        layer.buffers["num_batches_tracked"][...] = 0
    model.train()
    try:
        for batch in batches:
            model._forward(batch)
    finally:
        model.eval()
        for layer, momentum in kept:
            layer.momentum = momentum
