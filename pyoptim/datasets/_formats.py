"""The two file formats: IDX (MNIST, Fashion-MNIST) and the binary version of CIFAR-10."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[np.uint8]]

_RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane, row by row


def parse_idx(data: bytes) -> Arrays:
    """One read-only array from an IDX file of unsigned bytes; ValueError if it is none.

    The file: two zeros, the type (8), the number of dimensions, each of them as a big-endian
    32-bit number, then the values in C order.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if len(data) != start + math.prod(shape):
        raise ValueError(f"{len(data)} bytes, but the header says an array of shape {shape}")
    return [np.frombuffer(data, np.uint8, offset=start).reshape(shape)]


def parse_cifar10(data: bytes) -> Arrays:
    """x_train, y_train, x_test, y_test from the uncompressed archive; ValueError if it is none."""
    import tarfile

    def batch(name: str) -> NDArray[np.uint8]:
        member = archive.extractfile(f"cifar-10-batches-bin/{name}.bin")
        content = member.read() if member else b""
        if not content or len(content) % _RECORD:
            raise ValueError(f"{name}.bin in it is not made of records of {_RECORD} bytes")
        return np.frombuffer(content, np.uint8).reshape(-1, _RECORD)

    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            train = np.concatenate([batch(f"data_batch_{i}") for i in range(1, 6)])
            test = batch("test_batch")
    except (tarfile.TarError, KeyError) as error:
        raise ValueError(f"not the archive of CIFAR-10: {error}") from error
    return [
        part for records in (train, test) for part in (records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])
    ]
