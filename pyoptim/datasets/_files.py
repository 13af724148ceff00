"""Find, download and verify the files of a data set."""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..runtime.extras import the_bar
from ..runtime.files import write_atomically
from ._formats import Arrays
from ._sources import SOURCES, Source

_TIMEOUT = 30.0  # seconds in which no byte arrives
_LIMIT = 256 * 2**20  # bytes, more than any file of these has: a larger one could exhaust the memory


class DatasetError(RuntimeError):
    """A file of a data set is missing, damaged, or not the one it should be."""


def read(name: str) -> Arrays:
    """x_train, y_train, x_test, y_test, maybe read-only, of one of `SOURCES`, or DatasetError.

    Files that are not on this machine are downloaded into the cache.
    """
    source = SOURCES[name]
    arrays: Arrays = []
    for file in source.files:
        path = _find(name, file)
        if path is None:
            arrays += _download(name, file)
            continue
        try:
            arrays += _decode(path.read_bytes(), source, file)
        except ValueError as error:
            raise DatasetError(
                f"{path}: {error}. Delete it, or replace it by {source.mirrors[0]}{file}"
            ) from error
    return arrays


def is_here(name: str) -> bool:
    """Whether all files of one of `SOURCES` are on this machine, so that nothing would be downloaded."""
    return all(_find(name, file) is not None for file in SOURCES[name].files)


def _folders(name: str) -> Iterator[Path]:
    """The folders that may hold the files: the user's own, if it is set, and then the cache."""
    if data := os.environ.get("PYOPTIM_DATA"):
        yield Path(data, name).expanduser()
    if cache := os.environ.get("PYOPTIM_CACHE"):
        yield Path(cache, name).expanduser()
    else:
        yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "pyoptim", name).expanduser()


def _find(name: str, file: str) -> Path | None:
    # An archive is not looked for uncompressed, since its digest is that of the .tar.gz.
    names = [file] if file.endswith(".tar.gz") else [file, file.removesuffix(".gz")]
    paths = (folder / each for folder in _folders(name) for each in names)
    return next((path for path in paths if path.is_file()), None)


def _decode(data: bytes, source: Source, file: str) -> Arrays:
    """Verify, uncompress and parse the bytes of a file; ValueError says what is wrong with them."""
    proven = _matches(data, source.files[file])
    if data[:2] == b"\x1f\x8b":  # the name does not tell: browsers uncompress files and keep their names
        data = _gunzip(data)
    if not (proven or _matches(data, source.files[file])):
        raise ValueError(f"wrong checksum: it is damaged, or not the published {file}")
    return source.parse(data)


def _matches(data: bytes, digests: str) -> bool:
    algorithms = {32: "md5", 64: "sha256"}
    return any(
        hashlib.new(algorithms[len(digest)], data, usedforsecurity=False).hexdigest() == digest
        for digest in digests.split()
    )


def _gunzip(data: bytes) -> bytes:
    import gzip
    import io

    try:
        with gzip.open(io.BytesIO(data)) as stream:
            content = stream.read(_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"truncated or damaged gzip file ({error})") from error
    if len(content) > _LIMIT:
        raise ValueError(f"more than {_LIMIT} bytes when uncompressed")
    return content


def _download(name: str, file: str) -> Arrays:
    from http.client import HTTPException

    source = SOURCES[name]
    *own, cache = _folders(name)
    failures = ""
    for mirror in source.mirrors:
        try:
            data = _get(mirror + file)
            arrays = _decode(data, source, file)
        except (OSError, HTTPException, ValueError) as error:
            failures += f"\n  {mirror}{file}: {error or type(error).__name__}"
        else:
            _store(cache / file, data)
            return arrays
    # The message names all missing files, not only this one, for those who copy them by hand.
    missing = [each for each in source.files if _find(name, each) is None]
    raise DatasetError(
        f"{name}: {file} is neither in $PYOPTIM_DATA/{name} ({own[0] if own else 'not set'}) nor "
        f"in the cache ({cache}), and could not be downloaded:{failures}\nPut into either folder:"
        + "".join(f"\n  {each} from {source.mirrors[0]}{each}" for each in missing)
    )


def _get(url: str) -> bytes:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    data = bytearray()
    try:
        with urlopen(url, timeout=_TIMEOUT) as response:
            size = int(response.headers.get("Content-Length") or 0)
            # disable=None shows no bar if the output is not a terminal. CIFAR-10 can take half an hour.
            with the_bar()(desc=url, total=size, unit="B", unit_scale=True, disable=None) as bar:
                while len(data) <= _LIMIT and (chunk := response.read(2**16)):
                    data += chunk
                    bar.update(len(chunk))
    except HTTPError as error:
        error.close()  # it would keep the connection open
        raise
    if len(data) > _LIMIT:
        raise ValueError(f"more than {_LIMIT} bytes")
    return bytes(data)


def _store(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)  # nobody ever finds half of it
    except (OSError, ValueError) as error:  # the data are here and verified, so the load can go on
        warnings.warn(
            f"{path} could not be written, so the next load downloads it again ({error}); "
            "the environment variable PYOPTIM_CACHE names another folder",
            RuntimeWarning,
            stacklevel=5,  # the caller of load
        )
