"""`pyoptim check` prints a page on which what looks wrong stands first."""

import pytest

from pyoptim import cli, nn


def page(capsys, *arguments):
    assert cli.main(["check", "digits", "--quiet", "--epochs", "1", "--hidden", "16", *arguments]) == 0
    return capsys.readouterr().out


def test_a_page_about_a_network(tmp_path, capsys, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []  # without the seconds that it takes to write so many panels
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    text = page(capsys, "--plot", str(tmp_path / "check.png"))
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads[:2] == ["digits, 64-16-10, Adam, epochs: 1", "What looks wrong"]
    titles = {axes.get_title().capitalize() for axes in drawn[0].axes}
    assert {"Gradient check", "Layers at the start", "8 examples", "Curvature", "Learning curve"} <= titles
    assert titles - {""} <= set(heads)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--init", "zeros"], "layer 0 (Dense) gives the same output for all examples"),
        (["--raw"], "inputs are large (7"),
    ],
)
def test_what_is_wrong_stands_first(capsys, arguments, expected):
    text = page(capsys, *arguments)
    wrong = text.partition("What looks wrong")[2].partition("Accuracy")[0]
    assert expected in wrong


def test_a_saved_model_is_looked_at(tmp_path, capsys):
    path, other = str(tmp_path / "model"), str(tmp_path / "other")
    nn.Sequential(nn.Dense(64, 10), seed=0).save(path)
    nn.Sequential(nn.Dense(64, 3), seed=0).save(other)
    text = page(capsys, "--model", path)
    assert "it has hardly learnt" in text
    assert "Learning curve" not in text
    assert cli.main(["check", "digits", "--model", other]) == 2
    assert f"--model {other} has outputs (3,), expected (10,)" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("what", ["nan", "inf", "frozen", "large"])
def test_a_saved_model_that_diverged_or_is_frozen_has_a_page_too(tmp_path, capsys, monkeypatch, what):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    model = nn.Sequential(nn.Dense(64, 16, activation="relu"), nn.Dense(16, 10), seed=0)
    if what == "frozen":
        model.layers[0].trainable = model.layers[1].trainable = False
    elif what == "large":
        model.flat_parameters[...] *= 1e15
    else:
        model.flat_parameters[5] = float(what)
    model.save(tmp_path / "model")
    text = page(capsys, "--model", str(tmp_path / "model"), "--plot", str(tmp_path / "check.png"))
    wrong = text.partition("What looks wrong")[2].partition("Accuracy")[0]
    expected = {"frozen": "all are frozen", "large": "outputs explode"}.get(what, "it has diverged")
    assert expected in wrong, text
    assert wrong.count(expected) == 1
    for part in ("Gradient check", "Layers", "8 examples", "Curvature", "Loss slice"):
        assert f"\n{part}\n" in text
    assert "are right" not in text or what in ("frozen", "large")
    assert "at the start" not in text
    assert "after training" not in text
    assert "inf, and beyond" not in text
    assert drawn
