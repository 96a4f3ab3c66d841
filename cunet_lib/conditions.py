"""Condition vectors: which instruments a conditioned model is asked for.

A condition ``z`` has one value per instrument, in the order of :data:`cunet_lib.config.INSTRUMENTS`
(bass, drums, other, vocals; paper, section 3). 1 asks for the instrument, 0 leaves it out, values
between ask for it at that level.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cunet_lib.config import INSTRUMENTS, ConfigError


def one_hot(instrument: str) -> np.ndarray:
    """Condition that asks for one instrument.

    Returns
    -------
    numpy.ndarray
        ``(instruments,)`` float32.

    Raises
    ------
    ConfigError
        If the instrument is unknown.
    """
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


def label(z: np.ndarray) -> str:
    """Name of a condition, such as ``"drums + 0.5 vocals"`` or ``"silence"``."""
    parts = [
        name if level == 1 else f"{level:.3g} {name}"
        for name, level in zip(INSTRUMENTS, np.asarray(z, float), strict=True)
        if level
    ]
    return " + ".join(parts) or "silence"
