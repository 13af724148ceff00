"""An estimator's parameters and fitted attributes, in an estimator of another class."""

from __future__ import annotations

import copy
from typing import Any

_PRIVATE = ("_label_binarizer", "_no_improvement_count")  # of scikit-learn's, and of pyoptim's


def copied(estimator: Any, kind: type[Any]) -> Any:
    """Return an estimator of this kind with those parameters that it has, and the fitted attributes."""
    known = kind._get_param_names()
    given = estimator.get_params(deep=False)
    made = kind(**{name: copy.copy(value) for name, value in given.items() if name in known})
    for name, value in vars(estimator).items():
        if name in ("coefs_", "intercepts_"):
            setattr(made, name, [array.copy(order="C") for array in value])
        elif (name.endswith("_") and not name.startswith("_")) or name in _PRIVATE:
            setattr(made, name, copy.deepcopy(value))
    return made
