"""Layers: each owns views of its model's parameter and gradient buffers.

A layer is made first and given its memory by the model that takes it, so that all parameters lie in one
buffer. ``forward`` keeps what ``backward`` needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from ..arrays import memory
from ..arrays.memory import as_channels, empty, empty_like, views
from ..formulas.norms import NormOptions
from ..ops.batch_norm import check_norm_activation, check_values_per_channel, norm_forward
from ..ops.dense import check_activation
from ..ops.layer_norm import check_features
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import AT_LEAST_ZERO, FLAG, NUMBER, SHARE, check_count, check_flag, one_of, shown
from . import initializers, norm_of_ranks
from .initializers import Initializer

__all__ = ["BatchNorm", "Dense", "Flatten", "Layer", "LayerNorm", "Rescale"]


class Layer:
    """What a model asks of a layer.

    Subclasses implement ``output_shape``, ``forward`` and ``backward``; those with parameters also
    ``parameter_shapes`` and ``initialize``. Arrays that reach a layer are contiguous and of the model's
    dtype; the first dimension is the batch.

    Attributes
    ----------
    trainable : bool
        True; False freezes the layer: see `Sequential`.
    parameters, gradients, buffers : dict of str to array
        The layer's own arrays.
    """

    arguments: ClassVar[tuple[str, ...]] = ()  # of __init__, kept as attributes of these names
    block: tuple[Layer, ...] = ()  # the layers inside this one
    # The layers of pyoptim.nn by their names, which files use; not those that users derive.
    kinds: ClassVar[dict[str, type[Layer]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.rpartition(".")[0] == __package__:
            Layer.kinds[cls.__name__] = cls

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}  # state that is saved but not trained
        self.owned = False  # whether a model or a block has taken the layer
        self._trainable = True

    @property
    def trainable(self) -> bool:
        """Whether the layer learns."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if not FLAG.allowed(value):
            raise TypeError(f"trainable is {shown(value)}, expected {FLAG.expected}")
        self._trainable = bool(value)

    @property
    def learns(self) -> bool:
        """Whether there is a parameter that learns."""
        return self.trainable and bool(self.parameters)

    def leaves(self) -> dict[str, Layer]:
        """The layers that hold arrays, by the prefix of their arrays' names: this layer, without a prefix."""
        return {"": self}

    @property
    def chains(self) -> Sequence[Sequence[Layer]]:
        """The chains of layers inside this one, each of which takes its input."""
        return (self.block,) if self.block else ()

    def parameter_count(self) -> int:
        """Elements of all parameters."""
        shapes = (shape for leaf in self.leaves().values() for shape in leaf.parameter_shapes().values())
        return sum(map(math.prod, shapes))

    def bind(self, parameters: Array, gradients: Array) -> None:
        """Make the layer's arrays views of these vectors of `parameter_count` elements."""
        shapes = self.parameter_shapes()
        self.parameters = dict(zip(shapes, views(parameters, list(shapes.values())), strict=True))
        self.gradients = dict(zip(shapes, views(gradients, list(shapes.values())), strict=True))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters."""
        return {}

    def buffer_values(self) -> dict[str, Array]:
        """Names and first values of the buffers."""
        return {}

    def initialize(self, rng: np.random.Generator) -> None:
        """Write first values into ``self.parameters``."""

    def takes_statistics(self, training: bool) -> bool:
        """Whether outputs depend on the whole batch, by statistics of it."""
        return False

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one output, from that of one input; ValueError where the input does not fit."""
        return shape

    def forward(self, x: Array, training: bool) -> Array:
        """The output for a batch x."""
        raise NotImplementedError

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        """Write the parameters' gradients; return that of the last forward's input, if needed.

        The gradients of a layer that is not trainable are not wanted.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.arguments)
        return f"{type(self).__name__}({values})"


class Dense(Layer):
    """``y = activation(x W^T + b)`` with W of shape (out, in), as `torch.nn.Linear`.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
    activation : {None, "relu", "sigmoid", "tanh"}
        Fused into the layer.
    init : str or callable
        "glorot", "he", "lecun", "normal", "orthogonal", "truncated_normal", "uniform" or "zeros", of the
        weight; the bias begins at 0. A callable takes a `numpy.random.Generator` and a shape.
    """

    arguments = ("in_features", "out_features", "bias", "activation")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        init: str | Initializer = "glorot",
    ) -> None:
        super().__init__()
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        check_activation(activation)
        self.in_features, self.out_features = int(in_features), int(out_features)
        self.bias, self.activation = check_flag("bias", bias), activation
        self._init = initializers.get("init", init)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        return shapes

    def initialize(self, rng: np.random.Generator) -> None:
        weight = self.parameters["weight"]
        values = np.asarray(self._init(rng, weight.shape))
        if values.shape != weight.shape:
            raise ValueError(f"init of {self!r} returned shape {values.shape}, expected {weight.shape}")
        weight[...] = values
        if self.bias:
            self.parameters["bias"][...] = 0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape != (self.in_features,):
            raise ValueError(f"{self!r} has an input of shape {shape}, expected ({self.in_features},)")
        return (self.out_features,)

    def forward(self, x: Array, training: bool) -> Array:
        y: Array = empty((x.shape[0], self.out_features), x)
        dispatch.of(x).dense_forward(
            x, self.parameters["weight"], self.parameters.get("bias"), self.activation, y
        )
        self._x, self._y = x, y
        return y

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        dx = empty_like(self._x) if need_dx else None
        weight, kept = self.parameters["weight"], (self._y, self.activation)
        wanted = self.gradients if self.trainable else {}
        gradients = dx, wanted.get("weight"), wanted.get("bias")
        dispatch.of(dy).dense_backward(dy, self._x, weight, *kept, *gradients)
        return dx


class _Affine(Layer):
    """What the layers share that, if ``affine``, scale by a gamma (``weight``) and add a beta (``bias``)."""

    features: Any  # the shape of both, or their length
    affine: bool

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shape = self.features if isinstance(self.features, tuple) else (self.features,)
        return {"weight": shape, "bias": shape} if self.affine else {}

    def initialize(self, rng: np.random.Generator) -> None:
        if self.affine:
            self.parameters["weight"][...] = 1
            self.parameters["bias"][...] = 0

    def _vectors(self, arrays: dict[str, Array]) -> tuple[Array | None, Array | None]:
        """Return gamma and beta, or their gradients, as vectors."""
        return arrays.get("weight"), arrays.get("bias")

    def _outputs(self, dx: Array | None, x: Array) -> tuple[Array | None, Any, Any]:
        """Return what the backward pass writes: dx in the shape of x, and the gradients of gamma and beta."""
        dgamma, dbeta = self._vectors(self.gradients)
        if not self.learns:  # nobody reads them
            dgamma, dbeta = (empty((int(np.prod(self.features)),), x) for _ in range(2))
        return None if dx is None else dx.reshape(x.shape), dgamma, dbeta


class BatchNorm(_Affine):
    """Batch normalisation over (N, C) and (N, C, *spatial), as `torch.nn.BatchNorm1d` to `3d`.

    Parameters
    ----------
    features : int
        C, the number of channels.
    eps : float, default 1e-5
    momentum : float or None, default 0.1
        The weight of the NEW value in the running statistics (Keras's is the old one's); None takes the
        cumulative mean.
    affine : bool, default True
        Whether there are a gamma (``weight``) and a beta (``bias``).
    track_running_stats : bool, default True
        Without, evaluation uses the batch's statistics too.
    running_var : {"unbiased", "biased"}
        What the running variance averages; "biased" is Keras's and TensorFlow's.
    activation : {None, "relu"}
        Fused into the layer.

    Notes
    -----
    Training needs more than one value per channel. With ``trainable = False`` the layer normalises by its
    running statistics in training too and leaves them as they are, as Keras's does.
    """

    arguments = ("features", "eps", "momentum", "affine", "track_running_stats", "running_var", "activation")
    _sum_up: norm_of_ranks.SumUp | None = None  # while statistics are those of several processes
    _saved: Any

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running_var: str = "unbiased",
        activation: str | None = None,
    ) -> None:
        super().__init__()
        check_count("features", features)
        self.features, self.eps = int(features), AT_LEAST_ZERO.number("eps", eps)
        self.momentum = None if momentum is None else SHARE.number("momentum", momentum)
        self.affine = check_flag("affine", affine)
        self.track_running_stats = check_flag("track_running_stats", track_running_stats)
        self.running_var = one_of("unbiased", "biased").check("running_var", running_var)
        check_norm_activation(activation)
        self.activation = activation

    def buffer_values(self) -> dict[str, Array]:
        if not self.track_running_stats:
            return {}
        return {
            "running_mean": np.zeros(self.features),
            "running_var": np.ones(self.features),
            "num_batches_tracked": np.zeros((), np.int64),
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or shape[0] != self.features:
            raise ValueError(f"{self!r} has an input of shape {shape}, expected ({self.features}, *spatial)")
        return shape

    def takes_statistics(self, training: bool) -> bool:
        return (training and self.trainable) or not self.track_running_stats

    def forward(self, x: Array, training: bool) -> Array:
        training = training and self.trainable
        x3 = as_channels(x)
        y: Array = empty_like(x)
        momentum = self.momentum
        tracked = self.buffers.get("num_batches_tracked")
        if momentum is None:
            momentum = 0.0 if tracked is None else _share(int(tracked) + 1, x)
        unbiased, relu = self.running_var == "unbiased", self.activation is not None
        options = NormOptions(momentum, self.eps, training, unbiased, relu)
        running = self.buffers.get("running_mean"), self.buffers.get("running_var")
        affine, y3 = self._vectors(self.parameters), y.reshape(x3.shape)
        takes = self.takes_statistics(training)
        if takes and self._sum_up is not None:
            self._saved = norm_of_ranks.forward(x3, affine, running, options, y3, self._sum_up)
        else:
            if takes:
                check_values_per_channel(x3)
            self._saved = norm_forward(x3, affine, running, options, y3)
        if training and tracked is not None:
            tracked += 1
        self._x = x3
        return y

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        x, saved = self._x, self._saved
        dx = empty_like(dy) if need_dx else None
        affine, relu = self._vectors(self.parameters), self.activation is not None
        dy, outputs = dy.reshape(x.shape), self._outputs(dx, x)
        if isinstance(saved, norm_of_ranks.Saved) and self._sum_up is not None:
            norm_of_ranks.backward(dy, x, affine, saved, relu, outputs, self._sum_up)
        else:
            dispatch.of(dy).norm_backward(dy, x, affine, saved, relu, outputs)
        return dx

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_sum_up"}


class LayerNorm(_Affine):
    """Layer normalisation over the last dimensions (Ba, Kiros & Hinton 2016), as `torch.nn.LayerNorm`.

    Parameters
    ----------
    features : int or tuple of int
        The dimensions that are normalised together: of an input (N, ..., *features).
    eps : float, default 1e-5
    affine : bool, default True
        Whether there are a gamma (``weight``) and a beta (``bias``), of shape ``features``.
    """

    arguments = ("features", "eps", "affine")

    def __init__(self, features: int | tuple[int, ...], eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.features, self.eps = check_features(features), AT_LEAST_ZERO.number("eps", eps)
        self.affine = check_flag("affine", affine)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[-len(self.features) :] != self.features:
            expected = ", ".join(map(str, self.features))
            raise ValueError(f"{self!r} has an input of shape {shape}, expected (..., {expected})")
        return shape

    def forward(self, x: Array, training: bool) -> Array:
        size = math.prod(self.features)
        rows = x.reshape(x.size // size, size)
        y: Array = empty_like(x)
        self._saved = empty((len(rows),), x), empty((len(rows),), x)  # mean, inverse standard deviation
        affine = self._vectors(self.parameters)
        dispatch.of(x).layer_norm_forward(rows, affine, self.eps, y.reshape(rows.shape), self._saved)
        self._x = rows
        return y

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        x = self._x
        dx = empty_like(dy) if need_dx else None
        gamma, _ = self._vectors(self.parameters)
        dispatch.of(dy).layer_norm_backward(dy.reshape(x.shape), x, gamma, self._saved, self._outputs(dx, x))
        return dx

    def _vectors(self, arrays: dict[str, Array]) -> tuple[Array | None, Array | None]:
        if not self.affine:
            return None, None
        return arrays["weight"].reshape(-1), arrays["bias"].reshape(-1)


class Flatten(Layer):
    """(N, ...) as (N, features)."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)

    def forward(self, x: Array, training: bool) -> Array:
        self._shape = x.shape
        return x.reshape(x.shape[0], *self.output_shape(x.shape[1:]))

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        return dy.reshape(self._shape)


class Rescale(Layer):
    """``scale * x + shift``: the first layer for images of bytes, which then stay bytes in memory.

    Parameters
    ----------
    scale : float, default 1/255
    shift : float, default 0
    """

    arguments = ("scale", "shift")

    def __init__(self, scale: float = 1 / 255, shift: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = NUMBER.number("scale", scale), NUMBER.number("shift", shift)

    def forward(self, x: Array, training: bool) -> Array:
        return memory.affine(x, self.scale, self.shift)

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        return memory.affine(dy, self.scale)


def _share(count: int, like: Any) -> float:
    """Return the momentum that makes running statistics the mean over ``count`` batches.

    A GPU repeats captured steps with equal arguments. Its kernel takes minus the count, and adds to the count
    the number of steps repeated.
    """
    return 1.0 / count if isinstance(like, np.ndarray) else -float(count)


def check_layers(label: str, layers: Sequence[Any]) -> None:
    """Check that there are layers, each of them once, and none that belongs to another model."""
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"{label}[{i}] is a {type(layer).__name__}, expected a Layer")
        if layer.owned or layer in layers[:i]:
            raise ValueError(f"{label}[{i}] ({layer!r}) already belongs to a model")
    if not layers:
        raise ValueError(f"{label} is empty, expected at least one layer")


def walk(label: str, layers: Iterable[Layer]) -> Iterator[tuple[str, Layer]]:
    """Yield each layer with its name in messages; of a `Residual`, the layers in its block."""
    for i, layer in enumerate(layers):
        if type(layer) is Layer.kinds["Residual"]:
            yield from walk(f"{label}[{i}].block", layer.block)
        else:
            yield f"{label}[{i}]", layer


def bind(layers: Sequence[Layer], parameters: Array, gradients: Array) -> None:
    """Give each layer its part of the vectors, in order."""
    begin = 0
    for layer in layers:
        end = begin + layer.parameter_count()
        layer.bind(parameters[begin:end], gradients[begin:end])
        begin = end


def backward(layers: Sequence[Layer], dy: Array, need_dx: bool) -> Array | None:
    """Pass a gradient back through a chain of layers, down to the first that learns unless dx is needed."""
    gradient: Array | None = dy
    first = 0 if need_dx else next((i for i, layer in enumerate(layers) if layer.learns), len(layers))
    for i in range(len(layers) - 1, first - 1, -1):
        assert gradient is not None
        gradient = layers[i].backward(gradient, need_dx or i > first)
    return gradient
