"""Plans: the arithmetic with a given calibration, and one real calibration."""

import dataclasses
import shutil

import pytest
from conftest import write_tones

from cunet_lib.cli import main
from cunet_lib.core.settings import ConfigError, load_profile, profile_names
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS
from cunet_lib.workflow import plan as planning

CALIBRATION = planning.Calibration(
    step=0.5,
    validation=0.25,
    render=2.0,
    decode=0.1,
    separate=0.05,
    score_track=2.0,
    score=0.04,
    ablate_track=1.0,
    ablate=0.02,
    parameters={**dict.fromkeys(UNETS, 1_000_000), **dict.fromkeys(VARIANTS, 2_000_000)},
    training_memory=3e9,
    device_memory=0.0,
    score_base=1e8,
    score_memory=1e6,
    workers=2,
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


def stages(settings, extent=EXTENT, calibration=CALIBRATION, **options):
    plan = planning.estimate(settings, extent, calibration, **options)
    return plan, {stage.name: stage for stage in plan.stages}


def test_trainings_are_epochs_times_steps_and_validation():
    settings = load_profile("musdb18")
    _, by = stages(settings)
    overhead = planning.NOTEBOOK_SECONDS
    # 256 patches for one instrument are 4 batches of 64, for four instruments 16.
    for name, batches in (("02_train_unet", 4), ("03_train_cunet", 16)):
        one = 1000 * (2048 * 0.5 + batches * 0.25)
        assert by[name].runs == 4
        assert by[name].seconds == pytest.approx(4 * (one + overhead))
        assert by[name].memory == CALIBRATION.training_memory


def test_store_is_five_stems_of_four_bytes():
    _, by = stages(load_profile("musdb18"))
    assert by["01_preprocess"].disk == pytest.approx(
        5 * 8192 * 4 * 1400 + planning.NOTEBOOK_BYTES, rel=1e-6
    )
    expected = 0.1 * 1400 / CALIBRATION.workers + planning.NOTEBOOK_SECONDS
    assert by["01_preprocess"].seconds == pytest.approx(expected)


def test_evaluation_separates_with_each_system_and_scores_the_oracles_too():
    _, by = stages(load_profile("musdb18"))
    evaluation = by["04_evaluate"]
    assert evaluation.runs == len(VARIANTS) + 2
    # One model is separated twice more for the ablations, of which there are five.
    assert evaluation.seconds == pytest.approx(
        6 * planning.NOTEBOOK_SECONDS
        + (5 + 2) * 0.05 * 400
        + 7 * (2 * 4 + 0.04 * 400) / 2
        + 5 * (1 * 4 + 0.02 * 400) / 2
    )
    _, three = stages(load_profile("musdb18"), seeds=3)
    assert three["04_evaluate"].seconds == pytest.approx(
        16 * planning.NOTEBOOK_SECONDS
        + (15 + 6) * 0.05 * 400
        + 17 * (2 * 4 + 0.04 * 400) / 2
        + 15 * (1 * 4 + 0.02 * 400) / 2
    )
    assert evaluation.memory > CALIBRATION.training_memory + 2 * (1e8 + 120e6)


def test_models_are_four_bytes_a_parameter():
    _, by = stages(load_profile("musdb18"))
    for name, count in (("02_train_unet", 1_000_000), ("03_train_cunet", 2_000_000)):
        assert by[name].disk == 4 * (4 * count + planning.NOTEBOOK_BYTES)


def test_seeds_multiply_trainings_and_evaluations_but_no_oracle():
    settings = load_profile("demo")
    _, one = stages(settings)
    plan, three = stages(settings, seeds=3)
    for name in ("02_train_unet", "03_train_cunet"):
        assert three[name].runs == 3 * one[name].runs
        assert three[name].seconds == pytest.approx(3 * one[name].seconds)
        assert three[name].disk == pytest.approx(3 * one[name].disk)
    assert three["04_evaluate"].runs == 3 * (len(VARIANTS) + 1) + 1
    assert three["00_corpus"] == one["00_corpus"]
    assert plan.seconds == sum(stage.seconds for stage in plan.stages)


def test_a_corpus_costs_space_only_if_it_is_made_here():
    _, rendered = stages(load_profile("demo"), dataclasses.replace(EXTENT, ready=False))
    assert rendered["00_corpus"].disk == EXTENT.size + planning.NOTEBOOK_BYTES
    assert rendered["00_corpus"].seconds == pytest.approx(2.0 * 1400 / 2 + 20)
    _, present = stages(load_profile("musdb18"))
    assert present["00_corpus"].disk == planning.NOTEBOOK_BYTES
    # Three excerpts of two seconds of each of the 14 tracks.
    assert present["00_corpus"].seconds == pytest.approx(0.1 * 14 * 6 / 2 + 20)


def test_the_bound_of_early_stopping_is_told():
    settings = load_profile("musdb18")
    plan, by = stages(settings)
    training = sum(by[name].seconds for name in ("02_train_unet", "03_train_cunet"))
    work = training - 8 * planning.NOTEBOOK_SECONDS
    least = plan.seconds - work * (1 - 31 / 1000)
    note = next(note for note in plan.notes if "early stopping" in note)
    assert "at most" in note and "30 epochs" in note and planning.span(least) in note
    # Where patience exceeds the epochs, there is nothing to save.
    plan, _ = stages(load_profile("smoke"))
    assert not any("ever improved" in note for note in plan.notes)


def test_too_small_a_disk_is_told(monkeypatch):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    plan, _ = stages(load_profile("musdb18"))
    assert any(note.startswith("Not enough space") and "CUNET_DATA" in note for note in plan.notes)


def test_a_gpu_is_named_with_its_memory():
    calibration = dataclasses.replace(CALIBRATION, device_memory=7.5e9)
    plan, _ = stages(load_profile("musdb18"), calibration=calibration)
    assert "On the GPU a training takes 7.5 GB." in plan.notes
    assert not any("No GPU" in note for note in plan.notes)


def test_text_has_every_stage_in_order_and_the_total():
    text = stages(load_profile("musdb18"))[0].text()
    names = [line.split()[0] for line in text.splitlines()[1:8]]
    assert names == [
        "00_corpus",
        "01_preprocess",
        "02_train_unet",
        "03_train_cunet",
        "04_evaluate",
        "05_plot",
        "total",
    ]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_can_be_planned_without_its_corpus(name):
    settings = load_profile(name)
    extent = planning.extent_of(settings)
    assert set(extent.tracks) == {"train", "test"} and extent.total > 0
    assert planning.estimate(settings, extent, CALIBRATION).seconds > 0
    if name.startswith("musdb"):
        assert "assumed" in extent.source and not extent.ready


def test_published_totals_are_those_of_musdb18():
    extent = planning.extent_of(load_profile("musdb18"))
    assert extent.tracks == {"train": 100, "test": 50}
    assert 9.5 < extent.total / 3600 < 10.5


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


def test_a_real_calibration_of_the_smallest_profile(monkeypatch):
    settings = load_profile("smoke")
    said = []
    found = planning.calibrate(settings, seconds=0.1, report=said.append)
    assert len(said) == 4
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if field.name not in ("parameters", "device_memory", "score_track", "ablate_track"):
            assert value > 0, field.name
    assert set(found.parameters) >= {*UNETS, *VARIANTS}
    # The paper's protocol, over whole tracks, costs more than BSS Eval v4: it must be counted.
    assert found.score > found.ablate > 0.2 * found.score
    # Scoring holds at least the spectra of references and estimates, in double precision.
    assert found.score_memory > 2 * len(INSTRUMENTS) * 8192 * 8
    # The filters of museval: four sources of 512 taps against each other.
    assert found.score_base > (4 * 512) ** 2 * 8
    plan = planning.estimate(settings, planning.extent_of(settings), found)
    assert all(stage.seconds > 0 and stage.memory > 0 for stage in plan.stages)


def test_command_prints_the_plan(monkeypatch, capsys):
    monkeypatch.setattr(planning, "calibrate", lambda settings: CALIBRATION)
    assert main(["plan", "musdb18", "--seeds", "0 1"]) == 0
    told = capsys.readouterr().out
    assert "03_train_cunet     8" in told and "assumed: the published totals" in told
    for bad in ("", "x", "0,1"):
        assert main(["plan", "musdb18", "--seeds", bad]) == 2
        assert "--seeds" in capsys.readouterr().err
