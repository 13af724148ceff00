"""Arrays without dimensions are numbers, wherever users pass one."""

import numpy as np
import pytest
from support.optimizers import OPTIMIZERS

import pyoptim as po
from pyoptim import callbacks, gradients, metrics, nn, ops, schedules, transforms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12) % 2


def given(value):
    return value


def boxed(value):
    """The same numbers as arrays without dimensions."""
    if isinstance(value, tuple):
        return tuple(map(boxed, value))
    return value if value is None or isinstance(value, str) else np.array(value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyperparameters(name):
    make, results = OPTIMIZERS[name], []
    shared = {"max_grad_norm": 2.0, "accumulate": 2, "seed": 3}
    for kind in (given, boxed):
        p = np.ones((2, 3), np.float32)
        optimizer = make(p, **{k: kind(v) for k, v in {**make.defaults, **shared}.items()})
        optimizer.param_groups[0]["weight_decay"] = kind(0.25)
        for k in range(4):
            optimizer.param_groups[0]["lr"] = kind(0.5) if k < 2 else lambda step, kind=kind: kind(0.25)
            optimizer.step(X[:2, :3])
        group = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("lr", "params")}
        assert optimizer.max_grad_norm == 2
        results.append((p.tobytes(), repr(group)))
    assert results[0] == results[1]


def schedules_of(kind):
    made = [
        schedules.Cosine(kind(1.0), kind(5), kind(0.25), kind(True)),
        schedules.WarmUp(schedules.Constant(kind(0.5)), kind(3)),
        schedules.Piecewise([kind(2), kind(3)], (kind(1.0), kind(0.5), kind(0.25))),
        schedules.Cyclic(kind(0.25), kind(1.0), kind(4), "triangular2"),
    ]
    return made, [schedule(kind(k)) for schedule in made for k in range(9)]


def outputs_of_layers(kind):
    model = nn.Sequential(
        nn.Dense(kind(4), kind(6)), nn.BatchNorm(kind(6), eps=kind(1e-3), momentum=kind(0.25)),
        nn.LayerNorm((kind(6),), eps=kind(1e-3)), nn.Dropout(kind(0.25)), nn.GaussianNoise(kind(0.25)),
        nn.LeakyReLU(kind(0.25)), nn.Dense(6, 2), seed=kind(3),
    )  # fmt: skip
    loss = nn.CrossEntropy(label_smoothing=kind(0.25))
    penalty = nn.Penalty(l2=kind(0.25), l1=kind(0.125))
    trainer = po.Trainer(model, loss, po.SGD(model.parameters()), penalty=penalty, seed=kind(1))
    options = {"epochs": 2, "batch_size": 5, "validation_split": 0.25, "weight_noise": 0.125}
    stop = callbacks.EarlyStopping("loss", patience=kind(2), min_delta=kind(0.125), baseline=kind(1.0))
    rates = callbacks.ReduceLROnPlateau(factor=kind(0.5), patience=kind(0), cooldown=kind(1))
    fit = {k: kind(v) for k, v in options.items()}
    history = trainer.fit(X, Y, callbacks=[stop, rates], verbose=False, **fit)
    return repr(model), model.flat_parameters.tobytes(), history["loss"], history["val_loss"]


def functions_of_numbers(kind):
    clipped = X.copy()
    gradients.clip_grad_norm_(clipped, kind(2.0))
    gradients.clip_grad_value_(clipped, kind(0.25))
    return [
        clipped.tolist(),
        ops.dropout_forward(X, kind(0.5), kind(1), kind(2)).tolist(),
        ops.gaussian_noise(X, kind(0.5), kind(1), kind(2)).tolist(),
        ops.activation_forward(X, "leaky_relu", slope=kind(0.5)).tolist(),
        ops.pointwise_loss(X, 2 * X, kind="huber", delta=kind(0.5))[0],
        ops.layer_norm_forward(X, kind(4), eps=kind(1e-3))[0].tolist(),
        metrics.TopK(kind(1))(Y, X[:, :2]),
        metrics.coverage(Y, X[:, :2], kind(0.5)),
        [transforms.Noise(kind(0.5)).std, transforms.Shift(kind(2)).pixels, transforms.Flip(kind(0.5)).p],
    ]


@pytest.mark.parametrize("results", [schedules_of, outputs_of_layers, functions_of_numbers])
def test_everything_else(results):
    assert results(boxed) == results(given)


def test_a_checkpoint_holds_plain_numbers(tmp_path):
    model = nn.Sequential(nn.Dense(4, 2), seed=0)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.SGD(model.parameters()))
    path = tmp_path / "run.safetensors"
    stop = callbacks.EarlyStopping("loss")
    options = {"epochs": np.array(1), "batch_size": np.array(5), "checkpoint_every": np.array(0.0)}
    trainer.fit(X, Y, checkpoint=path, callbacks=[stop], verbose=False, **options)
    assert path.is_file()


@pytest.mark.parametrize(
    "value", [np.ma.masked, np.array([0.1]), np.array(np.nan), np.array("x"), np.array(True), np.array(1j)]
)
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match=r"^lr is .*expected a finite number >= 0"):
        po.SGD(np.ones(2), lr=value)


def test_arrays_of_others():
    torch = pytest.importorskip("torch")
    lr = torch.tensor(0.25)
    optimizer = po.SGD(np.ones(2), lr=lr)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert type(optimizer.param_groups[0]["lr"]) is float
    assert schedules.Constant(lr)(0) == 0.25
