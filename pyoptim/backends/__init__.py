"""Backends: one contract, several ways to run it.

A backend is a module with a class ``Stepper`` (optimizer updates) and the functions of layers and
losses that `reference` spells out. ``native`` is the compiled one, ``numba`` and ``numpy`` need no
compiler. What users pass has been validated before it reaches a backend.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from .._arrays import Array
from ..rules import Rule

MODULES = {"native": "native", "numba": "jit", "numpy": "reference"}  # best first


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here."""


class StepGroup(NamedTuple):
    """Arrays that one rule updates with the same coefficients; contiguous, checked, not overlapping."""

    rule: Rule
    params: Sequence[Array]
    states: Sequence[Sequence[Array]]


def one_each(groups: Sequence[StepGroup]) -> list[StepGroup]:
    """A step group for every array, so that each has coefficients of its own."""
    return [
        StepGroup(group.rule, [p], [states])
        for group in groups
        for p, states in zip(group.params, group.states, strict=True)
    ]


class Stepper(Protocol):
    """Updates the arrays of some groups, prepared once."""

    checks: bool  # whether step() checks the gradients itself

    def __init__(self, groups: Sequence[StepGroup]) -> None: ...

    def step(self, grads: list[Any], coefficients: list[tuple[float, ...]]) -> bool:
        """One row of coefficients per group: those of ``common``, then the rule's.

        Where ``checks``, returns False and does nothing unless every gradient is a contiguous array
        like its parameter that overlaps nothing written. Elsewhere the caller has seen to that.

        Only where ``checks``: ``sum_of_squares(grads)``, or None in the same cases; averages, one per
        parameter, that are given to the constructor and that a step takes along by the share ``weight``.
        """


_cache: dict[str, Any] = {}
_chosen: ContextVar[Any] = ContextVar("pyoptim_backend", default=None)
_default: Any = None


def get(name: str) -> Any:
    """The backend of that name.

    Raises
    ------
    ValueError
        There is no backend of that name.
    BackendError
        There is, but it cannot run here; the message says what is missing.
    """
    if name not in MODULES:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(MODULES)}")
    if name not in _cache:
        try:
            _cache[name] = importlib.import_module(f".{MODULES[name]}", __name__)
        except ImportError as error:
            raise BackendError(f"the {name!r} backend cannot run here: {error}") from error
    return _cache[name]


def available_backends() -> list[str]:
    """The names of the backends that run here, best first, e.g. ``["native", "numba", "numpy"]``."""
    names = []
    for name in MODULES:
        try:
            get(name)
        except BackendError:
            continue
        names.append(name)
    return names


def current() -> Any:
    """The backend in force: of `use_backend`, else ``PYOPTIM_BACKEND``, else the best that runs here."""
    global _default
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if _default is None:
        _default = _choose()
    return _default


def _choose() -> Any:
    wanted = os.environ.get("PYOPTIM_BACKEND", "")
    if wanted:
        try:
            return get(wanted)
        except ValueError as error:
            raise ValueError(f"PYOPTIM_BACKEND: {error}") from None
    for name in MODULES:  # not available_backends(), which imports Numba to be sure
        with suppress(BackendError):
            return get(name)
    raise BackendError("no backend runs here")


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
