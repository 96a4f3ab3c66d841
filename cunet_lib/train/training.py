"""Training one model: optimiser, callbacks, and a record of the run.

A run folder holds all that rebuilds and explains the model: ``model.keras`` (the epoch with the
lowest validation loss), ``history.csv``, ``architecture.json``, ``film.csv`` (C-U-Nets),
``model_card.md`` and, written last, ``run.json``.

Until then its folder ``checkpoint`` holds the training's state at the end of the last epoch, and a
training that was stopped or killed goes on from there; then it holds a note that the training is
finished, until ``cunet run`` has put its notebook in place. With the same number of threads it ends
with the same weights, bit for bit: batches are a function of (seed, step), dropout draws from
variables of the network, and optimiser, schedule and every callback's state are kept too. Keras'
own ``BackupAndRestore`` keeps no callback's state: after it, patience and plateau would begin anew,
and a worse epoch could replace the best.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops

from cunet_lib.core.files import (
    code_hash,
    locked,
    remove_unfinished,
    replacing,
    write_atomically,
    write_json,
)
from cunet_lib.core.hardware import computes_bfloat16, cores, gpus
from cunet_lib.core.settings import ROOT, ConfigError, Profile, Signal
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models import unet as models
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.models.fast import Adam
from cunet_lib.preprocess.store import Store
from cunet_lib.report.card import write_card
from cunet_lib.signal.spectral import graph_magnitude
from cunet_lib.train import checkpoint
from cunet_lib.train.batches import Batch, TrainingBatches, validation_batches


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
    return "mixed_bfloat16" if gpus() or computes_bfloat16() else "float32"


def train(
    settings: Profile,
    store: Store,
    model: str,
    *,
    seed: int,
    folder: Path,
    report: Callable[[str], None] = print,
) -> dict:
    """Train one model and write its run folder, or finish what an earlier call began.

    A training that was stopped goes on from the end of its last epoch, if settings, data, code,
    precision and versions are still the same; otherwise it starts anew. One that was finished is
    not trained again while its notebook may not be done, and its folder stays as it is. That ends
    when ``cunet run`` has put the notebook in place (:func:`cunet_lib.train.checkpoint.forget`). In
    Jupyter or plain papermill nobody knows that moment, and a second training would only give the
    same numbers; a line says what to delete to have it nevertheless.

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
        Gets one line per epoch, and one when a training goes on, stops, or was finished before.

    Returns
    -------
    dict
        The run record, as written to ``run.json``; ``resumed`` says how often the training went
        on after a stop, and ``seconds`` counts all its parts up to their last epochs.

    Raises
    ------
    ConfigError
        If the loss is not finite; step and tracks are named, and the state of the last good epoch
        stays in the folder. If a file of the store is damaged.
    cunet_lib.core.files.Busy
        If another process trains into this folder.
    cunet_lib.core.files.WriteError
        If the disk is full or may not be written to.
    """
    with locked(
        folder.with_name(f".{folder.name}.lock"),
        f"Another process trains {model} into the same folder ({folder.name}); wait for it, or "
        "stop it first.",
        # A notebook whose runner was killed ends a second or two later.
        seconds=10.0,
    ):
        return _train(settings, store, model, seed=seed, folder=folder, report=report)


def _train(
    settings: Profile,
    store: Store,
    model: str,
    *,
    seed: int,
    folder: Path,
    report: Callable[[str], None],
) -> dict:
    started = time.perf_counter()
    store.verify("train", "valid")
    facts = _facts(settings, store, model, seed=seed)
    if (record := _finished(folder, facts=facts, report=report)) is not None:
        return record
    unfinished = _unfinished(folder, facts=facts, report=report)
    if unfinished is None:
        # Nothing of an earlier run may pass for this one's.
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
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
        optimizer=Adam(
            _learning_rate(settings, epochs),
            beta_1=settings.train.beta_1,
            epsilon=settings.train.epsilon,
        ),
        loss=magnitude_error(settings.signal),
        jit_compile=_jit(settings),
    )
    # Else the graph of the first step makes Adam's variables, and is traced twice for it.
    trainer.optimizer.build(trainer.trainable_variables)
    history = _History(folder / "history.csv", settings, epochs, report)
    keep = [_SaveBest(network, folder / "model.keras"), *_callbacks(settings)]
    state = _State(
        folder / checkpoint.FOLDER,
        network,
        facts=facts,
        history=history,
        callbacks=keep,
        started=started,
    )
    if unfinished is not None:
        state.restore(trainer, unfinished)
        report(f"goes on after epoch {len(history.rows)}, where it was stopped")
    if not state.finished:
        first = len(history.rows)
        try:
            trainer.fit(
                batches.dataset(first * settings.train.steps_per_epoch),
                initial_epoch=first,
                epochs=epochs,
                steps_per_epoch=settings.train.steps_per_epoch,
                validation_data=_Fixed(
                    validation_batches(store, settings, model=model),
                    conditioned=models.is_conditioned(network),
                ),
                callbacks=[
                    # First: what is not finite reaches no other callback.
                    _Finite(model, batches, history),
                    *keep[:1],
                    history,
                    *keep[1:],
                    # Last: the others are then done with the epoch.
                    state,
                ],
                shuffle=False,
                verbose=0,
            )
        except KeyboardInterrupt:
            report(f"stopped; {checkpoint.kept(folder)}")
            raise
    best = models.load(folder / "model.keras")
    write_json(folder / "architecture.json", models.describe(best))
    if models.is_conditioned(best):
        write_atomically(folder / "film.csv", film_table(best).to_csv(index=False))
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
        "seconds": round(state.seconds, 1),
        "resumed": state.resumed,
        "patches_per_second": round(
            float(np.median([row["patches_per_second"] for row in history.rows])), 1
        ),
        "precision": precision_of(settings),
        "threads": cores(),
        "versions": {
            "python": platform.python_version(),
            **_versions(),
        },
        "commit": _commit(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_card(folder, record)
    write_json(folder / "run.json", record)
    checkpoint.finish(folder / checkpoint.FOLDER, facts)
    return record


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("tensorflow", "keras", "numpy")}


def _facts(settings: Profile, store: Store, model: str, *, seed: int) -> dict:
    """What decides the numbers of a training; a checkpoint with other facts is another's."""
    return {
        "model": model,
        "seed": seed,
        "settings": settings.section_hash("signal", "model", "train"),
        "data": store.hash,
        "code": code_hash("cunet_lib/signal/spectral.py", "cunet_lib/models", "cunet_lib/train"),
        "precision": precision_of(settings),
        "versions": _versions(),
    }


def _finished(folder: Path, *, facts: dict, report: Callable[[str], None]) -> dict | None:
    """The record of this training if it was finished before, or None."""
    if not (
        checkpoint.finished(folder / checkpoint.FOLDER, facts, report)
        and _best_is_whole(folder, report)
    ):
        return None
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report("its run.json is missing or damaged; the training starts anew")
        return None
    report(checkpoint.REUSED)
    return record


def _unfinished(
    folder: Path, *, facts: dict, report: Callable[[str], None]
) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, or None if the training has to start anew."""
    found = checkpoint.load(folder / checkpoint.FOLDER, facts, report)
    return found if found is not None and _best_is_whole(folder, report) else None


def _best_is_whole(folder: Path, report: Callable[[str], None]) -> bool:
    """Whether ``model.keras`` is there and every part of it has its checksum; else a line."""
    with (
        contextlib.suppress(OSError, zipfile.BadZipFile),
        zipfile.ZipFile(folder / "model.keras") as archive,
    ):
        if archive.testzip() is None:
            return True
    report("the best epoch's model.keras is missing or damaged; the training starts anew")
    return False


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
    return settings.train.jit == "on" or (settings.train.jit == "auto" and bool(gpus()))


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


class _Finite(keras.callbacks.Callback):
    """End a training whose loss is not finite, and say where that began."""

    def __init__(self, model: str, batches: TrainingBatches, history: _History):
        super().__init__()
        self.name = model
        self.batches = batches
        self.history = history

    def on_train_batch_end(self, batch, logs=None):
        # The mean over the epoch so far: the first that is not finite is this batch's doing.
        if not math.isfinite(logs["loss"]):
            step = int(ops.convert_to_numpy(self.model.optimizer.iterations)) - 1
            tracks = ", ".join(self.batches.tracks_of(step))
            self._fail(f"in step {step} (batch from: {tracks})")

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["val_loss"]):
            self._fail(f"on the validation tracks after epoch {epoch + 1}")

    def _fail(self, where: str):
        good = len(self.history.rows)
        kept = f"what was learned up to epoch {good} is kept" if good else "nothing was kept"
        raise ConfigError(
            f"{self.name}: the loss is not finite {where}; {kept}. "
            "Lower train.learning_rate, or set train.precision=float32."
        )


class _State(keras.callbacks.Callback):
    """Write a checkpoint at the end of each epoch, and put one back.

    Parameters
    ----------
    folder
        Of the checkpoints.
    network
        Whose variables are kept: weights, statistics of batch normalisation and the states of
        dropout's random generators.
    facts
        What the training belongs to.
    history, callbacks
        Whose states are kept.
    started
        Clock at the start of this part of the training, ``time.perf_counter()``.
    """

    ATTRIBUTES = ("best", "wait", "cooldown_counter")

    def __init__(
        self,
        folder: Path,
        network: keras.Model,
        *,
        facts: dict,
        history: _History,
        callbacks: list[keras.callbacks.Callback],
        started: float,
    ):
        super().__init__()
        self.folder = folder
        self.network = network
        self.facts = facts
        self.history = history
        self.callbacks = callbacks
        self.started = started
        self.before = 0.0
        self.resumed = 0
        self.finished = False
        self._pending: dict | None = None

    @property
    def seconds(self) -> float:
        """Of this part of the training and those before."""
        return self.before + time.perf_counter() - self.started

    def restore(self, trainer: keras.Model, found: checkpoint.Checkpoint) -> None:
        """Put variables and history back; the callbacks' states follow when training begins."""
        for variables, values in (
            (self.network.variables, found.network),
            (trainer.optimizer.variables, found.optimizer),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self.before = found.state["seconds"]
        self.resumed = found.state["resumed"] + 1
        self.finished = found.state["finished"]
        self.history.rows = list(found.state["history"])
        self.history.write()
        self._pending = found.state["callbacks"]

    def on_train_begin(self, logs=None):
        # Not earlier: Keras' callbacks empty themselves when training begins.
        for callback in self.callbacks if self._pending else ():
            for name, value in self._pending[type(callback).__name__].items():
                setattr(callback, name, value)

    def on_epoch_end(self, epoch, logs=None):
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
        checkpoint.save(
            self.folder,
            checkpoint.Checkpoint(
                facts=self.facts,
                state=state,
                network=[ops.convert_to_numpy(value) for value in self.network.variables],
                optimizer=[ops.convert_to_numpy(value) for value in self.model.optimizer.variables],
            ),
            epochs=epoch + 1,
        )


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
        self.write()
        self.report(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['loss']:.3e}  "
            f"validation {row['val_loss']:.3e}  rate {row['learning_rate']:.1e}  "
            f"{row['patches_per_second']:.0f} patches/s"
        )

    def write(self) -> None:
        """Write the rows so far."""
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False))


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
