"""Separation: a mixture and conditions in, estimates out. References are never seen here.

The network masks the mixture's spectrogram patch by patch; patches overlap and are cross-faded (or
laid end to end, as in the paper, with ``overlap=0``); the mixture's phase and level are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

from cunet_lib.core.settings import ConfigError, Profile, Separate, Signal
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.models.unet import is_conditioned, load, mask_model
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
    conditioned
        Whether conditions are needed.
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
        self.conditioned = is_conditioned(model)
        self.signal = signal
        self.separate = separate or Separate()
        self._mask = mask_model(model)
        # Keras would compile with XLA, which is slower on processors.
        self._mask.jit_compile = False
        # Here, lest several threads do.
        self._mask.make_predict_function()
        self._at_once = at_once if keras.backend.backend() == "tensorflow" else 1
        self.frames = model.inputs[0].shape[2]

    def masks(self, mixture: np.ndarray, conditions: np.ndarray | None = None) -> np.ndarray:
        """Masks of the mixture's spectrogram.

        Parameters
        ----------
        mixture
            ``(samples,)`` mono at the study rate.
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
        return self._masks(np.abs(stft(mixture, self.signal)), conditions)

    def __call__(self, mixture: np.ndarray, conditions: np.ndarray | None = None) -> np.ndarray:
        """Estimates ``(conditions, samples)`` float32, as long and as loud as in the mixture.

        Parameters and errors as in :meth:`masks`.
        """
        masks = self.masks(mixture, conditions)
        spectrogram = stft(mixture, self.signal)
        return np.stack([istft(mask * spectrogram, self.signal, len(mixture)) for mask in masks])

    def _masks(self, magnitude: np.ndarray, conditions: np.ndarray | None) -> np.ndarray:
        total = magnitude.shape[1]
        peak = float(magnitude.max(initial=0.0)) or 1.0
        patches, starts = cut_patches(
            magnitude[: self.signal.bins] / peak, self.frames, self.separate.overlap
        )
        wanted = [None] if conditions is None else np.asarray(conditions, np.float32)
        masks = []
        for z in wanted:
            # One condition at a time: the patches of a whole song are in memory.
            given = None if z is None else z[None]
            mask = join_patches(self.mask_patches(patches, given)[0], starts, total)
            masks.append(np.concatenate([mask, mask[-1:]]))
        return np.stack(masks)

    def mask_patches(self, patches: np.ndarray, conditions: np.ndarray | None = None) -> np.ndarray:
        """Masks of magnitude patches, which are divided by the song's largest magnitude.

        Parameters
        ----------
        patches
            ``(patches, n_fft // 2, frames)`` float32, the Nyquist bin dropped.
        conditions
            ``(conditions, instruments)`` for a C-U-Net, None for a dedicated U-Net.

        Returns
        -------
        numpy.ndarray
            ``(conditions, patches, n_fft // 2, frames)`` float32 in [0, 1]; as of one condition
            for a dedicated U-Net.
        """
        count = len(patches)
        rows = count * (1 if conditions is None else len(conditions))
        size = self.separate.batch_size

        def masked(first: int) -> np.ndarray:
            # Each patch under each condition. One batch shape, so that the graph is traced once:
            # the last batch is filled up from the beginning.
            row = np.arange(first, first + size) % rows
            part = patches[row % count, ..., None]
            inputs = [part, conditions[row // count]] if self.conditioned else part
            return self._mask.predict_on_batch(inputs)[..., 0]

        batches = range(0, rows, size)
        if self._at_once == 1:
            parts = [masked(first) for first in batches]
        else:
            with ThreadPoolExecutor(self._at_once) as pool:
                parts = list(pool.map(masked, batches))
        return np.concatenate(parts)[:rows].reshape(-1, *patches.shape)


def separate_instruments(
    separators: Separator | Mapping[str, Separator],
    mixture: np.ndarray,
    instruments: Sequence[str] = INSTRUMENTS,
) -> dict[str, np.ndarray]:
    """Isolate instruments with one C-U-Net, or with dedicated U-Nets given by instrument.

    Parameters
    ----------
    separators
        A conditioned separator, or a mapping from instrument to dedicated separator.
    mixture
        ``(samples,)`` mono at the study rate.
    instruments
        What to isolate.

    Returns
    -------
    dict
        Instrument to estimate ``(samples,)`` float32.
    """
    if isinstance(separators, Separator):
        rows = [INSTRUMENTS.index(instrument) for instrument in instruments]
        estimates = separators(mixture, all_one_hot()[rows])
        return dict(zip(instruments, estimates, strict=True))
    return {instrument: separators[instrument](mixture)[0] for instrument in instruments}


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
        If a model has not been trained yet, or was trained with other signal settings.
    """

    def __init__(self, settings: Profile, name: str, *, seed: int):
        names = UNETS if name == "unet" else (name,)
        folders = [settings.paths.run(model, seed) for model in names]
        for folder in folders:
            _check_signal(folder, settings.signal)
        paths = [folder / "model.keras" for folder in folders]
        separators = [Separator(load(path), settings.signal, settings.separate) for path in paths]
        self.version = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        self._separators = (
            dict(zip(INSTRUMENTS, separators, strict=True)) if name == "unet" else separators[0]
        )

    def __call__(self, mixture: np.ndarray) -> np.ndarray:
        """Estimates ``(instruments, samples)`` of a mono mixture ``(samples,)``."""
        return np.stack(list(separate_instruments(self._separators, mixture).values()))


def _check_signal(folder: Path, signal: Signal) -> None:
    path = folder / "run.json"
    if not path.is_file():
        raise ConfigError(f"No finished training run in {folder}; `make reproduce` trains it.")
    try:
        trained = json.loads(path.read_text(encoding="utf-8"))["settings"]["signal"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged; delete the folder and run `make reproduce` again."
        ) from error
    if trained != signal.model_dump(mode="json"):
        raise ConfigError(
            f"The model in {folder} was trained with the signal settings {trained}; "
            "separate with the same."
        )
