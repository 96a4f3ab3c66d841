"""The prepared corpus: every stem at the study rate, memory-mapped, with an index.

A store is a folder with one ``.npy`` file per track, ``(5, samples)`` float32 in the order of
:data:`cunet_lib.preprocess.tracks.STEMS`, and ``index.json``. Files are written under another name and renamed,
the index last, so that a store that was interrupted is never believed; building again does only
what is missing or has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cunet_lib.core.files import code_hash, locked, remove_unfinished, replacing, sha256, write_json
from cunet_lib.core.processes import map_tracks
from cunet_lib.core.settings import ConfigError, Profile, Signal
from cunet_lib.preprocess.tracks import STEMS, Source, decode, list_sources
from cunet_lib.signal.spectral import magnitude_scale

INDEX = "index.json"


@dataclass(frozen=True)
class Entry:
    """One track of the store, as the index has it.

    Attributes
    ----------
    name, split, file
        Track name; ``train``, ``valid`` or ``test``; file name inside the store.
    samples, seconds
        Length at the study rate.
    scale
        Largest magnitude of the mixture's spectrogram (see
        :func:`cunet_lib.signal.spectral.magnitude_scale`).
    sha256
        Of the stored file.
    source
        Size and modification time of the decoded files and the settings that decoded them.
    """

    name: str
    split: str
    file: str
    samples: int
    seconds: float
    scale: float
    sha256: str
    source: str


class Store:
    """A prepared corpus, opened for reading.

    Parameters
    ----------
    folder
        Where :func:`build_store` wrote it.

    Raises
    ------
    ConfigError
        If there is no finished store, or a file in it has not the size that the index says.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            self.signal = Signal(**index["signal"])
            self.settings_hash = str(index["settings_hash"])
            if not isinstance(index["tracks"], list) or not index["tracks"]:
                raise TypeError("tracks are a list")
            self.entries = [_entry(content) for content in index["tracks"]]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"No prepared store in {self.folder}; run the preprocess notebook first."
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}; mend that, or delete it and run the "
                "preprocess notebook again."
            ) from error
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is damaged; delete it and run the preprocess notebook again."
            ) from error

    def split(self, name: str) -> list[Entry]:
        """Tracks of ``"train"``, ``"valid"`` or ``"test"``."""
        return [entry for entry in self.entries if entry.split == name]

    def audio(self, entry: Entry) -> np.ndarray:
        """Memory-mapped stems of a track, ``(5, samples)`` float32, read-only."""
        path = self.folder / entry.file
        try:
            audio = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path} is missing or damaged; run the preprocess notebook again."
            ) from error
        shape = getattr(audio, "shape", None)
        if shape != (len(STEMS), entry.samples) or audio.dtype != np.float32:
            raise ConfigError(
                f"{path} is damaged; delete it and run the preprocess notebook again."
            )
        return audio

    def verify(self, *splits: str) -> None:
        """Read every file of these splits and compare it with its hash in the index.

        About a second per gigabyte: for the start of work that takes long, not for every opening.

        Raises
        ------
        ConfigError
            If a file is missing or is not what was written.
        """
        for split in splits:
            for entry in self.split(split):
                path = self.folder / entry.file
                if not path.is_file() or sha256(path) != entry.sha256:
                    raise ConfigError(
                        f"{path} is missing or damaged; run the preprocess notebook again."
                    )

    def excerpt(self, entry: Entry, stem: str, seconds: float) -> np.ndarray:
        """The stretch of a track in which one stem is loudest.

        Returns
        -------
        numpy.ndarray
            ``(5, samples)`` float32; the whole track if it is shorter.
        """
        audio = self.audio(entry)
        rate = self.signal.sample_rate
        length = min(round(seconds * rate), entry.samples)
        energy = np.cumsum(np.concatenate([[0.0], audio[STEMS.index(stem)].astype(float) ** 2]))
        start = int(np.argmax(energy[length:] - energy[: -length or None]))
        return np.array(audio[:, start : start + length])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the settings and every track's content, 16 hex digits."""
        lines = [self.settings_hash, *(f"{e.name} {e.split} {e.sha256}" for e in self.entries)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _entry(content: dict) -> Entry:
    """Entry of the index; one that :func:`build_store` cannot have written is refused.

    Names and files become parts of paths, which must stay inside their folders.
    """
    entry = Entry(**content)
    texts = (entry.name, entry.split, entry.file, entry.sha256, entry.source)
    numbers = (entry.samples, entry.seconds, entry.scale)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("names, hashes and files are text")
    if not all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers):
        raise ValueError("lengths and scales are above zero")
    if not isinstance(entry.samples, int) or entry.split not in ("train", "valid", "test"):
        raise ValueError("samples are whole, splits are three")
    if not re.fullmatch(r"[0-9a-f]+\.npy", entry.file):
        raise ValueError("not a file of a store")
    if entry.name in ("", ".", "..") or not {"/", "\0"}.isdisjoint(entry.name):
        raise ValueError("not the name of a track")
    return entry


def open_store(settings: Profile) -> Store:
    """The store that a profile prepared.

    Raises
    ------
    ConfigError
        As :class:`Store`, or if it was prepared with other data or signal settings.
    """
    store = Store(settings.paths.store)
    if store.settings_hash != settings.section_hash("data", "signal"):
        raise ConfigError(
            f"The store {store.folder} was prepared with other data or signal settings; "
            "run the preprocess notebook with these, or give the run a name of its own "
            "(overrides: name=NAME)."
        )
    return store


def build_store(
    settings: Profile,
    *,
    workers: int | None = None,
) -> Store:
    """Decode, downmix, resample and index every track.

    Parameters
    ----------
    settings
        Profile; its data and signal sections decide what is stored.
    workers
        Processes; as many as :func:`cunet_lib.core.processes.cores` if not given.

    Raises
    ------
    ConfigError
        As :func:`cunet_lib.preprocess.tracks.list_sources` and :func:`cunet_lib.preprocess.tracks.decode`.
    cunet_lib.core.files.Busy
        If another process prepares the same store.
    cunet_lib.core.files.WriteError
        If the disk is full or may not be written to; finished tracks are kept.
    """
    folder = settings.paths.store
    busy = f"Another process prepares the store {folder}; wait for it, or stop it first."
    # A notebook whose runner was killed ends a second or two later.
    with locked(folder / ".lock", busy, seconds=10.0):
        return _build(settings, workers=workers)


def _build(
    settings: Profile,
    *,
    workers: int | None,
) -> Store:
    folder = settings.paths.store
    remove_unfinished(folder)
    sources = list_sources(settings)
    known = _known(folder)
    fingerprints = [_fingerprint(source, settings) for source in sources]
    tasks = [
        ((source, fingerprint, settings, folder),)
        for source, fingerprint in zip(sources, fingerprints, strict=True)
        if fingerprint not in known
    ]
    prepared = map_tracks(
        _prepare, tasks, total=len(tasks), label="tracks prepared", workers=workers
    )
    fresh = {entry.source: entry for entry in prepared}
    entries = []
    for source, fingerprint in zip(sources, fingerprints, strict=True):
        entry = fresh.get(fingerprint) or known[fingerprint]
        # A track that only moved between train and validation keeps its audio.
        entries.append(Entry(**{**asdict(entry), "name": source.name, "split": source.split}))
    _write_index(folder, settings, entries)
    kept = {entry.file for entry in entries}
    for path in folder.glob("*.npy"):
        if path.name not in kept:
            path.unlink()
    return Store(folder)


def _known(folder: Path) -> dict[str, Entry]:
    """Entries of an earlier index whose files are still whole, by source fingerprint."""
    try:
        store = Store(folder)
    except ConfigError:
        return {}
    known = {}
    for entry in store.entries:
        path = folder / entry.file
        if path.is_file() and sha256(path) == entry.sha256:
            known[entry.source] = entry
    return known


def _fingerprint(source: Source, settings: Profile) -> str:
    code = code_hash("cunet_lib/signal/spectral.py", "cunet_lib/preprocess")
    facts = [f"{settings.signal.model_dump_json()} {code} {source.name}"]
    for path in source.files:
        status = path.stat()
        facts.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _prepare(task: tuple[Source, str, Profile, Path]) -> Entry:
    source, fingerprint, settings, folder = task
    audio = decode(source, settings.signal.sample_rate)
    name = f"{fingerprint[:20]}.npy"
    with replacing(folder / name) as partial:
        np.save(partial, audio, allow_pickle=False)
        digest = sha256(partial)
    return Entry(
        name=source.name,
        split=source.split,
        file=name,
        samples=audio.shape[1],
        seconds=audio.shape[1] / settings.signal.sample_rate,
        scale=magnitude_scale(audio[0], settings.signal),
        sha256=digest,
        source=fingerprint,
    )


def _write_index(folder: Path, settings: Profile, entries: list[Entry]) -> None:
    index = {
        "signal": settings.signal.model_dump(),
        "settings_hash": settings.section_hash("data", "signal"),
        "stems": list(STEMS),
        "tracks": [asdict(entry) for entry in entries],
    }
    write_json(folder / INDEX, index)
