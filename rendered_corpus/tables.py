"""The tables that songs are made from, read once from the YAML files beside it.

What a song sounds like has one entry per subset: no test song uses an instrument, singer or
progression of a training song.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


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
    delivery: str = "sung"


@dataclass(frozen=True)
class Style:
    """A genre's ranges and choices; ``swing`` is (level in steps, least, most).

    A song draws some of the ``grooves``, ``keepers`` and ``roles``, tables below, and of the lines
    of ``bass``. Shares of songs or of sections: ``machine`` drum machines, ``synth_bass``,
    ``percussion``, ``rap``, ``duck`` (all but the drums duck under the kick), ``fills``. ``pace``
    is that of the singing.
    """

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


@dataclass(frozen=True)
class Role:
    """What somebody of the other stem plays: ``centre`` is the range of its register's centre.

    ``families`` are those of :data:`PROGRAMS`, or of :data:`PATCHES` after ``patch``.
    """

    families: tuple[str, ...]
    figure: str
    centre: tuple[int, int]


@dataclass(frozen=True)
class Consonant:
    """How a consonant sounds: formant locus (Hz), seconds, and its sources' levels.

    ``closure`` is silence before the release, ``burst`` and ``noise`` are (level, centre in Hz,
    bandwidth in Hz) of frication, ``voiced`` and ``breath`` the glottal levels, ``nasal`` the
    opening of the nose in 0..1.
    """

    locus: tuple[float, float, float]
    seconds: float
    closure: float = 0.0
    burst: tuple[float, float, float] = (0.0, 3000.0, 2000.0)
    noise: tuple[float, float, float] = (0.0, 5000.0, 3000.0)
    voiced: float = 0.0
    breath: float = 0.0
    nasal: float = 0.0


def _load(name: str) -> dict[str, Any]:
    text = Path(__file__).with_name(name).read_text("utf-8")
    # The parser in C takes a thirtieth of the time.
    return _frozen(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _frozen(content: Any) -> Any:
    """The same with tuples for lists."""
    if isinstance(content, dict):
        return {key: _frozen(value) for key, value in content.items()}
    return tuple(map(_frozen, content)) if isinstance(content, list) else content


def _made(kind: type, table: dict[str, dict]) -> dict[str, Any]:
    return {name: kind(**values) for name, values in table.items()}


TABLES = {**_load("sounds.yaml"), **_load("styles.yaml"), **_load("voice.yaml")}

PROGRESSIONS: dict[str, tuple[tuple[str, str], ...]] = {
    subset: tuple((mode, chords) for mode, rows in modes.items() for chords in rows)
    for subset, modes in TABLES["progressions"].items()
}
"""Mode and chord numerals, by subset."""

PROGRAMS: dict[str, dict[str, tuple[int, ...]]] = TABLES["programs"]
KITS: dict[str, tuple[int, ...]] = TABLES["kits"]
MACHINES: dict[str, dict[str, Machine]] = {
    subset: _made(Machine, table) for subset, table in TABLES["machines"].items()
}
PATCHES: dict[str, dict[str, dict[str, Patch]]] = {
    subset: {family: _made(Patch, table) for family, table in families.items()}
    for subset, families in TABLES["patches"].items()
}
VOICES: dict[str, dict[str, Voice]] = {
    subset: _made(Voice, table) for subset, table in TABLES["voices"].items()
}

STYLES: dict[str, Style] = _made(Style, TABLES["styles"])
GROOVES: dict[str, tuple[tuple[str, str], ...]] = TABLES["grooves"]
KEEPERS: dict[str, dict[int, str]] = TABLES["keepers"]
PERCUSSION: tuple[dict[int, str], ...] = TABLES["percussion"]
ROLES: dict[str, Role] = _made(Role, TABLES["roles"])
PLANS: tuple[tuple[str, ...], ...] = TABLES["plans"]
CHANCES: dict[str, tuple[float, ...]] = TABLES["chances"]
ARTISTS: tuple[tuple[str, ...], ...] = TABLES["artists"]
TITLES: tuple[tuple[str, ...], ...] = TABLES["titles"]

VOWELS: dict[str, tuple[float, ...]] = TABLES["vowels"]
CONSONANTS: dict[str, Consonant] = _made(Consonant, TABLES["consonants"])
ONSETS: dict[str, float] = TABLES["onsets"]
NUCLEI: dict[str, float] = TABLES["nuclei"]
CODAS: dict[str, float] = TABLES["codas"]
LENGTHS: dict[str, tuple[tuple[float, ...], ...]] = TABLES["lengths"]
