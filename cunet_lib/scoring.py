"""Scores of estimates against references: museval per track, gathered in one long table.

Also here: the two systems that bound every model, the mixture itself as estimate (lower) and the
ideal ratio mask (upper), which is computed from the references.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pandas as pd

from cunet_lib.config import (
    INSTRUMENTS,
    PROTOCOL,
    SCORE_COLUMNS,
    SCORE_METRICS,
    ConfigError,
    Evaluate,
    Profile,
    Signal,
)
from cunet_lib.files import code_hash, replacing, write_atomically
from cunet_lib.parallel import pool
from cunet_lib.spectral import istft, stft
from cunet_lib.stems import STEMS, Source, decode, ensure_ffmpeg
from cunet_lib.store import Entry, Store

ORACLES = ("mixture", "ideal_ratio_mask")
"""Systems that bound the others: the mixture from below, the ideal mask from above."""


def score_track(
    references: np.ndarray,
    estimates: np.ndarray,
    *,
    track: str,
    sample_rate: int,
    evaluate: Evaluate,
    path: Path,
) -> None:
    """Score one track with museval's BSS Eval v4 and keep museval's JSON.

    museval refuses signals that are silent throughout. A silent reference is left out, since it
    cannot interfere with the others; a silent estimate leaves the other estimates' scores as they
    are, since each is scored by itself. Neither has a score: all its frames are undefined.

    Parameters
    ----------
    references, estimates
        ``(instruments, samples)`` in the order of :data:`cunet_lib.config.INSTRUMENTS`.
    track
        Track name.
    sample_rate
        Hz.
    evaluate
        Window and hop in seconds.
    path
        JSON file to write; it appears only when complete.
    """
    ensure_ffmpeg()
    import museval

    window = round(evaluate.window_seconds * sample_rate)
    hop = round(evaluate.hop_seconds * sample_rate)
    heard = references.any(axis=1)
    scored = heard & estimates.any(axis=1)
    # A stand-in keeps museval going where an estimate is silent; its scores are dropped below.
    given = np.where(scored[:, None], estimates, references)[heard]
    frames = max(0, (references.shape[1] - window + hop) // hop) or 1
    values = np.full((len(SCORE_METRICS), len(INSTRUMENTS), frames), np.nan)
    if heard.any():
        results = museval.evaluate(
            references[heard, :, None], given[..., None], win=window, hop=hop, mode="v4"
        )
        values = np.full((len(SCORE_METRICS), len(INSTRUMENTS), results[0].shape[1]), np.nan)
        values[:, heard] = results
        values[:, ~scored] = np.nan
    record = museval.TrackStore(
        win=evaluate.window_seconds, hop=evaluate.hop_seconds, track_name=track
    )
    for index, instrument in enumerate(INSTRUMENTS):
        record.add_target(
            target_name=instrument,
            values={metric: values[place, index] for place, metric in enumerate(SCORE_METRICS)},
        )
    write_atomically(path, record.json)


def read_track(path: Path, *, track: str, model: str, seed: int) -> pd.DataFrame:
    """Rows of the long table from one museval JSON: median and mean over defined frames."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for target in content["targets"]:
        for metric in SCORE_METRICS:
            frames = np.array([frame["metrics"][metric] for frame in target["frames"]], dtype=float)
            defined = frames[np.isfinite(frames)]
            for aggregation, reduce in (("median", np.median), ("mean", np.mean)):
                rows.append(
                    (
                        model,
                        seed,
                        track,
                        target["name"],
                        metric,
                        PROTOCOL,
                        f"{aggregation} over frames",
                        float(reduce(defined)) if len(defined) else np.nan,
                        len(frames),
                        len(frames) - len(defined),
                    )
                )
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


class Oracle:
    """A system that bounds the others; unlike them it is given the references.

    Parameters
    ----------
    name
        ``"mixture"``: the mixture as estimate of every instrument. ``"ideal_ratio_mask"``: see
        :func:`ideal_ratio_masks`.
    signal
        Spectrogram settings.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """

    version = "oracle"

    def __init__(self, name: str, signal: Signal):
        if name not in ORACLES:
            raise ConfigError(f"No oracle {name!r}; there are: {', '.join(ORACLES)}.")
        self.name = name
        self.signal = signal

    def estimate(self, audio: np.ndarray) -> np.ndarray:
        """Estimates ``(instruments, samples)`` from all stems ``(5, samples)``."""
        if self.name == "mixture":
            return np.repeat(audio[:1], len(INSTRUMENTS), axis=0)
        return ideal_ratio_masks(audio[1:], audio[0], self.signal)


def oracles(settings: Profile) -> dict[str, Oracle]:
    """The systems of :data:`ORACLES` by name."""
    return {name: Oracle(name, settings.signal) for name in ORACLES}


def estimates_of(system, audio: np.ndarray) -> np.ndarray:
    """Estimates ``(instruments, samples)``; only an :class:`Oracle` is given more than the mixture.

    Parameters
    ----------
    system
        An oracle, or a callable from mixture ``(samples,)`` to estimates.
    audio
        Mixture and references, ``(5, samples)``.
    """
    if isinstance(system, Oracle):
        return system.estimate(audio)
    return system(audio[0])


def score_system(
    settings: Profile,
    store: Store,
    *,
    model: str,
    seed: int,
    system,
    workers: int | None = None,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> pd.DataFrame:
    """Separate and score every test track, and write the system's long table.

    Separation runs here, one track after another, while a pool of processes scores. Tracks whose
    museval JSON was written for the same weights, data and settings are not scored again.

    Parameters
    ----------
    model, seed
        Name and seed of the system, for the table and the file names.
    system
        As :func:`estimates_of` takes it; its attribute ``version`` identifies the weights, and
        scores of another version are discarded.
    workers
        Scoring processes; as many as :func:`cunet_lib.parallel.cores` if not given.
    progress
        Wraps the iterator over the tracks.

    Returns
    -------
    pandas.DataFrame
        Columns :data:`cunet_lib.config.SCORE_COLUMNS`, one row per track, target, metric and
        aggregation.
    """
    folder = settings.paths.museval / f"{model}-seed{seed}"
    _keep_only(
        folder,
        system.version,
        store.hash,
        settings.section_hash("signal", "separate", "evaluate"),
        code_hash("spectral", "separation", "scoring"),
    )
    entries = store.split("test")
    missing = [entry for entry in entries if not _json(folder, entry.name).exists()]
    pending: list[Future] = []
    with pool(len(missing), workers=workers) as processes:
        for entry in progress(missing, len(missing)) if progress else missing:
            audio = np.array(store.audio(entry))
            pending.append(
                processes.submit(
                    score_track,
                    audio[1:],
                    estimates_of(system, audio),
                    track=entry.name,
                    sample_rate=settings.signal.sample_rate,
                    evaluate=settings.evaluate,
                    path=_json(folder, entry.name),
                )
            )
            for future in [future for future in pending if future.done()]:
                future.result()
        for future in pending:
            future.result()
    table = pd.concat(
        [
            read_track(_json(folder, entry.name), track=entry.name, model=model, seed=seed)
            for entry in entries
        ],
        ignore_index=True,
    )
    write_table(table, settings.paths.scores / f"{model}-seed{seed}.csv")
    return table


def _json(folder: Path, track: str) -> Path:
    return folder / f"{track}.json"


def _keep_only(folder: Path, *facts: str) -> None:
    """Empty a folder of scores that come from other weights, data, settings or code."""
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    marker = folder / "version.txt"
    if folder.exists() and (not marker.exists() or marker.read_text() != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(digest)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; it appears only when complete."""
    write_atomically(path, table.to_csv(index=False))


def real_excerpt(sample_rate: int) -> np.ndarray:
    """The one real recording at hand: six seconds of a MUSDB18 test track, inside ``stempeg``.

    Returns
    -------
    numpy.ndarray
        ``(5, samples)`` mono float32 at ``sample_rate``, in the order of
        :data:`cunet_lib.stems.STEMS`.
    """
    ensure_ffmpeg()
    import stempeg

    path = Path(stempeg.example_stem_path())
    return decode(Source("stempeg excerpt", "test", (path,), False), sample_rate)


def whole_sdr(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Signal-to-distortion ratio over whole signals, without any filter or projection, in dB.

    Parameters
    ----------
    references, estimates
        ``(instruments, samples)``.

    Returns
    -------
    numpy.ndarray
        ``(instruments,)``; NaN where the reference is silent.
    """
    references = np.asarray(references, float)
    power = (references**2).sum(axis=-1)
    error = ((references - estimates) ** 2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(power > 0, 10 * np.log10(power / error), np.nan)


def score_excerpt(settings: Profile, *, model: str, seed: int, system) -> pd.DataFrame:
    """Score a system on :func:`real_excerpt`: columns model, seed, target, metric, value (dB).

    The excerpt is a test: nothing is chosen by it.
    """
    audio = real_excerpt(settings.signal.sample_rate)
    values = whole_sdr(audio[1:], estimates_of(system, audio))
    table = pd.DataFrame(
        {
            "model": model,
            "seed": seed,
            "target": INSTRUMENTS,
            "metric": "SDR, whole excerpt",
            "value": values,
        }
    )
    write_table(table, settings.paths.scores / "excerpt" / f"{model}-seed{seed}.csv")
    return table


def ideal_ratio_masks(references: np.ndarray, mixture: np.ndarray, signal: Signal) -> np.ndarray:
    """Estimates by the ideal ratio mask: power of the target over power of all instruments.

    An upper bound for what a mask of this spectrogram can reach with the mixture's phase; it reads
    the references, so it is no separation system.

    Parameters
    ----------
    references
        ``(instruments, samples)``.
    mixture
        ``(samples,)``.

    Returns
    -------
    numpy.ndarray
        ``(instruments, samples)`` float32.
    """
    power = np.stack([np.abs(stft(reference, signal)) ** 2 for reference in references])
    masks = power / np.maximum(power.sum(axis=0), np.finfo(np.float32).tiny)
    spectrogram = stft(mixture, signal)
    return np.stack([istft(mask * spectrogram, signal, len(mixture)) for mask in masks])


def save_example(
    settings: Profile, store: Store, entry: Entry, model: str, system
) -> dict[str, np.ndarray]:
    """Keep a system's estimates of one track, and the track's references, as FLAC files.

    Returns
    -------
    dict
        Instrument to estimate ``(samples,)``.
    """
    import soundfile

    audio = np.array(store.audio(entry))
    estimates = dict(zip(INSTRUMENTS, estimates_of(system, audio), strict=True))
    folder = settings.paths.examples / entry.name
    files = {folder / f"{stem}.flac": audio[index] for index, stem in enumerate(STEMS)}
    files |= {folder / model / f"{name}.flac": estimate for name, estimate in estimates.items()}
    for path, samples in files.items():
        # Resampling may overshoot full scale by a hair; integers cannot hold that.
        clipped = np.clip(samples, -1.0, 1.0)
        with replacing(path) as partial:
            soundfile.write(
                partial, clipped, settings.signal.sample_rate, format="FLAC", subtype="PCM_16"
            )
    return estimates
