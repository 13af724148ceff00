"""Modules under the names that they had once, so that what was pickled then still loads.

Nothing in the package imports the old names. Python asks this finder only when it finds no such module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NOW = {
    "pyoptim._arrays": "pyoptim.arrays.memory",
    "pyoptim._hyperparameters": "pyoptim.optim.hyperparameters",
    "pyoptim.optimizer": "pyoptim.optim.optimizer",
    "pyoptim.optimizers": "pyoptim.optim.elementwise",
    "pyoptim.rules": "pyoptim.formulas.rules",
    "pyoptim.tensor_optimizers": "pyoptim.optim.tensors",
    "pyoptim.trainer": "pyoptim.train.history",
}


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
        now = importlib.import_module(_NOW[module.__name__])
        module.__dict__.update(
            {name: value for name, value in vars(now).items() if not name.startswith("__")}
        )


sys.meta_path.append(_OldNames())
