"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import engine as compiled
from . import nn
from ._arrays import Array
from .optimizer import Optimizer

_EVALUATION_BATCH = 1024


class History(dict[str, list[float]]):
    """What `Trainer.fit` measured: name -> one value per epoch.

    ``loss`` is the mean over the epoch's training batches, as the parameters moved; ``accuracy`` likewise
    for classification; ``val_loss`` and ``val_accuracy`` after each epoch, where there is validation
    data; ``seconds`` the training time of each epoch.

    Attributes
    ----------
    path : str
        What ran: ``"native"``, the compiled engine, or ``"python"``, the generic loop.
    reason : str or None
        Why it was not the engine.
    """

    path = "python"
    reason: str | None = None

    def plot(self, path: str | Path) -> None:
        """Draw loss and accuracy over the epochs into an image file. Needs the extra ``plot``."""
        from .plots import plot_history

        plot_history(self, path)


class Trainer:
    """Trains a model by mini-batches.

    Parameters
    ----------
    model : nn.Sequential
    loss : nn.Loss
    optimizer : Optimizer
        Made on all of ``model.parameters()``, in any structure and groups, or on ``model.flat_parameters``.
    seed : int, optional
        Of the order in which examples are visited.

    Examples
    --------
    >>> trainer = Trainer(model, nn.CrossEntropy(), Adam(model.parameters()), seed=0)
    >>> history = trainer.fit(x, y, epochs=5, batch_size=32)
    >>> trainer.evaluate(x_test, y_test)["accuracy"]
    """

    def __init__(
        self, model: nn.Sequential, loss: nn.Loss, optimizer: Optimizer, *, seed: int | None = None
    ) -> None:
        if not isinstance(model, nn.Sequential):
            raise TypeError(f"model is a {type(model).__name__}, expected a Sequential")
        if not isinstance(loss, nn.Loss):
            raise TypeError(f"loss is a {type(loss).__name__}, expected a Loss, e.g. CrossEntropy()")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}, expected an Optimizer")
        self._gradients = optimizer.structured(compiled.gradients_of(model, optimizer))
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self._rng = np.random.default_rng(seed)

    def __getstate__(self) -> dict[str, Any]:
        # In a copy, model and optimizer would no longer share their arrays.
        raise TypeError("a Trainer cannot be copied or pickled: copy the model, and make both anew on it")

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        epochs: int = 1,
        batch_size: int | None = 32,
        validation_data: tuple[Any, Any] | None = None,
        shuffle: bool = True,
        verbose: bool = True,
        engine: str = "auto",
    ) -> History:
        """Train, and leave the model in evaluation mode.

        Parameters
        ----------
        x : array (examples, ...)
            Of any real dtype; converted to the model's once, but for uint8, converted batch by batch.
        y : array (examples, ...)
            Targets as the loss takes them.
        epochs : int, default 1
        batch_size : int or None, default 32
            1 is online gradient descent, None the full batch. The last batch of an epoch may be smaller.
        validation_data : (x, y), optional
            Evaluated after each epoch.
        shuffle : bool, default True
            Visit the examples in a new order each epoch; every one once.
        verbose : bool, default True
            Show a progress bar.
        engine : {"auto", "native", "python"}
            Run epochs in the compiled engine where every part is compiled, which gives the same bits as
            the generic loop, or always, or never. A learning rate that is a function of your own, and
            none of `schedules`, is called for up to some thousand steps ahead when "native" asks for it,
            and takes the generic loop under "auto".

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            The data do not suit the model or the loss, are empty, or are not finite; a batch would hold
            too little for BatchNorm; ``engine="native"`` with a part that is not compiled. The model is
            unchanged.

        Notes
        -----
        Ctrl-C ends the training after the step that runs, at most some 50 ms later, and leaves model and
        optimizer as they are then.
        """
        nn.layers.check_count("epochs", epochs)
        x, y = self._check_data("x", x, "y", y)
        if batch_size is None:
            batch_size = len(x)
        nn.layers.check_count("batch_size", batch_size)
        self._check_batches(x, min(batch_size, len(x)))
        if validation_data is not None:
            validation_data = self._check_data("validation_data[0]", validation_data[0],
                                               "validation_data[1]", validation_data[1])  # fmt: skip
        history = History()
        if engine not in ("auto", "native", "python"):
            raise ValueError(f"engine is {engine!r}, expected 'auto', 'native' or 'python'")
        history.reason = "engine='python' was asked for"
        if engine != "python":
            history.reason = compiled.why_not(self.model, self.loss, self.optimizer, engine == "native")
            if engine == "native" and history.reason is not None:
                raise ValueError(f"engine is 'native', but {history.reason}")
        native = None
        if history.reason is None:
            history.path = "native"
            self.optimizer.check_memory()
            native = compiled.Engine(self.model, self.loss, self.optimizer, x.shape[1:],
                                     min(batch_size, len(x)))  # fmt: skip
        progress = _Progress(epochs, len(x), enabled=verbose)
        try:
            for epoch in range(epochs):
                measured = self._run_epoch(native, x, y, batch_size, shuffle, progress)
                self.optimizer.epoch += 1
                if validation_data is not None:
                    results = self._evaluate(*validation_data)
                    measured |= {f"val_{name}": value for name, value in results.items()}
                for name, value in measured.items():
                    history.setdefault(name, []).append(value)
                progress.end_epoch(epoch, measured)
        finally:
            progress.close()
            self.model.eval()
        return history

    def _check_data(self, x_name: str, x: Any, y_name: str, y: Any) -> tuple[Array, Array]:
        x = self.model.check_input(x_name, x, keep_bytes=True)
        if len(x) == 0:
            raise ValueError(f"{x_name} is empty, expected at least one example")
        if np.ndim(y) == 0 or len(y) != len(x):
            size = "a scalar" if np.ndim(y) == 0 else f"{len(y)} targets"
            raise ValueError(f"{y_name} has {size}, expected {len(x)}: one per example of {x_name}")
        shape = self.model.output_shape(x.shape[1:])
        return x, self.loss.check_target(y_name, y, len(x), shape, self.model.dtype)

    def _check_batches(self, x: Array, batch_size: int) -> None:
        smallest = len(x) % batch_size or batch_size
        shape = x.shape[1:]
        for layer in self.model.layers:
            if isinstance(layer, nn.BatchNorm) and smallest * int(np.prod(shape[1:])) < 2:
                raise ValueError(
                    f"batch_size {batch_size} makes a batch of 1 of {len(x)} examples, "
                    f"which {layer!r} cannot take statistics of"
                )
            shape = layer.output_shape(shape)

    def _run_epoch(
        self,
        engine: compiled.Engine | None,
        x: Array,
        y: Array,
        batch_size: int,
        shuffle: bool,
        progress: _Progress,
    ) -> dict[str, float]:
        self.model.train()
        loss, started = self.loss, time.perf_counter()
        order = self._rng.permutation(len(x)) if shuffle else None
        if engine is not None:
            total_loss, correct = engine.run_epoch(x, y, order, progress.advance)
        else:
            total_loss, correct = self._python_epoch(x, y, batch_size, order, progress)
        measured = {"loss": total_loss / len(x)}
        if loss.classification:
            measured["accuracy"] = correct / len(x)
        return {**measured, "seconds": time.perf_counter() - started}

    def _python_epoch(
        self, x: Array, y: Array, batch_size: int, order: Array | None, progress: _Progress
    ) -> tuple[float, int]:
        model, loss = self.model, self.loss
        total_loss, correct = 0.0, 0
        for batch, target in _batches(x, y, batch_size, model.dtype, order):
            output = model._forward(batch)
            doutput = np.empty_like(output)
            total_loss += loss.compute(output, target, doutput) * len(batch)
            if loss.classification:
                correct += int(np.count_nonzero(output.argmax(axis=1) == target))
            model._backward(doutput)
            self.optimizer.step(self._gradients)
            progress.advance(len(batch))
        return total_loss, correct

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """The loss, and for classification the accuracy, in evaluation mode.

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        return self._evaluate(*self._check_data("x", x, "y", y))

    def _evaluate(self, x: Array, y: Array) -> dict[str, float]:
        self.model.eval()
        total_loss, correct = 0.0, 0
        for batch, target in _batches(x, y, _EVALUATION_BATCH, self.model.dtype):
            output = self.model._forward(batch)
            total_loss += self.loss.compute(output, target, None) * len(batch)
            if self.loss.classification:
                correct += int(np.count_nonzero(output.argmax(axis=1) == target))
        measured = {"loss": total_loss / len(x)}
        return {**measured, "accuracy": correct / len(x)} if self.loss.classification else measured

    def predict(self, x: Any) -> Array:
        """The model's outputs, in evaluation mode: for classification logits, not probabilities.

        Returns
        -------
        array (examples, *outputs)
        """
        x = self.model.check_input("x", x, keep_bytes=True)
        self.model.eval()
        outputs = np.empty((len(x), *self.model.output_shape(x.shape[1:])), self.model.dtype)
        for begin in range(0, len(x), _EVALUATION_BATCH):
            batch = x[begin : begin + _EVALUATION_BATCH].astype(self.model.dtype, copy=False)
            outputs[begin : begin + _EVALUATION_BATCH] = self.model._forward(batch)
        return outputs


def _batches(
    x: Array, y: Array, batch_size: int, dtype: np.dtype[Any], order: Array | None = None
) -> Iterator[tuple[Array, Array]]:
    for begin in range(0, len(x), batch_size):
        if order is None:
            batch, target = x[begin : begin + batch_size], y[begin : begin + batch_size]
        else:
            chosen = order[begin : begin + batch_size]
            batch, target = x.take(chosen, axis=0), y.take(chosen, axis=0)
        yield batch.astype(dtype, copy=False), target


class _Progress:
    """A bar over all examples of all epochs, with what the last epoch measured."""

    def __init__(self, epochs: int, examples: int, enabled: bool) -> None:
        self._epochs, self._bar = epochs, None
        if enabled:
            from tqdm import tqdm

            self._bar = tqdm(
                total=epochs * examples, unit=" examples", unit_scale=True, desc=f"epoch 1/{epochs}"
            )

    def advance(self, examples: int) -> None:
        if self._bar is not None:
            self._bar.update(examples)

    def end_epoch(self, epoch: int, measured: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_description(f"epoch {min(epoch + 2, self._epochs)}/{self._epochs}", refresh=False)
            shown = {name: f"{value:.4f}" for name, value in measured.items() if name != "seconds"}
            self._bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
