"""Noise to measure with, a network ready to train, and batches as the paper's code makes them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cunet_lib.core.files import write_json
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import all_one_hot, draw
from cunet_lib.preprocess.store import INDEX, Entry, Store
from cunet_lib.preprocess.tracks import STEMS

RATE = 44100


def noise_corpus(root: Path, *, tracks: dict[str, int], seconds: float) -> None:
    """Tracks in MUSDB18-HQ layout, 44.1 kHz stereo; all of them links to the same five files."""
    import soundfile

    rng = np.random.default_rng(0)
    first = None
    for subset, number in tracks.items():
        for index in range(number):
            folder = root / subset / f"Noise - {subset} {index:03}"
            folder.mkdir(parents=True)
            for stem in STEMS:
                path = folder / f"{stem}.wav"
                if first is not None:
                    os.link(first / path.name, path)
                    continue
                noise = (3000 * rng.normal(size=(round(seconds * RATE), 2))).astype(np.int16)
                soundfile.write(path, noise, RATE, subtype="PCM_16")
            first = first or folder


def noise_store(settings: Profile, *, tracks: dict[str, int], seconds: float) -> Store:
    """A store of noise."""
    folder = settings.paths.store
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    samples = round(seconds * settings.signal.sample_rate)
    entries = []
    for split, number in tracks.items():
        for index in range(number):
            audio = np.empty((len(STEMS), samples), np.float32)
            audio[1:] = 0.1 * rng.standard_normal((len(INSTRUMENTS), samples), np.float32)
            audio[0] = audio[1:].sum(axis=0)
            name = f"{split} {index}"
            digest = hashlib.sha256(name.encode()).hexdigest()
            file = f"{digest[:16]}.npy"
            np.save(folder / file, audio)
            entries.append(Entry(name, split, file, samples, seconds, 20.0, digest, digest))
    index = {
        "signal": settings.signal.model_dump(),
        "settings_hash": settings.section_hash("data", "signal"),
        "stems": list(STEMS),
        "tracks": [asdict(entry) for entry in entries],
    }
    write_json(folder / INDEX, index)
    return Store(folder)


def new_trainer(settings: Profile):
    """An untrained C-U-Net with its STFT, compiled as training compiles it, and a batch."""
    from cunet_lib.train import training

    trainer = training.compiled(training.new_network(settings, "cnn_complex", seed=0), settings)
    size = settings.train.batch_size
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.standard_normal((size, settings.patch_samples), np.float32)
    condition = np.resize(all_one_hot(), (size, len(INSTRUMENTS)))
    return trainer, audio, condition


def released_pipeline(spectrograms: list[np.ndarray], settings: Profile):
    """Batches as the paper's released code makes them: Python for every single patch.

    As there, complex spectrograms of all tracks lie in memory; a Python generator hands out slices
    of all stems with a condition; and a Python function takes each of them to magnitudes, copying
    the slice for every instrument that is asked for, and mixes in stems of other tracks.

    Parameters
    ----------
    spectrograms
        Of each track, ``(n_fft // 2 + 1, frames, 5)`` complex64, the mixture first.

    Returns
    -------
    tf.data.Dataset
        ``((mixture, condition), target)`` with magnitudes ``(batch, bins, frames, 1)``.
    """
    import tensorflow as tf

    frames, train = settings.model.patch_frames, settings.train
    bins, count = settings.signal.bins, len(INSTRUMENTS)
    rng = np.random.default_rng(0)

    def place():
        song = spectrograms[rng.integers(len(spectrograms))]
        start = rng.integers(song.shape[1] - frames + 1)
        return song[:, start : start + frames]

    def slices():
        while True:
            yield place(), draw(train.conditions[rng.integers(len(train.conditions))], rng)

    def patch(stems, condition):
        stems, condition = stems.numpy(), condition.numpy()
        mixture, target = stems[..., 0], np.zeros(stems.shape[:2], np.complex64)
        sources = target.copy()
        for wanted in np.flatnonzero(condition):
            scaled = stems.copy()
            if np.abs(stems).max() > 0 and rng.random() < train.progressive:
                level = np.float32(rng.random())
                scaled[..., 1 + wanted] *= level
                condition[wanted] *= level
            target = target + scaled[..., 1 + wanted]
            sources = sources + stems[..., 1 + wanted]
        if rng.random() < train.remix:
            mixture = sources
            for other in np.flatnonzero(condition == 0):
                mixture = mixture + place()[..., 1 + other]
        return np.abs(mixture)[:bins, :, None], condition, np.abs(target)[:bins, :, None]

    def load(stems, condition):
        mixture, condition, target = tf.py_function(patch, [stems, condition], [tf.float32] * 3)
        mixture = tf.ensure_shape(mixture, settings.patch_shape)
        target = tf.ensure_shape(target, settings.patch_shape)
        return (mixture, tf.ensure_shape(condition, (count,))), target

    signature = (
        tf.TensorSpec((bins + 1, frames, 1 + count), tf.complex64),
        tf.TensorSpec((count,), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(slices, output_signature=signature)
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(train.batch_size).prefetch(tf.data.AUTOTUNE)
