"""What ``pyoptim compare`` draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..runtime.dtypes import Array
from ..runtime.figures import marker, new_figure, saved, style
from ..surfaces import SURFACES

_Schedule = Callable[[int], float]
_LEAST_SHOWN = 1e-8  # times the first loss


class Descent(NamedTuple):
    """One optimizer on a surface: points (steps + 1, 2), and losses above the minimum (steps + 1,)."""

    name: str
    lr: float
    points: Array
    losses: Array


def draw_surfaces(path: str | Path | None, runs: Mapping[str, Sequence[Descent]]) -> Any:
    """Contours with trajectories, and the losses beside them, for each surface; returns the figure."""
    figure, show = _surfaces(runs)
    show(_steps(runs))
    return saved(figure, path)


def animate_surfaces(path: str | Path, runs: Mapping[str, Sequence[Descent]], frames: int = 80) -> None:
    """Write the same as a GIF.

    A frame shows the first ``last * t**2`` steps, where t goes from 0 to 1, since most happens at the
    beginning. The axis of the steps is the square root, so that the lines of the losses advance evenly.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image  # matplotlib needs it

    figure, show = _surfaces(runs)
    last = _steps(runs)
    for axes in figure.axes[1::2]:
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xticks(np.unique(np.rint(last * np.linspace(0, 1, 6) ** 2).astype(int)))
    figure.set_dpi(70)
    canvas = FigureCanvasAgg(figure)
    title = figure.suptitle("step", animated=True)
    moving = [title, *(line for axes in figure.axes for line in axes.lines if line.get_animated())]
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)

    def frame(step: int) -> Any:
        show(step)
        title.set_text(f"step {step}")
        canvas.restore_region(still)
        for artist in moving:
            figure.draw_artist(artist)
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])

    # One palette for all frames and no dithering, so that what does not move costs no space.
    palette = frame(last).quantize(256)
    steps = np.unique(np.rint(last * np.linspace(0, 1, frames) ** 2).astype(int))
    images = [frame(step).quantize(palette=palette, dither=Image.Dither.NONE) for step in steps]
    milliseconds = [70] * (len(images) - 1) + [2000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def draw_schedules(
    path: str | Path | None, examples: Mapping[str, Mapping[str, _Schedule]], steps: int
) -> Any:
    """Each schedule in a panel of its own, with its variants; returns the figure."""
    columns = 5
    rows = -(-len(examples) // columns)
    figure = new_figure(3.3 * columns, 2.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(examples) :]:
        axes.remove()
    k = np.unique(np.linspace(0, steps - 1, 2001).astype(int))
    for axes, (name, variants) in zip(grid.flat, examples.items(), strict=False):
        for i, (label, schedule) in enumerate(variants.items()):
            axes.plot(k, [schedule(int(step)) for step in k], label=label, **style(i))
        axes.set(title=name, xlim=(0, max(steps - 1, 1)))
        axes.set(yscale="log") if name == "RangeTest" else axes.set(ylim=(0, 1.45))  # room for the legend
        axes.grid(alpha=0.3)
        axes.legend(
            fontsize="small", framealpha=0.9, loc="upper left" if name == "RangeTest" else "upper right"
        )
    figure.supxlabel("step")
    figure.supylabel("learning rate")
    return saved(figure, path)


def _surfaces(runs: Mapping[str, Sequence[Descent]]) -> tuple[Any, Callable[[int], None]]:
    """A figure, and a function that makes it show the first t steps."""
    pairs = min(len(runs), 2)
    rows = -(-len(runs) // 2)
    figure = new_figure(9.5 * pairs, 4.2 * rows + 0.6)
    grid = figure.subplots(rows, 2 * pairs, squeeze=False).reshape(-1, 2)
    moving: list[tuple[Descent, Any, Any, Any]] = []
    for (plane, curve), (name, descents) in zip(grid, runs.items(), strict=True):
        _contours(plane, name, descents[0].points[0])
        _loss_axes(curve, name, descents)
        for i, run in enumerate(descents):
            # The later, the thinner, so that no line is hidden by those that go the same way.
            look = {**style(i), "linewidth": 1 + 2 * (len(descents) - 1 - i) / len(descents)}
            (trail,) = plane.plot([], [], **look, alpha=0.9, animated=True)
            size = 6 + 3 * (len(descents) - 1 - i) / len(descents)
            (head,) = plane.plot(
                [], [], marker(i), color=look["color"], markersize=size, markeredgecolor="white", zorder=4,
                animated=True,
            )  # fmt: skip
            label = _label(run) if len(runs) == 1 else run.name
            (loss,) = curve.plot([], [], label=label, **look, animated=True)
            moving.append((run._replace(losses=_smooth(run.losses)), trail, head, loss))
    _legend(figure, grid[0][1])

    def show(t: int) -> None:
        for run, trail, head, loss in moving:
            points = run.points[: t + 1]
            trail.set_data(*points.T)
            head.set_data(*points[-1:].T)
            loss.set_data(np.arange(len(points)), run.losses[: t + 1])

    return figure, show


def _smooth(losses: Array) -> Array:
    """Return geometric means over up to a 25th of the steps, so that one that oscillates is a line, no area.

    Those of the middle half of the values. The first and the last stay as they are.
    """
    count = len(losses)
    reach = min(count // 50, 50)
    logs = np.log(np.maximum(losses, 1e-300))
    means = np.empty(count)
    means[reach : count - reach] = _middle(np.lib.stride_tricks.sliding_window_view(logs, 2 * reach + 1))
    for t in range(reach):
        means[t], means[count - 1 - t] = _middle(logs[: 2 * t + 1]), _middle(logs[count - 1 - 2 * t :])
    return np.exp(means)


def _middle(values: Array) -> Array:
    """Return the mean of the middle half along the last axis."""
    count = values.shape[-1]
    middle: Array = np.sort(values)[..., count // 4 : count - count // 4].mean(axis=-1)
    return middle


def _contours(axes: Any, name: str, start: Array) -> None:
    surface = SURFACES[name]
    x, y = (np.linspace(*side, 241) for side in surface.window)
    height = surface.value(np.stack(np.meshgrid(x, y))) - surface.least
    levels = np.geomspace(max(height.min(), 1e-3 * np.median(height)), height.max(), 16)
    height = np.maximum(height, 1.001 * levels[0])  # the minima are 0; below the first level is black
    axes.contourf(x, y, height, levels, cmap="Greys_r", norm=_pale(levels), extend="both", zorder=0)
    axes.contour(x, y, height, levels, colors="0.6", linewidths=0.5, zorder=1)
    axes.plot(*start, "kX", markersize=8, zorder=5)
    axes.plot(*np.transpose(surface.minima), "w*", markersize=14, markeredgecolor="black", zorder=3)
    axes.set(xlim=surface.window[0], ylim=surface.window[1], xlabel="x", ylabel="y", title=name)


def _pale(levels: Array) -> Any:
    """Only the light half of the colours, so that lines stand out."""
    from matplotlib.colors import LogNorm

    return LogNorm(levels[0] ** 2 / levels[-1], levels[-1])


def _loss_axes(axes: Any, name: str, runs: Sequence[Descent]) -> None:
    seen = np.concatenate([run.losses[np.isfinite(run.losses) & (run.losses > 0)] for run in runs])
    first = float(runs[0].losses[0]) or 1.0
    lowest, highest = (seen.min(), seen.max()) if seen.size else (first, first)
    axes.set(xlabel="step", ylabel="f - min f, smoothed", title=f"{name}: loss", yscale="log")
    axes.set(xlim=(0, len(runs[0].losses) - 1))
    axes.set(ylim=(max(_LEAST_SHOWN * first, lowest / 2), 2 * min(highest, 100 * first)))
    axes.grid(alpha=0.3)


def _steps(runs: Mapping[str, Sequence[Descent]]) -> int:
    return max(len(run.points) - 1 for descents in runs.values() for run in descents)


def _label(run: Descent) -> str:
    return run.name if "lr=" in run.name else f"{run.name} ({run.lr:g})"


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-len(labels) // int(figure.get_figwidth() / 1.8))
    columns = -(-len(labels) // rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
