"""``pyoptim bench sklearn``: the estimators of `pyoptim.sklearn` beside scikit-learn's own.

scikit-learn runs twice, with all threads of its BLAS and with one, and the faster of the two counts.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import datasets
from ..runtime.extras import needed
from .case import Case, Family, Mismatch, Options, Row, Target
from .timing import SWEEP, Run


class _Fit(NamedTuple):
    """A whole fit, of which a row has the time of an epoch."""

    name: str
    examples: int
    inputs: int
    hidden: tuple[int, ...]
    classes: int
    batch: int
    epochs: int = 3


_FITS = [
    _Fit("20000x30", 20_000, 30, (100,), 2, 200),
    _Fit("20000x30", 20_000, 30, (100,), 2, 32),
    _Fit("20000x30", 20_000, 30, (100,), 2, 1, 1),
    _Fit("MNIST", 60_000, 784, (256, 128), 10, 200, 1),
    _Fit("sparse 100000x2000 at 1%", 100_000, 2_000, (100,), 2, 200, 1),
]
_QUICK = [_Fit("200x5", 200, 5, (10,), 2, 20)]


def _cases(options: Options) -> Generator[Case]:
    needed("sklearn", "pyoptim bench sklearn needs scikit-learn", "pyoptim[sklearn]")
    for dtype in options.dtypes:
        for of in _QUICK if options.quick else _FITS:
            prepare = functools.partial(_prepare_fit, of, dtype)
            yield Case(f"fit {of.name}, epoch", of.batch, 0, prepare, scale=1 / of.epochs, dtype=dtype)
        for count in (1,) if options.quick else (1, 10_000):
            yield Case(
                "predict_proba 30-100",
                count,
                0,
                functools.partial(_prepare_predict, count, dtype),
                dtype=dtype,
            )
    yield Case("fit iris, whole", 150, 0, _prepare_iris, dtype="float64")


def _data(of: _Fit, dtype: str) -> tuple[Any, Any]:
    """Examples and labels: random, but for MNIST where this machine has it."""
    if of.name == "MNIST" and (Path(os.environ.get("PYOPTIM_DATA", "")) / "mnist").is_dir():
        images = datasets.load("mnist", flatten=True, normalize=True)
        return images.x_train.astype(dtype), images.y_train
    rng = np.random.default_rng(0)
    y = rng.integers(0, of.classes, of.examples)
    if of.name.startswith("sparse"):
        import scipy.sparse

        shape = of.examples, of.inputs
        return scipy.sparse.random(*shape, 0.01, "csr", np.dtype(dtype), random_state=rng), y
    return rng.standard_normal((of.examples, of.inputs)).astype(dtype), y


def _of(kind: Any, of: _Fit) -> Any:
    return kind(hidden_layer_sizes=of.hidden, batch_size=of.batch, max_iter=of.epochs, random_state=0)


def _prepare_fit(of: _Fit, dtype: str) -> dict[str, Run]:
    x, y = _data(of, dtype)
    return _compared(lambda kind: _of(kind, of).fit(x, y), lambda model: model.loss_)


def _prepare_iris() -> dict[str, Run]:
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return _compared(lambda kind: kind(random_state=0).fit(x, y), lambda model: model.loss_)


def _prepare_predict(count: int, dtype: str) -> dict[str, Run]:
    x, y = _data(_Fit("", max(count, 100), 30, (100,), 2, 200), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = {kind: kind(max_iter=1, random_state=0).fit(x, y) for kind in _kinds()}
    rows = x[:count]
    return _compared(lambda kind: models[kind].predict_proba(rows), lambda outputs: outputs)


def _kinds() -> tuple[Any, Any]:
    import sklearn.neural_network as theirs

    from .. import sklearn as ours

    return ours.MLPClassifier, theirs.MLPClassifier


def _compared(work: Callable[[Any], Any], result: Callable[[Any], Any]) -> dict[str, Run]:
    """What runs the work with each library's class, once the two have the same result."""
    from threadpoolctl import threadpool_limits

    ours, theirs = _kinds()

    def quietly(kind: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few epochs do not converge
            return work(kind)

    def on_one_thread() -> Any:
        with threadpool_limits(1, "blas"):
            return quietly(theirs)

    own, reference = result(quietly(ours)), result(quietly(theirs))
    if not np.allclose(own, reference, rtol=1e-3, atol=1e-5):
        raise Mismatch(f"pyoptim computed {own}, scikit-learn {reference}")
    return {
        "pyoptim": lambda: quietly(ours),
        "sklearn": lambda: quietly(theirs),
        "sklearn, one thread": on_one_thread,
    }


def _peak_memory(rows: Sequence[Row]) -> list[str]:
    """What a fit to sparse rows takes at most, by each library in a process of its own; on Linux alone."""
    found = []
    for row in rows:
        if row.name.startswith("fit sparse") and Path("/proc/self/status").exists():
            code = "import sys; from pyoptim.bench import sklearn; sklearn._print_peak(*sys.argv[1:])"
            peaks = [
                float(subprocess.check_output([sys.executable, "-c", code, which, row.dtype]))
                for which in ("0", "1")
            ]
            took = f"{peaks[0]:.1f} MiB with pyoptim, {peaks[1]:.1f} MiB with scikit-learn"
            found.append(f"{row.name}, {row.dtype}: peak memory {took}")
    return found


def _print_peak(which: str, dtype: str) -> None:
    """Fit to sparse rows, and print the most MiB that this process has had since it made them."""
    of = next(of for of in _FITS if of.name.startswith("sparse"))
    x, y = _data(of, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _of(_kinds()[int(which)], of).fit(x, y)
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def _times(name: str, size: int, dtype: str) -> Callable[[Row], float | None]:
    return lambda row: (
        row.faster_than("sklearn")
        if row.name.startswith(name) and (row.size, row.dtype) == (size, dtype)
        else None
    )


_BOUNDS = [
    ("fit 20000x30", 200, 8, 5), ("fit 20000x30", 32, 20, 12), ("fit 20000x30", 1, 60, 40),
    ("fit MNIST", 200, 8, 0), ("fit sparse", 200, 5, 0),
    ("predict_proba", 1, 4, 4), ("predict_proba", 10_000, 1.5, 1.5), ("fit iris", 150, 0, 5),
]  # fmt: skip

FAMILY = Family(
    _cases,
    [
        Target(f"{name}, {size}, {dtype}: times scikit-learn", bound, _times(name, size, dtype))
        for name, size, *bounds in _BOUNDS
        for dtype, bound in zip(("float32", "float64"), bounds, strict=True)
        if bound
    ],
    SWEEP,
    "the estimators of pyoptim.sklearn beside scikit-learn's: some 5 minutes (--match, --quick)",
    conclude=_peak_memory,
)
