"""Sweeps: grids are checked as a whole, runs are kept apart, resumed and gathered."""

import json
import os
import re
import shutil
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT, ran, run_record

from cunet_lib.core.settings import ConfigError
from cunet_lib.workflow import sweep
from cunet_lib.workflow.stages import run_name

GRID = "variant=dense_simple,cnn_complex train.learning_rate=1e-3,3e-4"


# ------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("seed=0", {"seed": ["0"]}),
        (
            "train.conditions=[one_hot,zero],[one_hot] seed=1,2",
            {"train.conditions": ["[one_hot,zero]", "[one_hot]"], "seed": ["1", "2"]},
        ),
    ],
)
def test_commas_separate_values_save_in_brackets(text, axes):
    assert sweep.parse_grid(text) == axes


def test_every_point_of_the_grid_is_a_run_with_results_of_its_own(roots):
    planned = sweep.plan("smoke", "03_train_cunet", GRID)
    name = "03_train_cunet-by-variant-train.learning_rate"
    assert planned.folder == roots / "results" / "smoke" / "sweeps" / name
    assert [run.point["variant"] for run in planned.runs] == ["dense_simple"] * 2 + [
        "cnn_complex"
    ] * 2
    assert [run.settings.train.learning_rate for run in planned.runs] == [1e-3, 3e-4] * 2
    assert len({run.folder for run in planned.runs}) == 4
    for run in planned.runs:
        assert run.folder.parent == planned.folder
        assert run.stage.parameters["variant"] == run.point["variant"]
        assert run.record is None
    text = planned.text()
    assert "4 runs" in text and "variant=cnn_complex train.learning_rate=3e-4" in text


def test_a_larger_grid_finds_the_runs_of_the_smaller(roots):
    small = sweep.plan("smoke", "03_train_cunet", "variant=dense_simple train.learning_rate=1e-3")
    large = sweep.plan("smoke", "03_train_cunet", GRID)
    assert small.runs[0].folder == large.runs[0].folder


def test_values_that_look_alike_on_disk_are_kept_apart(roots):
    grid = "train.conditions=[one_hot,zero],[one_hot_zero]".replace("one_hot_zero", "zero,one_hot")
    planned = sweep.plan("smoke", "03_train_cunet", grid + " train.min_delta=1e-5,1.e-5")
    assert len({run.folder for run in planned.runs}) == 4
    assert all("/" not in run.folder.name and "[" not in run.folder.name for run in planned.runs)


@pytest.mark.parametrize(
    ("stage", "grid", "words"),
    [
        ("04_evaluate", "model=unet", ("'04_evaluate'", "02_train_unet, 03_train_cunet")),
        ("", GRID, ("STAGE", "03_train_cunet")),
        ("03_train_cunet", "", ("empty", "variant=dense_simple")),
        ("03_train_cunet", "variant", ("'variant'", "name=value,value")),
        ("03_train_cunet", "seed=1 seed=2", ("'seed'", "twice")),
        ("03_train_cunet", "instrument=bass", ("'instrument'", "valid:", "variant")),
        ("03_train_cunet", "signal.hop=128", ("signal.hop=128", "store")),
    ],
)
def test_bad_grid_is_one_sentence(roots, stage, grid, words):
    with pytest.raises(ConfigError) as caught:
        sweep.plan("smoke", stage, grid)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (roots / "results").exists()


# ------------------------------------------------------------------------------ running


def finish(run, loss):
    """What a training leaves behind."""
    folder = run.folder / run.settings.name / "runs" / run_name(run.stage.name)
    folder.mkdir(parents=True)
    model = run.stage.parameters.get("variant", "dense_simple")
    record = run_record(run.settings, model, best_val_loss=loss)
    (folder / "run.json").write_text(json.dumps(record))


def test_runs_are_gathered_and_failures_do_not_stop_the_others(roots, monkeypatch, capsys):
    planned = sweep.plan("smoke", "03_train_cunet", GRID)
    executed = []

    def run_stage(name, parameters, *, address):
        run = planned.runs[len(executed)]
        assert (name, parameters, address) == ("03_train_cunet", run.stage.parameters, "tcp://x")
        assert os.environ["CUNET_RESULTS"] == str(run.folder)
        executed.append(run)
        if run is planned.runs[1]:
            return False
        finish(run, loss=0.1 + len(executed))
        return True

    monkeypatch.setattr(sweep, "run_stage", run_stage)
    assert sweep.run(planned, address="tcp://x") == [planned.runs[1]]
    assert executed == list(planned.runs)
    assert os.environ["CUNET_RESULTS"] == str(roots / "results")
    assert "failed: variant=dense_simple train.learning_rate=3e-4" in capsys.readouterr().out
    table = pd.read_csv(planned.folder / "sweep.csv")
    assert table["train.learning_rate"].tolist() == [1e-3, 1e-3, 3e-4]
    assert table["best_val_loss"].tolist() == [1.1, 3.1, 4.1]
    assert "3 of 4 runs" in (planned.folder / "sweep.md").read_text()
    for ending in ("png", "svg", "txt"):
        assert (planned.folder / f"sweep.{ending}").stat().st_size > 0


def test_a_run_with_other_settings_is_no_finished_one(roots):
    (run,) = sweep.plan("smoke", "03_train_cunet", "seed=0").runs
    finish(run, 0.5)
    assert run.record["best_val_loss"] == 0.5
    path = next(run.folder.rglob("run.json"))
    record = json.loads(path.read_text())
    record["settings"]["train"]["batch_size"] += 1
    path.write_text(json.dumps(record))
    assert run.record is None
    with pytest.raises(ConfigError, match="No run of the sweep"):
        sweep.gather(sweep.plan("smoke", "03_train_cunet", "seed=0"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"statistics": {"margin_db": 2.0}}, True),
        ({"title": "another"}, True),
        ({"train": {"patience": 17}}, False),
    ],
)
def test_a_finished_run_is_found_unless_its_training_would_be_another(roots, change, found):
    def planned(**change):
        profile = {"title": "mine", "data": {"source": "rendered", "validation": 1}, **change}
        (roots / "mine.yaml").write_text(yaml.safe_dump(profile))
        (run,) = sweep.plan(str(roots / "mine.yaml"), "03_train_cunet", "seed=0").runs
        return run

    finish(planned(), 0.5)
    assert planned().record["best_val_loss"] == 0.5
    assert (planned(**change).record is not None) == found


def make(*arguments, **environment):
    return ran("make", "sweep", *arguments, CUNET_PYTHON=sys.executable, **environment)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("GRID=seed=0",), "STAGE ''"),
        (("STAGE=03_train_cunet", "GRID=seed=0;touch pwned"), "pwned"),
        (("STAGE=03_train_cunet", 'GRID=seed="$(shell touch pwned)"'), "touch"),
        (("STAGE=$(shell touch pwned)", "GRID=seed=0"), "touch pwned"),
    ],
)
def test_make_hands_text_on_as_text(tmp_path, arguments, words):
    done = make("PROFILE=smoke", *arguments, CUNET_RESULTS=tmp_path, CUNET_DATA=tmp_path)
    assert done.returncode != 0
    (complaint,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert words in complaint
    assert not (ROOT / "pwned").exists() and not list(tmp_path.iterdir())


def test_make_prepares_the_corpus_first(tmp_path):
    done = make(
        *("--dry-run", "PROFILE=smoke", "STAGE=03_train_cunet", "GRID=seed=0"),
        CUNET_RESULTS=tmp_path,
        CUNET_DATA=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"cunet_lib\.cli (\S+) ?(\S*)", done.stdout)
    # Make shows a whole recipe before it runs its first line: the order is the recipe's.
    assert [words for words in said if words[0] == "run"] == [
        ("run", "00_corpus"),
        ("run", "01_preprocess"),
    ]
    assert said.count(("sweep", "--profile")) == 2


@pytest.mark.timeout(900)
def test_a_run_trains_in_a_folder_of_its_own(tones, tmp_path, monkeypatch):
    settings, _ = tones
    data = settings.paths.data  # before it is another
    roots = {"CUNET_RESULTS": tmp_path / "results", "CUNET_DATA": tmp_path / "data"}
    for name, folder in roots.items():
        monkeypatch.setenv(name, str(folder))
    shutil.copytree(data, tmp_path / "data" / "smoke")
    planned = sweep.plan("smoke", "03_train_cunet", "train.learning_rate=3e-4")
    assert sweep.run(planned) == [] and planned.runs[0].record is not None
    table, _ = sweep.gather(planned)
    assert table.frame["best_val_loss"].iloc[0] > 0
    assert not (tmp_path / "results" / "smoke" / "runs").exists()
    assert settings.title in table.caption
