"""Online learning: a stream of examples that is seen once, whose rule changes in the midst of it.

`Trainer.partial_fit` takes one step on what has just come. Each example is a test before it is learned.
"""

# %% A stream: 16 examples at a time, of a rule that turns round after half of them.
from collections.abc import Iterator

import numpy as np

import pyoptim as po
from pyoptim import nn


def stream(batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for i in range(batches):
        x = rng.normal(size=(16, 4))
        inside = (x[:, 0] ** 2 + x[:, 1] ** 2 < 1.4).astype(int)
        yield x, inside if i < batches // 2 else 1 - inside


# %% Ask first, then learn.
model = nn.Sequential(nn.Dense(4, 32, activation="relu"), nn.Dense(32, 2), seed=0)
trainer = po.Trainer(model, nn.CrossEntropy(), po.RMSprop(model.parameters(), lr=0.005))
right = []
for x, y in stream(2000):
    right.append(float((trainer.predict(x).argmax(axis=1) == y).mean()))
    trainer.partial_fit(x, y)

# %% It learns the rule, is wrong when that changes, and learns the next one.
accuracy = [float(np.mean(right[at : at + 100])) for at in (0, 900, 1000, 1900)]
for when, value in zip(("at first", "before the change", "after it", "at the end"), accuracy, strict=True):
    print(f"right {when}: {value:.1%}")
