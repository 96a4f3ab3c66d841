"""Is a corpus what it should be? Every problem at once, by file, before anything is decoded.

MUSDB18 comes as 150 ``.stem.mp4`` files, MUSDB18-HQ as 150 folders of five WAV files; which of them
a folder holds is found out. Headers are read first, over all tracks; then short excerpts of every
track whose headers are in order are decoded, to hear whether files are cut short and whether the
stems add up to the mixture.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from cunet_lib.core.files import write_json
from cunet_lib.core.hardware import cores
from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, Profile, printable
from cunet_lib.preprocess.tracks import (
    CODEC_FRAME,
    DECODE_SECONDS,
    LOCAL,
    RENAME,
    SHORTAGE_SECONDS,
    STEM_FORMAT,
    STEM_NUMBERS,
    STEM_SUFFIX,
    STEMS,
    SUBSETS,
    Source,
    corpus_root,
    cut_short,
    ensure_ffmpeg,
    held_out,
    is_text,
    native,
    scan,
)

RATE = 44100
CHANNELS = 2
MUSDB18_TRACKS = {"train": 100, "test": 50}
INDEX = "corpus.json"

EXCERPT_SECONDS = 2.0
EXCERPT_PLACES = (0.25, 0.5, 1.0)
"""Where in a track excerpts are decoded, as shares of what an excerpt leaves; 1 is its end."""

SUM_LIMITS = {True: (3e-3, 0.05), False: (0.2, 0.5)}
"""Error of the stems' sum relative to the mixture (root of the ratio of energies, over a track's
excerpts), by ``is_wav``: worth a remark, and a problem.

Five 16-bit files differ by rounding, below 1e-3 for any but the faintest music. AAC at 256 kbit/s
codes each stream by itself, which leaves some hundredths over whole tracks; the recoded real
excerpt inside ``stempeg`` has 0.17, so that much must pass.
"""

INAUDIBLE = 1e-4
"""Errors of the sum below this (-80 dB re full scale) are rounding, however faint the music is."""

ERRATA = {"PR - Oh No": "in MUSDB18 itself its stems do not add up in the left channel"}
"""Tracks of MUSDB18 whose sum is known to differ, from the errata on the data set's own page."""


@dataclass(frozen=True)
class Track:
    """Facts of one track, from its headers.

    Attributes
    ----------
    name, subset
        ``Artist - Title``; ``train`` or ``test``.
    seconds
        Length of the mixture.
    size
        Bytes on disk.
    """

    name: str
    subset: str
    seconds: float
    size: int


@dataclass(frozen=True)
class Layout:
    """A corpus whose headers are in order.

    Attributes
    ----------
    root
        Folder that holds ``train`` and ``test``.
    format
        ``"WAV folders"`` (MUSDB18-HQ) or ``"stem files"`` (MUSDB18).
    tracks
        Train first, by name.
    remarks
        What is unusual but no obstacle, one line each.
    """

    root: Path
    format: str
    tracks: tuple[Track, ...]
    remarks: tuple[str, ...]

    def summary(self) -> str:
        """One line: format, tracks and minutes of each subset."""
        parts = []
        for subset in SUBSETS:
            lengths = [track.seconds for track in self.tracks if track.subset == subset]
            parts.append(f"{subset} {len(lengths)} tracks, {sum(lengths) / 60:.1f} min")
        return f"{self.format}: {'; '.join(parts)}."


def check_corpus(
    settings: Profile,
    *,
    sums: bool = True,
    report: Callable[[str], None] = print,
) -> Layout:
    """Fetch the corpus if the profile says so, check all of it, and note in it what was found.

    Parameters
    ----------
    settings
        Profile.
    sums
        Whether to decode excerpts too; without it only headers are read.
    report
        Gets one line per remark.

    Raises
    ------
    ConfigError
        One line per problem, each with its file and remedy; nothing has been changed then. Or as
        :func:`cunet_lib.preprocess.tracks.corpus_root` and :func:`fetch_excerpts`.
    """
    if settings.data.source == "musdb7s":
        fetch_excerpts(corpus_root(settings))
    layout, problems, sound = _read(settings)
    remarks = list(layout.remarks)
    if sums:
        with ThreadPoolExecutor(cores()) as threads:
            done = threads.map(_listen, *zip(*sound, strict=True)) if sound else iter(())
            for found in progress(done, "tracks checked", len(sound)):
                remarks += found.remarks
                problems += found.problems
    _refuse(layout.root, problems)
    for remark in remarks:
        report(f"remark: {printable(remark)}")
    if settings.data.source != "rendered":
        # The rendered corpus has a record of its own under this name.
        record = {"format": layout.format, "tracks": [asdict(track) for track in layout.tracks]}
        write_json(settings.paths.corpus / INDEX, record)
    return layout


def read_layout(settings: Profile) -> Layout:
    """Check a corpus by names and headers alone.

    Raises
    ------
    ConfigError
        One line per problem, each with its file and remedy.
    """
    layout, problems, _ = _read(settings)
    _refuse(layout.root, problems)
    return layout


def _read(settings: Profile) -> tuple[Layout, list[str], list[tuple[Source, float]]]:
    """A corpus by names and headers, their problems, and the tracks without any (with seconds)."""
    root = corpus_root(settings)
    problems: list[str] = []
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root}; {_origin(settings)}.")
    sources = {subset: scan(root, subset) for subset in SUBSETS}
    for subset, found in sources.items():
        if not (root / subset).is_dir():
            problems.append(f"{subset}: the folder is missing; {_origin(settings)}.")
        elif not found:
            problems.append(
                f"{subset}: holds neither folders of WAV files nor *{STEM_SUFFIX} files; "
                f"{_origin(settings)}."
            )
    everything = [source for found in sources.values() for source in found]
    problems += [
        f"{each.split}/{each.name}: {RENAME}" for each in everything if not is_text(each.name)
    ]
    kinds = Counter(source.is_wav for source in everything)
    if len(kinds) > 1:
        problems.append(
            f"{kinds[False]} *{STEM_SUFFIX} files and {kinds[True]} folders are mixed; "
            "keep either MUSDB18 or MUSDB18-HQ in one place."
        )
    for name in sorted(
        {source.name for source in sources["train"]} & {source.name for source in sources["test"]}
    ):
        problems.append(f"{name}: lies in train and in test; remove one of them.")
    if sources["train"]:
        try:
            held_out([source.name for source in sources["train"]], settings.data.validation)
        except ConfigError as error:
            problems.append(f"train: {str(error).rstrip('.')}; {_validation_remedy(settings)}.")
    if kinds[False]:
        ensure_ffmpeg()
    with ThreadPoolExecutor(cores()) as threads:
        headers = list(threads.map(_read_header, everything))
    problems += [problem for _, found in headers for problem in found]
    tracks = tuple(track for track, _ in headers)
    sound = [
        (source, track.seconds)
        for source, (track, found) in zip(everything, headers, strict=True)
        if not found
    ]
    form = "WAV folders" if kinds[True] else "stem files"
    layout = Layout(root, form, tracks, tuple(_unusual_counts(settings, sources)))
    return layout, problems, sound


def _origin(settings: Profile) -> str:
    if settings.data.source == "musdb18":
        return "MUSDB must name the folder that holds train and test of MUSDB18 or MUSDB18-HQ"
    if settings.data.source == "musdb7s":
        return f"delete {settings.paths.corpus}, and it will be fetched again"
    return "run the corpus notebook"


def _validation_remedy(settings: Profile) -> str:
    if isinstance(settings.data.validation, int):
        return "lower data.validation in the profile, or add tracks"
    return "add them, or name others in the profile"


def _unusual_counts(settings: Profile, sources: dict[str, list[Source]]) -> Iterator[str]:
    if settings.data.source == "musdb7s":
        return
    wanted = MUSDB18_TRACKS
    if settings.data.source == "rendered":
        wanted = {"train": settings.data.train_tracks, "test": settings.data.test_tracks}
    for subset, number in wanted.items():
        if len(sources[subset]) != number:
            yield (
                f"{subset}: {len(sources[subset])} tracks instead of {number}; "
                "scores will not compare with those of the whole data set."
            )


def _refuse(root: Path, problems: list[str]) -> None:
    if problems:
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise ConfigError(f"The corpus {root} has {many}:", *problems)


# ---------------------------------------------------------------------------------------- headers


@dataclass(frozen=True)
class _Stream:
    """Header of one stem: samples, rate in Hz, channels."""

    samples: int
    rate: int
    channels: int


def _read_header(source: Source) -> tuple[Track, list[str]]:
    """Facts of a track (zeros where unknown), and its problems."""
    if source.is_wav:
        streams, problems = _wav_headers(source)
    else:
        streams, problems = _stem_headers(source)
    slack = 0 if source.is_wav else CODEC_FRAME
    longest = max((stream.samples for stream in streams.values()), default=0)
    for stem, stream in streams.items():
        name = _shown(source, stem)
        if stream.rate != RATE:
            problems.append(
                f"{name}: {stream.rate} Hz instead of {RATE}; take the original file, or resample."
            )
        if stream.channels != CHANNELS:
            channels = "1 channel" if stream.channels == 1 else f"{stream.channels} channels"
            problems.append(f"{name}: {channels} instead of {CHANNELS}; take the original file.")
        if stream.samples == 0:
            problems.append(f"{name}: holds no audio; copy or unpack it again.")
        elif longest - stream.samples > slack:
            problems.append(
                f"{name}: {longest - stream.samples} samples shorter than the longest stem; "
                "copy or unpack it again."
            )
    mixture = streams.get("mixture")
    seconds = mixture.samples / mixture.rate if mixture else 0.0
    size = sum(path.stat().st_size for path in source.files if path.is_file())
    return Track(source.name, source.split, seconds, size), problems


def _shown(source: Source, stem: str) -> str:
    """A stem as people find it, relative to the corpus."""
    if source.is_wav:
        return f"{source.split}/{source.name}/{stem}.wav"
    return f"{source.split}/{source.files[0].name}, {stem} (stream {STEM_NUMBERS[stem]})"


def _wav_headers(source: Source) -> tuple[dict[str, _Stream], list[str]]:
    import soundfile

    streams, problems = {}, []
    for stem, path in zip(STEMS, source.files, strict=True):
        if not path.is_file():
            problems.append(f"{_shown(source, stem)}: missing; copy or unpack it again.")
            continue
        try:
            info = soundfile.info(native(path))
            short = cut_short(path)
        except (soundfile.LibsndfileError, OSError):
            problems.append(
                f"{_shown(source, stem)}: cannot be read as audio; copy or unpack it again."
            )
            continue
        if short:
            problems.append(f"{_shown(source, stem)}: is cut short; copy or unpack it again.")
        streams[stem] = _Stream(info.frames, info.samplerate, info.channels)
    return streams, problems


def _stem_headers(source: Source) -> tuple[dict[str, _Stream], list[str]]:
    path = source.files[0]
    name = f"{source.split}/{path.name}"
    command = ["ffprobe", *LOCAL[1:], *STEM_FORMAT, "-of", "json", "-show_streams"]
    try:
        done = _run([*command, f"file:{path}"])
        found = json.loads(done.stdout)["streams"]
        audio = {int(s["index"]): s for s in found if s["codec_type"] == "audio"}
        streams = {
            stem: _Stream(
                round(float(audio[place]["duration"]) * int(audio[place]["sample_rate"])),
                int(audio[place]["sample_rate"]),
                int(audio[place]["channels"]),
            )
            for stem, place in STEM_NUMBERS.items()
            if place in audio
        }
    except (ValueError, LookupError, TypeError, subprocess.SubprocessError):
        return {}, [f"{name}: cannot be read as audio; copy or unpack it again."]
    missing = [f"{stem} ({n})" for stem, n in STEM_NUMBERS.items() if n not in audio]
    if missing:
        return streams, [
            f"{name}: lacks the audio streams {', '.join(missing)}; copy or unpack it again."
        ]
    return streams, []


# ----------------------------------------------------------------------------------------- sounds


@dataclass(frozen=True)
class _Heard:
    remarks: list[str]
    problems: list[str]


def _listen(source: Source, seconds: float) -> _Heard:
    """Decode excerpts of a track, the last of them its end, and add up their stems."""
    name = f"{source.split}/{source.files[0].name}"
    if source.is_wav:
        name = f"{source.split}/{source.name}"
    length = min(EXCERPT_SECONDS, seconds)
    error = energy = 0.0
    # The stretches may overlap in a short track.
    for place in EXCERPT_PLACES:
        try:
            audio = _excerpt(source, place * (seconds - length), length)
        except (OSError, ValueError, RuntimeError, subprocess.SubprocessError):
            audio = np.zeros((len(STEMS), 0, CHANNELS))
        if audio.shape[1] < (length - SHORTAGE_SECONDS) * RATE:
            return _Heard([], [f"{name}: cannot be decoded to its end; copy or unpack it again."])
        if not np.isfinite(audio).all():
            return _Heard([], [f"{name}: holds values that are not finite; copy it again."])
        error += float(np.sum((audio[0] - audio[1:].sum(axis=0)) ** 2))
        energy += float(np.sum(audio[0] ** 2)) + float(np.sum(audio[1:] ** 2))
    samples = len(EXCERPT_PLACES) * audio[0].size
    # Mixture and stems count half each, so that a silent mixture is no way out.
    ratio = (error / (energy / 2)) ** 0.5 if energy > 0 else 0.0
    remark, problem = SUM_LIMITS[source.is_wav]
    if ratio <= remark or (error / samples) ** 0.5 <= INAUDIBLE:
        return _Heard([], [])
    line = f"{name}: its stems miss the mixture by {ratio:.0%}"
    if source.name in ERRATA:
        return _Heard([f"{line}, and no wonder: {ERRATA[source.name]}."], [])
    if ratio <= problem:
        return _Heard([f"{line}, more than its format explains."], [])
    return _Heard([], [f"{line}; a stem is wrong or out of step, copy or unpack them again."])


def _excerpt(source: Source, start: float, seconds: float) -> np.ndarray:
    """Stems ``(5, samples, 2)`` float64 of a stretch, in the order of STEMS."""
    if source.is_wav:
        import soundfile

        first, count = round(start * RATE), round(seconds * RATE)
        stems = [
            soundfile.read(native(path), start=first, frames=count, always_2d=True)[0]
            for path in source.files
        ]
    else:
        # All streams in one pass; stempeg would decode from the beginning, stream by stream.
        inputs = "".join(f"[0:{STEM_NUMBERS[stem]}]" for stem in STEMS)
        command = ["ffmpeg", *LOCAL, "-ss", f"{start:.6f}", "-t", f"{seconds:.6f}", *STEM_FORMAT]
        command += ["-i", f"file:{source.files[0]}"]
        command += ["-filter_complex", f"{inputs}amerge=inputs={len(STEMS)}", "-f", "f32le", "-"]
        done = _run(command)
        whole = len(done.stdout) // (4 * CHANNELS * len(STEMS)) * CHANNELS * len(STEMS)
        frames = np.frombuffer(done.stdout, "<f4", whole).reshape(-1, len(STEMS), CHANNELS)
        stems = frames.transpose(1, 0, 2)
    return np.asarray(stems, float)


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DECODE_SECONDS,
        check=False,
    )


# ----------------------------------------------------------------------------- 7-second excerpts


def fetch_excerpts(root: Path) -> None:
    """Let ``musdb`` fetch its 7-second excerpts of MUSDB18 into ``root``, unless they are there.

    They are unpacked elsewhere and moved, so that an interrupted fetch is never believed.

    Raises
    ------
    ConfigError
        If they cannot be fetched.
    """
    if (root / "train").is_dir():
        return
    ensure_ffmpeg()
    import musdb

    partial = root.with_name(".fetching")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _patience(60.0):
            # No subsets: the files are fetched, and read later by those who need them.
            musdb.DB(root=str(partial), download=True, subsets=[])
        shutil.rmtree(root, ignore_errors=True)
        partial.replace(root)
    except (OSError, HTTPException, zipfile.BadZipFile, RuntimeError) as error:
        raise ConfigError(
            "The 7-second excerpts of MUSDB18 could not be fetched "
            f"({_cause(error)}); this profile needs a network the first time."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    text = getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let sockets give up after so long; musdb itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
