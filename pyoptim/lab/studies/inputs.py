"""The studies of what layers get as inputs: BatchNorm, and pixels as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import datasets, nn
from ...callbacks import ActivationStatistics
from ...optim.elementwise import SGD
from ._common import (
    Options,
    Result,
    Study,
    band,
    curves_table,
    draw_curves,
    legend_below,
    load,
    mean,
    network,
    train,
    trainer,
)


def _batch_norm(options: Options) -> Result:
    """Three hidden layers of 100 sigmoids (Ioffe & Szegedy 2015, sec. 4.1)."""
    data, curves = load(options), []
    for with_norm in (False, True):
        watched = 8 if with_norm else 5  # the last sigmoid's input

        def make(seed: int, with_norm: bool = with_norm) -> Any:
            return trainer(_sigmoids(data, with_norm), lambda p: SGD(p, lr=0.1), seed)

        def watch(layer: int = watched) -> list[ActivationStatistics]:
            return [ActivationStatistics(data.x_test[:500], layer, unit=0, every=20)]

        curves.append(train("with BatchNorm" if with_norm else "without", options, data, make, watch))
    return Result(f"{options.dataset}, sigmoid network (100, 100, 100), SGD", curves_table(curves), curves)


def _sigmoids(data: datasets.Dataset, with_norm: bool) -> list[nn.Layer]:
    layers: list[nn.Layer] = []
    inputs = data.x_train.shape[1]
    for _ in range(3):
        layers += [nn.Dense(inputs, 100), *([nn.BatchNorm(100)] if with_norm else []), nn.Sigmoid()]
        inputs = 100
    return [*layers, nn.Dense(inputs, int(data.y_train.max()) + 1)]


def _draw_batch_norm(result: Result, axes: Sequence[Any]) -> None:
    for i, curve in enumerate(result.data):
        accuracy = curve.values("val_accuracy")
        band(axes[0], np.arange(accuracy.shape[1]) + 1, accuracy, i, curve.name)
    axes[0].set(xlabel="epoch", ylabel="test accuracy")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].grid(alpha=0.3)
    legend_below(axes[0])
    axes[2].sharey(axes[1])
    for panel, curve in zip(axes[1:], result.data, strict=True):
        watched = curve.callbacks[0][0]
        for percentile, line in zip(watched.percentiles, np.array(watched.values).T, strict=True):
            panel.plot(watched.steps, line, label=f"{percentile}th percentile")
        panel.set(
            title=f"{curve.name}, first seed",
            xlabel="steps",
            ylabel="input of a unit of the last sigmoid layer",
        )
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=3, fontsize=8, frameon=False)
        panel.grid(alpha=0.3)


def _gained(result: Result) -> str:
    """Say what BatchNorm brought."""
    without, normalised = (mean(result, name, "test accuracy") for name in ("without", "with BatchNorm"))
    if normalised > without + 0.01:
        return (
            f"BatchNorm takes the deep network of sigmoids to {normalised:.1%}, which without it stands at "
            f"{without:.1%}: the inputs of a layer stay where the sigmoid has a slope."
        )
    return f"BatchNorm brings little here: {normalised:.1%} with it, and {without:.1%} without."


_RAW, _NORMALISED, _SCALED = "0 to 255", "0 to 255, BatchNorm after ReLU", "0 to 1"


def _raw_pixels(options: Options) -> Result:
    data, curves = load(options, normalize=False), []
    brightest = float(data.x_train.max())  # 16 of the digits, which are stretched
    for name, top in ((_RAW, 255), (_NORMALISED, 255), (_SCALED, 1)):
        factor = np.float32(top / brightest)
        scaled = data._replace(
            x_train=data.x_train.astype(np.float32) * factor, x_test=data.x_test.astype(np.float32) * factor
        )

        def make(seed: int, name: str = name) -> Any:
            (first, last) = network(data, 100)
            norm = [nn.BatchNorm(100)] if name == _NORMALISED else []
            return trainer([first, *norm, last], lambda p: SGD(p, lr=0.1), seed)

        curves.append(train(name, options, scaled, make))
    return Result(f"{options.dataset}, ReLU network (100,), plain SGD, lr 0.1", curves_table(curves), curves)


def _seen_of_pixels(result: Result) -> str:
    """Say which of the three learn."""
    raw, normalised, scaled = (mean(result, name, "test accuracy") for name in (_RAW, _NORMALISED, _SCALED))
    text = (
        f"On pixels from 0 to 255 the network ends at {raw:.1%} without BatchNorm, and at {normalised:.1%} "
        f"with it; on pixels from 0 to 1 it needs none for {scaled:.1%}. "
    )
    if normalised > raw + 0.02:
        return text + (
            "The gradient of a weight grows with its input, so the same step is far too long on raw pixels; "
            "BatchNorm takes the scale out again, as does scaling the data."
        )
    return text + "So here the scale of the pixels does no harm, and BatchNorm has none to mend."


BATCH_NORM = Study(
    "sigmoid networks with and without BatchNorm: accuracy, and percentiles of a unit's input",
    _batch_norm,
    _draw_batch_norm,
    _gained,
    panels=3,
    epochs=10,
)
RAW_PIXELS = Study(
    "pixels from 0 to 255, with and without BatchNorm, and pixels from 0 to 1",
    _raw_pixels,
    draw_curves,
    _seen_of_pixels,
)
