"""How good predictions are. scikit-learn's functions where it has them: they need the extra ``sklearn``.

All take the targets first: class indices of shape (examples,), then a model's outputs of shape
(examples, classes), be they logits or probabilities, or predicted class indices of shape (examples,).
Any function ``(targets, outputs) -> number`` can be one of the ``metrics`` of a `Trainer`. Its attribute
``greater_is_better``, True or False, tells callbacks in mode "auto" which way is better. For those here that
is True.

An example whose largest output is NaN or infinite has no softmax, so no class is predicted for it: it is
never right, and stands in no column of a confusion matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .arrays.checks import as_numpy
from .runtime.dtypes import Array
from .runtime.extras import needed
from .runtime.numbers import AT_LEAST_ZERO, SHARE, check_count, one_of

__all__ = [
    "TopK",
    "accuracy",
    "confusion_matrix",
    "coverage",
    "f_score",
    "precision",
    "precision_recall_curve",
    "recall",
]


def __dir__() -> list[str]:
    return __all__


Metric = TypeVar("Metric", bound=Callable[..., float])


def _greater_is_better(metric: Metric) -> Metric:
    metric.greater_is_better = True  # type: ignore[attr-defined]
    return metric


@_greater_is_better
def accuracy(targets: Any, outputs: Any) -> float:
    """The share of examples whose class was predicted."""
    targets, classes, known = _classes(targets, outputs)
    return float(np.mean((targets == classes) & known))


class TopK:
    """The share of examples whose class is among the k with the largest outputs."""

    greater_is_better = True

    def __init__(self, k: int) -> None:
        self.k, self.__name__ = check_count("k", k), f"top_{k}"

    def __call__(self, targets: Any, outputs: Any) -> float:
        targets, outputs = _scores(targets, outputs)
        own = np.take_along_axis(outputs, targets[:, None], axis=1)
        earlier = np.arange(outputs.shape[1]) < targets[:, None]  # argmax takes the first of equals
        ahead = (outputs > own) | (outputs == own) & earlier
        return float(np.mean((ahead.sum(axis=1) < self.k) & _finite(outputs)))


def coverage(targets: Any, outputs: Any, threshold: float) -> tuple[float, float]:
    """What is left when predictions of less confidence are refused.

    Parameters
    ----------
    targets : integer array (examples,)
    outputs : array (examples, classes)
        Logits; the confidence is the largest softmax.
    threshold : float in [0, 1]

    Returns
    -------
    coverage : float
        The share of examples that are answered.
    accuracy : float
        The accuracy on those examples; NaN if there are none.
    """
    threshold = SHARE.number("threshold", threshold)
    targets, outputs = _scores(targets, outputs)
    with np.errstate(invalid="ignore"):
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    answered = 1 / powers.sum(axis=1) >= threshold
    right = outputs.argmax(axis=1)[answered] == targets[answered]
    return float(np.mean(answered)), float(np.mean(right)) if answered.any() else float("nan")


@_greater_is_better
def precision(targets: Any, outputs: Any, average: str = "macro") -> float:
    """scikit-learn's ``precision_score``; 0 for a class that was never predicted."""
    return _score("precision_score", targets, outputs, average)


@_greater_is_better
def recall(targets: Any, outputs: Any, average: str = "macro") -> float:
    """scikit-learn's ``recall_score``; 0 for a class that does not occur."""
    return _score("recall_score", targets, outputs, average)


@_greater_is_better
def f_score(targets: Any, outputs: Any, beta: float = 1.0, average: str = "macro") -> float:
    """scikit-learn's ``fbeta_score``."""
    AT_LEAST_ZERO.check("beta", beta)
    return _score("fbeta_score", targets, outputs, average, beta=beta)


def confusion_matrix(targets: Any, outputs: Any) -> Array:
    """scikit-learn's ``confusion_matrix``: how many of each class (row) were predicted as each (column)."""
    targets, classes, labels = _with_labels(targets, outputs)
    return np.asarray(_sklearn().confusion_matrix(targets, classes, labels=labels))


def precision_recall_curve(targets: Any, scores: Any) -> tuple[Array, Array, Array]:
    """scikit-learn's ``precision_recall_curve`` of binary targets and the scores of the positive class.

    Returns
    -------
    precision, recall, thresholds : array
    """
    scores = as_numpy("scores", scores)
    if (
        scores.dtype.kind not in "fiub"
        or scores.ndim != 1
        or scores.size == 0
        or not np.isfinite(scores).all()
    ):
        raise ValueError(
            f"scores are {scores.dtype} of shape {scores.shape}, expected finite numbers (examples,)"
        )
    targets = as_numpy("targets", targets)
    if targets.dtype.kind not in "fiub" or targets.shape != scores.shape:
        raise ValueError(
            f"targets are {targets.dtype} of shape {targets.shape}, expected one for each of the scores"
        )
    if not any(np.isin(targets, pair).all() for pair in ((0, 1), (-1, 1))):
        raise ValueError("targets hold other numbers than 0 and 1, or -1 and 1")
    p, r, thresholds = _sklearn().precision_recall_curve(targets, scores)
    return p, r, thresholds


def _sklearn() -> Any:
    return needed("sklearn.metrics", "this metric needs scikit-learn", "pyoptim[sklearn]")


_AVERAGE = one_of("macro", "micro", "weighted", "binary")


def _score(name: str, targets: Any, outputs: Any, average: str, **options: float) -> float:
    _AVERAGE.check("average", average)
    targets, classes, labels = _with_labels(targets, outputs)
    if labels is not None and average == "binary":
        labels, average = np.array([1]), "macro"
    score = getattr(_sklearn(), name)
    return float(score(targets, classes, labels=labels, average=average, zero_division=0, **options))


def _with_labels(targets: Any, outputs: Any) -> tuple[Array, Array, Array | None]:
    """Return targets, classes, and scikit-learn's ``labels``: those to look at, None for all that occur.

    Where no class is predicted, the one returned is a number that is none of them.
    """
    targets, classes, known = _classes(targets, outputs)
    if known.all():
        return targets, classes, None
    none = min(int(targets.min()), 0) - 1
    return targets, np.where(known, classes, none), np.union1d(targets, classes[known])


def _finite(outputs: Array) -> Array:
    """Return whether the largest output of each example is finite."""
    finite: Array = np.isfinite(outputs.max(axis=1))
    return finite


def _targets(given: Any, outputs: Array) -> Array:
    targets = as_numpy("targets", given)
    if targets.dtype == np.bool_:
        targets = targets.astype(np.int64)
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        raise TypeError(f"targets are {targets.dtype} of shape {targets.shape}, expected class indices")
    if len(targets) != len(outputs) or len(targets) == 0:
        raise ValueError(
            f"targets are {len(targets)}, expected one per output ({len(outputs)} outputs), at least one"
        )
    return targets


def _classes(targets: Any, outputs: Any) -> tuple[Array, Array, Array]:
    """Return targets, predicted classes, and for which examples there is one."""
    outputs = as_numpy("outputs", outputs)
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs have shape {outputs.shape}, expected (examples, classes) or (examples,)")
    targets = _targets(targets, outputs)
    if outputs.ndim == 1:
        return targets, outputs, np.ones(len(outputs), np.bool_)
    return targets, outputs.argmax(axis=1), _finite(outputs)


def _scores(targets: Any, outputs: Any) -> tuple[Array, Array]:
    outputs = as_numpy("outputs", outputs)
    if outputs.ndim != 2:
        raise ValueError(f"outputs have shape {outputs.shape}, expected (examples, classes)")
    targets = _targets(targets, outputs)
    if targets.min() < 0 or targets.max() >= outputs.shape[1]:
        raise ValueError(
            f"targets hold {targets.min()} to {targets.max()}, expected 0 to {outputs.shape[1] - 1}"
        )
    return targets, outputs
