"""What a training measures, on which batches it counts, and labels that change while it runs."""

import numpy as np
import pytest

from pyoptim import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_a_metric_counts_what_is_no_prediction_as_a_miss(rng):
    pytest.importorskip("sklearn")
    targets, outputs = rng.integers(0, 3, 60), rng.normal(size=(60, 3))
    outputs[np.arange(60), targets] += 1
    lost = rng.permutation(60)[:15]
    broken = outputs.copy()
    for row, value in zip(lost, [np.nan, np.inf, -np.inf] * 5, strict=True):
        broken[row] = value
    broken[lost[0]] = [0, np.nan, 1]
    kept = np.setdiff1d(np.arange(60), lost)
    right = (outputs[kept].argmax(1) == targets[kept]).sum()
    assert metrics.accuracy(targets, broken) == right / 60
    assert metrics.TopK(1)(targets, broken) == right / 60
    assert metrics.TopK(3)(targets, broken) == 45 / 60
    assert metrics.precision(targets, broken) == metrics.precision(targets[kept], outputs[kept])
    assert metrics.recall(targets, broken, "micro") == right / 60
    expected = metrics.confusion_matrix(targets[kept], outputs[kept])
    np.testing.assert_array_equal(metrics.confusion_matrix(targets, broken), expected)
    two, scores = targets % 2, outputs[:, :2].copy()
    scores[lost] = np.nan
    assert metrics.precision(two, scores, "binary") == metrics.precision(two[kept], scores[kept], "binary")
    hit = (scores[kept].argmax(1) == 1) & (two[kept] == 1)
    assert metrics.recall(two, scores, "binary") == hit.sum() / two.sum()
    assert metrics.coverage(targets, broken, 0.0)[0] == 45 / 60
