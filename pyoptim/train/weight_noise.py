"""Noise on a model's parameters while a gradient is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from .. import nn
from ..runtime import dispatch


class WeightNoise(NamedTuple):
    """Normal noise of standard deviation ``std``: a function of a seed, a step and the element's index."""

    std: float
    seed: int  # drawn for each epoch
    step: int  # index of the batch in the epoch


_NOTHING = nullcontext()


def noisy(model: nn.Sequential, noise: WeightNoise | None) -> AbstractContextManager[None]:
    """Add noise to all parameters, frozen ones too, inside the ``with`` block; None adds nothing."""
    return _NOTHING if noise is None else _noisy(model, noise)


@contextmanager
def _noisy(model: nn.Sequential, noise: WeightNoise) -> Iterator[None]:
    kept = model.flat_parameters.copy()
    dispatch.of(kept).gaussian_noise(kept, *noise, model.flat_parameters)
    try:
        yield
    finally:
        model.flat_parameters[...] = kept
