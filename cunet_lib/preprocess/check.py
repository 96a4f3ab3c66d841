"""Is a corpus what it should be? Every problem at once, by file, before anything is decoded.

MUSDB18 comes as 150 ``.stem.mp4`` files, MUSDB18-HQ as 150 folders of five WAV files; both layouts
are recognised, and a folder of one's own has either, or any of the stems in any format. Headers are
read first, over all tracks; then short excerpts of every track whose headers are in order are
decoded, to hear whether files are cut short and whether the stems add up to the mixture.
"""

from __future__ import annotations

import shutil
import socket
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
    STEMS,
    SUBSETS,
    Source,
    corpus_root,
    find_sources,
    mixed,
    open_stems,
    read_mono,
    refuse,
)
from cunet_lib.signal.audio import SHORTAGE_SECONDS, AudioFile, ensure_ffmpeg

RATE = 44100
CHANNELS = 2
INDEX = "corpus.json"

EXCERPT_SECONDS = 2.0
EXCERPT_PLACES = (0.25, 0.5, 1.0)
"""Where in a track excerpts are decoded, as shares of what an excerpt leaves; 1 is its end."""

SUM_LIMITS = {True: (3e-3, 0.05), False: (0.2, 0.5)}
"""Error of the stems' sum relative to the mixture (root of the ratio of energies, over a track's
excerpts), for WAV or FLAC, and for what ffmpeg decodes: worth a remark, and a problem.

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
    """A track's name, its subset (``train`` or ``test``), and the seconds of its longest stem."""

    name: str
    subset: str
    seconds: float


@dataclass(frozen=True)
class Layout:
    """A corpus whose headers are in order.

    Attributes
    ----------
    format
        ``"folders of stems"`` (MUSDB18-HQ, or one's own) or ``"stem files"`` (MUSDB18).
    tracks
        Train first, by name.
    remarks
        What is unusual, one line each.
    """

    format: str
    tracks: tuple[Track, ...]
    remarks: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line: format, tracks and minutes of each subset."""
        parts = []
        for subset in SUBSETS:
            lengths = [track.seconds for track in self.tracks if track.subset == subset]
            parts.append(f"{subset} {len(lengths)} tracks, {sum(lengths) / 60:.1f} min")
        return f"{self.format}: {'; '.join(parts)}."


def check_corpus(settings: Profile, *, report: Callable[[str], None] = print) -> Layout:
    """Fetch the corpus if the profile says so, check all of it, and note in it what was found.

    ``report`` gets one line per remark.

    Raises
    ------
    ConfigError
        As :func:`read_layout`, and nothing has been changed then; or as :func:`fetch_excerpts`.
    """
    if settings.data.source == "musdb7s":
        fetch_excerpts(corpus_root(settings))
    layout = read_layout(settings, sums=True)
    for remark in layout.remarks:
        report(f"remark: {printable(remark)}")
    if settings.data.source != "rendered":
        # The rendered corpus has a record of its own under this name.
        record = {"format": layout.format, "tracks": [asdict(track) for track in layout.tracks]}
        write_json(settings.paths.corpus / INDEX, record)
    return layout


def read_layout(settings: Profile, *, sums: bool = False) -> Layout:
    """Check a corpus by names and headers, with ``sums`` by excerpts too.

    Raises
    ------
    ConfigError
        One line per problem, each with its file and remedy; or as
        :func:`cunet_lib.preprocess.tracks.find_sources`.
    """
    sources, problems = find_sources(settings)
    with ThreadPoolExecutor(cores()) as threads:
        headers = list(threads.map(lambda source: open_stems(source, RATE, CHANNELS), sources))
        problems += [line for _, found in headers for line in found]
        sound = [
            (source, stems)
            for source, (stems, found) in zip(sources, headers, strict=True)
            if not found
        ]
        remarks = list(_unusual(settings, sources, [stems for _, stems in sound]))
        if sums and sound:
            heard = threads.map(_listen, *zip(*sound, strict=True))
            for about, wrong in progress(heard, "tracks checked", len(sound)):
                remarks += about
                problems += wrong
    refuse(corpus_root(settings), problems)
    tracks = tuple(
        Track(
            source.name,
            "test" if source.split == "test" else "train",
            max(file.frames / file.rate for files in stems.values() for file in files),
        )
        for source, stems in sound
    )
    form = "folders of stems" if any(each.is_folder for each in sources) else "stem files"
    return Layout(form, tracks, tuple(remarks))


def _unusual(settings: Profile, sources: list[Source], stems: list[dict]) -> Iterator[str]:
    """Remarks on numbers of tracks, and on files of the user's own that are no stem, or lack."""
    data = settings.data
    wanted = {"rendered": (data.train_tracks, data.test_tracks), "musdb18": (100, 50)}
    for subset, number in zip(SUBSETS, wanted.get(data.source, ()), strict=False):
        found = sum((source.split == "test") == (subset == "test") for source in sources)
        if found != number:
            yield (
                f"{subset}: {found} tracks instead of {number}; "
                "scores will not compare with those of the whole data set."
            )
    if data.source != "folder" or not stems:
        return
    for stem in STEMS[1:]:
        if lacking := sum(not each[stem] for each in stems):
            yield f"{stem}: {lacking} of {len(stems)} tracks have none; it is silent there."
    used = {path for source in sources for files in source.files().values() for path in files}
    left = Counter(p.name for source in sources for p in source.sounds() if p not in used)
    for name, number in sorted(left.items()):
        yield f"{name} of {number} tracks is no stem of the study and left out; see data.stems."


def _listen(source: Source, stems: dict[str, list[AudioFile]]) -> tuple[list[str], list[str]]:
    """Decode excerpts of a track, the last of them its end, and add up their stems.

    Returns
    -------
    remarks, problems
        At most one line of either.
    """
    files = [file for each in stems.values() for file in each]
    seconds = max(file.frames / file.rate for file in files)
    length = min(EXCERPT_SECONDS, seconds)
    error = energy = samples = 0.0
    # The stretches may overlap in a short track.
    for place in EXCERPT_PLACES:
        # A multiple of 1/25 s is a whole number of samples at every usual rate.
        start = int(25 * place * (seconds - length)) / 25
        try:
            parts = {s: [read_mono(f, RATE, start, length) for f in fs] for s, fs in stems.items()}
        except ConfigError as damage:
            return [], [str(damage)]
        read = [len(part) / RATE for each in parts.values() for part in each]
        for file, heard in zip(files, read, strict=True):
            if heard < min(length, file.frames / file.rate - start) - SHORTAGE_SECONDS:
                return [], [f"{file.path} cannot be decoded to its end; copy or unpack it again."]
        audio = mixed(parts).astype(float)
        error += float(np.sum((audio[0] - audio[1:].sum(axis=0)) ** 2))
        energy += float(np.sum(audio[0] ** 2)) + float(np.sum(audio[1:] ** 2))
        samples += audio[0].size
    # Mixture and stems count half each, so that a silent mixture is no way out.
    ratio = (error / (energy / 2)) ** 0.5 if energy > 0 else 0.0
    remark, problem = SUM_LIMITS[all(file.decoder == "libsndfile" for file in files)]
    if ratio <= remark or (error / samples) ** 0.5 <= INAUDIBLE:
        return [], []
    line = f"{source.path}: its stems miss the mixture by {ratio:.0%}"
    if source.name in ERRATA:
        return [f"{line}, and no wonder: {ERRATA[source.name]}."], []
    if ratio <= problem:
        return [f"{line}, more than its format explains."], []
    return [], [f"{line}; a stem is wrong or out of step, copy or unpack them again."]


def fetch_excerpts(root: Path) -> None:
    """Let ``musdb`` fetch its 7-second excerpts of MUSDB18 into ``root``, unless they are there.

    They are unpacked elsewhere and moved, so that an interrupted fetch is made again.

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
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60.0)  # musdb itself would wait for ever
    try:
        # No subsets: the files are fetched, and read later by those who need them.
        musdb.DB(root=str(partial), download=True, subsets=[])
        shutil.rmtree(root, ignore_errors=True)
        partial.replace(root)
    except (OSError, HTTPException, zipfile.BadZipFile, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        cause = " ".join(str(getattr(reason, "strerror", None) or reason).split()).rstrip(".")
        raise ConfigError(
            "The 7-second excerpts of MUSDB18 could not be fetched "
            f"({cause or type(error).__name__}); this profile needs a network the first time."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(partial, ignore_errors=True)
