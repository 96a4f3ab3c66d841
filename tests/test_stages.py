"""What is up to date follows from what decides the numbers, not from the times of files."""

import json
import os
import shutil

import nbformat
import pytest
from conftest import ROOT, code_of

from cunet_lib.core import files
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.workflow import parameters, stages
from cunet_lib.workflow.stages import fingerprint, is_current, parse_stage

CUNET = "dense_complex-seed0"
UNETS = ["bass-seed0", "drums-seed0", "other-seed0", "vocals-seed0"]
PLAN = [
    "00_corpus",
    "01_preprocess",
    f"03_train_cunet.{CUNET}",
    *(f"02_train_unet.{run}" for run in UNETS),
    f"04_evaluate.{CUNET}",
    "04_evaluate.unet-seed0",
    "04_evaluate.oracles-seed0",
    "05_plot",
]
TRAINED, SCORED = PLAN[2:7], PLAN[7:10]


class Study:
    """A copy of the sources whose stages write a file instead of running their notebook."""

    def __init__(self, root):
        self.root = root
        self.overrides = ""

    def stale(self, content="result"):
        """Stages that are not up to date, in order; each is then said to have run."""
        settings, ran = load_profile("smoke", self.overrides), []
        for name in PLAN:
            stage = parse_stage(name)
            decided = fingerprint(stage, settings)
            if is_current(stage, settings, decided):
                continue
            ran.append(name)
            about = {"metadata": {"cunet": {"fingerprint": decided}}}
            notebook = {"cells": [], **about, "nbformat": 4, "nbformat_minor": 5}
            for path, text in (
                (stage.result(settings), content),
                (stage.output(settings), json.dumps(notebook, indent=1)),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return ran

    def add(self, file, text):
        path = self.root / file
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")

    def edit(self, notebook, change):
        path = self.root / "notebooks" / f"{notebook}.ipynb"
        content = nbformat.read(path, as_version=4)
        change(content)
        nbformat.write(content, path)


def moved(patch, root):
    """Let the library take its sources, data and results from a folder."""
    patch.setenv("CUNET_DATA", str(root / "data"))
    patch.setenv("CUNET_RESULTS", str(root / "results"))
    patch.setattr(stages, "ROOT", root)
    for module in (stages, parameters):
        patch.setattr(module, "NOTEBOOKS", root / "notebooks")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study all of whose stages have run."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("cunet_lib", "rendered_corpus", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    with pytest.MonkeyPatch.context() as patch:
        moved(patch, root)
        assert Study(root).stale() == PLAN
    return root


@pytest.fixture
def study(whole, tmp_path, monkeypatch):
    root = shutil.copytree(whole, tmp_path / "study")
    moved(monkeypatch, root)
    return Study(root)


def test_scores_of_the_profile_that_this_one_is_like_count_where_they_are_shown(study):
    settings = load_profile("smoke").model_copy(update={"like": "demo"})
    scores = study.root / "results" / "demo" / "scores"
    scores.mkdir(parents=True)
    made = {}
    for content in ("one", "other", "other"):
        (scores / "unet-seed0.csv").write_text(content)
        for name in ("05_plot", "08_beyond", "04_evaluate.unet-seed0"):
            made.setdefault(name, []).append(fingerprint(parse_stage(name), settings))
    for name, (first, second, third) in made.items():
        assert second == third and (first == second) == name.startswith("04")


def last_code(content):
    return code_of(content)[-1]


def as_jupyter_saves_it(content):
    content.metadata["language_info"] = {"name": "python", "version": "3.14"}
    last_code(content).update(
        execution_count=7, outputs=[nbformat.v4.new_output("stream", text="seen")]
    )
    last_code(content).metadata["collapsed"] = True


def test_nothing_runs_for_comments_outputs_metadata_and_times(study):
    assert study.stale() == []
    for path in study.root.rglob("*"):
        os.utime(path)
    for room in ("core/settings", "models/unet", "train/training", "signal/spectral"):
        study.add(f"cunet_lib/{room}.py", "\n# a comment\n")
    study.add("rendered_corpus/render.py", '\n"""Words."""\n')
    study.add("cunet_lib/cli.py", "\nADDED = 1\n")  # no notebook uses it
    study.add("notebooks/profiles/smoke.yaml", "\n# a comment\n")
    for notebook in stages.notebook_names():
        study.edit(notebook, as_jupyter_saves_it)
        study.edit(notebook, lambda content: content.cells.append(nbformat.v4.new_markdown_cell()))
        study.edit(
            notebook,
            lambda content: last_code(content).update(source=last_code(content).source + "  # why"),
        )
    # Executed copies, too, may be opened and saved.
    for path in (study.root / "results" / "smoke" / "notebooks").iterdir():
        content = nbformat.read(path, as_version=4)
        content.metadata["language_info"] = {"name": "python", "version": "3.14"}
        nbformat.write(content, path)
    (study.root / "notebooks" / ".ipynb_checkpoints").mkdir()
    copy = study.root / "notebooks" / ".ipynb_checkpoints" / "00_corpus-checkpoint.ipynb"
    shutil.copy(study.root / "notebooks" / "00_corpus.ipynb", copy)
    assert study.stale() == []


def test_trainings_stay_valid_too_when_comments_and_notebooks_change(study, monkeypatch):
    """What a finished training asks: the code that decides its numbers, without comments."""
    monkeypatch.setattr(files, "ROOT", study.root)
    rooms = ("cunet_lib/signal/spectral.py", "cunet_lib/models", "cunet_lib/train")
    before = files.code_hash(*rooms)
    study.add("cunet_lib/train/training.py", '\n# a comment\n"""Words."""\n')
    study.edit("02_train_unet", as_jupyter_saves_it)
    assert files.code_hash(*rooms) == before
    study.add("cunet_lib/train/training.py", "\nADDED = 1\n")
    assert files.code_hash(*rooms) != before


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("rendered_corpus/render.py", PLAN),
        ("cunet_lib/preprocess/store.py", PLAN[1:]),
        ("cunet_lib/models/unet.py", PLAN[2:]),
        ("cunet_lib/train/training.py", None),
        ("cunet_lib/evaluation/evaluate.py", [*SCORED, "05_plot"]),
        ("cunet_lib/evaluation/published_scores.csv", ["05_plot"]),
        ("cunet_lib/report/tables.py", ["05_plot"]),
        ("cunet_lib/core/settings.py", PLAN),
    ],
)
def test_a_line_of_code_runs_what_uses_it_and_what_comes_after(study, file, expected):
    study.add(file, "\nADDED = 1\n")
    ran = study.stale()
    assert ran == (expected or [*TRAINED, *SCORED[:2], "05_plot"])
    assert study.stale() == []


def test_a_changed_cell_runs_its_notebook_and_what_comes_after(study):
    study.edit("02_train_unet", lambda content: last_code(content).update(source="changed = 1"))
    assert study.stale() == [*TRAINED[1:], "04_evaluate.unet-seed0", "05_plot"]
    study.edit("05_plot", lambda content: last_code(content).update(source="changed = 1"))
    assert study.stale() == ["05_plot"]


def test_a_changed_setting_runs_everything_and_one_given_as_it_was_nothing(study):
    study.overrides = f"train.patience={load_profile('smoke').train.patience}"
    assert study.stale() == []
    study.overrides = "train.patience=17"
    assert study.stale() == PLAN


@pytest.mark.parametrize(
    ("stage", "after"),
    [
        (f"03_train_cunet.{CUNET}", [f"04_evaluate.{CUNET}", "05_plot"]),
        ("04_evaluate.unet-seed0", ["05_plot"]),
        ("05_plot", []),
        ("01_preprocess", [*TRAINED, *SCORED, "05_plot"]),
    ],
)
def test_a_deleted_result_is_made_again_and_what_follows_only_if_it_differs(study, stage, after):
    result = parse_stage(stage).result(load_profile("smoke"))
    result.unlink()
    assert study.stale() == [stage]
    result.unlink()
    assert study.stale("another") == [stage, *after]


def test_a_missing_copy_is_made_again(study):
    shutil.rmtree(study.root / "results" / "smoke" / "notebooks")
    assert study.stale() == PLAN


def test_parameters_decide_too(study):
    settings = load_profile("smoke")
    plot = [
        fingerprint(parse_stage("05_plot", given), settings) for given in ({}, {"profile": "x"})
    ]
    assert plot[0] == plot[1]  # what it reads, the settings say
    training = [
        fingerprint(parse_stage(f"03_train_cunet.cnn_simple-seed{seed}"), settings)
        for seed in (0, 1)
    ]
    assert training[0] != training[1]


def test_more_seeds_leave_trainings_valid_and_give_tables_more_to_read(study):
    one, two = (load_profile("smoke", f"seeds={seeds}") for seeds in (1, 2))
    plot, training = parse_stage("05_plot"), parse_stage("03_train_cunet.cnn_simple-seed0")
    assert fingerprint(training, one) == fingerprint(training, two)
    assert fingerprint(plot, one) != fingerprint(plot, two)
    added = {*plot.inputs(two)} - {*plot.inputs(one)}
    assert {"03_train_cunet.cnn_simple-seed1", "04_evaluate.unet-seed1"} < added
    assert all(name.endswith("-seed1") for name in added) and len(added) == 8 + 5


def test_a_study_trains_what_its_profile_says():
    seeds = "seeds={unet: 1, dense_complex: 1, cnn_complex: 2, dense_simple_np: 1}"
    settings = load_profile("smoke", [seeds, "shipped=cnn_complex"])
    read = parse_stage("05_plot").inputs(settings)
    runs = ["cnn_complex-seed0", "cnn_complex-seed1", CUNET, "dense_simple_np-seed0"]
    assert {name for name in read if name[:3] == "03_"} == {f"03_train_cunet.{n}" for n in runs}
    scored = [name for name in read if name[:3] == "04_"]
    # What ships takes longest, and is scored first.
    assert scored == [f"04_evaluate.{n}" for n in (*runs, "unet-seed0", "oracles-seed0")]
    for run, name in zip(runs, scored, strict=False):
        assert parse_stage(name).inputs(settings) == [f"03_train_cunet.{run}"]


@pytest.mark.parametrize("source", ["musdb18", "folder"])
def test_music_on_disk_decides_too(study, tmp_path, monkeypatch, source):
    song = tmp_path / "musdb" / "train" / "A Song" / "mixture.wav"
    song.parent.mkdir(parents=True)
    song.write_bytes(b"1")
    monkeypatch.setenv("CUNET_MUSDB", str(tmp_path / "musdb"))
    settings = load_profile("smoke", f"data.source={source} data.validation=1")
    before = fingerprint(parse_stage("00_corpus"), settings)
    song.write_bytes(b"12")
    assert fingerprint(parse_stage("00_corpus"), settings) != before


def test_notebooks_beside_the_study_always_run(study):
    settings = load_profile("smoke")
    stage = parse_stage("06_explore")
    assert not is_current(stage, settings, fingerprint(stage, settings))


# ------------------------------------------------------------------------------ names of stages


@pytest.mark.parametrize(
    ("name", "given", "stage", "values"),
    [
        ("00_corpus", {}, "00_corpus", {}),
        ("02_train_unet.bass-seed3", {}, None, {"instrument": "bass", "seed": 3}),
        (
            "03_train_cunet",
            {"variant": "cnn_simple", "seed": "2"},
            "03_train_cunet.cnn_simple-seed2",
            {"variant": "cnn_simple", "seed": 2},
        ),
        (
            "04_evaluate.oracles-seed0",
            {"profile": "demo"},
            None,
            {"profile": "demo", "model": "oracles", "seed": 0},
        ),
    ],
)
def test_stage_name_and_parameters_agree(name, given, stage, values):
    parsed = parse_stage(name, given)
    assert parsed.name == (stage or name)
    assert parsed.parameters == values
    settings = load_profile("smoke")
    assert parsed.output(settings) == settings.paths.notebooks / f"{parsed.name}.ipynb"


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("99_nothing", {}, ("'99_nothing'", "00_corpus")),
        ("02_train_unet.bass", {}, ("02_train_unet.<instrument>-seed<number>",)),
        ("02_train_unet.bass-seed0", {"instrument": "drums"}, ("instrument", "drums", "disagree")),
    ],
)
def test_bad_stage_is_one_sentence(name, given, words):
    with pytest.raises(ConfigError) as caught:
        parse_stage(name, given)
    assert all(word in str(caught.value) for word in words)
