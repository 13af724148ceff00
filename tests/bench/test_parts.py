"""The parts of `pyoptim bench` that run only where they are asked for: quick forms, on tiny sizes."""

import ctypes
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import pyoptim as po
from pyoptim import bench
from pyoptim.bench import (
    busy,
    cpp,
    crossover,
    fallbacks,
    machine,
    predictions,
    report,
    shapes,
    tabular,
    timing,
)
from pyoptim.bench.case import Case, Family, Options, Row, Target

needs_native = pytest.mark.skipif("native" not in po.available_backends(), reason="measures compiled threads")
SWEEPS = [name for name, family in bench.FAMILIES.items() if family.sweeps]


@pytest.fixture(autouse=True)
def two_threads():
    before = po.get_num_threads()
    po.set_num_threads(2)
    yield
    po.set_num_threads(before)


def rows_of(part, tmp_path, *arguments):
    path = tmp_path / f"{part}.json"
    assert bench.main([part, "--quick", "--json", str(path), *arguments]) == 0
    return json.loads(path.read_text())


def made_up(name="forward 32-32", size=32, torch=2.0, dtype="float32", threads=1, **more):
    seconds = {"pyoptim": 1.0, "torch out=": torch}
    return Row(name, size, dtype, 8, seconds, {"multiply-add": 4.0}, 2, threads=threads, **more)


def test_without_a_part_no_sweep_runs(monkeypatch):
    run = []
    monkeypatch.setattr(bench, "_run", lambda family, *_: run.append(family) or 0)
    assert bench.main(["--quick"]) == 0
    assert run == [
        bench.FAMILIES[name]
        for name in ("optimizers", "dense", "losses", "norm", "activations", "calls", "training")
    ]
    run.clear()
    assert bench.main(["busy", "--parts", "dense,layers", "--quick"]) == 0
    assert run == [bench.FAMILIES[name] for name in ("busy", "dense", "layers")]


def test_a_wrong_part_names_the_parts(capsys):
    with pytest.raises(SystemExit) as leave:
        bench.main(["layer"])
    assert leave.value.code == 2
    assert "'layer' is not among optimizers, dense" in (told := capsys.readouterr().err)
    assert all(name in told for name in SWEEPS)


def test_the_help_says_what_a_part_measures(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {bench.FAMILIES[name].sweeps}" in told for name in SWEEPS)


@pytest.mark.parametrize("threads", [None, "1"])
def test_layers_of_both_types_on_one_thread_and_on_all(threads, monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "_QUICK_SHAPES", [(3, 5, 7)])
    monkeypatch.setattr(shapes, "ACTIVATIONS", {"relu": None})
    options = ["--threads", threads] if threads else []
    found = rows_of("layers", tmp_path, "--against", "numpy", *options)["rows"]
    counts = [1, 2] if threads is None else [1]
    names = ["forward 5-7", "backward 5-7", "relu", "batch norm 10x64", "cross-entropy 10"]
    assert [(row["threads"], row["dtype"], row["name"]) for row in found] == [
        (n, dtype, name) for n in counts for dtype in ("float32", "float64") for name in names
    ]
    assert [row["flops"] for row in found[:2]] == [2 * 3 * 5 * 7, 4 * 3 * 5 * 7]
    for row in found:
        first, third = row["quartiles"]["pyoptim"]
        assert 0 < first <= row["seconds"]["pyoptim"] <= third
        assert {"load_average", "switches"} <= set(row["counters"]) or sys.platform == "win32"
        assert row["load"] == "idle"
        assert isinstance(row["disturbed"], str)


def test_layers_of_torch_are_compared_and_a_map_is_drawn(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    plot = tmp_path / "map.png"
    arguments = ["--match", "ward", "--dtype", "float64", "--threads", "1", "--plot", str(plot)]
    found = rows_of("layers", tmp_path, *arguments)["rows"]
    ways = {"forward": {"torch out=", "torch functional"}, "backward": {"torch out="}}
    assert [row["name"] for row in found] == [
        f"{way} {shape[1]}-{shape[2]}" for way in ways for shape in shapes._QUICK_SHAPES
    ]
    for row in found:
        assert set(row["seconds"]) - {"pyoptim"} == ways[row["name"].split()[0]]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("result", [0, -1])
def test_a_wrong_layer_is_not_timed(way, result, monkeypatch, capsys):
    right = shapes._ours

    def slightly_wrong(way, arrays):
        run, results = right(way, arrays)
        written = arrays.y if way == "forward" else (arrays.dx, arrays.dbias)[result]

        def off():
            run()
            written.reshape(-1)[-1] += 0.01

        return shapes.Competitor(off, results)

    monkeypatch.setattr(shapes, "_ours", slightly_wrong)
    assert bench.main(["layers", "--quick", "--match", f"{way},float32", "--threads", "1"]) == 1
    assert capsys.readouterr().err.count("WRONG") == len(shapes._QUICK_SHAPES)


def test_the_shapes_are_many_and_off_the_round_numbers():
    found = shapes.shapes()
    assert found == shapes.shapes()
    assert len(found) > 400
    assert {max(sizes) for sizes in zip(*found, strict=True)} <= set(range(3900, 4097))
    assert sum(all(n & (n - 1) for n in shape) for shape in found) > 200


def test_targets_of_layers():
    rows = [made_up(torch=3.0), made_up(torch=0.5), made_up("forward 31-64", torch=2.0)]
    told = {v["text"].split(":")[0]: v for v in report.judge(rows, shapes.FAMILY.targets)}
    assert (told["layers, every shape"]["value"], told["layers, every shape"]["missed"]) == (0.5, 1)
    assert told["layers, median"]["value"] == 2.0
    of_peak = told["dense, batch, inputs and outputs of 32 and more"]
    assert (of_peak["value"], of_peak["rows"]) == (0.5, 2)


@pytest.mark.parametrize(
    ("peer", "names"),
    [
        ("torch", ["3-16-2 Adam", "3-16-2 Adam BatchNorm", "3-16-2 SGD", "3-16-2 SGD BatchNorm"]),
        ("jax", ["3-16-2 Adam BatchNorm"]),  # which compiles for a second
    ],
)
def test_tabular_steps_are_checked_and_timed(peer, names, monkeypatch, tmp_path):
    pytest.importorskip(peer)
    monkeypatch.setattr(tabular, "_QUICK_EXAMPLES", {4: 40})
    match = names[0] if len(names) == 1 else ""
    found = rows_of("tabular", tmp_path, "--against", peer, "--match", match)["rows"]
    assert [row["name"] for row in found] == names
    for row in found:
        assert (row["size"], len(row["seconds"])) == (4, 2)
        assert row["flops"] == 4 * 2 * (3 * (3 * 16 + 16 * 2) - 3 * 16)


def test_estimators_are_checked_and_timed(tmp_path):
    pytest.importorskip("sklearn")
    found = rows_of("sklearn", tmp_path, "--dtype", "float32")["rows"]
    assert [row["name"] for row in found] == ["fit 200x5, epoch", "predict_proba 30-100", "fit iris, whole"]
    assert all(set(row["seconds"]) == {"pyoptim", "sklearn", "sklearn, one thread"} for row in found)


def test_predictions_are_checked_and_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(predictions, "_QUICK_ROWS", (1, 65))
    found = rows_of("predict", tmp_path)["rows"]
    assert [(row["name"], row["size"]) for row in found] == [
        (f"predict 64-100-10{norm}", n) for norm in ("", " BatchNorm") for n in (1, 65)
    ]
    peers = set(bench.libraries.installed("cpu")) & {"torch", "onnxruntime"}
    assert all(set(row["seconds"]) == {"pyoptim", *peers} for row in found)


def test_a_wrong_prediction_is_not_timed(monkeypatch, capsys):
    right = predictions._pyoptim
    monkeypatch.setattr(predictions, "_pyoptim", lambda model: lambda x: right(model)(x) * 1.01)
    assert bench.main(["predict", "--quick", "--against", "numpy"]) == 1
    assert "outputs of pyoptim are off by" in capsys.readouterr().err


@needs_native
def test_threads_say_from_where_on_they_pay(tmp_path):
    found = rows_of("threads", tmp_path, "--against", "numpy")
    assert {row["name"] for row in found["rows"]} == set(crossover._KINDS)
    for row in found["rows"]:
        assert set(row["seconds"]) == {"pyoptim", "1 thread", "2 threads"}
        assert row["parts"] == (1 if row["size"] == 1024 else 2)
    lines = found["conclusions"]
    assert all(any(line.strip().startswith(name) for line in lines) for name in crossover._KINDS)
    assert "while threads spin" in lines[-2]


@needs_native
def test_threads_that_change_the_bits_are_not_timed(monkeypatch, capsys):
    def off(size):
        out = np.zeros(size)
        return lambda: out.__setitem__(0, out[0] + 1), [out]

    monkeypatch.setattr(crossover, "_KINDS", {"counting": off})
    assert bench.main(["threads", "--quick", "--against", "numpy"]) == 1
    assert "counting, 1024: the result with 1 thread has other bits" in capsys.readouterr().err
    from pyoptim.runtime import _native

    _native.most_parts()
    crossover._activation("relu", 1024)[0]()
    assert _native.most_parts() == 1  # the grains are the library's own again


def rows_of_threads(*times):
    """Rows of one kind: its size, seconds with one thread and with two, and the parts in force."""
    return [
        Row("relu", size, "float32", 1, {"pyoptim": 1, "1 thread": one, "2 threads": two}, {}, parts=parts)
        for size, one, two, parts in times
    ]


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ([(8, 1, 2, 1), (16, 1, 0.9, 1), (32, 1, 2, 1), (64, 2, 1, 1), (128, 3, 1, 2)], ("64", "128")),
        ([(8, 1, 0.5, 2), (16, 1, 0.5, 2)], ("8", "8")),
        ([(8, 1, 2, 1), (16, 1, 2, 1)], ("never", "never")),
    ],
)
def test_the_crossover_is_where_threads_win_for_good(times, told, monkeypatch):
    monkeypatch.setattr(crossover, "_figures_of_the_pool", list)
    assert tuple(crossover._conclude(rows_of_threads(*times))[1].split()[1:]) == told


def test_busy_measures_every_load_with_one_thread_as_a_competitor(monkeypatch, tmp_path):
    begun = []
    loads = {"idle": busy.contextlib.nullcontext, "1 busy": lambda: begun.append(1) or busy.running("", 0)}
    monkeypatch.setattr(busy, "_loads", lambda: loads)
    monkeypatch.setattr(busy, "_several_fits", lambda options: iter(()))
    found = rows_of("busy", tmp_path, "--against", "numpy")["rows"]
    assert [(row["load"], set(row["seconds"])) for row in found] == [
        (load, {"pyoptim", "alone"}) for load in ("idle", "1 busy")
    ]
    assert begun == [1]


def test_a_load_that_is_not_possible_is_told(monkeypatch, capsys):
    @busy.contextlib.contextmanager
    def impossible():
        raise PermissionError("no control groups here")
        yield

    monkeypatch.setattr(busy, "_loads", lambda: {"quota": impossible})
    monkeypatch.setattr(busy, "_several_fits", lambda options: iter(()))
    assert bench.main(["busy", "--quick", "--against", "numpy"]) == 0
    assert "quota: not measured here (no control groups here)" in capsys.readouterr().out


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, busy.Mismatch])
def test_busy_processes_end_with_the_block(error, monkeypatch):
    made, begin = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: made.append(begin(*a, **k)) or made[-1])
    try:
        with busy.running(busy._SPIN, 2):
            assert [child.poll() for child in made] == [None, None]
            if error:
                raise error
    except (KeyboardInterrupt, busy.Mismatch):
        assert error
    assert len(made) == 2
    assert all(child.poll() is not None for child in made)


def test_a_process_that_does_not_begin_is_an_error():
    with pytest.raises(OSError, match="has not begun"), busy.running("raise SystemExit", 1):
        raise AssertionError("nothing runs beside this")


@pytest.mark.skipif(os.name != "posix", reason="a parent's end is seen by its number")
def test_busy_processes_end_with_a_parent_that_is_killed(tmp_path):
    program = (
        "import subprocess, sys\n"
        "from pyoptim.bench import busy\n"
        "begin = subprocess.Popen\n"
        "def tell(*a, **k):\n"
        "    child = begin(*a, **k)\n"
        "    print(child.pid, flush=True)\n"
        "    return child\n"
        "subprocess.Popen = tell\n"
        "with busy.running(busy._SPIN, 1):\n"
        "    sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, **pipes)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while time.monotonic() < end and _runs(child):
        time.sleep(0.02)
    assert not _runs(child)


def _runs(process):
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return os.path.isdir("/proc/self")  # without /proc, signal 0 has been delivered
    except ProcessLookupError:
        return False


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("4:cpu,cpuacct:/a/b", {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}),
        ("0::/a/b", {"cpu.max": "150000 100000"}),
    ],
)
def test_a_quota_is_a_control_group_below_our_own(line, files, monkeypatch, tmp_path):
    root = tmp_path / ("cpu,cpuacct" if line.startswith("4") else "")
    (root / "a/b").mkdir(parents=True)
    process = tmp_path / "cgroup"
    process.write_text(f"7:memory:/elsewhere\n{line}\n" if line.startswith("4") else f"{line}\n")
    monkeypatch.setattr(busy, "_MEMBERSHIP", process)
    with busy.quota(1.5, str(tmp_path)):
        (group,) = (root / "a/b").iterdir()
        assert {name: (group / name).read_text() for name in files} == files
        assert (group / "cgroup.procs").read_text() == str(os.getpid())
    assert (root / "a/b/cgroup.procs").read_text() == str(os.getpid())


def test_fallbacks(tmp_path):
    found = rows_of("fallbacks", tmp_path, "--optimizers", "Adam", "--dtype", "float64")["rows"]
    live = set(po.available_backends())
    epoch, step = "epoch 64-128-BatchNorm-10", "Adam"
    expected = [
        (f"{epoch}, numba", {"native", "numpy", "plain NumPy"}),
        (f"{epoch}, numpy", {"native", "numba", "plain NumPy"}),
        (f"{step}, numpy", {"plain NumPy"}),
        *[(f"{step}, numba", {"native"})] * 2,
    ]
    if not {"native", "numba"} <= live:
        assert {row["name"] for row in found} >= {f"{epoch}, numpy", f"{step}, numpy"}
        return
    assert [(row["name"], set(row["seconds"]) - {"pyoptim"}) for row in found] == expected
    assert [row["threads"] for row in found[2:]] == [2, 1, 2]


def test_a_fallback_that_goes_another_way_is_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(fallbacks, "_Plain", lambda work: lambda order: 0.5)
    assert bench.main(["fallbacks", "--quick", "--match", "numpy,epoch"]) == 1
    assert "plain NumPy has a mean loss of 0.5, numpy 2." in capsys.readouterr().err


def test_several_fits_give_the_losses_of_one_after_the_other(monkeypatch):
    with busy.ThreadPoolExecutor(busy._FITS) as pool:
        runs = busy._prepare_fits(pool, 1)
        assert set(runs) == {"pyoptim", "alone", "one by one"}
        assert po.get_num_threads() == 2
        right = busy._fit
        monkeypatch.setattr(busy, "_fit", lambda task: right(task) + task[0])
        with pytest.raises(busy.Mismatch, match="other losses"):
            busy._prepare_fits(pool, 1)


def test_a_busy_machine_is_told_where_it_was(monkeypatch, capsys):
    samples = iter(
        {"seconds": t, "switches": s, "all": a, "own": o, "steal": w}
        for t, s, a, o, w in [(0, 0, 0, 0, 0), (1, 30, 2.5, 1, 0.25)] * 2
    )
    monkeypatch.setattr(machine, "_counters", lambda: next(samples))
    with machine.Disturbance() as found:
        pass
    told = "others use 1.5 processors, the host takes 0.2 processors, 30 involuntary switches a second"
    assert found.text == told
    assert (found.counters["others"], found.counters["steal"]) == (1.5, 0.25)
    with machine.Disturbance(has_own=True) as expected:
        pass
    assert (expected.text, expected.counters) == ("", found.counters)
    row = made_up(quartiles={"pyoptim": (0.5, 1.5)}, disturbed=told)
    report.print_row(row)
    report.print_line(row)
    report.print_footer([row, made_up()], [])
    lines = capsys.readouterr().out
    assert lines.count(f"[{told}]") == 2
    assert "busy with something else during 1 of 2 rows" in lines


def test_a_quiet_machine_is_not_called_busy(monkeypatch):
    samples = iter({"seconds": t, "switches": t * 500, "all": t, "own": t, "steal": 0} for t in (0, 1))
    monkeypatch.setattr(machine, "_counters", lambda: next(samples))
    with machine.Disturbance() as found:
        pass
    assert found.text == ""


def test_quartiles_are_those_of_the_blocks():
    found = timing._summary([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.quartiles) == (3.0, (2.0, 4.0))
    assert found.scaled(10) == (30.0, (20.0, 40.0))


def test_an_interrupted_run_keeps_what_it_has(monkeypatch, tmp_path, capsys):
    def cases(options):
        yield Case("first", 1, 1, lambda: {"pyoptim": timing.nothing})
        raise KeyboardInterrupt

    monkeypatch.setitem(bench.FAMILIES, "layers", Family(cases, [], sweeps="two cases"))
    path = tmp_path / "rows.json"
    assert bench.main(["layers", "--quick", "--against", "numpy", "--json", str(path)]) == 130
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["first"]
    assert "interrupted" in capsys.readouterr().err


def test_libraries_that_are_not_installed_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench.libraries.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench.machine, "describe", lambda device: {"last_level_cache": 1, "torch": None})
    monkeypatch.setattr(tabular, "_QUICK_EXAMPLES", {4: 40})
    assert bench.main(["tabular", "--quick", "--match", "SGD"]) == 0
    assert "not installed, so not compared with: torch, jax, onnxruntime" in capsys.readouterr().out


def test_a_limit_holds_for_a_case_and_not_longer():
    seen = []
    case = Case("made", 1, 1, lambda: {"pyoptim": lambda: seen.append(po.get_num_threads())}, threads=1)
    row = bench._measure(case, Options([], "float32", (), []), bench.QUICK)
    assert (set(seen), row.threads, po.get_num_threads()) == ({1}, 1, 2)
    assert isinstance(row, Row)
    assert Target("made", 1, lambda row: row.seconds["pyoptim"]).of is min


def test_without_compiled_threads_there_is_nothing_to_measure(capsys):
    with po.use_backend("numpy"):
        assert bench.main(["threads", "--quick", "--against", "numpy"]) == 2
    assert "the threads of the native backend" in capsys.readouterr().err


def test_the_cpp_libraries_need_cmake(monkeypatch, capsys):
    monkeypatch.setattr(cpp.shutil, "which", lambda name: None)
    assert bench.main(["cpp", "--quick"]) == 2
    assert "CMake, which is not installed" in capsys.readouterr().err


class MadeUp:
    """A library of `pyoptim bench cpp` whose mean loss and outputs are these."""

    def __init__(self, loss, output):
        self.loss, self.output = loss, output

    def peer_make(self, kind, parameters, threads):
        return 1

    def peer_train(self, at, x, y, batch, steps):
        assert (batch, steps) == (32, 16)
        return self.loss

    def peer_predict(self, at, x, rows, times, outputs):
        row = (ctypes.c_float * 10)(*(self.output * i for i in range(10)))
        for i in range(rows):
            ctypes.memmove(outputs + 40 * i, row, 40)

    def peer_delete(self, at):
        pass


def test_cpp_libraries_that_compute_something_else_are_not_timed(monkeypatch, tmp_path, capsys):
    libraries = {"pyoptim": MadeUp(2.0, 1.0), "dlib": MadeUp(2.001, 1.0)}
    monkeypatch.setattr(cpp, "_built", lambda folder: libraries)
    names = [("step plain", 32), ("step dropout", 32), ("step layer norm", 32)]
    names += [("predict", rows) for rows in (1, 32, 1024)]
    found = rows_of("cpp", tmp_path, "--against", "numpy")["rows"]
    assert [(row["name"], row["size"]) for row in found] == names
    assert all(set(row["seconds"]) == {"pyoptim", "dlib"} for row in found)
    libraries["dlib"] = MadeUp(2.03, 1.01)
    assert bench.main(["cpp", "--quick", "--against", "numpy"]) == 1
    told = capsys.readouterr().err
    assert "plain, batch 32: dlib has a mean loss of 2.03" in told
    assert "layer norm, batch 32: dlib" in told
    assert "1024 rows: outputs of dlib are off by up to" in told
    assert "dropout" not in told
