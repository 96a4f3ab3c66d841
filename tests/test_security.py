"""What the library must never do, read from its source, and what it must; see docs/security.md."""

import ast
import re
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from conftest import PROJECT, ROOT

import cunet_lib.report.records as tables
from cunet_lib.core.settings import ConfigError
from cunet_lib.preprocess import tracks as stems
from cunet_lib.signal import audio

SOURCES = sorted((ROOT / "cunet_lib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("commands", "pty", "code", "codeop", "telnetlib", "ftplib", "xml", "torch"),
}
"""Readers that run what they read, and what starts shells."""

FORBIDDEN = {
    *("eval", "exec", "compile", "execfile", "__import__", "input"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.execl", "os.spawnl", "os.startfile"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader"),
    *("yaml.FullLoader", "yaml.UnsafeLoader", "pd.read_pickle", "pandas.read_pickle"),
    *("np.fromfile", "keras.config.enable_unsafe_deserialization"),
    *("tf.saved_model.load", "tempfile.mktemp", "jinja2.Template"),
    *("shell=True", "allow_pickle=True", "safe_mode=False", "autoescape=False", "escape=False"),
    *("verify=False", "weights_only=False", "np.load without allow_pickle"),
    *("keras.saving.load_model", "keras.models.load_model"),
}
"""Functions, and options of calls."""


def dotted(node):
    """``a.b.c`` of an expression, or an empty string."""
    return text if re.fullmatch(r"[\w.]+", text := ast.unparse(node)) else ""


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def options(call):
    return {word.arg for word in call.keywords}


def offences(tree):
    """Everything in a source that is forbidden."""
    imports, names = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute | ast.Name | ast.keyword):
            names.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and dotted(node.func) == "np.load":
            names |= set() if "allow_pickle" in options(node) else {"np.load without allow_pickle"}
    modules = {name for name in imports if name.split(".")[0] in FORBIDDEN_MODULES}
    return modules | (imports | names) & FORBIDDEN


# Calls pass between the user's own processes, here and on a cluster, never through a file that
# somebody else gave (docs/security.md, docs/cluster.md).
SENDS_CALLS = {"processes": {"joblib"}, "cluster": {"cloudpickle"}}


def source(path):
    """Python of a module, or of a notebook's cells."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", [*SOURCES, *NOTEBOOKS], ids=lambda path: path.stem)
def test_the_library_runs_nothing_that_it_reads(path):
    assert offences(ast.parse(source(path))) == SENDS_CALLS.get(path.stem, set())


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "from yaml import unsafe_load",
        "import os\nos.system('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "eval(text)",
        "keras.saving.load_model(path)",
        "keras.config.enable_unsafe_deserialization()",
        "jinja2.Environment(autoescape=False)",
    ],
)
def test_the_rules_see_what_they_forbid(code):
    assert offences(ast.parse(code))


def processes():
    """Every start of another program in the library: file, line, call."""
    for path in SOURCES:
        for call in calls(ast.parse(source(path))):
            if dotted(call.func).startswith("subprocess.") and call.args:
                yield pytest.param(path, call, id=f"{path.stem}:{call.lineno}")


@pytest.mark.parametrize(("path", "call"), list(processes()))
def test_programs_get_words_and_not_a_line_for_a_shell(path, call):
    words = call.args[0]
    assert isinstance(words, ast.List | ast.Name | ast.ListComp), ast.unparse(words)
    # Whoever waits for a program that reads a stranger's file gives up at some time; what is read
    # while it runs has its own watch, and the git of a training reads no stranger's file.
    if path.stem != "training" and dotted(call.func) != "subprocess.Popen":
        assert "timeout" in options(call), "no timeout"


def test_every_ffmpeg_reads_local_files_only():
    """Commands of ffmpeg and ffprobe begin with LOCAL, which has the protocol whitelist."""
    assert audio.LOCAL[-2:] == ("-protocol_whitelist", "file,pipe")
    nodes = (node for path in SOURCES for node in ast.walk(ast.parse(source(path))))
    lists = [ast.unparse(node) for node in nodes if isinstance(node, ast.List)]
    found = [words for words in lists if re.match(r"\['ff(mpeg|probe)'|\[ensure_ffmpeg\(", words)]
    assert len(found) >= 2
    assert [words for words in found if not re.match(r"\[[^,]*, \*LOCAL\b", words)] == []


def test_ffmpeg_is_given_files_and_never_addresses(monkeypatch, tmp_path):
    """Whatever a file is called, ffmpeg sees ``file:`` before it, as one word."""
    seen = []

    def run(command, **options):
        seen.append((command, options))
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    for name in ("http:__x", "-i", "concat:a|b", "$(touch x).mp3", "a b.m3u8"):
        path = tmp_path / name
        path.write_bytes(b"no audio")
        with pytest.raises(ConfigError, match="stall"):
            audio.open_audio(path)
        command, options = seen[-1]
        assert command[-1] == f"file:{path}" and isinstance(command, list)
        assert "file,pipe" in command and not options.get("shell") and options["timeout"] > 0


def test_a_stem_file_that_refers_to_others_is_refused(tmp_path):
    """By its name ffmpeg would take it for a list of files, and open them."""
    soundfile.write(tmp_path / "secret.wav", np.zeros(9000), 44100)
    path = tmp_path / "x.stem.mp4"
    path.write_text("ffconcat version 1.0\nfile secret.wav\n")
    with pytest.raises(ConfigError, match=r"x\.stem\.mp4 cannot be read"):
        stems.decode(stems.Source("x", "test", path), 8192)


def test_latex_tables_hold_names_as_text():
    evil = r"\input{/etc/passwd} $x$ 100% a_b #1 & ~ ^ {}"
    frame = tables.pd.DataFrame({"Track": [evil]})
    body = tables._latex(frame, "evil", evil).split(r"\toprule")[1]
    assert r"\input" not in body and r"\textbackslash{}input\{" in body and r"100\%" in body


# ------------------------------------------------------------------------------- what is installed

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_direct_dependency_says_why_it_is_there():
    for dependency in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        (line,) = [line for line in PYPROJECT.splitlines() if f'"{dependency}"' in line]
        assert re.search(r'",\s+# \S.{2,}', line), f"{dependency} has no reason beside it"


def test_jupyterlab_keeps_its_token_and_its_guards(tmp_path):
    """``make lab`` passes no option that opens the server, in its recipe or by a variable."""
    makefile = (ROOT / "Makefile").read_text()
    for word in (
        *("token", "password", "allow_origin", "allow_root", "disable_check_xsrf", "allow_remote"),
        *("--ip", "ServerApp.ip", "0.0.0.0", "allow_unauthenticated", "--no-auth", "identity"),
    ):
        assert word not in makefile, word
    for folder in (ROOT, ROOT / "notebooks"):
        assert not list(Path(folder).glob("jupyter_*config*"))
