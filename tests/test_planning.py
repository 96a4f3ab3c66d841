"""Plans: the arithmetic with a given calibration, and one real calibration."""

import dataclasses
import shutil

import pytest
from conftest import write_tones

from cunet_lib.cli import main
from cunet_lib.core.settings import ConfigError, load_profile, profile_names
from cunet_lib.core.systems import VARIANTS
from cunet_lib.workflow import plan as planning

CALIBRATION = planning.Calibration(
    step=0.5, validation=0.25, score=0.04, parameters=2_000_000, memory=3e9, workers=2, gpu=False
)
EXTENT = planning.Extent(
    tracks={"train": 10, "test": 4},
    seconds={"train": 1000.0, "test": 400.0},
    longest=120.0,
    size=5e8,
    source="a test",
    ready=True,
)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CUNET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("CUNET_MUSDB", raising=False)


def parts(settings, extent=EXTENT, calibration=CALIBRATION, **options):
    plan = planning.estimate(settings, extent, calibration, **options)
    return plan, {part.name: part for part in plan.parts}


def test_trainings_are_epochs_times_steps_and_validation():
    _, by = parts(load_profile("musdb18"))
    # 256 patches for one instrument are 4 batches of 64, for four instruments 16.
    for name, batches in (("02_train_unet", 4), ("03_train_cunet", 16)):
        one = 1000 * (2048 * 0.5 + batches * 0.25)
        assert by[name].runs == 4
        assert by[name].seconds == pytest.approx(4 * (one + planning.NOTEBOOK_SECONDS))
        assert by[name].disk == 4 * (4 * 2_000_000 + planning.NOTEBOOK_BYTES)
        assert by[name].memory == CALIBRATION.memory


def test_store_is_five_stems_of_four_bytes():
    _, by = parts(load_profile("musdb18"))
    assert by["01_preprocess"].disk == 5 * 8192 * 4 * 1400 + planning.NOTEBOOK_BYTES


def test_evaluation_separates_with_each_system_and_scores_the_oracles_too():
    settings = load_profile("musdb18")
    rate, patches = 8192, settings.train.batch_size
    hop = settings.signal.hop * settings.model.patch_frames * (1 - settings.separate.overlap)
    separating = 4 * 0.25 * rate / (patches * hop) * 400
    for seeds in (1, 3):
        _, by = parts(settings, seeds=seeds)
        runs = seeds * (len(VARIANTS) + 1)
        assert by["04_evaluate"].runs == runs + 1
        # One model of a seed is separated twice more for the ablations, of which there are five.
        assert by["04_evaluate"].seconds == pytest.approx(
            (runs + 1) * planning.NOTEBOOK_SECONDS
            + (runs + 2 * seeds) * separating
            + (runs + 2 + 5 * seeds) * 0.04 * 400 / 2
        )
        assert by["04_evaluate"].memory > CALIBRATION.memory + 2 * 120e6


def test_seeds_multiply_trainings_but_no_corpus():
    settings = load_profile("demo")
    _, one = parts(settings)
    plan, three = parts(settings, seeds=3)
    assert three["00_corpus"] == one["00_corpus"]
    for name in ("02_train_unet", "03_train_cunet"):
        for field in ("runs", "seconds", "disk"):
            assert getattr(three[name], field) == pytest.approx(3 * getattr(one[name], field))
    assert plan.total.seconds == sum(part.seconds for part in plan.parts)


def test_a_corpus_costs_space_only_if_it_is_made_here():
    _, rendered = parts(load_profile("demo"), dataclasses.replace(EXTENT, ready=False))
    assert rendered["00_corpus"].disk == EXTENT.size + planning.NOTEBOOK_BYTES
    _, present = parts(load_profile("musdb18"))
    assert present["00_corpus"].disk == planning.NOTEBOOK_BYTES


def test_too_small_a_disk_is_told(monkeypatch):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    plan, _ = parts(load_profile("musdb18"))
    assert any(note.startswith("Not enough space") and "CUNET_DATA" in note for note in plan.notes)


def test_text_has_every_stage_in_order_and_the_total():
    text = parts(load_profile("musdb18"))[0].text()
    names = [line.split()[0] for line in text.splitlines()[1:8]]
    assert names == [
        *("00_corpus", "01_preprocess", "02_train_unet", "03_train_cunet"),
        *("04_evaluate", "05_plot", "total"),
    ]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_can_be_planned_without_its_corpus(name):
    settings = load_profile(name)
    extent = planning.extent_of(settings)
    assert set(extent.tracks) == {"train", "test"} and extent.total > 0
    assert planning.estimate(settings, extent, CALIBRATION).total.seconds > 0
    if name == "musdb18":
        assert extent.tracks == {"train": 100, "test": 50} and "assumed" in extent.source


def test_headers_are_read_where_the_tracks_are(tmp_path, monkeypatch):
    write_tones(tmp_path / "musdb", train=3, test=1, seconds=2.0)
    monkeypatch.setenv("CUNET_MUSDB", str(tmp_path / "musdb"))
    settings = load_profile("musdb18")
    data = settings.data.model_copy(update={"validation": 1})
    extent = planning.extent_of(settings.model_copy(update={"data": data}))
    assert extent.tracks == {"train": 3, "test": 1}
    assert extent.seconds == pytest.approx({"train": 6.0, "test": 2.0})
    assert extent.size == sum(path.stat().st_size for path in tmp_path.rglob("*.wav"))
    assert extent.ready and "headers" in extent.source
    # A corpus that is not in order has no plan, but a list of problems.
    with pytest.raises(ConfigError, match="Music Delta - Disco"):
        planning.extent_of(settings)


def test_a_real_calibration_of_the_smallest_profile():
    settings = load_profile("smoke")
    found = planning.calibrate(settings, seconds=0.1, report=lambda line: None)
    assert min(found.step, found.validation, found.score, found.parameters, found.memory) > 0
    plan = planning.estimate(settings, planning.extent_of(settings), found)
    assert all(part.seconds > 0 and part.memory > 0 for part in plan.parts)


def test_command_prints_the_plan(monkeypatch, capsys):
    monkeypatch.setattr(planning, "calibrate", lambda settings: CALIBRATION)
    assert main(["plan", "musdb18", "--seeds", "0 1"]) == 0
    told = capsys.readouterr().out
    assert "03_train_cunet    8" in told and "assumed: the published totals" in told
    for bad in ("", "x", "0,1"):
        assert main(["plan", "musdb18", "--seeds", bad]) == 2
        assert "--seeds" in capsys.readouterr().err
