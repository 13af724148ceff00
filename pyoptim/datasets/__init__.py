"""Small image data sets for training and testing: digits, MNIST, Fashion-MNIST, CIFAR-10.

``digits`` ships with the package: Optical Recognition of Handwritten Digits, E. Alpaydin and
C. Kaynak (1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0
(DIGITS.txt, next to this file, says what was changed). The others are read from a folder of yours,
or downloaded once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runtime.html import table
from ..runtime.numbers import check_flag, check_name
from ._files import DatasetError, read
from ._sources import SOURCES

__all__ = ["NAMES", "Dataset", "DatasetError", "load"]


def __dir__() -> list[str]:
    return __all__


NAMES = ("digits", *SOURCES)


class Dataset(NamedTuple):
    """Images and labels, already split; N images of one shape in each part.

    Attributes
    ----------
    x_train, x_test : ndarray of uint8, shape (N, 8, 8), (N, 28, 28) or (N, 3, 32, 32)
        Pixels, 0 (background) to 16 in digits, 0 to 255 elsewhere. float32 after ``normalize``,
        (N, features) after ``flatten``. C-contiguous and writable, the caller's own.
    y_train, y_test : ndarray of int64, shape (N,)
        Classes, 0 to 9.
    """

    x_train: NDArray[Any]
    y_train: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                str(part.shape),
                str(part.dtype),
                f"{part.min():.4g} to {part.max():.4g}" if part.size else "none",
            )
            for name, part in zip(self._fields, self, strict=True)
        ]
        return table("Dataset", ("", "shape", "dtype", "values"), rows)


def load(name: str, *, flatten: bool = False, normalize: bool = False) -> Dataset:
    """Load a data set, downloading it first if this machine does not have it.

    Parameters
    ----------
    name : {"digits", "mnist", "fashion_mnist", "cifar10"}
        One of these:

            =============  ===============  ===========  ==========  ============
            name           train / test     image        download    licence
            =============  ===============  ===========  ==========  ============
            digits         1,437 / 360      8 x 8        none        CC BY 4.0
            mnist          60,000 / 10,000  28 x 28      12 MB       CC BY-SA 3.0
            fashion_mnist  60,000 / 10,000  28 x 28      31 MB       MIT
            cifar10        50,000 / 10,000  3 x 32 x 32  170 MB      none stated
            =============  ===============  ===========  ==========  ============

    flatten : bool, default False
        Images as rows, (N, features), instead of in their shape.
    normalize : bool, default False
        Pixels as float32 from 0 to 1, instead of uint8.

    Returns
    -------
    Dataset
        ``(x_train, y_train, x_test, y_test)``

    Raises
    ------
    ValueError
        The name is unknown.
    DatasetError
        A file is damaged or another one than it should be, or it is not here and cannot be
        downloaded; the message says which file to put where, and where to get it.

    Notes
    -----
    Files are looked for in ``$PYOPTIM_DATA/<name>/``, then in the cache, ``<cache>/<name>/``, then
    downloaded into the cache, which is ``$PYOPTIM_CACHE``, else ``$XDG_CACHE_HOME/pyoptim``, else
    ``~/.cache/pyoptim``. They keep their published names; the ``.gz`` files of MNIST and
    Fashion-MNIST may also lie there uncompressed. Every file is verified at every load.

    Sources: MNIST, Y. LeCun, C. Cortes, C. Burges. Fashion-MNIST, H. Xiao, K. Rasul, R. Vollgraf
    (2017), https://github.com/zalandoresearch/fashion-mnist. CIFAR-10, A. Krizhevsky (2009),
    "Learning Multiple Layers of Features from Tiny Images",
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    check_name("unknown data set: name", name, NAMES)
    flatten, normalize = check_flag("flatten", flatten), check_flag("normalize", normalize)
    if name == "digits":
        with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[field] for field in Dataset._fields)
    else:
        x_train, y_train, x_test, y_test = read(name)

    def images(x: NDArray[np.uint8]) -> NDArray[Any]:
        shaped = x.reshape(len(x), -1) if flatten else x
        if not normalize:
            return np.require(shaped, requirements=["C", "W"])  # views of bytes are read-only
        scaled = shaped.astype(np.float32)
        scaled /= 16 if name == "digits" else 255
        return scaled

    return Dataset(images(x_train), y_train.astype(np.int64), images(x_test), y_test.astype(np.int64))
