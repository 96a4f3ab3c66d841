"""The report in headless Chromium, spoken to over a pipe; skipped where there is none."""

import json
import os
import select
import shutil
import subprocess
import time

import pytest
from test_webpage import write_notebook, write_results

from cunet_lib import config, webpage

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a headless Chromium, by the DevTools protocol."""

    def __init__(self, profile):
        inner_read, self._write = os.pipe()
        self._read, inner_write = os.pipe()
        # Chromium reads file descriptor 3 and writes 4.
        start = f'exec "$@" 3<&{inner_read} 4>&{inner_write}'
        command = ["bash", "-c", start, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [*command, "about:blank"],
            pass_fds=(inner_read, inner_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inner_read)
        os.close(inner_write)
        self._rest, self._number, self._session = b"", 0, None
        self.events = []
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(20)

    def call(self, method, **parameters):
        """Send a command; return its result. Events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(60)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            data = os.read(self._read, 1 << 16)
            assert data, "Chromium has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width=1280, height=900, scheme="light"):
        """Load a page in a window of this size and wait until it stands."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive(60))

    def run(self, code):
        """Value of a JavaScript expression; promises are awaited."""
        result = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def key(self, name):
        """Press a key."""
        codes = {"Tab": 9, "Enter": 13}
        text = {"text": "\r"} if name == "Enter" else {}
        known = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **known, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def complaints(self):
        """Errors and warnings of console, scripts and loading; addresses outside files."""
        found = []
        for event in self.events:
            method, facts = event.get("method"), event.get("params", {})
            if (
                method == "Runtime.exceptionThrown"
                or (method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"))
                or (method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning"))
            ):
                found.append(facts)
            elif method == "Network.requestWillBeSent":
                address = facts["request"]["url"]
                found += [] if address.startswith(("file:", "data:")) else [address]
        return found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUNET_RESULTS", str(tmp_path_factory.mktemp("results")))
        settings = config.load_profile("demo")
        write_results(settings)
        write_notebook(settings, "05_plot", "# 05 · Tables", "printed")
        yield webpage.build_report(settings)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_loads_from_a_file_without_complaint_and_fits_the_window(
    browser, report, width, scheme
):
    browser.open(report, width=width, scheme=scheme)
    # Pictures further down load when they come into sight.
    browser.run(
        "Promise.all([...document.images].map(image => { image.loading = 'eager'; "
        "return image.decode(); }))"
    )
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    light = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


def test_executed_notebook_loads_without_complaint(browser, report):
    browser.open(report.parent / "notebooks" / "05_plot.html")
    assert browser.complaints() == []


COLUMN = (
    "[...document.querySelectorAll('#table-answer tbody tr')].map(r => r.cells[{}].textContent)"
)
CLICK = "document.querySelectorAll('#table-answer thead button')[{}].click()"
SORT = "document.querySelectorAll('#table-answer thead th')[{}].getAttribute('aria-sort')"


def test_tables_sort_by_number_both_ways_and_back(browser, report):
    browser.open(report)
    given = browser.run(COLUMN.format(1))
    browser.run(CLICK.format(1))
    assert browser.run(SORT.format(1)) == "ascending"
    ascending = browser.run(COLUMN.format(1))
    assert ascending == ["-6.50", "4.00", "5.00", "7.88", "8.12", "8.25", "inf"]
    browser.run(CLICK.format(1))
    assert browser.run(SORT.format(1)) == "descending"
    assert browser.run(COLUMN.format(1)) == ascending[::-1]
    browser.run(CLICK.format(1))
    assert browser.run(SORT.format(1)) == "none"
    assert browser.run(COLUMN.format(1)) == given


def test_sorting_keeps_cells_without_a_number_last_and_marks_one_column(browser, report):
    browser.open(report)
    browser.run(CLICK.format(1))
    for _ in range(2):
        browser.run(CLICK.format(5))
        shares = browser.run(COLUMN.format(5))
        assert shares[-2:] == ["-", "-"]
    assert shares[0] == "100.0%"
    assert (browser.run(SORT.format(1)), browser.run(SORT.format(5))) == ("none", "descending")
    browser.run(CLICK.format(0))
    names = browser.run(COLUMN.format(0))
    assert names == sorted(names, key=str.lower)


def test_keyboard_reaches_the_content_and_sorts(browser, report):
    browser.open(report)
    browser.key("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    browser.key("Enter")
    assert browser.run("document.activeElement.id") == "main"
    browser.run("document.querySelectorAll('#table-answer thead button')[1].focus()")
    browser.key("Tab")
    browser.key("Enter")
    assert browser.run(SORT.format(2)) == "ascending"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


LOADED = """
Promise.all([...document.querySelectorAll("audio")].map((player) => new Promise((done) => {
  player.addEventListener("loadedmetadata", () => done(player.duration), { once: true });
  player.addEventListener("error", () => done(player.error.message), { once: true });
  player.preload = "metadata";
  player.load();
})))
"""


def test_players_load_their_metadata(browser, report):
    browser.open(report)
    durations = browser.run(LOADED)
    assert len(durations) == 34
    assert durations == pytest.approx([1.0] * len(durations), abs=0.01)
    assert browser.complaints() == []


PLAYED = """
(async () => {
  const [first, second] = document.querySelectorAll(".song audio");
  const playing = (player) => new Promise((done) =>
    player.addEventListener("playing", done, { once: true }));
  const sounds = playing(first);
  await first.play();
  await sounds;
  first.currentTime = 0.5;
  // Headless Chromium now and then takes back a play() of its own accord (AbortError).
  for (let tries = 0; second.paused && tries < 5; tries++) await second.play().catch(() => 0);
  return [first.paused, second.paused, second.currentTime >= 0.5];
})()
"""


def test_one_player_at_a_time_goes_on_where_the_other_was(browser, report):
    browser.open(report)
    assert browser.run(PLAYED) == [True, False, True]


def test_printing_unfolds_everything(browser, report):
    browser.open(report)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('details')].every(part => part.open)")
    assert len(browser.call("Page.printToPDF")["data"]) > 10_000
