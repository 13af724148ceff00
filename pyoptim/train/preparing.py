"""The arguments of `Trainer.fit`, checked, and what it prepares from them before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backends.places import Place
from ..callbacks import Callback
from ..runtime.numbers import (
    AT_LEAST_ZERO,
    FRACTION,
    check_callable,
    check_count,
    check_path,
    one_of,
    shown,
)
from ..transforms import Transform
from .data import Data, check_batches
from .evaluation import check_metrics
from .progress import check_verbose
from .resume import Resume

if TYPE_CHECKING:
    from .trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Arguments of `Trainer.fit` that say how to go through the data.

    Raises
    ------
    TypeError, ValueError
        An argument has a value that is not allowed; the message names it.
    """

    epochs: int
    batch_size: int | None
    shuffle: bool
    drop_last: bool
    callbacks: Sequence[Callback]
    transform: Transform | None
    weight_noise: float
    verbose: int
    engine: str
    parallel: str | None
    checkpoint: str | Path | None
    checkpoint_every: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", check_count("epochs", self.epochs))
        AT_LEAST_ZERO.check("weight_noise", self.weight_noise)
        if not isinstance(self.callbacks, Sequence):
            raise TypeError(f"callbacks is a {type(self.callbacks).__name__}, expected a list of them")
        for i, callback in enumerate(self.callbacks):
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks[{i}] is a {type(callback).__name__}, expected a Callback")
        if self.transform is not None:
            check_callable("transform", self.transform, "a function of x, y and rng")
        object.__setattr__(self, "verbose", check_verbose(self.verbose))
        if self.checkpoint is not None:
            check_path("checkpoint", self.checkpoint)
        one_of("auto", "native", "python").check("engine", self.engine)
        one_of(None, "hogwild").check("parallel", self.parallel)
        AT_LEAST_ZERO.check("checkpoint_every", self.checkpoint_every)


class Run(NamedTuple):
    """A training that has been prepared."""

    options: Options
    data: Data
    held_back: Data | None  # for validation
    batch_size: int
    examples: int  # that an epoch trains on
    resume: Resume | None

    def placed(self, place: Place) -> Run:
        """Return this run with data in the model's memory; those for a transform stay in the processor's."""
        held_back = None if self.held_back is None else self.held_back.at(place)
        if self.options.transform is None:
            return self._replace(data=self.data.at(place), held_back=held_back)
        if not isinstance(self.data.x, np.ndarray):
            raise TypeError("transform works on arrays of the processor, but x is in a GPU's memory")
        return self._replace(held_back=held_back)


def hold_back(trainer: Trainer, data: Data, validation: Any, share: float) -> tuple[Data, Data | None]:
    """Return the data to train on and the data to validate with, or None for the latter."""
    FRACTION.check("validation_split", share)
    if share and validation is not None:
        raise ValueError("validation_split and validation_data: expected one of them at most")
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError(f"validation_data is {shown(validation)}, expected (x, y)")
        names = "validation_data[0]", "validation_data[1]"
        return data, trainer._check_data(validation[0], validation[1], names=names)
    if not share:
        return data, None
    count = len(data.x)
    kept = count - round(count * share)
    if not 0 < kept < count:
        raise ValueError(
            f"validation_split is {share!r}, which leaves {kept} of {count} examples to "
            "train on, expected some for each"
        )
    return data.cut(kept)


def _check_files(trainer: Trainer, options: Options) -> None:
    """Raise what writing the callbacks' files would raise, and ValueError if two writers share a file."""
    writers = {} if options.checkpoint is None else {os.path.realpath(options.checkpoint): "checkpoint"}
    for callback in options.callbacks:
        path, name = callback._check_files(trainer), type(callback).__name__
        if path is None or (os.path.exists(path) and not os.path.isfile(path)):  # such as /dev/stdout
            continue
        place = os.path.realpath(path)
        if place in writers:
            raise ValueError(
                f"{name} writes to {str(path)!r}, as {writers[place]} does: each needs its own file"
            )
        writers[place] = name


def prepare(trainer: Trainer, data: Data, held_back: Data | None, options: Options) -> Run:
    """Prepare a training on checked data; nothing of it has run yet."""
    count = len(data.x)
    batch_size = check_count("batch_size", count if options.batch_size is None else options.batch_size)
    size = min(batch_size, count)
    check_batches(trainer.model, data.x, size, options.drop_last)
    if held_back is not None and trainer.metrics:
        check_metrics(trainer.model, trainer.metrics, held_back)
    trainer._find_gradients()
    resume = None
    if options.checkpoint is not None:
        fixed: dict[str, Any] = {"batch_size": batch_size, "shuffle": options.shuffle, "examples": count}
        frozen = [name for name, layer in trainer.model.leaves().items() if not layer.trainable]
        if frozen:  # files of versions without frozen layers lack this entry
            fixed["frozen"] = frozen
        if options.drop_last:  # likewise
            fixed["drop_last"] = True
        if trainer.sharpness_aware:
            fixed["sharpness_aware"] = trainer.sharpness_aware
        resume = Resume(options.checkpoint, options.checkpoint_every, trainer, fixed, options.callbacks)
        resume.check()
    trainer.resuming = resume is not None and resume.path.exists()
    _check_files(trainer, options)
    used = count - count % size if options.drop_last else count
    if used < count and not options.shuffle:  # else the order of an epoch has so many
        data, _ = data.cut(used)
    return Run(options, data, held_back, size, used, resume)
