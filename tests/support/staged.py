"""What each rank of tests/train/test_pipeline.py does: ``mpiexec -n 3 python staged.py NAME FOLDER``."""

import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np
from mpi4py import MPI

import pyoptim as po
from pyoptim import distributed, nn

COMM = MPI.COMM_WORLD
RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6))
Y = RNG.integers(0, 3, 50)
WEIGHT = RNG.random(50)


def plain():
    return [nn.Dense(6, 8), nn.Tanh(), nn.Dense(8, 5, bias=False), nn.ReLU(), nn.Dense(5, 3)]


def nested():
    block = [nn.Dense(8, 8), nn.LayerNorm(8), nn.GELU()]
    return [nn.Dense(6, 8, activation="tanh"), nn.Residual(block), nn.LayerNorm(8), nn.Dense(8, 3)]


def frozen():
    layers = plain()
    layers[2].trainable = False
    return layers


class Sick(nn.MSE):
    """Has a gradient that is not finite where a target is 99."""

    def compute(self, output, target, gradient, sample_weight=None):
        value = super().compute(output, target, gradient, sample_weight)
        if gradient is not None and (target == 99).any():
            gradient[...] = np.nan
        return value


def sgd(parameters):
    return po.SGD(parameters, lr=0.1, momentum=0.9)


def whole(layers, optimizer=sgd, loss=None, dtype="float64", **fit):
    model = nn.Sequential(*layers, seed=4, dtype=dtype)
    trainer = po.Trainer(model, loss or nn.CrossEntropy(), optimizer(model.parameters()), seed=4)
    return trainer, trainer.fit(X, Y, epochs=3, batch_size=16, verbose=False, engine="python", **fit)


def staged(layers, optimizer=sgd, loss=None, dtype="float64", comm=COMM, options=None, **fit):
    made = distributed.Pipeline(
        layers, loss or nn.CrossEntropy(), optimizer, comm, seed=4, dtype=dtype, **(options or {})
    )
    return made, made.fit(X, Y, epochs=3, batch_size=16, verbose=False, **fit)


def saved(pipeline, path):
    """The model of the pipeline's file, which has the bytes that one process writes."""
    pipeline.save(path)
    COMM.barrier()
    model = nn.Sequential.load(path)
    if COMM.rank == 0:
        again = path.with_suffix(".again")
        model.save(again)
        assert again.read_bytes() == path.read_bytes()
    COMM.barrier()
    return model


def same(pipeline, history, trainer, of_trainer, path, rtol=1e-9):
    for name in of_trainer.keys() | history.keys() - {"seconds"}:
        if name != "seconds":
            np.testing.assert_allclose(history[name], of_trainer[name], rtol=rtol, err_msg=name)
    assert len(set(map(str, COMM.allgather([history[name] for name in sorted(history)])))) == 1
    state = saved(pipeline, path).state_dict()
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_allclose(state[name], value, rtol=rtol, atol=rtol, err_msg=name)
    np.testing.assert_allclose(pipeline.predict(X), trainer.predict(X), rtol=rtol, atol=rtol)
    ours, theirs = pipeline.evaluate(X, Y, WEIGHT), trainer.evaluate(X, Y, WEIGHT)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=rtol)


def equal(folder):
    """A training is that of one process, whatever the stages and the micro-batches."""
    path = Path(folder) / "model.safetensors"
    data = {"validation_data": (X[:9], Y[:9])}
    cases = [
        (plain, {"micro_batches": 1}, data),
        (plain, {"micro_batches": 3, "stages": (1, 1, 3)}, {"sample_weight": WEIGHT, "drop_last": True}),
        (nested, {"micro_batches": 16}, {"shuffle": False}),
        (frozen, {"stages": [3, 1, 1]}, data),
    ]
    for layers, options, fit in cases:
        same(*staged(layers(), options=options, **fit), *whole(layers(), **fit), path)
    loss = nn.CrossEntropy(class_weight=[1.0, 0.5, 2.5], label_smoothing=0.1)
    same(*staged(plain(), po.Adam, loss), *whole(plain(), po.Adam, loss), path)

    made, _ = staged(plain())
    first = sum(made.stages[: COMM.rank])
    own = plain()[first : first + made.stages[COMM.rank]]
    assert made.model.flat_parameters.size == sum(layer.parameter_count() for layer in own)

    # What one process has saved is read, and the other way round.
    other = distributed.Pipeline(plain(), nn.CrossEntropy(), sgd, COMM, dtype="float64")
    assert not np.array_equal(other.predict(X), made.predict(X))
    if COMM.rank == 0:
        nn.Sequential(*plain(), seed=7, dtype="float64").save(path)
    COMM.barrier()
    other.load(path)
    np.testing.assert_allclose(
        other.predict(X), nn.Sequential(*plain(), seed=7, dtype="float64")(X), rtol=1e-12
    )

    # Statistics are those of micro-batches, and so a layer's running ones are their mean's.
    layers = [nn.Dense(6, 4), nn.BatchNorm(4, momentum=None), nn.Dropout(0.5), nn.Dense(4, 3)]
    made, history = staged(layers, options={"micro_batches": 2, "stages": (2, 1, 1)}, drop_last=True)
    assert np.array_equal(saved(made, path)(X), made.predict(X))
    if COMM.rank == 0:
        assert int(made.model.layers[1].buffers["num_batches_tracked"]) == 3 * 3 * 2
    assert np.isfinite(history["loss"]).all()
    assert COMM.allreduce(made.optimizer is None) == 1  # the stage of Dropout


def refused(folder):
    """What all ranks refuse, each with the same words, and go on; steps that are left out."""
    path = Path(folder) / "other.safetensors"
    if COMM.rank == 0:
        nn.Sequential(*plain()).save(path)
    COMM.barrier()
    cases = [
        (lambda: staged(plain()[:2]), "there are 2 layers for 3 processes"),
        (
            lambda: staged(plain(), options={"stages": (5, 0, 0)}),
            "stages is (5, 0, 0), expected 3 numbers of",
        ),
        (lambda: staged(plain(), options={"stages": (1, 1, 1)}), "of 5 together"),
        (lambda: staged(plain(), options={"micro_batches": 1 + COMM.rank}), "micro_batches differs between"),
        (lambda: staged(plain(), lambda p: po.SGD(p, max_grad_norm=1.0)), "max_grad_norm=1.0, expected None"),
        (lambda: staged(plain(), lambda p: 3), "optimizer made 3, expected an Optimizer"),
        (lambda: staged(plain(), shuffle=COMM.rank > 0), "shuffle differs between ranks"),
        (
            lambda: staged(plain(), lambda p: po.SGD(p, nonfinite="skip" if COMM.rank else "raise")),
            "nonfinite differs between stages",
        ),
        (
            lambda: staged([*plain(), nn.BatchNorm(3)], options={"micro_batches": 9}),
            "expected fewer, another batch_size",
        ),
        (lambda: distributed.Pipeline(plain(), nn.MSE(), sgd, COMM).fit(X, Y), "y has shape"),
        (lambda: staged(plain())[0].load(path), "its layers or its dtype are others"),
        (lambda: staged(plain())[0].load(Path(folder) / "none"), "No such file"),
        (lambda: staged(plain())[0].save(Path(folder)), "is a directory"),
    ]
    for call, message in cases:
        try:
            call()
        except (TypeError, ValueError, OSError) as error:
            told = str(error)
        else:
            told = "nothing"
        assert message in told, (message, told)

    y = np.where(np.arange(50) == 20, 99.0, Y)[:, None]  # in the third of five batches
    for nonfinite, batches in (("skip", 4), ("raise", 2)):
        layers = [nn.Dense(6, 4, bias=False), nn.BatchNorm(4), nn.Dense(4, 4), nn.Dense(4, 1)]
        optimizer = partial(po.SGD, lr=0.01, nonfinite=nonfinite)
        made = distributed.Pipeline(layers, Sick(), optimizer, COMM, stages=(2, 1, 1), seed=0)
        told, history = "", {"loss": []}
        try:
            history = made.fit(X, y, batch_size=10, shuffle=False, verbose=False)
        except ValueError as error:
            told = str(error)
        assert ("hold NaN or infinity" in told) == (nonfinite == "raise")
        assert made.optimizer.skipped == (nonfinite == "skip")
        assert np.isfinite(history["loss"]).all()
        assert all(np.isfinite(value).all() for value in made.model.state_dict().values())
        if COMM.rank == 0:
            assert made.model.layers[1].buffers["num_batches_tracked"] == batches * made.micro_batches


def fails(folder):
    """The optimizer of one stage fails in the middle of a training."""

    class Failing(po.SGD):
        def step(self, grads):
            if COMM.rank == 1 and self._scalars[0]["step"] == 5:
                raise OSError("the disk of rank 1 is full")
            super().step(grads)

    made = distributed.Pipeline(plain(), nn.CrossEntropy(), Failing, COMM)
    made.fit(X, Y, epochs=100_000, verbose=False)
    print("went on")


if __name__ == "__main__":
    po.set_num_threads(1)
    try:
        for part in [equal, refused] if sys.argv[1] == "all" else [fails]:
            part(sys.argv[2])
    except BaseException:
        traceback.print_exc()
        COMM.Abort(1)
    print(f"rank {COMM.rank} is done")
