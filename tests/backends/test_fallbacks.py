"""How the backends without a compiler run rules: blocks, runs of arrays, vector code and threads."""

import re
import textwrap
import threading
import time
import types
import warnings

import numpy as np
import pytest
from support.backends import LIVE, running_on, share_small_work, use_threads
from support.optimizers import assert_same_bits

import pyoptim as po
from pyoptim.arrays import memory
from pyoptim.backends import StepGroup, parts
from pyoptim.backends.reference import steps, traced
from pyoptim.formulas.rules import RULES, Common, common, split_coefficients
from pyoptim.runtime import dispatch

FALLBACKS = [name for name in ("numpy", "numba") if name in LIVE]
numba = pytest.mark.skipif("numba" not in LIVE, reason="without Numba")
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40, 1.0, -1.0, 0.3, -2.5]
ALL_RULES = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def drawn(rng, n, dtype):
    """Half of them numbers that have special rules."""
    with np.errstate(over="ignore"):
        values = np.where(rng.random(n) < 0.5, rng.choice(SPECIAL, n), rng.normal(size=n))
        return values.astype(dtype)


def rows(rng, rule):
    """Yield coefficients: none of them 1, all of them 1, and mixtures, since products with 1 are left out."""
    n = len(Common._fields) + len(rule.coefficients._fields)
    yield (0.9,) * n
    yield (1.0,) * n
    for _ in range(4):
        row = rng.choice([1.0, 0.0, -0.7, 1e-3, 1e39], n)
        if takes_maximum(rule):
            row[3:] = abs(row[3:])
        if "one" in rule.coefficients._fields:
            row[3] = 1
        yield tuple(row.tolist())


def takes_maximum(rule):
    """What it compares must not be -0 here: which of 0 and -0 is the larger one depends on the processor."""
    return "maximum" in rule.function.__code__.co_names


def expected(rule, row, param, grad, *states):
    """The rule as it stands, on whole arrays."""
    with np.errstate(all="ignore"):
        shared, own = split_coefficients(rule, row, param.dtype.type)
        p, g = common(shared, param, grad)
        return [np.broadcast_to(v, param.shape) for v in rule.function(own, p, g, *states)]


@pytest.mark.parametrize("name", FALLBACKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@ALL_RULES
def test_a_step_has_the_bits_of_the_formula(rule, dtype, name, rng):
    block = steps._BLOCK // np.dtype(dtype).itemsize
    sizes = (0, 1, 17, block - 1, block, 2 * block + 3)
    for row in rows(rng, rule):
        for n in sizes:
            param, grad, *states = (drawn(rng, n, dtype) for _ in range(2 + len(rule.states)))
            if takes_maximum(rule):
                states = [abs(state) for state in states]
            wanted = expected(rule, row, *[a.copy() for a in (param, grad, *states)])
            kept = grad.copy()
            stepper = dispatch.get(name).Stepper([StepGroup(rule, [param], [states])])
            assert stepper.step([grad], [row])
            assert_same_bits(grad, kept)
            for array, value in zip((param, *states), wanted, strict=True):
                assert_same_bits(array, value, f"{rule.name}, {n} elements, {row}")


@ALL_RULES
def test_a_traced_rule_leaves_out_products_with_1(rule):
    """With the coefficients that a plain step has, two products less are computed."""
    n = len(Common._fields) + len(rule.coefficients._fields)
    calls = []
    for ones in ((False,) * n, (True, False, True) + (False,) * (n - 3)):
        update = traced.update(rule, ones)
        arrays = [np.ones(3) for _ in range(2 + len(rule.states))]
        names = [name for name in update.function.__globals__ if hasattr(np, name)]
        counted = {name: spy(calls, getattr(np, name)) for name in names}
        function = types.FunctionType(update.function.__code__, counted)
        function([np.ones(())] * n, [np.empty(3) for _ in range(update.scratch)], *arrays)
        calls.append("end")
    first = calls.index("end")
    assert len(calls) - first - 2 == first - 2


def spy(calls, function):
    def called(*args, out):
        calls.append(function)
        return function(*args, out=out)

    return called


def consecutive(sizes, dtype):
    buffer = memory.aligned_zeros(sum(sizes), dtype)
    return memory.views(buffer, [(n,) for n in sizes])


@pytest.mark.parametrize("name", FALLBACKS)
def test_arrays_that_follow_each_other_are_updated_together(name, rng, monkeypatch):
    sizes, calls = (6, 1, 40), []
    backend = dispatch.get(name)
    inner = backend.Stepper._update

    def update(stepper, rule, row, run, arrays):
        calls.append(arrays[0].size)
        inner(stepper, rule, row, run, arrays)

    monkeypatch.setattr(backend.Stepper, "_update", update)
    p, q = consecutive(sizes, np.float32), [np.zeros(n, np.float32) for n in sizes]
    for a, b in zip(p, q, strict=True):
        a[:] = b[:] = rng.normal(size=a.size)
    together, apart = po.Adam(p), po.Adam(q)
    grads, others = consecutive(sizes, np.float32), consecutive(sizes[::-1], np.float32)[::-1]
    for step in range(4):
        for g, h in zip(grads, others, strict=True):
            g[:] = h[:] = rng.normal(size=g.size)
        with running_on(name):
            calls.clear()
            together.step(grads if step < 2 else others)  # of the latter the memory is in another order
            assert calls == ([47] if step < 2 else [6, 1, 40])
            calls.clear()
            apart.step(others if step % 2 else grads)
            assert calls == [6, 1, 40]
        for a, b in zip(p, q, strict=True):
            assert_same_bits(a, b)


def test_joined():
    a, b, c = consecutive((3, 2, 4), np.float64)
    vector = memory.joined([a, b, c])
    vector[:] = range(9)
    assert (a[0], b[0], c[3]) == (0, 3, 8)
    assert memory.joined([a, b[:0], b, c]).size == 9
    assert memory.joined([a.reshape(3, 1)]).shape == (3,)
    for apart in ([a, c], [b, a], [a, a], [a, b.copy()], [np.ones(1), np.ones(1)]):
        assert memory.joined(apart) is None
    assert memory.joined([a, b.view(np.float32)]) is None
    a.base.flags.writeable = False  # which leaves the arrays as they are
    assert memory.joined([a, b, c]) is None


@pytest.mark.parametrize("name", FALLBACKS)
def test_gradients_that_passed_are_checked_when_they_have_changed(name):
    buffer = np.ones(12)
    p, g = buffer[:4], np.ones(4)
    optimizer = po.SGD(p, lr=0.5)
    with running_on(name):
        for _ in range(2):
            optimizer.step(g)
        assert (p == 0).all()
        g.shape = 2, 2
        with pytest.raises(ValueError, match="shape"):
            optimizer.step(g)
        g.shape = 4
        with pytest.raises(ValueError, match="overlaps"):
            optimizer.step(buffer[2:6])
        optimizer.step(g)
        assert (p == -0.5).all()
        p.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            optimizer.step(g)


@numba
@pytest.mark.parametrize("rule", ["sgd", "amsgrad", "rmsprop_centered_momentum", "rprop"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loops_of_rules_are_vector_code(rule, dtype):
    rule = RULES[rule]
    p, *states = [np.ones(3, dtype) for _ in range(1 + len(rule.states))]
    row = (0.5,) * (len(Common._fields) + len(rule.coefficients._fields))
    dispatch.get("numba").Stepper([StepGroup(rule, [p], [states])]).step([np.ones(3, dtype)], [row])
    loop = dispatch.get("numba")._loop(rule)
    kind = "float" if dtype == "float32" else "double"
    assert any(re.search(rf"<\d+ x {kind}>", code) for code in loop.inspect_llvm().values())


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("name", FALLBACKS)
def test_parts_of_a_loop(name, workers, rng, monkeypatch):
    """Each element is updated once, in blocks or whoever takes its part, and without a warning."""
    share_small_work(name, monkeypatch)
    for n in (15, 16, 17, 1000, 10_003):
        p, g = drawn(rng, n, np.float64), rng.choice([1e308, -1e308, np.nan, 2.0], n)
        wanted = expected(RULES["sgd"], (1.0, 0.0, 1.0, 10.0), p, g)
        with use_threads(workers), po.use_backend(name), warnings.catch_warnings():
            warnings.simplefilter("error")
            po.SGD(p, lr=10.0).step(g)
        assert_same_bits(p, *wanted)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_parts_are_on_so_many_threads_at_most(number):
    seen, done = set(), np.zeros(8 * 100 + 1)

    def work(begin, end):
        seen.add(threading.get_ident())
        done[begin:end] += 1
        time.sleep(1e-3)

    with use_threads(number):
        parts.run(work, done.size, 8, 100)
        assert (done == 1).all()
        assert threading.get_ident() in seen
        assert number // 2 < len(seen) <= number
        seen.clear()
        parts.run(work, 99, 8, 100)
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("where", ["of the caller", "of the pool"])
def test_what_a_part_raises_reaches_the_caller(where):
    """And nothing is written any more when the caller goes on."""
    caller, done = threading.get_ident(), []

    def work(begin, end):
        time.sleep(2e-3)
        if (threading.get_ident() == caller) == (where == "of the caller"):
            raise IndexError(where)
        done.append(begin)

    with use_threads(2), pytest.raises(IndexError, match=where):
        parts.run(work, 800, 8, 0)
    seen = list(done)
    time.sleep(6e-3)
    assert done == seen


def test_one_thread_that_fails_leaves_none_at_work():
    caller, at_work = threading.get_ident(), []

    def work(begin, end):
        if threading.get_ident() == caller:
            time.sleep(0.01)
        elif not at_work:
            at_work.append(begin)
            raise IndexError("of the first")
        else:
            at_work.append(begin)
            time.sleep(0.1)
            at_work.remove(begin)

    with use_threads(3), pytest.raises(IndexError, match="of the first"):
        parts.run(work, 80, 8, 0)
    assert len(at_work) == 1


def test_without_more_threads_the_caller_does_the_work(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parts, "_pool", None)
    done = np.zeros(80)

    def work(begin, end):
        done[begin:end] += 1

    with use_threads(3):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            parts.run(work, 80, 8, 0)
        assert (done == 1).all()
        parts.run(work, 80, 8, 0)  # what was left in the queue does nothing
        time.sleep(0.01)
    assert (done == 2).all()


def test_a_thread_that_outlives_the_main_thread_steps(run_python):
    code = """
        import threading, numpy as np, pyoptim as po

        def train():
            threading.main_thread().join()
            with po.use_backend("numpy"), po.num_threads(2):
                p = np.ones(3_000_000, np.float32)
                optimizer = po.SGD(p, lr=0.5)
                for _ in range(3):
                    optimizer.step(p.copy())
            print("trained", p[0], p[-1])

        threading.Thread(target=train).start()
    """
    child = run_python(textwrap.dedent(code))
    assert child.stdout.split() == ["trained", "0.125", "0.125"], child.stderr
