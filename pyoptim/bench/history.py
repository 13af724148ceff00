"""``pyoptim bench compare BEFORE.json AFTER.json``: what became slower between two files of ``--json``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

Row = Mapping[str, Any]

# Where these differ, the files are of two machines.
_SAME = ("cpu", "processors", "instruction_set", "threads", "backend", "gpu")
_EXPLANATION = """
now/before: the median time of pyoptim in the second file over that in the first, below 1 where it is faster.
others: the same of the other libraries in that row, which tells a slower machine from slower code. A row
counts as slower (or faster) where it is so by more than {percent:g}%, by itself and against the others, with
quartiles that do not overlap, and where nothing else disturbed it.
"""


class Change(NamedTuple):
    """A row that both files have."""

    label: str
    seconds: tuple[float, float]  # the medians, before and now
    ratio: float  # of the second to the first
    others: float  # the same of other libraries, the median; 1 if there are none in both
    apart: bool  # whether the quartiles do not overlap
    disturbed: bool

    def verdict(self, limit: float) -> str:
        """Return "slower", "faster" or "" for a change of less than the limit, or one that may be chance."""
        if self.disturbed or not self.apart:
            return ""
        if min(self.ratio, self.ratio / self.others) > 1 + limit:
            return "slower"
        return "faster" if max(self.ratio, self.ratio / self.others) < 1 / (1 + limit) else ""


def main(argv: Sequence[str]) -> int:
    """Compare two files; returns the exit status.

    Returns
    -------
    int
        0; 1 with ``--strict`` if a row is slower; 2 if the files cannot be compared.
    """
    arguments = _parser().parse_args(argv)
    try:
        before, now = _read(arguments.before), _read(arguments.now)
        changes = compare(before["rows"], now["rows"])
        if not changes:
            raise ValueError("the files have no row in common")
    except (OSError, ValueError) as error:
        print(f"pyoptim bench compare: {error}", file=sys.stderr)
        return 2
    limit = arguments.limit / 100
    print(_EXPLANATION.format(percent=arguments.limit))
    for name in _SAME:
        ours, theirs = before["machine"].get(name), now["machine"].get(name)
        if ours != theirs:
            print(f"The files differ in {name.replace('_', ' ')}: {ours} before, {theirs} now.")
    shown = changes if arguments.all else [c for c in changes if c.verdict(limit)]
    for change in sorted(shown, key=lambda c: -c.ratio):
        _print(change, limit)
    counts = {word: sum(c.verdict(limit) == word for c in changes) for word in ("slower", "faster")}
    disturbed = sum(c.disturbed for c in changes)
    mean = math.exp(sum(math.log(c.ratio) for c in changes) / len(changes))
    print(
        f"{len(changes)} rows: {counts['slower']} slower, {counts['faster']} faster, {disturbed} disturbed; "
        f"geometric mean of now/before {mean:.3f}"
    )
    return int(arguments.strict and counts["slower"] > 0)


def compare(before: Sequence[Row], now: Sequence[Row]) -> list[Change]:
    """The rows that both have, in the order of the second."""
    known = {_label(row): row for row in before}
    return [_change(known[label], row) for row in now if (label := _label(row)) in known]


def _change(before: Row, now: Row) -> Change:
    times = before["seconds"]["pyoptim"], now["seconds"]["pyoptim"]
    peers = (before["seconds"].keys() & now["seconds"].keys()) - {"pyoptim"}
    ratios = [now["seconds"][peer] / before["seconds"][peer] for peer in peers]
    first, second = (
        row["quartiles"].get("pyoptim") or [row["seconds"]["pyoptim"]] * 2 for row in (before, now)
    )
    return Change(
        _label(now),
        times,
        times[1] / times[0],
        median(ratios) if ratios else 1.0,
        first[1] < second[0] or second[1] < first[0],
        bool(before["disturbed"] or now["disturbed"]),
    )


def _label(row: Row) -> str:
    """What tells a row from all others of its file."""
    words = [row["name"], f"{row['size']:,}", row["dtype"], f"{row['threads']} thr", row["load"]]
    return ", ".join(words + ([f"{row['parts']} parts"] if row["parts"] else []))


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text())
        rows, machine = found["rows"], found["machine"]
        if not (isinstance(machine, dict) and all(row["seconds"]["pyoptim"] > 0 for row in rows)):
            raise ValueError("a row without a time")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of `pyoptim bench --json`: {error}") from None
    return {"rows": rows, "machine": machine}


def _print(change: Change, limit: float) -> None:
    before, now = (f"{seconds * 1e6:,.2f}" for seconds in change.seconds)
    words = change.verdict(limit) or ("disturbed" if change.disturbed else "")
    times = f"{before:>12} -> {now:>12} us"
    print(f"{change.label:<48} {times}  {change.ratio:6.3f}  others {change.others:6.3f}  {words}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pyoptim bench compare", description="What became slower or faster between two files of --json."
    )
    parser.add_argument("before", metavar="BEFORE.json")
    parser.add_argument("now", metavar="AFTER.json")
    parser.add_argument(
        "--limit", type=float, default=5.0, metavar="PERCENT", help="less is no change; default: 5"
    )
    parser.add_argument("--all", action="store_true", help="also rows that have not changed")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a row is slower")
    return parser
