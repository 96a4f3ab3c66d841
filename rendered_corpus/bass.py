"""The bass: an instrument, and a line for verses and one for choruses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from rendered_corpus.form import Form
from rendered_corpus.song import Layer, Note, Sound
from rendered_corpus.tables import GROOVES, PATCHES, PROGRAMS

Event = tuple[int, int, int, float]
"""Step, steps, pitch and strength of a note."""


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
    gate = float(rng.uniform(0.55, 1.0))
    slides = float(rng.choice([0.0, 0.05, 0.2]))
    for section in form.playing("bass"):
        line = alternate if section.name == "chorus" else kind
        for bar in section.span:
            for step, steps, pitch, strength in _bar(form, rng, line, bar, low, kick):
                held = form.held(bar, step, steps) * (gate if steps < 8 else 0.97)
                bend = float(rng.choice([-2, -1, 2, -5])) if rng.random() < slides else 0.0
                if line == "glide" and rng.random() < 0.35:
                    bend = float(rng.choice([-12, -7, 7, 12, -5]))
                strength = float(np.clip(strength + 0.06 * rng.standard_normal(), 0.3, 1))
                notes.append(Note(form.at(rng, bar, step), held, pitch, strength, bend))
    drive = float(rng.choice([0.0, 0.0, 0.15, 0.4, 0.8], p=[0.4, 0.2, 0.2, 0.12, 0.08]))
    return [Layer("bass", kind, sound, tuple(notes), drive=drive)]


@dataclass(frozen=True)
class _Stretch:
    """The steps ``first`` to ``last`` of a bar, over which one chord sounds."""

    first: int
    last: int
    steps: int
    beat: int
    root: int
    fifth: int
    tones: list[int]
    next_root: int
    kick: str


def _bar(
    form: Form, rng: np.random.Generator, line: str, bar: int, low: int, kick: str
) -> Iterator[Event]:
    # Lazily: the notes' own draws lie between those of the line.
    next_root = low + (form.chord(bar + 1).root - low) % 12
    for first, length, chord in form.changes(bar):
        root = low + (chord.root - low) % 12
        stretch = _Stretch(
            first=first,
            last=first + length,
            steps=form.grid.steps,
            beat=form.grid.beat_steps,
            root=root,
            fifth=root + 7 if root + 7 < low + 15 else root - 5,
            tones=[root + t for t in chord.tones if t < 12],
            next_root=next_root,
            kick=kick,
        )
        if line in PATTERNS:
            yield from _pattern(stretch, rng, *PATTERNS[line])
        else:
            yield from LINES[line](stretch, rng)


PATTERNS: dict[str, tuple[float, tuple[tuple[int, int, str], ...]]] = {
    "dub": (0.8, ((0, 3, "any"), (3, 3, "any"), (6, 2, "any"), (10, 2, "any"), (12, 2, "any"),
                  (14, 2, "any"))),
    "bossa": (1.0, ((0, 6, "root"), (6, 2, "fifth"), (8, 6, "fifth"), (14, 2, "root"))),
    "tumbao": (1.0, ((0, 3, "root"), (6, 6, "fifth"), (12, 4, "octave"))),
    "sixeight": (0.85, ((0, 4, "root"), (4, 2, "fifth"), (6, 4, "root"), (10, 2, "top"))),
}  # fmt: skip
"""Lines with fixed steps: how likely each note is; step, steps and pitch."""


def _pattern(s: _Stretch, rng, chance: float, pattern) -> Iterator[Event]:
    pitches = {"root": s.root, "fifth": s.fifth, "octave": s.root + 12, "top": s.tones[-1]}
    for step, steps, name in pattern:
        if s.first <= step < s.last and (chance == 1.0 or rng.random() < chance):
            if name == "any":
                yield step, steps, int(rng.choice([s.root, s.root, s.fifth, s.root + 12])), 0.85
            else:
                yield step, steps, pitches[name], 0.8


def _root8(s: _Stretch, rng, jumps: float = 0.0) -> Iterator[Event]:
    for step in range(s.first, s.last, 2):
        pitch = s.root + 12 if jumps and rng.random() < jumps else s.root
        yield step, 2, pitch, 0.85 if step % s.beat == 0 else 0.7


def _pulse16(s: _Stretch, rng) -> Iterator[Event]:
    for step in range(s.first, s.last):
        if step % 4 == 0 and rng.random() < 0.3:
            continue
        yield step, 1, s.root + (12 if rng.random() < 0.1 else 0), 0.8 - 0.1 * (step % 2)


def _octave(s: _Stretch, rng) -> Iterator[Event]:
    for step in range(s.first, s.last, 2):
        yield step, 2, s.root + (12 if (step // 2) % 2 else 0), 0.8


def _offbeat(s: _Stretch, rng) -> Iterator[Event]:
    for step in range(s.first + 2, s.last, 4):
        yield step, 2, s.root, 0.85
        if rng.random() < 0.2:
            yield step + 1, 1, s.root + 12, 0.6


def _follow(s: _Stretch, rng) -> Iterator[Event]:
    """With the kick."""
    steps = [step for step in range(s.first, s.last) if (s.kick * 2)[step] in "xo"]
    if s.first not in steps:
        steps = [s.first, *steps]
    for a, b in zip(steps, [*steps[1:], s.last], strict=True):
        yield a, b - a, s.root if rng.random() < 0.85 else s.fifth, 0.85


def _syncopated(s: _Stretch, rng, slap: float = 0.0) -> Iterator[Event]:
    step = s.first
    while step < s.last:
        steps = int(rng.choice([1, 2, 3, 3, 4]))
        on = step == s.first
        if on or rng.random() < 0.75:
            pitch = s.root if on else int(rng.choice([s.root, s.root, s.fifth, *s.tones]))
            if slap and rng.random() < slap:
                pitch = s.root + 12
            yield step, min(steps, s.last - step), pitch, 0.9 if on else 0.7
        step += steps


def _walking(s: _Stretch, rng) -> Iterator[Event]:
    for step in range(s.first, s.last, s.beat):
        pitch = s.root if step == s.first else int(rng.choice(s.tones))
        if step + s.beat >= s.steps:  # towards the next bar's chord
            pitch = s.next_root + int(rng.choice([-1, 1, 2, -2]))
        yield step, s.beat, pitch, 0.78
        if rng.random() < 0.12:
            yield step + s.beat - 2, 2, pitch, 0.55


def _arpeggio(s: _Stretch, rng) -> Iterator[Event]:
    order = [s.root, *s.tones[1:], s.root + 12]
    for k, step in enumerate(range(s.first, s.last, 2)):
        yield step, 2, order[k % len(order)], 0.75


def _rootfive(s: _Stretch, rng) -> Iterator[Event]:
    for k, step in enumerate(range(s.first, s.last, max(s.beat, 4))):
        if k % 2 == 0 or rng.random() < 0.9:
            yield step, s.beat, s.root if k % 4 == 0 else s.fifth, 0.8


def _waltz(s: _Stretch, rng) -> Iterator[Event]:
    yield s.first, s.last - s.first, s.root, 0.85
    if s.last - s.first > 8 and rng.random() < 0.35:
        yield s.first + 8, 4, s.fifth, 0.65


def _sustained(s: _Stretch, rng) -> Iterator[Event]:
    length = s.last - s.first
    if length >= 16 and rng.random() < 0.4:
        yield s.first, 10, s.root, 0.85
        yield s.first + 10, length - 10, s.root, 0.75
    else:
        yield s.first, length, s.root, 0.85


LINES: dict[str, Callable[..., Iterator[Event]]] = {
    "root8": _root8,
    "pump": partial(_root8, jumps=0.12),
    "pulse16": _pulse16,
    "octave": _octave,
    "offbeat": _offbeat,
    "follow": _follow,
    "syncopated": _syncopated,
    "slap": partial(_syncopated, slap=0.3),
    "walking": _walking,
    "arpeggio": _arpeggio,
    "rootfive": _rootfive,
    "waltz": _waltz,
    "sustained": _sustained,
    "glide": _sustained,
}
