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
from typing import TYPE_CHECKING

from ...arrays.queue import Launcher, Queue
from ...formulas.activations import ACTIVATIONS
from ...runtime.dispatch import BackendError
from .constants import ELEMENTS, TYPES, blocks_of
from .cublaslt import Blas

if TYPE_CHECKING:
    from ...arrays.gpu import DeviceArray


ACTIVATION_NAMES = list(ACTIVATIONS)  # kernels know an activation by its index in this list
TILE = 32  # rows and columns of a tile of our own kernel: kTile of launch.hpp


def product(
    queue: Queue,
    a: tuple[DeviceArray, bool],
    b: tuple[DeviceArray, bool],
    y: DeviceArray,
    bias: DeviceArray | None = None,
    activation: str = "identity",
) -> None:
    """Queue ``y = activation(a b + bias)``, row-major; a and b say whether they are stored transposed."""
    m, n = y.shape
    k = a[0].shape[0 if a[1] else 1]
    if y.size == 0:
        return
    library = None if k == 0 else library_of(queue)
    kind, name = ACTIVATION_NAMES.index(activation), TYPES[y.dtype]
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
        relu = activation == "relu"
        blocks = blocks_of(m, TILE) * blocks_of(n, TILE)
        strides = ((1, m) if a[1] else (k, 1)), ((1, k) if b[1] else (n, 1))
        queue.launch(
            f"product<{name}>", blocks, m, n, k, a[0].address, *strides[0], b[0].address, *strides[1],
            None if bias is None else bias.address, relu, y.address,
        )  # fmt: skip
        if relu:
            return
    blocks, own = blocks_of(y.size, ELEMENTS), (kind, 0.0, 0.0, y.size)
    if done and bias is not fused:
        assert bias is not None
        queue.launch(f"bias_activation<{name}>", blocks, *own, n, bias.address, y.address)
    elif activation != "identity":
        queue.launch(f"activation_forward<{name}>", blocks, *own, y.address, y.address)


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
