"""How good predictions are. scikit-learn's functions where it has them: they need the extra ``sklearn``.

All take the targets first: class indices of shape (examples,), then a model's outputs of shape
(examples, classes), be they logits or probabilities, or predicted class indices of shape (examples,), which
are whole numbers. Outputs of shape (examples, 1) are logits of the positive class, as `nn.BinaryCrossEntropy`
and `nn.Hinge` take them: above 0 it is predicted, and targets above 0 are of it.

Outputs (examples, classes) are taken as probabilities where no number is below 0 and each row has the sum 1,
to 0.001; else they are logits, and their softmax is taken. Rows that are not finite do not count for this.
The probability of the positive class of outputs (examples, 1) is the sigmoid.

Any function ``(targets, outputs) -> number`` can be one of the ``metrics`` of a `Trainer`, and so can the
names in `NAMES`: "accuracy", "f1", "precision_micro", "top_5", .... Its attribute ``greater_is_better``, True
or False, tells callbacks in mode "auto" which way is better. For those here that is True. Where its attribute
``takes_sample_weight`` is True, as it is for those here, the trainer gives it the examples' weights as
``sample_weight``. Before a training with validation data the trainer checks that those here suit the targets
and the shape of the outputs; a function of your own is called after the first epoch.

Weights of examples are relative: means are divided by their sum, as scikit-learn's are. Each curve is a tuple
with a method ``plot``, which needs the extra ``plot``.

An example whose largest output is NaN or infinite has no probabilities, so no class is predicted for it:
it is never right, and stands in no column of a confusion matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .arrays.checks import as_numpy
from .ops.losses import check_weights
from .runtime.dtypes import Array
from .runtime.extras import needed
from .runtime.figures import drawn_on, legend_beside, saved
from .runtime.numbers import AT_LEAST_ZERO, SHARE, check_count, check_flag, check_text, nearest, one_of, shown

__all__ = [
    "NAMES",
    "CoverageCurve",
    "PrecisionRecall",
    "Roc",
    "TopK",
    "accuracy",
    "average_precision",
    "confusion_matrix",
    "coverage",
    "coverage_curve",
    "f_score",
    "named",
    "plot_confusion_matrix",
    "precision",
    "precision_recall_curve",
    "r2",
    "recall",
    "roc_auc",
    "roc_curve",
    "selective_accuracy",
]


def __dir__() -> list[str]:
    return __all__


Metric = TypeVar("Metric", bound=Callable[..., float])


def _greater_is_better(metric: Metric) -> Metric:
    metric.greater_is_better = True  # type: ignore[attr-defined]
    metric.takes_sample_weight = True  # type: ignore[attr-defined]
    return metric


@_greater_is_better
def accuracy(targets: Any, outputs: Any, sample_weight: Any = None) -> float:
    """The share of examples whose class was predicted, or the share of the weights that they have."""
    targets, classes, known = _classes(targets, outputs)
    return _mean((targets == classes) & known, _weights(sample_weight, targets))


class TopK:
    """The share of examples whose class is among the k with the largest outputs."""

    greater_is_better = takes_sample_weight = True

    def __init__(self, k: int) -> None:
        self.k, self.__name__ = check_count("k", k), f"top_{k}"

    def __call__(self, targets: Any, outputs: Any, sample_weight: Any = None) -> float:
        targets, outputs = _scores(targets, outputs)
        own = np.take_along_axis(outputs, targets[:, None], axis=1)
        earlier = np.arange(outputs.shape[1]) < targets[:, None]  # argmax takes the first of equals
        ahead = (outputs > own) | (outputs == own) & earlier
        return _mean((ahead.sum(axis=1) < self.k) & _finite(outputs), _weights(sample_weight, targets))


def coverage(targets: Any, outputs: Any, threshold: float, sample_weight: Any = None) -> tuple[float, float]:
    """What is left when predictions of less confidence are refused.

    Parameters
    ----------
    targets : integer array (examples,)
    outputs : array (examples, classes) or (examples, 1)
        Logits or probabilities; the confidence is the largest probability.
    threshold : float in [0, 1]
    sample_weight : array (examples,), optional

    Returns
    -------
    coverage : float
        The share of examples that are answered.
    accuracy : float
        The accuracy on those examples; NaN if there are none.
    """
    threshold = SHARE.number("threshold", threshold)
    right, confidence = _answers(targets, outputs)
    weight = _weights(sample_weight, right)
    answered = confidence >= threshold
    kept = None if weight is None else weight[answered]
    any_left = answered.any() and (kept is None or kept.any())
    return _mean(answered, weight), _mean(right[answered], kept) if any_left else float("nan")


class CoverageCurve(NamedTuple):
    """What `coverage_curve` returns: three arrays of one length, from few answers to all."""

    coverage: Array
    accuracy: Array
    thresholds: Array

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the accuracy against the coverage; returns the figure, which is also written to a file."""
        return _plot_curve((self.coverage, self.accuracy), ("coverage", "accuracy"), (path, axes, title))


def coverage_curve(targets: Any, outputs: Any, sample_weight: Any = None) -> CoverageCurve:
    """Coverage and accuracy at every threshold of the confidence that changes them.

    A curve that falls from left to right says that the confidence is worth something: where the model is
    sure it is right more often, so that the other examples may go on to a larger model, or to a person. One
    that is flat says that refusing gains nothing.

    Parameters
    ----------
    targets, outputs, sample_weight
        As `coverage` takes them.
    """
    right, confidence = _answers(targets, outputs)
    weight = _weights(sample_weight, right)
    weight = np.ones(len(right)) if weight is None else weight
    order = np.argsort(-confidence, kind="stable")
    answered, hits = np.cumsum(weight[order]), np.cumsum((weight * right)[order])
    sure = confidence[order]
    last = np.append(sure[:-1] != sure[1:], True) & (answered > 0)
    return CoverageCurve(answered[last] / answered[-1], hits[last] / answered[last], sure[last])


@_greater_is_better
def selective_accuracy(targets: Any, outputs: Any, coverage: float = 0.9, sample_weight: Any = None) -> float:
    """The accuracy where the least confident examples are refused, and at least this share is answered."""
    coverage = SHARE.number("coverage", coverage)
    curve = coverage_curve(targets, outputs, sample_weight)
    at = int(np.searchsorted(curve.coverage, coverage - 1e-12))
    return float(curve.accuracy[min(at, len(curve.accuracy) - 1)])


@_greater_is_better
def precision(targets: Any, outputs: Any, average: str = "macro", sample_weight: Any = None) -> float:
    """scikit-learn's ``precision_score``; 0 for a class that was never predicted."""
    return _score("precision_score", targets, outputs, average, sample_weight)


@_greater_is_better
def recall(targets: Any, outputs: Any, average: str = "macro", sample_weight: Any = None) -> float:
    """scikit-learn's ``recall_score``; 0 for a class that does not occur."""
    return _score("recall_score", targets, outputs, average, sample_weight)


@_greater_is_better
def f_score(
    targets: Any, outputs: Any, beta: float = 1.0, average: str = "macro", sample_weight: Any = None
) -> float:
    """scikit-learn's ``fbeta_score``."""
    AT_LEAST_ZERO.check("beta", beta)
    return _score("fbeta_score", targets, outputs, average, sample_weight, beta=beta)


def confusion_matrix(targets: Any, outputs: Any, sample_weight: Any = None) -> Array:
    """scikit-learn's ``confusion_matrix``: how many of each class (row) were predicted as each (column)."""
    targets, classes, labels = _with_labels(targets, outputs)
    weight = _weights(sample_weight, targets)
    return np.asarray(_sklearn().confusion_matrix(targets, classes, labels=labels, sample_weight=weight))


def plot_confusion_matrix(
    targets: Any,
    outputs: Any,
    path: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    normalize: bool = True,
    axes: Any = None,
    title: str = "",
) -> Any:
    """Draw the confusion matrix; returns the figure, which is also written to a file. Needs ``plot``.

    Dark cells off the diagonal are the pairs of classes that the model mixes up: the row is what an example
    is, the column what the model said.

    Parameters
    ----------
    targets, outputs
        As `confusion_matrix` takes them.
    path : str or Path, optional
    names : sequence of str, optional
        Of the classes that occur, in their order; without, their numbers.
    normalize : bool, default True
        Show shares of each row instead of counts.
    axes : matplotlib axes, optional
        What to draw on, instead of a new figure.
    title : str
    """
    matrix = confusion_matrix(targets, outputs)
    given, classes, labels = _with_labels(targets, outputs)
    found = np.union1d(given, classes) if labels is None else labels
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise TypeError(f"names is {shown(names)}, expected a sequence of strings")
    if names is not None and len(names) != len(found):
        raise ValueError(f"names are {len(names)}, expected {len(found)}: one for each class that occurs")
    if check_flag("normalize", normalize):
        matrix = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.45 * len(found)
    figure, axes = drawn_on(axes, side + 0.8, side, path, title)
    image = axes.imshow(matrix, cmap="Blues", vmin=0)
    ticks = [str(name) for name in (found if names is None else names)]
    axes.set_xticks(range(len(found)), ticks, rotation=0 if max(map(len, ticks)) < 4 else 60)
    axes.set_yticks(range(len(found)), ticks)
    if len(found) <= 20:
        for (i, j), value in np.ndenumerate(matrix):
            text = f"{value:.2f}".lstrip("0") if normalize else f"{value:g}"
            shade = "white" if value > matrix.max() / 2 else "black"
            if value:
                axes.text(j, i, text, ha="center", va="center", color=shade, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title=title or "confusion matrix")
    what = "share of the true class" if normalize else "examples"
    axes.get_figure().colorbar(image, ax=axes, label=what, shrink=0.8)
    return saved(figure, path)


class PrecisionRecall(NamedTuple):
    """What `precision_recall_curve` returns: ``thresholds`` has one element less than the other two."""

    precision: Array
    recall: Array
    thresholds: Array

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw precision against recall; returns the figure, which is also written to a file."""
        return _plot_curve((self.recall, self.precision), ("recall", "precision"), (path, axes, title))


def precision_recall_curve(targets: Any, scores: Any, sample_weight: Any = None) -> PrecisionRecall:
    """scikit-learn's ``precision_recall_curve`` of binary targets and the scores of the positive class.

    For rare positives it says more than `roc_curve`: the precision that a threshold has is what a user of
    the predictions sees.

    Returns
    -------
    precision, recall, thresholds : array
    """
    targets, scores = _binary(targets, scores)
    weight = _weights(sample_weight, targets)
    return PrecisionRecall(*_sklearn().precision_recall_curve(targets, scores, sample_weight=weight))


class Roc(NamedTuple):
    """What `roc_curve` returns: three arrays of one length."""

    false_positives: Array
    true_positives: Array
    thresholds: Array

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the curve and that of chance; returns the figure, which is also written to a file."""
        labels = "share of false alarms", "share of positives found"
        return _plot_curve(self[:2], labels, (path, axes, title), chance=True)


def roc_curve(targets: Any, scores: Any, sample_weight: Any = None) -> Roc:
    """scikit-learn's ``roc_curve`` of binary targets and the scores of the positive class.

    Returns
    -------
    false_positives, true_positives : array
        The shares of negatives and of positives whose score reaches each threshold.
    thresholds : array
        Falling; the first is infinite.
    """
    targets, scores = _binary(targets, scores)
    weight = _weights(sample_weight, targets)
    if len(np.unique(_counting(targets, weight))) < 2:
        raise ValueError("targets are all of one class, expected some of both that have a weight")
    return Roc(*_sklearn().roc_curve(targets, scores, sample_weight=weight))


@_greater_is_better
def roc_auc(targets: Any, outputs: Any, average: str = "macro", sample_weight: Any = None) -> float:
    """The area under `roc_curve`: how often a positive example has a larger score than a negative one.

    Parameters
    ----------
    targets, outputs, average, sample_weight
        As `average_precision` takes them.
    """
    return _ranking("roc_auc_score", targets, outputs, average, sample_weight)


@_greater_is_better
def average_precision(targets: Any, outputs: Any, average: str = "macro", sample_weight: Any = None) -> float:
    """scikit-learn's ``average_precision_score``: the area under the precision-recall curve, in steps.

    Parameters
    ----------
    targets : array (examples,)
        0 and 1, or -1 and 1, beside scores of the positive class; else class indices.
    outputs : array (examples,), (examples, 1) or (examples, classes)
        Scores of the positive class; with a column for each class the probability is the score (of logits
        the softmax), and each class against the others is one problem.
    average : {"macro", "micro", "weighted"}
        Of the classes that occur: alike, all examples in one, or by their number.
    sample_weight : array (examples,), optional

    Notes
    -----
    NaN where a score is not finite; `roc_auc` also where a class has no example, or no other.
    """
    return _ranking("average_precision_score", targets, outputs, average, sample_weight)


@_greater_is_better
def r2(targets: Any, outputs: Any, sample_weight: Any = None) -> float:
    """scikit-learn's ``r2_score``: the share of the variance that is explained, the mean over the outputs.

    1 is perfect, 0 as good as the mean of the targets; a negative one is worse than that. NaN with fewer than
    two examples, or where an output is not finite.

    Parameters
    ----------
    targets, outputs : array (examples,) or (examples, outputs)
    sample_weight : array (examples,), optional
    """
    outputs, targets = as_numpy("outputs", outputs), as_numpy("targets", targets)
    for name, array in (("outputs", outputs), ("targets", targets)):
        if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(
                f"{name} are {array.dtype} of shape {array.shape}, expected numbers (examples, outputs)"
            )
    if outputs.ndim != targets.ndim and outputs.size == len(outputs) and targets.size == len(targets):
        outputs, targets = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    if outputs.shape != targets.shape:
        raise ValueError(f"targets have shape {targets.shape}, expected that of outputs, {outputs.shape}")
    if not np.isfinite(targets).all():
        raise ValueError("targets hold NaN or infinity, expected finite numbers")
    weight = _weights(sample_weight, targets)
    if len(targets) < 2 or not np.isfinite(outputs).all():
        return float("nan")
    wide = targets.astype(np.float64), outputs.astype(np.float64)
    return float(_sklearn().r2_score(*wide, sample_weight=weight))


class _Named:
    """A metric under a name of its own."""

    greater_is_better = takes_sample_weight = True

    def __init__(self, name: str, function: Callable[..., float], average: str) -> None:
        self.__name__, self._function, self._average = name, function, average

    def __call__(self, targets: Any, outputs: Any, sample_weight: Any = None) -> float:
        return self._function(targets, outputs, average=self._average, sample_weight=sample_weight)


_AVERAGED: dict[str, Callable[..., float]] = {
    "average_precision": average_precision, "f1": f_score, "precision": precision, "recall": recall,
    "roc_auc": roc_auc,
}  # fmt: skip
_BY_NAME: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    **{name: _Named(name, function, "macro") for name, function in _AVERAGED.items()},
    **{
        f"{name}_{average}": _Named(f"{name}_{average}", function, average)
        for name, function in _AVERAGED.items()
        for average in ("macro", "micro", "weighted")
    },
    "r2": r2,
    "selective_accuracy": selective_accuracy,
}

#: The names that `named` and a trainer's ``metrics`` take, beside "top_2", "top_3" and so on.
NAMES = tuple(_BY_NAME)


def named(name: str) -> Callable[..., float]:
    """The metric of a name: one of `NAMES`, or "top_5" and the like. ValueError for any other.

    A name that says no average, such as "f1", takes "macro": all classes count alike.
    """
    check_text("name", name, "the name of a metric")
    k = name.removeprefix("top_")
    if k != name and k.isascii() and k.isdecimal() and int(k) > 0:
        return TopK(int(k))
    if name not in _BY_NAME:
        raise ValueError(f"name is {name!r}, expected one of {', '.join(NAMES)}, top_5{nearest(name, NAMES)}")
    return _BY_NAME[name]


def _sklearn() -> Any:
    return needed("sklearn.metrics", "this metric needs scikit-learn", "pyoptim[sklearn]")


_AVERAGE = one_of("macro", "micro", "weighted", "binary")


def _score(
    name: str, targets: Any, outputs: Any, average: str, sample_weight: Any, **options: float
) -> float:
    _AVERAGE.check("average", average)
    targets, classes, labels = _with_labels(targets, outputs)
    if labels is not None and average == "binary":
        labels, average = np.array([1]), "macro"
    options |= {"sample_weight": _weights(sample_weight, targets), "zero_division": 0}  # type: ignore[dict-item]
    return float(getattr(_sklearn(), name)(targets, classes, labels=labels, average=average, **options))


def _ranking(name: str, targets: Any, outputs: Any, average: str, sample_weight: Any) -> float:
    """Return a score of how outputs order the examples, of the classes that occur."""
    one_of("macro", "micro", "weighted").check("average", average)
    outputs = as_numpy("outputs", outputs)
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        outputs = outputs.reshape(-1)
        broken = outputs.dtype.kind == "f" and not np.isfinite(outputs).all()
        targets, scores = _binary(targets, np.zeros(len(outputs)) if broken else outputs, "outputs")
    else:
        labels, outputs = _scores(targets, outputs)
        occurs = np.unique(labels)
        broken = not np.isfinite(outputs).all()
        scores = _probabilities(outputs)[:, occurs]
        targets = (labels[:, None] == occurs).astype(np.int64)
    weight = _weights(sample_weight, targets)
    counting = _counting(targets, weight)
    one_class = bool((counting == counting[0]).all(axis=0).any())
    if broken or (one_class and name == "roc_auc_score"):
        return float("nan")
    return float(getattr(_sklearn(), name)(targets, scores, average=average, sample_weight=weight))


def _counting(targets: Array, weight: Array | None) -> Array:
    """Return the targets of the examples that have a weight."""
    return targets if weight is None else targets[weight > 0]


def _binary(targets: Any, scores: Any, name: str = "scores") -> tuple[Array, Array]:
    """Return checked targets of two classes, and scores of the positive one."""
    scores = as_numpy(name, scores)
    if (
        scores.dtype.kind not in "fiub"
        or scores.ndim != 1
        or scores.size == 0
        or not np.isfinite(scores).all()
    ):
        raise ValueError(
            f"{name} are {scores.dtype} of shape {scores.shape}, expected finite numbers (examples,)"
        )
    targets = as_numpy("targets", targets)
    if targets.shape == (len(scores), 1):
        targets = targets[:, 0]
    if targets.dtype.kind not in "fiub" or targets.shape != scores.shape:
        raise ValueError(
            f"targets are {targets.dtype} of shape {targets.shape}, expected one for each of the {name}"
        )
    if not any(np.isin(targets, pair).all() for pair in ((0, 1), (-1, 1))):
        raise ValueError("targets hold other numbers than 0 and 1, or -1 and 1")
    return targets, scores


def _answers(targets: Any, outputs: Any) -> tuple[Array, Array]:
    """Return which examples are right, and the largest probability of each."""
    targets, outputs = _scores(targets, outputs)
    # An example without probabilities gets -1, which is below every threshold; NaN could not be sorted.
    confidence = np.where(_finite(outputs), _probabilities(outputs).max(axis=1), -1)
    right: Array = (outputs.argmax(axis=1) == targets) & (confidence >= 0)
    return right, confidence


def _probabilities(outputs: Array) -> Array:
    """Return the outputs if they are probabilities, as the module's head defines them, else their softmax."""
    if outputs.dtype.kind != "f":  # else differences of unsigned integers would wrap around
        outputs = outputs.astype(np.float64)
    finite = outputs[np.isfinite(outputs).all(axis=1)]
    sums = finite.sum(axis=1, dtype=np.float64)
    if len(finite) and (finite >= 0).all() and (np.abs(sums - 1) <= 1e-3).all():
        return outputs
    with np.errstate(invalid="ignore"):
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _weights(sample_weight: Any, examples: Array) -> Array | None:
    """Return checked weights of the examples in float64, or None."""
    weight = check_weights("sample_weight", sample_weight, len(examples), np.dtype(np.float64))
    if weight is not None and not weight.any():
        raise ValueError("sample_weight is 0 everywhere, expected one example that counts")
    return weight


def _mean(values: Array, weight: Array | None) -> float:
    return float(np.mean(values) if weight is None else np.average(values, weights=weight))


def _plot_curve(
    points: Any, labels: tuple[str, str], where: tuple[Any, Any, str], chance: bool = False
) -> Any:
    path, axes, title = where
    figure, axes = drawn_on(axes, 5, 4, path, title)
    axes.plot(*points, color="#0072B2", drawstyle="steps-post" if labels[0] == "recall" else "default")
    if chance:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="chance")
        legend_beside(axes)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title or f"{labels[1]} against {labels[0]}")
    axes.set_xlim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    return saved(figure, path)


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


def _positive(targets: Any) -> Array:
    """Return which targets of one output are of the positive class, as class indices."""
    targets = as_numpy("targets", targets)
    if targets.dtype.kind not in "fiub" or targets.ndim not in (1, 2) or targets.shape[1:] not in ((), (1,)):
        raise TypeError(
            f"targets are {targets.dtype} of shape {targets.shape}, expected 0 and 1 for the outputs"
        )
    if not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError("targets hold other numbers than 0 and 1, or -1 and 1")
    positive: Array = (targets.reshape(-1) > 0).astype(np.int64)
    return positive


def _classes(targets: Any, outputs: Any) -> tuple[Array, Array, Array]:
    """Return targets, predicted classes, and for which examples there is one."""
    outputs = as_numpy("outputs", outputs)
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs have shape {outputs.shape}, expected (examples, classes) or (examples,)")
    binary = outputs.shape[1:] == (1,)
    targets = _positive(targets) if binary else targets
    targets = _targets(targets, outputs)
    if outputs.ndim == 1:
        _check_whole(outputs)
        return targets, outputs, np.ones(len(outputs), np.bool_)
    if binary:
        return targets, (outputs[:, 0] > 0).astype(np.int64), _finite(outputs)
    return targets, outputs.argmax(axis=1), _finite(outputs)


def _check_whole(classes: Array) -> None:
    """Raise an error if outputs (examples,) cannot be predicted class indices."""
    kind = classes.dtype.kind
    if kind not in "fiub":
        raise TypeError(f"outputs are {classes.dtype} of shape {classes.shape}, expected class indices")
    if kind == "f" and not (np.isfinite(classes) & (classes == np.trunc(classes))).all():
        raise ValueError(
            f"outputs of shape {classes.shape} hold numbers that are not whole, expected predicted class "
            "indices; logits of the positive class have the shape (examples, 1)"
        )


def _scores(targets: Any, outputs: Any) -> tuple[Array, Array]:
    """Return class indices and a column for each class: two columns for logits of the positive class."""
    outputs = as_numpy("outputs", outputs)
    if outputs.ndim != 2:
        raise ValueError(f"outputs have shape {outputs.shape}, expected (examples, classes)")
    if outputs.shape[1] == 1:  # the softmax of these two is the sigmoid, and one of them is the largest
        targets, outputs = _positive(targets), outputs / 2 * np.array([-1, 1], np.int8)
    targets = _targets(targets, outputs)
    if targets.min() < 0 or targets.max() >= outputs.shape[1]:
        raise ValueError(
            f"targets hold {targets.min()} to {targets.max()}, expected 0 to {outputs.shape[1] - 1}"
        )
    return targets, outputs
