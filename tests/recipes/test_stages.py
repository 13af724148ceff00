"""Curriculum and continuation: stages are what they say; all recipes of stages go on where they stopped."""

import numpy as np
import pytest

import pyoptim as po
from pyoptim import callbacks, nn
from pyoptim.recipes import Stages, continuation, curriculum, distill, greedy_pretrain

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 4)).astype(np.float32), RNG.integers(0, 3, 24)


def network(seed=0, **options):
    layers = nn.Dense(4, 5), nn.BatchNorm(5), nn.Tanh(), nn.Dense(5, 4), nn.Tanh(), nn.Dense(4, 3)
    return nn.Sequential(*layers, seed=seed, **options)


def trainer(loss=None, seed=0, **options):
    model = network(seed)
    return po.Trainer(model, loss or nn.CrossEntropy(), po.Adam(model.parameters()), seed=0, **options)


def same(one, other):
    return all((value == other.state_dict()[name]).all() for name, value in one.state_dict().items())


# Curriculum.


def test_a_curriculum_visits_exactly_the_easy_share():
    """Of equally hard examples the first come first; the order in the data is kept."""
    x = np.arange(8, dtype=np.float32)[:, None]
    hardness = np.array([3, 1, 2, 1, 0, 2, 1, 9])
    visited = []

    def watch(x, y, rng):
        visited[-1].append(x.ravel().tolist())
        return x, y

    class Begin(callbacks.Callback):
        def on_train_begin(self):
            visited.append([])

    model = nn.Sequential(nn.Dense(1, 1), seed=0)
    of_one = po.Trainer(model, nn.MSE(), po.SGD(model.parameters(), lr=1e-4))
    stages = curriculum(
        of_one, x, x, hardness, shares=(0.01, 0.4, 0.5, 1), epochs=2, batch_size=None, shuffle=False,
        transform=watch, callbacks=[Begin()], verbose=False,
    )  # fmt: skip
    easy = [[4], [1, 3, 4], [1, 3, 4, 6], list(range(8))]
    assert visited == [[rows, rows] for rows in easy]
    assert list(stages) == ["1: easiest 1%", "2: easiest 40%", "3: easiest 50%", "4: easiest 100%"]


def losses_by_hand(model, x, y):
    z = model.eval()(x).astype(np.float64)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), y]


@pytest.mark.parametrize("hardness", ["given", "of another model", "own"])
def test_a_curriculum_is_its_stages_by_hand(backend, hardness):
    weight, judge = np.linspace(0, 1, 24), network(5)
    one, other = trainer(), trainer()
    fixed = {"given": RNG.normal(size=24), "of another model": judge, "own": "own"}[hardness]
    stages = curriculum(
        one, X, Y, fixed, shares=(0.25, 0.5, 1.0), epochs=2, batch_size=6, sample_weight=weight, verbose=False
    )
    losses = []
    for count in (6, 12, 24):
        measured = losses_by_hand(other.model if hardness == "own" else judge, X, Y)
        hard = fixed if hardness == "given" else measured
        rows = np.sort(np.argsort(hard)[:count])
        history = other.fit(
            X[rows], Y[rows], epochs=2, batch_size=6, sample_weight=weight[rows], verbose=False
        )
        losses.append(history["loss"])
    assert [history["loss"] for history in stages.values()] == losses
    assert same(one.model, other.model)
    path = "native" if backend == "native" else "python"
    assert {history.path for history in stages.values()} == {path}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardness": "its own"}, "hardness is 'its own', expected 'own'"),
        ({"hardness": np.zeros(23)}, r"hardness has shape \(23,\)"),
        ({"hardness": np.full(24, np.nan)}, "hardness holds NaN"),
        ({"hardness": nn.Sequential(nn.Dense(3, 3))}, r"x has shape \(24, 4\): Dense.* has an input"),
        ({"shares": (0.5, 0.25)}, "shares is .*do not fall"),
        ({"shares": (0.0, 1.0)}, "shares is"),
        ({"shares": ()}, "shares is"),
        ({"shares": (13 / 24, 1.0), "batch_size": 6}, "shares leaves 13 of 24 examples: batch_size 6"),
        ({"validation_split": 0.5}, "validation_split is 0.5, but curriculum expected validation_data"),
        ({"seed": 3}, "curriculum has no argument 'seed'"),
        ({"sample_weight": np.ones(3)}, "sample_weight"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused_before_anything_is_trained(options, message):
    one = trainer()
    before = one.model.state_dict()
    given = {"hardness": np.arange(24), "verbose": False, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        curriculum(one, X, Y, **given)
    assert all((value == before[name]).all() for name, value in one.model.state_dict().items())


# Continuation.


def test_a_continuation_of_noise_is_its_stages_by_hand(backend):
    one, other = trainer(), trainer()
    stages = continuation(one, X, Y, (0.3, 0.1, 0), epochs=2, batch_size=6, verbose=False)
    losses = [
        other.fit(X, Y, epochs=2, batch_size=6, weight_noise=noise, verbose=False)["loss"]
        for noise in (0.3, 0.1, 0.0)
    ]
    assert list(stages) == ["1: noise 0.3", "2: noise 0.1", "3: noise 0"]
    assert [history["loss"] for history in stages.values()] == losses
    assert same(one.model, other.model)


def test_a_continuation_of_losses_ends_with_the_trainers_own():
    targets = np.eye(3)[Y]
    one, other = trainer(nn.MSE()), trainer(nn.MSE())
    own = one.loss
    stages = continuation(one, X, targets, (nn.Huber(0.1), nn.L1(), 0.0), verbose=False)
    losses = []
    for loss in (nn.Huber(0.1), nn.L1(), nn.MSE()):
        other.loss = loss
        losses.append(other.fit(X, targets, epochs=5, verbose=False)["loss"])
    assert list(stages) == ["1: Huber(delta=0.1)", "2: L1()", "3: noise 0"]
    assert [history["loss"] for history in stages.values()] == losses
    assert same(one.model, other.model)
    assert one.loss is own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": (0.1, 0.2)}, "stages is .*does not rise"),
        ({"stages": (0.1, nn.CrossEntropy(), 0.2)}, "stages is .*does not rise"),
        ({"stages": (0.1, -1.0)}, r"stages\[1\] is -1.0"),
        ({"stages": ()}, "stages is"),
        ({"stages": (0.1, nn.MSE())}, "y has shape"),  # labels are no targets of that one
        ({"weight_noise": 0.1}, "weight_noise is 0.1, but continuation expected it in stages"),
        ({"callbacks": 3}, "callbacks"),
    ],
)
def test_a_continuation_that_cannot_be_is_refused_before_anything_is_trained(options, message):
    one = trainer()
    own, before = one.loss, one.model.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        continuation(one, X, Y, verbose=False, **options)
    assert one.loss is own
    assert all((value == before[name]).all() for name, value in one.model.state_dict().items())


# All of them.


def _greedy(**options):
    model = network()
    return model, lambda: greedy_pretrain(model, X, Y, nn.CrossEntropy(), epochs=2, seed=0, **options)


def _distill(**options):
    model, teacher = network(), network(1)
    return model, lambda: distill(teacher, model, X, hints={2: 4, 4: 2}, epochs=2, seed=0, **options)


def _curriculum(**options):
    one = trainer()
    return one.model, lambda: curriculum(one, X, Y, "own", epochs=2, shares=(0.5, 0.75, 1), **options)


def _continuation(**options):
    one = trainer()
    return one.model, lambda: continuation(one, X, Y, (0.1, nn.CrossEntropy(), 0.0), epochs=2, **options)


class Stop(callbacks.Callback):
    """An error in some epoch, counted over all stages."""

    left = 3

    def on_epoch_end(self, epoch, logs):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("make", [_greedy, _distill, _curriculum, _continuation])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_training_that_was_interrupted_goes_on_to_the_same_bits(make, epoch, tmp_path):
    expected, run = make(batch_size=6, verbose=False)
    whole = run()
    assert len(whole) > 1
    stop = Stop()
    stop.left = 1 if make is _distill else epoch  # whose callbacks are of the last stage
    files = {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 0.0, "batch_size": 6, "verbose": False}
    _, run = make(callbacks=[stop], **files)
    with pytest.raises(KeyboardInterrupt):
        run()
    stop.left = 1_000
    model, run = make(callbacks=[stop], **files)
    stages = run()
    assert same(model, expected)
    assert {name: history["loss"] for name, history in stages.items()} == {
        name: history["loss"] for name, history in whole.items()
    }
    names = [f"run-{i + 1}.ckpt" for i in range(len(whole))]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_stages_join_to_one_history():
    stages = Stages(a=po.History(), b=po.History())
    stages["a"].update(loss=[1.0, 2.0], accuracy=[0.1, 0.2])
    stages["b"].update(loss=[3.0])
    stages["a"].path = stages["b"].path = "native"
    assert stages.history == {"loss": [1.0, 2.0, 3.0]}
    assert stages.history.path == "native"
    stages["a"].path, stages["a"].reason = "python", "of that"
    assert (stages.history.path, stages.history.reason) == ("python", "of that")
    assert Stages().history == {}


# What is refused before anything is trained.


@pytest.mark.parametrize("recipe", [continuation, curriculum], ids=lambda recipe: recipe.__name__)
def test_files_of_all_stages_are_checked_before_the_first(recipe, tmp_path):
    of_one, path = trainer(), tmp_path / "run.safetensors"
    (tmp_path / "run-2.safetensors").write_bytes(b"something else")
    own = [] if recipe is continuation else ["own"]
    before = np.array(of_one.model.flat_parameters)
    with pytest.raises(ValueError, match=r"run-2\.safetensors"):
        recipe(of_one, X, Y, *own, epochs=1, checkpoint=path, verbose=False)
    log = callbacks.CSVLogger(tmp_path / "log-2.csv")
    with pytest.raises(ValueError, match="each needs its own file"):
        recipe(of_one, X, Y, *own, epochs=1, checkpoint=tmp_path / "log.csv", callbacks=[log], verbose=False)
    assert (before == of_one.model.flat_parameters).all()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run-2.safetensors"]


def test_a_log_that_is_appended_to_has_all_stages(tmp_path):
    log = callbacks.CSVLogger(tmp_path / "log.csv", append=True)
    continuation(trainer(), X, Y, (0.1, 0.0), epochs=2, callbacks=[log], verbose=False)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 4


def test_measuring_hardness_leaves_modes_and_refusals_come_first():
    judge, of_one = network(3).train(), trainer()
    of_one.model.train()
    with pytest.raises(TypeError, match="callbacks"):
        curriculum(of_one, X, Y, judge, epochs=1, callbacks=3, verbose=False)
    assert judge.training
    assert of_one.model.training
    curriculum(of_one, X, Y, judge, shares=(0.5,), epochs=1, verbose=False)
    assert judge.training
