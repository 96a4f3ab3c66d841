"""A singing voice: glottal pulses and noise through a moving vocal tract.

The source is a bank of one-period Liljencrants-Fant pulses (G. Fant, J. Liljencrants and Q. Lin,
"A four-parameter model of glottal flow", STL-QPSR 1985; the single-parameter form of G. Fant, 1995)
read at a running phase, so that pitch and effort move freely within a note. The filter is an
all-pole tract with a nasal pole-zero pair (D. Klatt, "Software for a cascade/parallel formant
synthesizer", JASA 1980), applied frame by frame in the short-time spectrum. Consonants are
closures, bursts, frication, murmurs and formant glides between the vowels' targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy.fft

from rendered_corpus.song import Note, Syllable
from rendered_corpus.tables import Voice

HOP = 256
"""Samples between filter frames (5.8 ms at 44.1 kHz)."""
WINDOW = 1024
FFT = 2048
TABLE = 2048

# F1 to F5 in Hz of an adult male (after Peterson and Barney 1952).
VOWELS: dict[str, tuple[float, ...]] = {
    "i": (280, 2280, 2950, 3500, 4500),
    "I": (400, 1950, 2550, 3450, 4500),
    "e": (500, 1850, 2500, 3450, 4450),
    "ae": (670, 1700, 2420, 3400, 4400),
    "a": (740, 1120, 2480, 3400, 4400),
    "O": (580, 880, 2450, 3350, 4400),
    "o": (450, 820, 2420, 3300, 4350),
    "U": (430, 1020, 2280, 3300, 4350),
    "u": (310, 860, 2260, 3250, 4300),
    "V": (630, 1210, 2420, 3400, 4400),
    "er": (480, 1330, 1720, 3250, 4300),
    "@": (500, 1500, 2500, 3500, 4500),
}


@dataclass(frozen=True)
class Consonant:
    """How a consonant sounds: formant locus (Hz), seconds, and its sources' levels.

    ``closure`` is silence before the release, ``burst`` and ``noise`` are (level, centre in Hz,
    bandwidth in Hz) of frication, ``voiced`` and ``breath`` the glottal levels, ``nasal`` the
    opening of the nose in 0..1.
    """

    locus: tuple[float, float, float]
    seconds: float
    closure: float = 0.0
    burst: tuple[float, float, float] = (0.0, 3000.0, 2000.0)
    noise: tuple[float, float, float] = (0.0, 5000.0, 3000.0)
    voiced: float = 0.0
    breath: float = 0.0
    nasal: float = 0.0


CONSONANTS: dict[str, Consonant] = {
    "p": Consonant((350, 900, 2200), 0.050, 0.055, (0.40, 1100, 1500), breath=0.5),
    "t": Consonant((350, 1750, 2650), 0.055, 0.050, (0.70, 4600, 2200), breath=0.45),
    "k": Consonant((320, 1900, 2300), 0.065, 0.055, (0.60, 2100, 1100), breath=0.5),
    "b": Consonant((280, 900, 2200), 0.018, 0.060, (0.25, 900, 1200), voiced=0.12),
    "d": Consonant((280, 1700, 2600), 0.020, 0.050, (0.40, 3800, 2200), voiced=0.12),
    "g": Consonant((280, 1900, 2300), 0.025, 0.055, (0.40, 2000, 1100), voiced=0.12),
    "s": Consonant((350, 1700, 2600), 0.110, noise=(0.75, 6600, 2600)),
    "sh": Consonant((350, 1800, 2500), 0.110, noise=(0.75, 3100, 1500)),
    "f": Consonant((350, 1000, 2250), 0.090, noise=(0.16, 7200, 7000)),
    "th": Consonant((350, 1350, 2500), 0.080, noise=(0.14, 5600, 6000)),
    "h": Consonant((500, 1500, 2500), 0.075, breath=0.8),
    "v": Consonant((280, 1050, 2250), 0.065, noise=(0.07, 6000, 6000), voiced=0.45),
    "z": Consonant((290, 1700, 2600), 0.080, noise=(0.35, 6200, 2600), voiced=0.4),
    "ch": Consonant((350, 1800, 2500), 0.085, 0.045, (0.6, 3400, 1500), (0.7, 3200, 1500)),
    "j": Consonant((290, 1800, 2500), 0.060, 0.040, (0.4, 3200, 1500), (0.4, 3100, 1500), 0.3),
    "m": Consonant((270, 1050, 2200), 0.075, voiced=0.55, nasal=1.0),
    "n": Consonant((270, 1500, 2500), 0.070, voiced=0.55, nasal=1.0),
    "ng": Consonant((270, 1900, 2300), 0.080, voiced=0.5, nasal=1.0),
    "l": Consonant((360, 1150, 2750), 0.070, voiced=0.65),
    "r": Consonant((340, 1150, 1550), 0.075, voiced=0.65),
    "w": Consonant((300, 640, 2250), 0.075, voiced=0.65),
    "y": Consonant((270, 2200, 3000), 0.070, voiced=0.65),
}

RD_LEVELS = np.array([0.35, 0.5, 0.7, 0.95, 1.3, 1.7, 2.2, 2.7])


def lookup(tables: np.ndarray, level: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Read a bank of one-period tables at a running phase.

    Parameters
    ----------
    tables
        ``(levels, samples)``, one period each.
    level
        ``(n,)``, position between the tables, 0 to levels - 1; neighbours are cross-faded.
    phase
        ``(n,)`` in periods.

    Returns
    -------
    ``(n,)``, linearly interpolated in both directions.
    """
    count, size = tables.shape
    flat = np.concatenate([tables, tables[:, :1]], axis=1).ravel()
    place = (phase - np.floor(phase)) * size
    index = place.astype(np.intp)
    np.minimum(index, size - 1, out=index)
    part = place - index
    lower = np.clip(level, 0, count - 1).astype(np.intp)
    np.minimum(lower, max(count - 2, 0), out=lower)
    mix = np.clip(level - lower, 0.0, 1.0)
    index += lower * (size + 1)
    out = flat[index] * (1 - part) + flat[index + 1] * part
    if count > 1:
        index += size + 1
        upper = flat[index] * (1 - part) + flat[index + 1] * part
        out += (upper - out) * mix
    return out


def upsample(values: np.ndarray, hop: int, samples: int) -> np.ndarray:
    """Interpolate linearly between values that lie ``hop`` samples apart, ``(samples,)``.

    The last value holds on if there are too few. This is ``numpy.interp`` for even steps, several
    times as fast.
    """
    count = -(-samples // hop)
    values = np.pad(values, (0, max(count + 1 - len(values), 0)), mode="edge")[: count + 1]
    ramp = np.arange(hop) / hop
    lines = values[:-1, None] + (values[1:] - values[:-1])[:, None] * ramp
    return lines.ravel()[:samples]


def _lf_pulse(rd: float, size: int = 4 * TABLE) -> np.ndarray:
    """One period of the LF model's flow derivative, ``(size,)``, for a shape ``rd``."""
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
    t = np.arange(size) / size
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


class _Track:
    """A control signal given by breakpoints."""

    def __init__(self, start: float):
        self.times, self.values = [-1.0], [start]

    def add(self, time: float, value: float) -> None:
        # Breakpoints never step back in time: a consonant may begin before the last vowel ends.
        self.times.append(max(time, self.times[-1] + 1e-4))
        self.values.append(value)

    def at(self, times: np.ndarray) -> np.ndarray:
        return np.interp(times, self.times, self.values)


def _smooth(x: np.ndarray, width: int) -> np.ndarray:
    if width <= 1:
        return x
    kernel = np.hanning(width + 2)[1:-1]
    padded = np.pad(x, width // 2, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="same")[width // 2 :][: len(x)]


def _slow_noise(rng: np.random.Generator, frames: int, every: int) -> np.ndarray:
    """Noise of unit variance, interpolated between one random value per ``every`` frames."""
    knots = rng.standard_normal(frames // every + 3)
    return np.interp(np.arange(frames) / every, np.arange(len(knots)), knots)


def sing(
    voice: Voice,
    notes: Sequence[Note],
    *,
    samples: int,
    rate: int,
    rng: np.random.Generator,
    breaths: bool = True,
) -> np.ndarray:
    """Sing a monophonic line.

    Parameters
    ----------
    voice
        The singer.
    notes
        In order of time; notes without a syllable are sung as "ah".
    samples, rate
        Length of the result and sample rate in Hz.
    rng
        Jitter, drift, noise and this performance's vocal-tract length come from here.
    breaths
        Whether the singer is heard breathing in before phrases.

    Returns
    -------
    ``(samples,)``, roughly -20 dB RMS where it sings.
    """
    out = np.zeros(samples)
    tract = float(rng.uniform(*voice.tract))
    for phrase in _phrases(notes):
        # Only where somebody sings is there anything to compute.
        first = max(int((phrase[0].start - _LEAD) * rate), 0)
        length = int((max(n.start + n.duration for n in phrase) + _TAIL) * rate) - first
        moved = [replace(n, start=n.start - first / rate) for n in phrase]
        part = _sing_phrase(voice, moved, tract, length, rate, rng, breaths=breaths)
        part = part[: max(samples - first, 0)]
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
    voice: Voice,
    notes: Sequence[Note],
    tract: float,
    samples: int,
    rate: int,
    rng: np.random.Generator,
    *,
    breaths: bool,
) -> np.ndarray:
    frames = samples // HOP + 2
    times = np.arange(frames) * HOP / rate
    plan = _articulate(voice, notes, times, rng, tract, breaths)
    pitch = _intonation(voice, notes, times, rng)
    hertz = 440.0 * 2.0 ** ((pitch - 69) / 12)
    # Singers open the mouth so that the first formant does not fall below the pitch.
    plan.formants[:, 0] = np.maximum(plan.formants[:, 0], 1.02 * hertz)

    phase = np.cumsum(upsample(hertz, HOP, samples)) / rate
    harmonics = int(min(0.45 * rate / float(hertz.max()), TABLE // 2 - 1))
    level = np.interp(plan.rd, RD_LEVELS, np.arange(len(RD_LEVELS)))
    level = upsample(level, HOP, samples)
    source = lookup(glottal_tables(1 << (harmonics.bit_length() - 1)), level, phase)
    voiced = upsample(plan.voiced, HOP, samples)
    if voice.rasp:
        # Every second pulse is weaker, more so the harder the effort, and the cords flutter.
        rough = voice.rasp * upsample(plan.rough, HOP, samples)
        flutter = upsample(_slow_noise(rng, frames, 2), HOP, samples)
        source *= 1 - rough * (0.6 + 0.6 * np.cos(np.pi * phase) + 0.4 * flutter).clip(0, 1.5)
    noise = rng.standard_normal(samples)
    # Air flows while the glottis is open, so breath is heard in step with the pulses.
    breath = upsample(plan.breath, HOP, samples)
    breath *= np.where(voiced > 0.05, 0.55 + 0.45 * np.cos(2 * np.pi * (phase - 0.45)), 1.0)
    breath *= noise
    source *= voiced
    source += 0.35 * np.diff(breath, prepend=0.0) + 0.08 * breath
    hiss = upsample(plan.noise, HOP, samples) * noise
    return _filter(source, plan, hiss, rate)


@dataclass
class _Plan:
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
    ring: float


def _articulate(voice, notes, times, rng, tract: float, breaths: bool) -> _Plan:
    voiced, breath, noise = _Track(0.0), _Track(0.0), _Track(0.0)
    centre, width, nasal = _Track(5000.0), _Track(3000.0), _Track(0.0)
    effort = _Track(0.5)
    formants = [_Track(f) for f in VOWELS["@"]]
    whisper = voice.delivery == "falsetto"
    default = Syllable("", ("a",), "")

    def shape(time: float, vowel: Sequence[float]) -> None:
        for track, value in zip(formants, vowel, strict=False):
            track.add(time, value)

    free = -1.0  # when the mouth is free again
    for k, note in enumerate(notes):
        syllable = note.syllable or default
        onset = CONSONANTS.get(syllable.onset)
        coda = CONSONANTS.get(syllable.coda)
        start, stop = note.start, note.start + note.duration
        following = notes[k + 1].start if k + 1 < len(notes) else stop + 1.0
        linked = following - stop < 0.06
        power = note.velocity
        amount = 0.25 + 0.75 * power
        lean = float(rng.uniform(0.85, 1.15))
        gap = start - free
        if breaths and gap > 0.5 and rng.random() < 0.75:
            length = min(float(rng.uniform(0.18, 0.38)), gap - 0.1)
            at = start - length - 0.08
            loud = float(rng.uniform(0.05, 0.16))
            shape(at, VOWELS["@"])
            breath.add(at, 0.0)
            breath.add(at + 0.6 * length, loud)
            breath.add(at + length, 0.0)
        if gap > 0.08:
            voiced.add(max(free, start - 0.25), 0.0)
            breath.add(max(free, start - 0.15), 0.0)
            nasal.add(max(free, start - 0.15), 0.0)
        begin = start
        if onset:
            room = max(start - max(free, 0.0), 0.0) + 0.35 * note.duration
            scale = min(lean, room / (onset.seconds + onset.closure + 1e-6))
            scale = max(scale, 0.35)
            begin = start - (onset.seconds + onset.closure) * scale * 0.8
            release = _consonant(
                onset, begin, scale, amount, shape, voiced, breath, noise, centre, width, nasal
            )
        else:
            release = start - 0.015
            voiced.add(release, voiced.values[-1] if gap < 0.08 else 0.0)
            if gap > 0.08 and rng.random() < 0.3:  # a hard attack
                release = start - 0.004
        targets = [VOWELS[v] for v in syllable.vowel]
        glide = 0.045 * lean
        onset_end = release + min(glide, 0.4 * note.duration)
        nasal.add(release + 0.02, 0.0)
        shape(onset_end, targets[0])
        attack = float(rng.uniform(0.015, 0.05))
        voiced.add(release + attack, amount)
        air = voice.breath * (1.5 - power) * float(rng.uniform(0.8, 1.2))
        breath.add(release + attack, air)
        effort.add(onset_end, power)
        end = max(stop, onset_end + 0.03)
        tail = 0.0
        if coda:
            tail = min(coda.seconds + coda.closure, 0.3 * note.duration)
        if linked and k + 1 < len(notes):
            nxt = CONSONANTS.get((notes[k + 1].syllable or default).onset)
            if nxt:
                end = max(end - 0.8 * (nxt.seconds + nxt.closure), onset_end + 0.03)
        close = max(end - tail, onset_end + 0.02)
        if len(targets) > 1:
            shape(onset_end + 0.55 * (close - onset_end), targets[0])
            shape(close, targets[1])
        else:
            shape(close, targets[0])
        swell = float(rng.uniform(0.75, 1.1))
        voiced.add(onset_end + 0.5 * max(close - onset_end, 0), amount * swell)
        voiced.add(close, amount * swell * float(rng.uniform(0.75, 1.0)))
        breath.add(close, air * 1.2)
        effort.add(close, power * float(rng.uniform(0.75, 1.0)))
        free = close
        if coda:
            free = _consonant(
                coda, close, tail / (coda.seconds + coda.closure + 1e-6), 0.8 * amount, shape,
                voiced, breath, noise, centre, width, nasal, release=not linked,
            )  # fmt: skip
            nasal.add(free + 0.02, coda.nasal)
        if not linked:
            fade = float(rng.uniform(0.04, 0.12))
            voiced.add(free + fade, 0.0)
            breath.add(free + fade, air)
            breath.add(free + fade + 0.08, 0.0)
            nasal.add(free + fade + 0.05, 0.0)
    frames = len(times)
    smear = max(int(0.025 / (times[1] - times[0])), 1)
    tracks = np.stack([_smooth(track.at(times), smear) for track in formants], axis=1)
    if voice.ring:
        # The singer's formant: F3, F4 and F5 draw together.
        pull = min(voice.ring / 10, 0.6)
        for k, target in ((2, 2550.0), (3, 2900.0), (4, 3300.0)):
            tracks[:, k] += pull * (target - tracks[:, k])
    tracks *= tract * (1 + 0.008 * _slow_noise(rng, frames, 20))[:, None]
    power = effort.at(times)
    shimmer = 1 + 0.05 * _slow_noise(rng, frames, 2) + 0.06 * _slow_noise(rng, frames, 30)
    # Singers who carry over a band press more than speakers do: the range is drawn together.
    rd = 0.35 + 0.6 * (voice.rd * 2.0 ** (1.0 * (0.6 - power)) - 0.35)
    rd = rd + 0.04 * _slow_noise(rng, frames, 25)
    loud = _smooth(voiced.at(times), 3) * shimmer
    return _Plan(
        voiced=loud * (0.45 if whisper else 0.5),
        breath=np.maximum(_smooth(breath.at(times), 3), 0.0),
        noise=np.maximum(noise.at(times), 0.0),
        centre=centre.at(times) * (0.7 + 0.3 * tract),
        width=width.at(times),
        nasal=_smooth(nasal.at(times), 4),
        rd=np.clip(rd, RD_LEVELS[0], RD_LEVELS[-1]),
        rough=np.clip(1.6 * power - 0.5, 0, 1),
        formants=tracks,
        tract=tract,
        ring=voice.ring,
    )


def _consonant(
    sound, begin, scale, amount, shape, voiced, breath, noise, centre, width, nasal, *, release=True
) -> float:
    """Add a consonant's breakpoints from ``begin`` on; returns when it ends."""
    shut = sound.closure * scale
    length = sound.seconds * scale
    shape(begin, sound.locus)
    voiced.add(begin, voiced.values[-1] if voiced.values[-1] > 0 else 0.0)
    edge = begin + 0.012
    if shut:
        voiced.add(edge, 0.0 if not sound.voiced else sound.voiced * amount)
        breath.add(begin, 0.0)
        voiced.add(begin + shut, 0.0 if not sound.voiced else sound.voiced * amount)
        noise.add(begin + shut - 0.001, 0.0)
        if not release:
            return begin + shut
        level, place, band = sound.burst
        centre.add(begin + shut - 0.001, place)
        width.add(begin + shut - 0.001, band)
        noise.add(begin + shut + 0.001, level * amount)
        centre.add(begin + shut + 0.02, place)
        width.add(begin + shut + 0.02, band)
        noise.add(begin + shut + 0.018, 0.12 * level * amount)
        if sound.noise[0]:
            noise.add(begin + shut + 0.02, sound.noise[0] * amount)
            noise.add(begin + shut + length, sound.noise[0] * amount * 0.6)
        noise.add(begin + shut + length + 0.012, 0.0)
        if sound.breath:
            breath.add(begin + shut, 0.0)
            breath.add(begin + shut + 0.012, sound.breath * amount)
            breath.add(begin + shut + length, 0.5 * sound.breath * amount)
            voiced.add(begin + shut + 0.8 * length, 0.0)
    else:
        voiced.add(edge, sound.voiced * amount)
        voiced.add(begin + length - 0.012, sound.voiced * amount)
        level, place, band = sound.noise
        if level:
            centre.add(begin - 0.02, place)
            width.add(begin - 0.02, band)
            noise.add(begin - 0.015, 0.0)
            noise.add(begin + 0.3 * length, level * amount)
            noise.add(begin + 0.8 * length, level * amount)
            noise.add(begin + length + 0.012, 0.0)
            centre.add(begin + length + 0.012, place)
            width.add(begin + length + 0.012, band)
        if sound.breath:
            breath.add(begin, 0.0)
            breath.add(begin + 0.4 * length, sound.breath * amount)
            breath.add(begin + length, 0.6 * sound.breath * amount)
    nasal.add(begin, nasal.values[-1])
    nasal.add(begin + 0.02, sound.nasal)
    nasal.add(begin + shut + length - 0.005, sound.nasal)
    shape(begin + shut + 0.7 * length, sound.locus)
    return begin + shut + length


def _intonation(voice: Voice, notes, times, rng) -> np.ndarray:
    """Pitch in semitones per frame: notes, glides, scoops, vibrato, drift and jitter."""
    frames = len(times)
    pitch = np.full(frames, float(notes[0].pitch))
    rate, cents, wait = voice.vibrato
    rate *= 1 + 0.05 * float(rng.standard_normal())
    spoken = voice.delivery == "rap"
    wobble = np.cumsum(np.full(frames, rate * (times[1] - times[0])))
    wobble += 0.15 * _slow_noise(rng, frames, 25)
    vibrato = np.sin(2 * np.pi * wobble)
    vibrato *= 1 + 0.2 * _slow_noise(rng, frames, 40)
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
    pitch += 0.13 * _slow_noise(rng, frames, 35) + 0.06 * _slow_noise(rng, frames, 9)
    pitch += 12 / np.log(2) * voice.jitter * _slow_noise(rng, frames, 2)
    return pitch


def _resonators(frequency: np.ndarray, width: np.ndarray, rate: int) -> np.ndarray:
    """Denominators ``(frames, 3)`` of two-pole resonators, scaled to unit gain at 0 Hz."""
    radius = np.exp(-np.pi * width / rate)
    first = -2 * radius * np.cos(2 * np.pi * frequency / rate)
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


def _filter(source: np.ndarray, plan: _Plan, hiss: np.ndarray, rate: int) -> np.ndarray:
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
        sections.append(_resonators(f[:, k], width, rate)[active])
    # The tract goes on above the fifth formant, the same for all frames.
    z = np.exp(-2j * np.pi * np.arange(FFT // 2 + 1) / FFT)
    upper = np.ones(len(z), complex)
    for k in range(6, 12):
        place = np.array([min(1000.0 * plan.tract * (k - 0.5), 0.47 * rate)])
        upper /= np.polyval(_resonators(place, np.array([250.0 + 60 * k]), rate)[0, ::-1], z)
    nasal = plan.nasal[active]
    width = np.full(len(nasal), 110.0)
    pole = _resonators(np.full(len(nasal), 280.0), width, rate)
    zero = _resonators(280.0 + 450.0 * nasal, width, rate)
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
        poles = _product(
            [
                _resonators(place, width, rate),
                _resonators(np.minimum(1.45 * place, 0.45 * rate), 1.5 * width, rate),
            ]
        )
        # Two zeros near 0 Hz keep the hiss clear of the voice's own band; unit gain at the centre.
        at = np.exp(-2j * np.pi * place / rate)
        response = (1 - 0.98 * at) ** 2
        response /= (poles * at[:, None] ** np.arange(poles.shape[1])).sum(axis=1)
        add(hiss, hissing, [poles * (np.abs(response) / 0.30)[:, None]], (1 - 0.98 * z) ** 2)
    flat = out.ravel()[WINDOW // 2 :]
    return flat[:samples] * 0.12
