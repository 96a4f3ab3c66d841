"""Calls side by side, and the rows of the table that they give.

Machines are noisy and change their pace from minute to minute. Calls that are compared therefore
take turns, and ratios are formed within a turn before they are summed up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes
    ----------
    what
        What is measured.
    ours, reference
        The two sides, as text with units; the reference is named in it.
    ratio, low, high
        Median and quartiles of the ratio.
    wanted
        Such as ``">= 20"`` or ``"<= 1.1"``; empty if nothing is.
    """

    what: str
    ours: str
    reference: str
    ratio: float
    low: float
    high: float
    wanted: str = ""

    @property
    def reached(self) -> bool:
        """Whether the ratio is as wanted."""
        sign, bound = self.wanted.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def number(value: float) -> str:
    """Three digits, as people write them: 0.0312, 21.4, 1234."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def compared(
    what: str, ours: str, reference: str, over: Sequence[float], under: Sequence[float], wanted=""
) -> Row:
    """Row of the ratio ``over / under``, formed turn by turn."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low = median = high = ratios[0]
    if len(ratios) > 1:
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(what, ours, reference, median, low, high, wanted)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, turns: int, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each call, by its name, in each turn.

    The order within a turn alternates, so that none always follows the same other. ``warm`` runs
    every call once beforehand, which traces graphs and fills caches.
    """
    for call in calls.values() if warm else ():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            calls[name]()
            taken[name].append(time.perf_counter() - start)
    return taken
