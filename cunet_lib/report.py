"""The study's record: manifest, comparison with the committed results, and the web page.

Tables and figures are made by :mod:`cunet_lib.tables` and :mod:`cunet_lib.figures`; what notebooks
need to save is at hand here too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from cunet_lib.catalog import write_cards
from cunet_lib.config import INSTRUMENTS, ROOT, SCORE_COLUMNS, ConfigError, Profile
from cunet_lib.figures import save_figure
from cunet_lib.files import write_atomically
from cunet_lib.results import (
    LABELS,
    count,
    data_note,
    json_text,
    load_runs,
    missing,
    number,
    read_json,
)
from cunet_lib.tables import save_table

__all__ = [
    "TOLERANCES",
    "build_report",
    "save_figure",
    "save_scores",
    "save_table",
    "verify",
    "write_manifest",
]

DISTRIBUTIONS = (
    "tensorflow",
    "keras",
    "numpy",
    "scipy",
    "librosa",
    "soxr",
    "soundfile",
    "musdb",
    "museval",
    "stempeg",
    "pretty_midi",
    "midirenderer",
    "pandas",
    "matplotlib",
    "seaborn",
    "papermill",
)
"""Distributions whose versions the manifest records."""

CPU_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd", "bf16")
"""CPU features that change how numbers are computed."""


def save_scores(settings: Profile, scores: pd.DataFrame) -> Path:
    """Write all systems' scores as one table, ``scores/scores.csv``."""
    text = scores[list(SCORE_COLUMNS)].to_csv(index=False, lineterminator="\n")
    return write_atomically(settings.paths.scores / "scores.csv", text)


# ------------------------------------------------------------------------------ manifest


def write_manifest(settings: Profile, *, runs: pd.DataFrame | None = None) -> Path:
    """Write ``manifest.json``: what is needed to explain a difference between two machines.

    The models' cards are written anew too, now that their scores are known.

    Versions, platform, CPU, cores, the profile with its hash, the store's hashes, a summary of
    each run, and hashes of the tables and scores. No paths, no host or user names.

    Parameters
    ----------
    runs
        As ``results.load_runs`` gives them; read if not given.

    Returns
    -------
    pathlib.Path
        The file.
    """
    paths = settings.paths
    runs = load_runs(settings) if runs is None else runs
    manifest = {
        "profile": settings.name,
        "settings": settings.model_dump(mode="json"),
        "settings_hash": settings.section_hash(),
        "store": _store(settings),
        "platform": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": platform.system(),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip() or None,
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "usable_cores": _usable_cores(),
        },
        "versions": _versions(),
        "runs": [_run(row) for _, row in runs.iterrows()],
        "tables": _digests(paths.tables.glob("*.csv")),
        "scores": _digests(paths.scores.glob("*.csv")),
    }
    write_cards(settings)
    return write_atomically(paths.manifest, json_text(manifest))


def _run(row: pd.Series) -> dict:
    keys = (
        "model",
        "seed",
        "steps",
        "epochs",
        "best_epoch",
        "best_val_loss",
        "seconds",
        "precision",
        "threads",
        "store",
        "versions",
        "commit",
    )
    values = {key: row.get(key) for key in keys}
    plain = {
        key: value.item() if hasattr(value, "item") else value for key, value in values.items()
    }
    # JSON knows no infinity and no not-a-number.
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in plain.items()
    }


def _store(settings: Profile) -> dict | None:
    """Hashes of the prepared corpus: of its settings, and of all its audio."""
    path = settings.paths.store / "index.json"
    if not path.is_file():
        return None
    index = read_json(settings, path)
    tracks = index.get("tracks", [])
    lines = [f"{track.get('name')} {track.get('split')} {track.get('sha256')}" for track in tracks]
    splits = [track.get("split") for track in tracks]
    return {
        "settings_hash": index.get("settings_hash"),
        "audio_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "tracks": {split: splits.count(split) for split in sorted(set(splits), key=str)},
    }


def _versions() -> dict[str, str | None]:
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu() -> dict:
    model, flags = platform.processor() or None, set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        model = found.group(1).strip() if found else model
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        flags = set(found.group(1).split()) if found else flags
    return {"model": model, "flags": [flag for flag in CPU_FLAGS if flag in flags]}


def _digests(files) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if not path.name.startswith(".")
    }


# ------------------------------------------------------------------------------ verification


@dataclass(frozen=True)
class Tolerance:
    """How far a kind of column may be from the committed one."""

    kind: str
    columns: str  # a regular expression for the whole name
    limit: float | None  # None: shown, not compared
    relative: bool = False
    unit: str = ""


TOLERANCES = (
    Tolerance("timing", r"seconds|patches_per_second", None),
    Tolerance("machine", r"precision|best_epoch|tracks_better", None),
    Tolerance("test", r"p_(difference|equivalence)|verdict|power|(tracks|seeds)_needed", None),
    Tolerance("loss", r"best_val_loss", 0.25, relative=True),
    Tolerance("bound of an interval", r".*_ci_(low|high)_db", 1.5, unit="dB"),
    Tolerance("energy at silence", r".*_energy_db", 3.0, unit="dB"),
    Tolerance("spread", r".*_std_db", 1.5, unit="dB"),
    Tolerance("score of one excerpt", r"sdr_whole_excerpt_db", 2.0, unit="dB"),
    Tolerance("level near silence", r"silence_.*_db", 6.0, unit="dB"),
    Tolerance("score", r".*_db", 1.0, unit="dB"),
    Tolerance("ratio of levels", r"ratio_.*", 0.15),
    Tolerance("frames", r"(undefined|silent_\w+)_frames", 5.0),
    Tolerance("count or flag", r".*", 0.0),
)
"""The first kind whose expression fits a column's name holds. Trained models differ a little from
machine to machine (threads, instruction sets); counts, flags and words do not."""

KEYS = (
    *("ablation", "model", "system", "study", "reference"),
    *("target", "condition", "metric", "protocol", "aggregation", "seed"),
)


def tolerance_of(column: str) -> Tolerance:
    """The tolerance that holds for a column."""
    return next(kind for kind in TOLERANCES if re.fullmatch(kind.columns, column))


def verify(settings: Profile, *, reference: str = "HEAD") -> int:
    """Compare the current tables with the committed ones and print what differs.

    Parameters
    ----------
    reference
        A git commit.

    Returns
    -------
    int
        Number of tables that differ beyond their tolerances, or are missing.

    Raises
    ------
    ConfigError
        If the project is no git checkout, the commit is unknown, or it holds no tables.
    """
    folder = f"results/{settings.name}/tables"
    committed = _committed(folder, reference)
    differing = 0
    print(f"Tables of profile {settings.name} against {reference}:")
    width = max(len(name) for name in committed)
    for name, text in committed.items():
        path = settings.paths.tables / f"{name}.csv"
        if path.is_file():
            try:
                problems, notes = compare(_read(path.read_text("utf-8")), _read(text))
            except ValueError as error:
                problems, notes = [f"cannot be compared: {error}"], []
        else:
            remedy = f"run `make reproduce PROFILE={settings.name}`"
            problems, notes = [f"is missing now; {remedy}"], []
        differing += bool(problems)
        if not problems:
            print(f"  {name:<{width}}  {'; '.join(notes) or 'equal'}")
            continue
        print(f"  {name:<{width}}  DIFFERS: {problems[0]}")
        for problem in problems[1:6]:
            print(f"  {'':<{width}}  {problem}")
        if len(problems) > 6:
            print(f"  {'':<{width}}  and {len(problems) - 6} more")
    new = sorted({path.stem for path in settings.paths.tables.glob("*.csv")} - set(committed))
    if new:
        print(f"  Not committed, so not compared: {', '.join(new)}.")
    print(
        f"{differing} of {count(len(committed), 'table')} beyond tolerance."
        if differing
        else f"All {count(len(committed), 'table')} agree within tolerance."
    )
    return differing


def _committed(folder: str, reference: str) -> dict[str, str]:
    """Committed tables by name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w./@{}^~-]*", reference):
        raise ConfigError(f"{reference!r} is not the name of a git commit.")
    # "./" makes git take paths from the project's folder, which may lie inside a larger checkout.
    listed = _git("ls-tree", "--name-only", reference, f"./{folder}/")
    names = [line for line in listed.splitlines() if line.endswith(".csv")]
    if not names:
        raise ConfigError(
            f"Nothing to compare with: commit {reference} holds no tables in {folder}; "
            "commit results first or choose another profile."
        )
    return {Path(name).stem: _git("show", f"{reference}:./{name}") for name in sorted(names)}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, check=False, timeout=60
        )
    except FileNotFoundError as error:
        raise ConfigError("`make verify` needs git, which is not installed.") from error
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = reason[-1].removeprefix("fatal: ") if reason else f"exit code {done.returncode}"
        raise ConfigError(
            "The committed results cannot be read, `make verify` needs a git checkout with a "
            f"commit: {why.rstrip('.')}."
        )
    return done.stdout.decode("utf-8", "replace")


def _read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def compare(current: pd.DataFrame, committed: pd.DataFrame) -> tuple[list[str], list[str]]:
    """What differs between two versions of a table.

    Returns
    -------
    problems : list of str
        Differences beyond the tolerances, the largest of each column.
    notes : list of str
        Smaller differences.
    """
    for label, table in (("committed", committed), ("current", current)):
        absent = [
            column for column in current.columns.union(committed.columns) if column not in table
        ]
        if absent:
            return [f"columns {', '.join(absent)} are not in the {label} table"], []
    keys = [column for column in KEYS if column in committed]
    left, right = (table.set_index(keys) for table in (current, committed))
    if left.index.has_duplicates or right.index.has_duplicates:
        return ["rows are there twice"], []
    apart = left.index.symmetric_difference(right.index)
    if len(apart):
        label = "only now" if apart[0] in left.index else "only in the committed table"
        return [f"not the same rows: {len(apart)}, such as {_place(apart[0])} ({label})"], []
    left = left.loc[right.index]
    problems, notes = [], []
    for column in right.columns:
        tolerance = tolerance_of(column)
        problem, note = _difference(left[column], right[column], tolerance)
        problems += [problem] if problem else []
        notes += [note] if note else []
    return problems, notes


def _difference(
    left: pd.Series, right: pd.Series, tolerance: Tolerance
) -> tuple[str | None, str | None]:
    """Sentence about a column beyond tolerance, or about a smaller difference."""
    same = (left == right) | (left.isna() & right.isna())
    if same.all():
        return None, None
    name = left.name
    if tolerance.limit is None:
        return None, f"{name} differs (not compared: {tolerance.kind})"
    numeric = all(
        pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        for column in (left, right)
    )
    if not numeric:
        where = same[~same].index[0]
        return f"{name} is {left[where]}, was {right[where]} at {_place(where)}", None
    gap = (left - right).abs().astype(float).mask(same, 0.0).fillna(float("inf"))
    if tolerance.relative:
        gap = gap / right.abs().clip(lower=1e-12)
    worst = gap.idxmax()
    digits = 2 if tolerance.unit else 4
    unit = f" {tolerance.unit}" if tolerance.unit else " of it" if tolerance.relative else ""
    text = f"{name} up to {number(gap[worst], digits)}{unit} apart (tolerance {tolerance.limit:g})"
    if gap[worst] <= tolerance.limit:
        return None, text
    beyond = count(int((gap > tolerance.limit).sum()), "row")
    return f"{text} in {beyond}, most at {_place(worst)}", None


def _place(key) -> str:
    return ", ".join(str(part) for part in (key if isinstance(key, tuple) else (key,)))


# ------------------------------------------------------------------------------ the web page

SECTIONS = (
    (
        "The question",
        "Does a single U-Net, controlled by a condition vector through FiLM layers, separate "
        "bass, drums, other and vocals as well as four dedicated U-Nets do? Eight models are "
        "trained on the same music: one U-Net per instrument, and four Conditioned U-Nets that "
        "differ in their control network (dense or CNN) and in their FiLM layers (one value per "
        "block, or one per feature map).",
        ("outcome", "differences", "paired_differences", "power"),
    ),
    (
        "The models",
        "All models share one U-Net. A Conditioned U-Net adds a control network that turns the "
        "condition into scales and shifts of the encoder's feature maps.",
        ("models", "architecture_*"),
    ),
    (
        "Training",
        "Budgets are counted in steps, so that they do not depend on the machine; validation "
        "tracks are never trained on.",
        ("training", "training_curves"),
    ),
    (
        "Scores",
        "The unprocessed mixture is the lower bound and the ideal ratio mask the upper bound.",
        (
            "scores_overall",
            "scores_by_instrument",
            "scores_against_parameters",
            "differences_*",
            "published",
        ),
    ),
    (
        "Other measures",
        "What the two protocols do not say: scores without filters, what is left when an "
        "instrument is taken out, what is heard where an instrument is silent, and what the "
        "released code's evaluation does to scores.",
        ("further_scores", "silence", "ablation"),
    ),
    ("Conditions", "What the control networks learned.", ("film_parameters", "conditions_*")),
    ("One song", "Listen and look.", ("spectrograms",)),
    (
        "One real recording",
        "Apart from the test set, the one real excerpt that is at hand offline.",
        ("excerpt",),
    ),
    ("More", "", ("*",)),
)

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Conditioned U-Net: {{ title }}</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2329; background: #fff; margin: 0 auto;
  max-width: 68rem; padding: 0 1rem 4rem; }
h1 { line-height: 1.2; margin: 2rem 0 .5rem; }
h2 { margin: 3rem 0 .5rem; border-top: 1px solid #d6dbe0; padding-top: 1.2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; }
a { color: #00558a; }
p { max-width: 46rem; }
figure { margin: 1.5rem 0 2rem; }
figure img { max-width: 100%; height: auto; }
figcaption, caption { font-size: .87rem; color: #4a525b; text-align: left; padding: .4rem 0; }
.scroll { overflow-x: auto; margin: 1.2rem 0 2rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid #e3e7ea; text-align: left; }
th { border-bottom: 2px solid #98a2ab; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
audio { width: 15rem; height: 2.2rem; }
.note { background: #fff6e0; border-left: 4px solid #c98a00; padding: .6rem 1rem; }
</style>
</head>
<body>
<header>
<h1>One conditioned U-Net against four dedicated ones</h1>
<p>A reproduction of Meseguer-Brocal and Peeters, <em>Conditioned-U-Net: Introducing a Control
Mechanism in the U-Net for Multiple Source Separations</em> (ISMIR 2019), profile
<code>{{ profile }}</code>.</p>
<p class="note">{{ note }}</p>
<nav aria-label="Sections"><ul>
{% for section in sections %}<li><a href="#s{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}{% if notebooks %}<li><a href="#notebooks">Notebooks</a></li>{% endif %}
</ul></nav>
</header>
<main>
{% for section in sections %}
<section aria-labelledby="s{{ loop.index }}">
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% for item in section.content %}
{% if item.kind == "table" %}
<div class="scroll" tabindex="0" role="region" aria-label="Table {{ item.name }}">
<table>
<caption>{{ item.caption }}</caption>
<thead><tr>{% for cell in item.header %}<th scope="col"
{%- if item.numeric[loop.index0] %} class="number"{% endif %}>{{ cell }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in item.rows %}<tr>{% for cell in row %}<td
{%- if item.numeric[loop.index0] %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
<p><a href="../tables/{{ item.name }}.csv">{{ item.name }}.csv</a></p>
</div>
{% else %}
<figure>
<a href="../figures/{{ item.name }}.svg"><img src="../figures/{{ item.name }}.png"
 alt="{{ item.caption }}" loading="lazy"></a>
<figcaption>{{ item.caption }}</figcaption>
</figure>
{% endif %}
{% endfor %}
{% if section.title == "One song" %}{% for song in songs %}
<h3>{{ song.name }}</h3>
<p>Mixture: <audio controls preload="none" aria-label="{{ song.name }}, mixture"
 src="{{ song.mixture }}"></audio></p>
<div class="scroll" tabindex="0" role="region" aria-label="Players for {{ song.name }}">
<table>
<thead><tr><th scope="col">System</th>{% for name in instruments %}<th scope="col">{{ name }}</th>
{%- endfor %}</tr></thead>
<tbody>{% for row in song.rows %}
<tr><th scope="row">{{ row.label }}</th>{% for player in row.players %}<td>{% if player %}
<audio controls preload="none" aria-label="{{ song.name }}, {{ row.label }}, {{ player.name }}"
 src="{{ player.source }}"></audio>{% endif %}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}{% endif %}
</section>
{% endfor %}
{% if notebooks %}
<section aria-labelledby="notebooks">
<h2 id="notebooks">Executed notebooks</h2>
<ul>{% for name in notebooks %}
<li><a href="notebooks/{{ name | urlencode }}.html">{{ name }}</a></li>{% endfor %}
</ul>
</section>
{% endif %}
</main>
{% if manifest %}<footer><p>Versions, machine, settings and hashes:
<a href="../manifest.json">manifest.json</a></p></footer>{% endif %}
</body>
</html>
"""


def build_report(settings: Profile) -> Path:
    """Write the results as a web page that works offline, ``report/index.html``.

    Tables, figures with their captions as alternative text, audio players and the executed
    notebooks; everything from outside is escaped.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ConfigError
        If there are no tables or figures yet.
    """
    paths = settings.paths
    folder = paths.results / "report"
    items = {path.stem: _table_item(path) for path in sorted(paths.tables.glob("*.md"))}
    if not items:
        raise missing(settings, paths.tables / "outcome.md")
    figures = {path.stem: _figure_item(path) for path in sorted(paths.figures.glob("*.png"))}
    if not figures:
        raise missing(settings, paths.figures / "scores_by_instrument.png")
    songs = _songs(settings)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.from_string(_PAGE).render(
        title=settings.title,
        profile=settings.name,
        note=data_note(settings),
        sections=_sections(items, figures, songs),
        songs=songs,
        instruments=INSTRUMENTS,
        notebooks=_notebooks(settings, folder / "notebooks"),
        manifest=paths.manifest.is_file(),
    )
    return write_atomically(folder / "index.html", page)


def _sections(tables: dict, figures: dict, songs: list) -> list[dict]:
    """Sections of the page; each table and figure once, in the first one that names it."""
    left = [*tables.values(), *figures.values()]
    sections = []
    for title, text, patterns in SECTIONS:
        chosen = []
        for pattern in patterns:
            fits = re.compile(re.escape(pattern).replace(r"\*", ".*"))
            chosen += [item for item in left if fits.fullmatch(item["name"])]
            left = [item for item in left if item not in chosen]
        if chosen or (title == "One song" and songs):
            sections.append({"title": title, "text": text, "content": chosen})
    return sections


def _table_item(path: Path) -> dict:
    """A table from its Markdown file: caption, empty line, header, rule, rows."""
    caption, _, body = path.read_text("utf-8").partition("\n\n")
    rows = [
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in body.strip().splitlines()
    ]
    if len(rows) < 2:
        raise ConfigError(f"tables/{path.name} holds no table; delete it and run `make reproduce`.")
    header, rule, *cells = rows
    return {
        "kind": "table",
        "name": path.stem,
        "caption": caption.strip(),
        "header": header,
        "numeric": [mark.endswith(":") for mark in rule],
        "rows": cells,
    }


def _figure_item(path: Path) -> dict:
    caption = path.with_suffix(".txt")
    text = caption.read_text("utf-8").strip() if caption.is_file() else path.stem
    return {"kind": "figure", "name": path.stem, "caption": text}


def _songs(settings: Profile) -> list[dict]:
    """Audio examples: sources of the players, relative to the page."""
    songs = []
    for mixture in sorted(settings.paths.examples.glob("*/mixture.flac")):
        folder = mixture.parent
        systems = [name for name in LABELS if (folder / name).is_dir()]
        rows = []
        for label, place in (("Target", folder), *((LABELS[n], folder / n) for n in systems)):
            files = [place / f"{name}.flac" for name in INSTRUMENTS]
            players = [
                {"name": file.stem, "source": _link(settings, file)} if file.is_file() else None
                for file in files
            ]
            rows.append({"label": label, "players": players})
        songs.append({"name": folder.name, "mixture": _link(settings, mixture), "rows": rows})
    return songs


def _link(settings: Profile, path: Path) -> str:
    from urllib.parse import quote

    return quote(f"../{path.relative_to(settings.paths.results).as_posix()}")


def _notebooks(settings: Profile, folder: Path) -> list[str]:
    """Convert the executed notebooks to web pages; returns their names."""
    sources = sorted(settings.paths.notebooks.glob("*.ipynb"))
    if not sources:
        return []
    from nbconvert import HTMLExporter

    exporter = HTMLExporter()
    # The pages work offline: no scripts from elsewhere.
    for option in ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"):
        if exporter.has_trait(option):
            setattr(exporter, option, "")
    for source in sources:
        page, _ = exporter.from_filename(str(source))
        write_atomically(folder / f"{source.stem}.html", page)
    return [source.stem for source in sources]
