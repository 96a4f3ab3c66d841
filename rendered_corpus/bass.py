"""The bass: an instrument, and a line for verses and one for choruses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod

import numpy as np

from rendered_corpus.form import Form
from rendered_corpus.song import Layer, Note, Sound
from rendered_corpus.tables import GROOVES, PATCHES, PROGRAMS

Event = tuple[int, int, int, float]
"""Step, steps, pitch and strength of a note."""

PATTERNS: dict[str, tuple[float, tuple[tuple[int, int, str], ...]]] = {
    "dub": (0.8, ((0, 3, "any"), (3, 3, "any"), (6, 2, "any"), (10, 2, "any"), (12, 2, "any"),
                  (14, 2, "any"))),
    "bossa": (1.0, ((0, 6, "root"), (6, 2, "fifth"), (8, 6, "fifth"), (14, 2, "root"))),
    "tumbao": (1.0, ((0, 3, "root"), (6, 6, "fifth"), (12, 4, "octave"))),
    "sixeight": (0.85, ((0, 4, "root"), (4, 2, "fifth"), (6, 4, "root"), (10, 2, "top"))),
}  # fmt: skip
"""Lines with fixed steps: how likely each note is; step, steps and pitch."""


def bass(form: Form) -> list[Layer]:
    """The bass's layer."""
    rng = form.stream("bass")
    style = form.style
    synthetic = rng.random() < style.synth_bass
    kind = str(rng.choice(style.bass))
    alternate = str(rng.choice(style.bass))
    if synthetic:
        sound = Sound("patch", str(rng.choice(tuple(PATCHES[form.subset]["bass"]))))
    else:
        programs = PROGRAMS[form.subset]["bass"]
        program = int(rng.choice(programs))
        if form.style_name in ("swing", "bossa", "folk", "waltz") and rng.random() < 0.6:
            program = programs[0]
        sound = Sound("font", f"program {program}", program)
    low = int(rng.integers(26, 32)) if synthetic else int(rng.integers(28, 34))
    family = GROOVES[style.grooves[0]]
    kick = family[int(rng.integers(len(family)))][0]
    notes: list[Note] = []
    bassist = _Bassist(form, rng, low, kick)
    gate = float(rng.uniform(0.55, 1.0))
    slides = float(rng.choice([0.0, 0.05, 0.2]))
    for section in form.playing("bass"):
        line = alternate if section.name == "chorus" else kind
        for bar in section.span:
            for step, steps, pitch, strength in bassist.bar(line, bar):
                held = form.held(bar, step, steps) * (gate if steps < 8 else 0.97)
                bend = float(rng.choice([-2, -1, 2, -5])) if rng.random() < slides else 0.0
                if line == "glide" and rng.random() < 0.35:
                    bend = float(rng.choice([-12, -7, 7, 12, -5]))
                strength = float(np.clip(strength + 0.06 * rng.standard_normal(), 0.3, 1))
                notes.append(Note(form.at(rng, bar, step), held, pitch, strength, bend))
    drive = float(rng.choice([0.0, 0.0, 0.15, 0.4, 0.8], p=[0.4, 0.2, 0.2, 0.12, 0.08]))
    return [Layer("bass", kind, sound, tuple(notes), drive=drive)]


class _Bassist:
    """Plays lines, chord by chord: a line is a method, ``_`` and its name, or one of the patterns.

    A chord sounds from step ``first`` to ``last`` of a bar; ``tones`` are its pitches.
    """

    def __init__(self, form: Form, rng: np.random.Generator, low: int, kick: str):
        self.form, self.rng, self.low, self.kick = form, rng, low, kick
        self.steps, self.beat = form.grid.steps, form.grid.beat_steps

    def bar(self, line: str, bar: int) -> Iterator[Event]:
        """Notes of one bar; lazily, as the notes' own draws lie between those of the line."""
        low = self.low
        self.next_root = low + (self.form.chord(bar + 1).root - low) % 12
        for first, length, chord in self.form.changes(bar):
            self.first, self.last = first, first + length
            self.root = root = low + (chord.root - low) % 12
            self.octave = root + 12
            self.fifth = root + 7 if root + 7 < low + 15 else root - 5
            self.tones = [root + t for t in chord.tones if t < 12]
            yield from self._pattern(line) if line in PATTERNS else getattr(self, f"_{line}")()

    def _pattern(self, line: str) -> Iterator[Event]:
        chance, pattern = PATTERNS[line]
        for step, steps, name in pattern:
            if self.first <= step < self.last and (chance == 1.0 or self.rng.random() < chance):
                if name == "any":
                    choices = [self.root, self.root, self.fifth, self.octave]
                    yield step, steps, int(self.rng.choice(choices)), 0.85
                else:
                    yield step, steps, self.tones[-1] if name == "top" else getattr(self, name), 0.8

    def _root8(self, jumps: float = 0.0) -> Iterator[Event]:
        for step in range(self.first, self.last, 2):
            pitch = self.octave if jumps and self.rng.random() < jumps else self.root
            yield step, 2, pitch, 0.85 if step % self.beat == 0 else 0.7

    _pump = partialmethod(_root8, jumps=0.12)

    def _pulse16(self) -> Iterator[Event]:
        for step in range(self.first, self.last):
            if step % 4 == 0 and self.rng.random() < 0.3:
                continue
            pitch = self.octave if self.rng.random() < 0.1 else self.root
            yield step, 1, pitch, 0.8 - 0.1 * (step % 2)

    def _octave(self) -> Iterator[Event]:
        for step in range(self.first, self.last, 2):
            yield step, 2, self.octave if (step // 2) % 2 else self.root, 0.8

    def _offbeat(self) -> Iterator[Event]:
        for step in range(self.first + 2, self.last, 4):
            yield step, 2, self.root, 0.85
            if self.rng.random() < 0.2:
                yield step + 1, 1, self.octave, 0.6

    def _follow(self) -> Iterator[Event]:
        """With the kick."""
        steps = [step for step in range(self.first, self.last) if (self.kick * 2)[step] in "xo"]
        if self.first not in steps:
            steps = [self.first, *steps]
        for a, b in zip(steps, [*steps[1:], self.last], strict=True):
            yield a, b - a, self.root if self.rng.random() < 0.85 else self.fifth, 0.85

    def _syncopated(self, slap: float = 0.0) -> Iterator[Event]:
        step = self.first
        while step < self.last:
            steps = int(self.rng.choice([1, 2, 3, 3, 4]))
            on = step == self.first
            if on or self.rng.random() < 0.75:
                others = [self.root, self.root, self.fifth, *self.tones]
                pitch = self.root if on else int(self.rng.choice(others))
                if slap and self.rng.random() < slap:
                    pitch = self.octave
                yield step, min(steps, self.last - step), pitch, 0.9 if on else 0.7
            step += steps

    _slap = partialmethod(_syncopated, slap=0.3)

    def _walking(self) -> Iterator[Event]:
        for step in range(self.first, self.last, self.beat):
            pitch = self.root if step == self.first else int(self.rng.choice(self.tones))
            if step + self.beat >= self.steps:  # towards the next bar's chord
                pitch = self.next_root + int(self.rng.choice([-1, 1, 2, -2]))
            yield step, self.beat, pitch, 0.78
            if self.rng.random() < 0.12:
                yield step + self.beat - 2, 2, pitch, 0.55

    def _arpeggio(self) -> Iterator[Event]:
        order = [self.root, *self.tones[1:], self.octave]
        for k, step in enumerate(range(self.first, self.last, 2)):
            yield step, 2, order[k % len(order)], 0.75

    def _rootfive(self) -> Iterator[Event]:
        for k, step in enumerate(range(self.first, self.last, max(self.beat, 4))):
            if k % 2 == 0 or self.rng.random() < 0.9:
                yield step, self.beat, self.root if k % 4 == 0 else self.fifth, 0.8

    def _waltz(self) -> Iterator[Event]:
        yield self.first, self.last - self.first, self.root, 0.85
        if self.last - self.first > 8 and self.rng.random() < 0.35:
            yield self.first + 8, 4, self.fifth, 0.65

    def _sustained(self) -> Iterator[Event]:
        length = self.last - self.first
        if length >= 16 and self.rng.random() < 0.4:
            yield self.first, 10, self.root, 0.85
            yield self.first + 10, length - 10, self.root, 0.75
        else:
            yield self.first, length, self.root, 0.85

    _glide = _sustained
