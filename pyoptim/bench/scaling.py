"""A model of a training step by many ranks: what `pyoptim bench distributed` predicts by.

A rank computes its part of the batch at a measured rate, and sends its gradients through a network that
takes alpha seconds for a message and beta for a byte of it (Hockney 1994). An allreduce goes the quicker of
two ways (Thakur, Rabenseifner & Gropp 2005): round a ring, which sends least, or up and down a tree, which
has fewest messages one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Network(NamedTuple):
    """What a message from one rank to another takes, in seconds: ``alpha + bytes * beta``."""

    alpha: float
    beta: float


class Compute(NamedTuple):
    """What a rank takes for a step, in seconds: ``fixed + examples * example``, among others ``+ copies``."""

    fixed: float  # the update above all
    example: float  # forward and backward pass of one example
    copies: float  # gradients written to the message, and read from it


class Part(NamedTuple):
    """A layer that has parameters."""

    share: float  # of the time of an example, between 0 and 1
    size: int  # bytes of its gradients


# Of an example's time: the backward pass of a dense layer is two products, the forward pass one.
FORWARD = 1 / 3


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (a, b), both >= 0, of ``seconds = a + size * b``, by least squares of the relative errors."""
    size, seconds = np.array(points, np.float64).T
    columns = np.stack([np.ones(len(size)), size], 1) / seconds[:, None]
    tries = [(0.0, 0.0)]
    for kept in ([0, 1], [0], [1]):
        found = np.zeros(2)
        found[kept] = np.linalg.lstsq(columns[:, kept], np.ones(len(size)), rcond=None)[0]
        tries.append((float(found[0]), float(found[1])))
    allowed = [one for one in tries if min(one) >= 0]
    return min(allowed, key=lambda one: float(((columns @ one - 1) ** 2).sum()))


def network_of(points: Sequence[tuple[float, float]]) -> Network:
    """Return the network between two ranks, from the bytes and seconds of their allreduces by a ring."""
    a, b = line(points)
    return Network(a / 2, b)


def ring(ranks: int, size: float, network: Network) -> float:
    """Return the seconds of an allreduce round a ring: each rank sends 2*(ranks - 1) parts of the message."""
    return 2 * (ranks - 1) * (network.alpha + size / ranks * network.beta)


def tree(ranks: int, size: float, network: Network) -> float:
    """Return the seconds of an allreduce up and down a binary tree: a whole message for each level."""
    return 2 * math.ceil(math.log2(ranks)) * (network.alpha + size * network.beta)


def allreduce(ranks: int, size: float, network: Network) -> float:
    """Return the seconds of an allreduce by the quicker of both ways."""
    return min(ring(ranks, size, network), tree(ranks, size, network))


def step(
    batch: int,
    ranks: int,
    compute: Compute,
    parts: Sequence[Part],
    network: Network,
    overlap: bool = False,
) -> float:
    """Return the seconds of a step on a batch of all ranks.

    With ``overlap`` a layer's gradients are sent as soon as its backward pass is done, one layer after the
    other from the last to the first, and in that time a rank computes as if nothing else went on.
    """
    own = math.ceil(batch / ranks) * compute.example
    if ranks == 1:
        return compute.fixed + own
    if not overlap:
        size = sum(part.size for part in parts)
        return compute.fixed + compute.copies + own + allreduce(ranks, size, network)
    ready, sent = FORWARD * own, 0.0
    for part in reversed(parts):
        ready += (1 - FORWARD) * own * part.share
        sent = max(ready, sent) + allreduce(ranks, part.size, network)
    return compute.fixed + compute.copies + sent


def pays_from(
    ranks: int, compute: Compute, parts: Sequence[Part], network: Network, most: int = 1 << 20
) -> int | None:
    """Return the smallest power of two of a batch that so many ranks are quicker with than one, or None."""
    batch = 1
    while batch <= most:
        if step(batch, ranks, compute, parts, network) < step(batch, 1, compute, parts, network):
            return batch
        batch *= 2
    return None


def best_ranks(batch: int, most: int, compute: Compute, parts: Sequence[Part], network: Network) -> int:
    """Return the power of two of ranks, at most so many, whose step on a batch takes the least time."""
    counts = [1 << k for k in range(most.bit_length())]
    return min(counts, key=lambda ranks: step(batch, ranks, compute, parts, network))


def shared(compute: Compute, ranks: int, processors: int) -> Compute:
    """Return what a rank takes where more ranks than processors are on one machine, and take turns."""
    crowd = max(1.0, ranks / processors)
    return Compute(*(seconds * crowd for seconds in compute))


def dense_parts(widths: Sequence[int], itemsize: int) -> list[Part]:
    """Return the layers of a network of dense layers, whose time is that of their products."""
    products = [a * b for a, b in pairwise(widths)]
    return [
        Part(product / sum(products), (product + width) * itemsize)
        for product, width in zip(products, widths[1:], strict=True)
    ]
