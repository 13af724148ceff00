"""A table, a JSON file and a plot of what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..runtime.figures import new_figure
from .case import Row, Target

_COLUMNS = {
    "n": 12, "pyoptim": 11, "numpy": 11, "torch fused": 12, "torch": 11,
    "x numpy": 9, "x torch": 9, "x jax": 9, "G/s": 8, "ceiling": 9,
}  # fmt: skip
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


def draw(path: str, rows: Sequence[Row]) -> None:
    """Draw time over size, in a panel for each name."""
    names = list(dict.fromkeys(row.name for row in rows))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = new_figure(4 * columns, 3 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        chosen = sorted((row for row in rows if row.name == name), key=lambda row: row.size)
        for competitor in chosen[0].seconds:
            axes.loglog(
                [row.size for row in chosen],
                [row.seconds[competitor] for row in chosen],
                marker="o",
                markersize=3,
                label=competitor,
            )
        axes.set(title=name, xlabel="elements, or batch", ylabel="seconds a run")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=120)
