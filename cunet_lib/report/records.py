"""What tables and figures share: the words, the runs and sounds that they read, and ``Table``."""

from __future__ import annotations

import html
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.ndimage
import soundfile

from cunet_lib.core.files import damaged, missing, read_csv, read_run, write_atomically
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS, MODELS, TRAINED, UNETS, VARIANTS
from cunet_lib.evaluation.evaluate import EXCERPT
from cunet_lib.evaluation.scores import ALL, score_files
from cunet_lib.signal.spectral import loudest

TRIALS = ("smoke", "demo", "musdb7s")
"""Profiles that show that everything runs; their models are trained for minutes."""

# ------------------------------------------------------------------------------ words


class _Cells(string.Formatter):
    """Fills templates of cells: ``!l`` is a system's or target's label, ``:p`` a p value."""

    def convert_field(self, value, conversion):
        if conversion == "l":
            return "all (mean)" if value == ALL else LABELS.get(value, value)
        return super().convert_field(value, conversion)

    def format_field(self, value, spec):
        if pd.isna(value):
            return "n/a"
        if spec == "p":
            return "<0.001" if value < 0.001 else f"{value:.3f}"
        text = format(value, spec)
        # No negative zero: -0.00 looks like information.
        return text.removeprefix("-") if not text.strip("-0.") else text


_CELLS = _Cells()


def number(value: float) -> str:
    """A number as text with two decimals; ``"n/a"`` where there is none."""
    return _CELLS.format_field(value, ".2f")


def lay_out(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table as text, for readers: heading to a template over the columns of ``frame``.

    Such as ``"{mean:.2f} dB"``; missing values become ``"n/a"``, cells of nothing else too, and
    ``{model!l}`` is a label.
    """
    rows = frame.to_dict("records")
    shown = pd.DataFrame(
        {name: [_CELLS.vformat(cell, (), row) for row in rows] for name, cell in columns.items()}
    )
    # As a mixture's artefacts: none in any song.
    same = {r"^(± )?n/a( (±|to|\(?n/a\)?))*$": "n/a", r"^inf ± n/a \(inf\)$": "inf"}
    return shown.replace(same, regex=True)


def count(number: int, noun: str) -> str:
    """Such as ``"1 track"``, ``"2 tracks"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def loss_named(models: Iterable[str]) -> str:
    """What the losses of these models are."""
    shares = any(name in VARIANTS and VARIANTS[name].shares for name in models)
    other = " (with shares: root mean square error of complex spectra)" if shares else ""
    return f"mean absolute error of magnitudes{other}"


def listed(values: Sequence) -> str:
    """Such as ``"0, 1 and 2"``."""
    *first, last = (str(value) for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def rate_note(settings: Profile) -> str:
    """Sample rate and channels."""
    return f"{settings.signal.sample_rate} Hz mono"


def data_note(settings: Profile, *facts: str) -> str:
    """The sentence that names the data; what is not MUSDB18 is marked, its scores stand alone."""
    facts = ", ".join([settings.title, *facts])
    if settings.data.source in ("rendered", "folder"):
        facts += "; not comparable with MUSDB18 figures"
    return f"Data: {facts}."


def basis(settings: Profile, table: pd.DataFrame) -> str:
    """Data, test tracks and training runs behind a table of scores or runs."""
    tracks = [count(table["track"].nunique(), "test track")] if "track" in table else []
    trained = table["model"].isin((*TRAINED, *MODELS))
    seeds = sorted(set(table.loc[trained, "seed"]))
    each = table[trained].groupby("model")["seed"].nunique()
    runs = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean over seeds {listed(seeds)}"
    if each.min() < each.max():
        runs = f"mean over each model's seeds ({each.min()} to {each.max()})"
    if settings.lender:
        runs += f", dedicated U-Nets of the profile {settings.like}"
    return data_note(settings, *tracks, rate_note(settings), runs)


# ------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Table:
    """A table with its caption; notebooks show both.

    ``frame`` has machine names and full precision: it goes to CSV and is what ``make verify``
    compares. ``display`` has rounded text under readable headings, for Markdown, LaTeX and HTML.
    """

    name: str
    frame: pd.DataFrame
    display: pd.DataFrame
    caption: str

    def save(self, folder: Path) -> Table:
        """Write CSV, Markdown and LaTeX, equal bytes for equal tables; returns the table."""
        shown, place = self.display.astype(str), Path(folder) / self.name
        write_atomically(place.with_suffix(".md"), _markdown(shown, self.caption))
        write_atomically(place.with_suffix(".tex"), _latex(shown, self.name, self.caption))
        text = self.frame.to_csv(index=False, lineterminator="\n")
        write_atomically(place.with_suffix(".csv"), text)
        return self

    def _repr_html_(self) -> str:
        """A plain table."""
        lines = [
            "".join(
                f'<td data-order="{_sort_key(str(cell))}">{html.escape(str(cell))}</td>'
                for cell in row
            )
            for row in self.display.itertuples(index=False)
        ]
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in self.display)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return (
            f'<div class="cunet-table"><table id="table-{self.name}"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div><p><small>{html.escape(self.caption)}</small></p>"
        )


def _sort_key(text: str) -> str:
    """The number that a text begins with, nothing for ``"n/a"``, else the text itself.

    >>> _sort_key("+5.75 (4.1 to 7.0)"), _sort_key("10,419,925"), _sort_key("drums")
    ('+5.75', '10419925', 'drums')
    """
    if text in ("", "-", "n/a"):
        return ""
    found = re.match(r"(?:more than |[<±] ?)?([+-]?(?:inf|\d[\d,]*(?:\.\d+)?))\b", text)
    return found[1].replace(",", "").replace("inf", "1e999") if found else html.escape(text)


def _is_numeric(texts: pd.Series) -> bool:
    return bool(texts.str.match(r"^(?:[+<-]?(?:\d|inf\b)|n/a$)").all())


def _markdown(display: pd.DataFrame, caption: str) -> str:
    cells = display.map(lambda text: text.replace("|", r"\|").replace("\n", " "))
    align = ["right" if _is_numeric(display[name]) else "left" for name in display]
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
    cells.columns = [name.translate(_TEX) for name in display.columns]
    return cells.style.hide(axis="index").to_latex(
        column_format="".join("r" if _is_numeric(display[name]) else "l" for name in display),
        caption=caption.translate(_TEX),
        label=f"tab:{name}",
        position="tbp",
        position_float="centering",
        hrules=True,
    )


# ------------------------------------------------------------------------------ readers


def executed(settings: Profile) -> dict[str, Path]:
    """Executed notebooks by name, without those whose C-U-Net was trained again since."""
    found = {path.stem: path for path in sorted(settings.paths.notebooks.glob("*.ipynb"))}
    made = {name: path.stat().st_mtime for name, path in found.items()}
    trained = {name: made.get(f"03_train_cunet.{name.partition('.')[2]}", 0.0) for name in found}
    return {name: path for name, path in found.items() if made[name] >= trained[name]}


def load_runs(settings: Profile) -> pd.DataFrame:
    """Records of the study's training runs, one row per model and seed.

    Where a profile trains no dedicated U-Nets, they are those of the profile that it is like.

    Returns
    -------
    pandas.DataFrame
        The keys of ``run.json``, ``teraflop`` (what the kernels computed in training, three passes
        of two operations a product), and ``folder``; models in the study's order, then seeds.

    Raises
    ------
    ConfigError
        If a run of the profile is missing, or a record cannot be read.
    """
    # Here, since Keras takes seconds to be imported.
    from cunet_lib.models.unet import multiply_adds

    lender = settings.lender
    unets = [lender.paths.run(*run) for run in lender.runs if run[0] in UNETS] if lender else []
    folders = unets + [settings.paths.run(*run) for run in settings.runs]
    runs = pd.DataFrame([{**read_run(folder), "folder": folder} for folder in folders])
    size = settings.model.model_dump(include={"filters", "blocks"}) | {
        "shape": settings.patch_shape
    }
    patches = runs["steps"] * runs["batch_size"]
    # One pass of a C-U-Net with shares serves several conditions of a mixture.
    group = math.gcd(settings.train.conditions_per_mixture, len(INSTRUMENTS))
    shared = runs["model"].isin([name for name, each in VARIANTS.items() if each.shares])
    passes = patches.where(~shared, patches // group)
    runs["teraflop"] = 6e-12 * passes * [multiply_adds(name, **size) for name in runs["model"]]
    return runs


def system_of(model: str) -> str:
    """The scored system that a model belongs to: ``unet_bass`` is one of the dedicated U-Nets."""
    return "unet" if model in UNETS else model


def costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns ``parameters`` and ``teraflop`` of each system in ``runs``, the mean over its seeds.

    The dedicated U-Nets count together, as system ``"unet"``.
    """
    sums = runs.assign(system=runs["model"].map(system_of)).groupby(["system", "seed"])
    sums = sums[["parameters", "teraflop"]].sum()
    return sums.groupby("system").mean()


def load_excerpt(settings: Profile) -> pd.DataFrame:
    """Scores on the one real excerpt: columns model, seed, target, metric, value (dB).

    Raises
    ------
    ConfigError
        If there are none, or a table is damaged.
    """
    columns = ("model", "seed", "target", "metric", "value")
    paths = score_files(settings, "excerpt").values()
    return pd.concat([read_csv(path, columns) for path in paths], ignore_index=True)


def load_songs(settings: Profile, seconds: float = 10.0) -> dict[str, dict[str, np.ndarray]]:
    """The liveliest excerpt of each song that was kept as audio, the real one last.

    Returns
    -------
    dict
        Song to sounds ``(samples,)`` at the study rate: ``"mixture"``, each instrument, and
        ``"<system>/<instrument>"`` of every trained system.

    Raises
    ------
    ConfigError
        If there is no song, or a file is damaged.
    """
    rate, songs = settings.signal.sample_rate, {}
    found = (path.parent for path in settings.paths.examples.glob("*/mixture.flac"))
    for folder in sorted(found, key=lambda folder: (folder.name == EXCERPT, folder.name)):
        systems = [f"{name}/" for name in TRAINED if (folder / name).is_dir()]
        names = [f"{system}{name}" for system in ("", *systems) for name in INSTRUMENTS]
        sounds = {name: _load_audio(folder / f"{name}.flac", rate) for name in ("mixture", *names)}
        if len({len(sound) for sound in sounds.values()}) > 1:
            raise damaged(folder, "its sounds differ in length")
        stems = np.stack([sounds[name] for name in INSTRUMENTS]).astype(float) ** 2
        # Where every stem sounds, not where one is loud: the mean of the levels' logarithms.
        shares = (
            scipy.ndimage.uniform_filter1d(stems, rate, axis=1)
            / (stems.sum(axis=1) + 1e-9)[:, None]
        )
        start = loudest(np.sqrt(np.exp(np.log(shares + 1e-9).mean(axis=0))), int(seconds * rate))
        part = slice(start, start + int(seconds * rate))
        songs[folder.name] = {name: sound[part] for name, sound in sounds.items()}
    if not songs:
        raise missing(settings.paths.examples / "*" / "mixture.flac")
    return songs


def _load_audio(path: Path, rate: int) -> np.ndarray:
    if not path.is_file():
        raise missing(path)
    try:
        audio, given = soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise damaged(path, "it is no audio") from error
    if given != rate or audio.ndim != 1:
        raise damaged(path, f"it has {given} Hz instead of {rate}, or several channels")
    return audio
