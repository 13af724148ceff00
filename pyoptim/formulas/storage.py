"""Arrays stored in fewer bits than they are computed in: the twin of ``csrc/formulas/storage.hpp``.

``float16`` and ``bfloat16`` are IEEE's and the upper half of a float32. The 8-bit kinds hold, for every
block of 256 elements, a float32 scale and tiny floats: 3 bits of mantissa, 4 bits of exponent beside a sign
or 5 without, less the smallest of them, so that 0 is among them. That is in the spirit of Dettmers et al.
2022, but computed instead of searched for in a table. States are rounded stochastically: a moving average
changes by less than such a number's spacing in a step, and rounded to nearest would stand still.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..runtime.dtypes import FLOATS, Array, bfloat16

BLOCK = 256  # elements that share a scale

# States that are never negative can do without a sign.
_UNSIGNED = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta", "step_size"}


class Packed(NamedTuple):
    """An array in storage: contiguous data, and, if they have 8 bits, a scale for each block."""

    kind: str  # float32, float16, bfloat16, signed8 or unsigned8
    data: Array
    scale: Array | None = None


class PackedArray(NamedTuple):
    """A parameter with its states, for a backend's ``PackedStepper``."""

    group: int
    param: Packed
    master: Array | None  # float32 values that are updated, if param is only their rounding
    states: list[Packed]


def _raw(array: Array) -> Array:
    """An array of 16-bit floats as a view of their bits; any other as it is."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def widened(array: Array) -> Array:
    """An array of 16-bit floats converted to float32; any other as it is."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def state_arrays(
    name: str, shape: tuple[int, ...], kind: str | None
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return names, shapes and dtypes of the arrays that store a state, for ``state_dtype`` kind."""
    if kind == "bfloat16":
        return {name: (shape, bfloat16())}
    if kind == "int8":
        blocks = -(-math.prod(shape) // BLOCK)
        return {name: (shape, np.uint8), f"{name}_scale": ((blocks,), np.float32)}
    return {name: (shape, np.float32)}


def pack_state(name: str, arrays: dict[str, Array]) -> Packed:
    """Return the state ``name`` from a parameter's arrays."""
    data = arrays[name]
    if data.dtype == np.uint8:
        return Packed("unsigned8" if name in _UNSIGNED else "signed8", data, arrays[f"{name}_scale"])
    return Packed(data.dtype.name, data)


def read_state(name: str, arrays: dict[str, Array]) -> Array:
    """The values of the state ``name``, decoded where it is kept in fewer bits."""
    data = arrays[name]
    if data.dtype in FLOATS:
        return data
    return decode(pack_state(name, arrays)).reshape(data.shape)


def random_bits(index: Array, key: int) -> Array:
    """Return a random uint32 for each uint32 index: see ``random.hpp``."""
    with np.errstate(over="ignore"):
        x = index * np.uint32(0x9E3779B1) + np.uint32(key)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x21F0AAAD)
        x ^= x >> np.uint32(15)
    return x


def hash_key(index: int, key: int) -> int:
    """`random_bits` of one index, in Python's integers: NumPy's would take as long as a small step."""
    x = (index * 0x9E3779B1 + key) & 0xFFFFFFFF
    x ^= x >> 16
    x = x * 0x21F0AAAD & 0xFFFFFFFF
    return x ^ x >> 15


def decode(packed: Packed) -> Array:
    """The values, as a float32 vector."""
    data = _raw(packed.data).reshape(-1)
    if packed.kind == "float32":
        return data
    if packed.kind == "bfloat16":
        return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if packed.kind == "float16":
        return data.view(np.float16).astype(np.float32)
    assert packed.scale is not None
    signed = packed.kind == "signed8"
    code = data.astype(np.uint32)
    bits = ((code & np.uint32(127 if signed else 255)) + np.uint32(_bias(signed))) << np.uint32(20)
    with np.errstate(all="ignore"):
        scale = np.repeat(packed.scale, BLOCK)[: data.size]
        values: Array = (bits.view(np.float32) - _offset(signed)) * scale
    if signed:
        values = (values.view(np.uint32) ^ ((code & np.uint32(128)) << np.uint32(24))).view(np.float32)
    return values


def _bias(signed: bool) -> int:
    return (127 - (15 if signed else 31)) << 3


def _offset(signed: bool) -> Any:
    return np.float32(2.0 ** (-15 if signed else -31))


def encode(packed: Packed, x: Array, key: int, stochastic: bool, first: int = 0) -> None:
    """Write a float32 vector, rounded to nearest even or at random.

    ``key`` names the stream of random numbers, of which ``x[0]`` takes number ``first`` (modulo 2^32).
    """
    out = _raw(packed.data).reshape(-1)
    if packed.kind == "float32":
        out[...] = x
        return
    if packed.scale is None and not stochastic:
        out[...] = _nearest(packed.kind, x)
        return
    random = random_bits(np.arange(first, first + x.size).astype(np.uint32), key)
    with np.errstate(all="ignore"):
        if packed.kind == "bfloat16":
            out[...] = _to_bfloat16(x, random)
        elif packed.kind == "float16":
            out[...] = _to_float16(x, random)
        else:
            assert packed.scale is not None
            _to_block8(x, random, packed.kind == "signed8", out, packed.scale)


def _nearest(kind: str, x: Array) -> Array:
    """The bits of 16-bit floats, rounded to nearest even."""
    with np.errstate(all="ignore"):
        return _to_bfloat16(x, None) if kind == "bfloat16" else _to_float16(x, None)


def take_over(master: Array, param: Packed) -> None:
    """Take into a master what somebody has written into its 16-bit parameter since the last step.

    These are the parameter's values where it differs, in a bit, from the master rounded to nearest.
    """
    written = _nearest(param.kind, master) != _raw(param.data).reshape(-1)
    if written.any():
        np.copyto(master, decode(param), where=written)


def _to_bfloat16(x: Array, random: Array | None) -> Array:
    bits = x.view(np.uint32)
    high = bits >> np.uint32(16)
    up = (high & 1) + np.uint32(0x7FFF) if random is None else random & np.uint32(0xFFFF)
    code: Array = np.where(np.isnan(x), high | np.uint32(0x40), (bits + up) >> np.uint32(16))
    return code.astype(np.uint16)


def _to_float16(x: Array, random: Array | None) -> Array:
    if random is None:
        nearest: Array = x.astype(np.float16).view(np.uint16)
        return nearest
    sign = x.view(np.uint32) & np.uint32(0x80000000)
    bits = x.view(np.uint32) ^ sign
    normal = (bits + (random & np.uint32(0x1FFF)) - np.uint32(0x38000000)) >> np.uint32(13)
    # Below 2^-14 the spacing is 2^-24 throughout.
    steps = np.minimum(bits.view(np.float32) * np.float32(2.0**24), np.float32(2048))
    whole = np.where(steps < 2048, steps, np.float32(2048)).astype(np.uint32)
    rest = (steps - whole.astype(np.float32)) * np.float32(2.0**20)
    part = rest.astype(np.uint32) | (rest > np.floor(rest))
    subnormal = whole + ((part + (random & np.uint32(0xFFFFF))) >> np.uint32(20))
    code = np.minimum(np.where(bits < 0x38800000, subnormal, normal), np.uint32(0x7C00))
    code = np.where(bits > 0x7F800000, np.uint32(0x7E00), code) | (sign >> np.uint32(16))
    packed: Array = code.astype(np.uint16)
    return packed


def _to_block8(x: Array, random: Array, signed: bool, out: Array, scale: Array) -> None:
    top_value = np.float32(1.875) - _offset(signed)
    magnitude = np.abs(x)
    padded = np.zeros(scale.size * BLOCK, np.float32)
    padded[: x.size] = magnitude
    top = padded.reshape(-1, BLOCK).max(axis=1, initial=0)
    counts = top > np.float32(2.0**-100)
    inverse = np.where(counts, top_value / top, np.float32(0))
    scale[...] = np.where(counts | np.isnan(top), top / top_value, np.float32(0))
    y = magnitude * np.repeat(inverse, BLOCK)[: x.size] + _offset(signed)
    code = ((y.view(np.uint32) + (random & np.uint32(0xFFFFF))) >> np.uint32(20)) - np.uint32(_bias(signed))
    code = np.minimum(code.view(np.int32), 127 if signed else 255).astype(np.uint32)
    if signed:
        code |= (x.view(np.uint32) >> np.uint32(24)) & np.uint32(128)
    out[...] = code.astype(np.uint8)
