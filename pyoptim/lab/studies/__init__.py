"""``pyoptim study NAME``: experiments of the lectures, each a table, a picture, and what they show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...runtime.figures import new_figure, saved
from . import (
    apart,
    batches,
    beginnings,
    curved,
    deep,
    errors,
    inputs,
    minima,
    orders,
    rates,
    remedies,
    searching,
    small,
    transfer,
)
from ._common import Options, Result, Study, resolved, table

STUDIES: dict[str, Study] = {
    "batch-size": batches.BATCH_SIZE,
    "batch-norm": inputs.BATCH_NORM,
    "raw-pixels": inputs.RAW_PIXELS,
    "learning-rate": rates.LEARNING_RATE,
    "schedules": rates.SCHEDULES,
    "initialization": beginnings.INITIALIZATION,
    "regularization": remedies.REGULARIZATION,
    "bias-variance": errors.BIAS_VARIANCE,
    "bootstrap": errors.BOOTSTRAP,
    "learning-curve": errors.LEARNING_CURVE,
    "sharp-minima": minima.SHARP_MINIMA,
    "curvature": curved.CURVATURE,
    "second-order": curved.SECOND_ORDER,
    "search": searching.SEARCH,
    "compression": small.COMPRESSION,
    "cascade": small.CASCADE,
    "experts": small.EXPERTS,
    "pretraining": deep.PRETRAINING,
    "transfer": transfer.TRANSFER,
    "hints": deep.HINTS,
    "curriculum": orders.CURRICULUM,
    "asynchronous": apart.ASYNCHRONOUS,
}


def run(
    name: str,
    dataset: str = "auto",
    epochs: int | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    verbose: bool = False,
) -> Result:
    """Run the study of this name; epochs and the number of seeds are its own where they are None."""
    study, dataset = STUDIES[name], resolved(dataset)
    epochs = epochs or study.epochs * (study.digits if dataset == "digits" else 1)
    chosen = tuple(range(first_seed, first_seed + (seeds or study.seeds)))
    return study.run(Options(dataset, epochs, chosen, verbose))


def draw(name: str, result: Result, path: str | Path | None = None, axes: Any = None) -> Any:
    """Draw what a study found, on its number of axes where some are given; returns the figure."""
    study = STUDIES[name]
    if axes is None:
        columns = study.panels // study.rows
        figure = new_figure((5.5 if columns < 4 else 4.6) * columns, 2.2 + 2.6 * study.rows)
        figure.suptitle(f"{study.about[0].upper()}{study.about[1:]}\n{result.setting}", fontsize="medium")
        axes = list(figure.subplots(study.rows, columns, squeeze=False).flat)
    study.draw(result, axes)
    return saved(axes[0].get_figure(), path)


def main(options: argparse.Namespace) -> int:
    """Run the study that the command line names."""
    study, dataset = STUDIES[options.study], resolved(options.dataset)
    print(f"{options.study}: {study.about}; {dataset}")
    result = run(options.study, dataset, options.epochs, options.seeds, options.seed, verbose=True)
    print(table(result.rows))
    if words := study.conclusion(result):
        print("\n" + words + (" One seed says little: take more." if options.seeds == 1 else ""))
    draw(options.study, result, options.plot)
    print(f"plot saved to {options.plot}")
    return 0
