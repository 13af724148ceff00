"""Models, data and trainers for comparing a training on a GPU with the processor's."""

import numpy as np

import pyoptim as po
from pyoptim import nn


def every_layer():
    return nn.Sequential(
        nn.Rescale(),
        nn.Dense(6, 8, activation="tanh"),
        nn.BatchNorm(8, momentum=None),
        nn.Dropout(0.2),
        nn.Residual([nn.Dense(8, 8), nn.BatchNorm(8, activation="relu"), nn.Residual(nn.SiLU())]),
        nn.LayerNorm(8),
        nn.GaussianNoise(0.05),
        nn.Dense(8, 3),
        seed=1,
        dtype=np.float64,
    )


def small(dtype=np.float64, seed=3):
    return nn.Sequential(nn.Dense(6, 5), nn.Dropout(0.3), nn.ReLU(), nn.Dense(5, 3), seed=seed, dtype=dtype)


def pixels(rng, n=23):
    return rng.integers(0, 256, (n, 6)).astype(np.uint8)


def labels(rng, n=23):
    return rng.integers(0, 3, n)


def trainer(model, where="cpu", loss=None, make=po.Adam, **options):
    """Its model is where it is told."""
    model.to(where)
    own = {name: options.pop(name) for name in ("metrics", "penalty") if name in options}
    optimizer = make(model.parameters(), **{"lr": 0.01, **options})
    return po.Trainer(model, loss or nn.CrossEntropy(), optimizer, seed=4, **own)


def fit(trainer, x, y, **options):
    return trainer.fit(x, y, **{"epochs": 3, "batch_size": 8, "verbose": False, **options})


def state(trainer):
    """All that training changes."""
    optimizer = trainer.optimizer.state_dict()
    arrays = {f"{i}.{name}": v for i, entry in optimizer["state"].items() for name, v in entry.items()}
    return {**trainer.model.state_dict(), **arrays, "epoch": optimizer["epoch"]}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def assert_close(a, b, tolerance=1e-9):
    """Sums differ in their order, some hundred of them between the first step and the last."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=tolerance, atol=tolerance, err_msg=name)


def without_seconds(history):
    return {name: values for name, values in history.items() if name != "seconds"}
