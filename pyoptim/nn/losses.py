"""Losses: the mean over a batch, and its gradient with respect to the model's output."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..arrays.checks import as_numpy, check_float_array
from ..arrays.gpu import DeviceArray
from ..arrays.memory import constant, empty_like
from ..backends.places import place_with
from ..ops import losses
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.numbers import POSITIVE, SHARE, check_flag

__all__ = ["L1", "MSE", "BinaryCrossEntropy", "CrossEntropy", "Hinge", "Huber", "KLDiv", "Loss", "Poisson"]


class Loss:
    """What a trainer asks of a loss.

    Subclasses implement ``check_target`` and ``compute``. One whose ``compute`` takes a fourth argument,
    ``sample_weight``, says so by ``takes_sample_weight = True``; it is given only where there are weights.
    """

    classification = False  # whether targets are classes, so that accuracy makes sense
    takes_sample_weight = False
    arguments: ClassVar[tuple[str, ...]] = ()  # of __init__, kept as attributes of these names

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        """Targets for ``batch`` outputs of ``shape``, checked and converted once for all steps."""
        raise NotImplementedError

    @property
    def _of_checked(self) -> Loss:
        """The loss that takes what `check_target` has returned, once more."""
        return self

    def compute(
        self, output: Array, target: Array, gradient: Array | None, sample_weight: Array | None = None
    ) -> float:
        """The loss for checked targets; its gradient goes into ``gradient`` unless None.

        ``sample_weight`` (batch,), checked and of the output's dtype, multiplies each example's loss.
        """
        raise NotImplementedError

    def divisor(self, output: Array, target: Array) -> Any:
        """What `compute` divides the sum of a batch's losses by, for checked targets.

        The mean of several batches is the sum of their losses, each times its divisor, divided by the sum of
        the divisors. Here it is the number of examples; a loss of another mean overrides this.
        """
        return len(output)

    def check_sample_weight(self, name: str, weight: Any, batch: int, dtype: np.dtype[Any]) -> Array | None:
        """Weights >= 0 of the examples, converted; TypeError where the loss takes none."""
        if weight is not None and not self.takes_sample_weight:
            raise TypeError(f"{type(self).__name__} takes no sample_weight")
        return losses.check_weights(name, weight, batch, dtype)

    def evaluate(
        self, output: Array, target: Array, gradient: Array | None, sample_weight: Array | None
    ) -> float:
        """`compute`, with weights where there are some."""
        if sample_weight is None:
            return self.compute(output, target, gradient)
        return self.compute(output, target, gradient, sample_weight)

    def __call__(self, output: Array, target: Any, sample_weight: Any = None) -> tuple[float, Array]:
        """The loss and its gradient with respect to ``output``.

        Parameters
        ----------
        output : array (batch, ...)
            Of a model on a GPU, an array in its memory: so is the gradient then.
        target
            As the loss takes them; beside such an output, in that GPU's memory too. They are copied to the
            processor, checked, and copied back: the functions of `ops` take them as they are.
        sample_weight : array (batch,), optional
            Multiplies each example's loss; the mean is still over the batch, not over the weights. Where
            it may be is as of ``target``.

        Raises
        ------
        TypeError, ValueError
            The target's dtype, shape or values do not suit the output; a negative weight; either is in a
            GPU's memory and output is not, or in that of another.
        """
        if not isinstance(output, DeviceArray):
            output = check_float_array("output", output)
        place = place_with(output)
        if output.ndim == 0 or output.size == 0:
            raise ValueError(f"output has shape {output.shape}, expected at least one example")
        target = place.download("target", target)
        target = self.check_target("target", target, output.shape[0], output.shape[1:], output.dtype)
        sample_weight = place.download("sample_weight", sample_weight)
        weight = self.check_sample_weight("sample_weight", sample_weight, len(output), output.dtype)
        gradient = empty_like(output)
        value = self.evaluate(output, place.upload(target), gradient, place.upload(weight))
        return float(value), gradient

    def describe(self) -> dict[str, Any]:
        """The class and the options of `compute`, as numbers, lists and strings."""
        values = {name: getattr(self, name) for name in self.arguments}
        lists = {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in values.items()}
        return {"type": type(self).__name__, **lists}

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.arguments)
        return f"{type(self).__name__}({values})"


class CrossEntropy(Loss):
    """Softmax cross-entropy (log loss) from logits (batch, classes), as `torch.nn.CrossEntropyLoss`.

    Targets are labels (batch,), of any integer dtype or bool, or a float array (batch, classes) with each
    class's share >= 0. Stable for any finite logits.

    Parameters
    ----------
    class_weight : array (classes,), optional
        Multiplies each class's term. With labels the mean is the weighted one: the sum is divided by that
        of the labels' weights, not by the batch. Where these are all 0, so are the loss and its gradient,
        also with label_smoothing; such a batch counts for nothing in a mean over batches.
    label_smoothing : float in [0, 1], default 0
        Of the target, this share goes to all classes alike.
    """

    classification = True
    takes_sample_weight = True
    arguments = ("class_weight", "label_smoothing")

    def __init__(self, class_weight: Any = None, label_smoothing: float = 0.0) -> None:
        if class_weight is not None:
            class_weight = np.array(as_numpy("class_weight", class_weight))
            losses.check_weights("class_weight", class_weight, class_weight.size, np.dtype(np.float64))
        self.label_smoothing = SHARE.number("label_smoothing", label_smoothing)
        self.class_weight: Array | None = class_weight

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        if len(shape) != 1:
            raise ValueError(f"CrossEntropy has an output of shape {shape}, expected (classes,)")
        losses.check_weights("class_weight", self.class_weight, shape[0], dtype)
        if losses.is_soft(target):
            return losses.check_shares(name, target, (batch, shape[0]), dtype)
        return losses.check_labels(name, target, batch, shape[0])

    def compute(
        self, output: Array, target: Array, gradient: Array | None, sample_weight: Array | None = None
    ) -> float:
        weight = self._class_weight_as(output)
        value: float = dispatch.of(output).softmax_cross_entropy(
            output, target, gradient, sample_weight, weight, self.label_smoothing
        )
        return value

    def divisor(self, output: Array, target: Array) -> Any:
        weight = self._class_weight_as(output)
        if weight is None or target.ndim == 2:
            return len(output)
        return dispatch.of(output).label_weights(target, weight)

    def _class_weight_as(self, output: Array) -> Array | None:
        if self.class_weight is None:
            return None
        weight: Array = constant(np.ascontiguousarray(self.class_weight, output.dtype), output)
        return weight


class KLDiv(Loss):
    """The Kullback-Leibler divergence of a model from its teacher (Hinton, Vinyals & Dean 2015).

    ``T^2 sum(t log(t / softmax(output/T)))``, the mean over the batch, from logits (batch, classes).

    Parameters
    ----------
    temperature : float > 0, default 1
        T.
    from_logits : bool, default False
        Whether targets (batch, classes) are the teacher's logits, or its probabilities t at temperature T.
    """

    takes_sample_weight = True
    arguments = ("temperature", "from_logits")

    def __init__(self, temperature: float = 1.0, from_logits: bool = False) -> None:
        self.temperature = POSITIVE.number("temperature", temperature)
        self.from_logits = check_flag("from_logits", from_logits)

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        if len(shape) != 1:
            raise ValueError(f"KLDiv has an output of shape {shape}, expected (classes,)")
        if not self.from_logits:
            return losses.check_shares(name, target, (batch, *shape), dtype)
        logits = losses.check_numbers(name, target, (batch, *shape), np.dtype(np.float64))
        e = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.temperature)
        shares: Array = (e / e.sum(axis=1, keepdims=True)).astype(dtype)
        return shares

    @property
    def _of_checked(self) -> KLDiv:
        return KLDiv(self.temperature)  # of probabilities

    def describe(self) -> dict[str, Any]:
        return {"type": "KLDiv", "temperature": self.temperature}  # `check_target` has used from_logits

    def compute(
        self, output: Array, target: Array, gradient: Array | None, sample_weight: Array | None = None
    ) -> float:
        value: float = dispatch.of(output).kl_divergence(
            output, target, gradient, sample_weight, self.temperature
        )
        return value


class _Pointwise(Loss):
    """The mean over all elements of a loss of `pyoptim.formulas.losses`.

    Targets have the output's shape; for one output per example, (batch,) will do.
    """

    takes_sample_weight = True
    kind: ClassVar[str]

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        target = as_numpy(name, target)
        if shape == (1,) and target.shape == (batch,):
            target = target[:, None]
        checked = losses.check_numbers(name, target, (batch, *shape), dtype)
        losses.check_pointwise_target(name, checked, self.kind)
        return checked

    def parameter(self, dtype: np.dtype[Any]) -> Any:
        """The parameter a of the loss's formula: a number, or an array of one for each output."""
        return 1.0

    def compute(
        self, output: Array, target: Array, gradient: Array | None, sample_weight: Array | None = None
    ) -> float:
        parameter = self.parameter(output.dtype)
        return losses.run_pointwise(self.kind, output, target, gradient, sample_weight, parameter)


class MSE(_Pointwise):
    """Mean squared error over all elements, as `torch.nn.MSELoss`.

    Targets have the output's shape; for one output per example, (batch,) will do.
    """

    kind = "squared"


class L1(_Pointwise):
    """Mean absolute error over all elements, as `torch.nn.L1Loss`; targets as `MSE`'s."""

    kind = "absolute"


class Huber(_Pointwise):
    """``d^2/2`` where ``|d| <= delta``, else ``delta (|d| - delta/2)``; as `torch.nn.HuberLoss`.

    The mean over all elements of the difference d; targets as `MSE`'s.

    Parameters
    ----------
    delta : float > 0, default 1
    """

    kind = "huber"
    arguments = ("delta",)

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = POSITIVE.number("delta", delta)

    def parameter(self, dtype: np.dtype[Any]) -> Any:
        return self.delta


class BinaryCrossEntropy(_Pointwise):
    """Cross-entropy of logits and targets in [0, 1], as `torch.nn.BCEWithLogitsLoss`.

    The mean over all elements; targets have the output's shape, or (batch,) for one output.

    Parameters
    ----------
    pos_weight : float or array (outputs,), optional
        What the term of positive examples is multiplied with; an array has one for each of the last
        dimension.
    """

    kind = "binary"
    arguments = ("pos_weight",)

    def __init__(self, pos_weight: Any = None) -> None:
        if pos_weight is not None:
            pos_weight = np.array(as_numpy("pos_weight", pos_weight))
            losses.check_pos_weight(pos_weight, pos_weight.size, np.dtype(np.float64))
        self.pos_weight: Array | None = pos_weight

    def check_target(
        self, name: str, target: Any, batch: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Array:
        if self.pos_weight is not None:
            losses.check_pos_weight(self.pos_weight, shape[-1] if shape else 1, dtype)
        return super().check_target(name, target, batch, shape, dtype)

    def parameter(self, dtype: np.dtype[Any]) -> Any:
        if self.pos_weight is None:
            return 1.0
        return self.pos_weight.astype(dtype) if self.pos_weight.ndim else float(self.pos_weight)


class Hinge(_Pointwise):
    """``max(0, 1 - t x)`` for targets t = -1 or 1, the mean over all elements."""

    kind = "hinge"


class Poisson(_Pointwise):
    """Half the Poisson deviance of counts t >= 0 from their means exp(x): ``exp(x) - t x + t log t - t``.

    The mean over all elements; targets as `MSE`'s. `torch.nn.PoissonNLLLoss` leaves out ``t log t - t``, so
    that its gradient is the same.
    """

    kind = "poisson"


ELEMENTWISE = tuple(_Pointwise.__subclasses__())
