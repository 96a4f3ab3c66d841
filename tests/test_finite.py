"""Silence, conditions that ask for nothing, and half precision give finite numbers."""

import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf
from conftest import write_tones

from cunet_lib.core.settings import load_profile
from cunet_lib.models import unet as models
from cunet_lib.preprocess.store import build_store
from cunet_lib.separation.separator import Separator
from cunet_lib.signal.spectral import graph_magnitude
from cunet_lib.train import training
from cunet_lib.train.batches import TrainingBatches, validation_batch


def small(settings, name, precision):
    return models.build(
        name, shape=settings.patch_shape, filters=2, blocks=3, precision=precision, start="he"
    )


@pytest.fixture
def patches(tones, rng):
    """Silence, silence asked of sound, sound, and a single click: mixture, target, condition."""
    settings, _ = tones
    sound = rng.normal(size=settings.patch_samples).astype(np.float32) * 0.01
    silence, click = np.zeros_like(sound), np.zeros_like(sound)
    click[len(click) // 2] = 1.0
    mixture = np.stack([silence, sound, sound, click])
    target = np.stack([silence, silence, sound / 2, silence])
    condition = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    return mixture, target, condition


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("unet_vocals", "float32"),
        ("unet_vocals", "mixed_bfloat16"),
        ("dense_complex", "float32"),
        ("cnn_simple", "mixed_bfloat16"),
    ],
)
def test_losses_gradients_weights_and_masks_are_finite(tones, patches, name, precision):
    settings, _ = tones
    mixture, target, condition = patches
    network = small(settings, name, precision)
    trainer = training.WaveformModel(network, settings.signal)
    loss = training.magnitude_error(settings.signal)
    # Graphs of these steps are traced in tests of training.
    trainer.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, run_eagerly=True)
    # All of it, and a batch of nothing but silence.
    for rows in (slice(None), slice(0, 1)):
        inputs = (
            (mixture[rows], condition[rows]) if models.is_conditioned(network) else mixture[rows]
        )
        with tf.GradientTape() as tape:
            value = loss(target[rows], trainer(inputs, training=True))
        gradients = tape.gradient(value, trainer.trainable_variables)
        assert np.isfinite(float(value))
        assert all(np.isfinite(gradient).all() for gradient in gradients if gradient is not None)
        for _ in range(3):
            assert np.isfinite(trainer.train_on_batch(inputs, target[rows]))
    assert all(np.isfinite(weight).all() for weight in network.get_weights())
    magnitude = graph_magnitude(mixture, settings.signal)
    given = magnitude
    if models.is_conditioned(network):
        given = [magnitude, keras.ops.convert_to_tensor(condition)]
    mask = np.asarray(models.mask_model(network)(given))
    assert np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_separated_silence_is_silence(tones, precision):
    settings, _ = tones
    audio = np.zeros(3 * settings.patch_samples // 2, np.float32)
    conditions = np.concatenate([np.eye(4), np.zeros((1, 4)), np.ones((1, 4))]).astype(np.float32)
    for name, asked in (("unet_bass", None), ("cnn_complex", conditions)):
        network = small(settings, name, precision)
        separator = Separator(network, settings.signal, settings.separate)
        estimates = separator(audio, asked)
        assert np.array_equal(estimates, np.zeros_like(estimates))
        sound = audio.copy()
        sound[100] = 1e-20  # far below what a float32 spectrogram resolves
        assert np.isfinite(separator(sound, asked)).all()


def test_batches_from_silent_tracks_are_finite(roots):
    settings = load_profile("smoke", "train.conditions=[one_hot,zero,all]")
    write_tones(settings.paths.corpus, train=3, test=1, seconds=2.0)
    tracks = sorted((settings.paths.corpus / "train").iterdir())
    for track in tracks[:2]:
        for path in track.glob("*.wav"):
            audio, rate = soundfile.read(path, dtype="int16")
            soundfile.write(path, np.zeros_like(audio), rate, subtype="PCM_16")
    store = build_store(settings, workers=1)
    assert [entry.scale for entry in store.entries].count(1.0) == 2
    trained = TrainingBatches(store, settings, model="dense_simple", seed=0).batch(0)
    for batch in (trained, validation_batch(store, settings, model="dense_simple")):
        assert not batch.mixture.any(axis=1).all()
        assert np.isfinite(batch.mixture).all() and np.isfinite(batch.target).all()
