"""How long the control panel takes to answer a slider, by part.

Measured in this process, without a browser: from a slider's new value to the bytes of the new
sounds and the new picture.
"""

from __future__ import annotations

import asyncio

import keras
import numpy as np
import pandas as pd

from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.evaluate import real_excerpt
from cunet_lib.explore.panel import Explorer

ANSWER, FOLLOWING = "the answer", "curves, which follow"

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
        Columns part, median_ms, max_ms: the parts of the answer, their sum, and the work that
        follows it in the kernel's idle time once a slider rests.
    """
    excerpt = real_excerpt(settings.signal.sample_rate)
    repeats = -(-round(seconds * settings.signal.sample_rate) // excerpt.shape[1])
    songs = {"excerpt": lambda: np.tile(excerpt, repeats)}
    answers, followed = [], []

    async def move() -> None:
        # Within a running loop, as in a kernel, so that the curves do not hold up the answer.
        panel = Explorer(network, settings, songs, seconds=seconds)
        levels = np.random.default_rng(0).permutation(moves + STEPS) / (moves + STEPS)
        for number, level in enumerate(levels):
            slider = panel.sliders[INSTRUMENTS[number // STEPS % len(INSTRUMENTS)]]
            slider.value = float(level)
            answers.append(panel.watch.parts)
            if number % STEPS == STEPS - 1:
                rests = {name: slider.value for name, slider in panel.sliders.items()}
                followed.append(panel.set(**rests).watch.parts["curves"])

    asyncio.run(move())
    # The first slider's moves warm up.
    parts = pd.DataFrame(answers[STEPS:])
    parts[ANSWER] = parts.sum(axis=1)
    columns = [*parts.items(), (FOLLOWING, pd.Series(followed[1:]))]
    return pd.DataFrame(
        [(part, 1000 * times.median(), 1000 * times.max()) for part, times in columns],
        columns=["part", "median_ms", "max_ms"],
    )
