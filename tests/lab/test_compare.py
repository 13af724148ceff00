"""``pyoptim compare`` and the surfaces it runs on."""

import sys
from unittest import mock

import numpy as np
import pytest

import pyoptim as po
from pyoptim import cli, schedules
from pyoptim.lab import compare, compare_plots
from pyoptim.lab import compare as compare_module
from pyoptim.surfaces import SURFACES


@pytest.mark.parametrize("name", SURFACES)
def test_gradients_agree_with_central_differences(name):
    surface = SURFACES[name]
    p = np.random.default_rng(0).uniform(*np.transpose(surface.window), (50, 2)).T
    h = 1e-5
    for axis in range(2):
        step = h * np.eye(2)[:, axis : axis + 1]
        slope = (surface.value(p + step) - surface.value(p - step)) / (2 * h)
        np.testing.assert_allclose(surface.gradient(p)[axis], slope, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", SURFACES)
def test_nothing_in_the_window_is_below_the_minima(name):
    surface = SURFACES[name]
    grid = np.stack(np.meshgrid(*(np.linspace(*side, 201) for side in surface.window)))
    assert surface.value(grid).min() >= surface.least
    for minimum in surface.minima:
        assert surface.value(minimum) == surface.least
        np.testing.assert_array_equal(surface.gradient(minimum), 0)


def test_a_surface_wants_two_coordinates():
    with pytest.raises(ValueError, match=r"p has shape \(3,\), expected \(2, ...\)"):
        po.surfaces.beale(np.zeros(3))


@pytest.mark.parametrize("name", SURFACES)
def test_the_usual_rates_bring_the_loss_down(name):
    surface = SURFACES[name]
    for text in compare._USUAL.split(","):
        p = np.array(surface.start)
        optimizer = compare._choice(text, cli._optimizer).on(name, p)
        points, losses = compare.descend(surface, optimizer, p, 500)
        assert points.shape == (501, 2)
        assert losses[-1] < 0.05 * losses[0], text


def test_a_surface_with_plot_and_animation(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot, gif = tmp_path / "p.png", tmp_path / "p.gif"
    arguments = ["compare", "valley", "--steps", "20", "--optimizers", "adam,sgd:lr=9:momentum=0.9"]
    assert cli.main([*arguments, "--plot", str(plot), "--gif", str(gif)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "valley from (-3.5, -0.5), 20 steps:"
    assert lines[2].split()[:2] == ["adam", "1"]
    assert lines[3].split()[:2] == ["sgd:lr=9:momentum=0.9", "9"]
    assert plot.read_bytes()[:4] == b"\x89PNG"
    from PIL import Image

    with Image.open(gif) as image:
        assert image.n_frames > 10


def test_all_surfaces_from_a_random_start(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    arguments = ["compare", "--steps", "5", "--plot", str(tmp_path / "p.png"), "--seed"]
    shown = []
    for seed in "112":
        assert cli.main([*arguments, seed]) == 0
        shown.append(capsys.readouterr().out)
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)  # takes a second
    assert shown[0] == shown[1] != shown[2]
    assert all(f"{name} from" in shown[0] for name in SURFACES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("problem", ["rosenbrock", "digits"])
def test_divergence_is_reported_and_drawn(problem, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    length = ["--epochs", "1", "--seeds", "1"] if problem == "digits" else ["--steps", "50"]
    plot = tmp_path / "p.png"
    arguments = ["compare", problem, *length, "--optimizers", "sgd:lr=1e30", "--plot", str(plot)]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert "diverged" in captured.out
    assert not captured.err
    assert plot.exists()


def test_digits(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "p.png"
    assert (
        cli.main(["compare", "digits", "--epochs", "1", "--optimizers", "adam,lamb", "--plot", str(plot)])
        == 0
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["adam", "lamb"]
    assert float(rows[0][4].rstrip("%")) > 80
    assert plot.exists()


def test_every_schedule_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "p.png"
    assert cli.main(["compare", "--schedules", "--steps", "30", "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    expected = set(schedules.__all__) - {"Schedule"}  # their base
    assert set(compare.schedule_examples(30)) == expected
    assert all(f"  {name} " in shown for name in expected)
    assert plot.exists()


def _descents(*rates):
    surface = SURFACES["valley"]
    for rate in rates:
        p = np.array(surface.start)
        yield compare_plots.Descent("sgd", rate, *compare.descend(surface, po.SGD(p, lr=rate), p, 60))


def test_descents_that_coincide_can_all_be_seen():
    pytest.importorskip("matplotlib")
    figure = compare_plots.draw_surfaces(None, {"valley": list(_descents(*12 * [0.01]))})
    plane, curve = figure.axes
    for axes in (plane, curve):
        lines = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_animated()]
        assert len({line.get_color() for line in lines}) == 12
        widths = [line.get_linewidth() for line in lines]
        assert widths == sorted(set(widths), reverse=True)  # those that lie above are narrower
    assert len({line.get_marker() for line in plane.lines if line.get_linestyle() == "None"}) > 8


def test_a_loss_that_oscillates_is_a_line_and_no_area():
    losses = np.where(np.arange(501) % 2, 1e-4, 1e-2)
    smooth = compare_plots._smooth(losses)
    assert np.ptp(np.log10(smooth[20:-20])) < 0.5  # two decades before
    assert smooth[[0, -1]] == pytest.approx(losses[[0, -1]])
    assert np.isnan(compare_plots._smooth(np.where(np.arange(501) > 100, np.nan, losses))[200:]).all()


def test_the_losses_of_an_animation_are_seen_early(tmp_path):
    pytest.importorskip("matplotlib")
    figure, _ = compare_plots._surfaces({"valley": list(_descents(0.01))})
    with mock.patch.object(compare_plots, "_surfaces", return_value=(figure, lambda step: None)):
        compare_plots.animate_surfaces(tmp_path / "a.gif", {"valley": list(_descents(0.01))}, frames=3)
    curve = figure.axes[1]
    # A third of the frames shows a ninth of the steps: they take a third of the axis.
    assert curve.transAxes.inverted().transform(curve.transData.transform((60 / 9, 1)))[0] > 0.3


def test_several_seeds_are_trained_and_drawn_with_a_band(capsys):
    pytest.importorskip("matplotlib")
    figures = []
    with mock.patch("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure)):
        assert (
            cli.main(["compare", "digits", "--epochs", "2", "--seeds", "2", "--optimizers", "adam,sgd"]) == 0
        )
    (figure,) = figures
    assert "digits: 64-64-10, 2 epochs in batches of 32" in figure.get_suptitle()
    assert "2 seeds" in figure.get_suptitle()
    loss, error, ranking = figure.axes
    assert len(loss.lines) == len(loss.collections) == len(error.collections) == 2
    assert error.get_ylabel() == "test error"
    assert {label.get_text() for label in ranking.get_yticklabels()} == {"adam (0.01)", "sgd (0.5)"}
    assert "range" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3"], "--seeds is for data sets"),
        (["hill"], "PROBLEM is 'hill', expected one of surfaces, beale"),
        (["--optimizers", "adamm"], "--optimizers is 'adamm', expected one of"),
        (["--optimizers", "sgd:0.1"], "--optimizers has '0.1' in 'sgd:0.1', expected OPTION=VALUE"),
        (["--optimizers", "sgd:lr=x"], "lr is 'x', expected"),
        (["--optimizers", "sgd:speed=1"], "'speed' is no hyperparameter"),
        (["--optimizers", "muon"], "expected a matrix for Muon"),
        (["digits", "--optimizers", "muon"], "expected a matrix for Muon"),
        (["digits", "--steps", "3"], "--steps is for surfaces, and digits is a data set"),
        (["digits", "--gif", "a.gif"], "--gif is for surfaces, and digits is a data set"),
        (["beale", "--epochs", "3"], "--epochs is for data sets"),
        (["--schedules", "--gif", "a.gif"], "--schedules takes --steps and --plot only"),
        (["--gif", "a.png"], "--gif is 'a.png', expected a name that ends in .gif"),
        (["--gif", "none/a.gif"], "--gif is 'none/a.gif', but there is no folder 'none'"),
        (["--gif", "a.gif", "--plot", "./a.gif"], "--gif and --plot are both 'a.gif', expected two files"),
        (["--plot", "none/a.png"], "--plot is 'none/a.png', but there is no folder 'none'"),
        (["--plot", "folder.png"], "which exists and is no file"),
        (["--plot", "a.txt"], "'a.txt' is no image that can be written"),
    ],
)
def test_what_cannot_run_is_said_first(arguments, message, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert cli.main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_file_that_cannot_be_written_is_said_first(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cli.main(["compare", "--plot", str(tmp_path / "p.png")]) == 2
    assert "which cannot be written" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["compare", "--plot", str(tmp_path / "p.png")]) == 2
    assert "pip install 'pyoptim[plot]'" in capsys.readouterr().err


def test_an_interrupt_is_said(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_module, "descend", interrupt)
    assert cli.main(["compare", "--plot", str(tmp_path / "p.png")]) == 130
    assert "pyoptim: interrupted" in capsys.readouterr().err
