"""L-BFGS by SciPy, on the compiled value and gradient of all examples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..runtime.dtypes import Array
from ..train.data import Data, SparseRows
from ._losses import Objective, WeightPenalty, add_gradient


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

    total = float(len(data.x)) if data.weight is None else float(data.weight.sum(dtype=np.float64))
    penalty = WeightPenalty(l2=alpha / total) if alpha and total else None
    parts = 0.0, 0.0

    def value_and_gradient(theta: Array) -> tuple[float, Array]:
        nonlocal parts
        model.flat_parameters[...] = theta
        value, gradient = _sum_of_blocks(model, objective, data, total)
        added = 0.0
        if penalty is not None:
            model.flat_gradients[...] = gradient
            added = penalty.add(model)
            gradient = model.flat_gradients
        parts = value, added
        return value + added, gradient.astype(np.float64)

    model.train()
    try:
        first = model.flat_parameters.astype(np.float64)
        result = optimize.minimize(value_and_gradient, first, method="L-BFGS-B", jac=True, options=options)
        value_and_gradient(result.x)  # SciPy may have tried other points after the best one
    finally:
        model.eval()
    value, added = parts
    return Minimized(value * objective.reported + added, result)


def _sum_of_blocks(
    model: nn.Sequential, objective: Objective, data: Data, total: float
) -> tuple[float, Array]:
    """Return the loss and its gradient: of dense examples at once, of sparse ones block by block."""
    blocks = list(data.x.blocks()) if isinstance(data.x, SparseRows) else [slice(0, len(data.x))]
    value, gradient = 0.0, model.flat_gradients
    for rows in blocks:
        weight = None if data.weight is None else data.weight[rows]
        value += add_gradient(model, objective, data.x[rows], data.y[rows], weight, total)
        if len(blocks) > 1:
            gradient = model.flat_gradients.copy() if rows.start == 0 else gradient + model.flat_gradients
    return value, gradient
