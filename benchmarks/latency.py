"""How long the control panel takes to answer a slider.

Measured in this process, without a browser: from a slider's new value to the bytes of the new
sounds and the new picture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd

from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.evaluate import real_excerpt
from cunet_lib.explore.panel import Explorer

ANSWER, COMPLETE = "the answer", "the answer, curves complete"

STEPS = 3
"""Moves of one slider before the next is taken."""


def measure(
    network: keras.Model, settings: Profile, *, seconds: float = 10.0, moves: int = 48
) -> pd.DataFrame:
    """Move sliders as a hand would, a few steps of each in turn, and time the answers.

    Parameters
    ----------
    network
        A C-U-Net.
    settings
        Profile that it was trained with.
    seconds
        Length of the music: the real excerpt, repeated.
    moves
        How many are timed.

    Returns
    -------
    pandas.DataFrame
        Columns part, median_ms, max_ms: the answer, which the curves follow while a slider rests;
        and an answer that waits for the curves, as in a notebook that papermill runs.
    """
    excerpt = real_excerpt(settings.signal.sample_rate)
    repeats = -(-round(seconds * settings.signal.sample_rate) // excerpt.shape[1])
    songs = {"excerpt": lambda: np.tile(excerpt, repeats)}
    taken = {ANSWER: [], COMPLETE: []}

    def timed(part: str, act: Callable, *arguments) -> None:
        began = time.perf_counter()
        act(*arguments)
        taken[part].append(1000 * (time.perf_counter() - began))

    async def move() -> None:
        # Within a running loop, as in a kernel, so that the curves do not hold up the answer.
        panel = Explorer(network, settings, songs, seconds=seconds)
        levels = np.random.default_rng(0).permutation(moves + STEPS) / (moves + STEPS)
        for number, level in enumerate(levels):
            name = INSTRUMENTS[number // STEPS % len(INSTRUMENTS)]
            timed(ANSWER, setattr, panel.sliders[name], "value", float(level))
            if number % STEPS == STEPS - 1:
                timed(COMPLETE, lambda: panel.set(vocals=1.0))

    asyncio.run(move())
    rows = []
    for part, times in taken.items():
        # The first slider's moves warm up.
        steady = times[STEPS:] if part == ANSWER else times[1:]
        rows.append((part, np.median(steady), np.max(steady)))
    return pd.DataFrame(rows, columns=["part", "median_ms", "max_ms"])
