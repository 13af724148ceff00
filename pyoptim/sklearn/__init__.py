"""Multi-layer perceptrons for scikit-learn's users: a change of the import is enough.

>>> from pyoptim.sklearn import MLPClassifier  # instead of sklearn.neural_network
>>> model = make_pipeline(StandardScaler(), MLPClassifier(random_state=0)).fit(X, y)

They take scikit-learn's parameters, compute what it computes, have its fitted attributes, and train in the
compiled engine. Parameters beyond those of scikit-learn, such as ``dropout``, are at the end of each list.
Needs scikit-learn 1.6 or newer (the extra ``sklearn``).
"""

from ..runtime.extras import needed

needed("sklearn", "pyoptim.sklearn needs scikit-learn", "pyoptim[sklearn]")

from ._classifier import MLPClassifier  # noqa: E402
from ._convert import from_estimator  # noqa: E402
from ._regressor import MLPRegressor  # noqa: E402

__all__ = ["MLPClassifier", "MLPRegressor", "from_estimator"]


def __dir__() -> list[str]:
    return __all__
