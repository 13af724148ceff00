"""What trainings measured, drawn over the epochs: one training, or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_high, median_low
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..metrics import named
from ..nn import Dense
from ..runtime.dtypes import Array
from ..runtime.figures import legend_of, log_axis, marker, panels_on, saved, style, whole_ticks
from ..runtime.numbers import check_text, shown

if TYPE_CHECKING:
    from ..nn import Sequential
    from ..optim.optimizer import Optimizer
    from .history import History

_TRAINING, _VALIDATION, _BAD = "#0072B2", "#E69F00", "#D55E00"


def describe(model: Sequential, how: str) -> str:
    """Say in a few words what is trained, and how; ``how`` names the optimizer."""
    leaves = list(model.leaves().values())
    dense = [leaf for leaf in leaves if isinstance(leaf, Dense)]
    others = list(dict.fromkeys(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Dense)))
    if not dense:
        return f"{' '.join(others) or 'no parameters'}, {how}"
    sizes = [dense[0].in_features, *(leaf.out_features for leaf in dense)]
    return "-".join(map(str, sizes)) + "".join(f" {name}" for name in others) + f", {how}"


def of_optimizer(optimizer: Optimizer) -> str:
    """Name an optimizer with its learning rates, of a schedule only the kind."""
    rates = [group["lr"] for group in optimizer.param_groups]
    words = [f"{rate:g}" if isinstance(rate, int | float) else type(rate).__name__ for rate in rates]
    return f"{type(optimizer).__name__}, lr {' and '.join(dict.fromkeys(words))}"


def plot_history(history: History, path: Any, axes: Any, title: str, validation: str) -> Any:
    """Draw a history: see `History.plot`."""
    check_text("validation", validation)
    if not history.get("loss"):
        raise ValueError("history holds no epoch to plot")
    names = list(dict.fromkeys(["loss", *(key.removeprefix("val_") for key in history if key != "seconds")]))
    wide = 5 if len(names) > 1 else 7  # with its legend
    figure, panels = panels_on(axes, (wide, 4), len(names), path, title)
    heading = ": ".join(text for text in (title, history.about) if text)
    if axes is None and heading:
        figure.suptitle(fill(heading, int(11 * figure.get_figwidth())), fontsize=11)
    for panel, name in zip(panels, names, strict=False):
        lines = {"training (as it went)": history.get(name), validation: history.get(f"val_{name}")}
        known = {label: np.array(values, float) for label, values in lines.items() if values}
        best = _draw_lines(panel, known, _is_better(name), history, validation, name)
        above = heading if axes is not None and panel is panels[0] else ""
        panel.set_title("\n".join(text for text in (above, best) if text), fontsize=10)
    if len(history["loss"]) > 1:
        legend_of(panels, axes is None)
    return saved(figure, path)


def _unit(history: Mapping[str, Any]) -> str:
    return "epoch" if getattr(history, "result", None) is None else "iteration"


def _is_better(name: str) -> Any:
    """Return what finds the best of some values of a metric, or None if that isn't known."""
    if name == "loss":
        return np.nanargmin
    try:
        named(name)
    except ValueError:
        return None
    return np.nanargmax


def _draw_lines(
    axes: Any, lines: Mapping[str, Array], best_of: Any, history: History, validation: str, name: str
) -> str:
    """Draw a metric on a panel, and return what its title says of the best epoch."""
    count, unit = max(map(len, lines.values())), _unit(history)
    percent = name == "accuracy"
    colors = {label: _VALIDATION if label == validation else _TRAINING for label in lines}
    axes.set(xlabel=unit, ylabel=name)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if percent:
        axes.yaxis.set_major_formatter(_as_percent)
    if count == 1:
        _draw_bars(axes, {label: float(values[0]) for label, values in lines.items()}, colors, percent)
        axes.set_xlabel(f"after one {unit}")
        return ""
    for label, values in lines.items():
        epochs = np.arange(1, len(values) + 1)
        axes.plot(
            epochs, values, marker="o", markersize=3 if count <= 60 else 0, label=label, color=colors[label]
        )
    whole_ticks(axes, count)
    found = np.concatenate(list(lines.values()))
    finite = found[np.isfinite(found)]
    if name == "loss" and finite.size and finite.min() > 0:
        log_axis(axes, finite.min() / 1.1, finite.max() * 1.1)
    elif not finite.size:
        axes.set_yticks([])
    bad = np.flatnonzero(~np.all([np.isfinite(values) for values in lines.values()], axis=0)) + 1
    if bad.size:
        axes.plot(bad, np.full(bad.size, 0.96), "x", color=_BAD, transform=axes.get_xaxis_transform(),
                  label="NaN or infinite")  # fmt: skip
    values = lines.get(validation, np.array([]))
    values = np.where(np.isfinite(values), values, np.nan)
    if best_of is None or np.isnan(values).all():
        return ""
    best = int(best_of(values))
    axes.plot(
        best + 1, values[best], "*", color="black", markersize=11, label=f"best ({validation})", zorder=5
    )
    number = _as_percent(values[best]) if percent else f"{values[best]:.4g}"
    return f"best {validation} {name}: {number} after {unit} {best + 1}"


def _draw_bars(axes: Any, values: Mapping[str, float], colors: Mapping[str, str], percent: bool) -> None:
    bars = axes.bar(list(values), [v if np.isfinite(v) else 0 for v in values.values()], 0.6,
                    color=[colors[label] for label in values])  # fmt: skip
    say = [_as_percent(v) if percent else f"{v:.4g}" for v in values.values()]
    axes.bar_label(bars, say, padding=2)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.margins(y=0.12)


def _as_percent(value: float, _: int = 0) -> str:
    return f"{100 * value:.4g} %"


def _share(value: float, _: int) -> str:
    """Label a tick of a share of errors, if there can be so many."""
    return _as_percent(value) if value <= 1 else ""


class _Bundle(NamedTuple):
    """The trainings of one name: the median and the range of a metric in each epoch."""

    name: str
    middle: Array
    low: Array
    high: Array
    diverged: bool  # whether the loss of any ended as no finite number

    @property
    def last(self) -> float:
        """What stands at the end; infinite if it is no number, so that it is the last of all."""
        return float(self.middle[-1]) if np.isfinite(self.middle[-1]) else np.inf


def compare(
    runs: Mapping[str, History | Sequence[History]],
    path: str | Path | None = None,
    *,
    axes: Any = None,
    title: str = "",
    validation: str = "validation",
) -> Any:
    """Draw several trainings side by side; returns the figure. Needs the extra ``plot``.

    The loss of the training, what was measured on validation data (the share of errors of a classifier, else
    the loss) and, at the right, what stands at the end of that, the best on top; its names and lines are the
    legend. Axes are logarithmic where values are positive, and end where one training that diverges would
    squeeze the others. Of lines that lie on each other the lower is the wider.

    Parameters
    ----------
    runs : mapping of str to History, or to a sequence of them
        Of what is compared, by its name. Several histories are those of different seeds: a line is their
        median, the band around it their range.
    path : str or Path, optional
        An image file to write too.
    axes : axes of matplotlib, or a sequence of them, optional
        What to draw on, a panel on each as far as they go, instead of a new figure.
    title : str
    validation : str, default "validation"
        What the validation data are, in words; "test" for the test set.

    Examples
    --------
    >>> po.compare({"SGD": [fit(po.SGD, seed) for seed in range(5)], "Adam": fit(po.Adam, 0)}, "both.png")
    """
    check_text("validation", validation)
    groups = _checked(runs)
    histories = [history for group in groups.values() for history in group]
    measures = {"loss": "training loss"}
    for key, label in (("val_accuracy", f"{validation} error"), ("val_loss", f"{validation} loss")):
        if len(measures) == 1 and all(key in history for history in histories):
            measures[key] = label
    figure, panels = panels_on(axes, (5, max(4.0, 1.2 + 0.27 * len(groups))), len(measures) + 1, path, title)
    unit = _unit(histories[0])
    for panel, (key, label) in zip(panels, measures.items(), strict=False):
        bundles = [_bundle(name, group, key) for name, group in groups.items()]
        percent = key == "val_accuracy"
        _draw_bundles(panel, bundles, percent)
        panel.set(xlabel=unit, ylabel=label, title=label)
    if len(panels) > len(measures):
        _draw_ranking(panels[-1], bundles, label, percent)
    else:
        legend_of(panels, axes is None)
    if axes is None:
        figure.suptitle(fill(title, int(11 * figure.get_figwidth())), fontsize=11)
    elif title:
        panels[0].set_title(title)
    return saved(figure, path)


def _checked(runs: Any) -> dict[str, list[History]]:
    if not isinstance(runs, Mapping):
        raise TypeError(f"runs is {shown(runs)}, expected a mapping of names to histories")
    groups = {}
    for name, given in runs.items():
        group = [given] if isinstance(given, Mapping) else given
        if not isinstance(group, Sequence) or not all(isinstance(one, Mapping) for one in group):
            raise TypeError(f"runs[{name!r}] is {shown(given)}, expected a History or a sequence of them")
        if not group or not all(one.get("loss") for one in group):
            raise ValueError(f"runs[{name!r}] holds no epoch to plot")
        groups[str(name)] = list(group)
    if not groups:
        raise ValueError("runs is empty, expected a training at least")
    return groups


def _bundle(name: str, group: Sequence[History], key: str) -> _Bundle:
    """Put the seeds together; what is not finite counts as worse than any number."""
    values = np.full((len(group), max(len(history[key]) for history in group)), np.nan)
    for row, history in zip(values, group, strict=True):
        row[: len(history[key])] = history[key]
        row[len(history[key]) :] = history[key][-1]  # a training that ended early stays where it was
    if key == "val_accuracy":
        values = 1 - values
    values = np.where(np.isfinite(values), values, np.inf)
    middle = np.sort(values, axis=0)[(len(values) - 1) // 2 :][: 2 - len(values) % 2].mean(axis=0)
    found = (middle, values.min(axis=0), values.max(axis=0))
    middle, low, high = (np.where(np.isfinite(value), value, np.nan) for value in found)
    return _Bundle(name, middle, low, high, not all(np.isfinite(history["loss"][-1]) for history in group))


def _draw_bundles(axes: Any, bundles: Sequence[_Bundle], percent: bool) -> None:
    """Draw the lines of one metric, with their bands."""
    count = max(len(bundle.middle) for bundle in bundles)
    low, high = _limits(bundles)
    _set_axis(axes, (low, high), percent)
    for i, (bundle, width) in enumerate(zip(bundles, _widths(bundles, low, high), strict=True)):
        look = {**style(i), "marker": marker(i), "markersize": 4 if count > 1 else 7, "linewidth": width}
        if count == 1:  # dots beside each other
            at = 1 + 0.8 * ((i + 0.5) / len(bundles) - 0.5)
            axes.vlines(at, bundle.low, bundle.high, color=look["color"])
            axes.plot(at, bundle.middle, **look, label=bundle.name)
            continue
        epochs, step = np.arange(1, len(bundle.middle) + 1), -(-count // 8)
        middle = np.maximum(bundle.middle, low)  # no error at all has no place on a logarithmic axis
        axes.plot(epochs, middle, markevery=(i % step, step), **look, label=bundle.name)
        axes.fill_between(
            epochs,
            bundle.low,
            bundle.high,
            color=look["color"],
            alpha=0.1 if len(bundles) > 6 else 0.15,
            linewidth=0,
        )
    whole_ticks(axes, count)
    axes.grid(alpha=0.3)


def _set_axis(axes: Any, limits: tuple[float, float], percent: bool, which: str = "y") -> None:
    if limits[0] > 0:
        log_axis(axes, *limits, which)
    else:
        axes.set(**{f"{which}lim": limits})
    if percent:
        getattr(axes, f"{which}axis").set_major_formatter(_share)


def _limits(bundles: Sequence[_Bundle]) -> tuple[float, float]:
    """Return what an axis shows: all, but where a few trainings are far from the others these alone."""
    seen = [np.concatenate([bundle.low, bundle.middle, bundle.high]) for bundle in bundles]
    seen = [values[np.isfinite(values)] for values in seen]
    seen = [values for values in seen if values.size]
    if not seen:
        return 0.0, 1.0
    lowest, highest = min(map(np.min, seen)), max(map(np.max, seen))
    if lowest < 0 or highest == 0:
        margin = 0.05 * (highest - lowest) or 0.5
        return lowest - margin, highest + margin
    positive = [values[values > 0] for values in seen if (values > 0).any()]
    high = min(highest, 10 * median_low([values.max() for values in positive]))
    least = [values.min() for values in positive]
    low = max(min(least), 1e-3 * median_high([value for value in least if value <= high]))
    return (low if lowest > 0 else low / 2) / 1.1, high * 1.1


def _widths(bundles: Sequence[_Bundle], low: float, high: float) -> list[float]:
    """Return how wide each line is: the wider, the more of the later ones lie on it."""
    lines = []
    for bundle in bundles:
        values = np.clip(bundle.middle, low, high)
        lines.append(
            (np.log(values / low) / np.log(high / low)) if low > 0 else (values - low) / (high - low)
        )
    widths = []
    for i, line in enumerate(lines):
        later = [other for other in lines[i + 1 :] if len(other) == len(line)]
        apart = [np.abs(line - other)[np.isfinite(line) | np.isfinite(other)] for other in later]
        covered = sum(bool(distance.size) and bool((distance < 0.01).all()) for distance in apart)
        widths.append(1.6 + 1.8 * covered)
    return widths


def _draw_ranking(axes: Any, bundles: Sequence[_Bundle], label: str, percent: bool) -> None:
    """Draw what stands at the end, the best on top, with the range over the seeds."""
    order = sorted(range(len(bundles)), key=lambda i: bundles[i].last)
    last = [_Bundle(b.name, b.middle[-1:], b.low[-1:], b.high[-1:], b.diverged) for b in bundles]
    low, high = _limits(last)
    room = (high / low) ** 0.35 if low > 0 else 1.0  # for the words at the right
    _set_axis(axes, (low / room**0.5, high * room) if low > 0 else (low, high), percent, "x")
    start = axes.get_xlim()[0]
    for place, i in enumerate(order):
        bundle, look = last[i], style(i)
        at = bundle.last
        if not np.isfinite(at):
            axes.annotate("diverged", (0, place), (6, 0), xycoords=("axes fraction", "data"), va="center",
                          textcoords="offset points", color=look["color"])  # fmt: skip
            continue
        at = float(np.clip(at, *sorted((start, high))))
        axes.plot([start, at], [place, place], **look)
        axes.plot(at, place, marker=marker(i), markersize=6, color=look["color"])
        axes.plot([bundle.low, bundle.high], [place, place], linewidth=6, alpha=0.25, color=look["color"],
                  solid_capstyle="butt")  # fmt: skip
        text = _as_percent(bundle.last) if percent else f"{bundle.last:.4g}"
        text += ", diverged" * bundle.diverged
        reach = min(np.nan_to_num(bundle.high[0], nan=at), high)
        axes.annotate(text, (max(at, reach), place), (6, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(order)), [bundles[i].name for i in order])
    for tick, i in zip(axes.get_yticklabels(), order, strict=True):
        tick.set_color(style(i)["color"])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set(xlabel=label, title="at the end, best first")
    axes.grid(alpha=0.3, axis="x")
