"""Keras' layers by faster kernels: the same weights, the same function, the same numbers.

On processors, most of what a training step spends outside its convolutions goes into batch
normalisation, which Keras composes of six passes over the feature maps, and oneDNN, TensorFlow's
library for them, has no good kernel for a transposed convolution with a single output channel, the
U-Net's last. Nor has it one for bfloat16 where the processor has no instructions for that. There
convolutions take their numbers, rounded to bfloat16 as they are, to float32, in which processors
with such instructions add up the products too. So every processor trains with ``mixed_bfloat16`` as
those do, at about the speed of float32; as TensorFlow does it, ten times as slowly. All layers fall
back to Keras' own where theirs would not serve; ``make bench`` times them against it.
"""

from __future__ import annotations

import keras
from keras import ops

from cunet_lib.devices import computes_bfloat16, gpus


def _by_float32(product, inputs, kernel):
    """A convolution of bfloat16 numbers, by float32 where the processor has no other way."""
    kernel = ops.cast(kernel, inputs.dtype)
    native = keras.backend.backend() != "tensorflow" or gpus() or computes_bfloat16()
    if native or inputs.dtype != "bfloat16":
        return product(inputs, kernel)
    return ops.cast(product(ops.cast(inputs, "float32"), ops.cast(kernel, "float32")), inputs.dtype)


@keras.saving.register_keras_serializable(package="cunet")
class Conv2D(keras.layers.Conv2D):
    """Convolution whose bfloat16 numbers are multiplied in float32 where that is faster."""

    def convolution_op(self, inputs, kernel):
        """Convolve ``(batch, height, width, channels)``; the dtype is that of ``inputs``."""
        return _by_float32(super().convolution_op, inputs, kernel)


@keras.saving.register_keras_serializable(package="cunet")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """Transposed convolution; its numbers as in :class:`Conv2D`."""

    def call(self, inputs):
        """``(batch, height, width, channels)`` to the same, larger by the strides."""
        if self.activation is not keras.activations.linear or self.data_format != "channels_last":
            return super().call(inputs)

        def product(inputs, kernel):
            return ops.conv_transpose(
                inputs,
                kernel,
                strides=list(self.strides),
                padding=self.padding,
                output_padding=self.output_padding,
                dilation_rate=self.dilation_rate,
            )

        outputs = _by_float32(product, inputs, self.kernel)
        return ops.add(outputs, ops.cast(self.bias, outputs.dtype)) if self.use_bias else outputs


@keras.saving.register_keras_serializable(package="cunet")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation over the last axis in TensorFlow's fused kernel.

    The statistics are taken in float32, whatever the dtype of the feature maps. Maps of one
    channel, other backends and synchronised replicas go Keras' way: the first because that is
    faster there, the others because the kernel cannot.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalise ``(batch, frequency, time, channels)``; same shape and dtype as ``inputs``."""
        fused = (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and inputs.shape[-1] > 1
            and inputs.dtype in ("float32", "bfloat16")
            and not self.synchronized
            and mask is None
        )
        if not fused:
            return super().call(inputs, training=training, mask=mask)
        from tensorflow import compat

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
        return outputs


@keras.saving.register_keras_serializable(package="cunet")
class ToOneChannel(Conv2DTranspose):
    """Transposed convolution to one channel: 5 x 5, stride 2, same padding.

    Along each axis, an even output sample sees two of the five taps and an odd one the other
    three. So the output is four interleaved maps, and a plain 3 x 3 convolution with four output
    channels gives them all (sub-pixel convolution; Shi et al. 2016): on processors in about a third
    of the time of the transposed kernel. Gradients keep that kernel's own, which are fast.

    With more output channels it does not pay, since 11 of the 36 taps are zeros. At a paper-size
    network's decoders 1 to 5 (forward, batches of 8, two cores, no AVX-512, medians in ms of the
    quieter of two runs): 17, 18, 16, 15, 21 by oneDNN's transposed kernel; 33, 28, 19, 20, 26 as
    here, or 22, 24, 18, 21, 27 with the weights rearranged beforehand. At half the width only
    decoder 5 gains, a twentieth, and not on one core. Without oneDNN (``TF_ENABLE_ONEDNN_OPTS=0``)
    decoders 1 and 2 would.
    """

    def __init__(self, filters=1, kernel_size=5, strides=2, padding="same", **kwargs):
        super().__init__(filters, kernel_size, strides=strides, padding=padding, **kwargs)
        if (self.filters, self.kernel_size, self.strides) != (1, (5, 5), (2, 2)):
            raise ValueError("ToOneChannel has one filter, a kernel of 5 x 5 and strides of 2.")

    def call(self, inputs):
        """``(batch, frequency, time, channels)`` to ``(batch, 2 frequency, 2 time, 1)``."""
        on_processor = keras.backend.backend() == "tensorflow" and not gpus()
        if not on_processor or self.compute_dtype == "float16":
            return super().call(inputs)
        outputs = _by_float32(_interleaved, inputs, self.kernel)
        return ops.add(outputs, ops.cast(self.bias, outputs.dtype)) if self.use_bias else outputs


def _interleaved(inputs, kernel):
    """The transposed convolution of ``inputs`` with ``kernel (5, 5, 1, channels)``."""
    import tensorflow as tf

    @tf.custom_gradient
    def transposed(x, weights):
        channels = weights.shape[-1]
        # Taps 4, 2, 0 make the odd samples, 3, 1 and none the even ones; pairs are turned so that
        # the even sample comes first.
        taps = tf.pad(tf.reverse(weights[:, :, 0], [0, 1]), [[0, 1], [0, 1], [0, 0]])
        taps = tf.reverse(tf.reshape(taps, (3, 2, 3, 2, channels)), [1, 3])
        taps = tf.reshape(tf.transpose(taps, (0, 2, 4, 1, 3)), (3, 3, channels, 4))
        four = tf.nn.conv2d(x, taps, 1, "SAME")
        _, height, width, _ = x.shape
        four = tf.transpose(tf.reshape(four, (-1, height, width, 2, 2)), (0, 1, 3, 2, 4))

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

        return tf.reshape(four, (-1, 2 * height, 2 * width, 1)), gradient

    return transposed(inputs, kernel)
