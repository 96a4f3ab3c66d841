"""What :mod:`benchmarks.bench` measures; each workload runs in a process of its own.

``python -m benchmarks.workloads NAME ARGUMENTS FILE`` runs one and writes what it found as JSON. A
process of its own keeps one workload's memory, threads and caches out of another's figures. Its
environment names a scratch folder as ``CUNET_DATA`` and ``CUNET_RESULTS``. Audio is noise: no
workload here depends on what is heard.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.scratch import RATE, new_trainer, noise_corpus, noise_store
from benchmarks.steps import batches, memory_of_batches, shares, training
from benchmarks.timing import interleaved, watched_memory
from cunet_lib.core.files import RUN_KEYS, write_json
from cunet_lib.core.hardware import cores, peak_memory
from cunet_lib.core.processes import map_tracks
from cunet_lib.core.settings import Profile, load_profile
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.preprocess.store import Store, build_store

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

    from cunet_lib.signal.audio import ensure_ffmpeg

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


def panel(moves: int) -> dict:
    """Milliseconds of the control panel's answers, with an untrained network of the demo's size."""
    from benchmarks.latency import ANSWER, measure
    from cunet_lib.train.training import new_network

    settings = load_profile("demo")
    table = measure(new_network(settings, "dense_complex", seed=0), settings, moves=moves)
    answer = table.set_index("part").loc[ANSWER]
    return {"median_ms": float(answer["median_ms"]), "max_ms": float(answer["max_ms"])}


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
    trainer, *_ = new_trainer(settings)
    store = build_store(settings)
    tests = [np.array(store.audio(entry)[0]) for entry in store.split("test")[:1]]
    # What is loaded and traced once does not grow.
    separator(tests[0], all_one_hot())
    trainer.train_on_batch(
        *next(iter(TrainingBatches(store, settings, model="cnn_complex", seed=0).from_step()))
    )

    def train():
        stream = iter(TrainingBatches(store, settings, model="cnn_complex", seed=0).from_step())
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


# ---------------------------------------------------------------------------------------- the door


WORKLOADS: dict[str, Callable[..., dict]] = {
    each.__name__: each
    for each in (
        batches,
        shares,
        memory_of_batches,
        training,
        preprocessing,
        evaluation,
        separation,
        panel,
        growth,
    )
}


def main(name: str, arguments: str, path: str) -> None:
    """Run one workload and write its findings."""
    found = WORKLOADS[name](**json.loads(arguments))
    write_json(Path(path), found)


if __name__ == "__main__":
    main(*sys.argv[1:])
