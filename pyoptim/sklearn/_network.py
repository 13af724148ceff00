"""The model behind an estimator, and its weights as scikit-learn shows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..runtime.dtypes import Array
from ..train import evaluation
from ..train.data import SparseRows

_FUSED = {"identity": None, "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
_LAYERS = {"logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class Extras(NamedTuple):
    """What a hidden layer has beside weights and an activation."""

    dropout: float = 0.0
    batch_norm: bool = False
    layer_norm: bool = False
    residual: bool = False


class Network:
    """A model with one dense layer for each pair of neighbours in ``units``.

    Parameters
    ----------
    units : sequence of int
        Inputs, hidden units of each layer, outputs.
    activation : str
        Of the hidden layers, by scikit-learn's name.
    extras : Extras
    dtype : float32 or float64
    seed : int or None
        Of what is random in training.
    """

    def __init__(
        self, units: Sequence[int], activation: str, extras: Extras, dtype: Any, seed: int | None = 0
    ) -> None:
        layers: list[nn.Layer] = []
        for before, after in pairwise(units[:-1]):
            layers += _hidden(before, after, activation, extras)
        layers.append(nn.Dense(units[-2], units[-1], init="zeros"))
        self._show(nn.Sequential(*layers, seed=seed, dtype=dtype))

    @classmethod
    def of(cls, model: nn.Sequential) -> Network:
        """The network of a model that another one had."""
        network = cls.__new__(cls)
        network._show(model)
        return network

    def _show(self, model: nn.Sequential) -> None:
        """Make the views of the model's weights, (inputs, outputs), and of its biases."""
        self.model = model
        dense = [leaf for leaf in model.leaves().values() if isinstance(leaf, nn.Dense)]
        self.coefs = [layer.parameters["weight"].T for layer in dense]
        self.intercepts = [layer.parameters["bias"] for layer in dense]

    def adopt(self, coefs: list[Array], intercepts: list[Array]) -> None:
        """Take over arrays that a user has put into these lists, which get the views back."""
        for given, own in ((coefs, self.coefs), (intercepts, self.intercepts)):
            for i, (value, view) in enumerate(zip(given, own, strict=True)):
                if value is not view:
                    view[...] = value
                    given[i] = view

    def outputs(self, x: Any) -> Array:
        """What the last layer returns in evaluation mode, for checked rows, dense or sparse."""
        if not isinstance(x, SparseRows):
            return evaluation.predict(self.model, x)
        return np.concatenate([evaluation.predict(self.model, x[rows]) for rows in x.blocks()])

    def state(self) -> dict[str, Array]:
        """Copies of all parameters and statistics."""
        return self.model.state_dict()


def _hidden(before: int, after: int, activation: str, extras: Extras) -> list[nn.Layer]:
    """Return the layers of one hidden layer."""
    norms: list[nn.Layer] = []
    if extras.batch_norm:
        norms.append(nn.BatchNorm(after))
    if extras.layer_norm:
        norms.append(nn.LayerNorm(after))
    fused = None if norms else _FUSED[activation]
    layers: list[nn.Layer] = [nn.Dense(before, after, activation=fused, init="zeros"), *norms]
    if norms and activation in _LAYERS:
        layers.append(_LAYERS[activation]())
    if extras.dropout:
        layers.append(nn.Dropout(extras.dropout))
    return [nn.Residual(layers)] if extras.residual and before == after else layers
