"""``pyoptim train | predict | evaluate`` on files of one's own."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import datasets, nn
from ..nn.checkpoint import load_described, save_model
from ..runtime.dtypes import Array
from ..runtime.files import check_target, write_parts_atomically
from . import parts
from .tables import FILES, Encoding, Notes, Table, guessed, is_table, learned, read

_HELD = 0.2  # of the rows, if nobody says
_STEPS = 5000  # of a training whose epochs nobody chose, about
_MEMORY = 1024  # MB that a file takes that is read whole, at most
_MIXED = 100_000  # examples in the buffer that brings those of a larger file into a new order, at most
_BYTES = 1 << 26  # of that buffer, or of examples held out of such a file that stay in memory, about


class Problem(NamedTuple):
    """What a network is trained on, and what is held out of its training, if anything is.

    Both are arrays x and y; or a function that returns blocks, alone, where a file is too large.
    """

    given: tuple[Any, ...]
    held: tuple[Any, ...] | None
    name: str
    encoding: Encoding | None  # of one's own file
    inputs: int
    rows: int  # to train on
    held_rows: int = 0

    @property
    def loss(self) -> nn.Loss:
        return nn.CrossEntropy() if self.encoding is None or self.encoding.classes else nn.MSE()

    @property
    def outputs(self) -> int:
        return int(self.given[1].max()) + 1 if self.encoding is None else len(self.encoding.classes) or 1

    @property
    def is_streamed(self) -> bool:
        return len(self.given) == 1

    @property
    def shuffle(self) -> bool | int:
        """How `Trainer.fit` brings the examples into a new order."""
        return min(_MIXED, max(1000, _BYTES // (4 * self.inputs))) if self.is_streamed else True

    @property
    def validation(self) -> Any:
        """What is held out as `Trainer.fit` takes it."""
        return self.held if self.held is None or len(self.held) == 2 else self.held[0]

    @property
    def words(self) -> str:
        """What the examples are called that the trained model is measured on."""
        return "training" if self.held is None else "test" if self.encoding is None else "held-out"

    def counts(self) -> str:
        held = "" if self.held is None else f" and {self.held_rows:,} {self.words}"
        return f"{self.rows:,} training{held} examples"

    def epochs(self, batch_size: int | None) -> int:
        """How many there are if nobody says: of one's own file those of some thousand steps."""
        if self.encoding is None:
            return 40 if self.name == "digits" else 10
        steps = -(-self.rows // (batch_size or self.rows))
        return min(200, max(10, -(-_STEPS // steps)))

    def quality(self, model: nn.Sequential, measured: dict[str, float]) -> str:
        """How good a model is, in the words that suit the target."""
        if self.encoding is None:
            return f"accuracy {measured['accuracy']:.2%}, {self.words} loss {measured['loss']:.4f}"
        given = self.held or self.given
        return _quality(self.encoding, model, given[0]() if len(given) == 1 else [given])

    def save(self, model: nn.Sequential, path: Path) -> None:
        if self.encoding is None:
            model.save(path)
        else:
            save_model(model, path, encoding=self.encoding.described())


def problem_of(options: argparse.Namespace) -> Problem:
    """Load the data set, or read and encode the file, that a training is given."""
    if is_table(options.dataset):
        return _own(options)
    for name in ("target", "task", "categories", "drop", "holdout", "memory"):
        if (value := getattr(options, name)) is not None:
            raise ValueError(f"--{name} is {value!r}, but {options.dataset!r} is no file of {FILES}")
    data = datasets.load(options.dataset, flatten=True, normalize=True)
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    inputs, rows = data.x_train.shape[1], len(data.x_train)
    return Problem(train, test, options.dataset, None, inputs, rows, len(data.x_test))


def _own(options: argparse.Namespace) -> Problem:
    """Read and encode a file, and say what was made of it."""
    if _is_large(options.dataset, options.memory):
        return _streamed(options)
    table = read(options.dataset)
    target = options.target
    if target is None and Path(table.path).suffix.lower() not in (".csv", ".tsv", ".parquet"):
        target = "y"
    if target is None:
        raise ValueError(f"{table.path} needs --target, one of its columns: {', '.join(table.columns)}")
    task, why = (options.task, "as --task says") if options.task else guessed(table, target)
    order = np.random.default_rng(options.seed).permutation(table.rows)
    share = _HELD if options.holdout is None else options.holdout
    count = max(1, round(share * table.rows)) if share else 0
    held, rows = np.sort(order[:count]), np.sort(order[count:])
    if len(rows) < 2:
        raise ValueError(
            f"{table.path} has {table.rows} rows, of which {len(rows)} are left to be trained on"
        )
    encoding = learned(table, target, rows, task, _names(options.categories), _names(options.drop))
    notes = Notes()
    x, y = encoding.inputs(table, notes), encoding.targets(table)
    _say(notes, table.path)
    print(_made(options, encoding, table.rows, why))
    if count:
        print(f"{count:,} rows drawn at random ({share:.0%}) are held out for validation")
    held_out = (x[held], y[held]) if count else None
    given = x[rows], y[rows]
    return Problem(given, held_out, options.dataset, encoding, x.shape[1], len(rows), count)


def _is_large(path: str, memory: int | None) -> bool:
    return parts.size_of(path) > (_MEMORY if memory is None else memory) * 1_000_000


def _made(options: argparse.Namespace, encoding: Encoding, rows: int, why: str) -> str:
    """What was made of a file, in words."""
    kind = f"{len(encoding.classes)} classes" if encoding.classes else "numbers"
    other = "numbers" if encoding.classes else "classes"
    return (
        f"{options.dataset}: {rows:,} rows, {len(encoding.columns)} columns as {encoding.width} inputs; "
        f"target {encoding.target!r} holds {kind}: {why}"
        f"{'' if options.task else f' (else: --task {other})'}"
    )


def _streamed(options: argparse.Namespace) -> Problem:
    """Learn the encoding of a file that is read in parts, anew in each epoch, and say what was made of it."""
    file = parts.Parts(options.dataset)
    if options.target is None:
        names = ", ".join(next(iter(file)).columns)
        raise ValueError(f"{options.dataset} needs --target, one of its columns: {names}")
    share = _HELD if options.holdout is None else options.holdout
    chosen = parts.Chosen(
        options.target, options.task, _names(options.categories), _names(options.drop), share, options.seed
    )
    made = parts.learned(file, chosen)
    inputs = made.encoding.width
    _say(made.notes, options.dataset)
    print(_made(options, made.encoding, made.rows + made.held, made.why))
    print("it is read in parts, anew in each epoch, since it takes more memory than --memory says")
    held_out: tuple[Any, ...] | None = None
    if made.held:
        print(f"{made.held:,} rows drawn at random ({share:.0%}) are held out for validation")
        held_out = (partial(made.blocks, True),)
        if 4 * inputs * made.held <= _BYTES:  # so the file is read once an epoch
            held_out = tuple(np.concatenate(arrays) for arrays in zip(*made.blocks(True), strict=True))
    given = (partial(made.blocks, False),)
    return Problem(given, held_out, options.dataset, made.encoding, inputs, made.rows, made.held)


def predict(options: argparse.Namespace) -> int:
    """Write a model's predictions for the rows of a file; returns the exit status."""
    if options.output:
        check_target("--output", options.output)
        if any(
            Path(options.output).resolve() == Path(each).resolve() for each in (options.data, options.model)
        ):
            raise ValueError(f"--output is {options.output!r}, which is read too")
    model, encoding, tables = _given(options)
    if options.probabilities and not encoding.classes:
        raise ValueError(f"--probabilities needs a model of classes, {options.model} predicts numbers")
    written = _predicted(model, encoding, tables, options)
    if options.output:
        count = 0

        def counted() -> Iterator[bytes]:
            nonlocal count
            for text, rows in written:
                count += rows
                yield text.encode()

        write_parts_atomically(options.output, counted())
        print(f"{count:,} predictions written to {options.output}")
    else:
        for text, _ in written:
            print(text, end="")
    return 0


def _predicted(
    model: nn.Sequential, encoding: Encoding, tables: Iterable[Table], options: argparse.Namespace
) -> Iterator[tuple[str, int]]:
    """Yield the predictions for each table as text of CSV, and how many they are; then say the notes."""
    notes, first = Notes(), True
    for table in tables:
        outputs = model.forward(encoding.inputs(table, notes))
        if encoding.classes:
            head, rows = _classes(encoding, outputs, options.probabilities)
        else:
            head, rows = [encoding.target], [[f"{value:.9g}"] for value in encoding.numbers(outputs)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *rows] if first else rows)
        first = False
        yield text.getvalue(), len(rows)
    _say(notes, options.data)


def evaluate(options: argparse.Namespace) -> int:
    """Print how good a model is on a file that holds the target too; returns the exit status."""
    model, encoding, tables = _given(options)
    notes, rows = Notes(), 0

    def examples() -> Iterator[tuple[Array, Array]]:
        nonlocal rows
        for table in tables:
            rows += table.rows
            y = encoding.targets(table)
            yield encoding.inputs(table, notes), y

    quality = _quality(encoding, model, examples())
    _say(notes, options.data)
    print(f"{options.data}: {rows:,} rows, {quality}")
    return 0


def _given(options: argparse.Namespace) -> tuple[nn.Sequential, Encoding, Iterable[Table]]:
    """Read a model with its encoding, and the file: whole, or the parts of a large one."""
    model, described = load_described(nn.Sequential, options.model)
    if "encoding" not in described:
        raise ValueError(
            f"{options.model} does not say how columns become its inputs: expected a model that 'pyoptim "
            "train FILE' saved"
        )
    try:
        encoding = Encoding.from_described(described["encoding"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{options.model} has an encoding that cannot be read: {error}") from error
    if _is_large(options.data, options.memory):
        return model, encoding, parts.Parts(options.data)
    return model, encoding, [read(options.data, [column.name for column in encoding.columns])]


def _classes(encoding: Encoding, outputs: Array, every: bool) -> tuple[list[str], list[Any]]:
    """Head and rows of a table of classes, with the probability of the likeliest or of every one."""
    shifted = outputs.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    best = shares.argmax(axis=1)
    shown = shares if every else shares.max(axis=1, keepdims=True)
    head = [f"probability of {name}" for name in encoding.classes] if every else ["probability"]
    rows = [[encoding.classes[i], *(f"{p:.6g}" for p in row)] for i, row in zip(best, shown, strict=True)]
    return [encoding.target, *head], rows


def _quality(encoding: Encoding, model: nn.Sequential, examples: Iterable[tuple[Array, Array]]) -> str:
    """How good a model is on examples that come in one or more parts."""
    if not encoding.classes:
        return _errors(encoding, model, examples)
    rows, loss, right = 0, 0.0, 0
    counts = np.zeros(len(encoding.classes), int)
    for x, y in examples:
        outputs = model.forward(x)
        rows += len(y)
        loss += float(nn.CrossEntropy()(outputs, y)[0]) * len(y)
        right += int((outputs.argmax(axis=1) == y).sum())
        counts += np.bincount(y, minlength=len(counts))
    usual = counts.max() / rows
    return f"accuracy {right / rows:.2%} (the most frequent class alone: {usual:.2%}), loss {loss / rows:.4f}"


def _errors(encoding: Encoding, model: nn.Sequential, examples: Iterable[tuple[Array, Array]]) -> str:
    target, squares, amounts = parts.Moments(), 0.0, 0.0
    for x, y in examples:
        expected = encoding.numbers(y)
        wrong = encoding.numbers(model.forward(x)) - expected
        squares, amounts = squares + float((wrong**2).sum()), amounts + float(np.abs(wrong).sum())
        target.add(len(y), float(expected.mean()), float(expected.var()) * len(y))
    error, spread = np.sqrt(squares / target.count), np.sqrt(target.square / target.count)
    share = f"{1 - (error / spread) ** 2:.4f}" if spread > 0 else "not defined for a constant target"
    return (
        f"R² {share}, root mean squared error {error:.6g} (of their mean alone: {spread:.6g}), mean absolute "
        f"error {amounts / target.count:.6g}"
    )


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _say(notes: Notes, path: str) -> None:
    for note in notes.lines(path):
        print(f"pyoptim: {note}", file=sys.stderr)
