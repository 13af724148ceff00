"""L-BFGS by SciPy, on the value and gradient of all examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..runtime.dtypes import Array
from ..train.data import Data
from ..train.objective import Objective as Function
from ._losses import Objective, WeightPenalty


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

    count, dtype = len(data.x), model.dtype
    total = float(count) if data.weight is None else float(data.weight.sum(dtype=np.float64))
    weight: Array | None = None if data.weight is None else (data.weight * objective.factor).astype(dtype)
    if weight is None and objective.factor != 1:
        weight = np.full(count, objective.factor, dtype)
    penalty = WeightPenalty.of_mean(alpha, total)
    function = Function._of_data(model, objective.loss, data._replace(weight=weight), penalty, total)
    begun = False

    def value_and_gradient(theta: Array) -> tuple[float, Array]:
        nonlocal begun
        if hooks is not None and not begun:
            begun = True
            hooks.before()
        return function.value_and_gradient(theta)

    def accept(theta: Array) -> float:
        """Leave the model with these parameters, and return the loss as scikit-learn reports it."""
        function.set_parameters(theta)
        model.eval()
        value, added, _ = function._measured(theta, False)
        return value * objective.reported + added

    def accepted(theta: Array) -> None:
        nonlocal begun
        if hooks is not None and begun:
            begun = False
            if hooks.after(accept(theta)):
                raise StopIteration

    result = optimize.minimize(
        value_and_gradient,
        function.parameters,
        method="L-BFGS-B",
        jac=True,
        options=options,
        callback=None if hooks is None else accepted,
    )
    return Minimized(accept(result.x), result)  # SciPy may have tried other points after the best one
