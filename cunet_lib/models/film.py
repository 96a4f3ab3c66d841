"""What conditions a U-Net: FiLM layers, where they act, and the networks that control them.

Feature-wise linear modulation (FiLM; Perez et al. 2018) scales and shifts feature maps. A control
network is one builder and one entry of :data:`CONTROLS`, a placement one of :data:`PLACEMENTS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from cunet_lib.core.systems import INSTRUMENTS, Variant
from cunet_lib.models.fast import BatchNormalization, Dropout


@keras.saving.register_keras_serializable(package="cunet")
class FiLM(layers.Layer):
    """Scale and shift feature maps: ``gamma * x + beta``.

    Called with ``[x, gammas, betas]`` where ``x`` is ``(batch, frequency, time, channels)`` and
    ``gammas`` and ``betas`` are ``(batch, values)``, the control network's values for all blocks.
    This block's values are ``start`` to ``start + size``: one value for the whole block (simple
    FiLM) or one per channel (complex FiLM).

    Parameters
    ----------
    start
        First of this block's values.
    size
        1, or the number of channels.
    """

    def __init__(self, start: int, size: int, **kwargs):
        super().__init__(**kwargs)
        self.start = start
        self.size = size

    def call(self, inputs):
        """Modulate ``x``; same shape as ``x``."""
        x, gammas, betas = inputs
        shape = (-1, 1, 1, self.size)
        gamma = ops.reshape(gammas[:, self.start : self.start + self.size], shape)
        beta = ops.reshape(betas[:, self.start : self.start + self.size], shape)
        return gamma * x + beta

    def compute_output_shape(self, input_shape):
        """Shape of ``x``."""
        return input_shape[0]

    def get_config(self):
        """Arguments to build the layer again."""
        return {**super().get_config(), "start": self.start, "size": self.size}


# ------------------------------------------------------------------------------ placements


PLACEMENTS: dict[str, Callable[[str, int, int], bool]] = {
    "encoder": lambda part, block, blocks: part == "encoder",  # the paper's
    "decoder": lambda part, block, blocks: part == "decoder",
}
"""Whether block ``block`` (from 0) of ``blocks`` in ``part`` (encoder, decoder) is modulated."""


# ------------------------------------------------------------------------------ control networks


def _dense(condition, units: Sequence[int], add: Callable):
    """Fully connected layers."""
    x = condition
    for size in units:
        x = add(x, layers.Dense, size)
    return x


def _cnn(condition, units: Sequence[int], add: Callable):
    """Convolutions over the instruments as a sequence; the last one sees all of them at once."""
    count = len(INSTRUMENTS)
    x = layers.Reshape((count, 1), name="sequence")(condition)
    for place, size in enumerate(units, start=1):
        padding = "valid" if place == len(units) else "same"
        x = add(x, layers.Conv1D, size, count, padding=padding)
    return layers.Flatten(name="embedding")(x)


@dataclass(frozen=True)
class Control:
    """A kind of control network.

    Attributes
    ----------
    embed
        ``embed(condition, units, add)`` gives the embedding ``(batch, features)`` that gammas and
        betas are linear functions of. ``add(x, kind, *arguments, **options)`` adds a hidden layer
        of that kind, with its activation, initialiser, dropout and normalisation.
    units
        Sizes of the hidden layers, by kind of FiLM.
    """

    embed: Callable
    units: Mapping[str, tuple[int, ...]]


CONTROLS = {
    "dense": Control(_dense, {"simple": (16, 64, 256), "complex": (16, 256, 1024)}),
    "cnn": Control(_cnn, {"simple": (16, 32, 64), "complex": (32, 64, 256)}),
    "small": Control(_dense, {"complex": (64,)}),
}
"""The control networks by name: the paper's two (section 3.3), and a small one with one hidden
layer, enough for four one-hot conditions."""


def control_network(variant: Variant, values: int, *, dropout: float, start, dtype: str):
    """Control network ``condition (batch, instruments) -> [gammas, betas] (batch, values)``.

    Parameters
    ----------
    variant
        Names the kind of network and of FiLM.
    values
        Gammas of all blocks together; as many betas.
    dropout
        Rate after each hidden layer but the first.
    start
        Initialisers and seeds (:class:`cunet_lib.models.unet.Start`).
    dtype
        Keras dtype policy.
    """
    control = CONTROLS[variant.control]
    numbers = itertools.count(1)

    def add(x, kind, *arguments, **options):
        number = next(numbers)
        name, kernel = f"control_{number}", start.kernel()
        options |= {"activation": "relu", "kernel_initializer": kernel, "dtype": dtype}
        x = kind(*arguments, **options, name=name)(x)
        if number > 1:
            x = Dropout(dropout, seed=start.seed(), dtype=dtype, name=f"{name}_dropout")(x)
            name = f"{name}_normalization"
            x = BatchNormalization(momentum=0.9, dtype=dtype, name=name)(x)
        return x

    condition = keras.Input((len(INSTRUMENTS),), name="condition")
    embedding = control.embed(condition, control.units[variant.film], add)
    heads = [
        layers.Dense(values, **start.head(scale=name == "gammas"), dtype=dtype, name=name)(
            embedding
        )
        for name in ("gammas", "betas")
    ]
    return keras.Model(condition, heads, name="control")


def modulation(
    variant: Variant,
    condition,
    channels: Mapping[str, Sequence[int]],
    *,
    dropout: float,
    start,
    dtype: str,
) -> Callable:
    """Control a U-Net by its condition ``(batch, instruments)``.

    Parameters
    ----------
    channels
        Of each block, by part: ``{"encoder": ..., "decoder": ...}``.
    variant, dropout, start, dtype
        As in :func:`control_network`.

    Returns
    -------
    Callable
        ``modulate(x, part, block, dtype)``: the block's maps after FiLM, where the variant has it.
    """
    acts = PLACEMENTS[variant.placement]
    sizes = {
        (part, block): count if variant.film == "complex" else 1
        for part, counts in channels.items()
        for block, count in enumerate(counts)
        if acts(part, block, len(counts))
    }
    firsts = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
    network = control_network(
        variant, sum(sizes.values()), dropout=dropout, start=start, dtype=dtype
    )
    gammas, betas = network(condition)

    def modulate(x, part, block, precision):
        place = (part, block)
        if place not in sizes:
            return x
        name = f"{part}_{block + 1}_film"
        film = FiLM(firsts[place], sizes[place], dtype=precision, name=name)
        return film([x, gammas, betas])

    return modulate


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
        Columns condition (row of ``z``), block (from 1, of those that are modulated, in the
        network's order), feature, gamma, beta.
    """
    gammas, betas = (
        ops.convert_to_numpy(values)
        for values in model.get_layer("control")(np.asarray(z, np.float32), training=False)
    )
    films = [layer for layer in model.layers if isinstance(layer, FiLM)]
    rows = []
    for block, film in enumerate(films, start=1):
        for condition, feature in itertools.product(range(len(gammas)), range(film.size)):
            place = condition, film.start + feature
            rows.append((condition, block, feature, gammas[place], betas[place]))
    return pd.DataFrame(rows, columns=["condition", "block", "feature", "gamma", "beta"])
