"""What each hyperparameter may be, in one table.

Its twin is the namespace `allowed` of ``csrc/include/pyoptim/optimizer.hpp``; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arrays import sharing
from ..runtime.numbers import (
    AT_LEAST_ZERO,
    COUNT,
    FLAG,
    FRACTION,
    NUMBER,
    SHARE,
    Range,
    nearest,
    one_of,
    plain,
)


def _numbers(value: Any, count: int, each: Range = NUMBER) -> bool:
    return isinstance(value, tuple | list) and len(value) == count and all(map(each.allowed, value))


_AT_LEAST_ZERO_OR_NONE = Range(
    lambda v: v is None or AT_LEAST_ZERO.allowed(v), "None or a finite number >= 0"
)


# A hyperparameter that is not listed is a flag if its default is one, else a finite number >= 0.
_EXPECTED = {
    "lr": Range(lambda v: callable(v) or AT_LEAST_ZERO.allowed(v), "a finite number >= 0 or a schedule"),
    "dampening": NUMBER,
    "velocity": one_of("torch", "classical"),
    "eps_pair": Range(
        lambda v: _numbers(v, 2, _AT_LEAST_ZERO_OR_NONE) and v[1] is not None,
        "a pair of finite numbers >= 0, of which the first may be None",
    ),
    "alpha": SHARE,
    "exponent": NUMBER,
    "rho": SHARE,
    "betas": Range(lambda v: _numbers(v, 2, FRACTION), "two numbers in [0, 1)"),
    "etas": Range(lambda v: _numbers(v, 2) and 0 < v[0] < 1 < v[1], "two numbers, in (0, 1) and above 1"),
    "step_sizes": Range(
        lambda v: _numbers(v, 2) and 0 <= v[0] <= v[1], "two numbers >= 0, the smaller first"
    ),
    "lambd": NUMBER,
    "beta2_decay": Range(lambda v: NUMBER.allowed(v) and v <= 0, "a finite number <= 0"),
    "d": Range(lambda v: NUMBER.allowed(v) and v >= 1, "a finite number >= 1"),
    "ns_coefficients": Range(lambda v: _numbers(v, 3), "three finite numbers"),
    "ns_steps": COUNT,
    "adjust_lr_fn": one_of("original", "match_rms_adamw"),
    "amsgrad_max": one_of("raw", "corrected"),
    "momentum_decay": _AT_LEAST_ZERO_OR_NONE,
}


def _expected(name: str, known: Mapping[str, Any]) -> Range:
    """What a hyperparameter may be, among the others of its optimizer, and the same in words."""
    if name == "eps" and "beta2_decay" in known:  # Adafactor has two
        name = "eps_pair"
    if name == "alpha" and "lambd" in known:  # ASGD's is an exponent, not a decay rate
        name = "exponent"
    return _EXPECTED.get(name) or (FLAG if isinstance(known[name], bool) else AT_LEAST_ZERO)


def checked(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with NumPy's scalars as Python's (float32 ones would do arithmetic in float32).

    Raises
    ------
    TypeError
        A name that is not among the ``known`` ones.
    ValueError
        A value that cannot be.
    """
    for name, value in values.items():
        if name not in known:
            near = nearest(name, known)
            raise TypeError(f"{name!r} is no hyperparameter, expected one of {', '.join(known)}{near}")
        _expected(name, known).check(name, value)
    return {name: plain(value) for name, value in values.items()}


class Checked:
    """An attribute that is checked whenever it is set.

    Its value is also in the attribute of that name with a ``_`` before it, which costs a step less to read.
    """

    def __init__(self, range_: Range, fixed: bool = False) -> None:
        self._range, self._fixed = range_, fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def checked(self, value: Any, label: str) -> Any:
        """The value, with NumPy's numbers as Python's; ValueError if it cannot be."""
        return plain(self._range.check(label, value))

    def __get__(self, owner: Any, cls: type) -> Any:
        return self if owner is None else getattr(owner, "_" + self._name)

    def __set__(self, owner: Any, value: Any) -> None:
        if self._fixed and hasattr(owner, "_" + self._name):
            raise ValueError(f"{self._name} is fixed when the optimizer is made")
        setattr(owner, "_" + self._name, self.checked(value, self._name))
        owner._advance = None  # the next step finds out anew what it has to do


class ParameterGroup(dict[str, Any]):
    """Hyperparameters and ``"params"`` of a group of parameters, checked whenever they are changed.

    Parameters
    ----------
    values : mapping
        The hyperparameters, and the parameters under ``"params"``.
    known : mapping
        The names of all hyperparameters of the optimizer, with their defaults.
    owner : class
        The class of the optimizer. A change may choose another of its rules: see `stepping.change_rule`.

    Attributes
    ----------
    tensors : list of tensor
        PyTorch's tensors of which parameters are views.
    """

    def __init__(
        self, values: Mapping[str, Any], known: Mapping[str, Any], owner: type[Any], _: int = 1
    ) -> None:  # older pickles have a fourth argument
        arrays, self.tensors = sharing.opened(values["params"])  # PyTorch's, of a copy
        super().__init__(values, params=tuple(arrays))
        self._known, self._owner = known, owner
        # Which rule is chosen depends on the options alone, so any instance of the class can tell. A
        # reference to the optimizer would be a cycle, which keeps its arrays until garbage is collected.
        self._rule = object.__new__(owner)._rule

    def update(self, *values: Any, **more: Any) -> None:
        new = dict(*values, **more)
        if "params" in new:
            raise ValueError("params of a group are fixed: make a new optimizer")
        new = checked(new, self._known)
        self._rule({**self, **new})  # raises where options contradict each other
        super().update(new)

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __ior__(self, values: Any) -> ParameterGroup:  # type: ignore[override, misc]
        self.update(values)
        return self

    def setdefault(self, name: str, value: Any = None) -> Any:
        if name not in self:
            self.update({name: value})
        return self[name]

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("the hyperparameters of a group cannot be removed, only changed")

    __delitem__ = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        params = sharing.closed(self["params"], self.tensors)
        return ParameterGroup, ({**self, "params": params}, self._known, self._owner)
