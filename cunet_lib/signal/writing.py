"""Audio files written block by block, by ffmpeg: what each format can hold, and what is kept.

Tags of the song go with its parts, and its cover where the format holds pictures. Each file is read
back before it counts as written.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cunet_lib.core.settings import ConfigError
from cunet_lib.signal.audio import (
    STALL_SECONDS,
    AudioFile,
    address,
    ffmpeg,
    open_audio,
    probe,
)

LAYOUTS = {3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""ffmpeg's names of what so many channels are where nothing says it, in the order of FLAC."""

FOREIGN_TAGS = ("major_brand", "minor_version", "compatible_brands", "handler_name", "vendor_id")
FOREIGN_TAGS += ("language", "encoder")
"""What ffmpeg tells of containers among the tags of a song."""


@dataclass(frozen=True)
class Format:
    """A kind of file that can be written.

    Attributes
    ----------
    encoders
        ffmpeg's encoder and its options by bits of a sample, the default first; by 0 where the
        encoder is lossy.
    options
        Further options.
    limit
        Bytes that a file can have.
    cover
        Whether it holds a picture.
    """

    encoders: Mapping[int, str]
    options: str = ""
    limit: float = math.inf
    cover: bool = False


FORMATS = {
    "wav": Format({32: "pcm_f32le", 24: "pcm_s24le", 16: "pcm_s16le"}, "-rf64 auto"),
    "flac": Format(
        {24: "flac -sample_fmt s32 -bits_per_raw_sample 24", 16: "flac -sample_fmt s16"}, cover=True
    ),
    "aiff": Format(
        {32: "pcm_f32be", 24: "pcm_s24be", 16: "pcm_s16be"}, "-write_id3v2 1", 1 << 32, cover=True
    ),
    "ogg": Format({0: "libvorbis"}, "-q:a 6"),
    "mp3": Format({0: "libmp3lame"}, "-q:a 0", cover=True),
}
"""What can be written, by file suffix. 32 bits are floating point: nothing is clipped or rounded.
Lossy files have the quality that listeners cannot tell from the original, unless a bit rate is
given."""


@dataclass(frozen=True)
class Output:
    """How the parts of a song are written; they have its rate and its channels.

    Attributes
    ----------
    format
        A key of :data:`FORMATS`.
    rate, channels, layout
        As of an :class:`AudioFile`.
    bits
        Of a sample, for formats that keep every sample; the format's default if not given.
    bitrate
        Of lossy formats, such as ``"192k"``; the format's quality if not given.
    kept
        What ffmpeg is told to take from the song besides its sound.

    Raises
    ------
    ConfigError
        If there is no such format, or it has no such bits or bit rate.
    """

    format: str
    rate: int = 44100
    channels: int = 2
    layout: str = ""
    bits: int | None = None
    bitrate: str | None = None
    kept: tuple[str, ...] = ()

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ConfigError(f"No format {self.format!r}; there are: {', '.join(FORMATS)}.")
        encoders = FORMATS[self.format].encoders
        if self.bits is not None and (0 in encoders or self.bits not in encoders):
            depths = ", ".join(map(str, encoders))
            ask = "takes --bitrate" if 0 in encoders else f"has {depths}"
            raise ConfigError(f"{self.format} has no {self.bits} bits; it {ask}.")
        if self.bitrate is not None and (
            0 not in encoders or not re.fullmatch(r"[1-9]\d{0,3}k", self.bitrate)
        ):
            ask = "give one such as 192k" if 0 in encoders else "it takes --bits"
            raise ConfigError(f"{self.format} has no bit rate {self.bitrate!r}; {ask}.")

    def like(self, song: AudioFile) -> Output:
        """The same for parts of a song, whose tags they keep, and its cover."""
        kept, streams = [], probe(song.path)["streams"]
        if streams:
            kept += ["-i", address(song.path), "-map_metadata", "1:s:a:0", "-map_metadata", "1"]
            kept += ["-map_chapters", "-1"]
            kept += [word for tag in FOREIGN_TAGS for word in ("-metadata", f"{tag}=")]
        covers = [
            each["index"] for each in streams if each.get("disposition", {}).get("attached_pic")
        ]
        if covers and FORMATS[self.format].cover:
            kept += ["-map", f"1:{covers[0]}", "-c:v", "copy", "-disposition:v", "attached_pic"]
        like = {"rate": song.rate, "channels": song.channels, "layout": song.layout}
        return replace(self, **like, kept=tuple(kept))

    @property
    def depth(self) -> int:
        """Bits of a sample; 0 for lossy formats."""
        return self.bits or next(iter(FORMATS[self.format].encoders))

    def size(self, frames: int) -> int:
        """Bytes of a file of so many samples per channel: at most, but for headers and a cover."""
        # No lossy format of these takes more than one byte for a sample.
        return frames * self.channels * (self.depth or 8) // 8

    def check(self, frames: int, folder: Path) -> Output:
        """Refuse what the format cannot hold before any work is done, by a file of a second.

        Returns
        -------
        Output
            The same; without the song's tags and cover if the format does not take them.

        Raises
        ------
        ConfigError
            If files would be too large, or the format knows no such rate, channels or bit rate.
        """
        limit = FORMATS[self.format].limit
        if self.size(frames) > limit - (1 << 20):
            raise ConfigError(
                f"{self.format} holds {limit / 1e9:.1f} GB and a part needs "
                f"{self.size(frames) / 1e9:.1f} GB; choose --format wav or flac."
            )
        trial = folder / f"trial.{self.format}"
        silence = np.zeros((self.rate, self.channels), np.float32)
        try:
            with self.writer(trial) as write:
                write(silence)
            found = open_audio(trial)
            fits = (found.rate, found.channels) == (self.rate, self.channels)
        except (ConfigError, OSError):
            fits = False
        trial.unlink(missing_ok=True)
        if fits:
            return self
        if self.kept:
            return replace(self, kept=()).check(frames, folder)
        at = f" and {self.bitrate}" if self.bitrate else ""
        raise ConfigError(
            f"{self.format} cannot hold {self.channels} channels at {self.rate} Hz{at}; choose "
            "--format wav."
        )

    @contextlib.contextmanager
    def writer(self, path: Path) -> Iterator[Callable[[np.ndarray], None]]:
        """A function that writes blocks ``(frames, channels)`` float32 to a file, in order.

        Raises
        ------
        ConfigError
            If ffmpeg fails or complains, or the finished file is shorter than what was written.
        """
        kind, frames = FORMATS[self.format], 0
        layout = self.layout if self.channels > 2 else ""
        layout = layout or LAYOUTS.get(self.channels)
        # With the song as a second input, ffmpeg sleeps whenever a queue of 8 packets is empty.
        words = ["-y", "-thread_queue_size", "512", "-f", "f32le", "-ar", str(self.rate)]
        words += ["-ac", str(self.channels), *(["-channel_layout", layout] if layout else [])]
        words += ["-i", "pipe:0", *self.kept, "-map", "0:a", "-c:a"]
        options = f"-b:a {self.bitrate}" if self.bitrate else kind.options
        words += f"{kind.encoders[self.depth]} {options}".split()

        def failed(reason: str) -> ConfigError:
            return ConfigError(
                f"{path.name} could not be written ({reason}); free some space on the disk."
            )

        with ffmpeg(*words, address(path), stdin=subprocess.PIPE) as (process, complaint):

            def write(block: np.ndarray) -> None:
                nonlocal frames
                frames += len(block)
                try:
                    process.stdin.write(np.ascontiguousarray(block, "<f4"))
                except BrokenPipeError as error:
                    raise failed(complaint() or "ffmpeg stopped") from error

            yield write
            try:
                process.stdin.close()
                reason = process.wait(STALL_SECONDS) and "ffmpeg failed"
            except (BrokenPipeError, subprocess.TimeoutExpired):
                reason = "ffmpeg stopped"
            if reason := complaint() or reason:
                raise failed(reason)
        if (file := open_audio(path)).is_short(file.frames, frames):
            raise failed("it came out too short")
