"""Backends: one contract, several ways to run it.

A backend is a module with a class ``Stepper`` (optimizer updates) and the functions of layers and
losses that `reference` spells out. ``native`` is the compiled one, ``numba`` and ``numpy`` need no
compiler. ``cuda`` and ``cupy`` are for arrays in a GPU's memory. What users pass has been validated
before it reaches a backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple, Protocol

from ..formulas.rules import Rule
from ..runtime.numbers import is_integer

# Classes that every backend has, beside `reference.FUNCTIONS`; those for the processor's memory also have
# `norm` and `any_outside`.
STEPPERS = ("AdafactorStepper", "MuonStepper", "PackedStepper", "Stepper", "TrustStepper")


class StepGroup(NamedTuple):
    """Arrays that one rule updates with the same coefficients; they are checked, contiguous and separate."""

    rule: Rule
    params: Sequence[Any]
    states: Sequence[Sequence[Any]]


def one_each(groups: Sequence[StepGroup]) -> list[StepGroup]:
    """Return a step group for every array, so that each has coefficients of its own."""
    return [
        StepGroup(group.rule, [p], [states])
        for group in groups
        for p, states in zip(group.params, group.states, strict=True)
    ]


def spans(size: Any, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Return begin and end of batches of so many examples, from example ``first`` on.

    ``size`` is a number of examples, or an array that says where each batch ends: one may be empty.
    """
    ends = range(first + size, count + size, size) if is_integer(size) else size.tolist()
    return ((begin, min(end, count)) for begin, end in pairwise(chain([first], ends)))


class Stepper(Protocol):
    """Updates the arrays of some groups, prepared once."""

    checks: bool  # whether step() checks the gradients itself

    def __init__(self, groups: Sequence[StepGroup]) -> None: ...

    def step(self, grads: list[Any], coefficients: list[tuple[float, ...]]) -> bool:
        """Update the arrays. ``coefficients`` has a row for each group: those of ``common``, then the rule's.

        If ``checks`` is true, `step` returns False and does nothing unless every gradient is a contiguous
        array like its parameter that overlaps nothing written. If it is false, the caller has checked that.

        A stepper that checks also has ``norm(grads)``, which returns None in the same cases. Its
        constructor takes averages, one per parameter, which a step moves by the share ``weight``.
        """
