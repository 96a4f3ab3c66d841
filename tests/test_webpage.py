"""The report: structure, links, names from outside, missing parts; without a browser."""

import itertools
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cunet_lib.core import settings as config
from cunet_lib.core.files import write_json
from cunet_lib.report import story, webpage
from cunet_lib.report.figures import Canvas, save_figure
from cunet_lib.report.tables import save_table

# No file name holds a slash, so the closing tag has a look-alike.
EVIL = "<script>alert(1)<\N{FRACTION SLASH}script>"
ODD = 'A & B #2, 100%? "é" + it\'s; a\\b'
EVIL_TEXT = "<script>alert(1)</script>"

VOID = {"meta", "link", "img", "br", "hr", "input", "source"}


class Page(HTMLParser):
    """A page's elements; parsing fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.open, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def images(self):
        return self.of("img")

    @property
    def addresses(self):
        return [
            (tag, attrs[key])
            for tag, attrs in self.elements
            for key in ("href", "src")
            if key in attrs
        ]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


# ------------------------------------------------------------------------------ made-up results


def write_results(settings, songs=(EVIL, ODD)):
    """Small results with everything that a report can show."""
    folder = settings.paths.tables
    models = ["mixture", "unet", *config.VARIANTS, "ideal_ratio_mask"]
    means = [-6.5, 8.25, 5.0, 8.125, 4.0, 7.875, math.inf]
    scores = pd.DataFrame({"model": models, "target": "all", "tracks": 12, "sdr_v4_mean_db": means})
    shown = pd.DataFrame({"Model": models, "SDR v4, dB": [f"{mean:.2f} ± 1.00" for mean in means]})
    save_table(scores, folder, "scores_overall", "Scores of all. SDR v4: in dB.", display=shown)
    write_differences(settings)
    outcome = [(m, t, True) for m in models[1:-1] for t in config.INSTRUMENTS]
    frame = pd.DataFrame(outcome, columns=["model", "target", "passed"])
    save_table(frame, folder, "outcome", "Outcome: 20 of 20 medians are high enough.")
    shares = [0.25, 1.0, 0.26, 0.31, 0.26, 0.27]
    sizes = {"model": ["unet_x1", *models[1:-1]], "share_of_four": shares}
    save_table(pd.DataFrame(sizes), folder, "models", "Models and sizes.")
    excerpt = pd.DataFrame({"model": ["mixture", "unet"], "target": "bass"})
    excerpt["sdr_whole_excerpt_db"] = [-2.5, 1.5]
    save_table(excerpt, folder, "excerpt", "One real excerpt.")
    for name in ("architecture_unet", "scores_by_instrument", "film_parameters", "spectrograms"):
        save_figure(Canvas(figsize=(1, 1)), settings.paths.figures, name, f"Picture {name}. More.")
    manifest = {
        "profile": settings.name,
        "settings": settings.model_dump(mode="json"),
        "store": {"tracks": {"test": 12, "train": 40, "valid": 8}},
        "platform": {"cpu": {"model": EVIL_TEXT, "flags": ["avx", "fma"]}, "cores": 2},
        "runs": [{"model": "unet_bass", "seed": 0, "versions": {"keras": "3"}, "commit": None}],
        "tables": {},
    }
    write_json(settings.paths.manifest, manifest)
    for song in songs:
        write_song(settings, song)


def write_differences(settings, verdicts=None):
    """Verdicts per C-U-Net, all targets alike."""
    verdicts = verdicts or dict.fromkeys(config.VARIANTS, "undecided") | {
        "dense_complex": "equivalent (worse by less than the margin)",
        "dense_simple": "worse",
    }
    rows = [
        (model, target, -0.125, -0.3, 0.05, 0.5, verdict)
        for model, verdict in verdicts.items()
        for target in ("all", *config.INSTRUMENTS)
    ]
    columns = ["model", "target", "difference_mean_db", "difference_ci_low_db"]
    columns += ["difference_ci_high_db", "margin_db", "verdict"]
    frame = pd.DataFrame(rows, columns=columns)
    save_table(frame, settings.paths.tables, "differences", "Differences per song.")


def write_song(settings, name):
    rate, folder = settings.signal.sample_rate, settings.paths.examples / name
    sound = 0.1 * np.sin(2 * np.pi * 220 * np.arange(rate) / rate)
    for system in ("", "mixture", "unet", "dense_complex", "my <b>model</b>".replace("/", "-")):
        (folder / system).mkdir(parents=True, exist_ok=True)
        for instrument in config.INSTRUMENTS:
            soundfile.write(folder / system / f"{instrument}.flac", sound, rate)
    soundfile.write(folder / "mixture.flac", sound, rate)


def write_notebook(settings, name, title, printed):
    output = new_output("stream", name="stdout", text=printed)
    cells = [new_markdown_cell(title), new_code_cell("print()", outputs=[output])]
    notebook = new_notebook(cells=cells, metadata={"papermill": {"duration": 150.0}})
    settings.paths.notebooks.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, settings.paths.notebooks / f"{name}.ipynb")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Settings, address and page of a report with everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUNET_RESULTS", str(tmp_path_factory.mktemp("results")))
        settings = config.load_profile("demo")
        write_results(settings)
        write_notebook(settings, "05_plot", "# 05 · Tables", EVIL_TEXT)
        index = webpage.build_report(settings)
        yield settings, index, Page(index.read_text("utf-8"))


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Results without a report, to change and damage."""
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path))
    settings = config.load_profile("demo")
    write_results(settings, songs=("A song",))
    return settings


# ------------------------------------------------------------------------------ structure


def test_page_has_language_landmarks_and_a_way_past_them(built):
    _, _, page = built
    assert page.of("html") == [{"lang": "en"}]
    for landmark in ("header", "nav", "main", "footer", "h1", "title"):
        assert len(page.of(landmark)) == 1, landmark
    first = page.of("a")[0]
    assert first["class"] == "skip" and first["href"].removeprefix("#") in page.ids
    assert any(attrs.get("name") == "viewport" for attrs in page.of("meta"))


def test_ids_are_unique_and_references_to_them_resolve(built):
    _, _, page = built
    assert len(page.ids) == len(set(page.ids))
    for _, attrs in page.elements:
        assert attrs.get("aria-labelledby", page.ids[0]) in page.ids


def test_headings_are_in_order_and_the_story_too(built):
    _, _, page = built
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    story = ["question", "data", "models", "training", "results", "listen", "conditions", "paper"]
    story += ["excerpt", "notebooks", "record"]
    assert [attrs["id"] for attrs in page.of("h2")] == story
    linked = [a["href"] for a in page.of("a") if a["href"].removeprefix("#") in story]
    assert linked == [f"#{name}" for name in story]


def test_table_and_figure_of_one_name_have_headings_of_their_own(fresh):
    frame = pd.DataFrame({"model": ["unet"], "sdr": [1.0]})
    save_table(frame, fresh.paths.tables, "scores_by_instrument", "Scores by instrument.")
    text = webpage.build_report(fresh).read_text()
    headings = re.findall(r"<h3>(Scores per instrument.*)</h3>", text)
    assert headings == ["Scores per instrument", "Scores per instrument, as a figure"]


def test_every_address_resolves_inside_the_folder(built):
    _, index, page = built
    for tag, address in page.addresses:
        parts = urlsplit(address)
        if parts.scheme:
            allowed = {"a": "https", "link": "data"}
            assert parts.scheme == allowed.get(tag), f"<{tag}> loads {address}"
        elif address.startswith("#"):
            assert address[1:] in page.ids
        else:
            assert not parts.query and not parts.fragment, address
            assert ".." not in parts.path and not parts.path.startswith("/")
            assert (index.parent / unquote(parts.path)).is_file(), address


def test_pages_work_without_a_network(built):
    _, index, _ = built
    for path in index.parent.rglob("*.html"):
        text = path.read_text("utf-8")
        assert not re.search(
            r"<(?:script|img|audio|iframe|source)[^>]+src=[\"'](?:https?:)?//", text
        )
        assert not re.search(r"<script[^>]+src=", text), "a script of its own file"
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", text)
        assert not re.search(r"<link[^>]+href=[\"'](?!data:)", text)


def test_images_have_alternative_texts_and_sizes(built):
    settings, _, page = built
    assert len(page.images) == len(list(settings.paths.figures.glob("*.png")))
    for image in page.images:
        assert image["alt"] == f"Picture {Path(image['src']).stem}."
        assert int(image["width"]) > 0 and int(image["height"]) > 0


def test_every_player_has_a_label_of_its_own(built):
    _, _, page = built
    labels = [audio["aria-label"] for audio in page.of("audio")]
    # Two songs: a mixture, and for each instrument the target and three systems.
    assert len(labels) == len(set(labels)) == 2 * (1 + 4 * 4)
    assert f"C-U-Net dense, complex: vocals, {ODD}" in labels
    assert f"Target: bass, {EVIL}" in labels
    assert all("controls" in audio and audio["preload"] == "none" for audio in page.of("audio"))


def test_table_headings_are_buttons_that_say_how_they_sort(built):
    _, _, page = built
    headings = [attrs for attrs in page.of("th") if attrs.get("scope") == "col"]
    assert headings and all(attrs["aria-sort"] == "none" for attrs in headings)
    # Enabled by the script alone: without it they would do nothing.
    assert [a for a in page.of("button") if a["type"] != "button" or "disabled" not in a] == []
    assert len(page.of("button")) == len(headings)
    assert len(page.of("caption")) == len(page.of("table"))
    regions = [attrs for attrs in page.of("div") if attrs.get("role") == "region"]
    assert len(regions) == len(page.of("table"))
    assert all(attrs["tabindex"] == "0" for attrs in regions)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("9.84 ± 1.20 (9.70)", 9.84),
        ("-0.12 (-0.30 to +0.05)", -0.12),
        ("+5", 5.0),
        ("10,419,925", 10419925.0),
        ("54.0%", 54.0),
        ("<0.001", 0.001),
        ("2 of 14", 2.0),
        ("more than 10,000", 10000.0),
        ("± 0.3", 0.3),
        ("-inf ± n/a", -math.inf),
        ("inf", math.inf),
        ("1e-12", 1e-12),
        ("drums", None),
        ("information", None),
        ("C-U-Net", None),
    ],
)
def test_cells_sort_by_the_number_they_begin_with(text, key):
    assert story.sort_key(text) == key


@pytest.mark.parametrize("text", ["n/a", "-", ""])
def test_cells_without_a_number_have_none(text):
    assert math.isnan(story.sort_key(text))


def colours(text):
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text))


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_enough_contrast_in_light_and_dark():
    style = (webpage.TEMPLATES / "report.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    for scheme in (colours(light), colours(dark.split("\n}\n")[0])):
        pairs = [
            (front, back)
            for front in ("text", "quiet", "link", "accent")
            for back in ("page", "raised")
        ]
        for front, back in [*pairs, ("warn-text", "warn")]:
            high, low = sorted((luminance(scheme[front]), luminance(scheme[back])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


# ------------------------------------------------------------------------------ what it says


def test_story_takes_its_numbers_from_the_tables(fresh):
    text = Page(webpage.build_report(fresh).read_text()).text
    assert "C-U-Net (dense, complex) separates as well as four dedicated U-Nets" in text
    assert "the four dedicated U-Nets reach 8.25 dB" in text
    assert "the C-U-Nets 4.00 to 8.12 dB (the highest: dense, complex)" in text
    assert "the ideal ratio mask, which knows the answer, inf dB" in text
    assert "mean over 12 test songs" in text
    assert "20 of 20 medians are high enough." in text
    assert "26% to 31% of the parameters" in text
    assert "5 equivalent (worse by less than the margin), 10 undecided and 5 worse" in text
    assert "mean over the instruments: Dedicated U-Nets 1.50 dB and Mixture -2.50 dB." in text
    assert "40 for training, 8 for validation and 12 for tests" in text

    frame = pd.read_csv(fresh.paths.tables / "scores_overall.csv")
    frame.loc[frame["model"] == "unet", "sdr_v4_mean_db"] = 1.75
    save_table(frame, fresh.paths.tables, "scores_overall", "Other scores.")
    text = Page(webpage.build_report(fresh).read_text()).text
    assert "the four dedicated U-Nets reach 1.75 dB" in text and "8.25 dB" not in text


def frames(verdicts, passed=True):
    rows = [(model, verdict, 0.5) for model, many in verdicts.items() for verdict in many]
    differences = pd.DataFrame(rows, columns=["model", "verdict", "margin_db"])
    models = ["unet", *config.VARIANTS]
    outcome = pd.DataFrame({"model": models, "passed": [passed] * len(models)})
    return differences, outcome


SAME, WORSE = ["equivalent", "equivalent (better by less than the margin)"], ["equivalent", "worse"]


def test_headline_claims_equivalence_only_of_all_rows():
    differences, outcome = frames({"dense_simple": WORSE, "cnn_complex": SAME})
    assert story.headline_of(differences, outcome).startswith("C-U-Net (CNN, complex) separates ")
    differences, outcome = frames({"dense_simple": SAME, "cnn_complex": SAME})
    both = "C-U-Net (dense, simple) and C-U-Net (CNN, complex) separate as well"
    assert story.headline_of(differences, outcome).startswith(both)
    differences, outcome = frames({"dense_simple": WORSE, "cnn_complex": WORSE})
    assert story.headline_of(differences, outcome).startswith("For no C-U-Net was it shown")


def test_headline_counts_no_model_that_learned_nothing():
    differences, outcome = frames({"cnn_complex": SAME}, passed=False)
    assert "means nothing" in story.headline_of(differences, outcome)
    outcome["passed"] = outcome["model"] != "cnn_complex"
    assert story.headline_of(differences, outcome).startswith("For no C-U-Net was it shown")
    outcome["passed"] = outcome["model"] != "unet"
    assert story.headline_of(differences, outcome).startswith("For no C-U-Net was it shown")


def test_settings_that_differ_are_read_from_the_profiles(fresh, built):
    _, _, page = built
    assert "model.filters 8 16 half the width" in page.text  # the reason is fidelity.md's
    assert "tests/test_" not in page.text
    smoke = story.deviations(config.load_profile("smoke"))
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in smoke.rows}
    assert rows["model.filters"] == ["2", "16"] and "Why" not in [c.label for c in smoke.columns]
    assert story.deviations(config.load_profile("musdb18")) is None


def test_notebooks_and_record_are_there_to_read(built):
    _, index, page = built
    assert "05_plot Tables (2 min)" in page.text
    assert "train.batch_size 16" in page.text and "cpu.flags avx, fma" in page.text
    assert json.loads((index.parent / "manifest.json").read_text())["profile"] == "demo"
    notebook = (index.parent / "notebooks" / "05_plot.html").read_text()
    assert '<html lang="en">' in notebook and 'href="../index.html"' in notebook
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in notebook


# ------------------------------------------------------------------------------ names from outside


def test_names_and_captions_are_escaped(fresh):
    settings = fresh.model_copy(update={"title": EVIL_TEXT})
    frame = pd.DataFrame({EVIL_TEXT: [f"{EVIL_TEXT} | {EVIL_TEXT}"], "value": [1.0]})
    save_table(frame, fresh.paths.tables, "evil", f"A caption {EVIL_TEXT}. More {EVIL_TEXT}.")
    save_figure(Canvas(figsize=(1, 1)), fresh.paths.figures, "evil", f'"{EVIL_TEXT}" seen.')
    write_notebook(fresh, "<b>&'\"# 1", f"# {EVIL_TEXT}", "x")
    write_song(fresh, EVIL)
    index = webpage.build_report(settings)
    text = index.read_text("utf-8")
    page = Page(text)
    assert len(page.of("script")) == 1 and page.of("b") == []
    assert f"{EVIL_TEXT} | {EVIL_TEXT}" in page.text and EVIL in page.text
    assert any(image["alt"] == f'"{EVIL_TEXT}" seen.' for image in page.images)
    assert "rest" in page.ids  # what no chapter names has one of its own
    addresses = {address for _, address in page.addresses}
    assert "notebooks/%3Cb%3E%26%27%22%23%201.html" in addresses


def test_players_in_notebooks_escape_titles():
    from cunet_lib.signal.display import players

    shown = players({EVIL_TEXT: np.ones(100)}, 8192).data
    assert "&lt;script&gt;" in shown and "<script>" not in shown


def test_audio_addresses_are_percent_encoded(built):
    _, index, page = built
    sources = [audio["src"] for audio in page.of("audio")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.~/%-]+", source) for source in sources)
    odd = "audio/A%20%26%20B%20%232%2C%20100%25%3F%20%22%C3%A9%22%20%2B%20it%27s%3B%20a%5Cb/"
    assert f"{odd}mixture.flac" in sources and f"{odd}unet/vocals.flac" in sources
    assert (index.parent / "audio" / ODD / "unet" / "vocals.flac").is_file()


def test_names_that_are_no_text_are_shown_all_the_same(fresh):
    name = os.fsdecode(b"caf\xe9")
    try:
        write_song(fresh, "plain")
        (fresh.paths.examples / "plain").rename(fresh.paths.examples / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    page = Page(webpage.build_report(fresh).read_text("utf-8"))
    assert "caf\N{REPLACEMENT CHARACTER}" in page.text
    assert any(audio["src"] == "audio/caf%E9/mixture.flac" for audio in page.of("audio"))


# ------------------------------------------------------------------------------ missing and changed


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("examples", "No audio examples here. make reproduce PROFILE=demo adds it here."),
        ("nothing", "No executed notebooks here."),
        ("manifest.json", "No manifest yet."),
        ("figures", "No record of the training yet."),
        ("tables/scores_overall", "No scores yet."),
        ("tables/excerpt", "No scores of the excerpt yet."),
        ("tables/differences", "the four dedicated U-Nets reach"),
        ("tables/outcome", "the four dedicated U-Nets reach"),
        ("tables/models", "the four dedicated U-Nets reach"),
    ],
)
def test_a_missing_part_is_a_sentence(fresh, lost, said):
    for path in fresh.paths.results.glob(f"{lost}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(webpage.build_report(fresh).read_text())
    assert said in page.text
    assert "make conditions report PROFILE=demo" in page.text


def test_conditions_are_shown_once_they_are_measured(fresh):
    save_table(pd.DataFrame({"z": [0.5]}), fresh.paths.tables, "conditions_level", "Levels.")
    page = Page(webpage.build_report(fresh).read_text())
    assert "table-conditions_level" in page.ids and "make conditions" not in page.text


def test_report_needs_tables(fresh):
    shutil.rmtree(fresh.paths.tables)
    with pytest.raises(config.ConfigError, match=r"demo/tables/outcome\.md is missing"):
        webpage.build_report(fresh)
    assert not (fresh.paths.results / "report").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        "tables/models.md",
        "tables/models.csv",
        "figures/spectrograms.png",
        "manifest.json",
        "notebooks/05_plot.ipynb",
    ],
)
def test_damaged_results_are_named(fresh, damaged):
    (fresh.paths.results / damaged).parent.mkdir(exist_ok=True)
    (fresh.paths.results / damaged).write_text("{")
    with pytest.raises(config.ConfigError, match=re.escape(damaged)):
        webpage.build_report(fresh)


def test_only_what_changed_is_written_and_what_is_gone_goes(fresh):
    for name in ("00_corpus", "05_plot"):
        write_notebook(fresh, name, "# A title", "x")
    index = webpage.build_report(fresh)
    files = {path: path.stat().st_mtime_ns for path in index.parent.rglob("*") if path.is_file()}
    shutil.rmtree(fresh.paths.examples / "A song")
    write_song(fresh, "Another")
    write_notebook(fresh, "05_plot", "# 05 · Again", "x")
    webpage.build_report(fresh)
    kept = {
        path
        for path, changed in files.items()
        if path.is_file() and path.stat().st_mtime_ns == changed
    }
    gone = {path for path in files if not path.exists()}
    assert {path.name for path in set(files) - kept - gone} == {"index.html", "05_plot.html"}
    assert gone == {path for path in files if "audio" in path.parts}
    assert not (index.parent / "audio" / "A song").exists()


def test_installed_library_brings_its_templates():
    declared = re.search(r"^package-data = .*$", (ROOT / "pyproject.toml").read_text(), re.M)[0]
    assert '"templates/*"' in declared and '"*.csv"' in declared
    assert {path.name for path in webpage.TEMPLATES.iterdir()} == {
        "report.html.j2",
        "report.css",
        "report.js",
        "notebook.html.j2",
    }
