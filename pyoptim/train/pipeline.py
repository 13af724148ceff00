"""A model whose layers are shared out among processes, with several parts of a mini-batch on their way."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .. import nn
from ..arrays.memory import aligned_zeros, empty_like
from ..backends.places import count_right
from ..nn import checkpoint
from ..nn.layers import Layer, backward, check_layers
from ..nn.sequential import float_dtype
from ..optim.optimizer import Optimizer
from ..runtime.dtypes import Array
from ..runtime.files import in_order
from ..runtime.numbers import check_count, check_flag, check_path, check_seed, is_count, shown
from . import curves, evaluation
from .data import Data, checked, reached
from .engine import gradients_of
from .history import History
from .progress import Progress, check_verbose
from .ranks import Ranks, share_of
from .resume import Epoch


class Pipeline:
    """A model of which each process has some of the layers (GPipe, Huang et al. 2019): for large models.

    All processes make the same pipeline, and call its methods at the same time with the same arguments. Each
    has the parameters, gradients and states of the optimizer of its own layers alone, its stage. A mini-batch
    is cut into micro-batches, which go forward through the stages one after the other, so that all stages
    work at once; then their gradients go back in the opposite order, each stage sums up its own, and takes
    its step. The result is that of one process up to the order of sums, but for layers that look at the batch
    as a whole, or are random: `BatchNorm` takes the statistics of each micro-batch, as GPipe's does, and
    `Dropout` and noise draw for each.

    Of S stages and M micro-batches, stages that take equally long work M / (M + S - 1) of the time. A stage
    keeps what its layers computed of all micro-batches of a mini-batch until their gradients have come.

    Parameters
    ----------
    layers : sequence of Layer
        Those of the whole model. A process only makes the arrays of its own; before the first step it draws
        the numbers of those before, a layer at a time, so that parameters begin as in
        ``Sequential(*layers, seed=seed)``.
    loss : nn.Loss
    optimizer : callable
        Makes the optimizer of a stage of the mapping of its parameters, such as ``Adam`` or ``lambda p:
        SGD(p, lr=0.1)``. A stage without parameters has none.
    comm : communicator of mpi4py or None
        Of the processes, such as `world` returns.
    stages : sequence of int, optional
        How many of the layers each process has, in their order, at least one. By default they are shared out
        so that the largest stage has as few parameters as possible. A `Residual` is one layer.
    micro_batches : int, default 4
        Into how many parts a mini-batch is cut; a smaller one into as many as it has examples.
    seed : int, optional
        Of the parameters, and of the order in which examples are visited.
    dtype : float32 or float64, default float32

    Attributes
    ----------
    model : Sequential
        The layers of this process's stage.
    optimizer : Optimizer or None
        Of this stage.
    stages : tuple of int
        How many layers each process has.

    Raises
    ------
    TypeError, ValueError
        Processes give different layers, losses or options; there are fewer layers than processes; a layer
        holds others in another way than a `Residual`; or the optimizer clips gradients by their norm, of
        which a stage only knows its part, or updates something else than what the stage trains.

    Notes
    -----
    There are no callbacks, checkpoints or penalties, no model on a GPU, and no engine: steps are those of the
    generic loop of `Trainer`. Call `fit` for a few epochs at a time, and `save` in between. A process that
    fails prints its error, and ends all.

    Examples
    --------
    >>> layers = [nn.Dense(784, 4096), nn.ReLU(), nn.Dense(4096, 4096), nn.ReLU(), nn.Dense(4096, 10)]
    >>> pipeline = distributed.Pipeline(layers, nn.CrossEntropy(), Adam, distributed.world(), micro_batches=8)
    >>> history = pipeline.fit(x, y, epochs=5, batch_size=256)
    >>> pipeline.save("model.safetensors")
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        loss: nn.Loss,
        optimizer: Callable[[Mapping[str, Array]], Optimizer],
        comm: Any,
        *,
        stages: Sequence[int] | None = None,
        micro_batches: int = 4,
        seed: int | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._ranks, self._comm = Ranks(comm), comm
        if not isinstance(layers, list | tuple):
            raise TypeError(f"layers is {shown(layers)}, expected a sequence of layers")
        if not isinstance(loss, nn.Loss):
            raise TypeError(f"loss is a {type(loss).__name__}, expected a Loss, e.g. CrossEntropy()")
        check_layers("layers", layers)
        for i, layer in enumerate(layers):
            if tuple(map(tuple, layer.chains)) not in ((), (tuple(layer.block),)):
                raise ValueError(f"layers[{i}] is a {type(layer).__name__}, which no stage can hold")
        makes_others = isinstance(optimizer, type) and not issubclass(optimizer, Optimizer)
        if makes_others or not callable(optimizer):
            raise TypeError(
                f"optimizer is {shown(optimizer)}, expected a function of parameters, such as Adam"
            )
        self.loss, self.micro_batches = loss, check_count("micro_batches", micro_batches)
        check_seed("seed", seed)
        self._dtype = float_dtype(dtype)
        with self._ranks.guarded():
            self.stages = _stages(layers, stages, self._ranks.size)
            self._ranks.check_equal({
                "layers": repr(layers), "loss": repr(loss), "stages": self.stages,
                "micro_batches": self.micro_batches, "seed": repr(seed), "dtype": str(self._dtype),
            })  # fmt: skip
            seed = self._ranks.share(int(np.random.default_rng().integers(2**63)) if seed is None else seed)
            self._rng = check_seed("seed", seed)
            self._make(layers, optimizer, seed)

    def _make(self, layers: Sequence[Layer], optimizer: Callable[..., Optimizer], seed: Any) -> None:
        """Make this rank's stage."""
        dtype = self._dtype
        end = sum(self.stages[: self._ranks.rank + 1])
        self._first = end - self.stages[self._ranks.rank]
        rng: Any = check_seed("seed", seed)
        for layer in layers[: self._first]:
            nn.Sequential(copy.deepcopy(layer), seed=rng, dtype=dtype)  # draws its numbers
        self.model = nn.Sequential(*layers[self._first : end], seed=rng, dtype=dtype)
        self._whole = _Whole(layers, dtype)
        self._summed = aligned_zeros(self.model.flat_gradients.size, dtype)  # over micro-batches
        parameters = self.model.parameters()
        self.optimizer = optimizer(parameters) if parameters else None
        if self.optimizer is None:
            return
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer made {shown(self.optimizer)}, expected an Optimizer")
        if self.optimizer.max_grad_norm is not None:
            raise ValueError(
                f"optimizer has max_grad_norm={self.optimizer.max_grad_norm}, expected None: a stage only "
                "knows its part of the norm"
            )
        self._gradients = self.optimizer.structured(gradients_of(self.model, self.optimizer))

    @property
    def _is_last(self) -> bool:
        return self._ranks.rank == self._ranks.size - 1

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        epochs: int = 1,
        batch_size: int | None = 32,
        validation_data: Any = None,
        sample_weight: Any = None,
        shuffle: bool = True,
        drop_last: bool = False,
        verbose: bool | int = True,
    ) -> History:
        """Train; all processes give the same data, and return the same measurements.

        Parameters
        ----------
        x, y, sample_weight : array (examples, ...)
            In memory, as `Trainer.fit` takes them.
        epochs, batch_size, shuffle, drop_last, verbose
            As `Trainer.fit`; the first process shows the progress.
        validation_data : (x, y), optional
            Evaluated after each epoch.

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            As `Trainer.fit`; processes give different options; or a micro-batch is too small for `BatchNorm`.
            Gradients are not finite, where the optimizer is to raise then: no stage has taken that step.
        """
        with self._ranks.guarded():
            data = checked(self._whole, self.loss, x, y, sample_weight)
            epochs, count = check_count("epochs", epochs), len(data.x)
            size = min(check_count("batch_size", count if batch_size is None else batch_size), count)
            shuffle, drop_last = check_flag("shuffle", shuffle), check_flag("drop_last", drop_last)
            held_back = None if validation_data is None else self._validation(validation_data)
            self._ranks.check_equal({
                "epochs": epochs, "batch_size": size, "shuffle": shuffle, "drop_last": drop_last,
                "how many examples x has": count, "whether there are validation data": held_back is not None,
                "whether there are weights": data.weight is not None,
            })  # fmt: skip
            self._nonfinite = self._policy()
            used = count - count % size if drop_last else count
            self._check_statistics(data.x.shape[1:], {size, used % size} - {0})
            verbose = check_verbose(verbose) if self._ranks.is_first else 0
            history = History()
            how = f"{self._ranks.size} stages, batches of {size:,} in {min(self.micro_batches, size)} parts"
            history.about = curves.describe(self._whole, how)
            history.reason = "layers are shared out among processes"
            self._run(data, held_back, (epochs, size, used, shuffle), verbose, history)
        return history

    def _run(
        self,
        data: Data,
        held_back: Data | None,
        how: tuple[int, int, int, bool],
        verbose: int,
        history: History,
    ) -> None:
        epochs, size, used, shuffle = how
        ways = [[_twin(layer) for layer in self.model.layers] for _ in range(min(self.micro_batches, size))]
        progress = Progress(verbose, "epoch", epochs, "examples", used)
        try:
            for index in range(epochs):
                self.model.train()
                started, sums = time.perf_counter(), Epoch(index, {})
                order = self._rng.permutation(len(data.x)) if shuffle else np.arange(len(data.x))
                for batch in data.batches(size, self._dtype, order[:used]):
                    self._step(batch, ways, sums)
                    progress.advance(len(batch.x))
                measured = self._of_last(sums).measured(self.loss.classification)
                measured["seconds"] = self._ranks.share(time.perf_counter() - started)
                if held_back is not None:
                    measured |= {f"val_{name}": v for name, v in self._evaluated(held_back).items()}
                for name, value in measured.items():
                    history.setdefault(name, []).append(value)
                if self.optimizer is not None:
                    self.optimizer.epoch += 1
                progress.end(index + 1, measured)
        finally:
            self.model.eval()
            progress.close()

    def _step(self, batch: Data, ways: Sequence[Sequence[Layer]], sums: Epoch) -> None:
        """Take one step; the last stage adds what it measured to ``sums``."""
        parts = min(len(ways), len(batch.x))
        micro = [batch.part(*share_of(len(batch.x), m, parts)) for m in range(parts)]
        before = {} if self._nonfinite == "ignore" else self.model._copied_buffers()
        outputs, sent = [], []
        for part, layers in zip(micro, ways, strict=False):
            y = self._input(part.x)
            for layer in layers:
                y = layer.forward(y, True)
            outputs.append(np.ascontiguousarray(y))
            sent.append(self._send(outputs[-1], 1))
        divisors = [
            float(self.loss.divisor(o, p.y)) for o, p in zip(outputs, micro, strict=True) if self._is_last
        ]
        value, total = 0.0, sum(divisors) or 1.0
        self._summed[...] = 0
        for m in reversed(range(parts)):
            dy = empty_like(outputs[m])
            if self._is_last:
                value += self.loss.evaluate(outputs[m], micro[m].y, dy, micro[m].weight) * divisors[m]
                dy *= dy.dtype.type(divisors[m] / total)
            else:
                self._comm.Recv(dy, source=self._ranks.rank + 1)
            dx = backward(ways[m], dy, not self._ranks.is_first)
            self._summed += self.model.flat_gradients
            sent.append(None if self._ranks.is_first else self._send(np.ascontiguousarray(dx), -1))
        self.model.flat_gradients[...] = self._summed
        for request in sent:
            if request is not None:
                request.Wait()
        taken = False
        try:
            taken = self._update()
        finally:
            if not taken:
                self.model._restore_buffers(before)
        if taken and self._is_last:
            sums.loss, sums.divisor = sums.loss + value, sums.divisor + sum(divisors)
            sums.counted += len(batch.x)
            if self.loss.classification:
                sums.correct += sum(count_right(o, p.y) for o, p in zip(outputs, micro, strict=True))

    def _update(self) -> bool:
        """Step by the gradients, unless those of any stage are to be finite and are not; return whether."""
        taken, own = True, self.model.flat_gradients
        if self._nonfinite != "ignore":
            finite = self._ranks.gather(all(np.isfinite(g).all() for g in self.model.gradients().values()))
            taken = all(finite)
            if not taken and self._nonfinite == "raise":
                wrong = finite.index(False)
                raise ValueError(f"gradients of stage {wrong} hold NaN or infinity, expected finite values")
            if not taken:
                own[...] = np.nan  # so that the optimizers of all stages leave this step out
        if self.optimizer is not None:
            self.optimizer.step(self._gradients)
        return taken

    def _input(self, x: Array) -> Array:
        """Return what comes into this stage for a micro-batch; the first one takes the examples."""
        if self._ranks.is_first:
            return x
        shape = self._whole.shape_at(self._first, x.shape[1:])
        received = np.empty((len(x), *shape), self._dtype)
        self._comm.Recv(received, source=self._ranks.rank - 1)
        return received

    def _send(self, array: Array, direction: int) -> Any:
        """Begin to send to the next stage, or back to the one before; the last one sends nothing on."""
        if direction > 0 and self._is_last:
            return None
        return self._comm.Isend(array, dest=self._ranks.rank + direction)

    def _of_last(self, value: Any) -> Any:
        """Return the last stage's value."""
        return value if self._ranks.size == 1 else self._comm.bcast(value, root=self._ranks.size - 1)

    def _policy(self) -> str:
        """Return what the stages' optimizers do with gradients that are not finite."""
        given = self._ranks.gather(None if self.optimizer is None else self.optimizer.nonfinite)
        policies = {policy for policy in given if policy is not None}
        if len(policies) > 1:
            raise ValueError(f"nonfinite differs between stages, expected the same in all: {given}")
        return next(iter(policies), "ignore")

    def _check_statistics(self, shape: tuple[int, ...], sizes: set[int]) -> None:
        """Raise ValueError on all ranks if a micro-batch is too small for a layer of any stage."""
        smallest = min(size // min(size, self.micro_batches) for size in sizes)
        wrong = []
        for layer, inner in reached(self.model.layers, self._whole.shape_at(self._first, shape)):
            if layer.takes_statistics(True) and smallest * math.prod(inner[1:]) < 2:
                wrong.append(repr(layer))
        wrong = [name for own in self._ranks.gather(wrong) for name in own]
        if wrong:
            raise ValueError(
                f"micro_batches is {self.micro_batches}, which makes parts of {smallest} example, which "
                f"{wrong[0]} cannot take statistics of: expected fewer, another batch_size, or drop_last=True"
            )

    def _validation(self, given: Any) -> Data:
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise TypeError(f"validation_data is {shown(given)}, expected (x, y)")
        x, y = given
        return checked(self._whole, self.loss, x, y, names=("validation_data[0]", "validation_data[1]"))

    def evaluate(self, x: Any, y: Any, sample_weight: Any = None) -> dict[str, float]:
        """The loss and, for classification, the accuracy, in evaluation mode; all processes return them.

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        with self._ranks.guarded():
            return self._evaluated(checked(self._whole, self.loss, x, y, sample_weight))

    def _evaluated(self, data: Data) -> dict[str, float]:
        sums = Epoch(0, {})
        for batch, output in self._outputs(data):
            if self._is_last:
                divisor = float(self.loss.divisor(output, batch.y))
                sums.loss += self.loss.evaluate(output, batch.y, None, batch.weight) * divisor
                sums.divisor, sums.counted = sums.divisor + divisor, sums.counted + len(output)
                sums.correct += count_right(output, batch.y) if self.loss.classification else 0
        return self._of_last(sums).measured(self.loss.classification)  # type: ignore[no-any-return]

    def predict(self, x: Any) -> Array:
        """The model's outputs, in evaluation mode; all processes return them.

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        with self._ranks.guarded():
            x = self._whole.check_input("x", x, keep_bytes=True)
            outputs = [output for _, output in self._outputs(Data(x, np.arange(len(x))))]
            empty = np.empty((0, *self._whole.output_shape(x.shape[1:])), self._dtype)
            joined: Array = self._of_last(np.concatenate([empty, *outputs]) if self._is_last else None)
            return joined

    def _outputs(self, data: Data) -> Iterator[tuple[Data, Array]]:
        """Yield what comes out of this stage for each of the batches that are on their way."""
        sent = []
        for batch in data.batches(evaluation.batch_size(self._whole, data.x), self._dtype):
            y = self._input(batch.x)
            for layer in self.model.layers:
                y = layer.forward(y, False)
            y = np.ascontiguousarray(y)
            sent.append(self._send(y, 1))
            yield batch, y
        for request in sent:
            if request is not None:
                request.Wait()

    def save(self, path: str | Path) -> None:
        """Write the whole model to one file, the one of `Sequential.save`, which `Sequential.load` reads.

        The first process writes it. The others send it their arrays, one after the other, and twice: the
        first time for the checksum. So no process holds the whole model.

        Raises
        ------
        ValueError, OSError
            As `Sequential.save`.
        """
        with self._ranks.guarded():
            path, own = check_path("path", path), self._named(self.model.state_dict())
            mine = {name: (array.dtype, array.shape) for name, array in own.items()}
            of_all = self._ranks.gather(mine)
            owners = {name: rank for rank, names in enumerate(of_all) for name in names}
            forms = in_order({name: form for names in of_all for name, form in names.items()})
            passes = [self._each(own, forms, owners) for _ in range(2)]
            left = iter(passes)

            def write() -> None:
                checkpoint.write_one_by_one(path, self._whole.layers, self._dtype, forms, lambda: next(left))

            self._as_first(write, lambda: [None for each in passes for _ in each])

    def _each(
        self, own: Mapping[str, Array], forms: Mapping[str, Any], owners: Mapping[str, int]
    ) -> Iterator[Array]:
        """Yield all arrays to the first rank, which the others send it."""
        for name, (dtype, shape) in forms.items():
            array = own.get(name)
            if self._ranks.is_first and array is None:
                array = np.empty(shape, dtype)
                self._comm.Recv(array, source=owners[name])
            elif not self._ranks.is_first and array is not None:
                self._comm.Send(array, dest=0)
            yield np.empty(0) if array is None else array

    def load(self, path: str | Path) -> None:
        """Take over the parameters and buffers of a file of the same layers, which `save` wrote.

        Or `Sequential.save`. The first process reads it, and sends each of the others its arrays one by one.

        Raises
        ------
        ValueError, OSError
            The file cannot be read, is damaged, or is of other layers. Nothing is changed.
        """
        with self._ranks.guarded(), ExitStack() as stack:
            path, found = check_path("path", path), []

            def read() -> None:
                found.append(stack.enter_context(checkpoint.opened(path, self._whole.layers, self._dtype)))

            self._as_first(read)
            state = self.model.state_dict()
            own = self._named(state)
            for rank, names in enumerate(self._ranks.gather(list(own))):
                for name in names if rank == self._ranks.rank or self._ranks.is_first else ():
                    if rank and self._ranks.is_first:
                        self._comm.Send(np.ascontiguousarray(found[0](name)), dest=rank)
                    elif rank:
                        self._comm.Recv(own[name], source=0)
                    else:
                        own[name][...] = found[0](name)
            self.model.load_state_dict(state)

    def _as_first(self, action: Callable[[], None], others: Callable[[], Any] = lambda: None) -> None:
        """Let the first rank do something, and the others their part; where it raises an error, all raise it.

        After an error the first rank does the others' part too, which is to take what they send.
        """
        error: Exception | None = None
        try:
            if self._ranks.is_first:
                action()
        except (ValueError, OSError) as problem:
            error = problem
        others()
        error = self._ranks.share(error)
        if error is not None:
            raise error

    def _named(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return arrays of the stage by their names in the whole model."""
        split = ((name.split(".", 1), array) for name, array in arrays.items())
        return {f"{self._first + int(index)}.{rest}": array for (index, rest), array in split}

    def __repr__(self) -> str:
        return f"Pipeline({self._whole!r}, stages={self.stages})"


class _Whole(nn.Sequential):
    """The shapes and checks of the whole model, of which no arrays are made."""

    def __init__(self, layers: Sequence[Layer], dtype: np.dtype[Any]) -> None:
        self.layers, self.dtype = tuple(layers), dtype
        for layer in layers:
            layer.owned = True

    def shape_at(self, index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in which an example of this shape comes to a layer."""
        for layer in self.layers[:index]:
            shape = layer.output_shape(shape)
        return shape


def _twin(layer: Layer) -> Layer:
    """Return a layer of the same arrays that keeps what it needs for its backward pass by itself."""
    twin = copy.copy(layer)
    if layer.block:
        twin.block = tuple(map(_twin, layer.block))
    return twin


def _stages(layers: Sequence[Layer], given: Any, count: int) -> tuple[int, ...]:
    """Return how many layers each of so many stages has; ValueError if that cannot be."""
    if len(layers) < count:
        raise ValueError(
            f"there are {len(layers)} layers for {count} processes, expected one for each at least"
        )
    if given is None:
        return _balanced([layer.parameter_count() for layer in layers], count)
    wrong = not isinstance(given, list | tuple) or not all(is_count(n) and n for n in given)
    if wrong or len(given) != count or sum(given) != len(layers):
        raise ValueError(
            f"stages is {shown(given)}, expected {count} numbers of layers, of {len(layers)} together"
        )
    return tuple(map(int, given))


def _balanced(sizes: Sequence[int], stages: int) -> tuple[int, ...]:
    """Return how many of the layers each stage has, so that the largest stage is as small as possible."""
    begins = [0, *accumulate(sizes)]
    # For the first i layers: the size of the largest of so many stages, and how many layers these have.
    best: list[tuple[float, tuple[int, ...]]] = [(begin, (i,)) for i, begin in enumerate(begins)]
    for _ in range(1, stages):
        best = [
            min(
                ((max(best[j][0], begins[i] - begins[j]), (*best[j][1], i - j)) for j in range(1, i)),
                default=(math.inf, ()),
            )
            for i in range(len(begins))
        ]
    return best[-1][1]
