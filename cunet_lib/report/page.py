"""The report: its answer, its players, and the executed notebooks as pages.

The report is the executed notebook 05 as one page, with the other executed notebooks beside it.
Everything a page needs is in it: it works offline, from a file.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import itables.options
import nbformat
import numpy as np
import pandas as pd
import soundfile
import soxr
from IPython.display import HTML, Markdown

from cunet_lib.core.files import damaged, missing, write_atomically
from cunet_lib.core.settings import ROOT, Profile
from cunet_lib.core.systems import INSTRUMENTS, LABELS, UNETS, VARIANTS
from cunet_lib.evaluation.scores import ALL
from cunet_lib.report.records import TRIALS, Table, count, load_songs

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
