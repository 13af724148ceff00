"""The state of an optimizer: its arrays, and `Optimizer.state_dict` and `load_state_dict`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import checks
from ..formulas import storage
from ..formulas.rules import RULES
from ..runtime.dtypes import Array
from ..runtime.numbers import check_count, is_number
from . import stepping
from .hyperparameters import checked
from .structure import are_names, describe, own_names, places

if TYPE_CHECKING:
    from .optimizer import Group, Optimizer

State = dict[str, Array]
Scalars = dict[str, float]


# Before the first step.


def allocate(optimizer: Optimizer, group: Group, more: Sequence[str] = ()) -> list[State]:
    """Return each parameter's states, as views of one buffer for each dtype and name.

    Those whose names are in ``more`` have the parameter's shape.
    """
    params, initial = group["params"], optimizer._initial(group)
    layouts = [{**optimizer._layout(group, p.shape), **dict.fromkeys(more, p.shape)} for p in params]
    states: list[State] = [{} for _ in params]
    for dtype in dict.fromkeys(p.dtype for p in params):
        members = [i for i, p in enumerate(params) if p.dtype == dtype]
        for name in dict.fromkeys(name for i in members for name in layouts[i]):
            owners = [i for i in members if name in layouts[i]]
            shapes = [layouts[i][name] for i in owners]
            pieces = optimizer._place.zeros_beside([params[i] for i in owners], shapes, dtype)
            for i, piece in zip(owners, pieces, strict=True):
                if initial.get(name):
                    piece[...] = initial[name]
                states[i][name] = piece
    return states


def allocate_packed(optimizer: Optimizer, group: Group, more: Sequence[str] = ()) -> list[State]:
    """Return each parameter's states in fewer bits, with a float32 master if the parameter has 16."""
    initial, place = optimizer._initial(group), optimizer._place
    states: list[State] = []
    for p in group["params"]:
        state: State = {}
        for name in (*RULES[optimizer._rule(group)].states, *more):
            parts = storage.state_arrays(name, p.shape, optimizer.state_dtype).items()
            state |= {part: place.zeros(shape, dtype, p) for part, (shape, dtype) in parts}
            if initial.get(name):
                first = {part: np.zeros(shape, dtype) for part, (shape, dtype) in parts}
                values = np.full(p.size, initial[name], np.float32)
                storage.encode(storage.pack_state(name, first), values, 0, False)
                for part, array in first.items():
                    state[part][...] = array
        if p.dtype.itemsize == 2 and optimizer.rounding == "master":
            state["master"] = place.zeros(p.shape, np.float32, p)
            place.assign([state["master"]], [p])
        states.append(state)
    return states


def check_packable(optimizer: Optimizer) -> None:
    """Raise TypeError unless the rules are elementwise and no parameter is float64."""
    if optimizer._kind != "Stepper":
        raise TypeError(
            f"{type(optimizer).__name__} updates float32 and float64 parameters with states of their own "
            "dtype; 16-bit parameters and state_dtype are for the elementwise optimizers"
        )
    for name, p in optimizer.named_parameters().items():
        if p.dtype == np.float64:
            raise TypeError(
                f"{name} has dtype float64, which does not go with 16-bit parameters or state_dtype"
            )


# Out of an optimizer and into one.


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """See `Optimizer.state_dict`."""
    stepping.change_rules(optimizer)  # options that have changed since the last step may need more states
    state: dict[int, dict[str, Any]] = {}
    groups = []
    for group, scalars, states in _by_group(optimizer):
        indices = list(range(len(state), len(state) + len(states)))
        for i, arrays in zip(indices, states, strict=True):
            state[i] = {**scalars, **{name: np.array(array) for name, array in arrays.items()}}
        groups.append({**group, "params": indices})
    for saved, keys in zip(groups, optimizer._keys, strict=True):
        if are_names(names := own_names(keys)):
            saved["param_names"] = names
    return {
        "state": state,
        "param_groups": groups,
        "epoch": optimizer.epoch,
        "skipped": optimizer.skipped,
        "rounding": optimizer.rounding,
        "seed": optimizer.seed,
        "accumulated": {"count": optimizer._summed, "sums": [np.array(a) for a in optimizer._sums]},
    }


def _by_group(optimizer: Optimizer) -> Iterable[tuple[Group, Scalars, list[State]]]:
    return zip(optimizer.param_groups, optimizer._scalars, optimizer._states, strict=True)


def load_state_dict(optimizer: Optimizer, given: Mapping[str, Any]) -> None:
    """See `Optimizer.load_state_dict`: everything is checked before anything is changed."""
    groups, state = check_structure(given, len(optimizer.param_groups))
    groups = arranged(optimizer, groups)
    _check_owners(groups, state, len(optimizer._params))
    counts = {
        name: check_count(f"state_dict['{name}']", given.get(name, getattr(optimizer, name)), 0)
        for name in ("epoch", "skipped")
    }
    randomness = {
        name: getattr(type(optimizer), name).checked(
            given.get(name, getattr(optimizer, name)), f"state_dict['{name}']"
        )
        for name in ("rounding", "seed")
    }
    summed, sums = _check_accumulated(
        optimizer, given.get("accumulated", {"count": 0, "sums": []}), order_of(groups)
    )
    options = [_check_options(optimizer, i, group) for i, group in enumerate(groups)]
    copies: list[tuple[Array, Array]] = []
    held = [_held_states(optimizer, i, own, state, groups[i]["params"]) for i, own in enumerate(options)]
    scalars = [
        _check_states(optimizer, states, group["params"], state, copies)
        for states, group in zip(held, groups, strict=True)
    ]

    for array, value in copies:
        array[...] = value
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    optimizer._scalars = scalars
    rules = [RULES[optimizer._rule(group)] for group in optimizer.param_groups]
    if rules != optimizer._rules or any(map(operator.is_not, held, optimizer._states)):
        optimizer._rules, optimizer._states = rules, held
        optimizer._renew_steppers()
    optimizer.epoch, optimizer.skipped = counts["epoch"], counts["skipped"]  # PyTorch's state has neither
    optimizer._rounding, optimizer._seed = randomness["rounding"], randomness["seed"]
    optimizer._sums, optimizer._summed, optimizer._advance = sums, summed, None


def arranged(optimizer: Optimizer, given: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the groups of a state_dict in the order of the optimizer's, with its order of the parameters.

    Groups are found by the names of their parameters, and parameters by theirs, where both sides have names
    (``"param_names"``, as PyTorch calls them); else by their places.

    Raises
    ------
    ValueError
        Both have names, and others.
    """
    theirs = [_names_of(f"state_dict['param_groups'][{j}]", group) for j, group in enumerate(given)]
    ours = list(map(own_names, optimizer._keys))
    left = list(range(len(given)))
    found: dict[int, int] = {}  # the group's index in the state_dict, by ours
    for i, names in enumerate(ours):
        same = [j for j in left if are_names(names) and set(theirs[j]) == set(names)]
        if same:
            found[i] = same[0]
            left.remove(same[0])
    groups: list[Mapping[str, Any]] = []
    for i, names in enumerate(ours):
        j = found[i] if i in found else left.pop(0)
        order = places(f"state_dict['param_groups'][{j}]", names, theirs[j])
        group = {name: value for name, value in given[j].items() if name != "param_names"}
        groups.append({**group, "params": [given[j]["params"][k] for k in order]})
    return groups


def order_of(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the indices in a state_dict of the parameters of `arranged` groups."""
    return [i for group in groups for i in group["params"]]


def _names_of(label: str, group: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters of a state_dict's group, or their places if it has none."""
    count = len(group["params"])
    names = group.get("param_names", list(map(str, range(count))))
    if not isinstance(names, list | tuple) or len(names) != count or len(set(map(str, names))) != count:
        raise ValueError(f"{label}['param_names'] is {names!r:.80}, expected {count} different names")
    return list(map(str, names))


def _check_owners(groups: list[Mapping[str, Any]], state: Mapping[Any, Any], count: int) -> None:
    """Raise ValueError unless each of ``count`` parameters has a state and is in one group."""
    if set(state) != set(range(count)):
        raise ValueError(f"state_dict['state'] is of the parameters {list(state)}, expected 0 to {count - 1}")
    owned = [i for given in groups for i in given["params"]]
    if len(set(owned)) != len(owned) or not state.keys() >= set(owned):
        raise ValueError(f"state_dict's groups have the parameters {owned}, expected each once")


def _check_options(optimizer: Optimizer, i: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for group i; ValueError if they cannot be, or its size differs."""
    group, states = optimizer.param_groups[i], optimizer._states[i]
    options = {k: v for k, v in given.items() if k != "params"}
    options = checked(options, optimizer._defaults)
    optimizer._rule({**group, **options})  # raises where options contradict each other
    if len(given["params"]) != len(states):
        raise ValueError(
            f"state_dict's group has {len(given['params'])} parameters, expected {len(states)} in 'params'"
        )
    return options


def unused(optimizer: Optimizer, group: Group, entry: Mapping[str, Any]) -> list[str]:
    """Return the names in a parameter's state that are of rules which the group's options do not choose."""
    of_all = dict.fromkeys(name for rule in optimizer._rule_names for name in RULES[rule].states)
    used = RULES[optimizer._rule(group)].states
    return [name for name in of_all if name in entry and name not in used]


def _held_states(
    optimizer: Optimizer,
    i: int,
    options: Mapping[str, Any],
    state: Mapping[int, Mapping[str, Any]],
    indices: list[int],
) -> list[State]:
    """Return what will hold the states of group i under these options: its arrays, with new ones it lacks."""
    own, group = optimizer._states[i], {**optimizer.param_groups[i], **options}
    if not own:
        return own
    more = unused(optimizer, group, state[indices[0]])
    if RULES[optimizer._rule(group)] == optimizer._rules[i] and more == unused(optimizer, group, own[0]):
        return own
    fresh = optimizer._fresh_states(group, more)
    return [
        {name: kept.get(name, array) for name, array in new.items()}
        for kept, new in zip(own, fresh, strict=True)
    ]


def _check_states(
    optimizer: Optimizer,
    held: list[State],
    indices: list[int],
    state: Mapping[int, Mapping[str, Any]],
    copies: list[tuple[Array, Array]],
) -> Scalars:
    """Return a group's scalars; append pairs of a state array and its new values to ``copies``."""
    scalars = first = optimizer._first_scalars(optimizer.param_groups[0])
    late = {"begun"} if stepping.may_begin_late(optimizer) else set()
    for i, arrays in zip(indices, held, strict=True):
        label, entry = f"state_dict['state'][{i}]", state[i]
        names = [*first, *(late & entry.keys())]
        if set(entry) != {*names, *arrays}:
            raise ValueError(f"{label} has {sorted(entry)}, expected {sorted({*names, *arrays})}")
        for name, array in arrays.items():
            value = checks.check_like(f"{label}[{name!r}]", entry[name], array.shape, array.dtype)
            copies.append((array, value))
        own = _check_scalars(label, {name: entry[name] for name in names})
        if i != indices[0] and own != scalars:
            raise ValueError(f"{label} has {own}, expected {scalars}: a group steps together")
        scalars = own
    return scalars


def _check_scalars(label: str, given: Mapping[str, Any]) -> Scalars:
    scalars: Scalars = {}
    for name, value in given.items():
        whole = name != "mu_product"
        if not is_number(value) or value < 0 or (whole and value != int(value)):
            raise ValueError(f"{label}[{name!r}] is {value!r}, expected a number of steps or a product >= 0")
        scalars[name] = int(value) if whole else float(value)
    if not 1 <= scalars.get("begun", 1) <= scalars["step"] + 1:
        raise ValueError(f"{label} has {given}, expected 'begun' to be from 1 to the next step")
    return scalars


def _check_accumulated(
    optimizer: Optimizer, accumulated: Any, order: Sequence[int]
) -> tuple[int, list[Array]]:
    """Return the number of gradients gathered for ``accumulate``, and copies of their sums.

    ``order`` has the place of each parameter's sum.
    """
    label, params = "state_dict['accumulated']", optimizer._params
    if (
        not isinstance(accumulated, Mapping)
        or set(accumulated) != {"count", "sums"}
        or not isinstance(accumulated["sums"], list | tuple)
    ):
        raise ValueError(f"{label} is {describe(accumulated)}, expected a count and a list of sums")
    sums = accumulated["sums"]
    count = check_count(f"{label}['count']", accumulated["count"], 0)
    if count >= optimizer.accumulate:
        raise ValueError(
            f"{label} has {count} gradients, expected fewer than accumulate={optimizer.accumulate}"
        )
    if len(sums) != (len(params) if count else 0):
        raise ValueError(f"{label} has {len(sums)} sums of {count} gradients of {len(params)} arrays")
    dtypes = [np.dtype(np.float32) if p.dtype.itemsize == 2 else p.dtype for p in params]
    copies = [
        checks.check_like(f"{label}['sums'][{i}]", sums[i], p.shape, dtype).copy()
        for i, p, dtype in zip(order if count else (), params, dtypes, strict=False)
    ]
    return count, copies


def check_structure(
    state_dict: Any, count: int, keys_are: Any = int
) -> tuple[list[Mapping[str, Any]], Mapping[Any, Any]]:
    """Return the groups and the state of a state_dict of ``count`` groups, ours or PyTorch's.

    ``keys_are`` is the type of what stands for a parameter; `torch.distributed` writes names.

    Raises
    ------
    ValueError
        It is not made of the mappings and lists that it should be.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(
            f"state_dict is {describe(state_dict)}, expected a mapping with state and param_groups"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list | tuple):
        raise ValueError(f"state_dict['param_groups'] is {describe(groups)}, expected a list")
    if len(groups) != count:
        raise ValueError(f"state_dict has {len(groups)} parameter groups, expected {count}")
    for i, group in enumerate(groups):
        label = f"state_dict['param_groups'][{i}]"
        if not isinstance(group, Mapping):
            raise ValueError(f"{label} is {describe(group)}, expected a mapping")
        keys = group.get("params")
        if not isinstance(keys, list | tuple) or not all(isinstance(key, keys_are) for key in keys):
            raise ValueError(f"{label}['params'] is {keys!r:.80}, expected a list of integers")
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict['state'] is {describe(state)}, expected a mapping")
    for key, entry in state.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"state_dict['state'][{key!r}] is {describe(entry)}, expected a mapping")
    return list(groups), state
