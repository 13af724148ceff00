"""Which backend runs: the one asked for by name, else the best that works on this machine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from numpy import ndarray

from . import threads
from .numbers import check_name

# Fastest first, by measurement (`pyoptim bench fallbacks`): Numba takes a seventh to four fifths of
# NumPy's time for a step, half to four fifths for an epoch. But it compiles, for 0.3 s at the first use
# of a rule and some 4 s at that of a network, which a short training is spared by PYOPTIM_BACKEND=numpy.
MODULES = {"native": "native", "numba": "jit", "numpy": "reference"}
DEVICE_MODULES = {"cuda": "gpu.cuda", "cupy": "gpu.nvrtc"}  # for arrays in a GPU's memory


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here."""


def kernels() -> str:
    """Whether there are compiled kernels: "compiled", or why not and what helps."""
    if threads._native is not None:
        return "compiled"
    if os.path.exists(_PURE):
        with open(_PURE) as file:
            return file.read().strip()
    return (
        "not compiled: install a C++ compiler, then pyoptim once more as before with pip's options "
        "--force-reinstall --no-deps --no-cache-dir -v, the last of which shows what is missing"
    )


_PURE = os.path.join(os.path.dirname(__file__), "pure.txt")  # installs with PYOPTIM_PURE=1 have this file


def warn_without_kernels() -> None:
    """Warn that another backend takes the place of the compiled one, unless somebody wanted it so."""
    if threads._native is None and not os.environ.get("PYOPTIM_BACKEND") and not os.path.exists(_PURE):
        import warnings

        warnings.warn(
            "pyoptim runs without its compiled kernels, on Numba or NumPy, which are slower. They are "
            f"{kernels()}. If it is meant to be so, set PYOPTIM_BACKEND=numpy (or numba), or install with "
            "PYOPTIM_PURE=1",
            stacklevel=3,
        )


_cache: dict[str, Any] = {}
_chosen: ContextVar[Any] = ContextVar("pyoptim_backend", default=None)
_default: Any = None
_device_default: Any = None


def get(name: str) -> Any:
    """The backend of that name.

    Raises
    ------
    ValueError
        There is no backend of that name.
    BackendError
        There is, but it cannot run here; the message says what is missing.
    """
    modules = {**MODULES, **DEVICE_MODULES}
    check_name("backend name", name, modules)
    if name not in _cache:
        try:
            _cache[name] = importlib.import_module(f"pyoptim.backends.{modules[name]}")
        except ImportError as error:
            raise BackendError(f"the {name!r} backend cannot run here: {error}") from error
    return _cache[name]


def available_backends() -> list[str]:
    """The names of the backends that run here, e.g. ``["native", "numba", "numpy"]``.

    Best first; those for arrays in a GPU's memory, "cuda" and "cupy", are last.
    """
    names = []
    for name in (*MODULES, *DEVICE_MODULES):
        try:
            get(name)
        except BackendError:
            continue
        names.append(name)
    return names


def current() -> Any:
    """The backend that `use_backend` names, else ``PYOPTIM_BACKEND``, else the best that runs here."""
    global _default
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if _default is None:
        _default = _choose()
    return _default


def values_in_force(name: str) -> tuple[ContextVar[Any], list[Any]]:
    """Return the variable that `use_backend` sets, and its values with which the backend ``name`` runs."""
    global _default
    backend = get(name)
    if _default is None:
        with suppress(ValueError, BackendError):  # of which `current` tells who asks for the default
            _default = _choose()
    return _chosen, [backend, None] if _default is backend else [backend]


def _choose() -> Any:
    wanted = os.environ.get("PYOPTIM_BACKEND", "")
    if wanted:
        try:
            return get(wanted)
        except ValueError as error:
            raise ValueError(f"PYOPTIM_BACKEND: {error}") from None
    for name in MODULES:  # available_backends() would also import Numba
        with suppress(BackendError):
            return get(name)
    raise BackendError("no backend runs here")


def for_device() -> Any:
    """The backend in force for arrays in a GPU's memory: the one asked for, else the best that runs here.

    Raises
    ------
    BackendError
        None runs here, or what was asked for is for the processor's memory; the message says why.
    """
    global _device_default
    backend = _chosen.get() or _device_default
    if backend is None:
        backend = _device_default = _choose_for_device()
    if backend.name not in DEVICE_MODULES:
        raise BackendError(
            f"the {backend.name!r} backend was asked for, which does not reach arrays in a GPU's memory: "
            "ask for 'cuda' or 'cupy', or for none"
        )
    return backend


def _choose_for_device() -> Any:
    if os.environ.get("PYOPTIM_BACKEND"):
        return current()
    reasons = []
    for name in DEVICE_MODULES:
        try:
            return get(name)
        except BackendError as error:
            reasons.append(str(error))
    raise BackendError(f"arrays in a GPU's memory need a backend for it: {'; '.join(reasons)}")


def of(array: Any) -> Any:
    """The backend in force for an array of the processor's memory or of a GPU's."""
    if isinstance(array, ndarray):
        return _chosen.get() or _default or current()
    return for_device()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run everything inside the ``with`` block on the backend ``name``, in this thread.

    The environment variable ``PYOPTIM_BACKEND`` sets the default of the whole process.

    Raises
    ------
    ValueError
        There is no backend of that name.
    BackendError
        It cannot run here; there is no silent fallback.

    Examples
    --------
    >>> with po.use_backend("numpy"):
    ...     optimizer.step(grads)
    """
    token = _chosen.set(get(name))
    try:
        yield
    finally:
        _chosen.reset(token)
