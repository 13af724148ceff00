"""Backends: one contract, several ways to run it.

A backend is a module with a class ``Stepper`` (optimizer updates) and the functions of layers and
losses that `reference` spells out. ``native`` is the compiled one, ``numba`` and ``numpy`` need no
compiler. ``cuda`` and ``cupy`` are for arrays in a GPU's memory. What users pass has been validated
before it reaches a backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ..formulas.rules import Rule

# What every backend has; those for the processor's memory also `sum_of_squares`.
STEPPERS = ("AdafactorStepper", "MuonStepper", "PackedStepper", "Stepper", "TrustStepper")
FUNCTIONS = (
    "activation_backward", "activation_forward", "dense_backward", "dense_forward", "dropout",
    "gaussian_noise", "kl_divergence", "layer_norm_backward", "layer_norm_forward", "norm_backward",
    "norm_forward", "penalty", "pointwise_loss", "softmax_backward", "softmax_cross_entropy",
    "softmax_forward",
)  # fmt: skip


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
