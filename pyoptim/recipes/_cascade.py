"""Several models of growing cost, of which most examples see the cheap ones alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..nn.layers import Layer, walk
from ..ops import losses, softmax_forward
from ..runtime.dtypes import Array
from ..runtime.figures import drawn_on, legend_beside, saved
from ..runtime.numbers import NUMBER, POSITIVE, SHARE, check_count, plain, shown
from ._measure import Model, examples, median_seconds, outputs_of


class Measures(NamedTuple):
    """How something did on some examples; recall and precision are a detector's, else NaN."""

    accuracy: float
    recall: float
    precision: float
    cost: float  # of a mean example, in the unit of ``costs``
    seconds: float  # of an example: the median of some repetitions of all examples at once

    def __str__(self) -> str:
        found = f", recall {self.recall:.2%}, precision {self.precision:.2%}" if self.recall >= 0 else ""
        return f"accuracy {self.accuracy:.2%}{found}, cost {self.cost:,.0f}, {self.seconds * 1e6:.2f} us"


@dataclass(frozen=True)
class CascadeReport:
    """What `Cascade.evaluate` measured.

    Attributes
    ----------
    cascade, last : Measures
        Of the cascade, and of the last model if it has to answer every example.
    reached : tuple of float
        For each model the share of the examples that it computed.
    """

    cascade: Measures
    last: Measures
    reached: tuple[float, ...]

    def __str__(self) -> str:
        reached = ", ".join(f"{share:.1%}" for share in self.reached)
        return f"cascade: {self.cascade}\nlast model: {self.last}\nthe models saw {reached} of the examples"

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the share of the examples that each model saw, and the cost."""
        figure, axes = drawn_on(axes, 7, 4, path, title)
        names = [f"model {i}" for i in range(len(self.reached))]
        axes.bar(names, self.reached, color="#0072B2", label="examples that it computed")
        if self.last.cost > 0:  # without Dense layers no products are counted
            cost = self.cascade.cost / self.last.cost
            axes.axhline(cost, color="#D55E00", label="cost of the cascade")
        axes.axhline(1, color="0.5", linestyle="--", label="cost of the last model alone")
        axes.set(ylabel="share", title=title or "cascade")
        legend_beside(axes)
        return saved(figure, path)


class Cascade:
    """Models asked one after the other, each only about the examples that those before have not answered.

    A detector (models of one output, whose sign says whether the thing is there) rejects: an example whose
    score is below a model's threshold is no object, and no later model looks at it. So cheap models of high
    recall come first, and a dear one of high precision last (Viola & Jones 2001). With models of several
    outputs, one for each class, an example is answered by the first model that is sure: whose largest
    probability (the softmax of its outputs) is at least its threshold. The last model answers what is left.

    Parameters
    ----------
    models : sequence of nn.Sequential or QuantizedModel
        At least two, the cheapest first, of the same inputs and number of outputs.
    thresholds : sequence of float, optional
        Of a detector one for each model, of scores; of classes one for each model but the last, of
        probabilities. Without, `fit` finds them.
    costs : sequence of float, optional
        Of an example, in whatever unit, for `evaluate`. Without, the multiplications of `Dense` layers.

    Raises
    ------
    TypeError, ValueError
        What is given is no such thing.

    Examples
    --------
    >>> cascade = po.recipes.Cascade([small, large])
    >>> cascade.fit(x_validation, y_validation, wanted=0.99)
    >>> print(cascade.evaluate(x_test, y_test))
    """

    def __init__(
        self,
        models: Sequence[Model],
        thresholds: Sequence[float] | None = None,
        costs: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(models, Sequence) or isinstance(models, str | bytes) or len(models) < 2:
            raise TypeError(f"models is {shown(models)}, expected a sequence of two models or more")
        for i, model in enumerate(models):
            if not isinstance(model, Model):
                raise TypeError(
                    f"models[{i}] is a {type(model).__name__}, expected a Sequential or QuantizedModel"
                )
        self.models = tuple(models)
        self.thresholds = None if thresholds is None else _numbers("thresholds", thresholds)
        if self.thresholds is not None and len(self.thresholds) not in (len(models), len(models) - 1):
            raise ValueError(
                f"thresholds has {len(self.thresholds)} numbers, expected {len(models)} for a detector and "
                f"{len(models) - 1} for classes"
            )
        if costs is None:
            self.costs = tuple(float(_products(model)) for model in models)
        else:
            self.costs = _numbers("costs", costs)
            if len(self.costs) != len(models):
                raise ValueError(f"costs has {len(self.costs)} numbers, expected {len(models)}")
            for i, cost in enumerate(self.costs):
                POSITIVE.check(f"costs[{i}]", cost)

    def fit(self, x: Any, y: Any, wanted: float = 0.99) -> Cascade:
        """Find the thresholds on examples that no model was trained on; returns the cascade.

        Parameters
        ----------
        x : array (examples, ...)
        y : array (examples,)
            Of a detector 1 (or True) where the thing is there, else 0; of classes their numbers.
        wanted : float in [0, 1], default 0.99
            Of a detector the recall of the cascade on these examples. Each model gets a threshold at which it
            rejects as many as it can, and loses no more than its equal part of the objects that may be lost.
            Of classes the accuracy of each model but the last on those of these examples that it answers. It
            gets a threshold at which it answers as many as it can with that accuracy: 2, so that it answers
            none, where there is none.

        Raises
        ------
        TypeError, ValueError
            The examples do not suit the models; for a detector, none of them is an object.
        """
        wanted = SHARE.number("wanted", wanted)
        x = examples("x", x)
        scores = [_outputs(model, x) for model in self.models]
        for i, score in enumerate(scores):
            _check_outputs(i, score, scores[0].shape[1])
        y = _checked_targets(y, scores[-1])
        if scores[0].shape[1] == 1:
            self.thresholds = _of_detector([score[:, 0] for score in scores], y == 1, wanted)
            return self
        found: list[float] = []
        left = np.ones(len(y), np.bool_)
        for output in scores[:-1]:
            sure = _confidence(output)
            right = output.argmax(axis=1) == y
            found.append(_least_threshold(sure[left], right[left], wanted))
            left &= sure < found[-1]
        self.thresholds = tuple(found)
        return self

    def predict(self, x: Any) -> Array:
        """The class of each example, an int64 array; of a detector 1 where the thing is there, else 0.

        Parameters
        ----------
        x : array (examples, ...)

        Raises
        ------
        TypeError, ValueError
            The examples do not suit the models, or there are no thresholds yet.
        """
        return self._answers(examples("x", x))[0]

    def evaluate(self, x: Any, y: Any, repeats: int = 5) -> CascadeReport:
        """Measure accuracy and cost, and those of the last model where it has to answer every example.

        Parameters
        ----------
        x, y
            As `fit`.
        repeats : int, default 5
            How often the time is taken.
        """
        repeats, x = check_count("repeats", repeats), examples("x", x)
        answers, by = self._answers(x)
        output = _outputs(self.models[-1], x)
        y = _checked_targets(y, output)
        reached = tuple(float(np.mean(by >= i)) for i in range(len(self.models)))
        cost = sum(share * each for share, each in zip(reached, self.costs, strict=True))
        seconds = median_seconds(lambda: self._answers(x), repeats) / len(y)
        alone = median_seconds(lambda: _outputs(self.models[-1], x), repeats) / len(y)
        detects = output.shape[1] == 1
        return CascadeReport(
            Measures(*_quality(answers, y, detects), float(cost), seconds),
            Measures(*_quality(self._last_answers(output), y, detects), self.costs[-1], alone),
            reached,
        )

    def _answers(self, x: Array) -> tuple[Array, Array]:
        """Return the answer to each example, and which model gave it."""
        answers = np.zeros(len(x), np.int64)
        by = np.full(len(x), len(self.models) - 1)
        left = np.arange(len(x))
        outputs = None
        for i, model in enumerate(self.models):
            output = _outputs(model, x if i == 0 else x[left])
            outputs = outputs or output.shape[1]
            _check_outputs(i, output, outputs)
            thresholds = self._fitting(output.shape[1])
            if i == len(self.models) - 1:
                answers[left] = self._last_answers(output)
                break
            if output.shape[1] == 1:
                is_answered = output[:, 0] < thresholds[i]
            else:
                is_answered = _confidence(output) >= thresholds[i]
                answers[left[is_answered]] = output[is_answered].argmax(axis=1)
            by[left[is_answered]] = i
            left = left[~is_answered]
        return answers, by

    def _last_answers(self, output: Array) -> Array:
        detects = output.shape[1] == 1
        answers: Array = output[:, 0] >= self._fitting(1)[-1] if detects else output.argmax(axis=1)
        return answers.astype(np.int64)

    def _fitting(self, outputs: int) -> tuple[float, ...]:
        """Return the thresholds, which have to be as many as models of so many outputs need."""
        expected = len(self.models) - (outputs > 1)
        if self.thresholds is None or len(self.thresholds) != expected:
            came = "None" if self.thresholds is None else f"{len(self.thresholds)} numbers"
            raise ValueError(f"thresholds is {came}, expected {expected}: call fit first, or give so many")
        return self.thresholds

    def _repr_html_(self) -> str:
        return "".join(model._repr_html_() for model in self.models)

    def __repr__(self) -> str:
        return f"Cascade({list(self.models)!r}, thresholds={self.thresholds})"


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    values = plain(values)
    if not isinstance(values, tuple):
        raise TypeError(f"{name} is {shown(values)}, expected a sequence of numbers")
    return tuple(NUMBER.number(f"{name}[{i}]", value) for i, value in enumerate(values))


def _layers_of(model: Model) -> Sequence[Layer]:
    return model.layers if isinstance(model, nn.Sequential) else model._shapes


def _products(model: Model) -> int:
    layers = (layer for _, layer in walk("layers", _layers_of(model)))
    return sum(layer.in_features * layer.out_features for layer in layers if isinstance(layer, nn.Dense))


def _outputs(model: Model, x: Array) -> Array:
    output = outputs_of(model, x)
    if output.ndim != 2 or 0 in output.shape[1:]:
        raise ValueError(f"models have outputs of shape {output.shape[1:]} for x, expected (outputs,)")
    return output.astype(np.float64)  # thresholds lie between numbers that float32 may not tell apart


def _check_outputs(i: int, output: Array, expected: int) -> None:
    if output.shape[1] != expected:
        raise ValueError(f"models[{i}] has {output.shape[1]} outputs, expected {expected} as models[0]")


def _checked_targets(y: Any, output: Array) -> Array:
    y = as_numpy("y", y)
    if output.shape[1] == 1 and y.dtype.kind == "f" and np.isin(y, (0, 1)).all():
        y = y.astype(np.int64)
    if not len(output):
        raise ValueError(f"x has {len(output)} examples, expected at least one")
    return losses.check_labels("y", y, len(output), max(2, output.shape[1]))


def _confidence(output: Array) -> Array:
    largest: Array = softmax_forward(output).max(axis=1)
    return largest


def _of_detector(scores: Sequence[Array], there: Array, wanted: float) -> tuple[float, ...]:
    """Return thresholds that reject the most and lose so few of the objects, in equal parts each."""
    objects, lost = int(there.sum()), 0
    if not objects:
        raise ValueError("y holds no object (a 1), expected some whose scores say where the thresholds are")
    left, found = there.copy(), []
    most = objects - math.ceil(wanted * objects)
    for i, score in enumerate(scores, 1):
        may_lose = most * i // len(scores) - lost
        least = np.sort(score[left])[min(may_lose, objects - lost - 1)]
        found.append(_below(least, score, least - 1))
        left &= score >= found[-1]
        lost = objects - int(left.sum())
    return tuple(found)


def _least_threshold(sure: Array, right: Array, wanted: float) -> float:
    """Return the confidence from which on the most answers have the wanted accuracy; 2 if none have."""
    order = np.argsort(-sure, kind="stable")
    sure, right = sure[order], right[order]
    good = np.cumsum(right) >= wanted * np.arange(1, len(sure) + 1)
    good[:-1] &= sure[:-1] != sure[1:]  # of equal ones all are answered, or none
    where = np.flatnonzero(good)
    return _below(sure[where[-1]], sure, 0.0) if len(where) else 2.0


def _below(least: Any, scores: Array, lowest: float) -> float:
    """Return a threshold for this score: half way to the next smaller one, or to ``lowest`` if there is none.

    Scores of the same example differ by rounding between batches of several sizes, and between backends.
    """
    smaller = scores[scores < least]
    return (float(least) + float(smaller.max() if len(smaller) else lowest)) / 2


def _quality(answers: Array, y: Array, detects: bool) -> tuple[float, float, float]:
    accuracy = float(np.mean(answers == y))
    if not detects:
        return accuracy, math.nan, math.nan
    both, found, there = int((answers & y).sum()), int(answers.sum()), int(y.sum())
    return accuracy, both / there if there else math.nan, both / found if found else math.nan
