"""The structures that parameters and gradients come in: an array, a sequence, a mapping, or groups of them.

The keys of a group are None for a single array, else the mapping's names or the sequence's indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import gpu_views, tensors
from ..runtime import dispatch
from ..runtime.dtypes import Array

Keys = list[Any] | None


def is_groups(params: Any) -> bool:
    """Whether these are groups with hyperparameters of their own."""
    return (
        isinstance(params, Sequence)
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def flatten(label: str, params: Any) -> tuple[Keys, list[Any]]:
    """Return a group's keys and arrays; subclasses of ndarray and CPU tensors become plain arrays."""
    if isinstance(params, np.ndarray):
        return None, [_parameter(label, params)]
    if isinstance(params, Mapping | list | tuple):
        keys = list(params) if isinstance(params, Mapping) else list(range(len(params)))
        return keys, [_parameter(f"{label}[{key!r}]", params[key]) for key in keys]
    if hasattr(params, "__dlpack__") or gpu_views.is_on_gpu(params):
        return None, [_parameter(label, params)]
    raise TypeError(
        f"{label} is a {type(params).__name__}, expected an array, a list, tuple or dict of arrays, "
        "or a list of group dicts"
    )


def _parameter(name: str, value: Any) -> Any:
    if getattr(value, "requires_grad", False) and not value.is_leaf:
        raise ValueError(f"{name} is computed from other tensors, expected a leaf or a detached tensor")
    if gpu_views.is_on_gpu(value):
        dispatch.for_device()  # raises if no backend for GPUs runs
        return gpu_views.view_of_parameter(name, value)
    return tensors.in_place(name, value)


def names_of(label: str, keys: Keys) -> list[str]:
    """What messages call the parameters of a group."""
    return [label] if keys is None else [f"{label}[{key!r}]" for key in keys]


def own_names(keys: Keys) -> list[str]:
    """What users call the parameters of a group: the names of a mapping, or the places in a sequence."""
    return ["0"] if keys is None else list(map(str, keys))


def are_names(names: Sequence[str]) -> bool:
    """Whether these tell parameters apart, and more of them than their places."""
    return len(set(names)) == len(names) and any(name != str(i) for i, name in enumerate(names))


def places(label: str, names: Sequence[str], given: Sequence[str]) -> Sequence[int]:
    """Return for each of our names its place among the given ones: the same place if either are no names.

    Raises
    ------
    ValueError
        Both are names, and not the same ones.
    """
    found = {name: i for i, name in enumerate(given)}
    if len(found) == len(given) == len(names) and found.keys() == set(names):
        return [found[name] for name in names]
    if are_names(names) and are_names(given):
        raise ValueError(f"{label} is of the parameters {list(given)}, expected {list(names)}")
    return range(len(given))


def gradient_names(names: Sequence[str]) -> list[str]:
    """What messages call the gradients of parameters with these names."""
    return [name.replace("params", "grads", 1).replace("['params']", "") for name in names]


def in_order(keys: Sequence[Keys], grouped: bool, grads: Any) -> list[Any]:
    """The gradients of all groups in the order of the parameters."""
    if not grouped:
        return _in_order_of(keys[0], "grads", grads)
    if (type(grads) is not list and not isinstance(grads, Sequence)) or len(grads) != len(keys):
        raise ValueError(f"grads is {describe(grads)}, expected a sequence of {len(keys)} groups' gradients")
    if len(keys) == 1:
        return _in_order_of(keys[0], "grads[0]", grads[0])
    return [
        g
        for i, (own, part) in enumerate(zip(keys, grads, strict=True))
        for g in _in_order_of(own, f"grads[{i}]", part)
    ]


def _in_order_of(keys: Keys, label: str, grads: Any) -> list[Any]:
    """A group's gradients in the order of its parameters."""
    if keys is None:
        return [grads]
    if type(grads) is list and len(grads) == len(keys) and (not keys or keys[0] == 0):
        return grads[:]  # another thread may change the user's list while a kernel reads the arrays
    if isinstance(grads, Mapping):
        if len(grads) == len(keys):
            try:
                return [grads[key] for key in keys]
            except KeyError:
                pass
        raise ValueError(f"{label} has the names {list(grads)}, expected {keys}")
    if not isinstance(grads, list | tuple) or len(grads) != len(keys):
        raise ValueError(f"{label} is {describe(grads)}, expected {len(keys)} arrays")
    if keys and keys[0] != 0:
        raise ValueError(f"{label} is {describe(grads)}, expected a mapping with the names {keys}")
    return list(grads)


def structured(keys: Sequence[Keys], grouped: bool, arrays: Sequence[Array]) -> Any:
    """Arrays in the order of the parameters, in the structure of the parameters."""
    remaining = iter(arrays)
    parts: list[Any] = []
    for own in keys:
        mine = [next(remaining) for _ in ([None] if own is None else own)]
        if own is None:
            parts += mine
        else:
            parts.append(dict(zip(own, mine, strict=True)))
    return parts if grouped else parts[0]


def describe(value: Any) -> str:
    """The type of a value, and its length if it has one."""
    size = f" of {len(value)}" if hasattr(value, "__len__") and getattr(value, "shape", 1) != () else ""
    return f"a {type(value).__name__}{size}"
