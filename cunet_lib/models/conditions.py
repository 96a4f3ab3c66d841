"""Condition vectors: which instruments a conditioned model is asked for.

A condition ``z`` has one value per instrument, in the order of ``INSTRUMENTS`` (bass, drums, other,
vocals; paper, section 3). 1 asks for the instrument, 0 leaves it out, values between ask for it at
that level.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from cunet_lib.core.settings import ConfigError
from cunet_lib.core.systems import INSTRUMENTS

PAIRS = tuple(combinations(INSTRUMENTS, 2))
"""The six pairs of instruments, in instrument order."""

ACCOMPANIMENT = "accompaniment"
"""What people call all instruments but one."""


def one_hot(instrument: str) -> np.ndarray:
    """Condition ``(instruments,)`` float32 for one instrument; errors as :func:`vector`."""
    return vector({instrument: 1.0})


def vector(levels: Mapping[str, float]) -> np.ndarray:
    """Condition from levels by instrument; instruments that are not named get 0.

    >>> vector({"drums": 1.0, "vocals": 0.5})
    array([0. , 1. , 0. , 0.5], dtype=float32)

    Raises
    ------
    ConfigError
        If an instrument is unknown or a level is not within 0 and 1.
    """
    z = np.zeros(len(INSTRUMENTS), np.float32)
    for instrument, level in levels.items():
        if instrument not in INSTRUMENTS:
            raise ConfigError(
                f"Unknown instrument {instrument!r}; there are: {', '.join(INSTRUMENTS)}."
            )
        if not 0.0 <= level <= 1.0:
            raise ConfigError(f"Level {level!r} of {instrument} must be within 0 and 1.")
        z[INSTRUMENTS.index(instrument)] = level
    return z


def all_one_hot() -> np.ndarray:
    """The four one-hot conditions, ``(instruments, instruments)`` float32, in instrument order."""
    return np.eye(len(INSTRUMENTS), dtype=np.float32)


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Random condition of a kind, as training asks for it (paper, section 4.1; released code).

    Parameters
    ----------
    kind
        ``one_hot``: one instrument; ``zero``: silence; ``all``: every instrument; ``pairs``: two
        instruments; ``continuous``: every instrument at a level of its own, uniform in [0, 1).
    rng
        Source of the choice.

    Returns
    -------
    numpy.ndarray
        ``(instruments,)`` float32.
    """
    size = len(INSTRUMENTS)
    kinds = {
        "one_hot": lambda: all_one_hot()[int(rng.integers(size))],
        "zero": lambda: np.zeros(size),
        "all": lambda: np.ones(size),
        "pairs": lambda: vector(dict.fromkeys(PAIRS[int(rng.integers(len(PAIRS)))], 1.0)),
        "continuous": lambda: rng.random(size),
    }
    return kinds[kind]().astype(np.float32)


def parse(text: str, *, target: str = "vocals") -> dict[str, float]:
    """Levels by instrument, read from what a person types; the accompaniment is that of a target.

    >>> parse("vocals=0.5+drums")
    {'vocals': 0.5, 'drums': 1.0}
    >>> parse("accompaniment")
    {'bass': 1.0, 'drums': 1.0, 'other': 1.0}

    Raises
    ------
    ConfigError
        If an instrument is unknown or named twice, or a level is not within 0 and 1.
    """
    levels = {}
    for part in text.split("+"):
        name, equals, level = part.strip().partition("=")
        others = [each for each in INSTRUMENTS if each != target]
        for instrument in others if name == ACCOMPANIMENT else [name]:
            if instrument in levels and instrument in INSTRUMENTS:
                raise ConfigError(f"{text!r} names {instrument} twice.")
            try:
                levels[instrument] = float(level) if equals else 1.0
            except ValueError as error:
                raise ConfigError(
                    f"Level {level!r} of {name} must be a number, as in vocals=0.5."
                ) from error
    vector(levels)
    return levels


def label(z: np.ndarray) -> str:
    """Name of a condition, such as ``"drums + 0.5 vocals"`` or ``"silence"``."""
    parts = [
        name if level == 1 else f"{level:.3g} {name}"
        for name, level in zip(INSTRUMENTS, np.asarray(z, float), strict=True)
        if level
    ]
    return " + ".join(parts) or "silence"
