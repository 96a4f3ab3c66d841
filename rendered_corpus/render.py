"""The rendered corpus: composed songs on disk, laid out as MUSDB18-HQ.

:func:`render_corpus` writes ``<root>/{train,test}/<Artist - Title>/{mixture,drums,bass,other,
vocals}.wav`` (44.1 kHz, stereo, 16 bits) so that ``musdb.DB(root=..., is_wav=True)`` reads it. The
mixture is the integer sum of the stems. Each song is a pure function of (seed, subset, index,
seconds): how many songs there are, and how many processes render them, changes no byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cunet_lib.core.files import code_hash, locked, write_atomically, write_json
from cunet_lib.core.processes import pool
from rendered_corpus.composer import compose, song_name
from rendered_corpus.mix import render
from rendered_corpus.signals import RATE
from rendered_corpus.song import STEMS, SUBSETS, Song

__all__ = ["RATE", "STEMS", "compose", "quantise", "read_index", "render", "render_corpus"]

INDEX = "corpus.json"
SONG = "song.json"


def render_corpus(
    root: str | Path,
    *,
    train_tracks: int,
    test_tracks: int,
    seconds: float,
    seed: int = 0,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """Render the corpus, or what is missing of it.

    Songs that an earlier call finished with the same settings and code, and whose files are still
    what it wrote, are kept; others are rendered again; songs of other settings are removed. A song
    appears under its name only once it is complete, and ``corpus.json`` is written last.

    Parameters
    ----------
    root
        Folder of the corpus; made if need be.
    train_tracks, test_tracks
        Songs per subset.
    seconds
        Nominal length of a song; each has its own, 0.8 to 1.2 times that.
    seed
        Everything random follows from it.
    workers
        Processes; by default one per available core. 1 renders in this process.

    Returns
    -------
    list of dict
        One record per song, train first: ``name``, ``subset``, ``index``, ``seconds``, ``style``,
        ``meter``, ``tempo`` (beats a minute), ``swing``, ``key``, ``progressions``, ``programs``
        (General MIDI), ``patches``, ``kit``, ``voices``, ``peak`` (dBFS of the mixture), ``active``
        (share of the song in which a stem sounds), ``digest`` (SHA-256 of the stems' samples).

    Raises
    ------
    ValueError
        If a number is out of range, ``root`` is not a folder, holds tracks that this function has
        not written, or its disk is too small.
    cunet_lib.core.files.Busy
        If another process renders into ``root``.
    cunet_lib.core.files.WriteError
        If the disk is full or may not be written to; finished songs are kept.
    """
    root = Path(root).expanduser().resolve()
    for label, value, least in (("train_tracks", train_tracks, 0), ("test_tracks", test_tracks, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{label} must be a whole number of at least {least}, not {value!r}.")
    if train_tracks + test_tracks == 0:
        raise ValueError("train_tracks and test_tracks are both 0; ask for at least one song.")
    if not 2.0 <= seconds <= 600.0:
        raise ValueError(f"seconds must lie between 2 and 600, not {seconds!r}.")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}.")
    if workers is not None and workers < 1:
        raise ValueError(
            f"workers must be at least 1, not {workers!r}; leave it out for all cores."
        )
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; choose a folder for the corpus.")

    settings = {
        "seed": seed,
        "seconds": float(seconds),
        "rate": RATE,
        "code": code_hash("rendered_corpus"),
    }
    plan = [
        (subset, index, song_name(seed, subset, index))
        for subset, count in zip(SUBSETS, (train_tracks, test_tracks), strict=True)
        for index in range(count)
    ]
    busy = f"Another process renders the corpus {root}; wait for it, or stop it first."
    # A notebook whose runner was killed ends a second or two later.
    with locked(root / ".lock", busy, seconds=10.0):
        return _render(root, settings, plan, workers=workers)


def _render(
    root: Path,
    settings: dict[str, Any],
    plan: list[tuple[str, int, str]],
    *,
    workers: int | None,
) -> list[dict[str, Any]]:
    _check_space(root, plan, settings["seconds"])
    _clear(root, {(subset, name) for subset, _, name in plan})

    done = _work(root, settings, [(s, k) for s, k, _ in plan], workers)
    records = {(record["subset"], record["index"]): record for record in done}
    ordered = [records[subset, index] for subset, index, _ in plan]
    whole = hashlib.sha256("".join(r["digest"] for r in ordered).encode()).hexdigest()
    counts = {f"{subset}_tracks": sum(s == subset for s, *_ in plan) for subset in SUBSETS}
    index = {
        "settings": {**settings, **counts},
        "hash": whole,
        "tracks": ordered,
    }
    write_json(root / INDEX, index)
    return ordered


def read_index(root: str | Path) -> dict[str, Any]:
    """Read ``corpus.json``: ``settings``, ``hash`` and ``tracks``.

    Raises
    ------
    ValueError
        If it does not exist or is damaged.
    """
    path = Path(root) / INDEX
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read; render the corpus first.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged; delete it and render the corpus again.") from error


# ------------------------------------------------------------------------------------ one song


def quantise(stems: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """16-bit stems and ``mixture``, their integer sum: ``(samples, 2)`` each.

    Raises
    ------
    ValueError
        If the mixture does not fit into 16 bits.
    """
    pcm = {stem: np.round(32767.0 * stems[stem]).astype(np.int32) for stem in STEMS}
    mixture = sum(pcm.values())
    if np.abs(mixture).max(initial=0) > 32767 or any(np.abs(x).max() > 32767 for x in pcm.values()):
        raise ValueError("The mixture clips; a song must be scaled before it is quantised.")
    pcm["mixture"] = mixture
    # In the order of files, in which they are written, hashed and looked at.
    return {stem: audio.astype(np.int16, order="C") for stem, audio in pcm.items()}


def _render_song(root: Path, settings: dict[str, Any], job: tuple[str, int]) -> dict[str, Any]:
    """Render one song unless it is there already; runs in a worker process."""
    subset, index = job
    name = song_name(settings["seed"], subset, index)
    folder = root / subset / name
    kept = _finished(folder, settings, subset, index)
    if kept is not None:
        return kept
    song = compose(settings["seed"], subset=subset, index=index, seconds=settings["seconds"])
    pcm = quantise(render(song))
    temporary = root / ".rendering" / f"{subset}-{index}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for stem, audio in pcm.items():
        # In memory first: where the disk is full, libsndfile does not say so.
        buffer = io.BytesIO()
        soundfile.write(buffer, audio, RATE, format="WAV", subtype="PCM_16")
        write_atomically(temporary / f"{stem}.wav", buffer.getvalue())
    record = _record(song, pcm)
    write_json(temporary / SONG, {"settings": settings, "record": record})
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(folder)
    return record


def _record(song: Song, pcm: dict[str, np.ndarray]) -> dict[str, Any]:
    block = RATE // 10
    active = {}
    for stem in STEMS:
        audio = pcm[stem][: len(pcm[stem]) // block * block]
        loud = np.abs(audio).reshape(-1, block * 2).max(axis=1)
        active[stem] = round(float((loud > 33).mean()), 3)  # -60 dBFS
    peak = float(np.abs(pcm["mixture"].astype(np.int32)).max()) / 32768
    return {
        "name": song.name,
        "subset": song.subset,
        "index": song.index,
        "seconds": round(len(pcm["mixture"]) / RATE, 3),
        "style": song.style,
        "meter": song.meter,
        "tempo": song.tempo,
        "swing": song.swing,
        "key": song.key,
        "progressions": list(song.progressions),
        "programs": list(song.programs),
        "patches": list(song.patches),
        "kit": song.kit,
        "voices": list(song.voices),
        "peak": round(20 * float(np.log10(max(peak, 1e-6))), 2),
        "active": active,
        "digest": _digest(pcm),
    }


def _digest(pcm: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for stem in (*STEMS, "mixture"):
        digest.update(np.ascontiguousarray(pcm[stem], dtype="<i2").tobytes())
    return digest.hexdigest()


def _finished(folder: Path, settings: dict[str, Any], subset: str, index: int):
    """The record of a song that an earlier call finished, or None."""
    try:
        note = json.loads((folder / SONG).read_text(encoding="utf-8"))
        record = note["record"]
        if note["settings"] != settings or (record["subset"], record["index"]) != (subset, index):
            return None
        pcm = {
            s: soundfile.read(folder / f"{s}.wav", dtype="int16")[0] for s in (*STEMS, "mixture")
        }
    except (OSError, ValueError, KeyError, TypeError, soundfile.LibsndfileError):
        return None
    return record if _digest(pcm) == record.get("digest") else None


def _work(
    root: Path, settings: dict[str, Any], jobs: list[tuple[str, int]], workers: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the songs' records as they are finished."""
    task = partial(_render_song, root, settings)
    try:
        with pool(len(jobs), workers=workers) as executor:
            futures = [executor.submit(task, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        shutil.rmtree(root / ".rendering", ignore_errors=True)


# -------------------------------------------------------------------------------------- the disk


def _clear(root: Path, wanted: set[tuple[str, str]]) -> None:
    """Remove songs of other settings; refuse to share the folder with anything else."""
    listed = set()
    if (root / INDEX).is_file():
        listed = {(track["subset"], track["name"]) for track in read_index(root)["tracks"]}
    (root / INDEX).unlink(missing_ok=True)
    for subset in SUBSETS:
        for folder in sorted(p for p in (root / subset).glob("*") if p.is_dir()):
            if (subset, folder.name) in wanted:
                continue
            # Songs of an interrupted run are not in the index but carry their own note.
            if (subset, folder.name) in listed or (folder / SONG).is_file():
                shutil.rmtree(folder)
                continue
            raise ValueError(
                f"{folder} is not a rendered song; move it away or choose another folder."
            )


def _check_space(root: Path, plan: list, seconds: float) -> None:
    missing = [1 for subset, _, name in plan if not (root / subset / name / SONG).is_file()]
    need = len(missing) * 1.2 * seconds * RATE * 4 * (len(STEMS) + 1)
    free = shutil.disk_usage(root).free
    if need > free:
        raise ValueError(
            f"The corpus needs {need / 1e9:.1f} GB in {root}, where {free / 1e9:.1f} GB are free; "
            "free some space or set CUNET_DATA to a larger disk."
        )
