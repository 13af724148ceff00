"""Frames and Series of pandas and polars, as arrays of numbers; neither library is imported."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from ..runtime.dtypes import Array


def is_frame(value: Any) -> bool:
    """Whether a value is a frame or a Series, also one of polars that is not computed yet."""
    library = type(value).__module__.partition(".")[0]
    return library in ("pandas", "polars") and (hasattr(value, "to_numpy") or hasattr(value, "collect"))


def check_computed(name: str, value: Any) -> None:
    """Raise TypeError for a frame of polars that is not computed yet."""
    if is_frame(value) and not hasattr(value, "to_numpy"):
        raise TypeError(f"{name} is a {type(value).__name__}, expected its rows: call its collect() before")


def columns_of(frame: Any) -> list[tuple[Any, Any]]:
    """The label and the Series of each column, in their order; a label may occur twice."""
    column = (lambda i: frame.iloc[:, i]) if hasattr(frame, "iloc") else frame.to_series
    return [(label, column(i)) for i, label in enumerate(frame.columns)]


def is_missing(value: Any) -> bool:
    """Whether an element of a column stands for a number that is missing: None, NaN, or pandas.NA."""
    if isinstance(value, Real):
        return bool(value != value)
    return value is None or type(value).__name__ == "NAType"


def numbers(name: str, frame: Any) -> Array:
    """The numbers of a frame (rows, columns), or of a Series (rows,); NaN where one is missing.

    Raises
    ------
    TypeError
        A column holds anything but numbers and bools, and the message names it; or the frame is not
        computed yet.
    """
    check_computed(name, frame)
    if not hasattr(frame, "columns"):
        return _numbers(name, frame)
    columns = [_numbers(f"{name} has the column {label!r} of", column) for label, column in columns_of(frame)]
    return np.column_stack(columns) if columns else np.empty((len(frame), 0))


def plain(name: str, value: Any) -> Any:
    """A frame or a Series as `numbers` returns it, and any other value as it is."""
    return numbers(name, value) if is_frame(value) else value


def _numbers(what: str, column: Any) -> Array:
    values = np.asarray(column)
    if values.dtype.kind in "fiub":
        return values
    if values.dtype.kind == "O":  # numbers of Python's, or some that are missing
        plain = [float("nan") if is_missing(value) else value for value in values]
        if all(isinstance(value, Real | np.bool_) for value in plain):
            return np.array(plain, np.float64)
    what = what if " " in what else f"{what} has"
    raise TypeError(
        f"{what} dtype {column.dtype}, expected numbers: encode text and categories before, e.g. with "
        "pandas.get_dummies or scikit-learn's OneHotEncoder, or leave them out"
    )
