"""Songs of any length, rate and number of channels, separated block by block.

The network hears what it was trained on: the mean of the channels, resampled to the study rate,
each song's magnitudes divided by their largest. Its masks are then applied to the song itself:

1. A first pass reads the song, keeps the resampled downmix in a temporary file (32 kB a second),
   and notes the song's length and the largest magnitude.
2. :class:`cunet_lib.separation.separator.Separator` computes masks of the downmix, a stretch of
   about a minute at a time; neighbouring stretches share what neighbouring patches share, and are
   cross-faded as these are, so the masks are those of the whole song.
3. A second pass takes the song's own STFT, every channel at its own rate, with windows and hops
   that last as long as the study's. Masks, interpolated in time and frequency to that STFT, are
   applied to all channels alike, which keeps the stereo image. Overlap-add gives samples back.

Blocks decide only what is in memory at a time, so there are no seams. Masks are computed a stretch
ahead, and blocks of samples one ahead of what writes the files.

Above half the study rate the network hears nothing. There the mask is, frame by frame, the mean of
the mask over the top octave that it does hear, weighted by the mixture's magnitudes
(``highs="extend"``); it fades in over that octave's last tenth, where the resampling filter rolls
off. Weights are the same for every instrument, so masks that add up to one do so in the highs.
``highs="cut"`` lets nothing through above, as the study's own evaluation.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import soxr

from cunet_lib.core import hardware
from cunet_lib.core.settings import ConfigError, Signal
from cunet_lib.separation.catalog import Found
from cunet_lib.signal.audio import AudioFile, check_samples, downmix
from cunet_lib.signal.spectral import hann, stft

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
0.000 dB (standard deviation over songs 0.11 dB), and at most 0.005 dB with half or double the
overlap or length.
"""

AT_ONCE = 2
"""Batches of patches that the network computes side by side."""

BLOCK_VALUES = 1 << 18
"""About how many samples of windows are in memory at a time, over all channels: 1 MB, which stays
in a processor's cache from one step to the next."""


class SongSeparator:
    """A trained model, ready to separate songs at their own rate and channels.

    Patches are :data:`PATCHES` times as long as in training, and the network has its normalisation
    folded away (:func:`cunet_lib.models.unet.folded`): more than half as fast again, for masks that
    score alike (:data:`OVERLAP`).

    Parameters
    ----------
    found
        The model, as :func:`cunet_lib.separation.catalog.find` gives it.
    highs
        ``"extend"`` or ``"cut"``: what becomes of frequencies that the network does not hear.
    overlap
        What a patch shares with the next, in patches of the training's length, 0 to below 1.
    precision
        Keras dtype policy of the network. If not given, bfloat16 on processors that multiply it
        themselves, float32 on others and on GPUs. The mask is float32 in any case. On the demo's 8
        validation songs (the shipped model) bfloat16 changes the parts' plain SDR by -0.0015 dB in
        the mean (standard deviation over songs 0.002 dB), and the parts by 45 dB below themselves.

    Raises
    ------
    ConfigError
        If the model cannot be loaded, does not fit its settings, or ``highs`` or ``overlap`` makes
        no sense.
    """

    def __init__(
        self,
        found: Found,
        *,
        highs: str = "extend",
        overlap: float = OVERLAP,
        precision: str | None = None,
    ):
        # Keras takes seconds to be imported; wrong requests are told before.
        from cunet_lib.models.unet import folded
        from cunet_lib.models.weights import load
        from cunet_lib.separation.separator import Separator

        if highs not in HIGHS:
            raise ConfigError(f"highs must be one of {', '.join(HIGHS)}, not {highs!r}.")
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap must be at least 0 and below 1, not {overlap:g}.")
        quick = hardware.computes_bfloat16() and not hardware.gpus()
        self.precision = precision or ("mixed_bfloat16" if quick else "float32")
        model = load(found.path, precision=self.precision)
        bins = model.inputs[0].shape[1]
        if bins != found.signal.bins:
            raise ConfigError(
                f"{found.path} takes {bins} frequency bins, its settings say "
                f"{found.signal.bins}; put the run.json of its training beside it."
            )
        self.model = model.name
        self.highs = highs
        self.signal = found.signal
        size = max(1, found.separate.batch_size // PATCHES)
        joined = found.separate.model_copy(
            update={"overlap": overlap / PATCHES, "batch_size": size}
        )
        long = folded(model, frames=PATCHES * model.inputs[0].shape[2])
        self.separator = Separator(long, found.signal, joined, at_once=AT_ONCE)

    def stream(
        self, song: AudioFile, wanted: Sequence[np.ndarray | None], *, scratch: Path | None = None
    ) -> tuple[int, int, Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Separate a song block by block.

        Parameters
        ----------
        song
            A file, or what has a path, a rate, channels and blocks like one; it is read twice.
        wanted
            Conditions ``(instruments,)``, or None for a dedicated U-Net.
        scratch
            Folder of the temporary file; the system's if not given.

        Returns
        -------
        frames
            Length of the song in samples per channel.
        blocks
            Number of blocks to come.
        stream
            Blocks of the mixture ``(samples, channels)`` and of the estimates ``(wanted, samples,
            channels)``, float32, in order and without gaps.

        Raises
        ------
        ConfigError
            If the song is empty, damaged, or holds values that are not finite.
        """
        heard = _Downmix(song, self.signal, scratch)
        grid = _Grid.of(self.signal, song.rate, heard.frames, song.channels)
        return (
            heard.frames,
            -(-grid.frames // grid.step),
            _ahead(self._apply(song, heard, grid, wanted)),
        )

    def _masks(self, heard: _Downmix, grid: _Grid, wanted) -> Iterator[np.ndarray]:
        """Masks ``(wanted, frames, rows)`` of each block of the song's frames, in order.

        Rows are the frequency bins, the Nyquist bin and, last, the mean over the top octave. In
        time masks are linear between frames of the study; the last of these holds on.
        """
        separate, length = self.separator.separate, self.separator.frames
        step = max(1, round(length * (1.0 - separate.overlap)))
        shared, stretch = length - step, AT_ONCE * separate.batch_size * step
        fade = np.arange(1, shared + 1, dtype=np.float32) / (shared + 1)
        given = None if wanted[0] is None else np.stack(wanted)
        before = held = None
        begin = done = 0
        for first in range(0, max(1, heard.total - shared), stretch):
            last = min(heard.total, first + stretch + shared)
            magnitude = heard.magnitude(first, last)
            masks = self.separator.masks(magnitude, given, peak=heard.peak)
            if before is not None:
                masks[..., :shared] = fade * masks[..., :shared] + (1 - fade) * before
            ready = last - first if last == heard.total else stretch
            before, masks = masks[..., ready:], masks[..., :ready]
            top = _top_octave(masks[:, : self.signal.bins], magnitude[:, :ready])
            # What comes next takes whole frames.
            rows = np.ascontiguousarray(np.concatenate([masks, top], axis=1).swapaxes(1, 2))
            held = rows if held is None else np.concatenate([held, rows], axis=1)
            end = begin + held.shape[1]
            while done < grid.frames:
                times = np.arange(done, min(grid.frames, done + grid.step)) * grid.ratio
                if last < heard.total and times[-1] + 2 > end:
                    break
                done += len(times)
                low = np.floor(times).astype(int)
                share = (times - low).astype(np.float32)[:, None]
                # The grid's rounding may reach past the last frame.
                low, high = (np.minimum(each, end - 1) - begin for each in (low, low + 1))
                yield (1 - share) * held[:, low] + share * held[:, high]
                held, begin = held[:, low[0] :], begin + int(low[0])

    def _apply(self, song, heard, grid, wanted) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The song's own STFT, masked, and its inverse."""
        size, hop = grid.size, grid.hop
        window = hann(size).astype(np.float32)
        bands = _bands(grid, self.signal)

        def add(spectrum, estimate, mask):
            windows = scipy.fft.irfft(_masked(spectrum, mask, bands, self.highs), n=size, axis=-1)
            windows *= window
            for frame in range(windows.shape[1]):
                estimate[:, frame * hop : frame * hop + size] += windows[:, frame]

        tail = np.zeros((len(wanted), song.channels, size - hop), np.float32)
        tail_weight = np.zeros(size - hop, np.float32)
        ahead = _ahead(self._masks(heard, grid, wanted))
        # The thread that reads the temporary file ends before that is closed.
        with heard.file, contextlib.closing(ahead), ThreadPoolExecutor(hardware.cores()) as pool:
            first = 0
            for samples, mask in zip(_blocks(song, heard.frames, grid), ahead, strict=True):
                padded = np.ascontiguousarray(samples.T)
                windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::hop]
                spectrum = scipy.fft.rfft(windows * window, axis=-1)
                count = windows.shape[1]
                estimates = np.zeros((len(wanted), *padded.shape), np.float32)
                weight = np.zeros(padded.shape[1], np.float32)
                estimates[..., : size - hop] += tail
                weight[: size - hop] += tail_weight
                list(pool.map(functools.partial(add, spectrum), estimates, mask))
                for place in range(0, count * hop, hop):
                    weight[place : place + size] += window**2
                begin = first * hop - size // 2  # of these samples in the song
                first += count
                done = padded.shape[1] if first == grid.frames else count * hop
                tail, tail_weight = estimates[..., done:], weight[done:]
                # Half a window before the first sample, and what follows the last, is padding.
                inside = slice(max(0, -begin), min(done, heard.frames - begin))
                if inside.stop > inside.start:
                    ready = estimates[..., inside] / weight[inside]
                    yield samples[inside], np.moveaxis(ready, 1, 2)


class _Downmix:
    """Mean of a song's channels at the study rate, in a temporary file.

    Attributes
    ----------
    frames
        Samples per channel of the song.
    total
        Frames of the downmix's spectrogram.
    peak
        Its largest magnitude; 1 for silence.
    """

    def __init__(self, song: AudioFile, signal: Signal, scratch: Path | None):
        self.signal = signal
        self.file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        self.frames = samples = 0
        resampler = soxr.ResampleStream(
            song.rate, signal.sample_rate, 1, dtype="float32", quality="HQ"
        )
        same = song.rate == signal.sample_rate
        for mono in itertools.chain(_ahead(_checked(song)), [np.zeros(0, np.float32)]):
            self.frames += len(mono)
            last = not len(mono)
            heard = mono if same else resampler.resample_chunk(mono, last=last)
            samples += len(heard)
            self.file.write(heard.tobytes())
        if not self.frames:
            self.file.close()
            raise ConfigError(f"{song.path} holds no samples; get the song again.")
        self.total = 1 + -(-samples // signal.hop)
        firsts = range(0, self.total, 512)
        self.peak = max(float(self.magnitude(each, each + 512).max()) for each in firsts) or 1.0

    def magnitude(self, first: int, last: int) -> np.ndarray:
        """Frames of the magnitude spectrogram ``(n_fft // 2 + 1, frames)``, as of the whole."""
        hop = self.signal.hop
        # Windows of so many frames reach beyond an end.
        context = -(-self.signal.n_fft // (2 * hop))
        begin = max(0, first - context)
        self.file.seek(4 * begin * hop)
        content = self.file.read(4 * (last + context - begin) * hop)
        spectrogram = stft(np.frombuffer(content, np.float32), self.signal)
        return np.abs(spectrogram[:, first - begin : last - begin])


@dataclass(frozen=True)
class _Grid:
    """STFT of a song at its own rate, with windows and hops as long as the study's.

    Sizes are rounded to what transforms quickly; masks are interpolated, so nothing has to match.
    """

    rate: int
    size: int
    hop: int
    frames: int
    step: int  # frames of a block
    ratio: float  # frames of the study per frame

    @classmethod
    def of(cls, signal: Signal, rate: int, samples: int, channels: int) -> _Grid:
        size = scipy.fft.next_fast_len(round(signal.n_fft * rate / signal.sample_rate), real=True)
        while size % 2:
            size = scipy.fft.next_fast_len(size + 1, real=True)
        hop = max(1, round(signal.hop * rate / signal.sample_rate))
        step = max(4, BLOCK_VALUES // (channels * size))
        ratio = hop * signal.sample_rate / (rate * signal.hop)
        return cls(rate, size, hop, 1 + -(-samples // hop), step, ratio)


def _bands(grid: _Grid, signal: Signal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How a song's bins take masks at the study's frequencies.

    Returns
    -------
    low, share, fading
        For each bin that the network hears: the mask's row below it, the share of the next row,
        and the share of the extension. Bins above take the extension alone.
    """
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
    return low, share.astype(np.float32), beyond[:heard].astype(np.float32)


def _masked(spectrum: np.ndarray, mask: np.ndarray, bands, highs: str) -> np.ndarray:
    """Masked spectrum ``(channels, frames, bins)`` complex64; the mask is ``(frames, rows)``."""
    low, share, fading = bands
    gain, above = (1 - share) * mask[:, low] + share * mask[:, low + 1], mask[:, -1:]
    if highs == "extend":
        gain = (1 - fading) * gain + fading * above
    # Real gains times pairs of real numbers: complex products would take twice as long.
    parts, heard = spectrum.view(np.float32), 2 * len(low)
    masked = np.empty_like(parts)
    np.multiply(parts[..., :heard], np.repeat(gain, 2, axis=-1), out=masked[..., :heard])
    np.multiply(parts[..., heard:], above * (highs == "extend"), out=masked[..., heard:])
    return masked.view(np.complex64)


def _checked(song: AudioFile) -> Iterator[np.ndarray]:
    """Mean of the channels ``(samples,)``, block by block."""
    for block in song.blocks():
        check_samples(song.path, block)  # an array's, which no file's reader has checked
        if len(block):
            yield downmix(block)


def _blocks(song: AudioFile, frames: int, grid: _Grid) -> Iterator[np.ndarray]:
    """Blocks of the song as ``spectral.stft`` pads it, with all samples of their windows.

    Each has ``(step - 1) * hop + size`` samples ``(samples, channels)``, the last one fewer, and
    begins ``step * hop`` samples after the one before.
    """
    size, hop, half = grid.size, grid.hop, grid.size // 2
    move, whole = grid.step * hop, (grid.step - 1) * hop + size
    held, count, begun = np.zeros((0, song.channels), np.float32), 0, False
    for block in itertools.chain(song.blocks(), [None]):
        ended = block is None
        count += 0 if ended else len(block)
        if count > frames or (ended and count < frames):
            raise ConfigError(f"{song.path} changed while it was read; try again.")
        if ended:
            block = np.zeros((-count % hop, song.channels), np.float32)
            count += len(block)
        held = np.concatenate([held, block])
        reflected = count > half  # else the song is too short for that, or has just begun
        if not begun and (reflected or ended):
            front = (
                held[half:0:-1] if reflected else np.zeros_like(held, shape=(half, song.channels))
            )
            held, begun = np.concatenate([front, held]), True
        if ended:
            back = held[-2 : -2 - half : -1] if reflected else np.zeros_like(front)
            held = np.concatenate([held, back])
        # Until the end, what its reflection will take is kept.
        while begun and len(held) >= (size if ended else whole + size):
            yield held[:whole]
            held = held[move:]


def _ahead(blocks: Iterator) -> Iterator:
    """The same blocks; a thread computes the next one while the last one is used."""
    worker = ThreadPoolExecutor(1)
    # Ctrl-C while a thread starts makes its pool lose sight of it: nothing is at work then yet.
    worker.submit(int).result()
    try:
        block = worker.submit(next, blocks, None).result()
        while block is not None:
            coming = worker.submit(next, blocks, None)
            yield block
            block = coming.result()
    finally:
        worker.shutdown(cancel_futures=True)
        # What the blocks need, files and threads of their own, goes with them.
        if hasattr(blocks, "close"):
            blocks.close()


def _top_octave(mask: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Mean ``(wanted, 1, frames)`` of masks over the octave below :data:`FADE`, by magnitude."""
    bins = mask.shape[1]
    band = slice(bins // 2, int(bins * FADE))
    weight = magnitude[band]
    total = weight.sum(axis=0)
    # In silence every bin counts alike.
    weight = np.where(total > 0, weight / np.where(total > 0, total, 1), 1 / len(weight))
    return (mask[:, band] * weight).sum(axis=1, keepdims=True)
