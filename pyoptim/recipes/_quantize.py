"""Models in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import nn
from ..nn import summary
from ..nn.checkpoint import describe, layer_from
from ..nn.layers import Layer
from ..ops import softmax_forward
from ..runtime import dispatch
from ..runtime.dtypes import Array
from ..runtime.files import NONSENSE, read, write
from ..runtime.numbers import check_path, check_type, is_number

_FORMAT = "pyoptim-quantized-1"
_ROWS = 1024  # examples that pass through the model at once
_PADDED_TO = 64  # inputs: csrc/cpu/kernels.hpp has the same number
_MOST_INPUTS = 2**31 // (255 * 128)  # of a layer, so that no sum leaves int32
_LEAST_SCALE = float(np.finfo(np.float32).tiny)  # of which 1/scale is a number

Fields = dict[str, Any]  # a layer as `describe` describes it
_NUMBERS = nn.Sequential(nn.Identity())  # checks inputs of any shape
Scales = dict[
    str, tuple[float, int]
]  # by the prefix of a dense layer: the scale of its inputs and their zero


class QuantizedModel:
    """A model whose `Dense` layers multiply numbers of 8 bits; `quantize` and `load` make it.

    Its outputs are those of any backend and instruction set to the bit, but for activations that are no
    ReLU, where these are. It only predicts, in the processor's memory, and computes in float32 between the
    products.

    Attributes
    ----------
    nbytes : int
        Of its arrays: weights of one byte, biases and scales of four. A file has some hundred bytes more.
    """

    _layers: list[Fields]
    _tensors: dict[str, Array]
    _scales: Scales
    _steps: list[Any]
    _shapes: list[Layer]

    def __init__(self) -> None:
        raise TypeError("QuantizedModel is made by quantize(model, calibration) or QuantizedModel.load(path)")

    @classmethod
    def _of(cls, layers: list[Fields], tensors: dict[str, Array], scales: Scales) -> QuantizedModel:
        made = object.__new__(cls)
        made._layers, made._tensors, made._scales = layers, tensors, scales
        made._steps = list(_steps(layers, tensors, scales, ""))
        made._shapes = [layer_from(fields) for fields in layers]  # without memory: they know sizes alone
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._tensors.values()) + 8 * len(self._scales)

    def predict(self, x: Any) -> Array:
        """The outputs for a batch: for classification logits, not probabilities.

        Parameters
        ----------
        x : array (examples, ...)
            As `Trainer.predict`; of the processor's memory.

        Returns
        -------
        float32 array (examples, *outputs)

        Raises
        ------
        TypeError, ValueError
            Not numbers, not finite, or not of the shape that the first layers take.
        """
        x = self._checked(x)
        blocks = [_run(self._steps, x[i : i + _ROWS]) for i in range(0, max(len(x), 1), _ROWS)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    __call__ = predict

    def predict_proba(self, x: Any) -> Array:
        """The softmax of `predict`: each class's probability, for a model trained by `CrossEntropy`.

        Raises
        ------
        ValueError
            The model has one output, of which the softmax is always 1: its probability is the sigmoid.
        """
        outputs = self.predict(x)
        if outputs.shape[-1] == 1:
            raise ValueError(
                "the model has one output, expected one for each class: of a model trained by "
                "BinaryCrossEntropy the probability is the sigmoid of predict"
            )
        return softmax_forward(outputs)

    def _checked(self, x: Any) -> Array:
        converted = _NUMBERS.check_input("x", x)
        shape = converted.shape[1:]
        try:
            for layer in self._shapes:
                shape = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"x has shape {converted.shape}: {error}") from None
        return converted

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, atomically, with a checksum, as `Sequential.save`."""
        scales = {name: list(pair) for name, pair in self._scales.items()}
        description = {"format": _FORMAT, "layers": self._layers, "scales": scales}
        write(check_path("path", path), description, self._tensors)

    @staticmethod
    def load(path: str | Path) -> QuantizedModel:
        """The model that `save` wrote.

        Raises
        ------
        ValueError
            The file is truncated or damaged, or is no quantized model of ours.
        """
        description, tensors = read(check_path("path", path), _FORMAT)
        try:
            scales = {name: (float(s), int(zero)) for name, (s, zero) in description["scales"].items()}
            _check_file(description["layers"], tensors, scales)
            return QuantizedModel._of(description["layers"], tensors, scales)
        except NONSENSE as error:
            raise ValueError(f"{path} does not describe a quantized model: {error}") from error

    def _repr_html_(self) -> str:
        return summary.as_html(self._shapes, f"QuantizedModel, {self.nbytes:,} bytes")

    def __repr__(self) -> str:
        return f"QuantizedModel({', '.join(map(repr, self._shapes))})"


def quantize(model: nn.Sequential, calibration: Any) -> QuantizedModel:
    """A model for predictions whose weights and activations have 8 bits, and whose sums are integers.

    Every `Dense` layer of the copy, in blocks (`Residual`) too, has weights of int8 (symmetric, one scale for
    each output) and brings its inputs to a byte by a scale and a zero of its own; products are summed in
    int32, without rounding (Jacob et al. 2018). A `BatchNorm` after a `Dense` layer becomes part of it first,
    as in `Sequential.folded`. All other layers compute in float32.

    Parameters
    ----------
    model : nn.Sequential
        Left as it is; in either dtype, and on any device.
    calibration : array (examples, ...)
        Inputs as the model will see them, some hundreds; the smallest and largest input of each layer among
        them set its scale. Later inputs beyond these are cut off there.

    Returns
    -------
    QuantizedModel

    Raises
    ------
    TypeError, ValueError
        The calibration data do not suit the model or are too few (none); a layer is not one of pyoptim.nn's;
        a `Dense` layer has more than 65,793 inputs, whose sum might not fit into int32; the model's
        parameters, or values in it, are not finite.

    Notes
    -----
    With the compiled kernels on a processor with AVX-512 VNNI, 64 products are one instruction: predictions
    take a third to two thirds of the time from some 100,000 weights on. Smaller networks are not faster, and
    other processors gain where single examples wait for the weights.

    Examples
    --------
    >>> small = po.recipes.quantize(model, x_train[:500])
    >>> (small.predict(x_test).argmax(axis=1) == y_test).mean()
    >>> small.save("small.safetensors")
    """
    check_type("model", model, nn.Sequential, "a Sequential")
    x = np.array(model.check_input("calibration", calibration))
    if not len(x):
        raise ValueError(f"calibration has shape {x.shape}, expected at least one example")
    plain = model.folded().to("cpu")
    ranges: dict[str, tuple[float, float]] = {}
    for i in range(0, len(x), _ROWS):
        if not np.isfinite(_watch(plain.layers, x[i : i + _ROWS], "", ranges)).all():
            raise ValueError("calibration makes outputs that are not finite, expected others")
    layers, state, scales = describe("layers", plain.layers), plain.state_dict(), {}
    tensors = {name: _narrowed(name, array) for name, array in state.items()}
    for prefix, (low, high) in ranges.items():
        scales[prefix] = _scale_of(prefix, low, high)
        weight, scale = _quantized(prefix, state[f"{prefix}weight"])
        tensors[f"{prefix}weight"], tensors[f"{prefix}scale"] = weight, scale
        tensors.setdefault(f"{prefix}bias", np.zeros(len(weight), np.float32))
    return QuantizedModel._of(layers, tensors, scales)


def _narrowed(name: str, array: Array) -> Array:
    """Return an array of the model in float32."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        narrow: Array = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise ValueError(f"model's {name} holds what float32 does not, expected finite values in its range")
    return narrow


def _watch(layers: Iterable[Layer], x: Array, prefix: str, ranges: dict[str, tuple[float, float]]) -> Array:
    """Pass a batch through layers, and widen the range of the inputs of each that is dense."""
    for i, layer in enumerate(layers):
        place = f"{prefix}{i}."
        if type(layer) is nn.Residual:
            x = x + _watch(layer.block, x, f"{place}block.", ranges)
            continue
        if type(layer) is nn.Dense:
            low, high = ranges.get(place, (0.0, 0.0))  # 0 is a number that bytes stand for exactly
            ranges[place] = float(np.minimum(low, x.min())), float(np.maximum(high, x.max()))  # or NaN
        x = layer.forward(x, False)
    return x


def _scale_of(prefix: str, low: float, high: float) -> tuple[float, int]:
    """Return the scale of a layer's inputs, and the byte that stands for 0."""
    with np.errstate(over="ignore"):
        scale = float(np.float32((high - low) / 255))
    if not np.isfinite(scale):
        raise ValueError(
            f"calibration makes inputs of layer {prefix[:-1]} from {low:g} to {high:g}, expected finite ones"
        )
    if scale < _LEAST_SCALE:
        return 1.0, 0  # all bytes are that of 0
    return scale, round(-low / scale)


def _quantized(prefix: str, weight: Array) -> tuple[Array, Array]:
    """Return a weight as int8, and the scale of each of its rows."""
    if weight.shape[1] > _MOST_INPUTS:
        raise ValueError(
            f"model's layer {prefix[:-1]} has {weight.shape[1]} inputs, expected {_MOST_INPUTS:,} or less"
        )
    largest = np.abs(weight).max(axis=1).astype(np.float64)
    scale = np.where(largest / 127 >= _LEAST_SCALE, largest / 127, 1).astype(np.float32)
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8), scale


# ---- running it --------------------------------------------------------------------------------------


class _Dense:
    """A dense layer in 8 bits, as the kernels take it."""

    def __init__(self, fields: Fields, prefix: str, tensors: dict[str, Array], scales: Scales) -> None:
        scale, self._zero = scales[prefix]
        weight = tensors[f"{prefix}weight"]
        self._weight = np.pad(weight, ((0, 0), (0, -weight.shape[1] % _PADDED_TO)))
        self._inverse = float(np.float32(1 / scale))
        self._offset = (weight.sum(axis=1, dtype=np.int64) * self._zero).astype(np.int32)
        self._scale = (tensors[f"{prefix}scale"] * np.float64(scale)).astype(np.float32)
        self._bias = tensors[f"{prefix}bias"]
        self.activation: str | None = fields["activation"]

    def forward(self, x: Array) -> Array:
        y = np.empty((len(x), len(self._weight)), np.float32)
        relu, backend = self.activation == "relu", dispatch.of(x)
        backend.quantized_dense(
            x, self._inverse, self._zero, self._weight, self._offset, self._scale, self._bias, relu, y
        )
        if self.activation is not None and not relu:
            backend.activation_forward(self.activation, y, y)
        return y


class _Other:
    """A layer that computes in float32."""

    def __init__(self, fields: Fields, prefix: str, tensors: dict[str, Array]) -> None:
        self._model = nn.Sequential(layer_from(fields))
        self._model.load_state_dict({name: tensors[prefix + name[2:]] for name in self._model.state_dict()})

    def forward(self, x: Array) -> Array:
        return self._model.layers[0].forward(x, False)


class _Block:
    """A shortcut around steps."""

    def __init__(self, steps: list[Any]) -> None:
        self._steps = steps

    def forward(self, x: Array) -> Array:
        result: Array = x + _run(self._steps, x)
        return result


def _steps(layers: list[Fields], tensors: dict[str, Array], scales: Scales, prefix: str) -> Iterator[Any]:
    previous = None
    for i, fields in enumerate(layers):
        place = f"{prefix}{i}."
        kind = fields["type"]
        if kind == "ReLU" and isinstance(previous, _Dense) and previous.activation is None:
            previous.activation = "relu"
            continue
        if kind in ("Dropout", "GaussianNoise"):  # which do nothing here
            continue
        if kind == "Residual":
            made: Any = _Block(list(_steps(fields["block"], tensors, scales, f"{place}block.")))
        else:
            made = (
                _Dense(fields, place, tensors, scales) if kind == "Dense" else _Other(fields, place, tensors)
            )
        previous = made
        yield made


def _run(steps: Iterable[Any], x: Array) -> Array:
    for step in steps:
        x = step.forward(x)
    return x


def _check_file(layers: list[Fields], tensors: dict[str, Array], scales: Scales) -> None:
    """Refuse layers that do not fit their arrays, before any memory is taken for them."""
    leaves = {
        f"{i}.{name}": leaf
        for i, made in enumerate(map(layer_from, layers))
        for name, leaf in made.leaves().items()
    }
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    for prefix, layer in leaves.items():
        if isinstance(layer, nn.Dense):
            out, inputs = layer.out_features, layer.in_features
            scale, zero = scales[prefix]
            fits = is_number(scale) and _LEAST_SCALE <= scale <= np.finfo(np.float32).max
            if inputs > _MOST_INPUTS or not fits or not 0 <= zero <= 255:
                raise ValueError(f"layer {prefix[:-1]} has {inputs} inputs, scale {scale} and zero {zero}")
            wanted[f"{prefix}weight"] = (out, inputs), "int8"
            wanted[f"{prefix}scale"] = wanted[f"{prefix}bias"] = (out,), "float32"
            continue
        shapes = dict(layer.parameter_shapes())
        if getattr(layer, "track_running_stats", False):  # whose first values may take much memory
            shapes |= {"running_mean": (layer.features,), "running_var": (layer.features,)}  # type: ignore[attr-defined]
        wanted |= {prefix + name: (shape, "float32") for name, shape in shapes.items()}
    for name, (shape, dtype) in wanted.items():
        found = tensors.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            came = "missing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise ValueError(f"tensor {name!r} is {came}, expected {dtype} of shape {shape}")
        if dtype == "float32" and not np.isfinite(found).all():
            raise ValueError(f"tensor {name!r} holds NaN or infinity, expected finite numbers")
