"""A loss of one's own: the pinball loss, whose minimum is a quantile instead of the mean.

A class says what its targets are, and computes the loss with its gradient; `Trainer` does the rest.
"""

# %% The loss: being too low costs q, being too high 1 - q.
from typing import Any

import numpy as np

import pyoptim as po
from pyoptim import nn


class Pinball(nn.Loss):
    def __init__(self, q: float) -> None:
        self.q = q

    def check_target(self, name: str, target: Any, batch: int, shape: Any, dtype: Any) -> Any:
        return np.asarray(target, dtype).reshape(batch, *shape)

    def compute(self, output: Any, target: Any, gradient: Any, sample_weight: Any = None) -> float:
        slope = np.where(target > output, -self.q, 1 - self.q)
        if gradient is not None:
            gradient[...] = slope / output.size
        return float((slope * (output - target)).mean())


# %% A gradient of one's own is checked against differences of the loss first.
rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (2000, 1))
y = np.sin(3 * x) + (0.1 + 0.3 * (x > 0)) * rng.normal(size=x.shape)  # noisier on the right
layers = nn.Dense(1, 32), nn.Tanh(), nn.Dense(32, 1)
model = nn.Sequential(*layers, seed=0, dtype="float64")
print(po.diagnostics.gradient_check(model, Pinball(0.9), x[:20], y[:20]))

# %% Train, and count on either side how many values lie below the curve: nine of ten should.
optimizer = po.Adam(model.parameters(), lr=po.schedules.Cosine(0.01, steps=4000))
trainer = po.Trainer(model, Pinball(0.9), optimizer, seed=0)
history = trainer.fit(x, y, epochs=100, batch_size=50, verbose=False)
below = y <= trainer.predict(x)
shares = {"left": float(below[x <= 0].mean()), "right": float(below[x > 0].mean())}
print(f"below the 90% curve: {shares['left']:.1%} on the left, {shares['right']:.1%} on the right")
print(f"the loss is written in Python, so epochs ran in the {history.path} loop: {history.reason}")
