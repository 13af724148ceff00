"""Optimizers on a real GPU; elsewhere these tests are skipped."""

import numpy as np
import pytest
from support.device import (
    ELEMENTWISE,
    SHAPES,
    TRUSTING,
    arrays,
    assert_kept_alike,
    assert_orthogonal_alike,
    assert_same,
    cpu_step,
    cupy_array,
    fetched,
    like,
    packed_arrays,
    states,
    torch_array,
)
from support.optimizers import OPTIMIZERS

import pyoptim as po


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *TRUSTING])
def test_a_gpu_has_the_cpu_s_bits(name, backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    here = arrays(rng, (np.float32, np.float64), [*SHAPES, (130, 130)])
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = OPTIMIZERS[name](here), OPTIMIZERS[name](params)
        for _ in range(3):
            grads = like(rng, here)
            with po.use_backend("native"):  # whose norms have the same order of sums
                cpu.step(grads)
            own.step([make(g) for g in grads])
        assert_same(states(own), states(cpu))
        for p, expected in zip(params, here, strict=True):
            assert_same(fetched(p), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("kinds", [("float32",), ("float16", "float32"), ("bfloat16",)], ids=str)
@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_a_gpu_has_the_cpu_s_bits_of_packed_arrays(kinds, state_dtype, rounding, backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    if make is cupy_array and "bfloat16" in kinds:
        return  # CuPy has none
    here = packed_arrays(rng, kinds)
    options = {"state_dtype": state_dtype, "rounding": rounding, "accumulate": 2}
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = po.AMSGrad(here, **options), po.AMSGrad(params, **options)
        averages = [po.averages.EMA(optimizer, 0.9) for optimizer in (cpu, own)]
        for _ in range(4):
            grads = packed_arrays(rng, kinds)
            cpu_step(cpu, grads)
            own.step([make(g) for g in grads])
        assert_kept_alike(states(own), states(cpu))
        assert_same(averages[1].state_dict()["averages"], averages[0].averages)
        for p, expected in zip(params, here, strict=True):
            assert_same(fetched(p), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_whole_matrices_on_a_gpu(name, backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    here = arrays(rng, (np.float32, np.float64), [(5, 3), (300, 700), (700, 130)])
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = OPTIMIZERS[name](here, lr=0.1), OPTIMIZERS[name](params, lr=0.1)
        for _ in range(3):
            grads = like(rng, here)
            cpu_step(cpu, grads)
            own.step([make(g) for g in grads])
        assert_orthogonal_alike([fetched(p) for p in params], here, 3, 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [cupy_array, torch_array])
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
def test_a_gpu_averages_and_looks_ahead(backend, make, rng):
    if backend not in po.available_backends():
        pytest.skip(f"needs a GPU: {backend} is not available")
    here = arrays(rng, (np.float32, np.float64))
    options = {"lr": 0.1, "momentum": 0.9, "velocity": "classical"}
    with po.use_backend(backend):
        params = [make(p.copy()) for p in here]
        cpu, own = po.SGD(here, **options), po.SGD(params, **options)
        averages = [po.averages.EMA(optimizer, 0.9) for optimizer in (cpu, own)]
        for _ in range(3):
            grads = like(rng, here)
            with cpu.lookahead(), own.lookahead():
                for p, expected in zip(params, here, strict=True):
                    assert_same(fetched(p), expected)
            cpu_step(cpu, grads)
            own.step([make(g) for g in grads])
        assert_same(averages[1].state_dict()["averages"], averages[0].averages)
        with averages[0].applied(), averages[1].applied():
            for p, expected in zip(params, here, strict=True):
                assert_same(fetched(p), expected)
