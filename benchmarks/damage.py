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
import re
import socket
import struct
import subprocess
import tempfile
import zipfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile

from cunet_lib.signal.audio import ensure_ffmpeg

TEXTS = json.loads(Path(__file__).with_name("damage.json").read_text(encoding="ascii"))
"""Names and playlists; overrides of the profile ``smoke``, profiles, stages, parameters, grids and
requests, each of which is wrong."""

RATE = 16000


def sound(frames=8000):
    """A tone with noise, the same each time."""
    rng = np.random.default_rng(frames + 1)
    time = np.arange(frames)[:, None] / RATE
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    return (tone + 0.05 * rng.normal(size=(frames, 1))).astype(np.float32)


def noise(content):
    """As many random bytes."""
    return random.Random(len(content)).randbytes(len(content))


def flipped(content, share):
    """The bytes with this share of them changed by a bit."""
    rng, changed = random.Random(share), bytearray(content)
    for _ in range(max(1, int(len(content) * share))):
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zipped(content):
    """A zip archive of a file with this content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("song.wav", content)
    return buffer.getvalue()


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
    # Lines as long as a frame of AMR; two frames of MPEG audio, as programs have by chance.
    "text like speech": lambda content: b"La la la, not a song\n" * 500,
    "a program with frames": lambda content: (
        b"\x7fELF" + bytes(20000) + 2 * (b"\xff\xfb\x90\x00" + bytes(413)) + bytes(20000)
    ),
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

CUT = ("36 bytes", "43 bytes", "a tenth", "half", "nine tenths")
MUST_REFUSE = {
    *(("wav", each) for each in (*CUT, "without its last byte")),
    *(("flac", each) for each in (*CUT, "backwards")),
    *(("m4a", each) for each in (*CUT[:-1], "backwards")),
}
"""Damages that a format does show."""


def wav(data=None, *, rate=RATE, channels=1, bits=16, tag=1, **header):
    """A WAV file, any field of whose header can be wrong."""
    data = (sound() * 20000).astype("<i2").tobytes() if data is None else data
    align = header.get("align", max(1, channels * bits // 8))
    numbers = (tag, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    fmt = header.get("fmt", struct.pack("<HHIIHH", *numbers))
    parts = b"fmt " + struct.pack("<I", header.get("fmt_size", len(fmt))) + fmt
    parts += b"data" + struct.pack("<I", header.get("data_size", len(data))) + data
    return header.get("magic", b"RIFF") + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


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
    "FLAC that promises a week": huge_flac(),
}
"""Files that must be refused, by what is wrong in them."""

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


def _rewritten(change):
    def damage(path):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    return damage


def resounded(change, *, rate=44100, subtype="PCM_16"):
    """Writes the file anew with other samples."""

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
    **{case: _rewritten(change) for case, change in NO_AUDIO.items()},
    **{case: _rewritten(DAMAGES[case]) for case in (*CUT, "without its last byte", "noise")},
    "promises 4 GB": _rewritten(lambda content: content[:40] + b"\xfe\xff\xff\xff" + content[44:]),
    "FLAC that promises a week": _rewritten(lambda content: huge_flac()),
    "no samples": resounded(lambda samples: samples[:0]),
    "one sample": resounded(lambda samples: samples[:1]),
    "a sample shorter": resounded(lambda samples: samples[:-1]),
    "a sample longer": resounded(lambda samples: np.concatenate([samples, samples[:1]])),
    "48000 Hz": resounded(lambda samples: samples, rate=48000),
    "22050 Hz": resounded(lambda samples: samples[::2], rate=22050),
    "500 Hz": resounded(lambda samples: samples, rate=500),
    "2000000 Hz": resounded(lambda samples: samples, rate=2000000),
    "not a number": resounded(_with(np.nan), subtype="FLOAT"),
    "infinite": resounded(_with(np.inf), subtype="FLOAT"),
    "1e30 times full scale": resounded(lambda samples: samples * 1e30, subtype="FLOAT"),
}
"""What can be wrong with one stem, so that its track is refused."""

ONLY_CHECKED = {
    "mono": resounded(lambda samples: samples[:, :1]),
    "three channels": resounded(lambda samples: np.repeat(samples[:, :1], 3, axis=1)),
    "another song": resounded(lambda samples: samples[::-1] * -0.9),
    "half as loud": resounded(lambda samples: samples / 2),
}
"""What decoding can bear, and ``cunet check`` refuses."""

ODD_STEMS = {
    "silence": lambda samples: samples * 0,
    "constant": lambda samples: samples * 0 + 0.1,
    "clipped": lambda samples: np.sign(samples),
}


# ------------------------------------------------------------------------------------- settings

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


# -------------------------------------------------------------- files that the study wrote itself

JUNK = (None, True, 0, -1, 1.5, 1e999, "", "x", "../x", "a/b", "\0", [], [1], {}, {"a": 1}, "é\n")
"""Values of every kind that JSON knows, in places where they are not expected."""

BROKEN_JSON = {
    "nothing": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "text": lambda content: b"not JSON",
    "Latin-1": lambda content: b'{"a": "\xe9"}',
    "null": lambda content: b"null",
    "a list": lambda content: b"[]",
    "a number": lambda content: b"1",
    "an empty object": lambda content: b"{}",
    "deep": lambda content: b"[" * 100000 + b"]" * 100000,
    "a pickle": lambda content: pickle.dumps({"a": 1}),
}


def _saved(change):
    def changed(content):
        buffer = io.BytesIO()
        np.save(buffer, change(np.load(io.BytesIO(content))), allow_pickle=True)
        return buffer.getvalue()

    return changed


ARRAYS = {
    **{case: NO_AUDIO[case] for case in ("nothing at all", "text", "a pickle", "a zip of it")},
    "one byte": lambda content: content[:1],
    "half a header": lambda content: content[:40],
    "half": lambda content: content[: len(content) // 2],
    "noise": noise,
    "pickled objects": _saved(lambda array: np.array([{"a": 1}], object)),
    "another shape": _saved(lambda array: array[:3]),
    "one sample less": _saved(lambda array: array[:, :-1]),
    "double precision": _saved(lambda array: array.astype(np.float64)),
    "whole numbers": _saved(lambda array: array.astype(np.int32)),
    "a header that promises a terabyte": lambda content: re.sub(
        rb"\(5, \d+\)", b"(5, 99999999999)", content, count=1
    ),
}
"""What can be wrong with the file of a track in the store."""

WEIGHTS = "model.weights.h5"


def altered_archive(content, change):
    """A ``.keras`` file with changed members: ``change`` gets and returns ``{name: bytes}``."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in change(members).items():
            archive.writestr(name, part)
    return buffer.getvalue()


def _config(change):
    def changed(members):
        config = json.loads(members["config.json"])
        config = change(config) or config
        return members | {"config.json": json.dumps(config).encode()}

    return changed


def _lambda(config):
    layer = config["config"]["layers"][1]
    layer.update(module="keras.layers", class_name="Lambda", config={"name": "x", "function": "x"})


def _function(config):
    layer = config["config"]["layers"][1]
    layer["config"]["activation"] = {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "function",
    }


def _layer(**changes):
    def change(config):
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Conv2D":
                layer["config"].update(changes)
                return

    return _config(change)


_ARCHIVES = {
    "without weights": lambda parts: {k: v for k, v in parts.items() if not k.endswith(".h5")},
    "without a configuration": lambda parts: {k: v for k, v in parts.items() if k != "config.json"},
    "with a program in it": lambda parts: parts | {"../../evil.py": b"import os"},
    "weights of nothing": lambda parts: parts | {WEIGHTS: b""},
    "weights of text": lambda parts: parts | {WEIGHTS: b"1.0 " * 99},
    "half its weights": lambda parts: parts | {WEIGHTS: parts[WEIGHTS][: len(parts[WEIGHTS]) // 2]},
    "a configuration of text": lambda parts: parts | {"config.json": b"{"},
    "a configuration that is a list": lambda parts: parts | {"config.json": b"[]"},
    "a configuration of brackets": lambda parts: parts | {"config.json": b"[" * 99999},
    "a lambda": _config(_lambda),
    "a function of the system": _config(_function),
    "another name": _config(lambda config: config["config"].update(name="mine")),
    "another class": _config(lambda config: config.update(class_name="Sequential")),
    "a class of another module": _config(lambda config: config.update(module="subprocess")),
    "no layers": _config(lambda config: config["config"].update(layers=[])),
    "layers of text": _config(lambda config: config["config"].update(layers="all")),
    "a billion filters": _layer(filters=10**9),
    "filters that do not fit": _layer(filters=3),
    "negative filters": _layer(filters=-1),
    "a field of a later version": _layer(quantum=True),
    "strides of nothing": _layer(strides=None),
}

MODELS = {
    **NO_AUDIO,
    **{case: DAMAGES[case] for case in ("half", "without its last byte", "noise")},
    "an HDF5 file of Keras 2": lambda content: b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a bit of its weights flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 4])
        + content[len(content) // 2 + 1 :]
    ),
    "many bits flipped": lambda content: flipped(content, 0.001),
    **{case: partial(altered_archive, change=change) for case, change in _ARCHIVES.items()},
}
"""What can be wrong with the file of a model."""
