"""PyTorch: our optimizers as `torch.optim.Optimizer`, and states exchanged with PyTorch's own.

>>> optimizer = po.torch.Optimizer(net.parameters(), po.Adam, lr=1e-3)  # was torch.optim.Adam(...)

Imported when first used; `Optimizer.step` of the package itself takes CPU tensors without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from .arrays.tensors import in_place
from .formulas import storage
from .optim import hyperparameters
from .optim.optimizer import SHARED, Group
from .optim.optimizer import Optimizer as _Ours
from .optim.state import State, arranged, check_structure
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
        arrays = {k: v for k, v in entry.items() if isinstance(v, np.ndarray)}
        names = [k for k in arrays if k != "master" and not k.endswith("_scale")]
        values = {k: torch.from_numpy(np.array(storage.read_state(k, arrays))) for k in names}
        state[i] = {**_counts(entry), **values}
    for group in groups:
        for i in group["params"] if name in _UNCOUNTED else ():
            state.get(i, {}).pop("step", None)
        for i in group["params"] if name == "ASGD" else ():
            t, lr = saved["state"][i]["step"], group["lr"]
            if t:
                eta = lr / (1 + group["lambd"] * lr * t) ** group["alpha"]
                mu = 1 / max(1, t - group["t0"])
                state[i].update(eta=torch.tensor(float(eta)), mu=torch.tensor(float(mu)))
    return {"state": {i: entry for i, entry in state.items() if entry}, "param_groups": groups}


def load_state_dict(ours: _Ours, state_dict: Mapping[str, Any]) -> None:
    """Take over the state of PyTorch's optimizer of the same name, over the same parameters.

    Step counts and hyperparameters come too; those that PyTorch does not have get our defaults, which are
    its meaning. 16-bit states are widened for ours of float32.

    Parameters
    ----------
    ours : Optimizer
        Made with the options that choose what states there are, as ``amsgrad`` and ``momentum``.
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
        fresh = ours._fresh_states({**own, **options})
        begin = len(state)
        for key, entry, p, first in zip(keys, entries, params, fresh, strict=True):
            label = f"state_dict['state'][{key}]"
            state[len(state)] = (
                _entry(label, entry, p, first, scalars)
                if entry
                else {
                    **ours._first_scalars({**own, **options}),
                    **{k: np.asarray(v) for k, v in first.items()},
                }
            )
        groups.append({**options, "params": list(range(begin, len(state)))})
    ours.load_state_dict({"state": state, "param_groups": groups})


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
    return value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value


def _entry(
    label: str, entry: Mapping[str, Any], p: Array, wanted: State, scalars: Mapping[str, Any]
) -> dict[str, Any]:
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


def _copied(array: Array) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _layouts(tensors: list[torch.Tensor]) -> Any:
    """The address, shape, strides and dtype of each, to be compared with those of another time."""
    known = None if _native is None else _native.tensor_layouts(tensors)
    if known is not None:
        return known
    return [(p.data_ptr(), p.shape, p.stride(), p.dtype) for p in tensors]


def _never_changes(value: Any) -> bool:
    """Whether a hyperparameter is an object whose value stays: not a tensor, nor a list."""
    return all(map(_never_changes, value)) if type(value) is tuple else type(value) in _SCALARS


_SCALARS = {float, int, bool, str, type(None)}

# PyTorch wraps every optimizer's step in a function that calls hooks and tells the profiler, at 8 us a call.
# Ours asks first whether there are any; the wrapped step is for where there are.
_machinery = sys.modules[torch.optim.Optimizer.__module__]
_pre_hooks, _post_hooks = (getattr(_machinery, f"_global_optimizer_{w}_hooks", {}) for w in ("pre", "post"))
_profiler = torch.autograd.profiler


class _Part(NamedTuple):
    """Parameters that have taken the same number of steps, and the optimizer that steps them."""

    members: list[tuple[int, list[torch.Tensor]]]  # a group's index, and its parameters in this part
    tensors: list[torch.Tensor]  # the parameters of all members
    layouts: Any  # of the tensors: see `_layouts`
    ours: _Ours
    seen: list[Any]  # each member's hyperparameters, as PyTorch's group had them in the last step, or None

    def gradients(self) -> list[Any] | None:
        """The tensors' gradients, or an empty list; None if only some have one, or memory has changed."""
        if type(self.layouts) is bytes:
            found: list[Any] | None = _native.tensor_gradients(self.tensors, self.layouts)
            return found
        grads = [p.grad for p in self.tensors]
        present = [g for g in grads if g is not None]
        if 0 < len(present) < len(grads) or _layouts(self.tensors) != self.layouts:
            return None
        return present


class Optimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """One of our optimizers over PyTorch's parameters, which it updates in place.

    Everything that drives a `torch.optim.Optimizer` drives it: parameter groups, schedulers of
    `torch.optim.lr_scheduler`, hooks, closures, ``state_dict``.

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
        Those of the class, with its defaults.

    Raises
    ------
    TypeError, ValueError
        A parameter or hyperparameter that cannot be; the message names it.

    Notes
    -----
    Parameters whose ``grad`` is None are skipped, and their step counts stand, as in PyTorch. Clipping and
    accumulation are PyTorch's own (`torch.nn.utils.clip_grad_norm_`; ``backward`` adds to ``grad``).

    States live in our memory: the attribute ``state`` holds copies, as they were at the last `state_dict`,
    `load_state_dict` or `add_param_group`. Read them with `state_dict`, set them with `load_state_dict`.
    ``rounding`` and ``seed`` are not in it, as PyTorch's form has no place for them.
    """

    state: Any
    param_groups: Any
    defaults: dict[str, Any]

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
        super().__init__(params, _options(optimizer, hyperparameters))
        self._regroup()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; hyperparameters that it does not have are the defaults."""
        check_type("param_group", param_group, dict, "a dict")
        if "params" not in param_group:
            raise ValueError(f"param_group has {list(param_group)}, expected 'params' too")
        _options(self._class, param_group)
        before = list(self.param_groups)
        super().add_param_group(param_group)
        if self._parts is not None:
            try:
                self._synchronize()
                self._regroup()
            except (TypeError, ValueError):
                self.param_groups[:] = before
                raise

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
            for k, (i, _) in enumerate(part.members):
                given = self._values(self.param_groups[i])
                if given != part.seen[k]:
                    own = part.ours.param_groups[k]
                    for name, value in zip(self._names, given, strict=True):
                        number = value.item() if type(value) is torch.Tensor else value
                        if number != own[name]:  # which checks it
                            own[name] = number
                    part.seen[k] = given if _never_changes(given) else None
        for part, arrays in work:
            if len(part.members) > 1:
                flat = iter(arrays)
                part.ours.step([[next(flat) for _ in tensors] for _, tensors in part.members])
            else:
                part.ours.step([arrays])
        return loss

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
        """The parts that have gradients, with these; made anew if one has some for some parameters only."""
        if self._parts is None:
            self._regroup()
        assert self._parts is not None
        work: list[tuple[_Part, list[Any]]] = []
        for part in self._parts:
            grads = part.gradients()
            if grads is None:
                self._synchronize()
                self._regroup(by_gradient=True)
                return self._work()
            if grads:
                work.append((part, grads))
        return work

    def _regroup(self, by_gradient: bool = False) -> None:
        """Make new parts from ``self.state``."""
        cohorts: dict[Any, dict[int, list[torch.Tensor]]] = {}
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                entry = self.state.get(p, {})
                counts = [float(entry.get(name, 1)) for name in ("step", "mu_product")] if entry else None
                key = (str(counts), p.grad is not None if by_gradient else None)
                cohorts.setdefault(key, {}).setdefault(i, []).append(p)
        self._parts = [self._part(list(members.items())) for members in cohorts.values()]

    def _part(self, members: list[tuple[int, list[torch.Tensor]]]) -> _Part:
        tensors = [p for _, own in members for p in own]
        groups: list[Group] = []
        for i, own in members:
            options = {k: v for k, v in self.param_groups[i].items() if k in self._names}
            groups.append({**_options(self._class, options), "params": own})
        ours = self._class(groups, **self._fixed)
        entries = {i: self.state[p] for i, p in enumerate(tensors) if self.state.get(p)}
        if entries:
            index = iter(range(len(tensors)))
            numbered = [{**g, "params": [next(index) for _ in g["params"]]} for g in groups]
            load_state_dict(ours, {"state": entries, "param_groups": numbered})
        return _Part(members, tensors, _layouts(tensors), ours, [None] * len(members))

    def _synchronize(self) -> None:
        """Write the parts' states into ``self.state``."""
        for part in self._parts or ():
            saved = part.ours.state_dict()["state"]
            for p, entry in zip(part.tensors, saved.values(), strict=True):
                arrays = {k: _copied(v) for k, v in entry.items() if isinstance(v, np.ndarray)}
                self.state[p] = {**_counts(entry), **arrays} if entry["step"] else {}

    def state_dict(self) -> dict[str, Any]:
        """In PyTorch's form: ``torch.optim``'s optimizer of the same name and options loads it."""
        self._synchronize()
        state: dict[str, Any] = super().state_dict()
        return {**state, "state": {i: entry for i, entry in state["state"].items() if entry}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict`, or PyTorch's optimizer of the same name, returned.

        Raises
        ------
        TypeError, ValueError
            It does not fit: the message names what. Nothing is changed.
        """
        self._synchronize()
        before = self.state, self.param_groups, self._parts
        try:
            groups, _ = check_structure(state_dict, len(self.param_groups))
            for group in groups:
                _options(self._class, group)
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                group.update(_options(self._class, group))
            # PyTorch gave states the parameter's dtype, which master copies and counts do not have.
            keys = [key for group in groups for key in group["params"]]
            tensors = [p for group in self.param_groups for p in group["params"]]
            for key, p in zip(keys, tensors, strict=True):
                self.state[p] = dict(state_dict["state"].get(key, {}))
            self._regroup()
        except BaseException:
            self.state, self.param_groups, self._parts = before
            raise

    def __getstate__(self) -> dict[str, Any]:
        self._synchronize()
        own = {"_class": self._class, "_names": self._names, "_fixed": self._fixed}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._values = itemgetter(*self._names)
        self._parts = None  # the next step makes them: they hold addresses
