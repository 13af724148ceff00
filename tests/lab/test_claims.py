"""What is said of ways to train depends on their numbers."""

import numpy as np
import pytest

from pyoptim.lab.studies._claims import Part, Way, verdict


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ([0.9, 0.92, 0.91], "new 91.0%, old 80.0%, +11.0 ± 2.5 points (95% interval, 3 seeds): this shows"),
        ([0.7, 0.72, 0.71], "-9.0 ± 2.5 points (95% interval, 3 seeds): the opposite shows"),
        (
            [0.7, 0.95, 0.78],
            "+1.0 ± 31.7 points (95% interval, 3 seeds): this does not show, it may be chance",
        ),
        ([0.8, 0.8, 0.8], "+0.0 ± 0.0 points (95% interval, 3 seeds): this does not show, it may be chance"),
    ],
)
def test_words_follow_the_numbers(new, said):
    results = [
        Way(name, (1, 2), np.stack([np.zeros(3), scores], axis=1))
        for name, scores in (("old", [0.8, 0.8, 0.8]), ("new", new))
    ]
    claim = "new is better", "new", "old"
    assert verdict(Part("", results, [claim]), claim).startswith("new is better: new ")
    assert verdict(Part("", results, [claim]), claim).endswith(said)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_are_no_proof(seeds):
    results = [Way(name, (1,), np.full((seeds, 1), score)) for name, score in (("old", 0.1), ("new", 0.9))]
    claim = "new is better", "new", "old"
    assert "fewer than three seeds do not say how much is chance" in verdict(
        Part("", results, [claim]), claim
    )
