"""The optimizers as one writes them in NumPy, with PyTorch's default hyperparameters.

Whole-array expressions: in place where that is natural, one temporary per operation elsewhere. They are
what pyoptim is timed against and, in float64, what results are checked against, so they share nothing
with `pyoptim.formulas.rules`. All take the step t from 1, the parameter p, the gradient g and the states,
which begin at 0, and change p and the states.
"""

from __future__ import annotations

import functools

import numpy as np

from ..runtime.dtypes import Array


def sgd(t: int, p: Array, g: Array) -> None:
    p -= 1e-3 * g


def momentum(t: int, p: Array, g: Array, b: Array) -> None:
    b *= 0.9
    b += g
    p -= 1e-3 * b


def nesterov(t: int, p: Array, g: Array, b: Array) -> None:
    b *= 0.9
    b += g
    p -= 1e-3 * (g + 0.9 * b)


def adagrad(t: int, p: Array, g: Array, s: Array) -> None:
    s += g * g
    p -= 1e-2 * g / (np.sqrt(s) + 1e-10)


def rmsprop(t: int, p: Array, g: Array, v: Array) -> None:
    v *= 0.99
    v += (1 - 0.99) * g * g
    p -= 1e-2 * g / (np.sqrt(v) + 1e-8)


def rmsprop_centered_momentum(t: int, p: Array, g: Array, v: Array, mean: Array, b: Array) -> None:
    v *= 0.99
    v += (1 - 0.99) * g * g
    mean *= 0.99
    mean += (1 - 0.99) * g
    b *= 0.9
    b += g / (np.sqrt(np.abs(v - mean * mean)) + 1e-8)  # rounding can make v less than mean * mean
    p -= 1e-2 * b


def adadelta(t: int, p: Array, g: Array, v: Array, u: Array) -> None:
    v *= 0.9
    v += (1 - 0.9) * g * g
    delta = np.sqrt(u + 1e-6) / np.sqrt(v + 1e-6) * g
    u *= 0.9
    u += (1 - 0.9) * delta * delta
    p -= delta


def adam(t: int, p: Array, g: Array, m: Array, v: Array) -> None:
    m *= 0.9
    m += (1 - 0.9) * g
    v *= 0.999
    v += (1 - 0.999) * g * g
    p -= 1e-3 / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def adamw(t: int, p: Array, g: Array, m: Array, v: Array) -> None:
    p *= 1 - 1e-3 * 1e-2
    adam(t, p, g, m, v)


def amsgrad(t: int, p: Array, g: Array, m: Array, v: Array, top: Array) -> None:
    m *= 0.9
    m += (1 - 0.9) * g
    v *= 0.999
    v += (1 - 0.999) * g * g
    np.maximum(top, v, out=top)
    p -= 1e-3 / (1 - 0.9**t) * m / (np.sqrt(top / (1 - 0.999**t)) + 1e-8)


def adamax(t: int, p: Array, g: Array, m: Array, u: Array) -> None:
    m *= 0.9
    m += (1 - 0.9) * g
    u *= 0.999
    np.maximum(u, np.abs(g) + 1e-8, out=u)
    p -= 2e-3 / (1 - 0.9**t) * m / u


def nadam(t: int, p: Array, g: Array, m: Array, v: Array) -> None:
    m *= 0.9
    m += (1 - 0.9) * g
    v *= 0.999
    v += (1 - 0.999) * g * g
    root = np.sqrt(v / (1 - 0.999**t)) + 1e-8
    p -= 2e-3 * (1 - _mu(t)) / (1 - _mu_product(t)) * g / root
    p -= 2e-3 * _mu(t + 1) / (1 - _mu_product(t + 1)) * m / root


def _mu(t: int) -> float:
    return float(0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3)))


@functools.lru_cache(maxsize=8)
def _mu_product(t: int) -> float:
    return _mu(t) * _mu_product(t - 1) if t else 1.0


def radam(t: int, p: Array, g: Array, m: Array, v: Array) -> None:
    m *= 0.9
    m += (1 - 0.9) * g
    v *= 0.999
    v += (1 - 0.999) * g * g
    c1, c2, longest = 1 - 0.9**t, 1 - 0.999**t, 2 / (1 - 0.999) - 1
    length = longest - 2 * t * 0.999**t / c2
    if length <= 5:
        p -= 1e-3 / c1 * m
        return
    r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    p -= 1e-3 / c1 * r**0.5 * m / ((np.sqrt(v) + 1e-8) / c2**0.5)


def lion(t: int, p: Array, g: Array, m: Array) -> None:
    p -= 1e-4 * np.sign(0.9 * m + (1 - 0.9) * g)
    m *= 0.99
    m += (1 - 0.99) * g


def rprop(t: int, p: Array, g: Array, before: Array, size: Array) -> None:
    if t == 1:
        size[...] = 1e-2
    agreement = np.sign(g * before)
    size *= np.where(agreement > 0, 1.2, np.where(agreement < 0, 0.5, 1)).astype(p.dtype)
    np.clip(size, 1e-6, 50, out=size)
    before[...] = np.where(agreement < 0, 0, g)
    p -= size * np.sign(before)


def asgd(t: int, p: Array, g: Array, mean: Array) -> None:
    eta = 1e-2 / (1 + 1e-4 * 1e-2 * (t - 1)) ** 0.75
    p *= 1 - 1e-4 * eta
    p -= eta * g
    mean[...] = p  # the mean begins at step 1e6
