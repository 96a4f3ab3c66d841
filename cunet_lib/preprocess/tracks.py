"""Tracks of a corpus: where they are, how they are split, and their sound.

``musdb`` and ``stempeg`` set the layout and the values, which tests hold; they do not read tracks
here. They start ffmpeg for every WAV file, wait for it without end, let it open whatever a file
refers to, take a file that is cut short for a shorter one, and hold all stems of a track at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr

from cunet_lib.core.settings import ConfigError, Profile, folder
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.signal.audio import (
    LONGEST_SECONDS,
    MOV,
    AudioFile,
    downmix,
    from_stream,
    open_audio,
    probe,
)

STEMS = ("mixture", *INSTRUMENTS)
"""Order of a track's channels in the store."""

STEM_NUMBERS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}
"""Place of each stem in a MUSDB18 ``.stem.mp4`` file."""

SUBSETS = ("train", "test")
STEM_SUFFIX = ".stem.mp4"
SUFFIXES = (".wav", ".flac", ".aif", ".aiff", ".m4a", ".mp3", ".ogg", ".opus")
"""Files that are taken for audio; those whose header gives no length are then refused by name."""

LEFT_BEHIND = ("@eaDir", "#recycle", "__MACOSX", "lost+found", "$RECYCLE.BIN")
"""Folders that systems make beside people's; so are all names that begin with a dot."""

CODEC_FRAME = 1024
"""Samples of an AAC frame: streams of one stem file may differ by the padding of the last one."""


@dataclass(frozen=True)
class Source:
    """One track before decoding.

    Attributes
    ----------
    name
        ``Artist - Title``.
    split
        ``train``, ``valid`` or ``test``.
    path
        A folder with a file per stem, or one ``.stem.mp4``.
    stems
        Of a track of the user's own: names of the files, without suffix, whose sum each stem is.
        Any may be missing: it is silent, and a mixture is the sum of the others. None: five stems
        in the layout of MUSDB18 or MUSDB18-HQ.
    """

    name: str
    split: str
    path: Path
    stems: Mapping[str, tuple[str, ...]] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether each stem has a file, rather than a stream of one ``.stem.mp4``."""
        return not self.path.name.endswith(STEM_SUFFIX)

    def sounds(self) -> list[Path]:
        """Audio files of its folder."""
        with contextlib.suppress(OSError):  # whoever opens them says what is wrong
            paths = (path for path in sorted(self.path.iterdir()) if path.name[0] != ".")
            return [path for path in paths if path.suffix.lower() in SUFFIXES]
        return []

    def files(self) -> dict[str, list[Path]]:
        """The files of each stem of :data:`STEMS`; of several of one name, the last."""
        if not self.is_folder:
            return {stem: [self.path] for stem in STEMS}
        found = {path.stem.lower(): path for path in self.sounds()}
        if self.stems is None:
            return {stem: [found.get(stem, self.path / f"{stem}.wav")] for stem in STEMS}
        names = {stem: self.stems.get(stem, (stem,)) for stem in STEMS}
        return {
            stem: [found[name.lower()] for name in each if name.lower() in found]
            for stem, each in names.items()
        }


def corpus_root(settings: Profile) -> Path:
    """Folder that holds ``train`` and ``test``.

    Raises
    ------
    ConfigError
        If a profile that reads a folder of its user's is used without ``MUSDB=/path``.
    """
    if settings.data.source in ("rendered", "musdb7s"):
        return settings.paths.corpus
    given = os.environ.get("CUNET_MUSDB")
    if not given:
        raise ConfigError(
            f"Profile {settings.name} reads a folder of tracks; say where it is by "
            "MUSDB=/path/to/musdb18."
        )
    return folder(given)


def list_sources(settings: Profile) -> list[Source]:
    """All tracks with their split, in a fixed order.

    Raises
    ------
    ConfigError
        One line per problem of :func:`find_sources`.
    """
    sources, problems = find_sources(settings)
    refuse(corpus_root(settings), problems)
    return sources


def find_sources(settings: Profile) -> tuple[list[Source], list[str]]:
    """Tracks of both subsets by names alone, train first, and a line for each problem of the names.

    Validation tracks are taken out of the train subset: those that the profile names, or as many
    as it says, spread evenly over the sorted names.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    root, data = corpus_root(settings), settings.data
    origin = {
        "rendered": "run the corpus notebook",
        "musdb7s": f"delete {root}, and it will be fetched again",
    }.get(data.source, "MUSDB must name the folder that holds train and test")
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root}; {origin}.")
    stems = (data.stems or {}) if data.source == "folder" else None
    problems = []
    if data.test:
        found = scan(root, "train", stems)
        sources = [each for each in found if each.name not in data.test]
        sources += [replace(each, split="test") for each in found if each.name in data.test]
        problems += _unknown("data.test", data.test, found)
    else:
        sources = [each for subset in SUBSETS for each in scan(root / subset, subset, stems)]
    for subset in SUBSETS:
        if not data.test and not (root / subset).is_dir():
            problems.append(f"{subset}: the folder is missing; {origin}.")
        elif subset not in {source.split for source in sources}:
            problems.append(
                f"{subset}: holds neither folders of WAV files nor *{STEM_SUFFIX} files; {origin}."
            )
    problems += [
        f"{source.path}: its name is no text in UTF-8; rename it."
        for source in sources
        if source.name != source.name.encode("utf-8", "replace").decode()
    ]
    folders = sum(source.is_folder for source in sources)
    if 0 < folders < len(sources):
        problems.append(
            f"{len(sources) - folders} *{STEM_SUFFIX} files and {folders} folders are mixed; "
            "keep either MUSDB18 or MUSDB18-HQ in one place."
        )
    train = [source for source in sources if source.split == "train"]
    twice = {each.name for each in sources if each.split == "test"} & {each.name for each in train}
    problems += [f"{name}: lies in train and in test; remove one." for name in sorted(twice)]
    valid, wrong = _held_out(train, data.validation)
    split = [
        replace(each, split="valid") if each.split == "train" and each.name in valid else each
        for each in sources
    ]
    return split, problems + wrong


def refuse(root: Path, problems: Sequence[str]) -> None:
    """Raise a ConfigError with a line for each problem of a corpus, if there is any."""
    if problems:
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        lines = [problem.replace(f"{root}{os.sep}", "") for problem in problems]
        raise ConfigError(f"The corpus {root} has {many}:", *lines)


def scan(folder: Path, split: str, stems: Mapping | None = None) -> list[Source]:
    """Tracks of a folder by name: each folder in it, and each file ``*.stem.mp4``."""
    sources = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.name in LEFT_BEHIND:
            continue
        if path.is_dir() or path.name.endswith(STEM_SUFFIX):
            sources.append(Source(path.name.removesuffix(STEM_SUFFIX), split, path, stems))
    return sources


def _held_out(
    train: Sequence[Source], validation: int | Sequence[str]
) -> tuple[set[str], list[str]]:
    """Names of the validation tracks among those to train on, and a line if that cannot be."""
    names, many = [source.name for source in train], len(train)
    if not names:
        return set(), []
    if isinstance(validation, int):
        if validation >= many:
            return set(), [
                f"train: data.validation = {validation} leaves no training track of {many}; "
                "lower it in the profile, or add tracks."
            ]
        places = np.linspace(0, many, validation, endpoint=False).astype(int)
        return {names[place] for place in places}, []
    wrong = _unknown("train: data.validation", validation, train)
    if set(validation) == set(names):
        wrong = [f"train: data.validation names all {many} tracks; leave some to train on."]
    return set(validation), wrong


def _unknown(setting: str, names: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """A line that names the tracks of a setting that do not exist."""
    unknown = ", ".join(sorted(set(names) - {source.name for source in sources}))
    remedy = "add them, or name others in the profile"
    return [f"{setting} names tracks that do not exist: {unknown}; {remedy}."] if unknown else []


def open_stems(
    source: Source, rate: int | None = None, channels: int | None = None
) -> tuple[dict[str, list[AudioFile]], list[str]]:
    """Headers of the files of each stem, and a line for each problem with them.

    Parameters
    ----------
    rate, channels
        What all stems of MUSDB18 must have; what the mixture has if not given. Stems of a user's
        own may differ in both, and in length: a shorter one is silent at its end.
    """
    stems, problems = {stem: [] for stem in STEMS}, []
    if source.is_folder:
        for stem, paths in source.files().items():
            for path in paths:
                try:
                    stems[stem].append(open_audio(path))
                except ConfigError as error:
                    problems.append(str(error))
    else:
        problems = _open_stem_file(source.path, stems)
    files = [(stem, file) for stem, each in stems.items() for file in each]
    slack = 0 if source.is_folder else CODEC_FRAME
    longest = max((file.frames for _, file in files), default=0)
    for stem, file in files:
        like = stems["mixture"][0] if stems["mixture"] else file
        name = f"{file.path}, {stem} (stream {file.streams[0]})," if file.streams else file.path
        own = source.stems is not None
        if not own and file.rate != (wanted := rate or like.rate):
            problems.append(f"{name} has {file.rate} Hz instead of {wanted}; resample it.")
        if not own and file.channels != (wanted := channels or like.channels):
            number = "1 channel" if file.channels == 1 else f"{file.channels} channels"
            problems.append(f"{name} has {number} instead of {wanted}; take the original file.")
        if not 0 < file.frames <= LONGEST_SECONDS * file.rate:
            lossy = file.path.suffix.lower() in (".mp3", ".ogg", ".opus")
            told = "is no WAV or FLAC; convert it" if lossy else "holds no audio; copy it again"
            problems.append(f"{name} {told}.")
        elif not own and longest - file.frames > slack:
            problems.append(
                f"{name} is {longest - file.frames} samples shorter than the longest stem; "
                "copy or unpack it again."
            )
    if not any(stems[name] for name in INSTRUMENTS) and not problems:
        problems.append(
            f"{source.path}: no file in it is named after a stem ({', '.join(INSTRUMENTS)}); "
            "say in the profile which files are which, in data.stems."
        )
    return stems, problems


def _open_stem_file(path: Path, stems: dict[str, list[AudioFile]]) -> list[str]:
    """Add the streams of a MUSDB18 stem file to the stems; returns problems."""
    try:
        if not path.stat().st_size:
            raise ValueError("an empty file")
        if not (found := probe(path, *MOV)["streams"]):
            raise ValueError("no streams")
        audio = {int(each["index"]): each for each in found if each["codec_type"] == "audio"}
        for stem, number in STEM_NUMBERS.items():
            if number in audio:
                stems[stem] = [replace(from_stream(path, audio[number]), streams=(number,))]
    except ConfigError as error:
        return [str(error)]
    except (OSError, ValueError, LookupError, TypeError):
        return [f"{path} cannot be read as a MUSDB18 stem file; copy or unpack it again."]
    lacking = [f"{stem} ({number})" for stem, number in STEM_NUMBERS.items() if not stems[stem]]
    lacks = f"lacks the audio streams {', '.join(lacking)}"
    return [f"{path} {lacks}; copy or unpack it again."] if lacking else []


def read_mono(
    file: AudioFile, rate: int, start: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """A file, or a stretch of it, as ``(samples,)`` float32 at a rate.

    Channels are averaged, then resampled with soxr at its high quality. Errors are those of
    :meth:`cunet_lib.signal.audio.AudioFile.blocks`.
    """
    blocks = [np.zeros(0, np.float32)]
    if not file.frames or start * file.rate < file.frames:
        blocks += [downmix(block) for block in file.blocks(start, seconds)]
    audio = np.concatenate(blocks)
    return soxr.resample(audio, file.rate, rate, quality="HQ") if len(audio) else audio


def mixed(parts: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Stems ``(5, samples)`` float32 in the order of :data:`STEMS`, as long as the longest part.

    A stem is the sum of its parts ``(samples,)``, silence without any; a mixture without parts is
    the sum of the other stems. Parts may have channels: ``(samples, channels)``.
    """
    shape = max(part.shape for each in parts.values() for part in each)
    stems = np.zeros((len(STEMS), *shape), np.float32)
    for stem, name in zip(stems, STEMS, strict=True):
        for part in parts[name]:
            stem[: len(part)] += part
    if not parts["mixture"]:
        stems[0] = stems[1:].sum(axis=0)
    return stems


def _stems(source: Source, read: Callable[[AudioFile], np.ndarray]) -> np.ndarray:
    stems, problems = open_stems(source)
    if problems:
        raise ConfigError(problems[0])
    return mixed({stem: [read(file) for file in files] for stem, files in stems.items()})


def decode(source: Source, sample_rate: int) -> np.ndarray:
    """Mono stems of a track at the study rate.

    Returns
    -------
    numpy.ndarray
        ``(5, samples)`` float32 in the order of :data:`STEMS`.

    Raises
    ------
    ConfigError
        If the stems of MUSDB18 differ in length or rate, or any is empty or cut short, holds values
        that are not finite, or cannot be read.
    """
    return _stems(source, lambda file: read_mono(file, sample_rate))


class Originals:
    """A corpus's tracks in stereo at a rate of choice, read when asked for.

    They are found by :meth:`split` and :meth:`audio`, as in a store.
    """

    def __init__(self, settings: Profile, rate: int):
        self._sources, self.rate = list_sources(settings), rate

    def split(self, name: str) -> list[Source]:
        """Tracks of a split: ``train``, ``valid`` or ``test``."""
        return [source for source in self._sources if source.split == name]

    def audio(self, source: Source) -> np.ndarray:
        """Stems ``(5, samples, 2)`` float32 of a track; errors as of :func:`decode`."""

        def read(file: AudioFile) -> np.ndarray:
            audio = np.concatenate([*file.blocks()])[:, np.arange(2) % file.channels]
            return soxr.resample(audio, file.rate, self.rate, quality="HQ")

        return _stems(source, read)
