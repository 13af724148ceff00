"""The optimizers: hyperparameters, which rule they choose, and the rule's coefficients at step t.

Every update runs as one fused pass over the arrays. Notation: g gradient, p parameter, t step counted
from 1, ``c1 = 1 - beta1**t``, ``c2 = 1 - beta2**t``. Where sources disagree the default is PyTorch's;
each docstring says which options give the other readings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from . import _arrays, _hyperparameters, backends
from ._arrays import Array
from .rules import RULES

Schedule = Callable[[int], float]
Group = dict[str, Any]

_SHARED = {"weight_decay": 0.0, "decoupled_weight_decay": False, "maximize": False}


class Optimizer:
    """What all optimizers share: parameter groups, state, and ``step``.

    Parameters
    ----------
    params : array, sequence of arrays, mapping of name to array, or sequence of group dicts
        float32 or float64 NumPy arrays, of any shape, updated in place. They must be writeable and must
        not overlap. Arrays that are not contiguous work, at the cost of a copy each step. A group is a
        dict with ``"params"`` (any of the other three) and hyperparameters of its own.
    lr : float or callable
        Learning rate, or a schedule ``step -> lr`` where step counts the steps already taken: see
        `pyoptim.schedules`.
    weight_decay : float
        Coupled (L2) decay adds ``weight_decay * p`` to the gradient, as PyTorch does.
    decoupled_weight_decay : bool
        Instead multiply p by ``1 - lr * weight_decay`` before the update (Loshchilov & Hutter 2019).
    maximize : bool
        Ascend: the sign of the gradient is turned before decay is added.

    Attributes
    ----------
    param_groups : list of dict
        The hyperparameters in force, with ``"params"``; change ``param_groups[0]["lr"]`` at will.
    epoch : int
        Epochs done, for schedules that count them; a `Trainer` counts it up.
    """

    defaults: ClassVar[dict[str, Any]]  # of the class's own hyperparameters, beside `_SHARED`

    def __init__(self, params: Any, **hyperparameters: Any) -> None:
        self._defaults = {**_SHARED, **self.defaults}
        _hyperparameters.check(hyperparameters, self._defaults)
        self._defaults.update(hyperparameters)

        self.param_groups: list[Group] = []
        self._keys: list[list[Any] | None] = []  # how each group's gradients are looked up
        self._names: list[str] = []
        self._grouped = _is_groups(params)
        for i, given in enumerate(params if self._grouped else [{"params": params}]):
            options = {k: v for k, v in given.items() if k != "params"}
            _hyperparameters.check(options, self._defaults)
            label = f"params[{i}]['params']" if self._grouped else "params"
            keys, arrays = _flatten(label, given["params"])
            self._keys.append(keys)
            self._names += [label if keys is None else f"{label}[{key!r}]" for key in keys or [0]]
            self.param_groups.append({**self._defaults, **options, "params": arrays})
        params_flat = [p for group in self.param_groups for p in group["params"]]
        _arrays.check_parameters(self._names, params_flat)

        self._rules = [RULES[self._rule(group)] for group in self.param_groups]
        self._scalars = [self._first_scalars(group) for group in self.param_groups]
        self.epoch = 0
        self._states = [
            _allocate(rule.states, group["params"], self._initial(group))
            for rule, group in zip(self._rules, self.param_groups, strict=True)
        ]
        # Kernels want contiguous memory: a parameter that is not goes through a copy of its own.
        self._staged = {
            i: np.array(p, order="C") for i, p in enumerate(params_flat) if not _arrays.is_fast(p)
        }
        self._params_flat = params_flat
        self._written = params_flat + [a for group in self._states for s in group for a in s]
        self._steppers: dict[str, backends.Stepper] = {}

    # What each optimizer says of itself.

    def _rule(self, group: Group) -> str:
        """The name of the rule that the group's options choose."""
        raise NotImplementedError

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        """The rule's coefficients at step t."""
        raise NotImplementedError

    def _initial(self, group: Group) -> dict[str, float]:
        """What state arrays begin with, where it is not 0."""
        return {}

    def _first_scalars(self, group: Group) -> dict[str, float]:
        """Scalars that advance with the steps, kept beside the state arrays."""
        return {"step": 0}

    def _next_scalars(self, group: Group, scalars: dict[str, float]) -> dict[str, float]:
        return {"step": scalars["step"] + 1}

    # Stepping.

    def step(self, grads: Any) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        grads : array, sequence, mapping, or sequence of groups' gradients
            The structure of ``params``; each of its parameter's shape and dtype. Gradients are read
            only; what is not contiguous is copied.

        Raises
        ------
        TypeError, ValueError
            A gradient that does not fit, or that overlaps a parameter or a state. Nothing is changed.
        """
        flat = self._flatten_gradients(grads)
        scalars, rows = [], []
        for group, rule, old in zip(self.param_groups, self._rules, self._scalars, strict=True):
            new = self._next_scalars(group, old)
            scalars.append(new)
            rows.append(self._row(group, rule.name, new, old))
        stepper = self._stepper()
        if self._staged:
            self._step_staged(stepper, flat, rows)
        elif not (stepper.checks and stepper.step(flat, rows)):
            stepper.step(self._checked(flat), rows)
        self._scalars = scalars

    def _row(
        self, group: Group, rule: str, scalars: dict[str, float], old: dict[str, float]
    ) -> tuple[float, ...]:
        lr = group["lr"]
        if callable(lr):
            lr = lr(self.epoch if getattr(lr, "unit", "step") == "epoch" else old["step"])
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr is {lr!r} at step {scalars['step']}, expected a finite number >= 0")
        if self._rule(group) != rule:
            raise ValueError(
                f"a parameter group's options now choose the rule {self._rule(group)!r} instead of "
                f"{rule!r}; options that need other state are fixed when the optimizer is made"
            )
        decay = group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        return (
            -1.0 if group["maximize"] else 1.0,
            0.0 if decoupled else decay,
            1.0 - lr * decay if decoupled else 1.0,
            *self._coefficients(group, int(scalars["step"]), lr, scalars),
        )

    def _flatten_gradients(self, grads: Any) -> list[Any]:
        if not self._grouped:
            return _like(self._keys[0], "grads", grads)
        if not isinstance(grads, Sequence) or len(grads) != len(self._keys):
            raise ValueError(
                f"grads is {_describe(grads)}, expected a sequence of {len(self._keys)} groups' gradients"
            )
        return [
            g
            for i, (keys, part) in enumerate(zip(self._keys, grads, strict=True))
            for g in _like(keys, f"grads[{i}]", part)
        ]

    def _checked(self, flat: list[Any]) -> list[Array]:
        names = [name.replace("params", "grads", 1).replace("['params']", "") for name in self._names]
        return _arrays.check_gradients(names, flat, self._params_flat, self._written)

    def _stepper(self) -> backends.Stepper:
        backend = backends.current()
        if backend.name not in self._steppers:
            self._steppers[backend.name] = backend.Stepper(self._step_groups())
        return self._steppers[backend.name]

    def _step_groups(self) -> list[backends.StepGroup]:
        index = iter(range(len(self._params_flat)))
        return [
            backends.StepGroup(rule, [self._staged.get(next(index), p) for p in group["params"]], states)
            for rule, group, states in zip(self._rules, self.param_groups, self._states, strict=True)
        ]

    def _step_staged(self, stepper: backends.Stepper, flat: list[Any], rows: list[tuple[float, ...]]) -> None:
        flat = self._checked(flat)
        for i, copy in self._staged.items():
            copy[...] = self._params_flat[i]
        stepper.step(flat, rows)
        for i, copy in self._staged.items():
            self._params_flat[i][...] = copy

    # State.

    def state_dict(self) -> dict[str, Any]:
        """State and hyperparameters, in PyTorch's layout; arrays are copies.

        Returns
        -------
        dict
            ``"state"``: index of the parameter -> its step count and state arrays;
            ``"param_groups"``: hyperparameters, with the indices of the parameters.
        """
        state: dict[int, dict[str, Any]] = {}
        groups = []
        for group, rule, scalars, states in zip(
            self.param_groups, self._rules, self._scalars, self._states, strict=True
        ):
            indices = list(range(len(state), len(state) + len(states)))
            for i, arrays in zip(indices, states, strict=True):
                named = zip(rule.states, arrays, strict=True)
                state[i] = {**scalars, **{name: array.copy() for name, array in named}}
            groups.append({**group, "params": indices})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an optimizer of the same kind and shapes returned.

        Raises
        ------
        TypeError, ValueError
            It does not fit: missing or unknown names, other shapes. Nothing is changed.
        """
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"state_dict has {len(groups)} parameter groups, expected {len(self.param_groups)}"
            )
        new_options, new_scalars, copies = [], [], []
        for group, rule, states, given in zip(
            self.param_groups, self._rules, self._states, groups, strict=True
        ):
            options = {k: v for k, v in given.items() if k != "params"}
            _hyperparameters.check(options, self._defaults)
            if self._rule({**group, **options}) != rule.name:
                raise ValueError(f"state_dict's options do not choose the rule {rule.name!r}")
            if len(given["params"]) != len(states):
                raise ValueError(
                    f"state_dict's group has {len(given['params'])} parameters, expected {len(states)}"
                )
            scalars = self._first_scalars(group)
            for i, arrays in zip(given["params"], states, strict=True):
                entry = state_dict["state"][i]
                if set(entry) != {*scalars, *rule.states}:
                    raise ValueError(
                        f"state_dict['state'][{i}] has {sorted(entry)}, "
                        f"expected {sorted({*scalars, *rule.states})}"
                    )
                for name, array in zip(rule.states, arrays, strict=True):
                    label = f"state_dict['state'][{i}][{name!r}]"
                    copies.append((array, _arrays.check_like(label, entry[name], array.shape, array.dtype)))
                scalars = {name: type(scalars[name])(entry[name]) for name in scalars}
            new_options.append(options)
            new_scalars.append(scalars)
        for array, value in copies:
            array[...] = value
        for group, options in zip(self.param_groups, new_options, strict=True):
            group.update(options)
        self._scalars = new_scalars

    def __repr__(self) -> str:
        usual = {**_SHARED, **type(self).defaults}
        shown = {k: v for k, v in self._defaults.items() if k == "lr" or v != usual[k]}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def _is_groups(params: Any) -> bool:
    return (
        isinstance(params, Sequence)
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def _flatten(label: str, params: Any) -> tuple[list[Any] | None, list[Any]]:
    """Keys (None for a single array) and arrays."""
    if isinstance(params, Mapping):
        return list(params), list(params.values())
    if isinstance(params, list | tuple):
        return list(range(len(params))), list(params)
    if isinstance(params, np.ndarray):
        return None, [params]
    raise TypeError(
        f"{label} is a {type(params).__name__}, expected an array, a list, tuple or dict of arrays, "
        "or a list of group dicts"
    )


def _like(keys: list[Any] | None, label: str, grads: Any) -> list[Any]:
    """Gradients in the order of the parameters."""
    if keys is None:
        return [grads]
    if isinstance(grads, Mapping):
        if len(grads) == len(keys):
            try:
                return [grads[key] for key in keys]
            except KeyError:
                pass
        raise ValueError(f"{label} has the names {list(grads)}, expected {keys}")
    if not isinstance(grads, list | tuple) or len(grads) != len(keys):
        raise ValueError(f"{label} is {_describe(grads)}, expected {len(keys)} arrays")
    if keys and keys[0] != 0:
        raise ValueError(f"{label} is {_describe(grads)}, expected a mapping with the names {keys}")
    return list(grads)


def _describe(value: Any) -> str:
    size = f" of {len(value)}" if hasattr(value, "__len__") and getattr(value, "shape", 1) != () else ""
    return f"a {type(value).__name__}{size}"


def _allocate(
    names: Sequence[str], params: Sequence[Array], initial: Mapping[str, float]
) -> list[list[Array]]:
    """The states of each parameter: for each dtype, one buffer per state, of which these are views."""
    states: list[list[Array]] = [[] for _ in params]
    for dtype in {p.dtype for p in params}:
        members = [i for i, p in enumerate(params) if p.dtype == dtype]
        for name in names:
            buffer = _arrays.aligned_zeros(sum(params[i].size for i in members), dtype)
            if initial.get(name):
                buffer[...] = initial[name]
            pieces = _arrays.views(buffer, [params[i].shape for i in members])
            for i, piece in zip(members, pieces, strict=True):
                states[i].append(piece)
    return states


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    ``b = momentum*b + (1-dampening)*g`` (first step ``b = g``); ``p -= lr*b``; with ``nesterov``
    ``p -= lr*(g + momentum*b)``. This is PyTorch's form. ``velocity="classical"`` keeps lr inside the
    velocity, ``v = momentum*v + lr*g; p -= v`` (Goodfellow et al. 2016, algorithm 8.2; Keras), with
    ``nesterov`` ``p -= momentum*v + lr*g``. The two differ once lr changes.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-3
    momentum, dampening : float, default 0
    nesterov : bool, default False
        Needs momentum > 0 and no dampening.
    velocity : {"torch", "classical"}
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "velocity": "torch",
    }

    def __init__(self, params: Any, lr: float | Schedule = 1e-3, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov=True needs momentum > 0 and dampening 0")
        return "momentum" if group["momentum"] else "sgd"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        mu = group["momentum"]
        if not mu:
            return (lr,)
        # b = mu*b + grad_in*g, then p -= step_grad*g + step_buffer*b
        if group["velocity"] == "classical":
            grad_in, unit = lr * (1 - group["dampening"]), 1.0
        else:
            grad_in, unit = 1.0 if t == 1 else 1 - group["dampening"], lr
        if group["nesterov"]:
            return (mu, grad_in, lr, unit * mu)
        return (mu, grad_in, 0.0, unit)

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Inside the ``with`` block the parameters stand at the interim point ``p - momentum*v``.

        Take the gradient there, then step outside it: Nesterov's method as he wrote it (1983; Goodfellow
        et al. 2016, algorithm 8.3). ``nesterov=True`` is the same method, in the variable
        ``p - momentum*v``.

        Raises
        ------
        ValueError
            A group has not ``velocity="classical"`` with momentum > 0 and ``nesterov=False``.
        """
        for group in self.param_groups:
            if group["velocity"] != "classical" or not group["momentum"] or group["nesterov"]:
                raise ValueError(
                    "lookahead needs velocity='classical', momentum > 0 and nesterov=False in every group"
                )
        kept = [p.copy() for p in self._params_flat]
        for group, states in zip(self.param_groups, self._states, strict=True):
            for p, (velocity,) in zip(group["params"], states, strict=True):
                p -= p.dtype.type(group["momentum"]) * velocity
        try:
            yield
        finally:
            for p, value in zip(self._params_flat, kept, strict=True):
                p[...] = value


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011): ``s += g*g; p -= lr_t * g/(sqrt(s + eps_root) + eps)``.

    ``lr_t = lr/(1 + (t-1)*lr_decay)``. ``eps`` outside the root is PyTorch's; optax's is
    ``eps=0, eps_root=1e-7, initial_accumulator_value=0.1``.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-2
    lr_decay : float, default 0
    initial_accumulator_value : float, default 0
    eps : float, default 1e-10
    eps_root : float, default 0
    """

    defaults: ClassVar = {
        "lr": 1e-2,
        "lr_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
        "eps_root": 0.0,
    }

    def __init__(self, params: Any, lr: float | Schedule = 1e-2, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "adagrad"

    def _initial(self, group: Group) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        return (lr / (1 + (t - 1) * group["lr_decay"]), group["eps_root"], group["eps"])


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012): ``v = alpha*v + (1-alpha)*g*g``, ``p -= lr * g/d``.

    ``d = sqrt(v + eps_root) + eps`` (PyTorch's; TensorFlow's is ``eps=0, eps_root=1e-7``);
    ``centered`` subtracts the square of the mean gradient from v (Graves 2013), kept from going
    negative by rounding; with momentum ``b = momentum*b + g/d; p -= lr*b``.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-2
    alpha : float, default 0.99
    eps : float, default 1e-8
    eps_root, momentum : float, default 0
    centered : bool, default False
    """

    defaults: ClassVar = {
        "lr": 1e-2,
        "alpha": 0.99,
        "eps": 1e-8,
        "eps_root": 0.0,
        "momentum": 0.0,
        "centered": False,
    }

    def __init__(self, params: Any, lr: float | Schedule = 1e-2, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        centered = "_centered" if group["centered"] else ""
        return f"rmsprop{centered}{'_momentum' if group['momentum'] else ''}"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        alpha = group["alpha"]
        row = (lr, alpha, 1 - alpha, group["eps_root"], group["eps"])
        return (*row, group["momentum"]) if group["momentum"] else row


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012), with PyTorch's learning rate.

    ``v = rho*v + (1-rho)*g*g; D = sqrt(u+eps)/sqrt(v+eps) * g; u = rho*u + (1-rho)*D*D; p -= lr*D``.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1.0
    rho : float, default 0.9
    eps : float, default 1e-6
        Inside both roots, as in the paper.
    """

    defaults: ClassVar = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}

    def __init__(self, params: Any, lr: float | Schedule = 1.0, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "adadelta"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        return (lr, group["rho"], 1 - group["rho"], group["eps"])


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015).

    ``m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g*g; p -= (lr/c1) * m/(sqrt(v/c2 + eps_root) + eps)``.
    This is PyTorch's form and the paper's algorithm 1. ``eps_hat=True`` scales eps by ``1/sqrt(c2)``,
    the form of the paper's section 2 and of Keras. ``eps=0, eps_root=e`` is ``m_hat/sqrt(v_hat + e)``.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`. `AdamW` is Adam with decoupled decay.
    lr : float or callable, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    eps_root : float, default 0
    eps_hat : bool, default False
    amsgrad : bool, default False
        Divide by the largest v so far (Reddi et al. 2018).
    amsgrad_max : {"raw", "corrected"}
        The maximum over v, then corrected (PyTorch, Keras); or over v/c2 (optax).
    bias_correction : bool, default True
        False takes c1 = c2 = 1.
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "eps_root": 0.0,
        "eps_hat": False,
        "amsgrad": False,
        "amsgrad_max": "raw",
        "bias_correction": True,
    }

    def __init__(self, params: Any, lr: float | Schedule = 1e-3, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        b1, b2 = group["betas"]
        c1, c2 = (1 - b1**t, 1 - b2**t) if group["bias_correction"] else (1.0, 1.0)
        eps = group["eps"] / c2**0.5 if group["eps_hat"] else group["eps"]
        moments = (b1, 1 - b1, b2, 1 - b2, lr / c1)
        if not group["amsgrad"]:
            return (*moments, 1 / c2, group["eps_root"], eps)
        raw = group["amsgrad_max"] == "raw"
        before, after = (1.0, 1 / c2) if raw else (1 / c2, 1.0)
        return (*moments, before, after, group["eps_root"], eps)


class AdamW(Adam):
    """`Adam` with decoupled weight decay 1e-2 (Loshchilov & Hutter 2019), as PyTorch's.

    Keras's and optax's default decay differs (0.004 and 1e-4).
    """

    defaults: ClassVar = {**Adam.defaults, "weight_decay": 1e-2, "decoupled_weight_decay": True}


class AMSGrad(Adam):
    """`Adam` with ``amsgrad=True`` (Reddi, Kale & Kumar 2018) under its own name."""

    defaults: ClassVar = {**Adam.defaults, "amsgrad": True}


class Adamax(Optimizer):
    """Adamax (Kingma & Ba 2015, section 7.1): Adam with the infinity norm.

    ``m = b1*m + (1-b1)*g; u = max(b2*u, abs(g)+eps); p -= lr/c1 * m/u``, as PyTorch's; the paper has no
    eps (``eps=0``), and Keras adds it to u instead.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 2e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    """

    defaults: ClassVar = {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8}

    def __init__(self, params: Any, lr: float | Schedule = 2e-3, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "adamax"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        b1, b2 = group["betas"]
        return (b1, 1 - b1, b2, lr / (1 - b1**t), group["eps"])


class NAdam(Optimizer):
    """NAdam (Dozat 2016): Adam with Nesterov momentum.

    ``mu_t = b1*(1 - 0.5*0.96**(t*momentum_decay))``;
    ``p -= lr*(mu_{t+1}*m/(1 - mu_1...mu_{t+1}) + (1-mu_t)*g/(1 - mu_1...mu_t)) / (sqrt(v/c2) + eps)``,
    as PyTorch's. ``momentum_decay=None`` is Dozat without the ramp, ``mu_t = b1``, which is optax's.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 2e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    eps_root : float, default 0
    momentum_decay : float or None, default 4e-3
    """

    defaults: ClassVar = {
        "lr": 2e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "eps_root": 0.0,
        "momentum_decay": 4e-3,
    }

    def __init__(self, params: Any, lr: float | Schedule = 2e-3, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "nadam"

    def _mu(self, group: Group, t: float) -> float:
        decay = group["momentum_decay"]
        ramp = 1.0 if decay is None else 1 - 0.5 * 0.96 ** (t * decay)
        return float(group["betas"][0] * ramp)

    def _first_scalars(self, group: Group) -> dict[str, float]:
        return {"step": 0, "mu_product": 1.0}

    def _next_scalars(self, group: Group, scalars: dict[str, float]) -> dict[str, float]:
        t = scalars["step"] + 1
        return {"step": t, "mu_product": scalars["mu_product"] * self._mu(group, t)}

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        b1, b2 = group["betas"]
        product = scalars["mu_product"]
        mu, mu_next = self._mu(group, t), self._mu(group, t + 1)
        return (
            b1,
            1 - b1,
            b2,
            1 - b2,
            lr * mu_next / (1 - product * mu_next),
            lr * (1 - mu) / (1 - product),
            1 / (1 - b2**t),
            group["eps_root"],
            group["eps"],
        )


class RAdam(Optimizer):
    """Rectified Adam (Liu et al. 2020).

    Adam whose step is scaled by the rectification r_t, or plain momentum ``p -= lr/c1 * m`` while the
    variance of the adaptive rate is not tractable (``rho_t <= 5``). As in PyTorch the adaptive part is
    ``sqrt(c2)/(sqrt(v) + eps)``: eps is added before the correction.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    eps_root : float, default 0
    """

    defaults: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "eps_root": 0.0}

    def __init__(self, params: Any, lr: float | Schedule = 1e-3, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "adam"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        b1, b2 = group["betas"]
        c1, c2 = 1 - b1**t, 1 - b2**t
        moments = (b1, 1 - b1, b2, 1 - b2)
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * b2**t / c2
        if length <= 5:
            return (*moments, lr / c1, 0.0, 0.0, 1.0)  # divide by sqrt(0*v) + 1
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return (*moments, lr / c1 * (r * c2) ** 0.5, 1.0, group["eps_root"], group["eps"])


class Lion(Optimizer):
    """Lion (Chen et al. 2023): ``p -= lr*sign(b1*m + (1-b1)*g); m = b2*m + (1-b2)*g``.

    Parameters
    ----------
    params, weight_decay, maximize
        See `Optimizer`.
    decoupled_weight_decay : bool, default True
        As in the paper.
    lr : float or callable, default 1e-4
    betas : pair of float, default (0.9, 0.99)
    """

    defaults: ClassVar = {"lr": 1e-4, "betas": (0.9, 0.99), "decoupled_weight_decay": True}

    def __init__(self, params: Any, lr: float | Schedule = 1e-4, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "lion"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        b1, b2 = group["betas"]
        return (b1, 1 - b1, b2, 1 - b2, lr)


class Rprop(Optimizer):
    """Resilient backpropagation (Riedmiller & Braun 1993), for full batches.

    Each element has a step size of its own, which grows by ``etas[1]`` while its gradient keeps its sign
    and shrinks by ``etas[0]`` where it turns; there the element rests for one step. As PyTorch's.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float, default 1e-2
        The first step size; no later value of it matters.
    etas : pair of float, default (0.5, 1.2)
    step_sizes : pair of float, default (1e-6, 50)
        The smallest and the largest step.
    """

    defaults: ClassVar = {"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)}

    def __init__(self, params: Any, lr: float | Schedule = 1e-2, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "rprop"

    def _initial(self, group: Group) -> dict[str, float]:
        lr = group["lr"]
        return {"step_size": lr(0) if callable(lr) else lr}

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        return (1.0, *group["etas"], *group["step_sizes"])


class ASGD(Optimizer):
    """Averaged SGD (Polyak & Juditsky 1992), as PyTorch's: ``p = (1 - lambd*eta)*p - eta*g``.

    ``eta = lr/(1 + lambd*lr*(t-1))**alpha``. The state ``ax`` is the latest point until step t0, and the
    mean of all points after it: `averages` copies it.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-2
    lambd : float, default 1e-4
    alpha : float, default 0.75
    t0 : float, default 1e6
    """

    defaults: ClassVar = {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6}

    def __init__(self, params: Any, lr: float | Schedule = 1e-2, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "asgd"

    def _coefficients(
        self, group: Group, t: int, lr: float, scalars: Mapping[str, float]
    ) -> tuple[float, ...]:
        # PyTorch computes eta and mu at the end of a step, for the next one.
        eta = lr / (1 + group["lambd"] * lr * (t - 1)) ** group["alpha"] if t > 1 else lr
        mu = 1 / max(1, t - 1 - group["t0"])
        return (1 - group["lambd"] * eta, eta, 1 - mu, mu)

    def averages(self) -> list[Array]:
        """Copies of the averaged parameters, in the order of the parameters."""
        return [state[0].copy() for group in self._states for state in group]
