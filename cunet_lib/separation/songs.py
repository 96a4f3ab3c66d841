"""Songs of any length, rate and number of channels, separated in a stream.

The network hears what it was trained on: the mean of the channels, resampled to the study rate
(8192 Hz), each song's magnitudes divided by their largest. Its masks are then applied to the song
itself:

1. A first pass reads the song once, keeps the resampled downmix in a temporary file (32 kB a
   second), and notes the song's length and the largest magnitude.
2. A second pass takes the song's own STFT, every channel at its own rate, with windows and hops
   that last as long as the study's. Masks are computed patch by patch, at the places and with the
   cross-fades of :class:`cunet_lib.separation.separator.Separator`, interpolated in time and frequency to
   that STFT, and applied to all channels alike, which keeps the stereo image. Overlap-add gives
   samples back.

Patches are :data:`PATCHES` times as long as in training, and the network has its normalisation
folded away (:func:`cunet_lib.models.unet.folded`): more than half as fast again, for masks that score
alike (:data:`OVERLAP`). Where the processor multiplies bfloat16 itself, it computes with it
(:data:`PRECISIONS`).

Blocks only decide what is in memory at a time, never where a patch or a window lies: the outcome
does not depend on them, and there are no seams. They are small, so that processor caches hold the
windows of one. Three things go on at a time: the network computes masks a batch ahead of the
transforms, and these a block ahead of what writes the files.

Above half the study rate (4096 Hz) the network hears nothing. There the mask is, frame by frame,
the mean of the mask over the top octave that it does hear, weighted by the mixture's magnitudes
(``highs="extend"``); it fades in over that octave's last tenth, where the resampling filter rolls
off. Weights are the same for every instrument, so masks that add up to one do so in the highs.
``highs="cut"`` lets nothing through above, as the study's own evaluation.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import scipy.fft
import soundfile
import soxr

from cunet_lib.core.files import abandoned, locked
from cunet_lib.core.processes import cores, progress
from cunet_lib.core.settings import ConfigError, Signal, printable
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.models import conditions
from cunet_lib.preprocess.tracks import LOUDEST, downmix
from cunet_lib.separation import catalog
from cunet_lib.signal import audio
from cunet_lib.signal.spectral import hann

HIGHS = ("extend", "cut")

FADE = 0.9
"""Share of the study's band above which masks fade to their extension; soxr's filter is flat up to
0.91 of it."""

PATCHES = 4
"""Patches of the training's length in one of a song's.

The longer they are, the less is computed twice; but at eight the network takes two fifths longer
for as many frames (paper size, two cores).
"""

OVERLAP = 0.25
"""What a patch shares with the next, in patches of the training's length, whatever the model's
profile says.

Laid end to end, as the paper's evaluation has them, patches can be heard to change. On the demo's 8
validation songs (the shipped model's plain SDR at 8192 Hz, mean over instruments) songs score as
with the study's patches, which have the training's length and overlap by half: the difference is
0.000 dB (standard deviation over songs 0.11 dB). With half and with double the overlap it is -0.004
and 0.001 dB, with half and with double the length -0.005 and -0.003 dB. Patches of the training's
length are 0.008 dB below if they overlap by a quarter, and 0.06 dB end to end.
"""

PRECISIONS = ("auto", "float32", "mixed_bfloat16")
"""What the network computes with: "auto" is bfloat16 on processors that multiply it themselves,
float32 on others and on GPUs. The mask is float32 in any case. On the demo's 8 validation songs
(the shipped model) the parts' plain SDR differs by -0.0015 dB in the mean (standard deviation over
songs 0.002 dB), and the difference of the parts themselves is 45 to 50 dB below them."""

AT_ONCE = 2
"""Batches of patches that the network computes side by side."""

CHUNK_VALUES = 1 << 18
"""About how many samples of windows are in memory at a time, over all channels: 1 MB, which stays
in a processor's cache from one step to the next."""

FLUSH = 1 << 20
"""Samples per channel after which parts are sent to the disk; closing a file sends the rest, and
nothing else goes on then."""

MOST_CHANNELS = 1024
"""Of an array, as of any file that libsndfile reads."""

RESIDUAL = "residual"


@dataclass(frozen=True)
class _Array:
    """An array that is read as a file is."""

    samples: np.ndarray
    rate: int

    @property
    def path(self) -> str:
        return "The array"

    @property
    def channels(self) -> int:
        return self.samples.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self.samples), audio.BLOCK):
            yield self.samples[first : first + audio.BLOCK]


@dataclass(frozen=True)
class _Heard:
    """What the first pass found: the resampled downmix, in a file, and sizes of the song."""

    mono: BinaryIO
    samples: int  # of the downmix
    frames: int  # samples per channel of the song
    peak: float

    def read(self, first: int, last: int) -> np.ndarray:
        self.mono.seek(4 * first)
        return np.frombuffer(self.mono.read(4 * (last - first)), np.float32)[:, None]


class SongSeparator:
    """A trained model, ready to separate songs at their own rate and channels.

    Parameters
    ----------
    found
        The model, as :func:`cunet_lib.separation.catalog.find` gives it.
    highs
        ``"extend"`` or ``"cut"``: what becomes of frequencies that the network does not hear.
    overlap
        What a patch shares with the next, in patches of the training's length, 0 to below 1.
    precision
        One of :data:`PRECISIONS`.

    Attributes
    ----------
    precision
        What "auto" stands for on this machine, else as given.

    Raises
    ------
    ConfigError
        If the model cannot be loaded, does not fit its settings, or ``highs``, ``overlap`` or
        ``precision`` makes no sense.
    """

    def __init__(
        self,
        found: catalog.Found,
        *,
        highs: str = "extend",
        overlap: float = OVERLAP,
        precision: str = "auto",
    ):
        from cunet_lib.core.hardware import computes_bfloat16, gpus
        from cunet_lib.models.unet import folded, load
        from cunet_lib.separation.separator import Separator

        if highs not in HIGHS:
            raise ConfigError(f"highs must be one of {', '.join(HIGHS)}, not {highs!r}.")
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap must be at least 0 and below 1, not {overlap:g}.")
        if precision not in PRECISIONS:
            raise ConfigError(
                f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}."
            )
        if precision == "auto":
            precision = "mixed_bfloat16" if computes_bfloat16() and not gpus() else "float32"
        self.precision = precision
        model = load(found.path, precision=precision)
        bins = model.inputs[0].shape[1]
        if bins != found.signal.bins:
            raise ConfigError(
                f"{found.path} takes {bins} frequency bins, its settings say "
                f"{found.signal.bins}; put the run.json of its training beside it."
            )
        self.model = model.name
        self.highs = highs
        self.signal = found.signal
        joined = found.separate.model_copy(
            update={
                "overlap": overlap / PATCHES,
                "batch_size": max(1, found.separate.batch_size // PATCHES),
            }
        )
        long = folded(model, frames=PATCHES * model.inputs[0].shape[2])
        self._separator = Separator(long, found.signal, joined, at_once=AT_ONCE)

    def requests(self, texts: Sequence[str] | None = None) -> dict[str, np.ndarray | None]:
        """Conditions by name, from texts such as ``"vocals=0.5+drums"``; see :func:`requests`."""
        return requests(texts, self.model)

    def stream(
        self,
        song: audio.AudioFile | _Array,
        wanted: Sequence[np.ndarray | None],
        *,
        scratch: Path | None = None,
    ) -> tuple[int, int, Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Separate a song block by block.

        Parameters
        ----------
        song
            Has a rate, channels, and blocks that can be read twice.
        wanted
            Conditions ``(instruments,)``, or None for a dedicated U-Net.
        scratch
            Folder of the temporary file; the system's if not given.

        Returns
        -------
        frames
            Length of the song in samples per channel.
        chunks
            Number of chunks to come.
        stream
            Chunks of the mixture ``(samples, channels)`` and of the estimates ``(wanted, samples,
            channels)``, float32, in order and without gaps.

        Raises
        ------
        ConfigError
            If the song is empty, damaged, or holds values that are not finite.
        """
        heard = self._listen(song, scratch)
        grid = _Grid.of(self.signal, song.rate, heard.frames, song.channels)
        return heard.frames, grid.chunks, _ahead(self._apply(song, heard, grid, wanted))

    def _listen(self, song, scratch) -> _Heard:
        """First pass; the temporary file goes when it is no longer used."""
        signal = self.signal
        spool = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        frames = samples = 0
        for mono in _resampled(_ahead(_downmixed(song)), song.rate, signal.sample_rate):
            frames += mono.used
            samples += len(mono.samples)
            spool.write(mono.samples.tobytes())
        if not frames:
            spool.close()
            raise ConfigError(f"{song.path} holds no samples; get the song again.")
        heard = _Heard(spool, samples, frames, 1.0)
        total = 1 + -(-samples // signal.hop)
        peak = 0.0
        for first in range(0, total, 512):
            part = self._magnitudes(heard, first, min(total, first + 512))
            peak = max(peak, float(part.max()))
        return _Heard(spool, samples, frames, peak or 1.0)

    def _magnitudes(self, heard: _Heard, first: int, last: int) -> np.ndarray:
        """Frames of the downmix's magnitude spectrogram, ``(n_fft // 2 + 1, frames)``."""
        size, hop = self.signal.n_fft, self.signal.hop
        windows = _windows(heard.read, heard.samples, first, last, size=size, hop=hop, channels=1)
        return np.abs(scipy.fft.rfft(windows[0] * _hann(size), axis=-1)).T

    def _masks(self, heard: _Heard, wanted) -> Iterator[np.ndarray]:
        """Masks ``(wanted, frames, rows)`` of the downmix, in order.

        Rows are the frequency bins, the Nyquist bin (as its neighbour) and, last, the mean over
        the top octave. Places, padding and cross-fades of patches are those of
        ``spectral.cut_patches`` and ``spectral.join_patches``, a few patches at a time.
        """
        signal, length = self.signal, self._separator.frames
        settings = self._separator.separate
        given = None if wanted[0] is None else np.stack(wanted)
        # So many patches that, under all conditions, they fill the network's batches.
        filled = AT_ONCE * settings.batch_size
        group = filled // math.gcd(filled, len(wanted))
        total = 1 + -(-heard.samples // signal.hop)
        step = max(1, round(length * (1.0 - settings.overlap)))
        starts = range(0, max(total - length, 0) + step, step)
        fade = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)
        joined = np.zeros((len(wanted), signal.bins, length), np.float32)
        weights = np.zeros(length, np.float32)
        for place in range(0, len(starts), group):
            batch = starts[place : place + group]
            end = batch[-1] + length
            magnitude = self._magnitudes(heard, batch[0], min(end, total)) / heard.peak
            magnitude = np.pad(magnitude, ((0, 0), (0, max(0, end - total))))[: signal.bins]
            patches = np.stack(
                [magnitude[:, s - batch[0] : s - batch[0] + length] for s in batch]
            ).astype(np.float32)
            masks = self._separator.mask_patches(patches, given)
            for position, start in enumerate(batch):
                joined += masks[:, position] * fade
                weights += fade
                ready = total - start if start == starts[-1] else step
                mask = joined[..., :ready] / weights[:ready]
                first = start - batch[0]
                top = _top_octave(mask, magnitude[:, first : first + ready])
                rows = np.concatenate([mask, mask[:, -1:], top[:, None]], axis=1)
                # What comes next takes whole frames.
                yield np.ascontiguousarray(rows.swapaxes(1, 2))
                joined = np.pad(joined[..., step:], ((0, 0), (0, 0), (0, step)))
                weights = np.pad(weights[step:], (0, step))

    def _apply(self, song, heard, grid, wanted) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Second pass: the song's own STFT, masked, and its inverse."""
        size, hop, channels = grid.size, grid.hop, song.channels
        tape = _Tape(song.blocks(), channels, keep=size, name=str(song.path))
        ahead = _ahead(self._masks(heard, wanted), self._separator.separate.batch_size)
        window = _hann(size)
        gains = _Gains.of(grid, self.signal, self.highs)
        tail = np.zeros((len(wanted), channels, size - hop), np.float32)
        tail_weight = np.zeros(size - hop, np.float32)
        # The thread that reads the temporary file ends before that is closed.
        with heard.mono, contextlib.closing(ahead), ThreadPoolExecutor(cores()) as pool:
            masks = _Frames(ahead)
            for first in range(0, grid.frames, grid.step):
                last = min(grid.frames, first + grid.step)
                windows = _windows(
                    tape.read, heard.frames, first, last, size=size, hop=hop, channels=channels
                )
                spectrum = scipy.fft.rfft(windows * window, axis=-1)
                mask = masks.at(grid.times(first, last))
                estimates = np.zeros(
                    (len(wanted), channels, (last - first - 1) * hop + size), np.float32
                )
                weight = np.zeros(estimates.shape[-1], np.float32)
                estimates[..., : size - hop] += tail
                weight[: size - hop] += tail_weight
                add = functools.partial(_add_masked, spectrum, gains, window, hop)
                list(pool.map(add, estimates, mask))
                for frame in range(last - first):
                    weight[frame * hop : frame * hop + size] += window**2
                done = estimates.shape[-1] if last == grid.frames else (last - first) * hop
                tail, tail_weight = estimates[..., done:], weight[done:]
                # Half a window before the first sample, and what follows the last, is padding.
                begin = first * hop - size // 2
                lower, upper = max(0, -begin), min(done, heard.frames - begin)
                if upper > lower:
                    ready = estimates[..., lower:upper] / weight[lower:upper]
                    yield tape.read(begin + lower, begin + upper), np.moveaxis(ready, 1, 2)
        tape.finish(heard.frames)


@dataclass(frozen=True)
class _Grid:
    """STFT of a song at its own rate, with windows and hops as long as the study's.

    Sizes are rounded to what transforms quickly; masks are interpolated, so nothing has to match.
    """

    rate: int
    size: int
    hop: int
    frames: int
    step: int  # frames of a chunk
    ratio: float  # frames of the study per frame

    @classmethod
    def of(cls, signal: Signal, rate: int, samples: int, channels: int) -> _Grid:
        size = scipy.fft.next_fast_len(round(signal.n_fft * rate / signal.sample_rate), real=True)
        while size % 2:
            size = scipy.fft.next_fast_len(size + 1, real=True)
        hop = max(1, round(signal.hop * rate / signal.sample_rate))
        return cls(
            rate,
            size,
            hop,
            1 + -(-samples // hop),
            max(4, CHUNK_VALUES // (channels * size)),
            hop * signal.sample_rate / (rate * signal.hop),
        )

    @property
    def chunks(self) -> int:
        return -(-self.frames // self.step)

    def times(self, first: int, last: int) -> np.ndarray:
        return np.arange(first, last) * self.ratio


@dataclass(frozen=True)
class _Gains:
    """From masks at the study's frequencies to a song's spectrum.

    Attributes
    ----------
    low, share
        For each bin that the network hears: the mask's row below it, and the share of the next.
    fading
        Share of the extension in it.
    extend
        Whether bins above take the extension; else nothing.
    """

    low: np.ndarray
    share: np.ndarray
    fading: np.ndarray
    extend: bool

    @classmethod
    def of(cls, grid: _Grid, signal: Signal, highs: str) -> _Gains:
        bins = signal.bins
        place = np.arange(grid.size // 2 + 1) * (grid.rate / grid.size)
        place *= signal.n_fft / signal.sample_rate
        # A song at the study's rate or below has no highs: the study's masks as they are.
        beyond = np.zeros(len(place))
        if grid.rate > signal.sample_rate:
            # A hair above the Nyquist frequency counts as on it.
            beyond = np.clip((place / bins - FADE) / (1 - FADE), 0, 1)
            beyond[place <= bins] = np.minimum(beyond[place <= bins], 1 - 1e-6)
        heard = int(np.count_nonzero(beyond < 1))
        low = np.minimum(place[:heard].astype(int), bins - 1)
        share = np.clip(place[:heard] - low, 0, 1)
        fading = beyond[:heard] if highs == "extend" else np.zeros(heard)
        return cls(
            low, share.astype(np.float32), fading.astype(np.float32), extend=highs == "extend"
        )

    def applied(self, spectrum: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Masked spectrum.

        Parameters
        ----------
        spectrum
            ``(channels, frames, bins)`` complex64.
        mask
            ``(frames, rows)`` as :meth:`SongSeparator._masks` gives them: frequency bins, the
            Nyquist bin and the extension.

        Returns
        -------
        numpy.ndarray
            ``(channels, frames, bins)`` complex64.
        """
        gain = (1 - self.share) * mask[:, self.low] + self.share * mask[:, self.low + 1]
        above = mask[:, -1:]
        gain = (1 - self.fading) * gain + self.fading * above
        # Real gains times pairs of real numbers: complex products would take twice as long.
        parts, heard = spectrum.view(np.float32), 2 * len(self.low)
        masked = np.empty_like(parts)
        np.multiply(parts[..., :heard], np.repeat(gain, 2, axis=-1), out=masked[..., :heard])
        if self.extend:
            np.multiply(parts[..., heard:], above, out=masked[..., heard:])
        else:
            masked[..., heard:] = 0
        return masked.view(np.complex64)


def _add_masked(
    spectrum: np.ndarray,
    gains: _Gains,
    window: np.ndarray,
    hop: int,
    estimate: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Add the masked spectrum's windows to an estimate ``(channels, samples)``."""
    size = len(window)
    windows = scipy.fft.irfft(gains.applied(spectrum, mask), n=size, axis=-1)
    windows *= window
    for frame in range(windows.shape[1]):
        place = frame * hop
        estimate[:, place : place + size] += windows[:, frame]


def _ahead(blocks: Iterator, depth: int = 1) -> Iterator:
    """The same blocks; a thread computes the next ``depth`` while the last one is used."""
    worker = ThreadPoolExecutor(1)
    try:
        pending = deque(worker.submit(next, blocks, None) for _ in range(depth))
        while (block := pending.popleft().result()) is not None:
            pending.append(worker.submit(next, blocks, None))
            yield block
    finally:
        worker.shutdown(cancel_futures=True)
        # What the blocks need, files and threads of their own, goes with them.
        if hasattr(blocks, "close"):
            blocks.close()


class _Tape:
    """Sequential blocks, read by position; forgets what lies ``keep`` before the last reading."""

    def __init__(self, blocks: Iterator[np.ndarray], channels: int, *, keep: int, name: str):
        self._blocks = blocks
        self._keep = keep
        self._name = name
        self._begin = 0
        self._held = np.zeros((0, channels), np.float32)

    def read(self, first: int, last: int) -> np.ndarray:
        """Samples ``(last - first, channels)``."""
        parts, end = [self._held], self._begin + len(self._held)
        while end < last:
            block = next(self._blocks, None)
            if block is None:
                raise self._changed()
            parts.append(block)
            end += len(block)
        forget = min(max(0, first - self._keep - self._begin), len(self._held))
        if len(parts) > 1 or forget > 8 * self._keep:
            parts[0] = self._held[forget:]
            self._held = np.concatenate(parts)
            self._begin += forget
        return self._held[first - self._begin : last - self._begin]

    def finish(self, frames: int) -> None:
        """Refuse a song that has become longer."""
        if self._begin + len(self._held) > frames or next(self._blocks, None) is not None:
            raise self._changed()

    def _changed(self) -> ConfigError:
        return ConfigError(f"{self._name} changed while it was read; try again.")


class _Frames:
    """Frames of masks as they come, read between frames; forgets those before the last reading."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks = blocks
        self._begin = 0
        self._held = next(blocks)

    def at(self, times: np.ndarray) -> np.ndarray:
        """Masks ``(wanted, times, rows)``, linear between frames; the last frame holds on."""
        low = np.floor(times).astype(int)
        parts, end = [self._held], self._begin + self._held.shape[1]
        while end < low[-1] + 2 and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            end += block.shape[1]
        held = np.concatenate(parts, axis=1) if len(parts) > 1 else self._held
        # The grid's rounding may reach past the last frame.
        share = (times - low).astype(np.float32)[:, None]
        low = np.minimum(low, end - 1)
        high = np.minimum(low + 1, end - 1)
        mask = (1 - share) * held[:, low - self._begin] + share * held[:, high - self._begin]
        self._held = held[:, low[0] - self._begin :]
        self._begin = int(low[0])
        return mask


@dataclass(frozen=True)
class _Mono:
    """A block of the downmix at the study rate, and how many samples of the song it took."""

    samples: np.ndarray
    used: int


def _downmixed(song) -> Iterator[np.ndarray]:
    """Mean of the channels, block by block, as ``stems.decode`` takes it."""
    for block in song.blocks():
        mono = downmix(block)
        if not np.isfinite(mono).all() or not np.isfinite(block).all():
            raise ConfigError(
                f"{song.path} holds values that are not finite; export the song again."
            )
        if np.abs(block).max(initial=0.0) > LOUDEST:
            raise ConfigError(
                f"{song.path} holds values beyond {LOUDEST:g} times full scale; "
                "export the song again."
            )
        yield mono


def _resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[_Mono]:
    if rate == wanted:
        for block in blocks:
            yield _Mono(block, len(block))
        return
    stream = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    # One block behind, since the resampler must be told which is the last.
    before = None
    for block in blocks:
        if before is not None:
            yield _Mono(stream.resample_chunk(before), len(before))
        before = block
    if before is not None:
        yield _Mono(stream.resample_chunk(before, last=True), len(before))


def _windows(
    read: Callable[[int, int], np.ndarray],
    length: int,
    first: int,
    last: int,
    *,
    size: int,
    hop: int,
    channels: int,
) -> np.ndarray:
    """Windows ``(channels, frames, size)`` of a signal, padded as ``spectral.stft`` pads it.

    ``read(begin, end)`` gives samples ``(end - begin, channels)`` of a signal of ``length``.
    """
    whole = length + -length % hop
    half = size // 2
    begin, end = first * hop - half, (last - 1) * hop + half
    if begin >= 0 and end <= length:
        padded = np.ascontiguousarray(read(begin, end).T)
    else:
        index = np.arange(begin, end)
        if whole > half:
            index = np.abs(index)
            index = np.where(index >= whole, 2 * (whole - 1) - index, index)
        inside = (index >= 0) & (index < length)
        padded = np.zeros((channels, len(index)), np.float32)
        if inside.any():
            wanted = index[inside]
            begin, end = int(wanted.min()), int(wanted.max()) + 1
            padded[:, inside] = read(begin, end)[wanted - begin].T
    return np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::hop]


def _top_octave(mask: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Mean ``(wanted, frames)`` of masks over the octave below :data:`FADE`, by magnitude."""
    bins = mask.shape[1]
    band = slice(bins // 2, int(bins * FADE))
    weight = magnitude[band]
    total = weight.sum(axis=0)
    # In silence every bin counts alike.
    weight = np.where(total > 0, weight / np.where(total > 0, total, 1), 1 / len(weight))
    return (mask[:, band] * weight).sum(axis=1)


@functools.lru_cache(maxsize=4)
def _hann(size: int) -> np.ndarray:
    return hann(size).astype(np.float32)


# ----------------------------------------------------------------------------- arrays and files


def requests(
    texts: Sequence[str] | None = None, model: str | None = None
) -> dict[str, np.ndarray | None]:
    """What is asked of a model.

    Parameters
    ----------
    texts
        Such as ``"vocals"``, ``"vocals=0.5"`` or ``"vocals+drums"`` (their sum, in one estimate);
        every instrument of the model, one by one, if not given.
    model
        Name of the network; None if it is not known yet.

    Returns
    -------
    dict
        Name of the estimate, such as ``"vocals=0.5+drums"``, to its condition ``(instruments,)``;
        to None for a dedicated U-Net.

    Raises
    ------
    ConfigError
        If a text makes no sense, is given twice, or asks a dedicated U-Net for something else.
    """
    only = model.removeprefix("unet_") if model in UNETS else None
    wanted = {}
    for text in texts or ([only] if only else INSTRUMENTS):
        levels = conditions.parse(text)
        if only and levels != {only: 1.0}:
            raise ConfigError(f"The model is a U-Net for {only} alone; it cannot give {text!r}.")
        name = "+".join(
            instrument if level == 1 else f"{instrument}={level:g}"
            for instrument, level in levels.items()
        )
        if name in wanted:
            raise ConfigError(f"{text!r} is asked for twice.")
        wanted[name] = None if only else conditions.vector(levels)
    return wanted


def separate(
    song: np.ndarray | str | os.PathLike,
    rate: int | None = None,
    *,
    instruments: Sequence[str] | None = None,
    model: str | os.PathLike | SongSeparator | None = None,
    residual: bool = False,
    highs: str = "extend",
    overlap: float = OVERLAP,
    out: str | os.PathLike = "separated",
    format: str = "wav",
    force: bool = False,
) -> dict[str, np.ndarray] | dict[str, Path]:
    """Separate an array, or a file into files.

    Parameters
    ----------
    song
        ``(samples,)`` or ``(samples, channels)``, or a path.
    rate
        Of the array, in Hz.
    instruments
        See :func:`requests`.
    model
        See :func:`cunet_lib.separation.catalog.find`; or a :class:`SongSeparator`, which saves loading it
        again for the next song.
    residual
        Also give what is left of the mixture when all estimates are taken away.
    highs, overlap
        See :class:`SongSeparator`; not used if ``model`` is one.
    out, format, force
        For a file: folder to write to, one of :data:`cunet_lib.signal.audio.FORMATS`, and whether files
        there may be replaced.

    Returns
    -------
    dict
        Name of each estimate to its samples, float32 and of the array's shape; or, for a file, to
        ``<out>/<song>/<name>.<format>``.

    Raises
    ------
    ConfigError
        If the song or what is asked for makes no sense; nothing is written then.
    """
    requests(instruments)
    if isinstance(model, SongSeparator):
        separator = model
    else:
        found = catalog.find(None if model is None else os.fspath(model))
        requests(instruments, found.model)
        separator = SongSeparator(found, highs=highs, overlap=overlap)
    if isinstance(song, np.ndarray):
        return _separate_array(separator, song, rate, instruments, residual)
    if rate is not None:
        raise ConfigError("A file says its own rate; give rate with an array only.")
    return separate_file(
        separator,
        audio.open_audio(os.fspath(song)),
        instruments=instruments,
        residual=residual,
        out=Path(out),
        format=format,
        force=force,
    ).files


def _separate_array(separator, samples, rate, instruments, residual) -> dict[str, np.ndarray]:
    low, high = audio.MINIMUM_RATE, audio.MAXIMUM_RATE
    if not isinstance(rate, int | float | np.number) or rate % 1 or not low <= rate <= high:
        raise ConfigError(
            f"An array needs its rate, a whole number of Hz between {low} and {high} "
            f"(given: {rate!r})."
        )
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        raise ConfigError(
            "An array of audio has the shape (samples,) or (samples, channels) and holds floating "
            f"point (given: {samples.shape}, {samples.dtype})."
        )
    columns = samples[:, None] if samples.ndim == 1 else samples
    if columns.shape[1] > MOST_CHANNELS:
        raise ConfigError(
            f"An array of audio has at most {MOST_CHANNELS} channels, and they are its second axis "
            f"(given: {samples.shape}); transpose it."
        )
    song = _Array(np.asarray(columns, np.float32), int(rate))
    wanted = separator.requests(instruments)
    frames, _, stream = separator.stream(song, list(wanted.values()))
    whole = np.zeros((len(wanted) + residual, frames, song.channels), np.float32)
    place = 0
    for mixture, estimates in stream:
        end = place + len(mixture)
        whole[: len(wanted), place:end] = estimates
        if residual:
            whole[-1, place:end] = mixture - estimates.sum(axis=0)
        place = end
    names = [*wanted, RESIDUAL] if residual else [*wanted]
    return {name: part.reshape(samples.shape) for name, part in zip(names, whole, strict=True)}


@dataclass(frozen=True)
class Separated:
    """What became of one file.

    Attributes
    ----------
    files
        Name of each estimate to its file.
    seconds
        Length of the song.
    took
        Seconds of work.
    clipped
        Names of estimates whose peaks a format without floating point has cut.
    """

    files: Mapping[str, Path]
    seconds: float
    took: float
    clipped: tuple[str, ...]


def targets(
    path: Path, names: Iterable[str], *, out: Path, format: str, force: bool
) -> dict[str, Path]:
    """Files to write for a song: ``<out>/<song>/<name>.<format>``.

    Raises
    ------
    ConfigError
        If one exists and ``force`` does not allow to replace it, or is the song itself or a folder;
        or if nothing can be written there.
    """
    folder = out / (path.stem.strip(".") or path.name.strip(".") or "song")
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    if not there.is_dir():
        raise ConfigError(f"{there} is a file and no folder; choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise _unwritable(there, os.strerror(errno.EACCES))
    files = {name: folder / f"{name}.{format}" for name in names}
    for file in files.values():
        if not file.exists():
            continue
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; move it away, or choose another --out.")
        if file.samefile(path):
            raise ConfigError(f"{path} would be overwritten by its own part; choose another --out.")
        if not force:
            raise ConfigError(f"{file} exists; --force replaces it, --out writes elsewhere.")
    return files


def separate_file(
    separator: SongSeparator,
    song: audio.AudioFile,
    *,
    instruments: Sequence[str] | None = None,
    residual: bool = False,
    out: Path = Path("separated"),
    format: str = "wav",
    force: bool = False,
    label: str | None = None,
) -> Separated:
    """Separate a file into files, all of them or none.

    Parameters
    ----------
    separator, song
        Model and file.
    instruments, residual, out, format, force
        As for :func:`separate`.
    label
        Shown with the progress; none is shown if not given.

    Raises
    ------
    ConfigError
        If the song is damaged, the format cannot hold it, files are in the way or do not fit on
        the disk.
    """
    began = time.perf_counter()
    wanted = separator.requests(instruments)
    names = [*wanted, RESIDUAL] if residual else [*wanted]
    audio.check_format(format, song.rate, song.channels)
    files = targets(song.path, names, out=out, format=format, force=force)
    with _fresh_folder(out) as scratch:
        frames, chunks, stream = separator.stream(song, list(wanted.values()), scratch=scratch)
        _check_disk(scratch, 4 * frames * song.channels * len(names), song.path)
        partial = {name: scratch / file.name for name, file in files.items()}
        if label:
            stream = progress(stream, label, chunks)
        peaks = _write(stream, partial, format, song, frames)
        _put(partial, files)
    clipped = () if format in audio.EXACT else tuple(n for n, peak in peaks.items() if peak > 1)
    seconds = frames / song.rate
    return Separated(files, seconds, time.perf_counter() - began, clipped)


def _write(stream, partial, format, song, frames) -> dict[str, float]:
    """Write estimates, and what is left if there is a file for it.

    Returns their peaks, 0 in a format that clips nothing.
    """
    peaks = dict.fromkeys(partial, 0.0)
    waiting = 0
    try:
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(
                    audio.create(
                        path, format, rate=song.rate, channels=song.channels, frames=frames
                    )
                )
                for path in partial.values()
            ]
            for mixture, estimates in stream:
                parts = [*estimates]
                if len(parts) < len(writers):
                    parts.append(mixture - estimates.sum(axis=0))
                waiting += len(mixture)
                flush = waiting >= FLUSH
                if flush:
                    waiting = 0
                for name, writer, part in zip(partial, writers, parts, strict=True):
                    if format not in audio.EXACT:
                        peaks[name] = max(peaks[name], float(np.abs(part).max(initial=0.0)))
                    for first in range(0, len(part), audio.BLOCK):
                        writer.write(part[first : first + audio.BLOCK])
                    if flush:
                        writer.flush()
    except (soundfile.LibsndfileError, AssertionError) as error:
        # soundfile asserts that all was written; a full disk is what breaks that.
        raise ConfigError(
            f"{song.path} could not be separated: its parts could not be written; free some space "
            "on the disk."
        ) from error
    return peaks


_LOCK = ".lock"
"""Held in a temporary folder while its process lives."""


@contextlib.contextmanager
def _fresh_folder(out: Path) -> Iterator[Path]:
    """A temporary folder in ``out``; gone at the end, and so is ``out`` if nothing came of it.

    Those that killed processes left there go first.
    """
    try:
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    try:
        with locked(scratch / ".locking", f"Another process works in {scratch}."):
            # A file of this other name is held from its first moment on. Systems without locks
            # have none.
            with contextlib.suppress(FileNotFoundError):
                (scratch / ".locking").rename(scratch / _LOCK)
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()


def _remove_abandoned(out: Path) -> None:
    """Delete temporary folders in ``out`` whose processes were killed, and no other's."""
    for lock in out.glob(f".partial-*/{_LOCK}"):
        if abandoned(lock):
            shutil.rmtree(lock.parent, ignore_errors=True)


def _unwritable(place: Path, reason: str) -> ConfigError:
    return ConfigError(f"Nothing can be written to {place}: {reason}; choose another --out.")


def _check_disk(folder: Path, wanted: int, song: Path) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise ConfigError(
            f"{song} needs {wanted / 1e9:.1f} GB for its parts and the disk has "
            f"{free / 1e9:.1f} GB left; choose another --out."
        )


def _put(partial: Mapping[str, Path], files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        path.parent.mkdir(exist_ok=True)
        partial[name].replace(path)


def separate_files(
    paths: Sequence[Path],
    found: catalog.Found,
    *,
    highs: str = "extend",
    overlap: float = OVERLAP,
    say: Callable[[str], None] = print,
    complain: Callable[[str], None] = print,
    **options,
) -> int:
    """Separate files one after the other; one that fails does not stop the others.

    Parameters
    ----------
    paths
        Songs.
    found
        The model; it is loaded when the first song turns out to be readable.
    highs, overlap
        As for :class:`SongSeparator`.
    say, complain
        Get a line for each song that is done, or failed.
    options
        As for :func:`separate_file`.

    Returns
    -------
    int
        Number of songs that failed.
    """
    separator = None
    taken: dict[Path, Path] = {}
    failed = 0
    for path in paths:
        try:
            song = audio.open_audio(path)
            place = targets(path, ["x"], out=options["out"], format=options["format"], force=True)[
                "x"
            ].parent
            if place in taken:
                raise ConfigError(
                    f"{path} would be written to the folder of {taken[place]}; separate it by "
                    "itself with another --out."
                )
            separator = separator or SongSeparator(found, highs=highs, overlap=overlap)
            done = separate_file(separator, song, label=printable(path.name), **options)
            taken[place] = path
        except ConfigError as error:
            failed += 1
            complain(str(error))
        except OSError as error:
            failed += 1
            reason = error.strerror or error
            complain(printable(f"{path} could not be separated: {reason}; look after the disk."))
        else:
            speed = done.seconds / done.took
            name = printable(path)
            say(
                f"{name}: {done.seconds:.1f} s of music in {done.took:.1f} s ({speed:.3g} times "
                f"real time), in {printable(place)}"
            )
            if done.clipped:
                say(
                    f"{name}: peaks of {', '.join(done.clipped)} are clipped; "
                    "--format wav keeps them."
                )
    return failed
