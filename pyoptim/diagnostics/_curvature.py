"""How the loss is curved: along the gradient, in all directions, and around a minimum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn
from ..runtime.dtypes import Array
from ..runtime.extras import needed
from ..runtime.figures import drawn_on, legend_beside, log_if_wide, saved
from ..runtime.numbers import POSITIVE, check_count, check_seed
from ._problem import NOT_FINITE, Problem

_SMALL = 128  # parameters of which the whole Hessian is made


@dataclass(frozen=True)
class Curvature:
    """What `curvature` found.

    Attributes
    ----------
    loss : float
    gradient_squared : float
        ``g^T g``.
    curvature : float
        ``g^T H g``.
    best_step : float
        ``g^T g / g^T H g``, the learning rate that lowers the loss most along the gradient, as far as it is a
        parabola; infinite where it is not curved upwards, and NaN, as the other numbers, where the loss or
        its gradient is not finite.
    largest_step : float
        Twice that: beyond it a step along the gradient raises the loss.
    steps, losses, predicted : array
        Learning rates, the loss after a step of each, and what the parabola says of it.
    """

    loss: float
    gradient_squared: float
    curvature: float
    best_step: float
    largest_step: float
    steps: Array
    losses: Array
    predicted: Array

    def __str__(self) -> str:
        if np.isnan(self.best_step):
            return NOT_FINITE
        text = f"g.g {self.gradient_squared:.2e}, g.Hg {self.curvature:.2e}: "
        if self.gradient_squared == 0:
            return text + "the gradient is 0, so no step along it changes the loss"
        if np.isinf(self.best_step):
            kind = "curved downwards" if self.curvature < 0 else "not curved"
            return text + f"the loss is {kind} along the gradient, which sets no limit to the learning rate"
        return text + (
            f"along the gradient the best learning rate is {self.best_step:.2e}, and beyond "
            f"{self.largest_step:.2e} the loss rises"
        )

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the loss after a step along the gradient over its length; returns the figure."""
        figure, axes = drawn_on(axes, 6, 4, path, title)
        axes.plot(self.steps, self.losses, color="#0072B2", label="measured")
        axes.plot(self.steps, self.predicted, color="0.4", linestyle="--", label="parabola")
        if np.isfinite(self.best_step):
            axes.axvline(self.best_step, color="#009E73", linestyle=":", label="best step")
            axes.axvline(self.largest_step, color="#D55E00", linestyle=":", label="largest step")
        axes.axhline(self.loss, color="0.8", linewidth=1, zorder=0)
        log_if_wide(axes, np.append(self.losses, self.predicted))
        axes.set(xlabel="learning rate of one step", ylabel="loss", title=title or "loss along the gradient")
        legend_beside(axes)
        return saved(figure, path)


def curvature(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    *,
    penalty: nn.Penalty | None = None,
    points: int = 25,
) -> Curvature:
    """Measure how far a step along the gradient descends: ``g^T g`` against ``g^T H g``.

    The loss after a step of rate e is about ``J - e g^T g + e^2/2 g^T H g``. Where the gradient stays large
    while ``g^T H g`` grows in the course of a training, the loss is ill-conditioned: steps have to become
    small although there is far to go (Goodfellow et al., chapter 8). Momentum, adaptive rates,
    normalisation or second order are the cures. A learning rate of plain gradient descent above
    ``largest_step`` is too large here.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is.
    loss : nn.Loss
    x, y
        Examples as `Trainer.fit` takes them: some hundred will do.
    penalty : nn.Penalty, optional
    points : int, default 25
        How many steps are measured for the plot.

    Returns
    -------
    Curvature
    """
    count = check_count("points", points)
    problem = Problem(model, loss, x, y, penalty)
    w = problem.parameters
    if not problem.is_finite():
        nan, unknown = float("nan"), np.full(count, np.nan)
        return Curvature(problem.value(w), nan, nan, nan, nan, np.linspace(0, 1, count), unknown, unknown)
    value, g = problem.value_and_gradient(w)
    squared = float(g @ g)
    curved = float(g @ problem.hessian_vector(w, g)) if squared else 0.0
    best = float("nan") if not np.isfinite(curved) else squared / curved if curved > 0 else float("inf")
    length = best if np.isfinite(best) else 1 / (np.sqrt(squared) or 1.0)
    steps = np.linspace(0, 2.4 * length, count)
    losses = np.array([problem.value(w - step * g) for step in steps])
    predicted = value - steps * squared + steps**2 / 2 * curved
    return Curvature(value, squared, curved, best, 2 * best, steps, losses, predicted)


def _tick(least: float, value: float, _: int) -> str:
    """Label a tick that is far enough from 0 not to meet others."""
    return f"{value:g}" if abs(value) > least else ""


@dataclass(frozen=True)
class Spectrum:
    """What `hessian_spectrum` found.

    Attributes
    ----------
    largest, smallest : array
        Eigenvalues of the Hessian: the largest first, and the smallest first. Those of large models are right
        to some 1e-4 of the largest; those that were not found in time are left out, and NaN if all were. They
        are also NaN where the loss or its gradient is not finite.
    largest_step : float
        ``2 / largest[0]``: gradient descent with a larger learning rate diverges along that direction;
        infinite where no direction is curved upwards.
    parameters : int
        How many eigenvalues there are in all.
    """

    largest: Array
    smallest: Array
    largest_step: float
    parameters: int

    def __str__(self) -> str:
        if np.isnan(self.largest).all() or np.isnan(self.smallest).all():
            return "the ends of the spectrum were not found, or the loss is not finite at the model"
        falls = self.smallest[0] < -1e-6 * abs(self.largest[0])
        kind = "no minimum: in some directions the loss falls" if falls else "curved upwards everywhere"
        return (
            f"curvature from {self.smallest[0]:.2e} to {self.largest[0]:.2e} ({kind}); gradient descent "
            f"stands learning rates up to {self.largest_step:.2e}"
        )

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the eigenvalues, positive and negative ones in colours of their own; returns the figure."""
        figure, axes = drawn_on(axes, 6, 4, path, title)
        values = np.concatenate([self.smallest, self.largest[::-1]])
        colors = ["#0072B2" if value >= 0 else "#D55E00" for value in values]
        axes.bar(range(len(values)), values, color=colors)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axvline(len(self.smallest) - 0.5, color="0.6", linestyle=":")
        top = float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0))
        if top > 0:
            least = top * 1e-4  # of what is less, only the sign can be seen
            axes.set_yscale("symlog", linthresh=least)
            axes.yaxis.set_major_formatter(partial(_tick, 10 * least))
        axes.set_xticks([])
        axes.set(
            xlabel=f"{len(self.smallest)} smallest, and {len(self.largest)} largest of {self.parameters:,}",
            ylabel="eigenvalue of the Hessian",
            title=title or "curvature in all directions",
        )
        return saved(figure, path)


def hessian_spectrum(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    *,
    penalty: nn.Penalty | None = None,
    count: int = 5,
    seed: int | None = 0,
) -> Spectrum:
    """Find the largest and smallest eigenvalues of the Hessian, by Lanczos' method. Needs SciPy.

    A largest one far above the rest says that few directions limit the learning rate. Clearly negative ones
    say that the point is no minimum: there are ways down (at a small gradient: a saddle point). Many near 0
    are usual: the loss is flat along them. `scipy.sparse.linalg.eigsh` finds them from products of the
    Hessian and a vector, each of which costs some two gradients.

    Lanczos' method sees an eigenvalue that occurs several times as one: in models of more than some hundred
    parameters it may be listed fewer times than it occurs. A single `Dense` layer with `MSE` is such a case,
    in which each eigenvalue occurs once for each output. The whole Hessian of smaller models is made, so that
    theirs are complete.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is.
    loss : nn.Loss
    x, y
        Examples as `Trainer.fit` takes them: some hundred will do.
    penalty : nn.Penalty, optional
    count : int, default 5
        How many of each; fewer where there are fewer parameters.
    seed : int, optional
        Of the vector that Lanczos' method begins with.

    Returns
    -------
    Spectrum
    """
    count, rng = check_count("count", count), check_seed("seed", seed)
    problem = Problem(model, loss, x, y, penalty)
    w, size = problem.parameters, problem.size
    count = min(count, size)
    if not problem.is_finite():
        return Spectrum(np.array([np.nan]), np.array([np.nan]), float("nan"), size)
    if size <= max(_SMALL, 4 * count):
        rows = np.array([problem.hessian_vector(w, unit) for unit in np.eye(size)])
        finite = np.isfinite(rows).all()
        values = np.linalg.eigvalsh((rows + rows.T) / 2) if finite else np.full(size, np.nan)
        largest, smallest = values[::-1][:count], values[:count]
    else:
        largest, smallest = _ends(problem, count, rng.normal(size=size))
    top = float(largest[0])
    step = float("nan") if np.isnan(top) else 2 / top if top > 0 else float("inf")
    return Spectrum(largest, smallest, step, size)


def _ends(problem: Problem, count: int, start: Array) -> tuple[Array, Array]:
    """Return the largest eigenvalues of the Hessian and the smallest, from the ends, by Lanczos' method."""
    linear = needed("scipy.sparse.linalg", "hessian_spectrum needs SciPy", "pyoptim[scipy]")
    w, size = problem.parameters, problem.size

    def found(sign: float, shift: float) -> Array:
        """The ``count`` largest eigenvalues of ``sign H + shift I``, of the larger ones first."""

        def product(v: Array) -> Array:
            v = v.reshape(-1)
            return sign * problem.hessian_vector(w, v) + shift * v

        operator = linear.LinearOperator((size, size), product, dtype=np.float64)
        return _largest(linear, operator, count, start)

    largest = found(1, 0)
    # The smallest ones lie around 0, where an accuracy relative to themselves is never reached.
    shift = float(np.abs(largest).max())
    return largest, shift - found(-1, shift) if np.isfinite(shift) else np.array([np.nan])


def _largest(linear: Any, operator: Any, count: int, start: Array) -> Array:
    """Return the largest eigenvalues, falling; NaN instead of them where none was found in time."""
    try:
        values = linear.eigsh(
            operator, count, which="LA", v0=start, tol=1e-4, return_eigenvectors=False, maxiter=50
        )
    except linear.ArpackNoConvergence as error:
        values = error.eigenvalues if len(error.eigenvalues) else [np.nan]
    except linear.ArpackError:  # a product is not finite, or the start lies in a space that H leaves alone
        values = [np.nan]
    return np.sort(np.asarray(values))[::-1]


@dataclass(frozen=True)
class Sharpness:
    """What `sharpness` found.

    Attributes
    ----------
    loss : float
    box_rise : float
        The largest rise of the loss that was found in the box; NaN where the loss is not finite, at the model
        or at a point of the box.
    keskar : float
        ``100 * box_rise / (1 + loss)``: Keskar et al.'s, in percent.
    sam : float
        The rise of the loss after a step of length ``rho`` along the gradient: Foret et al.'s.
    """

    loss: float
    box_rise: float
    keskar: float
    sam: float
    radii: Array
    rises: Array

    def __str__(self) -> str:
        if not np.isfinite(self.loss):
            return NOT_FINITE
        if np.isnan(self.box_rise):
            return "the loss is NaN or infinite at a point of the box: take a smaller epsilon"
        return (
            f"sharpness {self.keskar:.3g} % (within the box the loss rises from {self.loss:.3g} by "
            f"{self.box_rise:.3g}), and by {self.sam:.3g} along the gradient"
        )

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the loss on the way to the worst point of the box; returns the figure."""
        figure, axes = drawn_on(axes, 6, 4, path, title)
        axes.plot(self.radii, self.loss + self.rises, color="#D55E00", marker="o", markersize=3)
        log_if_wide(axes, self.loss + self.rises)
        axes.set(
            xlabel="share of the way to the worst point of the box",
            ylabel="loss",
            title=title or f"sharpness {self.keskar:.3g} %",
        )
        axes.grid(alpha=0.3)
        return saved(figure, path)


def sharpness(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    *,
    penalty: nn.Penalty | None = None,
    epsilon: float = 1e-3,
    rho: float = 0.05,
    iterations: int = 10,
    seed: int | None = 0,
) -> Sharpness:
    """Measure how much the loss rises around a minimum. Needs SciPy.

    Compare it between models of one architecture on the same data: of two with the same training loss the
    one in the flatter minimum tends to generalise better. Small batches and SAM lead to flatter ones, large
    batches to sharper ones (Keskar et al. 2017, lecture 003). The number alone says little: networks that
    scale a layer up and the next down compute the same and differ in it (Dinh et al. 2017).

    Parameters
    ----------
    model : nn.Sequential
        At a minimum, or near one. Left as it is.
    loss : nn.Loss
    x, y
        Examples as `Trainer.fit` takes them.
    penalty : nn.Penalty, optional
    epsilon : float > 0, default 1e-3
        Half the side of the box along a parameter w is ``epsilon * (|w| + 1)``.
    rho : float > 0, default 0.05
        Length of the step along the gradient.
    iterations : int, default 10
        Of L-BFGS-B (`scipy.optimize`), which climbs within the box.
    seed : int, optional
        Of the point in the box from which it climbs.

    Returns
    -------
    Sharpness
    """
    epsilon, rho = POSITIVE.number("epsilon", epsilon), POSITIVE.number("rho", rho)
    iterations, rng = check_count("iterations", iterations), check_seed("seed", seed)
    problem = Problem(model, loss, x, y, penalty)
    optimize = needed("scipy.optimize", "sharpness needs SciPy", "pyoptim[scipy]")
    w, radii = problem.parameters, np.linspace(0, 1, 11)
    if not problem.is_finite():
        nan = float("nan")
        return Sharpness(nan, nan, nan, nan, radii, np.full(len(radii), nan))
    value, g = problem.value_and_gradient(w)
    length = float(np.linalg.norm(g))
    with np.errstate(all="ignore"):
        sam = problem.value(w + rho / length * g) - value if length else 0.0
        half = epsilon * (np.abs(w) + 1)
        start = rng.uniform(-1, 1, problem.size)
        top = _climbed(optimize, problem, (w, value), half, start, iterations)
        corners = [top, *(np.sign(direction) for direction in (top, g))]
        rises = np.array([problem.value(w + half * z) - value for z in corners])
        best = int(np.argmax(rises))  # the first NaN if there is one
        way = np.array([problem.value(w + r * half * corners[best]) - value for r in radii])
    rise = max(0.0, float(rises[best])) if np.isfinite(rises[best]) else float("nan")
    return Sharpness(value, rise, 100 * rise / (1 + value), sam, radii, way)


def _climbed(
    optimize: Any, problem: Problem, base: tuple[Array, float], half: Array, start: Array, iterations: int
) -> Array:
    """Return a high point of the box, which SciPy sees as [-1, 1] in all directions."""
    w, value = base

    def falling(z: Array) -> tuple[float, Array]:
        risen, slope = problem.value_and_gradient(w + half * z)
        return -(risen - value) / (1 + abs(value)), -half * slope / (1 + abs(value))

    # Scaled so that the gradient at the start has a size that the stopping rules of SciPy do not take for 0.
    first, slope = falling(start)
    if not (np.isfinite(first) and np.isfinite(slope).all()):
        return start
    scale = 1 / max(float(np.abs(slope).max()), 1e-300)
    found = optimize.minimize(
        lambda z: tuple(scale * part for part in falling(z)),
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-1, 1)] * problem.size,
        options={"maxiter": iterations},
    )
    climbed: Array = found.x
    return climbed
