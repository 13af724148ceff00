"""``pyoptim bench cpp``: the C++ library, libtorch, mlpack and dlib, each compiled into a shared library.

The sources in ``csrc/peers`` say what each does: training steps of the network 784-256-128-10 with Adam,
plain, with dropout and with LayerNorm, and its outputs for some rows.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import cmake_dir
from ..runtime import dispatch, threads
from ..runtime.dtypes import Array
from .case import Case, Family, Mismatch, Options, Row, Target
from .timing import FULL, Run

_LIBRARIES = ("pyoptim", "libtorch", "mlpack", "dlib")
_WIDTHS = (784, 256, 128, 10)
_KINDS = {"plain": 0, "dropout": 1, "layer norm": 2}  # of peers/peer.hpp
_STEPS = 16  # of a run
_PREDICTIONS = {1: 256, 32: 32, 1_024: 1}  # rows, and how often a run predicts them

_Libraries = Mapping[str, ctypes.CDLL]


def _cases(options: Options) -> Generator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        libraries = _built(Path(folder))
        sizes = [m * n for m, n in itertools.pairwise(_WIDTHS)]
        for kind in _KINDS:
            for batch in (32,) if options.quick else (32, 128):
                flops = 2 * (3 * sum(sizes) - sizes[0]) * batch
                prepare = functools.partial(_training, libraries, kind, batch)
                yield Case(f"step {kind}", batch, 4 * sum(sizes), prepare, flops, 1 / _STEPS, dtype="float32")
        for rows, times in _PREDICTIONS.items():
            prepare = functools.partial(_prediction, libraries, rows, times)
            yield Case(
                "predict", rows, 4 * sum(sizes), prepare, 2 * rows * sum(sizes), 1 / times, dtype="float32"
            )


def _built(folder: Path) -> dict[str, ctypes.CDLL]:
    """The libraries that can be found, compiled; says which cannot."""
    if shutil.which("cmake") is None:
        raise dispatch.BackendError("the C++ libraries are compiled by CMake, which is not installed")
    prefixes, options = [], []
    if (torch := importlib.util.find_spec("torch")) and torch.origin:
        prefixes.append(Path(torch.origin).parent / "share" / "cmake")
    checkout = Path(__file__).parents[2]
    peers = checkout / "csrc" / "peers"
    if peers.is_dir():
        options.append(f"-DPYOPTIM_SOURCE={checkout}")
    else:
        try:
            installed = Path(cmake_dir())
        except FileNotFoundError as error:
            raise dispatch.BackendError(str(error)) from None
        prefixes.append(installed)
        peers = installed / "peers"
    # Threads that spin for long after a run take the processors from the competitor that comes next.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(threads.get_num_threads())
    paths = ";".join(map(str, prefixes))
    _run(
        "cmake",
        "-S",
        peers,
        "-B",
        folder,
        "-DCMAKE_BUILD_TYPE=Release",
        *options,
        f"-DCMAKE_PREFIX_PATH={paths}",
    )
    targets, libraries = _run("cmake", "--build", folder, "--target", "help"), {}
    for name in _LIBRARIES:
        if f"peer_{name}" not in targets:
            print(f"not found, so not compared with: {name}", flush=True)
            continue
        _run("cmake", "--build", folder, "--target", f"peer_{name}", "--parallel", threads.get_num_threads())
        libraries[name] = _loaded(next(folder.glob(f"{name}.peer*")))
    return libraries


def _run(*command: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise dispatch.BackendError(
            f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.peer_make.argtypes, library.peer_make.restype = [ctypes.c_int, pointer, ctypes.c_int], pointer
    library.peer_train.argtypes = [pointer, pointer, pointer, size, size]
    library.peer_train.restype = ctypes.c_double
    library.peer_predict.argtypes, library.peer_predict.restype = (
        [pointer, pointer, size, size, pointer],
        None,
    )
    library.peer_delete.argtypes, library.peer_delete.restype = [pointer], None
    return library


class _Peer:
    """A network in one of the libraries."""

    def __init__(self, library: ctypes.CDLL, kind: str) -> None:
        parameters = _parameters(kind)
        self._library = library
        self._at = library.peer_make(_KINDS[kind], parameters.ctypes.data, threads.get_num_threads())

    def __del__(self) -> None:
        self._library.peer_delete(self._at)

    def train(self, x: Array, y: Array, batch: int) -> float:
        """Return the mean loss of the steps."""
        loss: float = self._library.peer_train(self._at, x.ctypes.data, y.ctypes.data, batch, len(x) // batch)
        return loss

    def predict(self, x: Array, outputs: Array, times: int) -> None:
        self._library.peer_predict(self._at, x.ctypes.data, len(x), times, outputs.ctypes.data)


def _parameters(kind: str) -> Array:
    rng, parts = np.random.default_rng(0), list[Array]()
    for inputs, outputs in itertools.pairwise(_WIDTHS):
        parts += [rng.normal(0, np.sqrt(2 / inputs), inputs * outputs), rng.normal(0, 0.1, outputs)]
        if kind == "layer norm" and outputs != _WIDTHS[-1]:
            parts += [rng.uniform(0.5, 1.5, outputs), rng.normal(0, 0.1, outputs)]
    return np.concatenate(parts).astype(np.float32)


def _training(libraries: _Libraries, kind: str, batch: int) -> dict[str, Run]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((_STEPS * batch, _WIDTHS[0]), np.float32)
    y = rng.integers(0, _WIDTHS[-1], len(x))
    peers = {who: _Peer(library, kind) for who, library in libraries.items()}
    losses = {who: peer.train(x, y, batch) for who, peer in peers.items()}
    # What is dropped differs, and dlib does not scale up the rest; its LayerNorm learns a little otherwise.
    allowed = {"plain": 1e-3, "dropout": 0.2, "layer norm": 1e-2}[kind]
    for who, loss in losses.items():
        if not abs(loss - losses["pyoptim"]) <= allowed * losses["pyoptim"]:
            raise Mismatch(
                f"{kind}, batch {batch}: {who} has a mean loss of {loss} over {_STEPS} steps, pyoptim "
                f"{losses['pyoptim']}"
            )
    return {who: functools.partial(peer.train, x, y, batch) for who, peer in peers.items()}


def _prediction(libraries: _Libraries, rows: int, times: int) -> dict[str, Run]:
    x = np.random.default_rng(2).standard_normal((rows, _WIDTHS[0]), np.float32)
    peers = {who: _Peer(library, "plain") for who, library in libraries.items()}
    outputs = {who: np.empty((rows, _WIDTHS[-1]), np.float32) for who in peers}
    for who, peer in peers.items():
        peer.predict(x, outputs[who], 1)
        # Log-probabilities are logits less a number of each row.
        off = outputs[who] - outputs["pyoptim"]
        if not np.abs(off - off[:, :1]).max() <= 1e-3:
            raise Mismatch(f"{rows} rows: outputs of {who} are off by up to {np.abs(off - off[:, :1]).max()}")
    return {who: functools.partial(peer.predict, x, outputs[who], times) for who, peer in peers.items()}


def _times(peer: str) -> Callable[[Row], float | None]:
    return lambda row: row.faster_than(peer)


FAMILY = Family(
    _cases,
    [Target(f"C++: times {peer}", 1.0, _times(peer)) for peer in _LIBRARIES[1:]],
    FULL,
    "the C++ library beside libtorch, mlpack and dlib, where CMake finds them: compiles for minutes",
)
