"""Processes for independent tracks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

from threadpoolctl import threadpool_limits


def pool(tasks: int, *, workers: int | None = None) -> Executor:
    """Executor with one process per core, or ``workers`` of them, and no more than tasks.

    One worker runs in this process, which saves starting another. Processes are fresh
    interpreters, since forking a notebook kernel, which has threads, can deadlock; each computes
    with one thread, since more would only compete with the other processes.
    """
    count = max(1, min(workers or cores(), tasks))
    if count == 1:
        return ThreadPoolExecutor(1)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker)


def cores() -> int:
    """Cores to use: ``CUNET_THREADS``, or all that this process may run on."""
    given = os.environ.get("CUNET_THREADS")
    if given:
        return int(given)
    # Only some systems tell which cores a process may run on.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _begin_worker() -> None:
    threadpool_limits(1)
    # A killed parent cannot tell its workers to end; they would wait for tasks for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
