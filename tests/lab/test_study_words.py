"""What studies say follows from their numbers: that a claim shows, and that it does not."""

import numpy as np
import pytest

from pyoptim.lab import studies
from pyoptim.lab.studies import Result
from pyoptim.lab.studies._common import Curve, band, difference, table
from pyoptim.train.history import History


def around(value, spread=0.001):
    """Three seeds with nearly this value."""
    return value + spread * np.array([-1.0, 0.0, 1.0])


def rows(columns, **values):
    """Rows by name; a row's values are those of the columns, one after the other."""
    return {
        name.replace("_", " "): dict(zip(columns, map(around, row), strict=True))
        for name, row in values.items()
    }


def said(study, table, data=None):
    return studies.STUDIES[study].conclusion(Result("made up", table, data))


OUTPUTS = ("outputs, first layer", "last layer", "test accuracy")


@pytest.mark.parametrize(
    ("he", "small", "expected"),
    [
        ((1.0, 1.0, 0.97), (1.0, 1e-6, 0.1), "shows here"),
        ((1.0, 1.0, 0.3), (1.0, 1e-6, 0.9), "does not show here"),
    ],
)
def test_first_weights(he, small, expected):
    table = rows(OUTPUTS, small=small, large=(1.0, 1e4, 0.1), Glorot=(1.0, 0.5, 0.3), He=he)
    table = {"zeros": dict(zip(OUTPUTS, (0.0, 0.0, 0.1), strict=True)), **table}
    words = said("initialization", table)
    assert words.endswith(f"train deep networks {expected}.")
    assert "Zeros let nothing through" in words
    assert "with large weights outputs explode" in words
    assert "with small weights outputs vanish" in words
    assert ("small" in words.partition("After")[2]) is (expected == "shows here" or small[2] == 0.9)


def test_regularization():
    columns = ("training accuracy", "test accuracy", "test loss")
    table = rows(columns, none=(1.0, 0.8, 0.9), dropout=(0.9, 0.9, 0.5), noise_on_inputs=(1.0, 0.8, 0.9))
    words = said("regularization", table)
    assert "right on 100.0% of its examples and on 80.0% of the test set" in words
    assert "Clearly better in the test is dropout (+10.0 points)" in words
    assert "No clear gain in accuracy shows for noise on inputs" in words
    assert "The test loss is clearly less with dropout." in words
    table = rows(columns, none=(1.0, 0.8, 0.9), dropout=(0.9, 0.7, 0.95))
    words = said("regularization", table)
    assert "does not show here" in words
    assert "Clearly worse is dropout" in words
    assert words.endswith("clearly less with none.")


@pytest.mark.parametrize("shows", [True, False])
def test_bias_and_variance(shows):
    names = [f"{size} hidden units" for size in (2, 4, 8, 16, 64)]
    columns = ("bias²", "variance", "Brier score")
    last = (0.05, 0.2, 0.25) if shows else (0.3, 0.001, 0.4)
    table = {name: dict(zip(columns, map(around, (0.3, 0.1, 0.4)), strict=True)) for name in names}
    table["256 hidden units"] = dict(zip(columns, map(around, last), strict=True))
    tamed = (0.2, 0.05, 0.3) if shows else last
    table["256, penalty l2 0.1"] = {c: around(v, 0.0005) for c, v in zip(columns, tamed, strict=True)}
    words = said("bias-variance", table)
    assert ("less bias does not show" in words) is not shows
    assert ("Variance grows with the size" in words) is shows
    assert ("ever more variance does not show here" in words) is not shows
    assert ("it trades the one for the other" in words) is shows


@pytest.mark.parametrize("shows", [True, False])
def test_ensembles(shows):
    gain = 0.1 if shows else -0.1
    table = {}
    for base in ("3 units", "100 units"):
        table[f"{base}, alone"] = {"test accuracy": around(0.6)}
        for kind in ("bagging", "boosting"):
            table[f"{base}, {kind}"] = {"test accuracy": around(0.6 + gain, 0.002)}
    words = said("bootstrap", table)
    verb = "shows" if shows else "does not show"
    assert f"that bagging takes away variance {verb} and that boosting takes away bias {verb} here" in words
    assert (f"bagging {'adds' if shows else 'takes'} 10.0 points") in words


@pytest.mark.parametrize("shows", [True, False])
def test_learning_curves(shows):
    def curve(training, test):
        ends = {"training": np.full((2, 3), training), "test": np.full((2, 3), test)}
        return {**ends, "sizes": np.array([10, 1000]), "law": (0.125, 0.0, 1.0)}

    data = {
        "6 hidden units": curve(0.2, 0.22),
        "64 hidden units": curve(0.0, 0.05 if shows else 0.5),
    }
    words = said("learning-curve", {}, data)
    assert "with all 1,000 examples, of which the law of the smaller numbers said 12.5%" in words
    assert "the two have nearly met" in words
    assert "the gap asks for more examples" in words
    assert ("does not show here" in words) is not shows


@pytest.mark.parametrize(
    ("sharpness", "gap", "expected"),
    [(9, 0.3, "Both are clear"), (9, 0.1, "clearly sharper, but"), (1, 0.3, "clearly generalises worse, but"),
     (1, 0.1, "Neither is clear")],
)  # fmt: skip
def test_sharp_minima(sharpness, gap, expected):
    table = {
        "small batches (8)": {"sharpness": around(1.0), "gap in accuracy": around(0.1)},
        "full batch": {"sharpness": around(sharpness)[::-1], "gap in accuracy": around(gap)[::-1]},
    }
    assert expected in said("sharp-minima", table)


@pytest.mark.parametrize("shows", [True, False])
def test_curvature(shows):
    columns = ("g.Hg/g.g at first", "at most", "g.g at first", "g.g at last")
    most = 40.0 if shows else 1.5
    table = rows(
        columns, without_BatchNorm=(1.0, most, 2.0, 1.0 if shows else 0.01), with_BatchNorm=(1, 1.5, 2, 1)
    )
    words = said("curvature", table)
    assert ("ill-conditioned: the steps" in words) is shows
    assert ("near a minimum" in words) is not shows
    assert ("so larger learning rates are possible" in words) is shows


@pytest.mark.parametrize(
    ("adam", "newton", "expected"),
    [(4.0, 1.0, "4 times as fast"), (1.0, 4.0, "second order is not faster here"),
     (np.inf, 4.0, "second order wins"), (1.0, np.inf, "does not show here")],
)  # fmt: skip
def test_second_order(adam, newton, expected):
    names = (
        "Adam, batches of 32",
        "Adam, full batch",
        "L-BFGS",
        "conjugate gradients",
        "Newton, trust region",
    )
    seconds = (adam, np.inf, newton, np.inf, np.inf)
    table = {
        name: {"seconds to the best": np.full(3, value), "test accuracy": around(0.9)}
        for name, value in zip(names, seconds, strict=True)
    }
    assert expected in said("second-order", table)


@pytest.mark.parametrize("shows", [True, False])
def test_searches(shows):
    errors = (0.1, 0.05, 0.02) if shows else (0.1, 0.1, 0.1)
    table = {
        name: {"best validation error": around(error), "median validation error": around(error)}
        for name, error in zip(("grid", "random", "Bayesian (TPE)"), errors, strict=True)
    }
    words = said("search", table)
    verb = "shows" if shows else "does not show"
    assert f"That random search finds better than the grid {verb} here" in words
    assert f"That Bayesian search finds better than a random one {verb} here" in words
    assert ("better spent" in words) is shows


def test_one_seed_makes_nothing_clear():
    result = Result("", {"a": {"x": np.array([1.0])}, "b": {"x": np.array([0.0])}})
    found = difference(result, "a", "b", "x")
    assert (found.mean, found.is_clear, found.is_more, found.is_less) == (1.0, False, False, False)


def test_tables_have_means_deviations_and_percent():
    lines = table(
        {"a": {"test error": np.array([0.1, 0.3]), "steps": np.array([1000, 1000])}, "b": {}}
    ).splitlines()
    assert lines[1].split() == ["a", "20.00%", "±", "14.14%", "1,000"]
    assert lines[2].split() == ["b"]


def test_a_band_is_the_range_of_the_seeds():
    pytest.importorskip("matplotlib")
    from pyoptim.runtime.figures import new_figure

    axes = new_figure(2, 2).subplots()
    band(axes, [1, 2], [[1.0, 2.0], [3.0, 4.0]], 0, "line")
    assert axes.lines[0].get_ydata().tolist() == [2.0, 3.0]
    low, high = axes.collections[0].get_datalim(axes.transData).intervaly
    assert (low, high) == (1.0, 4.0)


def test_processes_that_do_not_wait():
    def curve(name, losses, seconds):
        history = History(val_loss=losses, seconds=[seconds] * len(losses))
        return Curve(name, [], [history, history], 32, [])

    curves = [
        curve("one process", [0.4, 0.3, 0.2], 2.0),
        curve("synchronous", [0.5, 0.4, 0.3], 3.0),
        curve("parameter server", [0.4, 0.35, 0.3], 1.0),
    ]
    told = said("asynchronous", {}, (curves, {"parameter server": np.array([0, 1, 1, 2])}, 1000))
    assert "A test loss of 0.3, which all reach, takes the least time with parameter server (3 s;" in told
    assert "synchronous 9 s, one process 4 s" in told
    assert "the fewest examples with one process (2,000; synchronous 3,000)" in told
    assert "the others have added 1.00 times in between" in told
