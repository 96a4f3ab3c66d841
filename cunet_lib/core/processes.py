"""Independent tracks side by side: in processes of this machine, or on a cluster's workers.

Where the variable ``CUNET_CLUSTER`` names a Dask scheduler (``make CLUSTER=tcp://host:port`` sets
it), :func:`pool` sends each call there. What this module runs on a worker travels by value, so that
a worker needs nothing of the library but the files of this checkout, and always runs today's.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from pathlib import Path

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cunet_lib.core.hardware import cores
from cunet_lib.core.settings import ROOT, ConfigError

CLUSTER = "CUNET_CLUSTER"
"""Variable with the address of the Dask scheduler; runs stay on this machine where it is unset."""

SPOOL = "CUNET_SPOOL"
"""Variable with a shared folder for the arguments of calls that are too large for a scheduler."""

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

_LARGE = 1 << 20


def pool(tasks: int, *, workers: int | None = None) -> Executor:
    """Executor with one process per core, or ``workers`` of them, and no more than tasks.

    One worker runs in this process, which saves starting another. Processes are fresh
    interpreters, since forking a notebook kernel, which has threads, can deadlock; each computes
    with one thread, since more would only compete with the other processes.

    With a cluster, the calls run on its workers, as many at a time as these have threads, unless
    ``workers`` is given. A call whose worker is lost runs again on another.

    Raises
    ------
    ConfigError
        If there is no scheduler at the cluster's address.
    """
    address = os.environ.get(CLUSTER)
    if address and workers is None and tasks > 1:
        return _ClusterPool(address)
    count = max(1, min(workers or cores(), tasks))
    if count == 1:
        return ThreadPoolExecutor(1)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker)


def map_tracks(
    function: Callable,
    arguments: Iterable[tuple],
    *,
    total: int,
    label: str,
    workers: int | None = None,
) -> list:
    """Results of a function for each track's arguments, in their order; shows progress.

    Arguments are made as workers take them: twice as many as there are workers wait or are at
    work, so that the signals of all tracks are never in memory together. One worker is the calling
    process itself.

    Parameters
    ----------
    function
        A module's function, so that another process finds it.
    arguments
        One tuple per track.
    total
        Number of tracks.
    label
        What progress calls them, such as ``"tracks scored"``.
    workers
        As :func:`pool` takes them.

    Raises
    ------
    Exception
        What the function raises, from the first track that fails.
    """
    each = progress(arguments, label, total)
    with pool(total, workers=workers) as executor:
        if isinstance(executor, ThreadPoolExecutor):
            # Other threads than the first have memory of their own, which glibc cannot keep.
            _keep_freed_memory()
            try:
                return [function(*track) for track in each]
            finally:
                _keep_freed_memory(False)
        most = 2 * executor._max_workers
        futures: list[Future] = []
        pending: set[Future] = set()
        for track in each:
            futures.append(executor.submit(function, *track))
            pending.add(futures[-1])
            full = len(pending) >= most
            done, pending = wait(pending, None if full else 0, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        return [future.result() for future in futures]


def progress(items: Iterable, label: str, total: int, *, seconds: float = 5.0) -> Iterator:
    """The same items; a bar on a terminal, elsewhere a line at most every ``seconds``.

    >>> list(progress(iter("ab"), "scored", 2))
    scored 2/2
    ['a', 'b']
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total, leave=False)
        return
    said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if done < total and time.monotonic() - said >= seconds:
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


def _begin_worker() -> None:
    # Libraries that come with the first task read the variables; limits reach those that are here.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    threadpool_limits(1)
    _keep_freed_memory()
    # A killed parent cannot tell its workers to end; they would wait for tasks for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_freed_memory(keep: bool = True) -> None:
    """Let this process use its memory again rather than give it back and ask for it anew.

    glibc returns every large array to the system as soon as it is freed, and the next one's pages
    are mapped and zeroed again, one fault each: a sixth of the time of BSS Eval, whose matrices
    have 32 MB. Kept, they cost 4% more memory. ``keep=False`` gives back what is free, and sets
    glibc as its own adjustment leaves it at most. Other C libraries stay as they are.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    mallopt(mmap_threshold, 32 << 20)
    mallopt(mmap_max, 0 if keep else 1 << 16)
    mallopt(trim_threshold, 2**31 - 1 if keep else 64 << 20)
    if not keep:
        trim(0)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


# ------------------------------------------------------------------------------------ a cluster


def connect(address: str):
    """Client of the Dask scheduler at an address.

    Certificates for ``tls://`` addresses come from Dask's own configuration.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ConfigError
        If the address is malformed, or no scheduler of a fitting version answers there.
    """
    import cloudpickle
    import distributed

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        return distributed.Client(address, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"No Dask scheduler answers at CLUSTER={address} ({reason}); start one with `dask "
            "scheduler`, mend the address (tcp://host:port), or leave CLUSTER out to run here."
        ) from error


def library_hash(root: str) -> str:
    """Hash of the library's source in the checkout ``root``; ``"none"`` if there is none."""
    digest = hashlib.sha256()
    sources = sorted(Path(root, "cunet_lib").rglob("*.py"))
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16] if sources else "none"


class _ClusterPool(Executor):
    """Executor whose calls run on the workers of a Dask scheduler."""

    def __init__(self, address: str):
        self._client = connect(address)
        self._calls = self._client.get_executor(pure=False)
        self._max_workers = max(1, sum(self._client.nthreads().values()))
        self._code = library_hash(str(ROOT))
        spool = os.environ.get(SPOOL)
        self._spool = tempfile.TemporaryDirectory(prefix="calls-", dir=spool) if spool else None

    def submit(self, function, /, *args, **kwargs) -> Future:
        import cloudpickle

        call = cloudpickle.dumps((function, args, kwargs))
        if self._spool and len(call) > _LARGE:
            # The scheduler keeps what a lost call needs to run again, for all calls that wait.
            handle, file = tempfile.mkstemp(dir=self._spool.name)
            with os.fdopen(handle, "wb") as stream:
                stream.write(call)
            future = self._calls.submit(_call, str(ROOT), self._code, None, file)
            future.add_done_callback(lambda _: Path(file).unlink(missing_ok=True))
            return future
        return self._calls.submit(_call, str(ROOT), self._code, call, None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._calls.shutdown(wait=wait and not cancel_futures)
        self._client.close()
        if self._spool:
            self._spool.cleanup()


def _call(root: str, code: str, call: bytes | None, file: str | None):
    """Run one call on a worker, with the checkout's library as it is on disk now."""
    from distributed import get_worker

    worker = get_worker()
    if library_hash(root) != code:
        raise RuntimeError(other_library(worker.address, root))
    # A worker outlives many edits of the library; what it has loaded may be yesterday's.
    with vars(worker).setdefault("cunet_lock", threading.Lock()):
        if getattr(sys.modules.get("cunet_lib"), "loaded_for", None) != (root, code):
            for name in [name for name in sys.modules if name.partition(".")[0] == "cunet_lib"]:
                del sys.modules[name]
            sys.path[:] = [root, *(path for path in sys.path if path != root)]
            importlib.invalidate_caches()
            importlib.import_module("cunet_lib").loaded_for = (root, code)
        function, args, kwargs = pickle.loads(call if file is None else Path(file).read_bytes())
    import scipy.linalg  # noqa: F401  # brings libraries whose threads are to be limited

    with threadpool_limits(1):
        return function(*args, **kwargs)


def unshared(worker: str, path: str) -> str:
    """Sentence for a worker that does not see a file or folder as this machine does."""
    return (
        f"Worker {worker} does not see {path} as the machine that sends the runs does: the "
        "checkout, data and results must lie in folders that all machines share under the same "
        "path; mount them there, or move data and results with CUNET_DATA and CUNET_RESULTS."
    )


def other_library(worker: str, root: str) -> str:
    """Sentence for a worker whose library differs from that of the run."""
    return (
        f"Worker {worker} finds another library in {root}/cunet_lib than this run began with; if "
        "it was edited meanwhile, run the same command again, else put the checkout into a folder "
        "that all machines share under the same path."
    )
