"""What a mini-batch gives to a training step: its loss, and the gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from . import backends, nn
from ._arrays import empty_like


class WeightNoise(NamedTuple):
    """Normal noise of standard deviation ``std``: a function of a seed, a step, and a parameter's place."""

    std: float
    seed: int  # of an epoch
    step: int  # which batch of it

    @contextmanager
    def on(self, model: nn.Sequential) -> Iterator[None]:
        """Added to all parameters, frozen ones too, inside the ``with`` block."""
        kept = model.flat_parameters.copy()
        backends.of(kept).gaussian_noise(kept, *self, model.flat_parameters)
        try:
            yield
        finally:
            model.flat_parameters[...] = kept


def differentiate(
    model: nn.Sequential,
    loss: nn.Loss,
    penalty: nn.Penalty | None,
    noise: WeightNoise | None,
    batch: tuple[Any, Any, Any],
) -> tuple[Any, Any]:
    """Fill the model's gradients; its outputs, and the loss with the penalty.

    ``batch``: inputs, targets, and weights or None, where the model is. On a GPU nothing waits.
    """
    x, target, weight = batch
    with nullcontext() if noise is None else noise.on(model):
        output = model._forward(x)
        gradient = empty_like(output)
        value = loss.evaluate(output, target, gradient, weight)
        model._backward(gradient)
        if penalty is not None:
            value = penalty._added(model, value)
    return output, value
