"""A song as plain data: notes, layers, sections; and the random streams that it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SUBSETS = ("train", "test")
STEMS = ("drums", "bass", "other", "vocals")
STREAMS = ("form", "harmony", "drums", "bass", "other", "vocals", "mix", "sound")


@dataclass(frozen=True)
class Syllable:
    """One sung syllable: onset consonant, vowel (two for a diphthong), coda; ``""`` for none."""

    onset: str
    vowel: tuple[str, ...]
    coda: str


@dataclass(frozen=True)
class Note:
    """A note: start and duration in seconds, MIDI pitch, velocity in 0..1.

    ``bend`` is the pitch in semitones that the note starts from, relative to its own.
    """

    start: float
    duration: float
    pitch: float
    velocity: float
    bend: float = 0.0
    syllable: Syllable | None = None


@dataclass(frozen=True)
class Sound:
    """What plays a layer: ``kind`` is font, kit, machine, patch or voice."""

    kind: str
    name: str
    program: int = -1


@dataclass(frozen=True)
class Layer:
    """Notes for one instrument of a stem. ``level`` in dB, ``pan`` from -1 to 1."""

    stem: str
    role: str
    sound: Sound
    notes: tuple[Note, ...]
    level: float = 0.0
    pan: float = 0.0
    drive: float = 0.0


@dataclass(frozen=True)
class Section:
    """Bars ``first`` to ``first + bars``, the stems that play in them, and where that lies (s)."""

    name: str
    first: int
    bars: int
    start: float
    end: float
    parts: frozenset[str]

    @property
    def span(self) -> range:
        """Numbers of its bars."""
        return range(self.first, self.first + self.bars)


@dataclass(frozen=True)
class Song:
    """Everything that :func:`rendered_corpus.mix.render` needs to play a song."""

    name: str
    subset: str
    index: int
    seed: int
    seconds: float
    style: str
    meter: str
    tempo: float
    swing: float
    key: str
    progressions: tuple[str, ...]
    sections: tuple[Section, ...]
    layers: tuple[Layer, ...]
    voices: tuple[str, ...]
    levels: dict[str, float]

    @property
    def programs(self) -> tuple[int, ...]:
        """General MIDI programs of the pitched layers, ascending."""
        played = {x.sound.program for x in self.layers if x.sound.kind == "font"}
        return tuple(sorted(played))

    @property
    def kit(self) -> str:
        """Names of the drum sources, joined by ``+``."""
        return " + ".join(sorted({x.sound.name for x in self.layers if x.stem == "drums"}))

    @property
    def patches(self) -> tuple[str, ...]:
        """Names of the synthetic instruments."""
        return tuple(sorted({x.sound.name for x in self.layers if x.sound.kind == "patch"}))


def stream(seed: int, subset: str, index: int, name: str) -> np.random.Generator:
    """Random generator of (seed, subset, song index, stream name), independent of all others."""
    key = (SUBSETS.index(subset), index, STREAMS.index(name))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def rotating(seed: int, subset: str, key: int, index: int, choices: Sequence[Any]) -> Any:
    """One of the choices; each comes up once before any comes twice, however many songs there are.

    ``key`` numbers what is chosen, so that two kinds of choice are independent.
    """
    turn, place = divmod(index, len(choices))
    spawn = (SUBSETS.index(subset), 1000 + key, turn)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn))
    return choices[int(rng.permutation(len(choices))[place])]
