"""Training batches: waveform patches, conditions and augmentation, seeded by step.

A batch is a pure function of (seed, step), so any number of threads, or a run that was interrupted,
sees the same sequence. Waveforms are divided by their track's magnitude scale: the magnitudes that
the graph takes from them are then within [0, 1] before any remixing (paper, section 4.1).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import keras
import numpy as np
import scipy.fft
import scipy.signal

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS
from cunet_lib.models.conditions import all_one_hot, draw
from cunet_lib.preprocess.store import Entry, Store
from cunet_lib.signal.spectral import pad_centre


@dataclass(frozen=True)
class Batch:
    """Waveform patches and what is asked of them.

    Attributes
    ----------
    mixture, target
        ``(batch, patch_samples)`` float32.
    condition
        ``(batch, instruments)`` float32.
    tracks
        Names of the training tracks that it is cut from, in order, without repetition.
    """

    mixture: np.ndarray
    target: np.ndarray
    condition: np.ndarray
    tracks: tuple[str, ...] = ()

    def pair(self, *, conditioned: bool) -> tuple:
        """Inputs and target of a C-U-Net, or of a dedicated U-Net, which sees no condition."""
        return (self.mixture, self.condition) if conditioned else self.mixture, self.target


class _Track:
    """Memory-mapped stems of one track that can be sliced beyond both ends."""

    def __init__(self, store: Store, entry: Entry, samples: int):
        self.name = entry.name
        self.audio = np.asarray(store.audio(entry))
        self.scale = np.float32(1.0 / entry.scale)
        self.samples = samples
        # A track shorter than a patch is padded with silence at its end.
        self.starts = max(entry.samples - samples, 0) + 1

    def cut(self, row: int, start: int, out: np.ndarray, length: int = 0) -> None:
        """Write the samples of one stem (row 0: the mixture) from a place on to ``out``.

        With a ``length``, so many samples are resampled to a patch: faster and higher, or slower.
        """
        part = self.audio[row, start : start + (length or self.samples)]
        if length:
            part = scipy.signal.resample(np.pad(part, (0, length - len(part))), self.samples)
        np.multiply(part, self.scale, out=out[: len(part)])
        out[len(part) :] = 0


class TrainingBatches:
    """Random batches from the training tracks of a store only.

    ``model`` is ``unet_<instrument>`` or a C-U-Net variant: each patch draws a condition then, by
    default a random instrument. Patch size, batch size, kinds of condition, and the probabilities
    of remixing and of progressive conditions are settings; ``seed`` is the run's.
    """

    def __init__(self, store: Store, settings: Profile, *, model: str, seed: int):
        self.settings = settings
        self.seed = seed
        self.tracks = [
            _Track(store, entry, settings.patch_samples) for entry in store.split("train")
        ]
        if not self.tracks:
            raise ConfigError(f"The store {store.folder} has no training tracks.")
        # Long tracks are drawn more often: every start is equally likely.
        starts = np.array([track.starts for track in self.tracks], float)
        self._draw = np.cumsum(starts / starts.sum())
        self.instrument = INSTRUMENTS.index(model.removeprefix("unet_")) if model in UNETS else None
        progressive = model in VARIANTS and VARIANTS[model].progressive
        self.progressive = settings.train.progressive if progressive else 0.0

    def batch(self, step: int) -> Batch:
        """The batch of one training step."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        size, train = self.settings.train.batch_size, self.settings.train
        samples = self.settings.patch_samples
        mixture = np.empty((size, samples), np.float32)
        target = np.empty((size, samples), np.float32)
        condition = np.empty((size, len(INSTRUMENTS)), np.float32)
        # Several conditions of one mixture in a batch show the control network what they change.
        group = 1 if self.instrument is not None else train.conditions_per_mixture
        # Everything is written where it stays: fresh memory costs more than the sums.
        sources = np.empty((len(INSTRUMENTS), samples), np.float32)
        tracks = set()
        for first in range(0, size, group):
            asked = self._ask(rng, group)
            wanted = [levels for _, levels in asked]
            tracks |= self._mix(rng, *self._place(rng), wanted, mixture[first], sources)
            for row, (kind, levels) in enumerate(asked, start=first):
                # The mixture stays as it is: z is a fader of the target alone.
                if kind == "one_hot" and rng.random() < self.progressive:
                    levels = levels * np.float32(rng.random())
                if row > first:
                    mixture[row] = mixture[first]
                _weighted_sum(sources, levels, target[row])
                condition[row] = levels
        return Batch(mixture, target, condition, tuple(sorted(tracks)))

    def _ask(self, rng: np.random.Generator, count: int) -> list[tuple[str, np.ndarray]]:
        """Kinds and levels ``(instruments,)`` of the conditions that a mixture is asked for.

        Single instruments do not repeat until all have had their turn.
        """
        if self.instrument is not None:
            # A dedicated U-Net sees no condition, so its target is never scaled.
            return [("fixed", all_one_hot()[self.instrument])]
        kinds = self.settings.train.conditions
        asked, singles = [], []
        for _ in range(count):
            # A single kind takes no random number.
            kind = kinds[int(rng.integers(len(kinds)))] if len(kinds) > 1 else kinds[0]
            levels = draw(kind, rng)
            if kind == "one_hot" and count > 1:
                singles = singles or rng.permutation(all_one_hot()).tolist()
                levels = np.array(singles.pop(), np.float32)
            asked.append((kind, levels))
        return asked

    def _mix(
        self,
        rng: np.random.Generator,
        track: _Track,
        start: int,
        asked: list[np.ndarray],
        mix: np.ndarray,
        sources: np.ndarray,
    ) -> set[str]:
        """Fill the mixture ``(samples,)`` and its sources ``(instruments, samples)`` of a place.

        Returns the names of the tracks that they come from. Only sources that are asked for are
        read, unless others are mixed in, or what is heard of them varies; the rest of
        ``sources`` stays as it was. With probability ``train.remix`` the instruments that the
        first condition does not want come from other places; the wanted ones stay together. What
        comes from one place has one speed (``train.speed``), and each instrument a level of its own
        (``train.gain_db``).
        """
        train = self.settings.train
        remixed, varied = rng.random() < train.remix, train.speed or train.gain_db
        if not remixed and not varied:
            # Row 0 of a track is its mixture.
            track.cut(0, start, mix)
            for needed in np.flatnonzero(np.any(asked, axis=0)):
                track.cut(1 + needed, start, sources[needed])
            return {track.name}
        together, names = (asked[0] != 0) | (not remixed), {track.name}
        length = self._length(rng)
        for row in np.flatnonzero(together):
            track.cut(1 + row, start, sources[row], length)
            self._change_level(rng, sources[row])
        _weighted_sum(sources, together.astype(np.float32), mix)
        for other in np.flatnonzero(~together):
            other_track, other_start = self._place(rng)
            other_track.cut(1 + other, other_start, sources[other], self._length(rng))
            self._change_level(rng, sources[other])
            mix += sources[other]
            names.add(other_track.name)
        return names

    def _length(self, rng: np.random.Generator) -> int:
        """Samples that become a patch, if speeds vary; else 0, without a random number."""
        speed, samples = self.settings.train.speed, self.settings.patch_samples
        if not speed:
            return 0
        # A length whose Fourier transform is fast.
        return scipy.fft.next_fast_len(
            round(samples * rng.uniform(1 - speed, 1 + speed)), real=True
        )

    def _change_level(self, rng: np.random.Generator, source: np.ndarray) -> None:
        if most := self.settings.train.gain_db:
            source *= np.float32(10 ** (rng.uniform(-most, most) / 20))

    def _place(self, rng: np.random.Generator) -> tuple[_Track, int]:
        place = int(np.searchsorted(self._draw, rng.random(), side="right"))
        track = self.tracks[min(place, len(self.tracks) - 1)]
        return track, int(rng.integers(track.starts))


class Ahead(keras.utils.PyDataset):
    """Endless batches from a step on, as Keras trains with them on every backend.

    They are what :meth:`Batch.pair` gives, made a few steps ahead of where they are asked for.
    """

    STEPS, THREADS = 4, 2

    def __init__(self, batches: TrainingBatches, first: int = 0):
        super().__init__()
        self._batches, self._first = batches, first
        self._pool = ThreadPoolExecutor(self.THREADS)
        self._made: dict[int, Future] = {}

    @property
    def num_batches(self) -> None:
        """Endless; ``steps_per_epoch`` says where epochs end."""

    def __getitem__(self, index: int) -> tuple:
        """The batch of the step that is ``index`` after the first."""
        for step in range(index, index + self.STEPS):
            if step not in self._made:
                self._made[step] = self._pool.submit(self._batches.batch, self._first + step)
        conditioned = self._batches.instrument is None
        return self._made.pop(index).result().pair(conditioned=conditioned)


def _weighted_sum(sources: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None:
    """Write the sum of the sources whose level is not zero, times their levels, to ``out``."""
    wanted = np.flatnonzero(levels)
    if len(wanted) == 0:
        out[:] = 0
        return
    np.multiply(sources[wanted[0]], levels[wanted[0]], out=out)
    for row in wanted[1:]:
        out += sources[row] * levels[row]


def validation_batch(store: Store, settings: Profile, *, model: str) -> Batch:
    """Fixed patches of the held-out training tracks, spread evenly over their time.

    Every patch is asked for each instrument (C-U-Net) or for the model's own (dedicated U-Net),
    without augmentation; whatever ``train.conditions`` is, so that losses stay comparable. At most
    ``train.validation_patches`` patches per instrument.
    """
    samples = settings.patch_samples
    step = settings.model.patch_frames * settings.signal.hop
    wanted = [model.removeprefix("unet_")] if model in UNETS else INSTRUMENTS
    places = []
    for entry in store.split("valid"):
        last = max(entry.samples + settings.signal.n_fft - samples, 0)
        places += [(entry, start) for start in range(0, last + 1, step)]
    if not places:
        raise ConfigError(f"The store {store.folder} has no validation tracks.")
    count = min(len(places), settings.train.validation_patches)
    chosen = [places[i] for i in np.linspace(0, len(places), count, endpoint=False).astype(int)]
    rows = []
    for entry, start in chosen:
        padded = pad_centre(store.audio(entry), settings.signal)[:, start : start + samples]
        padded = np.pad(padded, ((0, 0), (0, samples - padded.shape[1]))) / entry.scale
        for instrument in wanted:
            index = INSTRUMENTS.index(instrument)
            rows.append((padded[0], padded[1 + index], all_one_hot()[index]))
    return Batch(*(np.stack(column).astype(np.float32) for column in zip(*rows, strict=True)))
