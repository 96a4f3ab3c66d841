"""Training of the small network that separates the highs (:mod:`cunet_lib.separation.highs`).

Training songs at their full rate teach it: the distance of estimates from stems in the complex
plane, band by band.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import soxr
from keras import layers, ops

from cunet_lib.core.files import replacing
from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.preprocess.tracks import Originals
from cunet_lib.signal.bands import ABOVE, RATE, features, levels_above, members, spectrum_above

HIDDEN = (96, 96)
"""Units of the hidden layers."""

TRACKS, EPOCHS, BATCH = 64, 30, 256


def learn(originals: Originals, separator, path: Path) -> None:
    """Teach the small network on training songs, and write it to ``path``.

    Parameters
    ----------
    originals
        Tracks at :data:`cunet_lib.signal.bands.RATE`. At most :data:`TRACKS` of the training
        tracks are heard, spread evenly.
    separator
        What gives the instruments' shares below: a
        :class:`cunet_lib.separation.separator.Separator`.
    path
        File to write: kernel and bias of each layer, in half precision.

    Raises
    ------
    ConfigError
        If the study rate leaves nothing above, or a track cannot be read.
    """
    rate = separator.signal.sample_rate
    if rate >= RATE:
        raise ConfigError(
            f"A network at {rate} Hz hears all of songs at {RATE} Hz; nothing is left to learn."
        )
    # The first weights, the order of frames, and which songs lose their highest bands.
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    sources = originals.split("train")
    sources = sources[:: -(-len(sources) // TRACKS)]
    shown = progress(sources, "highs: tracks heard", len(sources))
    lessons = [_lesson(originals.audio(source), separator, rng) for source in shown]
    inputs, powers = (np.concatenate(each) for each in zip(*lessons, strict=True))
    network = keras.Sequential([keras.Input(inputs.shape[1:])])
    for units in HIDDEN:
        network.add(layers.Dense(units, activation="relu"))
    network.add(layers.Dense(ABOVE * len(INSTRUMENTS)))
    network.add(layers.Reshape((ABOVE, len(INSTRUMENTS))))
    network.add(layers.Softmax())

    def distance(powers, share):
        # |share x mixture - stem|^2, summed over a band's bins.
        mixture, common, stem = (powers[..., k, :] for k in range(3))
        error = share**2 * mixture - 2 * share * common + stem
        return ops.mean(ops.sqrt(ops.maximum(error, 0) + 1e-6))

    falling = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * -(-len(inputs) // BATCH))
    network.compile(keras.optimizers.Adam(falling), loss=distance)
    network.fit(inputs, powers, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    with replacing(path) as partial:
        np.savez(partial, *(weight.astype(np.float16) for weight in network.get_weights()))


def _lesson(audio: np.ndarray, separator, rng) -> tuple:
    """What a song teaches, frame by frame.

    Parameters
    ----------
    audio
        ``(5, samples, channels)`` at :data:`cunet_lib.signal.bands.RATE`, mixture first.

    Returns
    -------
    features
        ``(frames, values)``.
    powers
        ``(frames, bands, 3, instruments)``: power of the mixture, what it and the stem have in
        common, and power of the stem; summed over a band's bins.
    """
    (mixture, *stems), signal = audio.mean(axis=-1), separator.signal
    heard = separator.hear(soxr.resample(mixture, RATE, signal.sample_rate, quality="HQ"))
    below, magnitude = separator.shares(heard), heard[0]
    frames = magnitude.shape[1]
    whole, *parts = (spectrum_above(each, signal, frames) for each in (mixture, *stems))
    above = levels_above(whole, signal)
    products = [
        [np.abs(whole) ** 2, (whole.conj() * part).real, np.abs(part) ** 2] for part in parts
    ]
    # (instruments, 3, bands, frames)
    powers = members(signal) @ np.array(products)
    if rng.random() < 0.25:
        # As lossy coding leaves it.
        cut = int(rng.integers(ABOVE // 2, ABOVE))
        above[cut:], powers[:, :, cut:] = 0, 0
    # Every song counts alike.
    powers /= powers[0, 0].sum(axis=0).mean() or 1.0
    return features(below, magnitude, above), powers.transpose(3, 2, 1, 0).astype(np.float32)
