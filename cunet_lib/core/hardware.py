"""One training on several devices of this machine, each with a share of every batch.

``tf.distribute.MirroredStrategy`` keeps a copy of the network on every device, cuts each batch into
equal shares, and adds up the gradients. Two things make its losses those of one device with the
whole batch: batch normalisation takes its statistics over all shares
(:func:`normalize_together`), and shares are equal. Dropout draws other masks than on one device,
each as likely. (``MultiWorkerMirroredStrategy``, for several machines, does not work with
``Model.fit`` of Keras 3: keras-team/keras issue 20585.)
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
from keras import ops

from cunet_lib.core.settings import ConfigError, Profile


def gpus() -> list:
    """GPUs that TensorFlow sees; none on another backend."""
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


@functools.cache
def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself, by its own word."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class Devices:
    """The devices of one training.

    With ``train.devices = auto`` these are all GPUs, or, where there is none, all logical
    processors, of which there is one unless TensorFlow was told otherwise.

    Attributes
    ----------
    count
        How many there are.

    Raises
    ------
    ConfigError
        If ``train.batch_size`` cannot be cut into equal shares.
    """

    def __init__(self, settings: Profile):
        self.count = 1
        self._strategy = None
        if settings.train.devices != "auto" or keras.backend.backend() != "tensorflow":
            return
        import tensorflow as tf

        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(found) < 2:
            return
        if settings.train.batch_size % len(found):
            raise ConfigError(
                f"train.batch_size = {settings.train.batch_size} does not divide into equal shares "
                f"for {len(found)} devices; change it, or set train.devices=1."
            )
        self.count = len(found)
        self._strategy = _strategy(tuple(device.name for device in found))

    def scope(self) -> contextlib.AbstractContextManager:
        """Context in which the network is built, and its training compiled."""
        return self._strategy.scope() if self._strategy else contextlib.nullcontext()

    def shared(self, loss: Callable) -> Callable:
        """A loss that is the mean over a batch, as each device has to compute it for its share.

        Keras adds the gradients of all devices, and divides a loss by their number only where it
        is one value per sample, not where the loss itself takes the mean.
        """
        if self.count == 1:
            return loss

        def share(target, estimate):
            # The last validation batch may have fewer patches than there are devices.
            value = ops.where(ops.shape(target)[0] > 0, loss(target, estimate), 0.0)
            return value / self.count

        return share


@functools.cache
def _strategy(names: tuple[str, ...]):
    """The strategy for these devices, one in a process.

    Exchanges between devices are numbered by each strategy from the same number on, so that those
    of a second one would be taken for those of the first.
    """
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names)


def normalize_together(network: keras.Model, wanted: bool = True) -> None:
    """Have batch normalisation take its statistics over the shares of all devices, or not."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = wanted
        elif isinstance(layer, keras.Model):
            normalize_together(layer, wanted)


@contextlib.contextmanager
def as_on_one_device(network: keras.Model) -> Iterator[None]:
    """Context in which the network is saved: other backends refuse the setting of many devices."""
    together = any(getattr(layer, "synchronized", False) for layer in network.layers)
    normalize_together(network, False)
    try:
        yield
    finally:
        normalize_together(network, together)
