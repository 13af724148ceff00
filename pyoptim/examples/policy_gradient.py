"""Reinforcement learning by policy gradient (REINFORCE, Williams 1992), in a loop of one's own.

The gradient of a loss that no class has goes into `model.backward`, and `optimizer.step` does the rest.
"""

# %% A pole on a cart: the agent pushes left or right, and gets 1 for each step that the pole stands.
import numpy as np

import pyoptim as po
from pyoptim import nn

LONGEST = 200


def push(state: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The states 0.02 s later: position, speed, angle and its speed (Barto, Sutton & Anderson 1983)."""
    _, speed, angle, turning = state.T
    sine, cosine = np.sin(angle), np.cos(angle)
    pushed = (np.where(right, 10.0, -10.0) + 0.05 * turning**2 * sine) / 1.1
    turned = (9.8 * sine - cosine * pushed) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    moved = pushed - 0.05 * turned * cosine / 1.1
    return state + 0.02 * np.stack([speed, moved, turning, turned], axis=1)


# %% Thirty-two carts at once. What is kept of each: states, actions, and the steps until it fell.
def play(model: nn.Sequential, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    state, alive = rng.uniform(-0.05, 0.05, (32, 4)), np.ones(32, bool)
    states, actions, stood = [], [], []
    for _ in range(LONGEST):
        logits = model(state)
        right = rng.random(32) < 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        states.append(state)
        actions.append(right)
        stood.append(alive)
        state = push(state, right)
        alive = alive & (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < 0.21)
    alive_at = np.array(stood)
    to_come = alive_at[::-1].cumsum(axis=0)[::-1]
    return np.array(states)[alive_at], np.array(actions)[alive_at], to_come[alive_at], alive_at.sum(axis=0)


# %% Make likelier what was followed by more steps than usual, and the rest less likely.
rng = np.random.default_rng(0)
model = nn.Sequential(nn.Dense(4, 32, activation="tanh"), nn.Dense(32, 2), seed=0)
optimizer = po.Adam(model.parameters(), lr=0.01)
for episode in range(41):
    states, actions, to_come, lengths = play(model.eval(), rng)
    if episode % 10 == 0:
        print(f"after {episode} updates the pole stands for {lengths.mean():.0f} steps of at most {LONGEST}")
    advantage = (to_come - to_come.mean()) / (to_come.std() + 1e-8)
    _, gradient = nn.CrossEntropy()(model.train()(states), actions)  # of minus their log probabilities
    model.backward(gradient * advantage[:, None].astype(np.float32))
    optimizer.step(model.gradients())
steps = float(lengths.mean())
