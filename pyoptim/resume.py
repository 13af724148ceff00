"""A training that is saved as it goes, and goes on from where it was saved: ``fit(checkpoint=...)``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checkpoint
from ._arrays import Array
from .callbacks import Callback

if TYPE_CHECKING:
    from .trainer import Trainer

_FORMAT = "pyoptim-training-1"


@dataclasses.dataclass
class Epoch:
    """How far an epoch has come, and the random state with which it began."""

    index: int  # in this training
    rng: Mapping[str, Any]
    done: int = 0  # examples
    loss: float = 0.0  # summed over them
    correct: int = 0
    seconds: float = 0.0


class Resume:
    """Saves model, optimizer, random state, callbacks and position to one file, and takes them back.

    Parameters
    ----------
    path : str or Path
    every : float
        Seconds from one time to the next.
    trainer : Trainer
    fixed : mapping
        What must be the same in the training that goes on.
    callbacks : sequence of Callback
    """

    def __init__(
        self,
        path: str | Path,
        every: float,
        trainer: Trainer,
        fixed: Mapping[str, Any],
        callbacks: Sequence[Callback],
    ) -> None:
        self.path, self._every, self._trainer = Path(path), every, trainer
        self._fixed, self._callbacks = dict(fixed), callbacks
        self._due = time.monotonic() + every

    def save_if_due(self, epoch: Epoch, history: Mapping[str, list[float]]) -> None:
        if time.monotonic() >= self._due:
            self.save(epoch, history)

    def save(self, epoch: Epoch, history: Mapping[str, list[float]]) -> None:
        """Write everything; whoever reads the file sees the old or the new state whole."""
        trainer = self._trainer
        optimizer, tensors = checkpoint.optimizer_state(trainer.optimizer)
        tensors = {f"optimizer.{name}": value for name, value in tensors.items()}
        tensors |= {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
        states = [callback.state() for callback in self._callbacks]
        for i, (_, arrays) in enumerate(states):
            tensors |= {f"callbacks.{i}.{name}": value for name, value in arrays.items()}
        description = {
            "format": _FORMAT,
            "fixed": self._fixed,
            "epoch": dataclasses.asdict(epoch),
            "rng": trainer._rng.bit_generator.state,
            "history": history,
            "optimizer": optimizer,
            "callbacks": [plain for plain, _ in states],
        }
        checkpoint.write(self.path, description, tensors)
        self._due = time.monotonic() + self._every

    def load(self) -> tuple[Epoch, dict[str, list[float]]]:
        """Take everything over: the epoch that was running, and the history before it.

        Raises
        ------
        ValueError
            The file is damaged, or of another training; nothing is changed.
        """
        trainer = self._trainer
        description, tensors = checkpoint.read(self.path, _FORMAT)
        try:
            if description["fixed"] != self._fixed:
                raise ValueError(f"it was saved with {description['fixed']}, expected {self._fixed}")
            if len(description["callbacks"]) != len(self._callbacks):
                raise ValueError(
                    f"it was saved with {len(description['callbacks'])} callbacks, expected "
                    f"{len(self._callbacks)}"
                )
            epoch = Epoch(**description["epoch"])
            rng = np.random.Generator(type(trainer._rng.bit_generator)())
            rng.bit_generator.state = description["rng"]
            history = {str(k): [float(v) for v in values] for k, values in description["history"].items()}
            before = trainer.model.state_dict()
            trainer.model.load_state_dict(_under("model.", tensors))
            try:
                own = _under("optimizer.", tensors)
                checkpoint.restore_optimizer(trainer.optimizer, description["optimizer"], own)
            except BaseException:
                trainer.model.load_state_dict(before)
                raise
        except checkpoint.NONSENSE as error:
            raise ValueError(f"{self.path} does not fit this training: {error}") from error
        trainer._rng.bit_generator.state = rng.bit_generator.state
        for i, (callback, plain) in enumerate(zip(self._callbacks, description["callbacks"], strict=True)):
            callback.load_state(plain, _under(f"callbacks.{i}.", tensors))
        return epoch, history


def _under(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
