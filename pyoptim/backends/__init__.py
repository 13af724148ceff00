"""Backends: one contract, several ways to run it.

A backend is a module with a class ``Stepper`` (optimizer updates) and the functions of layers and
losses that `reference` spells out. ``native`` is the compiled one, ``numba`` and ``numpy`` need no
compiler. ``cuda`` and ``cupy`` are for arrays in a GPU's memory. What users pass has been validated
before it reaches a backend.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from numpy import ndarray

from ..rules import Rule

MODULES = {"native": "native", "numba": "jit", "numpy": "reference"}  # best first
DEVICE_MODULES = {"cuda": "cuda", "cupy": "nvrtc"}  # for arrays in a GPU's memory

# What every backend has; those for the processor's memory also `sum_of_squares`.
STEPPERS = ("AdafactorStepper", "MuonStepper", "PackedStepper", "Stepper", "TrustStepper")
FUNCTIONS = (
    "activation_backward", "activation_forward", "dense_backward", "dense_forward", "dropout",
    "gaussian_noise", "kl_divergence", "layer_norm_backward", "layer_norm_forward", "norm_backward",
    "norm_forward", "penalty", "pointwise_loss", "softmax_backward", "softmax_cross_entropy",
    "softmax_forward",
)  # fmt: skip


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here."""


class StepGroup(NamedTuple):
    """Arrays that one rule updates with the same coefficients; contiguous, checked, not overlapping."""

    rule: Rule
    params: Sequence[Any]
    states: Sequence[Sequence[Any]]


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
    if name not in modules:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(modules)}")
    if name not in _cache:
        try:
            _cache[name] = importlib.import_module(f".{modules[name]}", __name__)
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


def for_device() -> Any:
    """The backend in force for arrays in a GPU's memory: the one asked for, else the best that runs here.

    Raises
    ------
    BackendError
        None runs here, or what was asked for is for the processor's memory; the message says why.
    """
    global _device_default
    asked = _chosen.get() or (current() if os.environ.get("PYOPTIM_BACKEND") else None)
    if asked is not None:
        if asked.name not in DEVICE_MODULES:
            raise BackendError(
                f"the {asked.name!r} backend was asked for, which does not reach arrays in a GPU's memory: "
                "ask for 'cuda' or 'cupy', or for none"
            )
        return asked
    if _device_default is None:
        reasons = []
        for name in DEVICE_MODULES:
            try:
                _device_default = get(name)
                break
            except BackendError as error:
                reasons.append(str(error))
        else:
            raise BackendError(f"arrays in a GPU's memory need a backend for it: {'; '.join(reasons)}")
    return _device_default


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
