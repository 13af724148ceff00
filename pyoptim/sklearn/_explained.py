"""Errors about data: which argument they are about, and what is wrong with a frame's column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.utils import check_array

from ..arrays.frames import check_computed, columns_of, is_frame, is_missing
from ..arrays.memory import refuse_masked


@contextmanager
def named(name: str) -> Iterator[None]:
    """Inside the ``with`` block, messages that do not name this argument begin with it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if re.search(rf"\b{name}\b", str(error)):
            raise
        raise _kind(error)(f"{name}: {error}") from error


@contextmanager
def explained(X: Any, y: Any = None) -> Iterator[None]:
    """Inside the ``with`` block, an error about X or y names it, and of a frame the column and the cure."""
    for name, value in (("X", X), ("y", y)):
        if type(value) is not np.ndarray:  # the usual case at no cost
            check_computed(name, value)
            refuse_masked(name, value)
    try:
        yield
    except (TypeError, ValueError) as error:
        said = str(error)
        of_text, of_missing = "could not convert string to float" in said, "NAType" in said
        if (of_text or of_missing) and is_frame(X) and hasattr(X, "columns"):
            _blame_a_column(X, error, of_missing)
        if re.search(r"\b[Xy]\b", said):
            raise
        raise _kind(error)(f"{'y' if _is_matrix(X) else 'X'}: {said}") from error


def _kind(error: Exception) -> type[Exception]:
    return TypeError if isinstance(error, TypeError) else ValueError


def _is_matrix(X: Any) -> bool:
    """Whether X can be made an array of numbers with two dimensions."""
    try:
        check_array(X, accept_sparse=True, ensure_all_finite=False)
    except (TypeError, ValueError):
        return False
    return True


def _blame_a_column(X: Any, error: Exception, of_missing: bool) -> None:
    """Raise an error that names the column which ``error`` is about; return where there is none."""
    columns = columns_of(X)
    texts = [label for label, column in columns if any(map(_is_text, column))]
    if texts:
        raise _kind(error)(
            f"X has the column {texts[0]!r} of text, expected numbers: encode it before, e.g. with "
            f"ColumnTransformer([('text', OneHotEncoder(handle_unknown='ignore'), {texts!r})], "
            f"remainder='passthrough'). {error}"
        ) from error
    holes = [label for label, column in columns if any(map(is_missing, column))]
    if of_missing and holes:
        raise ValueError(
            f"X has the column {holes[0]!r} in which numbers are missing (pandas.NA), expected numbers: "
            f"fill them before, e.g. with SimpleImputer, or drop the rows. {error}"
        ) from error


def _is_text(value: Any) -> bool:
    """Whether a value is text that does not stand for a number, as '1.5' does."""
    if not isinstance(value, str | bytes):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
