"""Floating-point operations of a network's products, counted from its layers."""

from __future__ import annotations

import keras
import numpy as np


def forward_flops(network: keras.Model) -> int:
    """Operations of the layers' products for one example, forwards.

    Two for every multiplication and addition of convolutions and dense layers, as if each were
    done and borders were not padded. Normalisation, activations and FiLM multiply no matrices.
    """
    total = 0
    for layer in network.layers:
        if hasattr(layer, "layers"):
            total += forward_flops(layer)
        elif getattr(layer, "kernel", None) is not None:
            # A transposed convolution applies its kernel at every input, others at every output.
            # Either way that is the coarser side; padding "valid" shortens the output too.
            places = min(_places(layer.input), _places(layer.output))
            total += 2 * places * int(np.prod(layer.kernel.shape))
    return total


def step_flops(network: keras.Model) -> int:
    """Operations of one example's training step: forwards, and twice as many backwards.

    Backwards each layer multiplies for the gradient of its kernel and for that of its input; the
    first layer's input needs none.
    """
    first = network.get_layer("encoder_1_convolution")
    return 3 * forward_flops(network) - 2 * _places(first.output) * int(np.prod(first.kernel.shape))


def _places(tensor) -> int:
    return int(np.prod(tensor.shape[1:-1], dtype=int))
