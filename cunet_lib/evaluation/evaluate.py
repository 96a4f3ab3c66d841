"""Systems scored track by track, gathered in one long table.

What a score is stands in :mod:`cunet_lib.evaluation.metrics`. Also here: the two systems that bound
every model, the mixture itself as estimate (lower) and the ideal ratio mask (upper), and the files
of sound that listeners get.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cunet_lib.core.files import code_hash, write_atomically
from cunet_lib.core.processes import map_tracks
from cunet_lib.core.settings import Profile, Signal
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.metrics import SCORE_COLUMNS, as_pcm, track_rows, whole_sdr
from cunet_lib.evaluation.scores import read_scores
from cunet_lib.preprocess.store import Entry, Store
from cunet_lib.preprocess.tracks import STEMS, Source, decode
from cunet_lib.signal.audio import ensure_ffmpeg
from cunet_lib.signal.spectral import istft, stft

EXCERPT = "A real song (excerpt)"
"""How listeners are told of :func:`real_excerpt`."""


@dataclass(frozen=True)
class Oracle:
    """A system that bounds the others; unlike them it is given the references.

    ``"mixture"``: the mixture as estimate of every instrument. ``"ideal_ratio_mask"``: see
    :func:`ideal_ratio_masks`.
    """

    name: str
    signal: Signal
    version: str = "oracle"

    def estimate(self, audio: np.ndarray) -> np.ndarray:
        """Estimates ``(instruments, samples)`` from mixture and stems ``(5, samples)``."""
        if self.name == "mixture":
            return np.repeat(audio[:1], len(INSTRUMENTS), axis=0)
        return ideal_ratio_masks(audio[1:], audio[0], self.signal)


def ideal_ratio_masks(references: np.ndarray, mixture: np.ndarray, signal: Signal) -> np.ndarray:
    """Estimates by the ideal ratio mask: power of the target over power of all instruments.

    An upper bound for what a mask of this spectrogram can reach with the mixture's phase; it reads
    the references ``(instruments, samples)`` beside the mixture ``(samples,)``, so it is no
    separation system. Returns ``(instruments, samples)`` float32.
    """
    power = np.stack([np.abs(stft(reference, signal)) ** 2 for reference in references])
    masks = power / np.maximum(power.sum(axis=0), np.finfo(np.float32).tiny)
    spectrogram = stft(mixture, signal)
    return np.stack([istft(mask * spectrogram, signal, len(mixture)) for mask in masks])


def estimates_of(system: Callable | Oracle, audio: np.ndarray) -> np.ndarray:
    """Estimates ``(instruments, samples)``; only an :class:`Oracle` is given more than the mixture.

    Parameters
    ----------
    system
        An oracle, or a callable from mixture ``(samples,)`` to estimates.
    audio
        Mixture and references, ``(5, samples)``.
    """
    return system.estimate(audio) if isinstance(system, Oracle) else system(audio[0])


def score_system(
    settings: Profile,
    store: Store,
    *,
    model: str,
    seed: int,
    system: Callable | Oracle,
    score: Callable[..., pd.DataFrame] = track_rows,
    group: str = "",
    workers: int | None = None,
) -> pd.DataFrame:
    """Separate and score every test track, and write the system's long table.

    Separation runs here, one track after another, while a pool of processes scores. Signals are
    scored as 16-bit files would hold them (:func:`cunet_lib.evaluation.metrics.as_pcm`). Each
    track's rows are kept: tracks that were scored with the same weights, data, settings and code
    are not scored again.

    Parameters
    ----------
    model, seed
        Name and seed of the system, for the table and the file names.
    system
        As :func:`estimates_of` takes it; its attribute ``version`` identifies the weights.
    score
        From mixture, references, estimates and settings to rows; a module's function, so that
        another process finds it.
    group
        Folder of the scores that the table goes to.
    workers
        Scoring processes; as many as there are cores if not given.

    Returns
    -------
    pandas.DataFrame
        Columns that ``score`` adds, then :data:`cunet_lib.evaluation.metrics.SCORE_COLUMNS`.
    """
    name, facts = f"{model}-seed{seed}", {"model": model, "seed": seed}
    folder = settings.paths.tracks / group / name
    code = code_hash("cunet_lib/signal/spectral.py", "cunet_lib/separation", "cunet_lib/evaluation")
    sections = settings.section_hash("signal", "separate", "evaluate")
    lines = "\n".join([system.version, store.hash, sections, code])
    digest, marker = hashlib.sha256(lines.encode()).hexdigest(), folder / "version.txt"
    if folder.exists() and (not marker.exists() or marker.read_text() != digest):
        shutil.rmtree(folder)
    write_atomically(marker, digest)
    paths = {entry: folder / f"{entry.name}.csv" for entry in store.split("test")}
    missing = [entry for entry in paths if not paths[entry].exists()]

    def arguments(entry: Entry) -> tuple:
        audio = np.array(store.audio(entry))
        signals = as_pcm(audio), as_pcm(estimates_of(system, audio))
        return score, *signals, settings, facts | {"track": entry.name}, paths[entry]

    map_tracks(
        _write_scores,
        map(arguments, missing),
        total=len(missing),
        label=f"{model}: tracks scored",
        workers=workers,
    )
    table = pd.concat(map(read_scores, paths.values()), ignore_index=True)
    write_table(table, settings.paths.scores / group / f"{name}.csv")
    return table


def _write_scores(
    score: Callable,
    audio: np.ndarray,
    estimates: np.ndarray,
    settings: Profile,
    facts: dict[str, object],
    path: Path,
) -> None:
    table = score(audio[0], audio[1:], estimates, settings).assign(**facts)
    further = [name for name in table if name not in SCORE_COLUMNS]
    write_table(table[[*further, *SCORE_COLUMNS]], path)


def write_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV; it appears only when complete. Returns ``path``."""
    return write_atomically(path, table.to_csv(index=False))


def real_excerpt(sample_rate: int) -> np.ndarray:
    """The one real recording at hand: six seconds of a MUSDB18 test track, inside ``stempeg``.

    Returns
    -------
    numpy.ndarray
        ``(5, samples)`` mono float32 at ``sample_rate``, in the order of
        :data:`cunet_lib.preprocess.tracks.STEMS`.
    """
    ensure_ffmpeg()
    import stempeg

    path = Path(stempeg.example_stem_path())
    return decode(Source("stempeg excerpt", "test", path), sample_rate)


def score_excerpt(
    settings: Profile, *, model: str, seed: int, system: Callable | Oracle
) -> pd.DataFrame:
    """Score a system on :func:`real_excerpt`: columns model, seed, target, metric, value (dB).

    The excerpt is a test: nothing is chosen by it. Its sounds are kept for listeners.
    """
    audio = real_excerpt(settings.signal.sample_rate)
    estimates = keep_sounds(settings, EXCERPT, audio, model=model, system=system)
    values = whole_sdr(audio[1:], np.stack([*estimates.values()]))
    facts = {"model": model, "seed": seed, "target": INSTRUMENTS, "metric": "SDR, whole excerpt"}
    table = pd.DataFrame({**facts, "value": values})
    write_table(table, settings.paths.scores / "excerpt" / f"{model}-seed{seed}.csv")
    return table


def keep_sounds(
    settings: Profile, song: str, audio: np.ndarray, *, model: str, system: Callable | Oracle
) -> dict[str, np.ndarray]:
    """Keep mixture and references ``(5, samples)``, and a system's estimates, as FLAC files.

    Returns instrument to estimate ``(samples,)``.
    """
    import soundfile

    audio = np.asarray(audio)
    estimates = dict(zip(INSTRUMENTS, estimates_of(system, audio), strict=True))
    files = dict(zip(STEMS, audio, strict=True))
    files |= {f"{model}/{name}": each for name, each in estimates.items()}
    for name, samples in files.items():
        # Resampling may overshoot full scale by a hair; integers cannot hold that.
        clipped = np.clip(samples, -1.0, 1.0)
        # In memory first: where the disk is full, libsndfile does not say so.
        buffer = io.BytesIO()
        rate = settings.signal.sample_rate
        soundfile.write(buffer, clipped, rate, format="FLAC", subtype="PCM_16")
        write_atomically(settings.paths.examples / song / f"{name}.flac", buffer.getvalue())
    return estimates
