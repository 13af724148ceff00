"""`pyoptim bench compare`: what it calls slower, and what it does not."""

import pytest

from pyoptim import bench
from pyoptim.bench import report
from pyoptim.bench.case import Row

MACHINE = {"cpu": "one", "processors": 2, "threads": 2}


def written(path, ours, quartiles=None, numpy=1.0, name="Adam", machine=MACHINE, **more):
    quartiles = {"pyoptim": quartiles or (0.99 * ours, 1.01 * ours)}
    row = Row(name, 1000, "float32", 8, {"pyoptim": ours, "numpy": numpy}, {}, quartiles=quartiles, **more)
    report.write_json(path, machine, [row], [])
    return str(path)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ({"ours": 1.06}, "1 slower, 0 faster, 0 disturbed"),
        ({"ours": 1.04}, "0 slower, 0 faster, 0 disturbed"),
        ({"ours": 0.9}, "0 slower, 1 faster, 0 disturbed"),
        ({"ours": 1.3, "quartiles": (1.0, 1.5)}, "0 slower, 0 faster, 0 disturbed"),  # chance
        ({"ours": 1.3, "numpy": 1.3}, "0 slower, 0 faster, 0 disturbed"),  # a slower machine
        ({"ours": 0.9, "numpy": 0.8}, "0 slower, 0 faster, 0 disturbed"),
        ({"ours": 1.0, "numpy": 0.7}, "0 slower, 0 faster, 0 disturbed"),  # another NumPy
        ({"ours": 1.3, "disturbed": "other processes"}, "0 slower, 0 faster, 1 disturbed"),
    ],
)
def test_a_change_is_one_of_the_code_by_more_than_the_limit(now, verdict, tmp_path, capsys):
    files = written(tmp_path / "a", 1.0), written(tmp_path / "b", **now)
    assert bench.main(["compare", *files, "--strict"]) == int(verdict[0] == "1")
    told = capsys.readouterr().out
    assert f"1 rows: {verdict}; geometric mean of now/before {now['ours']:.3f}" in told
    assert ("Adam, 1,000, float32, 0 thr, idle" in told) == ("1 slower" in verdict or "1 faster" in verdict)
    assert bench.main(["compare", *files, "--strict", "--limit", "50"]) == 0
    assert bench.main(["compare", *files, "--all"]) == 0
    assert "Adam, 1,000" in capsys.readouterr().out


def test_another_machine_is_told(tmp_path, capsys):
    files = written(tmp_path / "a", 1.0), written(tmp_path / "b", 1.0, machine={**MACHINE, "cpu": "two"})
    assert bench.main(["compare", *files]) == 0
    assert "The files differ in cpu: one before, two now." in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"machine": {}, "rows": [{}]}'])
def test_what_cannot_be_compared_is_said(content, tmp_path, capsys):
    good, bad = written(tmp_path / "a", 1.0), tmp_path / "b"
    if content is not None:
        bad.write_text(content)
    for files in ([good, str(bad)], [str(bad), good]):
        assert bench.main(["compare", *files]) == 2
        assert str(bad) in capsys.readouterr().err
    other = written(bad, 1.0, name="SGD")
    assert bench.main(["compare", good, other]) == 2
    assert "no row in common" in capsys.readouterr().err
