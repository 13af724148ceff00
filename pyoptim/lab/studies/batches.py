"""The study of batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...optim.elementwise import Adam
from ...runtime.dtypes import Array
from ._common import (
    Curve,
    Options,
    Result,
    Study,
    band,
    curves_table,
    legend_below,
    load,
    network,
    train,
    trainer,
)

_MOST = 10_000  # examples, so that the full batch can take its steps in a minute
_STEPS = 200  # that each training takes at least: large batches get more epochs
_UNITS = ("examples", "steps", "seconds")


def _batch_size(options: Options) -> Result:
    data, curves = load(options, _MOST), []
    count = len(data.x_train)
    for size in (1, 10, 32, 128, 1024, None):
        batches = -(-count // (size or count))
        epochs = max(options.epochs, -(-_STEPS // batches))

        def make(seed: int) -> Any:
            return trainer(network(data, 128), Adam, seed)

        name = f"batch size {size or 'full'}"
        curves.append(train(name, options, data, make, batch_size=size, epochs=epochs))
    rows = curves_table(curves)
    for curve in curves:
        batches = -(-count // curve.batch_size)
        rows[curve.name] |= {"steps": batches * curve.values("loss").shape[1]}
    return Result(
        f"{options.dataset}, {count:,} examples, ReLU network (128,), Adam; {_STEPS} steps at least",
        rows,
        (curves, count),
    )


def _spent(curve: Curve, count: int) -> dict[str, Array]:
    """Return the examples, the steps and the seconds after each epoch."""
    epochs = np.arange(curve.values("loss").shape[1]) + 1
    return {
        "examples": count * epochs,
        "steps": -(-count // curve.batch_size) * epochs,
        "seconds": np.cumsum(np.median(curve.values("seconds"), axis=0)),
    }


def _draw(result: Result, axes: Sequence[Any]) -> None:
    curves, count = result.data
    for panel, unit in zip(axes, _UNITS, strict=True):
        for i, curve in enumerate(curves):
            band(panel, _spent(curve, count)[unit], curve.values("val_loss"), i, curve.name)
        panel.set(xlabel=f"{unit} of training", ylabel="test loss", xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    legend_below(axes[0])


def _conclusion(result: Result) -> str:
    """Say which size reaches a loss first that all of them reach."""
    curves, count = result.data
    losses = {curve.name: curve.values("val_loss").mean(axis=0) for curve in curves}
    target = max(float(np.nanmin(values)) for values in losses.values())
    first: dict[str, tuple[str, float]] = {}
    for unit in _UNITS:
        spent = {
            curve.name: float(_spent(curve, count)[unit][np.argmax(losses[curve.name] <= target)])
            for curve in curves
        }
        name = min(spent, key=spent.__getitem__)
        first[unit] = name, spent[name]
    words = [f"the fewest {unit} with {name} ({value:,.3g})" for unit, (name, value) in first.items()]
    text = f"A test loss of {target:.3g}, which all reach, takes {words[0]}, {words[1]}, and {words[2]}."
    small, large = first["examples"][0], first["steps"][0]
    if small != large:
        text += " So the best size depends on what is scarce: a small batch makes more of an example."
    return text


BATCH_SIZE = Study(
    "the loss over examples, steps and seconds, with batches of several sizes",
    _batch_size,
    _draw,
    _conclusion,
    panels=3,
)
