"""How far rendered songs are from real ones, stem by stem, in numbers that production decides.

``python -m benchmarks.distance FOLDER`` compares the tracks of a folder, each a folder of stems
(``bass.wav``, ``drums.flac``, ...; one may be missing), with training songs of a profile's corpus.
For each stem and measure the table has the median over real and over rendered tracks, and their
difference in quartile ranges of the rendered ones.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import librosa
import numpy as np
import pandas as pd

from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.preprocess.tracks import Originals, scan
from cunet_lib.signal.bands import RATE

OCTAVES = (62.5, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)
"""Lower edges of bands in Hz, but for the last, which ends the band before it."""

BLOCK = 1024
"""Samples of an envelope's block (23 ms)."""


def describe(stem: np.ndarray, mixture: np.ndarray) -> dict[str, float]:
    """Measures of a stem ``(samples, channels)`` in its mixture.

    Returns
    -------
    dict
        Level against the rest of the mixture, crest factor, share of the time that it sounds,
        spread of its level while it does, sides against the middle, octave bands against all (all
        in dB but the share), onsets a second, and share of the level's movement between 2 and 8 Hz.
    """
    mono, rest = stem.mean(axis=1), (mixture - stem).mean(axis=1)
    blocks = mono[: len(mono) // BLOCK * BLOCK].reshape(-1, BLOCK)
    envelope = np.sqrt((blocks**2).mean(axis=1))
    sounds = envelope > 0.01 * envelope.max()
    loud = envelope[sounds]
    spectrum = np.abs(np.fft.rfft(mono)) ** 2
    hertz = np.fft.rfftfreq(len(mono), 1 / RATE)
    movement = np.abs(np.fft.rfft(envelope - envelope.mean())) ** 2
    rates = np.fft.rfftfreq(len(envelope), BLOCK / RATE)
    found = {
        "level": _db((mono**2).sum(), (rest**2).sum()),
        "crest": _db(np.abs(mono).max() ** 2, (loud**2).mean()),
        "sounding": sounds.mean(),
        "spread": np.std(20 * np.log10(loud)),
        "sides": _db(((stem - mono[:, None]) ** 2).mean(), (mono**2).mean()),
        "onsets": len(librosa.onset.onset_detect(y=mono, sr=RATE)) * RATE / len(mono),
        "movement": movement[(rates >= 2) & (rates < 8)].sum() / movement.sum(),
    }
    for low, high in pairwise(OCTAVES):
        band = spectrum[(hertz >= low) & (hertz < high)].sum()
        found[f"from {low:g} Hz"] = _db(band, spectrum.sum())
    return found


def _db(power: float, reference: float) -> float:
    return 10 * float(np.log10((power + 1e-8) / (reference + 1e-8)))


def measures(originals: Originals, sources: list) -> pd.DataFrame:
    """:func:`describe` of every stem that is not silent or shorter than a second."""
    rows = []
    for source in progress(sources, "tracks measured", len(sources)):
        mixture, *stems = originals.audio(source)
        for name, stem in zip(INSTRUMENTS, stems, strict=True):
            if len(stem) > RATE and (stem**2).sum() > 1e-6 * (mixture**2).sum():
                rows += [(name, *item) for item in describe(stem, mixture).items()]
    return pd.DataFrame(rows, columns=["stem", "measure", "value"])


def compare(real: pd.DataFrame, rendered: pd.DataFrame) -> pd.DataFrame:
    """One row per stem and measure: medians, and their difference in rendered quartile ranges."""
    keys = ["stem", "measure"]
    groups = rendered.groupby(keys, sort=False)["value"]
    table = pd.DataFrame(
        {"real": real.groupby(keys)["value"].median(), "rendered": groups.median()}
    )
    spread = groups.quantile(0.75) - groups.quantile(0.25)
    table["distance"] = (table["real"] - table["rendered"]) / spread
    return table.replace(np.inf, np.nan).loc[groups.median().index].dropna()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distance", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", default="beyond")
    parser.add_argument("--tracks", type=int, default=40, help="of the corpus, at most")
    options = parser.parse_args()
    if not (tracks := scan(options.folder, "test", {})):
        raise SystemExit(f"{options.folder} holds no folders of stems; name one that does.")
    try:
        originals = Originals(load_profile(options.profile), RATE)
        songs = originals.split("train")
        rendered = measures(originals, songs[:: -(-len(songs) // max(options.tracks, 1))])
        table = compare(measures(originals, tracks), rendered)
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    print(table.to_string(float_format="{:.2f}".format))
    print(f"\nMean distance, whichever the sign: {table['distance'].abs().mean():.2f}")


if __name__ == "__main__":
    main()
