"""The callbacks that write for TensorBoard and MLflow, with these libraries."""

import struct
import sys
from contextlib import nullcontext

import numpy as np
import pytest

import pyoptim as po
from pyoptim import callbacks, nn

X = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


class Killed(Exception):
    pass


class Stop(callbacks.Callback):
    """Ends a training like a kill, after an epoch was written and before its checkpoint."""

    def __init__(self, after):
        self.after = after

    def on_epoch_end(self, epoch, logs):
        if epoch == self.after:
            raise Killed


def trainer():
    model = nn.Sequential(nn.Dense(5, 4, activation="relu"), nn.Dense(4, 2), seed=0)
    return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=0.1), seed=0)


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


def test_tensorboard_refuses_a_file(tmp_path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "logs").write_text("")
    with pytest.raises(ValueError, match="which is no folder"):
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
