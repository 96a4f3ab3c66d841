"""Training one model: optimiser, callbacks, and a record of the run.

A run folder holds all that rebuilds and explains the model: ``model.keras`` (the epoch with the
lowest validation loss), ``history.csv``, ``architecture.json``, ``film.csv`` (C-U-Nets),
``model_card.md``, TensorBoard ``logs`` and, written last, ``run.json``.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops

from cunet_lib import models
from cunet_lib.batches import Batch, TrainingBatches, validation_batches
from cunet_lib.cards import write_card
from cunet_lib.conditions import all_one_hot
from cunet_lib.config import INSTRUMENTS, ROOT, ConfigError, Profile, Signal
from cunet_lib.files import replacing, write_atomically, write_json
from cunet_lib.parallel import cores
from cunet_lib.spectral import graph_magnitude
from cunet_lib.store import Store


class WaveformModel(keras.Model):
    """A network together with the STFT that feeds it, so that both run in one graph.

    Takes a mixture waveform ``(batch, samples)``, or ``(mixture, condition)`` for a C-U-Net, and
    gives the network's magnitude estimate ``(batch, bins, frames, 1)``.
    """

    def __init__(self, network: keras.Model, signal: Signal, **kwargs):
        # float32, so that a mixed policy does not round the waveform before the STFT.
        super().__init__(dtype="float32", **kwargs)
        self.network = network
        self.signal = signal

    def call(self, inputs, training=False):
        """Magnitudes of the mixture, then the network."""
        if models.is_conditioned(self.network):
            mixture, condition = inputs
            return self.network(
                [graph_magnitude(mixture, self.signal), condition], training=training
            )
        return self.network(graph_magnitude(inputs, self.signal), training=training)


def magnitude_error(signal: Signal) -> Callable:
    """Loss: mean absolute error between estimated magnitudes and a target waveform's."""

    def mean_absolute_error(target, estimate):
        return ops.mean(ops.abs(graph_magnitude(target, signal) - estimate))

    return mean_absolute_error


def new_network(settings: Profile, model: str, *, seed: int) -> keras.Model:
    """Untrained network of a profile."""
    return models.build(
        model,
        shape=settings.patch_shape,
        filters=settings.model.filters,
        blocks=settings.model.blocks,
        dropout=settings.model.dropout,
        control_dropout=settings.model.control_dropout,
        start=settings.model.start,
        seed=seed,
        precision=precision_of(settings),
    )


def precision_of(settings: Profile) -> str:
    """Dtype policy of a profile; ``auto`` takes bfloat16 where the processor computes with it."""
    if settings.train.precision != "auto":
        return settings.train.precision
    if _gpus():
        return "mixed_bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        flags = ""
    return "mixed_bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _gpus() -> list:
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


def train(
    settings: Profile,
    store: Store,
    model: str,
    *,
    seed: int,
    folder: Path,
    report: Callable[[str], None] = print,
) -> dict:
    """Train one model and write its run folder.

    Parameters
    ----------
    settings, store
        Profile and prepared corpus.
    model
        ``unet_<instrument>`` or a C-U-Net variant.
    seed
        Of initial weights, dropout and batches.
    folder
        Run folder; an earlier run in it is replaced.
    report
        Gets one line per epoch.

    Returns
    -------
    dict
        The run record, as written to ``run.json``.
    """
    started = time.perf_counter()
    # Nothing of an earlier run may pass for this one's.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(seed)
    network = new_network(settings, model, seed=seed)
    batches = TrainingBatches(store, settings, model=model, seed=seed)
    epochs = (
        settings.train.cunet_epochs
        if models.is_conditioned(network)
        else settings.train.unet_epochs
    )
    trainer = WaveformModel(network, settings.signal)
    trainer.compile(
        optimizer=keras.optimizers.Adam(
            _learning_rate(settings, epochs),
            beta_1=settings.train.beta_1,
            epsilon=settings.train.epsilon,
        ),
        loss=magnitude_error(settings.signal),
        jit_compile=_jit(settings),
    )
    history = _History(folder / "history.csv", settings, epochs, report)
    trainer.fit(
        batches.dataset(),
        epochs=epochs,
        steps_per_epoch=settings.train.steps_per_epoch,
        validation_data=_Fixed(
            validation_batches(store, settings, model=model),
            conditioned=models.is_conditioned(network),
        ),
        callbacks=[
            _SaveBest(network, folder / "model.keras"),
            history,
            *_callbacks(settings),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.TensorBoard(folder / "logs", write_graph=False),
        ],
        shuffle=False,
        verbose=0,
    )
    if not all(np.isfinite(row["loss"] + row["val_loss"]) for row in history.rows):
        raise ConfigError(
            f"{model}: the loss is not finite after epoch {len(history.rows)}; "
            "lower train.learning_rate, or set train.precision=float32."
        )
    best = models.load(folder / "model.keras")
    write_json(folder / "architecture.json", models.describe(best))
    if models.is_conditioned(best):
        film_table(best).to_csv(folder / "film.csv", index=False)
    parameters, trainable = models.count_parameters(best)
    record = {
        "model": model,
        "kind": "cunet" if models.is_conditioned(best) else "unet",
        "seed": seed,
        "profile": settings.name,
        "settings": settings.model_dump(mode="json"),
        "store": store.hash,
        "parameters": parameters,
        "trainable_parameters": trainable,
        "batch_size": settings.train.batch_size,
        "steps": len(history.rows) * settings.train.steps_per_epoch,
        "epochs": len(history.rows),
        "best_epoch": 1 + int(np.argmin([row["val_loss"] for row in history.rows])),
        "best_val_loss": min(row["val_loss"] for row in history.rows),
        "seconds": round(time.perf_counter() - started, 1),
        "patches_per_second": round(
            float(np.median([row["patches_per_second"] for row in history.rows])), 1
        ),
        "precision": precision_of(settings),
        "threads": cores(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
        },
        "commit": _commit(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_card(folder, record)
    write_json(folder / "run.json", record)
    return record


def film_table(model: keras.Model):
    """Gammas and betas by instrument: columns instrument, block, feature, gamma, beta."""
    table = models.film_parameters(model, all_one_hot())
    table.insert(0, "instrument", [INSTRUMENTS[row] for row in table.pop("condition")])
    return table


def _learning_rate(settings: Profile, epochs: int):
    train = settings.train
    if train.schedule == "plateau":
        return train.learning_rate
    # At the full rate from the first step on, the loss stays at a silent estimate's for longer.
    warmup = {"warmup_target": train.learning_rate, "warmup_steps": train.warmup_steps}
    return keras.optimizers.schedules.CosineDecay(
        0.0 if train.warmup_steps else train.learning_rate,
        decay_steps=epochs * train.steps_per_epoch - train.warmup_steps,
        alpha=train.min_learning_rate / train.learning_rate,
        **(warmup if train.warmup_steps else {}),
    )


def _jit(settings: Profile) -> bool:
    # XLA on CPU was measured at a quarter of the plain speed.
    return settings.train.jit == "on" or (settings.train.jit == "auto" and bool(_gpus()))


def _callbacks(settings: Profile) -> list:
    train = settings.train
    callbacks = [keras.callbacks.EarlyStopping(patience=train.patience, min_delta=train.min_delta)]
    if train.schedule == "plateau":
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                factor=train.lr_factor,
                patience=train.lr_patience,
                min_delta=train.min_delta,
                min_lr=train.min_learning_rate,
            )
        )
    return callbacks


class _Fixed(keras.utils.PyDataset):
    """Validation batches as Keras takes them."""

    def __init__(self, batches: list[Batch], *, conditioned: bool):
        super().__init__()
        self.batches = batches
        self.conditioned = conditioned

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        batch = self.batches[index]
        if self.conditioned:
            return (batch.mixture, batch.condition), batch.target
        return batch.mixture, batch.target


class _SaveBest(keras.callbacks.Callback):
    """Keep the network of the lowest validation loss on disk, replaced in one step."""

    def __init__(self, network: keras.Model, path: Path):
        super().__init__()
        self.network = network
        self.path = path
        self.best = np.inf

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_loss"] < self.best:
            self.best = logs["val_loss"]
            with replacing(self.path) as partial:
                self.network.save(partial)


class _History(keras.callbacks.Callback):
    """One line of history per epoch, on disk and for the reader."""

    def __init__(self, path: Path, settings: Profile, epochs: int, report: Callable[[str], None]):
        super().__init__()
        self.path = path
        self.patches = settings.train.batch_size * settings.train.steps_per_epoch
        self.epochs = epochs
        self.report = report
        self.rows: list[dict] = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        self._trained = None

    def on_test_begin(self, logs=None):
        # Validation time is not training time.
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = (self._trained or time.perf_counter()) - self._start
        row = {
            "epoch": epoch + 1,
            "loss": float(logs["loss"]),
            "val_loss": float(logs["val_loss"]),
            "learning_rate": float(ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            "seconds": round(time.perf_counter() - self._start, 3),
            "patches_per_second": round(self.patches / seconds, 2),
        }
        self.rows.append(row)
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False))
        self.report(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['loss']:.3e}  "
            f"validation {row['val_loss']:.3e}  rate {row['learning_rate']:.1e}  "
            f"{row['patches_per_second']:.0f} patches/s"
        )


def _commit() -> str | None:
    """Commit of the checkout, with ``+`` where tracked files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
