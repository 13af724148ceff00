"""Callbacks, metrics, transforms, and what else `Trainer.fit` takes around its epochs."""

import csv
import functools
import math
import os

import numpy as np
import pytest

import pyoptim as po
from pyoptim import callbacks, metrics, nn, transforms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def trainer(lr=0.1, **options):
    model = nn.Sequential(nn.Dense(5, 8, activation="relu"), nn.Dense(8, 2), seed=0)
    return po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters(), lr=lr), seed=0, **options)


def played(callback, values, name="val_loss", lr=1.0):
    """What a callback does when the monitored value takes these values; stops where it stops."""
    mine = trainer(lr)
    callback.trainer = mine
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {name: value})
        rates.append(mine.optimizer.param_groups[0]["lr"])
        if mine.stop_training:
            break
    return rates


class Recorder(callbacks.Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self):
        self.calls.append("train")

    def on_epoch_begin(self, epoch):
        self.calls.append(("begin", epoch))

    def on_epoch_end(self, epoch, logs):
        self.calls.append(("end", epoch, sorted(logs)))

    def on_train_end(self):
        self.calls.append("done")


class OnBatches(Recorder):
    def on_batch_begin(self, batch):
        self.calls.append(("batch", batch))

    def on_batch_end(self, batch, logs):
        self.calls.append(("batch end", batch, sorted(logs)))


def test_hooks_come_in_keras_order_and_epochs_go_on_counting():
    mine, recorder, batches = trainer(), Recorder(), OnBatches()
    mine.fit(X, Y, epochs=2, validation_split=0.25, callbacks=[recorder], verbose=False)
    names = ["accuracy", "loss", "seconds", "val_accuracy", "val_loss"]
    assert recorder.calls == [
        "train", ("begin", 0), ("end", 0, names), ("begin", 1), ("end", 1, names), "done",
    ]  # fmt: skip
    history = mine.fit(X, Y, batch_size=30, callbacks=[batches], verbose=False)
    assert history.path == "python"
    assert "every batch" in history.reason
    assert batches.calls == [
        "train", ("begin", 2), ("batch", 0), ("batch end", 0, ["loss"]), ("batch", 1),
        ("batch end", 1, ["loss"]), ("end", 2, ["accuracy", "loss", "seconds"]), "done",
    ]  # fmt: skip


def test_batch_callbacks_do_not_change_the_bits():
    one, other = trainer(), trainer()
    one.fit(X, Y, epochs=2, batch_size=7, verbose=False)
    other.fit(X, Y, epochs=2, batch_size=7, callbacks=[OnBatches()], verbose=False)
    assert np.array_equal(one.model.flat_parameters, other.model.flat_parameters)


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([3, 2, 1, 0], {}, 4),
        ([3, 2, 2, 1], {}, 3),
        ([3, 4, 4, 1], {"patience": 2}, 3),
        ([3, 4, 2, 4, 4, 0], {"patience": 2}, 5),
        ([3, 2.9, 2.8, 0], {"min_delta": 0.15, "patience": 1}, 2),
        ([3, 2, 1], {"baseline": 0.5}, 3),
        ([3, 2, 2.5, 1], {"baseline": 0.5}, 3),
        ([3, 2, 2.5, 1], {"baseline": 2.5}, 3),
        ([0.9, 0.8, 0.7, 0.71, 0.72, 0.73], {"baseline": 0.5, "patience": 2}, 4),
        ([1, 2, 3, 4, 5], {"mode": "max"}, 5),
        ([1, math.nan, 3], {}, 2),
        ([1, 2, 3, 2], {"start_from_epoch": 2}, 4),
        ([1, 2, 3, 4], {"start_from_epoch": 2}, 4),
        ([math.nan, 2, 3], {}, 3),
        ([math.nan, math.nan, 3], {"patience": 1}, 2),
    ],
)
def test_early_stopping(values, options, epochs):
    assert len(played(callbacks.EarlyStopping(**options), values)) == epochs


def keras_stops(values, patience, baseline, min_delta, begin):
    """The epochs that Keras's EarlyStopping runs, and the one whose weights it leaves."""
    best, waited, kept = math.inf, 0, None
    for epoch, value in enumerate(values):
        if epoch < begin:
            continue
        kept = epoch if kept is None else kept
        waited += 1
        if value + min_delta < best:
            best, kept = value, epoch
            if baseline is None or value + min_delta < baseline:
                waited = 0
        elif waited >= patience and epoch > 0:
            return epoch + 1, kept
    return len(values), kept


def test_early_stopping_is_keras_s():
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = np.round(np.linspace(1, 0.5, 12) + rng.normal(size=12) / 4, 2)
        values[rng.random(12) < 0.1] = math.nan
        options = {
            "patience": int(rng.integers(4)),
            "baseline": rng.choice([None, 0.6, 0.3]),
            "min_delta": float(rng.choice([0, 0.1])),
        }
        begin = int(rng.integers(3))
        stop = callbacks.EarlyStopping(start_from_epoch=begin, restore_best_weights=True, **options)
        mine, weights = trainer(), []
        stop.trainer = mine
        stop.on_train_begin()
        for epoch, value in enumerate(values):
            mine.model.flat_parameters[...] = epoch
            weights.append(epoch)
            stop.on_epoch_end(epoch, {"val_loss": value})
            if mine.stop_training:
                break
        stop.on_train_end()
        epochs, kept = keras_stops(values, begin=begin, **options)
        assert len(weights) == epochs
        assert mine.model.flat_parameters[0] == kept


def test_early_stopping_gives_the_best_weights_back():
    mine, seen = trainer(), []

    class Spoil(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(mine.model.flat_parameters.copy())
            logs["val_loss"] = [1.0, 0.5, 2.0, 3.0][epoch]

    stop = callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    history = mine.fit(X, Y, epochs=9, callbacks=[Spoil(), stop], verbose=False)
    assert len(history["loss"]) == 4
    assert stop.stopped_epoch == 3
    assert np.array_equal(mine.model.flat_parameters, seen[1])


def keras_rates(values, patience, cooldown, min_lr, min_delta, factor):
    """The learning rates that Keras's ReduceLROnPlateau leaves after each epoch, from 1 on."""
    best, waited, cooling, lr, rates = math.inf, 0, 0, 1.0, []
    for value in values:
        if cooling:
            cooling, waited = cooling - 1, 0
        if value < best - min_delta:
            best, waited = value, 0
        elif not cooling:
            waited += 1
            if waited >= patience and lr > min_lr:
                lr, cooling, waited = max(lr * factor, min_lr), cooldown, 0
        rates.append(lr)
    return rates


def test_reduce_on_plateau_can_be_keras_s():
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = np.round(np.linspace(1, 0.7, 25) + rng.normal(size=25) / 20, 2)
        patience, cooldown = (int(n) for n in rng.integers(4, size=2))
        options = {"factor": 0.5, "min_lr": 0.05, "min_delta": float(rng.choice([0, 0.05]))}
        own = callbacks.ReduceLROnPlateau(
            patience=max(patience - 1, 0), cooldown=max(cooldown - 1, 0), **options
        )
        assert played(own, values) == keras_rates(values, patience, cooldown, **options)


@pytest.mark.parametrize("relative", [False, True])
def test_reduce_on_plateau_is_torchs(relative):
    torch = pytest.importorskip("torch")
    values = [5, 4, 4.1, 4.2, 3.99999, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 2.5, 2.5, 2.5, 2.5, 2.5]
    options = {"factor": 0.5, "patience": 2, "cooldown": 1, "min_lr": 0.1}
    mode = "relative" if relative else "absolute"
    rates = played(callbacks.ReduceLROnPlateau(**options, threshold_mode=mode, min_delta=1e-4), values)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs, **options, threshold=1e-4, threshold_mode=mode[:3], eps=0
    )
    expected = []
    for value in values:
        scheduler.step(value)
        expected.append(theirs.param_groups[0]["lr"])
    assert rates == expected
    assert len(set(rates)) > 3


def test_reduce_on_small_change_and_scheduler():
    small = callbacks.ReduceLROnSmallChange(0.2, factor=0.5)
    assert played(small, [3, 2, 1.9, 1, 0.9, 0.95], "loss") == [1, 1, 0.5, 0.5, 0.25, 0.125]
    assert played(callbacks.LearningRateScheduler(lambda e: 1 / (1 + e)), [0] * 3) == [1, 1 / 2, 1 / 3]
    assert played(callbacks.LearningRateScheduler(lambda e, lr: lr / 2), [0] * 3) == [0.5, 0.25, 0.125]


MONITORS = [
    lambda **options: callbacks.EarlyStopping(**options),
    lambda **options: callbacks.ReduceLROnPlateau(patience=0, factor=0.5, **options),
    lambda **options: callbacks.ModelCheckpoint("{epoch}.safetensors", save_best_only=True, **options),
]


def smaller_is_better(targets, outputs):
    return 0.0


smaller_is_better.greater_is_better = False


class Larger:
    greater_is_better = True

    def __call__(self, targets, outputs):
        return 0.0


def unknown(targets, outputs):
    return 0.0


def r2_score(targets, outputs, weight):
    return 0.0


def nothing_score(targets, outputs):
    return 0.0


nothing_score.greater_is_better = False  # a metric knows better than its name


@pytest.mark.parametrize("make", MONITORS)
@pytest.mark.parametrize("prefix", ["", "val_"])
@pytest.mark.parametrize(
    ("metric", "name", "more"),
    [
        (None, "loss", False),
        (None, "accuracy", True),
        (metrics.precision, "precision", True),
        (metrics.recall, "recall", True),
        (metrics.f_score, "f_score", True),
        (metrics.TopK(3), "top_3", True),
        (smaller_is_better, "smaller_is_better", False),
        (nothing_score, "nothing_score", False),
        (Larger(), "Larger", True),
        (functools.partial(r2_score, weight=1), "partial", True),
        (None, "mean_squared_error", False),
        (None, "my_loss_of_things", False),
        (None, "balanced_accuracy", True),
        (None, "rmse", False),
    ],
)
def test_a_metric_says_which_way_is_better(make, prefix, metric, name, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback, mine = make(monitor=prefix + name), trainer(metrics=[] if metric is None else [metric])
    callback.trainer = mine
    callback.on_train_begin()
    for epoch, value in enumerate([0.6, 0.7, 0.5, math.nan] if more else [0.6, 0.5, 0.7, math.nan]):
        callback.on_epoch_end(epoch, {prefix + name: value})
    assert callback.best == (0.7 if more else 0.5)


@pytest.mark.parametrize("make", MONITORS)
def test_a_metric_that_does_not_say_which_way_is_better(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"validation_data": (X, Y), "verbose": False}
    for mine in (trainer(metrics=[unknown]), trainer()):
        with pytest.raises(ValueError, match=r"monitor is 'val_unknown', which does not say .*mode='min'"):
            mine.fit(X, Y, callbacks=[make(monitor="val_unknown")], **data)
        assert mine.optimizer.epoch == 0
    mine = trainer(metrics=[unknown])
    for mode in ("min", "max"):
        mine.fit(X, Y, callbacks=[make(monitor="val_unknown", mode=mode)], **data)
    # What is not asked for needs no answer.
    mine.fit(X, Y, callbacks=[callbacks.ModelCheckpoint("x.safetensors", monitor="val_unknown")], **data)


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (lambda: callbacks.EarlyStopping(patience=2), [0.5, 0.6]),
        (lambda: callbacks.EarlyStopping(patience=2, start_from_epoch=2, baseline=0.9), [0.5, 0.6]),
        (lambda: callbacks.EarlyStopping("val_accuracy", patience=2), [0.5, 0.4]),
        (lambda: callbacks.ReduceLROnPlateau(patience=1, cooldown=3, factor=0.5), [0.1] + [0.2] * 3),
        (lambda: callbacks.ReduceLROnPlateau("val_accuracy", patience=1, factor=0.5), [0.9, 0.1]),
        (lambda: callbacks.ReduceLROnSmallChange(0.2, monitor="val_loss"), [0.95]),
    ],
)
def test_a_second_fit_begins_anew(make, first):
    values = [1.0, 1.1, 0.9, 0.95, 1.2, 0.95, 1.0, 0.7, 0.95]
    used = make()
    name = used.monitor
    played(used, first, name)
    assert played(used, values, name) == played(make(), values, name)


def test_a_second_fit_of_one_trainer_begins_anew():
    stop, mine = callbacks.EarlyStopping("loss", min_delta=1e9, patience=3, start_from_epoch=2), trainer()
    epochs = [len(mine.fit(X, Y, epochs=9, callbacks=[stop], verbose=False)["loss"]) for _ in range(2)]
    assert epochs == [6, 6]
    assert stop.stopped_epoch == 11


def test_what_is_kept_of_a_model_stays_with_the_model(tmp_path):
    path = tmp_path / "best.safetensors"
    best = callbacks.ModelCheckpoint(path, save_best_only=True)
    seen = callbacks.ActivationStatistics(X, layer=1)
    mine, worse = trainer(), trainer(lr=0.0)
    options = {"validation_data": (X, Y), "callbacks": [best, seen], "verbose": False}
    mine.fit(X, Y, epochs=4, **options)
    kept = nn.Sequential.load(path)(X)
    mine.optimizer.param_groups[0]["maximize"] = True
    mine.fit(X, Y, epochs=2, **options)  # only worse
    assert np.array_equal(nn.Sequential.load(path)(X), kept)
    assert seen.steps == list(range(7))
    worse.fit(X, Y, epochs=1, **options)
    assert np.array_equal(nn.Sequential.load(path)(X), worse.predict(X))
    assert seen.steps == [0, 1]


def test_checkpoints(tmp_path):
    mine = trainer()
    each = callbacks.ModelCheckpoint(tmp_path / "m-{epoch:02d}-{loss:.1f}.safetensors", every=2)
    best = callbacks.ModelCheckpoint(tmp_path / "best.safetensors", monitor="loss", save_best_only=True)
    mine.fit(X, Y, epochs=4, callbacks=[each, best], verbose=False)
    assert sorted(p.name[:5] for p in tmp_path.iterdir()) == ["best.", "m-02-", "m-04-"]
    assert np.array_equal(nn.Sequential.load(tmp_path / "best.safetensors")(X), mine.predict(X))
    before = best.best
    best.on_epoch_end(4, {"loss": before + 1})
    assert best.best == before
    with pytest.raises(ValueError, match="but an epoch measures"):
        mine.fit(X, Y, callbacks=[callbacks.ModelCheckpoint("{val_loss}.x")], verbose=False)


def test_csv_logger_appends_lines_of_the_same_columns(tmp_path):
    path = tmp_path / "log.csv"
    mine = trainer()
    mine.fit(X, Y, epochs=2, callbacks=[callbacks.CSVLogger(path)], verbose=False)
    mine.fit(X, Y, validation_data=(X, Y), callbacks=[callbacks.CSVLogger(path, append=True)], verbose=False)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["loss"]) > 0 for row in rows)


@pytest.mark.parametrize(
    "content",
    [b"loss,epoch\n1,0\n", b"epoch,loss\n0,1\nx,2\n", b"\xff\xfe\n", b"# notes\n", b"epoch;loss\n0;1\n"],
)
@pytest.mark.parametrize("append", [True, False])
def test_csv_logger_adds_to_no_file_of_another_kind(content, append, tmp_path):
    path, first = tmp_path / "log.csv", tmp_path / "first.csv"
    path.write_bytes(content)
    checkpoint = tmp_path / "run" if not append else None
    logs = [callbacks.CSVLogger(first), callbacks.CSVLogger(path, append=append)]
    if checkpoint:
        more = [callbacks.CSVLogger(first), callbacks.CSVLogger(tmp_path / "other.csv")]
        trainer().fit(X, Y, epochs=1, callbacks=more, checkpoint=checkpoint, verbose=False)
    mine = trainer()
    with pytest.raises(ValueError, match=r"path is '.*log.csv', which is no log of epochs separated by ','"):
        mine.fit(X, Y, epochs=2, callbacks=logs, checkpoint=checkpoint, verbose=False)
    assert path.read_bytes() == content
    assert append is not first.exists()
    assert np.array_equal(mine.model.flat_parameters, trainer().model.flat_parameters)


@pytest.mark.parametrize("writers", ["two logs", "two models", "a log and a checkpoint"])
def test_two_writers_of_one_file_are_refused(writers, tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    if writers == "two logs":
        chosen, checkpoint = [callbacks.CSVLogger(path), callbacks.CSVLogger(link)], None
    elif writers == "two models":
        chosen, checkpoint = (
            [callbacks.ModelCheckpoint(str(path)), callbacks.ModelCheckpoint(str(link))],
            None,
        )
    else:
        chosen, checkpoint = [callbacks.CSVLogger(link)], path
    mine = trainer()
    with pytest.raises(
        ValueError, match=r"writes to '.*link', as (CSVLogger|ModelCheckpoint|checkpoint) does"
    ):
        mine.fit(X, Y, callbacks=chosen, checkpoint=checkpoint, verbose=False)
    assert not path.exists()
    assert np.array_equal(mine.model.flat_parameters, trainer().model.flat_parameters)
    mine.fit(
        X, Y, callbacks=[callbacks.CSVLogger(os.devnull), callbacks.CSVLogger(os.devnull)], verbose=False
    )


@pytest.mark.parametrize("ending", [b"\r\n", b""])
def test_csv_logger_adds_whole_lines(ending, tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"epoch,loss\r\n7,1" + ending)  # a writer that was killed may have left no end of line
    trainer().fit(X, Y, callbacks=[callbacks.CSVLogger(path, append=True)], verbose=False)
    assert [line.split(b",")[0] for line in path.read_bytes().split()] == [b"epoch", b"7", b"0"]


def test_terminate_on_nan():
    mine = trainer(lr=1e30)
    with np.errstate(all="ignore"):
        history = mine.fit(X, Y, epochs=9, callbacks=[callbacks.TerminateOnNaN()], verbose=False)
    assert len(history["loss"]) < 9


def test_activation_statistics():
    mine = trainer()
    whole = callbacks.ActivationStatistics(X, layer=1)
    unit = callbacks.ActivationStatistics(X, layer=-1, unit=3, percentiles=[50], every=4)
    hidden = mine.model.layers[0].forward(X, False)
    history = mine.fit(X, Y, epochs=2, batch_size=10, callbacks=[whole, unit], verbose=False)
    assert history.path == "python"
    assert (whole.steps, unit.steps) == ([0, 1, 2], [0, 4, 8, 12])
    np.testing.assert_array_equal(whole.values[0], np.percentile(hidden, (15, 50, 85)))
    np.testing.assert_array_equal(unit.values[0], np.percentile(hidden[:, 3], [50]))
    assert not np.array_equal(whole.values[0], whole.values[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: callbacks.EarlyStopping(patience=-1), "patience is -1"),
        (lambda: callbacks.EarlyStopping(baseline="x"), "baseline is 'x', expected a finite number"),
        (lambda: callbacks.EarlyStopping(mode="less"), "mode is 'less'"),
        (lambda: callbacks.ReduceLROnPlateau(factor=1.5), "factor is 1.5"),
        (lambda: callbacks.ReduceLROnPlateau(threshold_mode="abs"), "threshold_mode is 'abs'"),
        (lambda: callbacks.ModelCheckpoint("x", every=0), "every is 0"),
        (lambda: callbacks.ActivationStatistics(X, 0, percentiles=[200]), "percentiles"),
        (lambda: metrics.TopK(0), "k is 0"),
        (lambda: metrics.coverage(Y, np.ones((60, 2)), 2), "threshold is 2"),
        (lambda: metrics.accuracy(Y, np.ones((59, 2))), "expected one per output"),
        (lambda: metrics.TopK(1)([5], np.ones((1, 2))), "expected 0 to 1"),
        (lambda: metrics.recall([0.5], np.ones(1)), "expected class indices"),
        (lambda: transforms.Shift(-1), "pixels is -1"),
        (lambda: transforms.Flip(2), "p is 2"),
        (lambda: transforms.Crop(0), "share is 0"),
        (lambda: transforms.Mixup(0), "alpha is 0"),
        (lambda: transforms.Flip(1, (0, 1, 1)), "shape is"),
        (lambda: transforms.Flip(1)(X, Y, RNG), "give shape="),
        (lambda: transforms.Flip(1, (1, 2, 2))(X, Y, RNG), "expected examples of shape"),
        (lambda: transforms.Mixup()(X, Y, RNG), "expected real targets"),
        (lambda: trainer(metrics=["accuracies"]), "metrics\\[0\\]"),
        (lambda: trainer(metrics=[metrics.recall] * 2), "expected each once"),
        (lambda: trainer().fit(X, Y, callbacks=callbacks.TerminateOnNaN()), "expected a list"),
        (lambda: trainer().fit(X, Y, transform=lambda *a: None, verbose=False), "returned a NoneType"),
        (lambda: trainer().fit(X, Y, validation_split=1), "validation_split is 1"),
        (lambda: trainer().fit(X, Y, validation_split=0.001), "leaves 60 of 60"),
        (lambda: trainer().fit(X, Y, validation_split=0.5, validation_data=(X, Y)), "one of them"),
        (lambda: trainer().fit(X, Y, weight_noise=-1), "weight_noise is -1"),
        (lambda: trainer().fit(X, Y, callbacks=[print]), "callbacks\\[0\\] is a builtin"),
        (lambda: trainer().fit(X, Y, transform=lambda x, y, r: (x[1:], y), verbose=False), "transform ret"),
        (lambda: trainer().fit(X, Y, callbacks=[callbacks.EarlyStopping()], verbose=False), "monitor is"),
        (
            lambda: trainer(po.schedules.Constant(1.0)).fit(
                X, Y, callbacks=[callbacks.ReduceLROnPlateau()], verbose=False
            ),
            "expected a number for ReduceLROnPlateau",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_validation_split_holds_back_the_last():
    mine, other = trainer(), trainer()
    split = mine.fit(X, Y, epochs=2, validation_split=0.25, verbose=False)
    given = other.fit(X[:45], Y[:45], epochs=2, validation_data=(X[45:], Y[45:]), verbose=False)
    for name in ("loss", "val_loss", "val_accuracy"):
        assert split[name] == given[name]


def test_metrics_are_measured_and_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    mine = trainer(metrics=[metrics.accuracy, metrics.TopK(2), metrics.f_score])
    history = mine.fit(X, Y, epochs=3, validation_data=(X, Y), verbose=False)
    found = mine.evaluate(X, Y)
    assert found["top_2"] == 1
    assert found["f_score"] == history["val_f_score"][-1]
    outputs = mine.predict(X)
    chosen = outputs.argmax(1)
    assert metrics.accuracy(Y, outputs) == found["accuracy"] == metrics.accuracy(Y, chosen)
    assert metrics.recall(Y, outputs) == sklearn.recall_score(Y, chosen, average="macro")
    assert metrics.precision(Y, outputs) == sklearn.precision_score(Y, chosen, average="macro")
    np.testing.assert_array_equal(metrics.confusion_matrix(Y, outputs), sklearn.confusion_matrix(Y, chosen))
    p, r, t = metrics.precision_recall_curve(Y, outputs[:, 1])
    assert len(p) == len(r) == len(t) + 1


def test_top_k_of_outputs_that_say_nothing():
    for outputs in (np.full((4, 4), np.nan), np.zeros((4, 4))):
        found = metrics.TopK(1)(np.arange(4), outputs)
        assert found == (0 if np.isnan(outputs).any() else metrics.accuracy(np.arange(4), outputs))


class Failing(Recorder):
    """Raises an exception in a hook, after it has noted the call."""

    def __init__(self, hook, error):
        super().__init__()
        setattr(self, hook, self.fail)
        self.error = error

    def fail(self, *_):
        self.calls.append("fails")
        raise self.error


@pytest.mark.parametrize("engine", ["auto", "python"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end"])
def test_every_callback_that_has_begun_is_told_of_the_end(hook, error, engine):
    mine, before, failing, after = trainer(), Recorder(), Failing(hook, error), Recorder()
    with pytest.raises(type(error)) as raised:
        mine.fit(X, Y, epochs=2, callbacks=[before, failing, after], verbose=False, engine=engine)
    assert raised.value is error
    assert before.calls[0] == "train"
    assert before.calls[-1] == "done"
    assert before.calls.count("done") == 1
    if hook == "on_train_begin":  # the end is only for those that have begun
        assert failing.calls == ["fails"]
        assert after.calls == []
    else:
        assert failing.calls.count("fails") == 1
        assert (failing.calls[-1] == "done") is (hook != "on_train_end")
        assert after.calls[-1] == "done"
    assert mine.interrupted is (hook != "on_train_end")
    assert not mine.model.training
    mine.fit(X, Y, callbacks=[before], verbose=False)
    assert not mine.interrupted


def test_an_error_and_one_at_the_end_are_both_seen():
    first, second = ZeroDivisionError("first"), OSError("second")
    failing = Failing("on_epoch_end", first), Failing("on_train_end", second)
    with pytest.raises(OSError, match="second") as raised:
        trainer().fit(X, Y, callbacks=failing, verbose=False)
    assert raised.value.__context__ is first


def test_an_interrupted_training_leaves_the_model_as_it_is():
    """The best weights are those of a training that ends by itself."""
    mine = trainer()
    stop = callbacks.EarlyStopping("loss", patience=5, restore_best_weights=True)
    worst = iter([1.0, 2.0])
    stop._value = lambda logs: next(worst)  # the second epoch is not the best
    seen = []

    class Interrupt(callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(self.trainer.model.flat_parameters.copy())
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine.fit(X, Y, epochs=5, callbacks=[stop, Interrupt()], verbose=False)
    assert np.array_equal(mine.model.flat_parameters, seen[1])
    assert not np.array_equal(seen[0], seen[1])


def test_a_reduced_rate_is_never_larger():
    rates = played(callbacks.ReduceLROnPlateau(patience=0, min_lr=1e-3), [1, 1, 1, 1], lr=1e-5)
    assert rates == [1e-5] * 4


@pytest.mark.parametrize("engine_name", ["auto", "python"])
def test_what_callbacks_change_is_seen(engine_name):
    class Change(callbacks.Callback):
        def on_train_begin(self):
            self.ema = po.averages.EMA(self.trainer.optimizer, 0.5)

        def on_epoch_begin(self, epoch):
            self.trainer.optimizer.param_groups[0]["lr"] = 0.1 / (1 + epoch)

    change, mine = Change(), trainer()
    mine.fit(X, Y, epochs=2, batch_size=20, callbacks=[change], verbose=False, engine=engine_name)
    assert change.ema.count == 6


def test_top_k_and_coverage_by_hand():
    outputs = np.log([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.3, 0.6]])
    assert metrics.TopK(1)([0, 1, 0], outputs) == pytest.approx(1 / 3)
    assert metrics.TopK(2)([0, 1, 0], outputs) == pytest.approx(2 / 3)
    assert metrics.coverage([0, 1, 0], outputs, 0.5) == (pytest.approx(2 / 3), 0.5)
    answered, right = metrics.coverage([0, 1, 0], outputs, 0.9)
    assert answered == 0
    assert math.isnan(right)


IMAGES = RNG.normal(size=(40, 2, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "transform",
    [
        transforms.Shift(2),
        transforms.Flip(0.5),
        transforms.Crop(0.5),
        transforms.Rotate(30),
        transforms.CutMix(),
    ],
    ids=lambda t: type(t).__name__,
)
def test_transforms_keep_shape_dtype_and_what_they_are_given(transform, flat):
    if isinstance(transform, transforms.Rotate):
        pytest.importorskip("scipy")
    x = IMAGES.reshape(40, -1).copy() if flat else IMAGES.copy()
    y = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    transform.shape = (2, 6, 5) if flat else None
    new, target = transform(x, y, np.random.default_rng(0))
    transform.shape = None
    again, _ = transform(IMAGES, y, np.random.default_rng(0))
    assert (new.shape, new.dtype) == (x.shape, x.dtype)
    assert np.array_equal(new.reshape(IMAGES.shape), again)
    assert np.array_equal(x.reshape(IMAGES.shape), IMAGES)
    assert not np.array_equal(new, x)
    np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
    if not isinstance(transform, transforms.CutMix):
        assert target is y


@pytest.mark.parametrize("loss", [nn.KLDiv(2.0, from_logits=True), nn.CrossEntropy(), nn.MSE()])
def test_a_transform_that_changes_nothing_changes_nothing(loss):
    """Targets are converted once: the teacher's logits are probabilities when a transform sees them."""
    targets = RNG.normal(size=(60, 2)) * 4 if not loss.classification else Y
    losses = []
    for transform in (None, lambda x, y, rng: (x, y)):
        mine = trainer()
        mine.loss = loss
        history = mine.fit(X, targets, epochs=2, transform=transform, engine="python", verbose=False)
        losses.append(history["loss"])
    assert losses[0] == losses[1]


def test_transforms_do_what_they_say():
    x, y = IMAGES, np.arange(40.0, dtype=np.float32)[:, None]
    rng = np.random.default_rng(1)
    moved, _ = transforms.Shift(1)(x, y, rng)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for a, b in zip(moved, padded, strict=True):
        assert any(np.array_equal(a, b[:, i : i + 6, j : j + 5]) for i in range(3) for j in range(3))
    turned, _ = transforms.Flip(0.5)(x, y, rng)
    ways = [(np.array_equal(a, b), np.array_equal(a, b[..., ::-1])) for a, b in zip(turned, x, strict=True)]
    assert {(True, False), (False, True)} == set(ways)
    cropped, _ = transforms.Crop(0.4)(x, y, rng)
    assert all(np.isin(a, b).all() for a, b in zip(cropped, x, strict=True))
    noisy, _ = transforms.Noise(0.5)(x, y, rng)
    assert np.std(noisy - x) == pytest.approx(0.5, rel=0.1)
    mixed, target = transforms.Mixup(0.4)(x, y, np.random.default_rng(2))
    reference = np.random.default_rng(2)
    share, other = reference.beta(0.4, 0.4), reference.permutation(40)
    np.testing.assert_allclose(mixed, share * x + (1 - share) * x[other], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(target, share * y + (1 - share) * y[other], rtol=1e-5)
    cut, target = transforms.CutMix()(x, y, np.random.default_rng(3))
    reference = np.random.default_rng(3)
    other = reference.permutation(40)
    own = (cut == x)[:, 0].mean(axis=(1, 2))  # the share of each image that is its own
    np.testing.assert_allclose(target[:, 0], own * y[:, 0] + (1 - own) * y[other, 0], rtol=1e-4, atol=1e-3)


def test_a_transform_acts_in_training_and_repeats_with_the_seed():
    runs = []
    for _ in range(2):
        mine = trainer()
        history = mine.fit(
            X,
            Y,
            epochs=2,
            transform=transforms.Compose(transforms.Noise(0.1)),
            weight_noise=0.01,
            verbose=False,
        )
        assert history.path == "python"
        runs.append(mine.model.flat_parameters.copy())
    plain = trainer()
    plain.fit(X, Y, epochs=2, verbose=False)
    assert np.array_equal(*runs)
    assert not np.array_equal(runs[0], plain.model.flat_parameters)


def test_partial_fit_is_a_step_of_fit():
    one, other = trainer(), trainer()
    history = one.fit(X, Y, batch_size=None, shuffle=False, verbose=False)
    assert other.partial_fit(X, Y) == pytest.approx(history["loss"][0])
    assert np.array_equal(one.model.flat_parameters, other.model.flat_parameters)
    with pytest.raises(ValueError, match="one per example"):
        other.partial_fit(X, Y[1:])
