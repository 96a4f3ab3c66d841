"""What a run of the study would cost, before anyone starts it: ``make plan``.

Hours come from a calibration of seconds on this machine (the profile's own network and batch), disk
and memory from sizes. What is assumed rather than measured is said.
"""

from __future__ import annotations

import itertools
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from cunet_lib.core.processes import cores, duration
from cunet_lib.core.settings import ROOT, Profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS
from cunet_lib.evaluation.ablation import ABLATIONS
from cunet_lib.preprocess.check import CHANNELS, EXCERPT_PLACES, EXCERPT_SECONDS, RATE, read_layout
from cunet_lib.preprocess.tracks import (
    STEMS,
    SUBSETS,
    Source,
    corpus_root,
    decode,
    ensure_ffmpeg,
    scan,
)

PUBLISHED = {"train": (100, 6.4 * 3600), "test": (50, 3.5 * 3600)}
"""Tracks and seconds of MUSDB18 as published, rounded; used until ``MUSDB`` says where it is."""

PUBLISHED_BYTES = 4.7e9
LONGEST_SECONDS = 430.0
EXCERPTS = {"train": (94, 94 * 7.0), "test": (50, 50 * 7.0)}
EXCERPTS_BYTES = 140e6

NOTEBOOK_SECONDS = 20.0
"""Assumed, per notebook: starting its kernel, importing TensorFlow, drawing its pictures."""

NOTEBOOK_BYTES = 5e6
"""Assumed, per executed notebook: its pictures and its sound."""

PROCESS_BYTES = 0.4e9
"""Assumed, per worker process: Python and the libraries, before any audio."""

FRAME_BYTES = 160
"""Of a frame's scores in museval's JSON, per instrument."""

FLAC_SHARE = 0.6
"""Of a FLAC file's size in that of its 16-bit samples."""


@dataclass(frozen=True)
class Extent:
    """How much music a corpus holds.

    Attributes
    ----------
    tracks, seconds
        By subset, ``train`` (with the validation tracks) and ``test``.
    longest
        Seconds of the longest track.
    size
        Bytes of the corpus on disk.
    source
        Where these figures come from, in words.
    ready
        Whether the corpus is on disk already, so that it needs no further space.
    """

    tracks: dict[str, int]
    seconds: dict[str, float]
    longest: float
    size: float
    source: str
    ready: bool

    @property
    def total(self) -> float:
        """Seconds of both subsets."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Calibration:
    """What this machine needs for one unit of each kind of work.

    Attributes
    ----------
    step, validation
        Seconds per training step and per validation batch, at the profile's batch size, with all
        cores or the GPU.
    render, decode
        Seconds per second of one track, in one process.
    score_track, score
        Seconds per track and, besides, per second of it, in one process; by every protocol.
    ablate_track, ablate
        The same of one ablation.
    separate
        Seconds per second of one track, all four instruments.
    parameters
        Of the dedicated U-Net and of each C-U-Net, by name.
    training_memory
        Peak bytes of this process after training steps.
    device_memory
        Peak bytes on the GPU; 0 without one.
    score_base, score_memory
        Bytes that scoring takes whatever the track and, besides, per second of it.
    workers
        Processes that decode or score at the same time.
    """

    step: float
    validation: float
    render: float
    decode: float
    separate: float
    score_track: float
    score: float
    ablate_track: float
    ablate: float
    parameters: dict[str, int]
    training_memory: float
    device_memory: float
    score_base: float
    score_memory: float
    workers: int


@dataclass(frozen=True)
class Stage:
    """One stage of the study: notebooks and what they work on.

    ``seconds`` are those of all its runs, ``disk`` the bytes that they add, ``memory`` the peak
    bytes of one run.
    """

    name: str
    runs: int
    work: str
    seconds: float
    disk: float
    memory: float


@dataclass(frozen=True)
class Plan:
    """All stages, in order, and what to know about the figures."""

    stages: tuple[Stage, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all stages, one after another."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk(self) -> float:
        """Bytes that the run adds to the disk."""
        return sum(stage.disk for stage in self.stages)

    def text(self) -> str:
        """The plan as a table for a terminal, notes below."""
        rows = [("stage", "runs", "work", "time at most", "disk", "memory")]
        rows += [
            (s.name, str(s.runs), s.work, span(s.seconds), size(s.disk), size(s.memory))
            for s in self.stages
        ]
        runs = sum(stage.runs for stage in self.stages)
        memory = max(stage.memory for stage in self.stages)
        rows.append(("total", str(runs), "", span(self.seconds), size(self.disk), size(memory)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            left = f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}"
            right = "  ".join(
                f"{cell:>{width}}" for cell, width in zip(row[3:], widths[3:], strict=True)
            )
            lines.append(f"{left}  {right}")
        notes = [textwrap.fill(note, 96, subsequent_indent="  ") for note in self.notes]
        return "\n".join([*lines, "", *notes])


def span(seconds: float) -> str:
    """Seconds as people say them, hours and days too.

    >>> span(3900), span(400_000)
    ('1 h 5 min', '111 h (4.6 days)')
    """
    if seconds < 100 * 3600:
        return duration(seconds)
    return f"{seconds / 3600:.0f} h ({seconds / 86400:.1f} days)"


def size(count: float) -> str:
    """Bytes as people say them.

    >>> size(0), size(2.4e6), size(31_400_000_000)
    ('-', '2.4 MB', '31.4 GB')
    """
    if count <= 0:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def extent_of(settings: Profile) -> Extent:
    """How much music a profile works on: from headers where the files are there, else assumed.

    Raises
    ------
    ConfigError
        As :func:`cunet_lib.preprocess.check.read_layout`, if files are there and not in order.
    """
    data = settings.data
    if data.source == "rendered":
        tracks = {"train": data.train_tracks, "test": data.test_tracks}
        seconds = {subset: number * data.seconds for subset, number in tracks.items()}
        bytes_ = sum(seconds.values()) * RATE * CHANNELS * 2 * len(STEMS)
        return Extent(tracks, seconds, data.seconds, bytes_, "the profile's songs", False)
    given = data.source == "musdb7s" or os.environ.get("CUNET_MUSDB")
    if given and (data.source == "musdb18" or (corpus_root(settings) / "train").is_dir()):
        found = read_layout(settings)
        lengths = {s: [t.seconds for t in found.tracks if t.subset == s] for s in SUBSETS}
        return Extent(
            {subset: len(each) for subset, each in lengths.items()},
            {subset: sum(each) for subset, each in lengths.items()},
            max(track.seconds for track in found.tracks),
            sum(track.size for track in found.tracks),
            f"headers of the {found.format}",
            True,
        )
    published, bytes_, longest, words = (
        (EXCERPTS, EXCERPTS_BYTES, 7.0, "assumed: 144 excerpts of 7 seconds, not yet fetched")
        if data.source == "musdb7s"
        else (
            PUBLISHED,
            PUBLISHED_BYTES,
            LONGEST_SECONDS,
            "assumed: the published totals of MUSDB18; MUSDB=/path reads the files instead",
        )
    )
    return Extent(
        {subset: number for subset, (number, _) in published.items()},
        {subset: seconds for subset, (_, seconds) in published.items()},
        longest,
        bytes_,
        words,
        False,
    )


def estimate(
    settings: Profile, extent: Extent, calibration: Calibration, *, seeds: int = 1
) -> Plan:
    """Stages, hours, disk and memory of a run of the study.

    Parameters
    ----------
    settings
        Profile.
    extent, calibration
        How much music, and how fast this machine is.
    seeds
        How many seeds each model is trained with.

    Returns
    -------
    Plan
        Hours are upper bounds: every training runs to its last epoch.
    """
    signal, train, data = settings.signal, settings.train, settings.data
    rendered, unit = data.source == "rendered", calibration
    number = sum(extent.tracks.values())
    longest_decoded = extent.longest * RATE * CHANNELS * len(STEMS) * 8

    def side_by_side(tracks: int) -> int:
        return max(1, min(unit.workers, tracks))

    heard = number * len(EXCERPT_PLACES) * EXCERPT_SECONDS
    making = unit.render * extent.total if rendered else unit.decode * heard
    corpus = Stage(
        "00_corpus",
        1,
        f"{number} tracks {'rendered' if rendered else 'checked'}",
        NOTEBOOK_SECONDS + making / side_by_side(number),
        NOTEBOOK_BYTES + (0 if extent.ready or data.source == "musdb18" else extent.size),
        side_by_side(number) * (PROCESS_BYTES + longest_decoded),
    )
    store_bytes = len(STEMS) * signal.sample_rate * 4 * extent.total
    store = Stage(
        "01_preprocess",
        1,
        f"{number} tracks, {duration(extent.total)} of music",
        NOTEBOOK_SECONDS + unit.decode * extent.total / side_by_side(number),
        NOTEBOOK_BYTES + store_bytes,
        side_by_side(number) * (PROCESS_BYTES + longest_decoded),
    )
    trainings = []
    for name, models, epochs, instruments in (
        ("02_train_unet", UNETS, train.unet_epochs, 1),
        ("03_train_cunet", VARIANTS, train.cunet_epochs, len(INSTRUMENTS)),
    ):
        runs = len(models) * seeds
        batches = math.ceil(instruments * train.validation_patches / train.batch_size)
        epoch = train.steps_per_epoch * unit.step + batches * unit.validation
        weights = 4 * sum(unit.parameters[model] for model in models) * seeds
        trainings.append(
            Stage(
                name,
                runs,
                f"{epochs} epochs x {train.steps_per_epoch} steps x {train.batch_size} patches",
                runs * (NOTEBOOK_SECONDS + epochs * epoch),
                runs * NOTEBOOK_BYTES + weights,
                unit.training_memory,
            )
        )
    systems = (len(VARIANTS) + 1) * seeds
    tested, music = extent.tracks["test"], extent.seconds["test"]
    # The two oracles share a notebook and are scored like the others.
    scored = systems + 2
    # One model is separated twice more, and scored under each ablation.
    ablated = len(ABLATIONS) * seeds
    frames = music / settings.evaluate.hop_seconds
    flac = music / max(tested, 1) * signal.sample_rate * 2 * FLAC_SHARE
    evaluation = Stage(
        "04_evaluate",
        systems + 1,
        f"{tested} tracks x {scored} systems",
        (systems + 1) * NOTEBOOK_SECONDS
        + (systems + 2 * seeds) * unit.separate * music
        + scored * (unit.score_track * tested + unit.score * music) / side_by_side(tested)
        + ablated * (unit.ablate_track * tested + unit.ablate * music) / side_by_side(tested),
        (systems + 1) * NOTEBOOK_BYTES
        + scored * frames * len(INSTRUMENTS) * FRAME_BYTES
        + (len(STEMS) + scored * len(INSTRUMENTS)) * flac,
        unit.training_memory
        + side_by_side(tested)
        * (PROCESS_BYTES + unit.score_base + unit.score_memory * extent.longest),
    )
    plot = Stage(
        "05_plot",
        1,
        "tables and figures",
        3 * NOTEBOOK_SECONDS,
        4 * NOTEBOOK_BYTES + 2 * unit.parameters[settings.shipped],
        PROCESS_BYTES * 2,
    )
    stages = (corpus, store, *trainings, evaluation, plot)
    return Plan(stages, _notes(settings, extent, stages, calibration))


def _notes(
    settings: Profile, extent: Extent, stages: tuple[Stage, ...], unit: Calibration
) -> tuple[str, ...]:
    train = settings.train
    whole = sum(stage.seconds for stage in stages)
    least = whole
    for name, epochs in (
        ("02_train_unet", train.unet_epochs),
        ("03_train_cunet", train.cunet_epochs),
    ):
        stage = next(stage for stage in stages if stage.name == name)
        work = stage.seconds - stage.runs * NOTEBOOK_SECONDS
        least -= work * (1 - min(1, (train.patience + 1) / epochs))
    tracks = ", ".join(
        f"{subset} {extent.tracks[subset]} tracks, {duration(extent.seconds[subset])}"
        for subset in SUBSETS
    )
    sooner = ""
    if least < whole:
        sooner = f" It would be {span(least)} in all if no training ever improved."
    machine = "GPU" if unit.device_memory else f"{unit.workers} core{'s' * (unit.workers > 1)}"
    notes = [
        f"Music: {tracks} ({extent.source}).",
        "Times are upper bounds: epochs are at most so many, and early stopping ends a training "
        f"after {train.patience} epochs without improvement.{sooner}",
        f"Measured in seconds on this machine ({machine}), so expect the order of magnitude. All "
        "work is counted one notebook after another; notebooks side by side share the machine. "
        f"{NOTEBOOK_SECONDS:.0f} s are assumed for each besides its work, and reading batches is "
        "not counted. Memory is that of one notebook.",
    ]
    if extent.ready or settings.data.source == "musdb18":
        notes.append(f"The corpus itself, {size(extent.size)}, is read where it is.")
    if unit.device_memory:
        notes.append(f"On the GPU a training takes {size(unit.device_memory)}.")
    else:
        notes.append("No GPU was found.")
    need = sum(stage.disk for stage in stages)
    for folder in {settings.paths.data, settings.paths.results}:
        free = shutil.disk_usage(_existing(folder)).free
        if free < need:
            notes.append(
                f"Not enough space: {size(need)} are needed, {size(free)} are free where {folder} "
                "would be; set CUNET_DATA and CUNET_RESULTS to a larger disk."
            )
    return tuple(notes)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


# ------------------------------------------------------------------------------------ calibration


def calibrate(
    settings: Profile, *, seconds: float = 12.0, report: Callable[[str], None] = print
) -> Calibration:
    """Measure this machine with the profile's own network, batch and signal settings.

    Parameters
    ----------
    settings
        Profile.
    seconds
        About this long for the training step, the part that matters most; every other part takes
        a few seconds. At least one step is timed after the one that builds the graph.
    report
        Gets a line per part.
    """
    rng = np.random.default_rng(0)
    report("calibrating: scoring")
    scoring = _scoring(settings, rng)
    report("calibrating: reading audio")
    render = _rendering(settings) if settings.data.source == "rendered" else 0.0
    decoding = _decoding(settings, rng)
    report("calibrating: training steps; the first one builds the graph")
    step, validation, network = _training(settings, rng, seconds)
    report("calibrating: separation")
    separate = _separation(settings, network, rng)
    from cunet_lib.models.unet import parameter_table

    model = settings.model
    table = parameter_table(shape=settings.patch_shape, filters=model.filters, blocks=model.blocks)
    parameters = dict(zip(table["model"], table["parameters"], strict=True))
    parameters |= dict.fromkeys(UNETS, parameters["unet"] // len(UNETS))
    return Calibration(
        step=step,
        validation=validation,
        render=render,
        decode=decoding,
        separate=separate,
        **scoring,
        parameters={name: int(count) for name, count in parameters.items()},
        training_memory=_peak_memory(),
        device_memory=_device_memory(),
        workers=cores(),
    )


def _timed(call: Callable[[], object], seconds: float = 0.0) -> float:
    """Seconds per call, over calls for ``seconds`` and at least one."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def _scoring(settings: Profile, rng: np.random.Generator) -> dict[str, float]:
    """Seconds and bytes of scoring a track by every protocol, and of scoring one ablation of it.

    Solving for museval's filters costs the same for every track, so two lengths are scored.
    """
    from cunet_lib.evaluation import ablation
    from cunet_lib.evaluation import evaluate as scoring
    from cunet_lib.evaluation import metrics as measures

    ensure_ffmpeg()
    import museval  # noqa: F401 - its import takes seconds that are not scoring

    rate = settings.signal.sample_rate
    lengths = [factor * max(1.0, settings.evaluate.window_seconds) for factor in (4.0, 32.0)]
    window, hop = measures.framing(settings.evaluate, rate)
    times, ablations, peaks = [], [], []
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        paths = Path(folder) / "v4.json", Path(folder) / "others.json"
        for length in lengths:
            references = rng.normal(size=(len(INSTRUMENTS), round(length * rate)))
            estimates = references + 0.1 * rng.normal(size=references.shape)
            audio = np.concatenate([references.sum(axis=0, keepdims=True), references])
            tracemalloc.start()
            try:
                start = time.process_time()
                scoring._score(audio, estimates, settings, "calibration", paths)
                times.append(time.process_time() - start)
                peaks.append(float(tracemalloc.get_traced_memory()[1]))
            finally:
                tracemalloc.stop()
            start = time.process_time()
            ablation.ablation_rows(audio[0], references, estimates, window=window, hop=hop)
            ablations.append(time.process_time() - start)
    names = ("score_track", "score", "ablate_track", "ablate", "score_base", "score_memory")
    values = (_line(lengths, costs) for costs in (times, ablations, peaks))
    return dict(zip(names, itertools.chain(*values), strict=True))


def _line(lengths: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Cost at length zero and per unit of length; neither below zero, however noisy.

    >>> _line([4.0, 32.0], [3.0, 10.0]), _line([4.0, 32.0], [3.0, 2.0])
    ((2.0, 0.25), (2.0, 0.0625))
    """
    slope = (costs[1] - costs[0]) / (lengths[1] - lengths[0])
    if slope <= 0:
        # Noise: all of the longer one's cost by its length, and once more by the track.
        return costs[1], costs[1] / lengths[1]
    return max(0.0, costs[0] - slope * lengths[0]), slope


_RENDER = (
    "import sys, time; from rendered_corpus import render_corpus; start = time.perf_counter(); "
    "render_corpus(sys.argv[1], train_tracks=1, test_tracks=0, seconds=float(sys.argv[2]), "
    "workers=1); print(time.perf_counter() - start)"
)


def _rendering(settings: Profile) -> float:
    """Seconds per second of song; a process of its own, as the library does not know the corpus."""
    length = min(8.0, settings.data.seconds)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _RENDER, folder, str(length)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1]) / length


def _decoding(settings: Profile, rng: np.random.Generator) -> float:
    """Seconds per second of track, of the format at hand; WAV files where none is."""
    rate = settings.signal.sample_rate
    sources: list[Source] = []
    if settings.data.source != "rendered" and (
        os.environ.get("CUNET_MUSDB") or settings.data.source == "musdb7s"
    ):
        sources = scan(corpus_root(settings), "train")
    if sources:
        smallest = min(sources, key=lambda source: source.files[0].stat().st_size)
        start = time.perf_counter()
        audio = decode(smallest, rate)
        return (time.perf_counter() - start) / (audio.shape[1] / rate)
    import soundfile

    length = 10.0
    noise = 0.1 * rng.normal(size=(round(length * RATE), CHANNELS))
    with tempfile.TemporaryDirectory() as folder:
        files = tuple(Path(folder) / f"{stem}.wav" for stem in STEMS)
        for path in files:
            soundfile.write(path, noise, RATE, subtype="PCM_16")
        return _timed(lambda: decode(Source("noise", "train", files, True), rate)) / length


def _training(settings: Profile, rng: np.random.Generator, seconds: float):
    """Seconds per training step and per validation batch, and the network.

    The largest C-U-Net stands for all models; they differ by their control networks alone.
    """
    from cunet_lib.models.conditions import all_one_hot
    from cunet_lib.models.fast import Adam
    from cunet_lib.train import training

    count, train = settings.train.batch_size, settings.train
    audio = rng.normal(size=(count, settings.patch_samples)).astype(np.float32)
    inputs = (audio, np.resize(all_one_hot(), (count, len(INSTRUMENTS))))
    network = training.new_network(settings, "dense_complex", seed=0)
    trainer = training.WaveformModel(network, settings.signal)
    trainer.compile(
        optimizer=Adam(train.learning_rate, beta_1=train.beta_1),
        loss=training.magnitude_error(settings.signal),
        jit_compile=training._jit(settings),
    )
    trainer.train_on_batch(inputs, 0.5 * audio)
    step = _timed(lambda: trainer.train_on_batch(inputs, 0.5 * audio), seconds)
    trainer.test_on_batch(inputs, 0.5 * audio)
    validation = _timed(lambda: trainer.test_on_batch(inputs, 0.5 * audio), min(seconds, 1.0))
    return step, validation, network


def _separation(settings: Profile, network, rng: np.random.Generator) -> float:
    """Seconds per second of track, all four instruments."""
    from cunet_lib.models.conditions import all_one_hot
    from cunet_lib.separation.separator import Separator

    separator = Separator(network, settings.signal, settings.separate)
    # As long as one full batch of patches.
    patches = settings.separate.batch_size * (1 - settings.separate.overlap)
    samples = round(max(1.0, patches) * settings.model.patch_frames) * settings.signal.hop
    mixture = rng.normal(size=samples).astype(np.float32)
    separator(mixture, all_one_hot()[:1])
    seconds = _timed(lambda: separator(mixture, all_one_hot()))
    return seconds / (samples / settings.signal.sample_rate)


def _peak_memory() -> float:
    """Peak bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _device_memory() -> float:
    import tensorflow as tf

    from cunet_lib.core.hardware import gpus

    if not gpus():
        return 0.0
    return float(tf.config.experimental.get_memory_info("GPU:0")["peak"])
