"""`MLPRegressor`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if

from ..runtime.dtypes import Array
from ._base import BasePerceptron
from ._parameters import OF_REGRESSOR, OF_SKLEARN, OURS
from ._theirs import fit_context


class MLPRegressor(RegressorMixin, BasePerceptron):  # type: ignore[misc]
    """A multi-layer perceptron for numbers, in the place of `sklearn.neural_network.MLPRegressor`.

    Parameters
    ----------
    loss, hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init, \
power_t, max_iter, shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum, \
early_stopping, validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun
        As scikit-learn 1.9 has them.
    optimizer : class or callable, optional
        An optimizer of pyoptim in the place of the solver's, any but `Muon`, which is for matrices alone: a
        class, a `functools.partial` of one, or a function of the parameters. ``lr=learning_rate_init`` (or
        ``schedule``) is given too, unless a partial holds ``lr`` or a function has no argument of that name.
        Options of "sgd" and "adam" are not read then.
    dropout : float in [0, 1), default 0
        After each hidden layer.
    batch_norm, layer_norm : bool, default False
        Normalise each hidden layer before its activation.
    residual : bool, default False
        Add the input of each hidden layer that has as many outputs as inputs.
    schedule : callable, optional
        The learning rate as a function of the step, e.g. one of `schedules`, in the place of
        ``learning_rate`` and ``learning_rate_init``.
    callbacks : list of `callbacks.Callback`, optional
        They see the ``loss``, and ``val_score`` and ``val_loss`` (without penalty and label_smoothing) where
        examples are scored: with ``early_stopping``, or an ``eval_set`` in `fit`.
    max_grad_norm : float, optional
        Gradients are scaled down to this norm.
    average : {None, "ema", "swa"}
        Predict with an average of the weights: an exponential one of the steps, or the mean of the epochs.
        The statistics of ``batch_norm`` are then made anew, as by `averages.update_bn`.
    dtype : {"auto", "float32", "float64"}
        What is computed in. "auto" is scikit-learn's rule: float32 for X of float32, else float64; outputs
        have the larger of the dtypes of X and of the weights.
    backend : str, optional
        One of `available_backends`.
    n_jobs : int, optional
        Threads; -1: all processors, -2: all but one. None leaves the number as `set_num_threads` set it.
        Results do not depend on it. While `fit` runs the whole process has this number, as by `num_threads`.

    Attributes
    ----------
    coefs_, intercepts_, loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_, \
n_iter_, t_, n_layers_, n_outputs_, out_activation_, n_features_in_, feature_names_in_
        As scikit-learn has them. Writing into ``coefs_`` and ``intercepts_`` changes the model.

    Notes
    -----
    See `MLPClassifier`. With several outputs L-BFGS minimizes the sum of their losses, of which
    scikit-learn's gradient is, where scikit-learn gives SciPy that gradient with the mean of the losses.
    """

    _theirs = "MLPRegressor"
    _parameter_constraints: ClassVar[dict[str, Any]] = {**OF_SKLEARN, **OURS, **OF_REGRESSOR}

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: int = 15000,
        optimizer: Any = None,
        dropout: float = 0.0,
        batch_norm: bool = False,
        layer_norm: bool = False,
        residual: bool = False,
        schedule: Any = None,
        callbacks: Any = None,
        max_grad_norm: float | None = None,
        average: str | None = None,
        dtype: str = "auto",
        backend: str | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.optimizer = optimizer
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.layer_norm = layer_norm
        self.residual = residual
        self.schedule = schedule
        self.callbacks = callbacks
        self.max_grad_norm = max_grad_norm
        self.average = average
        self.dtype = dtype
        self.backend = backend
        self.n_jobs = n_jobs

    # ---- what the base class asks --------------------------------------------------------------------------

    def _checked(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        X, y = self._validated(X, y, multi_output=True, y_numeric=True, dtype=self._dtypes(), reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if self.loss == "poisson" and np.any(np.asarray(y) < 0):
            raise ValueError("loss='poisson' requires non-negative y.")
        return X, y

    def _checked_like(self, X: Any, y: Any) -> tuple[Any, Any]:
        return self._checked(X, y, False, False)

    def _encoded(self, y: Any) -> Array:
        encoded = np.asarray(y)
        encoded = encoded[:, None] if encoded.ndim == 1 else encoded
        return encoded.astype(np.float64, copy=False)

    def _out_activation(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _score_of(self, outputs: Array, y: Array, weight: Array | None) -> float:
        predicted = self._activated(outputs)
        if not np.isfinite(predicted).all():
            return np.nan
        return float(r2_score(y, predicted, sample_weight=weight))

    def _activated(self, outputs: Array) -> Array:
        return np.exp(outputs, out=outputs) if self.out_activation_ == "exp" else outputs

    # ---- for users -----------------------------------------------------------------------------------------

    @available_if(lambda self: self._check_solver())  # type: ignore[untyped-decorator]
    @fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train for one epoch over X and y, as in `fit`, and go on from there in the next call."""
        return self._fit(X, y, sample_weight, True)

    def predict(self, X: Any) -> Array:
        """The numbers for each row of X, (examples,) or (examples, outputs)."""
        predicted = self._activated(self._outputs(X))
        return predicted.ravel() if predicted.shape[1] == 1 else predicted
