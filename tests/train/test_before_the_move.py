"""Files and pickles that version 0.1 made, before its modules got other names."""

import lzma
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn, schedules

FOLDER = Path(__file__).with_name("before_the_move")
PICKLES, EXPECTED = pickle.loads(lzma.decompress((FOLDER / "objects.pickle.xz").read_bytes()))
X, Y = EXPECTED["x"], EXPECTED["y"]


def close(a, b):  # sums differ between instruction sets
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def model():
    block = [nn.Dense(5, 5), nn.LayerNorm(5), nn.GaussianNoise(0.1), nn.GELU()]
    return nn.Sequential(
        nn.Rescale(0.5, 0.1), nn.Dense(6, 5, activation="relu"), nn.BatchNorm(5, activation="relu"),
        nn.Dropout(0.3), nn.Residual(block), nn.LeakyReLU(), nn.Flatten(), nn.Dense(5, 3), seed=3,
    )  # fmt: skip


def trainer():
    net = model()
    adam = po.Adam(net.parameters(), lr=schedules.Cosine(1e-2, 50))
    return po.Trainer(net, nn.CrossEntropy(label_smoothing=0.1), adam, penalty=nn.Penalty(l2=1e-3))


def test_old_addresses_of_classes():
    from pyoptim.optimizers import Adam
    from pyoptim.trainer import History, Trainer

    assert (Adam, History, Trainer) == (po.Adam, po.History, po.Trainer)


def test_a_pickled_model():
    close(pickle.loads(PICKLES["model"]).eval()(X), EXPECTED["model"])


def test_a_pickled_history():
    history = pickle.loads(PICKLES["history"])
    assert isinstance(history, po.History)
    assert dict(history) == EXPECTED["history"]


@pytest.mark.parametrize("name", [name for name in PICKLES if name.startswith("optimizer ")])
def test_a_pickled_optimizer_goes_on(name):
    optimizer = pickle.loads(PICKLES[name])
    params = optimizer.named_parameters()
    grads = [np.full(p.shape, 0.25, p.dtype) for p in params.values()]
    names = [key.split("'")[1] for key in params if "'" in key]
    optimizer.step(dict(zip(names, grads, strict=True)) if names else grads[0])
    for p, expected in zip(params.values(), EXPECTED[name], strict=True):
        close(p.astype(np.float64), expected.astype(np.float64))


def test_pickled_schedules():
    made = [[schedule(t) for t in range(1, 20)] for schedule in pickle.loads(PICKLES["schedules"])]
    assert made == EXPECTED["schedules"]


def test_other_pickles():
    assert [type(value).__name__ for value in pickle.loads(PICKLES["others"])] == EXPECTED["others"]


def test_files_of_a_model_and_an_optimizer():
    net = nn.Sequential.load(FOLDER / "model.safetensors")
    close(net(X), EXPECTED["model"])
    adam = po.Adam(model().parameters(), lr=1e-3)
    adam.load(FOLDER / "optimizer.safetensors")
    assert adam.param_groups[0]["lr"] == schedules.Cosine(1e-2, 50)
    assert adam.state_dict()["state"][0]["step"] == 10


def test_a_training_goes_on(tmp_path):
    shutil.copy(FOLDER / "training.safetensors", tmp_path)
    resumed = trainer()
    history = resumed.fit(X, Y, epochs=3, batch_size=8, checkpoint=tmp_path / "training.safetensors")
    assert len(history["loss"]) == 3
    assert history["loss"][2] < history["loss"][0]
    assert resumed.optimizer.state_dict()["state"][0]["step"] == 15
