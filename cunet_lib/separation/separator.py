"""The one pipeline of masks: a mixture and conditions in, estimates out.

The network masks the mixture's spectrogram patch by patch; patches overlap and are cross-faded (or
laid end to end, as in the paper, with ``overlap=0``); the mixture's phase and level are kept.

Where the settings name pitches, the network hears the song as it is and at each of them, and the
masks are means of all (test-time augmentation). The further spectrograms have the frames of the
first, with windows shorter or longer by the pitch: a bin stands for as much more or less in Hz.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from cunet_lib.core.files import read_run
from cunet_lib.core.settings import ConfigError, Profile, Separate, Signal
from cunet_lib.core.systems import UNETS
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.models.unet import is_conditioned, mask_model, shares_model
from cunet_lib.models.weights import load
from cunet_lib.signal.spectral import cut_patches, istft, join_patches, stft


class Separator:
    """A trained network, ready to separate mono audio at the study rate.

    Parameters
    ----------
    model
        A C-U-Net, or a dedicated U-Net.
    signal, separate
        Spectrogram settings that the model was trained with, and how patches are joined.
    at_once
        Batches that the network computes at a time, where Keras runs on TensorFlow. Two of them
        leave no core idle at the ends of the many short steps of each.

    Attributes
    ----------
    name
        Of the network.
    conditioned
        Whether conditions are needed.
    weighs
        Whether conditions weigh shares: one pass answers all of them.
    frames
        Frames of a patch.
    """

    def __init__(
        self,
        model: keras.Model,
        signal: Signal,
        separate: Separate | None = None,
        *,
        at_once: int = 1,
    ):
        self.name, self.conditioned = model.name, is_conditioned(model)
        self.signal = signal
        self.separate = separate or Separate()
        shares = shares_model(model)
        self._mask = shares or mask_model(model)
        self.weighs = shares is not None
        # Keras would compile with XLA, which is slower on processors.
        self._mask.jit_compile = False
        # Here, lest several threads do.
        self._mask.make_predict_function()
        self._at_once = at_once if keras.backend.backend() == "tensorflow" else 1
        self.frames = model.inputs[0].shape[2]

    def __call__(self, mixture: np.ndarray, conditions: np.ndarray | None = None) -> np.ndarray:
        """Estimates of a mono mixture ``(samples,)`` at the study rate.

        Parameters and errors as in :meth:`masks`.

        Returns
        -------
        numpy.ndarray
            ``(conditions, samples)`` float32, as loud as in the mixture.
        """
        spectrogram = stft(mixture, self.signal)
        masks = self.masks(self.hear(mixture), conditions)
        return np.stack([istft(mask * spectrogram, self.signal, len(mixture)) for mask in masks])

    def hear(self, mixture: np.ndarray) -> np.ndarray:
        """Magnitude spectrograms that the network hears of ``(samples,)`` at the study rate.

        Returns
        -------
        numpy.ndarray
            ``(pitches, n_fft // 2 + 1, frames)``, the first as the mixture is.
        """
        heard, rows = [], self.signal.bins + 1
        for size in self._sizes:
            magnitude = np.abs(stft(mixture, self.signal.model_copy(update={"n_fft": size})))
            missing = max(0, rows - len(magnitude))
            heard.append(np.pad(magnitude[:rows], ((0, missing), (0, 0))))
        return np.stack(heard)

    @property
    def _sizes(self) -> list[int]:
        """Samples of the windows whose bins are those of the song at each pitch."""
        whole = self.signal.n_fft
        return [whole, *(2 * round(whole * pitch / 2) for pitch in self.separate.pitches or ())]

    def masks(self, heard: np.ndarray, conditions: np.ndarray | None = None) -> np.ndarray:
        """Masks of a mixture.

        Parameters
        ----------
        heard
            Its magnitudes, as :meth:`hear` gives them.
        conditions
            ``(conditions, instruments)`` for a C-U-Net, None for a dedicated U-Net.

        Returns
        -------
        numpy.ndarray
            ``(conditions, n_fft // 2 + 1, frames)`` float32 in [0, 1]; one mask for a dedicated
            U-Net. The Nyquist bin, which the network does not see, takes the mask of its
            neighbour.

        Raises
        ------
        ConfigError
            If conditions are missing for a C-U-Net or given to a dedicated U-Net.
        """
        if self.conditioned != (conditions is not None):
            raise ConfigError(
                "A C-U-Net needs conditions." if self.conditioned else "A U-Net takes no condition."
            )
        patches = []
        for magnitude in heard:
            peak = float(magnitude.max(initial=0.0)) or 1.0
            magnitude = magnitude[: self.signal.bins] / peak
            cut, starts = cut_patches(magnitude, self.frames, self.separate.overlap)
            patches.append(cut)
        patches = np.concatenate(patches)
        given = [conditions]
        if conditions is not None and not self.weighs:
            conditions = np.asarray(conditions, np.float32)
            # One at a time, since the patches of a whole song are in memory; together where they
            # shall fill several batches.
            given = [conditions] if self._at_once > 1 else conditions[:, None]
        masks = []
        for z in given:
            for each in self._mask_patches(patches, z):
                parts = zip(np.split(each, len(heard)), self._sizes, strict=True)
                mask = sum(
                    _at_pitch(join_patches(part, starts, heard.shape[2]), size / self.signal.n_fft)
                    for part, size in parts
                )
                mask /= len(heard)
                masks.append(np.concatenate([mask, mask[-1:]]))
        return np.stack(masks)

    def shares(self, heard: np.ndarray) -> np.ndarray:
        """Masks of every instrument, each divided by their sum: estimates add up to the mixture.

        By masks as they are, some of the mixture is in none of the estimates and some in several,
        unless the network itself gives shares.

        Parameters and shapes as of :meth:`masks`, under :func:`all_one_hot`.
        """
        masks = self.masks(heard, all_one_hot())
        masks /= np.maximum(masks.sum(axis=0), np.finfo(np.float32).tiny)
        return masks

    def _mask_patches(self, patches: np.ndarray, conditions: np.ndarray | None) -> np.ndarray:
        """Masks ``(conditions, patches, bins, frames)`` of patches ``(patches, bins, frames)``.

        These are divided by the song's largest magnitude, and have no Nyquist bin. A dedicated
        U-Net gives one mask, as under one condition.
        """
        count = len(patches)
        # Where conditions weigh shares, one pass answers all of them.
        conditioned = self.conditioned and not self.weighs
        rows = count * (len(conditions) if conditioned else 1)
        size = self.separate.batch_size

        def masked(first: int) -> np.ndarray:
            # Each patch under each condition. One batch shape, so that the graph is traced once:
            # the last batch is filled up from the beginning.
            row = np.arange(first, first + size) % rows
            part = patches[row % count, ..., None]
            inputs = [part, conditions[row // count]] if conditioned else part
            return self._mask.predict_on_batch(inputs)

        batches = range(0, rows, size)
        if self._at_once == 1:
            parts = [masked(first) for first in batches]
        else:
            with ThreadPoolExecutor(self._at_once) as pool:
                parts = list(pool.map(masked, batches))
        found = np.concatenate(parts)[:rows]
        if self.weighs:
            return np.tensordot(np.asarray(conditions, np.float32), found, (1, 1))
        return found.reshape(-1, *patches.shape)


def _at_pitch(mask: np.ndarray, pitch: float) -> np.ndarray:
    """A mask ``(bins, frames)`` of a song at a pitch, at the song's own; linear between bins."""
    place = np.arange(len(mask)) * pitch
    low = np.minimum(place.astype(int), len(mask) - 2)
    share = np.clip(place - low, 0, 1).astype(np.float32)[:, None]
    return (1 - share) * mask[low] + share * mask[low + 1]


def load_run(settings: Profile, model: str, *, seed: int) -> tuple[dict, keras.Model]:
    """Record and network of the finished training run of a dedicated U-Net or C-U-Net.

    Raises
    ------
    ConfigError
        If the run is not finished, its record or model is damaged, or it had other signal settings.
    """
    folder = settings.paths.run(model, seed)
    record = read_run(folder)
    trained = record["settings"]["signal"]
    if trained != settings.signal.model_dump(mode="json"):
        raise ConfigError(
            f"The run {folder.name} was trained with the signal settings {trained}; use the same."
        )
    return record, load(folder / "model.keras")


class System:
    """A trained system of the study: one C-U-Net, or the four dedicated U-Nets together.

    Parameters
    ----------
    settings
        Profile whose run folders hold the weights.
    name
        ``"unet"``, or a C-U-Net variant.
    seed
        Of the runs.

    Attributes
    ----------
    version
        Hash of the weights' files.

    Raises
    ------
    ConfigError
        As :func:`load_run`.
    """

    def __init__(self, settings: Profile, name: str, *, seed: int):
        models = UNETS if name == "unet" else (name,)
        networks = [load_run(settings, model, seed=seed)[1] for model in models]
        paths = [settings.paths.run(model, seed) / "model.keras" for model in models]
        self.version = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        self._separators = [
            Separator(network, settings.signal, settings.separate) for network in networks
        ]

    def __call__(self, mixture: np.ndarray) -> np.ndarray:
        """Estimates ``(instruments, samples)`` of a mono mixture ``(samples,)``."""
        conditions = all_one_hot() if self._separators[0].conditioned else None
        return np.concatenate([each(mixture, conditions) for each in self._separators])
