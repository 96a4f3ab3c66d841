"""Figures of the report, each with its caption: PNG and SVG, equal data giving equal bytes.

Every system has one colour and one marker in all figures, every instrument another; both sets stay
apart under colour-vision deficiency (a test measures it). Figures are drawn without pyplot, so
that nothing depends on global state.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from cunet_lib.core.files import read_csv, write_atomically
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS, SYSTEMS, TRAINED, UNETS, VARIANTS
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation.metrics import SDR_V3, SDR_V4
from cunet_lib.evaluation.scores import TARGETS
from cunet_lib.report.records import basis, costs, data_note, load_songs, loss_named, number
from cunet_lib.signal.spectral import decibels, stft

SYSTEM_COLOURS = {
    "mixture": "#B5B5B5",
    "unet": "#1A1A1A",
    **{name: variant.colour for name, variant in VARIANTS.items()},
    "ideal_ratio_mask": "#6E6E6E",
}
"""Grey for bounds, black for the dedicated U-Nets, colours for the C-U-Nets."""

SYSTEM_MARKERS = {"unet": "s", **{name: variant.marker for name, variant in VARIANTS.items()}}

INSTRUMENT_COLOURS = {
    "bass": "#332288",
    "drums": "#882255",
    "other": "#5B8C2A",
    "vocals": "#E377C2",
}

INSTRUMENT_MARKERS = {"bass": "s", "drums": "^", "other": "D", "vocals": "o"}

WIDTH = 8.0
"""Of figures, in inches: text is then readable on a desk, and on a phone that is held sideways."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the study's style, whatever the caller's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
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
        )
        yield


@dataclass(frozen=True)
class Figure:
    """A figure with its caption; notebooks show both."""

    name: str
    canvas: Canvas
    caption: str
    dpi: int = 160

    @functools.cached_property
    def _png(self) -> bytes:
        # Once for the file and the notebook: half of a figure's time is its drawing.
        return self._rendered("png", {"Software": None})

    def _rendered(self, kind: str, metadata: dict) -> bytes:
        buffer = io.BytesIO()
        with styled():
            self.canvas.savefig(buffer, format=kind, dpi=self.dpi, metadata=metadata)
        return buffer.getvalue()

    def save(self, folder: Path) -> Figure:
        """Write PNG, SVG and caption, equal bytes for equal figures; returns the figure."""
        title, place = self.caption.split(". ")[0], Path(folder) / self.name
        about = {"Date": None, "Creator": None, "Title": title, "Description": self.caption}
        write_atomically(place.with_suffix(".txt"), f"{self.caption}\n")
        write_atomically(place.with_suffix(".svg"), self._rendered("svg", about))
        write_atomically(place.with_suffix(".png"), self._png)
        return self

    def _repr_html_(self) -> str:
        image, caption = base64.b64encode(self._png).decode(), html.escape(self.caption)
        width, title = round(92 * self.canvas.get_figwidth()), self.name.replace("_", " ")
        return (
            f'<img id="figure-{self.name}" src="data:image/png;base64,{image}" alt="{title}" '
            f'width="{width}" style="max-width:100%; height:auto"><p><small>{caption}</small></p>'
        )


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


# ------------------------------------------------------------------------------ scores


@drawn
def differences(settings: Profile, scores: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Forest plot: mean differences C-U-Net minus dedicated U-Net by both protocols.

    ``table`` is the frame of ``tables.differences_table``. Markers are full where the corrected
    test finds a difference.
    """
    models = [model for model in VARIANTS if model in set(table["model"])]
    margin, step = settings.statistics.margin_db, 0.8 / len(models)
    size = (WIDTH, len(TARGETS) * max(0.12 * len(models), 0.22) + 1.0)
    fig, axes = subplots(1, 2, size=size, sharex=True, sharey=True)
    for ax, measure in zip(axes[0], (SDR_V4, SDR_V3), strict=True):
        rows = table[table["protocol"] == measure.protocol]
        found = rows["verdict"].str.contains("better|worse")
        ax.axvspan(-margin, margin, color="#E9E9E9", linewidth=0, zorder=0)
        ax.axvline(0, color="#444444", linewidth=1.0, zorder=1)
        for (_, row), full in zip(rows.iterrows(), found, strict=True):
            y = TARGETS.index(row["target"]) - 0.4 + step * (models.index(row["model"]) + 0.5)
            colour = SYSTEM_COLOURS[row["model"]]
            interval = [row["difference_ci_low_db"], row["difference_ci_high_db"]]
            ax.plot(interval, [y, y], color=colour, lw=1.6, zorder=2)
            look = {"mec": colour, "mfc": colour if full else "white", "markersize": 5.5}
            ax.plot(row["difference_mean_db"], y, **look, marker=SYSTEM_MARKERS[row["model"]])
        ax.set_title(f"{measure.heading}: {found.sum()} of {len(rows)} differences significant")
        ax.set_yticks(range(len(TARGETS)), ["all (mean)", *TARGETS[1:]])
        ax.set_ylim(len(TARGETS) - 0.45, -0.55)
        ax.grid(visible=False, axis="y")
        for edge in range(1, len(TARGETS)):
            ax.axhline(edge - 0.5, color="#CCCCCC", lw=0.6, zorder=0)
    low, high = axes[0, 0].get_xlim()
    if high - low < 10 * margin:
        axes[0, 0].xaxis.set_major_locator(MultipleLocator(margin))
    for ax in axes[0]:
        ax.set_xlabel("worse ←  C-U-Net minus dedicated U-Net (dB)  → better")
    handles = [
        Line2D([], [], color=SYSTEM_COLOURS[model], marker=SYSTEM_MARKERS[model])
        for model in models
    ]
    labels = [LABELS[model] for model in models]
    columns = 4 if len(models) <= 4 else 3
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    caption = (
        f"Mean differences over test tracks with {1 - settings.statistics.alpha:.0%} bootstrap "
        "intervals; hollow markers are differences that the corrected test (Holm) does not "
        f"confirm, grey is the margin of ±{margin:g} dB. {basis(settings, scores)}"
    )
    return Figure("differences", fig, caption)


@drawn
def scores_by_instrument(settings: Profile, scores: pd.DataFrame) -> Figure:
    """Scores per instrument and system: boxes, and every track as a point."""
    tracks = analysis.track_scores(scores, SDR_V4).dropna(subset="value")
    systems = [system for system in SYSTEMS if system in set(tracks["model"])]
    size = (WIDTH, 0.32 * len(systems) + 1.2)
    fig, axes = subplots(1, len(INSTRUMENTS), size=size, sharex=True, sharey=True)
    for ax, target in zip(axes[0], INSTRUMENTS, strict=True):
        data = tracks[tracks["target"] == target]
        for row, system in enumerate(systems):
            parts = ("boxprops", "medianprops", "whiskerprops", "capprops")
            look = {part: {"color": "#1A1A1A", "lw": 0.9} for part in parts}
            values = data.loc[data["model"] == system, "value"]
            where = {"positions": [row], "orientation": "horizontal", "widths": 0.7}
            ax.boxplot(values, **where, **look, showfliers=False, zorder=3)
        # Many points are faint, lest they hide the boxes.
        look = {"size": 3} if data["track"].nunique() <= 30 else {"size": 1.8, "alpha": 0.4}
        dots = {"orient": "h", "native_scale": True, "warn_thresh": 1.0, **look}
        dots |= {"hue": "model", "palette": SYSTEM_COLOURS, "legend": False}
        data = data.assign(row=data["model"].map(systems.index).astype(int))
        sns.swarmplot(data, x="value", y="row", **dots, ax=ax)
        ax.grid(visible=False, axis="y")
        ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        ax.set(title=target.capitalize(), xlabel=None, ylabel=None)
        ax.set_yticks(range(len(systems)), [LABELS[system] for system in systems])
    axes[0, 0].set_ylim(len(systems) - 0.45, -0.55)
    frames = f"median over {settings.evaluate.window_seconds:g} s frames"
    fig.supxlabel(f"SDR v4 (dB), {frames}", fontsize=9)
    caption = (
        "Scores per instrument and system; points: test tracks, boxes: quartiles and median. "
        f"{basis(settings, scores)}"
    )
    return Figure("scores_by_instrument", fig, caption)


@drawn
def scores_against_cost(settings: Profile, scores: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """SDR over all instruments against parameters, and against training; four U-Nets as one."""
    confidence = 1 - settings.statistics.alpha
    means = analysis.over_instruments(analysis.track_scores(scores, SDR_V4))
    spent = costs(runs)
    spent["parameters"] /= 1e6
    fig, axes = subplots(1, 2, size=(WIDTH, 2.9), sharey=True)
    for system in [system for system in TRAINED if system in spent.index]:
        values = means.loc[means["model"] == system, "value"].dropna().to_numpy()
        mean = values.mean()
        low, high = analysis.bootstrap_interval(values, confidence=confidence)
        look = {"color": SYSTEM_COLOURS[system], "marker": SYSTEM_MARKERS[system], "lw": 1.4}
        look |= {"markersize": 6.5, "capsize": 4, "ls": "none"}
        label = f"{LABELS[system]}: {number(mean)} dB, {spent.loc[system, 'parameters']:.2f} M"
        for ax, cost in zip(axes[0], spent, strict=True):
            place = spent.loc[system, cost]
            ax.errorbar(place, mean, [[mean - low], [high - mean]], **look, label=label)
    for ax, words in zip(axes[0], ("Parameters, millions", "Computation, TFLOP"), strict=True):
        ax.set(xlabel=words, xlim=(0, None))
        ax.margins(y=0.09)
    axes[0, 0].set_ylabel("SDR v4 (dB)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        f"Mean scores over instruments and tracks, with {confidence:.0%} bootstrap intervals, "
        "against what all four instruments need: parameters, and what training computes. "
        f"{basis(settings, scores)}"
    )
    return Figure("scores_against_cost", fig, caption)


@drawn
def steps(settings: Profile, scores: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Mean scores from one C-U-Net to the next; ``table``: the frame of ``tables.steps_table``."""
    *models, reference = table["model"]
    fig, axes = subplots(1, 2, size=(WIDTH, 0.36 * len(models) + 0.9), sharey=True)
    for ax, measure in zip(axes[0], (SDR_V4, SDR_V3), strict=True):
        means = table.set_index("model")[f"{measure.column}_mean_db"]
        ax.axvline(means[reference], color=SYSTEM_COLOURS[reference], lw=1.2)
        for y, (model, before) in enumerate(zip(models, [models[0], *models], strict=False)):
            look = {"color": SYSTEM_COLOURS[model], "lw": 2.4}
            ax.plot([means[before], means[model]], [y, y], **look)
            ax.plot(means[model], y, **look, marker=SYSTEM_MARKERS[model], markersize=6.5)
        ax.set(xlabel=f"{measure.heading} (dB)", ylim=(len(models) - 0.5, -0.5))
        ax.margins(x=0.1)
    axes[0, 0].set_yticks(range(len(models)), [LABELS[model] for model in models])
    caption = (
        "Mean scores over instruments and tracks, each from that of the row above; black: the "
        f"dedicated U-Nets. {basis(settings, scores)}"
    )
    return Figure("steps", fig, caption)


# ------------------------------------------------------------------------------ training


@drawn
def training_curves(settings: Profile, runs: pd.DataFrame) -> Figure:
    """Training and validation loss of every run of the first seed, with shared axes."""
    chosen = runs[runs["seed"] == runs["seed"].min()]
    panels = {
        "Dedicated U-Nets": UNETS,
        "C-U-Nets": [name for name, variant in VARIANTS.items() if not variant.shares],
        "With shares: another loss": [name for name in VARIANTS if VARIANTS[name].shares],
    }
    panels = {
        title: models for title, models in panels.items() if chosen["model"].isin(models).any()
    }
    fig, axes = subplots(1, len(panels), size=(WIDTH, 4.0), sharex=True, sharey=True)
    dashed, ring = {"lw": 1.0, "ls": (0, (3, 1.5))}, {"marker": "o", "mfc": "white", "mew": 1.6}
    colours = {f"unet_{name}": colour for name, colour in INSTRUMENT_COLOURS.items()}
    for ax, (title, models) in zip(axes[0], panels.items(), strict=True):
        for _, run in chosen[chosen["model"].isin(models)].iterrows():
            columns = ("epoch", "loss", "val_loss")
            history = read_csv(run["folder"] / "history.csv", columns).set_index("epoch")
            colour = (colours | SYSTEM_COLOURS)[run["model"]]
            best = history["val_loss"].idxmin()
            ax.plot(history["loss"], color=colour, **dashed)
            ax.plot(history["val_loss"], color=colour, lw=1.8, label=LABELS[run["model"]])
            ax.plot(best, history["val_loss"][best], color=colour, **ring)
        ax.set(title=title, xlabel="Epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        # Below: with many variants a legend would hide their curves.
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        ax.legend(**place, frameon=False, ncols=4 - len(panels), fontsize=8)
    ax = axes[0, 0]
    ax.set(yscale="log", ylabel="Loss")
    ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    caption = (
        f"Loss of each training: {loss_named(chosen['model'])}; "
        f"{settings.train.steps_per_epoch} steps of "
        f"{settings.train.batch_size} patches an epoch; line: validation, dashed: training, ring: "
        f"best epoch. {basis(settings, chosen)}"
    )
    return Figure("training_curves", fig, caption)


@drawn
def film_parameters(settings: Profile, runs: pd.DataFrame) -> Figure:
    """FiLM gammas and betas that each C-U-Net uses per instrument and block."""
    chosen = runs[runs["seed"] == runs["seed"].min()].set_index("model")
    there = [model for model in VARIANTS if model in chosen.index]
    models = [model for model in there if VARIANTS[model].progressive] or there
    fig, axes = subplots(len(models), 2, size=(WIDTH, 1.35 * len(models) + 0.9), sharex=True)
    columns = ("instrument", "block", "feature", "gamma", "beta")
    neutral = {"color": "#666666", "lw": 0.9, "ls": (0, (3, 2))}
    for pair, model in zip(axes, models, strict=True):
        film = read_csv(chosen.loc[model, "folder"] / "film.csv", columns)
        for ax, value, none in zip(pair, ("gamma", "beta"), (1.0, 0.0), strict=True):
            ax.axhline(none, zorder=1, **neutral)
            for place, instrument in enumerate(INSTRUMENTS):
                blocks = film[film["instrument"] == instrument].groupby("block")[value]
                shares = blocks.quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()  # noqa: PD010
                x = shares.index.to_numpy() + 0.17 * (place - 1.5)
                colour = INSTRUMENT_COLOURS[instrument]
                ax.vlines(x, shares[0.05], shares[0.95], color=colour, lw=0.9)
                ax.vlines(x, shares[0.25], shares[0.75], color=colour, lw=3.0)
                ax.plot(x, shares[0.5], **_dot(instrument), markersize=5.5, zorder=3)
            ax.set_title(f"{LABELS[model]}: {value} ({'scale' if none else 'shift'})")
            ax.xaxis.set_major_locator(MultipleLocator(1))
            ax.margins(y=0.12)
            ax.grid(visible=False, axis="x")
    fig.supxlabel("Block", fontsize=9)
    handles = [Line2D([], [], label=name, **_dot(name)) for name in INSTRUMENTS]
    handles.append(Line2D([], [], label="no modulation", **neutral))
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    caption = (
        "FiLM parameters for each instrument; with one value per feature map, points are medians, "
        f"lines quartiles and 5th to 95th percentile. {basis(settings, chosen.reset_index())}"
    )
    return Figure("film_parameters", fig, caption)


def _dot(instrument: str) -> dict:
    look = {"color": INSTRUMENT_COLOURS[instrument], "marker": INSTRUMENT_MARKERS[instrument]}
    return {**look, "markeredgecolor": "white", "markeredgewidth": 0.6, "ls": "none"}


# ------------------------------------------------------------------------------ one song


@drawn
def spectrograms(settings: Profile) -> Figure:
    """Spectrograms of targets, estimates and masks in an excerpt of the first song."""
    track, sounds = next(iter(load_songs(settings).items()))
    systems = [name for name in ("unet", settings.shipped) if f"{name}/{INSTRUMENTS[0]}" in sounds]
    magnitudes = {name: np.abs(stft(sound, settings.signal)) for name, sound in sounds.items()}
    mixed = magnitudes["mixture"]
    peak = max(float(mixed.max()), 1e-12)
    rate = settings.signal.sample_rate
    image = {"origin": "lower", "aspect": "auto", "interpolation": "auto"}
    image["extent"] = (0.0, len(sounds["mixture"]) / rate, 0.0, rate / 2)
    levelled = {"cmap": "magma", "vmin": -80.0, "vmax": 0.0, **image}
    share = {"cmap": mpl.colormaps["viridis"].with_extremes(bad="#BDBDBD"), "vmin": 0, "vmax": 1}
    headings = ["Mixture", "Target", *(LABELS[name] for name in systems)]
    headings += [f"Mask: {LABELS[name].split(' ', 1)[1]}" for name in systems]
    size = (1.6 * len(headings), 5.0)
    fig, axes = subplots(len(INSTRUMENTS), len(headings), size=size, sharex=True, sharey=True)
    for row, name in zip(axes, INSTRUMENTS, strict=True):
        estimates = [magnitudes[f"{system}/{name}"] for system in systems]
        for ax, magnitude in zip(row, (mixed, magnitudes[name], *estimates), strict=False):
            levels = ax.imshow(decibels(magnitude, peak), **levelled)
        for ax, magnitude in zip(row[-len(systems) :], estimates, strict=True):
            ratio = np.clip(magnitude / np.maximum(mixed, 1e-12), 0.0, 1.0)
            masks = ax.imshow(np.where(mixed > peak * 1e-4, ratio, np.nan), **share, **image)
        row[0].set_ylabel(f"{name.capitalize()}\n(Hz)")
    for ax, words in zip(axes[0], headings, strict=True):
        ax.set_title(words.replace(" ", "\n", 1), fontsize=8)
    for ax in axes.flat:
        ax.grid(visible=False)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=(1, 2, 5, 10)))
    fig.supxlabel("Time (s)", fontsize=9)
    bar = {"location": "bottom", "aspect": 40, "pad": 0.02}
    first = axes[:, : -len(systems)]
    fig.colorbar(levels, ax=first, label="Level (dB re mixture's maximum)", shrink=0.5, **bar)
    fig.colorbar(masks, ax=axes[:, -len(systems) :], label="Mask (0 to 1)", shrink=0.9, **bar)
    caption = (
        f"Spectrograms of the test song {track}: mixture, target, estimates, and masks as ratio of "
        f"magnitudes (grey: mixture below -80 dB). {data_note(settings, '1 test track')}"
    )
    # Twenty-four pictures: at full resolution the files would be several megabytes.
    return Figure("spectrograms", fig, caption, dpi=110)


# ------------------------------------------------------------------------------ tracks


@drawn
def dedicated_against_conditioned(settings: Profile, scores: pd.DataFrame) -> Figure:
    """Each track's score by a C-U-Net against that by the dedicated U-Net, per instrument."""
    fig, axes = subplots(1, len(INSTRUMENTS), size=(9, 3.4), sharex=True, sharey=True)
    pairs = analysis.paired_differences(scores).dropna(subset="difference")
    plain = [model for model in pairs["model"].unique() if VARIANTS[model].progressive]
    pairs = pairs[pairs["model"].isin(plain)] if plain else pairs
    for ax, target in zip(axes[0], INSTRUMENTS, strict=True):
        ax.axline((0, 0), slope=1, color="#888888", linewidth=0.8, zorder=0)
        r = []
        for model, group in pairs[pairs["target"] == target].groupby("model", sort=False):
            look = {"color": SYSTEM_COLOURS[model], "marker": SYSTEM_MARKERS[model], "s": 16}
            ax.scatter(group["reference_value"], group["value"], label=LABELS[model], **look)
            r.append(group["value"].corr(group["reference_value"]))
        r = pd.Series(r, dtype=float)
        ax.set_title(f"{target}: r {r.min():.2f} to {r.max():.2f}" if len(r) else f"{target}: n/a")
    fig.supxlabel("SDR v4 of the dedicated U-Net (dB)", fontsize=9)
    fig.supylabel("SDR v4 of the C-U-Net (dB)", fontsize=9)
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False)
    caption = (
        "Scores of each test track by C-U-Nets against those by dedicated U-Nets, with Pearson's r "
        f"per model (least and most); line: equal scores. {basis(settings, scores)}"
    )
    return Figure("dedicated_against_conditioned", fig, caption)
