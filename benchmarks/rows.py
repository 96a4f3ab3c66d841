"""Rows of the bench, and their record: ``bench.json`` and the table ``bench.md``."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.timing import Spread
from cunet_lib.core.files import write_atomically, write_json
from cunet_lib.core.hardware import cores, cpu
from cunet_lib.core.settings import ROOT, ConfigError

FOLDER = ROOT / "results" / "bench"

HEADER = ("Part", "What", "Ours", "Reference", "Ratio", "Wanted")


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
        Median and quartiles of the ratio; None where something is only stated.
    wanted
        Such as ``">= 20"`` or ``"<= 1.1"``; empty if nothing is.
    """

    what: str
    ours: str
    reference: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    wanted: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the ratio is as wanted; None if nothing is wanted."""
        if not self.wanted:
            return None
        sign, bound = self.wanted.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def compared(what: str, ours: str, reference: str, spread: Spread, wanted: str = "") -> Row:
    """Row of a ratio with its spread."""
    return Row(what, ours, reference, spread.median, spread.low, spread.high, wanted)


def middle(values: Sequence[float]) -> float:
    """Median."""
    return statistics.median(values)


def milliseconds(values: Sequence[float]) -> str:
    """Median of seconds, as text."""
    return f"{1e3 * middle(values):.3g} ms"


def bytes_(count: float) -> str:
    """Bytes as text."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _number(value: float) -> str:
    """Three digits, as people write them.

    >>> _number(0.0312), _number(21.36), _number(1234.5)
    ('0.0312', '21.4', '1234')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(record: dict, parts: Sequence[str]) -> str:
    """The table of a record, its parts in this order, and a line about machine and doubts."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---|---:|---|"]
    quick = []
    for part in parts:
        if part not in record["parts"]:
            continue
        found = record["parts"][part]
        if found["quick"]:
            quick.append(part)
        for index, fields in enumerate(found["rows"]):
            row = Row(**fields)
            cell = "" if row.ratio is None else _number(row.ratio)
            if row.low is not None and row.low != row.high:
                cell += f" ({_number(row.low)} to {_number(row.high)})"
            wanted = row.wanted
            if row.reached is not None:
                wanted += ", reached" if row.reached else ", **missed**"
            name = part if index == 0 else ""
            cells = (name, row.what, row.ours, row.reference, cell, wanted)
            lines.append("| " + " | ".join(cells) + " |")
    machine = record["machine"]
    lines += [
        "",
        f"Measured on {machine['processor']}, {machine['cores']} cores, TensorFlow "
        f"{machine['tensorflow']}. Ratios are medians over turns, quartiles in parentheses.",
    ]
    if quick:
        lines[-1] += f" Measured in a hurry (`--quick`), so rough: {', '.join(quick)}."
    return "\n".join(lines)


def read_record(folder: Path = FOLDER) -> dict | None:
    """What ``bench.json`` holds; None if there is none.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    path = folder / "bench.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"machine": record["machine"], "parts": record["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; delete it and run `make bench` again.") from error


def machine() -> dict:
    """What figures depend on, besides the code."""
    return {
        "processor": cpu()["model"],
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "numpy": version("numpy"),
    }


def keep(record: dict, parts: Sequence[str], folder: Path = FOLDER) -> None:
    """Write a record and its table."""
    write_json(folder / "bench.json", record)
    text = markdown(record, parts)
    write_atomically(folder / "bench.md", f"{text}\n")
