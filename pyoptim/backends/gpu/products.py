"""Matrix products in a GPU's memory, by cuBLASLt, or by our own kernel where cuBLASLt cannot.

The environment variable ``PYOPTIM_CUBLAS`` is "off" for our own kernel, or the path of libcublasLt. The
default library is the package nvidia-cublas's, else the CUDA toolkit's (``CUDA_PATH``), else the system's.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays.queue import Launcher, Queue
from ...formulas.activations import ACTIVATIONS
from ...runtime.dispatch import BackendError
from .constants import ELEMENTS, TYPES, WARPS, blocks_of
from .cublaslt import Blas

if TYPE_CHECKING:
    from ...arrays.gpu import DeviceArray


ACTIVATION_NAMES = list(ACTIVATIONS)  # kernels know an activation by its index in this list
# A block of our own kernel has this many rows and columns of the result, and its warps take so many terms of
# their sums at a time: kTile and kSlice of launch.hpp.
TILE, SLICE = 32, 8
# Blocks that share a product at most, about two for each multiprocessor of a large GPU; and those of a tile.
_BLOCKS, _SPLITS = 256, 64
_LONG = 5  # turns from which on several blocks gain more than their meeting costs
_OWN = 1 << 24  # multiplications of a product up to which our own kernel is faster than cuBLASLt


def product(
    queue: Queue,
    a: tuple[DeviceArray, bool],
    b: tuple[DeviceArray, bool],
    y: DeviceArray,
    bias: DeviceArray | None = None,
    activation: str = "identity",
    through: DeviceArray | None = None,
) -> None:
    """Queue ``y = activation(a b + bias)``, row-major; a and b say whether they are stored transposed.

    With ``through``, the outputs of ReLU, a is a gradient with respect to these outputs, and the product is
    that of the gradient with respect to ReLU's inputs; this is for our own kernel, where `is_own`.
    """
    m, n = y.shape
    k = a[0].shape[0 if a[1] else 1]
    if y.size == 0:
        return
    kind, name = ACTIVATION_NAMES.index(activation), TYPES[y.dtype]
    library = library_of(queue) if k and through is None and not _is_small(name, m, n, k) else None
    fused = bias if name == "float" else None  # cuBLASLt takes no bias in double
    done = False
    if library is not None:
        workspace = queue.pool.workspace(library.workspace_bytes)
        with queue.on(queue.stream):
            done = library.product(
                (m, n, k), (a[0].address, a[1]), (b[0].address, b[1]), 0 if fused is None else fused.address,
                y.address, name == "double", workspace.address, queue.stream,
            )  # fmt: skip
    if not done:
        _own_product(queue, a, b, y, bias, activation == "relu", through)
        if activation == "relu":
            return
    blocks, own = blocks_of(y.size, ELEMENTS), (kind, 0.0, 0.0, y.size)
    if done and bias is not fused:
        assert bias is not None
        queue.launch(f"bias_activation<{name}>", blocks, *own, n, bias.address, y.address)
    elif activation != "identity":
        queue.launch(f"activation_forward<{name}>", blocks, *own, y.address, y.address)


def is_own(queue: Queue, dtype: np.dtype[Any], m: int, n: int, k: int) -> bool:
    """Return whether our own kernel computes products of an (m, k) and a (k, n) matrix."""
    return _is_small(TYPES[dtype], m, n, k) or library_of(queue) is None


def _is_small(name: str, m: int, n: int, k: int) -> bool:
    """Return whether our own kernel is faster than cuBLASLt, which is slow where a result has few columns.

    cuBLASLt has faster kernels for vectors, and in double it uses the tensor cores.
    """
    work = m * n * k
    return name == "float" and 1 not in (m, k) and work <= (8 * _OWN if min(m, n) < TILE else _OWN)


def splits_of(m: int, n: int, k: int) -> int:
    """Return how many blocks of our own kernel share a tile of an (m, n) result, a part of the k terms each.

    It follows from the shape alone, so that a sum has the same bits on every GPU.
    """
    turns = blocks_of(k, SLICE * WARPS)  # how often the warps of one block would take slices
    most = min(_BLOCKS // (blocks_of(m, TILE) * blocks_of(n, TILE)), blocks_of(turns, 2), _SPLITS)
    return 1 if most < 2 or turns < _LONG else blocks_of(turns, blocks_of(turns, most))


def _own_product(
    queue: Queue,
    a: tuple[DeviceArray, bool],
    b: tuple[DeviceArray, bool],
    y: DeviceArray,
    bias: DeviceArray | None,
    relu: bool,
    through: DeviceArray | None,
) -> None:
    (m, n), k = y.shape, a[0].shape[0 if a[1] else 1]
    strides = ((1, m) if a[1] else (k, 1)), ((1, k) if b[1] else (n, 1))
    tiles, splits = blocks_of(m, TILE) * blocks_of(n, TILE), splits_of(m, n, k)
    partial = queue.pool.take(splits * tiles * TILE * TILE * y.dtype.itemsize) if splits > 1 else None
    added, outputs = (None if of is None else of.address for of in (bias, through))
    queue.launch(
        f"product<{TYPES[y.dtype]}>", tiles * splits, m, n, k, a[0].address, outputs, *strides[0],
        b[0].address, *strides[1], added, relu, splits,
        partial and partial.address, partial and queue.counters(), y.address,
    )  # fmt: skip


def what_multiplies(launcher: Launcher) -> str:
    """Describe, for people to read, the library that multiplies matrices on the GPU in use."""
    library = library_of(Queue(launcher, launcher.get_device()))
    if library is None:
        return "own kernel"
    major, minor = divmod(library.version, 10000)
    return f"cuBLASLt {major}.{minor // 100}.{minor % 100}"


def library_of(queue: Queue) -> Blas | None:
    """Return cuBLASLt, or None for our own kernel; the library is looked for once."""
    if queue.products is None:
        with queue.on(queue.stream):  # a handle of cuBLASLt belongs to one GPU
            queue.products = (_find(queue.device, os.environ.get("PYOPTIM_CUBLAS", "")),)
    library: Blas | None = queue.products[0]
    return library


@cache
def _find(device: int, setting: str) -> Blas | None:
    if setting == "off":
        return None
    if setting:
        try:
            return Blas(setting)
        except (OSError, RuntimeError) as error:
            raise BackendError(f"PYOPTIM_CUBLAS is {setting!r}, expected 'off' or a path: {error}") from error
    for path in _candidates():
        with suppress(OSError, RuntimeError):  # the file is missing, or does not suit the driver
            return Blas(path)
    return None


def _candidates() -> list[str]:
    """Return the paths where libcublasLt may be, newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [file for folder in folders for file in Path(folder).glob("*/lib/libcublasLt.so.*")]
    toolkits = [path for name in ("CUDA_PATH", "CUDA_HOME") if (path := os.environ.get(name))]
    return [
        *(str(file) for file in sorted(found, key=lambda file: file.name, reverse=True)),
        *(f"{path}/lib64/libcublasLt.so" for path in [*toolkits, "/usr/local/cuda"]),
        "libcublasLt.so.13",
        "libcublasLt.so.12",
    ]
