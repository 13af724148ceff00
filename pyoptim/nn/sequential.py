"""A chain of layers whose parameters lie in one buffer and whose gradients lie in another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from ..arrays import gpu, gpu_data, gpu_views, sharing
from ..arrays.checks import as_numpy, check_finite, check_like
from ..arrays.memory import aligned_zeros
from ..backends.places import HOST, Place, place_named
from ..runtime import dispatch
from ..runtime.dtypes import FLOATS, Array
from ..runtime.numbers import check_flag, check_path, check_seed, check_text, check_type, is_count, shown
from . import summary
from .layers import Layer, backward, bind, check_layers, walk
from .prediction import Predictor, outputs


class Sequential:
    """A chain of layers.

    Parameters
    ----------
    *layers : Layer
        Each belongs to one model only.
    seed : int, optional
        Of the first values of the parameters; without, they differ from run to run.
    dtype : float32 or float64, default float32

    Attributes
    ----------
    flat_parameters, flat_gradients : array
        All parameters, and all gradients, as one vector each; every layer's are views of them. Those of
        frozen layers too.
    device : str
        Where they are: "cpu", or e.g. "cuda:0" after `to`.

    Notes
    -----
    ``model.layers[i].trainable = False`` freezes a layer, as Keras's does (and ``requires_grad`` in
    PyTorch): its parameters are not among `parameters`, so that an optimizer made on them leaves them as
    they are, bit for bit, decay and momentum included; their gradients are not computed, and what is in
    `gradients`' memory for them means nothing. A frozen `BatchNorm` normalises by its running statistics
    and does not change them. `Dropout` and noise have no parameters, and go on in training. ``True`` thaws
    it.

    An optimizer is made for the layers that are trainable then. After a change, make a new one on
    ``model.parameters()``: a `Trainer` refuses the old one. `state_dict` holds all arrays, but not what is
    frozen; `save` and `load` keep that too.

    Examples
    --------
    >>> model = Sequential(Dense(64, 128), ReLU(), Dense(128, 10), seed=0)
    >>> logits = model(x)

    Transfer: the first layer of another model, and new ones on top of it.

    >>> model.load_state_dict({**model.state_dict(), "0.weight": weight, "0.bias": bias})
    >>> model.layers[0].trainable = False
    >>> optimizer = Adam(model.parameters())
    """

    owned = False  # whether a `Residual` has taken its layers
    _place: Place = HOST
    _given: Any = None  # the last forward's input, if that is somebody's array in a GPU's memory
    _unkept: Any = None  # the last forward's input, if the layers have not kept what backward reads
    _kept: Any = None  # beside flat_parameters: 0 for each that was pruned, else 1; None if none ever was

    def __init__(self, *layers: Layer, seed: int | None = None, dtype: DTypeLike = np.float32) -> None:
        check_layers("layers", layers)
        rng = check_seed("seed", seed)
        self.dtype = float_dtype(dtype)
        self.layers = layers
        self._predictors: list[Predictor] = []  # those that no thread is using
        self.training = True
        self._output_shape: tuple[int, ...] | None = None  # of the last forward

        size = sum(layer.parameter_count() for layer in layers)
        self.flat_parameters = sharing.of_model(aligned_zeros(size, self.dtype))
        self.flat_gradients = aligned_zeros(size, self.dtype)
        bind(layers, self.flat_parameters, self.flat_gradients)
        for layer in self.leaves().values():
            for name, value in layer.buffer_values().items():
                floating = value.dtype.kind == "f"
                layer.buffers[name] = value.astype(self.dtype) if floating else value.copy()
            layer.initialize(rng)
        for layer in layers:
            layer.owned = True

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_predictors"]
        (state["flat_parameters"],) = sharing.closed([self.flat_parameters])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy or pickle holds every array separately, so the layers' arrays are made views again.
        self.__dict__.update(state)
        self._predictors = []
        self.__dict__.pop("_queue", None)  # of version 0.1
        ((parameters,), _) = sharing.opened([self.flat_parameters])
        self.flat_parameters = sharing.of_model(parameters)
        bind(self.layers, self.flat_parameters, self.flat_gradients)

    @property
    def device(self) -> str:
        """Where the model is."""
        return self._place.name

    def to(self, device: str) -> Sequential:
        """Move the model to a GPU's memory, or back; returns the model.

        Parameters
        ----------
        device : str
            "cpu", "cuda" (the first GPU), or "cuda:1" and so on.

        Raises
        ------
        ValueError
            There is no such device, or the model's layers belong to another one.
        TypeError
            A layer is not one of pyoptim.nn's, which alone know GPUs.
        BackendError
            There is no GPU that can be used; the message says why.

        Notes
        -----
        The arrays get new memory, unless the model is on that device already: make optimizers and trainers
        afterwards. On a GPU parameters, gradients and running statistics are arrays that CuPy and PyTorch
        take without a copy (`cupy.asarray`, `torch.as_tensor`). Models, optimizers and trainings that were
        saved on a GPU go on on the processor, and the other way round.
        """
        place = place_named(check_text("device", device, "'cpu', 'cuda', or e.g. 'cuda:1'"))
        if self.owned:
            raise ValueError(f"{self!r} belongs to another model, expected that one to be moved")
        if self.device == place.name:
            return self
        if not place.runs_python:
            _check_layers(self.layers)
        self.flat_parameters = place.moved(self.flat_parameters)
        if place.queue is None:
            self.flat_parameters = sharing.of_model(self.flat_parameters)
        self.flat_gradients = place.moved(self.flat_gradients)
        bind(self.layers, self.flat_parameters, self.flat_gradients)
        if self._kept is not None:
            self._kept = place.moved(self._kept)
        for layer in self.leaves().values():
            for name, value in layer.buffers.items():
                if value.dtype.kind == "f":  # counters stay in the processor's memory
                    layer.buffers[name] = place.moved(value)
            # What the last forward kept for backward is in the memory that the model has left.
            for name, value in list(vars(layer).items()):
                if name.startswith("_") and isinstance(value, np.ndarray | gpu.DeviceArray | tuple):
                    delattr(layer, name)
        self._place, self._output_shape, self._given, self._unkept = place, None, None, None
        self._predictors.clear()
        return self

    def leaves(self) -> dict[str, Layer]:
        """The layers that hold arrays, those in blocks too, by the prefix of their arrays' names.

        In the order in which data pass through them.
        """
        return {
            f"{i}.{name}": leaf
            for i, layer in enumerate(self.layers)
            for name, leaf in layer.leaves().items()
        }

    def give_layers(self, name: str) -> tuple[Layer, ...]:
        """Hand the layers over to a new owner; messages call this model ``name``."""
        if self.owned:
            raise ValueError(f"{name} ({self!r}) already belongs to a model")
        self.owned = True
        return self.layers

    def train(self) -> Sequential:
        """Normalise by the batch's statistics from now on; returns the model."""
        self.training = True
        return self

    def eval(self) -> Sequential:
        """Normalise by running statistics from now on; returns the model."""
        self.training = False
        return self

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one output for one input of ``shape``; ValueError where a layer does not fit."""
        if not isinstance(shape, tuple | list):
            raise TypeError(f"shape is {shown(shape)}, expected a tuple of integers")
        shape = tuple(shape)
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def check_input(self, name: str, x: Any, keep_bytes: bool = False) -> Array:
        """A batch as a contiguous array of the model's dtype; of bytes where they are to be kept so.

        For a model on a GPU, arrays in its memory are taken as they are; those in the processor's memory
        stay in it.

        Raises
        ------
        TypeError, ValueError
            Not numbers, not finite, or not the shape that the first layers take.
        """
        if gpu_views.is_on_gpu(x):
            return cast(Array, self._adopted(name, x, keep_bytes))
        converted = self._converted(name, x, keep_bytes)
        self._check_shape(name, converted.shape)
        check_finite(name, converted)
        return converted

    def _converted(self, name: str, x: Any, keep_bytes: bool) -> Array:
        """Return numbers as a contiguous array of the model's dtype, or of bytes; not checked further."""
        given: Array = x if type(x) is np.ndarray else as_numpy(name, x)
        if given.dtype == self.dtype and given.flags.carray:
            return given
        if given.dtype.kind not in "fiub":
            raise TypeError(f"{name} has dtype {given.dtype}, expected numbers")
        dtype = given.dtype if keep_bytes and given.dtype == np.uint8 else self.dtype
        with np.errstate(over="ignore"):  # what is too large for the dtype is found to be infinite
            return given.astype(dtype, order="C", copy=not given.flags.aligned)

    def _adopted(self, name: str, x: Any, keep_bytes: bool) -> Any:
        """Return a user's array in the model's GPU's memory, as `check_input` does."""
        adopted: Any = self._place.adopt(name, x, self.dtype, or_bytes=True)
        self._check_shape(name, adopted.shape)
        if adopted.dtype == self.dtype or keep_bytes:
            return adopted
        from ..backends.gpu import copies  # costs what `import pyoptim.nn` need not

        made = copies.rows_of(adopted, len(adopted), self.dtype)
        gpu_data.release(adopted)
        return made

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise ValueError(f"{name} has shape {shape}, expected (batch, features)")
        try:
            self.output_shape(shape[1:])
        except ValueError as error:
            raise ValueError(f"{name} has shape {shape}: {error}") from None

    def _forward(self, x: Array) -> Array:
        """The output for a checked batch."""
        for layer in self.layers:
            x = layer.forward(x, self.training)
        self._output_shape, self._unkept = x.shape, None
        return x

    def forward(self, x: Any) -> Array:
        """The output for a batch of any real dtype, e.g. (batch, features).

        `backward` reads x again, so leave it as it is until then. In evaluation mode compiled layers
        keep nothing, and `backward` computes what they would have kept once more: leave the parameters alone
        too.

        A model on a GPU takes arrays of its memory too (CuPy's, PyTorch's, and what else has
        ``__cuda_array_interface__`` or speaks DLPack) of its dtype, without a copy and without a look at
        their values, and bytes, which it converts on the GPU. It then returns an array in that memory, which
        those take without a copy.

        Raises
        ------
        TypeError, ValueError
            Not numbers, not finite, or not the shape that the layers take.
        """
        computed = None if self.training else outputs(self, "x", x)
        if computed is not None:
            self._output_shape, self._given, self._unkept = computed[0].shape, None, computed[1]
            return computed[0]
        x = self.check_input("x", x)
        y: Array = self._place.result(self._forward(self._place.upload(x)), x)
        self._given = None if isinstance(x, np.ndarray) else x
        if self._given is not None:
            gpu_data.release(self._given)
        return y

    __call__ = forward

    def backward(self, dy: Array, need_dx: bool = False) -> Array | None:
        """Fill `gradients` from the gradient of the last forward's output.

        Returns
        -------
        array or None
            The gradient with respect to the input, if ``need_dx``.

        Raises
        ------
        TypeError, ValueError
            There was no forward, or dy is not of its output's shape and dtype.
        """
        need_dx = check_flag("need_dx", need_dx)
        if self._output_shape is None:
            raise ValueError("backward before forward: there is no output to take a gradient of")
        borrowed = [] if self._given is None else [self._given]
        if gpu_views.is_on_gpu(dy):
            dy = self._place.adopt("dy", dy, self.dtype, self._output_shape)
            borrowed.append(dy)
        else:
            dy = check_like("dy", dy, self._output_shape, self.dtype, " as the last output")
        dx = self._backward(self._place.upload(dy), need_dx)
        for array in borrowed:
            gpu_data.release(array)
        return dx if dx is None or not isinstance(dy, np.ndarray) else self._place.values(dx)

    def _backward(self, dy: Array, need_dx: bool = False) -> Array | None:
        if self._unkept is not None:
            x, self._unkept = self._unkept.astype(self.dtype, copy=False), None
            for layer in self.layers:
                x = layer.forward(x, False)
        return backward(self.layers, dy, need_dx)

    def parameters(self) -> dict[str, Array]:
        """Name -> parameter of the layers that are not frozen, e.g. ``"0.weight"``.

        Views of `flat_parameters`.
        """
        return self._named("parameters", frozen=False)

    def gradients(self) -> dict[str, Array]:
        """Name -> gradient, with the names of `parameters`; views of `flat_gradients`."""
        return self._named("gradients", frozen=False)

    def _named(self, *kinds: str, frozen: bool = True) -> dict[str, Array]:
        """Name -> array of all layers, or of those that are not frozen; ``kinds`` are dicts of `Layer`."""
        return {
            prefix + name: value
            for prefix, layer in self.leaves().items()
            if frozen or layer.trainable
            for kind in kinds
            for name, value in getattr(layer, kind).items()
        }

    def _prune(self, kept: Array) -> None:
        """Set to 0, and keep there in training, the parameters beside which ``kept`` is 0; else it is 1."""
        if self._kept is None:
            self._kept = self._place.moved(np.ones(kept.shape, self.dtype))
        self._kept[...] = kept
        self._hold()

    def _hold(self) -> None:
        """Set the parameters that were pruned to 0, after a step that may have moved them."""
        flat = self.flat_parameters
        # The gradient of a ReLU passes on what is beside a 1, and has a kernel everywhere.
        dispatch.of(flat).activation_backward("relu", flat, self._kept, flat)

    def _copied_buffers(self) -> dict[str, Array]:
        """Return copies of all buffers, for `_restore_buffers`."""
        return {name: buffer.copy() for name, buffer in self._named("buffers").items()}

    def _restore_buffers(self, values: Mapping[str, Array]) -> None:
        own = self._named("buffers")
        for name, value in values.items():
            own[name][...] = value

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters and buffers, frozen ones too, with PyTorch's names."""
        return {name: np.array(value) for name, value in self._named("parameters", "buffers").items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over what `state_dict` of a model of the same layers returned.

        Raises
        ------
        TypeError, ValueError
            Missing or unknown names, other shapes or dtypes. Nothing is changed.
        """
        own = self._named("parameters", "buffers")
        check_type("state", state, Mapping, "a mapping of names to arrays, as state_dict returns it")
        if set(state) != set(own):
            missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
            raise ValueError(f"state does not fit: missing {missing}, unknown {unknown}")
        checked = {
            name: check_like(f"state[{name!r}]", state[name], value.shape, value.dtype)
            for name, value in own.items()
        }
        for name, value in checked.items():
            own[name][...] = value

    def save(self, path: str | Path) -> None:
        """Write layers, what of them is frozen, parameters and buffers to a safetensors file, atomically.

        Readers see the old or the new file whole, with a checksum that `load` looks at. The mode of a file
        that is replaced is kept; a symbolic link stays one, and its target is replaced. A process that is
        killed while it writes leaves a temporary file, ``.pyoptim-….tmp``, which the next save to that folder
        removes.
        """
        from . import checkpoint

        checkpoint.save_model(self, check_path("path", path))

    @staticmethod
    def load(path: str | Path) -> Sequential:
        """The model that `save` wrote.

        Raises
        ------
        ValueError
            The file is truncated or damaged, or is not a model of ours.
        """
        from . import checkpoint

        return checkpoint.load_model(Sequential, check_path("path", path))

    def folded(self) -> Sequential:
        """A copy for predictions, in evaluation mode, in which `Dense` layers normalise by themselves.

        Each `BatchNorm` that follows a `Dense` without an activation, and has running statistics, becomes
        part of that layer's weight and bias, computed in float64 and rounded once. A model with nothing to
        fold is copied as it is. Later changes of the model do not reach the copy.

        Outputs differ from the model's by rounding: of a layer with n inputs, by at most some n units in the
        last place of the largest of the terms that are summed, which are inputs times weights, the bias and
        the running mean, all divided by the running deviation; mostly by a few.

        Raises
        ------
        ValueError
            A layer is not one of pyoptim.nn's.
        """
        from . import folding

        return folding.folded(Sequential, self)

    def summary(self, input_shape: tuple[int, ...] | None = None) -> str:
        """A line per layer, those in blocks too, with the shape of an output; and the number of parameters.

        Parameters
        ----------
        input_shape : tuple of int, optional
            Of one input, without the batch. By default the input is a row of as many features as the first
            `Dense` takes; where that does not suit another layer, or there is none, shapes are "?".

        Raises
        ------
        TypeError, ValueError
            A layer does not take what comes from an input of this shape.
        """
        if input_shape is not None:
            if not isinstance(input_shape, tuple | list) or not all(map(is_count, input_shape)):
                raise TypeError(f"input_shape is {shown(input_shape)}, expected a tuple of sizes, or None")
            try:
                self.output_shape(input_shape)
            except ValueError as error:
                raise ValueError(f"input_shape is {shown(input_shape)}: {error}") from None
        totals = {"parameters": self.flat_parameters.size}
        if any(not layer.trainable for layer in self.leaves().values()):
            totals["of them trainable"] = sum(p.size for p in self.parameters().values())
        return summary.as_text(self.layers, input_shape, totals)

    def _repr_html_(self) -> str:
        caption = f"Sequential, {self.flat_parameters.size:,} parameters, {self.dtype} on {self.device}"
        return summary.as_html(self.layers, caption)

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype that a user names, if it is one that models compute in."""
    try:
        made: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"dtype is {shown(dtype)}, expected float32 or float64") from error
    if made not in FLOATS:
        raise TypeError(f"dtype is {made}, expected float32 or float64")
    return made


def _check_layers(layers: Iterable[Layer]) -> None:
    for label, layer in walk("layers", layers):
        name = type(layer).__name__
        if Layer.kinds.get(name) is not type(layer):
            raise TypeError(f"{label} is a {name}, expected pyoptim.nn's on a GPU")
