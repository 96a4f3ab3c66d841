"""What users ask for: songs and instruments in, files or arrays out, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from cunet_lib.core.files import abandoned, locked
from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, printable
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.models import conditions
from cunet_lib.separation import catalog
from cunet_lib.separation.stream import OVERLAP, SongSeparator
from cunet_lib.signal import audio

FLUSH = 1 << 20
"""Samples per channel after which parts are sent to the disk; closing a file sends the rest, and
nothing else goes on then."""

MOST_CHANNELS = 1024
"""Of an array, as of any file that libsndfile reads."""

RESIDUAL = "residual"


@dataclass(frozen=True)
class _Array:
    """An array that is read as a file is."""

    samples: np.ndarray
    rate: int
    path: str = "The array"

    @property
    def channels(self) -> int:
        return self.samples.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self.samples), audio.BLOCK):
            yield self.samples[first : first + audio.BLOCK]


def requests(
    texts: Sequence[str] | None = None, model: str | None = None
) -> dict[str, np.ndarray | None]:
    """What is asked of a model.

    Parameters
    ----------
    texts
        Such as ``"vocals"``, ``"vocals=0.5"`` or ``"vocals+drums"`` (their sum, in one estimate);
        every instrument of the model, one by one, if not given.
    model
        Name of the network; None if it is not known yet.

    Returns
    -------
    dict
        Name of the estimate, such as ``"vocals=0.5+drums"``, to its condition ``(instruments,)``;
        to None for a dedicated U-Net.

    Raises
    ------
    ConfigError
        If a text makes no sense, is given twice, or asks a dedicated U-Net for something else.
    """
    only = model.removeprefix("unet_") if model in UNETS else None
    wanted = {}
    for text in texts or ([only] if only else INSTRUMENTS):
        levels = conditions.parse(text)
        if only and levels != {only: 1.0}:
            raise ConfigError(f"The model is a U-Net for {only} alone; it cannot give {text!r}.")
        name = "+".join(
            instrument if level == 1 else f"{instrument}={level:g}"
            for instrument, level in levels.items()
        )
        if name in wanted:
            raise ConfigError(f"{text!r} is asked for twice.")
        wanted[name] = None if only else conditions.vector(levels)
    return wanted


def separate(
    song: np.ndarray | str | os.PathLike,
    rate: int | None = None,
    *,
    instruments: Sequence[str] | None = None,
    model: str | os.PathLike | SongSeparator | None = None,
    residual: bool = False,
    highs: str = "extend",
    overlap: float = OVERLAP,
    out: str | os.PathLike = "separated",
    format: str = "wav",
    force: bool = False,
) -> dict[str, np.ndarray] | dict[str, Path]:
    """Separate an array, or a file into files.

    Parameters
    ----------
    song
        ``(samples,)`` or ``(samples, channels)``, or a path.
    rate
        Of the array, in Hz.
    instruments
        See :func:`requests`.
    model
        See :func:`cunet_lib.separation.catalog.find`; or a
        :class:`cunet_lib.separation.stream.SongSeparator`, which saves loading it again.
    residual
        Also give what is left of the mixture when all estimates are taken away.
    highs, overlap
        See :class:`cunet_lib.separation.stream.SongSeparator`; not used if ``model`` is one.
    out, format, force
        For a file: folder to write to, one of :data:`cunet_lib.signal.audio.FORMATS`, and whether
        files there may be replaced.

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
    if not isinstance(model, SongSeparator):
        requests(instruments)
        found = catalog.find(None if model is None else os.fspath(model))
        requests(instruments, found.model)
        model = SongSeparator(found, highs=highs, overlap=overlap)
    wanted = requests(instruments, model.model)
    if isinstance(song, np.ndarray):
        return _separate_array(model, song, rate, wanted, residual)
    if rate is not None:
        raise ConfigError("A file says its own rate; give rate with an array only.")
    file = audio.open_audio(os.fspath(song))
    options = {"residual": residual, "out": Path(out), "format": format, "force": force}
    return separate_file(model, file, wanted, **options)


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
    song = _Array(np.asarray(columns, np.float32), int(rate))
    _, _, stream = separator.stream(song, list(wanted.values()))
    parts = np.concatenate([estimates for _, estimates in stream], axis=1)
    named = dict(zip(wanted, parts, strict=True))
    if residual:
        named[RESIDUAL] = song.samples - parts.sum(axis=0)
    return {name: part.reshape(samples.shape) for name, part in named.items()}


def separate_file(
    separator: SongSeparator,
    song: audio.AudioFile,
    wanted: Mapping[str, np.ndarray | None],
    *,
    residual: bool = False,
    out: Path = Path("separated"),
    format: str = "wav",
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    """Separate a file into files, all of them or none.

    Parameters
    ----------
    separator, song
        Model and file.
    wanted
        As :func:`requests` gives it.
    residual, out, format, force
        As for :func:`separate`.
    say
        Gets a line when the song is done; progress is shown too. Neither, if not given.

    Returns
    -------
    dict
        Name of each estimate to its file.

    Raises
    ------
    ConfigError
        If the song is damaged, the format cannot hold it, files are in the way or do not fit on
        the disk.
    """
    began = time.perf_counter()
    names = [*wanted, RESIDUAL] if residual else [*wanted]
    audio.check_format(format, song.rate, song.channels)
    files = targets(song.path, names, out=out, format=format, force=force)
    with _fresh_folder(out) as scratch:
        frames, blocks, stream = separator.stream(song, list(wanted.values()), scratch=scratch)
        needed, free = 4 * frames * song.channels * len(names), shutil.disk_usage(scratch).free
        if needed > free:
            raise ConfigError(
                f"{song.path} needs {needed / 1e9:.1f} GB for its parts and the disk has "
                f"{free / 1e9:.1f} GB left; choose another --out."
            )
        partial = {name: scratch / file.name for name, file in files.items()}
        if say:
            stream = progress(stream, printable(song.path.name), blocks)
        peaks = _write(stream, partial, format, song, frames)
        for name, path in files.items():
            path.parent.mkdir(exist_ok=True)
            partial[name].replace(path)
    if say:
        name, took = printable(song.path), time.perf_counter() - began
        seconds, folder = frames / song.rate, printable(next(iter(files.values())).parent)
        say(
            f"{name}: {seconds:.1f} s of music in {took:.1f} s ({seconds / took:.3g} times real "
            f"time), in {folder}"
        )
        clipped = [each for each, peak in peaks.items() if peak > 1]
        if clipped and format not in audio.EXACT:
            say(f"{name}: peaks of {', '.join(clipped)} are clipped; --format wav keeps them.")
    return files


def _write(stream, partial, format, song, frames) -> dict[str, float]:
    """Write estimates, and what is left if there is a file for it; returns their peaks."""
    peaks = dict.fromkeys(partial, 0.0)
    size = {"rate": song.rate, "channels": song.channels, "frames": frames}
    written = 0
    try:
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(audio.create(path, format, **size)) for path in partial.values()
            ]
            for mixture, estimates in stream:
                parts = [*estimates]
                if len(parts) < len(writers):
                    parts.append(mixture - estimates.sum(axis=0))
                flush = written // FLUSH < (written := written + len(mixture)) // FLUSH
                for name, writer, part in zip(partial, writers, parts, strict=True):
                    peaks[name] = max(peaks[name], float(np.abs(part).max(initial=0.0)))
                    for first in range(0, len(part), audio.BLOCK):
                        writer.write(part[first : first + audio.BLOCK])
                    if flush:
                        writer.flush()
    except (soundfile.LibsndfileError, AssertionError) as error:
        # soundfile asserts that all was written; a full disk is what breaks that.
        raise ConfigError(
            f"{song.path} could not be separated: its parts could not be written; free some space "
            "on the disk."
        ) from error
    return peaks


def targets(
    path: Path, names: Sequence[str], *, out: Path, format: str, force: bool
) -> dict[str, Path]:
    """Files to write for a song: ``<out>/<song>/<name>.<format>``.

    Raises
    ------
    ConfigError
        If one exists and ``force`` does not allow to replace it, or is the song itself or a folder;
        or if nothing can be written there.
    """
    folder = out / (path.stem.strip(".") or path.name.strip(".") or "song")
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise _unwritable(out, error.strerror) from error
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
    highs: str = "extend",
    overlap: float = OVERLAP,
    say: Callable[[str], None] = print,
    complain: Callable[[str], None] = print,
    **options,
) -> int:
    """Separate files one after the other; one that fails does not stop the others.

    Parameters
    ----------
    paths
        Songs.
    found
        The model; it is loaded when the first song turns out to be readable.
    instruments, highs, overlap
        As for :func:`separate`.
    say, complain
        Get a line for each song that is done, or failed.
    options
        As for :func:`separate_file`.

    Returns
    -------
    int
        Number of songs that failed.
    """
    separator = None
    taken: dict[Path, Path] = {}
    failed = 0
    for path in paths:
        try:
            song = audio.open_audio(path)
            place = targets(path, ["x"], out=options["out"], format="x", force=True)["x"].parent
            if place in taken:
                raise ConfigError(
                    f"{path} would be written to the folder of {taken[place]}; separate it by "
                    "itself with another --out."
                )
            separator = separator or SongSeparator(found, highs=highs, overlap=overlap)
            wanted = requests(instruments, separator.model)
            separate_file(separator, song, wanted, say=say, **options)
            taken[place] = path
        except ConfigError as error:
            failed += 1
            complain(str(error))
        except OSError as error:
            failed += 1
            reason = error.strerror or error
            complain(printable(f"{path} could not be separated: {reason}; look after the disk."))
    return failed
