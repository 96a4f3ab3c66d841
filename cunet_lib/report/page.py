"""The report: its answer, its players, and the executed notebooks as pages.

The report is the executed notebook 05 as one page, with the other executed notebooks beside it.
Everything a page needs is in it: it works offline, from a file.
"""

from __future__ import annotations

import base64
import html
import io
import re
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
from cunet_lib.core.systems import INSTRUMENTS, LABELS, VARIANTS
from cunet_lib.evaluation.metrics import SDR_V3, SDR_V4
from cunet_lib.evaluation.published import OVERALL, load_published
from cunet_lib.evaluation.scores import ALL
from cunet_lib.report.records import TRIALS, Table, count, executed, listed, load_songs

REPORT = "05_plot"
"""The notebook that is the report."""

PLAY_RATE = 16000
"""Hz; the lowest rate that browsers play everywhere and that holds all of 8192 Hz audio."""

# ------------------------------------------------------------------------------ the answer


def answer(settings: Profile, differences: Table, training: Table, models: Table) -> Markdown:
    """The study's answer in plain words: how far apart, where clearly, and at what cost.

    The same words stand in the report, at the end of notebook 05 and, of the profile ``study``, in
    README.md. Profiles that train for minutes give no answer, and say so. The tables are those of
    :mod:`cunet_lib.report.tables`.
    """
    cost = _budget(settings, training.frame.set_index("model"), models.frame.set_index("model"))
    data = differences.caption[differences.caption.index("Data: ") :]
    if settings.name in TRIALS:
        first = (
            f"**Profile `{settings.name}` shows that everything runs: it gives no answer. Its "
            "trainings end long before they are done, and its scores come out otherwise on "
            "another machine.** The profile `study` is the one that answers: see README.md."
        )
        return Markdown("\n* ".join([f"{first}\n", cost, data]))
    table, margin = differences.frame, settings.statistics.margin_db
    progressive = table["model"].map(lambda model: VARIANTS[model].progressive)
    further = table["model"].map(lambda model: VARIANTS[model].shares)
    plain, beside, beyond = table[progressive], table[~progressive & ~further], table[further]
    if plain.empty:
        plain, beside = beside, plain
    if plain.empty:
        plain, beyond = beyond, plain
    songs = count(int(table["tracks"].max()), "test song")
    by_v4, by_v3 = _apart(plain)
    first = (
        f"**On {songs}, the C-U-Nets score {by_v4} the four dedicated U-Nets by BSS Eval v4, "
        f"and {by_v3} them by v3, the paper's protocol (means over the instruments).**"
    )
    sides = {"clearly below": [], "clearly above": [], "not clearly apart": []}
    for target in INSTRUMENTS:
        rows = plain[plain["target"] == target]
        below, above = rows["difference_ci_high_db"] < 0, rows["difference_ci_low_db"] > 0
        sides[[*sides][0 if below.all() else 1 if above.all() else 2]].append(target)
    said = [f"{side} for {listed(targets)}" for side, targets in sides.items() if targets]
    parts = [plain[plain["protocol"] == measure.protocol] for measure in (SDR_V4, SDR_V3)]
    counted = []
    for version, part in zip(("v4", "v3"), parts, strict=True):
        kinds = ("worse", "better", "equivalent", "undecided")
        numbers = [f"{part['verdict'].str.startswith(kind).sum()} {kind}" for kind in kinds]
        counted.append(f"By {version}, {listed(numbers)}.")
    words = [
        f"They are {', and '.join(said)}. Clearly means: by both protocols, the "
        f"{1 - settings.statistics.alpha:.0%} interval of every C-U-Net's mean difference lies on "
        "that side of 0.",
        f"Counted here are {len(parts[0])} comparisons by each protocol: these C-U-Nets, each "
        f"instrument and the mean. {' '.join(counted)} Equivalent means: the mean difference "
        f"was shown to lie within ±{margin:g} dB, a margin that was set beforehand. Tests of a "
        "difference are corrected for all comparisons of a protocol, those of further C-U-Nets "
        "included.",
        cost,
        data,
    ]
    if len(beside):
        by_v4, by_v3 = _apart(beside)
        text = f"Trained without progressive conditions (np), the C-U-Nets score {by_v4} the "
        words.insert(2, f"{text}dedicated U-Nets by v4, and {by_v3} them by v3.")
    share = models.frame.set_index("model")["share_of_four"]
    computed = training.frame.groupby("model")["teraflop"].mean()
    for model, rows in beyond.groupby("model", sort=False):
        by_v4, by_v3 = _apart(rows)
        text = f"Beyond the paper, one network whose masks add up to one ({LABELS[model]}) scores "
        text += f"{by_v4} the dedicated U-Nets by v4, and {by_v3} them by v3, with "
        text += f"{share[model]:.0%} of their parameters and "
        text += f"{computed[model] / computed['unet']:.0%} of what their training computes. "
        verdicts = rows[rows["target"] == ALL].set_index("protocol")["verdict"]
        text += f"The verdicts over all instruments: {verdicts[SDR_V4.protocol]} by v4, "
        text += f"{verdicts[SDR_V3.protocol]} by v3."
        words.insert(-2, text)
    return Markdown("\n* ".join([f"{first}\n", *words]))


def _apart(table: pd.DataFrame) -> list[str]:
    """Such as ``"0.5 to 0.6 dB below"``, by v4 and by v3: mean differences of each C-U-Net."""
    told = []
    for measure in (SDR_V4, SDR_V3):
        rows = table[(table["target"] == ALL) & (table["protocol"] == measure.protocol)]
        low, high = rows["difference_mean_db"].min(), rows["difference_mean_db"].max()
        near, far = sorted((abs(low), abs(high)))
        span = f"{near:.2f}" if f"{near:.2f}" == f"{far:.2f}" else f"{near:.2f} to {far:.2f}"
        if low < 0 < high:
            told.append(f"between {-low:.2f} dB below and {high:.2f} dB above")
        else:
            told.append(f"{span} dB {'below' if high <= 0 else 'above'}")
    return told


def _budget(settings: Profile, training: pd.DataFrame, models: pd.DataFrame) -> str:
    """What a C-U-Net had in parameters, steps and mixtures, and what ended the trainings."""
    sizes, costs = models["parameters"], training[["steps", "mixtures"]].groupby("model").mean()
    there = [model for model in VARIANTS if model in costs.index]
    papers = [model for model in there if not VARIANTS[model].shares]
    shared, whose = papers or there, "the paper's" if papers else "the"
    steps, mixtures = costs.loc[shared].mean() / costs.loc["unet"]
    size = sizes[shared].mean() / sizes["unet"]
    runs = training[training["best_epoch"].notna()]
    allowed = runs.index.isin(VARIANTS)
    allowed = np.where(allowed, settings.train.cunet_epochs, settings.train.unet_epochs)
    early = int((runs["epochs"] < allowed).sum())
    ended = {
        0: f"The budget of epochs ended all {len(runs)} trainings.",
        len(runs): f"Validation ended all {len(runs)} trainings.",
    }.get(early, f"Validation ended {early} of {len(runs)} trainings, the budget the others.")
    return (
        f"On average {whose} C-U-Nets ({len(shared)}) have {size:.0%} of the parameters of the "
        f"four U-Nets together. Their trainings took {steps:.0%} of the U-Nets' steps and "
        f"{mixtures:.0%} of their mixtures. {ended}"
    )


def others() -> Markdown:
    """What the paper concludes, and what an independent rerun found; differences alone."""
    study = "Kadandale et al. 2020"
    rows = load_published()
    rows = rows[(rows["study"] == study) & (rows["metric"] == "SDR")]
    means = rows.pivot_table(index="target", columns="system", values="mean_db")
    below = means["Dedicated U-Nets (x4)"] - means["C-U-Net"]
    each = below[list(INSTRUMENTS)]
    return Markdown(
        "The paper's authors conclude that one C-U-Net separates several instruments \"without "
        f'losing any performance". An independent rerun on MUSDB18 ({study}, BSS Eval v3) found '
        f"its C-U-Net {each.min():.2f} to {each.max():.2f} dB below dedicated U-Nets, instrument "
        f"by instrument, and {below[OVERALL]:.2f} dB over all. Only such differences compare with "
        "those here, and only roughly: data, protocol and training differ."
    )


# ------------------------------------------------------------------------------ players


def players(settings: Profile) -> HTML:
    """One player per song that was kept: choose what is heard, and the place in time stays."""
    blocks = []
    for place, (song, sounds) in enumerate(load_songs(settings).items()):
        peak = max(float(np.abs(sound).max(initial=0.0)) for sound in sounds.values()) or 1.0
        sources = {name: _mp3(sound / peak, settings) for name, sound in sounds.items()}
        systems = dict.fromkeys(name.rpartition("/")[0] for name in sounds)
        rows = {
            f"what-{place}": {name: name for name in ("mixture", *INSTRUMENTS)},
            f"from-{place}": {system: LABELS.get(system, "target") for system in systems},
        }
        buttons = "".join(
            f'<label><input type="radio" name="{group}" value="{value}"'
            f"{'' if number else ' checked'}> {html.escape(label)}</label>{last}"
            for group, row in rows.items()
            for number, (value, label) in enumerate(row.items())
            for last in ["<br>" if number == len(row) - 1 else " "]
        )
        data = "".join(f'<data value="{key}" title="{s}"></data>' for key, s in sources.items())
        blocks.append(
            f'<div class="cunet-player" onchange="{_CHANGE}"><b>{html.escape(song)}</b><br>'
            f'<audio controls loop preload="metadata" src="{sources["mixture"]}"></audio><br>'
            f"{buttons}{data}</div>"
        )
    return HTML("".join(blocks))


_CHANGE = (
    "const chosen = (group) => this.querySelector(`[name^=${group}]:checked`).value,"
    " what = chosen('what'), from = what == 'mixture' ? '' : chosen('from'),"
    " key = from ? `${from}/${what}` : what, p = this.querySelector('audio'),"
    " t = p.currentTime, on = !p.paused;"
    " p.src = [...this.querySelectorAll('data')].find((each) => each.value == key).title;"
    " p.currentTime = t; if (on) p.play()"
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
{%- block any_cell scoped -%}{{ cell.metadata.before }}{{ super() }}{%- endblock -%}
{%- block body_footer -%}{{ resources.below }}{{ super() }}{%- endblock -%}
"""
"""nbconvert's page without what it loads from the web."""

_STYLE = """<style>
main { max-width: 1150px; margin: 0 auto; padding: 0 12px; }
body.jp-Notebook { padding: 0; }
.jp-Cell, .jp-OutputArea-child { padding: 0 !important; }
.jp-OutputPrompt, .jp-InputPrompt, .jp-Collapser { display: none !important; }
.jp-RenderedHTMLCommon { padding: 0 !important; overflow-wrap: break-word; }
.jp-RenderedHTMLCommon :is(p, ul) { margin: 0 0 0.5em !important; }
.jp-RenderedHTMLCommon h1 { font-size: 1.5em; margin: 0.3em 0; }
.cunet-table { overflow: auto; max-width: 100%; max-height: 19em; }
.cunet-table thead { position: sticky; top: 0; z-index: 2; background: white; }
.jp-RenderedHTMLCommon .cunet-table table.dataTable {
  margin: 0 !important; font-size: 12.5px; table-layout: auto; width: auto !important; }
.cunet-table .dt-layout-row:has(.dt-layout-cell:empty) { display: none; }
.cunet-table .dt-layout-cell { overflow: visible !important; margin: 0 !important; }
.cunet-table :is(th, td) { white-space: nowrap; text-align: left !important; }
.jp-RenderedHTMLCommon .cunet-table :is(th, td) { padding: 3px 10px !important; }
.jp-RenderedHTMLCommon .cunet-table thead th { padding-right: 26px !important; }
.cunet-table :is(th, td):first-child { position: sticky; left: 0; background: white; z-index: 1; }
.cunet-player { margin: 0.6em 0; }
.cunet-player :is(audio, label) { vertical-align: middle; }
.cunet-player label { display: inline-block; padding: 3px 6px 3px 0; font-size: 13px; }
details { border-top: 1px solid #ddd; }
summary { padding: 0.5em 0; font: bold 16px sans-serif; cursor: pointer; }
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
    sources = executed(settings)
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
    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    methods = nbformat.v4.new_markdown_cell(text)
    methods = nbformat.v4.new_notebook(cells=[methods])
    write_atomically(folder / "methods.html", _page(methods, "methods", above=_BACK, head=_STYLE))
    bundle = Path(itables.options.dt_bundle)
    head = f"<style>{bundle.with_suffix('.css').read_text('utf-8')}</style>{_STYLE}"
    report = _read(sources[REPORT])
    links = " · ".join(f'<a href="{name}.html">{html.escape(name)}</a>' for name in others)
    below = _fold(report) + "<details><summary>The executed notebooks</summary>"
    below += f'<p class="jp-RenderedHTMLCommon">{links}</p></details>'
    below += _SORT % base64.b64encode(bundle.read_bytes()).decode()
    text = _page(report, REPORT, hidden=True, head=head, below=below)
    # The data are named once, below the answer.
    text = re.sub(r" Data: [^<]*(?=</small>)", "", text)
    text = text.replace("../docs/methods.md", "methods.html")
    return write_atomically(folder / "index.html", text)


def _fold(notebook: nbformat.NotebookNode) -> str:
    """Fold each section, from its heading on; returns what closes the last one.

    Cells with the tag ``repeated`` stand in the notebook alone.
    """
    closed, cells = "", []
    for cell in notebook.cells:
        if "repeated" in cell.metadata.get("tags", ()):
            continue
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            title, _, cell.source = cell.source.removeprefix("## ").partition("\n")
            opened = f"<details><summary>{html.escape(title)}</summary>"
            cell.metadata["before"], closed = closed + opened, "</details>"
        cells.append(cell)
    notebook.cells = cells
    cells[0].source = cells[0].source.replace("# 05 · ", "# ")
    return closed


def _read(source: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(source, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise damaged(source, "it is no notebook") from error


def _page(notebook: nbformat.NotebookNode, name: str, *, hidden: bool = False, **parts: str) -> str:
    """A notebook as a page; ``hidden``: without code."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(raw_template=_TEMPLATE, exclude_input=hidden)
    return exporter.from_notebook_node(notebook, {**parts, "metadata": {"name": name}})[0]
