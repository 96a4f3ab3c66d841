"""Independent tracks side by side in processes of this machine; progress; durations in words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import psutil
from tqdm import tqdm

from cunet_lib.core.hardware import cores

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
"""Read by numerical libraries when they are loaded: how many threads they may use. A stage's kernel
gets ``CUNET_THREADS`` of them, where the user has not set them."""


def map_tracks(
    function: Callable,
    arguments: Iterable[tuple],
    *,
    total: int,
    label: str,
    workers: int | None = None,
) -> list:
    """Results of a function for each track's arguments, in their order; shows progress.

    Arguments are made as workers take them, at most twice as many as there are workers ahead of
    what is finished, so that memory does not grow with the number of tracks. They may be made in
    another thread than the caller's. Each worker computes with one thread, and ends within seconds
    when this process is killed. One worker is the calling process itself.

    Parameters
    ----------
    function
        Called with the members of one tuple; it and its results must be picklable.
    total
        Number of tracks.
    label
        What progress calls them, such as ``"tracks scored"``.
    workers
        Processes; as many as :func:`cunet_lib.core.hardware.cores` if not given.

    Raises
    ------
    Exception
        What the function or the arguments raise first; tracks that are at work then are given up.
    """
    import joblib

    count = min(workers or cores(), total)
    if count <= 1:
        _keep_freed_memory()
        try:
            return [function(*track) for track in progress(arguments, label, total)]
        finally:
            _keep_freed_memory(False)
    with joblib.parallel_config(
        "loky",
        n_jobs=count,
        inner_max_num_threads=1,
        idle_worker_timeout=20,
        initializer=_begin_worker,
        initargs=(os.getpid(),),
    ):
        # One track is a batch, and travels whole rather than through a file mapped to memory.
        parallel = joblib.Parallel(
            pre_dispatch=2 * count, batch_size=1, max_nbytes=None, return_as="generator"
        )
        results = parallel(joblib.delayed(function)(*track) for track in arguments)
        return list(progress(results, label, total))


def progress(items: Iterable, label: str, total: int) -> Iterator:
    """The same items; a bar on a terminal, elsewhere a line at most every five seconds.

    >>> list(progress(iter("ab"), "scored", 2))
    scored 2/2
    ['a', 'b']
    """
    if not total:
        print(f"{label}: nothing to do", flush=True)
        return
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, leave=False)
        return
    said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if done < total and time.monotonic() - said >= 5.0:
            said = time.monotonic()
            print(f"{label} {done}/{total}", flush=True)
    print(f"{label} {total}/{total}", flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``"8 s"``, ``"3 min 12 s"``, ``"1 h 5 min"``.

    >>> duration(7.6), duration(192), duration(3900)
    ('8 s', '3 min 12 s', '1 h 5 min')
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def end_with(pid: int) -> None:
    """Have this process stop, as by SIGTERM, within a second after another one has ended."""

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _begin_worker(parent: int) -> None:
    _keep_freed_memory()
    # A killed parent cannot tell its workers to end; they would wait for tasks for minutes.
    end_with(parent)


def _keep_freed_memory(keep: bool = True) -> None:
    """Let this process use its memory again rather than give it back and ask for it anew.

    glibc returns every large array to the system as soon as it is freed, and the next one's pages
    are mapped and zeroed again, one fault each: a sixth of the time of BSS Eval, whose matrices
    have 32 MB. Kept, they cost 4% more memory. ``keep=False`` gives back what is free, and sets
    glibc as its own adjustment leaves it at most.
    """
    library = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    library.mallopt(mmap_threshold, 32 << 20)
    library.mallopt(mmap_max, 0 if keep else 1 << 16)
    library.mallopt(trim_threshold, 2**31 - 1 if keep else 64 << 20)
    if not keep:
        library.malloc_trim(0)
