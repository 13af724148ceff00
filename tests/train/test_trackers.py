"""The callbacks that write for TensorBoard and MLflow, with these libraries."""

import os
import shutil
import struct
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from support.stopped import Killed, Stop

import pyoptim as po
from pyoptim import callbacks, nn

X = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def trainer(**options):
    model = nn.Sequential(nn.Dense(5, 4, activation="relu"), nn.Dense(4, 2), seed=0)
    return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.1), seed=0, **options)


def fit(mine, callback, stop=None, **options):
    options = {"epochs": 4, "batch_size": 16, "verbose": False, "validation_data": (X, Y), **options}
    with pytest.raises(Killed) if stop is not None else nullcontext():
        return mine.fit(X, Y, callbacks=[callback, Stop(stop)], **options)


@pytest.mark.parametrize(("kind", "module"), [("TensorBoard", "tensorboardX"), ("MLflow", "mlflow")])
def test_the_extra_is_named_before_the_first_step(kind, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    mine = trainer()
    callback = callbacks.TensorBoard("logs") if kind == "TensorBoard" else callbacks.MLflow()
    with pytest.raises(ImportError, match=rf"{kind} needs .*pyoptim\[{kind.lower()}\]"):
        fit(mine, callback)
    assert mine.optimizer.epoch == 0
    assert not list(tmp_path.iterdir())


def curves(folder):
    """What TensorBoard shows of a folder: name -> {step: value}."""
    from tensorboardX.proto.event_pb2 import Event

    shown = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # each event stands between its size, a checksum of that, and one of its own
            size = struct.unpack_from("<Q", data, at)[0]
            event, at = Event.FromString(data[at + 12 : at + 12 + size]), at + size + 16
            if event.HasField("session_log"):  # from here on, the steps from this one on are written again
                shown = {tag: {k: v for k, v in of.items() if k < event.step} for tag, of in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def assert_shows(folder, *histories):
    for part, prefix in (("train", ""), ("validation", "val_")):
        shown = curves(folder / part)
        assert set(shown) == {"loss", "accuracy"} | ({"seconds"} if part == "train" else set())
        for name in ("loss", "accuracy"):
            expected = [value for history in histories for value in history[prefix + name]]
            assert shown[name] == pytest.approx(dict(enumerate(expected)), rel=1e-6)


def test_tensorboard_shows_each_training_once(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "new" / "logs"
    board = callbacks.TensorBoard(folder)
    fit(trainer(), board, stop=2)  # what it leaves is replaced
    mine = trainer()
    histories = [fit(mine, board, epochs=2)]
    histories.append(fit(mine, board, epochs=3))  # which goes on
    assert_shows(folder, *histories)


def test_tensorboard_goes_on_with_a_training(tmp_path):
    pytest.importorskip("tensorboardX")
    run = {"checkpoint": tmp_path / "run", "checkpoint_every": 0}
    fit(trainer(), callbacks.TensorBoard(tmp_path / "logs"), stop=2, **run)
    history = fit(trainer(), callbacks.TensorBoard(tmp_path / "logs"), **run)
    assert len(history["loss"]) == 4
    assert_shows(tmp_path / "logs", history)


def test_tensorboard_keeps_the_epochs_of_a_killed_training(tmp_path):
    pytest.importorskip("tensorboardX")

    class Kill(callbacks.Callback):
        def on_epoch_begin(self, epoch):
            if epoch == 2:
                shutil.copytree(tmp_path / "now", tmp_path / "then")  # what a kill would leave of it

    def train(folder):
        last = {"callbacks": [callbacks.TensorBoard(folder / "logs"), Kill()], "checkpoint_every": 0}
        run = {"checkpoint": folder / "run", "epochs": 4, "batch_size": 16, "verbose": False, **last}
        return trainer().fit(X, Y, validation_data=(X, Y), **run)

    (tmp_path / "now").mkdir()
    train(tmp_path / "now")
    (tmp_path / "now").rename(tmp_path / "gone")
    (tmp_path / "then").rename(tmp_path / "now")
    assert_shows(tmp_path / "now" / "logs", train(tmp_path / "now"))


def test_tensorboard_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    waits = []
    monkeypatch.setattr(os, "fsync", waits.append)
    fit(trainer(), callbacks.TensorBoard(tmp_path))
    assert not waits


def test_tensorboard_hides_the_curves_that_a_new_training_does_not_have(tmp_path):
    pytest.importorskip("tensorboardX")
    fit(trainer(), callbacks.TensorBoard(tmp_path))
    fit(trainer(), callbacks.TensorBoard(tmp_path), epochs=2, validation_data=None)
    assert list(curves(tmp_path / "train")["loss"]) == [0, 1]
    assert not any(curves(tmp_path / "validation").values())


def test_tensorboard_refuses_a_file(tmp_path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "logs").write_text("")
    with pytest.raises(ValueError, match="which is a file, expected a folder"):
        fit(trainer(), callbacks.TensorBoard(tmp_path / "logs"))


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    found = pytest.importorskip("mlflow")
    before = found.get_tracking_uri()
    found.set_tracking_uri((tmp_path / "runs").as_uri())
    yield found
    found.set_tracking_uri(before)


def assert_logged(mlflow, run_id, history):
    for name in ("loss", "val_accuracy"):
        logged = mlflow.MlflowClient().get_metric_history(run_id, name)
        assert [(value.step, value.value) for value in logged] == list(enumerate(history[name]))


@pytest.mark.filterwarnings("ignore")  # of the library about itself
def test_mlflow_has_a_run_for_each_training(mlflow):
    callback = callbacks.MLflow()
    runs = []
    for _ in range(2):
        history = fit(trainer(), callback)
        assert_logged(mlflow, callback.run_id, history)
        runs.append(mlflow.get_run(callback.run_id))
    assert runs[0].info.run_id != runs[1].info.run_id
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.params.items() >= {"optimizer": "SGD", "lr": "0.1"}.items()
    assert mlflow.active_run() is None
    fit(trainer(), callback, stop=0)
    assert mlflow.get_run(callback.run_id).info.status == "FAILED"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_leaves_a_run_of_the_user_open(mlflow):
    callback = callbacks.MLflow()
    with mlflow.start_run() as run:
        history = fit(trainer(), callback)
        assert mlflow.active_run().info.run_id == run.info.run_id == callback.run_id
        other = mlflow.MlflowClient().create_run("0").info.run_id
        assert_logged(mlflow, other, fit(trainer(), callbacks.MLflow(other)))
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert_logged(mlflow, run.info.run_id, history)
    assert not mlflow.get_run(run.info.run_id).data.params


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_with_a_run(mlflow, tmp_path):
    run = {"checkpoint": tmp_path / "run", "checkpoint_every": 0}
    first, second = callbacks.MLflow(), callbacks.MLflow()
    fit(trainer(), first, stop=2, **run)
    history = fit(trainer(), second, **run)
    assert second.run_id == first.run_id
    assert_logged(mlflow, second.run_id, history)
    assert mlflow.get_run(second.run_id).info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_with_one_of_two_trainings_in_a_run(mlflow, tmp_path):
    run = {"checkpoint": tmp_path / "run", "checkpoint_every": 0}
    with mlflow.start_run() as active:
        fit(trainer(), callbacks.MLflow(), epochs=6)
        fit(trainer(), callbacks.MLflow(), stop=2, **run)
        fit(trainer(), callbacks.MLflow(), **run)
    logged = mlflow.MlflowClient().get_metric_history(active.info.run_id, "loss")
    assert sorted(value.step for value in logged) == sorted([*range(6), *range(4)])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mlflow_says_that_a_checkpoint_has_another_run(mlflow, tmp_path):
    run = {"checkpoint": tmp_path / "run", "checkpoint_every": 0}
    first = callbacks.MLflow()
    fit(trainer(), first, stop=2, **run)
    other = mlflow.MlflowClient().create_run("0").info.run_id
    with pytest.raises(ValueError, match=f"run_id is '{other}', but .* logs to run '{first.run_id}'"):
        fit(trainer(), callbacks.MLflow(other), **run)
    assert mlflow.active_run() is None
    second = callbacks.MLflow()
    with mlflow.start_run() as active:
        with pytest.warns(UserWarning, match=f"'{first.run_id}' .* active run '{active.info.run_id}'"):
            history = fit(trainer(), second, **run)
        assert mlflow.active_run().info.run_id == active.info.run_id
    assert_logged(mlflow, first.run_id, history)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_leaves_no_run_open_that_it_cannot_describe(mlflow, monkeypatch):
    def fails(parameters):
        raise OSError("no network")

    monkeypatch.setattr(mlflow, "log_params", fails)
    callback = callbacks.MLflow()
    with pytest.raises(OSError, match="no network"):
        fit(trainer(), callback)
    assert mlflow.active_run() is None
    assert mlflow.get_run(callback.run_id).info.status == "FAILED"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_ends_its_own_run_alone(mlflow):
    class Begin(callbacks.Callback):
        def on_train_begin(self):
            self.run_id = mlflow.start_run(nested=True).info.run_id

    callback, begin = callbacks.MLflow(), Begin()
    trainer().fit(X, Y, epochs=1, verbose=False, callbacks=[callback, begin])
    assert mlflow.active_run().info.run_id == begin.run_id
    assert mlflow.get_run(callback.run_id).info.status == "FINISHED"
    assert mlflow.get_run(begin.run_id).info.status == "RUNNING"
    while mlflow.active_run() is not None:
        mlflow.end_run()


@pytest.mark.filterwarnings("ignore")
def test_a_metric_of_any_name_is_tracked(mlflow, tmp_path):
    pytest.importorskip("tensorboardX")
    callback = callbacks.MLflow()
    mine = trainer(metrics=[lambda targets, outputs: 0.5])
    everything = [callback, callbacks.TensorBoard(tmp_path / "logs")]
    history = mine.fit(X, Y, epochs=2, verbose=False, validation_data=(X, Y), callbacks=everything)
    assert history["val_<lambda>"] == [0.5, 0.5]
    assert mlflow.get_run(callback.run_id).data.metrics["val__lambda_"] == 0.5
    assert curves(tmp_path / "logs" / "validation")["_lambda_"] == {0: 0.5, 1: 0.5}
