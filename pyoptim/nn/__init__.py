"""Layers, losses, initialisers, and models made of them."""

from __future__ import annotations

from .activations import (
    ELU,
    GELU,
    SELU,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
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
from .losses import L1, MSE, BinaryCrossEntropy, CrossEntropy, Hinge, Huber, KLDiv, Loss
from .noise import Dropout, GaussianNoise
from .penalties import Penalty
from .residual import Residual
from .sequential import Sequential

__all__ = [
    "L1",
    "BinaryCrossEntropy",
    "Hinge",
    "Huber",
    "KLDiv",
    "Penalty",
    "Softplus",
    "Softmax",
    "SiLU",
    "LogSoftmax",
    "LeakyReLU",
    "Identity",
    "Hardtanh",
    "Hardswish",
    "Hardsigmoid",
    "SELU",
    "GELU",
    "ELU",
    "MSE",
    "BatchNorm",
    "Constant",
    "CrossEntropy",
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
    "Loss",
    "Normal",
    "Orthogonal",
    "ReLU",
    "Rescale",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "TruncatedNormal",
    "Uniform",
    "Zeros",
]


def __dir__() -> list[str]:
    return __all__
