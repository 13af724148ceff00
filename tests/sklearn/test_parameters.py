"""Parameters that scikit-learn's perceptrons do not have, and copies of estimators."""

import copy
import gc
import io
import pickle
import re
import weakref
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("sklearn")
import joblib
import sklearn.neural_network as theirs
from sklearn.base import clone
from sklearn.utils._param_validation import StrOptions

import pyoptim as po
from pyoptim.sklearn import MLPClassifier, MLPRegressor, from_estimator

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(1)
X = RNG.normal(size=(120, 6))
Y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)
QUICK = {"hidden_layer_sizes": (8, 8), "max_iter": 5, "random_state": 0}

OPTIONS = [
    {"optimizer": po.Lion},
    {"optimizer": po.LAMB},
    {"optimizer": lambda parameters: po.RMSprop(parameters, 0.01, momentum=0.5)},
    {"dropout": 0.3},
    {"batch_norm": True},
    {"layer_norm": True, "activation": "tanh"},
    {"residual": True},
    {"batch_norm": True, "dropout": 0.2, "residual": True, "activation": "logistic"},
    {"label_smoothing": 0.1},
    {"schedule": po.schedules.Cosine(0.1, 50)},
    {"max_grad_norm": 0.01},
    {"average": "ema"},
    {"average": "swa"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_options_change_the_training_and_can_be_copied(options):
    plain = MLPClassifier(**QUICK).fit(X, Y)
    model = MLPClassifier(**QUICK, **options).fit(X, Y)
    probabilities = model.predict_proba(X)
    assert np.isfinite(probabilities).all()
    assert not np.array_equal(probabilities, plain.predict_proba(X))
    again = clone(model).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), probabilities)
    np.testing.assert_array_equal(copy.deepcopy(model).predict_proba(X), probabilities)


def test_options_of_a_regressor():
    model = MLPRegressor(**QUICK, dropout=0.1, layer_norm=True, optimizer=po.NAdam).fit(X, X[:, 0])
    assert "class_weight" not in model.get_params()
    assert model.predict(X).shape == (120,)


def test_callbacks_see_the_epochs_and_end_them():
    class Watch(po.callbacks.Callback):
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, epoch, logs):
            self.seen.append((epoch, dict(logs), self.trainer.optimizer.param_groups[0]["lr"]))
            self.trainer.stop_training = epoch == 2

    watch = Watch()
    model = MLPClassifier(**QUICK, callbacks=[watch]).fit(X, Y, eval_set=(X[:20], Y[:20]))
    assert [epoch for epoch, *_ in watch.seen] == [0, 1, 2]
    assert [logs["loss"] for _, logs, _ in watch.seen] == model.loss_curve_
    assert [logs["val_score"] for _, logs, _ in watch.seen] == model.validation_scores_
    assert model.n_iter_ == 3
    pickle.dumps(MLPClassifier(callbacks=[po.callbacks.TerminateOnNaN()], max_iter=1).fit(X, Y))


def test_a_callback_of_batches_sees_each():
    class Count(po.callbacks.Callback):
        batches = 0

        def on_batch_end(self, batch, logs):
            self.batches += 1

    count = Count()
    model = MLPClassifier(**QUICK, batch_size=50, callbacks=[count]).fit(X, Y)
    assert count.batches == 5 * 3
    np.testing.assert_allclose(model.loss_curve_, MLPClassifier(**QUICK, batch_size=50).fit(X, Y).loss_curve_)


def test_eval_set_takes_the_place_of_examples_held_back():
    model = MLPClassifier(**{**QUICK, "max_iter": 50}, early_stopping=True, n_iter_no_change=2)
    model.fit(X, Y, eval_set=(X, Y))
    assert len(model.validation_scores_) == model.n_iter_
    assert model.score(X, Y) == max(model.validation_scores_) == model.best_validation_score_


def test_the_number_of_threads_changes_no_bit():
    x = RNG.normal(size=(2000, 30))
    y = (x[:, 0] > 0).astype(int)
    before = po.get_num_threads()
    models = [MLPClassifier(max_iter=2, random_state=0, n_jobs=n).fit(x, y) for n in (1, 2, -1)]
    for model in models[1:]:
        np.testing.assert_array_equal(model.coefs_[0], models[0].coefs_[0])
        assert model.loss_curve_ == models[0].loss_curve_
    assert po.get_num_threads() == before


def _pickled(model):
    return pickle.loads(pickle.dumps(model))


def _dumped(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize("copied", [_pickled, _dumped, copy.deepcopy], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "sgd", "learning_rate": "invscaling"}, {"optimizer": po.Adagrad, "batch_norm": True}],
    ids=str,
)
def test_a_copy_goes_on_to_the_same_bits(options, copied):
    model = MLPClassifier(**QUICK, **options).partial_fit(X, Y, classes=[0, 1, 2]).partial_fit(X, Y)
    other = copied(model)
    assert other.coefs_[0].shape == (6, 8)
    np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))
    for estimator in (model, other):
        estimator.partial_fit(X[::-1], Y[::-1])
    np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))
    assert other.loss_curve_ == model.loss_curve_
    for estimator in (model, other):
        estimator.set_params(warm_start=True).fit(X, Y)
    np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))


def test_partial_fit_takes_note_of_parameters_that_change():
    changes = [{"alpha": 10.0}, {"label_smoothing": 0.5}, {"batch_size": 7}, {"backend": "numpy"}]
    for change in changes:
        model, other = (MLPClassifier(**QUICK).partial_fit(X, Y, classes=[0, 1, 2]) for _ in range(2))
        model.partial_fit(X, Y)
        other.set_params(**change).partial_fit(X, Y)
        same = np.allclose(model.coefs_[0], other.coefs_[0], rtol=0, atol=1e-9)
        assert same == ("backend" in change), change


def test_writing_into_the_weights_changes_the_model():
    model = MLPRegressor(**QUICK).fit(X, X[:, 0])
    before = model.predict(X)
    model.coefs_[-1] *= 2
    model.intercepts_[-1] = model.intercepts_[-1] * 2 + 1
    np.testing.assert_allclose(model.predict(X), 2 * before + 1, atol=1e-12)
    np.testing.assert_array_equal(_pickled(model).predict(X), model.predict(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("y", [Y, Y > 0, X[:, :2], np.exp(X[:, 0])], ids=["classes", "bools", "two", "one"])
def test_from_sklearn_and_back(y, dtype):
    kind = theirs.MLPRegressor if np.asarray(y).dtype.kind == "f" else theirs.MLPClassifier
    x, bound = X.astype(dtype), 1e-5 if dtype == np.float32 else 1e-12
    fitted = kind(**QUICK, alpha=0.3).fit(x, y)
    model = from_estimator(fitted)
    assert model.alpha == 0.3
    back = model.to_estimator()
    assert type(back) is kind
    for name in ("predict", "predict_proba"):
        if hasattr(fitted, name):
            np.testing.assert_allclose(getattr(model, name)(x), getattr(fitted, name)(x), atol=bound)
            np.testing.assert_array_equal(getattr(back, name)(x), getattr(fitted, name)(x))
    model.partial_fit(x, y)
    assert len(model.loss_curve_) == len(fitted.loss_curve_) + 1
    back.partial_fit(x, y)


def test_what_cannot_be_converted_is_said():
    with pytest.raises(TypeError, match="expected scikit-learn's MLPClassifier or MLPRegressor"):
        from_estimator(3)
    with pytest.raises(ValueError, match="batch_norm is True"):
        MLPClassifier(batch_norm=True).to_estimator()
    assert not hasattr(from_estimator(theirs.MLPClassifier()), "coefs_")


def test_what_does_not_go_together_is_said():
    with pytest.raises(ValueError, match="average='ema'"):
        MLPRegressor(average="ema").partial_fit(X, X[:, 0])
    with pytest.raises(ValueError, match="lbfgs"):
        MLPRegressor(solver="lbfgs", dropout=0.5).fit(X, X[:, 0])
    with pytest.raises(TypeError, match="optimizer made a dict"):
        MLPRegressor(optimizer=lambda parameters: parameters).fit(X, X[:, 0])


def test_an_average_of_the_engine_is_that_of_numpy():
    options = {**QUICK, "average": "ema", "max_iter": 20}
    own, other = (MLPClassifier(**options, backend=name).fit(X, Y) for name in (None, "numpy"))
    start = MLPClassifier(**{**QUICK, "max_iter": 1, "learning_rate_init": 1e-12}).fit(X, Y)
    np.testing.assert_allclose(own.coefs_[0], other.coefs_[0], atol=1e-6)
    assert np.abs(own.coefs_[0] - start.coefs_[0]).max() > 1e-3


def test_batch_norm_takes_no_batch_of_one_row():
    x, labels = np.tile(X, (3, 1))[:201], np.tile(Y, 3)[:201]
    model = MLPClassifier(**QUICK, batch_norm=True).fit(x, labels)  # by default batches of 200 rows
    assert np.isfinite(model.predict_proba(x)).all()
    for size, rows in ((100, 201), (1, 10), ("auto", 1)):
        with pytest.raises(ValueError, match="makes a batch of 1"):
            MLPClassifier(**QUICK, batch_norm=True, batch_size=size).fit(x[:rows], labels[:rows])
    with pytest.raises(ValueError, match="early_stopping=True does not support average"):
        MLPClassifier(**QUICK, early_stopping=True, average="ema").fit(x, labels)


def test_parameters_are_checked_in_every_fit():
    class Narrow(MLPClassifier):
        _parameter_constraints = MLPClassifier._parameter_constraints | {"alpha": [StrOptions({"none"})]}

    model = MLPClassifier(**QUICK).fit(X, Y)
    for name, value in (("alpha", -1.0), ("max_iter", 0), ("hidden_layer_sizes", [0])):
        with pytest.raises(ValueError, match=name):
            clone(model).set_params(**{name: value}).fit(X, Y)
    with pytest.raises(ValueError, match="'alpha' parameter of Narrow must be a str"):
        Narrow(**QUICK).fit(X, Y)


def test_classes_may_change_and_end():
    class Changing(MLPClassifier):
        _parameter_constraints: ClassVar = dict(MLPClassifier._parameter_constraints)

    model = Changing(**QUICK).fit(X, Y)
    Changing._parameter_constraints["alpha"] = [StrOptions({"none"})]
    with pytest.raises(ValueError, match="'alpha' parameter of Changing must be a str"):
        model.fit(X, Y)
    assert "alpha" in model.get_params()
    Changing.__init__ = lambda self, *, other=1: None
    assert Changing._get_param_names() == ["other"]
    seen = weakref.ref(Changing)
    del model, Changing
    gc.collect()
    assert seen() is None


def test_private_parts_of_sklearn_are_imported_in_one_place():
    private = re.compile(r"^ *(from|import) sklearn\b(?!.* as theirs).*[ .]_\w+", re.MULTILINE)
    folder = Path(po.sklearn.__file__).parent
    found = {file.name for file in folder.glob("*.py") if private.search(file.read_text("utf-8"))}
    assert found == {"_theirs.py"}
