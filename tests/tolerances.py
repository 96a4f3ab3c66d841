"""Measure how far a study's tables are apart when nothing changes but threads and precision.

``make tolerances PROFILE=demo`` takes the finished study of this checkout, ``make reproduce`` has
made it, and trains, evaluates and tabulates its models again beside it: with every core for one
training, and in the other precision (a processor without bfloat16 rounds as one that has it, see
``cunet_lib.models.fast``). The largest differences between the tables, by kind of column, times a
margin, become the limits that ``make verify`` holds results of another machine to. They land in
``results/<profile>/tolerances.json``, beside the tables that they belong to.

All models together take as long as the study, twice; ``MODELS="dense_complex unet_vocals"`` trains
these alone and leaves the others as they are. ``TOLERANCES_ARGS="--beside NAME FOLDER"`` takes in
the results of the same study that another machine, or another commit, has made of all models. With
``--folder`` the work is kept, and goes on there when it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cunet_lib.core.files import write_json  # noqa: E402
from cunet_lib.core.processes import cores  # noqa: E402
from cunet_lib.core.settings import ConfigError, Profile, load_profile  # noqa: E402
from cunet_lib.core.systems import UNETS, VARIANTS
from cunet_lib.report import verify as report  # noqa: E402

MARGIN = 1.5
"""Limits are so many times the largest difference seen: a few runs do not show the largest."""

OTHER = {"float32": "mixed_bfloat16", "mixed_bfloat16": "float32"}


def variants(threads: int, precision: str) -> dict[str, dict]:
    """Runs by name: threads of a training, and its precision; the first is the study as it is."""
    others = cores() if threads < cores() else 1
    return {
        f"{count} threads, {kind}": {"threads": count, "precision": kind}
        for count, kind in ((threads, precision), (others, precision), (threads, OTHER[precision]))
    }


def stages_of(models: Sequence[str]) -> tuple[list[str], list[str]]:
    """Stages that train the models, and stages that evaluate them."""
    trained = [
        f"02_train_unet.{model.removeprefix('unet_')}"
        if model in UNETS
        else f"03_train_cunet.{model}"
        for model in models
    ]
    scored = dict.fromkeys("unet" if model in UNETS else model for model in models)
    return [f"{each}-seed0" for each in trained], [f"04_evaluate.{each}-seed0" for each in scored]


def run(
    folder: Path, settings: Profile, models: Sequence[str], *, threads: int, precision: str
) -> Path:
    """Make the models of a copy of the study again; its folder of tables."""
    copy = folder / settings.name
    if not copy.is_dir():
        unused = shutil.ignore_patterns("notebooks", "logs", "report", "sweeps", ".*")
        partial = folder / "partial"
        shutil.copytree(settings.paths.results, partial, ignore=unused, dirs_exist_ok=True)
        partial.rename(copy)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    roots = {"CUNET_RESULTS": str(folder), "CUNET_DATA": str(settings.paths.data.parent)}

    def stage(name: str, *arguments: str, threads: int = cores()) -> None:
        if (copy / "notebooks" / f"{name}.ipynb").exists():
            return
        words = [sys.executable, "-m", "cunet_lib.cli", "run", name, "--profile", settings.name]
        subprocess.run(
            [*words, *arguments],
            cwd=ROOT,
            env={**kept, **roots, "CUNET_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            check=True,
        )

    began = time.monotonic()
    trained, scored = stages_of(models)
    with ThreadPoolExecutor(max(1, cores() // threads)) as jobs:
        for names, arguments in (
            (trained, ("--overrides", f"train.precision={precision}")),
            (scored, ()),
        ):
            list(jobs.map(lambda name, more=arguments: stage(name, *more, threads=threads), names))
    stage("05_plot", "-p", "seeds", "0")
    print(f"{folder.name}: {time.monotonic() - began:.0f} s", flush=True)
    return copy / "tables"


def beside(folder: Path, own: Path) -> Path:
    """Tables of the same study in another folder of results.

    Raises
    ------
    ConfigError
        If the folder holds no finished results, or those of other settings.
    """
    facts = []
    for place in (folder, own):
        path = place / "manifest.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            # Not the corpus: another processor renders its last bits otherwise.
            facts.append(content["settings_hash"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{path} is missing or damaged; name the folder of a finished profile's results."
            ) from error
    if facts[0] != facts[1]:
        raise ConfigError(
            f"The results in {folder} come from other settings; name those of the same."
        )
    return folder / "tables"


def largest(tables: dict[str, Path]) -> dict[str, dict]:
    """Largest difference of each kind of column over all pairs of runs, and where it was."""
    found: dict[str, dict] = {}
    for (one, left), (other, right) in itertools.combinations(tables.items(), 2):
        for path in sorted(left.glob("*.csv")):
            try:
                frames = [pd.read_csv(folder / path.name) for folder in (left, right)]
            except FileNotFoundError as error:
                raise SystemExit(f"{path.name} is missing in {other}.") from error
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
    """Limit of each kind: the largest difference times the margin, rounded up to two digits.

    A kind that never differed, as those of tables that nothing here makes again, keeps its own.
    """
    chosen = {}
    for kind, seen in found.items():
        if value := MARGIN * seen["difference"]:
            step = 10.0 ** (math.floor(math.log10(value)) - 1)
            chosen[kind] = float(f"{math.ceil(value / step) * step:.2g}")
    return chosen


def main() -> int:
    """Run every variant and write the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?", default="smoke")
    parser.add_argument(
        "--models", nargs="+", default=[*UNETS, *VARIANTS], choices=[*UNETS, *VARIANTS]
    )
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: temporary)")
    parser.add_argument(
        "--beside",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "FOLDER"),
        help="results of the same study from elsewhere, such as ../other/results/demo",
    )
    options = parser.parse_args()
    settings = load_profile(options.profile)
    records = [settings.paths.run(model, 0) / "run.json" for model in (*UNETS, *VARIANTS)]
    missing = [record for record in records if not record.is_file()]
    if missing or not (settings.paths.results / "notebooks" / "05_plot.ipynb").is_file():
        print(
            f"The study of profile {settings.name} is not finished here; "
            f"`make reproduce PROFILE={settings.name}` finishes it.",
            file=sys.stderr,
        )
        return 2
    was = json.loads(records[0].read_text(encoding="utf-8"))
    (first, _), *others = variants(was["threads"], was["precision"]).items()
    tables = {first: settings.paths.tables}
    try:
        for name, folder in options.beside:
            tables[name] = beside(Path(folder), settings.paths.results)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="cunet-tolerances-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        for name, facts in others:
            place = folder / re.sub(r"\W+", "-", name)
            tables[name] = run(place, settings, options.models, **facts)
        found = largest(tables)
    record = {"runs": list(tables), "models": options.models, "cores": cores(), "margin": MARGIN}
    path = settings.paths.results / report.MEASURED
    write_json(path, {**record, "seen": found, "limits": limits(found)})
    print(json.dumps(limits(found), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
