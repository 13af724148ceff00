"""The Numba backend: the Python rules compiled at run time, for installs without a C++ compiler.

Optimizer steps run on a pool of threads of our own: Numba's parallel layers end the process when it
forks or when two threads enter them. Matrix products are NumPy's, and so is what `layers` and `losses` do not
define: there the functions of `reference` stand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

try:
    import numba
except ImportError as error:
    raise ImportError("Numba is not installed (pip install 'pyoptim[numba]')") from error

from ...formulas.rules import Common, Rule, common
from ...runtime.dtypes import Array
from .. import STEPPERS, parts
from ..reference import FUNCTIONS, steps
from ..reference.layers import *
from ..reference.layers import quantized_dense
from ..reference.losses import any_outside, label_weights
from ..reference.steps import PackedStepper, norm
from ..reference.tensors import AdafactorStepper, MuonStepper
from .layers import *
from .layers import compiled
from .losses import kl_divergence, penalty, pointwise_loss, softmax_cross_entropy

__all__ = ["any_outside", "name", "norm", "quantized_dense", *STEPPERS, *FUNCTIONS]

name = "numba"

_common = compiled(common)

_PART = 1 << 17  # elements that a thread takes at a time
_PAYS = 3 << 22  # bytes of all arrays that are worth a second thread, which begins some 50 us later


@cache
def _loop(rule: Rule) -> Callable[..., None]:
    """Return ``loop(row, begin, end, param, grad, *states)``, which applies the rule to a part in place.

    LLVM makes vector code of it since the coefficients are read before the loop, and since indices of the
    slices begin at 0: one that might be negative would be tested, as it would count from the end.
    """
    written = ["param", *rule.states]
    arrays = ["param", "grad", *rule.states]
    shared = len(Common._fields)
    values = [f"row[{i}]" for i in range(shared + len(rule.coefficients._fields))]
    states = "".join(f", {s}[i]" for s in rule.states)
    source = f"""
def loop(row, begin, end, {", ".join(arrays)}):
    shared = Common({", ".join(values[:shared])})
    own = Own({", ".join(values[shared:])})
    {", ".join(arrays)} = {", ".join(f"{a}[begin:end]" for a in arrays)}
    for i in range(param.size):
        p, g = common(shared, param[i], grad[i])
        {"".join(f"{a}[i], " for a in written)}= rule(own, p, g{states})
"""
    scope: dict[str, Any] = {
        "Common": Common, "Own": rule.coefficients, "common": _common, "rule": compiled(rule.function)
    }  # fmt: skip
    exec(source, scope)
    made: Callable[..., None] = compiled(scope["loop"])
    return made


class Stepper(steps.Stepper):
    """See `pyoptim.backends.Stepper`."""

    def _update(self, rule: Rule, row: tuple[float, ...], run: steps.Run, arrays: list[Array]) -> None:
        loop, values, n = _loop(rule), run.values, arrays[0].size
        least = _PAYS // (len(arrays) * values.itemsize)
        parts.run(lambda begin, end: loop(values, begin, end, *arrays), n, _PART, least)


class TrustStepper(steps.TrustStepper):
    """See `pyoptim.backends.reference.TrustStepper`."""

    _stepper = Stepper
