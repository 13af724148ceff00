"""A chain of layers whose parameters lie in one buffer and whose gradients lie in another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .._arrays import FLOATS, Array, aligned_zeros, check_finite, check_like, views
from .layers import Layer


class Sequential:
    """A chain of layers.

    Parameters
    ----------
    *layers : Layer
        Each belongs to one model only.
    seed : int, optional
        Of the first values of the parameters; without, they differ from run to run.
    dtype : float32 or float64, default float32

    Attributes
    ----------
    flat_parameters, flat_gradients : array
        All parameters, and all gradients, as one vector each; every layer's are views of them.

    Examples
    --------
    >>> model = Sequential(Dense(64, 128), ReLU(), Dense(128, 10), seed=0)
    >>> logits = model(x)
    """

    def __init__(self, *layers: Layer, seed: int | None = None, dtype: DTypeLike = np.float32) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}] is a {type(layer).__name__}, expected a Layer")
            if layer.owned or layer in layers[:i]:
                raise ValueError(f"layers[{i}] ({layer!r}) already belongs to a model")
        if not layers:
            raise ValueError("expected at least one layer")
        self.dtype = np.dtype(dtype)
        if self.dtype not in FLOATS:
            raise TypeError(f"dtype is {self.dtype}, expected float32 or float64")
        self.layers = layers
        self.training = True
        self._output_shape: tuple[int, ...] | None = None  # of the last forward

        sizes = [math.prod(shape) for layer in layers for shape in layer.parameter_shapes().values()]
        self.flat_parameters = aligned_zeros(sum(sizes), self.dtype)
        self.flat_gradients = aligned_zeros(sum(sizes), self.dtype)
        self._bind()
        rng = np.random.default_rng(seed)
        for layer in layers:
            for name, value in layer.buffer_values().items():
                floating = value.dtype.kind == "f"
                layer.buffers[name] = value.astype(self.dtype) if floating else value.copy()
            layer.initialize(rng)
        for layer in layers:
            layer.owned = True

    def _bind(self) -> None:
        """Make the layers' parameters and gradients views of the two buffers."""
        shapes = {
            (i, name): shape
            for i, layer in enumerate(self.layers)
            for name, shape in layer.parameter_shapes().items()
        }
        parameters = views(self.flat_parameters, list(shapes.values()))
        gradients = views(self.flat_gradients, list(shapes.values()))
        for (i, name), parameter, gradient in zip(shapes, parameters, gradients, strict=True):
            self.layers[i].parameters[name] = parameter
            self.layers[i].gradients[name] = gradient

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and pickles hold every array by itself; an optimizer is to be made anew on the copy.
        self.__dict__.update(state)
        self._bind()

    def train(self) -> Sequential:
        """Normalise by the batch's statistics from now on; returns the model."""
        self.training = True
        return self

    def eval(self) -> Sequential:
        """Normalise by running statistics from now on; returns the model."""
        self.training = False
        return self

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one output for one input of ``shape``; ValueError where a layer does not fit."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def check_input(self, name: str, x: Any, keep_bytes: bool = False) -> Array:
        """A batch as a contiguous array of the model's dtype; of bytes where they are to be kept so.

        Raises
        ------
        TypeError, ValueError
            Not numbers, not finite, or not the shape that the first layers take.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{name} has dtype {x.dtype}, expected numbers")
        if x.ndim < 2:
            raise ValueError(f"{name} has shape {x.shape}, expected (batch, features)")
        try:
            self.output_shape(x.shape[1:])
        except ValueError as error:
            raise ValueError(f"{name} has shape {x.shape}: {error}") from None
        if keep_bytes and x.dtype == np.uint8:
            return np.ascontiguousarray(x)
        with np.errstate(over="ignore"):  # what is too large for the dtype is found to be infinite
            converted = np.ascontiguousarray(x, self.dtype)
        check_finite(name, converted)
        return converted

    def _forward(self, x: Array) -> Array:
        """The output for a checked batch."""
        for layer in self.layers:
            x = layer.forward(x, self.training)
        self._output_shape = x.shape
        return x

    def forward(self, x: Any) -> Array:
        """The output for a batch of any real dtype, e.g. (batch, features).

        `backward` reads x again, so leave it as it is until then.

        Raises
        ------
        TypeError, ValueError
            Not numbers, not finite, or not the shape that the layers take.
        """
        return self._forward(self.check_input("x", x)).copy()

    __call__ = forward

    def backward(self, dy: Array, need_dx: bool = False) -> Array | None:
        """Fill `gradients` from the gradient of the last forward's output.

        Returns
        -------
        array or None
            The gradient with respect to the input, if ``need_dx``.

        Raises
        ------
        TypeError, ValueError
            There was no forward, or dy is not of its output's shape and dtype.
        """
        if self._output_shape is None:
            raise ValueError("backward before forward: there is no output to take a gradient of")
        dy = check_like("dy", dy, self._output_shape, self.dtype, " as the last output")
        return self._backward(dy, need_dx)

    def _backward(self, dy: Array, need_dx: bool = False) -> Array | None:
        gradient: Array | None = dy
        first = 0 if need_dx else self._first_trainable()
        for i in range(len(self.layers) - 1, first - 1, -1):
            assert gradient is not None
            gradient = self.layers[i].backward(gradient, need_dx or i > first)
        return gradient

    def _first_trainable(self) -> int:
        """Nothing before it needs a gradient."""
        return next((i for i, layer in enumerate(self.layers) if layer.parameters), len(self.layers))

    def parameters(self) -> dict[str, Array]:
        """Name -> parameter, e.g. ``"0.weight"``; views of `flat_parameters`."""
        return {
            f"{i}.{name}": value
            for i, layer in enumerate(self.layers)
            for name, value in layer.parameters.items()
        }

    def gradients(self) -> dict[str, Array]:
        """Name -> gradient, with the names of `parameters`; views of `flat_gradients`."""
        return {
            f"{i}.{name}": value
            for i, layer in enumerate(self.layers)
            for name, value in layer.gradients.items()
        }

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters and buffers, with PyTorch's names."""
        return {name: value.copy() for name, value in self._state().items()}

    def _state(self) -> dict[str, Array]:
        return {
            f"{i}.{name}": value
            for i, layer in enumerate(self.layers)
            for name, value in {**layer.parameters, **layer.buffers}.items()
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over what `state_dict` of a model of the same layers returned.

        Raises
        ------
        TypeError, ValueError
            Missing or unknown names, other shapes or dtypes. Nothing is changed.
        """
        own = self._state()
        if set(state) != set(own):
            missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
            raise ValueError(f"state does not fit: missing {missing}, unknown {unknown}")
        checked = {
            name: check_like(f"state[{name!r}]", state[name], value.shape, value.dtype)
            for name, value in own.items()
        }
        for name, value in checked.items():
            own[name][...] = value

    def save(self, path: str | Path) -> None:
        """Write layers, parameters and buffers to a safetensors file, atomically."""
        from .. import checkpoint

        checkpoint.save_model(self, path)

    @staticmethod
    def load(path: str | Path) -> Sequential:
        """The model that `save` wrote.

        Raises
        ------
        ValueError
            The file is truncated, or is not a model of ours.
        """
        from .. import checkpoint

        return checkpoint.load_model(path)

    def summary(self) -> str:
        """A line per layer, and the number of parameters."""
        lines = [
            f"{i:>3}  {layer!r:<60} {sum(p.size for p in layer.parameters.values()):>10,}"
            for i, layer in enumerate(self.layers)
        ]
        return "\n".join([*lines, f"     {'parameters':<60} {self.flat_parameters.size:>10,}"])

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"
