"""Training one model: optimiser, callbacks, and a record of the run.

A run folder holds all that rebuilds and explains the model: ``model.keras`` (the epoch with the
lowest validation loss), ``history.csv``, ``architecture.json``, ``film.csv`` (C-U-Nets) and,
written last, ``run.json``, which says by its ``facts`` what decided the numbers. As long as they
fit, the training is not repeated.

Until it is finished, its folder ``checkpoint`` holds the state at the end of the last epoch, and a
training that was stopped or killed continues there. With the same number of threads it ends with
the same weights, bit for bit: batches are a function of (seed, step), dropout draws from variables
of the network, and optimiser, schedule and every callback's state are kept too. Keras' own
``BackupAndRestore`` keeps no callback's state: after it, patience and plateau would begin anew, and
a worse epoch could replace the best.
"""

from __future__ import annotations

import contextlib
import math
import platform
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
from keras import ops

from cunet_lib.core.files import (
    code_hash,
    locked,
    read_run,
    remove_unfinished,
    write_atomically,
    write_json,
)
from cunet_lib.core.hardware import computes_bfloat16, cores, gpus, idle_gpu
from cunet_lib.core.settings import ROOT, ConfigError, Profile, Signal
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.models.fast import Adam
from cunet_lib.models.film import film_parameters
from cunet_lib.models.unet import build, count_parameters, describe, is_conditioned, shares_model
from cunet_lib.models.weights import load
from cunet_lib.preprocess.store import Store
from cunet_lib.signal.spectral import graph_magnitude, graph_spectrum
from cunet_lib.train import checkpoint
from cunet_lib.train.batches import Ahead, TrainingBatches, validation_batch
from cunet_lib.train.callbacks import Finite, History, SaveBest, State


class WaveformModel(keras.Model):
    """A network together with the STFT that feeds it, so that both run in one graph.

    Takes a mixture waveform ``(batch, samples)``, or ``(mixture, condition)`` for a C-U-Net, and
    gives the network's magnitude estimate ``(batch, bins, frames, 1)``. A C-U-Net with shares gives
    real and imaginary part, ``(batch, 2, bins, frames)``.

    Parameters
    ----------
    network
        A network of the study.
    group
        Rows of a batch that follow each other and have the same mixture: its spectrum, and a
        network's shares, are computed once for all of them.
    """

    def __init__(self, network: keras.Model, signal: Signal, *, group: int = 1, **kwargs):
        # float32, so that a mixed policy does not round the waveform before the STFT.
        super().__init__(dtype="float32", **kwargs)
        self.network = network
        self.shares = shares_model(network)
        self.signal = signal
        self.group = group

    def call(self, inputs, training=False):
        """Magnitudes of the mixture, then the network."""
        if not is_conditioned(self.network):
            return self.network(graph_magnitude(inputs, self.signal), training=training)
        # JAX would not take a tensor and an array side by side.
        mixture, condition = map(ops.convert_to_tensor, inputs)
        if self.shares is None:
            magnitude = graph_magnitude(mixture[:: self.group], self.signal)
            given = [ops.repeat(magnitude, self.group, axis=0), condition]
            return self.network(given, training=training)
        real, imaginary = graph_spectrum(mixture[:: self.group], self.signal)
        magnitude = ops.expand_dims(ops.sqrt(real**2 + imaginary**2), -1)
        shares = self.shares(magnitude, training=training)
        asked = ops.reshape(condition, (-1, self.group, condition.shape[-1]))
        masks = ops.einsum("mci,mift->mcft", asked, shares)
        estimates = [masks * ops.expand_dims(part, 1) for part in (real, imaginary)]
        return ops.reshape(ops.stack(estimates, axis=2), (-1, 2, *real.shape[1:]))


def magnitude_error(signal: Signal) -> Callable:
    """Loss: mean absolute error between estimated magnitudes and a target waveform's."""

    def mean_absolute_error(target, estimate):
        return ops.mean(ops.abs(graph_magnitude(target, signal) - estimate))

    return mean_absolute_error


def complex_error(signal: Signal) -> Callable:
    """Loss: root mean square of the difference between an estimate's and a target's spectrum.

    It is taken over each patch, then their mean. Where the target's phase is not the mixture's, the
    best mask is lower, which magnitudes alone do not tell. Within a patch errors count as in SDR,
    by their squares.
    """

    def root_mean_square_error(target, estimate):
        real, imaginary = graph_spectrum(target, signal)
        error = (real - estimate[:, 0]) ** 2 + (imaginary - estimate[:, 1]) ** 2
        # At 0 the slope of a square root is infinite.
        return ops.mean(ops.sqrt(ops.mean(error, axis=(1, 2)) + 1e-12))

    return root_mean_square_error


def new_network(settings: Profile, model: str, *, seed: int) -> keras.Model:
    """Untrained network of a profile."""
    size = settings.model.model_dump(exclude={"patch_frames"})
    precision = precision_of(settings)
    return build(model, shape=settings.patch_shape, **size, seed=seed, precision=precision)


def precision_of(settings: Profile) -> str:
    """Dtype policy of a profile; ``auto`` takes bfloat16 where the processor computes with it."""
    if settings.train.precision != "auto":
        return settings.train.precision
    return "mixed_bfloat16" if gpus() or computes_bfloat16() else "float32"


def compiled(network: keras.Model, settings: Profile) -> WaveformModel:
    """A network with its STFT, ready to be trained as the profile says."""
    train = settings.train
    # Validation asks each mixture for every instrument.
    group = math.gcd(train.conditions_per_mixture, len(INSTRUMENTS))
    trainer = WaveformModel(network, settings.signal, group=group)
    error = magnitude_error if trainer.shares is None else complex_error
    rate = _learning_rate(settings, _epochs(settings, network))
    trainer.compile(
        optimizer=Adam(rate, beta_1=train.beta_1, epsilon=train.epsilon),
        loss=error(settings.signal),
        jit_compile=_jit(settings),
    )
    # Else the graph of the first step makes Adam's variables, and is traced twice for it.
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


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

    A training that was stopped continues after its last whole epoch, and one that was finished is
    not repeated, if settings, data, code, precision and versions are still the same; otherwise it
    starts anew.

    ``model`` is ``unet_<instrument>`` or a C-U-Net variant; ``seed`` is that of initial weights,
    dropout and batches. Another run in the folder is replaced. ``report`` gets one line per epoch,
    and one when a training resumes, stops, or was finished before.

    Returns
    -------
    dict
        The run record, as written to ``run.json``; ``resumed`` says how often the training was
        resumed, and ``seconds`` counts all its parts.

    Raises
    ------
    ConfigError
        If the loss is not finite; step and tracks are named, and the state of the last good epoch
        stays in the folder. If a file of the store is damaged, or another process trains into
        this folder.
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
        store.verify("train", "valid")
        facts = _facts(settings, store, model, seed=seed)
        record = _finished(folder, facts, report)
        if record is None:
            unfinished = checkpoint.load(folder / checkpoint.FOLDER, facts, report)
            if unfinished is None or not _best_is_whole(folder, report):
                # Nothing of an earlier run may pass for this one's.
                unfinished = None
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
            keras.utils.set_random_seed(seed)
            network = new_network(settings, model, seed=seed)
            state = _fitted(network, settings, store, facts, folder, unfinished, report)
            record = _recorded(network, settings, store, facts, folder, state)
        shutil.rmtree(folder / checkpoint.FOLDER, ignore_errors=True)
        return record


def _facts(settings: Profile, store: Store, model: str, *, seed: int) -> dict:
    """What decides the numbers of a training; a run or checkpoint with other facts is another's."""
    if variant := VARIANTS.get(model):
        what = [variant.control, variant.film, variant.placement, variant.progressive]
        variant = what + list(variant.beyond)
    return {
        "model": model,
        "variant": variant,
        "seed": seed,
        "settings": settings.section_hash("signal", "model", "train"),
        "data": store.hash,
        "code": code_hash("cunet_lib/signal/spectral.py", "cunet_lib/models", "cunet_lib/train"),
        "precision": precision_of(settings),
        "versions": {name: version(name) for name in (keras.backend.backend(), "keras", "numpy")},
    }


def _finished(folder: Path, facts: dict, report: Callable[[str], None]) -> dict | None:
    """The record of this training if it was finished before, or None."""
    if not (folder / "run.json").exists():
        return None
    try:
        record = read_run(folder)
    except ConfigError:
        report("its run.json is damaged; the training starts anew")
        return None
    if changed := checkpoint.changed(record.get("facts") or {}, facts):
        report(f"a finished training is replaced: {changed}")
        return None
    if not _best_is_whole(folder, report):
        return None
    report(checkpoint.REUSED)
    return record


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


def _fitted(
    network: keras.Model,
    settings: Profile,
    store: Store,
    facts: dict,
    folder: Path,
    unfinished: checkpoint.Checkpoint | None,
    report: Callable[[str], None],
) -> State:
    """Train a network, from a checkpoint on if there is one; history and state at the end."""
    model, train = facts["model"], settings.train
    epochs = _epochs(settings, network)
    trainer = compiled(network, settings)
    batches = TrainingBatches(store, settings, model=model, seed=facts["seed"])
    history = History(folder / "history.csv", settings, epochs, report)
    best, others = SaveBest(network, folder / "model.keras"), _callbacks(settings)
    state = State(folder / checkpoint.FOLDER, network, facts, history, [best, *others])
    if unfinished is not None:
        state.restore(trainer, unfinished)
        report(f"continues after epoch {len(history.rows)}, where it was stopped")
    if state.finished:
        return state
    if hint := idle_gpu():
        report(hint)
    validation = validation_batch(store, settings, model=model)
    try:
        trainer.fit(
            Ahead(batches, len(history.rows) * train.steps_per_epoch),
            initial_epoch=len(history.rows),
            epochs=epochs,
            steps_per_epoch=train.steps_per_epoch,
            validation_data=validation.pair(conditioned=is_conditioned(network)),
            validation_batch_size=train.batch_size,
            # What is not finite reaches no other callback; all are done before the checkpoint.
            callbacks=[Finite(model, batches), best, history, *others, state],
            shuffle=False,
            verbose=0,
        )
    except KeyboardInterrupt:
        report(f"stopped; {checkpoint.kept(folder)}")
        raise
    return state


def _recorded(
    network: keras.Model, settings: Profile, store: Store, facts: dict, folder: Path, state: State
) -> dict:
    """Write what explains a trained network, its record last; returns the record."""
    rows, steps = state.history.rows, settings.train.steps_per_epoch
    conditioned = is_conditioned(network)
    write_json(folder / "architecture.json", describe(network))
    if conditioned:
        film = film_parameters(load(folder / "model.keras"), all_one_hot())
        film.insert(0, "instrument", [INSTRUMENTS[row] for row in film.pop("condition")])
        write_atomically(folder / "film.csv", film.to_csv(index=False))
    parameters, trainable = count_parameters(network)
    best = min(rows, key=lambda row: row["val_loss"])
    speeds = [row["patches_per_second"] for row in rows]
    record = {
        "model": facts["model"],
        "kind": "cunet" if conditioned else "unet",
        "seed": facts["seed"],
        "profile": settings.name,
        "settings": settings.model_dump(mode="json"),
        "store": store.hash,
        "parameters": parameters,
        "trainable_parameters": trainable,
        "batch_size": settings.train.batch_size,
        "steps": len(rows) * steps,
        "epochs": len(rows),
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "seconds": round(state.seconds, 1),
        "resumed": state.resumed,
        "patches_per_second": round(float(np.median(speeds)), 1),
        "precision": facts["precision"],
        "threads": cores(),
        "versions": {"python": platform.python_version(), **facts["versions"]},
        "commit": _commit(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "facts": facts,
    }
    write_json(folder / "run.json", record)
    return record


def _epochs(settings: Profile, network: keras.Model) -> int:
    train = settings.train
    return train.cunet_epochs if is_conditioned(network) else train.unet_epochs


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


def _commit() -> str | None:
    """Commit of the checkout, with ``+`` where tracked files differ from it."""
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
