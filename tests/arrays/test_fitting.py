"""What all functions of `ops` ask first of their arrays: those that fit need no other check."""

import numpy as np
import pytest

native = pytest.importorskip("pyoptim.runtime._native")
DTYPES = [np.float32, np.float64]


def shapes(made):
    return None if made is None else tuple(array.shape for array in made)


@pytest.mark.parametrize("dtype", DTYPES)
def test_letters_are_lengths_and_results_have_them(dtype):
    dense = native.fitting("bi, oi, o? -> bo, o, i")
    x, weight, bias = np.ones((2, 3), dtype), np.ones((4, 3), dtype), np.ones(4, dtype)
    for given in ((x, weight, bias), (x, weight, None)):
        made = dense(*given)
        assert shapes(made) == ((2, 4), (4,), (3,))
        assert all(a.dtype == dtype and a.flags.carray and a.flags.owndata for a in made)
    for wrong in (weight[:, :2].copy(), weight[None], weight.ravel()):
        assert dense(x, wrong, bias) is None
    assert dense(x, weight, np.ones(3, dtype)) is None
    assert dense(None, weight, bias) is None


def test_capitals_are_any_number_of_dimensions():
    norm = native.fitting("ncS, c? -> ncS, c")
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
        assert shapes(norm(np.ones(shape), np.ones(3))) == (shape, (3,))
    assert norm(np.ones(2), None) is None
    assert native.fitting("S -> S")(np.ones(())).shape == ()
    same = native.fitting("nS, nS -> nS")
    assert same(np.ones((2, 3)), np.ones((2, 3))).shape == (2, 3)
    for other in ((2, 3, 1), (2,), (2, 4), (3, 3)):
        assert same(np.ones((2, 3)), np.ones(other)) is None
    assert native.fitting("S -> S")(np.ones((1,) * 9)) is None  # more than are counted


def test_dimensions_can_be_given_and_joined():
    layer = native.fitting("=F, NF, F?, (N) -> NF, (N), F")
    for features, shape, rows in ((3, (2, 3), 2), ((3,), (4, 2, 3), 8), ((2, 3), (4, 2, 3), 4), (3, (3,), 1)):
        made = layer(features, np.ones(shape), None, np.ones(rows))
        of = features if isinstance(features, tuple) else (features,)
        assert shapes(made) == (shape, (rows,), of)
        assert layer(features, np.ones(shape), None, np.ones(rows + 1)) is None
        assert layer(features, np.ones(shape), None, np.ones((rows, 1))) is None
    for wrong in (0, -3, 2, 2**70, True, 3.0, (), (3.0,), [3], np.int64(3), None, (1,) * 9):
        assert layer(wrong, np.ones((2, 3)), None, np.ones(2)) is None


class Derived(np.ndarray):
    pass


@pytest.mark.parametrize("dtype", DTYPES)
def test_unusual_arrays_do_not_fit(dtype):
    fit, x = native.fitting("nc, nc -> nc"), np.ones((4, 6), dtype)
    assert fit(x, x) is not None
    other = np.float64 if dtype is np.float32 else np.float32
    unaligned = np.frombuffer(bytes(x.nbytes + 1), np.uint8)[1:].view(dtype).reshape(x.shape)
    unusual = [
        x.astype(other), x.astype(np.float16), x.astype(int), x.astype(x.dtype.newbyteorder()), x.T.copy().T,
        np.ones((4, 12), dtype)[:, ::2], np.ma.masked_array(x, x > 0), x.view(Derived), x.tolist(), None, 1.0,
        unaligned, np.ones((4, 6), object), np.ones((4, 6), complex),
    ]  # fmt: skip
    for y in unusual:
        assert fit(x, y) is None
    for y in unusual[2:]:
        assert fit(y, x) is None
    read_only = x.copy()
    read_only.flags.writeable = False
    assert fit(read_only, x) is not None
    assert fit(np.ones((0, 6), dtype), np.ones((0, 6), dtype)) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_overlaps_nothing(dtype):
    fit = native.fitting("nc, c?, c!?, c!? -> nc")
    memory = np.ones((6, 4), dtype)
    assert fit(memory[:4], memory[4], memory[5], None) is not None
    assert fit(memory[:4], memory[5], memory[5], None) is None
    assert fit(memory[:5], None, memory[4], None) is None
    assert fit(memory[:3], None, memory[4], memory[4]) is None
    assert fit(memory[:3], None, memory.ravel()[17:21], memory[5]) is None
    assert fit(memory[:3], None, memory.ravel()[16:20], memory[5]) is not None
    read_only = np.ones(4, dtype)
    read_only.flags.writeable = False
    assert fit(memory, read_only, None, None) is not None
    assert fit(memory, None, read_only, None) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype):
    weights, largest = native.fitting("nc, n+ -> nc"), np.finfo(dtype).max
    x = np.ones((3, 2), dtype)
    for value in (0.0, -0.0, 1.0, largest):
        assert weights(x, np.array([1, value, 1], dtype)) is not None
    for value in (-np.finfo(dtype).smallest_subnormal, np.nan, np.inf, -np.inf):
        assert weights(x, np.array([1, value, 1], dtype)) is None
    labels = native.fitting("nc, n<c -> nc")
    assert labels(x, np.array([0, 1, 1])) is not None
    for wrong in (
        np.array([0, 2, 1]),
        np.array([-1, 0, 0]),
        np.array([0, 1], int),
        np.array([[0], [1], [1]]),
    ):
        assert labels(x, wrong) is None
    for dtype in (np.int32, np.uint64, np.float64, bool, np.dtype(np.int64).newbyteorder()):
        assert labels(x, np.array([0, 1, 1], dtype)) is None


# A pattern, and what its error says is wrong.
WRONG_PATTERNS = [
    ("nc", "no arrow"),
    ("n-> 1", "no meaning"),
    ("a, b, c, d, e -> a", "four letters"),
    ("n -> m", "no argument must have"),
    ("n, m? -> m", "no argument must have"),
    ("=->a", "no letters"),
    ("n, -> n", "no letters"),
    ("=nc, n -> n", "a shape"),
    ("=n!, n -> n", "a shape"),
    ("=(n), n -> n", "a shape"),
    ("n<c, nc -> n", "labels"),
    ("S, n<S -> n", "more than one dimension"),
    ("n, n< -> n", "too early"),
    ("(n, n) -> n", "too early"),
    ("n, (n -> n", "too early"),
    ("n) -> n", "parenthesis"),
    ("((n)) -> n", "parenthesis"),
    ("=n -> n", "type of the results"),
    ("n?, =n -> n", "type of the results"),
    ("n -> n!", "a mark"),
]


@pytest.mark.parametrize(("pattern", "wrong"), WRONG_PATTERNS)
def test_a_wrong_pattern_is_an_error_that_says_why(pattern, wrong):
    with pytest.raises(ValueError, match=wrong):
        native.fitting(pattern)


def test_a_wrong_number_of_arguments_is_an_error():
    with pytest.raises(ValueError, match="arguments and their pattern"):
        native.fitting("n -> n")()
    with pytest.raises(ValueError, match="most dimensions"):
        native.fitting("S -> " + "(S)" * 33)(np.ones(()))


# Patterns of random characters, and calls of those that are none the less right.
FUZZ = """
import random
import numpy as np
from pyoptim.runtime._native import fitting

x = np.ones((2, 3))
GIVEN = [None, 0, 2, -1, 2**70, (2, 3), (2**40, 2**40), (), (1,) * 9, "n", [1.0], x, x[0], x[:, 0], x.T]
GIVEN += [x[:0], np.array([0, 1]), np.array(1.0), np.ones((1,) * 9), x.astype(np.float32), x.astype(">f8")]
draw, right, made = random.Random(1), 0, 0
for _ in range(40_000):
    sides = ["".join(draw.choices("abSN,=?!+<() ", k=draw.randrange(9))) for _ in range(2)]
    odd = "".join(draw.choices("->1_é\\0", k=1)) if draw.random() < 0.1 else "->"
    try:
        fit = fitting(odd.join(sides))
    except ValueError:
        continue
    right += 1
    for _ in range(20):
        try:
            made += fit(*draw.choices(GIVEN, k=sides[0].count(",") + 1)) is not None
        except (ValueError, MemoryError):
            pass
print(right, made)
"""


def test_no_pattern_and_no_call_ends_the_interpreter(run_python):
    done = run_python(FUZZ)
    assert done.returncode == 0, done.stderr
    right, made = map(int, done.stdout.split())
    assert right > 500
    assert made > 100
