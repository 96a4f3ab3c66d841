"""What the report says: its answer, its sentences, and tables as it shows them.

Every number is read from the study's tables, every setting from the profiles, and the list of
differences from the paper from ``docs/fidelity.md``. What is not there gives None or an empty list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup, escape

from cunet_lib.core.settings import ROOT, Profile, load_profile
from cunet_lib.core.systems import VARIANTS
from cunet_lib.evaluation.metrics import SDR_V4
from cunet_lib.evaluation.scores import ALL
from cunet_lib.evaluation.statistics import EQUIVALENT
from cunet_lib.report.records import LABELS, RATIOS, count, listed, number, rate_note, read_csv

FIDELITY = ROOT / "docs" / "fidelity.md"
"""What is as in the paper and what is not."""

SOURCES = {
    "rendered": "composed and rendered from a seed, sung by a synthetic voice",
    "musdb18": "MUSDB18",
    "musdb7s": "excerpts of MUSDB18, seven seconds each",
}


# ------------------------------------------------------------------------------ tables


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


def table_of(
    name: str, header: Sequence[str], rows: Sequence[Sequence], *, numeric: bool = True, **about
) -> Table:
    """A table of texts; columns whose cells all begin with a number sort as numbers.

    They stand right, too, unless ``numeric`` is False: names beside values of every kind do not.
    """
    keys = [[sort_key(str(cell)) for cell in column] for column in zip(*rows, strict=True)]
    columns = []
    for place, label in enumerate(header):
        known = [key for key in keys[place] if key is not None] if keys else []
        as_number = bool(known) and len(known) == len(rows)
        as_number &= not all(math.isnan(key) for key in known)
        columns.append(Column(label, numeric and as_number, as_number))
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


def cells_of(line: str) -> list[str]:
    """Cells of a line of a Markdown table."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


# ------------------------------------------------------------------------------ the answer


def _optional(settings: Profile, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    path = settings.paths.tables / f"{name}.csv"
    return read_csv(settings, path, columns) if path.is_file() else None


def answer_of(settings: Profile, tables: Mapping[str, Table]) -> dict | None:
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
    sentences = [_score_sentence(settings, scores)]
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
    names = listed([_spoken(model) for model in even])
    verb = "separates" if len(even) == 1 else "separate"
    return (
        f"{names} {verb} as well as four dedicated U-Nets: equivalent to within {margin} over all "
        "instruments together and for each of them."
    )


def _spoken(model: str) -> str:
    """Name of a system in a sentence, where the comma of a label would be in the way."""
    label = LABELS.get(model, model)
    kind = label.removeprefix("C-U-Net ")
    return label if kind == label else f"C-U-Net ({kind})"


def _score_sentence(settings: Profile, scores: pd.DataFrame) -> str:
    """Means over all instruments: U-Nets, C-U-Nets, lower and upper bound."""
    means = scores["sdr_v4_mean_db"]
    shared = means[means.index.isin(VARIANTS)].dropna()
    parts = []
    if "unet" in means:
        parts.append(f"the four dedicated U-Nets reach {number(means['unet'])} dB")
    if len(shared):
        low, high = number(shared.min()), number(shared.max())
        best = LABELS[shared.idxmax()].removeprefix("C-U-Net ")
        span = low if low == high else f"{low} to {high}"
        parts.append(f"the C-U-Nets {span} dB (the highest: {best})")
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
        f"{RATIOS['SDR'].capitalize()} by {SDR_V4.protocol} ({rate_note(settings)}, "
        f"{SDR_V4.aggregation} in each song), mean over {songs} and all instruments: {'; '.join(parts)}."
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
    return table_of(
        "answer",
        header,
        rows,
        title="The answer in one table",
        lead="Mean over test songs and all instruments, beside the paired comparison.",
        rest=(
            f"SDR v4: {RATIOS['SDR']} by {SDR_V4.protocol}, {SDR_V4.aggregation} in each song. In "
            "parentheses: the interval of the mean difference. Equivalent in: of the comparisons "
            "over all instruments and for each. All definitions and tests stand under Results."
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


def excerpt_sentence(settings: Profile) -> str | None:
    """Means over the instruments on the real excerpt, best first; None without scores."""
    columns = ("model", "target", "sdr_whole_excerpt_db")
    table = _optional(settings, "excerpt", columns)
    if table is None:
        return None
    means = table.groupby("model", sort=False)["sdr_whole_excerpt_db"].mean()
    means = means.dropna().sort_values(ascending=False)
    parts = [f"{_spoken(model)} {number(value)} dB" for model, value in means.items()]
    ratio = f"{RATIOS['SDR'].capitalize()} over the whole excerpt, without filters"
    return f"{ratio}, mean over the instruments: {listed(parts)}." if parts else None


# ------------------------------------------------------------------------------ data and paper


def facts_of(settings: Profile, manifest: dict | None) -> list[tuple[str, str]]:
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


def deviations(settings: Profile) -> Table | None:
    """Settings of this profile that differ from the paper's, which ``musdb18`` has."""
    sections = ("signal", "model", "train", "separate", "evaluate")
    here, paper = (each.model_dump(mode="json") for each in (settings, load_profile("musdb18")))
    reasons = _reasons() if settings.name == "demo" else {}
    rows = [
        [f"{section}.{key}", plain(value), plain(paper[section][key])]
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
    return table_of(
        "deviations",
        header,
        rows,
        title="Settings of this run",
        lead=f"Settings in which the profile {settings.name} differs from the paper's.",
        numeric=False,
    )


def _reasons() -> dict[str, str]:
    """Why the demo deviates, by setting, as the document says."""
    rows = [row for part in document() for row in part["lines"]]
    found = [(re.match(r"`([\w.]+)` = ", row[0]), row[1]) for row in rows]
    return {setting[1]: reason for setting, reason in found if setting}


def document() -> list[dict]:
    """Parts of ``docs/fidelity.md``: title, rows, and the table without its column of tests.

    Empty where the library was installed without the project around it.
    """
    if not FIDELITY.is_file():
        return []
    parts = []
    for text in re.split(r"^## ", FIDELITY.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        title, *lines = text.splitlines()
        cells = [cells_of(line) for line in lines if line.startswith("|")]
        if len(cells) < 3:
            continue
        header, _, *rows = (row[:2] for row in cells)
        shown = [[_inline(cell) for cell in row] for row in rows]
        name = re.sub(r"\W+", "-", title.lower()).strip("-")
        labels = [label[:1].upper() + label[1:] for label in header]
        table = table_of(name, labels, shown, numeric=False, title=title)
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


def plain(value) -> str:
    """A setting as text."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
