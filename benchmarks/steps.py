"""Workloads of training: pipelines of batches, and steps beside a matrix product and PyTorch."""

from __future__ import annotations

import contextlib
import functools
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.flops import step_flops
from benchmarks.scratch import new_trainer, noise_store
from benchmarks.timing import interleaved, resident
from cunet_lib.core.hardware import cores
from cunet_lib.core.settings import ROOT, Profile, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import draw
from cunet_lib.preprocess.store import Store

PAPER = "model.filters=16 train.batch_size=16 model.dropout=0.5 model.control_dropout=0.5"
"""Overrides of the demo for networks of the paper's size; batches stay the demo's."""

PAPER_BATCH = 64
"""Patches of a batch in the paper."""

EVERYTHING = "train.conditions=[one_hot,zero,all,pairs,continuous]"

DRAIN = 6
"""Batches that a pipeline has ready when nobody took any; they are not timed."""


def released_pipeline(spectrograms: list[np.ndarray], settings: Profile):
    """Batches as the paper's released code makes them: Python for every single patch.

    As there, complex spectrograms of all tracks lie in memory; a Python generator hands out slices
    of all stems with a condition; and a Python function takes each of them to magnitudes, copying
    the slice for every instrument that is asked for, and mixes in stems of other tracks.

    Parameters
    ----------
    spectrograms
        Of each track, ``(n_fft // 2 + 1, frames, 5)`` complex64, the mixture first.

    Returns
    -------
    tf.data.Dataset
        ``((mixture, condition), target)`` with magnitudes ``(batch, bins, frames, 1)``.
    """
    import tensorflow as tf

    frames, train = settings.model.patch_frames, settings.train
    bins, count = settings.signal.bins, len(INSTRUMENTS)
    rng = np.random.default_rng(0)

    def place():
        song = spectrograms[rng.integers(len(spectrograms))]
        start = rng.integers(song.shape[1] - frames + 1)
        return song[:, start : start + frames]

    def slices():
        while True:
            yield place(), draw(train.conditions[rng.integers(len(train.conditions))], rng)

    def patch(stems, condition):
        stems, condition = stems.numpy(), condition.numpy()
        mixture, target = stems[..., 0], np.zeros(stems.shape[:2], np.complex64)
        sources = target.copy()
        for wanted in np.flatnonzero(condition):
            scaled = stems.copy()
            if np.abs(stems).max() > 0 and rng.random() < train.progressive:
                level = np.float32(rng.random())
                scaled[..., 1 + wanted] *= level
                condition[wanted] *= level
            target = target + scaled[..., 1 + wanted]
            sources = sources + stems[..., 1 + wanted]
        if rng.random() < train.remix:
            mixture = sources
            for other in np.flatnonzero(condition == 0):
                mixture = mixture + place()[..., 1 + other]
        return np.abs(mixture)[:bins, :, None], condition, np.abs(target)[:bins, :, None]

    def load(stems, condition):
        mixture, condition, target = tf.py_function(patch, [stems, condition], [tf.float32] * 3)
        mixture = tf.ensure_shape(mixture, settings.patch_shape)
        target = tf.ensure_shape(target, settings.patch_shape)
        return (mixture, tf.ensure_shape(condition, (count,))), target

    signature = (
        tf.TensorSpec((bins + 1, frames, 1 + count), tf.complex64),
        tf.TensorSpec((count,), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(slices, output_signature=signature)
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(train.batch_size).prefetch(tf.data.AUTOTUNE)


def batches(seconds: float, turns: int) -> dict:
    """Patches per second of the pipelines: seconds together, turns of each."""
    from cunet_lib.signal.spectral import graph_magnitude, stft
    from cunet_lib.train.batches import TrainingBatches

    settings = load_profile("demo", f"{PAPER} {EVERYTHING}")
    store = _songs_of_noise(settings)
    spectrograms = [
        np.stack([stft(stem, settings.signal) for stem in store.audio(entry)], axis=-1)
        for entry in store.entries
    ]
    ours = TrainingBatches(store, settings, model="cnn_complex", seed=0)

    def transformed(inputs, target):
        mixture, condition = inputs
        magnitudes = graph_magnitude(mixture, settings.signal)
        return (magnitudes, condition), graph_magnitude(target, settings.signal)

    pipelines = {
        "waveforms": iter(ours.dataset()),
        "spectrograms": iter(ours.dataset().map(transformed, cores()).prefetch(2)),
        "released": iter(released_pipeline(spectrograms, settings)),
    }
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for turn in range(turns):
        for name in sorted(pipelines, reverse=bool(turn % 2)):
            window = seconds / (turns * len(pipelines))
            rate = _rate(pipelines[name], window) * settings.train.batch_size
            rates[name].append(rate)
    return rates


def _songs_of_noise(settings: Profile) -> Store:
    return noise_store(settings, tracks={"train": 16}, seconds=30.0)


def _rate(batches: Iterator, seconds: float) -> float:
    """Batches per second, those that lay ready not counted."""
    for _ in range(DRAIN):
        next(batches)
    count, start = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - start)


def shares(steps: int, turns: int) -> dict:
    """The STFT's and the data's share of a training step.

    Parameters
    ----------
    steps
        Training steps with and without the pipeline in one turn.
    turns
        How often both are timed; the STFT is at least twice as often.
    """
    import tensorflow as tf

    from cunet_lib.signal.spectral import graph_magnitude
    from cunet_lib.train.batches import TrainingBatches

    settings = load_profile("demo", f"{PAPER} {EVERYTHING}")
    trainer, audio, condition = new_trainer(settings)
    transform = tf.function(lambda audio: graph_magnitude(audio, settings.signal))
    # Tensors, as the pipeline gives them.
    mixture, condition, target = map(tf.constant, (audio, condition, 0.5 * audio))
    taken = interleaved(
        {
            "step": lambda: trainer.train_on_batch((mixture, condition), target),
            "stft": lambda: (transform(mixture).numpy(), transform(target).numpy()),
        },
        seconds=0,
        least=2 * turns,
    )
    # Half the paper's width: the smaller the network, the more often it asks for data.
    small = load_profile("demo", EVERYTHING)
    trainer, *_ = new_trainer(small)
    songs = _songs_of_noise(small)
    stream = iter(TrainingBatches(songs, small, model="cnn_complex", seed=0).from_step())
    cached, wanted = next(stream)

    def step_seconds(batches: Iterator) -> float:
        start = time.perf_counter()
        for batch in batches:
            trainer.train_on_batch(*batch)
        return (time.perf_counter() - start) / steps

    step_seconds([(cached, wanted)] * 2)
    fed: dict[str, list[float]] = {"cached": [], "pipeline": []}
    for turn in range(turns):
        for name in sorted(fed, reverse=bool(turn % 2)):
            given = stream if name == "pipeline" else itertools.repeat((cached, wanted))
            # Until the pipeline works as it does in a long training, or has filled up and rests.
            step_seconds(itertools.islice(given, DRAIN))
            fed[name].append(step_seconds(itertools.islice(given, steps)))
    return {"share": taken, "fed": fed}


def memory_of_batches(copies: int, steps: int) -> dict:
    """Peak bytes while a small network trains from a store that lists its files ``copies`` times.

    Files are mapped, not read: the pages of theirs that were touched are counted apart.
    """
    from cunet_lib.train.batches import TrainingBatches

    settings = load_profile("demo", f"model.filters=2 {EVERYTHING}")
    store = noise_store(settings, tracks={"train": 8}, seconds=30.0, copies=copies)
    stream = iter(TrainingBatches(store, settings, model="cnn_complex", seed=0).from_step())
    trainer, *_ = new_trainer(settings)
    peaks, done = [resident()], threading.Event()

    def watch():
        while not done.wait(0.02):
            peaks.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(steps):
        trainer.train_on_batch(*next(stream))
    done.set()
    watcher.join()
    own, mapped = zip(*peaks, strict=True)
    size = sum((store.folder / entry.file).stat().st_size for entry in store.entries)
    return {"store": size, "own": max(own), "mapped": max(mapped)}


def training(seconds: float, torch: str | None = None) -> dict:
    """Steps of the paper-size C-U-Net beside a matrix product, and beside PyTorch.

    Batches are the paper's; in float32 there are smaller ones, too.

    Parameters
    ----------
    torch
        A Python interpreter that has PyTorch.
    """
    import tensorflow as tf

    from cunet_lib.core.hardware import computes_bfloat16

    settings = load_profile("demo", PAPER)
    square = tf.random.stateless_normal((2048, 2048), (0, 0))
    products = {"float32": square}
    if computes_bfloat16():
        products["bfloat16"] = tf.cast(square, tf.bfloat16)
    found = {
        "patches": PAPER_BATCH,
        "fewer": settings.train.batch_size,
        "operations": 2 * 2048**3,
        "precisions": {},
        "torch": None,
    }
    for precision, matrix in products.items():
        network, calls = _steps(precision, PAPER_BATCH)
        # Everything is compared with float32's product, too.
        for kind, factor in {"float32": square, precision: matrix}.items():
            calls[f"{kind} product"] = functools.partial(_product, factor)
        if precision == "float32":
            calls["fewer"] = _steps(precision, settings.train.batch_size)[1]["step"]
        with contextlib.ExitStack() as stack:
            if torch:
                other = stack.enter_context(_torch(torch, settings, PAPER_BATCH, precision))
                found["torch"] = other.version
                calls["torch"] = other.step
            taken = interleaved(calls, seconds=seconds / len(products))
            if torch:
                # Its own clock: what passes between the processes does not count.
                taken["torch"] = other.seconds[1:]
        found["precisions"][precision] = taken
        found["flops"] = step_flops(network)
    return found


def _product(matrix) -> None:
    import tensorflow as tf

    tf.linalg.matmul(matrix, matrix)[0, 0].numpy()


def _steps(precision: str, batch: int) -> tuple:
    """A network, and its training step on waveforms and on spectrograms that are there already."""
    import tensorflow as tf

    from cunet_lib.models.fast import Adam

    policy = "float32" if precision == "float32" else "mixed_bfloat16"
    # The last of two settings counts.
    settings = load_profile("demo", f"{PAPER} train.precision={policy} train.batch_size={batch}")
    trainer, audio, condition = new_trainer(settings)
    network = trainer.network
    network.compile(optimizer=Adam(1e-3), loss="mae", jit_compile=False)
    patches = np.random.default_rng(0).random((len(audio), *settings.patch_shape), np.float32)
    # Tensors, as the pipeline gives them.
    audio, condition, patches = map(tf.constant, (audio, condition, patches))
    calls = {
        "step": lambda: trainer.train_on_batch((audio, condition), 0.5 * audio),
        "network": lambda: network.train_on_batch([patches, condition], 0.5 * patches),
    }
    return network, calls


class _Torch:
    """A process that takes training steps in PyTorch when asked."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.seconds: list[float] = []
        self.version = self._answer()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The interpreter given as --torch cannot train with PyTorch.")
        return line.strip()

    def step(self) -> None:
        self._process.stdin.write("1\n")
        self._process.stdin.flush()
        self.seconds.append(float(self._answer()))


@contextlib.contextmanager
def _torch(python: str, settings: Profile, batch: int, precision: str) -> Iterator[_Torch]:
    arguments = [settings.model.filters, batch, cores(), precision]
    with subprocess.Popen(
        [python, str(ROOT / "benchmarks" / "torch_step.py"), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield _Torch(process)
        finally:
            process.kill()
