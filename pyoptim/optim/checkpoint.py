"""Optimizers on disk: one safetensors file each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import schedules
from ..runtime.dtypes import Array
from ..runtime.files import NONSENSE, read, write
from . import hyperparameters
from .state import arranged, check_structure, order_of

if TYPE_CHECKING:
    from .optimizer import Optimizer

_FORMAT = "pyoptim-optimizer-1"


def save_optimizer(optimizer: Optimizer, path: str | Path) -> None:
    """Write what `Optimizer.state_dict` returns, and the average that follows, to a safetensors file."""
    description, tensors = optimizer_state(optimizer)
    write(path, {"format": _FORMAT, **description}, tensors)


def load_optimizer(optimizer: Optimizer, path: str | Path) -> None:
    """Take over what `save_optimizer` wrote; ValueError for anything else, and nothing is changed."""
    description, tensors = read(path, _FORMAT)
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
        options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        options = hyperparameters.checked(options, options)
        plain = {name: _plain(name, value) for name, value in options.items()}
        named = {name: group[name] for name in ("params", "param_names") if name in group}
        groups.append({**plain, **named})
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
        {
            name: value if name in ("params", "param_names") else _revived(value)
            for name, value in group.items()
        }
        for group in description["param_groups"]
    ]
    accumulated = {"count": description["accumulated"], "sums": [sums[i] for i in range(len(sums))]}
    saved = {name: description[name] for name in ("epoch", "skipped")}
    saved |= {name: description[name] for name in ("rounding", "seed") if name in description}
    saved |= {"state": state, "param_groups": groups, "accumulated": accumulated}

    average, held = optimizer.average, description.get("average")
    if held is None:
        # Files from before averages were saved do not say.
        if "average" in description and average is not None and average.count > 0:
            raise ValueError(f"it was saved without an average, but {average!r} follows this one")
        optimizer.load_state_dict(saved)
        return
    if average is None or type(average).__name__ != held[0]:
        raise ValueError(f"it was saved with the average {held[0]}, but what follows this one is {average!r}")
    before = average.state_dict()
    given, _ = check_structure(saved, len(optimizer.param_groups))
    order = order_of(arranged(optimizer, given))
    if sorted(order) != sorted(averages):
        raise ValueError(f"it has the averages of {sorted(averages)}, expected those of {sorted(order)}")
    average.load_state_dict({"count": held[1], "averages": [averages[i] for i in order]})
    try:
        optimizer.load_state_dict(saved)
    except BaseException:
        average.load_state_dict(before)
        raise


def _plain(name: str, value: Any) -> Any:
    """A hyperparameter as JSON can hold it: tuples and our schedules become dicts."""
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
    """The hyperparameter of which `_plain` made this."""
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
