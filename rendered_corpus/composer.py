"""Songs of the rendered corpus as plain data: form, drums, bass, other parts and vocals.

:func:`compose` is a pure function of its arguments: every part of every song draws from its own
stream, spawned from the seed, the subset, the song's index and the part's name, so the songs of a
small corpus are the first songs of a large one. Nothing here makes sound; ``mix`` does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from rendered_corpus.bass import bass
from rendered_corpus.drums import drums
from rendered_corpus.form import Form, plan
from rendered_corpus.other import other
from rendered_corpus.song import SUBSETS, Layer, Note, Song
from rendered_corpus.tables import ARTISTS, TITLES
from rendered_corpus.vocals import vocals


@lru_cache(maxsize=16)
def _name_lists(seed: int, subset: str) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(99,)))
    lists = []
    for first, second in (ARTISTS, TITLES):
        names = [f"{a} {b}" for a in first for b in second]
        order = rng.permutation(len(names))[SUBSETS.index(subset) :: 2]
        lists.append([names[k] for k in order])
    return lists[0], lists[1]


def song_name(seed: int, subset: str, index: int) -> str:
    """Unique ``Artist - Title`` of a song; train and test share no artist and no title."""
    artists, titles = _name_lists(seed, subset)
    turn, place = divmod(index, len(artists))
    number = f" {turn + 1}" if turn else ""
    return f"The {artists[place]} - {titles[index % len(titles)]}{number}"


def compose(seed: int, *, subset: str, index: int, seconds: float) -> Song:
    """Write one song.

    Parameters
    ----------
    seed
        The corpus's seed.
    subset
        ``"train"`` or ``"test"``: chooses the tables of instruments, voices and progressions.
    index
        Number of the song in its subset, from 0.
    seconds
        Nominal length; the song's own is 0.8 to 1.2 times that.
    """
    form = plan(seed, subset, index, seconds)
    layers = [_trim(form, layer) for part in (drums, bass, other, vocals) for layer in part(form)]
    layers = [layer for layer in layers if layer.notes]
    voices = dict.fromkeys(x.sound.name for x in layers if x.sound.kind == "voice")
    mix = form.stream("mix")
    # Loudness while playing, in dB; vocals against the other three. Songs vary, but over many of
    # them no stem has much less energy than another.
    levels = {
        "drums": float(np.clip(mix.normal(1.5, 2.5), -5, 8)),
        "bass": float(np.clip(mix.normal(1.0, 2.5), -6, 7)),
        "other": float(np.clip(mix.normal(0.4, 3.0), -7, 7)),
        "vocals": float(mix.uniform(-8.7, 0.8)),
    }
    return Song(
        name=song_name(seed, subset, index),
        subset=subset,
        index=index,
        seed=seed,
        seconds=form.seconds,
        style=form.style_name,
        meter=form.style.meter,
        tempo=round(form.tempo, 1),
        swing=round(form.grid.swing, 2),
        key=form.key,
        progressions=form.progressions,
        sections=form.sections,
        layers=tuple(layers),
        voices=tuple(voices),
        levels=levels,
    )


def _trim(form: Form, layer: Layer) -> Layer:
    """The layer, its notes ending with the song and where the stem rests."""
    kept: list[Note] = []
    sections = list(form.playing(layer.stem))
    for note in sorted(layer.notes, key=lambda n: (n.start, n.pitch)):
        inside = [s.end for s in sections if s.start - 0.3 <= note.start < s.end]
        if not inside or note.start >= form.seconds - 0.05:
            continue
        start = max(note.start, 0.0)
        stop = min(form.seconds, inside[-1] + 0.15)
        duration = max(min(note.duration, stop - start), 0.03)
        kept.append(replace(note, start=start, duration=duration))
    return replace(layer, notes=tuple(kept))
