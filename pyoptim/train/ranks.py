"""A training by several processes, MPI's ranks: what they tell each other, and how one that fails ends all.

Every rank holds the whole model and some of the examples. Methods of `Ranks` that are of all ranks are called
by all of them at the same point of the training, and wait for each other. With one process they send nothing.
"""

from __future__ import annotations

import sys
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .. import nn
from ..runtime.dtypes import Array
from ..runtime.numbers import shown
from .nccl import GpuExchange

if TYPE_CHECKING:
    from ..optim.optimizer import Optimizer
    from .preparing import Run
    from .resume import Epoch

_T = TypeVar("_T")
_NEEDED = ("Get_rank", "Get_size", "Allreduce", "allgather", "bcast", "isend", "irecv", "Abort")
_TAG = 7411  # of the messages that say that a rank has failed
_PATIENCE = 2.0  # seconds in which all ranks must have failed, where they all meet the same error
_PASSING_ON = 0.5  # seconds for mpiexec to pass on what a rank has printed: Abort discards the rest
_STREAMS = 0x9E3779B97F4A7C15  # times the rank is what is added to the seed of a random layer


class Exchange:
    """Replaces the gradients of a rank's part of a batch by those of the whole batch, by one message.

    It finds the gradients of the sum of the part's losses: those of their mean times its divisor (see
    `nn.Loss.divisor`). The sum over the ranks, divided by that of the divisors, is the gradient of the mean
    loss of the batch, however unequal the parts are. Loss and divisor are the last two elements of the
    message. All ranks receive the same bits, NaN too, so they all do the same.
    """

    def __init__(self, comm: Any, gradients: Array) -> None:
        self._gradients, self._sum_up = gradients, comm.Allreduce
        self._own, self._all = (np.empty(gradients.size + 2, gradients.dtype) for _ in range(2))

    def __call__(self, loss: float, divisor: float) -> float:
        """Return the mean loss of the batch, from that of the part; an empty part has the divisor 0."""
        own, result = self._own, self._all
        own[:-2] = self._gradients
        own[-2:] = loss * divisor if divisor else 0, divisor
        self._sum_up(own, result)
        total = result[-1] or result.dtype.type(1)  # 0 if no example has any weight
        np.divide(result[:-2], total, out=self._gradients)
        return float(result[-2]) / float(total)


class Ranks:
    """The processes that train one model together.

    Parameters
    ----------
    comm : communicator of mpi4py, or None
        None is this process alone.
    """

    together = True  # whether they take each step together
    _on_gpus: GpuExchange | None = None  # kept, since GPUs take long to connect

    def __init__(self, comm: Any) -> None:
        if comm is not None and not all(hasattr(comm, name) for name in _NEEDED):
            raise TypeError(
                f"comm is {shown(comm)}, expected a communicator of mpi4py, such as MPI.COMM_WORLD"
            )
        self._comm = comm
        self.rank = 0 if comm is None else int(comm.Get_rank())
        self.size = 1 if comm is None else int(comm.Get_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0

    @property
    def shares_batches(self) -> bool:
        """Whether each batch is shared out among several ranks, of which some may have no examples."""
        return self.size > 1 and self.together

    def pace(self) -> int:
        """Return how many steps may be taken until `after` is to be called."""
        return 1 << 30

    def after(self, steps: int) -> None:
        """Do what is to be done after so many more steps."""

    def exchange(self, gradients: Any) -> Exchange | GpuExchange | None:
        """Return what makes these gradients those of all ranks, or None for one process."""
        if self.size == 1:
            return None
        if isinstance(gradients, np.ndarray):
            return Exchange(self._comm, gradients)
        if self._on_gpus is None or self._on_gpus.gradients is not gradients:
            self._on_gpus = GpuExchange(self._comm, gradients)
        return self._on_gpus

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all ranks, in their order."""
        return [value] if self.size == 1 else self._comm.allgather(value)

    def share(self, value: _T) -> _T:
        """Return the first rank's value."""
        return value if self.size == 1 else self._comm.bcast(value, root=0)

    def sums(self, *values: float) -> list[Any]:
        """Return the sum of each value over the ranks, in their order: the same bits on all."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def any(self, value: bool) -> bool:
        """Whether it is True on any rank."""
        return any(self.gather(value))

    def joined(self, array: Array | None) -> Array | None:
        """Return the arrays of all ranks as one; those that have None have nothing to add."""
        arrays = [array for array in self.gather(array) if array is not None]
        return np.concatenate(arrays) if len(arrays) > 1 else next(iter(arrays), None)

    def count_of(self, count: int) -> int:
        """Return how many of so many examples are this rank's."""
        begin, end = share_of(count, self.rank, self.size)
        return int(end - begin)

    def ends(
        self, count: int, total: int, whole_batch: int, drop_last: bool, shard: bool
    ) -> tuple[Array, Array]:
        """Return how many examples of all ranks each step of an epoch ends with, and how many of this rank's.

        Parameters
        ----------
        count : int
            The examples that this rank gives: all (``shard``), and of each batch an equal part is its own; or
            some of its own, of which each batch gets the same share, be they few or none.
        """
        of_all = np.arange(whole_batch, total + 1, whole_batch)
        if total % whole_batch and not drop_last:
            of_all = np.append(of_all, total)
        if not shard:
            # A fraction of an example is rounded up on some ranks and down on others, so that batches have
            # the right size where ranks have equally many, and nearly so else.
            return of_all, (count * of_all * self.size + self.rank * total) // (total * self.size)
        begins, ends = share_of(np.diff(of_all, prepend=0), self.rank, self.size)
        return of_all, np.cumsum(ends - begins)

    def order(self, rng: np.random.Generator, count: int, run: Run) -> Any:
        """Draw the order in which this rank goes through its examples in an epoch; None: as they come."""
        options, drawn = run.options, count if run.drawn is None else run.drawn
        if not options.shard:
            if options.shuffle:
                rng = np.random.default_rng([int(rng.integers(2**63)), self.rank])
            return run.source.draw(rng, options.shuffle, run.examples)
        order = rng.permutation(count)[:drawn] if options.shuffle else np.arange(drawn)
        full = drawn - drawn % run.whole_batch
        begin, end = share_of(run.whole_batch, self.rank, self.size)
        first, last = share_of(drawn - full, self.rank, self.size)
        batches = order[:full].reshape(-1, run.whole_batch)[:, begin:end]
        return np.concatenate((batches.ravel(), order[full + first : full + last]))

    def check_equal(self, named: Mapping[str, Any]) -> None:
        """Raise ValueError on all ranks if a value is not the same everywhere."""
        of_all = self.gather(dict(named))
        for name in named:
            values = [own[name] for own in of_all]
            if any(value != values[0] for value in values):
                raise ValueError(f"{name} differs between ranks, expected the same on all: {values}")

    def begin_alike(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        """Give all ranks the first one's parameters, buffers and states of the optimizer.

        Raises
        ------
        ValueError
            The models or the optimizers of two ranks are not of the same kind.
        """
        if self.size == 1:
            return
        average = optimizer.average
        self.check_equal({
            "the model": [(name, v.shape, str(v.dtype)) for name, v in model.state_dict().items()],
            "the optimizer": (type(optimizer).__name__, None if average is None else type(average).__name__),
            "a hyperparameter": [
                {name: v for name, v in group.items() if isinstance(v, bool | int | float | str)}
                for group in optimizer.param_groups
            ],
            "how the optimizer steps": (optimizer.max_grad_norm, optimizer.nonfinite, optimizer.accumulate),
        })  # fmt: skip
        saved = optimizer.state_dict()
        own = {name: value for name, value in saved.items() if name != "param_groups"}
        values, own = self.share((model.state_dict(), own))
        if not self.is_first:
            model.load_state_dict(values)
            optimizer.load_state_dict({**saved, **own})
        if average is not None:
            followed = self.share(average.state_dict())
            if not self.is_first:
                average.load_state_dict(followed)

    def check_same_bits(self, model: nn.Sequential) -> None:
        """Raise RuntimeError on all ranks if their parameters have come apart."""
        if self.size == 1:
            return
        flat: Any = np.ascontiguousarray(model.flat_parameters)
        sums = self.gather(zlib.crc32(flat))
        apart = [rank for rank, own in enumerate(sums) if own != sums[0]]
        if apart:
            raise RuntimeError(
                f"the parameters of ranks {apart} are no longer those of rank 0: a callback, a learning rate "
                "or another function of yours has done something else on them"
            )

    def end_epoch(self, model: nn.Sequential, epoch: Epoch) -> None:
        """Make the sums of an epoch, and running statistics, those of all ranks."""
        if self.size > 1:
            self.merge_buffers(model, epoch.counted)
            sums = self.sums(epoch.loss, epoch.divisor, epoch.correct, epoch.counted)
            epoch.loss, epoch.divisor, epoch.correct, epoch.counted = sums

    def centred(self, model: nn.Sequential) -> AbstractContextManager[None]:
        """Give the model what ranks that are apart have in common, for the time of a ``with`` block."""
        return nullcontext()

    def finish(self, model: nn.Sequential) -> None:
        """Give the model the parameters that are the result of the training by all ranks."""

    def end_alike(self, model: nn.Sequential) -> None:
        """Give all ranks the first one's model after the callbacks, if these may have made it another."""

    def merge_buffers(self, model: nn.Sequential, examples: int) -> None:
        """Give all ranks the mean of running statistics, weighted by the examples, and the highest counts."""
        own = {name: b for name, b in model._named("buffers").items() if not name.endswith("seed")}
        of_all = self.gather((examples, {name: np.array(buffer) for name, buffer in own.items()}))
        total = sum(weight for weight, _ in of_all)
        for name, buffer in own.items():
            if buffer.dtype.kind != "f":
                buffer[...] = max(int(given[name]) for _, given in of_all)
            elif total:
                parts = (given[name] * np.float64(weight / total) for weight, given in of_all if weight)
                buffer[...] = sum(parts)

    @contextmanager
    def own_noise(self, model: nn.Sequential) -> Iterator[None]:
        """Let layers that are random draw other numbers on each rank inside the ``with`` block."""
        named = model._named("buffers") if self.rank else {}
        seeds = [buffer for name, buffer in named.items() if name.rpartition(".")[2] == "seed"]
        common = [int(seed) for seed in seeds]
        for seed, value in zip(seeds, common, strict=True):
            seed[...] = (value + self.rank * _STREAMS) % 2**63
        try:
            yield
        finally:
            for seed, value in zip(seeds, common, strict=True):
                seed[...] = value

    @contextmanager
    def common_statistics(self, model: nn.Sequential) -> Iterator[None]:
        """Let `BatchNorm` take statistics of the examples of all ranks inside the ``with`` block."""
        norms = [layer for layer in model.leaves().values() if isinstance(layer, nn.BatchNorm)]
        for layer in norms:
            layer._sum_up = self._sum_up
        try:
            yield
        finally:
            for layer in norms:
                layer._sum_up = None

    def _sum_up(self, own: Array) -> Array:
        result = np.empty_like(own)
        self._comm.Allreduce(own, result)
        return result

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Let an exception that not all ranks meet end all of them, after it was printed.

        The others would wait for this rank for ever. Where all fail, each raises its own.
        """
        try:
            yield
        except BaseException:
            if self.size > 1 and not self._all_fail():
                told = f"pyoptim: rank {self.rank} of {self.size} failed, which ends all of them"
                print(f"{told}\n{traceback.format_exc()}", end="", file=sys.stderr, flush=True)
                time.sleep(_PASSING_ON)
                self._comm.Abort(1)
            raise

    def _all_fail(self) -> bool:
        """Tell the other ranks that this one has failed; return whether each of them says so too, soon."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        waiting = [self._comm.irecv(source=rank, tag=_TAG) for rank in others]
        waiting += [self._comm.isend(None, dest=rank, tag=_TAG) for rank in others]
        deadline = time.monotonic() + _PATIENCE
        while waiting and time.monotonic() < deadline:
            waiting = [request for request in waiting if not request.test()[0]]
            time.sleep(1e-3)
        return not waiting


def share_of(count: Any, rank: int, size: int) -> tuple[Any, Any]:
    """Return which of so many examples are a rank's, [begin, end): as many as others have, or one more."""
    return count * rank // size, count * (rank + 1) // size


ALONE = Ranks(None)
