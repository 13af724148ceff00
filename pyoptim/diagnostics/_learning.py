"""What more examples would bring, and of what the error of a model consists: from several trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..runtime.dtypes import Array
from ..runtime.figures import drawn_on, legend_beside, log_if_wide, saved
from ..runtime.numbers import (
    AT_LEAST_ZERO,
    check_callable,
    check_count,
    check_seed,
    check_type,
    is_count,
    shown,
)
from ..train.data import Data, check_batches
from ..train.trainer import Trainer


@dataclass(frozen=True)
class LearningCurve:
    """What `learning_curve` found.

    Attributes
    ----------
    sizes : array (sizes,)
        Numbers of examples.
    training, validation : array (sizes, repeats)
        Errors: for classification the share that is wrong, else the loss; NaN or infinite where a training
        diverged.
    law : tuple of float
        ``(a, b, c)`` of the validation error ``a + b * size**-c``, fitted to those means that are finite; NaN
        where none is.
    """

    sizes: Array
    training: Array
    validation: Array
    law: tuple[float, float, float]

    def at(self, size: float) -> float:
        """The validation error that the law says of so many examples."""
        a, b, c = self.law
        return a + b * float(size**-c)

    def __str__(self) -> str:
        last, now = self.sizes[-1], self.validation[-1].mean()
        train = self.training[-1].mean()
        if not np.isfinite([now, train]).all():
            return f"a training with {last:,} examples diverged: its loss is NaN or infinite"
        gap = "more examples help" if now - train > train else "a larger model or longer training helps more"
        gap = "nothing is left to gain" if now <= 0 else gap
        return (
            f"error {now:.3g} on validation and {train:.3g} in training with {last:,} examples; about "
            f"{self.at(2 * last):.3g} with twice as many, {self.law[0]:.3g} with any number: {gap}"
        )

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw both errors, with the range of the repeats, and the law to 4 times the examples."""
        figure, axes = drawn_on(axes, 7, 4, path, title)
        for errors, color, name in (
            (self.training, "#0072B2", "training"),
            (self.validation, "#D55E00", "validation"),
        ):
            axes.plot(self.sizes, errors.mean(axis=1), color=color, marker="o", markersize=3, label=name)
            axes.fill_between(self.sizes, errors.min(axis=1), errors.max(axis=1), color=color, alpha=0.2)
        beyond = np.geomspace(self.sizes[0], 4 * self.sizes[-1], 40)
        law = [self.at(size) for size in beyond]
        axes.plot(beyond, law, color="0.4", linestyle="--", label="law, extrapolated")
        axes.set_xscale("log")
        seen = np.concatenate([self.training.ravel(), self.validation.ravel()])
        log_if_wide(axes, seen[seen > 0])
        axes.set(xlabel="training examples", ylabel="error", title=title or "learning curve")
        axes.grid(alpha=0.3)
        legend_beside(axes)
        return saved(figure, path)


def learning_curve(
    make: Callable[[int], Trainer],
    x: Any,
    y: Any,
    *,
    validation_data: tuple[Any, Any],
    sizes: Sequence[int] | None = None,
    repeats: int = 3,
    fit: Mapping[str, Any] | None = None,
    seed: int | None = 0,
) -> LearningCurve:
    """Train on growing numbers of examples, and extrapolate the error.

    Where training and validation error have met, more data bring nothing: the model is too small, or is not
    trained long enough. Where they are far apart, more data (or regularisation) help, and the law says how
    much (lecture 003).

    Parameters
    ----------
    make : callable
        ``(seed) -> Trainer``, with a new model.
    x, y
        All examples to train on, as arrays.
    validation_data : (x, y)
    sizes : sequence of int, optional
        Numbers of examples, each at most that of x; without, six from a 32nd to all of them.
    repeats : int, default 3
        Trainings of each size, each with other examples and another seed.
    fit : mapping, optional
        Further arguments of `Trainer.fit`; without, ``{"epochs": 20}``.
    seed : int, optional
        Of the choice of examples.

    Returns
    -------
    LearningCurve
    """
    arrays, fit, rng = _examples(x, y), _options(fit), check_seed("seed", seed)
    check_callable("make", make, "a function of a seed that returns a Trainer")
    repeats, count = check_count("repeats", repeats), len(arrays[0])
    chosen = _sizes(sizes, count)
    errors, trainers = np.empty((2, len(chosen), repeats)), _Trainers(make, validation_data)
    for r in range(repeats):
        order = rng.permutation(count)
        for i, size in enumerate(chosen):
            trainer, validation = trainers.next(r)
            if r == i == 0:
                _check_sizes(trainer, arrays, chosen, fit)
            x, y = (array[order[:size]] for array in arrays)
            trainer.fit(x, y, **fit)
            errors[0, i, r] = _error(trainer, trainer._check_data(x, y))
            errors[1, i, r] = _error(trainer, validation)
    return LearningCurve(chosen, errors[0], errors[1], power_law(chosen, errors[1].mean(axis=1)))


def power_law(sizes: Array, errors: Array) -> tuple[float, float, float]:
    """Fit ``a + b * size**-c`` with a and b >= 0: for each c by least squares, relative to the errors.

    Errors that are not finite are left out.
    """
    finite = np.isfinite(errors)
    if not finite.any():
        return float("nan"), float("nan"), float("nan")
    sizes, errors = sizes[finite], errors[finite]
    best, law = np.inf, (float(errors[-1]), 0.0, 1.0)
    scale = 1 / np.maximum(errors, 1e-12)
    for c in np.linspace(0.02, 2, 100):
        falling = sizes.astype(np.float64) ** -c
        columns = np.stack([np.ones(len(sizes)), falling], axis=1) * scale[:, None]
        ones = errors * scale
        for kept in ([0, 1], [1], [0]):
            found = np.zeros(2)
            found[kept] = np.linalg.lstsq(columns[:, kept], ones, rcond=None)[0]
            rest = float(np.sum((columns @ found - ones) ** 2))
            if (found >= 0).all() and rest < best * (1 - 1e-9):
                best, law = rest, (float(found[0]), float(found[1]), float(c))
    return law


@dataclass(frozen=True)
class BiasVariance:
    """What `bias_variance` found.

    Attributes
    ----------
    bias_squared : float
        Squared error that the mean of ever more predictions would have, less the noise: an estimate without
        bias, so it may be below 0 where it is small against the variance, or the noise was given too large.
    variance : float
        Variance of the predictions over trainings, an estimate without bias: the sum of the squared distances
        from their mean divided by ``repeats - 1``.
    noise : float
        As given.
    error : float
        The mean squared error: the sum of these three.
    predictions : array (repeats, examples, outputs)
    """

    bias_squared: float
    variance: float
    noise: float
    error: float
    predictions: Array

    def __str__(self) -> str:
        if not np.isfinite(self.error):
            return "a training diverged: its predictions are NaN or infinite, and so is the error"
        larger = "variance" if self.variance > self.bias_squared else "bias"
        cure = {
            "variance": "more examples, regularisation or an ensemble help",
            "bias": "a larger model, longer training or better inputs help",
        }[larger]
        return (
            f"error {self.error:.3g} = bias^2 {self.bias_squared:.3g} + variance {self.variance:.3g} + noise "
            f"{self.noise:.3g}: mostly {larger}, so {cure}"
        )

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the parts of the error; returns the figure."""
        figure, axes = drawn_on(axes, 5, 4, path, title)
        names = ["error", "bias²", "variance", "noise"]
        values = [self.error, self.bias_squared, self.variance, self.noise]
        bars = axes.bar(names, values, color=["0.5", "#0072B2", "#D55E00", "#009E73"])
        axes.bar_label(bars, fmt="%.3g")
        axes.margins(y=0.12)
        axes.set(ylabel="mean squared error", title=title or "of what the error consists")
        return saved(figure, path)


def bias_variance(
    make: Callable[[int], Trainer],
    x: Any,
    y: Any,
    *,
    validation_data: tuple[Any, Any],
    repeats: int = 10,
    noise: float = 0.0,
    fit: Mapping[str, Any] | None = None,
    seed: int | None = 0,
) -> BiasVariance:
    """Split the squared error into bias, variance and noise, by trainings on bootstrap samples (lecture 003).

    Each training draws as many examples as there are, with replacement, and has a seed of its own. Much
    bias: the model cannot represent, or has not learnt, what is there. Much variance: it follows the
    examples that it happened to get; bagging takes away most of that part. A model of growing size trades
    the one for the other.

    Parameters
    ----------
    make : callable
        ``(seed) -> Trainer``, with a new model.
    x, y
        Examples to train on, as arrays.
    validation_data : (x, y)
        Where predictions are compared. With a classifying loss or `KLDiv` they are probabilities, and the
        error is Brier's: the squared distance from 1 for the class and 0 for the others, or from the
        teacher's probabilities, summed over classes. With `BinaryCrossEntropy` they are the probabilities of
        1, with `Poisson` the means exp(output), and with `MSE`, `L1` and `Huber` the outputs.
    repeats : int, default 10
        At least 2.
    noise : float >= 0, default 0
        The part of the squared error that no model could take away, if it is known; it counts as bias else.
    fit : mapping, optional
        Further arguments of `Trainer.fit`; without, ``{"epochs": 20}``.
    seed : int, optional
        Of the samples.

    Returns
    -------
    BiasVariance
    """
    arrays, fit, rng = _examples(x, y), _options(fit), check_seed("seed", seed)
    check_callable("make", make, "a function of a seed that returns a Trainer")
    noise, repeats, count = (
        AT_LEAST_ZERO.number("noise", noise),
        check_count("repeats", repeats),
        len(arrays[0]),
    )
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}, expected at least 2")
    predictions, trainers = [], _Trainers(make, validation_data)
    for r in range(repeats):
        rows = rng.integers(0, count, count)
        trainer, data = trainers.next(r)
        _check_predicts(trainer.loss)
        trainer.fit(arrays[0][rows], arrays[1][rows], **fit)
        predictions.append(_predicted(trainer.loss, np.asarray(trainer.predict(data.x), np.float64)))
    made = np.array(predictions)
    targets: Array = np.asarray(data.y, np.float64)
    if trainer.loss.classification and data.y.ndim == 1:
        targets = np.eye(made.shape[2])[data.y]
    # Over classes it is a sum, and not a mean.
    terms = made.shape[2] if trainer.loss.classification or isinstance(trainer.loss, nn.KLDiv) else 1
    mean, targets = made.mean(axis=0), targets.reshape(made.shape[1:])
    squared, spread = (terms * float(np.mean(part**2)) for part in (mean - targets, made - mean))
    variance = spread * repeats / (repeats - 1)
    return BiasVariance(squared - variance / repeats - noise, variance, noise, squared + spread, made)


def _check_predicts(loss: nn.Loss) -> None:
    known = nn.MSE, nn.L1, nn.Huber, nn.KLDiv, nn.BinaryCrossEntropy, nn.Poisson
    if not (loss.classification or isinstance(loss, known)):
        names = ", ".join(kind.__name__ for kind in known)
        raise ValueError(
            f"the outputs of a model with the loss {type(loss).__name__} are no predictions that could be "
            f"compared with targets: expected a classifying loss or one of {names}"
        )


def _predicted(loss: nn.Loss, outputs: Array) -> Array:
    """Return what the outputs (examples, ...) say of the targets, as (examples, outputs)."""
    outputs = outputs.reshape(len(outputs), -1)
    if loss.classification or isinstance(loss, nn.KLDiv):
        outputs = outputs / getattr(loss, "temperature", 1.0)
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
        return shares
    if isinstance(loss, nn.BinaryCrossEntropy):
        return np.asarray(np.exp(-np.logaddexp(0, -outputs)))
    return np.asarray(np.exp(outputs)) if isinstance(loss, nn.Poisson) else outputs


class _Trainers:
    """What makes a trainer for each training, with a model that none before it had."""

    def __init__(self, make: Any, validation_data: Any) -> None:
        self._make, self._validation = make, validation_data
        self._seen: WeakSet[nn.Sequential] = WeakSet()

    def next(self, seed: int) -> tuple[Trainer, Data]:
        """Return another trainer, and the validation data as it takes them."""
        trainer, validation = self._make(seed), self._validation
        if not isinstance(trainer, Trainer):
            raise TypeError(f"make returned a {type(trainer).__name__}, expected a Trainer")
        if trainer.model in self._seen:
            raise ValueError(
                "make returned a trainer whose model has been trained before, expected a new model each time"
            )
        self._seen.add(trainer.model)
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError(f"validation_data is {shown(validation)}, expected (x, y)")
        names = "validation_data[0]", "validation_data[1]"
        return trainer, trainer._check_data(validation[0], validation[1], names=names)


def _check_sizes(trainer: Trainer, arrays: tuple[Array, Array], sizes: Array, fit: dict[str, Any]) -> None:
    """Raise ValueError before the first training if one of the sizes leaves a batch that is too small."""
    x = trainer._check_data(*arrays).x
    batch = fit.get("batch_size", 32)
    if fit.get("validation_split") or not (batch is None or is_count(batch)):
        return  # `Trainer.fit` itself says what is wrong with them
    for size in map(int, sizes):
        try:
            check_batches(trainer.model, x[:size], min(batch or size, size), bool(fit.get("drop_last")))
        except ValueError as error:
            raise ValueError(f"sizes holds {size}: {error}") from None


def _error(trainer: Trainer, data: Data) -> float:
    measured = trainer._evaluate(data)
    return 1 - measured["accuracy"] if trainer.loss.classification else measured["loss"]


def _examples(x: Any, y: Any) -> tuple[Array, Array]:
    x, y = as_numpy("x", x), as_numpy("y", y)
    for name, array in (("x", x), ("y", y)):
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"{name} has shape {array.shape}, expected at least one example")
    if len(x) != len(y):
        raise ValueError(f"y has {len(y)} targets, expected {len(x)}: one per example of x")
    return x, y


def _options(fit: Any) -> dict[str, Any]:
    given = (
        {"epochs": 20}
        if fit is None
        else check_type("fit", fit, Mapping, "a mapping of arguments of Trainer.fit")
    )
    return {"verbose": False, **given}


def _sizes(sizes: Any, count: int) -> Array:
    if sizes is None:
        return np.unique(np.geomspace(min(count, max(2, count // 32)), count, 6).astype(int))
    given = sizes.tolist() if isinstance(sizes, np.ndarray) else sizes
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise TypeError(f"sizes is {shown(sizes)}, expected a sequence of numbers of examples")
    for size in given:
        if not is_count(size) or size > count:
            raise ValueError(f"sizes holds {shown(size)}, expected integers from 1 to {count}")
    return np.unique(np.array(given, int))
