"""Fits that go on from others, and calls that are refused: what was built is asked, and nothing is lost."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
import sklearn.neural_network as theirs
from sklearn.exceptions import ConvergenceWarning

import pyoptim as po
from pyoptim.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(1)
X = RNG.normal(size=(120, 6))
Y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)
QUICK = {"hidden_layer_sizes": (8, 8), "max_iter": 3, "random_state": 0}


def _go_on(model, way, x=X, y=Y):
    return model.partial_fit(x, y) if way == "partial_fit" else model.set_params(warm_start=True).fit(x, y)


# ---- parameters that change between calls ------------------------------------------------------------------


@pytest.mark.parametrize("way", ["partial_fit", "warm_start"])
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("norm", [{}, {"batch_norm": True}], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        {"activation": "logistic"},
        {"dropout": 0.3},
        {"residual": True},
        {"activation": "tanh", "dropout": 0.1},
    ],
    ids=str,
)
def test_other_layers_are_had_around_the_same_weights(change, norm, copied, way):
    model = MLPClassifier(**QUICK, **norm).fit(X, Y)
    if copied:
        model = pickle.loads(pickle.dumps(model))
    before = [array.copy() for array in (*model.coefs_, *model.intercepts_)]
    _go_on(model.set_params(**change, max_iter=1, learning_rate_init=1e-12), way)
    for array, old in zip((*model.coefs_, *model.intercepts_), before, strict=True):
        np.testing.assert_allclose(array, old, rtol=0, atol=1e-9)
    other = MLPClassifier(**{**QUICK, "max_iter": 1}, **norm, **change).fit(X, Y)
    assert repr(model._network.model.layers) == repr(other._network.model.layers)
    other._network.model.load_state_dict(
        dict(zip(other._network.state(), model._network.state().values(), strict=True))
    )
    np.testing.assert_array_equal(model.predict_proba(X), other.predict_proba(X))
    model.set_params(learning_rate_init=0.01)
    _go_on(model, way)
    assert np.abs(model.coefs_[0] - before[0]).max() > 1e-3  # it trains what it shows


@pytest.mark.parametrize("way", ["partial_fit", "warm_start"])
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_layer_sizes": (8, 9)},
        {"hidden_layer_sizes": (8,)},
        {"batch_norm": True},
        {"layer_norm": True},
        {"dtype": "float32"},
        {"loss": "poisson"},
    ],
    ids=str,
)
def test_what_needs_other_weights_is_refused(change, way):
    y = np.abs(X[:, 0])
    model = MLPRegressor(**QUICK).fit(X, y)
    before, curve = model.predict(X), list(model.loss_curve_)
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} is .* built with"):
        _go_on(model.set_params(**change), way, X, y)
    np.testing.assert_array_equal(model.predict(X), before)
    assert model.loss_curve_ == curve
    other = MLPRegressor(**{**QUICK, **change}, warm_start=False).fit(X, y)
    np.testing.assert_array_equal(model.set_params(warm_start=False).fit(X, y).predict(X), other.predict(X))


def test_another_number_of_outputs_is_refused():
    model = MLPRegressor(**QUICK).fit(X, X[:, :2])
    before = model.predict(X)
    for way in ("partial_fit", "warm_start"):
        with pytest.raises(ValueError, match="y has 3 outputs, expected 2 as before"):
            _go_on(model, way, X, X[:, :3])
    np.testing.assert_array_equal(model.predict(X), before)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    ("change", "option", "value"),
    [
        ({"learning_rate_init": 0.5}, "lr", 0.5),
        ({"schedule": po.schedules.Cosine(0.1, 50)}, "lr", po.schedules.Cosine(0.1, 50)),
        ({"momentum": 0.5}, "momentum", 0.5),
        ({"nesterovs_momentum": False}, "nesterov", False),
    ],
    ids=str,
)
def test_options_of_the_optimizer_change_and_its_states_stay(change, option, value, copied):
    options = {**QUICK, "solver": "sgd", "learning_rate_init": 0.02}
    model = MLPClassifier(**options).partial_fit(X, Y, classes=[0, 1, 2]).partial_fit(X, Y)
    if copied:
        model = pickle.loads(pickle.dumps(model))
    model.set_params(**change).partial_fit(X, Y)
    optimizer = model._optimizer.optimizer
    assert optimizer.param_groups[0][option] == value
    assert optimizer.state_dict()["state"][0]["step"] == 3
    with_old = (
        MLPClassifier(**options).partial_fit(X, Y, classes=[0, 1, 2]).partial_fit(X, Y).partial_fit(X, Y)
    )
    assert not np.array_equal(with_old.coefs_[0], model.coefs_[0])


@pytest.mark.parametrize("copied", [False, True])
def test_another_optimizer_begins_anew(copied):
    model = MLPClassifier(**QUICK).partial_fit(X, Y, classes=[0, 1, 2])
    if copied:
        model = pickle.loads(pickle.dumps(model))
    for change, kind in (({"solver": "sgd"}, po.SGD), ({"optimizer": po.Lion}, po.Lion)):
        model.set_params(**change).partial_fit(X, Y)
        optimizer = model._optimizer.optimizer
        assert type(optimizer) is kind
        assert optimizer.state_dict()["state"][0]["step"] == 1


def test_a_rate_that_was_made_smaller_stays_so():
    model = MLPClassifier(**QUICK, solver="sgd", learning_rate="invscaling", learning_rate_init=0.1)
    model.partial_fit(X, Y, classes=[0, 1, 2])
    rate = model._optimizer.learning_rate
    assert rate < 0.1
    model.set_params(momentum=0.1)._solver(model._network, True)
    assert model._optimizer.learning_rate == model._optimizer.optimizer.param_groups[0]["lr"] == rate


def test_max_grad_norm_changes_between_calls():
    def moved(model):
        before = model.coefs_[0].copy()
        return np.abs(model.partial_fit(X, Y).coefs_[0] - before).max()

    model = MLPClassifier(**QUICK, solver="sgd", momentum=0, learning_rate_init=0.1)
    model.partial_fit(X, Y, classes=[0, 1, 2])
    assert moved(model) > 1e-3
    assert moved(model.set_params(max_grad_norm=1e-6)) < 1e-6
    assert moved(model.set_params(max_grad_norm=None)) > 1e-3
    own = MLPClassifier(**QUICK, optimizer=lambda p: po.SGD(p, 0.1, max_grad_norm=1e-6))
    own.partial_fit(X, Y, classes=[0, 1, 2])
    assert moved(own) < 1e-6  # None leaves the optimizer's own bound


@pytest.mark.parametrize(
    "change", [{"activation": "tanh"}, {"hidden_layer_sizes": 3}, {"loss": "poisson"}], ids=str
)
def test_sklearns_estimator_is_what_was_built(change):
    model = MLPRegressor(**QUICK).fit(X, X[:, 0])
    if "loss" in change and "loss" not in theirs.MLPRegressor().get_params():
        pytest.skip("this version of scikit-learn has no loss to choose")
    back = model.set_params(**change).to_estimator()
    assert back.activation == "relu"
    np.testing.assert_allclose(back.predict(X), model.predict(X), atol=1e-12)
    back.partial_fit(X, X[:, 0])


def test_what_sklearn_has_not_is_asked_of_the_network():
    model = MLPRegressor(**QUICK).fit(X, X[:, 0]).set_params(batch_norm=True, residual=True)
    np.testing.assert_allclose(model.to_estimator().predict(X), model.predict(X), atol=1e-12)
    model.fit(X, X[:, 0]).set_params(batch_norm=False, residual=False)
    with pytest.raises(ValueError, match="batch_norm is True"):
        model.to_estimator()


# ---- calls that are refused leave a fitted model as it is --------------------------------------------------

WRONG = {
    "eval_set": ({}, {"eval_set": (X[:, :3], Y)}, "eval_set: X has 3 features"),
    "eval_set of text": ({}, {"eval_set": (X, np.full(120, "a"))}, "eval_set: "),
    "eval_set of other classes": ({}, {"eval_set": (X, Y + 7)}, "eval_set: `y` has classes not in"),
    "eval_set with NaN": ({}, {"eval_set": (np.full_like(X, np.nan), Y)}, "eval_set: Input X contains NaN"),
    "eval_set of many labels": ({}, {"eval_set": (X, np.eye(3, dtype=int)[Y])}, "eval_set: y is multilabel"),
    "eval_set, not a pair": ({}, {"eval_set": 3}, "eval_set is 3, expected a pair"),
    "sample_weight": ({}, {"sample_weight": X}, "[Ss]ample.weight"),
    "optimizer": ({"optimizer": po.Muon}, {}, "optimizer is Muon"),
    "callbacks": ({"callbacks": [print]}, {}, "callbacks"),
    "callback with a schedule": (
        {
            "callbacks": [po.callbacks.ReduceLROnPlateau("loss")],
            "schedule": po.schedules.Cosine(0.1, 50),
        },
        {},
        "expected a number for ReduceLROnPlateau",
    ),
    "backend": ({"backend": "fast"}, {}, "backend name is 'fast'"),
    "n_jobs": ({"n_jobs": 0}, {}, "n_jobs is 0"),
    "class_weight": ({"class_weight": [{0: 1}]}, {}, "class_weight is .* expected a dict of class to weight"),
    "average": ({"average": "ema", "early_stopping": True}, {}, "does not support average"),
    "batch_size": ({"batch_size": 7, "batch_norm": True}, {}, "makes a batch of 1"),
    "validation_fraction": ({"early_stopping": True, "validation_fraction": 0.001}, {}, "validation set"),
    "lbfgs": ({"solver": "lbfgs", "schedule": po.schedules.Cosine(0.1, 50)}, {}, "schedule="),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_fit_that_is_refused_leaves_the_estimator_as_it_was(case):
    params, given, match = WRONG[case]
    x, y = (X[:, :5], Y) if not given and "batch_norm" not in params else (X, Y)  # as another data set
    if "eval_set" in case and "3 features" not in match and "pair" not in match:
        x = X
    model = MLPClassifier(**QUICK).fit(X, Y)
    attributes, before = set(vars(model)), model.predict_proba(X)
    with pytest.raises((TypeError, ValueError), match=match):
        model.set_params(**params).fit(x, y, **given)
    assert set(vars(model)) == attributes
    assert model.n_features_in_ == 6
    np.testing.assert_array_equal(model.set_params(backend=None, n_jobs=None).predict_proba(X), before)
    with pytest.raises((TypeError, ValueError), match=match):
        MLPClassifier(**{**QUICK, **params}).fit(X, Y, **given).predict(X)


def test_eval_set_of_some_of_the_classes():
    rows = Y < 2
    model = MLPClassifier(**QUICK, warm_start=True)
    for count in (3, 6):
        model.fit(X, Y, eval_set=(X[rows], Y[rows]))
        assert len(model.validation_scores_) == count
    assert model.validation_scores_[-1] == model.score(X[rows], Y[rows])
    assert MLPRegressor(**QUICK).fit(X, Y, eval_set=(X, Y)).best_validation_score_ is not None
    with pytest.raises(ValueError, match="eval_set: y has 2 outputs, expected 1"):
        MLPRegressor(**QUICK).fit(X, Y, eval_set=(X, X[:, :2]))


@pytest.mark.parametrize("y", [Y > 0, np.column_stack([Y > 0, Y > 1])], ids=["binary", "multi-label"])
def test_scores_are_of_targets_as_they_are(y):
    model = MLPClassifier(**QUICK, label_smoothing=1.0).fit(X, y, eval_set=(X, y))
    assert model.validation_scores_[-1] == model.score(X, y)
    assert model.best_validation_score_ == max(model.validation_scores_)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_early_stopping_may_begin_and_end_with_a_warm_start(kind):
    model = kind(**QUICK, warm_start=True).fit(X, Y)
    model.set_params(early_stopping=True).fit(X, Y)
    assert len(model.validation_scores_) == 3
    assert (model.best_loss_, model.best_validation_score_) == (None, max(model.validation_scores_))
    model.fit(X, Y)
    assert len(model.validation_scores_) == 6
    model.set_params(early_stopping=False).fit(X, Y)
    assert (model.validation_scores_, model.best_validation_score_) == (None, None)
    assert model.best_loss_ == min(model.loss_curve_[-3:])
    assert len(model.loss_curve_) == 12


def test_a_pickle_does_not_hold_the_best_weights_twice():
    options = {
        "hidden_layer_sizes": (50, 50),
        "max_iter": 2,
        "random_state": 0,
        "solver": "sgd",
        "momentum": 0,
    }
    plain = MLPClassifier(**options).fit(X, Y)
    early = MLPClassifier(**options, early_stopping=True).fit(X, Y)
    assert len(pickle.dumps(early)) < 1.1 * len(pickle.dumps(plain))


# ---- scikit-learn's habits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("fit", ["alone", "in a pipeline"])
def test_warnings_are_filtered_as_sklearns(fit, solver):
    from sklearn.pipeline import make_pipeline

    model = MLPClassifier(**{**QUICK, "max_iter": 1}, solver=solver)
    if fit == "in a pipeline":
        model = make_pipeline(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y)
    (caught,) = caught
    assert caught.category is ConvergenceWarning
    assert caught.filename == __file__  # the user's line, not one of scikit-learn's or pyoptim's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ConvergenceWarning, module="sklearn")
        model.fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceWarning):
            model.fit(X, Y)


@pytest.mark.parametrize("fitted", [np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, np.int8, np.int64, bool])
def test_outputs_have_the_dtype_that_sklearns_have(fitted, given):
    x = np.abs(X * 3).astype(fitted)
    for name, y, methods in (
        ("MLPClassifier", Y, ["predict_proba"]),
        ("MLPClassifier", Y > 0, ["predict_proba", "predict_log_proba"]),
        ("MLPRegressor", X[:, :2], ["predict"]),
    ):
        other = getattr(theirs, name)(**QUICK).fit(x, y)
        model = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}[name](**QUICK).fit(x, y)
        for method in methods:
            expected, found = (getattr(e, method)(x.astype(given)) for e in (other, model))
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, atol=1e-4)
    assert MLPRegressor(**QUICK, dtype="float32").fit(x, Y).predict(X).dtype == np.float32


def test_weights_of_another_dtype_than_the_data():
    x, weight = X.astype(np.float32), np.linspace(0, 2, 120)
    for given in (weight, weight.astype(np.float32)):
        for options in ({}, {"solver": "lbfgs"}, {"early_stopping": True}, {"backend": "numpy"}):
            MLPClassifier(**QUICK, **options, class_weight="balanced").fit(x, Y, sample_weight=given)


@pytest.mark.parametrize("hidden", [(5.5,), 5.5, ("5",), (4, None), [[4]], (5.0,)], ids=str)
def test_hidden_layer_sizes_are_integers(hidden):
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        MLPClassifier(hidden_layer_sizes=hidden).fit(X, Y)


def test_poisson_targets_are_not_negative():
    model = MLPRegressor(**QUICK, loss="poisson")
    with pytest.raises(ValueError, match="loss='poisson' requires non-negative y"):
        model.fit(X, X[:, 0])
    with pytest.raises(ValueError, match="eval_set: loss='poisson' requires non-negative y"):
        model.fit(X, np.abs(X[:, 0]), eval_set=(X, X[:, 0]))


@pytest.mark.parametrize(
    ("n_jobs", "match"), [(0, "n_jobs is 0"), (True, "n_jobs is True"), (10**6, "n_jobs is 1")]
)
def test_numbers_of_threads_that_cannot_be(n_jobs, match):
    with pytest.raises(ValueError, match=f"{match}.*expected None, a number of threads from 1 to"):
        MLPClassifier(n_jobs=n_jobs).fit(X, Y)


def test_weights_of_classes_of_several_labels():
    y = np.column_stack([Y > 0, Y > 1]).astype(int)
    weights = [{0: 1.0, 1: 3.0}, {0: 0.5, 1: 2.0}]
    model = MLPClassifier(**QUICK, class_weight=weights).fit(X, y)
    product = np.where(y[:, 0], 3.0, 1.0) * np.where(y[:, 1], 2.0, 0.5)
    same = MLPClassifier(**QUICK).fit(X, y, sample_weight=product)
    np.testing.assert_array_equal(model.coefs_[0], same.coefs_[0])
    for wrong, targets, match in (
        (weights[0], y, "a list of one dict for each label"),
        (weights, Y, "a dict of class to weight"),
        (weights[:1], y, "does not fit y"),
        ({0: -1.0}, Y, "finite weights >= 0"),
        ({0: "much"}, Y, "does not fit y"),
    ):
        with pytest.raises(ValueError, match=f"class_weight is .*{match}"):
            MLPClassifier(**QUICK, class_weight=wrong).fit(X, targets)


# ---- batches, weights of classes, and arrays that users set -----------------------------------------------


@pytest.mark.parametrize("count", [3, 201, 399, 40])
@pytest.mark.parametrize("backend", [None, "numpy"])
def test_no_batch_of_one_row_reaches_batch_norm(count, backend):
    """Sizes of which one more leaves one row too, as 199 of 39,801."""
    x = np.random.default_rng(0).normal(size=(count, 2))
    model = MLPRegressor(
        hidden_layer_sizes=(3,), batch_norm=True, max_iter=1, random_state=0, backend=backend
    )
    model.fit(x, x[:, 0])
    assert np.isfinite(model.predict(x)).all()


def test_sizes_of_batches_leave_more_than_one_row():
    model = MLPRegressor(hidden_layer_sizes=(1,), batch_norm=True, max_iter=1, random_state=0)
    x = np.random.default_rng(0).normal(size=(39_801, 1)).astype(np.float32)  # 1 modulo 200 and modulo 199
    model.fit(x, x[:, 0])
    assert np.isfinite(model.predict(x)).all()


def test_weights_of_classes_that_a_batch_lacks():
    model, twin = (MLPClassifier(**QUICK, class_weight=w) for w in ({2: 3.0}, {0: 1.0, 1: 1.0, 2: 3.0}))
    for chosen in (Y == 0, Y > 0, Y < 2):
        for each in (model, twin):
            each.partial_fit(X[chosen], Y[chosen], classes=[0, 1, 2])
    np.testing.assert_array_equal(model.coefs_[0], twin.coefs_[0])
    with pytest.raises(ValueError, match=r"class_weight is \{5: 3.0\}, which does not fit y"):
        MLPClassifier(**QUICK, class_weight={5: 3.0}).fit(X, Y)
    labels = np.column_stack([np.zeros(120, int), Y > 0])  # of which one never occurs
    several = MLPClassifier(**QUICK, class_weight=[{1: 3.0}, {1: 2.0}]).fit(X, labels)
    same = MLPClassifier(**QUICK).fit(X, labels, sample_weight=1.0 + labels[:, 1])
    np.testing.assert_array_equal(several.coefs_[0], same.coefs_[0])


def test_an_estimator_of_ours_is_warm_started_by_scikit_learn():
    model = MLPClassifier(early_stopping=True, warm_start=True, max_iter=20, random_state=0).fit(X, Y)
    model.best_validation_score_ = 2.0  # no score is better
    assert model.to_estimator().fit(X, Y).n_iter_


def test_weights_that_users_set_are_copied():
    model = MLPClassifier(**QUICK).fit(X, Y)
    mine = [coef + 1 for coef in model.coefs_]
    kept = [array.copy() for array in mine]
    model.coefs_ = tuple(mine)
    expected = model.predict_proba(X)
    model.coefs_ = mine
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    model.partial_fit(X, Y)
    assert all(np.array_equal(a, b) for a, b in zip(mine, kept, strict=True))
    before = model.predict_proba(X)
    model.coefs_ = [*model.coefs_, np.ones(3)]
    with pytest.raises(ValueError, match="coefs_ has 4 arrays, expected 3"):
        model.partial_fit(X, Y)
    model.coefs_ = model.coefs_[:3]
    np.testing.assert_array_equal(model.predict_proba(X), before)
