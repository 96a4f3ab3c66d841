"""The vocals: phrases from motifs, sung or rapped on made-up syllables, doubles and choirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rendered_corpus.form import Form
from rendered_corpus.harmony import nearest, transpose, voicing
from rendered_corpus.song import Layer, Note, Section, Sound, Syllable, rotating
from rendered_corpus.tables import CODAS, LENGTHS, NUCLEI, ONSETS, PROGRAMS, VOICES, Voice

Motif = list[tuple[int, int, int]]
"""Step, steps, and scale degrees from the note before."""


def vocals(form: Form) -> list[Layer]:
    """Layers of the lead singer, a rapper in some songs, and what doubles them."""
    rng = form.stream("vocals")
    voices = VOICES[form.subset]
    rappers = [name for name, voice in voices.items() if voice.delivery == "rap"]
    singers = [name for name in voices if name not in rappers]
    lead = rotating(form.seed, form.subset, 2, form.index, tuple(singers))
    rapping = rng.random() < form.style.rap
    names = {"lead": lead, "rap": str(rng.choice(rappers))}
    notes: dict[str, list[Note]] = {"lead": [], "rap": []}
    singer = _Singer(form, rng)
    for section in form.playing("vocals"):
        kind = "rap" if rapping and section.name in ("verse", "build", "break") else "lead"
        notes[kind] += singer.phrases(voices[names[kind]], section, rap=kind == "rap")
    layers = [
        Layer("vocals", kind, Sound("voice", names[kind]), tuple(notes[kind]))
        for kind in names
        if notes[kind]
    ]
    return layers + _backing(form, rng, layers, singers)


class _Singer:
    """Sings phrases, which come again from section to section: ``motifs``."""

    def __init__(self, form: Form, rng: np.random.Generator):
        self.form, self.rng = form, rng
        self.motifs: dict[str, Motif] = {}

    def phrases(self, voice: Voice, section: Section, *, rap: bool) -> list[Note]:
        """Notes of a section."""
        loud = section.name in ("chorus", "outro")
        span = 2 if section.bars >= 2 else 1
        lengths = LENGTHS["rap" if rap else self.form.style.pace]
        centre = voice.low + (voice.high - voice.low) * (0.62 if loud else 0.42)
        notes: list[Note] = []
        for k, first in enumerate(section.span[::span]):
            bars = min(span, section.first + section.bars - first)
            name = ("c" if loud else "v") + ("r" if rap else "") + "ab"[k % 2] + str(bars)
            if name not in self.motifs:
                self.motifs[name] = self._motif(lengths, bars * self.form.grid.steps)
            if self.rng.random() < 0.07 and k:
                continue  # the odd empty phrase
            notes += self._sing(voice, first, self.motifs[name], centre, rap=rap, loud=loud)
        return notes

    def _motif(self, lengths, total: int) -> Motif:
        """A phrase of at most ``total`` steps, which leaves room to breathe."""
        rng = self.rng
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

    def _sing(
        self, voice: Voice, bar: int, motif: Motif, centre: float, *, rap: bool, loud: bool
    ) -> list[Note]:
        """Notes of a motif from a bar on."""
        form, rng = self.form, self.rng
        grid, scale = form.grid, form.scale
        notes, pitch = [], nearest(centre + rng.normal(0, 1.5), scale)
        legato = float(rng.uniform(0.8, 1.0))
        strength = float(rng.uniform(0.75, 1.0) if loud else rng.uniform(0.5, 0.85))
        for step, steps, move in motif:
            if rap:
                pitch = centre - 5 + 0.8 * move + float(rng.normal(0, 1.2))
            else:
                target = pitch + 1.8 * move - 0.25 * (pitch - centre)
                strong = step % grid.beat_steps == 0 or steps >= 4
                chord = form.chord(bar + step // grid.steps, step % grid.steps)
                classes = chord.classes if strong and rng.random() < 0.75 else scale
                pitch = nearest(float(np.clip(target, voice.low, voice.high)), classes)
            held = form.held(bar, step, steps) * (legato if steps > 1 else 0.95)
            start = form.at(rng, bar, step, 0.012)
            syllable = _syllable(rng, hold=held > 0.8, rap=rap)
            power = float(np.clip(strength + 0.08 * rng.standard_normal(), 0.3, 1.0))
            if not rap and steps >= 4 and rng.random() < 0.12:
                # Melisma: the vowel runs on over two more notes.
                third, tail = held / 3, Syllable("", syllable.vowel[-1:], "")
                turn = nearest(pitch + rng.choice([2, -2]), scale)
                home = nearest(pitch, scale)
                sung = replace(syllable, coda=""), tail, replace(tail, coda=syllable.coda)
                for k, (p, s) in enumerate(zip((home, turn, home), sung, strict=True)):
                    notes.append(Note(start + k * third, third, p, power, 0.0, s))
                continue
            bend = -float(rng.uniform(0.7, 2.5)) if rng.random() < 0.3 else 0.0
            notes.append(Note(start, held, pitch, power, bend, syllable))
        return notes


def _syllable(rng: np.random.Generator, *, hold: bool, rap: bool) -> Syllable:
    onset, vowel, coda = (_pick(rng, weights) for weights in (ONSETS, NUCLEI, CODAS))
    if hold and rng.random() < 0.5:
        coda = ""
    if rap and not onset and rng.random() < 0.6:
        onset = "d"
    return Syllable(onset, tuple(vowel.split()), coda)


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    chances = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(weights), p=chances / chances.sum()))]


def _backing(
    form: Form, rng: np.random.Generator, layers: list[Layer], singers: Sequence[str]
) -> list[Layer]:
    """Doubles, a second voice and a choir, each in some songs."""
    choruses = [s for s in form.playing("vocals") if s.name in ("chorus", "outro")]

    def in_chorus(notes: Sequence[Note]) -> list[Note]:
        return [n for n in notes if any(s.start - 0.2 <= n.start < s.end for s in choruses)]

    extra: list[Layer] = []
    for layer in layers:
        if rng.random() < 0.22:
            kept = layer.notes if rng.random() < 0.4 else in_chorus(layer.notes)
            again = tuple(replace(n, start=n.start + float(rng.normal(0.0, 0.014))) for n in kept)
            pan = float(rng.uniform(-0.4, 0.4))
            extra.append(Layer("vocals", "double", layer.sound, again, -3.0, pan))
    leads = [x for x in layers if x.role == "lead"]
    if leads and rng.random() < 0.35:
        shift = int(rng.choice([2, 2, -3, 4, -5]))  # scale degrees
        name = str(rng.choice(singers)) if rng.random() < 0.6 else leads[0].sound.name
        voice = VOICES[form.subset][name]
        notes = []
        for note in in_chorus(leads[0].notes):
            pitch = transpose(note.pitch, shift, form.scale)
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
        extra += _choir(form, rng, singers)
    return extra


def _choir(form: Form, rng: np.random.Generator, singers: Sequence[str]) -> list[Layer]:
    """Held "ooh" and "aah" chords behind the sections of one name."""
    sections = list(form.playing("vocals"))
    chosen = sections[int(rng.integers(len(sections)))].name
    syllable = Syllable("", (str(rng.choice(["u", "a", "o", "O"])),), "")
    sampled = rng.random() < 0.4
    name = str(rng.choice(singers))
    voice = VOICES[form.subset][name]
    centre = 64 if sampled else (voice.low + voice.high) / 2 + 2
    size = 3 if sampled else 2
    lines: list[list[Note]] = [[] for _ in range(size)]
    for bar in (bar for s in sections if s.name == chosen for bar in s.span):
        for first, length, chord in form.changes(bar):
            held = form.held(bar, first, length) * 0.93
            start = form.at(rng, bar, first)
            for line, pitch in zip(lines, voicing(chord, centre, size), strict=False):
                line.append(Note(start, held, pitch, 0.6, 0.0, syllable))
    level = float(rng.uniform(-12, -5))
    if sampled:
        program = PROGRAMS[form.subset]["choir"][0]
        sound = Sound("font", f"program {program}", program)
        return [Layer("vocals", "choir", sound, tuple(n for line in lines for n in line), level)]
    sound = Sound("voice", name)
    return [
        Layer("vocals", "choir", sound, tuple(line), level, pan)
        for line, pan in zip(lines, (-0.6, 0.6), strict=True)
    ]
