"""Ways to train that are compared over their trainings, and what the numbers say of claims made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import datasets, nn
from ...optim.elementwise import SGD
from ...runtime.dtypes import Array
from ...train.history import History
from ...train.trainer import Trainer
from ._common import Options, Result, Study, band, layers_of, legend_below, load

_MOST = 5_000, 2_000  # examples that are taken of a large data set, to train and to test


class Way(NamedTuple):
    """A way to train, and how it did: test accuracies, of each seed a row, at each place of the x axis."""

    name: str
    at: Sequence[float]
    scores: Array

    @property
    def last(self) -> Array:
        """The accuracies at the end of the trainings, a number for each seed."""
        last: Array = self.scores[:, -1]
        return last


class Part(NamedTuple):
    """Ways to train that are compared on one problem, and what is claimed of them.

    A claim is a sentence, the name of what is said to be better, and that of what is said to be worse.
    ``marks`` are places of the x axis where stages end. ``short`` names the part in the table.
    """

    title: str
    ways: list[Way]
    claims: list[tuple[str, str, str]]
    marks: Sequence[float] = ()
    short: str = ""


class Setting(NamedTuple):
    """The data and the choices that a comparison is made with."""

    data: datasets.Dataset
    seeds: Sequence[int]
    epochs: int

    def sizes(self, *hidden: int) -> list[int]:
        """Return the sizes of layers of a network for these data."""
        return [self.data.x_train.shape[1], *hidden, int(self.data.y_train.max()) + 1]

    @property
    def test(self) -> tuple[Any, Any]:
        """The examples to test on."""
        return self.data.x_test, self.data.y_test

    def options(self, seed: int) -> dict[str, Any]:
        """Return what all recipes are given that make their own trainers."""
        return {"seed": seed, "validation_data": self.test, "verbose": False}


def model_of(sizes: Sequence[int], activation: str, seed: int, init: str = "glorot") -> nn.Sequential:
    """Return a new network of these sizes."""
    return nn.Sequential(*layers_of(sizes, activation, init), seed=seed)


def sgd(parameters: Any) -> SGD:
    """Return the optimizer of the deep sigmoid networks."""
    return SGD(parameters, lr=0.1, momentum=0.9)


def fit(trainer: Trainer, x: Any, y: Any, test: Any, epochs: int, batch_size: int = 32) -> History:
    """Train without a word, tested after each epoch."""
    return trainer.fit(x, y, epochs=epochs, batch_size=batch_size, validation_data=test, verbose=False)


def way(name: str, histories: Sequence[History], first: int = 0, each: Sequence[float] = ()) -> Way:
    """Return the test accuracies of several seeds, after ``first`` epochs, or at places of their own."""
    scores = np.array([history["val_accuracy"] for history in histories])
    return Way(name, each or range(first + 1, first + 1 + scores.shape[1]), scores)


# Student's quantile for an interval of 95%, by the number of seeds; a little too wide for more of them.
_STUDENT = {3: 4.30, 4: 3.18, 5: 2.78}


def verdict(part: Part, claim: tuple[str, str, str]) -> str:
    """Return what the accuracies say of a claim: trainings of the same seed are compared with each other."""
    words, *names = claim
    better, worse = (next(r.last for r in part.ways if r.name == name) for name in names)
    gain = 100 * (better - worse)
    mean, seeds = float(gain.mean()), len(gain)
    found = f"{names[0]} {better.mean():.1%}, {names[1]} {worse.mean():.1%}"
    if seeds < 3:
        return f"{words}: {found}; fewer than three seeds do not say how much is chance"
    error = _STUDENT.get(seeds, 2.6) * float(gain.std(ddof=1)) / math.sqrt(seeds)
    found += f", {mean:+.1f} ± {error:.1f} points (95% interval, {seeds} seeds)"
    if abs(mean) <= error:
        return f"{words}: {found}: this does not show, it may be chance"
    return f"{words}: {found}: {'this shows' if mean > 0 else 'the opposite shows'}"


def study(
    about: str,
    compare: Callable[[Setting], list[Part]],
    epochs: int,
    draw: Callable[[Result, Sequence[Any]], None],
    panels: int = 1,
) -> Study:
    """Return the study that compares ways to train, on as many parts as there are panels."""

    def run(options: Options) -> Result:
        data = load(options, _MOST[0])
        data = data._replace(x_test=data.x_test[: _MOST[1]], y_test=data.y_test[: _MOST[1]])
        parts = compare(Setting(data, options.seeds, options.epochs))
        rows = {
            f"{part.short}: {way.name}" if part.short else way.name: {
                "test accuracy": way.last,
                "worst test accuracy": way.last.min(),
            }
            for part in parts
            for way in part.ways
        }
        words = f"{options.dataset}, {len(data.x_train):,} training examples, {len(options.seeds)} seeds"
        return Result(words, rows, parts)

    return Study(about, run, draw, _conclusion, panels, epochs, seeds=5, digits=1)


def _conclusion(result: Result) -> str:
    lines = []
    for part in result.data:
        lines += [f"{part.title}:".replace("\n", " ")] if part.title else []
        lines += [f"- {verdict(part, claim)}" for claim in part.claims]
    return "\n".join(lines)


def draw_errors(result: Result, axes: Sequence[Any], label: str = "epoch") -> None:
    """Draw the test error over a training: the mean of the seeds, in a band from the best to the worst."""
    for panel, part in zip(axes, result.data, strict=True):
        for i, mark in enumerate(part.marks):
            label_once = "" if i else "end of a stage"
            panel.axvline(mark, color="0.75", linewidth=0.8, zorder=0, label=label_once)
        for i, (name, at, scores) in enumerate(part.ways):
            errors = np.maximum(1 - scores, 1e-4)  # a logarithm has no place for 0
            band(panel, at, errors, i, name, marker="")
        panel.set(title=part.title, xlabel=label, ylabel="test error", yscale="log")
        panel.title.set_fontsize("small")
        panel.yaxis.set_major_formatter(lambda error, _: f"{error:.0%}")
        panel.grid(alpha=0.3)
    legend_below(axes[0])
