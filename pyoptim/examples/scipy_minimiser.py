"""SciPy's minimisers on a network: its loss and gradient are a function of one vector of all parameters."""

# %% A small network on all examples at once, in float64, where line searches can go to the end.
import numpy as np
from scipy import optimize

import pyoptim as po
from pyoptim import nn

rng = np.random.default_rng(0)
x = rng.uniform(-2, 2, (300, 2))
y = np.sin(x[:, :1]) * np.cos(2 * x[:, 1:])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Dense(2, 20), nn.Tanh(), nn.Dense(20, 1), seed=0, dtype="float64")


# %% `po.Objective` is that function, for whatever minimises functions.
objective = po.Objective(network(), nn.MSE(), x, y)
start = objective.parameters
found = optimize.minimize(
    objective.value_and_gradient, start, method="L-BFGS-B", jac=True, options={"maxiter": 200}
)
by_scipy = float(found.fun)

# %% `po.minimize` makes it, and fills a history; Adam with as many looks at all examples, beside it.
history = po.minimize(network(), nn.MSE(), x, y, "L-BFGS-B", max_iter=200, verbose=False)
by_minimize = float(history.result.fun)
model = network()
trainer = po.Trainer(model, nn.MSE(), po.Adam(model.parameters(), lr=0.01))
trainer.fit(x, y, epochs=found.nfev, batch_size=None, verbose=False)
by_adam = trainer.evaluate(x, y)["loss"]
print(f"{found.nfev} gradients: L-BFGS {by_scipy:.1e}, by po.minimize {by_minimize:.1e}, Adam {by_adam:.1e}")
