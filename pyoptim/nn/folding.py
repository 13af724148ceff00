"""Batch normalisation as part of the dense layer before it, for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.dtypes import Array
from .checkpoint import describe, layer_from

if TYPE_CHECKING:
    from .sequential import Sequential

Fields = dict[str, Any]  # a layer as `describe` describes it


def folded(kind: type[Sequential], model: Sequential) -> Sequential:
    """See `Sequential.folded`."""
    arrays: dict[str, Array] = {}
    layers = _fold(describe("layers", model.layers), model.state_dict(), "", "", arrays)
    made = kind(*map(layer_from, layers), dtype=model.dtype)
    made.load_state_dict(arrays)
    return made.eval().to(model.device)


def _fold(
    layers: list[Fields], state: dict[str, Array], old: str, new: str, arrays: dict[str, Array]
) -> list[Fields]:
    """Return the layers that are left, and add their arrays, named by their new places.

    ``old`` and ``new`` are the prefixes of the layers' names in the model that there is and in the new one.
    """
    kept: list[Fields] = []
    for i, fields in enumerate(layers):
        prefix = f"{old}{i}."
        own = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
        if i > 0 and _folds(layers[i - 1], fields):
            kept[-1] = kept[-1] | {"bias": True, "activation": fields["activation"]}
            _fold_into(arrays, f"{new}{len(kept) - 1}.", own, fields["eps"])
            continue
        place = f"{new}{len(kept)}."
        if "block" in fields:
            inner = (f"{prefix}block.", f"{place}block.", arrays)
            fields = fields | {"block": _fold(fields["block"], state, *inner)}
        else:
            arrays |= {place + name: a for name, a in own.items()}
        kept.append(fields)
    return kept


def _folds(before: Fields, fields: Fields) -> bool:
    """Return whether a layer is a normalisation by constants of what a dense layer before it multiplies."""
    if before["type"] != "Dense" or fields["type"] != "BatchNorm":
        return False
    return before["activation"] is None and bool(fields["track_running_stats"])


def _fold_into(arrays: dict[str, Array], place: str, norm: dict[str, Array], eps: float) -> None:
    """Replace weight and bias of a dense layer by those of this normalisation of its output."""
    weight = arrays[place + "weight"]
    wide = {name: a.astype(np.float64) for name, a in norm.items()}
    bias = arrays.get(place + "bias", np.zeros(len(weight))).astype(np.float64)
    scale = wide.get("weight", 1.0) / np.sqrt(wide["running_var"] + eps)
    arrays[place + "weight"] = (weight * scale[:, None]).astype(weight.dtype)
    shifted = (bias - wide["running_mean"]) * scale + wide.get("bias", 0.0)
    arrays[place + "bias"] = shifted.astype(weight.dtype)
