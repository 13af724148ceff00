"""Layers and losses as the textbook has them, in float64 and one element at a time where that is clearer."""

import math

import numpy as np

erfc = np.vectorize(math.erfc, otypes=[float])

ACTIVATIONS = {
    None: lambda z: z,
    "relu": lambda z: np.where(z > 0, z, 0 * z),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "identity": lambda z: z,
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(z)),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z)),
    "gelu": lambda z: z * erfc(-z / math.sqrt(2)) / 2,
    "gelu_tanh": lambda z: z / (1 + np.exp(-math.sqrt(8 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "softplus": lambda z: np.logaddexp(z, 0),
    "hardtanh": lambda z: np.clip(z, -1, 1),
    "hardsigmoid": lambda z: np.clip(z + 3, 0, 6) / 6,
    "hardswish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
}


def dense(x, weight, bias, activation=None):
    z = np.einsum("ni,oi->no", x, weight) + (0 if bias is None else bias)
    return ACTIVATIONS[activation](z)


def batch_norm(x, gamma, beta, eps):
    """Over every axis but the second."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c]
        y[:, c] = (values - values.mean()) / np.sqrt(values.var() + eps) * gamma[c] + beta[c]
    return y


def layer_norm(x, gamma, beta, eps):
    """Over the last dimensions, as many as gamma has."""
    y = np.empty_like(x)
    for index in np.ndindex(x.shape[: x.ndim - gamma.ndim]):
        values = x[index]
        y[index] = (values - values.mean()) / np.sqrt(values.var() + eps) * gamma + beta
    return y


def cross_entropy(logits, labels):
    losses = []
    for row, label in zip(logits, labels, strict=True):
        shifted = row - row.max()
        losses.append(np.log(np.exp(shifted).sum()) - shifted[label])
    return np.mean(losses)


def numerical_gradient(f, x, h=1e-6):
    """Central differences of a scalar function of a float64 array."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + h
        above = f()
        x[index] = kept - h
        gradient[index] = (above - f()) / (2 * h)
        x[index] = kept
    return gradient


# For each layer that is no elementwise activation: its arguments for inputs of 8 features, and its output in
# evaluation as a function of these inputs and of the layer's arrays.
LAYERS = {
    "BatchNorm": (
        {"features": 8, "eps": 1e-3},
        lambda x, a: (x - a["running_mean"]) / np.sqrt(a["running_var"] + 1e-3) * a["weight"] + a["bias"],
    ),
    "Dense": (
        {"in_features": 8, "out_features": 8, "activation": "tanh"},
        lambda x, a: dense(x, a["weight"], a["bias"], "tanh"),
    ),
    "Dropout": ({"p": 0.3}, lambda x, a: x),
    "Flatten": ({}, lambda x, a: x),
    "GaussianNoise": ({"std": 0.2}, lambda x, a: x),
    "LayerNorm": ({"features": 8, "eps": 1e-3}, lambda x, a: layer_norm(x, a["weight"], a["bias"], 1e-3)),
    "LogSoftmax": ({}, lambda x, a: x - np.log(np.exp(x).sum(axis=1, keepdims=True))),
    "Rescale": ({"scale": 1 / 3, "shift": 0.25}, lambda x, a: x / 3 + 0.25),
    "Softmax": ({}, lambda x, a: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)),
}
