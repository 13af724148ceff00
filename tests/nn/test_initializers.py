"""Initialisers: moments, bounds, orthogonality, names, and what a wrong one meets."""

import numpy as np
import pytest

from pyoptim import nn

SHAPE = (300, 200)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


VARIANCE = [
    (nn.Constant(0.3), 0),
    (nn.Zeros(), 0),
    (nn.Normal(0.5), 0.25),
    (nn.Uniform(0.3), 0.3**2 / 3),
    (nn.Glorot(), 2 / 500),
    (nn.He(), 2 / 200),
    (nn.LeCun(), 1 / 200),
    (nn.Orthogonal(2.0), 4 / 300),
    # of a normal cut at 2 standard deviations: 1 - 2 * 2 phi(2)/(2 Phi(2) - 1)
    (nn.TruncatedNormal(0.1), 0.01 * (1 - 4 * 0.05399096651318806 / 0.9544997361036416)),
]


@pytest.mark.parametrize(("init", "variance"), VARIANCE, ids=[repr(v[0]) for v in VARIANCE])
def test_variances(init, variance, rng):
    values = init(rng, SHAPE)
    assert values.shape == SHAPE
    assert values.var() == pytest.approx(variance, rel=0.03, abs=1e-30)
    centre = 0.3 if init == nn.Constant(0.3) else 0
    assert abs(values.mean() - centre) <= 5 * (variance / values.size) ** 0.5 + 1e-12


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (1, 4), (4, 1)])
def test_orthogonal(shape, rng):
    q = nn.Orthogonal(3.0)(rng, shape)
    product = q @ q.T if shape[0] <= shape[1] else q.T @ q
    np.testing.assert_allclose(product, 9 * np.eye(min(shape)), atol=1e-13)


def test_orthogonal_is_uniform_over_signs(rng):
    signs = [nn.Orthogonal()(rng, (2, 2))[0, 0] > 0 for _ in range(1000)]
    assert 420 < sum(signs) < 580


def test_truncated_normal_stays_within_its_bound(rng):
    values = np.abs(nn.TruncatedNormal(0.1, bound=1.5)(rng, SHAPE))
    assert 0.149 < values.max() <= 0.15
    with pytest.raises(ValueError, match="bound is 0"):
        nn.TruncatedNormal(bound=0)


@pytest.mark.parametrize("name", ["lecun", "orthogonal", "truncated_normal"])
def test_names(name):
    weight = nn.Sequential(nn.Dense(6, 4, init=name), seed=0).parameters()["0.weight"]
    assert np.unique(weight).size == 24


def test_a_wrong_shape_is_refused_instead_of_broadcast():
    with pytest.raises(ValueError, match=r"init of Dense.* returned shape \(3,\), expected \(2, 3\)"):
        nn.Sequential(nn.Dense(3, 2, init=lambda rng, shape: np.ones(3)))
