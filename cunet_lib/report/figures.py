"""Figures of the report, each with its caption: PNG and SVG, equal data giving equal bytes.

Every system has one colour and one marker in all figures, every instrument another; both sets stay
apart under colour-vision deficiency (a test measures it). Figures are drawn without pyplot, so
that nothing depends on global state. Titles are computed from the data that they describe.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import soundfile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, MultipleLocator

from cunet_lib.core.files import write_atomically
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation import statistics as inference
from cunet_lib.evaluation.scores import ALL, SYSTEMS, TRAINED
from cunet_lib.report.records import (
    LABELS,
    check_name,
    count,
    data_note,
    missing,
    number,
    read_csv,
    run_note,
    score_note,
    target_label,
)
from cunet_lib.signal.spectral import decibels, stft

SYSTEM_COLOURS = {
    "mixture": "#B5B5B5",
    "unet": "#1A1A1A",
    "dense_simple": "#56B4E9",
    "dense_complex": "#0067A8",
    "cnn_simple": "#F0A830",
    "cnn_complex": "#B8400E",
    "ideal_ratio_mask": "#6E6E6E",
}
"""Grey for bounds, black for the dedicated U-Nets, blue for dense control, orange for CNN."""

SYSTEM_MARKERS = {
    "unet": "s",
    "dense_simple": "o",
    "dense_complex": "D",
    "cnn_simple": "^",
    "cnn_complex": "v",
}

INSTRUMENT_COLOURS = {
    "bass": "#332288",
    "drums": "#882255",
    "other": "#5B8C2A",
    "vocals": "#E377C2",
}

INSTRUMENT_MARKERS = {"bass": "s", "drums": "^", "other": "D", "vocals": "o"}


def system_of(model: str) -> str:
    """The scored system that a model belongs to: ``unet_bass`` is one of the dedicated U-Nets."""
    return "unet" if model in UNETS else model


def style() -> dict:
    """Matplotlib settings of all figures; ids in SVG files depend on content alone."""
    return {
        **sns.plotting_context("paper"),
        **sns.axes_style("whitegrid"),
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "axes.edgecolor": "#666666",
        "grid.color": "#E3E3E3",
        "grid.linewidth": 0.6,
        "figure.titlesize": 11.5,
        "figure.titleweight": "bold",
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "svg.hashsalt": "cunet",
    }


@contextmanager
def styled() -> Iterator[None]:
    """Draw with :func:`style`, whatever the caller's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style())
        yield


@dataclass(frozen=True)
class Figure:
    """A figure with its caption; JupyterLab shows both."""

    name: str
    canvas: Canvas
    caption: str
    dpi: int = 160

    @functools.cached_property
    def _png(self) -> bytes:
        # Once for the file and the notebook: half of a figure's time is its drawing.
        return _rendered(self.canvas, "png", self.caption, dpi=self.dpi)

    def save(self, folder: Path) -> Figure:
        """Write PNG, SVG and caption (see :func:`save_figure`); returns the figure."""
        check_name(self.name, self.caption)
        _write(self.canvas, self._png, folder, self.name, self.caption, dpi=self.dpi)
        return self

    def _repr_html_(self) -> str:
        image = base64.b64encode(self._png).decode()
        caption = html.escape(self.caption)
        width = round(100 * self.canvas.get_figwidth())
        return (
            f'<img src="data:image/png;base64,{image}" alt="{caption}" width="{width}" '
            f'style="max-width:100%; height:auto"><p><small>{caption}</small></p>'
        )


def save_figure(fig: Canvas, folder: Path, name: str, caption: str, *, dpi: int = 160) -> Path:
    """Write a figure as PNG and SVG, and its caption as text.

    Equal figures give equal bytes: no dates, no versions, fixed ids.

    Parameters
    ----------
    folder
        Where to; made if needed.
    name
        File name without ending: letters, digits, ``-`` and ``_``.
    caption
        Goes to ``<name>.txt``, which the report uses as caption and alternative text, and into
        the SVG file as its description.

    Returns
    -------
    pathlib.Path
        The PNG file.

    Raises
    ------
    ConfigError
        If the name is not a plain file name, or the caption is empty.
    """
    check_name(name, caption)
    return _write(fig, _rendered(fig, "png", caption, dpi=dpi), folder, name, caption, dpi=dpi)


def _write(fig: Canvas, png: bytes, folder: Path, name: str, caption: str, *, dpi: int) -> Path:
    folder = Path(folder)
    svg = _rendered(fig, "svg", caption, dpi=dpi)
    write_atomically(folder / f"{name}.txt", f"{caption}\n")
    write_atomically(folder / f"{name}.svg", svg)
    return write_atomically(folder / f"{name}.png", png)


def _rendered(fig: Canvas, kind: str, caption: str, *, dpi: int) -> bytes:
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    if kind == "svg":
        metadata |= {"Title": caption.split(". ")[0], "Description": caption}
    buffer = io.BytesIO()
    before = fig.dpi
    with styled():
        fig.set_dpi(dpi)
        # Not savefig, which draws everything once more, for a layout that is made already.
        if kind == "png":
            FigureCanvasAgg(fig).print_png(buffer, metadata=metadata)
        else:
            FigureCanvasSVG(fig).print_svg(buffer, metadata=metadata)
        fig.set_dpi(before)
    return buffer.getvalue()


def drawn(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a figure function to draw within :func:`styled`."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs) -> Figure:
        with styled():
            figure = function(*args, **kwargs)
            # Lay out once: every format would do it again, for the same result.
            figure.canvas.draw_without_rendering()
            figure.canvas.set_layout_engine("none")
            return figure

    return wrapper


def subplots(rows: int, columns: int, *, size: tuple[float, float], **options):
    """A canvas and its axes ``(rows, columns)``, laid out without overlap."""
    fig = Canvas(figsize=size, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.07)
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def _frame_axis(settings: Profile) -> str:
    return f"SDR v4 (dB), median over {settings.evaluate.window_seconds:g} s frames"


def _offsets(number_of: int, width: float) -> np.ndarray:
    """Fixed offsets that spread tracks, neighbours far apart; the same track in every box."""
    steps = np.linspace(-width, width, number_of) if number_of > 1 else np.zeros(1)
    return steps[np.argsort(np.arange(number_of) * 0.6180339887 % 1.0)]


# ------------------------------------------------------------------------------ scores


@drawn
def scores_by_instrument(settings: Profile, scores: pd.DataFrame) -> Figure:
    """Scores per instrument and system: boxes, and every track as a point."""
    tracks = analysis.track_scores(scores)
    systems = [system for system in SYSTEMS if system in set(tracks["model"])]
    names = sorted(set(tracks["track"]))
    offsets = dict(zip(names, _offsets(len(names), 0.26), strict=True))
    medians = analysis.summary(scores, by_target=True)
    medians = medians.set_index(["target", "model"])["median"]
    fig, axes = subplots(
        1, len(INSTRUMENTS), size=(12, 0.42 * len(systems) + 1.7), sharex=True, sharey=True
    )
    for ax, target in zip(axes[0], INSTRUMENTS, strict=True):
        chosen = tracks[(tracks["target"] == target) & tracks["value"].notna()]
        for row, system in enumerate(systems):
            values = chosen[chosen["model"] == system]
            if values.empty:
                continue
            colour = SYSTEM_COLOURS[system]
            ax.boxplot(
                values["value"],
                positions=[row],
                orientation="horizontal",
                widths=0.66,
                showfliers=False,
                patch_artist=True,
                boxprops={"facecolor": (*mpl.colors.to_rgb(colour), 0.22), "edgecolor": colour},
                medianprops={"color": colour, "linewidth": 2.2},
                whiskerprops={"color": colour},
                capprops={"color": colour},
            )
            ax.scatter(
                values["value"],
                row + values["track"].map(offsets),
                s=11,
                color=colour,
                edgecolor="white",
                linewidth=0.4,
                zorder=3,
            )
        trained = [system for system in systems if system in TRAINED]
        best = medians[target][trained].idxmax() if trained else None
        ax.set_title(target.capitalize())
        if best:
            highest = f"best: {_short(best)}, {number(medians[target][best], 1)} dB"
            ax.set_title(highest, loc="right", fontsize=8, fontweight="normal")
        ax.set_yticks(range(len(systems)), [LABELS[system] for system in systems])
        ax.set_ylim(len(systems) - 0.45, -0.55)
        ax.grid(visible=False, axis="y")
        ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    fig.supxlabel(_frame_axis(settings), fontsize=9)
    outcome = analysis.check_outcome(scores)
    better = int((outcome["improvement"] > 0).sum())
    fig.suptitle(
        f"{better} of {len(outcome)} median scores are above the mixture's, "
        f"{int(outcome['below_ideal'].sum())} below the ideal mask's"
    )
    caption = (
        "Scores per instrument and system. Points: test tracks (the same track at the same height "
        "in each box); boxes: quartiles and median over tracks, whiskers within 1.5 interquartile "
        "ranges; above each panel: the trained system with the highest median. "
        f"{score_note(settings, scores)}"
    )
    return Figure("scores_by_instrument", fig, caption)


def _short(system: str) -> str:
    return LABELS[system].removeprefix("C-U-Net ").replace("Dedicated U-Nets", "dedicated U-Net")


@drawn
def paired_differences(settings: Profile, scores: pd.DataFrame) -> Figure:
    """Differences C-U-Net minus dedicated U-Net per track, with intervals of their mean."""
    pairs = analysis.paired_differences(scores, reference="unet")
    table = inference.comparison_table(scores, settings.statistics).set_index(["target", "model"])
    models = [model for model in VARIANTS if model in set(pairs["model"])]
    names = sorted(set(pairs["track"]))
    offsets = dict(zip(names, _offsets(len(names), 0.22), strict=True))
    targets = (*INSTRUMENTS, ALL)
    margin = settings.statistics.margin_db
    fig, axes = subplots(
        1, len(targets), size=(12, 0.52 * len(models) + 1.6), sharex=True, sharey=True
    )
    for ax, target in zip(axes[0], targets, strict=True):
        ax.axvspan(-margin, margin, color="#E4E4E4", linewidth=0, zorder=0)
        ax.axvline(0, color="#444444", linewidth=1.0, zorder=1)
        for row, model in enumerate(models):
            values = pairs[(pairs["target"] == target) & (pairs["model"] == model)]
            values = values.dropna(subset=["difference"])
            colour = SYSTEM_COLOURS[model]
            ax.scatter(
                values["difference"],
                row + values["track"].map(offsets) - 0.12,
                s=13,
                color=colour,
                alpha=0.75,
                linewidth=0,
                zorder=2,
            )
            if (target, model) not in table.index:
                continue
            entry = table.loc[(target, model)]
            ax.plot([entry["ci_low"], entry["ci_high"]], [row + 0.28] * 2, color="black", lw=1.8)
            ax.plot(
                entry["mean"],
                row + 0.28,
                marker=SYSTEM_MARKERS[model],
                color=colour,
                markeredgecolor="black",
                markersize=6,
                zorder=4,
            )
        ax.set_title(target_label(target).capitalize())
        ax.set_yticks(range(len(models)), [LABELS[model] for model in models])
        ax.set_ylim(len(models) - 0.45, -0.55)
        ax.grid(visible=False, axis="y")
    fig.supxlabel("Difference of SDR v4 (dB): C-U-Net minus dedicated U-Net", fontsize=9)
    single = table.loc[table.index.get_level_values("target") != ALL, "verdict"]
    # The first word: "equivalent (worse by less than the margin)" is equivalent.
    counts = single.str.split(" ").str[0].value_counts()
    words = dict.fromkeys(verdict.split(" ")[0] for verdict in inference.VERDICTS)
    found = [f"{counts[word]} {word}" for word in words if word in counts]
    fig.suptitle(f"Against the dedicated U-Nets: {', '.join(found)} of {len(single)} comparisons")
    caption = (
        "Paired differences per test track, C-U-Net minus dedicated U-Net. Points: tracks; below "
        f"them mean with {1 - settings.statistics.alpha:.0%} bootstrap interval (over tracks and, "
        f"with several seeds, training runs); grey: the margin of ±{margin:g} dB. The title counts "
        "the verdicts of the table of differences, by instrument. "
        f"{score_note(settings, scores)}"
    )
    return Figure("paired_differences", fig, caption)


@drawn
def scores_against_parameters(
    settings: Profile, scores: pd.DataFrame, runs: pd.DataFrame
) -> Figure:
    """SDR over all instruments against the number of parameters, the four U-Nets as one."""
    means = analysis.over_instruments(analysis.track_scores(scores))
    sizes = runs.drop_duplicates("model").set_index("model")["parameters"].astype(int)
    fig, axes = subplots(1, 1, size=(9.4, 4.2))
    ax = axes[0, 0]
    centres = {}
    for system in TRAINED:
        values = means.loc[means["model"] == system, "value"].dropna().to_numpy()
        members = [model for model in sizes.index if system_of(model) == system]
        if not len(values) or not members:
            continue
        size = sizes[members[0]] * (len(INSTRUMENTS) if system == "unet" else 1) / 1e6
        low, high = analysis.bootstrap_interval(values)
        centres[system] = (size, values.mean())
        label = "Four dedicated U-Nets" if system == "unet" else LABELS[system]
        ax.errorbar(
            size,
            values.mean(),
            yerr=[[values.mean() - low], [high - values.mean()]],
            color=SYSTEM_COLOURS[system],
            lw=1.4,
            capsize=4,
            zorder=2,
        )
        ax.plot(
            size,
            values.mean(),
            marker=SYSTEM_MARKERS[system],
            markersize=6.5,
            color=SYSTEM_COLOURS[system],
            markeredgecolor="white",
            linestyle="none",
            zorder=3,
            label=f"{label}: {number(values.mean(), 1)} dB, {size:.2f} M",
        )
    for bound, line in (("ideal_ratio_mask", (0, (6, 2))), ("mixture", (0, (1.5, 1.5)))):
        value = means.loc[means["model"] == bound, "value"].mean()
        ax.axhline(value, color=SYSTEM_COLOURS[bound], linestyle=line, lw=1.8, zorder=1)
        ax.annotate(
            f"{LABELS[bound]}: {number(value, 1)} dB",
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8.5,
            color="#4A4A4A",
        )
    ax.set_xlim(0, 1.12 * max(size for size, _ in centres.values()))
    ax.margins(y=0.09)
    ax.set_xlabel("Parameters for all four instruments (millions)")
    ax.set_ylabel(
        f"SDR v4 (dB), median over {settings.evaluate.window_seconds:g} s frames,\n"
        "mean over instruments and tracks"
    )
    fig.legend(loc="outside right center", frameon=False, handletextpad=0.4)
    conditioned = {name: centre for name, centre in centres.items() if name != "unet"}
    if conditioned and "unet" in centres:
        best = max(conditioned, key=lambda name: conditioned[name][1])
        share = conditioned[best][0] / centres["unet"][0]
        gap = conditioned[best][1] - centres["unet"][1]
        fig.suptitle(
            f"{LABELS[best]}: {share:.0%} of the parameters, {number(gap, 1, sign=True)} dB "
            "against four U-Nets"
        )
    caption = (
        "Scores against the number of parameters needed for all four instruments: mean over "
        "instruments and test tracks with 95 % bootstrap interval (BCa over tracks); ideal ratio "
        f"mask and mixture as upper and lower bound. {score_note(settings, scores)}"
    )
    return Figure("scores_against_parameters", fig, caption)


# ------------------------------------------------------------------------------ training


@drawn
def training_curves(settings: Profile, runs: pd.DataFrame, *, seed: int | None = None) -> Figure:
    """Training and validation loss of every run, small multiples with shared axes."""
    seed = runs["seed"].min() if seed is None else seed
    chosen = runs[runs["seed"] == seed]
    if chosen.empty:
        raise ConfigError(f"There are no runs with seed {seed} to draw training curves of.")
    columns = ("epoch", "loss", "val_loss", "learning_rate")
    models = [model for model in (*UNETS, *VARIANTS) if model in set(chosen["model"])]
    wide = 4 if len(models) > 1 else 1
    rows = -(-len(models) // wide)
    fig, axes = subplots(rows, wide, size=(3 * wide, 2.3 * rows + 0.9), sharex=True, sharey=True)
    last_is_best, rates, faint = 0, [], "#EDEDED"
    for ax in axes.ravel()[len(models) :]:
        ax.set_visible(False)
    for place, model in enumerate(models):
        ax = axes.ravel()[place]
        folder = chosen.loc[chosen["model"] == model, "folder"].iloc[0]
        history = read_csv(settings, Path(folder) / "history.csv", columns)
        colour = SYSTEM_COLOURS[system_of(model)]
        ax.plot(history["epoch"], history["loss"], color=colour, lw=1.2, ls=(0, (3, 1.5)))
        ax.plot(history["epoch"], history["val_loss"], color=colour, lw=1.8)
        best = history["val_loss"].idxmin()
        last_is_best += int(best == history.index[-1])
        ax.plot(
            history["epoch"][best],
            history["val_loss"][best],
            marker="o",
            markersize=6,
            markerfacecolor="white",
            markeredgecolor=colour,
            markeredgewidth=1.6,
        )
        rates.append(ax.twinx())
        rates[-1].fill_between(
            history["epoch"], history["learning_rate"], step="mid", color=faint, linewidth=0
        )
        # The learning rate stays behind the curves.
        rates[-1].set_zorder(ax.get_zorder() - 1)
        ax.patch.set_visible(False)
        ax.set_title(LABELS[model])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes[0, 0].yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes[0, 0].yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    limits = [limit for ax in rates for limit in ax.get_ylim()]
    for place, ax in enumerate(rates):
        ax.set_ylim(0, 1.06 * max(limits))
        ax.grid(visible=False)
        ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        ax.tick_params(colors="#6A6A6A", length=0)
        if place % wide == wide - 1 or place == len(rates) - 1:
            ax.set_ylabel("Learning rate", color="#6A6A6A")
        else:
            ax.set_yticklabels([])
            ax.yaxis.get_offset_text().set_visible(False)
    for ax in axes.ravel():
        ax.tick_params(which="both", length=0)
    for ax in axes[-1]:
        ax.set_xlabel("Epoch")
    for ax in axes[:, 0]:
        ax.set_ylabel("Mean absolute error")
    grey = "#444444"
    handles = [
        Line2D([], [], color=grey, lw=1.2, ls=(0, (3, 1.5)), label="training"),
        Line2D([], [], color=grey, lw=1.8, label="validation"),
        Line2D([], [], color=grey, marker="o", mfc="white", mew=1.6, ls="none", label="best epoch"),
        Patch(color=faint, label="learning rate (right axis)"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    fig.suptitle(f"The last epoch is the best one in {last_is_best} of {len(models)} runs")
    caption = (
        "Training and validation loss of each model (mean absolute error of magnitudes scaled to "
        f"[0, 1] per track), {settings.train.steps_per_epoch} steps of "
        f"{settings.train.batch_size} patches an epoch; training loss with dropout and "
        "augmentation, validation on held-out training tracks without; shared axes, logarithmic "
        f"loss; learning rate on the right axis. {run_note(settings, chosen)}"
    )
    return Figure("training_curves", fig, caption)


@drawn
def film_parameters(settings: Profile, runs: pd.DataFrame, *, seed: int | None = None) -> Figure:
    """FiLM gammas and betas that each C-U-Net uses per instrument and block."""
    seed = runs["seed"].min() if seed is None else seed
    chosen = runs[(runs["seed"] == seed) & runs["model"].isin(VARIANTS)]
    if chosen.empty:
        raise missing(settings, settings.paths.run(next(iter(VARIANTS)), seed) / "film.csv")
    columns = ("instrument", "block", "feature", "gamma", "beta")
    models = [model for model in VARIANTS if model in set(chosen["model"])]
    fig, axes = subplots(len(models), 2, size=(9.6, 2.15 * len(models) + 0.9), sharex=True)
    width = 0.17
    strongest = []
    for row, model in enumerate(models):
        folder = chosen.loc[chosen["model"] == model, "folder"].iloc[0]
        film = read_csv(settings, Path(folder) / "film.csv", columns)
        apart = film.groupby(["block", "feature"])["gamma"].std().groupby("block").mean()
        strongest.append(int(apart.idxmax()))
        for ax, value, neutral in zip(axes[row], ("gamma", "beta"), (1.0, 0.0), strict=True):
            ax.axhline(neutral, color="#666666", lw=0.9, ls=(0, (3, 2)), zorder=1)
            for place, instrument in enumerate(INSTRUMENTS):
                blocks = film[film["instrument"] == instrument].groupby("block")[value]
                quantiles = {
                    share: blocks.quantile(share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)
                }
                x = quantiles[0.5].index.to_numpy() + width * (place - 1.5)
                colour = INSTRUMENT_COLOURS[instrument]
                ax.vlines(x, quantiles[0.05], quantiles[0.95], color=colour, lw=0.9)
                ax.vlines(x, quantiles[0.25], quantiles[0.75], color=colour, lw=3.0)
                ax.plot(
                    x,
                    quantiles[0.5],
                    marker=INSTRUMENT_MARKERS[instrument],
                    markersize=5.5,
                    color=colour,
                    markeredgecolor="white",
                    markeredgewidth=0.6,
                    ls="none",
                    zorder=3,
                )
            ax.set_ylabel(f"{value} ({'scale' if value == 'gamma' else 'shift'})")
            ax.xaxis.set_major_locator(MultipleLocator(1))
            ax.grid(visible=False, axis="x")
            for edge in np.arange(film["block"].min(), film["block"].max()) + 0.5:
                ax.axvline(edge, color="#EEEEEE", lw=0.8, zorder=0)
            ax.set_title(f"{LABELS[model]}: {value}")
        axes[row, 0].set_title(f"{LABELS[model]}: gammas differ most in block {strongest[-1]}")
    for ax in axes[-1]:
        ax.set_xlabel("Encoder block")
    handles = [
        Line2D(
            [],
            [],
            color=INSTRUMENT_COLOURS[instrument],
            marker=INSTRUMENT_MARKERS[instrument],
            ls="none",
            label=instrument,
        )
        for instrument in INSTRUMENTS
    ]
    handles.append(Line2D([], [], color="#666666", lw=0.9, ls=(0, (3, 2)), label="no modulation"))
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    caption = (
        "FiLM parameters that the control networks give for each instrument: gamma scales, beta "
        "shifts the normalised feature maps of an encoder block. Simple FiLM has one value per "
        "block (points); complex FiLM one per feature map (point: median, thick line: quartiles, "
        "thin line: 5th to 95th percentile of feature maps). Titles: block with the largest mean "
        f"standard deviation of gamma between instruments. {run_note(settings, chosen)}"
    )
    return Figure("film_parameters", fig, caption)


# ------------------------------------------------------------------------------ one song


def example_tracks(settings: Profile) -> list[str]:
    """Names of the songs that were kept as audio examples.

    Raises
    ------
    ConfigError
        If there is none.
    """
    folder = settings.paths.examples
    names = sorted(path.parent.name for path in folder.glob("*/mixture.flac"))
    if not names:
        raise missing(settings, folder / "*" / "mixture.flac")
    return names


@drawn
def spectrograms(
    settings: Profile,
    *,
    track: str | None = None,
    systems: Sequence[str] | None = None,
    seconds: float = 10.0,
) -> Figure:
    """Spectrograms of mixture, targets, estimates and masks for one song.

    Parameters
    ----------
    track
        One of :func:`example_tracks`; the first one if not given.
    systems
        Whose estimates; the dedicated U-Nets and the shipped C-U-Net if not given.
    seconds
        Length of the excerpt, the part of the song where all stems sound most.

    Raises
    ------
    ConfigError
        If the song or an audio file is missing, or a file has another rate or length.
    """
    tracks = example_tracks(settings)
    track = tracks[0] if track is None else track
    if track not in tracks:
        raise ConfigError(f"No audio examples of {track!r}; there are: {', '.join(tracks)}.")
    systems = tuple(systems or ("unet", settings.shipped))
    folder = settings.paths.examples / track
    mixture = _read_audio(settings, folder / "mixture.flac")
    targets = {name: _read_audio(settings, folder / f"{name}.flac") for name in INSTRUMENTS}
    estimates = {
        (system, name): _read_audio(settings, folder / system / f"{name}.flac")
        for system in systems
        for name in INSTRUMENTS
    }
    for audio in (*targets.values(), *estimates.values()):
        if len(audio) != len(mixture):
            raise ConfigError(
                f"The audio examples of {track!r} differ in length; "
                f"delete them and run `make reproduce PROFILE={settings.name}`."
            )
    rate = settings.signal.sample_rate
    start, stop = _liveliest(np.stack(list(targets.values())), rate, seconds)
    part = slice(start, stop)
    mixed = np.abs(stft(mixture[part], settings.signal))
    peak = max(float(mixed.max()), 1e-12)
    extent = (start / rate, stop / rate, 0.0, rate / 2)
    headings = [
        "Mixture",
        "Target",
        *(f"Estimate: {_short(system)}" for system in systems),
        *(f"Mask: {_short(system)}" for system in systems),
    ]
    fig, axes = subplots(
        len(INSTRUMENTS), len(headings), size=(2.15 * len(headings), 7.4), sharex=True, sharey=True
    )
    image = {"origin": "lower", "aspect": "auto", "extent": extent, "interpolation": "auto"}
    levelled = {"cmap": "magma", "vmin": -80.0, "vmax": 0.0, **image}
    share = {"cmap": mpl.colormaps["viridis"].with_extremes(bad="#BDBDBD"), "vmin": 0, "vmax": 1}
    audible = mixed > peak * 1e-4
    for row, name in enumerate(INSTRUMENTS):
        shown = [np.abs(stft(targets[name][part], settings.signal))]
        shown += [
            np.abs(stft(estimates[system, name][part], settings.signal)) for system in systems
        ]
        levels = None
        for ax, magnitude in zip(axes[row], (mixed, *shown), strict=False):
            levels = ax.imshow(decibels(magnitude, peak), **levelled)
        for ax, magnitude in zip(axes[row][2 + len(systems) :], shown[1:], strict=True):
            ratio = np.clip(magnitude / np.maximum(mixed, 1e-12), 0.0, 1.0)
            masks = ax.imshow(np.where(audible, ratio, np.nan), **share, **image)
        axes[row, 0].set_ylabel(f"{name.capitalize()}\nFrequency (Hz)")
    for ax, heading in zip(axes[0], headings, strict=True):
        ax.set_title(heading, fontsize=8.5)
    for ax in axes[-1]:
        ax.set_xlabel("Time (s)")
    for ax in axes.ravel():
        ax.grid(visible=False)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=(1, 2, 5, 10)))
    first_mask = 2 + len(systems)
    bar = {"location": "bottom", "aspect": 40, "pad": 0.02}
    fig.colorbar(
        levels, ax=axes[:, :first_mask], label="Level (dB re mixture's maximum)", shrink=0.5, **bar
    )
    fig.colorbar(masks, ax=axes[:, first_mask:], label="Mask (0 to 1)", shrink=0.9, **bar)
    fig.suptitle(f"{track}: {extent[0]:.0f} to {extent[1]:.0f} s")
    caption = (
        f"Magnitude spectrograms of the test song {track}: mixture, target and estimates in dB "
        "relative to the mixture's maximum, and masks as ratio of estimate and mixture "
        "magnitudes, cut to 0..1 (grey: mixture below -80 dB). Estimates by "
        f"{' and '.join(LABELS[system] for system in systems)}. Short-time Fourier transform of "
        f"{settings.signal.n_fft} samples, hop {settings.signal.hop}; {rate} Hz mono; "
        f"{count(1, 'track')}. {data_note(settings)}"
    )
    # Twenty-four pictures: at full resolution the files would be several megabytes.
    return Figure("spectrograms", fig, caption, dpi=110)


def _read_audio(settings: Profile, path: Path) -> np.ndarray:
    if not path.is_file():
        raise missing(settings, path)
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ConfigError(
            f"Audio example {path.parent.name}/{path.name} cannot be read; "
            f"delete it and run `make reproduce PROFILE={settings.name}`."
        ) from error
    if rate != settings.signal.sample_rate or audio.shape[1] != 1:
        raise ConfigError(
            f"Audio example {path.parent.name}/{path.name} has {rate} Hz and {audio.shape[1]} "
            f"channels instead of {settings.signal.sample_rate} Hz mono."
        )
    return audio[:, 0]


def _liveliest(stems: np.ndarray, rate: int, seconds: float) -> tuple[int, int]:
    """First and last sample of the excerpt, on whole seconds, in which all stems sound most.

    That is where the product of the stems' shares of their energy is largest.
    """
    length = min(stems.shape[1], int(seconds * rate))
    starts = range(0, stems.shape[1] - length + 1, rate)
    energy = np.cumsum(np.pad(stems.astype(float) ** 2, ((0, 0), (1, 0))), axis=1)
    total = np.maximum(energy[:, -1], 1e-12)

    def liveliness(start: int) -> float:
        share = (energy[:, start + length] - energy[:, start]) / total
        return float(np.log(np.maximum(share, 1e-6)).sum())

    start = max(starts, key=liveliness)
    return start, start + length
