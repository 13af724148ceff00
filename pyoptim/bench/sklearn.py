"""``pyoptim bench sklearn``: the estimators of `pyoptim.sklearn` beside scikit-learn's own.

scikit-learn runs twice, with all threads of its BLAS and with one, and the faster of the two counts.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from ..runtime.extras import needed
from .case import Case, Family, Mismatch, Options, Row, Target
from .timing import SWEEP, Run

_EPOCHS = 3
# Examples, inputs, hidden units, classes, batch: whole fits, of which a row has the time of an epoch.
_FITS = [
    ("20000x30", 20_000, 30, (100,), 2, 200),
    ("20000x30", 20_000, 30, (100,), 2, 32),
    ("2000x30", 2_000, 30, (100,), 2, 1),
    ("like MNIST 10000x784", 10_000, 784, (256, 128), 10, 200),
    ("sparse 5000x2000 at 1%", 5_000, 2_000, (100,), 2, 200),
]
_QUICK = [("200x5", 200, 5, (10,), 2, 20)]


def _cases(options: Options) -> Generator[Case]:
    needed("sklearn", "pyoptim bench sklearn needs scikit-learn", "pyoptim[sklearn]")
    for dtype in options.dtypes:
        for name, examples, inputs, hidden, classes, batch in _QUICK if options.quick else _FITS:
            parameters = {
                "hidden_layer_sizes": hidden,
                "batch_size": batch,
                "max_iter": _EPOCHS,
                "random_state": 0,
            }
            prepare = functools.partial(_prepare_fit, name, (examples, inputs, classes), parameters, dtype)
            yield Case(f"fit {name}, epoch", batch, 0, prepare, scale=1 / _EPOCHS, dtype=dtype)
        for count in (1,) if options.quick else (1, 10_000):
            yield Case(
                "predict_proba 30-100",
                count,
                0,
                functools.partial(_prepare_predict, count, dtype),
                dtype=dtype,
            )
    yield Case("fit iris, whole", 150, 0, _prepare_iris, dtype="float64")


def _data(name: str, examples: int, inputs: int, classes: int, dtype: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, examples)
    if name.startswith("sparse"):
        import scipy.sparse

        return scipy.sparse.random(examples, inputs, 0.01, "csr", np.dtype(dtype), random_state=0), y
    return rng.standard_normal((examples, inputs)).astype(dtype), y


def _prepare_fit(
    name: str, shape: tuple[int, int, int], parameters: dict[str, Any], dtype: str
) -> dict[str, Run]:
    x, y = _data(name, *shape, dtype)
    return _compared(lambda kind: kind(**parameters).fit(x, y), lambda model: model.loss_)


def _prepare_iris() -> dict[str, Run]:
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return _compared(lambda kind: kind(random_state=0).fit(x, y), lambda model: model.loss_)


def _prepare_predict(count: int, dtype: str) -> dict[str, Run]:
    x, y = _data("", max(count, 100), 30, 2, dtype)
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


def _times(name: str, size: int, dtype: str) -> Callable[[Row], float | None]:
    return lambda row: (
        row.faster_than("sklearn")
        if row.name.startswith(name) and (row.size, row.dtype) == (size, dtype)
        else None
    )


_BOUNDS = [
    ("fit 20000x30", 200, 8, 5), ("fit 20000x30", 32, 20, 12), ("fit 2000x30", 1, 60, 40),
    ("fit like MNIST", 200, 8, 0), ("fit sparse", 200, 5, 0),
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
    "the estimators of pyoptim.sklearn beside scikit-learn's: some 2 minutes (--match, --quick)",
)
