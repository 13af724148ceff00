"""A training that is saved as it goes, and goes on from where it was saved: ``fit(checkpoint=...)``."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..callbacks import Callback
from ..optim import checkpoint
from ..runtime import files
from ..runtime.dtypes import Array
from .data import mean_loss

if TYPE_CHECKING:
    from .trainer import Trainer


_FORMAT = "pyoptim-training-1"


@dataclasses.dataclass
class Epoch:
    """How far an epoch has come, and the random state with which it began."""

    index: int  # of the epoch within this training, from 0
    rng: Mapping[str, Any]
    done: int = 0  # examples that have been gone through, of the piece that is being trained on
    before: int = 0  # and those of the pieces before it
    cuts: int = 0  # a checksum of the lengths of the blocks so far, where the order depends on them
    # Sums over the batches whose steps were taken, which `nonfinite="skip"` may not be.
    loss: float = 0.0  # of their losses, each times its divisor
    divisor: float = 0.0  # of these divisors: see `nn.Loss.divisor`
    correct: int = 0  # how many of their examples were classified right
    counted: int = 0  # how many examples they have
    seconds: float = 0.0  # spent on this epoch so far

    @property
    def position(self) -> int:
        """How many examples have been gone through."""
        return self.before + self.done

    def measured(self, classification: bool) -> dict[str, float]:
        """Return the mean loss, and the share of right ones for classes; NaN if no step was taken."""
        if not self.counted:
            return dict.fromkeys(["loss", "accuracy"][: 1 + classification], math.nan)
        measured = {"loss": mean_loss(self.loss, self.divisor)}
        return {**measured, "accuracy": self.correct / self.counted} if classification else measured


class Resume:
    """Saves model, optimizer, random state, callbacks and position to one file, and takes them back.

    Parameters
    ----------
    path : str or Path
    every : float
        Seconds between two saves.
    trainer : Trainer
    fixed : mapping
        Options that a training must have in common with the one that wrote the file.
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
        """Save if it is time."""
        if time.monotonic() >= self._due:
            self.save(epoch, history)

    def check(self) -> None:
        """Raise what `save` would raise, before the training: for the file, or state that cannot be saved."""
        files.check_target("checkpoint", self.path)
        checkpoint.optimizer_state(self._trainer.optimizer)

    def save(self, epoch: Epoch, history: Mapping[str, list[float]]) -> None:
        """Write the whole state; a reader of the file sees the old or the new one, never a part."""
        trainer = self._trainer
        if not trainer._ranks.is_first:
            return
        optimizer, tensors = checkpoint.optimizer_state(trainer.optimizer)
        tensors = {f"optimizer.{name}": value for name, value in tensors.items()}
        with trainer._ranks.centred(trainer.model):
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
            "ranks": trainer._ranks.size,
            "optimizer": optimizer,
            "callbacks": [
                [_label(callback), plain]
                for callback, (plain, _) in zip(self._callbacks, states, strict=True)
            ],
        }
        files.write(self.path, description, tensors)
        self._due = time.monotonic() + self._every

    def read(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return what the file holds; ValueError if it is damaged, or no file of a training.

        The first rank reads it, and tells the others.
        """
        ranks = self._trainer._ranks
        held: Any = files.read(self.path, _FORMAT) if ranks.is_first else None
        return ranks.share(held)  # type: ignore[no-any-return]

    def load(self) -> tuple[Epoch, dict[str, list[float]]]:
        """Restore all state but the callbacks'; return the epoch that was running and the history before it.

        Raises
        ------
        ValueError
            The file is damaged, or of another training; nothing is changed.
        """
        trainer = self._trainer
        description, tensors = self.read()
        average = trainer.optimizer.average
        try:
            if description["fixed"] != self._fixed:
                raise ValueError(f"it was saved with {description['fixed']}, expected {self._fixed}")
            saved = [name for name, _ in description["callbacks"]]
            own = list(map(_label, self._callbacks))
            classes = [type(callback).__name__ for callback in self._callbacks]  # all that older files have
            if saved not in (own, classes):
                raise ValueError(f"it was saved with the callbacks {saved}, expected {own}")
            before = trainer.model.state_dict()
            for i, callback in enumerate(self._callbacks):
                _check_running(callback, description["callbacks"][i][1])
                weights = _under(f"callbacks.{i}._weights.", tensors)
                if weights and _forms(weights) != _forms(before):
                    raise ValueError(f"its {own[i]} has weights of another model")
            state, saved_state = description["optimizer"], _under("optimizer.", tensors)
            if "average" not in state:  # an older file has it beside the optimizer's
                state["average"] = description["average"]
                saved_state |= {name: t for name, t in tensors.items() if name.startswith("average.")}
            held = state["average"]
            if held is None and average is not None:
                raise ValueError(
                    f"it was saved without an average, expected one for its {type(average).__name__}"
                )
            position = description["epoch"]  # older files lack two sums, to which every example added 1
            position = dict.fromkeys(("divisor", "counted"), position["done"]) | position
            epoch = _checked(Epoch(**position), self._fixed)
            ranks, saved_by = trainer._ranks.size, description.get("ranks", 1)
            if type(saved_by) is not int or saved_by < 1:
                raise ValueError(f"its number of ranks is {saved_by!r}, expected a count")
            if epoch.done and ranks > 1:
                raise ValueError("it stands within an epoch, which one process has to finish")
            rng = np.random.Generator(type(trainer._rng.bit_generator)())
            rng.bit_generator.state = epoch.rng
            rng.bit_generator.state = description["rng"]
            history = {str(k): [float(v) for v in values] for k, values in description["history"].items()}
            try:
                trainer.model.load_state_dict(_under("model.", tensors))
                checkpoint.restore_optimizer(trainer.optimizer, state, saved_state)
            except BaseException:
                trainer.model.load_state_dict(before)
                raise
        except files.NONSENSE as error:
            raise ValueError(f"{self.path} does not fit this training: {error}") from error
        trainer._rng.bit_generator.state = rng.bit_generator.state
        if saved_by != ranks and trainer._ranks.is_first:
            _tell_of_ranks(saved_by, ranks)
        self._states = [
            (plain, _under(f"callbacks.{i}.", tensors))
            for i, (_, plain) in enumerate(description["callbacks"])
        ]
        return epoch, history

    def load_callbacks(self) -> None:
        """Give the callbacks what they held, once the training has begun."""
        for callback, (plain, arrays) in zip(self._callbacks, self._states, strict=True):
            callback.load_state(plain, arrays)


def _tell_of_ranks(before: int, now: int) -> None:
    warnings.warn(
        f"the checkpoint was saved by {before} ranks and goes on with {now}: gradients are summed in another "
        "order, layers draw other random numbers, and without shard=True batches have other examples",
        stacklevel=2,
    )


def _label(callback: Callback) -> str:
    """What a file calls a callback: its class, and what it watches, which two of a class differ in."""
    watched = getattr(callback, "monitor", None)
    return type(callback).__name__ + (f"({watched})" if isinstance(watched, str) else "")


def _checked(epoch: Epoch, fixed: Mapping[str, Any]) -> Epoch:
    counts = (epoch.index, epoch.done, epoch.before, epoch.cuts, epoch.correct, epoch.counted)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"its position is {counts}, expected counts")
    examples = fixed["examples"]  # None: unknown
    beyond = examples is not None and epoch.position >= max(examples, 1)
    if beyond or epoch.position % fixed["batch_size"]:
        raise ValueError(f"it stands at example {epoch.position}, expected the begin of a batch")
    epoch.loss, epoch.divisor = float(epoch.loss), float(epoch.divisor)
    epoch.seconds = float(epoch.seconds)
    return epoch


def _check_running(callback: Callback, plain: Mapping[str, Any]) -> None:
    """Refuse a state that `Callback.state` cannot have returned of this callback."""
    if type(callback).state is not Callback.state:  # whose form only the callback knows
        return
    for name, value in plain.items():
        # The object may come from another fit, so that a number of it was None when the file was written.
        is_number = isinstance(vars(callback).get(name), int | float)
        allowed = (int, float, type(None)) if is_number else (int, float, str, type(None))
        if name not in callback.running or not isinstance(value, allowed):
            raise ValueError(f"its {type(callback).__name__} has {name} = {value!r}")


def _forms(arrays: Mapping[str, Array]) -> dict[str, Any]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def _under(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
