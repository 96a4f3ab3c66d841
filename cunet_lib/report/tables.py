"""Tables of the report; what scores and tests are stands in ``docs/methods.md``.

A table is a frame with machine names, and a template for each column that readers see
(:func:`cunet_lib.report.records.lay_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas as pd

from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import (
    INSTRUMENTS,
    LABELS,
    PAPER_NAMES,
    SYSTEMS,
    TRAINED,
    UNETS,
    VARIANTS,
)
from cunet_lib.evaluation import metrics, published
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation import statistics as inference
from cunet_lib.evaluation.ablation import ABLATIONS, COMPARED, SOUND
from cunet_lib.evaluation.metrics import SDR_V3, SDR_V4, Measure
from cunet_lib.evaluation.scores import ALL, TARGETS
from cunet_lib.report.records import (
    Table,
    basis,
    costs,
    count,
    data_note,
    lay_out,
    listed,
    loss_named,
    rate_note,
)

BSS_EVAL = tuple(
    Measure(metric, sdr.protocol, sdr.aggregation)
    for sdr in (SDR_V4, SDR_V3)
    for metric in ("SDR", "SIR", "SAR")
)
"""Measures of the tables of scores."""

ABLATED = [measure for entry in COMPARED for measure in entry.measures]
"""Measures that ablations are compared by."""

PLACE = ["model", "target"]
STATISTICS = ("mean", "std", "median")
NAMED = {"Model": "{model!l}", "Instrument": "{target!l}"}
ORDER = {name: place for place, name in enumerate((*ABLATIONS, *SYSTEMS, *TARGETS))}


def _made(name: str, frame: pd.DataFrame, columns: Mapping[str, str], caption: str) -> Table:
    return Table(name, frame, lay_out(frame, columns), caption)


def _spread(measure: Measure) -> str:
    """Cell with mean, standard deviation and median of a measure."""
    start = measure.column
    return f"{{{start}_mean_db:.2f}} ± {{{start}_std_db:.2f}} ({{{start}_median_db:.2f}})"


# ------------------------------------------------------------------------------ models


def models_table(settings: Profile, runs: pd.DataFrame, paper: pd.DataFrame) -> Table:
    """Models and their parameters, here and at the paper's size.

    ``paper``: counts at that size, as ``cunet_lib.models.unet.parameter_table`` gives them.
    """
    sizes = runs.drop_duplicates("model").set_index("model")
    sizes = sizes[["parameters", "trainable_parameters"]].astype(int)
    sizes.loc["unet"] = sizes.loc[UNETS[0]] * len(INSTRUMENTS)
    paper = paper.set_index("model")
    chosen = ["unet", *(variant for variant in VARIANTS if variant in sizes.index)]
    frame = sizes.loc[chosen].rename(columns={"trainable_parameters": "trainable"})
    frame["share_of_four"] = frame["parameters"] / frame.loc["unet", "parameters"]
    frame["paper_parameters"] = paper["parameters"].reindex(chosen)
    frame["paper_share_of_four"] = frame["paper_parameters"] / paper.loc["unet", "parameters"]
    frame.insert(0, "paper_name", [PAPER_NAMES[model] or "-" for model in chosen])
    columns = {
        "Model": "{model!l}",
        "Name in the paper": "{paper_name}",
        "Parameters": "{parameters:,}",
        "Share of four U-Nets": "{share_of_four:.1%}",
        "Parameters at paper size": "{paper_parameters:,}",
        "Share at paper size": "{paper_share_of_four:.1%}",
    }
    caption = (
        f"Parameters of the models ({settings.model.filters} filters, {settings.model.blocks} "
        "blocks; dedicated U-Nets: all four), and at the paper's size (16 filters, 6 blocks). "
        f"{data_note(settings)}"
    )
    return _made("models", frame.reset_index(), columns, caption)


def training_table(settings: Profile, runs: pd.DataFrame) -> Table:
    """What each training took, and the four dedicated U-Nets together."""
    columns = ["model", "seed", "batch_size", "epochs", "steps", "best_epoch", "best_val_loss"]
    columns += ["teraflop", "seconds", "patches_per_second", "precision"]
    frame = runs[columns].copy()
    frame["patches"] = frame["steps"] * frame["batch_size"]
    shared = frame["model"].isin(VARIANTS)
    per_mixture = settings.train.conditions_per_mixture
    frame["mixtures"] = frame["patches"] // shared.map({True: per_mixture, False: 1})
    frame["patches_per_instrument"] = frame["patches"] // shared.map({True: 4, False: 1})
    sums = ["epochs", "steps", "seconds", "patches", "mixtures", "teraflop"]
    unets = frame[~shared]
    four = unets.groupby("seed", as_index=False)[sums].sum().assign(model="unet")
    four["patches_per_instrument"] = four["patches"] // len(INSTRUMENTS)
    frame = pd.concat([unets, four, frame[shared]], ignore_index=True)
    frame[["batch_size", "best_epoch"]] = frame[["batch_size", "best_epoch"]].astype("Int64")
    columns = {
        "Model": "{model!l}",
        "Seed": "{seed}",
        "Steps": "{steps:,}",
        "Mixtures": "{mixtures:,}",
        "Patches per instrument": "{patches_per_instrument:,}",
        "Epochs": "{epochs}",
        "Best epoch": "{best_epoch}",
        "Validation loss": "{best_val_loss:.5f}",
        "Computation, TFLOP": "{teraflop:.0f}",
        "Time, min": "{minutes:.1f}",
        "Patches/s": "{patches_per_second:.1f}",
    }
    caption = (
        f"Training cost (dedicated U-Nets: all four); loss: {loss_named(runs['model'])}, time: "
        f"with validation, on the machine of the manifest. {basis(settings, runs)}"
    )
    display = lay_out(frame.assign(minutes=frame["seconds"] / 60), columns)
    return Table("training", frame, display, caption)


# ------------------------------------------------------------------------------ scores


def statistics(
    scores: pd.DataFrame, measures: Sequence[Measure], targets: Sequence[str]
) -> pd.DataFrame:
    """Mean, deviation and median of each measure over tracks, by model and target."""
    parts = {each: analysis.summary(scores, each).set_index(PLACE) for each in measures}
    counts = ["tracks", "undefined_tracks", "frames", "undefined_frames"]
    first = parts[measures[0]]
    frame = first.loc[first.index.isin(targets, level="target"), counts].copy()
    for measure, part in parts.items():
        for statistic in STATISTICS:
            frame[f"{measure.column}_{statistic}_db"] = part[statistic]
    return frame


def scores_table(settings: Profile, scores: pd.DataFrame, *, by_instrument: bool = False) -> Table:
    """SDR, SIR and SAR by both protocols, over all instruments or per instrument.

    Counts of tracks and frames are BSS Eval v4's. With several seeds, also how far the means over
    tracks spread over training runs.
    """
    frame = statistics(scores, BSS_EVAL, INSTRUMENTS if by_instrument else (ALL,))
    for measure in BSS_EVAL:
        if spread := inference.seed_spread(scores, measure):
            frame[f"{measure.column}_seed_std_db"] = pd.Series(spread)
    frame = frame.reset_index()
    columns = {"Model": NAMED["Model"]}
    if by_instrument:
        frame = frame.sort_values("target", key=lambda c: c.map(ORDER), kind="stable")
        columns = {"Instrument": "{target}", **columns}
    for measure in sorted(BSS_EVAL, key=lambda measure: measure.metric != "SDR"):
        columns[f"{measure.heading}, dB"] = _spread(measure)
    for measure in (SDR_V4, SDR_V3):
        if f"{measure.column}_seed_std_db" in frame:
            spread = f"± {{{measure.column}_seed_std_db:.2f}}"
            columns[f"{measure.heading} over seeds, dB"] = spread
    caption = (
        f"Scores {'per instrument' if by_instrument else 'over all instruments'}: mean ± standard "
        f"deviation over test tracks, median in parentheses. {basis(settings, scores)}"
    )
    name = "scores_by_instrument" if by_instrument else "scores_overall"
    return _made(name, frame.reset_index(drop=True), {**columns, "Tracks": "{tracks}"}, caption)


def published_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """All published scores on MUSDB18, each with its protocol spelled out.

    Ours stand below those of equal protocol, and nowhere else.
    """
    listed = published.load_published()
    frames = [listed.assign(equal_protocol=False)]
    for measure in BSS_EVAL:
        words = published.our_protocol(settings, measure)
        equal = listed["protocol"] == words
        if equal.any():
            frames[0].loc[equal, "equal_protocol"] = True
            rows = analysis.summary(scores, measure)
            rows = rows.rename(columns={name: f"{name}_db" for name in STATISTICS})
            facts = {"study": "this run", "protocol": words, "source": "here"}
            facts |= {"equal_protocol": True, "system": rows["model"].map(LABELS)}
            facts["target"] = rows["target"].replace(ALL, published.OVERALL)
            frames.append(rows.assign(**facts)[list(frames[0])])
    frame = pd.concat(frames).sort_values(
        "equal_protocol", ascending=False, kind="stable", ignore_index=True
    )
    names = {"mean_db": "Mean, dB", "std_db": "Standard deviation, dB", "median_db": "Median, dB"}
    names["equal_protocol"] = "Equal to ours"
    columns = {
        names.get(name, name.capitalize()): f"{{{name}{':.2f' if name.endswith('_db') else ''}}}"
        for name in frame
    }
    caption = (
        "Published scores on MUSDB18, as their sources give them, and ours "
        f"({rate_note(settings)}) where the protocol is equal. Only equal protocols compare."
    )
    shown = frame.assign(equal_protocol=frame["equal_protocol"].map({True: "yes", False: "no"}))
    return Table("published", frame, lay_out(shown, columns), caption)


# ------------------------------------------------------------------------------ comparisons


def differences_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Paired differences per track, C-U-Nets minus dedicated U-Nets, tested, by both protocols.

    Also how many tracks the test for equivalence would need at the variance seen.
    """
    stated, parts = settings.statistics, []
    for measure in (SDR_V4, SDR_V3):
        table = inference.comparison_table(scores, stated, measure)
        parts.append(table.assign(heading=measure.heading))
    values = (*STATISTICS, "ci_low", "ci_high", "seed_std")
    table = pd.concat(parts).sort_index(kind="stable", ignore_index=True)
    table = table.rename(columns={name: f"difference_{name}_db" for name in values})
    needed = table["tracks_needed"].map("{:,.0f}".format)
    needed = needed.replace("nan", f"more than {inference.MOST_TRACKS:,}")
    shown = table.assign(needed=needed.where(table["power"].notna()))
    columns = {
        **NAMED,
        "Protocol": "{heading}",
        "Difference, dB": "{difference_mean_db:+.2f}",
        f"{1 - stated.alpha:.0%} interval": (
            "{difference_ci_low_db:+.2f} to {difference_ci_high_db:+.2f}"
        ),
        "Verdict": "{verdict}",
        "Tracks better": "{tracks_better} of {tracks}",
        "p, difference": "{p_difference:p}",
        "p, equivalence": "{p_equivalence:p}",
        "Tracks needed": "{needed}",
    }
    if "difference_seed_std_db" in table:
        columns["Over seeds, dB"] = "± {difference_seed_std_db:.2f}"
    caption = (
        "Paired differences of SDR per test track, C-U-Net minus dedicated U-Net; p of a "
        "difference corrected (Holm), p of equivalence for a margin of "
        f"{stated.margin_db:g} dB that was set beforehand, and the tracks that would show it with "
        f"{stated.power:.0%} power if there were no difference. {basis(settings, scores)}"
    )
    frame = table.drop(columns="heading")
    return Table("differences", frame, lay_out(shown, columns), caption)


def again_table(settings: Profile, scores: pd.DataFrame, known: pd.DataFrame) -> Table:
    """Verdicts and medians beside those of the same runs in the profile that this one is like.

    ``known`` are the scores there, of the same systems and seeds, so that both correct for as many
    comparisons.
    ``shift_db`` is the larger change of the two systems' medians.
    """
    verdict, parts = ["difference_mean_db", "verdict"], []
    for measure in (SDR_V4, SDR_V3):
        compared = {}
        for side, table in {"": scores, "known_": known}.items():
            each = inference.comparison_table(table, settings.statistics, measure)
            each = each.rename(columns={"mean": verdict[0]}).set_index(PLACE)
            medians = analysis.summary(table, measure).set_index(PLACE)["median"]
            each["median_db"] = medians
            each["unet_median_db"] = [medians["unet", target] for _, target in each.index]
            compared[side] = each[[*verdict, "median_db", "unet_median_db"]].add_prefix(side)
        parts.append(pd.concat(compared.values(), axis=1, join="inner").reset_index())
        parts[-1]["protocol"] = measure.heading
    frame = pd.concat(parts, ignore_index=True)
    moved = [frame[name] - frame[f"known_{name}"] for name in ("median_db", "unet_median_db")]
    frame["shift_db"] = pd.concat(moved, axis=1).abs().max(axis=1)
    columns = {**NAMED, "Protocol": "{protocol}"}
    for side, label in {"known_": settings.like, "": settings.name}.items():
        columns[f"{label}: difference, dB"] = f"{{{side}difference_mean_db:+.2f}}"
        columns[f"{label}: verdict"] = f"{{{side}verdict}}"
    columns["Medians moved, dB"] = "{shift_db:.2f}"
    equal = int((frame["verdict"] == frame["known_verdict"]).sum())
    caption = (
        f"C-U-Net minus dedicated U-Nets in the profile {settings.like} and in {settings.name}: "
        f"{equal} of {len(frame)} verdicts are the same; medians moved: the larger change of the "
        f"two systems'. {basis(settings, scores)}"
    )
    return _made("again", frame, columns, caption)


def steps_table(settings: Profile, scores: pd.DataFrame, runs: pd.DataFrame) -> Table:
    """What each C-U-Net gains over the one before it, and its cost; the dedicated U-Nets last."""
    frame = costs(runs)
    order = [*(name for name in VARIANTS if name in frame.index), "unet"]
    frame = frame.loc[order]
    columns = {
        "Model": "{model!l}",
        "Parameters, M": "{millions:.2f}",
        "Computation, TFLOP": "{teraflop:.0f}",
    }
    for measure in (SDR_V4, SDR_V3):
        tracks = analysis.over_instruments(analysis.track_scores(scores, measure))
        values = tracks.pivot_table("value", "track", "model")[order]
        start = measure.column
        frame[f"{start}_mean_db"] = values.mean()
        places = [f"{start}_gain_{part}_db" for part in ("mean", "ci_low", "ci_high")]
        frame[places] = float("nan")
        for before, model in pairwise(order[:-1]):
            gain = (values[model] - values[before]).dropna().to_numpy()
            low, high = analysis.bootstrap_interval(gain, confidence=1 - settings.statistics.alpha)
            frame.loc[model, places] = gain.mean(), low, high
        columns[f"{measure.heading}, dB"] = f"{{{start}_mean_db:.2f}}"
        mean, low, high = (f"{{{place}:+.2f}}" for place in places)
        columns[f"Gain, {measure.heading}, dB"] = f"{mean} ({low} to {high})"
    caption = (
        "Each C-U-Net and what it gains over the one above it, per test track over all "
        f"instruments, with {1 - settings.statistics.alpha:.0%} bootstrap intervals; dedicated "
        f"U-Nets: all four. {basis(settings, scores)}"
    )
    frame = frame.rename_axis("model").reset_index()
    display = lay_out(frame.assign(millions=frame["parameters"] / 1e6), columns)
    return Table("steps", frame, display, caption)


# ------------------------------------------------------------------------------ other protocols


def highs_table(settings: Profile, frame: pd.DataFrame) -> Table:
    """What :func:`cunet_lib.explore.conditioning.highs` measured: quartiles over test tracks."""
    groups = frame.groupby(["model", "seed", "target"], sort=False)["highs_db"]
    shares = {"quartile_1_db": 0.25, "median_db": 0.5, "quartile_3_db": 0.75}
    summary = pd.DataFrame({name: groups.quantile(share) for name, share in shares.items()})
    summary = summary.assign(tracks=groups.count()).reset_index()
    cell = "{median_db:.2f} ({quartile_1_db:.2f} to {quartile_3_db:.2f})"
    columns = {"Instrument": "{target}", "SDR of the highs, dB": cell, "Test tracks": "{tracks}"}
    edge = settings.signal.sample_rate // 2
    caption = (
        f"{LABELS[frame['model'].iloc[0]]}: plain SDR of what lies above {edge} Hz, at full rate "
        "over all channels, where silence scores 0 dB; median over tracks, quartiles in brackets. "
        f"{data_note(settings)}"
    )
    return Table("highs", summary, lay_out(summary, columns), caption)


def further_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Every score of whole tracks beside BSS Eval: SI-SDR, plain SDR, residual and sum.

    The sum is of all estimates of a track together: it stands in rows of target ``"all"`` alone.
    """
    total = scores["target"] == metrics.MIXTURE
    scores = scores.assign(target=scores["target"].mask(total, ALL))
    frame = statistics(scores, metrics.FURTHER, TARGETS).reset_index()
    frame = frame.drop(columns=["frames", "undefined_frames"])
    columns = NAMED | {f"{measure.heading}, dB": _spread(measure) for measure in metrics.FURTHER}
    caption = (
        "Scores of whole tracks without filters: mean ± standard deviation over test tracks, "
        f"median in parentheses. {basis(settings, scores)}"
    )
    return _made("further_scores", frame, columns, caption)


def silence_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Frames and tracks without a defined score, and the energies that stand for them."""
    tracks, v3 = (analysis.track_scores(scores, measure) for measure in (SDR_V4, SDR_V3))
    frame = tracks.groupby(PLACE, sort=False)[["frames", "undefined_frames"]].sum()
    for version, table in (("v4", tracks), ("v3", v3)):
        undefined = table["value"].isna().groupby([table[key] for key in PLACE]).sum()
        frame[f"undefined_tracks_{version}"] = undefined
    names = {"PES": ("silent_target", "predicted"), "EPS": ("silent_estimate", "missed")}
    for metric, (silent, energy) in names.items():
        part = scores[(scores["metric"] == metric) & (scores["protocol"] == metrics.SILENCE)]
        # The mean over frames, not over tracks: a track with one silent second counts once.
        part = part.assign(frames=part["frames"] - part["undefined_frames"])
        part["sum"] = part["value"] * part["frames"]
        sums = part.groupby(PLACE)[["frames", "sum"]].sum()
        frame[f"{silent}_frames"] = sums["frames"]
        frame[f"{energy}_energy_db"] = (sums["sum"] / sums["frames"]).where(sums["frames"] > 0)
    columns = {
        **NAMED,
        "Frames": "{frames}",
        "Undefined": "{undefined_frames}",
        "Target silent": "{silent_target_frames}",
        "Predicted energy, dB": "{predicted_energy_db:.2f}",
        "Estimate silent": "{silent_estimate_frames}",
        "Missed energy, dB": "{missed_energy_db:.2f}",
        "Undefined tracks, v4": "{undefined_tracks_v4}",
        "Undefined tracks, v3": "{undefined_tracks_v3}",
    }
    caption = (
        "Frames (of every training run) in which a target or its estimate is silent, and the "
        f"energy that is heard or missed there, in dB of the mixture's. {basis(settings, scores)}"
    )
    return _made("silence", frame.reset_index(), columns, caption)


def ablation_table(settings: Profile, ablations: pd.DataFrame) -> Table:
    """What the released code's evaluation does to scores, each step alone and all together."""
    parts = []
    for measure in ABLATED:
        values = {
            ablation: analysis.track_scores(rows, measure).set_index([*PLACE, "track"])["value"]
            for ablation, rows in ablations.groupby("ablation")
        }
        for ablation in ABLATIONS[1:]:
            pairs = (values[ablation] - values[SOUND]).rename("difference").reset_index()
            mean = pairs.dropna().groupby(["model", "track"], as_index=False)["difference"].mean()
            pairs = pd.concat([mean.assign(target=ALL), pairs])
            parts.append(pairs.assign(ablation=ablation, measure=measure.column))
    long = pd.concat(parts)
    keys = ["ablation", "model", "target"]
    groups = long.groupby([*keys, "measure"], sort=False)["difference"]
    frame = groups.agg(STATISTICS).unstack("measure")  # noqa: PD010
    frame.columns = [f"{name}_difference_{stat}_db" for stat, name in frame.columns]
    first = long[long["measure"] == SDR_V3.column].groupby(keys)["difference"]
    frame.insert(0, "tracks", first.count())
    frame.insert(1, "undefined_tracks", first.agg(lambda values: values.isna().sum()))
    frame = frame.sort_index(key=lambda level: level.map(ORDER)).reset_index()
    columns = {"Evaluation": "{ablation}", **NAMED}
    for measure in ABLATED:
        prefix = f"{measure.column}_difference"
        columns[f"{measure.heading}, dB"] = f"{{{prefix}_mean_db:+.2f}} ± {{{prefix}_std_db:.2f}}"
    models = listed(LABELS[model] for model in dict.fromkeys(frame["model"]))
    overlap = f"{settings.separate.overlapping:g}"
    caption = (
        f"Ablation, {models}: what each step of the released code's evaluation adds to the scores "
        f"of an evaluation with patches that overlap by {overlap}, mean ± standard deviation over "
        f"test tracks. {basis(settings, ablations)}"
    )
    return _made("ablation", frame, columns, caption)


def excerpt_table(settings: Profile, excerpt: pd.DataFrame) -> Table:
    """Scores on the one real recording at hand, apart from the test set; means over seeds."""
    groups = excerpt.groupby(["model", "target", "metric"], as_index=False)
    frame = groups.agg(seeds=("seed", "nunique"), sdr_whole_excerpt_db=("value", "mean"))
    frame = frame.sort_values(PLACE, key=lambda c: c.map(ORDER), ignore_index=True)
    wide = frame.pivot(index="model", columns="target", values="sdr_whole_excerpt_db")  # noqa: PD010
    wide = wide.loc[frame["model"].unique()].reset_index()
    columns = {f"{target}, dB": f"{{{target}:.2f}}" for target in wide.columns[1:]}
    trained = frame.loc[frame["model"].isin(TRAINED), "seeds"]
    least, most = int(trained.min()), int(trained.max())
    runs = (
        f"{count(most, 'training run')} each" if least == most else f"{least} to {most} runs each"
    )
    caption = (
        "One real excerpt of six seconds, from a MUSDB18 test track: SDR over the whole excerpt. "
        f"{rate_note(settings)}; models trained on: {settings.title} ({runs})."
    )
    return Table("excerpt", frame, lay_out(wide, {"Model": "{model!l}"} | columns), caption)


def tukey_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Tukey's test between trained systems, as the paper's authors ran it on theirs."""
    columns = {
        "Instrument": "{target}",
        "Model": "{model!l}",
        "Minus": "{reference!l}",
        "Difference of SDR v4, dB": "{difference_mean_db:+.2f}",
        "Interval": "{difference_ci_low_db:+.2f} to {difference_ci_high_db:+.2f}",
        "p": "{p_difference:p}",
    }
    caption = (
        "Tukey's HSD between the trained systems, per instrument, over test tracks that are not "
        f"paired. {basis(settings, scores)}"
    )
    frame = inference.tukey_table(scores, settings.statistics)
    values = {name: f"difference_{name}_db" for name in ("mean", "ci_low", "ci_high")}
    return _made("tukey", frame.rename(columns=values), columns, caption)
