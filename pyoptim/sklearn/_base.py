"""What the classifier and the regressor share: `fit`, its two kinds of solver, and outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from numbers import Number
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import sklearn.neural_network as theirs
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

import pyoptim

from .. import averages
from ..arrays.memory import refuse_masked
from ..runtime import threads
from ..runtime.dispatch import use_backend
from ..runtime.dtypes import Array
from ..runtime.numbers import is_integer, is_number, shown
from ..train.data import Data, SparseRows
from ..train.trainer import Trainer
from ._copied import copied
from ._epochs import Epochs
from ._explained import explained, named
from ._lbfgs import Hooks, minimize
from ._losses import Objective, mean_loss, objective
from ._network import Extras, Network
from ._solver import Solver
from ._theirs import check_sample_weight, fit_context, validate_parameter_constraints
from ._warnings import warn, warn_of_lbfgs
from ._watch import Watch, check_callbacks

_TRANSIENT = ("_network", "_optimizer", "_epochs", "_random_state", "_seeded", "coefs_", "intercepts_")
_NORMS = ("batch_norm", "layer_norm")
# Of each class, the names of its parameters, with the function that has them.
_NAMES: WeakKeyDictionary[type[Any], tuple[Any, list[str]]] = WeakKeyDictionary()
_IMMUTABLE = (bool, int, float, str, tuple, type(None))
# Of each class, for each parameter the last value of these types that was valid, and by which constraints.
_FOUND_VALID: WeakKeyDictionary[type[Any], dict[str, tuple[Any, Any]]] = WeakKeyDictionary()


def _has_finite_sum(array: Array) -> bool:
    """Whether the sum is finite, so that all elements are."""
    if array.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()))


class _Training(NamedTuple):
    """What a call of `fit` has checked and made before it trains."""

    network: Network
    data: Data
    held_back: Data | None  # scored after each epoch
    watch: Watch
    epochs: Epochs | None  # None: L-BFGS
    average: averages.WeightAverage | None


class BasePerceptron(BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron; `MLPClassifier` and `MLPRegressor` say what its parameters mean."""

    _theirs: str  # the name of scikit-learn's class

    # ---- what the two kinds of estimator say ---------------------------------------------------------------

    def _checked(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        """X and y, checked as scikit-learn does."""
        raise NotImplementedError

    def _checked_like(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Other X and y, checked to be of the kind of those that the last `_checked` got."""
        raise NotImplementedError

    def _encoded(self, y: Any) -> Array:
        """Checked targets as scores take them: labels (examples,) from 0, or numbers (examples, outputs)."""
        raise NotImplementedError

    def _outputs_for(self, encoded: Array) -> int:
        """How many outputs these targets need."""
        return int(encoded.shape[1])

    def _smoothed(self, encoded: Array) -> Array:
        """Encoded targets as the loss takes them."""
        return encoded

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

    def _begin_incremental(self, y: Any, classes: Any) -> None:
        """Take note of what the first call of `partial_fit` says of all to come."""

    # ---- fit -----------------------------------------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
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
            Examples to score after each epoch (each iteration of "lbfgs"), in the place of those that
            ``early_stopping`` holds back. Scores are of the weights as they are trained, not of an
            ``average``, and of targets as they are, without ``label_smoothing``.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As scikit-learn's: a parameter, X, y or eval_set is not what it is expected to be. The estimator
            is as it was before.
        """
        return self._fit(X, y, sample_weight, False, eval_set)

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        incremental: bool = False,
        eval_set: Any = None,
        classes: Any = None,
    ) -> Any:
        with ExitStack() as settings:
            with self._restored_if_refused():
                self._set(settings)
                self._refuse_what_contradicts(incremental)
                if incremental:
                    self._begin_incremental(y, classes)
                training = self._prepared(X, y, sample_weight, incremental, eval_set)
                training.watch.begin()
            if training.epochs is None:
                self._train_by_lbfgs(training)
            else:
                self._train_by_epochs(training, training.epochs, incremental)
        model = training.network.model
        statistics = [array for array in model._named("buffers").values() if array.dtype.kind == "f"]
        if not all(np.isfinite(array).all() for array in (model.flat_parameters, *statistics)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and "
                "need to be preprocessed."
            )
        return self

    @contextmanager
    def _restored_if_refused(self) -> Iterator[None]:
        """Inside the ``with`` block, an error leaves the estimator's attributes as they were before."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _prepared(self, X: Any, y: Any, sample_weight: Any, incremental: bool, eval_set: Any) -> _Training:
        """Check everything, and make what trains."""
        first = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        scored = eval_set is not None or (self.early_stopping and self.solver != "lbfgs")
        callbacks = check_callbacks(self.callbacks, scored, self.solver)
        hidden = self._hidden_units() if first else []
        X, y = self._checked(X, y, incremental, first)
        if sample_weight is not None:
            with named("sample_weight"):
                refuse_masked("sample_weight", sample_weight)
                # scikit-learn looks at the values of arrays alone.
                if isinstance(sample_weight, Number) and not is_number(sample_weight):
                    raise ValueError(f"sample_weight is {sample_weight!r}, expected finite numbers")
                sample_weight = check_sample_weight(sample_weight, X)
        sample_weight = self._weighted(y, sample_weight, incremental)
        y = self._encoded(y)
        self.n_outputs_ = self._outputs_for(y)
        evaluated = None if eval_set is None else self._evaluated(eval_set)
        self._random_state = self._seeded_anew()
        if first:
            self._initialize([X.shape[1], *hidden, self.n_outputs_], X.dtype)
        network = self._synced() if first else self._continued()
        self._begin_curves(first, scored)
        if sample_weight is not None:
            sample_weight = np.ascontiguousarray(sample_weight, network.model.dtype)
        data = Data(self._rows(X), y, sample_weight)
        held_back = None
        if evaluated is not None:
            held_back = Data(self._rows(evaluated[0]), evaluated[1])
        elif scored:
            data, held_back = self._split(data)
        data = data._replace(y=self._targets(self._smoothed(data.y)))
        if self.solver == "lbfgs":
            trainer, rate = None, 1.0
            if callbacks:  # which look at a trainer; nothing reads its learning rate
                optimizer = pyoptim.SGD(network.model.parameters(), rate)
                trainer = Trainer(network.model, self._objective().loss, optimizer)
            return _Training(network, data, held_back, Watch(callbacks, trainer, rate), None, None)
        solver = self._solver(network, incremental)
        average = self._average(network, solver)  # first, since the engine takes along what follows by then
        epochs = self._epochs_of(network, solver, data)
        return _Training(network, data, held_back, Watch(callbacks, epochs.trainer), epochs, average)

    def _refuse_what_contradicts(self, incremental: bool) -> None:
        """Raise ValueError for parameters of which one would do nothing."""
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if incremental and self.average is not None:
            raise ValueError(f"partial_fit does not support average={self.average!r}")
        if self.solver == "lbfgs":
            for name in ("optimizer", "schedule", "max_grad_norm", "average", "dropout"):
                if getattr(self, name) not in (None, 0.0):
                    raise ValueError(
                        f"solver='lbfgs' does not support {name}={getattr(self, name)!r:.100}: it minimizes "
                        "the loss of all examples with steps of its own; expected solver='adam' or 'sgd'"
                    )
        elif self.early_stopping and self.average is not None:
            raise ValueError(f"early_stopping=True does not support average={self.average!r}")

    def _hidden_units(self) -> list[int]:
        hidden: Any = self.hidden_layer_sizes
        is_list = hasattr(hidden, "__iter__") and getattr(hidden, "ndim", 1) > 0
        hidden = list(hidden) if is_list else [hidden]
        if not all(map(is_integer, hidden)):
            raise ValueError(f"hidden_layer_sizes is {shown(hidden)}, expected integers > 0")
        if min(hidden, default=1) <= 0:
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        return [int(units) for units in hidden]

    def _set(self, settings: ExitStack) -> None:
        """Put the backend and the number of threads into force that the parameters ask for."""
        if self.backend is not None:
            settings.enter_context(use_backend(self.backend))
        n = self.n_jobs
        if n is not None:
            most = threads._most()
            if isinstance(n, bool) or n == 0 or n > most:
                raise ValueError(
                    f"n_jobs is {n!r}, expected None, a number of threads from 1 to {most}, or -1 for all "
                    "processors (-2 for all but one)"
                )
            many = n if n > 0 else min(max(1, threads._usable_processors() + 1 + n), most)
            settings.enter_context(threads.num_threads(int(many)))

    def _dtypes(self) -> Any:
        return (np.float64, np.float32) if self.dtype == "auto" else np.dtype(self.dtype)

    def _validated(self, X: Any, y: Any = "no_validation", **options: Any) -> Any:
        if self._are_usual(X, y, options["reset"]):  # which takes scikit-learn 0.4 ms to find out
            self.n_features_in_ = X.shape[1]
            return X, y
        with explained(X, y):
            return validate_data(self, X, y, accept_sparse="csr", **options)

    def _are_usual(self, X: Any, y: Any, reset: bool) -> bool:
        """Whether scikit-learn's checks of these would return them as they are, and warn of nothing."""
        return (
            type(X) is type(y) is np.ndarray
            and X.dtype in (np.float64, np.float32)
            and self.dtype in ("auto", X.dtype.name)
            and y.dtype.kind in "biuf"
            and X.ndim == 2
            and len(X) == y.size
            and y.ndim == 1
            and X.size > 0
            and "feature_names_in_" not in self.__dict__
            and (reset or X.shape[1] == self.__dict__.get("n_features_in_"))
            and _has_finite_sum(X)
            and _has_finite_sum(y)
        )

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
        self._network = Network(units, self.activation, extras, dtype, self._seed())
        self.coefs_, self.intercepts_ = drawn[::2], drawn[1::2]
        self.coefs_, self.intercepts_ = self._network.adopted(self.coefs_, self.intercepts_)
        for name in ("_optimizer", "_optimizer_state", "_epochs"):
            self.__dict__.pop(name, None)

    def _seeded_anew(self) -> np.random.RandomState:
        """Random numbers of `random_state`; to seed those of the last call takes 1 us, to make others 90."""
        if type(self.random_state) is not int:
            return check_random_state(self.random_state)  # type: ignore[no-any-return]
        own: np.random.RandomState | None = self.__dict__.get("_seeded")
        if own is None:
            own = self._seeded = np.random.RandomState(self.random_state)
        else:
            own.seed(self.random_state)
        return own

    def _seed(self) -> int:
        """A seed for dropout. It takes no number from `_random_state`, of which scikit-learn has the next."""
        return int(copy.deepcopy(self._random_state).randint(np.iinfo(np.int32).max)) if self.dropout else 0

    def _begin_curves(self, first: bool, scored: bool) -> None:
        """Begin what the epochs are noted in, or prepare it for more of them."""
        if first:
            for name in ("loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"):
                self.__dict__.pop(name, None)
        if scored and getattr(self, "validation_scores_", None) is None:
            self.validation_scores_: Any = []
            self.best_validation_score_: Any = -np.inf
        if not scored:
            self.validation_scores_ = self.best_validation_score_ = None
        if self.solver == "lbfgs":  # for which scikit-learn notes no losses
            return
        if not hasattr(self, "loss_curve_"):
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
        if self.early_stopping:
            self.best_loss_: Any = None
        elif getattr(self, "best_loss_", None) is None:
            self.best_loss_ = np.inf

    def _continued(self) -> Network:
        """The network that was built, with what the parameters ask for now.

        Dropout, residuals and another activation can be had around the same weights; what has other weights
        is refused.
        """
        network = self._synced()
        *built, outputs = network.units[1:]
        if self.n_outputs_ != outputs:
            raise ValueError(f"y has {self.n_outputs_} outputs, expected {outputs} as before")
        hidden = self._hidden_units()
        asked = hidden, self.dtype, getattr(self, "loss", None), self.activation, self._extras()
        if network.asked == asked:
            return network
        extras, dtype = network.extras, network.model.dtype
        wanted = [
            ("hidden_layer_sizes", hidden, built),
            ("dtype", dtype.name if self.dtype == "auto" else self.dtype, dtype.name),
        ]
        if hasattr(self, "loss"):
            built_for = {"exp": "poisson", "identity": "squared_error"}
            wanted.append(("loss", self.loss, built_for[self.out_activation_]))
        if built:
            wanted += [(name, bool(getattr(self, name)), getattr(extras, name)) for name in _NORMS]
        for name, now, then in wanted:
            if now != then:
                raise ValueError(
                    f"{name} is {now!r}, but the network that is trained further was built with {then!r}: "
                    "expected the same, or a new fit with warm_start=False"
                )
        arranged = network.rearranged(self.activation, self._extras(), self._seed())
        if arranged is not network:
            self.__dict__.pop("_epochs", None)
            self._network = arranged
            self.coefs_, self.intercepts_ = list(arranged.coefs), list(arranged.intercepts)
        arranged.asked = asked
        return arranged

    def _extras(self) -> Extras:
        return Extras(self.dropout, self.batch_norm, self.layer_norm, self.residual)

    def _synced(self) -> Network:
        """The network, with the arrays in `coefs_` and `intercepts_`, which a user may have replaced."""
        network: Network | None = self.__dict__.get("_network")
        if network is None:  # somebody has set the weights of an estimator that was not fitted
            units = [len(self.coefs_[0]), *(np.shape(coef)[1] for coef in self.coefs_)]
            dtype = np.result_type(np.float32, *self.coefs_)
            network = self._network = Network(units, self.activation, self._extras(), dtype)
        self.coefs_, self.intercepts_ = network.adopted(self.coefs_, self.intercepts_)
        return network

    def _objective(self, smoothed: bool = True) -> Objective:
        smoothing = getattr(self, "label_smoothing", 0.0) if smoothed else 0.0
        kind = {"identity": "squared_error", "exp": "poisson"}.get(self.out_activation_, self.out_activation_)
        return objective(kind, self._network.intercepts[-1].size, smoothing)

    # ---- the solvers ---------------------------------------------------------------------------------------

    def _train_by_lbfgs(self, training: _Training) -> None:
        network, watch, done = training.network, training.watch, 0

        def before() -> None:
            watch.tell("on_epoch_begin", done)

        def after(loss: float) -> bool:
            nonlocal done
            done += 1
            if self.verbose:
                print(f"Iteration {done}, loss = {loss:.8f}")
            logs = {"loss": loss, **self._score(network, training.held_back, bool(watch))}
            watch.tell("on_epoch_end", done - 1, logs)
            return watch.stops

        looks_on = bool(watch) or training.held_back is not None or bool(self.verbose)
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        hooks = Hooks(before, after) if looks_on else None
        try:
            found = minimize(network.model, self._objective(), self.alpha, training.data, options, hooks)
            self.n_iter_, self.loss_ = min(found.result.nit, self.max_iter), found.loss
            if found.result.status != 0 and not watch.stops:
                warn_of_lbfgs(found.result, self.n_iter_, self.max_iter)
            watch.tell("on_train_end")
        finally:
            watch.forget()

    def _train_by_epochs(self, training: _Training, epochs: Epochs, incremental: bool) -> None:
        network, watch, average = training.network, training.watch, training.average
        goes_on = self.early_stopping and self.best_validation_score_ > -np.inf
        self._best = network.state() if goes_on else None
        self.n_iter_ = 0
        try:
            try:
                self._run_epochs(training, epochs, incremental)
            except KeyboardInterrupt:
                warn("Training interrupted by user.")
            watch.tell("on_train_end")
            if average is not None and average.count:
                average._write(average._params, average.averages)
                averages.take_statistics(network.model, epochs.batches(training.data))
            if self._best is not None:
                network.model.load_state_dict(self._best)
        finally:
            watch.forget()
            del self._best
            if not incremental:
                del self._epochs

    def _run_epochs(self, training: _Training, epochs: Epochs, incremental: bool) -> None:
        data, watch = training.data, training.watch
        optimizer, order = epochs.trainer.optimizer, np.arange(len(data.x), dtype=np.int64)
        for _ in range(self.max_iter):
            watch.tell("on_epoch_begin", optimizer.epoch)
            if self.shuffle:
                self._random_state.shuffle(order)  # with scikit-learn's random numbers
            self._run_epoch(epochs, data, order if self.shuffle else None)
            if isinstance(training.average, averages.SWA):
                training.average.update()
            before = self.best_validation_score_
            measured = self._score(training.network, training.held_back, bool(watch))
            self._note_improvement(training.network, before, measured.get("val_score"))
            self._optimizer.end_epoch(self.t_)
            watch.tell("on_epoch_end", optimizer.epoch - 1, {"loss": self.loss_, **measured})
            if self._is_over(self._optimizer) or incremental or watch.stops:
                break
            if self.n_iter_ == self.max_iter:
                warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter:d}) reached and the "
                    "optimization hasn't converged yet.",
                    ConvergenceWarning,
                )

    def _solver(self, network: Network, incremental: bool) -> Solver:
        """The solver of the last `partial_fit`, with what is asked for now, or a new one."""
        solver: Solver | None = self.__dict__.get("_optimizer")
        state = self.__dict__.pop("_optimizer_state", None)
        if incremental and solver is not None:
            self._optimizer = solver.followed(self, network.model)
        else:
            self._optimizer = Solver(self, network.model)
            if incremental and state is not None:  # of an estimator that was pickled
                self._optimizer.load(state)
        return self._optimizer

    def _split(self, data: Data) -> tuple[Data, Data]:
        """The examples to train on, and those to score after each epoch."""
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

        if data.weight is not None:
            for words, chosen in (("to train on", train), ("to score for early_stopping", test)):
                if not data.weight[chosen].any():
                    raise ValueError(
                        f"sample_weight is 0 for all of the {len(chosen)} rows chosen {words}, expected some "
                        "that count: another random_state or validation_fraction chooses others"
                    )
        return part(train), part(test)

    def _evaluated(self, eval_set: Any) -> tuple[Any, Array]:
        """The checked rows of the eval_set, and their encoded targets."""
        if not isinstance(eval_set, tuple | list) or len(eval_set) != 2:
            raise ValueError(f"eval_set is {shown(eval_set)}, expected a pair (X, y)")
        with named("eval_set"):
            X, y = self._checked_like(*eval_set)
            encoded = self._encoded(y)
            if self._outputs_for(encoded) != self.n_outputs_:
                raise ValueError(f"y has {self._outputs_for(encoded)} outputs, expected {self.n_outputs_}")
        return X, encoded

    def _epochs_of(self, network: Network, solver: Solver, data: Data) -> Epochs:
        """What runs the epochs: for `partial_fit` that of the last call, if it suits."""
        count, inputs = len(data.x), data.x.shape[1]
        size = min(200, count) if self.batch_size == "auto" else self.batch_size
        if size > count:
            warn("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped")
            size = count
        if (count % size or size) == 1 and network.extras.batch_norm:  # a batch of one row
            if self.batch_size != "auto" or count == 1:
                raise ValueError(
                    f"batch_size={self.batch_size!r} makes a batch of 1 of {count} rows, which batch_norm "
                    "cannot take statistics of: expected another batch_size"
                )
            size = averages.fitting_size(size, count)
        alpha = float(self.alpha)
        epochs: Epochs | None = self.__dict__.get("_epochs")
        of = self._objective()
        serves = epochs is not None and epochs.serves(solver.optimizer, of, alpha, size, inputs)
        if epochs is None or self.callbacks or not serves:
            trainer = Trainer(network.model, of.loss, solver.optimizer)
            epochs = self._epochs = Epochs(trainer, of, alpha, size, inputs, self.callbacks or ())
        return epochs

    def _average(self, network: Network, solver: Solver) -> averages.WeightAverage | None:
        if self.average == "ema":
            return averages.EMA(solver.optimizer, warm_up=True)
        return averages.SWA(network.model.parameters()) if self.average == "swa" else None

    def _run_epoch(self, epochs: Epochs, data: Data, order: Array | None) -> None:
        try:
            sums, count = epochs.run(data, order), len(data.x)
        except ValueError as error:
            if self.schedule is not None and str(error).startswith("lr is"):
                raise ValueError(f"schedule: {error}") from error
            raise
        self.n_iter_ += 1
        reported = epochs.objective.reported
        self.loss_ = ((sums.loss - sums.penalty) * reported + sums.penalty) / count
        self.t_ += count
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")

    def _score(self, network: Network, held_back: Data | None, with_loss: bool) -> dict[str, float]:
        """Note the score of the examples held back; return it, and the loss where it is wanted."""
        if held_back is None:
            return {}
        outputs, loss = network.outputs(held_back.x), {}
        if with_loss:
            of = self._objective(smoothed=False)
            loss["val_loss"] = mean_loss(of, outputs, self._targets(held_back.y), held_back.weight)
        score = self._score_of(outputs, held_back.y, held_back.weight)
        self.validation_scores_.append(score)
        if score > self.best_validation_score_:
            self.best_validation_score_ = score
        if self.verbose:
            print(f"Validation score: {score:f}")
        return {"val_score": score, **loss}

    def _note_improvement(self, network: Network, before: Any, score: Any) -> None:
        """Count the epochs without improvement, of the loss or of the score, of which ``before`` was best."""
        if self.early_stopping:
            is_better = not score < before + self.tol
            if score > before:
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
            The network has what scikit-learn's has not: ``batch_norm``, ``layer_norm`` or ``residual``, or in
            scikit-learn 1.6 ``loss="poisson"``.
        """
        network = self._synced() if hasattr(self, "coefs_") else None
        extras = self._extras() if network is None else network.extras
        for name in ("batch_norm", "layer_norm", "residual"):
            if getattr(extras, name):
                raise ValueError(f"{name} is True, which scikit-learn's perceptrons do not have")
        made = copied(self, getattr(theirs, self._theirs))
        if network is not None:  # parameters may have changed since it was built
            of_network: dict[str, Any] = {}
            if network.units[1:-1] != self._hidden_units():
                of_network["hidden_layer_sizes"] = tuple(network.units[1:-1])
            if network.activation is not None:
                of_network["activation"] = network.activation
            known = made.get_params()
            if self._theirs == "MLPRegressor" and "loss" in known:
                of_network["loss"] = "poisson" if self.out_activation_ == "exp" else "squared_error"
            elif self.out_activation_ == "exp":
                raise ValueError("loss is 'poisson', which this version of scikit-learn does not have")
            made.set_params(**of_network)
            if self.early_stopping:  # scikit-learn's warm start may fall back on these
                made._best_coefs = [array.copy() for array in made.coefs_]
                made._best_intercepts = [array.copy() for array in made.intercepts_]
        return made

    # ---- outputs -------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Array:
        """The last layer's outputs for X, before `out_activation_`."""
        network: Network | None = self.__dict__.get("_network")
        if network is not None and self._takes_at_once(X, network):
            with suppress(ValueError):  # of values that are not finite, for which scikit-learn has its words
                return self._synced().outputs(X)
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        with ExitStack() as settings:
            self._set(settings)
            outputs = self._synced().outputs(self._rows(X))
        if self.dtype == "auto":  # scikit-learn multiplies X of float64 with weights of float32 in float64
            outputs = outputs.astype(np.result_type(X.dtype, outputs.dtype), copy=False)
        return outputs

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

    # ---- parameters ----------------------------------------------------------------------------------------

    @classmethod
    def _get_param_names(cls) -> list[str]:
        known, names = _NAMES.get(cls, (None, []))
        if known is not cls.__init__:  # scikit-learn looks at the signature each time, which takes 0.1 ms
            names = super()._get_param_names()
            _NAMES[cls] = cls.__init__, names
        return list(names)

    def _validate_params(self) -> None:
        """Check the parameters, but for values that this class has found valid before, such as defaults."""
        valid = _FOUND_VALID.setdefault(type(self), {})
        constraints = self._parameter_constraints
        unchecked = {}
        for name, value in self.get_params(deep=False).items():
            known, by = valid.get(name, (None, None))
            if by is None or known is not value or by is not constraints.get(name):
                unchecked[name] = value
        validate_parameter_constraints(constraints, unchecked, type(self).__name__)
        for name, value in unchecked.items():
            if type(value) in _IMMUTABLE:
                valid[name] = value, constraints.get(name)

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
        state.pop("_best", None)  # of version 0.1
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
