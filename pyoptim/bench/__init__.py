"""``pyoptim bench``: every kernel, and training, against NumPy, PyTorch and JAX, checked before it is timed.

To add cases: a module with a `Family`, and its line in `FAMILIES`. A family that `sweeps` runs only if it is
asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

from ..runtime import dispatch, threads
from ..runtime.figures import check_image
from ..runtime.files import check_target
from . import (
    activations,
    busy,
    calls,
    cpp,
    crossover,
    distributed,
    fallbacks,
    history,
    layers,
    libraries,
    machine,
    norms,
    optimizers,
    predictions,
    report,
    shapes,
    sklearn,
    tabular,
    training,
)
from .case import Case, Family, Mismatch, Options, Row
from .timing import QUICK, Effort, Run, in_turn, nothing, settle_openmp

FAMILIES = {
    "optimizers": optimizers.FAMILY,
    **layers.FAMILIES,
    "norm": norms.FAMILY,
    "activations": activations.FAMILY,
    "calls": calls.FAMILY,
    "training": training.FAMILY,
    "layers": shapes.FAMILY,
    "tabular": tabular.FAMILY,
    "sklearn": sklearn.FAMILY,
    "predict": predictions.FAMILY,
    "threads": crossover.FAMILY,
    "fallbacks": fallbacks.FAMILY,
    "busy": busy.FAMILY,
    "cpp": cpp.FAMILY,
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
        0; 1 if a result is wrong or a case failed, or with ``--strict`` if a target is missed; 2 if it cannot
        run; 130 if it was interrupted, after writing what it had.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["compare"]:
        return history.main(given[1:])
    if given[:1] == ["distributed"]:
        return distributed.main(given[1:])
    arguments = _parser().parse_args(given)
    settle_openmp()
    try:
        options, names = _choose(arguments)
        known = machine.describe(options.device)
    except (ImportError, ValueError, dispatch.BackendError) as error:
        print(f"pyoptim bench: {error}", file=sys.stderr)
        return 2
    if "torch" in options.peers:
        import torch

        torch.set_num_threads(threads.get_num_threads())
    else:
        known["torch"] = None
    families = [_possible(options.device)[name] for name in names]
    report.print_header(known, options.dtype, [family.sweeps for family in families])
    if missing := libraries.missing(options.device):
        print(f"not installed, so not compared with: {', '.join(missing)}", flush=True)
    rows, wrong, conclusions, interrupted = list[Row](), 0, list[str](), False
    try:
        for family in families:
            before = len(rows)
            wrong += _run(family, options, arguments.match, rows)
            conclusions += family.conclude(rows[before:]) if family.conclude else []
    except KeyboardInterrupt:  # what is measured by now is worth keeping
        print("pyoptim bench: interrupted", file=sys.stderr)
        interrupted = True
    except dispatch.BackendError as error:
        print(f"pyoptim bench: {error}", file=sys.stderr)
        return 2
    verdicts = report.judge(rows, [target for family in families for target in family.targets])
    report.print_footer(rows, verdicts, conclusions)
    if arguments.json:
        report.write_json(arguments.json, known, rows, verdicts, conclusions)
    if arguments.plot and rows:
        draw = families[0].draw or report.draw
        draw(arguments.plot, rows)
    missed = [verdict for verdict in verdicts if not verdict["passed"]]
    return 130 if interrupted else int(wrong > 0 or (arguments.strict and missed != []))


def _possible(device: str) -> dict[str, Family]:
    return FAMILIES if device == "cpu" else GPU_FAMILIES


def _choose(arguments: argparse.Namespace) -> tuple[Options, Sequence[str]]:
    """The options of all cases, and the names of the parts; sets the number of threads."""
    device, possible = arguments.device, _possible(arguments.device)
    installed = libraries.installed(device)
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path:  # what cannot be written is an error before the measurements
            check_target(option, path, replaces=False)
    if arguments.plot:
        check_image(arguments.plot)  # a missing package is an error before the measurements
    for peer in arguments.against or ():
        if peer not in installed:
            raise ImportError(f"--against asks for {peer}, which is not installed for {device}")
    if arguments.threads is not None:
        threads.set_num_threads(arguments.threads)
    asked = [part for group in (*arguments.part, arguments.parts or ()) for part in group]
    for part in asked:
        if part not in possible:
            raise ValueError(f"--parts asks for {part}, which is not measured on {device}")
    many = threads.get_num_threads()
    options = Options(
        arguments.sizes or (_QUICK_SIZES if arguments.quick else _SIZES if device == "cpu" else _GPU_SIZES),
        arguments.dtype or "float32",
        arguments.against or installed,
        arguments.optimizers or optimizers.NAMES,
        arguments.quick,
        device,
        [arguments.dtype] if arguments.dtype else ["float32", "float64"],
        [many] if arguments.threads is not None else sorted({1, many}),
    )
    return options, asked or [name for name, family in possible.items() if not family.sweeps]


def _run(family: Family, options: Options, match: str, rows: list[Row]) -> int:
    """Append the rows of a family; returns how many cases were wrong or failed."""
    wrong, effort = 0, QUICK if options.quick else family.effort
    show = report.print_line if family.sweeps else report.print_row
    with contextlib.closing(family.cases(options)) as cases:  # what runs meanwhile ends with it
        for case in cases:
            case = case._replace(
                dtype=case.dtype or options.dtype, threads=case.threads or threads.get_num_threads()
            )
            if not all(text.strip() in case.label for text in match.split(",")):
                continue
            try:
                rows.append(_measure(case, options, effort))
                show(rows[-1])
            except Mismatch as mismatch:
                print(f"WRONG: {mismatch}", file=sys.stderr, flush=True)
                wrong += 1
            except dispatch.BackendError:
                raise
            except Exception as error:  # a library that cannot do one case costs nobody the others
                print(f"FAILED: {case.label}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                wrong += 1
            gc.collect()  # so that the arrays of one case make room for those of the next
    return wrong


@contextlib.contextmanager
def _limited(n: int, peers: Collection[str]) -> Iterator[None]:
    """At most n threads, in PyTorch too."""
    before = threads.get_num_threads()
    try:
        _limit(n, peers)
        yield
    finally:
        _limit(before, peers)


def _limit(n: int, peers: Collection[str]) -> None:
    threads.set_num_threads(n)
    if "torch" in peers and n != (torch := sys.modules["torch"]).get_num_threads():
        torch.set_num_threads(n)


def _measure(case: Case, options: Options, effort: Effort) -> Row:
    case = case._replace(dtype=case.dtype or options.dtype, threads=case.threads or threads.get_num_threads())
    with _limited(case.threads, options.peers), machine.Disturbance(case.load != "idle") as disturbance:
        runs = case.prepare()
        ceiling, wait = _ceiling(case, options), nothing
        if options.device == "cuda":
            wait = libraries.OurDevice().wait
        found = in_turn({**runs, **{name: run for name, (_, run) in ceiling.items()}}, effort, wait)
    return Row(
        case.name,
        case.size,
        case.dtype,
        case.traffic,
        {name: found[name].scaled(case.scale).median for name in runs},
        {name: size / found[name].median for name, (size, _) in ceiling.items()},
        case.flops,
        {name: found[name].scaled(case.scale).quartiles for name in runs},
        case.threads,
        case.load,
        disturbance.text,
        disturbance.counters,
        case.parts,
    )


def _ceiling(case: Case, options: Options) -> dict[str, tuple[int, Run]]:
    """What the work can be compared with: its size in bytes or operations, and what does no other work."""
    is_large = case.traffic > 8 * machine.last_level_cache(options.device)
    if options.device == "cuda":
        return machine.copy_runs(options.peers) if is_large and not case.flops else {}
    if case.flops:
        return machine.peak_runs(case.dtype)
    return machine.streaming_runs(options.peers) if case.streams or is_large else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pyoptim bench",
        description="Time the kernels, and what is built of them, against other libraries.",
        epilog="Only where they are asked for: "
        + "; ".join(f"{name}: {family.sweeps}" for name, family in FAMILIES.items() if family.sweeps)
        + ". `pyoptim bench compare` says what changed between two files of --json, and "
        "`pyoptim bench distributed` measures trainings by several ranks.",
    )
    usual = ", ".join(name for name, family in FAMILIES.items() if not family.sweeps)
    parser.add_argument(
        "part", nargs="*", metavar="PART", type=_some_of(FAMILIES), default=[], help=f"default: {usual}"
    )
    parser.add_argument("--parts", type=_some_of(FAMILIES), help="the same, separated by commas")
    parser.add_argument(
        "--match", metavar="TEXTS", default="", help="only cases with all of these texts: 'step,32,2 busy'"
    )
    parser.add_argument(
        "--sizes", type=_sizes, help="elements of optimizers; default: 1e3,1e4,1e5,1e6,1e7,5e7"
    )
    names = optimizers.NAMES
    parser.add_argument("--optimizers", type=_some_of(names), help=f"default: {','.join(names)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where arrays lie")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: float32; of sweeps both")
    parser.add_argument(
        "--threads", type=int, help="of pyoptim and PyTorch; default: all processors; layers: 1 too"
    )
    parser.add_argument(
        "--against",
        type=_some_of(["numpy", "torch", "jax", "onnxruntime", "cupy"]),
        help="default: those installed",
    )
    parser.add_argument("--json", metavar="FILE", help="write what was measured")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw into an image how many times as fast as others each is"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions: rough figures")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(float(part)) for part in text.split(","))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 1000,1e6") from None
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
