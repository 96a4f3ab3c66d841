"""The control panel in a real browser: JupyterLab, its kernel, its widgets, headless Chromium.

Skipped where there is no Chromium (see ``browser`` in conftest). ``CUNET_SCREENSHOTS=/some/folder``
keeps pictures of the panel.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import soundfile
from conftest import ROOT, clean_environment, keep_picture

pytestmark = pytest.mark.timeout(900)

JUPYTER = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
JUPYTER += ("IPYTHONDIR",)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """``make lab`` in a folder with a copy of the notebook: its address and its token."""
    root = tmp_path_factory.mktemp("lab")
    # Lab saves what it opens: never the source.
    for folder in ("notebooks/lab", "results/demo/models"):
        shutil.copytree(ROOT / folder, root / folder)
    shutil.copy(ROOT / "notebooks" / "06_explore.ipynb", root / "notebooks")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port, token = free.getsockname()[1], secrets.token_hex(16)
    log = (root / "lab.log").open("w")
    options = f"--no-browser --ServerApp.ip=127.0.0.1 --ServerApp.port={port}"
    options += f" --ServerApp.port_retries=0 --IdentityProvider.token={token}"
    if os.geteuid() == 0:
        options += " --allow-root"
    process = subprocess.Popen(
        ["make", "--file", ROOT / "Makefile", "lab", f"LAB_ARGS={options}"],
        cwd=root,
        env=clean_environment(
            PYTHONPATH=ROOT,
            CUNET_PYTHON=sys.executable,
            HOME=root,
            CUNET_DATA=root / "data",
            CUNET_RESULTS=root / "results",
            **{name: root / name for name in JUPYTER},
        ),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{address}/api/status?token={token}") as answer:
                    json.load(answer)
                break
            except OSError:
                assert process.poll() is None, (root / "lab.log").read_text()[-3000:]
                time.sleep(0.5)
        yield address, token
    finally:
        # Kernels end with the server.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


@pytest.fixture(scope="module")
def page(lab, browser):
    """The notebook, opened and run from its first cell to its last."""
    address, token = lab
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(240_000)  # machines may be busy
    page.goto(f"{address}/?token={token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    # Lab asks which one to take if cells are run before it is connected.
    page.get_by_text("Conditioned U-Net | Idle").first.wait_for()
    page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    try:
        page.locator("img.widget-image").first.wait_for()
    finally:
        keep_picture(page, "lab")
    return page


def sources(page):
    """Where picture and players take their content from, and how long the sounds are."""
    return page.evaluate(
        """() => ({
            picture: document.querySelector('img.widget-image').src,
            sounds: [...document.querySelectorAll('audio.jupyter-widgets')].map(each => each.src),
            seconds: [...document.querySelectorAll('audio.jupyter-widgets')].map(e => e.duration),
        })"""
    )


def settle(page):
    """Wait until the curves, which follow the picture in the kernel's idle time, are drawn.

    Until then a picture's address can be gone before it is read.
    """
    while True:
        before = sources(page)["picture"]
        page.wait_for_timeout(4000)
        if sources(page)["picture"] == before:
            return


def content(page, address):
    """Bytes behind a blob's address, as numbers."""
    return page.evaluate(
        "async url => [...new Uint8Array(await (await fetch(url)).arrayBuffer())]", address
    )


def test_lab_asks_for_its_token(lab):
    address, _ = lab
    with urllib.request.urlopen(f"{address}/lab") as answer:
        assert "/login" in answer.url
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/api/contents")


def test_notebook_runs_with_the_study_s_kernel(page):
    assert page.get_by_text(re.compile(r"^Conditioned U-Net \| ")).count()
    assert page.locator(".jp-OutputArea-output[data-mime-type*='error']").count() == 0
    sliders = page.locator(".widget-slider .widget-label").all_inner_texts()
    assert {"bass", "drums", "other", "vocals"} <= set(sliders)


def test_run_all_ends_at_the_panel_with_sliders_mask_and_estimate_in_view(page):
    panel = page.locator("img.widget-image")
    settle(page)
    keep_picture(page, "panel-900")
    boxes = [each.bounding_box() for each in page.locator(".widget-slider").all()[:4]]
    picture = panel.bounding_box()
    # Mask and estimate fill the upper half of the picture.
    assert min(box["y"] for box in boxes) > 90
    assert picture["y"] + 0.45 * picture["height"] < 870


def test_buttons_are_readable_in_a_narrow_window(page):
    page.set_viewport_size({"width": 800, "height": 900})
    try:
        page.wait_for_timeout(1000)
        keep_picture(page, "panel-800")
        cut = page.evaluate(
            """() => [...document.querySelectorAll('.jupyter-widgets.jupyter-button')]
                .filter(each => each.scrollWidth > each.clientWidth).map(e => e.textContent)"""
        )
        assert cut == []
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


def test_lab_shows_the_project_and_asks_nothing(lab, page):
    address, token = lab
    for folder in ("results", "notebooks"):
        with urllib.request.urlopen(f"{address}/api/contents/{folder}?token={token}") as answer:
            assert json.load(answer)["type"] == "directory"
    assert page.get_by_text("Jupyter news").count() == 0


def test_a_slider_moves_picture_and_sound(page):
    panel = page.locator("img.widget-image")
    panel.scroll_into_view_if_needed()
    page.locator("audio.jupyter-widgets").first.wait_for()
    settle(page)
    keep_picture(page, "panel-before")
    before = sources(page)
    assert len(before["sounds"]) == 4
    assert all(seconds > 5 for seconds in before["seconds"])
    sound = content(page, before["sounds"][1])
    picture = content(page, before["picture"])
    assert bytes(sound[:4]) == b"RIFF" and bytes(picture[1:4]) == b"PNG"

    drums = page.locator(".widget-slider", has=page.get_by_text("drums", exact=True))
    handle = drums.locator(".noUi-handle")
    handle.focus()
    began = time.monotonic()
    handle.press("End")
    page.wait_for_function(
        "before => document.querySelector('img.widget-image').src !== before", arg=before["picture"]
    )
    print(f"from the key to the picture: {time.monotonic() - began:.2f} s")
    settle(page)
    after = sources(page)
    changed = [old != new for old, new in zip(before["sounds"], after["sounds"], strict=True)]
    assert changed == [False, True, True, True]  # the mixture stays
    assert content(page, after["sounds"][1]) != sound
    assert content(page, after["picture"]) != picture
    assert "drums" in page.locator(".widget-html", has_text="asked for").inner_text()
    keep_picture(page, "panel-after")


def test_a_sound_plays(page):
    page.evaluate("() => document.querySelectorAll('audio.jupyter-widgets')[1].play()")
    page.wait_for_function(
        "() => document.querySelectorAll('audio.jupyter-widgets')[1].currentTime > 0.2"
    )


def test_an_upload_becomes_the_song(page, tmp_path):
    rate = 22050
    noise = np.random.default_rng(0).normal(size=12 * rate) * 0.1
    soundfile.write(tmp_path / "mine.flac", noise, rate)
    settle(page)
    before = sources(page)
    # The button's input is no part of the page.
    with page.expect_file_chooser() as opened:
        page.locator(".widget-upload").first.click()
    opened.value.set_files(tmp_path / "mine.flac")
    page.wait_for_function(
        "before => document.querySelectorAll('audio.jupyter-widgets')[0].src !== before",
        arg=before["sounds"][0],
    )
    chosen = page.locator(".widget-dropdown select").first
    assert chosen.evaluate("each => each.selectedOptions[0].text") == "mine.flac"
    keep_picture(page, "panel-upload")
