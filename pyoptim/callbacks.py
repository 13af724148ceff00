"""What happens around the epochs of `Trainer.fit`; names and hooks are Keras's.

A callback that acts on batches (one that overrides ``on_batch_begin`` or ``on_batch_end``) makes the
training take the generic loop; all others leave it to the compiled engine.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import struct
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .arrays import gpu_views
from .arrays.checks import as_numpy
from .runtime.dtypes import Array
from .runtime.extras import needed
from .runtime.files import check_target, write_atomically
from .runtime.numbers import (
    AT_LEAST_ZERO,
    FRACTION,
    NUMBER,
    check_callable,
    check_count,
    check_flag,
    check_path,
    check_text,
    is_integer,
    is_number,
    nearest,
    one_of,
    plain,
    shown,
)

if TYPE_CHECKING:
    from .train.trainer import Trainer


__all__ = [
    "ActivationStatistics",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "LearningRateScheduler",
    "MLflow",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "ReduceLROnSmallChange",
    "TensorBoard",
    "TerminateOnNaN",
]


def __dir__() -> list[str]:
    return __all__


Logs = Mapping[str, float]


class Callback:
    """Does nothing; to be subclassed.

    Attributes
    ----------
    trainer : Trainer
        Set before ``on_train_begin``. ``trainer.stop_training = True`` ends the training after the epoch;
        ``trainer.resuming`` says whether it goes on from a checkpoint, and in ``on_train_end``
        ``trainer.interrupted`` whether an exception, or Ctrl-C, ends it.
    running : tuple of str
        A class attribute: the names of the attributes that a checkpoint keeps. They hold numbers, strings,
        None or dicts of arrays.
    on_all_ranks : bool
        A class attribute, for trainings by several processes (``Trainer(comm=...)``): False for what only the
        first of them is to do, such as to print or to write files. All of them have the same measurements.
    """

    trainer: Trainer
    running: ClassVar[tuple[str, ...]] = ()
    on_all_ranks: ClassVar[bool] = True

    def on_train_begin(self) -> None: ...

    def on_train_end(self) -> None:
        """Called after ``on_train_begin`` in any case, also where an exception, or Ctrl-C, ends it."""

    def on_epoch_begin(self, epoch: int) -> None:
        """``epoch`` counts from 0, over all calls of `Trainer.fit`."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """``logs`` is what the epoch measured: see `History`."""

    def on_batch_begin(self, batch: int) -> None: ...

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """``logs`` holds the batch's loss."""

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """What a resumed training needs: numbers and strings among `running`, and arrays of its dicts."""
        values = {name: vars(self).get(name) for name in self.running}
        held = {name: value for name, value in values.items() if isinstance(value, dict)}
        arrays = {f"{name}.{key}": array for name, value in held.items() for key, array in value.items()}
        return {name: value for name, value in values.items() if name not in held}, arrays

    def load_state(self, plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Take over what `state` returned."""
        vars(self).update(plain)
        for name, value in arrays.items():
            attribute, _, key = name.partition(".")
            held = vars(self).get(attribute)
            vars(self)[attribute] = {**(held if isinstance(held, dict) else {}), key: value}

    def _check_files(self, trainer: Trainer) -> str | Path | None:
        """Return the path of the file that is written, if any; raise now what writing it would raise."""
        return None

    @property
    def acts_on_batches(self) -> bool:
        cls = type(self)
        return (
            cls.on_batch_begin is not Callback.on_batch_begin or cls.on_batch_end is not Callback.on_batch_end
        )


def tell_the_end(callbacks: Sequence[Callback]) -> None:
    """Call ``on_train_end`` of each, even where another's fails; the last error is raised."""
    if callbacks:
        try:
            callbacks[0].on_train_end()
        finally:
            tell_the_end(callbacks[1:])


# Ends of names that say which way is better: scikit-learn's, and what its scores are called elsewhere.
_MORE = ("accuracy", "acc", "auc", "precision", "recall", "score")
_LESS = ("deviance", "error", "mae", "mse", "seconds")


def _more_is_better(monitor: str, metrics: Sequence[Any]) -> bool:
    """Whether a larger value of what is monitored is a better one: see `_Monitor`."""
    name = monitor.removeprefix("val_")
    for metric in metrics:
        if getattr(metric, "__name__", type(metric).__name__) == name:
            says = getattr(metric, "greater_is_better", None)
            if says is not None:
                return bool(says)
            function = getattr(metric, "func", None)  # of a functools.partial
            name = getattr(function, "__name__", name)
    if name.endswith(_LESS) or "loss" in name:
        return False
    if name.endswith(_MORE):
        return True
    raise ValueError(
        f"monitor is {monitor!r}, which does not say whether more or less is better: give mode='min' or "
        "mode='max', or the metric an attribute greater_is_better"
    )


class _Monitor(Callback):
    """Watches one of the measured values for improvement. NaN never is one.

    Parameters
    ----------
    monitor : str
        A name in `History`: ``"loss"``, ``"val_loss"``, ``"val_accuracy"``, ...
    mode : {"auto", "min", "max"}
        Whether less or more is better. ``"auto"`` asks the metric of the `Trainer`, if it has an attribute
        ``greater_is_better`` (True or False), as those of `pyoptim.metrics` have and a function of your own
        may have. Else the name tells: less for names with "loss" in them or that end in deviance, error, mae,
        mse or seconds; more for those that end in accuracy, acc, auc, precision, recall or score. Any other
        name is a ValueError when the training begins.
    """

    mode = "auto"

    def __init__(self, monitor: str, mode: str) -> None:
        self.mode = one_of("auto", "min", "max").check("mode", mode)
        self.monitor = check_text("monitor", monitor, "the name of a measurement, such as 'val_loss'")
        self._start()

    def _start(self, metrics: Sequence[Any] | None = None) -> None:
        """Forget the best value; in mode "auto", the metrics of the training say which way is better."""
        more = self.mode == "max"
        if metrics is not None and self.mode == "auto":
            more = _more_is_better(self.monitor, metrics)
        self._sign = -1.0 if more else 1.0
        self.best = math.inf * self._sign

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._start(self.trainer.metrics)

    def _value(self, logs: Logs) -> float:
        if self.monitor not in logs:
            near = nearest(self.monitor, logs)
            raise ValueError(f"monitor is {self.monitor!r}, but an epoch measures {', '.join(logs)}{near}")
        return logs[self.monitor]

    def _improves(self, value: float, margin: float, relative: bool = False) -> bool:
        margin = abs(self.best) * margin if relative and math.isfinite(self.best) else margin
        return self._is_better(value, self.best, margin)

    def _is_better(self, value: float, other: float, margin: float) -> bool:
        return self._sign * value < self._sign * other - margin


class EarlyStopping(_Monitor):
    """End the training when the monitored value has not improved for ``patience`` epochs: Keras's rules.

    Every call of `Trainer.fit` begins anew.

    Parameters
    ----------
    monitor : str, default "val_loss"
    min_delta : float, default 0
        What counts as improvement: the value is better by more than this.
    patience : int, default 0
        Epochs without improvement after which the training ends; 0 means the same as 1, and the first epoch
        never ends it.
    mode : {"auto", "min", "max"}
        Which way is better. ``"auto"``: as the metric's attribute ``greater_is_better`` says, else by the
        name: "loss" in it, or deviance, error, mae, mse or seconds at its end, is less; accuracy, acc, auc,
        precision, recall or score at its end is more. Another name is a ValueError when the training begins.
    baseline : float, optional
        Patience begins anew only with an epoch that is the best so far and better than this by min_delta.
        While the best so far is worse than the baseline, an epoch that improves on it does not end the
        training, but counts as one without improvement.
    restore_best_weights : bool, default False
        Leave the model as it was after the best epoch, whether that reached the baseline or not. An epoch
        that was NaN is the best only if all are: then the model is left as after the first that counts. An
        exception, or Ctrl-C, leaves the model as it is then.
    start_from_epoch : int, default 0
        So many epochs at the begin of a fit do not count.

    Attributes
    ----------
    best : float
        The best value so far.
    stopped_epoch : int or None
        The epoch that ended the training, counted as in `Callback.on_epoch_begin`.
    """

    running: ClassVar = ("best", "stopped_epoch", "_waited", "_weights", "_first")

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode)
        self.min_delta = AT_LEAST_ZERO.number("min_delta", min_delta)
        self.patience = check_count("patience", patience, 0)
        self.baseline = None if baseline is None else NUMBER.number("baseline", baseline)
        self.restore_best_weights = check_flag("restore_best_weights", restore_best_weights)
        self.start_from_epoch = check_count("start_from_epoch", start_from_epoch, 0)
        self.stopped_epoch: int | None = None

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._waited, self.stopped_epoch = 0, None
        self._weights: dict[str, Array] | None = None
        # The first epoch of this fit. A checkpoint that does not say was of a training's first fit.
        self._first = 0 if self.trainer.resuming else self.trainer.optimizer.epoch

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self._value(logs)
        if epoch - self._first < self.start_from_epoch:
            return
        improves = self._improves(value, self.min_delta)
        if self.restore_best_weights and (improves or self._weights is None):
            self._weights = self.trainer.model.state_dict()
        self._waited += 1
        if improves:
            self.best = value
            if self.baseline is None or self._is_better(value, self.baseline, self.min_delta):
                self._waited = 0
        elif self._waited >= self.patience and epoch > self._first:
            self.stopped_epoch, self.trainer.stop_training = epoch, True

    def on_train_end(self) -> None:
        if self._weights is not None and not self.trainer.interrupted:
            self.trainer.model.load_state_dict(self._weights)


class _AnyValue(dict[str, float]):
    """What an epoch measures, before it is known what that is."""

    def __missing__(self, name: str) -> float:
        return 0.0


class ModelCheckpoint(_Monitor):
    """Save the model after an epoch: see `Sequential.save`.

    Parameters
    ----------
    path : str or Path
        May name values: ``"model-{epoch:02d}-{val_loss:.3f}.safetensors"``; epoch counts from 1 here. A
        folder that does not exist or cannot be written to is an error before the training.
    monitor : str, default "val_loss"
    save_best_only : bool, default False
        Only after an epoch whose monitored value is the best so far. Further calls of `Trainer.fit` for the
        same model go on with the best value, so that a better model's file stays, as in Keras; with another
        model it begins anew.
    mode : {"auto", "min", "max"}
        Which way is better; only ``save_best_only`` asks. ``"auto"`` is as in `EarlyStopping`.
    every : int, default 1
        Epochs from one time to the next.

    Attributes
    ----------
    best : float
        The best value so far; infinite without ``save_best_only``.
    """

    running: ClassVar = ("best",)
    on_all_ranks: ClassVar = False
    _model: Any = None  # whose best value it is

    def __init__(
        self,
        path: str | Path,
        monitor: str = "val_loss",
        save_best_only: bool = False,
        mode: str = "auto",
        every: int = 1,
    ) -> None:
        super().__init__(monitor, mode)
        self.path = check_path("path", path)
        self.save_best_only = check_flag("save_best_only", save_best_only)
        self.every = check_count("every", every)

    def on_train_begin(self) -> None:
        if self.save_best_only and self._model is not self.trainer.model:
            super().on_train_begin()
            self._model = self.trainer.model

    def _check_files(self, trainer: Trainer) -> str | Path | None:
        from .nn.checkpoint import describe

        describe("layers", trainer.model.layers)
        if "{" in os.path.dirname(self.path):  # a folder that has measured values in its name
            return self.path
        try:
            path = self.path.format_map(_AnyValue(epoch=1))
        except (LookupError, AttributeError, ValueError) as error:
            raise ValueError(f"path is {self.path!r}, which no measured values fit into ({error})") from error
        check_target("path", path)
        return self.path

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if (epoch + 1) % self.every:
            return
        if self.save_best_only:
            value = self._value(logs)
            if not self._improves(value, 0.0):
                return
            self.best = value
        try:
            path = self.path.format(epoch=epoch + 1, **logs)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"path is {self.path!r}, but an epoch measures {', '.join(logs)} ({error!r})"
            ) from error
        self.trainer.model.save(path)


class _Rates(Callback):
    """Scales the learning rates of all groups, which must be numbers."""

    def _scale(self, factor: float, least: float) -> None:
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = min(group["lr"], max(group["lr"] * factor, least))

    def on_train_begin(self) -> None:
        super().on_train_begin()
        for group in self.trainer.optimizer.param_groups:
            if callable(group["lr"]):
                raise ValueError(f"lr is {group['lr']!r}, expected a number for {type(self).__name__}")


class ReduceLROnPlateau(_Monitor, _Rates):
    """Multiply the learning rate when the monitored value stops improving.

    Patience and cooldown are PyTorch's. Keras's of the same name are one more each: give ``patience=p - 1``
    and ``cooldown=c - 1`` for Keras's p and c above 0; 0 stays 0. Every call of `Trainer.fit` begins anew,
    from the learning rate that the optimizer has then.

    Parameters
    ----------
    monitor : str, default "val_loss"
    factor : float in [0, 1), default 0.1
    patience : int, default 10
        Epochs without improvement that are let pass; the next one reduces.
    mode : {"auto", "min", "max"}
        Which way is better. ``"auto"`` is as in `EarlyStopping`.
    min_delta : float, default 1e-4
        What counts as improvement: the value is better by more than this.
    threshold_mode : {"absolute", "relative"}
        Of min_delta: Keras's reading, or PyTorch's default (a share of the best value; PyTorch calls the two
        "abs" and "rel", and min_delta "threshold").
    cooldown : int, default 0
        Epochs after a reduction that do not count as being without improvement.
    min_lr : float, default 0
    """

    running: ClassVar = ("best", "_waited", "_cooling")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        threshold_mode: str = "absolute",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode)
        self.factor, self.min_lr = FRACTION.number("factor", factor), AT_LEAST_ZERO.number("min_lr", min_lr)
        self.patience = check_count("patience", patience, 0)
        self.cooldown = check_count("cooldown", cooldown, 0)
        self.min_delta = AT_LEAST_ZERO.number("min_delta", min_delta)
        self.threshold_mode = one_of("absolute", "relative").check("threshold_mode", threshold_mode)
        self._waited = self._cooling = 0

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._waited = self._cooling = 0

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self._value(logs)
        if self._improves(value, self.min_delta, self.threshold_mode == "relative"):
            self.best, self._waited = value, 0
        else:
            self._waited += 1
        if self._cooling > 0:
            self._cooling, self._waited = self._cooling - 1, 0
        if self._waited > self.patience:
            self._scale(self.factor, self.min_lr)
            self._cooling, self._waited = self.cooldown, 0


class ReduceLROnSmallChange(_Monitor, _Rates):
    """Multiply the learning rate when the objective J changes by less than a threshold from epoch to epoch.

    Every call of `Trainer.fit` begins anew, from the learning rate that the optimizer has then.

    Parameters
    ----------
    threshold : float, default 1e-3
    factor : float in (0, 1), default 0.5
    monitor : str, default "loss"
    min_lr : float, default 0
    """

    running: ClassVar = ("_last",)

    def __init__(
        self, threshold: float = 1e-3, factor: float = 0.5, monitor: str = "loss", min_lr: float = 0.0
    ) -> None:
        super().__init__(monitor, "min")
        self.threshold = AT_LEAST_ZERO.number("threshold", threshold)
        self.factor = FRACTION.number("factor", factor)
        self.min_lr, self._last = AT_LEAST_ZERO.number("min_lr", min_lr), math.inf

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._last = math.inf

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self._value(logs)
        if abs(self._last - value) < self.threshold:
            self._scale(self.factor, self.min_lr)
        self._last = value


class LearningRateScheduler(Callback):
    """Set the learning rate before each epoch to ``schedule(epoch, lr)`` or ``schedule(epoch)``.

    A schedule that needs no callback is given to the optimizer as ``lr``: see `pyoptim.schedules`.
    """

    def __init__(self, schedule: Callable[..., float]) -> None:
        self.schedule = check_callable("schedule", schedule, "a function")

    def on_epoch_begin(self, epoch: int) -> None:
        from inspect import signature

        takes_two = len(signature(self.schedule).parameters) > 1
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = self.schedule(epoch, group["lr"]) if takes_two else self.schedule(epoch)


class CSVLogger(Callback):
    """Write a line of what each epoch measured to a file.

    Parameters
    ----------
    path : str or Path
    separator : str, default ","
    append : bool, default False
        Add to the file if it exists, instead of replacing it.

    Notes
    -----
    A training that goes on from a checkpoint goes on with its log: only its own rows of the epochs that run
    again are dropped, and what earlier trainings wrote stays.

    Raises
    ------
    ValueError
        A file that is to be added to is no log of epochs. Raised before the training begins; the file is
        unchanged.
    """

    running: ClassVar = ("_earlier",)
    on_all_ranks: ClassVar = False

    def __init__(self, path: str | Path, separator: str = ",", append: bool = False) -> None:
        self.path, self.append = Path(check_path("path", path)), check_flag("append", append)
        if not isinstance(separator, str) or len(separator) != 1:
            raise ValueError(f"separator is {shown(separator)}, expected one character")
        self.separator = separator
        self._names: list[str] | None = None
        self._earlier = 0  # rows that earlier trainings wrote

    def _check_files(self, trainer: Trainer) -> str | Path | None:
        check_target("path", self.path, replaces=False)
        if self.append or trainer.resuming:
            self._read()
        return self.path

    def _read(self) -> tuple[list[str] | None, list[list[str]]]:
        """Return the names of the file's columns, None where there are none yet, and its rows."""
        if not self.path.is_file():
            return None, []
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                lines = [line for line in csv.reader(file, delimiter=self.separator) if line]
            for line in lines[1:]:
                int(line[0])
        except (ValueError, csv.Error) as error:
            raise self._is_foreign(str(error)) from error
        if lines and lines[0][0] != "epoch":
            raise self._is_foreign(f"its first column is {lines[0][0]!r}, expected 'epoch'")
        return (lines[0], lines[1:]) if lines else (None, [])

    def _is_foreign(self, why: str) -> ValueError:
        return ValueError(
            f"path is {str(self.path)!r}, which is no log of epochs separated by {self.separator!r} and "
            f"cannot be added to: {why}"
        )

    def on_train_begin(self) -> None:
        self._names, rows = self._read() if self.append or self.trainer.resuming else (None, [])
        self._earlier = len(rows)
        if self._names is None:
            self.path.open("w").close()  # so that a file that cannot be written is an error now
        elif not self.path.read_bytes().endswith((b"\n", b"\r")) and not self.trainer.resuming:
            with self.path.open("a", newline="") as file:
                file.write("\r\n")  # the last writer was killed in a line, or was no CSVLogger

    def load_state(self, plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        earlier = plain.get("_earlier", 0)  # older checkpoints do not have it
        if not is_integer(earlier) or earlier < 0:
            raise ValueError(f"its CSVLogger has _earlier = {earlier!r}, expected a count")
        rows = self._read()[1]
        self._earlier = min(earlier, len(rows))  # the file may have been removed meanwhile
        own = rows[self._earlier :]
        if own and not self.path.read_bytes().endswith((b"\n", b"\r")):
            own.pop()  # the writer was killed in this line, whose epoch runs again
        own = [row for row in own if int(row[0]) < self.trainer.optimizer.epoch]
        kept = rows[: self._earlier] + own
        if len(kept) < len(rows):
            text = io.StringIO(newline="")
            csv.writer(text, delimiter=self.separator).writerows([*filter(None, [self._names]), *kept])
            write_atomically(self.path, text.getvalue().encode())

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        row = {"epoch": epoch, **logs}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=self.separator)
            if self._names is None:
                self._names = list(row)
                writer.writerow(self._names)
            writer.writerow([row.get(name, "") for name in self._names])


class TensorBoard(Callback):
    """Write what each epoch measured where TensorBoard shows it. Needs the extra ``tensorboard``.

    ``tensorboard --logdir FOLDER``, a program of the package of that name, draws the curves.

    Parameters
    ----------
    path : str or Path
        The folder, which is made if it does not exist. As with Keras, training writes to its folder ``train``
        and validation to ``validation``, both under names such as "loss": so they are in one picture. Give
        each training a folder of its own, in the one that TensorBoard is given, to see them side by side.

    Notes
    -----
    The step of a value is its epoch, counted from 0 over all calls of `Trainer.fit`. TensorBoard no longer
    shows what was written to the folder for the epochs that a training runs: so one that goes on from a
    checkpoint goes on with its curves, and one that begins anew replaces them. An estimator of
    `pyoptim.sklearn` counts its epochs from 0 in each call of ``fit``, also with ``warm_start``, so that each
    call replaces the curves: give it another callback for each, or call ``partial_fit``. An epoch is in the
    file before a checkpoint can count it. Characters of a name that TensorBoard does not take become "_".
    """

    on_all_ranks: ClassVar = False

    def __init__(self, path: str | Path) -> None:
        self.path = check_path("path", path)
        self._files: dict[str, str] = {}  # of this training, by part

    def _check_files(self, trainer: Trainer) -> str | Path | None:
        needed("tensorboardX", "callbacks.TensorBoard needs tensorboardX", "pyoptim[tensorboard]")
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise ValueError(f"path is {self.path!r}, which is a file, expected a folder")
        return None

    def on_train_begin(self) -> None:
        os.makedirs(self.path, exist_ok=True)  # a folder that cannot be made is an error now
        self._files = {}

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        parts: dict[str, list[Any]] = {"train": [], "validation": []}
        for name, value in logs.items():
            part = "validation" if name.startswith("val_") else "train"
            tag = _tracked_name(name.removeprefix("val_"))
            parts[part].append(Summary.Value(tag=tag, simple_value=float(value)))
        for part, values in parts.items():
            folder = os.path.join(self.path, part)
            events = []
            if part not in self._files and (values or os.path.isdir(folder)):
                events = self._begin(folder, part, epoch)
            if values:
                events.append(Event(wall_time=time.time(), step=epoch, summary=Summary(value=values)))
            if events:
                self._write(part, events)

    def _begin(self, folder: str, part: str, epoch: int) -> list[Any]:
        """Name the file of a part; its first events hide what the folder holds of later epochs."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        os.makedirs(folder, exist_ok=True)
        self._files[part] = os.path.join(
            folder, f"events.out.tfevents.{time.time_ns()}"
        )  # read in this order
        start = SessionLog(status=SessionLog.START)
        return [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=epoch, session_log=start),
        ]

    def _write(self, part: str, events: list[Any]) -> None:
        """Add events to the file at once.

        The library's own writer leaves that to a thread, which a killed training takes with it, and waits
        for the disk.
        """
        from tensorboardX.record_writer import masked_crc32c

        records = b""
        for event in events:
            data = event.SerializeToString()
            size = struct.pack("<Q", len(data))
            sums = (struct.pack("<I", masked_crc32c(piece)) for piece in (size, data))
            records += size + next(sums) + data + next(sums)
        with open(self._files[part], "ab") as file:
            file.write(records)


class MLflow(Callback):
    """Log what each epoch measured to a run of MLflow. Needs the extra ``mlflow``.

    Where, ``mlflow.set_tracking_uri`` and ``mlflow.set_experiment`` say.

    Parameters
    ----------
    run_id : str, optional
        The run to log to. By default the active one, that of ``with mlflow.start_run()``; where there is
        none, each call of `Trainer.fit` begins and ends one, with the model, the loss and the optimizer's
        hyperparameters as its parameters. (With ``solver="lbfgs"`` of an estimator the optimizer is a
        stand-in, which takes no step.)

    Attributes
    ----------
    run_id : str or None
        The run of the last training.

    Notes
    -----
    The step of a value is its epoch, counted from 0 over all calls of `Trainer.fit`. A training that goes on
    from a checkpoint goes on with its run, in which an epoch that runs again and measures the same loss is
    not logged twice; a warning says so if another run is active. A run that the callback began is "FAILED"
    where an exception, or Ctrl-C, ended the training. Characters of a name that MLflow does not take become
    "_".

    Raises
    ------
    ValueError
        The checkpoint that a training goes on from belongs to another run than ``run_id``.
    """

    running: ClassVar = ("run_id", "_began")
    on_all_ranks: ClassVar = False
    _owns = False  # whether it is the callback that ends the run
    _began = 0  # when the training began, in milliseconds: what the run holds from before is not its own
    _logged: AbstractSet[tuple[int, float]] = frozenset()  # epochs and losses that the run holds already

    def __init__(self, run_id: str | None = None) -> None:
        if run_id is not None:
            check_text("run_id", run_id, "the id of a run, or None")
        self.run_id = self._given = run_id

    def _check_files(self, trainer: Trainer) -> str | Path | None:
        needed("mlflow", "callbacks.MLflow needs MLflow", "pyoptim[mlflow]")
        return None

    def on_train_begin(self) -> None:
        self._owns, self._logged = False, frozenset()
        self._began = time.time_ns() // 1_000_000
        if not self.trainer.resuming:
            self._begin(self._given)

    def load_state(self, plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        import mlflow

        run_id, began = plain.get("run_id"), plain.get("_began", 0)  # older checkpoints do not have it
        if not is_integer(began):
            raise ValueError(f"its MLflow has _began = {began!r}, expected a time")
        if run_id and self._given not in (None, run_id):
            raise ValueError(
                f"run_id is {self._given!r}, but this checkpoint is of a training that logs to run "
                f"{run_id!r}: give that one, or no run_id"
            )
        active = mlflow.active_run()
        if run_id and self._given is None and active is not None and active.info.run_id != run_id:
            warnings.warn(
                f"The training goes on from a checkpoint, and so with its run {run_id!r} of MLflow, not with "
                f"the active run {active.info.run_id!r}.",
                stacklevel=2,
            )
        self._began = began
        self._begin(run_id or self._given)
        logged = mlflow.MlflowClient().get_metric_history(self.run_id, "loss")
        self._logged = {(value.step, value.value) for value in logged if value.timestamp >= began}

    def _begin(self, run_id: str | None) -> None:
        import mlflow

        run = mlflow.active_run()
        if run is None or run_id not in (None, run.info.run_id):
            run = mlflow.start_run(run_id, nested=run is not None)
            self._owns = True
        self.run_id = run.info.run_id
        if self._owns and run_id is None:
            trainer = self.trainer
            group = {k: v for k, v in trainer.optimizer.param_groups[0].items() if k != "params"}
            parts = {
                "model": trainer.model,
                "loss": trainer.loss,
                "optimizer": type(trainer.optimizer).__name__,
            }
            try:
                mlflow.log_params({name: str(value)[:500] for name, value in {**parts, **group}.items()})
            except BaseException:
                self._end("FAILED")
                raise

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        import mlflow

        if (epoch, logs["loss"]) not in self._logged:
            named = {_tracked_name(name): value for name, value in logs.items()}
            mlflow.log_metrics(named, step=epoch, run_id=self.run_id)

    def on_train_end(self) -> None:
        if self._owns:
            self._end("FAILED" if self.trainer.interrupted else "FINISHED")

    def _end(self, status: str) -> None:
        """End the callback's own run, whichever is the active one by now."""
        import mlflow

        self._owns, active = False, mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            mlflow.end_run(status)
        else:
            mlflow.MlflowClient().set_terminated(self.run_id, status)


def _tracked_name(name: str) -> str:
    """Return the name of a metric, such as "<lambda>", as TensorBoard and MLflow take it."""
    return re.sub(r"[^-/\w. ]", "_", name)


class TerminateOnNaN(Callback):
    """End the training after an epoch whose loss is NaN or infinite.

    ``nonfinite="raise"`` of an optimizer stops at the very step.
    """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if not math.isfinite(logs["loss"]):
            self.trainer.stop_training = True


class ActivationStatistics(Callback):
    """Percentiles of what enters a layer, over the training (Ioffe & Szegedy 2015, fig. 1).

    Further calls of `Trainer.fit` for the same model add to what was measured; another model begins anew.

    Parameters
    ----------
    x : array (examples, ...)
        The examples on which the model is run, in evaluation mode. If the model is on a GPU, they may be in
        that GPU's memory, as for `Sequential.forward`.
    layer : int
        Index in ``model.layers``; negative ones count from the end.
    unit : int, optional
        The unit of the layer's input; default: all of them together.
    percentiles : sequence of float, default (15, 50, 85)
    every : int, optional
        Batches from one measurement to the next; default: one measurement an epoch.

    Attributes
    ----------
    steps : list of int
        Optimizer steps (without ``every``: epochs) done at each measurement.
    values : list of array
        The percentiles at each measurement.
    """

    running: ClassVar = ("_measured", "_batches")
    _model: Any = None  # which was measured

    def __init__(
        self,
        x: Any,
        layer: int,
        unit: int | None = None,
        percentiles: Sequence[float] = (15, 50, 85),
        every: int | None = None,
    ) -> None:
        percentiles = plain(percentiles)
        if not isinstance(percentiles, tuple) or not all(is_number(p) and 0 <= p <= 100 for p in percentiles):
            raise ValueError(f"percentiles is {shown(percentiles)}, expected numbers from 0 to 100")
        if every is not None:
            check_count("every", every)
        if not is_integer(layer) or not (unit is None or is_integer(unit)):
            name, value = ("unit", unit) if is_integer(layer) else ("layer", layer)
            raise ValueError(f"{name} is {shown(value)}, expected an integer")
        self.x = x if gpu_views.is_on_gpu(x) else as_numpy("x", x)
        self.layer, self.unit = layer, unit
        self.percentiles, self.every = percentiles, every
        self._measured: dict[str, Array] = {}  # by step; a checkpoint keeps them
        self._batches = 0

    @property
    def steps(self) -> list[int]:
        return sorted(map(int, self._measured))

    @property
    def values(self) -> list[Array]:
        return [self._measured[str(step)] for step in self.steps]

    @property
    def acts_on_batches(self) -> bool:
        return self.every is not None

    def on_train_begin(self) -> None:
        layers = self.trainer.model.layers
        if not -len(layers) <= self.layer < len(layers):
            raise ValueError(f"layer is {self.layer}, expected an index of one of {len(layers)} layers")
        if self._model is not self.trainer.model:
            self._measured, self._batches, self._model = {}, 0, self.trainer.model
        if not self._measured:
            self._measure(0 if self.every else self.trainer.optimizer.epoch)

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        if self.every is not None:
            self._batches += 1
            if self._batches % self.every == 0:
                self._measure(self._batches)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.every is None:
            self._measure(epoch + 1)

    def _measure(self, step: int) -> None:
        model = self.trainer.model
        training = model.training
        x = model._place.upload(model.check_input("x", self.x))
        model.eval()
        for layer in model.layers[: self.layer % len(model.layers)]:
            x = layer.forward(x, False)
        model.training = training
        values = np.asarray(x)
        if self.unit is not None:
            values = values.reshape(len(values), -1)[:, self.unit]
        self._measured[str(step)] = np.percentile(values, self.percentiles)
