"""What can be wrong with files that the study wrote itself: JSON, arrays, models."""

import io
import json
import pickle
import random
import zipfile
from functools import partial

import numpy as np


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
        "noise": lambda: noise(content),
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
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "last byte gone": lambda content: content[:-1],
    "noise": noise,
    "text": lambda content: b"weights\n" * 99,
    "a pickle": lambda content: pickle.dumps({"weights": [1.0]}),
    "an HDF5 file of Keras 2": lambda content: b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a zip of a song": zipped,
    "a bit of its weights flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 4])
        + content[len(content) // 2 + 1 :]
    ),
    "many bits flipped": lambda content: flipped(content, 0.001),
    **{case: partial(altered_archive, change=change) for case, change in _ARCHIVES.items()},
}
"""What can be wrong with the file of a model."""
