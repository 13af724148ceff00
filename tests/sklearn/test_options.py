"""Each option that scikit-learn's perceptrons lack does what a training of the same parts by hand does."""

import functools
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy.special import softmax

import pyoptim as po
from pyoptim import nn
from pyoptim.runtime import dispatch
from pyoptim.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(1)
X = RNG.normal(size=(120, 6))
Y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)
UNITS = [6, 8, 8, 3]
PLAIN = {
    "hidden_layer_sizes": UNITS[1:-1], "activation": "tanh", "max_iter": 3, "random_state": 0, "alpha": 0,
    "shuffle": False, "batch_size": 40, "learning_rate_init": 0.02,
}  # fmt: skip


def _adam(parameters, lr=0.02, **options):
    return po.Adam(parameters, lr, eps_hat=True, **options)


def _sgd(parameters, **options):
    return po.SGD(parameters, 0.02, momentum=0.9, nesterov=True, velocity="classical", **options)


def _layers(*norms, block=None, dropout=0.0):
    """The layers of a network; ``norms`` are classes, and the second hidden layer is put into a ``block``."""
    made = []
    for i, (before, after) in enumerate(pairwise(UNITS)):
        dense = nn.Dense(before, after, activation=None if norms or i == 2 else "tanh", init="zeros")
        hidden = [dense, *(norm(after) for norm in norms), nn.Tanh()] if norms and i < 2 else [dense]
        if dropout and i < 2:
            hidden.append(nn.Dropout(dropout))
        made += [block(hidden)] if block and i == 1 else hidden
    return made


def _trained_by_hand(layers, optimizer=_adam, loss=None, average=None):
    """Class probabilities after a training from scikit-learn's first weights."""
    random, drawn = np.random.RandomState(0), []
    for before, after in pairwise(UNITS):
        bound = np.sqrt(6 / (before + after))
        drawn.append((random.uniform(-bound, bound, (before, after)), random.uniform(-bound, bound, after)))
    model = nn.Sequential(*layers, seed=int(random.randint(2**31 - 1)), dtype=np.float64)
    dense = [layer for layer in model.leaves().values() if isinstance(layer, nn.Dense)]
    for layer, (weight, bias) in zip(dense, drawn, strict=True):
        layer.parameters["weight"][...], layer.parameters["bias"][...] = weight.T, bias
    trainer = po.Trainer(model, loss or nn.CrossEntropy(), optimizer(model.parameters()))
    mean = average and average(trainer.optimizer if average is not po.averages.SWA else model.parameters())

    class Update(po.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            mean.update()

    callbacks = [Update()] if average is po.averages.SWA else []
    trainer.fit(X, Y, epochs=3, batch_size=40, shuffle=False, verbose=False, callbacks=callbacks)
    if mean:
        with mean.applied():
            if any(isinstance(layer, nn.BatchNorm) for layer in model.layers):
                po.averages.update_bn(model, X, 40)
            return softmax(trainer.predict(X), axis=1)
    return softmax(trainer.predict(X), axis=1)


EMA = functools.partial(po.averages.EMA, warm_up=True)
COSINE = po.schedules.Cosine(0.1, 50)
CASES = {
    "optimizer": ({"optimizer": po.Lion}, _layers, {"optimizer": lambda p: po.Lion(p, 0.02)}),
    "optimizer without engine": ({"optimizer": po.LAMB}, _layers, {"optimizer": lambda p: po.LAMB(p, 0.02)}),
    "dropout": ({"dropout": 0.3}, lambda: _layers(dropout=0.3), {}),
    "batch_norm": ({"batch_norm": True}, lambda: _layers(nn.BatchNorm), {}),
    "layer_norm": ({"layer_norm": True}, lambda: _layers(nn.LayerNorm), {}),
    "both norms": (
        {"layer_norm": True, "batch_norm": True},
        lambda: _layers(nn.BatchNorm, nn.LayerNorm),
        {},
    ),
    "residual": ({"residual": True}, lambda: _layers(block=nn.Residual), {}),
    "norm, dropout, residual": (
        {"batch_norm": True, "dropout": 0.2, "residual": True},
        lambda: _layers(nn.BatchNorm, block=nn.Residual, dropout=0.2),
        {},
    ),
    "label_smoothing": ({"label_smoothing": 0.3}, _layers, {"loss": nn.CrossEntropy(label_smoothing=0.3)}),
    "schedule": ({"schedule": COSINE}, _layers, {"optimizer": lambda p: _adam(p, COSINE)}),
    "schedule of one's own": (
        {"schedule": lambda step: 0.1 / (1 + step)},
        _layers,
        {"optimizer": lambda p: _adam(p, lambda step: 0.1 / (1 + step))},
    ),
    "max_grad_norm": (
        {"solver": "sgd", "max_grad_norm": 0.01},
        _layers,
        {"optimizer": lambda p: _sgd(p, max_grad_norm=0.01)},
    ),
    "ema": ({"average": "ema"}, _layers, {"average": EMA}),
    "swa": ({"average": "swa"}, _layers, {"average": po.averages.SWA}),
    "ema, norm": ({"average": "ema", "batch_norm": True}, lambda: _layers(nn.BatchNorm), {"average": EMA}),
    "swa, norm": (
        {"average": "swa", "batch_norm": True},
        lambda: _layers(nn.BatchNorm),
        {"average": po.averages.SWA},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_option_is_what_it_is_by_hand(case):
    options, layers, parts = CASES[case]
    model = MLPClassifier(**{**PLAIN, **options}).fit(X, Y)
    expected = _trained_by_hand(layers(), **parts)
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=0, atol=1e-9)
    without = {name: value for name, value in options.items() if name == "solver"}
    plain = MLPClassifier(**{**PLAIN, **without}).fit(X, Y).predict_proba(X)
    assert np.abs(plain - expected).max() > 1e-3


def test_label_smoothing_of_one_output():
    smooth = MLPClassifier(**PLAIN, label_smoothing=0.4).fit(X, Y > 0)
    shares = np.where(Y > 0, 0.8, 0.2)
    loss = -shares * np.log(smooth.predict_proba(X)[:, 1]) - (1 - shares) * np.log(
        smooth.predict_proba(X)[:, 0]
    )
    smooth.set_params(learning_rate_init=1e-12, batch_size=120).partial_fit(X, Y > 0)
    assert smooth.loss_ == pytest.approx(loss.mean())


class BatchByBatch(po.callbacks.Callback):
    """Does nothing, for every batch: no batch is left to the compiled engine then."""

    def on_batch_begin(self, batch):
        pass


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 7, 40])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_the_penalty_of_a_weighted_mean_is_that_of_a_training_batch_by_batch(kind, batch_size, dtype):
    """Its factor is another one in each batch, and the last of 4 and 7 is smaller; one has no weight."""
    x, y = X[:118].astype(dtype), Y[:118]
    weight = np.random.default_rng(4).integers(0, 3, 118).astype(float)
    weight[10:20] = 0
    for sample_weight in (None, weight):
        fits = [
            kind(**{**PLAIN, "alpha": 0.3, "batch_size": batch_size, "callbacks": callbacks}).fit(
                x, y, sample_weight=sample_weight
            )
            for callbacks in (None, [BatchByBatch()])
        ]
        for one, other in zip(fits[0].coefs_, fits[1].coefs_, strict=True):
            assert np.array_equal(one, other)
        assert fits[0].loss_curve_ == fits[1].loss_curve_


class Look(po.callbacks.Callback):
    """Notes what is in force while the epochs run."""

    def on_epoch_end(self, epoch, logs):
        self.backend, self.threads = dispatch.current().name, po.get_num_threads()


def test_backend_and_threads_are_those_asked_for():
    before, look = (dispatch.current().name, po.get_num_threads()), Look()
    MLPRegressor(**PLAIN, backend="numpy", n_jobs=3, callbacks=[look]).fit(X, Y)
    assert (look.backend, look.threads) == ("numpy", 3)
    assert (dispatch.current().name, po.get_num_threads()) == before


# ---- optimizers --------------------------------------------------------------------------------------------


def _of_parameters(parameters):
    return po.SGD(parameters, 0.25, momentum=0.5)


def _of_both(parameters, lr=1.0):
    return po.SGD(parameters, lr, momentum=0.5)


OPTIMIZER_CLASSES = [
    value
    for value in (getattr(po, name) for name in po.__all__)
    if isinstance(value, type) and issubclass(value, po.Optimizer) and value is not po.Optimizer
]
OPTIMIZERS = {
    "class": (po.SGD, 0.02, 0),
    "partial": (functools.partial(po.SGD, momentum=0.5), 0.02, 0.5),
    "partial with lr": (functools.partial(po.SGD, momentum=0.5, lr=0.125), 0.125, 0.5),
    "function": (_of_parameters, 0.25, 0.5),
    "function of lr": (_of_both, 0.02, 0.5),
    "partial of a function": (functools.partial(_of_both), 0.02, 0.5),
    "lambda": (lambda p: po.SGD(p, 0.25, momentum=0.5), 0.25, 0.5),
    "lambda of lr": (lambda p, lr: po.SGD(p, lr, momentum=0.5), 0.02, 0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_who_says_the_learning_rate(name):
    optimizer, lr, momentum = OPTIMIZERS[name]
    model = MLPClassifier(**PLAIN, optimizer=optimizer).fit(X, Y)
    (group,) = model._optimizer.optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (lr, momentum)
    model.set_params(schedule=COSINE)
    if lr != 0.02:
        with pytest.raises(ValueError, match=r"schedule is Cosine.*, but optimizer sets a learning rate"):
            model.fit(X, Y)
    else:
        assert model.fit(X, Y)._optimizer.optimizer.param_groups[0]["lr"] is COSINE


def test_optimizers_that_cannot_be_are_refused():
    for optimizer in (po.Muon, functools.partial(po.Muon, ns_steps=2)):
        with pytest.raises(ValueError, match="optimizer is Muon, which updates matrices alone"):
            MLPRegressor(optimizer=optimizer).fit(X, Y)
    with pytest.raises(TypeError, match="optimizer is the class int, expected one of pyoptim's"):
        MLPRegressor(optimizer=int).fit(X, Y)
    with pytest.raises(TypeError, match="optimizer made a dict"):
        MLPRegressor(optimizer=lambda parameters: parameters).fit(X, Y)


@pytest.mark.parametrize("name", [c.__name__ for c in OPTIMIZER_CLASSES if c is not po.Muon])
def test_every_other_optimizer_trains(name):
    model = MLPRegressor(**PLAIN, optimizer=getattr(po, name)).fit(X, X[:, 0])
    assert np.isfinite(model.predict(X)).all()


# ---- callbacks and eval_set --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_what_callbacks_are_told(solver, kind):
    class Watch(po.callbacks.Callback):
        def __init__(self):
            self.told = []

        def on_train_begin(self):
            self.told.append("begin")

        def on_epoch_begin(self, epoch):
            self.told.append(epoch)

        def on_epoch_end(self, epoch, logs):
            self.told.append((epoch, dict(logs)))
            self.trainer.stop_training = epoch == 2

        def on_train_end(self):
            self.told.append("end")

    watch = Watch()
    model = kind(**{**PLAIN, "max_iter": 9}, solver=solver, callbacks=[watch])
    model.fit(X, Y, eval_set=(X[:20], Y[:20]))
    begins, ends = watch.told[1:-1:2], watch.told[2:-1:2]
    assert (watch.told[0], watch.told[-1], begins, model.n_iter_) == ("begin", "end", [0, 1, 2], 3)
    assert [logs["val_score"] for _, logs in ends] == model.validation_scores_
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert model.validation_scores_[-1] == model.score(X[:20], Y[:20])
    assert ends[-1][1]["loss"] == model.loss_
    expected = ((model.predict(X) - Y)[:20] ** 2).mean() / 2
    if kind is MLPClassifier:
        expected = -np.log(model.predict_proba(X)[np.arange(20), Y[:20]]).mean()
    assert ends[-1][1]["val_loss"] == pytest.approx(expected)
    assert not hasattr(watch, "trainer")
    model.set_params(callbacks=None).fit(X, Y)
    assert getattr(model, "validation_scores_", None) is None  # none of an earlier fit


def test_early_stopping_by_a_callback_needs_scored_examples():
    stopping = po.callbacks.EarlyStopping()
    for solver in ("adam", "lbfgs"):
        with pytest.raises(ValueError, match=r"callbacks\[0\] monitors 'val_loss', .* or an eval_set"):
            MLPClassifier(**PLAIN, solver=solver, callbacks=[stopping]).fit(X, Y)
    model = MLPClassifier(**{**PLAIN, "max_iter": 200}, callbacks=[stopping])
    assert model.fit(X, Y, eval_set=(X, 2 - Y)).n_iter_ < 50
    model.set_params(early_stopping=True, callbacks=[po.callbacks.EarlyStopping("val_score")]).fit(X, Y)
    MLPClassifier(**PLAIN, callbacks=[po.callbacks.EarlyStopping("loss")]).fit(X, Y)


def test_what_is_no_callback_is_said():
    with pytest.raises(TypeError, match=r"callbacks\[0\] is <built-in function print>, expected a Callback"):
        MLPClassifier(callbacks=[print]).fit(X, Y)


def test_ctrl_c_ends_the_training_with_a_warning():
    class Interrupt(po.callbacks.Callback):
        ended = False

        def on_epoch_end(self, epoch, logs):
            if epoch == 1:
                raise KeyboardInterrupt

        def on_train_end(self):
            self.ended = True

    interrupt = Interrupt()
    for average in (None, "swa"):
        model = MLPClassifier(**PLAIN, callbacks=[interrupt], average=average)
        with pytest.warns(UserWarning, match="Training interrupted by user"):
            model.fit(X, Y)
        assert interrupt.ended
        shorter = MLPClassifier(**{**PLAIN, "max_iter": 2}, average=average).fit(X, Y)
        np.testing.assert_array_equal(model.predict_proba(X), shorter.predict_proba(X))


@pytest.mark.parametrize("where", ["on_train_begin", "on_epoch_begin", "on_epoch_end"])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_callbacks_are_told_of_the_end_that_an_error_makes(solver, where):
    class Recorder(po.callbacks.Callback):
        def __init__(self):
            self.told = []

        def on_train_begin(self):
            self.told.append("begin")

        def on_train_end(self):
            self.told.append(self.trainer.interrupted)

    class Fail(Recorder):
        pass

    def fail(*_):
        raise OSError("a full disk")

    setattr(Fail, where, fail)
    first, failing, last = Recorder(), Fail(), Recorder()
    model = MLPClassifier(**PLAIN, solver=solver, callbacks=[first, failing, last])
    with pytest.raises(OSError, match="full disk"):
        model.fit(X, Y)
    assert first.told == ["begin", True]
    assert (failing.told, last.told) == (([], []) if where == "on_train_begin" else (["begin", True],) * 2)
    assert not hasattr(first, "trainer")
    model.set_params(callbacks=[first]).fit(X, Y)
    assert first.told[2:] == ["begin", False]


# ---- L-BFGS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": po.SGD},
        {"schedule": COSINE},
        {"max_grad_norm": 1.0},
        {"average": "swa"},
        {"dropout": 0.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_lbfgs_refuses_what_it_cannot_use(options):
    with pytest.raises(ValueError, match=f"solver='lbfgs' does not support {next(iter(options))}="):
        MLPClassifier(**PLAIN, solver="lbfgs", **options).fit(X, Y)


class Batches(po.callbacks.Callback):
    def on_batch_end(self, batch, logs): ...


def test_lbfgs_has_no_learning_rate_and_no_batches():
    plateau = po.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=1e9)
    for callback, match in ((plateau, "sets a learning rate"), (Batches(), "acts on batches")):
        with pytest.raises(ValueError, match=rf"callbacks\[0\] {match}"):
            MLPClassifier(**{**PLAIN, "max_iter": 9}, solver="lbfgs", callbacks=[callback]).fit(X, Y)


def test_looking_on_changes_nothing(capsys):
    plain = MLPClassifier(**PLAIN, solver="lbfgs").fit(X, Y)
    seen = MLPClassifier(**PLAIN, solver="lbfgs", verbose=True).fit(X, Y, eval_set=(X, Y))
    np.testing.assert_array_equal(seen.predict_proba(X), plain.predict_proba(X))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Iteration 1, loss = ")
    assert f"Iteration 3, loss = {seen.loss_:.8f}" in lines


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("options", [{"solver": "lbfgs", "max_iter": 9}, {"average": "swa"}], ids=str)
def test_statistics_are_those_of_the_weights_that_are_kept(options, sparse):
    sparse_module = pytest.importorskip("scipy.sparse")
    x = sparse_module.csr_array(X) if sparse else X
    model = MLPClassifier(**{**PLAIN, **options}, batch_norm=True).fit(x, Y, eval_set=(x, Y))
    entering = X @ model.coefs_[0] + model.intercepts_[0]
    norm = model._network.model.layers[1]
    np.testing.assert_allclose(norm.buffers["running_mean"], entering.mean(axis=0), atol=1e-12)
    size = len(X) if "solver" in options else 40
    variance = entering.reshape(-1, size, 8).var(axis=1, ddof=1).mean(axis=0)
    np.testing.assert_allclose(norm.buffers["running_var"], variance)
    if "solver" in options:
        assert model.validation_scores_[-1] == model.score(X, Y)


@pytest.mark.parametrize("change", [{"momentum": 0.0}, {"lr": 0.5}, {"weight_decay": 0.5}], ids=str)
def test_callbacks_may_change_the_optimizer_between_epochs(change):
    class Change(po.callbacks.Callback):
        def on_epoch_begin(self, epoch):
            if epoch == 1:
                self.trainer.optimizer.param_groups[0].update(change)

    options = {**PLAIN, "optimizer": functools.partial(po.SGD, momentum=0.5, lr=0.02)}
    changed, by_batches = (
        MLPClassifier(**options, callbacks=callbacks).fit(X, Y).predict_proba(X)
        for callbacks in ([Change()], [Change(), Batches()])
    )
    np.testing.assert_allclose(changed, by_batches, atol=1e-12)
    assert np.abs(changed - MLPClassifier(**options).fit(X, Y).predict_proba(X)).max() > 1e-6
