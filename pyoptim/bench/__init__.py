"""``pyoptim bench``: every kernel, and training, against NumPy, PyTorch and JAX, checked before it is timed.

To add cases: a module with a `Family`, and its line in `FAMILIES`.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Collection, Sequence

from ..runtime import dispatch, threads
from ..runtime.figures import check_image
from . import activations, layers, libraries, machine, norms, optimizers, report, training
from .case import Case, Mismatch, Options, Row
from .timing import FULL, QUICK, Effort, in_turn, nothing

FAMILIES = {
    "optimizers": optimizers.FAMILY,
    **layers.FAMILIES,
    "norm": norms.FAMILY,
    "activations": activations.FAMILY,
    "training": training.FAMILY,
}

GPU_FAMILIES = {
    "optimizers": optimizers.GPU_FAMILY,
    "norm": norms.GPU_FAMILY,
    "training": training.GPU_FAMILY,
}

_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 50_000_000)
_GPU_SIZES = (1_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_QUICK_SIZES = (1_000, 100_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status.

    Returns
    -------
    int
        0; 1 if a result is wrong, or with ``--strict`` if a target is missed; 2 if it cannot run.
    """
    arguments = _parser().parse_args(argv)
    device = arguments.device
    possible = FAMILIES if device == "cpu" else GPU_FAMILIES
    try:
        installed = libraries.installed(device)
        if arguments.plot:
            check_image(arguments.plot)  # a missing package is an error before the measurements
        for peer in arguments.against or ():
            if peer not in installed:
                raise ImportError(f"--against asks for {peer}, which is not installed for {device}")
        if arguments.threads is not None:
            threads.set_num_threads(arguments.threads)
        for part in arguments.parts or ():
            if part not in possible:
                raise ValueError(f"--parts asks for {part}, which is not measured on {device}")
        known = machine.describe(device)
    except (ImportError, ValueError, dispatch.BackendError) as error:
        print(f"pyoptim bench: {error}", file=sys.stderr)
        return 2
    sizes = _SIZES if device == "cpu" else _GPU_SIZES
    options = Options(
        arguments.sizes or (_QUICK_SIZES if arguments.quick else sizes),
        arguments.dtype,
        arguments.against or installed,
        arguments.optimizers or optimizers.NAMES,
        arguments.quick,
        device,
    )
    if "torch" in options.peers:
        import torch

        torch.set_num_threads(threads.get_num_threads())
    else:
        known["torch"] = None
    report.print_header(known, options.dtype)
    rows, wrong = [], 0
    families = [possible[part] for part in arguments.parts or possible]
    for family in families:
        for case in family.cases(options):
            try:
                rows.append(_measure(case, options, QUICK if arguments.quick else FULL))
                report.print_row(rows[-1])
            except Mismatch as mismatch:
                print(f"WRONG: {mismatch}", file=sys.stderr, flush=True)
                wrong += 1
            gc.collect()  # so that the arrays of one case make room for those of the next
    verdicts = report.judge(rows, [target for family in families for target in family.targets])
    report.print_footer(rows, verdicts)
    if arguments.json:
        report.write_json(arguments.json, known, rows, verdicts)
    if arguments.plot and rows:
        report.draw(arguments.plot, rows)
    missed = [verdict for verdict in verdicts if not verdict["passed"]]
    return int(wrong > 0 or (arguments.strict and missed != []))


def _measure(case: Case, options: Options, effort: Effort) -> Row:
    runs = case.prepare()
    ceiling, wait = {}, nothing
    if options.device == "cuda":
        wait = libraries.OurDevice().wait
        if not case.flops and case.traffic > 8 * machine.last_level_cache(options.device):
            ceiling = machine.copy_runs(options.peers)
    elif case.flops:
        ceiling = machine.peak_runs(options.dtype)
    elif case.streams or case.traffic > 8 * machine.last_level_cache(options.device):
        ceiling = machine.streaming_runs(options.peers)
    seconds = in_turn({**runs, **{name: run for name, (_, run) in ceiling.items()}}, effort, wait)
    return Row(
        case.name,
        case.size,
        options.dtype,
        case.traffic,
        {name: seconds[name] * case.scale for name in runs},
        {name: size / seconds[name] for name, (size, _) in ceiling.items()},
        case.flops,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pyoptim bench", description="Time the kernels against NumPy and PyTorch."
    )
    parser.add_argument("--parts", type=_some_of(FAMILIES), help=f"default: {','.join(FAMILIES)}")
    parser.add_argument(
        "--sizes", type=_sizes, help="elements of optimizers; default: 1e3,1e4,1e5,1e6,1e7,5e7"
    )
    names = optimizers.NAMES
    parser.add_argument("--optimizers", type=_some_of(names), help=f"default: {','.join(names)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where arrays lie")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, help="of pyoptim and PyTorch; default: all processors")
    parser.add_argument(
        "--against", type=_some_of(["numpy", "torch", "jax", "cupy"]), help="default: those installed"
    )
    parser.add_argument("--json", metavar="FILE", help="write what was measured")
    parser.add_argument("--plot", metavar="FILE", help="draw time over size into an image")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions: rough figures")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(float(part)) for part in text.split(","))  # argparse reports a ValueError
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a size below 1")
    return sizes


def _some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of a comma-separated list of these names, in upper or lower case."""
    by_key = {name.lower(): name for name in known}

    def read(text: str) -> tuple[str, ...]:
        keys = [part.strip().lower() for part in text.split(",")]
        for key in keys:
            if key not in by_key:
                raise argparse.ArgumentTypeError(f"{key!r} is not among {', '.join(known)}")
        return tuple(by_key[key] for key in keys)

    return read
