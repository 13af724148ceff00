"""The optimizer of an estimator, and scikit-learn's rules for its learning rate."""

from __future__ import annotations

from typing import Any

import pyoptim

from .. import nn


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
        self.optimizer = _optimizer(estimator, model.parameters())
        if estimator.max_grad_norm is not None:
            self.optimizer.max_grad_norm = estimator.max_grad_norm

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
        return {"learning_rate": self.learning_rate, "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` of a solver of the same parameters returned."""
        self.learning_rate = state["learning_rate"]
        self.optimizer.load_state_dict(state["optimizer"])


def _optimizer(estimator: Any, parameters: Any) -> pyoptim.Optimizer:
    lr = estimator.learning_rate_init if estimator.schedule is None else estimator.schedule
    wanted = estimator.optimizer
    if wanted is not None:
        is_class = isinstance(wanted, type) and issubclass(wanted, pyoptim.Optimizer)
        made = wanted(parameters, lr=lr) if is_class else wanted(parameters)
        if not isinstance(made, pyoptim.Optimizer):
            raise TypeError(f"optimizer made a {type(made).__name__}, expected an Optimizer of pyoptim")
        return made
    if estimator.solver == "sgd":
        momentum = float(estimator.momentum)
        nesterov = bool(estimator.nesterovs_momentum) and momentum > 0
        return pyoptim.SGD(parameters, lr, momentum=momentum, nesterov=nesterov, velocity="classical")
    betas = (estimator.beta_1, estimator.beta_2)
    return pyoptim.Adam(parameters, lr, betas=betas, eps=estimator.epsilon, eps_hat=True)
