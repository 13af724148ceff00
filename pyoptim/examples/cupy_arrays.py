"""CuPy: parameters and gradients in a GPU's memory, updated there, with the same calls and the same bits."""

# %% Without a GPU there is nothing to show: the status 77 says so to whoever ran this.
import sys

import numpy as np

import pyoptim as po

try:
    import cupy

    cupy.cuda.runtime.getDeviceCount()
except Exception as error:
    print(f"this example needs CuPy (pip install 'pyoptim[cuda]') and a GPU of NVIDIA: {error}")
    sys.exit(77)

# %% The same quadratic function on either side: its gradient is curvature * (p - goal).
rng = np.random.default_rng(0)
curvature, goal = rng.uniform(0.1, 10, 10_000), rng.normal(size=10_000)
ends = {}
for library in (np, cupy):
    h, g = library.asarray(curvature), library.asarray(goal)
    p = library.zeros_like(g)
    optimizer = po.Adam(p, lr=0.05)
    for _ in range(500):
        optimizer.step(h * (p - g))  # on the GPU nothing here waits for it
    ends[library.__name__] = p

# %% Elementwise results are the same bits wherever they are computed.
same = bool((ends["numpy"] == ends["cupy"].get()).all())
distance = float(np.abs(ends["numpy"] - goal).max())
print(f"at most {distance:.1e} from the minimum; the same bits on the GPU: {same}")
