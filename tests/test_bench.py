"""The bench: ratios, operations counted, and a table that says what was found."""

import json
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, clean_environment
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench, flops, rows, scratch, steps, timing
from cunet_lib.core import hardware
from cunet_lib.core.settings import load_profile
from cunet_lib.models import unet as models
from cunet_lib.preprocess.store import build_store
from cunet_lib.signal.spectral import stft
from cunet_lib.train.batches import TrainingBatches

times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30)


# ---------------------------------------------------------------------------------------- timing


@given(times)
def test_spread_is_within_what_was_measured(values):
    spread = timing.Spread.of(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)
    assert spread.median == pytest.approx(statistics.median(values))


@given(times, st.floats(0.1, 10))
def test_ratio_does_not_see_a_pace_that_both_share(values, factor):
    spread = timing.ratio([factor * value for value in values], values)
    assert spread.low == pytest.approx(factor) and spread.high == pytest.approx(factor)


def test_calls_take_turns_and_warm_up_once():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = timing.interleaved(calls, seconds=0, least=4)
    assert "".join(order) == "ab" + "abbaabba"
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4}
    order.clear()
    timing.interleaved(calls, seconds=0, least=1, warm=False)
    assert order == ["a", "b"]


def test_peak_is_of_this_process():
    held = np.ones(30_000_000)
    own, mapped = timing.resident()
    # Asked last, since threads of earlier tests may take memory in between. Linux sums its
    # counters up to a few dozen pages for each processor.
    high = hardware.peak_memory()
    assert high > held.nbytes
    assert 0 < own + mapped <= high + 1e6


@pytest.mark.skipif(not timing.TASKS.exists(), reason="needs /proc")
def test_children_are_weighed_by_themselves():
    code = "import time; held = b'1' * 90_000_000; time.sleep(0.5)"
    held = np.ones(40_000_000)
    with timing.watched_memory(0.01) as memory:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert 9e7 < memory.child < held.nbytes
    with timing.watched_memory(0.01) as memory:
        pass
    # Nothing of the one that has ended; helpers of other tests' processes may live on.
    assert memory.child < 5e7


def test_mapped_files_are_weighed_apart(tmp_path):
    np.save(tmp_path / "file.npy", np.ones(10_000_000))
    with timing.watched_memory(0.01) as before:
        pass
    with timing.watched_memory(0.01) as memory:
        mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
        assert mapped.sum() == 10_000_000
        held = np.ones(5_000_000)
        time.sleep(0.05)
    assert 3.5e7 < memory.own - before.own < 7e7
    if timing.STATUS.exists():  # elsewhere they are not told apart
        assert memory.mapped - before.mapped > 7e7
    assert held.sum() == 5_000_000


# ------------------------------------------------------------------------------------ operations


def test_operations_are_those_of_the_papers_layers():

    network = models.build("unet_vocals")
    encoder = [(256 >> i) * (64 >> i) * 25 * (8 * 2**i if i else 1) * 16 * 2**i for i in range(6)]
    inputs, outputs = [512, 512, 256, 128, 64, 32], [256, 128, 64, 32, 16, 1]
    decoder = [
        (8 << i) * (2 << i) * 25 * a * b
        for i, (a, b) in enumerate(zip(inputs, outputs, strict=True))
    ]
    forwards = 2 * (sum(encoder) + sum(decoder))
    assert flops.forward_flops(network) == forwards
    assert flops.step_flops(network) == 3 * forwards - 2 * encoder[0]
    assert 4.4e9 < flops.step_flops(network) < 4.6e9


def test_operations_of_the_control_network_count():

    size = {"shape": (64, 64, 1), "filters": 2, "blocks": 4}
    plain = flops.forward_flops(models.build("unet_bass", **size))
    features = 2 + 4 + 8 + 16
    dense = 2 * (4 * 16 + 16 * 256 + 256 * 1024 + 2 * 1024 * features)
    conditioned = models.build("dense_complex", **size)
    assert flops.forward_flops(conditioned) == plain + dense


def test_operations_of_layers_with_other_padding():
    import keras

    inner = keras.Sequential(
        [keras.Input((10, 3)), keras.layers.Conv1D(5, 4, padding="valid"), keras.layers.ReLU()]
    )
    assert flops.forward_flops(inner) == 2 * 7 * 4 * 3 * 5


# ------------------------------------------------------------------------------------- workloads


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CUNET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CUNET_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_noise_corpus_is_one_that_the_study_can_prepare(folders):
    settings = load_profile("smoke")
    scratch.noise_corpus(settings.paths.corpus, tracks={"train": 2, "test": 1}, seconds=1.0)
    store = build_store(settings, workers=1)
    assert [entry.split for entry in store.entries].count("train") == 1
    assert store.audio(store.entries[0]).shape == (5, 8192)


def test_a_store_with_copies_is_so_many_times_larger(folders):
    settings = load_profile("smoke")
    store = scratch.noise_store(settings, tracks={"train": 2}, seconds=9.0, copies=3)
    assert len(store.split("train")) == 6
    assert len({entry.file for entry in store.entries}) == 6
    batch = TrainingBatches(store, settings, model="dense_simple", seed=0).batch(0)
    assert np.abs(batch.mixture).max() > 0


def test_released_pipeline_gives_patches_of_its_spectrograms(rng):
    settings = load_profile("smoke", "train.remix=0 train.progressive=0 train.batch_size=2")
    stems = rng.normal(size=(5, 30000)).astype(np.float32)
    song = np.stack([stft(stem, settings.signal) for stem in stems], axis=-1)
    (mixture, condition), target = next(iter(steps.released_pipeline([song], settings)))
    assert mixture.shape == target.shape == (2, *settings.patch_shape)
    frames, magnitudes = settings.model.patch_frames, np.abs(song)[: settings.signal.bins]
    for patch, z, wanted in zip(mixture, condition, target, strict=True):
        starts = range(magnitudes.shape[1] - frames + 1)
        (start,) = (
            s for s in starts if np.allclose(magnitudes[:, s : s + frames, 0], patch[..., 0])
        )
        stem = magnitudes[:, start : start + frames, 1 + int(np.argmax(z))]
        np.testing.assert_allclose(stem, wanted[..., 0], rtol=1e-6)


def test_a_workload_runs_in_a_process_of_its_own():
    found = bench.run_workload("preprocessing", tracks=2, seconds=0.5, turns=1)
    assert set(found["taken"]) == {"ours", "librosa"} and found["worker_peak"] > 1e7


def test_a_workload_that_fails_is_told():
    with pytest.raises(bench.BenchFailed, match=r"preprocessing failed: .*unexpected"):
        bench.run_workload("preprocessing", nonsense=1)


# ----------------------------------------------------------------------------------------- table


def record(**changes):
    found = [
        rows.Row("a", "21 patches/s", "1 patches/s, slow", 21.0, 20.5, 21.5, ">= 20"),
        rows.Row("b", "3 MB", "2 MB, small", 1.5, wanted="<= 1.1"),
        rows.Row("c", "1"),
    ]
    part = {"quick": False, "rows": [row.__dict__ for row in found], "found": {}}
    machine = {"processor": "One", "cores": 2, "tensorflow": "3"}
    return {"machine": machine, "parts": {"batches": part | changes}}


def table(content):
    return rows.markdown(content, tuple(bench.PARTS))


def test_table_says_what_is_reached_and_what_is_missed():
    text = table(record())
    assert (
        "| batches | a | 21 patches/s | 1 patches/s, slow | 21 (20.5 to 21.5) | >= 20, reached |"
        in text
    )
    assert "|  | b | 3 MB | 2 MB, small | 1.5 | <= 1.1, **missed** |" in text
    assert "|  | c | 1 |  |  |  |" in text
    assert "hurry" not in text
    assert "rough: batches" in table(record(quick=True))


def test_a_part_replaces_its_own_figures_only(tmp_path, monkeypatch, capsys):
    earlier = record()
    (tmp_path / "bench.json").write_text(json.dumps(earlier))
    row = rows.Row("new", "1 s", "2 s", 0.5)
    monkeypatch.setitem(bench.PARTS, "panel", lambda options: ([row], {"quick": options.quick}))
    assert bench.main(["--only", "panel", "--quick", "--out", str(tmp_path)]) == 0
    kept = rows.read_record(tmp_path)
    assert kept["parts"]["batches"] == earlier["parts"]["batches"]
    assert kept["parts"]["panel"]["found"] == {"quick": True}
    assert table(kept) in capsys.readouterr().out
    assert (tmp_path / "bench.md").read_text() == table(kept) + "\n"


def test_a_failure_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    def broken(options):
        raise bench.BenchFailed("Workload x failed: no memory")

    monkeypatch.setitem(bench.PARTS, "growth", broken)
    monkeypatch.setitem(bench.PARTS, "evaluation", lambda options: ([], {}))
    command = ["--only", "evaluation", "growth", "--out", str(tmp_path)]
    assert bench.main(command) == 1
    assert capsys.readouterr().err == "Workload x failed: no memory\n"
    assert list(rows.read_record(tmp_path)["parts"]) == ["evaluation"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parts": {}}'])
def test_a_damaged_record_is_told(tmp_path, content, capsys):
    (tmp_path / "bench.json").write_text(content)
    assert bench.main(["--only", "panel", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("delete it and run `make bench` again.\n")


# -------------------------------------------------------------------------------------- start-up


SPARED = """
import cunet_lib, sys
import keras, nbformat
print(*sorted({"sklearn", "matplotlib", "rfc3987_syntax"} & set(sys.modules)))
from sklearn import preprocessing
import matplotlib.pyplot
import rfc3987_syntax
"""


def test_what_libraries_can_do_without_is_not_loaded_for_them_but_for_others():
    done = subprocess.run(
        [sys.executable, "-c", SPARED],
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=ROOT,
        timeout=180,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
