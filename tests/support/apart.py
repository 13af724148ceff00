"""What each rank of tests/train/test_asynchronous.py does: ``mpiexec -n 3 python apart.py NAME FOLDER``."""

import sys
import traceback
import zlib
from pathlib import Path

import numpy as np
from mpi4py import MPI

import pyoptim as po
from pyoptim import callbacks, distributed, nn

COMM = MPI.COMM_WORLD
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 7))
Y = RNG.integers(0, 3, 60)
OWN = slice(0, 40) if COMM.rank == 0 else slice(40 + 5 * COMM.rank, 45 + 6 * COMM.rank)  # 40, 6, 7 examples


def make(comm, seed=1, layers=(), **optimizer):
    layers = [nn.Dense(7, 8), *layers, nn.ReLU(), nn.Dense(8, 3)]
    model = nn.Sequential(*layers, seed=seed, dtype="float64")
    options = {"lr": 0.1, "momentum": 0.5, **optimizer}
    return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), **options), seed=3, comm=comm)


def flat(trainer):
    return np.array(trainer.model.flat_parameters)


def alike(trainer, comm=COMM):
    state = trainer.model.state_dict()
    sums = comm.allgather([zlib.crc32(np.ascontiguousarray(state[name])) for name in state])
    assert all(own == sums[0] for own in sums), sums


class Failing(nn.CrossEntropy):
    def compute(self, *given):
        raise ValueError("fails")


class InTurn:
    """Lets the ranks exchange one after the other."""

    def _after(self, steps):
        for rank in range(self._comm.size):
            if rank == self._comm.rank:
                super()._after(steps)
            self._comm.barrier()


class Elastic(InTurn, distributed.ElasticAveraging):
    pass


class Server(InTurn, distributed.ParameterServer):
    pass


def shares():
    return X[:48].reshape(2, 24, 7), Y[:48].reshape(2, 24, 1).astype(float)


def reference(w, steps, exchange, lr=0.05, momentum=0.9):
    """Least squares by SGD with momentum on each rank's rows in order, batches of 4; NumPy alone."""
    x, y = shares()
    w = [w.copy() for _ in x]
    b = [None] * len(w)
    centre, kept = w[0].copy(), [each.copy() for each in w]
    for step in range(steps):
        for i in range(len(w)):
            rows = slice(step * 4 % len(x[i]), step * 4 % len(x[i]) + 4)
            error = w[i] @ x[i][rows].T - y[i][rows].T
            g = 2 * error @ x[i][rows] / error.size
            b[i] = g if b[i] is None else momentum * b[i] + g
            w[i] = w[i] - lr * b[i]
        for i in range(len(w)):
            w[i], change, kept[i] = exchange(step + 1, w[i], centre, kept[i])
            centre = centre + change
            if exchange.fetches(step + 1):
                w[i] = kept[i] = centre.copy()
    return centre


def textbook(folder):
    """In a fixed order, both are what the papers say."""

    def elastic(step, x, centre, kept):
        change = 0.3 * (x - centre) if step % 3 == 0 else 0 * x
        return x - change, change, kept

    def server(step, x, centre, kept):
        change = x - kept if step % 2 == 0 else 0 * x
        return x, change, kept + change

    elastic.fetches = lambda step: False
    server.fetches = lambda step: step % 4 == 0
    pair = COMM.Split(COMM.rank // 2)
    for exchange, comm in (
        (elastic, Elastic(pair, period=3, moving_rate=0.3)),
        (server, Server(pair, n_push=2, n_fetch=4)),
    ):
        for engine in ("auto", "python") if pair.size == 2 else ():
            model = nn.Sequential(nn.Dense(7, 1, bias=False), seed=1, dtype="float64")
            start = np.array(model.flat_parameters)[None]
            optimizer = po.SGD(model.parameters(), lr=0.05, momentum=0.9)
            trainer = po.Trainer(model, nn.MSE(), optimizer, comm=comm)
            x, y = shares()
            own = x[COMM.rank], y[COMM.rank]
            trainer.fit(*own, epochs=2, batch_size=4, shuffle=False, verbose=False, engine=engine)
            np.testing.assert_allclose(flat(trainer), reference(start, 12, exchange)[0], rtol=1e-12)
            alike(trainer, pair)


def together(folder):
    """Both learn, with uneven shares and without; nothing of what ranks add is lost."""
    data = po.datasets.load("digits", flatten=True, normalize=True)
    for comm in (
        distributed.ElasticAveraging(COMM, period=4),
        distributed.ParameterServer(COMM, n_push=3, n_fetch=2),
    ):
        model = nn.Sequential(nn.Dense(64, 32), nn.BatchNorm(32), nn.ReLU(), nn.Dense(32, 10), seed=COMM.rank)
        optimizer = po.SGD(model.parameters(), lr=0.05, momentum=0.5)
        trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=0, comm=comm)
        history = trainer.fit(
            data.x_train, data.y_train, epochs=8, shard=True, batch_size=32, verbose=False,
            validation_data=(data.x_test, data.y_test),
        )  # fmt: skip
        assert len(history["val_loss"]) == 8
        assert trainer.evaluate(data.x_test, data.y_test)["accuracy"] > 0.9
        alike(trainer)
        own = comm.staleness
        assert own.total() > 20
        assert min(own) >= 0
        # What others added since a rank's first sight of the centre is at most all that they have added.
        assert sum(n * times for n, times in own.items()) <= COMM.size * COMM.allreduce(own.total())

        trainer = make(comm)
        trainer.fit(X[OWN], Y[OWN], epochs=3, batch_size=5, verbose=False)
        alike(trainer)

    moved = []

    class Counted(distributed.ParameterServer):
        def _add(self, change):
            moved.append(change.copy())
            super()._add(change)

    trainer = make(Counted(COMM, n_push=1, n_fetch=3))
    before = flat(trainer)
    trainer.fit(X[OWN], Y[OWN], epochs=20, batch_size=2, verbose=False)
    total = sum(COMM.allgather(np.sum(moved, axis=0)))
    np.testing.assert_allclose(flat(trainer) - before, total, rtol=1e-9, atol=1e-12)


def rules(folder):
    """What callbacks and files see, how a training goes on, who stops, and what is refused."""
    seen = []

    class Watch(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(flat(self.trainer))
            self.trainer.model.flat_parameters[...] = 7  # is undone

    # A rate of 0: ranks train as if they were alone, and the centre stays where it is.
    comm = distributed.ElasticAveraging(COMM, moving_rate=0.0)
    inner = []

    class End(callbacks.Callback):
        def on_batch_end(self, batch, logs):
            inner.append(flat(self.trainer))

    trainer = make(comm)
    start = flat(trainer)
    trainer.fit(X, Y, epochs=2, verbose=False, shuffle=False, callbacks=[Watch(), End()])
    alone = make(None)
    alone.fit(X, Y, epochs=2, verbose=False, shuffle=False)
    assert flat(alone).tobytes() == inner[-1].tobytes()
    assert all(each.tobytes() == start.tobytes() for each in [*seen, flat(trainer)])

    path = Path(folder) / "training"
    comm = distributed.ElasticAveraging(COMM, period=2)
    first = make(comm)
    first.fit(X[OWN], Y[OWN], epochs=2, batch_size=4, verbose=False, checkpoint=path)
    COMM.barrier()
    second = make(comm, seed=9)
    history = second.fit(X[OWN], Y[OWN], epochs=2, batch_size=4, verbose=False, checkpoint=path)
    assert len(history["loss"]) == 2  # nothing was left to do
    assert flat(second).tobytes() == flat(first).tobytes()
    history = second.fit(X[OWN], Y[OWN], epochs=3, batch_size=4, verbose=False, checkpoint=path)
    assert len(history["loss"]) == 3
    alike(second)
    assert flat(second).tobytes() != flat(first).tobytes()

    class Stop(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.stop_training = COMM.rank == 1

    trainer = make(comm)
    history = trainer.fit(X, Y, epochs=10**6, verbose=False, callbacks=[Stop()])
    assert len(history["loss"]) < 10**6
    alike(trainer)
    best = callbacks.EarlyStopping(patience=1, min_delta=1.0, restore_best_weights=True)
    trainer.fit(X, Y, epochs=10**6, verbose=False, callbacks=[best], validation_split=0.2)
    alike(trainer)

    # After an error that all ranks meet, they can train again.
    comm = distributed.ElasticAveraging(COMM, period=2)
    trainer = make(comm, nonfinite="raise")
    trainer.loss = Failing()
    for ending in ("raised", "trained"):
        try:
            trainer.fit(X, Y, epochs=2, verbose=False)
            told = "trained"
        except ValueError:
            told = "raised"
        trainer.loss = nn.CrossEntropy()
        assert told == ending
    alike(trainer)

    cases = [
        (distributed.ElasticAveraging(COMM, period=1 + COMM.rank), {}, "how the ranks exchange differs"),
        (comm, {"transform": lambda x, y, rng: (x, y)}, "transform: not with a comm of"),
        (comm, {"epochs": 1 + COMM.rank}, "epochs differs between ranks"),
    ]
    for given, fit, message in cases:
        try:
            make(given).fit(X, Y, verbose=False, **fit)
        except ValueError as error:
            told = str(error)
        else:
            told = "nothing"
        assert message in told, told


def fails(folder):
    """The parameters of one rank are no numbers any more."""

    class Spoil(callbacks.Callback):
        def on_batch_end(self, batch, logs):
            if COMM.rank == 1 and batch == 3:
                self.trainer.model.flat_parameters[:] = np.nan

    trainer = make(distributed.ParameterServer(COMM))
    trainer.fit(X, Y, epochs=100_000, batch_size=1, verbose=False, callbacks=[Spoil()])
    print("went on")


if __name__ == "__main__":
    po.set_num_threads(1)
    try:
        for part in [textbook, together, rules] if sys.argv[1] == "all" else [fails]:
            part(sys.argv[2])
    except BaseException:
        traceback.print_exc()
        COMM.Abort(1)
    print(f"rank {COMM.rank} is done")
