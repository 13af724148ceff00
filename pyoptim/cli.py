"""The command line: ``pyoptim train | predict | evaluate | compare | check | bench | study | info``."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .runtime.figures import check_image
from .runtime.files import check_target

if TYPE_CHECKING:
    from .optim.optimizer import Optimizer

__all__ = ["main"]


def __dir__() -> list[str]:
    return __all__


STUDIES = (
    "batch-size", "batch-norm", "raw-pixels", "learning-rate", "schedules", "initialization",
    "regularization", "bias-variance", "bootstrap", "learning-curve", "sharp-minima", "curvature",
    "second-order", "search", "compression", "cascade", "experts", "pretraining", "transfer",
    "hints", "curriculum", "asynchronous", "tabular",
)  # fmt: skip

# SciPy's methods, by the names that `pyoptim train --optimizer` takes.
_MINIMIZERS = {
    "l-bfgs": "L-BFGS-B", "bfgs": "BFGS", "cg": "CG", "newton-cg": "Newton-CG", "trust-ncg": "trust-ncg",
    "trust-krylov": "trust-krylov", "damped-newton": "damped-newton",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if (
        isinstance(arguments, str)
        or not isinstance(arguments, Sequence)
        or not all(isinstance(argument, str) for argument in arguments)
    ):
        raise TypeError(f"argv is {arguments!r}, expected a sequence of strings")
    arguments = list(arguments)
    if arguments[:1] == ["bench"]:  # it has a parser of its own
        from .bench import main as bench

        return bench(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("pyoptim: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        print(f"pyoptim: {error}", file=sys.stderr)
        return 2


def _parser(whole: bool = False) -> argparse.ArgumentParser:
    """Return the parser; with the options of ``bench``, which has a parser of its own, only if ``whole``."""
    parser = argparse.ArgumentParser(
        prog="pyoptim",
        description="Train small networks, look into them, and measure what makes them learn, and how fast.",
        epilog='A shell completes these commands after: eval "$(pyoptim --print-completion bash)"',
    )
    parser.add_argument("--version", action="version", version=f"pyoptim {__version__}")
    for option, describe in (("--cmake-dir", "cmake_dir"), ("--include-dir", "include_dir")):
        what = "CMake files" if describe == "cmake_dir" else "C++ headers"
        parser.add_argument(
            option, action=_PrintFolder, const=describe, nargs=0, help=f"print the folder of the {what}"
        )
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print a script that completes these commands in a shell; needs pyoptim[completion]",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a network on a data set or your own file",
        description="Train a multi-layer perceptron and report how good it is on examples it has not seen. "
        "Of your own file numbers are scaled, and missing ones take the column's median; texts are "
        "categories. A CSV or Parquet file that takes more than --memory is read in parts, anew in each "
        "epoch.",
        formatter_class=_Help,
    )
    train.set_defaults(run=_train)
    train.add_argument(
        "dataset",
        nargs="?",
        default="digits",
        help="digits, mnist, …; or a file: .csv, .tsv, .parquet, .npz with x and y, .libsvm",
    )
    _add_own_file(train)
    train.add_argument(
        "--epochs",
        type=_positive,
        help="default: 40 for digits, 10 to 200 for a file, by its size, else 10; of l-bfgs and the "
        "like, the most iterations, default: 100",
    )
    train.add_argument(
        "--batch-size", type=_batch_size, default=argparse.SUPPRESS, help="a number (default: 32), or 'full'"
    )
    train.add_argument("--lr", type=float, help="learning rate; default: the optimizer's own")
    train.add_argument(
        "--schedule", choices=("cosine", "constant"), help="what lr does over the training; default: cosine"
    )
    train.add_argument(
        "--optimizer",
        default="adam",
        help="sgd, adam, adamw, …; or SciPy's minimisers on all examples at once, which take no --lr, "
        f"--batch-size and --schedule: {', '.join(_MINIMIZERS)}",
    )
    train.add_argument("--hidden", type=_sizes, default=(256, 128), help="sizes of the hidden layers")
    train.add_argument("--seed", type=_whole, default=0, help="of first weights and order of examples")
    train.add_argument("--backend", help="native, numba or numpy; default: the best here")
    train.add_argument("--threads", type=_positive, help="default: all processors")
    train.add_argument("--save", metavar="FILE", help="the model; default: DATASET.safetensors")
    train.add_argument("--plot", metavar="FILE", help="draw loss and accuracy into an image")
    _add_predictions(commands)

    parents = []
    if whole:
        from .bench import _parser as bench

        parents = [bench()]
    what = "time the kernels against NumPy and PyTorch"
    commands.add_parser("bench", help=what, add_help=False, parents=parents)
    study = commands.add_parser(
        "study",
        help="run an experiment of the lectures",
        description="Run an experiment, print its table and write its plot.",
        formatter_class=_Help,
    )
    study.set_defaults(run=_study)
    study.add_argument("study", metavar="STUDY", choices=STUDIES, help=", ".join(STUDIES))
    study.add_argument(
        "--dataset", default="auto", help="digits, mnist, …; auto: mnist where its files are, else digits"
    )
    study.add_argument("--epochs", type=_positive, help="default: the study's own")
    study.add_argument("--seed", type=_whole, default=0, help="the first one")
    study.add_argument("--seeds", type=_positive, metavar="N", help="how many; default: the study's own")
    study.add_argument("--threads", type=_positive, help="default: all processors")
    study.add_argument("--plot", metavar="FILE", help="default: STUDY.png")
    compare = commands.add_parser(
        "compare",
        help="train with several optimizers side by side",
        description="Train the same problem with several optimizers, print a table and draw a plot.",
    )
    compare.set_defaults(run=_compare)
    compare.add_argument(
        "problem",
        nargs="?",
        default="surfaces",
        metavar="PROBLEM",
        help="beale, rosenbrock, saddle or valley; surfaces: all of these (default); digits, mnist, …",
    )
    compare.add_argument("--schedules", action="store_true", help="draw every learning-rate schedule instead")
    compare.add_argument("--optimizers", metavar="LIST", help="adam:lr=0.01,sgd:lr=0.1:momentum=0.9,nesterov")
    compare.add_argument("--steps", type=_positive, help="default: 500; 1000 for --schedules")
    compare.add_argument("--epochs", type=_positive, help="on a data set; default: 20 for digits, else 3")
    compare.add_argument(
        "--seed",
        type=_whole,
        help="of first weights and order of examples; of a random start on surfaces",
    )
    compare.add_argument(
        "--seeds", type=_positive, help="how many, from --seed on, on a data set; default: 3"
    )
    compare.add_argument("--plot", metavar="FILE", help="default: compare.png; schedules.png for --schedules")
    compare.add_argument("--gif", metavar="FILE", help="write an animation too, on surfaces")
    _add_check(commands)
    info = commands.add_parser("info", help="print what this install can do")
    info.set_defaults(run=_info)
    return parser


def _add_own_file(train: argparse.ArgumentParser) -> None:
    own = train.add_argument_group("of your own file")
    own.add_argument(
        "--target", metavar="COLUMN", help="what is to be predicted; default: y of .npz, .libsvm"
    )
    own.add_argument(
        "--task", choices=("classes", "numbers"), help="what the target holds; default: guessed, and said"
    )
    own.add_argument("--categories", metavar="LIST", help="columns whose numbers name categories: zip,code")
    own.add_argument("--drop", metavar="LIST", help="columns to leave out: id,name")
    own.add_argument(
        "--holdout",
        type=_share,
        metavar="SHARE",
        help="of rows, drawn at random, that are not trained on but for validation; 0 for none, default: 0.2",
    )
    _add_memory(own)


def _add_memory(parser: Any) -> None:
    parser.add_argument(
        "--memory",
        type=_whole,
        metavar="MB",
        help="read a CSV or Parquet file that takes more in memory in parts; default: 1024",
    )


def _add_predictions(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="predict the target of each row of a file",
        description="Predict with a model that 'pyoptim train FILE' saved. The rows keep their order.",
    )
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model on a file that holds the target too",
        description="Measure a model that 'pyoptim train FILE' saved.",
    )
    for parser, run in ((predict, _predict), (evaluate, _evaluate)):
        parser.set_defaults(run=run)
        parser.add_argument("model", metavar="MODEL", help="the file of the model")
        parser.add_argument("data", metavar="DATA", help="a file with the columns of the training's")
        _add_memory(parser)
    predict.add_argument("-o", "--output", metavar="FILE", help="a CSV file; default: standard output")
    predict.add_argument(
        "--probabilities", action="store_true", help="of every class, not only of the likeliest"
    )


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="look for what is wrong with a network on a data set",
        description="Run the diagnostics on a network and a data set; what looks wrong is printed first.",
        formatter_class=_Help,
    )
    check.set_defaults(run=_check)
    check.add_argument("dataset", nargs="?", default="digits", help="digits, mnist, …")
    check.add_argument("--model", metavar="FILE", help="a model that was saved, instead of training one")
    check.add_argument("--hidden", type=_sizes, default=(256, 128), help="sizes of the hidden layers")
    check.add_argument(
        "--activation", choices=("relu", "sigmoid", "tanh"), default="relu", help="of the hidden layers"
    )
    check.add_argument(
        "--init", choices=("he", "glorot", "lecun", "normal", "zeros"), default="he", help="how weights begin"
    )
    check.add_argument("--raw", action="store_true", help="take pixels as they are, not scaled")
    check.add_argument("--epochs", type=_positive, default=5, help="of each training")
    check.add_argument("--seed", type=_whole, default=0, help="of first weights and order of examples")
    check.add_argument("--threads", type=_positive, help="default: all processors")
    check.add_argument("--quiet", action="store_true", help="show no progress bar")
    check.add_argument("--plot", metavar="FILE", help="draw all of it into an image")


class _Help(argparse.HelpFormatter):
    """Adds the default of an option to its help, unless there is none, or the help tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        if text is None or "default" in text or default is False or default in (None, argparse.SUPPRESS):
            return text
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, option: object = None) -> None:
        from .runtime.extras import needed

        try:
            shtab = needed("shtab", "--print-completion needs shtab", "pyoptim[completion]")
        except ImportError as error:
            parser.exit(2, f"pyoptim: {error}\n")
        whole = _parser(whole=True)
        for chooser in whole._actions:
            commands = chooser.choices if isinstance(chooser.choices, dict) else {}
            for action in (action for command in commands.values() for action in command._actions):
                if action.metavar == "FILE":
                    vars(action)["complete"] = shtab.FILE
        print(shtab.complete(whole, shell))
        parser.exit()


class _PrintFolder(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from . import config

        try:
            print(getattr(config, str(self.const))())
        except FileNotFoundError as error:
            parser.exit(2, f"pyoptim: {error}\n")
        parser.exit()


def _batch_size(text: str) -> int | None:
    if text == "full":
        return None
    return _positive(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(",") if part)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1)")
    return share


def _study(options: argparse.Namespace) -> int:
    from .lab import studies, tabular
    from .runtime import threads

    options.plot = options.plot or f"{options.study}.png"
    check_target("--plot", options.plot, replaces=False)
    check_image(options.plot)
    if options.threads is not None:
        threads.set_num_threads(options.threads)
    return tabular.main(options) if options.study == "tabular" else studies.main(options)


def _compare(options: argparse.Namespace) -> int:
    from .lab import compare

    options.plot = options.plot or ("schedules.png" if options.schedules else "compare.png")
    choices = compare.check(options, lambda name: _optimizer(name, "--optimizers"))
    check_target("--plot", options.plot, replaces=False)
    check_image(options.plot)
    if options.gif:
        check_target("--gif", options.gif, replaces=False)
    compare.main(options, choices)
    return 0


def _check(options: argparse.Namespace) -> int:
    from .lab import check
    from .runtime import threads

    if options.plot:
        check_target("--plot", options.plot, replaces=False)
        check_image(options.plot)
    if options.threads is not None:
        threads.set_num_threads(options.threads)
    return check.main(options)


def _info(options: argparse.Namespace) -> int:
    from .config import show_config

    print(show_config())
    return 0


def _predict(options: argparse.Namespace) -> int:
    from .lab import own_files

    return own_files.predict(options)


def _evaluate(options: argparse.Namespace) -> int:
    from .lab import own_files

    return own_files.evaluate(options)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def _optimizer(name: str, option: str = "--optimizer") -> type[Optimizer]:
    import pyoptim

    public = {key.lower(): getattr(pyoptim, key) for key in pyoptim.__all__ if key[0].isupper()}
    classes = {
        key: value
        for key, value in public.items()
        if issubclass(value, pyoptim.Optimizer) and value is not pyoptim.Optimizer
    }
    if name.lower() not in classes:
        from .runtime.numbers import nearest

        known = sorted([*classes, *_MINIMIZERS] if option == "--optimizer" else classes)
        raise ValueError(f"{option} is {name!r}, expected one of {', '.join(known)}{nearest(name, known)}")
    chosen: type[Optimizer] = classes[name.lower()]
    return chosen


def _train(options: argparse.Namespace) -> int:
    """Train in this process, or in all that ``mpiexec`` has started: the first one prints and writes."""
    from .distributed import world
    from .runtime import threads
    from .train.ranks import Ranks

    comm = world()
    with Ranks(comm).guarded(), contextlib.ExitStack() as stack:
        if comm is not None:
            if options.optimizer.lower() in _MINIMIZERS:
                raise ValueError(
                    f"--optimizer is {options.optimizer}, which runs in one process, without mpiexec"
                )
            if options.threads is None:
                mpi = sys.modules["mpi4py.MPI"]
                beside = comm.Split_type(mpi.COMM_TYPE_SHARED).Get_size()
                options.threads = max(1, threads.get_num_threads() // beside)
            if comm.Get_rank() > 0:
                stack.enter_context(contextlib.redirect_stdout(None))
        return _train_with(options, comm)


def _train_with(options: argparse.Namespace, comm: Any) -> int:
    import numpy as np

    from . import SGD, Trainer, minimize, nn, schedules
    from .lab.own_files import problem_of
    from .lab.tables import is_table
    from .runtime import dispatch, threads

    method = _MINIMIZERS.get(options.optimizer.lower())
    optimizer_class = None if method else _optimizer(options.optimizer)
    refused = {"--lr": options.lr, "--schedule": options.schedule}
    if "batch_size" in options:
        refused["--batch-size"] = options.batch_size or "full"
    for name, value in refused.items():
        if method and value is not None:
            raise ValueError(
                f"{name} is {value}, but {options.optimizer} takes all examples at once, and finds the "
                "length of its steps itself"
            )
    batch_size = getattr(options, "batch_size", 32)
    # What would fail after the training is an error before it.
    own = is_table(options.dataset)
    path = Path(options.save or f"{Path(options.dataset).stem if own else options.dataset}.safetensors")
    writes = comm is None or comm.Get_rank() == 0
    if writes:
        check_target("--save", path)
    if options.plot and writes:
        check_target("--plot", options.plot, replaces=False)
        check_image(options.plot)
    if options.threads is not None:
        threads.set_num_threads(options.threads)
    with contextlib.ExitStack() as stack:
        if options.backend:
            stack.enter_context(dispatch.use_backend(options.backend))
        problem = problem_of(options)
        epochs = options.epochs or (100 if method else problem.epochs(batch_size))
        if method and problem.is_streamed:
            raise ValueError(
                f"--optimizer is {options.optimizer}, which takes all examples at once, but "
                f"{options.dataset} takes more than --memory"
            )
        if problem.is_streamed and comm is not None and comm.Get_size() > 1:
            raise ValueError(
                f"{options.dataset} takes more than --memory, and {comm.Get_size()} ranks would all read it "
                "whole: expected one process, or a larger --memory"
            )
        sizes = [problem.inputs, *options.hidden, problem.outputs]
        hidden = [nn.Dense(a, b, activation="relu", init="he") for a, b in pairwise(sizes[:-1])]
        model = nn.Sequential(*hidden, nn.Dense(*sizes[-2:]), seed=options.seed)
        loss = problem.loss
        optimizer: Optimizer = SGD(model.parameters())  # which a minimiser has no use for
        if optimizer_class is not None:
            lr: Any = optimizer_class.defaults["lr"] if options.lr is None else options.lr
            if options.schedule != "constant":
                batches = -(-problem.rows // (batch_size or problem.rows))
                lr = schedules.Cosine(lr, steps=epochs * batches)
            optimizer = optimizer_class(model.parameters(), lr=lr)
        trainer = Trainer(model, loss, optimizer, seed=options.seed, comm=comm)
        each = "" if comm is None else f" on each of {comm.Get_size()} ranks"

        print(
            f"{options.dataset}: {problem.counts()}; {'-'.join(map(str, sizes))} with {method or optimizer}; "
            f"{dispatch.current().name} backend, {threads.get_num_threads()} threads{each}"
        )
        started = time.perf_counter()
        held = problem.validation if options.plot or own else None
        if method:
            x, y = problem.given
            history = minimize(model, loss, x, y, method, max_iter=epochs, validation_data=held)
        else:
            history = trainer.fit(
                *problem.given, epochs=epochs, batch_size=batch_size, validation_data=held,
                shuffle=problem.shuffle, verbose=True, shard=True,
            )  # fmt: skip
        seconds = time.perf_counter() - started
        result = trainer.evaluate(*(problem.held or problem.given))
    if not math.isfinite(result["loss"]) or not np.isfinite(model.flat_parameters).all():
        print(
            f"pyoptim: the training diverged, so {path} was not written: try a smaller --lr", file=sys.stderr
        )
        return 1
    print(f"{problem.words} {problem.quality(model, result)}, {seconds:.1f} s of training")
    if writes:
        problem.save(model, path)
    print(f"model saved to {path}")
    if options.plot and writes:
        history.plot(options.plot, title=options.dataset, validation=problem.words)
        print(f"plot saved to {options.plot}")
    return 0
