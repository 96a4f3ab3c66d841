"""Tables of the protocols beside BSS Eval v4: whole tracks, silence, and the ablation.

What each score is stands in :mod:`cunet_lib.evaluation.metrics`; what is ablated, in
:mod:`cunet_lib.evaluation.ablation`. Here are the statistics over tracks, and the words.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation.metrics import (
    MIXTURE,
    PLAIN_SDR,
    PROTOCOL_V3,
    SCORE_COLUMNS,
    SDR_V3,
    SDR_V4,
    SI_SDR,
    SILENCE,
    WHOLE_TRACK,
    Measure,
)
from cunet_lib.evaluation.scores import ALL, SYSTEMS, TARGETS, TRAINED
from cunet_lib.report.records import (
    LABELS,
    V3_NOTE,
    count,
    data_note,
    listed,
    missing,
    number,
    rate_note,
    read_csv,
    target_label,
)
from cunet_lib.report.tables import Table, spread

ABLATION_LABELS = {
    "end to end": "Patches joined end to end",
    "own maximum": "Divided by own maximum",
    "reference range": "Stretched to the reference's range",
    "as released": "All three, as released",
}
"""How tables name the ablations, in the order in which the released code applies them."""

SCORES = {
    "sdr_v3": (SDR_V3, "SDR v3"),
    "sir_v3": (Measure("SIR", PROTOCOL_V3, WHOLE_TRACK), "SIR v3"),
    "sar_v3": (Measure("SAR", PROTOCOL_V3, WHOLE_TRACK), "SAR v3"),
    "sdr_v4": (SDR_V4, "SDR v4"),
    "plain_sdr": (Measure("SDR", PLAIN_SDR, WHOLE_TRACK), "Plain SDR"),
    "si_sdr": (Measure("SDR", SI_SDR, WHOLE_TRACK), "SI-SDR"),
}
"""What ablations are compared by: column to measure and heading."""


def further_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """SI-SDR, plain SDR and SDR of the residual per instrument; SDR of the estimates' sum.

    Rows of target ``"all"`` are over the tracks' means over instruments; they alone hold the sum,
    which is of all estimates of a track together.
    """
    chosen = {
        "si_sdr": ("SDR", SI_SDR),
        "plain_sdr": ("SDR", PLAIN_SDR),
        "residual_sdr": ("residual SDR", PLAIN_SDR),
    }
    parts = {}
    for name, (metric, protocol) in chosen.items():
        measure = Measure(metric, protocol, WHOLE_TRACK)
        both = [
            analysis.summary(scores, measure, by_target=by_target) for by_target in (False, True)
        ]
        parts[name] = pd.concat(both).set_index(["model", "target"])
    total = analysis.summary(scores, Measure("sum SDR", PLAIN_SDR, WHOLE_TRACK), by_target=True)
    parts["sum_sdr"] = total.replace({"target": {MIXTURE: ALL}}).set_index(["model", "target"])
    places = [
        (model, target)
        for model in SYSTEMS
        for target in TARGETS
        if (model, target) in parts["si_sdr"].index
    ]
    frame = pd.DataFrame(index=pd.MultiIndex.from_tuples(places, names=["model", "target"]))
    frame[["tracks", "undefined_tracks"]] = parts["si_sdr"][["tracks", "undefined_tracks"]]
    for name, part in parts.items():
        for statistic in ("mean", "std", "median"):
            frame[f"{name}_{statistic}_db"] = part[statistic]
    frame = frame.reset_index()
    display = pd.DataFrame(
        {
            "Model": frame["model"].map(LABELS),
            "Instrument": frame["target"].map(target_label),
            "SI-SDR, dB": spread(frame, "si_sdr_"),
            "Plain SDR, dB": spread(frame, "plain_sdr_"),
            "Plain SDR of the residual, dB": spread(frame, "residual_sdr_"),
            "Plain SDR of the sum, dB": [
                text if target == ALL else "n/a"
                for text, target in zip(spread(frame, "sum_sdr_"), frame["target"], strict=True)
            ],
            "Tracks": frame["tracks"].astype(str),
        }
    )
    caption = (
        "Whole tracks without filters: mean ± standard deviation over test tracks, median in "
        "parentheses. SI-SDR (Le Roux et al. 2019): the reference scaled to the estimate before "
        "their ratio is taken, so gain is not seen. Plain SDR: energy of the reference over energy "
        "of the error, so gain is seen. Residual: mixture minus estimate against mixture minus "
        "target. Sum: all four estimates together against the mixture, how consistent they are. "
        f"Ratios above 100 dB are rounding noise and given as infinite. {_note(settings, scores)}"
    )
    return Table("further_scores", frame, display, caption)


def silence_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Frames and tracks without a defined score, and the energies that stand for them."""
    tracks = analysis.track_scores(scores)
    keys = ["model", "target"]
    frame = tracks.groupby(keys, sort=False)[["frames", "undefined_frames"]].sum()
    frame["undefined_tracks_v4"] = tracks["value"].isna().groupby([tracks[k] for k in keys]).sum()
    v3 = analysis.track_scores(scores, SDR_V3)
    frame["undefined_tracks_v3"] = v3["value"].isna().groupby([v3[key] for key in keys]).sum()
    for metric, frames, energy in (
        ("PES", "silent_target_frames", "predicted_energy_db"),
        ("EPS", "silent_estimate_frames", "missed_energy_db"),
    ):
        part = scores[(scores["metric"] == metric) & (scores["protocol"] == SILENCE)].copy()
        if part.empty:
            raise ConfigError(
                f"The scores hold no {metric} of protocol {SILENCE!r}; "
                f"run `make reproduce PROFILE={settings.name}`."
            )
        part[frames] = part["frames"] - part["undefined_frames"]
        # The mean over frames, not over tracks: a track with one silent second counts once.
        part["sum"] = part["value"] * part[frames]
        sums = part.groupby(keys)[[frames, "sum"]].sum()
        frame[frames] = sums[frames]
        frame[energy] = (sums["sum"] / sums[frames]).where(sums[frames] > 0)
    frame = frame.reset_index()
    display = pd.DataFrame(
        {
            "Model": frame["model"].map(LABELS),
            "Instrument": frame["target"],
            "Frames": frame["frames"].astype(str),
            "Undefined": frame["undefined_frames"].astype(str),
            "Target silent": frame["silent_target_frames"].astype(str),
            "Predicted energy, dB": frame["predicted_energy_db"].map(number),
            "Estimate silent": frame["silent_estimate_frames"].astype(str),
            "Missed energy, dB": frame["missed_energy_db"].map(number),
            "Undefined tracks (v4, v3)": [
                f"{v4}, {v3}"
                for v4, v3 in zip(
                    frame["undefined_tracks_v4"], frame["undefined_tracks_v3"], strict=True
                )
            ],
        }
    )
    caption = (
        f"What has no defined score: frames of {settings.evaluate.window_seconds:g} s in all test "
        "tracks and runs together, and those without one by BSS Eval v4 (museval), which leaves a "
        "frame undefined for every instrument as soon as one target or estimate is silent in it. "
        "Target silent, estimate silent: frames where this instrument's target, or its estimate "
        "alone, is zero throughout while the mixture is not. Predicted energy: of the estimate "
        "where its target is silent; missed energy: of the target where the estimate is silent; "
        "both over the mixture's energy in the same frame, not below -80 dB, mean over those "
        "frames (after Schulze-Forster et al. 2019; 0 dB: all of the mixture). Undefined tracks "
        f"have no score at all. {_note(settings, scores)}"
    )
    return Table("silence", frame, display, caption)


def load_ablation(settings: Profile, *, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """Scores under each ablation, of every system that has them.

    Parameters
    ----------
    seeds
        Seeds of the training runs; all that are found if not given.

    Returns
    -------
    pandas.DataFrame
        Column ablation, then :data:`cunet_lib.evaluation.metrics.SCORE_COLUMNS`.

    Raises
    ------
    ConfigError
        If there are none, or a table is damaged or lacks a column.
    """
    folder = settings.paths.scores / "ablation"
    paths = [
        path
        for path in sorted(folder.glob("*-seed*.csv"))
        if seeds is None or path.stem.rsplit("-seed", 1)[1] in map(str, seeds)
    ]
    if not paths:
        seed = settings.seed if not seeds else seeds[0]
        raise missing(settings, folder / f"{settings.shipped}-seed{seed}.csv")
    # Track names such as "NA" are names; only values may be missing.
    options = {"keep_default_na": False, "na_values": {"value": ["", "nan", "NaN"]}}
    columns = ("ablation", *SCORE_COLUMNS)
    return pd.concat(
        [read_csv(settings, path, columns, **options) for path in paths], ignore_index=True
    )


def ablation_differences(ablations: pd.DataFrame) -> pd.DataFrame:
    """Each ablation minus the sound protocol, paired over tracks.

    Parameters
    ----------
    ablations
        As :func:`load_ablation` gives them.

    Returns
    -------
    pandas.DataFrame
        One row per ablation, model and target (``"all"``: a track's mean over the instruments
        where both have a score): tracks, undefined_tracks (of SI-SDR), and for each of
        :data:`SCORES` the sound protocol's mean (``*_sound_db``) and mean, standard deviation and
        median of the difference, in dB.
    """
    keys = ["model", "track", "target", "metric", "protocol", "aggregation"]
    # Seeds first, as everywhere: tracks are the units.
    means = ablations.groupby(["ablation", *keys], as_index=False)["value"].mean()
    sound = means[means["ablation"] == "sound"].drop(columns="ablation")
    pairs = means[means["ablation"] != "sound"].merge(
        sound, on=keys, suffixes=("", "_sound"), how="left", validate="many_to_one"
    )
    pairs["difference"] = pairs["value"] - pairs["value_sound"]
    overall = (
        pairs.dropna(subset=["difference"])
        .groupby(["ablation", "model", "track", *keys[3:]], as_index=False)[
            ["value_sound", "difference"]
        ]
        .mean()
        .assign(target=ALL)
    )
    pairs = pd.concat([overall, pairs], ignore_index=True)
    rows = []
    for ablation in ABLATION_LABELS:
        for model in TRAINED:
            for target in TARGETS:
                group = pairs[
                    (pairs["ablation"] == ablation)
                    & (pairs["model"] == model)
                    & (pairs["target"] == target)
                ]
                if len(group):
                    rows.append({"ablation": ablation, "model": model, "target": target})
                    rows[-1] |= _described(group)
    return pd.DataFrame(rows)


def _described(group: pd.DataFrame) -> dict[str, float]:
    facts = {}
    for name, (measure, _) in SCORES.items():
        chosen = measure.rows(group)
        values = chosen["difference"]
        if name == "sdr_v3":
            facts |= {"tracks": values.count(), "undefined_tracks": values.isna().sum()}
        facts[f"{name}_sound_db"] = chosen["value_sound"].mean()
        for statistic in ("mean", "std", "median"):
            facts[f"{name}_difference_{statistic}_db"] = values.agg(statistic)
    return facts


def ablation_table(settings: Profile, ablations: pd.DataFrame) -> Table:
    """What the released code's evaluation does to scores, each step alone and all together."""
    frame = ablation_differences(ablations)
    display = pd.DataFrame({"Evaluation": frame["ablation"].map(ABLATION_LABELS)})
    if len(set(frame["model"])) > 1:
        display["Model"] = frame["model"].map(LABELS)
    display["Instrument"] = frame["target"].map(target_label)
    for name, (_, heading) in SCORES.items():
        display[f"{heading}, dB"] = [
            f"{number(mean, sign=True)} ± {number(deviation)}"
            for mean, deviation in zip(
                frame[f"{name}_difference_mean_db"],
                frame[f"{name}_difference_std_db"],
                strict=True,
            )
        ]
    display["Tracks"] = frame["tracks"].astype(str)
    models = listed(LABELS[model] for model in frame["model"].drop_duplicates())
    sound = "the study's own evaluation"
    if not settings.separate.overlap:
        sound = (
            f"an evaluation with patches that overlap by {settings.separate.overlapping:g} of "
            "their length (other tables score patches joined end to end)"
        )
    caption = (
        f"Ablation, {models}: what the paper's released code does before it scores, as a "
        f"difference from {sound} of the same model, mean ± standard deviation "
        "of the paired differences over test tracks; above 0, the score is flattered. Patches "
        "joined end to end instead of cross-faded; the estimate divided by the maximum of its own "
        "spectrogram, so that its level is lost; the estimate stretched to minimum, maximum and "
        "mean of the reference, which no separation knows; and all three in this order. SDR v4: "
        "BSS Eval v4, median over frames; in it, gain counts. Plain SDR and SI-SDR: whole track. "
        f"v3: {V3_NOTE} {_note(settings, ablations)}"
    )
    return Table("ablation", frame, display, caption)


def _note(settings: Profile, scores: pd.DataFrame) -> str:
    """Data, rate, tracks and seeds."""
    seeds = sorted(set(scores.loc[scores["model"].isin(TRAINED), "seed"]))
    runs = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {listed(seeds)}" if seeds else "none"
    tracks = count(scores["track"].nunique(), "test track")
    return f"{data_note(settings)} {rate_note(settings)}; {tracks}; training runs: {runs}."
