"""The U-Net (Jansson et al. 2017) and the Conditioned U-Nets of the study.

Shapes are ``(batch, frequency, time, channels)``. Every model maps magnitude patches of the
mixture to magnitude patches of the estimate, by a mask in [0, 1] that it multiplies the mixture
with; a C-U-Net takes the condition vector as second input. Sizes and details follow the paper
(section 3) and its released code; tests hold the parameter counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import keras
import numpy as np
import pandas as pd
from keras import initializers, layers, ops

from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS, MODELS, UNETS, VARIANTS
from cunet_lib.models.fast import (
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    Dropout,
    ToOneChannel,
)
from cunet_lib.models.film import FiLM, modulation


class Start:
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
        """The next seed."""
        return self._state.pop(0)

    def kernel(self) -> initializers.Initializer:
        """Initialiser of the next kernel."""
        if self.he:
            return initializers.HeNormal(seed=self.seed())
        return initializers.RandomNormal(stddev=0.02, seed=self.seed())

    def logits(self) -> dict:
        """Initialisers of the normalisation before the mask's sigmoid.

        Its scale and shift are single numbers, which Adam moves by about the learning rate a step:
        from 1 and 0, thousands of steps pass until a mask can be sharp, and low where the other
        instruments are. ``"he"`` starts nearer to that.
        """
        if not self.he:
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


@keras.saving.register_keras_serializable(package="cunet")
class Compressed(layers.Layer):
    """Magnitudes to the power of 0.3, about as loudness goes: quiet sounds count as well."""

    def call(self, x):
        """Of ``x``, at least 0; same shape. At 0 the slope of a power is infinite."""
        return ops.power(x + 1e-7, 0.3)


@keras.saving.register_keras_serializable(package="cunet")
class PerInstrument(layers.Layer):
    """Each row of a batch repeated for each instrument: ``(batch * instruments, ...)``."""

    def call(self, x):
        """Repeat the rows of ``x (batch, ...)``."""
        return ops.repeat(x, len(INSTRUMENTS), axis=0)


@keras.saving.register_keras_serializable(package="cunet")
class OneHots(layers.Layer):
    """The one-hot conditions ``(batch * instruments, instruments)`` of the rows of a batch."""

    def call(self, x):
        """Four rows for each row of ``x (batch, ...)``."""
        return ops.tile(ops.eye(len(INSTRUMENTS), dtype=self.dtype), (ops.shape(x)[0], 1))

    def compute_output_spec(self, x):
        """Shape for any batch."""
        return keras.KerasTensor((None, len(INSTRUMENTS)), self.compute_dtype)


@keras.saving.register_keras_serializable(package="cunet")
class Shares(layers.Layer):
    """A softmax over instruments: what each has of every place of a patch.

    ``(batch * instruments, frequency, time, 1)`` to ``(batch, instruments, frequency, time)``.
    """

    def call(self, x):
        """Shares in [0, 1] that add up to one over the instruments."""
        x = ops.reshape(x, (-1, len(INSTRUMENTS), *x.shape[1:3]))
        # As ops.softmax; that one transposes the maps twice for an axis which is not the last.
        x = ops.exp(x - ops.stop_gradient(ops.max(x, axis=1, keepdims=True)))
        return x / ops.sum(x, axis=1, keepdims=True)

    def compute_output_shape(self, shape):
        """For a batch of unknown size, which JAX could not divide by the instruments."""
        return (None, len(INSTRUMENTS), *shape[1:3])


@keras.saving.register_keras_serializable(package="cunet")
class Weighted(layers.Layer):
    """The mask that a condition asks for: the sum of the shares, each times its level in *z*."""

    def call(self, inputs):
        """From shares ``(batch, instruments, frequency, time)`` and ``z (batch, instruments)``."""
        shares, z = inputs
        return ops.expand_dims(ops.einsum("bi,bift->bft", z, shares), -1)


def build(
    name: str,
    *,
    shape: Sequence[int] = (512, 128, 1),
    filters: int = 16,
    blocks: int = 6,
    dropout: float = 0.5,
    control_dropout: float = 0.5,
    start: str = "paper",
    seed: int = 0,
    precision: str = "float32",
) -> keras.Model:
    """Build a network of the study, by default with the paper's sizes.

    Parameters
    ----------
    name
        ``unet_<instrument>``, or a variant of :data:`cunet_lib.core.systems.VARIANTS`.
    shape
        ``(frequency, time, 1)`` of a patch; both multiples of ``2 ** blocks``.
    filters
        Channels of the first encoder block; each further block doubles them.
    blocks
        Encoder blocks, and as many decoder blocks.
    dropout
        Rate in the middle decoder blocks.
    control_dropout
        Rate in the control network.
    start
        Initial weights: ``"paper"`` or ``"he"`` (:class:`Start`).
    seed
        Of the initial weights and of dropout.
    precision
        Keras dtype policy. Under a mixed one normalisation computes in float32 (Keras sees to
        it), and the mask and the control network are float32 throughout.

    Returns
    -------
    keras.Model
        ``mixture (batch, *shape) -> estimate (batch, *shape)``; a C-U-Net takes ``[mixture,
        condition (batch, instruments)]``.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if name not in MODELS:
        raise ConfigError(f"No model {name!r}; there are: {', '.join(MODELS)}.")
    begin = Start(start, seed)
    # What mixed precision must not round: the mask and the control network.
    stable = "float16" if precision == "float16" else "float32"
    channels = {
        "encoder": [filters * 2**block for block in range(blocks)],
        "decoder": [filters * 2**block for block in reversed(range(blocks - 1))] + [1],
    }
    beyond = VARIANTS[name].beyond if name in VARIANTS else ()
    if "wide" in beyond:
        # One pass serves all instruments, so it can be wider; but not the deepest block, which
        # has most of the weights.
        channels["encoder"] = [*channels["encoder"][1:], channels["encoder"][-1]]
    mixture = keras.Input(tuple(shape), name="mixture")
    inputs, modulate = mixture, lambda x, *_: x
    if name in VARIANTS:
        condition = keras.Input((len(INSTRUMENTS),), name="condition")
        inputs = [mixture, condition]
        asked = OneHots(dtype=stable, name="one_hots")(mixture) if beyond else condition
        options = {"dropout": control_dropout, "start": begin, "dtype": stable}
        modulate = modulation(VARIANTS[name], asked, channels, **options)
    x = mixture
    if "compressed" in beyond:
        x = Compressed(dtype=stable, name="compressed")(mixture)
    skips = _encoded(x, channels["encoder"], modulate, begin, precision, beyond)
    options = {"dropout": dropout, "beyond": beyond}
    x = _decoded(skips, channels["decoder"], modulate, begin, precision, stable, **options)
    if beyond:
        shares = Shares(dtype=stable, name="shares")(x)
        mask = Weighted(dtype=stable, name="mask")([shares, condition])
    else:
        mask = layers.Activation("sigmoid", dtype=stable, name="mask")(x)
    estimate = layers.Multiply(dtype=stable, name="estimate")([mixture, mask])
    return keras.Model(inputs, estimate, name=name)


def _encoded(x, channels, modulate, begin, precision, beyond) -> list:
    """Outputs of all encoder blocks."""
    outputs = []
    for block, count in enumerate(channels):
        name = f"encoder_{block + 1}"
        x = _convolved(Conv2D, x, count, name, begin, precision)
        x = _normalised(x, name, precision)
        x = modulate(x, "encoder", block, precision)
        x = layers.LeakyReLU(negative_slope=0.2, dtype=precision, name=name)(x)
        if "wide" in beyond and count < channels[-1]:
            x = _residual(x, name, begin, precision)
        if "frequencies" in beyond:
            x = _over_frequencies(x, name, begin, precision)
        outputs.append(x)
    return outputs


def _decoded(skips, channels, modulate, begin, precision, stable, *, dropout, beyond):
    """Output of the last decoder block, before the mask's activation.

    A network with shares has a row for each instrument. What they have in common is computed once:
    the first block's convolution, and those of the skips.
    """
    x, last, shared = skips[-1], len(channels) - 1, bool(beyond)
    for block, count in enumerate(channels):
        name = f"decoder_{block + 1}"
        kind = Conv2DTranspose if block < last else ToOneChannel
        dtype = precision if block < last else stable
        # A softmax compares instruments: no start of the logits makes all masks lower.
        start = begin.logits() if block == last and not shared else {}
        beside = skips[-1 - block] if block and shared else None
        if block and not shared:
            x = layers.Concatenate(dtype=precision, name=f"{name}_skip")([skips[-1 - block], x])
        x = _convolved(kind, x, count, name, begin, precision, beside)
        if shared and not block:
            x = PerInstrument(dtype=precision, name=f"{name}_each")(x)
        x = _normalised(x, name, dtype, **start)
        x = modulate(x, "decoder", block, dtype)
        # Dropout in decoder blocks 2, 3 and 4 of 6: not in the first, nor in the last two.
        if 1 <= block < last - 1:
            x = Dropout(dropout, seed=begin.seed(), dtype=precision, name=f"{name}_dropout")(x)
        if block < last:
            x = layers.ReLU(dtype=precision, name=name)(x)
            if "frequencies" in beyond:
                x = _over_frequencies(x, name, begin, precision)
    return x


def _residual(x, name, begin, precision):
    """Maps, and what a further convolution makes of them, added up; that starts at zero."""
    inner, options = f"{name}_residual", {"padding": "same", "dtype": precision}
    kernel = begin.kernel()
    y = Conv2D(x.shape[-1], 3, **options, kernel_initializer=kernel, name=f"{inner}_convolution")(x)
    y = _normalised(y, inner, precision, gamma_initializer="zeros")
    y = layers.LeakyReLU(negative_slope=0.2, dtype=precision, name=inner)(y)
    return layers.Add(dtype=precision, name=f"{name}_deeper")([x, y])


def _over_frequencies(x, name, begin, precision):
    """Maps, and what two dense layers make of their frequencies, added up.

    The layers are the same for every frame and channel (time-distributed; Choi et al. 2020): unlike
    a convolution, they see a whole harmonic series. The second starts at zero.
    """
    count = x.shape[1]
    name, options = f"{name}_frequencies", {"dtype": precision}
    y = layers.Permute((2, 3, 1), **options, name=f"{name}_last")(x)
    start = {"activation": "relu", "kernel_initializer": begin.kernel()}
    y = layers.Dense(max(count // 4, 16), **start, **options, name=f"{name}_1")(y)
    start = {"use_bias": False, "kernel_initializer": "zeros"}
    y = layers.Dense(count, **start, **options, name=f"{name}_2")(y)
    y = layers.Permute((3, 1, 2), **options, name=f"{name}_first")(y)
    return layers.Add(**options, name=name)([x, y])


def _convolved(kind, x, channels, name, begin, precision, beside=None):
    """A convolution of ``x``, or of ``x`` and a skip ``beside`` it that instruments share."""
    options = {"strides": 2, "padding": "same", "dtype": precision}

    def convolution(name, **bias):
        kernel = begin.kernel()
        return kind(channels, 5, **options, **bias, kernel_initializer=kernel, name=name)

    y = convolution(f"{name}_convolution")(x)
    if beside is None:
        return y
    skip = convolution(f"{name}_skip_convolution", use_bias=False)(beside)
    skip = PerInstrument(dtype=precision, name=f"{name}_each")(skip)
    return layers.Add(dtype=precision, name=f"{name}_skip")([skip, y])


def _normalised(x, name, dtype, **start):
    """Batch normalisation in ``dtype``."""
    return BatchNormalization(momentum=0.9, **start, dtype=dtype, name=f"{name}_normalization")(x)


def is_conditioned(model: keras.Model) -> bool:
    """Whether the model takes a condition vector."""
    return len(model.inputs) == 2


def shares_model(model: keras.Model) -> keras.Model | None:
    """The part of a C-U-Net with shares that needs no condition, or None for another network.

    ``mixture (batch, frequency, time, 1) -> shares (batch, instruments, frequency, time)``.
    """
    shares = next((layer for layer in model.layers if layer.name == "shares"), None)
    return shares and keras.Model(model.inputs[0], shares.output, name=f"{model.name}_shares")


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
    normalised = {
        layer.name: model.get_layer(re.sub("(_skip)?_convolution", "_normalization", layer.name))
        for layer in model.layers
        if layer.name.endswith("_convolution")
    }
    dropped = [layer.name for layer in normalised.values()]

    def taken(layer):
        """Dense layers, as of the control network, are shared; kernels are set below."""
        if isinstance(layer, keras.Model | layers.Dense):
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
        kernel, *bias = model.get_layer(name).get_weights()
        gamma, beta, mean, variance = normalisation.get_weights()
        scale = gamma / np.sqrt(variance + normalisation.epsilon)
        layer = other.get_layer(name)
        # Kernels of transposed convolutions have their output channels last but one.
        transposed = isinstance(layer, layers.Conv2DTranspose)
        kernel = kernel * (scale[:, None] if transposed else scale)
        layer.set_weights([kernel, *((each - mean) * scale + beta for each in bias)])
    return other


def count_parameters(model: keras.Model) -> tuple[int, int]:
    """Total and trainable parameters."""
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    return model.count_params(), trainable


@cache
def multiply_adds(name: str, **size) -> int:
    """Products of kernels, of convolutions and dense layers, that a patch of a mixture takes.

    All instruments that one pass serves are counted: four of a C-U-Net with shares, else one. The
    control network, normalisation and activations are left out. ``size`` is that of :func:`build`.
    """
    model = build(name, **size)
    counted = [layer for layer in model.layers if hasattr(layer, "kernel")]
    inputs = [np.zeros((1, *each.shape[1:]), np.float32) for each in model.inputs]
    outputs = keras.Model(model.inputs, [layer.output for layer in counted])(inputs)
    total = 0
    for layer, output in zip(counted, outputs, strict=True):
        places = int(np.prod(output.shape[:-1]))
        if isinstance(layer, layers.Conv2DTranspose):
            # Each input meets the whole kernel; there are fewer inputs than outputs.
            places //= int(np.prod(layer.strides))
        total += places * int(np.prod(layer.kernel.shape))
    return total


def parameter_table(systems: Iterable[str]) -> pd.DataFrame:
    """Parameters of systems in the paper's size: columns model, parameters, trainable.

    The row ``unet`` counts the four dedicated U-Nets together.
    """
    rows = []
    for name in systems:
        copies = len(UNETS) if name == "unet" else 1
        counts = count_parameters(build(UNETS[0] if name == "unet" else name))
        rows.append((name, *(copies * count for count in counts)))
    return pd.DataFrame(rows, columns=["model", "parameters", "trainable"])


def describe(model: keras.Model) -> list[dict]:
    """Blocks of a built model in order, read off its layers, for drawings and records.

    Each is a mapping with name, part (control, encoder, decoder, output), type, input_shape and
    output_shape (frequency, time, channels), normalization, dropout, film (None, ``"simple"``,
    ``"complex"``) and skip_from.
    """
    inner = {layer.name: layer for layer in model.layers}
    control = {layer.name: layer for layer in getattr(inner.get("control"), "layers", [])}
    rows = [
        _row(layer, control, name=name, part="control")
        for name, layer in control.items()
        if re.fullmatch(r"control_\d+|gammas|betas", name)
    ]
    sizes = {layer.name: layer.size for layer in model.layers if isinstance(layer, FiLM)}
    kind = "complex" if max(sizes.values(), default=1) > 1 else "simple"
    for name in re.findall(r"^(\w+_\d+)_convolution$", "\n".join(inner), re.MULTILINE):
        part = name.split("_")[0]
        row = _row(inner[f"{name}_convolution"], inner, name=name, part=part)
        if skip := inner.get(f"{name}_skip"):
            beside = inner.get(f"{name}_skip_convolution")
            source = beside.input if beside else skip.input[0]
            source = source._keras_history.operation.name
            row["skip_from"] = source.removesuffix("_frequencies")
        rows.append(row | {"film": kind if f"{name}_film" in sizes else None})
    return [*rows, _row(inner["estimate"], inner, name="estimate", part="output")]


def _row(layer, beside: dict, *, name: str, part: str) -> dict:
    """What a layer says of itself, and the layers ``beside`` it of its block."""
    source = layer.input[0] if isinstance(layer.input, list) else layer.input
    dropout = beside.get(f"{name}_dropout")
    return {
        "name": name,
        "part": part,
        "type": "Conv2DTranspose" if isinstance(layer, ToOneChannel) else type(layer).__name__,
        "input_shape": list(source.shape[1:]),
        "output_shape": list(layer.output.shape[1:]),
        "normalization": f"{name}_normalization" in beside,
        "dropout": dropout.rate if dropout else 0.0,
        "film": None,
        "skip_from": None,
    }
