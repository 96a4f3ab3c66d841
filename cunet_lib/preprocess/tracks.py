"""Tracks of a corpus: where they are, how they are split, and their sound.

``musdb`` and ``stempeg`` set the layout and the values, which tests hold; they do not read tracks
here. They start ffmpeg for every WAV file, wait for it without end, let it open whatever a file
refers to, take a file that is cut short for a shorter one, and hold all stems of a track at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr

from cunet_lib.core.settings import ConfigError, Profile
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
    files
        The files that hold it: five WAV files, or one ``.stem.mp4``.
    """

    name: str
    split: str
    files: tuple[Path, ...]
    is_wav: bool

    @property
    def label(self) -> Path:
        """What people find of it on disk: its folder, or its stem file."""
        return self.files[0].parent if self.is_wav else self.files[0]


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
    return Path(given).expanduser().resolve()


def list_sources(settings: Profile) -> list[Source]:
    """All tracks with their split, in a fixed order.

    Validation tracks are taken out of the train subset: those that the profile names, or as many
    as it says, spread evenly over the sorted names.

    Raises
    ------
    ConfigError
        One line per problem of :func:`find_sources`.
    """
    sources, problems = find_sources(settings)
    refuse(corpus_root(settings), problems)
    names = [source.name for source in sources if source.split == "train"]
    valid = held_out(names, settings.data.validation)
    return [
        replace(source, split="valid")
        if source.split == "train" and source.name in valid
        else source
        for source in sources
    ]


def find_sources(settings: Profile) -> tuple[list[Source], list[str]]:
    """Tracks of both subsets by names alone, train first, and a line for each problem of the names.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    root = corpus_root(settings)
    origin = {
        "rendered": "run the corpus notebook",
        "musdb7s": f"delete {root}, and it will be fetched again",
    }.get(settings.data.source, "MUSDB must name the folder that holds train and test")
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root}; {origin}.")
    sources, problems = [], []
    for subset in SUBSETS:
        found = scan(root, subset)
        sources += found
        if not (root / subset).is_dir():
            problems.append(f"{subset}: the folder is missing; {origin}.")
        elif not found:
            problems.append(
                f"{subset}: holds neither folders of WAV files nor *{STEM_SUFFIX} files; {origin}."
            )
    train = [source.name for source in sources if source.split == "train"]
    problems += [
        f"{source.label}: its name is no text in UTF-8; rename it."
        for source in sources
        if source.name != source.name.encode("utf-8", "replace").decode()
    ]
    wavs = sum(source.is_wav for source in sources)
    if 0 < wavs < len(sources):
        problems.append(
            f"{len(sources) - wavs} *{STEM_SUFFIX} files and {wavs} folders are mixed; "
            "keep either MUSDB18 or MUSDB18-HQ in one place."
        )
    twice = {source.name for source in sources if source.split == "test"}.intersection(train)
    problems += [f"{name}: lies in train and in test; remove one." for name in sorted(twice)]
    if train:
        try:
            held_out(train, settings.data.validation)
        except ConfigError as error:
            problems.append(f"train: {error}")
    return sources, problems


def refuse(root: Path, problems: Sequence[str]) -> None:
    """Raise a ConfigError with a line for each problem of a corpus, if there is any."""
    if problems:
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        lines = [problem.replace(f"{root}{os.sep}", "") for problem in problems]
        raise ConfigError(f"The corpus {root} has {many}:", *lines)


def scan(root: Path, subset: str) -> list[Source]:
    """Tracks of one folder, ``train`` or ``test``, as found; whether their files exist is not seen.

    A folder is a track of five WAV files, a file ``*.stem.mp4`` a track of five streams; anything
    else is no track.
    """
    folder = root / subset
    sources = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            files = tuple(path / f"{stem}.wav" for stem in STEMS)
            sources.append(Source(path.name, subset, files, True))
        elif path.name.endswith(STEM_SUFFIX):
            name = path.name.removesuffix(STEM_SUFFIX)
            sources.append(Source(name, subset, (path,), False))
    return sources


def held_out(names: Sequence[str], validation: int | Sequence[str]) -> set[str]:
    """Names of the validation tracks among those of the train folder.

    Raises
    ------
    ConfigError
        If none would be left to train on, or a named track does not exist.
    """
    if isinstance(validation, int):
        if validation >= len(names):
            raise ConfigError(
                f"data.validation = {validation} leaves no training track of {len(names)}; "
                "lower it in the profile, or add tracks."
            )
        places = np.linspace(0, len(names), validation, endpoint=False).astype(int)
        return {names[place] for place in places}
    unknown = sorted(set(validation) - set(names))
    if unknown:
        raise ConfigError(
            f"data.validation names tracks that do not exist: {', '.join(unknown)}; "
            "add them, or name others in the profile."
        )
    if set(validation) == set(names):
        raise ConfigError(f"data.validation names all {len(names)} tracks; leave some to train on.")
    return set(validation)


def open_stems(
    source: Source, rate: int | None = None, channels: int | None = None
) -> tuple[dict[str, AudioFile], list[str]]:
    """Headers of a track's stems, and a line for each problem with them.

    Parameters
    ----------
    rate, channels
        What all stems must have; what the mixture has if not given.
    """
    stems, problems = {}, []
    if source.is_wav:
        for stem, path in zip(STEMS, source.files, strict=True):
            try:
                stems[stem] = open_audio(path)
            except ConfigError as error:
                problems.append(str(error))
    else:
        stems, problems = _open_stem_file(source.files[0])
    slack = 0 if source.is_wav else CODEC_FRAME
    longest = max((file.frames for file in stems.values()), default=0)
    for stem, file in stems.items():
        like = stems.get("mixture", file)
        name = f"{file.path}, {stem} (stream {file.streams[0]})," if file.streams else file.path
        if file.rate != (wanted := rate or like.rate):
            problems.append(f"{name} has {file.rate} Hz instead of {wanted}; resample it.")
        if file.channels != (wanted := channels or like.channels):
            number = "1 channel" if file.channels == 1 else f"{file.channels} channels"
            problems.append(f"{name} has {number} instead of {wanted}; take the original file.")
        if not 0 < file.frames <= LONGEST_SECONDS * file.rate:
            problems.append(f"{name} holds no audio; copy or unpack it again.")
        elif longest - file.frames > slack:
            problems.append(
                f"{name} is {longest - file.frames} samples shorter than the longest stem; "
                "copy or unpack it again."
            )
    return stems, problems


def _open_stem_file(path: Path) -> tuple[dict[str, AudioFile], list[str]]:
    try:
        if not path.stat().st_size:
            raise ValueError("an empty file")
        found = probe(path, *MOV)["streams"]
        audio = {int(each["index"]): each for each in found if each["codec_type"] == "audio"}
        stems = {
            stem: replace(
                from_stream(path, audio[STEM_NUMBERS[stem]]), streams=(STEM_NUMBERS[stem],)
            )
            for stem in STEMS
            if STEM_NUMBERS[stem] in audio
        }
    except ConfigError as error:
        return {}, [str(error)]
    except (OSError, ValueError, LookupError, TypeError):
        return {}, [f"{path} cannot be read as a MUSDB18 stem file; copy or unpack it again."]
    missing = [f"{stem} ({number})" for stem, number in STEM_NUMBERS.items() if stem not in stems]
    if missing:
        lacks = f"lacks the audio streams {', '.join(missing)}"
        return stems, [f"{path} {lacks}; copy or unpack it again."]
    return stems, []


def stem_blocks(
    source: Source, stems: dict[str, AudioFile], start: float = 0.0, seconds: float | None = None
) -> Iterator[np.ndarray]:
    """Blocks of a track: its stems side by side, ``(5, frames, channels)`` float32.

    Parameters and errors are those of :meth:`cunet_lib.signal.audio.AudioFile.blocks`; ``stems`` is
    what :func:`open_stems` found without problems.
    """
    files = list(stems.values())
    if source.is_wav:
        try:
            for block in zip(*(file.blocks(start, seconds) for file in files), strict=True):
                yield np.stack(block)
        except ConfigError:
            raise
        except ValueError as error:  # only a format other than WAV keeps its length to itself
            raise ConfigError(
                f"The stems of {source.label} differ in length; copy or unpack it again."
            ) from error
        return
    # All streams in one pass of ffmpeg, which ends with the shortest.
    channels = files[0].channels
    merged = replace(
        files[0],
        channels=channels * len(files),
        frames=min(file.frames for file in files),
        streams=tuple(STEM_NUMBERS[stem] for stem in STEMS),
    )
    for block in merged.blocks(start, seconds):
        yield block.reshape(len(block), len(files), channels).transpose(1, 0, 2)


def decode(source: Source, sample_rate: int) -> np.ndarray:
    """Mono stems of a track at the study rate.

    Channels are averaged, then resampled with soxr at its high quality.

    Returns
    -------
    numpy.ndarray
        ``(5, samples)`` float32 in the order of :data:`STEMS`.

    Raises
    ------
    ConfigError
        If the stems differ in length or rate, are empty or cut short, hold values that are not
        finite, or cannot be read. Streams of a stem file that differ by less than a frame of the
        codec are cut to the shortest.
    """
    stems, problems = open_stems(source)
    if problems:
        raise ConfigError(problems[0])
    blocks = [np.stack([downmix(part) for part in block]) for block in stem_blocks(source, stems)]
    rate = stems["mixture"].rate
    return np.stack(
        [
            soxr.resample(np.concatenate(stem), rate, sample_rate, quality="HQ")
            for stem in zip(*blocks, strict=True)
        ]
    )
