"""Fixtures that several test files use."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Where it is set, as in many container images, every interpreter that a test starts would compile
# TensorFlow and Keras anew: 10 s of a core.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Before NumPy: BLAS with a thread per core, in a test process per core, slows all of them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import filelock
import hypothesis
import nbformat
import numpy as np
import pytest
import soundfile
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from benchmarks.workloads import run_record, untrained_run  # noqa: F401 - for the tests
from cunet_lib.core.settings import load_profile
from cunet_lib.core.systems import VARIANTS
from cunet_lib.preprocess.store import build_store
from cunet_lib.workflow.parameters import code_cells
from cunet_lib.workflow.stages import SUBJECTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

sys.dont_write_bytecode = False

# Machines are noisy: no test fails by the clock.
hypothesis.settings.register_profile("study", deadline=None)
hypothesis.settings.load_profile("study")

# A job that a shell started in the background ignores Ctrl-C, and would pass that on to the
# processes under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

QUICK = ("test_checkpoint", "test_conditions", "test_config", "test_files")
QUICK += ("test_metrics", "test_notebook_sources", "test_published", "test_readme", "test_results")
QUICK += ("test_scores", "test_setup", "test_spectral", "test_stages", "test_statistics")
"""Test files that neither train, render or decode nor start interpreters; `make test-fast` runs
these alone, without those of their tests that say they are slow."""

# What an outer make, or the user's shell, would pass on to the make under test.
OUTER = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PROFILE", "JOBS", "SEEDS", "MUSDB")
OUTER += ("CLUSTER", "OPENBLAS_NUM_THREADS")
OURS = ("CUNET_DATA", "CUNET_RESULTS", "CUNET_PYTHON", "CUNET_MUSDB", "CUNET_THREADS")
OURS += ("CUNET_CLUSTER", "CUNET_PARENT", "KERAS_HOME")
CONDA = ("CONDA_PREFIX", "CONDA_DEFAULT_ENV")


def clean_environment(**changes):
    """Environment of a user's shell, with ``changes``."""
    kept = {k: v for k, v in os.environ.items() if k not in (*OUTER, *OURS, *CONDA, "PYTHONPATH")}
    return {**kept, **{name: str(value) for name, value in changes.items()}}


def ran(*words, cwd=ROOT, timeout=300, **environment):
    """A command's finished process, both streams as text, in a user's environment with changes."""
    options = {"cwd": cwd, "env": clean_environment(**environment), "timeout": timeout}
    return subprocess.run(words, capture_output=True, text=True, **options)


def started(*words, cwd=ROOT, start_new_session=False, stderr=subprocess.PIPE, **environment):
    """The same of a command that still runs; whoever starts it ends it."""
    options = {"cwd": cwd, "start_new_session": start_new_session, "text": True}
    streams = {"stdout": subprocess.PIPE, "stderr": stderr}
    return subprocess.Popen(words, env=clean_environment(**environment), **streams, **options)


def git(folder, *arguments):
    """Run git in a folder, as a user whose commits have a name."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


def code_of(notebook):
    """Code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


LOCKS = ("requirements.lock", "requirements-gpu.lock")


class Tree:
    """A copy of the project with small notebooks in place of the study's, and its ``make``."""

    def __init__(self, root):
        self.root = root

    def make(self, *arguments, python=sys.executable, **environment):
        """Run make with this test's Python; return the finished process, both streams as text."""
        given = {"CUNET_PYTHON": python} if python else {}
        return ran("make", *arguments, cwd=self.root, **given, **environment)

    def planned(self, *arguments, target="reproduce"):
        """Stages that ``make reproduce``, or another target, goes through, in order."""
        done = self.make("--dry-run", target, "PROFILE=tiny", "JOBS=1", *arguments)
        assert done.returncode == 0, done.stderr
        return re.findall(r"cunet_lib\.cli run (\S+)", done.stdout)

    def notebook(self, name, parameters, *cells):
        """Write a notebook whose cells are ``cells``, code as strings."""
        content = new_notebook(
            cells=[
                new_markdown_cell(f"# {name}"),
                new_code_cell(parameters, metadata={"tags": ["parameters"]}),
                *map(new_code_cell, cells),
            ],
            metadata={
                "kernelspec": {"name": "cunet", "display_name": "cunet", "language": "python"}
            },
        )
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(content, path)
        return path


LOAD = (
    "from cunet_lib.core.settings import load_profile\n"
    "settings = load_profile(profile, overrides)\n"
    "paths = settings.paths"
)
WRITE = (
    "result.parent.mkdir(parents=True, exist_ok=True)\n"
    "written = result.write_text('{}')\n"
    "print('wrote', result.name)"
)
RESULT = (
    "from cunet_lib.workflow.stages import parse_stage\n"
    "result = parse_stage({name!r}, {{{given}}}).result(settings)"
)
COMMON = 'profile = "demo"\noverrides = ""'


@pytest.fixture
def bare_tree(tmp_path):
    """A copy of the project without its notebooks, results and environment."""
    root = tmp_path / "a project"  # a space in the path is no reason to fail
    root.mkdir()
    for name in ("Makefile", "environment.yml", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "cunet_lib", root / "cunet_lib")
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "notebooks" / "profiles" / "tiny.yaml").write_text(
        "title: nothing\ndata:\n  source: rendered\n  validation: 1\n"
        "seeds: {unet: 1, dense_complex: 1}\nshipped: dense_complex\n"
    )
    return Tree(root)


@pytest.fixture
def tree(bare_tree):
    """A copy of the project whose notebooks only write their main result."""
    for path in sorted((ROOT / "notebooks").glob("0[0-57]_*.ipynb")):
        (parameters,) = (text for text, tags in code_cells(path) if "parameters" in tags)
        subject = SUBJECTS.get(path.stem)
        given = f"{subject!r}: {subject}, 'seed': seed" if subject else ""
        result = RESULT.format(name=path.stem, given=given)
        bare_tree.notebook(path.stem, parameters, LOAD, result, WRITE)
    return bare_tree


def write_tones(root, *, train=4, test=2, seconds=4.0, rate=44100):
    """A corpus of plain tones and noise in MUSDB18-HQ layout: quick to make, easy to tell apart."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    for subset, number in (("train", train), ("test", test)):
        for index in range(number):
            sounds = {
                "bass": np.sin(2 * np.pi * (60 + 7 * index) * time),
                "drums": rng.normal(size=time.size) * (time % 0.5 < 0.05) * 0.3,
                "other": np.sign(np.sin(2 * np.pi * (300 + 19 * index) * time)),
                "vocals": np.sin(2 * np.pi * 900 * time + 3 * np.sin(2 * np.pi * 5 * time)),
            }
            stems = {
                name: np.round(3000 * np.stack([sound, sound], axis=1)).astype(np.int16)
                for name, sound in sounds.items()
            }
            stems["mixture"] = sum(stems.values()).astype(np.int16)
            folder = root / subset / f"Tone {index} - {subset} (é)"
            folder.mkdir(parents=True)
            for name, stem in stems.items():
                soundfile.write(folder / f"{name}.wav", stem, rate, subtype="PCM_16")


NETWORKS = [name for name in VARIANTS if not name.endswith("_np")]
"""Variants whose networks differ; those without progressive conditions differ in training."""


def outputs(model, inputs):
    """As an array; without a graph, whose compilation takes longer than a call."""
    import keras

    return keras.ops.convert_to_numpy(model(inputs, training=False))


def changed(settings, section, **values):
    """Settings with other values in one section; unchecked, unlike those of overrides."""
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


def pytest_collection_modifyitems(items):
    """Mark what is slow, and put it first: no core has nothing to do while the last of it runs."""
    for item in items:
        if item.path.stem not in QUICK:
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@dataclass(frozen=True)
class SmokeStudy:
    """A finished ``make reproduce PROFILE=smoke``; tests read it, or work in a copy."""

    data: Path
    results: Path

    @property
    def folder(self):
        """Results of the profile."""
        return self.results / "smoke"

    @property
    def printed(self):
        """Standard output and standard error of the run that made it."""
        return [(self.results / name).read_text() for name in ("stdout", "stderr")]

    @property
    def environment(self):
        """Variables that a command needs to work on it."""
        roots = {"CUNET_DATA": self.data, "CUNET_RESULTS": self.results}
        return {"CUNET_PYTHON": sys.executable, "PYTHONPATH": ROOT, **roots}

    def settings(self, monkeypatch):
        """Settings of the profile, with its roots in this process' environment."""
        monkeypatch.setenv("CUNET_DATA", str(self.data))
        monkeypatch.setenv("CUNET_RESULTS", str(self.results))
        return load_profile("smoke")

    def make(self, *arguments):
        """Run make for this study; returns the finished process."""
        return ran("make", *arguments, "PROFILE=smoke", timeout=1200, **self.environment)

    def copy(self, folder, *, without=()):
        """A copy to write to; folders of results named in ``without`` stay behind.

        Files of data are replaced, never changed, so that a link is as good as a copy.
        """
        shutil.copytree(self.data, folder / "data", copy_function=os.link)
        ignored = shutil.ignore_patterns(*without)
        shutil.copytree(self.results, folder / "results", ignore=ignored)
        return SmokeStudy(folder / "data", folder / "results")


@pytest.fixture(scope="session")
def smoke_study(tmp_path_factory):
    """The smoke study, made once for all test processes.

    In the folder ``CUNET_SMOKE``, where that is set, it is kept, and only what is stale is made.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root = Path(os.environ.get("CUNET_SMOKE") or shared / "smoke").resolve()
    root.mkdir(parents=True, exist_ok=True)
    study = SmokeStudy(root / "data", root / "results")
    with filelock.FileLock(root.with_name(f"{root.name}.lock")):
        if "CUNET_SMOKE" in os.environ or not (study.results / "stdout").exists():
            done = study.make("reproduce")
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr
            for name in ("stdout", "stderr"):
                (study.results / name).write_text(getattr(done, name))
    return study


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """Settings of a small study on tones, with the smallest networks, and its prepared store."""
    root = tmp_path_factory.mktemp("tones")
    patch = pytest.MonkeyPatch()
    patch.setenv("CUNET_DATA", str(root / "data"))
    patch.setenv("CUNET_RESULTS", str(root / "results"))
    settings = load_profile("smoke", "train.steps_per_epoch=4 model.blocks=2")
    write_tones(settings.paths.corpus)
    yield settings, build_store(settings, workers=1)
    patch.undo()


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """The test's own folder, with the roots of data and results in it."""
    monkeypatch.setenv("CUNET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture
def full_disk(monkeypatch):
    """A function after which writing whole files fails as on a full disk, at one of their steps."""

    def fill(where):
        def refuse(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        place, name = {
            "name": (tempfile, "mkstemp"),
            "content": (Path, "write_bytes"),
            "archive": (np, "savez"),
            "rename": (os, "fsync"),
        }[where]
        monkeypatch.setattr(place, name, refuse)

    return fill


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A made-up study, and what notebook 05 made of it (see ``made_up.plotted``)."""
    from made_up import plotted

    with pytest.MonkeyPatch.context() as patch:
        yield plotted(patch, tmp_path_factory.mktemp("study"))


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)

CHROMIUM_FLAGS = ["--disable-gpu", "--disable-quic", "--disable-background-networking"]
CHROMIUM_FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run", "--mute-audio"]
CHROMIUM_FLAGS += ["--autoplay-policy=no-user-gesture-required"]


# No longer than a module: while it runs, its event loop is in the way of others in this process.
@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, headless, spoken to by Playwright; skips where it is not."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make env")
    if CHROMIUM is None:
        pytest.skip("needs Chromium or Chrome: apt install chromium")
    sandbox = os.geteuid() != 0  # root has none
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=CHROMIUM_FLAGS, chromium_sandbox=sandbox
        )
        yield browser
        browser.close()


def keep_picture(page, name):
    """Keep what a page shows in the folder ``CUNET_SCREENSHOTS``, if there is one to look at it."""
    if folder := os.environ.get("CUNET_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture
def rng():
    """One seeded generator for every test that draws numbers."""
    return np.random.default_rng(20190701)
