"""What deterministic operations cost, and whether training needs them to repeat itself here.

The demo's largest C-U-Net takes some training steps in fresh processes, with and without
``tf.config.experimental.enable_op_determinism``, twice each; speeds and the weights' hashes are
compared. ``make torture`` runs it; ``python -m benchmarks.determinism`` does so alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
PROFILE = "demo"
MODEL = "dense_complex"

PROCESS = """
import hashlib, json, sys, time
sys.path.insert(0, sys.argv[1])
import cunet_lib
import keras, numpy as np, tensorflow as tf
from cunet_lib.train import training
from cunet_lib.core.settings import load_profile
keras.utils.set_random_seed(0)
if sys.argv[2] == "on":
    tf.config.experimental.enable_op_determinism()
settings = load_profile(sys.argv[3])
rng = np.random.default_rng(0)
size = settings.train.batch_size
mixture = rng.normal(size=(size, settings.patch_samples)).astype("float32") * 0.01
z = np.eye(4, dtype="float32")[rng.integers(4, size=size)]
network = training.new_network(settings, sys.argv[4], seed=0)
trainer = training.WaveformModel(network, settings.signal)
trainer.compile(
    optimizer=keras.optimizers.Adam(1e-3),
    loss=training.magnitude_error(settings.signal),
    jit_compile=False,
)
seconds = []
for _ in range(int(sys.argv[5])):
    began = time.perf_counter()
    trainer.train_on_batch((mixture, z), mixture / 2)
    seconds.append(time.perf_counter() - began)
weights = hashlib.sha256(b"".join(w.tobytes() for w in network.get_weights())).hexdigest()
print(json.dumps({"patches_per_second": size / float(np.median(seconds[2:])), "weights": weights}))
"""


def step(mode: str) -> dict:
    """Speed and hash of the weights of one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, ROOT, mode, PROFILE, MODEL, str(STEPS)],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> dict:
    """Patches a second with and without deterministic operations, and whether runs agree."""
    # Turn about, so that a machine that warms up or slows down does so for both.
    runs = {"off": [], "on": []}
    for mode in ("off", "on", "on", "off"):
        runs[mode].append(step(mode))
    speed = {mode: max(run["patches_per_second"] for run in found) for mode, found in runs.items()}
    return {
        "model": f"{MODEL}, profile {PROFILE}",
        "patches_per_second": {mode: round(value, 1) for mode, value in speed.items()},
        "slower_by": round(speed["off"] / speed["on"], 3),
        "repeats": {
            mode: len({run["weights"] for run in found}) == 1 for mode, found in runs.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
