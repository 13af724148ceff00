"""L-BFGS by SciPy, on the value and gradient of all examples."""

from __future__ import annotations

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


def minimize(
    model: nn.Sequential, objective: Objective, alpha: float, data: Data, options: dict[str, Any]
) -> Minimized:
    """Minimize the loss of all examples; the model gets the parameters that were found.

    SciPy works in float64, whatever the model's dtype. With several outputs the minimized squared error is
    their sum, of which the gradient is; the reported one is their mean.
    """
    from scipy import optimize

    count, dtype = len(data.x), model.dtype
    total = float(count) if data.weight is None else float(data.weight.sum(dtype=np.float64))
    weight: Array | None = None if data.weight is None else (data.weight * objective.factor).astype(dtype)
    if weight is None and objective.factor != 1:
        weight = np.full(count, objective.factor, dtype)
    penalty = WeightPenalty(l2=alpha / total) if alpha and total else None
    function = Function._of_data(model, objective.loss, data._replace(weight=weight), penalty, total)
    first = function.parameters
    result = optimize.minimize(
        function.value_and_gradient, first, method="L-BFGS-B", jac=True, options=options
    )
    function.set_parameters(result.x)  # SciPy may have tried other points after the best one
    model.eval()
    value, added, _ = function._measured(result.x, False)
    return Minimized(value * objective.reported + added, result)
