"""Optimizers that look at a whole tensor: its norms, its factored moments, its singular values.

They are made of the parts that the elementwise ones are made of: a rule writes a direction into scratch
memory, the tensor's own transformation follows, and a step of gradient descent applies it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from . import _device_copies, backends, gradients
from ._arrays import Array
from .backends.device import Queue
from .backends.device_adafactor import Options
from .optimizer import Group, Optimizer, Row, Schedule, State
from .rules import RULES, Common

_OWN = len(Common._fields)  # a row is Common's coefficients, then the rule's own


def _norm(array: Array) -> float:
    return gradients.norm_of([array])


class _Trusting(Optimizer):
    """The norms of each array set its rate, in one call of a backend's ``TrustStepper``."""

    directed: ClassVar[bool]

    def _trust(self, group: Group, row: Row) -> tuple[Row, Row]:
        """The rule's coefficients, and the group's trust."""
        raise NotImplementedError

    def _new_stepper(self) -> Any:
        if self._queue is not None:
            return self._new_device_stepper(self._queue)
        backend = backends.current()
        stepper = self._steppers[backend.name] = backend.TrustStepper(self._step_groups(), self.directed)
        return stepper

    def _stepper_there(self, backend: Any, queue: Queue) -> Any:
        return backend.TrustStepper(self._step_groups(), self.directed, queue)

    def _apply(self, flat: list[Any], rows: list[Row]) -> None:
        pairs = [self._trust(group, row) for group, row in zip(self.param_groups, rows, strict=True)]
        limit = () if self._queue is None else (self._max_grad_norm,)
        self._run(self._stepper(), flat, [row for row, _ in pairs], [trust for _, trust in pairs], *limit)


class LARS(_Trusting):
    """Layer-wise adaptive rates (You, Gitman & Ginsburg 2017): SGD with a rate for each tensor.

    ``rate = lr * trust * ||p||/(||g|| + weight_decay*||p|| + eps)``, or lr where p or g is 0;
    ``v = momentum*v + rate*(g + weight_decay*p); p -= v``.

    Parameters
    ----------
    params, weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-1
    momentum : float, default 0.9
    trust : float, default 1e-3
        The paper's eta.
    eps : float, default 1e-8
    """

    directed = False
    defaults: ClassVar = {"lr": 1e-1, "momentum": 0.9, "trust": 1e-3, "eps": 1e-8}

    def __init__(self, params: Any, lr: float | Schedule = 1e-1, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        return "momentum"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        return (group["momentum"], lr, 1.0)

    def _trust(self, group: Group, row: Row) -> tuple[Row, Row]:
        return row, (row[_OWN + 1], group["weight_decay"], abs(row[0]), group["trust"], group["eps"])


class LAMB(_Trusting):
    """Layer-wise adaptive Adam (You et al. 2020).

    ``u = m_hat/(sqrt(v_hat) + eps) + weight_decay*p; p -= lr * ||p||/||u|| * u``, with the ratio 1 where
    p or u is 0. The paper's phi is the identity: norms are not clipped.

    Parameters
    ----------
    params, weight_decay, maximize
        See `Optimizer`; the decay is part of u.
    lr : float or callable, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-6
    bias_correction : bool, default True
    """

    directed = True
    defaults: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": True}

    def __init__(self, params: Any, lr: float | Schedule = 1e-3, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _rule(self, group: Group) -> str:
        _check_decay(self, group, decoupled=False)
        return "adam"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        b1, b2 = group["betas"]
        c1, c2 = (1 - b1**t, 1 - b2**t) if group["bias_correction"] else (1.0, 1.0)
        return (lr, b1, 1 - b1, b2, 1 - b2, 1 / c1, 1 / c2, 0.0, group["eps"])  # lr before the rule's own

    def _trust(self, group: Group, row: Row) -> tuple[Row, Row]:
        return (row[0], 0.0, 1.0, *row[_OWN + 1 :]), (row[_OWN], group["weight_decay"], 1.0, 1.0, 0.0)


class _Directed(Optimizer):
    """A rule on zeroed scratch memory gives each tensor a descent direction d; then ``p += rate * d``.

    ``_coefficients`` returns lr before the rule's own.
    """

    def _direct(self, group: Group, p: Array, state: State, d: Array, lr: float, t: int) -> float:
        """Make d, which holds what the rule did to 0, the direction; return the rate."""
        raise NotImplementedError

    def _rule(self, group: Group) -> str:
        _check_decay(self, group, decoupled=True)
        return self._direction_rule(group)

    def _direction_rule(self, group: Group) -> str:
        raise NotImplementedError

    def _step_groups(self) -> list[backends.StepGroup]:
        if not hasattr(self, "_directions"):  # every backend's stepper writes the same
            self._directions = [np.zeros(p.shape, p.dtype) for p in self._params]
            self._targets = [self._staged.get(i, p) for i, p in enumerate(self._params)]
        index = iter(self._directions)
        return [
            backends.StepGroup(group.rule, [next(index) for _ in group.params], group.states)
            for group in super()._step_groups()
        ]

    def _apply(self, flat: list[Any], rows: list[Row]) -> None:
        flat = self._checked(flat)
        backend = backends.current()
        stepper = self._stepper()
        for d in self._directions:
            d[...] = 0
        stepper.step(flat, [(row[0], 0.0, 1.0, *row[_OWN + 1 :]) for row in rows])
        descent: list[Row] = []
        with np.errstate(all="ignore"):  # NaN and infinity pass, as through the kernels
            for group, states, scalars, row in zip(
                self.param_groups, self._states, self._scalars, rows, strict=True
            ):
                for p, state in zip(group["params"], states, strict=True):
                    d, t = self._directions[len(descent)], int(scalars["step"]) + 1
                    rate = self._direct(group, p, state, d, row[_OWN], t)
                    descent.append((-1.0, 0.0, row[2], rate))
        for i, copy in self._staged.items():
            copy[...] = self._params[i]
        groups = [backends.StepGroup(RULES["sgd"], self._targets, [()] * len(self._targets))]
        backend.Stepper(backends.one_each(groups)).step(self._directions, descent)
        for i, copy in self._staged.items():
            self._params[i][...] = copy


class Adafactor(_Directed):
    """Adafactor (Shazeer & Stern 2018), as PyTorch's: second moments of a matrix kept as rows and columns.

    With ``beta2_t = 1 - t**beta2_decay``: ``R = beta2_t*R + (1-beta2_t)*mean(g*g, last axis)``, C likewise
    over the axis before it, ``V = R C / mean(R)``; a vector keeps V itself.
    ``u = g/sqrt(max(V, eps[0]**2))``, ``u /= max(1, rms(u)/d)``,
    ``p -= min(lr, 1/sqrt(t)) * max(eps[1], rms(p)) * u``. No first moment. On a GPU, sums have another order:
    results are those up to rounding.

    Parameters
    ----------
    params, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-2
        The largest relative step.
    beta2_decay : float, default -0.8
    eps : pair, default (None, 1e-3)
        None takes the machine epsilon of the parameter's dtype.
    d : float, default 1
        The threshold of clipping.
    weight_decay : float, default 0
        Decoupled.
    """

    defaults: ClassVar = {
        "lr": 1e-2,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 1.0,
        "decoupled_weight_decay": True,
    }

    def __init__(self, params: Any, lr: float | Schedule = 1e-2, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)

    def _layout(self, group: Group, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2:
            return {"variance": shape}
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}

    def _direction_rule(self, group: Group) -> str:
        return "sgd"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        return (lr, 1.0)  # the direction begins as -g

    def _stepper_there(self, backend: Any, queue: Queue) -> Any:
        states = [state for group in self._states for state in group]
        groups = [
            backends.StepGroup(rule, group["params"], [()] * len(group["params"]))
            for rule, group in zip(self._rules, self.param_groups, strict=True)
        ]
        return backend.AdafactorStepper(groups, queue, states)

    def _apply(self, flat: list[Any], rows: list[Row]) -> None:
        if self._queue is None:
            super()._apply(flat, rows)
            return
        coefficients: list[Row] = [(row[0], 0.0, 1.0, *row[_OWN + 1 :]) for row in rows]
        options = []
        for group, scalars, row in zip(self.param_groups, self._scalars, rows, strict=True):
            t = int(scalars["step"]) + 1
            rate, fresh = min(row[_OWN], 1 / math.sqrt(t)), float(t ** group["beta2_decay"])
            for p in group["params"]:
                eps = self._least(group, p), float(group["eps"][1])
                options.append(Options(rate, fresh, eps, float(group["d"]), row[2]))
        self._run(self._stepper(), flat, coefficients, options, self._max_grad_norm)

    @staticmethod
    def _least(group: Group, p: Any) -> float:
        eps = group["eps"][0]
        return float(np.finfo(p.dtype).eps) if eps is None else float(eps)

    def _direct(self, group: Group, p: Array, state: State, d: Array, lr: float, t: int) -> float:
        if p.size == 0:
            return 0.0
        eps = self._least(group, p)
        fresh = float(t ** group["beta2_decay"])
        if "variance" in state:
            variance = _blend(state["variance"], np.square(d), fresh)
        else:
            square = np.square(d, dtype=np.float64)
            rows = _blend(state["row_var"], square.mean(axis=-1, keepdims=True), fresh)
            cols = _blend(state["col_var"], square.mean(axis=-2, keepdims=True), fresh)
            variance = rows * cols / np.maximum(rows.mean(axis=-2, keepdims=True), eps)
        d /= np.sqrt(np.maximum(variance, eps * eps))
        root = math.sqrt(p.size)
        relative = max(float(group["eps"][1]), _norm(np.ascontiguousarray(p)) / root)
        clip = max(1.0, _norm(d) / (root * float(group["d"])))
        return min(lr, 1 / math.sqrt(t)) * relative / clip


class Muon(_Directed):
    """Muon (Jordan 2024): momentum made orthogonal by Newton-Schulz iterations; for matrices only.

    ``b = momentum*b + (1-momentum)*g``; ``u = (1-momentum)*g + momentum*b`` with ``nesterov``, else b;
    ``p -= lr * adjust * orthogonal(u)``, as PyTorch's, which however iterates in bfloat16; here it is the
    parameter's own type. On a GPU, products are sums in another order: results are those up to rounding.

    Parameters
    ----------
    params, maximize
        See `Optimizer`; every parameter has two dimensions. Give biases and embeddings to `AdamW`.
    lr : float or callable, default 1e-3
    weight_decay : float, default 0.1
        Decoupled.
    momentum : float, default 0.95
    nesterov : bool, default True
    ns_coefficients : three floats, default (3.4445, -4.775, 2.0315)
    ns_steps : int, default 5
    eps : float, default 1e-7
    adjust_lr_fn : {"original", "match_rms_adamw"}
        ``sqrt(max(1, rows/columns))``, or ``0.2*sqrt(max(rows, columns))`` (Moonshot AI 2025).
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "momentum": 0.95,
        "nesterov": True,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "ns_steps": 5,
        "eps": 1e-7,
        "adjust_lr_fn": "original",
    }

    def __init__(self, params: Any, lr: float | Schedule = 1e-3, **hyperparameters: Any) -> None:
        super().__init__(params, lr=lr, **hyperparameters)
        for name, p in zip(self._names, self._params, strict=True):
            if len(p.shape) != 2:
                raise ValueError(f"{name} has shape {p.shape}, expected a matrix for Muon")

    def _direction_rule(self, group: Group) -> str:
        return "nesterov" if group["nesterov"] else "momentum"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        mu = group["momentum"]
        return (lr, mu, 1 - mu, 1 - mu, mu) if group["nesterov"] else (lr, mu, 1 - mu, 1.0)

    def _direct(self, group: Group, p: Array, state: State, d: Array, lr: float, t: int) -> float:
        if p.size:
            d[...] = _orthogonal(d, group["ns_coefficients"], group["ns_steps"], group["eps"])
        return self._rate(group, p, lr)

    def _rate(self, group: Group, p: Any, lr: float) -> float:
        rows, columns = p.shape
        if group["adjust_lr_fn"] == "original":
            return lr * math.sqrt(max(1.0, rows / max(1, columns)))
        return lr * 0.2 * math.sqrt(max(rows, columns))

    def _stepper_there(self, backend: Any, queue: Queue) -> Any:
        params: list[Any] = self._params
        directions = _device_copies.zeros(queue, params, [p.dtype for p in params])
        return backend.MuonStepper(Optimizer._step_groups(self), queue, directions)

    def _apply(self, flat: list[Any], rows: list[Row]) -> None:
        if self._queue is None:
            super()._apply(flat, rows)
            return
        momenta = [(row[0], 0.0, 1.0, *row[_OWN + 1 :]) for row in rows]
        iterations = [(g["ns_coefficients"], g["ns_steps"], g["eps"]) for g in self.param_groups]
        descents = [
            (-1.0, 0.0, row[2], self._rate(group, p, row[_OWN]))
            for group, row in zip(self.param_groups, rows, strict=True)
            for p in group["params"]
        ]
        self._run(self._stepper(), flat, momenta, iterations, descents, self._max_grad_norm)


def _blend(old: Array, new: Array, fresh: float) -> Array:
    """``old`` moved towards ``new`` in place, returned in double."""
    old += fresh * (new - old)
    return old.astype(np.float64)


def _orthogonal(matrix: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    """Towards U V^T of the matrix's singular value decomposition: X becomes aX + bSX + cSSX, S = X X^T."""
    product = backends.current().dense_forward  # (x, w) -> x w^T
    wide = matrix.shape[0] <= matrix.shape[1]
    x = np.array(matrix if wide else matrix.T, order="C")
    x /= x.dtype.type(max(_norm(x), eps))
    a, b, c = (x.dtype.type(value) for value in coefficients)
    gram, square, update = np.empty((3, len(x), len(x)), x.dtype)
    moved = np.empty_like(x)
    for _ in range(steps):
        product(x, x, None, None, gram)
        product(gram, gram, None, None, square)  # gram is symmetric
        np.multiply(gram, b, out=update)
        update += c * square
        product(update, np.ascontiguousarray(x.T), None, None, moved)
        x = a * x + moved
    return x if wide else x.T


def _check_decay(optimizer: Optimizer, group: Group, *, decoupled: bool) -> None:
    if group["decoupled_weight_decay"] != decoupled:
        raise ValueError(
            f"decoupled_weight_decay is {group['decoupled_weight_decay']}, but the decay of "
            f"{type(optimizer).__name__} is as if it were {decoupled}"
        )
