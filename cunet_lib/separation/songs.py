"""What users ask for: songs and instruments in, files or arrays out, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cunet_lib.core.files import is_file
from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, printable
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.models import conditions
from cunet_lib.separation import catalog
from cunet_lib.separation.stream import OVERLAP, Song, SongSeparator
from cunet_lib.signal import audio
from cunet_lib.signal.writing import Output

RESIDUAL = "residual"

SUFFIXES = (
    *(".aac", ".aif", ".aiff", ".ape", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".mp4"),
    *(".oga", ".ogg", ".opus", ".tta", ".w64", ".wav", ".webm", ".wma", ".wv"),
)
"""Of songs in a folder; a song that is named may have any, or none."""


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
    separator = ready(model, highs=highs, overlap=overlap)
    wanted = requests(instruments, separator.model, two_stems=two_stems)
    if isinstance(song, np.ndarray):
        return _separate_array(separator, song, rate, wanted, residual)
    if rate is not None:
        raise ConfigError("A file says its own rate; give rate with an array only.")
    if os.path.isdir(song):  # noqa: PTH112 - Path.is_dir fails on names that are too long
        raise ConfigError(f"{song} is a folder; name the audio files in it.")
    output = Output(format, bits=bits, bitrate=bitrate)
    given = {"start": start, "length": length, "force": force, "residual": residual}
    songs = separate_files([Path(song)], separator, wanted, out=Path(out), output=output, **given)
    (result,) = songs
    if result.error:
        raise ConfigError(result.error)
    return result.files


def ready(
    model: str | os.PathLike | SongSeparator | None, *, highs: str, overlap: float
) -> SongSeparator:
    """The model of :func:`separate`: the last one again, if it is the same."""
    if isinstance(model, SongSeparator):
        return model
    path = catalog.find(None if model is None else os.fspath(model)).path
    return _last(path, path.stat().st_mtime_ns, highs, overlap)


@functools.lru_cache(maxsize=1)
def _last(path: Path, changed: int, highs: str, overlap: float) -> SongSeparator:
    """``changed`` is when the file was, so that a new model under an old name is loaded."""
    return SongSeparator(catalog.describe(path), highs=highs, overlap=overlap)


def _separate_array(separator, samples, rate, wanted, residual) -> dict[str, np.ndarray]:
    low, high = audio.RATES
    if not isinstance(rate, int | float | np.number) or rate % 1 or not low <= rate <= high:
        raise ConfigError(
            f"An array needs its rate, a whole number of Hz between {low} and {high} "
            f"(given: {rate!r})."
        )
    if (
        samples.ndim not in (1, 2)
        or samples.shape[1:] > (1024,)
        or 0 in samples.shape[1:]
        or not np.issubdtype(samples.dtype, np.floating)
    ):
        raise ConfigError(
            "An array of audio has the shape (samples,) or (samples, channels), at most 1024 "
            f"channels, and holds floating point (given: {samples.shape}, {samples.dtype}); "
            "convert or transpose it."
        )
    columns = np.asarray(samples[:, None] if samples.ndim == 1 else samples, np.float32)
    audio.check_samples("The array", columns)
    song = Song("The array", int(rate), lambda: iter([columns]))
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


def find_songs(paths: Sequence[Path], out: Path) -> tuple[dict[Path, Path], set[Path]]:
    """Songs, those in folders too, at any depth.

    Returns
    -------
    names
        Song to its folder in ``out``: its name without the suffix; with it, or with the name of the
        folder it lies in, where several would meet. Songs of a folder keep the folders below it.
    within
        Those that were found in folders.

    Raises
    ------
    ConfigError
        If two would still meet.
    """
    left, within = {}, set()
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - False too for a name that is too long
            left[path] = Path(path.name)
            continue
        found = [
            each
            for each in sorted(path.rglob("*"))
            if each.suffix.lower() in SUFFIXES
            and not any(part.startswith((".", "@", "__")) for part in each.relative_to(path).parts)
            and out.resolve() not in each.resolve().parents
            and each.is_file()
        ]
        # Reading the folder itself tells that it holds none.
        left |= {each: each.relative_to(path) for each in found} or {path: Path(path.name)}
        within |= {*found}
    names: dict[Path, Path] = {}
    for naming in (
        lambda path, name: name.parent / (name.stem.strip(".") or name.name.strip(".") or "song"),
        lambda path, name: name,
        lambda path, name: path.absolute().parent.name / name,
    ):
        named = {path: naming(path, name) for path, name in left.items()}
        number = Counter([*names.values(), *named.values()])
        names |= {path: name for path, name in named.items() if number[name] == 1}
        left = {path: name for path, name in left.items() if path not in names}
    if left:
        raise ConfigError(
            f"{' and '.join(map(str, left))} would be written to one folder; separate them apart, "
            "each with another --out."
        )
    return names, within


def _write(stream, files: Mapping[str, Path], output: Output) -> dict[str, float]:
    """Write estimates, and what is left if there is a file for it; returns their peaks."""
    peaks = dict.fromkeys(files, 0.0)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(output.writer(path)) for path in files.values()]
        pool = stack.enter_context(ThreadPoolExecutor(len(writers)))
        written = iter(())
        for mixture, estimates in stream:
            parts = [*estimates]
            if len(parts) < len(writers):
                parts.append(mixture - estimates.sum(axis=0))
            for name, part in zip(files, parts, strict=True):
                peaks[name] = max(peaks[name], float(np.abs(part).max(initial=0.0)))
            list(written)  # raises what a writer raised
            # While the next stretch is separated.
            written = pool.map(lambda write, part: write(part), writers, parts)
        list(written)
    return peaks


def check_free(path: Path, files: Iterable[Path], *, force: bool) -> None:
    """Refuse to write a song's parts, which are files of one folder, where something is in the way.

    Raises
    ------
    ConfigError
        If one exists and ``force`` does not allow to replace it, or is the song itself or a folder;
        or if nothing can be written there.
    """
    folder = next(iter(files)).parent
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    if not there.is_dir():
        raise ConfigError(f"{there} is a file and no folder; choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise _unwritable(there, os.strerror(errno.EACCES))
    for file in filter(Path.exists, files):
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; move it away, or choose another --out.")
        if file.samefile(path):
            raise ConfigError(f"{path} would be overwritten by its own part; choose another --out.")
        if not force:
            raise ConfigError(f"{file} exists; --force replaces it, --out writes elsewhere.")


@contextlib.contextmanager
def _fresh_folder(out: Path) -> Iterator[Path]:
    """A temporary folder in ``out``; gone at the end, and so is ``out`` if nothing came of it."""
    try:
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        options = {"prefix": ".partial-", "dir": out, "ignore_cleanup_errors": True}
        scratch = tempfile.TemporaryDirectory(**options)
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
    try:
        with scratch as name:
            yield Path(name)
    finally:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()


def _unwritable(place: Path, reason: str) -> ConfigError:
    return ConfigError(f"Nothing can be written to {place}: {reason}; choose another --out.")


def separate_files(
    paths: Sequence[Path],
    separator: SongSeparator,
    wanted: Mapping[str, np.ndarray | None],
    *,
    residual: bool = False,
    out: Path = Path("separated"),
    output: Output,
    start: float = 0.0,
    length: float | None = None,
    force: bool = False,
    show: bool = False,
) -> Iterator[Result]:
    """Separate files, and folders of files, one after the other: each wholly or not at all.

    Songs of a folder that are separated already are not separated again. What is in the way of a
    song is told before the first one is separated; one that fails does not stop the others: if it
    is damaged, the format cannot hold it, files are in the way or do not fit on the disk.

    Parameters
    ----------
    paths
        Songs and folders.
    wanted
        As :func:`requests` gives it.
    residual, out, start, length, force
        As for :func:`separate`.
    output
        Kind of file to write.
    show
        Whether to show progress.

    Raises
    ------
    ConfigError
        If the excerpt makes no sense, or songs would be written to one folder.
    """
    most = audio.LONGEST_SECONDS
    if not 0 <= start <= most or not (length is None or 0 < length <= most):
        raise ConfigError(
            "An excerpt starts at 0 s or later and is longer than 0 s; neither is more than "
            f"{most // 3600} hours."
        )
    parts = [*wanted, RESIDUAL] if residual else [*wanted]
    names, within = find_songs(paths, out)
    results = [
        Result(path, {part: out / name / f"{part}.{output.format}" for part in parts})
        for path, name in names.items()
    ]

    def check(song: Result) -> Result:
        check_free(song.song, song.files.values(), force=force)
        return song

    def work(song: Result) -> Result:
        file = audio.open_audio(song.song)
        check(song)
        _ = separator.separator  # is loaded now: that is no time of this song's
        began = time.perf_counter()
        told = f"{file.path} from {start:g} s" if start else str(file.path)
        stretch = Song(told, file.rate, functools.partial(file.blocks, start, length))
        frames, stretches, stream = separator.stream(stretch, list(wanted.values()))
        with _fresh_folder(out) as scratch:
            own = output.like(file).check(frames, scratch)
            needed, free = own.size(frames) * len(parts), shutil.disk_usage(scratch).free
            if needed > free:
                raise ConfigError(
                    f"{file.path} needs {needed / 1e6:,.1f} MB for its parts and the disk has "
                    f"{free / 1e6:,.1f} MB left; choose another --out."
                )
            partial = {part: scratch / path.name for part, path in song.files.items()}
            if show:
                stream = progress(stream, printable(file.path.name), stretches)
            peaks = _write(stream, partial, own)
            for part, path in song.files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial[part].replace(path)
        clipped = tuple(part for part, peak in peaks.items() if peak > 1 and own.depth != 32)
        took = time.perf_counter() - began
        return replace(song, seconds=frames / file.rate, took=took, clipped=clipped)

    todo = []
    for song in results:
        done = song.song in within and not force and all(map(is_file, song.files.values()))
        checked = song if done else _tried(check, song)
        if done or checked.error:
            yield checked
        else:
            todo.append(song)
    for song in todo:
        yield _tried(work, song)


def _tried(call: Callable[[Result], Result], song: Result) -> Result:
    """What ``call(song)`` gives; or, if it fails, no files and a sentence about the failure."""
    try:
        return call(song)
    except ConfigError as error:
        told = str(error)
    except OSError as error:
        reason = error.strerror or error
        told = printable(f"{song.song} could not be separated: {reason}; look after the disk.")
    return replace(song, files={}, error=told)
