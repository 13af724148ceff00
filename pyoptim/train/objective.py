"""A model's loss on all of some data as a function of its parameters, for minimisers of any kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..arrays.memory import add, empty_like
from ..nn.layers import Layer
from ..nn.noise import Dropout, GaussianNoise
from ..nn.prediction import described
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import check_type
from . import engine as compiled
from . import tangents
from .data import Data, SparseRows, check_batches, checked, mean_loss

_BLOCK = 1024  # examples that pass through the model at once
RANDOM = (Dropout, GaussianNoise)


class Objective:
    """The loss of all examples, plus the penalty, as a function of a vector: the model's parameters.

    Parameters
    ----------
    model : nn.Sequential
        Its `parameters`, those of layers that are not frozen, are the vector, in their order. Evaluations
        leave parameters and buffers as they are; they overwrite the gradients.
    loss : nn.Loss
    X, y, sample_weight
        Examples as `Trainer.fit` takes them.
    penalty : nn.Penalty, optional

    Attributes
    ----------
    size : int
        Elements of the vector.
    path : str
        What computes: ``"native"``, compiled code in one pass over the data; or ``"python"``, the layers one
        by one on the backend in force, or on the model's GPU.
    reason : str or None
        Why it is not compiled code.

    Notes
    -----
    Examples pass through the model in blocks; losses and gradients of the blocks are summed in float64. In a
    float64 model that makes values right to some 1e-15 of themselves. A float32 model rounds the vector
    to its own dtype: values are right to some 1e-7, and minimisers that compare them (line searches do) come
    to an end where a step gains less than that; gradients of a single float32 block are right to some 1e-6
    of the largest.

    Layers compute as in training, so `BatchNorm` normalises by the statistics of all examples, which
    then pass through the model at once. `Dropout` and `GaussianNoise` do nothing, since a function has one
    value at one point.

    Examples
    --------
    >>> objective = po.Objective(model, nn.CrossEntropy(), x, y)
    >>> value, gradient = objective.value_and_gradient(objective.parameters)
    """

    def __init__(
        self,
        model: nn.Sequential,
        loss: nn.Loss,
        X: Any,
        y: Any,
        penalty: nn.Penalty | None = None,
        *,
        sample_weight: Any = None,
    ) -> None:
        check_type("model", model, nn.Sequential, "a Sequential")
        check_type("loss", loss, nn.Loss, "a Loss, e.g. CrossEntropy()")
        if penalty is not None:
            check_type("penalty", penalty, nn.Penalty, "a Penalty or None")
        data = checked(model, loss, X, y, sample_weight, ("X", "y"))
        self._take(model, loss, data, penalty, None)

    @classmethod
    def _of_data(
        cls, model: nn.Sequential, loss: nn.Loss, data: Data, penalty: nn.Penalty | None, total: float
    ) -> Objective:
        """The objective of checked data whose mean is the sum of the losses divided by ``total``."""
        objective = cls.__new__(cls)
        objective._take(model, loss, data, penalty, total)
        return objective

    def _take(
        self,
        model: nn.Sequential,
        loss: nn.Loss,
        data: Data,
        penalty: nn.Penalty | None,
        total: float | None,
    ) -> None:
        check_batches(model, data.x, len(data.x))
        if model._kept is not None:
            raise ValueError("model was pruned: a minimiser would move what is 0, expected `Trainer.fit`")
        self._model, self._loss, self._penalty, self._total = model, loss, penalty, total
        self._data = data.at(model._place)
        whole = any(layer.takes_statistics(True) for layer in model.leaves().values())
        self._block = len(data.x) if whole else min(_BLOCK, len(data.x))
        self._runs = _trainable(model)
        self.size = sum(end - begin for begin, end in self._runs)
        if self.size == 0:
            raise ValueError("the model has no parameters, or all are frozen: there is nothing to vary")
        self._engine: Any = None
        self._engine_of: Any = None
        self._choose()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_engine": None, "_engine_of": None}  # a copy makes an engine of its own

    def _choose(self) -> None:
        """Choose what computes, with the backend in force and the model's memory as they are now."""
        model = self._model
        if _trainable(model) != self._runs:
            raise ValueError(
                f"layers of the model were frozen or thawed since the objective was made, of {self.size} "
                "parameters: expected another Objective"
            )
        made_of = dispatch.current().name, id(model.flat_parameters)
        if made_of == self._engine_of:
            return
        on_gpu = model._place.queue is not None
        self.reason = "the model is on a GPU" if on_gpu else compiled.why_no_kernels(model, self._loss)
        self.path, self._engine = "python" if self.reason else "native", None
        if self.reason is None:
            from ..runtime import _native

            kind = _native.Engine32 if model.dtype == np.float32 else _native.Engine64
            parts = described(model, self._data.x.shape[1:]), json.dumps(self._loss.describe())
            self._engine = kind(*parts, self._block, [], False, None)
        self._engine_of = made_of

    @property
    def parameters(self) -> Array:
        """The vector at which the model stands, a copy in float64."""
        return self._gathered(self._model.flat_parameters)

    def set_parameters(self, w: Any) -> None:
        """Write the vector into the model.

        The running statistics of each `BatchNorm` become those of all examples: in evaluation mode the model
        then computes what the objective has measured.

        Raises
        ------
        TypeError, ValueError
            w is not a vector of `size` numbers. Nothing is changed, as by any other exception, Ctrl-C's too.
        """
        w, model = self._checked("w", w), self._model
        parameters, buffers = model.flat_parameters.copy(), model._copied_buffers()
        try:
            self._write(w)
            self._take_statistics()
        except BaseException:
            model.flat_parameters[...] = parameters
            model._restore_buffers(buffers)
            raise
        finally:
            model._output_shape = None  # there is no output of the model's to go back from

    def _take_statistics(self) -> None:
        """Let the running statistics of each `BatchNorm` be those of all examples."""
        norms = [
            layer
            for layer in self._model.leaves().values()
            if isinstance(layer, nn.BatchNorm) and layer.buffers and layer.takes_statistics(True)
        ]
        if not norms:
            return
        momenta = [layer.momentum for layer in norms]
        try:
            for layer in norms:
                layer.momentum = 1.0
            for batch in self._batches():
                _forward(self._model.layers, batch.x)
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum

    def value(self, w: Any) -> float:
        """The loss, with the penalty, at w.

        Raises
        ------
        TypeError, ValueError
            w is not a vector of `size` numbers.
        """
        loss, penalty, _ = self._measured(w, False)
        return loss + penalty

    def gradient(self, w: Any) -> Array:
        """The gradient at w, in float64; errors as of `value`."""
        return self.value_and_gradient(w)[1]

    def value_and_gradient(self, w: Any) -> tuple[float, Array]:
        """Both, from one pass over the data; errors as of `value`."""
        loss, penalty, gradient = self._measured(w, True)
        return loss + penalty, gradient

    def _measured(self, w: Any, wants_gradient: bool) -> tuple[float, float, Array]:
        """The loss without the penalty, the penalty, and the gradient of their sum if it is wanted."""
        w, model = self._checked("w", w), self._model
        self._choose()
        kept = model.flat_parameters.copy()
        try:
            self._write(w)
            total = np.zeros(model.flat_gradients.size) if wants_gradient else None
            loss, divisor = self._compiled(total) if self._engine else self._by_layers(total)
            divisor = divisor if self._total is None else self._total
            if total is not None and divisor:
                total /= divisor
            penalty = self._penalized(total)
        finally:
            model.flat_parameters[...] = kept
            model._output_shape = None  # there is no output of the model's to go back from
        return mean_loss(loss, divisor), penalty, self._gathered([] if total is None else total)

    def hessian_vector(self, w: Any, v: Any) -> Array:
        """The product of the Hessian at w and the vector v, in float64.

        Exact up to rounding, whatever the model's dtype, where layers and loss are pyoptim.nn's: by a forward
        and a backward pass of NumPy's that carry tangents along (Pearlmutter 1994). At a kink, as ReLU's, it
        is the Hessian of the side on which the slope is. With layers or a loss of your own it is the central
        difference of two gradients, ``(g(w + h v) - g(w - h v))/(2 h)``, where h is the cube root of the
        dtype's precision in units of w's length: right to some 1e-9 of its size in float64, 1e-3 in float32.

        Raises
        ------
        TypeError, ValueError
            w or v is not a vector of `size` numbers.
        """
        w, v = self._checked("w", w), self._checked("v", v)
        if tangents.is_exact(self._model, self._loss, self._penalty):
            return self._exact_product(w, v)
        length = float(np.linalg.norm(v))
        if length == 0:
            return np.zeros(self.size)
        step = np.finfo(self._model.dtype).eps ** (1 / 3) * (1 + float(np.linalg.norm(w))) / length
        difference: Array = self.gradient(w + step * v) - self.gradient(w - step * v)
        product: Array = difference / (2 * step)
        return product

    def _exact_product(self, w: Array, v: Array) -> Array:
        model = self._model
        point = np.array(model.flat_parameters, np.float64)
        vector, at = np.zeros_like(point), 0
        for begin, end in self._runs:
            point[begin:end], vector[begin:end] = w[at : at + end - begin], v[at : at + end - begin]
            at += end - begin
        batches = (Data(*(None if a is None else np.asarray(a) for a in batch)) for batch in self._batches())
        flat = point, vector
        return self._gathered(tangents.product(model, self._loss, batches, flat, self._penalty, self._total))

    def hessian(self, w: Any) -> Array:
        """The Hessian at w (size, size), in float64: one `hessian_vector` for each parameter.

        Raises
        ------
        TypeError, ValueError
            w is not a vector of `size` numbers.
        """
        w = self._checked("w", w)
        rows = np.array([self.hessian_vector(w, unit) for unit in np.eye(self.size)])
        symmetric: Array = (rows + rows.T) / 2
        return symmetric

    def _checked(self, name: str, w: Any) -> Array:
        w = np.asarray(as_numpy(name, w))
        if w.dtype.kind not in "fiub":
            raise TypeError(f"{name} has dtype {w.dtype}, expected numbers")
        if w.shape != (self.size,):
            raise ValueError(f"{name} has shape {w.shape}, expected ({self.size},): the model's parameters")
        wide: Array = w.astype(np.float64, copy=False)
        return wide

    def _write(self, w: Array) -> None:
        flat, at = self._model.flat_parameters, 0
        with np.errstate(over="ignore"):  # beyond float32 is infinity, of which the loss is NaN
            for begin, end in self._runs:
                flat[begin:end][...] = w[at : at + end - begin].astype(self._model.dtype)
                at += end - begin

    def _gathered(self, flat: Any) -> Array:
        """Return the part of the layers that are not frozen, in float64."""
        values = np.asarray(flat, np.float64)
        return np.concatenate([values[begin:end] for begin, end in self._runs])

    def _compiled(self, total: Array | None) -> tuple[float, float]:
        """Return the sum of the losses and of their divisors; add the gradient of the former to ``total``."""
        data, gradients, count = self._data, self._model.flat_gradients, len(self._data.x)
        x, sparse = data.x.parts() if isinstance(data.x, SparseRows) else (data.x, None)
        loss = divisor = 0.0
        for begin in range(0, count, self._block):  # Ctrl-C is served between two blocks
            rows = begin, min(begin + self._block, count)
            value, part = self._engine.measure(x, data.y, data.weight, rows, sparse, gradients, total)
            loss, divisor = loss + value, divisor + part
        return loss, divisor

    def _by_layers(self, total: Array | None) -> tuple[float, float]:
        """Do what `_compiled` does, by the model's layers."""
        model, loss_of = self._model, self._loss
        buffers = model._copied_buffers()
        loss = divisor = 0.0
        try:
            for x, y, weight in self._batches():
                output = _forward(model.layers, x)
                gradient = None if total is None else empty_like(output)
                value = float(loss_of.evaluate(output, y, gradient, weight))
                part = float(loss_of.divisor(output, y))
                if total is not None:
                    model._backward(gradient)  # type: ignore[arg-type]
                    total += part * np.asarray(model.flat_gradients, np.float64)
                loss, divisor = loss + value * part, divisor + part
        finally:
            model._restore_buffers(buffers)
        return loss, divisor

    def _batches(self) -> Iterator[Data]:
        return self._data.batches(self._block, self._model.dtype)

    def _penalized(self, total: Array | None) -> float:
        """Return the penalty, and add its gradient to ``total``."""
        if self._penalty is None:
            return 0.0
        model = self._model
        model.flat_gradients[...] = np.zeros(model.flat_gradients.shape, model.dtype)
        penalty = float(self._penalty._add(model))
        if total is not None:
            total += np.asarray(model.flat_gradients, np.float64)
        return penalty


def _trainable(model: nn.Sequential) -> list[tuple[int, int]]:
    """Return the ranges of the flat parameters that belong to layers that are not frozen."""
    runs: list[tuple[int, int]] = []
    end = 0
    for layer in model.leaves().values():
        begin, end = end, end + layer.parameter_count()
        if not layer.trainable or begin == end:
            continue
        if runs and runs[-1][1] == begin:
            begin = runs.pop()[0]
        runs.append((begin, end))
    return runs


def _forward(layers: Iterable[Layer], x: Array) -> Array:
    """Return the output of layers in training, of which random ones do nothing."""
    for layer in layers:
        if type(layer) is nn.Residual:
            x = add(x, _forward(layer.block, x))
        else:
            x = layer.forward(x, not isinstance(layer, RANDOM))
    return x
