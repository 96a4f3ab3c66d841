"""Times of calls side by side, and the memory of this process.

Machines are noisy and change their pace from minute to minute. Calls that are compared therefore
take turns, and ratios are formed within a turn before they are summed up.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cunet_lib.core.hardware import peak_memory

STATUS = Path("/proc/self/status")
TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Spread:
    """Middle of several measurements.

    Attributes
    ----------
    median, low, high
        Median and quartiles.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratios turn by turn.

    >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median
    2.0
    """
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    least: int = 3,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each call in each turn.

    The order within a turn alternates, so that none always follows the same other.

    Parameters
    ----------
    calls
        By name.
    seconds
        About this long for all of them together.
    least
        Turns at least, however long they take.
    warm
        Run every call once beforehand, which traces graphs and fills caches.
    """
    for call in calls.values() if warm else ():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    turn = 0
    while turn < least or time.perf_counter() - began < seconds:
        order = list(calls) if turn % 2 == 0 else list(reversed(calls))
        for name in order:
            start = time.perf_counter()
            calls[name]()
            taken[name].append(time.perf_counter() - start)
        turn += 1
    return taken


def resident() -> tuple[float, float]:
    """Bytes of this process that are its own, and those that mirror files.

    The system takes the latter back when it needs them. Where it does not tell them apart, all
    count as its own.
    """
    with contextlib.suppress(OSError, KeyError):
        status = _status()
        return 1024.0 * status["RssAnon"], 1024.0 * (status["RssFile"] + status["RssShmem"])
    return peak_memory(), 0.0


class Watched:
    """Peaks in bytes, from looks at regular times.

    Attributes
    ----------
    own
        Of this process, without files that are mapped into its memory.
    mapped
        Of the files mapped into it, which the system takes back when it needs the memory.
    child
        Of the largest process that this one started; 0 if there was none.
    """

    def __init__(self):
        self.own = self.mapped = self.child = 0.0

    def look(self) -> None:
        """Take note of what this process holds, and of the peaks so far of children that live."""
        own, mapped = resident()
        self.own, self.mapped = max(self.own, own), max(self.mapped, mapped)
        for path in TASKS.glob("*/children"):
            with contextlib.suppress(OSError, KeyError):
                for child in path.read_text().split():
                    peak = 1024.0 * _status(f"/proc/{child}/status")["VmHWM"]
                    self.child = max(self.child, peak)


@contextlib.contextmanager
def watched_memory(every: float = 0.05) -> Iterator[Watched]:
    """Watch this process and its children while the body runs.

    The children's ``ru_maxrss`` would not do: on Linux it begins with the peak of the parent.
    """
    watched, done = Watched(), threading.Event()

    def watch():
        while not done.wait(every):
            watched.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield watched
    finally:
        done.set()
        watcher.join()
        watched.look()


def _status(path: Path | str = STATUS) -> dict[str, int]:
    """Fields of a process's ``status`` that are given in kB."""
    words = (line.split() for line in Path(path).read_text().splitlines())
    return {word[0].rstrip(":"): int(word[1]) for word in words if word and word[-1] == "kB"}
