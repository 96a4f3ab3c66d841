"""Measure how far a study's tables are apart when nothing changes but threads and precision.

``make tolerances PROFILE=demo`` runs the whole study in clones of this checkout: as ``make
reproduce`` does it, with one job that has every core, and in the other precision. The largest
differences between their tables, by kind of column, times a margin, become the limits that ``make
verify`` holds results of another machine to. They land in ``results/<profile>/tolerances.json``,
beside the tables that they belong to.

A study of minutes takes three times as many; with ``--folder`` the work is kept, and goes on there
when it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cunet_lib import report  # noqa: E402
from cunet_lib.config import load_profile  # noqa: E402
from cunet_lib.files import write_json  # noqa: E402
from cunet_lib.parallel import cores  # noqa: E402

MARGIN = 1.5
"""Limits are so many times the largest difference seen: three runs do not show the largest."""

OTHER = {"float32": "mixed_bfloat16", "mixed_bfloat16": "float32"}


def variants(precision: str) -> dict[str, dict]:
    """Runs by name: how many jobs share the cores, and the precision."""
    jobs = cores()
    return {
        f"{jobs} jobs, {precision}": {"jobs": jobs, "precision": precision},
        f"1 job, {precision}": {"jobs": 1, "precision": precision},
        f"{jobs} jobs, {OTHER[precision]}": {"jobs": jobs, "precision": OTHER[precision]},
    }


def run(folder: Path, profile: str, *, jobs: int, precision: str) -> Path:
    """Run the study in a clone; its folder of tables."""
    checkout = folder / "checkout"
    if not checkout.is_dir():
        subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    path = checkout / "notebooks" / "profiles" / f"{profile}.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Only where it differs: make goes by the file's date.
    if settings.setdefault("train", {}).get("precision") != precision:
        settings["train"]["precision"] = precision
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "CUNET_"))}
    began = time.monotonic()
    subprocess.run(
        ["make", "reproduce", f"PROFILE={profile}", f"JOBS={jobs}"],
        cwd=checkout,
        env={**kept, "CUNET_PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    print(f"{folder.name}: {time.monotonic() - began:.0f} s", flush=True)
    return checkout / "results" / profile / "tables"


def largest(tables: dict[str, Path]) -> dict[str, dict]:
    """Largest difference of each kind of column over all pairs of runs, and where it was."""
    found: dict[str, dict] = {}
    for (one, left), (other, right) in itertools.combinations(tables.items(), 2):
        for path in sorted(left.glob("*.csv")):
            frames = [pd.read_csv(folder / path.name) for folder in (left, right)]
            keys = [key for key in report.KEYS if key in frames[0]]
            ours, theirs = (frame.set_index(keys) for frame in frames)
            if not ours.index.equals(theirs.index):
                raise SystemExit(f"{path.name} has other rows in {one} than in {other}.")
            for column in ours.columns:
                tolerance = report.tolerance_of(column)
                gap = report.gaps(ours[column], theirs[column], tolerance)
                if tolerance.limit is None or gap is None:
                    continue
                gap = gap[gap.map(math.isfinite)]
                seen = found.setdefault(tolerance.kind, {"difference": 0.0, "where": None})
                if len(gap) and gap.max() > seen["difference"]:
                    row = gap.idxmax()
                    place = ", ".join(map(str, row if isinstance(row, tuple) else (row,)))
                    seen["difference"] = float(gap.max())
                    seen["where"] = f"{path.stem}: {column} at {place}; {one} against {other}"
    return found


def limits(found: dict[str, dict]) -> dict[str, float]:
    """Limit of each kind: the largest difference times the margin, rounded up to two digits."""
    chosen = {}
    for kind, seen in found.items():
        value = MARGIN * seen["difference"]
        step = 10.0 ** (math.floor(math.log10(value)) - 1) if value else 1.0
        chosen[kind] = float(f"{math.ceil(value / step) * step:.2g}")
    return chosen


def main() -> int:
    """Run every variant and write the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?", default="smoke")
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: temporary)")
    options = parser.parse_args()
    from cunet_lib.training import precision_of

    settings = load_profile(options.profile)
    runs = variants(precision_of(settings))
    with tempfile.TemporaryDirectory(prefix="cunet-tolerances-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        tables = {
            name: run(folder / re.sub(r"\W+", "-", name), options.profile, **facts)
            for name, facts in runs.items()
        }
        found = largest(tables)
    record = {"runs": list(runs), "cores": cores(), "margin": MARGIN, "seen": found}
    path = settings.paths.results / report.MEASURED
    write_json(path, {**record, "limits": limits(found)})
    print(json.dumps(limits(found), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
