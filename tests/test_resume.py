"""A training that is killed and started again ends as if nothing had happened."""

import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import changed, started

from cunet_lib.core import files
from cunet_lib.core.settings import ConfigError
from cunet_lib.models.weights import load
from cunet_lib.train import callbacks, checkpoint, training
from cunet_lib.train.batches import TrainingBatches

# The rate falls in most epochs, and early stopping ends the training in the fifth.
PLATEAU = {"schedule": "plateau", "unet_epochs": 9, "min_delta": 1e3}
PLATEAU |= {"lr_patience": 1, "patience": 4}
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
        save, finite = checkpoint.save, callbacks.Finite.on_train_batch_end

        def on_save(folder, content):
            if content.state["epochs"] == self.at_save:
                raise Killed
            self.last = content
            return save(folder, content)

        def on_batch(callback, batch, logs=None):
            finite(callback, batch, logs)
            if int(callback.model.optimizer.iterations.numpy()) == self.at_step:
                raise Killed

        recorded = training._recorded

        def on_end(*arguments):
            if self.at_end:
                raise Killed
            return recorded(*arguments)

        monkeypatch.setattr(checkpoint, "save", on_save)
        monkeypatch.setattr(callbacks.Finite, "on_train_batch_end", on_batch)
        monkeypatch.setattr(training, "_recorded", on_end)


def assert_equal_runs(one, other):
    """Two last checkpoints are the same, save times."""
    for ours, theirs in zip(one.variables, other.variables, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert one.state["callbacks"] == other.state["callbacks"]
    for name in ("epochs", "finished"):
        assert one.state[name] == other.state[name]


def assert_equal_folders(one, other):
    """Two run folders are the same, save times."""
    histories = [pd.read_csv(folder / "history.csv") for folder in (one, other)]
    pd.testing.assert_frame_equal(
        *(history.drop(columns=TIME_COLUMNS) for history in histories), check_exact=True
    )
    kept = [load(folder / "model.keras").get_weights() for folder in (one, other)]
    for ours, theirs in zip(*kept, strict=True):
        assert np.array_equal(ours, theirs)
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    for name in ("epochs", "steps", "best_epoch", "best_val_loss"):
        assert records[0][name] == records[1][name]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("model", "update"), [("unet_bass", PLATEAU), ("dense_complex", COSINE)], ids=["unet", "cunet"]
)
def test_a_killed_training_ends_as_one_that_was_not(tones, tmp_path, monkeypatch, model, update):
    settings, store = tones
    settings = changed(settings, "train", **update)
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
        assert rates.tolist() == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4], rel=1e-5)

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
    said = [line for line in lines if "continues" in line]
    assert said == [f"continues after epoch {n}, where it was stopped" for n in (1, 3, 5)]
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {path.name for path in (tmp_path / "undisturbed").iterdir()}
    assert checkpoint.FOLDER not in left


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
    variables = {"CUNET_DATA": os.environ["CUNET_DATA"], "CUNET_THREADS": 1}
    return started(sys.executable, "-c", SCRIPT, overrides, folder, **variables)


def two_epochs(process):
    """Wait for the second line of an epoch: the first epoch is then kept."""
    left = 2
    for line in process.stdout:
        left -= line.startswith("epoch")
        if not left:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.timeout(900)
def test_sigkill_and_ctrl_c_at_random_moments_change_nothing(tones, tmp_path, rng):
    overrides = "train.steps_per_epoch=4 train.cunet_epochs=16 train.precision=float32"
    overrides += " model.blocks=2"
    process = start(tmp_path / "killed", overrides)
    two_epochs(process)
    time.sleep(rng.uniform(0.0, 0.5))
    process.kill()
    process.communicate()

    process = start(tmp_path / "killed", overrides)
    two_epochs(process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, complaints = process.communicate(timeout=60)
    assert time.monotonic() - began < 20  # 5 on a machine that does nothing else
    assert process.returncode == 130 and "Traceback" not in complaints
    last = output.splitlines()[-1]
    assert last.startswith("stopped; epoch ")
    assert last.endswith(" is kept; the same command continues from there")
    assert not (tmp_path / "killed" / "run.json").exists()

    for name in ("killed", "undisturbed"):
        _, complaints = start(tmp_path / name, overrides).communicate(timeout=600)
        assert complaints == ""
    assert_equal_folders(tmp_path / "undisturbed", tmp_path / "killed")
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert record["resumed"] == 2


# ------------------------------------------------------------------- what is not gone on with


@pytest.fixture(scope="module")
def trained(tones, tmp_path_factory):
    """Settings, store, and a folder with a training that was killed in its second epoch, and it
    once it went on to its end."""
    settings, store = tones
    settings = changed(settings, "train", unet_epochs=2, steps_per_epoch=1)
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch).at_step = 2
        with pytest.raises(Killed):
            finish(settings, store, folder / "stopped")
    shutil.copytree(folder / "stopped", folder / "finished")
    record, _ = finish(settings, store, folder / "finished")
    assert record["resumed"] == 1
    return settings, store, folder


def finish(settings, store, folder, *, seed=0):
    lines = []
    record = training.train(
        settings, store, "unet_bass", seed=seed, folder=folder, report=lines.append
    )
    return record, lines


def cut_model(folder):
    path = folder / "model.keras"
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("state", "damage", "said"),
    [
        (
            "stopped",
            lambda folder: None,
            "training of 1 epochs is discarded: settings changed since",
        ),
        ("stopped", cut_model, "model.keras is missing or damaged"),
        ("finished", cut_model, "damaged; the training starts anew"),
        ("finished", lambda folder: (folder / "run.json").write_text("{"), "run.json"),
    ],
)
def test_what_cannot_be_gone_on_with_begins_anew_and_says_so(
    trained, tmp_path, state, damage, said
):
    settings, store, folder = trained
    run = shutil.copytree(folder / state, tmp_path / "run")
    damage(run)
    if "settings" in said:
        settings = changed(settings, "train", learning_rate=2e-3)
    record, lines = finish(settings, store, run)
    assert said in lines[0]
    assert record["resumed"] == 0 and record["epochs"] == 2


def test_a_finished_training_is_used_again_while_its_facts_fit(trained, tmp_path):
    settings, store, folder = trained
    folder = shutil.copytree(folder / "finished", tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    before = contents(folder)
    # A process that was killed just before the end left its checkpoints.
    (folder / checkpoint.FOLDER).mkdir()
    (folder / checkpoint.FOLDER / "epoch-000002.npz").touch()
    again, lines = finish(settings, store, folder)
    assert again == record and lines == [checkpoint.REUSED]
    assert contents(folder) == before and not (folder / checkpoint.FOLDER).exists()

    (folder / "left.txt").touch()
    record, lines = finish(settings, store, folder, seed=1)
    assert lines[0] == "a finished training is replaced: seed changed since"
    assert record["resumed"] == 0 and not (folder / "left.txt").exists()


def test_another_variant_in_the_registry_leaves_a_finished_training_alone(tones, monkeypatch):
    settings, store = tones
    facts = training._facts(settings, store, "cnn_simple", seed=0)
    monkeypatch.setitem(training.VARIANTS, "another", training.VARIANTS["cnn_complex"])
    assert training._facts(settings, store, "cnn_simple", seed=0) == facts
    monkeypatch.setitem(training.VARIANTS, "cnn_simple", training.VARIANTS["cnn_complex"])
    assert checkpoint.changed(facts, training._facts(settings, store, "cnn_simple", seed=0)) == (
        "variant changed since"
    )


def test_two_trainings_do_not_share_a_folder(trained, tmp_path, monkeypatch):
    settings, store, folder = trained
    folder = shutil.copytree(folder / "stopped", tmp_path / "run")
    monkeypatch.setattr(training, "locked", lambda path, busy, *, seconds: files.locked(path, busy))
    refused = pytest.raises(ConfigError, match="Another process trains unet_bass")
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
    monkeypatch.undo()
    batches = TrainingBatches(store, settings, model="unet_bass", seed=0)
    tracks = batches.batch(6).tracks
    assert tracks and {*tracks} <= {entry.name for entry in store.split("train")}
    assert "not finite in step 6" in message and f"(batch from: {', '.join(tracks)})" in message
    assert "up to epoch 1 is kept" in message and "train.learning_rate" in message
    assert all(np.isfinite(value).all() for value in load(folder / "model.keras").weights)
    assert checkpoint.kept(folder).startswith("epoch 1 is kept")
    assert not (folder / "run.json").exists()
