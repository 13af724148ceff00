"""Processes, threads, forks and memory: what is chosen, what is refused, what may happen at once."""

import copy
import gc
import hashlib
import os
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import children
from support.backends import LIVE, _native, running_on, share_small_work, use_threads, why_not

import pyoptim as po
from pyoptim.runtime import threads

native = pytest.mark.skipif(_native is None, reason="without the compiled kernels")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(why_not(name)), reason=str(why_not(name))))
    for name in ("native", "numba", "numpy")
]
STEP = "import numpy as np, pyoptim as po; po.SGD(p := np.ones(3), lr=0.5).step(np.ones(3)); print(p[0]);"


def succeeds(result):
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def fails(result, *words):
    """With a last line that says all this."""
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), last


# ---- processes -------------------------------------------------------------------------------------


def test_no_test_can_start_python_in_the_checkout(monkeypatch, tmp_path):
    """There it would import the source folder, where nothing is compiled, instead of what was installed."""
    command, refused = [sys.executable, "-c", ""], pytest.raises(AssertionError, match="from the checkout")
    with refused:
        subprocess.run(command, cwd=children.CHECKOUT, check=False)
    with refused:
        subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": f"{children.CHECKOUT}"}, check=False)
    monkeypatch.chdir(children.CHECKOUT)
    with refused:
        subprocess.run(command, check=False)
    assert children.run("-c", "print(1)", cwd=tmp_path).stdout == "1\n"


# ---- the environment -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_from_the_environment(run_python, name):
    code = STEP + "print(po.show_config()['backend'])"
    assert succeeds(run_python(code, PYOPTIM_BACKEND=name)) == ["0.5", name]


def test_the_best_backend_is_the_default(run_python):
    assert succeeds(run_python(STEP + "print(po.show_config()['backend'])")) == [
        "0.5",
        po.available_backends()[0],
    ]


@native
def test_instruction_set_from_the_environment(run_python):
    code = STEP + "from pyoptim.runtime import _native; print(_native.instruction_set())"
    for name in _native.instruction_sets():
        assert succeeds(run_python(code, PYOPTIM_FORCE_ISA=name)) == ["0.5", name]
    assert succeeds(run_python(code)) == ["0.5", _native.instruction_sets()[0]]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_threads_from_the_environment(run_python, n):
    result = run_python(STEP + "print(po.get_num_threads())", PYOPTIM_NUM_THREADS=str(n))
    assert succeeds(result) == ["0.5", str(n)]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PYOPTIM_BACKEND", "cuda9"),
        ("PYOPTIM_BACKEND", "Native"),
        *(("PYOPTIM_NUM_THREADS", value) for value in ("0", "-1", "1.5", "two", "1000000000")),
        pytest.param("PYOPTIM_FORCE_ISA", "sse9", marks=native),
        pytest.param("PYOPTIM_FORCE_ISA", "AVX2", marks=native),
    ],
)
def test_what_cannot_be_is_an_error(run_python, variable, value):
    """And no fallback."""
    fails(run_python(STEP, **{variable: value}), "Error: ", variable, value)


HIDE_NUMBA = "import sys; sys.modules['numba'] = None;"


def use(name):
    return f"import pyoptim as po; po.use_backend({name!r}).__enter__()"


def test_without_numba(run_python):
    code = HIDE_NUMBA + STEP + "print(*po.available_backends(), *po.show_config()['unavailable'])"
    names = [name for name in po.available_backends() if name != "numba"]
    stdout = succeeds(run_python(code))
    assert stdout[: len(names) + 1] == ["0.5", *names]
    assert "Numba is not installed" in " ".join(stdout)
    words = ("BackendError", "'numba'", "not installed", "pip install")
    fails(run_python(HIDE_NUMBA + use("numba")), *words)
    fails(run_python(HIDE_NUMBA + STEP, PYOPTIM_BACKEND="numba"), *words)


@pytest.fixture
def run_without_native(run_python, tmp_path):
    """In a copy of the package without its compiled part: what an install without a compiler leaves."""
    ignore = shutil.ignore_patterns("_native*", "__pycache__", "*.npz")
    shutil.copytree(Path(po.__file__).parent, tmp_path / "copy" / "pyoptim", ignore=ignore)
    path = os.pathsep.join(filter(None, [str(tmp_path / "copy"), os.environ.get("PYTHONPATH")]))
    return lambda code, **env: run_python(code, PYTHONPATH=path, **env)


def test_without_the_compiled_part(run_without_native, tmp_path):
    run = run_without_native
    names = [name for name in po.available_backends() if name != "native"]
    code = STEP + "print(*po.available_backends(), po.show_config()['instruction_set'], po.__file__)"
    stdout = succeeds(run(code))
    assert stdout[:-1] == ["0.5", *names, "None"]
    assert stdout[-1].startswith(str(tmp_path))
    for name in names:
        assert succeeds(run(STEP, PYOPTIM_BACKEND=name)) == ["0.5"]
    assert succeeds(run(HIDE_NUMBA + STEP + "print(*po.available_backends())")) == ["0.5", "numpy"]
    code = "import pyoptim as po; po.set_num_threads(3); print(po.get_num_threads())"
    assert succeeds(run(code)) == ["3"]

    words = ("BackendError", "'native'", "no compiled kernels", "compiler")
    fails(run(use("native")), *words)
    fails(run(STEP, PYOPTIM_BACKEND="native"), *words)


def test_the_import_warns_where_nothing_is_compiled(run_without_native, tmp_path):
    """Once, of the line that imports pyoptim; not where somebody has chosen so."""
    code = "import pyoptim\nimport pyoptim.nn"
    said = run_without_native(code).stderr
    assert said.count("Warning") == 1
    assert "<string>:1: UserWarning: pyoptim runs without its compiled kernels" in said
    for word in ("C++ compiler", "--force-reinstall", "PYOPTIM_BACKEND=numpy", "PYOPTIM_PURE=1"):
        assert word in said
    assert run_without_native(code, PYOPTIM_BACKEND="numpy").stderr == ""
    assert run_without_native(code, PYTHONWARNINGS="ignore:pyoptim runs without").stderr == ""
    info = "import pyoptim as po; print(po.show_config()['kernels'])"
    assert run_without_native(info).stdout.startswith("not compiled: install a C++ compiler")

    (tmp_path / "copy/pyoptim/runtime/pure.txt").write_text("left out\n")  # what PYOPTIM_PURE=1 writes
    done = run_without_native(info)
    assert (done.stdout, done.stderr) == ("left out\n", "")


@native
def test_the_import_does_not_warn_where_kernels_are_compiled(run_python):
    done = run_python("import pyoptim as po; print(po.show_config()['kernels'])")
    assert (done.stdout, done.stderr) == ("compiled\n", "")


def test_import_is_light(run_python):
    """NumPy, and nothing heavy, also to make an optimizer and to step on the best backend."""
    heavy = {"numba", "torch", "scipy", "matplotlib", "tqdm", "safetensors", "sklearn", "cupy", "mpi4py"}
    code = "import sys, pyoptim; print(*sys.modules);"
    assert not heavy & set(succeeds(run_python(code)))
    if po.available_backends()[0] == "native":
        assert not heavy & set(succeeds(run_python(STEP + code)))


# ---- choosing at run time --------------------------------------------------------------------------


def current_backend():
    return po.show_config()["backend"]


def test_use_backend_nests_and_restores():
    outer = current_backend()
    names = po.available_backends()
    for name in names:
        with po.use_backend(name):
            for inner in names:
                with po.use_backend(inner):
                    assert current_backend() == inner
                assert current_backend() == name
            with pytest.raises(ZeroDivisionError), po.use_backend("numpy"):
                1 / 0  # noqa: B018
            with pytest.raises(ValueError, match=r"'nonesuch'.*native.*numba.*numpy"):
                po.use_backend("nonesuch").__enter__()
            assert current_backend() == name
    assert current_backend() == outer


def test_use_backend_is_of_one_thread():
    other = po.available_backends()[-1]
    with ThreadPoolExecutor(1) as pool:
        default = pool.submit(current_backend).result()
        with po.use_backend(other):
            assert pool.submit(current_backend).result() == default
            assert current_backend() == other


@native
def test_use_instruction_set():
    names = _native.instruction_sets()
    assert names[-1] == "baseline"
    before = _native.instruction_set()
    with pytest.raises(ValueError, match=f"'sse9'.*{', '.join(names)}"):
        _native.use_instruction_set("sse9")
    assert _native.instruction_set() == before


@native
def test_the_instruction_set_stays_while_a_thread_computes():
    before, last = _native.instruction_set(), _native.instruction_sets()[-1]
    if before == last:
        pytest.skip("there is no other")

    def use_until_refused(work):
        while not work.done():
            for name in (last, before):
                _native.use_instruction_set(name)

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(_native.multiply_add, "float32", 10**8)
        with pytest.raises(RuntimeError, match="while a thread computes"):
            use_until_refused(work)
        _native.use_instruction_set(_native.instruction_set())  # which changes nothing
        work.result()
    _native.use_instruction_set(before)


def test_set_num_threads():
    with use_threads(3):
        assert po.get_num_threads() == 3
        for value, error in (0, ValueError), (-1, ValueError), (10**9, ValueError), (1.0, TypeError):
            with pytest.raises(error, match="n is"):
                po.set_num_threads(value)
        for value in (None, "2", True):
            with pytest.raises(TypeError, match="n is"):
                po.set_num_threads(value)
        assert po.get_num_threads() == 3


# Threads of this process before and after a step that is worth two.
COUNT = """
import os, sys, numpy as np, pyoptim as po
from pyoptim.runtime import _native
def started():
    before = len(os.listdir("/proc/self/task"))
    optimizer.step(np.ones(p.shape))
    return len(os.listdir("/proc/self/task")) - before
p = np.ones(1_200_000)
optimizer = po.SGD(p)
"""


@native
@linux
@pytest.mark.parametrize(
    ("before", "between"),
    [
        ("", ""),
        ("import threadpoolctl\n", ""),
        ("", "import importlib.util; assert importlib.util.find_spec('threadpoolctl')\n"),
    ],
    ids=["pyoptim first", "threadpoolctl first", "looked for before"],
)
def test_threadpoolctl_limits_the_threads(run_python, before, between):
    pytest.importorskip("threadpoolctl")
    code = """
from threadpoolctl import threadpool_info, threadpool_limits
(library,) = [lib for lib in threadpool_info() if lib["user_api"] == "pyoptim"]
assert library["num_threads"] == 4 and library["version"] == po.__version__, library
with threadpool_limits(1):
    assert po.get_num_threads() == 1
    print(started())
with threadpool_limits({"pyoptim": 2}):
    assert po.get_num_threads() == 2
    print(started())
assert po.get_num_threads() == 4
"""
    assert succeeds(run_python(before + COUNT + between + code, PYOPTIM_NUM_THREADS="4")) == ["0", "1"]


@pytest.mark.parametrize("there", ["None", "types.ModuleType('threadpoolctl')"], ids=["blocked", "too old"])
def test_threadpoolctl_may_be_missing_or_old(run_python, there):
    code = f"import sys, types; sys.modules['threadpoolctl'] = {there}; import pyoptim; print('imported')"
    assert succeeds(run_python(code)) == ["imported"]


@native
@linux
def test_threads_are_started_when_they_are_needed(run_python):
    code = "print(started()); po.set_num_threads(3); print(started())"
    assert succeeds(run_python(COUNT + code, PYOPTIM_NUM_THREADS="1")) == ["0", "2"]


@pytest.mark.parametrize(
    ("environment", "n", "reason"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "5,2"}, 5, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "3", "PYOPTIM_NUM_THREADS": "7"}, 7, "PYOPTIM_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "none"}, None, "process"),
        ({}, None, "process"),
    ],
)
def test_the_number_of_threads_and_why(run_python, environment, n, reason):
    code = """
import pyoptim as po
config = po.show_config()
print(po.get_num_threads(), config["threads"], config["threads_from"])
"""
    unset = {"OMP_NUM_THREADS": "", "PYOPTIM_NUM_THREADS": ""}
    now, shown, *why = succeeds(run_python(code, **unset | environment))
    assert now == shown
    assert reason in " ".join(why)
    if n is not None:
        assert int(now) == n


def test_the_number_of_threads_is_found_once(monkeypatch):
    """Without the compiled part the quota is in files, which a kernel cannot read at each call."""
    calls = []
    monkeypatch.setattr(threads, "_native", None)
    monkeypatch.setattr(threads, "_limit", None)
    monkeypatch.setattr(threads, "_quota", lambda root="": calls.append(root) or 3)
    monkeypatch.setattr(threads, "_allowed", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads._number_at_first.cache_clear()
    assert [po.get_num_threads() for _ in range(3)] == [3, 3, 3]
    assert len(calls) == 1
    threads._number_at_first.cache_clear()


GROUPS = {
    "no control groups": ({}, 0),
    "v2 without a quota": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 0),
    "v2 in a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    "v2, a group above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
        },
        1,
    ),
    "v1": (
        {
            "proc/self/cgroup": "9:memory:/x\n4:cpu,cpuacct:/x/y\n1:name=systemd:/x\n",
            "sys/fs/cgroup/cpu,cpuacct/x/y/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/x/y/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "v1 in a container": (
        {
            "proc/self/cgroup": "4:cpu:/docker/0123\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        1,
    ),
    "v1 without a quota": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        0,
    ),
}


@linux
@pytest.mark.parametrize("group", GROUPS)
def test_the_quota_of_control_groups(tmp_path, group):
    contents, expected = GROUPS[group]
    for name, text in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert threads._quota(str(tmp_path)) == expected
    if _native:
        assert _native.processor_quota(str(tmp_path)) == expected


def test_num_threads_is_for_a_block():
    with use_threads(3):
        with po.num_threads(2):
            assert po.get_num_threads() == 2
        assert po.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="inside"), po.num_threads(1):
            raise RuntimeError("inside")
        assert po.get_num_threads() == 3
        with pytest.raises(ValueError, match="n is 0"), po.num_threads(0):
            pass
        assert po.get_num_threads() == 3


def test_blocks_of_num_threads_may_end_in_any_order():
    before = threads.get_num_threads()
    for ends in ((0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 0, 1)):
        blocks = [threads.num_threads(n) for n in (3, 1, 2)]
        for block in blocks:
            block.__enter__()
        left = [3, 1, 2]
        for i in ends:
            blocks[i].__exit__(None, None, None)
            left[i] = None
            assert threads.get_num_threads() == next((n for n in reversed(left) if n is not None), before)


@linux
@pytest.mark.skipif("numba" not in LIVE, reason="without Numba")
def test_threads_of_numba_are_limited(run_python):
    code = """
po.SGD(np.ones(1)).step(np.ones(1))  # Numba imports SciPy, whose BLAS starts threads of its own
print(started())
po.set_num_threads(2)
print(1 <= started() <= 2)  # the first may be done before a second is needed
"""
    env = {"PYOPTIM_BACKEND": "numba", "PYOPTIM_NUM_THREADS": "1"}
    assert succeeds(run_python(COUNT + code, **env)) == ["0", "True"]


# ---- forks and threads -----------------------------------------------------------------------------

# Parent and child go on from the same point, after a step that has started the pool.
FORK = """
import hashlib, os, sys, warnings, numpy as np, pyoptim as po
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork of a process with threads
p, g = np.linspace(-1, 1, 1_200_000), np.linspace(1, 2, 1_200_000)
optimizer = po.Adam(p)
optimizer.step(g)
reader, writer = os.pipe()
for generation in range(2):  # a child of a child too
    if (child := os.fork()):
        break
optimizer.step(g)
digest = hashlib.sha256(p.tobytes()).hexdigest()
os.write(writer, f"{digest}\\n".encode())
if child:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(writer, f"{status}\\n".encode())
if generation == 0 and child:
    os.close(writer)
    print(open(reader).read())
else:
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("name", BACKENDS)
def test_fork(run_python, name):
    """A child can step, without waiting for threads that stayed in its parent, and gets the same bits."""
    result = run_python(FORK, timeout=60, PYOPTIM_BACKEND=name, PYOPTIM_NUM_THREADS="2")
    lines = succeeds(result)
    digests, statuses = {line for line in lines if len(line) == 64}, [x for x in lines if len(x) < 64]
    assert len(lines) == 5
    assert len(digests) == 1
    assert statuses == ["0", "0"]


def work(backend, seed, size, steps):
    rng = np.random.default_rng(seed)
    params = [rng.normal(size=size), rng.normal(size=7).astype(np.float32)]
    optimizer = po.Adam(params)
    with running_on(backend):
        for t in range(steps):
            if t % 3 == 0:
                with pytest.raises(ValueError, match="expected 2 arrays"):
                    optimizer.step([])
            optimizer.step([np.full(size, 0.5), np.full(7, 0.5, np.float32)])
    return hashlib.sha256(params[0].tobytes() + params[1].tobytes()).hexdigest()


def test_steps_from_several_threads_at_once(backend, monkeypatch):
    share_small_work(backend, monkeypatch, 1 << 14)
    jobs = [(backend, seed, size, 6) for seed in range(4) for size in (5, 20_000, 150_000)]
    with running_on(backend), use_threads(2):  # jobs find their instruction set in force, and leave it so
        alone = [work(*job) for job in jobs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda job: work(*job), jobs))
    assert together == alone


# ---- memory ----------------------------------------------------------------------------------------


def test_parameters_live_as_long_as_their_optimizer(backend):
    p, strided = np.ones(1000), np.ones(2000)[::2]
    optimizer = po.Adam([p, strided])
    grads = [np.ones(1000), np.ones(1000)]
    optimizer.step(grads)
    seen = [weakref.ref(x) for x in (p, strided, optimizer, *optimizer._states[0][0].values())]
    del p, strided
    gc.collect()
    assert all(ref() is not None for ref in seen)
    optimizer.step(grads)  # writes memory that only the optimizer holds
    last = weakref.ref(grads[0])
    del grads
    assert last() is None  # gradients are not held
    gc.disable()  # freed by counting, not by the collector: states may be gigabytes
    try:
        del optimizer
        assert all(ref() is None for ref in seen)
    finally:
        gc.enable()


def test_hundreds_of_steps_leak_nothing(backend):
    p, g = [np.ones(10, np.float32), np.ones(10)[::2]], [np.ones(10, np.float32), np.ones(5)]
    optimizer = po.Adam(p)

    def steps(n):
        for _ in range(n):
            optimizer.step(g)
            with pytest.raises(ValueError, match="has shape"):
                optimizer.step([g[1].astype(np.float32), g[1]])

    steps(300)  # free lists fill up
    gc.collect()
    references = [sys.getrefcount(x) for x in (*p, *g, *g[0].dtype.__class__.__mro__, g[0].dtype)]
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(4):
            steps(300)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert min(np.diff(sizes)) < 6000  # less than 20 bytes a step; caches fill up and stop, leaks do not
    after = [sys.getrefcount(x) for x in (*p, *g, *g[0].dtype.__class__.__mro__, g[0].dtype)]
    assert all(abs(b - a) < 100 for a, b in zip(references, after, strict=True))


def test_a_deep_copy_is_an_optimizer_of_its_own(backend):
    """Its parameters are copies too, and those are what it updates."""
    p = np.ones(3)
    optimizer = po.Adam(p, lr=0.1)
    optimizer.step(np.ones(3))
    other = copy.deepcopy(optimizer)
    (q,) = other.param_groups[0]["params"]
    kept = p.copy()
    other.step(np.ones(3))
    assert (p == kept).all()
    optimizer.step(np.ones(3))
    assert (q == p).all()
    assert (q != kept).all()
