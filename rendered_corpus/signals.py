"""Small tools of all instruments: the sample rate, tables read at a phase, control signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rendered_corpus.song import Note

RATE = 44100
"""Sample rate of the corpus in Hz."""


def fit(x: np.ndarray, samples: int) -> np.ndarray:
    """The signal cut, or padded with zeros, to a number of samples."""
    if len(x) >= samples:
        return x[:samples]
    return np.pad(x, (0, samples - len(x)))


def lookup(tables: np.ndarray, level: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Read a bank of one-period tables ``(levels, samples)`` at a running phase.

    ``level`` is the position between tables, 0 to levels - 1, ``phase`` in periods: ``(n,)`` each,
    as is the result, linearly interpolated in both directions.
    """
    count, size = tables.shape
    flat = np.concatenate([tables, tables[:, :1]], axis=1).ravel()
    place = (phase - np.floor(phase)) * size
    index = place.astype(np.intp)
    np.minimum(index, size - 1, out=index)
    part = place - index
    lower = np.clip(level, 0, count - 1).astype(np.intp)
    np.minimum(lower, count - 2, out=lower)
    mix = np.clip(level - lower, 0.0, 1.0)
    index += lower * (size + 1)
    out = flat[index] * (1 - part) + flat[index + 1] * part
    index += size + 1
    upper = flat[index] * (1 - part) + flat[index + 1] * part
    return out + (upper - out) * mix


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


def place_strokes(
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
