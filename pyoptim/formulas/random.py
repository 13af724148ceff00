"""Counter-based random numbers: the Python twin of ``csrc/formulas/random.hpp``."""

from __future__ import annotations

import numpy as np

from ..runtime.dtypes import Array

_BLOCK = 64  # positions whose words lie side by side: see random.hpp
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: Array, key: tuple[int, int]) -> Array:
    """Philox4x32-10 (Salmon et al. 2011): four words for each counter.

    Parameters
    ----------
    counter : uint32 array (4, n)
    key : two numbers in [0, 2**32)

    Returns
    -------
    uint32 array (4, n)
    """
    a, b, c, d = counter.astype(np.uint64)
    key0, key1 = key
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b = (q >> _HALF) ^ b ^ np.uint64(key0), q & _LOW
        c, d = (p >> _HALF) ^ d ^ np.uint64(key1), p & _LOW
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d]).astype(np.uint32)


def stream_words(seed: int, step: int, n: int) -> Array:
    """Return a uint32 for each of n positions, in the order (blocks, 4, 16); n is rounded up to blocks."""
    blocks = -(-n // _BLOCK)
    first = np.arange(blocks * _BLOCK // 4, dtype=np.uint64)
    counter = np.empty((4, first.size), np.uint32)
    counter[0], counter[1] = first & _LOW, first >> _HALF
    counter[2], counter[3] = step & 0xFFFFFFFF, step >> 32
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return words.reshape(4, blocks, _BLOCK // 4).transpose(1, 0, 2)


def dropped(seed: int, step: int, p: float, n: int) -> Array:
    """Return a mask of the n positions that is true where dropout drops an element."""
    threshold = np.uint32(min(np.rint(p * 2.0**32), 2.0**32 - 1))
    mask: Array = stream_words(seed, step, n).reshape(-1)[:n] < threshold
    return mask


def normal(seed: int, step: int, n: int) -> Array:
    """n standard normal values (float64), by Box and Muller."""
    words = stream_words(seed, step, n).astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[:, 0::2] + 1) * 2.0**-32))
    angle = words[:, 1::2] * (2 * np.pi / 2.0**32)
    values = np.empty_like(words)
    values[:, 0::2], values[:, 1::2] = radius * np.cos(angle), radius * np.sin(angle)
    return values.reshape(-1)[:n]
