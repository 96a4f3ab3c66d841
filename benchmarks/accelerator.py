"""Throughput of a training step on an accelerator that JAX drives, where TensorFlow is missing.

    KERAS_BACKEND=jax python -m benchmarks.accelerator

The networks use ``keras.ops`` only, so JAX runs them as they are. One step takes waveforms of
mixture and target, their STFT, the network forwards and backwards, and Adam: what
:mod:`cunet_lib.train.training` does with TensorFlow. Three precisions are timed: float32 throughout,
float32 with TF32 products (as NVIDIA GPUs have them), and the study's mixed bfloat16. Beside each
stands the rate of plain matrix products in the same precision, on the same device, in the same run:
the share of it that the step reaches compares between devices.

Needs keras, jax, numpy, scipy, pandas, pydantic and pyyaml, and no data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops

from cunet_lib.core.files import write_json
from cunet_lib.core.settings import ROOT, ConfigError, Model, Signal
from cunet_lib.core.systems import VARIANTS
from cunet_lib.models import unet as models
from cunet_lib.signal.spectral import graph_magnitude

PRECISIONS = {
    "float32": ("float32", "highest"),
    "TF32": ("float32", "tensorfloat32"),
    "bfloat16": ("mixed_bfloat16", "tensorfloat32"),
}
"""Keras dtype policy and JAX's precision of float32 products, by the name in the table."""

TRAINING_PASSES = 3
"""Products of a training step per product of a forward pass: outputs, and the gradients of inputs
and of weights (the first layer's input needs none, which is less than 1 % at paper size)."""


def main(arguments: list[str] | None = None) -> int:
    """Print the table and keep it as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", default="dense_complex", choices=VARIANTS)
    parser.add_argument(
        "--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="(all)"
    )
    parser.add_argument("--batch", type=int, default=64, help="patches (default: %(default)s)")
    parser.add_argument("--filters", type=int, default=16, help="(default: %(default)s, paper)")
    parser.add_argument("--blocks", type=int, default=6, help="(default: %(default)s, paper)")
    parser.add_argument("--frames", type=int, default=128, help="(default: %(default)s, paper)")
    parser.add_argument("--product", type=int, default=8192, help="size of the matrix products")
    parser.add_argument("--seconds", type=float, default=10.0, help="about this long per figure")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "bench" / "accelerator.json", help="JSON"
    )
    options = parser.parse_args(arguments)
    try:
        size = Model(filters=options.filters, blocks=options.blocks, patch_frames=options.frames)
        table = measure(
            options.model,
            size,
            precisions=options.precisions,
            batch=options.batch,
            product=options.product,
            seconds=options.seconds,
        )
    except ValueError as error:  # a ConfigError, or what pydantic says of a size
        print(error, file=sys.stderr)
        return 2
    import jax

    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}")
    print(table.to_string(index=False, float_format="{:.4g}".format))
    record = {
        "device": device.device_kind,
        "platform": device.platform,
        "versions": {"jax": jax.__version__, "keras": keras.__version__},
        "model": options.model,
        "size": size.model_dump(include={"filters", "blocks", "patch_frames"}),
        "batch": options.batch,
        "product": options.product,
        "rates": table.to_dict("records"),
    }
    write_json(options.out, record)
    return 0


def measure(
    model: str,
    size: Model,
    *,
    batch: int,
    product: int,
    seconds: float,
    precisions: Sequence[str] = tuple(PRECISIONS),
    signal: Signal | None = None,
) -> pd.DataFrame:
    """Rates of the training step, of its STFT and of matrix products, for each precision.

    Parameters
    ----------
    model
        A C-U-Net variant.
    size
        Of the network.
    batch
        Patches of a step.
    product
        Rows and columns of the matrices.
    seconds
        About this long per figure, after compilation.
    precisions
        Keys of :data:`PRECISIONS`.
    signal
        Sample rate and STFT; the paper's if not given.

    Returns
    -------
    pandas.DataFrame
        One row per precision: precision, patches_per_second, step_ms, stft_share (time of the STFT
        of mixture and target alone over that of the step), tflops, product_tflops, share.

    Raises
    ------
    ConfigError
        If Keras does not run on JAX, or a size does not fit the STFT.
    """
    if keras.backend.backend() != "jax":
        raise ConfigError(
            "This measures JAX, and Keras runs on "
            f"{keras.backend.backend()}: set KERAS_BACKEND=jax."
        )
    import jax

    signal = signal or Signal()
    step = 2**size.blocks
    if signal.bins % step or size.patch_frames % step:
        raise ConfigError(
            f"{signal.bins} bins and {size.patch_frames} frames must be multiples of "
            f"2^blocks = {step}."
        )
    rows = []
    for name in precisions:
        policy, products = PRECISIONS[name]
        with jax.default_matmul_precision(products):
            network = models.build(
                model,
                shape=(signal.bins, size.patch_frames, 1),
                filters=size.filters,
                blocks=size.blocks,
                precision=policy,
            )
            patches = _waveforms(batch, size, signal)
            per_step = _seconds(_training_step(network, patches, signal), seconds)
            per_stft = _seconds(_stft(patches, signal), seconds / 4)
            dtype = "bfloat16" if policy == "mixed_bfloat16" else "float32"
            rate = 2 * product**3 / _seconds(_product(product, dtype), seconds / 4)
            done = TRAINING_PASSES * batch * forward_flops(network) / per_step
        rows.append(
            {
                "precision": name,
                "patches_per_second": batch / per_step,
                "step_ms": 1e3 * per_step,
                "stft_share": per_stft / per_step,
                "tflops": done / 1e12,
                "product_tflops": rate / 1e12,
                "share": done / rate,
            }
        )
    return pd.DataFrame(rows)


def forward_flops(network: keras.Model) -> int:
    """Floating-point operations of the products in one patch's forward pass.

    Two for each weight and each place where it is used; what is added, normalised and activated is
    not counted.
    """
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            total += forward_flops(layer)
        elif isinstance(layer, keras.layers.Conv2DTranspose):
            total += 2 * int(np.prod(layer.kernel.shape)) * _places(layer.input)
        elif isinstance(layer, keras.layers.Conv1D | keras.layers.Conv2D):
            total += 2 * int(np.prod(layer.kernel.shape)) * _places(layer.output)
        elif isinstance(layer, keras.layers.Dense):
            total += 2 * int(np.prod(layer.kernel.shape))
    return total


def _places(tensor) -> int:
    """Positions of ``(batch, ..., channels)``, without batch and channels."""
    return int(np.prod(tensor.shape[1:-1]))


def _waveforms(batch: int, size: Model, signal: Signal):
    """Mixture and target ``(batch, samples)`` and conditions, on the device."""
    import jax

    rng = np.random.default_rng(0)
    samples = (size.patch_frames - 1) * signal.hop + signal.n_fft
    mixture = rng.normal(scale=1e-3, size=(batch, samples)).astype(np.float32)
    condition = np.eye(4, dtype=np.float32)[np.arange(batch) % 4]
    return jax.device_put((mixture, 0.5 * mixture, condition))


def _training_step(network: keras.Model, patches, signal: Signal) -> Callable[[], object]:
    """One call is one step of Adam; network and optimiser stay on the device."""
    import jax

    optimizer = keras.optimizers.Adam(1e-3, beta_1=0.5)
    optimizer.build(network.trainable_variables)

    def error(trainable, others, mixture, target, condition):
        estimate, others = network.stateless_call(
            trainable, others, [graph_magnitude(mixture, signal), condition], training=True
        )
        return ops.mean(ops.abs(graph_magnitude(target, signal) - estimate)), others

    def step(state, patches):
        trainable, others, moments = state
        (loss, others), gradients = jax.value_and_grad(error, has_aux=True)(
            trainable, others, *patches
        )
        trainable, moments = optimizer.stateless_apply(moments, gradients, trainable)
        return (trainable, others, moments), loss

    compiled = jax.jit(step, donate_argnums=0)
    state = tuple(
        [jax.numpy.array(variable.value) for variable in variables]
        for variables in (
            network.trainable_variables,
            network.non_trainable_variables,
            optimizer.variables,
        )
    )

    def call():
        nonlocal state
        state, loss = compiled(state, patches)
        return loss

    return call


def _stft(patches, signal: Signal) -> Callable[[], object]:
    import jax

    mixture, target, _ = patches
    compiled = jax.jit(lambda *audio: [graph_magnitude(each, signal) for each in audio])
    return lambda: compiled(mixture, target)


def _product(size: int, dtype: str) -> Callable[[], object]:
    import jax

    rng = np.random.default_rng(1)
    left, right = (
        jax.numpy.asarray(rng.normal(size=(size, size)).astype(np.float32), dtype) for _ in range(2)
    )
    compiled = jax.jit(jax.numpy.matmul)
    return lambda: compiled(left, right)


def _seconds(call: Callable[[], object], seconds: float) -> float:
    """Time of one call, after two that compile and warm up; the device works through a queue."""
    import jax

    for _ in range(2):
        jax.block_until_ready(call())
    count, start = 0, time.perf_counter()
    while True:
        # Calls are queued ahead of the device, some at a time so that the queue stays short.
        for _ in range(10):
            result = call()
            count += 1
            if time.perf_counter() - start >= seconds:
                break
        jax.block_until_ready(result)
        if time.perf_counter() - start >= seconds:
            return (time.perf_counter() - start) / count


if __name__ == "__main__":
    sys.exit(main())
