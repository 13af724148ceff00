"""Steps in several Python threads, with a GIL or without: the bits of one thread, and nothing crashes."""

import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pyoptim as po

THREADS, STEPS = 4, 60


def trained(seed, steps=STEPS):
    """What a few parameters of two types are after some steps, with options that change on the way."""
    rng = np.random.default_rng(seed)
    p = [rng.normal(size=257).astype(np.float32), rng.normal(size=(3, 5))]
    optimizer = po.Adam([{"params": p[:1]}, {"params": p[1:], "lr": lambda step: 0.1 / (1 + step)}])
    for step in range(steps):
        if step == steps // 2:
            optimizer.param_groups[0]["betas"] = (0.8, 0.99)
        optimizer.step([[np.sin(x)] for x in p])
    return p


def test_each_thread_steps_its_optimizer_as_one_thread_would():
    expected = [trained(seed) for seed in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(trained, range(THREADS)))
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a == b).all()


def test_one_optimizer_is_stepped_and_changed_by_several_threads():
    """Which thread comes first is open; each step is whole, none is lost, and memory stays sound."""
    p, g = np.ones(64), np.ones(64)
    optimizer = po.SGD(p, lr=2.0**-20)

    def work(_):
        for step in range(STEPS):
            optimizer.param_groups[0]["momentum"] = 0.0 if step % 2 else 0
            optimizer.step(g)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert (p == 1 - THREADS * STEPS * 2.0**-20).all()


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_the_gil_stays_off():
    assert not sys._is_gil_enabled()
