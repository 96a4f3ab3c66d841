"""Networks on disk: ``.keras`` files, read without trusting what they say.

Of a file, only sizes and weights are taken. The network is built by :func:`unet.build`, and the
file's configuration has to agree with it: no class, function or size that a file asks for is ever
made. Files of other Keras versions are read by that, too.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cunet_lib.core.files import is_file, replacing
from cunet_lib.core.settings import ConfigError
from cunet_lib.models.unet import build

WEIGHTS = "model.weights.h5"
PARTS = {"metadata.json", "config.json", WEIGHTS}
"""Members of a ``.keras`` file."""

CONFIG_BYTES = 1 << 24
ARCHIVE_BYTES = 1 << 31

FREE = {"dtype", "seed", "rate", "build_config", "compile_config"}
FREE |= {f"{of}_initializer" for of in ("kernel", "bias", "gamma", "beta")}
FREE |= {"renorm_momentum"}  # Keras before 3.13 has none; without effect, as renorm is off
"""What may differ between networks of one architecture and size; it is not taken from the file."""


def load(path: Path | str, *, precision: str | None = None) -> keras.Model:
    """Load a model saved by the study.

    Its dropout rates and seeds are :func:`cunet_lib.models.unet.build`'s, whatever it was trained
    with.

    Parameters
    ----------
    path
        A ``.keras`` file.
    precision
        Keras dtype policy; that of the file if not given.

    Raises
    ------
    ConfigError
        If the file is missing, damaged or not a model of the study.
    """
    path = Path(path)
    if not is_file(path):
        raise ConfigError(f"No model at {path}; train it with `make reproduce` or name another.")
    try:
        model = _built(*_content(path), precision)
        model.load_weights(path)
    except Exception as error:  # zip, JSON, Keras and HDF5 raise two dozen kinds
        raise ConfigError(
            f"{path} is not a model of the study, or damaged; name another, or if the study "
            "trained it, delete it and run `make reproduce` again."
        ) from error
    return model


def _content(path: Path) -> tuple[dict, int]:
    """Configuration and size in bytes of the weights of a ``.keras`` file."""
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        if set(sizes) != PARTS or sum(sizes.values()) > ARCHIVE_BYTES:
            raise ValueError("It has not the parts of a Keras model.")
        if sizes["config.json"] > CONFIG_BYTES or archive.testzip() is not None:
            raise ValueError("A part of it is damaged.")
        return json.loads(archive.read("config.json")), sizes[WEIGHTS]


def _built(content: dict, weights: int, precision: str | None) -> keras.Model:
    """The network that a configuration describes; ``ValueError`` if the study has none such."""
    config = content["config"]
    layers = {layer["name"]: layer["config"] for layer in config["layers"]}
    blocks = sum(name.endswith("_skip") for name in layers) + 1
    deepest = layers[f"encoder_{blocks}_convolution"]
    filters = deepest["filters"] >> blocks - 1
    # The largest kernel has 5 x 5 numbers for each pair of channels, of two bytes or more.
    if filters < 1 or 25 * (filters << blocks - 1) ** 2 > weights:
        raise ValueError("It has not the weights of its sizes.")
    model = build(
        config["name"],
        shape=layers["mixture"]["batch_shape"][1:],
        filters=filters,
        blocks=blocks,
        precision=precision or deepest["dtype"]["config"]["name"],
    )
    if not _agrees(content, _configuration(model)):
        raise ValueError("It has another architecture.")
    return model


def _configuration(model: keras.Model) -> dict:
    """What a file says of a model."""
    return json.loads(json.dumps(keras.saving.serialize_keras_object(model)))


def _agrees(theirs: Any, ours: Any) -> bool:
    """Whether a part of a file's configuration says what that of the study's network does.

    Options that this version of Keras does not know have to be off.
    """
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return all(
            key in FREE or (_agrees(value, ours[key]) if key in ours else not value)
            for key, value in theirs.items()
        )
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(_agrees, theirs, ours))
    return theirs == ours


def save_half(model: keras.Model, path: Path) -> None:
    """Save weights in half precision, half the size; :func:`load` gives float32 on demand."""
    half = _built(_configuration(model), ARCHIVE_BYTES, "float16")
    half.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    with replacing(path) as partial:
        half.save(partial)
