"""What a ``.keras`` file holds, looked at before Keras builds it.

Keras' safe mode refuses code in a model, yet it builds whatever layers of whatever size the file
asks for. The study's models consist of two dozen classes; a file that asks for anything else is
none of them, and is refused before a single object is made.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PARTS = ("metadata.json", "config.json", "model.weights.h5")
"""Members of a ``.keras`` file."""

CLASSES = {
    *("Functional", "InputLayer", "Activation", "BatchNormalization", "Concatenate", "Conv1D"),
    *("Conv2D", "Conv2DTranspose", "Dense", "Dropout", "FiLM", "Flatten", "LeakyReLU", "Multiply"),
    *("ReLU", "Reshape", "ToOneChannel", "Constant", "HeNormal", "Ones", "RandomNormal"),
    *("VarianceScaling", "Zeros", "DTypePolicy", "__keras_tensor__"),
}
"""Everything that a model of the study is made of."""

OURS = (None, "cunet_lib.models.film", "cunet_lib.models.fast")
"""Modules of classes that are not Keras' own."""

SIZES = ("filters", "units", "batch_shape", "target_shape", "kernel_size")
LARGEST = 1 << 16
"""Largest size of anything in a network; a paper-size one stays below a tenth of it."""

CONFIG_BYTES = 1 << 24
ARCHIVE_BYTES = 1 << 31


def problem(path: Path, names: Sequence[str]) -> str | None:
    """Why a file cannot be a model of the study; None if nothing speaks against it.

    Parameters
    ----------
    path
        A ``.keras`` file.
    names
        Names that a network of the study can have.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if set(sizes) != set(PARTS):
                return "it has not the parts of a Keras model"
            if sum(sizes.values()) > ARCHIVE_BYTES or sizes["config.json"] > CONFIG_BYTES:
                return "it unpacks to more than any model of the study"
            if archive.testzip() is not None:
                return "a part of it is damaged"
            config = json.loads(archive.read("config.json"))
    except (OSError, ValueError, RecursionError, RuntimeError, zipfile.BadZipFile):
        return "it is damaged, or no Keras model"
    except Exception:  # zlib, lzma and bz2 have errors of their own
        return "it is damaged"
    return _foreign(config, names)


def _foreign(config: Any, names: Sequence[str]) -> str | None:
    inner = config.get("config") if isinstance(config, Mapping) else None
    if not isinstance(inner, Mapping) or config.get("class_name") != "Functional":
        return "it holds another kind of model"
    for part in _mappings(config):
        kind, module = part.get("class_name", "Functional"), part.get("module")
        known = module in OURS or str(module).split(".")[0] == "keras"
        if kind not in CLASSES or not known:
            return f"it holds {kind!r}, of which no model of the study is made"
        if any(size > LARGEST for key in SIZES for size in _numbers(part.get(key))):
            return "it has sizes beyond those of any model of the study"
    if inner.get("name") not in names:
        return f"it is named {inner.get('name')!r}"
    return None


def _mappings(content: Any) -> Iterator[Mapping]:
    """Every mapping inside, without recursion: depth is the file's choice."""
    todo = [content]
    while todo:
        item = todo.pop()
        if isinstance(item, Mapping):
            yield item
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, int | float)]
