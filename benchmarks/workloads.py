"""What :mod:`benchmarks.bench` measures; each part runs in a process of its own.

``python -m benchmarks.workloads PART ARGUMENTS FILE`` runs one and writes its rows, and what they
were made of, as JSON. A process of its own keeps one part's memory, threads and caches out of
another's figures. Its environment names a scratch folder as ``CUNET_DATA`` and ``CUNET_RESULTS``.
Audio is noise: nothing here depends on what is heard.

Every part takes ``scale``, the share of the whole measurement, and ``torch``, an interpreter that
has PyTorch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import soundfile

from benchmarks.bench import Row, compared, interleaved, number
from benchmarks.released import released_pipeline
from cunet_lib.core.files import RUN_KEYS, write_json
from cunet_lib.core.hardware import computes_bfloat16, cores, peak_memory
from cunet_lib.core.settings import ROOT, Profile, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.preprocess.store import build_store
from cunet_lib.preprocess.tracks import STEMS

if TYPE_CHECKING:
    import keras

PAPER = "model.filters=16 model.dropout=0.5 model.control_dropout=0.5"
"""Overrides of the demo for networks of the paper's size; batches stay the demo's."""

PAPER_BATCH = 64
"""Patches of a batch in the paper."""

EVERYTHING = "train.conditions=[one_hot,zero,all,pairs,continuous]"

DRAIN = 6
"""Batches that a pipeline has ready when nobody took any; they are not timed."""


Found = tuple[list[Row], dict]
"""Rows, and what they were made of."""

RATE = 44100


def noise_corpus(root: Path, *, tracks: dict[str, int], seconds: float) -> None:
    """Tracks in MUSDB18-HQ layout, 44.1 kHz stereo; all of them links to the same five files."""
    rng = np.random.default_rng(0)
    stems = 2000 * rng.standard_normal((len(INSTRUMENTS), round(seconds * RATE), 2), np.float32)
    names = [
        f"{each}/Noise {n:03} - {each}" for each, count in tracks.items() for n in range(count)
    ]
    first, *others = (root / name for name in names)
    first.mkdir(parents=True)
    for stem, noise in zip(STEMS, [stems.sum(axis=0), *stems], strict=True):
        soundfile.write(first / f"{stem}.wav", noise.astype(np.int16), RATE, subtype="PCM_16")
    for folder in others:
        shutil.copytree(first, folder, copy_function=os.link)


def run_record(settings: Profile, model: str, *, seed: int = 0, **changes) -> dict:
    """What ``run.json`` holds of a finished training."""
    given = {"model": model, "seed": seed, "settings": settings.model_dump(mode="json")}
    return {**dict.fromkeys(RUN_KEYS, 1), "profile": settings.name, **given, **changes}


def untrained_run(settings: Profile, model: str, folder: Path | None = None) -> Path:
    """An untrained network and its record in the place of a finished run's; its file."""
    from cunet_lib.models import unet as models

    folder = folder or settings.paths.run(model, 0)
    folder.mkdir(parents=True)
    size = {"filters": settings.model.filters, "blocks": settings.model.blocks}
    network = models.build(model, shape=settings.patch_shape, **size, start="he")
    network.save(folder / "model.keras")
    write_json(folder / "run.json", run_record(settings, model))
    return folder / "model.keras"


def _middle(values: Sequence[float], unit: str) -> str:
    """Median as text."""
    return f"{number(statistics.median(values))} {unit}"


def _milliseconds(values: Sequence[float]) -> str:
    return _middle([1000 * value for value in values], "ms")


def _pace(music: float, taken: Sequence[float]) -> str:
    return f"{music / statistics.median(taken):.0f} times real time"


# --------------------------------------------------------------------------------------- training


def batches(scale: float, torch: str | None) -> Found:
    """Pipelines of training batches, beside one of the paper's released kind."""
    import tensorflow as tf

    from cunet_lib.signal.spectral import graph_magnitude, stft
    from cunet_lib.train.batches import Ahead, TrainingBatches

    settings = load_profile("demo", f"{PAPER} {EVERYTHING} data.validation=1")
    noise_corpus(settings.paths.corpus, tracks={"train": 17, "test": 1}, seconds=30.0)
    store = build_store(settings)
    spectrograms = [
        np.stack([stft(stem, settings.signal) for stem in store.audio(entry)], axis=-1)
        for entry in store.split("train")
    ]
    ours = TrainingBatches(store, settings, model="cnn_complex", seed=0)

    def transformed(inputs, target):
        mixture, condition = inputs
        magnitudes = graph_magnitude(mixture, settings.signal)
        return (magnitudes, condition), graph_magnitude(target, settings.signal)

    waveforms = Ahead(ours)
    signature = tf.nest.map_structure(lambda a: tf.TensorSpec(a.shape, a.dtype), waveforms[0])
    stream = tf.data.Dataset.from_generator(lambda: Ahead(ours), output_signature=signature)
    pipelines = {
        "waveforms": iter(waveforms),
        "spectrograms": iter(stream.map(transformed, cores()).prefetch(2)),
        "released": iter(released_pipeline(spectrograms, settings)),
    }
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    turns = max(2, round(4 * scale))
    for turn in range(turns):
        for name in sorted(pipelines, reverse=bool(turn % 2)):
            rate = _rate(pipelines[name], 40 * scale / (turns * len(pipelines)))
            rates[name].append(rate * settings.train.batch_size)
    released = _middle(rates["released"], "patches/s, released kind")
    rows = [
        compared(what, _middle(mine, "patches/s"), released, mine, rates["released"], wanted)
        for what, mine, wanted in (
            ("waveforms", rates["waveforms"], ">= 20"),
            ("with the STFT of mixture and target", rates["spectrograms"], ">= 8"),
        )
    ]
    return rows, {"rates": rates}


def _rate(batches: Iterator, seconds: float) -> float:
    """Batches per second, those that lay ready not counted."""
    for _ in range(DRAIN):
        next(batches)
    count, start = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count / (time.perf_counter() - start)


def stft(scale: float, torch: str | None) -> Found:
    """The STFT's share of a training step."""
    import tensorflow as tf

    from cunet_lib.signal.spectral import graph_magnitude
    from cunet_lib.train import training

    settings = load_profile("demo", f"{PAPER} {EVERYTHING}")
    trainer = training.compiled(training.new_network(settings, "cnn_complex", seed=0), settings)
    size = (settings.train.batch_size, settings.patch_samples)
    audio = 0.1 * np.random.default_rng(0).standard_normal(size, np.float32)
    condition = np.resize(all_one_hot(), (len(audio), len(INSTRUMENTS)))
    transform = tf.function(lambda audio: graph_magnitude(audio, settings.signal))
    # Tensors, as the pipeline gives them.
    mixture, condition, target = map(tf.constant, (audio, condition, 0.5 * audio))
    calls = {
        "step": lambda: trainer.train_on_batch((mixture, condition), target),
        "stft": lambda: (transform(mixture).numpy(), transform(target).numpy()),
    }
    taken = interleaved(calls, turns=max(3, round(24 * scale)))
    whole = f"{_milliseconds(taken['step'])}, paper-size step"
    share, step = taken["stft"], taken["step"]
    row = compared("its share of a step", _milliseconds(share), whole, share, step, "<= 0.05")
    return [row], taken


def training(scale: float, torch: str | None) -> Found:
    """Steps of the paper-size C-U-Net beside Keras' own layers, and beside PyTorch."""
    rows, found = [], {}
    for precision in ("float32", *(["bfloat16"] if computes_bfloat16() else [])):
        calls = {"ours": _step(precision), "keras": _step(precision, own=False)}
        with contextlib.ExitStack() as stack:
            if torch:
                calls["torch"] = other = stack.enter_context(_torch(torch, precision))
            taken = interleaved(calls, turns=max(2, round(7 * scale)))
            if torch:
                # Its own clock, past the warm-up: what passes between processes does not count.
                found["torch"], taken["torch"] = other.version, other.seconds[1:]
        found[precision], ours = taken, taken["ours"]
        for name, named in (("keras", "Keras' layers"), ("torch", f"PyTorch {found.get('torch')}")):
            if theirs := taken.get(name):
                reference = f"{_milliseconds(theirs)}, {named}"
                what = f"paper-size step, {precision}, batches of {PAPER_BATCH}"
                rows.append(compared(what, _milliseconds(ours), reference, theirs, ours, ">= 1"))
    return rows, found


def _step(precision: str, *, own: bool = True) -> Callable[[], object]:
    """A training step on spectrograms that are there already, by our layers or by Keras'."""
    import keras
    import tensorflow as tf

    from cunet_lib.models import fast, unet
    from cunet_lib.train.training import new_network

    policy = "float32" if precision == "float32" else f"mixed_{precision}"
    settings = load_profile("demo", f"{PAPER} train.precision={policy}")
    names = ("BatchNormalization", "Conv2D", "Conv2DTranspose", "Dropout")
    theirs = {name: getattr(keras.layers, name) for name in names}
    theirs["ToOneChannel"] = keras.layers.Conv2DTranspose
    kinds = {name: getattr(fast, name) for name in theirs} if own else theirs
    with mock.patch.multiple(unet, **kinds):
        network = new_network(settings, "cnn_complex", seed=0)
    optimizer = fast.Adam(1e-3) if own else keras.optimizers.Adam(1e-3)
    network.compile(optimizer=optimizer, loss="mae", jit_compile=False)
    shape = (PAPER_BATCH, *settings.patch_shape)
    patches = tf.constant(np.random.default_rng(0).random(shape, np.float32))
    condition = tf.constant(np.resize(all_one_hot(), (PAPER_BATCH, 4)))
    return lambda: network.train_on_batch([patches, condition], 0.5 * patches)


class _Torch:
    """A process that takes a training step in PyTorch when it is called."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.seconds: list[float] = []
        self.version = self._answer()

    def _answer(self) -> str:
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("The interpreter given as --torch cannot train with PyTorch.")
        return line.strip()

    def __call__(self) -> None:
        self._process.stdin.write("1\n")
        self._process.stdin.flush()
        self.seconds.append(float(self._answer()))


@contextlib.contextmanager
def _torch(python: str, precision: str) -> Iterator[_Torch]:
    filters = load_profile("demo", PAPER).model.filters
    script = ROOT / "benchmarks" / "torch_step.py"
    with subprocess.Popen(
        [python, script, *map(str, (filters, PAPER_BATCH, cores(), precision))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield _Torch(process)
        finally:
            process.kill()


# -------------------------------------------------------------- many tracks beside one process


def preprocessing(scale: float, torch: str | None) -> Found:
    """``build_store`` beside ``librosa.load`` stem by stem, over the same files."""
    import librosa

    settings = load_profile("demo", "data.validation=1")
    # As many and as long as in the demo: starting processes is part of it.
    half, seconds = max(2, round(31 * scale)), 30.0 * min(1, 5 * scale)
    noise_corpus(settings.paths.corpus, tracks={"train": half, "test": half}, seconds=seconds)

    def prepared() -> None:
        shutil.rmtree(settings.paths.store, ignore_errors=True)
        build_store(settings)

    def loaded(most: int | None = None) -> None:
        for path in sorted(settings.paths.corpus.glob("*/*/*.wav"))[:most]:
            librosa.load(path, sr=settings.signal.sample_rate)

    loaded(1)  # imports are not loading
    calls = {"ours": prepared, "librosa": loaded}
    taken = interleaved(calls, turns=max(1, round(3 * scale)), warm=False)
    music, (ours, theirs) = 2 * half * seconds, taken.values()
    reference = f"{_pace(music, theirs)}, librosa.load in one process"
    wanted = f">= {min(cores(), 2 * half)}"
    row = compared("store of all tracks", _pace(music, ours), reference, theirs, ours, wanted)
    return [row], {"music": music, "taken": taken}


def evaluation(scale: float, torch: str | None) -> Found:
    """Scoring tracks on all cores beside one process, whose BLAS has one core or all."""
    from threadpoolctl import threadpool_limits

    from cunet_lib.evaluation import evaluate as scoring
    from cunet_lib.signal.audio import ensure_ffmpeg

    ensure_ffmpeg()
    import museval  # noqa: F401 - its import is not scoring

    settings = load_profile("demo", "data.validation=1")
    # Songs of the demo's length, on two cores as many as MUSDB18 has to test with.
    tracks, seconds = max(1, round(25 * scale)) * max(2, cores()), max(8.0, 30.0 * scale)
    noise_corpus(settings.paths.corpus, tracks={"train": 2, "test": tracks}, seconds=seconds)
    store = build_store(settings)
    system = scoring.Oracle("mixture", settings.signal)

    def scored(workers: int | None, threads: int | None = None) -> None:
        shutil.rmtree(settings.paths.scores, ignore_errors=True)
        with threadpool_limits(threads):
            scoring.score_system(
                settings, store, model="mixture", seed=0, system=system, workers=workers
            )

    calls = {"all": lambda: scored(None), "one": lambda: scored(1), "core": lambda: scored(1, 1)}
    taken = interleaved(calls, turns=max(1, round(3 * scale)), warm=False)
    music, workers = tracks * seconds, min(cores(), tracks)
    rows = [
        compared(
            f"tracks on {workers} processes, a core each",
            _pace(music, taken["all"]),
            f"{_pace(music, taken[name])}, one process {has}",
            taken[name],
            taken["all"],
            f">= {0.9 * workers:g}" if workers > 1 else "",
        )
        for name, has in (("core", "on one core"), ("one", "whose BLAS has all cores"))
    ]
    return rows, {"music": music, "taken": taken}


# ------------------------------------------------------------------------------------------ use


def separation(scale: float, torch: str | None) -> Found:
    """Songs of 4 and of 60 minutes, 44.1 kHz stereo, into four WAV files; paper-size model."""
    from cunet_lib.separation import catalog, songs

    folder = untrained_run(load_profile("musdb18"), "cnn_complex").parent
    separator = songs.SongSeparator(catalog.find(str(folder)))
    rows, found = [], {}
    for minutes, times in ((4, 3), (60, 1)):
        music = 60 * minutes * scale
        song = _song(folder / f"{minutes}.wav", music)

        def separate(song=song) -> None:
            songs.separate(song, model=separator, out=folder / "parts", force=True)

        # Graphs are traced in the first; a song of an hour is not separated twice for that.
        calls = {f"{minutes}": separate}
        taken = interleaved(calls, turns=max(1, round(times * scale)), warm=minutes == 4)
        found |= taken | {f"peak {minutes}": peak_memory()}
        (seconds,) = taken.values()
        what = f"song of {music / 60:g} minutes, {separator.precision.removeprefix('mixed_')}"
        heard = [music] * len(seconds)
        rows.append(compared(what, _pace(music, seconds), "real time", heard, seconds, ">= 60"))
    short, long = found["peak 4"], found["peak 60"]
    ours, reference = f"{long / 1e9:.2f} GB, the long song", f"{short / 1e9:.2f} GB, the short one"
    # One process after the other song: its peak cannot fall.
    rows.append(compared("peak memory", ours, reference, [long], [short], "<= 1.1"))
    return rows, found


def _song(path: Path, seconds: float) -> Path:
    block = 0.1 * np.random.default_rng(0).standard_normal((RATE, 2), np.float32)
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        for _ in range(round(seconds)):
            file.write(block)
    return path


def panel(scale: float, torch: str | None) -> Found:
    """The control panel's answers to a slider, with the model that ships.

    Two kinds: one that the curves follow while a slider rests, and one that waits for them, as in a
    notebook that papermill runs.
    """
    from cunet_lib.explore.steering import load_network

    settings = load_profile("demo")
    network = load_network(settings)
    answers = answer_times(network, settings, moves=max(12, round(48 * scale)))
    reference = f"500 ms; at most {1000 * max(answers):.0f} ms"
    what, median = "slider to sound and picture, 10 s of audio", statistics.median(answers)
    row = compared(what, _milliseconds(answers), reference, [median], [0.5], "<= 1")
    return [row], {"answers": answers}


def answer_times(
    network: keras.Model, settings: Profile, *, moves: int, seconds: float = 10.0
) -> list[float]:
    """Seconds from a slider's new value to the bytes of the new sounds and the new picture.

    Sliders are moved as a hand would, a few steps of each in turn, over the real excerpt, repeated
    to ``seconds``.
    """
    from cunet_lib.evaluation.evaluate import real_excerpt
    from cunet_lib.explore.panel import Explorer

    excerpt = real_excerpt(settings.signal.sample_rate)
    repeats = -(-round(seconds * settings.signal.sample_rate) // excerpt.shape[1])
    songs, steps = {"excerpt": lambda: np.tile(excerpt, repeats)}, 3
    answers = []

    async def move() -> None:
        # Within a running loop, as in a kernel, so that the curves do not hold up the answer.
        panel = Explorer(network, settings, songs, seconds=seconds)
        levels = np.random.default_rng(0).permutation(moves + steps) / (moves + steps)
        for place, level in enumerate(levels):
            name = INSTRUMENTS[place // steps % len(INSTRUMENTS)]
            began = time.perf_counter()
            panel.sliders[name].value = float(level)
            answers.append(time.perf_counter() - began)

    asyncio.run(move())
    return answers[steps:]  # the first slider's moves warm up


if __name__ == "__main__":
    rows, found = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    write_json(Path(sys.argv[3]), {"rows": [asdict(row) for row in rows], "found": found})
