"""`MLPClassifier`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels

from ..arrays.memory import refuse_masked
from ..runtime.dtypes import Array
from ..runtime.numbers import shown
from ._base import BasePerceptron
from ._explained import named
from ._parameters import OF_CLASSIFIER, OF_SKLEARN, OURS
from ._theirs import check_partial_fit_first_call, fit_context


class MLPClassifier(ClassifierMixin, BasePerceptron):  # type: ignore[misc]
    """A multi-layer perceptron that classifies, in the place of `sklearn.neural_network.MLPClassifier`.

    Parameters
    ----------
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init, power_t, \
max_iter, shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum, early_stopping, \
validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun
        As scikit-learn 1.9 has them. The penalty is ``alpha/2 * ||W||^2`` divided by the batch's examples (by
        their weights, where there are some).
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
    class_weight : dict, list of dict, "balanced" or None
        Weights of the classes, which multiply those of the examples. For several labels a list: a dict each.
    label_smoothing : float in [0, 1], default 0
        Of the target, this share goes to all classes alike.
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
    classes_, coefs_, intercepts_, loss_, best_loss_, loss_curve_, validation_scores_, \
best_validation_score_, n_iter_, t_, n_layers_, n_outputs_, out_activation_, n_features_in_, feature_names_in_
        As scikit-learn has them. Writing into ``coefs_`` and ``intercepts_`` changes the model.

    Notes
    -----
    For the same ``random_state`` first weights, splits and orders are scikit-learn's, so that in float64 the
    losses of the first epochs agree up to rounding. Losses are computed from logits, not from probabilities:
    those of examples that are hopelessly wrong are not clipped.

    ``solver="lbfgs"`` takes callbacks and an ``eval_set``, once an iteration. It has steps of its own, so
    optimizer, schedule, max_grad_norm, average and dropout are refused with it.

    `partial_fit`, and `fit` with ``warm_start``, train the network that was built. Parameters that changed in
    between are followed where its weights stay as they are (activation, dropout, residual, those of the
    optimizer, whose states are kept); where they would not (hidden_layer_sizes, batch_norm, layer_norm,
    dtype) the call is refused. A call that is refused leaves the estimator as it was.

    Examples
    --------
    A search by Optuna that gives up fits that do not promise well:

    >>> class Report(po.callbacks.Callback):
    ...     def __init__(self, trial):
    ...         self.trial = trial
    ...     def on_epoch_end(self, epoch, logs):
    ...         self.trial.report(logs["val_score"], epoch)
    ...         if self.trial.should_prune():
    ...             raise optuna.TrialPruned
    >>> def objective(trial):
    ...     rate = trial.suggest_float("learning_rate_init", 1e-4, 1e-1, log=True)
    ...     model = MLPClassifier(learning_rate_init=rate, callbacks=[Report(trial)])
    ...     return model.fit(X, y, eval_set=(X_val, y_val)).best_validation_score_
    >>> optuna.create_study(direction="maximize").optimize(objective, n_trials=50)
    """

    _theirs = "MLPClassifier"
    _parameter_constraints: ClassVar[dict[str, Any]] = {**OF_SKLEARN, **OURS, **OF_CLASSIFIER}

    def __init__(
        self,
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
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        schedule: Any = None,
        callbacks: Any = None,
        max_grad_norm: float | None = None,
        average: str | None = None,
        dtype: str = "auto",
        backend: str | None = None,
        n_jobs: int | None = None,
    ) -> None:
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
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.schedule = schedule
        self.callbacks = callbacks
        self.max_grad_norm = max_grad_norm
        self.average = average
        self.dtype = dtype
        self.backend = backend
        self.n_jobs = n_jobs

    # ---- what the base class asks --------------------------------------------------------------------------

    def _checked(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        X, y = self._validated(X, y, multi_output=True, dtype=self._dtypes(), reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            self._set_classes(y)
        else:
            self._check_classes(y)
        return X, y

    def _checked_like(self, X: Any, y: Any) -> tuple[Any, Any]:
        X, y = self._validated(X, y, multi_output=True, dtype=self._dtypes(), reset=False)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._check_kind(y)
        self._refuse_unknown(_labels_of(y))
        return X, y

    def _set_classes(self, y: Any) -> None:
        self._label_binarizer = _binarizer_of(y)
        self.classes_ = self._label_binarizer.classes_

    def _check_classes(self, y: Any) -> None:
        """Raise ValueError unless y has the classes of the call before."""
        self._check_kind(y)
        classes = _labels_of(y)
        if not self.warm_start:
            self._refuse_unknown(classes)
        elif set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to "
                f"fit. Previously got {self.classes_}, `y` has {classes}"
            )

    def _check_kind(self, y: Any) -> None:
        """Raise ValueError where y is multi-label and was not before, or the other way round."""
        before = self._label_binarizer.y_type_
        if (y.ndim == 2) != before.startswith("multilabel"):
            raise ValueError(f"y is {type_of_target(y)}, expected {before} as before")

    def _refuse_unknown(self, classes: Any) -> None:
        if len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has "
                f"{classes}."
            )

    def _encoded(self, y: Any) -> Array:
        if self._label_binarizer.y_type_ == "multiclass":
            labels: Array = np.searchsorted(self.classes_, y).astype(np.int64)
            return labels
        if self._label_binarizer.y_type_ == "binary":
            encoded: Array = np.asarray(y == self.classes_[-1], np.float32)[:, None]
            if len(self.classes_) == 1:
                encoded[...] = 0
            return encoded
        return np.asarray(self._label_binarizer.transform(y).astype(np.float32))

    def _outputs_for(self, encoded: Array) -> int:
        return len(self.classes_) if encoded.ndim == 1 else int(encoded.shape[1])

    def _smoothed(self, encoded: Array) -> Array:
        if encoded.ndim == 1 or not self.label_smoothing:  # the loss of several classes smooths by itself
            return encoded
        smoothed: Array = encoded * (1 - self.label_smoothing) + self.label_smoothing / 2
        return smoothed

    def _weighted(self, y: Any, weight: Array | None, incremental: bool) -> Array | None:
        given = self.class_weight
        if given is None:
            return weight
        if incremental and given == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit. In order to use 'balanced' "
                "weights, use compute_class_weight('balanced', classes=classes, y=y) on all labels, and "
                "pass the weights as a dict."
            )
        several = self._label_binarizer.y_type_.startswith("multilabel")
        if not isinstance(given, str) and isinstance(given, list) != several:
            expected = "a list of one dict for each label" if several else "a dict of class to weight"
            raise ValueError(
                f"class_weight is {shown(given)}, expected {expected} or 'balanced' for targets that are "
                f"{self._label_binarizer.y_type_}"
            )
        try:
            of_classes: Array = np.asarray(self._of_classes(given, y), np.float64)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"class_weight is {shown(given)}, which does not fit y: {error}") from error
        if not np.isfinite(of_classes).all() or (of_classes < 0).any():
            raise ValueError(f"class_weight is {shown(given)}, expected finite weights >= 0")
        return of_classes if weight is None else of_classes * weight

    def _of_classes(self, given: Any, y: Any) -> Array:
        """The weight of each example's class, of which a batch of `partial_fit` may lack some."""
        if isinstance(given, list):
            labels = y.toarray() if hasattr(y, "toarray") else np.asarray(y)
            if len(given) != labels.shape[1]:
                raise ValueError(f"it has {len(given)} dicts for {labels.shape[1]} labels")
            binary = np.array([0, 1])
            each = [compute_class_weight(of, classes=binary, y=binary) for of in given]
            weights: Array = np.prod(
                [w[column.astype(int)] for w, column in zip(each, labels.T, strict=True)], 0
            )
            return weights
        if not isinstance(given, dict):
            balanced: Array = compute_sample_weight(given, y)
            return balanced
        of_each: Array = compute_class_weight(given, classes=self.classes_, y=self.classes_)
        of_examples: Array = of_each[np.searchsorted(self.classes_, np.ravel(y))]
        return of_examples

    def _begin_incremental(self, y: Any, classes: Any) -> None:
        with named("classes"):
            refuse_masked("classes", classes)
            is_first = check_partial_fit_first_call(self, classes)
        if is_first:
            with named("y"):
                multilabel = type_of_target(y).startswith("multilabel")
            with named("classes"):
                self._label_binarizer = LabelBinarizer().fit(y if multilabel else classes)

    def _out_activation(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _stratification(self, y: Array) -> Any:
        return y > 0.5 if self.n_outputs_ == 1 else None

    def _score_of(self, outputs: Array, y: Array, weight: Array | None) -> float:
        if self.out_activation_ == "softmax":
            right = outputs.argmax(axis=1) == y
        else:
            right = ((expit(outputs) > 0.5) == (y > 0.5)).all(axis=1)
        return float(np.average(right, weights=weight))

    # ---- for users -----------------------------------------------------------------------------------------

    @available_if(lambda self: self._check_solver())  # type: ignore[untyped-decorator]
    @fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Train for one epoch over X and y, and go on from there in the next call.

        Parameters
        ----------
        X, y, sample_weight
            As `fit`.
        classes : array, optional
            All labels that any call will bring; needed in the first call.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, True, classes=classes)

    def predict(self, X: Any) -> Any:
        """The class of each row of X, or for multi-label targets an indicator matrix."""
        outputs = self._outputs(X)
        if self.out_activation_ == "softmax":
            return self.classes_[outputs.argmax(axis=1)]
        chosen = expit(outputs) > 0.5
        if self._label_binarizer.y_type_ != "binary":
            return self._label_binarizer.inverse_transform(chosen.astype(outputs.dtype))
        labels = chosen[:, 0].astype(np.intp) if len(self.classes_) > 1 else np.zeros(len(chosen), np.intp)
        return self.classes_[labels]

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, (examples, classes), in the order of `classes_`."""
        outputs = self._outputs(X)
        if self.out_activation_ == "softmax":
            outputs -= outputs.max(axis=1, keepdims=True)
            np.exp(outputs, out=outputs)
            outputs /= outputs.sum(axis=1, keepdims=True)
            return outputs
        if self.n_outputs_ == 1:
            both: Array = np.empty((len(outputs), 2), outputs.dtype)
            expit(outputs[:, 0], out=both[:, 1])
            np.subtract(1, both[:, 1], out=both[:, 0])
            return both
        expit(outputs, out=outputs)
        # scikit-learn's checks want of each label a probability below 1.
        np.minimum(outputs, np.nextafter(outputs.dtype.type(1), outputs.dtype.type(0)), out=outputs)
        return outputs

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithm of `predict_proba`."""
        probabilities = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            logarithms: Array = np.log(probabilities, out=probabilities)
        return logarithms

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _binarizer_of(y: Any) -> LabelBinarizer:
    """``LabelBinarizer().fit(y)``, which looks at all of y several times; for usual labels once."""
    made = LabelBinarizer()
    if not _needs_no_checks(y) or y.dtype.kind == "U" or not y.dtype.isnative:
        return made.fit(y)  # whose labels may have another dtype than y
    labels = _labels_of(y)
    if len(labels) > len(y) // 2:
        return made.fit(y)  # which warns in some versions
    made.y_type_ = "multiclass" if len(labels) > 2 else "binary"
    made.sparse_input_, made.classes_ = False, labels
    return made


def _labels_of(y: Any) -> Any:
    """The labels that occur in y."""
    if not _needs_no_checks(y):
        return unique_labels(y)
    if y.dtype.kind == "i":
        low, high = int(y.min()), int(y.max())
        if high - low < len(y):  # where to note them takes an eighth of the time of `np.unique`
            occurs = np.zeros(high - low + 1, np.bool_)
            occurs[y.astype(np.int64, copy=False) - low] = True
            return (np.flatnonzero(occurs) + low).astype(y.dtype)
    return np.unique(y)


def _needs_no_checks(y: Any) -> bool:
    """Whether y is an array of labels, and cannot be anything else."""
    return isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "biuU"
