"""The loss along lines and over planes through the space of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn
from ..nn.layers import Layer
from ..runtime.dtypes import Array
from ..runtime.figures import drawn_on, log_if_wide, saved
from ..runtime.numbers import POSITIVE, check_count, check_seed, check_type
from ._problem import NOT_FINITE, Problem, widened


@dataclass(frozen=True)
class LossSlice:
    """What `loss_slice` found.

    Attributes
    ----------
    along : array (points,)
        Coordinates: 0 is the model, 1 the other model or, without one, a step as long as the parameters.
    losses : array (points,) or (points, points)
        In two dimensions the rows go along the second direction.
    here : float
        The loss at the model.
    between : bool
        Whether there is another model.
    """

    along: Array
    losses: Array
    here: float
    between: bool

    def __str__(self) -> str:
        finite = self.losses[np.isfinite(self.losses)]
        if not (np.isfinite(self.here) and finite.size):
            return NOT_FINITE
        low, high = finite.min(), finite.max()
        text = f"the loss is {self.here:.3g} at the model, {low:.3g} to {high:.3g} on the slice"
        if self.between:
            inside = self.losses[(self.along >= 0) & (self.along <= 1)]
            text += f"; it reaches {np.max(inside, initial=self.here):.3g} between the two models"
        if finite.size < self.losses.size:
            text += f"; it is NaN or infinite at {self.losses.size - finite.size} of its points"
        return text

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the loss along the line, or its contours over the plane; returns the figure."""
        figure, axes = drawn_on(axes, 6, 4 if self.losses.ndim == 1 else 5, path, title)
        finite = np.isfinite(self.losses)
        positive = np.min(self.losses, where=finite, initial=np.inf) > 0
        if self.losses.ndim == 1:
            axes.plot(self.along, self.losses, color="#0072B2", marker="o", markersize=3)
            for at, name in ((0, "model"), (1, "other"))[: 1 + self.between]:
                axes.axvline(at, color="0.6", linestyle=":")
                axes.annotate(name, (at, 1), (3, -3), va="top", textcoords="offset points",
                              xycoords=("data", "axes fraction"))  # fmt: skip
            log_if_wide(axes, self.losses)
            axes.set(xlabel="position on the line", ylabel="loss", title=title or "loss along a line")
            return saved(figure, path)
        shown = np.log10(self.losses) if positive else self.losses
        shown = np.where(finite, shown, np.nan) if finite.any() else np.zeros(self.losses.shape)
        contours = axes.contourf(self.along, self.along, shown, levels=20, cmap="viridis")
        axes.plot(0, 0, marker="*", markersize=12, color="white", markeredgecolor="black")
        label = "log10 of the loss" if positive else "loss"
        axes.get_figure().colorbar(contours, ax=axes, label=label)
        axes.set(xlabel="first direction", ylabel="second direction (star: the model)", aspect="equal",
                 title=title or "loss over a plane")  # fmt: skip
        return saved(figure, path)


def loss_slice(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    *,
    other: nn.Sequential | None = None,
    dimensions: int = 1,
    points: int = 25,
    span: float = 1.0,
    penalty: nn.Penalty | None = None,
    seed: int | None = 0,
) -> LossSlice:
    """Measure the loss along a line to another model, or along random directions (Li et al. 2018).

    Between two models: a hill says that they are in minima of their own; of two minima on a line, the one
    whose sides are steeper is the sharper one (Keskar et al. 2017, with one model of small and one of large
    batches). Along random directions: how wide the basin is, and whether it is smooth. Each direction is
    normalised by filter, so that pictures of networks with weights of other sizes compare: the part of each
    output's weights is as long as those, and biases and vectors stay as they are.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is.
    loss : nn.Loss
    x, y
        Examples as `Trainer.fit` takes them.
    other : nn.Sequential, optional
        A model of the same layers; the line goes from -span/2 to 1 + span/2. Along it all move that differs
        between the two: the parameters of frozen layers, and running statistics, as well.
    dimensions : {1, 2}, default 1
        Without ``other``: of a line, or of a plane, from -span to span.
    points : int, default 25
        Along each direction.
    span : float > 0, default 1
    penalty : nn.Penalty, optional
    seed : int, optional
        Of the directions.

    Returns
    -------
    LossSlice
    """
    dimensions = check_count("dimensions", dimensions)
    if dimensions > 2:
        raise ValueError(f"dimensions is {dimensions}, expected 1 or 2")
    points, span = check_count("points", points), POSITIVE.number("span", span)
    rng = check_seed("seed", seed)
    problem = Problem(model, loss, x, y, penalty, frozen=other is not None)
    w = problem.parameters
    if other is None:
        along = np.linspace(-span, span, points)
        directions = [_direction(problem, rng) for _ in range(dimensions)]
    else:
        check_type("other", other, nn.Sequential, "a Sequential or None")
        if dimensions != 1:
            raise ValueError("dimensions is 2, expected 1 between two models")
        along = np.linspace(-span / 2, 1 + span / 2, points)
        with np.errstate(all="ignore"):
            return LossSlice(along, _between(problem, w, other, along), problem.value(w), True)
    with np.errstate(all="ignore"):
        if dimensions == 1:
            losses = np.array([problem.value(w + a * directions[0]) for a in along])
        else:
            first, second = directions
            losses = np.array([[problem.value(w + a * first + b * second) for a in along] for b in along])
        return LossSlice(along, losses, problem.value(w), False)


def _between(problem: Problem, w: Array, other: nn.Sequential, along: Array) -> Array:
    """Return the losses on the line from the model to another, which has to have the same layers."""
    theirs = widened(other)
    kinds = [[_kind(layer) for layer in model.layers] for model in (problem.model, theirs)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"other has the layers {', '.join(kinds[1])}, expected those of model, {', '.join(kinds[0])}"
        )
    direction, here = theirs.flat_parameters - w, problem.statistics
    there = theirs._named("buffers")
    losses = []
    for a in along:
        problem.statistics = {name: value + a * (there[name] - value) for name, value in here.items()}
        losses.append(problem.value(w + a * direction))
    problem.statistics = here
    return np.array(losses)


def _kind(layer: Layer) -> str:
    """Return the layer's type and options, less those that only say how a training begins or goes on."""
    ignored = {"block", "momentum", "running_var", "p", "std"}
    options = [f"{name}={getattr(layer, name)!r}" for name in layer.arguments if name not in ignored]
    shapes = [f"{name} {shape}" for name, shape in layer.parameter_shapes().items()] if not options else []
    block = [_kind(inner) for inner in layer.block]
    return f"{type(layer).__name__}({', '.join([*options, *shapes, *block])})"


def _direction(problem: Problem, rng: np.random.Generator) -> Array:
    """Return a random direction, the part of each output's weights as long as these."""
    parts = []
    for _, array in problem.names:
        part = np.zeros(array.shape)
        if array.ndim > 1:
            part = rng.normal(size=array.shape)
            rows, own = part.reshape(len(part), -1), array.reshape(len(part), -1)
            rows *= np.linalg.norm(own, axis=1, keepdims=True) / np.linalg.norm(rows, axis=1, keepdims=True)
        parts.append(part.reshape(-1))
    return np.concatenate(parts)
