"""Work in parts, on threads of Python: for backends whose functions release the GIL and have no pool."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING

from ..runtime import threads

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed behind in the parent


os.register_at_fork(after_in_child=_forget_pool)


def _submit(work: Callable[[], None], count: int) -> None:
    """Let ``count`` threads call ``work``, or fewer where no more can be had: when the interpreter ends."""
    global _pool
    try:
        # Not above: while the interpreter ends, the import fails too.
        from concurrent.futures import ThreadPoolExecutor

        pool = _pool  # another thread may replace it
        if pool is None or pool._max_workers < count:
            pool = _pool = ThreadPoolExecutor(count, thread_name_prefix="pyoptim")
        for _ in range(count):
            pool.submit(copy_context().run, work)  # NumPy's errstate is of the caller's context
    except RuntimeError:
        pass


def run(work: Callable[[int, int], None], n: int, part: int, least: int) -> None:
    """Call ``work(begin, end)`` for n elements: for all of them, or in parts of ``part`` if n >= ``least``.

    Whoever is free takes the next part, so the caller waits for no thread that has not begun. When this
    returns or raises, no thread is at work on a part.
    """
    workers = threads.get_num_threads() - 1 if n >= least else 0
    if workers == 0:
        work(0, n)
        return
    begins = deque(range(0, n, part))
    changed, busy, failures = threading.Condition(), 0, list[BaseException]()

    def take() -> None:
        while True:
            try:
                begin = begins.popleft()
            except IndexError:
                return
            work(begin, min(begin + part, n))

    def help_out() -> None:
        nonlocal busy
        with changed:
            busy += 1
        try:
            take()
        except BaseException as error:
            failures.append(error)
        with changed:
            busy -= 1
            changed.notify()

    try:
        _submit(help_out, min(workers, len(begins) - 1))
        take()
    except BaseException as error:
        failures.insert(0, error)
    begins.clear()  # after a failure, the others end with the part that they have
    while True:
        try:
            with changed:
                changed.wait_for(lambda: busy == 0)
            break
        except KeyboardInterrupt as error:  # the parts end soon
            failures.insert(0, error)
    if failures:
        raise failures[0]
