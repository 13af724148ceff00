"""What each rank of tests/train/test_ranks.py does: ``mpiexec -n 3 python ranked.py NAME FOLDER``."""

import contextlib
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
from mpi4py import MPI

import pyoptim as po
from pyoptim import averages, callbacks, nn, schedules
from pyoptim.runtime import dispatch
from pyoptim.train import sources

COMM = MPI.COMM_WORLD
RNG = np.random.default_rng(0)
X = RNG.normal(size=(61, 7))
Y = RNG.integers(0, 3, 61)
WEIGHT = RNG.random(61)
PATH = "native" if dispatch.current().name == "native" else "python"


class Bits(callbacks.Callback):
    """Compares the parameters of the ranks after each step."""

    def on_batch_end(self, batch, logs):
        flat = self.trainer.model.flat_parameters
        every = COMM.allgather((batch, zlib.crc32(flat), logs["loss"]))
        assert len(set(every)) == 1, every


def make(comm, layers=(), optimizer=None, dtype="float64", engine="auto", fit=None, rows=None, **options):
    if options.pop("norms", False):
        # What follows a bias takes it away again: its gradient is rounding, which Adam must not blow up.
        optimizer = {"eps": 1e-3}
        norms = nn.BatchNorm(8, activation="relu"), nn.BatchNorm(8, affine=False, momentum=None)
        layers = [norms[0], nn.Dense(8, 8), norms[1], nn.BatchNorm(8, running_var="biased")]
    layers = [nn.Dense(7, 8), *layers, nn.ReLU(), nn.Dense(8, 3)]
    seed = 1 if comm is None or COMM.rank == 0 else 8  # the first rank's parameters are everyone's
    model = nn.Sequential(*layers, seed=seed, dtype=dtype)
    optimizer = po.Adam(model.parameters(), lr=0.02, **(optimizer or {}))
    if options.pop("average", False):
        optimizer.follow(averages.EMA(model.parameters(), 0.9))
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=seed, comm=comm, **options)
    usual = {"epochs": 3, "batch_size": 16, "shard": rows is None, "verbose": False, "engine": engine}
    rows = slice(None) if rows is None else rows
    history = trainer.fit(X[rows], Y[rows], **(usual | (fit or {})))
    return trainer, history


def flat(trainer):
    return np.array(trainer.model.flat_parameters)


def alike(trainer):
    sums = COMM.allgather(zlib.crc32(flat(trainer)))
    assert len(set(sums)) == 1, sums


def close(first, second):
    (a, of_a), (b, of_b) = first, second
    state = a.model.state_dict()
    for name, value in b.model.state_dict().items():
        np.testing.assert_allclose(state[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
    for name in of_b.keys() - {"seconds"}:
        np.testing.assert_allclose(of_a[name], of_b[name], rtol=1e-9, err_msg=name)


def equal(folder):
    """The run equals that of one process with the same batches, on both paths, with whatever options."""
    cases = [
        {},
        {"fit": {"validation_split": 0.2, "sample_weight": WEIGHT}, "metrics": ["f1"]},
        {"fit": {"batch_size": None, "shuffle": False}, "penalty": nn.Penalty(0.1, 0.01)},
        {"fit": {"drop_last": True, "weight_noise": 0.1}, "optimizer": {"max_grad_norm": 0.1}},
        {"fit": {"validation_data": (X[:2], Y[:2])}, "sharpness_aware": 0.05},
        {"optimizer": {"accumulate": 2, "nonfinite": "skip"}},
        {"average": True, "optimizer": {"max_grad_norm": 0.1}},
        {"sync_norms": True, "norms": True, "sharpness_aware": 0.05, "fit": {"sample_weight": WEIGHT}},
        {"sync_norms": True, "norms": True, "fit": {"batch_size": 2, "epochs": 1, "drop_last": True}},
        {"fit": {"batch_size": 2, "epochs": 1, "drop_last": True}, "sharpness_aware": 0.05},
    ]
    for case in cases:
        together = make(COMM, **case)
        alike(together[0])
        close(together, make(None, **case))
        by_python = make(COMM, engine="python", **case)
        assert flat(by_python[0]).tobytes() == flat(together[0]).tobytes(), case
        assert by_python[1]["loss"] == together[1]["loss"]
        assert "norms" not in case or together[1].reason == "BatchNorm takes statistics over all ranks"
    assert make(COMM)[1].path == PATH
    make(COMM, fit={"callbacks": [Bits()]})
    make(
        COMM,
        dtype="float32",
        layers=[nn.BatchNorm(8), nn.Dropout(0.5)],
        fit={"callbacks": [Bits()], "batch_size": 31},
    )
    for engine in ("auto", "python"):  # statistics of each rank's part, and masks of its own
        random, _ = make(
            COMM, layers=[nn.BatchNorm(8), nn.Dropout(0.5)], engine=engine, fit={"batch_size": 31}
        )
        state = random.model.state_dict()
        every = COMM.allgather(
            {name: zlib.crc32(np.ascontiguousarray(value)) for name, value in state.items()}
        )
        assert all(own == every[0] for own in every), every


def uneven(folder):
    """Ranks with data of their own, of which some have more; stopping, writing and resuming."""
    own = slice(0, 40) if COMM.rank == 0 else slice(40 + 5 * COMM.rank, 45 + 6 * COMM.rank)

    def trained(engine, epochs=4, path=None, seed=1, stop=None):
        model = nn.Sequential(nn.Dense(7, 5), nn.Tanh(), nn.Dense(5, 3), seed=seed)
        lr = schedules.Cosine(0.05, steps=30)
        trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), lr=lr), seed=5, comm=COMM)
        others = [] if stop is None else [stop]
        extra = {} if path is None else {"checkpoint": path, "checkpoint_every": 0.0}
        history = trainer.fit(
            X[own], Y[own], epochs=epochs, batch_size=12, validation_data=(X[own], Y[own]), verbose=False,
            engine=engine, callbacks=others, **extra,
        )  # fmt: skip
        alike(trainer)
        return trainer, history

    whole, history = trained("auto")
    by_python, _ = trained("python")
    assert flat(whole).tobytes() == flat(by_python).tobytes()
    assert len(set(map(str, COMM.allgather([history[k] for k in sorted(history)])))) == 1
    path = Path(folder) / "training"
    trained("auto", 2, path)
    COMM.barrier()
    resumed, after = trained("auto", 4, path, seed=9)
    assert flat(resumed).tobytes() == flat(whole).tobytes()
    assert after["loss"] == history["loss"]

    class Stop(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.stop_training = COMM.rank == 1 and epoch == 1

    class First(Stop):
        on_all_ranks = False
        told = 0

        def on_epoch_end(self, epoch, logs):
            self.told += 1

    assert len(trained("auto", 9, stop=Stop())[1]["loss"]) == 2
    first = First()
    trained("auto", 3, stop=first)
    assert first.told == (3 if COMM.rank == 0 else 0)
    early = callbacks.EarlyStopping(patience=0, min_delta=10.0)
    assert len(trained("auto", 9, stop=early)[1]["loss"]) == 2


def empty(folder):
    """A rank without examples, one with few, and one with almost all."""
    for counts in ((57, 4, 0), (0, 0, 61), (0, 3, 58)):
        begin = sum(counts[: COMM.rank])
        rows = slice(begin, begin + counts[COMM.rank])
        for engine in ("auto", "python"):
            whole = {"batch_size": None, "sample_weight": WEIGHT[rows], "validation_data": (X[rows], Y[rows])}
            one = whole | {"sample_weight": WEIGHT, "validation_data": (X, Y)}
            close(
                make(COMM, engine=engine, rows=rows, fit=whole, metrics=["f1"]),
                make(None, engine=engine, fit=one | {"shard": False}, metrics=["f1"]),
            )
            normed, _ = make(COMM, [nn.BatchNorm(8)], engine=engine, rows=rows, fit={"batch_size": 61})
            alike(normed)
            state = normed.model.state_dict()
            assert np.isfinite(state["1.running_var"]).all()
            assert state["1.num_batches_tracked"] == 3
        options = {"norms": True, "sync_norms": True, "fit": {"batch_size": 61}}
        close(make(COMM, rows=rows, **options), make(None, **options))
        # Each batch has a share of each rank's examples, so that an epoch has the steps of one process.
        bits = set()
        for engine in ("auto", "python"):
            few, history = make(
                COMM, rows=rows, engine=engine, fit={"batch_size": 5, "validation_split": 0.2}
            )
            alike(few)
            bits.add(flat(few).tobytes())
            kept = sum(n - round(n * 0.2) for n in counts)
            assert few.optimizer._scalars[0]["step"] == 3 * -(-kept // 5)
            assert np.isfinite(history["val_loss"]).all()
        assert len(bits) == 1


class Waits(callbacks.Callback):
    """Waits for its end in the middle of an epoch, on one rank."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, epoch):
        self.waits = epoch == self.epoch and COMM.rank == 1

    def on_batch_end(self, batch, logs):
        if self.waits and batch == 2:
            print("waiting", flush=True)
            time.sleep(1000)


def killed(folder):
    """Trainings to compare with, then one that is killed."""
    two = [nn.BatchNorm(8), nn.Dropout(0.5)]
    np.save(f"{folder}/random{COMM.rank}.npy", flat(make(COMM, two, fit={"epochs": 4})[0]))
    whole, _ = make(COMM, fit={"epochs": 4})
    np.save(f"{folder}/plain{COMM.rank}.npy", flat(whole))
    make(COMM, fit={"epochs": 2, "checkpoint": f"{folder}/plain"})
    two = [nn.BatchNorm(8), nn.Dropout(0.5)]
    checkpoint = {"checkpoint": f"{folder}/random", "checkpoint_every": 0.0}
    make(COMM, two, fit={"epochs": 4, "callbacks": [Waits(2)], **checkpoint})


def again(folder):
    """The one that was killed goes on."""
    two = [nn.BatchNorm(8), nn.Dropout(0.5)]
    fit = {"epochs": 4, "callbacks": [Waits(None)], "checkpoint": f"{folder}/random"}
    resumed, history = make(COMM, two, fit=fit)
    assert np.load(f"{folder}/random{COMM.rank}.npy").tobytes() == flat(resumed).tobytes()
    assert len(history["loss"]) == 4


def others(folder):
    """Another number of ranks goes on."""
    for comm, path in ((COMM, f"{folder}/plain"), (MPI.COMM_SELF, f"{folder}/plain of {COMM.rank}")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resumed, history = make(comm, fit={"epochs": 4, "checkpoint": path})
        told = [str(warning.message) for warning in caught]
        expected = f"the checkpoint was saved by 2 ranks and goes on with {comm.size}"
        assert any(expected in text for text in told) == (comm.rank == 0), told
        assert len(history["loss"]) == 4
        np.testing.assert_allclose(flat(resumed), np.load(f"{folder}/plain0.npy"), rtol=1e-9, atol=1e-11)
        alike(resumed)


def blocks(folder):
    """Each rank gives blocks of its own, cut as it likes: the batches are those of one process."""
    begin, end = ((0, 3), (3, 6), (6, 10))[COMM.rank]
    rows = np.concatenate([np.arange(10 * k + begin, 10 * k + end) for k in range(6)])

    def given():
        for some in np.array_split(rows, 3 + COMM.rank):
            yield X[some], Y[some]

    def trained(comm, x, **options):
        fit = {"epochs": 2, "batch_size": 10, "verbose": False, "shuffle": False, **options}
        model = nn.Sequential(
            nn.Dense(7, 5), nn.BatchNorm(5), nn.Tanh(), nn.Dense(5, 3), seed=1, dtype="float64"
        )
        optimizer = po.Adam(model.parameters(), eps=1e-3)
        trainer = po.Trainer(model, nn.CrossEntropy(), optimizer, seed=5, comm=comm, sync_norms=sync)
        return trainer, trainer.fit(x, **fit)

    for sync in (False, True):
        together = trained(COMM, given, steps_per_epoch=6)
        alike(together[0])
        if sync:
            close(together, trained(None, [(X[:60], Y[:60])]))
    sync, saved = False, {"checkpoint": f"{folder}/blocks", "checkpoint_every": 0.0, "shuffle": True}
    whole = trained(COMM, given, steps_per_epoch=5, validation_data=given, shuffle=True)
    trained(COMM, given, steps_per_epoch=5, validation_data=given, **saved | {"epochs": 1})
    resumed = trained(COMM, given, steps_per_epoch=5, validation_data=given, **saved)
    assert flat(resumed[0]).tobytes() == flat(whole[0]).tobytes()
    assert resumed[1]["val_loss"] == whole[1]["val_loss"]
    for wrong in ({}, {"steps_per_epoch": 2, "batch_size": 2}, {"steps_per_epoch": 2, "shard": True}):
        try:
            trained(COMM, given, **wrong)
        except ValueError as error:
            told = str(error)
        assert "blocks of 3 ranks: expected" in told


def refused(folder):
    """What all ranks refuse, each with the same words, and go on."""
    cases = [
        ({"fit": {"transform": lambda x, y, rng: (x, y)}}, "transform: not with a comm of"),
        ({"fit": {"parallel": "hogwild", "batch_size": 6}}, "parallel: not with a comm of"),
        ({"rows": slice(0, 9), "fit": {"batch_size": 1}}, "expected an example for each of"),
        ({"sync_norms": COMM.rank == 0}, "sync_norms differs between ranks"),
        ({"sync_norms": True, "norms": True, "engine": "native"}, "takes statistics over all ranks"),
        ({"rows": slice(0)}, "x is empty on all ranks"),
        (
            {"fit": {"shard": False, "validation_data": (X[:0], Y[:0])}},
            "the validation data are empty on all",
        ),
        ({"fit": {"shard": COMM.rank == 0}}, "shard differs between ranks"),
        ({"dtype": "float32", "optimizer": {"state_dtype": "int8"}}, "in fewer bits: not with a comm of"),
        ({"fit": {"epochs": 1 + COMM.rank}}, "epochs differs between ranks"),
        ({"penalty": nn.Penalty(0.1 * COMM.rank)}, "penalty differs between ranks"),
        ({"optimizer": {"max_grad_norm": 1 + COMM.rank}}, "how the optimizer steps differs"),
        ({"layers": [nn.Dense(8, 8)] * (COMM.rank == 0)}, "the model differs"),
    ]
    for case, message in cases:
        try:
            make(COMM, **case)
        except ValueError as error:
            told = str(error)
        else:
            told = "nothing"
        assert message in told, told
    trainer, _ = make(COMM)
    with contextlib.suppress(ValueError):
        trainer.partial_fit(X, Y)
        raise AssertionError("partial_fit")
    for given in (3, "world"):
        with contextlib.suppress(TypeError):
            make(given)
            raise AssertionError(given)
    sources._KEPT, mapped = 0, np.memmap(f"{folder}/x{COMM.rank}", X.dtype, "w+", shape=X.shape)
    try:
        trainer.fit(mapped, Y, verbose=False)
    except ValueError as error:
        told = str(error)
    assert "mapped files: not with a comm of 2 ranks" in told, told
    bad = np.where(np.arange(61)[:, None] == 60, 3e38, X)  # overflows on one rank, and then on all
    for nonfinite, error in (("raise", ValueError), ("skip", None)):
        model = nn.Sequential(nn.Dense(7, 8), nn.Dense(8, 1), seed=1)
        optimizer = po.SGD(model.parameters(), lr=0.01, nonfinite=nonfinite)
        trainer = po.Trainer(model, nn.MSE(), optimizer, comm=COMM, seed=0)
        raised = None
        try:
            trainer.fit(bad.astype("f4"), Y[:, None].astype("f4"), shard=True, verbose=False)
        except ValueError as problem:
            raised = type(problem)
        assert raised is error
        alike(trainer)
        assert nonfinite == "raise" or optimizer.skipped == 1


def fails(folder):
    """One rank fails, in the middle of a training."""

    class Fail(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            if COMM.rank == 1 and epoch == 1:
                raise OSError("the disk of rank 1 is full")

    make(COMM, fit={"callbacks": [Fail()], "epochs": 100_000})
    print("went on")


if __name__ == "__main__":
    po.set_num_threads(1)
    try:
        globals()[sys.argv[1]](sys.argv[2])
    except BaseException:
        traceback.print_exc()
        COMM.Abort(1)
    print(f"rank {COMM.rank} is done")
