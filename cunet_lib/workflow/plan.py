"""What a run of the study would cost, before anyone starts it: ``make plan``.

Hours come from a calibration of seconds on this machine, with the profile's own network, batch and
share of the cores; disk and memory from sizes. The order of magnitude is right.
"""

from __future__ import annotations

import math
import shutil
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cunet_lib.core.hardware import cores, gpus, peak_memory, usable_cores
from cunet_lib.core.processes import duration
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS, VARIANTS
from cunet_lib.evaluation.ablation import ABLATIONS
from cunet_lib.preprocess.check import CHANNELS, RATE, read_layout
from cunet_lib.preprocess.tracks import STEMS
from cunet_lib.signal.audio import ensure_ffmpeg

NOTEBOOK_SECONDS, NOTEBOOK_BYTES = 30.0, 5e6
"""Assumed, per notebook: starting its kernel, TensorFlow, graphs; its pictures and its sound."""

PROCESS_BYTES = 0.4e9
"""Assumed, per worker process: Python and the libraries, before any audio."""

RENDER_SECONDS, CHECK_SECONDS, DECODE_SECONDS = 0.15, 0.003, 0.012
"""Assumed, per second of a song, in one process: rendering it; checking its files; reading and
preparing its stems. Seen: 0.05 to 0.18, 0.002, and 0.006 to 0.011."""

SCORE_BYTES = 4e6
"""Assumed, per second of a track that is scored: its signals and their spectra."""


@dataclass(frozen=True)
class Calibration:
    """What this machine needs for one unit of each kind of work.

    ``step`` and ``validation`` are seconds per batch of the profile's size, with the cores of one
    job or the GPU; ``score`` those per second of one track, by every protocol, in one process.
    ``weights`` are bytes of the largest network, ``memory`` peak bytes of training it.
    """

    step: float
    validation: float
    score: float
    weights: float
    memory: float


@dataclass(frozen=True)
class Part:
    """Runs of one notebook: seconds of all together, bytes that they add, peak bytes of one."""

    name: str
    runs: int
    work: str
    seconds: float
    disk: float
    memory: float

    def line(self, jobs: int) -> str:
        """The part as a line of the table, with so many runs side by side."""
        here = duration(self.seconds / min(jobs, self.runs))
        return (
            f"{self.name:14}{self.runs:>5}  {self.work:44}{duration(self.seconds):>14}{here:>14}"
            f"{size(self.disk):>10}{size(self.memory):>10}"
        )


def size(count: float) -> str:
    """Bytes as people say them.

    >>> size(2.4e6), size(31_400_000_000)
    ('2.4 MB', '31.4 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def lengths(settings: Profile) -> tuple[dict[str, list[float]], float]:
    """Seconds of each track, by subset, and the bytes that the corpus adds to the disk.

    Raises
    ------
    ConfigError
        As :func:`cunet_lib.preprocess.check.read_layout`, if files are missing or not in order.
    """
    data = settings.data
    if data.source == "rendered":
        tracks = {"train": data.train_tracks, "test": data.test_tracks}
        seconds = {subset: [data.seconds] * number for subset, number in tracks.items()}
        return seconds, sum(tracks.values()) * data.seconds * RATE * CHANNELS * 2 * len(STEMS)
    seconds = {"train": [], "test": []}
    for track in read_layout(settings).tracks:
        seconds[track.subset].append(track.seconds)
    return seconds, 0.0


def estimate(
    settings: Profile, music: dict[str, list[float]], corpus: float, unit: Calibration
) -> list[Part]:
    """Parts of a run of the study, from what :func:`lengths` and :func:`calibrate` return.

    Seconds are upper bounds: every training runs to its last epoch, with the cores of one job.
    """
    train, rate = settings.train, settings.signal.sample_rate
    tracks = [seconds for each in music.values() for seconds in each]
    total, tested, longest = sum(tracks), sum(music["test"]), max(tracks)
    workers = min(usable_cores(), len(tracks))
    decoding = workers * (PROCESS_BYTES + longest * RATE * CHANNELS * len(STEMS) * 8)
    making = RENDER_SECONDS if corpus else CHECK_SECONDS
    parts = []

    def add(name: str, runs: int, work: str, seconds: float, disk: float, memory: float) -> None:
        seconds, disk = seconds + runs * NOTEBOOK_SECONDS, disk + runs * NOTEBOOK_BYTES
        parts.append(Part(name, runs, work, seconds, disk, memory))

    work = f"{len(tracks)} tracks, {duration(total)} of music"
    add("00_corpus", 1, work, making * total / workers, corpus, decoding)
    store = len(STEMS) * rate * 4 * total
    add("01_preprocess", 1, work, DECODE_SECONDS * total / workers, store, decoding)
    unets = sum(model in UNETS for model, _ in settings.runs)
    for name, runs, epochs, instruments in (
        ("02_train_unet", unets, train.unet_epochs, 1),
        ("03_train_cunet", len(settings.runs) - unets, train.cunet_epochs, len(INSTRUMENTS)),
    ):
        batches = math.ceil(instruments * train.validation_patches / train.batch_size)
        epoch = train.steps_per_epoch * unit.step + batches * unit.validation
        work = f"{epochs} epochs x {train.steps_per_epoch} steps x {train.batch_size} patches"
        add(name, runs, work, runs * epochs * epoch, runs * unit.weights, unit.memory)
    # As long as the patches of all instruments take in validation.
    hop = settings.signal.hop * settings.model.patch_frames * (1 - settings.separate.overlap)
    separating = len(INSTRUMENTS) * unit.validation * rate / (train.batch_size * hop)
    separating *= 1 + len(settings.separate.pitches or ())
    # Two oracles are scored besides; one model is separated twice more, and each ablation of it
    # scored by fewer protocols, counted here as all.
    systems, shipped = len(settings.trained), settings.seeds[settings.shipped]
    scored, beside = systems + 2 + len(ABLATIONS) * shipped, min(cores(), len(music["test"]))
    add(
        "04_evaluate",
        systems + 1,
        f"{len(music['test'])} tracks x {systems + 2} systems",
        tested * ((systems + 2 * shipped) * separating + scored * unit.score / beside),
        # Estimates of one track are kept to be heard.
        (len(STEMS) + scored * len(INSTRUMENTS)) * tested / len(music["test"]) * rate * 2,
        unit.memory + beside * (PROCESS_BYTES + SCORE_BYTES * longest),
    )
    add("05_plot", 1, "tables and figures", NOTEBOOK_SECONDS, 0, 2 * PROCESS_BYTES)
    return parts


def text(settings: Profile, parts: list[Part], music: dict, jobs: int) -> str:
    """The plan as a table for a terminal, with ``jobs`` runs side by side, and notes below."""
    head = f"{'stage':14}{'runs':>5}  {'work':44}{'one by one':>14}{f'JOBS={jobs}':>14}"
    one, here = (
        duration(sum(part.seconds / min(jobs_, part.runs) for part in parts)) for jobs_ in (1, jobs)
    )
    disk, memory = sum(part.disk for part in parts), max(part.memory for part in parts)
    tracks = ", ".join(
        f"{subset} {len(each)} tracks, {duration(sum(each))}" for subset, each in music.items()
    )
    machine = f"{usable_cores()} cores, {cores()} for each job" + (", a GPU" if gpus() else "")
    notes = [
        f"Music: {tracks}.",
        f"Times are upper bounds, from a few seconds' measurements on this machine ({machine}): "
        "expect the order of magnitude. A training ends after "
        f"{settings.train.patience} epochs without improvement, if that is sooner.",
    ]
    for folder in {settings.paths.data, settings.paths.results}:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if (free := shutil.disk_usage(there).free) < disk:
            notes.append(
                f"Not enough space: {size(disk)} are needed, {size(free)} are free where {folder} "
                "would be; set CUNET_DATA and CUNET_RESULTS to a larger disk."
            )
    return "\n".join(
        [
            f"{head}{'disk':>10}{'memory':>10}",
            *(part.line(jobs) for part in parts),
            f"{'total':65}{one:>14}{here:>14}{size(disk):>10}{size(memory):>10}",
            "",
            *(textwrap.fill(note, 96, subsequent_indent="  ") for note in notes),
        ]
    )


# ------------------------------------------------------------------------------------ calibration


def calibrate(
    settings: Profile,
    longest: float,
    *,
    seconds: float = 5.0,
    report: Callable[[str], None] = print,
) -> Calibration:
    """Measure this machine with the profile's own network, batch and signal settings.

    ``longest`` is the longest track in seconds; about ``seconds`` go to the training step, which
    matters most. ``report`` gets a line per part: building a large network's graph takes a minute.
    """
    rng = np.random.default_rng(0)
    report("plan | measures scoring ...")
    score = _scoring(settings, rng, min(longest, 20.0))
    report("plan | builds the largest network ...")
    from cunet_lib.models.conditions import all_one_hot
    from cunet_lib.train import training

    count = settings.train.batch_size
    audio = rng.normal(size=(count, settings.patch_samples)).astype(np.float32)
    inputs = (audio, np.resize(all_one_hot(), (count, len(INSTRUMENTS))))
    variants = [name for name in settings.seeds if name in VARIANTS]
    # Control networks differ by less than steps beyond the paper.
    largest = max(variants, key=lambda name: (len(VARIANTS[name].beyond), name == "dense_complex"))
    network = training.new_network(settings, largest, seed=0)
    trainer = training.compiled(network, settings)
    trainer.train_on_batch(inputs, 0.5 * audio)
    report("plan | measures training ...")
    step = _timed(lambda: trainer.train_on_batch(inputs, 0.5 * audio), seconds)
    trainer.test_on_batch(inputs, 0.5 * audio)
    validation = _timed(lambda: trainer.test_on_batch(inputs, 0.5 * audio), min(seconds, 1.0))
    return Calibration(step, validation, score, 4.0 * network.count_params(), peak_memory())


def _timed(call: Callable[[], object], seconds: float) -> float:
    """Seconds per call, over calls for ``seconds`` and at least one."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def _scoring(settings: Profile, rng: np.random.Generator, seconds: float) -> float:
    """Seconds of one process per second of a track so long."""
    ensure_ffmpeg()
    import museval  # noqa: F401 - its import takes seconds that are not scoring
    from threadpoolctl import threadpool_limits

    from cunet_lib.evaluation.metrics import track_rows

    references = rng.normal(size=(len(INSTRUMENTS), round(seconds * settings.signal.sample_rate)))
    estimates = references + 0.1 * rng.normal(size=references.shape)
    with threadpool_limits(1):
        start = time.process_time()
        track_rows(references.sum(axis=0), references, estimates, settings)
        return (time.process_time() - start) / seconds
