"""What this installation consists of and what it can run."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .runtime import dispatch, threads

__all__ = ["Config", "cite", "cmake_dir", "include_dir", "show_config"]


def __dir__() -> list[str]:
    return __all__


_OPTIONAL = ("numba", "matplotlib", "torch", "cupy")
_CUPY = ("cupy", "cupy-cuda13x", "cupy-cuda12x")  # several distributions contain the module cupy


class Config(dict[str, Any]):
    """A dict that prints as a table."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:<{width}}  {_show(value)}" for name, value in self.items())

    __str__ = __repr__


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def show_config() -> Config:
    """Backends, instruction set, threads, CUDA device, versions.

    Returns
    -------
    dict
        ``pyoptim``, ``python``, ``numpy``: versions; ``platform``; ``backend``: the one in force;
        ``backends``: those that run here; ``unavailable``: the others, with the reason; ``kernels``:
        "compiled", or why they are not, and what helps;
        ``instruction_set`` and ``instruction_sets`` of the compiled kernels (None, [] without them);
        ``threads``, and in ``threads_from`` why there are so many; ``cuda``: the GPU in use (or None), and
        what multiplies matrices on it (set ``PYOPTIM_CUBLAS`` to "off" for our own kernel, or to the path of
        libcublasLt); and the versions of optional packages.
    """
    reasons = []
    for name in (*dispatch.MODULES, *dispatch.DEVICE_MODULES):
        try:
            dispatch.get(name)
        except dispatch.BackendError as error:
            reasons.append(str(error))
    native = threads._native
    return Config(
        pyoptim=__version__,
        python=platform.python_version(),
        numpy=np.__version__,
        platform=platform.platform(),
        backend=dispatch.current().name,
        backends=dispatch.available_backends(),
        unavailable=reasons,
        kernels=dispatch.kernels(),
        instruction_set=native.instruction_set() if native is not None else None,
        instruction_sets=native.instruction_sets() if native is not None else [],
        threads=threads.get_num_threads(),
        threads_from=threads.reason(),
        cuda=_devices(),
        **{name: _version(*(_CUPY if name == "cupy" else [name])) for name in _OPTIONAL},
    )


def _devices() -> str | None:
    for name in dispatch.DEVICE_MODULES:
        try:
            launcher = dispatch.get(name).launcher
        except dispatch.BackendError:
            continue
        device = launcher.device(launcher.get_device())
        capability = ".".join(map(str, device["compute_capability"]))
        from .backends.gpu.products import what_multiplies

        return (
            f"{device['name']} ({device['memory'] / 2**30:.1f} GiB, compute capability {capability}; "
            f"{what_multiplies(launcher)})"
        )
    return None


def cite() -> str:
    """How to cite this version, as an entry of BibTeX.

    Returns
    -------
    str
        Of the kind ``@software``, which BibLaTeX knows; BibTeX takes it as ``@misc``.
    """
    return f"""@software{{pyoptim,
  author  = {{{{the pyoptim authors}}}},
  title   = {{pyoptim: optimizer updates and training of small networks, as fast as the hardware allows}},
  version = {{{__version__}}},
  year    = {{2026}},
  license = {{MIT}}
}}"""


def include_dir() -> str:
    """The folder of the C++ headers: ``-I`` for ``#include <pyoptim/network.hpp>``.

    Raises
    ------
    FileNotFoundError
        This install has no C++ files: it is a wheel without them (``pip install pyoptim-cpp`` adds them),
        was not compiled, or is a source checkout.
    """
    return _shipped("include")


def cmake_dir() -> str:
    """The folder of the CMake files: what ``CMAKE_PREFIX_PATH`` needs for ``find_package(pyoptim CONFIG)``.

    Raises
    ------
    FileNotFoundError
        As `include_dir`.
    """
    return _shipped("cmake")


def _shipped(name: str) -> str:
    folder = Path(__file__).with_name(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            "this install has no C++ files: `pip install pyoptim-cpp` adds them to a wheel of pyoptim of the "
            f"same version, and an install from the sources has them; there is no folder {str(folder)!r}"
        )
    return str(folder)


def _version(*packages: str) -> str | None:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
