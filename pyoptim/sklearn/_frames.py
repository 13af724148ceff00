"""What is wrong with a frame that scikit-learn cannot turn into numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..arrays.frames import check_computed, columns_of, is_frame, is_missing


@contextmanager
def explained(X: Any) -> Iterator[None]:
    """Inside the ``with`` block, an error about what is no number in a frame names column and cure."""
    check_computed("X", X)
    try:
        yield
    except (TypeError, ValueError) as error:
        said = str(error)
        of_text, of_missing = "could not convert string to float" in said, "NAType" in said
        if not (of_text or of_missing) or not (is_frame(X) and hasattr(X, "columns")):
            raise
        columns = columns_of(X)
        texts = [label for label, column in columns if any(map(_is_text, column))]
        if texts:
            raise type(error)(
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
        raise


def _is_text(value: Any) -> bool:
    """Whether a value is text that does not stand for a number, as '1.5' does."""
    if not isinstance(value, str | bytes):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
