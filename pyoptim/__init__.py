"""pyoptim: optimizer updates on plain arrays and training of small networks, compiled.

>>> import pyoptim as po
>>> data = po.datasets.load("digits", flatten=True, normalize=True)
>>> model = po.nn.Sequential(po.nn.Dense(64, 128), po.nn.ReLU(), po.nn.Dense(128, 10), seed=0)
>>> trainer = po.Trainer(model, po.nn.CrossEntropy(), po.Adam(model.parameters()))
>>> history = trainer.fit(data.x_train, data.y_train, epochs=20, batch_size=32)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .optim import elementwise as _elementwise
from .optim import tensors as _tensors
from .optim.elementwise import *  # noqa: F403
from .optim.optimizer import Optimizer
from .optim.tensors import *  # noqa: F403
from .runtime import dispatch as _dispatch
from .runtime import renamed as _renamed  # noqa: F401
from .runtime.dispatch import BackendError, available_backends, use_backend
from .runtime.threads import get_num_threads, num_threads, set_num_threads

__version__ = "0.1.0"
_dispatch.warn_without_kernels()

if TYPE_CHECKING:
    from . import (
        averages,
        blocks,
        callbacks,
        datasets,
        diagnostics,
        distributed,
        gradients,
        metrics,
        nn,
        ops,
        recipes,
        schedules,
        surfaces,
        transforms,
    )
    from . import (
        sklearn as sklearn,  # not in __all__: it needs scikit-learn
    )
    from . import (
        torch as torch,  # not in __all__: it needs PyTorch
    )
    from .config import cite, cmake_dir, include_dir, show_config
    from .train.curves import compare
    from .train.history import History
    from .train.minimizing import minimize
    from .train.objective import Objective
    from .train.trainer import Trainer

# Imported when first used, so that `import pyoptim` costs no more than the optimizers.
_LAZY = {
    "averages": "averages",
    "blocks": "blocks",
    "callbacks": "callbacks",
    "cite": "config",
    "cmake_dir": "config",
    "compare": "train.curves",
    "datasets": "datasets",
    "distributed": "distributed",
    "diagnostics": "diagnostics",
    "gradients": "gradients",
    "include_dir": "config",
    "metrics": "metrics",
    "minimize": "train.minimizing",
    "nn": "nn",
    "ops": "ops",
    "recipes": "recipes",
    "schedules": "schedules",
    "show_config": "config",
    "sklearn": "sklearn",
    "surfaces": "surfaces",
    "torch": "torch",
    "transforms": "transforms",
    "History": "train.history",
    "Objective": "train.objective",
    "Trainer": "train.trainer",
}

__all__ = [
    "BackendError",
    "History",
    "Objective",
    "Optimizer",
    "Trainer",
    "available_backends",
    "averages",
    "blocks",
    "callbacks",
    "cite",
    "cmake_dir",
    "compare",
    "datasets",
    "distributed",
    "diagnostics",
    "get_num_threads",
    "gradients",
    "include_dir",
    "metrics",
    "minimize",
    "nn",
    "num_threads",
    "ops",
    "recipes",
    "schedules",
    "set_num_threads",
    "show_config",
    "surfaces",
    "transforms",
    "use_backend",
]
__all__ += _elementwise.__all__
__all__ += _tensors.__all__


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'pyoptim' has no attribute {name!r}{_nearest(name)}")
    module = importlib.import_module(f".{_LAZY[name]}", __name__)
    value = module if name == _LAZY[name] else getattr(module, name)
    globals()[name] = value
    return value


def _nearest(name: str) -> str:
    """The end of a message about an unknown name: the one that was likely meant, maybe of another module."""
    if name.startswith("_"):  # what tools ask every module for
        return ""
    from .runtime.numbers import nearest

    found = nearest(name, __all__)
    for module in ("nn", "schedules", "callbacks", "metrics", "transforms", "ops") if not found else ():
        space = importlib.import_module(f".{module}", __name__)
        found = found or nearest(name, space.__all__).replace("mean '", f"mean '{module}.")
    return found


def __dir__() -> list[str]:
    return [*__all__, "sklearn", "torch"]
