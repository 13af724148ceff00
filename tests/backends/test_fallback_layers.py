"""What backends without a compiler do in shorter ways: activations of straight lines, losses of labels."""

import numpy as np
import pytest
from support.backends import LIVE
from support.optimizers import assert_same_bits

from pyoptim.backends import reference
from pyoptim.formulas.activations import ACTIVATIONS
from pyoptim.runtime import dispatch

SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40, 1.0, -1.0, 0.3, -2.5]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["relu", "hardtanh"])
@pytest.mark.parametrize("name", [name for name in ("numpy", "numba") if name in LIVE])
def test_piecewise_linear_activations(name, kind, dtype, rng):
    """Zeros are +0, NaN stays, and a gradient that does not pass is +0 even if it is NaN or infinite."""
    x, dy = rng.choice(SPECIAL, (2, 1001)).astype(dtype)
    low, high = ACTIVATIONS[kind].defaults.values() or (0.0, np.inf)
    y, dx = np.empty_like(x), np.empty_like(x)
    backend = dispatch.get(name)
    backend.activation_forward(kind, x, y, low, high)
    wanted = np.where(x <= low, low, np.where(x >= high, high, x)).astype(dtype)
    assert_same_bits(y, wanted if kind == "hardtanh" else wanted + np.zeros(1, dtype))
    backend.activation_backward(kind, dy, x if ACTIVATIONS[kind].keeps_input else y, dx, low, high)
    closed = (x <= low) | ((x >= high) if kind == "hardtanh" else False)
    assert_same_bits(dx, np.where(closed, 0, dy).astype(dtype))


def test_cross_entropy_of_labels_has_the_bits_of_shares(rng):
    for shape in ((1, 1), (7, 3), (64, 10), (33, 130)):
        logits = rng.normal(size=shape).astype(np.float32)
        logits[0, 0] = -np.inf if shape[1] > 1 else 0
        labels = rng.integers(0, shape[1], shape[0])
        one, other = np.empty_like(logits), np.empty_like(logits)
        value = reference.softmax_cross_entropy(logits, labels, one, None, None, 0.0)
        weight = np.ones(shape[0], np.float32)
        assert value == reference.softmax_cross_entropy(logits, labels, other, weight, None, 0.0)
        assert_same_bits(one, other)
