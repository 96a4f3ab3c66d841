"""Batches as the paper's released code makes them, to compare the study's pipeline with."""

from __future__ import annotations

import numpy as np

from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import draw


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
