"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import nn
from ._arrays import Array
from .optimizer import Optimizer

_EVALUATION_BATCH = 1024


class History(dict[str, list[float]]):
    """What `Trainer.fit` measured: name -> one value per epoch.

    ``loss`` is the mean over the epoch's training batches, as the parameters moved; ``accuracy`` likewise
    for classification; ``val_loss`` and ``val_accuracy`` after each epoch, where there is validation
    data; ``seconds`` the training time of each epoch.
    """

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
        Made on ``model.parameters()``.
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
        updated = [p for group in optimizer.param_groups for p in group["params"]]
        own = model.parameters().values()
        if len(updated) != len(own) or any(p is not q for p, q in zip(updated, own, strict=True)):
            raise ValueError("optimizer updates other arrays: expected it to be made on model.parameters()")
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
    ) -> History:
        """Train, and leave the model in evaluation mode.

        Parameters
        ----------
        x : array (examples, ...)
            Of any real dtype; converted to the model's once.
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

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            The data do not suit the model or the loss, are empty, or are not finite; a batch would hold
            too little for BatchNorm. The model is unchanged.
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
        progress = _Progress(epochs, len(x), enabled=verbose)
        try:
            for epoch in range(epochs):
                measured = self._run_epoch(x, y, batch_size, shuffle, progress)
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
        x = self.model.check_input(x_name, x)
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
        self, x: Array, y: Array, batch_size: int, shuffle: bool, progress: _Progress
    ) -> dict[str, float]:
        model, loss, optimizer = self.model.train(), self.loss, self.optimizer
        gradients = model.gradients()
        total_loss, correct, started = 0.0, 0, time.perf_counter()
        for batch, target in _batches(x, y, batch_size, self._rng if shuffle else None):
            output = model._forward(batch)
            doutput = np.empty_like(output)
            total_loss += loss.compute(output, target, doutput) * len(batch)
            if loss.classification:
                correct += int(np.count_nonzero(output.argmax(axis=1) == target))
            model._backward(doutput)
            optimizer.step(gradients)
            progress.advance(len(batch))
        measured = {"loss": total_loss / len(x)}
        if loss.classification:
            measured["accuracy"] = correct / len(x)
        return {**measured, "seconds": time.perf_counter() - started}

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
        for batch, target in _batches(x, y, _EVALUATION_BATCH, None):
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
        x = self.model.check_input("x", x)
        self.model.eval()
        outputs = np.empty((len(x), *self.model.output_shape(x.shape[1:])), self.model.dtype)
        for begin in range(0, len(x), _EVALUATION_BATCH):
            outputs[begin : begin + _EVALUATION_BATCH] = self.model._forward(
                x[begin : begin + _EVALUATION_BATCH]
            )
        return outputs


def _batches(
    x: Array, y: Array, batch_size: int, rng: np.random.Generator | None
) -> Iterator[tuple[Array, Array]]:
    order = None if rng is None else rng.permutation(len(x))
    for begin in range(0, len(x), batch_size):
        if order is None:
            yield x[begin : begin + batch_size], y[begin : begin + batch_size]
        else:
            chosen = order[begin : begin + batch_size]
            yield x.take(chosen, axis=0), y.take(chosen, axis=0)


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
