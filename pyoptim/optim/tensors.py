"""Optimizers that look at a whole tensor: its norms, its factored moments, its singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from .. import backends
from ..formulas.rules import Common, root_scale
from . import stepping
from .optimizer import Group, Optimizer, Row, Schedule

__all__ = ["LAMB", "LARS", "Adafactor", "Muon"]

_OWN = len(Common._fields)  # a row is the coefficients of Common, then those of the rule


class _Trusting(Optimizer):
    """Optimizers in which the norms of each array set its rate: steps of a backend's ``TrustStepper``."""

    _kind = "TrustStepper"
    directed: ClassVar[bool]

    def _trust(self, group: Group, row: Row) -> tuple[Row, Row]:
        """The coefficients of the rule, and the fields of the group's Trust (``csrc/formulas/trust.hpp``)."""
        raise NotImplementedError

    def _stepper_of(self, backend: Any) -> Any:
        return backend.TrustStepper(self._step_groups(), self.directed, *self._place.queues)

    def _apply(self, flat: list[Any], rows: list[Row]) -> None:
        pairs = [self._trust(group, row) for group, row in zip(self.param_groups, rows, strict=True)]
        limit = (self._max_grad_norm,) if self._place.clips else ()
        rows, trusts = [row for row, _ in pairs], [trust for _, trust in pairs]
        stepping.run(self, self._stepper(), flat, rows, *limit, trusts)


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
    _rule_name = "momentum"
    defaults: ClassVar = {"lr": 1e-1, "momentum": 0.9, "trust": 1e-3, "eps": 1e-8}

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
    _rule_names = ("adam",)
    defaults: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": True}

    def _rule(self, group: Group) -> str:
        _check_decay(self, group, decoupled=False)
        return "adam"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        b1, b2 = group["betas"]
        c1, c2 = (1 - b1**t, 1 - b2**t) if group["bias_correction"] else (1.0, 1.0)
        s = root_scale(c2)
        # lr, then the row of the rule
        return (lr, b1, 1 - b1, b2, 1 - b2, s / c1, s * s / c2, 0.0, s * group["eps"])

    def _trust(self, group: Group, row: Row) -> tuple[Row, Row]:
        return (row[0], 0.0, 1.0, *row[_OWN + 1 :]), (row[_OWN], group["weight_decay"], 1.0, 1.0, 0.0)


class Adafactor(Optimizer):
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

    _kind = "AdafactorStepper"
    _rule_names = ("sgd",)
    defaults: ClassVar = {
        "lr": 1e-2,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 1.0,
        "decoupled_weight_decay": True,
    }

    def _layout(self, group: Group, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2:
            return {"variance": shape}
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}

    def _rule(self, group: Group) -> str:
        _check_decay(self, group, decoupled=True)
        return "sgd"  # a descent along the direction that the backend computes

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        eps, smallest = group["eps"]
        rate, fresh = min(lr, 1 / math.sqrt(t)), float(t ** group["beta2_decay"])
        return (rate, fresh, -1.0 if eps is None else float(eps), float(smallest), float(group["d"]))

    def _step_groups(self) -> list[backends.StepGroup]:
        return [
            group._replace(states=[list(state.values()) for state in states])
            for group, states in zip(super()._step_groups(), self._states, strict=True)
        ]


class Muon(Optimizer):
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

    _kind = "MuonStepper"
    _rule_names = ("momentum", "nesterov")
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

    def __init__(self, params: Any, lr: float | Schedule | None = None, **hyperparameters: Any) -> None:
        super().__init__(params, lr, **hyperparameters)
        for name, p in zip(self._names, self._params, strict=True):
            if len(p.shape) != 2:
                raise ValueError(f"{name} has shape {p.shape}, expected a matrix for Muon")

    def _rule(self, group: Group) -> str:
        _check_decay(self, group, decoupled=True)
        return "nesterov" if group["nesterov"] else "momentum"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        mu = group["momentum"]
        momentum = (mu, 1 - mu, 1 - mu, mu) if group["nesterov"] else (mu, 1 - mu, 1.0, 0.0)
        a, b, c = map(float, group["ns_coefficients"])
        like_adamw = float(group["adjust_lr_fn"] == "match_rms_adamw")
        return (*momentum, lr, like_adamw, float(group["ns_steps"]), float(group["eps"]), a, b, c)


def _check_decay(optimizer: Optimizer, group: Group, *, decoupled: bool) -> None:
    if group["decoupled_weight_decay"] != decoupled:
        raise ValueError(
            f"decoupled_weight_decay is {group['decoupled_weight_decay']}, but the decay of "
            f"{type(optimizer).__name__} is as if it were {decoupled}"
        )
