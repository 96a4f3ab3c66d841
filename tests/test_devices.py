"""One training on several devices: two logical processors stand for two GPUs."""

import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, clean_environment

from cunet_lib.core.hardware import Devices
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.models import unet as models

SCRIPT = """
import sys
from pathlib import Path

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from cunet_lib.train import training
from cunet_lib.core.settings import load_profile
from cunet_lib.core.hardware import Devices, _strategy
from cunet_lib.preprocess.store import Store

folder, overrides = Path(sys.argv[1]), sys.argv[2]
for devices in ("1", "auto"):
    settings = load_profile("smoke", f"{overrides} train.devices={devices}")
    store = Store(settings.paths.store)
    record = training.train(settings, store, "dense_simple", seed=3, folder=folder / devices)
    print(record["devices"])
# A second training in one process must not begin with a second strategy.
assert Devices(settings).scope() is not None and _strategy.cache_info().misses == 1
"""

# Dropout draws other masks on two devices: only without it can losses be compared.
SETTINGS = (
    "model.dropout=0 model.control_dropout=0 model.filters=1 model.blocks=2 model.patch_frames=16 "
    "train.batch_size=6 train.steps_per_epoch=4 train.cunet_epochs=2 "
    # Biases before a normalisation have gradients of rounding noise alone. With a small epsilon
    # Adam makes whole steps of it, which reach the running means and so the validation.
    "train.learning_rate=0.01 train.epsilon=1e-5"
)


@pytest.fixture(scope="module")
def runs(tones, tmp_path_factory):
    """Folders of two trainings, ``1`` and ``auto``, by what they were told of devices."""
    settings, _ = tones
    folder = tmp_path_factory.mktemp("devices")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, SETTINGS],
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
    assert [int(line) for line in done.stdout.splitlines() if line.isdecimal()] == [1, 2]
    return folder


def history(run):
    return pd.read_csv(run / "history.csv")


def test_two_devices_have_the_losses_of_one(runs):
    alone, shared = history(runs / "1"), history(runs / "auto")
    # The second epoch's loss differs by far more than the two runs may.
    assert abs(alone["loss"][1] / alone["loss"][0] - 1) > 0.01
    for column in ("loss", "val_loss"):
        assert shared[column].tolist() == pytest.approx(alone[column].tolist(), rel=1e-5)


def test_model_of_many_devices_is_kept_as_any_other(runs):
    """Other backends refuse layers that take their statistics over several devices."""
    kept = models.load(runs / "auto" / "model.keras")
    found = [each for each in kept.layers if isinstance(each, keras.layers.BatchNormalization)]
    assert found and not any(layer.synchronized for layer in found)


def test_device_without_a_share_of_the_last_batch_leaves_the_loss_finite():
    several = Devices(load_profile("smoke"))
    several.count = 2
    loss = several.shared(lambda target, estimate: keras.ops.mean(target - estimate))
    assert float(loss(np.zeros((0, 3)), np.zeros((0, 3)))) == 0.0
    assert float(loss(np.ones((2, 3)), np.zeros((2, 3)))) == 0.5


def test_shares_must_be_equal(monkeypatch):
    found = ["GPU:0", "GPU:1", "GPU:2"]
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: found)
    with pytest.raises(ConfigError, match=r"batch_size = 4 does not divide .* for 3 devices"):
        Devices(load_profile("smoke", "train.devices=auto"))
    assert Devices(load_profile("smoke")).count == 1
