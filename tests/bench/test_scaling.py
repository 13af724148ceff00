"""The model of a step by many ranks, against values computed by hand."""

import pytest

from pyoptim.bench import scaling
from pyoptim.bench.scaling import Compute, Network, Part

NETWORK = Network(alpha=10.0, beta=0.5)
PARTS = [Part(0.75, 80), Part(0.25, 20)]
COMPUTE = Compute(fixed=7.0, example=3.0, copies=2.0)


def test_allreduces():
    # Round a ring of 4: 6 messages of 25 bytes. By a tree: 4 of 100 bytes.
    assert scaling.ring(4, 100, NETWORK) == 6 * (10 + 12.5)
    assert scaling.tree(4, 100, NETWORK) == 4 * (10 + 50)
    assert scaling.allreduce(4, 100, NETWORK) == 135
    assert scaling.tree(5, 1, NETWORK) == 6 * 10.5  # three levels
    assert scaling.allreduce(64, 8, NETWORK) == scaling.tree(64, 8, NETWORK) == 12 * 14
    assert scaling.ring(1, 100, NETWORK) == scaling.tree(1, 100, NETWORK) == 0


def test_steps():
    assert scaling.step(10, 1, COMPUTE, PARTS, NETWORK) == 7 + 30
    assert scaling.step(10, 1, COMPUTE, PARTS, NETWORK, overlap=True) == 7 + 30
    # The largest of four parts of 10 examples has 3.
    assert scaling.step(10, 4, COMPUTE, PARTS, NETWORK) == 7 + 2 + 9 + 135


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        # Of 3 examples, 9 s, the forward pass takes 3. The last layer's 20 bytes, 75 s by a ring, go at 4.5; the
        # first layer's 80 bytes, 120 s, wait for them, though they are ready at 9.
        (12, 7 + 2 + 4.5 + 75 + 120),
        # Of 300 examples, 900 s: the last layer's are sent while the first one is computed, which ends at 900.
        (1200, 7 + 2 + 900 + 120),
    ],
)
def test_steps_that_send_while_they_compute(batch, expected):
    assert scaling.step(batch, 4, COMPUTE, PARTS, NETWORK, overlap=True) == pytest.approx(expected, rel=1e-14)


def test_when_more_ranks_pay():
    # Two ranks: copies 2, and a ring of two takes 20 + 50. They spare batch/2 * 3, more than 72 from 50 on.
    assert scaling.allreduce(2, 100, NETWORK) == 70
    assert scaling.pays_from(2, COMPUTE, PARTS, NETWORK) == 64
    assert scaling.pays_from(2, COMPUTE, PARTS, NETWORK, most=32) is None
    assert scaling.best_ranks(4, 1024, COMPUTE, PARTS, NETWORK) == 1
    assert scaling.best_ranks(64, 2, COMPUTE, PARTS, NETWORK) == 2
    free = Network(0.0, 0.0)
    assert scaling.best_ranks(1024, 1024, COMPUTE, PARTS, free) == 1024


def test_lines():
    assert scaling.line([(0, 3.0), (10, 5.0), (20, 7.0)]) == pytest.approx((3, 0.2))
    assert scaling.line([(1, 5.0), (2, 5.0)]) == pytest.approx((5, 0))
    a, b = scaling.line([(1, 1.0), (2, 3.0)])  # the line through both would begin below 0
    assert a == 0
    assert 1 < b < 1.5
    assert scaling.network_of([(0, 4.0), (100, 54.0)]) == pytest.approx((2, 0.5))


def test_layers():
    assert scaling.dense_parts([3, 4, 2], 8) == [Part(12 / 20, 16 * 8), Part(8 / 20, 10 * 8)]
    assert scaling.shared(COMPUTE, 4, 2) == (14, 6, 4)
    assert scaling.shared(COMPUTE, 2, 4) == COMPUTE
