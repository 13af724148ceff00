"""Whether the gradients are those of the loss, and how much they differ from example to example."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn
from ..runtime.dtypes import Array
from ..runtime.figures import drawn_on, legend_beside, log_if_wide, saved
from ..runtime.numbers import POSITIVE, check_count, check_flag, check_seed
from ._problem import NOT_FINITE, Problem

_EPS = float(np.finfo(np.float64).eps)
_OF_DIFFERENCES = nn.MSE, nn.L1, nn.Huber, nn.Hinge, nn.Poisson  # losses that round as they are large


@dataclass(frozen=True)
class GradientCheck:
    """What `gradient_check` found.

    Attributes
    ----------
    errors : dict of str to float
        Name of each parameter, and "input" -> the largest difference between backward's gradient and the
        measured one, beyond what rounding explains, as a share of the largest entry of that gradient, or of a
        thousandth of the largest one of all parameters where that is more. 0 is right; 1 and more is a wrong
        sign or a factor. All are NaN where the loss or its gradient is not finite.
    hidden : dict of str to float
        Name of each parameter, and "input" -> the error that rounding of the loss could hide, as such a
        share.
    worst : str
        The name with the largest error.
    tolerance : float
    unclear : bool
        Whether no error is beyond the tolerance, but the check cannot tell: rounding could hide an error of
        more than the tolerance, as a share of the largest entry of all gradients, or nothing is finite.
    ok : bool
        Whether all errors are within the tolerance, and the check can tell.
    """

    errors: dict[str, float]
    tolerance: float
    hidden: dict[str, float] = field(default_factory=dict)
    unclear: bool = False
    worst: str = field(init=False)
    ok: bool = field(init=False)

    def __post_init__(self) -> None:
        def key(name: str) -> float:
            return np.inf if np.isnan(self.errors[name]) else self.errors[name]

        object.__setattr__(self, "worst", max(self.errors, key=key))
        object.__setattr__(self, "ok", self.errors[self.worst] <= self.tolerance and not self.unclear)

    def __str__(self) -> str:
        rounding = max(self.hidden.values(), default=0.0)
        if self.ok:
            return (
                f"gradients are right: the largest error is {self.errors[self.worst]:.1e} ({self.worst}), "
                f"and rounding hides {rounding:.1e} at most"
            )
        if self.unclear and np.isnan(self.errors[self.worst]):
            return NOT_FINITE
        if self.unclear:
            return (
                "whether gradients are right cannot be told: the loss is so large beside them that its "
                f"rounding hides errors up to {rounding:.1e}, expected {self.tolerance:g} at most: scale the "
                "targets, or check other weights"
            )
        return (
            f"the gradient of {self.worst!r} is wrong: backward's differs from the measured one by "
            f"{self.errors[self.worst]:.1e} of the largest entry, expected {self.tolerance:g} at most"
        )

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the error of each parameter, those beyond the tolerance in red; returns the figure."""
        names = list(self.errors)
        figure, axes = drawn_on(axes, 7, 1.4 + 0.3 * len(names), path, title)
        least = 1e-14
        values = [max(least, np.nan_to_num(self.errors[name], nan=1.0)) for name in names]
        colors = ["#0072B2" if self.errors[name] <= self.tolerance else "#D55E00" for name in names]
        axes.barh(names, values, left=least, color=colors)
        axes.axvline(self.tolerance, color="black", linestyle="--")
        axes.set_xscale("log")
        axes.set_xlim(least, max(1.0, 10 * max(values)))
        axes.invert_yaxis()
        axes.set(xlabel="error of the gradient, relative (line: tolerance)", title=title or "gradient check")
        return saved(figure, path)


def gradient_check(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    *,
    penalty: nn.Penalty | None = None,
    training: bool = True,
    entries: int = 10,
    tolerance: float = 1e-6,
    seed: int | None = 0,
) -> GradientCheck:
    """Compare the gradients that backward computes with central differences of the loss.

    Run it on every layer and loss of your own. An error names the parameter that has it: look at the
    backward of its layer first, then at the layers after it; where all are wrong, at the loss. If the input's
    alone is, ``backward`` of the first layer returns a wrong gradient.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is: a copy in float64 is measured.
    loss : nn.Loss
    x, y
        Some 4 to 32 examples; each entry that is checked costs two passes over them.
    penalty : nn.Penalty, optional
    training : bool, default True
        Whether layers compute as in training, with the same masks and noise each time, or as in evaluation.
    entries : int, default 10
        How many entries of each parameter are measured, drawn at random.
    tolerance : float > 0, default 1e-6
        Of the error relative to the largest entry of the gradient. Differences in float64 are right to
        some 1e-9 where the loss is about as large as its gradient; where it is so much larger that rounding
        could hide an error beyond the tolerance, the result says so.
    seed : int, optional

    Returns
    -------
    GradientCheck
    """
    problem = Problem(model, loss, x, y, penalty, training=check_flag("training", training), random=True)
    entries, rng = check_count("entries", entries), check_seed("seed", seed)
    tolerance = POSITIVE.number("tolerance", tolerance)
    problem.data = problem.data._replace(x=problem.data.x.astype(np.float64))  # they may be bytes
    value, gradient = problem.here(need_dx=True)
    arrays = {**dict(problem.names), "input": problem.data.x}
    ends = np.cumsum([array.size for _, array in problem.names])[:-1]
    parts = [*np.split(gradient, ends), np.asarray(problem.dx).reshape(-1)]
    if not (np.isfinite(value) and all(np.isfinite(part).all() for part in parts)):
        unknown = dict.fromkeys(arrays, float("nan"))
        return GradientCheck(unknown, tolerance, unknown, True)
    largest = [max(float(np.abs(part).max()) for part in some) for some in (parts[:-1], parts)]
    errors, hidden, unclear = {}, {}, False
    for (name, array), part in zip(arrays.items(), parts, strict=True):
        top = largest[name == "input"]
        chosen = rng.permutation(array.size)[:entries]
        found = [_difference(problem, array, i, float(part[i]), value, tolerance * top) for i in chosen]
        error, rounding = (max(pair[k] for pair in found) for k in (0, 1))
        measured = max(abs(part[i]) + pair[0] for i, pair in zip(chosen, found, strict=True))
        scale = max(measured, 1e-3 * top) or 1.0
        errors[name], hidden[name] = error / scale, rounding / scale
        unclear = unclear or rounding > tolerance * (max(measured, top) or 1.0)
    wrong = any(not error <= tolerance for error in errors.values())
    return GradientCheck(errors, tolerance, hidden, unclear and not wrong)


def _difference(
    problem: Problem, array: Array, at: int, expected: float, value: float, limit: float
) -> tuple[float, float]:
    """Return how far a slope is from the expected one, beyond what rounding explains, and that rounding.

    Where they differ a kink of the loss may lie within the step: smaller steps are tried, as long as
    rounding, which grows as they shrink, stays below the limit. Of the steps that one counts at which both
    numbers together are smallest.
    """
    index = np.unravel_index(at, array.shape)
    kept, best = array[index], (np.inf, np.inf)
    # The log of a sum of exponentials rounds the sum, which is above 1, however small the loss may be.
    floor = 1e-3 if isinstance(problem.loss, _OF_DIFFERENCES) else 0.125
    step = _EPS ** (1 / 3) * max(1.0, abs(float(kept)))
    for _ in range(3):
        ends = []
        for side in (step, -step):
            array[index] = kept + side
            ends.append(problem.here(False)[0])
        array[index] = kept
        rounding = 8 * _EPS * max(abs(value), floor) / step
        error = abs((ends[0] - ends[1]) / (2 * step) - expected)
        if np.isfinite(error):
            best = min(best, (error, rounding), key=sum)
        if best[0] <= best[1] + 1e-9 * abs(expected) or 16 * rounding > limit:
            break
        step /= 16
    error, rounding = best
    return (max(0.0, error - rounding), rounding) if np.isfinite(error) else (float("nan"), float("nan"))


@dataclass(frozen=True)
class GradientNoise:
    """What `gradient_noise` found.

    Attributes
    ----------
    norm : float
        Length of the mean gradient of all examples.
    deviation : float
        Root of the variance of the gradient over examples, summed over the parameters.
    batch_size : float
        Where the standard error of a batch's gradient is as long as the gradient: variance over squared norm.
        It is infinite where the gradient is 0, and NaN, as the other numbers, where it is not finite.
    sizes, errors : array
        Batch sizes, and the standard error of their mean gradient, ``deviation / sqrt(size)``.
    """

    norm: float
    deviation: float
    batch_size: float
    sizes: Array
    errors: Array

    def __str__(self) -> str:
        if not np.isfinite([self.norm, self.deviation]).all():
            return NOT_FINITE
        return (
            f"gradient {self.norm:.2e}, deviation over examples {self.deviation:.2e}: noise and signal are "
            f"alike at a batch of {self.batch_size:,.0f}"
        )

    def plot(self, path: str | Path | None = None, *, axes: Any = None, title: str = "") -> Any:
        """Draw the standard error over the batch size, beside the gradient's length; returns the figure."""
        figure, axes = drawn_on(axes, 6, 4, path, title)
        axes.semilogx(self.sizes, self.errors, marker="o", markersize=3, label="standard error of a batch")
        axes.axhline(self.norm, color="#D55E00", linestyle="--", label="length of the gradient")
        axes.set(xlabel="batch size", ylabel="length", title=title or "gradient noise")
        log_if_wide(axes, [*self.errors, self.norm])
        axes.grid(alpha=0.3)
        legend_beside(axes)
        return saved(figure, path)


def gradient_noise(
    model: nn.Sequential,
    loss: nn.Loss,
    x: Any,
    y: Any,
    *,
    penalty: nn.Penalty | None = None,
    examples: int = 256,
    seed: int | None = 0,
) -> GradientNoise:
    """Measure how much the gradient varies over examples, against its length.

    The standard error falls as the root of the batch size only: 100 times the examples, and the work, make it
    10 times smaller. Batches well below ``batch_size`` point anywhere, and gain from more examples or a
    smaller learning rate; batches well above it repeat what they know (McCandlish et al. 2018). It grows as
    the training goes on and the gradient becomes small.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is. Layers compute as in evaluation, so that an example has a gradient of its own.
    loss : nn.Loss
    x, y
        Examples as `Trainer.fit` takes them.
    penalty : nn.Penalty, optional
        Moves the mean gradient, and not the variance.
    examples : int, default 256
        How many are drawn to measure the deviation, each with a pass of its own. At least 2. The mean
        gradient is that of all of x, from one pass.
    seed : int, optional

    Returns
    -------
    GradientNoise
    """
    problem = Problem(model, loss, x, y, penalty, training=False, penalized=False)
    data, count = problem.data, min(check_count("examples", examples), len(problem.data.x))
    if count < 2:
        raise ValueError(f"examples is {examples} of {len(data.x)} in x, expected at least 2 of both")
    chosen = check_seed("seed", seed).permutation(len(data.x))[:count]
    total, squares, divisors = np.zeros(problem.size), 0.0, 0.0
    for i in chosen:
        problem.data = data._replace(x=data.x[i : i + 1], y=data.y[i : i + 1])
        gradient = problem.here()[1]
        part = float(problem.loss.divisor(problem.output, problem.data.y))
        gradient *= part
        total, squares, divisors = total + gradient, squares + float(gradient @ gradient), divisors + part
    mean, factor = total / divisors if divisors else total, count / divisors if divisors else 0.0
    variance = np.maximum(0.0, factor**2 * squares / count - float(mean @ mean)) * count / (count - 1)
    problem.data = data
    mean = problem.here()[1]  # the mean of the few would add its own noise to the length
    if penalty is not None:
        mean = mean + problem.penalty_gradient()
    norm = float(np.linalg.norm(mean))
    sizes = 2.0 ** np.arange(0, max(1, int(np.ceil(np.log2(len(data.x))))) + 1)
    deviation = float(np.sqrt(variance))
    needed = float(variance) / norm**2 if norm**2 else float("inf")
    return GradientNoise(norm, deviation, needed, sizes, deviation / np.sqrt(sizes))
