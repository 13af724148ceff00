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
from .losses import MSE, CrossEntropy, Loss
from .noise import Dropout, GaussianNoise
from .sequential import Sequential

__all__ = [
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
