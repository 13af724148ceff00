"""A training that is saved as it goes ends with the same bits, wherever it was killed."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest
from support.stopped import Killed, Stop

import pyoptim as po
from pyoptim import callbacks, nn, schedules, transforms
from pyoptim.train import resume

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def trainer(**options):
    layers = [nn.Dense(6, 9), nn.BatchNorm(9), nn.ReLU(), nn.Dense(9, 2)]
    model = nn.Sequential(*layers, seed=1)
    lr = schedules.Cosine(0.05, steps=40)
    optimizer = po.Adam(model.parameters(), lr=lr, **options)
    return po.Trainer(model, nn.CrossEntropy(), optimizer, seed=2, penalty=nn.Penalty(0.01, 0.001))


WRITE = resume.files.write


class After:
    """A stand-in for SIGKILL: ends the training once the file has been written so many times."""

    def __init__(self, times):
        self.left = times

    def __call__(self, path, description, tensors):
        if self.left == 0:
            raise Killed
        self.left -= 1
        WRITE(path, description, tensors)


def bits(mine):
    state = mine.optimizer.state_dict()
    arrays = [v for entry in state["state"].values() for v in entry.values()]
    return [*map(np.asarray, arrays), *mine.model.state_dict().values()]


def assert_same(one, other):
    for a, b in zip(bits(one), bits(other), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("engine_name", ["native", "python"])
@pytest.mark.parametrize("written", [1, 2, 7, 13])
@pytest.mark.parametrize("more", [{}, {"weight_noise": 0.02}, {"weight_noise": 0.02, "shuffle": False}])
def test_an_interrupted_training_ends_with_the_same_bits(engine_name, written, more, tmp_path, monkeypatch):
    if engine_name == "native" and "native" not in po.available_backends():
        pytest.skip("of the native backend")
    options = {"epochs": 4, "batch_size": 16, "verbose": False, "engine": engine_name, **more}
    whole = trainer()
    history = whole.fit(X, Y, validation_data=(X, Y), **options)
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(resume.files, "write", After(written))
        # One batch a chunk, so that there is something to save between them.
        patch.setattr("pyoptim.train.engine._CHUNK", 0.0)
        with pytest.raises(Killed):
            trainer().fit(X, Y, validation_data=(X, Y), checkpoint=path, checkpoint_every=0, **options)
    resumed = trainer()
    resumed.model.flat_parameters[...] = 7  # what it has before does not matter
    again = resumed.fit(X, Y, validation_data=(X, Y), checkpoint=path, **options)
    assert_same(whole, resumed)
    for name in ("loss", "accuracy", "val_loss"):
        assert again[name] == history[name]
    parameters = resumed.model.flat_parameters.copy()
    done = resumed.fit(X, Y, validation_data=(X, Y), checkpoint=path, **options)  # it is complete
    assert done["loss"] == history["loss"]
    assert np.array_equal(parameters, resumed.model.flat_parameters)
    longer = trainer().fit(X, Y, checkpoint=path, **{**options, "epochs": 5})
    assert longer["loss"][:4] == history["loss"]
    assert len(longer["loss"]) == 5


def test_random_transforms_noise_and_callbacks_go_on_too(tmp_path, monkeypatch):
    def fit(mine, **more):
        stop = callbacks.EarlyStopping("loss", min_delta=0.02, patience=2, restore_best_weights=True)
        watch = callbacks.ActivationStatistics(X, 1, every=4)
        history = mine.fit(
            X, Y, epochs=9, batch_size=16, transform=transforms.Noise(0.1), weight_noise=0.01,
            callbacks=[stop, watch], verbose=False, **more,
        )  # fmt: skip
        return history, stop, watch

    whole = trainer()
    history, stop, watch = fit(whole)
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(resume.files, "write", After(16))
        with pytest.raises(Killed):
            fit(trainer(), checkpoint=path, checkpoint_every=0)
    resumed = trainer()
    again, stopped, watched = fit(resumed, checkpoint=path)
    assert_same(whole, resumed)
    assert again["loss"] == history["loss"]
    assert (stopped.stopped_epoch, stopped.best) == (stop.stopped_epoch, stop.best)
    assert watched.steps == watch.steps
    assert np.array_equal(watched.values, watch.values)


SCRIPT = """
import sys
import numpy as np
import pyoptim as po
from pyoptim import nn
rng = np.random.default_rng(0)
x = rng.normal(size=(4000, 30)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int64)
model = nn.Sequential(nn.Dense(30, 40, activation="relu"), nn.Dense(40, 2), seed=0)
trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=0)
trainer.fit(x, y, epochs=8, batch_size=4, verbose=False, checkpoint=sys.argv[1], checkpoint_every=0.01)
np.save(sys.argv[2], model.flat_parameters)
"""


def test_killed_at_any_moment_and_resumed(start_python, tmp_path):
    def run(name):
        return start_python("-c", SCRIPT, name, f"{name}.npy")

    assert run("whole").wait(120) == 0
    killed = 0
    for wait in (0.02, 0.1, 0.2, 0.05, 0.15, None):
        process = run("killed")
        if wait is None:
            assert process.wait(120) == 0
            break
        before = time.monotonic()
        while not (tmp_path / "killed").exists() and time.monotonic() - before < 60:
            time.sleep(0.005)
        time.sleep(wait)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait(60)
    assert killed > 0
    assert np.array_equal(np.load(tmp_path / "whole.npy"), np.load(tmp_path / "killed.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "saved with .*16.* expected .*8"),
        ({"shuffle": False}, "'shuffle': True"),
        ({"callbacks": [callbacks.Callback()]}, r"with the callbacks \[\], expected"),
    ],
)
def test_what_does_not_fit_changes_nothing(options, message, tmp_path):
    path = tmp_path / "run.safetensors"
    trainer().fit(X, Y, batch_size=16, checkpoint=path, verbose=False)
    content = path.read_bytes()
    mine = trainer()
    before = [a.copy() for a in bits(mine)]
    with pytest.raises(ValueError, match=message):
        mine.fit(X, Y, **{"batch_size": 16, **options}, epochs=2, checkpoint=path, verbose=False)
    other = po.Trainer(mine.model, nn.CrossEntropy(), po.SGD(mine.model.parameters()))
    with pytest.raises(ValueError, match="state of 'Adam'"):
        other.fit(X, Y, batch_size=16, checkpoint=path, verbose=False)
    for n in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:n])
        with pytest.raises(ValueError, match=r"run\.safetensors"):
            mine.fit(X, Y, batch_size=16, checkpoint=path, verbose=False)
    assert all(np.array_equal(a, b) for a, b in zip(before, bits(mine), strict=True))
    with pytest.raises(ValueError, match="checkpoint_every is -1"):
        mine.fit(X, Y, checkpoint=path, checkpoint_every=-1, verbose=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": 0}, "number of ranks is 0, expected a count"),
        ({"ranks": True}, "number of ranks is True"),
        ({"epoch": {"done": 7}}, "stands at example 7, expected the begin of a batch"),
        ({"epoch": {"index": -1}}, "expected counts"),
        ({"callbacks": [["EarlyStopping(loss)", {"_waited": [1]}]]}, "its EarlyStopping has _waited = "),
        ({"callbacks": [["EarlyStopping(loss)", {"surprise": 1}]]}, "its EarlyStopping has surprise = 1"),
    ],
)
def test_a_file_that_makes_no_sense_changes_nothing(changes, message, tmp_path, monkeypatch):
    def fit(mine, **more):
        stop = [callbacks.EarlyStopping("loss", patience=3)]
        mine.fit(X, Y, batch_size=16, checkpoint=tmp_path / "run", callbacks=stop, verbose=False, **more)

    def changed(file):
        description, tensors = read(file)
        for name, value in changes.items():
            description[name] = {**description[name], **value} if isinstance(value, dict) else value
        return description, tensors

    fit(trainer())
    read, mine = resume.Resume.read, trainer()
    before = [a.copy() for a in bits(mine)]
    monkeypatch.setattr(resume.Resume, "read", changed)
    with pytest.raises(ValueError, match=message):
        fit(mine, epochs=2)
    assert all(np.array_equal(a, b) for a, b in zip(before, bits(mine), strict=True))


def test_a_file_without_the_average_is_refused(tmp_path):
    trainer().fit(X, Y, batch_size=16, checkpoint=tmp_path / "run", verbose=False)
    mine = trainer()
    po.averages.EMA(mine.optimizer)
    with pytest.raises(ValueError, match="saved without an average, expected one for its EMA"):
        mine.fit(X, Y, batch_size=16, epochs=2, checkpoint=tmp_path / "run", verbose=False)


def test_epochs_of_one_batch_are_saved_between_them(tmp_path, monkeypatch):
    path, whole = tmp_path / "run.safetensors", trainer()
    whole.fit(X, Y, epochs=6, batch_size=None, verbose=False)
    with monkeypatch.context() as patch:
        patch.setattr(resume.files, "write", After(3))
        with pytest.raises(Killed):
            trainer().fit(X, Y, epochs=6, batch_size=None, checkpoint=path, checkpoint_every=0, verbose=False)
    resumed = trainer()
    assert len(resumed.fit(X, Y, epochs=6, batch_size=None, checkpoint=path, verbose=False)["loss"]) == 6
    assert_same(whole, resumed)


def test_what_cannot_be_saved_is_said_before_the_training(tmp_path):
    mine = trainer()
    mine.optimizer.param_groups[0]["lr"] = lambda step: 0.1
    before = mine.model.flat_parameters.copy()
    with pytest.raises(ValueError, match="cannot be saved"):
        mine.fit(X, Y, checkpoint=tmp_path / "x", verbose=False)
    with pytest.raises(ValueError, match="no folder"):
        trainer().fit(X, Y, checkpoint=tmp_path / "nowhere" / "x", verbose=False)
    with pytest.raises(ValueError, match=r"checkpoint is .*, which exists and is no file"):
        trainer().fit(X, Y, checkpoint=tmp_path, verbose=False)
    assert np.array_equal(before, mine.model.flat_parameters)


@pytest.mark.parametrize("old", [False, True])
def test_an_average_and_a_log_go_on(old, tmp_path, monkeypatch):
    def fit(mine, log, **more):
        ema = po.averages.EMA(mine.optimizer, 0.9)
        mine.fit(X, Y, epochs=5, batch_size=16, callbacks=[callbacks.CSVLogger(log)], verbose=False, **more)
        return ema

    path, whole, resumed = tmp_path / "run.safetensors", trainer(), trainer()
    ema = fit(whole, tmp_path / "a.csv")
    with monkeypatch.context() as patch:
        patch.setattr(resume.files, "write", After(15))
        with pytest.raises(Killed):
            fit(trainer(), tmp_path / "b.csv", checkpoint=path, checkpoint_every=0)
    log = [callbacks.CSVLogger(tmp_path / "b.csv")]
    with pytest.raises(ValueError, match="with the average EMA"):
        trainer().fit(X, Y, batch_size=16, checkpoint=path, callbacks=log, verbose=False)
    if old:  # files used to have the average beside the optimizer's state
        description, tensors = resume.files.read(path, resume._FORMAT)
        description["average"] = description["optimizer"].pop("average")
        moved = {name.replace("optimizer.average", "average"): tensor for name, tensor in tensors.items()}
        resume.files.write(path, description, moved)
    again = fit(resumed, tmp_path / "b.csv", checkpoint=path)
    assert_same(whole, resumed)
    assert again.count == ema.count == 30
    assert all(np.array_equal(a, b) for a, b in zip(ema.averages, again.averages, strict=True))
    a, b = ([line.split(",")[:3] for line in (tmp_path / f).read_text().split()] for f in ("a.csv", "b.csv"))
    assert a == b


@pytest.mark.parametrize("killed", [2, 8, 15])  # in the first epoch, and later
def test_a_log_that_is_added_to_keeps_what_earlier_trainings_wrote(killed, tmp_path, monkeypatch):
    def fit(log, **more):
        appended = [callbacks.CSVLogger(log, append=True)]
        trainer().fit(X, Y, epochs=5, batch_size=16, callbacks=appended, verbose=False, **more)

    whole, log, path = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "run.safetensors"
    for each in (whole, log):
        fit(each)  # the earlier training, of the same epochs
    fit(whole)
    with monkeypatch.context() as patch:
        patch.setattr(resume.files, "write", After(killed))
        with pytest.raises(Killed):
            fit(log, checkpoint=path, checkpoint_every=0)
    for _ in range(2):  # the second time nothing is left to do
        fit(log, checkpoint=path)
        a, b = ([row.split(",")[:3] for row in each.read_text().split()] for each in (whole, log))
        assert a == b
        assert len(b) == 11


def logged(path, after, **more):
    options = {"batch_size": 16, "verbose": False, "checkpoint_every": 0, **more}
    with contextlib.suppress(Killed):
        trainer().fit(X, Y, epochs=14, callbacks=[callbacks.CSVLogger(path), Stop(after)], **options)
    return [row.split(",")[0] for row in path.read_text().split()][1:]


def test_a_log_that_was_damaged_between_two_trainings_goes_on(tmp_path):
    log, run = tmp_path / "log.csv", tmp_path / "run"
    assert logged(log, 12, checkpoint=run)[-2:] == ["11", "12"]
    text = log.read_text()
    log.write_text(text[: text.rindex("\n12,") + 2])  # a full disk leaves "1" of the row
    assert logged(log, 13, checkpoint=run) == [str(epoch) for epoch in range(14)]
    log.unlink()
    assert logged(log, None, checkpoint=run) == ["13"]


def test_a_log_that_was_removed_begins_anew(tmp_path):
    log, run = tmp_path / "log.csv", tmp_path / "run"
    trainer().fit(X, Y, epochs=2, callbacks=[callbacks.CSVLogger(log)], verbose=False)
    for after, rows in ((3, 6), (5, None), (None, None)):
        appended = [callbacks.CSVLogger(log, append=True), Stop(after)]
        with contextlib.suppress(Killed):
            trainer().fit(X, Y, epochs=8, batch_size=16, callbacks=appended, checkpoint=run,
                          checkpoint_every=0, verbose=False)  # fmt: skip
        if rows:
            assert len(log.read_text().split()) == rows + 1
            log.unlink()
    assert [row.split(",")[0] for row in log.read_text().split()] == ["epoch", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize("earlier", [1.5, -2, None, "0"])
def test_a_log_with_a_count_that_cannot_be_is_refused(earlier, tmp_path):
    log = callbacks.CSVLogger(tmp_path / "log.csv")
    log.trainer = trainer()
    with pytest.raises(ValueError, match=r"_earlier = .*, expected a count"):
        log.load_state({"_earlier": earlier}, {})


def test_settings_are_those_of_the_new_callbacks(tmp_path):
    path = tmp_path / "run.safetensors"
    old = callbacks.EarlyStopping("loss", patience=3)
    trainer().fit(X, Y, batch_size=16, checkpoint=path, callbacks=[old], verbose=False)
    new = callbacks.EarlyStopping("loss", patience=50)
    trainer().fit(X, Y, batch_size=16, checkpoint=path, callbacks=[new], verbose=False)
    assert (new.patience, new.best) == (50, old.best)
    other = callbacks.ReduceLROnPlateau("loss")
    with pytest.raises(ValueError, match="with the callbacks"):
        trainer().fit(X, Y, batch_size=16, checkpoint=path, callbacks=[other], verbose=False)


def test_callbacks_of_one_class_are_not_mixed_up(tmp_path):
    path, options = tmp_path / "run.safetensors", {"batch_size": 16, "verbose": False}
    watch = [callbacks.EarlyStopping("loss", patience=9), callbacks.EarlyStopping("accuracy", patience=9)]
    trainer().fit(X, Y, checkpoint=path, callbacks=watch, **options)
    best = [callback.best for callback in watch]
    expected = (
        r"\['EarlyStopping\(loss\)', 'EarlyStopping\(accuracy\)'\], expected \['EarlyStopping\(accuracy"
    )
    with pytest.raises(ValueError, match=expected):
        trainer().fit(X, Y, checkpoint=path, callbacks=watch[::-1], **options)
    description, tensors = resume.files.read(path, "pyoptim-training-1")
    description["callbacks"] = [["EarlyStopping", plain] for _, plain in description["callbacks"]]
    resume.files.write(path, description, tensors)  # as older versions wrote them
    trainer().fit(X, Y, checkpoint=path, callbacks=watch, **options)
    assert [callback.best for callback in watch] == best
