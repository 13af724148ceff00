"""``pyoptim study tabular``: perceptrons, trees and lines on tables, cross-validated."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..runtime.extras import needed
from ..runtime.figures import log_axis, marker, new_figure, saved, style

_FOLDS = 5


class Table(NamedTuple):
    """A data set: a frame's columns of numbers, the number of each row's category, and what to predict."""

    name: str
    numbers: Any
    category: Any
    target: Any
    regression: bool


class Score(NamedTuple):
    """How a model did on the folds of a table."""

    table: str
    model: str
    scores: Any
    seconds: float  # of a fit, the mean


def tables(seed: int) -> Iterator[Table]:
    """Five tables: three that ship with scikit-learn, and two that it makes.

    The category of a row is its sex among the diabetics, else the fifth to which its first number belongs.
    """
    datasets = needed("sklearn.datasets", "the study tabular needs scikit-learn", "pyoptim[sklearn]")
    cancer, digits, diabetes = datasets.load_breast_cancer(), datasets.load_digits(), datasets.load_diabetes()
    yield _table("breast cancer", cancer.data, cancer.target, False)
    yield _table("digits", digits.data[:, 1:], digits.target, False)
    x = np.delete(diabetes.data, 1, axis=1)
    sex = (diabetes.data[:, 1:2] > 0).astype(int)
    yield Table("diabetes", x, sex, diabetes.target, True)
    x, y = datasets.make_classification(
        2_000, 20, n_informative=8, n_classes=3, flip_y=0.05, class_sep=1.5, random_state=seed
    )
    yield _table("made classes", x, y, False)
    x, y = datasets.make_friedman1(2_000, 10, noise=1.0, random_state=seed)
    yield _table("made numbers", x, y, True)


def _table(name: str, x: Any, y: Any, regression: bool) -> Table:
    edges = np.quantile(x[:, 0], [0.2, 0.4, 0.6, 0.8])
    return Table(name, x[:, 1:], np.searchsorted(edges, x[:, :1]), y, regression)


def models(regression: bool, epochs: int, seed: int) -> dict[str, Any]:
    """The estimators to compare, by name."""
    import sklearn.ensemble as trees
    import sklearn.linear_model as lines
    import sklearn.neural_network as theirs

    from .. import sklearn as ours

    options: dict[str, Any] = {"max_iter": epochs, "random_state": seed, "learning_rate_init": 0.005}
    better = {**options, "batch_norm": True, "dropout": 0.1, "average": "swa"}
    if regression:
        return {
            "pyoptim": ours.MLPRegressor(**options),
            "pyoptim, BatchNorm, Dropout, SWA": ours.MLPRegressor(**better),
            "sklearn.neural_network": theirs.MLPRegressor(**options),
            "HistGradientBoosting": trees.HistGradientBoostingRegressor(random_state=seed),
            "linear": lines.Ridge(),
        }
    return {
        "pyoptim": ours.MLPClassifier(**options),
        "pyoptim, BatchNorm, Dropout, SWA": ours.MLPClassifier(**better),
        "sklearn.neural_network": theirs.MLPClassifier(**options),
        "HistGradientBoosting": trees.HistGradientBoostingClassifier(random_state=seed),
        "linear": lines.LogisticRegression(max_iter=1_000),
    }


def measure(table: Table, epochs: int, seed: int) -> Iterator[Score]:
    """Cross-validate each model, in a pipeline with the same columns."""
    from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
    from sklearn.model_selection import KFold, StratifiedKFold, cross_validate
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from threadpoolctl import threadpool_limits

    x, width = np.hstack([table.numbers, table.category]), table.numbers.shape[1]
    folds = (KFold if table.regression else StratifiedKFold)(_FOLDS, shuffle=True, random_state=seed)
    for name, model in models(table.regression, epochs, seed).items():
        if table.regression:
            model = TransformedTargetRegressor(model, transformer=StandardScaler())
        columns = ColumnTransformer(
            [
                ("numbers", StandardScaler(), list(range(width))),
                ("category", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [width]),
            ]
        )
        # One thread for all: on a busy machine OpenMP's threads wait for each other longer than they work.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")  # perceptrons may end before they converge
            found = cross_validate(make_pipeline(columns, model), x, table.target, cv=folds)
        yield Score(table.name, name, found["test_score"], float(np.mean(found["fit_time"])))


def draw(scores: list[Score], path: Any = None) -> Any:
    """Draw, for each table, the scores with their spread, and the seconds of a fit; returns the figure."""
    names = list(dict.fromkeys(score.table for score in scores))
    figure = new_figure(max(3 * len(names), 8), 5.5)
    figure.suptitle(f"Mean score and deviation over {_FOLDS} folds, and the time of a fit")
    panels = figure.subplots(2, len(names), squeeze=False)
    seconds = [score.seconds for score in scores]
    for (upper, lower), name in zip(panels.T, names, strict=True):
        own = [score for score in scores if score.table == name]
        for i, score in enumerate(own):
            look: dict[str, Any] = {"fmt": marker(i), "color": style(i)["color"], "capsize": 4}
            upper.errorbar(i, np.mean(score.scores), np.std(score.scores), label=score.model, **look)
            lower.plot(i, score.seconds, marker(i), color=look["color"])
        upper.set(title=name, xticks=[])
        log_axis(lower, min(seconds) / 1.5, max(seconds) * 1.5)
        lower.set(xticks=[])
        for panel in (upper, lower):
            panel.margins(x=0.15)
            panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("score (accuracy or R²)")
    panels[1][0].set_ylabel("seconds of a fit")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return saved(figure, path)


def main(options: argparse.Namespace) -> int:
    """Run the study."""
    epochs, scores = options.epochs or 100, []
    print(f"tabular: score (accuracy or R²) over {_FOLDS} folds; perceptrons: {epochs} epochs at most")
    print(f"{'':<16}{'':<34}{'score':>8}{'spread':>9}{'s/fit':>9}")
    for table in tables(options.seed):
        for score in measure(table, epochs, options.seed):
            mean, spread = np.mean(score.scores), np.std(score.scores)
            print(
                f"{score.table:<16}{score.model:<34}{mean:>8.3f}{spread:>9.3f}{score.seconds:>9.3f}",
                flush=True,
            )
            scores.append(score)
    draw(scores, options.plot)
    print(f"plot saved to {options.plot}")
    return 0
