"""The networks on JAX: the same outputs as on TensorFlow, and the same training.

JAX is no dependency of the study. These tests run where it is installed beside Keras: in this
environment, or in that of the interpreter which ``CUNET_JAX_PYTHON`` names.
"""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, clean_environment

from cunet_lib.core.settings import Signal, load_profile
from cunet_lib.core.systems import UNETS, VARIANTS
from cunet_lib.models import unet as models
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.signal.spectral import graph_magnitude
from cunet_lib.train import training

JAX_PYTHON = os.environ.get("CUNET_JAX_PYTHON") or (
    sys.executable if importlib.util.find_spec("jax") else None
)
needs_jax = pytest.mark.skipif(
    JAX_PYTHON is None, reason="no jax here; name an interpreter that has it: CUNET_JAX_PYTHON"
)

# Faders at both ends, one instrument at a time, several, and levels in between.
CONDITIONS = np.vstack(
    [all_one_hot(), np.zeros(4), np.ones(4), [0, 0.5, 0, 0.5], [0.1, 0.9, 0.3, 0.7]]
).astype(np.float32)

SIGNAL = Signal(n_fft=64, hop=16)
SHAPE = (SIGNAL.bins, 16, 1)

SCRIPT = """
import sys
from pathlib import Path

import keras
import numpy as np

from cunet_lib.models import unet as models
from cunet_lib.models.weights import load
from cunet_lib.core.settings import Signal
from cunet_lib.signal.spectral import graph_magnitude

assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
given = np.load(sys.argv[1])
found = {"magnitudes": graph_magnitude(given["audio"], Signal(n_fft=64, hop=16))}
for path in Path(sys.argv[1]).parent.glob("*.keras"):
    network = load(path)
    inputs = [given["mixture"], given["conditions"]]
    found[path.stem] = network(inputs if models.is_conditioned(network) else inputs[0])
np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in found.items()})
"""


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
settings = load_profile("smoke", "train.steps_per_epoch=4")
for model in sys.argv[2:]:
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


def run_jax(*words, timeout=300, **variables):
    return subprocess.run(
        [JAX_PYTHON, *map(str, words)],
        cwd=ROOT,
        env=clean_environment(
            **{"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            **{"PYTHONPATH": ROOT, **variables},
        ),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@needs_jax
def test_every_model_gives_on_jax_what_it_gives_on_tensorflow(tmp_path, rng):
    assert keras.backend.backend() == "tensorflow"
    mixture = rng.uniform(size=(len(CONDITIONS), *SHAPE)).astype(np.float32)
    audio = rng.normal(size=(3, 15 * SIGNAL.hop + SIGNAL.n_fft)).astype(np.float32)
    expected = {"magnitudes": np.asarray(graph_magnitude(audio, SIGNAL))}
    for name in (UNETS[0], *VARIANTS):
        network = models.build(name, shape=SHAPE, filters=2, blocks=3, start="he")
        # As after a training: statistics of batch normalisation that are not 0 and 1.
        network.set_weights(
            [weight + rng.uniform(0, 0.02, weight.shape) for weight in network.get_weights()]
        )
        network.save(tmp_path / f"{name}.keras")
        inputs = [mixture, CONDITIONS] if models.is_conditioned(network) else mixture
        expected[name] = np.asarray(network(inputs))
    np.savez(tmp_path / "given.npz", mixture=mixture, conditions=CONDITIONS, audio=audio)
    done = run_jax("-c", SCRIPT, tmp_path / "given.npz", tmp_path / "found.npz")
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert set(found) == set(expected)
    for name, output in expected.items():
        # Outputs lie within 0 and 1; twelve normalised convolutions amplify float32's rounding.
        error = np.abs(found[name] - output)
        assert error.mean() < 2e-6 and error.max() < 2e-4, (name, error.mean(), error.max())
    for name in VARIANTS:  # z is heard
        assert np.ptp(expected[name][:4], axis=0).max() > 1e-3


@needs_jax
def test_a_training_on_jax_is_the_one_on_tensorflow(tones, tmp_path):
    """Same batches, same weights at first, no dropout: losses differ by rounding alone."""
    _, store = tones
    # Gradients of rounding noise, as of biases before a normalisation, would be whole steps with
    # Adam's usual epsilon.
    overrides = "model.dropout=0 model.control_dropout=0 train.steps_per_epoch=4 train.epsilon=1e-5"
    names = ("unet_drums", "dense_complex")
    script = TRAINING.replace("train.steps_per_epoch=4", overrides)
    (tmp_path / "jax").mkdir()
    for name in names:
        network = training.new_network(load_profile("smoke", overrides), name, seed=0)
        network.save(tmp_path / "jax" / f"{name}.keras")
    variables = {name: os.environ[name] for name in ("CUNET_DATA", "CUNET_RESULTS")}
    done = run_jax("-c", script, tmp_path / "jax", *names, **variables)
    assert done.returncode == 0, done.stderr
    assert '"jax"' in done.stdout and '"tensorflow"' not in done.stdout
    for name in names:
        training.train(
            load_profile("smoke", overrides), store, name, seed=0, folder=tmp_path / name
        )
        ours, theirs = (
            pd.read_csv(folder / name / "history.csv") for folder in (tmp_path, tmp_path / "jax")
        )
        for column in ("loss", "val_loss"):
            np.testing.assert_allclose(theirs[column], ours[column], rtol=2e-4)
