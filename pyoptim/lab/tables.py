"""Tables in files of one's own, and how their columns become the inputs and the targets of a network.

What was learned from the columns (medians, means, categories) is an `Encoding`: plain numbers and texts,
which a model's file holds as JSON. It computes what scikit-learn's ``ColumnTransformer`` of median imputer,
``StandardScaler`` and ``OneHotEncoder`` does.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays.frames import columns_of, is_missing
from ..runtime.dtypes import Array
from ..runtime.extras import needed
from ..runtime.numbers import nearest, shown

_MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?"]  # in CSV files
_CATEGORIES = 100  # of a column, at most
_CLASSES = 20  # different whole numbers in a target that is guessed to hold classes, at most


class Table(NamedTuple):
    """Columns of float64, NaN where one is missing, or of objects, which are texts and None."""

    path: str
    columns: dict[str, Array]
    begin: int = 0  # how many rows of the file come before, where this is a part of it

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str, what: str) -> Array:
        """Return a column; ValueError, which says what it is for, if there is none."""
        if name not in self.columns:
            known = list(self.columns)
            raise ValueError(
                f"{self.path} has no column {name!r}, {what}; it has {_some(known)}{nearest(name, known)}"
            )
        return self.columns[name]

    def taken(self, rows: Any) -> Table:
        """Return some of the rows."""
        return self._replace(columns={name: values[rows] for name, values in self.columns.items()})

    def row(self, i: int) -> str:
        """How messages call a row."""
        return f"row {self.begin + i + 1}"


# ---- reading -----------------------------------------------------------------------------------------


def is_table(name: str) -> bool:
    """Whether a name is that of a file of a kind that `read` takes."""
    return Path(name).suffix.lower() in _READERS


def read(path: str, expected: Sequence[str] = ()) -> Table:
    """Read a file whole. In an npz or libsvm file the columns are named x0, x1, … and y.

    Parameters
    ----------
    path : str
    expected : sequence of str
        Columns that a libsvm file has too: it leaves out those that are zero in every row.

    Raises
    ------
    ValueError
        The file does not exist, holds no rows, or is not what its suffix says. The message names it.
    ImportError
        What reads such files is not installed.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file that exists")
    if not is_table(path):
        raise ValueError(f"{path} is none of the kinds that are read: {FILES}")
    with reading(path):
        columns = _READERS[Path(path).suffix.lower()](path, expected)
    table = Table(path, columns)
    if not columns or not table.rows:
        raise ValueError(f"{path} has no rows")
    return table


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file in what a library raises that reads it."""
    try:
        yield
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # each library has its own
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _frame(path: str, _: Sequence[str]) -> dict[str, Array]:
    name = next((name for name in ("pandas", "polars") if find_spec(name)), None)
    if name is None:
        raise ImportError("CSV and Parquet files need pandas or polars (pip install pandas pyarrow)")
    library = import_module(name)
    if Path(path).suffix.lower() == ".parquet":
        frame = library.read_parquet(path)
    elif name == "pandas":
        with warnings.catch_warnings():  # about rows that are longer than the header, and would be cut
            warnings.simplefilter("error", library.errors.ParserWarning)
            frame = library.read_csv(path, **csv_options(path))
    else:
        frame = library.read_csv(
            path, separator=_separator(path), null_values=_MISSING, infer_schema_length=None
        )
    return columns_read(frame)


def csv_options(path: str) -> dict[str, Any]:
    """How pandas is to read a CSV file."""
    return {
        "sep": _separator(path), "keep_default_na": False, "na_values": _MISSING, "low_memory": False,
        "index_col": False, "skipinitialspace": True,
    }  # fmt: skip


def _separator(path: str) -> str:
    with open(path, "rb") as file:
        first = file.readline()
    return max((",", ";", "\t"), key=lambda text: first.count(text.encode()))


def columns_read(frame: Any) -> dict[str, Array]:
    """The columns of a frame as a `Table` has them."""
    columns: dict[str, Array] = {}
    for label, series in columns_of(frame):
        label = str(label).strip()
        if label in columns:
            raise ValueError(f"it has two columns {label!r}")
        columns[label] = _column(label, np.asarray(series))
    return columns


def _column(name: str, values: Array) -> Array:
    """Return numbers as float64, and anything else as texts."""
    if values.dtype.kind in "fiu":
        return values.astype(np.float64)
    if values.dtype.kind not in "bOUT":
        raise ValueError(f"its column {name!r} has dtype {values.dtype}, expected numbers or text")
    if {str} <= set(map(type, values.tolist())) <= {str, float, type(None)}:  # the usual ones, quickly
        texts, indices = coded(values)
        return texts[indices]
    plain = [None if is_missing(value) else value for value in values.tolist()]
    if all(v is None or (isinstance(v, Real | Decimal) and not isinstance(v, bool)) for v in plain):
        return np.array([np.nan if v is None else float(v) for v in plain])
    strange = next((v for v in plain if not isinstance(v, str | Real | Decimal | None)), None)
    if strange is not None:
        raise ValueError(f"its column {name!r} has {shown(strange)}, expected numbers or text")
    return texts_of(plain)


def coded(values: Array) -> tuple[Array, Array]:
    """The texts of a column's different values, and the index among them of each value."""
    if values.dtype != object:
        different, indices = np.unique(values, return_inverse=True)
        return texts_of(different), indices
    plain = values.tolist()
    place = {value: i for i, value in enumerate(dict.fromkeys(plain))}
    return texts_of(place), np.fromiter(map(place.__getitem__, plain), np.intp, len(plain))


def texts_of(values: Iterable[Any]) -> Array:
    """Return values as texts, the same for a number however it was read; None where one is missing."""
    made = [None if is_missing(v) else v.strip() if isinstance(v, str) else _text(v) for v in values]
    return np.array([text or None for text in made], object)


def _text(value: Any) -> str:
    whole = not isinstance(value, bool) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _npz(path: str, _: Sequence[str]) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as arrays:
        held = {name: arrays[name] for name in ("x", "y") if name in arrays}
    if "x" not in held:
        raise ValueError("it has no array 'x'")
    x = held["x"].reshape(len(held["x"]), -1) if held["x"].ndim else held["x"]
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise ValueError(f"its x has shape {x.shape} and dtype {x.dtype}, expected numbers (rows, …)")
    columns = {f"x{j}": x[:, j] for j in range(x.shape[1])}
    if "y" in held:
        y = held["y"]
        if y.shape != x.shape[:1]:
            raise ValueError(f"its y has shape {y.shape}, expected {x.shape[:1]}")
        columns["y"] = _column("y", y)
    return columns


def _libsvm(path: str, expected: Sequence[str]) -> dict[str, Array]:
    datasets = needed("sklearn.datasets", "libsvm files need scikit-learn", "pyoptim[sklearn]")
    # By the format the first index is 1: guessing it could shift the columns of another file by one.
    x, y = datasets.load_svmlight_file(path, zero_based=False)
    columns = {f"x{j}": column for j, column in enumerate(x.toarray().T)}
    zeros = {name: np.zeros(len(y)) for name in expected if name[:1] == "x" and name[1:].isdecimal()}
    return {**zeros, **columns, "y": y}


_READERS = {
    ".csv": _frame, ".tsv": _frame, ".parquet": _frame, ".npz": _npz, ".libsvm": _libsvm, ".svm": _libsvm,
    ".svmlight": _libsvm,
}  # fmt: skip
FILES = ", ".join(_READERS)


# ---- encoding ----------------------------------------------------------------------------------------


@dataclass
class Notes:
    """What there is to say about the values of a file, by column."""

    missing: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, set[str]] = field(default_factory=dict)

    def lines(self, path: str) -> list[str]:
        said = {
            "missing values are taken as the column's median": [
                f"{name} ({count})" for name, count in self.missing.items()
            ],
            "categories that were not in the training count as none": [
                f"{name} ({_some(sorted(texts))})" for name, texts in self.unknown.items()
            ],
        }
        return [f"{path}: {what}: {_some(where)}" for what, where in said.items() if where]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers: those that are missing are filled, then all are scaled."""

    name: str
    fill: float
    mean: float
    scale: float

    width = 1

    @staticmethod
    def of(table: Table, name: str, values: Array) -> Numbers:
        known = values[~np.isnan(values)]
        if not len(known):
            raise no_value(table.path, name)
        fill = float(np.median(known))
        mean, scale = _moments(table, name, np.where(np.isnan(values), fill, values))
        return Numbers(name, fill, mean, scale)

    def write(self, table: Table, values: Array, into: Array, notes: Notes) -> None:
        if values.dtype == object:
            wrong = next((i for i, v in enumerate(values) if v is not None), None)
            if wrong is not None:
                raise ValueError(
                    f"the column {self.name!r} of {table.path} has {shown(values[wrong])} in "
                    f"{table.row(wrong)}, expected numbers, of which it was in the training"
                )
        filled = values.astype(np.float64)
        missing = np.isnan(filled)
        if missing.any():
            filled[missing] = self.fill
            notes.missing[self.name] += int(missing.sum())
        check_finite(table, self.name, filled)
        into[:, 0] = (filled - self.mean) / self.scale


@dataclass(frozen=True)
class Categories:
    """A column of categories, one output each; None among them is a value that is missing."""

    name: str
    categories: tuple[str | None, ...]

    @property
    def width(self) -> int:
        return len(self.categories)

    @staticmethod
    def of(table: Table, name: str, values: Array) -> Categories:
        return Categories.found(table.path, name, set(texts_of(values)))

    @staticmethod
    def found(path: str, name: str, texts: set[str | None]) -> Categories:
        if len(texts) > _CATEGORIES:
            raise ValueError(
                f"the column {name!r} of {path} has {len(texts)} different texts, expected at most "
                f"{_CATEGORIES} categories: leave it out by --drop {name}"
            )
        return Categories(name, tuple(sorted(texts, key=lambda v: (v is None, v))))

    def write(self, table: Table, values: Array, into: Array, notes: Notes) -> None:
        texts, indices = coded(values)
        places = {category: j for j, category in enumerate(self.categories)}
        place = np.array([places.get(text, -1) for text in texts], int)[indices]
        known = np.flatnonzero(place >= 0)
        into[known, place[known]] = 1
        unknown = {"a missing value" if t is None else repr(t) for t in texts if t not in places}
        if unknown:
            notes.unknown.setdefault(self.name, set()).update(unknown)


@dataclass(frozen=True)
class Encoding:
    """What a training learned of a table's columns. Without classes the target is a number."""

    columns: tuple[Numbers | Categories, ...]
    target: str
    classes: tuple[str, ...]
    mean: float
    scale: float

    def described(self) -> dict[str, Any]:
        """What `from_described` makes the same encoding of, in JSON's types."""
        return asdict(self)

    @staticmethod
    def from_described(fields: dict[str, Any]) -> Encoding:
        columns = tuple(
            Categories(each["name"], tuple(each["categories"])) if "categories" in each else Numbers(**each)
            for each in fields["columns"]
        )
        return Encoding(**{**fields, "columns": columns, "classes": tuple(fields["classes"])})

    @property
    def width(self) -> int:
        """How many inputs there are."""
        return sum(column.width for column in self.columns)

    def inputs(self, table: Table, notes: Notes) -> Array:
        """Inputs (rows, inputs) of a table; what there is to say about its values goes to the notes.

        Raises
        ------
        ValueError
            A column is missing, holds text in place of numbers, or a number that is not finite.
        """
        made = np.zeros((table.rows, self.width), np.float32)
        at = 0
        for column in self.columns:
            values = table.column(column.name, "which the model was trained on")
            column.write(table, values, made[:, at : at + column.width], notes)
            at += column.width
        return made

    def targets(self, table: Table) -> Array:
        """Classes as integers, or scaled numbers (rows, 1); ValueError if one is missing or no class."""
        values = known_target(table, self.target)
        if self.classes:
            place = {name: i for i, name in enumerate(self.classes)}
            texts, indices = coded(values)
            unknown = sorted({text for text in texts if text not in place})
            if unknown:
                raise ValueError(
                    f"the target {self.target!r} of {table.path} has {_some(unknown)}, "
                    f"expected classes of the training: {_some(self.classes)}"
                )
            return np.array([place[text] for text in texts])[indices]
        if values.dtype == object:
            raise ValueError(f"the target {self.target!r} of {table.path} has text, expected numbers")
        check_finite(table, self.target, values)
        return ((values - self.mean) / self.scale).astype(np.float32)[:, None]

    def numbers(self, outputs: Array) -> Array:
        """A model's outputs (rows, 1) in the target's unit (rows,)."""
        return outputs[:, 0].astype(np.float64) * self.scale + self.mean


def learned(
    table: Table, target: str, rows: Array, task: str, categories: Sequence[str], drop: Sequence[str]
) -> Encoding:
    """Learn an encoding from some rows of a table; classes from all.

    Parameters
    ----------
    table : Table
    target : str
    rows : array of int
        The training's.
    task : {"classes", "numbers"}
    categories, drop : sequences of str
        Columns whose numbers name categories, and those that are left out.

    Raises
    ------
    ValueError
        A column does not exist, has no value, a number that is not finite or too many categories; or the
        target is constant, or, for numbers, text.
    """
    names = columns_used(table, target, categories, drop)
    values = known_target(table, target)
    classes: tuple[str, ...] = ()
    mean, scale = 0.0, 1.0
    if task == "classes":
        classes = classes_of(table.path, target, np.unique(values), len(values))
    elif values.dtype == object:
        raise text_target(table.path, target)
    else:
        check_finite(table, target, values)
        mean, scale = _moments(table, target, values[rows])
    if len(set(values[rows])) < 2:
        raise constant_target(table.path, target, values[rows][0])
    columns: list[Numbers | Categories] = []
    for name in names:
        column = table.columns[name]
        kind: Any = Categories if column.dtype == object or name in categories else Numbers
        columns.append(kind.of(table, name, column[rows]))
    return Encoding(tuple(columns), target, classes, mean, scale)


def columns_used(table: Table, target: str, categories: Sequence[str], drop: Sequence[str]) -> list[str]:
    """The columns that become inputs; ValueError if there are none, or none of a name that was given."""
    for name in (*categories, *drop):
        table.column(name, "which was to be taken as categories or left out")
        if name == target:
            raise ValueError(f"--drop or --categories has {name!r}, which is the target")
    names = [name for name in table.columns if name != target and name not in drop]
    if not names:
        raise ValueError(f"{table.path} has no column beside the target {target!r}")
    return names


def classes_of(path: str, target: str, different: Array, rows: int) -> tuple[str, ...]:
    """The classes of a target that has these different values; ValueError if it has too many."""
    if 2 * len(different) > rows > 2:
        raise ValueError(
            f"the target {target!r} of {path} has {len(different)} classes in {rows} rows: too few of each "
            "to learn from"
        )
    return tuple(texts_of(different))


def text_target(path: str, target: str) -> ValueError:
    return ValueError(f"the target {target!r} of {path} has text, expected numbers by --task")


def constant_target(path: str, target: str, value: Any) -> ValueError:
    return ValueError(
        f"the target {target!r} of {path} is {shown(_text_of(value))} in all rows that are trained on: there "
        "is nothing to learn"
    )


def no_value(path: str, name: str) -> ValueError:
    return ValueError(f"the column {name!r} of {path} has no value: leave it out by --drop {name}")


def guessed(table: Table, target: str) -> tuple[str, str]:
    """Whether a target holds classes or numbers, and why it seems so."""
    values = known_target(table, target)
    if values.dtype == object:
        return guessed_of(values, len(values))
    return guessed_of(np.unique(values), len(values))


def guessed_of(different: Array, rows: int) -> tuple[str, str]:
    """The same of a target's different values, where they are numbers."""
    if different.dtype == object:
        return "classes", "it holds text"
    if (different != np.floor(different)).any():
        return "numbers", "it has fractions"
    few = len(different) <= min(_CLASSES, rows // 2)
    return "classes" if few else "numbers", f"it has {len(different):,} different whole numbers"


def known_target(table: Table, target: str) -> Array:
    """The column of the target; ValueError if there is none, or a value is missing."""
    values = table.column(target, "the target")
    missing = np.array([is_missing(value) for value in values])
    if missing.any():
        of = f"{len(values)} rows" + (f" from {table.row(0)} on" if table.begin else "")
        raise ValueError(
            f"the target {target!r} of {table.path} is missing in {int(missing.sum())} of {of}, first in "
            f"{table.row(int(np.argmax(missing)))}"
        )
    return values


def _moments(table: Table, name: str, values: Array) -> tuple[float, float]:
    """Return mean and standard deviation of a column, the latter 1 where it is constant."""
    check_finite(table, name, values)
    values = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(values.mean()), float(values.std())
    if not np.isfinite([mean, scale]).all():
        raise too_large(table.path, name)
    return mean, scale if values.min() < values.max() else 1.0


def too_large(path: str, name: str) -> ValueError:
    return ValueError(f"the column {name!r} of {path} has numbers too large for their square")


def check_finite(table: Table, name: str, values: Array) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"the column {name!r} of {table.path} has {values[row]} in {table.row(row)}")


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else _text(value)


def _some(names: Sequence[str]) -> str:
    """Return names, the first ten where there are more."""
    rest = f", … ({len(names)} in all)" if len(names) > 10 else ""
    return ", ".join(map(str, names[:10])) + rest
