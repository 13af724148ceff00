"""Rules as straight lines of NumPy calls, each of which writes to memory that exists.

A rule that NumPy evaluates as it stands makes an array for the result of each operation. Here it is run once
on stand-ins, which note the operations, and these become a function of arrays: its intermediate results go to
a few blocks of scratch memory, which stay in the cache, and the last operation on an array writes to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ...formulas.rules import Common, Rule, common


class Update(NamedTuple):
    """An update of one block.

    Attributes
    ----------
    function : callable
        ``function(coefficients, scratch, param, grad, *states)``. The coefficients are arrays without
        dimensions, which NumPy takes faster than scalars.
    scratch : int
        How many arrays it needs for intermediate results, of the block's size and type.
    calls : int
        How many functions of NumPy it calls.
    """

    function: Callable[..., None]
    scratch: int
    calls: int


class _Value(NDArrayOperatorsMixin):
    """Stands for an array or a coefficient.

    Attributes
    ----------
    name : str
        What the source calls the memory it is in; empty until that is chosen.
    is_one : bool
        Whether it is a coefficient that is 1.
    last : int
        The number of the last call that reads it, or -1.
    in_scratch : bool
        Whether its memory is free for another result after that call.
    until : int
        The number of the call that writes to an array, before which its memory may hold other results.
    """

    def __init__(self, calls: list[_Call], name: str = "", is_one: bool = False) -> None:
        self.calls, self.name, self.is_one, self.last = calls, name, is_one, -1
        self.in_scratch, self.until = False, -1

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: _Value) -> _Value:
        if ufunc is np.multiply:  # a product with 1 has the bits of the other factor
            for one, other in (inputs, inputs[::-1]):
                if one.is_one:
                    return other
        for value in inputs:
            value.last = len(self.calls)
        self.calls.append(_Call(ufunc.__name__, inputs, _Value(self.calls)))
        return self.calls[-1].output


class _Call(NamedTuple):
    function: str
    inputs: tuple[_Value, ...]
    output: _Value


@cache
def update(rule: Rule, ones: tuple[bool, ...]) -> Update:
    """Return a rule's update for coefficients, Common's first, of which ``ones`` says whether they are 1."""
    calls: list[_Call] = []
    row = [_Value(calls, f"c{i}", is_one) for i, is_one in enumerate(ones)]
    param, grad, *states = [_Value(calls, name) for name in ("param", "grad", *rule.states)]
    shared = len(Common._fields)
    p, g = common(Common(*row[:shared]), param, grad)
    results = rule.function(rule.coefficients(*row[shared:]), p, g, *states)
    for array, result in zip((param, *states), results, strict=True):  # each is made by a call of its own
        made = [call.output is result for call in calls].index(True)
        if array.last > made:  # its old value is still needed when the new one is made
            result = np.positive(result)
            made = len(calls) - 1
        result.name, array.until = array.name, made
    scratch = _place(calls)
    lines = [
        f"def function(coefficients, scratch, param, grad, {', '.join(rule.states)}):",
        f"    {', '.join(value.name for value in row)}, = coefficients",
        *(f"    t{i} = scratch[{i}]" for i in range(scratch)),
        *(f"    {c.function}({', '.join(v.name for v in c.inputs)}, out={c.output.name})" for c in calls),
    ]
    scope: dict[str, Any] = {call.function: getattr(np, call.function) for call in calls}
    exec("\n".join(lines), scope)
    return Update(scope["function"], scratch, len(calls))


def _place(calls: list[_Call]) -> int:
    """Name the scratch memory of every result that has none yet, and return how many arrays that takes."""
    free: list[str] = []
    count = 0
    for i, call in enumerate(calls):
        done = {value.name for value in call.inputs if value.last == i and value.in_scratch}
        in_place = call.function != "sign"  # which takes twelve times as long in place
        for value in call.inputs if in_place and not call.output.name else ():
            if value.last == i and call.output.last <= value.until:  # an array whose old values are done with
                call.output.name = value.name
        free += done if in_place else ()
        if not call.output.name:
            if not free:
                free.append(f"t{count}")
                count += 1
            call.output.name, call.output.in_scratch = free.pop(), True
        free += () if in_place else done
    return count
