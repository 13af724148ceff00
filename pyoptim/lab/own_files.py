"""``pyoptim train | predict | evaluate`` on files of one's own."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import datasets, nn
from ..nn.checkpoint import load_described, save_model
from ..runtime.dtypes import Array
from ..runtime.files import check_target, write_atomically
from .tables import FILES, Encoding, Table, guessed, is_table, learned, read

_HELD = 0.2  # of the rows, if nobody says
_STEPS = 5000  # of a training whose epochs nobody chose, about


class Problem(NamedTuple):
    """What a network is trained on, and what is held out of its training, if anything is."""

    x: Array
    y: Array
    held: tuple[Array, Array] | None
    name: str
    encoding: Encoding | None  # of one's own file

    @property
    def loss(self) -> nn.Loss:
        return nn.CrossEntropy() if self.encoding is None or self.encoding.classes else nn.MSE()

    @property
    def outputs(self) -> int:
        return int(self.y.max()) + 1 if self.encoding is None else len(self.encoding.classes) or 1

    @property
    def words(self) -> str:
        """What the examples are called that the trained model is measured on."""
        return "training" if self.held is None else "test" if self.encoding is None else "held-out"

    def counts(self) -> str:
        held = "" if self.held is None else f" and {len(self.held[0]):,} {self.words}"
        return f"{len(self.x):,} training{held} examples"

    def epochs(self, batch_size: int | None) -> int:
        """How many there are if nobody says: of one's own file those of some thousand steps."""
        if self.encoding is None:
            return 40 if self.name == "digits" else 10
        steps = -(-len(self.x) // (batch_size or len(self.x)))
        return min(200, max(10, -(-_STEPS // steps)))

    def quality(self, model: nn.Sequential, measured: dict[str, float]) -> str:
        """How good a model is, in the words that suit the target."""
        if self.encoding is None:
            return f"accuracy {measured['accuracy']:.2%}, {self.words} loss {measured['loss']:.4f}"
        return _quality(self.encoding, model, *(self.held or (self.x, self.y)))

    def save(self, model: nn.Sequential, path: Path) -> None:
        if self.encoding is None:
            model.save(path)
        else:
            save_model(model, path, encoding=self.encoding.described())


def problem_of(options: argparse.Namespace) -> Problem:
    """Load the data set, or read and encode the file, that a training is given."""
    if is_table(options.dataset):
        return _own(options)
    for name in ("target", "task", "categories", "drop", "holdout"):
        if (value := getattr(options, name)) is not None:
            raise ValueError(f"--{name} is {value!r}, but {options.dataset!r} is no file of {FILES}")
    data = datasets.load(options.dataset, flatten=True, normalize=True)
    return Problem(data.x_train, data.y_train, (data.x_test, data.y_test), options.dataset, None)


def _own(options: argparse.Namespace) -> Problem:
    """Read and encode a file, and say what was made of it."""
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
    (x, notes), y = encoding.inputs(table), encoding.targets(table)
    _say(notes)
    kind = f"{len(encoding.classes)} classes" if encoding.classes else "numbers"
    other = "numbers" if encoding.classes else "classes"
    print(
        f"{table.path}: {table.rows:,} rows, {len(encoding.columns)} columns as {x.shape[1]} inputs; target "
        f"{target!r} holds {kind}: {why}{'' if options.task else f' (else: --task {other})'}"
    )
    if count:
        print(f"{count:,} rows drawn at random ({share:.0%}) are held out for validation")
    held_out = (x[held], y[held]) if count else None
    return Problem(x[rows], y[rows], held_out, options.dataset, encoding)


def predict(options: argparse.Namespace) -> int:
    """Write a model's predictions for the rows of a file; returns the exit status."""
    if options.output:
        check_target("--output", options.output)
        if any(
            Path(options.output).resolve() == Path(each).resolve() for each in (options.data, options.model)
        ):
            raise ValueError(f"--output is {options.output!r}, which is read too")
    model, encoding, table = _given(options)
    x, notes = encoding.inputs(table)
    _say(notes)
    outputs = model.forward(x)
    if encoding.classes:
        head, rows = _classes(encoding, outputs, options.probabilities)
    else:
        if options.probabilities:
            raise ValueError(f"--probabilities needs a model of classes, {options.model} predicts numbers")
        head, rows = [encoding.target], [[f"{value:.9g}"] for value in encoding.numbers(outputs)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    if options.output:
        write_atomically(options.output, text.getvalue().encode())
        print(f"{len(rows):,} predictions written to {options.output}")
    else:
        print(text.getvalue(), end="")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print how good a model is on a file that holds the target too; returns the exit status."""
    model, encoding, table = _given(options)
    y = encoding.targets(table)
    x, notes = encoding.inputs(table)
    _say(notes)
    print(f"{table.path}: {table.rows:,} rows, {_quality(encoding, model, x, y)}")
    return 0


def _given(options: argparse.Namespace) -> tuple[nn.Sequential, Encoding, Table]:
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
    return model, encoding, read(options.data, [column.name for column in encoding.columns])


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


def _quality(encoding: Encoding, model: nn.Sequential, x: Array, y: Array) -> str:
    outputs = model.forward(x)
    if encoding.classes:
        loss = nn.CrossEntropy()(outputs, y)[0]
        right = float((outputs.argmax(axis=1) == y).mean())
        usual = np.bincount(y).max() / len(y)
        return f"accuracy {right:.2%} (the most frequent class alone: {usual:.2%}), loss {loss:.4f}"
    wrong = encoding.numbers(outputs) - encoding.numbers(y)
    error, spread = np.sqrt((wrong**2).mean()), encoding.numbers(y).std()
    share = f"{1 - (error / spread) ** 2:.4f}" if spread > 0 else "not defined for a constant target"
    return (
        f"R² {share}, root mean squared error {error:.6g} (of their mean alone: {spread:.6g}), mean absolute "
        f"error {np.abs(wrong).mean():.6g}"
    )


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _say(notes: list[str]) -> None:
    for note in notes:
        print(f"pyoptim: {note}", file=sys.stderr)
