"""`pyoptim bench`: it measures what it says, and reports no time of a wrong result."""

import gc
import json
import sys

import numpy as np
import pytest

import pyoptim as po
from pyoptim import bench
from pyoptim.arrays.queue import Queue
from pyoptim.bench import numpy_optimizers, optimizers, report, timing, training
from pyoptim.bench.case import Case, Options, Row, Target

QUICK = ["--quick", "--against", "numpy", "--parts", "optimizers"]


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect():
    """A measurement begins with a garbage collection, which need not go through what is imported by now."""
    gc.collect()
    gc.freeze()


def test_a_quick_run_measures_every_optimizer_and_writes_json_and_plot(tmp_path, capsys):
    data, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    assert bench.main([*QUICK, "--json", str(data), "--plot", str(plot)]) == 0

    found = json.loads(data.read_text())
    assert set(found) == {"machine", "ceiling", "rows", "targets"}
    assert found["machine"]["threads"] == po.get_num_threads()
    assert found["machine"]["torch"] is None
    assert [(row["name"], row["size"]) for row in found["rows"]] == [
        *((name, size) for name in optimizers.OPTIMIZERS for size in (1000, 100_000)),
        *((name, sum(sizes)) for name, sizes in optimizers.SEVERAL.items()),
    ]
    for row in found["rows"]:
        assert set(row["seconds"]) == {"pyoptim", "numpy"}
        assert all(0 < seconds < 60 for seconds in row["seconds"].values())
        assert row["bandwidth"] == row["traffic"] / row["seconds"]["pyoptim"]
        assert row["of_ceiling"] is None  # in the caches
    assert {target["bound"] for target in found["targets"]} == {8}  # the others need torch or large arrays
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*optimizers.OPTIMIZERS, "x numpy", "Targets"))


def _row(name, times, ceiling=None, **more):
    limit = {"copy": 100 / ceiling} if ceiling else {}
    return Row(name, 1000, "float32", 100, {"pyoptim": 1.0, **times}, limit, **more)


def test_a_plot_has_a_bar_for_each_row_against_the_fastest_competitor():
    pytest.importorskip("matplotlib")
    rows = [
        _row("SGD", {"numpy": 9.0, "torch": 3.0, "torch fused": 2.0}, ceiling=0.5),
        _row("Adam", {"numpy": 4.0, "torch": 0.5}),
        _row("Lion", {}),
    ]
    figure = report.draw(None, rows)
    (axes,) = figure.axes
    assert "float32, 0 threads" in figure.get_suptitle()
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == [2, 0.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "SGD, 1,000",
        "Adam, 1,000",
        "Lion, 1,000",
    ]
    assert axes.get_xscale() == "log"
    marks = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "|"]
    assert marks == [pytest.approx(2 / rows[0].of_ceiling)]
    low, high = axes.get_xlim()
    assert low < 0.5
    assert high > marks[0]
    names = {text.get_text() for text in axes.figure.legends[0].texts}
    assert names == {"against torch fused", "against torch", "the machine's ceiling"}


def test_many_rows_are_drawn_in_columns_and_named_apart():
    pytest.importorskip("matplotlib")
    rows = [_row("SGD", {"numpy": 2.0}, threads=i % 2 + 1) for i in range(100)]
    panels = report.draw(None, rows).axes
    assert len(panels) == 3
    assert sum(len(axes.patches) for axes in panels) == 100
    assert panels[0].get_yticklabels()[1].get_text() == "SGD, 1,000, 2 thr"
    assert len({axes.get_xlim() for axes in panels}) == 1


def test_beyond_the_caches_the_ceiling_is_measured_in_turn(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.machine, "last_level_cache", lambda device: 1000)
    monkeypatch.setattr(bench.machine, "_ELEMENTS", 1000)
    bench.machine.streaming_runs.cache_clear()
    data = tmp_path / "bench.json"
    assert bench.main([*QUICK, "--optimizers", "SGD", "--json", str(data)]) == 0
    bench.machine.streaming_runs.cache_clear()
    found = json.loads(data.read_text())
    streams = {"numpy copy"} | ({"a += s * b"} if "native" in po.available_backends() else set())
    for row in found["rows"]:
        assert set(row["ceiling"]) == streams
        assert row["of_ceiling"] == row["bandwidth"] / max(row["ceiling"].values())
    assert set(found["ceiling"]) == streams


def test_options_choose_names_sizes_and_dtype(tmp_path):
    data = tmp_path / "bench.json"
    arguments = ["--optimizers", "adam,sgd NESTEROV", "--sizes", "7,2e3", "--dtype", "float64"]
    assert bench.main([*QUICK, *arguments, "--json", str(data)]) == 0
    rows = json.loads(data.read_text())["rows"]
    assert [(row["name"], row["size"], row["dtype"]) for row in rows] == [
        (name, size, "float64") for name in ("Adam", "SGD Nesterov") for size in (7, 2000)
    ]
    # Adam: reads p, g and two states, writes p and the states.
    assert rows[1]["traffic"] == 2000 * 8 * 7


def test_torch_is_checked_and_timed_too(tmp_path):
    pytest.importorskip("torch")
    data = tmp_path / "bench.json"
    assert bench.main(["--quick", "--parts", "optimizers", "--sizes", "1000", "--json", str(data)]) == 0
    for row in json.loads(data.read_text())["rows"]:
        kind = optimizers.OPTIMIZERS[row["name"].replace(" 6 arrays", "").replace(" 200 arrays", "")]
        torch = {"torch default", "torch foreach"} | ({"torch fused"} if kind.fused else set())
        assert set(row["seconds"]) == {"pyoptim", "numpy"} | (torch if kind.torch else set())


DENSE = ["--quick", "--parts", "dense"]


def test_dense_layers_are_measured_against_the_peak(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.layers, "_DENSE", {(20, 30): (1, 7)})
    data = tmp_path / "bench.json"
    assert bench.main([*DENSE, "--against", "numpy", "--json", str(data)]) == 0
    rows = json.loads(data.read_text())["rows"]
    assert [(row["name"], row["size"], row["flops"]) for row in rows] == [
        ("dense 20-30 ReLU", n, 6 * n * 20 * 30) for n in (1, 7)
    ]
    for row in rows:
        assert set(row["seconds"]) == {"pyoptim", "numpy"}
        if "native" in po.available_backends():
            share = row["flops"] / row["seconds"]["pyoptim"] / row["ceiling"]["multiply-add"]
            assert 0 < row["of_ceiling"] == share  # above 1 where another process disturbed the ceiling
    assert "dense 20-30 ReLU" in capsys.readouterr().out


def test_dense_layers_of_torch_are_checked_and_timed(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr(bench.layers, "_DENSE", {(20, 30): (7,)})
    data = tmp_path / "bench.json"
    assert bench.main([*DENSE, "--dtype", "float64", "--json", str(data)]) == 0
    (row,) = json.loads(data.read_text())["rows"]
    assert set(row["seconds"]) == {"pyoptim", "numpy", "torch out=", "torch autograd"}


@pytest.mark.parametrize("result", ["y", "dx", "dweight", "dbias"])
@pytest.mark.parametrize("wrong", [0.001, np.nan])
def test_one_wrong_element_of_a_dense_layer_is_caught(monkeypatch, capsys, result, wrong):
    monkeypatch.setattr(bench.layers, "_DENSE", {(20, 30): (7,)})
    right = bench.layers._dense_numpy

    def slightly_wrong(arrays):
        run, results = right(arrays)

        def off():
            run()
            results()[result].reshape(-1)[5] += wrong

        return bench.layers.Competitor(off, results)

    monkeypatch.setattr(bench.layers, "_dense_numpy", slightly_wrong)
    assert bench.main([*DENSE, "--against", "numpy"]) == 1
    assert f"of numpy: {result}[" in capsys.readouterr().err


NORM_CASES = [("batch norm", (9, 5)), ("batch norm ReLU", (4, 3, 2, 2)), ("layer norm", (6, 11))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalisation_is_checked_and_timed(monkeypatch, tmp_path, dtype):
    monkeypatch.setattr(bench.norms, "_CASES", NORM_CASES)
    data = tmp_path / "bench.json"
    assert bench.main(["--quick", "--parts", "norm", "--dtype", dtype, "--json", str(data)]) == 0
    rows = json.loads(data.read_text())["rows"]
    size = np.dtype(dtype).itemsize
    assert [(row["name"], row["traffic"]) for row in rows] == [
        ("batch norm 9x5", 8 * 45 * size),
        ("batch norm ReLU 4x3x2x2", 8 * 48 * size),
        ("layer norm 6x11", 5 * 66 * size),
    ]
    assert all({"pyoptim", "numpy"} <= set(row["seconds"]) for row in rows)


@pytest.mark.parametrize("result", ["y", "dx", "dgamma", "dbeta"])
def test_one_wrong_element_of_a_normalisation_is_caught(monkeypatch, capsys, result):
    monkeypatch.setattr(bench.norms, "_CASES", NORM_CASES)
    right = bench.norms._numpy

    def slightly_wrong(*arguments):
        run, results = right(*arguments)

        def off():
            run()
            results()[result].reshape(-1)[2] += 0.01

        return bench.layers.Competitor(off, results)

    monkeypatch.setattr(bench.norms, "_numpy", slightly_wrong)
    assert bench.main(["--quick", "--parts", "norm", "--against", "numpy"]) == 1
    assert capsys.readouterr().err.count(f"of numpy: {result}[") == len(NORM_CASES)


def test_a_step_that_does_nothing_is_caught(monkeypatch, capsys):
    monkeypatch.setattr(po.Optimizer, "step", lambda self, grads: None)
    assert bench.main(QUICK) == 1
    captured = capsys.readouterr()
    assert captured.err.count("WRONG") == 2 * len(optimizers.OPTIMIZERS) + len(optimizers.SEVERAL)
    assert "of pyoptim on 1000 float32 values" in captured.err
    assert "Targets" not in captured.out  # nothing was timed


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_wrong_element_is_caught(name, dtype, monkeypatch, capsys):
    right = po.Optimizer.step

    def wrong(self, grads):
        before = self.param_groups[0]["params"][0][-1]
        right(self, grads)
        self.param_groups[0]["params"][0][-1] = before

    monkeypatch.setattr(po.Optimizer, "step", wrong)
    assert bench.main([*QUICK, "--optimizers", name, "--dtype", dtype, "--sizes", "1e3"]) == 1
    assert "p[999] is" in capsys.readouterr().err


def test_a_peer_that_computes_something_else_is_caught(monkeypatch, capsys):
    def half(t, p, g):
        p -= 5e-4 * g if p.dtype == np.float32 else 1e-3 * g

    monkeypatch.setitem(optimizers.OPTIMIZERS, "SGD", optimizers.OPTIMIZERS["SGD"]._replace(numpy=half))
    assert bench.main([*QUICK, "--optimizers", "SGD"]) == 1
    assert "of numpy on" in capsys.readouterr().err


def test_missed_targets_fail_only_a_strict_run(monkeypatch, capsys):
    hopeless = bench.FAMILIES["optimizers"]._replace(targets=[Target("the moon", 1e9, lambda row: 1.0)])
    monkeypatch.setitem(bench.FAMILIES, "optimizers", hopeless)
    arguments = [*QUICK, "--optimizers", "SGD"]
    assert bench.main(arguments) == 0
    assert "FAIL" in capsys.readouterr().out
    assert bench.main([*arguments, "--strict"]) == 1


def test_ratios_bandwidth_and_verdicts():
    seconds = {"pyoptim": 2.0, "numpy": 10.0, "torch fused": 5.0, "torch default": 3.0}
    row = Row("Adam", 50_000_000, "float32", 100, seconds, {"copy": 40.0, "update": 80.0})
    assert (row.faster_than("numpy"), row.faster_than("torch"), row.faster_than("jax")) == (5, 1.5, None)
    assert (row.bandwidth, row.of_ceiling) == (50, 0.625)
    verdicts = report.judge([row], optimizers.FAMILY.targets)
    assert [(v["value"], v["passed"]) for v in verdicts] == [(1.5, True), (5, False), (0.625, False)]


def test_competitors_alternate_and_every_block_counts():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    found = timing.in_turn(runs, timing.Effort(0.0, 0.0, 0.0, least=3, most=3))
    assert set(found) == {"a", "b"}
    blocks = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert blocks == ["a", "b"] * 3


def test_the_centered_variance_of_a_constant_gradient_stays_finite():
    p, g = np.zeros(100), np.full(100, 0.1)
    states = [np.zeros(100) for _ in range(3)]
    for t in range(1, 3000):
        numpy_optimizers.rmsprop_centered_momentum(t, p, g, *states)
    assert np.isfinite(p).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "0"], "below 1"),
        (["--sizes", "many"], "not a list of numbers"),
        (["--optimizers", "Adam,Eve"], "'eve' is not among"),
        (["--parts", "sparse"], "'sparse' is not among optimizers, dense"),
        (["--against", "mlx"], "'mlx' is not among numpy, torch, jax"),
        (["--threads", "0"], "n is 0"),
        (["--plot", "a.xyz"], "no image"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    try:
        status = bench.main([*QUICK, *arguments])
    except SystemExit as leave:  # argparse's way
        status = leave.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert bench.main([*QUICK, "--plot", "a.png"]) == 2
    assert "pyoptim[plot]" in capsys.readouterr().err


def test_asking_for_torch_where_it_is_missing_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(bench.libraries.importlib.util, "find_spec", lambda name: None)
    assert bench.main(["--quick", "--against", "torch"]) == 2
    assert "not installed" in capsys.readouterr().err


@pytest.fixture
def one_thread():
    """So that PyTorch's threads, which go on spinning, are not in the way of ours."""
    before = po.get_num_threads()
    po.set_num_threads(1)
    yield
    po.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_training_is_checked_and_timed(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr(training, "_QUICK_EXAMPLES", {1: 20, 16: 160})
    monkeypatch.delenv("PYOPTIM_DATA", raising=False)
    data = tmp_path / "bench.json"
    arguments = ["--quick", "--parts", "training", "--against", "torch", "--json", str(data)]
    assert bench.main(arguments) == 0
    rows = json.loads(data.read_text())["rows"]
    names = [("epoch Adam", 1), ("epoch Adam", 16), ("epoch SGD", 1), ("epoch Adam BatchNorm", 16)]
    assert [(row["name"], row["size"]) for row in rows] == names
    for row in rows:
        norm = {"pyoptim without"} if "BatchNorm" in row["name"] else set()
        assert set(row["seconds"]) == {"pyoptim", "torch fused", "torch foreach"} | norm


@pytest.mark.usefixtures("one_thread")
def test_training_that_goes_another_way_is_not_timed(monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(training, "_QUICK_EXAMPLES", {1: 20, 16: 160})
    monkeypatch.setattr(training, "_pyoptim", lambda work: lambda order: 2.0)
    assert bench.main(["--quick", "--parts", "training", "--against", "torch"]) == 1
    assert "WRONG: Adam, batch 1: torch fused has a mean loss of" in capsys.readouterr().err


def test_a_case_that_fails_costs_nobody_the_others(monkeypatch, tmp_path, capsys):
    real, path = optimizers.pyoptim_run, tmp_path / "rows.json"

    def run(kind, p, g):
        if len(p[0]) == 1_000:
            raise RuntimeError("not here")
        return real(kind, p, g)

    monkeypatch.setattr(optimizers, "pyoptim_run", run)
    arguments = ["--quick", "--parts", "optimizers", "--optimizers", "SGD", "--against", "numpy"]
    assert bench.main([*arguments, "--sizes", "1000,2000", "--json", str(path)]) == 1
    assert "FAILED: SGD" in (told := capsys.readouterr().err)
    assert "RuntimeError: not here" in told
    assert [row["size"] for row in json.loads(path.read_text())["rows"]] == [2_000]


def test_activations_are_checked_and_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.activations, "_SIZE", 999)
    path = tmp_path / "rows.json"
    bench.main(["--quick", "--parts", "activations", "--json", str(path)])
    names = [row["name"] for row in json.loads(path.read_text())["rows"]]
    assert names == list(bench.activations._KINDS)


def test_a_gpu_is_measured_against_its_copy(emulated, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.machine, "_GPU_CACHE", 1000)
    monkeypatch.setattr(bench.machine, "_GPU_BYTES", 4000)
    bench.machine.copy_runs.cache_clear()
    data = tmp_path / "bench.json"
    arguments = ["--device", "cuda", "--quick", "--sizes", "300", "--json", str(data)]
    arguments += ["--parts", "optimizers", "--optimizers", "adam,SGD,Adam 6 arrays"]
    assert bench.main(arguments) == 0
    bench.machine.copy_runs.cache_clear()
    found = json.loads(data.read_text())
    assert found["machine"]["gpu"] == "emulated"
    assert [(row["name"], row["size"]) for row in found["rows"]] == [
        ("Adam", 300), ("SGD", 300), ("Adam 6 arrays", 235_146)
    ]  # fmt: skip
    for row in found["rows"][::2]:
        assert set(row["ceiling"]) == {"copy"}
        assert row["of_ceiling"] == row["bandwidth"] / row["ceiling"]["copy"]


def test_norms_are_measured_on_a_gpu(emulated, monkeypatch, tmp_path):
    cases = [("batch norm", (37, 5)), ("batch norm ReLU", (3, 4, 7, 5)), ("layer norm", (6, 40))]
    monkeypatch.setattr(bench.norms, "_GPU_CASES", cases)
    data = tmp_path / "bench.json"
    assert bench.main(["--device", "cuda", "--quick", "--parts", "norm", "--json", str(data)]) == 0
    rows = json.loads(data.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "batch norm 37x5", "batch norm ReLU 3x4x7x5", "layer norm 6x40"
    ]  # fmt: skip


def test_training_is_measured_on_a_gpu(emulated, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "_QUICK_EXAMPLES", {8: 100})
    monkeypatch.setattr(training, "_WIDTHS", (784, 8, 6, 10))
    data = tmp_path / "bench.json"
    assert bench.main(["--device", "cuda", "--quick", "--parts", "training", "--json", str(data)]) == 0
    rows = json.loads(data.read_text())["rows"]
    assert [(row["name"], row["size"]) for row in rows] == [("epoch Adam", 8), ("epoch Adam BatchNorm", 8)]
    for row in rows:
        assert row["seconds"]["pyoptim"] > 0


def test_training_on_a_gpu_finds_its_examples_there(emulated, monkeypatch):
    """As PyTorch does: copying them is no part of an epoch."""
    x, y = np.random.default_rng(0).random((32, 784), np.float32), np.arange(32) % 10
    monkeypatch.setattr(training, "_WIDTHS", (784, 4, 10))
    epoch = training._pyoptim(training._Work("Adam", 8, False, x, y, "cuda"))
    copied, upload = [], Queue.upload
    monkeypatch.setattr(
        Queue, "upload", lambda queue, to, array: (copied.append(array.nbytes), upload(queue, to, array))
    )
    assert np.isfinite(epoch(None))
    assert 0 < max(copied) < x.nbytes


def test_what_operations_limit_has_no_copy_for_a_ceiling(emulated, monkeypatch):
    monkeypatch.setattr(bench.machine, "_GPU_CACHE", 1)
    case = Case("made", 1, 10**9, lambda: {"pyoptim": lambda: None}, flops=10**9)
    options = Options([], "float32", (), [], quick=True, device="cuda")
    assert bench._measure(case, options, bench.QUICK).of_ceiling is None


def test_a_library_that_cannot_be_imported_is_told(monkeypatch, capsys):
    def broken(device):
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(bench.libraries, "installed", broken)
    assert bench.main(["--device", "cuda"]) == 2
    assert "pyoptim bench: libcudart.so.12" in capsys.readouterr().err


def test_a_wrong_step_on_a_gpu_is_caught(emulated, monkeypatch, capsys):
    monkeypatch.setattr(optimizers.OPTIMIZERS["SGD"].optimizer, "_row", lambda *_: (1.0, 0.0, 1.0, 0.5))
    assert (
        bench.main(
            ["--device", "cuda", "--quick", "--parts", "optimizers", "--sizes", "300", "--optimizers", "SGD"]
        )
        == 1
    )
    assert "SGD of pyoptim on 300 float32 values" in capsys.readouterr().err


def test_without_a_gpu_it_says_what_is_missing(no_gpu, capsys):
    if {"cuda", "cupy"} & set(po.available_backends()):
        pytest.skip("there is a GPU")
    assert bench.main(["--device", "cuda"]) == 2
    assert "arrays in a GPU's memory need a backend" in capsys.readouterr().err


def test_a_part_that_is_not_measured_on_a_gpu_is_refused(emulated, capsys):
    assert bench.main(["--device", "cuda", "--parts", "activations"]) == 2
    assert "--parts asks for activations, which is not measured on cuda" in capsys.readouterr().err


def test_calls_of_ops_are_timed_beside_what_the_backend_does(tmp_path):
    data = tmp_path / "bench.json"
    assert bench.main(["--quick", "--parts", "calls", "--json", str(data)]) == 0
    rows = json.loads(data.read_text())["rows"]
    assert all(set(row["seconds"]) == {"pyoptim", "kernel"} for row in rows)
    functions = {name for name in po.ops.__all__ if name.islower()}
    calls = bench.calls._calls(np.dtype(np.float32)).values()
    assert {next(n for n in call.__code__.co_names if n in functions) for call in calls} == functions


def test_the_bound_on_calls_is_on_what_they_add():
    (target,) = bench.calls.FAMILY.targets
    row = _row("call: softmax forward", {})
    slow, quick = ({"pyoptim": 5e-6 + added, "kernel": 5e-6} for added in (2.1e-6, 1.9e-6))
    assert target.value(row._replace(seconds=slow)) < target.bound < target.value(row._replace(seconds=quick))
    assert target.value(row) is None
