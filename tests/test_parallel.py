"""Worker processes: each keeps to one thread, and is given no more than it can take."""

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import workloads
from cunet_lib.core import processes as parallel
from cunet_lib.core.settings import ROOT


def test_libraries_that_come_with_a_task_use_one_thread(monkeypatch):
    """A fresh worker has not loaded NumPy yet when its threads are limited."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with parallel.pool(2, workers=2) as processes:
        assert list(processes.map(workloads._threads, range(4))) == [1, 1, 1, 1]


FREED = """
import numpy as np
from cunet_lib.core import processes as parallel
from benchmarks import timing

def work(found):
    for _ in range(2):
        np.ones(1 << 23)
    found.append(timing.resident()[0])

found = []
work(found)
before = timing.resident()[0]
work(found)
with parallel.pool(1) as executor:
    parallel.for_each(executor, work, [(found,)])
found.append(timing.resident()[0])
print(*((each - before) / (8 << 23) for each in found[1:]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_a_pool_keeps_freed_memory_until_its_work_is_done():
    """In units of an array that is made twice: what is used twice is kept once."""
    done = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, check=True, cwd=ROOT
    )
    freed, kept, after = map(float, done.stdout.split())
    assert freed < 0.2 and 0.9 < kept < 1.5 and after < 0.2


def test_other_c_libraries_are_left_alone(monkeypatch):
    def no_library(name):
        raise OSError("no such library")

    calls = []
    for library in (no_library, lambda name: object()):
        monkeypatch.setattr(parallel.ctypes, "CDLL", library)
        with parallel.pool(1) as executor:
            parallel.for_each(executor, calls.append, [(1,), (2,)])
    assert calls == [1, 2, 1, 2]


def test_arguments_are_made_as_workers_take_them():
    """However many tracks there are, the signals of a few are in memory."""
    alive, most, done = set(), [], []

    def arguments():
        for number in range(50):
            alive.add(number)
            most.append(len(alive))
            yield (number,)

    def work(number):
        done.append(number)
        alive.discard(number)

    with ThreadPoolExecutor(2) as executor:
        parallel.for_each(executor, work, arguments())
    assert sorted(done) == list(range(50))
    assert max(most) <= 5


def test_the_first_failure_ends_the_rest():
    begun = []

    def work(number):
        begun.append(number)
        raise ValueError(f"track {number}")

    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="track"):
        parallel.for_each(executor, work, ((number,) for number in range(50)))
    assert len(begun) < 10
