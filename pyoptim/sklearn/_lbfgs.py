"""L-BFGS by SciPy, on the compiled value and gradient of all examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..averages import take_statistics
from ..runtime.dtypes import Array
from ..train.data import Data, SparseRows
from ._losses import Objective, WeightPenalty, add_gradient


class Minimized(NamedTuple):
    """What `minimize` found: the loss as scikit-learn reports it, and SciPy's result."""

    loss: float
    result: Any


class Hooks(NamedTuple):
    """What is called around each iteration; ``after`` gets the loss, and returns whether to stop."""

    before: Callable[[], None]
    after: Callable[[float], bool]


def minimize(
    model: nn.Sequential,
    objective: Objective,
    alpha: float,
    data: Data,
    options: dict[str, Any],
    hooks: Hooks | None = None,
) -> Minimized:
    """Minimize the loss of all examples; the model gets the parameters that were found.

    SciPy works in float64, whatever the model's dtype. With several outputs the minimized squared error is
    their sum, of which the gradient is; the reported one is their mean. Statistics of the model are those at
    the parameters that an iteration accepted, not at the points that a line search tries.
    """
    from scipy import optimize

    function = _Function(model, objective, alpha, data)
    begun = False

    def value_and_gradient(theta: Array) -> tuple[float, Array]:
        nonlocal begun
        if hooks is not None and not begun:
            begun = True
            hooks.before()
        return function(theta)

    def accepted(theta: Array) -> None:
        nonlocal begun
        if hooks is not None and begun:
            begun = False
            if hooks.after(function.accept(theta)):
                raise StopIteration

    try:
        first = model.flat_parameters.astype(np.float64)
        result = optimize.minimize(
            value_and_gradient,
            first,
            method="L-BFGS-B",
            jac=True,
            options=options,
            callback=None if hooks is None else accepted,
        )
        loss = function.accept(result.x)  # SciPy may have tried other points after the best one
    finally:
        model.eval()
    return Minimized(loss, result)


class _Function:
    """The loss and its gradient as a function of all parameters."""

    def __init__(self, model: nn.Sequential, objective: Objective, alpha: float, data: Data) -> None:
        self._model, self._objective, self._data = model, objective, data
        self._total = float(len(data.x)) if data.weight is None else float(data.weight.sum(dtype=np.float64))
        self._penalty = WeightPenalty(l2=alpha / self._total) if alpha and self._total else None
        self._at: Array | None = None  # where it was computed last
        self._parts = 0.0, 0.0

    def __call__(self, theta: Array) -> tuple[float, Array]:
        model, added = self._model, 0.0
        model.train()
        self._at = theta.copy()
        model.flat_parameters[...] = theta
        value, gradient = self._sum_of_blocks()
        if self._penalty is not None:
            model.flat_gradients[...] = gradient
            added = self._penalty.add(model)
            gradient = model.flat_gradients
        self._parts = value, added
        return value + added, gradient.astype(np.float64)

    def accept(self, theta: Array) -> float:
        """Leave the model with these parameters, and return the loss as scikit-learn reports it."""
        if self._at is None or not np.array_equal(theta, self._at):
            self(theta)
        take_statistics(self._model, (self._data.x[rows] for rows in self._blocks()))
        value, added = self._parts
        return value * self._objective.reported + added

    def _blocks(self) -> list[slice]:
        """The rows that are computed at once: all dense ones, or ranges of sparse ones."""
        x = self._data.x
        return list(x.blocks()) if isinstance(x, SparseRows) else [slice(0, len(x))]

    def _sum_of_blocks(self) -> tuple[float, Array]:
        model, data, blocks = self._model, self._data, self._blocks()
        value, gradient = 0.0, model.flat_gradients
        for rows in blocks:
            weight = None if data.weight is None else data.weight[rows]
            value += add_gradient(model, self._objective, data.x[rows], data.y[rows], weight, self._total)
            if len(blocks) > 1:
                gradient = model.flat_gradients.copy() if rows.start == 0 else gradient + model.flat_gradients
        return value, gradient
