"""The Numba backend: the Python rules compiled at run time, for installs without a C++ compiler.

Optimizer steps run on a pool of threads of our own: Numba's parallel layers end the process when it
forks or when two threads enter them. Matrix products are NumPy's, and so is what `layers` and `losses` do not
define: there the functions of `reference` stand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

try:
    import numba
except ImportError as error:
    raise ImportError("Numba is not installed (pip install 'pyoptim[numba]')") from error

from ...formulas.rules import Common, Rule, common
from ...runtime import threads
from ...runtime.dtypes import Array
from .. import STEPPERS
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

_GRAIN = 1 << 19  # elements that pay for a task of the pool, which begins some 50 us after it is asked for
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed behind in the parent


os.register_at_fork(after_in_child=_forget_pool)


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
        _split(arrays[0].size, _loop(rule), run.values, arrays)


class TrustStepper(steps.TrustStepper):
    """See `pyoptim.backends.reference.TrustStepper`."""

    _stepper = Stepper


def _split(n: int, loop: Callable[..., None], row: Array, arrays: list[Array]) -> None:
    """Run a loop over the elements from 0 to n, where it pays in parts that several threads take.

    The pool's take them from the front and this one from the end, so it waits for none that nobody has begun.
    """
    global _pool
    workers = threads.get_num_threads() - 1
    parts = min(4 * (workers + 1), n // _GRAIN)
    if workers == 0 or parts < 2:
        loop(row, 0, n, *arrays)
        return
    pool = _pool  # another thread may replace it
    if pool is None or pool._max_workers != workers:
        pool = _pool = ThreadPoolExecutor(workers, thread_name_prefix="pyoptim")
    cuts = [n * i // parts for i in range(parts + 1)]
    given = [(pool.submit(loop, row, a, b, *arrays), a, b) for a, b in pairwise(cuts)]
    for part, a, b in reversed(given):
        if part.cancel():
            loop(row, a, b, *arrays)
    for part, *_ in given:
        if not part.cancelled():
            part.result()
