"""A C-U-Net and a stretch of a song, ready to be steered: a new z is one call of the network.

Shares are computed once for all z.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from cunet_lib.core.settings import ConfigError, Profile, Separate, Signal
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.evaluate import real_excerpt
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.models.weights import load
from cunet_lib.preprocess.store import open_store
from cunet_lib.preprocess.tracks import read_mono
from cunet_lib.separation.catalog import find
from cunet_lib.separation.separator import Separator, load_run
from cunet_lib.signal.audio import open_audio
from cunet_lib.signal.spectral import cut_patches, istft, stft

CURVE = (0.0, 0.5, 1.0)
"""Where the faders' curves are computed; the present z is one more point."""

EXCERPT = "a real excerpt (6 s of a MUSDB18 test track)"
"""The song that is there without any data."""


def load_network(settings: Profile, model: str = "", *, seed: int = 0) -> keras.Model:
    """The C-U-Net that ``cunet separate`` takes, or that of a training run of a profile.

    Parameters
    ----------
    model
        A C-U-Net variant whose training run is taken; if empty, the best that ships and has the
        profile's signal settings.
    seed
        Of the training run.

    Raises
    ------
    ConfigError
        If there is no such model, or the run had other signal settings.
    """
    if model:
        return load_run(settings, model, seed=seed)[1]
    # Half precision saves space on disk, and is slow to compute with.
    return load(find(signal=settings.signal).path, precision="float32")


def songs(settings: Profile) -> dict[str, Callable[[], np.ndarray]]:
    """What can be listened to: the store's test songs, if there is a store, and a real excerpt.

    Returns
    -------
    dict
        Name to a function that gives ``(5, samples)`` at the study rate, mixture first.
    """
    found = {}
    with contextlib.suppress(ConfigError):  # a fresh clone has no store
        store = open_store(settings)
        found = {entry.name: functools.partial(store.audio, entry) for entry in store.split("test")}
    return {**found, EXCERPT: functools.partial(real_excerpt, settings.signal.sample_rate)}


def decode_upload(name: str, content: bytes, sample_rate: int) -> np.ndarray:
    """Mono audio of an uploaded file, ``(1, samples)`` float32 at ``sample_rate``.

    Raises
    ------
    ConfigError
        If it is no audio, or holds none.
    """
    # A file, since some formats have their index at the end. Its name has nothing of the upload's.
    with tempfile.TemporaryDirectory(prefix="cunet-") as folder:
        source = Path(folder) / "upload"
        source.write_bytes(content)
        try:
            audio = read_mono(open_audio(source), sample_rate)
        except ConfigError as error:
            raise ConfigError(
                f"{name} cannot be read as audio; convert it to WAV or FLAC."
            ) from error
    if not len(audio):
        raise ConfigError(f"{name} holds no audio; export it again.")
    return audio[None]


@dataclass(frozen=True)
class Steered:
    """What one z gives; levels are root mean squares of spectrograms.

    Attributes
    ----------
    z
        ``(instruments,)``.
    mask
        ``(n_fft // 2 + 1, frames)`` in [0, 1].
    estimate
        ``(samples,)``.
    gammas, betas
        ``(values,)`` of all blocks.
    level
        Of the masked mixture over that of the mixture; 0 for silence.
    """

    z: np.ndarray
    mask: np.ndarray
    estimate: np.ndarray
    gammas: np.ndarray
    betas: np.ndarray
    level: float


class Steering:
    """A C-U-Net and one stretch of a song.

    Parameters
    ----------
    network
        A C-U-Net.
    signal, separate
        As for :class:`cunet_lib.separation.separator.Separator`, whose estimates these are.
    """

    def __init__(self, network: keras.Model, signal: Signal, separate: Separate):
        self.signal = signal
        # For the level alone no patch need overlap another.
        self._exact, self._quick = (
            Separator(network, signal, separate.model_copy(update={"overlap": share}))
            for share in (separate.overlap, 0.0)
        )
        self.films = [layer for layer in network.layers if layer.name.endswith("_film")]
        self._control = network.get_layer("control")

    def load(self, mixture: np.ndarray) -> None:
        """Take another stretch, ``(samples,)`` mono at the study rate."""
        self.mixture = np.asarray(mixture, np.float32)
        self.spectrogram = stft(self.mixture, self.signal)
        self.magnitude = np.abs(self.spectrogram)
        self._energy = float(np.sum(self.magnitude**2))
        for separator in (self._exact, self._quick):
            # One batch, of the stretch's patches and no more.
            overlap = separator.separate.overlap
            patches, _ = cut_patches(self.magnitude[:1], separator.frames, overlap)
            one = {"batch_size": len(patches)}
            separator.separate = separator.separate.model_copy(update=one)
        # Once for every z that follows.
        exact = self._exact
        self._heard = exact.hear(self.mixture)
        self._shares = exact.masks(self._heard, all_one_hot()) if exact.weighs else None

    def __call__(self, z: np.ndarray) -> Steered:
        """Mask, estimate and FiLM values of a condition ``(instruments,)``."""
        z = np.asarray(z, np.float32)
        (mask,) = self._masks(self._exact, z[None])
        (gammas,), (betas,) = self._film(z[None])
        estimate = istft(mask * self.spectrogram, self.signal, len(self.mixture))
        return Steered(z, mask, estimate, gammas, betas, self._level(mask))

    def curve(self, z: np.ndarray, instrument: str) -> tuple[np.ndarray, np.ndarray]:
        """:data:`CURVE`, and :attr:`Steered.level` with the instrument's z at each of its points.

        Shares are at hand. Other networks answer for patches that do not overlap, so within about a
        hundredth of the exact level.
        """
        conditions = np.repeat(np.asarray(z, np.float32)[None], len(CURVE), axis=0)
        conditions[:, INSTRUMENTS.index(instrument)] = CURVE
        masks = self._masks(self._quick, conditions)
        return np.array(CURVE), np.array([self._level(mask) for mask in masks])

    def _masks(self, separator: Separator, conditions: np.ndarray) -> np.ndarray:
        if self._shares is not None:
            return np.tensordot(conditions, self._shares, 1)
        return separator.masks(self._heard, conditions)

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Gammas and betas ``(conditions, values)`` with every instrument on or off."""
        return self._film(np.array(list(itertools.product((0, 1), repeat=len(INSTRUMENTS)))))

    def _film(self, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = self._control(np.asarray(conditions, np.float32), training=False)
        return tuple(keras.ops.convert_to_numpy(each) for each in values)

    def _level(self, mask: np.ndarray) -> float:
        if not self._energy:
            return 0.0
        return float(np.sqrt(np.sum((mask * self.magnitude) ** 2) / self._energy))
