"""``pyoptim bench busy``: steps, updates and predictions while something else runs on the machine.

The competitors, PyTorch and JAX among them, are those of other parts; one more is pyoptim on a single thread.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import nn
from ..optim.elementwise import Adam
from ..runtime import threads
from ..train.trainer import Trainer
from . import norms, optimizers, predictions, tabular
from .case import Case, Family, Mismatch, Options, Row, Target
from .timing import LONG, Run

_NETS = ((784, 256, 128, 10), (64, 100, 10), (30, 100, 4))
_EXAMPLES = {
    1: 500,
    10: 2_000,
    32: 3_200,
    128: 6_400,
    1024: 10_240,
}  # 1024: the first steps, which are checked
_SIZES = (100_000, 1_000_000, 10_000_000)  # of Adam
_NORMS = (("batch norm", (128, 256)), ("batch norm", (32, 64, 32, 32)))
_ROWS = (1, 1_024)  # of predictions
_MEMBERSHIP = Path("/proc/self/cgroup")  # the control groups of this process
_ALONE = "alone"  # pyoptim on one thread

# Programs that run meanwhile, until they are killed or their parent has ended.
_SPIN = """
import os
print("begun", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
_TRAIN = """
import os
import numpy as np
import pyoptim as po
model = po.nn.Sequential(po.nn.Dense(784, 256, activation="relu"), po.nn.Dense(256, 10), seed=0)
trainer = po.Trainer(model, po.nn.CrossEntropy(), po.Adam(model.parameters()))
x, y = np.random.default_rng(0).random((3200, 784), np.float32), np.arange(3200) % 10
print("begun", flush=True)
while os.getppid() == parent:
    trainer.fit(x, y, verbose=False)
"""


@contextlib.contextmanager
def running(program: str, copies: int) -> Iterator[None]:
    """Run copies of a Python program meanwhile; they end with the block, and with this process."""
    children: list[subprocess.Popen[bytes]] = []
    # A folder of their own, since Python imports from where it starts, and here may be one called pyoptim.
    with tempfile.TemporaryDirectory() as home:
        try:
            for _ in range(copies):
                command = [sys.executable, "-c", f"parent = {os.getpid()}\n{program}"]
                children.append(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=home))
            for child in children:
                if child.stdout.readline().strip() != b"begun":  # type: ignore[union-attr]
                    raise OSError("a process to run beside the benchmark has not begun")
            yield
        finally:
            for child in children:
                child.kill()
            for child in children:
                child.communicate()


@contextlib.contextmanager
def quota(processors: float, root: str = "/sys/fs/cgroup") -> Iterator[None]:
    """Limit this process to so much processor time; OSError where its control groups cannot be changed."""
    group = Path(f"pyoptim-bench-{os.getpid()}")
    lines = dict(line.split(":", 2)[1:] for line in _MEMBERSHIP.read_text().splitlines())
    of_cpu = next((names for names in lines if "cpu" in names.split(",")), None)
    old = Path(root) / (of_cpu or "") / lines[of_cpu or ""].lstrip("/")
    new = old / group
    new.mkdir()
    try:
        period = 100_000  # microseconds
        if of_cpu is None:
            (new / "cpu.max").write_text(f"{int(processors * period)} {period}")
        else:
            (new / "cpu.cfs_period_us").write_text(str(period))
            (new / "cpu.cfs_quota_us").write_text(str(int(processors * period)))
        (new / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        with contextlib.suppress(OSError):
            (old / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):
            new.rmdir()


def _loads() -> dict[str, Callable[[], contextlib.AbstractContextManager[None]]]:
    cores = os.cpu_count() or 1
    return {
        "idle": contextlib.nullcontext,
        **{f"{n} busy": functools.partial(running, _SPIN, n) for n in sorted({1, cores})},
        "training": functools.partial(running, _TRAIN, 1),
        "quota": functools.partial(quota, max(1.0, cores / 2)),
    }


def _cases(options: Options) -> Generator[Case]:
    for load, begin in _loads().items():
        try:
            with begin():
                for case in _steps(options):
                    prepare = functools.partial(_with_alone, case.prepare)
                    yield case._replace(load=load, prepare=prepare, dtype="float32")
        except OSError as error:
            print(f"{load}: not measured here ({error})", flush=True)
    yield from _several_fits(options)


def _steps(options: Options) -> Generator[Case]:
    peers = tuple(peer for peer in options.peers if peer != "numpy")
    options = options._replace(peers=peers, dtype="float32", names=["Adam"], sizes=_SIZES)
    if options.quick:
        yield tabular.step("step 30-100-4", _NETS[-1], ("Adam", 8, False), 80, peers)
        return
    for widths, (batch, examples) in itertools.product(_NETS, _EXAMPLES.items()):
        name = f"step {'-'.join(map(str, widths))}"
        yield tabular.step(name, widths, ("Adam", batch, False), examples, peers)
    yield from optimizers.FAMILY.cases(options)
    for kind, shape in _NORMS:
        prepare = functools.partial(norms.prepare, kind, shape, np.dtype("float32"), options)
        yield Case(f"{kind} {'x'.join(map(str, shape))}", shape[0], 32 * int(np.prod(shape)), prepare)
    for widths, rows in itertools.product(_NETS, _ROWS):
        yield predictions.prediction(widths, False, rows, peers)


def _with_alone(prepare: Callable[[], Mapping[str, Run]]) -> dict[str, Run]:
    """The same competitors, and pyoptim on a single thread."""
    runs, many = prepare(), threads.get_num_threads()

    def limited(n: int, run: Run) -> None:
        if threads.get_num_threads() != n:  # to set it takes microseconds
            threads.set_num_threads(n)
        run()

    (first, run), *others = runs.items()
    ours = {name: functools.partial(limited, n, run) for name, n in ((first, many), (_ALONE, 1))}
    return {**ours, **dict(others)}


_FITS = 4


def _several_fits(options: Options) -> Generator[Case]:
    """Several fits at once, in processes and in threads, and one after the other."""
    epochs = 1 if options.quick else 20
    makers: dict[str, Callable[[], Executor]] = {
        "threads": functools.partial(ThreadPoolExecutor, _FITS),
        "processes": lambda: ProcessPoolExecutor(_FITS, multiprocessing.get_context("spawn")),
    }
    for where, make in makers.items():
        with make() as pool:
            # A thread begins fits from here, so their limit is that of this process.
            prepare = functools.partial(_prepare_fits, pool, epochs)
            yield Case(f"{_FITS} fits in {where}", epochs, 1, prepare, dtype="float32", load="fits")


def _prepare_fits(pool: Executor, epochs: int) -> dict[str, Run]:
    counts = sorted({1, threads.get_num_threads()})
    tasks = {n: [(n, epochs, seed) for seed in range(_FITS)] for n in counts}
    at_once = {n: functools.partial(_at_once, pool, tasks[n]) for n in counts}
    expected = [_fit(task) for task in tasks[counts[-1]]]
    for n, run in at_once.items():
        if run() != expected:
            raise Mismatch(f"{_FITS} fits at once, {n} threads each: other losses than one after the other")
    many = counts[-1]
    return {
        "pyoptim": at_once[many],
        _ALONE: at_once[1],
        "one by one": lambda: [_fit(task) for task in tasks[many]],
    }


def _at_once(pool: Executor, tasks: Sequence[tuple[int, int, int]]) -> list[float]:
    before = threads.get_num_threads()
    try:
        return list(pool.map(_fit, tasks))
    finally:
        threads.set_num_threads(before)


def _fit(task: tuple[int, int, int]) -> float:
    """The last loss of a fit; the task: how many threads, epochs, and the seed."""
    n, epochs, seed = task
    if threads.get_num_threads() != n:
        threads.set_num_threads(n)
    rng = np.random.default_rng(seed)
    x, y = rng.random((1_797, 64), np.float32), rng.integers(0, 10, 1_797)
    model = nn.Sequential(nn.Dense(64, 100, activation="relu"), nn.Dense(100, 10), seed=seed)
    trainer = Trainer(model, nn.CrossEntropy(), Adam(model.parameters()), seed=seed)
    return float(trainer.fit(x, y, epochs=epochs, batch_size=60, verbose=False)["loss"][-1])


def _beside_others(row: Row) -> float | None:
    return row.faster_than(_ALONE) if row.load not in ("idle", "fits") else None


def _against_jax(row: Row) -> float | None:
    return row.faster_than("jax") if row.load.endswith("busy") else None


def _of_best(row: Row) -> float | None:
    return min(row.seconds.values()) / row.seconds["pyoptim"] if row.load == "fits" else None


FAMILY = Family(
    _cases,
    [
        Target("beside others: times one thread under the same load", 1 / 1.1, _beside_others),
        Target("beside busy processes: times jax", 0.9, _against_jax),
        Target(f"{_FITS} fits at once: of the best of several ways", 0.9, _of_best),
    ],
    LONG,
    "steps, updates and predictions on an idle machine, beside busy processes, beside a training and under a "
    "CPU quota where that is possible; several fits at once: some 15 minutes (--match, --quick)",
)
