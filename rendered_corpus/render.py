"""The rendered corpus on disk: composed songs, laid out as MUSDB18-HQ.

:func:`render_corpus` writes ``<root>/{train,test}/<Artist - Title>/{mixture,drums,bass,other,
vocals}.wav`` (44.1 kHz, stereo, 16 bits) so that ``musdb.DB(root=..., is_wav=True)`` reads it. The
mixture is the integer sum of the stems. Each song is a pure function of (seed, subset, index,
seconds): how many songs there are, and how many processes render them, changes no byte.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import filelock
import joblib
import numpy as np
import soundfile
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from rendered_corpus.composer import compose, song_name
from rendered_corpus.mix import render
from rendered_corpus.signals import RATE
from rendered_corpus.song import STEMS, SUBSETS, Song
from rendered_corpus.tables import TABLES

INDEX = "corpus.json"
SONG = "song.json"
PARTS = (*STEMS, "mixture")
WAIT = 10.0  # seconds; what renders in a notebook ends a little after the notebook was killed


class CorpusError(ValueError):
    """The corpus cannot be rendered; the message is one sentence with the remedy."""


def render_corpus(
    root: str | Path,
    *,
    train_tracks: int,
    test_tracks: int,
    seconds: float,
    seed: int = 0,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """Render the corpus, or what is missing of it; shows progress.

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
    CorpusError
        If a number is out of range, another process renders into ``root``, or ``root`` holds
        other tracks, has too little space or cannot be written to.
    """
    root = Path(root).expanduser().resolve()
    counts = {"train_tracks": train_tracks, "test_tracks": test_tracks}
    for name, value in {**counts, "seed": seed}.items():
        if not isinstance(value, int) or value < 0:
            raise CorpusError(f"{name} must be a whole number of at least 0, not {value!r}.")
    if train_tracks + test_tracks == 0:
        raise CorpusError("train_tracks and test_tracks are both 0; ask for at least one song.")
    if not 2.0 <= seconds <= 600.0:
        raise CorpusError(f"seconds must lie between 2 and 600, not {seconds!r}.")
    if workers is not None and workers < 1:
        raise CorpusError(f"workers must be at least 1, not {workers!r}; leave it out for all.")
    settings = {"seed": seed, "seconds": float(seconds), "rate": RATE, "code": code_hash()}
    jobs = [("train", k) for k in range(train_tracks)] + [("test", k) for k in range(test_tracks)]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / ".lock", timeout=WAIT):
            _clear(root, settings, jobs)
            records = {
                (record["subset"], record["index"]): record
                for record in _work(root, settings, jobs, workers or joblib.cpu_count())
            }
            tracks = [records[job] for job in jobs]
            whole = hashlib.sha256("".join(track["digest"] for track in tracks).encode())
            index = {"settings": {**settings, **counts}, "hash": whole.hexdigest()}
            _write(root / f".{INDEX}", _json({**index, "tracks": tracks}))
            (root / f".{INDEX}").replace(root / INDEX)
            return tracks
    except filelock.Timeout as error:
        raise CorpusError(
            f"Another process renders the corpus {root}; wait for it, or stop it first."
        ) from error
    except OSError as error:
        raise CorpusError(
            f"The corpus cannot be written to {root} ({error.strerror or error}); finished songs "
            "are kept: make room or mend the permissions, and render again."
        ) from error


def code_hash() -> str:
    """Hash of this package without comments and docstrings, and of its tables."""
    digest = hashlib.sha256(repr(TABLES).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                node.body = [part for part in body if not _is_text(part)]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def quantise(stems: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """16-bit stems and ``mixture``, their integer sum: ``(samples, 2)`` each.

    Raises
    ------
    ValueError
        If the mixture or a stem does not fit into 16 bits.
    """
    pcm = {stem: np.round(32767.0 * stems[stem]).astype(np.int32) for stem in STEMS}
    pcm["mixture"] = sum(pcm.values())
    if any(np.abs(audio).max(initial=0) > 32767 for audio in pcm.values()):
        raise ValueError("The mixture clips; a song must be scaled before it is quantised.")
    return {part: audio.astype(np.int16) for part, audio in pcm.items()}


def _render_song(root: Path, settings: dict[str, Any], job: tuple[str, int]) -> dict[str, Any]:
    """Render one song unless it is there already; runs in a worker process."""
    subset, index = job
    folder = root / subset / song_name(settings["seed"], subset, index)
    kept = _finished(folder, settings, job)
    if kept is not None:
        return kept
    song = compose(settings["seed"], subset=subset, index=index, seconds=settings["seconds"])
    pcm = quantise(render(song))
    record = _record(song, pcm)
    temporary = root / ".rendering" / f"{subset}-{index}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for part, audio in pcm.items():
        # In memory first: where the disk is full, libsndfile does not say so.
        buffer = io.BytesIO()
        soundfile.write(buffer, audio, RATE, format="WAV", subtype="PCM_16")
        _write(temporary / f"{part}.wav", buffer.getvalue())
    _write(temporary / SONG, _json({"settings": settings, "record": record}))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(folder)
    return record


def _write(path: Path, content: bytes) -> None:
    """Write a file that is on the disk before its folder is renamed."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _record(song: Song, pcm: dict[str, np.ndarray]) -> dict[str, Any]:
    block = RATE // 10
    active = {}
    for stem in STEMS:
        audio = pcm[stem][: len(pcm[stem]) // block * block]
        loud = np.abs(audio).reshape(-1, block * 2).max(axis=1)
        active[stem] = round(float((loud > 33).mean()), 3)  # -60 dBFS
    peak = float(np.abs(pcm["mixture"].astype(np.int32)).max()) / 32768
    facts = ("name", "subset", "index", "style", "meter", "tempo", "swing", "key", "kit")
    lists = ("progressions", "programs", "patches", "voices")
    return {
        **{name: getattr(song, name) for name in facts},
        **{name: list(getattr(song, name)) for name in lists},
        "seconds": round(len(pcm["mixture"]) / RATE, 3),
        "peak": round(20 * float(np.log10(max(peak, 1e-6))), 2),
        "active": active,
        "digest": _digest(pcm),
    }


def _digest(pcm: dict[str, np.ndarray]) -> str:
    samples = b"".join(pcm[part].astype("<i2").tobytes() for part in PARTS)
    return hashlib.sha256(samples).hexdigest()


def _finished(folder: Path, settings: dict[str, Any], job: tuple[str, int]) -> dict | None:
    """The record of a song that an earlier call finished, or None."""
    try:
        note = json.loads((folder / SONG).read_text(encoding="utf-8"))
        record = note["record"]
        if note["settings"] != settings or (record["subset"], record["index"]) != job:
            return None
        pcm = {part: soundfile.read(folder / f"{part}.wav", dtype="int16")[0] for part in PARTS}
        return record if _digest(pcm) == record["digest"] else None
    except (OSError, ValueError, KeyError, TypeError, soundfile.LibsndfileError):
        return None


def _clear(root: Path, settings: dict[str, Any], jobs: list[tuple[str, int]]) -> None:
    """Remove songs of other settings and what a killed call left; check that the rest fits."""
    wanted = {root / subset / song_name(settings["seed"], subset, k) for subset, k in jobs}
    there = {path for subset in SUBSETS for path in (root / subset).glob("*") if path.is_dir()}
    for folder in sorted(there - wanted):
        if not (folder / SONG).is_file():
            raise CorpusError(
                f"{folder} is not a rendered song; move it away or choose another folder."
            )
    need = len(wanted - there) * 1.2 * settings["seconds"] * RATE * 4 * len(PARTS)
    old = (file for folder in there - wanted for file in folder.iterdir())
    free = shutil.disk_usage(root).free + sum(file.stat().st_size for file in old)
    if need > free:
        raise CorpusError(
            f"The corpus needs {need / 1e9:.1f} GB in {root}, where {free / 1e9:.1f} GB are free; "
            "free some space or choose a folder on a larger disk."
        )
    (root / INDEX).unlink(missing_ok=True)
    for folder in (root / ".rendering", *(there - wanted)):
        shutil.rmtree(folder, ignore_errors=True)


def _work(
    root: Path, settings: dict[str, Any], jobs: list[tuple[str, int]], workers: int
) -> Iterator[dict[str, Any]]:
    """Yield the songs' records as they are finished."""
    label, said = "songs rendered", time.monotonic()
    try:
        # Where there is no terminal to draw on, lines tell the progress.
        with tqdm(total=len(jobs), desc=label, leave=False, disable=None) as bar:
            for done, record in enumerate(_each(root, settings, jobs, workers), start=1):
                yield record
                bar.update()
                if bar.disable and (done == len(jobs) or time.monotonic() - said >= 5):
                    said = time.monotonic()
                    print(f"{label} {done}/{len(jobs)}", flush=True)
    finally:
        shutil.rmtree(root / ".rendering", ignore_errors=True)


def _each(root: Path, settings, jobs, workers: int) -> Iterator[dict[str, Any]]:
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from (_render_song(root, settings, job) for job in jobs)
        return
    # Fresh interpreters: forking a notebook's kernel, which has threads, can deadlock.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker) as pool:
        futures = [pool.submit(_render_song, root, settings, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker() -> None:
    threadpool_limits(1)  # more threads would only compete with the other processes
    # A killed parent cannot tell its workers to end; they would wait for songs for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
