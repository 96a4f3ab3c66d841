"""What this machine has: cores, processor, GPUs, and the memory that a process took."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

import psutil

CPU_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "sve", "i8mm", "bf16"),
)
"""Instruction sets that decide which kernels numerical libraries choose, and so how they round."""


NVIDIA = Path("/proc/driver/nvidia/version")
"""There where the driver of an NVIDIA card is loaded."""


def cores() -> int:
    """Cores to use: ``CUNET_THREADS``, or all that this process may run on."""
    given = os.environ.get("CUNET_THREADS")
    return int(given) if given else usable_cores()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


@functools.cache
def cpu() -> dict:
    """Model of the processor, and those of :data:`CPU_FLAGS` that it has: ``model``, ``flags``."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    return {
        "model": model[1].strip() if model else platform.processor() or None,
        "flags": [flag for flag in CPU_FLAGS if flag in has],
    }


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself, by its own word."""
    return bool({"avx512_bf16", "amx_bf16"} & set(cpu()["flags"]))


def gpus() -> list:
    """GPUs that Keras' backend, TensorFlow or JAX, can compute with."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.config.list_physical_devices("GPU")
    import jax

    return [device for device in jax.devices() if device.platform == "gpu"]


def idle_gpu() -> str:
    """A sentence if an NVIDIA card is here that Keras' backend cannot use; else nothing."""
    if not NVIDIA.exists() or gpus():
        return ""
    return (
        "An NVIDIA card is here, but its libraries are not: training runs on the processor. "
        "`make env GPU=1` installs them."
    )


def peak_memory() -> float:
    """Peak resident bytes of this process since its start.

    Not ``ru_maxrss``: on Linux that begins with the peak of the parent. Where the system does not
    tell the peak, what is resident now.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024.0 * int(re.search(r"^VmHWM:\s*(\d+)", status, re.MULTILINE)[1])
    except (OSError, TypeError):
        return float(psutil.Process().memory_info().rss)
