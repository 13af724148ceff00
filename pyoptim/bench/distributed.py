"""``pyoptim bench distributed``: steps by several ranks here, and predictions of up to 1,024 nodes.

It starts itself under ``mpiexec``, once for each number of ranks. See `scaling` for the model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from ..runtime.extras import mpiexec, needed
from ..runtime.figures import check_image, log_axis, marker, new_figure, saved, style
from ..runtime.files import check_target
from . import machine, scaling
from .scaling import Compute, Network, Part

_SIZES = (8, 1 << 10, 1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 22)  # bytes of an allreduce
_NODES, _BATCHES = (2, 4, 16, 64, 256, 1024), (256, 4096, 65536)  # of predictions
_SECONDS, _QUICK = 0.3, 0.02  # of the steps that a figure comes from, and of the allreduces

# Microseconds a message takes and Gbit/s: what TCP, good Ethernet, and what goes past the processor reach.
_NETWORKS = ("30,10", "10,25", "2,100")


class Measured(NamedTuple):
    """What some ranks took, in seconds: of an allreduce by bytes, of a step by the batch of all of them."""

    ranks: int
    allreduce: list[tuple[int, float]]
    steps: list[tuple[int, float]]
    copies: float


class Model(NamedTuple):
    """What `scaling` predicts from."""

    compute: Compute
    parts: list[Part]
    here: Network | None  # between two ranks on this machine


def main(argv: Sequence[str]) -> int:
    """Measure, predict, print; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
            if path:
                check_target(option, path, replaces=False)
        if arguments.plot:
            check_image(arguments.plot)
        needed("mpi4py", "ranks need mpi4py and an MPI", "pyoptim[mpi]")
        found = [_start(ranks, arguments) for ranks in sorted({1, *arguments.ranks})]
    except (ImportError, ValueError, OSError, subprocess.SubprocessError) as error:
        print(f"pyoptim bench: {error}", file=sys.stderr)
        return 2
    model = _model(found, (784, *arguments.hidden, 10))
    networks = arguments.network or [_network(text) for text in _NETWORKS]
    print("\n".join(_measured_lines(found, model) + _predicted_lines(model, networks)))
    if arguments.json:
        report = {
            "machine": machine.describe("cpu"),
            "hidden": arguments.hidden,
            "measured": [one._asdict() for one in found],
            "model": model._asdict(),
        }
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plot:
        draw(arguments.plot, found, model, networks)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pyoptim bench distributed",
        description="Time training steps by several ranks on this machine, one thread each, and predict from "
        "them how long a step takes on up to 1,024 nodes.",
    )
    counts = _numbers("counts, such as 1,2,4")
    parser.add_argument("--ranks", type=counts, default=[1, 2, 4], help="default: 1,2,4")
    parser.add_argument(
        "--batches",
        type=counts,
        default=[64, 256, 1024, 4096],
        help="of all ranks; default: 64,256,1024,4096",
    )
    parser.add_argument(
        "--hidden", type=counts, default=[256, 128], help="layers between 784 and 10; default: 256,128"
    )
    parser.add_argument(
        "--network",
        action="append",
        type=_network,
        metavar="MICROSECONDS,GBIT",
        help=f"what a message takes, and how fast the network is; default: {' '.join(_NETWORKS)}",
    )
    parser.add_argument("--json", metavar="FILE", help="write what was measured")
    parser.add_argument("--plot", metavar="FILE", help="draw both, measured and predicted, into an image")
    parser.add_argument("--quick", action="store_true", help="few repetitions: rough figures")
    return parser


def _numbers(what: str) -> Callable[[str], list[int]]:
    def read(text: str) -> list[int]:
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = [0]
        if min(numbers) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}, expected {what}")
        return numbers

    return read


def _network(text: str) -> tuple[str, Network]:
    """Return a network with its name."""
    try:
        micros, gbit = (float(part) for part in text.split(","))
    except ValueError:
        micros, gbit = 0.0, 0.0
    if not (micros >= 0 and gbit > 0):
        raise argparse.ArgumentTypeError(f"{text!r}, expected microseconds and Gbit/s, such as 10,25")
    return f"{gbit:g} Gbit/s, {micros:g} µs", Network(micros * 1e-6, 8e-9 / gbit)


def _start(ranks: int, arguments: argparse.Namespace) -> Measured:
    """Measure with so many ranks, in processes of their own."""
    starter = mpiexec()
    if starter is None:
        raise OSError("mpiexec was not found, expected an MPI: the system's, or that of `pip install mpich`")
    seconds = _QUICK if arguments.quick else _SECONDS
    task = json.dumps({"hidden": arguments.hidden, "batches": arguments.batches, "seconds": seconds})
    program = "from pyoptim.bench.distributed import measure; measure()"
    more = {  # ranks than processors: Open MPI refuses them else
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    ended = subprocess.run(
        [starter, "-n", str(ranks), sys.executable, "-c", program, task],
        capture_output=True, text=True, env=os.environ | more, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        raise OSError(f"mpiexec -n {ranks} failed: {ended.stderr.strip()}")
    told = json.loads(ended.stdout.splitlines()[-1])
    pairs = {name: [(n, seconds) for n, seconds in told[name]] for name in ("allreduce", "steps")}
    return Measured(ranks, copies=told["copies"], **pairs)


def measure() -> None:
    """Measure as one of the ranks, for `main`; the first prints what it has found."""
    from mpi4py import MPI

    from .. import set_num_threads
    from ..train.ranks import Exchange

    set_num_threads(1)
    task, comm = json.loads(sys.argv[1]), MPI.COMM_WORLD
    limit = task["seconds"]
    steps = [(batch, _step_seconds(comm, task["hidden"], batch, limit)) for batch in task["batches"]]
    widths = (784, *task["hidden"], 10)
    alone = Exchange(MPI.COMM_SELF, np.ones(sum(part.size for part in scaling.dense_parts(widths, 1)), "f4"))
    copies = _seconds(MPI.COMM_SELF, lambda: alone(1.0, 1.0), limit)
    allreduce = []
    for size in _SIZES if comm.size > 1 else ():
        sum_up = partial(comm.Allreduce, np.ones(size // 4, "f4"), np.ones(size // 4, "f4"))
        allreduce.append((size, _seconds(comm, sum_up, limit)))
    if comm.rank == 0:
        print(json.dumps({"allreduce": allreduce, "steps": steps, "copies": copies}))


def _step_seconds(comm: Any, hidden: Sequence[int], batch: int, limit: float) -> float:
    from .. import Adam, Trainer, nn

    rng, count = np.random.default_rng(0), batch * max(1, 2048 // batch)
    x, y = rng.random((count, 784), np.float32), rng.integers(0, 10, count)
    layers: list[nn.Layer] = []
    width = 784
    for units in hidden:
        layers.append(nn.Dense(width, units, activation="relu"))
        width = units
    model = nn.Sequential(*layers, nn.Dense(width, 10), seed=0)
    trainer = Trainer(model, nn.CrossEntropy(), Adam(model.parameters()), seed=0, comm=comm)
    fit: dict[str, Any] = {"batch_size": batch, "shard": True, "verbose": False}
    first = trainer.fit(x, y, epochs=2, **fit)["seconds"][1]
    epochs = comm.bcast(int(min(200, max(5, limit / first))), root=0)
    seconds = trainer.fit(x, y, epochs=epochs, **fit)["seconds"]
    return median(seconds) / (count / batch)


def _seconds(comm: Any, run: Callable[[], object], limit: float) -> float:
    """Return the median time of a call that all ranks make at once."""
    times: list[float] = []
    for _ in range(5):
        run()
    began = time.perf_counter()
    while len(times) < 5 or (len(times) < 1000 and comm.bcast(time.perf_counter() - began, 0) < limit):
        comm.Barrier()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def _model(found: Sequence[Measured], widths: Sequence[int]) -> Model:
    """Return what one rank took, and the network between two."""
    alone = found[0]
    fixed, example = scaling.line(alone.steps)
    here = next((scaling.network_of(one.allreduce) for one in found if one.ranks == 2), None)
    return Model(Compute(fixed, example, alone.copies), scaling.dense_parts(widths, 4), here)


def _measured_lines(found: Sequence[Measured], model: Model) -> list[str]:
    """Say what was measured, beside what the model says of it."""
    compute, others = model.compute, found[1:]
    lines = [
        f"one rank: a step takes {compute.fixed * 1e6:.0f} µs and {compute.example * 1e6:.2f} µs an example; "
        f"with others {compute.copies * 1e6:.0f} µs for copies"
    ]
    if model.here is not None:
        alpha, beta = model.here
        lines.append(f"between two ranks here: {alpha * 1e6:.1f} µs a message, {1e-9 / beta:.1f} GB/s")
    if others:
        rows = []
        for size in _SIZES:
            said = [model.here and scaling.allreduce(one.ranks, size, model.here) for one in others]
            taken = [dict(one.allreduce)[size] for one in others]
            rows.append([f"{size:,} bytes", *map(_pair, taken, said)])
        title = "an allreduce here, µs (what the model says)"
        lines += ["", title, *_table(["", *(_ranks(one.ranks) for one in others)], rows)]
    processors = os.cpu_count() or 1
    rows = []
    for batch, _ in found[0].steps:
        said = [_here(model, batch, one.ranks) for one in found]
        rows.append([f"batch {batch:,}", *map(_pair, (dict(one.steps)[batch] for one in found), said)])
    title = f"a step here, µs (what the model says), one thread a rank, on {processors} processors"
    return [*lines, "", title, *_table(["", *(_ranks(one.ranks) for one in found)], rows)]


def _ranks(count: int) -> str:
    return f"{count} rank" + "s" * (count > 1)


def _pair(measured: float, predicted: float | None) -> str:
    said = "" if predicted is None else f" ({predicted * 1e6:,.0f})"
    return f"{measured * 1e6:,.0f}{said}"


def _here(model: Model, batch: int, ranks: int) -> float | None:
    """Return what the model says of ranks on this machine; None if it knows nothing of messages here."""
    if ranks > 1 and model.here is None:
        return None
    compute = scaling.shared(model.compute, ranks, os.cpu_count() or 1)
    return scaling.step(batch, ranks, compute, model.parts, model.here or Network(0, 0))


def _predicted_lines(model: Model, networks: Sequence[tuple[str, Network]]) -> list[str]:
    """Say what the model predicts of nodes that have one rank each, as fast as one here."""
    compute, parts = model.compute, model.parts
    lines = []
    for name, network in networks:
        rows = []
        for nodes in _NODES:
            row = [f"{nodes:,}"]
            for batch in _BATCHES:
                plain, behind = (_speed(model, batch, nodes, network, overlap) for overlap in (False, True))
                row.append(f"{_short(plain)} ({_short(behind)})")
            begin = scaling.pays_from(nodes, compute, parts, network)
            rows.append([*row, "no batch" if begin is None else f"batch {begin:,}"])
        title = f"predicted, {name}: times as fast as one node (if messages went behind the backward pass)"
        heads = ["nodes", *(f"batch {batch:,}" for batch in _BATCHES), "pays from"]
        best = (scaling.best_ranks(batch, max(_NODES), compute, parts, network) for batch in _BATCHES)
        rows.append(["quickest", *(f"{count:,}" for count in best), ""])
        lines += ["", title, *_table(heads, rows)]
    return lines


def _speed(model: Model, batch: int, nodes: int, network: Network, overlap: bool = False) -> float:
    """Return how many times as fast as one node so many are."""
    alone = scaling.step(batch, 1, model.compute, model.parts, network)
    return alone / scaling.step(batch, nodes, model.compute, model.parts, network, overlap)


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}" if number >= 0.095 else f"{number:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(text.rjust(n) for text, n in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]


def draw(
    path: str | Path | None,
    found: Sequence[Measured],
    model: Model,
    networks: Sequence[tuple[str, Network]],
) -> Any:
    """Draw steps here, measured and by the model, and predictions of many nodes; returns the figure."""
    figure = new_figure(11, 4.4)
    here, there = figure.subplots(1, 2)
    for k, one in enumerate(found):
        color = style(k)["color"]
        batches, seconds = zip(*one.steps, strict=True)
        here.loglog(batches, [1e3 * s for s in seconds], marker(k), color=color, label=_ranks(one.ranks))
        said = [_here(model, batch, one.ranks) for batch in batches]
        here.plot(batches, [math.nan if s is None else 1e3 * s for s in said], color=color)
    here.set(xlabel="batch", ylabel="milliseconds a step")
    log_axis(here, 0.8 * min(batches), 1.25 * max(batches), "x")
    log_axis(here, *here.get_ylim())
    here.set_title("on this machine: points measured, lines predicted", fontsize=10)
    nodes = [1 << k for k in range(max(_NODES).bit_length())]
    for k, (name, network) in enumerate(networks):
        for batch, dashes in zip(_BATCHES, (":", "--", "-"), strict=True):
            speed = [_speed(model, batch, count, network) for count in nodes]
            label = f"{name}, batch {batch:,}"
            there.loglog(nodes, speed, dashes, color=style(k)["color"], label=label)
    there.axhline(1, color="0.7", linewidth=0.8)
    there.set(xlabel="nodes", ylabel="times as fast as one node")
    log_axis(there, 0.9, 1.1 * max(_NODES), "x")
    log_axis(there, *there.get_ylim())
    there.set_title("predicted, one rank a node", fontsize=10)
    for axes in (here, there):
        axes.grid(alpha=0.3)
    here.legend(frameon=False, fontsize=8)
    there.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return saved(figure, path)
