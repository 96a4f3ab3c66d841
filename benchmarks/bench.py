"""What the study costs on this machine, every figure beside its reference: ``make bench``.

Machines differ and are noisy. So every figure is a ratio within one run: the two sides take turns
in one process (:mod:`benchmarks.timing`); the ratio is the median over turns with its quartiles.
Each workload has a process of its own (:mod:`benchmarks.workloads`), and its memory is the peak of
that process. What was found goes to ``results/bench``: ``bench.json`` with all numbers,
``bench.md``, a table. A part that is measured again replaces its old figures and leaves the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.rows import (
    FOLDER,
    Row,
    bytes_,
    compared,
    keep,
    machine,
    markdown,
    middle,
    milliseconds,
    read_record,
)
from benchmarks.timing import Spread, ratio
from cunet_lib.core.hardware import cores
from cunet_lib.core.settings import ROOT, ConfigError


class BenchFailed(RuntimeError):
    """A workload failed; the message says which and why."""


@dataclass(frozen=True)
class Options:
    """How much time the bench may take, and what it may use.

    Attributes
    ----------
    quick
        A tenth of the time; figures are rough.
    torch
        An interpreter that has PyTorch, to compare with; None if there is none.
    """

    quick: bool = False
    torch: str | None = None

    def either(self, whole, quick):
        """The first, or the second in a quick run."""
        return quick if self.quick else whole


LONGEST = 1800
"""Seconds after which a workload is given up."""


def run_workload(name: str, **arguments: Any) -> dict:
    """Run one of :data:`benchmarks.workloads.WORKLOADS` in a process of its own.

    Raises
    ------
    BenchFailed
        If it fails.
    """
    with tempfile.TemporaryDirectory(prefix="cunet-bench-") as folder:
        result = Path(folder) / "found.json"
        environment = {
            **os.environ,
            "CUNET_DATA": f"{folder}/data",
            "CUNET_RESULTS": f"{folder}/results",
        }
        command = [sys.executable, "-m", "benchmarks.workloads", name, json.dumps(arguments)]
        done = _process([*command, str(result)], environment, f"Workload {name}")
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            last = reason[-1] if reason else "it was killed; perhaps memory ran out"
            raise BenchFailed(f"Workload {name} failed: {last}")
        return json.loads(result.read_text(encoding="utf-8"))


def _process(
    command: list[str], environment: dict[str, str], name: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    try:
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired as error:
        raise BenchFailed(f"{name} did not end in {LONGEST // 60} minutes.") from error


# ------------------------------------------------------------------------------------------- parts


def batches(options: Options) -> tuple[list[Row], dict]:
    """Pipelines of training batches."""
    rates = run_workload("batches", seconds=options.either(40.0, 6.0), turns=options.either(4, 1))
    # In a process of their own: what other pipelines leave of the memory slows training down.
    found = run_workload("shares", steps=options.either(8, 4), turns=options.either(12, 1))
    released = f"{middle(rates['released']):.0f} patches/s, released kind"
    rows = [
        compared(what, f"{middle(rates[name]):.0f} patches/s", released, spread, wanted)
        for what, name, spread, wanted in (
            ("waveforms", "waveforms", ratio(rates["waveforms"], rates["released"]), ">= 20"),
            (
                "with the STFT of mixture and target",
                "spectrograms",
                ratio(rates["spectrograms"], rates["released"]),
                ">= 8",
            ),
        )
    ]
    share, fed = found["share"], found["fed"]
    rows.append(
        compared(
            "STFT's share of a training step",
            milliseconds(share["stft"]),
            f"{milliseconds(share['step'])}, paper-size step",
            ratio(share["stft"], share["step"]),
            "<= 0.05",
        )
    )
    rows.append(
        compared(
            "step with the pipeline",
            milliseconds(fed["pipeline"]),
            f"{milliseconds(fed['cached'])}, one cached batch",
            ratio(fed["pipeline"], fed["cached"]),
            "<= 1.03",
        )
    )
    steps = options.either(120, 40)
    small, large = (
        run_workload("memory_of_batches", copies=copies, steps=steps) for copies in (1, 10)
    )
    rows.append(
        Row(
            "memory with a store ten times larger",
            f"{bytes_(large['own'])} (and {bytes_(large['mapped'])} of mapped files)",
            f"{bytes_(small['own'])} (and {bytes_(small['mapped'])}), "
            f"store of {bytes_(small['store'])}",
            large["own"] / small["own"],
            wanted="<= 1.1",
        )
    )
    return rows, {"rates": rates, **found, "memory": {"1": small, "10": large}}


def training(options: Options) -> tuple[list[Row], dict]:
    """The training step of the paper's size."""
    found = run_workload("training", seconds=options.either(90.0, 24.0), torch=options.torch)
    rows = []
    many, fewer = found["patches"], found["fewer"]
    for precision, taken in found["precisions"].items():
        steps = {"step": f"{many}, the paper's", "fewer": f"{fewer}"}
        for ours, kind in itertools.product(steps, dict.fromkeys((precision, "float32"))):
            if ours not in taken:
                continue
            patches = many if ours == "step" else fewer
            done = [found["flops"] * patches / seconds for seconds in taken[ours]]
            limit = [found["operations"] / seconds for seconds in taken[f"{kind} product"]]
            rows.append(
                compared(
                    f"paper-size step, {precision}, batches of {steps[ours]}",
                    f"{middle(done) / 1e9:.0f} GFLOP/s "
                    f"({patches / middle(taken[ours]):.1f} patches/s)",
                    f"{middle(limit) / 1e9:.0f} GFLOP/s, matrix product in {kind}",
                    ratio(done, limit),
                    ">= 0.9" if kind == "float32" else "",
                )
            )
        if "torch" in taken:
            rows.append(
                compared(
                    f"its speed beside PyTorch {found['torch']}, {precision}",
                    f"{milliseconds(taken['network'])} without the STFT",
                    f"{milliseconds(taken['torch'])}, PyTorch",
                    ratio(taken["torch"], taken["network"]),
                    ">= 1",
                )
            )
    return rows, found


def preprocessing(options: Options) -> tuple[list[Row], dict]:
    """Decoding and resampling."""
    # As many and as long as in the demo: starting processes is part of it.
    size = {"tracks": options.either(62, 8), "seconds": options.either(30.0, 15.0)}
    found = run_workload("preprocessing", turns=options.either(3, 2), **size)
    ours, other = (found["taken"][name] for name in ("ours", "librosa"))
    rows = [
        compared(
            "store of all tracks",
            f"{found['music'] / middle(ours):.0f} times real time",
            f"{found['music'] / middle(other):.0f} times, librosa.load in one process",
            ratio(other, ours),
            f">= {found['workers']}",
        ),
        Row("peak memory of a worker", bytes_(found["worker_peak"])),
    ]
    return rows, found


def evaluation(options: Options) -> tuple[list[Row], dict]:
    """Scoring."""
    workers = cores()
    found = run_workload(
        "evaluation",
        # Songs of the demo's length, on two cores as many as MUSDB18 has to test with: starting
        # processes is part of it.
        tracks=options.either(25, 1) * max(2, workers),
        seconds=options.either(30.0, 8.0),
        turns=options.either(3, 2),
    )
    taken = found["taken"]
    wanted = f">= {0.9 * workers:g}" if workers > 1 else ""
    rows = [
        compared(
            f"tracks on {found['workers']} processes, a core each",
            f"{found['music'] / middle(taken['all']):.0f} times real time",
            f"{found['music'] / middle(taken['core']):.0f} times, one process on one core",
            ratio(taken["core"], taken["all"]),
            wanted,
        ),
        compared(
            "the same beside one process whose BLAS has all cores",
            f"{found['music'] / middle(taken['all']):.0f} times real time",
            f"{found['music'] / middle(taken['one']):.0f} times, one process",
            ratio(taken["one"], taken["all"]),
            wanted,
        ),
        Row("threads of NumPy and BLAS in a worker", str(found["threads"])),
        Row("peak memory of a worker, all protocols", bytes_(found["worker_peak"])),
    ]
    return rows, found


def separation(options: Options) -> tuple[list[Row], dict]:
    """Songs, 44.1 kHz stereo, four instruments, paper-size model."""
    short = run_workload(
        "separation", seconds=options.either(240.0, 30.0), turns=options.either(3, 1), masks=True
    )
    long = run_workload("separation", seconds=options.either(3600.0, 120.0), turns=1, masks=False)
    rows = []
    for found in (short, long):
        minutes = f"{found['music'] / 60:g} minutes"
        speed = [found["music"] / seconds for seconds in found["taken"]["song"]]
        rows.append(
            compared(
                f"song of {minutes}, {found['precision']}",
                f"{middle(speed):.0f} times real time",
                "real time",
                Spread.of(speed),
                ">= 60",
            )
        )
    taken = short["taken"]
    rows.append(
        compared(
            f"its time over that of the network alone (patches overlap by {short['overlap']:.0%})",
            f"{middle(taken['song']):.1f} s",
            f"{middle(taken['network']):.1f} s, masks alone",
            ratio(taken["song"], taken["network"]),
        )
    )
    rows.append(
        Row(
            f"peak memory, {long['music'] / 60:g} minutes",
            bytes_(long["peak"]),
            f"{bytes_(short['peak'])}, {short['music'] / 60:g} minutes",
            long["peak"] / short["peak"],
            wanted="<= 1.1",
        )
    )
    return rows, {"short": short, "long": long}


def panel(options: Options) -> tuple[list[Row], dict]:
    """The control panel's answers to a slider, 10 seconds of audio."""
    found = run_workload("panel", moves=options.either(48, 12))
    row = Row(
        "slider to sound and picture, 10 s of audio",
        f"{found['median_ms']:.0f} ms",
        f"500 ms; at most {found['max_ms']:.0f} ms",
        found["median_ms"] / 500,
        wanted="<= 1",
    )
    return [row], found


STAGES = ("preprocess", "train", "separate", "score")


def growth(options: Options) -> tuple[list[Row], dict]:
    """Time and memory of the stages with more tracks."""
    factors = (1, 2, 4, 8)
    # Enough for the smallest to take seconds: what begins once would hide in its time.
    size = {"tracks": options.either(6, 2), "seconds": options.either(16.0, 6.0)}
    found = {str(n): run_workload("growth", factor=n, **size) for n in factors}
    rows = []
    first, last = (found[str(n)]["stages"] for n in (factors[0], factors[-1]))
    for stage in STAGES:
        rows.append(
            Row(
                f"{stage}: time of {factors[-1]} times the tracks",
                f"{last[stage]['seconds']:.1f} s",
                f"{first[stage]['seconds']:.1f} s",
                last[stage]["seconds"] / first[stage]["seconds"],
                wanted=f"<= {1.1 * factors[-1]:g}",
            )
        )
        most, least = (
            (bytes_(run[stage]["peak"]), bytes_(run[stage]["mapped"])) for run in (last, first)
        )
        rows.append(
            Row(
                f"{stage}: peak memory of {factors[-1]} times the tracks",
                "{} (and {} of mapped files)".format(*most),
                "{} (and {})".format(*least),
                last[stage]["peak"] / first[stage]["peak"],
                wanted="<= 1.1",
            )
        )
        if first[stage]["worker_peak"]:
            rows.append(
                Row(
                    f"{stage}: peak memory of a worker",
                    bytes_(last[stage]["worker_peak"]),
                    bytes_(first[stage]["worker_peak"]),
                    last[stage]["worker_peak"] / first[stage]["worker_peak"],
                    wanted="<= 1.1",
                )
            )
    return rows, {"size": size, "factors": found}


def start_up(options: Options) -> tuple[list[Row], dict]:
    """What starting costs."""
    taken = {name: [] for name in START_UP}
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for _ in range(options.either(2, 1)):
        for name, code in START_UP.items():
            start = time.perf_counter()
            done = _process([sys.executable, "-c", code], environment, f"Starting {name}")
            if done.returncode:
                raise BenchFailed(f"Starting {name} failed; `make env` mends the environment.")
            taken[name].append(time.perf_counter() - start)
    bare = next(iter(taken.values()))
    rows = [
        compared(
            name,
            f"{middle(seconds):.2f} s",
            f"{middle(bare):.2f} s, TensorFlow and Keras as they come",
            ratio(seconds, bare),
        )
        for name, seconds in taken.items()
    ]
    return rows, taken


START_UP = {
    "TensorFlow and Keras, as they come": "import keras",
    "TensorFlow and Keras, after cunet_lib": "import cunet_lib, keras",
    "cunet separate": "import cunet_lib.separation.songs, cunet_lib.models.unet",
    "a Jupyter kernel": (
        "from jupyter_client.manager import start_new_kernel\n"
        "manager, client = start_new_kernel(kernel_name='cunet')\n"
        "client.stop_channels()\n"
        "manager.shutdown_kernel(now=True)"
    ),
}


PARTS: dict[str, Callable[[Options], tuple[list[Row], dict]]] = {
    part.__name__: part
    for part in (
        *(batches, training, preprocessing, evaluation),
        *(separation, panel, growth, start_up),
    )
}


# ------------------------------------------------------------------------------------------ report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep it in ``results/bench``."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help=f"of: {', '.join(PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="rough figures, soon")
    parser.add_argument(
        "--torch",
        default=os.environ.get("CUNET_TORCH"),
        metavar="PYTHON",
        help="an interpreter that has PyTorch, to compare with (default: CUNET_TORCH)",
    )
    parser.add_argument("--out", type=Path, help="another folder than results/bench")
    given = parser.parse_args(arguments)
    options = Options(given.quick, given.torch)
    folder = given.out or FOLDER
    try:
        record = read_record(folder) or {"parts": {}}
        record["machine"] = machine()
        for name in given.only or PARTS:
            print(f"bench | {name}", flush=True)
            start = time.perf_counter()
            rows, found = PARTS[name](options)
            record["parts"][name] = {
                "quick": options.quick,
                "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - start, 1),
                "rows": [asdict(row) for row in rows],
                "found": found,
            }
            # Part by part: what was measured stays, whatever happens to the next.
            keep(record, tuple(PARTS), folder)
    except (ConfigError, BenchFailed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(markdown(record, tuple(PARTS)))
    return 0


if __name__ == "__main__":
    # Ends by an exception, so that the workload that is running ends too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
