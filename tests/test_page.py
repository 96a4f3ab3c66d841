"""The report: one page of the executed notebook, offline, on a desk and on a phone.

The browser's part is skipped where there is no Chromium; ``CUNET_SCREENSHOTS=/some/folder`` keeps
pictures of it.
"""

import re
import shutil
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import keep_picture
from made_up import TRAINED
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.report import page, tables

NO_ANSWER = "shows that everything runs: it gives no answer"


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
    for name in ("scores_overall", "differences", "models", "ablation"):
        assert f'id="table-{name}"' in text
    assert "load_profile" not in text and "<script>alert" not in text
    answered = ("Does one conditioned U-Net", NO_ANSWER, "Data: rendered")
    answered += ('id="table-scores_overall"', 'id="figure-differences"', "without losing")
    folded = ("<summary>Listen", "<summary>What is compared", 'id="table-training"')
    folded += ('id="table-differences"', 'href="00_corpus.html"')
    places = [text.index(part) for part in (*answered, *folded)]
    assert places == sorted(places) and places[5] < text.index("<details>") < places[6]
    assert text.count("<details>") == text.count("</details>")
    # The answer, and what the scores do not compare with, stand there once.
    assert text.count(NO_ANSWER) == 1
    assert text.count("not comparable with MUSDB18") == 1 and "methods.html" in text


def test_notebook_ends_with_the_answer_and_shows_nothing_of_other_runs(study, report):
    notebook = nbformat.read(study.settings.paths.notebooks / "05_plot.ipynb", 4)
    assert NO_ANSWER in notebook.cells[-1].outputs[0]["data"]["text/markdown"]
    # Committed tables of another machine lie where this run's are; a page of them would show them.
    shown = set(re.findall(r'id="table-(\w+)"', report[1].read_text("utf-8")))
    (study.settings.paths.tables / "conditions_pairs.csv").write_text("model,target\nunet,bass\n")
    page.write_page(study.settings)
    assert set(re.findall(r'id="table-(\w+)"', report[1].read_text("utf-8"))) == shown
    (study.settings.paths.tables / "conditions_pairs.csv").unlink()


def test_other_notebooks_and_the_methods_stand_beside_it(report):
    _, index = report
    other = (index.parent / "00_corpus.html").read_text("utf-8")
    assert "print" in other and 'href="index.html"' in other and "<script>alert" not in other
    assert "Wilcoxon" in (index.parent / "methods.html").read_text("utf-8")


def test_one_player_per_song_has_every_sound(report):
    settings, _ = report
    text = page.players(settings).data
    assert text.count("<audio") == 2
    assert text.count("<data ") == 2 * (1 + len(INSTRUMENTS) * (1 + len(TRAINED)))
    assert text.count('type="radio"') == 2 * (1 + len(INSTRUMENTS) + 1 + len(TRAINED))
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


def said(study, *, name="study", **shown):
    """The answer where differences of two C-U-Nets are ``shown``: target to mean, low, high."""
    table = study.differences.frame
    table = table[table["model"].isin(["dense_simple", "cnn_simple"])].assign(verdict="undecided")
    columns = [f"difference_{name}_db" for name in ("mean", "ci_low", "ci_high")]
    for target, values in {"all": (-0.5, -1.0, 0.1), **shown}.items():
        for model, numbers in zip(
            table["model"].unique(), np.reshape(values, (-1, 3)), strict=False
        ):
            rows = table["target"].eq(target) & (table["model"].eq(model) | (np.size(values) == 3))
            table.loc[rows, columns] = numbers
    table.loc[table["protocol"].eq("BSS Eval v3") & table["target"].eq("drums"), "verdict"] = (
        "worse"
    )
    differences = replace(study.differences, frame=table)
    settings = study.settings.model_copy(update={"name": name})
    both = tables.training_table(settings, study.runs), study.models
    return " ".join(page.answer(settings, differences, *both).data.split())


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ((-0.5, -1, 0), "0.50 dB below"),
        ((0.25, 0, 1), "0.25 dB above"),
        ((-0.5, -1, 0, 0.25, 0, 1), "between 0.50 dB below and 0.25 dB above"),
        ((-1.0, -2, 0, -0.5, -1, 0), "0.50 to 1.00 dB below"),
    ],
)
def test_answer_says_how_far_below_or_above_by_each_protocol(study, shown, words):
    text = said(study, all=shown)
    assert f"score {words} the four dedicated U-Nets by BSS Eval v4, and {words} them by v3" in text


def test_answer_says_where_clearly_and_what_the_corrected_test_adds(study):
    text = said(
        study, bass=(-1, -2, -0.5), drums=(-1, -2, -0.1), vocals=(1, 0.5, 2), other=(0, -1, 1)
    )
    assert "clearly below for bass and drums, and clearly above for vocals, and not clearly" in text
    assert "10 comparisons" in text and "within ±0.5 dB, a margin" in text
    assert "By v4, 0 worse, 0 better, 0 equivalent and 10 undecided." in text
    assert "By v3, 2 worse, 0 better, 0 equivalent and 8 undecided." in text
    assert "of the U-Nets' steps and" in text
    assert "(np)" not in text


@pytest.mark.parametrize(
    ("early", "words"),
    [
        (0, "The budget of epochs ended all 8 trainings."),
        (3, "Validation ended 3 of 8 trainings, the budget the others."),
        (8, "Validation ended all 8 trainings."),
    ],
)
def test_answer_says_what_ended_the_trainings(study, early, words):
    runs = study.runs.assign(epochs=study.runs["epochs"] - (np.arange(8) < early))
    training = tables.training_table(study.settings, runs)
    assert words in page.answer(study.settings, study.differences, training, study.models).data


def test_answer_tells_of_variants_without_progressive_conditions_apart(study):
    differences = study.differences.frame
    others = differences.assign(model=differences["model"] + "_np")
    others["difference_mean_db"] -= 7.0
    both = replace(study.differences, frame=pd.concat([differences, others], ignore_index=True))
    settings = study.settings.model_copy(update={"name": "study"})
    costs = tables.training_table(settings, study.runs), study.models
    alone = page.answer(settings, study.differences, *costs).data.splitlines()
    text = page.answer(settings, both, *costs).data.splitlines()
    (added,) = [line for line in text if line not in alone]
    assert [line for line in text if line != added] == alone
    assert re.search(r"\(np\), the C-U-Nets score [789]\.\d\d to", added)


def test_answer_tells_of_a_network_beyond_the_paper_by_itself(study):
    differences = study.differences.frame
    one = differences[differences["model"] == "cnn_complex"].assign(model="shares")
    one["difference_mean_db"] += 9.0
    both = replace(study.differences, frame=pd.concat([differences, one], ignore_index=True))
    settings = study.settings.model_copy(update={"name": "study"})
    sizes = study.models.frame
    size = sizes[sizes["model"] == "cnn_complex"].assign(model="shares", share_of_four=0.25)
    models = replace(study.models, frame=pd.concat([sizes, size], ignore_index=True))
    training = tables.training_table(settings, study.runs)
    cost = training.frame[training.frame["model"] == "unet"].assign(model="shares")
    cost["teraflop"] *= 0.4
    costs = replace(training, frame=pd.concat([training.frame, cost], ignore_index=True)), models
    alone = page.answer(settings, study.differences, *costs).data.splitlines()
    text = page.answer(settings, both, *costs).data.splitlines()
    (added,) = [line for line in text if line not in alone]
    assert [line for line in text if line != added] == alone
    assert "with 25% of their parameters and 40% of what their training computes." in added
    assert re.search(r"\(C-U-Net shares\) scores \d+\.\d\d dB above the dedicated", added)
    assert "verdicts over all instruments: " in added
    # Where it is the only one, it is the one that the answer is about.
    lone = replace(training, frame=pd.concat([training.frame.query("model == 'unet'"), cost]))
    lone = page.answer(settings, replace(both, frame=one), lone, models).data
    assert re.search(r"the C-U-Nets score \d+\.\d\d dB above", lone) and "nan" not in lone


@pytest.mark.parametrize("name", ["demo", "smoke", "musdb7s"])
def test_a_trial_gives_no_answer_and_says_which_profile_does(study, name):
    text = said(study, name=name, vocals=(1, 0.5, 2))
    assert f"`{name}` {NO_ANSWER}" in text
    assert "`study`" in text and "of the U-Nets' steps and" in text
    assert " dB" not in text and "clearly" not in text


def test_others_are_told_by_their_differences_alone():
    text = page.others().data
    assert "0.24 to 0.47 dB below" in text and "without losing any performance" in text


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
        if path.name == "index.html":
            opened.wait_for_selector("table.dataTable")
        return opened, wrong

    yield visit
    for context in contexts:
        context.close()


OPEN = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
TOO_WIDE = """[...document.querySelectorAll('body *')].filter((e) => !e.closest('.cunet-table')
  && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [1280, 390])
def test_page_works_offline_and_nothing_is_wider_than_the_screen(visit, report, width):
    opened, wrong = visit(report[1], width)
    keep_picture(opened, f"report-{width}")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate(TOO_WIDE) == []
    assert wrong == []


def test_first_screen_has_question_answer_scores_and_a_picture(visit, report):
    opened, _ = visit(report[1])
    bottoms = opened.evaluate(
        """["h1", "strong", "#table-scores_overall", "#figure-differences"].map(
             (name) => document.querySelector(name).getBoundingClientRect().bottom)"""
    )
    assert bottoms == sorted(bottoms) and bottoms[-1] <= 900


@pytest.mark.parametrize(("width", "height", "most"), [(1440, 900, 2), (390, 844, 3)])
def test_report_is_short_folded_and_at_most_ten_screens_open(visit, report, width, height, most):
    opened, _ = visit(report[1], width, height)
    screens = "document.documentElement.scrollHeight / innerHeight"
    assert opened.evaluate(screens) <= most
    opened.evaluate(OPEN)
    assert opened.evaluate(screens) <= (10 if width > 1000 else 12)
    assert opened.evaluate(TOO_WIDE) == []


COLUMN = (
    "[...document.querySelectorAll('#table-models tbody tr')].map(r => r.cells[{}].textContent)"
)


def test_tables_sort_by_number_and_hold_their_first_column(visit, report):
    opened, _ = visit(report[1], 390)
    opened.evaluate(OPEN)
    given = opened.evaluate(COLUMN.format(2))
    header = opened.locator("#table-models thead th").nth(2)
    header.click()
    opened.wait_for_selector("#table-models thead th[aria-sort=ascending]")
    ascending = opened.evaluate(COLUMN.format(2))
    numbers = [int(text.replace(",", "")) for text in ascending]
    assert numbers == sorted(numbers) and ascending != given
    header.click()
    opened.wait_for_selector("#table-models thead th[aria-sort=descending]")
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
    opened.evaluate(OPEN)
    opened.evaluate("document.querySelector('audio').currentTime = 1")
    player = opened.locator(".cunet-player").first
    player.get_by_label("drums").check()
    player.get_by_label("Dedicated U-Nets").check()
    opened.wait_for_function("document.querySelector('audio').readyState > 0")
    state = "(({src, currentTime, duration}) => [src, currentTime, duration])"
    source, time, duration = opened.evaluate(f"{state}(document.querySelector('audio'))")
    assert source == player.locator('data[value="unet/drums"]').get_attribute("title")
    assert time == pytest.approx(1, abs=0.05) and duration == pytest.approx(3, abs=0.2)
    player.get_by_label("mixture").check()
    source, *_ = opened.evaluate(f"{state}(document.querySelector('audio'))")
    assert source == player.locator('data[value="mixture"]').get_attribute("title")
    assert wrong == []


def test_other_pages_load_without_complaint(visit, report):
    for name in ("00_corpus", "methods"):
        opened, wrong = visit(report[1].with_name(f"{name}.html"), 390)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
