"""The studies of learning rates and of their schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import schedules
from ...optim.elementwise import SGD
from ...runtime.figures import log_axis, whole_ticks
from ._common import (
    Curve,
    Options,
    Result,
    Study,
    band,
    curves_table,
    draw_curves,
    load,
    mean,
    network,
    style,
    train,
    trainer,
)

_RATES = (5.0, 0.5, 0.05, 0.0003)


def _learning_rates(options: Options) -> Result:
    data = load(options)
    curves = [_trained(f"lr {lr:g}", lr, options, data) for lr in _RATES]
    chance = float(np.bincount(data.y_test).max() / len(data.y_test))
    return Result(_setting(options), curves_table(curves), (curves, chance))


def _draw_rates(result: Result, axes: Sequence[Any]) -> None:
    draw_curves(result._replace(data=result.data[0]), axes)


def _trained(name: str, lr: float | schedules.Schedule, options: Options, data: Any) -> Curve:
    def make(seed: int) -> Any:
        return trainer(network(data, 100), lambda p: SGD(p, lr=lr), seed)

    return train(name, options, data, make)


def _setting(options: Options) -> str:
    return f"{options.dataset}, ReLU network (100,), SGD, batches of 60, {options.epochs} epochs"


def _seen_of_rates(result: Result) -> str:
    """Say of each rate whether it is the best, too large or too small, and which stay at chance."""
    curves, chance = result.data
    ends = [mean(result, curve.name, "test accuracy") for curve in curves]
    best, words = _RATES[int(np.argmax(ends))], []
    for rate, curve, end in zip(_RATES, curves, ends, strict=True):
        losses = curve.values("loss")
        text = f"lr {rate:g} ends at {end:.1%} of the test examples"
        if rate == best:
            text += ", the best of these"
        elif end > max(ends) - 0.05:
            text += ", nearly as good"
        elif rate > best:
            text += ": it is too large, the steps throw the weights to where the units are dead or saturated"
        else:
            first, last = losses[:, 0].mean(), losses[:, -1].mean()
            text += f": it is too small, the loss went from {first:.3g} to {last:.3g}"
        if end < 1.5 * chance:
            text += f", and at chance ({chance:.1%}) nothing was learnt"
        words.append(text)
    return ";\n".join(words) + "."


def _schedules(options: Options) -> Result:
    data = load(options)
    steps = options.epochs * -(-len(data.x_train) // 60)
    compared: dict[str, schedules.Schedule] = {
        "constant": schedules.Constant(0.3),
        "inverse time": schedules.InverseTime(0.3, decay=10 / steps),
        "exponential": schedules.Exponential(0.3, rate=0.01, steps=steps),
        "step": schedules.Step(0.3, every=max(1, steps // 3)),
        "cosine": schedules.Cosine(0.3, steps=steps),
        "one-cycle": schedules.OneCycle(0.6, steps=steps),
        "warm-up, cosine": schedules.WarmUp(schedules.Cosine(0.3, steps=steps), steps=steps // 10),
    }
    curves = [_trained(name, schedule, options, data) for name, schedule in compared.items()]
    at = np.unique(np.linspace(0, steps - 1, 400).astype(int))
    rates = {name: [schedule(int(k)) for k in at] for name, schedule in compared.items()}
    return Result(_setting(options), curves_table(curves), (curves, at, rates))


def _draw_schedules(result: Result, axes: Sequence[Any]) -> None:
    """Draw each schedule above the loss that it led to, with the losses of the others in grey behind."""
    curves, at, rates = result.data
    upper, lower = axes[: len(curves)], axes[len(curves) :]
    losses = {curve.name: curve.values("loss") for curve in curves}
    seen = np.concatenate([values.ravel() for values in losses.values()])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    top = 1.05 * max(map(max, rates.values()))
    for i, (curve, above, below) in enumerate(zip(curves, upper, lower, strict=True)):
        above.plot(at, rates[curve.name], color=style(i)["color"])
        above.set(title=curve.name, xlabel="step", ylim=(0, top))
        for other, values in losses.items():
            if other != curve.name:
                below.plot(np.arange(values.shape[1]) + 1, values.mean(axis=0), color="0.8", linewidth=1)
        band(below, np.arange(losses[curve.name].shape[1]) + 1, losses[curve.name], i, curve.name)
        accuracy = mean(result, curve.name, "test accuracy")
        below.set(title=f"test accuracy {accuracy:.2%}", xlabel="epoch")
        whole_ticks(below, losses[curve.name].shape[1])
        if seen.size:
            log_axis(below, seen.min() / 1.2, seen.max() * 1.2)
        for panel in (above, below):
            panel.grid(alpha=0.3)
            panel.tick_params(labelleft=i == 0)
    upper[0].set_ylabel("learning rate")
    lower[0].set_ylabel("training loss")


def _seen_of_schedules(result: Result) -> str:
    """Say which schedule is the best, and whether that is more than the noise of the seeds."""
    names = [curve.name for curve in result.data[0]]
    ends = {name: np.atleast_1d(result.rows[name]["test accuracy"]) for name in names}
    losses = {name: mean(result, name, "loss") for name in names}
    best = max(names, key=lambda name: ends[name].mean())
    gains = ends[best] - ends["constant"]  # seed by seed
    lowest = min(names, key=losses.__getitem__)
    text = (
        f"The training loss ends lowest with {lowest} ({losses[lowest]:.3g}; constant: "
        f"{losses['constant']:.3g}), the test accuracy highest with {best}: {ends[best].mean():.2%}, "
        f"{gains.mean():.2%} above constant. "
    )
    if best != "constant" and len(gains) > 1:
        error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
        clear = "clear" if gains.mean() > 2 * error else "too little to tell"
        text += f"With these seeds that is {clear} (standard error {error:.2%})."
    return text


LEARNING_RATE = Study(
    "learning rates from too small to too large", _learning_rates, _draw_rates, _seen_of_rates
)
SCHEDULES = Study(
    "learning-rate schedules, each above its loss", _schedules, _draw_schedules, _seen_of_schedules,
    panels=14, rows=2,
)  # fmt: skip
