"""The files of each data set, where they are published, and the digests that prove them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ._formats import Arrays, parse_cifar10, parse_idx


class Source(NamedTuple):
    """A data set that is not part of the package.

    Attributes
    ----------
    parse : callable
        Turns the uncompressed bytes of one file into arrays, or raises ValueError. The arrays of all files,
        in order, are x_train, y_train, x_test, y_test.
    mirrors : tuple of str
        Addresses, tried in this order; a file's name is appended.
    files : dict of str to str
        Published name of each file, and the digests that prove it, separated by a space: MD5 or
        SHA-256, told apart by their length, of the file as it is or of what it uncompresses to.
        One that matches is enough.
    """

    parse: Callable[[bytes], Arrays]
    mirrors: tuple[str, ...]
    files: dict[str, str]


_IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# Digests of the uncompressed files: copies that were compressed again are in use.
_MNIST = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
# Digests of the .gz file, which the authors publish, and of the file in it.
_FASHION_MNIST = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "25c81989df183df01b3e8a0aad5dffbe 9018921c3c673c538a1fc5bad174d6f9",
    "bef4ecab320f06d8554ea6380940ec79 8181f5470baa50b63fa0f6fddb340f0a",
    "bb300cfdad3c16e7a12a480ee83cd310 15d484375f8d13e6eb1aabb0c3f46965",
)

SOURCES = {
    "mnist": Source(
        parse_idx,
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        dict(zip(_IDX, _MNIST, strict=True)),
    ),
    "fashion_mnist": Source(
        parse_idx,
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        dict(zip(_IDX, _FASHION_MNIST, strict=True)),
    ),
    "cifar10": Source(
        parse_cifar10,
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
}
