"""What happens around a training's steps and epochs, as callbacks of Keras."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops

from cunet_lib.core.files import replacing, write_atomically
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.train import checkpoint
from cunet_lib.train.batches import TrainingBatches


class SaveBest(keras.callbacks.Callback):
    """Keep the network of the lowest validation loss on disk, replaced in one step."""

    def __init__(self, network: keras.Model, path: Path):
        super().__init__()
        self.network = network
        self.path = path
        self.best = np.inf

    def on_epoch_end(self, epoch, logs=None):
        """Save the network if its loss is the lowest so far."""
        if logs["val_loss"] < self.best:
            self.best = logs["val_loss"]
            with replacing(self.path) as partial:
                self.network.save(partial)


class Finite(keras.callbacks.Callback):
    """End a training whose loss is not finite, and say where that began."""

    def __init__(self, model: str, batches: TrainingBatches):
        super().__init__()
        self.name = model
        self.batches = batches
        self.good = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Epochs that are finished so far."""
        self.good = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Look at the mean over the epoch so far: this batch is the first to spoil it."""
        if not math.isfinite(logs["loss"]):
            # The optimiser's own count is not up to date on every backend within an epoch.
            step = self.good * self.params["steps"] + batch
            tracks = ", ".join(self.batches.batch(step).tracks)
            self._fail(f"in step {step} (batch from: {tracks})")

    def on_epoch_end(self, epoch, logs=None):
        """Look at the validation loss."""
        if not math.isfinite(logs["val_loss"]):
            self._fail(f"on the validation tracks after epoch {epoch + 1}")

    def _fail(self, where: str):
        good = self.good
        kept = f"what was learned up to epoch {good} is kept" if good else "nothing was kept"
        raise ConfigError(
            f"{self.name}: the loss is not finite {where}; {kept}. "
            "Lower train.learning_rate, or set train.precision=float32."
        )


class History(keras.callbacks.Callback):
    """One line of history per epoch, on disk and for the reader."""

    def __init__(self, path: Path, settings: Profile, epochs: int, report: Callable[[str], None]):
        super().__init__()
        self.path = path
        self.patches = settings.train.batch_size * settings.train.steps_per_epoch
        self.epochs = epochs
        self.report = report
        self.rows: list[dict] = []

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_test_begin(self, logs=None):
        """Stop it: validation time is not training time."""
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Add the epoch's row."""
        seconds = self._trained - self._start
        row = {
            "epoch": epoch + 1,
            "loss": float(logs["loss"]),
            "val_loss": float(logs["val_loss"]),
            "learning_rate": float(ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            "seconds": round(time.perf_counter() - self._start, 3),
            "patches_per_second": round(self.patches / seconds, 2),
        }
        self.rows.append(row)
        self.write()
        self.report(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['loss']:.3e}  "
            f"validation {row['val_loss']:.3e}  rate {row['learning_rate']:.1e}  "
            f"{row['patches_per_second']:.0f} patches/s"
        )

    def write(self) -> None:
        """Write the rows so far."""
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False))


class State(keras.callbacks.Callback):
    """Write a checkpoint at the end of each epoch to a folder, and put one back.

    Kept are the states of history and callbacks, and the network's variables: weights, statistics
    of batch normalisation and the states of dropout's random generators. ``facts`` say what the
    training belongs to.
    """

    ATTRIBUTES = ("best", "wait", "cooldown_counter")

    def __init__(
        self,
        folder: Path,
        network: keras.Model,
        facts: dict,
        history: History,
        callbacks: Sequence[keras.callbacks.Callback],
    ):
        super().__init__()
        self.folder = folder
        self.network = network
        self.facts = facts
        self.history = history
        self.callbacks = callbacks
        self.started = time.perf_counter()
        self.before = 0.0
        self.resumed = 0
        self.finished = False
        self._pending: dict = {}

    @property
    def seconds(self) -> float:
        """Of this part of the training and those before."""
        return self.before + time.perf_counter() - self.started

    def restore(self, trainer: keras.Model, found: checkpoint.Checkpoint) -> None:
        """Put variables and history back; the callbacks' states follow when training begins."""
        variables = (*self.network.variables, *trainer.optimizer.variables)
        for variable, value in zip(variables, found.variables, strict=True):
            variable.assign(value)
        self.before = found.state["seconds"]
        self.resumed = found.state["resumed"] + 1
        self.finished = found.state["finished"]
        self.history.rows = list(found.state["history"])
        self.history.write()
        self._pending = found.state["callbacks"]

    def on_train_begin(self, logs=None):
        """Put the callbacks' states back: Keras' own empty themselves when training begins."""
        for callback in self.callbacks if self._pending else ():
            for name, value in self._pending[type(callback).__name__].items():
                setattr(callback, name, value)

    def on_epoch_end(self, epoch, logs=None):
        """Write the checkpoint."""
        states = {
            type(callback).__name__: {
                name: getattr(callback, name) for name in self.ATTRIBUTES if hasattr(callback, name)
            }
            for callback in self.callbacks
        }
        last = epoch + 1 == self.params["epochs"]
        state = {
            "epochs": epoch + 1,
            "finished": bool(last or self.model.stop_training),
            "seconds": self.seconds,
            "resumed": self.resumed,
            "history": self.history.rows,
            "callbacks": states,
        }
        variables = (*self.network.variables, *self.model.optimizer.variables)
        values = [ops.convert_to_numpy(variable) for variable in variables]
        checkpoint.save(self.folder, checkpoint.Checkpoint(self.facts, state, values))
