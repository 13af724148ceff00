"""A small model of a large one, in three stages."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..ops import losses
from ..optim.elementwise import Adam
from ..optim.optimizer import Optimizer
from ..runtime.dtypes import Array
from ..runtime.figures import new_figure, saved
from ..runtime.numbers import SHARE, check_flag, check_type, shown
from ._measure import Model, examples, median_seconds, outputs_of
from ._prune import prunable, prune, shrink
from ._quantize import QuantizedModel, quantize
from ._stages import check_maker, made_trainer

_CALIBRATION = 1000  # examples
_REPEATS = 50  # of a prediction that is timed


class Stage(NamedTuple):
    """A model on the way from large to small, and what it costs.

    ``fidelity`` is the share of examples to which the model gives the class of the first one; of one output
    the R^2 of its outputs for those of the first. ``latency`` is the seconds of one example alone, the median
    of some; ``seconds`` those of an example among all. ``parameters`` that are 0 are not counted.
    """

    name: str
    model: Model
    parameters: int
    nbytes: int
    accuracy: float  # NaN without ``test_data``
    fidelity: float
    latency: float
    seconds: float


@dataclass(frozen=True)
class Compressed:
    """What `compress` made; its text is a table.

    Attributes
    ----------
    stages : tuple of Stage
        "model", "student", "pruned" and "8 bits".
    """

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        lines = [
            f"{'':<10}{'parameters':>12}{'bytes':>12}{'accuracy':>10}{'fidelity':>10}"
            f"{'us alone':>10}{'us each':>9}"
        ]
        for s in self.stages:
            lines.append(
                f"{s.name:<10}{s.parameters:>12,}{s.nbytes:>12,}{s.accuracy:>10.2%}{s.fidelity:>10.2%}"
                f"{s.latency * 1e6:>10.1f}{s.seconds * 1e6:>9.3f}"
            )
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None, *, title: str = "") -> Any:
        """Draw what is left of the bytes and the latency at each stage, and the accuracy (or fidelity)."""
        names = [stage.name for stage in self.stages]
        figure = new_figure(11, 4)
        first = self.stages[0]
        measured = "fidelity" if math.isnan(first.accuracy) else "accuracy"
        panels = figure.subplots(1, 3)
        for axes, field in zip(panels, ("nbytes", "latency", measured), strict=True):
            values = [getattr(stage, field) for stage in self.stages]
            bars = axes.bar(names, values, color="#0072B2")
            axes.bar_label(bars, [_label(field, value) for value in values])
            label = {"nbytes": "bytes", "latency": "seconds of one example"}.get(field, field)
            axes.set(ylabel=label, title=label)
            if field == "nbytes":
                axes.set_yscale("log")
            axes.margins(y=0.12)
        if measured == "accuracy":
            low = min(values)
            panels[2].set_ylim(max(0, low - 2 * (1 - low)), 1)
        figure.suptitle(title or "compression")
        return saved(figure, path)


def _label(field: str, value: float) -> str:
    if field == "nbytes":
        return f"{value:,}"
    return f"{value * 1e6:.1f} us" if field == "latency" else f"{value:.1%}"


def compress(
    model: nn.Sequential,
    x: Any,
    student: nn.Sequential,
    *,
    share: float = 0.5,
    units: bool = True,
    loss: nn.Loss | None = None,
    optimizer: Callable[[Any], Optimizer] = Adam,
    fit: Mapping[str, Any] | None = None,
    test_data: tuple[Any, Any] | None = None,
    seed: int | None = 0,
) -> Compressed:
    """Fit a smaller network to what a model says, prune it, and bring it to 8 bits.

    The student learns the function f that the model computes, from pairs (x, f(x)), so that any x will do,
    without labels (Bucila, Caruana & Niculescu-Mizil 2006). What is pruned is fitted once more.

    Parameters
    ----------
    model : nn.Sequential
        The large one, left as it is.
    x : array (examples, ...)
        As many examples as can be had: those that the model was trained on, and others like them.
    student : nn.Sequential
        The smaller one, on the processor, with outputs as the model's; trained in place.
    share : float in [0, 1], default 0.5
        What is pruned: see `prune`.
    units : bool, default True
        Prune hidden units and remove them; otherwise single weights, whose zeros take as many bytes.
    loss : nn.Loss, optional
        Of the student's outputs and the model's as targets, such as ``nn.KLDiv(4, from_logits=True)``; by
        default `MSE`, of logits too.
    optimizer : callable, default Adam
        ``(parameters) -> Optimizer``.
    fit : mapping, optional
        Further arguments of `Trainer.fit`, for both trainings; without, ``{"epochs": 20}``.
    test_data : (x, y), optional
        Examples and their classes, for accuracies; fidelities and times are measured on them too. Without,
        those are of x.
    seed : int, optional
        Of the order of examples.

    Returns
    -------
    Compressed

    Raises
    ------
    TypeError, ValueError
        An argument is not what it should be, or the student does not suit x and the model's outputs.

    Examples
    --------
    >>> student = nn.Sequential(nn.Dense(784, 64), nn.ReLU(), nn.Dense(64, 10), seed=0)
    >>> compressed = po.recipes.compress(model, x_train, student, test_data=(x_test, y_test))
    >>> print(compressed)
    >>> compressed.stages[-1].model.save("small.safetensors")
    """
    check_type("model", model, nn.Sequential, "a Sequential")
    check_type("student", student, nn.Sequential, "a Sequential")
    if student is model:
        raise ValueError("student is the model itself, expected a smaller one")
    share, units = SHARE.number("share", share), check_flag("units", units)
    loss = check_type("loss", nn.MSE() if loss is None else loss, nn.Loss, "a Loss or None")
    check_maker(optimizer)
    check_type("fit", {} if fit is None else fit, Mapping, "a mapping of arguments of Trainer.fit")
    options = {"epochs": 20, "verbose": False, **(fit or {})}
    x = examples("x", x)
    test = _checked_test(model, test_data, x)
    targets = outputs_of(model, x)
    try:
        shape = student.output_shape(x.shape[1:])
    except ValueError as error:
        raise ValueError(f"student does not suit x: {error}") from None
    prunable("student", student, units)
    if shape != targets.shape[1:]:
        raise ValueError(f"student has outputs of shape {shape}, expected the model's, {targets.shape[1:]}")

    def trained(what: nn.Sequential) -> nn.Sequential:
        made_trainer(what, loss, optimizer, {"seed": seed}).fit(x, targets, **options)
        return what

    before = outputs_of(model, test[0])
    stages = [stage("model", model, test, before)]
    pruned = copy.deepcopy(trained(student))
    stages.append(stage("student", student, test, before))
    prune(pruned, share, units=units)
    trained(pruned)
    small = shrink(pruned) if units else pruned
    stages.append(stage("pruned", small, test, before))
    stages.append(stage("8 bits", quantize(small, x[:_CALIBRATION]), test, before))
    return Compressed(tuple(stages))


def _checked_test(model: nn.Sequential, test_data: Any, x: Array) -> tuple[Array, Any]:
    if test_data is None:
        return x, None
    if not isinstance(test_data, tuple | list) or len(test_data) != 2:
        raise TypeError(f"test_data is {shown(test_data)}, expected (x, y)")
    x = model.check_input("test_data[0]", as_numpy("test_data[0]", test_data[0]))
    return x, as_numpy("test_data[1]", test_data[1])


def stage(name: str, model: Model, test: tuple[Array, Any], before: Array) -> Stage:
    """Measure a model on examples and, where given, their classes; ``before`` is the first one's output."""
    x, y = test
    output = outputs_of(model, x)
    accuracy = math.nan
    if y is not None:
        labels = losses.check_labels("test_data[1]", y, len(x), output.shape[1])
        accuracy = float(np.mean(output.argmax(axis=1) == labels))
    if isinstance(model, nn.Sequential):
        arrays = model.state_dict()
        alone: Callable[[Any], Any] = model.eval()
    else:
        arrays, alone = model._tensors, model.predict
    weights = {
        key: a for key, a in arrays.items() if not key.endswith((".scale", ".running_mean", ".running_var"))
    }
    return Stage(
        name, model, sum(int(np.count_nonzero(a)) for a in weights.values() if a.ndim),
        model.nbytes if isinstance(model, QuantizedModel) else sum(a.nbytes for a in arrays.values()),
        accuracy, _fidelity(output, before), median_seconds(lambda: alone(x[:1]), _REPEATS),
        median_seconds(lambda: outputs_of(model, x), 5) / len(x),
    )  # fmt: skip


def _fidelity(output: Array, before: Array) -> float:
    if output.ndim > 1 and output.shape[1] > 1:
        return float(np.mean(output.argmax(axis=1) == before.argmax(axis=1)))
    spread = float(np.var(before))
    return 1 - float(np.mean((output - before) ** 2)) / spread if spread else math.nan
