"""The Numba backend: the Python rules compiled at run time, for installs without a C++ compiler.

Optimizer steps run on a pool of threads of our own: Numba's parallel layers end the process when it
forks or when two threads enter them. Matrix products are NumPy's, and so is what `layers` and `losses` do not
define: there the functions of `reference` stand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

try:
    import numba
except ImportError as error:
    raise ImportError("Numba is not installed (pip install 'pyoptim[numba]')") from error

from ...formulas.rules import Rule, common, split_coefficients
from ...runtime import threads
from ...runtime.dtypes import Array
from .. import STEPPERS, StepGroup
from ..reference import FUNCTIONS, steps
from ..reference.layers import *
from ..reference.losses import any_outside
from ..reference.steps import PackedStepper, sum_of_squares
from ..reference.tensors import AdafactorStepper, MuonStepper
from .layers import *
from .layers import compiled
from .losses import kl_divergence, penalty, pointwise_loss, softmax_cross_entropy

__all__ = ["any_outside", "name", "sum_of_squares", *STEPPERS, *FUNCTIONS]

name = "numba"

_common = compiled(common)

_GRAIN = 1 << 16  # elements that pay for a task of the pool
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed behind in the parent


os.register_at_fork(after_in_child=_forget_pool)


@cache
def _loop(rule: Rule) -> Callable[..., None]:
    """Return ``loop(begin, end, shared, own, param, grad, *states)``, which applies the rule in place."""
    states = [f"s{k}" for k in range(len(rule.states))]
    elements = ", ".join(["p", "g", *(f"{s}[i]" for s in states)])
    targets = ", ".join(["param[i]", *(f"{s}[i]" for s in states)])
    source = f"""
def loop({", ".join(["begin", "end", "shared", "own", "param", "grad", *states])}):
    for i in range(begin, end):
        p, g = common(shared, param[i], grad[i])
        {targets}{"," if not states else ""} = rule(own, {elements})
"""
    scope: dict[str, Any] = {"common": _common, "rule": compiled(rule.function)}
    exec(source, scope)
    made: Callable[..., None] = compiled(scope["loop"])
    return made


class Stepper:
    """See `pyoptim.backends.Stepper`."""

    checks = False

    def __init__(self, groups: Sequence[StepGroup]) -> None:
        self._groups = [
            (
                g.rule,
                [
                    (p.ravel(), [s.ravel() for s in states])
                    for p, states in zip(g.params, g.states, strict=True)
                ],
            )
            for g in groups
        ]

    def step(self, grads: list[Array], coefficients: list[tuple[float, ...]]) -> bool:
        remaining = iter(grads)
        for (rule, arrays), row in zip(self._groups, coefficients, strict=True):
            loop = _loop(rule)
            for param, states in arrays:
                shared, own = split_coefficients(rule, row, param.dtype.type)
                _split(param.size, loop, shared, own, param, next(remaining).ravel(), *states)
        return True


class TrustStepper(steps.TrustStepper):
    """See `pyoptim.backends.reference.TrustStepper`."""

    _stepper = Stepper


def _split(n: int, loop: Callable[..., None], *args: Any) -> None:
    global _pool
    parts = min(threads.get_num_threads(), n // _GRAIN)
    if parts < 2:
        loop(0, n, *args)
        return
    if _pool is None or _pool._max_workers < parts:
        _pool = ThreadPoolExecutor(parts, thread_name_prefix="pyoptim")
    cuts = [n * i // parts for i in range(parts + 1)]
    for done in [_pool.submit(loop, a, b, *args) for a, b in pairwise(cuts)]:
        done.result()
