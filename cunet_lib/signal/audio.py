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
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from cunet_lib.core.settings import ConfigError
from cunet_lib.preprocess.tracks import (
    LOCAL,
    LONGEST_SECONDS,
    RATES,
    SHORTAGE_SECONDS,
    check_rate,
    cut_short,
    ensure_ffmpeg,
    native,
)

BLOCK = 1 << 16
"""Frames of a block. libsndfile's Vorbis encoder crashes on much larger ones."""

MINIMUM_RATE, MAXIMUM_RATE = RATES

PROBE_SECONDS = 30
STALL_SECONDS = 60

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

PADDING = 2048
"""Samples: two frames of AAC, by which headers and what is decoded may differ."""

FRAMED = ("mov", "mp4", "m4a")
"""Names of ffmpeg's formats whose header says exactly how long the audio is."""

HEADERLESS = ("amrnb", "amrwb")
"""Names of ffmpeg's formats that text passes for: speech frames without the header of a file."""

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
    decoder
        ``"libsndfile"`` or ``"ffmpeg"``.
    seconds
        Least length by the header, where a format has an exact one; 0 elsewhere.
    """

    path: Path
    rate: int
    channels: int
    decoder: str
    seconds: float = 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples in order, ``(frames, channels)`` float32, at most :data:`BLOCK` frames each.

        Raises
        ------
        ConfigError
            If the file turns out to be damaged or endless, or ffmpeg stalls.
        """
        frames = 0
        read = self._by_ffmpeg if self.decoder == "ffmpeg" else self._by_libsndfile
        # Whoever stops early ends ffmpeg at once.
        with contextlib.closing(read()) as blocks:
            for block in blocks:
                frames += len(block)
                if frames > LONGEST_SECONDS * self.rate:
                    raise ConfigError(
                        f"{self.path} is longer than {LONGEST_SECONDS // 3600} hours; cut it."
                    )
                yield block
        if frames < (self.seconds - SHORTAGE_SECONDS) * self.rate - PADDING:
            raise _damaged(self.path, "it is cut short")

    def _by_libsndfile(self) -> Iterator[np.ndarray]:
        try:
            with soundfile.SoundFile(native(self.path)) as file:
                while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                    yield block
        except soundfile.LibsndfileError as error:
            raise _damaged(self.path, error.error_string) from error

    def _by_ffmpeg(self) -> Iterator[np.ndarray]:
        command = [ensure_ffmpeg(), *LOCAL, "-i", _address(self.path)]
        command += ["-map", "0:a:0", "-ar", str(self.rate), "-ac", str(self.channels)]
        command += ["-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"]
        frame = 4 * self.channels
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
            )
            try:
                rest = b""
                while data := self._read(process.stdout.fileno()):
                    rest += data
                    if len(rest) >= frame * BLOCK:
                        yield _samples(rest[: frame * BLOCK], self.channels)
                        rest = rest[frame * BLOCK :]
                if whole := len(rest) // frame * frame:
                    yield _samples(rest[:whole], self.channels)
                if process.wait(STALL_SECONDS):
                    complaints.seek(0)
                    raise _damaged(self.path, _last_line(complaints.read()))
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


def open_audio(path: Path | str) -> AudioFile:
    """Find out how a file is to be read.

    Raises
    ------
    ConfigError
        If it is missing, empty, cut short, no audio, or audio at a rate outside
        :data:`cunet_lib.preprocess.tracks.RATES`; one sentence names the file and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the audio files in it.")
    if not path.is_file():
        raise ConfigError(f"No file {path}; check its name.")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ConfigError(f"{path} is empty; get the song again.")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its rights.") from error
    found = _ask_libsndfile(path) or _ask_ffprobe(path)
    check_rate(path, found.rate)
    if found.decoder == "libsndfile" and cut_short(path):
        raise _damaged(path, "it is cut short")
    return found


def _ask_libsndfile(path: Path) -> AudioFile | None:
    if path.suffix.lower() in LOSSY_BY_FFMPEG:
        return None
    try:
        info = soundfile.info(native(path))
    except (soundfile.LibsndfileError, TypeError):  # TypeError: headerless data, by its suffix
        return None
    return AudioFile(path, info.samplerate, info.channels, "libsndfile")


def _ask_ffprobe(path: Path) -> AudioFile:
    probe = Path(ensure_ffmpeg()).with_name("ffprobe")
    command = [str(probe) if probe.exists() else "ffprobe", *LOCAL[1:]]
    command += ["-select_streams", "a:0", "-of", "json", "-show_entries"]
    command += ["stream=sample_rate,channels,duration:format=format_name,probe_score"]
    command += [_address(path)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        found = json.loads(done.stdout or b"{}")
        stream = found.get("streams", [])[0]
        rate, channels = (int(stream[key]) for key in ("sample_rate", "channels"))
        names = {*found["format"]["format_name"].split(",")}
        exact = not names.isdisjoint(FRAMED)
        score = int(found["format"]["probe_score"])
        seconds = float(stream.get("duration", 0)) if exact else 0.0
    except subprocess.TimeoutExpired as error:
        raise _stalled(path) from error
    except (ValueError, KeyError, IndexError) as error:
        raise _no_audio(path) from error
    guessed = score <= GUESS and path.stat().st_size > GUESSED_BYTES
    if rate < 1 or channels < 1 or guessed or not names.isdisjoint(HEADERLESS):
        raise _no_audio(path)
    return AudioFile(path, rate, channels, "ffmpeg", seconds)


def _address(path: Path) -> str:
    # With the protocol in front, no name is taken for an option or another protocol.
    return f"file:{path}"


def _samples(data: bytes, channels: int) -> np.ndarray:
    return np.frombuffer(data, "<f4").reshape(-1, channels).astype(np.float32)


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "ffmpeg gives no reason"


def _no_audio(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} holds no audio that libsndfile or ffmpeg can read; convert it to WAV or FLAC."
    )


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} is damaged ({reason.rstrip('.')}); get the song again.")


def _stalled(path: Path) -> ConfigError:
    return ConfigError(f"{path} makes ffmpeg stall; convert it to WAV or FLAC.")


def check_format(format: str, rate: int, channels: int) -> None:
    """Refuse what a format cannot hold, before any work is done.

    Raises
    ------
    ConfigError
        If the format is unknown, or knows no such rate or number of channels.
    """
    if format not in FORMATS:
        raise ConfigError(f"No format {format!r}; there are: {', '.join(FORMATS)}.")
    kind, encoding = FORMATS[format]
    try:
        with soundfile.SoundFile(io.BytesIO(), "w", rate, channels, encoding, format=kind):
            pass
    except soundfile.LibsndfileError as error:
        raise ConfigError(
            f"{format} cannot hold {channels} channels at {rate} Hz; choose --format wav."
        ) from error


def create(
    path: Path, format: str, *, rate: int, channels: int, frames: int
) -> soundfile.SoundFile:
    """Open a file for writing ``frames`` frames block by block; a WAV beyond 4 GiB is an RF64."""
    kind, encoding = FORMATS[format]
    if kind == "WAV" and 4 * channels * frames > 0xFFFF0000:
        kind = "RF64"
    return soundfile.SoundFile(path, "w", rate, channels, encoding, format=kind)
