"""Layers that are random in training and do nothing in evaluation.

Their random numbers are functions of a seed, drawn when the model is made, of a step that counts the
training passes, and of the position; both are saved with the model, so what is resumed goes on alike.
"""

from __future__ import annotations

import numpy as np

from ..arrays.memory import empty_like
from ..ops.dropout import DROP_PROBABILITY
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO
from .layers import Layer

__all__ = ["Dropout", "GaussianNoise"]


class _Random(Layer):
    def buffer_values(self) -> dict[str, Array]:
        return {"seed": np.zeros((), np.int64), "step": np.zeros((), np.int64)}

    def initialize(self, rng: np.random.Generator) -> None:
        self.buffers["seed"][...] = rng.integers(2**63 - 1)

    def _next(self) -> tuple[int, int]:
        """Seed and step of a training pass."""
        step = int(self.buffers["step"])
        self.buffers["step"] += 1
        return int(self.buffers["seed"]), step


class Dropout(_Random):
    """Each element becomes 0 with probability ``p``, the others are divided by ``1 - p``; in training only.

    As `torch.nn.Dropout` (Srivastava et al. 2014), but ``p`` is below 1.

    Parameters
    ----------
    p : float in [0, 1), default 0.5
        The drop probability.
    """

    arguments = ("p",)

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = DROP_PROBABILITY.number("p", p)
        self._stream: tuple[int, int] | None = None  # of the last forward; None: evaluation

    def forward(self, x: Array, training: bool) -> Array:
        self._stream = self._next() if training else None
        return self._apply(x)

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        return self._apply(dy) if need_dx else None

    def _apply(self, x: Array) -> Array:
        if self._stream is None:
            return x
        y: Array = empty_like(x)
        dispatch.of(x).dropout(x, self.p, *self._stream, y)
        return y


class GaussianNoise(_Random):
    """Normal noise of standard deviation ``std`` is added, in training only.

    Parameters
    ----------
    std : float, default 0.1
    """

    arguments = ("std",)

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.std = AT_LEAST_ZERO.number("std", std)

    def forward(self, x: Array, training: bool) -> Array:
        if not training:
            return x
        y: Array = empty_like(x)
        dispatch.of(x).gaussian_noise(x, self.std, *self._next(), y)
        return y

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        return dy
