"""The drums: grooves, time keepers, fills, and which kit or machine plays each group of pieces."""

from __future__ import annotations

import numpy as np

from rendered_corpus.form import Form
from rendered_corpus.song import Layer, Note, Section, Sound
from rendered_corpus.tables import GROOVES, KEEPERS, KITS, MACHINES, PERCUSSION

TOMS = (50, 48, 47, 45, 43, 41)
MARKS = {"x": 0.92, "o": 0.68, ".": 0.30}
"""Strength of a step's mark."""

KICK, RIM, CLAP, HAT = 36, 37, 39, 42

GROUPS: dict[str, tuple[set[int], float, float]] = {
    "kick": ({35, 36}, 0.0, 1.5),
    "snare": ({37, 38, 39, 40}, -1.0, 2.5),
    "toms": (set(TOMS), -3.0, 2.0),
    "metal": (set(range(42, 61)) - set(TOMS), -5.5, 3.0),
    "hand": (set(range(60, 82)), -6.0, 3.0),
}
"""Pieces by group: General MIDI keys, level in dB and how much it varies from song to song."""


def drums(form: Form) -> list[Layer]:
    """Layers of the drums, one for each group of pieces."""
    rng = form.stream("drums")
    drummer = _Drummer(form, rng)
    for section in form.playing("drums"):
        drummer.play(section)
    return _kit(form, rng, drummer.hits)


class _Drummer:
    """One drummer's choices for a song, and what was hit so far: (seconds, key, velocity)."""

    def __init__(self, form: Form, rng: np.random.Generator):
        style = form.style
        self.form, self.rng = form, rng
        self.hits: list[tuple[float, int, float]] = []
        self.family = GROOVES[style.grooves[int(rng.integers(len(style.grooves)))]]
        self.picks = rng.permutation(len(self.family))
        self.keepers = [style.keepers[int(k)] for k in rng.integers(len(style.keepers), size=2)]
        extra = PERCUSSION[int(rng.integers(len(PERCUSSION)))]
        self.extra = extra if rng.random() < style.percussion else {}
        self.everywhere = rng.random() < 0.3
        self.snare = int(rng.choice([38, 38, 38, 40]))
        often = form.style_name in ("bossa", "reggae", "ballad")
        self.side = rng.random() < (0.5 if often else 0.12)
        self.clap = rng.random() < 0.35 * (0.3 + style.machine)
        self.lay = float(rng.normal(0, 0.006))  # the snare sits early or late
        self.level = float(rng.uniform(0.72, 1.0))
        self.dynamics = float(rng.uniform(0.04, 0.12))

    def play(self, section: Section) -> None:
        """Play a section's bars."""
        rng, steps = self.rng, self.form.grid.steps
        busy = section.name in ("chorus", "solo")
        sparse = section.name in ("intro", "break", "outro") and rng.random() < 0.45
        only = str(rng.choice(["keeper", "kick", "all"])) if sparse else "all"
        patterns = self._patterns(busy, only)
        for bar in section.span:
            fill = int(rng.choice([2, 4, 4, 6, 8, steps]))
            last = bar == section.span[-1]
            fill = fill if last and rng.random() < self.form.style.fills else 0
            if not fill and (bar - section.first) % 2 and rng.random() < 0.15:
                fill = 2
            for key, pattern in patterns:
                self._pattern(bar, key, pattern, fill, rolls=self.keepers[busy] == "roll")
            if only == "all" and rng.random() < 0.25:
                self._hit(bar, int(rng.integers(steps)), self.snare, 0.25)
            if only != "keeper" and rng.random() < 0.2:
                self._hit(bar, int(rng.integers(1, steps)) | 1, KICK, 0.6)
            if fill:
                self._fill(bar, steps - fill)
            if bar == section.first and rng.random() < (0.75 if busy else 0.35):
                self._hit(bar, 0, int(rng.choice([49, 49, 57, 55, 52])), 0.85)
                self._hit(bar, 0, KICK, 0.9)

    def _hit(self, bar: int, step: float, key: int, strength: float, push: float = 0.0) -> None:
        wander = 1 + self.dynamics * float(self.rng.standard_normal())
        strength = float(np.clip(strength * self.level * wander, 0.08, 1))
        self.hits.append((self.form.at(self.rng, bar, step, push), key, strength))

    def _patterns(self, busy: bool, only: str) -> list[tuple[int, str]]:
        """Keys and steps of a section's bars."""
        kick, back = self.family[int(self.picks[1 if busy and len(self.picks) > 1 else 0])]
        patterns = [*KEEPERS[self.keepers[busy]].items()]
        if only != "keeper":
            patterns.append((KICK, kick))
        if only == "all":
            patterns.append((RIM if self.side and not busy else self.snare, back))
            if self.clap and busy:
                patterns.append((CLAP, back.replace(".", "-")))
        if busy or self.everywhere:
            patterns.extend(self.extra.items())
        return patterns

    def _pattern(self, bar: int, key: int, pattern: str, fill: int, *, rolls: bool) -> None:
        """One bar of one piece, up to the fill."""
        rng, steps = self.rng, self.form.grid.steps
        for step, mark in enumerate((pattern * 2)[:steps]):
            filling = step >= steps - fill
            if mark == "-" or (filling and key in (self.snare, KICK, RIM, CLAP)):
                continue
            if filling and fill > 2 and key in (HAT, 51, 70):
                continue
            if mark == "." and rng.random() < 0.3:
                continue
            if key == KICK and mark != "x" and rng.random() < 0.15:
                continue
            push = self.lay if key in (self.snare, CLAP) else 0.0
            self._hit(bar, step, key, MARKS[mark], push)
            if key == HAT and rolls and rng.random() < 0.12:
                count = int(rng.choice([2, 3, 4]))
                for k in range(1, count):
                    self._hit(bar, step + k / count, HAT, MARKS[mark] * 0.85)

    def _fill(self, bar: int, first: int) -> None:
        rng = self.rng
        kind = str(rng.choice(["snare", "toms", "mixed", "flam", "stop"]))
        stride = int(rng.choice([1, 1, 2])) if self.form.tempo < 140 else 2
        steps = range(first, self.form.grid.steps, stride)
        for k, step in enumerate(steps[:1] if kind == "stop" else steps):
            ramp = 0.55 + 0.4 * k / max(len(steps) - 1, 1)
            if kind == "snare":
                key = self.snare
            elif kind == "toms":
                key = TOMS[min(k * len(TOMS) // len(steps), len(TOMS) - 1)]
            else:
                key = int(rng.choice([self.snare, *TOMS, KICK]))
            if rng.random() < 0.85:
                self._hit(bar, step, key, ramp)
            if kind == "flam" and rng.random() < 0.4:
                self._hit(bar, step + 0.2, key, ramp * 0.8)


def _kit(form: Form, rng: np.random.Generator, hits: list[tuple[float, int, float]]) -> list[Layer]:
    # The pieces of a song's kit may come from different sources, as sample packs do.
    kits, machines = KITS[form.subset], tuple(MACHINES[form.subset])
    machine = machines[int(rng.integers(len(machines)))]
    # Most drummers play an ordinary kit; electronic ones mostly go with the styles that do.
    plain = np.array([1.0 if k in (0, 8, 16, 40) else 0.25 + form.style.machine for k in kits])
    kit = int(rng.choice(kits, p=plain / plain.sum()))
    synthetic = rng.random() < form.style.machine
    mixed = rng.random() < 0.3
    layers = []
    for group, (keys, level, spread) in GROUPS.items():
        other = mixed and rng.random() < 0.5
        played = Sound("kit", f"kit {kit}", kit)
        sound = Sound("machine", machine) if synthetic != other else played
        notes = tuple(Note(t, 0.25, k, v) for t, k, v in sorted(hits) if k in keys)
        pan = 0.0 if group in ("kick", "snare") else float(rng.uniform(-0.5, 0.5))
        layers.append(
            Layer("drums", group, sound, notes, level + float(rng.normal(0, spread)), pan)
        )
    return layers
