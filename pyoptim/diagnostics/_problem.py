"""What all diagnostics measure: a model's loss on some data, as a function of its parameters, in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .. import nn
from ..arrays import sharing
from ..arrays.memory import aligned_zeros, empty_like
from ..nn.checkpoint import describe, layer_from
from ..nn.layers import bind
from ..runtime.dtypes import Array
from ..runtime.numbers import check_type
from ..train import tangents
from ..train.data import check_batches, checked, mean_loss

_BLOCK = 1024  # examples that pass through the model at once
NOT_FINITE = "the loss or its gradient is NaN or infinite at the model: nothing more can be said here"
_STEP = 1e-9  # of differences of gradients, in units of the parameters' length


def widened(model: nn.Sequential) -> nn.Sequential:
    """Return a copy of the model in float64, in the processor's memory."""
    check_type("model", model, nn.Sequential, "a Sequential")
    if model._place.queue is None:
        made = copy.deepcopy(model)
    else:
        made = nn.Sequential(*map(layer_from, describe("layers", model.layers)), dtype=model.dtype)
        made.load_state_dict(model.state_dict())
        for own, its in zip(made.leaves().values(), model.leaves().values(), strict=True):
            own.trainable = its.trainable
    flat = aligned_zeros(made.flat_parameters.size, np.dtype(np.float64))
    flat[...] = made.flat_parameters
    made.flat_parameters, made.flat_gradients = sharing.of_model(flat), aligned_zeros(flat.size, flat.dtype)
    made.dtype = flat.dtype
    if made._kept is not None:
        made._kept = made._kept.astype(flat.dtype)
    bind(made.layers, made.flat_parameters, made.flat_gradients)
    for layer in made.leaves().values():
        for name, value in layer.buffers.items():
            layer.buffers[name] = value.astype(flat.dtype) if value.dtype.kind == "f" else value
    return made


def quiet(model: nn.Sequential) -> nn.Sequential:
    """Switch off what is random in training; returns the model."""
    for layer in model.leaves().values():
        if isinstance(layer, nn.Dropout | nn.GaussianNoise):
            layer.forward = _in_evaluation(layer.forward)  # type: ignore[method-assign]
    return model


def _in_evaluation(forward: Any) -> Any:
    return lambda x, training: forward(x, False)


class Problem:
    """The loss of all examples, plus the penalty, as a function of the parameters that are not frozen.

    `BatchNorm` normalises by the statistics of all examples if ``training``, else by the running ones. What
    is random does nothing; if ``random`` it draws the same numbers in each evaluation. The penalty is left
    out unless ``penalized``. If ``frozen``, the parameters of frozen layers vary too.

    The model that is measured is a copy. Its parameters, one vector, may be written.
    """

    def __init__(
        self, model: nn.Sequential, loss: nn.Loss, x: Any, y: Any, penalty: nn.Penalty | None = None,
        *, training: bool = True, random: bool = False, penalized: bool = True, frozen: bool = False,
    ) -> None:  # fmt: skip
        self.model = widened(model)
        check_type("loss", loss, nn.Loss, "a Loss, e.g. CrossEntropy()")
        if penalty is not None:
            check_type("penalty", penalty, nn.Penalty, "a Penalty or None")
        self.loss, self.penalty, self._penalized = loss, penalty, penalized
        self.data = checked(self.model, loss, x, y)
        self.model.training = training
        if not random:
            quiet(self.model)
        if training:
            check_batches(self.model, self.data.x, len(self.data.x))
        takes = any(layer.takes_statistics(training) for layer in self.model.leaves().values())
        self._block = len(self.data.x) if takes or random else _BLOCK
        self.statistics = {name: value.copy() for name, value in self.model._named("buffers").items()}
        self.names: list[tuple[str, Array]] = list(self.model.parameters().items())
        self._chosen = np.concatenate(
            [
                np.full(layer.parameter_count(), frozen or layer.trainable)
                for layer in self.model.leaves().values()
            ]
        ).astype(bool)
        self.size = int(self._chosen.sum())
        if self.size == 0:
            raise ValueError("model has no parameters, or all are frozen: there is nothing to vary")

    @property
    def parameters(self) -> Array:
        """A copy of the vector at which the copied model stands."""
        vector: Array = self.model.flat_parameters[self._chosen]
        return vector

    def set_parameters(self, w: Array) -> None:
        """Write the vector into the copied model."""
        self.model.flat_parameters[self._chosen] = w

    def value(self, w: Array) -> float:
        """The loss, with the penalty, at w."""
        return self._measured(w, False)[0]

    def value_and_gradient(self, w: Array) -> tuple[float, Array]:
        """The loss, with the penalty, and its gradient at w."""
        return self._measured(w, True)

    def gradient(self, w: Array) -> Array:
        """The gradient at w."""
        return self._measured(w, True)[1]

    def hessian_vector(self, w: Array, v: Array) -> Array:
        """The product of the Hessian at w and v.

        It is exact up to rounding in training mode where layers and loss are pyoptim.nn's, and else the
        central difference of two gradients. For these, by rounding alone the cube root of the precision would
        be the best step. But each ReLU that switches within a step adds a false curvature of 1/step, and
        among the many thousands of a batch some are close to their kink. The step is so short that hardly any
        switches, and products are right to some 1e-6 of the gradient's size.
        """
        if self.model.training and tangents.is_exact(self.model, self.loss, self.penalty):
            return self._exact_product(w, v)
        length = float(np.linalg.norm(v))
        if length == 0:
            return np.zeros(self.size)
        step = _STEP * (1 + float(np.linalg.norm(w))) / length
        product: Array = (self.gradient(w + step * v) - self.gradient(w - step * v)) / (2 * step)
        return product

    def _exact_product(self, w: Array, v: Array) -> Array:
        """The product of the Hessian at w and v, by a pass that carries tangents along."""
        model = self.model
        point, vector = model.flat_parameters.copy(), np.zeros(model.flat_parameters.size)
        point[self._chosen], vector[self._chosen] = w, v
        batches = self.data.batches(self._block, model.dtype)
        penalty = self.penalty if self._penalized else None
        product: Array = tangents.product(model, self.loss, batches, (point, vector), penalty)[self._chosen]
        return product

    def _measured(self, w: Array, wants_gradient: bool) -> tuple[float, Array]:
        kept = self.parameters
        self.set_parameters(w)
        try:
            return self.here(wants_gradient)
        finally:
            self.set_parameters(kept)

    def here(self, wants_gradient: bool = True, need_dx: bool = False) -> tuple[float, Array]:
        """The loss and its gradient where the copied model stands; ``self.dx`` is that of the examples."""
        model, total = self.model, np.zeros(self.model.flat_parameters.size)
        loss = divisor = 0.0
        self.dx: Array | None = None
        for x, y, weight in self.data.batches(self._block, model.dtype):
            for name, buffer in model._named("buffers").items():
                buffer[...] = self.statistics[name]
            self.output = output = model._forward(x)
            doutput = empty_like(output) if wants_gradient else None
            value = float(self.loss.evaluate(output, y, doutput, weight))
            part = float(self.loss.divisor(output, y))
            if doutput is not None:
                model.flat_gradients[...] = 0
                self.dx = model._backward(doutput, need_dx)
                total += part * model.flat_gradients
            loss, divisor = loss + value * part, divisor + part
        if divisor:
            total /= divisor
        value = mean_loss(loss, divisor)
        gradient: Array = total[self._chosen]
        if self.penalty is not None and self._penalized:
            gradient += self.penalty_gradient()
            value += self._penalty_value
        return value, gradient

    def is_finite(self) -> bool:
        """Whether the loss and its gradient are finite where the copied model stands."""
        with np.errstate(all="ignore"):
            value, gradient = self.here()
            return bool(np.isfinite(value) and np.isfinite(gradient @ gradient))

    def penalty_gradient(self) -> Array:
        """The gradient of the penalty where the copied model stands."""
        model = self.model
        model.flat_gradients[...] = 0
        assert self.penalty is not None
        self._penalty_value = float(self.penalty._add(model))
        gradient: Array = model.flat_gradients[self._chosen]
        return gradient
