"""The studies of curvature: what it does to the steps of a training, and methods that know it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import datasets, diagnostics, nn
from ...callbacks import Callback
from ...optim.elementwise import SGD, Adam
from ...runtime.dtypes import Array
from ...train.minimizing import minimize
from ...train.objective import Objective
from ...train.trainer import Trainer
from ._common import (
    Options,
    Result,
    Study,
    band,
    difference,
    dots,
    legend_below,
    load,
    mean,
    train,
    trainer,
)

_RATE = 0.1
_PLAIN, _NORMED = "without BatchNorm", "with BatchNorm"


class _Path(Callback):
    """Measure the curvature along the gradient on some examples, at the begin and after each epoch."""

    def __init__(self, data: datasets.Dataset) -> None:
        self._x, self._y = data.x_train[:250], data.y_train[:250]
        self.found: list[diagnostics._curvature.Curvature] = []

    def on_train_begin(self) -> None:
        self._measure()

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        self._measure()

    def _measure(self) -> None:
        self.found.append(
            diagnostics.curvature(self.trainer.model, self.trainer.loss, self._x, self._y, points=1)
        )

    def values(self, name: str) -> list[float]:
        """Return what was measured under this name."""
        return [getattr(each, name) for each in self.found]


def _curvature(options: Options) -> Result:
    """Follow ``g^T g`` and ``g^T H g`` through trainings (Goodfellow et al., section 8.2.1)."""
    data, curves = load(options, 5_000), []
    for name in (_PLAIN, _NORMED):

        def make(seed: int, norm: bool = name == _NORMED) -> Any:
            return trainer(_tanh_network(data, norm), lambda p: SGD(p, lr=_RATE), seed)

        curves.append(train(name, options, data, make, lambda: [_Path(data)], batch_size=32))
    found = {
        curve.name: {
            key: np.array([callbacks[0].values(key) for callbacks in curve.callbacks])
            for key in ("loss", "gradient_squared", "curvature", "largest_step")
        }
        for curve in curves
    }
    rows = {}
    for curve in curves:
        path = found[curve.name]
        rows[curve.name] = {
            **{
                f"g.g {word}": path["gradient_squared"][:, at]
                for word, at in (("at first", 0), ("at last", -1))
            },
            "g.Hg/g.g at first": path["curvature"][:, 0] / path["gradient_squared"][:, 0],
            "at most": (path["curvature"] / path["gradient_squared"]).max(axis=1),
            "at last": path["curvature"][:, -1] / path["gradient_squared"][:, -1],
            "least largest step": np.where(path["largest_step"] > 0, path["largest_step"], np.inf).min(
                axis=1
            ),
            "loss at last": path["loss"][:, -1],
            "test accuracy": curve.last("val_accuracy"),
        }
    return Result(f"{options.dataset}, tanh network (64, 64, 64), SGD at {_RATE}, batches of 32", rows, found)


def _tanh_network(data: datasets.Dataset, norm: bool) -> list[nn.Layer]:
    layers: list[nn.Layer] = []
    inputs = data.x_train.shape[1]
    for _ in range(3):
        layers += [nn.Dense(inputs, 64), *([nn.BatchNorm(64)] if norm else []), nn.Tanh()]
        inputs = 64
    return [*layers, nn.Dense(64, int(data.y_train.max()) + 1)]


def _draw_curvature(result: Result, axes: Sequence[Any]) -> None:
    shown = (
        ("loss", "training loss", "loss"),
        ("gradient_squared", "the gradient's square, g·g", "g·g"),
        ("ratio", "curvature along the gradient", "g·Hg / g·g"),
    )
    for panel, (key, title, label) in zip(axes, shown, strict=True):
        for i, (name, path) in enumerate(result.data.items()):
            values = path["curvature"] / path["gradient_squared"] if key == "ratio" else path[key]
            band(panel, np.arange(values.shape[1]), values, i, name)
        panel.set(xlabel="epoch", ylabel=label, title=title, yscale="log")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    axes[2].axhline(2 / _RATE, color="0.4", linestyle="--", label=f"2/lr: beyond, a step of {_RATE} climbs")
    legend_below(axes[2])


def _say_curvature(result: Result) -> str:
    def ratio(row: str) -> float:
        return mean(result, row, "at most") / mean(result, row, "g.Hg/g.g at first")

    sharpens = ratio(_PLAIN)
    stays = mean(result, _PLAIN, "g.g at last") > 0.1 * mean(result, _PLAIN, "g.g at first")
    words = [
        f"Without BatchNorm the curvature along the gradient grows to {sharpens:.2g} times what it was at "
        f"first, and g.g goes from {mean(result, _PLAIN, 'g.g at first'):.2g} to "
        f"{mean(result, _PLAIN, 'g.g at last'):.2g}."
    ]
    words.append(
        "The loss is ill-conditioned: the steps that descend become shorter on the way."
        if sharpens > 2
        else "That the loss becomes ill-conditioned on the way does not show here."
    )
    if not stays:
        words.append("The gradient does become small, so it is near a minimum at the end.")
    least = difference(result, _NORMED, _PLAIN, "at most")
    words.append(
        f"With BatchNorm the most is {mean(result, _NORMED, 'at most'):.3g} against "
        f"{mean(result, _PLAIN, 'at most'):.3g} without"
        + (
            ": clearly less, so larger learning rates are possible."
            if least.is_less
            else ": that BatchNorm makes the loss less curved does not show here."
        )
    )
    return " ".join(words)


CURVATURE = Study(
    "curvature along the gradient in the course of a training",
    _curvature,
    _draw_curvature,
    _say_curvature,
    panels=3,
    epochs=4,
)


class _Trace(NamedTuple):
    """The objective at the begin and after each epoch or iteration, over the seconds of training."""

    seconds: Array
    objective: Array
    accuracy: float

    def reached(self, value: float) -> float:
        """The seconds until the objective was this small; infinite where it never was."""
        there = np.flatnonzero(self.objective <= value)
        return float(self.seconds[there[0]]) if len(there) else float("inf")


class _Objectives(Callback):
    """The objective of all examples, at the begin and after each epoch."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.values = [objective.value(objective.parameters)]

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        self.values.append(self._objective.value(self._objective.parameters))


_PENALTY = nn.Penalty(l2=1e-3)
_CLOSE = 1.05  # times the least objective that any method has reached
# SciPy's methods by name, and Adam's sizes of batch with learning rates.
_METHODS = {
    "Adam, batches of 32": (32, 1e-3),
    "Adam, full batch": (None, 1e-2),
    "L-BFGS": "L-BFGS-B",
    "conjugate gradients": "CG",
    "Newton, trust region": "trust-krylov",
}


def _second_order(options: Options) -> Result:
    """Minimise the same objective, all examples and a penalty, by `minimize` and by Adam."""
    data = load(options, 2_000)
    traces: dict[str, list[_Trace]] = {}
    for name, method in _METHODS.items():
        if options.verbose:
            print(f"training: {name}", flush=True)
        run = _by_minimize if isinstance(method, str) else _by_adam
        traces[name] = [run(data, seed, method, options.epochs) for seed in options.seeds]
    best = np.min([[run.objective.min() for run in runs] for runs in traces.values()], axis=0)
    rows = {
        name: {
            "objective": np.array([run.objective[-1] for run in runs]),
            "seconds": np.array([run.seconds[-1] for run in runs]),
            "seconds to the best": np.array(
                [run.reached(_CLOSE * least) for run, least in zip(runs, best, strict=True)]
            ),
            "test accuracy": np.array([run.accuracy for run in runs]),
        }
        for name, runs in traces.items()
    }
    setting = (
        f"{options.dataset}, {len(data.x_train):,} examples; tanh network (32,), penalty l2={_PENALTY.l2}"
    )
    return Result(setting, rows, {"traces": traces, "best": best})


def _small_network(data: datasets.Dataset, seed: int) -> nn.Sequential:
    inputs, classes = data.x_train.shape[1], int(data.y_train.max()) + 1
    layers = [nn.Dense(inputs, 32, activation="tanh"), nn.Dense(32, classes)]
    return nn.Sequential(*layers, seed=seed, dtype=np.float64)


def _by_adam(data: datasets.Dataset, seed: int, method: Any, epochs: int) -> _Trace:
    size, lr = method
    model, loss = _small_network(data, seed), nn.CrossEntropy()
    training = Trainer(model, loss, Adam(model.parameters(), lr=lr), seed=seed, penalty=_PENALTY)
    watch = _Objectives(Objective(model, loss, data.x_train, data.y_train, _PENALTY))
    history = training.fit(
        data.x_train,
        data.y_train,
        epochs=4 * epochs,  # as many passes over the examples as iterations of the other methods
        batch_size=size,
        callbacks=[watch],
        verbose=False,
    )
    seconds = np.cumsum([0.0, *history["seconds"]])
    return _Trace(seconds, np.array(watch.values), training.evaluate(data.x_test, data.y_test)["accuracy"])


def _by_minimize(data: datasets.Dataset, seed: int, method: Any, epochs: int) -> _Trace:
    model, loss = _small_network(data, seed), nn.CrossEntropy()
    arrays = data.x_train, data.y_train
    objective = Objective(model, loss, *arrays, _PENALTY)
    first = objective.value(objective.parameters)
    history = minimize(
        model,
        loss,
        *arrays,
        method,
        penalty=_PENALTY,
        validation_data=(data.x_test, data.y_test),
        # An iteration of Newton's method solves a system by some ten products with the Hessian.
        max_iter=-(-epochs // 8) if method == "trust-krylov" else 4 * epochs,
        verbose=False,
    )
    seconds = np.cumsum([0.0, *history["seconds"]])
    return _Trace(seconds, np.array([first, *history["loss"]]), history["val_accuracy"][-1])


def _draw_second_order(result: Result, axes: Sequence[Any]) -> None:
    best = result.data["best"]
    for i, (name, runs) in enumerate(result.data["traces"].items()):
        ends = min(run.seconds[-1] for run in runs)
        grid = np.geomspace(max(run.seconds[1] for run in runs), ends, 60)
        above = [
            np.interp(grid, run.seconds, run.objective) / least - 1
            for run, least in zip(runs, best, strict=True)
        ]
        band(axes[0], grid, np.maximum(above, 1e-6), i, name, marker="")
    axes[0].set(
        xscale="log", yscale="log", xlabel="seconds of training", ylabel="objective above the best, relative"
    )
    axes[0].set_title("training objective")
    axes[0].grid(alpha=0.3)
    dots(axes[1], result, "test accuracy", "test accuracy")
    axes[1].set_title("test accuracy at the end")
    values = np.concatenate([np.atleast_1d(row["test accuracy"]) for row in result.rows.values()])
    axes[1].set_ylim(values.min() - 0.02, min(1, values.max() + 0.01))
    legend_below(axes[0])


def _say_second_order(result: Result) -> str:
    def seconds(names: Iterable[str]) -> dict[str, float]:
        return {name: mean(result, name, "seconds to the best") for name in names}

    first = seconds(name for name, method in _METHODS.items() if not isinstance(method, str))
    second = seconds(name for name, method in _METHODS.items() if isinstance(method, str))
    quickest, adam = min(second, key=lambda name: second[name]), min(first, key=lambda name: first[name])
    if np.isinf(second[quickest]):
        words = (
            "No second-order method comes within 5 % of the best objective for all seeds: that second order "
            "is faster does not show here."
        )
    elif np.isinf(first[adam]):
        words = (
            f"{quickest} comes within 5 % of the best objective in {second[quickest]:.2g} s, which Adam does "
            "not reach for all seeds: on a deterministic objective second order wins."
        )
    else:
        ratio = first[adam] / second[quickest]
        words = (
            f"{quickest} comes within 5 % of the best objective in {second[quickest]:.2g} s, "
            f"{adam} in {first[adam]:.2g} s: "
            + (f"{ratio:.2g} times as fast." if ratio > 1 else "second order is not faster here.")
        )
    tests = difference(result, quickest, adam, "test accuracy")
    if tests.is_clear:
        return f"{words} Its test accuracy differs by {100 * tests.mean:+.1f} points."
    return f"{words} Their test accuracy does not differ clearly."


SECOND_ORDER = Study(
    "second-order methods and Adam on the same objective",
    _second_order,
    _draw_second_order,
    _say_second_order,
    epochs=16,
)
