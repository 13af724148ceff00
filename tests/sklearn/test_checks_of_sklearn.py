"""scikit-learn's checks of what an estimator must do."""

import pytest

pytest.importorskip("sklearn")
from sklearn.utils.estimator_checks import estimator_checks_generator

from pyoptim.sklearn import MLPClassifier, MLPRegressor

# With L-BFGS the fits go on until they converge, which these checks do not need.
ESTIMATORS = [
    kind(solver=solver, max_iter=30 if solver == "lbfgs" else 100)
    for kind in (MLPClassifier, MLPRegressor)
    for solver in ("adam", "sgd", "lbfgs")
]
CHECKS = [pair for estimator in ESTIMATORS for pair in estimator_checks_generator(estimator)]


def _name(value):
    """Of an estimator, or of a check, which is a `functools.partial`."""
    return (
        getattr(getattr(value, "func", value), "__name__", None) or f"{type(value).__name__}-{value.solver}"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=_name)
def test_checks_of_sklearn(estimator, check):
    check(estimator)
