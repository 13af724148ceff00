"""What a trainer adds to the loss to keep weights small."""

from __future__ import annotations

import numpy as np

from .._hyperparameters import is_number
from .layers import BatchNorm
from .sequential import Sequential


class Penalty:
    """``l2/2 * sum(w^2) + l1 * sum(|w|)`` over the weights of a model that are not frozen.

    Parameters
    ----------
    l2, l1 : float >= 0, default 0
    biases : bool, default False
        Whether to count parameters that are named ``bias`` too.
    batch_norm : bool, default False
        Whether to count the parameters of `BatchNorm` too.

    Notes
    -----
    Part of the loss and of its gradient, so adaptive optimizers scale it: see the optimizers' own
    ``weight_decay`` for what does not pass through the gradient.
    """

    def __init__(
        self, l2: float = 0.0, l1: float = 0.0, biases: bool = False, batch_norm: bool = False
    ) -> None:
        for name, value in (("l2", l2), ("l1", l1)):
            if not is_number(value) or value < 0:
                raise ValueError(f"{name} is {value!r}, expected a finite number >= 0")
        self.l2, self.l1 = float(l2), float(l1)
        self.biases, self.batch_norm = bool(biases), bool(batch_norm)

    def add(self, model: Sequential) -> float:
        """The penalty of the model's parameters, whose gradient is added to the model's."""
        total = 0.0
        for layer in model.leaves().values():
            if not layer.trainable or (isinstance(layer, BatchNorm) and not self.batch_norm):
                continue
            for name, w in layer.parameters.items():
                if name == "bias" and not (self.biases or isinstance(layer, BatchNorm)):
                    continue
                there, number = layer.gradients[name], w.dtype.type
                w, gradient = np.asarray(w), np.asarray(there)  # copies of a GPU's
                if self.l2:
                    total += self.l2 / 2 * float(np.square(w, dtype=np.float64).sum())
                    gradient += number(self.l2) * w
                if self.l1:
                    total += self.l1 * float(np.abs(w).sum(dtype=np.float64))
                    gradient += number(self.l1) * np.sign(w)
                if gradient is not there:
                    there[...] = gradient
        return total

    def __repr__(self) -> str:
        flags = f"biases={self.biases}, batch_norm={self.batch_norm}"
        return f"Penalty(l2={self.l2}, l1={self.l1}, {flags})"
