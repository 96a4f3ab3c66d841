"""Set-up: the lock, the conda file and the package agree; make builds the right environment."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import PROJECT, ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def locked():
    """Requirements of the lock, each with its hashes: ``[(Requirement, [hash, ...]), ...]``."""
    joined = re.sub(r"\\\n", " ", LOCK)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [
        (Requirement(line.split("--hash=")[0].strip()), re.findall(r"--hash=(\S+)", line))
        for line in lines
    ]


DIRECT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


@pytest.mark.parametrize(
    "dependency", [Requirement(each) for each in DIRECT], ids=lambda found: found.name
)
def test_lock_pins_each_direct_dependency_within_its_range(dependency):
    pins = [
        pin
        for pin, _ in locked()
        if canonicalize_name(pin.name) == canonicalize_name(dependency.name)
    ]
    assert pins, f"{dependency.name} is not in requirements.lock; run make lock"
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert specifier.version in dependency.specifier


def test_lock_pins_exactly_with_hashes_and_without_addresses():
    found = locked()
    assert len(found) > len(DIRECT)
    for pin, hashes in found:
        assert pin.url is None
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), pin
    assert "://" not in LOCK
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)", LOCK, re.MULTILINE)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_lock_serves_every_supported_python_with_one_pin(version):
    assert Version(version) in SpecifierSet(PROJECT["requires-python"])
    environment = {
        "python_version": version,
        "python_full_version": f"{version}.5",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    names = [
        canonicalize_name(pin.name)
        for pin, _ in locked()
        if pin.marker is None or pin.marker.evaluate(environment)
    ]
    assert len(names) == len(set(names))
    assert {canonicalize_name(Requirement(each).name) for each in DIRECT} <= set(names)


def test_conda_environment_reads_the_same_lock():
    plain = [entry for entry in CONDA["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--requirement requirements.lock"]
    python = next(entry for entry in plain if entry.startswith("python="))
    assert Version(python.removeprefix("python=")) in SpecifierSet(PROJECT["requires-python"])
    # Everything else that conda brings is no Python package of the lock.
    assert {"ffmpeg", "make", "pip"} == set(plain) - {python}
    assert CONDA["name"] == "cunet" and CONDA["channels"] == ["conda-forge"]


def test_binder_installs_the_package_and_registers_the_kernel(tmp_path):
    """What repo2docker runs in the environment of environment.yml, with a pretended Python."""
    script = ROOT / "postBuild"
    assert os.access(script, os.X_OK)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*" >> "$CALLS"\n')
    python.chmod(0o755)
    calls = tmp_path / "calls"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([script], check=True, env={**os.environ, "PATH": path, "CALLS": str(calls)})
    install, kernel, _ = calls.read_text().splitlines()
    # Dependencies come from the lock alone, by environment.yml.
    assert install.startswith("-m pip install") and install.endswith("--editable .")
    assert "--no-deps" in install
    assert kernel == "-m cunet_lib.cli kernel"
    # Anything in one of these folders would hide environment.yml from repo2docker.
    assert not (ROOT / "binder").exists() and not (ROOT / ".binder").exists()


def test_lab_opens_the_control_panel(bare_tree):
    done = bare_tree.make("--dry-run", "lab")
    assert done.returncode == 0, done.stderr
    (command,) = [line for line in done.stdout.splitlines() if "jupyter lab" in line]
    assert "notebooks/06_explore.ipynb" in command.split()
    assert "token" not in command  # JupyterLab makes one, and asks for it


def test_kernel_of_the_notebooks_is_registered_silent():
    prefix = Path(sys.prefix).resolve()
    spec = json.loads((prefix / "share/jupyter/kernels/cunet/kernel.json").read_text())
    assert Path(spec["argv"][0]).parent.resolve() == prefix / "bin"
    assert spec["env"]["TF_CPP_MIN_LOG_LEVEL"] == "3"


# ------------------------------------------------------------------ make's choice of environment

TOOLS = "awk bash cat command cp dirname env grep ln mkdir mv nproc printf rm sed sh tail tee touch"

# A Python that notes what it is asked to do. Asked for a venv, it copies itself there.
FAKE_PYTHON = """#!/bin/sh
echo "python $*" >> "$CALLS"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/with-pip" ;;
  "-m pip") echo "Collecting something"; exit "${PIP_STATUS:-0}" ;;
  "-c "*) case "$2" in *sys.executable*) echo "$0" ;; esac ;;
esac
"""
FAKE_UV = """#!/bin/sh
echo "uv $*" >> "$CALLS"
case "$1" in
  venv) for last; do :; done; mkdir -p "$last/bin" && cp "$FAKES/python3" "$last/bin/python" ;;
  pip) exit "${UV_STATUS:-0}" ;;
esac
"""


class FakeMachine:
    """A PATH with the usual tools and, on demand, pretended Pythons and uv."""

    def __init__(self, tree, folder):
        self.tree = tree
        self.folder = folder
        self.calls_file = folder / "calls"
        folder.mkdir()
        for name in ["make", *TOOLS.split()]:
            if found := shutil.which(name):
                (folder / name).symlink_to(found)

    def install(self, name, script):
        path = self.folder / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def make(self, *arguments, **environment):
        self.calls_file.write_text("")
        return self.tree.make(
            *arguments,
            python=None,
            PATH=self.folder,
            CALLS=self.calls_file,
            FAKES=self.folder,
            **environment,
        )

    @property
    def calls(self):
        return self.calls_file.read_text().splitlines()

    def called(self, *words):
        return any(all(word in call for word in words) for call in self.calls)

    @property
    def venv(self):
        return self.tree.root / ".venv"


@pytest.fixture
def machine(bare_tree, tmp_path):
    return FakeMachine(bare_tree, tmp_path / "bin")


def test_venv_and_pip_are_used_without_uv(machine):
    machine.install("python3", FAKE_PYTHON)
    done = machine.make("env")
    assert done.returncode == 0, done.stderr
    assert machine.called("-m venv .venv")
    assert machine.called("-m pip", "--require-hashes", "requirements.lock")
    assert machine.called("-m pip", "--no-deps --no-build-isolation --editable .")
    assert machine.called("cunet_lib.cli kernel")
    assert "ready" in done.stdout

    again = machine.make("env")
    assert again.returncode == 0
    assert machine.calls == [] and again.stdout == ""


def test_uv_is_used_where_there_is_one(machine):
    machine.install("python3", FAKE_PYTHON)
    machine.install("uv", FAKE_UV)
    done = machine.make("env")
    assert done.returncode == 0, done.stderr
    assert machine.called("uv venv", ".venv")
    assert machine.called("uv pip install", "--require-hashes", "requirements.lock")
    assert not machine.called("-m pip")


def test_pip_has_a_try_when_uv_fails(machine):
    machine.install("python3", FAKE_PYTHON)
    machine.install("uv", FAKE_UV)
    done = machine.make("env", UV_STATUS=1)
    assert done.returncode == 0, done.stderr
    assert "trying pip" in done.stdout
    assert machine.called("-m pip", "--require-hashes")
    assert (machine.venv / "with-pip").exists()  # the environment that uv began is gone


def test_half_made_environment_is_made_again(machine):
    machine.install("python3", FAKE_PYTHON)
    failed = machine.make("env", PIP_STATUS=1)
    assert failed.returncode != 0
    assert "Mend the cause and run make again" in failed.stderr
    assert machine.venv.exists()
    (machine.venv / "half-made").touch()

    done = machine.make("env")
    assert done.returncode == 0, done.stderr
    assert "making it again" in done.stdout
    assert not (machine.venv / "half-made").exists()


def test_moved_environment_is_made_again(machine):
    machine.install("python3", FAKE_PYTHON)
    assert machine.make("env").returncode == 0
    machine.tree.root = machine.tree.root.rename(machine.tree.root.parent / "moved")
    done = machine.make("env")
    assert "making it again" in done.stdout
    assert machine.called("-m venv .venv")


def test_changed_lock_updates_the_environment_in_place(machine):
    machine.install("python3", FAKE_PYTHON)
    assert machine.make("env").returncode == 0
    stamp = (machine.venv / ".cunet-ready").stat()
    os.utime(machine.tree.root / "requirements.lock", (stamp.st_atime, stamp.st_mtime + 10))
    assert machine.make("env").returncode == 0
    assert machine.called("-m pip", "--require-hashes")
    assert not machine.called("-m venv")


def test_active_conda_environment_is_used_as_it_is(machine, tmp_path):
    prefix = tmp_path / "conda"
    (prefix / "bin").mkdir(parents=True)
    machine.install("python3", FAKE_PYTHON)
    shutil.copy(machine.folder / "python3", prefix / "bin" / "python")
    active = {"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": "cunet"}
    done = machine.make("env", **active)
    assert done.returncode == 0, done.stderr
    assert not machine.venv.exists()
    assert machine.called("--editable .") and not machine.called("requirements.lock")
    assert machine.make("env", **active).returncode == 0
    assert machine.calls == []


def test_another_conda_environment_is_left_alone(machine, tmp_path):
    machine.install("python3", FAKE_PYTHON)
    assert machine.make("env", CONDA_PREFIX=tmp_path, CONDA_DEFAULT_ENV="base").returncode == 0
    assert machine.venv.exists()


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n"], ids=["none", "too old"])
def test_no_usable_python_is_one_sentence(machine, script):
    if script:
        machine.install("python3", script)
    done = machine.make("env")
    assert done.returncode != 0
    assert not machine.venv.exists()
    told = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(told) == 1
    assert "Python 3.10 to 3.13" in told[0]


def test_second_choice_python_is_found(machine):
    machine.install("python3", "#!/bin/sh\nexit 1\n")
    machine.install("python3.11", FAKE_PYTHON)
    assert machine.make("env").returncode == 0
    assert machine.called("-m venv .venv")


# ----------------------------------------------------------------------------- what make can do


def test_make_alone_lists_targets_and_variables(bare_tree):
    done = bare_tree.make()
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  (\w+) +(\S.*)$", done.stdout, re.MULTILINE)
    targets = [
        "env",
        "reproduce",
        "conditions",
        "sweep",
        "test",
        "lint",
        "torture",
        "tolerances",
        "lab",
        "check",
        "plan",
        "verify",
        "report",
        "bench",
        "clean",
        "distclean",
        "lock",
    ]
    variables = {"PROFILE", "MUSDB", "JOBS", "CLUSTER", "SEEDS", "STAGE", "GRID"}
    assert {name for name, _ in listed} == {*targets, *variables}
    assert len(done.stdout.splitlines()) == 1 + len(listed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("PROFILE=nope",), ("'nope'", "tiny")),
        (("PROFILE=tiny", "JOBS=0"), ("JOBS",)),
        (("PROFILE=tiny", "JOBS=many"), ("JOBS", "many")),
        (("PROFILE=tiny", "SEEDS=one two"), ("SEEDS", "one two")),
        (("PROFILE=tiny", "SEEDS="), ("SEEDS",)),
        (("PROFILE=tiny", "MUSDB=/nowhere/at/all"), ("MUSDB=/nowhere/at/all",)),
        (("PROFILE=%",), ("'%'", "tiny")),
        (("PROFILE=tiny tiny",), ("'tiny tiny'",)),
        (("PROFILE=../tiny",), ("'../tiny'",)),
        (("PROFILE=tiny", "SEEDS=0; touch injected"), ("SEEDS", "touch")),
        (("PROFILE=tiny", "SEEDS='; touch injected; '"), ("SEEDS", "touch")),
        (("PROFILE=tiny", "SEEDS=*"), ("SEEDS",)),
        (("PROFILE=tiny", "JOBS=`touch injected`"), ("JOBS", "touch")),
        (("PROFILE=tiny", "MUSDB=$(touch injected)/x"), ("MUSDB=",)),
        (("PROFILE=tiny", "MUSDB='; touch injected; '"), ("MUSDB=",)),
    ],
)
def test_bad_variable_is_one_sentence(bare_tree, arguments, words):
    done = bare_tree.make("reproduce", *arguments)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words)
    assert not list(bare_tree.root.rglob("injected"))


@pytest.mark.parametrize(
    "name",
    ["two words", "it's", '"$(touch injected)"', "`touch injected`", "a;touch injected", "é#%"],
)
def test_musdb_s_folder_is_text_whatever_its_name(bare_tree, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    shown = bare_tree.root / "shown.mk"
    shown.write_text("include Makefile\nshow:\n\t@printf '%s' \"$$CUNET_MUSDB\"\n")
    done = bare_tree.make("-f", shown.name, "show", MUSDB=folder)
    assert (done.stdout, done.stderr) == (str(folder.resolve()), "")
    assert not list(bare_tree.root.rglob("injected"))


def test_clean_keeps_committed_results_and_other_profiles(bare_tree):
    results = bare_tree.root / "results" / "tiny"
    kept = [results / "tables" / "a.csv", results / "scores" / "b.csv", results / "models" / "c"]
    kept.append(bare_tree.root / "data" / "demo" / "d")
    gone = [
        results / "runs" / "a",
        results / "notebooks" / "b",
        results / "scores" / "museval" / "c",
    ]
    gone.append(bare_tree.root / "data" / "tiny" / "d")
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert bare_tree.make("clean", "PROFILE=tiny").returncode == 0
    assert [path for path in kept if not path.exists()] == []
    assert [path for path in gone if path.exists()] == []


def test_clean_deletes_only_what_git_ignores():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    (made,) = re.findall(r"^MADE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for folder in made.split():
        assert f"results/*/{folder}/" in ignored


def test_ci_runs_the_documented_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make test")


# ---------------------------------------------------------------------------- the graph of stages

CUNETS = ["dense_simple-seed0", "dense_complex-seed0", "cnn_simple-seed0", "cnn_complex-seed0"]
UNETS = ["bass-seed0", "drums-seed0", "other-seed0", "vocals-seed0"]
PLAN = [
    "00_corpus",
    "01_preprocess",
    *(f"03_train_cunet.{run}" for run in CUNETS),
    *(f"02_train_unet.{run}" for run in UNETS),
    *(f"04_evaluate.{run}" for run in CUNETS),
    "04_evaluate.unet-seed0",
    "04_evaluate.oracles-seed0",
    "05_plot",
]


def test_stages_run_in_order_with_the_longest_trainings_first(tree):
    assert tree.planned() == PLAN


def test_each_seed_trains_and_scores_every_model(tree):
    planned = tree.planned("SEEDS=0 3")
    assert len(planned) == len(set(planned)) == len(PLAN) + 8 + 5
    assert "02_train_unet.bass-seed3" in planned
    assert "04_evaluate.oracles-seed3" not in planned


def executed(tree, stages=PLAN):
    """Pretend that ``stages`` have run: their main results and executed copies are recent."""
    results, data = tree.root / "results" / "tiny", tree.root / "data" / "tiny"
    paths = [data / "corpus" / "corpus.json", data / "store" / "index.json"]
    for stage in stages:
        notebook, _, subject = stage.partition(".")
        paths.append(results / "notebooks" / f"{stage}.ipynb")
        if notebook == "02_train_unet":
            paths.append(results / "runs" / f"unet_{subject}" / "model.keras")
        elif notebook == "03_train_cunet":
            paths.append(results / "runs" / subject / "model.keras")
        elif notebook == "04_evaluate":
            scored = subject.replace("oracles", "ideal_ratio_mask")
            paths.append(results / "scores" / f"{scored}.csv")
    paths += [results / "scores" / "scores.csv", results / "report" / "index.html"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    now = time.time()
    for path in tree.root.rglob("*"):
        age(path, now, 100)
    for path in paths:
        age(path, now, 50)


def age(path, now, seconds):
    os.utime(path, (now - seconds, now - seconds))


def test_nothing_runs_when_everything_is_up_to_date(tree):
    executed(tree)
    assert tree.planned() == []
    done = tree.make("reproduce", "PROFILE=tiny")
    assert done.returncode == 0
    assert "results/tiny/tables" in done.stdout
    assert "started" not in done.stdout and done.stderr == ""
    assert not pages(tree)


def pages(tree, *arguments):
    """Whether ``make reproduce`` would write the report."""
    done = tree.make("--dry-run", "reproduce", "PROFILE=tiny", *arguments)
    assert done.returncode == 0, done.stderr
    return "cunet_lib.cli report tiny" in done.stdout


def test_reproduce_ends_with_the_address_of_the_report(tree):
    executed(tree)
    told = tree.make("reproduce", "PROFILE=tiny").stdout.splitlines()
    assert told[-1].split()[-1] == "results/tiny/report/index.html"


@pytest.mark.parametrize(
    "touched",
    [
        "cunet_lib/report/webpage.py",
        "notebooks/05_plot.ipynb",
        "results/tiny/notebooks/07_conditions.dense_complex-seed0.ipynb",
    ],
)
def test_report_is_made_again_when_what_it_shows_is_newer(tree, touched):
    executed(tree)
    (tree.root / touched).touch()
    assert pages(tree)
    assert tree.planned() == (["05_plot"] if "05" in touched else [])


def test_missing_report_is_made_again_alone(tree):
    executed(tree)
    (tree.root / "results" / "tiny" / "report" / "index.html").unlink()
    assert pages(tree) and tree.planned() == []


@pytest.mark.parametrize(
    ("touched", "expected"),
    [
        ("notebooks/05_plot.ipynb", ["05_plot"]),
        ("cunet_lib/report/verify.py", ["05_plot"]),
        ("notebooks/02_train_unet.ipynb", [*PLAN[6:10], "04_evaluate.unet-seed0", "05_plot"]),
        ("cunet_lib/evaluation/evaluate.py", PLAN[10:]),
        ("cunet_lib/models/unet.py", PLAN[2:]),
        ("cunet_lib/cli.py", []),
        ("notebooks/profiles/tiny.yaml", PLAN),
    ],
)
def test_a_change_reruns_what_depends_on_it(tree, touched, expected):
    executed(tree)
    (tree.root / touched).touch()
    assert tree.planned() == expected


@pytest.mark.parametrize(
    ("deleted", "expected"),
    [
        (
            "results/tiny/runs/cnn_simple-seed0/model.keras",
            ["03_train_cunet.cnn_simple-seed0", "04_evaluate.cnn_simple-seed0", "05_plot"],
        ),
        ("results/tiny/scores/unet-seed0.csv", ["04_evaluate.unet-seed0", "05_plot"]),
        ("results/tiny/scores/scores.csv", ["05_plot"]),
        ("data/tiny/corpus/corpus.json", PLAN),
    ],
)
def test_a_deleted_result_is_made_again(tree, deleted, expected):
    executed(tree)
    (tree.root / deleted).unlink()
    assert tree.planned() == expected


STEADY = "03_train_cunet.dense_complex-seed0-steady"


def test_conditions_train_one_more_model_and_run_beside_the_study(tree):
    assert tree.planned(target="conditions") == [
        "00_corpus",
        "01_preprocess",
        "03_train_cunet.dense_complex-seed0",
        STEADY,
        "07_conditions.dense_complex-seed0",
    ]
    executed(tree)
    assert tree.planned(target="conditions") == [STEADY, "07_conditions.dense_complex-seed0"]
    assert "07_conditions.dense_complex-seed3" in tree.planned("SEEDS=3", target="conditions")
    assert tree.planned() == []


def test_conditions_are_made_once_and_their_run_has_other_settings(tree):
    done = tree.make("conditions", "PROFILE=tiny", "JOBS=1")
    assert done.returncode == 0, done.stderr
    results = tree.root / "results" / "tiny"
    assert {path.name for path in (results / "runs").iterdir()} == {
        "dense_complex-seed0",
        "dense_complex-seed0-steady",
    }
    copy = nbformat.read(results / "notebooks" / f"{STEADY}.ipynb", as_version=4)
    given = copy.metadata.papermill.parameters
    assert (given.suffix, given.overrides) == ("steady", "train.progressive=0")
    assert tree.planned(target="conditions") == []
    (tree.root / "cunet_lib" / "control.py").touch()
    assert tree.planned(target="conditions") == ["07_conditions.dense_complex-seed0"]


def test_committed_results_alone_count_for_nothing(tree):
    executed(tree)
    shutil.rmtree(tree.root / "results" / "tiny" / "notebooks")
    assert tree.planned() == PLAN


def test_roots_move_with_the_environment(tree, tmp_path):
    done = tree.make(
        "--dry-run", "reproduce", "PROFILE=tiny", CUNET_RESULTS="elsewhere", CUNET_DATA=tmp_path
    )
    assert done.returncode == 0
    assert "elsewhere/tiny/tables" in done.stdout
