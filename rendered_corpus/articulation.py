"""Articulation: from syllables and notes to the movements of pitch, glottis, tract and noise.

Consonants are closures, bursts, frication, murmurs and formant glides between the vowels' targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rendered_corpus.song import Note
from rendered_corpus.tables import CONSONANTS, VOWELS, Consonant, Voice

RD_LEVELS = np.array([0.35, 0.5, 0.7, 0.95, 1.3, 1.7, 2.2, 2.7])
"""Shapes of the glottal pulse that are kept as tables, pressed to breathy."""


@dataclass
class Plan:
    """Control signals per frame: ``(frames,)`` each, formants ``(frames, 5)``."""

    voiced: np.ndarray
    breath: np.ndarray
    noise: np.ndarray
    centre: np.ndarray
    width: np.ndarray
    nasal: np.ndarray
    rd: np.ndarray
    rough: np.ndarray
    formants: np.ndarray
    tract: float


class _Mouth:
    """Breakpoints of every control, which are joined by straight lines."""

    def __init__(self):
        rest = {"voiced": 0.0, "breath": 0.0, "noise": 0.0, "centre": 5000.0, "width": 3000.0}
        rest.update({"nasal": 0.0, "effort": 0.5}, **_formants(VOWELS["@"]))
        self.points = {name: [(-1.0, value)] for name, value in rest.items()}

    def put(self, time: float, **values: float) -> None:
        """Add a breakpoint to each of the named controls."""
        for name, value in values.items():
            points = self.points[name]
            # Never back in time: a consonant may begin before the last vowel ends.
            points.append((max(time, points[-1][0] + 1e-4), value))

    def shape(self, time: float, vowel: Sequence[float]) -> None:
        """Reach the formants of a vowel or consonant."""
        self.put(time, **_formants(vowel))

    def last(self, name: str) -> float:
        """Value of a control's last breakpoint."""
        return self.points[name][-1][1]

    def at(self, name: str, times: np.ndarray) -> np.ndarray:
        """Values of a control at some times."""
        return np.interp(times, *zip(*self.points[name], strict=True))

    def consonant(
        self, sound: Consonant, begin: float, scale: float, amount: float, *, release: bool = True
    ) -> float:
        """Add a consonant from ``begin`` on; returns when it ends."""
        length = sound.seconds * scale
        opened = begin + sound.closure * scale
        self.shape(begin, sound.locus)
        self.put(begin, voiced=self.last("voiced"))
        if sound.closure:
            hum = sound.voiced * amount
            self.put(begin, breath=0.0)
            self.put(begin + 0.012, voiced=hum)
            self.put(opened, voiced=hum)
            self.put(opened - 0.001, noise=0.0)
            if not release:
                return opened
            self._burst(sound, opened, length, amount)
        else:
            self.put(begin + 0.012, voiced=sound.voiced * amount)
            self.put(begin + length - 0.012, voiced=sound.voiced * amount)
            self._frication(sound, begin, length, amount)
        self.put(begin, nasal=self.last("nasal"))
        self.put(begin + 0.02, nasal=sound.nasal)
        self.put(opened + length - 0.005, nasal=sound.nasal)
        self.shape(opened + 0.7 * length, sound.locus)
        return opened + length

    def _burst(self, sound: Consonant, opened: float, length: float, amount: float) -> None:
        level, place, band = sound.burst
        self.put(opened - 0.001, centre=place, width=band)
        self.put(opened + 0.02, centre=place, width=band)
        self.put(opened + 0.001, noise=level * amount)
        self.put(opened + 0.018, noise=0.12 * level * amount)
        if sound.noise[0]:
            self.put(opened + 0.02, noise=sound.noise[0] * amount)
            self.put(opened + length, noise=sound.noise[0] * amount * 0.6)
        self.put(opened + length + 0.012, noise=0.0)
        if sound.breath:
            self.put(opened, breath=0.0)
            self.put(opened + 0.012, breath=sound.breath * amount)
            self.put(opened + length, breath=0.5 * sound.breath * amount)
            self.put(opened + 0.8 * length, voiced=0.0)

    def _frication(self, sound: Consonant, begin: float, length: float, amount: float) -> None:
        level, place, band = sound.noise
        if level:
            self.put(begin - 0.02, centre=place, width=band)
            self.put(begin - 0.015, noise=0.0)
            self.put(begin + 0.3 * length, noise=level * amount)
            self.put(begin + 0.8 * length, noise=level * amount)
            self.put(begin + length + 0.012, noise=0.0, centre=place, width=band)
        if sound.breath:
            self.put(begin, breath=0.0)
            self.put(begin + 0.4 * length, breath=sound.breath * amount)
            self.put(begin + length, breath=0.6 * sound.breath * amount)


def _formants(values: Sequence[float]) -> dict[str, float]:
    return {f"F{k}": value for k, value in enumerate(values, start=1)}


def articulate(
    voice: Voice,
    notes: Sequence[Note],
    times: np.ndarray,
    rng: np.random.Generator,
    *,
    tract: float,
) -> Plan:
    """Control signals of a phrase at the times of frames, in seconds."""
    mouth = _Mouth()
    free = -1.0  # when the mouth is free again
    for note, following in zip(notes, [*notes[1:], None], strict=True):
        free = _sing_note(mouth, voice, note, following, free, rng)
    frames = len(times)
    formants = [_smooth(mouth.at(f"F{k}", times), 4) for k in range(1, 6)]
    tracks = np.stack(formants, axis=1)
    if voice.ring:
        # The singer's formant: F3, F4 and F5 draw together.
        pull = min(voice.ring / 10, 0.6)
        for k, target in ((2, 2550.0), (3, 2900.0), (4, 3300.0)):
            tracks[:, k] += pull * (target - tracks[:, k])
    tracks *= tract * (1 + 0.008 * slow_noise(rng, frames, 20))[:, None]
    power = mouth.at("effort", times)
    shimmer = 1 + 0.05 * slow_noise(rng, frames, 2) + 0.06 * slow_noise(rng, frames, 30)
    # Singers who carry over a band press more than speakers do: the range is drawn together.
    rd = 0.35 + 0.6 * (voice.rd * 2.0 ** (1.0 * (0.6 - power)) - 0.35)
    rd = rd + 0.04 * slow_noise(rng, frames, 25)
    loud = _smooth(mouth.at("voiced", times), 3) * shimmer
    return Plan(
        voiced=loud * (0.45 if voice.delivery == "falsetto" else 0.5),
        breath=np.maximum(_smooth(mouth.at("breath", times), 3), 0.0),
        noise=np.maximum(mouth.at("noise", times), 0.0),
        centre=mouth.at("centre", times) * (0.7 + 0.3 * tract),
        width=mouth.at("width", times),
        nasal=_smooth(mouth.at("nasal", times), 4),
        rd=np.clip(rd, RD_LEVELS[0], RD_LEVELS[-1]),
        rough=np.clip(1.6 * power - 0.5, 0, 1),
        formants=tracks,
        tract=tract,
    )


def _sing_note(
    mouth: _Mouth,
    voice: Voice,
    note: Note,
    following: Note | None,
    free: float,
    rng: np.random.Generator,
) -> float:
    """Add one note's syllable; returns when the mouth is free again."""
    syllable = note.syllable
    onset, coda = CONSONANTS.get(syllable.onset), CONSONANTS.get(syllable.coda)
    start, stop = note.start, note.start + note.duration
    linked = following is not None and following.start - stop < 0.06
    power = note.velocity
    amount = 0.25 + 0.75 * power
    lean = float(rng.uniform(0.85, 1.15))
    gap = start - free
    if gap > 0.5 and rng.random() < 0.75:
        length = min(float(rng.uniform(0.18, 0.38)), gap - 0.1)
        at = start - length - 0.08
        loud = float(rng.uniform(0.05, 0.16))
        mouth.shape(at, VOWELS["@"])
        for time, value in ((at, 0.0), (at + 0.6 * length, loud), (at + length, 0.0)):
            mouth.put(time, breath=value)
    if gap > 0.08:
        mouth.put(max(free, start - 0.25), voiced=0.0)
        mouth.put(max(free, start - 0.15), breath=0.0, nasal=0.0)
    if onset:
        whole = onset.seconds + onset.closure
        space = max(start - max(free, 0.0), 0.0) + 0.35 * note.duration
        scale = max(min(lean, space / (whole + 1e-6)), 0.35)
        release = mouth.consonant(onset, start - whole * scale * 0.8, scale, amount)
    else:
        release = start - 0.015
        mouth.put(release, voiced=mouth.last("voiced") if gap < 0.08 else 0.0)
        if gap > 0.08 and rng.random() < 0.3:  # a hard attack
            release = start - 0.004
    targets = [VOWELS[v] for v in syllable.vowel]
    onset_end = release + min(0.045 * lean, 0.4 * note.duration)
    mouth.put(release + 0.02, nasal=0.0)
    mouth.shape(onset_end, targets[0])
    attack = float(rng.uniform(0.015, 0.05))
    air = voice.breath * (1.5 - power) * float(rng.uniform(0.8, 1.2))
    mouth.put(release + attack, voiced=amount, breath=air)
    mouth.put(onset_end, effort=power)
    end = max(stop, onset_end + 0.03)
    if linked:
        after = CONSONANTS.get(following.syllable.onset)
        if after:
            end = max(end - 0.8 * (after.seconds + after.closure), onset_end + 0.03)
    tail = min(coda.seconds + coda.closure, 0.3 * note.duration) if coda else 0.0
    close = max(end - tail, onset_end + 0.02)
    if len(targets) > 1:
        mouth.shape(onset_end + 0.55 * (close - onset_end), targets[0])
    mouth.shape(close, targets[-1])
    swell = amount * float(rng.uniform(0.75, 1.1))
    mouth.put(onset_end + 0.5 * (close - onset_end), voiced=swell)
    mouth.put(close, voiced=swell * float(rng.uniform(0.75, 1.0)), breath=air * 1.2)
    mouth.put(close, effort=power * float(rng.uniform(0.75, 1.0)))
    free = close
    if coda:
        scale = tail / (coda.seconds + coda.closure + 1e-6)
        free = mouth.consonant(coda, close, scale, 0.8 * amount, release=not linked)
        mouth.put(free + 0.02, nasal=coda.nasal)
    if not linked:
        fade = free + float(rng.uniform(0.04, 0.12))
        mouth.put(fade, voiced=0.0, breath=air)
        mouth.put(fade + 0.08, breath=0.0)
        mouth.put(fade + 0.05, nasal=0.0)
    return free


def intonation(
    voice: Voice, notes: Sequence[Note], times: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Pitch in semitones per frame: notes, glides, scoops, vibrato, drift and jitter."""
    frames = len(times)
    pitch = np.full(frames, float(notes[0].pitch))
    rate, cents, wait = voice.vibrato
    rate *= 1 + 0.05 * float(rng.standard_normal())
    spoken = voice.delivery == "rap"
    wobble = np.cumsum(np.full(frames, rate * (times[1] - times[0])))
    wobble += 0.15 * slow_noise(rng, frames, 25)
    vibrato = np.sin(2 * np.pi * wobble)
    vibrato *= 1 + 0.2 * slow_noise(rng, frames, 40)
    glide = float(rng.uniform(0.03, 0.12))
    previous = float(notes[0].pitch)
    for k, note in enumerate(notes):
        end = notes[k + 1].start if k + 1 < len(notes) else times[-1] + 1
        first, last = np.searchsorted(times, (note.start - 0.06, end - 0.06))
        x = times[first:last] - note.start
        if not len(x):
            continue
        gone = note.start - (notes[k - 1].start + notes[k - 1].duration) if k else 1.0
        curve = np.full(len(x), float(note.pitch))
        if gone < 0.15:
            width = glide * float(rng.uniform(0.6, 1.8))
            ease = 1 / (1 + np.exp(-np.clip((x + 0.01) / (0.25 * width), -30, 30)))
            # Singers overshoot and settle when they leap.
            leap = note.pitch - previous
            curve = previous + leap * ease
            settle = 0.06 * leap * float(rng.uniform(0, 1))
            curve += settle * np.exp(-((x - width) ** 2) / (2 * (0.5 * width + 0.01) ** 2))
        if note.bend:
            curve += note.bend * np.exp(-np.maximum(x + 0.03, 0) / float(rng.uniform(0.04, 0.11)))
        if note.duration > 0.24 and cents:
            begin = min(wait, 0.5 * note.duration) * float(rng.uniform(0.4, 1.1))
            ramp = np.clip((x - begin) / 0.25, 0, 1)
            depth = cents / 100 * float(rng.uniform(0.5, 1.9))
            curve += depth * ramp * vibrato[first:last]
        if spoken:
            arch = np.clip(x / max(note.duration, 0.05), 0, 1)
            curve += float(rng.uniform(0.5, 2.0)) * np.sin(np.pi * np.minimum(arch * 1.6, 1))
            curve -= float(rng.uniform(1.0, 4.0)) * arch**1.5
        elif note.duration > 0.25 and rng.random() < 0.12:
            fall = np.clip((x - note.duration + 0.12) / 0.12, 0, 1)
            curve -= float(rng.uniform(1, 5)) * fall**2
        curve += 0.10 * float(rng.standard_normal())  # nobody is perfectly in tune
        pitch[first:last] = curve
        previous = float(note.pitch)
    pitch += 0.13 * slow_noise(rng, frames, 35) + 0.06 * slow_noise(rng, frames, 9)
    pitch += 12 / np.log(2) * voice.jitter * slow_noise(rng, frames, 2)
    return pitch


def _smooth(x: np.ndarray, width: int) -> np.ndarray:
    kernel = np.hanning(width + 2)[1:-1]
    padded = np.pad(x, width // 2, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="same")[width // 2 :][: len(x)]


def slow_noise(rng: np.random.Generator, frames: int, every: int) -> np.ndarray:
    """Noise of unit variance, interpolated between one random value per ``every`` frames."""
    knots = rng.standard_normal(frames // every + 3)
    return np.interp(np.arange(frames) / every, np.arange(len(knots)), knots)
