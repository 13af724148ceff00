"""Work that a thread does ahead of whoever waits for its results."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")

_ALERT = 0.1  # seconds from one look for Ctrl-C to the next, which cannot end every wait by itself
_PATIENCE = 1.0  # seconds in which the thread should be done with the item that nobody wants any more


def fetched_ahead(make: Callable[[], Generator[T]]) -> Generator[T]:
    """Yield what a generator yields, which runs in a thread of its own and is one item ahead.

    The generator is made, run and closed in that thread, with the context variables of the caller. What it
    raises is raised here, after the items before it. Closing this generator ends the thread, which it waits
    for: but not for long, since the source of an item may be one that hangs.
    """
    items: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    wanted, over = Semaphore(1), Event()

    def run() -> None:
        made = None
        try:
            made = make()
            while wanted.acquire() and not over.is_set():
                items.put((next(made), None))
        except StopIteration:
            items.put((None, None))
        except BaseException as error:
            items.put((None, error))
        finally:
            if made is not None:
                made.close()

    thread = Thread(target=copy_context().run, args=(run,), name="pyoptim-blocks", daemon=True)
    thread.start()
    try:
        while True:
            item, error = _waited(items)
            if error is not None:
                raise error
            if item is None:
                return
            wanted.release()
            yield item
    finally:
        over.set()
        wanted.release()
        thread.join(_PATIENCE)


def _waited(items: SimpleQueue[T]) -> T:
    """Return the next item."""
    while True:
        with suppress(Empty):
            return items.get(timeout=_ALERT)
