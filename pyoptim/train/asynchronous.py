"""Trainings by processes of which none waits for another: elastic averaging, and a parameter server.

Each rank takes steps of its own, and now and then exchanges with the centre variable: a vector of parameters
in the first rank's memory, which all ranks read and add to by one-sided messages of MPI.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import nn
from ..runtime.dtypes import Array
from ..runtime.extras import needed
from ..runtime.numbers import FRACTION, check_count
from .ranks import Ranks, share_of

if TYPE_CHECKING:
    from ..optim.optimizer import Optimizer
    from .preparing import Run
    from .resume import Epoch

_ADDED, _STOPPED = 0, 8  # places of two counters in the window, in bytes
_BEGIN = 64  # of the parameters


class Centre:
    """The vector in the first rank's memory, and two counters beside it. All ranks make it, and free it.

    One lock, which all ranks share, is held from the begin to the end, and sums are atomic by element: so no
    addition is lost. A lock for each access would wait until the first rank calls MPI, which is in its
    training.
    """

    def __init__(self, comm: Any, values: Array) -> None:
        self._mpi = needed("mpi4py.MPI", "a training by several processes needs mpi4py", "pyoptim[mpi]")
        self._comm = comm
        size = _BEGIN + values.nbytes if comm.Get_rank() == 0 else 0
        self._window = self._mpi.Win.Allocate(size, 1, comm=comm)
        if size:
            memory = np.frombuffer(self._window.tomemory(), np.uint8)
            memory[:_BEGIN] = 0
            memory[_BEGIN:] = values.view(np.uint8)
        self._window.Lock_all()
        self._window.Sync()
        comm.Barrier()
        self._read = np.empty_like(values)
        self._count = np.zeros(2, np.int64)

    def read(self) -> Array:
        """Return the vector as it is now, in memory that the next call overwrites."""
        window, place = self._window, [_BEGIN, self._read.size, self._type]
        window.Get_accumulate([self._read, self._type], [self._read, self._type], 0, place, self._mpi.NO_OP)
        window.Flush(0)
        return self._read

    def add(self, change: Array) -> int:
        """Add to the vector; return how often that was done before, by all ranks."""
        place = [_BEGIN, change.size, self._type]
        self._window.Accumulate([change, self._type], 0, place, self._mpi.SUM)
        self._window.Flush(0)
        return self._counted(_ADDED, 1)

    @property
    def added(self) -> int:
        """How often the ranks have added to the vector."""
        return self._counted(_ADDED, 0)

    def stop(self, wanted: bool) -> bool:
        """Return whether any rank has asked for the end of the training, this one perhaps now."""
        return self._counted(_STOPPED, int(wanted)) > 0 or wanted

    def _counted(self, place: int, more: int) -> int:
        self._count[0] = more
        window, (given, found) = self._window, (self._count[:1], self._count[1:])
        window.Fetch_and_op(given, found, 0, place, self._mpi.SUM)
        window.Flush(0)
        return int(found[0])

    @property
    def _type(self) -> Any:
        return self._mpi.FLOAT if self._read.dtype == np.float32 else self._mpi.DOUBLE

    def wait_for_all(self) -> None:
        """Wait until all ranks have come here, and leave the processor to those that have not."""
        waiting = self._comm.Ibarrier()
        while not waiting.Test():
            time.sleep(1e-3)

    def free(self) -> None:
        self._window.Unlock_all()
        self._window.Free()


class Asynchronous:
    """What elastic averaging and the parameter server have in common.

    Attributes
    ----------
    staleness : Counter
        How often others had added to the centre variable, since this rank had read it last, when this rank
        added to it -> at how many times in the last training.
    """

    _parameters: Array  # of this rank, while it trains
    _centre: Centre
    _steps = 0  # since the training began

    def __init__(self, comm: Any) -> None:
        Ranks(comm)  # checks it
        self._comm = comm
        self.staleness: Counter[int] = Counter()

    def _begin(self, parameters: Array, centre: Centre) -> None:
        """Begin a training, with parameters that are those of the centre."""
        self._parameters, self._centre = parameters, centre
        self._steps, self._seen, self.staleness = 0, 0, Counter()

    def _left(self) -> int:
        """Return how many steps may be taken until `_after` is to be called."""
        raise NotImplementedError

    def _after(self, steps: int) -> None:
        """Exchange with the centre, if it is time after so many more steps."""
        raise NotImplementedError

    def _end(self) -> None:
        """Give the centre what it has not been given yet."""
        raise NotImplementedError

    def _add(self, change: Array) -> None:
        if not np.isfinite(change).all():
            raise ValueError("this rank's parameters hold NaN or infinity, expected finite values")
        before = self._centre.add(change)
        self.staleness[before - self._seen] += 1
        self._seen = before + 1


class ElasticAveraging(Asynchronous):
    """Lets each process train by itself, held by a spring to a centre that all move (Zhang et al. 2015).

    It is the ``comm`` of a `Trainer`. After every ``period`` steps a process moves its parameters x by
    ``moving_rate * (x - centre)`` towards the centre, and the centre by as much towards x. Nobody waits for
    anybody. The paper's EASGD has plain `SGD` as its optimizer, and EAMSGD, its momentum form, has
    ``SGD(..., momentum=0.9, nesterov=True)``; any other will do.

    Parameters
    ----------
    comm : communicator of mpi4py or None
        Of the processes, such as `world` returns. One process alone trains as without it.
    period : int, default 10
        The paper's tau.
    moving_rate : float in [0, 1), optional
        The paper's alpha; by default 0.9 divided by the number of processes, its choice.

    Attributes
    ----------
    staleness : collections.Counter
        How many exchanges of others came between two of this process -> how often in the last training.

    Notes
    -----
    `Trainer.fit` does this with either kind of asynchronous training:

    - All begin with the first process's parameters. ``batch_size`` is that of each process. With
      ``shard=True`` each trains on an equal share of the examples, a new one in each epoch; without it on the
      examples that it is given. It goes through its own epochs, and at the end waits for the others.
    - What it leaves in the model of every process is the centre, with the mean of the running statistics
      of `BatchNorm`, which are a process's own until then. The states of the optimizer stay a process's own;
      another `fit` begins with those of the first.
    - Losses of the training are a process's own. Validation, callbacks at the end of an epoch, and
      checkpoints, which the first process saves, see the centre as it is then; what such a callback writes
      into the parameters is undone. A callback that stops a process stops all, each after its epoch. After
      the callbacks were told of the end, all have the first process's parameters.
    - A training that goes on from a checkpoint begins with all processes at the centre, in the epoch in
      which the first was. It has not the bits of one without the break, nor are those of any two runs equal.
    - Messages to the first process's memory are served at once on one machine, and between machines by
      networks that do so by themselves; by others when the first process exchanges next.
    - Gradients that are not finite are the business of a process's optimizer; parameters that are not finite
      end all processes with an error, and never reach the centre.

    Examples
    --------
    >>> comm = distributed.ElasticAveraging(distributed.world(), period=10)
    >>> optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    >>> Trainer(model, nn.CrossEntropy(), optimizer, comm=comm).fit(x, y, epochs=5, shard=True)
    """

    def __init__(self, comm: Any, *, period: int = 10, moving_rate: float | None = None) -> None:
        super().__init__(comm)
        self.period = check_count("period", period)
        usual = 0.9 / Ranks(comm).size
        self.moving_rate = usual if moving_rate is None else FRACTION.number("moving_rate", moving_rate)

    def __repr__(self) -> str:
        return f"ElasticAveraging(period={self.period}, moving_rate={self.moving_rate})"

    def _left(self) -> int:
        return self.period - self._steps % self.period

    def _after(self, steps: int) -> None:
        self._steps += steps
        if self._steps % self.period == 0:
            self._meet()

    def _end(self) -> None:
        if self._steps % self.period:
            self._meet()

    def _meet(self) -> None:
        change = self._parameters - self._centre.read()
        change *= change.dtype.type(self.moving_rate)
        self._add(change)
        self._parameters -= change


class ParameterServer(Asynchronous):
    """Lets each process add its steps to parameters that all share, without waiting (Dean et al. 2012).

    It is the ``comm`` of a `Trainer`. The shared parameters, the centre, are in the first process's memory,
    which trains like the others. Every ``n_push`` steps a process adds what its steps have changed since it
    last did, and every ``n_fetch`` steps it takes the sum of all as its parameters. This is the paper's
    Downpour SGD, in which each replica has an optimizer of its own, here with states of its own.

    Parameters
    ----------
    comm : communicator of mpi4py or None
        Of the processes, such as `world` returns. One process alone trains as without it.
    n_push, n_fetch : int, default 1

    Attributes
    ----------
    staleness : collections.Counter
        How often others had added to the parameters, since this process took them, when it added to them ->
        at how many times in the last training.

    Notes
    -----
    See `ElasticAveraging` for what `Trainer.fit` does.

    Since the steps of all processes add up, the step of each should be shorter than that of one process
    alone; momentum that is large makes old steps go on for long, in all processes at once.

    Examples
    --------
    >>> comm = distributed.ParameterServer(distributed.world(), n_push=5, n_fetch=5)
    >>> optimizer = Adagrad(model.parameters(), lr=0.01)
    >>> Trainer(model, nn.CrossEntropy(), optimizer, comm=comm).fit(x, y, epochs=5, shard=True)
    """

    _known: Array  # the parameters as this rank took them last, with what it has added since

    def __init__(self, comm: Any, *, n_push: int = 1, n_fetch: int = 1) -> None:
        super().__init__(comm)
        self.n_push, self.n_fetch = check_count("n_push", n_push), check_count("n_fetch", n_fetch)

    def __repr__(self) -> str:
        return f"ParameterServer(n_push={self.n_push}, n_fetch={self.n_fetch})"

    def _begin(self, parameters: Array, centre: Centre) -> None:
        super()._begin(parameters, centre)
        self._known = parameters.copy()

    def _left(self) -> int:
        return min(self.n_push - self._steps % self.n_push, self.n_fetch - self._steps % self.n_fetch)

    def _after(self, steps: int) -> None:
        self._steps += steps
        if self._steps % self.n_push == 0:
            self._push()
        if self._steps % self.n_fetch == 0:
            self._fetch()

    def _end(self) -> None:
        if self._steps % self.n_push:
            self._push()

    def _push(self) -> None:
        seen = self._seen
        self._add(self._parameters - self._known)
        self._seen = seen + 1  # of the others' it still knows those of the last fetch
        self._known[...] = self._parameters

    def _fetch(self) -> None:
        self._seen = self._centre.added
        own = self._parameters - self._known
        self._known[...] = self._centre.read()
        np.add(self._known, own, out=self._parameters)


class Loose(Ranks):
    """Ranks that take steps of their own, and meet at a centre as an `Asynchronous` says.

    Methods that are of all ranks are so before the first step and after the last one only.
    """

    _centre: Centre | None = None  # while they train
    _examples = 0  # that this rank has trained on

    def __init__(self, way: Asynchronous) -> None:
        super().__init__(way._comm)
        self.together = self.size == 1
        self._way = way

    def exchange(self, gradients: Any) -> None:
        return None

    def any(self, value: bool) -> bool:
        return super().any(value) if self._centre is None else self._centre.stop(value)

    def order(self, rng: np.random.Generator, count: int, run: Run) -> Any:
        if not run.options.shard:
            return super().order(rng, count, run)
        order = rng.permutation(count) if run.options.shuffle else np.arange(count)
        begin, end = share_of(count, self.rank, self.size)
        return order[begin:end][: run.examples]

    def begin_alike(self, model: nn.Sequential, optimizer: Optimizer) -> None:
        if self.size == 1:
            return
        self.check_equal({"how the ranks exchange": repr(self._way)})
        super().begin_alike(model, optimizer)
        self._examples = 0
        self._centre = Centre(self._comm, model.flat_parameters)
        self._way._begin(model.flat_parameters, self._centre)

    def check_same_bits(self, model: nn.Sequential) -> None:
        """Do nothing: ranks are apart until the end."""

    def pace(self) -> int:
        return super().pace() if self._centre is None else self._way._left()

    def after(self, steps: int) -> None:
        if self._centre is not None:
            self._way._after(steps)

    def end_epoch(self, model: nn.Sequential, epoch: Epoch) -> None:
        self._examples += epoch.counted

    @contextmanager
    def centred(self, model: nn.Sequential) -> Iterator[None]:
        if self._centre is None:
            yield
            return
        own = model.flat_parameters.copy()
        model.flat_parameters[...] = self._centre.read()
        try:
            yield
        finally:
            model.flat_parameters[...] = own

    def finish(self, model: nn.Sequential) -> None:
        if self._centre is None:
            return
        self._way._end()
        self._centre.wait_for_all()
        model.flat_parameters[...] = self._centre.read()
        self.merge_buffers(model, self._examples)
        self._free()

    def _free(self) -> None:
        if self._centre is not None:
            self._centre.free()
            del self._way._parameters, self._way._centre
            self._centre = None

    def _all_fail(self) -> bool:
        """Where all do, which are then at the same point, free the centre too."""
        fail = super()._all_fail()
        if fail:
            self._free()
        return fail

    def end_alike(self, model: nn.Sequential) -> None:
        if self.size > 1:
            model.load_state_dict(self.share(model.state_dict()))
