"""PyTorch: our optimizers as `torch.optim.Optimizer`, and states exchanged with PyTorch's own.

>>> optimizer = po.torch.Optimizer(net.parameters(), po.Adam, lr=1e-3)  # was torch.optim.Adam(...)

Imported when first used; `Optimizer.step` of the package itself takes CPU tensors without it.
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import numpy as np

from .arrays.gpu import DeviceArray
from .arrays.tensors import in_place
from .formulas import storage
from .formulas.rules import RULES
from .optim import hyperparameters
from .optim.optimizer import SHARED, Group
from .optim.optimizer import Optimizer as _Ours
from .optim.state import State, arranged, check_structure, unused
from .optim.stepping import change_rules, may_begin_late
from .runtime.dtypes import Array
from .runtime.numbers import check_callable, check_type, shown

try:
    import torch
except ImportError as error:
    raise ImportError("pyoptim.torch needs PyTorch (pip install torch)") from error

try:
    from .runtime import _native
except ImportError:
    _native = None  # type: ignore[assignment]


__all__ = ["Optimizer", "load_state_dict", "state_dict"]


def __dir__() -> list[str]:
    return __all__


# What PyTorch's groups hold beside hyperparameters: how to run the update, and notes of its schedulers.
_MACHINERY = {"foreach", "fused", "capturable", "differentiable", "params", "param_names"}
_NOTES = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
_RECOMPUTED = {"eta", "mu"}  # scalars of ASGD that follow from lr and the step count
_UNCOUNTED = {"SGD", "Muon"}  # PyTorch keeps no step count for them


def state_dict(ours: _Ours) -> dict[str, Any]:
    """The state of one of our optimizers as the optimizer of that name in PyTorch loads it.

    Returns
    -------
    dict
        For ``load_state_dict`` of `torch.optim.Adam`, `torch.optim.SGD`, ... over the same parameters, in
        the same groups. Tensors are copies; states kept in 16 or 8 bits are widened.

    Raises
    ------
    ValueError
        PyTorch has no such optimizer or hyperparameter, lr is a schedule, or an accumulation is under way.
    """
    check_type("ours", ours, _Ours, "one of pyoptim's optimizers")
    name = type(ours).__name__ if type(ours).__name__ != "AMSGrad" else "Adam"
    theirs = getattr(torch.optim, name, None)
    if theirs is None:
        raise ValueError(f"PyTorch has no optimizer {name}")
    saved = ours.state_dict()
    if saved["accumulated"]["count"]:
        raise ValueError("an accumulation is under way, which PyTorch's state does not hold: step first")
    defaults = theirs([torch.zeros(1, 1)]).defaults
    fixed = {"decoupled_weight_decay"} if name == "AdamW" else set()
    groups = []
    for i, group in enumerate(saved["param_groups"]):
        for option, neutral in _neutral(type(ours)).items():
            if (option not in defaults or option in fixed) and group[option] != neutral:
                raise ValueError(
                    f"param_groups[{i}] has {option}={group[option]!r}, which torch.optim.{name} has not"
                )
        if callable(group["lr"]) or group.get("momentum_decay", 0) is None:
            option = "lr" if callable(group["lr"]) else "momentum_decay"
            raise ValueError(
                f"param_groups[{i}] has {option}={group[option]!r}, expected a number for PyTorch"
            )
        known = {k: v for k, v in group.items() if k in defaults or k == "params"}
        groups.append({**defaults, **known})
    state = {}
    for i, entry in saved["state"].items():
        if not entry["step"]:
            continue
        left_out = _not_begun(ours, entry)
        arrays = {k: v for k, v in entry.items() if isinstance(v, np.ndarray) and k not in left_out}
        names = [k for k in arrays if k != "master" and not k.endswith("_scale")]
        values = {k: torch.from_numpy(np.array(storage.read_state(k, arrays))) for k in names}
        state[i] = {**_counts(entry), **values}
    for group in groups:
        for i in group["params"] if name in _UNCOUNTED else ():
            state.get(i, {}).pop("step", None)
        for i in group["params"] if name == "ASGD" else ():
            if saved["state"][i]["step"]:
                state[i].update(_next_rates(group, saved["state"][i]["step"]))
    return {"state": {i: entry for i, entry in state.items() if entry}, "param_groups": groups}


def _next_rates(group: Mapping[str, Any], step: float) -> dict[str, torch.Tensor]:
    """What PyTorch's ASGD keeps for the step after this one."""
    lr = float(group["lr"])
    eta = lr / (1 + group["lambd"] * lr * step) ** group["alpha"]
    return {"eta": torch.tensor(float(eta)), "mu": torch.tensor(1 / max(1, step - group["t0"]))}


def load_state_dict(ours: _Ours, state_dict: Mapping[str, Any]) -> None:
    """Take over the state of PyTorch's optimizer of the same name, over the same parameters.

    Step counts and hyperparameters come too; those that PyTorch does not have get our defaults, which are
    its meaning. 16-bit states are widened for ours of float32.

    Parameters
    ----------
    ours : Optimizer
    state_dict : mapping
        What ``state_dict()`` of PyTorch's returned.

    Raises
    ------
    TypeError, ValueError
        It does not fit: the message names what. Nothing is changed.
    """
    check_type("ours", ours, _Ours, "one of pyoptim's optimizers")
    given_groups, given_state = check_structure(state_dict, len(ours.param_groups))
    given_groups = arranged(ours, given_groups)
    state: dict[int, dict[str, Any]] = {}
    groups = []
    for own, given, scalars in zip(ours.param_groups, given_groups, ours._scalars, strict=True):
        options = _options(type(ours), given)
        after = {**own, **options}
        keys, params = list(given["params"]), own["params"]
        if len(keys) != len(params):
            raise ValueError(f"state_dict's group has {len(keys)} parameters, expected {len(params)}")
        entries = [
            {k: v for k, v in given_state.get(key, {}).items() if v is not None and k not in _RECOMPUTED}
            for key in keys
        ]
        without = [key for key, entry in zip(keys, entries, strict=True) if not entry]
        if without and len(without) < len(keys):
            raise ValueError(
                f"state_dict has no state of the parameters {without}, but of others in their group; ours "
                "steps together: put them in a group of their own"
            )
        fresh = ours._fresh_states(after, unused(ours, after, next(iter(entries), {})))
        begin = len(state)
        begins = _begins(ours, after, entries)
        for key, entry, first in zip(keys, entries, fresh, strict=True):
            label = f"state_dict['state'][{key}]"
            values = {k: np.asarray(v) for k, v in first.items()}
            if entry:
                own_entry = _entry(label, entry, first, scalars)
                late = {**values, "begun": int(own_entry["step"]) + 1} if begins else {}
                state[len(state)] = {**late, **own_entry}
            else:
                state[len(state)] = {**ours._first_scalars(after), **values}
        groups.append({**options, "params": list(range(begin, len(state)))})
    ours.load_state_dict({"state": state, "param_groups": groups})


def _begins(ours: _Ours, group: Group, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rule begins now, as that of PyTorch's SGD, which has no buffers before it needs them."""
    states = RULES[ours._rule(group)].states
    lack = not any(name in entry for entry in entries for name in states)
    return bool(states) and lack and may_begin_late(ours)


def _not_begun(ours: _Ours, scalars: Mapping[str, Any]) -> set[str]:
    """The names of arrays that PyTorch has not yet, as the rule's first step is to come.

    That step is another than the later ones, and PyTorch knows it by what lacks.
    """
    if scalars.get("begun") != scalars["step"] + 1:
        return set()
    names = {name for rule in ours._rule_names for name in RULES[rule].states}
    return names | {f"{name}_scale" for name in names}


def _neutral(cls: type[_Ours]) -> dict[str, Any]:
    """The hyperparameters of a class, with the values at which it computes what PyTorch does."""
    return {**SHARED, **cls.defaults}


def _options(cls: type[_Ours], given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of one of PyTorch's groups, by our names and checked."""
    options = {k: _number(v) for k, v in given.items() if k not in _MACHINERY | _NOTES}
    if options.get("adjust_lr_fn", "original") is None:
        options["adjust_lr_fn"] = "original"
    neutral = _neutral(cls)
    return {**neutral, **hyperparameters.checked(options, neutral)}


def _number(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_number, value))
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _with_tensors(given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that are tensors or hold some, which may be written later."""
    return {
        name: value
        for name, value in given.items()
        if any(isinstance(v, torch.Tensor) for v in (value if isinstance(value, tuple | list) else [value]))
    }


def _entry(label: str, entry: Mapping[str, Any], wanted: State, scalars: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one of PyTorch's parameters, by our names and with the dtypes of ``wanted``."""
    ours: dict[str, Any] = {name: _number(entry[name]) for name in scalars if name in entry}
    ours.setdefault("step", 1)  # for SGD, where any step after the first does: it has a momentum
    for name, value in entry.items():
        if name not in scalars:
            if not isinstance(value, torch.Tensor | np.ndarray):
                raise TypeError(f"{label}[{name!r}] is a {type(value).__name__}, expected a tensor")
            array = in_place(f"{label}[{name!r}]", torch.as_tensor(value).cpu())
            own = wanted.get(name, array)
            floating = array.dtype.kind != "u" and own.dtype.kind != "u"
            ours[name] = array.astype(own.dtype) if floating else array
    if "master" in wanted:
        ours.setdefault("master", np.asarray(wanted["master"]))  # PyTorch has none
    return ours


def _counts(entry: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    counts = {"step": torch.tensor(float(entry["step"]))}
    if "mu_product" in entry:
        counts["mu_product"] = torch.tensor(entry["mu_product"], dtype=torch.float64)
    return counts


def _state_names(cls: type[_Ours]) -> set[str]:
    """The names of all that an optimizer of this class may keep of a parameter."""
    made, group = object.__new__(cls), _neutral(cls)
    arrays = {name for rule in cls._rule_names for name in RULES[rule].states}
    arrays |= {*made._layout(group, (1,)), *made._layout(group, (1, 1))}
    return arrays | {f"{name}_scale" for name in arrays} | {*made._first_scalars(group), "master"}


def _live(array: Any, device: Any) -> torch.Tensor:
    """A tensor in the memory of one of our arrays."""
    bits = array
    if array.dtype.name == "bfloat16":  # NumPy and CUDA's interface know it by its bits only
        int16 = np.dtype(np.int16)
        bits = (
            array.view(int16)
            if isinstance(array, np.ndarray)
            else DeviceArray(
                array.address, array.shape, int16, array.device, array, stream=array.stream, queue=array.queue
            )
        )
    made = torch.from_numpy(bits) if isinstance(bits, np.ndarray) else torch.as_tensor(bits, device=device)
    return made.view(torch.bfloat16) if bits is not array else made


def _copied(value: Any) -> Any:
    """Copies of the tensors in a parameter's state."""
    if isinstance(value, dict):
        return {key: _copied(v) for key, v in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def _layouts(lists: list[Any]) -> Any:
    """What differs where lists hold other tensors, or one has got other memory or another form."""
    known = None if _native is None else _native.tensor_layouts(lists)
    if known is not None:
        return known
    return [list(map(_layout, own)) for own in lists]


def _layout(p: torch.Tensor) -> tuple[Any, ...]:
    return id(p), p.data_ptr(), p.shape, p.stride(), p.dtype


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(a) == len(b) and all(map(is_, a, b))


def _never_changes(value: Any) -> bool:
    """Whether a hyperparameter is an object whose value stays: not a tensor, nor a list."""
    return all(map(_never_changes, value)) if type(value) is tuple else type(value) in _SCALARS


_SCALARS = {float, int, bool, str, type(None)}

# PyTorch wraps every optimizer's step in a function that calls hooks and tells the profiler, at 8 us a call.
# Ours asks first whether there are any; the wrapped step is for where there are.
_machinery = sys.modules[torch.optim.Optimizer.__module__]
_pre_hooks, _post_hooks = (getattr(_machinery, f"_global_optimizer_{w}_hooks", {}) for w in ("pre", "post"))
_profiler = torch.autograd.profiler


class _Part:
    """Parameters that have taken the same number of steps, and the optimizer that steps them.

    Attributes
    ----------
    members : list
        Pairs of a group's index and its parameters in this part.
    tensors : list of tensor
        The parameters of all members.
    lists : list of list
        The same, by group.
    ours : Optimizer
    seen : list
        Each member's hyperparameters, as PyTorch's group had them in the last step, or None.
    shown : list of tensor
        What `show` has made, in the memory of the states; empty before.
    """

    def __init__(self, members: list[tuple[int, list[Any]]], lists: list[list[Any]], ours: _Ours) -> None:
        self.members, self.lists, self.ours = members, lists, ours
        self.tensors = [p for _, own in members for p in own]
        self.seen: list[Any] = [None] * len(members)
        self.shown: list[torch.Tensor] = []
        self._layouts = _layouts(lists)
        self._counts: dict[str, Array] = {}
        self._shown_of: Any = None  # the groups' rules, and the names of what each leaves out

    def gradients(self, lists: list[Any]) -> list[Any] | None:
        """The gradients of what the lists hold, or an empty list.

        None if only some have one, or if tensors or their memory were exchanged.
        """
        if type(self._layouts) is bytes:
            found: list[Any] | None = _native.tensor_gradients(lists, self._layouts)
            return found
        grads = [p.grad for p in self.tensors]
        present = [g for g in grads if g is not None]
        if 0 < len(present) < len(grads) or _layouts(lists) != self._layouts:
            return None
        return present

    def show(self, state: Any) -> bool:
        """Let PyTorch's mapping hold the states: the step counts as they are, and all else in our memory.

        Returns whether the mapping may hold other objects than before.
        """
        scalars = self.ours._scalars[0]
        if not scalars["step"]:
            return True  # PyTorch has no state before the first step
        left_out = [_not_begun(self.ours, each) for each in self.ours._scalars]
        is_new = not self.shown or self._shown_of != (self.ours._rules, left_out)
        if is_new:
            n = len(self.tensors)
            kinds = {"step": np.float32, "mu_product": np.float64}
            self._counts = {name: np.empty((n, 1), kinds[name]) for name in kinds if name in scalars}
            self.shown, self._shown_of = [], (self.ours._rules[:], left_out)
            owned = [
                {k: array for k, array in own.items() if k not in names}
                for states, names in zip(self.ours._states, left_out, strict=True)
                for own in states
            ]
            for i, (p, own) in enumerate(zip(self.tensors, owned, strict=True)):
                entry = {k: torch.from_numpy(v[i]).reshape(()) for k, v in self._counts.items()}
                entry |= {k: _live(array, p.device) for k, array in own.items()}
                state[p].update(entry)  # which may have keys of the user's own
                self.shown += entry.values()
        for name, counts in self._counts.items():
            counts[...] = scalars[name]
        return is_new

    def is_altered(self) -> bool:
        """Whether the tensors that `show` made were given another step count."""
        scalars = self.ours._scalars[0]
        return bool(self.shown) and any(
            (counts != counts.dtype.type(scalars[name])).any() for name, counts in self._counts.items()
        )


class _Contents:
    """What a mapping of states held when this was made.

    That is its keys and values, those of the dicts among the values, and where the tensors' memory is. All
    objects are kept, so that no others get their addresses.
    """

    def __init__(self, state: Any) -> None:
        entries = [entry for entry in state.values() if isinstance(entry, dict)]
        values = [value for entry in entries for value in entry.values()]
        self._objects = [[*state], [*state.values()], [name for entry in entries for name in entry], values]
        if _native is not None and isinstance(state, dict):
            self._layouts: Any = _native.state_layouts(state)
        else:
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            self._layouts = [_layout(t) for t in tensors if t.layout is torch.strided]

    def are_of(self, state: Any) -> bool:
        """Whether the mapping holds the same still."""
        if type(self._layouts) is bytes and isinstance(state, dict):
            same: bool = _native.has_state_layouts(state, self._layouts)
            return same
        now = _Contents(state)
        return all(map(_same, self._objects, now._objects)) and self._layouts == now._layouts


class Optimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """One of our optimizers over PyTorch's parameters, which it updates in place.

    Everything that drives a `torch.optim.Optimizer` drives it: parameter groups, with keys of their own if
    you like, schedulers of `torch.optim.lr_scheduler`, hooks, closures, ``state``, ``state_dict``,
    checkpoints of `torch.distributed`. What you write into ``param_groups`` and ``state`` counts from the
    next step on.

    Parameters
    ----------
    params : iterable of tensors, or of group dicts
        As PyTorch's: dense, on the CPU; float32, float64, float16 or bfloat16. Or all on one GPU; see
        `pyoptim.Optimizer`.
    optimizer : class
        `pyoptim.Adam` or another of ours.
    rounding, state_dtype, seed
        See `pyoptim.Optimizer`. 16-bit parameters by default have a float32 master in the state.
    **hyperparameters
        Those of the class, with its defaults; numbers, or tensors of one element, which may be written later.

    Raises
    ------
    TypeError, ValueError
        A parameter or hyperparameter that cannot be; the message names it.

    Notes
    -----
    Parameters whose ``grad`` is None are skipped, and their step counts stand, as in PyTorch. Clipping and
    accumulation are PyTorch's own (`torch.nn.utils.clip_grad_norm_`; ``backward`` adds to ``grad``).

    The tensors in ``state`` share our memory. They are made when ``state`` is read, and from then on each
    step looks whether they or their memory were exchanged, which costs 60 ns a tensor.

    What differs from PyTorch's optimizers:

    - `state_dict` returns copies, which later steps leave alone.
    - SGD and Muon count steps too, and ``state`` says how many.
    - ``state`` has no entries before a parameter's first step, also where PyTorch's (Adagrad's) has.
    - States keep their own dtype when they are loaded, as the float32 master of a 16-bit parameter.
    - A 16-bit parameter that is not its master rounded wins, so write to the parameter, not to the master.
    - When memory is exchanged (another tensor in a group, or another ``data``), the tensors in ``state`` are
      exchanged too; its dicts stay.
    - ASGD takes the lr of the step itself (see `pyoptim.ASGD`); Muon does not iterate in bfloat16.
    - ``rounding`` and ``seed`` are not in the state, as PyTorch's form has no place for them.
    - Hyperparameters are checked at every step, not only at first: a learning rate below 0 is an error.
    - ``foreach``, ``fused``, ``capturable`` and ``differentiable`` do not exist, so nothing is refused for
      their sake (tensors as hyperparameters, or only one of the betas), nor do complex parameters and
      sparse gradients; one optimizer has one device, and a parameter only once.
    """

    param_groups: Any
    defaults: dict[str, Any]
    _watched: _Contents | None  # what the mapping of states held after the last step, once it was read

    def __init__(
        self,
        params: Any,
        optimizer: type[_Ours],
        *,
        rounding: str = "master",
        state_dtype: str | None = None,
        seed: int = 0,
        **hyperparameters: Any,
    ) -> None:
        if not isinstance(optimizer, type) or not issubclass(optimizer, _Ours) or optimizer is _Ours:
            raise TypeError(f"optimizer is {optimizer!r}, expected a class such as pyoptim.Adam")
        for name in ("max_grad_norm", "nonfinite", "accumulate"):
            if name in hyperparameters:
                raise TypeError(
                    f"{name} is not for pyoptim.torch.Optimizer: PyTorch does it on the gradients"
                )
        defaults = _options(optimizer, hyperparameters)
        optimizer._check_together(defaults)
        if not isinstance(params, Iterable) or getattr(params, "ndim", 1) == 0:
            raise TypeError(f"params is {shown(params)}, expected tensors, or dicts with groups of them")
        if not isinstance(params, torch.Tensor):  # which PyTorch refuses
            params = list(params)
            if not params:
                raise ValueError("params is empty: optimizer got an empty parameter list")
        self._class, self._names = optimizer, tuple(_neutral(optimizer))
        self._values = itemgetter(*self._names)
        self._fixed: dict[str, Any] = {"rounding": rounding, "state_dtype": state_dtype, "seed": seed}
        self._parts: list[_Part] | None = None
        self._state_names = _state_names(optimizer)
        super().__init__(params, {**defaults, **_with_tensors(hyperparameters)})
        self._regroup()

    # The state. PyTorch's mapping is the truth where `_parts` is None, and where `_watched` is not.

    @property
    def state(self) -> Any:
        """Each parameter's state: a mapping of parameters to dicts of tensors, as PyTorch's."""
        if self._watched is None:
            self._show()
            self._watched = self._contents()
        return self.__dict__["state"]

    @state.setter
    def state(self, value: Any) -> None:
        self.__dict__["state"] = value
        self._parts, self._watched = None, None

    def _show(self) -> None:
        for part in self._parts or ():
            part.show(self.__dict__["state"])

    def _contents(self) -> _Contents:
        return _Contents(self.__dict__["state"])

    def _is_altered(self) -> bool:
        """Whether a mapping was read, and somebody has written into it."""
        if self._watched is None:
            return False
        altered = any(part.is_altered() for part in self._parts or ())
        return altered or not self._watched.are_of(self.__dict__["state"])

    def _settle(self) -> None:
        """Make the mapping the truth."""
        if self._watched is None:
            self._show()

    def _renew(self, by_gradient: bool = False) -> None:
        """Make new parts of parameters that were exchanged, or that now have a gradient or none."""
        if self._is_altered():
            self._parts = None
        for part in self._parts or ():
            self._tell(part)
            change_rules(part.ours)  # so that the state has what the hyperparameters need
        self._show()
        self._regroup(by_gradient)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; hyperparameters that it does not have are the defaults. Other keys are its own."""
        check_type("param_group", param_group, dict, "a dict")
        if "params" not in param_group:
            raise ValueError(f"param_group has {list(param_group)}, expected 'params' too")
        _options(self._class, self._known(param_group))
        before = list(self.param_groups)
        super().add_param_group(param_group)
        if self._parts is not None:
            try:
                self._renew()
            except (TypeError, ValueError):
                self.param_groups[:] = before
                raise

    def _known(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in group.items() if name in self._names}

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            check_callable("closure", closure, "a function")
            with torch.enable_grad():
                loss = closure()
        work = self._work()
        if len(work) > 1:  # a single part checks its gradients itself, before it moves anything
            work = [(part, self._arrays(part, grads)) for part, grads in work]
        for part, _ in work:  # nothing moves before all gradients and options are checked
            self._tell(part)
        for part, arrays in work:
            if len(part.members) > 1:
                flat = iter(arrays)
                part.ours.step([[next(flat) for _ in tensors] for _, tensors in part.members])
            else:
                part.ours.step([arrays])
        if self._watched is not None:
            self._follow([part for part, _ in work])
        return loss

    def _tell(self, part: _Part) -> None:
        """Take over the hyperparameters that PyTorch's groups have now."""
        for k, (i, _) in enumerate(part.members):
            given = self._values(self.param_groups[i])
            if part.seen[k] is None or given != part.seen[k]:
                own = part.ours.param_groups[k]
                for name, value in zip(self._names, given, strict=True):
                    number = _number(value)
                    if type(number) is torch.Tensor or number != own[name]:
                        own[name] = number  # which checks it
                part.seen[k] = given if _never_changes(given) else None

    def _follow(self, parts: list[_Part]) -> None:
        """Bring a mapping that was read up to date after a step of these parts."""
        exchanged = [part.show(self.__dict__["state"]) for part in parts]
        if any(exchanged):
            self._watched = self._contents()

    _step_with_hooks = torch.optim.Optimizer.profile_hook_step(_step)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure does, if there is one."""
        watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _pre_hooks
            or _post_hooks
            or _profiler._is_profiler_enabled
        )
        # PyTorch has wrapped the step of a subclass that overrides this one.
        if watched and type(self).step is Optimizer.step:
            return self._step_with_hooks(closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch wraps it no more

    def _arrays(self, part: _Part, grads: list[Any]) -> list[Any]:
        try:
            return [g.numpy() for g in grads]
        except (RuntimeError, TypeError):  # bfloat16, a tensor on a GPU, or memory that cannot be shared
            names = part.ours._gradient_names()
            return [g if g.is_cuda else in_place(name, g) for name, g in zip(names, grads, strict=True)]

    def _work(self) -> list[tuple[_Part, list[Any]]]:
        """The parts that have gradients, with these; made anew where parameters or states were exchanged."""
        if self._parts is not None and self._is_altered():
            self._parts = None
        given = [group["params"] for group in self.param_groups]
        lists = [own if type(own) is list else list(own) for own in given]
        if self._parts is not None and len(self._parts) == 1:
            grads = self._parts[0].gradients(lists)
            if grads is not None:
                return [(self._parts[0], grads)] if grads else []
        if self._parts is None or [*map(_same, lists, self._lists)] != [True] * len(lists):
            self._renew()
            return self._work()
        work: list[tuple[_Part, list[Any]]] = []
        for part in self._parts:
            grads = part.gradients(part.lists)
            if grads is None:
                self._renew(by_gradient=True)
                return self._work()
            if grads:
                work.append((part, grads))
        return work

    def _regroup(self, by_gradient: bool = False) -> None:
        """Make new parts from PyTorch's mapping."""
        state = self.__dict__["state"]
        self._lists = [list(group["params"]) for group in self.param_groups]
        cohorts: dict[Any, dict[int, list[torch.Tensor]]] = {}
        for i, own in enumerate(self._lists):
            for p in own:
                entry = self._entry(p)
                counts = [float(entry.get(name, 1)) for name in ("step", "mu_product")]
                key = (str(counts), frozenset(entry), p.grad is not None if by_gradient else None)
                cohorts.setdefault(key, {}).setdefault(i, []).append(p)
        index = {p: i for i, p in enumerate(chain.from_iterable(self._lists))}
        self._parts = [
            self._part([*members.items()], self._lists if len(cohorts) == 1 else [*members.values()], index)
            for members in cohorts.values()
        ]
        if self._watched is None:  # old states are not to be kept
            for part in self._parts:
                for p in part.tensors:
                    rest = {k: v for k, v in state.pop(p, {}).items() if k not in self._state_names}
                    if rest:
                        state[p] = rest
        else:
            self._follow(self._parts)

    def _part(
        self, members: list[tuple[int, list[Any]]], lists: list[list[Any]], index: Mapping[Any, int]
    ) -> _Part:
        neutral = _neutral(self._class)
        groups: list[Group] = []
        for i, own in members:
            options = _options(self._class, self._known(self.param_groups[i]))
            group = hyperparameters.ParameterGroup({**options, "params": ()}, neutral, self._class)
            dict.__setitem__(group, "params", own)  # the tensors themselves
            groups.append(group)
        ours = self._class(groups, **self._fixed)
        entries = {index[p]: self._entry(p) for _, own in members for p in own}
        if any(entries.values()):
            numbered = [{**g, "params": [index[p] for p in g["params"]]} for g in groups]
            load_state_dict(ours, {"state": entries, "param_groups": numbered})
        return _Part(members, lists, ours)

    def _entry(self, p: torch.Tensor) -> dict[str, Any]:
        """A parameter's state in PyTorch's mapping, without keys of the user's own."""
        entry = self.__dict__["state"].get(p) or {}
        return {k: v for k, v in entry.items() if k in self._state_names and v is not None}

    def state_dict(self) -> dict[str, Any]:
        """In PyTorch's form: ``torch.optim``'s optimizer of the same name and options loads it.

        Tensors of the state are copies.
        """
        watched = self._watched
        saved: dict[str, Any] = super().state_dict()
        if not self._optimizer_state_dict_pre_hooks and not self._optimizer_state_dict_post_hooks:
            self._watched = watched  # nobody else has seen the mapping
        state = {key: _copied(entry) for key, entry in saved["state"].items()}
        for group in saved["param_groups"] if self._class.__name__ == "ASGD" else ():
            for key in group["params"]:
                if "step" in state.get(key, {}):
                    state[key].update(_next_rates(group, float(state[key]["step"])))
        return {**saved, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict`, or PyTorch's optimizer of the same name, returned.

        Keys of groups that are no hyperparameters are taken over too.

        Raises
        ------
        TypeError, ValueError
            It does not fit: the message names what. Nothing is changed.
        """
        given: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, given)
            given = given if result is None else result
        saved_groups, saved_state = check_structure(given, len(self.param_groups), int | str)
        groups = []
        owners: dict[Any, Any] = {}
        for own, saved in zip(self.param_groups, saved_groups, strict=True):
            keys, tensors = saved["params"], own["params"]
            if len(keys) != len(tensors):
                raise ValueError(
                    f"state_dict's group has {len(keys)} parameters, which doesn't match the size of the "
                    f"optimizer's group: expected {len(tensors)}"
                )
            owners.update(zip(keys, tensors, strict=True))
            options = _options(self._class, self._known(saved))
            names = {"param_names": own["param_names"]} if "param_names" in own else {}
            rest = {k: v for k, v in saved.items() if k not in self._names} | _with_tensors(saved)
            groups.append({**options, **names, **copy.deepcopy(rest), "params": tensors})
        state: Any = defaultdict(dict)
        for key, entry in saved_state.items():
            rest = {k: v for k, v in entry.items() if k not in _RECOMPUTED}
            state[owners.get(key, key)] = copy.deepcopy(rest)
        self._settle()
        before = self.__dict__["state"], self.param_groups, self._parts, self._watched
        try:
            self.state, self.param_groups = state, groups
            self._regroup()
        except BaseException:
            self.state = before[0]
            _, self.param_groups, self._parts, self._watched = before
            raise
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        kept = ("defaults", "state", "param_groups", "_class", "_names", "_fixed")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._values = itemgetter(*self._names)
        self._state_names = _state_names(self._class)
        self._parts, self._watched = None, None  # the next step makes parts: they hold addresses
