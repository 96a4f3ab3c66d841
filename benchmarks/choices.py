"""How well a C-U-Net separates under settings that one may choose: the songs that may choose them.

``python -m benchmarks.choices separate.pitches=null separate.overlap=0.75`` separates the songs for
validation of a profile under each set of overrides; it prints the SDR of whole songs, mean over
songs. ``--folder`` takes other songs: a folder of stems each. Test songs choose nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, Profile, load_profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.metrics import whole_sdr
from cunet_lib.models.conditions import all_one_hot
from cunet_lib.models.weights import load
from cunet_lib.preprocess.store import open_store
from cunet_lib.preprocess.tracks import Originals, scan
from cunet_lib.separation.separator import Separator


def songs(settings: Profile, folder: Path | None) -> list[np.ndarray]:
    """Mono audio ``(5, samples)`` of each song, the mixture first, at the study rate.

    Raises
    ------
    ConfigError
        If the store or a song cannot be read, or the folder holds none.
    """
    if folder is None:
        store = open_store(settings)
        return [np.asarray(store.audio(entry)) for entry in store.split("valid")]
    if not (sources := scan(folder, "test", {})):
        raise ConfigError(f"{folder} holds no folders of stems; name one that does.")
    originals = Originals(settings, settings.signal.sample_rate)
    return [originals.audio(source).mean(axis=-1) for source in sources]


def scores(separator: Separator, audio: list[np.ndarray]) -> pd.DataFrame:
    """SDR of whole songs in dB, ``(songs, instruments)``; NaN where an instrument is silent."""
    rows = [
        whole_sdr(references, separator(mixture, all_one_hot()))
        for mixture, *references in progress(audio, "songs separated", len(audio))
    ]
    return pd.DataFrame(rows, columns=INSTRUMENTS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choices", description=__doc__)
    parser.add_argument("overrides", nargs="*", default=[""], help='"section.key=value ..."')
    parser.add_argument("--profile", default="beyond")
    parser.add_argument("--model", type=Path, help="weights; default: those that the profile ships")
    parser.add_argument("--folder", type=Path, help="songs; default: the validation songs")
    options = parser.parse_args()
    try:
        settings = load_profile(options.profile)
        network = load(options.model or settings.paths.models / f"{settings.shipped}.keras")
        audio, table = songs(settings, options.folder), {}
        for overrides in options.overrides:
            separate = load_profile(options.profile, overrides).separate
            found = scores(Separator(network, settings.signal, separate, at_once=2), audio)
            table[overrides or options.profile] = [found.mean().mean(), *found.mean()]
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    print(f"SDR in dB, mean over {len(audio)} songs:")
    columns = ["all", *INSTRUMENTS]
    print(pd.DataFrame.from_dict(table, "index", columns=columns).to_string(float_format="%.2f"))


if __name__ == "__main__":
    main()
