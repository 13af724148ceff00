"""The study of trainings by processes that do not wait for each other."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets import Dataset
from ...runtime.extras import mpiexec, needed
from ...runtime.threads import get_num_threads, num_threads
from ...train.history import History
from ...train.trainer import Trainer
from ._common import (
    Curve,
    Options,
    Result,
    Study,
    band,
    curves_table,
    legend_below,
    load,
    network,
    style,
    train,
    trainer,
)
from ._processes import BATCH, WAYS, plain, with_momentum

_MOST = 8  # the staleness from which on all is one bar


def _starter() -> str:
    """Return the path of mpiexec."""
    needed("mpi4py", "a study of several processes needs mpi4py and an MPI", "pyoptim[mpi]")
    found = mpiexec()
    if found is None:
        raise ImportError(
            "a study of several processes needs mpiexec, of the system's MPI or of PyPI's mpich"
        )
    return found


def _processes(options: Options, count: int) -> list[Any]:
    """Train in each of the ways by so many processes; return what each training measured."""
    if options.verbose:
        print(f"training by {count} processes: {', '.join(WAYS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        given = json.dumps(options._replace(verbose=False)._asdict())
        program = [sys.executable, "-m", f"{__package__}._processes", str(path), given]
        ended = subprocess.run([_starter(), "-n", str(count), *program], capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"the processes of the study failed: {ended.stderr[-2000:]}")
        return json.loads(path.read_text("utf-8"))  # type: ignore[no-any-return]


def _alone(data: Dataset, optimizer: Any, seed: int) -> Trainer:
    return trainer(network(data, 128), optimizer, seed)


def _asynchronous(options: Options) -> Result:
    _starter()
    data, count = load(options), max(2, min(4, get_num_threads()))
    with num_threads(1):
        curves = [
            train(name, options, data, partial(_alone, data, optimizer), batch_size=BATCH)
            for name, optimizer in (("one process", plain), ("one process, momentum", with_momentum))
        ]
    staleness = {}
    found = _processes(options, count)
    for name in WAYS:
        own = [(history, stale) for way, history, stale in found if way == name]
        curves.append(Curve(name, [], [History(history) for history, _ in own], BATCH, []))
        counts = [count for _, stale in own for count in stale]
        staleness[name] = np.array([n for n, times in counts for _ in range(times)], int)
    rows = curves_table(curves)
    for name, stale in staleness.items():
        if len(stale):
            rows[name] |= {"exchanges": len(stale) // len(options.seeds), "mean staleness": stale.mean()}
    setting = (
        f"{options.dataset}, ReLU network (128,), SGD, {count} processes of one thread, batches of {BATCH}"
    )
    return Result(f"{setting} in each", rows, (curves, staleness, len(data.x_train)))


def _draw(result: Result, axes: Sequence[Any]) -> None:
    curves, staleness, count = result.data
    for i, curve in enumerate(curves):
        values = curve.values("val_loss")
        seconds = np.cumsum(np.median(curve.values("seconds"), axis=0))
        band(axes[0], seconds, values, i, curve.name)
        band(axes[1], count * (np.arange(values.shape[1]) + 1), values, i, curve.name)
    axes[0].set(xlabel="seconds of training", ylabel="test loss", yscale="log")
    axes[1].set(xlabel="examples, of all processes", ylabel="test loss", yscale="log")
    for panel in axes[:2]:
        panel.grid(alpha=0.3)
    shown = {name: stale for name, stale in staleness.items() if len(stale)}
    for k, (name, stale) in enumerate(shown.items()):
        share = np.bincount(np.minimum(stale, _MOST), minlength=_MOST + 1) / len(stale)
        place = np.arange(_MOST + 1) + 0.8 * ((k + 0.5) / len(shown) - 0.5)
        look = style(2 + list(staleness).index(name))
        axes[2].bar(place, share, 0.8 / len(shown), color=look["color"])
    axes[2].set(xlabel="staleness: exchanges of others in between", ylabel="share of the exchanges")
    axes[2].set_xticks(range(_MOST + 1), [*map(str, range(_MOST)), f"{_MOST}+"])
    axes[2].grid(alpha=0.3, axis="y")
    legend_below(axes[0])


def _conclusion(result: Result) -> str:
    """Say what reaches first a test loss that all reach, in seconds and in examples."""
    curves, staleness, count = result.data
    losses = {curve.name: curve.values("val_loss").mean(axis=0) for curve in curves}
    target = max(float(np.nanmin(values)) for values in losses.values())
    epochs = {name: int(np.argmax(values <= target)) for name, values in losses.items()}
    seconds = {
        curve.name: float(np.median(curve.values("seconds"), axis=0)[: epochs[curve.name] + 1].sum())
        for curve in curves
    }
    quick, frugal = min(seconds, key=seconds.__getitem__), min(epochs, key=epochs.__getitem__)
    text = (
        f"A test loss of {target:.3g}, which all reach, takes the least time with {quick} "
        f"({seconds[quick]:.3g} s; synchronous {seconds['synchronous']:.3g} s, one process "
        f"{seconds['one process']:.3g} s), and the fewest examples with {frugal} "
        f"({count * (epochs[frugal] + 1):,}; synchronous {count * (epochs['synchronous'] + 1):,})."
    )
    means = {name: float(stale.mean()) for name, stale in staleness.items() if len(stale)}
    stalest = max(means, key=means.__getitem__)
    return (
        f"{text} What is added to the centre is stalest with {stalest}: on average the others have added "
        f"{means[stalest]:.2f} times in between."
    )


ASYNCHRONOUS = Study(
    "processes that wait for each other in each step, and such that do not",
    _asynchronous,
    _draw,
    _conclusion,
    panels=3,
)
