"""A training that is killed and started again ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, clean_environment

from cunet_lib.core import files
from cunet_lib.core.settings import ConfigError
from cunet_lib.models import unet as models
from cunet_lib.train import checkpoint, training
from cunet_lib.train.batches import TrainingBatches

# The rate falls in most epochs, and early stopping ends the training in the fifth.
PLATEAU = {
    "schedule": "plateau",
    "unet_epochs": 9,
    "min_delta": 1e3,
    "lr_patience": 1,
    "patience": 4,
}
COSINE = {"schedule": "cosine", "cunet_epochs": 5, "warmup_steps": 2}
TIME_COLUMNS = ["seconds", "patches_per_second"]


class Killed(BaseException):
    """As abrupt as an exception can be: no handler of the library expects it."""


class Recorder:
    """Keeps the last checkpoint that a training wrote, and kills at given moments."""

    def __init__(self, monkeypatch):
        self.last = None
        self.at_step = self.at_save = None
        self.at_end = False
        save, finite, load = checkpoint.save, training._Finite.on_train_batch_end, models.load

        def on_save(folder, content, *, epochs):
            if epochs == self.at_save:
                raise Killed
            self.last = content
            return save(folder, content, epochs=epochs)

        def on_batch(callback, batch, logs=None):
            finite(callback, batch, logs)
            if int(callback.model.optimizer.iterations.numpy()) == self.at_step:
                raise Killed

        def on_load(path, **options):
            if self.at_end:
                raise Killed
            return load(path, **options)

        monkeypatch.setattr(checkpoint, "save", on_save)
        monkeypatch.setattr(training._Finite, "on_train_batch_end", on_batch)
        monkeypatch.setattr(models, "load", on_load)


def assert_equal_runs(one, other):
    """Two last checkpoints are the same, save times."""
    for part in ("network", "optimizer"):
        for ours, theirs in zip(getattr(one, part), getattr(other, part), strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
    assert one.state["callbacks"] == other.state["callbacks"]
    for name in ("epochs", "finished"):
        assert one.state[name] == other.state[name]


def assert_equal_folders(one, other):
    """Two run folders are the same, save times."""
    histories = [pd.read_csv(folder / "history.csv") for folder in (one, other)]
    pd.testing.assert_frame_equal(
        *(history.drop(columns=TIME_COLUMNS) for history in histories), check_exact=True
    )
    kept = [models.load(folder / "model.keras").get_weights() for folder in (one, other)]
    for ours, theirs in zip(*kept, strict=True):
        assert np.array_equal(ours, theirs)
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for name in ("epochs", "steps", "best_epoch", "best_val_loss"):
        assert records[0][name] == records[1][name]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_train(settings, update):
    return settings.model_copy(update={"train": settings.train.model_copy(update=update)})


@pytest.mark.parametrize(
    ("model", "update"), [("unet_bass", PLATEAU), ("cnn_complex", COSINE)], ids=["unet", "cunet"]
)
def test_a_killed_training_ends_as_one_that_was_not(tones, tmp_path, monkeypatch, model, update):
    settings, store = tones
    settings = with_train(settings, update)
    assert settings.model.dropout > 0 and settings.model.control_dropout > 0
    recorder = Recorder(monkeypatch)
    lines = []

    def train(name):
        return training.train(
            settings, store, model, seed=5, folder=tmp_path / name, report=lines.append
        )

    undisturbed = train("undisturbed")
    expected = recorder.last
    assert undisturbed["epochs"] == 5 and undisturbed["resumed"] == 0
    if model == "unet_bass":
        rates = pd.read_csv(tmp_path / "undisturbed" / "history.csv")["learning_rate"]
        assert rates.nunique() == 4

    recorder.at_step = 6  # within the second epoch
    with pytest.raises(Killed):
        train("killed")
    recorder.at_step, recorder.at_save = None, 4  # the best model is written, its state is not
    with pytest.raises(Killed):
        train("killed")
    recorder.at_save, recorder.at_end = None, True  # every epoch is done, the record is not there
    with pytest.raises(Killed):
        train("killed")
    recorder.at_end = False
    record = train("killed")

    assert_equal_runs(expected, recorder.last)
    assert_equal_folders(tmp_path / "undisturbed", tmp_path / "killed")
    assert record["resumed"] == 3
    said = [line for line in lines if "goes on" in line]
    assert said == [f"goes on after epoch {n}, where it was stopped" for n in (1, 3, 5)]
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {path.name for path in (tmp_path / "undisturbed").iterdir()}
    assert [path.name for path in (tmp_path / "killed" / checkpoint.FOLDER).iterdir()] == [
        "finished.json"
    ]


SCRIPT = """
import sys
from pathlib import Path
from cunet_lib.train import training
from cunet_lib.core.settings import load_profile
from cunet_lib.preprocess.store import open_store
settings = load_profile("smoke", sys.argv[1])
say = lambda line: print(line, flush=True)
try:
    training.train(
        settings, open_store(settings), "dense_simple", seed=3, folder=Path(sys.argv[2]), report=say
    )
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(folder, overrides):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, overrides, folder],
        cwd=ROOT,
        env=clean_environment(CUNET_DATA=os.environ["CUNET_DATA"], CUNET_THREADS=1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two_epochs(process):
    """Wait for the second line of an epoch: the first epoch is then kept."""
    left = 2
    for line in process.stdout:
        left -= line.startswith("epoch")
        if not left:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.timeout(900)
def test_sigkill_at_random_moments_changes_nothing(tones, tmp_path, rng):
    overrides = "train.steps_per_epoch=4 train.cunet_epochs=24 train.precision=float32"
    for _ in range(2):
        process = start(tmp_path / "killed", overrides)
        two_epochs(process)
        time.sleep(rng.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
    for name in ("killed", "undisturbed"):
        _, complaints = start(tmp_path / name, overrides).communicate(timeout=600)
        assert complaints == ""
    assert_equal_folders(tmp_path / "undisturbed", tmp_path / "killed")
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert 1 <= record["resumed"] <= 2


def test_ctrl_c_ends_a_training_soon_and_says_what_is_kept(tones, tmp_path):
    process = start(tmp_path / "run", "train.steps_per_epoch=4 train.cunet_epochs=900")
    two_epochs(process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, complaints = process.communicate(timeout=60)
    assert time.monotonic() - began < 20  # 5 on a machine that does nothing else
    assert process.returncode == 130 and "Traceback" not in complaints
    last = output.splitlines()[-1]
    assert last.startswith("stopped; epoch ")
    assert last.endswith(" is kept; the same command goes on from there")
    assert not (tmp_path / "run" / "run.json").exists()


# ------------------------------------------------------------------- what is not gone on with


@pytest.fixture
def stopped(tones, tmp_path, monkeypatch):
    """Settings, store and folder of a training that was killed in its second epoch."""
    settings, store = tones
    settings = with_train(settings, {"unet_epochs": 2, "steps_per_epoch": 1})
    recorder = Recorder(monkeypatch)
    recorder.at_step = 2
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        training.train(settings, store, "unet_bass", seed=0, folder=folder, report=print)
    recorder.at_step = None
    return settings, store, folder


def finish(settings, store, folder, *, seed=0):
    lines = []
    record = training.train(
        settings, store, "unet_bass", seed=seed, folder=folder, report=lines.append
    )
    return record, lines


def test_other_settings_begin_anew_and_say_so(stopped):
    settings, store, folder = stopped
    record, lines = finish(with_train(settings, {"learning_rate": 2e-3}), store, folder)
    assert lines[0] == "an unfinished training of 1 epochs is discarded: settings changed since"
    assert record["resumed"] == 0 and record["epochs"] == 2


def test_a_damaged_best_model_begins_anew_and_says_so(stopped):
    settings, store, folder = stopped
    path = folder / "model.keras"
    path.write_bytes(path.read_bytes()[:-500])
    record, lines = finish(settings, store, folder)
    assert "model.keras is missing or damaged" in lines[0]
    assert record["resumed"] == 0


def test_a_finished_training_is_used_as_it_is_until_it_is_forgotten(stopped):
    settings, store, folder = stopped
    record, _ = finish(settings, store, folder)
    (folder / "left.txt").touch()
    before = contents(folder)
    again, lines = finish(settings, store, folder)
    assert again == record and record["resumed"] == 1
    assert contents(folder) == before
    assert lines == [checkpoint.REUSED]

    checkpoint.forget(folder)
    record, lines = finish(settings, store, folder)
    assert record["resumed"] == 0 and len(lines) == 2
    assert not (folder / "left.txt").exists()


def test_a_finished_training_that_changed_or_lacks_a_part_begins_anew_and_says_so(stopped):
    settings, store, folder = stopped
    finish(settings, store, folder)
    facts = training._facts(settings, store, "unet_bass", seed=0)
    lines = []

    def found(**changes):
        return training._finished(folder, facts=facts | changes, report=lines.append)

    assert found()["epochs"] == 2
    assert found(settings="others") is None
    assert lines[-1] == "a finished training is replaced: settings changed since"
    for name in ("run.json", "model.keras"):
        (folder / name).write_text("{")
        assert found() is None
        assert lines[-1].endswith(f"{name} is missing or damaged; the training starts anew")
    record, _ = finish(settings, store, folder)
    assert record["resumed"] == 0 and record["epochs"] == 2


def test_a_training_killed_while_it_noted_its_end_is_not_trained_again(stopped, monkeypatch):
    settings, store, folder = stopped

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "finish", killed)
        finish(settings, store, folder)
    record, lines = finish(settings, store, folder)
    assert record["resumed"] == 2
    assert lines == ["goes on after epoch 2, where it was stopped"]


def test_two_trainings_do_not_share_a_folder(stopped, monkeypatch):
    settings, store, folder = stopped
    monkeypatch.setattr(training, "locked", lambda path, busy, *, seconds: files.locked(path, busy))
    refused = pytest.raises(files.Busy, match="Another process trains unet_bass")
    with files.locked(folder.with_name(f".{folder.name}.lock"), "busy"), refused:
        finish(settings, store, folder)
    assert checkpoint.kept(folder).startswith("epoch 1 is kept")


# ------------------------------------------------------------------------ losses that run away


def test_the_batch_whose_loss_is_not_finite_is_named_and_the_epoch_before_kept(
    tones, tmp_path, monkeypatch
):
    settings, store = tones
    batch = TrainingBatches.batch

    def poisoned(batches, step):
        content = batch(batches, step)
        if step == 6:
            content.mixture[1, 100] = np.inf
        return content

    monkeypatch.setattr(TrainingBatches, "batch", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(ConfigError) as caught:
        training.train(settings, store, "unet_bass", seed=0, folder=folder, report=print)
    message = str(caught.value)
    batches = TrainingBatches(store, settings, model="unet_bass", seed=0)
    assert "not finite in step 6" in message
    assert f"(batch from: {', '.join(batches.tracks_of(6))})" in message
    assert "up to epoch 1 is kept" in message and "train.learning_rate" in message
    assert all(np.isfinite(value).all() for value in models.load(folder / "model.keras").weights)
    assert checkpoint.kept(folder).startswith("epoch 1 is kept")
    assert not (folder / "run.json").exists()


def test_tracks_of_a_batch_are_training_tracks(tones):
    settings, store = tones
    batches = TrainingBatches(store, settings, model="dense_simple", seed=0)
    before = batches.batch(3)
    names = batches.tracks_of(3)
    assert names and set(names) <= {entry.name for entry in store.split("train")}
    np.testing.assert_array_equal(batches.batch(3).mixture, before.mixture)
