"""What the study costs on this machine, every figure beside its reference: ``make bench``.

Machines differ and are noisy. So every figure is a ratio within one run: the two sides take turns
in one process, and the ratio is the median over turns with its quartiles. Each part has a process
of its own (:mod:`benchmarks.workloads`). What was found goes to ``results/bench``: ``bench.json``
with all numbers, ``bench.md``, a table. A part that is measured again replaces its old figures and
leaves the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from cunet_lib.core.files import read_json, write_atomically, write_json
from cunet_lib.core.hardware import cores, cpu
from cunet_lib.core.settings import ROOT, ConfigError

FOLDER = ROOT / "results" / "bench"

PARTS = ("batches", "stft", "training", "preprocessing", "evaluation", "separation", "panel")
"""Functions of :mod:`benchmarks.workloads`, in the order of the table."""

HEADER = ("Part", "What", "Ours", "Reference", "Ratio", "Wanted")

QUICK = 0.1
"""Share of the time, the tracks and the length of songs that a quick run takes."""

LONGEST = 1800
"""Seconds after which a part is given up."""


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


class BenchFailed(RuntimeError):
    """A part failed; the message says which and why."""


def measure(part: str, *, scale: float = 1.0, torch: str | None = None) -> dict:
    """Run one of :data:`PARTS` in a process of its own, with scratch folders.

    Parameters
    ----------
    scale
        Share of the whole measurement.
    torch
        An interpreter that has PyTorch, to compare with; None if there is none.

    Returns
    -------
    dict
        Under ``rows`` the fields of every :class:`Row`, under ``found`` what they were made of.

    Raises
    ------
    BenchFailed
        If it fails, or takes longer than :data:`LONGEST`.
    """
    with tempfile.TemporaryDirectory(prefix="cunet-bench-") as folder:
        result = Path(folder) / "found.json"
        roots = {"CUNET_DATA": f"{folder}/data", "CUNET_RESULTS": f"{folder}/results"}
        given = json.dumps({"scale": scale, "torch": torch})
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.workloads", part, given, str(result)],
                env={**os.environ, **roots},
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchFailed(f"{part} did not end in {LONGEST // 60} minutes.") from error
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            last = reason[-1] if reason else "it was killed; perhaps memory ran out"
            raise BenchFailed(f"{part} failed: {last}")
        return json.loads(result.read_text(encoding="utf-8"))


def markdown(record: dict) -> str:
    """The table of a record, and a line about machine and doubts."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---|---:|---|"]
    parts = {part: record["parts"][part] for part in PARTS if part in record["parts"]}
    for part, found in parts.items():
        for index, fields in enumerate(found["rows"]):
            row = Row(**fields)
            cell = number(row.ratio)
            if row.low != row.high:
                cell += f" ({number(row.low)} to {number(row.high)})"
            wanted = row.wanted
            if wanted:
                wanted += ", reached" if row.reached else ", **missed**"
            name = "" if index else part
            cells = (name, row.what, row.ours, row.reference, cell, wanted)
            lines.append("| " + " | ".join(cells) + " |")
    on = record["machine"]
    lines += [
        "",
        f"Measured on {on['processor']}, {on['cores']} cores, TensorFlow {on['tensorflow']}. "
        "Ratios are medians over turns, quartiles in parentheses.",
    ]
    if quick := [part for part, found in parts.items() if found["quick"]]:
        lines[-1] += f" Measured in a hurry (`--quick`), so rough: {', '.join(quick)}."
    return "\n".join(lines) + "\n"


def read_record(folder: Path) -> dict:
    """What ``bench.json`` holds: machine and parts; no parts if there is none.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    path = folder / "bench.json"
    if not path.is_file():
        return {"parts": {}}
    try:
        return read_json(path, "machine", "parts")
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged; delete it and run `make bench` again.") from error


def machine() -> dict:
    """What figures depend on, besides the code."""
    packages = {name: version(name) for name in ("tensorflow", "keras", "numpy")}
    about = {"system": platform.system(), "python": platform.python_version()}
    return {"processor": cpu()["model"], "cores": cores(), **about, **packages}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep it in ``results/bench``."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help=f"of: {', '.join(PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="rough figures, soon")
    parser.add_argument(
        "--torch",
        default=os.environ.get("CUNET_TORCH"),
        metavar="PYTHON",
        help="an interpreter that has PyTorch, to compare with (default: CUNET_TORCH)",
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="another folder than results/bench"
    )
    given = parser.parse_args(arguments)
    try:
        record = read_record(given.out)
        record["machine"] = machine()
        for part in given.only or PARTS:
            print(f"bench | {part}", flush=True)
            start = time.perf_counter()
            found = measure(part, scale=QUICK if given.quick else 1.0, torch=given.torch)
            record["parts"][part] = {
                "quick": given.quick,
                "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - start, 1),
                **found,
            }
            # Part by part: what was measured stays, whatever happens to the next.
            write_json(given.out / "bench.json", record)
            write_atomically(given.out / "bench.md", markdown(record))
    except (ConfigError, BenchFailed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(markdown(record))
    return 0


if __name__ == "__main__":
    # Ends by an exception, so that the workload that is running ends too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
