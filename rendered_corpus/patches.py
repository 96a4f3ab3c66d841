"""Synthetic instruments: wavetables whose filter moves with every note, and two-operator FM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rendered_corpus.signals import RATE, lookup
from rendered_corpus.song import Note
from rendered_corpus.tables import Patch

_LEVELS = 10
_TABLE = 2048


@lru_cache(maxsize=64)
def _wave_bank(wave: str, resonance: float, harmonics: int) -> np.ndarray:
    """Tables ``(_LEVELS, _TABLE)`` of a wave through filters of rising corner."""
    h = np.arange(1, harmonics + 1)
    odd = h % 2 == 1
    spectra = {
        "saw": 1 / h,
        "square": odd / h,
        "pulse": np.sin(np.pi * h * 0.22) / h,
        "sine": (h == 1) + 0.12 * (h == 2) + 0.04 * (h == 3),
        "sync": (1 / h) * (1 + 2.5 * np.exp(-0.5 * ((h - 7.5) / 2) ** 2)),
        "pluck": np.abs(np.sin(np.pi * h * 0.17)) / h**1.1 + 0.02 / h,
        "pluck2": np.abs(np.sin(np.pi * h * 0.11)) / h + 0.03 / h,
        "bell": np.isin(h, (1, 3, 4, 7, 9, 12)) / h**0.9,
        "organ": np.isin(h, (1, 2, 3, 4, 6, 8)) * np.where(h > 3, 0.45, 0.9),
        "reed": (odd * 1.0 + 0.3 * ~odd) / h**0.8,
    }[wave]
    shape = np.exp(1j * (h * 0.7 if wave in ("pluck", "pluck2", "organ") else 0.0 * h))
    bank = []
    for corner in np.geomspace(1.0, 64.0, _LEVELS):
        x = h / corner
        gain = 1 / np.sqrt((1 - 0.55 * x**2) ** 2 * 0.5 + 0.5 + x**4)
        gain *= 1 + 2.5 * resonance * np.exp(-0.5 * (np.log2(x) / 0.25) ** 2)
        spectrum = np.zeros(_TABLE // 2 + 1, complex)
        spectrum[1 : harmonics + 1] = -0.5j * _TABLE * spectra * gain * shape
        bank.append(np.fft.irfft(spectrum, _TABLE))
    bank = np.array(bank)
    return bank / np.abs(bank[_LEVELS // 2]).max()


def play_patch(
    notes: Sequence[Note], patch: Patch, *, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Play notes on a synthetic instrument, ``(samples,)``."""
    out = np.zeros(samples + RATE)
    attack, decay, sustain, release = patch.amp
    hot, settled, travel = patch.bright
    last = None
    voices, detune = patch.unison
    spreads = np.linspace(-detune / 2, detune / 2, voices) if voices > 1 else [0.0]
    for note in notes:
        first = int(note.start * RATE)
        n = int((note.duration + release) * RATE)
        t = np.arange(n) / RATE
        hertz = 440 * 2 ** ((note.pitch - 69) / 12)
        offset = np.zeros(1)
        if note.bend:
            offset = note.bend * np.exp(-t / 0.05)
        elif patch.glide and last is not None and abs(last - note.pitch) <= 12:
            offset = (last - note.pitch) * np.exp(-t / patch.glide)
        if patch.vibrato[1]:
            depth = patch.vibrato[1] / 100 * np.clip((t - 0.2) / 0.3, 0, 1)
            offset = offset + depth * np.sin(2 * np.pi * patch.vibrato[0] * t)
        last = note.pitch
        top = hertz * 2 ** (max(abs(note.bend), 1) / 12)
        harmonics = 1 << max(min(int(0.45 * RATE / top), 512).bit_length() - 1, 0)
        bank = _wave_bank(patch.wave, patch.resonance, harmonics)
        corner = settled + (hot * (0.4 + 0.6 * note.velocity) - settled) * np.exp(-t / travel)
        level = np.log(np.maximum(corner, 1.0)) / np.log(64.0) * (_LEVELS - 1)
        bend = 2 ** (offset / 12)
        base = np.cumsum(np.broadcast_to(bend, (n,))) * (hertz / RATE)
        tone = np.zeros(n)
        for spread in spreads:
            phase = base * 2 ** (spread / 1200) + (float(rng.random()) if voices > 1 else 0.0)
            if patch.index:
                swing = patch.index * np.exp(-t / (2 * travel)) * (0.3 + 0.7 * note.velocity)
                phase = phase + swing * np.sin(2 * np.pi * patch.ratio * phase) / (2 * np.pi)
            tone += lookup(bank, level, phase)
        if patch.sub:
            tone += patch.sub * np.sin(np.pi * base)
        if patch.noise:
            tone += patch.noise * rng.standard_normal(n) * np.exp(-t / 0.1)
        envelope = np.minimum(t / attack, 1.0) * (sustain + (1 - sustain) * np.exp(-3 * t / decay))
        held = int(note.duration * RATE)
        if held < n:
            envelope[held:] *= np.linspace(1, 0, n - held) ** 2
        out[first : first + n] += note.velocity**1.2 * envelope * tone / np.sqrt(voices)
    return out[:samples] * 0.3
