"""Feature-wise linear modulation (FiLM; Perez et al. 2018), as Keras layers for any backend."""

from __future__ import annotations

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="cunet")
class FiLM(keras.layers.Layer):
    """Scale and shift feature maps: ``gamma * x + beta``.

    Called with ``[x, gammas, betas]`` where ``x`` is ``(batch, frequency, time, channels)`` and
    ``gammas`` and ``betas`` are ``(batch, conditions)``, the control network's values for all
    blocks. This block's values are ``start`` to ``start + size``: one value for the whole block
    (simple FiLM) or one per channel (complex FiLM).

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

    def build(self, input_shape):
        """Check that the values fit the channels and the control network's output."""
        channels, values = input_shape[0][-1], input_shape[1][-1]
        if self.size not in (1, channels):
            raise ValueError(f"FiLM size {self.size} must be 1 or the {channels} channels of x.")
        if self.start + self.size > values:
            raise ValueError(
                f"FiLM takes values {self.start} to {self.start + self.size}, "
                f"the control network gives {values}."
            )
        super().build(input_shape)

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
