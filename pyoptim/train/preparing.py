"""The arguments of `Trainer.fit`, checked, and what it prepares from them before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from .data import check_batches
from .evaluation import FEW, check_metrics
from .progress import check_verbose
from .ranks import Ranks, share_of
from .resume import Resume
from .sources import Arrays, Blocks, Mapped, Source, is_blocks, is_mapped, mapped

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
    shuffle: bool | int
    drop_last: bool
    callbacks: Sequence[Callback]
    transform: Transform | None
    weight_noise: float
    verbose: int
    engine: str
    parallel: str | None
    checkpoint: str | Path | None
    checkpoint_every: float
    steps_per_epoch: int | None
    shard: bool

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
        if self.steps_per_epoch is not None:
            object.__setattr__(self, "steps_per_epoch", check_count("steps_per_epoch", self.steps_per_epoch))


class Run(NamedTuple):
    """A training that has been prepared."""

    options: Options
    source: Source
    held_back: Source | None  # for validation
    batch_size: int  # of several ranks: the most examples that a batch has of this one
    examples: int | None  # that an epoch trains on, if that is known; of this rank
    resume: Resume | None
    whole_batch: int
    drawn: int | None  # how many examples the order of an epoch has, before `Options.shard` cuts it
    ends: Any  # of several ranks: how many examples of this one each step ends with, int64 array; or None

    def placed(self, place: Place) -> Run:
        """Return this run with data in the model's memory; those for a transform stay in the processor's."""
        held_back = None if self.held_back is None else self.held_back.at(place)
        if self.options.transform is None:
            return self._replace(source=self.source.at(place), held_back=held_back)
        if isinstance(self.source, Arrays) and not isinstance(self.source.data.x, np.ndarray):
            raise TypeError("transform works on arrays of the processor, but x is in a GPU's memory")
        return self._replace(held_back=held_back)


def source_of(
    trainer: Trainer, x: Any, y: Any = None, weight: Any = None, names: tuple[str, str] = ("x", "y")
) -> Source:
    """Return arrays, a mapped file or blocks as a source; of blocks, to evaluate on."""
    if y is None and is_blocks(x):
        if weight is not None:
            raise ValueError("sample_weight was given beside blocks, expected it as the third of each block")
        return Blocks(trainer._check_data, x, names[0])
    if y is None:
        raise TypeError(f"{names[1]} is missing, expected targets, or blocks in place of {names[0]}")
    if any(map(is_mapped, (x, y, weight))):
        return mapped(trainer._check_data, x, y, weight, names)
    return Arrays(trainer._check_data(x, y, weight, names))


def hold_back(
    trainer: Trainer, source: Source, validation: Any, share: float
) -> tuple[Source, Source | None]:
    """Return the examples to train on and those to validate with, or None for the latter."""
    FRACTION.check("validation_split", share)
    if share and validation is not None:
        raise ValueError("validation_split and validation_data: expected one of them at most")
    if validation is not None:
        return source, _validation(trainer, validation)
    if not share:
        return source, None
    if not isinstance(source, Arrays):
        raise ValueError(
            "validation_split holds back the last examples of arrays: expected validation_data beside blocks"
        )
    count = source.examples
    kept = count - round(count * share)
    if not 0 < kept < count and not trainer._ranks.shares_batches:
        raise ValueError(
            f"validation_split is {share!r}, which leaves {kept} of {count} examples to "
            "train on, expected some for each"
        )
    return source.cut(kept)


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


def _validation(trainer: Trainer, validation: Any) -> Source:
    if isinstance(validation, tuple | list) and len(validation) == 2:
        x, y = validation
        return source_of(trainer, x, y, names=("validation_data[0]", "validation_data[1]"))
    if isinstance(validation, tuple | list) or not is_blocks(validation):
        raise TypeError(f"validation_data is {shown(validation)}, expected (x, y), or a function of blocks")
    source = Blocks(trainer._check_data, validation, "validation_data")
    if source.serves_once:
        raise ValueError(
            "validation_data is a generator, which gives its blocks once: expected a function returning one"
        )
    return source


class _Sizes(NamedTuple):
    """What an epoch of one rank comes to: see `Run`."""

    fixed: dict[str, Any]  # what a checkpoint says of it
    whole_batch: int
    batch: int
    drawn: int | None
    examples: int | None
    ends: Any = None


def _sizes(trainer: Trainer, source: Arrays, options: Options) -> _Sizes:
    ranks, shard, count = trainer._ranks, options.shard, source.examples
    if options.steps_per_epoch is not None:
        raise ValueError(f"steps_per_epoch is {options.steps_per_epoch}, expected None beside arrays")
    (total,) = [count] if shard else ranks.sums(count)
    if total == 0:
        raise ValueError("x is empty on all ranks, expected at least one example")
    given = check_count("batch_size", total if options.batch_size is None else options.batch_size)
    fixed = {"batch_size": given, "shuffle": options.shuffle, "examples": total}
    if not ranks.shares_batches:
        return _sizes_alone(ranks, count, fixed, options)
    whole = min(given, total)
    if whole < ranks.size and not shard:  # all might have none
        raise ValueError(
            f"batch_size makes batches of {whole}, expected an example for each of {ranks.size} ranks"
        )
    of_all, ends = ranks.ends(count, total, whole, options.drop_last, shard)
    most, used = max(1, int(np.diff(ends, prepend=0).max())), int(ends[-1])
    return _Sizes(fixed, whole, most, int(of_all[-1]) if shard else used, used, ends)


def _sizes_alone(ranks: Ranks, count: int, fixed: dict[str, Any], options: Options) -> _Sizes:
    """Return the sizes where each rank, or the only one, has batches of its own."""
    own = ranks.count_of(count) if options.shard else count
    if options.shard and count < ranks.size:
        raise ValueError(f"x has {count} examples, expected one for each of {ranks.size} ranks")
    size = min(fixed["batch_size"], own)
    used = own - own % size if options.drop_last else own
    cut = options.shard and ranks.size > 1  # after the order of all was drawn
    return _Sizes(fixed, size, size, count if cut else used, used)


def _sizes_of_blocks(trainer: Trainer, source: Blocks, options: Options) -> _Sizes:
    ranks = trainer._ranks
    if options.batch_size is None:
        raise ValueError("batch_size is None, expected a number beside blocks")
    if source.serves_once and options.epochs > 1:
        raise ValueError(
            f"x is a generator, which gives its blocks once, but epochs is {options.epochs}: expected a "
            "function that returns one"
        )
    whole = check_count("batch_size", options.batch_size)
    if ranks.size > 1 and (options.shard or options.steps_per_epoch is None or whole < ranks.size):
        raise ValueError(
            f"blocks of {ranks.size} ranks: expected each rank's own (shard=False), steps_per_epoch, and a "
            "batch_size with an example for each"
        )
    size = ranks.count_of(whole)
    source.limit(options.steps_per_epoch, size, options.drop_last)
    count = source.examples
    fixed = {"batch_size": whole, "shuffle": options.shuffle, "examples": count}
    if count is not None:  # of all ranks, whose number may change between two runs
        fixed["examples"] = count // size * whole
    return _Sizes(fixed, whole, size, count, count)


def _check_batches(trainer: Trainer, x: Any, sizes: _Sizes, options: Options) -> None:
    """Raise ValueError if a batch, or a rank's part of one, is too small to take statistics of."""
    count, smallest = sizes.examples, None
    if trainer._sync_norms:
        count = sizes.fixed["examples"]
    elif sizes.ends is not None:
        smallest = min((n for n in np.diff(sizes.ends, prepend=0).tolist() if n), default=None)
        if smallest is None:
            return
    check_batches(trainer.model, x, sizes.whole_batch, options.drop_last, count, smallest)


def prepare(trainer: Trainer, source: Source, held_back: Source | None, options: Options) -> Run:
    """Prepare a training on checked data; nothing of it has run yet."""
    ranks = trainer._ranks
    ranks.check_equal({
        "shard": options.shard, "what x is": type(source).__name__,
        "steps_per_epoch": options.steps_per_epoch,
        "whether there are validation data": held_back is not None,
    })  # fmt: skip
    if ranks.size > 1 and any(isinstance(given, Mapped) for given in (source, held_back)):
        raise ValueError(f"mapped files: not with a comm of {ranks.size} ranks, only arrays or blocks")
    if isinstance(source, Blocks):
        sizes = _sizes_of_blocks(trainer, source, options)
    else:
        sizes = _sizes(trainer, source, options)
        _check_batches(trainer, source.data.x, sizes, options)
    if isinstance(held_back, Arrays) and trainer.metrics and held_back.examples:
        few = held_back.few(FEW) if isinstance(held_back, Mapped) else held_back.data
        check_metrics(trainer.model, trainer.metrics, few)
    trainer._find_gradients()
    resume = None
    if options.checkpoint is not None:
        frozen = [name for name, layer in trainer.model.leaves().items() if not layer.trainable]
        if frozen:  # files of versions without frozen layers lack this entry
            sizes.fixed["frozen"] = frozen
        if options.drop_last:  # likewise
            sizes.fixed["drop_last"] = True
        if trainer.sharpness_aware:
            sizes.fixed["sharpness_aware"] = trainer.sharpness_aware
        resume = Resume(options.checkpoint, options.checkpoint_every, trainer, sizes.fixed, options.callbacks)
        if ranks.is_first:
            resume.check()
    trainer.resuming = ranks.share(resume is not None and resume.path.exists())
    if ranks.is_first:
        _check_files(trainer, options)
    drawn = sizes.drawn
    if isinstance(source, Arrays) and drawn is not None and drawn < source.examples and not options.shuffle:
        source, _ = source.cut(drawn)  # else the order of an epoch has so many
    run = Run(
        options, source, held_back, sizes.batch, sizes.examples, resume, sizes.whole_batch, drawn, sizes.ends
    )
    return run if ranks.size == 1 else _joined(trainer, run, source)


def _joined(trainer: Trainer, run: Run, source: Any) -> Run:
    """Return a run as this rank's part of the training by all ranks.

    Raises
    ------
    ValueError
        Two ranks are to do something different, or there is something that only one process does.
    """
    ranks, options, place = trainer._ranks, run.options, trainer.model._place
    refused = {
        "transform": options.transform is not None,
        "parallel": options.parallel is not None,
        "an optimizer that keeps parameters or states in fewer bits": trainer.optimizer._is_packed,
    }
    if trainer._sync_norms:
        refused["sync_norms, and a model on a GPU"] = place.queue is not None
    if not ranks.together:
        refused |= {
            "an average of the parameters": trainer.optimizer.average is not None,
            "blocks": isinstance(source, Blocks),
            "a model on a GPU": place.queue is not None,
        }
    for name, given in refused.items():
        if given:
            raise ValueError(f"{name}: not with a comm of {ranks.size} ranks, only with one process")
    ranks.check_equal({
        "whether the model is on a GPU": place.queue is not None,
        "epochs": options.epochs, "batch_size": options.batch_size, "shuffle": options.shuffle,
        "drop_last": options.drop_last, "weight_noise": options.weight_noise,
        "whether there is a checkpoint": run.resume is not None,
        "loss": (type(trainer.loss).__name__, str(vars(trainer.loss))),
        "metrics": len(trainer.metrics), "sharpness_aware": trainer.sharpness_aware,
        "sync_norms": trainer._sync_norms,
        "penalty": repr(trainer.penalty),
        "the callbacks": [type(callback).__name__ for callback in options.callbacks],
    } | ({"how many examples x has": source.examples} if options.shard else {}))  # fmt: skip
    own = [callback for callback in options.callbacks if ranks.is_first or callback.on_all_ranks]
    options = replace(options, callbacks=own, verbose=options.verbose if ranks.is_first else False)
    held_back: Any = run.held_back
    if isinstance(held_back, Arrays) and options.shard and ranks.together:
        held_back = Arrays(held_back.data.part(*share_of(held_back.examples, ranks.rank, ranks.size)))
    if held_back is not None and not ranks.any(held_back.examples != 0):
        raise ValueError("the validation data are empty on all ranks, expected at least one example")
    return run._replace(options=options, held_back=held_back)
