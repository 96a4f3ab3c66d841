"""Levels of a song in bands below and above half the study rate: what the highs' network reads.

Bands above have equal ratios. Those below are narrower, as hearing is.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from cunet_lib.core.settings import Signal
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.signal.spectral import at_rate, stft

RATE = 44100
"""Of the songs that the bands are taken from, in Hz. What lies above half of it goes with the
highest band."""

BELOW = np.array([0, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 460]) / 512
"""Edges of the bands below, in shares of half the study rate; a song's resampling filter rolls off
above the last."""

ABOVE = 16
"""Bands above."""

CONTEXT = 2
"""Frames before and after one that are told with it."""

INPUTS = (2 * CONTEXT + 1) * (ABOVE + len(INSTRUMENTS) * (len(BELOW) - 1))
"""Values that :func:`features` gives a frame."""


def band_of(hertz: np.ndarray, signal: Signal) -> np.ndarray:
    """The band above in which each frequency lies; the lowest for those below them all."""
    edges = np.geomspace(signal.sample_rate / 2, RATE / 2, ABOVE + 1)
    return np.searchsorted(edges[1:-1], hertz, side="right")


def spectrum_above(samples: np.ndarray, signal: Signal, frames: int) -> np.ndarray:
    """Spectrum ``(bins, frames)`` above half the study rate, at the study's frames.

    ``samples`` ``(samples,)`` come at :data:`RATE`. Windows last as long as the study's, hops
    nearly so: the nearest frame is taken.
    """
    own = at_rate(signal, RATE)
    spectrum = stft(samples, own)
    spectrum = spectrum[len(spectrum) - len(_hertz_above(signal)) :]
    times = np.arange(frames) * (signal.hop / signal.sample_rate * RATE / own.hop)
    return spectrum[:, np.minimum(np.round(times).astype(int), spectrum.shape[1] - 1)]


def members(signal: Signal) -> np.ndarray:
    """Which bin of :func:`spectrum_above` lies in which band: ``(bands, bins)`` of 0 and 1."""
    band = band_of(_hertz_above(signal), signal)
    return (np.arange(ABOVE)[:, None] == band).astype(np.float32)


def _hertz_above(signal: Signal) -> np.ndarray:
    own = at_rate(signal, RATE)
    hertz = np.arange(own.n_fft // 2 + 1) * RATE / own.n_fft
    return hertz[hertz > signal.sample_rate / 2]


def levels_above(spectrum: np.ndarray, signal: Signal) -> np.ndarray:
    """Mean power of the bins in each band, ``(bands, frames)``, scaled to the study's windows.

    ``spectrum`` is a mixture's :func:`spectrum_above`.
    """
    member, scale = members(signal), signal.n_fft / at_rate(signal, RATE).n_fft
    sums = member @ np.abs(spectrum) ** 2
    return scale**2 * sums / np.maximum(member.sum(axis=1, keepdims=True), 1)


def features(shares: np.ndarray, magnitude: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Levels of estimates below and of the mixture above, frame by frame.

    Parameters
    ----------
    shares, magnitude
        Of the bins below: ``(instruments, n_fft // 2 + 1, frames)`` and the mixture's
        ``(n_fft // 2 + 1, frames)``.
    above
        As :func:`levels_above` gives it.

    Returns
    -------
    numpy.ndarray
        ``(frames, values)`` float32, from -1 (80 dB below the mixture's largest) to 1.
    """
    edges = (BELOW * (len(magnitude) - 1)).astype(int)
    power = (shares * magnitude) ** 2
    below = [power[:, low : max(high, low + 1)].mean(axis=1) for low, high in pairwise(edges)]
    power = np.concatenate([above, *below])
    peak = float(max(magnitude.max(initial=0.0) ** 2, above.max(initial=0.0))) or 1.0
    levels = np.minimum(np.log10(power / peak + 1e-8) / 4 + 1, 1)
    padded = np.pad(levels.T, ((CONTEXT, CONTEXT), (0, 0)), mode="edge")
    steps = range(2 * CONTEXT + 1)
    told = [padded[k : k + levels.shape[1]] for k in steps]
    return np.concatenate(told, axis=1).astype(np.float32)
