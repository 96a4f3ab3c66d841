"""Noise to measure with: a corpus, a store, and an untrained network that is ready to train."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cunet_lib.core.files import write_json
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.preprocess.store import INDEX, Entry, Store
from cunet_lib.preprocess.tracks import STEMS

RATE = 44100


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


def new_trainer(settings: Profile):
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
