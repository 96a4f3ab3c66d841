"""Result files and how they are spoken of: reading, writing, names and captions.

Tables, figures and the report share what is here: atomic writing, errors that say which make
target writes a missing file, one name for each system, and the sentences of a caption that name
data, protocol, rate and seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import (
    INSTRUMENTS,
    LABELS,  # noqa: F401
    UNETS,
    VARIANTS,
)
from cunet_lib.evaluation.metrics import SDR_V4
from cunet_lib.evaluation.scores import ALL, SYSTEMS, TRAINED

RATIOS = {
    "SDR": "source-to-distortion ratio",
    "SIR": "source-to-interference ratio",
    "SAR": "source-to-artifacts ratio",
    "ISR": "image-to-spatial-distortion ratio",
}

V3_NOTE = (
    "BSS Eval v3 (museval's bss_eval_sources), the paper's protocol: the whole track as one frame; "
    "two sources, the target and the accompaniment, which is the mixture minus the target and "
    "estimated as the mixture minus the estimate; it sees neither gain nor filters of 512 taps. "
    "Ratios above 100 dB are rounding noise and given as infinite."
)
"""What the paper's protocol is, for captions."""


def target_label(target: str) -> str:
    """Name of an instrument, or of their mean."""
    return "all (mean)" if target == ALL else target


def check_name(name: str, caption: str) -> None:
    """Refuse names that are not plain file names, and empty captions."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"Table or figure name {name!r} may hold letters, digits, - and _ only.")
    if not caption.strip():
        raise ConfigError(f"{name} needs a caption that says data, protocol and aggregation.")


def number(value: float, decimals: int = 2, *, sign: bool = False) -> str:
    """A number as text; ``"n/a"`` where there is none."""
    if pd.isna(value):
        return "n/a"
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    # No negative zero: -0.00 looks like information.
    return text.replace("-", "", 1) if float(text) == 0 and text.startswith("-") else text


def data_note(settings: Profile) -> str:
    """Name of the data; what is not MUSDB18 is marked as such."""
    if settings.data.source in ("rendered", "folder"):
        return f"Data: {settings.title} - not comparable with MUSDB18 figures."
    return f"Data: {settings.title}."


def score_note(
    settings: Profile, scores: pd.DataFrame, *, metrics: Sequence[str] = ("SDR",)
) -> str:
    """Data, tracks, metric, protocol, rate and seeds behind a table or figure of scores."""
    chosen = scores[
        scores["metric"].isin(metrics)
        & (scores["aggregation"] == SDR_V4.aggregation)
        & (scores["protocol"] == SDR_V4.protocol)
    ]
    ratios = ", ".join(f"{metric}: {RATIOS[metric]}" for metric in metrics)
    # Every metric of a frame is undefined together: count one of them.
    one = chosen[chosen["metric"] == metrics[0]]
    undefined, frames = int(one["undefined_frames"].sum()), int(one["frames"].sum())
    left_out = (
        f"Of {frames} frames, counted over all systems, instruments and runs, {undefined} have no "
        "defined score (a signal in them is silent) and are left out."
    )
    bounds = ""
    if "ideal_ratio_mask" in set(chosen["model"]):
        bounds = (
            " Ideal ratio mask: the target's power over the sum of all instruments' powers, known "
            "from the references."
        )
    return (
        f"{data_note(settings)} {ratios} in dB by {SDR_V4.protocol} (museval), "
        f"{settings.evaluate.window_seconds:g} s frames, {SDR_V4.aggregation} in each track; "
        f"signals rounded to 16 bits, {rate_note(settings)}; "
        f"{count(chosen['track'].nunique(), 'test track')}; {seed_note(chosen)}."
        f" {left_out}{bounds}"
    )


def seed_note(scores: pd.DataFrame) -> str:
    """Training runs behind scores."""
    seeds = sorted(set(scores.loc[scores["model"].isin(TRAINED), "seed"]))
    if not seeds:
        return "no trained model"
    if len(seeds) == 1:
        return (
            f"one training run per model (seed {seeds[0]}), so the spread between runs is not seen"
        )
    return f"mean over seeds {listed(seeds)} per track"


def run_note(settings: Profile, runs: pd.DataFrame) -> str:
    """Data, rate and seeds behind a table or figure of training runs."""
    seeds = sorted(set(runs["seed"]))
    label = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {listed(seeds)}"
    return f"{data_note(settings)} {rate_note(settings)}; {label}."


def count(number: int, noun: str) -> str:
    """Such as ``"1 track"``, ``"2 tracks"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def rate_note(settings: Profile) -> str:
    """Sample rate and channels."""
    return f"{settings.signal.sample_rate} Hz mono"


def listed(values: Sequence) -> str:
    """Such as ``"0, 1 and 2"``."""
    *first, last = (str(value) for value in values)
    return f"{', '.join(first)} and {last}" if first else last


_RUN_KEYS = (
    "seed",
    "parameters",
    "trainable_parameters",
    "batch_size",
    "steps",
    "epochs",
    "best_epoch",
    "best_val_loss",
    "seconds",
    "patches_per_second",
    "precision",
)


def load_runs(
    settings: Profile,
    *,
    require: Sequence[str] = (*UNETS, *VARIANTS),
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Records of all training runs, one row per model and seed.

    Parameters
    ----------
    require
        Models that must have been trained.
    seeds
        Seeds of the runs; all that are found if not given.

    Returns
    -------
    pandas.DataFrame
        The columns of ``run.json``, and ``folder``; models in the study's order, then seeds.

    Raises
    ------
    ConfigError
        If a required run is missing, or a record cannot be read.
    """
    paths = settings.paths
    rows = []
    # A folder with a suffix holds a run with other settings: none of the study's.
    folders = [
        path.parent
        for path in sorted(paths.runs.glob("*-seed*/run.json"))
        if re.fullmatch(r".*-seed\d+", path.parent.name)
    ]
    for model in require:
        if not any(folder.name.startswith(f"{model}-seed") for folder in folders):
            raise missing(settings, paths.run(model, settings.seed) / "run.json")
    for path in (folder / "run.json" for folder in folders):
        record = read_json(settings, path)
        if "model" not in record:
            raise ConfigError(
                f"{_relative(settings, path)} lacks 'model'; delete it and {_remedy(settings)}."
            )
        if record.get("model") in (*UNETS, *VARIANTS) and (
            seeds is None or record.get("seed") in seeds
        ):
            rows.append({**record, "folder": path.parent})
    if not rows:
        raise missing(settings, paths.run(next(iter(VARIANTS)), settings.seed) / "run.json")
    order = {model: position for position, model in enumerate((*UNETS, *VARIANTS))}
    rows.sort(key=lambda row: (order[row["model"]], row["seed"]))
    frame = pd.DataFrame(rows)
    for column in _RUN_KEYS:
        lacking = frame["folder"] if column not in frame else frame["folder"][frame[column].isna()]
        if len(lacking):
            path = lacking.iloc[0] / "run.json"
            raise ConfigError(
                f"{_relative(settings, path)} lacks {column!r}; delete it and {_remedy(settings)}."
            )
    return frame


def load_excerpt(settings: Profile, *, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """Scores on the one real excerpt, one row per system and instrument, means over seeds.

    Returns
    -------
    pandas.DataFrame
        Columns model, target, metric, seeds, value (dB).

    Raises
    ------
    ConfigError
        If there are none, or a table lacks a column.
    """
    folder = settings.paths.scores / "excerpt"
    paths = [
        path
        for path in sorted(folder.glob("*-seed*.csv"))
        if seeds is None
        or path.stem.rsplit("-seed", 1)[0] not in TRAINED
        or path.stem.rsplit("-seed", 1)[1] in map(str, seeds)
    ]
    if not paths:
        raise missing(settings, folder / "unet-seed0.csv")
    columns = ("model", "seed", "target", "metric", "value")
    table = pd.concat([read_csv(settings, path, columns) for path in paths], ignore_index=True)
    grouped = table.groupby(["model", "target", "metric"], as_index=False).agg(
        seeds=("seed", "nunique"), value=("value", "mean")
    )
    order = {name: place for place, name in enumerate((*SYSTEMS, *INSTRUMENTS))}
    return grouped.sort_values(
        ["model", "target"], key=lambda column: column.map(order), ignore_index=True
    )


def read_json(settings: Profile, path: Path, kind: type = dict):
    """Content of a JSON file of the results, an object or what ``kind`` says.

    Raises
    ------
    ConfigError
        If it is missing or damaged; the message says which make target writes it.
    """
    if not path.is_file():
        raise missing(settings, path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{_relative(settings, path)} is not valid JSON; delete it and {_remedy(settings)}."
        ) from error
    if not isinstance(content, kind):
        raise ConfigError(
            f"{_relative(settings, path)} holds something else; delete it and {_remedy(settings)}."
        )
    return content


def read_csv(settings: Profile, path: Path, columns: Sequence[str], **options) -> pd.DataFrame:
    """A CSV file of the results, with at least these columns; options of ``pandas.read_csv``.

    Raises
    ------
    ConfigError
        If it is missing, damaged, empty or lacks a column.
    """
    if not path.is_file():
        raise missing(settings, path)
    # Every table ends with a line break; pandas would fill up a row that was cut.
    if not path.read_bytes().endswith(b"\n"):
        raise ConfigError(
            f"{_relative(settings, path)} is cut short; delete it and {_remedy(settings)}."
        )
    try:
        frame = pd.read_csv(path, **options)
    except ValueError as error:  # ParserError, EmptyDataError, UnicodeDecodeError
        raise ConfigError(
            f"{_relative(settings, path)} is not a CSV table; delete it and {_remedy(settings)}."
        ) from error
    lacking = [column for column in columns if column not in frame]
    if lacking or frame.empty:
        what = f"lacks column {lacking[0]!r}" if lacking else "has no rows"
        raise ConfigError(f"{_relative(settings, path)} {what}; delete it and {_remedy(settings)}.")
    return frame


def missing(settings: Profile, path: Path) -> ConfigError:
    """The error for a result that is not there."""
    return ConfigError(f"{_relative(settings, path)} is missing; {_remedy(settings)}.")


def _relative(settings: Profile, path: Path) -> str:
    results = settings.paths.results
    inside = path.relative_to(results) if path.is_relative_to(results) else Path(path.name)
    return (Path(results.name) / inside).as_posix()


def _remedy(settings: Profile) -> str:
    return f"run `make reproduce PROFILE={settings.name}`"


def json_text(content) -> str:
    """JSON as the study writes it: indented, not-a-number refused."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
