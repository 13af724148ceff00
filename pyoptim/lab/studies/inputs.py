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
    load,
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
    axes[0].legend()
    axes[2].sharey(axes[1])
    for panel, curve in zip(axes[1:], result.data, strict=True):
        watched = curve.callbacks[0][0]
        for percentile, line in zip(watched.percentiles, np.array(watched.values).T, strict=True):
            panel.plot(watched.steps, line, label=f"{percentile}th percentile")
        panel.set(title=curve.name, xlabel="steps", ylabel="input of a unit of the last sigmoid layer")
        panel.legend()
        panel.grid(alpha=0.3)


def _raw_pixels(options: Options) -> Result:
    data, curves = load(options, normalize=False), []
    for with_norm in (False, True):

        def make(seed: int, with_norm: bool = with_norm) -> Any:
            norm = [nn.BatchNorm(100)] if with_norm else []
            layers = [nn.Dense(data.x_train.shape[1], 100), nn.ReLU(), *norm, nn.Dense(100, 10)]
            return trainer(layers, lambda p: SGD(p, lr=0.01), seed)

        curves.append(train("BatchNorm after ReLU" if with_norm else "without", options, data, make))
    return Result(f"{options.dataset}, ReLU network (100,), SGD", curves_table(curves), curves)


BATCH_NORM = Study(
    "sigmoid networks with and without BatchNorm: accuracy, and percentiles of a unit's input",
    _batch_norm,
    _draw_batch_norm,
    panels=3,
    epochs=10,
    seeds=1,
)
RAW_PIXELS = Study(
    "pixels from 0 to 255, one hidden layer of 100, with and without BatchNorm",
    _raw_pixels,
    draw_curves,
    seeds=1,
)
