"""Layers, losses, initialisers, and models made of them."""

from .initializers import Constant, Glorot, He, Initializer, Normal, Uniform, Zeros
from .layers import BatchNorm, Dense, Flatten, Layer, LayerNorm, ReLU, Rescale, Sigmoid, Tanh
from .losses import MSE, CrossEntropy, Loss
from .sequential import Sequential

__all__ = [
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
    "LayerNorm",
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
