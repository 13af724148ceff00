"""The model of a step by many ranks, against values computed by hand; what `bench distributed` says of it."""

import json
import shutil

import pytest
from support.mpi import needs_mpi

from pyoptim import bench
from pyoptim.bench import distributed, scaling
from pyoptim.bench.scaling import Compute, Network, Part

NETWORK = Network(alpha=10.0, beta=0.5)
PARTS = [Part(0.75, 80), Part(0.25, 20)]
COMPUTE = Compute(fixed=7.0, example=3.0, copies=2.0)


def test_allreduces():
    # Round a ring of 4: 6 messages of 25 bytes. By a tree: 4 of 100 bytes.
    assert scaling.ring(4, 100, NETWORK) == 6 * (10 + 12.5)
    assert scaling.tree(4, 100, NETWORK) == 4 * (10 + 50)
    assert scaling.allreduce(4, 100, NETWORK) == 135
    assert scaling.tree(5, 1, NETWORK) == 6 * 10.5  # three levels
    assert scaling.allreduce(64, 8, NETWORK) == scaling.tree(64, 8, NETWORK) == 12 * 14
    assert scaling.ring(1, 100, NETWORK) == scaling.tree(1, 100, NETWORK) == 0


def test_steps():
    assert scaling.step(10, 1, COMPUTE, PARTS, NETWORK) == 7 + 30
    assert scaling.step(10, 1, COMPUTE, PARTS, NETWORK, overlap=True) == 7 + 30
    # The largest of four parts of 10 examples has 3.
    assert scaling.step(10, 4, COMPUTE, PARTS, NETWORK) == 7 + 2 + 9 + 135


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        # Of 3 examples, 9 s, the forward pass takes 3. The last layer's 20 bytes, 75 s by a ring, go at 4.5;
        # the first layer's 80 bytes, 120 s, wait for them, though they are ready at 9.
        (12, 7 + 2 + 4.5 + 75 + 120),
        # Of 300 examples, 900 s: the last layer's are sent while the first one is computed, until 900.
        (1200, 7 + 2 + 900 + 120),
    ],
)
def test_steps_that_send_while_they_compute(batch, expected):
    assert scaling.step(batch, 4, COMPUTE, PARTS, NETWORK, overlap=True) == pytest.approx(expected, rel=1e-14)


def test_when_more_ranks_pay():
    # Two ranks: copies 2, and a ring of two takes 20 + 50. They spare batch/2 * 3, more than 72 from 50 on.
    assert scaling.allreduce(2, 100, NETWORK) == 70
    assert scaling.pays_from(2, COMPUTE, PARTS, NETWORK) == 64
    assert scaling.pays_from(2, COMPUTE, PARTS, NETWORK, most=32) is None
    assert scaling.best_ranks(4, 1024, COMPUTE, PARTS, NETWORK) == 1
    assert scaling.best_ranks(64, 2, COMPUTE, PARTS, NETWORK) == 2
    free = Network(0.0, 0.0)
    assert scaling.best_ranks(1024, 1024, COMPUTE, PARTS, free) == 1024


def test_lines():
    assert scaling.line([(0, 3.0), (10, 5.0), (20, 7.0)]) == pytest.approx((3, 0.2))
    assert scaling.line([(1, 5.0), (2, 5.0)]) == pytest.approx((5, 0))
    a, b = scaling.line([(1, 1.0), (2, 3.0)])  # the line through both would begin below 0
    assert a == 0
    assert 1 < b < 1.5
    assert scaling.network_of([(0, 4.0), (100, 54.0)]) == pytest.approx((2, 0.5))


def test_layers():
    assert scaling.dense_parts([3, 4, 2], 8) == [Part(12 / 20, 16 * 8), Part(8 / 20, 10 * 8)]
    assert scaling.shared(COMPUTE, 4, 2) == (14, 6, 4)
    assert scaling.shared(COMPUTE, 2, 4) == COMPUTE


@needs_mpi
def test_a_quick_run_says_what_it_found(tmp_path, capsys):
    small = ["--quick", "--ranks", "2", "--batches", "16,64", "--hidden", "4", "--network", "10,25"]
    assert bench.main(["distributed", *small, "--json", str(tmp_path / "found.json")]) == 0
    told = capsys.readouterr().out
    for text in ("between two ranks here", "4,194,304 bytes", "batch 64", "25 Gbit/s, 10 µs", "quickest"):
        assert text in told
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["ranks"] for one in found["measured"]] == [1, 2]
    assert [batch for batch, seconds in found["measured"][1]["steps"] if seconds > 0] == [16, 64]
    assert found["model"]["here"][1] > 0


def test_a_plot_has_points_and_lines(tmp_path):
    pytest.importorskip("matplotlib")
    network = scaling.Network(1e-6, 1e-10)
    model = distributed.Model(Compute(1e-4, 1e-5, 1e-5), PARTS, network)
    steps = [(batch, scaling.step(batch, 1, *model)) for batch in (64, 256)]
    found = [distributed.Measured(ranks, [], steps, 1e-5) for ranks in (1, 2)]
    figure = distributed.draw(tmp_path / "found.png", found, model, [("a network", network)])
    here, there = figure.axes
    points, line = here.lines[:2]
    assert list(points.get_xdata()) == list(line.get_xdata()) == [64, 256]
    assert points.get_ydata() == pytest.approx([0.74, 2.66])
    assert line.get_ydata() == pytest.approx(points.get_ydata())  # the model's own
    assert len(there.lines) == 4
    assert (tmp_path / "found.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "expected counts"),
        (["--network", "10"], "expected microseconds and Gbit/s"),
        (["--network", "1,0"], "expected microseconds and Gbit/s"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        distributed.main(arguments)
    assert message in capsys.readouterr().err


def test_a_missing_starter_is_said(monkeypatch, capsys):
    pytest.importorskip("mpi4py")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert distributed.main(["--ranks", "2"]) == 2
    assert "mpiexec was not found" in capsys.readouterr().err
