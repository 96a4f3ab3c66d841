"""The prepared corpus: every stem at the study rate, memory-mapped, with an index.

A store is a folder with one ``.npy`` file per track, ``(5, samples)`` float32 in the order of
:data:`cunet_lib.preprocess.tracks.STEMS`, and ``index.json``. Files are written under another name
and renamed, the index last, so that a store that was interrupted is not taken for a finished one;
building again does only what is missing or has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from cunet_lib.core.files import (
    code_hash,
    damaged,
    locked,
    read_json,
    remove_unfinished,
    replacing,
    sha256,
    write_json,
)
from cunet_lib.core.processes import map_tracks
from cunet_lib.core.settings import ConfigError, Profile, Signal
from cunet_lib.preprocess.tracks import STEMS, Source, decode, list_sources
from cunet_lib.signal.spectral import loudest, magnitude_scale

INDEX = "index.json"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
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
        Hash of the decoded files' sizes and modification times, of settings and of code.
    """

    # Names and files become parts of paths, which must stay inside their folders.
    name: Annotated[str, Field(pattern=r"^[^/\x00]+$")]
    split: Literal["train", "valid", "test"]
    file: Annotated[str, Field(pattern=r"^[0-9a-f]+\.npy$")]
    samples: Annotated[int, Field(gt=0)]
    seconds: Positive
    scale: Positive
    sha256: str
    source: str


class Store:
    """A prepared corpus, opened for reading in the folder where :func:`build_store` wrote it.

    Raises
    ------
    ConfigError
        If there is no finished store, or its index is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        path = self.folder / INDEX
        index = read_json(path, "signal", "settings_hash", "tracks")
        try:
            self.signal = Signal(**index["signal"])
            self.settings_hash = str(index["settings_hash"])
            self.entries = [Entry(**content) for content in index["tracks"]]
        except (TypeError, ValueError) as error:
            raise damaged(path, "an entry is not as it was written") from error
        if not self.entries:
            raise damaged(path, "it lists no tracks")

    def split(self, name: str) -> list[Entry]:
        """Tracks of ``"train"``, ``"valid"`` or ``"test"``."""
        return [entry for entry in self.entries if entry.split == name]

    def audio(self, entry: Entry) -> np.ndarray:
        """Memory-mapped stems of a track, ``(5, samples)`` float32, read-only.

        Raises
        ------
        ConfigError
            If the file is missing, or its size or type is not what the index says.
        """
        try:
            audio = np.load(self.folder / entry.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._unusable(entry) from error
        if getattr(audio, "shape", None) != (len(STEMS), entry.samples) or audio.dtype != "float32":
            raise self._unusable(entry)
        return audio

    def verify(self, *splits: str) -> None:
        """Read every file of these splits and compare it with its hash in the index.

        About a second per gigabyte: for the start of work that takes long, not for every opening.

        Raises
        ------
        ConfigError
            If a file is missing or is not what was written.
        """
        for entry in self.entries:
            if entry.split in splits and not self._is_whole(entry):
                raise self._unusable(entry)

    def _is_whole(self, entry: Entry) -> bool:
        path = self.folder / entry.file
        return path.is_file() and sha256(path) == entry.sha256

    def _unusable(self, entry: Entry) -> ConfigError:
        path = self.folder / entry.file
        return ConfigError(f"{path} is missing or damaged; run the preprocess notebook again.")

    def excerpt(self, entry: Entry, stem: str, seconds: float) -> np.ndarray:
        """The stretch of a track in which one stem is loudest.

        Returns
        -------
        numpy.ndarray
            ``(5, samples)`` float32; the whole track if it is shorter.
        """
        audio = self.audio(entry)
        length = round(seconds * self.signal.sample_rate)
        start = loudest(audio[STEMS.index(stem)], length)
        return np.array(audio[:, start : start + length])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the settings and every track's content, 16 hex digits."""
        lines = [self.settings_hash, *(f"{e.name} {e.split} {e.sha256}" for e in self.entries)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


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


def build_store(settings: Profile, *, workers: int | None = None) -> Store:
    """Decode, downmix, resample and index every track, in as many processes as ``workers`` says.

    Raises
    ------
    ConfigError
        As :func:`cunet_lib.preprocess.tracks.list_sources` and
        :func:`cunet_lib.preprocess.tracks.decode`; or if another process prepares the same store.
    cunet_lib.core.files.WriteError
        If the disk is full or may not be written to; finished tracks are kept.
    """
    folder = settings.paths.store
    busy = f"Another process prepares the store {folder}; wait for it, or stop it first."
    # A notebook whose runner was killed ends a second or two later.
    with locked(folder / ".lock", busy, seconds=10.0):
        remove_unfinished(folder)
        code = code_hash("cunet_lib/signal", "cunet_lib/preprocess")
        means = f"{settings.signal.model_dump_json()} {code}"
        sources = {_fingerprint(source, means): source for source in list_sources(settings)}
        entries = {}
        with contextlib.suppress(ConfigError):  # no finished store yet
            known = Store(folder)
            entries = {each.source: each for each in known.entries if known._is_whole(each)}
        todo = [(each, key, settings) for key, each in sources.items() if key not in entries]
        options = {"total": len(todo), "label": "tracks prepared", "workers": workers}
        entries |= {entry.source: entry for entry in map_tracks(_prepare, todo, **options)}
        # A track that only moved between train and validation keeps its audio.
        found = [replace(entries[each], split=source.split) for each, source in sources.items()]
        index = {
            "signal": settings.signal.model_dump(),
            "settings_hash": settings.section_hash("data", "signal"),
            "tracks": [asdict(entry) for entry in found],
        }
        write_json(folder / INDEX, index)
        for path in folder.glob("*.npy"):
            if path.name not in {entry.file for entry in found}:
                path.unlink()
        return Store(folder)


def _fingerprint(source: Source, means: str) -> str:
    """Of a track's files, and of what they are decoded by."""
    facts = [f"{means} {source.name}"]
    for stem, path in [(stem, path) for stem, each in source.files().items() for path in each]:
        try:
            status = path.stat()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}; copy or unpack it again."
            ) from error
        facts.append(f"{stem} {path.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _prepare(source: Source, fingerprint: str, settings: Profile) -> Entry:
    audio = decode(source, settings.signal.sample_rate)
    name = f"{fingerprint[:20]}.npy"
    with replacing(settings.paths.store / name) as partial:
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
