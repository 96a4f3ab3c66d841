"""Bad input of every kind: one sentence with culprit and remedy, nothing written, nothing hangs.

The cases stand in ``benchmarks/damage.py``. Most are shown to the command in this process, some to
a real one; property tests add inputs that nobody thought of.
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, clean_environment, ran, untrained_run, write_tones
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager
from papermill.translators import PythonTranslator

from benchmarks import damage as gallery
from cunet_lib import cli
from cunet_lib.core.files import WriteError
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.evaluation import scores as analysis
from cunet_lib.evaluation.metrics import SCORE_COLUMNS
from cunet_lib.models import conditions, weights
from cunet_lib.models.weights import load
from cunet_lib.preprocess.check import check_corpus
from cunet_lib.preprocess.store import Store, build_store, open_store
from cunet_lib.preprocess.tracks import STEMS, Source, decode
from cunet_lib.report import records as results
from cunet_lib.report.card import scores_of
from cunet_lib.separation import catalog, songs
from cunet_lib.separation import separator as separation
from cunet_lib.signal.audio import open_audio
from cunet_lib.train import checkpoint
from cunet_lib.workflow import sweep
from cunet_lib.workflow.stages import parse_stage

SMOKE = load_profile("smoke")
MODEL = "dense_simple"
few = examples(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])

pytestmark = pytest.mark.timeout(60)  # none of them may hang


@pytest.fixture(autouse=True)
def sandbox(tmp_path, monkeypatch):
    """Work in an empty folder, so that whatever is written beside it is seen."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    assert not list(tmp_path.rglob("injected"))


def contents(folder):
    """Every path below a folder, with what tells whether it was changed."""
    found = {}
    for path in folder.rglob("*"):
        regular = path.is_file() and not path.is_symlink()
        try:
            found[path] = hashlib.sha256(path.read_bytes()).digest() if regular else None
        except PermissionError:
            found[path] = None
    return found


def assert_sentence(text, *words):
    """One line, for people: it names the culprit, ends as a sentence does, and shows no insides."""
    assert "\n" not in text and "\r" not in text and "\x1b" not in text, text
    assert text.endswith(".") and len(text) < 700, text
    assert "Traceback" not in text and " object at 0x" not in text, text
    missing = [word for word in words if word not in text]
    assert not missing, (missing, text)


def refused(call, *words):
    """The library refuses with one sentence that holds these words."""
    with pytest.raises((ConfigError, WriteError)) as caught:
        call()
    assert_sentence(str(caught.value), *words)
    return str(caught.value)


def accepted_or_refused(call, *words):
    """The library takes it, or refuses with one sentence that holds these words."""
    try:
        return call()
    except ConfigError as error:
        return assert_sentence(str(error), *words)


def shown(path):
    """A file's name as messages show it."""
    return "".join(c if c.isprintable() or c == "\u200d" else ascii(c)[1:-1] for c in path)


# ---------------------------------------------------------------------------------------- songs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """File of a small model in a results folder of its own."""
    root = tmp_path_factory.mktemp("results").resolve()
    return untrained_run(SMOKE, MODEL, root / "demo" / "runs" / f"{MODEL}-seed0")


@pytest.fixture(scope="module")
def separator(trained):
    loaded = songs.SongSeparator(catalog.describe(trained))
    assert loaded.separator.conditioned
    return loaded


@pytest.fixture
def separated(trained, separator, monkeypatch, sandbox, capfd):
    """Show a song to ``cunet separate``: exit status, stderr, the file that was written."""
    monkeypatch.setenv("CUNET_RESULTS", str(trained.parents[3]))
    ready = lambda self, *_, **options: self.__dict__.update(separator.__dict__)  # noqa: E731
    monkeypatch.setattr(songs.SongSeparator, "__init__", ready)

    def show(path, instruments="vocals"):
        out, before = sandbox / "out", contents(sandbox)
        words = ["separate", str(path), "--instruments", instruments, "--out", str(out)]
        status, errors = cli.main(words), capfd.readouterr().err
        if status:
            assert contents(sandbox) == before
            assert_sentence(errors.removesuffix("\n"))
            return status, errors, None
        assert errors == ""
        written = contents(sandbox).keys() - before
        assert all(each.is_relative_to(out) for each in written)
        (file,) = (each for each in written if each.is_file())
        assert file.name == "vocals.wav"
        return status, errors, file

    return show


def one_of(separated, path, *, must=False):
    """A damaged song is refused by name, or read as far as it goes; what comes out is finite."""
    status, errors, file = separated(path)
    if status:
        assert status == 1 and shown(path.name) in errors and ";" in errors
        return
    assert not must, "it should have been refused"
    samples, _ = soundfile.read(file)
    assert len(samples) and np.isfinite(samples).all()


@pytest.mark.parametrize("damage", [*gallery.NO_AUDIO, *gallery.DAMAGES])
@pytest.mark.parametrize("kind", gallery.CONTAINERS)
def test_damaged_song(separated, sandbox, kind, damage):
    change = {**gallery.NO_AUDIO, **gallery.DAMAGES}[damage]
    path = sandbox / f"song.{kind}"
    path.write_bytes(change(gallery.container(kind)))
    must = damage in gallery.NO_AUDIO or (kind, damage) in gallery.MUST_REFUSE
    one_of(separated, path, must=must)


@pytest.mark.parametrize("kind", gallery.CONTAINERS)
def test_sound_song(separated, sandbox, kind):
    (sandbox / f"song.{kind}").write_bytes(gallery.container(kind))
    status, _, file = separated(sandbox / f"song.{kind}")
    info = soundfile.info(file)
    assert status == 0 and info.frames == pytest.approx(8000, rel=0.5)


@pytest.mark.parametrize("field", gallery.HEADERS)
def test_song_with_an_impossible_header(separated, sandbox, field):
    path = sandbox / ("song.flac" if field.startswith("FLAC") else "song.wav")
    path.write_bytes(gallery.HEADERS[field])
    one_of(separated, path, must=True)


@pytest.mark.parametrize("name", gallery.ODD_SOUNDS)
def test_strange_sound_comes_out_finite_and_as_long(separated, sandbox, name):
    samples = gallery.ODD_SOUNDS[name].astype(np.float32)
    path = sandbox / "song.wav"
    soundfile.write(path, samples, gallery.RATE, subtype="FLOAT")
    status, _, file = separated(path)
    assert status == 0
    estimate, rate = soundfile.read(file)
    assert rate == gallery.RATE and len(estimate) == len(samples)
    assert np.isfinite(estimate).all()
    assert np.abs(estimate).max() <= 4 * np.abs(samples).max() + 1e-6


@pytest.mark.parametrize("name", gallery.NAMES)
def test_strange_name_is_only_a_name(separated, sandbox, name):
    (sandbox / "songs").mkdir()
    path = sandbox / "songs" / f"{name}.wav"
    path.write_bytes(gallery.container("wav"))
    status, _, file = separated(path)
    assert status == 0 and file.parent.parent == sandbox / "out"
    shutil.rmtree(sandbox / "out")
    path.write_bytes(b"no audio")
    status, errors, _ = separated(path)
    assert status == 1 and shown(path.name) in errors


@pytest.mark.parametrize("kind", gallery.SPECIAL)
def test_what_is_no_file_is_no_song(separated, sandbox, kind):
    path = gallery.special(kind, sandbox / "song.wav")
    status, errors, _ = separated(path)
    assert status == 1 and (shown(path.name) in errors or kind == "null byte")


@pytest.mark.parametrize("name", ["", ".", "..", "http://127.0.0.1/a.mp3", "concat:a|b", "pipe:"])
def test_an_address_is_no_song(separated, name):
    assert separated(name)[0] == 1


@pytest.mark.parametrize("kind", gallery.PLAYLISTS)
def test_a_playlist_reaches_no_network(separated, sandbox, kind):
    server, host = gallery.listener()
    path = sandbox / f"list.{kind}"
    path.write_text(gallery.PLAYLISTS[kind].replace("{host}", host))
    with server:
        status, errors, _ = separated(path)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert status == 1 and path.name in errors


@contextlib.contextmanager
def as_nobody():
    """Without root's rights, as far as this process has them."""
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_unreadable_files_are_named(sandbox):
    # A place that everyone may enter, for files that not everyone may read.
    with tempfile.TemporaryDirectory(prefix="cunet-test-") as folder:
        place = Path(folder)
        place.chmod(0o755)
        song, closed, profile = place / "song.wav", place / "closed", place / "mine.yaml"
        song.write_bytes(gallery.container("wav"))
        profile.write_text(gallery.MINIMAL)
        (place / "T").mkdir()
        for stem in STEMS:
            (place / "T" / f"{stem}.wav").symlink_to(song)
        for path in (song, profile):
            path.chmod(0)
        closed.mkdir(mode=0)
        (place / "taken").mkdir(mode=0o555)

        # Inside the closed one nothing can be looked up; the other is a song's folder.
        def target(folder):
            songs.check_free(Path("taken.wav"), [folder / "bass.wav"], force=False)

        with as_nobody():
            refused(lambda: open_audio(song), "song.wav", "rights")
            refused(lambda: load_profile(str(profile)), "mine.yaml")
            refused(lambda: decode(Source("T", "train", place / "T"), 8192), "mixture.wav")
            refused(lambda: songs._fresh_folder(closed / "out").__enter__(), "closed", "--out")
            refused(lambda: target(folder=closed / "taken"), "closed", "--out")
            refused(lambda: target(folder=place / "taken"), place.name, "--out")
        closed.chmod(0o755)


@pytest.mark.parametrize("text", gallery.TEXTS["requests"])
def test_bad_request(separated, sandbox, text):
    (sandbox / "song.wav").write_bytes(gallery.container("wav"))
    assert separated(sandbox / "song.wav", text)[0] == 2


@few
@given(
    st.sampled_from(["wav", "flac", "aiff", "ogg"]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=12),
    st.integers(0, 1 << 20),
)
def test_any_change_of_a_song_is_refused_or_read(tmp_path, kind, changes, length):
    content = bytearray(gallery.container(kind))
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / f"any.{kind}"
    path.write_bytes(content[: max(1, length % (2 * len(content)))])
    for block in accepted_or_refused(lambda: list(open_audio(path).blocks()), path.name) or ():
        assert block.dtype == np.float32 and block.ndim == 2


# --------------------------------------------------------------------------------------- corpora


FIRST, SECOND, THIRD, TESTED = (
    f"Tone {place}" for place in ("0 - train (é)", "1 - train (é)", "2 - train (é)", "0 - test (é)")
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    write_tones(root, train=3, test=1, seconds=0.3)
    return root


@pytest.fixture
def tracks(corpus, sandbox, roots, monkeypatch):
    """A copy of the corpus to damage, and the settings that read it."""
    root = sandbox / "musdb"
    shutil.copytree(corpus, root, copy_function=os.link)
    monkeypatch.setenv("CUNET_MUSDB", str(root))
    return root, load_profile("smoke", "data.source=musdb18 data.validation=1")


def listed(call, *words):
    """Problems of a corpus that a call refuses, one a line; these words stand in one of them."""
    with pytest.raises(ConfigError) as caught:
        call()
    lines = [line.strip() for line in str(caught.value).splitlines()]
    lines = lines[1:] or lines
    for line in lines:
        assert_sentence(line)
        assert ";" in line, line
    assert any(all(word in line for word in words) for line in lines), (words, lines)
    return lines


def checked(settings, *words):
    """Problems that ``cunet check`` finds, one a line; nothing is written."""
    data = settings.paths.data
    before = contents(data)
    lines = listed(lambda: check_corpus(settings, report=lambda line: None), *words)
    assert contents(data) == before
    return lines


def store_refused(settings, *words):
    listed(lambda: build_store(settings, workers=1), *words)
    folder = settings.paths.store
    # Tracks that were finished are kept for the next time; the index, which makes a store, is not.
    left = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert all(re.fullmatch(r"[0-9a-f]+\.npy|\.lock", name) for name in left)


@pytest.mark.parametrize("damage", gallery.STEM_DAMAGES)
def test_damaged_stem(tracks, damage):
    root, settings = tracks
    stem = "mixture" if len(damage) % 2 else "vocals"
    gallery.STEM_DAMAGES[damage](root / "train" / SECOND / f"{stem}.wav")
    lines = checked(settings, SECOND)
    assert all("Tone 1" in line for line in lines)
    store_refused(settings, SECOND)


@pytest.mark.parametrize("damage", gallery.ONLY_CHECKED)
def test_stem_that_does_not_fit(tracks, damage):
    root, settings = tracks
    gallery.ONLY_CHECKED[damage](root / "test" / TESTED / "vocals.wav")
    lines = checked(settings, TESTED)
    assert all(TESTED in line for line in lines)


@pytest.mark.parametrize("change", gallery.ODD_STEMS)
def test_strange_stems_are_prepared_finite_and_as_long(tracks, change):
    root, settings = tracks
    folder = root / "train" / THIRD
    for path in folder.glob("*.wav"):
        gallery.resounded(gallery.ODD_STEMS[change])(path)
    store = build_store(settings, workers=1)
    (entry,) = [entry for entry in store.entries if entry.name == folder.name]
    assert np.isfinite(store.audio(entry)).all() and entry.samples == pytest.approx(2458, abs=2)
    assert np.isfinite(entry.scale) and entry.scale > 0


TRACK_NAMES = [n for n in gallery.NAMES if n[0] != "." and "\udce9" not in n]


def test_a_track_whose_name_is_no_text_is_refused(tracks):
    root, settings = tracks
    (root / "train" / FIRST).rename(root / "train" / os.fsdecode(b"latin \xe9"))
    checked(settings, "latin", "rename it")
    store_refused(settings, "latin", "rename it")


def test_strange_track_names_are_only_names(tracks):
    root, settings = tracks
    folders = [root / "train" / name for name in TRACK_NAMES]
    for folder in folders:
        shutil.copytree(root / "train" / FIRST, folder, copy_function=os.link)
    store = build_store(settings, workers=1)
    assert {*TRACK_NAMES} < {entry.name for entry in open_store(settings).entries}
    assert all((store.folder / entry.file).parent == store.folder for entry in store.entries)
    for folder in folders:
        (folder / "bass.wav").unlink()
        source = Source(folder.name, "train", folder)
        refused(partial(decode, source, 8192), f"/train/{shown(folder.name)}/bass.wav")
    told = [line.partition("/bass.wav")[0] for line in checked(settings)]
    assert sorted(told) == sorted(f"train/{shown(name)}" for name in TRACK_NAMES)


def _only(content, *, parents=""):
    """A change that leaves nothing, a text or an empty folder in a place."""

    def change(root):
        place = root / parents
        shutil.rmtree(place)
        if content is not None:
            place.mkdir() if content == "folder" else place.write_text(content)

    return change


def _one_track(root):
    for name in (SECOND, THIRD):
        shutil.rmtree(root / "train" / name)


def _stem_file(content):
    def change(root):
        for folder in root.glob("*/*"):
            shutil.rmtree(folder)
        for name in ("train/S0", "train/S1", "test/T0"):
            (root / f"{name}.stem.mp4").write_bytes(content)

    return change


M4A = gallery.container("m4a")
CORPORA = {
    "no folder": (_only(None), "musdb"),
    "a file": (_only("x"), "musdb"),
    "an empty folder": (_only("folder"), "train"),
    "no train": (_only(None, parents="train"), "train"),
    "no test": (_only(None, parents="test"), "test"),
    "train is a file": (_only("x", parents="train"), "train"),
    "nothing in train": (_only("folder", parents="train"), "train"),
    "nothing in test": (_only("folder", parents="test"), "test"),
    "one track to train and validate": (_one_track, "data.validation"),
    "an empty track": (lambda root: (root / "train" / "an empty one").mkdir(), "an empty one"),
    "stem files of one stream": (_stem_file(M4A), "S0"),
    "stem files of nothing": (_stem_file(b""), "S0"),
    "stem files of text": (_stem_file(b"La la la\n" * 99), "S0"),
    "stem files of half": (_stem_file(M4A[:600]), "S0"),
    "stem files that are WAV": (_stem_file(gallery.container("wav")), "S0"),
    "stem files that are playlists": (_stem_file(gallery.PLAYLISTS["mp4"].encode()), "S0"),
    "a track twice": (
        lambda root: (root / "train" / FIRST).rename(root / "train" / TESTED),
        TESTED,
    ),
    "stem files among folders": (
        lambda root: (root / "train" / "Other.stem.mp4").write_bytes(M4A),
        "mixed",
    ),
}
HELD_OUT = {
    "[Nobody]": "Nobody",
    "3": "data.validation",
    "99": "data.validation",
    f"[{FIRST}, {SECOND}, {THIRD}]": "data.validation",
}


def impossible(settings, word):
    checked(settings, word)
    store_refused(settings, word)


@pytest.mark.parametrize("case", CORPORA)
def test_impossible_corpus(tracks, case):
    root, settings = tracks
    change, word = CORPORA[case]
    change(root)
    impossible(settings, word)


@pytest.mark.parametrize("validation", HELD_OUT)
def test_impossible_validation_tracks(tracks, validation):
    settings = load_profile("smoke", ["data.source=musdb18", f"data.validation={validation}"])
    impossible(settings, HELD_OUT[validation])


def test_links_out_of_the_tree_are_read_and_never_written(tracks, sandbox):
    root, settings = tracks
    outside = sandbox / "outside"
    shutil.move(root / "train" / FIRST, outside)
    (root / "train" / FIRST).symlink_to(outside)
    before = contents(outside)
    check_corpus(settings, report=lambda line: None)
    assert len(build_store(settings, workers=1).entries) == 4
    assert contents(outside) == before


def test_a_link_in_place_of_a_result_is_replaced_and_not_followed(tracks, sandbox):
    _, settings = tracks
    secret = sandbox / "secret.json"
    secret.write_text("{}")
    settings.paths.store.mkdir(parents=True)
    (settings.paths.store / "index.json").symlink_to(secret)
    build_store(settings, workers=1)
    assert secret.read_text() == "{}"
    assert not (settings.paths.store / "index.json").is_symlink()


# -------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("override", gallery.TEXTS["overrides"])
def test_wrong_override(override):
    keys = override.partition("=")[0].split(".")
    told = refused(lambda: load_profile("smoke", [override]))
    assert any(key in told for key in keys) or "must look like" in told


@pytest.mark.parametrize("case", [*gallery.YAML_FILES, *gallery.BINARY_PROFILES])
def test_wrong_profile(sandbox, case, capsys):
    path = sandbox / "mine.yaml"
    content = gallery.YAML_FILES.get(case)
    path.write_bytes(gallery.BINARY_PROFILES[case] if content is None else content.encode())
    refused(lambda: load_profile(str(path)), "mine.yaml")
    before = contents(sandbox)
    assert cli.main(["verify", str(path)]) == 2
    assert_sentence(capsys.readouterr().err.removesuffix("\n"), "mine.yaml")
    assert contents(sandbox) == before


@pytest.mark.parametrize("kind", [kind for kind in gallery.SPECIAL if kind != "device"])
def test_what_is_no_file_is_no_profile(sandbox, kind):
    path = gallery.special(kind, sandbox / "mine.yaml")
    if path.suffix != ".yaml":
        path = path.with_name(path.name + ".yaml")
    refused(lambda: load_profile(str(path)))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
sections = st.sampled_from(["title", "seed", "name", "shipped", *type(SMOKE).model_fields])


@few
@given(st.dictionaries(sections, values, max_size=4))
def test_any_profile_is_accepted_or_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_text(json.dumps(content))
    accepted_or_refused(lambda: load_profile(str(path)), "any.yaml")


@few
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_as_a_profile_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(gallery.MINIMAL.encode() + content)
    accepted_or_refused(lambda: load_profile(str(path)), "any.yaml")


# ----------------------------------------------------------------------------- stages and grids


@pytest.mark.parametrize("name", gallery.TEXTS["stages"])
def test_wrong_stage(name, sandbox):
    before = contents(sandbox)
    refused(lambda: parse_stage(name, {}))
    assert contents(sandbox) == before


@pytest.mark.parametrize(("notebook", "name", "value"), gallery.TEXTS["parameters"])
def test_wrong_parameter(notebook, name, value, sandbox, roots, capsys):
    before = contents(sandbox)
    assert cli.main(["run", notebook, "-p", name, value]) == 2
    assert_sentence(capsys.readouterr().err.removesuffix("\n"))
    assert contents(sandbox) == before


@pytest.mark.parametrize("grid", gallery.TEXTS["grids"])
def test_wrong_grid(grid, roots):
    refused(lambda: sweep.plan("smoke", "03_train_cunet", grid))
    assert not (roots / "results").exists()


@few
@given(st.text(max_size=40))
def test_any_text_as_stage_grid_request_or_override_is_refused_in_one_sentence(text):
    for call in (
        lambda: parse_stage(text, {}),
        lambda: sweep.plan("smoke", "03_train_cunet", text),
        lambda: songs.requests([text]),
        lambda: conditions.parse(text),
        lambda: load_profile("smoke", [f"{text}={text}"]),
    ):
        accepted_or_refused(call)


@few
@given(st.text(max_size=80))
def test_papermill_s_cell_holds_text_as_text(text):
    """What papermill writes into a notebook is read back as what it was given, never run."""
    cell = PythonTranslator.codify({"overrides": text}, "Parameters")
    (statement,) = ast.parse(TransformerManager().transform_cell(cell)).body
    assert isinstance(statement, ast.Assign) and statement.targets[0].id == "overrides"
    assert ast.literal_eval(statement.value) == text


# ---------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("case", gallery.MODELS)
def test_wrong_model(trained, sandbox, monkeypatch, case, capsys):
    path = sandbox / "mine.keras"
    path.write_bytes(gallery.MODELS[case](trained.read_bytes()))
    refused(lambda: load(path), "mine.keras")
    (sandbox / "song.wav").write_bytes(gallery.container("wav"))
    before = contents(sandbox)
    assert cli.main(["separate", "../song.wav", "--model", str(path)]) != 0
    assert_sentence(capsys.readouterr().err.removesuffix("\n"), "mine.keras")
    assert contents(sandbox) == before


@pytest.mark.parametrize("kind", [kind for kind in gallery.SPECIAL if kind != "null byte"])
def test_what_is_no_file_is_no_model(sandbox, kind):
    path = gallery.special(kind, sandbox / "mine.keras")
    refused(lambda: load(path))
    refused(lambda: catalog.find(str(path)))


@few
@given(st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(0, 255)), min_size=1, max_size=9))
def test_any_change_of_a_model_is_seen_before_keras_reads_it(trained, tmp_path, changes):
    content = bytearray(trained.read_bytes())
    before = bytes(content)
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "any.keras"
    path.write_bytes(content)
    try:
        weights._content(path)
    except Exception:  # zip and JSON have dozens; `load` makes one sentence of them
        return
    # Only what no checksum covers may have changed: dates and padding of the archive.
    read = gallery.altered_archive(bytes(content), lambda members: members)
    assert read == gallery.altered_archive(before, lambda members: members)


@pytest.mark.parametrize("junk", gallery.JUNK, ids=repr)
@pytest.mark.parametrize("key", ["settings", "model", "seed", "settings.signal", "settings.title"])
def test_strange_record_beside_a_model(trained, roots, key, junk):
    """It is refused by name, or the model is listed all the same."""
    folder = roots / "results" / "demo" / "runs" / f"{MODEL}-seed0"
    folder.mkdir(parents=True)
    os.link(trained, folder / "model.keras")
    record = json.loads((trained.parent / "run.json").read_text())
    place = record
    *sections, last = key.split(".")
    for section in sections:
        place = place[section]
    place[last] = junk
    (folder / "run.json").write_text(json.dumps(record))
    listed = accepted_or_refused(lambda: catalog.table(scores_of), folder.name)
    assert listed is None or folder.name in listed


RECORDS = {
    "runs": (
        "run.json",
        lambda path: results.load_runs(SMOKE.model_copy(update={"seeds": {MODEL: 1}})),
    ),
    "a run": ("run.json", lambda path: separation.load_run(SMOKE, MODEL, seed=0)),
    "a system": ("run.json", lambda path: separation.System(SMOKE, MODEL, seed=0)),
    "a store": ("index.json", lambda path: Store(path.parent)),
}


@pytest.mark.parametrize("kind", gallery.BROKEN_JSON)
@pytest.mark.parametrize("reader", RECORDS)
def test_broken_record(roots, reader, kind):
    """Files that the study wrote, read again."""
    name, read = RECORDS[reader]
    path = SMOKE.paths.run(MODEL, 0) / name
    path.parent.mkdir(parents=True)
    whole = json.dumps({"settings": SMOKE.model_dump(mode="json")}).encode()
    path.write_bytes(gallery.BROKEN_JSON[kind](whole))
    refused(lambda: read(path), name, "delete", "make reproduce")


# ------------------------------------------------------------------------- stores, checkpoints


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    """A finished store to copy, and its settings."""
    root = tmp_path_factory.mktemp("prepared")
    patch = pytest.MonkeyPatch()
    patch.setenv("CUNET_MUSDB", str(corpus))
    patch.setenv("CUNET_DATA", str(root))
    settings = load_profile("smoke", "data.source=musdb18 data.validation=1")
    store = build_store(settings, workers=1)
    patch.undo()
    return settings, store


@pytest.fixture
def store_folder(prepared, roots):
    settings, store = prepared
    shutil.copytree(store.folder, settings.paths.store)
    return settings, settings.paths.store


WRONG_ENTRIES = [
    *(("name", junk) for junk in (None, 1, "", "../x", "a/b", "\0")),
    *(("file", junk) for junk in (None, 1, "", "x", "../x.npy", "/etc/passwd", "a/b.npy")),
    *(("samples", junk) for junk in (None, 0, 1.5, "9")),
    *(("seconds", junk) for junk in (-1, float("nan"))),
    *(("scale", junk) for junk in (0, float("inf"))),
    *(("split", junk) for junk in ("training", [])),
    *((field, 1) for field in ("sha256", "source", "unknown")),
]


@pytest.mark.parametrize(("field", "junk"), WRONG_ENTRIES, ids=str)
def test_altered_index(store_folder, field, junk):
    settings, folder = store_folder
    index = json.loads((folder / "index.json").read_text())
    index["tracks"][0][field] = junk
    (folder / "index.json").write_text(json.dumps(index))
    refused(lambda: open_store(settings), "index.json", "delete")


@pytest.mark.parametrize("kind", gallery.ARRAYS)
def test_altered_audio_of_a_store(store_folder, kind):
    settings, folder = store_folder
    store = open_store(settings)
    entry = store.split("train")[0]
    path = folder / entry.file
    path.write_bytes(gallery.ARRAYS[kind](path.read_bytes()))
    refused(lambda: store.audio(entry), entry.file, "preprocess")
    refused(lambda: store.verify("train"), entry.file, "preprocess")


def test_missing_store_is_told(roots):
    refused(lambda: open_store(SMOKE), "index.json", "make reproduce")
    (roots / "data").write_text("x")
    refused(lambda: open_store(SMOKE), "index.json")


@few
@given(st.sampled_from(["tracks", "signal", "settings_hash"]), values)
def test_any_index_is_refused_in_one_sentence(tmp_path, key, junk):
    content = {"signal": {}, "settings_hash": "a", "tracks": [{}], key: junk}
    (tmp_path / "index.json").write_text(json.dumps(content))
    accepted_or_refused(lambda: Store(tmp_path), "index.json")


def _npz(**parts):
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    return buffer.getvalue()


def _about(text):
    return np.frombuffer(text, np.uint8)


WHOLE = b'{"facts": {}, "state": {}}'
LACKING = (b"{", b"[]", b"1", b'{"state": {}}', b'{"facts": {}}', b"[" * 99999)
LACKING += (b'{"facts": "a", "state": {}}',)
CHECKPOINTS = {
    "nothing": b"",
    "text": b"weights\n" * 99,
    "a zip of text": gallery.zipped(b"x"),
    "one array": np.lib.format.magic(1, 0) + bytes(20),
    "a pickle": pickle.dumps({"network": []}),
    "nothing about it": _npz(arr_0=np.zeros(3)),
    "pickled weights": _npz(about=_about(WHOLE), arr_0=np.array([{}], object)),
    **{f"about it: {text[:30]}": _npz(about=_about(text)) for text in LACKING},
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_of_something_else_is_passed_over_in_one_line(sandbox, case):
    (sandbox / "checkpoint").mkdir()
    (sandbox / "checkpoint" / "epoch-000003.npz").write_bytes(CHECKPOINTS[case])
    lines = []
    assert checkpoint.load(sandbox / "checkpoint", {"seed": 0}, lines.append) is None
    assert lines == ["checkpoint epoch-000003.npz is damaged and is passed over"]


# ---------------------------------------------------------------------------------------- scores


ROW = "unet,0,t,bass,SDR,BSS Eval v4,median over frames,1.0,9,0"


@few
@given(st.lists(st.tuples(st.integers(0, 400), st.characters(codec="utf-8")), max_size=6))
def test_any_change_of_a_score_table_is_refused_or_read(tmp_path, changes):
    path = tmp_path / "unet-seed0.csv"
    text = list(f"{','.join(SCORE_COLUMNS)}\n{ROW}\n")
    for place, sign in changes:
        text[place % len(text)] = sign
    path.write_text("".join(text))
    accepted_or_refused(lambda: analysis.read_scores(path), "unet-seed0.csv")


# ------------------------------------------------------------------------------- real processes

PROCESSES = {
    "text.mp3": ["separate", "{here}/text.mp3"],
    "bytes.yaml": ["verify", "{here}/bytes.yaml"],
    "MUSDB=": ["check", "musdb18"],
    "../../up": ["run", "03_train_cunet", "-p", "variant", "../../up"],
    "05_plot.ipynb": ["report", "smoke"],
}


@pytest.mark.parametrize("culprit", PROCESSES)
def test_command_ends_with_a_sentence_and_no_traceback(sandbox, culprit):
    here = sandbox / "in"
    here.mkdir()
    (here / "text.mp3").write_text("La la la\n" * 99)
    (here / "bytes.yaml").write_bytes(b"\xff\xfe\0")
    (here / "file").write_text("x")
    words = [word.replace("{here}", str(here)) for word in PROCESSES[culprit]]
    roots = {"CUNET_RESULTS": here / "file"} if "report" in words else {}
    before = contents(sandbox)
    command = [sys.executable, "-m", "cunet_lib.cli", *words]
    done = ran(*command, cwd=None, timeout=60, PYTHONPATH=ROOT, **roots)
    assert done.returncode in (1, 2) and (done.stdout == "" or "separate" in words)
    assert_sentence(done.stderr.removesuffix("\n"), culprit)
    assert contents(sandbox) == before


def test_a_separation_that_is_stopped_leaves_nothing(trained, sandbox):
    """By the end of its terminal, which the command takes for Ctrl-C."""
    song, out = sandbox / "song.wav", sandbox / "out"
    soundfile.write(song, np.tile(gallery.sound(), (1200, 1)), gallery.RATE)
    process = subprocess.Popen(
        [sys.executable, "-m", "cunet_lib.cli", "separate", song, "--model", trained, "--out", out],
        env=clean_environment(PYTHONPATH=ROOT, CUNET_RESULTS=trained.parents[3]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What started the tests may have it ignored, as nohup does; children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        # A part of ten minutes of music is being written.
        while not list(out.glob(".partial-*/*.wav")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert_sentence(errors.splitlines()[-1], "nothing half-written was kept", "same command")
    assert "Traceback" not in errors and not out.exists()
