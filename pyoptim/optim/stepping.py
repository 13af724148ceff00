"""The parts of an optimizer's step around the kernels: coefficients, clipping, accumulating, NaN checks."""

from __future__ import annotations

import itertools
import math
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends, gradients
from ..arrays import sharing
from ..formulas import storage
from ..formulas.rules import RULES, Rule
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import is_number
from .hyperparameters import ParameterGroup

if TYPE_CHECKING:
    from .optimizer import Group, Optimizer, Row


# The kernels, and what they are prepared with.


def new_stepper(optimizer: Optimizer) -> Any:
    """Return a new stepper of the backend in force, which the optimizer keeps."""
    place = optimizer._place
    sharing.check_model(optimizer._names, optimizer._params)
    backend = place.backend()
    if optimizer._is_packed:
        stepper = backend.PackedStepper(optimizer._rules, packed_arrays(optimizer), *place.queues)
    elif optimizer._carries_average(backend.Stepper):
        stepper = backend.Stepper(optimizer._step_groups(), optimizer.average.averages)
    else:
        stepper = optimizer._stepper_of(backend)
    optimizer._steppers[backend.name] = stepper
    return stepper


def is_compiled(optimizer: Optimizer) -> bool:
    """Whether C++ computes the same coefficients, as for the package's own elementwise optimizers."""
    return type(optimizer).__module__ == f"{__package__}.elementwise"


def advance_of(optimizer: Optimizer) -> Any:
    """Return the function that makes whole steps of (gradients, groups, scalars, epoch), and tells if it did.

    It is None where there is none now, and False where there never is.
    """
    on_gpu = optimizer._place.queue is not None
    if on_gpu or optimizer._is_packed or optimizer._staged or not is_compiled(optimizer):
        return False
    if optimizer._place.backend().name != "native" or getattr(optimizer, "_looking_ahead", False):
        return None
    stepper = optimizer._stepper()
    name, in_force = type(optimizer).__name__.lower(), dispatch.values_in_force("native")
    stepper.hold(name, optimizer.param_groups, learning_rate, *in_force)
    return stepper.advance


def step_groups(optimizer: Optimizer) -> list[backends.StepGroup]:
    """The arrays of each parameter group."""
    index = iter(range(len(optimizer._params)))
    return [
        backends.StepGroup(
            rule,
            [optimizer._staged.get(next(index), p) for p in group["params"]],
            [[state[name] for name in rule.states] for state in states],
        )
        for rule, group, states in optimizer._by_group()
    ]


def packed_arrays(optimizer: Optimizer) -> list[storage.PackedArray]:
    """The arrays of each parameter, some of which are kept in fewer bits."""
    index = iter(range(len(optimizer._params)))
    arrays = []
    for i, (rule, group, states) in enumerate(optimizer._by_group()):
        for p, state in zip(group["params"], states, strict=True):
            param = storage.Packed(p.dtype.name, optimizer._staged.get(next(index), p))
            packed = [storage.pack_state(name, state) for name in rule.states]
            arrays.append(storage.PackedArray(i, param, state.get("master"), packed))
    return arrays


def learning_rate(lr: Any, step: float, epoch: int) -> float:
    """The learning rate that ``lr`` is at this step, of which the first is 1, after so many epochs."""
    if type(lr) is not float:
        if callable(lr):
            unit = getattr(lr, "unit", None)
            at = lr if unit is None else getattr(lr, "_quickly", lr)
            lr = at(epoch if unit == "epoch" else step - 1)
        if is_number(lr):
            lr = float(lr)  # a float32 would do arithmetic in float32
    if type(lr) is not float or not 0 <= lr < inf:
        raise ValueError(f"lr is {lr!r} at step {step}, expected a finite number >= 0")
    return lr


def check_rule(optimizer: Optimizer, group: Group, rule: Rule) -> None:
    """ValueError where options came to choose another rule between steps that are planned together."""
    if optimizer._rule(group) != rule.name:
        raise ValueError(
            f"a parameter group's options now choose the rule {optimizer._rule(group)!r} instead of "
            f"{rule.name!r}; within an epoch they cannot: see Trainer's engine='python'"
        )


def check_descends(optimizer: Optimizer, what: str) -> None:
    """ValueError where a group ascends by itself, so that going uphill first makes no sense."""
    if any(group["maximize"] for group in optimizer.param_groups):
        raise ValueError(f"{what} moves uphill of a minimum: expected maximize=False in every group")


def change_rules(optimizer: Optimizer) -> None:
    """Give every group the rule that its options choose now."""
    for i, group in enumerate(optimizer.param_groups):
        if optimizer._rule(group) != optimizer._rules[i].name:
            change_rule(optimizer, i)


def may_begin_late(optimizer: Optimizer) -> bool:
    """Whether a rule that keeps states may follow on one that keeps none, as SGD's with momentum."""
    return len({bool(RULES[name].states) for name in optimizer._rule_names}) == 2


def change_rule(optimizer: Optimizer, i: int) -> None:
    """Give group i the rule that its options choose now, and the states that it lacks for it.

    They begin as in a new optimizer. States that the new rule does not use stay, as in PyTorch, if a step was
    taken with them. A rule whose first step differs from its others finds the number of that step, if it is
    not 1, in the group's scalars.
    """
    group, states, scalars = checked_group(optimizer, i), optimizer._states[i], optimizer._scalars[i]
    optimizer.param_groups[i] = group
    rule = RULES[optimizer._rule(group)]
    if may_begin_late(optimizer):
        next_step = int(scalars["step"]) + 1
        if not rule.states and scalars.get("begun", 1) == next_step:  # it was chosen, but never took a step
            scalars.pop("begun", None)
            for own, name in itertools.product(states, optimizer._rules[i].states):
                own.pop(name, None)
                own.pop(f"{name}_scale", None)
        is_new = not any(name in own for own in states for name in rule.states)
        if is_new and rule.states and next_step > 1:
            scalars["begun"] = next_step
    for own, fresh in zip(states, optimizer._fresh_states(group), strict=True):
        own.update({name: array for name, array in fresh.items() if name not in own})
    optimizer._rules[i] = rule
    optimizer._renew_steppers()


def checked_group(optimizer: Optimizer, i: int) -> ParameterGroup:
    """Group i, or one with the values of a dict that the user put in its place."""
    group: Any = optimizer.param_groups[i]
    if isinstance(group, ParameterGroup):
        return group
    made = ParameterGroup(group, optimizer._defaults, type(optimizer))
    if len(optimizer._tensors) == len(optimizer._params):
        begin = sum(len(other["params"]) for other in optimizer.param_groups[:i])
        made.tensors = optimizer._tensors[begin : begin + len(group["params"])]
    return made


def row_of(optimizer: Optimizer, group: Group, scalars: dict[str, float], factor: float) -> Row:
    """A group's coefficients: those that all rules share, then the rule's own."""
    lr = learning_rate(group["lr"], scalars["step"], optimizer.epoch)
    decay = group["weight_decay"]
    if group["maximize"]:
        factor = -factor
    shared = (factor, 0.0, 1.0 - lr * decay) if group["decoupled_weight_decay"] else (factor, decay, 1.0)
    t: Any = scalars["step"]  # an int; converting it again would cost as much as a power
    return shared + optimizer._coefficients(group, t, lr, scalars)


def run(optimizer: Optimizer, stepper: Any, flat: list[Any], *args: Any) -> None:
    """Make a step with the gradients as they are if the stepper takes them so, else with checked ones."""
    if not optimizer._staged and stepper.checks and stepper.step(flat, *args):
        return
    found = None if optimizer._finder is None else optimizer._finder.find(flat)
    flat = found or optimizer._checked(flat)
    for i, copy in optimizer._staged.items():
        copy[...] = optimizer._params[i]
    if not stepper.step(flat, *args):
        raise RuntimeError("a kernel refused gradients that were found to be right: please report it")
    for i, copy in optimizer._staged.items():
        optimizer._params[i][...] = copy


# Gradients before they are stepped with.


def prepare(optimizer: Optimizer, grads: list[Any]) -> tuple[list[Array], float]:
    """Return the gradients to step with and their factor; no gradients if this call makes no step."""
    clips_itself = optimizer._place.clips  # on a GPU the host does not learn the norm
    limit = None if clips_itself else optimizer._max_grad_norm
    accumulating = optimizer._accumulate > 1 or optimizer._summed > 0
    if optimizer._nonfinite != "ignore" or not (accumulating or clips_itself):
        grads, norm = _normed(optimizer, grads)
        if optimizer._nonfinite != "ignore" and not _is_finite(optimizer, norm, grads):
            return [], 0.0
        if accumulating and not clips_itself:  # the kernels took them as they are, perhaps as tensors
            grads = optimizer._checked(grads)
    else:
        grads = optimizer._checked(grads)
    factor = 1.0
    if accumulating:
        grads, factor = _accumulated(optimizer, grads)
        if limit is not None and grads:
            norm = factor * optimizer._place.norm(grads, optimizer._stepper())
    if limit is not None and grads:
        factor *= gradients.clip_factor(norm, limit)
    return grads, factor


def _normed(optimizer: Optimizer, grads: list[Any]) -> tuple[list[Any], float]:
    """Return the checked gradients and their norm."""
    stepper = optimizer._stepper()
    if not optimizer._staged and stepper.checks:
        norm = stepper.norm(grads)
        if norm is not None:
            return grads, norm
    grads = optimizer._checked(grads)
    return grads, optimizer._place.norm(grads, stepper)


def _accumulated(optimizer: Optimizer, grads: list[Array]) -> tuple[list[Array], float]:
    """Return the accumulated gradients and their factor; no gradients before the last call."""
    last = optimizer._summed + 1 >= optimizer._accumulate
    if optimizer._accumulator is None:
        sharing.check_model(optimizer._names, optimizer._params)
        optimizer._accumulator = optimizer._place.accumulator(optimizer._params, optimizer._is_packed)
    if last and optimizer._accumulator.in_place:  # what could fail after the sums are written must fail now
        optimizer._next_rows(optimizer._scalars)
    optimizer._sums, optimizer._summed, grads, factor = optimizer._accumulator.add(
        optimizer._sums, optimizer._summed, grads, last
    )
    return grads, factor


def _is_finite(optimizer: Optimizer, norm: float, grads: list[Any]) -> bool:
    """Return whether to step; count or refuse gradients that are not finite, as ``nonfinite`` says."""
    if math.isfinite(norm):
        return True
    grads = [optimizer._place.values(g) for g in optimizer._checked(grads)]
    named = zip(optimizer._gradient_names(), grads, strict=True)
    wrong = [name for name, g in named if not np.isfinite(g).all()]
    if wrong and optimizer._nonfinite == "raise":
        raise ValueError(f"{wrong[0]} holds NaN or infinity, expected finite values")
    optimizer.skipped += bool(wrong)
    return not wrong  # a norm may be beyond all floats though all elements are finite
