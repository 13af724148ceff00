"""Activations as layers, with PyTorch's names."""

from __future__ import annotations

from typing import ClassVar

from ..arrays.memory import empty_like
from ..formulas.activations import ACTIVATIONS
from ..ops.activations import check_parameters, softmax, softmax_gradient
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import one_of
from .layers import Layer

__all__ = [
    "ELU", "GELU", "SELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSoftmax",
    "ReLU", "Sigmoid", "SiLU", "Softmax", "Softplus", "Tanh",
]  # fmt: skip


class Activation(Layer):
    """What the layers of one elementwise activation share."""

    kind: ClassVar[str]

    def __init__(self, **parameters: float) -> None:
        super().__init__()
        self.numbers = check_parameters(self.kind, parameters)
        self.__dict__.update({name: float(value) for name, value in parameters.items()})

    def forward(self, x: Array, training: bool) -> Array:
        y: Array = empty_like(x)
        dispatch.of(x).activation_forward(self.kind, x, y, *self.numbers)
        self._kept = x if ACTIVATIONS[self.kind].keeps_input else y
        return y

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        if not need_dx:
            return None
        dx: Array = empty_like(dy)
        dispatch.of(dy).activation_backward(self.kind, dy, self._kept, dx, *self.numbers)
        return dx


class Identity(Activation):
    """``x``."""

    kind = "identity"


class ReLU(Activation):
    """``max(x, 0)``; its derivative at 0 is 0."""

    kind = "relu"


class Sigmoid(Activation):
    """``1/(1 + exp(-x))``."""

    kind = "sigmoid"


class Tanh(Activation):
    """``tanh(x)``."""

    kind = "tanh"


class LeakyReLU(Activation):
    """``x`` where positive, else ``slope * x``; slope >= 0, default 0.01 (Maas et al. 2013)."""

    kind, arguments = "leaky_relu", ("slope",)

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__(slope=slope)


class ELU(Activation):
    """``x`` where positive, else ``alpha * (exp(x) - 1)``; alpha >= 0, default 1 (Clevert et al. 2016)."""

    kind, arguments = "elu", ("alpha",)

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha=alpha)


class SELU(Activation):
    """The scaled ELU of Klambauer et al. 2017."""

    kind = "selu"


class SiLU(Activation):
    """``x * sigmoid(x)``, also called swish."""

    kind = "silu"


class Softplus(Activation):
    """``log(1 + exp(beta * x))/beta``; beta > 0, default 1. PyTorch's without its threshold."""

    kind, arguments = "softplus", ("beta",)

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__(beta=beta)


class Hardtanh(Activation):
    """``x`` clipped to [low, high], default [-1, 1]."""

    kind, arguments = "hardtanh", ("low", "high")

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(low=low, high=high)


class Hardsigmoid(Activation):
    """``(x + 3)/6`` clipped to [0, 1]."""

    kind = "hardsigmoid"


class Hardswish(Activation):
    """``x`` times its hard sigmoid (Howard et al. 2019)."""

    kind = "hardswish"


class GELU(Activation):
    """``x P(Z <= x)`` for a standard normal Z (Hendrycks & Gimpel 2016).

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "tanh" takes the authors' approximation.
    """

    arguments = ("approximate",)

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = one_of("none", "tanh").check("approximate", approximate)
        self.kind = "gelu" if approximate == "none" else "gelu_tanh"  # type: ignore[misc]
        super().__init__()


ELEMENTWISE = tuple(Activation.__subclasses__())


class Softmax(Layer):
    """``exp(x)/sum(exp(x))`` over the last axis."""

    _log = False

    def forward(self, x: Array, training: bool) -> Array:
        self._y = softmax(x, self._log)
        return self._y

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        return softmax_gradient(dy, self._y, self._log) if need_dx else None


class LogSoftmax(Softmax):
    """The logarithm of `Softmax`."""

    _log = True
