"""The outputs of a model in evaluation mode, in one call of compiled code where every layer is compiled.

Blocks of a batch pass through all layers while they are in the caches. The bits are those of the layers one
by one. The compiled form is kept with the model; it reads the parameters anew in every call, since nobody
sees a user write into them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import gpu_views
from ..arrays.checks import check_finite
from ..arrays.memory import is_fast
from ..runtime import dispatch
from ..runtime.dtypes import Array
from .checkpoint import describe
from .layers import Layer

if TYPE_CHECKING:
    from .sequential import Sequential


def described(model: Sequential, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return what compiled code is told of a model: layers as in a file, sizes of an example, all arrays."""
    buffers = model._named("buffers")
    layers = json.dumps(describe("layers", model.layers))
    return layers, (math.prod(shape), shape[-1]), model.flat_parameters, model.flat_gradients, buffers


def outputs(model: Sequential, name: str, x: Any) -> tuple[Array, Array] | None:
    """Return the outputs for a batch in evaluation mode, and the batch as an array that was checked.

    None if compiled code cannot compute them: for a model or a batch on a GPU, on another backend, or with a
    layer that is not compiled.

    Raises
    ------
    TypeError, ValueError
        As `Sequential.check_input`.
    """
    if model._place.queue is not None or dispatch.current().name != "native" or gpu_views.is_on_gpu(x):
        return None
    x = model._converted(name, x, keep_bytes=True)
    shape = x.shape[1:]
    try:  # another thread may be using the one that was made last
        predictor = model._predictors.pop()
    except IndexError:
        predictor = None
    if predictor is None or not predictor.fits(model, shape):
        model._check_shape(name, x.shape)
        if not _is_compiled(model):
            return None
        try:
            predictor = Predictor(model, shape)
        except (TypeError, ValueError, RuntimeError):
            return None  # the layers compute what compiled code refuses, or refuse it in their own words
    if predictor.takes_statistics and len(x) < 2:
        model._predictors.append(predictor)
        return None  # the layers say that statistics take more values, where they do
    y = np.empty((len(x), *predictor.output_shape), model.dtype)
    finite = predictor.predict(x, y)
    model._predictors.append(predictor)
    if not finite:
        check_finite(name, x)
    return y, x


class Predictor:
    """The compiled form of a model, for inputs of one shape."""

    def __init__(self, model: Sequential, shape: tuple[int, ...]) -> None:
        from ..runtime import _native

        kind = _native.Predictor32 if model.dtype == np.float32 else _native.Predictor64
        self.predict = kind(described(model, shape)).predict
        self.output_shape = model.output_shape(shape)
        self.takes_statistics = any(layer.takes_statistics(False) for layer in _all_layers(model.layers))
        self._layers, self._shape = model.layers, shape
        self._options = [(layer, _options_of(layer)) for layer in _all_layers(model.layers)]
        self._arrays = list(model._named("parameters", "buffers").values())  # alive, for their ids
        self._made_of = self._parts()

    def fits(self, model: Sequential, shape: tuple[int, ...]) -> bool:
        """Return whether the model still has the layers, options and arrays of which this was made."""
        return model.layers is self._layers and shape == self._shape and self._parts() == self._made_of

    def _parts(self) -> list[Any]:
        return [
            (
                options(layer),
                "forward" in vars(layer),
                *map(id, layer.parameters.values()),
                *map(id, layer.buffers.values()),
            )
            for layer, options in self._options
        ]


def _options_of(layer: Layer) -> Any:
    """Return a function of a layer: all its options."""
    return attrgetter(*layer.arguments) if layer.arguments else type


def _all_layers(layers: Iterable[Layer]) -> Iterator[Layer]:
    for layer in layers:
        yield layer
        yield from _all_layers(layer.block)


@cache
def _kinds() -> frozenset[str]:
    """Return the names of the layers that are compiled."""
    from ..runtime import _native

    return frozenset(_native.compiled_kinds()[0])


def _is_compiled(model: Sequential) -> bool:
    """Return whether all layers are compiled, and have the arrays that the model gave them."""
    for layer in _all_layers(model.layers):
        name = type(layer).__name__
        if name not in _kinds() or Layer.kinds.get(name) is not type(layer) or "forward" in vars(layer):
            return False
    buffers = model._named("buffers").values()
    arrays = [model.flat_parameters, model.flat_gradients, *buffers]
    if model.flat_parameters.size == 0 or not all(is_fast(a) and a.flags.writeable for a in arrays):
        return False
    address = model.flat_parameters.ctypes.data
    for p in model._named("parameters").values():
        if p.ctypes.data != address or p.dtype != model.dtype or not is_fast(p):
            return False
        address += p.nbytes
    if address != model.flat_parameters.ctypes.data + model.flat_parameters.nbytes:
        return False
    return all(a.dtype in (model.dtype, np.int64) for a in buffers)
