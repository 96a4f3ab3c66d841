"""Synthetic drums: kicks and toms sweep, snares mix tone and noise, metal is FM noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft

from rendered_corpus.signals import RATE, place_strokes
from rendered_corpus.song import Note
from rendered_corpus.tables import Machine


def play_machine(
    notes: Sequence[Note], machine: Machine, *, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Play drum notes on a machine, ``(samples,)``."""
    shots: dict[tuple[int, int], np.ndarray] = {}
    turns: dict[int, int] = {}

    def stroke(key: int, velocity: float) -> np.ndarray:
        turns[key] = turn = (turns.get(key, -1) + 1) % 3  # no two strokes in a row are the same
        if (key, turn) not in shots:
            shots[key, turn] = _shot(machine, key, rng)
        return velocity**1.5 * shots[key, turn]

    return place_strokes(notes, stroke, samples)


def _times(seconds: float) -> np.ndarray:
    return np.arange(int(RATE * seconds)) / RATE


def _decay(samples: int, seconds: float) -> np.ndarray:
    return np.exp(-np.arange(samples) / (RATE * max(seconds, 1e-3) / 3.0))


def _band(noise: np.ndarray, centre: float, octaves: float) -> np.ndarray:
    """Noise limited to a smooth band around ``centre`` Hz."""
    n = scipy.fft.next_fast_len(len(noise), real=True)
    spectrum = scipy.fft.rfft(noise, n)
    hertz = scipy.fft.rfftfreq(n, 1 / RATE)
    distance = np.log2(np.maximum(hertz, 10.0) / centre) / octaves
    return scipy.fft.irfft(spectrum * np.exp(-0.5 * distance**2), n)[: len(noise)]


def _shot(machine: Machine, key: int, rng: np.random.Generator) -> np.ndarray:
    """One stroke of a drum machine, by General MIDI drum key."""
    jitter = 1 + 0.01 * float(rng.standard_normal())
    play = next((play for keys, play in PIECES.items() if key in keys), _metal)
    out = play(machine, key, jitter, rng)
    if machine.drive:
        out = np.tanh((1 + 2 * machine.drive) * out) / np.tanh(1 + machine.drive)
    if machine.crush:  # an old sampler: few bits, held samples
        steps = 2.0 ** (machine.crush - 1)
        out = np.repeat(np.round(out[::3] * steps) / steps, 3)[: len(out)]
    out[-64:] *= np.linspace(1, 0, 64)
    return out


def _kick(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    start, end, sweep, decay, click = machine.kick
    t = _times(decay * 1.6 + 0.05)
    hertz = (end + (start - end) * np.exp(-t / sweep)) * jitter
    out = np.sin(2 * np.pi * np.cumsum(hertz) / RATE) * _decay(len(t), decay)
    noise = _band(rng.standard_normal(len(t)), 3000, 1.2)
    return out + click * 0.5 * noise * _decay(len(t), 0.008) * 3


def _wood(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    t = _times(0.08)
    hertz = {37: 1700, 75: 2500, 76: 1250, 77: 900}[key] * jitter
    out = np.sin(2 * np.pi * hertz * np.arange(len(t)) / RATE) * _decay(len(t), 0.04)
    return out + 0.4 * _band(rng.standard_normal(len(t)), 2 * hertz, 0.8) * _decay(len(t), 0.015)


def _snare(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    tone, short, long, centre, share = machine.snare
    tone *= jitter * (1.12 if key == 40 else 1.0)
    t = _times(long * 1.6 + 0.05)
    phase = 2 * np.pi * tone * np.cumsum(1 + 0.35 * np.exp(-t / 0.012)) / RATE
    out = (1 - share) * (np.sin(phase) + 0.5 * np.sin(1.78 * phase)) * _decay(len(t), short)
    noise = rng.standard_normal(len(t))
    hiss = _band(noise, centre, 1.3) + 0.15 * noise
    return out + share * 1.1 * hiss * _decay(len(t), long)


def _clap(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    centre, decay = machine.clap
    n = len(_times(decay * 2 + 0.06))
    envelope = np.zeros(n)
    for at, fall in ((0.0, 0.012), (0.011, 0.012), (0.021, 0.012), (0.031, decay)):
        first = int(at * jitter * RATE)
        envelope[first:] += _decay(n - first, fall)
    return 1.4 * _band(rng.standard_normal(n), centre, 0.9) * envelope


def _drum(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    """Toms, bongos and congas."""
    base, decay = machine.tom
    if key >= 60:
        decay = 0.4 * decay
    t = _times(decay * 1.6 + 0.05)
    hertz = base * DRUMS[key] * jitter * (1 + 0.5 * np.exp(-t / 0.03))
    out = np.sin(2 * np.pi * np.cumsum(hertz) / RATE) * _decay(len(t), decay)
    return out + 0.25 * _band(rng.standard_normal(len(t)), 1800, 1.2) * _decay(len(t), 0.03)


def _cowbell(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    t = _times(0.3)
    out = np.sign(np.sin(2 * np.pi * 560 * t)) + np.sign(np.sin(2 * np.pi * 845 * t))
    return 0.4 * _band(out, 1400, 0.9) * _decay(len(t), 0.18)


def _shaker(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    n = len(_times(0.12))
    rise = np.minimum(np.arange(n) / (0.012 * RATE), 1.0)
    centre = {54: 8500.0, 69: 5200.0, 70: 6300.0, 82: 7000.0}[key]
    return 1.5 * _band(rng.standard_normal(n), centre, 0.5) * _decay(n, 0.07) * rise


def _metal(machine: Machine, key: int, jitter: float, rng) -> np.ndarray:
    """Hats, rides, crashes and the triangle."""
    base, closed, opened, share = machine.hat
    crash = key in (49, 52, 55, 57)
    decay = {42: closed, 44: 0.8 * closed, 46: opened, 81: 0.5}.get(key, 1.4 if crash else 0.6)
    t = _times(decay * 1.5 + 0.03)
    out = np.zeros(len(t))
    for ratio in (1.0, 1.342, 1.2312, 1.6532, 1.9523, 2.1523):
        hertz = base * ratio * jitter * (3 if key == 81 else 1)
        out += np.sign(np.sin(2 * np.pi * hertz * t + ratio))
    out = (1 - share) * 0.35 * out + share * rng.standard_normal(len(t))
    place = {51: 5000.0, 53: 3600.0, 59: 4800.0}.get(key, 8200.0)
    out = _band(out, place, 0.75 if crash else 0.6) * _decay(len(t), decay)
    if key in (51, 53, 59):
        out += 0.2 * np.sin(2 * np.pi * 9 * base * t) * _decay(len(t), 0.25)
    return out


DRUMS = {
    **{50: 2.0, 48: 1.7, 47: 1.45, 45: 1.2, 43: 1.0, 41: 0.82},
    **{60: 4.4, 61: 3.2, 62: 3.8, 63: 3.0, 64: 2.2},
}
"""Pitch of toms and hand drums, as ratios."""

PIECES = {
    (35, 36): _kick,
    (37, 75, 76, 77): _wood,
    (38, 40): _snare,
    (39,): _clap,
    tuple(DRUMS): _drum,
    (56,): _cowbell,
    (54, 69, 70, 82): _shaker,
}
