"""What passes through the layers, and whether the model can learn a handful of examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import nn, schedules
from ..nn.layers import Layer
from ..optim.elementwise import Adam
from ..runtime.dtypes import Array
from ..runtime.figures import drawn_on, log_if_wide, saved
from ..runtime.numbers import POSITIVE, check_count
from ._problem import Problem

# Output ranges of activations that saturate. Within 1 % of an end, the slope is nearly 0.
_ENDS = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0)}
_RATIO = 1e3  # between layers, from which gradients vanish or explode


class LayerRow(NamedTuple):
    """What passes through a layer."""

    name: str
    layer: str
    mean: float  # of the outputs
    deviation: float
    dead: float  # share of the units whose output is the same for all examples
    saturated: float  # share of the outputs within 1 % of the end of the activation's range
    gradient: float  # root mean square of the loss's gradient with respect to the outputs; NaN: not computed
    weight: float  # root mean square of the weights; NaN without
    weight_gradient: float  # of their gradient


@dataclass(frozen=True)
class LayerStatistics:
    """What `layer_statistics` found.

    Attributes
    ----------
    rows : list of LayerRow
        One for each layer, in the order in which data pass through them.
    findings : list of str
        What looks wrong, a sentence each; empty if nothing does.
    outputs : list of array
        The percentiles 1, 15, 50, 85 and 99 of each layer's outputs.
    """

    rows: list[LayerRow]
    findings: list[str]
    outputs: list[Array]

    def __str__(self) -> str:
        lines = [f"{'layer':<28} {'mean':>9} {'deviation':>9} {'dead':>6} {'satur.':>6} {'gradient':>9}"]
        lines += [
            f"{row.name + ' ' + row.layer:<28.28} {row.mean:9.2g} {row.deviation:9.2g} {row.dead:6.1%} "
            f"{row.saturated:6.1%} {row.gradient:9.2g}"
            for row in self.rows
        ]
        return "\n".join([*lines, *self.findings])

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw percentiles of the outputs, and the gradients, of each layer; returns the figure."""
        figure, axes = drawn_on(axes, 3 + 0.7 * len(self.rows), 4, path, title)
        where = np.arange(len(self.rows))
        p = np.array(self.outputs).T
        axes.bar(where, p[4] - p[0], 0.3, p[0], color="#56B4E9", label="outputs, 1 to 99 %")
        axes.bar(where, p[3] - p[1], 0.5, p[1], color="#0072B2", label="outputs, 15 to 85 %")
        axes.plot(where, p[2], "_", color="white", markersize=12)
        axes.set_xticks(where, [f"{row.name}\n{row.layer}" for row in self.rows], rotation=45, fontsize=8)
        axes.set(ylabel="outputs", title=title or "what passes through the layers")
        other = axes.twinx()
        gradients = [row.gradient if row.gradient > 0 else np.nan for row in self.rows]
        (line,) = other.plot(where, gradients, color="#D55E00", marker="o", markersize=4)
        log_if_wide(other, gradients)
        other.set_ylabel("gradient of the outputs, root mean square", color="#D55E00")
        line.set_label("gradient")
        shapes, names = axes.get_legend_handles_labels()
        other.legend(
            [*shapes, line], [*names, "gradient"], loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=3,
            fontsize=8,
        )  # fmt: skip
        return saved(figure, path)


def layer_statistics(
    model: nn.Sequential, loss: nn.Loss, x: Any, y: Any, *, penalty: nn.Penalty | None = None
) -> LayerStatistics:
    """Measure outputs and gradients of each layer, and say which of them look wrong.

    At the start of a training outputs and gradients should be of like size in all layers. Gradients that
    become smaller from the last layer to the first vanish: the first layers will hardly learn (take ReLU and
    He's initialisation, normalisation, or shortcuts); if they grow, they explode (smaller weights,
    normalisation, clipping). Dead units learn nothing any more: a smaller learning rate, or leaky ReLU.
    Saturated ones learn slowly: smaller weights, or inputs that are scaled.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is.
    loss : nn.Loss
    x, y
        Examples as `Trainer.fit` takes them: some hundred. Dead is what is the same for all of these.
    penalty : nn.Penalty, optional
        Counts in the gradients of the weights.

    Returns
    -------
    LayerStatistics
    """
    problem = Problem(model, loss, x, y, penalty)
    problem._block = len(problem.data.x)
    leaves = problem.model.leaves()
    inputs: dict[str, Array] = {}
    outputs: dict[str, Array] = {}
    gradients: dict[str, Array] = {}
    for name, layer in leaves.items():
        _record(layer, name, inputs, outputs, gradients)
    with np.errstate(all="ignore"):
        _, gradient = problem.here()
        rows = [_row(name, layer, outputs[name], gradients.get(name)) for name, layer in leaves.items()]
    enters = problem.data.x
    for i, (name, layer) in enumerate(leaves.items()):
        if any(array.ndim > 1 for array in layer.parameters.values()):
            enters = inputs[name]
            break
        rows[i] = rows[i]._replace(dead=0.0)  # what is the same for all examples is so in the inputs
    at, weights = 0, dict.fromkeys(leaves, (float("nan"), float("nan")))
    for name, array in problem.names:
        if name.endswith("weight") and array.ndim > 1:
            weights[name.removesuffix("weight")] = _rms(array), _rms(gradient[at : at + array.size])
        at += array.size
    rows = [
        row._replace(weight=weight, weight_gradient=weight_gradient)
        for row, (weight, weight_gradient) in zip(rows, weights.values(), strict=True)
    ]
    percentiles = [
        np.percentile(array, [1, 15, 50, 85, 99]) if np.isfinite(array).all() else np.full(5, np.nan)
        for array in outputs.values()
    ]
    return LayerStatistics(rows, [*_of_inputs(enters), *_findings(rows)], percentiles)


def _record(
    layer: Layer, name: str, inputs: dict[str, Array], outputs: dict[str, Array], gradients: dict[str, Array]
) -> None:
    """Have the layer write down its inputs, its outputs and their gradients; it is one of a copy."""
    forward, backward = layer.forward, layer.backward

    def recorded_forward(x: Array, training: bool) -> Array:
        inputs[name] = x
        outputs[name] = y = forward(x, training)
        return y

    def recorded_backward(dy: Array, need_dx: bool = True) -> Array | None:
        gradients[name] = dy
        return backward(dy, need_dx)

    layer.forward = recorded_forward  # type: ignore[method-assign]
    layer.backward = recorded_backward  # type: ignore[method-assign]


def _row(name: str, layer: Layer, y: Array, dy: Array | None) -> LayerRow:
    kind = getattr(layer, "activation", None) or getattr(layer, "kind", None)
    low, high = _ENDS.get(kind if isinstance(kind, str) else "", (-np.inf, np.inf))
    margin = 0.01 * (high - low) if np.isfinite(high) else 0.0
    flat = y.reshape(len(y), -1)
    dead = float(np.mean((flat == flat[0]).all(axis=0))) if len(flat) > 1 else 0.0
    return LayerRow(
        name.rstrip("."), type(layer).__name__, float(y.mean()), float(y.std()), dead,
        float(np.mean((y <= low + margin) | (y >= high - margin))),
        float("nan") if dy is None else _rms(dy), float("nan"), float("nan"),
    )  # fmt: skip


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array))))


def _of_inputs(x: Array) -> list[str]:
    """Return what looks wrong with the inputs as they enter the first layer with a matrix of weights."""
    columns = x.reshape(len(x), -1).astype(np.float64)
    size = _rms(columns)
    if size > 5:
        return [f"inputs are large ({size:.3g} in the root mean square): scale them to about 1"]
    return [f"inputs are small ({size:.1e}): scale them to about 1"] if size < 1e-3 else []


def _findings(rows: list[LayerRow]) -> list[str]:
    found = []
    for row in rows:
        where = f"layer {row.name} ({row.layer})"
        if not np.isfinite([row.mean, row.deviation]).all():
            return [f"{where} has outputs that are NaN or infinite: look at its weights and at the data"]
        if row.dead == 1:
            found.append(f"{where} gives the same output for all examples: nothing passes through it")
        elif row.dead > 0.4:
            found.append(f"{row.dead:.0%} of the units of {where} are dead: the same output for all examples")
        if row.saturated > 0.5:
            found.append(
                f"{row.saturated:.0%} of the outputs of {where} are saturated: its inputs are too large"
            )
    reached = [row for row in rows if not np.isnan(row.gradient)]
    if not reached or not np.isfinite([row.gradient for row in reached]).all():
        return [*found, "the gradient is NaN or infinite"] if reached else found
    first, last = reached[0], reached[-1]
    if last.gradient == 0:
        found.append("the gradient is 0: the loss does not depend on the outputs here")
    elif first.gradient < last.gradient / _RATIO:
        found.append(
            f"gradients vanish: {first.gradient:.1e} at layer {first.name}, {last.gradient:.1e} at the last"
        )
    elif first.gradient > last.gradient * _RATIO:
        found.append(
            f"gradients explode: {first.gradient:.1e} at layer {first.name}, {last.gradient:.1e} at the last"
        )
    # A deviation of a billionth of the mean is that of outputs which are the same but for rounding.
    spread = [row.deviation for row in rows if row.deviation > 1e-9 * abs(row.mean)]
    if spread and spread[-1] > _RATIO * spread[0]:
        found.append(f"outputs explode: their deviation grows from {spread[0]:.1e} to {spread[-1]:.1e}")
    if spread and spread[-1] < spread[0] / _RATIO:
        found.append(f"outputs vanish: their deviation falls from {spread[0]:.1e} to {spread[-1]:.1e}")
    return found


@dataclass(frozen=True)
class TinyFit:
    """What `fit_tiny` found.

    Attributes
    ----------
    ok : bool
        Whether the examples could be fitted.
    losses : array
        The loss before each step.
    accuracy : float
        On the examples, after the last step; NaN where targets are no classes.
    findings : list of str
        Why they could not, a sentence each; and, also where they could, what looks wrong with the targets or
        with the last layer.
    scale : float
        What targets were divided by, since they were large; 1 if they were not. It is ``losses`` that are
        of the divided ones.
    """

    ok: bool
    losses: Array
    accuracy: float
    findings: list[str]
    scale: float = 1.0

    def __str__(self) -> str:
        text = f"loss {self.losses[0]:.3g} -> {self.losses[-1]:.3g} in {len(self.losses) - 1} steps"
        verdict = "a handful of examples can be fitted" if self.ok else "not even a handful can be fitted"
        return "\n".join([f"{verdict}: {text}", *self.findings])

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the loss over the steps; returns the figure."""
        figure, axes = drawn_on(axes, 6, 4, path, title)
        axes.plot(self.losses, color="#0072B2")
        log_if_wide(axes, self.losses)
        axes.set(xlabel="step", ylabel="loss", title=title or "fitting a handful of examples")
        axes.grid(alpha=0.3)
        return saved(figure, path)


def fit_tiny(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    *,
    examples: int = 8,
    steps: int = 500,
    lr: float = 1e-2,
) -> TinyFit:
    """Fit a handful of examples, which any sound model can; if it can't, say what looks wrong.

    The first test of a new model, before a long training (Goodfellow et al., section 11.5): where training
    error is high, either the model is too small or something is broken. A model that cannot learn 8
    examples by heart is broken: a wrong gradient (`gradient_check`), dead or saturated layers
    (`layer_statistics`), targets that do not belong to their examples, or a loss of another kind than the
    outputs, such as `CrossEntropy`, which takes logits, after a `Softmax`.

    Losses are compared with the least that is possible, which is not 0 where targets are shares. Numbers that
    are large (above 10 in the root mean square) would take Adam more steps than there are to reach: they are
    divided by their size for this test, and it is said that they are large.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is: a copy is trained from where it stands, without what is random, by Adam.
    loss : nn.Loss
    x, y
        The first of these examples are fitted.
    examples : int, default 8
    steps : int, default 500
        At most; it ends once the loss, less the least possible one, is a thousandth of what it was, and all
        classes are right.
    lr : float > 0, default 1e-2
        Adam's, a tenth of it in the last fifth of the steps.

    Returns
    -------
    TinyFit
    """
    count, steps = check_count("examples", examples), check_count("steps", steps)
    lr = POSITIVE.number("lr", lr)
    problem = Problem(model, loss, x, y, training=False)
    data = problem.data
    problem.data = data._replace(x=data.x[:count], y=data.y[:count])
    problem._block = count
    norms = any(layer.takes_statistics(True) for layer in problem.model.leaves().values())
    problem.model.training = norms and len(problem.data.x) > 1
    found, scale = _of_last_layer(problem), 1.0
    if isinstance(loss, nn.MSE | nn.L1 | nn.Huber):
        size = _rms(problem.data.y)
        if size > 10 and np.isfinite(size):
            scale = size
            problem.data = problem.data._replace(y=problem.data.y / scale)
            found.append(
                f"targets are large ({scale:.3g} in the root mean square): scale them to about 1, as this "
                "test has done"
            )
    tiny = _fitted(problem, steps, lr)
    return replace(tiny, findings=[*found, *tiny.findings], scale=scale)


def _of_last_layer(problem: Problem) -> list[str]:
    """Return what looks wrong with a last layer that makes probabilities, before a loss that takes logits."""
    last, loss = list(problem.model.leaves().values())[-1], problem.loss
    kind = getattr(last, "activation", None) or getattr(last, "kind", None)
    named = (
        f"a {type(last).__name__}"
        if kind is None or isinstance(last, nn.Sigmoid)
        else f"the activation {kind}"
    )
    squashes = isinstance(last, nn.Softmax) and not isinstance(last, nn.LogSoftmax)
    takes_logits = isinstance(loss, nn.CrossEntropy | nn.KLDiv | nn.BinaryCrossEntropy)
    if takes_logits and (squashes or kind == "sigmoid"):
        return [f"the model ends with {named}, but {type(loss).__name__} takes logits: leave it out"]
    return []


def _least_loss(loss: nn.Loss, outputs: tuple[int, ...], y: Array) -> float:
    """Return the least loss that any outputs could have on these targets."""
    tiny = 1e-30
    if isinstance(loss, nn.BinaryCrossEntropy):
        weight = loss.parameter(np.dtype(np.float64))
        best = np.log(np.maximum(weight * y, tiny)) - np.log(np.maximum(1 - y, tiny))
    elif isinstance(loss, nn.CrossEntropy):
        share = np.eye(outputs[1])[y] if y.ndim == 1 else y.astype(np.float64)
        share = (1 - loss.label_smoothing) * share + loss.label_smoothing / outputs[1]
        weight = 1.0 if loss.class_weight is None else np.asarray(loss.class_weight, np.float64)
        best = np.log(np.maximum(share * weight, tiny))
    else:
        return 0.0
    return float(loss.evaluate(np.ascontiguousarray(best, np.float64), y, None, None))


def _fitted(problem: Problem, steps: int, lr: float) -> TinyFit:
    losses: list[float] = []
    accuracy, first, least = float("nan"), None, 0.0
    # Losses with a kink, as L1, are followed further down by shorter steps at the end.
    rate = schedules.Step(lr, every=max(1, steps * 4 // 5), gamma=0.1)
    optimizer = Adam(problem.model.parameters(), lr=rate)
    targets = problem.data.y
    labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
    with np.errstate(all="ignore"):
        for step in range(steps + 1):
            value, gradient = problem.here()
            first = gradient if first is None else first
            least = least if losses else _least_loss(problem.loss, problem.output.shape, targets)
            losses.append(value)
            value -= least
            begin = abs(losses[0] - least)
            if problem.loss.classification:
                accuracy = float(np.mean(problem.output.argmax(axis=1) == labels))
            fits = value < 1e-3 * begin or value < 1e-12
            if not np.isfinite(value) or (fits and not accuracy < 1) or step == steps:
                break
            optimizer.step(problem.model.gradients())
    ok = bool(np.isfinite(value) and (accuracy == 1 or value < 0.01 * begin or value < 1e-12))
    findings = [] if ok else _why_not(problem, np.array(losses) - least, first)
    return TinyFit(ok, np.array(losses), accuracy, findings)


def _why_not(problem: Problem, losses: Array, gradient: Array | None) -> list[str]:
    found = []
    x, y = (np.asarray(part).reshape(len(part), -1) for part in problem.data[:2])
    alike = [(i, j) for i in range(len(x)) for j in range(i) if (x[i] == x[j]).all() and (y[i] != y[j]).any()]
    if alike:
        i, j = alike[0]
        found.append(f"examples {j} and {i} are alike but have other targets: nothing can fit both")
    if len(x) > 1 and (x == x[0]).all():
        found.append("all examples are the same")
    if not np.isfinite(losses[0]):
        found.append("the loss is NaN or infinite before the first step: look at weights and data")
    elif not np.isfinite(losses[-1]):
        found.append(
            "the loss becomes NaN or infinite: the learning rate is too large, or a gradient is wrong"
        )
    elif gradient is not None and not gradient.any():
        found.append("the gradient is 0 everywhere: units are dead, or backward returns nothing")
    elif losses[-1] > losses[0]:
        found.append("the loss rises: the gradient points the wrong way, or the learning rate is too large")
    elif losses[-1] > 0.5 * losses[0]:
        found.append("the loss hardly falls: run gradient_check and layer_statistics")
    else:
        found.append("the loss falls, but slowly: give more steps or another learning rate")
    return found
