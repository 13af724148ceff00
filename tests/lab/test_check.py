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
