"""16-bit parameters, 16- and 8-bit states: rounding, and the same bits on every backend."""

from functools import cache

import numpy as np
import pytest
from support.backends import running_on, use_threads
from support.optimizers import assert_same_bits, hard_values, plain_gradients, states, type_of

import pyoptim as po
from pyoptim.formulas import storage
from pyoptim.optim import elementwise

KINDS = ["float32", "float16", "bfloat16"]
LENGTHS = [0, 1, 17, 255, 256, 257, 1000, 33_000, 16_001]  # together worth three threads


def same_bits(a, b, hint=""):
    """As assert_same_bits, where two-byte floats are widened first."""
    assert a.dtype == b.dtype
    assert_same_bits(a.astype(np.float32), b.astype(np.float32), hint)


def unpacked(state):
    """States with 8-bit codes decoded: where a scale is NaN, the signs of codes mean nothing."""
    values = {}
    for (i, name), value in state.items():
        arrays = {name: value, f"{name}_scale": state.get((i, f"{name}_scale"))}
        packed = np.ndim(value) and value.dtype == np.uint8
        values[i, name] = storage.decode(storage.pack_state(name, arrays)) if packed else np.asarray(value)
    return values


@cache
def hard_arrays(kind):
    with np.errstate(over="ignore"):
        return [hard_values(t, np.float32, max(LENGTHS)).astype(type_of(kind)) for t in (99, *range(6))]


def packed_run(name, kind, **options):
    whole, *grads = hard_arrays(kind)
    params = [whole[:n].copy() for n in LENGTHS]
    optimizer = OPTIMIZERS[name](params, weight_decay=0.01, seed=3, **options)
    for g in grads:
        optimizer.step([g[:n] for n in LENGTHS])
    return params, unpacked(states(optimizer))


OPTIMIZERS = {
    "SGD": po.SGD,
    "momentum": lambda p, **options: po.SGD(p, momentum=0.9, **options),
    "AMSGrad": po.AMSGrad,  # the most states
    "Rprop": po.Rprop,  # states that do not begin at 0
}


@cache
def expected_run(name, kind, **options):
    with running_on("numpy"):
        return packed_run(name, kind, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("rounding", ["master", "stochastic", "nearest"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_bits_on_every_engine(backend, kind, state_dtype, rounding, name):
    if kind == "float32" and (state_dtype is None or rounding != "master"):
        return  # nothing is packed, or there is nothing to round
    if "bfloat16" in (kind, state_dtype):
        type_of("bfloat16")
    options = {"state_dtype": state_dtype, "rounding": rounding}
    expected = expected_run(name, kind, **options)
    for threads in (1, 3):
        with use_threads(threads):
            params, state = packed_run(name, kind, **options)
        for i, (p, q) in enumerate(zip(params, expected[0], strict=True)):
            same_bits(p, q, f"params[{i}], {threads} threads")
        assert state.keys() == expected[1].keys()
        for key, value in state.items():
            same_bits(value, expected[1][key], f"{key}, {threads} threads")


@pytest.mark.parametrize("place", [0, 15, 16, 127, 254, 255, 256, 298, 299])
def test_the_largest_of_a_block_sets_its_scale(backend, place):
    g = np.ones(300, np.float32)  # a block of 256, and a rest
    g[place] = -100

    def state():
        optimizer = po.SGD(np.zeros(300, np.float32), momentum=0.9, state_dtype="int8")
        optimizer.step(g)
        return unpacked(states(optimizer))[0, "momentum_buffer"]

    with running_on("numpy"):
        expected = state()
    assert expected[place] == pytest.approx(-100, rel=1e-6)
    same_bits(state(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("rounding", ["master", "stochastic", "nearest"])
def test_cutting_an_array_changes_no_bit(backend, kind, state_dtype, rounding):
    """Anywhere; in 8 bits where a scale's 256 elements end, since they begin anew in every array."""
    if kind == "float32" and state_dtype is None:
        return  # see test_splitting_an_array_changes_no_bit
    if "bfloat16" in (kind, state_dtype):
        type_of("bfloat16")
    cuts = [256, 256, 1280, 1792] if state_dtype == "int8" else [1, 2, 2, 257, 1300, 1999]
    whole, *grads = (a[:2000] for a in hard_arrays(kind))
    options = {"rounding": rounding, "state_dtype": state_dtype, "seed": 5, "weight_decay": 0.01}
    one, parts = whole.copy(), np.split(whole.copy(), cuts)
    optimizer = po.AMSGrad([one], **options)
    many = po.AMSGrad([{"params": parts[:2]}, {"params": parts[2:]}], **options)
    for g in grads:
        optimizer.step([g])
        pieces = np.split(g, cuts)
        many.step([pieces[:2], pieces[2:]])
    same_bits(np.concatenate(parts), one)
    expected, got = unpacked(states(optimizer)), unpacked(states(many))
    for (_, name), value in expected.items():
        if value.ndim:
            pieces = [got[i, name] for i in range(len(parts))]
            same_bits(np.concatenate(pieces), value, name)


def test_positions_beyond_32_bits_wrap():
    """An element's random number is that of its position modulo 2^32."""
    codes = storage.Packed("float16", np.zeros(8, np.float16))
    turned = storage.Packed("float16", np.zeros(8, np.float16))
    x = np.full(8, 1 + 2.0**-11, np.float32)  # half of the spacing
    storage.encode(codes, x, 7, True, first=2**32 - 4)
    storage.encode(turned, x, 7, True, first=0)
    assert (codes.data[4:] == turned.data[:4]).all()
    keys = [storage.hash_key(index, 2**32 - 1) for index in (0, 1, 2**32 - 1)]
    assert keys == storage.random_bits(np.array([0, 1, 2**32 - 1], np.uint32), 2**32 - 1).tolist()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_master_is_the_float32_run(backend, kind):
    """Bit for bit; the parameter is its rounding."""
    dtype = type_of(kind)
    grads = plain_gradients(np.float32)[:20].astype(dtype)
    p = np.linspace(-2, 2, 21).reshape(3, 7).astype(dtype)
    plain = p.astype(np.float32)
    optimizer, twin = po.Adam(p, weight_decay=0.1), po.Adam(plain, weight_decay=0.1)
    for g in grads:
        optimizer.step(g)
        twin.step(g.astype(np.float32))
    for name, value in states(twin).items():
        assert_same_bits(states(optimizer)[name], value)
    assert_same_bits(states(optimizer)[0, "master"], plain)
    same_bits(p, plain.astype(dtype))


def written(kind, n):
    """What a user may write into n elements, by the bits; every fifth element stays as it is."""
    special = [0.0, -0.0, 5.0, -1e-7, np.nan, np.inf, -np.inf, 3e38, 6e-8]
    with np.errstate(over="ignore"):
        return np.resize(np.array(special, np.float32), n).astype(type_of(kind)), np.arange(n) % 5 != 0


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", elementwise.__all__)
def test_what_is_written_into_a_parameter_counts(backend, kind, name):
    """Where a parameter is no longer its master rounded, the step starts from the parameter."""
    dtype = type_of(kind)
    params = [np.linspace(-2, 2, n).astype(dtype) for n in LENGTHS[:-2]]
    wide = [p.astype(np.float32) for p in params]
    optimizer, twin = (getattr(po, name)(given, weight_decay=0.1) for given in (params, wide))
    for t in range(5):
        for p, w in zip(params, wide, strict=True):
            if t in (1, 3):
                values, where = written(kind, p.size)
                p[where] = values[where]
                was = w.astype(dtype).view(np.uint16)
                w[...] = np.where(p.view(np.uint16) == was, w, p.astype(np.float32))
        grads = [np.cos(np.arange(p.size) + t).astype(dtype) for p in params]
        optimizer.step(grads)
        twin.step([g.astype(np.float32) for g in grads])
        kept = states(optimizer)
        for i, (p, w) in enumerate(zip(params, wide, strict=True)):
            assert_same_bits(kept[i, "master"], w)
            same_bits(p, w.astype(dtype))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_value_written_over_every_kind_of_master_counts(backend, kind):
    """All 65,536 values, over masters near to which they round and over NaN of all kinds; without a move."""
    codes = np.arange(2**16, dtype=np.uint16)
    if kind == "bfloat16":
        near = (codes.astype(np.uint32) << 16)[:, None] + np.array([-0x8001, -0x8000, -0x7FFF, 0, 1, 0x7FFF,
                                                                    0x8000, 0x8001], np.int64)  # fmt: skip
    else:
        wide = codes.view(np.float16).astype(np.float32).view(np.uint32)
        near = wide[:, None] + np.array([-0x1000, 0, 1, 0xFFF, 0x1000, 0x1001], np.int64)
    masters = [*near.astype(np.uint32).T]
    masters += [np.full(2**16, bits, np.uint32) for bits in (0xFFFFFFFF, 0x7FFFFFFF, 0x7F800001, 0xFF800001,
                                                             0x7FBFFFFF, 0xFFFF8000, 0xFFFF8001)]  # fmt: skip
    for bits in masters:
        p = np.zeros(2**16, type_of(kind))
        optimizer = po.SGD(p, lr=0.0)
        optimizer.step(np.zeros_like(p))
        saved = optimizer.state_dict()
        saved["state"][0]["master"] = master = bits.view(np.float32)
        optimizer.load_state_dict(saved)
        p.view(np.uint16)[...] = codes
        wide = np.where(storage._nearest(kind, master) == codes, master, p.astype(np.float32))
        optimizer.step(np.zeros_like(p))
        po.SGD(wide, lr=0.0).step(np.zeros_like(wide))
        assert_same_bits(states(optimizer)[0, "master"], wide)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_writing_what_is_there_keeps_the_master(backend, kind):
    p = np.full(300, 0.75, type_of(kind))
    optimizer = po.SGD(p, lr=2.0**-14)
    for _ in range(4):  # steps that the parameter is too coarse for
        p[...] = p.copy()
        with po.averages.EMA([p]).applied():
            p[...] = 3
        optimizer.step(np.ones_like(p))
    assert (states(optimizer)[0, "master"] == np.float32(0.75 - 4 * 2.0**-14)).all()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("parameters_first", [True, False])
def test_parameters_and_state_are_restored_in_either_order(backend, kind, parameters_first):
    g = np.cos(np.arange(300)).astype(type_of(kind))
    p, q = np.ones_like(g), np.full_like(g, 2)
    optimizer, other = po.Adam(p), po.Adam(q)
    optimizer.step(g)
    saved, parameters = optimizer.state_dict(), p.copy()
    for own, resumed in ((p, optimizer), (q, other)):
        if parameters_first:
            own[...] = parameters
        resumed.load_state_dict(saved)
        own[...] = parameters
        resumed.step(g)
    same_bits(p, q)
    assert_same_bits(states(optimizer)[0, "master"], states(other)[0, "master"])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_small_updates_are_kept_on_average_or_lost(backend, kind):
    """Each update is an eighth of the spacing: nearest stands still, stochastic moves as float32 would."""
    dtype = type_of(kind)
    n, steps = 4096, 64
    spacing = 2.0**-8 if kind == "bfloat16" else 2.0**-11  # below 1
    g = np.ones(n, dtype)

    def mean_move(rounding, seed=0):
        p = np.full(n, 0.75, dtype)
        optimizer = po.SGD(p, lr=spacing / 8, rounding=rounding, seed=seed)
        for _ in range(steps):
            optimizer.step(g)
        return p, (0.75 - p.astype(np.float64)).mean() / spacing

    _, nearest = mean_move("nearest")
    one, stochastic = mean_move("stochastic")
    _, master = mean_move("master")
    assert nearest == 0
    assert master == 8
    # A step rounds one in eight down: variance 7/64 each, independent over steps and elements.
    sigma = (steps * 7 / 64 / n) ** 0.5
    assert abs(stochastic - 8) < 5 * sigma
    assert one.astype(np.float64).std() / spacing == pytest.approx((steps * 7 / 64) ** 0.5, rel=0.1)
    again, _ = mean_move("stochastic")
    other, _ = mean_move("stochastic", seed=1)
    same_bits(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(("state_dtype", "share"), [("bfloat16", 0.015), ("int8", 0.2)])
def test_packed_states_follow_the_float32_run(backend, state_dtype, share):
    """Within a few spacings, 2^-7 and 2^-3, of the distance; sizes differ a thousandfold in a block."""
    if state_dtype == "bfloat16":
        type_of("bfloat16")
    rng = np.random.default_rng(10)
    p = rng.normal(size=1000).astype(np.float32)
    scale = 10.0 ** rng.uniform(-3, 0, 1000)
    exact, start = p.copy(), p.copy()
    optimizer, twin = po.Adam(p, lr=0.01, state_dtype=state_dtype), po.Adam(exact, lr=0.01)
    for t in range(100):
        g = (scale * (np.sin(t / 5) + rng.normal(size=1000))).astype(np.float32)
        optimizer.step(g)
        twin.step(g)
    for some in scale < 0.01, scale > 0.1:
        assert np.abs(p - exact)[some].mean() < share * np.abs(exact - start)[some].mean()


def test_blocks_of_8_bits():
    """Within half a spacing of 3 bits of mantissa on average; 0 stays 0; blocks do not see each other."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=1000).astype(np.float32)
    x[::7] = 0
    x[256:512] *= 1e20
    for name in ("exp_avg", "exp_avg_sq"):
        values = np.abs(x) if name == "exp_avg_sq" else x
        made = storage.state_arrays(name, x.shape, "int8")
        arrays = {key: np.zeros(shape, dtype) for key, (shape, dtype) in made.items()}
        packed = storage.pack_state(name, arrays)
        assert sum(a.nbytes for a in arrays.values()) == 1000 + 4 * 4
        decoded = []
        for key in range(200):
            storage.encode(packed, values, storage.hash_key(key, 0), True)
            decoded.append(storage.decode(packed).copy())
        worst = np.abs(decoded - values)
        top = np.repeat([np.abs(values[i : i + 256]).max() for i in range(0, 1000, 256)], 256)[:1000]
        assert (worst <= np.abs(values) / 8 + top * 2.0**-17).all()
        assert (np.array(decoded)[:, ::7] == 0).all()
        deviation = np.abs(np.mean(decoded, axis=0, dtype=np.float64) - values)
        assert (deviation <= 0.05 * np.abs(values) + top * 2.0**-17).all()  # unbiased


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_restored_run_goes_on_with_the_same_bits(kind, state_dtype):
    dtype = type_of(kind)
    if state_dtype == "bfloat16":
        type_of("bfloat16")
    grads = plain_gradients(np.float32)[:6].astype(dtype)
    p = np.ones((3, 7), dtype)
    straight = p.copy()
    whole = po.Adam(straight, state_dtype=state_dtype)
    first = po.Adam(p, state_dtype=state_dtype)
    for g in grads:
        whole.step(g)
    for g in grads[:3]:
        first.step(g)
    resumed = po.Adam(p, state_dtype=state_dtype)
    resumed.load_state_dict(first.state_dict())
    for g in grads[3:]:
        resumed.step(g)
    same_bits(p, straight)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_measures_the_gradients_in_float32(backend, kind):
    """As the float32 run with the same gradients does, whether they are contiguous or not."""
    dtype = type_of(kind)
    rng = np.random.default_rng(3)
    lengths = (0, 5, 40_000)
    grads = [rng.normal(size=2 * n).astype(dtype)[::2] for n in lengths]
    params = [np.ones(n, np.float32) for n in lengths]
    plain = po.SGD(params, lr=0.5, max_grad_norm=0.1, nonfinite="skip")
    plain.step([g.astype(np.float32) for g in grads])
    assert abs(np.linalg.norm(np.concatenate(params) - 1) - 0.05) < 1e-6
    for given in (grads, [g.copy() for g in grads]):
        packed = [np.ones(n, dtype) for n in lengths]
        # The first step of momentum is the gradient itself: how the state is kept does not matter yet.
        optimizer = po.SGD(
            packed, lr=0.5, momentum=0.9, max_grad_norm=0.1, nonfinite="skip", state_dtype="int8"
        )
        optimizer.step(given)
        for p, q in zip(packed, params, strict=True):
            same_bits(p, q.astype(dtype))
        given[1][3] = np.inf
        optimizer.step(given)
        assert optimizer.skipped == 1


@pytest.mark.parametrize("layout", ["strided", "one byte off"])
def test_layouts(backend, layout):
    g = np.linspace(1, 2, 300).astype(np.float16)
    plain = np.ones(300, np.float16)
    p = np.ones(600, np.float16)[::2] if layout == "strided" else np.zeros(601, np.uint8)[1:].view(np.float16)
    p[...] = 1
    for params, grads in (plain, g), (p, np.repeat(g, 2)[::2]):
        optimizer = po.Adam(params, lr=0.1, state_dtype="int8", rounding="stochastic")
        for _ in range(3):
            optimizer.step(grads)
    same_bits(p, plain)
    assert (p < 1).all()


def test_what_does_not_go_together():
    half = np.ones((2, 2), np.float16)
    for params, options, match in (
        (np.ones(3), {"state_dtype": "int8"}, "params has dtype float64"),
        ([half, np.ones(3)], {}, r"params\[1\] has dtype float64"),
    ):
        with pytest.raises(TypeError, match=match):
            po.Adam(params, **options)
    for name in ("LARS", "LAMB", "Adafactor", "Muon"):
        with pytest.raises(TypeError, match=name):
            getattr(po, name)(half)
        with pytest.raises(TypeError, match=name):
            getattr(po, name)(half.astype(np.float32), state_dtype="int8")
    with pytest.raises(TypeError, match="grads has dtype float32, expected float16"):
        po.Adam(half).step(np.ones((2, 2), np.float32))


def test_states_are_decoded_where_python_reads_them(backend):
    p = np.ones(300, np.float32)
    optimizer = po.SGD(p, lr=0.1, momentum=0.5, velocity="classical", state_dtype="int8")
    optimizer.step(np.ones(300, np.float32))  # v = 0.1
    with optimizer.lookahead():
        np.testing.assert_allclose(p, 0.9 - 0.5 * 0.1, atol=0.5 * 0.1 / 8)
    averaged = po.ASGD(p, t0=0.0, state_dtype="int8")
    averaged.step(np.ones(300, np.float32))
    np.testing.assert_allclose(averaged.averages()[0], p, rtol=1 / 8)


def test_float16_gradients_are_accumulated_in_float32(backend):
    """Neither overflowing below the largest mean nor standing still where a gradient is half a spacing."""
    p = np.zeros(2, np.float16)
    optimizer = po.SGD(p, lr=1e-4, accumulate=2)
    for _ in range(2):
        optimizer.step(np.full(2, 6e4, np.float16))
    np.testing.assert_allclose(p, -6, rtol=1e-3)
    p[...] = 0
    optimizer = po.SGD(p, lr=1, accumulate=4096)
    for _ in range(4096):
        optimizer.step(np.full(2, 0.1, np.float16))
    np.testing.assert_allclose(p, -0.1, rtol=1e-3)
