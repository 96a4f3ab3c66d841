"""Whole runs on the workers of a Dask scheduler: sent, followed line by line, stopped.

With ``CLUSTER=tcp://host:port`` make's jobs send their stage instead of running it. The worker
starts the same ``cunet run`` in the same checkout, data and results, which lie in folders that all
machines share. A run whose worker is lost starts again on another: finished tracks and epochs are
on disk, and a lost worker's run ends with it, for its standard input is a pipe from the worker.

What runs on a worker travels by value and uses the standard library only: a worker outlives many
edits of the library, and what it has loaded may be yesterday's.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cunet_lib.core.settings import ROOT, ConfigError, Profile

TETHER = "CUNET_TETHER"
"""Set for a run on a worker: it ends when its standard input closes."""

DECIDING = ("tensorflow", "keras", "numpy", "scipy", "museval", "distributed")
"""Packages whose versions decide results, or whether machines understand each other."""

GPU = "GPU"
"""Dask resource that workers with a GPU offer: ``dask worker --resources GPU=1``."""

_LOOK_SECONDS = 20.0
_STOP_SECONDS = 25.0
_FILE_SECONDS = 120.0


def slots(address: str, settings: Profile, echo: Callable[[str], None]) -> int:
    """Check a cluster's workers, echo a line on them, and return how many runs they take at a time.

    Raises
    ------
    ConfigError
        If no scheduler answers, it has no workers, or one of them does not see the checkout, data
        and results as this machine does or has other versions of the packages that decide results.
    """
    with connect(address) as client, _expected(settings) as expected:
        workers = _workers(client)
        if not workers:
            raise ConfigError(
                f"The Dask scheduler at CLUSTER={address} has no workers; start some with `dask "
                f"worker {address}` (docs/cluster.md), and run the same command again."
            )
        for worker, problem in client.run(_problem, expected, on_error="return").items():
            if problem:
                raise ConfigError(f"Worker {worker} {problem}")
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
) -> int:
    """Run one stage on a worker, pass its lines on, and return its exit status.

    Parameters
    ----------
    address
        Of the scheduler.
    words
        Arguments of the ``cunet`` command.
    settings
        Profile whose data and results the worker must see.
    name
        Of the stage.
    training
        Whether the stage trains a model, and so asks for a GPU if a worker offers one.
    output
        File that a successful run makes anew; awaited here, where the shared file system may show
        it later than on the worker.
    echo
        Gets the run's lines.

    Raises
    ------
    ConfigError
        If no scheduler answers or it goes away, if the worker is unfit (see :func:`slots`), or
        if several workers were lost with this run.
    KeyboardInterrupt
        If this process was interrupted; the run on the worker has then ended.
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    began, ended, finished = [], threading.Event(), threading.Event()

    def hear(event: tuple[float, tuple[str, str]]) -> None:
        kind, text = event[1]
        if kind == "began":
            again = "its worker was lost; runs again on" if began else "runs on"
            began.append(text)
            echo(f"{name} | {again} {text}")
        elif kind == "ended":
            ended.set()
        elif not stopping:
            echo(text)

    stopping = False
    with connect(address) as client, _expected(settings) as expected:
        order = _order(words, settings, output, expected)
        client.subscribe_topic(order["topic"], hear)
        offered = any(GPU in about["resources"] for about in _workers(client).values())
        resources = {GPU: 1} if training and offered else None
        future = client.submit(_run, order, key=f"{name}-{uuid.uuid4().hex}", resources=resources)
        future.add_done_callback(lambda _: finished.set())
        try:
            while not finished.wait(_LOOK_SECONDS):
                if not _workers(client):
                    echo(f"{name} | waits for a worker")
            result = future.result()
        except KeyboardInterrupt:
            stopping = True  # what is kept after Ctrl-C is told here
            ended.clear()
            future.cancel()
            if began:
                ended.wait(_STOP_SECONDS + 5)
            raise
        except KilledWorker as error:
            raise ConfigError(
                f"{name} was given up: the workers that ran it were lost one after the other, the "
                f"last one {error.last_worker.address}. Perhaps they ran out of memory; look at "
                "their logs, and run the same command again."
            ) from error
        except (FutureCancelledError, OSError) as error:
            raise ConfigError(
                f"The Dask scheduler at CLUSTER={address} went away; what was finished is kept. "
                "Start it and its workers, and run the same command again."
            ) from error
    if "problem" in result:
        raise ConfigError(result["problem"])
    if result["status"] == 0:
        _await_file(output, *result["made"])
    return result["status"]


def hold_to_parent() -> None:
    """Have this process stop as after Ctrl-C when the worker that started it is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def connect(address: str):
    """``distributed.Client`` of a scheduler; :class:`ConfigError` if none answers.

    Certificates for ``tls://`` addresses come from Dask's own configuration.
    """
    import cloudpickle
    import distributed

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        return distributed.Client(address, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"No Dask scheduler answers at CLUSTER={address} ({reason}); start one with `dask "
            "scheduler`, mend the address (tcp://host:port), or leave CLUSTER out to run here."
        ) from error


def _workers(client) -> dict[str, dict]:
    return client.scheduler_info(n_workers=-1)["workers"]


@contextlib.contextmanager
def _expected(settings: Profile) -> Iterator[dict]:
    """What a worker must find as it is here: files just made, the library, versions."""
    music = os.environ.get("CUNET_MUSDB")
    with contextlib.ExitStack() as files:
        shown = {str(Path(music).resolve()): music} if music else {}
        for folder in (settings.paths.data, settings.paths.results):
            folder.mkdir(parents=True, exist_ok=True)
            file = files.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".shared-"))
            shown[file.name] = str(folder)
        library = str(ROOT / "cunet_lib")
        yield {"files": shown, "library": {library: _hash(library)}, "versions": _versions()}


def _order(words: Sequence[str], settings: Profile, output: Path, expected: dict) -> dict:
    """All that a worker needs to know. Devices and threads are its own affair."""
    given = {
        name: os.environ[name] for name in ("CUNET_MUSDB", "CUNET_THREADS") if os.environ.get(name)
    }
    places = {
        "CUNET_DATA": str(settings.paths.data.parent.absolute()),
        "CUNET_RESULTS": str(settings.paths.results.parent.absolute()),
        "PYTHONPATH": str(ROOT),
        # A lost machine's locks may live on for a while on a network file system.
        "CUNET_LOCK_SECONDS": "180",
    }
    return {
        "topic": f"cunet-{uuid.uuid4().hex}",
        "words": list(words),
        "root": str(ROOT),
        "environment": {**given, **places, TETHER: "1"},
        "output": str(output.absolute()),
        "expected": expected,
    }


def _await_file(path: Path, size: int, made: float) -> None:
    """Wait until a file is seen here as the worker left it."""
    until = time.monotonic() + _FILE_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            list(path.parent.iterdir())  # network file systems look again then
            if path.stat().st_size == size and abs(path.stat().st_mtime - made) < 1.0:
                return
        time.sleep(0.2)
    raise ConfigError(
        f"{path} was made on a worker but is not seen here after {_FILE_SECONDS:.0f} s; look "
        "after the shared file system, and run the same command again."
    )


# ----------------------------------------------------------------------- on a worker, by value


def _hash(folder: str) -> str:
    sources = sorted(Path(folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in DECIDING}
    return {"Python": "{}.{}".format(*sys.version_info[:2]), **packages}


def _problem(expected: dict) -> str:
    """What makes a worker unfit, as a sentence without its subject; empty if nothing does."""
    unseen = [shown for path, shown in expected["files"].items() if not Path(path).exists()]
    unseen += [path for path, code in expected["library"].items() if _hash(path) != code]
    if unseen:
        return (
            f"does not see {unseen[0]} as the machine that sends the runs does: the checkout, data "
            "and results must lie in folders that all machines share under the same path; mount "
            "them there, or move data and results with CUNET_DATA and CUNET_RESULTS. If the "
            "library was edited just now, run the same command again."
        )
    for name, version in _versions().items():
        if version != expected["versions"][name]:
            return (
                f"has {name} {version}, the machine that sends the runs has "
                f"{expected['versions'][name]}; start both from an environment of the same "
                "requirements.lock."
            )
    return ""


def _run(order: dict) -> dict:
    """Run the ``cunet`` command, as long as the scheduler wants it and this worker lives."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def tell(kind: str, text: str = "") -> None:
        worker.log_event(order["topic"], (kind, text))

    def alive() -> bool:
        return worker.status.name in ("running", "paused")

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return alive() and task is not None and task.state == "executing"

    def pass_on() -> None:
        for line in process.stdout:
            tell("out", line.rstrip("\n"))

    if problem := _problem(order["expected"]):
        return {"problem": f"Worker {worker.address} {problem}"}
    tell("began", str(worker.name))
    with subprocess.Popen(
        [sys.executable, "-m", "cunet_lib.cli", *order["words"]],
        cwd=order["root"],
        env={**os.environ, **_threads(worker.state.nthreads), **order["environment"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        # Ctrl-C in the worker's terminal is the worker's; it closes the pipe when it ends.
        start_new_session=True,
    ) as process:
        reader = threading.Thread(target=pass_on, daemon=True)
        reader.start()
        while process.poll() is None and wanted():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.25)
        try:
            process.terminate()  # as Ctrl-C would, if it still runs
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        reader.join(10.0)
    tell("ended")
    if not alive():
        raise Reschedule  # a worker that retires hands its run on
    if process.returncode:
        return {"status": process.returncode}
    made = Path(order["output"]).stat()
    return {"status": 0, "made": [made.st_size, made.st_mtime]}


def _threads(runs: int) -> dict[str, str]:
    """Variables that give each run its share of the worker's cores.

    Dask allows its workers one thread each, whatever their share.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    share = os.environ.get("CUNET_THREADS") or str(max(1, cores // runs))
    names = ("CUNET_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, share)
