"""Rooms of ``cunet_lib``: what each may import, what stays out of it, what importing it costs."""

import ast
import os
import sys

import pytest
from conftest import ROOT, ran

ROOMS = {
    "core": (),
    "signal": ("core",),
    "preprocess": ("core", "signal"),
    "models": ("core", "signal"),
    "train": ("core", "signal", "preprocess", "models"),
    "separation": ("core", "signal", "models"),
    "evaluation": ("core", "signal", "preprocess"),
    "report": ("core", "signal", "preprocess", "models", "separation", "evaluation"),
    "explore": ("core", "signal", "preprocess", "models", "separation", "evaluation", "report"),
    "workflow": None,
}
"""Which rooms each room may import; workflow, and the command line, start all of them."""

HEAVY = ("tensorflow", "keras", "numpy", "pandas", "librosa", "matplotlib")
NEVER = {
    "core": ("librosa", "matplotlib"),
    "preprocess": ("tensorflow", "keras"),
    "models": ("soundfile", "musdb", "stempeg"),
    "separation": ("musdb",),
}
"""Other packages that a room never imports."""

MODULES = sorted(ROOT.glob("cunet_lib/*/*.py"))


def imported(path):
    """Every module that a file imports, anywhere in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may_and_says_so(room):
    folder = ROOT / "cunet_lib" / room
    assert len(list(folder.glob("*.py"))) <= 7
    words = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert words and len(words.splitlines()) >= 3, "what enters, what leaves, what it may import"
    for path in folder.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 500, path
        names = set(imported(path))
        tops = {name.split(".")[0] for name in names}
        assert "rendered_corpus" not in tops and not tops & set(NEVER.get(room, ())), path
        rooms = {name.split(".")[1] for name in names if name.startswith("cunet_lib.")} - {room}
        if ROOMS[room] is not None:
            assert rooms <= set(ROOMS[room]), path


def test_every_module_lies_in_a_room():
    assert {path.parent.name for path in MODULES} == set(ROOMS)
    assert {path.name for path in ROOT.glob("cunet_lib/*.py")} == {"__init__.py", "cli.py"}


def test_the_table_of_rooms_names_every_file_and_counts_its_lines():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    told = {row[0].strip("`"): (set(row[2].split(", ")), row[3]) for row in rows[1:]}
    assert set(told) == {*ROOMS, "the door", "rendered_corpus", "benchmarks"}
    for room, (files, lines) in told.items():
        folder = ROOT / ("" if room in ("rendered_corpus", "benchmarks") else "cunet_lib")
        paths = list((folder / ("" if room == "the door" else room)).glob("*.py"))
        names = {f"`{path.stem}`" for path in paths}
        assert files == (names if room == "the door" else names - {"`__init__`"}), room
        counted = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        assert int(lines.replace(",", "")) == pytest.approx(counted, rel=0.1), room


def test_the_corpus_shares_only_a_folder_with_the_study():
    for path in ROOT.glob("rendered_corpus/**/*.py"):
        assert not [name for name in imported(path) if name.startswith("cunet_lib")], path


def loaded_by(code, **environment):
    words = (sys.executable, "-c", f"import sys; {code}; print('|'.join(sys.modules))")
    done = ran(*words, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return {name.split(".")[0] for name in done.stdout.strip().split("|")}


def test_package_alone_loads_nothing_but_the_standard_library():
    assert loaded_by("import cunet_lib") <= {
        "cunet_lib",
        *loaded_by("pass"),
        *sys.stdlib_module_names,
    }


def test_command_and_preparation_load_nothing_heavy():
    assert not loaded_by("import cunet_lib.cli, cunet_lib.workflow.stages") & set(HEAVY)
    assert "tensorflow" not in loaded_by("import cunet_lib.preprocess.store")


NOISE = """
import sys, cunet_lib, keras, nbformat, numpy, tensorflow
spared = {"sklearn", "matplotlib", "rfc3987_syntax"}
assert not spared & set(sys.modules)
import sklearn.preprocessing, matplotlib.pyplot, rfc3987_syntax
assert spared <= set(sys.modules)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile("adam", "mse")
model.fit(numpy.zeros((8, 4), "f"), numpy.zeros((8, 2), "f"), verbose=0)
assert tensorflow.__spec__.loader is tensorflow.__loader__
"""


def test_tensorflow_starts_silently_and_what_libraries_spare_is_there_for_others(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("TF_", "GRPC"))]:
        monkeypatch.delenv(name)
    done = ran(sys.executable, "-c", NOISE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


KERAS = """
import cunet_lib, os
from cunet_lib.core.startup import plain_keras
{first}
import keras
before = keras.config.image_data_format()
with plain_keras():
    print(keras.backend.backend(), keras.config.image_data_format(), before)
assert keras.config.image_data_format() == before
"""


@pytest.mark.parametrize("own", [True, False], ids=["command", "python"])
def test_keras_settings_of_the_user_change_nothing(tmp_path, own):
    """The command and the kernel read none of them, the Python API works beside them."""
    settings = '{"image_data_format": "channels_first", "backend": "torch", "floatx": "float16"}'
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(settings)
    first = "from cunet_lib.core.startup import OWN_KERAS; os.environ.update(OWN_KERAS)"
    words = (sys.executable, "-c", KERAS.replace("{first}", first if own else ""))
    done = ran(*words, timeout=600, HOME=tmp_path, KERAS_BACKEND="torch")
    assert done.returncode == 0, done.stderr
    before = "channels_last" if own else "channels_first"
    assert done.stdout.split() == ["tensorflow", "channels_last", before]


def test_jax_stays_where_it_is_installed(monkeypatch):
    from cunet_lib.core import startup

    for installed, backend in ((object(), "jax"), (None, "tensorflow")):
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name, it=installed: it)
        startup.silence()
        assert startup.os.environ["KERAS_BACKEND"] == backend


def test_failing_tensorflow_import_still_tells_why(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'no such instruction\\n')\nraise ImportError('broken')\n"
    )
    words = (sys.executable, "-c", "import cunet_lib, tensorflow")
    done = ran(*words, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode != 0
    assert "no such instruction" in done.stderr and "broken" in done.stderr
