"""`pyoptim study`: every study runs, prints its table and writes its plot."""

from unittest import mock

import pytest

from pyoptim import cli
from pyoptim.lab import recipe_studies, studies, tabular


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_prints_a_table_and_writes_a_plot(name, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "study.png"
    assert cli.main(["study", name, "--epochs", "1", "--dataset", "digits", "--plot", str(path)]) == 0
    printed = capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG")
    lines = [line for line in printed.splitlines() if "%" in line]
    small = {"compression": 6, "cascade": 11, "experts": 7}
    wanted = {"batch-size": 6, "learning-rate": 3, "schedules": 7} | small
    assert len(lines) == wanted.get(name, 2)
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
    assert (*studies.STUDIES, "tabular", *recipe_studies.STUDIES) == cli.STUDIES


def test_batch_norm_trains_a_deep_sigmoid_network():
    without, normalised = studies.run("batch-norm", "digits", epochs=10).data
    assert normalised.last("val_accuracy") > without.last("val_accuracy") + 0.3
    low, middle, high = normalised.callbacks[0][0].values[-1]
    assert low < middle < high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch-norm", "--plot", "nowhere/x.png"], "no folder"),
        (["batch-norm", "--plot", "x.xyz"], "no image"),
        (["batch-norm", "--dataset", "letters"], "unknown data set"),
        (["norm"], "invalid choice"),
        (["batch-norm", "--seed", "-1"], "negative"),
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
