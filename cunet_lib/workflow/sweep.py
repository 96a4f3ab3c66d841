"""Sweeps: one training notebook over a grid of parameters and settings.

A grid is text: ``"variant=dense_simple,dense_complex train.learning_rate=1e-3,3e-4"``. A plain name
is a parameter of the notebook, a dotted one a setting of the profile. Every run has a results
folder of its own below ``results/<profile>/sweeps/<notebook>-by-<axes>``, so that a sweep that was
stopped, or whose grid has grown, runs what is missing. A table and a figure gather the lowest
validation losses.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cunet_lib.core.files import read_run
from cunet_lib.core.settings import ConfigError, Profile, load_profile
from cunet_lib.workflow.run import run_stage, say
from cunet_lib.workflow.stages import TRAININGS, Stage, parse_stage, run_name

EXAMPLE = "variant=dense_simple,dense_complex train.learning_rate=1e-3,3e-4"


@dataclass(frozen=True)
class Run:
    """One point of the grid: axis to value, the stage, its settings, and its ``CUNET_RESULTS``."""

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
        """Content of ``run.json``; None unless training has ended with these settings."""
        folder = self.folder / self.settings.name / "runs" / run_name(self.stage.name)
        record = read_run(folder) if (folder / "run.json").is_file() else {}
        # What a finished training is taken for as it is: the rest may have changed since.
        decided = self.settings.model_dump(mode="json", include={"signal", "model", "train"})
        return record if record.get("settings", {}).items() >= decided.items() else None


@dataclass(frozen=True)
class Sweep:
    """A grid of runs, checked and not yet run."""

    settings: Profile
    folder: Path
    runs: tuple[Run, ...]

    def text(self) -> str:
        """One line per run, for the terminal."""
        head = f"Sweep {self.folder.name}, {len(self.runs)} run{'s' * (len(self.runs) > 1)}:"
        return "\n  ".join([head, *(run.label for run in self.runs)])


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
        if axis in ("profile", "overrides"):
            raise ConfigError(
                f"{axis!r} is no axis of a grid; settings have dotted names, as in {EXAMPLE!r}."
            )
        values = re.split(r",(?![^\[]*\])", text)
        if "" in values:
            raise ConfigError(f"Axis {axis!r} of the grid has an empty value.")
        if axis in axes or len(set(values)) < len(values):
            raise ConfigError(f"Axis {axis!r} of the grid, or a value of it, stands twice.")
        axes[axis] = values
    if not axes:
        raise ConfigError(f"The grid is empty; give axes, such as GRID={EXAMPLE!r}.")
    return axes


def plan(profile: str, notebook: str, grid: str) -> Sweep:
    """Check a grid, every name and value of it, and lay out its runs of a notebook that trains.

    Raises
    ------
    ConfigError
        If the notebook trains nothing, an axis or a value is unknown or impossible, or a run would
        need another corpus.
    """
    if notebook not in TRAININGS:
        raise ConfigError(
            f"STAGE {notebook!r} is no notebook that trains; there are: {', '.join(TRAININGS)}."
        )
    axes, base = parse_grid(grid), load_profile(profile)
    folder = base.paths.results / "sweeps" / f"{notebook}-by-{'-'.join(axes)}"
    points = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return Sweep(base, folder, tuple(_run(base, profile, notebook, p, folder) for p in points))


def _run(base: Profile, profile: str, notebook: str, point: dict[str, str], folder: Path) -> Run:
    overrides = " ".join(f"{axis}={value}" for axis, value in point.items() if "." in axis)
    settings = load_profile(profile, overrides)
    if settings.section_hash("data", "signal") != base.section_hash("data", "signal"):
        raise ConfigError(
            f"The grid changes data or signal settings ({overrides}), which the prepared store "
            "fixes; prepare another profile and sweep that."
        )
    parameters = {axis: value for axis, value in point.items() if "." not in axis}
    stage = parse_stage(notebook, {"profile": profile, "overrides": overrides, **parameters})
    words = "-".join(f"{axis.rpartition('.')[2]}_{value}" for axis, value in point.items())
    # Words for people; the digest keeps apart what the words do not.
    digest = hashlib.sha256(json.dumps(sorted(point.items())).encode()).hexdigest()[:8]
    place = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', words)[:100].strip('_.')}-{digest}"
    return Run(point, stage, settings, folder / place)


def run(sweep: Sweep, *, address: str = "") -> list[Run]:
    """Run what is not finished, one after the other, then gather all that is.

    A run that fails is told, and the others run all the same. ``address`` is that of a Dask
    scheduler, if the runs go there. During a run, ``CUNET_RESULTS`` is its folder.

    Returns
    -------
    list of Run
        Those that failed.

    Raises
    ------
    ConfigError
        If no run has finished.
    """
    failed, results = [], os.environ.get("CUNET_RESULTS", "")
    for number, each in enumerate(sweep.runs, start=1):
        say(f"sweep | {number} of {len(sweep.runs)}: {each.label}")
        os.environ["CUNET_RESULTS"] = str(each.folder)
        try:
            if not run_stage(each.stage.notebook, each.stage.parameters, address=address):
                failed.append(each)
        finally:
            os.environ["CUNET_RESULTS"] = results
    for part in gather(sweep):
        part.save(sweep.folder)
    say(f"sweep | {sweep.folder / 'sweep.md'}, {sweep.folder / 'sweep.png'}")
    for each in failed:
        say(f"sweep | failed: {each.label}")
    return failed


def gather(sweep: Sweep) -> tuple:
    """``Table`` and ``Figure`` of the finished runs; :class:`ConfigError` if there is none."""
    import pandas as pd

    from cunet_lib.report.figures import SYSTEM_COLOURS, Figure, drawn, subplots
    from cunet_lib.report.records import Table, data_note, loss_named, rate_note, system_of

    keys = ("model", "seed", "best_val_loss", "best_epoch", "epochs", "steps", "seconds")
    finished = [(each, record) for each in sweep.runs if (record := each.record)]
    if not finished:
        raise ConfigError(f"No run of the sweep {sweep.folder.name} has finished.")
    frame = pd.DataFrame([{**e.point, **{key: r[key] for key in keys}} for e, r in finished])
    losses = frame["best_val_loss"].map("{:.3e}".format)
    display = frame.assign(best_val_loss=losses, seconds=frame["seconds"].round())
    caption = (
        f"Lowest validation loss ({loss_named(frame['model'])}) of {len(finished)} of "
        f"{len(sweep.runs)} runs, one for each point of the grid. Models of different targets do "
        f"not compare by it. {data_note(sweep.settings)} {rate_note(sweep.settings)}."
    )

    @drawn
    def figure() -> Figure:
        fig, axes = subplots(1, 1, size=(8.5, 0.32 * len(frame) + 1.5))
        ax, losses = axes[0, 0], frame["best_val_loss"]
        colours = [SYSTEM_COLOURS[system_of(model)] for model in frame["model"]]
        ax.scatter(losses, range(len(frame)), c=colours, s=50, edgecolors="white", zorder=3)
        ax.axvline(losses.min(), color="#AAAAAA", lw=0.8, zorder=0)
        labels = [each.label for each, _ in finished]
        ax.set_yticks(range(len(frame)), labels)
        ax.set_ylim(len(frame) - 0.4, -0.6)
        ax.set_xlabel("Lowest validation loss")
        ax.set_title(f"Lowest: {labels[int(losses.argmin())]}", loc="right")
        return Figure("sweep", fig, caption)

    return Table("sweep", frame, display, caption), figure()
