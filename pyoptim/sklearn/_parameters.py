"""What scikit-learn's validation is told of each parameter of the estimators."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from ._theirs import Interval, Options, StrOptions

_POSITIVE = Interval(Real, 0, None, closed="neither")
_AT_LEAST_ZERO = Interval(Real, 0, None, closed="left")
_FRACTION = Interval(Real, 0, 1, closed="left")
_COUNT = Interval(Integral, 1, None, closed="left")

# scikit-learn's own parameters, with the ranges of its version 1.9.
OF_SKLEARN: dict[str, list[Any]] = {
    "hidden_layer_sizes": ["array-like", _COUNT],
    "activation": [StrOptions({"identity", "logistic", "tanh", "relu"})],
    "solver": [StrOptions({"lbfgs", "sgd", "adam"})],
    "alpha": [_AT_LEAST_ZERO],
    "batch_size": [StrOptions({"auto"}), _COUNT],
    "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
    "learning_rate_init": [_POSITIVE],
    "power_t": [_AT_LEAST_ZERO],
    "max_iter": [_COUNT],
    "shuffle": ["boolean"],
    "random_state": ["random_state"],
    "tol": [_AT_LEAST_ZERO],
    "verbose": ["verbose"],
    "warm_start": ["boolean"],
    "momentum": [Interval(Real, 0, 1, closed="both")],
    "nesterovs_momentum": ["boolean"],
    "early_stopping": ["boolean"],
    "validation_fraction": [_FRACTION],
    "beta_1": [_FRACTION],
    "beta_2": [_FRACTION],
    "epsilon": [_POSITIVE],
    "n_iter_no_change": [_COUNT, Options(Real, {np.inf})],
    "max_fun": [_COUNT],
}

OURS: dict[str, list[Any]] = {
    "optimizer": [callable, None],
    "dropout": [_FRACTION],
    "batch_norm": ["boolean"],
    "layer_norm": ["boolean"],
    "residual": ["boolean"],
    "schedule": [callable, None],
    "callbacks": [list, tuple, None],
    "max_grad_norm": [_POSITIVE, None],
    "average": [StrOptions({"ema", "swa"}), None],
    "dtype": [StrOptions({"auto", "float32", "float64"})],
    "backend": [str, None],
    "n_jobs": [Integral, None],
}

OF_CLASSIFIER: dict[str, list[Any]] = {
    "class_weight": [dict, list, StrOptions({"balanced"}), None],
    "label_smoothing": [Interval(Real, 0, 1, closed="both")],
}

OF_REGRESSOR: dict[str, list[Any]] = {"loss": [StrOptions({"squared_error", "poisson"})]}
