"""Songs of any length, rate and number of channels, separated in overlapping stretches.

A stretch, of a patch or more, goes through the one pipeline as a whole. The network hears what it
was trained on: the mean of the channels, resampled to the study rate, magnitudes divided by their
largest. Its masks, interpolated in time and frequency, are applied to the stretch's own STFT, every
channel at its own rate, which keeps the stereo image. Neighbouring stretches share what
neighbouring patches share, and their estimates are cross-faded there as patches are: there are no
seams, and memory does not grow with the song.

Each stretch has its own largest magnitude, so that what follows something louder is heard as well:
a network knows songs whose magnitudes reach 1.

Above half the study rate the network hears nothing. Where the shares of all instruments are known
and ``highs.npz`` lies beside the model, a small network gives the masks there
(:mod:`cunet_lib.separation.highs`). Else the mask is, frame by frame, the mean of the mask over the
top octave that is heard, weighted by the mixture's magnitudes; weights are the same for every
instrument. Either way masks that add up to one do so in the highs,
and fade in over that octave's last tenth, where the resampling filter rolls off.
``highs="cut"`` lets nothing through above, as the study's own evaluation.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft
import soxr

from cunet_lib.core import hardware
from cunet_lib.core.files import is_file
from cunet_lib.core.settings import ConfigError, Signal
from cunet_lib.separation.catalog import Found
from cunet_lib.separation.highs import FILE, Highs
from cunet_lib.signal.bands import RATE, band_of, levels_above, spectrum_above
from cunet_lib.signal.spectral import at_rate, hann, pad_centre

FADE = 0.9
"""Share of the study's band above which masks fade to their extension; soxr's filter is flat up to
0.91 of it."""

PATCHES = 4
"""A song's patches are this many times as long as those of training.

The longer they are, the less is computed twice, and the more memory the network's layers take.
"""

OVERLAP = 0.25
"""What a patch shares with the next, in patches of the training's length, whatever the model's
profile says.

Laid end to end, as the paper's evaluation has them, patches can be heard to change. The study's
overlap by half; a song's are longer and have fewer ends, so less is enough.
"""

STRETCH_SECONDS = 15
"""Length of a stretch, but one patch at least. The arrays of a longer one would be fresh memory
each time, which the system has to clear."""

AT_ONCE = 2
"""Patches that the network computes side by side."""

BLOCK_VALUES = 1 << 18
"""About how many samples of windows are transformed at a time, over all channels: 1 MB, which stays
in a processor's cache from one step to the next."""

OPPOSED = -0.5
"""Correlation with the loudest channel below which a channel is taken for inverted."""


@dataclass(frozen=True)
class Song:
    """What is separated: a name for messages, a rate in Hz, and samples.

    ``blocks`` gives these in order, ``(frames, channels)`` float32; it is called twice.
    """

    name: str
    rate: int
    blocks: Callable[[], Iterator[np.ndarray]]


class SongSeparator:
    """A trained model, ready to separate songs at their own rate and channels.

    The network is loaded when it is first needed: Keras takes seconds to be imported, and what is
    wrong with a song or a request is told before. Patches are :data:`PATCHES` times as long as in
    training, and its normalisation is folded away (:func:`cunet_lib.models.unet.folded`): the same
    function with fewer steps, up to the ends of patches.

    Parameters
    ----------
    found
        The model, as :func:`cunet_lib.separation.catalog.find` gives it.
    highs
        ``"extend"`` or ``"cut"``: what becomes of frequencies that the network does not hear.
    overlap
        What a patch shares with the next, in patches of the training's length, 0 to below 1.

    Raises
    ------
    ConfigError
        If ``highs`` or ``overlap`` makes no sense; later, if the model cannot be loaded or does not
        fit its settings, or the process was forked from one that has separated.
    """

    def __init__(self, found: Found, *, highs: str = "extend", overlap: float = OVERLAP):
        if highs not in ("extend", "cut"):
            raise ConfigError(f"highs must be extend or cut, not {highs!r}.")
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap must be at least 0 and below 1, not {overlap:g}.")
        self.found, self.signal = found, found.signal
        self.highs, self._overlap = highs, overlap

    @functools.cached_property
    def precision(self) -> str:
        """Keras dtype policy of the network, whose mask is float32 in any case.

        bfloat16 on processors that multiply it themselves, float32 on others and on GPUs. A test
        holds how little bfloat16 changes the parts of real music.
        """
        quick = hardware.computes_bfloat16() and not hardware.gpus()
        return "mixed_bfloat16" if quick else "float32"

    @property
    def model(self) -> str:
        """Name of the network: its record's, or, where no record says it, its own."""
        return self.found.model or self.separator.name

    @functools.cached_property
    def separator(self):
        """The network, as a :class:`cunet_lib.separation.separator.Separator`."""
        _refuse_fork()
        from cunet_lib.models.unet import folded
        from cunet_lib.models.weights import load
        from cunet_lib.separation.separator import Separator

        model = load(self.found.path, precision=self.precision)
        bins = model.inputs[0].shape[1]
        if bins != self.signal.bins:
            raise ConfigError(
                f"{self.found.path} takes {bins} frequency bins, its settings say "
                f"{self.signal.bins}; put the run.json of its training beside it."
            )
        joined = {"overlap": self._overlap / PATCHES, "batch_size": 1}
        joined = self.found.separate.model_copy(update=joined)
        long = folded(model, frames=PATCHES * model.inputs[0].shape[2])
        return Separator(long, self.signal, joined, at_once=AT_ONCE)

    @functools.cached_property
    def _learned(self):
        """The network for the highs, or None; see the module."""
        path = self.found.path.with_name(FILE)
        return Highs(path) if self.highs == "extend" and is_file(path) else None

    def stream(
        self, song: Song, wanted: Sequence[np.ndarray | None]
    ) -> tuple[int, int, Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Separate a song stretch by stretch.

        Parameters
        ----------
        song
            Read twice: first for its length and its flaws.
        wanted
            Levels ``(instruments,)``, or None for a dedicated U-Net. One instrument alone is the
            network's answer to that condition. Several are weighted sums of all instruments'
            shares (:meth:`cunet_lib.separation.separator.Separator.shares`): a network trained on
            one instrument at a time does not know sums.

        Returns
        -------
        frames
            Length of the song in samples per channel.
        stretches
            Number of stretches to come.
        stream
            The mixture ``(samples, channels)`` and the estimates ``(wanted, samples, channels)``,
            float32, in order and without gaps.

        Raises
        ------
        ConfigError
            If the song is empty, damaged, or holds values that are not finite.
        """
        _refuse_fork()
        frames = sum(map(len, song.blocks()))
        if not frames:
            raise ConfigError(f"{song.name} holds no samples; get the song again.")
        separate, patch = self.separator.separate, self.separator.frames
        move = max(1, round(patch * (1.0 - separate.overlap)))
        second = self.signal.hop * song.rate / self.signal.sample_rate
        patches = max(1, round(STRETCH_SECONDS * song.rate / (move * second)))
        # Windows that reach beyond a stretch hear what is there.
        beside = -(-self.signal.n_fft // self.signal.hop)
        counts = (patches * move, patch - move, beside)
        step, shared, margin = (round(each * second) for each in counts)
        count = max(1, -(-(frames - shared - margin) // step))
        return frames, count, self._estimates(song, frames, wanted, counts, (step, shared, margin))

    def _estimates(self, song, frames, wanted, counts, sizes):
        """Stretches; ``counts`` are frames of the study, ``sizes`` samples of the song."""
        step, shared, _ = sizes
        # The weights of frames in spectral.join_patches, between frames too.
        fade = (1 + np.linspace(0, counts[1], shared, endpoint=False)) / (counts[1] + 1)
        fade = fade.astype(np.float32)[:, None]
        tail = None
        for samples, before, last in _stretches(song, frames, *sizes):
            skip = counts[2] if before else 0
            most = None if last else skip + counts[0] + counts[1]
            estimates = self._separate(samples, song.rate, wanted, slice(skip, most))
            inside = slice(before, None if last else before + step + shared)
            samples, estimates = samples[inside], estimates[:, inside]
            if tail is not None:
                estimates[:, :shared] *= fade
                estimates[:, :shared] += (1 - fade) * tail
            ready = len(samples) if last else step
            tail = estimates[:, ready:].copy()
            yield samples[:ready], estimates[:, :ready]

    def _separate(self, samples: np.ndarray, rate: int, wanted, inside: slice) -> np.ndarray:
        """Estimates ``(wanted, samples, channels)`` of a stretch ``(samples, channels)``.

        ``inside`` are the frames that the network sees; masks of its edges go on beside them.
        """
        mono = _heard(samples)
        heard = soxr.resample(mono, rate, self.signal.sample_rate, quality="HQ")
        heard = self.separator.hear(heard)
        frames = heard.shape[2]
        around = (inside.start, frames - len(range(frames)[: inside.stop]))
        heard = heard[..., inside]
        magnitude = heard[0]
        shares = None
        if wanted[0] is None:
            masks = self.separator.masks(heard)
        elif self.separator.weighs or len(wanted) > 1 or np.count_nonzero(wanted[0]) > 1:
            shares = self.separator.shares(heard)
            masks = np.tensordot(np.stack(wanted), shares, 1)
        else:
            masks = self.separator.masks(heard, wanted[0][None])
        if shares is not None and self._learned:
            full = soxr.resample(mono, rate, RATE, quality="HQ")
            above = levels_above(spectrum_above(full, self.signal, frames)[:, inside], self.signal)
            above = np.tensordot(np.stack(wanted), self._learned(shares, magnitude, above), 1)
        else:
            above = _top_octave(masks[:, : self.signal.bins], magnitude)
        # Masks are interpolated, so that sizes need not match.
        rows = np.concatenate([masks, above], axis=1).swapaxes(1, 2)
        rows = np.pad(rows, ((0, 0), around, (0, 0)), mode="edge")
        return self._apply(samples, rows, at_rate(self.signal, rate))

    def _apply(self, samples: np.ndarray, rows: np.ndarray, own: Signal) -> np.ndarray:
        """Mask a stretch's own STFT; and its inverse.

        ``rows`` is ``(wanted, frames, rows)``: the frequency bins, the Nyquist bin and, last, the
        bands above, one or :data:`cunet_lib.signal.bands.ABOVE`. In time masks are linear between
        frames; the last holds on.
        """
        size, hop = own.n_fft, own.hop
        window = hann(size).astype(np.float32)
        bands = _bands(own, self.signal)
        ratio = hop * self.signal.sample_rate / (own.sample_rate * self.signal.hop)
        padded = pad_centre(np.pad(samples.T, ((0, 0), (0, -len(samples) % hop))), own)
        windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::hop]
        estimates = np.zeros((len(rows), *padded.shape), np.float32)
        weight = np.zeros(padded.shape[1], np.float32)

        def add(spectrum, first, estimate, mask):
            parts = scipy.fft.irfft(_masked(spectrum, mask, bands, self.highs), n=size, axis=-1)
            parts *= window
            for frame in range(parts.shape[1]):
                place = (first + frame) * hop
                estimate[:, place : place + size] += parts[:, frame]

        step = max(4, BLOCK_VALUES // (len(padded) * size))
        with ThreadPoolExecutor(hardware.cores()) as pool:
            for first in range(0, windows.shape[1], step):
                part = windows[:, first : first + step]
                times = np.arange(first, first + part.shape[1]) * ratio
                low = np.minimum(times.astype(int), rows.shape[1] - 1)
                share = (times - low).astype(np.float32)[:, None]
                high = np.minimum(low + 1, rows.shape[1] - 1)
                mask = (1 - share) * rows[:, low] + share * rows[:, high]
                spectrum = scipy.fft.rfft(part * window, axis=-1)
                list(pool.map(functools.partial(add, spectrum, first), estimates, mask))
        for place in range(0, windows.shape[1] * hop, hop):
            weight[place : place + size] += window**2
        inside = slice(size // 2, size // 2 + len(samples))
        estimates = estimates[..., inside]
        estimates /= weight[inside]
        return np.moveaxis(estimates, 1, 2)


_PROCESS: dict[str, int] = {}


def _refuse_fork() -> None:
    """Refuse to compute in a child of a process that has: TensorFlow would wait for ever."""
    if _PROCESS.setdefault("id", os.getpid()) != os.getpid():
        raise ConfigError(
            "This process was forked from one that has separated, and TensorFlow cannot go on in "
            "it; start processes by multiprocessing's method 'spawn'."
        )


def _stretches(
    song: Song, frames: int, step: int, shared: int, margin: int
) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Stretches of ``step + shared`` samples, each ``step`` after the one before.

    Each comes as ``(samples, channels)`` with ``margin`` samples more at both sides, the number of
    samples before it, and whether it is the last, which has what is left.
    """
    parts, held, read, before = [], 0, 0, 0
    for block in song.blocks():
        parts.append(block)
        held, read = held + len(block), read + len(block)
        if held > before + step + shared + margin:
            samples = np.concatenate(parts)
            while len(samples) > (whole := before + step + shared + margin):
                yield samples[:whole], before, False
                samples = samples[before + step - margin :]
                before = margin
            parts, held = [samples.copy()], len(samples)
    if read != frames:
        raise ConfigError(f"{song.name} changed while it was read; try again.")
    yield np.concatenate(parts), before, True


def _heard(samples: np.ndarray) -> np.ndarray:
    """What the network hears of ``(samples, channels)``: ``(samples,)`` float32.

    The mean of the channels, those turned round that mirror the loudest one, which would cancel it;
    without the constant offset that some converters add.
    """
    count, channels = samples.shape
    mean = np.ones(count, np.float32) @ samples / count
    products = samples.T @ samples - count * np.outer(mean, mean)
    power = np.maximum(np.diag(products), 0)
    turned = products[np.argmax(power)] < OPPOSED * np.sqrt(power * power.max())
    sign = (np.where(turned, -1, 1) / channels).astype(np.float32)
    return samples @ sign - mean @ sign


def _bands(own: Signal, signal: Signal) -> tuple[np.ndarray, ...]:
    """How a song's bins take masks at the study's frequencies.

    Returns
    -------
    low, share, fading
        For each bin that the network hears: the mask's row below it, the share of the next row,
        and the share of the lowest band above.
    above
        For each bin beyond: its band's row.
    """
    bins = signal.bins
    place = np.arange(own.n_fft // 2 + 1) * (own.sample_rate / own.n_fft)
    place *= signal.n_fft / signal.sample_rate
    # A song at the study's rate or below has no highs: the study's masks as they are.
    beyond = np.zeros(len(place))
    if own.sample_rate > signal.sample_rate:
        # A hair above the Nyquist frequency counts as on it.
        beyond = np.clip((place / bins - FADE) / (1 - FADE), 0, 1)
        beyond[place <= bins] = np.minimum(beyond[place <= bins], 1 - 1e-6)
    heard = int(np.count_nonzero(beyond < 1))
    low = np.minimum(place[:heard].astype(int), bins - 1)
    share = np.clip(place[:heard] - low, 0, 1)
    above = bins + 1 + band_of(place[heard:] * (signal.sample_rate / signal.n_fft), signal)
    return low, share.astype(np.float32), beyond[:heard].astype(np.float32), above


def _masked(spectrum: np.ndarray, mask: np.ndarray, bands, highs: str) -> np.ndarray:
    """Masked spectrum ``(channels, frames, bins)`` complex64; the mask is ``(frames, rows)``."""
    low, share, fading, above = bands
    gain = (1 - share) * mask[:, low] + share * mask[:, low + 1]
    # A single band is that of all bins.
    above = mask[:, np.minimum(above, mask.shape[1] - 1)]
    if highs == "extend" and above.size:
        gain = (1 - fading) * gain + fading * above[:, :1]
    # Real gains times pairs of real numbers: complex products would take twice as long.
    parts, heard = spectrum.view(np.float32), 2 * len(low)
    masked = np.empty_like(parts)
    np.multiply(parts[..., :heard], np.repeat(gain, 2, axis=-1), out=masked[..., :heard])
    above = np.repeat(above * (highs == "extend"), 2, axis=-1)
    np.multiply(parts[..., heard:], above, out=masked[..., heard:])
    return masked.view(np.complex64)


def _top_octave(mask: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Mean ``(wanted, 1, frames)`` of masks over the octave below :data:`FADE`, by magnitude."""
    bins = mask.shape[1]
    band = slice(bins // 2, int(bins * FADE))
    weight = magnitude[band]
    total = weight.sum(axis=0)
    # In silence every bin counts alike.
    weight = np.where(total > 0, weight / np.where(total > 0, total, 1), 1 / len(weight))
    return (mask[:, band] * weight).sum(axis=1, keepdims=True)
