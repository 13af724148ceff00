"""The estimators inside what scikit-learn builds of estimators."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
import joblib
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_iris
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import pyoptim as po
from pyoptim.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
GRID = {"mlpclassifier__dropout": [0.0, 0.2], "mlpclassifier__optimizer": [None, po.Lion]}


def _mlp(**options):
    return MLPClassifier(**{"max_iter": 60, "learning_rate_init": 0.02, "random_state": 0, **options})


def _pipeline():
    return make_pipeline(StandardScaler(), _mlp())


def test_grid_search_in_processes_gives_the_bits_of_one():
    searches = [GridSearchCV(_pipeline(), GRID, cv=3, n_jobs=n).fit(X, Y) for n in (1, 2)]
    assert searches[0].best_score_ > 0.9
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(*(search.predict_proba(X) for search in searches))


def test_other_searches():
    search = RandomizedSearchCV(_pipeline(), GRID, n_iter=2, cv=3, random_state=0).fit(X, Y)
    assert search.best_score_ > 0.9
    grid = {"learning_rate_init": [0.001, 0.02]}
    search = HalvingGridSearchCV(
        _mlp(), grid, resource="max_iter", min_resources=5, max_resources=45, cv=3, random_state=0
    )
    assert search.fit(X, Y).best_params_["learning_rate_init"] == 0.02


def test_cross_validation_and_inspection():
    assert cross_val_score(_pipeline(), X, Y, cv=3).mean() > 0.9
    measured = cross_validate(_pipeline(), X, Y, cv=3, scoring=["accuracy", "neg_log_loss"])
    assert measured["test_accuracy"].mean() > 0.9
    _, _, scores = learning_curve(
        _pipeline(), X, Y, train_sizes=[0.5, 1.0], cv=3, shuffle=True, random_state=0
    )
    assert scores[-1].mean() > 0.9
    importance = permutation_importance(_pipeline().fit(X, Y), X, Y, n_repeats=3, random_state=0)
    assert importance.importances_mean.argmax() in (2, 3)


@pytest.mark.parametrize(
    "ensemble",
    [
        lambda: CalibratedClassifierCV(_mlp(), cv=3),
        lambda: BaggingClassifier(_mlp(), n_estimators=3, random_state=0),
        lambda: AdaBoostClassifier(_mlp(), n_estimators=3, random_state=0),
        lambda: StackingClassifier([("mlp", _mlp()), ("line", LogisticRegression(max_iter=500))]),
        lambda: VotingClassifier(
            [("mlp", _mlp()), ("line", LogisticRegression(max_iter=500))], voting="soft"
        ),
    ],
    ids=["calibrated", "bagging", "adaboost", "stacking", "voting"],
)
def test_ensembles(ensemble):
    x = StandardScaler().fit_transform(X)
    assert ensemble().fit(x, Y).score(x, Y) > 0.9


def test_boosting_gives_weights_to_the_examples():
    x = StandardScaler().fit_transform(X)
    model = AdaBoostClassifier(_mlp(), n_estimators=2, random_state=0).fit(x, Y, sample_weight=Y != 1)
    assert not (model.predict(x) == 1).any()
    assert (model.predict(x) == Y)[Y != 1].all()


def test_multi_output_classifier():
    x, y = StandardScaler().fit_transform(X), np.column_stack([Y > 0, Y > 1])
    model = MultiOutputClassifier(_mlp()).fit(x, y)
    assert model.score(x, y) > 0.8
    model = MultiOutputClassifier(_mlp()).partial_fit(x, y, classes=[[False, True]] * 2)
    assert model.predict(x).shape == y.shape


def test_transformed_target():
    model = TransformedTargetRegressor(
        MLPRegressor(solver="lbfgs", max_iter=100, random_state=0), transformer=StandardScaler()
    )
    assert (
        make_pipeline(StandardScaler(), model).fit(X[:, :3], 1000 * X[:, 3]).score(X[:, :3], 1000 * X[:, 3])
        > 0.9
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_column_transformer(sparse):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"length": X[:, 2], "kind": np.array(["a", "b", "c"])[Y]})
    columns = ColumnTransformer(
        [("number", StandardScaler(), ["length"]), ("text", OneHotEncoder(sparse_output=sparse), ["kind"])],
        sparse_threshold=1.0,
    )
    model = make_pipeline(columns, _mlp(max_iter=100)).fit(frame, Y)
    assert model.score(frame, Y) > 0.95


def test_sample_weight_is_routed():
    weight = np.where(Y == 1, 5.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        model = _mlp().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, model).fit(X, Y, sample_weight=weight)
        if tuple(map(int, sklearn.__version__.split(".")[:2])) > (1, 6):  # whose Pipeline routes no scores
            measured = cross_validate(pipeline, X, Y, cv=3, params={"sample_weight": weight})
            assert measured["test_score"].mean() > 0.9
    scaled = StandardScaler().fit_transform(X)
    same = _mlp().fit(scaled, Y, sample_weight=weight)
    np.testing.assert_array_equal(pipeline[-1].coefs_[0], same.coefs_[0])


@pytest.mark.parametrize("only", [0, slice(40)])
def test_held_out_rows_of_no_weight_are_refused(only):
    """Rows are held out by chance: where all that count fall to one side, nothing is to be learned."""
    weight = np.zeros(len(Y))
    weight[only] = 1
    if only == 0:
        with pytest.raises(
            ValueError, match=r"sample_weight is 0 for all of the \d+ rows chosen to (train|score)"
        ):
            _mlp(early_stopping=True).fit(X, Y, sample_weight=weight)
    else:
        _mlp(early_stopping=True, max_iter=2).fit(X, Y, sample_weight=weight)


def _fitted(seed):
    return _mlp(random_state=seed, max_iter=5).fit(X, Y).predict_proba(X)


@pytest.mark.parametrize("prefer", ["processes", "threads"])
def test_parallel_fits_give_the_bits_of_one_after_the_other(prefer):
    fits = joblib.Parallel(n_jobs=2, prefer=prefer)(joblib.delayed(_fitted)(seed) for seed in range(4))
    for seed, probabilities in enumerate(fits):
        np.testing.assert_array_equal(probabilities, _fitted(seed))


@pytest.mark.filterwarnings("ignore")
def test_a_pruned_search_of_optuna():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    class Report(po.callbacks.Callback):
        def __init__(self, trial):
            self.trial = trial

        def on_epoch_end(self, epoch, logs):
            self.trial.report(logs["loss"], epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def objective(trial):
        rate = trial.suggest_float("learning_rate_init", 1e-4, 1e-1, log=True)
        model = _mlp(learning_rate_init=rate, max_iter=20, callbacks=[Report(trial)])
        return model.fit(StandardScaler().fit_transform(X), Y).loss_

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=10)
    assert study.best_value < 0.3
    assert any(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
