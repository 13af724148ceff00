"""Plots, drawn with matplotlib without a screen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .extras import needed
from .numbers import check_path, check_text

# Okabe & Ito 2008, "Color universal design", without the yellow, which white paper swallows, and with a
# brown of the same kind; then four that are hard to take for one of them. Beyond twelve lines they repeat,
# dashed.
_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#8C510A", "#CC79A7", "#000000",
    "#7A5CC0", "#8A9A00", "#E31A7C", "#808080",
)  # fmt: skip
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
_MARKERS = "osD^v<>PXph*"


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of this size in inches, without a display or matplotlib's global state.

    A notebook shows it where it is the value of a cell.
    """
    needed("matplotlib.figure", "plots need matplotlib", "pyoptim[plot]")
    from .picture import Picture

    return Picture(figsize=(width, height), layout="constrained")


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
    if not _are_axes(axes):
        raise TypeError(f"axes is a {type(axes).__name__}, expected axes of matplotlib or None")
    return axes.get_figure().figure, axes  # the figure as a whole, where these belong to a part of one


def panels_on(
    axes: Any, sizes: tuple[float, float], count: int, path: Any, title: Any
) -> tuple[Any, list[Any]]:
    """Return a figure and the axes of its panels: those that were given, or ``count`` in rows of three.

    What else a function that draws is given is checked here, before anything is drawn. ``sizes`` are the
    width and the height of a panel, in inches. Fewer axes than panels may be given.
    """
    check_text("title", title)
    if path is not None:
        check_path("path", path)
    if axes is None:
        columns = min(count, 3)
        rows = -(-count // columns)
        figure = new_figure(sizes[0] * columns, sizes[1] * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in panels[count:]:
            panel.remove()
        return figure, panels[:count]
    given = [axes] if _are_axes(axes) else axes
    given = list(getattr(given, "flat", given)) if isinstance(given, Iterable) else []
    if not (given and all(map(_are_axes, given))):
        raise TypeError(
            f"axes is a {type(axes).__name__}, expected axes of matplotlib, a sequence of them, or None"
        )
    return given[0].get_figure().figure, given[:count]


def _are_axes(axes: Any) -> bool:
    return hasattr(axes, "get_figure") and hasattr(axes, "plot")


def style(i: int) -> dict[str, Any]:
    """How the ith of several lines looks."""
    n = len(_COLORS)
    return {"color": _COLORS[i % n], "linestyle": _DASHES[i // n % len(_DASHES)], "linewidth": 1.6}


def marker(i: int) -> str:
    """The shape of the ith of several lines' points."""
    return _MARKERS[i % len(_MARKERS)]


def legend_beside(axes: Any) -> None:
    """Put the legend to the right of the axes, where it covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def legend_of(panels: Sequence[Any], is_own: bool) -> None:
    """Put one legend for all panels to the right of the last.

    ``is_own``: no other panels are on the figure, so that it can make room for the legend.
    """
    known: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    if is_own:
        panels[0].get_figure().legend(known.values(), known, loc="outside right upper")
    else:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
        panels[-1].legend(known.values(), known, **beside)


def whole_ticks(axes: Any, count: int) -> None:
    """Make the x axis go from 1 to so many, say, epochs, with a tick at whole numbers only."""
    margin = 0.03 * (count - 1) or 0.5
    axes.set_xlim(1 - margin, count + margin)
    if count == 1:
        axes.set_xticks([1])
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def log_axis(axes: Any, low: float, high: float, which: str = "y") -> None:
    """Make the x or the y axis logarithmic between two positive numbers; its ticks are plain numbers."""
    from matplotlib import ticker

    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = getattr(axes, f"{which}axis")
    decades = math.log10(high / low)
    axis.set_major_locator(
        ticker.MaxNLocator(6) if decades < 0.7
        else ticker.LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,))
    )  # fmt: skip
    axis.set_major_formatter(ticker.FuncFormatter(_plain))
    axis.set_minor_formatter(ticker.NullFormatter())


def log_if_wide(axes: Any, values: Any) -> None:
    """Make the y axis logarithmic where its values are positive and span more than a power of ten.

    Those that are NaN or infinite do not count. Ticks are plain numbers on either axis.
    """
    finite = [value for value in values if math.isfinite(value)]
    if finite and 0 < 10 * min(finite) < max(finite):
        log_axis(axes, min(finite) / 1.2, max(finite) * 1.2)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


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
