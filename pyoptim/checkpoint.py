"""Models and optimizers on disk: one safetensors file each, described by JSON in its metadata. No pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _hyperparameters, nn, schedules, storage
from ._arrays import FLOATS, Array

if TYPE_CHECKING:
    from .optimizer import Optimizer

_KEY = "pyoptim"  # of the metadata, which safetensors writes in any order: so there is only one
_MODEL, _OPTIMIZER = "pyoptim-model-1", "pyoptim-optimizer-1"
_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "U8": "u1"}

# What a description that makes no sense may raise, wherever it is used.
NONSENSE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def save_model(model: nn.Sequential, path: str | Path) -> None:
    """Write a model; a file of that name is replaced only once the new one is complete."""
    layers = _described("layers", model.layers)
    write(path, {"format": _MODEL, "layers": layers, "dtype": model.dtype.name}, model.state_dict())


def _described(label: str, layers: Iterable[nn.Layer]) -> list[dict[str, Any]]:
    described = []
    for i, layer in enumerate(layers):
        if getattr(nn, type(layer).__name__, None) is not type(layer):
            raise ValueError(f"{label}[{i}] is a {type(layer).__name__}, which is not one of pyoptim.nn's")
        fields = {"type": type(layer).__name__, **{name: getattr(layer, name) for name in layer.arguments}}
        if isinstance(layer, nn.Residual):
            fields["block"] = _described(f"{label}[{i}].block", layer.block)
        elif not layer.trainable:
            fields["trainable"] = False
        described.append(fields)
    return described


def load_model(path: str | Path) -> nn.Sequential:
    """Read a model that `save_model` wrote; ValueError for anything else."""
    description, tensors = read(path, _MODEL)
    try:
        if description["dtype"] not in [dtype.name for dtype in FLOATS]:
            raise ValueError(f"its dtype is {description['dtype']!r}")
        layers = [_layer(fields) for fields in description["layers"]]
        _check_sizes(layers, tensors)
        model = nn.Sequential(*layers, dtype=description["dtype"])
        model.load_state_dict(tensors)
    except NONSENSE as error:
        raise ValueError(f"{path} does not describe a model of this version's layers: {error}") from error
    return model.eval()


def _layer(fields: dict[str, Any]) -> nn.Layer:
    name = fields["type"]
    cls = getattr(nn, name, None)
    if not isinstance(cls, type) or not issubclass(cls, nn.Layer):
        raise ValueError(f"{name!r} is no layer")
    arguments = {name: value for name, value in fields.items() if name not in ("type", "trainable")}
    if cls is nn.Residual:
        arguments["block"] = [_layer(inner) for inner in arguments["block"]]
    layer = cls(**arguments)
    if "trainable" in fields:
        layer.trainable = fields["trainable"]
    return layer


def _check_sizes(layers: Iterable[nn.Layer], tensors: dict[str, Array]) -> None:
    """Refuse layers that do not fit the tensors before any memory is taken for them."""
    values = sum(tensor.size for tensor in tensors.values())
    leaves = {f"{i}.{name}": leaf for i, layer in enumerate(layers) for name, leaf in layer.leaves().items()}
    for prefix, layer in leaves.items():
        for name, shape in layer.parameter_shapes().items():
            tensor = tensors.get(prefix + name)
            if tensor is None or tensor.shape != shape:
                came = "missing" if tensor is None else f"of shape {tensor.shape}"
                raise ValueError(f"tensor '{prefix}{name}' is {came}, expected shape {shape}")
        features = getattr(layer, "features", 0)  # of buffers
        if getattr(layer, "track_running_stats", False) and features > values:
            raise ValueError(f"{prefix}{layer!r} has {features} features, the file {values} values")


def save_optimizer(optimizer: Optimizer, path: str | Path) -> None:
    """Write what `Optimizer.state_dict` returns, and its average; as `save_model`."""
    description, tensors = optimizer_state(optimizer)
    write(path, {"format": _OPTIMIZER, **description}, tensors)


def load_optimizer(optimizer: Optimizer, path: str | Path) -> None:
    """Take over what `save_optimizer` wrote; ValueError for anything else, and nothing is changed."""
    description, tensors = read(path, _OPTIMIZER)
    try:
        restore_optimizer(optimizer, description, tensors)
    except NONSENSE as error:
        raise ValueError(f"{path} does not fit this {type(optimizer).__name__}: {error}") from error


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Array]]:
    """`Optimizer.state_dict` and the average as what JSON can hold, and arrays by name."""
    saved = optimizer.state_dict()
    tensors: dict[str, Array] = {}
    scalars = []
    for i, entry in saved["state"].items():
        scalars.append({name: v for name, v in entry.items() if not isinstance(v, np.ndarray)})
        tensors.update({f"{i}.{name}": v for name, v in entry.items() if isinstance(v, np.ndarray)})
    sums = saved["accumulated"]["sums"]
    tensors.update({f"accumulated.{i}": total for i, total in enumerate(sums)})
    average = optimizer.average
    if average is not None:
        tensors.update({f"average.{i}": np.asarray(a) for i, a in enumerate(average.averages)})
    groups = []
    for group in saved["param_groups"]:
        options = {name: value for name, value in group.items() if name != "params"}
        options = _hyperparameters.checked(options, options)
        plain = {name: _plain(name, value) for name, value in options.items()}
        groups.append({**plain, "params": group["params"]})
    description = {
        "type": type(optimizer).__name__,
        "param_groups": groups,
        "scalars": scalars,
        "epoch": saved["epoch"],
        "skipped": saved["skipped"],
        "rounding": saved["rounding"],
        "seed": saved["seed"],
        "average": None if average is None else [type(average).__name__, average.count],
        "accumulated": saved["accumulated"]["count"],
    }
    return description, tensors


def restore_optimizer(optimizer: Optimizer, description: dict[str, Any], tensors: dict[str, Array]) -> None:
    """Take over what `optimizer_state` returned; one of `NONSENSE` if it does not fit."""
    if description["type"] != type(optimizer).__name__:
        raise ValueError(f"it is the state of {description['type']!r}")
    state: dict[int, dict[str, Any]] = {i: {**s} for i, s in enumerate(description["scalars"])}
    sums: dict[int, Array] = {}
    averages: dict[int, Array] = {}
    for name, tensor in tensors.items():
        owner, _, own_name = name.partition(".")
        if owner == "accumulated":
            sums[int(own_name)] = tensor
        elif owner == "average":
            averages[int(own_name)] = tensor
        else:
            state[int(owner)][own_name] = tensor
    groups = [
        {name: value if name == "params" else _revived(value) for name, value in group.items()}
        for group in description["param_groups"]
    ]
    accumulated = {"count": description["accumulated"], "sums": [sums[i] for i in range(len(sums))]}
    saved = {name: description[name] for name in ("epoch", "skipped")}
    saved |= {name: description[name] for name in ("rounding", "seed") if name in description}
    saved |= {"state": state, "param_groups": groups, "accumulated": accumulated}

    average, held = optimizer.average, description.get("average")
    if held is None:
        optimizer.load_state_dict(saved)
        return
    if average is None or type(average).__name__ != held[0]:
        raise ValueError(f"it was saved with the average {held[0]}, but what follows this one is {average!r}")
    before = average.state_dict()
    average.load_state_dict({"count": held[1], "averages": [averages[i] for i in range(len(averages))]})
    try:
        optimizer.load_state_dict(saved)
    except BaseException:
        average.load_state_dict(before)
        raise


def _plain(name: str, value: Any) -> Any:
    """A hyperparameter as JSON: tuples and our schedules by name."""
    if isinstance(value, tuple):
        return {"tuple": [_plain(name, v) for v in value]}
    if isinstance(value, list):
        return [_plain(name, v) for v in value]
    if isinstance(value, schedules.Schedule) and type(value).__name__ in schedules.__all__:
        fields = {f.name: _plain(name, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"schedule": type(value).__name__, **fields}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name} holds {value!r}, which cannot be saved: expected pyoptim.schedules' or numbers")


def _revived(value: Any) -> Any:
    """What `_plain` was made of."""
    if isinstance(value, list):
        return [_revived(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_revived(value["tuple"]))
    fields = {name: _revived(v) for name, v in value.items() if name != "schedule"}
    if value["schedule"] not in schedules.__all__:
        raise ValueError(f"{value['schedule']!r} is no schedule")
    return getattr(schedules, value["schedule"])(**fields)


def write(path: str | Path, description: dict[str, Any], tensors: dict[str, Array]) -> None:
    from safetensors.numpy import save

    write_atomically(path, save(tensors, {_KEY: json.dumps(description, default=_python_number)}))


def _python_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"{value!r} cannot be saved, expected numbers, strings and lists")


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """The description and the tensors of a file of this kind."""
    from safetensors import SafetensorError, deserialize

    check_writable(path)
    content = Path(path).read_bytes()
    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        tensors = {name: _tensor(name, **entry) for name, entry in entries}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    except NONSENSE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        description = json.loads(header["__metadata__"][_KEY])
        found = description["format"]
    except NONSENSE as error:
        raise ValueError(f"{path} was not written by pyoptim: its metadata has no {_KEY!r}") from error
    if found != kind:
        raise ValueError(f"{path} has the format {found!r}, expected {kind!r}")
    return description, tensors


def _tensor(name: str, dtype: str, shape: list[int], data: Any) -> Array:
    if dtype == "BF16":
        try:
            numpy_dtype = storage.bfloat16()
        except ImportError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error
    elif dtype in _DTYPES:
        numpy_dtype = np.dtype(_DTYPES[dtype])
    else:
        raise ValueError(f"tensor {name!r} has dtype {dtype}, expected one of {', '.join(_DTYPES)}, BF16")
    return np.ndarray(shape, numpy_dtype, buffer=data)


def check_writable(path: str | Path) -> None:
    """Refuse what is there and is no regular file."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a directory, expected a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is a device, a pipe or a socket, expected a regular file")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that whoever reads it, at any moment, sees the old or the new content whole.

    Raises
    ------
    ValueError
        There is something at ``path`` that is no regular file.
    OSError
        It cannot be written; the error names ``path``, and what was there is as it was.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))  # a link stays a link
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:  # which names the temporary file
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
