"""Greedy pretraining: the same as its stages by hand, to the bit."""

import numpy as np
import pytest

import pyoptim as po
from pyoptim import nn
from pyoptim.recipes import greedy_pretrain


def data(features=4, count=30):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, features)).astype(np.float32), rng.integers(0, 3, count)


def layers(init="glorot"):
    first = nn.Dense(4, 6, init=init), nn.BatchNorm(6), nn.Tanh()
    second = nn.Dense(6, 5, activation="sigmoid", init=init)
    return *first, second, nn.Dense(5, 5, init=init), nn.Tanh(), nn.Dense(5, 3, init=init), nn.Tanh()


def network(seed=3):
    return nn.Sequential(*layers(), seed=seed)


def by_hand(model, x, y, epochs, **fit):
    """The three stages, of which the seed draws the output layers and the orders of the examples."""
    rng = np.random.default_rng(0)
    for count, frozen, width in ((3, 0, 6), (4, 3, 5), (8, 4, None)):
        output = [nn.Dense(width, 3), nn.Tanh()] if width else []
        part = nn.Sequential(*layers("zeros")[:count], *output, seed=rng)
        values = model.state_dict()
        own = {name: value for name, value in values.items() if int(name[0]) < count}
        part.load_state_dict({**part.state_dict(), **own})
        for layer in part.layers[:frozen]:
            layer.trainable = False
        trainer = po.Trainer(part, nn.CrossEntropy(), po.Adam(part.parameters()), seed=rng)
        trainer.fit(x, y, epochs=epochs, verbose=False, **fit)
        made = {name: value for name, value in part.state_dict().items() if int(name[0]) < count}
        model.load_state_dict({**values, **made})


def test_stages_are_trainings_with_an_output_layer_on_top(backend):
    x, y = data()
    model, expected = network(), network()
    by_hand(expected, x, y, 2, batch_size=10)
    parameters = model.flat_parameters
    stages = greedy_pretrain(
        model, x, y, nn.CrossEntropy(), epochs=2, seed=0, batch_size=10, validation_data=(x, y), verbose=False
    )
    assert model.flat_parameters is parameters  # so its optimizers stay valid
    for name, value in model.state_dict().items():
        assert (value == expected.state_dict()[name]).all(), name
    assert list(stages) == ["layer 0", "layer 3", "layer 4"]
    path = "native" if backend == "native" else "python"
    assert {history.path for history in (*stages.values(), stages.history)} == {path}
    assert all(len(history["val_accuracy"]) == 2 for history in stages.values())
    assert not model.training
    assert all(layer.trainable for layer in model.layers)


def test_frozen_hidden_layers_are_no_stage_and_keep_their_values():
    x, y = data()
    model = network()
    for i in (0, 3):
        model.layers[i].trainable = False
    before = model.state_dict()
    stages = greedy_pretrain(model, x, y, nn.CrossEntropy(), epochs=1, verbose=False)
    assert list(stages) == ["layer 0", "layer 4"]  # BatchNorm still learns in the first
    after = model.state_dict()
    assert all((after[name] == before[name]).all() for name in before if name[0] in "03")
    assert all((after[name] != before[name]).any() for name in ("1.weight", "4.weight", "6.weight"))


def test_a_residual_block_is_a_hidden_layer():
    x, y = data()
    block = nn.Residual([nn.Dense(4, 4), nn.Tanh()])
    model = nn.Sequential(nn.Dropout(0.2), nn.Dense(4, 4), nn.Tanh(), block, nn.Dense(4, 3), seed=0)
    before = model.state_dict()
    stages = greedy_pretrain(model, x, y, nn.CrossEntropy(), epochs=1, verbose=False)
    assert list(stages) == ["layer 1", "layer 3"]
    assert all(
        (value != before[name]).any() for name, value in model.state_dict().items() if "weight" in name
    )


def test_a_deep_sigmoid_network_trains():
    """At once it does not leave chance."""
    digits = po.datasets.load("digits", flatten=True, normalize=True)
    x, y = digits.x_train[:600], digits.y_train[:600]

    def sgd(p):
        return po.SGD(p, lr=0.1, momentum=0.9)

    accuracies = []
    for pretrained in (False, True):
        hidden = [nn.Dense(a, 30, activation="sigmoid") for a in (64, 30, 30, 30, 30)]
        model = nn.Sequential(*hidden, nn.Dense(30, 10), seed=0)
        if pretrained:
            greedy_pretrain(model, x, y, nn.CrossEntropy(), optimizer=sgd, epochs=6, seed=0, verbose=False)
        trainer = po.Trainer(model, nn.CrossEntropy(), sgd(model.parameters()), seed=0)
        trainer.fit(x, y, epochs=4 if pretrained else 34, verbose=False)
        accuracies.append(trainer.evaluate(digits.x_test, digits.y_test)["accuracy"])
    assert accuracies[0] < 0.3 < 0.75 < accuracies[1]


class Own(nn.Layer):
    def forward(self, x, training):
        return x

    def backward(self, dy, need_dx=True):
        return dy


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([nn.Dense(4, 3)], {}, "expected a hidden layer at least"),
        ([nn.Dense(4, 4), nn.Residual(nn.Dense(4, 4))], {}, "and a Dense layer after it"),
        ([nn.Dense(4, 4), Own(), nn.Dense(4, 3)], {}, "model.layers.1. is a Own"),
        ([nn.Dense(4, 4), nn.BatchNorm(4), nn.Dense(4, 3)], {"batch_size": 29}, "batch_size 29 makes"),
        ([nn.Dense(4, 4), nn.Dense(4, 4), nn.BatchNorm(4), nn.Dense(4, 3)], {"batch_size": 29}, "batch_size"),
        ([nn.Dense(4, 4), nn.Dense(4, 3)], {"validation_split": 2}, "validation_split is 2"),
        ([nn.Dense(4, 4), nn.Dense(4, 3)], {"callbacks": [1]}, r"callbacks\[0\] is a int"),
        ([nn.Dense(4, 4), nn.Dense(4, 3)], {"metrics": ["f2"]}, r"metrics\[0\] is 'f2'"),
        (
            [nn.Dense(4, 4), nn.Dense(4, 3)],
            {"batchsize": 3},
            "no argument 'batchsize'; did you mean 'batch",
        ),
        ([nn.Dense(4, 4), nn.Dense(4, 3)], {"optimizer": int}, "optimizer is <class 'int'>"),
        ([nn.Dense(4, 4), nn.Dense(4, 3)], {"optimizer": lambda p: 1}, "optimizer returned a int"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(layers, options, message):
    x, y = data()
    model = nn.Sequential(*layers, seed=0)
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        greedy_pretrain(model, x, y, nn.CrossEntropy(), epochs=1, verbose=False, **options)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
