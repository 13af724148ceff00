"""What studies share: their options and results, trainings of several seeds, tables, and lines with bands."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ... import datasets, nn
from ...datasets._files import is_here
from ...runtime.dtypes import Array
from ...runtime.figures import style
from ...train.history import History
from ...train.trainer import Trainer

__all__ = [
    "Curve",
    "Difference",
    "Options",
    "Result",
    "Study",
    "band",
    "curves_table",
    "difference",
    "dots",
    "draw_curves",
    "few",
    "layers_of",
    "legend_below",
    "listed",
    "load",
    "mean",
    "network",
    "resolved",
    "style",
    "table",
    "train",
    "trainer",
]


class Options(NamedTuple):
    """What a study is told; the runner has filled in the study's own numbers where a user gave none."""

    dataset: str
    epochs: int
    seeds: tuple[int, ...]
    verbose: bool = False


class Result(NamedTuple):
    """What a study found.

    ``rows`` is the table: for each of the things compared, by its name, a number or one number per seed in
    each column. A column whose name speaks of accuracy, error or a share is printed in percent. ``data`` is
    what the picture needs besides.
    """

    setting: str  # data, model and optimizer, as the title of the picture says them
    rows: Mapping[str, Mapping[str, Any]]
    data: Any = None


class Study(NamedTuple):
    """An experiment. It measures, and then draws and says what its numbers show.

    ``draw(result, axes)`` gets as many axes as there are ``panels``, row by row. ``conclusion`` gives
    whole sentences that depend on the numbers, and that say so where the expected does not show.
    """

    about: str
    run: Callable[[Options], Result]
    draw: Callable[[Result, Sequence[Any]], None]
    conclusion: Callable[[Result], str] = lambda result: ""
    panels: int = 2
    epochs: int = 5
    seeds: int = 3
    rows: int = 1
    digits: int = 5  # times as many epochs on the digits, which have a fortieth of the others' examples


class Curve(NamedTuple):
    """One of the trainings that a study compares, for each seed."""

    name: str
    trainers: list[Trainer]
    histories: list[History]
    batch_size: int
    callbacks: list[Sequence[Any]]

    def values(self, key: str) -> Array:
        """Return what was measured, of shape (seeds, epochs); NaN after the end of a shorter training."""
        longest = max(len(history[key]) for history in self.histories)
        return np.array(
            [history[key] + [np.nan] * (longest - len(history[key])) for history in self.histories]
        )

    def last(self, key: str) -> Array:
        """Return what was measured after the last epoch, of shape (seeds,)."""
        return np.array([history[key][-1] for history in self.histories])


def resolved(dataset: str) -> str:
    """Return the data set of this name; of "auto", MNIST where its files are on this machine, else digits."""
    if dataset != "auto":
        return dataset
    return "mnist" if is_here("mnist") else "digits"


def load(options: Options, most: int | None = None, normalize: bool = True) -> datasets.Dataset:
    """Load the data set with images as rows: all of its examples, or at most so many to train on."""
    data = datasets.load(options.dataset, flatten=True, normalize=normalize)
    return data if most is None else data._replace(x_train=data.x_train[:most], y_train=data.y_train[:most])


def few(options: Options, small: int, large: int, wrong: float) -> tuple[datasets.Dataset, str]:
    """Load few examples to train on, a share of them with a random label, and say so.

    That leaves more to learn by heart, and less to learn. ``small`` examples are taken of the digits, and
    ``large`` of other data sets.
    """
    data = load(options, small if options.dataset == "digits" else large)
    rng = np.random.default_rng(0)
    labels = data.y_train.copy()
    chosen = rng.random(len(labels)) < wrong
    labels[chosen] = rng.integers(0, labels.max() + 1, chosen.sum())
    words = f"{options.dataset}, {len(labels):,} examples, {wrong:.0%} of them with a random label"
    return data._replace(y_train=labels), words


def layers_of(sizes: Sequence[int], activation: str = "relu", init: str = "he") -> list[nn.Layer]:
    """Return new dense layers of these sizes, the last one linear."""
    *inner, last = pairwise(sizes)
    return [*(nn.Dense(a, b, activation=activation, init=init) for a, b in inner), nn.Dense(*last)]


def network(data: datasets.Dataset, *hidden: int, init: str = "he") -> list[nn.Layer]:
    """Return new layers of a ReLU network of these hidden sizes for the data."""
    return layers_of([data.x_train.shape[1], *hidden, int(data.y_train.max()) + 1], init=init)


def trainer(
    model: nn.Sequential | Sequence[nn.Layer], optimizer: Callable[[Any], Any], seed: int, **more: Any
) -> Trainer:
    """Return the trainer of a classifier; ``more`` are arguments of `Trainer`, or another ``loss``."""
    if not isinstance(model, nn.Sequential):
        model = nn.Sequential(*model, seed=seed)
    loss = more.pop("loss", None) or nn.CrossEntropy()
    return Trainer(model, loss, optimizer(model.parameters()), seed=seed, **more)


def train(
    name: str,
    options: Options,
    data: datasets.Dataset,
    make: Callable[[int], Trainer],
    callbacks: Callable[[], Sequence[Any]] = tuple,
    **fit: Any,
) -> Curve:
    """Train what ``make`` returns for each seed; ``fit`` are arguments of `Trainer.fit`."""
    if options.verbose:
        print(f"training: {name}", flush=True)
    trainers, histories, watching = [], [], []
    fit = {"epochs": options.epochs, "validation_data": (data.x_test, data.y_test), "batch_size": 60, **fit}
    for seed in options.seeds:
        trainers.append(make(seed))
        watching.append(callbacks())
        with np.errstate(all="ignore"):  # some trainings are meant to diverge
            histories.append(
                trainers[-1].fit(data.x_train, data.y_train, callbacks=watching[-1], verbose=False, **fit)
            )
    return Curve(name, trainers, histories, fit["batch_size"] or len(data.x_train), watching)


def mean(result: Result, row: str, column: str) -> float:
    """Return a number of the table, the mean over the seeds."""
    return float(np.mean(result.rows[row][column]))


class Difference(NamedTuple):
    """How much larger a number of the table is in one row than in another."""

    mean: float
    error: float  # the standard error of the mean, from the differences of the single seeds

    @property
    def is_clear(self) -> bool:
        """Whether it is more than twice its standard error, which one seed alone cannot tell."""
        return abs(self.mean) > 2 * self.error

    @property
    def is_more(self) -> bool:
        """Whether the first row has clearly more."""
        return self.is_clear and self.mean > 0

    @property
    def is_less(self) -> bool:
        """Whether the first row has clearly less."""
        return self.is_clear and self.mean < 0


def difference(result: Result, row: str, other: str, column: str) -> Difference:
    """Compare two rows seed by seed."""
    first, second = (np.asarray(result.rows[name][column], np.float64) for name in (row, other))
    each = first - second
    if each.size < 2:
        return Difference(float(each.mean()), float("inf"))
    return Difference(float(each.mean()), float(each.std(ddof=1) / np.sqrt(each.size)))


def listed(names: Iterable[str], none: str = "none") -> str:
    """Return the names as a sentence has them: "a, b and c"."""
    *most, last = list(names) or [none]
    return f"{', '.join(most)} and {last}" if most else last


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table as text: means over the seeds, and where there are several their deviation."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["", *columns]]
    cells += [[name, *(_cell(column, row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in cells
    )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    values = np.atleast_1d(value)
    if values.dtype.kind in "iu" and (values == values[0]).all():
        return f"{values[0]:,}"
    percent = any(word in column for word in ("accuracy", "error", "share"))

    def shown(number: float) -> str:
        return f"{number:.2%}" if percent else f"{number:.4g}"

    several = len(values) > 1 and np.isfinite(values).all()
    return shown(values.mean()) + (f" ± {shown(values.std(ddof=1))}" if several else "")


def curves_table(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Return the rows that describe trainings."""
    return {
        curve.name: {
            "batch": curve.batch_size,
            "s/epoch": statistics.median(curve.values("seconds").ravel()),
            "loss": curve.last("loss"),
            "test loss": curve.last("val_loss"),
            "test accuracy": curve.last("val_accuracy"),
            "best test accuracy": curve.values("val_accuracy").max(axis=1),
        }
        for curve in curves
    }


def band(axes: Any, x: Any, values: Any, i: int, label: str, **more: Any) -> None:
    """Draw the mean over the seeds of values (seeds, points) as the i-th line, with the range as a band."""
    values = np.atleast_2d(np.asarray(values, np.float64))
    look = {"marker": "o", "markersize": 3, **style(i), **more}
    axes.plot(x, values.mean(axis=0), label=label, **look)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)


def dots(axes: Any, result: Result, column: str, label: str) -> None:
    """Draw a column of the table: a bar for the mean, and a dot for each seed."""
    for i, (name, row) in enumerate(result.rows.items()):
        values = np.atleast_1d(row[column])
        axes.bar(i, values.mean(), 0.6, color=style(i)["color"], alpha=0.35)
        axes.plot(np.full(len(values), i), values, "o", color=style(i)["color"], markersize=5)
        axes.annotate(name, (i, 0), (0, -6), textcoords="offset points", ha="center", va="top", fontsize=9)
    axes.set_xticks([])
    axes.set_ylabel(label)
    axes.grid(alpha=0.3, axis="y")


def draw_curves(result: Result, axes: Sequence[Any], over_time: bool = False) -> None:
    """Draw the test loss and the test accuracy of trainings, over epochs or seconds."""
    for panel, name in zip(axes, ("loss", "accuracy"), strict=True):
        for i, curve in enumerate(result.data):
            values = curve.values(f"val_{name}")
            seconds = np.cumsum(curve.values("seconds"), axis=1).mean(axis=0)
            band(panel, seconds if over_time else np.arange(values.shape[1]) + 1, values, i, curve.name)
        panel.set(xlabel="seconds of training" if over_time else "epoch", ylabel=f"test {name}")
        if over_time:
            panel.set_xscale("log")
        else:
            panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    axes[0].set_yscale("log")
    legend_below(axes[0])


def legend_below(axes: Any, columns: int | None = None) -> None:
    """Put the legend of the axes below all panels of the figure."""
    figure = axes.get_figure()
    handles, labels = axes.get_legend_handles_labels()
    most = max(1, int(figure.get_figwidth() / 1.9))
    rows = -(-len(labels) // most)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns or -(-len(labels) // rows), frameon=False
    )
