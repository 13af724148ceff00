"""Transfer: layers that learned one task help with another, of which there are few examples.

The first layers are taken over and frozen; only what stands on them is trained.
"""

# %% Old task: which digit is it? With many images. New task: has it a closed loop? With twenty of them.
import numpy as np

import pyoptim as po
from pyoptim import nn

data = po.datasets.load("digits", flatten=True, normalize=True)
loop, test_loop = (np.isin(y, (0, 6, 8, 9)).astype(int) for y in (data.y_train, data.y_test))


def network(classes: int, seed: int) -> nn.Sequential:
    first = nn.Dense(64, 64, activation="relu"), nn.Dense(64, 32, activation="relu")
    return nn.Sequential(*first, nn.Dense(32, classes), seed=seed)


def fit(model: nn.Sequential, x: np.ndarray, y: np.ndarray, epochs: int) -> po.Trainer:
    trainer = po.Trainer(model, nn.CrossEntropy(), po.Adam(model.parameters(), lr=0.003), seed=0)
    trainer.fit(x, y, epochs=epochs, batch_size=32, verbose=False)
    return trainer


# %% Learn to read. Then learn the new task ten times: from nothing, and on what was learned before.
source = network(10, seed=0)
fit(source, data.x_train, data.y_train, epochs=20)
accuracy = {"from nothing": 0.0, "transferred": 0.0}
for seed in range(10):
    few = np.random.default_rng(seed).choice(len(loop), 20, replace=False)
    for name in accuracy:
        model = network(2, seed)
        if name == "transferred":
            po.recipes.transfer(source, model, layers=2)
        trainer = fit(model, data.x_train[few], loop[few], epochs=200)
        accuracy[name] += trainer.evaluate(data.x_test, test_loop)["accuracy"] / 10

# %% Means over ten choices of the twenty images.
for name, value in accuracy.items():
    print(f"{name}: {value:.1%} of the test images")
