"""Set-up: the lock, the conda file and the package agree; make builds the right environment."""

import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import LOCKS, PROJECT, ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_stages import PLAN

from cunet_lib.core.settings import load_profile
from cunet_lib.workflow.stages import parse_stage

CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def locked(lock=LOCK):
    """Requirements of a lock, each with its hashes: ``[(Requirement, [hash, ...]), ...]``."""
    joined = re.sub(r"\\\n", " ", lock)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [
        (Requirement(line.split("--hash=")[0].strip()), re.findall(r"--hash=(\S+)", line))
        for line in lines
    ]


DIRECT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def test_lock_pins_each_direct_dependency_within_its_range():
    for dependency in map(Requirement, DIRECT):
        name = canonicalize_name(dependency.name)
        pins = [pin for pin, _ in locked() if canonicalize_name(pin.name) == name]
        assert pins, f"{name} is not in requirements.lock; run make lock"
        for pin in pins:
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert specifier.version in dependency.specifier, name


@pytest.mark.parametrize(("name", "least"), [(LOCKS[0], len(DIRECT)), (LOCKS[1], 5)])
def test_lock_pins_exactly_with_hashes_and_without_addresses(name, least):
    lock = (ROOT / name).read_text()
    found = locked(lock)
    assert len(found) > least
    for pin, hashes in found:
        assert pin.url is None and {each.operator for each in pin.specifier} == {"=="}
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), pin
    assert "://" not in lock
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)", lock, re.MULTILINE)


def test_lock_for_cards_adds_to_the_other_what_tensorflow_wants_of_nvidia():
    added = {pin.name: pin for pin, _ in locked((ROOT / LOCKS[1]).read_text())}
    assert not {*added} & {pin.name for pin, _ in locked()}
    wanted = map(Requirement, importlib.metadata.requires("tensorflow"))
    wanted = [each for each in wanted if each.marker and "and-cuda" in str(each.marker)]
    assert {each.name for each in wanted} == {*added}
    for each in wanted:
        (pin,) = added[each.name].specifier
        assert pin.version in each.specifier


def test_libraries_for_cards_are_installed_when_asked_for_and_once(machine):
    machine.install("python3")
    assert machine.make_env().returncode == 0
    done = machine.make_env(GPU=1)
    assert done.returncode == 0 and "requirements-gpu.lock" in done.stdout
    assert machine.called("-m pip", "--require-hashes", "-r requirements-gpu.lock")
    assert machine.make_env(GPU=1).stdout == "" and machine.calls == []
    (machine.venv / ".cunet-ready-gpu").unlink()
    failed = machine.make_env(GPU=1, PIP_STATUS=1)
    assert failed.returncode != 0 and "mend the cause" in failed.stderr


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_lock_serves_every_supported_python_with_one_pin(version):
    assert Version(version) in SpecifierSet(PROJECT["requires-python"])
    environment = {"python_version": version, "python_full_version": f"{version}.5"}
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
    install, kernel = calls.read_text().splitlines()
    # Dependencies come from the lock alone, by environment.yml.
    assert install.startswith("-m pip install") and install.endswith("--editable .")
    assert "--no-deps" in install
    assert kernel == "-m cunet_lib.cli kernel"
    # Anything in one of these folders would hide environment.yml from repo2docker.
    assert not (ROOT / "binder").exists() and not (ROOT / ".binder").exists()


def test_lab_opens_the_control_panel(bare_tree):
    done = bare_tree.make("--dry-run", "lab")
    assert done.returncode == 0, done.stderr
    assert "-m jupyter lab" in done.stdout and "notebooks/06_explore.ipynb" in done.stdout


def test_kernel_of_the_notebooks_is_registered_silent():
    prefix = Path(sys.prefix).resolve()
    spec = json.loads((prefix / "share/jupyter/kernels/cunet/kernel.json").read_text())
    assert Path(spec["argv"][0]).parent.resolve() == prefix / "bin"
    assert spec["env"]["PYDEVD_DISABLE_FILE_VALIDATION"] == "1"
    # What the user may have set is left to the notebooks' first import, which asks.
    assert not any(name.startswith("TF_") for name in spec["env"])


# ------------------------------------------------------------------ make's choice of environment

TOOLS = "awk bash cat cp dirname env find grep make mkdir nproc printf rm sed tr"

# A Python that notes what it is asked to do. Asked for a venv, it copies itself there, and its pip
# brings uv.
FAKE_PYTHON = """#!/bin/sh
echo "python $*" >> "$CALLS"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$FAKES/uv" "$3/bin/uv" ;;
  "-m pip")
    case "$*" in
      *editable*) ;;
      *uv.lock*) cp .venv/uv.lock "$CALLS.uv" ;;
      *) exit "${PIP_STATUS:-0}" ;;
    esac ;;
esac
"""
FAKE_UV = """#!/bin/sh
echo "uv $*" >> "$CALLS"
exit "${UV_STATUS:-0}"
"""
REFUSING = "#!/bin/sh\nexit 1\n"


class FakeMachine:
    """A PATH with the usual tools and, on demand, pretended Pythons."""

    def __init__(self, tree, folder):
        self.tree = tree
        self.folder = folder
        self.calls_file = folder / "calls"
        folder.mkdir()
        for name in TOOLS.split():
            (folder / name).symlink_to(shutil.which(name))
        self.install("uv", FAKE_UV)

    def install(self, name, script=FAKE_PYTHON):
        path = self.folder / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def make_env(self, **environment):
        self.calls_file.write_text("")
        roots = {"PATH": self.folder, "CALLS": self.calls_file, "FAKES": self.folder}
        return self.tree.make("env", python=None, **roots, **environment)

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


def test_a_venv_gets_uv_from_the_lock_and_uv_the_rest(machine):
    machine.install("python3")
    done = machine.make_env()
    assert done.returncode == 0, done.stderr
    assert machine.called("-m venv .venv")
    assert machine.called("-m pip", "--require-hashes", "-r .venv/uv.lock")
    first, *rest = machine.calls_file.with_name("calls.uv").read_text().splitlines()
    assert first.startswith("uv==") and rest and all("--hash=" in line for line in rest)
    assert machine.called("uv pip install", "--require-hashes", "-r requirements.lock")
    assert not machine.called("-m pip", "-r requirements.lock")
    assert machine.called("-m pip", "--no-deps", "--no-build-isolation --editable .")
    assert machine.called("cunet_lib.cli kernel")
    assert "ready" in done.stdout

    again = machine.make_env()
    assert again.returncode == 0
    assert machine.calls == [] and again.stdout == ""


def test_pip_has_a_try_when_uv_fails(machine):
    machine.install("python3")
    done = machine.make_env(UV_STATUS=1)
    assert done.returncode == 0, done.stderr
    assert "pip tries" in done.stdout
    assert machine.called("-m pip", "--require-hashes", "-r requirements.lock")


def test_half_made_or_moved_environment_is_made_again(machine):
    machine.install("python3")
    failed = machine.make_env(UV_STATUS=1, PIP_STATUS=1)
    assert failed.returncode != 0
    assert "mend the cause and run make again" in failed.stderr
    (machine.venv / "half-made").touch()
    done = machine.make_env()
    assert done.returncode == 0, done.stderr
    assert "making it again" in done.stdout
    assert not (machine.venv / "half-made").exists()

    machine.tree.root = machine.tree.root.rename(machine.tree.root.parent / "moved")
    assert "making it again" in machine.make_env().stdout
    assert machine.called("-m venv .venv")


def test_changed_lock_updates_the_environment_in_place(machine):
    machine.install("python3")
    assert machine.make_env().returncode == 0
    stamp = (machine.venv / ".cunet-ready").stat()
    os.utime(machine.tree.root / "requirements.lock", (stamp.st_atime, stamp.st_mtime + 10))
    assert machine.make_env().returncode == 0
    assert machine.called("uv pip install", "--require-hashes")
    assert not machine.called("-m venv .venv")


def test_active_conda_environment_is_used_as_it_is(machine, tmp_path):
    prefix = tmp_path / "conda"
    (prefix / "bin").mkdir(parents=True)
    machine.install("python3")
    shutil.copy(machine.folder / "python3", prefix / "bin" / "python")
    active = {"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": "cunet"}
    done = machine.make_env(**active)
    assert done.returncode == 0, done.stderr
    assert not machine.venv.exists()
    assert machine.called("--editable .") and not machine.called("requirements.lock")
    assert machine.make_env(**active).returncode == 0
    assert machine.calls == []
    # Another one is left alone.
    assert machine.make_env(CONDA_PREFIX=tmp_path, CONDA_DEFAULT_ENV="base").returncode == 0
    assert machine.venv.exists()


@pytest.mark.parametrize("script", [None, REFUSING], ids=["none", "too old"])
def test_no_usable_python_is_one_sentence(machine, script):
    if script:
        machine.install("python3", script)
    done = machine.make_env()
    assert done.returncode != 0
    assert not machine.venv.exists()
    told = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(told) == 1
    assert "Python 3.10 to 3.13" in told[0]


def test_second_choice_python_is_found(machine):
    machine.install("python3", REFUSING)
    machine.install("python3.11")
    assert machine.make_env().returncode == 0
    assert machine.called("-m venv .venv")


# ----------------------------------------------------------------------------- what make can do


def test_make_alone_lists_targets_and_variables(bare_tree):
    done = bare_tree.make()
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^  ([\w-]+) +(\S.*)$", done.stdout, re.MULTILINE)
    targets = (
        "env reproduce conditions beyond sweep test test-fast lint check plan torture lab verify "
    )
    targets += "report bench clean distclean lock"
    variables = "PROFILE MUSDB JOBS CLUSTER SEEDS STAGE GRID CUNET_DATA GPU"
    assert {name for name, _ in listed} == {*targets.split(), *variables.split()}
    assert len(done.stdout.splitlines()) == 1 + len(listed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("PROFILE=nope",), ("'nope'", "tiny")),
        (("PROFILE=tiny", "JOBS=0"), ("JOBS",)),
        (("PROFILE=tiny", "JOBS=many"), ("JOBS", "many")),
        (("PROFILE=tiny", "SEEDS=one two"), ("SEEDS", "one two")),
        (("PROFILE=tiny", "SEEDS=0"), ("SEEDS", "0")),
        (("PROFILE=%",), ("'%'", "tiny")),
        (("PROFILE=tiny tiny",), ("'tiny tiny'",)),
        (("PROFILE=../tiny",), ("'../tiny'",)),
        (("PROFILE=tiny", "SEEDS=0; touch injected"), ("SEEDS", "touch")),
        (("PROFILE=tiny", "SEEDS='; touch injected; '"), ("SEEDS", "touch")),
        (("PROFILE=tiny", "SEEDS=*"), ("SEEDS",)),
        (("PROFILE=tiny", "JOBS=`touch injected`"), ("JOBS", "touch")),
    ],
)
def test_bad_variable_is_one_sentence(bare_tree, arguments, words):
    done = bare_tree.make("reproduce", *arguments)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words)
    assert not list(bare_tree.root.rglob("injected"))


@pytest.mark.parametrize("name", ["two words", "it's", '"$(touch injected)"', "é#%"])
def test_musdb_s_folder_is_text_whatever_its_name(bare_tree, tmp_path, name):
    """The program gets it as it is; where there is no such folder, one sentence says so."""
    done = bare_tree.make("check", "PROFILE=tiny", MUSDB=tmp_path / name)
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert said == f"MUSDB={tmp_path / name} is no folder; give the one with train and test."
    assert not list(bare_tree.root.rglob("injected"))


def test_clean_keeps_committed_results_and_other_profiles(bare_tree):
    results = bare_tree.root / "results" / "tiny"
    kept = [results / name for name in ("tables/a.csv", "scores/b.csv", "models/c")]
    kept.append(bare_tree.root / "data" / "demo" / "d")
    gone = [results / name for name in ("runs/a", "notebooks/b", "scores/tracks/c")]
    gone.append(bare_tree.root / "data" / "tiny" / "d")
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert bare_tree.make("clean", "PROFILE=tiny").returncode == 0
    assert [path for path in kept if not path.exists()] == []
    assert [path for path in gone if path.exists()] == []


@pytest.mark.parametrize("given", ["environment", "argument"])
@pytest.mark.parametrize("name", ["my results", "~/my $results", '"$(touch injected)"'])
def test_results_folder_is_text_whatever_its_name(bare_tree, tmp_path, name, given):
    own = tmp_path / name[2:] if name[0] == "~" else bare_tree.root / name
    for folder in ("runs", "tables"):
        (own / "tiny" / folder).mkdir(parents=True)
    environment = {"HOME": tmp_path} | ({"CUNET_RESULTS": name} if given == "environment" else {})
    arguments = [f"CUNET_RESULTS={name}"] if given == "argument" else []
    done = bare_tree.make("reproduce", "PROFILE=tiny", *arguments, **environment)
    assert "No notebook" in done.stderr  # there is none in this tree; the lock was made before
    assert bare_tree.make("clean", "PROFILE=tiny", *arguments, **environment).returncode == 0
    assert sorted(path.name for path in own.glob("tiny/*")) == [".lock", "tables"]
    assert not [path for path in bare_tree.root.rglob("*") if path.name == "injected"]


def test_clean_deletes_only_what_git_ignores():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    (made,) = re.findall(r"^MADE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {f"results/*/{folder}/" for folder in made.split()} <= set(ignored)


def test_ci_runs_the_documented_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make test")


# ---------------------------------------------------------------------------- the graph of stages


def test_stages_come_in_order_with_the_longest_first(tree):
    assert tree.planned() == PLAN
    assert not (tree.root / "results").exists()  # a dry run writes nothing, not even a lock


def test_make_and_the_program_know_the_same_graph(tree):
    """Each stage comes after those whose results it reads, and none that it does not need."""
    planned, settings = tree.planned("SEEDS=2"), load_profile("smoke", "seeds=2")
    for place, name in enumerate(planned):
        assert set(parse_stage(name).inputs(settings)) <= set(planned[:place])
    read = parse_stage("05_plot").inputs(settings)
    assert {*read, *PLAN[:2], "05_plot"} == set(planned) and len(set(planned)) == len(planned)
    assert "04_evaluate.oracles-seed1" not in planned


def test_conditions_train_one_more_model_beside_the_study(tree):
    own, last = "03_train_cunet.dense_complex-seed0", "07_conditions.dense_complex-seed0"
    expected = [*PLAN[:2], own, own.replace("complex", "complex_np"), last]
    assert tree.planned(target="conditions") == expected
