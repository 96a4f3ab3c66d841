"""One training on several devices: two logical processors stand for two GPUs."""

import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, clean_environment

from cunet_lib import models
from cunet_lib.config import ConfigError, load_profile
from cunet_lib.devices import Devices

SCRIPT = """
import sys
from pathlib import Path

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from cunet_lib import training
from cunet_lib.config import load_profile
from cunet_lib.store import Store

for words in sys.argv[1:]:
    folder, model, overrides = words.split("|")
    settings = load_profile("smoke", overrides)
    store = Store(settings.paths.store)
    record = training.train(settings, store, model, seed=3, folder=Path(folder))
    print(record["devices"])
"""

# Dropout draws other masks on two devices: only without it can losses be compared.
SETTINGS = (
    "model.dropout=0 model.control_dropout=0 model.filters=1 model.blocks=2 model.patch_frames=16 "
    "train.batch_size=6 train.steps_per_epoch=4 train.cunet_epochs=2 train.unet_epochs=1 "
    "train.learning_rate=0.01"
)


@pytest.fixture(scope="module")
def runs(tones, tmp_path_factory):
    """Folders of three trainings by name, and how many devices each had; one process does all."""
    settings, _ = tones
    folder = tmp_path_factory.mktemp("devices")
    wanted = {
        "alone": ("dense_simple", "train.devices=1"),
        "shared": ("dense_simple", "train.devices=auto"),
        # One validation patch: the other device has none.
        "few": ("unet_bass", "train.devices=auto train.validation_patches=1"),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-c", SCRIPT),
            *(
                f"{folder / name}|{model}|{SETTINGS} {more}"
                for name, (model, more) in wanted.items()
            ),
        ],
        env=clean_environment(
            CUNET_DATA=settings.paths.data.parent,
            CUNET_RESULTS=folder,
            PYTHONPATH=ROOT,
            CUDA_VISIBLE_DEVICES="",
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = [int(line) for line in done.stdout.splitlines() if line.isdecimal()]
    assert numbers == [1, 2, 2]
    return {name: folder / name for name in wanted}


def history(run):
    return pd.read_csv(run / "history.csv")


def test_two_devices_have_the_losses_of_one(runs):
    alone, shared = history(runs["alone"]), history(runs["shared"])
    # The second epoch's loss differs by far more than the two runs may.
    assert abs(alone["loss"][1] / alone["loss"][0] - 1) > 0.01
    for column in ("loss", "val_loss"):
        assert shared[column].tolist() == pytest.approx(alone[column].tolist(), rel=1e-4)


def test_model_of_many_devices_is_kept_as_any_other(runs):
    """Other backends refuse layers that take their statistics over several devices."""
    kept = models.load(runs["shared"] / "model.keras")
    found = [each for each in kept.layers if isinstance(each, keras.layers.BatchNormalization)]
    assert found and not any(layer.synchronized for layer in found)


def test_device_without_a_share_of_the_last_batch_leaves_the_loss_finite(runs):
    assert np.isfinite(history(runs["few"])["val_loss"]).all()


def test_shares_must_be_equal(monkeypatch):
    found = ["GPU:0", "GPU:1", "GPU:2"]
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: found)
    with pytest.raises(ConfigError, match=r"batch_size = 4 does not divide .* for 3 devices"):
        Devices(load_profile("smoke", "train.devices=auto"))
    assert Devices(load_profile("smoke")).count == 1
