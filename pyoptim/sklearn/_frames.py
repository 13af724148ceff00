"""What is wrong with a frame that scikit-learn cannot turn into numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def explained(X: Any) -> Iterator[None]:
    """Inside the ``with`` block, an error about text in a frame's column names the column, and the cure."""
    try:
        yield
    except (TypeError, ValueError) as error:
        texts = [name for name in getattr(X, "columns", ()) if _is_text(X[name])]
        if not texts:
            raise
        raise type(error)(
            f"X has the column {texts[0]!r} of text, expected numbers: encode it before, e.g. with "
            f"ColumnTransformer([('text', OneHotEncoder(), {texts!r})], remainder='passthrough'). {error}"
        ) from error


def _is_text(column: Any) -> bool:
    first = next((value for value in column if value is not None and value == value), None)
    return isinstance(first, str)
