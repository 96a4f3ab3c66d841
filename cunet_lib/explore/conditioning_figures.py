"""Tables and figures of what conditions do in a trained C-U-Net, each with its caption.

They describe the measurements of :mod:`cunet_lib.explore.conditioning`: frames with the columns
model (name of the run) and track, and ``runs``, the table of what was measured
(:func:`cunet_lib.explore.conditioning.run_table`). Every title is computed from the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS
from cunet_lib.report.figures import (
    INSTRUMENT_COLOURS,
    INSTRUMENT_MARKERS,
    SYSTEM_COLOURS,
    Figure,
    drawn,
    subplots,
)
from cunet_lib.report.records import count, data_note, listed, number
from cunet_lib.report.tables import Table

PLAIN_SDR = "SDR: reference over error in dB over a whole song, without BSS Eval's filters."

GREY, DARK = "#7A7A7A", "#333333"

HIGHEST_RATIO = 2.0
"""Where the axis of relative levels ends: one run far off must not hide the others."""


def note(settings: Profile, runs: pd.DataFrame, frame: pd.DataFrame) -> str:
    """Data, model, rate, songs and seeds behind a table or figure."""
    models = listed([LABELS[model] for model in dict.fromkeys(runs["model"])])
    seeds = sorted(set(runs["seed"]))
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {listed(seeds)}"
    songs = f"{count(frame['track'].nunique(), 'test track')}; " if "track" in frame else ""
    return (
        f"{models}, one training run for each setting ({seed}); "
        f"{songs}{settings.signal.sample_rate} Hz mono. {data_note(settings)}"
    )


def _labels(runs: pd.DataFrame) -> dict[str, str]:
    """Words for each run; its name too where words alone do not tell the runs apart."""
    twice = runs["training"].duplicated(keep=False)
    texts = runs["training"].where(~twice, runs["training"] + " (" + runs["name"] + ")")
    return dict(zip(runs["name"], texts, strict=True))


def _summary(frame: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Median and quartiles over tracks, and their number; groups in the order they come."""
    groups = frame.groupby(list(keys), sort=False)
    columns = {}
    for value in values:
        stem, unit = (value[:-3], "_db") if value.endswith("_db") else (value, "")
        for part, share in (("median", 0.5), ("quartile_1", 0.25), ("quartile_3", 0.75)):
            columns[f"{stem}_{part}{unit}"] = groups[value].quantile(share)
    columns["tracks"] = groups["track"].nunique()
    return pd.DataFrame(columns).reset_index()


def _with_quartiles(
    frame: pd.DataFrame, stem: str, *, decimals: int = 1, sign: bool = False
) -> list[str]:
    columns = [f"{stem}_{part}_db" for part in ("median", "quartile_1", "quartile_3")]
    return [
        "{} ({} to {})".format(*(number(value, decimals, sign=sign) for value in row))
        for row in frame[columns].to_numpy()
    ]


# ------------------------------------------------------------------------------ tables


def level_table(settings: Profile, runs: pd.DataFrame, faders: pd.DataFrame) -> Table:
    """Levels of the estimates against the levels that z asks for."""
    frame = _summary(faders, ["model", "target", "z"], ["ratio"])
    frame.insert(2, "condition", frame["z"].map("{:g} ".format) + frame["target"])
    rows = frame.pivot_table(
        index=["model", "target"], columns="z", values="ratio_median", sort=False, dropna=False
    )
    display = rows.map(number).rename(columns="z = {:g}".format).reset_index()
    display["model"] = display["model"].map(_labels(runs))
    display = display.rename(columns={"model": "Trained with", "target": "Instrument"})
    caption = (
        "Level of the estimate (root mean square over a song) relative to its level at z = 1, for "
        "one instrument faded from 0 to 1: median over tracks. A perfect fader has the level z. "
        f"{note(settings, runs, faders)}"
    )
    return Table("conditions_level", frame, display, caption)


def extremes_table(settings: Profile, runs: pd.DataFrame, extremes: pd.DataFrame) -> Table:
    """What is left at z = 0, what is missing at z = (1, 1, 1, 1)."""
    frame = _summary(extremes, ["model"], ["silence_db", "everything_db", "sum_db"])
    display = pd.DataFrame(
        {
            "Trained with": frame["model"].map(_labels(runs)),
            "Level at z = 0 (dB)": _with_quartiles(frame, "silence"),
            "SDR at z = 1, 1, 1, 1 (dB)": _with_quartiles(frame, "everything"),
            "SDR of the four estimates' sum (dB)": _with_quartiles(frame, "sum"),
        }
    )
    caption = (
        "Level of the estimate at z = 0 relative to the mixture (silence is wanted), and SDR with "
        "the mixture as reference at z = (1, 1, 1, 1) and of the sum of the four single estimates: "
        f"median over tracks, quartiles in brackets. {PLAIN_SDR} {note(settings, runs, extremes)}"
    )
    return Table("conditions_extremes", frame, display, caption)


def pairs_table(settings: Profile, runs: pd.DataFrame, pairs: pd.DataFrame) -> Table:
    """Two instruments at once against the sum of two estimates."""
    keys = ["model", "condition"]
    frame = _summary(pairs, keys, ["together_db", "summed_db", "difference_db"])
    better = (pairs["difference_db"] > 0).groupby([pairs[key] for key in keys], sort=False).sum()
    frame["tracks_better"] = better.to_numpy().astype(int)
    display = pd.DataFrame(
        {
            "Trained with": frame["model"].map(_labels(runs)),
            "Pair": frame["condition"],
            "At once (dB)": frame["together_median_db"].map(number),
            "Sum of two (dB)": frame["summed_median_db"].map(number),
            "Difference (dB)": _with_quartiles(frame, "difference", decimals=2, sign=True),
            "Better at once": frame["tracks_better"].map(str) + " of " + frame["tracks"].map(str),
        }
    )
    caption = (
        "SDR of the estimate asked for two instruments at once, and of the sum of the two single "
        "estimates, with the sum of the stems as reference; medians over tracks, and of their "
        f"difference per track (quartiles in brackets). {PLAIN_SDR} {note(settings, runs, pairs)}"
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
        "SDR with each reference of the one estimate without control (every gamma 1, every beta "
        "0), of the estimate with the reference's own condition, and of the mixture; and the "
        "first's level relative to the reference. Median over tracks, quartiles in brackets. "
        f"{PLAIN_SDR} {note(settings, runs, free)}"
    )
    return Table("conditions_uncontrolled", frame, display, caption)


# ------------------------------------------------------------------------------ figures


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


def _row(ax, row: float, values: pd.Series, marker: str, colour: str) -> None:
    """A tick for every track, and a marker at their median."""
    values = values.replace([np.inf, -np.inf], np.nan).dropna()
    if not values.empty:
        ax.plot(values, np.full(len(values), row), "|", color=colour, alpha=0.55, markersize=7)
        look = {"marker": marker, "color": colour, "markeredgecolor": "white", "markersize": 7}
        ax.plot(values.median(), row, **look, zorder=3)


def _name_rows(ax, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.grid(visible=False, axis="y")
    for edge in range(len(names) - 1):
        ax.axhline(edge + 0.5, color="#EEEEEE", lw=0.8, zorder=0)


def _marker_legend(fig, kinds: Sequence[tuple[str, str, str]], *, columns: int = 3) -> None:
    """Legend of markers, colours and what they are, and of the tracks' ticks."""
    handles = [
        Line2D([], [], color=colour, ls="none", marker=marker, label=text)
        for marker, colour, text in (*kinds, ("|", DARK, "test tracks"))
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


@drawn
def level_figure(settings: Profile, runs: pd.DataFrame, faders: pd.DataFrame) -> Figure:
    """Level of each instrument's estimate against z; the ideal is the diagonal."""
    table = _summary(faders, ["model", "target", "z"], ["ratio"])
    labels, looks = _labels(runs), _looks(runs)
    ideal = {"color": "#222222", "lw": 0.9, "ls": (0, (1.5, 1.5))}
    fig, axes = subplots(1, len(INSTRUMENTS), size=(12, 3.9), sharex=True, sharey=True)
    for ax, target in zip(axes[0], INSTRUMENTS, strict=True):
        ax.plot([0, 1], [0, 1], **ideal, zorder=1)
        for name, look in looks.items():
            part = table[(table["model"] == name) & (table["target"] == target)]
            band = (part["ratio_quartile_1"], part["ratio_quartile_3"])
            ax.fill_between(part["z"], *band, color=look["color"], alpha=0.18, linewidth=0)
            ax.plot(part["z"], part["ratio_median"], **look, lw=1.7, markersize=4.5, zorder=3)
        ax.set(title=target.capitalize(), xlabel=f"z of {target}")
        ax.xaxis.set_major_locator(MultipleLocator(0.25))
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_xlim(-0.03, 1.03)
    beyond = table["ratio_quartile_3"].max() > HIGHEST_RATIO
    axes[0, 0].set_ylim(-0.03, HIGHEST_RATIO if beyond else None)
    outside = f" Levels above {HIGHEST_RATIO:g} lie outside the frame." if beyond else ""
    axes[0, 0].set_ylabel("Level relative to z = 1 (amplitude)")
    handles = [
        Line2D([], [], **look, lw=1.7, markersize=4.5, label=labels[name])
        for name, look in looks.items()
    ]
    handles.append(Line2D([], [], **ideal, label="a perfect fader"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    apart = (table["ratio_median"] - table["z"]).abs().groupby(table["model"]).mean()
    said = [f"{number(apart[name])} ({labels[name]})" for name in looks]
    fig.suptitle(f"Mean distance from a perfect fader: {', '.join(said)}")
    caption = (
        "Level of the estimate (root mean square over a song) relative to its level at z = 1, "
        "while one instrument is faded and the others stay at 0. Line: median over tracks; band: "
        f"quartiles.{outside} {note(settings, runs, faders)}"
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
        _row(nothing, row, part["silence_db"], "D", look["color"])
        _row(everything, row - 0.17, part["everything_db"], "D", look["color"])
        _row(everything, row + 0.17, part["sum_db"], "P", look["color"])
    for ax in axes[0]:
        _name_rows(ax, [labels[name] for name in looks])
        ax.margins(x=0.08)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=7))
    nothing.set_title("z = 0: what is left when nothing is asked for")
    nothing.set_xlabel("Level relative to the mixture (dB; lower is better)")
    everything.set_title("z = 1, 1, 1, 1: is it the mixture?")
    everything.set_xlabel("SDR with the mixture as reference (dB; higher is better)")
    _marker_legend(fig, [("D", DARK, "the estimate"), ("P", DARK, "sum of four estimates")])
    medians = extremes.groupby("model")[["silence_db", "everything_db"]].median()
    left, full = (
        listed([number(medians[column][name], 1) for name in looks]) for column in medians
    )
    fig.suptitle(
        f"Level at z = 0: {left} dB; SDR at z = 1, 1, 1, 1: {full} dB (medians, top to bottom)"
    )
    caption = (
        "Left: level of the estimate at z = 0 relative to the mixture. Right: SDR with the "
        "mixture as reference at z = (1, 1, 1, 1), and of the sum of the four single estimates. "
        f"Large markers: medians over tracks. {PLAIN_SDR} {note(settings, runs, extremes)}"
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
        for row, pair in enumerate(names):
            songs = part[part["condition"] == pair]
            _row(ax, row - 0.17, songs["together_db"], "D", look["color"])
            _row(ax, row + 0.17, songs["summed_db"], "P", look["color"])
        _name_rows(ax, names)
        better = int((part.groupby("condition")["difference_db"].median() > 0).sum())
        wins += better
        ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        ax.set_title(f"{labels[name].capitalize()}: better at once in {better} of {len(names)}")
        ax.set_xlabel("SDR with the true sum as reference (dB)")
    _marker_legend(fig, [("D", DARK, "both at once"), ("P", DARK, "sum of two estimates")])
    total = len(names) * len(looks)
    fig.suptitle(
        f"Asking for two at once beats the sum of two estimates in {wins} of {total} cases"
    )
    caption = (
        "SDR of the estimate asked for two instruments at once, and of the sum of the two single "
        "estimates, with the sum of the stems as reference. Large markers: medians over tracks; "
        "titles count the median of the difference per track. "
        f"{PLAIN_SDR} {note(settings, runs, pairs)}"
    )
    return Figure("conditions_pairs", fig, caption)


@drawn
def embedding_figure(settings: Profile, runs: pd.DataFrame, places: pd.DataFrame) -> Figure:
    """Control embeddings of the instruments and of the ways between them."""
    labels = _labels(runs)
    names = [name for name in labels if name in set(places["model"])]
    fig, axes = subplots(1, len(names), size=(5.4 * len(names), 5.1))
    marks = {
        name: {"marker": INSTRUMENT_MARKERS[name], "color": INSTRUMENT_COLOURS[name]}
        for name in INSTRUMENTS
    }
    silence = {"marker": "o", "mfc": "white", "mec": "#222222", "ms": 8}
    between = "#A8A8A8"
    shares = []
    for ax, name in zip(axes[0], names, strict=True):
        part = places[places["model"] == name]
        for (start, end), way in part.groupby(["start", "end"], sort=False):
            single = start not in INSTRUMENTS
            colour = INSTRUMENT_COLOURS[end] if single else between
            ax.plot(way["x"], way["y"], color=colour, lw=1.7 if single else 1.0, zorder=2)
            quarter = way[np.isclose(way["share"] * 4 % 1, 0) & way["share"].between(0.1, 0.9)]
            ax.plot(quarter["x"], quarter["y"], ".", color=colour, markersize=5, zorder=3)
            if single:
                ends = way[["x", "y"]].to_numpy()
                ax.plot(*ends[-1], **marks[end], mec="white", ms=9, zorder=4)
                ax.plot(*ends[0], **silence, zorder=4)
        x_share, y_share = part[["x_share", "y_share"]].iloc[0]
        shares.append(f"{x_share + y_share:.0%}")
        ax.set_title(labels[name].capitalize())
        ax.set_xlabel(f"Component 1 ({x_share:.0%} of the variance)")
        ax.set_ylabel(f"Component 2 ({y_share:.0%} of the variance)")
        ax.set_aspect("equal", adjustable="datalim")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6))
    handles = [
        Line2D([], [], **mark, mec="white", ms=8, lw=1.7, label=f"{name}, from silence")
        for name, mark in marks.items()
    ]
    handles.append(Line2D([], [], **silence, ls="none", label="silence"))
    handles.append(Line2D([], [], color=between, marker=".", label="between two instruments"))
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    fig.suptitle(f"Two directions hold {' and '.join(shares)} of the control embeddings' variance")
    caption = (
        "Last hidden layer of the control network while z moves from silence (z = 0) to each "
        "instrument, and straight from one to another; dots at every quarter of a way. Principal "
        f"components of all points, each network by itself. {note(settings, runs, places)}"
    )
    return Figure("conditions_embeddings", fig, caption)


@drawn
def uncontrolled_figure(settings: Profile, runs: pd.DataFrame, free: pd.DataFrame) -> Figure:
    """The network with every gamma 1 and every beta 0, against each reference."""
    labels, looks = _labels(runs), _looks(runs)
    targets = list(dict.fromkeys(free["target"]))
    fig, axes = subplots(1, len(looks), size=(5.6 * len(looks), 4.1), sharex=True, sharey=True)
    kinds = (
        ("controlled_db", -0.22, ("D", DARK, "controlled: the reference's own z")),
        ("uncontrolled_db", 0.0, ("X", "#B8400E", "uncontrolled: gamma 1, beta 0")),
        ("mixture_db", 0.22, ("o", "#A0A0A0", "the mixture as estimate")),
    )
    below = []
    for ax, (name, look) in zip(axes[0], looks.items(), strict=True):
        part = free[free["model"] == name]
        for row, target in enumerate(targets):
            songs = part[part["target"] == target]
            for column, shift, (marker, colour, _) in kinds:
                own = look["color"] if column == "controlled_db" else colour
                _row(ax, row + shift, songs[column], marker, own)
        _name_rows(ax, targets)
        medians = part.groupby("target")[["uncontrolled_db", "controlled_db"]].median()
        single = medians.loc[list(INSTRUMENTS)]
        worse = int((single["uncontrolled_db"] < single["controlled_db"]).sum())
        below.append(f"{worse} of {len(INSTRUMENTS)}")
        nearest = medians["uncontrolled_db"].idxmax()
        ax.set_title(f"{labels[name].capitalize()}: nearest to {nearest}")
        ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        ax.set_xlabel("SDR (dB)")
    axes[0, 0].set_ylabel("Reference")
    _marker_legend(fig, [kind for *_, kind in kinds], columns=2)
    fig.suptitle(
        f"Without control, SDR is lower than with it for {' and '.join(below)} instruments"
    )
    caption = (
        "SDR with each instrument and the mixture as reference: the one estimate of the network "
        "without control, the estimate with the reference's own condition, and the mixture taken "
        f"as estimate. Large markers: medians over tracks. {PLAIN_SDR} "
        f"{note(settings, runs, free)}"
    )
    return Figure("conditions_uncontrolled", fig, caption)
