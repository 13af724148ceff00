"""The compiled kernels (csrc/), chosen for this processor's instruction set at run time."""

from __future__ import annotations

from collections.abc import Sequence

from ..formulas.rules import Rule
from ..formulas.storage import PackedArray
from ..runtime.dtypes import Array
from . import STEPPERS, StepGroup
from .reference import FUNCTIONS

try:
    import pyoptim.runtime._native as _native
except ModuleNotFoundError as error:
    raise ImportError(
        "this install has no compiled kernels; install a C++ compiler, then reinstall pyoptim"
    ) from error


__all__ = ["any_outside", "name", "norm", "quantized_dense", *STEPPERS, *FUNCTIONS]

name = "native"
norm = _native.norm
any_outside = _native.any_outside
quantized_dense = _native.quantized_dense
globals().update((function, getattr(_native, function)) for function in FUNCTIONS)
_native.instruction_set()  # an impossible PYOPTIM_FORCE_ISA is refused here, not in the first step


class Stepper(_native.Stepper):
    """See `pyoptim.backends.Stepper`."""

    checks = True

    def __init__(self, groups: Sequence[StepGroup], averages: Sequence[Array] = ()) -> None:
        super().__init__(_tuples(groups), list(averages))


class TrustStepper(_native.TrustStepper):
    """See `pyoptim.backends.reference.TrustStepper`."""

    checks = True

    def __init__(self, groups: Sequence[StepGroup], directed: bool) -> None:
        super().__init__(_tuples(groups), directed)


class AdafactorStepper(_native.AdafactorStepper):
    """See `pyoptim.backends.reference.AdafactorStepper`."""

    checks = True

    def __init__(self, groups: Sequence[StepGroup]) -> None:
        super().__init__(_tuples(groups))


class MuonStepper(_native.MuonStepper):
    """See `pyoptim.backends.reference.MuonStepper`."""

    checks = True

    def __init__(self, groups: Sequence[StepGroup]) -> None:
        super().__init__(_tuples(groups))


def _tuples(groups: Sequence[StepGroup]) -> list[tuple[str, list[Array], list[list[Array]]]]:
    return [(g.rule.name, list(g.params), [list(s) for s in g.states]) for g in groups]


class PackedStepper(_native.PackedStepper):
    """See `pyoptim.backends.reference.PackedStepper`."""

    checks = True

    def __init__(self, rules: Sequence[Rule], arrays: Sequence[PackedArray]) -> None:
        super().__init__([rule.name for rule in rules], list(arrays))
