"""Training with SciPy's minimisers, on the loss of all examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import nn
from ..nn.layers import walk
from ..runtime.dtypes import Array
from ..runtime.extras import needed
from ..runtime.numbers import POSITIVE, check_callable, check_count, check_name, check_type, shown
from . import evaluation
from .curves import describe
from .data import checked
from .history import History
from .objective import RANDOM, Objective
from .progress import Progress, check_verbose

# The methods, and whether SciPy asks for products with the Hessian.
METHODS = {
    "L-BFGS-B": False, "BFGS": False, "CG": False, "Newton-CG": True, "trust-ncg": True, "trust-krylov": True,
    "damped-newton": False,
}  # fmt: skip
_MOST_FOR_HESSIAN = 10_000  # parameters


def minimize(
    model: nn.Sequential,
    loss: nn.Loss,
    X: Any,
    y: Any,
    method: str = "L-BFGS-B",
    *,
    penalty: nn.Penalty | None = None,
    sample_weight: Any = None,
    validation_data: tuple[Any, Any] | None = None,
    max_iter: int = 200,
    tol: float | None = None,
    options: Mapping[str, Any] | None = None,
    callback: Callable[[Any], Any] | None = None,
    verbose: bool | int = True,
) -> History:
    """Train a model by a second-order method, or one with a line search, on the loss of all examples.

    Parameters
    ----------
    model, loss, X, y, penalty, sample_weight
        See `Objective`, which is what is minimised.
    method : str
        Of `scipy.optimize.minimize`: "L-BFGS-B" (limited memory, the usual choice), "BFGS" (keeps a matrix of
        the parameters' number squared), "CG" (nonlinear conjugate gradients), or with products of the Hessian
        and a vector "Newton-CG", "trust-ncg", "trust-krylov". Or "damped-newton", for at most 10,000
        parameters: it solves ``(H + alpha I) d = -g`` with the whole Hessian; alpha is raised until the step
        descends, and lowered after each that does.
    validation_data : (x, y), optional
        Evaluated after each iteration.
    max_iter : int, default 200
    tol : float, optional
        When to end: SciPy's ``tol``, of which each method has its own default. Of "damped-newton", the
        gradient's largest element at the end, by default 1e-5.
    options : mapping, optional
        Further options of SciPy's method; "damped-newton" has none.
    callback : callable, optional
        Called after each iteration with an object that has ``x``, the vector, and ``fun``, the objective. The
        model stands at that vector, and may be evaluated or saved. ``StopIteration`` ends the training.
    verbose : bool or {0, 1, 2}, default True
        A progress bar, nothing, or with 2 a line in the log for each iteration: see `Trainer.fit`.

    Returns
    -------
    History
        ``loss``, with the penalty, after each iteration; ``val_loss`` and so on; ``seconds``. It is empty if
        the model stands at a minimum. ``result`` is SciPy's: ``fun``, the objective at the end, whether it
        converged, and why it ended.

    Raises
    ------
    TypeError, ValueError
        The data do not suit the model or the loss; a layer is `Dropout` or `GaussianNoise`, since a line
        search needs a function; the model is too large for "damped-newton"; the objective is not finite
        where the model stands.
    ImportError
        SciPy lacks: it is the extra ``scipy``.

    Notes
    -----
    The running statistics of each `BatchNorm` are those of all examples at the parameters of the last
    iteration; points that a line search tries leave no trace. So does Ctrl-C.

    A float64 model can be minimised until its gradient is some 1e-8 of what it was. In float32 the
    objective is right to 1e-7 of its value, below which no line search sees an improvement: the gradient ends
    at some 1e-3 to 1e-4 of what it was, which is mostly enough to train.

    Examples
    --------
    >>> history = po.minimize(model, nn.CrossEntropy(), x, y, max_iter=100)
    >>> history.result.fun, history.result.message
    """
    check_name("method", method, METHODS)
    max_iter = check_count("max_iter", max_iter)
    if tol is not None:
        POSITIVE.check("tol", tol)
    if options is not None:
        check_type("options", options, Mapping, "a mapping of options of SciPy's method, or None")
    if callback is not None:
        check_callable("callback", callback, "a function of an iteration's result")
    if options and method == "damped-newton":
        raise ValueError(f"options is {shown(options)}, but 'damped-newton' has none: expected None")
    verbose = check_verbose(verbose)
    optimize = needed("scipy.optimize", "po.minimize needs SciPy", "pyoptim[scipy]")
    objective = Objective(model, loss, X, y, penalty, sample_weight=sample_weight)
    for label, layer in walk("layers", model.layers):
        if isinstance(layer, RANDOM):
            raise ValueError(
                f"{label} is a {type(layer).__name__}, which is random in training: {method} needs a "
                "function of the parameters, expected a model without it"
            )
    if method == "damped-newton" and objective.size > _MOST_FOR_HESSIAN:
        raise ValueError(
            f"method is 'damped-newton', which takes at most {_MOST_FOR_HESSIAN:,} parameters, and the model "
            f"has {objective.size:,}: expected 'trust-krylov' or 'L-BFGS-B'"
        )
    held_back = _validation(model, loss, validation_data)
    iterations = _Iterations(objective, loss, held_back, callback, max_iter, verbose)
    iterations.history.about = describe(model, method)
    first = objective.parameters
    if not math.isfinite(value := objective.value(first)):
        raise ValueError(f"the objective is {value} where the model stands, expected a finite number")
    try:
        if method == "damped-newton":
            result = _damped_newton(objective, first, tol or 1e-5, max_iter, iterations.end_one)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # points far away are rejected
                result = optimize.minimize(
                    objective.value_and_gradient, first, jac=True, method=method, tol=tol,
                    hessp=objective.hessian_vector if METHODS[method] else None,
                    options={"maxiter": max_iter, **(options or {})}, callback=iterations.end_one,
                )  # fmt: skip
        objective.set_parameters(result.x)
    finally:
        iterations.close()
        model.eval()
    iterations.history.result = result
    return iterations.history


def _validation(model: nn.Sequential, loss: nn.Loss, given: Any) -> Any:
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"validation_data is {shown(given)}, expected (x, y)")
    x, y = given
    return checked(model, loss, x, y, names=("validation_data[0]", "validation_data[1]"))


class _Iterations:
    """Takes note of each iteration: in the model, the history and the progress bar."""

    def __init__(
        self, objective: Objective, loss: nn.Loss, held_back: Any, callback: Any, most: int, verbose: int
    ) -> None:
        self._objective, self._loss, self._held_back, self._callback = objective, loss, held_back, callback
        self.history = History()
        self.history.path, self.history.reason = objective.path, objective.reason
        self._progress = Progress(verbose, "iteration", most, "iterations")
        self._since = time.perf_counter()

    def end_one(self, intermediate_result: Any) -> None:
        """Note an iteration; SciPy passes an object with x and fun to an argument of this name."""
        self._objective.set_parameters(intermediate_result.x)
        measured = {"loss": float(intermediate_result.fun)}
        measured["seconds"] = time.perf_counter() - self._since
        if self._held_back is not None:
            results = evaluation.evaluate(self._objective._model, self._loss, (), self._held_back)
            measured |= {f"val_{name}": value for name, value in results.items()}
        for name, value in measured.items():
            self.history.setdefault(name, []).append(value)
        self._progress.end(len(self.history["loss"]), measured)
        self._progress.advance(1)
        if self._callback is not None:
            self._callback(intermediate_result)
        self._since = time.perf_counter()

    def close(self) -> None:
        self._progress.close()


def _damped_newton(
    objective: Objective, w: Array, tol: float, most: int, end_one: Callable[[Any], None]
) -> Any:
    """Minimise by steps d of ``(H + alpha I) d = -g``; alpha is 0 as long as these descend."""
    from scipy.optimize import OptimizeResult

    value, gradient = objective.value_and_gradient(w)
    alpha, done, message, success = 0.0, 0, "the gradient is within tol", True
    while float(np.abs(gradient).max()) > tol:
        found = None
        if done < most:
            found = _descent(objective, w, value, gradient, alpha)
        if found is None:
            message = "max_iter is reached" if done == most else "no damped step descends any more"
            success = False
            break
        w, alpha = found
        value, gradient = objective.value_and_gradient(w)
        done += 1
        try:
            end_one(OptimizeResult(x=w, fun=value))
        except StopIteration:
            message, success = "the callback ended it", False
            break
    return OptimizeResult(x=w, fun=value, jac=gradient, nit=done, success=success, message=message)


def _descent(
    objective: Objective, w: Array, value: float, gradient: Array, alpha: float
) -> tuple[Array, float] | None:
    """Return the next point, and the damping to begin the next step with; None if no step descends."""
    from scipy import linalg

    hessian = objective.hessian(w)
    scale = float(np.abs(np.diagonal(hessian)).max()) or 1.0
    rounding = 8 * float(np.finfo(objective._model.dtype).eps) * abs(value)
    while alpha <= 1e8 * scale:
        try:
            factor = linalg.cho_factor(hessian + alpha * np.eye(len(w)))
        except (linalg.LinAlgError, ValueError):  # not positive definite; not finite
            pass
        else:
            step = -linalg.cho_solve(factor, gradient)
            if objective.value(w + step) <= value + 1e-4 * float(gradient @ step) + rounding:
                return w + step, alpha / 10 if alpha > 1e-6 * scale else 0.0
        alpha = max(10 * alpha, 1e-4 * scale)
    return None
