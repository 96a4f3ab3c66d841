"""Tables and figures of what conditions do in a trained C-U-Net, each with its caption.

One table and one figure serve every entry of
:data:`cunet_lib.explore.conditioning.MEASUREMENTS`. Every title is computed from the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS
from cunet_lib.explore.conditioning import MEASUREMENTS, Measurement
from cunet_lib.report.figures import (
    INSTRUMENT_COLOURS,
    INSTRUMENT_MARKERS,
    SYSTEM_COLOURS,
    Figure,
    drawn,
    subplots,
)
from cunet_lib.report.records import basis, lay_out, listed, number
from cunet_lib.report.tables import Table

GREY, DARK = "#7A7A7A", "#333333"

HIGHEST_RATIO = 2.0
"""Where the axis of relative levels ends: one run far off must not hide the others."""

PARTS = {"median": 0.5, "quartile_1": 0.25, "quartile_3": 0.75}


def _caption(settings: Profile, frame: pd.DataFrame, shown: str, way: str) -> str:
    """What is shown, of which model, and the data behind it: two sentences."""
    return f"{LABELS[frame['model'].iloc[0]]}: {shown}; {way}. {basis(settings, frame)}"


def _summary(what: Measurement, frame: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles over tracks, and their number; groups in the order they come."""
    groups = frame.groupby(["model", "training", "seed", *what.keys], sort=False)
    parts = {
        f"{column}_{part}": groups[column].quantile(share)
        for column in what.columns
        for part, share in PARTS.items()
    }
    return pd.DataFrame({**parts, "tracks": groups["track"].nunique()}).reset_index()


def table(settings: Profile, name: str, frame: pd.DataFrame) -> Table:
    """Medians and quartiles over test tracks of a measurement.

    ``frame`` is what :func:`cunet_lib.explore.conditioning.measured` gives under its name.
    """
    what = MEASUREMENTS[name]
    summary = _summary(what, frame)
    cell, way = "{{{0}_median:.2f}}", "median over tracks"
    if not what.across:
        cell += " ({{{0}_quartile_1:.2f}} to {{{0}_quartile_3:.2f}})"
        way += ", quartiles in brackets"
    columns = {"Trained with": "{training}"}
    for key in what.keys:
        text = "{0} = {{{0}:g}}" if key == what.across else "{{{0}}}"
        columns[key.capitalize()] = text.format(key)
    for column, words in what.columns.items():
        unit = " (dB)" if column.endswith("_db") else ""
        columns[words[0].upper() + words[1:] + unit] = cell.format(column)
    display = lay_out(summary, columns)
    if what.across:
        *rows, across, value = display
        display = display.pivot_table(value, rows, across, aggfunc="first", sort=False)
        display = display.reset_index()
        # `make verify` finds rows by their condition.
        summary.insert(3, "condition", summary["z"].map("{:g} ".format) + summary["target"])
    return Table(f"conditions_{name}", summary, display, _caption(settings, frame, what.shown, way))


def figure(settings: Profile, name: str, frame: pd.DataFrame) -> Figure:
    """The same as a figure: a line for each run along z, or else a tick for every track."""
    return (_lines if MEASUREMENTS[name].across else _ticks)(settings, name, frame)


def _looks(frame: pd.DataFrame) -> dict[str, dict]:
    """Line and marker of each run: the first in its system's colour, the others grey, dashed."""
    first = {"color": SYSTEM_COLOURS[frame["model"].iloc[0]], "marker": "D"}
    other = {"color": GREY, "marker": "s", "linestyle": (0, (4, 1.5)), "markerfacecolor": "white"}
    return {name: other if place else first for place, name in enumerate(_labels(frame))}


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """How each run was trained, by its name."""
    return dict(frame[["model", "training"]].drop_duplicates().itertuples(index=False))


def _legend(fig, entries: Mapping[str, Mapping], *, columns: int = 4) -> None:
    handles = [Line2D([], [], **look, label=label) for label, look in entries.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


@drawn
def _lines(settings: Profile, name: str, frame: pd.DataFrame) -> Figure:
    """A value against z, one panel for each target; the ideal is the diagonal."""
    what = MEASUREMENTS[name]
    ((column, words),) = what.columns.items()
    summary, labels, looks = _summary(what, frame), _labels(frame), _looks(frame)
    ideal = {"color": DARK, "lw": 0.9, "ls": (0, (1.5, 1.5))}
    fig, axes = subplots(1, len(INSTRUMENTS), size=(12, 3.9), sharex=True, sharey=True)
    for ax, target in zip(axes[0], INSTRUMENTS, strict=True):
        ax.plot([0, 1], [0, 1], **ideal, zorder=1)
        for run, look in looks.items():
            part = summary[(summary["model"] == run) & (summary["target"] == target)]
            middle, *band = (part[f"{column}_{each}"] for each in PARTS)
            ax.fill_between(part["z"], *band, color=look["color"], alpha=0.18, linewidth=0)
            ax.plot(part["z"], middle, **look, markersize=4.5, zorder=3)
        ax.set(title=target.capitalize(), xlabel=f"z of {target}")
    beyond = summary[f"{column}_quartile_3"].max() > HIGHEST_RATIO
    axes[0, 0].set_ylim(-0.03, HIGHEST_RATIO if beyond else None)
    axes[0, 0].set_ylabel(words.capitalize())
    _legend(fig, {**{labels[run]: looks[run] for run in looks}, "a perfect fader": ideal})
    apart = (summary[f"{column}_median"] - summary["z"]).abs().groupby(summary["model"]).mean()
    said = [f"{number(apart[run])} ({label})" for run, label in labels.items()]
    fig.suptitle(f"Mean distance from a perfect fader: {', '.join(said)}")
    outside = f", levels above {HIGHEST_RATIO:g} outside the frame" if beyond else ""
    way = f"median over tracks and a band between the quartiles{outside}"
    return Figure(f"conditions_{name}", fig, _caption(settings, frame, what.shown, way))


@drawn
def _ticks(settings: Profile, name: str, frame: pd.DataFrame) -> Figure:
    """One panel for each run: a tick for every track, a marker at their median.

    Rows are the measurement's cases, with one marker for each column; where it has one case only,
    rows are its columns.
    """
    what = MEASUREMENTS[name]
    labels, looks = _labels(frame), _looks(frame)
    words = dict(list(what.columns.items())[: what.drawn])
    long = frame.melt(["model", *what.keys], list(words)).replace([np.inf, -np.inf], np.nan)
    kind = long["variable"].map(words)
    long["row"] = long[what.keys[0]] if what.keys else kind
    long["mark"] = kind if what.keys else "median"
    rows, marks = long["row"].unique(), long["mark"].unique()
    shapes = dict(zip(marks, (("D", DARK), ("X", "#B8400E"), ("o", "#A0A0A0")), strict=False))
    size = (5.6 * len(looks), 0.25 * len(rows) * len(marks) + 1.9)
    fig, axes = subplots(1, len(looks), size=size, sharex=True, sharey=True)
    for ax, (run, look) in zip(axes[0], looks.items(), strict=True):
        for row, mark in itertools.product(range(len(rows)), marks):
            chosen = (long["model"] == run) & (long["row"] == rows[row]) & (long["mark"] == mark)
            tracks = long.loc[chosen, "value"].dropna()
            place, (marker, colour) = list(marks).index(mark), shapes[mark]
            height = row + (place + 1) / (len(marks) + 1) - 0.5
            colour = colour if place else look["color"]
            ax.plot(tracks, np.full(len(tracks), height), "|", color=colour, alpha=0.55, ms=7)
            ax.plot(tracks.median(), height, marker, color=colour, mec="white", ms=7, zorder=3)
        for row in range(len(rows) - 1):
            ax.axhline(row + 0.5, color="#EEEEEE", lw=0.8, zorder=0)
        ax.axvline(0, color="#888888", lw=0.8, zorder=0)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set(title=labels[run].capitalize(), xlabel="SDR (dB)" if what.keys else "dB")
    shapes["test tracks"] = ("|", DARK)
    _legend(fig, {each: {"marker": m, "color": c, "ls": "none"} for each, (m, c) in shapes.items()})
    summary = _summary(what, frame)
    first, *others = (summary[f"{column}_median"] for column in words)
    wins = int((first > others[0]).sum()) if others else 0
    fig.suptitle(what.headline.format(wins=wins, cases=len(summary)))
    way = "a tick for every track, a marker at the median"
    return Figure(f"conditions_{name}", fig, _caption(settings, frame, what.shown, way))


@drawn
def embedding_figure(settings: Profile, places: pd.DataFrame) -> Figure:
    """Control embeddings of the instruments and of the ways between them."""
    labels = _labels(places)
    fig, axes = subplots(1, len(labels), size=(5.4 * len(labels), 5.1))
    looks = {
        name: {"color": INSTRUMENT_COLOURS[name], "marker": INSTRUMENT_MARKERS[name]}
        for name in INSTRUMENTS
    }
    silence = {"marker": "o", "color": DARK, "mfc": "white", "ls": "none"}
    between = {"color": "#A8A8A8", "marker": "."}
    shares = []
    for ax, (name, label) in zip(axes[0], labels.items(), strict=True):
        part = places[places["model"] == name]
        for (start, end), way in part.groupby(["start", "end"], sort=False):
            colour = (looks[end] if start == "silence" else between)["color"]
            # A dot at every quarter of the way.
            dots = {"marker": ".", "markevery": max(1, len(way) // 4)}
            ax.plot(way["x"], way["y"], color=colour, lw=1.3, **dots)
            if start == "silence":
                x, y = way[["x", "y"]].to_numpy().T
                ax.plot(x[-1], y[-1], **looks[end], mec="white", ms=9, zorder=4)
                ax.plot(x[0], y[0], **silence, ms=8, zorder=4)
        x_share, y_share = part[["x_share", "y_share"]].iloc[0]
        shares.append(f"{x_share + y_share:.0%}")
        ax.set_xlabel(f"Component 1 ({x_share:.0%} of the variance)")
        ax.set_ylabel(f"Component 2 ({y_share:.0%} of the variance)")
        ax.set_title(label.capitalize())
        ax.set_aspect("equal", adjustable="datalim")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6))
    single = {f"{name}, from silence": look for name, look in looks.items()}
    _legend(fig, {**single, "silence": silence, "between two": between}, columns=3)
    fig.suptitle(f"Two directions hold {listed(shares)} of the control embeddings' variance")
    shown = "last hidden layer of the control network while z moves, with a dot at every quarter"
    way = "principal components of all points, each network by itself"
    return Figure("conditions_embeddings", fig, _caption(settings, places, shown, way))
