"""A model's outputs, loss, accuracy and metrics on data that it is not trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from .. import metrics as package
from .. import nn
from ..arrays.mapped import forget_pages
from ..backends.places import place_with
from ..nn.prediction import outputs as outputs_of
from ..runtime.dtypes import Array
from .data import Data, mean_loss
from .ranks import ALONE, Ranks
from .resume import Epoch
from .sources import Arrays, Source, is_mapped

_BATCH = 1024
FEW = 100  # examples whose targets show whether a metric takes them


def evaluate(
    model: nn.Sequential,
    loss: nn.Loss,
    metrics: Sequence[Callable[..., float]],
    given: Data | Source,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """See `Trainer.evaluate`; with ``ranks``, of the data of all of them."""
    model.eval()
    sums: Any = model._place.sums(loss.classification)
    outputs, targets, weights = [], [], []
    examples = 0
    source = Arrays(given) if isinstance(given, Data) else given
    if type(source) is not Arrays:
        _check_batchwise(model)
    with closing(source.pieces(None, Epoch(0, {}), _BATCH)) as pieces:
        for data, _ in pieces:
            data = data.at(model._place)
            examples += len(data.x)
            for x, y, weight in data.batches(batch_size(model, data.x), model.dtype):
                computed = outputs_of(model, "x", x)
                output = model._forward(x) if computed is None else computed[0]
                if metrics:
                    outputs.append(np.array(output))
                value = loss.evaluate(output, y, None, weight)
                sums.add(output, y, value, loss.divisor(output, y))
            if metrics:
                targets.append(np.asarray(data.y))
                weights.append(None if data.weight is None else np.asarray(data.weight))
    total = sums.read()
    right = int(total["right"]) if loss.classification else 0
    value, divisor, right, examples = ranks.sums(
        float(total["loss"]), float(total["divisor"]), right, examples
    )
    measured = {"loss": mean_loss(value, divisor)}
    if loss.classification:
        measured["accuracy"] = right / examples
    return measured | _measured(metrics, targets, weights, outputs, ranks)


def _check_batchwise(model: nn.Sequential) -> None:
    """Raise ValueError if a layer's outputs depend on the whole batch that is evaluated."""
    for layer in model.leaves().values():
        if layer.takes_statistics(False):
            raise ValueError(f"{layer!r} takes statistics of all examples, expected arrays in memory")


def _measured(
    metrics: Sequence[Any],
    targets: Sequence[Array],
    weights: Sequence[Any],
    outputs: Sequence[Array],
    ranks: Ranks,
) -> dict[str, float]:
    """Return what the metrics say of all outputs; what is in a GPU's memory is copied from it once."""
    if not metrics:
        return {}
    given = ranks.joined(_whole(targets)), ranks.joined(np.concatenate(outputs) if outputs else None)
    weight = ranks.joined(None if weights[0] is None else _whole(weights))
    weighted = {} if weight is None else {"sample_weight": weight}
    return {
        name_of(metric): float(metric(*given, **(weighted if _takes_weights(metric) else {})))
        for metric in metrics
    }


def _whole(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_metrics(model: nn.Sequential, metrics: Sequence[Callable[..., float]], data: Data) -> None:
    """Raise TypeError or ValueError if a metric of this package does not take such targets and outputs.

    The outputs are zeros of the right shape and dtype: the model does not compute anything. Some targets from
    all over the data stand for all of them, and their weights only say whether any is above 0, so that
    nothing is refused which all the data would allow. A function of the user's is not called.
    """
    few = slice(None, None, -(-len(data.x) // FEW))
    y = np.asarray(data.y)[few]
    outputs = np.zeros((len(y), *model.output_shape(data.x.shape[1:])), model.dtype)
    weights = None if data.weight is None else np.full(len(y), float(np.any(data.weight)))
    for i, metric in enumerate(metrics):
        function: Any = getattr(metric, "func", metric)  # of a functools.partial: with its defaults
        if not _takes_weights(metric) or getattr(function, "__module__", None) != package.__name__:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are of classes that these few targets lack
                function(y, outputs, sample_weight=weights)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"metrics[{i}], {name_of(metric)}, does not suit the validation data: {error}"
            ) from error


def _takes_weights(metric: Any) -> bool:
    """Return whether a metric, or what a functools.partial is made of, takes weights of the examples."""
    return bool(getattr(getattr(metric, "func", metric), "takes_sample_weight", False))


def predict(model: nn.Sequential, x: Any) -> Array:
    """See `Trainer.predict`."""
    if is_mapped(x) and len(x):  # in parts, since the checks copy what they are given
        _check_batchwise(model)
        return np.concatenate([predict(model, np.asarray(rows)) for rows in _mapped_rows(x)])
    computed = outputs_of(model, "x", x)
    if computed is not None:
        model.eval()
        return computed[0]
    x = model.check_input("x", x, keep_bytes=True)
    model.eval()
    place, size = place_with(x), batch_size(model, x)
    outputs = place.empty((len(x), *model.output_shape(x.shape[1:])), model.dtype)
    for i, (batch,) in enumerate(place.batches((x,), size, model.dtype)):
        outputs[i * size : (i + 1) * size][...] = model._forward(model._place.upload(batch))
    place.release(x)
    return outputs  # type: ignore[no-any-return]


def _mapped_rows(x: Any) -> Iterator[Any]:
    for begin in range(0, len(x), _BATCH):
        yield x[begin : begin + _BATCH]
        forget_pages(x)


def batch_size(model: nn.Sequential, x: Array) -> int:
    """Return the batch size: all examples if a layer takes statistics of the evaluated batch."""
    takes = any(layer.takes_statistics(False) for layer in model.leaves().values())
    return max(len(x), 1) if takes else _BATCH


def name_of(metric: Any) -> str:
    """Return the name of a metric in a history."""
    return str(getattr(metric, "__name__", type(metric).__name__))
