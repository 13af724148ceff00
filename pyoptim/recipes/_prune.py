"""Fewer weights, and fewer units."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from .. import nn
from ..nn.checkpoint import describe, layer_from
from ..nn.layers import Layer
from ..runtime.dtypes import Array
from ..runtime.numbers import SHARE, check_flag, check_type


def prune(
    model: nn.Sequential, share: float, per_layer: bool = False, *, units: bool = False
) -> dict[str, Array]:
    """Set the smallest weights of the `Dense` layers to 0, and keep them there in training.

    The weights that are left may be trained further, which wins back most of what was lost (Han, Pool, Tran
    & Dally 2015): those that were pruned are exactly 0 after every step of every `Trainer` of this model,
    whatever the optimizer, in compiled code too. Several rounds of growing shares, each followed by some
    epochs, lose less than one.

    Parameters
    ----------
    model : nn.Sequential
        Changed in place. Biases, normalisations and frozen layers are left as they are.
    share : float in [0, 1]
        Of the weights that are to be 0, those that are already among them, rounded to whole weights. Where
        magnitudes are equal, the first are pruned. 0 prunes none, and lets what was pruned train again.
    per_layer : bool, default False
        Whether each layer loses that share. Otherwise the smallest of all layers go, so that wide layers lose
        more; a layer may lose all.
    units : bool, default False
        Prune whole units instead: of the hidden ones, those whose rows of weights have the smallest root mean
        square, with their biases. `shrink` then makes a smaller model of the rest. The units of blocks
        (`Residual`) and of the last `Dense` stay.

    Returns
    -------
    dict of str to array of bool
        By the name of each pruned layer's weight, which elements are kept.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it should be, or there is nothing that can be pruned. The model is unchanged.

    Notes
    -----
    The compiled engine runs such a training batch by batch, for some 10 us more a batch. What was pruned does
    not count as frozen: its gradients enter the norm of ``max_grad_norm``. Files keep the zeros, but not that
    they are kept: prune a loaded model again, by the same share. Steps that no `Trainer` takes, and
    ``load_state_dict``, write what they write.

    Examples
    --------
    >>> po.recipes.prune(model, 0.9)
    >>> trainer.fit(x, y, epochs=5)
    """
    check_type("model", model, nn.Sequential, "a Sequential")
    share = SHARE.number("share", share)
    per_layer, units = check_flag("per_layer", per_layer), check_flag("units", units)
    if model.owned:
        raise ValueError("model belongs to another model, which is trained as one: expected that one")
    scores = {name: _scores(layer, units) for name, layer in prunable("model", model, units).items()}
    kept = _largest(scores, share, per_layer)
    model._prune(_flat(model, kept, units))
    shapes = {name: model.leaves()[name].parameters["weight"].shape for name in kept}
    return {f"{name}weight": np.broadcast_to(kept[name], shapes[name]).copy() for name in kept}


def prunable(of: str, model: nn.Sequential, units: bool) -> dict[str, Layer]:
    """Return the layers whose weights, or whose units, may be pruned; ValueError if there are none."""
    found: dict[str, Layer] = {
        name: layer for name, layer in model.leaves().items() if isinstance(layer, nn.Dense)
    }
    if units:
        outer = [name for name in found if name.count(".") == 1]  # of no block, and of no expert
        found = {name: found[name] for name in outer if name != outer[-1]}
    found = {name: layer for name, layer in found.items() if layer.trainable}
    if not found:
        what = "hidden Dense layer" if units else "Dense layer"
        raise ValueError(f"{of} has no {what} that is not frozen, expected one to prune")
    return found


def _scores(layer: Layer, units: bool) -> Array:
    """Return what of a layer is kept if it is large: a matrix of its shape, or a column of its units."""
    weight = np.abs(np.array(layer.parameters["weight"], np.float64))
    return np.sqrt(np.mean(weight**2, axis=1, keepdims=True)) if units else weight


def _largest(scores: dict[str, Array], share: float, per_layer: bool) -> dict[str, Array]:
    """Return which elements are kept where the share that has the lowest scores is not."""
    if per_layer:
        return {
            name: _above(of_layer.ravel(), share).reshape(of_layer.shape) for name, of_layer in scores.items()
        }
    every = _above(np.concatenate([of_layer.ravel() for of_layer in scores.values()]), share)
    kept, begin = {}, 0
    for name, of_layer in scores.items():
        kept[name] = every[begin : begin + of_layer.size].reshape(of_layer.shape)
        begin += of_layer.size
    return kept


def _above(scores: Array, share: float) -> Array:
    kept = np.ones(scores.size, np.bool_)
    kept[np.argsort(scores, kind="stable")[: round(share * scores.size)]] = False
    return kept


def _flat(model: nn.Sequential, kept: dict[str, Array], units: bool) -> Array:
    """Return 1 for each of the model's parameters that is kept, else 0: those of frozen layers as before."""
    before = None if model._kept is None else np.array(model._kept)
    parts, begin = [], 0
    for prefix, layer in model.leaves().items():
        for name, p in layer.parameters.items():
            part = np.ones(p.shape, model.dtype)
            if prefix in kept and name == "weight":
                part[...] = kept[prefix]
            elif prefix in kept and units:
                part[...] = kept[prefix][:, 0]
            elif prefix not in kept and before is not None:
                part = before[begin : begin + p.size].reshape(p.shape)
            parts.append(part.reshape(-1))
            begin += p.size
    return np.concatenate(parts)


def shrink(model: nn.Sequential) -> nn.Sequential:
    """A model without the units of a pruned one that do nothing: it is smaller and computes the same.

    A hidden unit of a `Dense` layer goes where all its weights are 0, so that it is constant (what it adds to
    the next `Dense` layer goes into that one's bias), or where all weights are 0 by which the next one reads
    it. Removing some may leave others without a reader or a source: these go too.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is.

    Returns
    -------
    nn.Sequential
        In evaluation mode, on the model's device. What was pruned is 0 in it; `prune` it again to keep that
        in training.

    Raises
    ------
    TypeError, ValueError
        It is no model, or a layer is not one of pyoptim.nn's.

    Notes
    -----
    Units are removed between two `Dense` layers of a chain, between which are only activations of single
    elements, `BatchNorm`, `Dropout` and noise. Outputs differ from the model's by rounding.

    Examples
    --------
    >>> po.recipes.prune(model, 0.5, units=True)
    >>> trainer.fit(x, y, epochs=5)
    >>> small = po.recipes.shrink(model)
    """
    check_type("model", model, nn.Sequential, "a Sequential")
    layers, state = describe("layers", model.layers), model.state_dict()
    while _remove_units(layers, state):
        pass
    made = nn.Sequential(*map(layer_from, layers), dtype=model.dtype)
    made.load_state_dict(state)
    return made.eval().to(model.device)


def _remove_units(layers: list[dict[str, Any]], state: dict[str, Array]) -> bool:
    """Remove dead units between two layers, the first that have some; returns whether there were any."""
    dense = [i for i, fields in enumerate(layers) if fields["type"] == "Dense"]
    for first, second in pairwise(dense):
        between = layers[first + 1 : second]
        if not all(_is_per_unit(fields) for fields in between):
            continue
        constant: Array = (state[f"{first}.weight"] == 0).all(axis=1)
        dead: Array = constant | (state[f"{second}.weight"] == 0).all(axis=0)
        if dead.all():  # a layer has at least one
            dead = np.arange(len(dead)) > 0
        if not dead.any():
            continue
        moved = _constants(layers, state, first, second) * (dead & constant)
        _add_to_bias(layers[second], state, second, moved)
        for i in range(first, second):
            for name, array in state.items():
                if name.startswith(f"{i}.") and array.shape[:1] == dead.shape:
                    state[name] = array[~dead]
            for size in ("out_features", "features"):
                if size in layers[i]:
                    layers[i][size] = int((~dead).sum())
        state[f"{second}.weight"] = np.ascontiguousarray(state[f"{second}.weight"][:, ~dead])
        layers[second]["in_features"] = int((~dead).sum())
        return True
    return False


def _is_per_unit(fields: dict[str, Any]) -> bool:
    """Whether a layer computes each unit by itself, in evaluation."""
    if fields["type"] == "BatchNorm":
        return bool(fields["track_running_stats"])
    kind = Layer.kinds[fields["type"]]
    return issubclass(kind, nn.activations.ELEMENTWISE) or kind in (nn.Dropout, nn.GaussianNoise)


def _constants(layers: list[dict[str, Any]], state: dict[str, Array], first: int, second: int) -> Array:
    """Return what the units of a layer are, as the next layer sees them, for weights that are all 0."""
    chain = nn.Sequential(*map(layer_from, layers[first:second]), dtype=state[f"{first}.weight"].dtype)
    chain.load_state_dict(
        {
            f"{int(i) - first}.{rest}": array
            for name, array in state.items()
            for i, _, rest in [name.partition(".")]
            if first <= int(i) < second
        }
    )
    result: Array = chain.eval()(np.zeros((1, layers[first]["in_features"]), chain.dtype))[0]
    return result


def _add_to_bias(fields: dict[str, Any], state: dict[str, Array], at: int, inputs: Array) -> None:
    """Add to a layer's bias, which it gets if it has none, what constant inputs contribute."""
    weight = state[f"{at}.weight"]
    added = weight.astype(np.float64) @ inputs
    if not added.any():
        return
    bias = state.get(f"{at}.bias", np.zeros(len(weight), weight.dtype))
    state[f"{at}.bias"] = (bias + added).astype(weight.dtype)
    fields["bias"] = True
