"""Keras' layers and Adam by faster kernels: the same functions of the same weights.

Their numbers differ by rounding, those of dropout by other masks.

What is slow on processors, where TensorFlow computes with oneDNN:

* convolutions, which take most of a training step: between a patch's deeper maps, which have many
  channels and few places, products in float32 do with fewer multiplications there
  (:mod:`cunet_lib.models.winograd`);
* what is left of them where rows are short, as in a patch's deepest maps (:class:`Conv2D`);
* a transposed convolution with a single output channel, the U-Net's last (:class:`ToOneChannel`);
* bfloat16 where the processor has no instructions for it. There convolutions take their numbers,
  rounded to bfloat16 as they are, to float32, in which processors with such instructions add up the
  products too. So every processor trains with ``mixed_bfloat16`` as those do, at about the speed of
  float32; as TensorFlow does it, ten times as slowly;
* what Keras composes of many passes over feature maps or weights: batch normalisation, Adam, and
  the random numbers of dropout;
* batch normalisation of bfloat16 maps whose channels do not fill a register: oneDNN has a kernel
  for float32 alone there (:class:`BatchNormalization`).

All fall back to Keras' own where theirs would not serve.
``make bench`` shows what a training step spends on each.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from cunet_lib.core.hardware import computes_bfloat16, gpus
from cunet_lib.models import winograd

NARROW = 8
"""Feature maps with rows of fewer frames than this are convolved on their side."""


def _on_processor() -> bool:
    return keras.backend.backend() == "tensorflow" and not gpus()


def _convolved(product, inputs, kernel, shrink: int):
    """``product(inputs, kernel)`` the way that is fastest here.

    oneDNN computes several outputs of a row at a time. A patch's deepest maps have rows of two and
    four frames, and columns four times as long. With both axes exchanged, convolutions of the
    former take half the time, those of the latter three quarters (bfloat16) to seven eighths,
    exchanging the axes of maps and kernel included (forwards and backwards, 16 patches, two cores
    with AVX-512). From eight frames on it is even.

    Parameters
    ----------
    inputs
        ``(batch, height, width, channels)``; the kernel is cast to their dtype.
    shrink
        By how much the product divides height and width, 1 if they grow; 0 if the axes cannot be
        exchanged.
    """
    kernel = ops.cast(kernel, inputs.dtype)
    height, width = inputs.shape[1:3]
    known = None not in (height, width) and shrink and _on_processor()
    if not (known and width < height and width // shrink < NARROW):
        return _by_float32(product, inputs, kernel)
    inputs, kernel = ops.transpose(inputs, (0, 2, 1, 3)), ops.transpose(kernel, (1, 0, 2, 3))
    return ops.transpose(_by_float32(product, inputs, kernel), (0, 2, 1, 3))


def _plain(layer) -> bool:
    """Whether a layer has the strides, padding and layout of the study's; sizes are free."""
    return (
        tuple(layer.strides) == (winograd.STRIDE, winograd.STRIDE)
        and tuple(layer.dilation_rate) == (1, 1)
        and layer.padding == "same"
        and layer.data_format == "channels_last"
        and getattr(layer, "output_padding", None) is None
        and getattr(layer, "groups", 1) == 1
    )


def _by_float32(product, inputs, kernel):
    """A product of bfloat16 numbers, by float32 where the processor has no other way."""
    if inputs.dtype != "bfloat16" or not _on_processor() or computes_bfloat16():
        return product(inputs, kernel)
    return ops.cast(product(ops.cast(inputs, "float32"), ops.cast(kernel, "float32")), inputs.dtype)


def _saves_multiplications(layer, inputs, grows: int, training) -> bool:
    """Whether a layer is computed as :mod:`cunet_lib.models.winograd` does.

    In training alone: what prepares the kernel is shared by a batch, and small ones, as inference
    takes them, are no faster by it.
    """
    float32 = inputs.dtype == "float32" or (inputs.dtype == "bfloat16" and not computes_bfloat16())
    height, width = inputs.shape[1:3]
    return (
        training is True
        and float32
        and _on_processor()
        and _plain(layer)
        and None not in (height, width)
        and winograd.pays(grows * height, grows * width, tuple(layer.kernel.shape))
    )


def _finished(layer, outputs):
    """``outputs`` with the layer's bias and activation."""
    if layer.use_bias:
        outputs = ops.add(outputs, ops.cast(layer.bias, outputs.dtype))
    return outputs if layer.activation is None else layer.activation(outputs)


@keras.saving.register_keras_serializable(package="cunet")
class Conv2D(keras.layers.Conv2D):
    """Convolution; with fewer multiplications, turned, or in float32 (see the module)."""

    def call(self, inputs, training=None):
        """``(batch, height, width, channels)`` to the same, smaller by the strides."""
        if not _saves_multiplications(self, inputs, 1, training):
            return super().call(inputs)
        kernel = ops.cast(self.kernel, inputs.dtype)
        return _finished(self, _by_float32(winograd.convolved, inputs, kernel))

    def convolution_op(self, inputs, kernel):
        """Convolve ``(batch, height, width, channels)``; the dtype is that of ``inputs``."""
        shrink = winograd.STRIDE if _plain(self) else 0
        return _convolved(super().convolution_op, inputs, kernel, shrink)


@keras.saving.register_keras_serializable(package="cunet")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """Transposed convolution; computed as :class:`Conv2D` is."""

    def call(self, inputs, training=None):
        """``(batch, height, width, channels)`` to the same, larger by the strides."""
        if not _plain(self):
            return super().call(inputs)
        if _saves_multiplications(self, inputs, winograd.STRIDE, training):
            kernel = ops.cast(self.kernel, inputs.dtype)
            return _finished(self, _by_float32(winograd.transposed, inputs, kernel))

        def product(inputs, kernel):
            return ops.conv_transpose(
                inputs,
                kernel,
                strides=list(self.strides),
                padding=self.padding,
                dilation_rate=self.dilation_rate,
            )

        return _finished(self, _convolved(product, inputs, self.kernel, 1))


@keras.saving.register_keras_serializable(package="cunet")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation over the last axis in TensorFlow's fused kernel.

    The statistics are taken in float32, whatever the dtype of the feature maps. Maps of one
    channel go Keras' way, which is faster there. On processors, bfloat16 maps whose channels are no
    multiple of 16 pass through float32: oneDNN normalises 8 channels of bfloat16 by its reference
    code, which would take most of a U-Net's training step (``ONEDNN_VERBOSE=1`` shows it).
    """

    def call(self, inputs, training=None, mask=None):
        """Normalise ``(batch, frequency, time, channels)``; same shape and dtype as ``inputs``."""
        fused = (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and inputs.shape[-1] > 1
            and inputs.dtype in ("float32", "bfloat16")
            and mask is None
        )
        if not fused:
            return super().call(inputs, training=training, mask=mask)
        from tensorflow import compat

        dtype = inputs.dtype
        if dtype == "bfloat16" and inputs.shape[-1] % 16 and _on_processor():
            inputs = ops.cast(inputs, "float32")
        learns = bool(training) and self.trainable
        statistics = (self.moving_mean, self.moving_variance)
        outputs, mean, variance = compat.v1.nn.fused_batch_norm(
            inputs,
            ops.cast(self.gamma, "float32"),
            ops.cast(self.beta, "float32"),
            *(() if learns else (ops.cast(value, "float32") for value in statistics)),
            epsilon=self.epsilon,
            is_training=learns,
        )
        if learns:
            count = ops.cast(ops.size(inputs) // inputs.shape[-1], "float32")
            # The kernel gives the unbiased variance; Keras keeps the batch's own.
            batch = (mean, variance * (count - 1.0) / count)
            for kept, value in zip(statistics, batch, strict=True):
                moved = kept * self.momentum + ops.cast(value, kept.dtype) * (1.0 - self.momentum)
                kept.assign(moved)
        return ops.cast(outputs, dtype)


@keras.saving.register_keras_serializable(package="cunet")
class ToOneChannel(Conv2DTranspose):
    """Transposed convolution to one channel: 5 x 5, stride 2, same padding.

    Along each axis, an even output sample sees two of the five taps and an odd one the other
    three. So a square of 4 x 4 outputs depends on 4 x 4 inputs, and a plain convolution of that
    size, with stride 2 and an output channel for each of the 16, gives them all (after the
    sub-pixel convolution of Shi et al. 2016): in about a quarter of the time of the transposed
    kernel, whose single channel uses one of the 8 or 16 numbers of a register (16 patches, two
    cores with AVX-512). Gradients keep that kernel's own, which are fast.

    With more output channels it does not pay, since most of the taps are zeros.
    """

    def __init__(self, filters=1, kernel_size=5, strides=2, padding="same", **kwargs):
        super().__init__(filters, kernel_size, strides=strides, padding=padding, **kwargs)
        if (self.filters, self.kernel_size, self.strides) != (1, (5, 5), (2, 2)):
            raise ValueError("ToOneChannel has one filter, a kernel of 5 x 5 and strides of 2.")

    def call(self, inputs, training=None):
        """``(batch, frequency, time, channels)`` to ``(batch, 2 frequency, 2 time, 1)``."""
        even = all(size is not None and size % 2 == 0 for size in inputs.shape[1:3])
        if not (even and _plain(self) and self.compute_dtype != "float16" and _on_processor()):
            return super().call(inputs, training=training)
        kernel = ops.cast(self.kernel, inputs.dtype)
        return _finished(self, _by_float32(_by_squares, inputs, kernel))


def _by_squares(inputs, kernel):
    """The transposed convolution of ``inputs`` with ``kernel (5, 5, 1, channels)``."""
    import tensorflow as tf

    # Input q - 1 (of 4, counted from the square's own two) reaches output p of 4 by tap p + 3 - 2q.
    taps = np.arange(4) + 3 - 2 * np.arange(4)[:, None]
    reaches = np.eye(10)[taps + 3][..., 3:8]

    @tf.custom_gradient
    def transposed(x, weights):
        chosen = tf.constant(reaches, weights.dtype)
        # The taps of each output's row first, then those of its column.
        rows = tf.einsum("qpt,tuc->qpuc", chosen, weights[:, :, 0])
        both = tf.einsum("rsu,qpuc->qrcps", chosen, rows)
        squares = tf.nn.conv2d(x, tf.reshape(both, (4, 4, -1, 16)), 2, "SAME")
        _, height, width, _ = x.shape
        squares = tf.reshape(squares, (-1, height // 2, width // 2, 4, 4))
        outputs = tf.transpose(squares, (0, 1, 3, 2, 4))

        def gradient(upstream):
            return (
                tf.nn.conv2d(upstream, weights, 2, "SAME"),
                tf.raw_ops.Conv2DBackpropFilter(
                    input=upstream,
                    filter_sizes=tf.shape(weights),
                    out_backprop=x,
                    strides=[1, 2, 2, 1],
                    padding="SAME",
                ),
            )

        return tf.reshape(outputs, (-1, 2 * height, 2 * width, 1)), gradient

    return transposed(inputs, kernel)


@keras.saving.register_keras_serializable(package="cunet")
class Dropout(keras.layers.Dropout):
    """Dropout whose mask takes a byte of random bits for each value, in place of four.

    Bytes compare exactly with rates that are multiples of 1/256, as the paper's half; other rates
    go Keras' way. The mask is a function of seed and step, as Keras' is, but not the same one.
    """

    def call(self, inputs, training=False):
        """Zero values at random and scale the others up; same shape as ``inputs``."""
        bytewise = (
            _on_processor()
            and self.noise_shape is None
            and float(256 * self.rate).is_integer()
            and self.rate < 1
            and None not in inputs.shape[1:]
            and inputs.shape[-1] % 4 == 0
        )
        if not (training and self.rate and bytewise):
            return super().call(inputs, training=training)
        import tensorflow as tf

        *places, channels = tf.unstack(tf.shape(inputs))
        words = tf.random.stateless_uniform(
            [*places, channels // 4], self.seed_generator.next(), None, None, tf.uint32
        )
        drawn = tf.reshape(tf.bitcast(words, tf.uint8), tf.shape(inputs))
        kept = drawn >= tf.constant(int(256 * self.rate), tf.uint8)
        return tf.where(kept, inputs / (1.0 - self.rate), tf.zeros((), inputs.dtype))


@keras.saving.register_keras_serializable(package="cunet")
class Adam(keras.optimizers.Adam):
    """Adam (Kingma & Ba 2015) in one pass over each variable, in place of a dozen."""

    def update_step(self, gradient, variable, learning_rate):
        """Move one variable, and its two moments with it."""
        if keras.backend.backend() != "tensorflow" or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        index = self._get_variable_index(variable)
        moments = (self._momentums[index].value, self._velocities[index].value)
        step = tf.cast(self.iterations.value + 1, variable.dtype)
        first, second = (tf.cast(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            beta1_power=first**step,
            beta2_power=second**step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=first,
            beta2=second,
            epsilon=tf.cast(self.epsilon, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
        )
        return None
