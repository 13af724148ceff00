"""Modules under the names that they had once, so that old pickles load and old imports of classes work.

Nothing in the package imports the old names. Python asks this finder only when it finds no such module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Where the contents of each old module are now.
_NOW = {
    "pyoptim._arrays": ("pyoptim.arrays.memory",),
    "pyoptim._hyperparameters": ("pyoptim.optim.hyperparameters",),
    "pyoptim.optimizer": ("pyoptim.optim.optimizer",),
    "pyoptim.optimizers": ("pyoptim.optim.elementwise",),
    "pyoptim.rules": ("pyoptim.formulas.rules",),
    "pyoptim.tensor_optimizers": ("pyoptim.optim.tensors",),
    "pyoptim.threads": ("pyoptim.runtime.threads",),
    "pyoptim.trainer": ("pyoptim.train.history", "pyoptim.train.trainer"),
}

_CLASSES = {"Memory": "OverlapFinder"}  # classes that have another name now


class _OldNames:
    """A finder and loader without their base classes: importing `importlib.abc` would take 5 ms."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        loader: Any = self
        return ModuleSpec(name, loader) if name in _NOW else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # Python then makes an ordinary, empty module

    def exec_module(self, module: ModuleType) -> None:
        for name in _NOW[module.__name__]:
            now = vars(importlib.import_module(name))
            module.__dict__.update({key: value for key, value in now.items() if not key.startswith("__")})
            module.__dict__.update({old: now[new] for old, new in _CLASSES.items() if new in now})


sys.meta_path.append(_OldNames())
