"""What a trainer adds to the loss to keep weights small."""

from __future__ import annotations

from typing import Any

from ..runtime import dispatch
from ..runtime.numbers import AT_LEAST_ZERO, check_flag, check_type
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

    The gradient, ``l2 * w + l1 * sign(w)`` with ``sign(0) = 0``, has the same bits on every backend. The
    value is summed in double; backends agree up to the order of that sum, threads in every bit. A factor of
    0 leaves its term out.
    """

    def __init__(
        self, l2: float = 0.0, l1: float = 0.0, biases: bool = False, batch_norm: bool = False
    ) -> None:
        self.l2, self.l1 = AT_LEAST_ZERO.number("l2", l2), AT_LEAST_ZERO.number("l1", l1)
        self.biases, self.batch_norm = check_flag("biases", biases), check_flag("batch_norm", batch_norm)

    def add(self, model: Sequential) -> float:
        """The penalty of the model's parameters, whose gradient is added to the model's."""
        return float(self._add(check_type("model", model, Sequential, "a Sequential")))

    def _add(self, model: Sequential) -> Any:
        w = model.flat_parameters
        return dispatch.of(w).penalty(w, model.flat_gradients, self._runs(model), self.l2, self.l1)

    def _added(self, model: Sequential, loss: Any) -> Any:
        """Do what `add` does, and return the loss plus the penalty; on a GPU the host does not wait."""
        return model._place.added(loss, self._add(model))

    def _runs(self, model: Sequential) -> list[tuple[int, int]]:
        """Return the ranges [begin, end) of what is counted in the flat parameters, adjacent ones merged."""
        runs: list[tuple[int, int]] = []
        end = 0
        for layer in model.leaves().values():
            is_norm = isinstance(layer, BatchNorm)
            for name, w in layer.parameters.items():
                begin, end = end, end + w.size
                if not layer.trainable or not (self.batch_norm if is_norm else self.biases or name != "bias"):
                    continue
                if runs and runs[-1][1] == begin:
                    begin = runs.pop()[0]
                runs.append((begin, end))
        return runs

    def __repr__(self) -> str:
        flags = f"biases={self.biases}, batch_norm={self.batch_norm}"
        return f"Penalty(l2={self.l2}, l1={self.l1}, {flags})"
