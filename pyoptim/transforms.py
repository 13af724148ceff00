"""What is done to a mini-batch before the model sees it.

``trainer.fit(x, y, transform=Compose(Shift(2), Noise(0.1)))``. A transform is a callable
``(x, y, rng) -> (x, y)`` that does not change what it is given; ``rng`` is the trainer's
`numpy.random.Generator`. Images are (batch, channels, height, width); give
``shape=(channels, height, width)`` where they come flattened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays.memory import refuse_masked
from .runtime.dtypes import Array
from .runtime.extras import needed
from .runtime.numbers import (
    AT_LEAST_ZERO,
    POSITIVE,
    SHARE,
    check_callable,
    check_count,
    check_type,
    is_count,
    shown,
)

__all__ = ["Compose", "Crop", "CutMix", "Flip", "Mixup", "Noise", "Rotate", "Shift"]


def __dir__() -> list[str]:
    return __all__


Transform = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]


def _check_batch(x: Any, y: Any, rng: Any) -> None:
    """Raise TypeError or ValueError unless these are a batch of arrays and a random generator."""
    for name, value in (("x", x), ("y", y)):
        check_type(name, value, np.ndarray, "a NumPy array")
        refuse_masked(name, value)
        if value.ndim == 0:
            raise TypeError(f"{name} is a scalar, expected a batch")
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x has dtype {x.dtype}, expected numbers")
    if len(x) != len(y):
        raise ValueError(f"y has {len(y)} targets, expected {len(x)}: one per example of x")
    check_type("rng", rng, np.random.Generator, "a numpy.random.Generator")


class Compose:
    """One transform after the other."""

    def __init__(self, *transforms: Transform) -> None:
        for i, transform in enumerate(transforms):
            check_callable(f"transforms[{i}]", transform, "a transform, such as Noise(0.1)")
        self.transforms = transforms

    def __call__(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        _check_batch(x, y, rng)
        for transform in self.transforms:
            x, y = transform(x, y, rng)
        return x, y


class Noise:
    """Add normal noise of standard deviation ``std`` to the input."""

    def __init__(self, std: float) -> None:
        self.std = AT_LEAST_ZERO.number("std", std)

    def __call__(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        _check_batch(x, y, rng)
        return x + rng.normal(0, self.std, x.shape).astype(x.dtype), y


class _OfImages:
    def __init__(self, shape: tuple[int, int, int] | None = None) -> None:
        if shape is not None and not (
            isinstance(shape, tuple | list) and len(shape) == 3 and all(map(is_count, shape))
        ):
            raise ValueError(f"shape is {shown(shape)}, expected (channels, height, width)")
        self.shape = shape

    def __call__(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        _check_batch(x, y, rng)
        images = x
        if self.shape is not None:
            if math.prod(x.shape[1:]) != math.prod(self.shape):
                raise ValueError(f"x has shape {x.shape}, expected examples of shape {self.shape}")
            images = x.reshape(-1, *self.shape)
        if images.ndim != 4:
            raise ValueError(f"x has shape {x.shape}, expected (batch, channels, height, width): give shape=")
        images, y = self._change(images, y, rng)
        return np.ascontiguousarray(images).reshape(x.shape), y

    def _change(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        raise NotImplementedError


class Shift(_OfImages):
    """Move each image by up to ``pixels`` up or down and to a side; pixels that enter are 0."""

    def __init__(self, pixels: int, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(shape)
        self.pixels = check_count("pixels", pixels, 0)

    def _change(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        n, p = len(x), self.pixels
        height, width = x.shape[2:]
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        down, right = rng.integers(0, 2 * p + 1, (2, n))
        rows = (down[:, None] + np.arange(height))[:, None, :, None]
        columns = (right[:, None] + np.arange(width))[:, None, None, :]
        examples, channels = np.arange(n)[:, None, None, None], np.arange(x.shape[1])[None, :, None, None]
        return padded[examples, channels, rows, columns], y


class Crop(_OfImages):
    """Replace each image by a random part of it, a share of its sides, enlarged to the old size.

    Parameters
    ----------
    share : float in (0, 1]
        The least of height and of width that stays.
    shape : see `transforms`
    """

    def __init__(self, share: float, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(shape)
        if not (SHARE.allowed(share) and share > 0):
            raise ValueError(f"share is {shown(share)}, expected a number in (0, 1]")
        self.share = float(share)

    def _change(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        n, _, height, width = x.shape
        share = np.asarray(rng.uniform(self.share, 1, n))
        top, left = rng.uniform(0, 1, (2, n)) * (1 - share)
        # For each pixel of the enlarged image, the nearest one of the part.
        rows = ((top[:, None] + share[:, None] * (np.arange(height) + 0.5) / height) * height).astype(int)
        columns = ((left[:, None] + share[:, None] * (np.arange(width) + 0.5) / width) * width).astype(int)
        examples, channels = np.arange(n)[:, None, None, None], np.arange(x.shape[1])[None, :, None, None]
        return x[examples, channels, rows[:, None, :, None], columns[:, None, None, :]], y


class Flip(_OfImages):
    """Mirror each image left to right, with probability ``p``."""

    def __init__(self, p: float = 0.5, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(shape)
        self.p = SHARE.number("p", p)

    def _change(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        turned = rng.random(len(x)) < self.p
        return np.where(turned[:, None, None, None], x[..., ::-1], x), y


class Rotate(_OfImages):
    """Rotate each image by up to ``degrees`` either way, by `scipy.ndimage`; pixels that enter are 0."""

    def __init__(self, degrees: float, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(shape)
        self.degrees = AT_LEAST_ZERO.number("degrees", degrees)

    def _change(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        rotate = needed("scipy.ndimage", "Rotate needs SciPy", "pyoptim[scipy]").rotate
        angles = rng.uniform(-self.degrees, self.degrees, len(x))
        turned = [
            rotate(image, a, (2, 1), reshape=False, order=1) for image, a in zip(x, angles, strict=True)
        ]
        return np.stack(turned), y


class _Mixing:
    """Needs targets that can be mixed: class probabilities for `CrossEntropy`, or real numbers."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = POSITIVE.number("alpha", alpha)

    def _check(self, y: Array) -> None:
        if y.dtype.kind != "f":
            raise TypeError(
                f"y has dtype {y.dtype}, expected real targets for {type(self).__name__}: "
                "np.eye(classes)[labels] makes probabilities of class indices"
            )


class Mixup(_Mixing):
    """Blend each example with another of the batch (Zhang et al. 2018).

    Parameters
    ----------
    alpha : float, default 1
        The share is drawn from Beta(alpha, alpha), once for a batch.
    """

    def __call__(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        _check_batch(x, y, rng)
        self._check(y)
        share, other = rng.beta(self.alpha, self.alpha), rng.permutation(len(x))
        return _blend(x, x[other], share), _blend(y, y[other], share)


class CutMix(_Mixing, _OfImages):
    """Replace a rectangle of each image by another's of the batch (Yun et al. 2019).

    Parameters
    ----------
    alpha : float, default 1
        The share of the area that stays is drawn from Beta(alpha, alpha), once for a batch.
    shape : see `transforms`
    """

    def __init__(self, alpha: float = 1.0, shape: tuple[int, int, int] | None = None) -> None:
        _Mixing.__init__(self, alpha)
        _OfImages.__init__(self, shape)

    def _change(self, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        self._check(y)
        height, width = x.shape[2:]
        other, side = rng.permutation(len(x)), np.sqrt(1 - rng.beta(self.alpha, self.alpha))
        row, column = rng.integers(height), rng.integers(width)
        top, bottom = _clip(row - side * height / 2, height), _clip(row + side * height / 2, height)
        left, right = _clip(column - side * width / 2, width), _clip(column + side * width / 2, width)
        mixed = x.copy()
        mixed[:, :, top:bottom, left:right] = x[other][:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)  # of the first image
        return mixed, _blend(y, y[other], share)


def _blend(a: Array, b: Array, share: float) -> Array:
    mixed: Array = a.dtype.type(share) * a + a.dtype.type(1 - share) * b
    return mixed


def _clip(edge: float, most: int) -> int:
    return int(min(max(round(edge), 0), most))
