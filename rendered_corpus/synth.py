"""Instruments and production: turns a composed song into its four stems.

Sounds come from the General MIDI SoundFont that ships inside ``pretty_midi`` (TimGM6mb.sf2, played
by ``midirenderer``), from our own synthetic drums and wavetable instruments, and from the singing
voice. Each layer gets its own equaliser, drive, compression and place; each stem a room. All of it
is a pure function of the song.

Linear production (equaliser, panning, room, echoes) is applied in one long spectrum per layer and
one inverse transform per stem and channel, which is what keeps a song near two seconds of work.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import midirenderer
import mido
import numpy as np
import scipy.fft
import soundfile
import soxr

from rendered_corpus.composer import STEMS, STYLES, VOICES, Layer, Note, Song
from rendered_corpus.voice import lookup, sing, upsample

RATE = 44100
"""Sample rate of the corpus in Hz."""


@lru_cache(maxsize=1)
def _font() -> bytes:
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise ValueError("pretty_midi is not installed; its SoundFont is needed to render songs.")
    path = Path(spec.origin).parent / "TimGM6mb.sf2"
    if not path.is_file():
        raise ValueError(f"{path.name} is missing from pretty_midi; reinstall pretty_midi.")
    return path.read_bytes()


# ------------------------------------------------------------------------------------- SoundFont


def play_font(
    notes: Sequence[Note], program: int, *, samples: int, drums: bool = False, cents: float = 0.0
) -> np.ndarray:
    """Play notes with a preset of the SoundFont.

    Parameters
    ----------
    notes
        Bends are only heard if the notes do not overlap, as on the instruments that have them.
    program
        General MIDI program, or the drum kit's program if ``drums``.
    samples
        Length of the result at 44.1 kHz.
    cents
        Tuning: the whole recording is played faster or slower, as a sampler would; the notes'
        times are corrected for that, so that only pitch and timbre change.

    Returns
    -------
    ``(samples,)``, mono.
    """
    speed = 2.0 ** (cents / 1200)
    channel = 9 if drums else 0
    track = mido.MidiTrack()
    events = []

    def add(time: float, order: int, kind: str, **fields: int) -> None:
        ticks = max(round(time * speed * 2000), 0)
        events.append((ticks, order, len(events), mido.Message(kind, channel=channel, **fields)))

    add(0, 0, "program_change", program=program)
    for control, value in ((7, 127), (11, 127), (91, 0), (93, 0)):
        add(0, 1, "control_change", control=control, value=value)
    ends = np.array([n.start + n.duration for n in notes])
    starts = np.array([n.start for n in notes])
    alone = not drums and bool(np.all(starts[1:] >= ends[:-1] - 0.05))
    bends = alone and any(n.bend for n in notes)
    if bends:  # RPN 0: a range of 12 semitones
        for control, value in ((101, 0), (100, 0), (6, 12), (38, 0)):
            add(0, 2, "control_change", control=control, value=value)
    for note in notes:
        pitch = int(np.clip(round(note.pitch), 0, 127))
        if bends:
            bend = float(np.clip(note.bend, -12, 12))
            for k in range(7 if bend else 1):
                value = int(bend * (1 - min(k, 6) / 6) / 12 * 8191)
                add(note.start + 0.018 * k, 3, "pitchwheel", pitch=value)
        velocity = int(np.clip(round(127 * note.velocity**0.7), 1, 127))
        add(note.start, 4, "note_on", note=pitch, velocity=velocity)
        add(note.start + max(note.duration, 0.03), 2, "note_off", note=pitch, velocity=0)
    # The renderer stops at the last event.
    add(samples / RATE + 0.1, 5, "control_change", control=7, value=127)
    track.append(mido.MetaMessage("set_tempo", tempo=1_000_000))
    last = 0
    for ticks, _, _, message in sorted(events, key=lambda e: e[:3]):
        track.append(message.copy(time=ticks - last))
        last = ticks
    midi = mido.MidiFile(ticks_per_beat=2000)
    midi.tracks.append(track)
    buffer = io.BytesIO()
    midi.save(file=buffer)
    wave = midirenderer.render_wave_from(_font(), buffer.getvalue())
    audio, rate = soundfile.read(io.BytesIO(wave), dtype="float32", always_2d=True)
    audio = soxr.resample(audio.mean(axis=1), rate * speed, RATE, quality="HQ")
    return _fit(audio.astype(float), samples)


_STROKES = (0.25, 0.55, 0.95)  # velocities that a kit's pieces are sampled at


@lru_cache(maxsize=512)
def _kit_shots(kit: int, key: int) -> tuple[np.ndarray, ...]:
    """Strokes of one piece of a kit at rising velocities.

    Playing a whole song through the renderer for each group of pieces costs far more than
    sampling the pieces once a process and placing the samples.
    """
    long = 2.2 if key in (49, 52, 55, 57, 51, 53, 59, 46, 81) else 0.9
    notes = [Note(k * long, long - 0.05, key, v) for k, v in enumerate(_STROKES)]
    n = int(long * RATE)
    audio = play_font(notes, kit, samples=n * len(notes), drums=True)
    shots = []
    for k in range(len(notes)):
        shot = audio[int(k * long * RATE) : int(k * long * RATE) + n].copy()
        shot[-2000:] *= np.linspace(1, 0, 2000)
        shot.flags.writeable = False
        shots.append(shot)
    return tuple(shots)


def play_kit(
    notes: Sequence[Note], kit: int, *, samples: int, cents: float, rng: np.random.Generator
) -> np.ndarray:
    """Play drum notes on a kit of the SoundFont, ``(samples,)``, tuned by about ``cents``."""
    tuned: dict[tuple[int, int], np.ndarray] = {}

    def stroke(key: int, velocity: float) -> np.ndarray:
        place = int(np.argmin(np.abs(np.array(_STROKES) - velocity)))
        if (key, place) not in tuned:
            ratio = 2.0 ** ((cents + float(rng.normal(0, 20))) / 1200)
            shot = _kit_shots(kit, key)[place]
            tuned[key, place] = soxr.resample(shot, RATE * ratio, RATE, quality="HQ")
        return tuned[key, place] * (velocity / _STROKES[place]) ** 1.4

    return _place(notes, stroke, samples)


def _place(
    notes: Sequence[Note], stroke: Callable[[int, float], np.ndarray], samples: int
) -> np.ndarray:
    """Put strokes where the notes are; a closed hi-hat chokes an open one."""
    out = np.zeros(samples + 4 * RATE)
    closing = np.array([n.start for n in notes if round(n.pitch) in (42, 44)])
    for note in notes:
        key = round(note.pitch)
        shot = stroke(key, note.velocity)
        if key == 46 and len(closing):
            place = int(np.searchsorted(closing, note.start + 0.02))
            if place < len(closing):
                length = int((closing[place] - note.start) * RATE) + 400
                if length < len(shot):
                    shot = shot[:length].copy()
                    shot[-400:] *= np.linspace(1, 0, 400)
        first = int(note.start * RATE)
        out[first : first + len(shot)] += shot
    return out[:samples]


def _fit(x: np.ndarray, samples: int) -> np.ndarray:
    if len(x) >= samples:
        return x[:samples]
    return np.pad(x, (0, samples - len(x)))


# ----------------------------------------------------------------------------------- drum machine


@dataclass(frozen=True)
class Machine:
    """A synthetic drum kit: kick and toms sweep, snares mix tone and noise, metal is FM noise.

    ``kick``: start and end in Hz, seconds of the sweep, seconds of decay, click. ``snare``: tone in
    Hz, its decay, the noise's decay and centre in Hz, noise share. ``hat``: lowest partial in Hz,
    closed and open decay, noise share. ``tom``: Hz, decay. ``clap``: centre in Hz, decay.
    """

    kick: tuple[float, float, float, float, float]
    snare: tuple[float, float, float, float, float]
    hat: tuple[float, float, float, float]
    tom: tuple[float, float]
    clap: tuple[float, float]
    drive: float = 0.0
    crush: int = 0


MACHINES: dict[str, Machine] = {
    "round": Machine((160, 46, 0.03, 0.45, 0.1), (185, 0.10, 0.16, 3500, 0.6),
                     (320, 0.04, 0.30, 0.3), (95, 0.30), (1100, 0.12)),
    "tight": Machine((240, 56, 0.015, 0.20, 0.5), (210, 0.06, 0.11, 5000, 0.5),
                     (410, 0.025, 0.18, 0.5), (120, 0.18), (1500, 0.09), 0.3),
    "dusty": Machine((130, 60, 0.02, 0.16, 0.3), (230, 0.08, 0.14, 2600, 0.55),
                     (300, 0.05, 0.22, 0.7), (105, 0.22), (1200, 0.10), 0.6, 9),
    "electro": Machine((300, 50, 0.045, 0.30, 0.2), (250, 0.12, 0.22, 4200, 0.7),
                       (540, 0.035, 0.35, 0.1), (140, 0.35), (1700, 0.14), 0.2),
    "warehouse": Machine((210, 44, 0.035, 0.36, 0.7), (190, 0.05, 0.18, 3000, 0.8),
                         (450, 0.03, 0.25, 0.8), (90, 0.28), (1300, 0.16), 1.0),
    "hollow": Machine((110, 52, 0.05, 0.28, 0.05), (330, 0.14, 0.09, 2200, 0.35),
                      (260, 0.06, 0.40, 0.2), (150, 0.40), (900, 0.11)),
    "snappy": Machine((190, 64, 0.012, 0.14, 0.9), (280, 0.04, 0.09, 6000, 0.65),
                      (600, 0.02, 0.14, 0.6), (130, 0.15), (2000, 0.07), 0.1),
    "boxy": Machine((150, 70, 0.025, 0.19, 0.4), (160, 0.09, 0.13, 1800, 0.45),
                    (350, 0.045, 0.26, 0.45), (112, 0.25), (1000, 0.10), 0.2),
    "lunar": Machine((270, 40, 0.06, 0.52, 0.15), (300, 0.10, 0.20, 4700, 0.75),
                     (490, 0.03, 0.33, 0.25), (80, 0.45), (1600, 0.15)),
    "gravel": Machine((180, 54, 0.02, 0.24, 0.8), (220, 0.07, 0.17, 2900, 0.62),
                      (380, 0.04, 0.20, 0.85), (100, 0.20), (1400, 0.12), 1.2, 10),
}  # fmt: skip


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
    """One stroke of a drum machine."""
    jitter = 1 + 0.01 * float(rng.standard_normal())
    if key in (35, 36):
        start, end, sweep, decay, click = machine.kick
        n = int(RATE * (decay * 1.6 + 0.05))
        t = np.arange(n) / RATE
        hertz = (end + (start - end) * np.exp(-t / sweep)) * jitter
        out = np.sin(2 * np.pi * np.cumsum(hertz) / RATE) * _decay(n, decay)
        out += click * 0.5 * _band(rng.standard_normal(n), 3000, 1.2) * _decay(n, 0.008) * 3
    elif key in (37, 75, 76, 77):
        n = int(0.08 * RATE)
        hertz = {37: 1700, 75: 2500, 76: 1250, 77: 900}[key] * jitter
        out = np.sin(2 * np.pi * hertz * np.arange(n) / RATE) * _decay(n, 0.04)
        out += 0.4 * _band(rng.standard_normal(n), 2 * hertz, 0.8) * _decay(n, 0.015)
    elif key in (38, 40):
        tone, short, long, centre, share = machine.snare
        tone *= jitter * (1.12 if key == 40 else 1.0)
        n = int(RATE * (long * 1.6 + 0.05))
        t = np.arange(n) / RATE
        bend = 1 + 0.35 * np.exp(-t / 0.012)
        phase = 2 * np.pi * tone * np.cumsum(bend) / RATE
        out = (1 - share) * (np.sin(phase) + 0.5 * np.sin(1.78 * phase)) * _decay(n, short)
        noise = rng.standard_normal(n)
        out += share * 1.1 * (_band(noise, centre, 1.3) + 0.15 * noise) * _decay(n, long)
    elif key == 39:
        centre, decay = machine.clap
        n = int(RATE * (decay * 2 + 0.06))
        envelope = np.zeros(n)
        for k, at in enumerate((0.0, 0.011, 0.021, 0.031)):
            first = int(at * jitter * RATE)
            envelope[first:] += _decay(n - first, decay if k == 3 else 0.012)
        out = 1.4 * _band(rng.standard_normal(n), centre, 0.9) * envelope
    elif key in (50, 48, 47, 45, 43, 41, 60, 61, 62, 63, 64):
        base, decay = machine.tom
        ratio = {50: 2.0, 48: 1.7, 47: 1.45, 45: 1.2, 43: 1.0, 41: 0.82}.get(key)
        if ratio is None:  # hand drums
            ratio, decay = {60: 4.4, 61: 3.2, 62: 3.8, 63: 3.0, 64: 2.2}[key], 0.4 * decay
        n = int(RATE * (decay * 1.6 + 0.05))
        t = np.arange(n) / RATE
        hertz = base * ratio * jitter * (1 + 0.5 * np.exp(-t / 0.03))
        out = np.sin(2 * np.pi * np.cumsum(hertz) / RATE) * _decay(n, decay)
        out += 0.25 * _band(rng.standard_normal(n), 1800, 1.2) * _decay(n, 0.03)
    elif key == 56:
        n = int(0.3 * RATE)
        t = np.arange(n) / RATE
        out = np.sign(np.sin(2 * np.pi * 560 * t)) + np.sign(np.sin(2 * np.pi * 845 * t))
        out = 0.4 * _band(out, 1400, 0.9) * _decay(n, 0.18)
    elif key in (54, 69, 70, 82):
        n = int(0.12 * RATE)
        rise = np.minimum(np.arange(n) / (0.012 * RATE), 1.0)
        centre = {54: 8500.0, 69: 5200.0, 70: 6300.0, 82: 7000.0}[key]
        out = 1.5 * _band(rng.standard_normal(n), centre, 0.5) * _decay(n, 0.07) * rise
    else:  # hats, rides, crashes, triangle
        base, closed, open_, share = machine.hat
        decay = {42: closed, 44: 0.8 * closed, 46: open_, 81: 0.5}.get(key)
        if decay is None:
            decay = 1.4 if key in (49, 52, 55, 57) else 0.6
        n = int(RATE * (decay * 1.5 + 0.03))
        t = np.arange(n) / RATE
        out = np.zeros(n)
        for ratio in (1.0, 1.342, 1.2312, 1.6532, 1.9523, 2.1523):
            hertz = base * ratio * jitter * (3 if key == 81 else 1)
            out += np.sign(np.sin(2 * np.pi * hertz * t + ratio))
        noise = rng.standard_normal(n)
        out = (1 - share) * 0.35 * out + share * noise
        place = {51: 5000.0, 53: 3600.0, 59: 4800.0}.get(key, 8200.0)
        out = _band(out, place, 0.75 if key in (49, 52, 55, 57) else 0.6) * _decay(n, decay)
        if key in (51, 53, 59):
            out += 0.2 * np.sin(2 * np.pi * 9 * base * t) * _decay(n, 0.25)
    if machine.drive:
        out = np.tanh((1 + 2 * machine.drive) * out) / np.tanh(1 + machine.drive)
    if machine.crush:  # an old sampler: few bits, held samples
        steps = 2.0 ** (machine.crush - 1)
        out = np.repeat(np.round(out[::3] * steps) / steps, 3)[: len(out)]
    out[-64:] *= np.linspace(1, 0, 64)
    return out


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

    return _place(notes, stroke, samples)


# -------------------------------------------------------------------------------------- wavetable


@dataclass(frozen=True)
class Patch:
    """A synthetic instrument: a spectrum whose brightness and loudness move with every note.

    ``wave`` is the spectrum before the filter; ``bright`` gives the filter's corner as a harmonic
    number: at the attack, after it, and the seconds between; ``amp`` is attack, decay, sustain and
    release; ``unison`` is voices and detune in cents; ``vibrato`` Hz and cents; ``index`` makes it
    a two-operator FM voice of that modulation index and ``ratio``.
    """

    wave: str
    bright: tuple[float, float, float]
    amp: tuple[float, float, float, float]
    resonance: float = 0.0
    unison: tuple[int, float] = (1, 0.0)
    vibrato: tuple[float, float] = (0.0, 0.0)
    glide: float = 0.0
    index: float = 0.0
    ratio: float = 1.0
    noise: float = 0.0
    sub: float = 0.0


PATCHES: dict[str, Patch] = {
    "saw bass": Patch("saw", (18, 5, 0.15), (0.004, 0.3, 0.7, 0.05), 0.5),
    "square bass": Patch("square", (14, 6, 0.2), (0.004, 0.4, 0.7, 0.05), 0.2),
    "sub bass": Patch("sine", (3, 2, 0.2), (0.006, 0.8, 0.8, 0.08), glide=0.05),
    "growl bass": Patch("saw", (30, 9, 0.3), (0.004, 0.5, 0.8, 0.06), 0.9, (2, 14), glide=0.04),
    "pluck bass": Patch("pluck", (24, 3, 0.25), (0.002, 0.7, 0.15, 0.06)),
    "pulse bass": Patch("pulse", (20, 7, 0.18), (0.004, 0.35, 0.7, 0.05), 0.4, sub=0.5),
    "reese bass": Patch("saw", (10, 8, 0.5), (0.01, 0.5, 0.9, 0.08), 0.2, (3, 24), glide=0.04),
    "fm bass": Patch("sine", (6, 3, 0.2), (0.003, 0.4, 0.6, 0.05), index=2.5, ratio=1.0),
    "saw lead": Patch("saw", (24, 14, 0.3), (0.01, 0.4, 0.8, 0.12), 0.3, (2, 9), (5.3, 18), 0.03),
    "square lead": Patch("square", (20, 11, 0.4), (0.01, 0.4, 0.8, 0.1), 0.2, (1, 0), (5.8, 22)),
    "whistle lead": Patch("sine", (3, 2, 0.3), (0.03, 0.4, 0.9, 0.12), 0, (1, 0), (5.0, 30), 0.05,
                          noise=0.05),
    "sync lead": Patch("sync", (36, 12, 0.35), (0.005, 0.5, 0.7, 0.1), 0.6, (2, 7), (6.0, 10)),
    "pulse lead": Patch("pulse", (28, 12, 0.3), (0.008, 0.4, 0.8, 0.1), 0.3, (2, 11), (5.5, 20),
                        0.04),
    "fm lead": Patch("sine", (8, 4, 0.3), (0.01, 0.4, 0.8, 0.1), 0, (1, 0), (5.6, 16), index=3.0,
                     ratio=2.0),
    "wide pad": Patch("saw", (5, 10, 0.9), (0.25, 1.0, 0.9, 0.5), 0.2, (4, 16)),
    "soft pad": Patch("saw", (3, 4, 0.8), (0.35, 1.0, 0.9, 0.6), 0.1, (3, 10)),
    "choir-less pad": Patch("square", (4, 7, 1.2), (0.3, 1.0, 0.9, 0.6), 0.5, (3, 12)),
    "pulse pad": Patch("pulse", (4, 8, 1.0), (0.3, 1.0, 0.9, 0.5), 0.3, (3, 14)),
    "glass pad": Patch("bell", (8, 5, 1.0), (0.2, 1.0, 0.8, 0.7), 0.1, (3, 8)),
    "saw pluck": Patch("saw", (26, 3, 0.12), (0.002, 0.25, 0.0, 0.08), 0.5, (2, 8)),
    "bell pluck": Patch("bell", (20, 6, 0.5), (0.002, 0.9, 0.0, 0.4)),
    "clav pluck": Patch("pulse", (30, 6, 0.15), (0.002, 0.35, 0.1, 0.04), 0.6),
    "square pluck": Patch("square", (24, 3, 0.14), (0.002, 0.3, 0.0, 0.08), 0.4, (2, 6)),
    "kalimba pluck": Patch("bell", (6, 2, 0.2), (0.002, 0.5, 0.0, 0.2), noise=0.02),
    "tine keys": Patch("sine", (8, 3, 0.4), (0.003, 1.2, 0.2, 0.12), index=1.6, ratio=1.0),
    "drawbar keys": Patch("organ", (16, 16, 1.0), (0.006, 1.0, 1.0, 0.04), vibrato=(6.4, 9)),
    "reed keys": Patch("reed", (12, 9, 0.4), (0.02, 0.8, 0.8, 0.06), 0.2, (2, 6)),
    "steel string": Patch("pluck", (40, 5, 0.45), (0.001, 1.8, 0.0, 0.12), noise=0.01),
    "muted string": Patch("pluck", (22, 3, 0.12), (0.001, 0.4, 0.0, 0.05), noise=0.02),
    "bright string": Patch("pluck2", (48, 8, 0.5), (0.001, 1.5, 0.0, 0.1), noise=0.01),
}  # fmt: skip

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
        n = min(n, len(out) - first)
        if n < 64:
            continue
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


# ------------------------------------------------------------------------------------- production


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


def _follow(x: np.ndarray, hop: int, attack: float, release: float) -> np.ndarray:
    """Peak envelope per block of ``hop`` samples, with attack and release in seconds."""
    blocks = -(-len(x) // hop)
    level = np.abs(_fit(x, blocks * hop)).reshape(blocks, hop).max(axis=1)
    up, down = (float(np.exp(-hop / RATE / s)) for s in (attack, release))
    out, state = [], 0.0
    for value in level.tolist():
        state = value + (state - value) * (up if value > state else down)
        out.append(state)
    return np.array(out)


def _late(gain: np.ndarray, hop: int, samples: int) -> np.ndarray:
    # A block's gain is reached in the block's middle.
    return upsample(np.concatenate([gain[:1], gain]), hop, samples + hop // 2)[hop // 2 :]


def squeeze(x: np.ndarray, *, threshold: float, ratio: float, release: float = 0.12) -> np.ndarray:
    """Gain ``(samples,)`` of a compressor; ``threshold`` is in dB below the envelope's peak."""
    hop = 128
    envelope = _follow(x, hop, 0.004, release)
    peak = envelope.max()
    if peak <= 0:
        return np.ones(len(x))
    over = np.maximum(20 * np.log10(envelope / peak + 1e-9) + threshold, 0)
    gain = 10 ** (-over * (1 - 1 / ratio) / 20)
    return _late(gain, hop, len(x))


def distort(x: np.ndarray, amount: float) -> np.ndarray:
    """Waveshape a signal: ``amount`` from 0 (clean) to 1 (fuzz); the peak level stays."""
    peak = np.abs(x).max()
    if amount <= 0 or peak <= 0:
        return x
    drive = 1.5 * 30.0 ** min(amount, 1.0)
    # A little asymmetry gives even harmonics, as valves do.
    y = np.tanh(drive * x / peak + 0.15) - np.tanh(0.15)
    return y * (peak / np.abs(y).max())


def room(rng: np.random.Generator, *, seconds: float, tail: float) -> np.ndarray:
    """Impulse response ``(2, n)`` of a room: early reflections, then noise that darkens as it dies.

    ``tail`` is the reverberation time (60 dB) in seconds, ``seconds`` bounds the length.
    """
    n = scipy.fft.next_fast_len(int(RATE * min(seconds, 1.2 * tail + 0.05)), real=True)
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
            if at < n:
                out[channel, at] += float(rng.choice([-1, 1]) * rng.uniform(1, 5))
    return out / np.sqrt(np.sum(out**2, axis=1, keepdims=True))


# ------------------------------------------------------------------------------------------ songs


def _play(song: Song, layer: Layer, samples: int, rng: np.random.Generator) -> np.ndarray:
    sound = layer.sound
    tuning = _tuning(song)
    if sound.kind in ("font", "choir"):
        return play_font(layer.notes, sound.program, samples=samples, cents=tuning)
    if sound.kind == "kit":
        cents = float(rng.normal(0, 150))
        return play_kit(layer.notes, sound.program, samples=samples, cents=cents, rng=rng)
    if sound.kind == "machine":
        machine = MACHINES[sound.name]
        return play_machine(layer.notes, machine, samples=samples, rng=rng)
    if sound.kind == "patch":
        return play_patch(layer.notes, PATCHES[sound.name], samples=samples, rng=rng)
    if sound.kind == "voice":
        voice = VOICES[song.subset][sound.name]
        return sing(voice, layer.notes, samples=samples, rate=RATE, rng=rng)
    raise ValueError(f"Layer {layer.role!r} has a sound of unknown kind {sound.kind!r}.")


def _tuning(song: Song) -> float:
    return float(np.random.default_rng([song.seed, song.index, 440]).normal(0, 8))


def _bands(layer: Layer, rng: np.random.Generator) -> list[tuple[str, float, float, float]]:
    """A mixing engineer's moves for one layer."""
    tilt = float(rng.normal(0, 2.5))
    bands = [("low", float(rng.uniform(120, 300)), -tilt, 0.6),
             ("high", float(rng.uniform(2500, 7000)), tilt, 0.6)]  # fmt: skip
    for _ in range(int(rng.integers(1, 4))):
        place = float(np.exp(rng.uniform(np.log(150), np.log(6000))))
        bands.append(("peak", place, float(rng.normal(0, 3.5)), float(rng.uniform(0.7, 2.5))))
    if layer.stem == "vocals":
        bands.append(("highpass", float(rng.uniform(80, 150)), 0.0, 0.7))
        bands.append(("high", float(rng.uniform(1000, 3300)), float(rng.uniform(3, 13)), 0.6))
        bands.append(("peak", 7000.0, float(rng.uniform(-5, 0)), 1.5))  # de-esser
        if rng.random() < 0.06:  # telephone
            bands += [("highpass", 450.0, 0.0, 0.8), ("lowpass", 3200.0, 0.0, 0.8)]
    elif layer.stem == "other":
        bands.append(("highpass", float(rng.uniform(50, 220)), 0.0, 0.7))
        if layer.drive > 0.4:  # a guitar cabinet
            bands += [("lowpass", float(rng.uniform(3500, 5500)), 0.0, 0.9),
                      ("highpass", 85.0, 0.0, 0.7), ("peak", 2600.0, 4.0, 1.2)]  # fmt: skip
        if rng.random() < 0.15:
            bands.append(("lowpass", float(rng.uniform(900, 3500)), 0.0, 0.7))
    elif layer.stem == "bass":
        if rng.random() < 0.6:
            place = float(np.exp(rng.uniform(np.log(500), np.log(6000))))
            bands.append(("lowpass", place, 0.0, 0.7))
        bands.append(("peak", float(rng.uniform(700, 2500)), float(rng.uniform(-2, 8)), 0.8))
        bands.append(("low", 90.0, float(rng.uniform(-2, 5)), 0.7))
    elif layer.role == "kick":
        bands.append(("low", 80.0, float(rng.uniform(-1, 6)), 0.7))
    elif layer.role in ("metal", "hand"):
        bands.append(("highpass", float(rng.uniform(150, 500)), 0.0, 0.7))
    return bands


def _loudness(x: np.ndarray) -> float:
    """RMS over the blocks of 0.1 s that are within 30 dB of the loudest."""
    hop = RATE // 10
    blocks = len(x) // hop
    power = (x[: blocks * hop].reshape(blocks, -1) ** 2).mean(axis=1)
    loud = power[power > 1e-3 * power.max()] if len(power) else power
    return float(np.sqrt(loud.mean())) if len(loud) else 0.0


def render(song: Song) -> dict[str, np.ndarray]:
    """Play and mix a song.

    Returns
    -------
    dict
        Stem (``drums``, ``bass``, ``other``, ``vocals``) to ``(samples, 2)`` float array; their sum
        is the mixture, whose peak lies between -6 and -0.5 dBFS.
    """
    samples = int(song.seconds * RATE)
    rng = song.stream("sound")
    length = scipy.fft.next_fast_len(samples + RATE, real=True)
    coarse = np.linspace(0, RATE / 2, 4097)
    fine = np.linspace(0, RATE / 2, length // 2 + 1)
    hall = room(rng, seconds=3.0, tail=float(rng.choice([0.3, 0.7, 1.2, 1.8, 2.6])))
    beat = 60 / song.tempo
    stems = {}
    for stem in STEMS:
        layers = [layer for layer in song.layers if layer.stem == stem]
        if not layers:
            stems[stem] = np.zeros((2, samples))
            continue
        own = room(rng, seconds=1.0, tail=float(rng.uniform(0.15, 0.7)))
        n = max(hall.shape[1], own.shape[1], int(RATE * 2.0))
        response = np.zeros((2, n))
        amount = {"drums": 0.28, "bass": 0.08, "other": 0.35, "vocals": 0.35}[stem]
        amount *= float(np.exp(rng.normal(0.0, 0.7)))
        share = float(rng.random())
        response[:, : hall.shape[1]] += amount * share * hall
        response[:, : own.shape[1]] += amount * (1 - share) * own
        if stem in ("other", "vocals") and rng.random() < 0.4:
            delay = beat * float(rng.choice([0.25, 0.5, 0.75, 1.0]))
            if rng.random() < 0.35:
                delay = float(rng.uniform(0.07, 0.14))  # slap
            gain = float(rng.uniform(0.12, 0.35))
            for k in range(1, 5):
                at = int(k * delay * RATE)
                if at < n:
                    response[k % 2, at] += 1.2 * gain**k
                    response[1 - k % 2, at] += 0.6 * gain**k
        wet = [scipy.fft.rfft(r.astype(np.float32), length) for r in response]
        total = [0.0, 0.0]
        for layer in layers:
            audio = _layer(song, layer, samples, rng)
            level = _loudness(audio)
            if level <= 0:
                continue
            gain = 10 ** (layer.level / 20)
            if stem != "drums":
                gain *= 0.1 / level
            spectrum = scipy.fft.rfft((gain * audio).astype(np.float32), length)
            curve = equaliser(_bands(layer, rng), coarse)
            spectrum *= np.interp(fine, coarse, curve).astype(np.complex64)
            send = float(np.exp(rng.normal(0, 0.4)))
            if layer.role == "kick":
                send *= 0.3
            angle = np.pi / 4 * (1 + np.clip(layer.pan, -1, 1))
            for channel, weight in enumerate((np.cos(angle), np.sin(angle))):
                total[channel] = total[channel] + spectrum * (
                    np.float32(weight) + np.float32(0.7 * send) * wet[channel]
                )
        both = [scipy.fft.irfft(x, length)[:samples] for x in total]
        stems[stem] = np.stack(both).astype(float)
        if rng.random() < 0.5:  # the stem's bus: it also brings up the room
            middle = stems[stem][0] + stems[stem][1]
            gain = squeeze(
                middle,
                threshold=float(rng.uniform(4, 20)),
                ratio=float(rng.uniform(1.5, 5)),
                release=float(rng.uniform(0.06, 0.3)),
            )
            stems[stem] *= gain
    return {stem: audio.T for stem, audio in _balance(song, stems, rng).items()}


def _layer(song: Song, layer: Layer, samples: int, rng: np.random.Generator) -> np.ndarray:
    audio = _play(song, layer, samples, rng)
    if layer.drive:
        audio = distort(audio, layer.drive if layer.stem == "other" else 0.6 * layer.drive)
    if layer.stem == "vocals":
        drive = VOICES[song.subset][layer.sound.name].drive if layer.sound.kind == "voice" else 0
        if drive and rng.random() < 0.7:
            audio = distort(audio, 0.5 * drive)
        audio *= squeeze(
            audio, threshold=float(rng.uniform(10, 24)), ratio=float(rng.uniform(2, 6))
        )
    elif rng.random() < 0.45:
        release = float(rng.uniform(0.05, 0.25))
        audio *= squeeze(
            audio,
            threshold=float(rng.uniform(6, 20)),
            ratio=float(rng.uniform(1.5, 5)),
            release=release,
        )
    if layer.stem == "other" and rng.random() < 0.12:
        t = np.arange(samples) / RATE
        speed = song.tempo / 60 * float(rng.choice([1, 2, 4])) if rng.random() < 0.5 else 5.5
        depth = float(rng.uniform(0.2, 0.6))
        audio *= 1 - depth * (0.5 + 0.5 * np.sin(2 * np.pi * speed * t))
    return audio


def _pump(song: Song, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Gain that ducks under every kick and swells back, as in dance music."""
    depth, back = float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.1, 0.35))
    hop = 64
    gain = np.ones(samples // hop + 2)
    dip = 1 - depth * np.exp(-np.arange(int(3 * back * RATE / hop)) * hop / (back * RATE))
    for layer in song.layers:
        if layer.stem == "drums" and layer.role == "kick":
            for note in layer.notes:
                first = int(note.start * RATE / hop)
                part = gain[first : first + len(dip)]
                np.minimum(part, dip[: len(part)], out=part)
    return upsample(gain, hop, samples)


def _balance(song: Song, stems: dict[str, np.ndarray], rng) -> dict[str, np.ndarray]:
    """Set the levels of stems ``(2, samples)``, limit their sum and scale it to its peak."""
    for stem in ("drums", "bass", "other"):
        level = _loudness(stems[stem][0] + stems[stem][1])
        if level > 0:
            stems[stem] *= 10 ** (song.levels[stem] / 20) / level
    if rng.random() < STYLES[song.style].duck:
        dip = _pump(song, stems["drums"].shape[1], rng)
        stems["bass"] *= dip
        stems["other"] *= dip
    rest = stems["drums"] + stems["bass"]
    rest += stems["other"]
    level = _loudness(stems["vocals"][0] + stems["vocals"][1])
    if level > 0:
        target = _loudness(rest[0] + rest[1]) or 1.0
        stems["vocals"] *= 10 ** (song.levels["vocals"] / 20) * target / level
    samples = rest.shape[1]
    rest += stems["vocals"]
    np.abs(rest, out=rest)
    mixture = np.maximum(rest[0], rest[1])
    # A bus limiter: one gain for all stems, so that they still add up to the mixture.
    hop = 64
    depth = float(rng.uniform(0, 9))
    envelope = _follow(mixture, hop, 0.001, float(rng.uniform(0.05, 0.2)))
    ceiling = (mixture.max() or 1.0) * 10 ** (-depth / 20)
    gain = np.minimum(1.0, ceiling / np.maximum(envelope, 1e-9))
    gain = np.minimum(gain, np.concatenate([gain[1:], gain[-1:]]))
    curve = _late(gain, hop, samples)
    fade = min(int(0.02 * RATE), samples)
    if rng.random() < 0.3:
        fade = min(int(float(rng.uniform(1, 3)) * RATE), samples // 3)
    curve[-fade:] *= np.linspace(1, 0, fade)
    curve[:220] *= np.linspace(0, 1, 220)
    peak = (mixture * curve).max() or 1.0
    scale = 10 ** (-float(rng.uniform(0.6, 5.9)) / 20) / peak
    # Where stems cancel in the sum, one of them may be the louder; it must not clip either.
    loudest = max(float(np.abs(x * curve).max()) for y in stems.values() for x in y)
    curve *= min(scale, 0.97 / max(loudest, 1e-9))
    for audio in stems.values():
        audio *= curve  # in place: fresh memory costs more than the product
    return stems
