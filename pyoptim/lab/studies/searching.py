"""The study of searches for hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import datasets, nn
from ...optim.elementwise import SGD
from ...runtime.extras import needed
from ._common import (
    Options,
    Result,
    Study,
    band,
    difference,
    listed,
    load,
    mean,
    network,
    trainer,
)

_SIDE = 5  # of the grid
_BUDGET = _SIDE**2
_RATES, _DECAYS = (1e-4, 3.0), (1e-7, 1e-2)  # in which learning rate and penalty are searched
_GRID, _RANDOM, _BAYES = "grid", "random", "Bayesian (TPE)"


class _Trial(NamedTuple):
    """A training with one choice of hyperparameters; errors are shares that are wrong."""

    rate: float
    decay: float
    validation: float
    test: float


_Objective = Callable[[float, float], _Trial]


def _search(options: Options) -> Result:
    """Give each search as many trainings, and compare what it finds."""
    optuna = needed("optuna", "the study search needs Optuna", "pyoptim[optuna]")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = load(options, 1_000 if options.dataset == "digits" else 3_000)
    searches: dict[str, Callable[[_Objective, int], Sequence[_Trial]]] = {
        _GRID: lambda objective, seed: [objective(*point) for point in _grid(seed)],
        _RANDOM: lambda objective, seed: [objective(*point) for point in _random(seed)],
        _BAYES: lambda objective, seed: _bayesian(optuna, objective, seed),
    }
    found: dict[str, list[Sequence[_Trial]]] = {}
    for name, search in searches.items():
        if options.verbose:
            print(f"training: {name}", flush=True)
        found[name] = [search(_objective(data, options.epochs, seed), seed) for seed in options.seeds]
    rows = {}
    for name, runs in found.items():
        best = [min(trials, key=lambda trial: trial.validation) for trials in runs]
        rows[name] = {
            "trainings": _BUDGET,
            "learning rates tried": len({trial.rate for trial in runs[0]}),
            "best validation error": np.array([trial.validation for trial in best]),
            "its test error": np.array([trial.test for trial in best]),
            "median validation error": np.array(
                [np.median([trial.validation for trial in trials]) for trials in runs]
            ),
            "learning rate found": np.array([trial.rate for trial in best]),
        }
    setting = f"{options.dataset}; ReLU network (64,), SGD with momentum, {options.epochs} epochs"
    return Result(f"{setting}; {_BUDGET} trainings for each search", rows, found)


def _objective(data: datasets.Dataset, epochs: int, seed: int) -> _Objective:
    """Return a training on four fifths of the examples, which is scored on the last fifth."""
    kept = len(data.x_train) * 4 // 5
    held = data.x_train[kept:], data.y_train[kept:]

    def objective(rate: float, decay: float) -> _Trial:
        penalty = nn.Penalty(l2=decay)
        made = trainer(network(data, 64), lambda p: SGD(p, lr=rate, momentum=0.9), seed, penalty=penalty)
        with np.errstate(all="ignore"):  # some rates are too large
            made.fit(data.x_train[:kept], data.y_train[:kept], epochs=epochs, verbose=False)
            wrong = [1 - made.evaluate(*part)["accuracy"] for part in (held, (data.x_test, data.y_test))]
        return _Trial(rate, decay, *wrong)

    return objective


def _grid(seed: int) -> Iterator[tuple[float, float]]:
    """All pairs of rates and decays that are spaced evenly, in a random order."""
    rates, decays = (np.geomspace(*ends, _SIDE) for ends in (_RATES, _DECAYS))
    for place in np.random.default_rng(seed).permutation(_BUDGET):
        yield float(rates[place // _SIDE]), float(decays[place % _SIDE])


def _random(seed: int) -> Iterator[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    for _ in range(_BUDGET):
        rate, decay = (float(np.exp(rng.uniform(*np.log(ends)))) for ends in (_RATES, _DECAYS))
        yield rate, decay


def _bayesian(optuna: Any, objective: _Objective, seed: int) -> list[_Trial]:
    trials: list[_Trial] = []

    def measured(trial: Any) -> float:
        rate = trial.suggest_float("learning rate", *_RATES, log=True)
        trials.append(objective(rate, trial.suggest_float("penalty", *_DECAYS, log=True)))
        return trials[-1].validation

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
    optuna.create_study(sampler=sampler).optimize(measured, n_trials=_BUDGET)
    return trials


def _draw_search(result: Result, axes: Sequence[Any]) -> None:
    errors = [trial.validation for runs in result.data.values() for trial in runs[0]]
    low, high = min(errors), max(errors)
    for panel, (name, runs) in zip(axes, result.data.items(), strict=False):
        trials = runs[0]
        points = panel.scatter(
            [trial.rate for trial in trials],
            [trial.decay for trial in trials],
            c=[max(trial.validation, 1e-3) for trial in trials],
            cmap="viridis_r",
            norm=_log_norm(max(low, 1e-3), max(high, 2e-3)),
            s=55,
            edgecolors="0.3",
        )
        best = min(trials, key=lambda trial: trial.validation)
        panel.plot(best.rate, best.decay, marker="*", markersize=20, color="#D55E00", markeredgecolor="white")
        for trial in trials:  # what is seen of the coordinate that matters
            panel.plot(trial.rate, 0, "|", color="0.2", markersize=12, transform=panel.get_xaxis_transform())
        panel.set(
            xscale="log", yscale="log", xlim=(_RATES[0] / 2, _RATES[1] * 2), title=f"{name}, first seed"
        )
        panel.set(xlabel="learning rate", ylabel="penalty l2")
    axes[2].get_figure().colorbar(points, ax=axes[2], label="validation error (star: the best)")
    for i, (name, runs) in enumerate(result.data.items()):
        values = [np.minimum.accumulate([trial.validation for trial in trials]) for trials in runs]
        band(axes[3], np.arange(_BUDGET) + 1, values, i, name, marker="")
    axes[3].set(xlabel="trainings", ylabel="best validation error so far", yscale="log")
    axes[3].set_title("means and ranges over the seeds")
    axes[3].grid(alpha=0.3)
    axes[3].legend()


def _log_norm(low: float, high: float) -> Any:
    return needed("matplotlib.colors", "plots need matplotlib", "pyoptim[plot]").LogNorm(low, high)


def _say_search(result: Result) -> str:
    def best(name: str) -> float:
        return mean(result, name, "best validation error")

    words = [
        f"Of {_BUDGET} trainings the best has a validation error of "
        f"{listed(f'{best(name):.2%} ({name})' for name in result.rows)}."
    ]
    for claim, name, other in (
        ("random search finds better than the grid", _RANDOM, _GRID),
        ("Bayesian search finds better than a random one", _BAYES, _RANDOM),
    ):
        less = difference(result, name, other, "best validation error")
        words.append(f"That {claim} {'shows' if less.is_less else 'does not show'} here.")
    wasted = difference(result, _BAYES, _RANDOM, "median validation error")
    if wasted.is_less:
        words.append(
            f"The trainings of the Bayesian search are better spent: their median error is "
            f"{mean(result, _BAYES, 'median validation error'):.1%} against "
            f"{mean(result, _RANDOM, 'median validation error'):.1%} of random ones."
        )
    return " ".join(words)


SEARCH = Study(
    "searches for the learning rate and the penalty: a grid, at random, and Bayesian",
    _search,
    _draw_search,
    _say_search,
    panels=4,
    epochs=2,
    seeds=5,
)
