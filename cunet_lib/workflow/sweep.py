"""Sweeps: one training notebook over a grid of parameters and settings.

A grid is text: ``"variant=dense_simple,dense_complex train.learning_rate=1e-3,3e-4"``. A plain name
is a parameter of the notebook, a dotted one a setting of the profile. Every run has a results
folder of its own below ``results/<profile>/sweeps/<name>``, away from the study's; a sweep that was
stopped, or whose grid has grown, runs what is missing. At the end a table and a figure gather the
lowest validation losses.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cunet_lib.core.settings import ROOT, ConfigError, Profile, load_profile
from cunet_lib.preprocess.store import open_store
from cunet_lib.report.figures import SYSTEM_COLOURS, Figure, drawn, subplots, system_of
from cunet_lib.report.records import LABELS, count, data_note, rate_note
from cunet_lib.report.tables import Table
from cunet_lib.workflow.run import say, shown
from cunet_lib.workflow.stages import Stage, parse_stage

NOTEBOOKS = ("02_train_unet", "03_train_cunet")
"""Notebooks that train, so that there is a validation loss to gather."""

EXAMPLE = "variant=dense_simple,dense_complex train.learning_rate=1e-3,3e-4"


@dataclass(frozen=True)
class Run:
    """One point of the grid.

    Attributes
    ----------
    point
        Axis to value, as text, in the grid's order.
    stage
        Notebook and parameters.
    settings
        Profile with the run's overrides.
    folder
        Its results: what ``CUNET_RESULTS`` is for other runs.
    """

    point: dict[str, str]
    stage: Stage
    settings: Profile
    folder: Path

    @property
    def label(self) -> str:
        """Such as ``"variant=dense_simple train.learning_rate=1e-3"``."""
        return " ".join(f"{axis}={value}" for axis, value in self.point.items())

    @property
    def record(self) -> dict | None:
        """Content of ``run.json``; None unless the notebook ran to its end with these settings."""
        inside = self.folder / self.settings.name
        (*paths,) = inside.glob("runs/*/run.json")
        if len(paths) != 1 or not (inside / "notebooks" / f"{self.stage.name}.ipynb").is_file():
            return None
        try:
            record = json.loads(paths[0].read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            return None
        same = record.get("settings") == self.settings.model_dump(mode="json")
        return record if same else None


@dataclass(frozen=True)
class Sweep:
    """A grid of runs, checked and not yet run."""

    name: str
    settings: Profile
    folder: Path
    runs: tuple[Run, ...]

    def text(self) -> str:
        """One line per run, for the terminal."""
        lines = [f"  {run.label}" for run in self.runs]
        return "\n".join([f"Sweep {self.name}, {count(len(self.runs), 'run')}:", *lines])


def parse_grid(grid: str) -> dict[str, list[str]]:
    """Axes of a grid and their values, all as text.

    Commas within brackets belong to a value: ``train.conditions=[one_hot,zero],[one_hot]``.

    >>> parse_grid("variant=dense_simple train.learning_rate=1e-3,3e-4")
    {'variant': ['dense_simple'], 'train.learning_rate': ['1e-3', '3e-4']}

    Raises
    ------
    ConfigError
        If there is no axis, one is malformed or there twice, or a value is empty or there twice.
    """
    axes: dict[str, list[str]] = {}
    for word in grid.split():
        axis, separator, text = word.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", axis):
            raise ConfigError(f"Axis {word!r} of the grid must look like name=value,value.")
        if axis in axes:
            raise ConfigError(f"Axis {axis!r} stands twice in the grid.")
        values = re.split(r",(?![^\[]*\])", text)
        if "" in values:
            raise ConfigError(f"Axis {axis!r} of the grid has an empty value.")
        if len(set(values)) < len(values):
            raise ConfigError(f"Axis {axis!r} of the grid has a value twice: {text}.")
        axes[axis] = values
    if not axes:
        raise ConfigError(f"The grid is empty; give axes, such as GRID={EXAMPLE!r}.")
    return axes


def plan(profile: str, notebook: str, grid: str, *, name: str = "") -> Sweep:
    """Check a grid, every name and value of it, and lay out its runs.

    Parameters
    ----------
    profile
        Settings that the grid departs from.
    notebook
        One of :data:`NOTEBOOKS`.
    grid
        See :func:`parse_grid`.
    name
        Folder of the sweep; the notebook and its axes if empty, so that a grid with further values
        finds the runs of the smaller one.

    Raises
    ------
    ConfigError
        If the notebook trains nothing, an axis or a value is unknown or impossible, or a run would
        need another corpus.
    """
    if notebook not in NOTEBOOKS:
        raise ConfigError(
            f"STAGE {notebook!r} is no notebook that trains; there are: {', '.join(NOTEBOOKS)}."
        )
    axes = parse_grid(grid)
    for axis in ("profile", "overrides"):
        if axis in axes:
            raise ConfigError(
                f"{axis!r} is no axis of a grid; settings have dotted names, as in {EXAMPLE!r}."
            )
    base = load_profile(profile)
    name = name or f"{notebook}-by-{'-'.join(axes)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,150}", name):
        raise ConfigError(f"Name {name!r} of a sweep may hold letters, digits, '-', '_', '.' only.")
    folder = base.paths.results / "sweeps" / name
    runs = [
        _lay_out(base, profile, notebook, dict(zip(axes, point, strict=True)), folder)
        for point in itertools.product(*axes.values())
    ]
    return Sweep(name, base, folder, tuple(runs))


def _lay_out(
    base: Profile, profile: str, notebook: str, values: dict[str, str], folder: Path
) -> Run:
    overrides = " ".join(f"{axis}={value}" for axis, value in values.items() if "." in axis)
    settings = load_profile(profile, overrides)
    if settings.section_hash("data", "signal") != base.section_hash("data", "signal"):
        raise ConfigError(
            f"The grid changes data or signal settings ({overrides}), which the prepared store "
            "fixes; prepare another profile and sweep that."
        )
    parameters = {axis: value for axis, value in values.items() if "." not in axis}
    stage = parse_stage(notebook, {"profile": profile, "overrides": overrides, **parameters})
    words = "-".join(
        re.sub(r"[^A-Za-z0-9.]+", "_", f"{axis.split('.')[-1]}_{value}").strip("_.")
        for axis, value in values.items()
    )
    # Words for people; the digest keeps apart what the words do not.
    digest = hashlib.sha256(json.dumps(sorted(values.items())).encode()).hexdigest()[:8]
    return Run(values, stage, settings, folder / f"{words[:100]}-{digest}")


def run(sweep: Sweep, echo: Callable[[str], None] = say) -> list[Run]:
    """Run what is not finished, one after the other, then gather all that is.

    A run that fails is told, and the others go on.

    Parameters
    ----------
    echo
        Called with each line for the terminal.

    Returns
    -------
    list of Run
        Those that failed.

    Raises
    ------
    ConfigError
        If the corpus has not been prepared, or no run finished.
    """
    store = open_store(sweep.settings)
    failed = []
    for number, each in enumerate(sweep.runs, start=1):
        where = f"sweep | {number} of {len(sweep.runs)}: {each.label}"
        record = each.record
        if record and record.get("store") == store.hash:
            echo(f"{where} | finished before")
            continue
        echo(where)
        if _execute(each):
            failed.append(each)
    table, figure = gather(sweep)
    table.save(sweep.folder)
    figure.save(sweep.folder)
    echo(f"sweep | {shown(sweep.folder / 'sweep.md')}, {shown(sweep.folder / 'sweep.png')}")
    for each in failed:
        echo(f"sweep | failed: {each.label}")
    return failed


def command(each: Run) -> tuple[list[str], dict[str, str]]:
    """Words and environment of the process that does a run; no shell comes in between."""
    words = [sys.executable, "-m", "cunet_lib.cli", "run", each.stage.notebook]
    for name, value in each.stage.parameters.items():
        words += ["-p", name, str(value)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return words, {**os.environ, "CUNET_RESULTS": str(each.folder), "PYTHONPATH": path}


def _execute(each: Run) -> int:
    words, environment = command(each)
    with subprocess.Popen(words, env=environment) as process:
        try:
            return process.wait()
        except BaseException:
            # It ends its kernel first, which it could not if it were killed.
            process.terminate()
            process.wait()
            raise


def gather(sweep: Sweep) -> tuple[Table, Figure]:
    """Table and figure of the finished runs.

    Raises
    ------
    ConfigError
        If no run has finished.
    """
    rows = []
    for each in sweep.runs:
        if record := each.record:
            keys = ("model", "seed", "best_val_loss", "best_epoch", "epochs", "steps", "seconds")
            rows.append({**each.point, **{key: record[key] for key in keys}})
    if not rows:
        raise ConfigError(f"No run of the sweep {sweep.name} has finished.")
    frame = pd.DataFrame(rows)
    display = frame.astype(str)
    display["best_val_loss"] = frame["best_val_loss"].map("{:.3e}".format)
    display["seconds"] = frame["seconds"].map("{:.0f}".format)
    caption = (
        f"Sweep {sweep.name}, {len(rows)} of {count(len(sweep.runs), 'run')} finished. "
        "Validation loss: mean absolute error of magnitudes on validation tracks, in the epoch "
        "that was kept; one training run for each point of the grid, so the spread between runs "
        "is seen only where the seed is an axis. Models of different instruments or targets do "
        f"not compare by it. {data_note(sweep.settings)} {rate_note(sweep.settings)}."
    )
    labels = [each.label for each in sweep.runs if each.record]
    return Table("sweep", frame, display, caption), _figure(frame, labels, caption)


@drawn
def _figure(frame: pd.DataFrame, labels: Sequence[str], caption: str) -> Figure:
    """Lowest validation loss of each run, in the grid's order."""
    fig, axes = subplots(1, 1, size=(8.5, 0.32 * len(frame) + 1.5))
    ax = axes[0, 0]
    for row, (model, loss) in enumerate(zip(frame["model"], frame["best_val_loss"], strict=True)):
        ax.plot(loss, row, "o", color=SYSTEM_COLOURS[system_of(model)], ms=7, mec="white")
    best = int(frame["best_val_loss"].argmin())
    ax.axvline(frame["best_val_loss"][best], color="#AAAAAA", lw=0.8, zorder=0)
    ax.set_yticks(range(len(frame)), labels)
    ax.set_ylim(len(frame) - 0.4, -0.6)
    ax.set_xlabel("Lowest validation loss (mean absolute error of magnitudes)")
    ax.set_title(f"Lowest: {labels[best]} ({LABELS[frame['model'][best]]})", loc="right")
    return Figure("sweep", fig, caption)
