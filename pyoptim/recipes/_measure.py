"""What recipes measure of models that predict."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..runtime.dtypes import Array
from ..train import evaluation
from ._quantize import QuantizedModel

Model = nn.Sequential | QuantizedModel


def outputs_of(model: Model, x: Array) -> Array:
    """Return the outputs of either kind of model, in evaluation mode, in the processor's memory."""
    if isinstance(model, QuantizedModel):
        return model.predict(x)
    output: Array = np.asarray(evaluation.predict(model, x))
    return output


def examples(name: str, x: Any) -> Array:
    """Return an array of examples, whose shape and values the models have yet to look at."""
    given: Array = as_numpy(name, x)
    if given.ndim == 0:
        raise ValueError(f"{name} is a scalar, expected (examples, ...)")
    return given


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the median of the times that some calls take."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
