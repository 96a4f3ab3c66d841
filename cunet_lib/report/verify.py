"""What leaves the study: its answer, the report's page, the manifest, and the comparison.

The report is the executed notebook 05 as one page, with the other executed notebooks beside it.
Everything a page needs is in it: it works offline, from a file.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import itables.options
import nbformat
import numpy as np
import pandas as pd
import psutil
import soundfile
import soxr
from IPython.display import HTML, Markdown

from cunet_lib.core.files import (
    code_hash,
    damaged,
    missing,
    read_json,
    sha256,
    write_atomically,
    write_json,
)
from cunet_lib.core.hardware import cpu, usable_cores
from cunet_lib.core.settings import ROOT, ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS, UNETS, VARIANTS
from cunet_lib.evaluation.metrics import SCORE_COLUMNS
from cunet_lib.evaluation.scores import ALL
from cunet_lib.report.records import TRIALS, Table, count, load_songs

VARIABLES = (
    *("CUNET_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"),
    *("TF_NUM_INTEROP_THREADS", "TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "XLA_FLAGS"),
    *("KERAS_BACKEND", "NVIDIA_TF32_OVERRIDE", "ONEDNN_MAX_CPU_ISA"),
)
"""Environment variables that change how numbers are computed; none of them holds a path."""

PACKAGES = (
    *("tensorflow", "keras", "numpy", "scipy", "librosa", "soxr", "soundfile", "musdb"),
    *("museval", "stempeg", "pretty_midi", "midirenderer", "pandas", "matplotlib", "papermill"),
)
"""Packages whose versions the manifest records."""

RUN_KEYS = ("model", "seed", "steps", "epochs", "best_epoch", "best_val_loss", "seconds")
RUN_KEYS += ("precision", "threads", "store", "versions", "commit")


def save_scores(settings: Profile, scores: pd.DataFrame) -> Path:
    """Write all systems' scores as one table, ``scores/scores.csv``."""
    text = scores[list(SCORE_COLUMNS)].to_csv(index=False, lineterminator="\n")
    return write_atomically(settings.paths.scores / "scores.csv", text)


def write_manifest(settings: Profile, runs: pd.DataFrame) -> Path:
    """Write ``manifest.json``: what is needed to explain a difference between two machines.

    Hashed are the tables that this process wrote, not what lay there before.

    Parameters
    ----------
    runs
        As :func:`cunet_lib.report.records.load_runs` gives them.
    """
    paths, index = settings.paths, settings.paths.store / "index.json"
    tracks = read_json(index)["tracks"] if index.is_file() else []
    splits = pd.Series([track["split"] for track in tracks], dtype=str)
    audio = [f"{track.get('name')} {track.get('split')} {track.get('sha256')}" for track in tracks]
    began = psutil.Process().create_time()
    tables = [path for path in paths.tables.glob("*.csv") if path.stat().st_mtime >= began]
    systems = paths.scores.glob("*-seed*.csv")
    corpus, lock = paths.corpus / "corpus.json", ROOT / "requirements.lock"
    manifest = {
        "profile": settings.name,
        "settings": settings.model_dump(mode="json"),
        "settings_hash": settings.section_hash(),
        "seeds": {
            "profile": settings.seed,
            "corpus": settings.data.seed,
            "runs": sorted({int(seed) for seed in runs["seed"]}),
        },
        "corpus_sha256": sha256(corpus) if corpus.is_file() else None,
        "store_sha256": hashlib.sha256("\n".join(audio).encode()).hexdigest() if audio else None,
        "tracks": splits.value_counts().to_dict(),
        "code": {
            "library": code_hash("cunet_lib"),
            "corpus": code_hash("rendered_corpus"),
            "lock": sha256(lock) if lock.is_file() else None,
        },
        "platform": {
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
        },
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        # As pandas writes JSON: plain numbers, and null for not-a-number.
        "runs": json.loads(runs.reindex(columns=RUN_KEYS).to_json(orient="records")),
        "tables": _digests(tables),
        "scores": _digests(systems),
    }
    return write_json(paths.manifest, manifest)


def _digests(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(paths)}


# ------------------------------------------------------------------------------ verification

TOLERANCES = (
    (r"seconds|patches_per_second|precision|best_epoch|tracks_better", None),
    (r"p_difference|p_equivalence|power|tracks_needed", None),
    (r"best_val_loss", 0.001),
    (r".*_(ci_low|ci_high|std)_db", 1.5),
    (r"s[ia]r_.*_db|sdr_whole_excerpt_db", 2.0),
    (r".*_energy_db|silence_.*_db", 6.0),
    # Of 07_conditions: conditions that no network was trained for.
    (r"(everything|sum|together|summed|uncontrolled|controlled|level|difference_quartile)_.*", 3.0),
    (r"ratio_.*|paper_share_of_four|share_of_four", 0.15),
    (r".*_db", 1.0),
    (r"(undefined|silent_\w+)_frames", 5.0),
    (r".*", 0.0),
)
"""How far a column may be from the committed one, by the first expression that fits its name;
None: not compared. Verdicts count as equal if their first words are."""

KEYS = ("ablation", "model", "system", "study", "reference", "target", "condition", "seed")
KEYS += ("metric", "protocol", "aggregation")


def verify(settings: Profile, *, reference: str = "HEAD") -> int:
    """Compare the tables that this run made with the committed ones, and print what differs.

    Parameters
    ----------
    reference
        A git commit.

    Returns
    -------
    int
        Number of tables that differ beyond their tolerances.

    Raises
    ------
    ConfigError
        If the project is no git checkout, the commit is unknown, or it holds no tables.
    """
    committed = _committed(f"results/{settings.name}/tables", reference)
    # Executed notebooks are not committed: a table that one of them shows was made here.
    shown = "".join(path.read_text("utf-8") for path in settings.paths.notebooks.glob("*.ipynb"))
    made = {
        path.stem: path
        for path in sorted(settings.paths.tables.glob("*.csv"))
        if f'table-{path.stem}\\"' in shown
    }
    print(f"Tables of profile {settings.name} against {reference}:")
    width, differing = max(map(len, committed)), 0
    for name in [name for name in committed if name in made]:
        try:
            agrees, words = compare(
                pd.read_csv(made[name]), pd.read_csv(io.StringIO(committed[name]))
            )
        except ValueError as error:
            agrees, words = False, f"cannot be compared: {error}"
        differing += not agrees
        print(f"  {name:<{width}}  {'agrees' if agrees else 'DIFFERS':<7}  {words}")
    absent = [name for name in committed if name not in made]
    compared = len(committed) - len(absent)
    new = [name for name in made if name not in committed]
    for words, names in (("Not made here", absent), ("Not committed", new)):
        if names:
            print(f"{words}: {', '.join(names)}.")
    print(
        f"{compared} compared, {differing} beyond tolerance, {len(absent)} not made here."
        + ("" if compared else f" Run `make reproduce PROFILE={settings.name}` first.")
    )
    return differing


def compare(current: pd.DataFrame, committed: pd.DataFrame) -> tuple[bool, str]:
    """Whether two versions of a table agree, and in words what differs most."""
    columns = set(current).symmetric_difference(committed)
    if columns:
        return False, f"only in one of them: {', '.join(sorted(columns))}"
    keys = [column for column in KEYS if column in committed]
    left, right = (table.set_index(keys) for table in (current, committed))
    if left.index.has_duplicates or right.index.has_duplicates:
        return False, "rows are there twice"
    apart = left.index.symmetric_difference(right.index)
    if len(apart):
        return False, f"not the same rows: {len(apart)}, such as {_place(apart[0])}"
    gaps = [_gap(left[column].loc[right.index], right[column]) for column in right]
    beyond = [words for excess, words in gaps if excess > 1]
    if beyond:
        return False, "; ".join(beyond[:2]) + (
            f"; and {len(beyond) - 2} more" if beyond[2:] else ""
        )
    excess, words = max(gaps)
    return True, words if excess > 0 else "equal"


def _gap(left: pd.Series, right: pd.Series) -> tuple[float, str]:
    """How far two columns are apart, as a share of the tolerance, and in words."""
    if left.name == "verdict":
        left, right = (column.str.split(" ").str[0] for column in (left, right))
    limit = next(limit for words, limit in TOLERANCES if re.fullmatch(words, left.name))
    differs = ~((left == right) | (left.isna() & right.isna()))
    if limit is None or not differs.any():
        return 0.0, ""
    numeric = all(
        pd.api.types.is_numeric_dtype(each) and each.dtype != bool for each in (left, right)
    )
    if not numeric:
        where = differs.idxmax()
        words = f"{left.name} differs in {differs.sum()} of {count(len(left), 'row')}"
        return float("inf"), f"{words}, {_place(where)}: {left[where]}, was {right[where]}"
    gap = (left - right).abs().astype(float).mask(~differs, 0.0).fillna(float("inf"))
    words = f"{left.name} by at most {gap.max():.3g} (tolerance {limit:g}, {_place(gap.idxmax())})"
    return gap.max() / limit if limit else float("inf"), words


def _place(key) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)


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
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError("`make verify` needs git, which is not installed.") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = said[0].removeprefix("fatal: ").rstrip(".") if said else f"exit {done.returncode}"
        raise ConfigError(
            "The committed results cannot be read; `make verify` needs a git checkout with a "
            f"commit. Git says: {why}."
        )
    return done.stdout.decode("utf-8", "replace")


# ------------------------------------------------------------------------------ the page

METHODS = ROOT / "docs" / "methods.md"
"""What scores and tests are; goes with the report as a page."""

REPORT = "05_plot"
"""The notebook that is the report."""

PLAY_RATE = 16000
"""Hz; the lowest rate that browsers play everywhere and that holds all of 8192 Hz audio."""

# ------------------------------------------------------------------------------ the answer


def answer(settings: Profile, v4: Table, v3: Table, runs: pd.DataFrame) -> Markdown:
    """The study's answer in a sentence, and what it rests on.

    Parameters
    ----------
    v4, v3
        Tables of differences by both protocols, as ``tables.differences_table`` makes them.
    runs
        As ``records.load_runs`` gives them.
    """
    frames = v4.frame, v3.frame
    apart = [_apart(frame.loc[frame["target"] == ALL, "difference_mean_db"]) for frame in frames]
    worse, better, equal = (
        [int(frame["verdict"].str.contains(word).sum()) for frame in frames]
        for word in ("worse", "better", "equivalent")
    )
    tracks = count(int(v4.frame["tracks"].max()), "test song")
    margin = settings.statistics.margin_db
    first = (
        f"Over all instruments, the C-U-Nets score {apart[0]} the four dedicated U-Nets by BSS "
        f"Eval v4 and {apart[1]} them by v3, the paper's protocol; of {len(v4.frame)} comparisons "
        f"{worse[0]} (v4) and {worse[1]} (v3) are significantly worse, {better[0]} and {better[1]} "
        "better."
    )
    rest = (
        f"Means over {tracks}. Significant: after correction for all comparisons of a protocol; "
        f"{equal[0]} and {equal[1]} are equivalent to within {margin:g} dB, and what is neither is "
        f"undecided. {_budget(settings, runs)}"
    )
    if settings.name in TRIALS:
        rest += " **This profile shows that everything runs and is no verdict.**"
    return Markdown(f"**{first}**\n\n{rest}")


def _apart(differences: pd.Series) -> str:
    """Such as ``"0.5 to 0.6 dB below"``; takes the differences of each C-U-Net, in dB."""
    low, high = differences.min(), differences.max()
    if low < 0 < high:
        return f"between {-low:.2f} dB below and {high:.2f} dB above"
    near, far = sorted((abs(low), abs(high)))
    span = f"{near:.2f}" if f"{near:.2f}" == f"{far:.2f}" else f"{near:.2f} to {far:.2f}"
    return f"{span} dB {'below' if high <= 0 else 'above'}"


def _budget(settings: Profile, runs: pd.DataFrame) -> str:
    """What a C-U-Net had in parameters, steps and mixtures, beside the four U-Nets."""
    totals = runs.assign(mixtures=runs["steps"] * runs["batch_size"])
    totals = totals.groupby("model")[["parameters", "steps", "mixtures"]].mean()
    shared = totals[totals.index.isin(VARIANTS)].mean()
    four = totals[totals.index.isin(UNETS)].sum()
    shared["mixtures"] /= settings.train.conditions_per_mixture
    share = {name: f"{shared[name] / four[name]:.0%}" for name in four.index}
    return (
        f"On average a C-U-Net has {share['parameters']} of the four U-Nets' parameters and was "
        f"trained for {share['steps']} of their steps, on {share['mixtures']} of their mixtures."
    )


# ------------------------------------------------------------------------------ players


def players(settings: Profile, seconds: float = 10.0) -> HTML:
    """One player per song that was kept, which changes between sounds without losing its place."""
    blocks = []
    for song, sounds in load_songs(settings, seconds).items():
        peak = max(float(np.abs(sound).max(initial=0.0)) for sound in sounds.values()) or 1.0
        named = {name: _mp3(sound / peak, settings) for name, sound in sounds.items()}
        first = named.pop("mixture")
        options = [f'<option value="{first}">Mixture</option>']
        for instrument in INSTRUMENTS:
            options.append(f'<optgroup label="{instrument}">')
            for name, source in named.items():
                system, _, target = name.rpartition("/")
                if target == instrument:
                    label = html.escape(f"{instrument}: {LABELS.get(system, system) or 'target'}")
                    options.append(f'<option value="{source}">{label}</option>')
            options.append("</optgroup>")
        blocks.append(
            f'<p class="cunet-player"><b>{html.escape(song)}</b><br>'
            f'<audio controls loop preload="metadata" src="{first}"></audio> '
            f'<select aria-label="what is heard" onchange="{_CHANGE}">{"".join(options)}</select>'
        )
    return HTML("</p>".join(blocks) + "</p>")


_CHANGE = (
    "const p = this.parentNode.querySelector('audio'), t = p.currentTime, on = !p.paused;"
    " p.src = this.value; p.currentTime = t; if (on) p.play()"
)


def _mp3(sound: np.ndarray, settings: Profile) -> str:
    """A sound ``(samples,)`` within [-1, 1] as address of its own."""
    heard = soxr.resample(np.asarray(sound, np.float32), settings.signal.sample_rate, PLAY_RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(0.95 * heard, -1, 1), PLAY_RATE, format="MP3")
    return f"data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ------------------------------------------------------------------------------ pages

_TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}{{ super() }}{{ resources.head }}{%- endblock -%}
{%- block body_header -%}{{ super() }}{{ resources.above }}{%- endblock -%}
{%- block body_footer -%}{{ resources.below }}{{ super() }}{%- endblock -%}
"""
"""nbconvert's page without what it loads from the web."""

_STYLE = """<style>
main { max-width: 1150px; margin: 0 auto; padding: 0 12px; }
body.jp-Notebook { padding: 0; }
.jp-Cell, .jp-OutputArea-child { padding: 0 !important; }
.jp-OutputPrompt, .jp-InputPrompt, .jp-Collapser { display: none !important; }
.jp-RenderedHTMLCommon { padding-right: 0 !important; overflow-wrap: break-word; }
.jp-RenderedHTMLCommon h1 { font-size: 1.5em; margin: 0.5em 0; }
.cunet-table { overflow: auto; max-width: 100%; max-height: 26em; }
.cunet-table thead { position: sticky; top: 0; z-index: 2; background: white; }
.jp-RenderedHTMLCommon .cunet-table table.dataTable {
  margin: 0; font-size: 12.5px; table-layout: auto; width: auto !important; }
.cunet-table .dt-layout-row:has(.dt-layout-cell:empty) { display: none; }
.cunet-table .dt-layout-cell { overflow: visible !important; }
.cunet-table :is(th, td) { white-space: nowrap; text-align: left !important; }
.jp-RenderedHTMLCommon .cunet-table :is(th, td) { padding: 3px 10px !important; }
.jp-RenderedHTMLCommon .cunet-table thead th { padding-right: 26px !important; }
.cunet-table :is(th, td):first-child { position: sticky; left: 0; background: white; z-index: 1; }
.cunet-player select { max-width: 100%; font-size: 1em; }
.cunet-links { padding: 0 0 2em; }
</style>"""

_BACK = '<p><a href="index.html">Back to the report</a></p>'

_SORT = """<script type="module">
const { ITable } = await import("data:text/javascript;base64,%s");
const plain = { paging: false, searching: false, info: false, order: [], autoWidth: false };
for (const table of document.querySelectorAll(".cunet-table table")) new ITable(table, plain);
</script>"""


def write_page(settings: Profile) -> Path:
    """Write ``report/index.html`` from the executed notebook 05, and a page for each other one.

    Returns
    -------
    pathlib.Path
        The page to open.

    Raises
    ------
    ConfigError
        If the notebook has not run yet, or an executed notebook is damaged.
    """
    folder = settings.paths.results / "report"
    sources = {path.stem: path for path in sorted(settings.paths.notebooks.glob("*.ipynb"))}
    if REPORT not in sources:
        raise missing(settings.paths.notebooks / f"{REPORT}.ipynb")
    others = [name for name in sources if name != REPORT]
    for name in others:
        page = folder / f"{name}.html"
        if not page.is_file() or page.stat().st_mtime < sources[name].stat().st_mtime:
            text = _page(_read(sources[name]), name, above=_BACK, head=_STYLE)
            write_atomically(page, text)
    for page in folder.glob("*.html"):
        if page.stem not in (*others, "methods", "index"):
            page.unlink()
    methods = nbformat.v4.new_markdown_cell(METHODS.read_text("utf-8"))
    methods = nbformat.v4.new_notebook(cells=[methods])
    write_atomically(folder / "methods.html", _page(methods, "methods", above=_BACK, head=_STYLE))
    bundle = Path(itables.options.dt_bundle)
    head = f"<style>{bundle.with_suffix('.css').read_text('utf-8')}</style>{_STYLE}"
    below = _links(others) + _SORT % base64.b64encode(bundle.read_bytes()).decode()
    text = _page(_read(sources[REPORT]), REPORT, hidden=True, head=head, below=below)
    return write_atomically(
        folder / "index.html", text.replace("../docs/methods.md", "methods.html")
    )


def _links(names: Sequence[str]) -> str:
    links = " · ".join(f'<a href="{name}.html">{html.escape(name)}</a>' for name in names)
    return (
        '<div class="jp-RenderedHTMLCommon cunet-links"><h2>The executed notebooks</h2>'
        f"<p>{links}</p></div>"
    )


def _read(source: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(source, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise damaged(source, "it is no notebook") from error


def _page(notebook: nbformat.NotebookNode, name: str, *, hidden: bool = False, **parts: str) -> str:
    """A notebook as a page; ``hidden``: without code."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(raw_template=_TEMPLATE, exclude_input=hidden)
    about = {"head": "", "above": "", "below": "", **parts, "metadata": {"name": name}}
    return exporter.from_notebook_node(notebook, about)[0]
