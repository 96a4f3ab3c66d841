"""The General MIDI SoundFont that ships inside ``pretty_midi``, played by ``midirenderer``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import midirenderer
import mido
import numpy as np
import soundfile
import soxr

from rendered_corpus.signals import RATE, fit, place_strokes
from rendered_corpus.song import Note


@lru_cache(maxsize=1)
def _font() -> bytes:
    # Its place without importing it.
    return Path(find_spec("pretty_midi").origin).with_name("TimGM6mb.sf2").read_bytes()


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
        events.append((ticks, order, mido.Message(kind, channel=channel, **fields)))

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
    for ticks, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=ticks - last))
        last = ticks
    midi = mido.MidiFile(ticks_per_beat=2000)
    midi.tracks.append(track)
    buffer = io.BytesIO()
    midi.save(file=buffer)
    wave = midirenderer.render_wave_from(_font(), buffer.getvalue())
    audio, rate = soundfile.read(io.BytesIO(wave), dtype="float32", always_2d=True)
    audio = soxr.resample(audio.mean(axis=1), rate * speed, RATE, quality="HQ")
    return fit(audio.astype(float), samples)


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

    return place_strokes(notes, stroke, samples)
