"""The plan of a song, which all its parts follow: style, bars in time, sections and chords."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rendered_corpus.harmony import MODES, PITCH_NAMES, Chord, parse_chord
from rendered_corpus.song import STEMS, Section, rotating, stream
from rendered_corpus.tables import CHANCES, PLANS, PROGRESSIONS, STYLES, Style


@dataclass(frozen=True)
class Grid:
    """Bars and steps (sixteenths) in seconds, with swing and a slow tempo wander.

    ``starts`` are the starts of the song's bars and of one more, and its end, in seconds
    (``(bars + 2,)``); ``steps`` of a bar and ``beat_steps`` of a beat; ``swing_unit`` is the level
    that swings, in steps, by ``swing``.
    """

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
        bar = max(bar, 0)
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
class Form:
    """A song's plan.

    ``chords`` are the two halves of every bar and of one more; ``loose`` is the players'
    timing, the standard deviation of a note's start in seconds.
    """

    seed: int
    subset: str
    index: int
    seconds: float
    style_name: str
    tempo: float
    grid: Grid
    sections: tuple[Section, ...]
    tonic: int
    mode: str
    loose: float
    progressions: tuple[str, ...]
    chords: tuple[tuple[Chord, Chord], ...]

    @property
    def style(self) -> Style:
        """The genre's ranges and choices."""
        return STYLES[self.style_name]

    @property
    def key(self) -> str:
        """Tonic and mode, such as ``"Eb minor"``."""
        return f"{PITCH_NAMES[self.tonic]} {self.mode}"

    @property
    def scale(self) -> tuple[int, ...]:
        """Pitch classes of the key."""
        return tuple((self.tonic + step) % 12 for step in MODES[self.mode])

    def stream(self, name: str) -> np.random.Generator:
        """Random stream of one concern of this song."""
        return stream(self.seed, self.subset, self.index, name)

    def chord(self, bar: int, step: float = 0) -> Chord:
        """Chord at a step of a bar; the first one holds before the start."""
        return self.chords[max(bar, 0)][0 if step < self.grid.steps / 2 else 1]

    def changes(self, bar: int) -> list[tuple[int, int, Chord]]:
        """First step, steps and chord of each chord of a bar: one or two."""
        first, second = self.chords[bar]
        steps = self.grid.steps
        half = steps // 2
        if first == second:
            return [(0, steps, first)]
        return [(0, half, first), (half, steps - half, second)]

    def at(self, rng: np.random.Generator, bar: int, step: float, push: float = 0.0) -> float:
        """Seconds at which somebody plays a step, ``push`` late and as loosely as in this song."""
        return self.grid.time(bar, step) + push + self.loose * float(rng.standard_normal())

    def held(self, bar: int, step: float, steps: float) -> float:
        """Seconds that so many steps last from a step on."""
        return self.grid.time(bar, step + steps) - self.grid.time(bar, step)

    def playing(self, stem: str) -> Iterator[Section]:
        """Sections in which a stem plays."""
        return (section for section in self.sections if stem in section.parts)


def plan(seed: int, subset: str, index: int, seconds: float) -> Form:
    """Plan a song of nominally so many seconds."""
    rng = stream(seed, subset, index, "form")
    style_name = rotating(seed, subset, 0, index, tuple(STYLES))
    style = STYLES[style_name]
    seconds = round(float(seconds * rng.uniform(0.8, 1.2)), 3)
    tempo = float(np.clip(rng.uniform(*style.tempo), 48, 180))
    steps = 16 if style.meter == "4/4" else 12
    beat_steps = 6 if style.meter == "6/8" else 4
    bar = 60.0 / tempo * steps / beat_steps
    bars = max(int(np.ceil(seconds / bar)), 2)
    wander = 1 + 0.006 * rng.standard_normal(bars + 1) * rng.choice([0.0, 1.0])
    starts = np.concatenate([[0.0], np.cumsum(bar * wander)])
    unit, least, most = style.swing
    grid = Grid(starts, steps, beat_steps, unit, float(rng.uniform(least, most)))
    sections = _sections(rng, grid, bars)
    tonic = int(rng.integers(12))
    loose = float(rng.choice([0.002, 0.006, 0.011], p=[0.3, 0.5, 0.2]))

    rng = stream(seed, subset, index, "harmony")
    mode, verse = rotating(seed, subset, 1, index, PROGRESSIONS[subset])
    related = [n for m, n in PROGRESSIONS[subset] if m == mode and n != verse]
    other = related[int(rng.integers(len(related)))] if related else verse
    chorus = verse if rng.random() < 0.4 else other
    pace = float(rng.choice([0.5, 1.0, 1.0, 1.0, 2.0]))  # chords a bar
    if tempo * beat_steps / 4 < 80:
        pace = max(pace, 1.0)
    chords: list[tuple[Chord, Chord]] = []
    for section in sections:
        names = (chorus if section.name in ("chorus", "solo") else verse).split()
        for k in range(section.bars):
            places = [int((k + half) * pace) % len(names) for half in (0.0, 0.5)]
            chords.append(tuple(parse_chord(names[place], tonic) for place in places))
    chords.append(chords[-1])
    return Form(
        seed=seed,
        subset=subset,
        index=index,
        seconds=seconds,
        style_name=style_name,
        tempo=tempo,
        grid=grid,
        sections=sections,
        tonic=tonic,
        mode=mode,
        loose=loose,
        progressions=tuple(dict.fromkeys((verse, chorus))),
        chords=tuple(chords),
    )


def _sections(rng: np.random.Generator, grid: Grid, bars: int) -> tuple[Section, ...]:
    unit = 4 if bars >= 14 else 2 if bars >= 6 else 1
    order = PLANS[int(rng.integers(len(PLANS)))]
    names, lengths = [], []
    while sum(lengths) < bars:
        name = order[len(names) % len(order)]
        short = name in ("intro", "break", "build", "outro", "solo")
        length = max(unit // 2, 1) if short and rng.random() < 0.75 else unit
        names.append(name)
        lengths.append(min(length, bars - sum(lengths)))
    parts = _parts(rng, names, lengths)
    firsts = np.concatenate([[0], np.cumsum(lengths)]).astype(int).tolist()
    return tuple(
        Section(
            name=name,
            first=first,
            bars=length,
            start=grid.time(first, 0),
            end=float(grid.starts[first + length]),
            parts=frozenset(active),
        )
        for name, first, length, active in zip(names, firsts, lengths, parts, strict=False)
    )


def _parts(rng: np.random.Generator, names: list[str], lengths: list[int]) -> list[set[str]]:
    """Stems that play in each section; every stem plays somewhere and rests somewhere."""
    parts = [
        {stem for stem, chance in zip(STEMS, CHANCES[name], strict=True) if rng.random() < chance}
        for name in names
    ]
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
    return parts
