"""Safetensors files, described by JSON in their metadata and written all or nothing. No pickle."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import dtypes
from .dtypes import Array

_KEY = "pyoptim"  # the one entry of the metadata: safetensors would write several in any order
_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "U8": "u1"}

# The exceptions that a description that makes no sense may cause, wherever it is used.
NONSENSE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def write(path: str | Path, description: dict[str, Any], tensors: dict[str, Array]) -> None:
    from safetensors.numpy import save

    write_atomically(path, save(tensors, {_KEY: json.dumps(description, default=_python_number)}))


def _python_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"{value!r} cannot be saved, expected numbers, strings and lists")


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """The description and the tensors of a file of this kind."""
    from safetensors import SafetensorError, deserialize

    check_writable(path)
    content = Path(path).read_bytes()
    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        tensors = {name: _tensor(name, **entry) for name, entry in entries}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    except NONSENSE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        description = json.loads(header["__metadata__"][_KEY])
        found = description["format"]
    except NONSENSE as error:
        raise ValueError(f"{path} was not written by pyoptim: its metadata has no {_KEY!r}") from error
    if found != kind:
        raise ValueError(f"{path} has the format {found!r}, expected {kind!r}")
    return description, tensors


def _tensor(name: str, dtype: str, shape: list[int], data: Any) -> Array:
    if dtype == "BF16":
        try:
            numpy_dtype = dtypes.bfloat16()
        except ImportError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error
    elif dtype in _DTYPES:
        numpy_dtype = np.dtype(_DTYPES[dtype])
    else:
        raise ValueError(f"tensor {name!r} has dtype {dtype}, expected one of {', '.join(_DTYPES)}, BF16")
    return np.ndarray(shape, numpy_dtype, buffer=data)


def check_writable(path: str | Path) -> None:
    """ValueError if the path exists and is not a regular file."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a directory, expected a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is a device, a pipe or a socket, expected a regular file")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that whoever reads it, at any moment, sees the old or the new content whole.

    Raises
    ------
    ValueError
        ``path`` exists and is not a regular file.
    OSError
        It cannot be written. The error names ``path``, whose old content is unchanged.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:  # it names the temporary file
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
