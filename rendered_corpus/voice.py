"""A singing voice: glottal pulses and noise through a moving vocal tract.

The source is a bank of one-period Liljencrants-Fant pulses (G. Fant, J. Liljencrants and Q. Lin,
"A four-parameter model of glottal flow", STL-QPSR 1985; the single-parameter form of G. Fant, 1995)
read at a running phase, so that pitch and effort move freely within a note. The filter is an
all-pole tract with a nasal pole-zero pair (D. Klatt, "Software for a cascade/parallel formant
synthesizer", JASA 1980), applied frame by frame in the short-time spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import scipy.fft

from rendered_corpus.articulation import RD_LEVELS, Plan, articulate, intonation, slow_noise
from rendered_corpus.signals import RATE, lookup, upsample
from rendered_corpus.song import Note
from rendered_corpus.tables import Voice

HOP = 256
"""Samples between filter frames (5.8 ms at 44.1 kHz)."""
WINDOW = 1024
FFT = 2048
TABLE = 2048


def _lf_pulse(rd: float) -> np.ndarray:
    """One period of the LF model's flow derivative, ``(4 * TABLE,)``, for a shape ``rd``."""
    ra = (-1 + 4.8 * rd) / 100
    rk = (22.4 + 11.8 * rd) / 100
    rg = rk / 4 * (0.5 + 1.2 * rk) / (0.11 * rd - ra * (0.5 + 1.2 * rk))
    tp = 1 / (2 * rg)
    te = min(tp * (1 + rk), 0.97)
    ta = max(min(ra, 0.9 * (1 - te)), 1e-3)
    omega = np.pi / tp
    # The return phase: epsilon * ta = 1 - exp(-epsilon * (1 - te)), by fixed-point iteration.
    epsilon = 1 / ta
    for _ in range(60):
        epsilon = (1 - np.exp(-epsilon * (1 - te))) / ta
    t = np.arange(4 * TABLE) / (4 * TABLE)
    closing = t > te
    back = np.exp(-epsilon * (t[closing] - te)) - np.exp(-epsilon * (1 - te))
    back /= -(epsilon * ta)
    # Alpha is such that the period integrates to nothing: no flow is left over.
    low, high = -10.0, 200.0
    for _ in range(70):
        alpha = (low + high) / 2
        grow = np.exp(alpha * (t[~closing] - te)) * np.sin(omega * t[~closing])
        grow *= -1 / np.sin(omega * te)
        if grow.sum() + back.sum() > 0:
            low = alpha
        else:
            high = alpha
    return np.concatenate([grow, back])


@lru_cache(maxsize=8)
def glottal_tables(harmonics: int) -> np.ndarray:
    """Bank of LF pulses ``(len(RD_LEVELS), TABLE)``, pressed to breathy, band-limited."""
    bank = []
    for rd in RD_LEVELS:
        spectrum = np.fft.rfft(_lf_pulse(float(rd)))[: TABLE // 2 + 1]
        order = np.arange(len(spectrum))
        spectrum[order > harmonics] = 0
        spectrum[0] = 0
        fade = np.clip((harmonics - order) / (0.1 * harmonics + 1), 0, 1)
        pulse = np.fft.irfft(spectrum * fade, TABLE)
        bank.append(pulse / np.sqrt(np.mean(pulse**2)))
    bank = np.array(bank)
    bank.flags.writeable = False
    return bank


def sing(
    voice: Voice,
    notes: Sequence[Note],
    *,
    samples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Sing a monophonic line.

    Parameters
    ----------
    voice
        The singer.
    notes
        In order of time, each with a syllable.
    samples
        Length of the result.
    rng
        Jitter, drift, noise and this performance's vocal-tract length come from here.

    Returns
    -------
    ``(samples,)``, roughly -20 dB RMS where it sings.
    """
    out = np.zeros(samples)
    tract = float(rng.uniform(*voice.tract))
    for phrase in _phrases(notes):
        # Only where somebody sings is there anything to compute.
        first = max(int((phrase[0].start - _LEAD) * RATE), 0)
        length = int((max(n.start + n.duration for n in phrase) + _TAIL) * RATE) - first
        moved = [replace(n, start=n.start - first / RATE) for n in phrase]
        part = _sing_phrase(voice, moved, tract, length, rng)[: max(samples - first, 0)]
        out[first : first + len(part)] += part
    return out


_LEAD, _TAIL = 0.6, 0.35  # seconds for a breath before a phrase and its release


def _phrases(notes: Sequence[Note]) -> list[list[Note]]:
    phrases: list[list[Note]] = []
    for note in notes:
        if phrases and note.start - phrases[-1][-1].start - phrases[-1][-1].duration < 0.9:
            phrases[-1].append(note)
        else:
            phrases.append([note])
    return phrases


def _sing_phrase(
    voice: Voice, notes: Sequence[Note], tract: float, samples: int, rng: np.random.Generator
) -> np.ndarray:
    frames = samples // HOP + 2
    times = np.arange(frames) * HOP / RATE
    plan = articulate(voice, notes, times, rng, tract=tract)
    pitch = intonation(voice, notes, times, rng)
    hertz = 440.0 * 2.0 ** ((pitch - 69) / 12)
    # Singers open the mouth so that the first formant does not fall below the pitch.
    plan.formants[:, 0] = np.maximum(plan.formants[:, 0], 1.02 * hertz)

    phase = np.cumsum(upsample(hertz, HOP, samples)) / RATE
    harmonics = int(min(0.45 * RATE / float(hertz.max()), TABLE // 2 - 1))
    level = np.interp(plan.rd, RD_LEVELS, np.arange(len(RD_LEVELS)))
    level = upsample(level, HOP, samples)
    source = lookup(glottal_tables(1 << (harmonics.bit_length() - 1)), level, phase)
    voiced = upsample(plan.voiced, HOP, samples)
    if voice.rasp:
        # Every second pulse is weaker, more so the harder the effort, and the cords flutter.
        rough = voice.rasp * upsample(plan.rough, HOP, samples)
        flutter = upsample(slow_noise(rng, frames, 2), HOP, samples)
        source *= 1 - rough * (0.6 + 0.6 * np.cos(np.pi * phase) + 0.4 * flutter).clip(0, 1.5)
    noise = rng.standard_normal(samples)
    # Air flows while the glottis is open, so breath is heard in step with the pulses.
    breath = upsample(plan.breath, HOP, samples)
    breath *= np.where(voiced > 0.05, 0.55 + 0.45 * np.cos(2 * np.pi * (phase - 0.45)), 1.0)
    breath *= noise
    source *= voiced
    source += 0.35 * np.diff(breath, prepend=0.0) + 0.08 * breath
    hiss = upsample(plan.noise, HOP, samples) * noise
    return _filter(source, plan, hiss)


def _resonators(frequency: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Denominators ``(frames, 3)`` of two-pole resonators, scaled to unit gain at 0 Hz."""
    radius = np.exp(-np.pi * width / RATE)
    first = -2 * radius * np.cos(2 * np.pi * frequency / RATE)
    second = radius**2
    gain = 1 + first + second
    return np.stack([np.ones_like(first), first, second], axis=-1) / gain[:, None]


def _product(polynomials: Sequence[np.ndarray]) -> np.ndarray:
    """Product of polynomials in z^-1 given per frame, ``(frames, degree + 1)``."""
    total = polynomials[0]
    for factor in polynomials[1:]:
        grown = np.zeros((len(total), total.shape[1] + factor.shape[1] - 1))
        for k in range(factor.shape[1]):
            grown[:, k : k + total.shape[1]] += total * factor[:, k : k + 1]
        total = grown
    return total


@lru_cache(maxsize=16)
def _powers(count: int) -> np.ndarray:
    # z^-k at the bins of the transform, real and imaginary parts next to each other.
    z = np.exp(-2j * np.pi * np.outer(np.arange(count), np.arange(FFT // 2 + 1)) / FFT)
    return z.view(float)


def _on_circle(polynomials: np.ndarray) -> np.ndarray:
    """Values of short polynomials in z^-1 at the bins: a transform of mostly zeros, but faster."""
    return (polynomials @ _powers(polynomials.shape[1])).view(complex)


def _filter(source: np.ndarray, plan: Plan, hiss: np.ndarray) -> np.ndarray:
    """Run the sources through the tract and the frication filter, frame by frame."""
    samples = len(source)
    frames = len(plan.voiced)
    active = (plan.voiced > 1e-4) | (plan.breath > 1e-4)
    hissing = plan.noise > 1e-4
    spread = np.ones(2 * (WINDOW // HOP) + 1)
    active = np.convolve(active, spread, mode="same") > 0
    hissing = np.convolve(hissing, spread, mode="same") > 0

    f = plan.formants
    widths = np.array([75.0, 95.0, 130.0, 190.0, 260.0])
    sections = []
    for k in range(5):
        width = widths[k] * (1 + 0.6 * plan.nasal) + 0.012 * f[:, k]
        sections.append(_resonators(f[:, k], width)[active])
    # The tract goes on above the fifth formant, the same for all frames.
    z = np.exp(-2j * np.pi * np.arange(FFT // 2 + 1) / FFT)
    upper = np.ones(len(z), complex)
    for k in range(6, 12):
        place = np.array([min(1000.0 * plan.tract * (k - 0.5), 0.47 * RATE)])
        upper /= np.polyval(_resonators(place, np.array([250.0 + 60 * k]))[0, ::-1], z)
    nasal = plan.nasal[active]
    width = np.full(len(nasal), 110.0)
    pole = _resonators(np.full(len(nasal), 280.0), width)
    zero = _resonators(280.0 + 450.0 * nasal, width)
    out = np.zeros((frames + FFT // HOP + 1, HOP))
    window = np.hanning(WINDOW + 1)[:-1] / 2.0  # overlapping four times, it sums to one

    def add(signal, chosen, factors, fixed, murmur=None) -> None:
        index = np.flatnonzero(chosen)
        padded = np.pad(signal, (WINDOW // 2, WINDOW + HOP * 2))
        view = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
        for block in range(0, len(index), 256):
            rows, part = index[block : block + 256], slice(block, block + 256)
            spectra = scipy.fft.rfft(view[rows] * window, FFT, axis=1)
            for factor in factors:
                spectra /= _on_circle(factor[part])
            spectra *= fixed
            if murmur is not None:
                open_ = np.flatnonzero(nasal[part] > 1e-3)
                top, bottom = (_on_circle(x[part][open_]) for x in murmur)
                spectra[open_] *= top / bottom
            y = scipy.fft.irfft(spectra, FFT, axis=1)
            for k in range(FFT // HOP):
                out[rows + k] += y[:, k * HOP : (k + 1) * HOP]

    if active.any():
        # Three resonators to a polynomial: longer products lose the low bins to rounding.
        factors = [_product(sections[:3]), _product(sections[3:])]
        add(source, active, factors, upper, (zero, pole))
    if hissing.any():
        place, width = plan.centre[hissing], plan.width[hissing]
        poles = _product([_resonators(place, width), _resonators(1.45 * place, 1.5 * width)])
        # Two zeros near 0 Hz keep the hiss clear of the voice's own band; unit gain at the centre.
        at = np.exp(-2j * np.pi * place / RATE)
        response = (1 - 0.98 * at) ** 2
        response /= (poles * at[:, None] ** np.arange(poles.shape[1])).sum(axis=1)
        add(hiss, hissing, [poles * (np.abs(response) / 0.30)[:, None]], (1 - 0.98 * z) ** 2)
    flat = out.ravel()[WINDOW // 2 :]
    return flat[:samples] * 0.12
