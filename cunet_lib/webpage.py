"""The report: the study as web pages in one folder, which work offline and from a file.

:func:`build_report` tells the story in order, from what the study left behind: tables, figures,
audio, executed notebooks and the manifest. Every number in it is read from a table. All that the
pages show or link to is copied into the folder, so it can be moved, zipped or served as it is. A
part that is not there yet is a sentence that says what makes it.

The words and the layout are in ``templates``.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from cunet_lib.analysis import ALL
from cunet_lib.config import INSTRUMENTS, ROOT, VARIANTS, ConfigError, Profile, load_profile
from cunet_lib.files import replacing, write_atomically
from cunet_lib.inference import EQUIVALENT
from cunet_lib.parallel import pool
from cunet_lib.results import (
    LABELS,
    count,
    data_note,
    listed,
    missing,
    number,
    rate_note,
    read_csv,
    read_json,
)

TEMPLATES = Path(__file__).parent / "templates"
NOTEBOOK_TEMPLATE = "notebook.html.j2"

FIDELITY = ROOT / "docs" / "fidelity.md"
"""What is as in the paper and what is not."""

CHAPTERS = {
    "models": ("models", "architecture_*"),
    "training": ("training", "training_curves"),
    "results": (
        "scores_overall",
        "scores_against_parameters",
        "scores_by_instrument",
        "outcome",
        "differences",
        "paired_differences",
        "power",
        "differences_*",
        "published",
    ),
    "measures": ("further_scores", "silence", "ablation"),
    "listen": ("spectrograms",),
    "film": ("film_parameters",),
    "conditions": ("conditions_*",),
    "excerpt": ("excerpt",),
    "rest": ("*",),
}
"""Tables and figures of each part of the page, by name; each appears once, where it fits first."""

TITLES = {
    "models": "Models and their parameters",
    "training": "What training cost",
    "training_curves": "Losses during training",
    "scores_overall": "Scores over all instruments",
    "scores_against_parameters": "Scores against parameters",
    "scores_by_instrument": "Scores per instrument",
    "outcome": "Did every model learn every instrument?",
    "differences": "C-U-Nets against dedicated U-Nets",
    "paired_differences": "The same, song by song",
    "power": "How many songs would tell",
    "differences_to_mixture": "Models against the untouched mixture",
    "published": "Published scores",
    "further_scores": "Without filters: residual and sum",
    "silence": "What is heard in silence",
    "ablation": "What the released evaluation does to scores",
    "spectrograms": "One song as spectrograms",
    "film_parameters": "Scales and shifts that the conditions give",
    "conditions_level": "The condition as a fader",
    "conditions_extremes": "Nothing and everything",
    "conditions_pairs": "Two instruments at once",
    "conditions_embeddings": "How the control network sees conditions",
    "conditions_uncontrolled": "The network without control",
    "excerpt": "Scores on the excerpt",
    **{f"architecture_{model}": LABELS[model] for model in VARIANTS},
    "architecture_unet": "Dedicated U-Net",
}
"""Headings; a name that is not here is its own."""

SOURCES = {
    "rendered": "composed and rendered from a seed, sung by a synthetic voice",
    "musdb18": "MUSDB18",
    "musdb7s": "excerpts of MUSDB18, seven seconds each",
}


# ------------------------------------------------------------------------------ the page


def build_report(settings: Profile) -> Path:
    """Write the results as web pages, ``report/index.html`` and what it links to.

    Whatever names and captions hold is escaped. Only what changed since the last time is copied
    or converted, and what no page needs any more is deleted from the folder.

    Returns
    -------
    pathlib.Path
        The page to open.

    Raises
    ------
    ConfigError
        If there are no tables yet, or a file that the page reads is damaged.
    """
    paths = settings.paths
    tables = [_table_item(path) for path in sorted(paths.tables.glob("*.md"))]
    if not tables:
        raise missing(settings, paths.tables / "outcome.md")
    folder = _Folder(paths.results / "report")
    figures = [_figure_item(path, folder) for path in sorted(paths.figures.glob("*.png"))]
    for table in tables:
        csv = paths.tables / f"{table.name}.csv"
        table.download = folder.add(csv, f"tables/{csv.name}") if csv.is_file() else None
    manifest = read_json(settings, paths.manifest) if paths.manifest.is_file() else None
    page = _environment().get_template("report.html.j2")
    text = page.render(
        title=settings.title,
        profile=settings.name,
        note=data_note(settings),
        answer=_answer(settings, {table.name: table for table in tables}),
        facts=_facts(settings, manifest),
        chapters=_chapters([*tables, *figures]),
        songs=_songs(settings, folder),
        deviations=_deviations(settings),
        document=_document(),
        excerpt=_excerpt_sentence(settings),
        notebooks=_notebooks(settings, folder),
        record=_record(manifest),
        manifest=folder.add(paths.manifest, "manifest.json") if manifest else None,
        style=Markup((TEMPLATES / "report.css").read_text("utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text("utf-8")),
    )
    folder.prune()
    return write_atomically(folder.path / "index.html", text)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


class _Folder:
    """The report's folder: knows what was put into it, so that the rest can go."""

    def __init__(self, path: Path):
        self.path = path
        self._wanted: set[Path] = {path / "index.html"}

    def want(self, name: str) -> Path:
        """Keep the file of this name; returns its path."""
        path = self.path / name
        self._wanted.add(path)
        return path

    def add(self, source: Path, name: str) -> str:
        """Copy a file in, unless it is there already; returns its address on the page."""
        target, state = self.want(name), source.stat()
        known = target.stat() if target.is_file() else None
        if not known or (known.st_size, known.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
            with replacing(target) as partial:
                shutil.copyfile(source, partial)
                os.utime(partial, ns=(state.st_atime_ns, state.st_mtime_ns))
        return _address(name)

    def prune(self) -> None:
        """Delete files and folders that nothing wants, such as those of an earlier song."""
        for path in sorted(self.path.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in self._wanted:
                path.unlink()


def _address(name: str) -> str:
    """Relative address of a file: every odd character percent-encoded, by the bytes on disk."""
    return quote(os.fsencode(name), safe="/")


def _readable(name: str) -> str:
    """A file name as text, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


# ------------------------------------------------------------------------------ tables, figures


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell, and what it is sorted by where it holds a number."""

    text: str
    key: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a column; numbers stand right and sort as numbers."""

    label: str
    numeric: bool = False
    sorts_as_number: bool = False


@dataclass
class Table:
    """A table as the page shows it."""

    name: str
    columns: list[Column]
    rows: list[list[Cell]]
    title: str = ""
    lead: str = ""
    rest: str = ""
    download: str | None = None
    kind: str = "table"


@dataclass
class Figure:
    """A figure as the page shows it; its alternative text is the caption's first sentence."""

    name: str
    title: str
    lead: str
    rest: str
    image: str
    vector: str | None
    width: int
    height: int
    kind: str = "figure"


def _table(name: str, header: Sequence[str], rows: Sequence[Sequence], **about) -> Table:
    """A table of texts; columns whose cells all begin with a number sort as numbers."""
    marks = about.pop("numeric", None)
    keys = [[sort_key(str(cell)) for cell in column] for column in zip(*rows, strict=True)]
    columns = []
    for place, label in enumerate(header):
        known = [key for key in keys[place] if key is not None] if keys else []
        as_number = bool(known) and len(known) == len(rows)
        as_number &= not all(math.isnan(key) for key in known)
        numeric = marks[place] if marks else as_number
        columns.append(Column(label, numeric, as_number))
    cells = [
        [
            Cell(text, _key_text(keys[place][row]) if columns[place].sorts_as_number else "")
            for place, text in enumerate(line)
        ]
        for row, line in enumerate(rows)
    ]
    return Table(name, columns, cells, **about)


_NUMBER = re.compile(r"(?:more than |[<>±]\s*)?([+-]?)(inf|\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)\b")


def sort_key(text: str) -> float | None:
    """The number that a cell is sorted by.

    Returns
    -------
    float or None
        The first number of a text that begins with one, such as ``"9.84 ± 1.20 (9.70)"``;
        not-a-number for ``"n/a"``, ``"-"`` and empty cells; None for other texts.

    >>> sort_key("+5.75 (4.1 to 7.0)"), sort_key("10,419,925"), sort_key("<0.001")
    (5.75, 10419925.0, 0.001)
    >>> sort_key("drums") is None
    True
    """
    if text.strip() in ("", "-", "n/a", "nan"):
        return math.nan
    found = _NUMBER.match(text.strip())
    return float((found[1] + found[2]).replace(",", "")) if found else None


def _key_text(key: float) -> str:
    """A number as JavaScript reads it; empty for none."""
    if math.isnan(key):
        return ""
    return repr(key).replace("inf", "Infinity")


def split_caption(caption: str) -> tuple[str, str]:
    """A caption's first sentence, and the rest.

    >>> split_caption("Scores per system. SDR: a ratio, in dB.")
    ('Scores per system.', 'SDR: a ratio, in dB.')
    """
    # A single capital before the full stop is an initial.
    first, *rest = re.split(
        r"(?<![ .][A-Z]\.)(?<=\.)\s+(?=[A-Z]|v[34]:)", caption.strip(), maxsplit=1
    )
    return first, "".join(rest)


def _heading(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _cells(line: str) -> list[str]:
    """Cells of a line of a Markdown table."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _table_item(path: Path) -> Table:
    """A table from its Markdown file: caption, empty line, header, rule, rows."""
    caption, _, body = path.read_text("utf-8").partition("\n\n")
    rows = [_cells(line) for line in body.strip().splitlines()]
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise ConfigError(f"tables/{path.name} holds no table; delete it and run `make reproduce`.")
    header, rule, *lines = rows
    lead, rest = split_caption(caption)
    return _table(
        path.stem,
        header,
        lines,
        title=_heading(path.stem),
        lead=lead,
        rest=rest,
        numeric=[mark.endswith(":") for mark in rule],
    )


def _figure_item(path: Path, folder: _Folder) -> Figure:
    caption = path.with_suffix(".txt")
    text = caption.read_text("utf-8") if caption.is_file() else f"{_heading(path.stem)}."
    lead, rest = split_caption(text)
    vector = path.with_suffix(".svg")
    with path.open("rb") as file:
        start = file.read(24)
    if start[:8] != b"\x89PNG\r\n\x1a\n":
        raise ConfigError(f"figures/{path.name} is no PNG; delete it and run `make reproduce`.")
    # The header chunk comes first: width and height, which keep the page from jumping.
    width, height = (int.from_bytes(start[place : place + 4], "big") for place in (16, 20))
    return Figure(
        path.stem,
        _heading(path.stem),
        lead,
        rest,
        image=folder.add(path, f"figures/{path.name}"),
        vector=folder.add(vector, f"figures/{vector.name}") if vector.is_file() else None,
        width=width,
        height=height,
    )


def _chapters(items: Sequence[Table | Figure]) -> dict[str, list[Table | Figure]]:
    """Items of each chapter, in the order of its patterns."""
    left, chapters = list(items), {}
    for chapter, patterns in CHAPTERS.items():
        chosen = []
        for pattern in patterns:
            fits = re.compile(re.escape(pattern).replace(r"\*", ".*"))
            chosen += [item for item in left if fits.fullmatch(item.name)]
            left = [item for item in left if item not in chosen]
        chapters[chapter] = chosen
    return chapters


# ------------------------------------------------------------------------------ the answer


def _optional(settings: Profile, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    path = settings.paths.tables / f"{name}.csv"
    return read_csv(settings, path, columns) if path.is_file() else None


def _answer(settings: Profile, tables: Mapping[str, Table]) -> dict | None:
    """Headline, sentences and a table that answer the question; None without scores."""
    scores = _optional(settings, "scores_overall", ("model", "target", "tracks", "sdr_v4_mean_db"))
    columns = ("model", "target", "difference_mean_db", "margin_db", "verdict")
    bounds = ("difference_ci_low_db", "difference_ci_high_db")
    differences = _optional(settings, "differences", (*columns, *bounds))
    outcome = _optional(settings, "outcome", ("model", "passed"))
    sizes = _optional(settings, "models", ("model", "share_of_four"))
    if scores is None:
        return None
    scores = scores[scores["target"] == ALL].set_index("model")
    sentences = [_score_sentence(scores)]
    headline = None
    if differences is not None and len(differences):
        headline = headline_of(differences, outcome)
        sentences.append(_verdict_sentence(differences))
    if "outcome" in tables:
        sentences.append(tables["outcome"].lead.removeprefix("Outcome: "))
    if sizes is not None:
        sentences.append(_size_sentence(sizes))
    return {
        "headline": headline,
        "sentences": [sentence for sentence in sentences if sentence],
        "table": _answer_table(scores, differences, sizes),
    }


def headline_of(differences: pd.DataFrame, outcome: pd.DataFrame | None) -> str:
    """The study's answer in one sentence, from the verdicts and the check of the outcome.

    A model counts as equivalent only if all its rows are, as the tests are made for, and if it
    separates every instrument in the first place: two models that learned nothing are equal, too.

    Parameters
    ----------
    differences
        Columns model, verdict and margin_db of the table of that name.
    outcome
        Columns model and passed of the table of that name; not checked if None.
    """
    margin = f"{differences['margin_db'].iloc[0]:g} dB"
    if outcome is not None and not outcome["passed"].any():
        return (
            "No model has learned to separate any instrument here, so a comparison of them means "
            "nothing."
        )
    passed = None if outcome is None else outcome.groupby("model")["passed"].all()
    even = [
        model
        for model, rows in differences.groupby("model", sort=False)
        if rows["verdict"].str.startswith(EQUIVALENT).all()
        and (passed is None or (passed.get(model, False) and passed.get("unet", False)))
    ]
    if not even:
        return (
            f"For no C-U-Net was it shown that it separates every instrument as well as a "
            f"dedicated U-Net does, to within {margin}."
        )
    names = listed([LABELS.get(model, model) for model in even])
    verb = "separates" if len(even) == 1 else "separate"
    return (
        f"{names} {verb} as well as four dedicated U-Nets: equivalent to within {margin} over all "
        "instruments together and for each of them."
    )


def _score_sentence(scores: pd.DataFrame) -> str:
    """Means over all instruments, from the lower to the upper bound."""
    means = scores["sdr_v4_mean_db"]
    shared = means[means.index.isin(VARIANTS)].dropna()
    parts = []
    if "unet" in means:
        parts.append(f"the four dedicated U-Nets reach {number(means['unet'])} dB")
    if len(shared):
        low, high = number(shared.min()), number(shared.max())
        best = LABELS[shared.idxmax()]
        span = f"{low} dB" if low == high else f"between {low} and {high} dB (best: {best})"
        parts.append(f"the C-U-Nets {span}")
    for name, words in (
        ("mixture", "the untouched mixture has"),
        ("ideal_ratio_mask", "the ideal ratio mask, which knows the answer,"),
    ):
        if name in means:
            parts.append(f"{words} {number(means[name])} dB")
    if not parts:
        return ""
    songs = count(int(scores["tracks"].max()), "test song")
    return (
        f"Signal-to-distortion ratio, mean over {songs} and all instruments, BSS Eval v4: "
        f"{listed(parts)}."
    )


def _verdict_sentence(differences: pd.DataFrame) -> str:
    """How many comparisons ended with which verdict."""
    counts = differences["verdict"].value_counts(sort=False)
    order = sorted(counts.index, key=lambda word: (not word.startswith(EQUIVALENT), word))
    parts = listed([f"{counts[word]} {word}" for word in order])
    return (
        f"Of {count(len(differences), 'comparison')} of a C-U-Net with the dedicated U-Nets, over "
        f"all instruments and for each: {parts}. The margin of "
        f"{differences['margin_db'].iloc[0]:g} dB was set before any score was known."
    )


def _size_sentence(sizes: pd.DataFrame) -> str:
    """What a C-U-Net weighs against four U-Nets."""
    shared = sizes[sizes["model"].isin(VARIANTS)]
    if shared.empty:
        return ""

    def span(column: str) -> str:
        low, high = (f"{value:.0%}" for value in (shared[column].min(), shared[column].max()))
        return low if low == high else f"{low} to {high}"

    paper = ""
    if "paper_share_of_four" in shared:
        paper = f", and {span('paper_share_of_four')} at the paper's size"
    return (
        f"One C-U-Net has {span('share_of_four')} of the parameters of four dedicated U-Nets "
        f"in this run{paper}."
    )


def _answer_table(
    scores: pd.DataFrame, differences: pd.DataFrame | None, sizes: pd.DataFrame | None
) -> Table:
    """Every system: score, difference from the dedicated U-Nets, verdict, parameters."""
    header = ["System", "Mean SDR v4, dB"]
    rows = [
        [LABELS.get(model, model), number(value)]
        for model, value in scores["sdr_v4_mean_db"].items()
    ]
    if differences is not None:
        header += ["Minus dedicated U-Nets, dB", "Verdict over all instruments", "Equivalent in"]
        groups = dict(list(differences.groupby("model")))
        for model, row in zip(scores.index, rows, strict=True):
            row += _difference_cells(groups.get(model))
    if sizes is not None:
        header.append("Parameters, share of four U-Nets")
        shares = sizes.set_index("model")["share_of_four"]
        for model, row in zip(scores.index, rows, strict=True):
            row.append(f"{shares[model]:.1%}" if model in shares else "-")
    return _table(
        "answer",
        header,
        rows,
        title="The answer in one table",
        lead="Mean over test songs and all instruments, beside the paired comparison.",
        rest=(
            "SDR v4: signal-to-distortion ratio by BSS Eval v4. In parentheses: the interval of "
            "the mean difference. Equivalent in: of the comparisons over all instruments and for "
            "each. Definitions, tests and all figures stand under Results."
        ),
    )


def _difference_cells(rows: pd.DataFrame | None) -> list[str]:
    if rows is None or not (rows["target"] == ALL).any():
        return ["-", "-", "-"]
    overall = rows[rows["target"] == ALL].iloc[0]
    low, high = overall["difference_ci_low_db"], overall["difference_ci_high_db"]
    interval = "" if pd.isna(low) else f" ({number(low, sign=True)} to {number(high, sign=True)})"
    same = int(rows["verdict"].str.startswith(EQUIVALENT).sum())
    return [
        f"{number(overall['difference_mean_db'], sign=True)}{interval}",
        overall["verdict"],
        f"{same} of {len(rows)}",
    ]


def _excerpt_sentence(settings: Profile) -> str | None:
    """Means over the instruments on the real excerpt, best first; None without scores."""
    columns = ("model", "target", "sdr_whole_excerpt_db")
    table = _optional(settings, "excerpt", columns)
    if table is None:
        return None
    means = table.groupby("model", sort=False)["sdr_whole_excerpt_db"].mean()
    means = means.dropna().sort_values(ascending=False)
    parts = [f"{LABELS.get(model, model)} {number(value)} dB" for model, value in means.items()]
    return f"Mean over the instruments: {listed(parts)}." if parts else None


# ------------------------------------------------------------------------------ data and paper


def _facts(settings: Profile, manifest: dict | None) -> list[tuple[str, str]]:
    """What there is to know about the data, as terms and values."""
    data, signal = settings.data, settings.signal
    facts = [("Music", settings.title), ("Source", SOURCES.get(data.source, data.source))]
    tracks = ((manifest or {}).get("store") or {}).get("tracks") or {}
    uses = {"train": "for training", "valid": "for validation", "test": "for tests"}
    songs = [f"{tracks[split]} {words}" for split, words in uses.items() if split in tracks]
    if songs:
        facts.append(("Songs", listed(songs)))
    if data.source == "rendered":
        facts.append(("Length", f"about {data.seconds:g} s a song"))
    facts.append(("Audio", f"{rate_note(settings)}, so nothing above {signal.sample_rate // 2} Hz"))
    facts.append(("Spectrograms", f"window of {signal.n_fft} samples, hop of {signal.hop}"))
    return facts


def _deviations(settings: Profile) -> Table | None:
    """Settings of this profile that differ from the paper's, which ``musdb18`` has."""
    sections = ("signal", "model", "train", "separate", "evaluate")
    here, paper = (each.model_dump(mode="json") for each in (settings, load_profile("musdb18")))
    reasons = _reasons() if settings.name == "demo" else {}
    rows = [
        [f"{section}.{key}", _plain(value), _plain(paper[section][key])]
        for section in sections
        for key, value in here[section].items()
        if value != paper[section][key]
    ]
    if not rows:
        return None
    header = ["Setting", "Here", "Profile musdb18"]
    if reasons:
        header.append("Why")
        rows = [[*row, _inline(reasons.get(row[0], ""))] for row in rows]
    return _table(
        "deviations",
        header,
        rows,
        title="Settings of this run",
        lead=f"Settings in which the profile {settings.name} differs from the paper's.",
        rest="",
        numeric=[False] * len(header),
    )


def _reasons() -> dict[str, str]:
    """Why the demo deviates, by setting, as the document says."""
    rows = [row for part in _document() for row in part["lines"]]
    found = {re.match(r"`([\w.]+)` = ", row[0]): row[1] for row in rows}
    return {match[1]: reason for match, reason in found.items() if match}


def _document() -> list[dict]:
    """Parts of ``docs/fidelity.md``: title, rows, and the table without its column of tests.

    Empty where the library was installed without the project around it.
    """
    if not FIDELITY.is_file():
        return []
    parts = []
    for text in re.split(r"^## ", FIDELITY.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        title, *lines = text.splitlines()
        cells = [_cells(line) for line in lines if line.startswith("|")]
        if len(cells) < 3:
            continue
        header, _, *rows = (row[:2] for row in cells)
        shown = [[_inline(cell) for cell in row] for row in rows]
        name = re.sub(r"\W+", "-", title.lower()).strip("-")
        labels = [label[:1].upper() + label[1:] for label in header]
        table = _table(name, labels, shown, numeric=[False, False], title=title)
        parts.append({"title": title, "lines": rows, "table": table})
    return parts


def _inline(text: str) -> Markup:
    """Code, links to the web and strong words of a line of Markdown; all else is text."""
    pieces = re.split(r"(`[^`]+`|\[[^\]]+\]\([^)]+\)|\*\*[^*]+\*\*)", text)
    out = Markup()
    for piece in pieces:
        link = re.fullmatch(r"\[([^\]]+)\]\(([^)]+)\)", piece)
        if piece.startswith("`") and len(piece) > 1:
            out += Markup("<code>{}</code>").format(piece[1:-1])
        elif piece.startswith("**") and len(piece) > 2:
            out += Markup("<strong>{}</strong>").format(piece[2:-2])
        elif link and link[2].startswith("https://"):
            out += Markup('<a href="{}">{}</a>').format(link[2], link[1])
        else:
            out += escape(link[1] if link else piece)
    return out


# ------------------------------------------------------------------------------ audio


def _songs(settings: Profile, folder: _Folder) -> list[dict]:
    """Example songs with the addresses of their audio, copied into the folder.

    A song has a mixture, and for each instrument players: the target first, then every system
    that has an estimate. The mixture as an estimate of itself is left out.
    """
    songs = []
    for mixture in sorted(settings.paths.examples.glob("*/mixture.flac")):
        place = mixture.parent
        found = [path.name for path in place.iterdir() if path.is_dir() and path.name != "mixture"]
        order = [name for name in LABELS if name in found]
        order += sorted(set(found) - set(order))
        systems = [("Target", place)]
        systems += [(LABELS.get(name, _readable(name)), place / name) for name in order]

        def source(file: Path, place: Path = place) -> str:
            inside = file.relative_to(place.parent).as_posix()
            return folder.add(file, f"audio/{inside}")

        groups = [
            {
                "instrument": instrument,
                "players": [
                    {"label": label, "source": source(path / f"{instrument}.flac")}
                    for label, path in systems
                    if (path / f"{instrument}.flac").is_file()
                ],
            }
            for instrument in INSTRUMENTS
        ]
        songs.append(
            {
                "name": _readable(place.name),
                "mixture": source(mixture),
                "groups": [group for group in groups if group["players"]],
            }
        )
    return songs


# ------------------------------------------------------------------------------ notebooks


def _notebooks(settings: Profile, folder: _Folder) -> list[dict]:
    """Executed notebooks as web pages: address, name, title and duration.

    Those that changed since the last time are converted, in processes of their own.
    """
    sources = sorted(settings.paths.notebooks.glob("*.ipynb"))
    targets = [folder.want(f"notebooks/{source.stem}.html") for source in sources]
    code = (TEMPLATES / NOTEBOOK_TEMPLATE).stat().st_mtime_ns
    stale = [
        (source, target)
        for source, target in zip(sources, targets, strict=True)
        if not target.is_file() or target.stat().st_mtime_ns < max(code, source.stat().st_mtime_ns)
    ]
    if stale:
        with pool(len(stale)) as executor:
            list(executor.map(_convert, *zip(*stale, strict=True)))
    return [
        {"address": _address(f"notebooks/{source.stem}.html"), **_about_notebook(source)}
        for source in sources
    ]


def _convert(source: Path, target: Path) -> None:
    """Write one executed notebook as a page that loads nothing from elsewhere."""
    from nbconvert import HTMLExporter
    from nbformat import ValidationError

    exporter = HTMLExporter(raw_template=(TEMPLATES / NOTEBOOK_TEMPLATE).read_text("utf-8"))
    try:
        page, _ = exporter.from_filename(str(source))
    except (ValueError, ValidationError) as error:
        raise ConfigError(
            f"notebooks/{source.name} cannot be read; delete it and run `make reproduce`."
        ) from error
    write_atomically(target, page)


def _about_notebook(source: Path) -> dict[str, str]:
    """Name, title (its first heading) and duration of an executed notebook."""
    content = json.loads(source.read_text("utf-8"))
    prose = ("".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown")
    headings = (re.match(r"#+ (.+)", text) for text in prose)
    title = next((found[1] for found in headings if found), source.stem)
    seconds = content.get("metadata", {}).get("papermill", {}).get("duration")
    took = "" if seconds is None else f"{seconds:.0f} s" if seconds < 90 else _minutes(seconds)
    return {"name": source.stem, "title": title, "took": took}


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


# ------------------------------------------------------------------------------ the record


def _record(manifest: dict | None) -> list[Table]:
    """The manifest as tables, one per part; nested settings as dotted names."""
    if not manifest:
        return []
    parts = {"overview": {k: v for k, v in manifest.items() if not isinstance(v, dict | list)}}
    parts |= {k: v for k, v in manifest.items() if isinstance(v, dict | list)}
    tables = []
    for name, part in parts.items():
        if isinstance(part, list):
            rows = [dict(_flat(row)) for row in part if isinstance(row, dict)]
            header = list(dict.fromkeys(key for row in rows for key in row))
            lines = [[row.get(key, "") for key in header] for row in rows]
        else:
            header, lines = ["Name", "Value"], [list(pair) for pair in _flat(part)]
        if lines:
            title = name.replace("_", " ").capitalize()
            marks = [False] * len(header)
            tables.append(_table(f"record-{name}", header, lines, title=title, numeric=marks))
    return tables


def _flat(content: Mapping, prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value) -> str:
    """A setting as text."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
