"""The optimizer of an estimator, and scikit-learn's rules for its learning rate."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pyoptim

from .. import nn

_ASKED = (
    "solver", "learning_rate", "learning_rate_init", "power_t", "momentum", "nesterovs_momentum", "beta_1",
    "beta_2", "epsilon", "optimizer", "schedule",
)  # fmt: skip


class Solver:
    """An optimizer on the parameters of a model.

    Parameters
    ----------
    estimator : estimator
        Whose parameters say which optimizer it is.
    model : nn.Sequential

    Attributes
    ----------
    optimizer : Optimizer
    learning_rate : float
        What steps take, where neither ``schedule`` nor ``optimizer`` says otherwise.
    """

    def __init__(self, estimator: Any, model: nn.Sequential) -> None:
        self.learning_rate = float(estimator.learning_rate_init)
        self._initial, self._power = self.learning_rate, estimator.power_t
        self._rule = "constant"
        if estimator.solver == "sgd" and estimator.optimizer is None and estimator.schedule is None:
            self._rule = estimator.learning_rate
        self._asked = [getattr(estimator, name) for name in _ASKED]
        self.optimizer = _optimizer(estimator, model.parameters())
        self._most_norm: float | None = None
        self._clip(estimator.max_grad_norm)

    def _clip(self, most: float | None) -> None:
        if most != self._most_norm:  # else the optimizer keeps a bound of its own
            self.optimizer.max_grad_norm = self._most_norm = most

    def followed(self, estimator: Any, model: nn.Sequential) -> Solver:
        """This solver if the estimator asks for what it asked then, else one that goes on from this one."""
        asked = [getattr(estimator, name) for name in _ASKED]
        if _same(asked, self._asked):
            self._clip(estimator.max_grad_norm)
            return self
        made = Solver(estimator, model)
        made.load(self.state())
        return made

    def end_epoch(self, seen: int) -> None:
        """Take note that ``seen`` examples have been trained on so far."""
        if self._rule == "invscaling":
            self._set(self._initial / (seen + 1) ** self._power)

    def stops(self, message: str, verbose: bool) -> bool:
        """Whether training ends where it improves no more; else the learning rate is made smaller."""
        stops = True
        if self._rule != "adaptive":
            message += " Stopping."
        elif self.learning_rate <= 1e-6:
            message += " Learning rate too small. Stopping."
        else:
            self._set(self.learning_rate / 5.0)
            message += f" Setting learning rate to {self.learning_rate:f}"
            stops = False
        if verbose:
            print(message)
        return stops

    def _set(self, rate: float) -> None:
        self.learning_rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state(self) -> dict[str, Any]:
        """What `load` takes over."""
        state = self.optimizer.state_dict()
        for group in state["param_groups"]:  # names of layers, which other activations or dropout change
            group.pop("param_names", None)
        return {"learning_rate": self.learning_rate, "optimizer": state, "asked": self._asked}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` of a solver of the same model returned.

        Where other options were asked for there, the optimizer's states are taken over without them; where
        another optimizer was, nothing is.
        """
        asked = state.get("asked", self._asked)  # version 0.1 kept none
        then, now = (dict(zip(_ASKED, values, strict=True)) for values in (asked, self._asked))
        if not _same([then["optimizer"], then["solver"]], [now["optimizer"], now["solver"]]):
            return
        groups = self.optimizer.param_groups
        options = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        self.optimizer.load_state_dict(state["optimizer"])
        if _same(asked, self._asked):
            self.learning_rate = state["learning_rate"]
            return
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
        if then["learning_rate_init"] == now["learning_rate_init"] and self._rule != "constant":
            self._set(state["learning_rate"])  # which "adaptive" and "invscaling" have made smaller


def _same(these: list[Any], those: list[Any]) -> bool:
    return all(this is that or bool(this == that) for this, that in zip(these, those, strict=True))


def _optimizer(estimator: Any, parameters: Any) -> pyoptim.Optimizer:
    lr = float(estimator.learning_rate_init) if estimator.schedule is None else estimator.schedule
    if estimator.optimizer is not None:
        return _given(estimator.optimizer, parameters, lr)
    if estimator.solver == "sgd":
        momentum = float(estimator.momentum)
        nesterov = bool(estimator.nesterovs_momentum) and momentum > 0
        return pyoptim.SGD(parameters, lr, momentum=momentum, nesterov=nesterov, velocity="classical")
    betas = (estimator.beta_1, estimator.beta_2)
    return pyoptim.Adam(parameters, lr, betas=betas, eps=float(estimator.epsilon), eps_hat=True)


def _given(wanted: Any, parameters: Any, lr: Any) -> pyoptim.Optimizer:
    """Make the optimizer that a class, a `functools.partial` of one, or a function makes."""
    kind = wanted.func if isinstance(wanted, functools.partial) else wanted
    if isinstance(kind, type):
        if not issubclass(kind, pyoptim.Optimizer):
            raise TypeError(
                f"optimizer is the class {kind.__name__}, expected one of pyoptim's optimizers, such as "
                "AdamW, or a function of the parameters that makes one"
            )
        if issubclass(kind, pyoptim.Muon):
            raise ValueError(
                "optimizer is Muon, which updates matrices alone, but a perceptron has biases too: expected "
                "one for arrays of any shape, such as AdamW. To train weights by Muon and biases by AdamW, "
                "step both in a loop of your own around a pyoptim.nn.Sequential"
            )
    if _takes_lr(wanted):
        made = wanted(parameters, lr=lr)
    elif callable(lr):
        raise ValueError(
            f"schedule is {lr!r}, but optimizer sets a learning rate of its own: expected an optimizer that "
            "takes lr, or schedule=None"
        )
    else:
        made = wanted(parameters)
    if not isinstance(made, pyoptim.Optimizer):
        raise TypeError(f"optimizer made a {type(made).__name__}, expected an Optimizer of pyoptim")
    return made


def _takes_lr(wanted: Any) -> bool:
    """Whether the learning rate is asked for: by a class, or an argument ``lr`` that nobody has given."""
    if isinstance(wanted, functools.partial) and "lr" in wanted.keywords:
        return False
    try:
        return "lr" in inspect.signature(wanted).parameters
    except (TypeError, ValueError):  # of some callables that are not written in Python
        return False
