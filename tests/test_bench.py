"""The bench: ratios of calls that take turns, and a table that says what was found."""

import functools
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench, choices, released, workloads
from benchmarks.distance import compare, describe
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.preprocess.store import build_store
from cunet_lib.signal.bands import RATE
from cunet_lib.signal.spectral import stft
from cunet_lib.train.batches import TrainingBatches

times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30)


@given(times, st.floats(0.1, 10))
def test_ratio_lies_within_its_turns_and_does_not_see_a_pace_that_both_share(values, factor):
    row = bench.compared("a", "1", "2", values, [1.0] * len(values))
    assert min(values) <= row.low <= row.ratio <= row.high <= max(values)
    assert row.ratio == pytest.approx(statistics.median(values))
    row = bench.compared("a", "1", "2", [factor * value for value in values], values)
    assert row.low == pytest.approx(factor) and row.high == pytest.approx(factor)


def test_calls_take_turns_and_warm_up_once():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = bench.interleaved(calls, turns=4)
    assert "".join(order) == "ab" + "abbaabba"
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4}
    order.clear()
    bench.interleaved(calls, turns=1, warm=False)
    assert order == ["a", "b"]


# ------------------------------------------------------------------------------------- workloads


def test_noise_is_a_corpus_that_the_study_can_prepare_and_train_from(roots):
    settings = load_profile("smoke")
    workloads.noise_corpus(settings.paths.corpus, tracks={"train": 2, "test": 1}, seconds=9.0)
    store = build_store(settings, workers=1)
    assert [entry.split for entry in store.entries].count("train") == 1
    assert store.audio(store.entries[0]).shape == (5, 9 * 8192)
    batch = TrainingBatches(store, settings, model="dense_simple", seed=0).batch(0)
    assert np.abs(batch.mixture).max() > 0


def test_released_pipeline_gives_patches_of_its_spectrograms(rng):
    settings = load_profile("smoke", "train.remix=0 train.progressive=0 train.batch_size=2")
    stems = rng.normal(size=(5, 30000)).astype(np.float32)
    song = np.stack([stft(stem, settings.signal) for stem in stems], axis=-1)
    (mixture, condition), target = next(iter(released.released_pipeline([song], settings)))
    assert mixture.shape == target.shape == (2, *settings.patch_shape)
    frames, magnitudes = settings.model.patch_frames, np.abs(song)[: settings.signal.bins]
    for patch, z, wanted in zip(mixture, condition, target, strict=True):
        starts = range(magnitudes.shape[1] - frames + 1)
        (start,) = (
            s for s in starts if np.allclose(magnitudes[:, s : s + frames, 0], patch[..., 0])
        )
        stem = magnitudes[:, start : start + frames, 1 + int(np.argmax(z))]
        np.testing.assert_allclose(stem, wanted[..., 0], rtol=1e-6)


def test_a_part_gives_rows_and_what_they_were_made_of(roots, monkeypatch):
    alone = functools.partial(build_store, workers=1)
    monkeypatch.setattr(workloads, "build_store", alone)
    (row,), found = workloads.preprocessing(0.01, None)
    assert set(found["taken"]) == {"ours", "librosa"} and row.ratio > 0
    assert "times real time" in row.ours and "librosa" in row.reference


def test_a_part_runs_in_a_process_and_in_folders_of_its_own(tmp_path, monkeypatch):
    python = tmp_path / "python"
    found = '{"rows": [], "found": {"asked": "%s", "folder": "%s"}}\\n'
    python.write_text(f'#!/bin/sh\nprintf \'{found}\' "$3" "$CUNET_DATA" > "$5"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    about = bench.measure("stft")["found"]
    assert about["asked"] == "stft" and not Path(about["folder"]).exists()


def test_a_part_that_fails_is_told():
    with pytest.raises(bench.BenchFailed, match="nonsense failed: KeyError: 'nonsense'"):
        bench.measure("nonsense")


# ----------------------------------------------------------------------------------------- table


def part(**changes):
    found = [
        bench.Row("a", "21 patches/s", "1 patches/s, slow", 21.0, 20.5, 21.5, ">= 20"),
        bench.Row("b", "3 MB", "2 MB, small", 1.5, 1.5, 1.5, "<= 1.1"),
        bench.Row("c", "1 s", "2 s", 0.5, 0.5, 0.5),
    ]
    return {"quick": False, "rows": [row.__dict__ for row in found], "found": {}, **changes}


def record(**changes):
    machine = {"processor": "One", "cores": 2, "tensorflow": "3"}
    return {"machine": machine, "parts": {"batches": part(**changes)}}


def test_table_says_what_is_reached_and_what_is_missed():
    text = bench.markdown(record())
    assert (
        "| batches | a | 21 patches/s | 1 patches/s, slow | 21 (20.5 to 21.5) | >= 20, reached |"
        in text
    )
    assert "|  | b | 3 MB | 2 MB, small | 1.5 | <= 1.1, **missed** |" in text
    assert "|  | c | 1 s | 2 s | 0.5 |  |" in text
    assert "hurry" not in text
    assert "rough: batches" in bench.markdown(record(quick=True))


def test_a_part_replaces_its_own_figures_and_a_failure_keeps_them(tmp_path, monkeypatch, capsys):
    earlier = record()
    (tmp_path / "bench.json").write_text(json.dumps(earlier))

    def measure(name, *, scale, torch):
        if name == "stft":
            raise bench.BenchFailed("stft failed: no memory")
        return {"rows": part()["rows"][-1:], "found": {"scale": scale}}

    monkeypatch.setattr(bench, "measure", measure)
    assert bench.main(["--only", "panel", "--quick", "--out", str(tmp_path)]) == 0
    kept = bench.read_record(tmp_path)
    assert kept["parts"]["batches"] == earlier["parts"]["batches"]
    assert kept["parts"]["panel"]["found"] == {"scale": bench.QUICK}
    assert (tmp_path / "bench.md").read_text() == bench.markdown(kept)
    assert bench.markdown(kept) in capsys.readouterr().out
    assert bench.main(["--only", "evaluation", "stft", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "stft failed: no memory\n"
    assert list(bench.read_record(tmp_path)["parts"]) == ["batches", "panel", "evaluation"]


def test_committed_table_is_that_of_the_committed_figures():
    kept = bench.read_record(bench.FOLDER)
    assert (bench.FOLDER / "bench.md").read_text(encoding="utf-8") == bench.markdown(kept)
    assert set(kept["parts"]) <= set(bench.PARTS) <= set(vars(workloads))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parts": {}}'])
def test_a_damaged_record_is_told(tmp_path, content, capsys):
    (tmp_path / "bench.json").write_text(content)
    assert bench.main(["--only", "panel", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("delete it and run `make bench` again.\n")


def test_distance_between_real_and_rendered_stems_is_that_of_their_measures():
    """A stem of clicks twice a second at half the level of a steady rest."""
    time = np.arange(4 * RATE) / RATE
    clicks = np.exp(-(time % 0.5) / 0.02) * np.sin(2 * np.pi * 1500 * time)
    rest = np.sin(2 * np.pi * 200 * time)
    rest *= 2 * np.sqrt((clicks**2).sum() / (rest**2).sum())
    stem = np.stack([clicks, clicks], axis=1)
    found = describe(stem, stem + rest[:, None])
    assert found["level"] == pytest.approx(-6.02, abs=0.01) and found["sides"] < -55
    assert found["onsets"] == pytest.approx(2, abs=0.3) and found["movement"] > 0.5
    assert found["sounding"] == pytest.approx(0.2, abs=0.05)
    assert found["from 1000 Hz"] > -0.5 and found["from 4000 Hz"] < -20

    def table(values):
        rows = [("bass", measure, value) for measure in ("level", "crest") for value in values]
        return pd.DataFrame(rows, columns=["stem", "measure", "value"])

    frame = compare(table([5.0, 6.0, 7.0]), table([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert list(frame.index) == [("bass", "level"), ("bass", "crest")]
    assert frame["distance"].tolist() == [2.0, 2.0]


def test_settings_are_chosen_by_whole_songs_of_the_store_or_of_a_folder(tones, capsys):
    settings, store = tones
    audio = choices.songs(settings, None)
    names = [entry.name for entry in store.split("valid")]
    assert len(audio) == len(names) > 0
    for mixture, *references in audio:
        np.testing.assert_allclose(mixture, np.sum(references, axis=0), atol=1e-3)
    references = iter(audio)
    found = choices.scores(lambda mixture, asked: asked @ next(references)[1:] * 0.9, audio)
    assert list(found.columns) == list(INSTRUMENTS)
    np.testing.assert_allclose(found, 20, atol=1e-3)
    tracks = sorted(path.name for path in (settings.paths.corpus / "train").iterdir())
    from_files = choices.songs(settings, settings.paths.corpus / "train")[tracks.index(names[0])]
    np.testing.assert_allclose(from_files, audio[0], atol=1e-3)


def test_a_folder_without_songs_is_told(tones, tmp_path):
    with pytest.raises(ConfigError, match="holds no folders of stems"):
        choices.songs(tones[0], tmp_path)
