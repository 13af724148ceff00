"""Work in parts, on threads of Python: for backends whose functions release the GIL and have no pool."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from ..runtime import threads

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed behind in the parent


os.register_at_fork(after_in_child=_forget_pool)


def run(work: Callable[[int, int], None], n: int, part: int, least: int) -> None:
    """Call ``work(begin, end)`` for the elements from 0 to n, from ``least`` on in parts that threads share.

    Whoever is free takes the next part, so the caller waits for no thread that has not begun.
    """
    global _pool
    workers = threads.get_num_threads() - 1 if n >= least else 0
    if workers == 0:
        work(0, n)
        return
    pool = _pool  # another thread may replace it
    if pool is None or pool._max_workers != workers:
        pool = _pool = ThreadPoolExecutor(workers, thread_name_prefix="pyoptim")
    begins = deque(range(0, n, part))

    def take() -> None:
        while True:
            try:
                begin = begins.popleft()
            except IndexError:
                return
            work(begin, min(begin + part, n))

    # NumPy's errstate is of the caller's context.
    helpers = [pool.submit(copy_context().run, take) for _ in range(min(workers, len(begins) - 1))]
    try:
        take()
    finally:
        begins.clear()  # where this thread was interrupted, the others end with the part that they have
        for helper in [helper for helper in helpers if not helper.cancel()]:
            helper.result()
