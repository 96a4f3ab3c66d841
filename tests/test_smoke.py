"""The workflow itself: one small run of the whole study, and how a failure is told."""

import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
from conftest import COMMON, LOAD, ROOT, WRITE, code_of, ran, started
from test_stages import PLAN

from cunet_lib.core.files import read_run
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.report.records import load_runs
from cunet_lib.workflow.parameters import check_parameters
from cunet_lib.workflow.run import NotebookFailed, run_notebook
from cunet_lib.workflow.stages import fingerprint, is_current, parse_stage

NOISE = ("oneDNN", "absl::InitializeLog", "cuInit", "cuda drivers", "cpu_feature_guard")


# --------------------------------------------------------------------------------- the whole study


@pytest.mark.timeout(1800)
def test_smoke_profile_passes_through_every_stage(smoke_study):
    results, (printed, _) = smoke_study.folder, smoke_study.printed
    settings = load_profile("smoke")
    for model, seed in settings.runs:
        run = results / "runs" / f"{model}-seed{seed}"
        for name in ("model.keras", "history.csv", "run.json"):
            assert (run / name).stat().st_size > 0, f"{model}: {name}"
    for system, seed in settings.scored:
        assert (results / "scores" / f"{system}-seed{seed}.csv").exists()
    assert not list(results.glob("runs/*/checkpoint/*.npz"))
    assert (results / "scores" / "scores.csv").exists()
    assert (results / "manifest.json").exists()
    for suffix in ("csv", "md", "tex"):
        assert len(list((results / "tables").glob(f"*.{suffix}"))) >= 4
    for suffix in ("png", "svg"):
        assert len(list((results / "figures").glob(f"*.{suffix}"))) >= 7
    assert {path.stem for path in (results / "notebooks").glob("*.ipynb")} == set(PLAN)
    assert not list((results / "logs").glob("*.partial.ipynb"))
    assert printed.splitlines()[-1].endswith(str(results / "report" / "index.html"))
    assert (results / "report" / "index.html").is_file()


def test_smoke_run_is_quiet_and_names_no_folder_of_this_machine(smoke_study):
    printed, complaints = smoke_study.printed
    assert complaints == ""
    for path in (smoke_study.folder / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for folder in (str(ROOT) + os.sep, sys.prefix, str(Path.home()) + os.sep):
            assert folder not in text, f"{path.name} shows {folder}"
        outputs = [cell.get("outputs") for cell in nbformat.reads(text, as_version=4).cells]
        printed += json.dumps(outputs)
    assert [noise for noise in NOISE if noise in printed] == []


def test_second_run_does_nothing(smoke_study):
    before = {path: path.stat().st_mtime_ns for path in smoke_study.folder.rglob("*")}
    done = smoke_study.make("reproduce")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| up to date") == len(PLAN) and " | started" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in smoke_study.folder.rglob("*")} == before


def test_conditions_pass_beside_the_study(smoke_study, tmp_path, monkeypatch):
    study = smoke_study.copy(tmp_path)
    done = study.make("conditions")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert done.stderr == "" and done.stdout.count(" | started") == 2
    assert read_run(study.folder / "runs" / "dense_complex_np-seed0")["steps"]
    shown = {"level", "extremes", "pairs", "uncontrolled"}
    for folder, suffixes, names in (
        ("tables", ("csv", "md", "tex"), shown),
        ("figures", ("png", "svg", "txt"), shown | {"embeddings"}),
    ):
        for suffix in suffixes:
            for name in names:
                path = study.folder / folder / f"conditions_{name}.{suffix}"
                assert path.stat().st_size > 0, path
    settings = study.settings(monkeypatch)
    assert "dense_complex_np" not in set(load_runs(settings)["model"])
    for name in ("07_conditions.dense_complex-seed0", "03_train_cunet.dense_complex_np-seed0"):
        stage = parse_stage(name, {"profile": "smoke"})
        assert is_current(stage, settings, fingerprint(stage, settings))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["06_explore", "08_beyond"])
def test_notebooks_run_alone_by_papermill_from_anywhere(smoke_study, tmp_path, name):
    study = smoke_study.copy(tmp_path, without=("notebooks", "report", "logs"))
    copy = tmp_path / "elsewhere" / "out.ipynb"
    copy.parent.mkdir()
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += [ROOT / "notebooks" / f"{name}.ipynb", copy, "-p", "profile", "smoke"]
    done = ran(*command, cwd=copy.parent, timeout=600, **study.environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(cell.execution_count for cell in code_of(nbformat.read(copy, as_version=4)))
    assert list(copy.parent.iterdir()) == [copy]


# ------------------------------------------------------------------------------------- one notebook


@pytest.fixture
def notebook(bare_tree):
    """A function that writes a notebook of given cells and returns its path."""
    return lambda *cells: bare_tree.notebook("00_corpus", COMMON + "\nseed = 0\nrate = 0.5", *cells)


def test_executed_copy_keeps_parameters_and_output_and_whole_lines_are_told(
    notebook, tmp_path, monkeypatch
):
    """The kernel has the job's threads and this library."""
    monkeypatch.setenv("CUNET_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    lines, path = [], tmp_path / "results" / "notebooks" / "stage.ipynb"
    scratch = tmp_path / ("long" * 25)  # too long for the names of sockets
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    own = "import os, cunet_lib\nprint(os.environ['OMP_NUM_THREADS'], cunet_lib.__file__)"
    parts = "print('one', end='')\nprint(' line')\nprint('10%\\r100%')\nprint('last', end='')"
    noise = "import sys\nwritten = os.write(2, b'from C\\n')\nsys.stderr.write('a warning')"
    source = notebook("print(f'seed {seed}')", own, parts, noise, "rate")
    run_notebook(source, path, {"seed": 7}, echo=lines.append)
    said = ("started", "seed 7", f"3 {ROOT / 'cunet_lib' / '__init__.py'}")
    said += ("one line", "100%", "last")
    assert lines[:-1] == [f"stage | {line}" for line in said]
    assert re.fullmatch(r"stage \| done in \d+ s", lines[-1])
    copy = nbformat.read(path, as_version=4)
    assert copy.metadata.papermill.parameters == {"seed": 7}
    assert copy.cells[-1].outputs[0].data["text/plain"] == "0.5"
    assert str(tmp_path) not in path.read_text() and str(ROOT) not in path.read_text()
    assert "seed 7" in (tmp_path / "results" / "logs" / "stage.log").read_text()


def test_failing_notebook_is_told_in_a_few_lines_and_keeps_the_earlier_copy(notebook, tmp_path):
    source = notebook("x = 1", "\nnumber = x / 0\nnever = True", "never_reached = 1")
    output = tmp_path / "results" / "notebooks" / "stage.ipynb"
    output.parent.mkdir(parents=True)
    output.write_text("earlier")
    with pytest.raises(NotebookFailed) as caught:
        run_notebook(source, output, {"seed": 1}, echo=print)
    kept = tmp_path / "results" / "logs" / "stage.failed.ipynb"
    message = str(caught.value)
    assert len(message.splitlines()) <= 6
    assert "stage failed in cell [4]: number = x / 0" in message
    assert "ZeroDivisionError: division by zero" in message
    assert str(kept) in message
    assert output.read_text() == "earlier"
    cells = nbformat.read(kept, as_version=4).cells
    (failed,) = [cell for cell in cells if cell.get("execution_count") == 4]
    assert failed.source.strip().startswith("number = x / 0")
    assert "ZeroDivisionError" in (kept.parent / "stage.log").read_text()
    run_notebook(notebook("1 / 1"), output, {}, echo=print)
    assert output.read_text() != "earlier"
    assert [path.name for path in kept.parent.iterdir()] == ["stage.log"]


def test_dying_kernel_is_told_too(notebook, tmp_path):
    source = notebook("import os", "os._exit(1)")
    with pytest.raises(NotebookFailed, match="stage failed\n  the kernel died"):
        run_notebook(source, tmp_path / "notebooks" / "stage.ipynb", {}, echo=print)


def test_a_kernel_that_never_begins_is_told_too(notebook, tmp_path, monkeypatch):
    spec = {"argv": ["false", "{connection_file}"], "display_name": "none", "language": "python"}
    (tmp_path / "kernels" / "never").mkdir(parents=True)
    (tmp_path / "kernels" / "never" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    path = tmp_path / "notebooks" / "stage.ipynb"
    with pytest.raises(NotebookFailed, match="stage failed"):
        run_notebook(notebook("1"), path, {}, kernel="never", echo=print)
    assert not list(tmp_path.rglob("*.partial.ipynb"))


def test_parameters_are_read_as_the_types_of_their_defaults(notebook):
    given = {"profile": "12", "overrides": "a.b=1", "seed": "12", "rate": "1e-3"}
    expected = {"profile": "12", "overrides": "a.b=1", "seed": 12, "rate": 1e-3}
    assert check_parameters(notebook(), given) == expected
    assert check_parameters(notebook(), {"rate": 2}) == {"rate": 2.0}
    for bad, told in (
        ({"seed": True}, "int"),
        ({"rate": "x"}, "number"),
        ({"profile": 3}, "string"),
    ):
        with pytest.raises(ConfigError, match=f"{min(bad)} .*{told}"):
            check_parameters(notebook(), bad)


def test_unregistered_kernel_is_one_sentence(notebook, tmp_path):
    with pytest.raises(ConfigError, match="make env"):
        run_notebook(notebook("1"), tmp_path / "n" / "s.ipynb", {}, kernel="no-such-kernel")


# ------------------------------------------------------------------ make and the command line


def test_make_reports_a_failing_stage_and_goes_on_from_there(tree, tmp_path):
    """With data and results in folders with odd names."""
    roots = {"CUNET_RESULTS": "~/else $where", "CUNET_DATA": tmp_path / "my data"}
    roots["HOME"] = tree.root
    source = tree.root / "notebooks" / "01_preprocess.ipynb"
    sound = source.read_text()
    broken = nbformat.read(source, as_version=4)
    broken.cells[-1].source = "raise ValueError('no such store')"
    nbformat.write(broken, source)
    done = tree.make("reproduce", "PROFILE=tiny", **roots)
    assert done.returncode != 0
    assert "01_preprocess failed in cell [5]: raise ValueError('no such store')" in done.stderr
    assert "ValueError: no such store" in done.stderr
    assert "copy: else $where/tiny/logs/01_preprocess.failed.ipynb" in done.stderr
    assert "Traceback" not in done.stderr
    notebooks = tree.root / "else $where" / "tiny" / "notebooks"
    assert [path.name for path in notebooks.iterdir()] == ["00_corpus.ipynb"]

    source.write_text(sound)
    done = tree.make("01_preprocess", "PROFILE=tiny", **roots)
    assert "00_corpus | up to date" in done.stdout and "01_preprocess | done" in done.stdout
    assert (tmp_path / "my data" / "tiny" / "store" / "index.json").is_file()


def reproduction(tree, **environment):
    """A ``make reproduce`` that goes on, with its jobs in a session of its own."""
    options = {"cwd": tree.root, "start_new_session": True, "CUNET_PYTHON": sys.executable}
    return started("make", "reproduce", "PROFILE=tiny", **options, **environment)


def kernels_of(folder):
    """Command lines of living kernels whose connection file is below ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended meanwhile
            continue
        if any(word.startswith(str(folder)) for word in words):
            found.append(words)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_run_leaves_no_copy_and_no_kernel(tree, tmp_path, number):
    """Ctrl-C reaches make and all its jobs, `kill` make alone."""
    scratch = tmp_path / "s"
    scratch.mkdir()
    tree.notebook("00_corpus", COMMON, "import time\nprint('waiting')\ntime.sleep(600)")
    process = reproduction(tree, TMPDIR=scratch)
    assert any("waiting" in line for line in process.stdout)
    assert len(kernels_of(scratch)) == 1
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, complaints = process.communicate(timeout=120)  # until the last of them has ended
    assert process.returncode != 0
    assert "Stopped" in complaints and "Traceback" not in complaints
    assert kernels_of(scratch) == []
    assert not list((tree.root / "results" / "tiny").glob("notebooks/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_computes_stops_within_seconds_and_says_what_is_kept(tree, tmp_path, number):
    scratch = tmp_path / "s"
    scratch.mkdir()
    # As deaf as native code in a long step.
    deaf = "import signal, time\nheld = signal.signal(signal.SIGINT, signal.SIG_IGN)"
    tree.notebook(
        "03_train_cunet",
        COMMON + '\nvariant = "dense_simple"\nseed = 0',
        f"{deaf}\nprint('waiting')\ntime.sleep(600)",
    )
    kept = tree.root / "results" / "tiny" / "runs" / "dense_simple-seed0" / "checkpoint"
    kept.mkdir(parents=True)
    (kept / "epoch-000012.npz").touch()
    stage = "03_train_cunet.dense_simple-seed0"
    words = (sys.executable, "-m", "cunet_lib.cli", "run", stage, "--profile", "tiny")
    process = started(*words, cwd=tree.root, TMPDIR=scratch)
    assert any("waiting" in line for line in process.stdout)
    began = time.monotonic()
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert time.monotonic() - began < 20  # 5 on a machine that does nothing else
    assert process.returncode == 130
    assert complaints == (
        f"{stage} | Stopped; epoch 12 is kept; the same command continues from there.\n"
    )
    assert kernels_of(scratch) == []


def test_a_second_run_of_a_profile_is_refused_and_the_first_goes_on(tree):
    wait = "import time\nprint('waiting', flush=True)\ntime.sleep(3)"
    result = "result = paths.corpus / 'corpus.json'"
    tree.notebook("00_corpus", COMMON, LOAD, wait, result, WRITE)
    first = reproduction(tree)
    assert any("waiting" in line for line in first.stdout)
    for target in ("reproduce", "conditions"):
        second = tree.make(target, "PROFILE=tiny")
        assert second.returncode != 0 and "| started" not in second.stdout
        refusal, *rest = second.stderr.splitlines()
        assert refusal.startswith("Another run of profile tiny is going on")
        assert all(line.startswith("make") for line in rest)
    os.killpg(first.pid, signal.SIGKILL)  # no handler runs, and the lock is free nevertheless
    first.communicate()
    tree.notebook("01_preprocess", COMMON, "raise ValueError('far enough')")
    done = tree.make("reproduce", "PROFILE=tiny")
    assert "00_corpus | done" in done.stdout and "far enough" in done.stderr
    assert "Another run" not in done.stderr


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_a_log_that_cannot_be_written_is_one_sentence(tree):
    logs = tree.root / "results" / "tiny" / "logs"
    logs.mkdir(parents=True)
    (logs / "00_corpus.log").symlink_to("/dev/full")
    done = tree.make("00_corpus", "PROFILE=tiny")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert "cannot be written (No space left on device)" in said and "free some space" in said


def test_command_has_help_and_the_package_s_version():
    words = (sys.executable, "-m", "cunet_lib.cli")
    assert ran(*words, "--help").returncode == 0
    assert re.fullmatch(r"cunet \d+\.\d+\.\d+\n", ran(*words, "--version").stdout)
