"""Score tables read, described, and paired over tracks.

The score table is long: one row per system, seed, track, target (instrument) and measure. Every
statistic starts from it: :func:`track_scores` averages over seeds, so that tracks are the units of
inference, and :func:`paired_differences` pairs two systems track by track.

The target ``"all"`` stands for a track's mean over its instruments.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from cunet_lib.core.files import damaged, read_csv
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, SYSTEMS, TRAINED
from cunet_lib.evaluation.metrics import SCORE_COLUMNS, SDR_V4, Measure

ALL = "all"
TARGETS = (ALL, *INSTRUMENTS)

REFERENCE = "unet"
"""What the C-U-Nets are compared with: the dedicated U-Nets."""

_NUMBERS = {"seed": int, "value": float, "frames": int, "undefined_frames": int}


def read_scores(path: Path) -> pd.DataFrame:
    """A score table that the study wrote.

    Raises
    ------
    ConfigError
        If it is missing or damaged.
    """
    # Track names such as "NA" are names; only values may be missing.
    return read_csv(
        path,
        SCORE_COLUMNS,
        keep_default_na=False,
        na_values={"value": ["", "nan", "NaN"]},
        dtype=dict.fromkeys(SCORE_COLUMNS, str) | _NUMBERS,
    )


def score_files(settings: Profile, group: str = "") -> dict[tuple[str, int], Path]:
    """The files that :func:`load_scores` reads, by system and seed, present or not.

    Where a profile trains no dedicated U-Nets, they are those of the profile that it is like.
    """
    systems = [(settings, *run) for run in settings.scored]
    if lender := settings.lender:
        systems += [(lender, *run) for run in lender.scored if run[0] == REFERENCE]
    return {
        (name, seed): profile.paths.scores / group / f"{name}-seed{seed}.csv"
        for profile, name, seed in systems
    }


def load_scores(settings: Profile, group: str = "", system: str = "") -> pd.DataFrame:
    """The score tables of all systems of a profile and their seeds.

    Parameters
    ----------
    group
        Folder of the scores, such as ``"ablation"``; its column of that name is kept.
    system
        The only one, if given.

    Returns
    -------
    pandas.DataFrame
        Columns :data:`cunet_lib.evaluation.metrics.SCORE_COLUMNS`; ordered by system, seed, track,
        target and metric.

    Raises
    ------
    ConfigError
        If a system or seed has no scores, or a table is damaged.
    """
    frames = []
    for (name, seed), path in score_files(settings, group).items():
        if system in ("", name):
            frames.append(read_scores(path))
            if set(frames[-1]["model"]) != {name} or set(frames[-1]["seed"]) != {seed}:
                raise damaged(path, f"it holds other scores than {name} with seed {seed}")
    return ordered(pd.concat(frames, ignore_index=True))


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the study's order of systems, targets and metrics; what has no order comes first."""
    names = (*SYSTEMS, *TARGETS, *SDR_V4.entry.headings)
    order = {name: position for position, name in enumerate(names, start=1)}
    ranks = ("model", "reference", "target", "metric")
    keys = ("model", "reference", "seed", "track", "target", "metric", "protocol", "aggregation")
    columns = [column for column in keys if column in frame]
    return frame.sort_values(
        columns,
        key=lambda column: column.map(order).fillna(0) if column.name in ranks else column,
        kind="stable",
        ignore_index=True,
    )


def track_scores(scores: pd.DataFrame, measure: Measure = SDR_V4) -> pd.DataFrame:
    """One value per system, track and target: the mean over seeds.

    Tracks, not seeds, are the units that the study generalises over, so seeds are averaged first.

    Parameters
    ----------
    scores
        As :func:`load_scores` gives them.

    Returns
    -------
    pandas.DataFrame
        Columns model, track, target, value (dB, missing where no frame has a score in any
        seed), seeds, frames and undefined_frames (sums over seeds).

    Raises
    ------
    ConfigError
        If there are no scores of this measure.
    """
    grouped = measure.rows(scores).groupby(["model", "track", "target"], as_index=False)
    return ordered(grouped.agg(value=("value", "mean"), seeds=("seed", "nunique"), **_COUNTS))


_COUNTS = {name: (name, "sum") for name in ("frames", "undefined_frames")}


def over_instruments(tracks: pd.DataFrame) -> pd.DataFrame:
    """Mean over the instruments of each track, as target ``"all"``.

    An instrument without a score in a track is left out of that track's mean.
    """
    grouped = tracks.groupby(["model", "track"], as_index=False)
    grouped = grouped.agg(value=("value", "mean"), seeds=("seeds", "max"), **_COUNTS)
    return ordered(grouped.assign(target=ALL)[tracks.columns.tolist()])


def summary(scores: pd.DataFrame, measure: Measure = SDR_V4) -> pd.DataFrame:
    """Mean, standard deviation and median over tracks, for all instruments and for each.

    Returns
    -------
    pandas.DataFrame
        Columns model, target, metric, protocol, aggregation, tracks (with a score),
        undefined_tracks, mean, std (ddof 1), median (dB), frames, undefined_frames.
    """
    tracks = track_scores(scores, measure)
    # The sum of all estimates is scored as target "all": it has no instruments to go over.
    tracks = pd.concat([over_instruments(tracks), tracks[tracks["target"] != ALL]])
    grouped = tracks.groupby(["model", "target"], as_index=False).agg(
        tracks=("value", "count"),
        undefined_tracks=("value", lambda values: int(values.isna().sum())),
        mean=("value", "mean"),
        std=("value", "std"),
        median=("value", "median"),
        **_COUNTS,
    )
    return defined(ordered(grouped), measure, after="target")


def defined(table: pd.DataFrame, measure: Measure, *, after: str) -> pd.DataFrame:
    """A table with the measure's columns put behind one of its own."""
    place = table.columns.get_loc(after) + 1
    for offset, (name, value) in enumerate(asdict(measure).items()):
        table.insert(place + offset, name, value)
    return table


def paired_differences(scores: pd.DataFrame, measure: Measure = SDR_V4) -> pd.DataFrame:
    """Differences of each C-U-Net minus the dedicated U-Nets, track by track.

    Returns
    -------
    pandas.DataFrame
        Columns model, reference, target (instruments, and ``"all"`` for a track's mean over the
        instruments where both have a score), track, value, reference_value, difference (dB;
        missing where either system has no score).

    Raises
    ------
    ConfigError
        If there are no scores of the dedicated U-Nets, or tracks differ.
    """
    tracks = track_scores(scores, measure)
    other = tracks.loc[tracks["model"] == REFERENCE, ["track", "target", "value"]]
    if other.empty:
        raise ConfigError(f"There are no {measure.metric} scores of {REFERENCE} to compare with.")
    models = [name for name in TRAINED if name != REFERENCE and name in set(tracks["model"])]
    pairs = tracks[tracks["model"].isin(models)].merge(
        other.rename(columns={"value": "reference_value"}), on=["track", "target"], how="outer"
    )
    if pairs["model"].isna().any() or len(pairs) != len(models) * len(other):
        raise ConfigError(f"The scores of {REFERENCE} and {', '.join(models)} differ in tracks.")
    pairs["reference"] = REFERENCE
    pairs["difference"] = pairs["value"] - pairs["reference_value"]
    columns = ["model", "reference", "target", "track", "value", "reference_value", "difference"]
    mean = (
        pairs.dropna(subset=["difference"])
        .groupby(["model", "reference", "track"], as_index=False)[columns[4:]]
        .mean()
        .assign(target=ALL)
    )
    return ordered(pd.concat([mean[columns], pairs[columns]], ignore_index=True))


def bootstrap_interval(values: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean (bias-corrected and accelerated; Efron 1987) over tracks.

    Parameters
    ----------
    values
        ``(tracks,)``, without missing values.

    Returns
    -------
    tuple of float
        Lower and upper bound in the unit of ``values``; both missing for fewer than 3 tracks,
        which say nothing about a spread.
    """
    values = np.asarray(values, float)
    if len(values) < 3:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            # A degenerate acceleration gives missing bounds: the percentiles are taken then.
            warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
            low, high = scipy.stats.bootstrap(
                (values,),
                np.mean,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
        if np.isfinite([low, high]).all():
            break
    return float(low), float(high)
