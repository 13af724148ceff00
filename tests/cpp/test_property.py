"""Models and optimizers that both languages train from the same files: equal bits."""

import copy
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest
from support import backends, consumers, kinds
from support.consumers import needs_tools

import pyoptim as po
from pyoptim import nn, schedules

native = pytest.importorskip("pyoptim.runtime._native")

EXAMPLES, FEATURES, CLASSES = 45, 6, 3
LOSSES = native.compiled_kinds()[1]
ELEMENTWISE = [name.lower() for name in native.optimizer_options()]
OPTIMIZERS = [*ELEMENTWISE, "lars", "lamb", "adafactor"]
HOGWILD = ["sgd", "adagrad", "rmsprop", "lion"]  # which keep one state of a parameter at most


@pytest.fixture(scope="session")
def programs(build_once):
    return build_once("cmake", consumers.build) / "found"


@pytest.fixture
def one_thread(monkeypatch):
    """Here, and in programs."""
    monkeypatch.setenv("PYOPTIM_NUM_THREADS", "1")
    with backends.use_threads(1):
        yield


def layers(rng, turn):
    """Some layers, of which one is the next of all kinds in turn."""
    width = int(rng.integers(2, 20))
    made = [nn.Dense(FEATURES, width, activation=[None, "relu", "tanh"][rng.integers(3)])]
    others = [*kinds.activations(), nn.Softmax(), nn.LogSoftmax(), nn.Dropout(0.25), nn.GaussianNoise(0.1)]
    others += [nn.Rescale(0.5, 0.25), nn.Flatten()]
    made.append(others[turn % len(others)])
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(6)
        if kind == 0:
            made.append(nn.BatchNorm(width, momentum=[0.1, None][rng.integers(2)]))
        elif kind == 1:
            made.append(nn.LayerNorm(width))
        elif kind == 2:
            made.append(nn.Residual([nn.Dense(width, width, activation="tanh"), nn.BatchNorm(width)]))
        elif kind == 3:
            wider = int(rng.integers(1, 12))
            made.append(nn.Dense(width, wider, bias=bool(rng.integers(2))))
            width = wider
        else:
            made.append(copy.deepcopy(others[rng.integers(len(others))]))
    return [*made, nn.Dense(width, CLASSES)]


def loss_of(rng):
    """A loss with its options as the program reads them, and targets for it."""
    name = ["CrossEntropy", "KLDiv", "MSE", "L1", "Huber", "BinaryCrossEntropy", "Hinge", "Poisson"][
        rng.integers(8)
    ]
    shares = rng.random((EXAMPLES, CLASSES))
    shares /= shares.sum(1, keepdims=True)
    if name == "CrossEntropy":
        weight, smoothing = [0.5, 1.25, 2.0], 0.1
        targets = shares if rng.integers(2) else rng.integers(0, CLASSES, EXAMPLES)
        return nn.CrossEntropy(weight, label_smoothing=smoothing), targets, {
            "class_weight": " ".join(map(str, weight)), "label_smoothing": smoothing,
        }  # fmt: skip
    if name == "KLDiv":
        return nn.KLDiv(temperature=1.5), shares, {"temperature": 1.5}
    if name == "Huber":
        return nn.Huber(0.75), rng.normal(size=shares.shape), {"delta": 0.75}
    if name == "BinaryCrossEntropy":
        return nn.BinaryCrossEntropy(2.0), shares, {"pos_weight": 2.0}
    if name == "Hinge":
        return nn.Hinge(), rng.choice([-1.0, 1.0], shares.shape), {}
    return getattr(nn, name)(), shares, {}


def schedules_of(lr, k):
    """A schedule of every kind, some in several ways."""
    return [
        schedules.InverseTime(lr, 0.1),
        schedules.Exponential(lr, 0.9, k),
        schedules.InverseSqrt(lr, 2.0),
        schedules.Linear(lr, lr / 10, k),
        schedules.Step(lr, k),
        schedules.Piecewise([k, 2 * k], [lr, lr / 2, lr / 4]),
        schedules.Polynomial(lr, k, 1.5, lr / 7),
        schedules.Cosine(lr, k, lr / 9, restarts=True, growth=2),
        schedules.Cosine(lr, k, restarts=True),
        schedules.Cyclic(lr / 3, lr, k, mode="exp_range", gamma=0.97),
        schedules.Cyclic(lr / 3, lr, k),
        schedules.Cyclic(lr / 3, lr, k, mode="triangular2"),
        schedules.OneCycle(lr, 4 * k),
        schedules.RangeTest(lr / 10, lr, k),
        schedules.WarmUp(schedules.Cosine(lr, 3 * k), k, lr / 100),
        schedules.Joined([schedules.Constant(lr), schedules.Step(lr, 3)], [k]),
        schedules.Chained([schedules.Exponential(lr, 0.99), schedules.Linear(1.0, 0.5, k)]),
        schedules.Linear(lr, lr / 10, 3, unit="epoch"),
        schedules.WarmUp(schedules.Linear(lr, lr / 10, 3, unit="epoch"), 1, unit="epoch"),
    ]


def kinds_of(schedule):
    parts = [getattr(schedule, "then", None), *getattr(schedule, "parts", ())]
    return {type(schedule).__name__}.union(*(kinds_of(part) for part in parts if part is not None))


@needs_tools
def test_schedules_have_the_same_bits(programs, tmp_path):
    all_of = schedules_of(1e-2, 7)
    assert set().union(*map(kinds_of, all_of)) == {*schedules.__all__} - {"Schedule"}
    paths = []
    for i, schedule in enumerate(all_of):
        paths += [tmp_path / f"{i}", tmp_path / f"{i}.copy"]
        po.Adam(np.zeros(3), lr=schedule).save(paths[-2])
    lines = consumers.run(programs / "training", *paths).splitlines()
    for schedule, line, path in zip(all_of, lines, paths[1::2], strict=True):
        assert [float(rate) for rate in line.split()] == [
            schedule(k) for k in (0, 1, 2, 3, 7, 11, 12, 40, 1000)
        ]
        loaded = po.Adam(np.zeros(3))
        loaded.load(path)
        assert loaded.param_groups[0]["lr"] == schedule


@needs_tools
def test_what_a_training_offers(programs):
    """The program says what it checks; the lines are the errors of what cannot be."""
    said = consumers.run(programs / "training").splitlines()
    assert len(said) == 29 + 16 + 3 + 3 + 4 + 1
    assert sum("x[5, 2] is " in line for line in said) == 16
    assert "no error" not in said


def options_of(name, rng):
    """Hyperparameters of an optimizer that are not its defaults."""
    lr = {"adadelta": 0.5, "lion": 1e-3, "lars": 0.1}.get(name, 1e-2)
    more = {
        "sgd": [
            {},
            {"momentum": 0.9},
            {"momentum": 0.8, "nesterov": True},
            {"momentum": 0.9, "velocity": "classical"},
        ],
        "adam": [{}, {"amsgrad": True, "amsgrad_max": "corrected"}, {"eps_hat": True, "eps_root": 1e-8}],
        "rmsprop": [{}, {"centered": True}, {"momentum": 0.5}],
        "nadam": [{}, {"momentum_decay": None}],
        "adafactor": [{}, {"eps": (1e-10, 1e-2), "d": 2.0}],
        "asgd": [{"t0": 3.0}],
    }.get(name, [{}])
    rates = [lr, *schedules_of(lr, int(rng.integers(2, 20)))]
    made = {"lr": rates[rng.integers(len(rates))], **more[rng.integers(len(more))]}
    if rng.integers(2):
        made["weight_decay"] = 0.01
    if rng.integers(2) and name not in ("lamb", "adafactor", "muon"):
        made["decoupled_weight_decay"] = True
    return made


def groups_of(model, rng):
    """The parameters as they are, or in two groups: the names of each but the first."""
    params = model.parameters()
    biases = [name for name in params if name.endswith("bias")]
    if rng.integers(2) or not biases:
        return params, []
    rest = {name: p for name, p in params.items() if name not in biases}
    return [{"params": rest}, {"params": {name: params[name] for name in biases}, "weight_decay": 0.0}], [
        biases
    ]


class GivenSeeds:
    """Stands for a trainer's random numbers, of which it draws the seeds of the noise on weights."""

    def __init__(self, seeds):
        self.seeds, self.bit_generator = iter(seeds), np.random.default_rng(0).bit_generator

    def integers(self, _):
        return next(self.seeds)


def additions(rng, dtype, optimizer):
    """More arguments of the optimizer, a penalty, lines for the program, and the average that follows."""
    made, penalty, extra = {}, None, {}
    if rng.integers(3) == 0:
        made["max_grad_norm"] = 0.5
    if rng.integers(3) == 0:
        made["accumulate"] = 3
    if rng.integers(3) == 0:
        made["nonfinite"] = "skip"
    if dtype == np.float32 and optimizer in ELEMENTWISE and rng.integers(2):
        made["state_dtype"] = "int8" if rng.integers(2) or find_spec("ml_dtypes") is None else "bfloat16"
    if rng.integers(3) == 0:
        penalty = nn.Penalty(0.01, 0.001, biases=bool(rng.integers(2)), batch_norm=bool(rng.integers(2)))
        extra = {
            "l2": 0.01,
            "l1": 0.001,
            "biases": int(penalty.biases),
            "batch_norm": int(penalty.batch_norm),
        }
    if rng.integers(4) == 0:
        extra["sharpness_aware"] = 0.05
    if rng.integers(4) == 0:
        extra["weight_noise"] = 0.01
    average = [None, {"average": "EMA", "decay": 0.9, "warm_up": 1}, {"average": "SWA"}][rng.integers(3)]
    return made, penalty, extra, average


def random_case(seed, optimizer, hogwild=False):
    """A training of random layers, loss and options: the trainer's parts, and lines for the program."""
    rng = np.random.default_rng(seed)
    dtype = [np.float32, np.float64][seed % 2]
    made = layers(rng, seed) if optimizer != "muon" and not hogwild else [
        nn.Dense(FEATURES, 9, bias=hogwild), nn.GELU(), nn.Dense(9, CLASSES, bias=hogwild),
    ]  # fmt: skip
    model = nn.Sequential(*made, seed=seed, dtype=dtype)
    params, names = groups_of(model, rng)
    loss, y, lines = loss_of(rng)
    y = y if y.dtype == np.int64 else y.astype(dtype)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(dtype)
    sizes = [3, 7, 8] if hogwild else [3, 7, 8, 45]
    given = {"epochs": 2, "batch_size": int(rng.choice(sizes)), "drop_last": int(rng.integers(2))}
    more, penalty, extra, average = additions(rng, dtype, optimizer)
    if hogwild:  # which has none of these
        more, penalty, extra, average = {}, None, {"hogwild": 1}, None
    weight = rng.random(EXAMPLES).astype(dtype) if rng.integers(2) else None
    kind = {c.lower(): getattr(po, c) for c in dir(po) if c.lower() in (*OPTIMIZERS, "muon")}[optimizer]
    made_of = kind(params, **options_of("" if hogwild else optimizer, rng), **more)
    lines |= {"loss": type(loss).__name__, "dtype": np.dtype(dtype).name, "optimizer": optimizer}
    return model, loss, made_of, penalty, (x, y, weight), {**lines, **given, **more, **extra}, average, names


def averaged(optimizer, average):
    if average is None:
        return None
    if average["average"] == "SWA":
        return po.averages.SWA(optimizer)
    return po.averages.EMA(optimizer, average["decay"], warm_up=True)


def equal(one, other):
    """Whether two states are the same, arrays to the bit."""
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


CASES = [(seed, name, False) for seed, name in enumerate([*OPTIMIZERS, *OPTIMIZERS, "muon"])]
CASES += [(seed, name, True) for seed, name in enumerate(HOGWILD)]


def test_the_random_trainings_have_every_part_between_them():
    found, options = set(), set()
    for case in CASES:
        model, loss, _, _, (_, y, weight), lines, average, names = random_case(*case)
        found |= {type(layer).__name__ for layer in model.leaves().values()} | {type(loss).__name__}
        options |= {*lines, *(average or {"no average": 0})} | {(type(loss).__name__, y.dtype.kind)}
        options |= {average["average"] if average else "", weight is not None, bool(names)}
        options |= {value for value in lines.values() if isinstance(value, str)}
    missing = {*native.compiled_kinds()[0], *LOSSES} - found
    assert missing == {"Residual"}, missing  # its block is among the leaves
    assert {
        "hogwild", "max_grad_norm", "accumulate", "skip", "int8", "l2", "weight_noise", "sharpness_aware",
        "EMA", "SWA", "", True, False, ("CrossEntropy", "i"), ("CrossEntropy", "f"), "drop_last",
        "class_weight", *OPTIMIZERS, "muon", "float32", "float64",
    } <= options  # fmt: skip


@needs_tools
@pytest.mark.parametrize(("seed", "name", "hogwild"), CASES)
def test_random_trainings_have_the_same_bits(programs, tmp_path, request, seed, name, hogwild):
    case = random_case(seed, name, hogwild)
    model, loss, optimizer, penalty, (x, y, weight), lines, average, names = case
    if hogwild:  # several threads take the batches in any order
        request.getfixturevalue("one_thread")
    follower = averaged(optimizer, average)
    paths = {key: tmp_path / key for key in ("model", "state", "model_after", "state_after", "x")}
    model.save(paths["model"])
    optimizer.save(paths["state"])
    x.tofile(paths["x"])
    paths["labels" if y.dtype == np.int64 else "targets"] = tmp_path / "y"
    y.tofile(tmp_path / "y")
    if weight is not None:
        paths["weight"] = tmp_path / "weight"
        weight.tofile(paths["weight"])
    written = {**lines, **(average or {}), **paths, "validate": 1}
    text = [f"{key} {value}" for key, value in written.items()] + [f"group {' '.join(own)}" for own in names]
    (tmp_path / "options").write_text("\n".join(text) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYOPTIM_FORCE_ISA", native.instruction_set())
        done = subprocess.run([programs / "property", tmp_path / "options"], capture_output=True, text=True,
                              timeout=100, check=False)  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    said = [line.split() for line in done.stdout.splitlines()]
    assert not any(line[0] == "error" for line in said), done.stdout

    trainer = po.Trainer(
        model, loss, optimizer, penalty=penalty, sharpness_aware=lines.get("sharpness_aware", 0.0)
    )
    trainer._rng = GivenSeeds([int(line[1]) for line in said if line[0] == "noise"])
    fit = {key: lines[key] for key in ("epochs", "batch_size")}
    history = trainer.fit(
        x, y, **fit, sample_weight=weight, shuffle=False, drop_last=bool(lines["drop_last"]), verbose=False,
        weight_noise=lines.get("weight_noise", 0.0), validation_data=(x, y),
        parallel="hogwild" if hogwild else None,
    )  # fmt: skip
    epochs = [list(map(float, line[1:])) for line in said if line[0] == "epoch"]
    assert [epoch[0] for epoch in epochs] == history["loss"]
    assert weight is not None or [epoch[2] for epoch in epochs] == history["val_loss"]
    measured = trainer.evaluate(x, y, weight)
    assert [float(line[1]) for line in said if line[0] == "evaluated"] == [measured["loss"]]
    result = nn.Sequential.load(paths["model_after"])
    assert equal(result.state_dict(), model.state_dict())

    again, _, other, *_ = random_case(seed, name, hogwild)
    follows = averaged(other, average)
    other.load(paths["state_after"])
    assert equal(other.state_dict(), optimizer.state_dict())
    if follower is not None:
        assert equal(follows.state_dict(), follower.state_dict())
    # What C++ made trains on as what Python made.
    again.load_state_dict(result.state_dict())
    for part, own in ((model, optimizer), (again, other)):
        po.Trainer(part, loss, own, penalty=penalty).fit(
            x, y, shuffle=False, batch_size=8, drop_last=True, verbose=False
        )
    assert equal(again.state_dict(), model.state_dict())
