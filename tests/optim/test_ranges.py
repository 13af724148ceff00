"""Gradients and parameters of every size: rules, norms and clipping give what exact arithmetic gives."""

import math

import numpy as np
import pytest
from oracles.optimizers import CASES, ORACLES, case_id
from support.optimizers import make

import pyoptim as po
from pyoptim import gradients, nn
from pyoptim.formulas.rules import root_scale
from pyoptim.runtime import dispatch

LONG = np.longdouble
wide = pytest.mark.skipif(np.finfo(LONG).maxexp < 4096, reason="long double has the range of double")
SHARED = {"lr", "maximize", "weight_decay"}
PLAIN = [
    case for case in CASES if not SHARED & set(case[1]) and case[0] not in ("AdamW", "AMSGrad")
]  # Adam's
ELEMENTWISE = [case for case in PLAIN if case[0] not in ("LARS", "LAMB", "Adafactor", "Muon")]
TENSORS = [case for case in PLAIN if case not in ELEMENTWISE]


def exact_steps(case, p, grads):
    """The oracle's parameters after these steps, in long double."""
    p, state = p.astype(LONG), {}
    for t, g in enumerate(grads, 1):
        p = ORACLES[case[0]].function(t, p, g.astype(LONG), state, **case[1])
    return p


@wide
@pytest.mark.parametrize("case", ELEMENTWISE, ids=case_id)
def test_every_rule_over_all_gradients_whose_squares_are_in_range(dtype, case):
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp, info.maxexp // 2 - 1)
    g = (1.25 * np.ldexp(np.ones(len(exponents)), exponents)).astype(dtype)
    p = np.zeros_like(g)
    optimizer = make(case, p)
    grads = [g, g / 2, -g]
    with np.errstate(all="ignore"):
        expected = exact_steps(case, p, grads)
    for gradient in grads:
        optimizer.step(gradient)
    # What is subnormal on the way has lost bits, which a division by eps makes larger.
    lost = 64 * float(info.smallest_subnormal) * 1e10
    np.testing.assert_allclose(p.astype(LONG), expected, rtol=300 * info.eps, atol=lost)


@pytest.mark.parametrize("make", [po.Adam, po.AdamW, po.AMSGrad, po.NAdam, po.LAMB], ids=lambda m: m.__name__)
def test_the_first_steps_of_adam_have_the_range_of_the_second_moment(backend, dtype, make):
    """v is (1 - beta2) g^2, so v / c2, or g^2, may be beyond the type where v is not."""
    largest = math.sqrt(float(np.finfo(dtype).max)) / math.sqrt(1e-3)
    for g in (0.04 * largest, 0.5 * largest, 0.98 * largest):
        p = np.zeros(4, dtype)
        optimizer, small = make(p, lr=1e-3), np.zeros(4, dtype)
        optimizer.step(np.full(4, g, dtype))
        make(small, lr=1e-3).step(np.full(4, 1e3, dtype))
        np.testing.assert_allclose(p, small, rtol=1e-5)
        assert (p < -5e-4).all()


def test_the_power_of_two_of_adam():
    for c2 in [
        1.0,
        math.nextafter(1, 0),
        0.5,
        0.25,
        0.1,
        1e-3,
        1 - 0.999,
        2.0**-52,
        *np.linspace(0.01, 1, 57),
    ]:
        s = root_scale(c2)
        assert math.frexp(s)[0] == 0.5
        assert 0.25 < s * s / c2 <= 1


def test_lecture_003_s_adam(backend, dtype):
    """``lr*sqrt(c2)/c1 * m/sqrt(v + e)``: the constant beside the moment as it came."""
    rng, e, lr = np.random.default_rng(0), 1e-3, 0.05
    p = rng.normal(size=9).astype(dtype)
    optimizer, expected = po.Adam(p, lr=lr, eps=0.0, eps_root=e, eps_hat=True), p.astype(float)
    m = v = 0
    for t in range(1, 12):
        g = rng.normal(size=9).astype(dtype)
        optimizer.step(g)
        m, v = 0.9 * m + 0.1 * g.astype(float), 0.999 * v + 0.001 * g.astype(float) ** 2
        expected -= lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / np.sqrt(v + e)
    np.testing.assert_allclose(p, expected, rtol=100 * np.finfo(dtype).eps)


# ---- norms -----------------------------------------------------------------------------------------

SIZES = [0, 1, 31, 33, 16384, 16385, 70_001]
EXPONENTS = [-1060, -600, -500, -450, -300, 0, 300, 449, 451, 512, 900, 1010]


@pytest.mark.parametrize("n", SIZES)
def test_norms_of_every_size(backend, n):
    x = np.random.default_rng(n).normal(size=n)
    for exponent in EXPONENTS:
        scaled = np.ldexp(x, exponent)
        exact = math.hypot(*scaled)
        tolerance = {"rel": 1e-9 if exponent < -1000 else 1e-12, "abs": 5e-324}
        assert gradients.global_norm(scaled) == pytest.approx(exact, **tolerance)
        pieces = [scaled[: n // 3], np.zeros(5), scaled[n // 3 :], np.zeros(3, np.float32)]
        assert gradients.global_norm(pieces) == pytest.approx(exact, **tolerance)
        together = [scaled, np.ones(2, np.float32)]  # either may outweigh the other
        assert gradients.global_norm(together) == pytest.approx(math.hypot(exact, math.sqrt(2)), rel=1e-12)


def test_norms_of_what_is_not_finite_or_has_no_norm(backend, dtype):
    for bad in (math.nan, math.inf, -math.inf):
        x = np.full(40, 1e30, dtype)
        x[33] = bad
        assert str(gradients.global_norm([np.ones(3), x])) == str(abs(bad))
        with pytest.raises(ValueError, match="expected finite gradients"):
            gradients.clip_grad_norm_(x, 1.0)
    x = np.full(40, 1.7e308)
    assert gradients.global_norm(x) == math.inf
    with pytest.raises(ValueError, match="beyond all floats"):
        gradients.clip_grad_norm_(x, 1.0)
    assert (x == 1.7e308).all()
    assert gradients.global_norm(np.full(9, np.finfo(dtype).smallest_subnormal)) == pytest.approx(
        3 * float(np.finfo(dtype).smallest_subnormal)
    )


@pytest.mark.parametrize("scale", [1e-170, 1e-20, 1e155, 1e200, 1e300])
def test_clipping_of_every_size(backend, scale):
    direction = np.random.default_rng(0).normal(size=(5, 7))
    direction /= np.linalg.norm(direction)
    limit = min(1.0, scale / 2)
    factor = limit / (scale + 1e-6)
    g = [scale * direction, np.zeros(3, np.float32)]
    assert gradients.clip_grad_norm_(g, limit) == pytest.approx(scale)
    np.testing.assert_allclose(g[0], scale * factor * direction, rtol=1e-12)
    for options in ({}, {"nonfinite": "raise"}, {"accumulate": 2}):
        p = [np.zeros((5, 7)), np.zeros(3, np.float32)]
        optimizer = po.SGD(p, lr=1.0, max_grad_norm=limit, **options)
        for _ in range(options.get("accumulate", 1)):
            optimizer.step([scale * direction, np.zeros(3, np.float32)])
        np.testing.assert_allclose(-p[0], scale * factor * direction, rtol=1e-12)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_a_training_clips_gradients_of_every_size(engine):
    if engine == "native" and dispatch.current().name != "native":
        pytest.skip("runs on the native backend")
    for scale in (1e160, 1e-165):
        model = nn.Sequential(nn.Dense(2, 3, bias=False), dtype=np.float64, seed=0)
        before = model.flat_parameters.copy()
        limit = min(1.0, scale / 1e3)
        optimizer = po.SGD(model.parameters(), lr=1 / limit, max_grad_norm=limit)
        if scale < 1:
            model.flat_parameters[...] = before = np.zeros(6)
        trainer = po.Trainer(model, nn.MSE(), optimizer, seed=0)
        x, y = np.ones((1, 2)), np.full((1, 3), scale)
        with np.errstate(all="ignore"):
            trainer.fit(x, y, batch_size=1, engine=engine, verbose=False)
        moved = np.linalg.norm(model.flat_parameters - before)
        norm = 2 / 3 * scale * math.sqrt(6)
        assert moved == pytest.approx(norm / (norm + 1e-6), rel=1e-6)


@wide
@pytest.mark.parametrize("case", TENSORS, ids=case_id)
@pytest.mark.parametrize(
    ("of_p", "of_g"), [(0, 0), (0, 480), (480, 0), (900, 480), (-900, -480), (600, 0), (-600, 0)]
)
def test_steps_by_norms_of_every_size(backend, case, of_p, of_g):
    if case[0] == "Adafactor" and of_g < 0:
        pytest.skip("the least variance decides, which the oracle leaves out")
    if case[0] in ("LARS", "Muon"):
        of_g *= 2  # they keep no squares
    rng = np.random.default_rng(0)
    start = np.ldexp(rng.uniform(0.5, 1.5, size=(3, 5)), of_p)
    grads = [np.ldexp(rng.uniform(0.5, 1.5, size=(3, 5)), of_g) for _ in range(3)]
    p, options = start.copy(), dict(case[1])
    if case[0] in ("LARS", "Muon") and "eps" not in options:
        options["eps"] = 0.0
    if case[0] == "Muon":
        options["weight_decay"] = 0.0
    optimizer = make((case[0], options), p)
    expected = exact_steps((case[0], {k: v for k, v in options.items() if k != "weight_decay"}), start, grads)
    for g in grads:
        optimizer.step(g)
    moves = np.abs(expected - start.astype(LONG)).max()
    error = np.abs(p.astype(LONG) - expected)
    assert error.max() <= 1e-9 * moves + 8 * np.spacing(np.abs(start).max())
    assert np.isfinite(p).all()
