"""What the classifier and the regressor share: `fit`, its two kinds of solver, and outputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any

import numpy as np
import sklearn.neural_network as theirs
from sklearn.base import BaseEstimator, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import averages
from ..runtime import threads
from ..runtime.dispatch import use_backend
from ..runtime.dtypes import Array
from ..train.data import Data, SparseRows
from ..train.trainer import Trainer
from ._copied import copied
from ._epochs import Epochs
from ._frames import explained
from ._lbfgs import minimize
from ._losses import Objective, objective
from ._network import Extras, Network
from ._solver import Solver

_TRANSIENT = ("_network", "_optimizer", "_epochs", "_random_state", "coefs_", "intercepts_")


class BasePerceptron(BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron; `MLPClassifier` and `MLPRegressor` say what its parameters mean."""

    _theirs: str  # the name of scikit-learn's class
    _best: dict[str, Array] | None = None  # the network's state when its score was best

    # ---- what the two kinds of estimator say ---------------------------------------------------------------

    def _encoded(self, y: Any) -> Array:
        """Checked targets for the loss: labels (examples,) from 0, or numbers (examples, outputs)."""
        raise NotImplementedError

    def _checked(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        """X and y, checked as scikit-learn does."""
        raise NotImplementedError

    def _out_activation(self) -> str:
        raise NotImplementedError

    def _score_of(self, outputs: Array, y: Array, weight: Array | None) -> float:
        """The score of the last layer's outputs, for encoded targets."""
        raise NotImplementedError

    def _stratification(self, y: Array) -> Any:
        """What the split for early stopping keeps the shares of, or None."""
        return None

    def _weighted(self, y: Any, weight: Array | None, incremental: bool) -> Array | None:
        """The weights of the examples, those of their classes included."""
        return weight

    # ---- fit -----------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: Any = None) -> Any:
        """Fit the model to X and y.

        Parameters
        ----------
        X : array, frame or sparse matrix (examples, features)
            Of any real dtype; of frames, columns of numbers or bools. Sparse rows become dense one mini-batch
            at a time.
        y : array (examples,) or (examples, outputs)
        sample_weight : array (examples,), optional
            What each example counts.
        eval_set : (X, y), optional
            Examples to score after each epoch, in the place of those that ``early_stopping`` holds back.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As scikit-learn's: a parameter, X or y is not what it is expected to be.
        """
        return self._fit(X, y, sample_weight, False, eval_set)

    def _fit(
        self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False, eval_set: Any = None
    ) -> Any:
        first = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        hidden = self._hidden_units()
        X, y = self._checked(X, y, incremental, first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        sample_weight = self._weighted(y, sample_weight, incremental)
        y = self._encoded(y)
        if incremental:
            self._refuse_partial_fit()
        self._random_state = check_random_state(self.random_state)
        if first:
            units = [X.shape[1], *hidden, self.n_outputs_]
            self._initialize(units, X.dtype)
        network = self._synced()
        data = Data(self._rows(X), self._targets(y), sample_weight)
        with self._settings():
            if self.solver == "lbfgs":
                self._fit_lbfgs(network, data)
            else:
                self._fit_stochastic(network, data, incremental, eval_set)
        if not np.isfinite(network.model.flat_parameters).all():
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and "
                "need to be preprocessed."
            )
        return self

    def _refuse_partial_fit(self) -> None:
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if self.average is not None:
            raise ValueError(f"partial_fit does not support average={self.average!r}")

    def _hidden_units(self) -> list[int]:
        hidden: Any = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if np.any(np.array(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        return [int(units) for units in hidden]

    def _settings(self) -> ExitStack:
        """The backend and the number of threads that the parameters ask for."""
        settings = ExitStack()
        if self.backend is not None:
            settings.enter_context(use_backend(self.backend))
        if self.n_jobs is not None:
            many = self.n_jobs if self.n_jobs > 0 else max(1, threads._usable_processors() + 1 + self.n_jobs)
            settings.enter_context(threads.num_threads(many))
        return settings

    def _dtypes(self) -> Any:
        return (np.float64, np.float32) if self.dtype == "auto" else np.dtype(self.dtype)

    def _validated(self, X: Any, y: Any = "no_validation", **options: Any) -> Any:
        with explained(X):
            return validate_data(self, X, y, accept_sparse="csr", **options)

    def _rows(self, X: Any) -> Any:
        """Checked X, as the engine takes it."""
        dtype = self._network.model.dtype
        if not isinstance(X, np.ndarray):
            return SparseRows(X, dtype)
        return np.asarray(np.ascontiguousarray(X, dtype))

    def _targets(self, y: Array) -> Array:
        return (
            y if y.dtype == np.int64 and y.ndim == 1 else np.ascontiguousarray(y, self._network.model.dtype)
        )

    # ---- the network ---------------------------------------------------------------------------------------

    def _initialize(self, units: Sequence[int], dtype: Any) -> None:
        """Make a new network, with scikit-learn's first weights."""
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(units)
        self.out_activation_ = self._out_activation()
        random, factor = self._random_state, 2.0 if self.activation == "logistic" else 6.0
        drawn = []
        for before, after in pairwise(units):
            bound = np.sqrt(factor / (before + after))
            drawn.append(random.uniform(-bound, bound, (before, after)))
            drawn.append(random.uniform(-bound, bound, after))
        extras = self._extras()
        seed = int(random.randint(np.iinfo(np.int32).max)) if extras.dropout else 0
        self._network = Network(units, self.activation, extras, dtype, seed)
        self.coefs_, self.intercepts_ = drawn[::2], drawn[1::2]
        self._network.adopt(self.coefs_, self.intercepts_)
        self._best = None
        self.__dict__.pop("_optimizer_state", None)
        if self.solver != "lbfgs":
            self._begin_curves()

    def _begin_curves(self) -> None:
        self.loss_curve_: list[float] = []
        self._no_improvement_count = 0
        self.best_loss_: Any = None if self.early_stopping else np.inf
        self.validation_scores_: Any = [] if self.early_stopping else None
        self.best_validation_score_: Any = -np.inf if self.early_stopping else None

    def _extras(self) -> Extras:
        return Extras(self.dropout, self.batch_norm, self.layer_norm, self.residual)

    def _synced(self) -> Network:
        """The network, with the arrays in `coefs_` and `intercepts_`, which a user may have replaced."""
        network: Network | None = self.__dict__.get("_network")
        if network is None:  # somebody has set the weights of an estimator that was not fitted
            units = [len(self.coefs_[0]), *(np.shape(coef)[1] for coef in self.coefs_)]
            dtype = np.result_type(np.float32, *self.coefs_)
            network = self._network = Network(units, self.activation, self._extras(), dtype)
        network.adopt(self.coefs_, self.intercepts_)
        return network

    def _objective(self) -> Objective:
        kind = {"identity": "squared_error", "exp": "poisson"}.get(self.out_activation_, self.out_activation_)
        return objective(kind, self._network.intercepts[-1].size, getattr(self, "label_smoothing", 0.0))

    # ---- the solvers ---------------------------------------------------------------------------------------

    def _fit_lbfgs(self, network: Network, data: Data) -> None:
        if self.dropout or self.average is not None:
            raise ValueError("solver='lbfgs' does not support dropout and average")
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        found = minimize(network.model, self._objective(), self.alpha, data, options)
        self.n_iter_ = _check_optimize_result("lbfgs", found.result, self.max_iter)
        self.loss_ = found.loss

    def _fit_stochastic(self, network: Network, data: Data, incremental: bool, eval_set: Any) -> None:
        if not hasattr(self, "loss_curve_"):
            self._begin_curves()
        if self.early_stopping and self.average is not None:
            raise ValueError(f"early_stopping=True does not support average={self.average!r}")
        solver = self._solver(network, incremental)
        data, held_back = self._hold_back(data, eval_set)
        count = len(data.x)
        average = self._average(network, solver)  # first, since the engine takes along what follows by then
        epochs, callbacks = self._prepared(network, solver, data), list(self.callbacks or ())
        order = np.arange(count)
        self.n_iter_ = 0
        try:
            self._tell(callbacks, "on_train_begin")
            for _ in range(self.max_iter):
                self._tell(callbacks, "on_epoch_begin", self.n_iter_)
                if self.shuffle:
                    order = self._shuffled(order)
                self._run_epoch(epochs, data, order if self.shuffle else None)
                if isinstance(average, averages.SWA):
                    average.update()
                self._note_improvement(network, held_back)
                solver.end_epoch(self.t_)
                logs = {"loss": self.loss_}
                if held_back is not None:
                    logs["val_score"] = self.validation_scores_[-1]
                self._tell(callbacks, "on_epoch_end", self.n_iter_ - 1, logs)
                if self._is_over(solver) or incremental or epochs.trainer.stop_training:
                    break
                if self.n_iter_ == self.max_iter:
                    _warn_of_no_convergence(self.max_iter)
            self._tell(callbacks, "on_train_end")
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        finally:
            for callback in callbacks:
                callback.__dict__.pop("trainer", None)
            if not incremental:
                del self._epochs
        if average is not None:
            average._write(average._params, average.averages)
        if self.early_stopping and self._best is not None:
            network.model.load_state_dict(self._best)

    def _solver(self, network: Network, incremental: bool) -> Solver:
        """The solver of the last `partial_fit`, or a new one."""
        solver: Solver | None = self.__dict__.get("_optimizer")
        if solver is not None and incremental:
            return solver
        solver = self._optimizer = Solver(self, network.model)
        state = self.__dict__.pop("_optimizer_state", None)
        if incremental and state is not None:  # of an estimator that was pickled
            solver.load(state)
        return solver

    def _hold_back(self, data: Data, eval_set: Any) -> tuple[Data, Data | None]:
        """The examples to train on, and those to score after each epoch."""
        if eval_set is not None:
            return data, self._evaluated(eval_set)
        if not self.early_stopping:
            return data, None
        rows = np.arange(len(data.x))
        train, test = train_test_split(
            rows,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._stratification(data.y),
        )
        if len(test) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )

        def part(chosen: Array) -> Data:
            x = data.x.take(chosen) if isinstance(data.x, SparseRows) else data.x[chosen]
            return Data(x, data.y[chosen], None if data.weight is None else data.weight[chosen])

        return part(train), part(test)

    def _evaluated(self, eval_set: Any) -> Data:
        try:
            X, y = eval_set
        except (TypeError, ValueError):
            raise ValueError(f"eval_set is a {type(eval_set).__name__}, expected a pair (X, y)") from None
        X, y = self._checked(X, y, True, False)
        return Data(self._rows(X), self._targets(self._encoded(y)))

    def _prepared(self, network: Network, solver: Solver, data: Data) -> Epochs:
        """What runs the epochs: for `partial_fit` that of the last call, if it suits."""
        count, inputs = len(data.x), data.x.shape[1]
        size = min(200, count) if self.batch_size == "auto" else self.batch_size
        if size > count:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
                stacklevel=5,
            )
            size = count
        if self.batch_norm and (count % size or size) == 1:  # a batch of one row
            if self.batch_size != "auto" or count == 1:
                raise ValueError(
                    f"batch_size={self.batch_size!r} makes a batch of 1 of {count} rows, which batch_norm "
                    "cannot take statistics of: expected another batch_size"
                )
            size -= 1
        alpha = float(self.alpha)
        epochs: Epochs | None = self.__dict__.get("_epochs")
        of = self._objective()
        serves = epochs is not None and epochs.serves(solver.optimizer, of, alpha, size, inputs)
        if epochs is None or self.callbacks or not serves:
            trainer = Trainer(network.model, of.loss, solver.optimizer)
            epochs = self._epochs = Epochs(trainer, of, alpha, size, inputs, self.callbacks or ())
        epochs.trainer.stop_training = False
        for callback in self.callbacks or ():
            callback.trainer = epochs.trainer
        return epochs

    def _average(self, network: Network, solver: Solver) -> averages.WeightAverage | None:
        if self.average == "ema":
            return averages.EMA(solver.optimizer, warm_up=True)
        return averages.SWA(network.model.parameters()) if self.average == "swa" else None

    @staticmethod
    def _tell(callbacks: list[Any], hook: str, *arguments: Any) -> None:
        for callback in callbacks:
            getattr(callback, hook)(*arguments)

    def _shuffled(self, order: Array) -> Array:
        """The order of the next epoch, with scikit-learn's random numbers."""
        drawn = np.arange(len(order))
        self._random_state.shuffle(drawn)
        shuffled: Array = order[drawn]
        return shuffled

    def _run_epoch(self, epochs: Epochs, data: Data, order: Array | None) -> None:
        sums, count = epochs.run(data, order), len(data.x)
        self.n_iter_ += 1
        reported = epochs.objective.reported
        self.loss_ = ((sums.loss - sums.penalty) * reported + sums.penalty) / count
        self.t_ += count
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")

    def _note_improvement(self, network: Network, held_back: Data | None) -> None:
        """Count the epochs without improvement, of the loss or of the score on examples held back."""
        if held_back is not None:
            score = self._score_of(network.outputs(held_back.x), held_back.y, held_back.weight)
            if getattr(self, "validation_scores_", None) is None:
                self.validation_scores_ = []
            self.validation_scores_.append(score)
            if self.verbose:
                print(f"Validation score: {score:f}")
        if self.early_stopping:
            is_better = not score < self.best_validation_score_ + self.tol
            if score > self.best_validation_score_:
                self.best_validation_score_ = score
                self._best = network.state()
        else:
            is_better = not self.loss_ > self.best_loss_ - self.tol
            if self.loss_ < self.best_loss_:
                self.best_loss_ = self.loss_
        self._no_improvement_count = 0 if is_better else self._no_improvement_count + 1

    def _is_over(self, solver: Solver) -> bool:
        """Whether training ends, since it improves no more; warns where it ends without that."""
        if self._no_improvement_count > self.n_iter_no_change:
            what = "Validation score" if self.early_stopping else "Training loss"
            message = f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change:d}"
            if solver.stops(message + " consecutive epochs.", bool(self.verbose)):
                return True
            self._no_improvement_count = 0
        return False

    def to_estimator(self) -> Any:
        """This estimator as scikit-learn's own, with the parameters that scikit-learn has, and the weights.

        Predictions are equal up to rounding. `from_estimator` is the way back.

        Raises
        ------
        ValueError
            The network has what scikit-learn's has not: ``batch_norm``, ``layer_norm`` or ``residual``.
        """
        for name in ("batch_norm", "layer_norm", "residual"):
            if getattr(self, name):
                raise ValueError(f"{name} is True, which scikit-learn's perceptrons do not have")
        if hasattr(self, "coefs_"):
            self._synced()
        return copied(self, getattr(theirs, self._theirs))

    # ---- outputs -------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Array:
        """The last layer's outputs for X, before `out_activation_`."""
        network: Network | None = self.__dict__.get("_network")
        if network is not None and self._takes_at_once(X, network):
            with suppress(ValueError):  # of values that are not finite, for which scikit-learn has its words
                return self._synced().outputs(X)
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        with self._settings():
            network = self._synced()
            return network.outputs(self._rows(X))

    def _takes_at_once(self, X: Any, network: Network) -> bool:
        """Whether X needs no more checks than a look at its values."""
        return (
            type(X) is np.ndarray
            and X.dtype == network.model.dtype
            and X.ndim == 2
            and X.shape[0] > 0
            and X.shape[1] == self.n_features_in_
            and "feature_names_in_" not in self.__dict__
            and self.backend is None
            and self.n_jobs is None
        )

    # ---- copies --------------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coefs_")

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "_network" in state:
            network = self._synced()
            state = {name: value for name, value in state.items() if name not in _TRANSIENT}
            state["_model"] = network.model
            if "_optimizer" in self.__dict__:
                state["_optimizer_state"] = self._optimizer.state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        model = state.pop("_model", None)
        super().__setstate__(state)
        if model is not None:
            self._network = Network.of(model)
            self.coefs_, self.intercepts_ = list(self._network.coefs), list(self._network.intercepts)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_solver(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError(
                "partial_fit is only available for stochastic optimizers. lbfgs is not stochastic."
            )
        return True


def _warn_of_no_convergence(max_iter: int) -> None:
    warnings.warn(
        f"Stochastic Optimizer: Maximum iterations ({max_iter:d}) reached and the optimization hasn't "
        "converged yet.",
        ConvergenceWarning,
        stacklevel=6,
    )
