"""Whole runs on the workers of a Dask scheduler: sent, followed line by line, stopped.

With ``CLUSTER=tcp://host:port`` make's jobs send their stage instead of running it. The worker
starts the same ``cunet run`` in the same checkout, data and results, which lie in folders that all
machines share. A run whose worker is lost starts again on another: finished tracks and epochs are
on disk, and a lost worker's run ends with it (``CUNET_PARENT``).

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
from collections.abc import Iterator
from pathlib import Path

from cunet_lib.core.settings import ROOT, ConfigError, Profile
from cunet_lib.workflow.stages import TRAININGS, Stage

DECIDING = ("tensorflow", "keras", "numpy", "scipy", "museval", "distributed")
"""Packages whose versions decide results, or whether machines understand each other."""

GPU = "GPU"
"""Dask resource that workers with a GPU offer: ``dask worker --resources GPU=1``."""

_LOOK_SECONDS = 20.0
_STOP_SECONDS = 25.0
_FILE_SECONDS = 120.0


def slots(address: str, settings: Profile) -> int:
    """Check a cluster's workers, tell of them, and return how many runs they take at a time.

    The line goes to standard error: make reads the number from standard output.

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
    gpus = f", {with_gpu} with a GPU for the trainings" if with_gpu else ""
    words = f"{len(workers)} worker{'s' * (len(workers) > 1)}, {number} runs at a time{gpus}"
    print(f"cluster | {words}; all see the checkout, data and results", file=sys.stderr)
    return number


def run(address: str, stage: Stage, settings: Profile) -> bool:
    """Run one stage on a worker, pass its lines on, and tell whether it succeeded.

    A stage that trains asks for a GPU if a worker offers one.

    Raises
    ------
    ConfigError
        If no scheduler answers or it goes away, if the worker is unfit (see :func:`slots`), or
        if several workers were lost with this run.
    KeyboardInterrupt
        If this process was interrupted; the run on the worker ends within seconds.
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    from cunet_lib.workflow.run import say

    began, finished = [], threading.Event()

    def hear(event: tuple[float, tuple[str, str]]) -> None:
        kind, text = event[1]
        if kind == "began":
            text = f"{'its worker was lost; runs again' if began else 'runs'} on {text}"
            began.append(text)
            say(f"{stage.name} | {text}")
        else:
            say(text)

    with connect(address) as client, _expected(settings) as expected:
        order = _order(stage, settings, expected)
        client.subscribe_topic(order["topic"], hear)
        offered = any(GPU in about["resources"] for about in _workers(client).values())
        resources = {GPU: 1} if stage.notebook in TRAININGS and offered else None
        future = client.submit(_run, order, key=order["topic"], resources=resources)
        future.add_done_callback(lambda _: finished.set())
        try:
            while not finished.wait(_LOOK_SECONDS):
                if not _workers(client):
                    say(f"{stage.name} | waits for a worker")
            result = future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
        except KilledWorker as error:
            raise ConfigError(
                f"{stage.name} was given up: the workers that ran it were lost one after the "
                f"other, the last one {error.last_worker.address}. Perhaps they ran out of "
                "memory; look at their logs, and run the same command again."
            ) from error
        except (FutureCancelledError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the run's own, on its worker
            raise ConfigError(
                f"The Dask scheduler at CLUSTER={address} went away; what was finished is kept. "
                "Start it and its workers, and run the same command again."
            ) from error
    if "problem" in result:
        raise ConfigError(result["problem"])
    if result["status"] == 0:
        _await_file(stage.output(settings), result["made"])
    return result["status"] == 0


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


def _order(stage: Stage, settings: Profile, expected: dict) -> dict:
    """All that a worker needs to know. Devices and threads are its own affair."""
    words = (word for each in stage.parameters.items() for word in ("-p", *map(str, each)))
    return {
        "topic": f"{stage.name}-{uuid.uuid4().hex}",
        "words": ["run", stage.notebook, *words],
        "root": str(ROOT),
        "environment": {
            "CUNET_MUSDB": os.environ.get("CUNET_MUSDB", ""),
            "CUNET_DATA": str(settings.paths.data.parent),
            "CUNET_RESULTS": str(settings.paths.results.parent),
            "CUNET_CLUSTER": "",  # the run is there
            # A lost machine's locks may live on for a while on a network file system.
            "CUNET_LOCK_SECONDS": "180",
            "PYTHONPATH": str(ROOT),
        },
        "output": str(stage.output(settings)),
        "expected": expected,
    }


def _await_file(path: Path, made: list[float]) -> None:
    """Wait until a file is seen here as the worker left it, by size and time."""
    until = time.monotonic() + _FILE_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            list(path.parent.iterdir())  # network file systems look again then
            about = path.stat()
            if about.st_size == made[0] and abs(about.st_mtime - made[1]) < 1.0:
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

    def alive() -> bool:
        return worker.status.name in ("running", "paused")

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return alive() and task is not None and task.state == "executing"

    def pass_on() -> None:
        for line in process.stdout:
            worker.log_event(order["topic"], ("out", line.rstrip("\n")))

    if problem := _problem(order["expected"]):
        return {"problem": f"Worker {worker.address} {problem}"}
    worker.log_event(order["topic"], ("began", str(worker.name)))
    # The run's share of the worker's cores: Dask allows its workers one thread each.
    cores = len(os.sched_getaffinity(0))
    share = os.environ.get("CUNET_THREADS") or str(max(1, cores // worker.state.nthreads))
    limited = ("CUNET_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    own = {**dict.fromkeys(limited, share), "CUNET_PARENT": str(os.getpid())}
    with subprocess.Popen(
        [sys.executable, "-m", "cunet_lib.cli", *order["words"]],
        cwd=order["root"],
        env={**os.environ, **own, **order["environment"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C in the worker's terminal is the worker's
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
    if not alive():
        raise Reschedule  # a worker that retires hands its run on
    if process.returncode:
        return {"status": process.returncode}
    made = Path(order["output"]).stat()
    return {"status": 0, "made": [made.st_size, made.st_mtime]}
