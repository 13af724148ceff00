"""Clipping, accumulation and the check for non-finite gradients, of steps on arrays in a GPU's memory."""

import numpy as np
import pytest
from support.device import arrays, assert_same, cpu_step, like, states, there
from support.doubles import There
from support.optimizers import OPTIMIZERS

import pyoptim as po


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"nonfinite": "skip"}], ids=str)
def test_clipping(gpu, options, rng):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    kwargs = {"momentum": 0.9, "max_grad_norm": 0.5, **options}
    cpu = po.SGD([{"params": here, "maximize": True}], **kwargs)
    own = po.SGD([{"params": there(copies), "maximize": True}], **kwargs)
    for scale in (1, 1e-4, 1, 1e-4):  # longer and shorter than the limit
        grads = like(rng, here, scale)
        cpu_step(cpu, [grads])
        own.step([there(grads)])
    for a, b in zip(copies, here, strict=True):
        np.testing.assert_allclose(
            a, b, rtol=4 * np.finfo(a.dtype).eps, atol=1e-7 if a.dtype == "f4" else 1e-15
        )


def test_clipping_does_not_wait(recorder, rng):
    params, grads = arrays(rng), there(arrays(rng))
    own = po.Adam(there(params), max_grad_norm=1.0)
    own.step(grads)
    recorder.log.clear()
    own.step(grads)
    assert not recorder.all("synchronize")
    assert [kernel for _, kernel, _ in recorder.all("launch")] == [
        "sum_of_squares<float>", "total_squares<double>", "clip_factor<double>", "scale_rows<float>",
        "step<rule_named::adam, float>",
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite(gpu, bad, rng):
    params, grads = arrays(rng), arrays(rng)
    grads[1][7] = bad
    before = [p.copy() for p in params]
    own = po.Adam(there(params), nonfinite="raise")
    with pytest.raises(ValueError, match=r"grads\[1\] holds NaN or infinity"):
        own.step(there(grads))
    assert_same(params, before)
    assert states(own)[0]["step"] == 0
    own.nonfinite = "skip"
    own.step(there(grads))
    assert own.skipped == 1
    assert_same(params, before)
    own.nonfinite = "ignore"
    own.step(there(grads))
    assert states(own)[0]["step"] == 1
    assert np.isnan(params[1][7])


def test_a_norm_that_overflows_is_no_reason_to_skip(gpu):
    p = np.ones(2)
    own = po.SGD(There(p), lr=1e-200, nonfinite="skip")
    own.step(There(np.full(2, 1e200)))
    assert own.skipped == 0
    assert_same(p, np.zeros(2))


def test_accumulation(gpu, rng):
    here = arrays(rng, (np.float32, np.float64))
    copies = [p.copy() for p in here]
    cpu, own = po.Adam(here, accumulate=3), po.Adam(there(copies), accumulate=3)
    for i in range(8):
        grads = like(rng, here)
        cpu_step(cpu, grads)
        own.step(there(grads))
        assert_same(copies, here)
        if i == 4:  # in the middle, to and fro
            saved = own.state_dict()
            assert saved["accumulated"]["count"] == 2
            assert_same(saved["accumulated"]["sums"], cpu.state_dict()["accumulated"]["sums"])
            own, cpu = po.Adam(there(copies), accumulate=3), po.Adam(here, accumulate=3)
            own.load_state_dict(saved)
            cpu.load_state_dict(saved)
    assert_same(states(own), states(cpu))


def test_a_rate_that_cannot_be_leaves_the_sums_alone(gpu):
    p, rate = np.zeros(2), [np.nan]
    own = po.SGD(There(p), lr=lambda step: rate[0], accumulate=2)
    own.step(There(np.ones(2)))
    with pytest.raises(ValueError, match="lr is nan"):
        own.step(There(np.ones(2)))
    rate[0] = 1.0
    own.step(There(np.full(2, 3.0)))
    assert p.tolist() == [-2, -2]


@pytest.mark.parametrize("scale", [1e-170, 1e155, 1e300])
def test_norms_and_clipping_of_every_size(gpu, scale, rng):
    shapes = [(4097,), (3, 4), (0,)]
    directions = [rng.normal(size=shape) for shape in shapes]
    length = np.sqrt(sum(np.square(d).sum() for d in directions))
    grads = [*(scale / length * d for d in directions), np.zeros(9, np.float32)]
    limit = min(1.0, scale / 2)
    factor = limit / (scale + 1e-6)
    assert po.gradients.global_norm(there(grads)) == pytest.approx(scale)
    for options in ({}, {"nonfinite": "raise"}, {"accumulate": 2}):
        params = [np.zeros_like(g) for g in grads]
        own = po.SGD(there(params), lr=1.0, max_grad_norm=limit, **options)
        for _ in range(options.get("accumulate", 1)):
            own.step(there(grads))
        for p, g in zip(params, grads, strict=True):
            np.testing.assert_allclose(-p, factor * g, rtol=1e-12)
    clipped = [g.copy() for g in grads]
    assert po.gradients.clip_grad_norm_(there(clipped), limit) == pytest.approx(scale)
    for c, g in zip(clipped, grads, strict=True):
        np.testing.assert_allclose(c, factor * g, rtol=1e-12)
    with pytest.raises(ValueError, match="beyond all floats"):
        po.gradients.clip_grad_norm_(there([np.full(4, 1.7e308)]), 1.0)
    with pytest.raises(ValueError, match="expected finite gradients"):
        po.gradients.clip_grad_norm_(there([np.full(4, 1.7e308), np.array([np.nan])]), 1.0)


@pytest.mark.parametrize("name", ["LARS", "LAMB", "Adafactor", "Muon"])
@pytest.mark.parametrize(("of_p", "of_g"), [(900, 480), (-900, 0), (0, 480)])
def test_steps_by_norms_of_every_size(gpu, name, of_p, of_g, rng):
    shapes = (3, 5), (17, 9) if name == "Muon" else (130, 130)
    here = [np.ldexp(rng.normal(size=shape), of_p) for shape in shapes]
    start = [p.copy() for p in here]
    copies = [p.copy() for p in here]
    make = OPTIMIZERS[name]
    cpu, own = make(here), make(there(copies))
    for _ in range(3):
        grads = [np.ldexp(g, of_g) for g in like(rng, here)]
        cpu_step(cpu, grads)
        own.step(there(grads))
    for a, b, before in zip(copies, here, start, strict=True):
        assert np.isfinite(b).all()
        assert (b != before).any()
        np.testing.assert_allclose(a - before, b - before, rtol=1e-6, atol=4 * np.spacing(abs(before).max()))
