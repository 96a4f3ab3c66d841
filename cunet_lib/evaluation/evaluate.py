"""Scores of estimates against references, track by track, gathered in one long table.

What a score is stands in :mod:`cunet_lib.evaluation.metrics`; here are the files, the processes and the
table. Also here: the two systems that bound every model, the mixture itself as estimate (lower)
and the ideal ratio mask (upper), which is computed from the references.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cunet_lib.core.files import code_hash, write_atomically, write_json
from cunet_lib.core.processes import map_tracks
from cunet_lib.core.settings import ConfigError, Evaluate, Profile, Signal
from cunet_lib.core.systems import INSTRUMENTS, ORACLES
from cunet_lib.evaluation import metrics as measures
from cunet_lib.evaluation.metrics import PROTOCOL, SCORE_COLUMNS, SCORE_METRICS
from cunet_lib.preprocess.store import Entry, Store
from cunet_lib.preprocess.tracks import STEMS, Source, decode, ensure_ffmpeg
from cunet_lib.signal.spectral import istft, stft


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

    Parameters
    ----------
    references, estimates
        ``(instruments, samples)`` in the order of :data:`cunet_lib.core.systems.INSTRUMENTS`; silent
        ones as :func:`cunet_lib.evaluation.metrics.bss_eval_v4` takes them.
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

    window, hop = measures.framing(evaluate, sample_rate)
    values = measures.bss_eval_v4(references, estimates, window=window, hop=hop)
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
    """Rows of the long table from one museval JSON: median and mean over defined frames.

    Raises
    ------
    ConfigError
        If the file is damaged.
    """
    rows = []
    with _damage_named(path):
        for target in json.loads(path.read_text(encoding="utf-8"))["targets"]:
            if target["name"] not in INSTRUMENTS:
                raise ValueError("no instrument")
            for metric in SCORE_METRICS:
                frames = np.array(
                    [frame["metrics"][metric] for frame in target["frames"]], dtype=float
                )
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


def read_rows(path: Path, *, track: str, model: str, seed: int) -> pd.DataFrame:
    """Rows of the long table from the JSON of the other protocols' scores.

    Raises
    ------
    ConfigError
        If the file is damaged.
    """
    with _damage_named(path):
        content = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for *names, value, frames, undefined in content:
            if not all(isinstance(name, str) for name in names):
                raise TypeError("names are text")
            np.array([value, frames, undefined], dtype=float)
        rows = [(model, seed, track, *row) for row in content]
        return pd.DataFrame(rows, columns=SCORE_COLUMNS)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file of scores raises into one sentence."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"The scores in {path.parent.name}/{path.name} are damaged; delete the file and run "
            "`make reproduce` again."
        ) from error


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
) -> pd.DataFrame:
    """Separate and score every test track by every protocol, and write the system's long table.

    Tracks that were scored with the same weights, data, settings and code are not scored again.

    Parameters
    ----------
    model, seed
        Name and seed of the system, for the table and the file names.
    system
        As :func:`estimates_of` takes it; its attribute ``version`` identifies the weights, and
        scores of another version are discarded.
    workers
        Scoring processes; as many as :func:`cunet_lib.core.processes.cores` if not given.

    Returns
    -------
    pandas.DataFrame
        Columns :data:`cunet_lib.evaluation.metrics.SCORE_COLUMNS`, one row per track, target, metric, protocol
        and aggregation.
    """
    folder = settings.paths.museval / f"{model}-seed{seed}"
    version = (
        system.version,
        store.hash,
        settings.section_hash("signal", "separate", "evaluate"),
        code_hash("cunet_lib/signal/spectral.py", "cunet_lib/separation", "cunet_lib/evaluation"),
    )
    score_each(
        settings,
        store,
        folder,
        version=version,
        files=_files,
        estimate=lambda audio: estimates_of(system, audio),
        score=_score,
        label=f"{model}: tracks scored",
        workers=workers,
    )
    tables = []
    for entry in store.split("test"):
        of_museval, of_others = _files(folder, entry.name)
        for read, path in ((read_track, of_museval), (read_rows, of_others)):
            tables.append(read(path, track=entry.name, model=model, seed=seed))
    table = pd.concat(tables, ignore_index=True)
    write_table(table, settings.paths.scores / f"{model}-seed{seed}.csv")
    return table


def score_each(
    settings: Profile,
    store: Store,
    folder: Path,
    *,
    version: Sequence[str],
    files: Callable[[Path, str], Sequence[Path]],
    estimate: Callable[[np.ndarray], np.ndarray],
    score: Callable,
    label: str,
    workers: int | None = None,
) -> None:
    """Score each test track whose files are not in a folder yet.

    Separation runs here, one track after another, while a pool of processes scores. Signals are
    scored as 16-bit files would hold them (:func:`cunet_lib.evaluation.metrics.as_pcm`).

    Parameters
    ----------
    folder
        Emptied first if its scores come from another version.
    version
        Hashes of weights, data, settings and code.
    files
        From folder and track name to the files that a track's scores are in.
    estimate
        From mixture and references ``(5, samples)`` to estimates.
    score
        ``score(audio, estimates, settings, track, paths)`` writes the files; a module's function,
        so that another process finds it.
    label
        What progress calls the tracks.
    workers
        As :func:`score_system` takes them.
    """
    _keep_only(folder, *version)
    missing = [
        entry
        for entry in store.split("test")
        if not all(path.exists() for path in files(folder, entry.name))
    ]

    def arguments(entry):
        audio = np.array(store.audio(entry))
        signals = (measures.as_pcm(each) for each in (audio, estimate(audio)))
        return *signals, settings, entry.name, files(folder, entry.name)

    map_tracks(score, map(arguments, missing), total=len(missing), label=label, workers=workers)


def _score(
    audio: np.ndarray, estimates: np.ndarray, settings: Profile, track: str, paths: Sequence[Path]
) -> None:
    rate, evaluate = settings.signal.sample_rate, settings.evaluate
    of_museval, of_others = paths
    score_track(
        audio[1:], estimates, track=track, sample_rate=rate, evaluate=evaluate, path=of_museval
    )
    rows = measures.further_rows(
        audio[0], audio[1:], estimates, sample_rate=rate, evaluate=evaluate
    )
    write_json(of_others, {"track": track, "rows": rows})


def _files(folder: Path, track: str) -> tuple[Path, Path]:
    """The JSON of museval for a track, and that of the other protocols."""
    return folder / f"{track}.json", folder / "further" / f"{track}.json"


def _keep_only(folder: Path, *facts: str) -> None:
    """Empty a folder of scores that come from other weights, data, settings or code."""
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    marker = folder / "version.txt"
    if folder.exists() and (not marker.exists() or marker.read_text() != digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not marker.exists():
        write_atomically(marker, digest)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; it appears only when complete."""
    write_atomically(path, table.to_csv(index=False))


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
    return decode(Source("stempeg excerpt", "test", (path,), False), sample_rate)


def score_excerpt(settings: Profile, *, model: str, seed: int, system) -> pd.DataFrame:
    """Score a system on :func:`real_excerpt`: columns model, seed, target, metric, value (dB).

    The excerpt is a test: nothing is chosen by it.
    """
    audio = real_excerpt(settings.signal.sample_rate)
    values = measures.whole_sdr(audio[1:], estimates_of(system, audio))
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
        # In memory first: where the disk is full, libsndfile does not say so.
        buffer = io.BytesIO()
        rate = settings.signal.sample_rate
        soundfile.write(buffer, clipped, rate, format="FLAC", subtype="PCM_16")
        write_atomically(path, buffer.getvalue())
    return estimates
