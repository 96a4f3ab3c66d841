"""Production effects: equaliser, compressor, distortion, rooms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft

from rendered_corpus.signals import RATE, fit, upsample


def equaliser(bands: Sequence[tuple[str, float, float, float]], hertz: np.ndarray) -> np.ndarray:
    """Complex response of second-order filters at ``hertz``.

    Parameters
    ----------
    bands
        ``(kind, Hz, dB, Q)``; kind is peak, low (shelf), high (shelf), highpass or lowpass.

    Notes
    -----
    R. Bristow-Johnson, "Cookbook formulae for audio equalizer biquad filter coefficients".
    """
    z = np.exp(-2j * np.pi * hertz / RATE)
    total = np.ones(len(hertz), complex)
    for kind, place, gain, q in bands:
        w = 2 * np.pi * min(place, 0.48 * RATE) / RATE
        cos, alpha, a = np.cos(w), np.sin(w) / (2 * q), 10 ** (gain / 40)
        root = 2 * np.sqrt(a) * alpha
        if kind == "peak":
            b = (1 + alpha * a, -2 * cos, 1 - alpha * a)
            c = (1 + alpha / a, -2 * cos, 1 - alpha / a)
        elif kind in ("low", "high"):
            s = 1 if kind == "low" else -1
            b = (
                a * ((a + 1) - s * (a - 1) * cos + root),
                s * 2 * a * ((a - 1) - s * (a + 1) * cos),
                a * ((a + 1) - s * (a - 1) * cos - root),
            )
            c = (
                (a + 1) + s * (a - 1) * cos + root,
                -s * 2 * ((a - 1) + s * (a + 1) * cos),
                (a + 1) + s * (a - 1) * cos - root,
            )
        else:
            s = 1 if kind == "highpass" else -1
            b = ((1 + s * cos) / 2, -s * (1 + s * cos), (1 + s * cos) / 2)
            c = (1 + alpha, -2 * cos, 1 - alpha)
        total *= (b[0] + z * (b[1] + z * b[2])) / (c[0] + z * (c[1] + z * c[2]))
    return total


def follow(x: np.ndarray, hop: int, attack: float, release: float) -> np.ndarray:
    """Peak envelope per block of ``hop`` samples, with attack and release in seconds."""
    blocks = -(-len(x) // hop)
    level = np.abs(fit(x, blocks * hop)).reshape(blocks, hop).max(axis=1)
    up, down = (float(np.exp(-hop / RATE / s)) for s in (attack, release))
    out, state = [], 0.0
    for value in level.tolist():
        state = value + (state - value) * (up if value > state else down)
        out.append(state)
    return np.array(out)


def late_gain(gain: np.ndarray, hop: int, samples: int) -> np.ndarray:
    """Gain per sample from gains per block, each reached in its block's middle."""
    return upsample(np.concatenate([gain[:1], gain]), hop, samples + hop // 2)[hop // 2 :]


def squeeze(x: np.ndarray, *, threshold: float, ratio: float, release: float = 0.12) -> np.ndarray:
    """Gain ``(samples,)`` of a compressor; ``threshold`` is in dB below the envelope's peak."""
    hop = 128
    envelope = follow(x, hop, 0.004, release)
    peak = envelope.max()
    if peak <= 0:
        return np.ones(len(x))
    over = np.maximum(20 * np.log10(envelope / peak + 1e-9) + threshold, 0)
    gain = 10 ** (-over * (1 - 1 / ratio) / 20)
    return late_gain(gain, hop, len(x))


def distort(x: np.ndarray, amount: float) -> np.ndarray:
    """Waveshape a signal: ``amount`` from 0 (clean) to 1 (fuzz); the peak level stays."""
    peak = np.abs(x).max()
    if amount <= 0 or peak <= 0:
        return x
    drive = 1.5 * 30.0 ** min(amount, 1.0)
    # A little asymmetry gives even harmonics, as valves do.
    y = np.tanh(drive * x / peak + 0.15) - np.tanh(0.15)
    return y * (peak / np.abs(y).max())


def room(rng: np.random.Generator, *, tail: float) -> np.ndarray:
    """Impulse response ``(2, n)`` of a room: early reflections, then noise that darkens as it dies.

    ``tail`` is the reverberation time (60 dB) in seconds.
    """
    n = scipy.fft.next_fast_len(int(RATE * min(3.0, 1.2 * tail + 0.05)), real=True)
    out = np.zeros((2, n))
    t = np.arange(n) / RATE
    first = float(rng.uniform(0.004, 0.035))
    for channel in range(2):
        noise = rng.standard_normal(n)
        spectrum = scipy.fft.rfft(noise)
        hertz = scipy.fft.rfftfreq(n, 1 / RATE)
        corner = float(rng.uniform(2500, 7000))
        dark = scipy.fft.irfft(spectrum / (1 + (hertz / (0.35 * corner)) ** 2), n)
        bright = scipy.fft.irfft(
            spectrum * (hertz / (hertz + 180)) / (1 + (hertz / corner) ** 2), n
        )
        mix = np.exp(-t / (0.15 * tail))
        body = (mix * bright + (1 - mix) * dark * 1.8) * np.exp(-6.9 * t / tail)
        start = int(first * RATE)
        out[channel, start:] = body[: n - start]
        for _ in range(6):
            at = int(rng.uniform(0.003, 0.05) * RATE)
            out[channel, at] += float(rng.choice([-1, 1]) * rng.uniform(1, 5))
    return out / np.sqrt(np.sum(out**2, axis=1, keepdims=True))


def loudness(x: np.ndarray) -> float:
    """RMS over the blocks of 0.1 s that are within 30 dB of the loudest."""
    hop = RATE // 10
    blocks = len(x) // hop
    power = (x[: blocks * hop].reshape(blocks, -1) ** 2).mean(axis=1)
    loud = power[power > 1e-3 * power.max()] if len(power) else power
    return float(np.sqrt(loud.mean())) if len(loud) else 0.0
