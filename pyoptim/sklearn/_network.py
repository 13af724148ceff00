"""The model behind an estimator, and its weights as scikit-learn shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from ..nn.layers import bind
from ..runtime.dtypes import Array
from ..train import evaluation
from ..train.data import SparseRows

_FUSED = {"identity": None, "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
_ROWS = 4096  # that are sparse and predicted at once
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

    Attributes
    ----------
    model : nn.Sequential
    coefs, intercepts : list of array
        Views of the model's weights, (inputs, outputs), and its biases.
    asked : object
        What parameters the network was last compared with, for the owner to compare the next ones with.
    """

    asked: Any = None

    def __init__(
        self, units: Sequence[int], activation: str, extras: Extras, dtype: Any, seed: int | None = 0
    ) -> None:
        self._show(nn.Sequential(*_layers(units, activation, extras), seed=seed, dtype=dtype))

    @classmethod
    def of(cls, model: nn.Sequential) -> Network:
        """The network of a model that another one had."""
        network = cls.__new__(cls)
        network._show(model)
        return network

    def _show(self, model: nn.Sequential) -> None:
        """Make the views of the model's weights, (inputs, outputs), and of its biases."""
        self.model = model
        dense = list(self._all(nn.Dense))
        self.coefs = [layer.parameters["weight"].T for layer in dense]
        self.intercepts = [layer.parameters["bias"] for layer in dense]

    def _all(self, kind: type[Any]) -> Iterator[Any]:
        """The layers of a kind, in the order in which data pass through them."""
        return (leaf for leaf in self.model.leaves().values() if isinstance(leaf, kind))

    def _has(self, kind: type[Any]) -> bool:
        return any(True for _ in self._all(kind))

    @property
    def units(self) -> list[int]:
        """Inputs, hidden units of each layer, outputs."""
        return [self.coefs[0].shape[0], *(bias.size for bias in self.intercepts)]

    @property
    def activation(self) -> str | None:
        """scikit-learn's name of the hidden layers' activation; None where there are none."""
        first = next(self._all(nn.Dense))
        if len(self.coefs) == 1:
            return None
        own = next((name for name, kind in _LAYERS.items() if self._has(kind)), None)
        return own or next(name for name, fused in _FUSED.items() if fused == first.activation)

    @property
    def extras(self) -> Extras:
        """What the hidden layers have; ``residual`` only where a layer has as many outputs as inputs."""
        dropout = next((layer.p for layer in self._all(nn.Dropout)), 0.0)
        blocks = any(isinstance(layer, nn.Residual) for layer in self.model.layers)
        return Extras(dropout, self._has(nn.BatchNorm), self._has(nn.LayerNorm), blocks)

    def rearranged(self, activation: str, extras: Extras, seed: int) -> Network:
        """This network, or one around the same arrays where its layers are to be others.

        What is trained must stay: ``extras`` has this network's normalisations.
        """
        layers = _layers(self.units, activation, extras)
        if list(map(repr, layers)) == list(map(repr, self.model.layers)):
            return self
        made = Network.of(nn.Sequential(*layers, seed=seed, dtype=self.model.dtype))
        model, old = made.model, self.model
        model.flat_parameters, model.flat_gradients = old.flat_parameters, old.flat_gradients
        bind(model.layers, model.flat_parameters, model.flat_gradients)
        for kind in (nn.BatchNorm, nn.Dropout):  # whose statistics and random numbers go on
            for mine, other in zip(made._all(kind), self._all(kind), strict=False):
                mine.buffers = other.buffers
        made._show(model)
        return made

    def adopted(self, coefs: Sequence[Array], intercepts: Sequence[Array]) -> tuple[Any, Any]:
        """Return what the estimator's attributes then hold: the views, with the values of a user's arrays.

        Raises
        ------
        ValueError
            There are more or fewer arrays, or they have other shapes. Nothing is changed.
        """
        attributes = (("coefs_", coefs, self.coefs), ("intercepts_", intercepts, self.intercepts))
        if all(type(given) is list and [*map(id, given)] == [*map(id, own)] for _, given, own in attributes):
            return coefs, intercepts
        for name, given, own in attributes:
            if len(given) != len(own):
                raise ValueError(f"{name} has {len(given)} arrays, expected {len(own)}: one for each layer")
            for i, (value, view) in enumerate(zip(given, own, strict=True)):
                if np.shape(value) != view.shape:
                    raise ValueError(
                        f"{name}[{i}] has shape {np.shape(value)}, expected the network's {view.shape}"
                    )
        for _, given, own in attributes:
            for value, view in zip(given, own, strict=True):
                if value is not view:
                    view[...] = value
        return list(self.coefs), list(self.intercepts)

    def outputs(self, x: Any) -> Array:
        """What the last layer returns in evaluation mode, for checked rows, dense or sparse."""
        if not isinstance(x, SparseRows):
            return evaluation.predict(self.model, x)
        if type(self.model.layers[0]) is nn.Dense and x.is_sparse:
            weight = np.ascontiguousarray(self.coefs[0])
            parts = (x.times(slice(i, i + _ROWS), weight) for i in range(0, len(x), _ROWS))
            return np.concatenate([self._outputs_after(product) for product in parts])
        return np.concatenate([evaluation.predict(self.model, x[rows]) for rows in x.blocks()])

    def _outputs_after(self, product: Array) -> Array:
        """What the last layer returns where the first, which is `Dense`, has only its products yet."""
        self.model.eval()
        product += self.intercepts[0]
        others = list(self.model.layers[1:])
        if (activation := self.activation) in _LAYERS and not self._has(_LAYERS[activation]):
            others.insert(0, _LAYERS[activation]())  # of the first layer
        for layer in others:
            product = layer.forward(product, False)
        return product

    def state(self) -> dict[str, Array]:
        """Copies of all parameters and statistics."""
        return self.model.state_dict()


def _layers(units: Sequence[int], activation: str, extras: Extras) -> list[nn.Layer]:
    """Return the layers of a network."""
    layers: list[nn.Layer] = []
    for before, after in pairwise(units[:-1]):
        layers += _hidden(before, after, activation, extras)
    return [*layers, nn.Dense(units[-2], units[-1], init="zeros")]


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
