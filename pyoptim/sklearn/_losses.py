"""The losses of scikit-learn's perceptrons, and how the compiled engine is to average them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..runtime.dtypes import Array


class Objective(NamedTuple):
    """A loss, and what its mean over a batch is multiplied with to be the sum over the outputs.

    scikit-learn reports the squared error as the mean over the outputs, but takes the gradient of the sum;
    ``reported`` is the ratio of the two.
    """

    loss: nn.Loss
    factor: float
    reported: float = 1.0


def objective(kind: str, outputs: int, smoothing: float) -> Objective:
    """Return the objective of the kind: softmax, logistic, squared_error or poisson."""
    if kind == "softmax":
        return Objective(nn.CrossEntropy(label_smoothing=smoothing), 1.0)
    if kind == "logistic":
        return Objective(nn.BinaryCrossEntropy(), float(outputs))
    if kind == "poisson":
        return Objective(nn.Poisson(), float(outputs))
    return Objective(nn.MSE(), outputs / 2, 1 / outputs)


class WeightPenalty(nn.Penalty):
    """scikit-learn's penalty: of the weights of dense layers alone.

    Attributes
    ----------
    last : float
        What it was when it was last added.
    """

    last = 0.0

    @classmethod
    def of_mean(cls, alpha: float, total: float) -> WeightPenalty | None:
        """The penalty divided by the sum of the weights, which may be negative as scikit-learn's; or None."""
        if not alpha or not total:
            return None
        made = cls()
        made.l2 = alpha / total
        return made

    def _add(self, model: nn.Sequential) -> Any:
        self.last = float(super()._add(model))
        return self.last

    def _runs(self, model: nn.Sequential) -> list[tuple[int, int]]:
        runs, end = [], 0
        for layer in model.leaves().values():
            for name, w in layer.parameters.items():
                begin, end = end, end + w.size
                if name == "weight" and isinstance(layer, nn.Dense):
                    runs.append((begin, end))
        return runs


def scaled(weight: Array | None, scale: float, like: Array) -> Array | None:
    """The weights of examples times a number, as a loss takes them; None where all are 1."""
    if weight is not None:
        return (weight * scale).astype(like.dtype)
    return None if scale == 1 else np.full(len(like), scale, like.dtype)


def add_gradient(
    model: nn.Sequential, of: Objective, x: Any, y: Array, weight: Array | None, total: float
) -> float:
    """Return the sum of the losses, weighted, divided by ``total``; its gradient goes into the model's.

    In training mode; the gradient takes the place of the model's last one.
    """
    output = model._forward(x)
    gradient = np.empty_like(output)
    scale = of.factor * len(x) / total if total else 0.0
    value = of.loss.evaluate(output, y, gradient, scaled(weight, scale, output))
    model._backward(gradient)
    return float(value)


def mean_loss(of: Objective, output: Array, y: Array, weight: Array | None) -> float:
    """Return the loss of outputs as scikit-learn reports it, without the penalty."""
    total = float(len(y)) if weight is None else float(weight.sum(dtype=np.float64))
    scale = of.factor * len(y) / total if total else 0.0
    return float(of.loss.evaluate(output, y, None, scaled(weight, scale, output))) * of.reported
