"""Work spread over processes: results as they end, one thread each, and an end in one line when a worker is killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.managers import SyncManager
from typing import TypeVar

from finegrain.errors import ConfigError, DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int) -> Iterator[Result]:
    """What the function makes of each task, in the order in which they end.

    Tasks are taken from their iterable as workers come free, so that few are held at a time.

    Raises: ConfigError for less than one worker; DataError if one is killed; and whatever the function raises, at once.
    """
    if workers < 1:
        raise ConfigError(f"expected at least one worker process, got {workers}")
    with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent) as pool:
        try:
            for future in _in_turn(pool, function, tasks, at_once=2 * workers):
                yield future.result()
        except KeyboardInterrupt:
            for process in active_children():  # what they write is whole or not there
                process.terminate()
            raise
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, most likely for want of memory; run again with fewer; what is finished is kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # else an error of the first task would be told after the last


@contextmanager
def queues() -> Iterator[SyncManager]:
    """A process that keeps queues for `in_processes`; it ends when its parent does, even if that was killed."""
    manager = SyncManager()
    manager.start(_follow_parent)
    with manager:
        yield manager


def _in_turn(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Iterable[Task], *, at_once: int
) -> Iterator[Future[Result]]:
    running: set[Future[Result]] = set()
    for task in tasks:
        running.add(pool.submit(function, task))
        if len(running) >= at_once:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            yield from ended
    while running:
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        yield from ended


def _follow_parent() -> None:
    """Start a worker: it leaves Ctrl-C to its parent and ends when that does, even if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside take one thread for linear algebra: they would get in each other's way, and sums change order."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
