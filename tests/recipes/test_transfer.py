"""Transfer: copies compute the same, what is frozen keeps its bits, what does not fit changes nothing."""

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn
from pyoptim.recipes import transfer


def body(width=5):
    return [nn.Dense(4, width), nn.BatchNorm(width), nn.ReLU(), nn.Dropout(0.5)]


def trained(seed=0, dtype=np.float32):
    block = nn.Residual([nn.Dense(5, 5), nn.Tanh()])
    model = nn.Sequential(*body(), block, nn.Dense(5, 3), seed=seed, dtype=dtype)
    fit(model, 3)
    return model


def fit(model, classes, **options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 3, size=(40, 4)), rng.integers(0, classes, 40)
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), weight_decay=0.1), seed=0)
    trainer.fit(x, y, epochs=2, batch_size=8, verbose=False, **options)


def target(dtype=np.float32):
    block = nn.Residual([nn.Dense(5, 5), nn.Tanh()])
    return nn.Sequential(*body(), block, nn.Dense(5, 7), nn.Sigmoid(), seed=9, dtype=dtype)


def start_of(model, layers):
    """What the first layers compute, with what they have."""
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(model.dtype)
    for layer in model.layers[:layers]:
        x = layer.forward(x, False)
    return x


@pytest.mark.parametrize("layers", [1, 2, 4, 5])
def test_copied_layers_compute_the_same_and_keep_their_bits(backend, dtype, layers):
    source, model = trained(dtype=dtype), target(dtype)
    given, before = source.state_dict(), model.state_dict()
    assert transfer(source, model, layers) is model
    assert (start_of(source, layers) == start_of(model, layers)).all()
    copied = model.state_dict()
    for name, value in copied.items():
        if name.startswith("3."):  # Dropout: its random numbers are its own
            assert (value == before[name]).all()
        elif int(name[0]) < layers:
            assert (value == given[name]).all()
        else:
            assert (value == before[name]).all()
    assert [layer.trainable for layer in model.layers] == [i >= layers for i in range(len(model.layers))]
    fit(model, 7)
    for name, value in model.state_dict().items():
        if int(name[0]) < layers and not name.startswith("3."):
            assert (value == given[name]).all(), name
        elif name.endswith("weight"):
            assert (value != copied[name]).any(), name
    for name, value in source.state_dict().items():
        assert (value == given[name]).all()


def test_layers_that_are_not_frozen_go_on_learning():
    source, model = trained(), target()
    model.layers[0].trainable = False
    transfer(source, model, 2, freeze=False)
    assert [layer.trainable for layer in model.layers[:2]] == [False, True]
    fit(model, 7)
    assert (model.layers[0].parameters["weight"] == source.layers[0].parameters["weight"]).all()
    assert (model.layers[1].parameters["weight"] != source.layers[1].parameters["weight"]).any()


def other(*layers, **options):
    return nn.Sequential(*layers, **options)


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (lambda: other(*body(6)), 1, "target has Dense.in_features=4, out_features=6.* as layer 0, expected"),
        (lambda: other(nn.Dense(4, 5), nn.LayerNorm(5)), 2, r"target has LayerNorm.* as layer 1"),
        (lambda: other(nn.Dense(4, 5), nn.BatchNorm(5, eps=0.1)), 2, r"target has BatchNorm.*eps=0.1"),
        (lambda: other(nn.Dense(4, 5, bias=False)), 1, r"target has Dense.*bias=False"),
        (lambda: other(nn.Dense(4, 5, activation="relu")), 1, r"target has Dense.*activation='relu'"),
        (lambda: other(*body(), nn.Residual(nn.Dense(5, 5))), 5, "other blocks of layers"),
        (lambda: other(*body(), nn.Residual([nn.Dense(5, 5), nn.ReLU()])), 5, r"ReLU\(\) as layer 4.block.1"),
        (lambda: other(*body(), dtype=np.float64), 1, "target has dtype float64, expected float32"),
        (lambda: other(*body()), 5, "layers is 5, but target has 4"),
        (lambda: other(*body()), 7, "layers is 7, but source has 6"),
    ],
)
def test_what_does_not_fit_changes_nothing(model, layers, message):
    source, model = trained(), model()
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        transfer(source, model, layers)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert all(layer.trainable for layer in model.layers)


def test_options_that_only_training_looks_at_may_differ():
    source = trained()
    model = nn.Sequential(nn.Dense(4, 5), nn.BatchNorm(5, momentum=0.5, running_var="biased"), nn.Dense(5, 2))
    transfer(source, model, 2)
    assert (start_of(source, 2) == start_of(model, 2)).all()
