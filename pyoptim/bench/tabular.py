"""``pyoptim bench tabular``: training steps of the small networks that tables ask for.

The competitors are those of `training`: PyTorch's eager loop and an epoch that JAX scans.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator

import numpy as np

from .case import Case, Family, Options, Row, Target
from .timing import SWEEP, Run
from .training import _Work, checked

# 1 to 4 hidden layers of 16 to 512 units, 3 to 300 inputs, 2 to 20 classes.
_NETS = (
    (3, 16, 2), (30, 100, 4), (64, 100, 10), (13, 64, 64, 2), (20, 32, 32, 32, 32, 5),
    (54, 128, 128, 128, 7), (100, 256, 256, 10), (300, 512, 20),
)  # fmt: skip
# The examples of a run, by the size of a batch.
_EXAMPLES = {1: 1_000, 32: 6_400, 200: 20_000, 1024: 20_480}
_QUICK_EXAMPLES = {8: 80}


def _cases(options: Options) -> Generator[Case]:
    nets, examples = (_NETS[:1], _QUICK_EXAMPLES) if options.quick else (_NETS, _EXAMPLES)
    for widths, batch in itertools.product(nets, examples):
        for optimizer, norm in itertools.product(("Adam", "SGD"), (False, True)):
            if norm and batch == 1:  # a batch of one has no variance
                continue
            name = f"{'-'.join(map(str, widths))} {optimizer}{' BatchNorm' if norm else ''}"
            yield step(name, widths, (optimizer, batch, norm), examples[batch], options.peers)


def step(
    name: str,
    widths: tuple[int, ...],
    how: tuple[str, int, bool],
    examples: int,
    peers: tuple[str, ...],
) -> Case:
    """A training step of a network; how: the optimizer, the batch, and whether it has BatchNorm."""
    sizes = [m * n for m, n in itertools.pairwise(widths)]
    flops = 2 * (3 * sum(sizes) - sizes[0]) * how[1]
    prepare = functools.partial(_prepare, widths, how, examples, peers)
    return Case(name, how[1], 4 * sum(sizes), prepare, flops, how[1] / examples)


def _prepare(
    widths: tuple[int, ...], how: tuple[str, int, bool], examples: int, peers: tuple[str, ...]
) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, widths[0]), np.float32)
    work = _Work(*how, x, rng.integers(0, widths[-1], examples), "cpu", widths)
    return checked(work, peers, ("fused",))


def _times(peer: str, least: int, most: int) -> Callable[[Row], float | None]:
    return lambda row: row.faster_than(peer) if least <= row.size <= most else None


FAMILY = Family(
    _cases,
    [
        Target(f"steps, batch {text}: times {peer}", bound, _times(peer, least, most))
        for peer, bounds in (("jax", (1.5, 1.2)), ("torch", (4, 2)))
        for (text, least, most), bound in zip(
            (("1 to 200", 1, 200), ("above", 201, 1 << 62)), bounds, strict=True
        )
    ],
    SWEEP,
    "steps of networks for tables, with SGD and Adam: some 10 minutes (--match, --quick)",
)
