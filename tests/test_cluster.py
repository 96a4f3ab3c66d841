"""Runs on a Dask cluster: a scheduler and two workers, on this machine's loopback."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import COMMON, LOAD, clean_environment, started

from cunet_lib.core.settings import load_profile
from cunet_lib.workflow import cluster

# Three steps, each on disk before the next, as a training's epochs are. After the second it waits
# for a file, so that a test can take its worker away in the middle.
STEPS = """
import hashlib, os, time
steps = result.parent / "steps.txt"
steps.parent.mkdir(parents=True, exist_ok=True)
done = steps.read_text().split() if steps.exists() else []
for step in range(len(done), 3):
    if step == 2 and instrument == "bass" and not (paths.results / "go").exists():
        partial = paths.results / "partial"
        partial.write_text(str(os.getpid()))
        partial.rename(paths.results / "waits")
        while not (paths.results / "go").exists():
            time.sleep(0.05)
    done.append(hashlib.sha256(f"{instrument} {done}".encode()).hexdigest()[:8])
    steps.write_text(" ".join(done))
print("steps", *done)
written = result.write_text(steps.read_text())
"""


def until(condition, seconds=180.0):
    """Wait for a condition that must come true, and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class DaskCluster:
    """A scheduler and its workers, each a process of its own that only this machine can reach."""

    def __init__(self, folder):
        self.folder = folder
        self.workers = {}
        about = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", about)
        self.address = (
            until(lambda: about.exists() and about.read_text())
            and json.loads(about.read_text())["address"]
        )
        assert self.address.startswith("tcp://127.0.0.1:")

    def _start(self, kind, *arguments):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1"),
                *("--no-dashboard", *map(str, arguments)),
            ],
            cwd=self.folder,  # not the checkout: a worker finds the library by its own means
            env=clean_environment(CUNET_THREADS=1),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def add(self, name, *arguments):
        options = ("--nthreads", 1, "--no-nanny", "--name", name)
        self.workers[name] = self._start("worker", self.address, *options, *arguments)

    def ready(self, number=2):
        """Bring the workers that were lost back, and wait for all."""
        for name, process in list(self.workers.items()):
            if process.poll() is not None:
                self.add(name)
        with cluster.connect(self.address) as client:
            client.wait_for_workers(number, timeout=180)
        return self

    def worker_of(self, pid):
        """Name of the worker below which a process runs."""
        above = {process.pid for process in psutil.Process(pid).parents()}
        (name,) = [name for name, process in self.workers.items() if process.pid in above | {pid}]
        return name

    def close(self):
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    found = DaskCluster(tmp_path_factory.mktemp("dask"))
    found.add("w1")
    found.add("w2")
    yield found
    found.close()


@pytest.fixture
def dask_cluster(begun):
    return begun.ready()


@pytest.fixture
def with_gpu(dask_cluster):
    """Name of a third worker, which says that it has a GPU."""
    dask_cluster.add("gpu", "--resources", "GPU=1")
    dask_cluster.ready(3)
    yield "gpu"
    gpu = dask_cluster.workers.pop("gpu")
    gpu.kill()
    gpu.wait()


@pytest.fixture
def stepping(tree):
    """A tree whose trainings go in steps and, asked for the bass, wait for a file ``go``."""
    tree.notebook(
        "02_train_unet",
        COMMON + '\ninstrument = "vocals"\nseed = 0',
        LOAD,
        "result = paths.run(f'unet_{instrument}', seed) / 'model.keras'",
        STEPS,
    )
    results = tree.root / "results" / "tiny"
    results.mkdir(parents=True)
    return tree, results


def start(tree, *words, **environment):
    """Start the ``cunet`` command in a tree, in a process group of its own."""
    words = (sys.executable, "-m", "cunet_lib.cli", *words)
    options = {"cwd": tree.root, "stderr": subprocess.STDOUT, "start_new_session": True}
    return started(*words, **options, PYTHONPATH=tree.root, **environment)


BASS = "02_train_unet.bass-seed0"


def start_bass(stepping, address):
    """A run on a cluster, once it waits for the file ``go``: its sender, and its kernel's id."""
    tree, results = stepping
    sender = start(tree, "run", BASS, "--profile=tiny", CUNET_CLUSTER=address)
    return sender, int(until((results / "waits").exists) and (results / "waits").read_text())


def printed_by(process, code=0):
    """What a process said until it ended with this code."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == code, printed
    return printed


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_run_survives_the_loss_of_its_worker(stepping, dask_cluster, end):
    """A worker is killed in the middle, or ended as a batch system does when its time is up: the
    same files and notebook as from one process alone."""
    _, results = stepping
    sender, kernel = start_bass(stepping, dask_cluster.address)
    lost = dask_cluster.worker_of(kernel)
    getattr(dask_cluster.workers[lost], end)()
    # Nothing of the lost worker may go on beside its successor.
    until(lambda: gone(kernel))
    (results / "go").touch()
    printed = printed_by(sender)
    (other,) = {"w1", "w2"} - {lost}
    assert f"{BASS} | runs on {lost}" in printed
    assert f"{BASS} | its worker was lost; runs again on {other}" in printed
    steps = []
    for _ in range(3):
        steps.append(hashlib.sha256(f"bass {steps}".encode()).hexdigest()[:8])
    said = f"steps {' '.join(steps)}"
    assert f"{BASS} | {said}\n" in printed and f"{BASS} | done in" in printed
    assert said in (results / f"notebooks/{BASS}.ipynb").read_text()
    for name in ("steps.txt", "model.keras"):
        assert (results / "runs" / "unet_bass-seed0" / name).read_text() == " ".join(steps)
    assert not list(results.rglob(".shared-*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_run_ends_on_its_worker_when_its_sender_does(stepping, dask_cluster, number, code):
    sender, kernel = start_bass(stepping, dask_cluster.address)
    os.killpg(sender.pid, number)
    printed = printed_by(sender, code)
    until(lambda: gone(kernel))
    # The worker is free again and runs the next.
    dask_cluster.ready()
    assert not (stepping[1] / "notebooks" / f"{BASS}.ipynb").exists()
    if number == signal.SIGINT:
        assert printed.splitlines()[-1].startswith(f"{BASS} | Stopped; ")


def test_lost_scheduler_is_one_sentence_and_ends_the_run(stepping, tmp_path):
    (tmp_path / "own").mkdir()
    own = DaskCluster(tmp_path / "own")
    try:
        own.add("w1")
        sender, kernel = start_bass(stepping, own.ready(1).address)
        own.scheduler.kill()
        assert (
            printed_by(sender, 2)
            .splitlines()[-1]
            .startswith(
                f"The Dask scheduler at CLUSTER={own.address} went away; what was finished is kept."
            )
        )
        until(lambda: gone(kernel))
    finally:
        own.close()


def test_failure_on_a_worker_is_told_here_and_trainings_go_where_a_gpu_is(
    tree, dask_cluster, with_gpu
):
    tree.notebook(
        "02_train_unet", COMMON + '\ninstrument = "vocals"\nseed = 0', "print('so far')", "1 / 0"
    )
    sender = start(tree, "run", BASS, "--profile=tiny", CUNET_CLUSTER=dask_cluster.address)
    printed = printed_by(sender, 1)
    assert f"{BASS} | runs on {with_gpu}" in printed
    assert f"{BASS} | so far" in printed
    failed = rf"{BASS} failed in cell \[\d+\]: 1 / 0\n  ZeroDivisionError: division by zero"
    assert re.search(failed, printed)
    assert (tree.root / f"results/tiny/logs/{BASS}.failed.ipynb").exists()


def test_cluster_is_counted_and_decides_the_number_of_jobs(tree, dask_cluster, with_gpu):
    counted = start(tree, "cluster", "tiny", CUNET_CLUSTER=dask_cluster.address)
    said, number = printed_by(counted).splitlines()
    assert said.startswith("cluster | 3 workers, 3 runs at a time, 1 with a GPU for the trainings")
    assert number == "3"
    words = ("--dry-run", "reproduce", "PROFILE=tiny")
    plan = tree.make(*words, CLUSTER=dask_cluster.address).stdout
    # A worker knows its share of the threads.
    assert "cunet_lib.cli run 02_train_unet.bass-seed0" in plan and "CUNET_THREADS" not in plan


def test_cluster_without_workers_or_scheduler_is_one_sentence(bare_tree, tmp_path):
    empty = DaskCluster(tmp_path)
    soon = {"CLUSTER": empty.address, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    try:
        there = bare_tree.make("reproduce", "PROFILE=tiny", CLUSTER=empty.address)
    finally:
        empty.close()
    lost = bare_tree.make("reproduce", "PROFILE=tiny", **soon)
    for done, said in (
        (there, f"The Dask scheduler at CLUSTER={empty.address} has no workers;"),
        (lost, f"No Dask scheduler answers at CLUSTER={empty.address} ("),
    ):
        first, *rest = done.stderr.splitlines()
        assert done.returncode != 0 and first.startswith(said)
        assert all(line.startswith("make") for line in rest)


def test_name_of_a_cluster_is_no_address(bare_tree):
    done = bare_tree.make("reproduce", "PROFILE=tiny", CLUSTER="della")
    assert done.returncode != 0
    assert "CLUSTER=della is no address of a Dask scheduler" in done.stderr
    # Where it is no business of the target, a site's own variable does no harm.
    assert bare_tree.make("help", CLUSTER="della").returncode == 0


# ------------------------------------------------------------------- what a worker has to see


@pytest.fixture
def expected(monkeypatch, tmp_path):
    for name in ("data", "results", "musdb"):
        monkeypatch.setenv(f"CUNET_{name.upper()}", str(tmp_path / name))
    (tmp_path / "musdb").mkdir()
    with cluster._expected(load_profile("smoke")) as found:
        assert cluster._problem(found) == ""  # this one sees everything
        yield found
    assert not list(tmp_path.rglob(".shared-*"))


@pytest.mark.parametrize("folder", ["data/smoke", "results/smoke", "musdb"])
def test_worker_with_a_folder_of_its_own_is_told_which(expected, tmp_path, folder):
    """Another folder under the same path, as on a machine that does not mount the shared one."""
    (path,) = [path for path, shown in expected["files"].items() if shown.endswith(folder)]
    moved = Path(path).rename(f"{path}-elsewhere")
    problem = cluster._problem(expected)
    moved.rename(path)
    assert f"does not see {tmp_path / folder} as" in problem and "all machines share" in problem


def test_worker_with_another_library_or_version_is_told_so(expected, tmp_path):
    """The library is read from the disk each time: a worker lives for days."""
    path = tmp_path / "module.py"
    path.write_text("VALUE = 1\n")
    library = {str(tmp_path): cluster._hash(str(tmp_path))}
    assert cluster._problem({**expected, "library": library}) == ""
    path.write_text("VALUE = 2\n")
    assert f"does not see {tmp_path} as" in cluster._problem({**expected, "library": library})
    versions = {**expected["versions"], "keras": "3.0.0"}
    other = cluster._problem({**expected, "versions": versions})
    assert "the machine that sends the runs has 3.0.0" in other and "requirements.lock" in other
