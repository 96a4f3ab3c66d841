"""Stages of the study: one run of one notebook each, what it reads, and whether it is up to date.

A stage is a notebook and what it is about: ``00_corpus``, ``02_train_unet.bass-seed0``,
``04_evaluate.unet-seed0``. Its fingerprint stands for everything that decides its numbers; it is
kept in the executed copy, and a stage whose fingerprint is still the same need not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cunet_lib.core.files import parsed, sha256
from cunet_lib.core.settings import ROOT, ConfigError, Profile, folder
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.workflow.parameters import (
    NOTEBOOKS,
    check_parameters,
    code_cells,
    notebook_parameters,
)

SUBJECTS = {
    "02_train_unet": "instrument",
    "03_train_cunet": "variant",
    "04_evaluate": "model",
    "07_conditions": "model",
}
"""Notebooks that run once per subject and seed, and the parameter that names the subject."""

TRAININGS = {"02_train_unet": "unet_", "03_train_cunet": ""}
"""Notebooks that train, and what stands before the subject in the name of the run folder."""


@dataclass(frozen=True)
class Stage:
    """One run of one notebook, ``"03_train_cunet"``.

    Its name is that of the executed copy without suffix, ``"03_train_cunet.dense_simple-seed0"``.
    ``parameters`` are those that were given, ``values`` all of them, given or default.
    """

    notebook: str
    name: str
    parameters: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def source(self) -> Path:
        """Path of the source notebook."""
        return NOTEBOOKS / f"{self.notebook}.ipynb"

    def output(self, settings: Profile) -> Path:
        """Path of the executed copy."""
        return settings.paths.notebooks / f"{self.name}.ipynb"

    def run_folder(self, settings: Profile) -> Path | None:
        """Run folder that it trains into; None if it trains nothing."""
        name = run_name(self.name)
        return settings.paths.runs / name if name else None

    def result(self, settings: Profile) -> Path | None:
        """Its main result, without which it runs again; None for notebooks beside the study."""
        paths, run = settings.paths, self.name.partition(".")[2]
        if folder := self.run_folder(settings):
            return folder / "model.keras"
        return {
            "00_corpus": paths.corpus / "corpus.json",
            "01_preprocess": paths.store / "index.json",
            "04_evaluate": paths.scores / f"{run.replace('oracles', 'ideal_ratio_mask')}.csv",
            "05_plot": paths.scores / "scores.csv",
            "07_conditions": paths.tables / "conditions_uncontrolled.csv",
            "08_beyond": paths.models / "highs.npz",
        }.get(self.notebook)

    def inputs(self, settings: Profile) -> list[str]:
        """Names of the stages whose results it reads."""
        model, seed = self.values.get("model"), self.values.get("seed")
        if self.notebook == "01_preprocess":
            return ["00_corpus"]
        if self.notebook in TRAININGS or model == "oracles":
            return ["01_preprocess"]
        if self.notebook == "04_evaluate":
            return _trainings(model, seed)
        if self.notebook == "07_conditions":
            return _trainings(model, seed) + _trainings(self.values["against"], seed)
        if self.notebook == "05_plot":
            # Of each seed the C-U-Nets, which take longest, first: free jobs take them in order.
            systems = sorted(settings.trained, key=lambda run: (run[1], run[0] == "unet"))
            trainings = [name for system in systems for name in _trainings(*system)]
            # The shipped network's scores take longest, as its ablation is scored, too.
            scored = sorted([*systems, ("oracles", 0)], key=lambda run: run[0] != settings.shipped)
            return [*trainings, *(f"04_evaluate.{name}-seed{seed}" for name, seed in scored)]
        if self.notebook == "08_beyond":
            return ["05_plot"]
        return []


def _trainings(system: str, seed: int) -> list[str]:
    if system == "unet":
        return [f"02_train_unet.{instrument}-seed{seed}" for instrument in INSTRUMENTS]
    return [f"03_train_cunet.{system}-seed{seed}"]


def edges(settings: Profile, *goals: str) -> list[tuple[str, str]]:
    """Each stage that the goals need, in pairs with each that it reads, in the order of reading."""
    found, todo = {}, list(goals)
    while todo:
        name = todo.pop(0)
        if name not in found:
            found[name] = parse_stage(name).inputs(settings)
            todo += found[name]
    return [(name, each) for name, read in found.items() for each in read]


def run_name(stage: str) -> str | None:
    """Name of the run folder that a stage trains into; None if it trains nothing.

    >>> run_name("02_train_unet.bass-seed0"), run_name("05_plot")
    ('unet_bass-seed0', None)
    """
    notebook, _, subject = stage.partition(".")
    return TRAININGS[notebook] + subject if notebook in TRAININGS else None


def notebook_names() -> list[str]:
    """Names of the source notebooks, in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def parse_stage(name: str, parameters: Mapping[str, Any] | None = None) -> Stage:
    """Read a stage's name, ``<notebook>`` or ``<notebook>.<subject>-seed<n>``, and parameters.

    Without a subject in the name, the parameters or the notebook's defaults supply it. Strings are
    read as the type of the parameter's default.

    Raises
    ------
    ConfigError
        If there is no such notebook, the name is malformed, or a parameter is unknown, of another
        type, or in contradiction to the name.
    """
    notebook, dot, run = name.partition(".")
    if notebook not in notebook_names():
        raise ConfigError(f"No notebook {notebook!r}; there are: {', '.join(notebook_names())}.")
    subject, source = SUBJECTS.get(notebook), NOTEBOOKS / f"{notebook}.ipynb"
    chosen = dict(parameters or {})
    if dot:
        match = re.fullmatch(r"(\w+)-seed(\d+)", run)
        if subject is None or match is None:
            form = f"{notebook}.<{subject}>-seed<number>" if subject else notebook
            raise ConfigError(f"Stage {name!r} must look like {form}.")
        for key, value in ((subject, match[1]), ("seed", int(match[2]))):
            if str(chosen.setdefault(key, value)) != str(value):
                raise ConfigError(f"Stage {name!r} and parameter {key} = {chosen[key]} disagree.")
    parameters = check_parameters(source, chosen)
    values = {**notebook_parameters(source), **parameters}
    if subject:
        name = f"{notebook}.{values[subject]}-seed{values['seed']}"
    return Stage(notebook, name, parameters, values)


# ------------------------------------------------------------------------------- what is up to date


def is_current(stage: Stage, settings: Profile, fingerprint: str) -> bool:
    """Whether a stage's last run had this fingerprint and its main result is still there."""
    result = stage.result(settings)
    made = result is not None and result.is_file()
    return made and recorded(stage.output(settings)) == fingerprint


def fingerprint(stage: Stage, settings: Profile) -> str:
    """SHA-256 of everything that decides a stage's numbers.

    These are the code cells and parameters of its notebook; the settings; the code that it imports,
    and what that imports, without comments and docstrings; and its inputs: the main results of
    earlier stages and their fingerprints, the names and sizes of the files of MUSDB18 or of a
    folder of one's own, or the scores of the profile that this one is like.
    """
    sources = [text for text, tags in code_cells(stage.source) if "parameters" not in tags]
    code, names = zip(*map(parsed, sources), strict=True) if sources else ((), ())
    values = {k: v for k, v in stage.values.items() if k not in ("profile", "overrides")}
    inputs = {}
    for each in map(parse_stage, stage.inputs(settings)):
        result, made = each.result(settings), recorded(each.output(settings))
        inputs[each.name] = made, sha256(result) if result.is_file() else None
    facts = {
        "cells": code,
        "parameters": values,
        "settings": settings.model_dump(
            mode="json", exclude=None if stage.notebook == "05_plot" else {"seeds"}
        ),
        "code": used_code(set().union(*names)),
        "inputs": inputs,
    }
    if stage.notebook == "00_corpus" and settings.data.source in ("musdb18", "folder"):
        root = folder(os.environ.get("CUNET_MUSDB") or ".")
        found = sorted(path for path in root.glob("*/**/*") if path.is_file())
        facts["files"] = [(str(path.relative_to(root)), path.stat().st_size) for path in found]
    if stage.notebook in ("05_plot", "08_beyond") and settings.like:
        scores = settings.model_copy(update={"name": settings.like}).paths.scores
        facts["like"] = [sha256(path) for path in sorted(scores.glob("*-seed*.csv"))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recorded(copy: Path) -> str | None:
    """Fingerprint that an executed copy was made with; None if there is none."""
    try:
        # Quotation marks in a notebook's text are escaped: these can only be its metadata.
        content = copy.read_bytes()
    except OSError:
        return None
    found = re.search(rb'"cunet": \{\s*"fingerprint": "(\w+)"', content)
    return found[1].decode() if found else None


def used_code(names: Iterable[str]) -> dict[str, str]:
    """Digest of each file of this project's code among modules and what these import, by path.

    Modules are given by dotted names, such as ``"cunet_lib.models.film"``; those of other packages
    are passed over. A data file below a module's folder counts where the module names it.
    ``__init__`` modules do not count: they hold documentation, and the door to functions that no
    notebook calls.
    """
    todo, found = set(names), {}
    while todo:
        path = ROOT / f"{todo.pop().replace('.', '/')}.py"
        key = path.relative_to(ROOT).as_posix()
        if key in found or not path.is_file():
            continue
        source = path.read_text(encoding="utf-8")
        code, further = parsed(source)
        found[key] = hashlib.sha256(code.encode()).hexdigest()
        todo |= further
        for data in path.parent.rglob("*.*"):
            if data.suffix not in (".py", ".pyc") and data.name in source:
                found[data.relative_to(ROOT).as_posix()] = sha256(data)
    return found
