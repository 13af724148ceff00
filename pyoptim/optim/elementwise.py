"""The elementwise optimizers: hyperparameters, which rule they choose, and its coefficients at step t.

Every update runs as one fused pass over the arrays. Notation: g gradient, p parameter, t step counted
from 1, ``c1 = 1 - beta1**t``, ``c2 = 1 - beta2**t``. Where sources disagree the default is PyTorch's;
each docstring says which options give the other readings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import ClassVar

import numpy as np

from ..arrays import sharing, tensors
from ..formulas import storage
from ..formulas.rules import root_scale
from ..runtime.dtypes import Array
from . import stepping
from .optimizer import Group, Optimizer, Row

__all__ = [  # also what `pyoptim` shows of this file
    "AMSGrad",
    "ASGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


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
        Needs momentum > 0 and no dampening when the optimizer is made. Without momentum, as when a schedule
        takes it to 0, it makes no difference.
    velocity : {"torch", "classical"}
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "velocity": "torch",
    }
    _looking_ahead = False
    _rule_names = ("sgd", "momentum", "nesterov")

    @staticmethod
    def _check_together(group: Group) -> None:
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov=True needs momentum > 0 and dampening 0")

    def _rule(self, group: Group) -> str:
        if not group["momentum"]:
            return "sgd"
        return "nesterov" if group["nesterov"] else "momentum"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        mu = group["momentum"]
        if not mu:
            return (lr,)
        if self._looking_ahead:
            raise RuntimeError("step inside lookahead: take the gradient inside the block, step outside it")
        # The rule: b = mu*b + grad_in*g; p -= step_buffer*b, with nesterov p -= step_grad*g + step_buffer*b
        if group["velocity"] == "classical":
            grad_in, unit = lr * (1 - group["dampening"]), 1.0
        else:
            grad_in, unit = 1.0 if t == scalars.get("begun", 1) else 1 - group["dampening"], lr
        if group["nesterov"]:
            return (mu, grad_in, lr, unit * mu)
        return (mu, grad_in, unit)

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Inside the ``with`` block the parameters stand at the interim point ``p - momentum*v``.

        Take the gradient inside the block, step outside it: Nesterov's method as he wrote it (1983;
        Goodfellow et al. 2016, algorithm 8.3). ``nesterov=True`` is the same method, in the variable
        ``p - momentum*v``. What is written into the parameters inside the block is lost: afterwards they hold
        what they held before.

        Raises
        ------
        ValueError
            A group has not ``velocity="classical"`` with momentum > 0 and ``nesterov=False``; or the
            parameters are a copied model's, and the model was not copied along.
        """
        for group in self.param_groups:
            if group["velocity"] != "classical" or not group["momentum"] or group["nesterov"]:
                raise ValueError(
                    "lookahead needs velocity='classical', momentum > 0 and nesterov=False in every group"
                )
        if self._looking_ahead:
            raise RuntimeError("lookahead inside lookahead: the parameters already stand there")
        self.check_memory()
        sharing.check_model(self._names, self._params)
        stepping.change_rules(self)
        self._looking_ahead, self._advance = True, None
        kept = self._place.copies(self._params)
        try:
            self._move_along_velocities()
            tensors.tell_autograd(self._tensors)
            yield
        finally:
            self._looking_ahead = False
            self._place.assign(self._params, kept)
            tensors.tell_autograd(self._tensors)

    def _move_along_velocities(self) -> None:
        mover = self._steppers.get("lookahead")
        if mover is None:
            packed = [storage.pack_state("momentum_buffer", own) for group in self._states for own in group]
            mover = self._steppers["lookahead"] = self._place.mover(self._params, packed)
        mover.move([group["momentum"] for group in self.param_groups for _ in group["params"]])


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

    _rule_name = "adagrad"
    defaults: ClassVar = {
        "lr": 1e-2,
        "lr_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
        "eps_root": 0.0,
    }

    def _initial(self, group: Group) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
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
    alpha : float in [0, 1], default 0.99
        Above 1, which PyTorch takes, v is negative and p NaN.
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

    _rule_names = ("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum")

    def _rule(self, group: Group) -> str:
        centered = "_centered" if group["centered"] else ""
        return f"rmsprop{centered}{'_momentum' if group['momentum'] else ''}"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
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
    rho : float in [0, 1], default 0.9
    eps : float, default 1e-6
        Inside both roots, as in the paper.
    """

    _rule_name = "adadelta"
    defaults: ClassVar = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        return (lr, group["rho"], 1 - group["rho"], group["eps"])


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015).

    ``m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g*g; p -= (lr/c1) * m/(sqrt(v/c2 + eps_root) + eps)``.
    This is PyTorch's form and the paper's algorithm 1. ``eps_hat=True`` scales eps by ``1/sqrt(c2)``,
    the form of the paper's section 2 and of Keras, and eps_root by ``1/c2``: the update is then
    ``lr*sqrt(c2)/c1 * m/(sqrt(v + eps_root) + eps)``. So ``eps=0, eps_root=e`` is ``m_hat/sqrt(v_hat + e)``,
    and with ``eps_hat=True`` it is ``lr*sqrt(c2)/c1 * m/sqrt(v + e)``, e beside the moment as it came.

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

    _rule_names = ("adam", "amsgrad")

    def _rule(self, group: Group) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        b1, b2 = group["betas"]
        c1 = c2 = s = 1.0
        if group["bias_correction"]:
            c1, c2 = 1 - b1**t, 1 - b2**t
            s = root_scale(c2)
        eps, eps_root = group["eps"], group["eps_root"]
        if group["eps_hat"]:
            eps, eps_root = eps / c2**0.5, eps_root / c2
        square = s * s
        if not group["amsgrad"]:
            return (b1, 1 - b1, b2, 1 - b2, s * lr / c1, square / c2, square * eps_root, s * eps)
        if group["amsgrad_max"] == "raw":
            return (b1, 1 - b1, b2, 1 - b2, s * lr / c1, 1.0, square / c2, square * eps_root, s * eps)
        return (b1, 1 - b1, b2, 1 - b2, lr / c1, 1 / c2, 1.0, eps_root, eps)


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

    _rule_name = "adamax"
    defaults: ClassVar = {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        b1, b2 = group["betas"]
        return (b1, 1 - b1, b2, lr / (1 - b1**t), group["eps"])


class NAdam(Optimizer):
    """NAdam (Dozat 2016): Adam with Nesterov momentum.

    ``mu_t = b1*(1 - 0.5*0.96**(t*momentum_decay))``;
    ``p -= lr*(mu_{t+1}*m/(1 - mu_1...mu_{t+1}) + (1-mu_t)*g/(1 - mu_1...mu_t)) / (sqrt(v/c2) + eps)``,
    as PyTorch's. ``momentum_decay=1`` is Keras's, whose ramp goes by ``0.96**t`` (and its other defaults are
    ``lr=1e-3, eps=1e-7``). ``momentum_decay=None`` is Dozat without the ramp, ``mu_t = b1``, as optax has it.

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

    _rule_name = "nadam"
    defaults: ClassVar = {
        "lr": 2e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "eps_root": 0.0,
        "momentum_decay": 4e-3,
    }

    def _mu(self, group: Group, t: float) -> float:
        decay = group["momentum_decay"]
        ramp = 1.0 if decay is None else 1 - 0.5 * 0.96 ** (t * decay)
        return float(group["betas"][0] * ramp)

    def _first_scalars(self, group: Group) -> dict[str, float]:
        return {"step": 0, "mu_product": 1.0}

    def _next_scalars(self, group: Group, scalars: dict[str, float]) -> dict[str, float]:
        t = scalars["step"] + 1
        return {"step": t, "mu_product": scalars["mu_product"] * self._mu(group, t)}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        b1, b2 = group["betas"]
        product = scalars["mu_product"]
        mu, mu_next = self._mu(group, t), self._mu(group, t + 1)
        c2 = 1 - b2**t
        s = root_scale(c2)
        steps = (s * (lr * mu_next / (1 - product * mu_next)), s * (lr * (1 - mu) / (1 - product)))
        return (b1, 1 - b1, b2, 1 - b2, *steps, s * s / c2, s * s * group["eps_root"], s * group["eps"])


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

    _rule_name = "radam"
    defaults: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "eps_root": 0.0}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        b1, b2 = group["betas"]
        c1, c2 = 1 - b1**t, 1 - b2**t
        moments = (b1, 1 - b1, b2, 1 - b2)
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * b2**t / c2
        if length <= 5:
            return (*moments, lr / c1, 0.0, 0.0, 1.0, 1.0)
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return (*moments, lr / c1 * (r * c2) ** 0.5, group["eps_root"], group["eps"], 0.0, inf)


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

    _rule_name = "lion"
    defaults: ClassVar = {"lr": 1e-4, "betas": (0.9, 0.99), "decoupled_weight_decay": True}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        b1, b2 = group["betas"]
        return (b1, 1 - b1, b2, 1 - b2, lr)


class Rprop(Optimizer):
    """Resilient backpropagation (Riedmiller & Braun 1993), for full batches.

    Each element has a step size of its own, which grows by ``etas[1]`` while its gradient keeps its sign
    and shrinks by ``etas[0]`` where it turns, and then the element rests for one step. As PyTorch's.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float, default 1e-2
        The first step size; no later value of it matters.
    etas : pair of float, default (0.5, 1.2)
    step_sizes : pair of float >= 0, default (1e-6, 50)
        The smallest and the largest step.
    """

    _rule_name = "rprop"
    defaults: ClassVar = {"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)}

    def _initial(self, group: Group) -> dict[str, float]:
        lr = group["lr"]
        return {"step_size": lr(0) if callable(lr) else lr}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        return (1.0, *group["etas"], *group["step_sizes"])


class ASGD(Optimizer):
    """Averaged SGD (Polyak & Juditsky 1992), as PyTorch's: ``p = (1 - lambd*eta)*p - eta*g``.

    ``eta = lr/(1 + lambd*lr*(t-1))**alpha``, with the lr of this step. (PyTorch computes eta at the end of
    a step for the next one, so that in PyTorch a change of lr comes into force one step later.) The state
    ``ax`` is the latest point until step t0, and the mean of all points after it: `averages` copies it.

    Parameters
    ----------
    params, weight_decay, decoupled_weight_decay, maximize
        See `Optimizer`.
    lr : float or callable, default 1e-2
    lambd : float, default 1e-4
        Below 0 it lets p grow, until ``1 + lambd*lr*(t-1)`` is no longer above 0: a ValueError.
    alpha : float, default 0.75
        Of either sign.
    t0 : float >= 0, default 1e6
    """

    _rule_name = "asgd"
    defaults: ClassVar = {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6}

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        lambd, alpha = group["lambd"], group["alpha"]
        base = 1 + lambd * lr * (t - 1)
        if not base > 0:
            raise ValueError(f"1 + lambd*lr*(t-1) is {base!r} at step {t}, expected > 0: lambd is {lambd!r}")
        eta = lr / base**alpha
        # PyTorch's mu is computed at the end of a step, for the next one.
        mu = 1 / max(1, t - 1 - group["t0"])
        return (1 - lambd * eta, eta, 1 - mu, mu)

    def averages(self) -> list[Array]:
        """Copies of the averaged parameters, in the order of the parameters."""
        return [np.array(storage.read_state("ax", state)) for group in self._states for state in group]
