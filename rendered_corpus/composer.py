"""Songs of the rendered corpus as plain data: form, chords, drums, bass, other parts and vocals.

:func:`compose` is a pure function of its arguments: every part of every song draws from its own
stream, spawned from the seed, the subset, the song's index and the part's name, so the songs of a
small corpus are the first songs of a large one. Nothing here makes sound; ``synth`` does.

Train and test songs use disjoint General MIDI programs, drum kits, synthetic instruments, singers
and chord progressions. The tables below hold that, one entry per subset, and a test checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

SUBSETS = ("train", "test")
STEMS = ("drums", "bass", "other", "vocals")
STREAMS = ("form", "harmony", "drums", "bass", "other", "vocals", "mix", "sound")

MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
}
PITCH_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

PROGRESSIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("major", "I V vi IV"),
        ("major", "I IV V IV"),
        ("major", "I vi IV V"),
        ("major", "I IV vi V"),
        ("major", "I iii IV V"),
        ("major", "IVmaj7 V iii7 vi"),
        ("major", "vi V IV V"),
        ("major", "I V ii IV"),
        ("major", "I ii IV I"),
        ("major", "Imaj7 IVmaj7"),
        ("major", "Imaj7 vi7 ii7 V7"),
        ("major", "ii7 V7 Imaj7 Imaj7"),
        ("major", "Iadd9 IVadd9 vi7 Vsus4"),
        ("major", "I I IV iv"),
        ("major", "I III7 vi IV"),
        ("mixolydian", "I bVII IV I"),
        ("mixolydian", "I bVII IV bVII"),
        ("mixolydian", "I7 I7 IV7 I7 V7 IV7 I7 V7"),
        ("mixolydian", "I9 IV9"),
        ("mixolydian", "I5 bIII5 IV5 I5"),
        ("minor", "i bVI bIII bVII"),
        ("minor", "i bVII bVI bVII"),
        ("minor", "i iv bVI V7"),
        ("minor", "i bVI iv V7"),
        ("minor", "i i bVI bVII"),
        ("minor", "i7 iv7 i7 v7"),
        ("minor", "i5 bVI5 bVII5 i5"),
        ("minor", "iadd9 bVImaj7"),
        ("dorian", "i7 IV7"),
        ("dorian", "i bIII bVII IV"),
        ("phrygian", "i bII i bvii"),
        ("phrygian", "i5 i5 bII5 bIII5"),
    ),
    "test": (
        ("major", "I iii vi IV"),
        ("major", "I IV ii V"),
        ("major", "Imaj7 iii7 IVmaj7 iv6"),
        ("major", "vi ii V I"),
        ("major", "IVadd9 Iadd9 Vsus4 IVadd9"),
        ("mixolydian", "I7 bVII7 IV7 IV7"),
        ("mixolydian", "I5 bVII5 bIII5 IV5"),
        ("minor", "i v bVI bIII"),
        ("minor", "i7 bVII7 bVImaj7 V7"),
        ("minor", "i bIII iv bVI"),
        ("minor", "i5 bIII5 bVII5 iv5"),
        ("dorian", "i7 ii7 bIIImaj7 ii7"),
        ("phrygian", "i bIII bII bII"),
    ),
}

PROGRAMS: dict[str, dict[str, tuple[int, ...]]] = {
    "train": {
        "piano": (0, 3, 6),
        "epiano": (4, 7),
        "mallet": (8, 9, 11, 12, 15, 108, 114),
        "organ": (16, 18, 19, 21, 22),
        "acoustic": (24, 25),
        "clean": (27, 28),
        "driven": (30,),
        "strings": (40, 42, 44, 48, 50),
        "pizzicato": (45, 46),
        "brass": (56, 57, 60, 61, 62),
        "reed": (64, 66, 68, 71),
        "pipe": (72, 73, 75, 78),
        "lead": (80, 81, 84, 87),
        "pad": (88, 89, 90, 95, 99),
        "folk": (104, 105, 107),
        "bass": (32, 33, 34, 36, 38),
        "choir": (52,),
    },
    "test": {
        "piano": (2,),
        "epiano": (5,),
        "mallet": (10, 13, 14),
        "organ": (17, 20, 23),
        "acoustic": (26,),
        "clean": (26,),
        "driven": (29,),
        "strings": (41, 49, 51),
        "pizzicato": (106,),
        "brass": (58, 59, 63),
        "reed": (65, 69, 70),
        "pipe": (74, 76, 77),
        "lead": (82, 83, 86),
        "pad": (92, 93, 100),
        "folk": (106, 110),
        "bass": (35, 37, 39),
        "choir": (53,),
    },
}
"""General MIDI programs by family. 0 and 1, 85 and 91 (which share samples) are used sparingly."""

KITS: dict[str, tuple[int, ...]] = {"train": (0, 8, 24, 25, 48), "test": (16, 40)}
"""Drum kits of the SoundFont: standard, room, electronic, 808, orchestra; power, brush."""

MACHINES: dict[str, tuple[str, ...]] = {
    "train": ("round", "tight", "dusty", "electro", "warehouse", "hollow", "snappy"),
    "test": ("boxy", "lunar", "gravel"),
}
PATCHES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "bass": ("saw bass", "square bass", "sub bass", "growl bass", "pluck bass"),
        "lead": ("saw lead", "square lead", "whistle lead", "sync lead"),
        "pad": ("wide pad", "soft pad", "choir-less pad"),
        "pluck": ("saw pluck", "bell pluck", "clav pluck"),
        "keys": ("tine keys", "drawbar keys"),
        "guitar": ("steel string", "muted string"),
    },
    "test": {
        "bass": ("pulse bass", "reese bass", "fm bass"),
        "lead": ("pulse lead", "fm lead"),
        "pad": ("pulse pad", "glass pad"),
        "pluck": ("square pluck", "kalimba pluck"),
        "keys": ("reed keys",),
        "guitar": ("bright string",),
    },
}
"""Our own synthetic instruments (their parameters live in ``synth``)."""


@dataclass(frozen=True)
class Voice:
    """A singer: register, vocal tract, glottis and habits.

    ``tract`` scales all formant frequencies (1 is an adult male), ``rd`` is the LF model's shape
    (0.4 pressed to 2.6 breathy; Fant 1995), ``vibrato`` is (Hz, cents, onset delay in seconds).
    """

    low: int
    high: int
    tract: tuple[float, float]
    rd: float
    breath: float
    vibrato: tuple[float, float, float]
    jitter: float = 0.006
    rasp: float = 0.0
    ring: float = 0.0
    drive: float = 0.0
    scoop: float = 0.3
    delivery: str = "sung"


VOICES: dict[str, dict[str, Voice]] = {
    "train": {
        "Bruno": Voice(40, 57, (0.86, 0.90), 0.9, 0.03, (5.2, 35, 0.30), ring=5.0),
        "Otto": Voice(41, 58, (0.86, 0.90), 1.4, 0.08, (4.8, 15, 0.40), jitter=0.009),
        "Karl": Voice(43, 60, (0.93, 0.97), 0.7, 0.02, (5.6, 40, 0.25), drive=0.3),
        "Dex": Voice(42, 56, (0.93, 0.97), 1.0, 0.04, (5.0, 0, 0.5), delivery="rap"),
        "Moss": Voice(45, 62, (0.93, 0.97), 1.9, 0.20, (5.0, 18, 0.35)),
        "Rusty": Voice(46, 64, (1.00, 1.04), 0.6, 0.06, (5.5, 25, 0.3), rasp=0.35, drive=0.5),
        "Leo": Voice(48, 67, (1.00, 1.04), 0.8, 0.02, (5.9, 45, 0.22), ring=3.0),
        "Vance": Voice(47, 65, (1.00, 1.04), 1.2, 0.05, (5.1, 22, 0.35)),
        "Ziggy": Voice(57, 76, (1.00, 1.04), 2.2, 0.14, (5.4, 30, 0.3), delivery="falsetto"),
        "Tariq": Voice(45, 60, (1.00, 1.04), 0.8, 0.03, (5.0, 0, 0.5), delivery="rap"),
        "Mona": Voice(52, 69, (1.09, 1.13), 1.3, 0.07, (5.3, 28, 0.33)),
        "Greta": Voice(53, 70, (1.09, 1.13), 0.7, 0.03, (5.7, 50, 0.2), ring=3.0),
        "Nell": Voice(54, 71, (1.09, 1.13), 2.1, 0.22, (4.9, 12, 0.4)),
        "Kay": Voice(55, 70, (1.09, 1.13), 0.9, 0.04, (5.0, 0, 0.5), delivery="rap"),
        "Alba": Voice(56, 74, (1.18, 1.23), 1.0, 0.05, (5.8, 38, 0.27)),
        "Roxy": Voice(56, 75, (1.18, 1.23), 0.5, 0.04, (6.1, 32, 0.25), rasp=0.2, drive=0.4),
        "Ida": Voice(58, 77, (1.18, 1.23), 1.7, 0.16, (5.2, 20, 0.35)),
        "Pip": Voice(60, 78, (1.30, 1.38), 1.2, 0.08, (5.0, 8, 0.5), jitter=0.008),
    },
    "test": {
        "Anton": Voice(42, 59, (0.905, 0.925), 1.1, 0.05, (5.4, 30, 0.3)),
        "Slate": Voice(44, 60, (0.975, 0.995), 0.8, 0.05, (5.0, 0, 0.5), delivery="rap"),
        "Hector": Voice(47, 66, (0.975, 0.995), 0.7, 0.03, (5.6, 38, 0.25), rasp=0.25, drive=0.4),
        "Finn": Voice(48, 66, (1.05, 1.08), 1.6, 0.13, (5.1, 20, 0.35)),
        "Della": Voice(53, 71, (1.05, 1.08), 0.9, 0.04, (5.7, 42, 0.25), ring=3.0),
        "June": Voice(55, 73, (1.14, 1.17), 1.2, 0.06, (5.5, 30, 0.3)),
        "Wren": Voice(56, 75, (1.14, 1.17), 1.9, 0.18, (5.0, 16, 0.4)),
        "Sunny": Voice(58, 76, (1.25, 1.29), 0.9, 0.05, (5.6, 25, 0.3)),
    },
}


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
    """What plays a layer: ``kind`` is font, kit, machine, patch, voice or choir."""

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


@dataclass(frozen=True)
class Song:
    """Everything that :func:`rendered_corpus.synth.render` needs to play a song."""

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
    beats: tuple[float, ...] = ()
    voices: tuple[str, ...] = ()
    levels: dict[str, float] = field(default_factory=dict)

    @property
    def programs(self) -> tuple[int, ...]:
        """General MIDI programs of the pitched layers, ascending."""
        return tuple(
            sorted({x.sound.program for x in self.layers if x.sound.kind in ("font", "choir")})
        )

    @property
    def kit(self) -> str:
        """Names of the drum sources, joined by ``+``."""
        names = {x.sound.name for x in self.layers if x.stem == "drums"}
        return " + ".join(sorted(names))

    @property
    def patches(self) -> tuple[str, ...]:
        """Names of the synthetic instruments."""
        return tuple(sorted({x.sound.name for x in self.layers if x.sound.kind == "patch"}))

    def stream(self, name: str) -> np.random.Generator:
        """Random stream of one concern of this song."""
        return stream(self.seed, self.subset, self.index, name)


def stream(seed: int, subset: str, index: int, name: str) -> np.random.Generator:
    """Random generator of (seed, subset, song index, stream name), independent of all others."""
    key = (SUBSETS.index(subset), index, STREAMS.index(name))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


# ---------------------------------------------------------------------------------------- styles


@dataclass(frozen=True)
class Style:
    """A genre's ranges and choices; ``swing`` is (level in steps, least, most)."""

    tempo: tuple[float, float]
    grooves: tuple[str, ...]
    keepers: tuple[str, ...]
    bass: tuple[str, ...]
    roles: tuple[str, ...]
    meter: str = "4/4"
    swing: tuple[int, float, float] = (2, 0.0, 0.0)
    machine: float = 0.2
    synth_bass: float = 0.2
    percussion: float = 0.2
    pace: str = "mid"
    rap: float = 0.0
    duck: float = 0.0
    fills: float = 0.7
    density: float = 1.0


STYLES: dict[str, Style] = {
    "rock": Style(
        (104, 148), ("rock", "drive"), ("hat8", "hat4", "ride8", "crash4"),
        ("root8", "pump", "follow"), ("power", "strum", "riff", "organ", "solo"), machine=0.05,
    ),
    "punk": Style(
        (150, 180), ("punk", "drive"), ("hat8", "ride4", "crash4"), ("root8", "pump"),
        ("power", "power", "solo"), machine=0.0, synth_bass=0.0, pace="fast",
    ),
    "indie": Style(
        (110, 140), ("rock", "four"), ("hat8", "hat16", "tamb8", "ride8"),
        ("root8", "arpeggio", "octave"), ("clean arp", "strum", "pad", "lead"), machine=0.2,
    ),
    "ballad": Style(
        (62, 84), ("ballad",), ("hat8", "ride8", "hat16", "rim8"), ("sustained", "follow"),
        ("keys", "pad", "strings", "arpeggio", "solo"), pace="slow", fills=0.6,
    ),
    "funk": Style(
        (92, 118), ("funk",), ("hat16", "hat8", "hatopen16"), ("syncopated", "slap"),
        ("clav", "stab", "scratch", "organ"), swing=(1, 0.0, 0.35), machine=0.1, percussion=0.5,
    ),
    "disco": Style(
        (112, 126), ("four",), ("offbeat", "hat16"), ("octave", "syncopated"),
        ("scratch", "strings", "stab", "keys"), machine=0.25, percussion=0.5, duck=0.15,
    ),
    "house": Style(
        (118, 130), ("four",), ("offbeat", "shaker16", "hat16"), ("offbeat", "syncopated"),
        ("stab", "pad", "pluck", "arpeggio"), machine=0.9, synth_bass=0.8, duck=0.8, fills=0.4,
    ),
    "techno": Style(
        (124, 142), ("four",), ("hat16", "offbeat", "ride8"), ("pulse16", "offbeat"),
        ("pluck", "arpeggio", "pad", "riff synth"), machine=0.95, synth_bass=0.95, duck=0.7,
        fills=0.3,
    ),
    "hiphop": Style(
        (80, 102), ("hiphop",), ("hat8", "hat16"), ("follow", "syncopated", "sustained"),
        ("keys", "pluck", "stab", "lead"), swing=(1, 0.1, 0.6), machine=0.6, synth_bass=0.4,
        rap=0.65, fills=0.3,
    ),
    "trap": Style(
        (66, 78), ("trap",), ("roll", "roll", "hat16"), ("glide", "follow"),
        ("pluck", "pad", "mallet", "lead"), machine=0.95, synth_bass=0.9, rap=0.6, fills=0.3,
    ),
    "rnb": Style(
        (70, 98), ("hiphop", "ballad"), ("hat16", "rim8", "hat8"), ("syncopated", "sustained"),
        ("epiano", "pad", "clean arp", "strings"), swing=(1, 0.0, 0.5), machine=0.5,
        synth_bass=0.4, rap=0.1,
    ),
    "reggae": Style(
        (68, 92), ("reggae",), ("hat8", "rim8"), ("dub",), ("skank", "organ", "stab", "lead"),
        swing=(2, 0.1, 0.7), machine=0.05, percussion=0.5,
    ),
    "shuffle": Style(
        (96, 138), ("shuffle",), ("swung8", "ride8"), ("walking", "pump"),
        ("strum", "organ", "piano", "solo"), swing=(2, 0.8, 1.0), machine=0.0, synth_bass=0.0,
    ),
    "swing": Style(
        (120, 176), ("jazz",), ("ridejazz",), ("walking",), ("piano", "brass", "solo", "jazz comp"),
        swing=(2, 0.7, 1.0), machine=0.0, synth_bass=0.0,
    ),
    "bossa": Style(
        (112, 144), ("bossa",), ("hat8", "shaker16"), ("bossa",),
        ("nylon", "keys", "solo", "strings"), machine=0.05, synth_bass=0.05, percussion=0.7,
    ),
    "latin": Style(
        (92, 124), ("latin", "tresillo"), ("hat8", "shaker16", "cowbell4"), ("tumbao", "arpeggio"),
        ("montuno", "brass", "strum", "solo"), machine=0.15, percussion=1.0,
    ),
    "dancehall": Style(
        (90, 108), ("tresillo",), ("hat16", "shaker16", "hat8"), ("follow", "offbeat", "dub"),
        ("pluck", "stab", "mallet", "pad"), machine=0.85, synth_bass=0.7, percussion=0.5, rap=0.3,
        duck=0.3,
    ),
    "breakbeat": Style(
        (128, 176), ("break",), ("hat8", "ride8", "hat16"), ("sustained", "syncopated", "pulse16"),
        ("pad", "pluck", "stab", "riff synth"), machine=0.5, synth_bass=0.8, duck=0.2, fills=0.5,
    ),
    "metal": Style(
        (110, 172), ("metal", "half", "punk"), ("crash4", "ride8", "hat4"), ("follow", "root8"),
        ("chug", "power", "solo", "riff"), machine=0.0, synth_bass=0.0, density=1.2,
    ),
    "country": Style(
        (100, 140), ("train", "rock"), ("hat8", "none"), ("rootfive", "walking"),
        ("strum", "picking", "fiddle", "solo"), swing=(2, 0.0, 0.4), machine=0.0, synth_bass=0.0,
    ),
    "folk": Style(
        (84, 124), ("ballad", "train"), ("shaker16", "tamb8", "none"), ("rootfive", "sustained"),
        ("picking", "strum", "strings", "pipe"), machine=0.0, synth_bass=0.0, percussion=0.5,
    ),
    "waltz": Style(
        (92, 150), ("waltz",), ("hat8", "ride4", "hat4"), ("waltz", "sustained"),
        ("keys", "strings", "accordion", "strum"), meter="3/4", machine=0.1,
    ),
    "sixeight": Style(
        (48, 70), ("sixeight",), ("hat6", "ride6", "hat12"), ("sixeight", "sustained"),
        ("arpeggio", "organ", "clean arp", "strings", "solo"), meter="6/8", machine=0.1,
    ),
    "synthpop": Style(
        (100, 132), ("rock", "four", "drive"), ("hat16", "hat8", "offbeat"),
        ("pulse16", "octave", "root8"), ("riff synth", "pad", "arpeggio", "lead"), machine=0.85,
        synth_bass=0.9, duck=0.2,
    ),
    "halftime": Style(
        (126, 160), ("half",), ("hat8", "ride8", "crash4"), ("sustained", "follow", "pump"),
        ("power", "pad", "clean arp", "lead"), machine=0.3, synth_bass=0.4,
    ),
}  # fmt: skip

# Drum steps, sixteenths: x accent, o normal, . ghost, - rest. Each entry is (kick, snare).
GROOVES: dict[str, tuple[tuple[str, str], ...]] = {
    "rock": (
        ("x-------x-x-----", "----x-------x---"),
        ("x-----x-x-------", "----x-------x---"),
        ("x-x-----x-x---o-", "----x-------x---"),
        ("x--o--x-o-x-----", "----x-------x-.-"),
        ("x-----o---x-----", "----x--.-.--x---"),
    ),
    "drive": (
        ("x---x---x---x---", "----x-------x---"),
        ("x-x---x-x-x---x-", "----x-------x---"),
        ("x-o-x-o-x-o-x-o-", "----x-------x---"),
    ),
    "punk": (
        ("x---x---x---x---", "--x---x---x---x-"),
        ("x--xx---x--xx---", "--x---x---x---x-"),
        ("x-----x-x-----x-", "----x-------x---"),
    ),
    "four": (
        ("x---x---x---x---", "----x-------x---"),
        ("x---x---x---x---", "----x-------x--."),
        ("x---x---x---x-o-", "----x--.----x---"),
        ("x---x---x---x---", "----------------"),
    ),
    "ballad": (
        ("x-------x-------", "----x-------x---"),
        ("x------ox-------", "----x-------x---"),
        ("x---------x-----", "----x-------x---"),
        ("x-----o---------", "--------x-------"),
    ),
    "funk": (
        ("x--o--x---x--o--", "----x--.-.--x--."),
        ("x-x-----o-x--x--", "----x-.--.-.x-.-"),
        ("x--x-------x--x-", "----x--.----x---"),
        ("x-o---o--ox-----", ".---x--.-.--x.-."),
    ),
    "hiphop": (
        ("x------x--x-----", "----x-------x---"),
        ("x--o---x--x---o-", "----x-------x---"),
        ("x-----x--xx-----", "----x-------x--."),
        ("x-o----o-x------", "----x--.----x---"),
    ),
    "trap": (
        ("x-----x-------o-", "--------x-------"),
        ("x--x------x-----", "--------x-------"),
        ("x-----o--x----x-", "--------x-----.-"),
    ),
    "reggae": (
        ("--------x-------", "--------x-------"),
        ("x-------x-------", "--------x-------"),
        ("x---x---x---x---", "--------x-------"),
    ),
    "shuffle": (
        ("x-------x-------", "----x-------x---"),
        ("x-----o-x-----o-", "----x--.----x--."),
        ("x---x---x---x---", "----x-.-----x-.-"),
    ),
    "jazz": (
        (".---.---.---.---", "------.-------.-"),
        ("o-------.---.-o-", "--.---o-----.---"),
        (".---.---.---.---", "----o-------o-.-"),
    ),
    "bossa": (
        ("x-----xox-----xo", "x-----x-----x---"),
        ("x-----ox------o-", "--x-----x--x----"),
    ),
    "latin": (
        ("x-----x-----x---", "------x-------x-"),
        ("--x---x---x---x-", "----x-----x-----"),
        ("x--x--x-x--x--x-", "---.--x----.--x-"),
    ),
    "tresillo": (
        ("x---x---x---x---", "---x--x----x--x-"),
        ("x-----x-x-----x-", "---x--x----x--x-"),
        ("x---o---x---o---", "---x--o----x--x-"),
    ),
    "break": (
        ("x-x-------xx----", "----x--.-.--x--."),
        ("x-x---x---x-----", "----x-----.-x---"),
        ("x---------x-----", "----x-------x---"),
        ("x-x----o--x--o--", "----x--.-x----x-"),
    ),
    "metal": (
        ("xoxoxoxoxoxoxoxo", "----x-------x---"),
        ("x-xox-xox-xox-xo", "----x-------x---"),
        ("x-oox-oox-oox-oo", "--------x-------"),
    ),
    "half": (
        ("x-----x---------", "--------x-------"),
        ("x---------x---o-", "--------x-------"),
        ("x--x--x-------x-", "--------x--.----"),
    ),
    "train": (
        ("x-------x-------", ".o.x.o.x.o.x.o.x"),
        ("x---x---x---x---", "..o...x...o...x."),
    ),
    "waltz": (
        ("x-----------", "----o---o---"),
        ("x-------o---", "----x---x---"),
        ("x-----o-----", "--------x---"),
    ),
    "sixeight": (
        ("x-----------", "------x-----"),
        ("x---o-------", "------x-----"),
        ("x---------o-", "------x---.-"),
    ),
}

# Time keepers: (GM drum key, steps); repeated or cut to the bar.
KEEPERS: dict[str, tuple[tuple[int, str], ...]] = {
    "hat8": ((42, "x-o-x-o-x-o-x-o-"),),
    "hat4": ((42, "x---x---x---x---"),),
    "hat16": ((42, "xooo" * 4),),
    "hatopen16": ((42, "xoo-xooox-ooxoo-"), (46, "---x---------o--")),
    "offbeat": ((46, "--x---x---x---x-"), (42, "x--ox--ox--ox--o")),
    "ride8": ((51, "x-o-x-o-x-o-x-o-"), (44, "----o-------o---")),
    "ride4": ((51, "x---x---x---x---"),),
    "ridejazz": ((51, "x---x-o-x---x-o-"), (44, "----x-------x---")),
    "crash4": ((57, "x---x---x---x---"),),
    "tamb8": ((54, "o-x-o-x-o-x-o-x-"),),
    "shaker16": ((70, "o.x.o.x.o.x.o.x."),),
    "rim8": ((42, "o-o-o-o-o-o-o-o-"), (37, "----x-------x---")),
    "swung8": ((42, "x-o-x-o-x-o-x-o-"),),
    "cowbell4": ((56, "x---x---x---x---"), (42, "--o---o---o---o-")),
    "roll": ((42, "x-o-x-o-x-o-xooo"), (46, "--------------o-")),
    "hat6": ((42, "x-o-o-x-o-o-"),),
    "ride6": ((51, "x-o-o-x-o-o-"),),
    "hat12": ((42, "xooooo" * 2),),
    "none": (),
}

PERCUSSION: tuple[tuple[tuple[int, str], ...], ...] = (
    ((62, "--o---x---o---x-"), (63, "-------o-------o"), (64, "---o-o-----o-o--")),
    ((60, "x-o-x-ox--o-x-o-"), (61, "-o---o---o---o--")),
    ((75, "x--x--x---x-x---"),),
    ((56, "x-x--x-x-x-x--x-"),),
    ((69, "o.o.x.o.o.o.x.o."),),
    ((54, "----x-------x---"),),
    ((39, "----x-------x---"),),
    ((70, "xoooxoooxoooxooo"),),
    ((81, "o-o-o---o-o-o---"), (54, "--x---x---x---x-")),
    ((76, "x--x---x--x-x---"), (77, "-o---o---o---o--")),
)

TOMS = (50, 48, 47, 45, 43, 41)
MARKS = {"x": 0.92, "o": 0.68, ".": 0.30}


@dataclass(frozen=True)
class Grid:
    """Bars and steps (sixteenths) in seconds, with swing and a slow tempo wander."""

    starts: np.ndarray
    steps: int
    beat_steps: int
    swing_unit: int
    swing: float

    def time(self, bar: int, step: float) -> float:
        """Seconds of a (possibly fractional) step of a bar; steps past the bar's end run on."""
        while step >= self.steps:
            bar, step = bar + 1, step - self.steps
        while step < 0:
            bar, step = bar - 1, step + self.steps
        bar = min(max(bar, 0), len(self.starts) - 2)
        if self.swing:
            span = 2 * self.swing_unit
            whole, part = divmod(step, span)
            middle = 0.5 + self.swing / 6
            x = part / span
            x = x * 2 * middle if x < 0.5 else middle + (x - 0.5) * 2 * (1 - middle)
            step = (whole + x) * span
        left, right = self.starts[bar], self.starts[bar + 1]
        return float(left + (right - left) * step / self.steps)


@dataclass(frozen=True)
class Chord:
    """Root pitch class, intervals above it in semitones, and the numeral it came from."""

    root: int
    tones: tuple[int, ...]
    numeral: str

    @property
    def classes(self) -> tuple[int, ...]:
        """Pitch classes, root first."""
        return tuple((self.root + tone) % 12 for tone in self.tones)


_DEGREES = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}
_SUFFIXES = {
    "": None,
    "7": "seventh",
    "maj7": (0, 4, 7, 11),
    "sus4": (0, 5, 7),
    "add9": "ninth",
    "9": (0, 4, 7, 10, 14),
    "6": "sixth",
    "5": (0, 7),
}


def parse_chord(numeral: str, tonic: int) -> Chord:
    """Chord of a numeral such as ``bVII``, ``ii7`` or ``Imaj7``; lower case is minor.

    Raises
    ------
    ValueError
        If the numeral is not understood.
    """
    text = numeral.removeprefix("b")
    flat = len(numeral) - len(text)
    letters = text[: len(text) - len(text.lstrip("IViv"))]
    suffix = text[len(letters) :]
    if letters.upper() not in _DEGREES or suffix not in _SUFFIXES:
        raise ValueError(f"Chord numeral {numeral!r} is not understood.")
    third = 4 if letters.isupper() else 3
    kind = _SUFFIXES[suffix]
    tones = {
        None: (0, third, 7),
        "seventh": (0, third, 7, 10),
        "ninth": (0, third, 7, 14),
        "sixth": (0, third, 7, 9),
    }.get(kind if not isinstance(kind, tuple) else "", kind)
    return Chord((tonic + _DEGREES[letters.upper()] - flat) % 12, tones, numeral)


# ----------------------------------------------------------------------------------------- names

_ARTISTS = (
    ("Velvet", "Paper", "Neon", "Rusty", "Hollow", "Electric", "Quiet", "Crimson", "Northern",
     "Plastic", "Golden", "Midnight", "Copper", "Wandering", "Static", "Sleepy", "Marble",
     "Salty", "Borrowed", "Frozen", "Distant", "Loose", "Crooked", "Tidal", "Second"),
    ("Foxes", "Lanterns", "Harbour", "Engines", "Parade", "Cartographers", "Orchard", "Satellites",
     "Pilots", "Kettles", "Magnets", "Window", "Machines", "Avenue", "Saints", "Gardeners",
     "Tigers", "Telegraph", "Umbrellas", "Brothers", "Sisters", "Museum", "Comets", "Postmen"),
)  # fmt: skip
_TITLES = (
    ("Run", "Hold", "Burning", "Under", "Leave", "Chasing", "Tell", "Waiting for", "Breaking",
     "Counting", "Dancing with", "Ode to", "Driving", "Back to", "Almost", "Losing", "Beyond",
     "Catch", "Forget", "Painting"),
    ("the Tide", "My Shadow", "Tomorrow", "the Signal", "a Stranger", "Paper Moons", "the Static",
     "Home", "the Line", "Your Ghost", "the Rain", "Sugar", "Gravity", "the Alarm", "Sunday",
     "the Wires", "Blue", "Nothing", "the Machine", "Glass"),
)  # fmt: skip


@lru_cache(maxsize=16)
def _name_lists(seed: int, subset: str) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(99,)))
    lists = []
    for first, second in (_ARTISTS, _TITLES):
        names = [f"{a} {b}" for a in first for b in second]
        order = rng.permutation(len(names))[SUBSETS.index(subset) :: 2]
        lists.append([names[k] for k in order])
    return lists[0], lists[1]


def song_name(seed: int, subset: str, index: int) -> str:
    """Unique ``Artist - Title`` of a song; train and test share no artist and no title."""
    artists, titles = _name_lists(seed, subset)
    turn, place = divmod(index, len(artists))
    number = f" {turn + 1}" if turn else ""
    return f"The {artists[place]} - {titles[index % len(titles)]}{number}"


# --------------------------------------------------------------------------------------- compose


def _rotating(seed: int, subset: str, key: int, index: int, choices: Sequence[str]) -> str:
    # Every choice comes up once before any comes twice, whatever the number of songs.
    turn, place = divmod(index, len(choices))
    spawn = (SUBSETS.index(subset), 1000 + key, turn)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn))
    return choices[int(rng.permutation(len(choices))[place])]


def compose(seed: int, *, subset: str, index: int, seconds: float) -> Song:
    """Write one song.

    Parameters
    ----------
    seed
        The corpus's seed.
    subset
        ``"train"`` or ``"test"``: chooses the tables of instruments, voices and progressions.
    index
        Number of the song in its subset, from 0.
    seconds
        Nominal length; the song's own is 0.8 to 1.2 times that.

    Raises
    ------
    ValueError
        If the subset is unknown, or a number is out of range.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, not {subset!r}.")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative (given: {seed}, {index}).")
    if not 2.0 <= seconds <= 600.0:
        raise ValueError(f"seconds must lie between 2 and 600, not {seconds}.")
    return _Composer(seed, subset, index, seconds).song()


class _Composer:
    """Works through one song, part after part."""

    def __init__(self, seed: int, subset: str, index: int, seconds: float):
        self.seed, self.subset, self.index = seed, subset, index
        rng = self.rng = stream(seed, subset, index, "form")
        self.style_name = _rotating(seed, subset, 0, index, tuple(STYLES))
        self.style = style = STYLES[self.style_name]
        self.seconds = round(float(seconds * rng.uniform(0.8, 1.2)), 3)
        self.tempo = float(np.clip(rng.uniform(*style.tempo), 48, 180))
        self.steps = 16 if style.meter == "4/4" else 12
        self.beat_steps = 6 if style.meter == "6/8" else 4
        bar = 60.0 / self.tempo * self.steps / self.beat_steps
        self.bars = max(int(np.ceil(self.seconds / bar)), 2)
        wander = 1 + 0.006 * rng.standard_normal(self.bars + 1) * rng.choice([0.0, 1.0])
        starts = np.concatenate([[0.0], np.cumsum(bar * wander)])
        self.swing = float(rng.uniform(*style.swing[1:]))
        self.grid = Grid(starts, self.steps, self.beat_steps, style.swing[0], self.swing)
        self.sections = self._form()
        self.tonic = int(rng.integers(12))
        self.loose = float(rng.choice([0.002, 0.006, 0.011], p=[0.3, 0.5, 0.2]))
        self._harmony()

    def song(self) -> Song:
        layers = [*self._drums(), *self._bass(), *self._other(), *self._vocals()]
        layers = [replace(x, notes=self._trim(x)) for x in layers]
        mix = stream(self.seed, self.subset, self.index, "mix")
        # Loudness while playing, in dB; vocals against the other three. Songs vary, but over many
        # of them no stem has much less energy than another.
        levels = {
            "drums": float(np.clip(mix.normal(1.5, 2.5), -5, 8)),
            "bass": float(np.clip(mix.normal(1.0, 2.5), -6, 7)),
            "other": float(np.clip(mix.normal(0.4, 3.0), -7, 7)),
            "vocals": float(mix.uniform(-8.7, 0.8)),
        }
        beats = tuple(
            self.grid.time(bar, step)
            for bar in range(self.bars)
            for step in range(0, self.steps, self.beat_steps)
        )
        return Song(
            name=song_name(self.seed, self.subset, self.index),
            subset=self.subset,
            index=self.index,
            seed=self.seed,
            seconds=self.seconds,
            style=self.style_name,
            meter=self.style.meter,
            tempo=round(self.tempo, 1),
            swing=round(self.swing, 2),
            key=f"{PITCH_NAMES[self.tonic]} {self.mode}",
            progressions=tuple(dict.fromkeys(self.numerals.values())),
            sections=self.sections,
            layers=tuple(x for x in layers if x.notes),
            beats=beats,
            voices=tuple(
                dict.fromkeys(x.sound.name for x in layers if x.sound.kind == "voice" and x.notes)
            ),
            levels=levels,
        )

    # ------------------------------------------------------------------------- form and harmony

    def _form(self) -> tuple[Section, ...]:
        rng, bars = self.rng, self.bars
        unit = 4 if bars >= 14 else 2 if bars >= 6 else 1
        plans = (
            ("intro", "verse", "chorus", "break", "chorus"),
            ("verse", "chorus", "verse", "chorus", "break"),
            ("intro", "verse", "chorus", "solo", "chorus", "outro"),
            ("chorus", "verse", "break", "chorus"),
            ("verse", "build", "chorus", "outro"),
            ("intro", "chorus", "verse", "chorus"),
        )
        plan = plans[int(rng.integers(len(plans)))]
        names, lengths = [], []
        while sum(lengths) < bars:
            name = plan[len(names) % len(plan)]
            short = name in ("intro", "break", "build", "outro", "solo")
            length = max(unit // 2, 1) if short and rng.random() < 0.75 else unit
            names.append(name)
            lengths.append(min(length, bars - sum(lengths)))
        parts = [set(self._active(name)) for name in names]
        for active in parts:
            if not active:
                active.add(str(rng.choice(("drums", "bass", "other"))))
        for stem in STEMS:
            if not any(stem in active for active in parts):
                parts[int(rng.integers(len(parts)))].add(stem)
        for stem in STEMS:
            # Each stem rests somewhere, so that models see silent targets; nothing falls silent.
            if all(stem in active for active in parts):
                choices = [k for k, active in enumerate(parts) if len(active) > 1]
                weights = np.array([1.0 / lengths[k] for k in choices])
                if stem == "vocals":
                    weights[[names[k] == "chorus" for k in choices]] *= 0.3
                k = int(rng.choice(choices, p=weights / weights.sum()))
                parts[k].discard(stem)
        firsts = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
        return tuple(
            Section(
                name,
                int(first),
                int(length),
                self.grid.time(int(first), 0),
                float(self.grid.starts[int(first) + length]),
                frozenset(active),
            )
            for name, first, length, active in zip(names, firsts, lengths, parts, strict=False)
        )

    def _active(self, name: str) -> list[str]:
        chance = {
            "intro": (0.55, 0.45, 0.75, 0.06),
            "verse": (0.9, 0.88, 0.9, 1.0),
            "build": (0.7, 0.5, 0.9, 0.8),
            "chorus": (1.0, 1.0, 1.0, 1.0),
            "solo": (0.95, 0.95, 1.0, 0.0),
            "break": (0.5, 0.45, 0.65, 0.25),
            "outro": (0.5, 0.5, 0.9, 0.3),
        }[name]
        return [s for s, p in zip(STEMS, chance, strict=True) if self.rng.random() < p]

    def _harmony(self) -> None:
        rng = stream(self.seed, self.subset, self.index, "harmony")
        table = PROGRESSIONS[self.subset]
        first = _rotating(self.seed, self.subset, 1, self.index, tuple(map(str, range(len(table)))))
        self.mode, numerals = table[int(first)]
        related = [n for mode, n in table if mode == self.mode and n != numerals]
        other = related[int(rng.integers(len(related)))] if related else numerals
        same = rng.random() < 0.4
        self.numerals = {
            "a": numerals,
            "b": numerals if same else other,
        }
        pace = float(rng.choice([0.5, 1.0, 1.0, 1.0, 2.0]))  # chords a bar
        if self.tempo * self.beat_steps / 4 < 80:
            pace = max(pace, 1.0)
        self.chords: list[tuple[Chord, Chord]] = [None] * (self.bars + 1)
        for section in self.sections:
            letter = "b" if section.name in ("chorus", "solo") else "a"
            names = self.numerals[letter].split()
            for k in range(section.bars):
                pair = []
                for half in (0.0, 0.5):
                    place = int((k + half) * pace) % len(names)
                    pair.append(parse_chord(names[place], self.tonic))
                self.chords[section.first + k] = tuple(pair)
        self.chords[self.bars] = self.chords[self.bars - 1]
        self.scale = tuple((self.tonic + s) % 12 for s in MODES[self.mode])

    def _chord(self, bar: int, step: float = 0) -> Chord:
        bar = min(max(bar, 0), self.bars)
        return self.chords[bar][0 if step < self.steps / 2 else 1]

    def _changes(self, bar: int) -> list[tuple[int, int, Chord]]:
        # (first step, steps, chord) of a bar; a bar of one chord has one entry.
        first, second = self.chords[bar]
        half = self.steps // 2
        if first == second:
            return [(0, self.steps, first)]
        return [(0, half, first), (half, self.steps - half, second)]

    def _trim(self, layer: Layer) -> tuple[Note, ...]:
        # Notes end with the song, and with the section if the stem rests in the next one.
        ends = [s.end for s in self.sections if layer.stem in s.parts]
        starts = [s.start for s in self.sections if layer.stem in s.parts]
        kept = []
        for note in sorted(layer.notes, key=lambda n: (n.start, n.pitch)):
            inside = [e for s, e in zip(starts, ends, strict=True) if s - 0.3 <= note.start < e]
            if not inside or note.start >= self.seconds - 0.05:
                continue
            stop = min(self.seconds, inside[-1] + 0.15)
            start = max(note.start, 0.0)
            kept.append(
                replace(note, start=start, duration=max(min(note.duration, stop - start), 0.03))
            )
        return tuple(kept)

    def _at(self, rng: np.random.Generator, bar: int, step: float, push: float = 0.0) -> float:
        return self.grid.time(bar, step) + push + self.loose * float(rng.standard_normal())

    def _steps(self, bar: int, step: float, steps: float) -> float:
        return self.grid.time(bar, step + steps) - self.grid.time(bar, step)

    def _bars(self, stem: str):
        for section in self.sections:
            if stem in section.parts:
                for bar in range(section.first, section.first + section.bars):
                    yield section, bar

    # ------------------------------------------------------------------------------------ drums

    def _drums(self) -> list[Layer]:
        rng = stream(self.seed, self.subset, self.index, "drums")
        style = self.style
        hits: list[tuple[float, int, float]] = []
        family = GROOVES[style.grooves[int(rng.integers(len(style.grooves)))]]
        picks = rng.permutation(len(family))
        keepers = [style.keepers[int(k)] for k in rng.integers(len(style.keepers), size=2)]
        extra = PERCUSSION[int(rng.integers(len(PERCUSSION)))]
        extra = extra if rng.random() < style.percussion else ()
        everywhere = rng.random() < 0.3
        snare = int(rng.choice([38, 38, 38, 40]))
        side = rng.random() < (0.5 if self.style_name in ("bossa", "reggae", "ballad") else 0.12)
        clap = rng.random() < 0.35 * (0.3 + style.machine)
        lay = float(rng.normal(0, 0.006))  # the drummer's snare sits early or late
        level = float(rng.uniform(0.72, 1.0))
        dynamics = float(rng.uniform(0.04, 0.12))

        def hit(bar: int, step: float, key: int, strength: float, push: float = 0.0) -> None:
            strength = strength * level * (1 + dynamics * float(rng.standard_normal()))
            hits.append((self._at(rng, bar, step, push), key, float(np.clip(strength, 0.08, 1))))

        for section in self.sections:
            if "drums" not in section.parts:
                continue
            busy = section.name in ("chorus", "solo")
            kick, back = family[int(picks[1 if busy and len(picks) > 1 else 0])]
            keeper = KEEPERS[keepers[1 if busy else 0]]
            sparse = section.name in ("intro", "break", "outro") and rng.random() < 0.45
            only = str(rng.choice(["keeper", "kick", "all"])) if sparse else "all"
            for bar in range(section.first, section.first + section.bars):
                last = bar == section.first + section.bars - 1
                fill = int(rng.choice([2, 4, 4, 6, 8, self.steps]))
                fill = fill if last and rng.random() < style.fills else 0
                if not fill and (bar - section.first) % 2 and rng.random() < 0.15:
                    fill = 2
                limit = self.steps - fill
                patterns = [*keeper]
                if only != "keeper":
                    patterns.append((36, kick))
                if only == "all":
                    key = 37 if side and not busy else snare
                    patterns.append((key, back))
                    if clap and busy:
                        patterns.append((39, back.replace(".", "-")))
                if extra and (busy or everywhere):
                    patterns.extend(extra)
                for key, pattern in patterns:
                    pattern = (pattern * 2)[: self.steps]
                    for step, mark in enumerate(pattern):
                        if mark == "-" or (step >= limit and key in (snare, 36, 37, 39)):
                            continue
                        if step >= limit and fill > 2 and key in (42, 51, 70):
                            continue
                        if mark == "." and rng.random() < 0.3:
                            continue
                        if key == 36 and mark != "x" and rng.random() < 0.15:
                            continue
                        push = lay if key in (snare, 39) else 0.0
                        hit(bar, step, key, MARKS[mark], push)
                        if key == 42 and keepers[busy] == "roll" and rng.random() < 0.12:
                            count = int(rng.choice([2, 3, 4]))
                            for k in range(1, count):
                                hit(bar, step + k / count, 42, MARKS[mark] * 0.85)
                if only == "all" and rng.random() < 0.25:
                    hit(bar, int(rng.integers(self.steps)), snare, 0.25)
                if only != "keeper" and rng.random() < 0.2:
                    hit(bar, int(rng.integers(1, self.steps)) | 1, 36, 0.6)
                if fill:
                    self._fill(rng, hit, bar, limit, snare)
                if bar == section.first and rng.random() < (0.75 if busy else 0.35):
                    hit(bar, 0, int(rng.choice([49, 49, 57, 55, 52])), 0.85)
                    hit(bar, 0, 36, 0.9)
        return self._kit(rng, hits)

    def _fill(self, rng, hit, bar: int, first: int, snare: int) -> None:
        kind = str(rng.choice(["snare", "toms", "mixed", "flam", "stop"]))
        stride = int(rng.choice([1, 1, 2])) if self.tempo < 140 else 2
        steps = range(first, self.steps, stride)
        for k, step in enumerate(steps):
            ramp = 0.55 + 0.4 * k / max(len(steps) - 1, 1)
            if kind == "stop" and k:
                break
            if kind == "snare":
                key = snare
            elif kind == "toms":
                key = TOMS[min(int(k * len(TOMS) / max(len(steps), 1)), len(TOMS) - 1)]
            else:
                key = int(rng.choice([snare, *TOMS, 36]))
            if rng.random() < 0.85:
                hit(bar, step, key, ramp)
            if kind == "flam" and rng.random() < 0.4:
                hit(bar, step + 0.2, key, ramp * 0.8)

    def _kit(self, rng: np.random.Generator, hits: list[tuple[float, int, float]]) -> list[Layer]:
        # The pieces of a song's kit may come from different sources, as sample packs do.
        groups = {
            "kick": {35, 36},
            "snare": {37, 38, 39, 40},
            "toms": set(TOMS),
            "metal": set(range(42, 61)) - set(TOMS),
            "hand": set(range(60, 82)),
        }
        kits = KITS[self.subset]
        machines = MACHINES[self.subset]
        machine = machines[int(rng.integers(len(machines)))]
        # Most drummers play an ordinary kit; electronic ones mostly go with the styles that do.
        plain = np.array([1.0 if k in (0, 8, 16, 40) else 0.25 + self.style.machine for k in kits])
        kit = int(rng.choice(kits, p=plain / plain.sum()))
        synthetic = rng.random() < self.style.machine
        mixed = rng.random() < 0.3
        layers = []
        for group, keys in groups.items():
            mine = synthetic
            if mixed and rng.random() < 0.5:
                mine = not synthetic
            sound = Sound("machine", machine) if mine else Sound("kit", f"kit {kit}", kit)
            notes = tuple(Note(t, 0.25, k, v) for t, k, v in sorted(hits) if k in keys)
            pan = 0.0 if group in ("kick", "snare") else float(rng.uniform(-0.5, 0.5))
            spread = {"kick": 1.5, "snare": 2.5, "toms": 2.0, "metal": 3.0, "hand": 3.0}[group]
            base = {"kick": 0.0, "snare": -1.0, "toms": -3.0, "metal": -5.5, "hand": -6.0}[group]
            level = base + float(rng.normal(0, spread))
            layers.append(Layer("drums", group, sound, notes, level, pan))
        return layers

    # ------------------------------------------------------------------------------------- bass

    def _bass(self) -> list[Layer]:
        rng = stream(self.seed, self.subset, self.index, "bass")
        style = self.style
        synthetic = rng.random() < style.synth_bass
        kind = str(rng.choice(style.bass))
        alternate = str(rng.choice(style.bass))
        if synthetic:
            names = PATCHES[self.subset]["bass"]
            sound = Sound("patch", str(rng.choice(names)))
        else:
            programs = PROGRAMS[self.subset]["bass"]
            program = int(rng.choice(programs))
            if self.style_name in ("swing", "bossa", "folk", "waltz") and rng.random() < 0.6:
                program = programs[0]
            sound = Sound("font", f"program {program}", program)
        low = int(rng.integers(26, 32)) if synthetic else int(rng.integers(28, 34))
        family = GROOVES[style.grooves[0]]
        kick = family[int(rng.integers(len(family)))][0]
        notes: list[Note] = []
        gate = float(rng.uniform(0.55, 1.0))
        slides = float(rng.choice([0.0, 0.05, 0.2]))
        for section, bar in self._bars("bass"):
            line = alternate if section.name == "chorus" else kind
            for step, steps, pitch, strength in self._bass_bar(rng, line, bar, low, kick):
                held = self._steps(bar, step, steps)
                held *= gate if steps < 8 else 0.97
                bend = float(rng.choice([-2, -1, 2, -5])) if rng.random() < slides else 0.0
                if line == "glide" and rng.random() < 0.35:
                    bend = float(rng.choice([-12, -7, 7, 12, -5]))
                strength = float(np.clip(strength + 0.06 * rng.standard_normal(), 0.3, 1))
                notes.append(Note(self._at(rng, bar, step), held, pitch, strength, bend))
        drive = float(rng.choice([0.0, 0.0, 0.15, 0.4, 0.8], p=[0.4, 0.2, 0.2, 0.12, 0.08]))
        return [Layer("bass", kind, sound, tuple(notes), drive=drive)]

    def _bass_bar(self, rng, line: str, bar: int, low: int, kick: str):
        """Yield (step, steps, pitch, strength) of one bar."""
        n, beat = self.steps, self.beat_steps
        following = self._chord(bar + 1).root
        for first, length, chord in self._changes(bar):
            root = low + (chord.root - low) % 12
            fifth = root + 7 if root + 7 < low + 15 else root - 5
            tones = [root + t for t in chord.tones if t < 12]
            last = first + length
            if line in ("root8", "pump"):
                for s in range(first, last, 2):
                    jump = root + 12 if line == "pump" and rng.random() < 0.12 else root
                    accent = 0.85 if s % beat == 0 else 0.7
                    yield s, 2, jump, accent
            elif line == "pulse16":
                for s in range(first, last):
                    if s % 4 == 0 and rng.random() < 0.3:
                        continue
                    yield s, 1, root + (12 if rng.random() < 0.1 else 0), 0.8 - 0.1 * (s % 2)
            elif line == "octave":
                for s in range(first, last, 2):
                    yield s, 2, root + (12 if (s // 2) % 2 else 0), 0.8
            elif line == "offbeat":
                for s in range(first + 2, last, 4):
                    yield s, 2, root, 0.85
                    if rng.random() < 0.2:
                        yield s + 1, 1, root + 12, 0.6
            elif line == "follow":
                steps = [s for s in range(first, last) if (kick * 2)[s] in "xo"]
                steps = steps or [first]
                if first not in steps:
                    steps = [first, *steps]
                for a, b in zip(steps, [*steps[1:], last], strict=True):
                    yield a, b - a, root if rng.random() < 0.85 else fifth, 0.85
            elif line in ("syncopated", "slap"):
                s = first
                while s < last:
                    step = int(rng.choice([1, 2, 3, 3, 4]))
                    if s == first or rng.random() < 0.75:
                        pitch = root if s == first else int(rng.choice([root, root, fifth, *tones]))
                        if line == "slap" and rng.random() < 0.3:
                            pitch = root + 12
                        yield s, min(step, last - s), pitch, 0.9 if s == first else 0.7
                    s += step
            elif line == "walking":
                for k, s in enumerate(range(first, last, beat)):
                    pitch = root if k == 0 else int(rng.choice(tones))
                    if s + beat >= n:
                        target = low + (following - low) % 12
                        pitch = target + int(rng.choice([-1, 1, 2, -2]))
                    yield s, beat, pitch, 0.78
                    if rng.random() < 0.12:
                        yield s + beat - 2, 2, pitch, 0.55
            elif line == "arpeggio":
                order = [root, *tones[1:], root + 12]
                for k, s in enumerate(range(first, last, 2)):
                    yield s, 2, order[k % len(order)], 0.75
            elif line == "rootfive":
                for k, s in enumerate(range(first, last, max(beat, 4))):
                    if k % 2 == 0 or rng.random() < 0.9:
                        yield s, beat, root if k % 4 < 2 and k % 2 == 0 else fifth, 0.8
            elif line == "dub":
                pattern = [(0, 3), (3, 3), (6, 2), (10, 2), (12, 2), (14, 2)]
                for s, d in pattern:
                    if first <= s < last and rng.random() < 0.8:
                        yield s, d, int(rng.choice([root, root, fifth, root + 12])), 0.85
            elif line in ("bossa", "tumbao"):
                if line == "bossa":
                    pattern = [(0, 6, root), (6, 2, fifth), (8, 6, fifth), (14, 2, root)]
                else:
                    pattern = [(0, 3, root), (6, 6, fifth), (12, 4, root + 12)]
                for s, d, pitch in pattern:
                    if first <= s < last:
                        yield s, d, pitch, 0.8
            elif line == "waltz":
                yield first, length, root, 0.85
                if length > 8 and rng.random() < 0.35:
                    yield first + 8, 4, fifth, 0.65
            elif line == "sixeight":
                for s, d, pitch in ((0, 4, root), (4, 2, fifth), (6, 4, root), (10, 2, tones[-1])):
                    if first <= s < last and rng.random() < 0.85:
                        yield s, d, pitch, 0.8
            else:  # sustained, glide
                if length >= 16 and rng.random() < 0.4:
                    yield first, 10, root, 0.85
                    yield first + 10, length - 10, root, 0.75
                else:
                    yield first, length, root, 0.85

    # ------------------------------------------------------------------------------------ other

    def _other(self) -> list[Layer]:
        rng = stream(self.seed, self.subset, self.index, "other")
        count = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.32, 0.18]))
        roles = list(self.style.roles)
        rng.shuffle(roles)
        roles = roles[:count]
        if all(role in ("solo", "lead", "fiddle", "pipe", "brass") for role in roles):
            roles.append(str(rng.choice(["keys", "pad", "strum", "organ"])))
        if rng.random() < 0.2:
            roles.append(str(rng.choice(list(ROLES))))
        layers = []
        for k, role in enumerate(roles):
            layers.extend(self._role(rng, role, first=k == 0))
        return layers

    def _role(self, rng: np.random.Generator, role: str, *, first: bool) -> list[Layer]:
        families, figure, (low, high) = ROLES[role]
        family = str(rng.choice(families))
        drive = 0.0
        if family.startswith("patch:"):
            names = PATCHES[self.subset][family.removeprefix("patch:")]
            sound = Sound("patch", str(rng.choice(names)))
        else:
            program = int(rng.choice(PROGRAMS[self.subset][family]))
            sound = Sound("font", f"program {program}", program)
        if figure in ("power", "chug", "riff") or family == "driven":
            drive = float(rng.uniform(0.5, 1.0))
        elif rng.random() < 0.2:
            drive = float(rng.uniform(0.05, 0.4))
        centre = int(rng.integers(low, high + 1))
        sections = set()
        for section in self.sections:
            if "other" not in section.parts:
                continue
            chance = 0.95 if first or section.name in ("chorus", "solo") else 0.6
            if figure == "melody":
                chance = {"solo": 1.0, "intro": 0.7, "break": 0.7}.get(section.name, 0.35)
            if rng.random() < chance:
                sections.add(section.first)
        notes = _Figure(self, rng, figure, centre).notes(sections)
        level = float(rng.normal(0 if first else -3, 2.5))
        pan = float(rng.uniform(-0.7, 0.7)) * (0.5 if first else 1.0)
        layers = [Layer("other", role, sound, notes, level, pan, drive)]
        if figure in ("power", "chug", "strum") and rng.random() < 0.5:
            # Double-tracked guitars: the same part played twice, left and right.
            shifted = tuple(
                replace(n, start=n.start + float(rng.normal(0.004, 0.007)), velocity=n.velocity)
                for n in notes
            )
            layers = [
                replace(layers[0], pan=-0.8, level=level - 2),
                replace(layers[0], pan=0.8, level=level - 2, notes=shifted),
            ]
        return layers

    def voicing(self, chord: Chord, centre: float, size: int) -> list[int]:
        """Pitches of a chord near ``centre``: close position, at most ``size`` notes."""
        pitches = []
        for pitch in range(int(centre) - 12, int(centre) + 13):
            if pitch % 12 in chord.classes:
                pitches.append(pitch)
        pitches.sort(key=lambda p: (abs(p - centre), p))
        return sorted(pitches[:size])

    def nearest(self, pitch: float, classes: Sequence[int]) -> int:
        """Pitch of one of the pitch classes nearest to ``pitch``."""
        best = min(range(int(pitch) - 7, int(pitch) + 8), key=lambda p: self._distance(p, pitch))
        options = [p for p in range(best - 7, best + 8) if p % 12 in classes]
        return min(options, key=lambda p: (abs(p - pitch), p))

    @staticmethod
    def _distance(p: int, pitch: float) -> tuple[float, int]:
        return abs(p - pitch), p

    # ----------------------------------------------------------------------------------- vocals

    def _vocals(self) -> list[Layer]:
        rng = stream(self.seed, self.subset, self.index, "vocals")
        voices = VOICES[self.subset]
        rappers = [n for n, v in voices.items() if v.delivery == "rap"]
        singers = [n for n in voices if n not in rappers]
        lead = _rotating(self.seed, self.subset, 2, self.index, tuple(singers))
        rapping = rng.random() < self.style.rap
        rapper = str(rng.choice(rappers))
        lines: dict[str, list[Note]] = {"lead": [], "rap": []}
        voice = voices[lead]
        motifs: dict[str, list] = {}
        for section in self.sections:
            if "vocals" not in section.parts:
                continue
            if rapping and section.name in ("verse", "build", "break"):
                lines["rap"] += self._phrases(rng, voices[rapper], section, motifs, rap=True)
            else:
                lines["lead"] += self._phrases(rng, voice, section, motifs, rap=False)
        layers = []
        for kind, name in (("lead", lead), ("rap", rapper)):
            if lines[kind]:
                sound = Sound("voice", name)
                layers.append(Layer("vocals", kind, sound, tuple(lines[kind])))
        layers += self._backing(rng, layers, singers, voices)
        return layers

    def _phrases(self, rng, voice: Voice, section: Section, motifs: dict, *, rap: bool):
        n = self.steps
        chorus = section.name in ("chorus", "outro")
        span = 2 if section.bars >= 2 else 1
        pace = "rap" if rap else self.style.pace
        lengths = {
            "rap": ([1, 2, 2, 3, 4], [0.35, 0.38, 0.12, 0.05, 0.1]),
            "fast": ([2, 4, 6, 8], [0.4, 0.35, 0.1, 0.15]),
            "mid": ([1, 2, 3, 4, 6, 8], [0.12, 0.48, 0.12, 0.18, 0.05, 0.05]),
            "slow": ([1, 2, 4, 6, 8, 12], [0.2, 0.42, 0.2, 0.08, 0.06, 0.04]),
        }[pace]
        centre = voice.low + (voice.high - voice.low) * (0.62 if chorus else 0.42)
        notes: list[Note] = []
        for k, first in enumerate(range(section.first, section.first + section.bars, span)):
            bars = min(span, section.first + section.bars - first)
            name = ("c" if chorus else "v") + ("r" if rap else "") + "ab"[k % 2 if k % 4 < 3 else 1]
            name += str(bars)
            if name not in motifs:
                motifs[name] = self._motif(rng, lengths, bars * n, chorus=chorus)
            if rng.random() < 0.07 and k:
                continue  # the odd empty phrase
            notes += self._sing(rng, voice, first, motifs[name], centre, rap=rap, loud=chorus)
        return notes

    def _motif(self, rng, lengths, total: int, *, chorus: bool) -> list[tuple[int, int, int]]:
        # (step, steps, scale degrees from the previous note); the phrase leaves room to breathe.
        step = int(rng.choice([0, 0, 0, 2, 2, 4, -2]))
        end = total - int(rng.choice([2, 3, 4, 4, 6]))
        if rng.random() < 0.25:
            end = int(total * 0.6)
        motif = []
        while step < end:
            length = int(rng.choice(lengths[0], p=lengths[1]))
            if rng.random() < 0.08 and motif:
                step += length
                continue
            length = min(length, max(end - step, 1))
            move = int(rng.choice([-3, -2, -1, -1, 0, 0, 0, 1, 1, 2, 3, 4]))
            motif.append((step, length, move))
            step += length
        if motif:  # hold the last note
            step, length, move = motif[-1]
            motif[-1] = (step, max(min(length * 2, total - step - 1), 1), move)
        return motif

    def _sing(self, rng, voice: Voice, bar: int, motif, centre: float, *, rap: bool, loud: bool):
        notes, pitch = [], self.nearest(centre + rng.normal(0, 1.5), self.scale)
        legato = float(rng.uniform(0.8, 1.0))
        strength = float(rng.uniform(0.75, 1.0) if loud else rng.uniform(0.5, 0.85))
        for step, steps, move in motif:
            home = self._chord(bar + step // self.steps, step % self.steps)
            if rap:
                pitch = centre - 5 + 0.8 * move + float(rng.normal(0, 1.2))
            else:
                target = pitch + 1.8 * move - 0.25 * (pitch - centre)
                strong = step % self.beat_steps == 0 or steps >= 4
                classes = home.classes if strong and rng.random() < 0.75 else self.scale
                pitch = self.nearest(float(np.clip(target, voice.low, voice.high)), classes)
            held = self._steps(bar, step, steps) * (legato if steps > 1 else 0.95)
            start = self._at(rng, bar, step, 0.012)
            syllable = _syllable(rng, hold=held > 0.8, rap=rap)
            power = float(np.clip(strength + 0.08 * rng.standard_normal(), 0.3, 1.0))
            if not rap and steps >= 4 and rng.random() < 0.12:
                # Melisma: the vowel runs on over two more notes.
                third = held / 3
                for k, shift in enumerate((0, rng.choice([2, -2]), 0)):
                    p = self.nearest(pitch + shift, self.scale)
                    s = syllable if k == 0 else Syllable("", syllable.vowel[-1:], "")
                    s = replace(s, coda="" if k < 2 else syllable.coda)
                    notes.append(Note(start + k * third, third, p, power, 0.0, s))
                continue
            bend = -float(rng.uniform(0.7, 2.5)) if rng.random() < voice.scoop else 0.0
            notes.append(Note(start, held, pitch, power, bend, syllable))
        return notes

    def _backing(self, rng, layers: list[Layer], singers, voices) -> list[Layer]:
        extra: list[Layer] = []
        leads = [x for x in layers if x.role == "lead"]
        choruses = [s for s in self.sections if s.name in ("chorus", "outro")]
        choruses = [s for s in choruses if "vocals" in s.parts]

        def within(note: Note) -> bool:
            return any(s.start - 0.2 <= note.start < s.end for s in choruses)

        for lead in layers:
            if rng.random() < 0.22:
                keep = lead.notes if rng.random() < 0.4 else [n for n in lead.notes if within(n)]
                double = tuple(
                    replace(n, start=n.start + float(rng.normal(0.0, 0.014))) for n in keep
                )
                pan = float(rng.uniform(-0.4, 0.4))
                extra.append(Layer("vocals", "double", lead.sound, double, -3.0, pan))
        if leads and rng.random() < 0.35:
            shift = int(rng.choice([2, 2, -3, 4, -5]))  # scale steps
            name = str(rng.choice(singers)) if rng.random() < 0.6 else leads[0].sound.name
            voice = voices[name]
            notes = []
            for note in leads[0].notes:
                if within(note):
                    pitch = self._transpose(note.pitch, shift)
                    while pitch > voice.high + 3:
                        pitch -= 12
                    while pitch < voice.low - 3:
                        pitch += 12
                    start = note.start + float(rng.normal(0, 0.012))
                    notes.append(replace(note, start=start, pitch=pitch, bend=0.0))
            pan = float(rng.uniform(-0.6, 0.6))
            level = float(rng.uniform(-9, -3))
            extra.append(Layer("vocals", "harmony", Sound("voice", name), tuple(notes), level, pan))
        if rng.random() < 0.3:
            extra += self._choir(rng, singers, voices)
        return extra

    def _transpose(self, pitch: float, degrees: int) -> int:
        base = self.nearest(pitch, self.scale)
        octave = [12 * o + c for o in range(11) for c in sorted(self.scale)]
        place = octave.index(base) + degrees
        return octave[min(max(place, 0), len(octave) - 1)]

    def _choir(self, rng, singers, voices) -> list[Layer]:
        """Held "ooh" and "aah" chords behind a section."""
        sections = [s for s in self.sections if "vocals" in s.parts]
        if not sections:
            return []
        chosen = sections[int(rng.integers(len(sections)))].name
        vowel = (str(rng.choice(["u", "a", "o", "O"])),)
        sampled = rng.random() < 0.4
        name = str(rng.choice(singers))
        voice = voices[name]
        centre = 64 if sampled else (voice.low + voice.high) / 2 + 2
        size = 3 if sampled else 2
        lines: list[list[Note]] = [[] for _ in range(size)]
        for section in sections:
            if section.name != chosen:
                continue
            for bar in range(section.first, section.first + section.bars):
                for first, length, chord in self._changes(bar):
                    held = self._steps(bar, first, length) * 0.93
                    start = self._at(rng, bar, first)
                    for line, pitch in zip(lines, self.voicing(chord, centre, size), strict=False):
                        syllable = Syllable("", vowel, "")
                        line.append(Note(start, held, pitch, 0.6, 0.0, syllable))
        level = float(rng.uniform(-12, -5))
        if sampled:
            program = PROGRAMS[self.subset]["choir"][0]
            sound = Sound("choir", f"program {program}", program)
            return [
                Layer("vocals", "choir", sound, tuple(n for line in lines for n in line), level)
            ]
        sound = Sound("voice", name)
        return [
            Layer("vocals", "choir", sound, tuple(line), level, pan)
            for line, pan in zip(lines, (-0.6, 0.6), strict=True)
        ]


# Roles of the "other" stem: families of sound, figure, range of the register's centre.
ROLES: dict[str, tuple[tuple[str, ...], str, tuple[int, int]]] = {
    "power": (("driven", "clean", "patch:guitar"), "power", (43, 50)),
    "chug": (("driven", "patch:guitar"), "chug", (40, 47)),
    "riff": (("driven", "clean", "patch:guitar"), "riff", (45, 57)),
    "riff synth": (("patch:lead", "patch:pluck", "lead"), "riff", (52, 70)),
    "strum": (("acoustic", "acoustic", "clean", "patch:guitar"), "strum", (52, 60)),
    "nylon": (("acoustic",), "syncopated", (54, 60)),
    "picking": (("acoustic", "folk", "patch:guitar"), "arpeggio", (54, 64)),
    "clean arp": (("clean", "acoustic", "patch:pluck"), "arpeggio", (56, 66)),
    "scratch": (("clean", "patch:guitar", "epiano"), "scratch", (58, 66)),
    "skank": (("clean", "organ", "piano"), "offbeat", (58, 66)),
    "keys": (("piano", "epiano", "piano", "patch:keys"), "block", (54, 64)),
    "piano": (("piano",), "syncopated", (54, 64)),
    "epiano": (("epiano", "patch:keys"), "block", (54, 62)),
    "jazz comp": (("piano", "acoustic", "epiano"), "syncopated", (56, 62)),
    "montuno": (("piano",), "montuno", (60, 66)),
    "clav": (("epiano", "patch:pluck", "clean"), "scratch", (54, 62)),
    "organ": (("organ", "patch:keys"), "sustained", (55, 66)),
    "accordion": (("organ",), "offbeat", (58, 66)),
    "strings": (("strings",), "sustained", (58, 72)),
    "pad": (("pad", "patch:pad", "strings", "patch:pad"), "sustained", (54, 68)),
    "stab": (("brass", "patch:lead", "organ", "patch:pluck"), "stab", (58, 68)),
    "brass": (("brass",), "stab", (56, 66)),
    "arpeggio": (("patch:pluck", "piano", "mallet", "patch:lead", "pizzicato"), "arpeggio",
                 (58, 74)),
    "pluck": (("patch:pluck", "mallet", "pizzicato", "folk"), "ostinato", (60, 76)),
    "mallet": (("mallet",), "ostinato", (62, 78)),
    "lead": (("patch:lead", "lead", "pipe", "reed"), "melody", (62, 76)),
    "solo": (("driven", "reed", "brass", "patch:lead", "organ", "strings"), "melody", (58, 74)),
    "fiddle": (("strings", "folk"), "melody", (62, 74)),
    "pipe": (("pipe", "reed"), "melody", (66, 78)),
}  # fmt: skip


class _Figure:
    """Turns chords into the notes of one accompanying layer."""

    def __init__(self, song: _Composer, rng: np.random.Generator, figure: str, centre: int):
        self.song, self.rng, self.figure, self.centre = song, rng, figure, centre
        n = song.steps
        self.size = int(rng.choice([2, 3, 3, 4]))
        self.gate = float(rng.uniform(0.5, 1.0))
        self.stride = int(rng.choice([1, 2, 2, 2, 4]))
        if song.tempo > 135 and self.stride == 1:
            self.stride = 2
        self.order = str(rng.choice(["up", "down", "updown", "random"]))
        self.mask = rng.random(n) < rng.uniform(0.25, 0.55)
        self.mask[0] = rng.random() < 0.8
        self.cells = [int(x) for x in rng.choice([-3, -2, 0, 0, 1, 2, 3, 4, 5], size=2 * n)]
        self.hard = float(rng.uniform(0.55, 0.95))
        self.strike = float(rng.choice([0.0, 0.008, 0.016, 0.03]))
        self.bends = float(rng.choice([0.0, 0.1, 0.3]))

    def notes(self, sections: set[int]) -> tuple[Note, ...]:
        out: list[Note] = []
        for section in self.song.sections:
            if section.first in sections:
                if self.figure == "melody":
                    out += self._melody(section)
                    continue
                for bar in range(section.first, section.first + section.bars):
                    for first, length, chord in self.song._changes(bar):
                        out += self._chord(bar, first, length, chord)
        return tuple(out)

    def _strength(self, accent: float = 0.0) -> float:
        return float(np.clip(self.hard + accent + 0.06 * self.rng.standard_normal(), 0.2, 1.0))

    def _play(self, bar, step, steps, pitches, *, gate=None, spread=0.0, accent=0.0, bend=0.0):
        song = self.song
        start = song._at(self.rng, bar, step)
        held = song._steps(bar, step, steps) * (self.gate if gate is None else gate)
        return [
            Note(start + k * spread, max(held - k * spread, 0.04), p, self._strength(accent), bend)
            for k, p in enumerate(pitches)
        ]

    def _chord(self, bar: int, first: int, length: int, chord: Chord) -> list[Note]:
        song, rng = self.song, self.rng
        last, beat = first + length, song.beat_steps
        figure, out = self.figure, []
        pitches = song.voicing(chord, self.centre, self.size)
        root = self.centre - 5 + (chord.root - self.centre + 5) % 12
        power = [root, root + 7, root + 12]
        if figure == "sustained":
            out += self._play(bar, first, length, pitches, gate=0.98)
        elif figure == "block":
            for s in range(first, last, beat if beat == 4 else 6):
                if s == first or rng.random() < 0.8:
                    out += self._play(bar, s, beat, pitches, accent=0.05 * (s == first))
            if rng.random() < 0.5:
                low = song.nearest(self.centre - 14, [chord.root])
                out += self._play(bar, first, length, [low], gate=0.9)
        elif figure == "strum":
            full = song.voicing(chord, self.centre, min(self.size + 2, 6))
            for s in range(first, last, 2):
                if s == first or self.mask[s] or s % beat == 0:
                    down = s % beat == 0
                    order = full if down else full[::-1]
                    out += self._play(
                        bar, s, 2 if rng.random() < 0.7 else 4, order, gate=0.95,
                        spread=max(self.strike, 0.006), accent=0.05 if down else -0.12,
                    )  # fmt: skip
        elif figure == "arpeggio":
            run = song.voicing(chord, self.centre, max(self.size, 3) + 1)
            run = {"down": run[::-1], "updown": run + run[-2:0:-1]}.get(self.order, run)
            for k, s in enumerate(range(first, last, self.stride)):
                pitch = run[k % len(run)] if self.order != "random" else int(rng.choice(run))
                ring = 1.6 if self.gate > 0.75 else self.gate
                out += self._play(bar, s, self.stride, [pitch], gate=ring)
        elif figure in ("syncopated", "stab"):
            for s in range(first, last):
                dense = self.mask[s] and (s % 2 == 0 or rng.random() < 0.4)
                if figure == "stab":
                    dense = self.mask[s] and s % 2 == 0 and rng.random() < 0.55
                if dense:
                    steps = int(rng.choice([1, 2, 2, 3]))
                    out += self._play(bar, s, steps, pitches, spread=self.strike * 0.3)
        elif figure == "scratch":
            for s in range(first, last):
                if self.mask[s] or s % 4 == 0:
                    short = 0.35 if rng.random() < 0.7 else 0.9
                    out += self._play(bar, s, 1, pitches, gate=short, accent=-0.1 * (s % 2))
        elif figure == "offbeat":
            for s in range(first, last):
                if s % beat == beat // 2 or (beat == 4 and s % 4 == 2):
                    out += self._play(bar, s, 2, pitches, gate=min(self.gate, 0.6))
        elif figure == "montuno":
            high = [pitches[-1], pitches[-1] - 12]
            for s in range(first, last, 2):
                pair = high if (s // 2) % 3 == 0 else [int(rng.choice(pitches))]
                if s % 4 or rng.random() < 0.7:
                    out += self._play(bar, s, 2, pair)
        elif figure == "ostinato":
            for s in range(first, last):
                if self.mask[s % song.steps]:
                    move = self.cells[s % song.steps]
                    pitch = song.nearest(self.centre + 2 * move, chord.classes)
                    out += self._play(bar, s, 2, [pitch], gate=1.2)
        elif figure == "riff":
            for s in range(first, last):
                place = s + (song.steps if bar % 2 else 0)
                if (self.mask[s] and s % 2 == 0) or s == first:
                    classes = song.scale if s != first else [chord.root]
                    pitch = song.nearest(self.centre + self.cells[place], classes)
                    bend = -1.0 if rng.random() < self.bends else 0.0
                    out += self._play(bar, s, 2, [pitch], gate=0.95, bend=bend)
        elif figure == "power":
            slow = self.stride == 4
            for s in range(first, last, length if slow else 2):
                open_ = s == first or rng.random() < 0.3
                steps = length if slow else 2
                gate = 0.97 if open_ else self.gate * 0.7
                out += self._play(bar, s, steps, power, gate=gate, accent=0.05 * open_)
        elif figure == "chug":
            for s in range(first, last):
                if s == first or (self.mask[s] if self.stride != 1 else True):
                    full = s == first or rng.random() < 0.12
                    notes = power if full else power[:2]
                    out += self._play(bar, s, 2 if full else 1, notes, gate=0.9 if full else 0.5)
        return out

    def _melody(self, section: Section) -> list[Note]:
        """A counter-melody or solo; it steps aside while somebody sings."""
        song, rng = self.song, self.rng
        singing = "vocals" in section.parts
        pitch, out = float(self.centre), []
        for bar in range(section.first, section.first + section.bars):
            step = int(rng.choice([0, 2, 4]))
            if singing and bar % 2 == 0 and rng.random() < 0.6:
                step = song.steps // 2
            while step < song.steps:
                steps = int(rng.choice([1, 2, 2, 3, 4, 4, 6, 8]))
                if rng.random() < (0.4 if singing else 0.15):
                    step += steps
                    continue
                chord = song._chord(bar, step)
                classes = chord.classes if step % song.beat_steps == 0 else song.scale
                pitch += float(rng.choice([-4, -2, -2, -1, 1, 2, 2, 4]))
                pitch -= 0.2 * (pitch - self.centre)
                bend = float(rng.choice([-1, -2])) if rng.random() < 0.35 else 0.0
                note = song.nearest(pitch, classes)
                out += self._play(bar, step, steps, [note], gate=0.97, bend=bend)
                step += steps
        return out


_ONSETS = (
    "p", "t", "k", "b", "d", "g", "s", "f", "h", "v", "z", "m", "n", "l", "r", "w", "y", "sh",
    "ch", "th", "j", "",
)  # fmt: skip
_ONSET_WEIGHTS = (4, 7, 5, 5, 6, 4, 7, 3, 5, 3, 1, 6, 6, 6, 5, 5, 4, 2, 1.5, 3, 1, 14)
_CODAS = ("", "n", "m", "ng", "t", "s", "k", "d", "l", "r", "z", "v", "p", "f")
_CODA_WEIGHTS = (40, 8, 5, 4, 6, 5, 3, 4, 5, 6, 3, 2, 2, 1)
_VOWELS = (
    ("a",), ("e",), ("i",), ("o",), ("u",), ("I",), ("V",), ("ae",), ("U",), ("er",), ("O",),
    ("a", "I"), ("e", "I"), ("o", "U"), ("a", "U"), ("O", "I"),
)  # fmt: skip
_VOWEL_WEIGHTS = (9, 7, 9, 6, 7, 7, 8, 6, 3, 3, 4, 7, 7, 7, 4, 1)


@lru_cache
def _weights(weights: tuple[float, ...]) -> np.ndarray:
    return np.asarray(weights) / np.sum(weights)


def _syllable(rng: np.random.Generator, *, hold: bool, rap: bool) -> Syllable:
    onset = _ONSETS[int(rng.choice(len(_ONSETS), p=_weights(_ONSET_WEIGHTS)))]
    vowel = _VOWELS[int(rng.choice(len(_VOWELS), p=_weights(_VOWEL_WEIGHTS)))]
    coda = _CODAS[int(rng.choice(len(_CODAS), p=_weights(_CODA_WEIGHTS)))]
    if hold and rng.random() < 0.5:
        coda = ""
    if rap and not onset and rng.random() < 0.6:
        onset = "d"
    return Syllable(onset, vowel, coda)
