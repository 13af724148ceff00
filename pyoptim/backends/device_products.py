"""Matrix products in a GPU's memory: by cuBLASLt, by CuPy's cuBLAS, or by our own kernel.

The environment variable ``PYOPTIM_CUBLAS`` is "off" for our own kernel, or the path of libcublasLt for the
backend "cuda". By default that takes the library of the package nvidia-cublas, else the system's, else our
own kernel; the backend "cupy" takes CuPy's.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..activations import KINDS
from . import BackendError
from .device import CHUNK, TYPES, Launcher, Queue, blocks_of

if TYPE_CHECKING:
    from .._device import DeviceArray

ACTIVATIONS = list(KINDS)  # by the numbers that kernels know them by
_TILE = 32  # of the kernel `product`


def product(
    queue: Queue,
    a: tuple[DeviceArray, bool],
    b: tuple[DeviceArray, bool],
    y: DeviceArray,
    bias: DeviceArray | None = None,
    activation: str = "identity",
) -> None:
    """``y = activation(a b + bias)``, row-major; a and b are with whether they are stored transposed."""
    m, n = y.shape
    k = a[0].shape[0 if a[1] else 1]
    if y.size == 0:
        return
    library = None if k == 0 else _library_of(queue)
    kind, name = ACTIVATIONS.index(activation), TYPES[y.dtype]
    if library is None:
        relu = activation == "relu"
        blocks = blocks_of(m, _TILE) * blocks_of(n, _TILE)
        strides = ((1, m) if a[1] else (k, 1)), ((1, k) if b[1] else (n, 1))
        queue.launch(
            f"product<{name}>", blocks, m, n, k, a[0].address, *strides[0], b[0].address, *strides[1],
            None if bias is None else bias.address, relu, y.address,
        )  # fmt: skip
        if relu or activation == "identity":
            return
        bias = None
    else:
        # Not its ReLU, which is max(x, 0): ours keeps NaN. Nor, in double, any other addition.
        fused = bias if library.adds_bias and name == "float" and activation == "identity" else None
        with queue.on(queue.stream):
            library.product(queue, (m, n, k), a, b, fused, y)
        if fused is bias and activation == "identity":
            return
    queue.launch(
        f"bias_activation<{name}>", blocks_of(y.size, CHUNK), kind, 0.0, 0.0, y.size, n,
        None if bias is None else bias.address, y.address, y.address,
    )  # fmt: skip


def what_multiplies(launcher: Launcher) -> str:
    """For people: of the device in use."""
    library = _library_of(Queue(launcher, launcher.get_device()))
    return "own kernel" if library is None else str(library)


def _library_of(queue: Queue) -> Any:
    """What multiplies, or None for our own kernel; looked for once."""
    if queue.products is None:
        with queue.on(queue.stream):  # a handle belongs to a device
            launcher: Any = queue.launcher
            queue.products = (_find(launcher, queue.device, os.environ.get("PYOPTIM_CUBLAS", "")),)
    return queue.products[0]


@cache
def _find(launcher: Launcher, device: int, setting: str) -> Any:
    if setting == "off":
        return None
    return _CuPy(launcher) if launcher.Blas is None else _find_cublaslt(launcher, setting)


def _find_cublaslt(launcher: Any, setting: str) -> _CublasLt | None:
    if setting:
        try:
            return _CublasLt(launcher.Blas(setting))
        except RuntimeError as error:
            raise BackendError(f"PYOPTIM_CUBLAS is {setting!r}, expected 'off' or a path: {error}") from error
    for path in [*_packaged(), ""]:
        with suppress(RuntimeError):  # there is none, or it is not for this driver
            return _CublasLt(launcher.Blas(path))
    return None


def _packaged() -> list[str]:
    """The libraries of the packages nvidia-cublas and nvidia-cublas-cu12, newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [file for folder in folders for file in Path(folder).glob("*/lib/libcublasLt.so.*")]
    return [str(file) for file in sorted(found, key=lambda file: file.name, reverse=True)]


class _CublasLt:
    adds_bias = True

    def __init__(self, blas: Any) -> None:
        self._blas = blas

    def __str__(self) -> str:
        major, minor = divmod(self._blas.version, 10000)
        return f"cuBLASLt {major}.{minor // 100}.{minor % 100}"

    def product(
        self, queue: Queue, shape: tuple[int, int, int], a: Any, b: Any, bias: Any, y: DeviceArray
    ) -> None:
        blas, workspace = self._blas, queue.pool.take(self._blas.workspace_bytes)
        blas.product(
            shape, (a[0].address, a[1]), (b[0].address, b[1]), 0 if bias is None else bias.address, y.address,
            TYPES[y.dtype] == "double", workspace.address, queue.stream,
        )  # fmt: skip


class _CuPy:
    adds_bias = False

    def __init__(self, launcher: Any) -> None:
        self._launcher = launcher

    def __str__(self) -> str:
        return "CuPy's cuBLAS"

    def product(
        self, queue: Queue, shape: tuple[int, int, int], a: Any, b: Any, bias: Any, y: DeviceArray
    ) -> None:
        self._launcher.product(
            shape, (a[0].address, a[1]), (b[0].address, b[1]), y.address, y.dtype, queue.stream
        )
