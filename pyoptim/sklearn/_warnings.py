"""Warnings as scikit-learn's perceptrons give them."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

_MODULE = "sklearn.neural_network._multilayer_perceptron"
_SHOWN: dict[Any, Any] = {}  # what Python keeps of warnings that are shown once


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's, in the name of scikit-learn's module, by which users filter."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("pyoptim.", "sklearn.")):
        frame = frame.f_back
    place = frame.f_code.co_filename, frame.f_lineno
    warnings.warn_explicit(message, category, *place, _MODULE, _SHOWN)


def warn_of_lbfgs(result: Any, done: int, max_iter: int) -> None:
    more = f"\nIncrease the number of iterations to improve the convergence (max_iter={max_iter})."
    warn(
        f"lbfgs failed to converge after {done} iteration(s) (status={result.status}):\n{result.message}\n"
        f"{more if done == max_iter else ''}\n"
        "You might also want to scale the data as shown in:\n"
        "    https://scikit-learn.org/stable/modules/preprocessing.html",
        ConvergenceWarning,
    )
