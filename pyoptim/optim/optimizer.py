"""What all optimizers share: parameter groups, state, and a step that is one fused call.

A subclass names its hyperparameters with their defaults, the rule that they choose, and the rule's
coefficients at step t.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..arrays import tensors
from ..backends import StepGroup
from ..backends.places import HOST, Place, place_of
from ..formulas import storage
from ..formulas.rules import RULES, Rule
from ..runtime.dtypes import Array
from ..runtime.numbers import COUNT, POSITIVE, Range, check_flag, check_path, is_integer, one_of
from . import state, stepping, structure
from .hyperparameters import Checked, ParameterGroup, checked

if TYPE_CHECKING:
    from pathlib import Path

Schedule = Callable[[int], float]
Group = dict[str, Any]
Row = tuple[float, ...]

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
        States are kept on the GPU; a step is queued on the stream of the gradients, one launch for each rule
        and dtype (more for what looks at a whole tensor), and not waited for (but for ``nonfinite="raise"``
        and ``"skip"``). `state_dict` brings states to NumPy arrays, and `load_state_dict` takes them back, so
        they move between processor and GPU. A step cannot be captured into a CUDA graph of yours, which
        would repeat its coefficients: that is a RuntimeError.
    lr : float or callable, optional
        Learning rate, by default that of the class; or a schedule ``step -> lr`` where step counts the steps
        already taken: see `pyoptim.schedules`.
    weight_decay : float
        Coupled (L2) decay adds ``weight_decay * p`` to the gradient, as PyTorch does.
    decoupled_weight_decay : bool
        Instead multiply p by ``1 - lr * weight_decay`` before the update (Loshchilov & Hutter 2019).
    maximize : bool
        Ascend: the sign of the gradient is turned before decay is added.
    max_grad_norm : float, optional
        Scale the gradients so that their global norm is at most this, as `gradients.clip_grad_norm_`
        but without writing them. A norm beyond 1.8e308 counts as infinite: the step is 0 or NaN.
    nonfinite : {"ignore", "raise", "skip"}, default "ignore"
        What to do when a gradient holds NaN or infinity: step all the same (as PyTorch), raise a
        ValueError, or skip the step and count it. The last two must know before anything is written, so
        they read the gradients once more, in the same pass as ``max_grad_norm``: an eighth of Adam's
        traffic where they come from memory, little where they are in a cache. With a `Trainer` a step that
        is not taken leaves the model's buffers too as they were (running statistics, the position in
        Dropout's random numbers), and its batch is no part of the epoch's loss and accuracy: "skip" trains
        as if the batch had not been there.
    accumulate : int, default 1
        Gather the gradients of so many calls of `step`, and update with their mean at the last of them.
    rounding : {"master", "stochastic", "nearest"}, default "master"
        For float16 and bfloat16 parameters: update a float32 copy kept in the state as ``master`` and
        round it; or update the parameter itself, rounded at random (which keeps small updates on average)
        or to nearest (which loses them). Where a parameter is no longer its master rounded, because you
        have written it (loaded weights, clipped it), the step starts from the parameter.
    state_dtype : {None, "bfloat16", "int8"}
        Keep the states of float32 and 16-bit parameters in fewer bits, rounded stochastically; "int8" is
        8 bits with a scale for every 256 elements (Dettmers et al. 2022): see `pyoptim.formulas.storage`.
    seed : int, default 0
        Of the random rounding; both are saved with the state, and loaded. An element's random numbers go by
        the seed, the step and its position among the elements of all parameters (modulo 2^32), so the bits do
        not depend on how an array is cut into several; but the 256 elements that share a scale begin anew in
        every array, so "int8" gives the same bits only for cuts at multiples of 256.

    Attributes
    ----------
    param_groups : list of dict
        The hyperparameters in force, with ``"params"``; change ``param_groups[0]["lr"]`` at will. What
        cannot be is refused when it is set. What needs a state that was not needed before, as momentum
        where there was none, ``amsgrad`` or ``centered``, gets it at the next step: it begins as in a new
        optimizer, and the step count goes on. A state that is needed no more stays as it is, for the time
        when it is needed again. PyTorch does the same (but for ``amsgrad`` and ``centered``, which it
        cannot turn on).
    epoch : int
        Epochs done, for schedules that count them; a `Trainer` counts it up.
    average : WeightAverage or None
        What follows the steps: see `averages`.
    skipped : int
        Steps that ``nonfinite="skip"`` left out.

    Notes
    -----
    Rules that divide by the root of a mean of squares keep that mean in the parameter's type, so they want
    gradients below 1.8e19 in float32 and 1.3e154 in float64 (`Adam` and its kin take 30 times as much in the
    first steps, but for ``amsgrad_max="corrected"``). Beyond, the mean is infinite and the element stands
    still, as in PyTorch; ``max_grad_norm`` keeps gradients in range. Below 1e-19 and 1e-154 squares lose
    bits, which shows only where eps is as small. `SGD`, `Adamax`, `Lion`, `Rprop`, `ASGD`, `LARS` and `Muon`
    keep no squares. Norms may be any float64: see `gradients.global_norm`; `Muon` wants them in the
    parameter's type.

    Copied or pickled in one call, an optimizer and what its parameters belong to stay together:
    ``copy.deepcopy((model, optimizer))``, in any container and order. So do the arrays and tensors that it
    was given; but joblib copies an array for each that holds it, and NumPy a view without what it is a view
    of. An optimizer of a model's parameters that was copied without the model refuses to step, to look ahead
    and to be averaged.
    """

    defaults: ClassVar[dict[str, Any]]  # of the class's own hyperparameters, beside `SHARED`
    _rule_name: ClassVar[str]  # of classes whose options choose no other rule
    _rule_names: ClassVar[tuple[str, ...]] = ()  # of the others: the rules among which options choose
    __signature__: ClassVar[inspect.Signature]
    _kind: ClassVar[str] = "Stepper"  # the backends' class that makes the steps

    max_grad_norm: Any = Checked(Range(lambda v: v is None or POSITIVE.allowed(v), "None or a number > 0"))
    nonfinite: Any = Checked(one_of("ignore", "raise", "skip"))
    accumulate: Any = Checked(COUNT)
    rounding: Any = Checked(one_of("master", "stochastic", "nearest"), fixed=True)
    state_dtype: Any = Checked(one_of(None, "bfloat16", "int8"), fixed=True)
    seed: Any = Checked(Range(lambda v: is_integer(v) and 0 <= v < 2**32, "an integer from 0 to 2**32 - 1"))
    _max_grad_norm: float | None
    _nonfinite: str
    _accumulate: int
    _rounding: str
    _seed: int
    _is_ascended = False  # whether the parameters stand where `ascended` has moved them

    def __init_subclass__(cls) -> None:
        """Give the class a signature that names its hyperparameters with their defaults."""
        super().__init_subclass__()
        if "_rule_name" in vars(cls):
            cls._rule_names = (cls._rule_name,)
        _, *given = inspect.signature(cls.__init__).parameters.values()
        if "__init__" in vars(cls):
            cls.__signature__ = inspect.Signature(given)
        elif "defaults" in vars(cls):
            params, lr, *shared, rest = given
            own = {**SHARED, **cls.defaults}
            first = [params, lr.replace(default=own.pop("lr"))]
            keywords = [inspect.Parameter(name, rest.KEYWORD_ONLY, default=own[name]) for name in own]
            cls.__signature__ = inspect.Signature([*first, *keywords, *shared])

    def __init__(
        self,
        params: Any,
        lr: float | Schedule | None = None,
        *,
        max_grad_norm: float | None = None,
        nonfinite: str = "ignore",
        accumulate: int = 1,
        rounding: str = "master",
        state_dtype: str | None = None,
        seed: int = 0,
        **hyperparameters: Any,
    ) -> None:
        if type(self) is Optimizer:
            raise TypeError("an Optimizer is what all optimizers share, expected one of them, such as Adam")
        self.max_grad_norm, self.nonfinite, self.accumulate = max_grad_norm, nonfinite, accumulate
        self.rounding, self.state_dtype, self.seed = rounding, state_dtype, seed
        self._defaults = {**SHARED, **self.defaults}
        given = hyperparameters if lr is None else {"lr": lr, **hyperparameters}
        self._defaults.update(checked(given, self._defaults))

        self.param_groups: list[Group] = []
        self._tensors: list[Any] = []  # PyTorch's, of which the parameters are views
        self._keys: list[structure.Keys] = []  # how each group's gradients are looked up
        self._names: list[str] = []
        self._grouped = structure.is_groups(params)
        for i, group in enumerate(params if self._grouped else [{"params": params}]):
            self._add_group(f"params[{i}]['params']" if self._grouped else "params", group)
        self._lone = self._keys == [None] and not self._grouped  # one array, not in a list
        self._params: list[Any] = [p for group in self.param_groups for p in group["params"]]
        self._place: Place = place_of(self._names, self._params)

        # If any array has fewer bits than the arithmetic, the backend's PackedStepper updates all of them.
        self._is_packed = state_dtype is not None or any(p.dtype.itemsize == 2 for p in self._params)
        if self._is_packed:
            state.check_packable(self)
        self._rules = [RULES[self._rule(group)] for group in self.param_groups]
        self._scalars = [self._first_scalars(group) for group in self.param_groups]
        self.epoch = self.skipped = 0
        self._states = [self._fresh_states(group) for group in self.param_groups]
        # Kernels want contiguous memory: a parameter that is not goes through a copy of its own.
        self._staged = self._place.staged(self._params)
        self.average: Any = None  # a `WeightAverage` that follows the steps
        self._sums: list[Any] = []  # sums of the gradients being accumulated
        self._summed = 0
        self._derive()

    def _add_group(self, label: str, given: Mapping[str, Any]) -> None:
        options = {k: v for k, v in given.items() if k != "params"}
        options = checked(options, self._defaults)
        keys, arrays = structure.flatten(label, given["params"])
        self._keys.append(keys)
        self._names += structure.names_of(label, keys)
        group = ParameterGroup({**self._defaults, **options, "params": arrays}, self._defaults, type(self))
        if not isinstance(given, ParameterGroup):  # options that were changed later may be such
            self._check_together(group)
        group.tensors = tensors.tensors_among(given["params"])
        self._tensors += group.tensors
        self.param_groups.append(group)

    def _derive(self) -> None:
        """Make what holds addresses of arrays, and is therefore neither copied nor pickled."""
        self._addresses = self._place.addresses(self._params)
        self._accumulator: Any = None
        self._renew_steppers()

    def _renew_steppers(self) -> None:
        self._steppers: dict[str, Any] = {}  # by backend
        # What makes whole steps in one call; None where that is to be found out or steps are more, False if
        # nothing does. It notices itself what users change in groups and arrays.
        self._advance: Any = None
        averages = [] if self.average is None else self.average.averages
        states: list[Any] = [a for group in self._states for own in group for a in own.values()]
        self._written: Any = self._place.overlap_finder(
            [*self._params, *states, *averages]
        )  # all memory that a step writes
        self._finder: Any = self._place.gradient_finder(self._params, self._written)

    # Methods that each optimizer overrides to describe itself.

    def _rule(self, group: Group) -> str:
        """The name of the rule that the group's options choose."""
        return self._rule_name

    @staticmethod
    def _check_together(group: Group) -> None:
        """Raise ValueError for options that make no sense together when an optimizer is made."""

    def _coefficients(self, group: Group, t: int, lr: float, scalars: Mapping[str, float]) -> Row:
        """The rule's coefficients at step t."""
        raise NotImplementedError

    def _initial(self, group: Group) -> dict[str, float]:
        """Return the first values of state arrays that do not begin at 0."""
        return {}

    def _layout(self, group: Group, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state arrays of a parameter of this shape."""
        return dict.fromkeys(RULES[self._rule(group)].states, shape)

    def _first_scalars(self, group: Group) -> dict[str, float]:
        """Scalars that advance with the steps, kept beside the state arrays.

        A rule that began later than with the first step has the number of that step as "begun" among them.
        """
        return {"step": 0}

    def _next_scalars(self, group: Group, scalars: dict[str, float]) -> dict[str, float]:
        return {**scalars, "step": scalars["step"] + 1}

    def named_parameters(self) -> dict[str, Array]:
        """Every parameter by the name that messages give it, e.g. ``params['w']``."""
        return dict(zip(self._names, self._params, strict=True))

    def structured(self, arrays: Sequence[Array]) -> Any:
        """One array per parameter, in the order of `named_parameters`, in the structure of ``params``."""
        return structure.structured(self._keys, self._grouped, arrays)

    def check_memory(self) -> None:
        """ValueError where a parameter has become read-only or has been resized."""
        self._place.check_memory(self._names, self._params, self._addresses)

    def follow(self, average: Any) -> None:
        """Let every step update a `WeightAverage` of the parameters: what ``EMA(optimizer)`` calls."""
        if self.average is not None:
            raise ValueError(f"{self!r} already carries an average, expected one at most")
        self.average = average
        self._renew_steppers()

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
        # Much of a step of a few thousand elements is this Python, so it is written for speed.
        flat = [grads] if self._lone else structure.in_order(self._keys, self._grouped, grads)
        advance = self._advance
        if advance and self.average is None and advance(flat, self.param_groups, self._scalars, self.epoch):
            if self._tensors:
                tensors.tell_autograd(self._tensors)
            return
        if self._is_ascended:
            raise RuntimeError("step inside ascended: take the gradient inside the block, step outside it")
        for i, group in enumerate(self.param_groups):
            if self._rule(group) != self._rules[i].name:
                stepping.change_rule(self, i)
        factor = 1.0
        is_plain = not (
            self._accumulate > 1
            or self._summed
            or self._max_grad_norm is not None
            or self._nonfinite != "ignore"
        )
        if not is_plain:
            flat, factor = stepping.prepare(self, flat)
            if not flat and self._params:
                return
        scalars: list[dict[str, float]] = []
        rows: list[Row] = []
        for group in self.param_groups:
            i = len(rows)
            new = self._next_scalars(group, self._scalars[i])
            rows.append(self._row(group, new, factor))
            scalars.append(new)
        average = self.average
        count = None if average is None else average.count
        self._apply(flat, rows)
        self._scalars = scalars
        if is_plain and self._advance is None:  # only now: it does not know how a rule's first step differs
            self._advance = stepping.advance_of(self)
        if average is not None and average.count == count:  # the kernels did not take it along
            average.update()
        if self._summed:
            self._sums, self._summed = [], 0
        if self._tensors:
            tensors.tell_autograd(self._tensors)

    @contextmanager
    def ascended(self, grads: Any, rho: float = 0.05, adaptive: bool = False) -> Iterator[None]:
        """Inside the ``with`` block the parameters stand at ``p + rho*g/norm(g)``, uphill of p.

        Take the gradient anew inside the block, and step with it outside: sharpness-aware minimisation
        (SAM, Foret et al. 2021), which looks for minima that are flat. `Trainer` does so by itself with
        ``sharpness_aware=rho``. What is written into the parameters inside the block is lost.

        Parameters
        ----------
        grads
            As `step` takes them. Where all are 0, nothing moves.
        rho : float > 0, default 0.05
            How far the parameters move, all as one vector.
        adaptive : bool, default False
            Move by ``rho*s*s*g/norm(s*g)`` with ``s = abs(p) + 0.01``, which does not depend on the scale of
            weights (ASAM, Kwon et al. 2021, whose rho is 0.5 to 2). On a GPU the processor computes it.

        Raises
        ------
        TypeError, ValueError
            A gradient that does not fit, as of `step`; a group has ``maximize=True``. Nothing is changed.

        Examples
        --------
        >>> with optimizer.ascended(gradient(p)):
        ...     g = gradient(p)
        >>> optimizer.step(g)
        """
        rho, adaptive = POSITIVE.number("rho", rho), check_flag("adaptive", adaptive)
        stepping.check_descends(self, "ascended")
        if self._is_ascended:
            raise RuntimeError("ascended inside ascended: the parameters already stand there")
        flat = self._checked([grads] if self._lone else structure.in_order(self._keys, self._grouped, grads))
        kept, advance = self._place.copies(self._params), self._advance
        self._is_ascended, self._advance = True, None  # which knows nothing of this
        try:
            self._place.ascent(self._params).move(flat, rho, adaptive)
            tensors.tell_autograd(self._tensors)
            yield
        finally:
            self._place.assign(self._params, kept)
            self._is_ascended, self._advance = False, advance
            tensors.tell_autograd(self._tensors)

    _row = stepping.row_of

    def _next_rows(self, scalars: list[dict[str, float]]) -> tuple[list[dict[str, float]], list[Row]]:
        """Return the scalars of the step after the one with these, and its coefficients for each group."""
        new = [
            self._next_scalars(group, last) for group, last in zip(self.param_groups, scalars, strict=True)
        ]
        rows = []
        for group, rule, own in zip(self.param_groups, self._rules, new, strict=True):
            stepping.check_rule(self, group, rule)
            rows.append(self._row(group, own, 1.0))
        return new, rows

    def _apply(self, flat: list[Any], rows: list[Row]) -> None:
        """Run the rules: one row of coefficients per step group."""
        stepper = self._stepper()
        limit = (self._max_grad_norm,) if self._place.clips else ()
        if self._is_packed:
            key = storage.hash_key(int(self._scalars[0]["step"]), self._seed)
            stepping.run(self, stepper, flat, rows, *limit, key, self._rounding == "stochastic")
        elif self.average is None or self._staged or not self._carries_average(stepper):
            stepping.run(self, stepper, flat, rows, *limit)
        else:
            weight = self.average.weight_in_step()
            stepping.run(self, stepper, flat, rows, weight)
            if weight:
                self.average.count += 1

    def _carries_average(self, stepper: Any) -> bool:
        """Whether steppers like this one take the average along in their pass over memory."""
        return self.average is not None and stepper.checks and self._kind == "Stepper"

    def _stepper(self) -> Any:
        """The stepper of the backend in force."""
        return self._steppers.get(self._place.backend().name) or stepping.new_stepper(self)

    def _stepper_of(self, backend: Any) -> Any:
        return getattr(backend, self._kind)(self._step_groups(), *self._place.queues)

    def _by_group(self) -> Iterator[tuple[Rule, Group, list[state.State]]]:
        """Yield the rule, the hyperparameters and the states of each group."""
        return zip(self._rules, self.param_groups, self._states, strict=True)

    def _step_groups(self) -> list[StepGroup]:
        return stepping.step_groups(self)

    def _checked(self, flat: list[Any]) -> list[Any]:
        """Return the gradients checked, in the form that steppers take."""
        self.check_memory()
        names = self._gradient_names()
        return list(self._place.check_gradients(names, flat, self._params, self._written))

    def _gradient_names(self) -> list[str]:
        return structure.gradient_names(self._names)

    # State.

    def _fresh_states(self, group: Group, more: Sequence[str] = ()) -> list[state.State]:
        """The states of each of a group's parameters before the first step, and those of ``more`` names."""
        return (state.allocate_packed if self._is_packed else state.allocate)(self, group, more)

    def state_dict(self) -> dict[str, Any]:
        """State and hyperparameters, in PyTorch's layout; arrays are copies.

        Returns
        -------
        dict
            ``"state"``: index of the parameter -> its step count and state arrays, and ``"begun"``, the
            step in which `SGD` began to keep a momentum, where that was not the first;
            ``"param_groups"``: hyperparameters, with the indices of the parameters and, if they were given
            in a mapping, their names (``"param_names"``, as PyTorch calls them); ``"epoch"``;
            ``"skipped"``; ``"rounding"`` and ``"seed"``; ``"accumulated"``: how many gradients
            ``accumulate`` has gathered, and their sums.
        """
        return state.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an optimizer of the same kind and shapes returned.

        Where both have names, groups are found by the names of their parameters, and parameters by theirs,
        in any order; else by their places. `load` does the same.

        Its hyperparameters come too, also those that need other states than this optimizer has so far.

        Raises
        ------
        TypeError, ValueError
            It does not fit: missing or unknown names, other shapes. Nothing is changed.
        """
        state.load_state_dict(self, state_dict)

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

        checkpoint.save_optimizer(self, check_path("path", path))

    def load(self, path: str | Path) -> None:
        """Take over what `save` of an optimizer of the same class and shapes wrote.

        A file with an average is for an optimizer that one of the same class follows; one without leaves
        the average, if there is one, as it is.

        Raises
        ------
        ValueError
            The file is damaged, or does not fit; the message names it. Nothing is changed.
        """
        from . import checkpoint

        checkpoint.load_optimizer(self, check_path("path", path))

    def __getstate__(self) -> dict[str, Any]:
        derived = {"_addresses", "_accumulator", "_steppers", "_advance", "_written", "_finder"}
        of_groups = {"_params", "_tensors"}
        own = {name: value for name, value in self.__dict__.items() if name not in derived | of_groups}
        own["param_groups"] = [stepping.checked_group(self, i) for i in range(len(self.param_groups))]
        return {**own, "_scalars": [dict(scalars) for scalars in self._scalars]}  # a copy counts for itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.setdefault("_place", HOST)  # version 0.1 had a queue instead, None for all it pickled
        self.__dict__.pop("_queue", None)
        groups: Any = self.param_groups
        self._params = [p for group in groups for p in group["params"]]
        self._tensors = [tensor for group in groups for tensor in group.tensors]
        self._derive()

    def __repr__(self) -> str:
        usual = {**SHARED, **type(self).defaults}
        shown = {k: v for k, v in self._defaults.items() if k == "lr" or v != usual[k]}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"
