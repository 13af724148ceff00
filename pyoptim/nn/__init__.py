"""Layers, losses, initialisers, and models made of them."""

from __future__ import annotations

from . import activations, losses
from .activations import *  # noqa: F403
from .initializers import (
    Constant,
    Glorot,
    He,
    Initializer,
    LeCun,
    Normal,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    Zeros,
)
from .layers import BatchNorm, Dense, Flatten, Layer, LayerNorm, Rescale
from .losses import *  # noqa: F403
from .noise import Dropout, GaussianNoise
from .penalties import Penalty
from .residual import Residual
from .sequential import Sequential

__all__ = [
    "BatchNorm",
    "Constant",
    "Dense",
    "Dropout",
    "Flatten",
    "GaussianNoise",
    "Glorot",
    "He",
    "Initializer",
    "Layer",
    "LayerNorm",
    "LeCun",
    "Normal",
    "Orthogonal",
    "Penalty",
    "Rescale",
    "Residual",
    "Sequential",
    "TruncatedNormal",
    "Uniform",
    "Zeros",
]
__all__ += activations.__all__
__all__ += losses.__all__


def __dir__() -> list[str]:
    return __all__
