"""Tables of the report, each with its caption: CSV for machines, Markdown and LaTeX for people.

A :class:`Table` has two faces: ``frame`` with machine names and full precision, which goes to CSV
and is what ``make verify`` compares, and ``display`` with rounded text under readable headings.
"""

from __future__ import annotations

import html
import io
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cunet_lib.core.files import write_atomically
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, PAPER_NAMES, UNETS, VARIANTS
from cunet_lib.evaluation import published
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation import statistics as inference
from cunet_lib.evaluation.metrics import SDR_V3, SDR_V4, Measure
from cunet_lib.evaluation.scores import SYSTEMS
from cunet_lib.report.records import (
    LABELS,
    V3_NOTE,
    check_name,
    count,
    data_note,
    listed,
    missing,
    number,
    rate_note,
    run_note,
    score_note,
    seed_note,
    target_label,
)

# ------------------------------------------------------------------------------ saving


@dataclass(frozen=True)
class Table:
    """A table with its caption; JupyterLab shows both."""

    name: str
    frame: pd.DataFrame
    display: pd.DataFrame
    caption: str

    def save(self, folder: Path) -> Table:
        """Write CSV, Markdown and LaTeX (see :func:`save_table`); returns the table."""
        save_table(self.frame, folder, self.name, self.caption, display=self.display)
        return self

    def _repr_html_(self) -> str:
        body = self.display.to_html(index=False, border=0, escape=True, justify="left")
        return f"{body}<p><small>{html.escape(self.caption)}</small></p>"


def save_table(
    frame: pd.DataFrame,
    folder: Path,
    name: str,
    caption: str,
    *,
    display: pd.DataFrame | None = None,
) -> Path:
    """Write a table as CSV, Markdown and LaTeX; equal tables give equal bytes.

    Parameters
    ----------
    frame
        Full precision, machine names; the CSV.
    folder
        Where to; made if needed.
    name
        File name without ending: letters, digits, ``-`` and ``_``.
    caption
        Stands in the Markdown and LaTeX files.
    display
        What Markdown and LaTeX show; the frame, numbers rounded to two decimals, if not given.

    Returns
    -------
    pathlib.Path
        The CSV file.

    Raises
    ------
    ConfigError
        If the name is not a plain file name, or the caption is empty.
    """
    check_name(name, caption)
    display = rounded(frame) if display is None else display.astype(str)
    folder = Path(folder)
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, lineterminator="\n")
    write_atomically(folder / f"{name}.md", _markdown(display, caption))
    write_atomically(folder / f"{name}.tex", _latex(display, name, caption))
    return write_atomically(folder / f"{name}.csv", buffer.getvalue())


def rounded(frame: pd.DataFrame, decimals: int = 2) -> pd.DataFrame:
    """Every cell as text, floats with ``decimals`` decimals."""

    def text(value) -> str:
        if isinstance(value, float):
            return number(value, decimals)
        return str(value)

    return frame.map(text)


def _is_numeric(column: pd.Series) -> bool:
    return bool(column.str.match(r"^(?:[+<-]?(?:\d|inf\b)|n/a$)").all())


def _markdown(display: pd.DataFrame, caption: str) -> str:
    cells = display.map(lambda text: text.replace("|", r"\|").replace("\n", " "))
    align = ["right" if _is_numeric(display[column]) else "left" for column in display]
    table = cells.to_markdown(index=False, disable_numparse=True, colalign=align)
    return f"{caption}\n\n{table}\n"


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        **{character: f"\\{character}" for character in "&%$#_"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "\n": " ",
    }
)


def _latex(display: pd.DataFrame, name: str, caption: str) -> str:
    cells = display.map(lambda text: text.translate(_TEX))
    cells.columns = [column.translate(_TEX) for column in display.columns]
    align = "".join("r" if _is_numeric(display[column]) else "l" for column in display)
    return cells.style.hide(axis="index").to_latex(
        column_format=align,
        caption=caption.translate(_TEX),
        label=f"tab:{name}",
        position="tbp",
        position_float="centering",
        hrules=True,
    )


# ------------------------------------------------------------------------------ the tables


def models_table(settings: Profile, runs: pd.DataFrame, paper: pd.DataFrame | None = None) -> Table:
    """Table 1: models and their parameters, against four dedicated U-Nets.

    Parameters
    ----------
    runs
        As :func:`load_runs` gives them.
    paper
        Counts at the paper's size with columns model (``unet``: four of them together),
        parameters and trainable, as ``models.parameter_table()`` gives them; left out if not
        given.
    """
    first = runs.drop_duplicates("model").set_index("model")
    counts = first[["parameters", "trainable_parameters"]].astype(int)
    unets = counts[counts.index.isin(UNETS)]
    if unets.empty:
        raise missing(settings, settings.paths.run(UNETS[0], settings.seed) / "run.json")
    one, four = unets.iloc[0], unets.iloc[0] * len(INSTRUMENTS)
    rows = [
        ("unet_x1", "One U-Net", "", *one),
        ("unet", "Four dedicated U-Nets", PAPER_NAMES["unet"], *four),
    ]
    for variant in VARIANTS:
        if variant in counts.index:
            rows.append((variant, LABELS[variant], PAPER_NAMES[variant], *counts.loc[variant]))
    frame = pd.DataFrame(rows, columns=["model", "label", "paper_name", "parameters", "trainable"])
    frame["share_of_four"] = frame["parameters"] / four["parameters"]
    display = pd.DataFrame(
        {
            "Model": frame["label"],
            "Name in the paper": frame["paper_name"].replace("", "-"),
            "Parameters": frame["parameters"].map("{:,}".format),
            "Trainable": frame["trainable"].map("{:,}".format),
            "Share of four U-Nets": frame["share_of_four"].map("{:.1%}".format),
        }
    )
    caption = (
        f"Models of this run ({settings.model.filters} filters, {settings.model.blocks} blocks, "
        f"patches of {settings.signal.bins} x {settings.model.patch_frames}) and their parameters, "
        "against four dedicated U-Nets, one per instrument."
    )
    if paper is not None:
        sizes = paper.set_index("model")[["parameters", "trainable"]].astype(int)
        sizes.loc["unet_x1"] = sizes.loc["unet"] // len(INSTRUMENTS)
        sizes = sizes.loc[frame["model"]].reset_index(drop=True)
        frame["paper_parameters"] = sizes["parameters"]
        frame["paper_trainable"] = sizes["trainable"]
        frame["paper_share_of_four"] = sizes["parameters"] / int(
            sizes["parameters"][frame["model"] == "unet"].iloc[0]
        )
        display["Parameters at paper size"] = frame["paper_parameters"].map("{:,}".format)
        display["Share at paper size"] = frame["paper_share_of_four"].map("{:.1%}".format)
        caption += " Paper size: 16 filters, 6 blocks, patches of 512 x 128."
    return Table("models", frame, display, f"{caption} {run_note(settings, runs)}")


def scores_table(settings: Profile, scores: pd.DataFrame, *, by_instrument: bool = False) -> Table:
    """Tables 2 and 3: SDR, SIR and SAR by both protocols, over all instruments or per instrument.

    Counts of tracks and frames are BSS Eval v4's where a column's name does not say v3. With
    several seeds, also how far the means over tracks spread over training runs.
    """
    metrics = ("SDR", "SIR", "SAR")
    v4, v3 = (
        pd.concat(
            analysis.summary(scores, replace(measure, metric=metric), by_target=by_instrument)
            for metric in metrics
        )
        for measure in (SDR_V4, SDR_V3)
    )
    counts = ["tracks", "undefined_tracks", "frames", "undefined_frames"]
    frame = v4.loc[v4["metric"] == "SDR", ["model", "target", *counts]].set_index(
        ["model", "target"]
    )
    of_v3 = v3[v3["metric"] == "SDR"].set_index(["model", "target"])
    for name in ("tracks", "undefined_tracks"):
        frame[f"{name}_v3"] = of_v3[name]
    for protocol, long in (("v4", v4), ("v3", v3)):
        for metric in metrics:
            values = long[long["metric"] == metric].set_index(["model", "target"])
            for statistic in ("mean", "std", "median"):
                frame[f"{metric.lower()}_{protocol}_{statistic}_db"] = values[statistic]
    frame = frame.reset_index()
    if by_instrument:
        order = {name: place for place, name in enumerate((*INSTRUMENTS, *SYSTEMS))}
        frame = frame.sort_values(
            ["target", "model"], key=lambda column: column.map(order), kind="stable"
        )
    frame = frame.reset_index(drop=True)
    display = pd.DataFrame({"Model": frame["model"].map(LABELS)})
    if by_instrument:
        display.insert(0, "Instrument", frame["target"])
    for protocol in ("v4", "v3"):
        for metric in metrics:
            display[f"{metric} {protocol}, dB"] = spread(frame, f"{metric.lower()}_{protocol}_")
    display["Tracks"] = frame["tracks"].astype(str)
    seeds = _add_seed_spread(frame, display, scores, metrics, by_instrument=by_instrument)
    what = "per instrument" if by_instrument else "over all instruments"
    unit = "" if by_instrument else " of each track's mean over the instruments"
    caption = (
        f"Separation {what}: mean ± standard deviation over test tracks{unit}, median in "
        f"parentheses. {seeds}v4: {score_note(settings, scores, metrics=metrics)} v3: {V3_NOTE}"
    )
    name = "scores_by_instrument" if by_instrument else "scores_overall"
    table = Table(name, frame, display, caption)
    table = with_published(settings, table, SDR_V4)
    return with_published(settings, table, SDR_V3)


def _add_seed_spread(frame, display, scores, metrics, *, by_instrument: bool) -> str:
    """Add the spread over seeds, if there are several; returns the caption's sentence."""
    places = list(zip(frame["model"], frame["target"], strict=True))
    for version, measure in (("v4", SDR_V4), ("v3", SDR_V3)):
        for metric in metrics:
            chosen = replace(measure, metric=metric)
            seeds = inference.seed_spread(scores, chosen, by_target=by_instrument)
            if seeds.empty:
                return ""
            values = seeds.set_index(["model", "target"])["seed_std"]
            frame[f"{metric.lower()}_{version}_seed_std_db"] = [
                values.get(place, float("nan")) for place in places
            ]
        display[f"SDR {version} over seeds, dB"] = [
            "-" if pd.isna(value) else f"± {number(value)}"
            for value in frame[f"sdr_{version}_seed_std_db"]
        ]
    return (
        "Over seeds: standard deviation, over training runs with different seeds, of the mean "
        "over tracks. "
    )


def spread(frame: pd.DataFrame, prefix: str) -> list[str]:
    """Mean, standard deviation and median as text, of the columns that start with ``prefix``."""
    columns = [f"{prefix}{statistic}_db" for statistic in ("mean", "std", "median")]
    return [
        f"{number(mean)} ± {number(deviation)} ({number(median)})"
        for mean, deviation, median in frame[columns].itertuples(index=False)
    ]


def with_published(
    settings: Profile,
    table: Table,
    measure: Measure,
    *,
    scores: pd.DataFrame | None = None,
) -> Table:
    """Put published scores of equal protocol below a table of ours, with their source.

    Parameters
    ----------
    table
        Of scores: its frame has the columns model, target and, for instance,
        ``sdr_v4_mean_db``, ``sdr_v4_std_db`` and ``sdr_v4_median_db``; its display
        ``"SDR v4, dB"``.
    measure
        Of the table's scores; its metric does not matter.
    scores
        As ``published.load_published`` gives them; read if not given.

    Returns
    -------
    Table
        The same table if no published score has an equal protocol, as is always so for rendered
        corpora. Figures over all instruments join with their mean alone: whether a published
        deviation or median is over tracks or over tracks and instruments is not always said.
    """
    scores = published.load_published() if scores is None else scores
    equal = published.of_equal_protocol(settings, measure, scores)
    equal = equal.replace({"target": {published.OVERALL: analysis.ALL}})
    equal = equal[equal["target"].isin(table.frame["target"])]
    if equal.empty:
        return table
    equal.loc[equal["target"] == analysis.ALL, ["std_db", "median_db"]] = float("nan")
    version = measure.protocol.rsplit(" ", 1)[-1]
    frames, displays = [table.frame], [table.display]
    if "source" not in table.frame:
        frames, displays = [table.frame.assign(source="")], [table.display.assign(Source="here")]
    for (target, system, study), group in equal.groupby(["target", "system", "study"], sort=False):
        row = {"model": f"{system} ({study})", "target": target, "protocol": measure.protocol}
        row |= {
            "aggregation": measure.aggregation,
            "source": "; ".join(dict.fromkeys(group["source"])),
        }
        shown = {"Instrument": target, "Model": row["model"], "Source": row["source"]}
        for _, entry in group.iterrows():
            prefix = f"{entry['metric'].lower()}_{version}_"
            values = {f"{prefix}{name}": entry[name] for name in ("mean_db", "std_db", "median_db")}
            row |= values
            header = f"{entry['metric']} {version}, dB"
            shown[header] = spread(pd.DataFrame([values]), prefix)[0]
        frames.append(pd.DataFrame([row]))
        displays.append(pd.DataFrame([shown]))
    # Values that a table does not show, such as ISR, stay in the table of published scores.
    frame = pd.concat(frames, ignore_index=True)[frames[0].columns]
    display = pd.concat(displays, ignore_index=True)[displays[0].columns]
    places = frame["target"].map({name: place for place, name in enumerate(analysis.TARGETS)})
    order = places.sort_values(kind="stable").index
    note = (
        " Rows with a source: published scores whose protocol, aggregation, sources, rate, "
        "channels and data equal ours, as their source gives them."
    )
    return Table(
        table.name,
        frame.loc[order].reset_index(drop=True),
        display.loc[order].fillna("-").reset_index(drop=True),
        table.caption.removesuffix(note) + note,
    )


def published_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """All published scores on MUSDB18, each with its protocol spelled out.

    Parameters
    ----------
    scores
        Ours, to tell which protocols are equal.

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
    frame = published.load_published()
    ours = set(scores[["protocol", "aggregation"]].itertuples(index=False, name=None))
    equal = pd.concat(
        [published.of_equal_protocol(settings, Measure("SDR", *pair), frame) for pair in ours]
    )
    frame["equal_protocol"] = frame["protocol"].isin(equal["protocol"])
    display = pd.DataFrame(
        {
            "System": frame["system"],
            "Study": frame["study"],
            "Metric": frame["metric"],
            "Target": frame["target"],
            **{
                label: frame[column].map(lambda value: "-" if pd.isna(value) else number(value))
                for label, column in (
                    ("Mean, dB", "mean_db"),
                    ("Standard deviation, dB", "std_db"),
                    ("Median, dB", "median_db"),
                )
            },
            "Protocol": frame["protocol"],
            "Source": frame["source"],
            "Equal to ours": frame["equal_protocol"].map({True: "yes", False: "no"}),
        }
    )
    caption = (
        f"Published scores on MUSDB18, as their sources give them. {data_note(settings)} Scores of "
        "different protocols differ by several dB for the same estimates: only those of a protocol "
        "equal to ours (last column) stand beside ours in the tables of scores; the others are not "
        f"comparable with them. Ours: {settings.signal.sample_rate} Hz mono, "
        f"{'; '.join(', '.join(pair) for pair in sorted(ours))}."
    )
    return Table("published", frame, display, caption)


def training_table(settings: Profile, runs: pd.DataFrame) -> Table:
    """Table 4: training cost per run, and of the four dedicated U-Nets together."""
    columns = [
        "model",
        "seed",
        "batch_size",
        "epochs",
        "steps",
        "best_epoch",
        "best_val_loss",
        "seconds",
        "patches_per_second",
        "precision",
    ]
    frame = runs[columns].copy()
    unets = frame[frame["model"].isin(UNETS)]
    sums = []
    for seed, group in unets.groupby("seed"):
        if len(group) < len(INSTRUMENTS):
            continue
        # Patches over the time that training took at each run's own rate.
        patches_of, rates = group["steps"] * group["batch_size"], group["patches_per_second"]
        patches = patches_of.sum()
        total = {
            "model": "unet",
            "seed": seed,
            "batch_size": group["batch_size"].iloc[0],
            "epochs": group["epochs"].sum(),
            "steps": group["steps"].sum(),
            "best_epoch": float("nan"),
            "best_val_loss": float("nan"),
            "seconds": group["seconds"].sum(),
            "patches_per_second": patches / (patches_of / rates).sum(),
            "precision": group["precision"].iloc[0],
        }
        sums.append(total)
    frame = pd.concat(
        [unets, pd.DataFrame(sums, columns=columns), frame[~frame["model"].isin(UNETS)]],
        ignore_index=True,
    )
    frame["best_epoch"] = frame["best_epoch"].astype("Int64")
    labels = {**LABELS, "unet": "Four dedicated U-Nets"}
    display = pd.DataFrame(
        {
            "Model": frame["model"].map(labels),
            "Seed": frame["seed"].astype(str),
            "Steps": frame["steps"].map("{:,}".format),
            "Epochs (best)": [
                f"{epochs}" if pd.isna(best) else f"{epochs} ({best})"
                for epochs, best in zip(frame["epochs"], frame["best_epoch"], strict=True)
            ],
            "Validation loss, best": frame["best_val_loss"].map(lambda value: number(value, 5)),
            "Time, min": (frame["seconds"] / 60).map(lambda value: number(value, 1)),
            "Patches/s": frame["patches_per_second"].map(lambda value: number(value, 1)),
        }
    )
    precisions = listed(sorted(set(runs["precision"])))
    sizes = listed(sorted(set(runs["batch_size"])))
    caption = (
        f"Training cost, batches of {sizes} patches, precision {precisions}; time from start to "
        "record, with validation, on the machine that the manifest describes, where runs share the "
        "cores; patches per second of training alone. Loss: mean absolute error of magnitudes. "
        f"{run_note(settings, runs)}"
    )
    return Table("training", frame, display, caption)


def outcome_table(settings: Profile, scores: pd.DataFrame, **bounds: float) -> Table:
    """Table 5: medians between mixture and ideal mask, and whether they reach the bounds."""
    limits = {"min_improvement": 5.0, "min_absolute": 2.0, **bounds}
    checked = analysis.check_outcome(scores, **limits)
    flags = {
        "improved_enough": f"improvement below {limits['min_improvement']:g} dB",
        "high_enough": f"median below {limits['min_absolute']:g} dB",
        "below_ideal": "above the ideal mask",
    }
    verdict = [
        "yes"
        if row["passed"]
        else "no: " + ", ".join(flags[flag] for flag in flags if not row[flag])
        for _, row in checked.iterrows()
    ]
    display = pd.DataFrame(
        {
            "Model": checked["model"].map(LABELS),
            "Instrument": checked["target"],
            "Median SDR v4, dB": checked["median"].map(number),
            "Mixture": checked["mixture_median"].map(number),
            "Improvement": checked["improvement"].map(lambda value: number(value, sign=True)),
            "Ideal ratio mask": checked["ideal_median"].map(number),
            "Reached": verdict,
        }
    )
    frame = checked.rename(
        columns={
            "median": "sdr_v4_median_db",
            "mixture_median": "mixture_sdr_v4_median_db",
            "improvement": "improvement_median_db",
            "ideal_median": "ideal_sdr_v4_median_db",
        }
    ).drop(columns="metric")
    reached = int(checked["passed"].sum())
    caption = (
        f"Outcome: {reached} of {len(checked)} medians over test tracks are at least "
        f"{limits['min_improvement']:g} dB above the mixture's median, at least "
        f"{limits['min_absolute']:g} dB in absolute terms (silence scores about 0 dB) and not "
        f"above the ideal ratio mask's. {score_note(settings, scores)}"
    )
    return Table("outcome", frame, display, caption)


def differences_table(
    settings: Profile,
    scores: pd.DataFrame,
    *,
    reference: str = "unet",
    measure: Measure = SDR_V4,
) -> Table:
    """Paired differences of SDR per track, with bootstrap intervals of the mean.

    Parameters
    ----------
    reference
        ``"unet"``: C-U-Nets against the dedicated U-Nets, tested for a difference and for
        equivalence; ``"mixture"``: improvements, described.
    measure
        SDR by BSS Eval v4, or v3, the paper's: then the table's name ends in ``_v3``.
    """
    statistics, tested = settings.statistics, reference == "unet"
    version = "v3" if measure == SDR_V3 else "v4"
    if tested:
        table = inference.comparison_table(scores, statistics, measure, reference=reference)
    else:
        table = analysis.difference_table(scores, measure, reference=reference)
    percent = f"{1 - statistics.alpha if tested else 0.95:.0%}".replace("%", " %")
    interval = [
        "n/a" if pd.isna(low) else f"{number(low, sign=True)} to {number(high, sign=True)}"
        for low, high in zip(table["ci_low"], table["ci_high"], strict=True)
    ]
    display = pd.DataFrame(
        {
            "Model": table["model"].map(LABELS),
            "Instrument": table["target"].map(target_label),
            f"Mean difference of SDR {version}, dB": table["mean"].map(
                lambda x: number(x, sign=True)
            ),
            f"{percent} interval": interval,
            "Median": table["median"].map(lambda x: number(x, sign=True)),
            "Standard deviation": table["std"].map(number),
            "Tracks better": [
                f"{better} of {tracks}"
                for better, tracks in zip(table["tracks_better"], table["tracks"], strict=True)
            ],
        }
    )
    if tested:
        if "seed_std" in table:
            display["Over seeds"] = table["seed_std"].map(lambda x: f"± {number(x)}")
        display["p, difference"] = table["p_difference"].map(_pvalue)
        display["p, equivalence"] = table["p_equivalence"].map(_pvalue)
        display["Verdict"] = table["verdict"]
    frame = table.rename(
        columns={
            name: f"difference_{name}_db"
            for name in ("mean", "std", "median", "ci_low", "ci_high", "seed_std")
        }
    )
    subject = "C-U-Net minus dedicated U-Net" if tested else "model minus mixture"
    caption = (
        f"Paired differences per test track, {subject}: mean with {percent} bootstrap interval "
        "(BCa, 9999 resamples of tracks), median and standard deviation over tracks; tracks "
        f"better: difference above 0. {_tests_note(settings, table) if tested else ''}"
        f"{score_note(settings, scores) if version == 'v4' else _v3_score_note(settings, scores)}"
    )
    name = "differences" if reference == "unet" else f"differences_to_{reference}"
    return Table(name if version == "v4" else f"{name}_v3", frame, display, caption)


def _v3_score_note(settings: Profile, scores: pd.DataFrame) -> str:
    """Data, tracks, rate and seeds behind scores by the paper's protocol."""
    tracks = count(scores["track"].nunique(), "test track")
    return (
        f"{data_note(settings)} SDR: source-to-distortion ratio in dB by {V3_NOTE} "
        f"{rate_note(settings)}; {tracks}; {seed_note(scores)}. Tracks where a target "
        "or its estimate is silent throughout have no difference."
    )


def _pvalue(value: float) -> str:
    return "<0.001" if value < 0.001 else number(value, 3)


def _tests_note(settings: Profile, table: pd.DataFrame) -> str:
    """The tests behind the verdicts, for a caption."""
    margin, alpha = settings.statistics.margin_db, settings.statistics.alpha
    family = int(table["p_difference"].notna().sum())
    several = "seed_std" in table
    over = "means over seeds, " if several else ""
    seeds = (
        "Over seeds: standard deviation of the mean difference over training runs. "
        if several
        else ""
    )
    return (
        f"{seeds}p, difference: Wilcoxon's signed-rank test over tracks ({over}two-sided), "
        f"corrected by Holm's method for the family of all {family} comparisons in this table. "
        f"p, equivalence: two one-sided t-tests over tracks of a mean within ±{margin:g} dB, a "
        "margin that was set beforehand; not corrected, so it serves the claim that a model is "
        "equivalent in all its rows, not one row picked out. Verdict at level "
        f"{alpha:g}: equivalent, where the second test passes (with the sign of a difference that "
        "is shown but below the margin); better or worse, where only a difference is shown (the "
        "first test passes and the interval leaves out 0); else undecided. "
    )


def power_table(settings: Profile, scores: pd.DataFrame) -> Table:
    """How many tracks the test for equivalence would need at the variance seen."""
    statistics = settings.statistics
    table = inference.power_table(scores, statistics)

    def needed(values: pd.Series, known: pd.Series, most: int) -> list[str]:
        return [
            "n/a"
            if pd.isna(power)
            else f"more than {most:,}"
            if pd.isna(value)
            else f"{value:,.0f}"
            for value, power in zip(values, known, strict=True)
        ]

    display = pd.DataFrame(
        {
            "Model": table["model"].map(LABELS),
            "Instrument": table["target"].map(target_label),
            "Standard deviation over tracks, dB": table["track_std_db"].map(number),
            "Tracks": table["tracks"].astype(str),
            "Power": table["power"].map(number),
            "Tracks needed": needed(table["tracks_needed"], table["power"], inference.MOST_TRACKS),
        }
    )
    percent = f"{statistics.power:.0%}".replace("%", " %")
    caption = (
        f"Power of the test for equivalence within ±{statistics.margin_db:g} dB at level "
        f"{statistics.alpha:g}, C-U-Net against dedicated U-Nets, if the true difference is 0 (the "
        f"best case) and the variance is the one seen here; needed for {percent} power. "
        f"{_power_sentence(table, percent)} {score_note(settings, scores)}"
    )
    return Table("power", table, display, caption)


def _power_sentence(table: pd.DataFrame, percent: str) -> str:
    known = table.dropna(subset=["power"])
    if known.empty:
        return "Too few tracks to tell a variance."
    reached = known["tracks_needed"] <= known["tracks"]
    sentence = (
        f"{int(reached.sum())} of {count(len(known), 'comparison')} have {percent} power with "
        f"{count(int(known['tracks'].max()), 'track')}"
    )
    if known["tracks_needed"].isna().any():
        return f"{sentence}; for some no number of tracks suffices."
    return (
        f"{sentence}; all would have it with {count(int(known['tracks_needed'].max()), 'track')}."
    )


def excerpt_table(settings: Profile, excerpt: pd.DataFrame) -> Table:
    """Scores on the one real recording at hand, apart from the test set.

    Parameters
    ----------
    excerpt
        As ``results.load_excerpt`` gives it.
    """
    frame = excerpt.rename(columns={"value": "sdr_whole_excerpt_db"})
    wide = excerpt.pivot_table(
        index="model", columns="target", values="value", sort=False, dropna=False
    )
    wide = wide.reindex(columns=[name for name in INSTRUMENTS if name in wide])
    display = pd.DataFrame({"Model": [LABELS[model] for model in wide.index]})
    for target in wide:
        display[f"{target}, dB"] = [number(value) for value in wide[target]]
    runs = int(excerpt["seeds"].max())
    seeds = f" Trained models: mean over {runs} training runs." if runs > 1 else ""
    caption = (
        "One real excerpt: six seconds of a MUSDB18 test track that ship with the package stempeg. "
        "Signal-to-distortion ratio over the whole excerpt, energy of the target over energy of "
        "the error, without BSS Eval's filters and frames; "
        f"{settings.signal.sample_rate} Hz mono; 1 track. Models trained on: {settings.title}. "
        f"Too short for statistics; nothing is chosen by it.{seeds}"
    )
    return Table("excerpt", frame, display, caption)
