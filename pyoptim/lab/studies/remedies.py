"""The study of what keeps a network from learning its examples by heart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import datasets, nn
from ...callbacks import EarlyStopping
from ...optim.elementwise import Adam
from ...transforms import Noise, Shift
from ._common import (
    Curve,
    Options,
    Result,
    Study,
    band,
    difference,
    few,
    legend_below,
    listed,
    mean,
    network,
    style,
    train,
    trainer,
)

_NONE = "none"
_HIDDEN = (256, 128)


class _Way(NamedTuple):
    """A way to regularise: what it adds to the trainer, to `fit`, and to the layers."""

    trainer: dict[str, Any] = {}  # noqa: RUF012
    fit: dict[str, Any] = {}  # noqa: RUF012
    dropout: float = 0.0
    stops: bool = False


def _ways(data: datasets.Dataset) -> dict[str, _Way]:
    side = round(data.x_train.shape[1] ** 0.5)
    shift = Shift(max(1, side // 12), shape=(1, side, side))
    return {
        _NONE: _Way(),
        "norm penalty": _Way({"penalty": nn.Penalty(l2=1e-2)}),
        "augmentation": _Way(fit={"transform": shift}),
        "noise on inputs": _Way(fit={"transform": Noise(0.3)}),
        "noise on weights": _Way(fit={"weight_noise": 0.1}),
        "label smoothing": _Way({"loss": nn.CrossEntropy(label_smoothing=0.1)}),
        "dropout": _Way(dropout=0.5),
        "early stopping": _Way(stops=True),
    }


def _regularization(options: Options) -> Result:
    """Train a network that is too large for few examples, with each of seven ways and without."""
    data, words = few(options, 300, 1_000, wrong=0.15)
    curves = [_trained(name, way, options, data) for name, way in _ways(data).items()]
    rows: dict[str, dict[str, Any]] = {}
    for curve in curves:
        plain = [_plainly(each) for each in curve.trainers]
        on_training = np.array([each.evaluate(data.x_train, data.y_train)["accuracy"] for each in plain])
        on_test = [each.evaluate(data.x_test, data.y_test) for each in plain]
        accuracy = np.array([found["accuracy"] for found in on_test])
        rows[curve.name] = {
            "training accuracy": on_training,
            "test accuracy": accuracy,
            "gap in accuracy": on_training - accuracy,
            "test loss": np.array([found["loss"] for found in on_test]),
        }
    return Result(f"{words}; ReLU network {_HIDDEN}, Adam", rows, curves)


def _plainly(trained: Any) -> Any:
    """Have the trainer measure the loss of all ways alike: without label smoothing."""
    trained.loss = nn.CrossEntropy()
    return trained


def _trained(name: str, way: _Way, options: Options, data: datasets.Dataset) -> Curve:
    def make(seed: int) -> Any:
        layers: list[nn.Layer] = []
        for layer in network(data, *_HIDDEN):
            layers += [layer, nn.Dropout(way.dropout)] if way.dropout else [layer]
        return trainer(
            layers[:-1] if way.dropout else layers, lambda p: Adam(p, lr=2e-3), seed, **way.trainer
        )

    def stops() -> list[EarlyStopping]:
        return [EarlyStopping("val_loss", patience=10, restore_best_weights=True)] if way.stops else []

    held = {}
    if way.stops:  # it may not look at the test set: a fifth of the examples is held back for it
        kept = len(data.x_train) * 4 // 5
        held = {"validation_data": (data.x_train[kept:], data.y_train[kept:])}
        data = data._replace(x_train=data.x_train[:kept], y_train=data.y_train[:kept])
    return train(name, options, data, make, stops, **{"batch_size": 32, **held, **way.fit})


def _draw_regularization(result: Result, axes: Sequence[Any]) -> None:
    left, right = axes
    order = sorted(result.rows, key=lambda name: mean(result, name, "test accuracy"))
    numbers = {name: i for i, name in enumerate(result.rows)}
    for place, name in enumerate(order):
        values = 1 - np.atleast_1d(result.rows[name]["test accuracy"])
        left.barh(place, values.mean(), 0.6, color=style(numbers[name])["color"], alpha=0.35)
        left.plot(values, np.full(len(values), place), "o", color=style(numbers[name])["color"], markersize=4)
    left.axvline(1 - mean(result, _NONE, "test accuracy"), color="0.3", linestyle="--", linewidth=1)
    left.set_yticks(range(len(order)), order)
    left.set(xlabel="test error", title="test error (line: without any)")
    left.grid(alpha=0.3, axis="x")
    for curve in result.data:
        if curve.name != "early stopping":  # what it watched is no test set
            values = curve.values("val_accuracy")
            band(right, np.arange(values.shape[1]) + 1, values, numbers[curve.name], curve.name, marker="")
    right.set(xlabel="epoch", ylabel="test accuracy", title="test accuracy in the course of training")
    low = min(np.median(curve.values("val_accuracy")) for curve in result.data)
    right.set_ylim(bottom=max(0, low - 0.1))
    right.grid(alpha=0.3)
    legend_below(right)


def _say_regularization(result: Result) -> str:
    ways = [name for name in result.rows if name != _NONE]
    against = {name: difference(result, name, _NONE, "test accuracy") for name in ways}
    losses = {name: difference(result, name, _NONE, "test loss") for name in ways}
    better = sorted((name for name in ways if against[name].is_more), key=lambda name: -against[name].mean)
    worse = [name for name in ways if against[name].is_less]
    words = [
        f"Without any, the network is right on {mean(result, _NONE, 'training accuracy'):.1%} of its "
        f"examples and on {mean(result, _NONE, 'test accuracy'):.1%} of the test set."
    ]
    if better:
        gains = listed(f"{name} ({100 * against[name].mean:+.1f} points)" for name in better)
        words.append(f"Clearly better in the test {'is' if len(better) == 1 else 'are'} {gains}.")
    else:
        words.append("That any of the seven makes it clearly better does not show here.")
    rest = [name for name in ways if name not in better and name not in worse]
    if better and rest:
        words.append(f"No clear gain in accuracy shows for {listed(rest)}.")
    if worse:
        words.append(f"Clearly worse {'is' if len(worse) == 1 else 'are'} {listed(worse)}.")
    calmer = [name for name in ways if losses[name].is_less]
    words.append(f"The test loss is clearly less with {listed(calmer)}.")
    return " ".join(words)


REGULARIZATION = Study(
    "seven ways to regularise a network that is too large for few examples, and none",
    _regularization,
    _draw_regularization,
    _say_regularization,
    epochs=12,
    seeds=5,
)
