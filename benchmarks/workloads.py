"""What :mod:`benchmarks.bench` measures; each workload runs in a process of its own.

``python -m benchmarks.workloads NAME ARGUMENTS FILE`` runs one and writes what it found as JSON. A
process of its own keeps one workload's memory, threads and caches out of another's figures. Its
environment names a scratch folder as ``CUNET_DATA`` and ``CUNET_RESULTS``. Audio is noise: no
workload here depends on what is heard.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.timing import interleaved, peak_memory, resident, watched_memory
from cunet_lib.core.files import RUN_KEYS, write_json
from cunet_lib.core.processes import cores, map_tracks
from cunet_lib.core.settings import ROOT, Profile, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import all_one_hot, draw
from cunet_lib.preprocess.store import INDEX, Entry, Store, build_store
from cunet_lib.preprocess.tracks import STEMS

PAPER = "model.filters=16 train.batch_size=16 model.dropout=0.5 model.control_dropout=0.5"
"""Overrides of the demo for networks of the paper's size; batches stay the demo's."""

PAPER_BATCH = 64
"""Patches of a batch in the paper."""

EVERYTHING = "train.conditions=[one_hot,zero,all,pairs,continuous]"

DRAIN = 6
"""Batches that a pipeline has ready when nobody took any; they are not timed."""

RATE = 44100


# ------------------------------------------------------------------------------------ scratch data


def noise_corpus(root: Path, *, tracks: dict[str, int], seconds: float) -> None:
    """Tracks in MUSDB18-HQ layout, 44.1 kHz stereo; all of them links to the same five files."""
    import soundfile

    rng = np.random.default_rng(0)
    first = None
    for subset, number in tracks.items():
        for index in range(number):
            folder = root / subset / f"Noise - {subset} {index:03}"
            folder.mkdir(parents=True)
            for stem in STEMS:
                path = folder / f"{stem}.wav"
                if first is not None:
                    os.link(first / path.name, path)
                    continue
                noise = (3000 * rng.normal(size=(round(seconds * RATE), 2))).astype(np.int16)
                soundfile.write(path, noise, RATE, subtype="PCM_16")
            first = first or folder


def noise_store(
    settings: Profile, *, tracks: dict[str, int], seconds: float, copies: int = 1
) -> Store:
    """A store of noise; ``copies`` lists every file so many times, under names of its own."""
    folder = settings.paths.store
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    samples = round(seconds * settings.signal.sample_rate)
    entries = []
    for split, number in tracks.items():
        for index in range(number):
            audio = np.empty((len(STEMS), samples), np.float32)
            audio[1:] = 0.1 * rng.standard_normal((len(INSTRUMENTS), samples), np.float32)
            audio[0] = audio[1:].sum(axis=0)
            for copy in range(copies):
                name = f"{split} {index} {copy}"
                digest = hashlib.sha256(name.encode()).hexdigest()
                path = folder / f"{digest[:16]}.npy"
                if copy:
                    os.link(folder / entries[-1].file, path)
                else:
                    np.save(path, audio)
                entries.append(
                    Entry(name, split, path.name, samples, seconds, 20.0, digest, digest)
                )
    write_json(
        folder / INDEX,
        {
            "signal": settings.signal.model_dump(),
            "settings_hash": settings.section_hash("data", "signal"),
            "stems": list(STEMS),
            "tracks": [asdict(entry) for entry in entries],
        },
    )
    return Store(folder)


def _trainer(settings: Profile):
    """An untrained C-U-Net with its STFT, compiled as training compiles it, and a batch."""
    from cunet_lib.models.fast import Adam
    from cunet_lib.train import training

    network = training.new_network(settings, "cnn_complex", seed=0)
    trainer = training.WaveformModel(network, settings.signal)
    trainer.compile(
        optimizer=Adam(settings.train.learning_rate),
        loss=training.magnitude_error(settings.signal),
        jit_compile=False,
    )
    size = settings.train.batch_size
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.standard_normal((size, settings.patch_samples), np.float32)
    condition = np.resize(all_one_hot(), (size, len(INSTRUMENTS)))
    return trainer, audio, condition


# ---------------------------------------------------------------------------------------- batches


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
    trainer, audio, condition = _trainer(settings)
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
    trainer, *_ = _trainer(small)
    songs = _songs_of_noise(small)
    stream = iter(TrainingBatches(songs, small, model="cnn_complex", seed=0).dataset())
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
    stream = iter(TrainingBatches(store, settings, model="cnn_complex", seed=0).dataset())
    trainer, *_ = _trainer(settings)
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


# --------------------------------------------------------------------------------------- training


def forward_flops(network) -> int:
    """Floating-point operations of the layers' products for one example, forwards.

    Two for every multiplication and addition of convolutions and dense layers, as if each were done
    (see :func:`done_share`), borders counted as if they were not padded. Normalisation, activations
    and FiLM multiply no matrices and are left out.
    """
    total = 0
    for layer in network.layers:
        if hasattr(layer, "layers"):
            total += forward_flops(layer)
        elif getattr(layer, "kernel", None) is not None:
            total += _product_flops(layer)
    return total


def _product_flops(layer) -> int:
    """Operations of a layer that has a kernel, for one example."""
    # A transposed convolution applies its kernel at every input, others at every output. Either
    # way that is the coarser side; padding "valid" shortens the output too.
    places = min(_places(layer.input), _places(layer.output))
    return 2 * places * int(np.prod(layer.kernel.shape))


def done_share(network) -> float:
    """Of the operations of :func:`forward_flops`, the share that a float32 training step does."""
    from cunet_lib.models import winograd

    saved = 0.0
    for layer in network.layers:
        if len(getattr(getattr(layer, "kernel", None), "shape", ())) == 4:
            larger = max(layer.input.shape[1:3], layer.output.shape[1:3])
            if winograd.pays(*larger, tuple(layer.kernel.shape)):
                saved += _product_flops(layer) * (1.0 - winograd.share(*larger))
    return 1.0 - saved / forward_flops(network)


def step_flops(network) -> int:
    """Operations of one example's training step: forwards, and twice as many backwards.

    Backwards each layer multiplies for the gradient of its kernel and for that of its input; the
    first layer's input needs none.
    """
    first = network.get_layer("encoder_1_convolution")
    return 3 * forward_flops(network) - 2 * _places(first.output) * int(np.prod(first.kernel.shape))


def _places(tensor) -> int:
    return int(np.prod(tensor.shape[1:-1], dtype=int))


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
    trainer, audio, condition = _trainer(settings)
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
        [python, str(ROOT / "tests" / "torch_step.py"), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield _Torch(process)
        finally:
            process.kill()


def profile(steps: int, batch: int = PAPER_BATCH) -> dict:
    """Seconds of a float32 step by the kind of work, from TensorFlow's profiler.

    Operations run one after another here, each on all cores, so that their times add up.
    """
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(cores())
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    network, calls = _steps("float32", batch)
    kinds = {layer.name: type(layer).__name__ for layer in network.layers}
    step = calls["network"]
    for _ in range(2):
        step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(steps):
                step()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    spent: dict[str, float] = {}
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            operation, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
            if colon and kind.isidentifier() and not operation.endswith(":"):
                work = _work(operation, kind, kinds)
                spent[work] = spent.get(work, 0.0) + event.duration_ps / 1e12 / steps
    flops = batch * step_flops(network)
    return {"kinds": spent, "flops": flops, "done": done_share(network)}


def _work(operation: str, kind: str, layers: dict[str, str]) -> str:
    """What an operation of a step is for, by its name, its kind and the layers' classes."""
    if operation.startswith("adam"):
        return "Adam"
    # Names are paths; a layer's is followed by a number if the layer is called once more.
    parts = operation.split("/")
    names = [name for part in parts for name in (part, part.rpartition("_")[0]) if name in layers]
    layer = layers[names[0]] if names else ""
    convolves = "Conv" in layer or layer == "ToOneChannel"
    if "Conv2D" in kind or (convolves and "Bias" not in kind):
        return "convolutions"
    if convolves:
        return "convolutions' biases"
    return {
        "BatchNormalization": "normalisation",
        "FiLM": "FiLM",
        "Dropout": "dropout",
        "LeakyReLU": "activations",
        "ReLU": "activations",
        "Concatenate": "skip connections",
    }.get(layer, "skip connections" if kind == "AddN" else "mask, loss, control network, others")


def precision(steps: int, seeds: int, tracks: int) -> dict:
    """Validation losses of a small C-U-Net after so many steps, by precision, one for each seed.

    The one workload that needs music: it renders songs of the corpus. A precision is that of
    weights and batches as they are; a processor without bfloat16 rounds as one that has it (see
    :mod:`cunet_lib.models.fast`).
    """
    from cunet_lib.train import training
    from rendered_corpus import render_corpus

    settings = load_profile(
        "demo",
        f"model.filters=4 data.validation={tracks // 4} train.steps_per_epoch={steps} "
        f"train.cunet_epochs=1 train.warmup_steps={steps // 5}",
    )
    render_corpus(settings.paths.corpus, train_tracks=tracks, test_tracks=2, seconds=20.0)
    store = build_store(settings)
    losses: dict[str, list[float]] = {"float32": [], "mixed_bfloat16": []}
    for seed in range(seeds):
        for name, found in losses.items():
            train = settings.train.model_copy(update={"precision": name})
            record = training.train(
                settings.model_copy(update={"train": train}),
                store,
                "dense_complex",
                seed=seed,
                folder=settings.paths.run(f"{name}_dense_complex", seed),
                report=lambda line: None,
            )
            found.append(record["best_val_loss"])
    return {"losses": losses, "steps": steps}


# ---------------------------------------------------------------------------------- preprocessing


def preprocessing(tracks: int, seconds: float, turns: int) -> dict:
    """Seconds of ``build_store`` and of ``librosa.load`` stem by stem, over the same files."""
    settings = load_profile("demo", "data.validation=1")
    half = max(2, tracks // 2)
    noise_corpus(settings.paths.corpus, tracks={"train": half, "test": half}, seconds=seconds)
    calls = {"ours": lambda: _prepared(settings), "librosa": lambda: _loaded(settings)}
    _loaded(settings, most=1)  # imports are not loading
    with watched_memory() as memory:
        taken = interleaved(calls, seconds=0, least=turns, warm=False)
    return {
        "music": 2 * half * seconds,
        "taken": taken,
        "workers": min(cores(), 2 * half),
        "worker_peak": memory.child,
    }


def librosa_memory(tracks: int, seconds: float) -> dict:
    """Peak of a process that loads stem by stem with librosa."""
    settings = load_profile("demo", "data.validation=1")
    noise_corpus(settings.paths.corpus, tracks={"train": tracks}, seconds=seconds)
    _loaded(settings)
    return {"peak": peak_memory()}


def _prepared(settings: Profile) -> None:
    shutil.rmtree(settings.paths.store, ignore_errors=True)
    build_store(settings)


def _loaded(settings: Profile, most: int | None = None) -> None:
    import librosa

    for path in sorted(settings.paths.corpus.glob("*/*/*.wav"))[:most]:
        librosa.load(path, sr=settings.signal.sample_rate)


# ------------------------------------------------------------------------------------- evaluation


def evaluation(tracks: int, seconds: float, turns: int) -> dict:
    """Seconds of scoring tracks on all cores and in one process; threads that a worker uses.

    One process: with as many threads of BLAS as there are cores, and with a single one.
    """
    from threadpoolctl import threadpool_limits

    from cunet_lib.preprocess.tracks import ensure_ffmpeg

    ensure_ffmpeg()
    import museval  # noqa: F401 - its import is not scoring

    settings = load_profile("demo")
    store = noise_store(settings, tracks={"test": tracks}, seconds=seconds)

    def one_core():
        with threadpool_limits(1):
            _scored(settings, store, 1)

    calls = {
        "all": lambda: _scored(settings, store, None),
        "one": lambda: _scored(settings, store, 1),
        "core": one_core,
    }
    # Rarely: all cores are busy, and a look costs one of them a millisecond.
    with watched_memory(every=0.5) as memory:
        taken = interleaved(calls, seconds=0, least=turns, warm=False)
    threads = max(map_tracks(_threads, [(0,), (1,)], total=2, label="threads", workers=2))
    return {
        "taken": taken,
        "music": tracks * seconds,
        "worker_peak": memory.child,
        "workers": min(cores(), tracks),
        "threads": threads,
    }


def _scored(settings: Profile, store: Store, workers: int | None) -> None:
    from cunet_lib.evaluation import evaluate as scoring

    shutil.rmtree(settings.paths.scores, ignore_errors=True)
    system = scoring.oracles(settings)["mixture"]
    scoring.score_system(settings, store, model="mixture", seed=0, system=system, workers=workers)


def _threads(_) -> int:
    from threadpoolctl import threadpool_info

    # A product first: libraries are listed once they are loaded.
    np.ones((64, 64)) @ np.ones((64, 64))
    return max((each["num_threads"] for each in threadpool_info()), default=1)


def scoring_memory(rate: int, channels: int, seconds: float) -> dict:
    """Seconds and peak of BSS Eval v4 over one track in one process."""
    from cunet_lib.preprocess.tracks import ensure_ffmpeg

    ensure_ffmpeg()
    from museval.metrics import bss_eval
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    references = rng.normal(size=(len(INSTRUMENTS), round(rate * seconds), channels))
    estimates = references + 0.1 * rng.normal(size=references.shape)
    with threadpool_limits(1):
        start = time.perf_counter()
        bss_eval(references, estimates, window=rate, hop=rate, compute_permutation=False)
    return {"seconds": time.perf_counter() - start, "peak": peak_memory()}


# ------------------------------------------------------------------------------------- separation


def separation(seconds: float, turns: int, masks: bool, filters: int = 16) -> dict:
    """Seconds and peak of separating a song of noise, 44.1 kHz stereo, into four WAV files.

    Parameters
    ----------
    masks
        Whether the network alone computes the masks of as many patches in the same turns.
    """
    import soundfile

    from cunet_lib.models import unet as models
    from cunet_lib.separation import catalog, songs
    from cunet_lib.signal import audio

    profile = load_profile("musdb18", f"model.filters={filters}")
    folder = profile.paths.run("cnn_complex", 0)
    folder.mkdir(parents=True)
    size = {"shape": profile.patch_shape, "filters": filters, "blocks": profile.model.blocks}
    models.build("cnn_complex", **size, start="he").save(folder / "model.keras")
    record = {"model": "cnn_complex", "seed": 0, "settings": profile.model_dump(mode="json")}
    write_json(folder / "run.json", {**dict.fromkeys(RUN_KEYS, 1), **record})
    song, out = folder / "song.wav", folder / "parts"
    block = 0.1 * np.random.default_rng(0).standard_normal((RATE, 2), np.float32)
    with soundfile.SoundFile(song, "w", RATE, 2, "PCM_16") as file:
        for _ in range(round(seconds)):
            file.write(block)
    separator = songs.SongSeparator(catalog.find(str(folder)))
    network, wanted = separator.separator, songs.requests()
    frames = 1 + round(seconds) * profile.signal.sample_rate // profile.signal.hop
    step = round(network.frames * (1 - network.separate.overlap))
    patch = np.random.default_rng(0).random((1, profile.signal.bins, network.frames), np.float32)

    def separate() -> None:
        songs.separate_file(separator, audio.open_audio(song), wanted, out=out, force=True)

    def mask() -> None:
        for _ in range(0, max(frames - network.frames, 0) + step, step):
            network.mask_patches(patch, all_one_hot())

    # Graphs are traced once; a song of an hour is not separated twice for that.
    network.mask_patches(patch, all_one_hot())
    calls = {"song": separate} | ({"network": mask} if masks else {})
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {
        "music": round(seconds),
        "taken": taken,
        # The network alone needs less than the song does.
        "peak": peak_memory(),
        "overlap": network.separate.overlap,
        "precision": separator.precision.removeprefix("mixed_"),
    }


# ----------------------------------------------------------------------------------------- growth


def growth(factor: int, tracks: int, seconds: float) -> dict:
    """Seconds and peak bytes of every stage and its workers, for ``factor`` times the tracks.

    Files mapped into memory count apart: the whole store is, and the system keeps as much of it as
    it has room for.
    """
    from cunet_lib.models import unet as models
    from cunet_lib.separation.separator import Separator
    from cunet_lib.train.batches import TrainingBatches

    settings = load_profile("demo", "data.validation=1 model.filters=4")
    paths, number = settings.paths, factor * tracks
    noise_corpus(paths.corpus, tracks={"train": number, "test": number}, seconds=seconds)
    network = models.build(
        "cnn_complex", shape=settings.patch_shape, filters=settings.model.filters, start="he"
    )
    separator = Separator(network, settings.signal, settings.separate)
    trainer, *_ = _trainer(settings)
    store = build_store(settings)
    tests = [np.array(store.audio(entry)[0]) for entry in store.split("test")[:1]]
    # What is loaded and traced once does not grow.
    separator(tests[0], all_one_hot())
    _tabled(settings, 2)
    trainer.train_on_batch(
        *next(iter(TrainingBatches(store, settings, model="cnn_complex", seed=0).dataset()))
    )

    def train():
        stream = iter(TrainingBatches(store, settings, model="cnn_complex", seed=0).dataset())
        # An epoch sees every track as often, however many there are.
        for _ in range(4 * number):
            trainer.train_on_batch(*next(stream))

    def separate():
        for entry in store.split("test"):
            separator(np.array(store.audio(entry)[0]), all_one_hot())

    stages = {
        "preprocess": lambda: _prepared(settings),
        "train": train,
        "separate": separate,
        "score": lambda: _scored(settings, store, None),
        "tables": lambda: _tabled(settings, number),
    }
    found = {}
    for name, stage in stages.items():
        start = time.perf_counter()
        with watched_memory() as memory:
            stage()
        seconds = time.perf_counter() - start
        found[name] = {
            "seconds": seconds,
            "peak": memory.own,
            "mapped": memory.mapped,
            "worker_peak": memory.child,
        }
    return {"stages": found}


def _tabled(settings: Profile, tracks: int) -> None:
    """Tables from made-up scores of every system."""
    import pandas as pd

    from cunet_lib.evaluation import scores as analysis
    from cunet_lib.evaluation.metrics import SCORE_COLUMNS, SDR_V3, SDR_V4
    from cunet_lib.report import tables

    rng = np.random.default_rng(0)
    rows = [
        (
            *(model, 0, f"track {track}", target, metric, each.protocol, each.aggregation),
            *(rng.normal(3.0), 30, 0),
        )
        for model in analysis.SYSTEMS
        for track in range(tracks)
        for target in INSTRUMENTS
        for metric in SDR_V4.entry.headings
        for each in (SDR_V4, SDR_V3)
    ]
    scores = pd.DataFrame(rows, columns=SCORE_COLUMNS)
    for table in (tables.scores_table, tables.differences_table):
        table(settings, scores).save(settings.paths.tables)


# ---------------------------------------------------------------------------------------- the door


WORKLOADS: dict[str, Callable[..., dict]] = {
    each.__name__: each
    for each in (
        batches,
        shares,
        memory_of_batches,
        training,
        profile,
        precision,
        preprocessing,
        librosa_memory,
        evaluation,
        scoring_memory,
        separation,
        growth,
    )
}


def main(name: str, arguments: str, path: str) -> None:
    """Run one workload and write its findings."""
    found = WORKLOADS[name](**json.loads(arguments))
    write_json(Path(path), found)


if __name__ == "__main__":
    main(*sys.argv[1:])
