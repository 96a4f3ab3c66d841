"""Tables and figures of what conditions do in a trained C-U-Net, each with its caption.

They describe the measurements of :mod:`cunet_lib.explore.conditioning`: frames with the columns model (name of
the run) and track, and ``runs``, the table of what was measured (``control.run_table``). Every
title is computed from the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.report.figures import (
    INSTRUMENT_COLOURS,
    INSTRUMENT_MARKERS,
    SYSTEM_COLOURS,
    Figure,
    drawn,
    subplots,
)
from cunet_lib.report.records import LABELS, count, data_note, listed, number
from cunet_lib.report.tables import Table

PLAIN_SDR = (
    "SDR here: power of the reference over power of the error in dB over a whole song, without "
    "BSS Eval's filters; silence as estimate scores 0 dB."
)


def note(settings: Profile, runs: pd.DataFrame, frame: pd.DataFrame) -> str:
    """Data, model, rate, songs and seeds behind a table or figure."""
    models = listed([LABELS[model] for model in dict.fromkeys(runs["model"])])
    seeds = sorted(set(runs["seed"]))
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {listed(seeds)}"
    songs = f"{count(frame['track'].nunique(), 'test track')}; " if "track" in frame else ""
    return (
        f"{models}, one training run for each setting ({seed}), so the spread between runs is not "
        f"seen; {songs}{settings.signal.sample_rate} Hz mono. {data_note(settings)}"
    )


def _labels(runs: pd.DataFrame) -> dict[str, str]:
    """Words for each run; its name too where words alone do not tell the runs apart."""
    twice = runs["training"].duplicated(keep=False)
    return {
        run.name: f"{run.training} ({run.name})" if again else run.training
        for run, again in zip(
            runs[["name", "training"]].itertuples(index=False), twice, strict=True
        )
    }


def _summary(frame: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Median and quartiles over tracks, and their number; groups in the order they come."""
    groups = frame.groupby(list(keys), sort=False)
    columns = {}
    for value in values:
        stem, unit = (value[:-3], "_db") if value.endswith("_db") else (value, "")
        columns[f"{stem}_median{unit}"] = groups[value].median()
        columns[f"{stem}_quartile_1{unit}"] = groups[value].quantile(0.25)
        columns[f"{stem}_quartile_3{unit}"] = groups[value].quantile(0.75)
    columns["tracks"] = groups["track"].nunique()
    return pd.DataFrame(columns).reset_index()


# ------------------------------------------------------------------------------ tables


def level_table(settings: Profile, runs: pd.DataFrame, faders: pd.DataFrame) -> Table:
    """Levels of the estimates against the levels that z asks for."""
    frame = _summary(faders, ["model", "target", "z"], ["ratio"])
    frame.insert(2, "condition", frame["z"].map("{:g} ".format) + frame["target"])
    labels = _labels(runs)
    wide = frame.pivot_table(
        index=["model", "target"], columns="z", values="ratio_median", sort=False
    )
    wide = wide.map(number).fillna("n/a")
    display = pd.DataFrame(
        {
            "Trained with": [labels[model] for model, _ in wide.index],
            "Instrument": [target for _, target in wide.index],
            **{f"z = {z:g}": wide[z].to_list() for z in wide},
        }
    )
    caption = (
        "Level of the estimate (root mean square over a song) relative to its level at z = 1, for "
        "one instrument faded from 0 to 1: median over tracks. A perfect fader has the level z. "
        f"{note(settings, runs, faders)}"
    )
    return Table("conditions_level", frame, display, caption)


def extremes_table(settings: Profile, runs: pd.DataFrame, extremes: pd.DataFrame) -> Table:
    """What is left at z = 0, what is missing at z = (1, 1, 1, 1)."""
    frame = _summary(extremes, ["model"], ["silence_db", "everything_db", "sum_db"])
    labels = _labels(runs)
    display = pd.DataFrame(
        {
            "Trained with": frame["model"].map(labels),
            "Level at z = 0 (dB)": _with_quartiles(frame, "silence"),
            "SDR at z = 1, 1, 1, 1 (dB)": _with_quartiles(frame, "everything"),
            "SDR of the four estimates' sum (dB)": _with_quartiles(frame, "sum"),
        }
    )
    caption = (
        "Nothing and everything: level of the estimate at z = 0, relative to the mixture (silence "
        "is wanted; levels below -120 dB count as that), and SDR of the estimate at z = (1, 1, 1, "
        "1) with the mixture as reference, beside that of the sum of the four single estimates. "
        f"Median over tracks, quartiles in brackets. {PLAIN_SDR} {note(settings, runs, extremes)}"
    )
    return Table("conditions_extremes", frame, display, caption)


def pairs_table(settings: Profile, runs: pd.DataFrame, pairs: pd.DataFrame) -> Table:
    """Two instruments at once against the sum of two estimates."""
    values = ["together_db", "summed_db", "difference_db"]
    frame = _summary(pairs, ["model", "condition"], values)
    better = pairs.assign(better=pairs["difference_db"] > 0)
    wins = better.groupby(["model", "condition"], sort=False)["better"].sum()
    frame["tracks_better"] = wins.to_numpy().astype(int)
    display = pd.DataFrame(
        {
            "Trained with": frame["model"].map(_labels(runs)),
            "Pair": frame["condition"],
            "At once (dB)": frame["together_median_db"].map(number),
            "Sum of two (dB)": frame["summed_median_db"].map(number),
            "Difference (dB)": _with_quartiles(frame, "difference", decimals=2, sign=True),
            "Better at once": frame["tracks_better"].astype(str)
            + " of "
            + frame["tracks"].astype(str),
        }
    )
    caption = (
        "Pairs of instruments: SDR of the estimate that is asked for both at once (z has two "
        "ones), and of the sum of the two single estimates, with the sum of the two stems as "
        "reference; median over tracks of each, and of their difference per track (quartiles in "
        "brackets), and the number of tracks where asking at once is better. "
        f"{PLAIN_SDR} {note(settings, runs, pairs)}"
    )
    return Table("conditions_pairs", frame, display, caption)


def uncontrolled_table(settings: Profile, runs: pd.DataFrame, free: pd.DataFrame) -> Table:
    """The network with every gamma 1 and every beta 0."""
    values = ["uncontrolled_db", "controlled_db", "mixture_db", "level_db"]
    frame = _summary(free, ["model", "target"], values)
    display = pd.DataFrame(
        {
            "Trained with": frame["model"].map(_labels(runs)),
            "Reference": frame["target"],
            "Uncontrolled (dB)": _with_quartiles(frame, "uncontrolled"),
            "Controlled (dB)": _with_quartiles(frame, "controlled"),
            "Mixture (dB)": frame["mixture_median_db"].map(number),
            "Level, uncontrolled (dB)": frame["level_median_db"].map(number),
        }
    )
    caption = (
        "The generic network without control, every gamma 1 and every beta 0: SDR of its one "
        "estimate with each instrument and the mixture as reference, beside the estimate with the "
        "reference's own condition and the mixture taken as estimate; and its level relative to "
        "the reference's. Median over tracks, quartiles in brackets. "
        f"{PLAIN_SDR} {note(settings, runs, free)}"
    )
    return Table("conditions_uncontrolled", frame, display, caption)


def _with_quartiles(
    frame: pd.DataFrame, stem: str, *, decimals: int = 1, sign: bool = False
) -> list[str]:
    columns = [f"{stem}_{part}_db" for part in ("median", "quartile_1", "quartile_3")]
    return [
        "{} ({} to {})".format(*(number(value, decimals, sign=sign) for value in row))
        for row in frame[columns].to_numpy()
    ]


# ------------------------------------------------------------------------------ figures

GREY = "#7A7A7A"

HIGHEST_RATIO = 2.0
"""Where the axis of relative levels ends: one run far off must not hide the others."""


def _looks(runs: pd.DataFrame) -> dict[str, dict]:
    """Line and marker of each run: the first in its system's colour, the others grey, dashed."""
    looks = {}
    for place, (name, model) in enumerate(zip(runs["name"], runs["model"], strict=True)):
        colour = GREY if place else SYSTEM_COLOURS[model]
        looks[name] = {
            "color": colour,
            "linestyle": (0, (4, 1.5)) if place else "-",
            "marker": "s" if place else "D",
            "markerfacecolor": "white" if place else colour,
            "markeredgecolor": colour,
        }
    return looks


def _marker(look: dict, **changes) -> dict:
    """The look without its line."""
    return {**look, "linestyle": "none", **changes}


@drawn
def level_figure(settings: Profile, runs: pd.DataFrame, faders: pd.DataFrame) -> Figure:
    """Level of each instrument's estimate against z; the ideal is the diagonal."""
    table = _summary(faders, ["model", "target", "z"], ["ratio"])
    labels, looks = _labels(runs), _looks(runs)
    fig, axes = subplots(1, len(INSTRUMENTS), size=(12, 3.9), sharex=True, sharey=True)
    for ax, target in zip(axes[0], INSTRUMENTS, strict=True):
        ax.plot([0, 1], [0, 1], color="#222222", lw=0.9, ls=(0, (1.5, 1.5)), zorder=1)
        for name, look in looks.items():
            part = table[(table["model"] == name) & (table["target"] == target)]
            ax.fill_between(
                part["z"],
                part["ratio_quartile_1"],
                part["ratio_quartile_3"],
                color=look["color"],
                alpha=0.18,
                linewidth=0,
            )
            ax.plot(part["z"], part["ratio_median"], **look, lw=1.7, markersize=4.5, zorder=3)
        ax.set_title(target.capitalize())
        ax.set_xlabel(f"z of {target}")
        ax.xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.25))
        ax.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes[0, 0].set_xlim(-0.03, 1.03)
    beyond = table["ratio_quartile_3"].max() > HIGHEST_RATIO
    axes[0, 0].set_ylim(-0.03, HIGHEST_RATIO if beyond else None)
    outside = f" Levels above {HIGHEST_RATIO:g} lie outside the frame." if beyond else ""
    axes[0, 0].set_ylabel("Level relative to z = 1 (amplitude)")
    handles = [
        Line2D([], [], **look, lw=1.7, markersize=4.5, label=labels[name])
        for name, look in looks.items()
    ]
    ideal = {"color": "#222222", "lw": 0.9, "ls": (0, (1.5, 1.5))}
    handles.append(Line2D([], [], **ideal, label="a perfect fader"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    apart = (table["ratio_median"] - table["z"]).abs().groupby(table["model"]).mean()
    said = [f"{number(apart[name])} ({labels[name]})" for name in looks]
    fig.suptitle(f"Mean distance from a perfect fader: {', '.join(said)}")
    caption = (
        "Level of the estimate (root mean square over a song) relative to its level at z = 1, "
        "while one instrument is faded from 0 to 1 and the others stay at 0. Line: median over "
        "tracks; band: quartiles; title: mean over instruments and levels of the distance between "
        f"median and z.{outside} {note(settings, runs, faders)}"
    )
    return Figure("conditions_level", fig, caption)


@drawn
def extremes_figure(settings: Profile, runs: pd.DataFrame, extremes: pd.DataFrame) -> Figure:
    """What is left at z = 0, and what is missing at z = (1, 1, 1, 1), song by song."""
    labels, looks = _labels(runs), _looks(runs)
    fig, axes = subplots(1, 2, size=(11, 0.62 * len(looks) + 2.0), sharey=True)
    nothing, everything = axes[0]
    for row, (name, look) in enumerate(looks.items()):
        part = extremes[extremes["model"] == name]
        for ax, column, shift, changes in (
            (nothing, "silence_db", 0.0, {"marker": "D"}),
            (everything, "everything_db", -0.17, {"marker": "D"}),
            (everything, "sum_db", 0.17, {"marker": "P"}),
        ):
            values = part[column].replace([np.inf, -np.inf], np.nan).dropna()
            place = np.full(len(values), row + shift)
            ax.plot(values, place, "|", color=look["color"], alpha=0.6, markersize=8, zorder=2)
            filled = _marker(look, markersize=7, markeredgecolor="white", **changes)
            filled["markerfacecolor"] = look["color"]
            ax.plot(values.median(), row + shift, **filled, zorder=3)
    nothing.set_yticks(range(len(looks)), [labels[name] for name in looks])
    nothing.set_ylim(len(looks) - 0.45, -0.55)
    for ax in axes[0]:
        ax.grid(visible=False, axis="y")
        ax.margins(x=0.08)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=7))
    medians = extremes.groupby("model")[["silence_db", "everything_db"]].median()
    nothing.set_title("z = 0: what is left when nothing is asked for")
    nothing.set_xlabel("Level relative to the mixture (dB; lower is better)")
    everything.set_title("z = 1, 1, 1, 1: is it the mixture?")
    everything.set_xlabel("SDR with the mixture as reference (dB; higher is better)")
    handles = [
        Line2D([], [], color="#333333", ls="none", marker="D", label="the estimate"),
        Line2D([], [], color="#333333", ls="none", marker="P", label="sum of four estimates"),
        Line2D([], [], color="#333333", ls="none", marker="|", label="test tracks"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    left, full = (
        listed([number(medians[column][name], 1) for name in looks])
        for column in ("silence_db", "everything_db")
    )
    fig.suptitle(
        f"Level at z = 0: {left} dB; SDR at z = 1, 1, 1, 1: {full} dB (medians, top to bottom)"
    )
    caption = (
        "Left: level of the estimate at z = 0 relative to the mixture; silence is wanted (levels "
        "below -120 dB count as that). Right: SDR with the mixture as reference of the estimate "
        "at z = (1, 1, 1, 1), and of the sum of the four single estimates. Large markers: medians "
        f"over tracks. {PLAIN_SDR} {note(settings, runs, extremes)}"
    )
    return Figure("conditions_extremes", fig, caption)


@drawn
def pairs_figure(settings: Profile, runs: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """Two instruments at once against the sum of two estimates, pair by pair."""
    labels, looks = _labels(runs), _looks(runs)
    names = list(dict.fromkeys(pairs["condition"]))
    fig, axes = subplots(1, len(looks), size=(5.6 * len(looks), 4.6), sharex=True, sharey=True)
    wins = 0
    for ax, (name, look) in zip(axes[0], looks.items(), strict=True):
        part = pairs[pairs["model"] == name]
        medians = part.groupby("condition")[["together_db", "summed_db", "difference_db"]].median()
        better = int((medians["difference_db"] > 0).sum())
        wins += better
        for row, pair in enumerate(names):
            songs = part[part["condition"] == pair]
            for column, shift, marker in (("together_db", -0.17, "D"), ("summed_db", 0.17, "P")):
                place = np.full(len(songs), row + shift)
                ax.plot(songs[column], place, "|", color=look["color"], alpha=0.55, markersize=7)
                ax.plot(
                    medians[column][pair],
                    row + shift,
                    marker=marker,
                    color=look["color"],
                    markeredgecolor="white",
                    markersize=7,
                    zorder=3,
                )
        ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        ax.set_title(f"{labels[name].capitalize()}: better at once in {better} of {len(names)}")
        ax.set_xlabel("SDR with the true sum as reference (dB)")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.45, -0.55)
        ax.grid(visible=False, axis="y")
        for edge in range(len(names) - 1):
            ax.axhline(edge + 0.5, color="#EEEEEE", lw=0.8, zorder=0)
    handles = [
        Line2D([], [], color="#333333", ls="none", marker="D", label="both at once"),
        Line2D([], [], color="#333333", ls="none", marker="P", label="sum of two estimates"),
        Line2D([], [], color="#333333", ls="none", marker="|", label="test tracks"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    total = len(names) * len(looks)
    fig.suptitle(
        f"Asking for two at once beats the sum of two estimates in {wins} of {total} cases"
    )
    caption = (
        "Pairs of instruments: SDR of the estimate asked for both at once (z has two ones) and of "
        "the sum of the two single estimates, with the sum of the two stems as reference. Large "
        "markers: medians over tracks; titles count the median of the difference per track. "
        f"{PLAIN_SDR} {note(settings, runs, pairs)}"
    )
    return Figure("conditions_pairs", fig, caption)


@drawn
def embedding_figure(settings: Profile, runs: pd.DataFrame, places: pd.DataFrame) -> Figure:
    """Control embeddings of the instruments and of the ways between them."""
    labels = _labels(runs)
    names = [name for name in labels if name in set(places["model"])]
    fig, axes = subplots(1, len(names), size=(5.4 * len(names), 5.1))
    shares = []
    for ax, name in zip(axes[0], names, strict=True):
        part = places[places["model"] == name]
        for (start, end), way in part.groupby(["start", "end"], sort=False):
            between = start in INSTRUMENTS
            colour = "#A8A8A8" if between else INSTRUMENT_COLOURS[end]
            ax.plot(way["x"], way["y"], color=colour, lw=1.0 if between else 1.7, zorder=2)
            quarter = way[np.isclose(way["share"] * 4 % 1, 0) & way["share"].between(0.1, 0.9)]
            ax.plot(quarter["x"], quarter["y"], ".", color=colour, markersize=5, zorder=3)
        for instrument in INSTRUMENTS:
            point = part[(part["end"] == instrument) & (part["share"] == 1)].iloc[0]
            ax.plot(
                point["x"],
                point["y"],
                marker=INSTRUMENT_MARKERS[instrument],
                color=INSTRUMENT_COLOURS[instrument],
                markeredgecolor="white",
                markersize=9,
                zorder=4,
            )
        origin = part[(part["start"] == "silence") & (part["share"] == 0)].iloc[0]
        ax.plot(origin["x"], origin["y"], marker="o", mfc="white", mec="#222222", ms=8, zorder=4)
        first = part.iloc[0]
        shares.append(first["x_share"] + first["y_share"])
        ax.set_title(labels[name].capitalize())
        ax.set_xlabel(f"Component 1 ({first['x_share']:.0%} of the variance)")
        ax.set_ylabel(f"Component 2 ({first['y_share']:.0%} of the variance)")
        ax.set_aspect("equal", adjustable="datalim")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    handles = [
        Line2D(
            [],
            [],
            color=INSTRUMENT_COLOURS[instrument],
            marker=INSTRUMENT_MARKERS[instrument],
            markeredgecolor="white",
            markersize=8,
            lw=1.7,
            label=f"{instrument}, from silence",
        )
        for instrument in INSTRUMENTS
    ]
    handles += [
        Line2D([], [], marker="o", mfc="white", mec="#222222", ms=7, ls="none", label="silence"),
        Line2D([], [], color="#A8A8A8", lw=1.0, marker=".", label="between two instruments"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    said = " and ".join(f"{share:.0%}" for share in shares)
    fig.suptitle(f"Two directions hold {said} of the control embeddings' variance")
    caption = (
        "Last hidden layer of the control network while z moves: from silence (z = 0) to each "
        "instrument, and straight from one instrument to another; dots at every quarter of a way. "
        "Principal components of all points, each network by itself, so that axes of different "
        f"panels are not the same. {note(settings, runs, places)}"
    )
    return Figure("conditions_embeddings", fig, caption)


@drawn
def uncontrolled_figure(settings: Profile, runs: pd.DataFrame, free: pd.DataFrame) -> Figure:
    """The network with every gamma 1 and every beta 0, against each reference."""
    labels, looks = _labels(runs), _looks(runs)
    targets = list(dict.fromkeys(free["target"]))
    fig, axes = subplots(1, len(looks), size=(5.6 * len(looks), 4.1), sharex=True, sharey=True)
    kinds = (
        ("controlled_db", -0.22, "D", "controlled: the reference's own z"),
        ("uncontrolled_db", 0.0, "X", "uncontrolled: gamma 1, beta 0"),
        ("mixture_db", 0.22, "o", "the mixture as estimate"),
    )
    colours = {"uncontrolled_db": "#B8400E", "mixture_db": "#A0A0A0"}
    below = []
    for ax, (name, look) in zip(axes[0], looks.items(), strict=True):
        part = free[free["model"] == name]
        medians = part.groupby("target")[[column for column, *_ in kinds]].median()
        for row, target in enumerate(targets):
            songs = part[part["target"] == target]
            for column, shift, marker, _ in kinds:
                values = songs[column].dropna()
                if values.empty:
                    continue
                colour = colours.get(column, look["color"])
                place = np.full(len(values), row + shift)
                ax.plot(values, place, "|", color=colour, alpha=0.55, markersize=6)
                ax.plot(
                    medians[column][target],
                    row + shift,
                    marker=marker,
                    color=colour,
                    markeredgecolor="white",
                    markersize=7.5,
                    zorder=3,
                )
        single = medians.loc[list(INSTRUMENTS)]
        below.append(int((single["uncontrolled_db"] < single["controlled_db"]).sum()))
        nearest = medians["uncontrolled_db"].idxmax()
        ax.set_title(f"{labels[name].capitalize()}: nearest to {nearest}")
        ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        ax.set_xlabel("SDR (dB)")
        ax.set_yticks(range(len(targets)), targets)
        ax.set_ylim(len(targets) - 0.45, -0.55)
        ax.grid(visible=False, axis="y")
        for edge in range(len(targets) - 1):
            ax.axhline(edge + 0.5, color="#EEEEEE", lw=0.8, zorder=0)
    axes[0, 0].set_ylabel("Reference")
    handles = [
        Line2D([], [], color=colours.get(column, "#333333"), ls="none", marker=marker, label=label)
        for column, _, marker, label in kinds
    ]
    handles.append(Line2D([], [], color="#333333", ls="none", marker="|", label="test tracks"))
    fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    said = " and ".join(f"{worse} of {len(INSTRUMENTS)}" for worse in below)
    fig.suptitle(f"Without control, SDR is lower than with it for {said} instruments")
    caption = (
        "The generic network without control, every gamma 1 and every beta 0: SDR of its one "
        "estimate with each instrument and the mixture as reference, beside the estimate with the "
        "reference's own condition, and the mixture taken as estimate. Large markers: medians "
        f"over tracks. {PLAIN_SDR} {note(settings, runs, free)}"
    )
    return Figure("conditions_uncontrolled", fig, caption)
