"""A model's outputs, loss, accuracy and metrics on data that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import nn
from ..arrays import gpu, gpu_data
from ..runtime.dtypes import Array
from . import cuda_engine
from .data import Data

_BATCH = 1024


def evaluate(
    model: nn.Sequential, loss: nn.Loss, metrics: Sequence[Callable[[Array, Array], float]], data: Data
) -> dict[str, float]:
    """See `Trainer.evaluate`."""
    model.eval()
    queue = model._place.queue
    sums: Any = Sums(loss.classification) if queue is None else cuda_engine.Sums(queue, loss.classification)
    outputs = []
    data, examples = data.at(model._place), len(data.x)
    for x, y, weight in data.batches(_batch_size(model, data.x), model.dtype):
        output = model._forward(x)
        if metrics:
            outputs.append(np.array(output))
        value = loss.evaluate(output, y, None, weight)
        sums.add(output, y, value)
    total = sums.read()
    measured = {"loss": float(total["loss"]) / examples}
    if loss.classification:
        measured["accuracy"] = int(total["right"]) / examples
    for metric in metrics:
        measured[name_of(metric)] = float(metric(np.asarray(data.y), np.concatenate(outputs)))
    return measured


def predict(model: nn.Sequential, x: Any) -> Array:
    """See `Trainer.predict`."""
    x = model.check_input("x", x, keep_bytes=True)
    model.eval()
    shape = (len(x), *model.output_shape(x.shape[1:]))
    size = _batch_size(model, x)
    if not isinstance(x, np.ndarray):
        results: Any = gpu.empty(x.queue, shape, model.dtype)
        for i, (batch,) in enumerate(cuda_engine.batches((x,), size, model.dtype)):
            results[i * size : (i + 1) * size][...] = model._forward(batch)
        gpu_data.release(x)
        return results  # type: ignore[no-any-return]
    outputs = np.empty(shape, model.dtype)
    for begin in range(0, len(x), size):
        batch = x[begin : begin + size].astype(model.dtype, copy=False)
        outputs[begin : begin + size] = model._forward(model._place.upload(batch))
    return outputs


def _batch_size(model: nn.Sequential, x: Array) -> int:
    """Return the batch size: all examples if a layer takes statistics of the evaluated batch."""
    takes = any(
        isinstance(layer, nn.BatchNorm) and layer.takes_statistics(False) for layer in model.leaves().values()
    )
    return max(len(x), 1) if takes else _BATCH


def name_of(metric: Any) -> str:
    """Return the name of a metric in a history."""
    return str(getattr(metric, "__name__", type(metric).__name__))


class Sums:
    """The loss of some batches, and how many examples were classified right."""

    def __init__(self, classification: bool) -> None:
        self._classification, self._loss, self._right = classification, 0.0, 0

    def add(self, output: Array, target: Array, loss: float) -> None:
        """Add a batch."""
        self._loss += loss * len(output)
        if self._classification:
            self._right += count_right(output, target)

    def read(self) -> dict[str, float]:
        return {"loss": self._loss, "right": self._right}


def count_right(output: Array, target: Array) -> int:
    """How often the largest output is that of the label, or that with the largest share."""
    labels = target if target.ndim == 1 else target.argmax(axis=1)
    return int(np.count_nonzero(output.argmax(axis=1) == labels))
