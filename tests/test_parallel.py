"""Tracks side by side: one thread a worker, bounded memory, and no worker outlives its parent."""

import os
import signal
import sys
import time

import psutil
import pytest
import threadpoolctl
from conftest import ran

from cunet_lib.core import hardware, processes
from cunet_lib.core.settings import ROOT, ConfigError


def run(function, arguments, total, workers=2):
    return processes.map_tracks(function, arguments, total=total, label="tracks", workers=workers)


def threads(number):
    import scipy.linalg  # noqa: F401  # comes with the first track, after the worker's start

    return number, os.getpid(), max(each["num_threads"] for each in threadpoolctl.threadpool_info())


def test_workers_keep_to_one_thread_and_results_to_their_order(monkeypatch, capsys):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = run(threads, ((number,) for number in range(6)), 6)
    assert [number for number, _, _ in found] == list(range(6))
    assert {count for _, _, count in found} == {1}
    assert os.getpid() not in {pid for _, pid, _ in found}
    assert capsys.readouterr().out.endswith("tracks 6/6\n")


def test_one_worker_is_this_process(capsys):
    assert [pid for _, pid, _ in run(threads, [(1,), (2,)], 2, workers=1)] == [os.getpid()] * 2
    assert run(threads, [], 0) == []
    assert capsys.readouterr().out.endswith("tracks 2/2\ntracks: nothing to do\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_arguments_are_made_as_workers_take_them(tmp_path, workers):
    """However many tracks there are, the signals of a few are in memory."""
    most = []

    def arguments():
        for number in range(40):
            most.append(number + 1 - len(list(tmp_path.iterdir())))
            yield (tmp_path / str(number),)

    run(os.mkdir, arguments(), 40, workers)
    assert len(list(tmp_path.iterdir())) == 40 and max(most) <= 3 * workers


def refuse(path):
    path.touch()
    raise ConfigError(f"track {path.name}")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_failure_ends_the_rest_and_is_raised_as_it_is(tmp_path, workers):
    with pytest.raises(ConfigError, match=r"track [01]$"):  # two fail side by side
        run(refuse, ((tmp_path / str(number),) for number in range(50)), 50, workers)
    assert len(list(tmp_path.iterdir())) < 10

    def broken():
        yield from ((tmp_path / f"made{number}",) for number in range(8))
        raise ValueError("no ninth track")

    with pytest.raises(ValueError, match="no ninth track"):
        run(os.mkdir, broken(), 20, workers)


FREED = """
import numpy as np, psutil
from cunet_lib.core import processes

def work(found):
    for _ in range(2):
        np.ones(1 << 23)
    found.append(psutil.Process().memory_info().rss)

found = []
work(found)
before = psutil.Process().memory_info().rss
work(found)
processes.map_tracks(work, [(found,)], total=1, label="tracks")
found.append(psutil.Process().memory_info().rss)
print(*((each - before) / (8 << 23) for each in found[1:]))
"""


def test_freed_memory_is_kept_until_the_work_is_done():
    """In units of an array that is made twice: what is used twice is kept once."""
    done = ran(sys.executable, "-c", FREED)
    assert done.returncode == 0, done.stderr
    freed, kept, after = map(float, done.stdout.splitlines()[-1].split())
    assert freed < 0.2 and 0.9 < kept < 1.5 and after < 0.2


ORPHAN = """
import os, signal, time
from cunet_lib.core.processes import map_tracks

def work(number):
    if number == 3:
        os.kill({parent}, signal.SIGKILL)
        time.sleep(60)
    print(os.getpid(), flush=True)

map_tracks(work, ((number,) for number in range(9)), total=9, label="tracks", workers=2)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    """Idle or at work."""
    script = ORPHAN.replace("{parent}", "os.getppid()")
    # The time is also for the workers, which hold the pipes.
    done = ran(sys.executable, "-c", script, timeout=60, PYTHONPATH=ROOT)
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    pids = {int(line) for line in done.stdout.split() if line.isdecimal()}
    assert pids
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_card_without_its_libraries_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr(hardware, "NVIDIA", tmp_path)
    assert "make env GPU=1" in hardware.idle_gpu()
    monkeypatch.setattr(hardware, "NVIDIA", tmp_path / "none")
    assert hardware.idle_gpu() == ""
