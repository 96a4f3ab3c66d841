"""The workflow itself: one small run of the whole study, and how a failure is told."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from conftest import COMMON, LOAD, ROOT, WRITE, clean_environment

from cunet_lib.core.processes import cores
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS
from cunet_lib.report.records import load_runs
from cunet_lib.workflow.run import (
    NotebookFailed,
    check_parameters,
    duration,
    notebook_names,
    notebook_parameters,
    parse_stage,
    run_notebook,
)

NOISE = ("oneDNN", "absl::InitializeLog", "cuInit", "cuda drivers", "cpu_feature_guard")


# --------------------------------------------------------------------------------- the whole study


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One run of ``make reproduce PROFILE=smoke``: its folder, its output, how to make again."""
    roots = tmp_path_factory.mktemp("smoke")

    def make(*arguments):
        return subprocess.run(
            ["make", *arguments, "PROFILE=smoke"],
            cwd=ROOT,
            env=clean_environment(
                CUNET_PYTHON=sys.executable,
                CUNET_DATA=roots / "data",
                CUNET_RESULTS=roots / "results",
            ),
            capture_output=True,
            text=True,
            timeout=900,
        )

    done = make("reproduce")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return roots / "results" / "smoke", done, make


@pytest.mark.timeout(1000)
def test_smoke_profile_passes_through_every_stage(smoke):
    results, done, _ = smoke
    for model in (*UNETS, *VARIANTS):
        run = results / "runs" / f"{model}-seed0"
        for name in ("model.keras", "history.csv", "run.json", "architecture.json"):
            assert (run / name).stat().st_size > 0, f"{model}: {name}"
    for system in ("mixture", "ideal_ratio_mask", "unet", *VARIANTS):
        assert (results / "scores" / f"{system}-seed0.csv").exists()
    assert not list((results / "runs").glob("*/checkpoint"))
    assert (results / "scores" / "scores.csv").exists()
    assert (results / "manifest.json").exists()
    for suffix in ("csv", "md", "tex"):
        assert len(list((results / "tables").glob(f"*.{suffix}"))) >= 4
    for suffix in ("png", "svg"):
        assert len(list((results / "figures").glob(f"*.{suffix}"))) >= 7
    executed = {path.stem for path in (results / "notebooks").glob("*.ipynb")}
    assert len(executed) == 17
    assert not list((results / "logs").glob("*.partial.ipynb"))
    assert re.search(r"^05_plot \| done in ", done.stdout, re.MULTILINE)
    assert str(results / "tables") in done.stdout
    page = results / "report" / "index.html"
    assert page.is_file() and done.stdout.splitlines()[-1].endswith(str(page))


def test_smoke_run_is_quiet(smoke):
    results, done, _ = smoke
    assert done.stderr == ""
    shown = done.stdout + "".join(
        json.dumps([cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells])
        for path in (results / "notebooks").glob("*.ipynb")
    )
    assert [noise for noise in NOISE if noise in shown] == []


def test_executed_notebooks_name_no_folder_of_this_machine(smoke):
    results, _, _ = smoke
    for path in (results / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for folder in (str(ROOT) + os.sep, sys.prefix, str(Path.home()) + os.sep):
            assert folder not in text, f"{path.name} shows {folder}"


def test_second_run_does_nothing(smoke):
    results, _, make = smoke
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    began = time.monotonic()
    done = make("reproduce")
    assert time.monotonic() - began < 5
    assert done.returncode == 0
    assert " | started" not in done.stdout
    assert str(results / "tables") in done.stdout
    after = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    assert after == before


def test_newer_plot_notebook_reruns_that_stage_alone(smoke):
    _, _, make = smoke
    done = make("--dry-run", "--what-if", "notebooks/05_plot.ipynb", "stages")
    assert re.findall(r"cunet_lib\.cli run (\S+)", done.stdout) == ["05_plot"]


def test_conditions_pass_beside_the_study(smoke, monkeypatch):
    results, _, make = smoke
    done = make("conditions")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert done.stderr == ""
    record = json.loads((results / "runs" / "dense_complex-seed0-steady" / "run.json").read_text())
    assert record["settings"]["train"]["progressive"] == 0
    shown = {"level", "extremes", "pairs", "uncontrolled"}
    for folder, suffixes, names in (
        ("tables", ("csv", "md", "tex"), shown),
        ("figures", ("png", "svg", "txt"), shown | {"embeddings"}),
    ):
        for suffix in suffixes:
            for name in names:
                path = results / folder / f"conditions_{name}.{suffix}"
                assert path.stat().st_size > 0, path
    monkeypatch.setenv("CUNET_RESULTS", str(results.parent))
    assert len(load_runs(load_profile("smoke"))) == len((*UNETS, *VARIANTS))
    again = (make("conditions"), make("reproduce"))
    assert all(each.returncode == 0 and " | started" not in each.stdout for each in again)


@pytest.fixture(scope="module")
def alone(smoke, tmp_path_factory):
    """Every notebook run by papermill, each in a folder and on a copy of the study of its own.

    As many at a time as there are cores, since most of their time is the start of one process.
    Returns, by notebook, a future of the finished process and the executed copy.
    """
    results, _, _ = smoke

    def run(name):
        root = tmp_path_factory.mktemp(name)
        # Files of data are replaced, never changed, so that a link is as good as a copy.
        shutil.copytree(results.parents[1] / "data", root / "data", copy_function=os.link)
        heavy = shutil.ignore_patterns("notebooks", "report")
        shutil.copytree(results.parent, root / "results", ignore=heavy)
        if name == "07_conditions":
            runs = root / "results" / "smoke" / "runs"
            steady = runs / "dense_complex-seed0-steady"
            shutil.copytree(runs / "dense_complex-seed0", steady, dirs_exist_ok=True)
        (root / "elsewhere").mkdir()
        copy = root / "elsewhere" / "out.ipynb"
        command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
        command += [ROOT / "notebooks" / f"{name}.ipynb", copy, "-p", "profile", "smoke"]
        environment = clean_environment(
            CUNET_DATA=root / "data",
            CUNET_RESULTS=root / "results",
            CUNET_THREADS=1,
            PYTHONPATH=ROOT,  # this checkout, whichever one is installed
        )
        options = {"capture_output": True, "text": True, "timeout": 600}
        done = subprocess.run(command, cwd=copy.parent, env=environment, **options)
        # Jupyter draws ports before it takes them; kernels that start together may draw the same.
        if done.returncode and "Kernel didn't respond" in done.stderr:
            copy.unlink(missing_ok=True)
            done = subprocess.run(command, cwd=copy.parent, env=environment, **options)
        return done, copy

    with ThreadPoolExecutor(cores()) as executor:
        yield {name: executor.submit(run, name) for name in notebook_names()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", notebook_names())
def test_every_notebook_runs_alone_by_papermill_from_anywhere(alone, name):
    done, copy = alone[name].result()
    assert done.returncode == 0, done.stderr[-3000:]
    assert nbformat.read(copy, as_version=4).cells[-1].execution_count
    assert list(copy.parent.iterdir()) == [copy]


# ------------------------------------------------------------------------------------- one notebook


def say_nothing(line):
    pass


@pytest.fixture
def notebook(bare_tree):
    """A function that writes a notebook of given cells and returns its path."""
    return lambda *cells: bare_tree.notebook("00_corpus", COMMON + "\nseed = 0\nrate = 0.5", *cells)


def test_executed_copy_keeps_parameters_and_output(notebook, tmp_path):
    lines = []
    path = run_notebook(
        notebook("print(f'seed {seed}')", "rate"),
        tmp_path / "results" / "notebooks" / "stage.ipynb",
        {"seed": "7"},
        echo=lines.append,
    )
    assert lines[0] == "stage | started"
    assert lines[1] == "stage | seed 7"
    assert re.fullmatch(r"stage \| done in \d+ s", lines[-1])
    copy = nbformat.read(path, as_version=4)
    assert copy.metadata.papermill.parameters == {"seed": 7}
    assert copy.cells[-1].outputs[0].data["text/plain"] == "0.5"
    assert str(tmp_path) not in path.read_text()
    assert "seed 7" in (tmp_path / "results" / "logs" / "stage.log").read_text()


def test_only_whole_lines_reach_the_terminal(notebook, tmp_path):
    lines = []
    cell = "import sys\nprint('one', end='')\nprint(' line')\nprint('10%\\r100%')"
    cell += "\nprint('last', end='')"
    noise = "import os\nwritten = os.write(2, b'from C\\n')\nsys.stderr.write('a warning')"
    run_notebook(notebook(cell, noise), tmp_path / "n" / "s.ipynb", {}, echo=lines.append)
    assert lines[1:-1] == ["s | one line", "s | 100%", "s | last"]


def test_failing_notebook_is_told_in_a_few_lines(notebook, tmp_path):
    source = notebook("x = 1", "\nnumber = x / 0\nnever = True", "never_reached = 1")
    output = tmp_path / "results" / "notebooks" / "stage.ipynb"
    with pytest.raises(NotebookFailed) as caught:
        run_notebook(source, output, {"seed": 1}, echo=say_nothing)
    kept = tmp_path / "results" / "logs" / "stage.failed.ipynb"
    message = str(caught.value)
    assert len(message.splitlines()) <= 6
    assert "stage failed in cell [4]: number = x / 0" in message
    assert "ZeroDivisionError: division by zero" in message
    assert str(kept) in message
    assert not output.exists()
    cells = nbformat.read(kept, as_version=4).cells
    (failed,) = [cell for cell in cells if cell.get("execution_count") == 4]
    assert failed.source.strip().startswith("number = x / 0")
    assert "ZeroDivisionError" in (kept.parent / "stage.log").read_text()


def test_earlier_copy_stays_when_a_later_run_fails_and_success_clears_the_failure(
    notebook, tmp_path
):
    output = tmp_path / "results" / "notebooks" / "stage.ipynb"
    output.parent.mkdir(parents=True)
    output.write_text("earlier")
    with pytest.raises(NotebookFailed):
        run_notebook(notebook("1 / 0"), output, {}, echo=say_nothing)
    assert output.read_text() == "earlier"
    run_notebook(notebook("1 / 1"), output, {}, echo=say_nothing)
    assert output.read_text() != "earlier"
    assert [path.name for path in (tmp_path / "results" / "logs").iterdir()] == ["stage.log"]


def test_dying_kernel_is_told_too(notebook, tmp_path):
    source = notebook("import os", "os._exit(1)")
    with pytest.raises(NotebookFailed, match=r"cell \[3\]: os\._exit\(1\)") as caught:
        run_notebook(source, tmp_path / "notebooks" / "stage.ipynb", {}, echo=say_nothing)
    assert "kernel died" in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"sede": 1}, ("'sede'", "valid: profile, overrides, seed, rate")),
        ({"seed": "many"}, ("seed", "int", "'many'")),
        ({"seed": True}, ("seed", "int")),
        ({"rate": "fast"}, ("rate", "float", "'fast'")),
        ({"profile": 3}, ("profile", "string")),
    ],
)
def test_bad_parameter_is_refused_before_anything_runs(notebook, tmp_path, parameters, words):
    with pytest.raises(ConfigError) as caught:
        run_notebook(notebook("1"), tmp_path / "n" / "s.ipynb", parameters, echo=say_nothing)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "n").exists()


def test_parameters_are_read_as_the_types_of_their_defaults(notebook):
    given = {"profile": "12", "overrides": "a.b=1", "seed": "12", "rate": "1e-3"}
    expected = {"profile": "12", "overrides": "a.b=1", "seed": 12, "rate": 1e-3}
    assert check_parameters(notebook(), given) == expected
    assert check_parameters(notebook(), {"rate": 2}) == {"rate": 2.0}


def test_unregistered_kernel_is_one_sentence(notebook, tmp_path):
    with pytest.raises(ConfigError, match="make env"):
        run_notebook(notebook("1"), tmp_path / "n" / "s.ipynb", {}, kernel="no-such-kernel")


def test_kernel_gets_the_jobs_threads_and_this_library(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("CUNET_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    lines = []
    source = notebook(
        "import os, cunet_lib\nprint(os.environ['OMP_NUM_THREADS'], cunet_lib.__file__)"
    )
    run_notebook(source, tmp_path / "n" / "s.ipynb", {}, echo=lines.append)
    assert lines[1] == f"s | 3 {ROOT / 'cunet_lib' / '__init__.py'}"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"), (3900, "1 h 5 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# --------------------------------------------------------------------- stages and their names


@pytest.mark.parametrize(
    ("name", "given", "stage", "parameters"),
    [
        ("00_corpus", {}, "00_corpus", {}),
        (
            "02_train_unet.bass-seed3",
            {},
            "02_train_unet.bass-seed3",
            {"instrument": "bass", "seed": 3},
        ),
        (
            "03_train_cunet",
            {"variant": "cnn_simple", "seed": "2"},
            "03_train_cunet.cnn_simple-seed2",
            {"variant": "cnn_simple", "seed": 2},
        ),
        (
            "03_train_cunet.cnn_simple-seed2-steady",
            {},
            "03_train_cunet.cnn_simple-seed2-steady",
            {"variant": "cnn_simple", "seed": 2, "suffix": "steady"},
        ),
        (
            "03_train_cunet",
            {"variant": "cnn_simple", "suffix": "steady"},
            "03_train_cunet.cnn_simple-seed0-steady",
            {"variant": "cnn_simple", "suffix": "steady"},
        ),
        (
            "04_evaluate.oracles-seed0",
            {"profile": "demo"},
            "04_evaluate.oracles-seed0",
            {"profile": "demo", "model": "oracles", "seed": 0},
        ),
    ],
)
def test_stage_name_and_parameters_agree(name, given, stage, parameters):
    parsed = parse_stage(name, given)
    assert parsed.name == stage
    assert parsed.parameters == parameters


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("99_nothing", {}, ("'99_nothing'", "00_corpus")),
        ("02_train_unet.bass", {}, ("02_train_unet.<instrument>-seed<number>",)),
        ("00_corpus.bass-seed0", {}, ("00_corpus",)),
        ("02_train_unet.bass-seed0", {"instrument": "drums"}, ("instrument", "drums", "disagree")),
        ("02_train_unet.bass-seed0-steady", {}, ("02_train_unet", "'suffix'")),
        ("03_train_cunet.a-seed0-steady", {"suffix": "other"}, ("suffix", "other", "disagree")),
    ],
)
def test_bad_stage_is_one_sentence(name, given, words):
    with pytest.raises(ConfigError) as caught:
        parse_stage(name, given)
    assert all(word in str(caught.value) for word in words)


def test_make_and_the_runner_name_the_same_files(tree):
    planned = tree.planned()
    settings = load_profile("smoke")
    for name in planned:
        assert parse_stage(name).output(settings) == settings.paths.notebooks / f"{name}.ipynb"
    subjects = {name.split(".")[1] for name in planned if name.startswith("02")}
    assert subjects == {f"{instrument}-seed0" for instrument in INSTRUMENTS}


# ------------------------------------------------------------------ make and the command line


def test_make_reports_a_failing_stage_and_goes_on_from_there(tree):
    source = tree.root / "notebooks" / "01_preprocess.ipynb"
    sound = source.read_text()
    broken = nbformat.read(source, as_version=4)
    broken.cells[-1].source = "raise ValueError('no such store')"
    nbformat.write(broken, source)
    done = tree.make("reproduce", "PROFILE=tiny")
    assert done.returncode != 0
    assert "01_preprocess failed in cell [5]: raise ValueError('no such store')" in done.stderr
    assert "ValueError: no such store" in done.stderr
    assert "results/tiny/logs/01_preprocess.failed.ipynb" in done.stderr
    assert "Traceback" not in done.stderr
    notebooks = tree.root / "results" / "tiny" / "notebooks"
    assert [path.name for path in notebooks.iterdir()] == ["00_corpus.ipynb"]

    source.write_text(sound)
    assert tree.planned()[0] == "01_preprocess"


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stopped_run_leaves_no_copy_and_no_kernel(tree, tmp_path):
    scratch = tmp_path / "s"
    scratch.mkdir()
    tree.notebook("00_corpus", COMMON, "import time\nprint('waiting')\ntime.sleep(600)")
    process = subprocess.Popen(
        ["make", "reproduce", "PROFILE=tiny"],
        cwd=tree.root,
        env=clean_environment(CUNET_PYTHON=sys.executable, TMPDIR=scratch),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "waiting" in line:
            break
    assert len(kernels_of(scratch)) == 1
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, complaints = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Stopped" in complaints and "Traceback" not in complaints
    assert kernels_of(scratch) == []
    assert not list((tree.root / "results" / "tiny" / "notebooks").iterdir())
    assert tree.planned()[0] == "00_corpus"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_computes_stops_within_seconds_and_says_what_is_kept(tree, tmp_path, number):
    scratch = tmp_path / "s"
    scratch.mkdir()
    # As deaf as native code in a long step.
    deaf = "import signal, time\nheld = signal.signal(signal.SIGINT, signal.SIG_IGN)"
    tree.notebook(
        "03_train_cunet",
        COMMON + '\nvariant = "dense_simple"\nseed = 0\nsuffix = ""',
        f"{deaf}\nprint('waiting')\ntime.sleep(600)",
    )
    (tree.root / "cunet_lib" / "checkpoint.py").write_bytes(
        (ROOT / "cunet_lib" / "checkpoint.py").read_bytes()
    )
    kept = tree.root / "results" / "tiny" / "runs" / "dense_simple-seed0" / "checkpoint"
    kept.mkdir(parents=True)
    (kept / "epoch-000012.0123456789abcdef.npz").touch()
    stage = "03_train_cunet.dense_simple-seed0"
    process = subprocess.Popen(
        [sys.executable, "-m", "cunet_lib.cli", "run", stage, "--profile", "tiny"],
        cwd=tree.root,
        env=clean_environment(TMPDIR=scratch),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "waiting" in line:
            break
    began = time.monotonic()
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert time.monotonic() - began < 20  # 5 on a machine that does nothing else
    assert process.returncode == 130
    assert complaints == (
        f"{stage} | Stopped; epoch 12 is kept; the same command goes on from there.\n"
    )
    assert kernels_of(scratch) == []


def test_a_finished_training_is_kept_until_its_notebook_is_done(tree):
    cells = (
        COMMON + '\nvariant = "dense_simple"\nseed = 0\nsuffix = ""',
        LOAD,
        "from cunet_lib.train import checkpoint\nrun = paths.run(variant, seed, suffix)",
        "checkpoint.finish(run / checkpoint.FOLDER, {})",
    )
    run = tree.root / "results" / "tiny" / "runs" / "dense_simple-seed0"
    for last, status, left in (("1 / 0", 1, ["finished.json"]), ("1 / 1", 0, [])):
        tree.notebook("03_train_cunet", *cells, last)
        done = subprocess.run(
            [sys.executable, "-m", "cunet_lib.cli", "run", "03_train_cunet", "--profile", "tiny"],
            cwd=tree.root,
            env=clean_environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert [path.name for path in run.glob("checkpoint/*")] == left
    assert not (run / "checkpoint").exists()


def test_a_second_run_of_a_profile_is_refused_and_the_first_goes_on(tree):
    wait = "import time\nprint('waiting', flush=True)\ntime.sleep(3)"
    result = "result = paths.corpus / 'corpus.json'"
    tree.notebook("00_corpus", COMMON, LOAD, wait, result, WRITE)
    environment = clean_environment(CUNET_PYTHON=sys.executable)
    first = subprocess.Popen(
        ["make", "reproduce", "PROFILE=tiny"],
        cwd=tree.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in first.stdout:
        if "waiting" in line:
            break
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


def test_a_dry_run_takes_no_lock(tree):
    assert tree.planned()
    assert not (tree.root / "results").exists()


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_a_log_that_cannot_be_written_is_one_sentence(tree):
    logs = tree.root / "results" / "tiny" / "logs"
    logs.mkdir(parents=True)
    (logs / "00_corpus.log").symlink_to("/dev/full")
    done = tree.make("stages", "PROFILE=tiny")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert "cannot be written (No space left on device)" in said and "free some space" in said


ORPHAN = (
    "import os, signal, sys, time\n"
    "from cunet_lib.core.processes import pool\n"
    "if __name__ == '__main__':\n"
    "    with pool(2, workers=2) as processes:\n"
    "        pids = {processes.submit(os.getpid).result() for _ in range(8)}\n"
    "        print(*pids, flush=True)\n"
    "        os.kill(os.getpid(), signal.SIGKILL)\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    done = subprocess.run(
        [sys.executable, script],
        env=clean_environment(PYTHONPATH=ROOT),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    waited = time.monotonic()
    while any(_alive(pid) for pid in done.stdout.split()):
        assert time.monotonic() - waited < 10
        time.sleep(0.05)


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # nobody may be there to collect it


def cunet(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cunet_lib.cli", *arguments],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "99_nothing"),
        ("run", "00_corpus", "--profile", "nope"),
        ("run", "00_corpus", "--overrides", "model.filters=-1"),
        ("run", "00_corpus", "-p", "unknown", "1"),
        ("params", "--profile", "nope"),
        ("verify", "nope"),
    ],
)
def test_command_tells_bad_input_in_one_sentence(arguments):
    done = cunet(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_command_counts_the_parameters_of_the_paper():
    done = cunet("params")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for count in ("39,305,300", "9,848,497", "12,165,445", "9,837,905", "10,419,925"):
        assert count in done.stdout


def test_command_help_is_fast_and_version_is_the_package_s():
    began = time.monotonic()
    assert cunet("--help").returncode == 0
    assert time.monotonic() - began < 2  # loading TensorFlow alone takes longer
    assert re.fullmatch(r"cunet \d+\.\d+\.\d+\n", cunet("--version").stdout)


def test_every_notebook_has_parameters_that_the_command_can_set():
    for name in notebook_names():
        found = notebook_parameters(ROOT / "notebooks" / f"{name}.ipynb")
        assert {"profile", "overrides"} <= set(found), name
