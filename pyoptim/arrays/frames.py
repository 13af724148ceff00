"""Frames and Series of pandas and polars, as arrays of numbers; neither library is imported."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from ..runtime.dtypes import Array


def is_frame(value: Any) -> bool:
    """Whether a value is a frame or a Series."""
    return type(value).__module__.partition(".")[0] in ("pandas", "polars") and hasattr(value, "to_numpy")


def numbers(name: str, frame: Any) -> Array:
    """The numbers of a frame (rows, columns), or of a Series (rows,); NaN where one is missing.

    Raises
    ------
    TypeError
        A column holds anything but numbers and bools; the message names it.
    """
    if not hasattr(frame, "columns"):
        return _numbers(name, frame)
    columns = [_numbers(f"{name} has the column {label!r} of", frame[label]) for label in frame.columns]
    return np.column_stack(columns) if columns else np.empty((len(frame), 0))


def plain(name: str, value: Any) -> Any:
    """A frame or a Series as `numbers` returns it, and any other value as it is."""
    return numbers(name, value) if is_frame(value) else value


def _numbers(what: str, column: Any) -> Array:
    values = np.asarray(column)
    if values.dtype.kind in "fiub":
        return values
    if values.dtype.kind == "O":  # numbers of Python's, or some that are missing
        plain = [float("nan") if _is_missing(value) else value for value in values]
        if all(isinstance(value, Real | np.bool_) for value in plain):
            return np.array(plain, np.float64)
    what = what if " " in what else f"{what} has"
    raise TypeError(
        f"{what} dtype {column.dtype}, expected numbers: encode text and categories before, e.g. with "
        "pandas.get_dummies or scikit-learn's OneHotEncoder, or leave them out"
    )


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType"
