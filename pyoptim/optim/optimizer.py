"""What all optimizers share: parameter groups, state, and a step that is one fused call.

A subclass names its hyperparameters with their defaults, the rule that they choose, and the rule's
coefficients at step t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .. import backends, gradients
from ..arrays import checks, gpu, gpu_checks, gpu_views, tensors
from ..arrays.memory import Memory, aligned_zeros, is_fast, zeros_beside
from ..arrays.queue import Queue
from ..formulas import storage
from ..formulas.rules import RULES, Rule
from ..runtime import dispatch, numbers
from ..runtime.dtypes import Array
from ..runtime.numbers import check_count, is_count, is_integer, is_number
from .hyperparameters import Checked, ParameterGroup, checked, choice

Schedule = Callable[[int], float]
Group = dict[str, Any]
Row = tuple[float, ...]
State = dict[str, Array]

SHARED = {"weight_decay": 0.0, "decoupled_weight_decay": False, "maximize": False}


class Optimizer:
    """What all optimizers share.

    Parameters
    ----------
    params : array, sequence of arrays, mapping of name to array, or sequence of group dicts
        float32 or float64 NumPy arrays, of any shape, updated in place. They must be writeable and must
        not overlap. Arrays that are not contiguous work, at the cost of a copy each step. CPU tensors of
        PyTorch, or whatever else speaks DLPack, are arrays too, here and in `step`, and share their
        memory; for a whole PyTorch model see `pyoptim.torch.Optimizer`. A group is a dict with
        ``"params"`` (any of the other three) and hyperparameters of its own.

        Arrays in the memory of one GPU work too, without a copy: CuPy's, PyTorch's CUDA tensors, and
        whatever has ``__cuda_array_interface__`` or speaks DLPack; contiguous, of the same dtypes. Every
        optimizer has them, with all that is below, and averages. They need the backend "cuda" or "cupy".
        States are kept there; a step is queued on the stream of the gradients, one launch for each rule and
        dtype (more for what looks at a whole tensor), and not waited for (but for ``nonfinite="raise"`` and
        ``"skip"``). `state_dict` brings states to NumPy arrays, and `load_state_dict` takes them back, so
        they move between processor and GPU. A step cannot be captured into a CUDA graph of yours, which
        would repeat its coefficients: there it is a RuntimeError.
    lr : float or callable
        Learning rate, or a schedule ``step -> lr`` where step counts the steps already taken: see
        `pyoptim.schedules`.
    weight_decay : float
        Coupled (L2) decay adds ``weight_decay * p`` to the gradient, as PyTorch does.
    decoupled_weight_decay : bool
        Instead multiply p by ``1 - lr * weight_decay`` before the update (Loshchilov & Hutter 2019).
    maximize : bool
        Ascend: the sign of the gradient is turned before decay is added.
    max_grad_norm : float, optional
        Scale the gradients so that their global norm is at most this, as `gradients.clip_grad_norm_`
        but without writing them.
    nonfinite : {"ignore", "raise", "skip"}, default "ignore"
        What to do when a gradient holds NaN or infinity: step all the same (as PyTorch), raise a
        ValueError, or skip the step and count it. The last two must know before anything is written, so
        they read the gradients once more, in the same pass as ``max_grad_norm``: an eighth of Adam's
        traffic where they come from memory, little where they are in a cache.
    accumulate : int, default 1
        Gather the gradients of so many calls of `step`, and update with their mean at the last of them.
    rounding : {"master", "stochastic", "nearest"}, default "master"
        For float16 and bfloat16 parameters: update a float32 copy kept in the state as ``master`` and
        round it (so what you write into the parameter yourself is lost at the next step); or update the
        parameter itself, rounded at random (which keeps small updates on average) or to nearest (which
        loses them).
    state_dtype : {None, "bfloat16", "int8"}
        Keep the states of float32 and 16-bit parameters in fewer bits, rounded stochastically; "int8" is
        8 bits with a scale for every 256 elements (after Dettmers et al. 2022). See `pyoptim.storage`.
    seed : int, default 0
        Of the random rounding; both are saved with the state, and loaded. An element's random numbers go by
        the seed, the step and its position among the elements of all parameters (modulo 2^32), so the bits do
        not depend on how an array is cut into several; but the 256 elements that share a scale begin anew in
        every array, so "int8" gives the same bits only for cuts at multiples of 256.

    Attributes
    ----------
    param_groups : list of dict
        The hyperparameters in force, with ``"params"``; change ``param_groups[0]["lr"]`` at will. What
        cannot be is refused when it is set, and so is what would need another state (as momentum where
        there was none, or none where there was some).
    epoch : int
        Epochs done, for schedules that count them; a `Trainer` counts it up.
    average : WeightAverage or None
        What follows the steps: see `averages`.
    skipped : int
        Steps that ``nonfinite="skip"`` left out.
    """

    defaults: ClassVar[dict[str, Any]]  # of the class's own hyperparameters, beside `SHARED`
    _kind: ClassVar[str] = "Stepper"  # the backends' class whose steps these are; others see whole tensors

    max_grad_norm: Any = Checked(lambda v: v is None or (is_number(v) and v > 0), "None or a number > 0")
    nonfinite: Any = Checked(*choice("ignore", "raise", "skip"))
    accumulate: Any = Checked(is_count, "a positive integer")
    rounding: Any = Checked(*choice("master", "stochastic", "nearest"), fixed=True)
    state_dtype: Any = Checked(*choice(None, "bfloat16", "int8"), fixed=True)
    seed: Any = Checked(lambda v: is_integer(v) and 0 <= v < 2**32, "an integer from 0 to 2**32 - 1")
    _max_grad_norm: float | None
    _nonfinite: str
    _accumulate: int
    _rounding: str
    _seed: int

    def __init__(
        self,
        params: Any,
        *,
        max_grad_norm: float | None = None,
        nonfinite: str = "ignore",
        accumulate: int = 1,
        rounding: str = "master",
        state_dtype: str | None = None,
        seed: int = 0,
        **hyperparameters: Any,
    ) -> None:
        self.max_grad_norm, self.nonfinite, self.accumulate = max_grad_norm, nonfinite, accumulate
        self.rounding, self.state_dtype, self.seed = rounding, state_dtype, seed
        self._defaults = {**SHARED, **self.defaults}
        self._defaults.update(checked(hyperparameters, self._defaults))

        self.param_groups: list[Group] = []
        self._tensors: list[Any] = []  # PyTorch's, of which the parameters are views
        self._keys: list[list[Any] | None] = []  # how each group's gradients are looked up
        self._names: list[str] = []
        self._grouped = _is_groups(params)
        for i, given in enumerate(params if self._grouped else [{"params": params}]):
            options = {k: v for k, v in given.items() if k != "params"}
            options = checked(options, self._defaults)
            label = f"params[{i}]['params']" if self._grouped else "params"
            keys, arrays = _flatten(label, given["params"])
            self._tensors += tensors.tensors_among(given["params"])
            self._keys.append(keys)
            self._names += [label] if keys is None else [f"{label}[{key!r}]" for key in keys]
            group = {**self._defaults, **options, "params": tuple(arrays)}
            self.param_groups.append(ParameterGroup(group, self._defaults, type(self)))
        self._lone = self._keys == [None] and not self._grouped  # one array, not in a list
        self._params = [p for group in self.param_groups for p in group["params"]]
        # Of parameters in a GPU's memory: the order of the work on them.
        self._queue: Queue | None = None
        if any(isinstance(p, gpu.DeviceArray) for p in self._params):
            gpu_checks.check_parameters(self._names, self._params)
            self._queue = gpu.queue_of(self._params)
        else:
            checks.check_parameters(self._names, self._params)

        # Where anything is kept in fewer bits than it is computed in, everything goes the packed way.
        self._is_packed = state_dtype is not None or any(p.dtype.itemsize == 2 for p in self._params)
        if self._is_packed:
            self._check_packable()
        self._rules = [RULES[self._rule(group)] for group in self.param_groups]
        self._scalars = [self._first_scalars(group) for group in self.param_groups]
        self.epoch = self.skipped = 0
        self._states = [self._fresh_states(group) for group in self.param_groups]
        # Kernels want contiguous memory: a parameter that is not goes through a copy of its own.
        self._staged = {
            i: np.array(p, order="C")
            for i, p in enumerate(self._params)
            if self._queue is None and not is_fast(p)
        }
        self.average: Any = None  # a `WeightAverage` that follows the steps
        self._written = self._memory()
        self._addresses = self._addresses_now()
        self._steppers: dict[str, Any] = {}  # by backend
        self._sums: list[Any] = []  # of gradients being accumulated
        self._summed = 0

    # What each optimizer says of itself.

    def _rule(self, group: Group) -> str:
        """The name of the rule that the group's options choose."""
        raise NotImplementedError

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        """The rule's coefficients at step t."""
        raise NotImplementedError

    def _initial(self, group: Group) -> dict[str, float]:
        """What state arrays begin with, where it is not 0."""
        return {}

    def _layout(self, group: Group, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state arrays of a parameter of this shape."""
        return dict.fromkeys(RULES[self._rule(group)].states, shape)

    def _first_scalars(self, group: Group) -> dict[str, float]:
        """Scalars that advance with the steps, kept beside the state arrays."""
        return {"step": 0}

    def _next_scalars(self, group: Group, scalars: dict[str, float]) -> dict[str, float]:
        return {"step": scalars["step"] + 1}

    def named_parameters(self) -> dict[str, Array]:
        """Every parameter by the name that messages give it, e.g. ``params['w']``."""
        return dict(zip(self._names, self._params, strict=True))

    def structured(self, arrays: Sequence[Array]) -> Any:
        """One array per parameter, in the order of `named_parameters`, in the structure of ``params``."""
        remaining = iter(arrays)
        parts: list[Any] = []
        for keys in self._keys:
            mine = [next(remaining) for _ in ([None] if keys is None else keys)]
            if keys is None:
                parts += mine
            else:
                parts.append(dict(zip(keys, mine, strict=True)))
        return parts if self._grouped else parts[0]

    def check_memory(self) -> None:
        """ValueError where a parameter has become read-only or has been resized."""
        if self._queue is not None:
            gpu_checks.check_memory(self._names, self._params)
            return
        for name, p, address in zip(self._names, self._params, self._addresses, strict=True):
            if not p.flags.writeable:
                raise ValueError(f"{name} is read-only, expected a writeable array")
            if (p.ctypes.data, p.shape) != address:
                raise ValueError(f"{name} has been resized or reshaped: make a new optimizer for it")

    def follow(self, average: Any) -> None:
        """Let every step update a `WeightAverage` of the parameters: what ``EMA(optimizer)`` calls."""
        if self.average is not None:
            raise ValueError(f"{self!r} already carries an average, expected one at most")
        self.average = average
        self._steppers, self._written = {}, self._memory()

    def _addresses_now(self) -> list[Any]:
        return [] if self._queue is not None else [(p.ctypes.data, p.shape) for p in self._params]

    def _memory(self) -> Any:
        """All that a step writes."""
        averages = [] if self.average is None else self.average.averages
        states = [a for group in self._states for state in group for a in state.values()]
        self._finder: gpu_checks.TensorFinder | None = None
        memory: Any = Memory if self._queue is None else gpu_checks.Memory
        return memory([*self._params, *states, *averages])

    # Stepping.

    def step(self, grads: Any) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        grads : array, sequence, mapping, or sequence of groups' gradients
            The structure of ``params``; each of its parameter's shape and dtype. Gradients are read
            only; what is not contiguous is copied.

        Raises
        ------
        TypeError, ValueError
            A gradient that does not fit, that overlaps a parameter or a state, or that is not finite
            under ``nonfinite="raise"``. Nothing is changed.
        """
        # The bulk of a step of a few thousand elements is this Python, so it is written for speed.
        flat = [grads] if self._lone else self._flatten_gradients(grads)
        factor = 1.0
        if (
            self._accumulate > 1
            or self._summed
            or self._max_grad_norm is not None
            or self._nonfinite != "ignore"
        ):
            flat, factor = self._prepare(flat)
            if not flat and self._params:
                return
        scalars: list[dict[str, float]] = []
        rows: list[Row] = []
        for group in self.param_groups:
            i = len(rows)
            new = self._next_scalars(group, self._scalars[i])
            rows.append(self._row(group, self._rules[i], new, factor))
            scalars.append(new)
        average = self.average
        count = None if average is None else average.count
        self._apply(flat, rows)
        self._scalars = scalars
        if average is not None and average.count == count:  # the kernels did not take it along
            average.update()
        if self._summed:
            self._sums, self._summed = [], 0
        if self._tensors:
            tensors.tell_autograd(self._tensors)

    def _next_rows(self, scalars: list[dict[str, float]]) -> tuple[list[dict[str, float]], list[Row]]:
        """The step after the one with these scalars: its own, and the coefficients of each group."""
        new = [
            self._next_scalars(group, last) for group, last in zip(self.param_groups, scalars, strict=True)
        ]
        rows = [
            self._row(group, rule, own, 1.0)
            for group, rule, own in zip(self.param_groups, self._rules, new, strict=True)
        ]
        return new, rows

    def _row(self, group: Group, rule: Rule, scalars: dict[str, float], factor: float) -> Row:
        lr = group["lr"]
        if type(lr) is not float:
            if callable(lr):
                lr = lr(self.epoch if getattr(lr, "unit", "step") == "epoch" else scalars["step"] - 1)
            if numbers.is_number(lr):
                lr = float(lr)  # a float32 would do arithmetic in float32
        if type(lr) is not float or not 0 <= lr < inf:
            raise ValueError(f"lr is {lr!r} at step {scalars['step']}, expected a finite number >= 0")
        if self._rule(group) != rule.name:
            raise ValueError(
                f"a parameter group's options now choose the rule {self._rule(group)!r} instead of "
                f"{rule.name!r}; options that need other state are fixed when the optimizer is made"
            )
        decay = group["weight_decay"]
        if group["maximize"]:
            factor = -factor
        shared = (factor, 0.0, 1.0 - lr * decay) if group["decoupled_weight_decay"] else (factor, decay, 1.0)
        t: Any = scalars["step"]  # an int; converting it again would cost as much as a power
        return shared + self._coefficients(group, t, lr, scalars)

    def _apply(self, flat: list[Any], rows: list[Row]) -> None:
        """Run the rules: one row of coefficients per step group."""
        stepper = self._stepper()
        limit = () if self._queue is None else (self._max_grad_norm,)
        if self._is_packed:
            key = storage.hash_key(int(self._scalars[0]["step"]), self._seed)
            self._run(stepper, flat, rows, *limit, key, self._rounding == "stochastic")
        elif self.average is None or self._staged or not stepper.checks or self._kind != "Stepper":
            self._run(stepper, flat, rows, *limit)
        else:
            weight = self.average.weight_in_step()
            self._run(stepper, flat, rows, weight)
            if weight:
                self.average.count += 1

    def _run(self, stepper: Any, flat: list[Any], *args: Any) -> None:
        """``stepper.step(flat, *args)``: with the gradients as they come, if it takes them."""
        if not self._staged and stepper.checks and stepper.step(flat, *args):
            return
        flat = self._found(flat) or self._checked(flat)
        for i, copy in self._staged.items():
            copy[...] = self._params[i]
        if not stepper.step(flat, *args):
            raise RuntimeError("a kernel refused gradients that were found to be right: please report it")
        for i, copy in self._staged.items():
            self._params[i][...] = copy

    def _stepper(self) -> Any:
        """The stepper of the backend in force."""
        backend = dispatch.current() if self._queue is None else dispatch.for_device()
        return self._steppers.get(backend.name) or self._new_stepper()

    def _new_stepper(self) -> Any:
        if self._queue is not None:
            return self._new_device_stepper(self._queue)
        backend = dispatch.current()
        if self._is_packed:
            stepper = backend.PackedStepper(self._rules, self._packed_arrays())
        elif self.average is not None and backend.Stepper.checks and self._kind == "Stepper":
            stepper = backend.Stepper(self._step_groups(), self.average.averages)
        else:
            stepper = self._stepper_of(backend)
        self._steppers[backend.name] = stepper
        return stepper

    def _new_device_stepper(self, queue: Queue) -> Any:
        backend = dispatch.for_device()
        if backend.launcher is not queue.launcher:
            raise dispatch.BackendError(
                f"the {backend.name!r} backend was asked for, but another one when this optimizer was made"
            )
        stepper = self._steppers[backend.name] = self._stepper_there(backend, queue)
        return stepper

    def _stepper_there(self, backend: Any, queue: Queue) -> Any:
        if self._is_packed:
            return backend.PackedStepper(self._rules, self._packed_arrays(), queue)
        return self._stepper_of(backend, queue)

    def _stepper_of(self, backend: Any, *queue: Queue) -> Any:
        return getattr(backend, self._kind)(self._step_groups(), *queue)

    def _step_groups(self) -> list[backends.StepGroup]:
        index = iter(range(len(self._params)))
        return [
            backends.StepGroup(
                rule,
                [self._staged.get(next(index), p) for p in group["params"]],
                [[state[name] for name in rule.states] for state in states],
            )
            for rule, group, states in zip(self._rules, self.param_groups, self._states, strict=True)
        ]

    def _packed_arrays(self) -> list[storage.PackedArray]:
        index = iter(range(len(self._params)))
        arrays = []
        for i, (rule, group, states) in enumerate(
            zip(self._rules, self.param_groups, self._states, strict=True)
        ):
            for p, state in zip(group["params"], states, strict=True):
                param = storage.Packed(p.dtype.name, self._staged.get(next(index), p))
                packed = [storage.pack_state(name, state) for name in rule.states]
                arrays.append(storage.PackedArray(i, param, state.get("master"), packed))
        return arrays

    def _prepare(self, flat: list[Any]) -> tuple[list[Array], float]:
        """What to step with, and its factor; nothing where this call makes no step."""
        there = self._queue is not None  # where the step itself clips, and the host learns no norm
        limit = None if there else self._max_grad_norm
        accumulating = self._accumulate > 1 or self._summed > 0
        if self._nonfinite != "ignore" or not (accumulating or there):
            flat, norm = self._normed(flat)
            if self._nonfinite != "ignore" and not self._is_finite(norm, flat):
                return [], 0.0
            if accumulating and not there:  # the kernels may have found that they are tensors
                flat = self._checked(flat)
        else:
            flat = self._checked(flat)
        factor = 1.0
        if accumulating:
            flat, factor = self._accumulated(flat)
            if limit is not None and flat:
                norm = factor * gradients.norm_of(map(storage.widened, flat))
        if limit is not None and flat:
            factor *= gradients.clip_factor(norm, limit)
        return flat, factor

    def _normed(self, flat: list[Any]) -> tuple[list[Any], float]:
        """The gradients, found to be right, and their norm."""
        if self._queue is not None:
            flat = self._checked(flat)
            return flat, math.sqrt(self._stepper().sum_of_squares(flat))
        if not self._staged:
            stepper = self._stepper()
            squares = stepper.sum_of_squares(flat) if stepper.checks else None
            if squares is not None:
                return flat, math.sqrt(squares)
        flat = self._checked(flat)
        return flat, gradients.norm_of(map(storage.widened, flat))

    def _accumulated(self, flat: list[Array]) -> tuple[list[Array], float]:
        """The sum of the gathered gradients, and what makes it their mean; nothing before the last."""
        if self._queue is not None:
            return self._accumulated_there(self._queue, flat)
        with np.errstate(all="ignore"):
            # In float32 at least: sums of 16 bits would overflow, or stand still.
            wide = [storage.widened(g) for g in flat]
            if self._summed:  # np.asarray: a sum of arrays without dimensions is a scalar
                wide = [np.asarray(a + g) for a, g in zip(self._sums, wide, strict=True)]
            if self._summed + 1 < self._accumulate:
                self._sums = wide if self._summed else [g.copy() for g in wide]
                self._summed += 1
                return [], 1.0
            mean = 1 / (self._summed + 1)  # accumulate may have been lowered in the meantime
            if not self._is_packed:
                return wide, mean
            return [np.asarray(a * mean, g.dtype) for a, g in zip(wide, flat, strict=True)], 1.0

    def _accumulated_there(self, queue: Queue, flat: list[Any]) -> tuple[list[Any], float]:
        from ..backends.gpu import copies as gpu_copies  # on a GPU alone

        last = self._summed + 1 >= self._accumulate
        if last:  # the sums are written in place: what could fail after that must fail now
            for group, rule, scalars in zip(self.param_groups, self._rules, self._scalars, strict=True):
                self._row(group, rule, self._next_scalars(group, scalars), 1.0)
        adder = self._steppers.get("sums")
        if adder is None:
            params: list[Any] = self._params
            wide = [gpu_copies.widened(p.dtype) for p in params]
            self._buffers = gpu_copies.zeros(queue, params, wide)
            if self._is_packed:
                self._means = gpu_copies.zeros(queue, params, [p.dtype for p in params])
            adder = self._steppers["sums"] = gpu_copies.Descent(queue, self._buffers, params)
        for buffer in () if self._summed else self._buffers:
            queue.clear(buffer.address, buffer.nbytes)
        if self._summed and self._sums is not self._buffers:  # loaded
            for buffer, values in zip(self._buffers, self._sums, strict=True):
                buffer[...] = values
        adder.step(flat, [(1.0, 0.0, 1.0, -1.0)])  # a descent at rate -1: sums + g
        self._sums = self._buffers
        self._summed += 1
        if not last:
            return [], 1.0
        mean = 1 / self._summed
        gathered = gpu_copies.on_streams_of(self._buffers, flat)
        if not self._is_packed:
            return gathered, mean
        means = gpu_copies.on_streams_of(self._means, flat)
        gpu_copies.assign(queue, means, gathered, mean)
        return means, 1.0

    def _is_finite(self, norm: float, flat: list[Any]) -> bool:
        if math.isfinite(norm):
            return True
        queue = self._queue
        flat = self._checked(flat) if queue is None else [g.download(queue) for g in flat]
        named = zip(self._gradient_names(), flat, strict=True)
        wrong = [name for name, g in named if not np.isfinite(g).all()]
        if wrong and self._nonfinite == "raise":
            raise ValueError(f"{wrong[0]} holds NaN or infinity, expected finite values")
        self.skipped += bool(wrong)
        return not wrong  # a norm may overflow though all elements are finite

    # Gradients as they come.

    def _flatten_gradients(self, grads: Any) -> list[Any]:
        if not self._grouped:
            return _like(self._keys[0], "grads", grads)
        if not isinstance(grads, Sequence) or len(grads) != len(self._keys):
            raise ValueError(
                f"grads is {_describe(grads)}, expected a sequence of {len(self._keys)} groups' gradients"
            )
        return [
            g
            for i, (keys, part) in enumerate(zip(self._keys, grads, strict=True))
            for g in _like(keys, f"grads[{i}]", part)
        ]

    def _found(self, flat: list[Any]) -> Any:
        """Gradients in a GPU's memory, as steppers take them, where they are found without `_checked`."""
        if self._queue is None or not flat:
            return None
        if self._finder is None:
            self._finder = gpu_checks.TensorFinder(self._params, self._written)
        return self._finder.find(flat)

    def _checked(self, flat: list[Any]) -> list[Any]:
        self.check_memory()
        if self._queue is not None:
            return gpu_checks.check_gradients(self._gradient_names(), flat, self._params, self._written)
        return checks.check_gradients(self._gradient_names(), flat, self._params, self._written)

    def _gradient_names(self) -> list[str]:
        return [name.replace("params", "grads", 1).replace("['params']", "") for name in self._names]

    # State.

    def _fresh_states(self, group: Group) -> list[State]:
        """The states of each of a group's parameters before the first step."""
        return self._allocate_packed(group) if self._is_packed else self._allocate(group)

    def _allocate(self, group: Group) -> list[State]:
        """The states of each parameter: for each dtype and name one buffer, of which they are views."""
        params, initial = group["params"], self._initial(group)
        layouts = [self._layout(group, p.shape) for p in params]
        states: list[State] = [{} for _ in params]
        for dtype in dict.fromkeys(p.dtype for p in params):
            members = [i for i, p in enumerate(params) if p.dtype == dtype]
            for name in dict.fromkeys(name for i in members for name in layouts[i]):
                owners = [i for i in members if name in layouts[i]]
                shapes = [layouts[i][name] for i in owners]
                beside = [params[i] for i in owners]
                pieces: list[Any] = (
                    zeros_beside(beside, shapes, dtype)
                    if self._queue is None
                    else gpu.zeros_beside(self._queue, beside, shapes, dtype)
                )
                for i, piece in zip(owners, pieces, strict=True):
                    if initial.get(name):
                        piece[...] = initial[name]
                    states[i][name] = piece
        return states

    def _check_elementwise(self, what: str) -> None:
        if self._kind != "Stepper":
            raise TypeError(
                f"{type(self).__name__} updates float32 and float64 parameters with states of their own "
                f"dtype; {what} for the elementwise optimizers"
            )

    def _check_packable(self) -> None:
        self._check_elementwise("16-bit parameters and state_dtype are")
        for name, p in zip(self._names, self._params, strict=True):
            if p.dtype == np.float64:
                raise TypeError(
                    f"{name} has dtype float64, which does not go with 16-bit parameters or state_dtype"
                )

    def _allocate_packed(self, group: Group) -> list[State]:
        initial = self._initial(group)
        states: list[State] = []
        for p in group["params"]:
            state: State = {}
            for name in RULES[self._rule(group)].states:
                parts = storage.state_arrays(name, p.shape, self.state_dtype).items()
                state |= {part: self._packed_zeros(p, shape, dtype) for part, (shape, dtype) in parts}
                if initial.get(name):
                    first = {part: np.zeros(shape, dtype) for part, (shape, dtype) in parts}
                    values = np.full(p.size, initial[name], np.float32)
                    storage.encode(storage.pack_state(name, first), values, 0, False)
                    for part, array in first.items():
                        state[part][...] = array
            if p.dtype.itemsize == 2 and self.rounding == "master":
                master: Any = self._packed_zeros(p, p.shape, np.float32)
                if self._queue is None:
                    master[...] = p
                else:
                    from ..backends.gpu import copies as gpu_copies  # on a GPU alone

                    gpu_copies.assign(self._queue, [master], [p])
                state["master"] = master
            states.append(state)
        return states

    def _packed_zeros(self, p: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        if self._queue is not None:
            return gpu.zeros_beside(self._queue, [p], [shape], dtype)[0]
        return aligned_zeros(math.prod(shape), dtype).reshape(shape)

    def state_dict(self) -> dict[str, Any]:
        """State and hyperparameters, in PyTorch's layout; arrays are copies.

        Returns
        -------
        dict
            ``"state"``: index of the parameter -> its step count and state arrays;
            ``"param_groups"``: hyperparameters, with the indices of the parameters; ``"epoch"``;
            ``"skipped"``; ``"rounding"`` and ``"seed"``; ``"accumulated"``: how many gradients
            ``accumulate`` has gathered, and their sums.
        """
        state: dict[int, dict[str, Any]] = {}
        groups = []
        for group, scalars, states in zip(self.param_groups, self._scalars, self._states, strict=True):
            indices = list(range(len(state), len(state) + len(states)))
            for i, arrays in zip(indices, states, strict=True):
                state[i] = {**scalars, **{name: np.array(array) for name, array in arrays.items()}}
            groups.append({**group, "params": indices})
        return {
            "state": state,
            "param_groups": groups,
            "epoch": self.epoch,
            "skipped": self.skipped,
            "rounding": self.rounding,
            "seed": self.seed,
            "accumulated": {"count": self._summed, "sums": [np.array(a) for a in self._sums]},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an optimizer of the same kind and shapes returned.

        Raises
        ------
        TypeError, ValueError
            It does not fit: missing or unknown names, other shapes. Nothing is changed.
        """
        groups, state = check_structure(state_dict, len(self.param_groups))
        if set(state) != set(range(len(self._params))):
            last = len(self._params) - 1
            raise ValueError(f"state_dict['state'] is of the parameters {list(state)}, expected 0 to {last}")
        owned = [i for given in groups for i in given["params"]]
        if len(set(owned)) != len(owned) or not state.keys() >= set(owned):
            raise ValueError(f"state_dict's groups have the parameters {owned}, expected each once")
        counts = [
            check_count(f"state_dict['{name}']", state_dict.get(name, getattr(self, name)), 0)
            for name in ("epoch", "skipped")
        ]
        randomness = {
            name: getattr(Optimizer, name).checked(
                state_dict.get(name, getattr(self, name)), f"state_dict['{name}']"
            )
            for name in ("rounding", "seed")
        }
        summed, sums = self._check_accumulated(state_dict.get("accumulated", {"count": 0, "sums": []}))
        new_options, new_scalars, copies = [], [], []
        for group, rule, states, given in zip(
            self.param_groups, self._rules, self._states, groups, strict=True
        ):
            options = {k: v for k, v in given.items() if k != "params"}
            options = checked(options, self._defaults)
            if self._rule({**group, **options}) != rule.name:
                raise ValueError(f"state_dict's options do not choose the rule {rule.name!r}")
            indices = given["params"]
            if len(indices) != len(states):
                raise ValueError(
                    f"state_dict's group has {len(indices)} parameters, expected {len(states)} in 'params'"
                )
            scalars = self._first_scalars(group)
            for i, arrays in zip(indices, states, strict=True):
                label, entry = f"state_dict['state'][{i}]", state[i]
                wanted = {*scalars, *arrays}
                if set(entry) != wanted:
                    raise ValueError(f"{label} has {sorted(entry)}, expected {sorted(wanted)}")
                for name, array in arrays.items():
                    value = checks.check_like(f"{label}[{name!r}]", entry[name], array.shape, array.dtype)
                    copies.append((array, value))
                own = {name: _check_scalar(f"{label}[{name!r}]", name, entry[name]) for name in scalars}
                if i != indices[0] and own != scalars:
                    raise ValueError(f"{label} has {own}, expected {scalars}: a group steps together")
                scalars = own
            new_options.append(options)
            new_scalars.append(scalars)
        for array, value in copies:
            array[...] = value
        for group, options in zip(self.param_groups, new_options, strict=True):
            group.update(options)
        self._scalars = new_scalars
        self.epoch, self.skipped = counts  # PyTorch's has neither, nor what follows
        self._rounding, self._seed = randomness["rounding"], randomness["seed"]
        self._sums, self._summed = sums, summed

    def _check_accumulated(self, accumulated: Any) -> tuple[int, list[Array]]:
        label = "state_dict['accumulated']"
        if (
            not isinstance(accumulated, Mapping)
            or set(accumulated) != {"count", "sums"}
            or not isinstance(accumulated["sums"], list | tuple)
        ):
            raise ValueError(f"{label} is {_describe(accumulated)}, expected a count and a list of sums")
        sums = accumulated["sums"]
        count = check_count(f"{label}['count']", accumulated["count"], 0)
        if count >= self.accumulate:
            raise ValueError(
                f"{label} has {count} gradients, expected fewer than accumulate={self.accumulate}"
            )
        if len(sums) != (len(self._params) if count else 0):
            raise ValueError(
                f"{label} has {len(sums)} sums of {count} gradients of {len(self._params)} arrays"
            )
        dtypes = [np.dtype(np.float32) if p.dtype.itemsize == 2 else p.dtype for p in self._params]
        checked = [
            checks.check_like(f"{label}['sums'][{i}]", a, p.shape, dtype).copy()
            for i, (a, p, dtype) in enumerate(zip(sums, self._params, dtypes, strict=False))
        ]
        return count, checked

    def save(self, path: str | Path) -> None:
        """Write what `state_dict` holds to a safetensors file, atomically, and the average that follows.

        The same state gives the same bytes. Parameters are not in it: save them too
        (`Sequential.save`). Of an `EMA` or `SWA` of this optimizer it has the count and the averages.

        Raises
        ------
        ValueError
            A schedule is not one of `pyoptim.schedules`', or path is a directory or a device.
        OSError
            The file cannot be written. What was there is as it was.
        """
        from . import checkpoint

        checkpoint.save_optimizer(self, path)

    def load(self, path: str | Path) -> None:
        """Take over what `save` of an optimizer of the same class, options and shapes wrote.

        A file with an average is for an optimizer that one of the same class follows; one without leaves
        the average, if there is one, as it is.

        Raises
        ------
        ValueError
            The file is damaged, or does not fit; the message names it. Nothing is changed.
        """
        from . import checkpoint

        checkpoint.load_optimizer(self, path)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_steppers": {},
            "_finder": None,
            "_tensors": [],
        }  # of other memory than the copy's

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._addresses = self._addresses_now()
        self._written = self._memory()

    def __repr__(self) -> str:
        usual = {**SHARED, **type(self).defaults}
        shown = {k: v for k, v in self._defaults.items() if k == "lr" or v != usual[k]}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def check_structure(state_dict: Any, count: int) -> tuple[list[Mapping[str, Any]], Mapping[Any, Any]]:
    """The groups and the state of a state_dict, ours or PyTorch's, of so many groups.

    Raises
    ------
    ValueError
        It is not made of the mappings and lists that it should be.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(
            f"state_dict is {_describe(state_dict)}, expected a mapping with state and param_groups"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list | tuple):
        raise ValueError(f"state_dict['param_groups'] is {_describe(groups)}, expected a list")
    if len(groups) != count:
        raise ValueError(f"state_dict has {len(groups)} parameter groups, expected {count}")
    for i, group in enumerate(groups):
        label = f"state_dict['param_groups'][{i}]"
        if not isinstance(group, Mapping):
            raise ValueError(f"{label} is {_describe(group)}, expected a mapping")
        keys = group.get("params")
        if not isinstance(keys, list | tuple) or not all(isinstance(key, int) for key in keys):
            raise ValueError(f"{label}['params'] is {keys!r:.80}, expected a list of integers")
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict['state'] is {_describe(state)}, expected a mapping")
    for key, entry in state.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"state_dict['state'][{key!r}] is {_describe(entry)}, expected a mapping")
    return list(groups), state


def _check_scalar(label: str, name: str, value: Any) -> float:
    if not numbers.is_number(value) or value < 0 or (name == "step" and value != int(value)):
        raise ValueError(f"{label} is {value!r}, expected a number of steps or a product >= 0")
    return int(value) if name == "step" else float(value)


def _is_groups(params: Any) -> bool:
    return (
        isinstance(params, Sequence)
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def _flatten(label: str, params: Any) -> tuple[list[Any] | None, list[Any]]:
    """Keys (None for a single array) and arrays; of a subclass of ndarray or a tensor, the plain array."""
    if isinstance(params, np.ndarray):
        return None, [np.asarray(params)]
    if isinstance(params, Mapping | list | tuple):
        keys = list(params) if isinstance(params, Mapping) else list(range(len(params)))
        return keys, [_parameter(f"{label}[{key!r}]", params[key]) for key in keys]
    if hasattr(params, "__dlpack__") or gpu_views.is_there(params):
        return None, [_parameter(label, params)]
    raise TypeError(
        f"{label} is a {type(params).__name__}, expected an array, a list, tuple or dict of arrays, "
        "or a list of group dicts"
    )


def _parameter(name: str, value: Any) -> Any:
    if getattr(value, "requires_grad", False) and not value.is_leaf:
        raise ValueError(f"{name} is computed from other tensors, expected a leaf or a detached tensor")
    if gpu_views.is_there(value):
        dispatch.for_device()  # where there is none, its message
        return gpu_views.view(
            name, value.detach() if hasattr(value, "detach") else value, also=gpu_views.HALF
        )
    return tensors.in_place(name, value)


def _like(keys: list[Any] | None, label: str, grads: Any) -> list[Any]:
    """Gradients in the order of the parameters."""
    if keys is None:
        return [grads]
    if isinstance(grads, Mapping):
        if len(grads) == len(keys):
            try:
                return [grads[key] for key in keys]
            except KeyError:
                pass
        raise ValueError(f"{label} has the names {list(grads)}, expected {keys}")
    if not isinstance(grads, list | tuple) or len(grads) != len(keys):
        raise ValueError(f"{label} is {_describe(grads)}, expected {len(keys)} arrays")
    if keys and keys[0] != 0:
        raise ValueError(f"{label} is {_describe(grads)}, expected a mapping with the names {keys}")
    return list(grads)


def _describe(value: Any) -> str:
    size = f" of {len(value)}" if hasattr(value, "__len__") and getattr(value, "shape", 1) != () else ""
    return f"a {type(value).__name__}{size}"
