"""The studies of recipes: tables and pictures, and words that depend on the numbers."""

import numpy as np
import pytest

from pyoptim import cli
from pyoptim.lab import recipe_studies
from pyoptim.lab.recipe_studies import Part, Result, verdict


@pytest.mark.parametrize("name", recipe_studies.STUDIES)
def test_a_study_prints_tables_and_claims_and_writes_a_plot(name, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(recipe_studies.STUDIES, name, recipe_studies.STUDIES[name]._replace(seeds=2))
    monkeypatch.setattr(recipe_studies, "_MOST", (300, 100))
    path = tmp_path / "study.png"
    assert cli.main(["study", name, "--epochs", "1", "--dataset", "digits", "--plot", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert lines[0].startswith(f"{name}: digits, 300 training examples, 2 seeds; ")
    rows = [line for line in lines if line.count("%") == 4 and not line.startswith("  -")]
    claims = [line for line in lines if line.startswith("  - ")]
    counts = {"pretraining": (2, 1), "transfer": (21, 9), "hints": (5, 3), "curriculum": (10, 8)}
    assert (len(rows), len(claims)) == counts[name]
    assert all("points (95% interval, 2 seeds): th" in claim for claim in claims)


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
        Result(name, (1, 2), np.stack([np.zeros(3), scores], axis=1))
        for name, scores in (("old", [0.8, 0.8, 0.8]), ("new", new))
    ]
    claim = "new is better", "new", "old"
    assert verdict(Part("", results, [claim]), claim).startswith("new is better: new ")
    assert verdict(Part("", results, [claim]), claim).endswith(said)


def test_one_seed_is_no_proof():
    results = [Result(name, (1,), np.array([[score]])) for name, score in (("old", 0.1), ("new", 0.9))]
    claim = "new is better", "new", "old"
    assert "one seed does not say how much is chance" in verdict(Part("", results, [claim]), claim)
