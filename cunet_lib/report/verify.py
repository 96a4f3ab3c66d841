"""The manifest, and the comparison with the committed results."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pandas as pd
import psutil

from cunet_lib.core.files import code_hash, sha256, write_json
from cunet_lib.core.hardware import cpu, usable_cores
from cunet_lib.core.settings import ROOT, ConfigError, Profile
from cunet_lib.evaluation.scores import score_files
from cunet_lib.report.records import count, executed

VARIABLES = (
    *("CUNET_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"),
    *("TF_NUM_INTEROP_THREADS", "TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "XLA_FLAGS"),
    *("KERAS_BACKEND", "NVIDIA_TF32_OVERRIDE", "ONEDNN_MAX_CPU_ISA"),
)
"""Environment variables that change how numbers are computed; none of them holds a path."""


def write_manifest(settings: Profile, runs: pd.DataFrame) -> Path:
    """Write ``manifest.json``: what is needed to explain a difference between two machines.

    Hashed are the tables that this process wrote and the scores of the profile's systems, not
    what lay there before.
    """
    paths, began = settings.paths, psutil.Process().create_time()
    tables = [path for path in paths.tables.glob("*.csv") if path.stat().st_mtime >= began]
    systems = score_files(settings).values()
    corpus = paths.corpus / "corpus.json"
    needed = [each for each in importlib.metadata.requires("cunet-lib") if "extra" not in each]
    packages = [re.match(r"[\w.-]+", each)[0] for each in needed]
    manifest = {
        "profile": settings.name,
        "settings": settings.model_dump(mode="json"),
        "corpus_sha256": sha256(corpus) if corpus.is_file() else None,
        "code": {
            "library": code_hash("cunet_lib"),
            "corpus": code_hash("rendered_corpus"),
            "lock": sha256(ROOT / "requirements.lock"),
        },
        "platform": {
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
        },
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "versions": {name: importlib.metadata.version(name) for name in packages},
        # As pandas writes JSON: plain numbers, and null for not-a-number.
        "runs": json.loads(runs.drop(columns=["folder", "settings"]).to_json(orient="records")),
        "tables": {path.name: sha256(path) for path in sorted(tables)},
        "scores": {path.name: sha256(path) for path in sorted(systems)},
    }
    return write_json(paths.manifest, manifest)


# ------------------------------------------------------------------------------ verification

TOLERANCES = (
    (r"seconds|patches_per_second|precision|best_epoch|tracks_better", None),
    (r"p_difference|p_equivalence|power|tracks_needed", None),
    (r"best_val_loss", 0.001),
    (r"s[ia]r_.*_db|sdr_whole_excerpt_db", 2.0),
    (r".*_energy_db|silence_db_.*", 6.0),
    # Of 07_conditions: conditions that no network was trained for.
    (r".*_db_(median|quartile_\d)", 3.0),
    (r"ratio_.*|paper_share_of_four|share_of_four", 0.15),
    (r".*_db", 1.5),
    (r"(undefined|silent_\w+)_frames", 5.0),
    (r".*", 0.0),
)
"""How far a column may be from the committed one, by the first expression that fits its name;
None: not compared. Verdicts count as equal if their first words are."""

KEYS = ("ablation", "model", "system", "study", "reference", "target", "condition", "seed")
KEYS += ("metric", "protocol", "aggregation")


def verify(settings: Profile) -> int:
    """Compare the tables that this run made with the committed ones, and print what differs.

    Returns
    -------
    int
        Number of tables that differ beyond their tolerances.

    Raises
    ------
    ConfigError
        If the project is no git checkout with a commit, or that holds no tables.
    """
    committed = _committed(f"results/{settings.name}/tables")
    # Executed notebooks are not committed: a table that one of them shows was made here.
    shown = "".join(path.read_text("utf-8") for path in executed(settings).values())
    made = {
        path.stem: path
        for path in sorted(settings.paths.tables.glob("*.csv"))
        if f'table-{path.stem}\\"' in shown
    }
    print(f"Tables of profile {settings.name} against the last commit:")
    width, differing = max(map(len, committed)), 0
    for name in [name for name in committed if name in made]:
        try:
            agrees, words = compare(
                pd.read_csv(made[name]), pd.read_csv(io.StringIO(committed[name]))
            )
        except ValueError as error:
            agrees, words = False, f"cannot be compared: {error}"
        differing += not agrees
        print(f"  {name:<{width}}  {'agrees' if agrees else 'DIFFERS':<7}  {words}")
    absent = [name for name in committed if name not in made]
    compared = len(committed) - len(absent)
    new = [name for name in made if name not in committed]
    for words, names in (("Not made here", absent), ("Not committed", new)):
        if names:
            print(f"{words}: {', '.join(names)}.")
    print(
        f"{compared} compared, {differing} beyond tolerance, {len(absent)} not made here."
        + ("" if compared else f" Run `make reproduce PROFILE={settings.name}` first.")
    )
    return differing


def compare(current: pd.DataFrame, committed: pd.DataFrame) -> tuple[bool, str]:
    """Whether two versions of a table agree, and in words what differs most."""
    columns = set(current).symmetric_difference(committed)
    if columns:
        return False, f"only in one of them: {', '.join(sorted(columns))}"
    keys = [column for column in KEYS if column in committed]
    left, right = (table.set_index(keys) for table in (current, committed))
    if left.index.has_duplicates or right.index.has_duplicates:
        return False, "rows are there twice"
    apart = left.index.symmetric_difference(right.index)
    if len(apart):
        return False, f"not the same rows: {len(apart)}, such as {_place(apart[0])}"
    gaps = [_gap(left[column].loc[right.index], right[column]) for column in right]
    beyond = [words for excess, words in gaps if excess > 1]
    if beyond:
        return False, "; ".join(beyond[:2]) + (
            f"; and {len(beyond) - 2} more" if beyond[2:] else ""
        )
    excess, words = max(gaps)
    return True, words if excess > 0 else "equal"


def _gap(left: pd.Series, right: pd.Series) -> tuple[float, str]:
    """How far two columns are apart, as a share of the tolerance, and in words."""
    if left.name == "verdict":
        left, right = (column.str.split(" ").str[0] for column in (left, right))
    limit = next(limit for words, limit in TOLERANCES if re.fullmatch(words, left.name))
    differs = ~((left == right) | (left.isna() & right.isna()))
    if limit is None or not differs.any():
        return 0.0, ""
    numeric = all(
        pd.api.types.is_numeric_dtype(each) and each.dtype != bool for each in (left, right)
    )
    if not numeric:
        where = differs.idxmax()
        words = f"{left.name} differs in {differs.sum()} of {count(len(left), 'row')}"
        return float("inf"), f"{words}, {_place(where)}: {left[where]}, was {right[where]}"
    gap = (left - right).abs().astype(float).mask(~differs, 0.0).fillna(float("inf"))
    words = f"{left.name} by at most {gap.max():.3g} (tolerance {limit:g}, {_place(gap.idxmax())})"
    return gap.max() / limit if limit else float("inf"), words


def _place(key) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _committed(folder: str) -> dict[str, str]:
    """Committed tables by name."""
    # "./" makes git take paths from the project's folder, which may lie inside a larger checkout.
    listed = _git("ls-tree", "--name-only", "HEAD", f"./{folder}/")
    names = [line for line in listed.splitlines() if line.endswith(".csv")]
    if not names:
        raise ConfigError(
            f"Nothing to compare with: the last commit holds no tables in {folder}; commit results "
            "first or choose another profile."
        )
    return {Path(name).stem: _git("show", f"HEAD:./{name}") for name in sorted(names)}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, check=False, timeout=60
        )
    except FileNotFoundError as error:
        raise ConfigError("`make verify` needs git, which is not installed.") from error
    if done.returncode:
        # All that it says: the hint for a checkout of another user's has several lines.
        why = " ".join(done.stderr.decode("utf-8", "replace").split()).removeprefix("fatal: ")
        raise ConfigError(
            "The committed results cannot be read; `make verify` needs a git checkout with a "
            f"commit. Git says: {why or f'exit {done.returncode}'}"
        )
    return done.stdout.decode("utf-8", "replace")
