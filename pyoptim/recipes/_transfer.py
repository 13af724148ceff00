"""Transfer of layers from one model to another."""

from __future__ import annotations

import numpy as np

from .. import nn
from ..runtime.numbers import check_count, check_flag, check_type
from ._stages import arrays_of

# Options that change nothing of what a layer computes in evaluation.
_OF_TRAINING = {"momentum", "running_var", "p", "std"}


def transfer(
    source: nn.Sequential, target: nn.Sequential, layers: int, *, freeze: bool = True
) -> nn.Sequential:
    """Copy the first layers of a trained model into another one, and freeze them there.

    Parameters
    ----------
    source : nn.Sequential
        It is left as it is.
    target : nn.Sequential
        Its first layers are the same as those of ``source``, with the same options and of the same dtype;
        what comes after them is free. It may be on another device.
    layers : int
        How many entries of ``source.layers`` are copied: a `Dense` and a `ReLU` are two. They take their
        parameters along, and the running statistics of `BatchNorm`; the random numbers of `Dropout` and
        `GaussianNoise` remain the target's own.
    freeze : bool, default True
        Whether they are frozen: see `nn.Sequential`. False leaves what is trainable as it is, to adapt all of
        the target, mostly at a lower learning rate.

    Returns
    -------
    nn.Sequential
        ``target``. In evaluation its first layers compute what those of ``source`` do, to the bit.

    Raises
    ------
    TypeError, ValueError
        The models have fewer layers, or these differ in kind, options, shapes or dtype. Nothing is changed.

    Notes
    -----
    Freezing changes what an optimizer has to update: make it, and the trainer, afterwards. First layers
    learn what many tasks share, so with few examples copies of them do better than layers that begin anew,
    the more so the nearer the tasks are (Yosinski et al. 2014, "How transferable are features in deep
    neural networks?").

    Examples
    --------
    >>> po.recipes.transfer(trained, model, layers=2)
    >>> trainer = po.Trainer(model, po.nn.CrossEntropy(), po.Adam(model.parameters()))
    """
    for name, model in (("source", source), ("target", target)):
        check_type(name, model, nn.Sequential, "a Sequential")
    if source is target:
        raise ValueError("target is source, expected another model")
    count, freeze = check_count("layers", layers), check_flag("freeze", freeze)
    for name, model in (("source", source), ("target", target)):
        if count > len(model.layers):
            raise ValueError(f"layers is {count}, but {name} has {len(model.layers)}, expected at most that")
    if source.dtype != target.dtype:
        raise ValueError(f"target has dtype {target.dtype}, expected {source.dtype} as source has")
    of_source, of_target = (
        [(prefix, leaf) for i, layer in enumerate(model.layers[:count]) for prefix, leaf in _leaves(i, layer)]
        for model in (source, target)
    )
    if [prefix for prefix, _ in of_source] != [prefix for prefix, _ in of_target]:
        raise ValueError("target has other blocks of layers than source, expected the same")
    for (prefix, theirs), (_, own) in zip(of_source, of_target, strict=True):
        _check_same(prefix.rstrip("."), theirs, own)
    kept = [prefix for prefix, leaf in of_source if not isinstance(leaf, nn.Dropout | nn.GaussianNoise)]
    into = arrays_of(target, count)
    for name, value in arrays_of(source, count).items():
        if name.rpartition(".")[0] + "." in kept:
            into[name][...] = np.array(value)
    if freeze:
        for layer in target.layers[:count]:
            layer.trainable = False
    return target


def _leaves(i: int, layer: nn.Layer) -> list[tuple[str, nn.Layer]]:
    return [(f"{i}.{name}", leaf) for name, leaf in layer.leaves().items()]


def _check_same(name: str, source: nn.Layer, target: nn.Layer) -> None:
    """Raise ValueError unless two layers compute the same once they hold the same arrays."""
    same = type(source) is type(target)
    for option in source.arguments if same else ():
        same &= option in _OF_TRAINING or getattr(source, option) == getattr(target, option)
    arrays = [
        {key: value.shape for key, value in {**layer.parameters, **layer.buffers}.items()}
        for layer in (source, target)
    ]
    if not same or arrays[0] != arrays[1]:
        raise ValueError(f"target has {target!r} as layer {name}, expected {source!r} as source has")
