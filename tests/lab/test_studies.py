"""`pyoptim study`: every study runs, prints its table and writes its plot."""

from unittest import mock

import pytest
from support.mpi import has_mpi

from pyoptim import cli
from pyoptim.lab import studies, tabular
from pyoptim.lab.studies import _claims


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_prints_a_table_and_writes_a_plot(name, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    if name == "asynchronous" and not has_mpi:
        pytest.skip("mpi4py or mpiexec is missing")
    monkeypatch.setattr(_claims, "_MOST", (300, 100))
    path = tmp_path / "study.png"
    assert (
        cli.main(["study", name, "--epochs", "1", "--dataset", "digits", "--seeds", "1", "--plot", str(path)])
        == 0
    )
    printed = capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG")
    lines = [line for line in printed.splitlines() if "%" in line or name == "bias-variance"]
    compared = {
        "batch-size": 6, "learning-rate": 4, "schedules": 7, "raw-pixels": 3, "initialization": 5,
        "regularization": 8, "bias-variance": 11, "bootstrap": 6, "learning-curve": 10, "second-order": 5,
        "search": 3, "compression": 6, "cascade": 10, "experts": 6, "pretraining": 3,
        "transfer": 30, "hints": 8, "curriculum": 18, "asynchronous": 7,
    }  # fmt: skip
    assert len(lines) >= compared.get(name, 2)
    assert str(path) in printed


def test_the_study_of_tables(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    path = tmp_path / "study.png"
    table = next(tabular.tables(0))
    with mock.patch.object(tabular, "tables", return_value=[table]):
        assert cli.main(["study", "tabular", "--epochs", "3", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    lines = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("breast cancer")
    ]
    assert len(lines) == 5
    assert all(float(line[-3]) > 0.6 for line in lines)


def test_tables_have_categories_and_targets():
    pytest.importorskip("sklearn")
    found = list(tabular.tables(0))
    assert len(found) == 5
    for table in found:
        assert len(table.numbers) == len(table.category) == len(table.target)
        assert 2 <= len(set(table.category.ravel())) <= 5


def test_the_command_line_knows_every_study():
    assert (*studies.STUDIES, "tabular") == cli.STUDIES


def test_batch_norm_trains_a_deep_sigmoid_network():
    without, normalised = studies.run("batch-norm", "digits", epochs=10, seeds=1).data
    assert normalised.last("val_accuracy") > without.last("val_accuracy") + 0.3
    low, middle, high = normalised.callbacks[0][0].values[-1]
    assert low < middle < high


def test_raw_pixels_show_what_the_scale_of_inputs_does():
    result = studies.run("raw-pixels", "digits", seeds=1)
    raw, normalised, scaled = (float(row["test accuracy"][0]) for row in result.rows.values())
    assert raw < 0.3 < 0.9 < min(normalised, scaled)
    assert "the same step is far too long" in studies.STUDIES["raw-pixels"].conclusion(result)


def test_learning_rates_reach_from_too_small_to_too_large():
    result = studies.run("learning-rate", "digits", seeds=1)
    said = studies.STUDIES["learning-rate"].conclusion(result).splitlines()
    assert "too large" in said[0]
    assert "the best" in said[1]
    assert "too small" in said[3]
    assert all(("chance" in line) == (i in (0, 3)) for i, line in enumerate(said))


def test_every_batch_size_takes_enough_steps():
    pytest.importorskip("matplotlib")
    result = studies.run("batch-size", "digits", epochs=1, seeds=2)
    assert all(row["steps"] >= 200 for row in result.rows.values())
    figure = studies.draw("batch-size", result)
    words = studies.STUDIES["batch-size"].conclusion(result)
    for panel, unit in zip(figure.axes, ("examples", "steps", "seconds"), strict=True):
        assert unit in panel.get_xlabel()
        assert unit in words
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
        assert len(panel.lines) == len(panel.collections) == 6  # with a band for the two seeds


def test_each_schedule_has_panels_of_its_own():
    pytest.importorskip("matplotlib")
    result = studies.run("schedules", "digits", epochs=2, seeds=1)
    panels = studies.draw("schedules", result).axes
    names = list(result.rows)
    for name, above, below in zip(names, panels[:7], panels[7:], strict=True):
        assert above.get_title() == name
        assert len(above.lines) == 1
        assert [line.get_color() for line in below.lines].count("0.8") == 6  # the others, behind it
    assert all(name in studies.STUDIES["schedules"].conclusion(result) for name in ("lowest", "highest"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch-norm", "--plot", "nowhere/x.png"], "no folder"),
        (["batch-norm", "--plot", "x.xyz"], "no image"),
        (["batch-norm", "--dataset", "letters"], "unknown data set"),
        (["norm"], "invalid choice"),
        (["batch-norm", "--seed", "-1"], "not an integer >= 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    pytest.importorskip("matplotlib")
    try:
        status = cli.main(["study", *arguments])
    except SystemExit as leave:
        status = leave.code
    assert status == 2
    assert message in capsys.readouterr().err
