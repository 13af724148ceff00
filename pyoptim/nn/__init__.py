"""Layers, losses, initialisers, and models made of them."""

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
from .initializers import Constant, Glorot, He, Initializer, Normal, Uniform, Zeros
from .layers import BatchNorm, Dense, Flatten, Layer, Rescale
from .losses import L1, MSE, BinaryCrossEntropy, CrossEntropy, Hinge, Huber, KLDiv, Loss
from .penalties import Penalty
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
    "Flatten",
    "Glorot",
    "He",
    "Initializer",
    "Layer",
    "Loss",
    "Normal",
    "ReLU",
    "Rescale",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "Uniform",
    "Zeros",
]
