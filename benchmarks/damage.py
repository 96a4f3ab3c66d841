"""The gallery of bad input: files, folders and settings that are not what they should be.

Here they are built, by name; ``tests/test_bad_input.py`` shows them to the library. What is built
depends on nothing but the name, so that a case that fails can be made again.
"""

import gzip
import io
import json
import os
import pickle
import random
import socket
import struct
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.damage_results import flipped, noise, zipped
from cunet_lib.preprocess.tracks import STEMS
from cunet_lib.signal.audio import ensure_ffmpeg

TALLY = Counter()
"""Cases that were shown, by kind; ``conftest.py`` prints their number."""

TEXTS = json.loads(Path(__file__).with_name("damage.json").read_text(encoding="ascii"))
"""Names, playlists, overrides, profiles, stages, parameters, grids and requests, by kind."""

RATE = 16000


def sound(frames=8000, channels=1):
    """A tone with noise, the same each time."""
    rng = np.random.default_rng(frames + channels)
    time = np.arange(frames)[:, None] / RATE
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    return (tone + 0.05 * rng.normal(size=(frames, channels))).astype(np.float32)


# ---------------------------------------------------------------------------------- containers


@cache
def container(kind):
    """Half a second of sound as the bytes of a file of this kind."""
    if kind in ("m4a", "mka"):
        command = [ensure_ffmpeg(), "-nostdin", "-v", "error", "-f", "f32le", "-ar", str(RATE)]
        command += ["-ac", "1", "-i", "pipe:", "-c:a", "aac", "-f"]
        command += ["ipod" if kind == "m4a" else "matroska"]
        # An index at the front, so that a file cut short still looks like one.
        command += ["-movflags", "faststart"] if kind == "m4a" else []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"song.{kind}"
            subprocess.run([*command, path], input=sound().tobytes(), check=True)
            return path.read_bytes()
    form, encoding = {
        "wav": ("WAV", "PCM_16"),
        "flac": ("FLAC", "PCM_16"),
        "ogg": ("OGG", "VORBIS"),
        "aiff": ("AIFF", "PCM_16"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
    }[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(), RATE, format=form, subtype=encoding)
    return buffer.getvalue()


CONTAINERS = ("wav", "flac", "ogg", "aiff", "mp3", "m4a", "mka")

NO_AUDIO = {
    "nothing at all": lambda content: b"",
    "a few bytes": lambda content: content[:11],
    "only zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"La la la\n" * 500,
    "a web page": lambda content: b"<!DOCTYPE html><title>404</title><script>alert(1)</script>",
    "JSON": lambda content: json.dumps({"error": "quota"}).encode(),
    "a pickle": lambda content: pickle.dumps({"song": [1, 2, 3]}),
    "a zip of it": zipped,
    "a gzip of it": lambda content: gzip.compress(content, mtime=0),
    "a program": lambda content: b"\x7fELF\x02\x01\x01" + bytes(200),
}
"""What is no audio any more; it must be refused."""

DAMAGES = {
    "36 bytes": lambda content: content[:36],
    "43 bytes": lambda content: content[:43],
    "a tenth": lambda content: content[: len(content) // 10],
    "half": lambda content: content[: len(content) // 2],
    "nine tenths": lambda content: content[: len(content) * 9 // 10],
    "without its last byte": lambda content: content[:-1],
    "noise": noise,
    "zeros for a header": lambda content: bytes(64) + content[64:],
    "zeros for its middle": lambda content: (
        content[: len(content) // 3] + bytes(len(content) // 3) + content[2 * len(content) // 3 :]
    ),
    "without its first half": lambda content: content[len(content) // 2 :],
    "backwards": lambda content: content[::-1],
    "twice": lambda content: content + content,
    "with text before": lambda content: b"HTTP/1.1 200 OK\r\n\r\n" + content,
    "with text behind": lambda content: content + b"<html>" * 50,
    "some bits flipped": lambda content: flipped(content, 0.0005),
    "many bits flipped": lambda content: flipped(content, 0.02),
}
"""What may or may not be audio still: refused, or read as far as it goes."""

CUT = {"36 bytes", "43 bytes", "a tenth", "half", "nine tenths"}
MUST_REFUSE = {("wav", each) for each in CUT | {"without its last byte"}} | {
    (kind, each)
    for kind, bearable in (("flac", set()), ("m4a", {"nine tenths"}))
    for each in CUT - bearable | {"backwards"}
}
"""Damages that a format does show."""


def wav(data=None, *, rate=RATE, channels=1, bits=16, tag=1, **header):
    """A WAV file, any field of whose header can be wrong."""
    data = (sound() * 20000).astype("<i2").tobytes() if data is None else data
    align = header.get("align", max(1, channels * bits // 8))
    speed = header.get("speed", rate * align)
    numbers = (tag, channels, rate & 0xFFFFFFFF, speed & 0xFFFFFFFF, align, bits)
    fmt = header.get("fmt", struct.pack("<HHIIHH", *numbers))
    parts = b"fmt " + struct.pack("<I", header.get("fmt_size", len(fmt))) + fmt
    parts += b"data" + struct.pack("<I", header.get("data_size", len(data))) + data
    size = header.get("riff_size", 4 + len(parts))
    return header.get("magic", b"RIFF") + struct.pack("<I", size) + b"WAVE" + parts


def huge_flac():
    """A FLAC file whose header promises 2^36 - 1 samples."""
    content = bytearray(container("flac"))
    # STREAMINFO: 36 bits of the number of samples, from the fourth bit of byte 13 after its head.
    content[8 + 13] |= 0x0F
    content[8 + 14 : 8 + 18] = b"\xff\xff\xff\xff"
    return bytes(content)


HEADERS = {
    "rate 0": wav(rate=0),
    "rate 1": wav(rate=1),
    "rate 999": wav(rate=999),
    "rate 768001": wav(rate=768001),
    "rate 2^31 - 1": wav(rate=2**31 - 1),
    "rate 2^32 - 1": wav(rate=2**32 - 1),
    "no channels": wav(channels=0),
    "65535 channels": wav(channels=65535, align=2),
    "no bits": wav(bits=0, align=2),
    "255 bits": wav(bits=255, align=2),
    "unknown encoding": wav(tag=0x7777),
    "encoding 0": wav(tag=0),
    "fmt of no bytes": wav(fmt=b""),
    "fmt that promises 4 GB": wav(fmt_size=0xFFFFFFF0),
    "data that promises 2 GB": wav(data_size=0x7FFFFFFE),
    "data that promises a byte more": wav(data_size=16001),
    "no data": wav(b""),
    "half a sample": wav(b"\0"),
    "no RIFF": wav(magic=b"RAFF"),
    "not a number": wav(np.full(9000, np.nan, "<f4").tobytes(), tag=3, bits=32),
    "infinite": wav(np.full(9000, np.inf, "<f4").tobytes(), tag=3, bits=32),
    "negatively infinite": wav(np.full(9000, -np.inf, "<f4").tobytes(), tag=3, bits=32),
    "one not a number": wav(np.r_[np.zeros(8999), np.nan].astype("<f4").tobytes(), tag=3, bits=32),
    "beyond float32": wav(np.full(9000, 1e300, "<f8").tobytes(), tag=3, bits=64),
    "1e38 times full scale": wav(np.full(9000, 1e38, "<f4").tobytes(), tag=3, bits=32),
    "1e12 times full scale": wav(np.full(9000, 1e12, "<f4").tobytes(), tag=3, bits=32),
    "FLAC that promises a week": None,  # made when it is asked for
}
"""WAV files that must be refused, by what is wrong in them."""

ODD_SOUNDS = {
    "silence": np.zeros(9000),
    "one sample": np.full(1, 0.5),
    "two samples": np.array([0.5, -0.5]),
    "fewer samples than a window": sound(700)[:, 0],
    "one window": sound(1024)[:, 0],
    "constant": np.full(9000, 0.7),
    "full scale, clipped": np.sign(sound()[:, 0]),
    "all at the lowest value": np.full(9000, -1.0),
    "a click": np.r_[np.zeros(4000), 1.0, np.zeros(4000)],
    "as high as can be": np.tile([0.9, -0.9], 4500),
    "as quiet as can be": np.full(9000, 1e-42),
    "silence, then sound": np.r_[np.zeros(9000), sound()[:, 0]],
    "a thousand times full scale": 1000 * sound()[:, 0],
    "16-bit numbers as they are": 32767 * sound()[:, 0],
    "1e8 times full scale": 1e8 * sound()[:, 0],
}
"""Sounds that are strange and valid: what comes out is finite and as long."""

NAMES = tuple(TEXTS["names"])
"""Names of files and tracks that are unusual and allowed."""

PLAYLISTS = TEXTS["playlists"]
"""Lists that would make a player open something else."""


def listener():
    """A socket that hears whoever calls, and its address."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    return server, f"127.0.0.1:{server.getsockname()[1]}"


def _address(path):
    """A socket of the system, which is left behind."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path.with_name("s")))
    return path.with_name("s")


def _below_a_file(path):
    path.write_bytes(container("wav"))
    return path / "song.wav"


SPECIAL = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": _address,
    "device": lambda path: Path("/dev/null"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to(path.parent),
    "below a file": _below_a_file,
    "name too long": lambda path: path.with_name("a" * 300),
    "null byte": lambda path: path.with_name("a\0b.wav"),
    "missing": lambda path: None,
}


def special(kind, path):
    """Make ``path`` something that is no file with a song in it; returns the path to give."""
    return SPECIAL[kind](path) or path


# -------------------------------------------------------------------------------------- corpora

CORPUS_RATE = 44100


def write_corpus(root, *, train=3, test=1, frames=13230):
    """A corpus of short tones in MUSDB18-HQ layout."""
    time = np.arange(frames) / CORPUS_RATE
    for subset, number in (("train", train), ("test", test)):
        for index in range(number):
            folder = root / subset / f"Track {index} - {subset}"
            folder.mkdir(parents=True)
            stems = [
                np.round(2000 * np.sin(2 * np.pi * (100 + 50 * place + 7 * index) * time))
                for place in range(4)
            ]
            for name, stem in zip(STEMS, [sum(stems), *stems], strict=True):
                samples = np.stack([stem, stem], axis=1).astype(np.int16)
                soundfile.write(folder / f"{name}.wav", samples, CORPUS_RATE, subtype="PCM_16")


def _rewritten(change):
    def damage(path):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    return damage


def _resounded(change, *, rate=CORPUS_RATE, subtype="PCM_16"):
    def damage(path):
        samples, _ = soundfile.read(path, always_2d=True)
        path.unlink()
        soundfile.write(path, change(samples), rate, subtype=subtype, format="WAV")

    return damage


def _replaced(kind):
    def damage(path):
        path.unlink()
        special(kind, path)

    return damage


def _with(value):
    def change(samples):
        samples = samples.copy()
        samples[len(samples) // 2] = value
        return samples

    return change


STEM_DAMAGES = {
    **{kind: _replaced(kind) for kind in ("missing", "folder", "pipe")},
    **{kind: _replaced(kind) for kind in ("link to nothing", "link to itself")},
    "empty": _rewritten(lambda content: b""),
    "header only": _rewritten(lambda content: content[:44]),
    "cut short": _rewritten(lambda content: content[: len(content) // 2]),
    "last byte gone": _rewritten(lambda content: content[:-1]),
    "text": _rewritten(lambda content: b"La la la\n" * 99),
    "noise": _rewritten(noise),
    "zeros": _rewritten(lambda content: bytes(len(content))),
    "zip": _rewritten(zipped),
    "promises 4 GB": _rewritten(lambda content: content[:40] + b"\xfe\xff\xff\xff" + content[44:]),
    "FLAC that promises a week": _rewritten(lambda content: huge_flac()),
    "no samples": _resounded(lambda samples: samples[:0]),
    "one sample": _resounded(lambda samples: samples[:1]),
    "a sample shorter": _resounded(lambda samples: samples[:-1]),
    "a sample longer": _resounded(lambda samples: np.concatenate([samples, samples[:1]])),
    "48000 Hz": _resounded(lambda samples: samples, rate=48000),
    "22050 Hz": _resounded(lambda samples: samples[::2], rate=22050),
    "500 Hz": _resounded(lambda samples: samples, rate=500),
    "2000000 Hz": _resounded(lambda samples: samples, rate=2000000),
    "not a number": _resounded(_with(np.nan), subtype="FLOAT"),
    "infinite": _resounded(_with(np.inf), subtype="FLOAT"),
    "1e30 times full scale": _resounded(lambda samples: samples * 1e30, subtype="FLOAT"),
}
"""What can be wrong with one stem, so that its track is refused."""

ONLY_CHECKED = {
    "mono": _resounded(lambda samples: samples[:, :1]),
    "three channels": _resounded(lambda samples: np.repeat(samples[:, :1], 3, axis=1)),
    "another song": _resounded(lambda samples: samples[::-1] * -0.9),
    "half as loud": _resounded(lambda samples: samples / 2),
}
"""What decoding can bear, and ``cunet check`` refuses."""

ODD_STEMS = {
    "silence": lambda samples: samples * 0,
    "constant": lambda samples: samples * 0 + 0.1,
    "clipped": lambda samples: np.sign(samples),
}


# ------------------------------------------------------------------------------------- settings

OVERRIDES = TEXTS["overrides"]
"""Overrides of the profile ``smoke``, each of which is wrong."""

MINIMAL = "title: x\ndata: {source: rendered, validation: 1}\n"

YAML_FILES = {
    **TEXTS["yaml_files"],
    "a number too long": MINIMAL + "seed: " + "9" * 5000 + "\n",
    "nested deeply": MINIMAL + "seed: " + "[" * 2000 + "]" * 2000 + "\n",
    "mappings nested deeply": MINIMAL + "seed: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n",
    "two megabytes": MINIMAL + "#" * (2 << 20),
}

BINARY_PROFILES = {
    "Latin-1": MINIMAL.encode() + b"shipped: caf\xe9\n",
    "UTF-16": MINIMAL.encode("utf-16"),
    "noise": random.Random(0).randbytes(2000),
    "a null byte": b"title: a\0b\n",
    "a zip": zipped(b"x"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
}

STAGES = TEXTS["stages"]
PARAMETERS = tuple(map(tuple, TEXTS["parameters"]))
GRIDS = TEXTS["grids"]
REQUESTS = TEXTS["requests"]
