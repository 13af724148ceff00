"""Tables in files that do not fit in memory.

Such a file is read a part at a time: once to learn how its columns are encoded, and again in each epoch,
where its encoded parts are blocks for `Trainer.fit`. Memory holds some parts and what was learned, whatever
the number of rows.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays.frames import columns_of, is_missing
from ..runtime.dtypes import Array
from .tables import (
    Categories,
    Encoding,
    Notes,
    Numbers,
    Table,
    check_finite,
    classes_of,
    coded,
    columns_read,
    columns_used,
    constant_target,
    csv_options,
    guessed_of,
    known_target,
    no_value,
    reading,
    text_target,
    too_large,
)

_VALUES = 1 << 20  # of a part, about
_ROWS = 1 << 16  # of a part, at most
_BUFFER = 1 << 16  # bytes by which a column of a Parquet file is read
_SAMPLE = 10_000  # values of a column of which its median is taken, where it has more
_DIFFERENT = 10_000  # values of a target, at most, where they are classes


def size_of(path: str) -> int:
    """Bytes that a CSV or Parquet file takes in memory, about; 0 where it can only be read whole."""
    suffix = Path(path).suffix.lower()
    if not (os.path.isfile(path) and find_spec("pandas")):
        return 0
    if suffix in (".csv", ".tsv"):
        return os.path.getsize(path)
    if suffix == ".parquet" and find_spec("pyarrow"):
        with reading(path), import_module("pyarrow.parquet").ParquetFile(path) as file:
            about = file.metadata
            sizes = (about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            return int(max(sum(sizes), 8 * about.num_rows * about.num_columns))
    return 0


class Parts:
    """The parts of a CSV or Parquet file, which is read anew by each iteration.

    A column of a CSV file that looks like numbers or bools in some parts and like text in others is text in
    all of them, as if it was read whole; to know that, such a file is read once more at first.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_csv = Path(path).suffix.lower() != ".parquet"
        self._texts: set[str] = set()
        if self._is_csv:
            kinds: dict[str, set[str]] = {}
            with reading(path):
                for frame in self._csv():
                    for label, series in columns_of(frame):
                        kinds.setdefault(str(label).strip(), set()).add(_kind(np.asarray(series)))
            self._texts = {name for name, found in kinds.items() if len(found - {"missing"}) > 1}

    def __iter__(self) -> Iterator[Table]:
        begin = 0
        with reading(self.path):
            for frame in self._csv() if self._is_csv else self._parquet():
                if len(frame):
                    yield Table(self.path, columns_read(frame), begin)
                    begin += len(frame)
        if not begin:
            raise ValueError(f"{self.path} has no rows")

    def _parquet(self) -> Iterator[Any]:
        options = {"pre_buffer": False, "buffer_size": _BUFFER}  # else it keeps all that it has read
        with import_module("pyarrow.parquet").ParquetFile(self.path, **options) as file:
            for batch in file.iter_batches(batch_size=_rows(file.metadata.num_columns)):
                yield batch.to_pandas()

    def _csv(self) -> Iterator[Any]:
        pandas = import_module("pandas")
        options = csv_options(self.path)
        labels = pandas.read_csv(self.path, nrows=0, **options).columns
        dtype = {label: str for label in labels if str(label).strip() in self._texts}
        with pandas.read_csv(self.path, chunksize=_rows(len(labels)), dtype=dtype, **options) as reader:
            while True:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", pandas.errors.ParserWarning)
                        frame = next(reader)
                except StopIteration:
                    return
                yield frame


def _kind(values: Array) -> str:
    """What a part of a column of a CSV file looks like."""
    first = next((value for value in values.tolist() if not is_missing(value)), None)
    if first is None:
        return "missing"
    return "bools" if isinstance(first, bool) else "text" if isinstance(first, str) else "numbers"


def _has_text(values: Array) -> bool:
    return values.dtype == object and any(value is not None for value in values)


def _rows(columns: int) -> int:
    return min(_ROWS, max(1, _VALUES // max(1, columns)))


class Chosen(NamedTuple):
    """What a training was told about a file."""

    target: str
    task: str | None  # guessed if there is none
    categories: Sequence[str]
    drop: Sequence[str]
    share: float  # of rows, that are held out
    seed: int

    def drawn(self, parts: Parts) -> Iterator[tuple[Table, Array]]:
        """Yield the parts, and which of their rows are held out: the same ones each time."""
        rng = np.random.default_rng(self.seed)
        for part in parts:
            yield part, rng.random(part.rows) < self.share


@dataclass
class Streamed:
    """A file with what was learned of it, which gives its rows as blocks of encoded examples."""

    parts: Parts
    chosen: Chosen
    encoding: Encoding
    why: str  # the target seems to hold what it does
    rows: int  # that are trained on
    held: int  # that are held out
    notes: Notes

    def blocks(self, held: bool) -> Iterator[tuple[Array, Array]]:
        """Yield blocks of the rows that are held out, or of the others."""
        step = max(1, _VALUES // self.encoding.width)
        for part, out in self.chosen.drawn(self.parts):
            rows = np.flatnonzero(out == held)
            for i in range(0, len(rows), step):
                some = part.taken(rows[i : i + step])
                yield self.encoding.inputs(some, Notes()), self.encoding.targets(some)


def learned(parts: Parts, chosen: Chosen) -> Streamed:
    """Go through a file and learn an encoding, as `tables.learned` does from a table in memory.

    What missing numbers are filled by is the median of 10,000 known ones, drawn at random, if there are more.

    Raises
    ------
    ValueError
        As by `tables.learned`; or the target has more than 10,000 classes.
    """
    path = parts.path
    target, columns = _Target(path, chosen), dict[str, _Column]()
    rng = np.random.default_rng(0)
    for part, held in chosen.drawn(parts):
        names = columns_used(part, chosen.target, chosen.categories, chosen.drop)
        target.add(part, held, rng)
        for name in names:
            column = columns.setdefault(name, _Column(path, name, name in chosen.categories))
            column.add(part, held, rng)
    if target.trained.rows < 2:
        raise ValueError(
            f"{path} has {target.rows} rows, of which {target.trained.rows} are left to be trained on"
        )
    classes, mean, scale, why = target.learned()
    made = tuple(column.learned() for column in columns.values())
    missing = {c.name: c.missing for c in columns.values() if c.missing and not c.is_text}
    encoding = Encoding(made, chosen.target, classes, mean, scale)
    kept = target.trained.rows
    return Streamed(parts, chosen, encoding, why, kept, target.rows - kept, Notes(Counter(missing)))


class Moments:
    """How many numbers there were, their mean, and the sum of the squares of their differences from it."""

    def __init__(self) -> None:
        self.count, self.mean, self.square = 0, 0.0, 0.0

    def add(self, count: int, mean: float, square: float) -> None:
        """Take in those of more numbers (Chan, Golub & LeVeque, 1979)."""
        total, difference = self.count + count, mean - self.mean
        self.square += square + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total


class _Column:
    """What the rows of a column that are trained on have held so far."""

    def __init__(self, path: str, name: str, as_categories: bool = False) -> None:
        self.path, self.name, self.as_categories = path, name, as_categories
        self.rows = self.missing = 0
        self.has_text = False
        self.texts: set[str | None] = set()
        self.known = Moments()  # of the numbers
        self.least, self.most = np.inf, -np.inf
        self.keys, self.sample = np.empty(0), np.empty(0)

    @property
    def is_text(self) -> bool:
        return self.as_categories or self.has_text

    def add(self, part: Table, held: Array, rng: np.random.Generator) -> None:
        values = part.columns[self.name]
        kept = values[~held]
        self.rows += len(kept)
        self.has_text |= _has_text(values)
        if self.as_categories or values.dtype == object:
            self.texts.update(coded(kept)[0])
            Categories.found(self.path, self.name, self.texts)  # at once, if they are too many
            return
        missing = np.isnan(values)
        self.missing += int(missing.sum())
        if missing[~held].any():
            self.texts.add(None)
        check_finite(part, self.name, np.where(missing, 0, values))
        self._add_numbers(kept[~missing[~held]], rng)

    def _add_numbers(self, values: Array, rng: np.random.Generator) -> None:
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            count, mean = len(values), float(values.mean())
            square = float(((values - mean) ** 2).sum())
            self.known.add(count, mean, square)
        self.least, self.most = min(self.least, values.min()), max(self.most, values.max())
        self.keys = np.concatenate([self.keys, rng.random(count)])
        self.sample = np.concatenate([self.sample, values])
        if len(self.keys) > _SAMPLE:  # those with the smallest keys are a random sample
            few = np.argpartition(self.keys, _SAMPLE)[:_SAMPLE]
            self.keys, self.sample = self.keys[few], self.sample[few]

    def learned(self) -> Numbers | Categories:
        if self.is_text:
            return Categories.found(self.path, self.name, self.texts)
        if not self.known.count:
            raise no_value(self.path, self.name)
        fill = float(np.median(self.sample))
        if missing := self.rows - self.known.count:
            self.known.add(missing, fill, 0.0)
        return Numbers(self.name, fill, *self.moments())

    def moments(self) -> tuple[float, float]:
        with np.errstate(over="ignore", invalid="ignore"):
            scale = float(np.sqrt(self.known.square / self.known.count))
        if not np.isfinite([self.known.mean, scale]).all():
            raise too_large(self.path, self.name)
        return self.known.mean, scale if self.least < self.most else 1.0


class _Target:
    """What the target has held so far: the different values in all rows, and those that are trained on."""

    def __init__(self, path: str, chosen: Chosen) -> None:
        self.path, self.chosen, self.rows = path, chosen, 0
        self.trained = _Column(path, chosen.target)
        self.different: Array | None = None
        self.first: Any = None
        self.varies = False

    def add(self, part: Table, held: Array, rng: np.random.Generator) -> None:
        values = known_target(part, self.chosen.target)
        self.rows += len(values)
        before = values[:0] if self.different is None else self.different
        self.different = np.unique(np.concatenate([before, np.unique(values)]))
        is_text = self.different.dtype == object
        if is_text and self.chosen.task == "numbers":
            raise text_target(self.path, self.chosen.target)
        if len(self.different) > _DIFFERENT and (is_text or self.chosen.task == "classes"):
            raise ValueError(
                f"the target {self.chosen.target!r} of {self.path} has more than {_DIFFERENT:,} classes"
            )
        self.different = self.different[: _DIFFERENT + 1]  # which says as well that they are too many
        kept = values[~held]
        if len(kept):
            self.first = kept[0] if self.first is None else self.first
            self.varies |= bool((kept != self.first).any())
        if values.dtype != object:
            check_finite(part, self.chosen.target, values)
            self.trained._add_numbers(kept, rng)
        self.trained.rows += len(kept)

    def learned(self) -> tuple[tuple[str, ...], float, float, str]:
        """The classes, or the mean and the scale of numbers; and why it is this."""
        target, task, why = self.chosen.target, self.chosen.task, "as --task says"
        assert self.different is not None
        if task is None and len(self.different) > _DIFFERENT:
            task, why = "numbers", f"it has more than {_DIFFERENT:,} different values"
        elif task is None:
            task, why = guessed_of(self.different, self.rows)
        if not self.varies:
            raise constant_target(self.path, target, self.first)
        if task == "classes":
            return classes_of(self.path, target, self.different, self.rows), 0.0, 1.0, why
        return (), *self.trained.moments(), why
