"""A table, a JSON file and a plot of what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..runtime.figures import log_axis, new_figure, saved, style
from .case import Row, Target

_COLUMNS = {
    "n": 12, "pyoptim": 11, "numpy": 11, "torch fused": 12, "torch": 11,
    "x numpy": 9, "x torch": 9, "x jax": 9, "G/s": 8, "ceiling": 9,
}  # fmt: skip
_MOST_BARS = 45  # in a column
_EXPLANATION = """
Microseconds of one run, or of an epoch of 60,000: medians, all in turn. n: elements; of layers and epochs,
the batch. torch: the fastest way but fused. x: times as fast as numpy, the fastest of torch, and JAX. G/s:
by pyoptim, the gigabytes that the work must read and write, of dense layers and epochs the GFLOP; ceiling:
that as a share of plain streaming, where the data is beyond the caches, of GFLOP as a share of multiply-adds
in registers. What follows a row in brackets ran meanwhile and disturbed it.
"""
_SWEEP_EXPLANATION = """
Microseconds of one run of pyoptim, the median and the quartiles of blocks in turn; how many times as fast it
is as each of the others, and the share of the peak that it reaches. What follows in brackets ran meanwhile
and disturbed the row.
"""


def print_header(machine: Mapping[str, Any], dtype: str, sweeps: Sequence[str]) -> None:
    """Print the machine and what the columns mean; sweeps: what each part measures, or "" if it is none."""
    shown = {**machine, "last_level_cache": f"{machine['last_level_cache'] >> 20} MiB", "dtype": dtype}
    for name, value in shown.items():
        print(f"{name.replace('_', ' '):<18}{'not used' if value is None else value}")
    if any(sweeps):
        print(_SWEEP_EXPLANATION + "".join(f"\nMeasured: {text}" for text in sweeps if text), flush=True)
    if all(sweeps):
        return
    print(_EXPLANATION)
    print(" " * 25 + "".join(f"{name:>{width}}" for name, width in _COLUMNS.items()), flush=True)


def print_row(row: Row) -> None:
    default = [t for name, t in row.seconds.items() if name.startswith("torch") and name != "torch fused"]
    times = [row.seconds["pyoptim"], row.seconds.get("numpy"), row.seconds.get("torch fused")]
    microseconds = [None if t is None else t * 1e6 for t in (*times, min(default, default=None))]
    ratios = [row.faster_than("numpy"), row.faster_than("torch"), row.faster_than("jax")]
    cells = [f"{row.size:,}", *map(_number, [*microseconds, *ratios, row.rate / 1e9])]
    cells.append("-" if row.of_ceiling is None else f"{row.of_ceiling:.0%}")
    widths = _COLUMNS.values()
    line = f"{row.name:<25}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
    print(line + _disturbance(row), flush=True)


def _disturbance(row: Row) -> str:
    return f"  [{row.disturbed}]" if row.disturbed else ""


def print_line(row: Row) -> None:
    """Print a row of a sweep, whose competitors differ from case to case."""
    first, third = (q * 1e6 for q in row.quartiles["pyoptim"])
    what = f"{row.name}, {row.size:,}" if row.size else row.name
    line = f"{what:<40} {row.dtype} {row.threads} thr {row.load:<8}"
    line += f" {row.seconds['pyoptim'] * 1e6:>11,.1f} ({first:,.1f}-{third:,.1f})"
    for who, seconds in row.seconds.items():
        if who != "pyoptim":
            line += f"  {seconds / row.seconds['pyoptim']:.2f} x {who}"
    if row.of_ceiling is not None:
        line += f"  {row.of_ceiling:.0%} of peak"
    if row.parts:
        line += f"  {row.parts} {'part' if row.parts == 1 else 'parts'} in force"
    print(line + _disturbance(row), flush=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.{2 if value < 100 else 0}f}"


def ceilings(rows: Iterable[Row]) -> dict[str, float]:
    """The speed of each ceiling, in bytes or operations per second: the median over the rows."""
    measured: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.ceiling.items():
            measured.setdefault(name, []).append(value)
    return {name: median(values) for name, values in measured.items()}


def judge(rows: Sequence[Row], targets: Iterable[Target]) -> list[dict[str, Any]]:
    """The targets that concern a row, with the worst value of each."""
    verdicts = []
    for text, bound, value, of in targets:
        values = [v for v in map(value, rows) if v is not None]
        if values:
            worst = of(values)
            verdict = {"text": text, "bound": bound, "value": worst, "passed": worst >= bound}
            verdicts.append({**verdict, "missed": sum(v < bound for v in values), "rows": len(values)})
    return verdicts


def print_footer(
    rows: Sequence[Row], verdicts: Sequence[Mapping[str, Any]], conclusions: Sequence[str] = ()
) -> None:
    if conclusions:
        print("\n" + "\n".join(conclusions))
    if found := ceilings(rows):
        print("\nThe ceiling of a row is the fastest of these, measured in turn with it (G/s, all rows):")
        print("  " + ", ".join(f"{name} {value / 1e9:.1f}" for name, value in found.items()))
    if disturbed := sum(row.disturbed != "" for row in rows):
        print(f"\nThe machine was busy with something else during {disturbed} of {len(rows)} rows.")
    if verdicts:
        print("\nTargets, of speed: the worst row")
    for v in verdicts:
        passed = "pass" if v["passed"] else "FAIL"
        print(f"  {passed}  {v['value']:6.2f} >= {v['bound']:<5.3g} {v['text']}{_missed(v)}")


def _missed(verdict: Mapping[str, Any]) -> str:
    return "" if verdict["passed"] else f" (missed in {verdict['missed']} of {verdict['rows']} rows)"


def write_json(
    path: str, machine: Mapping[str, Any], rows: Sequence[Row], verdicts: Any, conclusions: Sequence[str] = ()
) -> None:
    """Write all rows; times and quartiles in seconds, rates in bytes (of flops: operations) per second."""
    derived = [{**row._asdict(), "bandwidth": row.bandwidth, "of_ceiling": row.of_ceiling} for row in rows]
    report = {"machine": machine, "ceiling": ceilings(rows), "rows": derived, "targets": verdicts}
    if conclusions:
        report["conclusions"] = conclusions
    Path(path).write_text(json.dumps(report, indent=1) + "\n")


def draw(path: str | Path | None, rows: Sequence[Row]) -> Any:
    """Draw a bar for each row: how many times as fast as its fastest competitor; returns the figure.

    Bars begin at 1 and go to the left where the competitor is faster. A black mark is as fast as the machine
    can be, of rows that have a ceiling.
    """
    columns = -(-len(rows) // _MOST_BARS)
    length = -(-len(rows) // columns)
    figure = new_figure(6.5 * columns, 1.6 + 0.19 * length)
    axes = figure.subplots(1, columns, squeeze=False, sharex=True)[0]
    best = [_fastest_peer(row) for row in rows]
    peers = list(dict.fromkeys(peer for peer, _ in best if peer))
    for k, panel in enumerate(axes):
        part = slice(k * length, (k + 1) * length)
        _draw_bars(panel, list(zip(_labels(rows)[part], rows[part], best[part], strict=True)), peers)
    ends = [ratio for _, ratio in best]
    ends += [ratio / row.of_ceiling for row, (_, ratio) in zip(rows, best, strict=True) if row.of_ceiling]
    for panel in axes:
        log_axis(panel, 0.9 * min(1, *ends), 1.7 * max(1.5, *ends), "x")
    known = [*{row.dtype for row in rows}, *{f"{row.threads} threads" for row in rows}]
    where = f" ({', '.join(known)})" if len(known) == 2 else ""
    figure.suptitle(f"times as fast as the fastest other library{where}", fontsize=12)
    handles: dict[str, Any] = {}
    for panel in axes:
        found, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    return saved(figure, path)


def _fastest_peer(row: Row) -> tuple[str, float]:
    """Return the competitor that is the fastest and how many times its seconds are ours; "" without one."""
    peers = {name: seconds for name, seconds in row.seconds.items() if name != "pyoptim"}
    name = min(peers, key=peers.__getitem__, default="")
    return name, peers[name] / row.seconds["pyoptim"] if name else 1.0


def _labels(rows: Sequence[Row]) -> list[str]:
    """Name each row; its type, threads and load where they are not those of all."""
    labels = [f"{row.name}, {row.size:,}" if row.size else row.name for row in rows]
    for values in (
        [row.dtype for row in rows],
        [f"{row.threads} thr" for row in rows],
        [row.load for row in rows],
        [f"{row.parts} parts" for row in rows],
    ):
        if len(set(values)) > 1:
            labels = [f"{label}, {value}" for label, value in zip(labels, values, strict=True)]
    return labels


def _draw_bars(axes: Any, rows: Sequence[tuple[str, Row, tuple[str, float]]], peers: Sequence[str]) -> None:
    axes.axvline(1, color="black", linewidth=0.8)
    for place, (_, row, (peer, ratio)) in enumerate(rows):
        if peer:
            axes.barh(
                place,
                ratio - 1,
                0.7,
                left=1,
                label=f"against {peer}",
                color=style(peers.index(peer))["color"],
            )
        words = (
            f"{ratio:.2g} x" if peer else f"{row.seconds['pyoptim'] * 1e6:,.4g} µs, nothing to compare with"
        )
        at = max(ratio, 1)
        if row.of_ceiling:
            ceiling = ratio / row.of_ceiling
            at = max(at, ceiling) if ceiling < 1.6 * at else at
            axes.plot(
                ceiling,
                place,
                "|",
                color="black",
                markersize=9,
                markeredgewidth=2,
                label="the machine's ceiling",
            )
        axes.annotate(words, (at, place), (5, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis="x")
