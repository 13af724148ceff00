"""Exact products of a Hessian and a vector: forward mode over backpropagation (Pearlmutter 1994).

A forward and a backward pass, written down once, run on numbers that carry a tangent along: how they change
as the parameters move along the vector. The tangent of the gradient is the product. All in float64 on NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import nn
from ..formulas.activations import ACTIVATIONS
from ..formulas.losses import POINTWISE
from ..nn.activations import Activation
from ..nn.layers import Layer
from ..nn.noise import Dropout, GaussianNoise
from ..runtime.dtypes import Array


@dataclass(slots=True)
class Dual:
    """An array and its tangent."""

    value: Any
    tangent: Any

    def __add__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value + other.value, self.tangent + other.tangent)

    def __sub__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value - other.value, self.tangent - other.tangent)

    def __mul__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value * other.value, self.tangent * other.value + self.value * other.tangent)

    def __matmul__(self, other: Dual) -> Dual:
        return Dual(self.value @ other.value, self.tangent @ other.value + self.value @ other.tangent)

    def of(self, function: Callable[[Any], Any]) -> Dual:
        """A linear function of the array, such as a sum or a transpose."""
        return Dual(function(self.value), function(self.tangent))

    def sum(self, axis: Any = -1) -> Dual:
        return self.of(lambda a: a.sum(axis, keepdims=True))

    def mean(self, axis: Any) -> Dual:
        return self.of(lambda a: a.mean(axis, keepdims=True))

    def power(self, exponent: float) -> Dual:
        slope = exponent * self.value ** (exponent - 1)
        return Dual(self.value**exponent, slope * self.tangent)

    def softmax(self, temperature: float = 1.0) -> Dual:
        e = np.exp((self.value - self.value.max(-1, keepdims=True)) / temperature)
        s = e / e.sum(-1, keepdims=True)
        inner = (s * self.tangent).sum(-1, keepdims=True)
        return Dual(s, s * (self.tangent - inner) / temperature)


def _dual(value: Any) -> Dual:
    return value if isinstance(value, Dual) else Dual(value, 0.0)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _silu(x: Array, b: float = 1.0) -> Any:
    """Return the second derivative of ``x * sigmoid(b * x)``."""
    s = _sigmoid(b * x)
    return b * s * (1 - s) * (2 + b * x * (1 - 2 * s))


def _gelu_tanh(x: Array) -> Any:
    """Return the second derivative of ``x * sigmoid(u)``, u = c (x + 0.044715 x^3)."""
    c = 1.5957691216057308
    s = _sigmoid(c * (x + 0.044715 * x**3))
    first, second = c * (1 + 0.134145 * x * x), c * 0.26829 * x
    slope = s * (1 - s)
    return 2 * slope * first + x * slope * ((1 - 2 * s) * first**2 + second)


# The second derivative of each activation that is not piecewise linear, as a function of (x, y, a).
_CURVED: dict[str, Callable[[Array, Array, float], Any]] = {
    "sigmoid": lambda x, y, a: y * (1 - y) * (1 - 2 * y),
    "tanh": lambda x, y, a: -2 * y * (1 - y * y),
    "elu": lambda x, y, a: np.where(x > 0, 0.0, y + a),
    "selu": lambda x, y, a: np.where(x > 0, 0.0, y + 1.0507009873554804934 * 1.6732632423543772848),
    "silu": lambda x, y, a: _silu(x),
    "softplus": lambda x, y, a: a * _sigmoid(a * x) * (1 - _sigmoid(a * x)),
    "gelu": lambda x, y, a: np.exp(-0.5 * x * x) * (2 - x * x) / np.sqrt(2 * np.pi),
    "gelu_tanh": lambda x, y, a: _gelu_tanh(x),
    "hardswish": lambda x, y, a: np.where(np.abs(x) < 3, 1 / 3, 0.0),
}

Back = Callable[[Dual], Dual]  # from the gradient of an output to that of the input
Kept = dict[int, dict[str, Dual]]  # of each layer, by id: parameters, or their gradients


def _activation(x: Dual, kind: str, numbers: tuple[float, ...] = ()) -> tuple[Dual, Back]:
    a, b = (*numbers, 0.0, 0.0)[:2]
    formula = ACTIVATIONS[kind]
    value = formula.value(x.value, a, b)
    slope = np.asarray(formula.slope(x.value if formula.keeps_input else value, a, b), np.float64)
    curve = _CURVED[kind](x.value, value, a) if kind in _CURVED else 0.0
    factor = Dual(slope, curve * x.tangent)
    return Dual(value, slope * x.tangent), lambda dy: dy * factor


def _dense(layer: Any, x: Dual, p: dict[str, Dual], into: dict[str, Dual]) -> tuple[Dual, Back]:
    z = x @ p["weight"].of(np.transpose)
    if "bias" in p:
        z = z + p["bias"]
    y, through = _activation(z, layer.activation or "identity")

    def back(dy: Dual) -> Dual:
        dz = through(dy)
        into["weight"] = dz.of(np.transpose) @ x
        into["bias"] = dz.of(lambda a: a.sum(0))
        return dz @ p["weight"]

    return y, back


def _norm(layer: Any, x: Dual, p: dict[str, Dual], into: dict[str, Dual]) -> tuple[Dual, Back]:
    """Normalise over the batch and space (BatchNorm), or over the last dimensions (LayerNorm)."""
    shape = x.value.shape
    by_channel = isinstance(layer, nn.BatchNorm)
    if by_channel:
        axes: tuple[int, ...] = (0, *range(2, len(shape)))
        others, own = axes, (-1, *[1] * (len(shape) - 2))
    else:
        axes = tuple(range(len(shape) - len(layer.features), len(shape)))
        others, own = tuple(range(axes[0])), layer.features
    fixed = by_channel and not layer.takes_statistics(True)
    if fixed:
        mean, variance = (_dual(np.asarray(layer.buffers[n], np.float64).reshape(own)) for n in _RUNNING)
    else:
        mean = x.mean(axes)
        variance = ((x - mean) * (x - mean)).mean(axes)
    inverse = (variance + layer.eps).power(-0.5)
    n = (x - mean) * inverse
    gamma = p["weight"].of(lambda a: a.reshape(own)) if layer.affine else _dual(1.0)
    y = n * gamma + p["bias"].of(lambda a: a.reshape(own)) if layer.affine else n
    through: Back = lambda dy: dy  # noqa: E731
    if getattr(layer, "activation", None):
        y, through = _activation(y, layer.activation)

    def back(dy: Dual) -> Dual:
        dy = through(dy)
        if layer.affine:
            into["weight"] = (dy * n).of(lambda a: a.sum(others))
            into["bias"] = dy.of(lambda a: a.sum(others))
        dn = dy * gamma
        dx: Dual = dn if fixed else dn - dn.mean(axes) - n * (dn * n).mean(axes)
        scaled: Dual = dx * inverse
        return scaled

    return y, back


_RUNNING = "running_mean", "running_var"


def _softmax(layer: Any, x: Dual) -> tuple[Dual, Back]:
    s = x.softmax()
    if not isinstance(layer, nn.LogSoftmax):
        return s, lambda dy: s * (dy - (s * dy).sum())
    shifted = x.value - x.value.max(-1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    y = Dual(log, x.tangent - (s.value * x.tangent).sum(-1, keepdims=True))
    return y, lambda dy: dy - s * dy.sum()


def _through(layers: Iterable[Layer], x: Dual, parameters: Kept, gradients: Kept) -> tuple[Dual, Back]:
    """Pass x through layers; return the output, and the way back, which fills the gradients."""
    backs: list[Back] = []
    for layer in layers:
        x, back = _through_one(layer, x, parameters, gradients)
        backs.append(back)

    def all_back(dy: Dual) -> Dual:
        for back in reversed(backs):
            dy = back(dy)
        return dy

    return x, all_back


def _through_one(layer: Any, x: Dual, parameters: Kept, gradients: Kept) -> tuple[Dual, Back]:
    own, into = parameters.get(id(layer), {}), gradients.setdefault(id(layer), {})
    if type(layer) is nn.Residual:
        inner, through = _through(layer.block, x, parameters, gradients)
        return x + inner, lambda dy: dy + through(dy)
    if type(layer) is nn.Dense:
        return _dense(layer, x, own, into)
    if type(layer) in (nn.BatchNorm, nn.LayerNorm):
        return _norm(layer, x, own, into)
    if type(layer) in (nn.Softmax, nn.LogSoftmax):
        return _softmax(layer, x)
    if isinstance(layer, Activation):
        return _activation(x, layer.kind, layer.numbers)
    if type(layer) is nn.Rescale:
        return x * layer.scale + Dual(layer.shift, 0.0), lambda dy: dy * layer.scale
    if type(layer) is nn.Flatten:
        shape = x.value.shape
        return x.of(lambda a: a.reshape(len(a), -1)), lambda dy: dy.of(lambda a: a.reshape(shape))
    return x, lambda dy: dy  # a layer that is random in training does nothing


def _loss_gradient(loss: Any, output: Dual, y: Array, weight: Array | None) -> Dual:
    """Return the gradient of the sum of a batch's losses: the mean times `nn.Loss.divisor`."""
    count = len(output.value)
    w = np.ones(count) if weight is None else weight.astype(np.float64)
    if type(loss) in (nn.CrossEntropy, nn.KLDiv):
        q = np.eye(output.value.shape[1])[y] if y.ndim == 1 else y.astype(np.float64)
        temperature = getattr(loss, "temperature", 1.0)
        if type(loss) is nn.CrossEntropy:
            q = (1 - loss.label_smoothing) * q + loss.label_smoothing / q.shape[1]
            if loss.class_weight is not None:
                q = q * np.asarray(loss.class_weight, np.float64)
        q = q * w[:, None] * temperature
        shares: Dual = output.softmax(temperature) * q.sum(1, keepdims=True) - q
        return shares
    w = w.reshape(-1, *[1] * (output.value.ndim - 1)) * count / output.value.size
    x, a = output.value, loss.parameter(np.dtype(np.float64))
    slope, curve = POINTWISE[loss.kind].slope(x, y, a), _LOSS_CURVES[loss.kind](x, y, a)
    gradient: Dual = Dual(slope, curve * output.tangent) * w
    return gradient


# The second derivatives of the pointwise losses, as functions of (x, t, a).
_LOSS_CURVES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "squared": lambda x, t, a: 2.0,
    "absolute": lambda x, t, a: 0.0,
    "huber": lambda x, t, a: np.where(np.abs(x - t) < a, 1.0, 0.0),
    "binary": lambda x, t, a: _sigmoid(x) * (1 - _sigmoid(x)) * (1 + (a - 1) * t),
    "hinge": lambda x, t, a: 0.0,
    "poisson": lambda x, t, a: np.exp(x),
}
_LAYERS = (
    nn.Dense, nn.BatchNorm, nn.LayerNorm, nn.Softmax, nn.LogSoftmax, nn.Rescale, nn.Flatten,
    Dropout, GaussianNoise,
)  # fmt: skip


def is_exact(model: nn.Sequential, loss: nn.Loss, penalty: nn.Penalty | None) -> bool:
    """Whether every layer, the loss and the penalty are ones that this file knows."""
    if penalty is not None and type(penalty)._add is not nn.Penalty._add:
        return False
    known = type(loss) in (nn.CrossEntropy, nn.KLDiv) or (
        type(loss) in nn.losses.ELEMENTWISE and getattr(loss, "kind", None) in _LOSS_CURVES
    )
    return known and all(_is_known(layer) for layer in model.layers)


def _is_known(layer: Layer) -> bool:
    if type(layer) is nn.Residual:
        return all(map(_is_known, layer.block))
    return type(layer) in _LAYERS or type(layer) in nn.activations.ELEMENTWISE


def product(
    model: nn.Sequential,
    loss: nn.Loss,
    batches: Iterable[Any],
    flat: tuple[Array, Array],
    penalty: nn.Penalty | None = None,
    divisor: float | None = None,
) -> Array:
    """Return the product with the Hessian of the mean loss plus the penalty, for all parameters.

    ``flat`` are all parameters and the vector, of the whole model; batches hold NumPy arrays. The mean is the
    sum of the losses divided by ``divisor``, by default by that of the losses.
    """
    with np.errstate(all="ignore"):
        total, own = _of_sum(model, loss, batches, flat)
    divisor = own if divisor is None else divisor
    if divisor:
        total /= divisor
    if penalty is not None:
        for begin, end in penalty._runs(model):
            total[begin:end] += penalty.l2 * flat[1][begin:end]
    return total


def _of_sum(
    model: nn.Sequential, loss: nn.Loss, batches: Iterable[Any], flat: tuple[Array, Array]
) -> tuple[Array, float]:
    """Return the product with the Hessian of the sum of the losses, and their divisor."""
    total, divisor = np.zeros(flat[0].size), 0.0
    leaves = list(model.leaves().values())
    parameters: Kept = {}
    at = 0
    for layer in leaves:
        own = parameters[id(layer)] = {}
        for name, shape in layer.parameter_shapes().items():
            size = int(np.prod(shape))
            own[name] = Dual(*(of[at : at + size].reshape(shape) for of in flat))
            at += size
    for x, y, weight in batches:
        gradients: Kept = {}
        x = x.astype(np.float64)
        output, back = _through(model.layers, Dual(x, np.zeros_like(x)), parameters, gradients)
        back(_loss_gradient(loss, output, y, weight))
        divisor += float(loss.divisor(output.value.astype(model.dtype), y))
        total += np.concatenate(
            [
                gradients[id(layer)][name].tangent.reshape(-1)
                for layer in leaves
                for name in parameters[id(layer)]
            ]
        )
    return total, divisor
