"""The study's record: the manifest, and the comparison with the committed results.

Tables and figures are made by :mod:`cunet_lib.report.tables` and :mod:`cunet_lib.report.figures`; what notebooks
need to save is at hand here too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import threadpoolctl

from cunet_lib.core.files import sha256, write_atomically
from cunet_lib.core.hardware import cpu, usable_cores
from cunet_lib.core.settings import ROOT, ConfigError, Profile
from cunet_lib.evaluation.metrics import SCORE_COLUMNS
from cunet_lib.report.card import write_cards
from cunet_lib.report.figures import save_figure
from cunet_lib.report.records import (
    count,
    json_text,
    load_runs,
    number,
    read_json,
)
from cunet_lib.report.tables import save_table

__all__ = [
    "TOLERANCES",
    "save_figure",
    "save_scores",
    "save_table",
    "verify",
    "write_manifest",
]

DISTRIBUTIONS = (
    "tensorflow",
    "keras",
    "numpy",
    "scipy",
    "librosa",
    "soxr",
    "soundfile",
    "musdb",
    "museval",
    "stempeg",
    "pretty_midi",
    "midirenderer",
    "pandas",
    "matplotlib",
    "seaborn",
    "papermill",
)
"""Distributions whose versions the manifest records."""

VARIABLES = (
    *("CUNET_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OPENBLAS_CORETYPE", "PYTHONHASHSEED"),
    *("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_XLA_FLAGS", "XLA_FLAGS"),
    *("KERAS_BACKEND", "NVIDIA_TF32_OVERRIDE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
)
"""Environment variables that change how numbers are computed; none of them holds a path."""


def save_scores(settings: Profile, scores: pd.DataFrame) -> Path:
    """Write all systems' scores as one table, ``scores/scores.csv``."""
    text = scores[list(SCORE_COLUMNS)].to_csv(index=False, lineterminator="\n")
    return write_atomically(settings.paths.scores / "scores.csv", text)


# ------------------------------------------------------------------------------ manifest


def write_manifest(settings: Profile, *, runs: pd.DataFrame | None = None) -> Path:
    """Write ``manifest.json``: what is needed to explain a difference between two machines.

    The models' cards are written anew too, now that their scores are known.

    Versions, platform, CPU, cores, threads, the profile with its hash, seeds, hashes of corpus,
    store, code and lock, a summary of each run, and hashes of the tables and scores. No paths, no
    host or user names.

    Parameters
    ----------
    runs
        As ``results.load_runs`` gives them; read if not given.

    Returns
    -------
    pathlib.Path
        The file.
    """
    paths = settings.paths
    runs = load_runs(settings) if runs is None else runs
    manifest = {
        "profile": settings.name,
        "settings": settings.model_dump(mode="json"),
        "settings_hash": settings.section_hash(),
        "seeds": {
            "profile": settings.seed,
            "corpus": settings.data.seed,
            "runs": sorted({int(seed) for seed in runs["seed"]}),
        },
        "corpus_sha256": _digest(paths.corpus / "corpus.json"),
        "store": _store(settings),
        "code": _code(settings),
        "platform": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": platform.system(),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip() or None,
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
        },
        "threads": _threads(),
        "versions": _versions(),
        "runs": [_run(row) for _, row in runs.iterrows()],
        "tables": _digests(paths.tables.glob("*.csv")),
        "scores": _digests(paths.scores.glob("*.csv")),
    }
    write_cards(settings)
    return write_atomically(paths.manifest, json_text(manifest))


def _run(row: pd.Series) -> dict:
    keys = (
        "model",
        "seed",
        "steps",
        "epochs",
        "best_epoch",
        "best_val_loss",
        "seconds",
        "precision",
        "threads",
        "store",
        "versions",
        "commit",
    )
    values = {key: row.get(key) for key in keys}
    plain = {
        key: value.item() if hasattr(value, "item") else value for key, value in values.items()
    }
    # JSON knows no infinity and no not-a-number.
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in plain.items()
    }


def _store(settings: Profile) -> dict | None:
    """Hashes of the prepared corpus: of its settings, and of all its audio."""
    path = settings.paths.store / "index.json"
    if not path.is_file():
        return None
    index = read_json(settings, path)
    tracks = index.get("tracks", [])
    lines = [f"{track.get('name')} {track.get('split')} {track.get('sha256')}" for track in tracks]
    splits = [track.get("split") for track in tracks]
    return {
        "settings_hash": index.get("settings_hash"),
        "audio_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "tracks": {split: splits.count(split) for split in sorted(set(splits), key=str)},
    }


def _versions() -> dict[str, str | None]:
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _threads() -> dict:
    """Variables that are set, and the pools of threads in NumPy's libraries."""
    pools = [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info()
    ]
    return {
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "pools": sorted(pools, key=str),
    }


def _code(settings: Profile) -> dict[str, str | None]:
    """Hashes of what was run: library, notebooks, profile and pinned packages."""
    groups = {
        "library": sorted((ROOT / "cunet_lib").rglob("*.py")),
        "notebooks": sorted((ROOT / "notebooks").glob("*.ipynb")),
    }
    hashes = {
        name: hashlib.sha256(
            "\n".join(f"{path.name} {_digest(path)}" for path in paths).encode()
        ).hexdigest()
        for name, paths in groups.items()
    }
    profile = ROOT / "notebooks" / "profiles" / f"{settings.name}.yaml"
    return {**hashes, "profile": _digest(profile), "lock": _digest(ROOT / "requirements.lock")}


def _digest(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def _digests(files) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if not path.name.startswith(".")
    }


# ------------------------------------------------------------------------------ verification


@dataclass(frozen=True)
class Tolerance:
    """How far a kind of column may be from the committed one."""

    kind: str
    columns: str  # a regular expression for the whole name
    limit: float | None  # None: shown, not compared
    relative: bool = False
    unit: str = ""


TOLERANCES = (
    Tolerance("timing", r"seconds|patches_per_second", None),
    Tolerance("machine", r"precision|best_epoch|tracks_better", None),
    Tolerance("test", r"p_(difference|equivalence)|verdict|power|(tracks|seeds)_needed", None),
    Tolerance("loss", r"best_val_loss", 0.25, relative=True),
    Tolerance("bound of an interval", r".*_ci_(low|high)_db", 1.5, unit="dB"),
    Tolerance("energy at silence", r".*_energy_db", 3.0, unit="dB"),
    Tolerance("spread", r".*_std_db", 1.5, unit="dB"),
    Tolerance("score of one excerpt", r"sdr_whole_excerpt_db", 2.0, unit="dB"),
    Tolerance("level near silence", r"silence_.*_db", 6.0, unit="dB"),
    # Of tables of 07_conditions, with many conditions that no network was trained for.
    Tolerance(
        "condition not trained for",
        r"(everything|sum|together|summed|uncontrolled|controlled|level|difference_quartile)_.*_db",
        3.0,
        unit="dB",
    ),
    Tolerance("SIR or SAR", r"s[ia]r_.*_db", 2.0, unit="dB"),
    Tolerance("score", r".*_db", 1.0, unit="dB"),
    Tolerance("ratio of levels", r"ratio_.*", 0.15),
    Tolerance("frames", r"(undefined|silent_\w+)_frames", 5.0),
    Tolerance("count or flag", r".*", 0.0),
)
"""The first kind whose expression fits a column's name holds. Trained models differ a little from
machine to machine (threads, instruction sets); counts, flags and words do not."""

MEASURED = "tolerances.json"
"""Beside a profile's tables: how far they were apart between thread counts and precisions."""

KEYS = (
    *("ablation", "model", "system", "study", "reference"),
    *("target", "condition", "metric", "protocol", "aggregation", "seed"),
)


def tolerance_of(column: str, measured: Mapping[str, float] | None = None) -> Tolerance:
    """The tolerance that holds for a column; its limit as measured, where it was."""
    found = next(kind for kind in TOLERANCES if re.fullmatch(kind.columns, column))
    if found.limit is None or not measured or found.kind not in measured:
        return found
    return replace(found, limit=measured[found.kind])


def measured_limits(settings: Profile) -> dict[str, float]:
    """Limits that ``make tolerances`` has measured for a profile, by kind; none if it has not.

    Raises
    ------
    ConfigError
        If ``tolerances.json`` is damaged.
    """
    path = settings.paths.results / MEASURED
    if not path.is_file():
        return {}
    content = read_json(settings, path)
    limits = content.get("limits")
    kinds = {kind.kind for kind in TOLERANCES}
    if (
        not isinstance(limits, dict)
        or not set(limits) <= kinds
        or not all(isinstance(each, int | float) and each >= 0 for each in limits.values())
    ):
        raise ConfigError(
            f"{settings.name}/{MEASURED} holds no tolerances; delete it, or run `make tolerances`."
        )
    return limits


def verify(settings: Profile, *, reference: str = "HEAD") -> int:
    """Compare the current tables with the committed ones and print what differs.

    Parameters
    ----------
    reference
        A git commit.

    Returns
    -------
    int
        Number of tables that differ beyond their tolerances, or are missing.

    Raises
    ------
    ConfigError
        If the project is no git checkout, the commit is unknown, or it holds no tables.
    """
    folder = f"results/{settings.name}/tables"
    committed = _committed(folder, reference)
    measured = measured_limits(settings)
    differing = 0
    how = "as measured" if measured else "reasoned, not measured for this profile"
    print(f"Tables of profile {settings.name} against {reference}, tolerances {how}:")
    width = max(len(name) for name in committed)
    for name, text in committed.items():
        path = settings.paths.tables / f"{name}.csv"
        if path.is_file():
            try:
                current = _read(path.read_text("utf-8"))
                problems, notes = compare(current, _read(text), measured)
            except ValueError as error:
                problems, notes = [f"cannot be compared: {error}"], []
        else:
            remedy = f"run `make reproduce PROFILE={settings.name}`"
            problems, notes = [f"is missing now; {remedy}"], []
        differing += bool(problems)
        if not problems:
            print(f"  {name:<{width}}  {'; '.join(notes) or 'equal'}")
            continue
        print(f"  {name:<{width}}  DIFFERS: {problems[0]}")
        for problem in problems[1:6]:
            print(f"  {'':<{width}}  {problem}")
        if len(problems) > 6:
            print(f"  {'':<{width}}  and {len(problems) - 6} more")
    new = sorted({path.stem for path in settings.paths.tables.glob("*.csv")} - set(committed))
    if new:
        print(f"  Not committed, so not compared: {', '.join(new)}.")
    print(
        f"{differing} of {count(len(committed), 'table')} beyond tolerance."
        if differing
        else f"All {count(len(committed), 'table')} agree within tolerance."
    )
    return differing


def _committed(folder: str, reference: str) -> dict[str, str]:
    """Committed tables by name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w./@{}^~-]*", reference):
        raise ConfigError(f"{reference!r} is not the name of a git commit.")
    # "./" makes git take paths from the project's folder, which may lie inside a larger checkout.
    listed = _git("ls-tree", "--name-only", reference, f"./{folder}/")
    names = [line for line in listed.splitlines() if line.endswith(".csv")]
    if not names:
        raise ConfigError(
            f"Nothing to compare with: commit {reference} holds no tables in {folder}; "
            "commit results first or choose another profile."
        )
    return {Path(name).stem: _git("show", f"{reference}:./{name}") for name in sorted(names)}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, check=False, timeout=60
        )
    except FileNotFoundError as error:
        raise ConfigError("`make verify` needs git, which is not installed.") from error
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = reason[-1].removeprefix("fatal: ") if reason else f"exit code {done.returncode}"
        raise ConfigError(
            "The committed results cannot be read, `make verify` needs a git checkout with a "
            f"commit: {why.rstrip('.')}."
        )
    return done.stdout.decode("utf-8", "replace")


def _read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def compare(
    current: pd.DataFrame, committed: pd.DataFrame, measured: Mapping[str, float] | None = None
) -> tuple[list[str], list[str]]:
    """What differs between two versions of a table.

    Parameters
    ----------
    current, committed
        Tables as they were saved.
    measured
        Limits by kind, as :func:`measured_limits` gives them.

    Returns
    -------
    problems : list of str
        Differences beyond the tolerances, the largest of each column.
    notes : list of str
        Smaller differences.
    """
    for label, table in (("committed", committed), ("current", current)):
        absent = [
            column for column in current.columns.union(committed.columns) if column not in table
        ]
        if absent:
            return [f"columns {', '.join(absent)} are not in the {label} table"], []
    keys = [column for column in KEYS if column in committed]
    left, right = (table.set_index(keys) for table in (current, committed))
    if left.index.has_duplicates or right.index.has_duplicates:
        return ["rows are there twice"], []
    apart = left.index.symmetric_difference(right.index)
    if len(apart):
        label = "only now" if apart[0] in left.index else "only in the committed table"
        return [f"not the same rows: {len(apart)}, such as {_place(apart[0])} ({label})"], []
    left = left.loc[right.index]
    problems, notes = [], []
    for column in right.columns:
        tolerance = tolerance_of(column, measured)
        problem, note = _difference(left[column], right[column], tolerance)
        problems += [problem] if problem else []
        notes += [note] if note else []
    return problems, notes


def _difference(
    left: pd.Series, right: pd.Series, tolerance: Tolerance
) -> tuple[str | None, str | None]:
    """Sentence about a column beyond tolerance, or about a smaller difference."""
    same = (left == right) | (left.isna() & right.isna())
    if same.all():
        return None, None
    name = left.name
    if tolerance.limit is None:
        return None, f"{name} differs (not compared: {tolerance.kind})"
    gap = gaps(left, right, tolerance)
    if gap is None:
        where = same[~same].index[0]
        return f"{name} is {left[where]}, was {right[where]} at {_place(where)}", None
    worst = gap.idxmax()
    digits = 2 if tolerance.unit else 4
    unit = f" {tolerance.unit}" if tolerance.unit else " of it" if tolerance.relative else ""
    text = f"{name} up to {number(gap[worst], digits)}{unit} apart (tolerance {tolerance.limit:g})"
    if gap[worst] <= tolerance.limit:
        return None, text
    beyond = count(int((gap > tolerance.limit).sum()), "row")
    return f"{text} in {beyond}, most at {_place(worst)}", None


def gaps(left: pd.Series, right: pd.Series, tolerance: Tolerance) -> pd.Series | None:
    """How far two columns are apart, row by row, in the tolerance's own measure.

    Infinite where only one of them has a value; None if they do not hold numbers.
    """
    numeric = all(
        pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        for column in (left, right)
    )
    if not numeric:
        return None
    same = (left == right) | (left.isna() & right.isna())
    gap = (left - right).abs().astype(float).mask(same, 0.0).fillna(float("inf"))
    return gap / right.abs().clip(lower=1e-12) if tolerance.relative else gap


def _place(key) -> str:
    return ", ".join(str(part) for part in (key if isinstance(key, tuple) else (key,)))
