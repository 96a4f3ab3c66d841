"""The other stem: guitars, keys, strings, winds and synthesizers, each playing a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partialmethod

import numpy as np

from rendered_corpus.form import Form
from rendered_corpus.harmony import Chord, nearest, voicing
from rendered_corpus.song import Layer, Note, Section, Sound
from rendered_corpus.tables import PATCHES, PROGRAMS, ROLES


def other(form: Form) -> list[Layer]:
    """Layers of one to five accompanying roles."""
    rng = form.stream("other")
    count = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.32, 0.18]))
    roles = list(form.style.roles)
    rng.shuffle(roles)
    roles = roles[:count]
    if all(role in ("solo", "lead", "fiddle", "pipe", "brass") for role in roles):
        roles.append(str(rng.choice(["keys", "pad", "strum", "organ"])))
    if rng.random() < 0.2:
        roles.append(str(rng.choice(list(ROLES))))
    return [layer for k, role in enumerate(roles) for layer in _role(form, rng, role, k == 0)]


def _role(form: Form, rng: np.random.Generator, role: str, first: bool) -> list[Layer]:
    figure = ROLES[role].figure
    family = str(rng.choice(ROLES[role].families))
    drive = 0.0
    if family.startswith("patch "):
        names = tuple(PATCHES[form.subset][family.removeprefix("patch ")])
        sound = Sound("patch", str(rng.choice(names)))
    else:
        program = int(rng.choice(PROGRAMS[form.subset][family]))
        sound = Sound("font", f"program {program}", program)
    if figure in ("power", "chug", "riff") or family == "driven":
        drive = float(rng.uniform(0.5, 1.0))
    elif rng.random() < 0.2:
        drive = float(rng.uniform(0.05, 0.4))
    low, high = ROLES[role].centre
    centre = int(rng.integers(low, high + 1))
    sections = []
    for section in form.playing("other"):
        chance = 0.95 if first or section.name in ("chorus", "solo") else 0.6
        if figure == "melody":
            chance = {"solo": 1.0, "intro": 0.7, "break": 0.7}.get(section.name, 0.35)
        if rng.random() < chance:
            sections.append(section)
    notes = _Player(form, rng, centre).notes(sections, figure)
    level = float(rng.normal(0 if first else -3, 2.5))
    pan = float(rng.uniform(-0.7, 0.7)) * (0.5 if first else 1.0)
    layer = Layer("other", role, sound, notes, level, pan, drive)
    if figure not in ("power", "chug", "strum") or rng.random() >= 0.5:
        return [layer]
    # Double-tracked guitars: the same part played twice, left and right.
    again = tuple(replace(n, start=n.start + float(rng.normal(0.004, 0.007))) for n in notes)
    left = replace(layer, pan=-0.8, level=level - 2)
    return [left, replace(left, pan=0.8, notes=again)]


class _Player:
    """Turns chords into the notes of one accompanying layer.

    Each figure of :data:`ROLES` is a method, ``_`` and its name, that plays one chord: the steps
    ``first`` to ``last`` of a bar. ``mask`` are the steps that a rhythmic figure plays, ``cells``
    its moves.
    """

    def __init__(self, form: Form, rng: np.random.Generator, centre: int):
        self.form, self.rng, self.centre = form, rng, centre
        self.steps, self.beat = form.grid.steps, form.grid.beat_steps
        self.size = int(rng.choice([2, 3, 3, 4]))
        self.gate = float(rng.uniform(0.5, 1.0))
        self.stride = int(rng.choice([1, 2, 2, 2, 4]))
        if form.tempo > 135 and self.stride == 1:
            self.stride = 2
        self.order = str(rng.choice(["up", "down", "updown", "random"]))
        self.mask = rng.random(self.steps) < rng.uniform(0.25, 0.55)
        self.mask[0] = rng.random() < 0.8
        moves = [-3, -2, 0, 0, 1, 2, 3, 4, 5]
        self.cells = [int(x) for x in rng.choice(moves, size=2 * self.steps)]
        self.hard = float(rng.uniform(0.55, 0.95))
        self.strike = float(rng.choice([0.0, 0.008, 0.016, 0.03]))
        self.bends = float(rng.choice([0.0, 0.1, 0.3]))

    def notes(self, sections: Sequence[Section], figure: str) -> tuple[Note, ...]:
        """Notes of a figure in these sections."""
        self.out: list[Note] = []
        play = getattr(self, f"_{figure}")
        for section in sections:
            if figure == "melody":
                play(section)
                continue
            for bar in section.span:
                for first, length, chord in self.form.changes(bar):
                    play(bar, first, first + length, chord)
        return tuple(self.out)

    def _play(self, bar, step, steps, pitches, *, gate=None, spread=0.0, accent=0.0, bend=0.0):
        start = self.form.at(self.rng, bar, step)
        held = self.form.held(bar, step, steps) * (self.gate if gate is None else gate)
        for k, pitch in enumerate(pitches):
            strength = self.hard + accent + 0.06 * self.rng.standard_normal()
            length = max(held - k * spread, 0.04)
            velocity = float(np.clip(strength, 0.2, 1.0))
            self.out.append(Note(start + k * spread, length, pitch, velocity, bend))

    def _voices(self, chord: Chord) -> list[int]:
        return voicing(chord, self.centre, self.size)

    def _fifths(self, chord: Chord) -> list[int]:
        root = self.centre - 5 + (chord.root - self.centre + 5) % 12
        return [root, root + 7, root + 12]

    def _sustained(self, bar, first, last, chord):
        self._play(bar, first, last - first, self._voices(chord), gate=0.98)

    def _block(self, bar, first, last, chord):
        for step in range(first, last, self.beat):
            if step == first or self.rng.random() < 0.8:
                self._play(bar, step, self.beat, self._voices(chord), accent=0.05 * (step == first))
        if self.rng.random() < 0.5:
            low = nearest(self.centre - 14, [chord.root])
            self._play(bar, first, last - first, [low], gate=0.9)

    def _strum(self, bar, first, last, chord):
        full = voicing(chord, self.centre, min(self.size + 2, 6))
        for step in range(first, last, 2):
            if step == first or self.mask[step] or step % self.beat == 0:
                down = step % self.beat == 0
                self._play(
                    bar,
                    step,
                    2 if self.rng.random() < 0.7 else 4,
                    full if down else full[::-1],
                    gate=0.95,
                    spread=max(self.strike, 0.006),
                    accent=0.05 if down else -0.12,
                )

    def _arpeggio(self, bar, first, last, chord):
        run = voicing(chord, self.centre, max(self.size, 3) + 1)
        run = {"down": run[::-1], "updown": run + run[-2:0:-1]}.get(self.order, run)
        ring = 1.6 if self.gate > 0.75 else self.gate
        for k, step in enumerate(range(first, last, self.stride)):
            pitch = run[k % len(run)] if self.order != "random" else int(self.rng.choice(run))
            self._play(bar, step, self.stride, [pitch], gate=ring)

    def _hits(self, bar, first, last, chord, *, stab: bool):
        for step in range(first, last):
            if not self.mask[step]:
                continue
            dense = step % 2 == 0 or self.rng.random() < 0.4
            if stab:
                dense = step % 2 == 0 and self.rng.random() < 0.55
            if dense:
                steps = int(self.rng.choice([1, 2, 2, 3]))
                self._play(bar, step, steps, self._voices(chord), spread=self.strike * 0.3)

    _syncopated = partialmethod(_hits, stab=False)
    _stab = partialmethod(_hits, stab=True)

    def _scratch(self, bar, first, last, chord):
        for step in range(first, last):
            if self.mask[step] or step % 4 == 0:
                short = 0.35 if self.rng.random() < 0.7 else 0.9
                accent = -0.1 * (step % 2)
                self._play(bar, step, 1, self._voices(chord), gate=short, accent=accent)

    def _offbeat(self, bar, first, last, chord):
        for step in range(first, last):
            if step % self.beat == self.beat // 2:
                self._play(bar, step, 2, self._voices(chord), gate=min(self.gate, 0.6))

    def _montuno(self, bar, first, last, chord):
        pitches = self._voices(chord)
        for step in range(first, last, 2):
            octave = (step // 2) % 3 == 0
            top = pitches[-1]
            pair = [top, top - 12] if octave else [int(self.rng.choice(pitches))]
            if step % 4 or self.rng.random() < 0.7:
                self._play(bar, step, 2, pair)

    def _ostinato(self, bar, first, last, chord):
        for step in range(first, last):
            if self.mask[step]:
                pitch = nearest(self.centre + 2 * self.cells[step], chord.classes)
                self._play(bar, step, 2, [pitch], gate=1.2)

    def _riff(self, bar, first, last, chord):
        for step in range(first, last):
            if (self.mask[step] and step % 2 == 0) or step == first:
                move = self.cells[step + (self.steps if bar % 2 else 0)]
                classes = self.form.scale if step != first else [chord.root]
                pitch = nearest(self.centre + move, classes)
                bend = -1.0 if self.rng.random() < self.bends else 0.0
                self._play(bar, step, 2, [pitch], gate=0.95, bend=bend)

    def _power(self, bar, first, last, chord):
        steps = last - first if self.stride == 4 else 2
        for step in range(first, last, steps):
            ringing = step == first or self.rng.random() < 0.3
            gate = 0.97 if ringing else self.gate * 0.7
            self._play(bar, step, steps, self._fifths(chord), gate=gate, accent=0.05 * ringing)

    def _chug(self, bar, first, last, chord):
        power = self._fifths(chord)
        for step in range(first, last):
            if step == first or self.mask[step] or self.stride == 1:
                if step == first or self.rng.random() < 0.12:
                    self._play(bar, step, 2, power, gate=0.9)
                else:
                    self._play(bar, step, 1, power[:2], gate=0.5)

    def _melody(self, section: Section):
        """A counter-melody or solo; it steps aside while somebody sings."""
        rng = self.rng
        singing = "vocals" in section.parts
        pitch = float(self.centre)
        for bar in section.span:
            step = int(rng.choice([0, 2, 4]))
            if singing and bar % 2 == 0 and rng.random() < 0.6:
                step = self.steps // 2
            while step < self.steps:
                steps = int(rng.choice([1, 2, 2, 3, 4, 4, 6, 8]))
                if rng.random() < (0.4 if singing else 0.15):
                    step += steps
                    continue
                strong = step % self.beat == 0
                classes = self.form.chord(bar, step).classes if strong else self.form.scale
                pitch += float(rng.choice([-4, -2, -2, -1, 1, 2, 2, 4]))
                pitch -= 0.2 * (pitch - self.centre)
                bend = float(rng.choice([-1, -2])) if rng.random() < 0.35 else 0.0
                self._play(bar, step, steps, [nearest(pitch, classes)], gate=0.97, bend=bend)
                step += steps
