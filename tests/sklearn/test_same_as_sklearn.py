"""The estimators compute what scikit-learn's compute, from the same random numbers."""

import importlib.util
from unittest import mock

import numpy as np
import pytest

neural_network = pytest.importorskip("sklearn.neural_network")
from sklearn.datasets import (  # noqa: E402
    load_digits,
    make_classification,
    make_multilabel_classification,
    make_regression,
)
from support.backends import why_not  # noqa: E402

from pyoptim import sklearn as ours  # noqa: E402

# scikit-learn 1.6 has neither weights of examples nor losses, nor early stopping for labels that are text.
OLDEST = "loss" not in neural_network.MLPRegressor().get_params()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SOLVERS = [
    {"solver": "adam"},
    {"solver": "adam", "early_stopping": True},
    {"solver": "adam", "activation": "logistic", "batch_size": 33, "alpha": 0.5},
    {"solver": "adam", "activation": "tanh", "shuffle": False, "beta_1": 0.8, "epsilon": 1e-4},
    {"solver": "adam", "activation": "identity", "hidden_layer_sizes": (5, 7)},
    {"solver": "sgd"},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.01, "n_iter_no_change": 2},
    {"solver": "sgd", "momentum": 0.5, "nesterovs_momentum": False, "alpha": 1},
    {"solver": "sgd", "momentum": 0, "hidden_layer_sizes": 4, "batch_size": 1},
]


def _data(kind):
    if kind == "multilabel":
        x, y = make_multilabel_classification(150, 8, n_classes=3, random_state=0)
        return (x - x.mean(0)) / x.std(0), y
    if kind in ("binary", "classes"):
        classes = 2 if kind == "binary" else 3
        x, y = make_classification(150, 8, n_informative=4, n_classes=classes, random_state=0)
        return x, np.array(["no", "yes", "perhaps"])[y]
    x, y = make_regression(150, 8, n_targets=1 if kind == "number" else 3, random_state=0)
    return x, y / y.std()


def _both(kind, **options):
    """Both libraries' estimators of a kind of target, with the same parameters."""
    name = "MLPRegressor" if kind in ("number", "numbers") else "MLPClassifier"
    options = {"max_iter": 20, "random_state": 3, "learning_rate_init": 0.01, **options}
    return getattr(neural_network, name)(**options), getattr(ours, name)(**options)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", SOLVERS, ids=str)
@pytest.mark.parametrize("kind", ["binary", "classes", "multilabel", "number", "numbers"])
def test_losses_are_those_of_sklearn(kind, options, weighted):
    x, y = _data(kind)
    if OLDEST and (weighted or (y.dtype.kind == "U" and "early_stopping" in options)):
        pytest.skip("scikit-learn 1.6 has this not")
    given = {}
    if weighted:
        given["sample_weight"] = np.random.default_rng(0).uniform(0.5, 2, len(x))
    theirs, own = _both(kind, **options)
    theirs.fit(x, y, **given)
    own.fit(x, y, **given)
    np.testing.assert_allclose(own.loss_curve_, theirs.loss_curve_, rtol=0, atol=1e-6)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_"):
        assert getattr(own, name) == getattr(theirs, name)
    assert own.validation_scores_ == pytest.approx(theirs.validation_scores_)
    assert own.best_loss_ == pytest.approx(theirs.best_loss_)
    for mine, other in zip(own.coefs_ + own.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(getattr(own, "classes_", None), getattr(theirs, "classes_", None))
    if name := getattr(own, "predict_proba", None):
        np.testing.assert_allclose(own.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
        np.testing.assert_array_equal(own.predict(x), theirs.predict(x))
    else:
        np.testing.assert_allclose(own.predict(x), theirs.predict(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "classes", "multilabel", "number"])
def test_lbfgs_ends_where_sklearn_ends(kind):
    x, y = _data(kind)
    theirs, own = _both(kind, solver="lbfgs", max_iter=15, alpha=0.1)
    assert own.fit(x, y).loss_ == pytest.approx(theirs.fit(x, y).loss_, rel=1e-6)
    assert own.n_iter_ == theirs.n_iter_


@pytest.mark.skipif(OLDEST, reason="scikit-learn 1.6 has this not")
def test_poisson_loss_is_that_of_sklearn():
    x, y = _data("number")
    y = np.floor(np.exp(y))
    theirs, own = _both("number", loss="poisson", solver="sgd", learning_rate_init=1e-3)
    np.testing.assert_allclose(own.fit(x, y).loss_curve_, theirs.fit(x, y).loss_curve_, atol=1e-6)
    np.testing.assert_allclose(own.predict(x), theirs.predict(x), atol=1e-6)


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_the_backend_makes_no_difference(kind, name):
    if why_not(name):
        pytest.skip(why_not(name))
    x, y = _data(kind)
    weight = np.random.default_rng(0).integers(0, 3, len(x))
    for solver in ("adam", "lbfgs"):
        _, own = _both(kind, solver=solver, batch_size=40, max_iter=5)
        _, other = _both(kind, solver=solver, batch_size=40, max_iter=5)
        own.fit(x, y, weight)
        other.set_params(backend=name).fit(x, y, weight)
        assert other.loss_ == pytest.approx(own.loss_, rel=1e-9)
        np.testing.assert_allclose(other.coefs_[0], own.coefs_[0], atol=1e-6)


@pytest.mark.parametrize("options", [{"early_stopping": True}, {"solver": "sgd", "batch_size": 33}], ids=str)
@pytest.mark.parametrize("kind", ["multilabel", "numbers"])
def test_dropout_takes_no_random_number_of_those_of_sklearn(kind, options):
    """First weights, the split and the orders are scikit-learn's; where nothing is dropped, so are losses."""
    x, y = _data(kind)
    theirs, own = _both(kind, **options)
    own.set_params(dropout=1e-12).fit(x, y)
    np.testing.assert_allclose(own.loss_curve_, theirs.fit(x, y).loss_curve_, atol=1e-6)
    assert own.validation_scores_ == pytest.approx(theirs.validation_scores_)


@pytest.mark.parametrize("name", ["digits", "made"])
def test_accuracy_in_float32_is_that_of_sklearn(name):
    """Over ten seeds the mean of the differences is within twice its standard error, or one row in 500."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        x = x / 16
    else:
        x, y = make_classification(900, 20, n_informative=8, n_classes=3, flip_y=0.1, random_state=0)
    x, (train, test) = x.astype(np.float32), (slice(0, 400), slice(400, 900))
    differences = []
    for seed in range(10):
        both = _both("classes", max_iter=15, random_state=seed, hidden_layer_sizes=(32,), batch_size=50)
        theirs, own = (model.fit(x[train], y[train]) for model in both)
        assert own.coefs_[0].dtype == np.float32
        assert own.score(x[test], y[test]) > 0.6
        differences.append(own.score(x[test], y[test]) - theirs.score(x[test], y[test]))
    error = np.std(differences, ddof=1) / np.sqrt(10)
    assert abs(np.mean(differences)) <= max(2 * error, 1 / 500)


@pytest.mark.parametrize("name", ["native", "numpy"])
def test_a_batch_without_weight_changes_nothing(name):
    if why_not(name):
        pytest.skip(why_not(name))
    x, y = _data("number")
    options = {"batch_size": 1, "max_iter": 1, "alpha": 1, "solver": "sgd", "momentum": 0, "shuffle": False}
    weight = np.zeros(len(x))
    weight[0] = 1
    own, other = (_both("number", **options)[1].set_params(backend=name) for _ in range(2))
    np.testing.assert_array_equal(own.fit(x, y, weight).coefs_[0], other.fit(x[:1], y[:1]).coefs_[0])


# ---- scikit-learn's own tests, with pyoptim's classes in the place of its own ------------------------------

PRIVATE = {"test_gradient"}  # of the method _loss_grad_lbfgs


def _tests_of_sklearn():
    spec = importlib.util.find_spec("sklearn.neural_network.tests.test_mlp")
    if spec is None:  # some distributions leave tests out
        return {}
    module = importlib.util.module_from_spec(spec)
    classes = {"MLPClassifier": ours.MLPClassifier, "MLPRegressor": ours.MLPRegressor}
    with mock.patch.multiple(neural_network, **classes):
        spec.loader.exec_module(module)
    tests = {name: value for name, value in vars(module).items() if name.startswith("test_")}
    return {name: test for name, test in tests.items() if name not in PRIVATE}


@pytest.fixture
def global_random_seed():
    return 42


globals().update(
    {name.replace("test_", "test_sklearns_", 1): test for name, test in _tests_of_sklearn().items()}
)


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"early_stopping": True}], ids=str)
def test_random_numbers_end_where_those_of_sklearn_do(options):
    x, y = _data("number")
    states = []
    for model in _both("number", **options):
        random = np.random.RandomState(5)
        model.set_params(random_state=random).fit(x, y)
        states.append(random.get_state())
    np.testing.assert_equal(states[1], states[0])
