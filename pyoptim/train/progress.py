"""What a training shows as it goes: a bar, or a line in the log for each epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..runtime.extras import the_bar
from ..runtime.numbers import is_integer, shown, unboxed


def check_verbose(verbose: Any) -> int:
    """Return 0 (nothing is shown), 1 (a bar) or 2 (lines); True is 1, and False is 0."""
    number = unboxed(verbose)
    if not isinstance(number, bool | np.bool_) and not (is_integer(number) and 0 <= number <= 2):
        kind = ValueError if is_integer(number) else TypeError
        raise kind(f"verbose is {shown(verbose)}, expected True, False, or 0, 1 or 2")
    return int(number)


class Progress:
    """A bar, or lines, with what was measured last.

    Parameters
    ----------
    verbose : {0, 1, 2}
        Nothing, the bar (one of notebooks in a notebook), or lines.
    what : str
        What comes ``count`` times and is measured each time: "epoch".
    unit : str
        What the bar counts, of which each has ``size``; None if that is not known.
    """

    def __init__(self, verbose: int, what: str, count: int, unit: str, size: int | None = 1) -> None:
        self._what, self._count, self._lines = what, count, verbose == 2
        self._bar: Any = None
        if verbose == 1:
            total = None if size is None else count * size
            name, scaled = f"{what} 1/{count}", size != 1
            self._bar = the_bar()(total=total, unit=f" {unit}", unit_scale=scaled, desc=name)

    def advance(self, more: int) -> None:
        if self._bar is not None:
            self._bar.update(more)

    def end(self, number: int, measured: Mapping[str, float]) -> None:
        """Show what number ``number``, counted from 1, measured."""
        values = {name: f"{value:.4g}" for name, value in measured.items() if name != "seconds"}
        if self._lines:
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            _log(f"{self._what} {number}/{self._count}: {told}, {measured['seconds']:.2f} s")
        if self._bar is not None:
            name = f"{self._what} {min(number + 1, self._count)}/{self._count}"
            self._bar.set_description(name, refresh=False)
            self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _log(line: str) -> None:
    """Give a line to the logger "pyoptim", or write it to stderr where no program would show it.

    That is where none has set up logging, or where only what is more urgent is logged (as any call of
    ``logging.warning`` sets it up). A level of this very logger, or `logging.disable`, silences it.
    """
    import logging

    logger = logging.getLogger("pyoptim")
    silenced = logger.level > logging.INFO or logger.manager.disable >= logging.INFO
    if silenced or (logger.hasHandlers() and logger.getEffectiveLevel() <= logging.INFO):
        logger.info(line)
    else:
        print(line, file=sys.stderr, flush=True)
