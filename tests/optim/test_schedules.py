"""Schedules: published formulas, PyTorch's where it has the same, composition, and use by an optimizer."""

import math
import pickle

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn
from pyoptim import schedules as s

# schedule, {k: lr} worked out from the formula
CASES = [
    (s.Constant(0.3), {0: 0.3, 9: 0.3}),
    (s.InverseTime(0.1, 0.5), {0: 0.1, 2: 0.05, 18: 0.01}),
    (s.Exponential(0.1, 0.5), {0: 0.1, 1: 0.05, 3: 0.0125}),
    (s.Exponential(0.1, 0.25, steps=4), {0: 0.1, 2: 0.05, 4: 0.025}),
    (s.InverseSqrt(0.1, 2.0), {0: 0.2, 1: 0.2, 4: 0.1, 100: 0.02}),
    (s.Linear(1.0, 0.2, 4), {0: 1.0, 1: 0.8, 4: 0.2, 99: 0.2}),
    (s.Step(1.0, 3, 0.5), {0: 1.0, 2: 1.0, 3: 0.5, 6: 0.25}),
    (s.Piecewise([2, 5], [1.0, 0.1, 0.01]), {0: 1.0, 1: 1.0, 2: 0.1, 4: 0.1, 5: 0.01}),
    (s.Polynomial(1.0, 10, 2.0, 0.1), {0: 1.0, 5: 0.9 * 0.25 + 0.1, 10: 0.1, 11: 0.1}),
    (s.Cosine(1.0, 10, 0.2), {0: 1.0, 5: 0.6, 10: 0.2, 20: 0.2}),
    (s.Cosine(1.0, 4, restarts=True), {0: 1.0, 2: 0.5, 4: 1.0, 4_000_002: 0.5}),
    (s.Cosine(1.0, 4, restarts=True, growth=2), {4: 1.0, 8: 0.5, 12: 1.0}),
    (s.Cyclic(0.1, 0.5, 4, "triangular2"), {0: 0.1, 4: 0.5, 8: 0.1, 12: 0.3, 16: 0.1}),
    (s.RangeTest(1e-4, 1.0, 4), {0: 1e-4, 1: 1e-3, 2: 1e-2, 4: 1.0, 5: 1.0}),
    (s.WarmUp(s.Step(1.0, 2, 0.5), 4), {0: 0.0, 1: 0.25, 4: 1.0, 6: 0.5}),
    (s.WarmUp(s.Step(1.0, 2, 0.5), 0), {0: 1.0, 1: 1.0, 2: 0.5}),
    (s.Joined([s.Constant(9.0), s.Linear(1.0, 0.0, 4)], [0]), {0: 1.0, 2: 0.5}),
    (s.Joined([s.Constant(1.0)], []), {0: 1.0, 3: 1.0}),
    (s.Joined([s.Constant(9.0), s.Constant(1.0), s.Constant(2.0)], [0, 2]), {0: 1.0, 1: 1.0, 2: 2.0}),
    (s.Piecewise([0, 3], [9.0, 1.0, 2.0]), {0: 1.0, 2: 1.0, 3: 2.0}),
    (s.Joined([s.Constant(1.0), s.Linear(1.0, 0.0, 4)], [3]), {2: 1.0, 3: 1.0, 5: 0.5, 7: 0.0}),
    (s.Chained([s.Constant(0.1), s.Exponential(1.0, 0.5)]), {0: 0.1, 1: 0.05}),
]


@pytest.mark.parametrize(("schedule", "values"), CASES, ids=lambda v: type(v).__name__)
def test_values(schedule, values):
    for k, lr in values.items():
        assert schedule(k) == pytest.approx(lr, rel=1e-12, abs=1e-15)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert type(schedule).__name__ in repr(schedule)


def test_every_schedule_is_tested():
    tested = {type(schedule).__name__ for schedule, _ in CASES} | {"OneCycle"}  # against PyTorch
    assert tested == set(s.__all__) - {"Schedule"}


def test_against_torch():
    torch = pytest.importorskip("torch")
    their = torch.optim.lr_scheduler

    def run(make, lr=1.0, n=25):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
        scheduler, rates = make(optimizer), []
        for _ in range(n):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    pairs = [
        (s.Step(1.0, 7, 0.3), run(lambda o: their.StepLR(o, 7, 0.3))),
        (s.Piecewise([4, 9], [1.0, 0.3, 0.09]), run(lambda o: their.MultiStepLR(o, [4, 9], 0.3))),
        (s.Exponential(1.0, 0.9), run(lambda o: their.ExponentialLR(o, 0.9))),
        (s.Polynomial(1.0, 20, 2.0), run(lambda o: their.PolynomialLR(o, 20, 2.0))),
        (s.Cosine(1.0, 25, 0.1), run(lambda o: their.CosineAnnealingLR(o, 25, 0.1))),
        (
            s.Cosine(1.0, 4, restarts=True, growth=2),
            run(lambda o: their.CosineAnnealingWarmRestarts(o, 4, 2)),
        ),
        (s.OneCycle(1.0, 25), run(lambda o: their.OneCycleLR(o, 1.0, 25), n=25)),
        (
            s.OneCycle(1.0, 25, 0.1, 10, 100),
            run(lambda o: their.OneCycleLR(o, 1.0, 25, pct_start=0.1, div_factor=10, final_div_factor=100)),
        ),
    ]
    for mode in ("triangular", "triangular2", "exp_range"):
        cyclic = s.Cyclic(0.1, 1.0, 4, mode, gamma=0.95)
        pairs.append((cyclic, run(lambda o, m=mode: their.CyclicLR(o, 0.1, 1.0, 4, mode=m, gamma=0.95))))
    for schedule, rates in pairs:
        np.testing.assert_allclose(
            [schedule(k) for k in range(25)], rates, rtol=1e-9, atol=1e-12, err_msg=repr(schedule)
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: s.Cosine(-1.0, 3), "lr of Cosine is -1.0, expected a finite number >= 0"),
        (lambda: s.Cosine(math.nan, 3), "lr of Cosine is nan"),
        (lambda: s.Step(1.0, 0), "every of Step is 0, expected a positive integer"),
        (lambda: s.RangeTest(0.0, 1.0, 4), "lowest of RangeTest is 0.0, expected a finite number > 0"),
        (lambda: s.Constant(1.0, unit="day"), "unit of Constant is 'day', expected 'step' or 'epoch'"),
        (lambda: s.Cyclic(0.0, 1.0, 4, "square"), "mode of Cyclic is 'square'"),
        (lambda: s.Piecewise([5, 2], [1, 2, 3]), "boundaries"),
        (lambda: s.Piecewise([-1], [1, 2]), "boundaries of Piecewise is .*expected rising integers >= 0"),
        (lambda: s.Joined([s.Constant(1.0)] * 3, [0, 0]), "boundaries of Joined"),
        (lambda: s.WarmUp(s.Constant(1.0), -1), "steps of WarmUp is -1, expected an integer >= 0"),
        (lambda: s.Piecewise([5], [1]), "rates of Piecewise is"),
        (lambda: s.Joined([s.Constant(1.0)], [3]), "parts of Joined has 1 schedules, expected 2"),
        (lambda: s.Joined([s.Constant(1.0), 0.1], [3]), "parts of Joined is .* expected one or more"),
        (lambda: s.Joined(3, [3]), "parts of Joined is 3"),
        (lambda: s.Joined([s.Constant(1.0)] * 2, [3.0]), "boundaries of Joined is .*3.0"),
        (lambda: s.Piecewise(5, [1.0]), "boundaries of Piecewise is 5"),
        (lambda: s.Piecewise([5], [1.0, -1.0]), "rates of Piecewise is .* expected finite numbers >= 0"),
        (lambda: s.Chained([]), "parts of Chained is"),
        (lambda: s.Chained([s.Constant(1.0), None]), "parts of Chained is .*None"),
        (lambda: s.WarmUp(0.1, 3), "then of WarmUp is 0.1, expected a schedule"),
        (lambda: s.WarmUp(s.Cosine, 3), "then of WarmUp is <class"),
        (lambda: s.WarmUp(s.Constant(1.0), np.float64(3)), "steps of WarmUp is"),
        (lambda: s.Cosine(1.0, 4, restarts="no"), "restarts of Cosine is 'no', expected True or False"),
        (lambda: s.OneCycle(1.0, 9, rise=3.0), r"rise of OneCycle is 3.0, expected a number in \[0, 1\]"),
        (lambda: s.OneCycle(1.0, 9, rise=-0.1), "rise of OneCycle is -0.1"),
        (lambda: s.WarmUp(s.Constant(1.0, unit="epoch"), 3), "then of WarmUp .*counts epochs: give unit"),
        (lambda: s.Chained([s.Constant(1.0, unit="epoch")]), "parts of Chained .*counts epochs"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_and_arrays_of_numpy():
    given = [
        s.Step(np.float32(0.5), np.int64(3), np.float16(0.25)),
        s.Piecewise(np.array([2, 4]), np.array([1, 0.5, 0.25], np.float32)),
        s.WarmUp(s.Linear(np.longdouble(1), np.int32(0), np.uint8(4)), np.int16(2)),
        s.Cosine(1.0, 4, restarts=np.True_),
        s.Cosine(np.array(1.0), np.array(4), np.array(0.5, np.float32), np.array(True)),
        s.Piecewise([np.array(2)], (np.array(1.0), 0.5)),
    ]
    meant = [
        s.Step(0.5, 3, 0.25),
        s.Piecewise((2, 4), (1.0, 0.5, 0.25)),
        s.WarmUp(s.Linear(1.0, 0, 4), 2),
        s.Cosine(1.0, 4, restarts=True),
        s.Cosine(1.0, 4, 0.5, True),
        s.Piecewise((2,), (1.0, 0.5)),
    ]
    assert given == meant
    assert [hash(schedule) for schedule in given] == [hash(schedule) for schedule in meant]
    assert repr(given) == repr(meant)
    for schedule in given:
        assert type(schedule(1)) is float
    s.Cyclic(0.1, 0.5, np.int64(4), "triangular2")(np.int64(12))


def test_parts_count_what_the_whole_counts():
    whole = s.WarmUp(s.Joined([s.Linear(1.0, 0.5, 2), s.Constant(0.5)], [2], unit="epoch"), 2, unit="epoch")
    assert [whole(k) for k in range(5)] == [0.0, 0.5, 1.0, 0.75, 0.5]


def test_the_ends_of_one_cycle_are_torchs():
    torch = pytest.importorskip("torch")
    for rise in (0.0, 1.0):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, 9, pct_start=rise, cycle_momentum=False
        )
        for k in range(9):
            assert s.OneCycle(1.0, 9, rise)(k) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if k < 8:
                scheduler.step()


@pytest.mark.parametrize(
    "schedule",
    [s.Step(1, 1, 10), s.Exponential(1.0, 10.0), s.Cyclic(0.1, 1.0, 3, "exp_range", gamma=10.0)],
    ids=repr,
)
def test_rates_beyond_all_floats_are_errors(schedule):
    assert math.isfinite(schedule(300))
    for k in (400, 10**6):
        with pytest.raises(ValueError, match=r"\*\* ?\d+.* is beyond all floats"):
            schedule(k)
    p = np.ones(2)
    optimizer = po.SGD(p, lr=lambda k: schedule(400))
    with pytest.raises(ValueError, match="beyond all floats"):
        optimizer.step(np.ones(2))
    assert (p == 1).all()


def test_rates_that_span_all_floats_are_finite():
    tiny, huge = 5e-324, 1.7e308
    test = s.RangeTest(tiny, huge, 10)
    rates = [test(k) for k in range(12)]
    assert rates[0] == tiny
    assert rates[10] == rates[11] == huge
    assert rates == sorted(rates)
    assert s.Step(0.0, 1, 10.0)(400) == 0.0


def test_an_optimizer_follows_a_schedule():
    schedule = s.Piecewise([2], [1.0, 0.25])
    p = np.zeros(1)
    optimizer = po.SGD(p, lr=schedule)
    values = []
    for _ in range(4):
        optimizer.step(np.ones(1))
        values.append(p[0])
    assert values == [-1.0, -2.0, -2.25, -2.5]


def test_epochs_are_counted_by_the_trainer():
    seen = []

    class Recorder(s.Constant):
        def __call__(self, k):
            seen.append(k)
            return self.lr

    model = nn.Sequential(nn.Dense(2, 2), seed=0)
    optimizer = po.SGD(model.parameters(), lr=Recorder(0.1, unit="epoch"))
    trainer = po.Trainer(model, nn.CrossEntropy(), optimizer)
    trainer.fit(np.ones((4, 2)), np.zeros(4, int), epochs=3, batch_size=2, verbose=False)
    assert seen == [0, 0, 1, 1, 2, 2]


def test_schedules_that_users_derive():
    """By a `__call__` of their own, which may ask that of the class it comes from."""

    class Doubled(s.Cosine):
        def __call__(self, k):
            return 2 * super().__call__(k)

    expected = s.Cosine(1.0, 10)
    for schedule in (Doubled(1.0, 10), s.WarmUp(Doubled(1.0, 10), 3), s.Joined([Doubled(1.0, 10)], [])):
        shift = 3 if isinstance(schedule, s.WarmUp) else 0
        assert schedule(5 + shift) == 2 * expected(5)
        optimizer = po.SGD(p := np.zeros(1), lr=schedule)
        for _ in range(6 + shift):
            p[...] = 0
            optimizer.step(-np.ones(1))
        assert p[0] == 2 * expected(5)


@pytest.mark.parametrize("k", [-1, "3", None, float("nan"), np.zeros(3)])
def test_what_k_cannot_be(k):
    with pytest.raises(ValueError, match=r"k is .*, expected a finite number >= 0"):
        s.Cosine(1.0, 10)(k)


def test_keras_s_piecewise_constant_decay():
    """It has values[0] while step <= boundaries[0], values[1] while step <= boundaries[1], and so on."""
    boundaries, values = [3, 7], [1.0, 0.5, 0.1]
    own = s.Piecewise([b + 1 for b in boundaries], values)
    assert [own(k) for k in range(10)] == [1.0] * 4 + [0.5] * 4 + [0.1] * 2
