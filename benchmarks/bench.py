"""What the study costs on this machine, every figure beside its reference: ``make bench``.

Machines differ and are noisy. So every figure is a ratio within one run: the two sides take turns
in one process (:mod:`benchmarks.timing`), and the ratio is the median over turns with its quartiles.
Each workload has a process of its own (:mod:`benchmarks.workloads`), and its memory is the peak of
that process. What was found goes to ``results/bench``: ``bench.json`` with all numbers,
``bench.md``, a figure, and the table in the README. A part that is measured again replaces its old
figures and leaves the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread, ratio
from cunet_lib.core.files import write_atomically, write_json
from cunet_lib.core.processes import cores
from cunet_lib.core.settings import ROOT, ConfigError

FOLDER = ROOT / "results" / "bench"
README = ROOT / "README.md"
BEGIN, END = "<!-- bench: make bench writes this table -->", "<!-- bench ends -->"

NOTHING = "Not measured yet; `make bench` does it."

HEADER = ("Part", "What", "Ours", "Reference", "Ratio", "Wanted")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes
    ----------
    what
        What is measured.
    ours, reference
        The two sides, as text with units; the reference is named in it.
    ratio, low, high
        Median and quartiles of the ratio; None where something is only stated.
    wanted
        Such as ``">= 20"`` or ``"<= 1.1"``; empty if nothing is.
    """

    what: str
    ours: str
    reference: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    wanted: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the ratio is as wanted; None if nothing is wanted."""
        if not self.wanted:
            return None
        sign, bound = self.wanted.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def compared(what: str, ours: str, reference: str, spread: Spread, wanted: str = "") -> Row:
    """Row of a ratio with its spread."""
    return Row(what, ours, reference, spread.median, spread.low, spread.high, wanted)


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
    profile
        Whose last run is profiled.
    """

    quick: bool = False
    torch: str | None = None
    profile: str = "demo"

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
    released = f"{_middle(rates['released']):.0f} patches/s, released kind"
    rows = [
        compared(what, f"{_middle(rates[name]):.0f} patches/s", released, spread, wanted)
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
            _milliseconds(share["stft"]),
            f"{_milliseconds(share['step'])}, paper-size step",
            ratio(share["stft"], share["step"]),
            "<= 0.05",
        )
    )
    rows.append(
        compared(
            "step with the pipeline",
            _milliseconds(fed["pipeline"]),
            f"{_milliseconds(fed['cached'])}, one cached batch",
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
            f"{_bytes(large['own'])} (and {_bytes(large['mapped'])} of mapped files)",
            f"{_bytes(small['own'])} (and {_bytes(small['mapped'])}), "
            f"store of {_bytes(small['store'])}",
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
                    f"{_middle(done) / 1e9:.0f} GFLOP/s "
                    f"({patches / _middle(taken[ours]):.1f} patches/s)",
                    f"{_middle(limit) / 1e9:.0f} GFLOP/s, matrix product in {kind}",
                    ratio(done, limit),
                    ">= 0.9" if kind == "float32" else "",
                )
            )
        if "torch" in taken:
            rows.append(
                compared(
                    f"its speed beside PyTorch {found['torch']}, {precision}",
                    f"{_milliseconds(taken['network'])} without the STFT",
                    f"{_milliseconds(taken['torch'])}, PyTorch",
                    ratio(taken["torch"], taken["network"]),
                    ">= 1",
                )
            )
    profile = run_workload("profile", steps=options.either(8, 2))
    done = Row(
        "in a float32 step: operations done, of those counted",
        f"{100 * profile['done']:.0f}%",
        "all, by plain convolutions",
        profile["done"],
    )
    return [*rows, done, *_where_time_goes(profile)], {**found, "profile": profile}


def _where_time_goes(found: dict) -> list[Row]:
    kinds = found["kinds"]
    whole = sum(kinds.values())
    rows = []
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        counted = f" at {found['flops'] / seconds / 1e9:.0f} GFLOP/s as counted"
        rate = counted if kind == "convolutions" else ""
        rows.append(
            Row(
                f"in a float32 step: {kind}",
                f"{1e3 * seconds:.0f} ms{rate}",
                f"{1e3 * whole:.0f} ms, operations one by one",
                seconds / whole,
            )
        )
    return rows


def precision(options: Options) -> tuple[list[Row], dict]:
    """What bfloat16 does to the loss, beside what another seed does."""
    found = run_workload(
        "precision",
        steps=options.either(100, 10),
        seeds=options.either(4, 2),
        tracks=options.either(12, 4),
    )
    full, rounded = found["losses"]["float32"], found["losses"]["mixed_bfloat16"]
    apart = abs(statistics.fmean(rounded) - statistics.fmean(full))
    return [
        Row(
            f"validation loss after {found['steps']} steps, mixed bfloat16",
            _with_spread(rounded),
            f"{_with_spread(full)} over {len(full)} seeds, float32",
            apart / statistics.stdev(full),
            wanted="<= 1",
        )
    ], found


def _with_spread(losses: Sequence[float]) -> str:
    return f"{statistics.fmean(losses):.3e} ± {statistics.stdev(losses):.1e}"


def preprocessing(options: Options) -> tuple[list[Row], dict]:
    """Decoding and resampling."""
    # As many and as long as in the demo: starting processes is part of it.
    size = {"tracks": options.either(62, 8), "seconds": options.either(30.0, 15.0)}
    found = run_workload("preprocessing", turns=options.either(3, 2), **size)
    found["librosa_peak"] = run_workload("librosa_memory", tracks=1, seconds=size["seconds"])[
        "peak"
    ]
    ours, other = (found["taken"][name] for name in ("ours", "librosa"))
    rows = [
        compared(
            "store of all tracks",
            f"{found['music'] / _middle(ours):.0f} times real time",
            f"{found['music'] / _middle(other):.0f} times, librosa.load in one process",
            ratio(other, ours),
            f">= {found['workers']}",
        ),
        Row(
            "peak memory of a worker",
            _bytes(found["worker_peak"]),
            f"{_bytes(found['librosa_peak'])}, librosa.load",
            found["worker_peak"] / found["librosa_peak"],
        ),
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
    mono = run_workload("scoring_memory", rate=8192, channels=1, seconds=240.0)
    stereo = run_workload(
        "scoring_memory", rate=44100, channels=2, seconds=options.either(30.0, 6.0)
    )
    taken = found["taken"]
    wanted = f">= {0.9 * workers:g}" if workers > 1 else ""
    rows = [
        compared(
            f"tracks on {found['workers']} processes, a core each",
            f"{found['music'] / _middle(taken['all']):.0f} times real time",
            f"{found['music'] / _middle(taken['core']):.0f} times, one process on one core",
            ratio(taken["core"], taken["all"]),
            wanted,
        ),
        compared(
            "the same beside one process whose BLAS has all cores",
            f"{found['music'] / _middle(taken['all']):.0f} times real time",
            f"{found['music'] / _middle(taken['one']):.0f} times, one process",
            ratio(taken["one"], taken["all"]),
            wanted,
        ),
        Row("threads of NumPy and BLAS in a worker", str(found["threads"])),
        Row("peak memory of a worker, all protocols", _bytes(found["worker_peak"])),
        Row(
            "BSS Eval v4 alone, 8192 Hz mono, 4 minutes",
            f"{_bytes(mono['peak'])}, {mono['seconds']:.0f} s",
        ),
        Row(
            f"BSS Eval v4 alone, 44.1 kHz stereo, {options.either(30, 6)} seconds",
            f"{_bytes(stereo['peak'])}, {stereo['seconds']:.0f} s",
        ),
    ]
    return rows, {**found, "mono": mono, "stereo": stereo}


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
                f"{_middle(speed):.0f} times real time",
                "real time",
                Spread.of(speed),
                ">= 60",
            )
        )
    taken = short["taken"]
    rows.append(
        compared(
            f"its time over that of the network alone (patches overlap by {short['overlap']:.0%})",
            f"{_middle(taken['song']):.1f} s",
            f"{_middle(taken['network']):.1f} s, masks alone",
            ratio(taken["song"], taken["network"]),
        )
    )
    rows.append(
        Row(
            f"peak memory, {long['music'] / 60:g} minutes",
            _bytes(long["peak"]),
            f"{_bytes(short['peak'])}, {short['music'] / 60:g} minutes",
            long["peak"] / short["peak"],
            wanted="<= 1.1",
        )
    )
    return rows, {"short": short, "long": long}


STAGES = ("preprocess", "train", "separate", "score", "tables")


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
            (_bytes(run[stage]["peak"]), _bytes(run[stage]["mapped"])) for run in (last, first)
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
                    _bytes(last[stage]["worker_peak"]),
                    _bytes(first[stage]["worker_peak"]),
                    last[stage]["worker_peak"] / first[stage]["worker_peak"],
                    wanted="<= 1.1",
                )
            )
    return rows, {"size": size, "factors": found}


def draw_growth(found: dict, folder: Path) -> Path:
    """Draw the part ``growth``: time and memory over the number of tracks."""
    from matplotlib.figure import Figure

    from cunet_lib.report.figures import save_figure, styled

    factors = [int(name) for name in found["factors"]]
    with styled():
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        times, peaks = figure.subplots(1, 2, sharex=True)
        most = {"seconds": 0.0, "peak": 0.0}
        for stage, marker in zip(STAGES, "os^Dv", strict=True):
            each = [found["factors"][str(n)]["stages"][stage] for n in factors]
            relative = [one["seconds"] / each[0]["seconds"] for one in each]
            times.plot(factors, relative, marker=marker, label=stage)
            peaks.plot(factors, [one["peak"] / 1e6 for one in each], marker=marker)
            for key in most:
                most[key] = max(most[key], each[-1][key] / each[0][key])
        times.plot(factors, factors, color="0.6", linestyle=":", label="proportional")
        times.set_xscale("log", base=2)
        times.set_yscale("log", base=2)
        times.set_xticks(factors, [str(n) for n in factors])
        times.set(
            title=f"{factors[-1]} times the tracks, at most {most['seconds']:.1f} times the time",
            xlabel="tracks, times",
            ylabel="time, times",
        )
        peaks.set(
            title=f"and {most['peak']:.2f} times the memory",
            xlabel="tracks, times",
            ylabel="peak of the process (MB)",
            ylim=(0, 1.1 * peaks.dataLim.y1),
        )
        figure.legend(loc="outside lower center", ncols=len(STAGES) + 1, frameon=False)
        size = found["size"]
        caption = (
            "Time and peak memory of every stage for 1, 2, 4 and 8 times the tracks "
            f"(1: {size['tracks']} tracks to train on and as many to test, {size['seconds']:g} s "
            "each). Training runs in proportion to the tracks. Peak of the stage's main process, "
            "files mapped into its memory aside; its workers stand in the table."
        )
        return save_figure(figure, folder, "growth", caption)


DONE = re.compile(r"^done in ([\d.]+) s$", re.MULTILINE)


def demo(options: Options) -> tuple[list[Row], dict]:
    """The last run of the study by stage, and what starting costs."""
    from cunet_lib.core.settings import load_profile

    logs = load_profile(options.profile).paths.logs
    stages: dict[str, float] = {}
    for path in sorted(logs.glob("*.log")):
        if done := DONE.findall(path.read_text(encoding="utf-8")):
            stages[path.stem] = float(done[-1])
    rows = []
    whole = sum(stages.values())
    notebooks: dict[str, list[float]] = {}
    for stage, seconds in stages.items():
        notebooks.setdefault(stage.split(".")[0], []).append(seconds)
    for notebook, seconds in notebooks.items():
        rows.append(
            Row(
                f"{notebook}, {len(seconds)} run{'s' * (len(seconds) > 1)}",
                f"{sum(seconds):.0f} s",
                f"{whole:.0f} s, all runs of {options.profile}",
                sum(seconds) / whole,
            )
        )
    taken = _start_up(options.either(2, 1))
    bare = _middle(taken["TensorFlow and Keras, as they come"])
    for name, seconds in taken.items():
        rows.append(
            Row(
                f"start-up: {name}",
                f"{_middle(seconds):.2f} s",
                f"{bare:.2f} s, TensorFlow and Keras as they come",
                _middle(seconds) / bare,
            )
        )
    return rows, {"profile": options.profile, "stages": stages, "start": taken}


START_UP = {
    "Python": "pass",
    "TensorFlow and Keras, as they come": "import keras",
    "TensorFlow and Keras, after cunet_lib": "import cunet_lib, keras",
    "papermill, as it comes": "import papermill",
    "papermill, after cunet_lib": "import cunet_lib, papermill",
    "cunet separate": "import cunet_lib.separation.songs, cunet_lib.models.unet, cunet_lib.separation.separator",
    "cunet_lib.train.training": "import cunet_lib.train.training",
    "cunet_lib.evaluation.evaluate": "import cunet_lib.evaluation.evaluate",
    "cunet_lib.report.figures": "import cunet_lib.report.figures",
    "a Jupyter kernel": (
        "from jupyter_client.manager import start_new_kernel\n"
        "manager, client = start_new_kernel(kernel_name='cunet')\n"
        "client.stop_channels()\n"
        "manager.shutdown_kernel(now=True)"
    ),
}


def _start_up(turns: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in START_UP}
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for _ in range(turns):
        for name, code in START_UP.items():
            start = time.perf_counter()
            done = _process([sys.executable, "-c", code], environment, f"Starting {name}")
            if done.returncode:
                raise BenchFailed(f"Starting {name} failed; `make env` mends the environment.")
            taken[name].append(time.perf_counter() - start)
    return taken


PARTS: dict[str, Callable[[Options], tuple[list[Row], dict]]] = {
    part.__name__: part
    for part in (
        *(batches, training, precision, preprocessing),
        *(evaluation, separation, growth, demo),
    )
}


# ------------------------------------------------------------------------------------------ report


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _milliseconds(values: Sequence[float]) -> str:
    return f"{1e3 * _middle(values):.3g} ms"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _number(value: float) -> str:
    """Three digits, as people write them.

    >>> _number(0.0312), _number(21.36), _number(1234.5)
    ('0.0312', '21.4', '1234')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(record: dict | None, *, parts: Sequence[str] = tuple(PARTS)) -> str:
    """The table of a record, and a line about machine and doubts.

    Parameters
    ----------
    record
        What ``bench.json`` holds, or None if there is none.
    """
    if record is None:
        return NOTHING
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---|---:|---|"]
    quick = []
    for part in parts:
        if part not in record["parts"]:
            continue
        found = record["parts"][part]
        if found["quick"]:
            quick.append(part)
        for index, fields in enumerate(found["rows"]):
            row = Row(**fields)
            cell = "" if row.ratio is None else _number(row.ratio)
            if row.low is not None and row.low != row.high:
                cell += f" ({_number(row.low)} to {_number(row.high)})"
            wanted = row.wanted
            if row.reached is not None:
                wanted += ", reached" if row.reached else ", **missed**"
            name = part if index == 0 else ""
            cells = (name, row.what, row.ours, row.reference, cell, wanted)
            lines.append("| " + " | ".join(cells) + " |")
    machine = record["machine"]
    lines += [
        "",
        f"Measured on {machine['processor']}, {machine['cores']} cores, TensorFlow "
        f"{machine['tensorflow']}. Ratios are medians over turns, quartiles in parentheses.",
    ]
    if quick:
        lines[-1] += f" Measured in a hurry (`--quick`), so rough: {', '.join(quick)}."
    return "\n".join(lines)


def read_record(folder: Path = FOLDER) -> dict | None:
    """What ``bench.json`` holds; None if there is none.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    path = folder / "bench.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"machine": record["machine"], "parts": record["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; delete it and run `make bench` again.") from error


def machine() -> dict:
    """What figures depend on, besides the code."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = re.findall(r"^model name\s*: (.*)$", information.read_text(), re.MULTILINE)
        processor = names[0].strip() if names else processor
    return {
        "processor": processor,
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "numpy": version("numpy"),
    }


def keep(record: dict, folder: Path = FOLDER, readme: Path | None = README) -> None:
    """Write a record, its table, its figure, and the table of the README."""
    write_json(folder / "bench.json", record)
    text = markdown(record)
    write_atomically(folder / "bench.md", f"{text}\n")
    if "growth" in record["parts"]:
        draw_growth(record["parts"]["growth"]["found"], folder)
    if readme is not None:
        write_atomically(readme, inserted(readme.read_text(encoding="utf-8"), in_readme(record)))


def in_readme(record: dict | None) -> str:
    """What stands in the README: the table, and the figure if there is one."""
    text = markdown(record)
    if record is not None and "growth" in record["parts"]:
        text += "\n\n![Time and memory of the stages with more tracks](results/bench/growth.png)"
    return text


def inserted(document: str, table: str) -> str:
    """A document with a table between the markers.

    Raises
    ------
    ConfigError
        If the markers are not there, once each and in order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"README.md lacks the lines {BEGIN} and {END}; put them back.")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


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
    parser.add_argument("--profile", default="demo", help="whose last run part demo reads")
    parser.add_argument(
        "--out", type=Path, help="another folder than results/bench; the README stays as it is"
    )
    given = parser.parse_args(arguments)
    options = Options(given.quick, given.torch, given.profile)
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
            keep(record, folder, None if given.out else README)
    except (ConfigError, BenchFailed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(markdown(record))
    return 0


if __name__ == "__main__":
    # Ends by an exception, so that the workload that is running ends too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
