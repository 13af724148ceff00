"""Tables in files of one's own, and how their columns become the inputs and the targets of a network.

What was learned from the columns (medians, means, categories) is an `Encoding`: plain numbers and texts,
which a model's file holds as JSON. It computes what scikit-learn's ``ColumnTransformer`` of median imputer,
``StandardScaler`` and ``OneHotEncoder`` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
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
    try:
        columns = _READERS[Path(path).suffix.lower()](path, expected)
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # each library has its own
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    table = Table(path, columns)
    if not columns or not table.rows:
        raise ValueError(f"{path} has no rows")
    return table


def _frame(path: str, _: Sequence[str]) -> dict[str, Array]:
    name = next((name for name in ("pandas", "polars") if find_spec(name)), None)
    if name is None:
        raise ImportError("CSV and Parquet files need pandas or polars (pip install pandas pyarrow)")
    library = import_module(name)
    if Path(path).suffix.lower() == ".parquet":
        frame = library.read_parquet(path)
    else:
        with open(path, "rb") as file:
            first = file.readline()
        separator = max((",", ";", "\t"), key=lambda text: first.count(text.encode()))
        if name == "pandas":
            with warnings.catch_warnings():  # about rows that are longer than the header, and would be cut
                warnings.simplefilter("error", library.errors.ParserWarning)
                options = {"low_memory": False, "index_col": False, "skipinitialspace": True}
                frame = library.read_csv(
                    path, sep=separator, keep_default_na=False, na_values=_MISSING, **options
                )
        else:
            frame = library.read_csv(
                path, separator=separator, null_values=_MISSING, infer_schema_length=None
            )
    columns = {}
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
    plain = [None if is_missing(value) else value for value in values.tolist()]
    if all(v is None or (isinstance(v, Real | Decimal) and not isinstance(v, bool)) for v in plain):
        return np.array([np.nan if v is None else float(v) for v in plain])
    strange = next((v for v in plain if not isinstance(v, str | Real | Decimal | None)), None)
    if strange is not None:
        raise ValueError(f"its column {name!r} has {shown(strange)}, expected numbers or text")
    return _texts(plain)


def _texts(values: Iterable[Any]) -> Array:
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


@dataclass(frozen=True)
class Numbers:
    """A column of numbers: those that are missing are filled, then all are scaled."""

    name: str
    fill: float
    mean: float
    scale: float

    width = 1

    @staticmethod
    def of(path: str, name: str, values: Array) -> Numbers:
        known = values[~np.isnan(values)]
        if not len(known):
            raise ValueError(f"the column {name!r} of {path} has no value: leave it out by --drop {name}")
        fill = float(np.median(known))
        mean, scale = _moments(path, name, np.where(np.isnan(values), fill, values))
        return Numbers(name, fill, mean, scale)

    def write(self, path: str, values: Array, into: Array, notes: dict[str, list[str]]) -> None:
        if values.dtype == object:
            wrong = next((i for i, v in enumerate(values) if v is not None), None)
            if wrong is not None:
                raise ValueError(
                    f"the column {self.name!r} of {path} has {shown(values[wrong])} in row {wrong + 1}, "
                    "expected numbers, of which it was in the training"
                )
        filled = values.astype(np.float64)
        missing = np.isnan(filled)
        if missing.any():
            filled[missing] = self.fill
            notes.setdefault("missing values are taken as the column's median", []).append(
                f"{self.name} ({int(missing.sum())})"
            )
        _check_finite(path, self.name, filled)
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
    def of(path: str, name: str, values: Array) -> Categories:
        found = set(_texts(values))
        if len(found) > _CATEGORIES:
            raise ValueError(
                f"the column {name!r} of {path} has {len(found)} different texts, expected at most "
                f"{_CATEGORIES} categories: leave it out by --drop {name}"
            )
        return Categories(name, tuple(sorted(found, key=lambda v: (v is None, v))))

    def write(self, path: str, values: Array, into: Array, notes: dict[str, list[str]]) -> None:
        place = {category: j for j, category in enumerate(self.categories)}
        unknown = set()
        for i, value in enumerate(_texts(values)):
            if value in place:
                into[i, place[value]] = 1
            else:
                unknown.add("a missing value" if value is None else repr(value))
        if unknown:
            what = "categories that were not in the training count as none"
            notes.setdefault(what, []).append(f"{self.name} ({_some(sorted(unknown))})")


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

    def inputs(self, table: Table) -> tuple[Array, list[str]]:
        """Inputs (rows, inputs) of a table, and what there is to say about its values.

        Raises
        ------
        ValueError
            A column is missing, holds text in place of numbers, or a number that is not finite.
        """
        made = np.zeros((table.rows, sum(column.width for column in self.columns)), np.float32)
        notes: dict[str, list[str]] = {}
        at = 0
        for column in self.columns:
            values = table.column(column.name, "which the model was trained on")
            column.write(table.path, values, made[:, at : at + column.width], notes)
            at += column.width
        return made, [f"{table.path}: {what}: {_some(where)}" for what, where in notes.items()]

    def targets(self, table: Table) -> Array:
        """Classes as integers, or scaled numbers (rows, 1); ValueError if one is missing or no class."""
        values = _known_target(table, self.target)
        if self.classes:
            place = {name: i for i, name in enumerate(self.classes)}
            texts = _texts(values)
            unknown = sorted({text for text in texts if text not in place})
            if unknown:
                raise ValueError(
                    f"the target {self.target!r} of {table.path} has {_some(unknown)}, "
                    f"expected classes of the training: {_some(self.classes)}"
                )
            return np.array([place[text] for text in texts])
        if values.dtype == object:
            raise ValueError(f"the target {self.target!r} of {table.path} has text, expected numbers")
        _check_finite(table.path, self.target, values)
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
    for name in (*categories, *drop):
        table.column(name, "which was to be taken as categories or left out")
        if name == target:
            raise ValueError(f"--drop or --categories has {name!r}, which is the target")
    values = _known_target(table, target)
    classes: tuple[str, ...] = ()
    mean, scale = 0.0, 1.0
    if task == "classes":
        classes = tuple(_texts(np.unique(values)))
        if 2 * len(classes) > len(values) > 2:
            raise ValueError(
                f"the target {target!r} of {table.path} has {len(classes)} classes in {len(values)} rows: "
                "too few of each to learn from"
            )
    elif values.dtype == object:
        raise ValueError(f"the target {target!r} of {table.path} has text, expected numbers by --task")
    else:
        _check_finite(table.path, target, values)
        mean, scale = _moments(table.path, target, values[rows])
    if len(set(values[rows])) < 2:
        raise ValueError(
            f"the target {target!r} of {table.path} is {shown(_text_of(values[rows][0]))} in all rows that "
            "are trained on: there is nothing to learn"
        )
    columns: list[Numbers | Categories] = []
    for name, column in table.columns.items():
        if name == target or name in drop:
            continue
        kind: Any = Categories if column.dtype == object or name in categories else Numbers
        part = column[rows]
        columns.append(kind.of(table.path, name, part))
    if not columns:
        raise ValueError(f"{table.path} has no column beside the target {target!r}")
    return Encoding(tuple(columns), target, classes, mean, scale)


def guessed(table: Table, target: str) -> tuple[str, str]:
    """Whether a target holds classes or numbers, and why it seems so."""
    values = _known_target(table, target)
    if values.dtype == object:
        return "classes", "it holds text"
    if (values != np.floor(values)).any():
        return "numbers", "it has fractions"
    count = len(np.unique(values))
    few = count <= min(_CLASSES, len(values) // 2)
    return "classes" if few else "numbers", f"it has {count:,} different whole numbers"


def _known_target(table: Table, target: str) -> Array:
    values = table.column(target, "the target")
    missing = np.array([is_missing(value) for value in values])
    if missing.any():
        raise ValueError(
            f"the target {target!r} of {table.path} is missing in {int(missing.sum())} of {len(values)} "
            f"rows, first in row {int(np.argmax(missing)) + 1}"
        )
    return values


def _moments(path: str, name: str, values: Array) -> tuple[float, float]:
    """Return mean and standard deviation of a column, the latter 1 where it is constant."""
    _check_finite(path, name, values)
    values = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(values.mean()), float(values.std())
    if not np.isfinite([mean, scale]).all():
        raise ValueError(f"the column {name!r} of {path} has numbers too large for their square")
    return mean, scale if values.min() < values.max() else 1.0


def _check_finite(path: str, name: str, values: Array) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"the column {name!r} of {path} has {values[row]} in row {row + 1}")


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else _text(value)


def _some(names: Sequence[str]) -> str:
    """Return names, the first ten where there are more."""
    rest = f", … ({len(names)} in all)" if len(names) > 10 else ""
    return ", ".join(map(str, names[:10])) + rest
