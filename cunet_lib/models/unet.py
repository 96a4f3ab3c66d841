"""The U-Net (Jansson et al. 2017) and the four Conditioned U-Nets of the study.

Shapes are ``(batch, frequency, time, channels)``. Every model maps magnitude patches of the
mixture to magnitude patches of the estimate, by a mask in [0, 1] that it multiplies the mixture
with; a C-U-Net takes the condition vector as second input. Sizes and details follow the paper
(section 3) and its released code; tests hold the parameter counts.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import initializers, layers

from cunet_lib.core.files import is_file, replacing
from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS, PAPER_NAMES, UNETS, VARIANTS
from cunet_lib.models import archive
from cunet_lib.models.fast import (
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    Dropout,
    ToOneChannel,
)
from cunet_lib.models.film import FiLM

PAPER_SHAPE = (512, 128, 1)
PAPER_FILTERS = 16
PAPER_BLOCKS = 6

CONTROL_UNITS = {
    ("dense", "simple"): (16, 64, 256),
    ("dense", "complex"): (16, 256, 1024),
    ("cnn", "simple"): (16, 32, 64),
    ("cnn", "complex"): (32, 64, 256),
}
"""Units of the three layers of each control network (paper, section 3.3)."""


class _Start:
    """Seeded initialisers, and the seeds of dropout, in the order of the layers.

    ``"paper"`` draws every kernel from a normal distribution with standard deviation 0.02, as the
    paper's code does. Spectrograms are small numbers, and normalisation adds 1e-3 to variances
    that are smaller still, so that the condition hardly reaches the gammas and betas at first.
    ``"he"`` keeps variances near 1 instead (He et al. 2015), and lets the gammas start around 1
    with a spread of about a half, so that conditions tell the instruments apart from the first
    step on.
    """

    def __init__(self, start: str, seed: int):
        self.he = start == "he"
        self._state = np.random.SeedSequence(seed).generate_state(64).tolist()

    def seed(self) -> int:
        return self._state.pop(0)

    def kernel(self):
        if self.he:
            return initializers.HeNormal(seed=self.seed())
        return initializers.RandomNormal(stddev=0.02, seed=self.seed())

    def logits(self, last: bool) -> dict:
        """Initialisers of the normalisation before the mask's sigmoid.

        Its scale and shift are single numbers, which Adam moves by about the learning rate a step:
        from 1 and 0, thousands of steps pass until a mask can be sharp, and low where the other
        instruments are. ``"he"`` starts nearer to that.
        """
        if not (self.he and last):
            return {}
        return {
            "gamma_initializer": initializers.Constant(2.0),
            "beta_initializer": initializers.Constant(-1.0),
        }

    def head(self, *, scale: bool) -> dict:
        """Initialisers of the layer that gives the gammas (``scale``) or the betas."""
        if not self.he:
            return {"kernel_initializer": self.kernel()}
        kernel = initializers.VarianceScaling(1.0, mode="fan_in", seed=self.seed())
        return {"kernel_initializer": kernel, "bias_initializer": "ones" if scale else "zeros"}


def build_unet(
    *,
    shape: Sequence[int] = PAPER_SHAPE,
    filters: int = PAPER_FILTERS,
    blocks: int = PAPER_BLOCKS,
    dropout: float = 0.5,
    start: str = "paper",
    seed: int = 0,
    precision: str = "float32",
    name: str = "unet",
) -> keras.Model:
    """U-Net for one instrument.

    Parameters
    ----------
    shape
        ``(frequency, time, 1)`` of a patch; both multiples of ``2 ** blocks``.
    filters
        Channels of the first encoder block; each further block doubles them.
    blocks
        Encoder blocks, and as many decoder blocks.
    dropout
        Rate in the middle decoder blocks.
    start
        Initial weights: ``"paper"`` or ``"he"`` (see the demo profile).
    seed
        Of the initial weights and of dropout.
    precision
        Keras dtype policy. Under a mixed one normalisation computes in float32 (Keras sees to
        it), and the mask and the control network are float32 throughout.

    Returns
    -------
    keras.Model
        ``mixture (batch, *shape) -> estimate (batch, *shape)``.
    """
    begin = _Start(start, seed)
    mixture = keras.Input(tuple(shape), name="mixture")
    x, skips = mixture, []
    for block in range(blocks):
        x = _encoder_block(x, block, filters * 2**block, None, begin, precision)
        skips.append(x)
    return keras.Model(
        mixture, _decode(mixture, x, skips, filters, dropout, begin, precision), name=name
    )


def build_cunet(
    *,
    control: str,
    film: str,
    shape: Sequence[int] = PAPER_SHAPE,
    filters: int = PAPER_FILTERS,
    blocks: int = PAPER_BLOCKS,
    units: Sequence[int] | None = None,
    dropout: float = 0.5,
    control_dropout: float = 0.5,
    start: str = "paper",
    seed: int = 0,
    precision: str = "float32",
    name: str | None = None,
) -> keras.Model:
    """Conditioned U-Net: one U-Net for all instruments, steered by a condition vector.

    Parameters
    ----------
    control
        Control network: ``"dense"`` or ``"cnn"``.
    film
        ``"simple"`` (one gamma and beta per encoder block) or ``"complex"`` (one per channel).
    units
        Layers of the control network; the paper's (:data:`CONTROL_UNITS`) if not given.
    control_dropout
        Rate in the control network.
    shape, filters, blocks, dropout, start, seed, precision
        As in :func:`build_unet`.

    Returns
    -------
    keras.Model
        ``[mixture (batch, *shape), condition (batch, instruments)] -> estimate (batch, *shape)``.

    Raises
    ------
    ConfigError
        If ``control`` or ``film`` is unknown.
    """
    if (control, film) not in CONTROL_UNITS:
        raise ConfigError(
            f"No C-U-Net with control={control!r}, film={film!r}; "
            "control is 'dense' or 'cnn', film is 'simple' or 'complex'."
        )
    begin = _Start(start, seed)
    channels = [filters * 2**block for block in range(blocks)]
    sizes = channels if film == "complex" else [1] * blocks
    mixture = keras.Input(tuple(shape), name="mixture")
    condition = keras.Input((len(INSTRUMENTS),), name="condition")
    network = _control_network(
        control,
        units or CONTROL_UNITS[control, film],
        sum(sizes),
        control_dropout,
        begin,
        precision,
    )
    gammas, betas = network(condition)
    x, skips, first = mixture, [], 0
    for block in range(blocks):
        modulation = (gammas, betas, first, sizes[block])
        x = _encoder_block(x, block, channels[block], modulation, begin, precision)
        first += sizes[block]
        skips.append(x)
    return keras.Model(
        [mixture, condition],
        _decode(mixture, x, skips, filters, dropout, begin, precision),
        name=name or f"{control}_{film}",
    )


def _encoder_block(x, block, channels, modulation, begin, precision):
    name = f"encoder_{block + 1}"
    x = Conv2D(
        channels,
        5,
        strides=2,
        padding="same",
        kernel_initializer=begin.kernel(),
        dtype=precision,
        name=f"{name}_convolution",
    )(x)
    x = BatchNormalization(momentum=0.9, dtype=precision, name=f"{name}_normalization")(x)
    if modulation is not None:
        gammas, betas, first, size = modulation
        x = FiLM(first, size, dtype=precision, name=f"{name}_film")([x, gammas, betas])
    return layers.LeakyReLU(negative_slope=0.2, dtype=precision, name=name)(x)


def _decode(mixture, x, skips, filters, dropout, begin, precision):
    blocks = len(skips)
    for block in range(blocks):
        name = f"decoder_{block + 1}"
        last = block == blocks - 1
        channels = 1 if last else filters * 2 ** (blocks - 2 - block)
        if block:
            x = layers.Concatenate(dtype=precision, name=f"{name}_skip")([skips[-1 - block], x])
        convolution = ToOneChannel if last else Conv2DTranspose
        x = convolution(
            channels,
            5,
            strides=2,
            padding="same",
            kernel_initializer=begin.kernel(),
            dtype=precision,
            name=f"{name}_convolution",
        )(x)
        dtype = _stable(precision) if last else precision
        x = BatchNormalization(
            momentum=0.9, **begin.logits(last), dtype=dtype, name=f"{name}_normalization"
        )(x)
        # Dropout in decoder blocks 2, 3 and 4 of 6: not in the first, nor in the last two.
        if 1 <= block < blocks - 2:
            x = Dropout(dropout, seed=begin.seed(), dtype=precision, name=f"{name}_dropout")(x)
        if not last:
            x = layers.ReLU(dtype=precision, name=name)(x)
    dtype = _stable(precision)
    mask = layers.Activation("sigmoid", dtype=dtype, name="mask")(x)
    return layers.Multiply(dtype=dtype, name="estimate")([mixture, mask])


def _stable(precision: str) -> str:
    """Dtype of what mixed precision must not round: the mask and the control network."""
    return "float16" if precision == "float16" else "float32"


def _control_network(control, units, values, dropout, begin, precision) -> keras.Model:
    """``condition (batch, instruments) -> [gammas, betas] (batch, values)``."""
    dtype = _stable(precision)
    condition = keras.Input((len(INSTRUMENTS),), name="condition")
    x = condition
    if control == "cnn":
        x = layers.Reshape((len(INSTRUMENTS), 1), dtype=dtype, name="sequence")(x)
    for index, size in enumerate(units):
        name = f"control_{index + 1}"
        common = {
            "activation": "relu",
            "kernel_initializer": begin.kernel(),
            "dtype": dtype,
            "name": name,
        }
        if control == "dense":
            x = layers.Dense(size, **common)(x)
        else:
            padding = "valid" if index == len(units) - 1 else "same"
            x = layers.Conv1D(size, len(INSTRUMENTS), padding=padding, **common)(x)
        if index:
            x = Dropout(dropout, seed=begin.seed(), dtype=dtype, name=f"{name}_dropout")(x)
            x = BatchNormalization(momentum=0.9, dtype=dtype, name=f"{name}_normalization")(x)
    if control == "cnn":
        x = layers.Flatten(dtype=dtype, name="embedding")(x)
    gammas, betas = (
        layers.Dense(
            values,
            **begin.head(scale=name == "gammas"),
            dtype=dtype,
            name=name,
        )(x)
        for name in ("gammas", "betas")
    )
    return keras.Model(condition, [gammas, betas], name="control")


def build(
    name: str,
    *,
    shape: Sequence[int] = PAPER_SHAPE,
    filters: int = PAPER_FILTERS,
    blocks: int = PAPER_BLOCKS,
    dropout: float = 0.5,
    control_dropout: float = 0.5,
    start: str = "paper",
    seed: int = 0,
    precision: str = "float32",
) -> keras.Model:
    """Build a model of the study by its name.

    Parameters
    ----------
    name
        ``unet_<instrument>``, or a variant of :data:`cunet_lib.core.settings.VARIANTS`.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    size = {
        "shape": shape,
        "filters": filters,
        "blocks": blocks,
        "dropout": dropout,
        "start": start,
    }
    if name in UNETS:
        return build_unet(**size, seed=seed, precision=precision, name=name)
    if name in VARIANTS:
        control, film = name.split("_")
        return build_cunet(
            control=control,
            film=film,
            **size,
            control_dropout=control_dropout,
            seed=seed,
            precision=precision,
            name=name,
        )
    raise ConfigError(f"No model {name!r}; there are: {', '.join((*UNETS, *VARIANTS))}.")


def is_conditioned(model: keras.Model) -> bool:
    """Whether the model takes a condition vector."""
    return len(model.inputs) == 2


def mask_model(model: keras.Model) -> keras.Model:
    """The same network with the mask ``(batch, frequency, time, 1)`` as output."""
    return keras.Model(model.inputs, model.get_layer("mask").output, name=f"{model.name}_mask")


def folded(model: keras.Model, *, frames: int) -> keras.Model:
    """The same function for inference alone, on patches of another length.

    Normalisation with fixed statistics is a scale and a shift of each channel, which the kernel
    and bias of the convolution before it take over. Convolutions do not mind the length; their
    zero padding comes at the ends of the longer patch only, so that masks differ a little there.

    Parameters
    ----------
    model
        A network of the study in float32 or mixed bfloat16; its weights are float32 in both.
    frames
        Frames of a patch, a multiple of ``2 ** blocks``.
    """
    suffix = "_convolution"
    normalised = {
        layer.name: model.get_layer(layer.name.replace(suffix, "_normalization"))
        for layer in model.layers
        if layer.name.endswith(suffix)
    }
    dropped = [layer.name for layer in normalised.values()]

    def taken(layer):
        """The control network is shared; kernels are set below."""
        if isinstance(layer, keras.Model):
            return layer
        start = {"kernel_initializer": "zeros"} if layer.name in normalised else {}
        return type(layer).from_config({**layer.get_config(), **start})

    def called(layer, *given, **options):
        return given[0] if layer.name in dropped else layer(*given, **options)

    inputs = [keras.Input(each.shape[1:], name=each.name) for each in model.inputs]
    bins, _, channels = inputs[0].shape[1:]
    inputs[0] = keras.Input((bins, frames, channels), name=inputs[0].name)
    other = keras.models.clone_model(
        model,
        input_tensors=inputs if is_conditioned(model) else inputs[0],
        clone_function=taken,
        call_function=called,
    )
    for name, normalisation in normalised.items():
        kernel, bias = model.get_layer(name).get_weights()
        gamma, beta, mean, variance = normalisation.get_weights()
        scale = gamma / np.sqrt(variance + normalisation.epsilon)
        layer = other.get_layer(name)
        # Kernels of transposed convolutions have their output channels last but one.
        transposed = isinstance(layer, layers.Conv2DTranspose)
        kernel = kernel * (scale[:, None] if transposed else scale)
        layer.set_weights([kernel, (bias - mean) * scale + beta])
    return other


def load(path: Path | str, *, precision: str | None = None) -> keras.Model:
    """Load a model saved by the study, in safe mode.

    Parameters
    ----------
    path
        A ``.keras`` file.
    precision
        Rebuild the network with this dtype policy; as it was saved if not given.

    Raises
    ------
    ConfigError
        If the file is missing or is not a model of the study.
    """
    path = Path(path)
    if not is_file(path):
        raise ConfigError(f"No model at {path}; train it with `make reproduce` or name another.")
    remedy = "name another; if the study trained it, delete it and run `make reproduce` again"
    reason = archive.problem(path, (*UNETS, *VARIANTS))
    if reason is not None:
        raise ConfigError(f"{path} is not a model of the study ({reason}); {remedy}.")
    try:
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except (TypeError, ValueError):
            if not _from_younger_keras(path):
                raise
            model = _rebuilt(path)
        return model if precision is None else with_precision(model, precision)
    except Exception as error:  # Keras and HDF5 raise a dozen kinds for a file that is not right
        raise ConfigError(
            f"{path} cannot be read as a Keras model of the study; {remedy}."
        ) from error


def _from_younger_keras(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        written = json.loads(file.read("metadata.json"))["keras_version"]
    this, other = ([int(n) for n in v.split(".")[:2]] for v in (keras.__version__, written))
    return other > this


def _rebuilt(path: Path) -> keras.Model:
    """The network of a file that a younger Keras wrote, with options that this one does not know.

    Python 3.10 has no Keras after 3.12, whose layers lack some that are off in all files of the
    study. Sizes are read off the file, and the weights put into a network of today.
    """
    with zipfile.ZipFile(path) as file:
        content = json.loads(file.read("config.json"))["config"]
    configs = {layer["config"]["name"]: layer["config"] for layer in content["layers"]}
    first = configs["encoder_1_convolution"]
    model = build(
        content["name"],
        shape=configs["mixture"]["batch_shape"][1:],
        filters=first["filters"],
        blocks=sum(name.endswith("_skip") for name in configs) + 1,
        precision=first["dtype"]["config"]["name"],
    )
    model.load_weights(path)
    return model


def with_precision(model: keras.Model, precision: str) -> keras.Model:
    """The same network and weights under another dtype policy."""
    first = model.get_layer("encoder_1_convolution")
    other = build(
        model.name,
        shape=model.inputs[0].shape[1:],
        filters=first.filters,
        blocks=sum(layer.name.endswith("_skip") for layer in model.layers) + 1,
        precision=precision,
    )
    other.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    return other


def save_half(model: keras.Model, path: Path) -> None:
    """Save weights in half precision, half the size; :func:`load` gives float32 on demand."""
    half = with_precision(model, "float16")
    with replacing(path) as partial:
        half.save(partial)


def count_parameters(model: keras.Model) -> tuple[int, int]:
    """Total and trainable parameters."""
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    return model.count_params(), trainable


def parameter_table(
    *,
    shape: Sequence[int] = PAPER_SHAPE,
    filters: int = PAPER_FILTERS,
    blocks: int = PAPER_BLOCKS,
) -> pd.DataFrame:
    """Parameters of every model: columns model, paper_name, parameters, trainable.

    The row ``unet`` counts the four dedicated U-Nets together.
    """
    rows = []
    for name in (UNETS[0], *VARIANTS):
        total, trainable = count_parameters(
            build(name, shape=shape, filters=filters, blocks=blocks)
        )
        copies = len(INSTRUMENTS) if name in UNETS else 1
        key = "unet" if name in UNETS else name
        rows.append((key, PAPER_NAMES[key], copies * total, copies * trainable))
    return pd.DataFrame(rows, columns=["model", "paper_name", "parameters", "trainable"])


def describe(model: keras.Model) -> list[dict]:
    """Blocks of a built model in order, read off its layers, for drawings and records.

    Each is a mapping with name, part (control, encoder, decoder, output), type, kernel, stride,
    input_shape and output_shape (frequency, time, channels), normalization, dropout, film (None,
    ``"simple"``, ``"complex"``), activation and skip_from.
    """
    names = {layer.name for layer in model.layers}
    rows = []
    if "control" in names:
        control = model.get_layer("control")
        inner = {layer.name for layer in control.layers}
        for layer in control.layers:
            if isinstance(layer, layers.Dense | layers.Conv1D):
                dropout = f"{layer.name}_dropout"
                rows.append(
                    _row(
                        layer,
                        part="control",
                        normalization=f"{layer.name}_normalization" in inner,
                        dropout=control.get_layer(dropout).rate if dropout in inner else 0.0,
                        activation=layer.activation.__name__,
                    )
                )
    blocks = [name.removesuffix("_convolution") for name in _ordered(model, "_convolution")]
    for name in blocks:
        part = name.split("_")[0]
        film = f"{name}_film"
        size = model.get_layer(film).size if film in names else 0
        skip = None
        if f"{name}_skip" in names:
            skip = model.get_layer(f"{name}_skip").input[0]._keras_history.operation.name
        dropout = f"{name}_dropout"
        rows.append(
            _row(
                model.get_layer(f"{name}_convolution"),
                part=part,
                name=name,
                normalization=f"{name}_normalization" in names,
                dropout=model.get_layer(dropout).rate if dropout in names else 0.0,
                film=None if not size else "simple" if size == 1 else "complex",
                activation="leaky_relu" if part == "encoder" else "relu",
                skip_from=skip,
            )
        )
    rows[-1]["activation"] = "sigmoid"
    rows.append(_row(model.get_layer("estimate"), part="output", activation="multiply"))
    return rows


def _ordered(model, suffix):
    return [layer.name for layer in model.layers if layer.name.endswith(suffix)]


def _row(layer, *, part, name=None, **facts) -> dict:
    source = layer.input[0] if isinstance(layer.input, list) else layer.input
    return {
        "name": name or layer.name,
        "part": part,
        "type": "Conv2DTranspose" if isinstance(layer, ToOneChannel) else type(layer).__name__,
        "kernel": list(layer.kernel_size) if hasattr(layer, "kernel_size") else None,
        "stride": list(layer.strides) if hasattr(layer, "strides") else None,
        "input_shape": list(source.shape[1:]),
        "output_shape": list(layer.output.shape[1:]),
        "normalization": False,
        "dropout": 0.0,
        "film": None,
        "activation": None,
        "skip_from": None,
        **facts,
    }


def film_parameters(model: keras.Model, z: np.ndarray) -> pd.DataFrame:
    """Gammas and betas that the control network gives for conditions.

    Parameters
    ----------
    model
        A C-U-Net.
    z
        ``(conditions, instruments)``.

    Returns
    -------
    pandas.DataFrame
        Columns condition (row of ``z``), block (from 1), feature, gamma, beta.
    """
    gammas, betas = (
        keras.ops.convert_to_numpy(values)
        for values in model.get_layer("control")(np.asarray(z, np.float32), training=False)
    )
    rows = []
    for block, name in enumerate(_ordered(model, "_film"), start=1):
        film = model.get_layer(name)
        for condition in range(len(gammas)):
            for feature in range(film.size):
                index = film.start + feature
                rows.append(
                    (condition, block, feature, gammas[condition, index], betas[condition, index])
                )
    return pd.DataFrame(rows, columns=["condition", "block", "feature", "gamma", "beta"])
