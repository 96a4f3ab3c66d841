"""Worker processes: each keeps to one thread, and is given no more than it can take."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cunet_lib import parallel, workloads


def test_libraries_that_come_with_a_task_use_one_thread(monkeypatch):
    """A fresh worker has not loaded NumPy yet when its threads are limited."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with parallel.pool(2, workers=2) as processes:
        assert list(processes.map(workloads._threads, range(4))) == [1, 1, 1, 1]


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
