"""A gater that shares examples among experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import nn
from ..arrays.checks import as_numpy
from ..backends.places import place_with
from ..nn.layers import Layer, backward, bind
from ..ops.activations import softmax
from ..runtime.dtypes import Array
from ..runtime.numbers import check_flag, check_type, one_of, shown
from ..train import evaluation


class Mixture(nn.Layer):
    """The experts and their gater as one layer, so that a `Trainer` trains all of them."""

    def __init__(self, experts: Sequence[nn.Sequential], gater: nn.Sequential, mix: str) -> None:
        super().__init__()
        self._models = (*experts, gater)
        self.mix = mix
        for i, expert in enumerate(experts):
            expert.give_layers(f"experts[{i}]")
        gater.give_layers("gater")

    def leaves(self) -> dict[str, Layer]:
        names = [*(f"experts.{i}." for i in range(len(self._models) - 1)), "gater."]
        return {
            f"{name}{prefix}": leaf
            for name, model in zip(names, self._models, strict=True)
            for prefix, leaf in model.leaves().items()
        }

    @property
    def chains(self) -> Sequence[Sequence[Layer]]:
        return [model.layers for model in self._models]

    @property
    def trainable(self) -> bool:
        return any(leaf.trainable for leaf in self.leaves().values())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for leaf in self.leaves().values():
            leaf.trainable = value

    @property
    def learns(self) -> bool:
        return any(leaf.learns for leaf in self.leaves().values())

    def bind(self, parameters: Array, gradients: Array) -> None:
        begin = 0
        for model in self._models:
            end = begin + sum(layer.parameter_count() for layer in model.layers)
            bind(model.layers, parameters[begin:end], gradients[begin:end])
            # The models go on sharing the memory of their layers, and predict by themselves.
            model.flat_parameters, model.flat_gradients = parameters[begin:end], gradients[begin:end]
            model.dtype, model._place = parameters.dtype, place_with(parameters)
            begin = end

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _output_shape(self._models, shape)

    def forward(self, x: Array, training: bool) -> Array:
        *outputs, logits = [_run(model.layers, x, training) for model in self._models]
        gates = softmax(logits, False)
        stacked = np.stack(outputs, axis=1)  # (examples, experts, outputs)
        if self.mix == "outputs":
            y: Array = np.einsum("nk,nkc->nc", gates, stacked)
            self._kept: Any = gates, stacked
        else:
            logs = softmax(stacked, True)
            joint = logs + softmax(logits, True)[:, :, None]
            largest = joint.max(axis=1)
            largest = np.where(np.isneginf(largest), 0, largest)  # a class that no expert thinks possible
            with np.errstate(divide="ignore"):
                y = largest + np.log(np.exp(joint - largest[:, None]).sum(axis=1))
            # How far each expert is responsible for each class.
            impossible = np.isneginf(y)[:, None]
            responsible = np.where(
                impossible, gates[:, :, None], np.exp(joint - np.where(impossible, 0, y[:, None]))
            )
            self._kept = gates, np.exp(logs), responsible
        return y

    def backward(self, dy: Array, need_dx: bool = True) -> Array | None:
        if self.mix == "outputs":
            gates, outputs = self._kept
            doutputs = gates[:, :, None] * dy[:, None]
            praise = np.einsum("nc,nkc->nk", dy, outputs)
            dlogits = gates * (praise - (gates * praise).sum(axis=1, keepdims=True))
        else:
            gates, shares, responsible = self._kept
            weighted = responsible * dy[:, None]
            praise = weighted.sum(axis=2)
            doutputs = weighted - shares * praise[:, :, None]
            dlogits = praise - gates * praise.sum(axis=1, keepdims=True)
        dx: Array | None = None
        for i, model in enumerate(self._models):
            own = dlogits if i == len(self._models) - 1 else doutputs[:, i]
            through = backward(model.layers, np.ascontiguousarray(own), need_dx)
            if through is not None:
                dx = through if dx is None else dx + through
        return dx if need_dx else None


def _output_shape(models: Sequence[nn.Sequential], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the experts' outputs; ValueError unless they and the gater, the last, fit."""
    *outputs, of_gater = [model.output_shape(shape) for model in models]
    if len(set(outputs)) > 1 or len(outputs[0]) != 1:
        raise ValueError(f"experts have outputs of shapes {outputs}, expected the same (outputs,) of all")
    if of_gater != (len(outputs),):
        raise ValueError(f"gater has outputs of shape {of_gater}, expected ({len(outputs)},): one an expert")
    return outputs[0]


def _run(layers: Sequence[Layer], x: Array, training: bool) -> Array:
    for layer in layers:
        x = layer.forward(x, training)
    return x


class MixtureOfExperts:
    """Networks that each learn a part of the examples, and a gater that knows which (Jacobs et al. 1991).

    Parameters
    ----------
    experts : sequence of nn.Sequential
        At least two, of the same inputs and outputs (outputs,). They keep the parameters that they have, give
        their layers to `model`, and go on predicting by themselves.
    gater : nn.Sequential
        Of the same inputs, with one output for each expert: the logits of its shares.
    mix : {"probabilities", "outputs"}
        What is mixed. "probabilities": experts' outputs are logits of classes, and those of the mixture the
        logarithms of ``sum_i g_i softmax(expert_i)``. `CrossEntropy` of these is the likelihood of the
        mixture, for which experts compete: an expert learns as much from an example as it is responsible for
        it. "outputs" takes ``sum_i g_i expert_i``, for any loss: experts learn what the others leave.

    Attributes
    ----------
    model : nn.Sequential
        The mixture, to be trained by a `Trainer` or step by step; gradients are exact, the gater's too. It is
        trained in the generic loop, on compiled layers, in the processor's memory. It has no file of its own:
        experts and gater have.

    Raises
    ------
    TypeError, ValueError
        They are no such models, are of several dtypes, belong to another model, or their shapes do not fit.

    Examples
    --------
    >>> experts = [nn.Sequential(nn.Dense(64, 32), nn.ReLU(), nn.Dense(32, 10), seed=i) for i in range(4)]
    >>> moe = po.recipes.MixtureOfExperts(experts, nn.Sequential(nn.Dense(64, 4), seed=9))
    >>> trainer = po.Trainer(moe.model, nn.CrossEntropy(), po.Adam(moe.model.parameters()))
    >>> trainer.fit(x, y, epochs=20)
    >>> moe.predict(x_test, hard=True).argmax(axis=1)
    """

    def __init__(
        self, experts: Sequence[nn.Sequential], gater: nn.Sequential, mix: str = "probabilities"
    ) -> None:
        if not isinstance(experts, Sequence) or isinstance(experts, str | bytes) or len(experts) < 2:
            raise TypeError(f"experts is {shown(experts)}, expected a sequence of two models or more")
        named = [(f"experts[{i}]", expert) for i, expert in enumerate(experts)] + [("gater", gater)]
        for i, (name, model) in enumerate(named):
            check_type(name, model, nn.Sequential, "a Sequential")
            if model.owned or any(model is other for _, other in named[:i]):
                raise ValueError(f"{name} ({model!r}) already belongs to a model")
            if model.device != "cpu" or model.dtype != named[0][1].dtype:
                raise ValueError(
                    f"{name} is of {model.dtype} on {model.device!r}, expected {named[0][1].dtype}, as the "
                    "first expert, on 'cpu'"
                )
        one_of("probabilities", "outputs").check("mix", mix)
        first = gater.layers[0]
        if isinstance(first, nn.Dense):  # which says what the inputs are
            _output_shape([*experts, gater], (first.in_features,))
        self.experts, self.gater, self.mix = tuple(experts), gater, mix
        states = [model.state_dict() for _, model in named]
        pruned = [model._kept for _, model in named]
        self.model = nn.Sequential(Mixture(experts, gater, mix), dtype=gater.dtype)  # draws all anew
        for (_, model), state in zip(named, states, strict=True):
            model.load_state_dict(state)
        if any(kept is not None for kept in pruned):
            ones = [np.ones_like(model.flat_parameters) for _, model in named]
            parts = [one if kept is None else kept for one, kept in zip(ones, pruned, strict=True)]
            self.model._prune(np.concatenate(parts))

    def gates(self, x: Any) -> Array:
        """The share of each expert in the answer to each example, an array (examples, experts).

        Parameters
        ----------
        x : array (examples, ...)
        """
        return softmax(evaluation.predict(self.gater, as_numpy("x", x)), False)

    def predict(self, x: Any, hard: bool = False) -> Array:
        """The outputs for a batch, in evaluation mode.

        Parameters
        ----------
        x : array (examples, ...)
            As `Trainer.predict`.
        hard : bool, default False
            Whether the expert with the largest share answers alone: no other computes, so that an example
            costs one expert and the gater, however many experts there are. Otherwise all are mixed.

        Returns
        -------
        array (examples, outputs)
            With "probabilities", their logarithms.
        """
        x = as_numpy("x", x)
        if not check_flag("hard", hard):
            return evaluation.predict(self.model, x)
        x = self.model.check_input("x", x)
        chosen = evaluation.predict(self.gater, x).argmax(axis=1)
        y = np.empty((len(x), *self.model.output_shape(x.shape[1:])), self.model.dtype)
        for i, expert in enumerate(self.experts):
            rows = np.flatnonzero(chosen == i)
            if len(rows):
                y[rows] = evaluation.predict(expert, x[rows])
        return softmax(y, True) if self.mix == "probabilities" else y

    def _repr_html_(self) -> str:
        return "".join(model._repr_html_() for model in (*self.experts, self.gater))

    def __repr__(self) -> str:
        return f"MixtureOfExperts({list(self.experts)!r}, {self.gater!r}, mix={self.mix!r})"
