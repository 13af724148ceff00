"""Plots, drawn with matplotlib without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .extras import needed
from .numbers import check_path, check_text


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of this size in inches, without a display or matplotlib's global state."""
    figure = needed("matplotlib.figure", "plots need matplotlib", "pyoptim[plot]")
    return figure.Figure(figsize=(width, height), layout="constrained")


def drawn_on(axes: Any, width: float, height: float, path: Any = None, title: str = "") -> tuple[Any, Any]:
    """Return a figure and its axes: those that were given, or new ones of this size in inches.

    What else a function that draws is given is checked here, before anything is drawn.
    """
    check_text("title", title)
    if path is not None:
        check_path("path", path)
    if axes is None:
        figure = new_figure(width, height)
        return figure, figure.subplots()
    if not hasattr(axes, "get_figure") or not hasattr(axes, "plot"):
        raise TypeError(f"axes is a {type(axes).__name__}, expected axes of matplotlib or None")
    return axes.get_figure(), axes


def legend_beside(axes: Any) -> None:
    """Put the legend to the right of the axes, where it covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def log_if_wide(axes: Any, values: Any) -> None:
    """Make the y axis logarithmic where its values are positive and span more than a power of ten."""
    low, high = min(values), max(values)
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")


def saved(figure: Any, path: Any) -> Any:
    """Return the figure, after it was written to a file if there is a path."""
    if path is not None:
        figure.savefig(check_path("path", path), dpi=120)
    return figure


def check_image(path: str | Path) -> None:
    """Raise unless a plot can be written to a file of this name; nothing is drawn yet."""
    known = new_figure(1, 1).canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lstrip(".")
    if suffix not in known:
        raise ValueError(f"{str(path)!r} is no image that can be written, expected one of {', '.join(known)}")


def plot_history(history: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Draw the loss, and the accuracy if it was measured, over the epochs."""
    if not history.get("loss"):
        raise ValueError("history holds no epoch to plot")
    panels = [name for name in ("loss", "accuracy") if name in history]
    figure = new_figure(5 * len(panels), 4)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        epochs = range(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], marker="o", markersize=3, label="training (as it went)")
        if f"val_{name}" in history:
            axes.plot(epochs, history[f"val_{name}"], marker="o", markersize=3, label="validation")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
