"""Recipes train on a GPU what they train on the processor."""

import numpy as np
import pytest
from support.device import use_cuda
from support.doubles import OnDevice
from support.gpu_training import assert_close

import pyoptim as po
from pyoptim import nn, recipes

pytest.importorskip("pyoptim.backends.native", reason="what is compared with", exc_type=ImportError)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 4)), RNG.integers(0, 3, 8)
OPTIONS = {"epochs": 1, "batch_size": 4, "verbose": False}


@pytest.fixture(autouse=True)
def emulated(cuda, no_gpu, monkeypatch):
    use_cuda(monkeypatch, cuda)


def network(seed=0, width=4):
    layers = nn.Dense(4, width), nn.BatchNorm(width), nn.Tanh(), nn.Dense(width, 3), nn.Dense(3, 3)
    return nn.Sequential(*layers, seed=seed, dtype=np.float64)


def trainer(model):
    return po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters()), seed=0)


def greedy(model, x):
    return recipes.greedy_pretrain(model, x, Y, nn.CrossEntropy(), seed=0, **OPTIONS)


def distill(model, x):
    teacher = network(4, 6).to(model.device)
    return recipes.distill(teacher, model, x, hints={2: 1}, seed=0, validation_data=(X, Y), **OPTIONS)


def curriculum(model, x):
    return recipes.curriculum(trainer(model), X, Y, "own", shares=(0.5, 1), **OPTIONS)


def continuation(model, x):
    return recipes.continuation(trainer(model), x, Y, (0.1, nn.CrossEntropy(label_smoothing=0.1)), **OPTIONS)


def transfer(model, x):
    recipes.transfer(network(8).to(model.device), model, 2)
    return {"": trainer(model).fit(x, Y, **OPTIONS)}


@pytest.mark.parametrize("recipe", [greedy, distill, curriculum, continuation, transfer])
def test_a_recipe_on_the_gpu_is_that_on_the_processor(recipe):
    here, there = network(), network().to("cuda")
    recipe(here, X)
    stages = recipe(there, OnDevice(X))
    assert {history.path for history in stages.values()} == {"cuda"}
    assert_close(here.state_dict(), there.state_dict())


def test_two_losses_at_once_need_the_processor():
    student = network().to("cuda")
    with pytest.raises(ValueError, match=r"alpha is 0.5, but student is on 'cuda:0', expected 1 on a GPU"):
        recipes.distill(network(1).to("cuda"), student, X, Y, alpha=0.5)
