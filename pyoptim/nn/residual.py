"""Shortcuts around layers."""

from __future__ import annotations

from collections.abc import Sequence

from ..arrays.memory import add
from ..backends.places import place_with
from ..runtime.dtypes import Array
from .layers import Layer, backward, bind, check_layers
from .sequential import Sequential


class Residual(Layer):
    """``x + block(x)`` (He et al. 2016): the block learns what is to be added to its input.

    Parameters
    ----------
    block : Layer, Sequential or sequence of Layer
        Its outputs have the shape of its inputs. It may hold residual layers itself.

    Attributes
    ----------
    block : tuple of Layer
        The layers that ``x`` passes through.
    trainable : bool
        Whether a layer of the block is; setting it sets it of all of them.

    Raises
    ------
    TypeError, ValueError
        The block holds something other than a layer, a layer that belongs to another model, or nothing.
        That input and output differ in shape is found when they are known, with the first data.

    Notes
    -----
    Parameters are named as PyTorch's of a module whose ``block`` is a `torch.nn.Sequential`:
    ``"3.block.0.weight"`` is the weight of the block's first layer in ``layers[3]``.

    A `Sequential` gives away its layers: its parameters move into the buffers of the model that takes the
    residual layer, in that model's dtype, and are drawn anew, from that model's seed.

    Examples
    --------
    >>> block = nn.Sequential(nn.Dense(64, 64), nn.ReLU(), nn.Dense(64, 64))
    >>> model = nn.Sequential(nn.Dense(784, 64), nn.Residual(block), nn.ReLU(), nn.Dense(64, 10))
    """

    arguments = ("block",)

    def __init__(self, block: Layer | Sequential | Sequence[Layer]) -> None:
        super().__init__()
        self._model: Sequential | None = None  # the model that brought the layers
        if isinstance(block, Sequential):
            self.block, self._model = block.give_layers("block"), block
        elif isinstance(block, Layer | list | tuple):
            self.block = (block,) if isinstance(block, Layer) else tuple(block)
            check_layers("block", self.block)
        else:
            kind = type(block).__name__
            raise TypeError(f"block is a {kind}, expected a Layer, a Sequential or a sequence of layers")
        for layer in self.block:
            layer.owned = True

    @property
    def trainable(self) -> bool:
        return any(layer.trainable for layer in self.block)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in self.block:
            layer.trainable = value

    @property
    def learns(self) -> bool:
        return any(layer.learns for layer in self.block)

    def leaves(self) -> dict[str, Layer]:
        return {
            f"block.{i}.{name}": leaf
            for i, layer in enumerate(self.block)
            for name, leaf in layer.leaves().items()
        }

    def bind(self, parameters: Array, gradients: Array) -> None:
        bind(self.block, parameters, gradients)
        if self._model is not None:  # that model goes on sharing the memory of its layers
            self._model.flat_parameters, self._model.flat_gradients = parameters, gradients
            self._model.dtype = parameters.dtype
            self._model._place = place_with(parameters)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        result = shape
        for layer in self.block:
            result = layer.output_shape(result)
        if result != shape:
            raise ValueError(f"the block of {self!r} makes {result} of {shape}, expected the same shape")
        return shape

    def forward(self, x: Array, training: bool) -> Array:
        y = x
        for layer in self.block:
            y = layer.forward(y, training)
        return add(x, y)

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        through = backward(self.block, dy, need_dx)
        if not need_dx or through is None:
            return None
        return add(dy, through)
