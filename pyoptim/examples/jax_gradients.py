"""JAX computes the gradients, pyoptim updates plain NumPy arrays by them.

Whatever gives gradients will do: an optimizer needs arrays, and arrays of the same shapes, and nothing else.
"""

# %% A model as a function: a curve through noisy points, a sum of three waves.
import jax
import jax.numpy as jnp
import numpy as np

import pyoptim as po

rng = np.random.default_rng(0)
x = np.linspace(-3, 3, 200, dtype=np.float32)
y = (np.sin(2 * x) * np.exp(-(x**2) / 4) + 0.05 * rng.normal(size=x.shape)).astype(np.float32)


def loss(params, x, y):  # type: ignore[no-untyped-def]
    hidden = jnp.tanh(x[:, None] * params["scale"] + params["shift"])
    return jnp.mean((hidden @ params["height"] - y) ** 2)


# %% Parameters are a dict of arrays, and stay NumPy's; gradients come as the same dict.
params = {name: rng.normal(size=16).astype(np.float32) for name in ("scale", "shift", "height")}
value_and_gradient = jax.jit(jax.value_and_grad(loss))
optimizer = po.Adam(params, lr=0.03)
losses = []
for _ in range(1000):
    value, gradients = value_and_gradient(params, x, y)
    optimizer.step({name: np.asarray(gradient) for name, gradient in gradients.items()})
    losses.append(float(value))

# %% The noise alone has a mean square of 0.0025, below which a fit would learn the noise.
print(f"mean square: {losses[0]:.4f} at first, {losses[-1]:.4f} after {len(losses)} steps")
