"""A training on JAX is the one on TensorFlow.

JAX is no dependency of the study. This test runs where it is installed beside Keras: in this
environment, or in that of the interpreter which ``CUNET_JAX_PYTHON`` names.
"""

import importlib.util
import os
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, ran

from cunet_lib.core.settings import load_profile
from cunet_lib.train import training

JAX_PYTHON = os.environ.get("CUNET_JAX_PYTHON") or (
    sys.executable if importlib.util.find_spec("jax") else None
)

# Gradients of rounding noise, as of biases before a normalisation, would be whole steps with Adam's
# usual epsilon.
OVERRIDES = (
    "model.dropout=0 model.control_dropout=0 train.steps_per_epoch=4 train.epsilon=1e-4 "
    "train.conditions_per_mixture=2"
)
MODELS = ("unet_drums", "dense_simple", "dense_complex", "cnn_simple", "cnn_complex", "shares")

TRAINING = """
import json
import sys
from pathlib import Path

import keras

from cunet_lib.core.settings import load_profile
from cunet_lib.models.weights import load
from cunet_lib.preprocess.store import open_store
from cunet_lib.train import training

assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
settings = load_profile("smoke", sys.argv[2])
for model in sys.argv[3:]:
    folder = Path(sys.argv[1]) / model
    # A seed gives other numbers on other backends.
    def started(*words, model=model, new_network=training.new_network, **options):
        network = new_network(*words, **options)
        network.set_weights(load(folder.with_suffix(".keras")).get_weights())
        return network
    training.new_network = started
    record = training.train(settings, open_store(settings), model, seed=0, folder=folder)
    print(json.dumps(record["versions"]))
"""


@pytest.mark.skipif(JAX_PYTHON is None, reason="no jax; name an interpreter: CUNET_JAX_PYTHON")
def test_a_training_on_jax_is_the_one_on_tensorflow(tones, tmp_path):
    """Same batches, same weights at first, no dropout: losses differ by rounding alone."""
    settings, there = load_profile("smoke", OVERRIDES), tmp_path / "jax"
    there.mkdir()
    for name in MODELS:
        training.new_network(settings, name, seed=0).save(there / f"{name}.keras")
    backend = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    backend |= {name: os.environ[name] for name in ("CUNET_DATA", "CUNET_RESULTS")}
    words = (JAX_PYTHON, "-c", TRAINING, there, OVERRIDES, *MODELS)
    done = ran(*words, timeout=600, PYTHONPATH=ROOT, **backend)
    assert done.returncode == 0, done.stderr
    assert '"jax"' in done.stdout and '"tensorflow"' not in done.stdout
    for name in MODELS:
        training.train(settings, tones[1], name, seed=0, folder=tmp_path / name)
        ours, theirs = (pd.read_csv(at / name / "history.csv") for at in (tmp_path, there))
        for column in ("loss", "val_loss"):
            np.testing.assert_allclose(theirs[column], ours[column], rtol=2e-4)
