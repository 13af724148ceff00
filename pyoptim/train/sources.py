"""Where a training's examples come from: arrays, files mapped into memory, or blocks.

A source hands out an epoch in pieces, which are trained on one after the other. The pieces have whole batches
but for the last one, so how examples are cut into pieces changes no bit of the result. All sources have

- ``examples``, how many an epoch has, or None if that is not known before;
- ``at``, which returns the source with what it holds in another memory;
- ``draw``, which draws the order of an epoch for
- ``pieces``, which yields what is left of an epoch, and moves the epoch on to each piece.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays.checks import as_numpy
from ..arrays.frames import is_frame, plain
from ..arrays.mapped import forget_pages
from ..backends.places import Place
from ..runtime.dtypes import Array
from ..runtime.numbers import check_count, check_flag, is_integer, shown
from .ahead import fetched_ahead
from .data import Data
from .resume import Epoch

_ROWS = 2048  # of a buffer that is emptied at the end, at once
_READ = 1 << 25  # bytes of a mapped file's pages that rows from all over it need before they are given back
_AROUND = 1 << 16  # bytes that the system maps around a row, about
_PIECE = 1 << 22  # bytes of a mapped file's rows that are trained on at once, about
_KEPT = 1 << 28  # bytes of a mapped file that is taken as an array in memory, at most

# Examples that are trained on next, and the order in which they are visited.
Piece = tuple[Data, Array | None]


class Arrays:
    """Examples that are in memory: one piece."""

    def __init__(self, data: Data) -> None:
        self.data = data

    @property
    def examples(self) -> int:
        return len(self.data.x)

    def cut(self, count: int) -> tuple[Arrays, Arrays]:
        """Split into the first ``count`` examples and the others."""
        first, rest = self.data.cut(count)
        return Arrays(first), Arrays(rest)

    def at(self, place: Place) -> Arrays:
        return Arrays(self.data.at(place))

    def draw(self, rng: np.random.Generator, shuffle: bool | int, examples: int | None) -> Array | None:
        return rng.permutation(len(self.data.x))[:examples] if shuffle else None

    def pieces(self, drawn: Array | None, epoch: Epoch, size: int) -> Generator[Piece]:
        epoch.before, epoch.done = 0, epoch.position
        yield self.data, drawn


class Mapped(Arrays):
    """Examples in a file that is mapped into memory: rows are read, checked and converted as they are needed.

    They are visited in the order that the same numbers in memory would be. Beside some thousand rows memory
    holds that order, 4 bytes an example; or, where it is a buffer that mixes them, that buffer.
    """

    def __init__(self, data: Data, check: Callable[..., Data]) -> None:
        super().__init__(data)
        self._check = check

    def few(self, count: int) -> Data:
        """Return some examples from all over the file, checked."""
        step = slice(None, None, -(-self.examples // count))
        return self._check(*(None if a is None else np.array(a[step]) for a in self.data))

    def cut(self, count: int) -> tuple[Arrays, Arrays]:
        first, rest = self.data.cut(count)
        return Mapped(first, self._check), Mapped(rest, self._check)

    def at(self, place: Place) -> Mapped:
        return self

    def draw(self, rng: np.random.Generator, shuffle: bool | int, examples: int | None) -> Any:
        if not shuffle:
            return None
        if shuffle is not True:
            return _Mixing(int(rng.integers(2**63)), shuffle, examples)
        dtype = np.int32 if self.examples < 2**31 else np.int64
        order = np.arange(self.examples, dtype=dtype)
        rng.shuffle(order)  # as rng.permutation does, whose numbers are all of 8 bytes
        return order[:examples]

    def pieces(self, drawn: Any, epoch: Epoch, size: int) -> Generator[Piece]:
        row = self.data.x.nbytes // self.examples
        begin, step = epoch.position, max(1, _PIECE // max(1, row * size)) * size

        def read(begin: int, order: Array | None) -> Generator[Data]:
            end = self.examples if order is None else len(order)
            for i in range(begin, end, step):
                yield self._rows(slice(i, min(i + step, end)), order)

        def made() -> Generator[tuple[Data, int]]:
            if isinstance(drawn, _Mixing):
                mixed = drawn.mixed(read(0, None))
                pieces = _whole_batches(mixed, size, drawn.examples)
                return _after(((piece, 0) for piece in pieces), begin)
            return ((data, 0) for data in read(begin, drawn))

        return _moving(fetched_ahead(made), epoch)

    def _rows(self, which: slice, order: Array | None) -> Data:
        rows: Any = which if order is None else order[which]
        try:
            return self._check(*(None if a is None else _rows_of(a, rows) for a in self.data))
        except (TypeError, ValueError):
            for row in range(which.start, which.stop) if order is None else rows:
                try:
                    self._check(*(None if a is None else a[row : row + 1] for a in self.data))
                except (TypeError, ValueError) as error:
                    raise type(error)(f"row {row}: {error}") from None
            raise


def _rows_of(array: Array, rows: Any) -> Array:
    """Return some rows of an array, which may be mapped: its pages are given back."""
    if not is_mapped(array):
        return array[rows] if isinstance(rows, slice) else array.take(rows, axis=0)
    if isinstance(rows, slice):
        forget_pages(array)
        return array[rows]
    made: Array = np.empty((len(rows), *array.shape[1:]), array.dtype)
    count = max(1, _READ // (_AROUND + array.nbytes // len(array)))
    for i in range(0, len(rows), count):
        # The rows exist; by the mode "raise" they would be copied twice.
        np.take(array, rows[i : i + count], axis=0, out=made[i : i + count], mode="clip")
        forget_pages(array)
    return made


def is_mapped(x: Any) -> bool:
    """Whether an array is in a file that is mapped into memory, and too large to be taken as others are.

    Narrow numbers take 4 bytes or more when they are converted, but for bytes, which stay.
    """
    if not isinstance(x, np.memmap):
        return False
    return x.size * (1 if x.dtype == np.uint8 else max(x.itemsize, 4)) > _KEPT


def mapped(check: Callable[..., Data], x: Any, y: Any, weight: Any, names: tuple[str, str]) -> Mapped:
    """Return mapped examples with their targets and weights, one of which is mapped; the first is checked."""
    labels = *names, "sample_weight"
    x, y, weight = (
        a if a is None or isinstance(a, np.memmap) else as_numpy(name, plain(name, a))
        for name, a in zip(labels, (x, y, weight), strict=True)
    )
    if x.shape[:1] == () or len(x) == 0:
        raise ValueError(f"{names[0]} has shape {x.shape}, expected at least one example")
    for name, array in ((names[1], y), ("sample_weight", weight)):
        if array is not None and (array.ndim == 0 or len(array) != len(x)):
            raise ValueError(
                f"{name} has shape {array.shape}, expected {len(x)}: one per example of {names[0]}"
            )
    source = Mapped(Data(x, y, weight), lambda *data: check(*data, names))
    source.few(1)
    return source


def _moving(fetched: Generator[tuple[Data, int]], epoch: Epoch) -> Generator[Piece]:
    """Yield the pieces, moving the epoch on to each."""
    try:
        for data, epoch.cuts in fetched:
            epoch.before, epoch.done = epoch.position, 0
            yield data, None
    finally:
        fetched.close()


def is_blocks(x: Any) -> bool:
    """Whether this is a function or an iterable of blocks, and no array."""
    if hasattr(x, "shape") or hasattr(x, "__array__") or is_frame(x) or isinstance(x, str | bytes):
        return False
    return callable(x) or hasattr(x, "__iter__")


class Blocks:
    """Blocks of examples, ``(x, y)`` or ``(x, y, weight)``, from an iterable or a function that returns one.

    A thread fetches, checks and mixes the next while one is trained on. Examples that fill no whole batch are
    trained on with the next block's.
    """

    examples: int | None = None
    _steps: int | None = None
    _drop_last = False

    def __init__(self, check: Callable[..., Data], given: Any, name: str) -> None:
        self._check, self._given, self._name = check, given, name
        self._form: list[Any] | None = None  # what the first block looked like
        self.serves_once = isinstance(given, Iterator)

    def limit(self, steps: int | None, size: int, drop_last: bool) -> None:
        """Set how many steps an epoch has, and whether a last batch that is smaller is left out."""
        self._steps, self._drop_last = steps, drop_last
        self.examples = None if steps is None else steps * size

    def at(self, place: Place) -> Blocks:
        return self

    def draw(self, rng: np.random.Generator, shuffle: bool | int, examples: int | None) -> _Mixing | None:
        """Draw the seed of the mixing; ``shuffle`` is True within blocks, or the size of a buffer."""
        return _Mixing(int(rng.integers(2**63)), shuffle, examples) if shuffle else None

    def pieces(self, drawn: _Mixing | None, epoch: Epoch, size: int) -> Generator[Piece]:
        skip, cuts = epoch.position, epoch.cuts

        def made() -> Generator[tuple[Data, int]]:
            lengths = [0]  # a checksum of them, of the blocks so far
            blocks: Iterator[Data] = self._checked_blocks(lengths, copy=drawn is None)
            if drawn is not None:
                blocks = drawn.mixed(blocks)
            whole = _whole_batches(blocks, size, self.examples, self._drop_last)
            pieces = ((piece, 0 if drawn is None else lengths[0]) for piece in whole)
            return _after(pieces, skip, self._name, cuts)

        return _moving(fetched_ahead(made), epoch)

    def _checked_blocks(self, lengths: list[int], copy: bool) -> Generator[Data]:
        """Yield checked blocks; the function is called, and its iterator closed, by who goes through them."""
        i, examples = 0, 0
        blocks: Any = None
        try:
            while True:
                try:
                    if blocks is None:
                        given = self._given() if callable(self._given) else self._given
                        blocks = iter(given) if hasattr(given, "__iter__") else None
                    block = None if blocks is None else next(blocks)
                except StopIteration:
                    break
                except Exception as error:
                    kind = type(error).__name__
                    raise RuntimeError(
                        f"{self._name}[{i}], a block, did not come: {kind}: {error}"
                    ) from error
                if blocks is None:
                    raise TypeError(f"{self._name} returned {shown(given)}, expected an iterable of blocks")
                data = self._checked(f"{self._name}[{i}]", block, copy)
                if data is not None:
                    examples += len(data.x)
                    lengths[0] = zlib.crc32(b"%d " % len(data.x), lengths[0])
                    yield data
                i += 1
        finally:
            if blocks is not self._given and hasattr(blocks, "close"):
                blocks.close()
        if examples == 0:
            raise ValueError(
                f"{self._name} gave {i} blocks and no example, expected some: a function has to return an "
                "iterable of its own each time"
            )
        if self.examples is not None and examples < self.examples:
            raise ValueError(
                f"{self._name} ended before {self._name}[{i}], after {examples} examples, expected "
                f"{self.examples} for steps_per_epoch={self._steps}"
            )

    def _checked(self, name: str, block: Any, copy: bool) -> Data | None:
        """Return a block as the engine takes it, or None for one without examples."""
        if not isinstance(block, tuple | list) or not 2 <= len(block) <= 3:
            raise TypeError(f"{name} is {shown(block)}, expected (x, y) or (x, y, weight)")
        labels = f"{name}.x", f"{name}.y", f"{name}.weight"
        given = [
            None if part is None else as_numpy(label, plain(label, part))
            for label, part in zip(labels, block, strict=False)
        ]
        given += [None] * (3 - len(given))
        if given[0] is not None and given[0].shape[:1] == (0,):
            for label, part in zip(labels[1:], given[1:], strict=True):
                if part is not None and part.shape[:1] != (0,):
                    raise ValueError(
                        f"{label} has shape {part.shape}, expected no example: {labels[0]} has none"
                    )
            return None
        form = [None if part is None else (part.dtype, part.shape[1:]) for part in given]
        first, self._form = self._form or form, self._form or form
        for label, own, expected in zip(labels, form, first, strict=True):
            if own != expected:
                raise ValueError(
                    f"{label} {_as_text(own)}, expected what the first block has: {_as_text(expected)}"
                )
        data = self._check(given[0], given[1], given[2], labels)
        if not copy:
            return data
        # The next block may be written into the same memory before this one has been trained on.
        shared = [a is not None and np.may_share_memory(a, own) for a, own in zip(data, given, strict=True)]
        return Data(*(a.copy() if same else a for a, same in zip(data, shared, strict=True)))


def _whole_batches(
    blocks: Iterator[Data], size: int, remaining: int | None, drop_last: bool = False
) -> Generator[Data]:
    """Yield pieces of whole batches, and the examples that are left; of ``remaining`` examples at most."""
    held: list[Data] = []
    for block in blocks:
        count = len(block.x)
        if remaining is not None:
            block = block.cut(remaining)[0] if count > remaining else block
            remaining -= len(block.x)
        short = -sum(len(data.x) for data in held) % size
        if short:
            head, block = block.cut(min(short, len(block.x)))
            held.append(head)
            if len(head.x) == short:
                yield _joined(held)
                held = []
        whole, rest = block.cut(len(block.x) - len(block.x) % size)
        if len(whole.x):
            yield whole
        if len(rest.x):
            held.append(rest)
        if remaining == 0:
            break
    if held and not drop_last:
        yield _joined(held)


def _after(
    pieces: Iterator[tuple[Data, int]], skip: int, name: str = "x", cuts: int = 0
) -> Generator[tuple[Data, int]]:
    """Yield what is left after ``skip`` examples of pieces, whose blocks have to be cut as before."""
    for piece, own in pieces:
        if skip:
            left = skip - len(piece.x)
            if left <= 0 and own != cuts:
                raise ValueError(
                    f"{name} gives blocks of other lengths than when the checkpoint was saved, expected the "
                    "same: the order of shuffled examples depends on them"
                )
            piece, skip = piece.cut(skip)[1], max(left, 0)
        if len(piece.x):
            yield piece, own
    if skip:
        raise ValueError(f"{name} ended {skip} examples before where the checkpoint was saved")


Source: TypeAlias = Arrays | Blocks


def check_shuffle(shuffle: Any, source: Source) -> bool | int:
    """Return how examples are ordered; where they do not fit in memory, it may be by a buffer of a size."""
    if type(source) is not Arrays and is_integer(shuffle) and shuffle > 1:
        return check_count("shuffle", shuffle)
    return check_flag("shuffle", shuffle)


def _as_text(form: tuple[np.dtype[Any], tuple[int, ...]] | None) -> str:
    return "is missing" if form is None else f"has dtype {form[0]} and examples of shape {form[1]}"


def _joined(parts: Sequence[Data]) -> Data:
    if len(parts) == 1:
        return parts[0]
    return Data(
        *(None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    )


def _taken(data: Data, rows: Array) -> Data:
    return Data(*(None if a is None else a.take(rows, axis=0) for a in data))


class _Mixing(NamedTuple):
    """How examples are brought into a new order: within each block (True), or by a buffer of so many.

    Examples leave a full buffer for newer ones, drawn at random, a quarter of it at once at most.
    """

    seed: int
    buffer: bool | int
    examples: int | None  # of the epoch, if that is known

    def mixed(self, blocks: Iterator[Data]) -> Generator[Data]:
        """Yield the examples of the blocks in the new order."""
        rng, size = np.random.default_rng(self.seed), self.buffer
        if size is True:
            for block in blocks:
                yield _taken(block, rng.permutation(len(block.x)))
            return
        held, filled = None, 0
        for block in blocks:
            count = len(block.x)
            if held is None:
                held = Data(*(None if a is None else np.empty((size, *a.shape[1:]), a.dtype) for a in block))
            begin = min(count, size - filled)
            _put(held, slice(filled, filled + begin), block, slice(begin))
            filled += begin
            step = max(1, size // 4)
            for first in range(begin, count, step):
                new = slice(first, min(first + step, count))
                where = rng.choice(size, new.stop - new.start, replace=False)
                out = _taken(held, where)
                _put(held, where, block, new)
                yield out
        if held is not None:
            order = rng.permutation(filled)
            for first in range(0, filled, _ROWS):
                yield _taken(held, order[first : first + _ROWS])


def _put(to: Data, where: Any, data: Data, which: slice) -> None:
    for array, new in zip(to, data, strict=True):
        if array is not None:
            array[where] = new[which]
