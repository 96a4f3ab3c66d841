"""What users ask for: songs and instruments in, files or arrays out, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cunet_lib.core.files import abandoned, is_file, locked
from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, printable
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.models import conditions
from cunet_lib.separation import catalog
from cunet_lib.separation.folders import find_songs, stem
from cunet_lib.separation.stream import OVERLAP, Song, SongSeparator
from cunet_lib.signal import audio
from cunet_lib.signal.writing import Output

MOST_CHANNELS = 1024
"""Of an array, as of any file that libsndfile reads."""

RESIDUAL = "residual"


def requests(
    texts: Sequence[str] | None = None, model: str | None = None, *, two_stems: str | None = None
) -> dict[str, np.ndarray | None]:
    """What is asked of a model.

    Parameters
    ----------
    texts
        Such as ``"vocals"``, ``"vocals=0.5"``, ``"vocals+drums"`` (their sum, in one estimate) or
        ``"accompaniment"`` (the sum of all but vocals); every instrument of the model, one by one,
        if not given.
    model
        Name of the network; None if it is not known yet.
    two_stems
        An instrument, in place of ``texts``: it, and the sum of all others as accompaniment.

    Returns
    -------
    dict
        Name of the estimate, such as ``"vocals=0.5+drums"``, to levels ``(instruments,)``; to None
        for a dedicated U-Net.

    Raises
    ------
    ConfigError
        If a text makes no sense, is given twice, or asks a dedicated U-Net for something else.
    """
    if two_stems and texts:
        raise ConfigError("Give either --two-stems or --instruments.")
    if two_stems:
        conditions.one_hot(two_stems)
    only = model.removeprefix("unet_") if model in UNETS else None
    wanted = {}
    texts = [two_stems, conditions.ACCOMPANIMENT] if two_stems else texts
    for text in texts or ([only] if only else INSTRUMENTS):
        levels = conditions.parse(text, target=two_stems or "vocals")
        if only and levels != {only: 1.0}:
            raise ConfigError(f"The model is a U-Net for {only} alone; it cannot give {text!r}.")
        name = "+".join(
            instrument if level == 1 else f"{instrument}={level:g}"
            for instrument, level in levels.items()
        )
        name = text if text == conditions.ACCOMPANIMENT else name
        if name in wanted:
            raise ConfigError(f"{text!r} is asked for twice.")
        wanted[name] = None if only else conditions.vector(levels)
    return wanted


def separate(
    song: np.ndarray | str | os.PathLike,
    rate: int | None = None,
    *,
    instruments: Sequence[str] | None = None,
    two_stems: str | None = None,
    model: str | os.PathLike | SongSeparator | None = None,
    residual: bool = False,
    highs: str = "extend",
    overlap: float = OVERLAP,
    out: str | os.PathLike = "separated",
    format: str = "wav",
    bits: int | None = None,
    bitrate: str | None = None,
    start: float = 0.0,
    length: float | None = None,
    force: bool = False,
) -> dict[str, np.ndarray] | dict[str, Path]:
    """Separate an array, or a file into files.

    The last model stays loaded for the next call.

    Parameters
    ----------
    song
        ``(samples,)`` or ``(samples, channels)``, or a path.
    rate
        Of the array, in Hz.
    instruments, two_stems
        See :func:`requests`.
    model
        See :func:`cunet_lib.separation.catalog.find`; or a
        :class:`cunet_lib.separation.stream.SongSeparator`.
    residual
        Also give what is left of the mixture when all estimates are taken away.
    highs, overlap
        See :class:`cunet_lib.separation.stream.SongSeparator`; not used if ``model`` is one.
    out, force
        For a file: folder to write to, and whether files there may be replaced.
    format, bits, bitrate
        For a file: see :class:`cunet_lib.signal.writing.Output`.
    start, length
        For a file: excerpt in seconds; to the end if no length is given.

    Returns
    -------
    dict
        Name of each estimate to its samples, float32 and of the array's shape; or, for a file, to
        ``<out>/<song>/<name>.<format>``.

    Raises
    ------
    ConfigError
        If the song or what is asked for makes no sense; nothing is written then.
    """
    output = Output(format, bits=bits, bitrate=bitrate)
    if not isinstance(model, SongSeparator):
        requests(instruments, two_stems=two_stems)
        found = catalog.find(None if model is None else os.fspath(model))
        requests(instruments, found.model, two_stems=two_stems)
        model = ready(found, highs=highs, overlap=overlap)
    wanted = requests(instruments, model.model, two_stems=two_stems)
    if isinstance(song, np.ndarray):
        return _separate_array(model, song, rate, wanted, residual)
    if rate is not None:
        raise ConfigError("A file says its own rate; give rate with an array only.")
    file = audio.open_audio(os.fspath(song))
    options = {"residual": residual, "out": Path(out), "output": output, "force": force}
    return separate_file(model, file, wanted, start=start, length=length, **options).files


_LAST: dict[tuple, SongSeparator] = {}


def ready(found: catalog.Found, *, highs: str, overlap: float) -> SongSeparator:
    """A model that is ready to separate: the last one again, if it is the same."""
    key = (found.path, found.path.stat().st_mtime_ns, highs, overlap)
    if key not in _LAST:
        fresh = SongSeparator(found, highs=highs, overlap=overlap)
        _LAST.clear()
        _LAST[key] = fresh
    return _LAST[key]


def _separate_array(separator, samples, rate, wanted, residual) -> dict[str, np.ndarray]:
    low, high = audio.RATES
    if not isinstance(rate, int | float | np.number) or rate % 1 or not low <= rate <= high:
        raise ConfigError(
            f"An array needs its rate, a whole number of Hz between {low} and {high} "
            f"(given: {rate!r})."
        )
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        raise ConfigError(
            "An array of audio has the shape (samples,) or (samples, channels) and holds floating "
            f"point (given: {samples.shape}, {samples.dtype})."
        )
    columns = samples[:, None] if samples.ndim == 1 else samples
    if columns.shape[1] > MOST_CHANNELS:
        raise ConfigError(
            f"An array of audio has at most {MOST_CHANNELS} channels, and they are its second axis "
            f"(given: {samples.shape}); transpose it."
        )
    columns = np.asarray(columns, np.float32)
    song = Song("The array", int(rate), columns.shape[1], lambda: iter([columns]))
    _, _, stream = separator.stream(song, list(wanted.values()))
    parts = np.concatenate([estimates for _, estimates in stream], axis=1)
    named = dict(zip(wanted, parts, strict=True))
    if residual:
        named[RESIDUAL] = columns - parts.sum(axis=0)
    return {name: part.reshape(samples.shape) for name, part in named.items()}


@dataclass(frozen=True)
class Result:
    """What became of a song.

    Attributes
    ----------
    song
        As it was given.
    files
        Name of each estimate to its file.
    seconds, took
        Length of the music, and of the work.
    clipped
        Estimates whose peaks the format cannot hold.
    error
        Why nothing was written; empty otherwise.
    """

    song: Path
    files: Mapping[str, Path]
    seconds: float = 0.0
    took: float = 0.0
    clipped: tuple[str, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        name, folder = printable(self.song), printable(next(iter(self.files.values())).parent)
        if not self.took:
            return f"{name}: separated already, in {folder}"
        text = f"{name}: {self.seconds:.1f} s of music in {self.took:.1f} s "
        text += f"({self.seconds / self.took:.3g} times real time), in {folder}"
        if self.clipped:
            text += f"\n{name}: peaks of {', '.join(self.clipped)} are clipped; --format wav keeps "
            text += "them."
        return text


def separate_file(
    separator: SongSeparator,
    file: audio.AudioFile,
    wanted: Mapping[str, np.ndarray | None],
    *,
    residual: bool = False,
    out: Path = Path("separated"),
    name: Path | None = None,
    output: Output | None = None,
    start: float = 0.0,
    length: float | None = None,
    force: bool = False,
    show: bool = False,
) -> Result:
    """Separate a file into files, all of them or none.

    Parameters
    ----------
    separator, file
        Model and song.
    wanted
        As :func:`requests` gives it.
    residual, out, start, length, force
        As for :func:`separate`.
    name
        Folder of the song in ``out``; by default the song's name.
    output
        Kind of file to write; WAV if not given.
    show
        Whether to show progress.

    Raises
    ------
    ConfigError
        If the song is damaged, the format cannot hold it, files are in the way or do not fit on
        the disk.
    """
    began = time.perf_counter()
    if not start >= 0 or not (length is None or length > 0):
        raise ConfigError("An excerpt starts at 0 s or later and is longer than 0 s.")
    output = output or Output("wav")
    names = [*wanted, RESIDUAL] if residual else [*wanted]
    folder = out / (name or stem(file.path))
    files = targets(file.path, names, folder=folder, format=output.format, force=force)
    blocks = functools.partial(file.blocks, start, length)
    told = f"{file.path} from {start:g} s" if start else str(file.path)
    song = Song(told, file.rate, file.channels, blocks)
    frames, stretches, stream = separator.stream(song, list(wanted.values()))
    with _fresh_folder(out) as scratch:
        output = output.like(file).check(frames, scratch)
        needed, free = output.size(frames) * len(names), shutil.disk_usage(scratch).free
        if needed > free:
            raise ConfigError(
                f"{file.path} needs {needed / 1e6:,.1f} MB for its parts and the disk has "
                f"{free / 1e6:,.1f} MB left; choose another --out."
            )
        partial = {name: scratch / path.name for name, path in files.items()}
        if show:
            stream = progress(stream, printable(file.path.name), stretches)
        peaks = _write(stream, partial, output)
        for name, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial[name].replace(path)
    clipped = tuple(name for name, peak in peaks.items() if peak > 1 and output.depth != 32)
    return Result(file.path, files, frames / file.rate, time.perf_counter() - began, clipped)


def _write(stream, files: Mapping[str, Path], output: Output) -> dict[str, float]:
    """Write estimates, and what is left if there is a file for it; returns their peaks."""
    peaks = dict.fromkeys(files, 0.0)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(output.writer(path)) for path in files.values()]
        pool = stack.enter_context(ThreadPoolExecutor(len(writers)))
        written = []
        for mixture, estimates in stream:
            parts = [*estimates]
            if len(parts) < len(writers):
                parts.append(mixture - estimates.sum(axis=0))
            for name, part in zip(files, parts, strict=True):
                peaks[name] = max(peaks[name], float(np.abs(part).max(initial=0.0)))
            for done in written:
                done.result()
            # While the next stretch is separated.
            written = [pool.submit(*each) for each in zip(writers, parts, strict=True)]
        for done in written:
            done.result()
    return peaks


def targets(
    path: Path, names: Sequence[str], *, folder: Path, format: str, force: bool
) -> dict[str, Path]:
    """Files to write for a song: ``<folder>/<name>.<format>``.

    Raises
    ------
    ConfigError
        If one exists and ``force`` does not allow to replace it, or is the song itself or a folder;
        or if nothing can be written there.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    if not there.is_dir():
        raise ConfigError(f"{there} is a file and no folder; choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise _unwritable(there, os.strerror(errno.EACCES))
    files = {name: folder / f"{name}.{format}" for name in names}
    for file in filter(Path.exists, files.values()):
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; move it away, or choose another --out.")
        if file.samefile(path):
            raise ConfigError(f"{path} would be overwritten by its own part; choose another --out.")
        if not force:
            raise ConfigError(f"{file} exists; --force replaces it, --out writes elsewhere.")
    return files


@contextlib.contextmanager
def _fresh_folder(out: Path) -> Iterator[Path]:
    """A temporary folder in ``out``; gone at the end, and so is ``out`` if nothing came of it.

    Those that killed processes left there go first, as nobody holds their locks any more.
    """
    try:
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        for lock in out.glob(".partial-*/.lock"):
            if abandoned(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    try:
        with locked(scratch / ".locking", f"Another process works in {scratch}."):
            # A file of this other name is held from its first moment on. Systems without locks
            # have none.
            with contextlib.suppress(FileNotFoundError):
                (scratch / ".locking").rename(scratch / ".lock")
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()


def _unwritable(place: Path, reason: str) -> ConfigError:
    return ConfigError(f"Nothing can be written to {place}: {reason}; choose another --out.")


def separate_files(
    paths: Sequence[Path],
    found: catalog.Found,
    *,
    instruments: Sequence[str] | None = None,
    two_stems: str | None = None,
    highs: str = "extend",
    overlap: float = OVERLAP,
    residual: bool = False,
    out: Path = Path("separated"),
    output: Output,
    force: bool = False,
    **options,
) -> Iterator[Result]:
    """Separate files, and folders of files, one after the other.

    Songs of a folder that are separated already are not separated again. What is in the way of a
    song is told before the first one is separated; one that fails does not stop the others.

    Parameters
    ----------
    paths
        Songs and folders.
    found
        The model; it is loaded when the first song turns out to be readable.
    instruments, two_stems, highs, overlap, residual, out, force
        As for :func:`separate`.
    output, options
        As for :func:`separate_file`.
    """
    names, within = find_songs(paths, out)
    wanted = requests(instruments, found.model, two_stems=two_stems)
    parts = [*wanted, RESIDUAL] if residual else [*wanted]

    def free(path: Path) -> dict[str, Path]:
        where = {"folder": out / names[path], "format": output.format}
        return targets(path, parts, force=force, **where)

    def work(path: Path) -> Result:
        file = audio.open_audio(path)
        separator = ready(found, highs=highs, overlap=overlap)
        asked = requests(instruments, separator.model, two_stems=two_stems)
        given = {"residual": residual, "out": out, "name": names[path], "force": force}
        return separate_file(separator, file, asked, output=output, **given, **options)

    todo = []
    for path, name in names.items():
        files = {part: out / name / f"{part}.{output.format}" for part in parts}
        if path in within and not force and all(map(is_file, files.values())):
            yield Result(path, files)
        elif error := _told(path, free)[1]:
            yield Result(path, {}, error=error)
        else:
            todo.append(path)
    for path in todo:
        result, error = _told(path, work)
        yield result or Result(path, {}, error=error)


def _told(path: Path, call: Callable) -> tuple:
    """What ``call(path)`` gives, and an empty text; or None, and a sentence about its failure."""
    try:
        return call(path), ""
    except ConfigError as error:
        return None, str(error)
    except OSError as error:
        reason = error.strerror or error
        return None, printable(f"{path} could not be separated: {reason}; look after the disk.")
