"""Safetensors files, described by JSON in their metadata, with a checksum, written all or nothing. No pickle.

The description begins with ``"checksum"``: the SHA-256 of the whole file, in which the 64 digits themselves
count as zeros. Files from before there were checksums begin with ``"format"`` and are read as they are.
``csrc/api`` reads and writes models by the same rules.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from . import dtypes
from .dtypes import Array

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_KEY = "pyoptim"  # the one entry of the metadata: safetensors would write several in any order
_CHECKSUM, _ZEROS = "checksum", b"0" * 64
_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I8": "i1", "U8": "u1"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, as the format has it
_TEMPORARY = re.compile(r"\.pyoptim-([0-9a-z]{8})-[0-9a-f]{16}\.tmp")
_LEFT_ALONE = 3600.0  # seconds after which a temporary file that another machine made is nobody's

# The exceptions that a description that makes no sense may cause, wherever it is used.
NONSENSE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def write(path: str | Path, description: dict[str, Any], tensors: dict[str, Array]) -> None:
    from safetensors.numpy import save

    described = json.dumps({_CHECKSUM: _ZEROS.decode(), **description}, default=_python_number)
    content = memoryview(save(tensors, {_KEY: described}))
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = bytes(content[:end]), content[end:]
    write_atomically(path, _with(_checksum(header, [data]), header, header.index(_ZEROS)), data)


def write_one_by_one(
    path: str | Path,
    description: dict[str, Any],
    forms: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    arrays: Callable[[], Iterator[Array]],
) -> None:
    """Write the bytes that `write` would, with one tensor in memory at a time.

    Parameters
    ----------
    path, description
        As `write`.
    forms : mapping
        Name -> dtype and shape of each tensor, in the order of `in_order`.
    arrays : callable
        Returns an iterator of the tensors in this order. It is called twice: the checksum stands before them.
    """
    entries: dict[str, Any] = {
        "__metadata__": {_KEY: json.dumps({_CHECKSUM: _ZEROS.decode(), **description})}
    }
    at = 0
    for name, (dtype, shape) in forms.items():
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype.str[1:]], "shape": shape, "data_offsets": (at, end)}
        at = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    header = len(header).to_bytes(8, "little") + header

    def data() -> Iterator[memoryview]:
        return (np.ascontiguousarray(array).data for array in arrays())

    header = _with(_checksum(header, data()), header, header.index(_ZEROS))
    write_parts_atomically(path, chain([header], data()))


def in_order(
    forms: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return dtypes and shapes of tensors in the order in which safetensors writes them."""
    ranks = {dtype: i for i, dtype in enumerate(("i8", "f8", "f4", "f2", "i1", "u1"))}
    return dict(sorted(forms.items(), key=lambda item: (ranks[item[1][0].str[1:]], item[0])))


def _checksum(header: bytes, data: Iterable[memoryview]) -> bytes:
    found = hashlib.sha256(header)
    for part in data:
        found.update(part)
    return found.hexdigest().encode()


def _with(digits: bytes, header: bytes, at: int) -> bytes:
    """Return a header with other digits of the checksum."""
    return header[:at] + digits + header[at + len(_ZEROS) :]


def _python_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"{value!r} cannot be saved, expected numbers, strings and lists")


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """The description and the tensors of a file of this kind.

    Raises
    ------
    ValueError
        The file is no regular file, is incomplete, has more or less data than its header says, does not have
        the checksum that it states, or is of another kind. The error names the file.
    OSError
        It cannot be read.
    """
    from safetensors import SafetensorError, deserialize

    check_regular(path)
    try:
        content, end = _content(path)
        entries = deserialize(content)  # type: ignore[no-untyped-call]
        tensors = {name: _tensor(name, **entry) for name, entry in entries}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    except NONSENSE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return _described(path, content, end, kind), tensors


@contextmanager
def opened(path: str | Path, kind: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield what `read` returns, but as the second a function: the name of a tensor -> the tensor.

    The tensors stay in the file, which is read twice: once as a whole, for its checksum.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        content, end = _content(path, mapped=True)
        with content, safe_open(path, "numpy") as file:
            description = _described(path, content, end, kind)
            yield description, file.get_tensor
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


def _described(path: str | Path, content: Any, end: int, kind: str) -> dict[str, Any]:
    """Return the description of a file of this kind, which is whole; else ValueError."""
    try:
        header = json.loads(content[8:end].decode(), object_pairs_hook=_each_once)
    except NONSENSE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        description: dict[str, Any] = json.loads(header["__metadata__"][_KEY], object_pairs_hook=_each_once)
        found = description["format"]
    except NONSENSE as error:
        raise ValueError(f"{path} was not written by pyoptim: its metadata has no {_KEY!r}") from error
    if not _is_whole(description, content, end):
        raise ValueError(f"{path} is damaged: its content is not what its checksum was computed of")
    if found != kind:
        raise ValueError(f"{path} has the format {found!r}, expected {kind!r}")
    description.pop(_CHECKSUM, None)
    return description


def _content(path: str | Path, mapped: bool = False) -> tuple[Any, int]:
    """Return a file and where its data begin, once its header says that the data are as long as they are."""
    from safetensors import SafetensorError

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(8)
        end = 8 + int.from_bytes(begin, "little")
        if len(begin) < 8 or end > min(size, 8 + _LONGEST_HEADER):
            raise SafetensorError("its header is cut off")
        header = file.read(end - 8)
        try:
            entries = json.loads(header.decode()).items()  # always UTF-8, which is not guessed
            ends = [entry["data_offsets"][1] for name, entry in entries if name != "__metadata__"]
        except NONSENSE as error:
            raise SafetensorError(f"its header is no JSON of tensors ({error})") from error
        if (stated := max(ends, default=0)) != size - end:
            raise SafetensorError(f"it has {size - end} bytes of data, its header says {stated}")
        if mapped:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), end
        file.seek(0)
        return file.read(), end


def _each_once(entries: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; ValueError if it has a name twice."""
    made = dict(entries)
    if len(made) < len(entries):
        raise ValueError("its JSON has a name twice")
    return made


def _is_whole(description: dict[str, Any], content: Any, end: int) -> bool:
    """Whether a file has its checksum, or is from before there were any."""
    first = next(iter(description))
    if first != _CHECKSUM:  # a damaged name of the checksum is no file without one
        return first == "format" and _CHECKSUM not in description
    stated = str(description[_CHECKSUM]).encode()
    header = content[:end]
    at = header.find(stated)
    if len(stated) != len(_ZEROS) or at < 0:
        return False
    with memoryview(content) as whole, whole[end:] as data:
        return _checksum(_with(_ZEROS, header, at), [data]) == stated


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


# ---- where files may be ------------------------------------------------------------------------------


def check_regular(path: str | Path) -> None:
    """ValueError if the path has a null byte, or exists and is not a regular file."""
    if "\0" in os.fspath(path):
        raise ValueError(f"{os.fspath(path)!r} has a null byte, which no name of a file can have")
    try:
        mode = os.stat(path).st_mode  # asked once, since another process may remove the file meanwhile
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a directory, expected a file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a device, a pipe or a socket, expected a regular file")


def check_target(name: str, path: str | Path, replaces: bool = True) -> None:
    """Raise what writing a file would raise, before the work whose result it is to hold.

    Parameters
    ----------
    name : str
        What the message calls the path.
    path : str or Path
    replaces : bool
        Whether the file is replaced by a new one (see `write_atomically`), which needs a folder that can be
        written to, and not a file opened and written, which may also be a device.

    Raises
    ------
    ValueError
        The path has a null byte, its folder does not exist, or the file cannot be written.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise ValueError(f"{name} is {text!r}, which has a null byte")
    target = Path(os.path.realpath(text) if os.path.islink(text) else text)
    if not target.parent.is_dir():
        raise ValueError(f"{name} is {text!r}, but there is no folder {str(target.parent)!r}")
    exists = target.exists()
    if target.is_dir() or (replaces and exists and not target.is_file()):
        raise ValueError(f"{name} is {text!r}, which exists and is no file")
    needed = ([target] if exists else []) + ([target.parent] if replaces or not exists else [])
    if not all(os.access(each, os.W_OK) for each in needed):
        raise ValueError(f"{name} is {text!r}, which cannot be written")


# ---- writing all or nothing --------------------------------------------------------------------------


def write_atomically(path: str | Path, *content: bytes | memoryview) -> None:
    """Write a file all or nothing: see `write_parts_atomically`."""
    write_parts_atomically(path, content)


def write_parts_atomically(path: str | Path, content: Iterable[bytes | memoryview]) -> None:
    """Write a file so that whoever reads it, at any moment, sees the old or the new content whole.

    The content goes to a temporary file of a name of its own in the same folder, reaches the disk, and takes
    the target's place; then the folder reaches the disk. The mode of a replaced file, and as far as the
    system lets us its owner, are kept; a new file has those that any new file of the process has. A symbolic
    link stays one, and the file that it names is replaced.

    A writer that is killed leaves its temporary file. The next write to the same folder, of any target,
    removes it: see `remove_left_over`.

    Raises
    ------
    ValueError
        ``path`` exists and is not a regular file, or has a null byte.
    OSError
        It cannot be written. The error names ``path``, whose old content is unchanged (but where only the
        folder could not be brought to the disk).
    """
    check_regular(path)
    target = os.path.realpath(path)
    try:
        if os.path.islink(target):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if os.path.exists(target) and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        remove_left_over(os.path.dirname(target))
        _replace(target, content)
        _sync_folder(os.path.dirname(target))
    except OSError as error:  # it names the temporary file
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def _replace(target: str, content: Iterable[bytes | memoryview]) -> None:
    try:
        before = os.stat(target)
    except FileNotFoundError:
        before = None
    # Nobody may read what replaces a private file, not even before it has that file's mode.
    descriptor, temporary = _create_temporary(os.path.dirname(target), 0o666 if before is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                _take_over(temporary, before)
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # while the file is open it is locked, and nobody removes it
                os.replace(temporary, target)
        if fcntl is None:
            os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _take_over(temporary: str, before: os.stat_result) -> None:
    """Give a temporary file the owner, if we may, and the mode of the file that it replaces."""
    now = os.stat(temporary)
    group_is_kept = (
        (now.st_uid, now.st_gid) == (before.st_uid, before.st_gid)
        or _is_given(temporary, before.st_uid, before.st_gid)
        or now.st_gid == before.st_gid
        or _is_given(temporary, -1, before.st_gid)  # we may belong to the group of another's file
    )
    mode = before.st_mode & 0o777
    if not group_is_kept:  # the rights of a group are given to no other, but those that everybody has
        mode &= 0o707 | (mode & 0o007) << 3
    os.chmod(temporary, mode)


def _is_given(path: str, user: int, group: int) -> bool:
    """Give a file to a user (-1: its own) and a group; returns whether the system let us."""
    try:
        os.chown(path, user, group)
    except OSError:
        return False
    return True


def _create_temporary(folder: str, mode: int) -> tuple[int, str]:
    """Create a temporary file, locked for as long as it is open, and return its descriptor and its path."""
    while True:
        name = f".pyoptim-{_machine() or 'unknown0'}-{secrets.token_hex(8)}.tmp"
        temporary = os.path.join(folder, name)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # somebody took it for left over, in the moment before it was locked


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock a file until it is closed, by us or by the end of the process; returns whether that was done."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another writer has the lock, or the file system has none
        return False
    return True


@functools.cache
def _machine() -> str:
    """Return eight digits that name this machine since it was started, or nothing if the system has none.

    Containers on one machine have the same, and see each other's locks.
    """
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""
    return text[:8] if re.match("[0-9a-f]{8}", text) else ""


def remove_left_over(folder: str) -> None:
    """Remove the temporary files of killed writers from a folder.

    A writer locks its file (``flock``) while it lives, and the system takes the lock from a process that
    ends, however it ends; so numbers of processes, which are given again, do not matter. A file that can be
    locked is left over if this machine made it, which its name says. Locks of other machines are not always
    seen, so the files of others, and of this one before it was started again, must also be untouched for an
    hour. Files are left where they are on file systems without locks, and while a child that was forked in
    the middle of a save lives.
    """
    try:
        names = os.listdir(folder)
    except OSError:  # a folder that we may write to but not read
        return
    for name in names:
        found = _TEMPORARY.fullmatch(name)
        if not found:
            continue
        path = os.path.join(folder, name)
        with suppress(OSError):  # it is somebody else's, or has just gone
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                is_ours = found[1] == _machine()
                is_old = time.time() - os.fstat(descriptor).st_mtime > _LEFT_ALONE
                if (is_ours or is_old) and _lock(descriptor, wait=False):
                    os.unlink(path)
            finally:
                os.close(descriptor)


def _sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk, where the system can: then the new file outlives a crash."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows, or a folder that we may write to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)
