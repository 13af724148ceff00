"""Optimizer updates in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ... import backends
from ...arrays import memory
from ...formulas.rules import RULES, Common, Rule, common, split_coefficients
from ...formulas.storage import Packed, PackedArray, decode, encode, hash_key, take_over
from ...runtime.dtypes import Array
from .. import StepGroup, parts
from . import traced

_BLOCK = 1 << 18  # bytes of each array that a rule's calls work on in turn, so that caches hold them all
_PAYS = 1 << 23  # elements, times calls for each, that are worth a second thread: a millisecond of work


class Run:
    """Arrays of a step group that follow each other in memory, as do their states: a step takes them as one.

    Attributes
    ----------
    arrays : list of array
        The parameters and each state, as one vector each.
    sizes : list of int
        How many elements each parameter has.
    values, coefficients : array, list of array
        Memory for a row of coefficients in the parameters' type, and an array without dimensions for each.
    """

    def __init__(self, rule: Rule, pieces: Sequence[Sequence[Array]]) -> None:
        self.sizes = [p.size for p, *_ in pieces]
        self.arrays: list[Any] = [memory.joined(same) for same in zip(*pieces, strict=True)]
        self.values = np.empty(len(Common._fields) + len(rule.coefficients._fields), pieces[0][0].dtype)
        self.coefficients = [self.values[i, ...] for i in range(self.values.size)]
        # Gradients that were found to be one vector, and at which byte of their owner's memory it begins.
        self._joined, self._begin = memory.Seen(), 0

    def parts(self, grads: Sequence[Array]) -> Iterator[list[Array]]:
        """Yield vectors to be updated together: of the parameters, their gradients and each state."""
        param, *states = self.arrays
        if len(grads) == 1:
            yield [param, grads[0].reshape(-1), *states]
            return
        if not self._joined.are(grads):
            together = memory.joined(grads)
            if together is None:
                yield from self._apart(grads)
                return
            self._joined = memory.Seen(grads)
            self._begin = memory.address(grads[0]) - memory.address(together.base)  # type: ignore[arg-type]
        # The same views are where they were.
        yield [param, np.ndarray((param.size,), param.dtype, grads[0].base, self._begin), *states]

    def _apart(self, grads: Sequence[Array]) -> Iterator[list[Array]]:
        end = 0
        for grad, size in zip(grads, self.sizes, strict=True):
            begin, end = end, end + size
            param, *states = [a[begin:end] for a in self.arrays]
            yield [param, grad.reshape(-1), *states]


class Stepper:
    """See `pyoptim.backends.Stepper`."""

    checks = False

    def __init__(self, groups: Sequence[StepGroup]) -> None:
        self._groups = [(group.rule, _runs(group)) for group in groups]

    def step(self, grads: list[Array], coefficients: list[tuple[float, ...]]) -> bool:
        end = 0
        with np.errstate(all="ignore"):  # NaN and infinity propagate silently, as in the other backends
            for (rule, runs), row in zip(self._groups, coefficients, strict=True):
                for run in runs:
                    run.values[:] = row  # what is beyond float32 is infinity, as in C++
                    begin, end = end, end + len(run.sizes)
                    for arrays in run.parts(grads[begin:end]):
                        self._update(rule, row, run, arrays)
        return True

    def _update(self, rule: Rule, row: tuple[float, ...], run: Run, arrays: list[Array]) -> None:
        """Update vectors by the rule, block by block."""
        update, count, calls = traced.update(rule, tuple(map((1.0).__eq__, row)))
        n, kind = arrays[0].size, arrays[0].dtype
        block = _BLOCK // kind.itemsize

        def work(begin: int, end: int) -> None:
            scratch = [np.empty(min(end - begin, block), kind) for _ in range(count)]
            for first in range(begin, end, block):
                last = min(first + block, end)
                update(
                    run.coefficients, [s[: last - first] for s in scratch], *[a[first:last] for a in arrays]
                )

        if n <= block:
            update(run.coefficients, [np.empty(n, kind) for _ in range(count)], *arrays)
        else:
            parts.run(work, n, block, _PAYS // calls)


def _runs(group: StepGroup) -> list[Run]:
    pieces = [(p, *states) for p, states in zip(group.params, group.states, strict=True)]
    if not pieces:
        return []
    cuts = [i for i in range(1, len(pieces)) if not all(map(memory.follows, pieces[i - 1], pieces[i]))]
    return [Run(group.rule, pieces[a:b]) for a, b in pairwise([0, *cuts, len(pieces)])]


class TrustStepper:
    """LARS, or LAMB where ``directed``: each array's norms set its rate; prepared once.

    ``checks`` and what ``step`` returns are as in `pyoptim.backends.Stepper`.
    """

    checks = False
    _stepper: ClassVar[type[backends.Stepper]] = Stepper

    def __init__(self, groups: Sequence[StepGroup], directed: bool) -> None:
        self._sizes = [len(g.params) for g in groups]
        alone = backends.one_each(groups)
        self._params = [g.params[0] for g in alone]
        self._directions = [np.empty_like(p) for p in self._params] if directed else []
        if directed:
            descent = [StepGroup(RULES["sgd"], [p], [()]) for p in self._params]
            self._descent = self._stepper(descent)
            alone = [g._replace(params=[d]) for g, d in zip(alone, self._directions, strict=True)]
        self._rule = self._stepper(alone)

    def step(
        self,
        grads: list[Array],
        coefficients: list[tuple[float, ...]],
        trusts: list[tuple[float, float, float, float, float]],
    ) -> bool:
        """Make a step; ``trusts`` has each group's lr, weight_decay, gradient scale, trust and eps.

        In LAMB the rule writes a direction d, to which the decay is added, and the parameter moves along d at
        the rate ``lr*||p||/||d||``. In LARS the rule is momentum, which takes the gradients in at the rate
        ``lr*trust*||p||/(||g|| + weight_decay*||p|| + eps)``. If a norm is 0 or NaN the rate is lr.
        """
        rows = [row for row, n in zip(coefficients, self._sizes, strict=True) for _ in range(n)]
        given = [trust for trust, n in zip(trusts, self._sizes, strict=True) for _ in range(n)]
        if not self._directions:
            for i, (lr, decay, scale, trust, eps) in enumerate(given):
                p, g = norm([self._params[i]]), scale * norm([grads[i]])
                rate = lr * (trust * p / (g + decay * p + eps)) if p > 0 and g > 0 else lr
                at = len(Common._fields) + 1  # the index of momentum's grad_in
                rows[i] = (*rows[i][:at], rate, *rows[i][at + 1 :])
            return self._rule.step(grads, rows)
        for direction in self._directions:
            direction[...] = 0
        self._rule.step(grads, rows)
        along: list[tuple[float, ...]] = []
        for param, direction, (lr, decay, *_) in zip(self._params, self._directions, given, strict=True):
            if decay:
                with np.errstate(all="ignore"):
                    direction -= param.dtype.type(decay) * param
            p, d = norm([param]), norm([direction])
            along.append((-1.0, 0.0, 1.0, lr * p / d if p > 0 and d > 0 else lr))
        return self._descent.step(self._directions, along)


class PackedStepper:
    """Updates arrays, some of which are stored in 16 or 8 bits; prepared once.

    ``checks`` and what ``step`` returns are as in `pyoptim.backends.Stepper`.
    """

    checks = False

    def __init__(self, rules: Sequence[Rule], arrays: Sequence[PackedArray]) -> None:
        self._rules, self._arrays = rules, arrays

    def step(
        self, grads: list[Array], coefficients: list[tuple[float, ...]], key: int, stochastic: bool
    ) -> bool:
        """Make a step. Parameters round at random if ``stochastic``; ``key`` names the random numbers.

        The parameters use one stream of random numbers, and the k-th states of all of them another. An
        element's number in its stream is its position among the elements of all arrays, so that it does not
        matter how a model is cut into arrays.
        """
        first = 0
        for (group, param, master, states), grad in zip(self._arrays, grads, strict=True):
            rule = self._rules[group]
            shared, own = split_coefficients(rule, coefficients[group], np.float32)
            p = decode(param) if master is None else master.reshape(-1)
            if master is not None:
                take_over(p, param)
            with np.errstate(all="ignore"):
                p, g = common(shared, p, decode(Packed(param.kind, grad)))
                p, *values = rule.function(own, p, g, *map(decode, states))
            if master is not None:
                master.reshape(-1)[...] = p
            encode(param, p, hash_key(0, key), stochastic, first)
            for k, (state, value) in enumerate(zip(states, values, strict=True)):
                encode(state, value, hash_key(1 + k, key), True, first)
            first += p.size
        return True


def norm(arrays: Sequence[Array]) -> float:
    """The L2 norm of arrays taken as one vector, in double; it may be any double.

    Squares of elements beyond 1e154 are infinite, and those of elements below 1e-154 lose bits, so a sum that
    is very large or very small is taken anew, of scaled elements.
    """
    total = sum(map(sum_of_squares, arrays))
    if not (total < 2.0**-900 or total > 2.0**900):
        return math.sqrt(total)
    scale = 2.0**600 if total < 1 else 2.0**-600
    return math.sqrt(sum(sum_of_squares(np.multiply(x, scale, dtype=np.float64)) for x in arrays)) / scale


def sum_of_squares(x: Array) -> float:
    """The sum of the squares of all elements, in double."""
    with np.errstate(all="ignore"):
        return float(np.square(x, dtype=np.float64).sum())
