"""Layers as the rows of a table: what each is, the shape of its outputs, how many parameters it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, signature

from ..runtime.html import table
from .layers import Layer

_HEAD = ("", "layer", "output", "parameters", "")
_Row = tuple[str, str, str, int, str]  # name, description, shape of outputs, number of parameters, note


def as_text(layers: Sequence[Layer], shape: tuple[int, ...] | None, totals: Mapping[str, int]) -> str:
    """Return a line for each layer and each total; ``shape`` is that of one input, if it is known."""
    rows = [*_rows(layers, shape), *(("", name, "", size, "") for name, size in totals.items())]
    texts = [_HEAD, *((name, what, of, f"{size:,}", note) for name, what, of, size, note in rows)]
    a, b, c, d = (max(len(text[i]) for text in texts) for i in range(4))
    return "\n".join(
        f"{name:<{a}}  {what:<{b}}  {of:<{c}}  {size:>{d}}{note and '  '}{note}"
        for name, what, of, size, note in texts
    )


def as_html(layers: Sequence[Layer], caption: str) -> str:
    """Return the same as a table for notebooks, without totals."""
    return table(caption, _HEAD, _rows(layers, None))


def _rows(layers: Sequence[Layer], shape: tuple[int, ...] | None) -> list[_Row]:
    if shape is None:  # then it is taken for a row of the first dense layer's features
        leaves = (leaf for layer in layers for leaf in layer.leaves().values())
        sizes = (getattr(leaf, "in_features", None) for leaf in leaves)
        shape = next(((size,) for size in sizes if size is not None), None)
    return _chained("", layers, None if shape is None else tuple(shape))


def _chained(prefix: str, layers: Iterable[Layer], shape: tuple[int, ...] | None) -> list[_Row]:
    """Return the row of each layer of a chain, and of those in it."""
    rows = []
    for i, layer in enumerate(layers):
        what = type(layer).__name__ if layer.block else _briefly(layer)
        inner = _chained(f"{prefix}{i}.block.", layer.block, shape)
        try:
            shape = None if shape is None else layer.output_shape(shape)
        except Exception:  # the input is another than was guessed, for which a user's layer is not prepared
            shape = None
        shown = "?" if shape is None else str(shape)
        note = "" if layer.trainable else "frozen"
        rows += [(f"{prefix}{i}", what, shown, layer.parameter_count(), note), *inner]
    return rows


def _briefly(layer: Layer) -> str:
    """Return the call that makes a layer, without what has its default, or its own words."""
    if type(layer).__repr__ is not Layer.__repr__:
        return repr(layer)
    parameters, parts = signature(type(layer)).parameters, []
    for name in layer.arguments:
        value = repr(getattr(layer, name))
        default = parameters[name].default if name in parameters else Parameter.empty
        if default is Parameter.empty:
            parts.append(value)
        elif value != repr(default):
            parts.append(f"{name}={value}")
    return f"{type(layer).__name__}({', '.join(parts)})"
