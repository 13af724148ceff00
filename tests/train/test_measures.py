"""What a training measures, on which batches it counts, and labels that change while it runs."""

import numpy as np
import pytest
from support import backends

import pyoptim as po
from pyoptim import metrics, nn

WEIGHTS = [1.0, 10.0, 50.0]
ENGINES = ["auto", "python"]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def data(rng, n=200):
    """Examples sorted by class, so that batches have very different weights."""
    return rng.normal(size=(n, 4)).astype(np.float32), np.sort(rng.integers(0, 3, n))


def trainer(loss=None, optimizer=None, normed=True, **options):
    layers = (nn.Dense(4, 8), nn.BatchNorm(8), nn.ReLU(), nn.Dropout(0.3)) if normed else (nn.Dense(4, 8),)
    model = nn.Sequential(*layers, nn.Dense(8, 3), seed=1)
    optimizer = optimizer or (lambda p: po.SGD(p, lr=0.0))
    return po.Trainer(model, loss or nn.CrossEntropy(), optimizer(model.parameters()), seed=0, **options)


def fit(mine, x, y, **options):
    history = mine.fit(x, y, **{"verbose": False, "shuffle": False, **options})
    del history["seconds"]
    return history


# ---- means of weighted means


def losses(rng, n):
    shares = rng.dirichlet(np.ones(3), n)
    return [
        (nn.CrossEntropy(class_weight=WEIGHTS), None),
        (nn.CrossEntropy(class_weight=WEIGHTS, label_smoothing=0.1), None),
        (nn.CrossEntropy(class_weight=[0.0, 1.0, 2.0]), None),  # batches of weight 0
        (nn.CrossEntropy(class_weight=WEIGHTS), shares),
        (nn.CrossEntropy(), None),
        (nn.KLDiv(2.0), shares),
        (nn.MSE(), shares),
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weighted", [True, False])
def test_a_loss_of_many_batches_is_that_of_one(backend, rng, engine, weighted):
    """A rate of 0 leaves the parameters alone, so that training too measures one model."""
    x, y = data(rng)
    weight, order = rng.random(len(x)) if weighted else None, rng.permutation(len(x))
    for loss, target in losses(rng, len(x)):
        t = y if target is None else target
        mine = trainer(loss, normed=False)
        exact = loss(mine.model.eval().forward(x), t, sample_weight=weight)[0]
        history = fit(mine, x, t, batch_size=7, engine=engine, validation_data=(x, t), sample_weight=weight)
        assert history["loss"] == pytest.approx([exact], rel=1e-5)
        exact_without = loss(mine.model.forward(x), t)[0]
        assert history["val_loss"] == pytest.approx([exact_without], rel=1e-5)
        large = np.tile(x, (12, 1)), np.repeat(t, 12, 0) if t.ndim == 1 else np.tile(t, (12, 1))
        exact = loss(mine.model.forward(large[0]), large[1])[0]  # of more than one batch of evaluation
        assert mine.evaluate(*large)["loss"] == pytest.approx(exact, rel=1e-5)
        shuffled = None if weight is None else weight[order]
        again = fit(mine, x[order], t[order], batch_size=7, engine=engine, sample_weight=shuffled)
        assert again["loss"] == pytest.approx(history["loss"], rel=1e-5)


def test_both_loops_measure_weighted_losses_to_the_same_bits(rng):
    x, y = data(rng)
    loss = nn.CrossEntropy(class_weight=WEIGHTS)
    one, other = (fit(trainer(loss), x, y, engine=engine, epochs=2, shuffle=True) for engine in ENGINES)
    assert one == other


@pytest.mark.parametrize("engine", ENGINES)
def test_without_any_weight_a_loss_is_zero(backend, rng, engine):
    x, y = data(rng, 40)
    mine = trainer(nn.CrossEntropy(class_weight=[0, 0, 0], label_smoothing=0.1))
    before = mine.model.flat_parameters.copy()
    assert fit(mine, x, y, engine=engine)["loss"] == [0]
    assert mine.evaluate(x, y)["loss"] == 0
    assert np.array_equal(before, mine.model.flat_parameters)


def test_a_checkpoint_of_before_the_divisors_goes_on(rng, tmp_path):
    x, y = data(rng, 40)
    whole = fit(trainer(), x, y, batch_size=8)
    mine, path = trainer(), tmp_path / "training"
    saves = []

    def written(description):
        for name in ("divisor", "counted"):
            del description["epoch"][name]
        return description

    with pytest.MonkeyPatch.context() as patch:
        from pyoptim.runtime import files

        original = files.write

        def write(path, description, tensors):
            saves.append(description["epoch"]["done"])
            original(path, written(description), tensors)
            if saves[-1] == 16:
                raise KeyboardInterrupt

        patch.setattr(files, "write", write)
        with pytest.raises(KeyboardInterrupt):
            fit(mine, x, y, batch_size=8, engine="python", checkpoint=path, checkpoint_every=0)
    history = fit(trainer(), x, y, batch_size=8, engine="python", checkpoint=path)
    assert history == whole


# ---- steps that are not taken


class Poison(po.callbacks.Callback):
    """Writes NaN and infinity into two batches of 32, once the data have been checked."""

    def __init__(self, x):
        self.x = x

    def on_train_begin(self):
        self.x[35, 1], self.x[96:128] = np.nan, np.inf


def poisoned(rng, n=160):
    """Data, the examples of the batches that are not poisoned, and the callback that poisons the others."""
    x, y = data(rng, n)
    return x, rng.permutation(y), np.setdiff1d(np.arange(n), np.r_[32:64, 96:128]), [Poison(x)]


SKIPPING = {
    "adam": lambda p: po.Adam(p, lr=0.01, nonfinite="skip"),
    "clipped": lambda p: po.SGD(p, lr=0.1, momentum=0.9, nonfinite="skip", max_grad_norm=0.5),
    "schedule": lambda p: po.SGD(p, lr=po.schedules.Exponential(0.1, 0.9), nonfinite="skip"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SKIPPING)
def test_a_skipped_batch_might_as_well_not_be_there(backend, rng, engine, name):
    x, y, whole, callbacks = poisoned(rng)
    mine, other = (trainer(optimizer=SKIPPING[name]) for _ in range(2))
    with np.errstate(all="ignore"):
        callbacks.append(po.callbacks.TerminateOnNaN())
        history = fit(mine, x, y, engine=engine, epochs=3, callbacks=callbacks)
    assert history == fit(other, x[whole], y[whole], engine=engine, epochs=3)
    assert mine.optimizer.skipped == 6
    ours, theirs = mine.model.state_dict(), other.model.state_dict()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("engine", ENGINES)
def test_averages_and_accumulated_gradients_skip_too(rng, engine):
    x, y, whole, callbacks = poisoned(rng)
    found = []
    for kept, options in ((whole, {}), (slice(None), {"callbacks": callbacks})):
        mine = trainer(optimizer=lambda p: po.SGD(p, lr=0.1, nonfinite="skip", accumulate=2))
        average = po.averages.EMA(mine.optimizer)
        with np.errstate(all="ignore"):
            fit(mine, x[kept], y[kept], engine=engine, epochs=2, **options)
        found.append(([np.array(value) for value in average.averages], average.count))
    (a, m), (b, n) = found
    assert m == n
    assert all(map(np.array_equal, a, b))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_epoch_without_a_step_measures_nothing(backend, rng, engine):
    x, y = data(rng, 40)
    mine = trainer(optimizer=lambda p: po.SGD(p, nonfinite="skip"))
    mine.model.flat_parameters[...] = np.nan
    before = mine.model.state_dict()
    history = fit(mine, x, y, engine=engine, epochs=5, callbacks=[po.callbacks.TerminateOnNaN()])
    assert np.isnan(history["loss"] + history["accuracy"]).all()
    assert len(history["loss"]) == 1
    after = mine.model.state_dict()
    assert all(np.array_equal(before[key], after[key], equal_nan=True) for key in before)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refused_step_leaves_no_trace(backend, rng, engine):
    x, y, _, callbacks = poisoned(rng)
    mine = trainer(optimizer=lambda p: po.Adam(p, nonfinite="raise"))
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="NaN or infinity"):
        fit(mine, x, y, engine=engine, callbacks=callbacks)
    other = trainer(optimizer=po.Adam)
    fit(other, x[:32], y[:32], engine=engine)
    ours, theirs = mine.model.state_dict(), other.model.state_dict()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_partial_fit_skips_too(rng):
    x, y = data(rng, 32)
    mine = trainer(optimizer=SKIPPING["adam"])
    mine.model.layers[-1].parameters["bias"][0] = np.nan
    before = mine.model.state_dict()
    with np.errstate(all="ignore"):
        mine.partial_fit(x, y)
    assert mine.optimizer.skipped == 1
    after = mine.model.state_dict()
    assert all(np.array_equal(before[key], after[key], equal_nan=True) for key in before)


# ---- a model that diverged


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_never_right(backend, rng, engine, value):
    """Their argmax is class 0."""
    x, y = data(rng, 40)
    y[...] = 0
    names = ["accuracy", "precision", "recall", "f_score"]
    pytest.importorskip("sklearn")
    mine = trainer(normed=False, metrics=[metrics.TopK(2), *(getattr(metrics, n) for n in names[1:])])
    mine.model.flat_parameters[...] = 0
    mine.model.layers[-1].parameters["bias"][...] = value
    for targets in (y, np.eye(3)[y]):
        with np.errstate(all="ignore"):
            history = fit(mine, x, targets, engine=engine)
            assert history["accuracy"] == [0]
            assert np.isnan(history["loss"]).all()
            if targets is y:
                found = mine.evaluate(x, y)
                assert np.isnan(found.pop("loss"))
                assert found == dict.fromkeys(["top_2", *names], 0)


def test_a_metric_counts_what_is_no_prediction_as_a_miss(rng):
    pytest.importorskip("sklearn")
    targets, outputs = rng.integers(0, 3, 60), rng.normal(size=(60, 3))
    outputs[np.arange(60), targets] += 1
    lost = rng.permutation(60)[:15]
    broken = outputs.copy()
    for row, value in zip(lost, [np.nan, np.inf, -np.inf] * 5, strict=True):
        broken[row] = value
    broken[lost[0]] = [0, np.nan, 1]
    kept = np.setdiff1d(np.arange(60), lost)
    right = (outputs[kept].argmax(1) == targets[kept]).sum()
    assert metrics.accuracy(targets, broken) == right / 60
    assert metrics.TopK(1)(targets, broken) == right / 60
    assert metrics.TopK(3)(targets, broken) == 45 / 60
    assert metrics.precision(targets, broken) == metrics.precision(targets[kept], outputs[kept])
    assert metrics.recall(targets, broken, "micro") == right / 60
    expected = metrics.confusion_matrix(targets[kept], outputs[kept])
    np.testing.assert_array_equal(metrics.confusion_matrix(targets, broken), expected)
    two, scores = targets % 2, outputs[:, :2].copy()
    scores[lost] = np.nan
    assert metrics.precision(two, scores, "binary") == metrics.precision(two[kept], scores[kept], "binary")
    hit = (scores[kept].argmax(1) == 1) & (two[kept] == 1)
    assert metrics.recall(two, scores, "binary") == hit.sum() / two.sum()
    assert metrics.coverage(targets, broken, 0.0)[0] == 45 / 60


def test_no_comparison_finds_nan_better(tmp_path):
    mine, path = trainer(normed=False), tmp_path / "best.safetensors"
    for monitor in ("val_accuracy", "val_loss"):
        for callback in (
            po.callbacks.ModelCheckpoint(path, monitor, save_best_only=True),
            po.callbacks.EarlyStopping(monitor, patience=1, restore_best_weights=True),
        ):
            callback.trainer = mine
            callback.on_train_begin()
            best = callback.best
            callback.on_epoch_end(0, {monitor: np.nan})
            assert callback.best == best
    assert not path.exists()


# ---- labels that change


class Relabel(po.callbacks.Callback):
    """Writes a label that is no class after the first epoch."""

    def __init__(self, y, label):
        self.y, self.label = y, label

    def on_epoch_end(self, epoch, logs):
        self.y[70] = self.label


@pytest.mark.parametrize("label", [3, -1, 2**62])
@pytest.mark.parametrize(
    "options", [{}, {"engine": "python"}, {"parallel": "hogwild", "batch_size": 16}], ids=str
)
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_labels_are_checked_where_they_are_used(backend, rng, label, options, weight):
    """They are the user's memory, which may change while the training runs."""
    if "parallel" in options and po.runtime.dispatch.current().name != "native":
        pytest.skip("hogwild is of the compiled engine")
    x, y = data(rng, 96)
    kept, normed = y[70], "parallel" not in options  # statistics of batches that are refused do not count
    mine, other = (
        trainer(nn.CrossEntropy(weight), lambda p: po.SGD(p, lr=0.1), normed=normed) for _ in range(2)
    )
    with backends.use_threads(1), pytest.raises(ValueError, match=r"expected a?\s?class(es)? in \[0, 3\)"):
        fit(mine, x, y, epochs=2, callbacks=[Relabel(y, label)], **options)
    y[70] = kept
    size = options.get("batch_size", 32)
    with backends.use_threads(1):
        fit(other, x, y, epochs=1, **options)
        done = 70 // size * size
        fit(other, x[:done], y[:done], **options)
    ours, theirs = mine.model.state_dict(), other.model.state_dict()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert mine.optimizer.state_dict()["state"] == other.optimizer.state_dict()["state"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_shares_that_turn_infinite_are_counted_as_argmax_finds_them(backend, rng, value):
    """Every loop counts alike: NaN is the largest share, as in NumPy."""

    class Spoil(po.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            shares[10] = value
            shares[20:30, 1] = value

    x, y = data(rng, 96)
    found = []
    for engine in ENGINES:
        shares = np.eye(3, dtype=np.float32)[y]
        mine = trainer(normed=False)
        with np.errstate(all="ignore"):
            history = fit(mine, x, shares, epochs=2, batch_size=96, callbacks=[Spoil()], engine=engine)
        found.append(history["accuracy"])
        outputs = trainer(normed=False)
        fit(outputs, x, np.eye(3, dtype=np.float32)[y], batch_size=96, engine=engine)
        expected = outputs.predict(x).argmax(axis=1) == shares.argmax(axis=1)
        assert history["accuracy"][1] == expected.mean()
    assert found[0] == found[-1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["?", *np.typecodes["AllInteger"]])
def test_targets_of_every_integer_dtype_are_labels(rng, engine, kind):
    x, y = data(rng, 40)
    y %= 2
    found = []
    for targets in (y, y.astype(kind), y.astype(kind)[::-1][::-1]):
        mine = trainer(optimizer=po.Adam, metrics=[metrics.accuracy])
        history = fit(mine, x, targets, engine=engine, validation_split=0.25)
        found.append((history, mine.evaluate(x, targets), mine.partial_fit(x, targets)))
    assert found[0] == found[1] == found[2]


# ---- the last batch


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("n", "size"), [(33, 32), (40, 16), (64, 32), (20, 32), (7, 1)])
def test_the_last_batch_may_be_dropped(backend, rng, engine, n, size):
    x, y = data(rng, n)
    y = rng.permutation(y)
    mine, other = (trainer(optimizer=po.Adam, normed=size > 1) for _ in range(2))
    used = n - n % min(n, size)
    history = fit(mine, x, y, batch_size=size, engine=engine, drop_last=True, epochs=2)
    assert history == fit(other, x[:used], y[:used], batch_size=size, engine=engine, epochs=2)
    assert np.array_equal(mine.model.flat_parameters, other.model.flat_parameters)
    assert mine.optimizer.state_dict()["state"][0]["step"] == 2 * (used // min(n, size))


def test_the_dropped_examples_are_others_each_time(backend, rng):
    x = rng.normal(size=(33, 4)).astype(np.float32)
    seen = []

    def transform(x, y, rng):
        seen.append(x[:, 0].copy())
        return x, y

    fit(trainer(), x, np.zeros(33, int), shuffle=True, drop_last=True, epochs=3, transform=transform)
    assert [len(batch) for batch in seen] == [32] * 3
    assert len({frozenset(batch) for batch in seen}) == 3
    one, other = (
        fit(trainer(), x, np.arange(33) % 3, shuffle=True, drop_last=True, epochs=3, engine=engine)
        for engine in ENGINES
    )
    assert one == other


def test_a_last_batch_of_one_is_refused_under_batch_norm(rng, tmp_path):
    x, y = data(rng, 33)
    with pytest.raises(ValueError, match="drop_last=True"):
        fit(trainer(), x, y)
    path = tmp_path / "training"
    fit(trainer(), x, y, drop_last=True, checkpoint=path)
    with pytest.raises(ValueError, match="drop_last"):
        fit(trainer(normed=False), x, y, checkpoint=path)
