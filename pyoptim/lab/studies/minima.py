"""The study of sharp minima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import datasets, diagnostics
from ...callbacks import Callback
from ...optim.elementwise import Adam
from ._common import (
    Curve,
    Options,
    Result,
    Study,
    band,
    difference,
    dots,
    few,
    mean,
    network,
    train,
    trainer,
)

_SMALL, _LARGE = "small batches (8)", "full batch"
_ENOUGH = 0.01  # the training loss at which both end


class _Until(Callback):
    """End the training once the training loss is small enough."""

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        if logs["loss"] < _ENOUGH:
            self.trainer.stop_training = True


def _sharp_minima(options: Options) -> Result:
    """Train with both sizes of batch down to the same training loss (Keskar et al. 2017)."""
    data, words = few(options, 500, 2_000, wrong=0.1)
    curves = [
        train(
            name,
            options,
            data,
            lambda seed: trainer(network(data, 128, 64), lambda p: Adam(p, lr=2e-3), seed),
            lambda: [_Until()],
            batch_size=size,
        )
        for name, size in ((_SMALL, 8), (_LARGE, None))
    ]
    rows = {curve.name: _around(curve, data) for curve in curves}
    setting = f"{words}; ReLU network (128, 64), Adam until the training loss is {_ENOUGH}"
    return Result(setting, rows, _slices(curves, data))


def _around(curve: Curve, data: datasets.Dataset) -> dict[str, Any]:
    """Measure both errors and the sharpness of the minima that a curve's trainings have found."""
    on_training = [each.evaluate(data.x_train, data.y_train) for each in curve.trainers]
    accuracy = np.array([measured["accuracy"] for measured in on_training])
    tests = curve.last("val_accuracy")
    sharp = [
        diagnostics.sharpness(each.model, each.loss, data.x_train[:1000], data.y_train[:1000])
        for each in curve.trainers
    ]
    return {
        "steps": np.array([len(history["loss"]) for history in curve.histories])
        * -(-len(data.x_train) // curve.batch_size),
        "training loss": np.array([measured["loss"] for measured in on_training]),
        "training accuracy": accuracy,
        "test accuracy": tests,
        "gap in accuracy": accuracy - tests,
        "sharpness": np.array([found.keskar for found in sharp]),
    }


def _slices(curves: list[Curve], data: datasets.Dataset) -> dict[str, Any]:
    """Measure the losses on the line from the model of small batches to that of the full one, per seed."""
    found: dict[str, Any] = {}
    for name, x, y in (
        ("training", data.x_train, data.y_train),
        ("test", data.x_test[:1000], data.y_test[:1000]),
    ):
        slices = [
            diagnostics.loss_slice(small.model, small.loss, x, y, other=large.model, points=41)
            for small, large in zip(curves[0].trainers, curves[1].trainers, strict=True)
        ]
        found[name] = np.array([each.losses for each in slices])
        found["along"] = slices[0].along
    return found


def _draw_sharp_minima(result: Result, axes: Sequence[Any]) -> None:
    left, middle, right = axes
    for i, name in enumerate(("training", "test")):
        band(left, result.data["along"], result.data[name], i, f"{name} loss", marker="")
    for at, name in ((0, _SMALL), (1, _LARGE)):
        left.axvline(at, color="0.5", linestyle=":")
        left.annotate(
            name, (at, 0.5), (3, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
            rotation=90, va="center",
        )  # fmt: skip
    left.set(yscale="log", xlabel="place on the line between the two minima", ylabel="loss")
    left.set_title("the loss between the two")
    left.legend(loc="upper center")
    left.grid(alpha=0.3)
    dots(middle, result, "sharpness", "rise of the loss in the box, %")
    middle.set_title("sharpness (Keskar et al.)")
    dots(right, result, "gap in accuracy", "training less test accuracy")
    right.set_title("generalisation gap")


def _say_sharp_minima(result: Result) -> str:
    sharper = difference(result, _LARGE, _SMALL, "sharpness")
    worse = difference(result, _LARGE, _SMALL, "gap in accuracy")
    first = (
        f"The full batch ends in a minimum of sharpness {mean(result, _LARGE, 'sharpness'):.3g} %, small "
        f"batches in one of {mean(result, _SMALL, 'sharpness'):.3g} %, and its gap between training and test "
        f"accuracy is {100 * worse.mean:+.1f} points wider."
    )
    if sharper.is_more and worse.is_more:
        last = "Both are clear over the seeds: large batches find sharper minima here, and generalise worse."
    elif sharper.is_more:
        last = "The minimum is clearly sharper, but that it generalises worse does not show here."
    elif worse.is_more:
        last = "It clearly generalises worse, but that its minimum is sharper does not show here."
    else:
        last = "Neither is clear over the seeds: the claim does not show here."
    return f"{first} {last}"


SHARP_MINIMA = Study(
    "minima that small and large batches find: their sharpness, and how they generalise",
    _sharp_minima,
    _draw_sharp_minima,
    _say_sharp_minima,
    panels=3,
    epochs=300,
    seeds=5,
)
