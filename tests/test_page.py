"""The report: one page of the executed notebook, offline, on a desk and on a phone.

The browser's part is skipped where there is no Chromium; ``CUNET_SCREENSHOTS=/some/folder`` keeps
pictures of it.
"""

import re
import shutil

import nbformat
import pytest
from conftest import keep_picture
from IPython.display import Markdown
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS, TRAINED
from cunet_lib.evaluation.metrics import SDR_V3, SDR_V4
from cunet_lib.report import page, tables


@pytest.fixture(scope="module")
def report(study):
    """Settings and address of a report with everything."""
    printed = new_output("stream", name="stdout", text="<script>alert(2)</script>")
    cells = [new_markdown_cell("# 00 · Corpus"), new_code_cell("print()", outputs=[printed])]
    nbformat.write(new_notebook(cells=cells), study.settings.paths.notebooks / "00_corpus.ipynb")
    return study.settings, page.write_page(study.settings)


def test_page_is_the_notebook_without_its_code(report):
    _, index = report
    text = index.read_text("utf-8")
    assert index.stat().st_size < 15e6
    for name in ("scores_overall", "differences", "differences_v3", "models", "ablation"):
        assert f'id="table-{name}"' in text
    assert 'id="figure-paired_differences"' in text and "load_profile" not in text
    for part in (
        "Does one conditioned U-Net",
        "Over all instruments, the C-U-Nets",
        "methods.html",
    ):
        assert part in text
    assert text.index("Over all instruments") < text.index('id="table-scores_overall"')
    assert text.index('id="table-scores_overall"') < text.index('id="figure-paired_differences"')
    assert 'href="00_corpus.html"' in text and "<script>alert" not in text


def test_other_notebooks_and_the_methods_stand_beside_it(report):
    _, index = report
    other = (index.parent / "00_corpus.html").read_text("utf-8")
    assert "print" in other and 'href="index.html"' in other and "<script>alert" not in other
    assert "Wilcoxon" in (index.parent / "methods.html").read_text("utf-8")


def test_one_player_per_song_has_every_sound(report):
    settings, _ = report
    text = page.players(settings).data
    assert text.count("<audio") == 2
    assert text.count("<option") == 2 * (1 + len(INSTRUMENTS) * (1 + len(TRAINED)))
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_only_what_changed_is_converted_and_what_is_gone_goes(report):
    settings, index = report
    kept = index.parent / "00_corpus.html"
    before = kept.stat().st_mtime_ns
    gone = settings.paths.notebooks / "07_gone.ipynb"
    shutil.copy(settings.paths.notebooks / "00_corpus.ipynb", gone)
    page.write_page(settings)
    assert (index.parent / "07_gone.html").is_file()
    gone.unlink()
    page.write_page(settings)
    assert kept.stat().st_mtime_ns == before and not (index.parent / "07_gone.html").exists()


def test_report_needs_its_notebook_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path))
    settings = load_profile("demo")
    with pytest.raises(ConfigError, match=r"demo/notebooks/05_plot\.ipynb is missing"):
        page.write_page(settings)
    settings.paths.notebooks.mkdir(parents=True)
    (settings.paths.notebooks / "05_plot.ipynb").write_text("{")
    with pytest.raises(ConfigError, match=r"05_plot\.ipynb is damaged"):
        page.write_page(settings)


# ------------------------------------------------------------------------------ the answer


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (-0.5, "0.50 dB below"),
        (0.25, "0.25 dB above"),
        ((-0.5, 0.25), "between 0.50 dB below and 0.25 dB above"),
        ((-1.0, -0.5), "0.50 to 1.00 dB below"),
    ],
)
def test_answer_says_how_far_below_or_above(study, shift, words):
    shifts = shift if isinstance(shift, tuple) else (shift,)
    scores = study.scores[study.scores["model"].isin(["unet", "dense_simple", "cnn_simple"])].copy()
    unets = scores[scores["model"] == "unet"].drop(columns="model")
    keys = ["track", "target", "metric", "protocol", "aggregation"]
    same = unets.set_index(keys)["value"]
    for model, by in zip(("dense_simple", "cnn_simple"), (*shifts, *shifts), strict=False):
        rows = scores["model"] == model
        places = scores.loc[rows, keys].itertuples(index=False, name=None)
        scores.loc[rows, "value"] = [same[place] + by for place in places]
    both = [tables.differences_table(study.settings, scores, measure=m) for m in (SDR_V4, SDR_V3)]
    said = page.answer(study.settings, *both, study.runs)
    assert isinstance(said, Markdown)
    assert f"score {words} the four dedicated U-Nets by BSS Eval v4 and {words} them" in said.data
    assert "of 10 comparisons 0 (v4) and 0 (v3) are significantly worse" in said.data
    assert "is no verdict" in said.data
    longer = study.settings.model_copy(update={"name": "study"})
    assert "is no verdict" not in page.answer(longer, *both, study.runs).data


# ------------------------------------------------------------------------------ in a browser


@pytest.fixture
def visit(browser):
    """A function that opens a file ; returns its window and what is wrong with it, a list."""
    contexts = []

    def visit(path, width=1280, height=900):
        size = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=size, is_mobile=width < 600, offline=True))
        opened, wrong = contexts[-1].new_page(), []
        opened.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        own = re.compile("(file|data|blob):")
        opened.on("request", lambda r: own.match(r.url) or wrong.append(r.url[:200]))
        opened.on(
            "requestfailed", lambda r: r.resource_type != "media" and wrong.append(r.url[:200])
        )
        opened.goto(path.as_uri())
        opened.wait_for_load_state()
        return opened, wrong

    yield visit
    for context in contexts:
        context.close()


TOO_WIDE = """[...document.querySelectorAll('body *')].filter((e) => !e.closest('.cunet-table')
  && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [1280, 390])
def test_page_works_offline_and_nothing_is_wider_than_the_screen(visit, report, width):
    opened, wrong = visit(report[1], width)
    opened.wait_for_selector("table.dataTable")
    keep_picture(opened, f"report-{width}")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate(TOO_WIDE) == []
    assert wrong == []


def test_first_screen_has_question_answer_scores_and_a_picture(visit, report):
    opened, _ = visit(report[1])
    opened.wait_for_selector("table.dataTable")
    bottoms = opened.evaluate(
        """["h1", "strong", "#table-scores_overall", "#figure-paired_differences"].map(
             (name) => document.querySelector(name).getBoundingClientRect().bottom)"""
    )
    assert bottoms == sorted(bottoms) and bottoms[-1] <= 900


COLUMN = (
    "[...document.querySelectorAll('#table-models tbody tr')].map(r => r.cells[{}].textContent)"
)


def test_tables_sort_by_number_and_hold_their_first_column(visit, report):
    opened, _ = visit(report[1], 390)
    opened.wait_for_selector("table.dataTable")
    given = opened.evaluate(COLUMN.format(2))
    header = opened.locator("#table-models thead th").nth(2)
    header.click()
    ascending = opened.evaluate(COLUMN.format(2))
    numbers = [int(text.replace(",", "")) for text in ascending]
    assert numbers == sorted(numbers) and ascending != given
    header.click()
    assert opened.evaluate(COLUMN.format(2))[0] == ascending[-1]
    moved = opened.evaluate(
        """(() => { const box = document.querySelector(".cunet-table:has(#table-models)");
             const cell = box.querySelector("tbody td");
             const before = cell.getBoundingClientRect().left; box.scrollLeft = 100;
             return [box.scrollLeft, cell.getBoundingClientRect().left - before]; })()"""
    )
    assert moved == [100, 0]


def test_player_changes_sounds_where_it_is(visit, report):
    opened, wrong = visit(report[1])
    opened.evaluate("document.querySelector('audio').currentTime = 1")
    opened.locator(".cunet-player select").first.select_option(index=5)
    opened.wait_for_function("document.querySelector('audio').readyState > 0")
    state = "(({src, currentTime, duration}) => [src, currentTime, duration])"
    source, time, duration = opened.evaluate(f"{state}(document.querySelector('audio'))")
    assert source == opened.locator(".cunet-player option").nth(5).get_attribute("value")
    assert time == pytest.approx(1, abs=0.05) and duration == pytest.approx(3, abs=0.2)
    assert wrong == []


def test_other_pages_load_without_complaint(visit, report):
    for name in ("00_corpus", "methods"):
        opened, wrong = visit(report[1].with_name(f"{name}.html"), 390)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
