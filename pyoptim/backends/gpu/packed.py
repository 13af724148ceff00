"""Steps on arrays in a GPU's memory, some of them in 16 or 8 bits; see `pyoptim.formulas.storage`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays.queue import Queue
from ...formulas.rules import Rule
from ...formulas.storage import Packed, PackedArray
from ...runtime.dtypes import Array
from .constants import CHUNK, blocks_of
from .steps import Launch, Stepper, chunks_of

if TYPE_CHECKING:
    from ...arrays.gpu import DeviceArray


# in the order of Storage in storage.hpp
STORAGE_NAMES = ("float32", "float16", "bfloat16", "signed8", "unsigned8")
# These are the layouts of structs in launch.hpp.
_VALUES = np.dtype([("data", "u8"), ("scale", "u8"), ("kind", "i8")])
ARRAYS = np.dtype(
    [("param", _VALUES), ("grad", _VALUES), ("state", _VALUES, (4,)), ("master", "u8"), ("size", "i8"),
     ("row", "i8"), ("position", "i8")]
)  # fmt: skip


def _values(packed: Packed) -> tuple[int, int, int]:
    scale: Any = packed.scale
    data: Any = packed.data
    return data.address, 0 if scale is None else scale.address, STORAGE_NAMES.index(packed.kind)


class _PackedLaunch(Launch):
    """All arrays that one rule updates."""

    prefix = "packed_"

    def _made_tables(self, members: Sequence[Any]) -> tuple[Array, Array]:
        arrays = np.zeros(len(members), ARRAYS)
        for entry, (_, group, array, (grad, position)) in zip(arrays, members, strict=True):
            entry["param"], entry["grad"] = _values(array.param), _values(grad)
            entry["state"][: len(array.states)] = [_values(state) for state in array.states]
            entry["master"] = 0 if array.master is None else array.master.address
            entry["size"], entry["position"] = array.param.data.size, position
            entry["row"] = self._groups.index(group)
        return arrays, chunks_of(arrays["size"], CHUNK)

    def _run_step(self, kernel: str, arguments: tuple[Any, ...], stream: int) -> None:
        self._launcher.launch(kernel, self.blocks, arguments, stream)


class PackedStepper(Stepper):
    """See `pyoptim.backends.reference.PackedStepper`; arrays are `pyoptim.arrays.gpu.DeviceArray`.

    ``grads`` says how gradients are stored if not as their parameters are; a scale, if any, is that of the
    array given here. A step also takes a key of random numbers and whether it rounds stochastically.
    """

    _launch = _PackedLaunch

    def __init__(
        self,
        rules: Sequence[Rule],
        arrays: Sequence[PackedArray],
        queue: Queue | None = None,
        grads: Sequence[Packed] | None = None,
    ) -> None:
        members: dict[Any, list[Any]] = {}
        position = 0
        for i, array in enumerate(arrays):
            rule, grad = rules[array.group], array.param if grads is None else grads[i]
            key = rule.name, np.dtype(np.float32)
            members.setdefault(key, []).append((i, array.group, rule, array, (grad, position)))
            position += array.param.data.size
        self._prepare(members, queue)


def convert(queue: Queue, to: DeviceArray, source: DeviceArray, stream: int, scale: float = 1.0) -> None:
    """Queue ``to = source * scale`` of floats of at most 32 bits, rounded to nearest, on the stream."""
    kinds = STORAGE_NAMES.index(source.dtype.name), STORAGE_NAMES.index(to.dtype.name)
    arguments = (source.size, kinds[0], source.address, kinds[1], to.address, scale)
    with queue.on(stream):
        queue.launcher.launch("convert<float>", blocks_of(source.size, CHUNK), arguments, stream)
