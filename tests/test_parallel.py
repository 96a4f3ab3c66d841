"""Worker processes: each keeps to one thread."""

from cunet_lib import parallel, workloads


def test_libraries_that_come_with_a_task_use_one_thread(monkeypatch):
    """A fresh worker has not loaded NumPy yet when its threads are limited."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with parallel.pool(2, workers=2) as processes:
        assert list(processes.map(workloads._threads, range(4))) == [1, 1, 1, 1]
