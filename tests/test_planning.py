"""Plans: the arithmetic with a given calibration, and one real calibration."""

import re
import shutil

import pytest
from conftest import changed, write_tones

from cunet_lib.cli import main
from cunet_lib.core.settings import ConfigError, load_profile, profile_names
from cunet_lib.workflow import plan as planning

UNIT = planning.Calibration(step=0.5, validation=0.25, score=0.04, weights=8e6, memory=3e9)
MUSIC = {"train": [100.0] * 10, "test": [100.0] * 3 + [120.0]}


@pytest.fixture(autouse=True)
def own_folders(roots, monkeypatch):
    monkeypatch.delenv("CUNET_MUSDB", raising=False)
    monkeypatch.setenv("CUNET_THREADS", "2")


def parts(settings, corpus=0.0):
    return {p.name: p for p in planning.estimate(settings, MUSIC, corpus, UNIT)}


def test_trainings_are_epochs_times_steps_and_the_store_five_stems_of_four_bytes():
    by = parts(load_profile("musdb18"))
    assert by["01_preprocess"].disk == 5 * 8192 * 4 * 1420 + planning.NOTEBOOK_BYTES
    # 256 patches for one instrument are 4 batches of 64, for four instruments 16.
    for name, batches in (("02_train_unet", 4), ("03_train_cunet", 16)):
        one = 1000 * (2048 * 0.5 + batches * 0.25)
        assert by[name].runs == 4
        assert by[name].seconds == pytest.approx(4 * (one + planning.NOTEBOOK_SECONDS))
        assert by[name].disk == 4 * (8e6 + planning.NOTEBOOK_BYTES)
        assert by[name].memory == UNIT.memory


def test_evaluation_separates_with_each_system_and_scores_the_oracles_too():
    settings = load_profile("musdb18")
    rate, patches = 8192, settings.train.batch_size
    hop = settings.signal.hop * settings.model.patch_frames * (1 - settings.separate.overlap)
    separating = 4 * 0.25 * rate / (patches * hop) * 420
    for seeds in (1, 3):
        found = parts(load_profile("musdb18", f"seeds={seeds}"))["04_evaluate"]
        runs = seeds * 5
        assert found.runs == runs + 1
        # One model of a seed is separated twice more for the ablations, of which there are five.
        assert found.seconds == pytest.approx(
            (runs + 1) * planning.NOTEBOOK_SECONDS
            + (runs + 2 * seeds) * separating
            + (runs + 2 + 5 * seeds) * 0.04 * 420 / 2
        )
        assert found.memory > UNIT.memory + 2 * 120e6


def test_seeds_multiply_trainings_but_no_corpus():
    one, three = (parts(load_profile("demo", f"seeds={seeds}")) for seeds in (1, 3))
    assert three["00_corpus"] == one["00_corpus"]
    for name in ("02_train_unet", "03_train_cunet"):
        for field in ("runs", "seconds", "disk"):
            assert getattr(three[name], field) == pytest.approx(3 * getattr(one[name], field))


def test_a_corpus_costs_space_only_if_it_is_made_here():
    settings = load_profile("demo")
    assert parts(settings, 5e8)["00_corpus"].disk == 5e8 + planning.NOTEBOOK_BYTES
    assert parts(settings)["00_corpus"].disk == planning.NOTEBOOK_BYTES
    music, corpus = planning.lengths(settings)
    assert (len(music["train"]), len(music["test"])) == (48, 14) and corpus > 1e9


def test_runs_side_by_side_share_the_time(monkeypatch):
    """Eight trainings of an hour: two at a time take four hours, and there are never nine."""
    part = planning.Part("03_train_cunet", 8, "", 8 * 3600.0, 0, 0)
    for jobs, here in ((1, "8 h 0 min"), (2, "4 h 0 min"), (16, "1 h 0 min")):
        assert re.findall(r"\d+ h \d+ min", part.line(jobs)) == ["8 h 0 min", here]
    settings = load_profile("musdb18")
    found = planning.text(settings, list(parts(settings).values()), MUSIC, 2)
    head, *stages, total = found.split("\n\n")[0].splitlines()
    assert "one by one" in head and "JOBS=2" in head and total.startswith("total")
    assert [line.split()[0] for line in stages] == list(parts(settings))
    assert "2 for each job" in " ".join(found.split()) and "train 10 tracks" in found
    assert max(map(len, found.splitlines())) <= 120
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    found = planning.text(settings, list(parts(settings).values()), MUSIC, 2)
    assert "Not enough space" in found and "CUNET_DATA" in found


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_a_plan_or_a_sentence(name):
    settings = load_profile(name)
    if settings.data.source != "rendered":
        with pytest.raises(ConfigError):
            planning.lengths(settings)
    assert sum(part.seconds for part in parts(settings).values()) > 0


def test_headers_are_read_where_the_tracks_are(tmp_path, monkeypatch):
    write_tones(tmp_path / "musdb", train=3, test=1, seconds=2.0)
    monkeypatch.setenv("CUNET_MUSDB", str(tmp_path / "musdb"))
    settings = load_profile("musdb18")
    music, corpus = planning.lengths(changed(settings, "data", validation=1))
    assert music == {"train": pytest.approx([2.0] * 3), "test": pytest.approx([2.0])}
    assert corpus == 0
    # A corpus that is not in order has no plan, but a list of problems.
    with pytest.raises(ConfigError, match="Music Delta - Disco"):
        planning.lengths(settings)


def test_a_real_calibration_of_the_smallest_profile():
    settings, lines = load_profile("smoke"), []
    found = planning.calibrate(settings, 4.0, seconds=0.1, report=lines.append)
    assert min(found.step, found.validation, found.score, found.weights, found.memory) > 0
    assert len(lines) == 3  # none of the silences between them is long


def test_command_prints_the_plan(monkeypatch, capsys):
    monkeypatch.setattr(planning, "calibrate", lambda settings, longest: UNIT)
    assert main(["plan", "demo", "--overrides", "seeds=2", "--jobs", "2"]) == 0
    told = capsys.readouterr().out
    assert "03_train_cunet    8" in told and "JOBS=2" in told
    for bad, word in ((["--overrides", "seeds=0"], "seeds"), (["--jobs", "0"], "--jobs")):
        assert main(["plan", "demo", *bad]) == 2
        assert word in capsys.readouterr().err
