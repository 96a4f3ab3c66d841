"""Whole runs on the workers of a Dask scheduler: sent, followed line by line, stopped.

With ``CLUSTER=tcp://host:port`` make's jobs send their stage instead of running it; make stays the
workflow. The worker starts the same ``cunet run`` that this machine would have started, in the same
checkout, data and results, which must lie in folders that all machines share. Its lines come back
as events of the scheduler. A run whose worker is lost starts again on another: finished tracks and
epochs are on disk, locks end with the process that held them, and the lost worker's processes end
with it, for the run's standard input is a pipe from the worker that closes when it dies.

What runs on a worker travels by value (:mod:`cunet_lib.core.processes`) and uses the standard library
only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from cunet_lib.core.processes import CLUSTER, SPOOL, connect, library_hash, other_library, unshared
from cunet_lib.core.settings import ROOT, ConfigError, Profile

TETHER = "CUNET_TETHER"
"""Set for a run on a worker: it ends when its standard input closes."""

DECIDING = ("tensorflow", "keras", "numpy", "scipy", "museval", "distributed")
"""Packages whose versions decide results, or whether machines understand each other."""

GPU = "GPU"
"""Dask resource that workers with a GPU offer: ``dask worker --resources GPU=1``."""

_WAIT_FOR_LOCKS = "180"
_WAIT_FOR_FILES = 120.0
_LOOK_AFTER = 20.0


def slots(address: str, settings: Profile, echo: Callable[[str], None]) -> int:
    """Check a cluster's workers, say what there is, and return how many runs they take at a time.

    Parameters
    ----------
    address
        Of the scheduler.
    settings
        Profile whose data and results the workers must see.
    echo
        Gets one line.

    Raises
    ------
    ConfigError
        If no scheduler answers, it has no workers, or one of them does not see the checkout, data
        and results as this machine does or has other versions of the packages that decide results.
    """
    with _connected(address) as client, _tokens(settings) as tokens:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            raise ConfigError(
                f"The Dask scheduler at CLUSTER={address} has no workers; start some with `dask "
                f"worker {address}` (docs/cluster.md), and run the same command again."
            )
        looks = client.run(_look, _facts(tokens), on_error="return")
        for problem in looks.values():
            if problem:
                raise ConfigError(str(problem))
        number = sum(about["nthreads"] for about in workers.values())
        with_gpu = sum(GPU in about["resources"] for about in workers.values())
    words = f"{len(workers)} worker{'s' * (len(workers) > 1)}, {number} runs at a time"
    gpus = f", {with_gpu} with a GPU for the trainings" if with_gpu else ""
    echo(f"cluster | {words}{gpus}; all see the checkout, data and results")
    return number


def run(
    address: str,
    words: Sequence[str],
    settings: Profile,
    *,
    name: str,
    training: bool,
    output: Path,
    echo: Callable[[str], None],
    complain: Callable[[str], None],
) -> int:
    """Run one stage on a worker, pass its lines on, and return its exit status.

    Trainings ask for a GPU if a worker offers one, and keep their slot. Other stages give theirs
    back while they run: their tracks are calls of their own, which might wait for it.

    Parameters
    ----------
    address
        Of the scheduler.
    words
        Arguments of the ``cunet`` command.
    settings
        Profile whose data and results the worker must see.
    name
        Of the stage, for the lines and Dask's own displays.
    training
        Whether the stage trains a model.
    output
        File that a successful run makes anew; awaited here, where the shared file system may show
        it later than on the worker.
    echo, complain
        Get the run's lines of standard output, and all of its standard error at its end.

    Raises
    ------
    ConfigError
        If no scheduler answers or it goes away, if the worker is unfit (see :func:`slots`), or
        if several workers were lost with this run.
    KeyboardInterrupt
        If this process was interrupted; the run on the worker has then been told to stop.
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    with _connected(address) as client, _tokens(settings) as tokens:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        offered = any(GPU in about["resources"] for about in workers.values())
        topic = f"cunet-{uuid.uuid4().hex}"
        followed = _Followed(name, echo, complain)
        client.subscribe_topic(topic, followed.hear)
        order = {
            "topic": topic,
            "words": list(words),
            "environment": _passed_on(settings, address),
            "slots": _slots_by_host(workers),
            "secede": not training,
            "output": str(output),
            **_facts(tokens),
        }
        future = client.submit(
            _run,
            order,
            key=f"{name}-{uuid.uuid4().hex}",
            resources={GPU: 1} if training and offered else None,
        )
        finished = threading.Event()
        future.add_done_callback(lambda _: finished.set())
        try:
            while not finished.wait(_LOOK_AFTER):
                try:
                    followed.say_if_waiting(client.scheduler_info(n_workers=-1)["workers"])
                except OSError as error:  # closed in good order, which cancels nothing
                    raise FutureCancelledError(future.key, "scheduler-closed") from error
            result = future.result()
        except KeyboardInterrupt:
            followed.stopping = True
            future.cancel()
            followed.await_end()
            raise
        except KilledWorker as error:
            raise ConfigError(
                f"{name} was given up: the workers that ran it were lost one after the other, the "
                f"last one {error.last_worker.address}. Perhaps they ran out of memory; look at "
                "their logs, and run the same command again."
            ) from error
        except FutureCancelledError as error:
            raise ConfigError(
                f"The Dask scheduler at CLUSTER={address} went away; what was finished is kept. "
                "Start it and its workers, and run the same command again."
            ) from error
        if "problem" in result:
            raise ConfigError(result["problem"])
        if result["status"] == 0:
            _await_file(output, result["made"])
        return result["status"]


def hold_to_parent() -> None:
    """Have this process stop as after Ctrl-C when the worker that started it is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# ------------------------------------------------------------------------------- on this machine


@contextlib.contextmanager
def _connected(address: str):
    """Client of a scheduler; what this module runs on workers travels by value."""
    import cloudpickle

    with connect(address) as client:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield client


class _Followed:
    """What is heard of a run on a worker."""

    def __init__(self, name: str, echo: Callable[[str], None], complain: Callable[[str], None]):
        self.name = name
        self.began = 0
        self.stopping = False
        self._worker = None
        self._waits = False
        self._echo = echo
        self._complain = complain
        self._ends = 0
        self._ended = threading.Condition()

    def hear(self, event: tuple[float, dict]) -> None:
        """Pass on one event."""
        _, (kind, text) = event
        if kind == "began":
            self.began += 1
            self._worker, name = text
            self._waits = False
            again = "its worker was lost; runs again on" if self.began > 1 else "runs on"
            self._echo(f"{self.name} | {again} {name}")
        elif kind == "ended":
            with self._ended:
                self._ends += 1
                self._ended.notify_all()
        elif kind == "out":
            self._echo(text)
        elif not self.stopping:  # what is kept after Ctrl-C is told here
            self._complain(text)

    def say_if_waiting(self, workers: Collection[str]) -> None:
        """Say once that none of the workers, given by their addresses, runs this, if that is so."""
        if not self._waits and self._worker not in workers:
            self._waits = True
            lost = "its worker was lost; " if self.began else ""
            self._echo(f"{self.name} | {lost}waits for a worker")

    def await_end(self, seconds: float = 30.0) -> None:
        """Wait until a run that began has stopped; for what it says of itself."""
        with self._ended:
            self._ended.wait_for(lambda: self._ends >= min(self.began, 1), seconds)


def _slots_by_host(workers: dict[str, dict]) -> dict[str, int]:
    found = Counter()
    for about in workers.values():
        found[about["host"]] += about["nthreads"]
    return dict(found)


def _facts(tokens: dict[str, str]) -> dict:
    """What a worker must find as it is here."""
    music = os.environ.get("CUNET_MUSDB")
    return {
        "root": str(ROOT),
        "code": library_hash(str(ROOT)),
        "tokens": tokens,
        "folders": [str(Path.cwd()), *([str(Path(music).resolve())] if music else [])],
        "versions": _versions(),
    }


def _passed_on(settings: Profile, address: str) -> dict[str, str]:
    """Variables of the run: where things are. Devices and threads are the worker's own affair."""
    paths = settings.paths
    given = {
        name: os.environ[name] for name in ("CUNET_MUSDB", "CUNET_THREADS") if os.environ.get(name)
    }
    return {
        **given,
        "CUNET_DATA": str(paths.data.parent),
        "CUNET_RESULTS": str(paths.results.parent),
        "PYTHONPATH": str(ROOT),
        CLUSTER: address,
        SPOOL: str(paths.logs),
        TETHER: "1",
        # A lost machine's locks may live on for a while on a network file system.
        "CUNET_LOCK_SECONDS": _WAIT_FOR_LOCKS,
    }


@contextlib.contextmanager
def _tokens(settings: Profile) -> Iterator[dict[str, str]]:
    """Files in the profile's folders, with content that a worker can only know if it sees them."""
    with contextlib.ExitStack() as files:
        tokens = {}
        for folder in (settings.paths.data, settings.paths.results):
            folder.mkdir(parents=True, exist_ok=True)
            file = files.enter_context(
                tempfile.NamedTemporaryFile("w", dir=folder, prefix=".shared-", encoding="ascii")
            )
            tokens[file.name] = secrets.token_hex(8)
            file.write(tokens[file.name])
            file.flush()
            os.fsync(file.fileno())
        yield tokens


def _await_file(path: Path, made: list[int]) -> None:
    """Wait until a file is seen here as the worker left it: its size, and when (ns)."""
    until = time.monotonic() + _WAIT_FOR_FILES
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            list(path.parent.iterdir())  # network file systems look again then
            status = path.stat()
            # Not every file system keeps times to the nanosecond.
            if status.st_size == made[0] and abs(status.st_mtime_ns - made[1]) < 1e9:
                return
        time.sleep(0.2)
    raise ConfigError(
        f"{path} was made on a worker but is not seen here after {_WAIT_FOR_FILES:.0f} s; look "
        "after the shared file system, and run the same command again."
    )


# ----------------------------------------------------------------------- on a worker, by value


def _versions() -> dict[str, str]:
    found = {"Python": "{}.{}".format(*sys.version_info[:2])}
    for name in DECIDING:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _look(facts: dict, dask_worker=None) -> str | None:
    """One sentence on what makes a worker unfit, or None."""
    me = f"{dask_worker.address} on {socket.gethostname()}" if dask_worker else "here"
    if library_hash(facts["root"]) != facts["code"]:
        return other_library(me, facts["root"])
    for path, content in facts["tokens"].items():
        folder = Path(path).parent
        try:
            same = Path(path).read_text(encoding="ascii") == content
        except OSError:
            same = False
        if not same:
            return unshared(me, str(folder))
        if not os.access(folder, os.W_OK):
            return f"Worker {me} may not write to {folder}; run it as a user who may."
    for folder in facts["folders"]:
        if not Path(folder).is_dir():
            return unshared(me, folder)
    for name, version in _versions().items():
        if version != facts["versions"][name]:
            return (
                f"Worker {me} has {name} {version}, the machine that sends the runs has "
                f"{facts['versions'][name]}; start both from an environment of the same "
                "requirements.lock."
            )
    return None


def _run(order: dict) -> dict:
    """Run the ``cunet`` command, as long as the scheduler wants it and this worker lives."""
    from distributed import Reschedule, get_worker, secede

    worker = get_worker()
    key = worker.get_current_task()

    def tell(kind: str, text: str | tuple[str, str] = "") -> None:
        worker.log_event(order["topic"], (kind, text))

    problem = _look(order, worker)
    if problem:
        return {"problem": problem}
    tell("began", (worker.address, str(worker.name)))
    if order["secede"]:
        secede()
    process = subprocess.Popen(
        [sys.executable, "-m", "cunet_lib.cli", *order["words"]],
        cwd=order["folders"][0],
        env=_environment(worker, order),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        # Ctrl-C in the worker's terminal is the worker's; it closes the pipe when it ends.
        start_new_session=True,
    )
    with process:
        readers = [
            threading.Thread(target=_pass_on, args=(lines, kind, tell), daemon=True)
            for lines, kind in ((process.stdout, "out"), (_whole(process.stderr), "err"))
        ]
        for reader in readers:
            reader.start()
        try:
            while process.poll() is None:
                if not _wanted(worker, key):
                    _stop(process)
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.25)
        finally:
            if process.poll() is None:
                process.kill()
        for reader in readers:
            reader.join(10.0)
    tell("ended")
    if not _alive(worker):
        raise Reschedule  # a worker that retires hands its run on
    result = {"status": process.returncode}
    if process.returncode == 0:
        status = Path(order["output"]).stat()
        result["made"] = [status.st_size, status.st_mtime_ns]
    return result


def _wanted(worker, key: str) -> bool:
    """Whether the task was neither cancelled nor lost, and the worker is not about to close."""
    task = worker.state.tasks.get(key)
    wanted = task is not None and task.state in ("executing", "long-running")
    return wanted and _alive(worker)


def _alive(worker) -> bool:
    return worker.status.name in ("running", "paused")


def _stop(process: subprocess.Popen) -> None:
    """End a run as Ctrl-C would, and by force if it does not listen."""
    process.terminate()
    try:
        process.wait(25.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _pass_on(lines: Iterable[str], kind: str, tell: Callable[[str, str], None]) -> None:
    for line in lines:
        tell(kind, line.rstrip("\n"))


def _whole(stream: TextIO) -> Iterator[str]:
    """The text of a stream in one piece, so that other runs' lines do not come in between."""
    text = stream.read()
    if text:
        yield text


def _environment(worker, order: dict) -> dict[str, str]:
    """The worker's own environment, with its share of the machine's threads."""
    # Dask allows its workers one thread each here, whatever their share.
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    if "CUNET_THREADS" not in own and hasattr(os, "sched_getaffinity"):
        mine = len(os.sched_getaffinity(0))
        slots = worker.state.nthreads
        if mine == os.cpu_count():  # else a batch system gave this worker cores of its own
            slots = max(slots, order["slots"].get(worker.ip, 0))
        own["CUNET_THREADS"] = str(max(1, mine // slots))
    return {**own, **order["environment"]}
