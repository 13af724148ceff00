"""Losses: the mean over a batch, and its gradient with respect to the model's output."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backends, ops
from .._arrays import Array, check_finite, check_float_array


class Loss:
    """What a trainer asks of a loss."""

    classification = False  # whether targets are class labels, so that accuracy makes sense

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        """Targets for ``batch`` outputs of ``shape``, checked and converted once for all steps."""
        raise NotImplementedError

    def compute(self, output: Array, target: Array, gradient: Array | None) -> float:
        """The loss for checked targets; its gradient goes into ``gradient`` unless None."""
        raise NotImplementedError

    def __call__(self, output: Array, target: Any) -> tuple[float, Array]:
        """The loss and its gradient with respect to ``output``.

        Raises
        ------
        TypeError, ValueError
            The target's dtype, shape or values do not suit the output.
        """
        output = check_float_array("output", output)
        if output.ndim == 0 or output.size == 0:
            raise ValueError(f"output has shape {output.shape}, expected at least one example")
        target = self.check_target("target", target, output.shape[0], output.shape[1:], output.dtype)
        gradient = np.empty_like(output)
        return self.compute(output, target, gradient), gradient

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class CrossEntropy(Loss):
    """Softmax cross-entropy (log loss) from logits (batch, classes) and integer labels (batch,).

    The mean over the batch, as `torch.nn.CrossEntropyLoss`; stable for any finite logits.
    """

    classification = True

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        if len(shape) != 1:
            raise ValueError(f"CrossEntropy has an output of shape {shape}, expected (classes,)")
        return ops.check_labels(name, target, batch, shape[0])

    def compute(self, output: Array, target: Array, gradient: Array | None) -> float:
        return float(backends.current().softmax_cross_entropy(output, target, gradient))


class MSE(Loss):
    """Mean squared error over all elements, as `torch.nn.MSELoss`.

    Targets have the output's shape; for one output per example, (batch,) will do.
    """

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        target = np.asarray(target)
        if target.dtype.kind not in "fiub":
            raise TypeError(f"{name} has dtype {target.dtype}, expected numbers")
        if shape == (1,) and target.shape == (batch,):
            target = target[:, None]
        if target.shape != (batch, *shape):
            raise ValueError(f"{name} has shape {target.shape}, expected {(batch, *shape)}")
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(target, dtype)
        check_finite(name, converted)
        return converted

    def compute(self, output: Array, target: Array, gradient: Array | None) -> float:
        return float(backends.current().squared_error(output, target, gradient))
