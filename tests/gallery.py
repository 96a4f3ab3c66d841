"""The gallery of bad input: files, folders and settings that are not what they should be.

Here they are built, by name; ``test_bad_input.py`` shows them to the library. What is built
depends on nothing but the name, so that a case that fails can be made again.
"""

import gzip
import io
import json
import math
import os
import pickle
import random
import socket
import struct
import subprocess
import tempfile
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from cunet_lib.preprocess.tracks import STEMS, ensure_ffmpeg

TALLY = Counter()
"""Cases that were shown, by kind; ``conftest.py`` prints their number."""

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


def _noise(content):
    return random.Random(len(content)).randbytes(len(content))


def _flipped(content, share):
    rng, changed = random.Random(share), bytearray(content)
    for _ in range(max(1, int(len(content) * share))):
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _zip(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("song.wav", content)
    return buffer.getvalue()


NO_AUDIO = {
    "nothing at all": lambda content: b"",
    "one byte": lambda content: content[:1],
    "three bytes": lambda content: content[:3],
    "a few bytes": lambda content: content[:11],
    "only zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"La la la\n" * 500,
    "a web page": lambda content: b"<!DOCTYPE html><title>404</title><script>alert(1)</script>",
    "JSON": lambda content: json.dumps({"error": "quota"}).encode(),
    "a pickle": lambda content: pickle.dumps({"song": [1, 2, 3]}),
    "a zip of it": _zip,
    "a gzip of it": lambda content: gzip.compress(content, mtime=0),
    "a program": lambda content: b"\x7fELF\x02\x01\x01" + bytes(200),
}
"""What is no audio any more; it must be refused."""

DAMAGES = {
    "20 bytes": lambda content: content[:20],
    "36 bytes": lambda content: content[:36],
    "43 bytes": lambda content: content[:43],
    "a tenth": lambda content: content[: len(content) // 10],
    "half": lambda content: content[: len(content) // 2],
    "nine tenths": lambda content: content[: len(content) * 9 // 10],
    "without its last byte": lambda content: content[:-1],
    "noise": _noise,
    "zeros for a header": lambda content: bytes(64) + content[64:],
    "zeros for its middle": lambda content: (
        content[: len(content) // 3] + bytes(len(content) // 3) + content[2 * len(content) // 3 :]
    ),
    "without its first half": lambda content: content[len(content) // 2 :],
    "backwards": lambda content: content[::-1],
    "twice": lambda content: content + content,
    "with text before": lambda content: b"HTTP/1.1 200 OK\r\n\r\n" + content,
    "with text behind": lambda content: content + b"<html>" * 50,
    "some bits flipped": lambda content: _flipped(content, 0.0005),
    "many bits flipped": lambda content: _flipped(content, 0.02),
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
    fmt = struct.pack(
        "<HHIIHH",
        tag,
        channels,
        rate & 0xFFFFFFFF,
        header.get("speed", rate * align) & 0xFFFFFFFF,
        align,
        bits,
    )
    fmt = header.get("fmt", fmt)
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

NAMES = (
    "two words",
    "ends in a dot.",
    "-dash",
    "--out",
    ".hidden",
    "quote's",
    'double "quotes"',
    "back\\slash",
    "line\nbreak",
    "tab\tand\rreturn",
    "\x1b[31mred\x1b[0m",
    "bell\a",
    "$(touch injected)",
    "`touch injected`",
    "; touch injected;",
    "| tee injected",
    "%d%s%n",
    "{brace}",
    "<script>alert(1)<script>",
    "&amp;",
    "🎸 emoji 👨‍👩‍👧",
    "ñandú é ß 漢字",
    "\u202eright to left",
    "a" * 200,
    "concat:a|b",
    "http:",
    "file:",
    "pipe:0",
    "~",
    "*",
    "[ab]",
    "con",
    os.fsdecode(b"latin \xe9"),
)
"""Names of files and tracks that are unusual and allowed."""

PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXTINF:1,\nhttp://{host}/a.mp3\n#EXT-X-ENDLIST\n",
    "m3u": "#EXTM3U\nhttp://{host}/a.mp3\n",
    "ffconcat": "ffconcat version 1.0\nfile http://{host}/a.mp3\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>http://{host}/a.mp4</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "pls": "[playlist]\nFile1=http://{host}/a.mp3\nNumberOfEntries=1\n",
    "xspf": "<playlist><trackList><track><location>http://{host}/a.mp3</location></track>"
    "</trackList></playlist>",
    "mp4": "#EXTM3U\n#EXTINF:1,\nhttp://{host}/a.mp3\n#EXT-X-ENDLIST\n",
    "mp3": "#EXTM3U\n#EXTINF:1,\nhttp://{host}/a.mp3\n#EXT-X-ENDLIST\n",
}
"""Lists that would make a player open something else."""


def listener():
    """A socket that hears whoever calls, and its address."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    return server, f"127.0.0.1:{server.getsockname()[1]}"


def special(kind, path):
    """Make ``path`` something that is no file with a song in it; returns the path to give."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path.with_name("s")))
        server.close()
        path = path.with_name("s")
    elif kind == "device":
        path = type(path)("/dev/null")
    elif kind == "link to nothing":
        path.symlink_to("nothing")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "link to a folder":
        path.symlink_to(path.parent)
    elif kind == "below a file":
        path.write_bytes(container("wav"))
        path = path / "song.wav"
    elif kind == "name too long":
        path = path.with_name("a" * 300)
    elif kind == "null byte":
        path = path.with_name("a\0b.wav")
    elif kind == "missing":
        pass
    return path


SPECIAL = (
    *("folder", "pipe", "socket", "device", "link to nothing", "link to itself"),
    *("link to a folder", "below a file", "name too long", "null byte", "missing"),
)


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
        if kind != "missing":
            special(kind, path)

    return damage


def _with(value):
    def change(samples):
        samples = samples.copy()
        samples[len(samples) // 2] = value
        return samples

    return change


STEM_DAMAGES = {
    "missing": _replaced("missing"),
    "folder": _replaced("folder"),
    "pipe": _replaced("pipe"),
    "link to nothing": _replaced("link to nothing"),
    "link to itself": _replaced("link to itself"),
    "empty": _rewritten(lambda content: b""),
    "header only": _rewritten(lambda content: content[:44]),
    "cut short": _rewritten(lambda content: content[: len(content) // 2]),
    "last byte gone": _rewritten(lambda content: content[:-1]),
    "text": _rewritten(lambda content: b"La la la\n" * 99),
    "noise": _rewritten(_noise),
    "zeros": _rewritten(lambda content: bytes(len(content))),
    "zip": _rewritten(_zip),
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

_WRONG = """
nonsense=1 data=1 data.nonsense=1 train.lr=1 model.Filters=8 model.filters.x=1 x.y.z=1 =1 seed
data.source=spotify data.source= data.source=[rendered] data.seed=-1 data.seed=x data.seed=1.5
data.train_tracks=1 data.train_tracks=0 data.test_tracks=0 data.test_tracks=-3 data.seconds=1
data.seconds=1e9 data.seconds=.nan data.seconds=.inf data.validation=0 data.validation=-1
data.validation=4 data.validation=99 data.validation=[] data.validation=[a,a] data.validation=[1]
data.validation={a:1} data.validation=true_ data.validation= signal=[] signal.sample_rate=0
signal.sample_rate=-8192 signal.sample_rate=1999 signal.sample_rate=192001
signal.sample_rate=8192.5 signal.sample_rate=x signal.n_fft=0 signal.n_fft=1000 signal.n_fft=63
signal.n_fft=32768 signal.n_fft=-1024 signal.hop=0 signal.hop=-1 signal.hop=769 signal.hop=1024
signal.hop=100000 signal.hop=x model.filters=0 model.filters=-8 model.filters=257
model.filters=x model.filters=[8] model.blocks=1 model.blocks=9 model.blocks=0 model.blocks=2.5
model.blocks=7 model.blocks=8 model.patch_frames=0 model.patch_frames=3 model.patch_frames=65
model.patch_frames=100 model.patch_frames=-64 model.dropout=1 model.dropout=-0.1 model.dropout=2
model.dropout=x model.control_dropout=1 model.start=glorot model.start=1 train.batch_size=0
train.batch_size=-1 train.batch_size=x train.steps_per_epoch=0 train.unet_epochs=0
train.cunet_epochs=-1 train.learning_rate=0 train.learning_rate=-1 train.learning_rate=2
train.learning_rate=.nan train.learning_rate=.inf train.learning_rate=fast
train.learning_rate=1e-9 train.beta_1=1 train.beta_1=-0.1 train.epsilon=0 train.epsilon=1
train.patience=0 train.schedule=linear train.schedule= train.warmup_steps=-1
train.warmup_steps=8 train.lr_patience=0 train.lr_factor=0 train.lr_factor=1 train.lr_factor=x
train.min_learning_rate=0 train.min_learning_rate=1 train.min_delta=-1 train.conditions=[]
train.conditions=[none] train.conditions=one_hot_ train.conditions=1 train.progressive=1.1
train.progressive=-0.1 train.progressive=often train.remix=2 train.precision=float16
train.precision=32 train.jit=maybe train.validation_patches=0 separate.overlap=1
separate.overlap=-0.5 separate.overlap=x separate.batch_size=0 evaluate.window_seconds=0
evaluate.window_seconds=-1 evaluate.window_seconds=.nan evaluate.hop_seconds=0
evaluate.hop_seconds=x statistics.margin_db=0 statistics.margin_db=-1 statistics.alpha=0
statistics.alpha=0.5 statistics.alpha=1 statistics.power=0.5 statistics.power=1 shipped=unet
shipped=1 name= name=a/b name=../up name=. name=a.b title= title=[] seed=-1 seed=0.5 seed=one
"""
OVERRIDES = _WRONG.split()
"""Overrides of the profile ``smoke``, each of which is wrong."""

MINIMAL = "title: x\ndata: {source: rendered, validation: 1}\n"

YAML_FILES = {
    "empty": "",
    "only a comment": "# nothing\n",
    "a list": "- a\n- b\n",
    "a number": "1\n",
    "a string": "hello\n",
    "null": "null\n",
    "unclosed": "title: [",
    "tabs": "title:\n\t- x\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "no data": "title: x\n",
    "no title": "data: {source: rendered, validation: 1}\n",
    "no source": "title: x\ndata: {validation: 1}\n",
    "data is null": "title: x\ndata:\n",
    "data is a list": "title: x\ndata: [rendered]\n",
    "unknown key": MINIMAL + "learning_rate: 1\n",
    "unknown section": MINIMAL + "optimizer: {kind: adam}\n",
    "numbers as keys": MINIMAL + "1: 2\n",
    "null as key": MINIMAL + "null: 2\n",
    "a list as key": MINIMAL + "? [a]\n: 2\n",
    "a mapping as key": MINIMAL + "? {a: 1}\n: 2\n",
    "a key twice": MINIMAL + "seed: 1\nseed: 2\n",
    "a section twice": MINIMAL + "model: {filters: 2}\nmodel: {filters: 4}\n",
    "a nested key twice": MINIMAL + "model: {filters: 2, filters: 4}\n",
    "an object": MINIMAL + "seed: !!python/object/apply:os.system ['touch injected']\n",
    "a module": MINIMAL + "seed: !!python/module:os\n",
    "a name": MINIMAL + "seed: !!python/name:os.system\n",
    "a tag of its own": MINIMAL + "seed: !evil 1\n",
    "a date that is none": MINIMAL + "seed: 2020-13-45\n",
    "a bool that is none": MINIMAL + "seed: !!bool x\n",
    "an int that is none": MINIMAL + "seed: !!int x\n",
    "an empty int": MINIMAL + "seed: !!int ''\n",
    "binary that is none": MINIMAL + "seed: !!binary '*'\n",
    "a set": MINIMAL + "seed: !!set {a, b}\n",
    "a date": MINIMAL + "seed: 2020-01-01\n",
    "a title that is a date": "title: 2020-01-01\ndata: {source: rendered, validation: 1}\n",
    "an unknown alias": MINIMAL + "seed: *nothing\n",
    "an alias of itself": MINIMAL + "model: &a {filters: *a}\n",
    "a list of itself": "title: x\ndata: {source: rendered, validation: &a [*a]}\n",
    "a thousand laughs": MINIMAL
    + "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )
    + "seed: *j\n",
    "a number too long": MINIMAL + "seed: " + "9" * 5000 + "\n",
    "nested deeply": MINIMAL + "seed: " + "[" * 2000 + "]" * 2000 + "\n",
    "mappings nested deeply": MINIMAL + "seed: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n",
    "two megabytes": MINIMAL + "#" * (2 << 20),
    "control characters": "title: \x01\x02\n",
    "a name with a slash": MINIMAL + "name: a/b\n",
    "a name that goes up": MINIMAL + "name: ..\n",
    "a name with a line break": MINIMAL + 'name: "a\\nb"\n',
    "an empty name": MINIMAL + "name: ''\n",
    "a name too long": MINIMAL + f"name: {'a' * 41}\n",
    "patch not divisible": MINIMAL + "model: {blocks: 6, patch_frames: 100}\n",
    "hop larger than the window": MINIMAL + "signal: {n_fft: 512, hop: 513}\n",
    "more blocks than bins": MINIMAL + "signal: {n_fft: 64, hop: 16}\nmodel: {blocks: 8}\n",
}

BINARY_PROFILES = {
    "Latin-1": MINIMAL.encode() + b"shipped: caf\xe9\n",
    "UTF-16": MINIMAL.encode("utf-16"),
    "noise": random.Random(0).randbytes(2000),
    "a null byte": b"title: a\0b\n",
    "a zip": _zip(b"x"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
}

STAGES = (
    *("", ".", "..", "/", "99_nothing", "00_corpus.bass-seed0", "00_corpus.", "../00_corpus"),
    *("02_train_unet.bass", "02_train_unet.bass-seed", "02_train_unet.bass-seed-1"),
    *("02_train_unet.flute-seed0", "02_train_unet.bass-seed0-x", "02_train_unet.bass-seed0.5"),
    *("02_train_unet.../../x-seed0", "03_train_cunet.a b-seed0", "03_train_cunet.unet-seed0"),
    *("03_train_cunet.dense_simple-seed0-../x", "03_train_cunet.$(x)-seed0"),
    *("03_train_cunet.dense_simple-seed0-", "04_evaluate./etc/passwd-seed0", "02_train_unet\n"),
)

PARAMETERS = (
    ("00_corpus", "sede", "1"),
    ("00_corpus", "seed", "1"),
    ("00_corpus", "", "1"),
    ("02_train_unet", "instrument", "flute"),
    ("02_train_unet", "instrument", "../x"),
    ("02_train_unet", "instrument", ""),
    ("02_train_unet", "seed", "many"),
    ("02_train_unet", "seed", "-1"),
    ("02_train_unet", "seed", "1.5"),
    ("02_train_unet", "seed", "[1"),
    ("02_train_unet", "seed", ""),
    ("02_train_unet", "seed", "9" * 5000),
    ("03_train_cunet", "variant", "dense"),
    ("03_train_cunet", "suffix", "../../up"),
    ("03_train_cunet", "suffix", "a b"),
    ("03_train_cunet", "suffix", "$(touch injected)"),
    ("03_train_cunet", "suffix", "a\nb"),
    ("04_evaluate", "model", "../../x"),
    ("04_evaluate", "model", "a/b"),
    ("07_conditions", "model", "a\0b"),
    ("00_corpus", "profile", "nope"),
    ("00_corpus", "profile", "/nowhere/x.yaml"),
    ("00_corpus", "profile", "/dev/zero"),
    ("00_corpus", "overrides", "name=../up"),
    ("00_corpus", "overrides", "x"),
)

GRIDS = (
    *("", " ", "variant", "variant=", "=a", "variant=a,,b", "variant=dense_simple,dense_simple"),
    *("variant=nope", "seed=x", "nonsense=1", "train.nonsense=1", "train.learning_rate=fast"),
    *(
        "data.seed=1",
        "signal.hop=128",
        "profile=demo",
        "overrides=x=1",
        "variant=dense_simple seed",
    ),
    *("variant=[", "suffix=../up", "model.blocks=99", "$(touch injected)=1"),
)

REQUESTS = (
    *("", "+", "=", "voice", "vocals=", "vocals=loud", "vocals=2", "vocals=-1", "vocals=nan"),
    *(
        "vocals=inf",
        "vocals+vocals",
        "vocals+",
        "+vocals",
        "vocals=0.5=0.5",
        "VOCALS",
        "other,bass",
    ),
    *("../bass", "bass/drums", "vocals=1e309", "vocals\0"),
)


# -------------------------------------------------------------------------------- stored results

JUNK = (None, True, 0, -1, 1.5, 1e999, "", "x", "../x", "a/b", "\0", [], [1], {}, {"a": 1}, "é\n")
"""Values of every kind that JSON knows, in places where they are not expected."""

BROKEN_JSON = {
    "nothing": b"",
    "half": None,  # half of the real one
    "text": b"not JSON",
    "Latin-1": b'{"a": "\xe9"}',
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "an empty object": b"{}",
    "deep": b"[" * 100000 + b"]" * 100000,
    "a pickle": pickle.dumps({"a": 1}),
}


def broken_json(kind, content):
    """Bytes of a JSON file that is broken in this way."""
    return content[: len(content) // 2] if kind == "half" else BROKEN_JSON[kind]


def arrays(kind, content):
    """Bytes of an ``.npy`` file that is not the one of ``content``."""

    def saved(array):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    good = np.load(io.BytesIO(content))
    buffer = io.BytesIO()
    np.savez(buffer, good)
    return {
        "empty": lambda: b"",
        "one byte": lambda: content[:1],
        "half a header": lambda: content[:40],
        "half": lambda: content[: len(content) // 2],
        "noise": lambda: _noise(content),
        "text": lambda: b"samples\n" * 99,
        "an archive": buffer.getvalue,
        "pickled objects": lambda: saved(np.array([{"a": 1}], object)),
        "a pickle": lambda: pickle.dumps(good),
        "another shape": lambda: saved(good[:3]),
        "one sample less": lambda: saved(good[:, :-1]),
        "double precision": lambda: saved(good.astype(np.float64)),
        "whole numbers": lambda: saved(good.astype(np.int32)),
        "a header that promises a terabyte": lambda: content.replace(
            b"(5, %d)" % good.shape[1], b"(5, 99999999999)", 1
        ),
    }[kind]()


ARRAYS = (
    *("empty", "one byte", "half a header", "half", "noise", "text", "an archive"),
    *("pickled objects", "a pickle", "another shape", "one sample less", "double precision"),
    *("whole numbers", "a header that promises a terabyte"),
)


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


MODELS = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "last byte gone": lambda content: content[:-1],
    "noise": _noise,
    "text": lambda content: b"weights\n" * 99,
    "a pickle": lambda content: pickle.dumps({"weights": [1.0]}),
    "an HDF5 file of Keras 2": lambda content: b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a zip of a song": _zip,
    "a bit of its weights flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 4])
        + content[len(content) // 2 + 1 :]
    ),
    "many bits flipped": lambda content: _flipped(content, 0.001),
    "without weights": lambda content: altered_archive(
        content, lambda parts: {k: v for k, v in parts.items() if not k.endswith(".h5")}
    ),
    "without a configuration": lambda content: altered_archive(
        content, lambda parts: {k: v for k, v in parts.items() if k != "config.json"}
    ),
    "with a program in it": lambda content: altered_archive(
        content, lambda parts: parts | {"../../evil.py": b"import os"}
    ),
    "weights of nothing": lambda content: altered_archive(
        content, lambda parts: parts | {"model.weights.h5": b""}
    ),
    "weights of text": lambda content: altered_archive(
        content, lambda parts: parts | {"model.weights.h5": b"1.0 " * 99}
    ),
    "half its weights": lambda content: altered_archive(
        content,
        lambda parts: parts | {"model.weights.h5": parts["model.weights.h5"][: -len(content) // 3]},
    ),
    "a configuration of text": lambda content: altered_archive(
        content, lambda parts: parts | {"config.json": b"{"}
    ),
    "a configuration that is a list": lambda content: altered_archive(
        content, lambda parts: parts | {"config.json": b"[]"}
    ),
    "a configuration of brackets": lambda content: altered_archive(
        content, lambda parts: parts | {"config.json": b"[" * 99999}
    ),
    "a lambda": lambda content: altered_archive(content, _config(_lambda)),
    "a function of the system": lambda content: altered_archive(content, _config(_function)),
    "another name": lambda content: altered_archive(
        content, _config(lambda config: config["config"].update(name="mine"))
    ),
    "another class": lambda content: altered_archive(
        content, _config(lambda config: config.update(class_name="Sequential"))
    ),
    "a class of another module": lambda content: altered_archive(
        content, _config(lambda config: config.update(module="subprocess"))
    ),
    "no layers": lambda content: altered_archive(
        content, _config(lambda config: config["config"].update(layers=[]))
    ),
    "layers of text": lambda content: altered_archive(
        content, _config(lambda config: config["config"].update(layers="all"))
    ),
    "a billion filters": lambda content: altered_archive(content, _layer(filters=10**9)),
    "filters that do not fit": lambda content: altered_archive(content, _layer(filters=3)),
    "negative filters": lambda content: altered_archive(content, _layer(filters=-1)),
    "a field of a later version": lambda content: altered_archive(content, _layer(quantum=True)),
    "strides of nothing": lambda content: altered_archive(content, _layer(strides=None)),
}
"""What can be wrong with the file of a model."""


def finite(value):
    """Whether a number is one."""
    return isinstance(value, int | float) and math.isfinite(value)
