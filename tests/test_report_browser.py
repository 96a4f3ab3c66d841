"""The report in headless Chromium; skipped where there is none (see ``browser`` in conftest).

``CUNET_SCREENSHOTS=/some/folder`` keeps pictures of it.
"""

from types import SimpleNamespace

import pytest
from conftest import keep_picture
from test_webpage import write_notebook, write_results

from cunet_lib.core import settings as config
from cunet_lib.report import webpage


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUNET_RESULTS", str(tmp_path_factory.mktemp("results")))
        settings = config.load_profile("demo")
        write_results(settings)
        write_notebook(settings, "05_plot", "# 05 · Tables", "printed")
        yield webpage.build_report(settings)


@pytest.fixture
def visit(browser):
    """A function that opens a file in a window of its own.

    It returns the ``page``, and ``complaints``: errors and warnings of console, scripts and
    loading, and addresses outside files, which grow as they come.
    """
    contexts = []

    def visit(path, *, width=1280, height=900, scheme="light"):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, is_mobile=width < 600)
        contexts.append(context)
        page, complaints = context.new_page(), []

        def hear(message):
            if message.type in ("error", "warning"):
                complaints.append(message.text)

        def follow(request):
            if not request.url.startswith(("file:", "data:")):
                complaints.append(request.url)

        def fail(request):
            # Chromium itself ends the request of a sound of which it has heard enough for now.
            if request.resource_type != "media" or request.failure != "net::ERR_ABORTED":
                complaints.append(f"{request.url} failed: {request.failure}")

        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", follow)
        page.on("requestfailed", fail)
        page.goto(path.as_uri())
        return SimpleNamespace(page=page, run=page.evaluate, complaints=complaints)

    yield visit
    for context in contexts:
        context.close()


# Pictures further down load when they come into sight.
PICTURES = """
Promise.all([...document.images].map((image) => {
  image.loading = "eager";
  return image.decode();
}))
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_loads_from_a_file_without_complaint_and_fits_the_window(visit, report, width, scheme):
    seen = visit(report, width=width, scheme=scheme)
    seen.run(PICTURES)
    keep_picture(seen.page, f"report-{width}-{scheme}")
    assert seen.complaints == []
    assert seen.run("document.documentElement.scrollWidth") <= width
    light = seen.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


def test_executed_notebook_loads_without_complaint(visit, report):
    assert visit(report.parent / "notebooks" / "05_plot.html").complaints == []


COLUMN = (
    "[...document.querySelectorAll('#table-answer tbody tr')].map(r => r.cells[{}].textContent)"
)
CLICK = "document.querySelectorAll('#table-answer thead button')[{}].click()"
SORT = "document.querySelectorAll('#table-answer thead th')[{}].getAttribute('aria-sort')"


def test_tables_sort_by_number_both_ways_and_back(visit, report):
    seen = visit(report)
    given = seen.run(COLUMN.format(1))
    seen.run(CLICK.format(1))
    assert seen.run(SORT.format(1)) == "ascending"
    ascending = seen.run(COLUMN.format(1))
    assert ascending == ["-6.50", "4.00", "5.00", "7.88", "8.12", "8.25", "inf"]
    seen.run(CLICK.format(1))
    assert seen.run(SORT.format(1)) == "descending"
    assert seen.run(COLUMN.format(1)) == ascending[::-1]
    seen.run(CLICK.format(1))
    assert seen.run(SORT.format(1)) == "none"
    assert seen.run(COLUMN.format(1)) == given


def test_sorting_keeps_cells_without_a_number_last_and_marks_one_column(visit, report):
    seen = visit(report)
    seen.run(CLICK.format(1))
    for _ in range(2):
        seen.run(CLICK.format(5))
        shares = seen.run(COLUMN.format(5))
        assert shares[-2:] == ["-", "-"]
    assert shares[0] == "100.0%"
    assert (seen.run(SORT.format(1)), seen.run(SORT.format(5))) == ("none", "descending")
    seen.run(CLICK.format(0))
    names = seen.run(COLUMN.format(0))
    assert names == sorted(names, key=str.lower)


def test_keyboard_reaches_the_content_and_sorts(visit, report):
    seen = visit(report)
    seen.page.keyboard.press("Tab")
    assert seen.run("document.activeElement.className") == "skip"
    assert seen.run("document.activeElement.getBoundingClientRect().left") >= 0
    seen.page.keyboard.press("Enter")
    assert seen.run("document.activeElement.id") == "main"
    seen.run("document.querySelectorAll('#table-answer thead button')[1].focus()")
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Enter")
    assert seen.run(SORT.format(2)) == "ascending"
    assert seen.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


LOADED = """
Promise.all([...document.querySelectorAll("audio")].map((player) => new Promise((done) => {
  player.addEventListener("loadedmetadata", () => done(player.duration), { once: true });
  player.addEventListener("error", () => done(player.error.message), { once: true });
  player.preload = "metadata";
  player.load();
})))
"""


def test_players_load_their_metadata(visit, report):
    seen = visit(report)
    durations = seen.run(LOADED)
    assert len(durations) == 34
    assert durations == pytest.approx([1.0] * len(durations), abs=0.01)
    assert seen.complaints == []


PLAYED = """
async () => {
  const [first, second] = document.querySelectorAll(".song audio");
  const playing = (player) => new Promise((done) =>
    player.addEventListener("playing", done, { once: true }));
  const sounds = playing(first);
  await first.play();
  await sounds;
  first.currentTime = 0.5;
  await second.play();
}
"""


def test_one_player_at_a_time_goes_on_where_the_other_was(visit, report):
    seen = visit(report)
    seen.run(PLAYED)
    seen.page.wait_for_function(
        """() => {
          const [first, second] = document.querySelectorAll(".song audio");
          return first.paused && !first.ended && second.currentTime >= 0.5;
        }"""
    )
    assert seen.complaints == []


def test_printing_unfolds_everything(visit, report):
    seen = visit(report)
    seen.run("dispatchEvent(new Event('beforeprint'))")
    assert seen.run("[...document.querySelectorAll('details')].every(part => part.open)")
    assert len(seen.page.pdf()) > 10_000
