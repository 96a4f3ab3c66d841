"""What a run of the study would cost, before anyone starts it: ``make plan``.

Hours come from a calibration of seconds on this machine, with the profile's own network and batch;
disk and memory from sizes. The order of magnitude is right; what is assumed is said.
"""

from __future__ import annotations

import math
import os
import shutil
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from cunet_lib.core.hardware import cores, gpus, peak_memory
from cunet_lib.core.processes import duration
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS
from cunet_lib.evaluation.ablation import ABLATIONS
from cunet_lib.preprocess.check import CHANNELS, RATE, read_layout
from cunet_lib.preprocess.tracks import STEMS, SUBSETS, corpus_root
from cunet_lib.signal.audio import ensure_ffmpeg

PUBLISHED = {
    "musdb18": (
        {"train": 100, "test": 50},
        {"train": 6.4 * 3600, "test": 3.5 * 3600},
        430.0,
        4.7e9,
    ),
    "musdb7s": ({"train": 94, "test": 50}, {"train": 94 * 7.0, "test": 50 * 7.0}, 7.0, 140e6),
}
"""Tracks, seconds, the longest track and bytes of MUSDB18, rounded, until its files are there."""

NOTEBOOK_SECONDS, NOTEBOOK_BYTES = 20.0, 5e6
"""Assumed, per notebook: starting its kernel, importing TensorFlow; its pictures and its sound."""

PROCESS_BYTES = 0.4e9
"""Assumed, per worker process: Python and the libraries, before any audio."""

RENDER_SECONDS, DECODE_SECONDS = 0.5, 0.02
"""Assumed, per second of a song, in one process: rendering it; reading and preparing its stems."""

SCORE_BYTES = 4e6
"""Assumed, per second of a track that is scored: its signals and their spectra."""


@dataclass(frozen=True)
class Extent:
    """How much music a corpus holds: tracks and seconds by subset, ``train`` and ``test``.

    ``longest`` are seconds of the longest track, ``size`` bytes on disk; ``source`` says where
    these figures come from, ``ready`` that the corpus is on disk and needs no further space.
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

    ``step`` and ``validation`` are seconds per batch of the profile's size, with all cores or the
    GPU; ``score`` those per second of one track, by every protocol, in one process.
    ``parameters`` are the largest network's, ``memory`` peak bytes of training, ``workers`` the
    processes that decode or score side by side.
    """

    step: float
    validation: float
    score: float
    parameters: int
    memory: float
    workers: int
    gpu: bool


@dataclass(frozen=True)
class Part:
    """Runs of one notebook: seconds of all of them, bytes that they add, peak bytes of one."""

    name: str
    runs: int
    work: str
    seconds: float
    disk: float
    memory: float


@dataclass(frozen=True)
class Plan:
    """All parts, in order, and what to know about the figures."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def total(self) -> Part:
        """The sum of all parts, one after another; the largest memory."""
        return Part(
            "total",
            sum(part.runs for part in self.parts),
            "",
            sum(part.seconds for part in self.parts),
            sum(part.disk for part in self.parts),
            max(part.memory for part in self.parts),
        )

    def text(self) -> str:
        """The plan as a table for a terminal, notes below."""
        lines = [
            f"{'stage':14}{'runs':>5}  {'work':44}{'time at most':>20}{'disk':>10}{'memory':>10}"
        ]
        lines += [
            f"{part.name:14}{part.runs:>5}  {part.work:44}{span(part.seconds):>20}"
            f"{size(part.disk):>10}{size(part.memory):>10}"
            for part in (*self.parts, self.total)
        ]
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

    >>> size(2.4e6), size(31_400_000_000)
    ('2.4 MB', '31.4 GB')
    """
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
    if _is_there(settings):
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
    words = "assumed: the published totals of MUSDB18; MUSDB=/path reads the files instead"
    if data.source == "musdb7s":
        words = "assumed: 144 excerpts of 7 seconds, not yet fetched"
    return Extent(*PUBLISHED[data.source], words, data.source == "musdb18")


def _is_there(settings: Profile) -> bool:
    if settings.data.source == "musdb18":
        return bool(os.environ.get("CUNET_MUSDB"))
    return settings.data.source == "folder" or (corpus_root(settings) / "train").is_dir()


def estimate(
    settings: Profile, extent: Extent, calibration: Calibration, *, seeds: int = 1
) -> Plan:
    """Stages, hours, disk and memory of a run of the study, each model trained with so many seeds.

    Hours are upper bounds: every training runs to its last epoch.
    """
    train, unit, rate = settings.train, calibration, settings.signal.sample_rate
    number, tested, music = (
        sum(extent.tracks.values()),
        extent.tracks["test"],
        extent.seconds["test"],
    )
    workers = max(1, min(unit.workers, number))
    rendered = settings.data.source == "rendered"
    decoding = workers * (PROCESS_BYTES + extent.longest * RATE * CHANNELS * len(STEMS) * 8)
    making = RENDER_SECONDS if rendered else DECODE_SECONDS
    parts = [
        _part(
            "00_corpus",
            1,
            f"{number} tracks {'rendered' if rendered else 'checked'}",
            making * extent.total / workers,
            0 if extent.ready else extent.size,
            decoding,
        ),
        _part(
            "01_preprocess",
            1,
            f"{number} tracks, {duration(extent.total)} of music",
            DECODE_SECONDS * extent.total / workers,
            len(STEMS) * rate * 4 * extent.total,
            decoding,
        ),
    ]
    for name, models, epochs, instruments in (
        ("02_train_unet", UNETS, train.unet_epochs, 1),
        ("03_train_cunet", VARIANTS, train.cunet_epochs, len(INSTRUMENTS)),
    ):
        runs = len(models) * seeds
        batches = math.ceil(instruments * train.validation_patches / train.batch_size)
        epoch = train.steps_per_epoch * unit.step + batches * unit.validation
        work = f"{epochs} epochs x {train.steps_per_epoch} steps x {train.batch_size} patches"
        weights = runs * 4 * unit.parameters
        parts.append(_part(name, runs, work, runs * epochs * epoch, weights, unit.memory))
    systems = (len(VARIANTS) + 1) * seeds
    # As long as the patches of all instruments take in validation.
    hop = settings.signal.hop * settings.model.patch_frames * (1 - settings.separate.overlap)
    separating = len(INSTRUMENTS) * unit.validation * rate / (train.batch_size * hop)
    # Two oracles are scored besides; one model is separated twice more, and each ablation of it
    # scored by fewer protocols, counted here as all.
    scored = systems + 2 + len(ABLATIONS) * seeds
    kept = (len(STEMS) + scored * len(INSTRUMENTS)) * extent.seconds["test"] / max(tested, 1)
    parts += [
        _part(
            "04_evaluate",
            systems + 1,
            f"{tested} tracks x {systems + 2} systems",
            (systems + 2 * seeds) * separating * music
            + scored * unit.score * music / max(1, min(unit.workers, tested)),
            kept * rate * 2,
            unit.memory + workers * (PROCESS_BYTES + SCORE_BYTES * extent.longest),
        ),
        _part("05_plot", 1, "tables and figures", 2 * NOTEBOOK_SECONDS, 0, 2 * PROCESS_BYTES),
    ]
    return Plan(tuple(parts), _notes(settings, extent, parts, calibration))


def _part(name: str, runs: int, work: str, seconds: float, disk: float, memory: float) -> Part:
    seconds, disk = seconds + runs * NOTEBOOK_SECONDS, disk + runs * NOTEBOOK_BYTES
    return Part(name, runs, work, seconds, disk, memory)


def _notes(
    settings: Profile, extent: Extent, parts: list[Part], unit: Calibration
) -> tuple[str, ...]:
    tracks = ", ".join(
        f"{subset} {extent.tracks[subset]} tracks, {duration(extent.seconds[subset])}"
        for subset in SUBSETS
    )
    machine = "GPU" if unit.gpu else f"{unit.workers} core{'s' * (unit.workers > 1)}, no GPU"
    notes = [
        f"Music: {tracks} ({extent.source}).",
        "Times are upper bounds: early stopping ends a training after "
        f"{settings.train.patience} epochs without improvement.",
        f"Measured in seconds on this machine ({machine}), so expect the order of magnitude. "
        "Notebooks are counted one after another; side by side they share the machine. "
        f"{NOTEBOOK_SECONDS:.0f} s are assumed for each besides its work.",
    ]
    need = sum(part.disk for part in parts)
    for folder in {settings.paths.data, settings.paths.results}:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        if free < need:
            notes.append(
                f"Not enough space: {size(need)} are needed, {size(free)} are free where {folder} "
                "would be; set CUNET_DATA and CUNET_RESULTS to a larger disk."
            )
    return tuple(notes)


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
        About this long for the training step, which matters most; the rest takes seconds.
    report
        Gets a line per part.
    """
    rng = np.random.default_rng(0)
    report("calibrating: scoring")
    score = _scoring(settings, rng)
    report("calibrating: training steps; the first one builds the graph")
    step, validation, network = _training(settings, rng, seconds)
    return Calibration(
        step=step,
        validation=validation,
        score=score,
        parameters=network.count_params(),
        memory=peak_memory(),
        workers=cores(),
        gpu=bool(gpus()),
    )


def _timed(call: Callable[[], object], seconds: float) -> float:
    """Seconds per call, over calls for ``seconds`` and at least one."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def _scoring(settings: Profile, rng: np.random.Generator) -> float:
    """Seconds per second of a track of at most a minute."""
    ensure_ffmpeg()
    import museval  # noqa: F401 - its import takes seconds that are not scoring

    from cunet_lib.evaluation.metrics import track_rows

    rate = settings.signal.sample_rate
    length = min(extent_of(settings).longest, 60.0)
    references = rng.normal(size=(len(INSTRUMENTS), round(length * rate)))
    estimates = references + 0.1 * rng.normal(size=references.shape)
    with threadpool_limits(1):
        start = time.process_time()
        track_rows(references.sum(axis=0), references, estimates, settings)
        return (time.process_time() - start) / length


def _training(settings: Profile, rng: np.random.Generator, seconds: float):
    """Seconds per training step and per validation batch, and the largest C-U-Net."""
    from cunet_lib.models.conditions import all_one_hot
    from cunet_lib.train import training

    count = settings.train.batch_size
    audio = rng.normal(size=(count, settings.patch_samples)).astype(np.float32)
    inputs = (audio, np.resize(all_one_hot(), (count, len(INSTRUMENTS))))
    network = training.new_network(settings, "dense_complex", seed=0)
    trainer = training.compiled(network, settings)
    trainer.train_on_batch(inputs, 0.5 * audio)
    step = _timed(lambda: trainer.train_on_batch(inputs, 0.5 * audio), seconds)
    trainer.test_on_batch(inputs, 0.5 * audio)
    validation = _timed(lambda: trainer.test_on_batch(inputs, 0.5 * audio), min(seconds, 1.0))
    return step, validation, network
