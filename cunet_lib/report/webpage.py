"""The report: the study as web pages in one folder, which work offline and from a file.

:func:`build_report` tells the story in order, from what the study left behind: tables, figures,
audio, executed notebooks and the manifest. Every number in it is read from a table. All that the
pages show or link to is copied into the folder, so it can be moved, zipped or served as it is. A
part that is not there yet is a sentence that says what makes it.

The words and the layout are in ``templates``.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from cunet_lib.core.files import replacing, write_atomically
from cunet_lib.core.processes import map_tracks
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS
from cunet_lib.report.records import LABELS, data_note, missing, read_json
from cunet_lib.report.story import (
    Table,
    answer_of,
    cells_of,
    deviations,
    document,
    excerpt_sentence,
    facts_of,
    plain,
    split_caption,
    table_of,
)

TEMPLATES = Path(__file__).parent / "templates"
NOTEBOOK_TEMPLATE = "notebook.html.j2"

CHAPTERS = {
    "models": ("models", "architecture_unet", "architecture_*"),
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
    "differences_v3": "The same by the paper's protocol",
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
RECORD_TITLES = {
    "runs": "Training runs",
    "tables": "Hashes of the tables",
    "scores": "Hashes of the scores",
}
"""Headings of the manifest's parts, where their name does not say enough."""


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
    shared = {table.name for table in tables}
    for figure in figures:
        if figure.name in shared:  # no two headings alike
            figure.title += ", as a figure"
    for table in tables:
        csv = paths.tables / f"{table.name}.csv"
        table.download = folder.add(csv, f"tables/{csv.name}") if csv.is_file() else None
    manifest = read_json(settings, paths.manifest) if paths.manifest.is_file() else None
    page = _environment().get_template("report.html.j2")
    text = page.render(
        title=settings.title,
        profile=settings.name,
        note=data_note(settings),
        answer=answer_of(settings, {table.name: table for table in tables}),
        facts=facts_of(settings, manifest),
        chapters=_chapters([*tables, *figures]),
        songs=_songs(settings, folder),
        deviations=deviations(settings),
        document=document(),
        excerpt=excerpt_sentence(settings),
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


def _heading(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _table_item(path: Path) -> Table:
    """A table from its Markdown file: caption, empty line, header, rule, rows."""
    caption, _, body = path.read_text("utf-8").partition("\n\n")
    rows = [cells_of(line) for line in body.strip().splitlines()]
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise ConfigError(f"tables/{path.name} holds no table; delete it and run `make reproduce`.")
    header, _, *lines = rows
    lead, rest = split_caption(caption)
    return table_of(
        path.stem,
        header,
        lines,
        title=_heading(path.stem),
        lead=lead,
        rest=rest,
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
        # Starting a process costs as much as two conversions.
        workers = None if len(stale) > 4 else 1
        map_tracks(_convert, stale, total=len(stale), label="notebooks shown", workers=workers)
    return [
        {"address": _address(f"notebooks/{source.stem}.html"), **_about_notebook(source)}
        for source in sources
    ]


def _convert(source: Path, target: Path) -> None:
    """Write one executed notebook as a page that loads nothing from elsewhere."""
    import nbformat

    exporter = _exporter()
    try:
        notebook = nbformat.read(source, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise _unreadable(source) from error
    # A template that is missing is no fault of the notebook: its own error tells.
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": source.stem}})
    write_atomically(target, page)


def _unreadable(source: Path) -> ConfigError:
    return ConfigError(
        f"notebooks/{source.name} cannot be read; delete it and run `make reproduce`."
    )


@functools.cache
def _exporter():
    """The exporter of nbconvert, made once in each process."""
    from nbconvert import HTMLExporter

    return HTMLExporter(raw_template=(TEMPLATES / NOTEBOOK_TEMPLATE).read_text("utf-8"))


def _about_notebook(source: Path) -> dict[str, str]:
    """Name, title (its first heading) and duration of an executed notebook."""
    try:
        content = json.loads(source.read_text("utf-8"))
        prose = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown"]
        seconds = content.get("metadata", {}).get("papermill", {}).get("duration")
        seconds = None if seconds is None else float(seconds)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(source) from error
    headings = (re.match(r"#+ (.+)", text) for text in prose)
    title = next((found[1] for found in headings if found), source.stem)
    title = re.sub(r"^\d+ · ", "", title)  # the name has the number
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
            title = RECORD_TITLES.get(name, _heading(name))
            tables.append(table_of(f"record-{name}", header, lines, title=title, numeric=False))
    return tables


def _flat(content: Mapping, prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)
