"""Fitted perceptrons of scikit-learn as pyoptim's."""

from __future__ import annotations

from typing import Any

import sklearn.neural_network as theirs

from ._classifier import MLPClassifier
from ._copied import copied
from ._regressor import MLPRegressor

_KINDS = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}


def from_estimator(estimator: Any) -> Any:
    """Return scikit-learn's `MLPClassifier` or `MLPRegressor` as pyoptim's, fitted if it is.

    Predictions are equal up to rounding. `partial_fit` goes on from the weights, with a new optimizer.

    Raises
    ------
    TypeError
        The estimator is neither of the two.

    See Also
    --------
    MLPClassifier.to_estimator : The way back.
    """
    for name, kind in _KINDS.items():
        if isinstance(estimator, getattr(theirs, name)):
            return copied(estimator, kind)
    raise TypeError(
        f"estimator is a {type(estimator).__name__}, expected scikit-learn's {' or '.join(_KINDS)}"
    )
