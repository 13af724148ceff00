"""scikit-learn's checks of what an estimator must do."""

import pytest

pytest.importorskip("sklearn")
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyoptim.sklearn import MLPClassifier, MLPRegressor

# With L-BFGS the fits go on until they converge, which these checks do not need.
ESTIMATORS = [
    kind(solver=solver, max_iter=30 if solver == "lbfgs" else 100)
    for kind in (MLPClassifier, MLPRegressor)
    for solver in ("adam", "sgd", "lbfgs")
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ESTIMATORS)
def test_checks_of_sklearn(estimator, check):
    check(estimator)
