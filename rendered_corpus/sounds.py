"""What songs are made with: progressions, programs, kits, drum machines, patches and voices.

Every table has one entry per subset, so that no test song uses an instrument, singer or progression
of a training song; tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass


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
"""Mode and chord numerals."""

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


@dataclass(frozen=True)
class Machine:
    """A synthetic drum kit: kick and toms sweep, snares mix tone and noise, metal is FM noise.

    ``kick``: start and end in Hz, seconds of the sweep, seconds of decay, click. ``snare``: tone in
    Hz, its decay, the noise's decay and centre in Hz, noise share. ``hat``: lowest partial in Hz,
    closed and open decay, noise share. ``tom``: Hz, decay. ``clap``: centre in Hz, decay.
    """

    kick: tuple[float, float, float, float, float]
    snare: tuple[float, float, float, float, float]
    hat: tuple[float, float, float, float]
    tom: tuple[float, float]
    clap: tuple[float, float]
    drive: float = 0.0
    crush: int = 0


MACHINES: dict[str, dict[str, Machine]] = {
    "train": {
        "round": Machine((160, 46, 0.03, 0.45, 0.1), (185, 0.10, 0.16, 3500, 0.6),
                         (320, 0.04, 0.30, 0.3), (95, 0.30), (1100, 0.12)),
        "tight": Machine((240, 56, 0.015, 0.20, 0.5), (210, 0.06, 0.11, 5000, 0.5),
                         (410, 0.025, 0.18, 0.5), (120, 0.18), (1500, 0.09), 0.3),
        "dusty": Machine((130, 60, 0.02, 0.16, 0.3), (230, 0.08, 0.14, 2600, 0.55),
                         (300, 0.05, 0.22, 0.7), (105, 0.22), (1200, 0.10), 0.6, 9),
        "electro": Machine((300, 50, 0.045, 0.30, 0.2), (250, 0.12, 0.22, 4200, 0.7),
                           (540, 0.035, 0.35, 0.1), (140, 0.35), (1700, 0.14), 0.2),
        "warehouse": Machine((210, 44, 0.035, 0.36, 0.7), (190, 0.05, 0.18, 3000, 0.8),
                             (450, 0.03, 0.25, 0.8), (90, 0.28), (1300, 0.16), 1.0),
        "hollow": Machine((110, 52, 0.05, 0.28, 0.05), (330, 0.14, 0.09, 2200, 0.35),
                          (260, 0.06, 0.40, 0.2), (150, 0.40), (900, 0.11)),
        "snappy": Machine((190, 64, 0.012, 0.14, 0.9), (280, 0.04, 0.09, 6000, 0.65),
                          (600, 0.02, 0.14, 0.6), (130, 0.15), (2000, 0.07), 0.1),
    },
    "test": {
        "boxy": Machine((150, 70, 0.025, 0.19, 0.4), (160, 0.09, 0.13, 1800, 0.45),
                        (350, 0.045, 0.26, 0.45), (112, 0.25), (1000, 0.10), 0.2),
        "lunar": Machine((270, 40, 0.06, 0.52, 0.15), (300, 0.10, 0.20, 4700, 0.75),
                         (490, 0.03, 0.33, 0.25), (80, 0.45), (1600, 0.15)),
        "gravel": Machine((180, 54, 0.02, 0.24, 0.8), (220, 0.07, 0.17, 2900, 0.62),
                          (380, 0.04, 0.20, 0.85), (100, 0.20), (1400, 0.12), 1.2, 10),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Patch:
    """A synthetic instrument: a spectrum whose brightness and loudness move with every note.

    ``wave`` is the spectrum before the filter; ``bright`` gives the filter's corner as a harmonic
    number: at the attack, after it, and the seconds between; ``amp`` is attack, decay, sustain and
    release; ``unison`` is voices and detune in cents; ``vibrato`` Hz and cents; ``index`` makes it
    a two-operator FM voice of that modulation index and ``ratio``.
    """

    wave: str
    bright: tuple[float, float, float]
    amp: tuple[float, float, float, float]
    resonance: float = 0.0
    unison: tuple[int, float] = (1, 0.0)
    vibrato: tuple[float, float] = (0.0, 0.0)
    glide: float = 0.0
    index: float = 0.0
    ratio: float = 1.0
    noise: float = 0.0
    sub: float = 0.0


PATCHES: dict[str, dict[str, dict[str, Patch]]] = {
    "train": {
        "bass": {
            "saw bass": Patch("saw", (18, 5, 0.15), (0.004, 0.3, 0.7, 0.05), 0.5),
            "square bass": Patch("square", (14, 6, 0.2), (0.004, 0.4, 0.7, 0.05), 0.2),
            "sub bass": Patch("sine", (3, 2, 0.2), (0.006, 0.8, 0.8, 0.08), glide=0.05),
            "growl bass": Patch("saw", (30, 9, 0.3), (0.004, 0.5, 0.8, 0.06), 0.9, (2, 14),
                                glide=0.04),
            "pluck bass": Patch("pluck", (24, 3, 0.25), (0.002, 0.7, 0.15, 0.06)),
        },
        "lead": {
            "saw lead": Patch("saw", (24, 14, 0.3), (0.01, 0.4, 0.8, 0.12), 0.3, (2, 9), (5.3, 18),
                              0.03),
            "square lead": Patch("square", (20, 11, 0.4), (0.01, 0.4, 0.8, 0.1), 0.2, (1, 0),
                                 (5.8, 22)),
            "whistle lead": Patch("sine", (3, 2, 0.3), (0.03, 0.4, 0.9, 0.12), 0, (1, 0), (5.0, 30),
                                  0.05, noise=0.05),
            "sync lead": Patch("sync", (36, 12, 0.35), (0.005, 0.5, 0.7, 0.1), 0.6, (2, 7),
                               (6.0, 10)),
        },
        "pad": {
            "wide pad": Patch("saw", (5, 10, 0.9), (0.25, 1.0, 0.9, 0.5), 0.2, (4, 16)),
            "soft pad": Patch("saw", (3, 4, 0.8), (0.35, 1.0, 0.9, 0.6), 0.1, (3, 10)),
            "choir-less pad": Patch("square", (4, 7, 1.2), (0.3, 1.0, 0.9, 0.6), 0.5, (3, 12)),
        },
        "pluck": {
            "saw pluck": Patch("saw", (26, 3, 0.12), (0.002, 0.25, 0.0, 0.08), 0.5, (2, 8)),
            "bell pluck": Patch("bell", (20, 6, 0.5), (0.002, 0.9, 0.0, 0.4)),
            "clav pluck": Patch("pulse", (30, 6, 0.15), (0.002, 0.35, 0.1, 0.04), 0.6),
        },
        "keys": {
            "tine keys": Patch("sine", (8, 3, 0.4), (0.003, 1.2, 0.2, 0.12), index=1.6, ratio=1.0),
            "drawbar keys": Patch("organ", (16, 16, 1.0), (0.006, 1.0, 1.0, 0.04),
                                  vibrato=(6.4, 9)),
        },
        "guitar": {
            "steel string": Patch("pluck", (40, 5, 0.45), (0.001, 1.8, 0.0, 0.12), noise=0.01),
            "muted string": Patch("pluck", (22, 3, 0.12), (0.001, 0.4, 0.0, 0.05), noise=0.02),
        },
    },
    "test": {
        "bass": {
            "pulse bass": Patch("pulse", (20, 7, 0.18), (0.004, 0.35, 0.7, 0.05), 0.4, sub=0.5),
            "reese bass": Patch("saw", (10, 8, 0.5), (0.01, 0.5, 0.9, 0.08), 0.2, (3, 24),
                                glide=0.04),
            "fm bass": Patch("sine", (6, 3, 0.2), (0.003, 0.4, 0.6, 0.05), index=2.5, ratio=1.0),
        },
        "lead": {
            "pulse lead": Patch("pulse", (28, 12, 0.3), (0.008, 0.4, 0.8, 0.1), 0.3, (2, 11),
                                (5.5, 20), 0.04),
            "fm lead": Patch("sine", (8, 4, 0.3), (0.01, 0.4, 0.8, 0.1), 0, (1, 0), (5.6, 16),
                             index=3.0, ratio=2.0),
        },
        "pad": {
            "pulse pad": Patch("pulse", (4, 8, 1.0), (0.3, 1.0, 0.9, 0.5), 0.3, (3, 14)),
            "glass pad": Patch("bell", (8, 5, 1.0), (0.2, 1.0, 0.8, 0.7), 0.1, (3, 8)),
        },
        "pluck": {
            "square pluck": Patch("square", (24, 3, 0.14), (0.002, 0.3, 0.0, 0.08), 0.4, (2, 6)),
            "kalimba pluck": Patch("bell", (6, 2, 0.2), (0.002, 0.5, 0.0, 0.2), noise=0.02),
        },
        "keys": {
            "reed keys": Patch("reed", (12, 9, 0.4), (0.02, 0.8, 0.8, 0.06), 0.2, (2, 6)),
        },
        "guitar": {
            "bright string": Patch("pluck2", (48, 8, 0.5), (0.001, 1.5, 0.0, 0.1), noise=0.01),
        },
    },
}  # fmt: skip
"""Our own synthetic instruments by family."""


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
