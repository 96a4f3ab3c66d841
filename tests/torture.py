"""Kill ``make reproduce PROFILE=smoke`` again and again; the scores must be as if never killed.

A fixed plan from a seed, bounded by a number of kills and a time for each run: an undisturbed run
says what the results are and how long it takes; then a second study, in folders of its own, is
killed (SIGKILL to make and all its jobs, or SIGTERM, or SIGINT, as Ctrl-C sends it) at moments
drawn from the seed, started again each time, and at last left to finish. Scores and tables of both
are compared, save for times. ``make torture`` runs it and writes
``results/reliability/reliability.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cunet_lib.files import write_atomically, write_json  # noqa: E402
from cunet_lib.parallel import cores  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
"""Drawn evenly, so that half of the kills cannot be caught."""


class Study:
    """One study of the smoke profile in folders of its own."""

    def __init__(self, root: Path):
        self.root = root
        self.results = root / "results" / "smoke"
        self.output: list[str] = []

    def start(self) -> subprocess.Popen:
        """Start ``make reproduce``; its output goes to a file."""
        self.root.mkdir(parents=True, exist_ok=True)
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MAKE", "MFLAGS"))
        }
        roots = {"CUNET_DATA": self.root / "data", "CUNET_RESULTS": self.root / "results"}
        environment |= {"CUNET_PYTHON": sys.executable, **{k: str(v) for k, v in roots.items()}}
        with (self.root / "output.txt").open("ab") as output:
            return subprocess.Popen(
                ["make", "reproduce", "PROFILE=smoke"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, *, limit: float) -> float:
        """Run to the end; seconds."""
        began = time.monotonic()
        code = self.start().wait(timeout=limit)
        if code:
            raise SystemExit(f"make failed ({code}); see {self.root / 'output.txt'}.")
        return time.monotonic() - began

    def strike(self, after: float, number: signal.Signals) -> dict:
        """Start, wait, kill; what happened."""
        process = self.start()
        began = time.monotonic()
        try:
            code = process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            os.killpg(process.pid, number)
            code = process.wait(timeout=60)
            return {
                "signal": number.name,
                "after": round(after, 1),
                "ended_in": round(time.monotonic() - began, 2),
                "exit": code,
                "stages_done": len(list((self.results / "notebooks").glob("*.ipynb"))),
            }
        return {
            "signal": None,
            "after": round(time.monotonic() - began, 1),
            "exit": code,
            "stages_done": len(list((self.results / "notebooks").glob("*.ipynb"))),
        }


def differences(one: Study, other: Study) -> list[str]:
    """Every result that is not the same in both, by name."""
    found = []
    for pattern in ("scores/*.csv", "scores/excerpt/*.csv", "scores/ablation/*.csv"):
        found += _unequal(one, other, pattern, lambda path: path.read_bytes())
    # Tables with times of their own are compared without them.
    found += _unequal(one, other, "tables/*.csv", _timeless)
    found += _unequal(one, other, "runs/*/history.csv", _timeless)
    leftovers = [path for path in other.results.rglob(".*partial*") if path.is_file()]
    found += [f"left behind: {path.relative_to(other.results)}" for path in leftovers]
    leftovers = other.results.glob("runs/*/checkpoint")
    return found + [f"left behind: {path.relative_to(other.results)}" for path in leftovers]


def _unequal(one: Study, other: Study, pattern: str, read) -> list[str]:
    names = {
        path.relative_to(study.results)
        for study in (one, other)
        for path in study.results.glob(pattern)
    }
    found = [] if names else [f"nothing is named {pattern}"]
    for name in sorted(names):
        paths = [study.results / name for study in (one, other)]
        if not all(path.exists() for path in paths):
            found.append(f"only in one: {name}")
        elif read(paths[0]) != read(paths[1]):
            found.append(f"differs: {name}")
    return found


def _timeless(path: Path) -> str:
    table = pd.read_csv(path)
    times = [
        column
        for column in table
        if any(word in column.lower() for word in ("second", "minute", "patches/s", "per_second"))
    ]
    return table.drop(columns=times).to_csv(index=False)


def resumed(study: Study) -> dict[str, int]:
    """How often each training went on after a kill."""
    records = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(study.results.glob("runs/*/run.json"))
    }
    return {name: record["resumed"] for name, record in records.items()}


def report(record: dict) -> str:
    """The outcome as Markdown."""
    outcome = "none" if not record["differences"] else ", ".join(record["differences"])
    lines = [
        "# Reliability of `make reproduce`",
        "",
        f"{record['kills']} kills of the profile `smoke` (seed {record['seed']}, {record['cores']} "
        f"cores), each followed by the same command again. An undisturbed run took "
        f"{record['undisturbed_seconds']:.0f} s, the killed one {record['killed_seconds']:.0f} s "
        f"in all. Trainings that went on from a checkpoint: {sum(record['resumed'].values())}.",
        "",
        f"Scores, tables and training histories that differ from the undisturbed run: {outcome}.",
        "",
        "| signal | after (s) | ended in (s) | stages done |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {strike['signal'] or 'none: it had finished'} | {strike['after']} | "
        f"{strike.get('ended_in', '')} | {strike['stages_done']} |"
        for strike in record["strikes"]
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the plan; exit status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one whole run")
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: temporary)")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "reliability")
    options = parser.parse_args()
    if options.kills < 0:
        parser.error("--kills must be at least 0")
    with tempfile.TemporaryDirectory(prefix="cunet-torture-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        record = torture(folder, kills=options.kills, seed=options.seed, limit=options.limit)
    write_json(options.output / "reliability.json", record)
    text = report(record)
    write_atomically(options.output / "reliability.md", text)
    print(text)
    return 1 if record["differences"] else 0


def torture(folder: Path, *, kills: int, seed: int, limit: float) -> dict:
    """Run the plan in a folder and return its record."""
    undisturbed, killed = Study(folder / "undisturbed"), Study(folder / "killed")
    seconds = undisturbed.finish(limit=limit)
    print(f"undisturbed run: {seconds:.0f} s", flush=True)
    rng = random.Random(seed)
    began = time.monotonic()
    strikes = []
    for number in range(kills):
        # A stage takes some seconds; with more kills each comes sooner, so that all of them fall
        # into the run, and the last stages are reached too.
        after = rng.uniform(2.0, max(6.0, 2.5 * seconds / max(kills, 1)))
        strikes.append(killed.strike(after, rng.choice(SIGNALS)))
        print(f"kill {number + 1}/{kills}: {strikes[-1]}", flush=True)
    killed.finish(limit=limit)
    return {
        "seed": seed,
        "kills": kills,
        "cores": cores(),
        "machine": platform.machine(),
        "undisturbed_seconds": round(seconds, 1),
        "killed_seconds": round(time.monotonic() - began, 1),
        "resumed": resumed(killed),
        "strikes": strikes,
        "differences": differences(undisturbed, killed),
    }


if __name__ == "__main__":
    sys.exit(main())
