"""``pyoptim study NAME``: experiments of the lectures, each a table and a plot."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import datasets, nn, schedules
from ..callbacks import ActivationStatistics, Callback
from ..optim.elementwise import SGD, Adam
from ..runtime.figures import new_figure
from ..train.history import History
from ..train.trainer import Trainer


class Options(NamedTuple):
    dataset: str
    epochs: int | None  # None: the number that suits the study
    seed: int
    verbose: bool


class Curve(NamedTuple):
    """One of the trainings that a study compares."""

    name: str
    history: History
    batch_size: int
    extra: Any = None


class Study(NamedTuple):
    """``run`` trains; ``draw`` makes the figure, which by default shows the test loss and accuracy."""

    about: str
    epochs: int
    run: Callable[[Options, int], list[Curve]]
    draw: Callable[[list[Curve]], Any] | None = None


def _train(
    name: str,
    options: Options,
    epochs: int,
    layers: Sequence[nn.Layer],
    make: Callable[[Any], Any],
    batch_size: int | None = 60,
    callbacks: Callable[[datasets.Dataset], Sequence[Callback]] = lambda data: (),
    normalize: bool = True,
) -> Curve:
    data = datasets.load(options.dataset, flatten=True, normalize=normalize)
    model = nn.Sequential(*layers, seed=options.seed)
    trainer = Trainer(model, nn.CrossEntropy(), make(model.parameters()), seed=options.seed)
    if options.verbose:
        print(f"training: {name}", flush=True)
    chosen = callbacks(data)
    with np.errstate(all="ignore"):  # some of these trainings are meant to diverge
        history = trainer.fit(
            data.x_train,
            data.y_train,
            epochs=epochs,
            batch_size=batch_size,
            validation_data=(data.x_test, data.y_test),
            callbacks=chosen,
            verbose=False,
        )
    return Curve(name, history, batch_size or len(data.x_train), chosen)


def _sizes(options: Options, *hidden: int) -> list[tuple[int, int]]:
    data = datasets.load(options.dataset, flatten=True)
    return list(pairwise([data.x_train.shape[1], *hidden, int(data.y_train.max()) + 1]))


def _relu_network(options: Options, *hidden: int) -> list[nn.Layer]:
    *inner, last = _sizes(options, *hidden)
    return [*(nn.Dense(a, b, activation="relu", init="he") for a, b in inner), nn.Dense(*last)]


def _batch_sizes(options: Options, epochs: int) -> list[Curve]:
    return [
        _train(f"batch size {size or 'full'}", options, epochs, _relu_network(options, 256, 128), Adam, size)
        for size in (1, 10, 32, 128, 1024, None)
    ]


def _batch_norm(options: Options, epochs: int) -> list[Curve]:
    """Three hidden layers of 100 sigmoids (Ioffe & Szegedy 2015, sec. 4.1)."""
    curves = []
    for with_norm in (False, True):
        layers: list[nn.Layer] = []
        *inner, last = _sizes(options, 100, 100, 100)
        for a, b in inner:
            layers += [nn.Dense(a, b), *([nn.BatchNorm(b)] if with_norm else []), nn.Sigmoid()]
        watched = len(layers) - 1  # the last sigmoid's input
        curves.append(
            _train(
                "with BatchNorm" if with_norm else "without",
                options,
                epochs,
                [*layers, nn.Dense(*last)],
                lambda p: SGD(p, lr=0.1),
                callbacks=lambda data, layer=watched: [  # type: ignore[misc]
                    ActivationStatistics(data.x_test[:500], layer, unit=0, every=20)
                ],
            )
        )
    return curves


def _draw_batch_norm(curves: list[Curve]) -> Any:
    figure = new_figure(12, 4)
    panels = figure.subplots(1, 3)
    _lines(panels[0], curves, "val_accuracy", "test accuracy")
    panels[0].legend()
    panels[2].sharey(panels[1])
    for axes, curve in zip(panels[1:], curves, strict=True):
        statistics_ = curve.extra[0]
        values = np.array(statistics_.values)
        for percentile, line in zip(statistics_.percentiles, values.T, strict=True):
            axes.plot(statistics_.steps, line, label=f"{percentile}th percentile")
        axes.set(title=curve.name, xlabel="steps", ylabel="input of a unit of the last sigmoid layer")
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def _raw_pixels(options: Options, epochs: int) -> list[Curve]:
    (first, last) = _sizes(options, 100)
    curves = []
    for with_norm in (False, True):
        norm = [nn.BatchNorm(100)] if with_norm else []
        name = "BatchNorm after ReLU" if with_norm else "without"
        layers = [nn.Dense(*first), nn.ReLU(), *norm, nn.Dense(*last)]
        curves.append(_train(name, options, epochs, layers, lambda p: SGD(p, lr=0.01), normalize=False))
    return curves


def _learning_rates(options: Options, epochs: int) -> list[Curve]:
    return [
        _train(f"lr {lr:g}", options, epochs, _relu_network(options, 100), lambda p, lr=lr: SGD(p, lr=lr))  # type: ignore[misc]
        for lr in (0.5, 0.05, 0.0003)
    ]


def _schedules(options: Options, epochs: int) -> list[Curve]:
    data = datasets.load(options.dataset, flatten=True)
    steps = epochs * -(-len(data.x_train) // 60)
    compared: dict[str, schedules.Schedule] = {
        "constant": schedules.Constant(0.3),
        "inverse time": schedules.InverseTime(0.3, decay=10 / steps),
        "exponential": schedules.Exponential(0.3, rate=0.01, steps=steps),
        "step": schedules.Step(0.3, every=max(1, steps // 3)),
        "cosine": schedules.Cosine(0.3, steps=steps),
        "one-cycle": schedules.OneCycle(0.6, steps=steps),
        "warm-up, then cosine": schedules.WarmUp(schedules.Cosine(0.3, steps=steps), steps=steps // 10),
    }
    return [
        _train(name, options, epochs, _relu_network(options, 100), lambda p, lr=lr: SGD(p, lr=lr))  # type: ignore[misc]
        for name, lr in compared.items()
    ]


STUDIES = {
    "batch-size": Study(
        "batch size against time and accuracy", 5, _batch_sizes, lambda curves: draw(curves, over_time=True)
    ),
    "batch-norm": Study(
        "sigmoid networks with and without BatchNorm: accuracy, and percentiles of a unit's input",
        10,
        _batch_norm,
        _draw_batch_norm,
    ),
    "raw-pixels": Study(
        "pixels from 0 to 255, one hidden layer of 100, with and without BatchNorm", 5, _raw_pixels
    ),
    "learning-rate": Study("learning rates 0.5, 0.05 and 0.0003", 5, _learning_rates),
    "schedules": Study("learning-rate schedules compared", 5, _schedules),
}


def table(curves: Sequence[Curve]) -> str:
    """Print a line for each training."""
    lines = [f"{'':<24}{'batch':>7}{'s/epoch':>10}{'loss':>10}{'test loss':>11}{'test acc':>10}{'best':>9}"]
    for curve in curves:
        h = curve.history
        lines.append(
            f"{curve.name:<24}{curve.batch_size:>7}{statistics.median(h['seconds']):>10.3f}"
            f"{h['loss'][-1]:>10.4f}{h['val_loss'][-1]:>11.4f}{h['val_accuracy'][-1]:>10.2%}"
            f"{max(h['val_accuracy']):>9.2%}"
        )
    return "\n".join(lines)


def draw(curves: list[Curve], over_time: bool = False) -> Any:
    """Draw the test loss and the test accuracy."""
    figure = new_figure(11, 4)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _lines(axes, curves, f"val_{name}", f"test {name}", over_time)
    axes = figure.axes[0]
    axes.set_yscale("log")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _lines(axes: Any, curves: Sequence[Curve], name: str, label: str, over_time: bool = False) -> None:
    for curve in curves:
        values = curve.history[name]
        at = np.cumsum(curve.history["seconds"]) if over_time else np.arange(len(values)) + 1
        axes.plot(at, values, marker="o", markersize=3, label=curve.name)
    axes.set(xlabel="seconds of training" if over_time else "epoch", ylabel=label)
    if over_time:
        axes.set_xscale("log")
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def main(options: argparse.Namespace) -> int:
    """Run the study that the command line names."""
    study = STUDIES[options.study]
    chosen = Options(options.dataset, options.epochs, options.seed, True)
    print(f"{options.study}: {study.about}; {options.dataset}")
    few = options.dataset == "digits"  # it has a fortieth of the examples that the others have
    curves = study.run(chosen, options.epochs or study.epochs * (5 if few else 1))
    print(table(curves))
    (study.draw or draw)(curves).savefig(options.plot, dpi=120)
    print(f"plot saved to {options.plot}")
    return 0
