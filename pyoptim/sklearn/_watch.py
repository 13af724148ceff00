"""The callbacks of an estimator's training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..callbacks import Callback, _Monitor, tell_the_end
from ..train.trainer import Trainer


def check_callbacks(callbacks: Any, scored: bool, solver: str) -> list[Callback]:
    """The callbacks, each of which can do its work in a training where examples are scored, or are not."""
    checked = list(callbacks or ())
    measured = ["loss", "val_score", "val_loss"] if scored else ["loss"]
    for i, callback in enumerate(checked):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks[{i}] is {callback!r:.100}, expected a Callback of pyoptim.callbacks")
        reads = getattr(callback, "save_best_only", True)
        if isinstance(callback, _Monitor) and reads and callback.monitor not in measured:
            cure = "" if scored else ", or val_score and val_loss too with early_stopping=True or an eval_set"
            names = ", ".join(measured) + cure
            raise ValueError(f"callbacks[{i}] monitors {callback.monitor!r}, but an epoch measures {names}")
        if solver == "lbfgs" and callback.acts_on_batches:
            raise ValueError(f"callbacks[{i}] acts on batches, which solver='lbfgs' does not make")
    return checked


class Watch:
    """Tells the callbacks of a training what happens, as `Trainer.fit` does.

    Parameters
    ----------
    callbacks : sequence of Callback
    trainer : Trainer or None
        Of the model that is trained; callbacks end the training by its ``stop_training``. None where there
        are no callbacks.
    rate : float, optional
        The learning rate of the trainer's optimizer, where callbacks must not set another, since nothing
        would read it.
    """

    def __init__(
        self, callbacks: Sequence[Callback], trainer: Trainer | None, rate: float | None = None
    ) -> None:
        self._callbacks, self._trainer, self._rate = callbacks, trainer, rate
        self._begun: list[Callback] = []  # those that have to be told of the end

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    @property
    def stops(self) -> bool:
        """Whether a callback has ended the training."""
        return self._trainer is not None and self._trainer.stop_training

    def begin(self) -> None:
        """Tell that the training begins."""
        if self._trainer is None:
            return
        self._trainer.stop_training, self._trainer.interrupted = False, True  # until it is told of the end
        try:
            for callback in self._callbacks:
                callback.trainer = self._trainer
                callback._check_files(self._trainer)
            for i, callback in enumerate(self._callbacks):
                callback.on_train_begin()
                self._begun.append(callback)
                self._check_rate(i, callback)
        except BaseException:
            self.forget()
            raise

    def tell(self, hook: str, *arguments: Any) -> None:
        """Call this method of each callback."""
        if hook == "on_train_end":
            self._end(interrupted=False)
            return
        for i, callback in enumerate(self._callbacks):
            getattr(callback, hook)(*arguments)
            self._check_rate(i, callback)

    def _check_rate(self, i: int, callback: Callback) -> None:
        if self._rate is not None and callback.trainer.optimizer.param_groups[0]["lr"] != self._rate:
            raise ValueError(f"callbacks[{i}] sets a learning rate, which solver='lbfgs' does not have")

    def _end(self, interrupted: bool) -> None:
        """Tell of the end, once, those who were told of the begin."""
        begun, self._begun = self._begun, []
        if self._trainer is not None:
            self._trainer.interrupted = interrupted
        tell_the_end(begun)

    def forget(self) -> None:
        """Let callbacks go of the trainer, so that they can be copied and pickled.

        Those that an exception kept from being told of the end are told now.
        """
        try:
            self._end(interrupted=True)
        finally:
            for callback in self._callbacks:
                callback.__dict__.pop("trainer", None)
