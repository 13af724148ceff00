"""Models on disk: one safetensors file each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime import files
from ..runtime.dtypes import FLOATS, Array
from ..runtime.files import NONSENSE
from .layers import Dense, Layer

if TYPE_CHECKING:
    from .sequential import Sequential

_FORMAT = "pyoptim-model-1"


def save_model(model: Sequential, path: str | Path, **more: Any) -> None:
    """Write a model; a file of that name is replaced only once the new one is complete.

    ``more`` are further entries of the description, of JSON's types, which `load_described` returns.
    """
    files.write(path, {**_described(model.layers, model.dtype), **more}, model.state_dict())


def _described(layers: Sequence[Layer], dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"format": _FORMAT, "layers": describe("layers", layers), "dtype": dtype.name}


def write_one_by_one(
    path: str | Path,
    layers: Sequence[Layer],
    dtype: np.dtype[Any],
    forms: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    arrays: Callable[[], Iterator[Array]],
) -> None:
    """Write the file of a model of these layers, whose parameters and buffers come one after the other.

    ``forms`` and ``arrays`` are those of `files.write_one_by_one`.
    """
    files.write_one_by_one(path, _described(layers, dtype), forms, arrays)


@contextmanager
def opened(
    path: str | Path, layers: Sequence[Layer], dtype: np.dtype[Any]
) -> Iterator[Callable[[str], Array]]:
    """Yield what returns a parameter or buffer of a file by its name; ValueError if it is of other layers."""
    with files.opened(path, _FORMAT) as (description, tensor):
        own = json.loads(json.dumps(_described(layers, dtype)))  # tuples as the lists that they are in files
        if any(description.get(name) != value for name, value in own.items()):
            raise ValueError(f"{path} does not hold this model: its layers or its dtype are others")
        yield tensor


def describe(label: str, layers: Iterable[Layer]) -> list[dict[str, Any]]:
    """Type, options and block of each layer; ``label`` is what messages call them."""
    described = []
    for i, layer in enumerate(layers):
        name = type(layer).__name__
        if Layer.kinds.get(name) is not type(layer):
            raise ValueError(f"{label}[{i}] is a {name}, which is not one of pyoptim.nn's")
        fields = {"type": name, **{option: getattr(layer, option) for option in layer.arguments}}
        if layer.block:
            fields["block"] = describe(f"{label}[{i}].block", layer.block)
        elif not layer.trainable:
            fields["trainable"] = False
        described.append(fields)
    return described


def load_model(kind: type[Sequential], path: str | Path) -> Sequential:
    """Read a model of this class that `save_model` wrote; ValueError for anything else."""
    return load_described(kind, path)[0]


def load_described(kind: type[Sequential], path: str | Path) -> tuple[Sequential, dict[str, Any]]:
    """Read a model as `load_model`, and the description of its file."""
    description, tensors = files.read(path, _FORMAT)
    try:
        if description["dtype"] not in [dtype.name for dtype in FLOATS]:
            raise ValueError(f"its dtype is {description['dtype']!r}")
        layers = [layer_from(fields) for fields in description["layers"]]
        _check_sizes(layers, tensors)
        model = kind(*layers, dtype=description["dtype"])
        model.load_state_dict(tensors)
    except NONSENSE as error:
        raise ValueError(f"{path} does not describe a model of this version's layers: {error}") from error
    return model.eval(), description


def layer_from(fields: dict[str, Any]) -> Layer:
    """Make a layer of what `describe` returned of one; the caller gives it its weights."""
    options = {name: value for name, value in fields.items() if name not in ("type", "trainable")}
    kind = Layer.kinds.get(fields["type"])
    if kind is None:
        raise ValueError(f"{fields['type']!r} is no layer")
    for name in options:
        if name not in (*kind.arguments, "block"):  # it could change what the layer computes
            raise ValueError(f"{kind.__name__} has no argument named {name} in files")
    if "block" in options:
        options["block"] = [layer_from(inner) for inner in options["block"]]
    undrawn: dict[str, Any] = {"init": "zeros"} if kind is Dense else {}  # costs less than random numbers
    layer = kind(**options, **undrawn)
    for name, value in options.items():
        if isinstance(value, bool) is not isinstance(getattr(layer, name), bool):
            raise ValueError(f"{kind.__name__} has no valid {name}: {value!r}")
    if "trainable" in fields:
        layer.trainable = fields["trainable"]
    return layer


def _check_sizes(layers: Iterable[Layer], tensors: dict[str, Array]) -> None:
    """Refuse layers whose arrays are not the tensors, before any memory is taken for a model of them."""
    longest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    leaves = {f"{i}.{name}": leaf for i, layer in enumerate(layers) for name, leaf in layer.leaves().items()}
    for prefix, layer in leaves.items():
        wanted = layer.parameter_shapes()
        features = getattr(layer, "features", 0)
        # What the buffers begin with takes memory too.
        if getattr(layer, "track_running_stats", False) and features > longest:
            raise ValueError(f"{prefix}{layer!r} has {features} features, the file at most {longest}")
        wanted |= {name: value.shape for name, value in layer.buffer_values().items()}
        for name, shape in wanted.items():
            tensor = tensors.get(prefix + name)
            if tensor is None or tensor.shape != shape:
                came = "missing" if tensor is None else f"of shape {tensor.shape}"
                raise ValueError(f"tensor '{prefix}{name}' is {came}, expected shape {shape}")
