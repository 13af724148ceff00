"""Blocks of examples from files that do not fit in memory, for `Trainer.fit` and `Trainer.evaluate`.

Each function returns a function without arguments that returns an iterable of blocks, ``(x, y)`` or
``(x, y, weight)``: so an epoch begins anew with each call. One of your own does as well.

>>> trainer.fit(po.blocks.npy("parts"), epochs=3, shuffle=100_000)
>>> trainer.fit(po.blocks.arrow("rides.parquet", target="fare"), validation_data=(x, y))

An estimator of `pyoptim.sklearn`, or of scikit-learn, takes them one by one:

>>> for x, y in po.blocks.npy("parts")():
...     classifier.partial_fit(x, y, classes=range(10))
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arrays.mapped import forget_pages
from .runtime.dtypes import Array
from .runtime.extras import needed
from .runtime.numbers import check_count, check_path, check_text, nearest, shown

__all__ = ["arrow", "npy"]


def __dir__() -> list[str]:
    return __all__


_BUFFER = 1 << 16  # bytes by which a column of a Parquet file is read

Blocks = Callable[[], Iterator[tuple[Array, ...]]]


def npy(folder: str | Path, *, rows: int = 4096) -> Blocks:
    """Blocks of pairs of ``.npy`` files in a folder: ``NAME.x.npy`` with ``NAME.y.npy``.

    Beside them ``NAME.weight.npy`` may hold the examples' weights. The pairs come in the order of their
    names; the files are mapped into memory, and read a block at a time.

    Parameters
    ----------
    folder : str or Path
    rows : int, default 4096
        Examples in a block, at most: the last block of each pair may have fewer.

    Raises
    ------
    ValueError
        There is no pair, a file has no partner, or, when it is its turn, a pair's lengths differ.
    """
    path, rows = Path(check_path("folder", folder)), check_count("rows", rows)
    names = sorted({file.name.removesuffix(".npy").rpartition(".")[0] for file in path.glob("*.npy")})
    pairs = []
    for name in names:
        files = [path / f"{name}.{part}.npy" for part in ("x", "y", "weight")]
        missing = [file.name for file in files[:2] if not file.is_file()]
        if missing:
            raise ValueError(f"folder is {shown(str(path))}, in which {missing[0]} is missing")
        pairs.append([file for file in files if file.is_file()])
    if not pairs:
        raise ValueError(
            f"folder is {shown(str(path))}, expected pairs of files NAME.x.npy and NAME.y.npy in it"
        )

    def blocks() -> Iterator[tuple[Array, ...]]:
        for files in pairs:
            arrays = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
            counts = [array.shape[:1] for array in arrays]
            if len(set(counts)) > 1:
                raise ValueError(f"{files[0]} and its partners have the lengths {counts}, expected one")
            for begin in range(0, len(arrays[0]), rows):
                yield tuple(np.array(array[begin : begin + rows]) for array in arrays)
                for array in arrays:
                    forget_pages(array)

    return blocks


def arrow(
    source: Any,
    *,
    target: str | Sequence[str],
    columns: Sequence[str] | None = None,
    weight: str | None = None,
    rows: int = 4096,
) -> Blocks:
    """Blocks of columns of numbers from Parquet files, or what else Arrow reads. Needs the extra ``arrow``.

    Parameters
    ----------
    source : str, Path, list of them, or pyarrow's Dataset, Scanner or Table
        The path of a Parquet file, of a folder of them, or several; or an object with ``to_batches``.
    target : str or sequence of str
        The column of the targets, y (examples,), or some, y (examples, columns).
    columns : sequence of str, optional
        Those of x, in this order; default: all but target and weight.
    weight : str, optional
        The column of the examples' weights.
    rows : int, default 4096
        Examples in a block, at most; a Scanner's own number counts instead.

    Returns
    -------
    function
        Its blocks have x in the one dtype that holds all its columns. Memory holds a row group of a Parquet
        file at a time, with what Arrow decodes it by.

    Raises
    ------
    TypeError
        A column does not hold numbers or bools.
    ValueError
        There is no column of that name, or, when it is its turn, one misses a value.
    """
    rows = check_count("rows", rows)
    if not hasattr(source, "to_batches"):
        paths = source if isinstance(source, list | tuple) else [source]
        paths = [check_path("source", path) for path in paths]
        missing = [path for path in paths if not Path(path).exists()]
        if missing or not paths:
            raise ValueError(f"source is {shown(source)}, expected files of Parquet that exist: {missing}")
        dataset = needed("pyarrow.dataset", "Parquet files need pyarrow", "pyoptim[arrow]")
        source = dataset.dataset(paths if len(paths) > 1 else paths[0], format="parquet")
    schema = getattr(source, "projected_schema", None) or source.schema  # the former is a Scanner's
    targets = [target] if isinstance(target, str) else _names("target", target)
    apart = [*targets, *([] if weight is None else [check_text("weight", weight, "a column's name")])]
    chosen = [n for n in schema.names if n not in apart] if columns is None else _names("columns", columns)
    if not chosen or not targets:
        raise ValueError(f"columns is {shown(chosen)} and target {shown(target)}, expected one at least each")
    dtypes: dict[str, np.dtype[Any]] = {}
    for argument, names in (("columns", chosen), ("target", targets), ("weight", apart[len(targets) :])):
        dtypes |= {name: _dtype(argument, schema, name) for name in names}

    def blocks() -> Iterator[tuple[Array, ...]]:
        for batch in _batches(source, list(dtypes), rows):
            x, y = (_stacked(batch, names, dtypes) for names in (chosen, targets))
            block = x, y[:, 0] if isinstance(target, str) else y
            yield block if weight is None else (*block, _stacked(batch, [weight], dtypes)[:, 0])

    return blocks


def _names(name: str, value: Any) -> list[str]:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(n, str) for n in value)
    ):
        raise TypeError(f"{name} is {shown(value)}, expected the names of columns")
    return list(value)


def _dtype(argument: str, schema: Any, name: str) -> np.dtype[Any]:
    """Return the dtype of a column of numbers."""
    if name not in schema.names:
        near = nearest(name, schema.names)
        raise ValueError(f"{argument} has {name!r}, expected one of {', '.join(schema.names)}{near}")
    kind = schema.field(name).type
    try:
        dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    except NotImplementedError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise TypeError(f"{argument} has {name!r}, of type {kind}, expected numbers: encode it before")
    return dtype


def _batches(source: Any, names: list[str], rows: int) -> Iterator[Any]:
    """Yield Arrow's record batches of these columns."""
    if hasattr(source, "head") and hasattr(source, "scanner"):  # a Dataset
        # Arrow reads ahead by itself too: of whole files and many batches, if nobody tells it otherwise.
        options: dict[str, Any] = {"batch_readahead": 2, "fragment_readahead": 1}
        if type(getattr(source, "format", None)).__name__ == "ParquetFileFormat":
            # Its own way to read ahead keeps what it has read of a file, until the whole file is in memory.
            dataset = sys.modules["pyarrow.dataset"]
            options["fragment_scan_options"] = dataset.ParquetFragmentScanOptions(
                use_buffered_stream=True, buffer_size=_BUFFER, pre_buffer=False
            )
        yield from source.to_batches(columns=names, batch_size=rows, **options)
    elif hasattr(source, "select"):  # a Table
        yield from source.select(names).to_batches(max_chunksize=rows)
    else:
        yield from source.to_batches()


def _stacked(batch: Any, names: list[str], dtypes: dict[str, np.dtype[Any]]) -> Array:
    """Return columns (rows, columns) in the one dtype that holds them."""
    made = np.empty((batch.num_rows, len(names)), np.result_type(*(dtypes[name] for name in names)))
    for j, name in enumerate(names):
        column = batch.column(name)
        if column.null_count:
            raise ValueError(f"the column {name!r} misses {column.null_count} of {batch.num_rows} values")
        made[:, j] = column.to_numpy(zero_copy_only=False)
    return made
