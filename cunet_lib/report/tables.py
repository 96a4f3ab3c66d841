"""Tables of the report; what scores and tests are stands in ``docs/methods.md``."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cunet_lib.core.files import missing
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS, PAPER_NAMES, SYSTEMS, UNETS, VARIANTS
from cunet_lib.evaluation import published
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation import statistics as inference
from cunet_lib.evaluation.ablation import ABLATIONS, SOUND
from cunet_lib.evaluation.metrics import (
    FURTHER,
    MIXTURE,
    PLAIN_SDR,
    SDR_V3,
    SDR_V4,
    SI_SDR,
    SILENCE,
    WHOLE_TRACK,
    Measure,
)
from cunet_lib.evaluation.scores import ALL, TARGETS
from cunet_lib.report.records import (
    Table,
    basis,
    count,
    data_note,
    listed,
    number,
    rate_note,
    target_label,
)

BSS_EVAL = tuple(
    Measure(metric, sdr.protocol, sdr.aggregation)
    for sdr in (SDR_V4, SDR_V3)
    for metric in ("SDR", "SIR", "SAR")
)
"""Measures of the tables of scores."""

ABLATED = (*BSS_EVAL[3:], SDR_V4, *(Measure("SDR", p, WHOLE_TRACK) for p in (PLAIN_SDR, SI_SDR)))
"""Measures that ablations are compared by."""

PLACE = ["model", "target"]
STATISTICS = ("mean", "std", "median")


def texts(values: pd.Series, decimals: int = 2, *, sign: bool = False) -> list[str]:
    """A column of numbers as text."""
    return [number(value, decimals, sign=sign) for value in values]


def spread(frame: pd.DataFrame, prefix: str) -> list[str]:
    """Mean, standard deviation and median as text, of the columns that start with ``prefix``."""
    columns = [f"{prefix}{statistic}_db" for statistic in STATISTICS]
    return [
        f"{number(mean)} ± {number(deviation)} ({number(median)})"
        for mean, deviation, median in frame[columns].itertuples(index=False)
    ]


def named(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Columns that name a row's model and instrument."""
    return {"Model": frame["model"].map(LABELS), "Instrument": frame["target"].map(target_label)}


def models_table(settings: Profile, runs: pd.DataFrame, paper: pd.DataFrame) -> Table:
    """Models and their parameters, here and at the paper's size.

    Parameters
    ----------
    runs
        As :func:`cunet_lib.report.records.load_runs` gives them.
    paper
        Counts at the paper's size, as ``cunet_lib.models.unet.parameter_table()`` gives them.
    """
    sizes = runs.drop_duplicates("model").set_index("model")
    sizes = sizes[["parameters", "trainable_parameters"]].astype(int)
    unets = [model for model in UNETS if model in sizes.index]
    if not unets:
        raise missing(settings.paths.run(UNETS[0], settings.seed) / "run.json")
    sizes.loc["unet"] = sizes.loc[unets[0]] * len(INSTRUMENTS)
    paper = paper.set_index("model")
    chosen = ["unet", *(variant for variant in VARIANTS if variant in sizes.index)]
    frame = sizes.loc[chosen].rename(columns={"trainable_parameters": "trainable"})
    frame["share_of_four"] = frame["parameters"] / frame.loc["unet", "parameters"]
    frame["paper_parameters"] = paper["parameters"].reindex(chosen)
    frame["paper_share_of_four"] = frame["paper_parameters"] / paper.loc["unet", "parameters"]
    frame.insert(0, "paper_name", [PAPER_NAMES[model] for model in chosen])
    frame = frame.reset_index()
    display = pd.DataFrame(
        {
            "Model": frame["model"].map({**LABELS, "unet": "Four dedicated U-Nets"}),
            "Name in the paper": frame["paper_name"].replace("", "-"),
            "Parameters": frame["parameters"].map("{:,}".format),
            "Share of four U-Nets": frame["share_of_four"].map("{:.1%}".format),
            "Parameters at paper size": frame["paper_parameters"].map("{:,}".format),
            "Share at paper size": frame["paper_share_of_four"].map("{:.1%}".format),
        }
    )
    caption = (
        f"Parameters of the models ({settings.model.filters} filters, {settings.model.blocks} "
        f"blocks), and at the paper's size (16 filters, 6 blocks). {data_note(settings)}"
    )
    return Table("models", frame, display, caption)


def training_table(settings: Profile, runs: pd.DataFrame) -> Table:
    """What each training took, and the four dedicated U-Nets together."""
    columns = ["model", "seed", "batch_size", "epochs", "steps", "best_epoch", "best_val_loss"]
    frame = runs[[*columns, "seconds", "patches_per_second", "precision"]].copy()
    frame["patches"] = frame["steps"] * frame["batch_size"]
    shared = frame["model"].isin(VARIANTS)
    per_mixture = settings.train.conditions_per_mixture
    frame["mixtures"] = frame["patches"] // shared.map({True: per_mixture, False: 1})
    frame["patches_per_instrument"] = frame["patches"] // shared.map({True: 4, False: 1})
    unets = frame[~shared]
    four = unets.groupby("seed", as_index=False)[["epochs", "steps", "seconds", "patches"]].sum()
    four = four.merge(unets.groupby("seed", as_index=False)[["mixtures"]].sum(), on="seed")
    four["patches_per_instrument"] = four["patches"] // len(INSTRUMENTS)
    frame = pd.concat([unets, four.assign(model="unet"), frame[shared]], ignore_index=True)
    frame[["batch_size", "best_epoch"]] = frame[["batch_size", "best_epoch"]].astype("Int64")
    display = pd.DataFrame(
        {
            "Model": frame["model"].map({**LABELS, "unet": "Four dedicated U-Nets"}),
            "Seed": frame["seed"].astype(str),
            "Steps": frame["steps"].map("{:,}".format),
            "Mixtures": frame["mixtures"].map("{:,}".format),
            "Patches per instrument": frame["patches_per_instrument"].map("{:,}".format),
            "Epochs": frame["epochs"].astype(str),
            "Best epoch": [text.replace("n/a", "-") for text in texts(frame["best_epoch"], 0)],
            "Validation loss": texts(frame["best_val_loss"], 5),
            "Time, min": texts(frame["seconds"] / 60, 1),
            "Patches/s": texts(frame["patches_per_second"], 1),
        }
    )
    caption = (
        "Training cost; loss: mean absolute error of magnitudes, time: with validation, on the "
        f"machine of the manifest. {basis(settings, runs)}"
    )
    return Table("training", frame, display, caption)


# ------------------------------------------------------------------------------ scores


def statistics(
    scores: pd.DataFrame, measures: Sequence[Measure], targets: Sequence[str]
) -> pd.DataFrame:
    """Mean, deviation and median of each measure over tracks, by model and target."""
    parts = {}
    for measure in measures:
        by_target = [analysis.summary(scores, measure, by_target=each) for each in (False, True)]
        parts[measure] = pd.concat(by_target).drop_duplicates(PLACE).set_index(PLACE)
    places = [
        (model, target)
        for model in SYSTEMS
        for target in targets
        if (model, target) in parts[measures[0]].index
    ]
    frame = pd.DataFrame(index=pd.MultiIndex.from_tuples(places, names=PLACE))
    counts = ["tracks", "undefined_tracks", "frames", "undefined_frames"]
    frame[counts] = parts[measures[0]][counts]
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
        seeds = inference.seed_spread(scores, measure, by_target=by_instrument)
        if len(seeds):
            frame[f"{measure.column}_seed_std_db"] = seeds.set_index(PLACE)["seed_std"]
    frame = frame.reset_index()
    if by_instrument:
        places = frame["target"].map({name: place for place, name in enumerate(INSTRUMENTS)})
        frame = frame.loc[places.sort_values(kind="stable").index].reset_index(drop=True)
    display = pd.DataFrame({"Model": frame["model"].map(LABELS)})
    if by_instrument:
        display.insert(0, "Instrument", frame["target"])
    for measure in BSS_EVAL:
        display[f"{measure.heading}, dB"] = spread(frame, f"{measure.column}_")
    for measure in (SDR_V4, SDR_V3):
        if f"{measure.column}_seed_std_db" in frame:
            display[f"{measure.heading} over seeds, dB"] = [
                "-" if text == "n/a" else f"± {text}"
                for text in texts(frame[f"{measure.column}_seed_std_db"])
            ]
    display["Tracks"] = frame["tracks"].astype(str)
    caption = (
        f"Scores {'per instrument' if by_instrument else 'over all instruments'}: mean ± standard "
        f"deviation over test tracks, median in parentheses. {basis(settings, scores)}"
    )
    name = "scores_by_instrument" if by_instrument else "scores_overall"
    return Table(name, frame, display, caption)


def published_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """All published scores on MUSDB18, each with its protocol spelled out.

    Ours stand below those of equal protocol, and nowhere else.

    Raises
    ------
    ConfigError
        If the profile's tracks are not MUSDB18's.
    """
    if settings.data.source != "musdb18":
        raise ConfigError(
            f"Published scores are on MUSDB18; profile {settings.name} has other tracks, and "
            "nothing can be compared."
        )
    listed = published.load_published()
    frames = [listed.assign(equal_protocol=False)]
    for measure in BSS_EVAL:
        equal = published.of_equal_protocol(settings, measure, listed)
        for words in dict.fromkeys(equal["protocol"]):
            frames[0].loc[listed["protocol"] == words, "equal_protocol"] = True
            both = [analysis.summary(scores, measure, by_target=each) for each in (False, True)]
            rows = pd.concat(both).rename(columns={name: f"{name}_db" for name in STATISTICS})
            facts = {"study": "this run", "protocol": words, "source": "here"}
            facts |= {"equal_protocol": True, "system": rows["model"].map(LABELS)}
            facts["target"] = rows["target"].replace(ALL, published.OVERALL)
            frames.append(rows.assign(**facts)[list(frames[0])])
    frame = pd.concat(frames).sort_values(
        "equal_protocol", ascending=False, kind="stable", ignore_index=True
    )
    names = {"mean_db": "Mean, dB", "std_db": "Standard deviation, dB", "median_db": "Median, dB"}
    display = frame.copy()
    for name in names:
        display[name] = [text.replace("n/a", "-") for text in texts(frame[name])]
    display["equal_protocol"] = frame["equal_protocol"].map({True: "yes", False: "no"})
    display = display.rename(columns={**names, "equal_protocol": "Equal to ours"})
    display.columns = [name[:1].upper() + name[1:] for name in display]
    caption = (
        "Published scores on MUSDB18, as their sources give them, and ours "
        f"({rate_note(settings)}) where the protocol is equal. Only equal protocols compare."
    )
    return Table("published", frame, display, caption)


def outcome_table(settings: Profile, scores: pd.DataFrame, **bounds: float) -> Table:
    """Medians between mixture and ideal mask, and whether they reach the bounds."""
    checked = analysis.check_outcome(scores, **bounds)
    flags = {
        "improved_enough": "improvement too small",
        "high_enough": "median too low",
        "below_ideal": "above the ideal mask",
    }
    display = pd.DataFrame(
        {
            **named(checked),
            "Median SDR v4, dB": texts(checked["median"]),
            "Mixture": texts(checked["mixture_median"]),
            "Improvement": texts(checked["improvement"], sign=True),
            "Ideal ratio mask": texts(checked["ideal_median"]),
            "Reached": [
                ", ".join(words for flag, words in flags.items() if not row[flag]) or "yes"
                for _, row in checked.iterrows()
            ],
        }
    )
    frame = checked.drop(columns="metric").rename(
        columns={
            "median": "sdr_v4_median_db",
            "mixture_median": "mixture_sdr_v4_median_db",
            "improvement": "improvement_median_db",
            "ideal_median": "ideal_sdr_v4_median_db",
        }
    )
    caption = (
        f"{int(checked['passed'].sum())} of {len(checked)} medians are clearly above the mixture's "
        f"and above silence, and none but those marked exceeds the ideal mask's. "
        f"{basis(settings, scores)}"
    )
    return Table("outcome", frame, display, caption)


# ------------------------------------------------------------------------------ comparisons


def differences_table(
    settings: Profile, scores: pd.DataFrame, *, measure: Measure = SDR_V4
) -> Table:
    """Paired differences per track, C-U-Nets minus dedicated U-Nets, tested.

    Parameters
    ----------
    measure
        SDR by BSS Eval v4, or v3, the paper's: then the table's name ends in ``_v3``.
    """
    table = inference.comparison_table(scores, settings.statistics, measure)
    display = pd.DataFrame(
        {
            **named(table),
            f"Difference of {measure.heading}, dB": texts(table["mean"], sign=True),
            f"{1 - settings.statistics.alpha:.0%} interval": [
                "n/a" if pd.isna(low) else f"{number(low, sign=True)} to {number(high, sign=True)}"
                for low, high in zip(table["ci_low"], table["ci_high"], strict=True)
            ],
            "Tracks better": [
                f"{better} of {tracks}"
                for better, tracks in zip(table["tracks_better"], table["tracks"], strict=True)
            ],
            "p, difference": [_pvalue(value) for value in table["p_difference"]],
            "p, equivalence": [_pvalue(value) for value in table["p_equivalence"]],
            "Verdict": table["verdict"],
        }
    )
    if "seed_std" in table:
        over = [f"± {text}" for text in texts(table["seed_std"])]
        display.insert(4, "Over seeds", over)
    values = (*STATISTICS, "ci_low", "ci_high", "seed_std")
    frame = table.rename(columns={name: f"difference_{name}_db" for name in values})
    margin, version = settings.statistics.margin_db, measure.heading.split()[-1]
    caption = (
        f"Paired differences per test track by BSS Eval {version}, C-U-Net minus dedicated U-Net, "
        f"with corrected tests and a margin of {margin:g} dB that was set beforehand. "
        f"{basis(settings, scores)}"
    )
    name = "differences" if measure == SDR_V4 else f"differences_{version}"
    return Table(name, frame, display, caption)


def _pvalue(value: float) -> str:
    return "<0.001" if value < 0.001 else number(value, 3)


def power_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """How many tracks the test for equivalence would need at the variance seen."""
    stated = settings.statistics
    table = inference.power_table(scores, stated)
    most = f"more than {inference.MOST_TRACKS:,}"
    display = pd.DataFrame(
        {
            **named(table),
            "Standard deviation over tracks, dB": texts(table["track_std_db"]),
            "Tracks": table["tracks"].astype(str),
            "Power": texts(table["power"]),
            "Tracks needed": [
                "n/a" if pd.isna(power) else most if pd.isna(needed) else f"{needed:,.0f}"
                for needed, power in zip(table["tracks_needed"], table["power"], strict=True)
            ],
        }
    )
    caption = (
        f"Power of the test for equivalence within ±{stated.margin_db:g} dB if there is no "
        f"difference, and test tracks needed for {stated.power:.0%} power. "
        f"{basis(settings, scores)}"
    )
    return Table("power", table, display, caption)


# ------------------------------------------------------------------------------ other protocols


def further_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Every score of whole tracks beside BSS Eval: SI-SDR, plain SDR, residual and sum.

    The sum is of all estimates of a track together: it stands in rows of target ``"all"`` alone.
    """
    total = scores["target"] == MIXTURE
    scores = scores.assign(target=scores["target"].mask(total, ALL))
    frame = statistics(scores, FURTHER, TARGETS).reset_index()
    frame = frame.drop(columns=["frames", "undefined_frames"])
    display = pd.DataFrame(named(frame))
    for measure in FURTHER:
        display[f"{measure.heading}, dB"] = [
            "n/a" if text.startswith("n/a") else text
            for text in spread(frame, f"{measure.column}_")
        ]
    caption = (
        "Scores of whole tracks without filters: mean ± standard deviation over test tracks, "
        f"median in parentheses. {basis(settings, scores)}"
    )
    return Table("further_scores", frame, display, caption)


def silence_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Frames and tracks without a defined score, and the energies that stand for them."""
    tracks, v3 = (analysis.track_scores(scores, measure) for measure in (SDR_V4, SDR_V3))
    frame = tracks.groupby(PLACE, sort=False)[["frames", "undefined_frames"]].sum()
    for version, table in (("v4", tracks), ("v3", v3)):
        undefined = table["value"].isna().groupby([table[key] for key in PLACE]).sum()
        frame[f"undefined_tracks_{version}"] = undefined
    names = {"PES": ("silent_target", "predicted"), "EPS": ("silent_estimate", "missed")}
    for metric, (silent, energy) in names.items():
        part = scores[(scores["metric"] == metric) & (scores["protocol"] == SILENCE)]
        # The mean over frames, not over tracks: a track with one silent second counts once.
        part = part.assign(frames=part["frames"] - part["undefined_frames"])
        part["sum"] = part["value"] * part["frames"]
        sums = part.groupby(PLACE)[["frames", "sum"]].sum()
        frame[f"{silent}_frames"] = sums["frames"]
        frame[f"{energy}_energy_db"] = (sums["sum"] / sums["frames"]).where(sums["frames"] > 0)
    frame = frame.reset_index()
    display = pd.DataFrame(
        {
            **named(frame),
            "Frames": frame["frames"].astype(str),
            "Undefined": frame["undefined_frames"].astype(str),
            "Target silent": frame["silent_target_frames"].astype(str),
            "Predicted energy, dB": texts(frame["predicted_energy_db"]),
            "Estimate silent": frame["silent_estimate_frames"].astype(str),
            "Missed energy, dB": texts(frame["missed_energy_db"]),
            "Undefined tracks, v4": frame["undefined_tracks_v4"].astype(str),
            "Undefined tracks, v3": frame["undefined_tracks_v3"].astype(str),
        }
    )
    caption = (
        "Frames in which a target or its estimate is silent, and the energy that is heard or "
        f"missed there, in dB of the mixture's. {basis(settings, scores)}"
    )
    return Table("silence", frame, display, caption)


def ablation_table(settings: Profile, ablations: pd.DataFrame) -> Table:
    """What the released code's evaluation does to scores, each step alone and all together.

    Parameters
    ----------
    ablations
        As :func:`cunet_lib.report.records.load_ablation` gives them.
    """
    parts = []
    for measure in ABLATED:
        sound = ablations[ablations["ablation"] == SOUND]
        reference = analysis.track_scores(sound, measure).set_index(["model", "track", "target"])
        for ablation in ABLATIONS[1:]:
            chosen = ablations[ablations["ablation"] == ablation]
            pairs = analysis.track_scores(chosen, measure)
            pairs = pairs.set_index(["model", "track", "target"])[["value"]]
            pairs["difference"] = pairs.pop("value") - reference["value"]
            pairs = pairs.reset_index()
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
    order = {name: place for place, name in enumerate((*ABLATIONS, *SYSTEMS, *TARGETS))}
    frame = frame.sort_index(key=lambda level: level.map(order)).reset_index()
    display = pd.DataFrame({"Evaluation": frame["ablation"], **named(frame)})
    for measure in ABLATED:
        prefix = f"{measure.column}_difference"
        display[f"{measure.heading}, dB"] = [
            f"{number(mean, sign=True)} ± {number(deviation)}"
            for mean, deviation in zip(
                frame[f"{prefix}_mean_db"], frame[f"{prefix}_std_db"], strict=True
            )
        ]
    models = listed(LABELS[model] for model in dict.fromkeys(frame["model"]))
    overlap = f"{settings.separate.overlapping:g}"
    caption = (
        f"Ablation, {models}: what each step of the released code's evaluation adds to the scores "
        f"of an evaluation with patches that overlap by {overlap}, mean ± standard deviation over "
        f"test tracks. {basis(settings, ablations)}"
    )
    return Table("ablation", frame, display, caption)


def excerpt_table(settings: Profile, excerpt: pd.DataFrame) -> Table:
    """Scores on the one real recording at hand, apart from the test set.

    Parameters
    ----------
    excerpt
        As :func:`cunet_lib.report.records.load_excerpt` gives it.
    """
    wide = excerpt.pivot(index="model", columns="target", values="value")  # noqa: PD010
    wide = wide.reindex(index=dict.fromkeys(excerpt["model"]), columns=INSTRUMENTS)
    display = pd.DataFrame({"Model": [LABELS[model] for model in wide.index]})
    for target in wide:
        display[f"{target}, dB"] = texts(wide[target])
    runs = count(int(excerpt["seeds"].max()), "training run")
    caption = (
        "One real excerpt of six seconds, from a MUSDB18 test track: SDR over the whole excerpt. "
        f"{rate_note(settings)}; models trained on: {settings.title} ({runs} each)."
    )
    frame = excerpt.rename(columns={"value": "sdr_whole_excerpt_db"})
    return Table("excerpt", frame, display, caption)


def tukey_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """Tukey's test between trained systems, as the paper's authors ran it on theirs."""
    frame = inference.tukey_table(scores, settings.statistics)
    bounds = frame[["mean", "ci_low", "ci_high"]].map("{:+.2f}".format)
    display = (
        pd.DataFrame(
            {
                "Instrument": frame["target"],
                "Model": frame["model"].map(LABELS),
                "Minus": frame["reference"].map(LABELS),
                "Difference of SDR v4, dB": bounds["mean"],
                "Interval": bounds["ci_low"] + " to " + bounds["ci_high"],
                "p": frame["p_difference"].map("{:.3f}".format),
            }
        )
        .replace(r"[+]nan", "n/a", regex=True)
        .replace("nan", "n/a")
    )
    caption = (
        "Tukey's HSD between the trained systems, per instrument, over test tracks that are not "
        f"paired. {basis(settings, scores)}"
    )
    return Table("tukey", frame, display, caption)
