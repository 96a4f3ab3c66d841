"""Chords and scales: numerals to pitch classes, pitches near a register's centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
}
PITCH_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

_DEGREES = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}
_TONES = {
    "": (0, None, 7),
    "5": (0, 7),
    "6": (0, None, 7, 9),
    "7": (0, None, 7, 10),
    "9": (0, 4, 7, 10, 14),
    "add9": (0, None, 7, 14),
    "maj7": (0, 4, 7, 11),
    "sus4": (0, 5, 7),
}
"""Semitones above the root by suffix; None is the third, which the numeral's case decides."""


@dataclass(frozen=True)
class Chord:
    """Root pitch class, and intervals above it in semitones."""

    root: int
    tones: tuple[int, ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """Pitch classes, root first."""
        return tuple((self.root + tone) % 12 for tone in self.tones)


def parse_chord(numeral: str, tonic: int) -> Chord:
    """Chord of a numeral such as ``bVII``, ``ii7`` or ``Imaj7``; lower case is minor.

    Raises
    ------
    ValueError
        If the numeral is not understood.
    """
    text = numeral.removeprefix("b")
    flat = len(numeral) - len(text)
    suffix = text.lstrip("IViv")
    letters = text[: len(text) - len(suffix)]
    if letters.upper() not in _DEGREES or suffix not in _TONES:
        raise ValueError(f"Chord numeral {numeral!r} is not understood.")
    third = 4 if letters.isupper() else 3
    tones = tuple(third if tone is None else tone for tone in _TONES[suffix])
    return Chord((tonic + _DEGREES[letters.upper()] - flat) % 12, tones)


def voicing(chord: Chord, centre: float, size: int) -> list[int]:
    """Pitches of a chord near ``centre``, ascending: close position, at most ``size`` notes."""
    near = range(int(centre) - 12, int(centre) + 13)
    pitches = [pitch for pitch in near if pitch % 12 in chord.classes]
    return sorted(sorted(pitches, key=lambda p: (abs(p - centre), p))[:size])


def nearest(pitch: float, classes: Sequence[int]) -> int:
    """Pitch of one of the pitch classes nearest to ``pitch``."""
    options = [p for p in range(int(pitch) - 7, int(pitch) + 8) if p % 12 in classes]
    return min(options, key=lambda p: (abs(p - pitch), p))


def transpose(pitch: float, degrees: int, scale: Sequence[int]) -> int:
    """Pitch that lies so many scale degrees above ``pitch``."""
    notes = [12 * octave + c for octave in range(11) for c in sorted(scale)]
    place = notes.index(nearest(pitch, scale)) + degrees
    return notes[min(max(place, 0), len(notes) - 1)]
