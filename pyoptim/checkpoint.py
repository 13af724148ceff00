"""Models on disk: one safetensors file, with the layers in its metadata. No pickle."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np

from . import nn
from ._arrays import Array

_FORMAT = "pyoptim-model-1"


def save_model(model: nn.Sequential, path: str | Path) -> None:
    """Write a model; a file of that name is replaced only once the new one is complete."""
    from safetensors.numpy import save

    layers = []
    for i, layer in enumerate(model.layers):
        if getattr(nn, type(layer).__name__, None) is not type(layer):
            raise ValueError(f"layers[{i}] is a {type(layer).__name__}, which is not one of pyoptim.nn's")
        arguments = {name: getattr(layer, name) for name in layer.arguments}
        layers.append({"type": type(layer).__name__, **arguments})
    metadata = {"format": _FORMAT, "layers": json.dumps(layers), "dtype": model.dtype.name}
    write_atomically(path, save(model.state_dict(), metadata))


def load_model(path: str | Path) -> nn.Sequential:
    """Read a model that `save_model` wrote; ValueError for anything else."""
    metadata, tensors = _read(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is no model of pyoptim's: its format is {metadata.get('format')!r}")
    try:
        layers = [getattr(nn, layer.pop("type"))(**layer) for layer in json.loads(metadata["layers"])]
        model = nn.Sequential(*layers, dtype=metadata["dtype"])
        model.load_state_dict(tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a model of this version's layers: {error}") from error
    return model.eval()


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Array]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="np") as file:
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that whoever reads it, at any moment, sees the old or the new content whole."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
