"""Throughput of this machine, by part of the study: ``make bench``.

Every figure is a rate of patches, and beside it stands its ratio to the rate of the training step
in the same run. Machines differ and are noisy; ratios within one run say more than seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd

from cunet_lib import models, training
from cunet_lib.conditions import all_one_hot
from cunet_lib.config import ROOT, Profile, load_profile
from cunet_lib.parallel import cores
from cunet_lib.spectral import graph_magnitude


def main() -> None:
    """Print the parameter counts and the rates; keep them in ``results/bench/bench.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="demo", help="settings (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="about this long per figure")
    options = parser.parse_args()
    settings = load_profile(options.profile)
    print(models.parameter_table().to_string(index=False))
    table = throughput(settings, seconds=options.seconds)
    print(table.to_string(index=False, float_format="{:.2f}".format))
    path = ROOT / "results" / "bench" / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "profile": settings.name,
        "precision": training.precision_of(settings),
        "threads": cores(),
        "rates": table.to_dict("records"),
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def throughput(settings: Profile, *, seconds: float) -> pd.DataFrame:
    """Rates of STFT, training step and inference of the smallest C-U-Net of a profile.

    Returns
    -------
    pandas.DataFrame
        Columns part, patches_per_second, ratio (to the training step).
    """
    size = settings.train.batch_size
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(size, settings.patch_samples)).astype(np.float32)
    condition = np.resize(all_one_hot(), (size, 4))
    network = training.new_network(settings, "cnn_complex", seed=0)
    trainer = training.WaveformModel(network, settings.signal)
    trainer.compile(
        optimizer=keras.optimizers.Adam(settings.train.learning_rate),
        loss=training.magnitude_error(settings.signal),
        jit_compile=False,
    )
    patches = np.asarray(graph_magnitude(audio, settings.signal))
    parts = {
        "training step": lambda: trainer.train_on_batch((audio, condition), 0.5 * audio),
        "magnitude STFT": lambda: graph_magnitude(audio, settings.signal),
        "inference": lambda: network.predict_on_batch([patches, condition]),
    }
    rates = {name: size * _rate(call, seconds) for name, call in parts.items()}
    return pd.DataFrame(
        [(name, rate, rate / rates["training step"]) for name, rate in rates.items()],
        columns=["part", "patches_per_second", "ratio"],
    )


def _rate(call: Callable[[], object], seconds: float) -> float:
    """Calls a second, after one call that traces and warms up."""
    call()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
